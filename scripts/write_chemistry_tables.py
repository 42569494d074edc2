"""Write screening/chemistry_tables.json from the tables that pymatgen ships.

Oxidation states: pymatgen's common_oxidation_states and icsd_oxidation_states, with the positive
states that at least 1 % of an element's ions in the ICSD have; each with its number of occurrences
there (pymatgen's icsd_bv.yaml). Elements without ions in that count (Tc, Os, Pt, Au, most
actinides, ...) get pymatgen's full list of positive states, of which the common ones count tenfold.

Radii: effective ionic radii of Shannon (Acta Cryst. A 32, 751, 1976), of the high-spin ion where
there are two, at the tabulated coordination nearest to 12 and nearest to 6 (the lower of two).
"""

import json
import re
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from monty.serialization import loadfn
from pymatgen import core
from pymatgen.core import Element, Species

LAST_Z = 103
SMALLEST_SHARE = 0.01
NUMERALS = {
    numeral: number
    for number, numeral in enumerate(
        "I II III IV V VI VII VIII IX X XI XII XIII XIV".split(), start=1
    )
}


def count_ions() -> dict[str, dict[int, int]]:
    """Return how often the ICSD has each element in each oxidation state but zero."""
    table = loadfn(Path(core.__file__).parent / "icsd_bv.yaml")["occurrence"]
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for name, count in table.items():
        ion = Species.from_str(name)
        if ion.oxi_state:
            counts[ion.symbol][int(ion.oxi_state)] = int(count)
    return counts


def choose_states(element: Element, counts: dict[int, int]) -> dict[int, int]:
    """Return the plausible oxidation states of an element with their weights."""
    common = {int(s) for s in element.common_oxidation_states if s}
    if not counts:
        positive = {int(s) for s in element.oxidation_states if s > 0}
        return {state: 10 if state in common else 1 for state in sorted(common | positive)}
    least = SMALLEST_SHARE * sum(counts.values())
    states = common | {int(s) for s in element.icsd_oxidation_states if s}
    states |= {state for state, count in counts.items() if state > 0 and count >= least}
    return {state: max(counts.get(state, 0), 1) for state in sorted(states)}


def choose_radii(element: Element, state: int) -> dict[str, list[float]] | None:
    """Return [coordination, radius in Å] nearest to 12 and to 6, or None if not tabulated."""
    by_coordination = element.data.get("Shannon radii")
    if not isinstance(by_coordination, dict) or str(state) not in by_coordination:
        return None
    radii: dict[int, float] = {}
    for label, by_spin in by_coordination[str(state)].items():
        number = NUMERALS[label.removesuffix("PY").removesuffix("SQ")]
        ion = by_spin.get("High Spin") or by_spin.get("") or by_spin["Low Spin"]
        if number not in radii or label in NUMERALS:
            radii[number] = ion["ionic_radius"]

    def nearest(wanted: int) -> list[float]:
        number = min(sorted(radii), key=lambda each: abs(each - wanted))
        return [number, radii[number]]

    return {"12": nearest(12), "6": nearest(6)}


def main() -> None:
    """Collect the tables for Z = 1 to 103 and write them."""
    counts = count_ions()
    elements: dict[str, Any] = {}
    for z in range(1, LAST_Z + 1):
        element = Element.from_Z(z)
        states = choose_states(element, counts.get(element.symbol, {}))
        radii = {str(state): choose_radii(element, state) for state in states}
        elements[element.symbol] = {
            "number": z,
            "radioactive": bool(element.is_radioactive),
            "oxidation_states": {str(state): weight for state, weight in states.items()},
            "radii": {state: each for state, each in radii.items() if each},
        }
    document = {
        "source": f"pymatgen-core {version('pymatgen-core')}: oxidation states with occurrences "
        "in the ICSD; Shannon radii (1976), Å, as [coordination, radius] nearest to 12 and 6",
        "elements": elements,
    }
    path = Path(__file__).parents[1] / "screening" / "chemistry_tables.json"
    text = json.dumps(document, separators=(",", ":"))
    path.write_text(re.sub(r'\},("[A-Z][a-z]?":\{"number")', r"},\n\1", text) + "\n")
    print(f"wrote {path.name}: {len(elements)} elements")


if __name__ == "__main__":
    main()
