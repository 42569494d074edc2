from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from screening.cluster.panels import build_best
from screening.enumerate import Shard
from screening.folder import BEST_COLUMNS, Receipt
from screening.settings import RankBy
from screening.status import CampaignStatus, Driver, State, StatusTracker, WorkerStatus
from screening.status_screen import (
    MOST_LINES,
    StatusScreen,
    describe_outcome,
    describe_progress,
    describe_state,
    format_memory,
    format_rate,
    format_seconds,
)

MakeReceipt = Callable[..., Receipt]


@pytest.fixture
def status(make_receipt: MakeReceipt) -> CampaignStatus:
    tracker = StatusTracker(
        campaign="first", counts={"B2": 60, "L1_0": 40}, shards=10, order=RankBy.P_STABLE
    )
    best = dict.fromkeys(BEST_COLUMNS) | {
        "prototype": "L1_0",
        "candidate": 3,
        "formula": "MgO",
        "formation_enthalpy_ev_per_atom": -1.5,
        "energy_above_hull_ev_per_atom": -0.25,
        "energy_above_hull_std_ev_per_atom": 0.125,
        "p_stable": 0.75,
    }
    removed = {"charge_neutral": {"removed": 5, "not_applicable": 0}}
    tracker.add(
        make_receipt(
            Shard(0, "B2", 0, 20),
            candidates=12,
            failed=2,
            dropped=3,
            below_hull=7,
            probable=6,
            removed=removed,
            best=(best,),
            seconds={"enumerate": 0.5, "irnet": 1.5},
            worker="tcp://10.0.0.1:40001",
            reasons={"no radius": 2},
        )
    )
    tracker.add_lost(4, "workers died", 10)
    tracker.set_workers([WorkerStatus(name="tcp://10.0.0.1:40001", host="a", memory_bytes=2**30)])
    tracker.set_driver(Driver(pid=321, host="node7", since="2026-01-01T00:00:00+00:00"))
    return tracker.snapshot().model_copy(
        update={"elapsed_seconds": 75.0, "candidates_per_second": 12.5, "seconds_left": 5.6}
    )


def draw(status: CampaignStatus, width: int = 100, **options: Any) -> str:
    console = Console(width=width, file=io.StringIO(), **options)
    console.print(StatusScreen(status, "runs/first"))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_lines_say_how_far_it_is_and_what_came_out(status: CampaignStatus) -> None:
    assert describe_progress(status) == "30 of 100 candidates, 12 candidates/s, 5.6 s left"
    assert describe_outcome(status) == (
        "13 scored, 12 failed, 1 shard quarantined, best so far MgO (L1_0, -0.250 eV/atom above "
        "hull, p stable 0.75)"
    )
    assert describe_state(status) == (
        "running: process 321 on node7, since 2026-01-01T00:00:00+00:00 (1 min 15 s)"
    )


def test_no_probability_is_shown_as_certainty(status: CampaignStatus) -> None:
    best = [row.model_copy(update={"p_stable": 0.999}) for row in status.best]
    sure = status.model_copy(update={"best": tuple(best)})
    assert describe_outcome(sure).endswith("hull, p stable >0.99)")
    assert ">0.99" in draw(sure)
    assert "1.00" not in draw(sure)
    assert "&gt;0.99" in build_best(sure)


def test_competing_phases_come_before_candidates(status: CampaignStatus) -> None:
    none = {"enumerated": 0, "competitor_tasks": 4, "competitor_tasks_done": 1}
    waiting = status.model_copy(update=none)
    assert describe_progress(waiting) == "competing phases: 1 of 4 tasks"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State.COMPLETE, "complete"),
        (State.INTERRUPTED, "interrupted; the same command goes on with it"),
        (State.STOPPED, "stopped before it was complete; the same command goes on with it"),
        (State.UNKNOWN, "unknown: a process holds the folder"),
    ],
)
def test_each_state_has_its_words(status: CampaignStatus, state: State, words: str) -> None:
    ended = status.model_copy(update={"state": state, "driver": None})
    assert describe_state(ended).startswith(words)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_screen_says_all_of_it(status: CampaignStatus, width: int) -> None:
    lines = draw(status, width).splitlines()
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert lines[0].split() == ["runs/first", "B2,", "L1_0"]
    for words in (
        ("enumerated", "30"),
        ("removed by conditions", "5"),
        ("featurized", "15"),
        ("scored", "13"),
        ("failed", "12"),
        ("scored, not kept", "3"),
        ("on the hull or below", "7"),
        ("p stable at least 0.5", "6"),
        ("enumerate", "0.5", "40"),
        ("irnet", "1.5", "10"),
        ("MgO", "L1_0", "-0.250 ± 0.125", "0.75", "-1.500"),
        ("cpu", "20", "10", "1.0 GiB"),
        ("no radius", "2"),
        ("4", "workers died"),
    ):
        assert any(all(word in line for word in words) for line in lines), (words, text)


def test_what_was_not_computed_is_not_counted(status: CampaignStatus) -> None:
    row = status.best[0].model_copy(update={"p_stable": None})
    told = draw(status.model_copy(update={"best": (row,)}))
    assert "on the hull or below" in told
    assert "p stable at least" not in told
    row = row.model_copy(update={"energy_above_hull_ev_per_atom": None})
    told = draw(status.model_copy(update={"best": (row,)}))
    assert "hull" not in told


def test_long_lists_are_cut_and_say_so(status: CampaignStatus) -> None:
    many = MOST_LINES + 3
    longer = {
        "reasons": {f"reason {number}": 1 for number in range(many)},
        "quarantined": {number: "died" for number in range(many)},
        "shards_quarantined": 2 * many,
    }
    told = draw(status.model_copy(update=longer))
    assert "and 3 more reasons" in told
    assert f"and {2 * many - MOST_LINES} more shards" in told
    assert f"reason {MOST_LINES}" not in told


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=30))
def test_no_name_steers_the_terminal_or_is_markup(name: str) -> None:
    tracker = StatusTracker(
        campaign=name, counts={name: 10}, shards=2, order=RankBy.FORMATION_ENTHALPY
    )
    tracker.add_lost(0, name, 5)
    tracker.set_workers([WorkerStatus(name=name, host=name, device=name)])
    tracker.set_driver(Driver(pid=1, host=name, since=name))
    told = draw(tracker.snapshot(), 200, color_system=None)
    assert all(each.isprintable() for line in told.split("\n") for each in line)


def test_brackets_in_names_are_text(status: CampaignStatus) -> None:
    name = "[red]B2[/red]"
    assert f"first  {name}" in draw(status.model_copy(update={"prototypes": (name,)}))


def test_an_empty_campaign_has_a_screen() -> None:
    tracker = StatusTracker(
        campaign="x", counts={"B2": 0}, shards=0, order=RankBy.FORMATION_ENTHALPY
    )
    assert "0 of 0 candidates" in draw(tracker.snapshot(State.COMPLETE), force_terminal=True)


def test_numbers_are_written_for_people() -> None:
    assert [format_seconds(each) for each in (9.96, 59.6, 3_599.6, 86_399.9)] == [
        "10 s", "1 min 00 s", "1 h 00 min", "1 d 00 h",
    ]  # fmt: skip
    assert format_rate(3.14159) == "3.1 candidates/s"
    assert [format_memory(each) for each in (2**20, 3 * 2**30)] == ["1 MiB", "3.0 GiB"]
