"""Voronoi tessellation of periodic crystals by Voro++ (pyvoro2), as flat arrays.

Each face belongs to the site whose cell it bounds; every contact of two sites is therefore
there twice, once from either side.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from pyvoro2 import _core

from screening.crystal import Crystal
from screening.features.table import FeaturizationError

SHORTEST_DISTANCE = 0.1
"""Atoms closer than this, in Å, are called overlapping: no cell of theirs means anything."""

_NEGLIGIBLE_AREA = 1e-10  # of the largest face of the site: numerical ghosts at degenerate vertices
_SMALL_AREA = 1e-6  # of the largest face: the normal of so small a face is not exact
_MIRROR_TOLERANCE = 1e-3  # Å, between a face's mirror image of the site and the neighbour
_VOLUME_TOLERANCE = 1e-6  # relative, of the sum of cells against the volume of the unit cell
_SITES_PER_BLOCK = 5.0  # Voro++'s own advice for the grid that sorts the sites
_OFFSETS = (
    (0.12347, 0.31763, 0.51389),
    (0.37211, 0.08923, 0.77137),
    (0.61043, 0.54419, 0.20297),
)
"""Origins tried in turn: Voro++ can move an atom that lies on a face of the unit cell."""

_stderr_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Tessellation:
    """The Voronoi cells of one crystal.

    Attributes:
        source: Site whose cell the face bounds, shape (f,), ascending, int64.
        target: Site on the other side, shape (f,), int64.
        shift: Lattice translation of the neighbour's image, shape (f, 3), int64.
        area: Area of the face, shape (f,), in Å^2.
        distance: Distance between the two sites, shape (f,), in Å.
        cell_volume: Volume of each site's cell, shape (n,), in Å^3.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    shift: NDArray[np.int64]
    area: NDArray[np.float64]
    distance: NDArray[np.float64]
    cell_volume: NDArray[np.float64]


def tessellate(crystal: Crystal) -> Tessellation:
    """Tessellate a crystal.

    Args:
        crystal: Any ordered crystal. Coordinates outside [0, 1) and skewed cells are allowed.

    Returns:
        The faces of every cell, sorted by the site they belong to.

    Raises:
        FeaturizationError: If atoms overlap, the cell has no volume, or no choice of origin
            gives cells whose faces all lie midway between two atoms.
    """
    lattice, frac = _reduce(crystal)
    lower = _lower_triangular(lattice)
    for offset in _OFFSETS:
        result = _try_tessellation(lower, frac, np.asarray(offset))
        if result is not None:
            if result.distance.min() < SHORTEST_DISTANCE:
                raise _overlap(crystal)
            return result
    if _shortest_distance(crystal) < SHORTEST_DISTANCE:
        raise _overlap(crystal)
    raise FeaturizationError(
        f"{crystal.id}: the Voronoi cells do not fill the unit cell whatever origin is chosen; "
        "check the structure for atoms that nearly coincide"
    )


def _reduce(crystal: Crystal) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return lattice and coordinates in a cell that is not strongly skewed."""
    lattice, frac = crystal.lattice, crystal.frac_coords
    lengths = np.linalg.norm(lattice, axis=1)
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()) or lengths.min() <= 0:
        raise FeaturizationError(
            f"{crystal.id}: the lattice or the coordinates are not finite numbers; "
            "correct the structure"
        )
    if crystal.volume <= 1e-6 * lengths.prod():
        raise FeaturizationError(
            f"{crystal.id}: the unit cell has no volume; correct its lattice vectors"
        )
    cosines = np.abs((lattice @ lattice.T) / np.outer(lengths, lengths))
    np.fill_diagonal(cosines, 0.0)
    if cosines.max() <= 0.51:
        return lattice, frac
    from pymatgen.core import Lattice

    reduced = Lattice(lattice).get_lll_reduced_lattice().matrix
    return reduced, np.asarray(frac @ lattice @ np.linalg.inv(reduced))


def _lower_triangular(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the lattice turned so that a lies along x and b in the xy plane."""
    r = np.linalg.qr(lattice.T, mode="r")
    return np.asarray((r * np.sign(np.diag(r))[:, None]).T)


def _overlap(crystal: Crystal) -> FeaturizationError:
    return FeaturizationError(
        f"{crystal.id}: two atoms are closer than {SHORTEST_DISTANCE} Å; "
        "remove the overlapping atoms or resolve the partial occupancy"
    )


def _shortest_distance(crystal: Crystal) -> float:
    distances = crystal.to_structure().distance_matrix + np.eye(len(crystal)) * 1e9
    return float(distances.min())


