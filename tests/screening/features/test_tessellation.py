"""Voronoi cells: they fill space, faces come in pairs, and no origin or setting matters."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.analysis.local_env import VoronoiNN

from screening.crystal import Crystal
from screening.features.table import FeaturizationError
from screening.features.tessellation import tessellate


def random_crystal(seed: int, sites: int, skew: float = 0.4) -> Crystal:
    rng = np.random.default_rng(seed)
    lattice = np.diag(rng.uniform(3, 6, 3)) + rng.uniform(-skew, skew, (3, 3))
    return Crystal("random", lattice, rng.integers(1, 80, sites), rng.random((sites, 3)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_cells_fill_the_unit_cell_and_faces_come_in_pairs(seed: int, sites: int) -> None:
    crystal = random_crystal(seed, sites)
    try:
        cells = tessellate(crystal)
    except FeaturizationError as error:
        assume("closer than" not in str(error))
        raise
    assert cells.cell_volume.sum() == pytest.approx(crystal.volume, rel=1e-9)
    np.testing.assert_allclose(
        np.bincount(cells.source, cells.area * cells.distance / 6, minlength=sites),
        cells.cell_volume,
        rtol=1e-7,
    )
    faces = {
        (int(s), int(t), *map(int, shift)): area
        for s, t, shift, area in zip(
            cells.source, cells.target, cells.shift, cells.area, strict=True
        )
    }
    for (s, t, a, b, c), area in faces.items():
        if area > 1e-6:
            assert faces[t, s, -a, -b, -c] == pytest.approx(area, rel=1e-6, abs=1e-9)


def test_areas_are_pymatgens() -> None:
    crystal = random_crystal(3, 5)
    structure = crystal.to_structure()
    cells = tessellate(crystal)
    for site, cell in enumerate(VoronoiNN(cutoff=12).get_all_voronoi_polyhedra(structure)):
        expected = sorted(face["area"] for face in cell.values() if face["area"] > 1e-9)
        found = sorted(cells.area[cells.source == site])
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("y", [-2.7e-12, -1e-17, 1.0, 1.0 - 1e-16, 5.0])
def test_atoms_on_the_border_of_the_cell_stay_where_they_are(y: float) -> None:
    # Voro++ moves an atom whose wrapped coordinate is a hair below zero (seen on Zr3O).
    frac = np.array([[0.3, 0.0, 0.1], [0.7, 0.5, 0.6]])
    reference = tessellate(Crystal("a", np.diag([3.0, 4.0, 5.0]), np.array([3, 9]), frac))
    frac[0, 1] = y
    moved = tessellate(Crystal("b", np.diag([3.0, 4.0, 5.0]), np.array([3, 9]), frac))
    np.testing.assert_allclose(np.sort(moved.area), np.sort(reference.area), rtol=1e-9, atol=1e-9)


def test_a_strongly_skewed_setting_gives_the_same_cells() -> None:
    crystal = random_crystal(5, 4)
    skew = np.array([[1, 0, 0], [7, 1, 0], [-5, 9, 1]])
    skewed = Crystal(
        "skewed",
        skew @ crystal.lattice,
        crystal.numbers,
        crystal.frac_coords @ np.linalg.inv(skew),
    )
    a, b = tessellate(crystal), tessellate(skewed)
    np.testing.assert_allclose(a.cell_volume, b.cell_volume, rtol=1e-9)
    np.testing.assert_allclose(np.sort(a.area), np.sort(b.area), rtol=1e-6, atol=1e-8)


def test_a_left_handed_lattice_is_its_mirror_image() -> None:
    crystal = random_crystal(6, 4)
    mirrored = Crystal(
        "mirrored", crystal.lattice * [1, 1, -1], crystal.numbers, crystal.frac_coords
    )
    assert np.linalg.det(mirrored.lattice) * np.linalg.det(crystal.lattice) < 0
    np.testing.assert_allclose(
        np.sort(tessellate(mirrored).area), np.sort(tessellate(crystal).area), rtol=1e-7, atol=1e-8
    )


@pytest.mark.parametrize(
    ("lattice", "frac", "message"),
    [
        (np.eye(3) * 4, [[0, 0, 0], [0, 0, 0]], "overlapping"),
        (np.eye(3) * 4, [[0, 0, 0], [0.01, 0, 0.999]], "overlapping"),
        ([[4, 0, 0], [0, 4, 0], [4, 4, 0]], [[0, 0, 0], [0.5, 0, 0]], "no volume"),
        (np.eye(3) * np.nan, [[0, 0, 0]], "not finite"),
        (np.eye(3) * 4, [[np.inf, 0, 0]], "not finite"),
    ],
)
def test_impossible_geometry_is_refused_by_name(
    lattice: np.ndarray, frac: list[list[float]], message: str
) -> None:
    crystal = Crystal(
        "mp-0", np.array(lattice, dtype=float), np.full(len(frac), 26), np.array(frac, dtype=float)
    )
    with pytest.raises(FeaturizationError, match=message) as error:
        tessellate(crystal)
    assert str(error.value).startswith("mp-0:")
