"""Parquet files that a user, or a stranger, gives: read with every way to fail in one error.

Arrow's reader raises what its parts happen to raise, and a file of a few kilobytes may declare
billions of values. What such a file says beside its columns, such as pandas' own metadata, is not
looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from screening.errors import InputDataError, suggest_file

ALWAYS_READ: Final = 10_000_000
"""Values that a file may hold whatever its size."""

VALUES_PER_BYTE: Final = 100
"""Values beyond `ALWAYS_READ` that a file may hold for each of its bytes: repeated values take next
to no room, and a small file of them would fill the memory."""

UNREADABLE: Final = (
    OSError,
    pa.ArrowException,
    KeyError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What Arrow's and pandas' readers raise where a file is damaged."""


def read_names(path: Path) -> list[str]:
    """Read the names of a Parquet file's columns.

    Args:
        path: The file.

    Raises:
        InputDataError: The file cannot be read.
    """
    try:
        return [str(name) for name in pq.read_schema(path).names]
    except UNREADABLE as error:
        raise _describe(path, error) from error


def read_columns(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a Parquet file.

    Args:
        path: The file.
        columns: Names of columns that it has; None for all.

    Returns:
        The columns, in that order, without the file's metadata.

    Raises:
        InputDataError: The file cannot be read, has two columns of one of the names, or holds far
            more values than its size lets expect.
    """
    try:
        with pq.ParquetFile(path) as file:
            _check_size(path, file.metadata)
            names = file.schema_arrow.names
            for name in names if columns is None else columns:
                if names.count(name) > 1:
                    raise InputDataError(
                        f"{path} has {names.count(name)} columns {name!r}; rename or remove one"
                    )
            table = file.read(None if columns is None else list(columns))
            table.validate(full=True)
            chosen = table if columns is None else table.select(list(columns))
            return chosen.replace_schema_metadata(None)
    except InputDataError:
        raise
    except UNREADABLE as error:
        raise _describe(path, error) from error


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read columns of a Parquet file as `read_columns` does, into a frame.

    Args:
        path: The file.
        columns: Names of columns that it has; None for all.

    Raises:
        InputDataError: As for `read_columns`, or a column is of a type without a counterpart.
    """
    table = read_columns(path, columns)
    try:
        frame: pd.DataFrame = table.to_pandas()
    except UNREADABLE as error:
        raise _describe(path, error) from error
    return frame


def read_numbers(frame: pd.DataFrame, path: Path) -> NDArray[np.float64]:
    """Return the numbers of columns, NaN where there is none.

    Args:
        frame: n rows of c columns.
        path: The file that they came from, for the message.

    Returns:
        Shape (n, c).

    Raises:
        InputDataError: A column holds something else than numbers.
    """
    try:
        return frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError):
        for name in frame.columns:
            try:
                frame[name].to_numpy(dtype=np.float64)
            except (TypeError, ValueError) as error:
                raise InputDataError(f"{path}: column {name!r} does not hold numbers.") from error
        raise


def _check_size(path: Path, metadata: Any) -> None:
    """Refuse a file that declares far more values than its bytes can say apart."""
    most = ALWAYS_READ + VALUES_PER_BYTE * path.stat().st_size
    values = sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    if max(values, metadata.num_rows) > most:
        raise InputDataError(
            f"{path} declares {max(values, metadata.num_rows):,} values in "
            f"{path.stat().st_size:,} bytes, which no table of compounds does; write it anew"
        )


def _describe(path: Path, error: Exception) -> InputDataError:
    if isinstance(error, FileNotFoundError):
        return InputDataError(f"cannot read {path}: there is no such file{suggest_file(path)}")
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return InputDataError(f"cannot read {path} as Parquet: {reason}")
