import json
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spglib
from pyarrow import compute, parquet
from pymatgen.analysis import prototypes as pymatgen_prototypes
from pymatgen.analysis.local_env import CovalentRadius
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from prototypes.aflow import AflowEntry, entries, matching_entries
from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import ElementPrototypeError, UnknownPrototypeError
from prototypes.formulas import reduced_formula

ROOT = Path(__file__).resolve().parents[2]
DOUBTFUL: list[dict[str, Any]] = json.loads(
    (ROOT / "prototypes" / "data" / "doubtful.json").read_text("utf-8")
)["entries"]
COMPOUNDS = tuple(entry for entry in entries() if not entry.is_element)
STRUCTURE_COLUMNS = ["id", "formula", "spacegroup", "n_prim", "lattice", "species", "frac_coords"]


@cache
def reference_structure(entry: AflowEntry) -> Structure:
    """The entry's geometry with the elements of its reference compound."""
    prototype = entry.prototype()
    symbols = [prototype.reference_elements[role] for role in prototype.site_roles]
    return Structure(prototype.lattice, symbols, prototype.frac_coords)


def shortest_distance(structure: Structure, pair: list[str]) -> float:
    """Shortest distance between two elements, Å."""
    centers, points, _, distances = structure.get_neighbor_list(5.0)
    symbols = np.array([site.specie.symbol for site in structure])
    return float(
        distances[(symbols[centers] == pair[0]) & (symbols[points] == pair[1])].min(initial=np.inf)
    )


def read_space_group(label: str) -> int:
    return int(label.split("_")[2])


def read_known_structures(folder: Path) -> Iterator[tuple[dict[str, Any], Structure]]:
    """Known structures of the reference compounds, with their rows of the data."""
    formulas = [entry.compound for entry in COMPOUNDS]
    for file in sorted(folder.glob("mp_icsd*.parquet")):
        table = parquet.read_table(
            file, columns=STRUCTURE_COLUMNS, filters=compute.field("formula").isin(formulas)
        )
        for row in table.to_pylist():
            coords = np.reshape(row["frac_coords"], (-1, 3))
            yield row, Structure(np.reshape(row["lattice"], (3, 3)), row["species"], coords)


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


def test_doubts_are_about_entries_and_show_in_their_records() -> None:
    doubts = {entry.name: entry.doubt for entry in COMPOUNDS if entry.doubt}
    assert doubts.keys() == {row["name"] for row in DOUBTFUL}
    assert len(doubts) == len(DOUBTFUL)
    for entry in entries():
        assert entry.record().doubt == entry.doubt
    assert "shortest Ni-Sb 1.03 Å, known 2.54 Å, mp-3679" in doubts["ABC_cP12_198_a_a_a"]
    assert doubts["AB_oP16_61_c_c"].endswith("the same pool for all roles screens every order")
    assert doubts["sigma_tP30_136_bf2ij"].endswith("(shortest Pd-Rh 1.26 Å)")


def test_the_distances_of_doubts_are_those_of_pymatgens_geometry() -> None:
    by_name = {entry.name: entry for entry in COMPOUNDS}
    for row in DOUBTFUL:
        if row["pair"] is not None:
            found = shortest_distance(reference_structure(by_name[row["name"]]), row["pair"])
            assert found == pytest.approx(row["distance"], abs=0.006), row["name"]


def test_what_is_not_doubtful_has_the_space_group_of_its_label() -> None:
    for entry in COMPOUNDS:
        structure = reference_structure(entry)
        cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
        found = spglib.get_symmetry_dataset(cell, symprec=1e-3).number
        if entry.name in ("AB3_tI16_140_b_ah", "A2B_oC12_38_de_ab"):
            assert entry.doubt is not None
            assert f"space group is {found}" in entry.doubt
        else:
            assert found == read_space_group(entry.label), entry.name


def test_atoms_of_what_is_not_doubtful_are_not_on_top_of_each_other() -> None:
    """In UCo, the closest of the others, known structures have as short a bond between U."""
    closest = {}
    for entry in COMPOUNDS:
        structure = reference_structure(entry)
        radii = np.array([CovalentRadius.radius[site.specie.symbol] for site in structure])
        centers, points, _, distances = structure.get_neighbor_list(4.0)
        closest[entry.name] = float((distances / (radii[centers] + radii[points])).min())
    doubtful = {row["name"] for row in DOUBTFUL}
    assert min(ratio for name, ratio in closest.items() if name not in doubtful) > 0.7
    assert sum(ratio < 0.7 for ratio in closest.values()) >= 8


def test_doubtful_entries_are_unlike_the_known_structures_of_their_compounds(
    data_dir: Path,
) -> None:
    by_name = {entry.name: entry for entry in COMPOUNDS}
    known = {row["id"]: structure for row, structure in read_known_structures(data_dir)}
    matcher = StructureMatcher()
    for row in DOUBTFUL:
        if row["known"] is None:
            continue
        structure, other = reference_structure(by_name[row["name"]]), known[row["known"]]
        if row["pair"] is not None:
            found = shortest_distance(other, row["pair"])
            assert found == pytest.approx(row["known_distance"], abs=0.006), row["name"]
        fit = matcher.get_rms_dist(structure, other)
        anonymous, _ = matcher.get_rms_anonymous(structure, other)
        if row["fault"] == "label":
            assert fit is not None and fit[0] < 0.03, row["name"]
        elif row["fault"] == "elements":
            assert fit is None or fit[0] > 0.2, row["name"]
            assert anonymous is not None and anonymous < 0.03, row["name"]
        else:
            assert row["fault"] == "geometry"
            assert fit is None or fit[0] > 0.1, row["name"]
            assert anonymous is None or anonymous > 0.1, row["name"]


def test_other_entries_fit_the_known_structures_of_their_compounds(data_dir: Path) -> None:
    """Those of the same space group and size of the primitive cell, of up to 40 sites.

    BN alone does not: the entry is the layered form, once described in the space group of wurtzite.
    """
    wanted: dict[tuple[str, int, int], list[AflowEntry]] = {}
    for entry in COMPOUNDS:
        sites = len(reference_structure(entry).get_primitive_structure())
        if entry.doubt is None and sites <= 40:
            key = (entry.compound, read_space_group(entry.label), sites)
            wanted.setdefault(key, []).append(entry)
    matcher = StructureMatcher()
    compared, fitting = set(), set()
    for row, structure in read_known_structures(data_dir):
        for entry in wanted.get((row["formula"], row["spacegroup"], row["n_prim"]), ()):
            fit = matcher.get_rms_dist(reference_structure(entry), structure)
            compared.add(entry.name)
            if fit is not None and fit[0] < 0.16:
                fitting.add(entry.name)
    assert compared - fitting == {"AB_hP4_186_b_a"}
    assert len(compared) > 150
