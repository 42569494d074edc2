"""Who computes: this process, or the workers of a cluster, which are hired with the first task."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from screening.errors import ConfigurationError
from screening.local_tasks import Check, Done, Lost, TaskLimits, map_here
from screening.settings import CampaignSettings, count_cores

if TYPE_CHECKING:
    from screening.status import StatusTracker, StatusWriter


class Workforce:
    """Works off the tasks of a campaign; a context, which sends the workers home at its end.

    Args:
        settings: The campaign, which says where its workers come from.
        folder: The result folder, which all workers must see.
        tracker: Told which workers there are.
        writer: Whose snapshots the scheduler's dashboard shows.
        note: Told what the user should know while waiting.
        watch_at: Told the address of the dashboard.
        performance_report: Where Dask's performance report goes; None writes none.

    """

    def __init__(
        self,
        settings: CampaignSettings,
        folder: Path,
        *,
        tracker: StatusTracker,
        writer: StatusWriter,
        note: Callable[[str], None],
        watch_at: Callable[[str], None],
        performance_report: Path | None = None,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._tracker = tracker
        self._writer = writer
        self._note = note
        self._watch_at = watch_at
        self._report = performance_report
        self._stack = ExitStack()
        self._client: Any = None  # distributed.Client, which only screening.cluster may name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def work_off(
        self,
        function: Callable[[Any, int], Any],
        tasks: Iterable[Any],
        check: Check[Any, Any] | None = None,
    ) -> Generator[Done[Any, Any] | Lost[Any]]:
        """Call a function for each task; yield what became of each, as they end.

        Args:
            function: Importable function of a task and of the number of the worker.
            tasks: Pulled from only as fast as they are worked off; without any, nobody is hired.
            check: Says what is wrong with a result, in this process.

        Raises:
            ScreeningError: See `screening.cluster.tasks.map_tasks` and `screening.local_tasks`.
        """
        waiting = iter(tasks)
        first = list(islice(waiting, 1))
        if not first:
            return
        settings = self._settings
        limits = TaskLimits(settings.attempts, settings.patience_seconds)
        everything = chain(first, waiting)
        if settings.computes_here:
            yield from map_here(function, everything, check=check, limits=limits)
            return
        from screening.cluster.tasks import map_tasks

        yield from map_tasks(
            self._hire(), function, everything, check=check, limits=limits, note=self._note
        )

    def _hire(self) -> Any:
        """Return the client, and make it and all that belongs to it with the first call."""
        if self._client is not None:
            return self._client
        from screening.cluster.client import connect, probe_workers
        from screening.cluster.dashboard import install_page
        from screening.cluster.publication import Publisher, reporting_performance

        enter, settings = self._stack.enter_context, self._settings
        client = enter(connect(settings.cluster, self._note, device=settings.device))
        probe_workers(client, self._folder, self._note)
        self._watch_at(install_page(client, self._note) or client.dashboard_link)
        enter(self._writer.telling(Publisher(client, self._tracker)))
        if self._report is not None:
            enter(reporting_performance(client, self._report, self._note))
        self._client = client
        return client


def check_performance_report(settings: CampaignSettings, path: Path | None) -> None:
    """Refuse a performance report that cannot be made.

    Args:
        settings: The campaign.
        path: Where the report goes; None writes none.

    Raises:
        ConfigurationError: A report of Dask is asked for, and Dask is not used.
        OutputError: The report cannot be written there.
    """
    if path is None:
        return
    if settings.computes_here:
        raise ConfigurationError(
            "--performance-report is Dask's, and --workers 0 works without Dask; leave one of them "
            "out"
        )
    from screening.cluster.publication import check_report

    check_report(path)


def count_threads(settings: CampaignSettings) -> int | None:
    """Return how many threads of arithmetic each worker gets that is started on this machine.

    Args:
        settings: The campaign.

    Returns:
        The number, None where workers run elsewhere or this process computes: they stay as they
        are.
    """
    cluster = settings.cluster
    if settings.computes_here or cluster.is_elsewhere or cluster.is_batch:
        return None
    from screening.cluster.deployment import plan_workers

    workers = plan_workers(cluster, settings.device)
    return max(1, count_cores() // max(1, workers.total))


def describe_place(settings: CampaignSettings) -> str | int:
    """Return where a campaign was computed, for its manifest: a place, or a number of workers."""
    cluster = settings.cluster
    if cluster.is_elsewhere:
        return cluster.scheduler or str(cluster.scheduler_file)
    if cluster.is_batch:
        return f"jobs of {cluster.type}"
    if settings.computes_here:
        return 0
    from screening.cluster.deployment import plan_workers

    return plan_workers(cluster, settings.device).total
