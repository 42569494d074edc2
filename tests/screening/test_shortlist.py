from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition
from scipy.stats import wasserstein_distance

from screening import shortlist
from screening.composition_distance import MODIFIED_PETTIFOR
from screening.shortlist import DEFAULT_DISTANCE, pick_shortlist


def distance(first: str, second: str) -> float:
    """Element mover's distance as scipy computes it."""
    sides = [Composition(formula).fractional_composition for formula in (first, second)]
    places = [[MODIFIED_PETTIFOR.index(e.symbol) for e in side] for side in sides]
    return float(wasserstein_distance(*places, *(list(side.values()) for side in sides)))


def pick(formulas: list[str], count: int, min_distance: float) -> list[int]:
    rows = pa.table({"rank": np.arange(1, len(formulas) + 1), "formula": formulas})
    ranks: list[int] = pick_shortlist(rows, count, min_distance)["rank"].to_pylist()
    return ranks


symbols = st.sampled_from(["Li", "Na", "K", "Ca", "La", "Ce", "Ti", "Fe", "Ni", "Al", "S", "F"])


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(symbols, symbols).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=25
    ),
    count=st.integers(1, 8),
    min_distance=st.sampled_from([0.3, 1.7, 5.1, 11.3]),
)
def test_shortlist_is_greedy_down_the_ranking(
    pairs: list[tuple[str, str]], count: int, min_distance: float
) -> None:
    formulas = [f"{a}{b}O3" for a, b in pairs]
    expected: list[int] = []
    for rank, formula in enumerate(formulas, start=1):
        if len(expected) < count and all(
            distance(formula, formulas[other - 1]) >= min_distance for other in expected
        ):
            expected.append(rank)
    assert pick(formulas, count, min_distance) == expected


def test_the_same_composition_comes_once() -> None:
    assert pick(["TbLuO3", "LuTbO3", "TbLuO3", "NaOsO3"], 3, 0.1) == [1, 4]


def test_neighbours_are_passed_over_by_default() -> None:
    formulas = ["HoLuO3", "ErLuO3", "TmLuO3", "NaOsO3", "KOsO3", "EuZrO3"]
    assert distance("HoLuO3", "TmLuO3") < DEFAULT_DISTANCE < distance("HoLuO3", "NaOsO3")
    assert pick(formulas, 3, DEFAULT_DISTANCE) == [1, 4, 6]


def test_the_whole_ranking_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlist, "_FIRST_ROWS", 4)
    formulas = ["NaCl"] * 50 + ["LaAl"] + ["NaCl"] * 30 + ["WN"]
    assert pick(formulas, 3, 3.0) == [1, 51, 82]
    assert pick(formulas, 2, 3.0) == [1, 51]
    assert pick([], 2, 3.0) == []
