"""Rows per second of an ensemble and its Random Forest, beside what they have to stand up to.

    python benchmarks/scoring.py [--model default] [--device auto] [--rows 8192] [--shared]
                                 [--table FILE]

All in one run, on perovskite candidates drawn at random:

* the scorer in every arithmetic that the machine has, and the share that it reaches of the rate of
  a large matrix product in that arithmetic;
* a plain evaluation loop: member by member, fp32, through the trained modules, with batches from a
  DataLoader (64 is the paper's batch, 32 the reference implementation's);
* the Random Forest, and scikit-learn's own ``RandomForestRegressor.predict`` on the same trees;
* what int8 and bf16 change against fp32, in the ensemble's mean and in single members; with
  ``--table``, also the mean absolute error on its rows (the 271 features and
  formation_energy_per_atom) in each arithmetic.

Every rate is the best of several rounds that go through all contestants in turn. With ``--shared``,
for a machine that is not idle, it is that of one thread per second of processor time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import describe_machine
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from irnet import Ensemble, Forest
from irnet.device import choose_device, has_fast_int8
from irnet.scorer import Scorer
from prototypes import ELEMENTS_89, find_prototype
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.features.schema import FEATURES
from screening.model_library import load_model

TARGET = "formation_energy_per_atom"
LOOPS = {1: 32, 32: 256, 64: 512, 512: 1024}
"""Batch of a plain loop -> rows that it is timed on."""


def best_times(
    contestants: Mapping[str, Callable[[], object]],
    clock: Callable[[], float],
    device: torch.device,
    rounds: int,
) -> dict[str, float]:
    """Return the least seconds of each contestant over rounds, after one round to warm up."""
    best = dict.fromkeys(contestants, float("inf"))
    for number in range(rounds + 1):
        for name, work in contestants.items():
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                best[name] = min(best[name], clock() - start)
    return best


def plain_loop(ensemble: Ensemble, features: Tensor, batch: int) -> Callable[[], object]:
    """Return the evaluation of every member, batch by batch, as one writes it without a scorer."""
    device = features.device
    networks = [member.network.to(device) for member in ensemble.members]
    rows = features[: LOOPS[batch]].cpu().numpy()
    loaders = [
        DataLoader(TensorDataset(torch.from_numpy(m.scaling.inputs(rows))), batch_size=batch)
        for m in ensemble.members
    ]

    @torch.no_grad()
    def loop() -> list[Tensor]:
        return [
            torch.cat([network(scaled.to(device)).cpu() for (scaled,) in loader])
            for network, loader in zip(networks, loaders, strict=True)
        ]

    return loop


def in_scikit_learn(forest: Forest) -> RandomForestRegressor:
    """Return scikit-learn's regressor with the nodes of a forest's trees."""
    width = len(forest.feature_names)
    draw = np.random.default_rng(0).random((4, width))
    model = RandomForestRegressor(forest.trees, random_state=0).fit(draw, draw[:, 0])
    leaf, right = forest._shape.leaf, forest._shape.right
    ends = np.cumsum(forest.sizes)
    for estimator, start, end in zip(model.estimators_, ends - forest.sizes, ends, strict=True):
        own = slice(start, end)
        state = estimator.tree_.__getstate__()
        nodes = np.zeros(end - start, dtype=state["nodes"].dtype)
        nodes["left_child"] = np.where(leaf[own], -1, np.arange(1, end - start + 1))
        nodes["right_child"] = np.where(leaf[own], -1, right[own] - start)
        nodes["feature"] = np.where(leaf[own], -2, forest.feature[own].astype(np.int64))
        nodes["threshold"] = np.where(leaf[own], -2.0, forest.threshold[own])
        nodes["n_node_samples"] = nodes["weighted_n_node_samples"] = 1
        values = np.where(leaf[own], forest.value[own], 0.0).astype(np.float64).reshape(-1, 1, 1)
        tree = type(estimator.tree_)(width, np.array([1]), 1)
        depth = int(forest._shape.depth[own].max())
        tree.__setstate__(
            {"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values}
        )
        estimator.tree_ = tree
    return model


def large_product(precision: str, size: int, device: torch.device) -> Callable[[], object]:
    """Return the product of two square matrices in a scorer's arithmetic."""
    if precision == "int8":
        numbers = torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device)
        return lambda: torch._int_mm(numbers, numbers)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn(size, size, device=device).to(dtype)
    return lambda: matrix @ matrix


def sample_features(rows: int, device: torch.device) -> Tensor:
    """Return the features of perovskite candidates drawn at random, (rows, 271)."""
    prototype = find_prototype("perovskite")
    keys = np.random.default_rng(0).random((rows, len(ELEMENTS_89))).argsort(axis=1)
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    return featurizer(np.array(ELEMENTS_89)[keys[:, :3]], device=device)


