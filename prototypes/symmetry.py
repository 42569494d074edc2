"""Which site roles are interchangeable: the isometries of a cell without its elements.

An isometry that maps every site onto a site, and all sites of a role onto all sites of one role,
exchanges roles without changing the crystal: decorations that differ by it are the same compound.
Such an isometry also maps the translations of the decorated crystal onto themselves, so that, in a
cell that is primitive for the decoration, its linear part is an integer matrix. The search goes
over all integer matrices that keep the metric and all shifts that bring one site onto another.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-3
"""Relative tolerance: lengths relative to themselves, positions to the cube root of the volume
per site. The same as the tight StructureMatcher (ltol and stol 1e-3) that the tests compare with.
"""


_SITES_AT_ONCE = 8
"""Sites tried together, before the next, when an isometry is sought: most fail on the first."""


def count_lattice_points(lattice: Floats, radius: float) -> float:
    """Return how many lattice points the search within a radius goes through.

    Args:
        lattice: Shape (3, 3), Å, rows are the cell vectors, with a volume.
        radius: In Å.
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    return float(np.prod(2 * np.floor(radius / heights) + 1))


def primitive_cell(
    lattice: Floats, frac_coords: Floats, site_roles: Integers, tolerance: float = TOLERANCE
) -> tuple[Floats, Floats, Integers]:
    """Reduce a cell to a primitive one of the decorated crystal; a primitive cell stays as it is.

    Args:
        lattice: Shape (3, 3), Å, rows are the cell vectors.
        frac_coords: Shape (n, 3), fractional coordinates.
        site_roles: Shape (n,), role index of each site.
        tolerance: Position tolerance relative to the cube root of the volume per site.

    Returns:
        Lattice (3, 3), fractional coordinates (m, 3) in [0, 1) and roles (m,) of the primitive
        cell, sites in the order in which they came.
    """
    translations = _decoration_translations(lattice, frac_coords, site_roles, tolerance)
    if len(translations) == 1:
        return lattice, frac_coords % 1.0, site_roles
    volume = abs(np.linalg.det(lattice)) / len(translations)
    longest = float(np.linalg.norm(lattice, axis=1).max())
    whole = _lattice_points(lattice, 2.0 * longest)
    points = (whole[None, :, :] + translations[:, None, :]).reshape(-1, 3) @ lattice
    lengths = np.linalg.norm(points, axis=1)
    points = points[(lengths > 1e-8) & (lengths <= longest * (1 + tolerance))]
    points = points[np.argsort(np.linalg.norm(points, axis=1), kind="stable")]
    # In three dimensions the shortest independent vectors of a lattice always form a basis.
    basis = [points[0]]
    for point in points[1:]:
        trial = np.array([*basis, point])
        if np.linalg.matrix_rank(trial, tol=1e-3 * float(np.linalg.norm(basis[0]))) == len(trial):
            basis.append(point)
        if len(basis) == 3:
            break
    reduced = np.array(basis)
    if np.linalg.det(reduced) < 0:
        reduced[2] *= -1.0
    if not np.isclose(np.linalg.det(reduced), volume, rtol=10 * tolerance):
        return lattice, frac_coords % 1.0, site_roles
    wrapped = (frac_coords @ lattice @ np.linalg.inv(reduced)) % 1.0
    limit = _position_limit(lattice, len(frac_coords), tolerance)
    kept: list[int] = []
    for site in range(len(wrapped)):
        gaps = _distances(wrapped[site] - wrapped[kept], reduced)
        if not len(gaps) or float(gaps.min()) > 2 * limit:
            kept.append(site)
    return reduced, wrapped[kept], site_roles[kept]


def role_permutations(
    lattice: Floats, frac_coords: Floats, site_roles: Integers, tolerance: float = TOLERANCE
) -> tuple[tuple[int, ...], ...]:
    """Return the group of role permutations that isometries of the bare sites induce.

    Args:
        lattice: Shape (3, 3), Å, rows are the vectors of a cell primitive for the decoration
            (see ``primitive_cell``).
        frac_coords: Shape (n, 3), fractional coordinates.
        site_roles: Shape (n,), role index of each site, 0 to k - 1.
        tolerance: See ``TOLERANCE``.

    Returns:
        The permutations, identity first, then in increasing order. Elements ``e`` and the
        elements ``e[p[0]], e[p[1]], ...`` on roles 0, 1, ... are the same crystal.
    """
    count = int(site_roles.max()) + 1
    amounts = np.bincount(site_roles, minlength=count)
    found = {tuple(range(count))}
    if len(set(amounts.tolist())) == count:
        return tuple(found)
    start = int(np.argmin(amounts[site_roles]))
    targets = np.flatnonzero(amounts[site_roles] == amounts[site_roles[start]])
    limit = _position_limit(lattice, len(frac_coords), tolerance)
    for matrix in _metric_automorphisms(lattice, tolerance):
        turned = frac_coords @ matrix
        shifts = frac_coords[targets] - turned[start]
        for site in range(min(3, len(frac_coords))):
            gaps = (turned[site] + shifts)[:, None, :] - frac_coords[None, :, :]
            shifts = shifts[_distances(gaps, lattice).min(axis=1) <= 2 * limit]
        for shift in shifts:
            image = _site_images(turned + shift, frac_coords, lattice, limit)
            if image is None:
                continue
            moved = _class_images(site_roles, site_roles[image], count)
            if moved is not None:
                found.add(moved)
    return tuple(sorted(found))


