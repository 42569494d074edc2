"""A user's own crystal structure file (CIF) as a prototype."""

import warnings
from collections.abc import Mapping
from pathlib import Path

from prototypes.cif import check_cif
from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import RoleError, StructureFileError, nearest_file, nearest_hint
from prototypes.prototype import Prototype
from prototypes.roles import assign_roles

_HYDROGEN = {"D": "H", "T": "H"}
"""Isotopes that have symbols of their own."""


MOST_SITES = 256
"""Sites of a cell: the largest AFLOW prototype has 105, and symmetry is found in cubic time."""


def is_file(path: Path) -> bool:
    """Whether a path is that of a file; a text that can be no path is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long a name, a NUL in it
        return False


def read_prototype(path: str | Path, roles: Mapping[str, str] | None = None) -> Prototype:
    """Read a prototype from a CIF with exactly one ordered structure.

    Args:
        path: The file.
        roles: Role of each site label or element of the file, for instance
            ``{"Ca": "A", "Ti": "B", "O1": "X", "O2": "Y"}``; a label takes precedence over an
            element, and elements may share a role. Without it, each element is a role, named by
            ``assign_roles``.

    Returns:
        The prototype, on a primitive cell, named after the file without its suffix.

    Raises:
        StructureFileError: If the file is missing or unreadable, holds no or several structures,
            sites that are partially occupied, or atoms that overlap.
        RoleError: If a site has no role, or a key of ``roles`` is not in the file.
        ElementPrototypeError: If only one role results.
    """
    path = Path(path)
    symbols, labels, lattice, frac_coords = _read_sites(path)
    source = f"file {path.name}"
    if roles is None:
        reference = assign_roles(set(symbols))
        role_of = {symbol: role for role, symbol in reference.items()}
        site_roles = [role_of[symbol] for symbol in symbols]
        source += ", roles assigned by electronegativity"
    else:
        site_roles = _given_roles(path, symbols, labels, roles)
        first = {role: symbols[site_roles.index(role)] for role in site_roles}
        reference = {role: first[role] for role in sorted(first)}
        source += ", roles given by the user"
    return Prototype.from_sites(
        path.stem, lattice, frac_coords, site_roles, reference, source=source
    )


def parse_role_names(specs: str) -> dict[str, str]:
    """Read roles as a user writes them.

    Args:
        specs: ``LABEL=ROLE`` pairs separated by commas or spaces, for instance "Ca=A,Ti=B,O=X".

    Returns:
        Role of each element or site label.

    Raises:
        RoleError: If a pair is malformed or a label occurs twice.

    Example:
        >>> parse_role_names("Ca=A, Ti=B, O=X")
        {'Ca': 'A', 'Ti': 'B', 'O': 'X'}
    """
    roles: dict[str, str] = {}
    for pair in specs.replace(",", " ").split():
        label, equals, role = pair.partition("=")
        if not (label and equals and role.isalnum() and role[0].isalpha()):
            raise RoleError(f'"{pair}" gives no role; write ELEMENT=ROLE, for instance O=X')
        if label in roles:
            raise RoleError(f"{label} is given a role twice; leave one out")
        roles[label] = role
    return roles


def _read_sites(
    path: Path,
) -> tuple[list[str], list[str], list[list[float]], list[list[float]]]:
    """Return symbols, labels, lattice and fractional coordinates of the one structure."""
    if not is_file(path):
        raise StructureFileError(
            f"there is no file {path}{nearest_file(path) or ';'} check the path"
        )
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is checked here and raised as an error
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
            check_cif(text)
            parser = CifParser.from_str(text, occupancy_tolerance=1.0)
            structures = parser.parse_structures(primitive=False, on_error="raise")
        except Exception as error:  # the parser raises what its many parts happen to raise
            reason = " ".join(str(error).split()).rstrip(".!") or type(error).__name__
            raise StructureFileError(
                f"{path} cannot be read as a CIF: {reason}; check the file in a viewer or export "
                "it again"
            ) from error
    if len(structures) != 1:
        raise StructureFileError(
            f"{path} holds {len(structures)} structures; a prototype needs a CIF with exactly one"
        )
    structure = structures[0]
    if len(structure) > MOST_SITES:
        raise StructureFileError(
            f"{path} has {len(structure):,} sites; a prototype has at most {MOST_SITES}"
        )
    for number, site in enumerate(structure, start=1):
        if not site.is_ordered:
            raise StructureFileError(
                f"site {number} of {path} ({site.species_string}) is partially occupied; a "
                "prototype needs every site occupied by exactly one kind of atom: write an "
                "ordered model of the structure"
            )
    symbols = [_HYDROGEN.get(site.specie.symbol, site.specie.symbol) for site in structure]
    for symbol in symbols:
        if symbol not in ATOMIC_NUMBERS:
            raise StructureFileError(
                f'{path} has sites of "{symbol}", which is no element; replace or remove them'
            )
    labels = [str(site.label) for site in structure]
    lattice = structure.lattice.matrix.tolist()
    return symbols, labels, lattice, structure.frac_coords.tolist()


def _given_roles(
    path: Path, symbols: list[str], labels: list[str], roles: Mapping[str, str]
) -> list[str]:
    known = {*symbols, *labels}
    for key in roles:
        if key not in known:
            raise RoleError(
                f'{path} has no element or site label "{key}"{nearest_hint(key, known) or ";"} '
                f"it has {', '.join(dict.fromkeys([*symbols, *labels]))}"
            )
    site_roles = []
    for symbol, label in zip(symbols, labels, strict=True):
        role = roles.get(label, roles.get(symbol))
        if role is None:
            raise RoleError(f"site {label} ({symbol}) of {path} has no role; add {symbol}=ROLE")
        site_roles.append(role)
    return site_roles
