from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.columns import RANKING
from screening.enumerate import Shard
from screening.errors import InputDataError
from screening.folder import BEST, BEST_COLUMNS, STD_EDGES, Receipt, RunFolder
from screening.lock import LOCK_NAME, Holder
from screening.rank import find_order, rank_again
from screening.settings import RankBy
from screening.status import (
    MOST_QUARANTINED,
    MOST_REASONS,
    MOST_WORKERS,
    OTHER_REASONS,
    STATUS_NAME,
    BestRow,
    CampaignStatus,
    Driver,
    StageStatus,
    State,
    StatusTracker,
    StatusWriter,
    WorkerStatus,
    follow_status,
    read_status,
)

MakeReceipt = Callable[..., Receipt]

counts = st.integers(0, 2**53)
amounts = st.floats(0, allow_nan=False, allow_infinity=False)
energies = st.none() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=8)
parts: dict[str, st.SearchStrategy[Any]] = {
    "state": st.sampled_from(State),
    "ranked_by": st.sampled_from(RankBy),
    "campaign": texts,
    "updated": texts,
    "prototypes": st.lists(texts, max_size=2).map(tuple),
    "quarantined": st.dictionaries(st.integers(0, 10**6), texts, max_size=2),
    "reasons": st.dictionaries(texts, counts, max_size=2),
    "stages": st.dictionaries(
        texts,
        st.builds(
            StageStatus,
            worker_seconds=amounts,
            candidates_per_worker_second=st.none() | amounts,
        ),
        max_size=2,
    ),
    "workers": st.lists(
        st.builds(
            WorkerStatus,
            name=texts,
            host=texts,
            device=st.none() | texts,
            candidates=counts,
            candidates_per_second=st.none() | amounts,
            memory_bytes=st.none() | counts,
        ),
        max_size=2,
    ).map(tuple),
    "best": st.lists(
        st.builds(
            BestRow,
            prototype=texts,
            candidate=counts,
            formula=texts,
            formation_enthalpy_ev_per_atom=energies,
            energy_above_hull_ev_per_atom=energies,
            energy_above_hull_std_ev_per_atom=energies,
            p_stable=energies,
        ),
        max_size=2,
    ).map(tuple),
    "std_histogram": st.lists(counts, max_size=3).map(tuple),
    "driver": st.none() | st.builds(Driver, pid=counts, host=texts, since=texts),
    **dict.fromkeys(
        ("elapsed_seconds", "candidates_per_second", "seconds_left"), st.none() | amounts
    ),
}
others = CampaignStatus.model_fields.keys() - parts.keys() - {"format"}
statuses = st.builds(CampaignStatus, **parts, **dict.fromkeys(others, counts))


@settings(max_examples=60, deadline=None)
@given(status=statuses)
def test_a_status_survives_json(status: CampaignStatus) -> None:
    raw = status.to_json()
    assert CampaignStatus.from_json(raw) == status
    assert CampaignStatus.from_json(json.dumps(raw, allow_nan=False)) == status


def make_status() -> CampaignStatus:
    return open_tracker().snapshot()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"state": "asleep"},
        {"total": -1},
        {"total": "100"},
        {"candidates_per_second": float("nan")},
        {"seconds_left": -0.5},
        {"reasons": {"x": 1.5}},
        {"surprise": 1},
    ],
)
def test_a_status_that_is_none_is_refused(change: dict[str, Any]) -> None:
    raw = make_status().to_json()
    CampaignStatus.from_json(raw)
    with pytest.raises(InputDataError):
        CampaignStatus.from_json(raw | change)


def test_every_key_of_a_status_is_needed() -> None:
    raw = make_status().to_json()
    for key in raw.keys() - {"format"}:
        with pytest.raises(InputDataError):
            CampaignStatus.from_json({name: value for name, value in raw.items() if name != key})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(raw=st.dictionaries(st.sampled_from(list(CampaignStatus.model_fields)), json_values))
def test_no_nonsense_is_taken_for_a_status(raw: dict[str, Any]) -> None:
    with pytest.raises(InputDataError):
        CampaignStatus.from_json(raw)


