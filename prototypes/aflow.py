"""The AFLOW prototypes that pymatgen ships: the 288 entries of part 1 of the library.

What they are called and made of stands in ``data/aflow.json``, so that finding and listing them
needs no pymatgen; only the geometry of the one that is chosen comes from it. Where that geometry is
doubtful, ``data/doubtful.json`` says why.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import ElementPrototypeError, UnknownPrototypeError
from prototypes.formulas import reduced_formula
from prototypes.prototype import Prototype
from prototypes.records import PrototypeRecord, normalise_name

LIBRARY_CITATION = "M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017)"
"""Citation of the AFLOW Library of Crystallographic Prototypes, part 1."""


@dataclass(frozen=True)
class AflowEntry:
    """One entry of the library, as the index describes it.

    Attributes:
        name: The AFLOW label, followed by ``:`` and the reference compound where several entries
            share the label.
        label: The AFLOW label.
        strukturbericht: Strukturbericht symbol, if there is one.
        mineral: Mineral name, if there is one.
        compound: Formula of the reference compound.
        formula: Stoichiometry in roles, such as "ABX3".
        roles: Role names with the element of the reference compound, by ``assign_roles``.
        sites: Sites of the cell.
        is_element: Whether the reference compound is an element.
        citation: Where its geometry was published.
        doubt: What is doubtful about its geometry, None where nothing is known to be.
    """

    name: str
    label: str
    strukturbericht: str | None
    mineral: str | None
    compound: str
    formula: str
    roles: tuple[tuple[str, str], ...]
    sites: int
    is_element: bool
    citation: str
    doubt: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All names that find this entry."""
        minerals = [self.mineral, *self.mineral.split(",")] if self.mineral else []
        known = (self.name, self.label, self.strukturbericht, *minerals)
        return tuple(dict.fromkeys(name.strip() for name in known if name))

    @property
    def title(self) -> str:
        """Name and everything else that tells it from its namesakes."""
        others = [self.compound, self.strukturbericht, self.mineral]
        return f"{self.name}  ({', '.join(other for other in others if other)})"

    @property
    def source(self) -> str:
        """Where the geometry comes from."""
        return (
            f"{self.compound}: {self.citation}, as in the AFLOW Library of Crystallographic "
            f"Prototypes, Part 1: {LIBRARY_CITATION}, shipped by pymatgen; roles assigned by "
            "electronegativity"
        )

    def prototype(self) -> Prototype:
        """Make the prototype; loads pymatgen (seconds) at the first call.

        Raises:
            ElementPrototypeError: If the entry is an element.
            UnknownPrototypeError: If the installed pymatgen does not ship the entry.
        """
        if self.is_element:
            raise ElementPrototypeError(
                f"{self.title} is the structure of an element: there is nothing to substitute and "
                "its formation enthalpy is zero; choose a prototype of two or more elements"
            )
        lattice, frac_coords, symbols = _read_geometry(self)
        role_of = {symbol: role for role, symbol in self.roles}
        return Prototype.from_sites(
            self.name,
            lattice,
            frac_coords,
            [role_of[symbol] for symbol in symbols],
            dict(self.roles),
            source=self.source,
            aflow_label=self.label,
            strukturbericht=self.strukturbericht,
            mineral=self.mineral,
        )

    def record(self) -> PrototypeRecord:
        """Return the entry's line in the list of prototypes."""
        return PrototypeRecord(
            name=self.name,
            formula=self.formula,
            roles=self.roles,
            aflow_label=self.label,
            strukturbericht=self.strukturbericht,
            mineral=self.mineral,
            source=self.source,
            exact=False,
            sites=self.sites,
            is_element=self.is_element,
            doubt=self.doubt,
        )


@cache
def entries() -> tuple[AflowEntry, ...]:
    """Return all entries in order of their names, from the data files."""
    doubts = {entry["name"]: _describe_doubt(entry) for entry in _read_entries("doubtful.json")}
    return tuple(
        AflowEntry(
            **{**entry, "roles": tuple(entry["roles"].items())}, doubt=doubts.get(entry["name"])
        )
        for entry in _read_entries("aflow.json")
    )


def matching_entries(name: str) -> tuple[AflowEntry, ...]:
    """Return the entries with a name: spelt exactly, or else without regard to capitals and signs.

    Args:
        name: AFLOW label, Strukturbericht symbol or mineral name.
    """
    exact = tuple(entry for entry in entries() if name in entry.names)
    if exact:
        return exact
    key = normalise_name(name)
    return tuple(
        entry for entry in entries() if key and key in {normalise_name(n) for n in entry.names}
    )


def _read_entries(name: str) -> list[dict[str, Any]]:
    text = files("prototypes").joinpath("data", name).read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["entries"]
    return found


def _describe_doubt(entry: dict[str, Any]) -> str:
    """Say what is wrong with a doubtful entry, and how far it is from what is known."""
    if entry["pair"] is None:
        return str(entry["reason"])
    known = f", known {entry['known_distance']:.2f} Å, {entry['known']}" if entry["known"] else ""
    distance = f"(shortest {'-'.join(entry['pair'])} {entry['distance']:.2f} Å{known})"
    cure = (
        "; the same pool for all roles screens every order" if entry["fault"] == "elements" else ""
    )
    return f"{entry['reason']} {distance}{cure}"


def _read_geometry(
    entry: AflowEntry,
) -> tuple[list[list[float]], list[list[float]], list[str]]:
    """Return lattice (Å), fractional coordinates and elements that pymatgen has for an entry."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    for item in AFLOW_PROTOTYPE_LIBRARY:
        if item["tags"]["aflow"] != entry.label:
            continue
        structure = item["snl"].structure
        symbols = [site.specie.symbol for site in structure]
        numbers = [ATOMIC_NUMBERS[symbol] for symbol in symbols]
        if reduced_formula(numbers, [1] * len(numbers)) == entry.compound:
            return structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), symbols
    raise UnknownPrototypeError(
        f"the installed pymatgen does not ship {entry.title}; try another "
        "version of pymatgen, or give the structure as a CIF"
    )
