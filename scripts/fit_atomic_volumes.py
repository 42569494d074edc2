"""Fit the typical atomic volumes of prototypes/data/elements.json, and measure volume guesses.

    python scripts/fit_atomic_volumes.py [--data FOLDER] [--write]

The volumes are those whose sum over the atoms of a cell is nearest to the DFT-relaxed volumes of
known crystals of up to 40 sites, by least absolute relative error; formulas of the evaluation set
are left out. The guesses of `prototypes.build_structure` are then compared with the relaxed
volumes of the evaluation set, each in its own relaxed shape.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from prototypes import ATOMIC_NUMBERS, ELEMENTS_89, SYMBOLS, build_structure, find_prototype
from prototypes.elements import atomic_volumes

KINDS = {
    "B2": "B2",
    "L1_0": "L1_0",
    "perov_Pnma": "perovskite",
    "perov_cubic": "cubic_perovskite",
}
ELEMENTS_FILE = Path(__file__).parents[1] / "prototypes" / "data" / "elements.json"
TYPICAL = 18.0  # Å^3, where the fit starts
FLOOR = 0.02  # relative errors below this are weighted alike, so that the iteration converges


def fit_volumes(counts: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return volumes (94,) for counts of atoms (n, 94) and cell volumes (n,), all in Å^3."""
    fitted = np.full(counts.shape[1], TYPICAL)
    ridge = 1e-3
    for _ in range(30):
        error = np.abs(counts @ fitted - volumes) / volumes
        weight = 1.0 / (volumes * np.sqrt(np.maximum(error, FLOOR)))
        left = np.vstack([counts * weight[:, None], ridge * np.eye(len(fitted))])
        right = np.concatenate([volumes * weight, ridge * np.full(len(fitted), TYPICAL)])
        fitted = np.linalg.lstsq(left, right, rcond=None)[0]
    return fitted


def measure_guesses(evaluation: pd.DataFrame) -> None:
    """Print the median relative error of each guess on each prototype."""
    print(f"{'prototype':<18}{'n':>5}{'typical':>10}{'dls':>10}{'additive':>10}")
    for kind, name in KINDS.items():
        rows = evaluation[evaluation["kind"] == kind].iloc[:110]
        prototype = find_prototype(name)
        errors: dict[str, list[float]] = {"typical": [], "dls": [], "additive": []}
        for row in rows.itertuples():
            numbers = [ATOMIC_NUMBERS[symbol] for symbol in row.species]
            if len(set(numbers)) != len(prototype.roles) or not set(numbers) <= set(ELEMENTS_89):
                continue
            lattice = np.asarray(row.lattice).reshape(3, 3)
            relaxed = abs(np.linalg.det(lattice))
            elements = tuple(dict.fromkeys(numbers))
            own = replace(
                prototype,
                lattice=lattice,
                frac_coords=np.asarray(row.frac_coords, dtype=float).reshape(-1, 3),
                site_roles=tuple(elements.index(z) for z in numbers),
                amounts=tuple(numbers.count(z) for z in elements),
            )
            for guess, found in errors.items():
                volume = build_structure(own, elements, volume=guess).volume
                found.append(abs(volume / relaxed - 1))
        medians = "".join(f"{np.median(found):>10.1%}" for found in errors.values())
        print(f"{name:<18}{len(errors['dls']):>5}{medians}")


def main() -> None:
    """Fit, compare with the committed table, and print the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--write", action="store_true", help="replace the committed volumes")
    arguments = parser.parse_args()
    evaluation = pd.read_parquet(arguments.data / "eval_prototypes.parquet")
    known = pd.concat(
        pd.read_parquet(path, columns=["formula", "species", "volume", "nsites"])
        for path in sorted(arguments.data.glob("mp_icsd*.parquet"))
    )
    known = known[(known["nsites"] <= 40) & ~known["formula"].isin(set(evaluation["formula"]))]
    counts = np.zeros((len(known), 118))
    for row, species in enumerate(known["species"]):
        for symbol in species:
            counts[row, ATOMIC_NUMBERS[symbol] - 1] += 1
    usable = counts[:, 94:].sum(axis=1) == 0
    volumes = known["volume"].to_numpy()[usable]
    fitted = fit_volumes(counts[usable, :94], volumes)
    error = np.median(np.abs(counts[usable, :94] @ fitted - volumes) / volumes)
    present = [z for z in ELEMENTS_89 if counts[usable, z - 1].any()]
    table = {SYMBOLS[z - 1]: round(float(fitted[z - 1]), 1) for z in present}
    committed = {SYMBOLS[z - 1]: atomic_volumes()[z] for z in present}
    worst = max(table, key=lambda symbol: abs(table[symbol] - committed[symbol]))
    print(f"{usable.sum():,} crystals, median relative error {error:.1%}")
    print(
        f"largest difference to the committed table: {worst} {table[worst]} instead of "
        f"{committed[worst]} Å^3"
    )
    measure_guesses(evaluation)
    if arguments.write:
        document = json.loads(ELEMENTS_FILE.read_text())
        document["atomic_volume"] |= table
        ELEMENTS_FILE.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
