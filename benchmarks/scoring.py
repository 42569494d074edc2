"""Rows per second of an ensemble and its Random Forest, beside the machine's matrix products.

    python benchmarks/scoring.py [--model default] [--device cpu] [--rows 16384]

In one run: the rate of a large matrix product, the ensemble's scorer in bf16 and fp32 with the
share of that rate it reaches, a plain loop over members and batches of 512 through the trained
modules, and the Random Forest. The error of bf16 against fp32 is that of the ensemble's mean.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe_machine

from prototypes import ELEMENTS_89, find_prototype
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.model_library import load_model


def best_time(work: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """Return the least seconds of several calls, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the floating point operations per second of a large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / best_time(lambda: a @ a, device)


def main() -> None:
    """Print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=16_384)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    model = load_model(arguments.model)
    prototype = find_prototype("perovskite")
    keys = np.random.default_rng(0).random((arguments.rows, len(ELEMENTS_89))).argsort(axis=1)
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    features = featurizer(np.array(ELEMENTS_89)[keys[:, :3]], device=device)

    print(describe_machine())
    members = model.ensemble.members
    networks = [member.network.to(device).eval() for member in members]
    weights = sum(
        module.weight.numel()
        for network in networks
        for module in network.modules()
        if isinstance(module, torch.nn.Linear)
    )
    print(f"{len(members)} members, {2 * weights / 1e6:.1f} MFLOP a row in all")
    means = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        scorer = model.ensemble.scorer(device=arguments.device, precision=name)
        means[name] = scorer.predict(features).mean
        rate = arguments.rows / best_time(lambda s=scorer: s.predict_members(features), device)
        share = 2 * weights * rate / product_rate(dtype, device)
        print(f"scorer, {name:<26}{rate:>10,.0f} rows/s, {share:.0%} of a large product's rate")
    error = np.abs(means["bf16"] - means["fp32"])
    print(f"bf16 against fp32: mean {error.mean():.4f}, largest {error.max():.4f} eV/atom")

    scaled = [
        torch.from_numpy(member.scaling.inputs(features[:4096].cpu().numpy())).to(device)
        for member in members
    ]

    @torch.no_grad()
    def loop() -> None:
        for network, rows in zip(networks, scaled, strict=True):
            for batch in rows.split(512):
                network(batch).cpu()

    plain = 4096 / best_time(loop, device)
    print(f"{'plain loop of batches of 512':<34}{plain:>10,.0f} rows/s")
    if model.forest is not None:
        rows = features.cpu().numpy()
        forest = arguments.rows / best_time(lambda: model.forest.predict(rows), device, 1)
        print(f"{'Random Forest, one core':<34}{forest:>10,.0f} rows/s")


if __name__ == "__main__":
    main()
