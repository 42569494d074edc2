from __future__ import annotations

from collections.abc import Iterator

import pytest

from irnet.errors import DeviceError
from screening.errors import OutputError, WorkerKilledError
from screening.local_tasks import (
    Done,
    Lost,
    TaskLimits,
    describe_error,
    is_deliberate,
    map_here,
    take_results,
)


class Moody:
    """Fails so often for each task before it answers."""

    def __init__(self, **failures: int) -> None:
        self.failures = failures
        self.calls: list[str] = []

    def __call__(self, task: str, worker: int) -> str:
        self.calls.append(task)
        if self.failures.get(task, 0) > 0:
            self.failures[task] -= 1
            raise ValueError(f"no mood\nfor {task}")
        return task.upper()


def test_tasks_are_pulled_and_done_one_at_a_time() -> None:
    pulled = []

    def tasks() -> Iterator[str]:
        for name in "abc":
            pulled.append(name)
            yield name

    outcomes = map_here(Moody(), tasks())
    assert next(outcomes) == Done("a", "A")
    assert pulled == ["a"]
    assert list(outcomes) == [Done("b", "B"), Done("c", "C")]


def test_a_task_is_tried_as_often_as_allowed_and_the_others_go_on() -> None:
    function = Moody(a=2, b=3)
    outcomes = list(map_here(function, "abc", limits=TaskLimits(attempts=3)))
    assert outcomes[0] == Done("a", "A")
    assert outcomes[2] == Done("c", "C")
    lost = outcomes[1]
    assert isinstance(lost, Lost)
    assert (lost.task, lost.attempts, lost.reason) == ("b", 3, "ValueError: no mood for b")
    assert isinstance(lost.error, ValueError)
    assert function.calls == list("aaabbbc")


def test_a_bad_result_counts_as_a_failure() -> None:
    results = iter(["bad", "good", "bad", "bad"])
    outcomes = list(
        map_here(
            lambda task, worker: next(results),
            "xy",
            check=lambda task, result: f"{task} is bad" if result == "bad" else None,
            limits=TaskLimits(attempts=2),
        )
    )
    assert outcomes == [Done("x", "good"), Lost("y", "y is bad", 2)]


@pytest.mark.parametrize("error", [OutputError("the disk is full"), DeviceError("no such device")])
def test_an_error_that_the_user_must_cure_ends_everything(error: Exception) -> None:
    calls = []

    def fail(task: str, worker: int) -> None:
        calls.append(task)
        raise error

    with pytest.raises(type(error)):
        list(map_here(fail, "ab"))
    assert calls == ["a"]
    assert is_deliberate(error)
    assert not is_deliberate(ValueError("a bug"))


def test_results_of_tasks_none_of_which_may_be_missing() -> None:
    assert list(take_results([Done("a", 1), Done("b", 2)])) == [1, 2]
    bug = KeyError("a bug")
    with pytest.raises(KeyError) as raised:
        list(take_results([Lost("a", "KeyError", 3, bug)]))
    assert raised.value is bug
    with pytest.raises(WorkerKilledError, match=r"failed 3 times: its worker died; .*--workers"):
        list(take_results([Lost("a", "its worker died", 3)]))


def test_an_error_is_described_in_one_line() -> None:
    assert describe_error(ValueError("two\n  lines")) == "ValueError: two lines"
    assert describe_error(MemoryError()) == "MemoryError"


def test_the_reason_of_a_failure_is_bounded() -> None:
    told = describe_error(ValueError("x" * 10_000_000))
    assert told.startswith("ValueError: xxx")
    assert len(told) < 600
