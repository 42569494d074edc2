"""A crystal as plain arrays: what every featurizer takes and every reader returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prototypes import reduced_formula

if TYPE_CHECKING:
    from pymatgen.core import Structure


@dataclass(frozen=True, eq=False)
class Crystal:
    """An ordered crystal structure.

    Attributes:
        id: Name of the crystal in the table or folder it came from.
        lattice: Lattice vectors as rows, shape (3, 3), in Å.
        numbers: Atomic number of each site, shape (n,), int64.
        frac_coords: Fractional coordinates of each site, shape (n, 3), float64.
    """

    id: str
    lattice: NDArray[np.float64]
    numbers: NDArray[np.int64]
    frac_coords: NDArray[np.float64]

    def __post_init__(self) -> None:
        sites = len(self.numbers)
        if self.lattice.shape != (3, 3) or self.frac_coords.shape != (sites, 3) or sites == 0:
            raise ValueError(
                f"crystal {self.id!r}: expected lattice (3, 3), numbers (n,) and frac_coords "
                f"(n, 3) with n > 0, got {self.lattice.shape}, {self.numbers.shape} and "
                f"{self.frac_coords.shape}"
            )

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def volume(self) -> float:
        """Volume of the cell, in Å^3."""
        return float(abs(np.linalg.det(self.lattice)))

    @cached_property
    def formula(self) -> str:
        """Reduced formula, as pymatgen writes it."""
        numbers, amounts = np.unique(self.numbers, return_counts=True)
        return reduced_formula(numbers.tolist(), amounts.tolist())

    def to_structure(self) -> Structure:
        """Return the crystal as a pymatgen Structure."""
        from pymatgen.core import Element, Structure

        species = [Element.from_Z(int(z)) for z in self.numbers]
        return Structure(self.lattice, species, self.frac_coords)
