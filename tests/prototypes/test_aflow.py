import re

import pytest
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

from prototypes.aflow import entries, matching_entries
from prototypes.errors import ElementPrototypeError


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
