import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irnet import (
    CheckpointError,
    DataError,
    Ensemble,
    ModelFileError,
    Progress,
    Recipe,
    TrainingDivergedError,
    train_ensemble,
)
from irnet.training import hash_data, learning_rate, split_rows

ROWS, COLUMNS = 300, 8
RECIPE = Recipe(architecture="16BARDx2-8BARx1-1", epochs=6, batch_size=32, precision="fp32")


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return (
        x,
        (x[:, 0] * 2 + np.abs(x[:, 1])).astype(np.float64),
        tuple(f"f{i}" for i in range(COLUMNS)),
    )


def train(folder: Path, **choices: object) -> Ensemble:
    options: dict[str, object] = {"recipe": RECIPE, "members": 1, "device": "cpu"} | choices
    return train_ensemble(*data(), checkpoint_dir=folder, **options)  # type: ignore[arg-type]


def assert_same_members(first: Ensemble, second: Ensemble) -> None:
    for a, b in zip(first.members, second.members, strict=True):
        assert a.record["history"] == b.record["history"]
        assert a.state.keys() == b.state.keys()
        for key, value in a.state.items():
            assert torch.equal(value, b.state[key]), key


def test_learns_and_records(tmp_path: Path) -> None:
    seen: list[Progress] = []
    recipe = RECIPE.with_changes(epochs=40, architecture="32BARx2-1", patience=None)
    ensemble = train(tmp_path, recipe=recipe, progress=seen.append)
    x, y, names = data()
    record = ensemble.members[0].record
    history = record["history"]
    assert len(history) == len(seen) == 40
    assert history[-1]["validation_mae"] < 0.3 * history[0]["validation_mae"]
    assert seen[-1].best_mae == record["validation_mae"]
    assert record["validation_mae"] == min(entry["validation_mae"] for entry in history)
    assert record["train_rows"] + record["validation_rows"] == ROWS
    assert ensemble.card["data_sha256"] == hash_data(x, y, names)
    assert ensemble.card["unit"] == "eV/atom"


def test_best_weights_are_restored(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(
        epochs=12, learning_rate=0.2, schedule="constant", validation_fraction=0.3, patience=None
    )
    ensemble = train(tmp_path, recipe=recipe)
    member = ensemble.members[0]
    x, y, _ = data()
    _, validation = split_rows(ROWS, 0.3, member.record["seeds"]["split"])
    with torch.no_grad():
        scaled = member.network(torch.from_numpy(member.scaling.inputs(x[validation]))).numpy()
    predicted = scaled * member.scaling.target_std + member.scaling.target_mean
    error = np.abs(predicted - y[validation]).mean()
    assert error == pytest.approx(member.record["validation_mae"], abs=1e-5)
    assert member.record["best_epoch"] < 12


def test_early_stopping(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(epochs=500, learning_rate=0.03, schedule="constant", patience=3)
    record = train(tmp_path, recipe=recipe).members[0].record
    assert record["epochs"] == record["best_epoch"] + 3 < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 2e-3},
        {"schedule": "constant"},
        {"batch_size": 64},
        {"weight_decay": 0.5},
        {"optimizer": "adam", "weight_decay": 0.0},
        {"gradient_clip": 0.01},
        {"gradient_clip": None},
        {"clip_sigma": 0.5},
        {"scale_inputs": False, "clip_sigma": None},
        {"scale_target": False},
        {"validation_fraction": 0.3},
        {"precision": "bf16"},
        {"dropout": 0.4},
        {"architecture": "16BARx2-8BARx1-1"},
    ],
)
def test_every_choice_of_a_recipe_matters(tmp_path: Path, changes: dict[str, object]) -> None:
    short = RECIPE.with_changes(epochs=2)
    base = train(tmp_path / "a", recipe=short).members[0].record["history"]
    other = train(tmp_path / "b", recipe=short.with_changes(**changes)).members[0]
    assert base != other.record["history"]


def test_members_differ_in_seed_split_and_scaling(tmp_path: Path) -> None:
    first, second = train(tmp_path, members=2).members
    assert first.record["seeds"]["split"] != second.record["seeds"]["split"]
    assert not np.array_equal(first.scaling.mean, second.scaling.mean)
    assert not torch.equal(first.state["output.weight"], second.state["output.weight"])


