"""Training the members of an ensemble on the workers of a cluster, one member on each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any

from distributed import Client, Future, KilledWorker, as_completed, get_worker
from distributed.client import FutureCancelledError

from screening.cluster.client import pick_resources
from screening.errors import WorkerKilledError

if TYPE_CHECKING:
    from irnet.ensemble import Member
    from irnet.trainee import MemberTask, Progress

TrainMember = Callable[["MemberTask"], "Member"]

PROGRESS = "progress"
"""Key of an event's content; Dask adds keys of its own beside it."""

ROUNDS = 3
"""How often the arrays are sent again where all workers that held them died."""


class _AbandonedError(Exception):
    """Ends a training on a worker which nobody waits for any more; its checkpoint stays."""


def map_members(client: Client, function: TrainMember, tasks: Sequence[MemberTask]) -> list[Member]:
    """Train each member on a worker of its own.

    What the tasks have in common, the training data above all, is sent to every worker once. If the
    workers declare the resource GPU, each member asks for one; otherwise no worker is given a
    second member while another has none. A member uses as many threads as its worker has. One whose
    worker dies is given to another worker, which goes on from the checkpoint if it sees the same
    folder. Where the driver dies or is interrupted, the workers stop after the epoch they are in.

    Args:
        client: Where to train.
        function: `irnet.training.train_member`, or any importable function like it.
        tasks: The members; called progress functions stay in this process.

    Returns:
        The members, in the order of the tasks.

    Raises:
        WorkerKilledError: Workers died again and again on the same member.
        Exception: Whatever the function raised; the other members are stopped then.
    """
    trained: dict[int, Member] = {}
    for attempt in range(ROUNDS):
        missing = [number for number in range(len(tasks)) if number not in trained]
        if not missing:
            break
        try:
            _train_round(client, function, tasks, missing, trained)
        except (KilledWorker, FutureCancelledError) as error:
            if isinstance(error, KilledWorker) or attempt == ROUNDS - 1:
                raise WorkerKilledError(
                    "workers died repeatedly while they trained a network, most often for lack of "
                    "memory; the same command goes on from the last checkpoints"
                ) from error
    return [trained[number] for number in range(len(tasks))]


def _train_round(
    client: Client,
    function: TrainMember,
    tasks: Sequence[MemberTask],
    missing: Sequence[int],
    trained: dict[int, Member],
) -> None:
    """Train what is missing; finished members are kept in `trained` whatever happens."""
    shared = _shared_fields(tasks)
    bare: dict[str, Any] = {name: None for name in shared} | {"progress": None}
    [data] = client.scatter([shared], broadcast=True, hash=False)
    topic = f"irnet-members-{uuid.uuid4()}"
    client.subscribe_topic(topic, lambda event: _pass_on(tasks, event[1][PROGRESS]))
    running: dict[Future[Member], tuple[int, str | None]] = {}
    waiting = list(missing)
    resources = pick_resources(client)

    def submit(number: int) -> Future[Member]:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        where: dict[str, Any] = {}
        address = None
        if resources is not None:
            where = {"resources": resources}
        else:
            taken = {each for _, each in running.values()}
            address = next((each for each in workers if each not in taken), None)
            if address is not None:
                # a wish, so that another worker takes over if this one dies
                where = {"workers": [address], "allow_other_workers": True}
        task = replace(tasks[number], **bare)
        future: Future[Member] = client.submit(
            _train_on_worker, function, task, data, topic, pure=False, **where
        )
        running[future] = (number, address)
        return future

    at_once = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    try:
        futures = as_completed([submit(waiting.pop(0)) for _ in range(min(at_once, len(waiting)))])
        for future in futures:
            member = future.result()
            trained[running.pop(future)[0]] = member
            if waiting:
                futures.add(submit(waiting.pop(0)))
    finally:
        client.cancel([*running, data])
        client.unsubscribe_topic(topic)


def _shared_fields(tasks: Sequence[MemberTask]) -> dict[str, Any]:
    first = tasks[0]
    return {
        field.name: getattr(first, field.name)
        for field in fields(first)
        if field.name != "progress"
        and all(getattr(task, field.name) is getattr(first, field.name) for task in tasks)
    }


def _pass_on(tasks: Sequence[MemberTask], values: dict[str, Any]) -> None:
    from irnet.trainee import Progress

    progress = Progress(**values)
    tell = tasks[progress.member].progress
    if tell is not None:
        tell(progress)


def _train_on_worker(
    function: TrainMember, task: MemberTask, shared: dict[str, Any], topic: str
) -> Member:
    import torch

    worker = get_worker()
    key = worker.get_current_task()

    def tell(progress: Progress) -> None:
        state = worker.state.tasks.get(key)
        if state is None or state.state == "cancelled":
            raise _AbandonedError
        worker.log_event(topic, {PROGRESS: asdict(progress)})

    torch.set_num_threads(worker.state.nthreads)
    return function(replace(task, **shared, progress=tell))
