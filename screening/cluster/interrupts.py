"""Preload of local workers: Ctrl-C is the driver's business, also for workers that replace others.

A terminal sends Ctrl-C to all processes of a command. The driver alone decides what to stop.
"""

from __future__ import annotations

import signal

from distributed import Worker


async def dask_setup(worker: Worker) -> None:
    """Let the process of a worker ignore Ctrl-C.

    Args:
        worker: The worker, which runs in its process's main thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
