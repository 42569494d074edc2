"""What the dashboard is told of a campaign: snapshots, as events of the scheduler."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from distributed import Client, performance_report

from screening.columns import written_atomically
from screening.errors import OutputError
from screening.status import CampaignStatus, State, StatusTracker, WorkerStatus

STATUS_TOPIC: Final = "screening-status"
"""Topic of the events; the content of each is `screening.status.CampaignStatus.to_json()`."""

SECONDS_BETWEEN: Final = 0.9
"""Time between two events, a little less than between two snapshots; the last is told always."""

SECONDS_BETWEEN_WORKERS: Final = 5.0
"""Time between two questions after the workers and their memory."""

ANSWER_SECONDS: Final = 3.0
"""How long a busy scheduler is waited for."""

REPORT_SECONDS: Final = 60.0
"""How long the scheduler may take to draw its performance report."""


class Publisher:
    """Tells the scheduler where a campaign stands, and the tracker what the workers use.

    Nothing here raises: a scheduler that is busy or gone misses a snapshot, and whether the
    campaign can go on without it is not decided here.

    Args:
        client: Client of the scheduler.
        tracker: Told of the workers and their memory.
        clock: Seconds, by a clock that does not jump.
    """

    def __init__(
        self,
        client: Client,
        tracker: StatusTracker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._tracker = tracker
        self._clock = clock
        self._told: float | None = None
        self._asked: float | None = None

    def __call__(self, status: CampaignStatus) -> None:
        """Tell a snapshot, unless one was told a moment ago and this is not the last."""
        running = status.state is State.RUNNING
        if running and self._is_due(self._asked, SECONDS_BETWEEN_WORKERS):
            self._asked = self._clock()
            identity = self._ask("identity", n_workers=-1)
            if identity is not None:
                self._tracker.set_workers(describe_workers(identity["workers"]))
        if running and not self._is_due(self._told, SECONDS_BETWEEN):
            return
        self._told = self._clock()
        self._ask("log_event", topic=STATUS_TOPIC, msg=status.to_json())

    def _is_due(self, last: float | None, seconds: float) -> bool:
        return last is None or self._clock() - last >= seconds

    def _ask(self, what: str, **arguments: Any) -> Any:
        """Ask the scheduler for something; None if it does not answer in time."""
        if self._client.status != "running":
            return None
        try:
            call = getattr(self._client.scheduler, what)
            return self._client.sync(call, callback_timeout=ANSWER_SECONDS, **arguments)
        except (Exception, asyncio.CancelledError):
            # whatever became of the scheduler, the tasks will say so
            logging.getLogger(__name__).debug("%s: no answer of the scheduler", what, exc_info=True)
            return None


def describe_workers(workers: Mapping[str, Mapping[str, Any]]) -> tuple[WorkerStatus, ...]:
    """Return who is connected and how much memory each uses.

    Args:
        workers: By address, as the scheduler's identity has them.
    """
    return tuple(
        WorkerStatus(
            name=str(each["name"]),
            host=str(each["host"]),
            memory_bytes=int(each.get("metrics", {}).get("memory", 0)) or None,
        )
        for each in workers.values()
    )


@contextmanager
def reporting_performance(
    client: Client, path: Path, note: Callable[[str], None]
) -> Iterator[None]:
    """Write Dask's performance report of what is done inside, as one HTML page.

    Args:
        client: Whose work to report.
        path: The page; it needs no network to be read.
        note: Told if the scheduler did not give the report or it could not be written; the results
            of the campaign do not depend on it.

    Raises:
        OutputError: The page could never be written there; known before any work is done.
    """
    check_report(path)
    with client.as_current(), TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        report = performance_report(filename=str(page), mode="inline")
        client.sync(report.__aenter__, callback_timeout=REPORT_SECONDS)
        try:
            yield
        finally:
            code = "a campaign of screening"  # instead of lines of this file
            try:
                client.sync(
                    report.__aexit__, None, None, None, code=code, callback_timeout=REPORT_SECONDS
                )
                with written_atomically(path) as temporary:
                    temporary.write_bytes(page.read_bytes())
            except (Exception, asyncio.CancelledError) as error:
                note(f"no performance report in {path}: {error or type(error).__name__}")


def check_report(path: Path) -> None:
    """Refuse a place where no report can be written.

    Raises:
        OutputError: It is a folder, or its folder is missing or cannot be written.
    """
    if path.is_dir():
        raise OutputError(f"--performance-report {path} is a folder; give the name of a file")
    if not os.access(path.resolve().parent, os.W_OK):
        raise OutputError(
            f"--performance-report {path}: its folder is missing or cannot be written; choose "
            "another place"
        )
