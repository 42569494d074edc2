"""What it costs to put X midway between B and B' of a double perovskite A2BB'X6.

    python benchmarks/double_perovskite.py [--data FOLDER] [--model mp-icsd-irnet17 ...]

Takes all crystals of the data set that are double perovskites of the space group Fm-3m, and
predicts each twice: in its own relaxed geometry, and as a candidate of the prototype
`double_perovskite`, where X has the coordinate 1/4. The model `mp-all-irnet17` was trained on all
of these crystals, `mp-icsd-irnet17` on the known ones.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from machine import describe_machine
from numpy.typing import NDArray
from scipy.stats import spearmanr

from prototypes import ATOMIC_NUMBERS, find_prototype
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.featurize import open_featurizer
from screening.model_library import load_model

LABEL = "ABC2D6_40_225_a_b_c_e"
"""How the data set calls the structure type."""

FILES = {"known": "mp_icsd*.parquet", "hypothetical": "mp_virtual*.parquet"}


def read_rows(data: Path, pattern: str) -> list[dict[str, Any]]:
    """Return the double perovskites of some files of the data set."""
    rows: list[dict[str, Any]] = []
    for path in sorted(data.glob(pattern)):
        rows += pq.read_table(path, filters=[("proto", "=", LABEL)]).to_pylist()
    return [row for row in rows if len(set(row["species"])) == 4]


def find_roles(row: dict[str, Any]) -> list[str]:
    """Return the elements on A, B, C and X: of two, one, one and six atoms."""
    (x, _), (a, _), *others = Counter(row["species"]).most_common()
    return [a, *(symbol for symbol, _ in others), x]


def measure_coordinate(row: dict[str, Any]) -> float:
    """Return the coordinate x of X, from the B site that is nearer."""
    cell = np.reshape(row["lattice"], (3, 3))
    coords = np.reshape(row["frac_coords"], (-1, 3))
    _, b, c, x = find_roles(row)
    species = np.array(row["species"])
    gaps = coords[species == x][None, :] - coords[np.isin(species, [b, c])][:, None]
    gaps -= np.round(gaps)
    edge = (abs(np.linalg.det(cell)) / len(species) * 40) ** (1 / 3)
    return float(np.linalg.norm(gaps @ cell, axis=-1).min() / edge)


def describe_errors(
    own: NDArray[np.float64], ideal: NDArray[np.float64], energies: NDArray[np.float64]
) -> str:
    """Return errors and rank correlations of both predictions."""
    errors = [float(np.abs(each - energies).mean()) for each in (own, ideal)]
    orders = [float(spearmanr(each, energies).statistic) for each in (own, ideal)]
    between = float(spearmanr(own, ideal).statistic)
    shift = float((ideal - own).mean())
    return (
        f"{errors[0]:>10.3f}{errors[1]:>10.3f}{orders[0]:>10.4f}{orders[1]:>10.4f}"
        f"{between:>12.4f}{shift:>+10.3f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--model", nargs="+", default=["mp-icsd-irnet17", "mp-all-irnet17"])
    arguments = parser.parse_args()
    print(describe_machine())
    featurizer = open_featurizer(find_prototype("double_perovskite"))
    models = {name: load_model(name) for name in arguments.model}
    lines = []
    for kind, pattern in FILES.items():
        rows = read_rows(arguments.data, pattern)
        x = np.array([measure_coordinate(row) for row in rows])
        print(
            f"{len(rows):,} {kind} double perovskites, x of X: median {np.median(x):.3f}, "
            f"90 % between {np.quantile(x, 0.05):.3f} and {np.quantile(x, 0.95):.3f}"
        )
        crystals = [
            Crystal(
                row["id"],
                np.reshape(row["lattice"], (3, 3)),
                np.array([ATOMIC_NUMBERS[symbol] for symbol in row["species"]]),
                np.reshape(row["frac_coords"], (-1, 3)),
            )
            for row in rows
        ]
        numbers = np.array([[ATOMIC_NUMBERS[each] for each in find_roles(row)] for row in rows])
        energies = np.array([row["formation_energy_per_atom"] for row in rows])
        table = featurize_crystals(crystals)
        if table.failures:
            raise SystemExit(f"{len(table.failures)} crystals could not be featurized")
        for name, model in models.items():
            scorer = model.ensemble.scorer("cpu")
            own = scorer.predict(table.values.astype(np.float32)).mean
            ideal = scorer.predict(featurizer(numbers).numpy()).mean
            lines.append(f"{name + ', ' + kind:<32}" + describe_errors(own, ideal, energies))
    print(
        f"\n{'eV/atom':<32}{'error':>20}{'rank corr. with DFT':>20}{'of the two':>12}{'mean':>10}\n"
        f"{'':<32}{'relaxed':>10}{'ideal':>10}{'relaxed':>10}{'ideal':>10}{'':>12}{'shift':>10}"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
