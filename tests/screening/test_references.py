from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import (
    ComputedEntry,
    ComputedStructureEntry,
    ConstantEnergyAdjustment,
    GibbsComputedStructureEntry,
)

from screening.errors import InputDataError
from screening.hull import find_mixtures
from screening.references import References, read_references

COMPOUNDS = {"NaCl": -2.1, "Fe2O3": -1.7, "Ca(NO3)2": -1.2, "LaAlO3": -3.4}


def table(
    path: Path, formulas: object = tuple(COMPOUNDS), energies: object = None, **more: object
) -> Path:
    columns = {
        "formula": list(formulas),  # type: ignore[call-overload]
        "formation_energy_per_atom": list(COMPOUNDS.values()) if energies is None else energies,
        **more,
    }
    frame = pd.DataFrame(columns)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def energies(references: References) -> dict[str, float]:
    return dict(zip(references.phases.formulas, references.phases.energies[:, 0], strict=True))


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "R.CSV"])
def test_a_table_is_read_and_recorded(tmp_path: Path, name: str) -> None:
    path = table(tmp_path / name.lower(), material_id=["a", "b", "c", "d"])
    path = path.rename(tmp_path / name)
    read = read_references(path, "PBE")
    assert energies(read) == pytest.approx(COMPOUNDS)
    labels = dict(zip(read.phases.formulas, read.phases.labels, strict=True))
    assert labels == dict(zip(COMPOUNDS, "abcd", strict=True))
    assert read.path == path and read.entries == 4 and read.functional == "PBE"
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read.notes == ()
    assert not read.phases.identities.any()


def test_the_other_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,formula,formation_enthalpy_ev_per_atom\nx,NaN,-0.5\n,MgO,-3.0\n")
    read = read_references(path)
    assert energies(read) == {"NaN": -0.5, "MgO": -3.0}  # NaN is a compound, not a missing value
    assert sorted(read.phases.labels) == ["", "x"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", "", "is empty"),
        ("r.json", "", "is empty"),
        ("r.parquet", "", "cannot read .* as Parquet"),
        ("r.parquet", "no table", "cannot read .* as Parquet"),
        ("r.json", "{", "cannot read"),
        ("r.json", "{}", "does not hold a list"),
        ("r.json", "[]", "holds no entries"),
        ("r.csv", "formula,formation_energy_per_atom\n", "holds no rows"),
        ("r.csv", "formula,formation_energy_per_atom\nNaCl,-2,3,4\nMgO,1,2,3,4,5\n", "as CSV"),
        ("r.csv", "formulas,formation_energy_per_atom\nNaCl,-2\n", 'did you mean "formulas"'),
        ("r.csv", "formula,formation_energy\nNaCl,-2\n", 'did you mean "formation_energy"'),
        ("r.csv", "formula,x\nNaCl,-2\n", "it has formula, x"),
        ("r.csv", "formula,x\nNaCl,-2\n", "nor 'formation_enthalpy_ev_per_atom'; eV/atom"),
        ("r.xlsx", "", r"\.parquet, \.csv, \.json"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputDataError, match=message):
        read_references(tmp_path / name)


@pytest.mark.parametrize("name", ["r.parquet", "r.csv", "r.json"])
def test_a_missing_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputDataError, match="cannot read"):
        read_references(tmp_path / name)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    for name in ("r.csv", "r.json"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x80formula")
        with pytest.raises(InputDataError, match="cannot read"):
            read_references(tmp_path / name)


def test_formulas_that_do_not_parse_are_named(tmp_path: Path) -> None:
    formulas = ["NaCl", "Xx2O", "?", None, "FeO", "nacl", "(", "1"]
    path = table(tmp_path / "r.parquet", formulas, [-1.0] * 8)
    with pytest.raises(InputDataError) as caught:
        read_references(path)
    message = str(caught.value)
    assert "6 rows with no chemical formula: row 2 ('Xx2O'), row 3 ('?'), row 4 ('None')" in message
    assert "and 1 more" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_energies_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    path = table(tmp_path / "r.parquet", energies=[-2.1, value, -1.2, -3.4])
    with pytest.raises(InputDataError, match=r"1 row with no finite number.*row 2 \(Fe2O3, '"):
        read_references(path)


@pytest.mark.parametrize("text", ["", "n/a", "-1,5", "NaN"])
def test_energies_that_are_text_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f'formula,formation_energy_per_atom\nNaCl,-2.0\nMgO,"{text}"\n')
    with pytest.raises(InputDataError, match=r"no finite number.*row 2 \(MgO, '"):
        read_references(path)


