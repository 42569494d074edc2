from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from screening.errors import OutputError
from screening.poison import MOST_POISONOUS, compute_without_poison

Rows = NDArray[np.int64]


def make_work(poison: set[int], calls: list[Rows]) -> Callable[[Rows], int]:
    def work(rows: Rows) -> int:
        calls.append(rows)
        for row in rows.tolist():
            if row in poison:
                raise ValueError(f"no such element in {row}")
        return int(rows.sum())

    return work


@given(st.integers(0, 300), st.sets(st.integers(0, 299), max_size=MOST_POISONOUS))
def test_poison_is_found_and_all_else_is_computed_together(count: int, poison: set[int]) -> None:
    poison = {row for row in poison if row < count}
    calls: list[Rows] = []
    result, rows, reasons = compute_without_poison(make_work(poison, calls), count)
    healthy = sorted(set(range(count)) - poison)
    assert rows.tolist() == healthy
    assert result == sum(healthy)
    assert reasons == {row: f"ValueError: no such element in {row}" for row in poison}
    assert calls[-1].tolist() == healthy  # in one piece, as if the others had never been there
    assert len(calls) <= 2 + 2 * 9 * len(poison)


def test_an_error_that_comes_once_costs_nothing_but_time() -> None:
    calls = 0

    def stumble(rows: Rows) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("once")
        return len(rows)

    result, rows, reasons = compute_without_poison(stumble, 50)
    assert (result, len(rows), reasons) == (50, 50, {})


def test_where_all_is_poison_the_search_ends_soon() -> None:
    calls: list[Rows] = []
    with pytest.raises(ValueError, match="no such element"):
        compute_without_poison(make_work(set(range(8192)), calls), 8192)
    assert len(calls) < 3 * MOST_POISONOUS + 15


@pytest.mark.parametrize(
    "error", [MemoryError("no memory"), OutputError("full"), torch.OutOfMemoryError("GPU full")]
)
def test_what_is_no_fault_of_a_candidate_is_raised_at_once(error: Exception) -> None:
    calls = 0

    def fail(rows: Rows) -> None:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error)):
        compute_without_poison(fail, 100)
    assert calls == 1
