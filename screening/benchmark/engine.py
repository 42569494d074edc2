"""Runs the trials of a benchmark that are missing, one by one or in processes side by side.

Each trial writes its result into one file, ``<work>/<benchmark>/<trial>.json``, whole or not at
all; a network's checkpoints are beside it until then. Killed at any moment, the same call goes on:
what is finished is read, and a network continues from its last checkpoint and ends as it would
have. A result counts only where trial and data are still those that it was made of.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ClassVar, Final, Literal

from screening.benchmark.data import DataSource, DataStore, prepare_arrays
from screening.benchmark.fitting import digest_data, fingerprint, fit_trial, list_arrays
from screening.benchmark.trial import HELD_OUT, Trial, TrialResult, result_path
from screening.errors import ExitCode, OutputError, ScreeningError
from screening.feature_tables import ProgressCall
from screening.local_tasks import describe_error, is_deliberate
from screening.lock import locked
from screening.training import describe_machine, writing_to

CHECKPOINT_SUFFIX: Final = ".checkpoint"
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What libraries of linear algebra take their number of threads from when they are loaded."""

SECONDS_TO_END: Final = 10.0
"""How long a worker that is told to end may take before it is killed."""


class TrialsFailedError(ScreeningError, RuntimeError):
    """Some trials of a benchmark failed; the others are finished."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_COMPLETE


class State(StrEnum):
    """Where a trial stands."""

    DONE = "done"
    FAILED = "failed"
    CHANGED = "changed"
    """There is a result, but of another specification or of other data."""
    MISSING = "missing"


@dataclass(frozen=True)
class Standing:
    """A trial and what there is of it.

    Attributes:
        trial: The trial.
        state: Where it stands.
        result: Its result, if it is done or failed.
    """

    trial: Trial
    state: State
    result: TrialResult | None = None


@dataclass(frozen=True)
class Task:
    """A trial to run.

    Attributes:
        trial: The trial.
        path: File of its result.
        folder: For its checkpoints.
    """

    trial: Trial
    path: Path
    folder: Path


@dataclass(frozen=True)
class Event:
    """What a trial's process has to say.

    Attributes:
        task: The trial.
        kind: ``begun`` and ``progress`` come before one of the others, which end it: ``done``,
            ``failed``, or ``stop`` where no other trial would do better.
        text: Where it stands, or why it failed.
    """

    task: Task
    kind: Literal["begun", "progress", "done", "failed", "stop"]
    text: str = ""


def survey(work: Path, trials: Sequence[Trial], store: DataStore | None = None) -> list[Standing]:
    """Say what there is of trials.

    Args:
        work: Folder of the work of all benchmarks.
        trials: The trials as they are defined now.
        store: The data as they are now; without, results of other data count too.

    Returns:
        One entry per trial, in their order.

    Raises:
        InputDataError: A result is damaged.
    """
    return [_look_up(work, trial, store) for trial in trials]


def _look_up(work: Path, trial: Trial, store: DataStore | None) -> Standing:
    path = result_path(work, trial)
    if not path.exists():
        return Standing(trial, State.MISSING)
    result = TrialResult.read(path)
    same_data = store is None or result.data_sha256 == digest_data(trial, store)
    if result.fingerprint != fingerprint(trial) or not same_data:
        return Standing(trial, State.CHANGED)
    result = replace(result, trial=trial)  # its words may be others by now
    return Standing(trial, State.DONE if result.failure is None else State.FAILED, result)


def run_trials(
    trials: Sequence[Trial],
    source: DataSource,
    work: Path,
    *,
    workers: int = 0,
    device: str = "cpu",
    note: Callable[[str], None],
    progress: ProgressCall | None = None,
) -> list[Standing]:
    """Run the trials that are not done, also those that failed before.

    Args:
        trials: The trials.
        source: Where their data come from.
        work: Folder of the work of all benchmarks.
        workers: Processes of one thread each; 0 for this process, with all of its threads.
        device: Where networks run.
        note: Told what is done and what failed.
        progress: Told how many trials are done, and where one stands.

    Returns:
        Where each trial stands now, in their order.

    Raises:
        InputDataError: The data cannot be used, or a result is damaged.
        FolderInUseError: Another run works on one of the benchmarks.
        OutputError: Something cannot be written.
    """
    benchmarks = sorted({trial.benchmark for trial in trials})
    with ExitStack() as stack:
        for folder in (source.cache, *(work / name for name in benchmarks)):
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
        with locked(source.cache, note):
            names = {name for trial in trials for name in list_arrays(trial)}
            store = DataStore({name: prepare_arrays(name, source) for name in sorted(names)})
        for name in benchmarks:
            stack.enter_context(locked(work / name, note))
        standings = survey(work, trials, store)
        tasks = []
        for standing in standings:
            task = _make_task(work, standing.trial, store)
            done_already = standing.state is State.DONE
            _remove_checkpoints(task, keep=not done_already)
            if not done_already:
                tasks.append(task)
        done = len(trials) - len(tasks)
        if done:
            note(f"{done} of {len(trials)} trials are done already")

        def tell(text: str) -> None:
            if progress is not None:
                progress(done, len(trials), text)

        if workers > 0:
            events = _run_side_by_side(tasks, store.arrays, min(workers, len(tasks)), device)
        else:
            events = _run_here(tasks, store, device, tell)
        stack.enter_context(closing(events))  # an interruption ends its processes
        for event in events:
            task, name = event.task, event.task.trial.name
            if event.kind == "stop":
                raise OutputError(event.text)
            if event.kind == "failed":
                _write_failure(task, store, device, event.text)
                note(f"{name} failed: {event.text}")
            elif event.kind == "done":
                note(f"{name}: {event.text}")
            done += event.kind in ("done", "failed")
            tell(f"{name} {event.text}".strip())
        return survey(work, trials, store)


def _make_task(work: Path, trial: Trial, store: DataStore) -> Task:
    path = result_path(work, trial)
    digest = f"{fingerprint(trial)[:8]}{digest_data(trial, store)[:8]}"
    folder = path.with_name(f"{trial.name}.{digest}{CHECKPOINT_SUFFIX}")
    return Task(trial, path, folder)


def _remove_checkpoints(task: Task, keep: bool) -> None:
    """Remove checkpoints of a trial: those of another specification, or all of them."""
    for folder in task.path.parent.glob(f"{glob.escape(task.trial.name)}.*{CHECKPOINT_SUFFIX}"):
        if not (keep and folder == task.folder):
            shutil.rmtree(folder, ignore_errors=True)


def _write_failure(task: Task, store: DataStore, device: str, reason: str) -> None:
    TrialResult(
        trial=task.trial,
        fingerprint=fingerprint(task.trial),
        data_sha256=digest_data(task.trial, store),
        failure=reason,
        machine=describe_machine(device),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    ).write(task.path)


def _run_here(
    tasks: Sequence[Task], store: DataStore, device: str, tell: Callable[[str], None]
) -> Generator[Event, None, None]:
    for task in tasks:
        yield Event(task, "begun")

        def report(text: str, name: str = task.trial.name) -> None:
            tell(f"{name} {text}")

        yield _attempt(task, store, device, report)


def _attempt(task: Task, store: DataStore, device: str, report: Callable[[str], None]) -> Event:
    """Run a trial and write its result."""
    from irnet import CheckpointError, ModelFileError

    try:
        try:
            result = fit_trial(task.trial, store, task.folder, device=device, report=report)
        except (CheckpointError, ModelFileError):
            report("its checkpoint cannot be used: beginning anew")
            shutil.rmtree(task.folder, ignore_errors=True)
            result = fit_trial(task.trial, store, task.folder, device=device, report=report)
        result.write(task.path)
        shutil.rmtree(task.folder, ignore_errors=True)
    except OutputError as error:
        return Event(task, "stop", str(error))
    except Exception as error:
        reason = str(error) if is_deliberate(error) else describe_error(error)
        return Event(task, "failed", reason)
    errors = result.test[HELD_OUT]
    said = f"{errors.mae:.4f} {result.unit} on {errors.rows:,} held-out rows"
    return Event(task, "done", f"{said}, {result.seconds:,.0f} s")


@dataclass(eq=False)
class _Worker:
    """A process that runs one trial at a time."""

    process: BaseProcess
    connection: Connection
    task: Task | None = None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.connection.close()
        self.process.terminate()
        self.process.join(SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _run_side_by_side(
    tasks: Sequence[Task], arrays: Mapping[str, Path], workers: int, device: str
) -> Generator[Event, None, None]:
    """Run trials in processes; one that dies costs its trial, and another takes its place."""
    pending = deque(tasks)
    crew: list[_Worker] = []
    try:
        while pending or any(worker.task for worker in crew):
            while pending and len(crew) < workers:
                crew.append(_start_worker(arrays, device))
            for worker in crew:
                if worker.task is None and pending:
                    worker.task = pending.popleft()
                    with suppress(OSError):  # it died; that is found out below
                        worker.connection.send(worker.task)
                    yield Event(worker.task, "begun")
            busy = {worker.connection: worker for worker in crew if worker.task is not None}
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                assert worker.task is not None
                try:
                    event: Event = worker.connection.recv()
                except (EOFError, OSError):
                    crew.remove(worker)
                    worker.end()
                    yield Event(worker.task, "failed", _describe_death(worker.process.exitcode))
                    continue
                yield event
                if event.kind != "progress":
                    worker.task = None
    finally:
        for worker in crew:
            worker.end()


def _start_worker(arrays: Mapping[str, Path], device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, dict(arrays), device), daemon=True)
    with _without_interrupts(), _with_one_thread():
        process.start()
    theirs.close()  # so that its death ends what we read
    return _Worker(process, ours)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back, also in processes that are started: it is this process's business."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _with_one_thread() -> Iterator[None]:
    """Let libraries of processes that are started compute with one thread."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Connection, arrays: Mapping[str, Path], device: str) -> None:
    """Run trials that are sent, each with one thread, until the connection ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    torch.set_num_threads(1)
    store = DataStore(arrays)
    with suppress(EOFError, OSError):
        while True:
            task: Task = connection.recv()

            def report(text: str, task: Task = task) -> None:
                connection.send(Event(task, "progress", text))

            connection.send(_attempt(task, store, device, report))


def _end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _describe_death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        lack = ", for lack of memory most often" if -code == signal.SIGKILL else ""
        return f"its process was ended by {name}{lack}"
    return f"its process ended with exit code {code}"