def test_duplicates_keep_the_lowest(tmp_path: Path) -> None:
    path = table(
        tmp_path / "r.parquet",
        ["TiO2", "Ti2O4", "NaCl", "Ti3O6"],
        [-3.1, -3.2, -2.1, -3.0],
        id=["rutile", "anatase", "halite", "brookite"],
    )
    read = read_references(path)
    assert energies(read) == {"NaCl": -2.1, "TiO2": -3.2}
    assert set(read.phases.labels) == {"anatase", "halite"}
    assert read.notes == (
        "left out: 2 rows of a composition that is listed again; its lowest energy counts.",
    )
    assert read.entries == 4


def test_contradictory_duplicates_are_noted_with_the_worst(tmp_path: Path) -> None:
    formulas = ["TiO2", "Ti2O4", "NaCl", "NaCl", "MgO", "MgO"]
    path = table(tmp_path / "r.parquet", formulas, [-3.1, -1.9, -2.1, 1.0, -3.0, -2.9])
    notes = " ".join(read_references(path).notes)
    assert "2 compositions with energies more than 1 eV/atom apart" in notes
    assert "row 4 (NaCl, 1 eV/atom) and row 3 (NaCl, -2.1 eV/atom)" in notes


@pytest.mark.parametrize(
    ("formulas", "values", "ids", "noted"),
    [
        (["TiO2", "TiO2"], [-3.1, -3.2], ["a", "a"], True),
        (["TiO2", "MgO"], [-3.1, -3.1], ["a", "a"], True),
        (["TiO2", "TiO2"], [-3.1, -3.1], ["a", "a"], False),
        (["TiO2", "MgO"], [-3.1, -3.0], ["", ""], False),
        (["TiO2", "TiO2"], [-3.1, -3.2], ["a", "b"], False),
    ],
)
def test_an_id_with_several_meanings_is_noted(
    tmp_path: Path, formulas: list[str], values: list[float], ids: list[str], noted: bool
) -> None:
    read = read_references(table(tmp_path / "r.parquet", formulas, values, id=ids))
    assert any("1 id with several" in note for note in read.notes) == noted


@pytest.mark.parametrize(
    ("ids", "labels"),
    [(["a", None, None, "b"], ["", "", "a", "b"]), ([7, None, None, 12], ["", "", "12", "7"])],
)
def test_rows_without_an_id_have_none(tmp_path: Path, ids: list[object], labels: list[str]) -> None:
    read = read_references(table(tmp_path / "r.parquet", id=ids))
    assert sorted(read.phases.labels) == labels
    assert read.notes == ()


def test_elements_at_0_are_left_out(tmp_path: Path) -> None:
    path = table(tmp_path / "r.parquet", ["NaCl", "Na", "Cl2"], [-2.1, 0.0, 5e-7])
    read = read_references(path)
    assert energies(read) == {"NaCl": -2.1}
    assert read.notes == ()


@pytest.mark.parametrize("energy", [0.14, -0.005])
def test_other_elements_are_left_out_and_noted(tmp_path: Path, energy: float) -> None:
    path = table(tmp_path / "r.parquet", ["SiC", "C", "C"], [-0.2, 0.0, energy])
    read = read_references(path)
    assert energies(read) == {"SiC": -0.2}
    assert read.notes[0].startswith("left out: 1 row of elements at another energy than 0")


def test_total_energies_are_told_by_the_elements(tmp_path: Path) -> None:
    path = table(tmp_path / "r.parquet", ["NaCl", "Na", "Cl"], [-3.4, -1.3, -1.8])
    with pytest.raises(InputDataError, match=r"row 3 \(Cl2, -1\.8 .*no formation energies"):
        read_references(path)


