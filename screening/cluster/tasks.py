"""Working off tasks on the workers of a cluster, whatever becomes of the workers.

The driver gives each worker as many tasks as it can run, one more where tasks are short, and hears
from the scheduler's events of workers that come and go. So it knows at any time what was given to
whom. Where a worker dies with a single task, that task has failed once. Where it dies with several,
any of them may be to blame: each is tried again on a worker that gets nothing else meanwhile, and
only what happens there is counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, NamedTuple, TypeGuard

from dask.typing import Key
from distributed import Client, Future, Nanny, SpecCluster, get_worker
from distributed.client import FutureCancelledError
from distributed.core import Status

from screening.errors import SchedulerLostError, WorkersGoneError
from screening.local_tasks import (
    DEFAULT_LIMITS,
    Check,
    Done,
    Lost,
    Result,
    Task,
    TaskLimits,
    describe_error,
    is_deliberate,
)

SHORT_SECONDS: Final = 1.0
"""A worker whose last task was shorter has one task waiting, which hides the way to the driver."""

TICK_SECONDS: Final = 0.5
"""How long to wait for news before looking at the clock."""

SYNC_SECONDS: Final = 5.0
"""How often to ask the scheduler for its workers, even if it reports no change."""

COLLECT_SECONDS: Final = 2.0
"""How long to wait for a result that is said to be there before hearing other news."""

RESTART_SECONDS: Final = 20.0
"""How long a nanny may take to replace a worker."""

FIRST_NOTE_SECONDS: Final = 10.0
NOTE_SECONDS: Final = 60.0
"""After how long, and then how often, to say that there are no workers."""

STARTED: Final = "screening-task-started"
"""Topic on which workers say which task they have begun."""

OVER_MEMORY: Final = "worker-restart-memory"
"""Topic on which nannies say that they end a worker at its memory limit."""

MEMBERSHIP: Final = "all"
"""Topic on which the scheduler says that workers came or went."""


def map_tasks(
    client: Client,
    function: Callable[[Task, int], Result],
    tasks: Iterable[Task],
    *,
    check: Check[Task, Result] | None = None,
    limits: TaskLimits = DEFAULT_LIMITS,
    note: Callable[[str], None] = lambda sentence: None,
) -> Iterator[Done[Task, Result] | Lost[Task]]:
    """Call `function(task, worker number)` for each task on the workers; yield as they finish.

    Only what the workers can run is submitted at a time, so that a campaign of a million tasks
    burdens the scheduler no more than one of ten. A worker that declares the resource GPU gets one
    task for each, any other one for each of its threads; both kinds work side by side, and workers
    that join later are used.

    A task fails if its worker dies, if it takes longer than the limit (its worker is restarted
    then), if `check` finds fault with its result, or if it raises an error that nobody foresaw.
    One that hangs without letting the worker say that it began is left to Dask, whose scheduler
    drops a worker from which it has not heard for `distributed.scheduler.worker-ttl`, 5 minutes.
    Workers that die without a task, or are retired, cost nothing. Where the generator is left
    early, what runs is cancelled.

    Args:
        client: Where to run.
        function: Importable function of a task and of the number of the worker that runs it.
        tasks: Tasks; pulled from only as fast as they are worked off.
        check: Judges each result, in this process; a bad one counts as a failed attempt.
        limits: How often a task is tried, how long it may take, how long to wait for workers.
        note: Told what the user should know while waiting.

    Yields:
        What became of each task, in the order in which they end.

    Raises:
        ScreeningError: Raised by the function on purpose, as is any other error that has an exit
            code: no other attempt and no other task would do better.
        SchedulerLostError: The scheduler ended, or the connection to it was cut.
        WorkersGoneError: There was no worker for too long.
    """
    shift = _Shift(client, function, iter(tasks), check, limits, note)
    try:
        yield from shift.work_off()
    finally:
        shift.end()


@dataclass(eq=False)
class _Job(Generic[Task]):
    """A task and how it has fared; one that is suspect gets a worker for itself."""

    task: Task
    failures: int = 0
    suspect: bool = False


@dataclass(eq=False)
class _Place:
    """A worker, and what was given to it."""

    address: str
    name: str
    slots: int
    resources: dict[str, float] | None
    given: list[_Attempt] = field(default_factory=list)
    short: bool = False
    resting: bool = False
    missed: bool = False

    @property
    def is_open(self) -> bool:
        return not self.resting and not any(attempt.job.suspect for attempt in self.given)

    @property
    def room(self) -> int:
        return self.slots + self.short - len(self.given)

    def __str__(self) -> str:
        return f"worker {self.name} ({self.address})"


@dataclass(eq=False)
class _Attempt:
    """A task given to a worker."""

    job: _Job[Any]
    place: _Place
    future: Future[Any]
    submitted: float
    started: float | None = None


class _News(NamedTuple):
    """Something that happened, and when."""

    topic: str
    content: Any
    time: float


_DONE: Final = "done"
_NOTE: Final = "note"


class _Shift(Generic[Task, Result]):
    """The state of one `map_tasks`. Callbacks only put news into a queue; one thread acts."""

    def __init__(
        self,
        client: Client,
        function: Callable[[Task, int], Result],
        waiting: Iterator[Task],
        check: Check[Task, Result] | None,
        limits: TaskLimits,
        note: Callable[[str], None],
    ) -> None:
        self.client = client
        self.function = function
        self.waiting = waiting
        self.check = check
        self.limits = limits
        self.note = note
        self.address = getattr(client.scheduler, "address", "an unknown address")
        self.news: SimpleQueue[_News] = SimpleQueue()
        self.places: dict[str, _Place] = {}
        self.running: dict[Key, _Attempt] = {}
        self.ready: deque[_Job[Task]] = deque()
        self.suspects: deque[_Job[Task]] = deque()
        self.barred: set[str] = set()
        self.over_memory: set[str] = set()
        self.synced = 0.0
        self.deserted: float | None = None
        self.noted = 0.0

    def work_off(self) -> Iterator[Done[Task, Result] | Lost[Task]]:
        self._pull()
        if not self.ready:
            return
        for topic in (MEMBERSHIP, OVER_MEMORY, STARTED):
            self.client.subscribe_topic(topic, lambda event, topic=topic: self._hear(topic, event))
        self._look_for_workers()
        while True:
            self._give_out()
            if not (self.running or self.ready or self.suspects):
                return
            for news in self._wait_for_news():
                yield from self._act_on(news)
            yield from self._end_hanging()
            if self.client.status != "running":
                raise self._lost_scheduler()
            if time.monotonic() - self.synced > SYNC_SECONDS:
                self._look_for_workers()
            self._check_staff()

    def end(self) -> None:
        """Cancel what still runs and listen no more."""
        if self.client.status != "running":
            return
        self.client.cancel([attempt.future for attempt in self.running.values()])
        for topic in (MEMBERSHIP, OVER_MEMORY, STARTED):
            with suppress(ValueError):  # nothing was to be done
                self.client.unsubscribe_topic(topic)

    # what to do next

    def _pull(self) -> None:
        """Have a task ready, if there is another."""
        if not self.ready:
            self.ready.extend(_Job(task) for task in _take_one(self.waiting))

    def _give_out(self) -> None:
        """Give every worker what it has room for.

        The workers that have least to do are kept free for suspects, one for each.
        """
        places = [place for place in self.places.values() if place.is_open]
        places.sort(key=lambda place: len(place.given))
        kept_free, others = places[: len(self.suspects)], places[len(self.suspects) :]
        for place in kept_free:
            if not place.given:
                self._submit(self.suspects.popleft(), place)
        while self.ready:
            with_room = [place for place in others if place.room > 0]
            if not with_room:
                return
            place = min(with_room, key=lambda place: len(place.given) / place.slots)
            self._submit(self.ready.popleft(), place)
            self._pull()

    def _submit(self, job: _Job[Task], place: _Place) -> None:
        future: Future[Any] = self.client.submit(
            _call_numbered,
            self.function,
            job.task,
            pure=False,
            retries=0,
            workers=[place.address],
            resources=place.resources,
        )
        attempt = _Attempt(job, place, future, time.monotonic())
        self.running[future.key] = attempt
        place.given.append(attempt)
        future.add_done_callback(
            lambda future: self.news.put(_News(_DONE, future, time.monotonic()))
        )

    # what happens

    def _hear(self, topic: str, event: tuple[float, Any]) -> None:
        self.news.put(_News(topic, event[1], time.monotonic()))

    def _wait_for_news(self) -> list[_News]:
        news = []
        with suppress(Empty):
            news.append(self.news.get(timeout=TICK_SECONDS))
            while True:
                news.append(self.news.get_nowait())
        return news

    def _act_on(self, news: _News) -> Iterator[Done[Task, Result] | Lost[Task]]:
        if news.topic == _DONE:
            yield from self._finish(news.content, news.time)
        elif news.topic == _NOTE:
            self.note(news.content)
        elif news.topic == STARTED:
            attempt = self.running.get(news.content["key"])
            if attempt is not None:
                attempt.started = news.time
        elif news.topic == OVER_MEMORY:
            self.over_memory.add(news.content["worker"])
        elif news.content.get("action") == "add-worker":
            self.synced = 0.0
        elif news.content.get("action") == "remove-worker":
            event = news.content
            running = () if event["expected"] else event["processing-tasks"]
            yield from self._lose_worker(event["worker"], running)

    def _finish(
        self, future: Future[Any], ended: float
    ) -> Iterator[Done[Task, Result] | Lost[Task]]:
        """Take the result of an attempt, unless it was withdrawn."""
        attempt = self.running.get(future.key)
        if attempt is None:
            return
        if future.cancelled():
            raise self._lost_scheduler()
        result: Any = None
        error: BaseException | None = None
        reason: str | None = None
        if future.status == "error":
            error = future.exception() or RuntimeError("nobody knows why")
            if is_deliberate(error):
                raise error
            reason = describe_error(error)
        else:
            try:
                result = future.result(timeout=COLLECT_SECONDS)
            except TimeoutError:  # its worker may be gone; then that is among the news
                self.news.put(_News(_DONE, future, ended))
                return
            except FutureCancelledError as cancelled:
                raise self._lost_scheduler() from cancelled
            except Exception as failure:  # it cannot be unpacked, say
                error, reason = failure, describe_error(failure)
            if reason is None and self.check is not None:
                reason = self.check(attempt.job.task, result)
        self._withdraw(attempt)
        attempt.place.short = ended - (attempt.started or attempt.submitted) < SHORT_SECONDS
        if reason is None:
            yield Done(attempt.job.task, result)
        else:
            yield from self._count_failure(attempt.job, reason, error)

    def _lose_worker(self, address: str, running: Collection[str]) -> Iterator[Lost[Task]]:
        """Take back what a worker was given that is gone, and blame what ran there."""
        self.barred.discard(address)
        place = self.places.pop(address, None)
        if place is None:
            return
        blamed = [attempt for attempt in place.given if attempt.future.key in running]
        self._take_back([attempt for attempt in place.given if attempt not in blamed])
        for attempt in blamed:
            attempt.job.suspect = True
        if len(blamed) > 1:
            self._take_back(blamed)
            return
        for attempt in blamed:
            self._withdraw(attempt)
            if address in self.over_memory:
                yield from self._count_failure(attempt.job, f"{place} ran out of memory")
            else:
                yield from self._count_failure(
                    attempt.job, f"{place} died, most often for lack of memory"
                )

    def _end_hanging(self) -> Iterator[Lost[Task]]:
        """End attempts that take too long, together with their workers."""
        limit = self.limits.timeout_seconds
        if limit is None:
            return
        now = time.monotonic()
        for attempt in tuple(self.running.values()):
            if attempt.started is None or now - attempt.started <= limit:
                continue
            if attempt.future.key not in self.running:  # taken back with its neighbour
                continue
            place = attempt.place
            self._withdraw(attempt)
            self._restart(place)
            yield from self._count_failure(
                attempt.job, f"{place} was still busy with it after {limit:g} s"
            )

    def _restart(self, place: _Place) -> None:
        """Take back what a worker was given, and have its nanny replace it meanwhile."""
        self.places.pop(place.address, None)
        self.barred.add(place.address)
        self._take_back(place.given)
        threading.Thread(target=self._replace, args=(place,), daemon=True).start()

    def _replace(self, place: _Place) -> None:
        """Restart a worker, and wait for it: in a thread of its own."""
        remedy = None
        try:
            self.client.restart_workers([place.address], timeout=RESTART_SECONDS)
        except ValueError:
            remedy = "has no nanny that could restart it"
        except KeyError:
            pass  # it is gone already
        except Exception as error:
            remedy = f"cannot be restarted ({describe_error(error)})"
        if remedy is not None:
            text = f"{place} hangs and {remedy}; it gets no more tasks: end it by hand"
            self.news.put(_News(_NOTE, text, time.monotonic()))

    def _count_failure(
        self, job: _Job[Task], reason: str, error: BaseException | None = None
    ) -> Iterator[Lost[Task]]:
        job.failures += 1
        if job.failures < self.limits.attempts:
            self._give_back(job)
        else:
            yield Lost(job.task, reason, job.failures, error)

    def _give_back(self, job: _Job[Task]) -> None:
        (self.suspects if job.suspect else self.ready).append(job)

    def _take_back(self, attempts: Collection[_Attempt]) -> None:
        """Let tasks be given out again, as if they had not been tried."""
        for attempt in tuple(attempts):
            self._withdraw(attempt)
            self._give_back(attempt.job)

    def _withdraw(self, attempt: _Attempt) -> None:
        """Forget an attempt; the scheduler cancels what nobody wants."""
        del self.running[attempt.future.key]
        attempt.place.given.remove(attempt)
        attempt.future.release()

    # workers

    def _look_for_workers(self) -> None:
        """Compare the places with the scheduler's workers."""
        try:
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
        except OSError as error:
            raise self._lost_scheduler() from error
        self.synced = time.monotonic()
        for address, worker in workers.items():
            if address in self.barred:
                continue
            place = self.places.setdefault(address, _open_place(address, worker))
            place.missed = False
            place.resting = worker["status"] != "running"
            if place.resting:  # it would not begin them
                self._take_back([each for each in place.given if each.started is None])
        for place in [each for each in self.places.values() if each.address not in workers]:
            if place.missed:  # twice, and no news of it came
                del self.places[place.address]
                self._take_back(place.given)
            place.missed = True
        cluster = self.client.cluster
        if _has_nannies(cluster) and len(workers) < len(cluster.worker_spec):
            _replace_nannies(cluster)

    def _check_staff(self) -> None:
        """Say so where there is nobody to give tasks to, and at last give up."""
        now = time.monotonic()
        if any(not place.resting for place in self.places.values()):
            self.deserted = None
            return
        if self.deserted is None:
            self.deserted = now
            self.noted = now - NOTE_SECONDS + FIRST_NOTE_SECONDS
        waited = now - self.deserted
        if waited > self.limits.wait_seconds:
            raise WorkersGoneError(
                f"the Dask scheduler at {self.address} has had no workers that take tasks for "
                f"{waited:.0f} s; finished work is kept: start workers and run the same command "
                "again"
            )
        if now - self.noted > NOTE_SECONDS:
            self.noted = now
            self.note(
                f"{self.address} has no workers that take tasks; waiting for some up to "
                f"{self.limits.wait_seconds - waited:.0f} s more"
            )

    def _lost_scheduler(self) -> SchedulerLostError:
        return SchedulerLostError(
            f"the Dask scheduler at {self.address} is gone or cannot be reached; finished work is "
            "kept: see that a scheduler runs, and run the same command again"
        )