def print_changes(scorers: Mapping[str, Scorer], features: Tensor) -> None:
    """Print the mean and the largest absolute change against fp32 in eV/atom."""
    exact = scorers["fp32"].predict(features)
    for name, scorer in scorers.items():
        if name == "fp32":
            continue
        found = scorer.predict(features)
        for what, change in (
            ("the ensemble's mean", found.mean - exact.mean),
            ("single members", found.members - exact.members),
        ):
            size = np.abs(change)
            print(
                f"{f'{name} against fp32, {what}:':<46}mean {size.mean():.4f}, "
                f"largest {size.max():.4f} eV/atom"
            )


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="rows to measure errors on too")
    parser.add_argument("--shared", action="store_true", help="one thread, processor time")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.shared and device.type == "cuda":
        parser.error("--shared counts processor time, not a GPU's; add --device cpu")
    if arguments.shared:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.shared else time.perf_counter
    model = load_model(arguments.model)
    features = sample_features(arguments.rows, device)

    print(describe_machine())
    print(f"{device}, {torch.get_num_threads()} threads, rows per second", end="")
    print(" of processor time" if arguments.shared else "")
    weights = sum(
        module.weight.numel()
        for member in model.ensemble.members
        for module in member.network.modules()
        if isinstance(module, torch.nn.Linear)
    )
    print(f"{len(model.ensemble.members)} members, {2 * weights / 1e6:.1f} Mop a row in all")

    precisions = ("int8", "bf16", "fp32") if has_fast_int8(device) else ("bf16", "fp32")
    scorers = {
        name: model.ensemble.scorer(device=str(device), precision=name) for name in precisions
    }
    print(f"auto is {model.ensemble.scorer(device=str(device)).precision} here")
    size = 8192 if device.type == "cuda" else 2048
    contestants: dict[str, Callable[[], object]] = {}
    for name in precisions:
        contestants[f"product {name}"] = large_product(name, size, device)
        contestants[f"scorer {name}"] = lambda s=scorers[name]: s.predict_members(features)
    for batch in LOOPS:
        contestants[f"loop {batch}"] = plain_loop(model.ensemble, features, batch)
    if model.forest is not None:
        forest, rows = model.forest, features.cpu().numpy()
        contestants["forest"] = lambda: forest.predict(features)
        reference = in_scikit_learn(forest)
        jobs = (1,) if arguments.shared else (1, 2)
        for job in jobs:
            contestants[f"scikit-learn {job}"] = lambda job=job: reference.set_params(
                n_jobs=job
            ).predict(rows)
    times = best_times(contestants, clock, device, arguments.rounds)

    rates = {name: arguments.rows / seconds for name, seconds in times.items()}
    for batch, count in LOOPS.items():
        rates[f"loop {batch}"] = min(count, len(features)) / times[f"loop {batch}"]
    for name in precisions:
        product = 2 * size**3 / times[f"product {name}"]
        rate = rates[f"scorer {name}"]
        print(
            f"{f'scorer, {name}':<34}{rate:>10,.0f} rows/s, {2 * weights * rate / product:.0%} of "
            f"the {product / 1e9:,.0f} Gop/s of a product of {size} x {size} matrices"
        )
    for batch in LOOPS:
        rate = rates[f"loop {batch}"]
        ratios = ", ".join(f"{name} {rates[f'scorer {name}'] / rate:.1f}" for name in precisions)
        print(f"{f'plain fp32 loop, batches of {batch}':<34}{rate:>10,.0f} rows/s; scorer {ratios}")
    if model.forest is not None:
        per_tree = forest.nodes / forest.trees
        found, expected = forest.predict(features), reference.predict(rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        print(
            f"{'Random Forest':<34}{rates['forest']:>10,.0f} rows/s; "
            f"{forest.trees} trees, {per_tree:,.0f} nodes a tree"
        )
        for job in jobs:
            rate = rates[f"scikit-learn {job}"]
            ratios = ", ".join(
                f"{name} {rate / rates[f'scorer {name}']:.1f}" for name in precisions
            )
            print(
                f"{f'the same in scikit-learn, n_jobs={job}':<34}{rate:>10,.0f} rows/s; "
                f"time of the scorer to its: {ratios}"
            )
    print_changes(scorers, features)
    if arguments.table is not None:
        table = pd.read_parquet(arguments.table)
        print(f"{arguments.table.name}, {len(table):,} rows:")
        rows = torch.from_numpy(table[list(FEATURES)].to_numpy(np.float32)).to(device)
        print_changes(scorers, rows)
        for name, scorer in scorers.items():
            error = np.abs(scorer.predict(rows).mean - table[TARGET].to_numpy()).mean()
            print(f"{f'{name}, mean absolute error:':<46}{error:.5f} eV/atom")


if __name__ == "__main__":
    main()