@settings(max_examples=60, deadline=None)
@given(text=st.binary(max_size=40) | st.text(max_size=40))
def test_no_garbage_is_taken_for_a_status(text: str | bytes) -> None:
    with pytest.raises(InputDataError):
        CampaignStatus.from_json(text)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def open_tracker(
    counts: dict[str, int] | None = None,
    shards: int = 10,
    order: RankBy = RankBy.P_STABLE,
    clock: Callable[[], float] = time.monotonic,
) -> StatusTracker:
    return StatusTracker(
        campaign="first", counts=counts or {"B2": 100}, shards=shards, order=order, clock=clock
    )


def make_shard(number: int, prototype: str = "B2") -> Shard:
    return Shard(number, prototype, 10 * number, 10 * (number + 1))


def test_receipts_add_up(make_receipt: MakeReceipt) -> None:
    tracker = open_tracker()
    first = make_receipt(
        make_shard(0),
        candidates=6,
        failed=2,
        dropped=1,
        below_hull=3,
        probable=4,
        reasons={"no radius": 2},
        removed={"charge_neutral": {"removed": 3, "not_applicable": 1}},
        seconds={"enumerate": 1.0, "irnet": 4.0},
        std_histogram=(1, 2) + (0,) * (len(STD_EDGES) - 2),
        worker="1",
    )
    second = make_receipt(
        make_shard(1),
        failed=1,
        reasons={"no radius": 1},
        seconds={"enumerate": 1.0, "irnet": 0.0},
        std_histogram=(5,) + (0,) * (len(STD_EDGES) - 1),
        worker="10",
        device="cuda",
    )
    tracker.begin([first])
    tracker.add(second)
    tracker.add(second)  # a task that ran twice
    tracker.add_lost(2, "workers died", 7)
    tracker.add_lost(1, "was done", 9)
    tracker.add_lost(3, "had no candidates", 0)
    tracker.set_workers(
        [
            WorkerStatus(name="2", host="10.0.0.2", memory_bytes=5),
            WorkerStatus(name="10", host="10.0.0.3", memory_bytes=6),
        ]
    )
    status = tracker.snapshot()
    assert (status.total, status.enumerated, status.removed, status.dropped) == (100, 27, 3, 1)
    assert (status.featurized, status.scored, status.failed) == (17, 14, 10)
    assert (status.below_hull, status.probable) == (3, 4)
    assert (status.shards, status.shards_done, status.shards_quarantined) == (10, 2, 2)
    assert status.quarantined == {2: "workers died", 3: "had no candidates"}
    assert status.reasons == {"workers died": 7, "no radius": 3}
    assert status.std_histogram[:3] == (6, 2, 0)
    assert status.stages["enumerate"] == StageStatus(
        worker_seconds=2.0, candidates_per_worker_second=10.0
    )
    assert status.stages["irnet"].candidates_per_worker_second == 17 / 4
    assert status.workers == (
        WorkerStatus(
            name="1", host="host", device="cpu", candidates=10, candidates_per_second=2.0
        ),
        WorkerStatus(name="2", host="10.0.0.2", memory_bytes=5),
        WorkerStatus(
            name="10", host="host", device="cuda", candidates=10, candidates_per_second=10.0,
            memory_bytes=6,
        ),
    )  # fmt: skip
    assert status.workers_seen == 3


def test_what_is_listed_is_bounded_and_all_is_counted(make_receipt: MakeReceipt) -> None:
    many = 3 * max(MOST_QUARANTINED, MOST_REASONS, MOST_WORKERS)
    tracker = open_tracker(shards=2 * many)
    for number in range(many):
        tracker.add_lost(number, f"reason {number}", 1)
        tracker.add(make_receipt(make_shard(many + number), worker=f"{number}"))
    tracker.set_workers([WorkerStatus(name=f"{many - 1}", host="here", memory_bytes=1)])
    status = tracker.snapshot()
    assert status.shards_quarantined == status.workers_seen == many
    assert sum(status.reasons.values()) == status.failed == many
    assert list(status.quarantined) == list(range(MOST_QUARANTINED))
    assert len(status.reasons) == MOST_REASONS + 1
    assert status.reasons[OTHER_REASONS] == many - MOST_REASONS
    assert len(status.workers) == MOST_WORKERS
    assert status.workers[-1].name == f"{many - 1}"  # connected, so before those that are gone