def test_total_energies_are_told_by_their_size(tmp_path: Path) -> None:
    formulas = [f"Al{n}O{m}" for n in range(1, 9) for m in range(1, 9)]
    atoms = np.array([n + m for n in range(1, 9) for m in range(1, 9)])
    per_atom = table(tmp_path / "a.parquet", formulas, np.full(64, -2.5))
    assert read_references(per_atom).entries == 64
    per_formula = table(tmp_path / "b.parquet", formulas, -2.5 * atoms)
    with pytest.raises(InputDataError, match=r"They grow with the number of atoms.*divide"):
        read_references(per_formula)
    total = table(tmp_path / "c.parquet", formulas, np.full(64, -7.0))
    with pytest.raises(InputDataError, match=r"100% of the energies lie outside -6 to 6.*total"):
        read_references(total)


def test_real_energies_per_formula_are_refused(data_dir: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(data_dir / "mp_groundstates.parquet").sample(2_000, random_state=0)
    atoms = np.array([Composition(formula).num_atoms for formula in frame["formula"]])
    wrong = table(
        tmp_path / "r.parquet", frame["formula"], frame["formation_energy_per_atom"] * atoms
    )
    with pytest.raises(InputDataError, match="They grow with the number of atoms"):
        read_references(wrong)


def test_single_mistakes_of_size_are_left_out_and_noted(tmp_path: Path) -> None:
    formulas = [f"Al{n}O{m}" for n in range(1, 20) for m in (19, 23, 29, 31, 37, 41)]
    values = np.full(len(formulas), -2.0)
    values[5] = 9.0
    read = read_references(table(tmp_path / "r.parquet", formulas, values))
    assert len(read.phases) == len(formulas) - 1
    assert read.notes == (
        "left out: 1 row with an energy outside -6 to 6 eV/atom; the first is row 6 "
        "(AlO41, 9 eV/atom).",
    )


def test_more_than_nine_elements_are_left_out_and_noted(tmp_path: Path) -> None:
    path = table(tmp_path / "r.parquet", ["NaCl", "LiBeBCNOFNaMgAl"], [-2.1, -1.0])
    read = read_references(path)
    assert energies(read) == {"NaCl": -2.1}
    assert "left out: 1 row with more than 9 elements" in read.notes[0]


def test_a_file_of_elements_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="holds no compound"):
        read_references(table(tmp_path / "r.parquet", ["Na", "Cl"], [0.0, 0.0]))


def test_missing_elements_are_named(tmp_path: Path) -> None:
    read = read_references(table(tmp_path / "r.parquet"))
    assert read.missing([11, 17, 92, 8, 3, 0]) == ("Li", "U")
    assert read.missing(np.array([11, 17], dtype=np.uint8)) == ()


@pytest.mark.parametrize(
    ("declared", "model", "warned"),
    [
        ("PBE", "PBE", False),
        ("pbe", "PBE", False),
        ("PBE + U", "PBE+U", False),
        ("r2SCAN", "PBE", True),
        ("GGA+U", "PBE", False),
        ("PBEsol", "PBE", True),
        (None, "PBE", False),
        ("PBE", None, False),
    ],
)
def test_another_functional_is_warned_about(
    tmp_path: Path, declared: str | None, model: str | None, warned: bool
) -> None:
    warning = read_references(table(tmp_path / "r.parquet"), declared).compare_functional(model)
    assert (warning is not None) == warned
    if warning:
        assert f"are {declared} energies and the model predicts {model} energies" in warning


ENTRIES = [
    ComputedEntry("Na", -1.3, entry_id="na"),
    ComputedEntry("Na2", -2.4, entry_id="na-high"),
    ComputedEntry("Cl4", -7.2, entry_id="cl"),
    ComputedEntry("O2", -9.8, entry_id="o"),
    ComputedEntry(
        "Na2O1", -10.0, entry_id="oxide", energy_adjustments=[ConstantEnergyAdjustment(-0.7)]
    ),
    ComputedEntry("Na4Cl4", -27.2, entry_id="salt", correction=0.1),
    ComputedEntry("NaCl", -6.0, entry_id="salt-high"),
]


def write_entries(path: Path, entries: list[object]) -> Path:
    path.write_text(json.dumps(entries))
    return path


