from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.core import Composition
from scipy.stats import wasserstein_distance

from prototypes import ATOMIC_NUMBERS
from screening.composition_distance import (
    MODIFIED_PETTIFOR,
    SAME,
    Compositions,
    NearestComposition,
    find_distances,
    pick_diverse,
    read_compositions,
)
from screening.errors import InputDataError

PUBLISHED = (
    ("CaTiO3", "SrTiO3", 0.2),
    ("NaCl", "KCl", 0.5),
    ("CaTiO3", "MgAl2O4", 17.628571428571433),
    ("Fe2O3", "CsCl", 36.1),
    ("YBa2Cu3O7", "LiFePO4", 8.879120879120881),
    ("GaAs", "Ca3P2O8", 21.65384615384615),
    ("ZnS", "CuInSe2", 3.5),
    ("Al2O3", "BaTiO3", 18.2),
    ("HfO2", "ZrO2", 1 / 3),
    ("Ca3(PO4)2", "La2Zr2O7", 10.006993006993014),
)
"""Distances by the authors' own program, ElMD 0.5.15, with its metric "mod_petti"."""

FORMULAS = st.dictionaries(
    st.sampled_from(MODIFIED_PETTIFOR), st.integers(1, 12), min_size=1, max_size=6
).map(lambda amounts: "".join(f"{symbol}{n}" for symbol, n in amounts.items()))


def compositions(*formulas: str) -> Compositions:
    return Compositions.of(*read_compositions(formulas))


