from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from screening.errors import InputDataError
from screening.parquet import read_columns, read_frame, read_names, read_numbers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"b": [1, None], "a": ["x", "y"], "c": [1.5, 2.5]}), path)
    return path


def test_columns_come_in_the_order_in_which_they_are_asked_for(path: Path) -> None:
    assert read_names(path) == ["b", "a", "c"]
    assert read_columns(path, ["c", "b"]).column_names == ["c", "b"]
    assert read_frame(path)["a"].tolist() == ["x", "y"]


def test_numbers_have_gaps_and_names(path: Path) -> None:
    frame = read_frame(path)
    numbers = read_numbers(frame[["b", "c"]], path)
    np.testing.assert_array_equal(numbers, [[1.0, 1.5], [np.nan, 2.5]])
    with pytest.raises(InputDataError, match="column 'a' does not hold numbers"):
        read_numbers(frame[["b", "a"]], path)


@pytest.mark.parametrize("keep", [0, 4, 100, -9])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    for read in (read_names, read_columns):
        with pytest.raises(InputDataError, match=r"cannot read .* as Parquet"):
            read(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(InputDataError, match="cannot read"):
            read_columns(path)


def test_a_column_that_is_there_twice_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "b", "a"]), path)
    with pytest.raises(InputDataError, match="2 columns 'a'"):
        read_columns(path, ["a"])
    assert read_columns(path, ["b"])["b"].to_pylist() == [2]


def test_an_index_of_pandas_is_a_column_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"a": [1, 2]}, index=pd.Index([7, 8], name="i")).to_parquet(path)
    assert read_frame(path, ["a"]).index.tolist() == [0, 1]
    assert read_frame(path)["i"].tolist() == [7, 8]