def _has_nannies(cluster: object) -> TypeGuard[SpecCluster]:
    """Whether this process started a cluster, and its workers itself: not as jobs."""
    return isinstance(cluster, SpecCluster) and all(
        issubclass(each["cls"], Nanny) for each in cluster.worker_spec.values()
    )


def _replace_nannies(cluster: SpecCluster) -> None:
    """Replace nannies that are gone: a worker that dies while it starts takes its own along.

    The cluster misses them only if their workers had ever arrived.
    """
    for name, nanny in tuple(cluster.workers.items()):
        if nanny.status in (Status.failed, Status.closed):
            cluster.workers.pop(name, None)  # the cluster's own thread may be at it too
    cluster.scale(len(cluster.worker_spec))


def _take_one(tasks: Iterator[Task]) -> Iterator[Task]:
    for task in tasks:
        yield task
        return


def _open_place(address: str, worker: dict[str, Any]) -> _Place:
    gpus = int(worker["resources"].get("GPU", 0))
    return _Place(
        address,
        name=str(worker["name"]),
        slots=gpus or worker["nthreads"],
        resources={"GPU": 1} if gpus else None,
    )


def _call_numbered(function: Callable[[Task, int], Result], task: Task) -> Result:
    worker = get_worker()
    worker.log_event(STARTED, {"key": worker.get_current_task()})
    name = worker.name
    # a worker with a GPU to itself has it as its first
    number = 0 if worker.state.total_resources.get("GPU") else name
    return function(task, number if isinstance(number, int) else 0)
