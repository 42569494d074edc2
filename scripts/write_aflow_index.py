"""Write prototypes/data/aflow.json: names, roles and sources of the AFLOW entries in pymatgen.

The index answers every question about names without pymatgen. Geometry is left out: it is read
from pymatgen when an entry is chosen. Run it again when pymatgen's library changes; a test compares
the two. Entries whose geometry is doubtful stand in prototypes/data/doubtful.json, written by hand.
"""

import json
import re
from collections import Counter
from importlib.metadata import version
from math import gcd
from pathlib import Path
from typing import Any
from unicodedata import normalize

from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

from prototypes.elements import ATOMIC_NUMBERS
from prototypes.formulas import reduced_formula
from prototypes.records import role_formula
from prototypes.roles import assign_roles

PATH = Path(__file__).parents[1] / "prototypes" / "data" / "aflow.json"

ACCENTS = {
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
LETTERS = {"aa": "å", "AA": "Å", "o": "ø", "O": "Ø", "ae": "æ", "ss": "ß", "l": "ł", "i": "i"}


def collect_entries() -> list[dict[str, Any]]:
    """Return the index's entries in order of their names."""
    labels = Counter(item["tags"]["aflow"] for item in AFLOW_PROTOTYPE_LIBRARY)
    entries = []
    for item in AFLOW_PROTOTYPE_LIBRARY:
        tags = item["tags"]
        amounts = Counter(site.specie.symbol for site in item["snl"].structure)
        compound = reduced_formula(
            [ATOMIC_NUMBERS[symbol] for symbol in amounts], list(amounts.values())
        )
        label = tags["aflow"]
        roles = assign_roles(set(amounts))
        divisor = gcd(*amounts.values())
        entries.append(
            {
                "name": label if labels[label] == 1 else f"{label}:{compound}",
                "label": label,
                "strukturbericht": clean_tag(tags["strukturbericht"]),
                "mineral": clean_tag(tags["mineral"]),
                "compound": compound,
                "formula": role_formula({r: amounts[s] // divisor for r, s in roles.items()}),
                "roles": roles,
                "sites": sum(amounts.values()),
                "is_element": len(amounts) == 1,
                "citation": shorten_citation(item["snl"].references),
            }
        )
    return sorted(entries, key=lambda entry: str(entry["name"]))


def clean_tag(tag: str) -> str | None:
    """Return a tag without its quotes, None where there is none."""
    text = tag.replace("\\'", "'").strip().strip('"').strip()
    return None if text in ("", "None") else text


def shorten_citation(bibtex: str) -> str:
    """Shorten the first BibTeX entry to authors, journal, volume, page and year."""

    def field(key: str) -> str:
        found = re.search(rf"\b{key}\s*=\s*[\"{{]\s*(.*?)\s*[\"}}],?\s*\n", bibtex)
        return without_latex(found.group(1)).strip() if found else ""

    authors = field("author").split(" and ")
    who = authors[0] + (" et al." if len(authors) > 2 else "")
    if len(authors) == 2:
        who = " and ".join(authors)
    where = " ".join(part for part in (field("journal"), field("volume")) if part)
    page = field("page_first")
    year = field("year")
    where = where + (f", {page}" if page else "") + (f" ({year})" if year else "")
    return ", ".join(part for part in (who, where) if part) or "no reference given"


def without_latex(text: str) -> str:
    """Write accented letters of BibTeX as Unicode and drop its braces."""
    for command, letter in LETTERS.items():
        text = re.sub(rf"\\{command}\s?", letter, text)
    text = re.sub(
        r"\\([\"'`^~=.uvHc])\s*\{?([a-zA-Z])\}?",
        lambda found: normalize("NFC", found.group(2) + ACCENTS[found.group(1)]),
        text,
    )
    return text.replace("{", "").replace("}", "")


def main() -> None:
    entries = collect_entries()
    source = (
        "Names, reference compounds and references of the AFLOW Library of Crystallographic "
        "Prototypes, Part 1 (M. J. Mehl et al., Comput. Mater. Sci. 136, S1 (2017), "
        f"doi:10.1016/j.commatsci.2017.01.017), as parsed and shipped by pymatgen "
        f"{version('pymatgen')} (MIT licence), which asks to cite the AFLOW publication; "
        "roles assigned by electronegativity. Written by scripts/write_aflow_index.py."
    )
    lines = ",\n".join("  " + json.dumps(entry, ensure_ascii=False) for entry in entries)
    PATH.write_text(
        f'{{\n "source": {json.dumps(source)},\n "entries": [\n{lines}\n ]\n}}\n', encoding="utf-8"
    )
    print(f"wrote {PATH.name}: {len(entries)} entries")


if __name__ == "__main__":
    main()
