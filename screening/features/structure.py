"""The 126 structure columns (Ward et al. 2017) of a batch of tessellated crystals.

All crystals of a batch are laid end to end: sites and faces of the batch are two long arrays,
and every statistic is a reduction over consecutive runs of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from screening.crystal import Crystal
from screening.features.elements import element_table
from screening.features.schema import GEOMETRY_FEATURES, STRUCTURE_FEATURES
from screening.features.tessellation import Tessellation

Array = NDArray[np.float64]
Index = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FaceBatch:
    """The faces of several crystals laid end to end.

    Attributes:
        crystal_start: First site of each crystal, shape (c,).
        sites: Number of sites of each crystal, shape (c,).
        site_start: First face of each site, shape (n,).
        source: Site (in the batch) whose cell each face bounds, shape (f,).
        target: Site (in the batch) on the other side, shape (f,).
        shift: Lattice translation of the neighbour's image, shape (f, 3).
        weight: Area over the largest area of the source's cell, shape (f,).
        distance: Distance between the two sites in Å, shape (f,).
        cell_volume: Volume of the Voronoi cells in Å^3, shape (n,).
    """

    crystal_start: Index
    sites: Index
    site_start: Index
    source: Index
    target: Index
    shift: Index
    weight: Array
    distance: Array
    cell_volume: Array

    @classmethod
    def join(cls, tessellations: Sequence[Tessellation]) -> FaceBatch:
        """Lay tessellations end to end."""
        sites = np.array([len(t.cell_volume) for t in tessellations])
        crystal_start = np.concatenate([[0], np.cumsum(sites)[:-1]])
        source = np.concatenate(
            [t.source + start for t, start in zip(tessellations, crystal_start, strict=True)]
        )
        site_start = np.searchsorted(source, np.arange(int(sites.sum())))
        area = np.concatenate([t.area for t in tessellations])
        return cls(
            crystal_start=crystal_start,
            sites=sites,
            site_start=site_start,
            source=source,
            target=np.concatenate(
                [t.target + start for t, start in zip(tessellations, crystal_start, strict=True)]
            ),
            shift=np.concatenate([t.shift for t in tessellations]),
            weight=area / np.maximum.reduceat(area, site_start)[source],
            distance=np.concatenate([t.distance for t in tessellations]),
            cell_volume=np.concatenate([t.cell_volume for t in tessellations]),
        )

    def sum_faces(self, values: Array) -> Array:
        """Sum a quantity of the faces over each site, shape (f, ...) to (n, ...)."""
        return np.asarray(np.add.reduceat(values, self.site_start, axis=0))

    def mean_sites(self, values: Array) -> Array:
        """Average a quantity of the sites over each crystal, shape (n, ...) to (c, ...)."""
        sums = np.add.reduceat(values, self.crystal_start, axis=0)
        return np.asarray(sums / self.sites.reshape(-1, *[1] * (values.ndim - 1)))

    def spread(self, per_crystal: Array) -> Array:
        """Repeat a quantity of the crystals for each of their sites, (c, ...) to (n, ...)."""
        return np.repeat(per_crystal, self.sites, axis=0)


def structure_columns(crystals: Sequence[Crystal], tessellations: Sequence[Tessellation]) -> Array:
    """Compute the 126 structure columns.

    Args:
        crystals: The crystals.
        tessellations: Their Voronoi cells, in the same order.

    Returns:
        Shape (c, 126), in the order of `schema.STRUCTURE_FEATURES`.
    """
    faces = FaceBatch.join(tessellations)
    numbers = np.concatenate([crystal.numbers for crystal in crystals])
    out = np.empty((len(crystals), len(STRUCTURE_FEATURES)))
    geometry = len(GEOMETRY_FEATURES)
    out[:, :12] = geometry_columns(faces)
    out[:, 12:15] = ordering_columns(faces, numbers)
    out[:, 15] = packing_column(faces)
    out[:, geometry:] = difference_columns(faces, numbers)
    return out


def geometry_columns(faces: FaceBatch) -> Array:
    """Effective coordination number, bond length and cell size statistics, shape (c, 12).

    Ward 2017, section II.A: the coordination number of a site is (sum of face areas)^2 over the
    sum of squared areas; bond lengths are averaged with the face areas as weights.
    """
    total = faces.sum_faces(faces.weight)
    coordination = total**2 / faces.sum_faces(faces.weight**2)
    length = faces.sum_faces(faces.weight * faces.distance) / total
    deviation = np.abs(faces.distance - length[faces.source])
    variation = faces.sum_faces(faces.weight * deviation) / total / length
    relative = length / faces.spread(faces.mean_sites(length))
    low, high, _, _, mad = _site_statistics(faces, relative)
    cn, dv = _site_statistics(faces, coordination), _site_statistics(faces, variation)
    volume = _site_statistics(faces, faces.cell_volume)
    return np.stack(
        [
            *(cn[0], cn[1], cn[3], cn[4]),
            *(mad, high, low),
            *(dv[0], dv[1], dv[3], dv[4]),
            volume[4] / volume[3],
        ],
        axis=1,
    )


def packing_column(faces: FaceBatch) -> Array:
    """Maximum packing efficiency, shape (c,): spheres that reach the nearest face."""
    radius = np.minimum.reduceat(faces.distance, faces.site_start) / 2.0
    filled = np.add.reduceat(4.0 / 3.0 * np.pi * radius**3, faces.crystal_start)
    return np.asarray(filled / np.add.reduceat(faces.cell_volume, faces.crystal_start))


def difference_columns(faces: FaceBatch, numbers: Index) -> Array:
    """Statistics of the local property differences, shape (c, 110)."""
    properties = element_table().properties.T[numbers]
    difference = np.abs(properties[faces.target] - properties[faces.source])
    difference *= faces.weight[:, None]
    local = faces.sum_faces(difference) / faces.sum_faces(faces.weight)[:, None]
    stacked = np.stack(_site_statistics(faces, local), axis=2)
    return stacked.reshape(len(faces.sites), -1)


def _site_statistics(faces: FaceBatch, values: Array) -> tuple[Array, ...]:
    """Minimum, maximum, range, mean and mean absolute deviation over each crystal's sites."""
    low = np.minimum.reduceat(values, faces.crystal_start, axis=0)
    high = np.maximum.reduceat(values, faces.crystal_start, axis=0)
    mean = faces.mean_sites(values)
    deviation = faces.mean_sites(np.abs(values - faces.spread(mean)))
    return low, high, high - low, mean, deviation


