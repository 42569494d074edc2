"""What a prototype's cell fixes for all of its decorations: 16 columns and the orbits of sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from screening.crystal import Crystal
from screening.features.prototype import Orbit, PrototypeGeometry
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


def measure_geometry(
    lattice: ArrayLike, frac_coords: ArrayLike, site_roles: Sequence[int]
) -> PrototypeGeometry:
    """Tessellate a prototype.

    Args:
        lattice: Lattice vectors as rows, shape (3, 3), in Å. Only their ratios matter: all
            columns are invariant under uniform scaling.
        frac_coords: Fractional coordinates, shape (n, 3).
        site_roles: Role of each site, integers 0 to k - 1, length n.

    Returns:
        The geometry, for a `PrototypeFeaturizer`.

    Raises:
        FeaturizationError: If the cell cannot be tessellated or a role has no site.
    """
    roles = np.asarray(site_roles, dtype=np.int64)
    amounts = np.bincount(roles)
    if not amounts.all():
        raise FeaturizationError(
            f"roles {np.flatnonzero(amounts == 0).tolist()} have no site; "
            "number the roles of a prototype 0, 1, ... without gaps"
        )
    crystal = Crystal(
        "prototype",
        np.asarray(lattice, dtype=np.float64),
        roles + 1,  # any element does: which one sits where changes no geometry
        np.asarray(frac_coords, dtype=np.float64),
    )
    with silence_voro():
        faces = FaceBatch.join([tessellate(crystal)])
    columns = (
        *geometry_columns(faces)[0].tolist(),
        *ordering_columns(faces, crystal.numbers)[0].tolist(),
        *packing_column(faces).tolist(),
    )
    return PrototypeGeometry(tuple(amounts.tolist()), columns, _find_orbits(faces, roles))


def _find_orbits(faces: FaceBatch, roles: NDArray[np.int64]) -> tuple[Orbit, ...]:
    """Group the sites by role and by the weight of each role among their neighbours."""
    onto_role = np.zeros((len(roles), int(roles.max()) + 1))
    np.add.at(onto_role, (faces.source, roles[faces.target]), faces.weight)
    onto_role /= onto_role.sum(axis=1, keepdims=True)
    groups: list[list[int]] = []
    for site, role in enumerate(roles):
        for members in groups:
            same = np.abs(onto_role[members[0]] - onto_role[site]).max() < _ORBIT_TOLERANCE
            if roles[members[0]] == role and same:
                members.append(site)
                break
        else:
            groups.append([site])
    return tuple(
        Orbit(
            role=int(roles[members[0]]),
            share=len(members) / len(roles),
            neighbours=tuple(
                (other, float(weight))
                for other, weight in enumerate(onto_role[members].mean(axis=0))
                if other != roles[members[0]] and weight > 0
            ),
        )
        for members in groups
    )
