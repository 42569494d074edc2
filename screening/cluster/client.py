"""Clients: of a cluster on this machine, or of a scheduler that runs elsewhere."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster

from screening.errors import ConfigurationError
from screening.settings import count_cores

DASHBOARD_PORT = 8787
CONNECT_SECONDS = 15
WORKER_SECONDS = 30


@contextmanager
def connect(workers: int | None = None, scheduler: str | None = None) -> Iterator[Client]:
    """Open a client and close it, with the local cluster that belongs to it, on leaving.

    Args:
        workers: Worker processes of a local cluster, one task at a time each; None
            is one per core.
        scheduler: Address of a running scheduler; no local cluster is made then.

    Yields:
        A client.

    Raises:
        ConfigurationError: No scheduler answers at the address.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"no Dask scheduler answers at {scheduler} ({type(error).__name__}); start one "
                "with `dask scheduler`, or leave --scheduler out to use this machine"
            ) from error
        with client:
            yield client
        return
    with _local_cluster(workers or count_cores()) as cluster, Client(cluster) as client:
        yield client


def _local_cluster(workers: int) -> LocalCluster:
    with _interrupts_left_to_this_process(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Port .* is already in use")
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=f"127.0.0.1:{DASHBOARD_PORT}",
            silence_logs=logging.CRITICAL,
        )


def await_worker(client: Client, scheduler: str, note: Callable[[str], None]) -> None:
    """Wait until a scheduler that runs elsewhere has a worker.

    Args:
        client: Client of the scheduler.
        scheduler: Its address, for messages.
        note: Told that there is something to wait for.

    Raises:
        ConfigurationError: There is still none after `WORKER_SECONDS`.
    """
    if client.scheduler_info(n_workers=-1)["workers"]:
        return
    note(f"{scheduler} has no workers; waiting {WORKER_SECONDS:g} s for the first")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise ConfigurationError(
            f"the Dask scheduler at {scheduler} has no workers; start some with `dask worker "
            f"{scheduler} --nthreads 1` and run the same command again, or leave --scheduler out "
            "to use this machine"
        ) from error


@contextmanager
def _interrupts_left_to_this_process() -> Iterator[None]:
    """Let processes that are started inside ignore Ctrl-C: the driver alone decides to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
