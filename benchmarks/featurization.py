"""Columns per second: this project's two fast ways beside matminer, in one run, one core each.

    python benchmarks/featurization.py [--data FOLDER] [--crystals 200] [--whole]

Every figure is the rate of one core. Ratios are of rates measured in the same run. The real
crystals need the data set (SCREENING_DATA or ../shared/data); without it that part is left out
and the output says so. `--whole` also times `screening featurize` on all known crystals, with
two Dask workers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from machine import describe_machine

from prototypes import ELEMENTS_89, find_prototype
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.structures import read_structures

MATMINER_STRUCTURES = {"B2": 20, "L1_0": 20, "cubic_perovskite": 10, "perovskite": 5}
CANDIDATES = 100_000


def time_once(work: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare_prototype(name: str) -> tuple[float, float]:
    """Return candidates per second: substitution, matminer."""
    prototype = find_prototype(name)
    rng = np.random.default_rng(0)
    keys = rng.random((CANDIDATES, len(ELEMENTS_89))).argsort(axis=1)
    numbers = np.array(ELEMENTS_89)[keys[:, : len(prototype.roles)]]
    roles = list(prototype.site_roles)
    crystals = [
        Crystal(str(i), prototype.lattice, row[roles], prototype.frac_coords)
        for i, row in enumerate(numbers[: MATMINER_STRUCTURES[name]])
    ]
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, roles)
    )
    featurizer(numbers[:2_000])
    fast = CANDIDATES / min(time_once(lambda: featurizer(numbers)) for _ in range(3))
    featurize_crystals(crystals[:1], engine="matminer")
    slow = len(crystals) / time_once(lambda: featurize_crystals(crystals, engine="matminer"))
    return fast, slow


def compare_crystals(data: Path, count: int) -> tuple[float, float, float]:
    """Return crystals per second (Voro++ way, matminer) and the mean number of sites."""
    crystals, _ = read_structures([data / "mp_icsd-00.parquet"])
    small = [crystal for crystal in crystals if len(crystal) <= 40]
    rng = np.random.default_rng(0)
    sample = [small[i] for i in rng.permutation(len(small))[:count]]
    featurize_crystals(sample[:20])
    fast = count / time_once(lambda: featurize_crystals(sample))
    slow = count / time_once(lambda: featurize_crystals(sample, engine="matminer"))
    return fast, slow, float(np.mean([len(crystal) for crystal in sample]))


def featurize_all(data: Path) -> tuple[int, float]:
    """Run `screening featurize` on all known crystals; return how many and the seconds."""
    files = [str(path) for path in sorted(data.glob("mp_icsd*.parquet"))]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "features.parquet"
        command = [sys.executable, "-m", "screening", "featurize", *files]
        command += ["--out", str(out), "--workers", "2"]
        seconds = time_once(lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL))
        return pq.read_metadata(out).num_rows, seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--crystals", type=int, default=200)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe_machine())
    print(f"{'one core each':<34}{'ours /s':>12}{'matminer /s':>14}{'ratio':>12}")
    for name in MATMINER_STRUCTURES:
        fast, slow = compare_prototype(name)
        print(f"{name + ' candidates':<34}{fast:>12,.0f}{slow:>14.2f}{fast / slow:>12,.0f}")
    if not (arguments.data / "mp_icsd-00.parquet").is_file():
        print(f"real crystals: left out, no data set in {arguments.data} (use --data)")
        return
    fast, slow, sites = compare_crystals(arguments.data, arguments.crystals)
    label = f"{arguments.crystals} real crystals ({sites:.0f} sites)"
    print(f"{label:<34}{fast:>12,.0f}{slow:>14.2f}{fast / slow:>12,.0f}")
    if arguments.whole:
        rows, seconds = featurize_all(arguments.data)
        print(f"{rows:,} known crystals of all sizes, two Dask workers: {seconds:.0f} s")


if __name__ == "__main__":
    main()