def ordering_columns(faces: FaceBatch, numbers: Index) -> Array:
    """Mean Warren-Cowley-like ordering parameter of shells 1 to 3, shape (c, 3).

    Ward 2017, section II.A. A shell of order m holds the ends of all self-avoiding walks of m
    steps over faces; a walk weighs the product of its steps. The walks are not enumerated: with
    W the matrix of weights, walks that turn back are subtracted from the powers of W. For
    length 2 these are i-j-i; for length 3, i-j-i-k and i-j-k-j (of which i-j-i-j is both, and
    is added back once) and the triangles i-j-k-i.
    """
    species, elements = _local_species(faces, numbers)
    kinds = int(elements.max())
    indicator = np.zeros((len(numbers), kinds))
    indicator[np.arange(len(numbers)), species] = 1.0

    weight, target = faces.weight, faces.target
    back, triangles = _returning_weights(faces)
    turn = faces.sum_faces(weight * back)

    def step(values: Array) -> Array:
        return faces.sum_faces(weight[:, None] * values[target])

    first = step(indicator)
    second = step(first) - turn[:, None] * indicator
    third = step(step(first))
    third -= turn[:, None] * first
    third -= step(turn[:, None] * indicator)
    third -= triangles[:, None] * indicator
    third += faces.sum_faces((weight**2 * back)[:, None] * indicator[target])

    fractions = faces.spread(faces.mean_sites(indicator))
    present = fractions > 0
    columns = np.empty((len(faces.sites), 3))
    for column, shell in enumerate((first, second, third)):
        total = shell.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            parameter = np.where(present, np.abs(1.0 - shell / total / fractions), 0.0)
        columns[:, column] = faces.mean_sites(parameter.sum(axis=1)) / elements
    columns[elements == 1] = 0.0  # one element cannot be ordered: matminer's convention
    return columns


def _local_species(faces: FaceBatch, numbers: Index) -> tuple[Index, Index]:
    """Number the elements of each crystal from 0; also return how many each crystal has."""
    crystal = np.repeat(np.arange(len(faces.sites)), faces.sites)
    keys, inverse = np.unique(crystal * 1000 + numbers, return_inverse=True)
    owner = keys // 1000
    first = np.searchsorted(owner, np.arange(len(faces.sites)))
    elements = np.diff(np.append(first, len(keys)))
    return inverse - first[crystal], elements


def _returning_weights(faces: FaceBatch) -> tuple[Array, Array]:
    """Weights of walks that come back to where they began.

    Returns:
        For each face the weight of the same face seen from its other side, shape (f,); for each
        site the summed weight of closed walks of three steps, shape (n,). A face that has no
        counterpart (both are vanishingly small) counts as zero.
    """
    keys = _face_keys(faces.source, faces.target, faces.shift)
    order = np.argsort(keys)
    sorted_keys, sorted_weight = keys[order], faces.weight[order]

    def look_up(source: Index, target: Index, shift: Index) -> Array:
        wanted = _face_keys(source, target, shift)
        place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
        return np.where(sorted_keys[place] == wanted, sorted_weight[place], 0.0)

    back = look_up(faces.target, faces.source, -faces.shift)

    counts = np.diff(np.append(faces.site_start, len(faces.source)))
    triangles = np.zeros(len(faces.site_start))
    # Two steps i-j-k for every pair of faces, a bounded number of them at a time.
    steps = np.cumsum(counts[faces.target])
    begin = 0
    while begin < len(faces.source):
        limit = (steps[begin - 1] if begin else 0) + 2_000_000
        end = max(begin + 1, int(np.searchsorted(steps, limit, side="right")))
        outer = np.arange(begin, end)
        middle = faces.target[outer]
        repeat = counts[middle]
        first = np.repeat(outer, repeat)
        within = np.arange(len(first)) - np.repeat(np.cumsum(repeat) - repeat, repeat)
        second = np.repeat(faces.site_start[middle], repeat) + within
        closing = look_up(
            faces.target[second],
            faces.source[first],
            -(faces.shift[first] + faces.shift[second]),
        )
        np.add.at(
            triangles,
            faces.source[first],
            faces.weight[first] * faces.weight[second] * closing,
        )
        begin = end
    return back, triangles


def _face_keys(source: Index, target: Index, shift: Index) -> Index:
    """Encode (source, target, shift) as one integer; shifts lie in [-256, 255]."""
    image = ((shift[:, 0] + 256) * 512 + shift[:, 1] + 256) * 512 + shift[:, 2] + 256
    if np.abs(shift).max(initial=0) > 255:
        raise ValueError("a neighbour lies more than 255 cells away: the cell was not reduced")
    sites = int(max(source.max(), target.max())) + 1
    if sites >= 1 << 18:
        raise ValueError(f"a batch may hold at most {1 << 18} sites, got {sites}")
    return np.asarray((source * (1 << 18) + target) * (1 << 27) + image)
