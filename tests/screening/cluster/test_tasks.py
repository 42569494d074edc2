from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise

import dask
import pytest
from distributed import Client, LocalCluster

from screening.cluster.client import connect
from screening.cluster.tasks import TASKS_PER_WORKER, map_tasks
from screening.errors import OutputError, WorkerKilledError


def work_a_while(task: int, worker: int) -> tuple[float, float]:
    started = time.monotonic()
    time.sleep(0.02)
    return started, time.monotonic()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker that is a thread of this process: what it calls need not be importable."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def test_every_task_gives_its_result(client: Client) -> None:
    results = map_tasks(client, lambda task, worker: (task * task, worker), range(20))
    assert sorted(results) == [(n * n, 0) for n in range(20)]


def test_tasks_are_pulled_only_as_they_are_needed(client: Client) -> None:
    tasks = iter(range(100))
    results = map_tasks(client, lambda task, worker: task, tasks)
    for _ in range(5):
        next(results)
    assert next(tasks) <= TASKS_PER_WORKER + 5


def test_no_tasks_no_results(client: Client) -> None:
    assert list(map_tasks(client, lambda task, worker: task, [])) == []


def test_an_error_of_a_worker_arrives_as_it_was(client: Client) -> None:
    def fail(task: int, worker: int) -> None:
        raise OutputError("cannot write x: the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        list(map_tasks(client, fail, [1]))


@pytest.mark.slow
def test_workers_that_die_again_and_again_are_reported_as_such() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        connect(workers=1) as client,
        pytest.raises(WorkerKilledError, match="smaller --workers"),
    ):
        list(map_tasks(client, lambda task, worker: os.kill(os.getpid(), task), [signal.SIGKILL]))


def test_gpus_are_asked_for_where_workers_declare_them() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None,
            resources={"GPU": 1},
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        spans = sorted(map_tasks(client, work_a_while, range(6)))
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.slow
def test_local_workers_are_processes_that_leave_interrupts_to_the_driver() -> None:
    with connect(workers=1) as client:
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        assert client.submit(os.getpid).result() != os.getpid()
        handler = client.submit(signal.getsignal, signal.SIGINT).result()
        assert handler == signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
