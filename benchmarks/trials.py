"""One trial of a training choice: a single network, few epochs, errors on what it never saw.

    python benchmarks/trials.py WORK NAME [--set key=value ...] [--data FOLDER]

WORK holds the tables of ``scripts/train_bundled_models.py --stage tables``. Errors are of one
IRNet-17 on the held-out tenth of the ICSD-flagged rows, on hypothetical compounds of kept chemical
systems (by which choices are made), and on the ideal cells of the evaluation set (which none is
made by). Weights go to WORK/trials/NAME.safetensors, where ``init`` finds them. The recipe's own
training loop is not used: several of the choices below are none of its options.

Settings: learning_rate, epochs, batch, decay (of weights), scaling (standard, quantile, asinh),
averaging (0 or the decay of an exponential average per step), data (mp, or oqmd: compositions and
their enthalpy, structure columns at their mean), init (name of an earlier trial, or the file of a
trained member, whose scaling is then used), architecture, folds (5: add the evaluation set's other
four folds by chemical system and judge on the first; 0: leave it out), weight (of those rows),
replay (share of the training rows used beside them), warm (share of the steps in which the learning
rate rises), seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from machine import describe_machine
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from irnet.architecture import Architecture
from irnet.ensemble import Member
from irnet.network import Network, new_network
from screening.calibration import number_systems
from screening.features.schema import COMPOSITION_FEATURES, FEATURES

TARGET = "formation_energy_per_atom"
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "epochs": 12,
    "batch": 512,
    "decay": 1e-2,
    "scaling": "standard",
    "averaging": 0.0,
    "data": "mp",
    "init": "",
    "architecture": "irnet-17",
    "folds": 0,
    "weight": 1.0,
    "replay": 1.0,
    "warm": 0.3,
    "seed": 0,
}
Rows = tuple[NDArray[np.float64], NDArray[np.float64]]


class Scaled:
    """Features as the network reads them, by one of three scalings fitted on training rows."""

    def __init__(self, kind: str, x: NDArray[np.float64]) -> None:
        self.kind = kind
        self.mean, self.std = x.mean(axis=0), x.std(axis=0)
        self.std[self.std <= 1e-6 * np.maximum(np.abs(self.mean), 1e-30)] = 1.0
        if kind == "quantile":
            from sklearn.preprocessing import QuantileTransformer

            self.quantiles = QuantileTransformer(
                n_quantiles=200, output_distribution="normal", subsample=30_000, random_state=0
            ).fit(x)

    def __call__(self, x: NDArray[np.float64]) -> torch.Tensor:
        """Scale features (n, 271)."""
        if self.kind == "quantile":
            z = self.quantiles.transform(x).clip(-3.5, 3.5)
        else:
            z = (x - self.mean) / self.std
            z = 1.3 * np.arcsinh(z) if self.kind == "asinh" else z.clip(-6, 6)
        return torch.from_numpy(z.astype(np.float32)).bfloat16()


def read(work: Path, name: str) -> tuple[Rows, pd.DataFrame]:
    """Features (n, 271) and energies (n,) of a table, and its other columns."""
    table = pd.read_parquet(work / "tables" / f"{name}.parquet")
    features = table[list(FEATURES)].to_numpy(np.float32).astype(np.float64)
    return (features, table[TARGET].to_numpy()), table[["id", "formula"]]


def read_compositions(data: Path, taken: set[str], scaled: Scaled) -> tuple[torch.Tensor, Any]:
    """Scaled features of OQMD compositions whose formulas are not taken, and their enthalpy."""
    from types import SimpleNamespace

    from pymatgen.core import Composition

    from screening.features.crystals import composition_columns

    table = pd.read_parquet(data / "oqmd_compositions.parquet")
    table = table[table[TARGET].abs() < 6]
    crystals, energies = [], []
    for formula, energy in zip(table["formula"], table[TARGET], strict=True):
        composition = Composition(formula)
        atoms = [e.Z for e, amount in composition.items() for _ in range(round(amount))]
        if composition.reduced_formula not in taken and max(atoms) <= 94 and len(atoms) <= 400:
            crystals.append(SimpleNamespace(numbers=np.array(atoms), id=formula))
            energies.append(energy)
    columns = [FEATURES.index(name) for name in COMPOSITION_FEATURES]
    x = np.tile(scaled.mean, (len(crystals), 1))
    x[:, columns] = composition_columns(crystals)  # type: ignore[arg-type]
    return scaled(x), np.array(energies)


def learning_rate(top: float, warm: float, step: int, steps: int) -> float:
    """One cycle: cosine up from 1/25 of the top rate, then cosine down to nothing."""
    rise = max(1.0, warm * steps)
    if step < rise:
        return top * (1 / 25 + (24 / 25) * (1 - math.cos(math.pi * step / rise)) / 2)
    done = (step - rise) / max(1.0, steps - 1 - rise)
    return top * (1e-5 + (1 + math.cos(math.pi * done)) / 2)


def main() -> None:
    """Run one trial and print its errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    default = os.environ.get("SCREENING_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    arguments = parser.parse_args()
    chosen = dict(SETTINGS)
    for item in arguments.set:
        key, _, value = item.partition("=")
        if key not in SETTINGS:
            parser.error(f"no setting {key!r}; there are {', '.join(SETTINGS)}")
        chosen[key] = type(SETTINGS[key])(value)
    torch.set_num_threads(1)
    print(describe_machine())
    print(arguments.name, json.dumps(chosen))
    run(arguments.work, arguments.name, chosen, arguments.data)


def run(work: Path, name: str, chosen: dict[str, Any], data: Path) -> None:
    """Train the network and print its errors every third epoch."""
    (x, y), _ = read(work, "train")
    scaled, mean, std = Scaled(chosen["scaling"], x), y.mean(), y.std()
    member = Member.load(chosen["init"]) if "/" in chosen["init"] else None
    if member is not None:
        scaled = Scaled("standard", x)
        scaled.mean, scaled.std = member.scaling.mean, member.scaling.std
        mean, std = member.scaling.target_mean, member.scaling.target_std
    tests: dict[str, tuple[torch.Tensor, NDArray[np.float64]]] = {}
    for part in ("held_out", "kept"):
        (features, energies), _ = read(work, part)
        tests[part] = scaled(features), energies
    (features, energies), labels = read(work, "evaluation")
    compounds = pd.read_parquet(data / "eval_prototypes.parquet", columns=["kind"])
    kinds = np.tile(compounds["kind"].to_numpy(), 2)
    ideal = labels["id"].str.endswith(" ideal").to_numpy()
    judged = np.ones(len(kinds), dtype=bool)
    xt = scaled(x)
    yt = torch.from_numpy(((y - mean) / std).astype(np.float32))
    weights = torch.ones(len(yt))
    if chosen["replay"] < 1:
        rows = np.random.default_rng(3).permutation(len(yt))[: int(chosen["replay"] * len(yt))]
        xt, yt, weights = xt[rows], yt[rows], weights[rows]
    if chosen["folds"]:
        systems = number_systems(labels["formula"].tolist())
        order = np.random.default_rng(0).permutation(systems.max() + 1)
        judged = order[systems] % chosen["folds"] == 0
        added = torch.from_numpy(((energies[~judged] - mean) / std).astype(np.float32))
        xt = torch.cat([xt, scaled(features[~judged])])
        yt = torch.cat([yt, added])
        weights = torch.cat([weights, torch.full((len(added),), chosen["weight"])])
    if chosen["data"] == "oqmd":
        kept_out = {f for part in ("held_out", "kept", "evaluated", "evaluation")
                    for f in read(work, part)[1]["formula"]}  # fmt: skip
        xt, enthalpies = read_compositions(data, kept_out, scaled)
        yt = torch.from_numpy(((enthalpies - mean) / std).astype(np.float32))
        weights = torch.ones(len(yt))
    weights /= weights.mean()
    for kind in ("B2", "L1_0", "perov_Pnma", "perov_cubic"):
        rows = np.flatnonzero((kinds == kind) & ideal & judged)
        tests[kind] = scaled(features[rows]), energies[rows]

    generator = torch.Generator().manual_seed(chosen["seed"])
    network = new_network(Architecture.parse(chosen["architecture"]), len(FEATURES), 0.0, generator)
    if member is not None:
        network.load_state_dict(member.state)
    elif chosen["init"]:
        network.load_state_dict(load_file(work / "trials" / f"{chosen['init']}.safetensors"))
    average = copy.deepcopy(network) if chosen["averaging"] else None
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=chosen["learning_rate"], weight_decay=chosen["decay"], fused=True
    )
    if chosen["init"]:
        print("before: " + measure(network, tests, mean, std), flush=True)
    per_epoch = len(yt) // chosen["batch"]
    steps, step, start = per_epoch * chosen["epochs"], 0, time.perf_counter()
    for epoch in range(1, chosen["epochs"] + 1):
        shuffle = torch.Generator().manual_seed(1000 * chosen["seed"] + epoch - 1)
        total = 0.0
        for rows in torch.randperm(len(yt), generator=shuffle).tensor_split(per_epoch):
            rate = learning_rate(chosen["learning_rate"], chosen["warm"], step, steps)
            optimizer.param_groups[0]["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                predicted = network(xt[rows])
            loss = ((predicted - yt[rows]).abs() * weights[rows]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            total += float(loss.detach()) * len(rows)
            if average is not None:
                blend(average, network, min(chosen["averaging"], 1 - 10 / (step + 10)))
        if epoch % 3 == 0 or epoch == chosen["epochs"]:
            seconds = time.perf_counter() - start
            print(f"epoch {epoch}, {seconds:.0f} s, training error {total / len(yt) * std:.4f}")
            for label, judge in (("", network), ("average: ", average)):
                if judge is not None:
                    print("  " + label + measure(judge, tests, mean, std), flush=True)
    (work / "trials").mkdir(exist_ok=True)
    save_file(network.state_dict(), work / "trials" / f"{name}.safetensors")


def blend(average: Network, network: Network, decay: float) -> None:
    """Move an average of weights and batch-norm statistics toward a network."""
    for old, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - decay)


@torch.no_grad()
def measure(
    network: Network,
    tests: dict[str, tuple[torch.Tensor, NDArray[np.float64]]],
    mean: float,
    std: float,
) -> str:
    """Mean absolute error and bias on each test set, eV/atom."""
    network.eval()
    found = []
    for name, (x, y) in tests.items():
        with torch.autocast("cpu", torch.bfloat16):
            scaled = torch.cat([network(block) for block in x.split(2048)])
        error = scaled.double().numpy() * std + mean - y
        found.append(f"{name} {np.abs(error).mean():.4f} ({error.mean():+.3f}, n {len(y)})")
    network.train()
    return ", ".join(found)


if __name__ == "__main__":
    main()
