"""A crystal prototype: a cell whose sites have roles instead of elements."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prototypes.errors import ElementPrototypeError, RoleError, StructureFileError
from prototypes.records import role_formula
from prototypes.symmetry import (
    closest_pair,
    count_lattice_points,
    primitive_cell,
    role_permutations,
)

LONGEST_EDGE = 1000.0
"""Å: no cell of a prototype is longer."""

_MOST_POINTS = 1_000_000
"""Lattice points within twice the longest edge: an ordinary cell has about a thousand."""

CLOSEST_SITES = 0.5
"""Sites nearer than this (Å) overlap: no two atoms of a crystal come so close."""


@dataclass(frozen=True, eq=False)
class Prototype:
    """A crystal prototype.

    Two prototypes are equal if their geometry hashes are.

    Attributes:
        name: The name under which ``find_prototype`` finds it.
        formula: Stoichiometry in roles, such as "ABX3".
        roles: Names of the k site roles.
        site_roles: Role index of each of the n sites of the primitive cell.
        lattice: Shape (3, 3), Å, rows are the cell vectors; read-only.
        frac_coords: Shape (n, 3), in [0, 1); read-only.
        amounts: Sites of each role in the cell.
        aflow_label: AFLOW label of the prototype, if known.
        strukturbericht: Strukturbericht symbol, if there is one.
        mineral: Mineral name, if there is one.
        source: Where the geometry comes from.
        exact: Whether the roles were assigned by hand (built in) rather than by rule.
        reference_elements: Element symbol on each role in the reference compound.
        role_permutations: Permutations of the roles that leave the crystal unchanged, identity
            first: elements e and (e[p[0]], e[p[1]], ...) are one compound.
    """

    name: str
    formula: str
    roles: tuple[str, ...]
    site_roles: tuple[int, ...]
    lattice: NDArray[np.float64]
    frac_coords: NDArray[np.float64]
    amounts: tuple[int, ...]
    aflow_label: str | None
    strukturbericht: str | None
    mineral: str | None
    source: str
    exact: bool
    reference_elements: tuple[str, ...]
    role_permutations: tuple[tuple[int, ...], ...]

    @classmethod
    def from_sites(
        cls,
        name: str,
        lattice: ArrayLike,
        frac_coords: ArrayLike,
        site_roles: Sequence[str],
        reference: Mapping[str, str],
        *,
        source: str,
        exact: bool = False,
        aflow_label: str | None = None,
        strukturbericht: str | None = None,
        mineral: str | None = None,
    ) -> "Prototype":
        """Build a prototype from a cell, reduce it, and find its interchangeable roles.

        Args:
            name: Its name.
            lattice: Shape (3, 3), Å, rows are the cell vectors.
            frac_coords: Shape (n, 3).
            site_roles: Role name of each of the n sites.
            reference: Element symbol of each role in the reference compound; its order is the
                order of the roles.
            source: Where the geometry comes from.
            exact: Whether the roles were assigned by hand.
            aflow_label: AFLOW label.
            strukturbericht: Strukturbericht symbol.
            mineral: Mineral name.

        Returns:
            The prototype, on a primitive cell.

        Raises:
            ElementPrototypeError: If there are fewer than two roles.
            RoleError: If roles of the sites and of the reference differ.
            StructureFileError: If the cell has no volume or sites overlap.
        """
        roles = tuple(reference)
        if set(site_roles) != set(roles):
            raise RoleError(
                f"the sites of {name} have the roles {', '.join(sorted(set(site_roles)))}, "
                f"but the roles are {', '.join(roles)}"
            )
        if len(roles) < 2:
            raise ElementPrototypeError(
                f"{name} has a single site role ({reference[roles[0]]}): an element leaves nothing "
                "to substitute; choose a prototype of two or more elements, or give its sites "
                "different roles"
            )
        cell = np.array(lattice, dtype=np.float64)
        coords = np.array(frac_coords, dtype=np.float64)
        indices = np.array([roles.index(role) for role in site_roles], dtype=np.int64)
        if cell.shape != (3, 3) or not abs(np.linalg.det(cell)) > 1e-6:
            raise StructureFileError(f"the cell of {name} has no volume; check its cell vectors")
        longest = float(np.linalg.norm(cell, axis=1).max())
        if not (longest < LONGEST_EDGE and np.isfinite(coords).all()):
            raise StructureFileError(
                f"the cell of {name} has an edge of {longest:.3g} Å, or sites nowhere; edges are "
                f"below {LONGEST_EDGE:g} Å"
            )
        if count_lattice_points(cell, 2 * longest) > _MOST_POINTS:
            raise StructureFileError(
                f"the cell of {name} is too long and thin, or too oblique, to find its symmetry; "
                "give a reduced cell"
            )
        gap, one, other = closest_pair(cell, coords)
        if gap < CLOSEST_SITES:
            raise StructureFileError(
                f"atoms {one + 1} ({reference[site_roles[one]]}) and {other + 1} "
                f"({reference[site_roles[other]]}) of {name} overlap: they are {gap:.3f} Å apart; "
                "remove the duplicate or choose one of the alternative positions"
            )
        cell, coords, indices = primitive_cell(cell, coords, indices)
        amounts = tuple(int(n) for n in np.bincount(indices, minlength=len(roles)))
        cell.setflags(write=False)
        coords.setflags(write=False)
        divisor = gcd(*amounts)
        return cls(
            name=name,
            formula=role_formula({r: n // divisor for r, n in zip(roles, amounts, strict=True)}),
            roles=roles,
            site_roles=tuple(int(i) for i in indices),
            lattice=cell,
            frac_coords=coords,
            amounts=amounts,
            aflow_label=aflow_label,
            strukturbericht=strukturbericht,
            mineral=mineral,
            source=source,
            exact=exact,
            reference_elements=tuple(reference.values()),
            role_permutations=role_permutations(cell, coords, indices),
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prototype):
            return NotImplemented
        return self.geometry_hash() == other.geometry_hash()

    def __hash__(self) -> int:
        return hash(self.geometry_hash())

    def geometry_hash(self) -> str:
        """Return a hash of name, roles and geometry, for manifests.

        Returns:
            64 hexadecimal digits (SHA-256). Lattice and coordinates enter rounded to 1e-6.
        """
        content = {
            "name": self.name,
            "roles": self.roles,
            "site_roles": self.site_roles,
            "lattice": (np.round(self.lattice, 6) + 0.0).tolist(),
            "frac_coords": (np.round(self.frac_coords, 6) % 1.0 + 0.0).tolist(),
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def interchangeable_roles(self) -> tuple[tuple[str, ...], ...]:
        """Return the sets of roles that isometries exchange, for display.

        Returns:
            Groups of two or more role names; empty where every role is unlike the others.
        """
        groups = {
            tuple(sorted({permutation[role] for permutation in self.role_permutations}))
            for role in range(len(self.roles))
        }
        return tuple(
            tuple(self.roles[role] for role in group) for group in sorted(groups) if len(group) > 1
        )
