"""Columns of a prototype's decorations: tessellate once, substitute many.

The Voronoi cells depend on the geometry alone, so a prototype is tessellated once, elsewhere: this
module needs torch and NumPy only. What is left
for each decoration is tensor arithmetic on the properties of its k elements: sites of the same
role whose neighbours weigh the same share their local differences, so the 110 difference columns
are sums over roles for each such orbit, and the 16 geometry columns are constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

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
from screening.features.table import FeaturizationError

_CHUNK = 1_024
"""Candidates worked on together on a CPU: their 271 columns then stay in its cache."""

_DEVICE_CHUNK = 131_072
"""Candidates worked on together on a GPU."""


@dataclass(frozen=True)
class Orbit:
    """Sites of one role that see the same surroundings.

    Attributes:
        role: Their role.
        share: Their share of all sites.
        neighbours: The other roles among their neighbours, each with the fraction of the face
            area that it takes.
    """

    role: int
    share: float
    neighbours: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PrototypeGeometry:
    """What the columns need to know of a prototype's cell; see `geometry.measure_geometry`.

    Attributes:
        amounts: Number of sites of each role.
        columns: Values of the 16 geometry columns, in the order of `schema.GEOMETRY_FEATURES`.
        orbits: The orbits of sites.
    """

    amounts: tuple[int, ...]
    columns: tuple[float, ...]
    orbits: tuple[Orbit, ...]


class PrototypeFeaturizer:
    """Computes the 271 columns of decorations of one prototype.

    Args:
        geometry: The prototype's tessellated cell.
    """

    def __init__(self, geometry: PrototypeGeometry) -> None:
        self.geometry = geometry
        self.roles = len(geometry.amounts)
        self._fractions = [n / sum(geometry.amounts) for n in geometry.amounts]
        self._neutral = NeutralityTable(geometry.amounts) if self.roles > 1 else None

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
        geometry = torch.tensor(self.geometry.columns, dtype=torch.float64, device=where)
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
        for orbit in self.geometry.orbits:
            role = orbit.role
            total = torch.zeros_like(values[0])
            for other, weight in orbit.neighbours:
                pair = (min(role, other), max(role, other))
                if pair not in pairs:
                    pairs[pair] = (values[pair[0]] - values[pair[1]]).abs_()
                total.add_(pairs[pair], alpha=weight)
            local.append(total)
            weights.append(orbit.share)
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
