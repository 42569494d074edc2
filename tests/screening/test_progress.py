from __future__ import annotations

from collections.abc import Callable

import pytest

from prototypes import element_pool
from screening.enumerate import Shard
from screening.folder import Receipt
from screening.progress import CampaignProgress, describe_pools

MakeReceipt = Callable[..., Receipt]


def test_the_default_pool_says_what_it_leaves_out() -> None:
    (line,) = describe_pools(dict.fromkeys("AB", element_pool("default")))
    assert line.startswith("elements on A, B: 76 (default pool")
    assert "noble gases, Tc, Pm and everything beyond Bi" in line


def test_pools_are_named_by_role() -> None:
    lines = describe_pools({"A": element_pool("all89"), "X": element_pool("O,S")})
    assert lines[0].startswith("elements on A: 89 (H He Li")
    assert lines[1] == "elements on X: 2 (O S)"


def make_shard(number: int) -> Shard:
    return Shard(number, "B2", 40 * number, 40 * (number + 1))


def test_progress_counts_only_what_this_run_computes(
    capsys: pytest.CaptureFixture[str], make_receipt: MakeReceipt
) -> None:
    gone = {"charge_neutral": {"removed": 30, "not_applicable": 0}}
    with CampaignProgress() as progress:
        progress.begin({"B2": 100}, {"A": (3, 11)}, done=60)
        progress.watch_at("http://127.0.0.1:8787/status")
        progress._started -= 4.0
        progress.advance(make_receipt(make_shard(0), removed=gone))
        progress.advance(make_receipt(make_shard(1), candidates=0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # a shard without candidates is no news
    assert lines[0] == "100 candidates: B2 100"
    assert lines[2] == "going on: 60 of 100 candidates are finished already"
    assert lines[3] == "dashboard: http://127.0.0.1:8787/status"
    assert lines[4] == "100 of 100 candidates, 10 candidates/s, 0 s left"


def test_competing_phases_are_counted_before_candidates(
    capsys: pytest.CaptureFixture[str], make_receipt: MakeReceipt
) -> None:
    with CampaignProgress() as progress:
        progress.begin({"B2": 10}, {"A": (3, 11)}, done=0)
        progress.begin_competitors({"rocksalt": 1000, "fluorite": 234}, left=2, tasks=3)
        progress._started -= 100.0
        progress.advance_competitors()
        progress.advance_competitors()
        progress._started -= 2.0
        progress.advance(make_receipt(make_shard(0)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "10 candidates: B2 10"
    assert lines[2] == "competing phases to predict first: 1,234 of 2 structure types"
    assert lines[3] == "competing phases: 3 of 3 tasks"
    assert lines[4] == "10 of 10 candidates, 5 candidates/s, 0 s left"
