from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition

from prototypes import ATOMIC_NUMBERS, SYMBOLS, reduced_formula
from screening.errors import InputDataError, OutputError
from screening.phases import (
    Phases,
    arrange_elements,
    count_atoms,
    pack_systems,
    parse_formula,
    unpack_systems,
)

pytestmark = pytest.mark.filterwarnings("ignore:No Pauling")

FORMULAS = ["LaAlO3", "Al4O6", "La2O3", "CsCl", "La2O3"]


def made(energies: object = (-3.0, -2.0, -3.5, -2.2, -3.4)) -> Phases:
    return Phases.of(FORMULAS, energies, labels=list("abcde"), identities=[0, 7, 9, 0, 3])


def same(one: Phases, other: Phases) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("formulas", "labels", "systems", "fractions", "energies", "identities")
    )


@pytest.mark.parametrize(
    "formula",
    [
        "Fe2O3",
        "Ca(NO3)2",
        "Ca2(NO3)4",
        "Fe2 O3",
        "Al2(SO4)3",
        "K4[Fe(CN)6]",
        "{Cu(NH3)4}(OH)2",
        "((Mg)2)3O",
        "CoO",
        "COS",
        "Na2O2",
        "O2",
        "CuCuO",
        "Mg(OH)(OH)",
    ],
)
def test_formulas_are_read_as_pymatgen_reads_them(formula: str) -> None:
    theirs = Composition(formula.replace("{", "(").replace("}", ")"))
    counted = {SYMBOLS[number - 1]: amount for number, amount in count_atoms(formula).items()}
    assert counted == theirs.get_el_amt_dict()
    assert reduced_formula(*parse_formula(formula)) == theirs.reduced_formula


@given(
    st.dictionaries(st.sampled_from(SYMBOLS), st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 12),
)
def test_any_formula_is_reduced_as_pymatgen_does(amounts: dict[str, int], times: int) -> None:
    formula = "".join(f"{symbol}{amount * times}" for symbol, amount in amounts.items())
    assert reduced_formula(*parse_formula(formula)) == Composition(formula).reduced_formula


@pytest.mark.slow
def test_real_formulas_are_reduced_as_pymatgen_does(data_dir: Path) -> None:
    formulas = pd.read_parquet(data_dir / "mp_groundstates.parquet")["formula"].tolist()
    doubled = ["".join(f"{s}{2 * int(n)}" for s, n in Composition(f).items()) for f in formulas]
    assert [reduced_formula(*parse_formula(formula)) for formula in doubled] == [
        Composition(formula).reduced_formula for formula in formulas
    ]


def test_decimal_amounts_are_exact() -> None:
    assert count_atoms("Li.5CoO2.") == {3: Fraction(1, 2), 27: 1, 8: 2}
    assert reduced_formula(*parse_formula("Li0.5CoO2")) == "Li(CoO2)2"
    assert parse_formula("Fe0.1O0.15") == parse_formula("Fe2O3")


def test_heavy_hydrogen_is_hydrogen() -> None:
    assert parse_formula("D2O") == parse_formula("T2O") == parse_formula("H2O")


@pytest.mark.parametrize(
    "text",
    "|| |fe2o3|Xx2O|Fe2O3)|(Fe2O3|Fe(2O3)|[Fe)2|Fe0O|Fe-O|2FeO|()2|Fe3+|None|nan|FeO·H2O".split(
        "|"
    ),
)
def test_what_is_no_formula_is_refused(text: str) -> None:
    with pytest.raises(InputDataError, match="not a chemical formula"):
        parse_formula(text)


def test_phases_are_sorted_by_system_with_all_their_columns() -> None:
    phases = made()
    assert len(phases) == 5
    assert (np.diff(phases.systems.astype(object)) >= 0).all()
    rows = {label: row for row, label in enumerate(phases.labels)}
    assert phases.formulas[rows["b"]] == "Al2O3"
    assert phases.energies[rows["a"]].tolist() == [-3.0]
    assert phases.identities[rows["c"]] == 9
    # ascending atomic number: O 8, Al 13, La 57
    assert phases.fractions[rows["a"]].tolist() == pytest.approx([0.6, 0.2, 0.2])
    assert phases.fractions[rows["d"]].tolist() == [0.5, 0.5, 0.0]
    assert phases.known_identities.tolist() == [3, 7, 9]
    assert phases.elements == {8, 13, 57, 17, 55}


def test_an_index_finds_the_rows_of_a_system() -> None:
    phases = made([-3.0, -2.0, -3.5, -2.2, 0.5])
    asked = pack_systems(np.array([[8, 57], [3, 4]], dtype=np.uint8))
    for index, labels in ((phases.index, {"c", "e"}), (phases.competitive_index, {"c"})):
        first, count = index.locate(asked)
        assert set(phases.labels[index.rows[first[0] : first[0] + count[0]]]) == labels
        assert count[1] == 0


def test_no_phases_at_all() -> None:
    phases = Phases.of([], [])
    assert len(phases) == 0 and phases.energies.shape == (0, 1)
    assert phases.index.locate(np.array([5], dtype=np.uint64))[1].tolist() == [0]
    assert phases.elements == frozenset()


