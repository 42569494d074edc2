"""Structures of candidates, for export."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prototypes.elements import SYMBOLS
from prototypes.errors import CandidateError
from prototypes.prototype import Prototype

if TYPE_CHECKING:
    from pymatgen.core import Structure


def build_structure(
    prototype: Prototype, numbers: Sequence[int], volume: str | float = "dls"
) -> "Structure":
    """Build the structure of a candidate, for export as CIF or POSCAR.

    The shape of the cell and the fractional coordinates are the prototype's; the volume is a
    guess, meant as the start of a relaxation, and no prediction depends on it:

    - "dls": data-mined lattice scaling, pymatgen's ``DLSVolumePredictor`` (I.-H. Chu et al.,
      Comput. Mater. Sci. 146, 184 (2018)), without its bounds relative to the input volume, since
      the prototype's own volume says nothing about the candidate. Against 191 PBE-relaxed B2,
      L1_0 and perovskite compounds of the Materials Project its median is 8 to 14 % too small,
      its median error 8 to 18 %. Where it cannot work because pymatgen knows no atomic radius or
      no electronegativity of an element (He, Ne, Ar, Kr, Xe), the cell is scaled until the first
      pair of atoms touches at the sum of their radii: atomic, or van der Waals where there is no
      atomic one.
    - "prototype": the volume of the reference compound.
    - a number: Å3 per atom.

    Args:
        prototype: The prototype.
        numbers: Atomic number on each of the k roles.
        volume: How to choose the volume.

    Returns:
        The structure, sites in order of the prototype's cell.

    Raises:
        CandidateError: If there is not one valid atomic number per role, or the volume is not
            one of the above.
    """
    from pymatgen.core import Lattice, Structure

    symbols = _role_symbols(prototype, numbers)
    structure = Structure(
        Lattice(prototype.lattice),
        [symbols[role] for role in prototype.site_roles],
        prototype.frac_coords,
    )
    if volume == "prototype":
        return structure
    if volume == "dls":
        return structure.scale_lattice(_dls_volume(structure))
    if not isinstance(volume, str) and np.isfinite(volume) and volume > 0:
        return structure.scale_lattice(float(volume) * len(structure))
    raise CandidateError(
        f'cannot take {volume!r} as a volume; use "dls", "prototype" or Å3 per atom'
    )


def _role_symbols(prototype: Prototype, numbers: Sequence[int]) -> list[str]:
    if len(numbers) != len(prototype.roles) or not all(
        1 <= number <= len(SYMBOLS) for number in numbers
    ):
        raise CandidateError(
            f"{prototype.name} needs one atomic number for each of the roles "
            f"{', '.join(prototype.roles)}, got {list(numbers)}"
        )
    return [SYMBOLS[number - 1] for number in numbers]


def _dls_volume(structure: "Structure") -> float:
    """Return the predicted volume of the cell in Å3."""
    from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

    if any(
        element.atomic_radius is None or not np.isfinite(element.X)
        for element in structure.composition.elements
    ):
        return _contact_volume(structure)
    predictor_class: Callable[..., Any] = DLSVolumePredictor  # has no types of its own
    predictor = predictor_class(min_scaling=None, max_scaling=None)
    return float(predictor.predict(structure))


def _contact_volume(structure: "Structure") -> float:
    """Return the volume in Å3 at which the first pair of atoms touches."""
    radii = np.array(
        [float(site.specie.atomic_radius or site.specie.van_der_waals_radius) for site in structure]
    )
    reach = 1.01 * structure.volume ** (1 / 3) * 2
    first, second, _, distances = structure.get_neighbor_list(reach)
    ratio = float(np.min(distances / (radii[first] + radii[second])))
    return float(structure.volume / ratio**3)
