"""Parity with matminer, column by column: 340 candidates and 500 real crystals.

matminer takes a second for each, so that a fifth of them is compared unless ``--exhaustive`` is
given.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Element

from prototypes import ELEMENTS_89, find_prototype
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.features.schema import FEATURES
from screening.features.table import FeatureTable

CANDIDATES = {
    "B2": 120,
    "L1_0": 100,
    "cubic_perovskite": 50,
    "perovskite": 40,
    "double_perovskite": 30,
}
CHUNKS = 25
CRYSTALS = 500


def chunks(count: int) -> list[Any]:
    """Numbers of chunks as parameters of a test: all but the first fifth are exhaustive."""
    return [
        pytest.param(n, marks=[pytest.mark.exhaustive] if n >= 0.2 * count else [])
        for n in range(count)
    ]


def assert_parity(found: np.ndarray, reference: FeatureTable) -> None:
    """Compare at 1e-6 of each value, or of 1e-2 where the value is smaller than that."""
    error = np.abs(found - reference.values) / np.maximum(np.abs(reference.values), 1e-2)
    wrong = [
        f"{reference.ids[row]}: {FEATURES[column]} = {found[row, column]!r}, "
        f"matminer {reference.values[row, column]!r}"
        for row, column in np.argwhere(~(error <= 1e-6))
    ]
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", chunks(5))
@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates(name: str, chunk: int) -> None:
    prototype = find_prototype(name)
    rng = np.random.default_rng([chunk, *name.encode()])
    count = CANDIDATES[name] // 5
    numbers = np.stack(
        [rng.choice(ELEMENTS_89, len(prototype.roles), replace=False) for _ in range(count)]
    )
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    roles = list(prototype.site_roles)
    crystals = [
        Crystal(f"{name} {row}", prototype.lattice, row[roles], prototype.frac_coords)
        for row in numbers
    ]
    reference = featurize_crystals(crystals, engine="matminer")
    assert not reference.failures
    assert_parity(featurizer(numbers, dtype=torch.float64).numpy(), reference)


@pytest.fixture(scope="module")
def real_crystals(data_dir: Path) -> list[Crystal]:
    """500 crystals of 1 to 60 sites: the awkward ones first, then a random draw."""
    import pandas as pd

    tables = [pd.read_parquet(path) for path in sorted(data_dir.glob("mp_*.parquet"))[1:]]
    table = pd.concat([t for t in tables if "lattice" in t.columns], ignore_index=True)
    table = table[table["nsites"] <= 60]
    lattice = np.stack(table["lattice"].to_numpy()).reshape(-1, 3, 3)
    lengths = np.linalg.norm(lattice, axis=2)
    cosines = np.einsum("nij,nkj->nik", lattice, lattice) / (
        lengths[:, :, None] * lengths[:, None, :]
    )
    skewness = np.abs(cosines - np.eye(3)).max(axis=(1, 2))
    holds = lambda *symbols: np.array(  # noqa: E731
        [not set(symbols).isdisjoint(species) for species in table["species"]]
    )
    small = table["nsites"].to_numpy() <= 20
    picks: list[int] = []
    rng = np.random.default_rng(7)
    for group, count in (
        (table["nsites"].to_numpy() == 1, 20),
        (table["nelements"].to_numpy() == 1, 20),
        (skewness > 0.75, 40),
        (small & holds("H"), 40),
        (small & holds("La", "Ce", "Pr", "Nd", "Sm", "Eu", "Gd", "Dy", "Er", "Yb"), 60),
        (small & holds("He", "Ne", "Ar", "Kr", "Xe"), 20),
        (small & holds("Ac", "Th", "Pa", "U", "Np", "Pu"), 20),
        (table["nsites"].to_numpy() > 50, 12),
    ):
        (rows,) = np.nonzero(group)
        picks.extend(rng.permutation(rows)[:count])
    likelihood = 1.0 / table["nsites"].to_numpy()
    rest = rng.choice(len(table), 600, replace=False, p=likelihood / likelihood.sum())
    picks = list(dict.fromkeys([*picks, *rest]))[:CRYSTALS]
    atomic_number = {element.symbol: element.Z for element in Element}
    return [
        Crystal(
            row.id,
            np.asarray(row.lattice).reshape(3, 3),
            np.array([atomic_number[symbol] for symbol in row.species]),
            np.asarray(row.frac_coords, dtype=np.float64).reshape(-1, 3),
        )
        for row in table.iloc[picks].itertuples()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", chunks(CHUNKS))
def test_real_crystals(real_crystals: list[Crystal], chunk: int) -> None:
    assert len(real_crystals) == CRYSTALS
    crystals = real_crystals[chunk::CHUNKS]
    fast = featurize_crystals(crystals)
    assert not fast.failures
    reference = featurize_crystals(crystals, engine="matminer")
    assert not reference.failures
    assert_parity(fast.values, reference)
