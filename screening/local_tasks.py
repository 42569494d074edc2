"""What becomes of a task, and working off tasks in this process.

A task is tried a bounded number of times; one that fails each time is given up, with its reason,
and the others go on. `screening.cluster.tasks` does the same on the workers of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from screening.errors import ScreeningError, WorkerKilledError, exit_code_of

Task = TypeVar("Task")
Result = TypeVar("Result")

Check = Callable[[Task, Result], "str | None"]
"""Says what is wrong with the result of a task; None if nothing is."""


@dataclass(frozen=True)
class TaskLimits:
    """How much patience there is.

    Attributes:
        attempts: How often a task is tried at most.
        timeout_seconds: How long a task may run on a worker of a cluster; None is for ever.
        wait_seconds: How long to wait for workers of a cluster when there are none.
    """

    attempts: int = 3
    timeout_seconds: float | None = None
    wait_seconds: float = 300.0


DEFAULT_LIMITS: Final = TaskLimits()

LONGEST_REASON: Final = 500
"""Characters of an error's message that are kept."""


@dataclass(frozen=True)
class Done(Generic[Task, Result]):
    """A task that is finished.

    Attributes:
        task: The task.
        result: What the function returned.
    """

    task: Task
    result: Result


@dataclass(frozen=True)
class Lost(Generic[Task]):
    """A task that is given up.

    Attributes:
        task: The task.
        reason: Why its last attempt failed.
        attempts: How often it failed.
        error: What its last attempt raised, if that is how it failed.
    """

    task: Task
    reason: str
    attempts: int
    error: BaseException | None = None


def map_here(
    function: Callable[[Task, int], Result],
    tasks: Iterable[Task],
    *,
    check: Check[Task, Result] | None = None,
    limits: TaskLimits = DEFAULT_LIMITS,
) -> Iterator[Done[Task, Result] | Lost[Task]]:
    """Call `function(task, 0)` for each task in this process, one after the other.

    Args:
        function: What to call.
        tasks: Tasks; pulled one at a time.
        check: Judges each result; a bad one counts as a failed attempt.
        limits: How often a task is tried; nothing here ends one that hangs.

    Yields:
        What became of each task, in their order.

    Raises:
        ScreeningError: Raised by the function on purpose, as is any other error that has an exit
            code: no other attempt and no other task would do better.
    """
    for task in tasks:
        yield _try(function, task, check, limits)


def _try(
    function: Callable[[Task, int], Result],
    task: Task,
    check: Check[Task, Result] | None,
    limits: TaskLimits,
) -> Done[Task, Result] | Lost[Task]:
    lost: Lost[Task]
    for attempt in range(1, limits.attempts + 1):
        try:
            result = function(task, 0)
        except Exception as error:
            if is_deliberate(error):
                raise
            lost = Lost(task, describe_error(error), attempt, error)
            continue
        reason = None if check is None else check(task, result)
        if reason is None:
            return Done(task, result)
        lost = Lost(task, reason, attempt)
    return lost


def take_results(outcomes: Iterable[Done[Task, Result] | Lost[Task]]) -> Iterator[Result]:
    """Return the results of tasks none of which may be missing.

    Args:
        outcomes: From `map_here` or `screening.cluster.tasks.map_tasks`.

    Yields:
        The result of each task.

    Raises:
        WorkerKilledError: A task is lost, and not by an exception, which is raised as it is.
    """
    for outcome in outcomes:
        if isinstance(outcome, Done):
            yield outcome.result
        elif outcome.error is not None:
            raise outcome.error
        else:
            raise WorkerKilledError(
                f"a task failed {outcome.attempts} times: {outcome.reason}; run the same command "
                "again with a smaller --workers (finished work is kept)"
            )


def is_deliberate(error: BaseException) -> bool:
    """Whether an error was raised on purpose, for the user to cure: trying again is no use."""
    return isinstance(error, ScreeningError) or exit_code_of(error) is not None


def describe_error(error: BaseException) -> str:
    """Say in one line what was raised: ``ValueError: no such element``."""
    text = " ".join(str(error).split())
    if len(text) > LONGEST_REASON:
        text = f"{text[:LONGEST_REASON]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