def test_entries_give_pymatgens_formation_energies(tmp_path: Path) -> None:
    path = write_entries(tmp_path / "r.json", [entry.as_dict() for entry in ENTRIES])
    read = read_references(path)
    diagram = PhaseDiagram(ENTRIES)
    expected = {
        entry.reduced_formula: diagram.get_form_energy_per_atom(entry)
        for entry in ENTRIES
        if entry.entry_id in ("oxide", "salt")
    }
    assert energies(read) == pytest.approx(expected)
    assert set(read.phases.labels) == {"oxide", "salt"}
    assert read.entries == 7
    assert read.notes == (
        "left out: 1 row of elements at another energy than 0; elements are 0 by definition.",
        "left out: 1 row of a composition that is listed again; its lowest energy counts.",
    )
    numbers, amounts = np.array([[8, 11, 17]], dtype=np.uint8), [1, 4, 2]
    found = find_mixtures(read.phases, numbers, amounts).energies[0, 0]
    theirs = diagram.get_hull_energy_per_atom(Composition("Na4OCl2"))
    elements = sum(
        diagram.el_refs[el].energy_per_atom * Composition("Na4OCl2").get_atomic_fraction(el)
        for el in diagram.el_refs
    )
    assert found == pytest.approx(theirs - elements, abs=1e-6)


def test_other_kinds_of_entries(tmp_path: Path) -> None:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    entries = [
        PDEntry(Composition("Na"), -1.3).as_dict(),
        PDEntry(Composition("Cl"), -1.8).as_dict(),
        ComputedStructureEntry(salt, -27.2).as_dict(),
        {"composition": "Na2Cl", "energy": -4.5},
        {"composition": {"Na": 1.5, "Cl": 0.5}, "energy": -2.9},
    ]
    read = read_references(write_entries(tmp_path / "r.json", entries))
    assert energies(read) == pytest.approx(
        {"NaCl": (-6.8 + 3.1) / 2, "Na2Cl": (-4.5 + 4.4) / 3, "Na3Cl": (-2.9 + 2.85) / 2}
    )


def test_entries_without_an_element_are_refused(tmp_path: Path) -> None:
    entries = [entry.as_dict() for entry in ENTRIES if entry.entry_id not in ("cl", "o")]
    with pytest.raises(InputDataError, match=r"no entry of the elements O, Cl.*Add"):
        read_references(write_entries(tmp_path / "r.json", entries))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (3, "not an object"),
        ({"energy": -1.0}, "without a composition"),
        ({"composition": {}, "energy": -1.0}, "an empty composition"),
        ({"composition": {"Na": 0}, "energy": -1.0}, "amount 0 of 'Na'"),
        ({"composition": {"Na": "x"}, "energy": -1.0}, "amount 'x' of 'Na'"),
        ({"composition": {"Na+": 1}, "energy": -1.0}, r"'Na\+' is not a chemical formula"),
        ({"composition": "Qq", "energy": -1.0}, "'Qq' is not a chemical formula"),
        ({"composition": "Na"}, "energy is None"),
        ({"composition": "Na", "energy": "low"}, "energy is 'low'"),
        ({"composition": "Na", "energy": float("nan")}, "energy is nan"),
        ({"composition": "Na", "energy": -1.0, "correction": "0"}, "correction is '0'"),
        ({"composition": "Na", "energy": -1, "energy_adjustments": [{}]}, "without their sum"),
        ({"@class": "Popen", "composition": "Na", "energy": -1.0}, "class 'Popen'"),
        (
            {"@class": GibbsComputedStructureEntry.__name__, "composition": "Na", "energy": -1.0},
            "class 'GibbsComputedStructureEntry'; known are",
        ),
    ],
)
def test_what_is_no_entry_is_refused(tmp_path: Path, entry: object, message: str) -> None:
    entries = [{"composition": "Na", "energy": -1.3}, entry]
    with pytest.raises(InputDataError, match=rf"1 row with no pymatgen entry: row 2 \(.*{message}"):
        read_references(write_entries(tmp_path / "r.json", entries))


def test_the_real_references(data_dir: Path) -> None:
    read = read_references(data_dir / "mp_groundstates.parquet", "PBE")
    frame = pd.read_parquet(data_dir / "mp_groundstates.parquet")
    expected = dict(zip(frame["formula"], frame["formation_energy_per_atom"], strict=True))
    assert energies(read) == expected
    assert read.entries == len(frame) and read.notes == ()