def test_seeds_reproduce(tmp_path: Path) -> None:
    assert_same_members(train(tmp_path / "a"), train(tmp_path / "b"))
    other = train(tmp_path / "c", seed=1)
    assert other.members[0].record["history"] != train(tmp_path / "a").members[0].record["history"]


def test_global_random_state_neither_matters_nor_moves(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = train(tmp_path / "a")
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_same_members(first, train(tmp_path / "b"))
    assert torch.equal(before, torch.get_rng_state())


def test_threads_train_the_same_members(tmp_path: Path) -> None:
    one_by_one = train(tmp_path / "a", members=3)
    with ThreadPoolExecutor(3) as pool:
        together = train(tmp_path / "b", members=3, map=pool.map)
    for a, b in zip(one_by_one.members, together.members, strict=True):
        assert a.record["seeds"] == b.record["seeds"]
        np.testing.assert_allclose(
            a.record["validation_mae"], b.record["validation_mae"], rtol=1e-3
        )


def test_interrupted_by_an_exception(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 3:
            raise KeyboardInterrupt

    whole = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", progress=stop)
    seen: list[int] = []
    resumed = train(tmp_path / "b", progress=lambda progress: seen.append(progress.epoch))
    assert seen == [3, 4, 5, 6]
    assert_same_members(whole, resumed)


def test_killed_process_resumes_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    program = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        import numpy as np
        from pathlib import Path
        from irnet import Recipe, train_ensemble

        generator = np.random.default_rng(0)
        x = generator.normal(size=({ROWS}, {COLUMNS})).astype(np.float32)
        y = x[:, 0] * 2 + np.abs(x[:, 1])
        recipe = Recipe(architecture="16BARDx2-8BARx1-1", epochs=6, batch_size=32, precision="fp32")

        def slow(progress):
            if progress.member == 1 and progress.epoch == 5:
                Path({str(tmp_path / "reached")!r}).touch()
                time.sleep(60)

        train_ensemble(x, y, [f"f{{i}}" for i in range({COLUMNS})], recipe=recipe, members=2,
                       checkpoint_dir={str(folder)!r}, device="cpu", progress=slow)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    until = time.monotonic() + 50
    while not (tmp_path / "reached").exists() and time.monotonic() < until:
        assert process.poll() is None, "the training ended by itself"
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert (folder / "member-0" / "member.safetensors").exists()
    assert (folder / "member-1" / "checkpoint.safetensors").exists()
    seen: list[tuple[int, int]] = []
    resumed = train(folder, members=2, progress=lambda p: seen.append((p.member, p.epoch)))
    assert seen == [(1, 5), (1, 6)]
    assert_same_members(train(tmp_path / "whole", members=2), resumed)
    assert not (folder / "member-1" / "checkpoint.safetensors").exists()


def test_a_finished_member_is_never_trained_again(tmp_path: Path) -> None:
    first = train(tmp_path, members=1)

    def refuse(progress: Progress) -> None:
        assert progress.member == 1

    assert_same_members(first, train(tmp_path, members=1, progress=refuse))
    more = train(tmp_path, members=2, progress=refuse)
    assert len(more.members) == 2


def test_another_trainings_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(CheckpointError, match="other seed"):
        train(tmp_path, seed=3)
    with pytest.raises(CheckpointError, match="other recipe"):
        train(tmp_path, recipe=RECIPE.with_changes(epochs=7))


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "member-0").mkdir()
    (tmp_path / "member-0" / "checkpoint.safetensors").write_bytes(b"1234")
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors: truncated.*delete it"):
        train(tmp_path)


def test_divergence_is_an_error(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(
        architecture="16Ax2-1", learning_rate=1e30, gradient_clip=None, schedule="constant"
    )
    with pytest.raises(TrainingDivergedError, match=r"epoch 1.*learning_rate"):
        train(tmp_path, recipe=recipe)


def spoil(x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    x[7, 2] = np.nan


def spoil_target(x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    y[9] = np.inf


def double_name(x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    names[3] = "f1"


def lose_name(x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    names.pop()


def overflow(x: np.ndarray, y: np.ndarray, names: list[str]) -> None:
    x[1, 0] = 1e300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil, "features row 7, column 'f2' is nan"),
        (spoil_target, "target row 9 is inf"),
        (double_name, "'f1' is given to two columns"),
        (lose_name, r"shape \(300, 8\), expected \(rows, 7\)"),
        (overflow, "features row 1, column 'f0' is inf"),
    ],
)
def test_bad_data(tmp_path: Path, change: Callable[..., None], message: str) -> None:
    x, y, names = data()
    wide, listed = x.astype(np.float64), list(names)
    change(wide, y, listed)
    with pytest.raises(DataError, match=message):
        train_ensemble(wide, y, listed, checkpoint_dir=tmp_path, device="cpu")


def test_shapes_of_target_groups_and_members(tmp_path: Path) -> None:
    x, y, names = data()
    with pytest.raises(DataError, match="target has shape"):
        train_ensemble(x, y[:-1], names, checkpoint_dir=tmp_path)
    with pytest.raises(DataError, match="groups has 2 labels for 300 rows"):
        train_ensemble(x, y, names, checkpoint_dir=tmp_path, groups=["a", "b"])
    with pytest.raises(DataError, match="members is 0"):
        train_ensemble(x, y, names, checkpoint_dir=tmp_path, members=0)


@given(
    st.lists(st.integers(0, 30), min_size=10, max_size=200),
    st.floats(0.01, 0.5),
    st.integers(0, 5),
)
def test_a_split_never_divides_a_group(labels: list[int], fraction: float, seed: int) -> None:
    groups = np.array(labels)
    try:
        train_rows, validation = split_rows(len(groups), fraction, seed, groups)
    except DataError:
        # what the groups that are drawn last leave for training is too little
        sizes = np.bincount(groups)
        assert len(groups) * (1 - fraction) - sizes.max() < 2
        return
    assert not set(groups[train_rows]) & set(groups[validation])
    assert sorted([*train_rows, *validation]) == list(range(len(groups)))
    largest = np.bincount(groups).max()
    assert fraction * len(groups) <= len(validation) <= fraction * len(groups) + largest


def test_split_sizes_and_seeds() -> None:
    _, validation = split_rows(1000, 0.1, 0)
    assert len(validation) == 100
    assert not np.array_equal(validation, split_rows(1000, 0.1, 1)[1])
    with pytest.raises(DataError, match="cannot be split"):
        split_rows(10, 0.1, 0, np.zeros(10, dtype=np.int64))


def test_groups_reach_the_split(tmp_path: Path) -> None:
    labels = np.arange(ROWS) // 3
    ensemble = train(tmp_path, groups=[f"formula {label}" for label in labels])
    _, validation = split_rows(
        ROWS, 0.1, ensemble.members[0].record["seeds"]["split"], labels.astype(np.int64)
    )
    assert ensemble.members[0].record["validation_rows"] == len(validation) == 30


def test_one_cycle_follows_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    steps = 200
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, cycle_momentum=False
    )
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(Recipe(), step, steps) for step in range(steps)]
    # torch's summit is one step earlier
    np.testing.assert_allclose(ours, rates, atol=2e-5)
    assert learning_rate(Recipe(schedule="constant"), 7, steps) == 1e-3


def test_bf16_learns_as_well(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(epochs=30, architecture="32BARx2-1")
    full = train(tmp_path / "a", recipe=recipe).members[0].record["validation_mae"]
    half = train(tmp_path / "b", recipe=recipe.with_changes(precision="bf16"))
    assert half.members[0].record["validation_mae"] < 1.3 * full
    assert half.members[0].record["precision"] == "bfloat16"


@pytest.mark.gpu
def test_trains_and_resumes_on_a_gpu(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, device="cuda", progress=stop)
    ensemble = train(tmp_path, device="cuda")
    assert ensemble.members[0].record["device"] == "cuda"
    assert ensemble.members[0].state["output.weight"].device.type == "cpu"
