import itertools

import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st

from prototypes.aflow import entries
from prototypes.library import BUILT_IN, load_built_in
from prototypes.prototype import Prototype
from prototypes.symmetry import closest_pair, primitive_cell, role_permutations

SWAP = ((0, 1), (1, 0))


def permutations_by_spglib(prototype: Prototype) -> set[tuple[int, ...]]:
    """Role permutations from spglib's operations of the cell with one species on all sites."""
    coords = prototype.frac_coords
    roles = np.array(prototype.site_roles)
    cell = (prototype.lattice, coords, np.ones(len(coords), dtype=int))
    limit = 1e-3 * (abs(np.linalg.det(prototype.lattice)) / len(coords)) ** (1 / 3)
    symmetry = spglib.get_symmetry(cell, symprec=limit)
    found = set()
    for rotation, shift in zip(symmetry["rotations"], symmetry["translations"], strict=True):
        gaps = (coords @ rotation.T + shift)[:, None, :] - coords[None, :, :]
        distances = np.linalg.norm((gaps - np.round(gaps)) @ prototype.lattice, axis=-1)
        moved = roles[np.argmin(distances, axis=1)]
        images = [set(moved[roles == role]) for role in range(len(prototype.roles))]
        if all(len(image) == 1 for image in images):
            found.add(tuple(int(image.pop()) for image in images))
    return found


def chain(spacing: list[float]) -> Prototype:
    """Different atoms in a row along c, in a tetragonal cell."""
    roles = "ABCDE"[: len(spacing)]
    return Prototype.from_sites(
        "chain",
        np.diag([3.0, 3.0, 8.0]),
        [[0.0, 0.0, z] for z in spacing],
        roles,
        dict(zip(roles, ["Li", "Na", "K", "Rb", "Cs"], strict=False)),
        source="test",
    )


def test_built_in_prototypes_have_the_known_interchangeable_roles() -> None:
    assert load_built_in("B2").role_permutations == SWAP
    assert load_built_in("L1_0").role_permutations == SWAP
    assert load_built_in("perovskite").role_permutations == ((0, 1, 2),)
    assert load_built_in("cubic_perovskite").role_permutations == ((0, 1, 2),)
    assert load_built_in("K2NiF4").role_permutations == ((0, 1, 2),)
    assert load_built_in("double_perovskite").role_permutations == ((0, 1, 2, 3), (0, 2, 1, 3))


def test_octahedra_of_two_sizes_make_the_b_sites_of_a_double_perovskite_distinct() -> None:
    """The published x(F) of Rb2NaAlF6 and the ideal one, along the cell's own axes."""
    ideal = load_built_in("double_perovskite")
    aluminium = ideal.frac_coords[ideal.site_roles.index(ideal.roles.index("C"))]
    anion = np.array(ideal.site_roles) == ideal.roles.index("X")
    gaps = ideal.frac_coords[anion] - aluminium
    gaps -= np.round(gaps)
    moved = ideal.frac_coords.copy()
    moved[anion] = aluminium + gaps * 0.2187 / 0.25
    roles = np.array(ideal.site_roles)
    assert role_permutations(ideal.lattice, moved, roles) == ((0, 1, 2, 3),)
    moved[anion] = aluminium + gaps
    assert len(role_permutations(ideal.lattice, moved, roles)) == 2


def test_spglib_finds_the_same_permutations_in_every_prototype() -> None:
    made = [load_built_in(name) for name in BUILT_IN]
    made += [entry.prototype() for entry in entries() if not entry.is_element]
    assert len(made) == 6 + 233
    for prototype in made:
        assert set(prototype.role_permutations) == permutations_by_spglib(prototype), prototype.name


@pytest.mark.parametrize(
    ("spacing", "order"),
    [
        ([0, 1 / 3, 2 / 3], 6),
        ([0, 1 / 4, 1 / 2, 3 / 4], 8),
        ([0, 1 / 5, 2 / 5, 3 / 5, 4 / 5], 10),
        ([0, 0.3, 0.6], 2),
        ([0, 0.25, 0.6], 1),
        ([0, 0.25, 0.5], 2),
    ],
)
def test_chains_have_cyclic_and_mirror_permutations(spacing: list[float], order: int) -> None:
    found = chain(spacing).role_permutations
    assert len(found) == order
    assert found[0] == tuple(range(len(spacing)))


@given(
    st.sampled_from(BUILT_IN),
    st.lists(st.integers(-2, 2), min_size=9, max_size=9),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_the_choice_of_cell_origin_and_order_does_not_matter(
    name: str, entries_: list[int], origin: list[float], seed: int
) -> None:
    prototype = load_built_in(name)
    matrix = np.array(entries_).reshape(3, 3)
    if abs(round(float(np.linalg.det(matrix)))) != 1:
        matrix = np.eye(3, dtype=int) + np.diag([entries_[0], entries_[1]], k=1)
    lattice = matrix @ prototype.lattice
    order = np.random.default_rng(seed).permutation(len(prototype.site_roles))
    coords = (prototype.frac_coords @ np.linalg.inv(matrix) + origin)[order]
    roles = np.array(prototype.site_roles)[order]
    assert role_permutations(lattice, coords, roles) == prototype.role_permutations


@given(st.sampled_from(["B2", "L1_0", "cubic_perovskite"]), st.permutations([1, 2, 3]))
@settings(deadline=None, max_examples=20)
def test_a_supercell_is_reduced_to_the_same_crystal(name: str, repeats: list[int]) -> None:
    prototype = load_built_in(name)
    shifts = np.array(list(itertools.product(*(range(n) for n in repeats))), dtype=float)
    coords = ((prototype.frac_coords[:, None, :] + shifts[None]) / repeats).reshape(-1, 3)
    lattice = prototype.lattice * np.array(repeats)[:, None]
    roles = np.repeat(prototype.site_roles, len(shifts))
    small, sites, kept = primitive_cell(lattice, coords, roles)
    assert np.isclose(abs(np.linalg.det(small)), abs(np.linalg.det(prototype.lattice)))
    assert tuple(np.bincount(kept)) == prototype.amounts
    assert role_permutations(small, sites, kept) == prototype.role_permutations


def test_what_structure_matcher_tells_apart_by_a_hair_is_not_interchangeable() -> None:
    """6H silicon carbide: Si and C nets differ by 1.5e-3 in units of the site spacing."""
    carbide = next(entry for entry in entries() if entry.label == "AB_hP12_186_a2b_a2b").prototype()
    arrays = carbide.lattice, carbide.frac_coords, np.array(carbide.site_roles)
    assert carbide.role_permutations == ((0, 1),)
    assert role_permutations(*arrays, tolerance=2e-3) == SWAP


def test_closest_pair_looks_across_the_cell_border() -> None:
    coords = np.array([[0.5, 0.5, 0.5], [0.98, 0.0, 0.0], [0.02, 0.0, 0.0]])
    gap, one, other = closest_pair(np.eye(3) * 10, coords)
    assert (round(gap, 9), one, other) == (0.4, 1, 2)
