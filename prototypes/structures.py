"""Structures of candidates, for export."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prototypes.elements import SYMBOLS, atomic_volumes, electronegativities
from prototypes.errors import CandidateError
from prototypes.pools import ELEMENTS_89
from prototypes.prototype import Prototype

if TYPE_CHECKING:
    from pymatgen.core import Structure


def build_structure(
    prototype: Prototype, numbers: Sequence[int], volume: str | float = "typical"
) -> "Structure":
    """Build the structure of a candidate, for export as CIF or POSCAR.

    The shape of the cell and the fractional coordinates are the prototype's; the volume is a
    guess, meant as the start of a relaxation, and no prediction depends on it:

    - "typical": the geometric mean of the two estimates that follow, whose errors point in
      opposite directions. Against 303 PBE-relaxed compounds of the Materials Project, in their
      own relaxed shapes, its median error is 10 % (B2), 7 % (L1_0), 4 % (Pnma perovskite) and
      5 % (cubic perovskite); ``scripts/fit_atomic_volumes.py`` measures it.
    - "dls": data-mined lattice scaling, pymatgen's ``DLSVolumePredictor`` (I.-H. Chu et al.,
      Comput. Mater. Sci. 146, 184 (2018)), without its bounds relative to the input volume, since
      the prototype's own volume says nothing about the candidate. Median errors on the same
      compounds 17, 11, 8 and 17 %, mostly too small.
    - "additive": the sum of typical atomic volumes in known crystals (``data/elements.json``).
      Median errors 12, 2, 8 and 13 %, mostly too large. It also takes the place of the two above
      where pymatgen knows no atomic radius or electronegativity (He, Ne, Ar, Kr, Xe).
    - "prototype": the volume of the reference compound.
    - a number: Å3 per atom.

    Args:
        prototype: The prototype.
        numbers: Atomic number on each of the k roles.
        volume: How to choose the volume.

    Returns:
        The structure, sites in order of the prototype's cell.

    Raises:
        CandidateError: If there is not one element per role out of the 89 that can be screened,
            or the volume is none of the above.
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
    if volume in ("typical", "dls", "additive"):
        additive = float(sum(atomic_volumes()[site.specie.Z] for site in structure))
        structure = structure.scale_lattice(additive)
        if volume == "additive" or not _dls_knows(structure):
            return structure
        dls = _dls_volume(structure)
        return structure.scale_lattice(dls if volume == "dls" else (dls * additive) ** 0.5)
    if not isinstance(volume, str) and np.isfinite(volume) and volume > 0:
        return structure.scale_lattice(float(volume) * len(structure))
    raise CandidateError(
        f'cannot take {volume!r} as a volume; use "typical", "dls", "additive", "prototype" or '
        "Å3 per atom"
    )


def _role_symbols(prototype: Prototype, numbers: Sequence[int]) -> list[str]:
    if len(numbers) != len(prototype.roles) or any(n not in ELEMENTS_89 for n in numbers):
        raise CandidateError(
            f"{prototype.name} needs the atomic number of one of the 89 elements for each of the "
            f"roles {', '.join(prototype.roles)}, got {[int(number) for number in numbers]}"
        )
    return [SYMBOLS[number - 1] for number in numbers]


def _dls_knows(structure: "Structure") -> bool:
    return all(
        element.atomic_radius is not None and not np.isnan(electronegativities()[element.Z])
        for element in structure.composition.elements
    )


def _dls_volume(structure: "Structure") -> float:
    """Return the predicted volume of the cell in Å3."""
    from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

    predictor_class: Callable[..., Any] = DLSVolumePredictor  # has no types of its own
    predictor = predictor_class(min_scaling=None, max_scaling=None)
    return float(predictor.predict(structure))
