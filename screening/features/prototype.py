"""Columns of a prototype's decorations: tessellate once, substitute many.

The Voronoi cells depend on the geometry alone, so a prototype is tessellated once. What is left
for each decoration is tensor arithmetic on the properties of its k elements: sites of the same
role whose neighbours weigh the same share their local differences, so the 110 difference columns
are sums over roles for each such orbit, and the 16 geometry columns are constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from screening.crystal import Crystal
from screening.features.composition import (
    NeutralityTable,
    extremes,
    mean_deviation,
    write_composition_columns,
)
from screening.features.elements import LAST_Z, element_table
from screening.features.schema import (
    COMPOSITION_FEATURES,
    FEATURES,
    GEOMETRY_FEATURES,
    PROPERTIES,
    SITE_STATISTICS,
)
from screening.features.structure import (
    FaceBatch,
    geometry_columns,
    ordering_columns,
    packing_column,
)
from screening.features.table import FeaturizationError
from screening.features.tessellation import silence_voro, tessellate

_ORBIT_TOLERANCE = 1e-9
"""Sites whose neighbour weights differ by less than this are one orbit: far below the 1e-6 that
parity with matminer is held to, far above the rounding of a tessellation."""

_CHUNK = 1_024
"""Candidates worked on together on a CPU: their 271 columns then stay in its cache."""

_DEVICE_CHUNK = 131_072
"""Candidates worked on together on a GPU."""


class PrototypeFeaturizer:
    """Computes the 271 columns of decorations of one prototype.

    Args:
        lattice: Lattice vectors as rows, shape (3, 3), in Å. Only their ratios matter: all
            columns are invariant under uniform scaling.
        frac_coords: Fractional coordinates, shape (n, 3).
        site_roles: Role of each site, integers 0 to k - 1, length n.

    Raises:
        FeaturizationError: If the geometry cannot be tessellated or roles are skipped.
    """

    def __init__(
        self, lattice: ArrayLike, frac_coords: ArrayLike, site_roles: Sequence[int]
    ) -> None:
        roles = np.asarray(site_roles, dtype=np.int64)
        self.amounts = tuple(int(n) for n in np.bincount(roles))
        self.roles = len(self.amounts)
        if 0 in self.amounts:
            raise FeaturizationError(
                f"roles {[r for r, n in enumerate(self.amounts) if n == 0]} have no site; "
                "number the roles of a prototype 0, 1, ... without gaps"
            )
        # Any element does: which one sits where changes no geometry.
        crystal = Crystal(
            "prototype",
            np.asarray(lattice, dtype=np.float64),
            roles + 1,
            np.asarray(frac_coords, dtype=np.float64),
        )
        with silence_voro():
            faces = FaceBatch.join([tessellate(crystal)])
        self.geometry: NDArray[np.float64] = np.concatenate(
            [
                geometry_columns(faces)[0],
                ordering_columns(faces, crystal.numbers)[0],
                packing_column(faces),
            ]
        )
        self.orbits = _orbits(faces, roles, self.roles)
        self._fractions = [n / len(roles) for n in self.amounts]
        self._neutral = NeutralityTable(self.amounts) if self.roles > 1 else None

    def __call__(
        self,
        numbers: torch.Tensor | NDArray[np.integer],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Compute the columns of some decorations.

        Args:
            numbers: Atomic number of each role, shape (m, k). The elements of one decoration
                must differ from each other.
            device: Where to compute and to leave the result.
            dtype: Type of the result; the arithmetic is always in float64.

        Returns:
            Shape (m, 271), columns in the order of `schema.FEATURES`.
        """
        where = torch.device(device)
        if isinstance(numbers, np.ndarray):
            numbers = torch.from_numpy(numbers.astype(np.int64))
        z = numbers.to(where, torch.int64)
        if z.ndim != 2 or z.shape[1] != self.roles:
            raise ValueError(
                f"expected atomic numbers of shape (m, {self.roles}), got {tuple(z.shape)}"
            )
        if len(z) and (int(z.min()) < 1 or int(z.max()) > LAST_Z):
            raise FeaturizationError(
                f"atomic numbers must lie between 1 and {LAST_Z}: the element tables end there"
            )
        out = torch.empty(len(z), len(FEATURES), dtype=dtype, device=where)
        chunk = _CHUNK if where.type == "cpu" else _DEVICE_CHUNK
        buffer = torch.empty(len(FEATURES), min(chunk, len(z)), dtype=torch.float64, device=where)
        geometry = torch.from_numpy(self.geometry).to(where)
        table = element_table()
        properties, electronegativity = (
            table.properties_on(where),
            table.electronegativity_on(where),
        )
        fractions = [torch.tensor([f], dtype=torch.float64, device=where) for f in self._fractions]
        for begin in range(0, len(z), chunk):
            part = z[begin : begin + chunk]
            columns = buffer if len(part) == buffer.shape[1] else buffer[:, : len(part)].clone()
            values = [properties[:, part[:, role]] for role in range(self.roles)]
            write_composition_columns(
                columns[: len(COMPOSITION_FEATURES)],
                values,
                [electronegativity[part[:, role]] for role in range(self.roles)],
                fractions,
                self._neutral(part)
                if self._neutral is not None
                else torch.ones(len(part), dtype=torch.bool, device=where),
            )
            structure = columns[len(COMPOSITION_FEATURES) :]
            structure[: len(GEOMETRY_FEATURES)] = geometry[:, None]
            self._write_differences(structure[len(GEOMETRY_FEATURES) :], values)
            out[begin : begin + chunk].copy_(columns.T)
        return out

    def _write_differences(self, out: torch.Tensor, values: Sequence[torch.Tensor]) -> None:
        """Fill the 110 difference columns, shape (110, m), from properties of the roles."""
        pairs: dict[tuple[int, int], torch.Tensor] = {}
        local, weights = [], []
        for role, multiplicity, neighbours in self.orbits:
            total = torch.zeros_like(values[0])
            for other, weight in neighbours:
                pair = (min(role, other), max(role, other))
                if pair not in pairs:
                    pairs[pair] = (values[pair[0]] - values[pair[1]]).abs_()
                total.add_(pairs[pair], alpha=weight)
            local.append(total)
            weights.append(multiplicity)
        mean = local[0] * weights[0]
        for value, weight in zip(local[1:], weights[1:], strict=True):
            mean.add_(value, alpha=weight)
        low, high = extremes(local)
        statistics = out.view(len(PROPERTIES), len(SITE_STATISTICS), -1)
        statistics[:, 0] = low
        statistics[:, 1] = high
        torch.sub(high, low, out=statistics[:, 2])
        statistics[:, 3] = mean
        statistics[:, 4] = mean_deviation(local, weights, mean)


def _orbits(
    faces: FaceBatch, roles: NDArray[np.int64], count: int
) -> tuple[tuple[int, float, tuple[tuple[int, float], ...]], ...]:
    """Group the sites by role and by the weight of each role among their neighbours.

    Returns:
        For each orbit its role, its share of the sites, and the neighbouring roles other than
        its own with the fraction of face area that they take.
    """
    onto_role = np.zeros((len(roles), count))
    np.add.at(onto_role, (faces.source, roles[faces.target]), faces.weight)
    onto_role /= onto_role.sum(axis=1, keepdims=True)
    orbits: list[tuple[int, list[int]]] = []
    for site, role in enumerate(roles):
        for known, members in orbits:
            same = np.abs(onto_role[members[0]] - onto_role[site]).max() < _ORBIT_TOLERANCE
            if known == role and same:
                members.append(site)
                break
        else:
            orbits.append((int(role), [site]))
    return tuple(
        (
            role,
            len(members) / len(roles),
            tuple(
                (other, float(weight))
                for other, weight in enumerate(onto_role[members].mean(axis=0))
                if other != role and weight > 0
            ),
        )
        for role, members in orbits
    )
