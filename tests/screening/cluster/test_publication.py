from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from screening.cluster import publication
from screening.cluster.publication import (
    STATUS_TOPIC,
    Publisher,
    check_report,
    describe_workers,
    reporting_performance,
)
from screening.errors import OutputError
from screening.settings import RankBy
from screening.status import CampaignStatus, State, StatusTracker, StatusWriter

PATIENCE = 120
"""Seconds after which a test says that something never happened."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def tracker() -> StatusTracker:
    return StatusTracker(campaign="first", counts={"B2": 100}, shards=10, order=RankBy.P_STABLE)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def read_told(client: Client, after: int = 0) -> list[CampaignStatus]:
    """What dashboards find on the scheduler, without the events that were there before."""
    events = client.get_events(STATUS_TOPIC)
    return [CampaignStatus.from_json(content) for _, content in events[after:]]


def test_snapshots_are_events_of_the_scheduler_and_the_last_one_always(
    client: Client, tracker: StatusTracker
) -> None:
    before = len(client.get_events(STATUS_TOPIC))
    clock = Clock()
    publish = Publisher(client, tracker, clock)
    told = [tracker.snapshot()]
    publish(told[0])
    tracker.add_lost(0, "workers died", 10)
    publish(tracker.snapshot())  # too soon
    clock.now += 1.0  # the next snapshot of a writer
    told.append(tracker.snapshot())
    publish(told[1])
    told.append(tracker.snapshot(State.COMPLETE))
    publish(told[2])  # at once, and the last
    assert read_told(client, before) == told


def test_the_tracker_learns_who_is_connected_and_the_memory(
    client: Client, tracker: StatusTracker
) -> None:
    Publisher(client, tracker)(tracker.snapshot())
    [worker] = tracker.snapshot().workers
    [described] = client.scheduler_info(n_workers=-1)["workers"].values()
    assert worker.name == str(described["name"]) == "0"
    assert worker.host == described["host"]
    assert worker.memory_bytes
    assert worker.device is None  # it has computed nothing


def test_a_worker_that_measured_nothing_yet_has_no_memory() -> None:
    [worker] = describe_workers({"tcp://a:1": {"name": 3, "host": "a"}})
    assert (worker.name, worker.memory_bytes) == ("3", None)


def test_a_writer_tells_while_the_campaign_runs(
    client: Client, tracker: StatusTracker, tmp_path: Path
) -> None:
    before = len(client.get_events(STATUS_TOPIC))
    with (
        StatusWriter(tmp_path, tracker, pytest.fail, seconds=0.01) as writer,
        writer.telling(Publisher(client, tracker)),
    ):
        tracker.add_lost(0, "workers died", 10)
        writer.end(State.INTERRUPTED)
    last = read_told(client, before)[-1]
    assert (last.state, last.enumerated) == (State.INTERRUPTED, 10)


@contextmanager
def scheduler_elsewhere(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler of its own process, which tests stop and kill."""
    path = folder / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
    command += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield str(path), process
    finally:
        process.kill()
        process.wait()


def test_a_scheduler_that_is_busy_or_gone_holds_nobody_up(
    tracker: StatusTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "ANSWER_SECONDS", 0.2)
    with (
        scheduler_elsewhere(tmp_path) as (file, process),
        Client(scheduler_file=file, timeout=PATIENCE) as client,
    ):
        Publisher(client, tracker)(tracker.snapshot())
        assert len(read_told(client)) == 1
        os.kill(process.pid, signal.SIGSTOP)
        Publisher(client, tracker)(tracker.snapshot(State.COMPLETE))
        os.kill(process.pid, signal.SIGCONT)
        assert client.get_events(STATUS_TOPIC)  # it answers again
        process.kill()
        process.wait()
        Publisher(client, tracker)(tracker.snapshot(State.COMPLETE))
    Publisher(client, tracker)(tracker.snapshot(State.COMPLETE))


def test_the_performance_report_is_a_page_that_needs_no_network(
    client: Client, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    with reporting_performance(client, path, pytest.fail):
        assert client.submit(_add_one, 1, pure=False).result() == 2
    page = path.read_text(encoding="utf-8")
    assert "_add_one" in page
    assert "a campaign of screening" in page
    assert '<script src="http' not in page.replace("'", '"')
    assert list(tmp_path.iterdir()) == [path]


def _add_one(number: int) -> int:
    return number + 1


def test_a_report_is_written_of_a_campaign_that_failed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with (
        pytest.raises(KeyboardInterrupt),
        reporting_performance(client, path, pytest.fail),
    ):
        raise KeyboardInterrupt
    assert path.is_file()


def test_a_report_that_cannot_be_written_ends_no_campaign(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    notes: list[str] = []
    with reporting_performance(client, folder / "report.html", notes.append):
        folder.rmdir()
    assert len(notes) == 1
    assert f"no performance report in {folder / 'report.html'}" in notes[0]


def test_a_place_for_no_report_is_refused_before_any_work(tmp_path: Path) -> None:
    check_report(tmp_path / "report.html")
    with pytest.raises(OutputError, match="is a folder"):
        check_report(tmp_path)
    with pytest.raises(OutputError, match="its folder is missing"):
        check_report(tmp_path / "missing" / "report.html")


def test_what_is_published_is_plain_json(client: Client, tracker: StatusTracker) -> None:
    before = len(client.get_events(STATUS_TOPIC))
    tracker.add_lost(3, 'evil </script> \x1b "', 1)
    status = tracker.snapshot(State.COMPLETE)
    Publisher(client, tracker)(status)
    [(_, content)] = client.get_events(STATUS_TOPIC)[before:]
    assert json.loads(json.dumps(content)) == status.to_json()
