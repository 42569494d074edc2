"""The page of campaigns for a scheduler that is started by hand or by a batch system.

It is `dask scheduler --preload screening.cluster.preload` that loads this module.
"""

from __future__ import annotations

from distributed import Scheduler

from screening.cluster.dashboard import ScreeningPage
from screening.errors import ConfigurationError


async def dask_setup(scheduler: Scheduler) -> None:
    """Let a scheduler serve the page; Dask calls this when it starts.

    Args:
        scheduler: The scheduler.

    Raises:
        ConfigurationError: It is a worker.
    """
    if not isinstance(scheduler, Scheduler):
        raise ConfigurationError(
            "screening.cluster.preload is for schedulers: dask scheduler --preload "
            "screening.cluster.preload; workers need no preload"
        )
    await scheduler.register_scheduler_plugin(ScreeningPage(), idempotent=True)
