from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, get_worker

from screening.cluster.client import connect
from screening.cluster.tasks import map_tasks
from screening.cluster_settings import ClusterSettings
from screening.errors import OutputError, SchedulerLostError, WorkersGoneError
from screening.local_tasks import Done, Lost, TaskLimits

PATIENCE = 120
"""Seconds after which a test says that something never happened."""

TRIED: Counter[int] = Counter()
"""How often each task was tried by the functions below, in workers that are threads here."""

LET_GO = threading.Event()


def find_the_disk_full(task: int, worker: int) -> None:
    TRIED[task] += 1
    raise OutputError("cannot write x: the disk is full")


def fail_at_times(task: int, worker: int) -> int:
    TRIED[task] += 1
    if task == 3 or (task == 5 and TRIED[task] < 3):
        raise ValueError("a bug")
    return task


def hang_at_first(task: int, worker: int) -> None:
    if task == 0:
        LET_GO.wait(PATIENCE)
    time.sleep(0.01)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker that is a thread of this process: what it calls shares our variables."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


@contextmanager
def hire(workers: int, threads: int = 1, **options: Any) -> Iterator[Client]:
    """Workers that are processes with nannies; functions travel to them by value."""
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, host="127.0.0.1",
            dashboard_address=":0", silence_logs=50, **options,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def results(outcomes: Any) -> list[Any]:
    outcomes = list(outcomes)
    assert not [each for each in outcomes if isinstance(each, Lost)]
    return sorted(each.result for each in outcomes)


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def test_every_task_gives_its_result(client: Client) -> None:
    outcomes = list(map_tasks(client, lambda task, worker: (task * task, worker), range(20)))
    assert sorted(each.task for each in outcomes) == list(range(20))
    assert all(
        isinstance(each, Done) and each.result == (each.task**2, 0) for each in outcomes
    )  # fmt: skip


def test_tasks_are_pulled_only_as_they_are_needed(client: Client) -> None:
    tasks = iter(range(100))
    outcomes = map_tasks(client, lambda task, worker: task, tasks)
    for _ in range(5):
        next(outcomes)
    # done, running, waiting at the worker, and waiting here
    assert next(tasks) <= 5 + 1 + 1 + 1
    outcomes.close()


def test_no_tasks_no_results(client: Client) -> None:
    assert list(map_tasks(client, lambda task, worker: task, [])) == []


def test_an_error_that_the_user_must_cure_arrives_as_it_was(client: Client) -> None:
    TRIED.clear()
    with pytest.raises(OutputError, match="the disk is full"):
        list(map_tasks(client, find_the_disk_full, range(10)))
    assert 1 <= TRIED.total() <= 2


def test_a_task_that_raises_is_tried_again_and_then_given_up(client: Client) -> None:
    TRIED.clear()
    outcomes = list(map_tasks(client, fail_at_times, range(8), limits=TaskLimits(attempts=3)))
    [lost] = [each for each in outcomes if isinstance(each, Lost)]
    assert (lost.task, lost.reason, lost.attempts) == (3, "ValueError: a bug", 3)
    assert isinstance(lost.error, ValueError)
    assert Counter(dict.fromkeys(range(8), 1) | {3: 3, 5: 3}) == TRIED
    assert len(outcomes) == 8


def test_a_bad_result_is_asked_for_again(client: Client) -> None:
    judged: Counter[int] = Counter()

    def judge(task: int, result: int) -> str | None:
        judged[task] += 1
        bad = task == 2 or (task == 4 and judged[task] < 2)
        return f"{result} is not as it should be" if bad else None

    outcomes = list(
        map_tasks(
            client, lambda task, worker: -task, range(6), check=judge, limits=TaskLimits(attempts=2)
        )
    )
    [lost] = [each for each in outcomes if isinstance(each, Lost)]
    assert lost == Lost(2, "-2 is not as it should be", 2)
    assert judged == Counter({0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1})


@pytest.mark.parametrize("leave", ["close", "throw"])
def test_who_leaves_early_leaves_no_tasks(client: Client, leave: str) -> None:
    outcomes = map_tasks(client, lambda task, worker: time.sleep(0.05), range(1000))
    next(outcomes)
    if leave == "close":
        outcomes.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            outcomes.throw(KeyboardInterrupt())
    await_that(lambda: not client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks))


def test_gpus_and_cores_work_side_by_side() -> None:
    """A worker of four threads with one GPU gets one task at a time; one without gets four."""
    cluster = SpecCluster(
        scheduler={"cls": Scheduler, "options": {"dashboard": False, "port": 0}},
        workers={
            name: {"cls": Worker, "options": {"nthreads": 4, "resources": resources}}
            for name, resources in (("gpu", {"GPU": 1}), ("cpu", {}))
        },
    )

    def work_a_while(task: int, worker: int) -> tuple[float, float, str]:
        started = time.monotonic()
        time.sleep(0.05)
        return started, time.monotonic(), str(get_worker().name)

    with cluster, Client(cluster) as client:
        spans = results(map_tasks(client, work_a_while, range(60)))
    by_worker = {
        name: [span[:2] for span in spans if span[2] == name] for name in ("gpu", "cpu")
    }  # fmt: skip
    overlaps = {
        name: sum(after[0] < before[1] for before, after in pairwise(each))
        for name, each in by_worker.items()
    }
    assert overlaps["gpu"] == 0
    assert overlaps["cpu"] > 0
    assert len(by_worker["gpu"]) > 2


