"""Substituted columns equal those of the decorated crystal, for any prototype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.features.table import FeaturizationError


def random_prototype(seed: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    sites = int(rng.integers(1, 10))
    roles = int(rng.integers(1, min(sites, 8) + 1))
    grid = rng.permutation(27)[:sites]
    frac = np.stack([grid // 9, grid // 3 % 3, grid % 3], axis=1) / 3
    frac += rng.uniform(-0.05, 0.05, frac.shape)
    lattice = np.diag(rng.uniform(4, 7, 3)) + rng.uniform(-0.5, 0.5, (3, 3))
    return lattice, frac, [*range(roles), *rng.integers(0, roles, sites - roles).tolist()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_substituting_equals_featurizing_the_crystal(seed: int) -> None:
    lattice, frac, roles = random_prototype(seed)
    featurizer = PrototypeFeaturizer(measure_geometry(lattice, frac, roles))
    rng = np.random.default_rng(seed)
    numbers = np.stack([rng.permutation(np.arange(1, 95))[: featurizer.roles] for _ in range(4)])
    crystals = [Crystal(str(row), lattice, row[roles], frac) for row in numbers]
    np.testing.assert_allclose(
        featurizer(numbers, dtype=torch.float64).numpy(),
        featurize_crystals(crystals).values,
        rtol=1e-7,
        atol=1e-8,
    )


def test_a_batch_may_be_cut_anywhere() -> None:
    featurizer = PrototypeFeaturizer(measure_geometry(*random_prototype(4)))
    rng = np.random.default_rng(0)
    rows = [rng.permutation(np.arange(1, 95))[: featurizer.roles] for _ in range(2_500)]
    numbers = np.stack(rows).astype(np.uint8)
    whole = featurizer(numbers)
    assert whole.dtype == torch.float32
    assert torch.equal(whole[1_700:1_800], featurizer(numbers[1_700:1_800]))
    assert featurizer(numbers[:0]).shape == (0, 271)


@pytest.mark.gpu
def test_gpu_equals_cpu() -> None:
    featurizer = PrototypeFeaturizer(measure_geometry(*random_prototype(4)))
    rng = np.random.default_rng(0)
    numbers = np.stack([rng.permutation(np.arange(1, 95))[: featurizer.roles] for _ in range(99)])
    torch.testing.assert_close(
        featurizer(numbers, device="cuda", dtype=torch.float64).cpu(),
        featurizer(numbers, dtype=torch.float64),
        rtol=1e-10,
        atol=1e-10,
    )


def test_wrong_input_is_refused() -> None:
    lattice = np.eye(3) * 3
    frac = [[0, 0, 0], [0.5, 0.5, 0.5]]
    featurizer = PrototypeFeaturizer(measure_geometry(lattice, frac, [0, 1]))
    with pytest.raises(ValueError, match=r"shape \(m, 2\)"):
        featurizer(np.array([[1, 2, 3]]))
    with pytest.raises(FeaturizationError, match="between 1 and 103"):
        featurizer(np.array([[1, 104]]))
    with pytest.raises(FeaturizationError, match="without gaps"):
        measure_geometry(lattice, frac, [0, 2])