def test_a_snapshot_does_not_grow_with_the_shards(make_receipt: MakeReceipt) -> None:
    rows = tuple(
        dict.fromkeys(BEST_COLUMNS, 0) | {"prototype": "B2", "formula": "MgO"} for _ in range(BEST)
    )
    sizes = []
    for shards in (100, 1_000):
        tracker = open_tracker(shards=shards)
        for number in range(shards):
            tracker.add(make_receipt(make_shard(number), best=rows, seconds={"irnet": 1.0}))
        sizes.append(len(json.dumps(tracker.snapshot().to_json())))
    assert sizes[1] < sizes[0] + 100  # longer numbers


def test_a_model_that_predicts_no_numbers_ends_no_status(make_receipt: MakeReceipt) -> None:
    row = dict.fromkeys(BEST_COLUMNS) | {"prototype": "B2", "candidate": 1, "formula": "MgO"}
    broken = row | {"formation_enthalpy_ev_per_atom": float("-inf"), "p_stable": float("nan")}
    fine = row | {"candidate": 2, "p_stable": 0.1}
    tracker = open_tracker()
    tracker.add(make_receipt(make_shard(0), best=(broken, fine)))
    best = tracker.snapshot().best
    assert [each.candidate for each in best] == [2, 1]
    assert (best[1].p_stable, best[1].formation_enthalpy_ev_per_atom) == (None, None)


prototypes = ("b", "a")
numbers = st.sampled_from([-0.2, 0.0, 0.1])


