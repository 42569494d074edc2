"""Shards on the workers of a cluster, whose receipts say which worker it was."""

from __future__ import annotations

from distributed import get_worker

from screening.folder import Receipt
from screening.shard_tasks import ShardTask, screen_shard


def screen_shard_on_worker(task: ShardTask, worker: int = 0) -> Receipt:
    """Compute a shard on a Dask worker; see `screening.shard_tasks.screen_shard`.

    Args:
        task: What to compute.
        worker: Number of the worker, which picks its GPU where there are several.

    Returns:
        The receipt, with the name by which the scheduler knows the worker.
    """
    return screen_shard(task, worker, str(get_worker().name))