def _try_tessellation(
    lower: NDArray[np.float64], frac: NDArray[np.float64], offset: NDArray[np.float64]
) -> Tessellation | None:
    """Tessellate with one origin; None if a face does not lie where it must."""
    sites = len(frac)
    points = ((frac + offset) % 1.0) @ lower
    for axis in (2, 1, 0):
        points -= np.floor(points[:, axis] / lower[axis, axis])[:, None] * lower[axis]
    volume = float(np.prod(np.diag(lower)))
    edge = (volume / sites * _SITES_PER_BLOCK) ** (1 / 3)
    blocks = tuple(max(1, min(64, int(lower[i, i] / edge))) for i in range(3))
    sides = (lower[0, 0], lower[1, 0], lower[1, 1], lower[2, 0], lower[2, 1], lower[2, 2])
    try:
        cells = _core.compute_periodic_standard(
            points, np.arange(sites, dtype=np.int32), sides, blocks, 8, (True, False, True)
        )
    except ValueError:  # atoms that coincide, or one that rounding put outside the cell
        return None
    if len(cells) != sites:
        return None
    cells.sort(key=_cell_id)
    cell_volume = np.array([cell["volume"] for cell in cells])
    if abs(cell_volume.sum() - volume) > _VOLUME_TOLERANCE * volume:
        return None
    return _gather_faces(cells, cell_volume, points, lower)


def _cell_id(cell: dict[str, int]) -> int:
    return cell["id"]


def _gather_faces(
    cells: list[dict[str, list[dict[str, list[int]]]]],
    cell_volume: NDArray[np.float64],
    points: NDArray[np.float64],
    lower: NDArray[np.float64],
) -> Tessellation | None:
    """Turn Voro++'s cells into arrays; None if a face is not the mirror of two sites."""
    faces = [face for cell in cells for face in cell["faces"]]
    per_cell = np.array([len(cell["faces"]) for cell in cells])
    source = np.repeat(np.arange(len(cells)), per_cell)
    target = np.array([face["adjacent_cell"] for face in faces], dtype=np.int64)
    corners = [face["vertices"] for face in faces]
    counts = np.fromiter(map(len, corners), dtype=np.int64, count=len(corners))
    index = np.fromiter(chain.from_iterable(corners), dtype=np.int64, count=int(counts.sum()))
    vertices = np.array([v for cell in cells for v in cell["vertices"]], dtype=np.float64)
    per_cell_vertices = np.array([len(cell["vertices"]) for cell in cells])
    first_vertex = np.concatenate([[0], np.cumsum(per_cell_vertices)[:-1]])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    index += np.repeat(first_vertex[source], counts)

    following = np.arange(1, len(index) + 1)
    following[starts + counts - 1] = starts
    corner = vertices[index] - np.repeat(vertices[index[starts]], counts, axis=0)
    normal = np.add.reduceat(_cross(corner, corner[following]), starts, axis=0) / 2.0
    area = np.sqrt(np.einsum("ij,ij->i", normal, normal))

    first_face = np.concatenate([[0], np.cumsum(per_cell)[:-1]])
    largest = np.maximum.reduceat(area, first_face)[source]
    keep = area > _NEGLIGIBLE_AREA * largest
    source, target, area, largest = source[keep], target[keep], area[keep], largest[keep]
    normal, anchor = normal[keep] / area[:, None], vertices[index[starts[keep]]]

    height = np.einsum("ij,ij->i", normal, anchor - points[source])
    mirror = points[source] + 2.0 * height[:, None] * normal
    shift = np.rint((mirror - points[target]) @ np.linalg.inv(lower))
    neighbour = points[target] + shift @ lower
    offset = neighbour - mirror
    wrong = np.einsum("ij,ij->i", offset, offset) > _MIRROR_TOLERANCE**2
    if (wrong & (area > _SMALL_AREA * largest)).any():
        return None
    keep = ~wrong
    step = (neighbour - points[source])[keep]
    return Tessellation(
        source=source[keep],
        target=target[keep],
        shift=shift[keep].astype(np.int64),
        area=area[keep],
        distance=np.sqrt(np.einsum("ij,ij->i", step, step)),
        cell_volume=cell_volume,
    )


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row-wise cross product (numpy.cross spends most of its time in checks)."""
    out = np.empty_like(a)
    out[:, 0] = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    out[:, 1] = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    out[:, 2] = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return out


@contextmanager
def silence_voro() -> Iterator[None]:
    """Keep what Voro++ prints from C (thousands of notes on its memory) off the terminal.

    The process's standard error is turned away while the block runs, for all of its threads;
    keep the block short.
    """
    with _stderr_lock:
        try:
            saved = os.dup(2)
        except OSError:  # no standard error to protect
            yield
            return
        sink = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(sink, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(sink)
