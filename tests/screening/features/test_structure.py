"""Structure columns: invariances, and the closed form for self-avoiding walks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.features.structure import FaceBatch, ordering_columns
from screening.features.tessellation import tessellate


def random_crystal(seed: int, sites: int) -> Crystal:
    rng = np.random.default_rng(seed)
    lattice = np.diag(rng.uniform(4, 6, 3)) + rng.uniform(-0.4, 0.4, (3, 3))
    grid = rng.permutation(27)[:sites]
    base = np.stack([grid // 9, grid // 3 % 3, grid % 3], axis=1) / 3
    frac = base + rng.uniform(-0.08, 0.08, (sites, 3))
    return Crystal(f"random-{seed}", lattice, rng.choice([8, 22, 38, 57], sites), frac)


def supercell(crystal: Crystal, times: tuple[int, int, int]) -> Crystal:
    images = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), -1).reshape(-1, 3)
    frac = (crystal.frac_coords[:, None] + images).reshape(-1, 3) / times
    numbers = np.repeat(crystal.numbers, len(images))
    return Crystal("super", crystal.lattice * np.array(times)[:, None], numbers, frac)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.data())
def test_settings_of_the_same_crystal_have_the_same_columns(
    seed: int, sites: int, data: st.DataObject
) -> None:
    crystal = random_crystal(seed, sites)
    rng = np.random.default_rng(seed + 1)
    order = rng.permutation(sites)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = Crystal(
        "moved",
        crystal.lattice @ rotation * data.draw(st.floats(0.5, 3.0)),
        crystal.numbers[order],
        crystal.frac_coords[order] + rng.uniform(-2, 2, 3),
    )
    table = featurize_crystals([crystal, moved, supercell(crystal, (2, 1, 1))])
    np.testing.assert_allclose(table.values[1], table.values[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(table.values[2], table.values[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sites", [1, 2, 3, 5])
def test_ordering_equals_enumerated_walks(sites: int) -> None:
    crystal = random_crystal(sites, sites)
    crystal = Crystal("w", crystal.lattice, np.arange(sites) % 3 + 5, crystal.frac_coords)
    faces = FaceBatch.join([tessellate(crystal)])
    steps: dict[int, list[tuple[int, tuple[int, ...], float]]] = {}
    for s, t, shift, weight in zip(
        faces.source, faces.target, faces.shift, faces.weight, strict=True
    ):
        steps.setdefault(int(s), []).append((int(t), tuple(map(int, shift)), float(weight)))

    def walk(path: list[tuple[int, tuple[int, ...]]], weight: float, left: int) -> None:
        site, image = path[-1]
        if left == 0:
            totals[crystal.numbers[site]] = totals.get(crystal.numbers[site], 0.0) + weight
            return
        for target, shift, step in steps[site]:
            end = (target, tuple(a + b for a, b in zip(image, shift, strict=True)))
            if end not in path:
                walk([*path, end], weight * step, left - 1)

    expected = []
    kinds, counts = np.unique(crystal.numbers, return_counts=True)
    for length in (1, 2, 3):
        values = []
        for site in range(sites):
            totals: dict[int, float] = {}
            walk([(site, (0, 0, 0))], 1.0, length)
            for kind, count in zip(kinds, counts, strict=True):
                share = totals.get(kind, 0.0) / sum(totals.values())
                values.append(abs(1 - share / (count / sites)))
        expected.append(0.0 if len(kinds) == 1 else np.mean(values))
    np.testing.assert_allclose(ordering_columns(faces, crystal.numbers)[0], expected, rtol=1e-9)


def test_rows_in_are_rows_out_and_failures() -> None:
    good = random_crystal(1, 4)
    overlapping = Crystal("bad", np.eye(3) * 4, np.array([3, 4]), np.zeros((2, 3)))
    unknown = Crystal("z", np.eye(3) * 4, np.array([110]), np.zeros((1, 3)))
    noble = Crystal("he", np.eye(3) * 4, np.array([2]), np.zeros((1, 3)))
    table = featurize_crystals([good, overlapping, unknown, noble])
    assert table.ids == [good.id, "he"]
    assert table.imputed == [(), ("He",)]
    assert [f.id for f in table.failures] == ["bad", "z"]
    assert "overlapping" in table.failures[0].reason
    assert "1 and 103" in table.failures[1].reason
    assert np.isfinite(table.values).all()
