"""Candidates whose computation raises an error, found by halving, so that the others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from screening.local_tasks import describe_error, is_deliberate

MOST_POISONOUS: Final = 16
"""Candidates that are looked for; where more raise an error, something else is wrong."""

Result = TypeVar("Result")

Rows = NDArray[np.int64]


def compute_without_poison(
    compute: Callable[[Rows], Result], count: int
) -> tuple[Result, Rows, dict[int, str]]:
    """Compute something of rows together, but for those of which it cannot be computed.

    If it raises an error, the rows are halved again and again until those that raise it stand
    alone. The result is always computed of all others at once, because numbers may depend in their
    last bits on what is computed together.

    Args:
        compute: Computes the result of some rows; called with ascending numbers.
        count: Number of rows.

    Returns:
        The result, the rows that it is of, and the error of each other row.

    Raises:
        MemoryError: As raised by `compute`; a GPU's too. A smaller part proves nothing then.
        ScreeningError: As raised by `compute`, as is any other error that has an exit code.
        Exception: The error of `compute` where more than `MOST_POISONOUS` rows raise one, or where
            the others still do together.
    """
    rows = np.arange(count)
    try:
        return compute(rows), rows, {}
    except Exception as error:
        if not _is_of_rows(error):
            raise
    reasons = _find_poison(compute, rows)
    healthy = np.setdiff1d(rows, list(reasons))
    return compute(healthy), healthy, reasons


def _find_poison(compute: Callable[[Rows], object], rows: Rows) -> dict[int, str]:
    reasons: dict[int, str] = {}
    parts = [part for part in np.array_split(rows, 2) if len(part)]
    while parts:
        part = parts.pop(0)
        try:
            compute(part)
        except Exception as error:
            if not _is_of_rows(error):
                raise
            if len(part) > 1:
                parts[:0] = np.array_split(part, 2)
                continue
            reasons[int(part[0])] = describe_error(error)
            if len(reasons) > MOST_POISONOUS:
                raise
    return reasons


def _is_of_rows(error: Exception) -> bool:
    """Whether an error may come from single rows."""
    from torch import OutOfMemoryError

    return not (is_deliberate(error) or isinstance(error, (MemoryError, OutOfMemoryError)))
