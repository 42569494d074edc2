"""Working off tasks through a client, a window of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from distributed import Client, Future, KilledWorker, as_completed, get_worker

from screening.errors import WorkerKilledError

TASKS_PER_WORKER = 3
"""Tasks submitted per worker thread: one runs, the others wait where they will be needed."""

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_tasks(
    client: Client, function: Callable[[Task, int], Result], tasks: Iterable[Task]
) -> Iterator[Result]:
    """Call `function(task, worker number)` for each task on the workers; yield as they finish.

    Only a window of tasks is submitted at a time, so that a campaign of a million tasks burdens
    the scheduler no more than one of ten. If the workers declare the resource GPU, each task asks
    for one.

    Args:
        client: Where to run.
        function: Importable function of a task and of the number of the worker that runs it.
        tasks: Tasks; pulled from only as fast as they are worked off.

    Yields:
        Results in the order in which they finish.

    Raises:
        WorkerKilledError: A worker died repeatedly on the same task, most often of lack of memory.
    """
    waiting = iter(tasks)
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in each.get("resources", {}) for each in workers) else None
    window = TASKS_PER_WORKER * max(1, sum(each["nthreads"] for each in workers))

    def submit(task: Task) -> Future[Result]:
        return client.submit(
            _call_numbered, function, task, pure=False, retries=0, resources=resources
        )

    running = as_completed([submit(task) for task in islice(waiting, window)])
    for future in running:
        try:
            result: Result = future.result()
        except KilledWorker as error:
            raise WorkerKilledError(
                "a worker died repeatedly on the same task, most often for lack of memory; run the "
                "same command again with a smaller --workers (finished shards are kept)"
            ) from error
        for task in islice(waiting, 1):
            running.add(submit(task))
        yield result


def _call_numbered(function: Callable[[Task, int], Result], task: Task) -> Result:
    name = get_worker().name
    return function(task, name if isinstance(name, int) else 0)
