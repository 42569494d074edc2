import json
import re
import runpy
from pathlib import Path

import pytest
from pymatgen.analysis import prototypes as pymatgen_prototypes
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

from prototypes.aflow import entries, matching_entries
from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import ElementPrototypeError, UnknownPrototypeError
from prototypes.formulas import reduced_formula

ROOT = Path(__file__).resolve().parents[2]


def test_the_index_is_what_its_script_makes_of_pymatgens_library() -> None:
    committed = json.loads((ROOT / "prototypes" / "data" / "aflow.json").read_text("utf-8"))
    script = runpy.run_path(str(ROOT / "scripts" / "write_aflow_index.py"))
    assert committed["entries"] == script["collect_entries"]()
    assert "MIT licence" in committed["source"]


def test_every_item_of_pymatgens_library_is_one_entry() -> None:
    """Against the library itself, with pymatgen's own formula and electronegativities."""
    indexed = sorted(
        (e.label, e.compound, e.sites, e.is_element, [symbol for _, symbol in e.roles])
        for e in entries()
    )
    shipped = []
    for item in AFLOW_PROTOTYPE_LIBRARY:
        structure = item["snl"].structure
        composition = structure.composition
        shipped.append(
            (
                item["tags"]["aflow"],
                composition.reduced_formula,
                len(structure),
                composition.is_element,
                [e.symbol for e in sorted(composition, key=lambda e: (e.X, e.symbol))],
            )
        )
    assert indexed == sorted(shipped)


def test_strukturbericht_and_mineral_are_pymatgens() -> None:
    def tidy(tag: str | None) -> str:
        return (tag or "None").replace("\\", "").strip('" ')

    indexed = sorted((e.label, tidy(e.strukturbericht), tidy(e.mineral)) for e in entries())
    tags = [item["tags"] for item in AFLOW_PROTOTYPE_LIBRARY]
    assert indexed == sorted(
        (t["aflow"], tidy(t["strukturbericht"]), tidy(t["mineral"])) for t in tags
    )


def test_entries_that_share_a_label_have_the_geometry_of_their_own_compound() -> None:
    shared = [entry for entry in entries() if ":" in entry.name and not entry.is_element]
    assert len(shared) > 10
    for entry in shared:
        prototype = entry.prototype()
        numbers = [ATOMIC_NUMBERS[symbol] for symbol in prototype.reference_elements]
        assert reduced_formula(numbers, prototype.amounts) == entry.compound


def test_an_entry_that_pymatgen_dropped_is_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymatgen_prototypes, "AFLOW_PROTOTYPE_LIBRARY", [])
    with pytest.raises(UnknownPrototypeError, match="does not ship A2BC4_cF56_227_d_a_e"):
        matching_entries("spinel")[0].prototype()


def test_all_288_entries_have_a_name_of_their_own() -> None:
    assert len(entries()) == len(AFLOW_PROTOTYPE_LIBRARY) == 288
    assert len({entry.name for entry in entries()}) == 288


def test_citations_are_complete_and_free_of_latex() -> None:
    for entry in entries():
        assert re.search(r", .+\(\d{4}\)$", entry.citation), entry.citation
        assert not set(entry.citation) & set("{}\\$"), entry.citation


def test_nine_labels_repeat_and_are_told_apart_by_their_compound() -> None:
    labels = [entry.label for entry in entries()]
    repeated = {label for label in labels if labels.count(label) > 1}
    assert len(repeated) == 9
    for entry in entries():
        assert entry.name.startswith(entry.label)
        assert (":" in entry.name) == (entry.label in repeated)


def test_stoichiometry_of_the_label_is_that_of_the_prototype() -> None:
    for entry in entries():
        if entry.is_element or entry.label.startswith("sigma"):
            continue
        letters = re.findall(r"[A-Z](\d*)", entry.label.split("_")[0])
        prototype = entry.prototype()
        expected = sorted(int(amount or 1) for amount in letters)
        divisor = min(prototype.amounts) / expected[0]
        assert sorted(amount / divisor for amount in prototype.amounts) == expected, entry.name


def test_names_match_exactly_before_they_match_loosely() -> None:
    assert [entry.label for entry in matching_entries("Pyrite")] == ["AB2_cP12_205_a_c"]
    assert [entry.label for entry in matching_entries("pyrite")] == ["AB2_aP12_1_4a_8a"]
    assert matching_entries("no such thing") == ()


def test_an_element_has_no_prototype() -> None:
    copper = matching_entries("Copper")[0]
    with pytest.raises(ElementPrototypeError, match="A_cF4_225_a"):
        copper.prototype()
