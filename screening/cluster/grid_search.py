"""Grid searches of baselines on the workers of a cluster, through joblib's backend for Dask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, KilledWorker
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from joblib import parallel_config  # type: ignore[import-untyped]

from screening.errors import SchedulerLostError, WorkerKilledError

EVERY_THREAD = -1
"""What joblib calls as many fits at a time as the workers have threads."""


@contextmanager
def search_on_workers(client: Client) -> Iterator[int]:
    """Have what joblib runs in parallel inside run on the workers of a client.

    `irnet.baselines.fit_baseline` called inside with the yielded `n_jobs` fits the settings of its
    grid there, and the trees of Bagging and Random Forest; the data is sent to the workers once.
    The last fit of every other kind stays in this process, and where the workers have one thread in
    all, joblib leaves everything to this process.

    Args:
        client: Client of the workers.

    Yields:
        What to give as `n_jobs`.

    Raises:
        WorkerKilledError: Workers died again and again on the same setting.
        SchedulerLostError: The scheduler is gone.
    """
    try:
        with parallel_config("dask", client=client):
            yield EVERY_THREAD
    except KilledWorker as error:
        raise WorkerKilledError(
            "workers died repeatedly while they fitted a setting of the grid, most often for lack "
            "of memory; give them more, or fit on fewer rows with --rows"
        ) from error
    except (CommClosedError, FutureCancelledError) as error:
        raise SchedulerLostError(
            f"the Dask scheduler was lost during the grid search ({error}); see that it runs, and "
            "run the same command again: kinds that are finished are kept"
        ) from error
