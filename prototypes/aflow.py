"""The AFLOW prototypes that pymatgen ships: the 288 entries of part 1 of the library."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any
from unicodedata import normalize

from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import ElementPrototypeError
from prototypes.formulas import reduced_formula
from prototypes.prototype import Prototype
from prototypes.records import PrototypeRecord, normalise_name, role_formula
from prototypes.roles import assign_roles

LIBRARY_CITATION = "M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017)"
"""Citation of the AFLOW Library of Crystallographic Prototypes, part 1."""

_ACCENTS = {
    '"': "\u0308",
    "'": "\u0301",
    "`": "\u0300",
    "^": "\u0302",
    "~": "\u0303",
    "=": "\u0304",
    ".": "\u0307",
    "u": "\u0306",
    "v": "\u030c",
    "H": "\u030b",
    "c": "\u0327",
}
_LETTERS = {"aa": "å", "AA": "Å", "o": "ø", "O": "Ø", "ae": "æ", "ss": "ß", "l": "ł", "i": "i"}


@dataclass(frozen=True)
class AflowEntry:
    """One entry of the library, before it becomes a prototype.

    Attributes:
        name: The AFLOW label, followed by ``:`` and the reference compound where several entries
            share the label.
        label: The AFLOW label.
        strukturbericht: Strukturbericht symbol, if there is one.
        mineral: Mineral name, if there is one.
        compound: Formula of the reference compound.
        citation: Where its geometry was published.
        lattice: Cell vectors in Å.
        frac_coords: Fractional coordinates of the sites.
        symbols: Element of each site in the reference compound.
    """

    name: str
    label: str
    strukturbericht: str | None
    mineral: str | None
    compound: str
    citation: str
    lattice: tuple[tuple[float, ...], ...]
    frac_coords: tuple[tuple[float, ...], ...]
    symbols: tuple[str, ...]

    @property
    def is_element(self) -> bool:
        """Whether the reference compound is an element."""
        return len(set(self.symbols)) == 1

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
        """Make the prototype, with roles assigned by ``assign_roles``.

        Raises:
            ElementPrototypeError: If the entry is an element.
        """
        if self.is_element:
            raise ElementPrototypeError(
                f"{self.title} is the structure of an element: there is nothing to substitute and "
                "its formation enthalpy is zero; choose a prototype of two or more elements"
            )
        reference = assign_roles(set(self.symbols))
        role_of = {symbol: role for role, symbol in reference.items()}
        return Prototype.from_sites(
            self.name,
            self.lattice,
            self.frac_coords,
            [role_of[symbol] for symbol in self.symbols],
            reference,
            source=self.source,
            aflow_label=self.label,
            strukturbericht=self.strukturbericht,
            mineral=self.mineral,
        )

    def record(self) -> PrototypeRecord:
        """Return the entry's line in the list of prototypes."""
        reference = assign_roles(set(self.symbols))
        amounts = Counter(self.symbols)
        divisor = gcd(*amounts.values())
        return PrototypeRecord(
            name=self.name,
            formula=role_formula({r: amounts[s] // divisor for r, s in reference.items()}),
            roles=tuple(reference.items()),
            aflow_label=self.label,
            strukturbericht=self.strukturbericht,
            mineral=self.mineral,
            source=self.source,
            exact=False,
            sites=len(self.symbols),
            is_element=self.is_element,
        )


@cache
def entries() -> tuple[AflowEntry, ...]:
    """Return all entries in order of label; loads pymatgen (seconds) at the first call."""
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    library: list[dict[str, Any]] = list(AFLOW_PROTOTYPE_LIBRARY)
    labels = Counter(item["tags"]["aflow"] for item in library)
    made = []
    for item in library:
        tags, structure = item["tags"], item["snl"].structure
        symbols = tuple(site.specie.symbol for site in structure)
        counts = Counter(symbols)
        compound = reduced_formula(
            [ATOMIC_NUMBERS[symbol] for symbol in counts], list(counts.values())
        )
        label = tags["aflow"]
        made.append(
            AflowEntry(
                name=label if labels[label] == 1 else f"{label}:{compound}",
                label=label,
                strukturbericht=_cleaned(tags["strukturbericht"]),
                mineral=_cleaned(tags["mineral"]),
                compound=compound,
                citation=_citation(item["snl"].references),
                lattice=tuple(tuple(map(float, row)) for row in structure.lattice.matrix),
                frac_coords=tuple(tuple(map(float, row)) for row in structure.frac_coords),
                symbols=symbols,
            )
        )
    return tuple(sorted(made, key=lambda entry: entry.name))


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


def _cleaned(tag: str) -> str | None:
    text = tag.replace("\\'", "'").strip().strip('"').strip()
    return None if text in ("", "None") else text


def _citation(bibtex: str) -> str:
    """Shorten the first BibTeX entry to authors, journal, volume, page and year."""

    def field(key: str) -> str:
        found = re.search(rf"\b{key}\s*=\s*[\"{{]\s*(.*?)\s*[\"}}],?\s*\n", bibtex)
        return _without_latex(found.group(1)).strip() if found else ""

    authors = field("author").split(" and ")
    who = authors[0] + (" et al." if len(authors) > 2 else "")
    if len(authors) == 2:
        who = " and ".join(authors)
    where = " ".join(part for part in (field("journal"), field("volume")) if part)
    page = field("page_first")
    year = field("year")
    where = where + (f", {page}" if page else "") + (f" ({year})" if year else "")
    return ", ".join(part for part in (who, where) if part) or "no reference given"


def _without_latex(text: str) -> str:
    """Write accented letters of BibTeX as Unicode and drop its braces."""
    for command, letter in _LETTERS.items():
        text = re.sub(rf"\\{command}\s?", letter, text)
    text = re.sub(
        r"\\([\"'`^~=.uvHc])\s*\{?([a-zA-Z])\}?",
        lambda found: normalize("NFC", found.group(2) + _ACCENTS[found.group(1)]),
        text,
    )
    return text.replace("{", "").replace("}", "")