def draw(count: int, seed: int, elements: int = 25) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Compositions of one to five elements, with neighbours on the scale among them."""
    random = np.random.default_rng(seed)
    scale = np.array([ATOMIC_NUMBERS[symbol] for symbol in MODIFIED_PETTIFOR[40 : 40 + elements]])
    numbers = np.stack([random.permutation(scale)[:5] for _ in range(count)]).astype(np.uint8)
    numbers[np.arange(5) >= random.integers(1, 6, count)[:, None]] = 0
    return numbers, random.integers(1, 7, (count, 5))


@pytest.mark.parametrize(("first", "second", "distance"), PUBLISHED)
def test_distances_are_those_of_the_authors(first: str, second: str, distance: float) -> None:
    found = find_distances(compositions(first), compositions(second))
    assert found == pytest.approx([distance], abs=1e-9)


def test_the_scale_has_every_element_to_lr_once() -> None:
    assert {ATOMIC_NUMBERS[symbol] for symbol in MODIFIED_PETTIFOR} == set(range(1, 104))
    assert len(MODIFIED_PETTIFOR) == 103
    # ElMD 0.5.15 and the Glawe numbers of mendeleev 1.3.0 agree on all 103; a few of them:
    places = {symbol: place for place, symbol in enumerate(MODIFIED_PETTIFOR)}
    assert [places[s] for s in ("He", "Li", "La", "Zr", "Fe", "Mg", "Al", "O", "H")] == [
        0, 11, 31, 48, 70, 72, 77, 96, 102,
    ]  # fmt: skip


@given(st.lists(st.tuples(FORMULAS, FORMULAS), min_size=1, max_size=8))
def test_distances_are_the_earth_movers(pairs: list[tuple[str, str]]) -> None:
    places = {symbol: place for place, symbol in enumerate(MODIFIED_PETTIFOR)}

    def expect(first: str, second: str) -> float:
        parts = [Composition(formula).get_el_amt_dict() for formula in (first, second)]
        (a, b), (wa, wb) = zip(
            *(([places[s] for s in part], list(part.values())) for part in parts), strict=True
        )
        return float(wasserstein_distance(a, b, wa, wb))

    first, second = (compositions(*side) for side in zip(*pairs, strict=True))
    expected = [expect(*pair) for pair in pairs]
    assert find_distances(first, second) == pytest.approx(expected, abs=1e-9)
    assert find_distances(second, first) == pytest.approx(expected, abs=1e-9)
    one = compositions(pairs[0][1])
    to_one = [expect(a, pairs[0][1]) for a, _ in pairs]
    assert find_distances(first, one) == pytest.approx(to_one, abs=1e-9)
    assert find_distances(one, first) == pytest.approx(to_one, abs=1e-9)


@given(FORMULAS, FORMULAS, FORMULAS, st.integers(2, 5))
def test_it_is_a_metric_of_compositions(a: str, b: str, c: str, times: int) -> None:
    ab, bc, ac = (
        float(find_distances(compositions(x), compositions(y))[0])
        for x, y in ((a, b), (b, c), (a, c))
    )
    assert ac <= ab + bc + 1e-9
    same = Composition(a) / Composition(a).num_atoms == Composition(b) / Composition(b).num_atoms
    assert same or ab > SAME
    assert find_distances(compositions(a), compositions(f"({a}){times}"))[0] <= SAME


@given(FORMULAS)
def test_formulas_are_read_as_pymatgen_reads_them(formula: str) -> None:
    for text in (formula, Composition(formula).reduced_formula):
        numbers, amounts = read_compositions([text])
        expected = {ATOMIC_NUMBERS[s]: n for s, n in Composition(text).get_el_amt_dict().items()}
        assert dict(zip(numbers[0].tolist(), amounts[0].tolist(), strict=True)) == expected


def test_formulas_of_different_length_share_a_table() -> None:
    numbers, amounts = read_compositions(["Ca3(PO4)2", "O2", "Li0.5CoO2", "HOH"])
    assert numbers.tolist() == [[20, 15, 8], [8, 0, 0], [3, 27, 8], [1, 8, 0]]
    assert amounts.tolist() == [[3, 2, 8], [2, 0, 0], [0.5, 1, 2], [2, 1, 0]]
    assert [part.shape for part in read_compositions([])] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("formula", ["", "Xx", "(NaCl"])
def test_what_is_no_formula_is_refused(formula: str) -> None:
    with pytest.raises(InputDataError, match="not a chemical formula"):
        read_compositions(["NaCl", formula])


def test_elements_beyond_the_scale_are_refused() -> None:
    with pytest.raises(InputDataError, match="Rf has no place"):
        compositions("NaCl", "RfO2")


@pytest.mark.parametrize("amounts", [(1, 1, 3), (2, 1, 4), (1, 1, 1)])
@pytest.mark.parametrize("known", [3, 40, 3000])
def test_the_nearest_is_the_nearest_of_all(known: int, amounts: tuple[int, ...]) -> None:
    table = Compositions.of(*draw(known, seed=known))
    numbers, _ = draw(60, seed=1)
    numbers = numbers[(numbers[:, :3] > 0).all(axis=1), :3]
    asked = Compositions.of(numbers, amounts)
    nearest, distances = NearestComposition.of(table).find(asked)
    for row in range(len(asked)):
        to_all = find_distances(table, asked.select(np.array([row])))
        others = np.where(to_all > SAME, to_all, np.inf)
        assert distances[row] == pytest.approx(others.min(), abs=1e-9)
        assert nearest[row] == np.flatnonzero(others <= others.min() + SAME)[0]


def test_a_known_composition_is_not_its_own_neighbour() -> None:
    table = NearestComposition.of(compositions("NaCl", "KCl", "SrTiO3"))
    nearest, distances = table.find(compositions("NaCl", "Na2Cl2", "CaTiO3", "RbCl"))
    assert nearest.tolist() == [1, 1, 2, 1]
    assert distances == pytest.approx([0.5, 0.5, 0.2, 0.5])


@pytest.mark.parametrize("known", [(), ("NaCl",)])
def test_nothing_else_known_is_said(known: tuple[str, ...]) -> None:
    table = compositions(*known) if known else Compositions.of(np.empty((0, 1)), [1])
    nearest, distances = NearestComposition.of(table).find(compositions("NaCl"))
    assert nearest.tolist() == [-1]
    assert distances.tolist() == [np.inf]


def test_answers_do_not_depend_on_who_else_asks() -> None:
    table = NearestComposition.of(Compositions.of(*draw(2000, seed=5)))
    asked = Compositions.of(*draw(300, seed=6))
    together = table.find(asked)
    for rows in np.array_split(np.arange(len(asked)), 7):
        apart = table.find(asked.select(rows))
        assert (apart[0] == together[0][rows]).all()
        assert apart[1] == pytest.approx(together[1][rows])


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.5, 2.0, 6.0]), st.integers(0, 30))
def test_a_diverse_choice_is_the_greedy_one(seed: int, far: float, count: int) -> None:
    numbers, amounts = draw(60, seed)
    order = np.random.default_rng(seed).permutation(60)[:50]
    everything = Compositions.of(numbers, amounts)
    expected: list[int] = []
    for row in order.tolist():
        one = everything.select(np.array([row]))
        to_chosen = find_distances(everything.select(np.array(expected, dtype=np.int64)), one)
        if len(expected) < count and (to_chosen >= far - SAME).all():
            expected.append(row)
    assert pick_diverse(numbers, amounts, order, count, far).tolist() == expected


def test_a_choice_looks_beyond_the_first_block() -> None:
    numbers = np.array([[11, 17]] * 1000 + [[19, 17]] * 1000 + [[26, 8]], dtype=np.uint8)
    order = np.arange(len(numbers))
    assert pick_diverse(numbers, (1, 1), order, 9, 0.5).tolist() == [0, 1000, 2000]
    assert pick_diverse(numbers, (1, 1), order, 9, 0.6).tolist() == [0, 2000]
    assert pick_diverse(numbers, (1, 1), order, 2, 0.5).tolist() == [0, 1000]


@pytest.mark.data
def test_the_nearest_of_the_real_references(data_dir: Path) -> None:
    formulas = pd.read_parquet(data_dir / "mp_groundstates.parquet")["formula"].tolist()
    numbers, amounts = read_compositions(formulas)
    rows = np.random.default_rng(0).choice(len(formulas), 300, replace=False)
    for row in rows:
        expected = Composition(formulas[row]).get_el_amt_dict()
        present = numbers[row] > 0
        found = dict(zip(numbers[row][present], amounts[row][present], strict=True))
        assert found == {ATOMIC_NUMBERS[symbol]: n for symbol, n in expected.items()}
    table = Compositions.of(numbers, amounts)
    asked = Compositions.of(np.array([[20, 22, 8], [57, 13, 8], [90, 2, 92]]), (1, 1, 3))
    nearest, distances = NearestComposition.of(table).find(asked)
    for row in range(len(asked)):
        to_all = find_distances(table, asked.select(np.array([row])))
        assert distances[row] == pytest.approx(to_all[to_all > SAME].min(), abs=1e-9)
        assert to_all[nearest[row]] == pytest.approx(distances[row], abs=1e-9)
