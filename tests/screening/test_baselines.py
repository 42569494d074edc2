from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.baselines import draw_formulas
from screening.dataset import TrainingSet
from screening.errors import ConfigurationError


def rows_of(sizes: list[int]) -> TrainingSet:
    """Rows without features, so many of each of made-up formulas, shuffled."""
    formulas = [f"F{number}" for number, size in enumerate(sizes) for _ in range(size)]
    formulas = np.random.default_rng(0).permutation(formulas).tolist()
    ids = tuple(f"r{number}" for number in range(len(formulas)))
    return TrainingSet(ids, tuple(formulas), np.arange(len(ids)) + 0.5, None, None, ())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
    st.integers(1, 60),
    st.integers(0, 5),
)
def test_drawn_formulas_are_whole_and_as_many_as_fit(
    sizes: list[int], most: int, seed: int
) -> None:
    data = rows_of(sizes)
    try:
        drawn, sentence = draw_formulas(data, most, seed)
    except ConfigurationError as error:
        assert max(sizes) > most
        assert f"--rows {most} has no room" in str(error)
        return
    assert len(drawn) <= most or most >= len(data)
    left = set(data.ids) - set(drawn.ids)
    assert not {data.formulas[int(name[1:])] for name in left} & set(drawn.formulas)
    assert [name for name in data.ids if name in set(drawn.ids)] == list(drawn.ids)
    if left:
        assert sentence is not None
        assert f"{len(drawn):,} of {len(data):,} rows" in sentence
        assert sentence.endswith(f"with seed {seed}")
        assert drawn.dropped == {"not in the drawn subset": len(left)}
        assert len(drawn) > most - max(sizes)
    else:
        assert sentence is None


def test_subsets_of_one_seed_lie_within_each_other() -> None:
    data = rows_of([2] * 100)
    small, large, other = (
        set(draw_formulas(data, rows, seed)[0].ids) for rows, seed in ((40, 3), (90, 3), (90, 4))
    )
    assert len(small) == 40
    assert small < large
    assert not small < other


@pytest.mark.parametrize("rows", [None, 200, 10_000])
def test_all_rows_are_no_subset(rows: int | None) -> None:
    data = rows_of([2] * 100)
    assert draw_formulas(data, rows, 0) == (data, None)
