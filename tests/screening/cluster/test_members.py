from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from typer.testing import Result

from irnet import Ensemble, Progress, Recipe, TrainingDivergedError, train_ensemble
from screening.cluster.members import map_members

MEMBERS = 3
NAMES = [f"f{i}" for i in range(6)]

random = np.random.default_rng(0)
FEATURES = random.normal(size=(300, len(NAMES))).astype(np.float32)
TARGET = FEATURES[:, :3].sum(axis=1).astype(np.float64)


@pytest.fixture
def client() -> Iterator[Client]:
    """Two worker processes of one thread each."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50)
        as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def train_here(folder: Path, recipe: Recipe, **options: object) -> Ensemble:
    return train_ensemble(
        FEATURES,
        TARGET,
        NAMES,
        recipe=recipe,
        members=MEMBERS,
        checkpoint_dir=folder,
        device="cpu",
        **options,  # type: ignore[arg-type]
    )


def tiny(epochs: int, **changes: object) -> Recipe:
    recipe = Recipe(architecture="16BARx2-1", epochs=epochs, batch_size=32, precision="fp32")
    return recipe.with_changes(patience=None, **changes)


def weights(ensemble: Ensemble) -> list[torch.Tensor]:
    return [value for member in ensemble.members for value in member.state.values()]


def assert_same(one: Ensemble, other: Ensemble) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Ensemble:
    """What the same training gives in this process, on one thread as each worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return train_here(tmp_path / "undisturbed", tiny(60))
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_changes(
    client: Client, tmp_path: Path, undisturbed: Ensemble
) -> None:
    places = client.run(os.getpid)
    first = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    epochs: dict[int, list[int]] = {number: [] for number in range(MEMBERS)}
    killed = threading.Event()

    def watch(progress: Progress) -> None:
        epochs[progress.member].append(progress.epoch)
        if progress.member == 0 and progress.epoch >= 5 and not killed.is_set():
            killed.set()
            os.kill(places[first], signal.SIGKILL)

    trained = train_here(
        tmp_path / "cluster",
        tiny(60),
        progress=watch,
        map=lambda function, tasks: map_members(client, function, tasks),
    )
    assert killed.is_set()
    assert places[first] not in client.run(os.getpid).values()
    assert epochs[0].count(1) == 1, "the first member went on from a checkpoint"
    assert_same(trained, undisturbed)
    assert [member.record["number"] for member in trained.members] == list(range(MEMBERS))


@pytest.mark.slow
def test_an_interrupted_driver_leaves_no_work_and_its_checkpoints(
    client: Client, tmp_path: Path
) -> None:
    pressed = threading.Event()

    def press_ctrl_c(progress: Progress) -> None:
        if progress.epoch >= 4 and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_here(
            tmp_path,
            tiny(100_000),
            progress=press_ctrl_c,
            map=lambda function, tasks: map_members(client, function, tasks),
        )
    deadline = time.monotonic() + 120
    while any(client.run(lambda dask_worker: dask_worker.state.executing_count).values()):
        assert time.monotonic() < deadline, "the workers go on although nobody waits"
        time.sleep(0.1)
    assert list(tmp_path.glob("*/checkpoint.safetensors"))


@pytest.mark.slow
def test_what_a_member_raises_arrives(client: Client, tmp_path: Path) -> None:
    recipe = tiny(60, learning_rate=1e30, gradient_clip=None, schedule="constant")
    with pytest.raises(TrainingDivergedError, match="member"):
        train_here(
            tmp_path, recipe, map=lambda function, tasks: map_members(client, function, tasks)
        )


@pytest.mark.slow
def test_a_training_uses_the_workers_of_a_scheduler_and_their_gpus(
    train: Callable[..., Result], training_data: Path, tmp_path: Path
) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        resources={"GPU": 1},
    ) as cluster:
        address = cluster.scheduler_address
        done = train(training_data, "--scheduler", address, "--workers", 1)
        worker = cluster.workers[0]
        assert worker.state.total_resources == {"GPU": 1}
        ran = [story for story in worker.state.log if "_train_on_worker" in str(story)]
    assert done.exit_code == 0, done.output
    assert "1 network on 1 worker; checkpoints go to" in done.stderr
    assert ran
    assert (tmp_path / "model/card.json").is_file()