def draw_rows(hull: bool, calibrated: bool) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Rows of a campaign, which has a hull or not, and a model that is calibrated or not."""
    columns = {
        "prototype": st.sampled_from(prototypes),
        "candidate": st.integers(0, 99),
        "formation_enthalpy_ev_per_atom": st.sampled_from([-1.0, -0.3, 0.1]),
    }
    if hull:
        columns["energy_above_hull_ev_per_atom"] = numbers
    if hull and calibrated:
        columns["energy_above_hull_std_ev_per_atom"] = st.sampled_from([0.1, 0.7000000001, None])
        columns["p_stable"] = st.sampled_from([0.0, 0.5, 1.0, None])
    return st.lists(
        st.fixed_dictionaries(columns),
        min_size=1,
        max_size=40,
        unique_by=lambda row: (row["prototype"], row["candidate"]),
    )


def make_ranking(drawn: Sequence[dict[str, Any]]) -> pa.Table:
    zero = {"string": "", "bool": False, "int64": 0, "double": 0.0}
    columns = {column.name: column for column in RANKING.columns if "*" not in column.name}
    blank = {
        name: None if column.nullable else zero[column.dtype] for name, column in columns.items()
    }
    schema = pa.schema({name: pa.type_for_alias(each.dtype) for name, each in columns.items()})
    return pa.Table.from_pylist([blank | row for row in drawn], schema=schema)


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.builds(draw_rows, st.booleans(), st.booleans()).flatmap(lambda rows: rows),
    order=st.sampled_from(RankBy),
    random=st.randoms(use_true_random=False),
)
def test_the_best_rows_are_those_of_the_ranking(
    drawn: list[dict[str, Any]], order: RankBy, random: Any
) -> None:
    """However the rows are dealt to shards, and in whatever order these come."""
    ranked = rank_again(make_ranking(drawn), prototypes, order).select(list(BEST_COLUMNS))
    place = {
        (row["prototype"], row["candidate"]): number
        for number, row in enumerate(ranked.to_pylist())
    }
    shards: dict[int, list[dict[str, Any]]] = {}
    for row in ranked.to_pylist():
        shards.setdefault(random.randrange(4), []).append(row)
    tracker = open_tracker({"b": 100, "a": 100}, order=order)
    for number in random.sample(sorted(shards), len(shards)):
        own = sorted(shards[number], key=lambda row: place[row["prototype"], row["candidate"]])
        tracker.add(make_blank_receipt(make_shard(number), best=tuple(own[:BEST])))
    status = tracker.snapshot()
    found = [row.model_dump() for row in status.best]
    assert status.ranked_by is find_order(ranked, order)
    assert found == ranked.slice(0, BEST).to_pylist()


def make_blank_receipt(shard: Shard, **changes: Any) -> Receipt:
    blank = Receipt(
        shard,
        campaign="",
        candidates=10,
        failed=0,
        scored=10,
        dropped=0,
        below_hull=0,
        probable=0,
        std_histogram=(),
        reasons={},
        best=(),
        removed={},
        seconds={},
        sha256="",
        device="cpu",
        precision="fp32",
        threads=1,
        host="host",
        worker="driver",
        finished="",
    )
    return replace(blank, **changes)


def test_the_rate_is_that_of_the_last_minute() -> None:
    clock = Clock()
    tracker = open_tracker({"B2": 10_000}, shards=1_000, clock=clock)
    tracker.begin()
    assert tracker.snapshot().candidates_per_second is None
    assert tracker.snapshot().seconds_left is None
    clock.now += 500.0  # waiting for workers
    for number in range(200):
        clock.now += 1.0 if number < 100 else 0.5
        tracker.add(make_blank_receipt(make_shard(number), seconds={"irnet": 1.0}))
        if number == 50:
            assert tracker.snapshot().candidates_per_second == pytest.approx(10.0)
    status = tracker.snapshot()
    assert status.elapsed_seconds == pytest.approx(650.0)
    assert status.candidates_per_second == pytest.approx(20.0, rel=0.2)  # twice as fast by now
    assert status.seconds_left == pytest.approx(400.0, rel=0.2)
    clock.now += 1_000.0  # and then nothing comes any more
    assert tracker.snapshot().candidates_per_second == pytest.approx(1.0, rel=0.2)


def test_shards_that_take_an_hour_have_a_rate() -> None:
    clock = Clock()
    tracker = open_tracker(clock=clock)
    tracker.begin()
    for number in range(3):
        clock.now += 3_600.0
        tracker.add(make_blank_receipt(make_shard(number), seconds={"irnet": 3_500.0}))
    status = tracker.snapshot()
    assert status.candidates_per_second == pytest.approx(30 / (3 * 3_600), rel=0.02)
    assert status.seconds_left == pytest.approx(7 * 3_600, rel=0.02)


def test_an_earlier_run_does_not_speed_up_this_one() -> None:
    clock = Clock()
    tracker = open_tracker(clock=clock)
    tracker.begin([make_blank_receipt(make_shard(number)) for number in range(5)])
    clock.now += 10.0
    tracker.add(make_blank_receipt(make_shard(5), seconds={"irnet": 10.0}))
    assert tracker.snapshot().candidates_per_second == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1e-9, 0.1, 5.0, 1e6]),
            st.sampled_from([0, 1, 10**12]),
            st.sampled_from([0.0, 1e-9, 3.0, 1e9]),
        ),
        max_size=30,
    )
)
def test_rates_are_numbers_whatever_comes(steps: list[tuple[float, int, float]]) -> None:
    """The model refuses NaN, infinity and negative numbers: there must be none to refuse."""
    clock = Clock()
    tracker = open_tracker(clock=clock)
    tracker.begin()
    for number, (wait, candidates, busy) in enumerate(steps):
        clock.now += wait
        seconds = {"irnet": busy}
        tracker.add(make_blank_receipt(make_shard(number), candidates=candidates, seconds=seconds))
        status = tracker.snapshot()
        assert CampaignStatus.from_json(status.to_json()) == status


def test_a_wall_clock_that_jumps_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    tracker = open_tracker(clock=clock)
    tracker.begin()
    monkeypatch.setattr(time, "time", lambda: -1e9)
    clock.now += 10.0
    tracker.add(make_blank_receipt(make_shard(0), seconds={"irnet": 10.0}))
    status = tracker.snapshot()
    assert (status.elapsed_seconds, status.candidates_per_second) == (10.0, 1.0)


def write_campaign(path: Path, **manifest: Any) -> RunFolder:
    """Make the folder of a campaign of 10 shards that nobody runs."""
    folder = RunFolder(path)
    (path / "shards").mkdir(parents=True)
    folder.write_manifest(
        {
            "campaign": {"prototypes": {"B2": "hash"}},
            "counts": {"B2": 100, "total": 100},
            "rank_by": "p_stable",
            "ranked_by": "energy_above_hull",
            "grid": {"shard_size": 10, "index_counts": {"B2": 100}},
            "runs": [],
        }
        | manifest
    )
    return folder


@contextmanager
def locked_by(folder: RunFolder, **changes: Any) -> Iterator[Holder]:
    """Put a lock into a folder: that of this process, or a changed one."""
    own = Holder(os.getpid(), platform.node(), "2026-01-01T00:00:00+00:00", None)
    holder = replace(own, **changes)
    path = folder.path / LOCK_NAME
    path.write_text(json.dumps(asdict(holder)))
    yield holder
    path.unlink()


def receipts_of(folder: RunFolder) -> list[Receipt]:
    """Receipts as a run would leave them, written."""
    best = dict.fromkeys(BEST_COLUMNS) | {"prototype": "B2", "formula": "MgO"}
    receipts = [
        make_blank_receipt(
            shard,
            campaign=folder.campaign,
            failed=1,
            scored=9,
            reasons={"no radius": 1},
            seconds={"enumerate": 0.1, "irnet": 0.5 + shard.number},
            best=(best | {"candidate": shard.start, "energy_above_hull_ev_per_atom": 0.5},),
            std_histogram=(1, shard.number),
            worker=f"{shard.number % 2}",
        )
        for shard in folder.shards[:4]
    ]
    for receipt in receipts:
        folder.write_receipt(receipt)
    return receipts


OF_THE_RUN = {
    "state",
    "driver",
    "updated",
    "elapsed_seconds",
    "candidates_per_second",
    "seconds_left",
}
"""What receipts do not say."""


def test_a_folder_says_the_same_as_the_driver_did(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path / "first")
    tracker = open_tracker(order=RankBy.ENERGY_ABOVE_HULL)
    for receipt in reversed(receipts_of(folder)):
        tracker.add(receipt)
    tracker.add_lost(7, "workers died", 10)
    folder.quarantine_path(folder.shards[7]).write_text(
        json.dumps({"reason": "workers died", "attempts": 3, "candidates": 10})
    )
    found, told = read_status(folder), tracker.snapshot(State.STOPPED)
    assert found.shards_done == 4
    assert found.to_json().keys() == told.to_json().keys()
    for key in told.to_json().keys() - OF_THE_RUN:
        assert getattr(found, key) == getattr(told, key), key
    assert list(found.stages) == ["enumerate", "irnet"]
    assert (found.candidates_per_second, found.seconds_left) == (None, None)


@pytest.mark.parametrize("state", [State.COMPLETE, State.INTERRUPTED])
def test_the_manifest_says_how_a_campaign_ended(tmp_path: Path, state: State) -> None:
    folder = write_campaign(tmp_path, state=str(state), runs=[{"wall_seconds": 12.5}])
    status = read_status(folder)
    assert (status.state, status.driver, status.elapsed_seconds) == (state, None, 12.5)


def test_a_driver_that_is_gone_is_not_running(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    folder = write_campaign(tmp_path)
    assert read_status(folder).state is State.STOPPED
    with locked_by(folder, pid=process.pid):
        (folder.path / STATUS_NAME).write_text(json.dumps(make_status().to_json()))
        status = read_status(folder)
    assert (status.state, status.driver) == (State.STOPPED, None)


def test_what_the_driver_tells_is_taken_while_it_runs(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path)
    receipts = receipts_of(folder)
    tracker = open_tracker()
    with locked_by(folder) as holder:
        assert read_status(folder).shards_done == 4  # it told nothing yet
        with StatusWriter(folder.path, tracker, pytest.fail):
            status = read_status(folder)
            assert (status.state, status.shards_done) == (State.RUNNING, 0)
            assert status.driver == Driver(
                pid=os.getpid(), host=platform.node(), since=holder.started
            )
        tracker.add(receipts[0])
        assert not (folder.path / STATUS_NAME).exists()
    with locked_by(folder, started="2027-01-01T00:00:00+00:00"):
        (folder.path / STATUS_NAME).write_text(json.dumps(status.to_json()))
        assert read_status(folder).shards_done == 4  # that was an earlier run


def test_a_damaged_status_is_no_status(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path)
    receipts_of(folder)
    with locked_by(folder):
        (folder.path / STATUS_NAME).write_text('{"format": 1, "state"')
        assert read_status(folder).shards_done == 4


def test_a_lock_that_cannot_be_read_leaves_the_state_open(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path)
    (folder.path / LOCK_NAME).write_text("{")
    assert read_status(folder).state is State.UNKNOWN


@pytest.mark.parametrize(
    "field", ["scored", "removed", "seconds", "best", "std_histogram", "worker"]
)
def test_receipts_of_a_stranger_are_one_clear_error(
    tmp_path: Path, make_receipt: MakeReceipt, field: str
) -> None:
    folder = write_campaign(tmp_path)
    values: list[Any] = [None, "x", [1], -5, {"a": "b"}, [{}]]
    for value in values:
        changes = {field: value}
        folder.write_receipt(make_receipt(folder.shards[0], campaign=folder.campaign, **changes))
        try:
            status = read_status(RunFolder(tmp_path))
        except InputDataError as error:
            assert "holds what no run of this program wrote" in str(error)
        else:
            assert CampaignStatus.from_json(status.to_json()) == status


@pytest.mark.parametrize(
    "changes", [{"pid": "1"}, {"pid": -1}, {"pid": 2**70}, {"host": 5}, {"started": None}]
)
def test_a_lock_of_a_stranger_leaves_the_state_open(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_campaign(tmp_path)
    with locked_by(folder, **changes):
        assert read_status(folder).state is State.UNKNOWN


def test_a_driver_elsewhere_runs_as_long_as_it_writes(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path)
    tracker = open_tracker()
    with locked_by(folder, host="elsewhere"):
        seen = []
        with StatusWriter(folder.path, tracker, pytest.fail, seconds=0.01):
            assert read_status(folder).state is State.UNKNOWN
            for status in follow_status(folder.path, seconds=0.05):
                seen.append(status.state)
                if status.state is State.RUNNING:
                    break
        assert seen[0] is State.UNKNOWN
        (folder.path / STATUS_NAME).write_text(json.dumps(status.to_json()))
        silent = [s.state for s in follow_status(folder.path, seconds=0.01, silence=0.1)]
    assert set(silent) == {State.UNKNOWN}
    ended = [s.state for s in follow_status(folder.path, seconds=0.01)]
    assert ended == [State.STOPPED]


def test_watching_ends_with_the_campaign(tmp_path: Path) -> None:
    folder = write_campaign(tmp_path)
    seen = []
    with locked_by(folder):
        for status in follow_status(folder.path, seconds=0.01):
            seen.append(status.state)
            break
    folder.write_manifest(folder.manifest | {"state": "complete"})
    seen += [status.state for status in follow_status(folder.path, seconds=0.01)]
    assert seen == [State.RUNNING, State.COMPLETE]


def test_readers_see_whole_statuses_only(tmp_path: Path) -> None:
    tracker = open_tracker()
    path = tmp_path / STATUS_NAME
    elapsed: set[float | None] = set()
    with StatusWriter(tmp_path, tracker, pytest.fail, seconds=0.0005) as writer:
        while len(elapsed) < 10:
            elapsed.add(CampaignStatus.from_json(path.read_bytes()).elapsed_seconds)
        writer.end(State.COMPLETE)
    assert list(tmp_path.iterdir()) == []


def test_listeners_get_snapshots_and_always_the_last(tmp_path: Path) -> None:
    tracker = open_tracker()
    heard: list[CampaignStatus] = []
    first = threading.Event()

    def listen(status: CampaignStatus) -> None:
        heard.append(status)
        first.set()

    with StatusWriter(tmp_path, tracker, pytest.fail, seconds=0.01) as writer:
        with writer.telling(listen):
            assert first.wait(60)
            tracker.add(make_blank_receipt(make_shard(0)))
            writer.end(State.INTERRUPTED)
        told = len(heard)
    assert heard[0].state is State.RUNNING
    assert heard[-1].state is State.INTERRUPTED
    assert heard[-1].shards_done == 1
    assert len(heard) == told  # nothing after the last


def test_a_status_that_cannot_be_written_is_noted_once(tmp_path: Path) -> None:
    notes: list[str] = []
    tracker = open_tracker()
    gone = tmp_path / "gone"
    heard = threading.Semaphore(0)
    with (
        StatusWriter(gone, tracker, notes.append, seconds=0.001) as writer,
        writer.telling(lambda status: heard.release()),
    ):
        for _ in range(5):
            assert heard.acquire(timeout=60)
    assert len(notes) == 1
    assert str(gone / STATUS_NAME) in notes[0]
    assert "the campaign goes on" in notes[0]


def test_a_full_disk_leaves_no_part_of_a_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_a_part(path: Path, text: str, encoding: str) -> int:
        path.write_bytes(text.encode(encoding)[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_a_part)
    notes: list[str] = []
    with StatusWriter(tmp_path, open_tracker(), notes.append, seconds=60):
        assert list(tmp_path.iterdir()) == []
    assert "No space left" in notes[0]


def test_a_second_interrupt_leaves_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), StatusWriter(tmp_path, open_tracker(), pytest.fail):
        monkeypatch.setattr(threading.Thread, "join", interrupt)
    assert list(tmp_path.iterdir()) == []
