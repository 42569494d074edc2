"""Damaged files end in a result or in an error with an exit code: no traceback, crash or hang.

SCREENING_FUZZ_INPUTS=100000 pytest tests/fuzz -s reads more of them and prints what came of each
kind; the first cases are always the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.process import Outcome, run_cases
from tests.fuzz.readers import READERS

SHARES = sum(share for _, share in READERS.values())


def test_the_shares_of_the_readers_make_up_ten_thousand() -> None:
    assert SHARES == 10_000


@pytest.mark.parametrize("reader", READERS)
def test_every_damaged_file_is_read_or_refused(
    reader: str, seeds: Path, tmp_path: Path, fuzz_inputs: int
) -> None:
    count = round(READERS[reader][1] * fuzz_inputs / SHARES)
    result = run_cases(reader, seeds, tmp_path, 0, count)
    print(_describe(reader, result))
    assert not result.faults, "\n\n".join(map(str, result.faults[:5]))
    assert result.inputs == count
    assert len(result.outcomes) > 1, "damage that changes nothing, or that nothing survives"


def _describe(reader: str, result: Outcome) -> str:
    counts = ", ".join(f"{count:,} {name}" for name, count in result.outcomes.most_common())
    return f"{reader}: {result.inputs:,} inputs: {counts}; the slowest {result.slowest:.1f} s"
