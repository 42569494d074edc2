from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototypes import Prototype, find_prototype, list_prototypes
from screening.errors import ExitCode, InputDataError, ModelError, exit_code_of
from screening.model_library import FORMULAS_NAME, find_model, load_model
from screening.training_table import (
    SEPARATOR,
    TrainingTable,
    name_structure_type,
    read_structure_types,
)

TEXTBOOK = {
    "NaCl": ("AB_cF8_225_a_b", "B2"),
    "CsCl": ("B2",),
    "GaAs": ("sphalerite",),
    "ZnO": ("wurtzite",),
    "NiAs": ("AB_hP4_194_c_a",),
    "CaF2": ("fluorite",),
    "Li2O": ("fluorite",),  # antifluorite: the same sites
    "TiO2": ("rutile",),
    "Al2O3": ("corundum",),
    "MgAl2O4": ("spinel",),
    "MgCu2": ("A2B_cF24_227_d_a",),
    "Cu3Au": ("L1_2",),
    "CuAu": ("L1_0",),
    "TiNiSn": ("C1_b",),
    "TiNi2Sn": ("L2_1",),
    "Cr3Si": ("A15",),
    "CaTiO3": ("perovskite",),
    "SrTiO3": ("cubic_perovskite",),
    "K2NiF4": ("K2NiF4",),
}
"""Structure types that crystallography textbooks give for these compounds, by prototype name."""


def test_the_lowest_energy_of_a_formula_counts() -> None:
    table = TrainingTable.of(
        ["NaCl", "CsCl", "NaCl", "AlCu", "NaCl"],
        ["a", "b", "c", "d", "e"],
        [-1.0, -2.0, -1.52149, np.nan, np.nan],
        ["x", "y", "z", None, ""],
    )
    assert table.formulas.tolist() == ["AlCu", "CsCl", "NaCl"]
    assert table.ids.tolist() == ["d", "b", "c"]
    assert table.energies.tolist()[1:] == [-2.0, -1.521]
    assert np.isnan(table.energies[0])
    assert table.types.tolist() == ["", "y", f"x{SEPARATOR}z"]
    assert table.all_types_known.tolist() == [False, True, True]


def test_what_is_not_told_is_not_known() -> None:
    table = TrainingTable.of(["NaCl", "NaCl", "CsCl"], types=["x", None, ""])
    assert table.types.tolist() == ["", "x"]
    assert table.all_types_known.tolist() == [True, False]
    assert table.ids.tolist() == ["", ""]
    assert np.isnan(table.energies).all()
    assert not TrainingTable.of(["NaCl"]).all_types_known.any()


@given(st.sets(st.text(max_size=8), max_size=30), st.lists(st.text(max_size=8), max_size=30))
def test_formulas_are_a_set(known: set[str], asked: list[str]) -> None:
    table = TrainingTable.of(sorted(known, reverse=True))
    assert len(table) == len(known)
    assert table.contains(asked).tolist() == [formula in known for formula in asked]
    assert table.contains(list(known)).all()


ROWS = st.tuples(
    st.sampled_from(["NaCl", "CsCl", "AlCu", "Ca(NO3)2", "Li2O2", "TiO2"]),
    st.sampled_from(["", "mp-1", "mp-22862", "mine é"]),
    st.one_of(st.just(np.nan), st.floats(-9, 9)),
    st.sampled_from([None, "", "AB_cP2_221_a_b", "other"]),
)


@given(st.lists(ROWS, max_size=20))
def test_a_table_comes_back_from_disk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    columns: list[tuple[object, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 4
    table = TrainingTable.of(*map(list, columns))  # type: ignore[arg-type]
    table.save(path)
    loaded = TrainingTable.load(path)
    for name in ("formulas", "ids", "types", "all_types_known"):
        assert getattr(loaded, name).tolist() == getattr(table, name).tolist()
    np.testing.assert_array_equal(loaded.energies, table.energies)
    assert loaded.contains([row[0] for row in rows]).all()


def test_tables_are_small_on_disk(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = TrainingTable.of(
        [f"A{i}B" for i in range(40_000)],
        [f"mp-{i}" for i in random.permutation(10**6)[:40_000]],
        random.normal(-1, 1, 40_000),
    )
    table.save(tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 8 * 40_000


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(ModelError, match=r"t\.parquet is missing"):
        TrainingTable.load(path)
    pq.write_table(pa.table({"formula": ["NaCl"]}), path)
    with pytest.raises(ModelError, match=r"has the columns formula\)\. Get or train") as caught:
        TrainingTable.load(path)
    assert exit_code_of(caught.value) == ExitCode.MODEL


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("B2", "AB_cP2_221_b_a"),
        ("L1_0", "AB_tP2_123_a_d"),
        ("perovskite", "AB3C_oP20_62_c_cd_a"),
        ("cubic_perovskite", "AB3C_cP5_221_a_c_b"),
        ("K2NiF4", "AB2C4_tI14_139_a_e_ce"),
    ],
)
def test_a_type_has_one_name(one: str, other: str) -> None:
    from prototypes.aflow import matching_entries

    (entry,) = matching_entries(other)
    assert name_structure_type(find_prototype(one)) == name_structure_type(entry.prototype())
    assert (
        read_structure_types([one, other], Path("d"))
        == [name_structure_type(find_prototype(one))] * 2
    )


def test_different_types_have_different_names() -> None:
    names = [record.name for record in list_prototypes() if not record.is_element]
    types = read_structure_types(list(names), Path("d"))
    assert len(names) - len(set(types)) == 5  # the five built-in ones, listed twice
    assert "AB_oP8_62_c_c:MnP" in types


def test_a_users_prototype_has_no_type() -> None:
    named = find_prototype("B2")
    own = Prototype.from_sites(
        "AB_cP2_221_b_a",
        named.lattice,
        named.frac_coords,
        ["A", "B"],
        {"A": "Cs", "B": "Cl"},
        source="mine",
    )
    assert name_structure_type(own) is None


def test_names_of_types_are_checked() -> None:
    path = Path("d.parquet")
    assert read_structure_types(["", None], path) == ["", None]
    with pytest.raises(InputDataError, match=r"d\.parquet.*'perovskit'.*did you mean"):
        read_structure_types(["B2", "perovskit"], path)


@pytest.mark.parametrize("name", ["mp-all-irnet17", "mp-icsd-irnet17"])
def test_bundled_models_know_what_they_were_trained_on(name: str) -> None:
    table = load_model(name).training_formulas
    card = load_model(name).card
    assert len(table) == card.data.formulas
    assert (find_model(name) / FORMULAS_NAME).stat().st_size < 12 * len(table)
    assert table.all_types_known.mean() > 0.99
    assert np.isnan(table.energies).all()  # the data's energies are no part of the project
    row = {formula: i for i, formula in enumerate(table.formulas)}
    assert table.ids[row["NaCl"]] == "mp-22862"  # halite in the Materials Project
    for formula, prototypes in TEXTBOOK.items():
        found = set(table.types[row[formula]].split(SEPARATOR))
        expected = {name_structure_type(find_prototype(each)) for each in prototypes}
        assert expected <= found, formula
    wurtzite = name_structure_type(find_prototype("wurtzite"))
    assert wurtzite not in table.types[row["NaCl"]].split(SEPARATOR)
