from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

import screening
from prototypes import element_pool
from screening.enumerate import Shard
from screening.folder import BEST_COLUMNS, Receipt
from screening.progress import CampaignProgress, describe_pools
from screening.settings import RankBy
from screening.status import StatusTracker

MakeReceipt = Callable[..., Receipt]


def test_the_default_pool_says_what_it_leaves_out() -> None:
    (line,) = describe_pools(dict.fromkeys("AB", element_pool("default")))
    assert line.startswith("elements on A, B: 76 (default pool")
    assert "noble gases, Tc, Pm and everything beyond Bi" in line


def test_pools_are_named_by_role() -> None:
    lines = describe_pools({"A": element_pool("all89"), "X": element_pool("O,S")})
    assert lines[0].startswith("elements on A: 89 (H He Li")
    assert lines[1] == "elements on X: 2 (O S)"


def open_tracker(candidates: int = 100, shards: int = 2) -> StatusTracker:
    return StatusTracker(
        campaign="first", counts={"B2": candidates}, shards=shards, order=RankBy.P_STABLE
    )


def make_shard(number: int, prototype: str = "B2") -> Shard:
    return Shard(number, prototype, 40 * number, 40 * (number + 1))


def test_the_last_shard_gets_a_line_however_short_the_campaign(
    capsys: pytest.CaptureFixture[str], make_receipt: MakeReceipt
) -> None:
    gone = {"charge_neutral": {"removed": 40, "not_applicable": 0}}
    best = dict.fromkeys(BEST_COLUMNS) | {"prototype": "B2", "candidate": 3, "formula": "MgO"}
    tracker = open_tracker()
    with CampaignProgress() as progress:
        progress.begin({"B2": 100}, {"A": (3, 11)}, done=50)
        progress.watch_at("http://127.0.0.1:8787/status")
        for number in range(2):
            tracker.add(make_receipt(make_shard(number), removed=gone, best=(best,)))
            progress.advance(tracker.snapshot())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # none for the first shard, which came at once
    assert lines[0] == "100 candidates: B2 100"
    assert lines[2] == "going on: 50 of 100 candidates are finished already"
    assert lines[3] == "dashboard: http://127.0.0.1:8787/status"
    assert lines[4].startswith("100 of 100 candidates, ")
    assert lines[4].endswith("; 20 scored, best so far MgO (B2)")


def test_a_single_candidate_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with CampaignProgress() as progress:
        progress.begin({"B2": 1}, {"A": (3, 11)}, done=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 candidate: B2 1"
    assert lines[2] == "going on: 1 of 1 candidate is finished already"


def test_failures_and_lost_shards_are_told(
    capsys: pytest.CaptureFixture[str], make_receipt: MakeReceipt
) -> None:
    tracker = open_tracker(candidates=30)
    with CampaignProgress() as progress:
        progress.begin({"B2": 30}, {"A": (3, 11)}, done=0)
        tracker.add(make_receipt(make_shard(0), failed=2, reasons={"no radius": 2}))
        progress.advance(tracker.snapshot())
        tracker.add_lost(1, "workers died", 20)
        progress.lose(make_shard(1), "workers died")
        progress.advance(tracker.snapshot())
    warning, last = capsys.readouterr().err.splitlines()[-2:]
    assert warning.startswith("shard 1 (B2) is set aside")
    assert warning.endswith("workers died")
    assert "22 failed, 1 shard quarantined" in last


def test_quiet_leaves_what_the_user_must_know(
    capsys: pytest.CaptureFixture[str], make_receipt: MakeReceipt
) -> None:
    tracker = open_tracker(candidates=10, shards=1)
    with CampaignProgress(quiet=True) as progress:
        progress.begin({"B2": 10}, {"A": (3, 11)}, done=0)
        progress.watch_at("http://127.0.0.1:8787/status")
        progress.begin_competitors({"rocksalt": 10}, left=1, tasks=1)
        progress.advance_competitors()
        progress.note("taking the folder over")
        progress.lose(make_shard(0), "workers died")
        tracker.add(make_receipt(make_shard(0)))
        progress.advance(tracker.snapshot())
    told = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["taking", "shard"]


def test_competing_phases_are_counted_before_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    with CampaignProgress() as progress:
        progress.begin({"B2": 10}, {"A": (3, 11)}, done=0)
        progress.begin_competitors({"rocksalt": 1000, "fluorite": 234}, left=2, tasks=3)
        progress.advance_competitors()
        progress.advance_competitors()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "10 candidates: B2 10"
    assert lines[2] == "competing phases to predict first: 1,234 of 2 structure types"
    assert lines[3:] == ["competing phases: 3 of 3 tasks"]


def test_names_neither_steer_the_terminal_nor_are_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "[red]B2\x1b[31m\x9b31m\u202e"
    with CampaignProgress() as progress:
        progress.begin({name: 10}, {}, done=0)
        progress.lose(make_shard(0, name), "[bold]died\x07")
    told = capsys.readouterr().err
    assert "[red]B2" in told
    assert "[bold]died" in told
    assert not any(each in told for each in "\x1b\x9b\x07\u202e")


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        from screening.progress import CampaignProgress
        from screening.settings import RankBy
        from screening.status import StatusTracker

        tracker = StatusTracker(
            campaign="x", counts={"[red]B2": 100}, shards=2, order=RankBy.P_STABLE
        )
        with CampaignProgress() as progress:
            progress.begin({"[red]B2": 100}, {}, done=0)
            tracker.add_lost(0, "died", 40)
            progress.advance(tracker.snapshot())
        """
    )
    screen = run_on_terminal([sys.executable, "-c", code])
    assert "100 candidates: [red]B2 100" in screen
    assert "━" in screen
    assert "40 of 100 candidates" in screen
    assert "40 failed, 1 shard quarantined" in screen


def run_on_terminal(command: list[str]) -> str:
    """Run a command on a pseudo-terminal and return all that it wrote."""
    ours, theirs = pty.openpty()
    root = str(Path(screening.__file__).parent.parent)
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": root}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        written = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 65_536)
            except OSError:  # Linux says so when nobody has the terminal open any more
                break
            if not part:
                break
            written += part
    os.close(ours)
    assert process.returncode == 0, written.decode()
    return written.decode()