def closest_pair(lattice: Floats, frac_coords: Floats) -> tuple[float, int, int]:
    """Return the smallest distance between two different sites, periodic images included.

    Args:
        lattice: Shape (3, 3), Å, rows are the cell vectors.
        frac_coords: Shape (n, 3), n >= 2.

    Returns:
        The distance in Å and the indices of the two sites.
    """
    best = (np.inf, 0, 0)
    for site in range(len(frac_coords) - 1):
        gaps = _distances(frac_coords[site + 1 :] - frac_coords[site], lattice)
        nearest = int(np.argmin(gaps))
        if gaps[nearest] < best[0]:
            best = (float(gaps[nearest]), site, site + 1 + nearest)
    return best


def _position_limit(lattice: Floats, sites: int, tolerance: float) -> float:
    return float(tolerance * (abs(np.linalg.det(lattice)) / sites) ** (1 / 3))


def _distances(gaps: Floats, lattice: Floats) -> Floats:
    """Return lengths of fractional differences (..., 3) to the nearest image.

    Rounding finds the nearest image wherever it is nearer than half the smallest height of the
    cell; for the tiny distances that matter here that is always so.
    """
    result: Floats = np.linalg.norm((gaps - np.round(gaps)) @ lattice, axis=-1)
    return result


def _lattice_points(lattice: Floats, radius: float) -> Integers:
    """Return integer coordinates (m, 3) of all lattice points within a radius in Å."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    reach = np.floor(radius / heights + 1e-9).astype(int)
    axes = [np.arange(-bound, bound + 1) for bound in reach]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = np.linalg.norm(points @ lattice, axis=1) <= radius * (1 + 1e-9)
    result: Integers = points[inside]
    return result


def _metric_automorphisms(lattice: Floats, tolerance: float) -> list[Integers]:
    """Return all integer matrices M (acting on row vectors) that keep lengths and angles."""
    lengths = np.linalg.norm(lattice, axis=1)
    points = _lattice_points(lattice, float(lengths.max()) * (1 + 2 * tolerance))
    vectors = points @ lattice
    sizes = np.linalg.norm(vectors, axis=1)
    images = [np.flatnonzero(np.abs(sizes - size) <= tolerance * size) for size in lengths]
    gram = lattice @ lattice.T
    slack = 2 * tolerance * np.outer(lengths, lengths)
    found: list[Integers] = []
    for first, second in product(images[0], images[1]):
        if abs(vectors[first] @ vectors[second] - gram[0, 1]) > slack[0, 1]:
            continue
        thirds = images[2]
        fits = (np.abs(vectors[thirds] @ vectors[first] - gram[0, 2]) <= slack[0, 2]) & (
            np.abs(vectors[thirds] @ vectors[second] - gram[1, 2]) <= slack[1, 2]
        )
        for third in thirds[fits]:
            matrix = points[[first, second, third]]
            if abs(round(float(np.linalg.det(matrix)))) == 1:
                found.append(matrix)
    return found


def _site_images(
    moved: Floats, frac_coords: Floats, lattice: Floats, limit: float
) -> Integers | None:
    """Return the site onto which each moved site falls, or None if one falls between sites.

    What counts is the distance after the best common shift.
    """
    # one site falls onto another exactly, so the best common shift moves it by at most the limit
    for first in range(0, len(moved), _SITES_AT_ONCE):
        some = moved[first : first + _SITES_AT_ONCE, None, :] - frac_coords[None, :, :]
        if float(_distances(some, lattice).min(axis=1).max()) > 2 * limit * (1 + 1e-9):
            return None
    gaps = moved[:, None, :] - frac_coords[None, :, :]
    image = np.argmin(_distances(gaps, lattice), axis=1)
    if len(np.unique(image)) != len(image):
        return None
    nearest = gaps[np.arange(len(image)), image]
    nearest -= np.round(nearest)
    nearest -= nearest.mean(axis=0)
    if float(np.linalg.norm(nearest @ lattice, axis=1).max()) > limit:
        return None
    result: Integers = image
    return result


def _class_images(before: Integers, after: Integers, count: int) -> tuple[int, ...] | None:
    """Return the role onto which each role moves as a whole, or None if one is torn apart."""
    moved = []
    for role in range(count):
        images = np.unique(after[before == role])
        if len(images) != 1:
            return None
        moved.append(int(images[0]))
    return tuple(moved)


def _decoration_translations(
    lattice: Floats, frac_coords: Floats, site_roles: Integers, tolerance: float
) -> Floats:
    """Return the fractional translations (t, 3) that map each role onto itself, zero first."""
    start = int(np.argmin(np.bincount(site_roles)[site_roles]))
    limit = _position_limit(lattice, len(frac_coords), tolerance)
    found = [np.zeros(3)]
    for target in np.flatnonzero(site_roles == site_roles[start]):
        shift = (frac_coords[target] - frac_coords[start]) % 1.0
        if target == start:
            continue
        image = _site_images(frac_coords + shift, frac_coords, lattice, limit)
        if image is not None and np.array_equal(site_roles[image], site_roles):
            found.append(shift)
    return np.array(found)