def test_workers_that_join_later_are_used() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0")
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip

        def name(task: int, worker: int) -> str:
            time.sleep(0.02)
            return str(get_worker().name)

        outcomes = map_tasks(client, name, range(100_000))
        next(outcomes)
        cluster.scale(2)
        await_that(lambda: next(outcomes).result == "1")
        outcomes.close()


def test_a_nanny_that_is_gone_is_replaced() -> None:
    """It goes with a worker that dies while it starts."""
    machine = ClusterSettings(workers=1, dashboard="127.0.0.1:0")
    with connect(machine, pytest.fail, device="cpu") as client:
        outcomes = map_tasks(client, lambda task, worker: os.getpid(), range(100_000))
        first = next(outcomes)
        client.cluster.sync(client.cluster.workers[0].close)
        await_that(lambda: next(outcomes).result != first.result)
        outcomes.close()


def test_without_workers_one_waits_says_so_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("screening.cluster.tasks.FIRST_NOTE_SECONDS", 0.0)
    notes: list[str] = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
        pytest.raises(WorkersGoneError, match=r"no workers .* start workers and run the same"),
    ):
        list(map_tasks(client, str, [1], limits=TaskLimits(wait_seconds=1), note=notes.append))
    [note] = notes
    assert "no workers" in note and "waiting" in note


@pytest.mark.parametrize("threads", [1, 3])
def test_one_poisonous_task_is_given_up_and_no_other(threads: int) -> None:
    def die(task: int, worker: int) -> int:
        time.sleep(0.02)
        if task == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with hire(2, threads) as client:
        outcomes = list(map_tasks(client, die, range(30), limits=TaskLimits(attempts=2)))
    [lost] = [each for each in outcomes if isinstance(each, Lost)]
    assert (lost.task, lost.attempts, lost.error) == (7, 2, None)
    assert "died" in lost.reason
    assert sorted(each.task for each in outcomes) == list(range(30))


def test_deaths_memory_and_hangs(tmp_path: Path) -> None:
    """What happens once costs nothing but time; each of these really happens, on one cluster."""

    def is_first(name: str) -> bool:
        try:
            (tmp_path / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def suffer(task: int, worker: int) -> int:
        if task == 4 and is_first("death"):
            os.kill(os.getpid(), signal.SIGKILL)
        if task == 9 and is_first("hang"):
            time.sleep(3600)
        return task

    def devour(task: int, worker: int) -> int:
        hoard = []
        while task == 2:
            hoard.append(os.urandom(1000) * 10_000)
            time.sleep(0.005)
        return task

    with hire(2, memory_limit="500MB") as client:
        before = client.run(os.getpid)
        os.kill(next(iter(before.values())), signal.SIGKILL)  # idle: costs nothing
        limits = TaskLimits(attempts=2, timeout_seconds=1)
        assert results(map_tasks(client, suffer, range(20), limits=limits)) == list(range(20))
        assert {each.name for each in tmp_path.iterdir()} == {"death", "hang"}
        await_that(lambda: len(client.run(os.getpid)) == 2)
        assert not set(client.run(os.getpid).values()) & set(before.values())

        outcomes = list(map_tasks(client, devour, range(5), limits=TaskLimits(attempts=1)))
        [lost] = [each for each in outcomes if isinstance(each, Lost)]
        assert lost.task == 2
        assert "ran out of memory" in lost.reason
        assert len(outcomes) == 5


def test_a_worker_that_hangs_without_nanny_gets_no_more_tasks() -> None:
    LET_GO.clear()
    notes: list[str] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0")
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        limits = TaskLimits(attempts=1, timeout_seconds=1)
        outcomes = map_tasks(
            client, hang_at_first, range(100_000), limits=limits, note=notes.append
        )
        assert any(isinstance(each, Lost) and each.task == 0 for each in outcomes)
        assert any(notes or isinstance(each, Lost) for each in outcomes)
        assert [each.result for each in islice(outcomes, 10)] == [None] * 10
        outcomes.close()
        LET_GO.set()
    [note] = notes
    assert "has no nanny" in note and "end it by hand" in note


@contextmanager
def running_scheduler(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A scheduler with a worker, both processes of their own."""
    address = tmp_path / "scheduler.json"
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    arguments = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    dask = [sys.executable, "-m", "dask"]
    scheduler = subprocess.Popen(
        [*dask, "scheduler", *arguments, "--scheduler-file", str(address)], **common
    )
    worker = subprocess.Popen(
        [*dask, "worker", "--scheduler-file", str(address), "--nthreads", "1", "--no-nanny",
         "--death-timeout", "60"],
        **common,
    )  # fmt: skip
    try:
        await_that(address.exists)
        yield scheduler, str(address)
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_scheduler_that_ends_ends_everything(tmp_path: Path, how: signal.Signals) -> None:
    def work_a_while(task: int, worker: int) -> int:
        time.sleep(0.05)
        return task

    with (
        running_scheduler(tmp_path) as (scheduler, address),
        Client(scheduler_file=address, timeout=60) as client,
    ):
        outcomes = map_tasks(client, work_a_while, range(100_000))
        next(outcomes)
        scheduler.send_signal(how)
        with pytest.raises(SchedulerLostError, match="finished work is kept"):
            list(outcomes)