def test_decorations_need_no_formula() -> None:
    numbers = np.array([[20, 22, 8], [57, 13, 8]], dtype=np.uint8)
    energies = np.array([[-3.0, -3.1], [-3.2, -3.3]])
    formulas = ["CaTiO3", "LaAlO3"]
    quick = Phases.of_decorations(numbers, (1, 1, 3), energies, "perovskite", [4, 5], formulas)
    assert same(quick, Phases.of(formulas, energies, ["perovskite"] * 2, [4, 5]))


def test_joined_phases_are_those_made_together() -> None:
    parts = [
        Phases.of(["CsCl", "Ca(NO3)2"], [-1.0, -2.0], ["a", "b"], [1, 2]),
        Phases.of(["NaCl"], [-3.0], ["c"], [3]),
        Phases.of([], []),
    ]
    whole = Phases.of(["CsCl", "Ca(NO3)2", "NaCl"], [-1.0, -2.0, -3.0], list("abc"), [1, 2, 3])
    assert same(Phases.join(parts), whole)


def test_selected_phases_are_those_asked_for() -> None:
    phases = made()
    kept = phases.formulas != "La2O3"
    assert set(phases.select(kept).labels) == {"a", "b", "d"}
    assert same(phases.select(np.flatnonzero(kept)), phases.select(kept))


@pytest.mark.parametrize("columns", [1, 3])
def test_saved_phases_come_back(tmp_path: Path, columns: int) -> None:
    phases = made(np.arange(5.0 * columns).reshape(5, columns))
    phases.save(tmp_path / "phases.arrow")
    assert same(Phases.load(tmp_path / "phases.arrow"), phases)
    empty = Phases.of([], np.empty((0, columns)))
    empty.save(tmp_path / "empty.arrow")
    assert same(Phases.load(tmp_path / "empty.arrow"), empty)


def test_a_file_that_is_no_table_of_phases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="cannot read phases"):
        Phases.load(tmp_path / "missing.arrow")
    (tmp_path / "text.arrow").write_text("phases")
    with pytest.raises(InputDataError, match="cannot read phases"):
        Phases.load(tmp_path / "text.arrow")
    pd.DataFrame({"formula": ["NaCl"]}).to_feather(tmp_path / "other.arrow", compression=None)
    with pytest.raises(InputDataError, match="does not hold phases"):
        Phases.load(tmp_path / "other.arrow")


def test_phases_that_cannot_be_written_say_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        made().save(tmp_path / "file" / "phases.arrow")


def test_energies_must_be_finite() -> None:
    with pytest.raises(InputDataError, match=r"not finite: 1, the first is CsCl"):
        Phases.of(["NaCl", "CsCl"], [-1.0, np.nan])


def test_more_than_nine_elements_do_not_fit() -> None:
    nine = "".join(SYMBOLS[:9])
    assert unpack_systems(Phases.of([nine], [-1.0]).systems)[0].tolist() == list(range(1, 10))
    with pytest.raises(InputDataError, match="more than 9 elements"):
        Phases.of([nine + "Ne"], [-1.0])


@given(st.lists(st.sets(st.integers(1, 118), min_size=1, max_size=9), min_size=1, max_size=8))
def test_systems_are_packed_without_loss(systems: list[set[int]]) -> None:
    numbers = np.zeros((len(systems), 9), dtype=np.uint8)
    for row, system in enumerate(systems):
        numbers[row, : len(system)] = sorted(system)
    packed = pack_systems(numbers)
    assert np.array_equal(unpack_systems(packed), numbers)
    assert len(set(packed.tolist())) == len({frozenset(system) for system in systems})


def test_compositions_come_into_one_form() -> None:
    numbers = np.array([[8, 22, 20, 0], [22, 8, 22, 8], [8, 0, 0, 0], [26, 8, 0, 3]])
    amounts = np.array([[3, 1, 1, 5], [1, 2, 1, 0], [2, 1, 1, 1], [2, 3, 9, 0]])
    elements, fractions = arrange_elements(numbers, amounts)
    assert elements.tolist() == [[8, 20, 22, 0], [8, 22, 0, 0], [8, 0, 0, 0], [8, 26, 0, 0]]
    assert fractions.tolist() == [
        pytest.approx([0.6, 0.2, 0.2, 0]),
        [0.5, 0.5, 0, 0],
        [1, 0, 0, 0],
        pytest.approx([0.6, 0.4, 0, 0]),
    ]
    assert arrange_elements(numbers[:1], (3, 1, 1, 0))[1].sum() == pytest.approx(1)


@pytest.mark.parametrize("numbers", [[[0, 0]], [[8, 0]]])
def test_a_composition_needs_atoms(numbers: list[list[int]]) -> None:
    with pytest.raises(InputDataError, match="composition 0 of 1 has no atoms"):
        arrange_elements(np.array(numbers), (0, 1))


def test_symbols_are_those_of_the_periodic_table() -> None:
    packed = pack_systems(np.array([[ATOMIC_NUMBERS["H"], ATOMIC_NUMBERS["Og"]]]))
    assert packed.tolist() == [(1 << 7) | 118]
