import math
import os
import pickle
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
from sklearn.metrics import log_loss

from irnet import (
    ArchitectureError,
    CheckpointError,
    DataError,
    DeviceError,
    Ensemble,
    FeatureMismatchError,
    Member,
    ModelFileError,
    Progress,
    Recipe,
    RecipeError,
    TrainingDivergedError,
    encode_classes,
    train_ensemble,
)
from irnet.optimizer import Optimizer
from irnet.rows import hash_data, split_rows
from irnet.schedule import count_plateaus, learning_rate
from irnet.storage import read_tensors, write_tensors
from irnet.trainee import MemberTask
from irnet.training import train_member

ROWS, COLUMNS = 300, 8
RECIPE = Recipe(
    architecture="16BARDx2-8BARx1-1",
    epochs=6,
    batch_size=32,
    learning_rate=1e-3,
    precision="fp32",
)


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


def assert_close_members(first: Ensemble, second: Ensemble) -> None:
    """Compare members that differ by rounding.

    The gradient of a bias in front of batch norm is nothing but rounding, which Adam blows up to
    steps of full length; the running mean follows with a delay, so that validation differs more
    than training. `tests/irnet/test_network.py` compares the arithmetic itself, in float64.
    """
    x, _, _ = data()
    for a, b in zip(first.members, second.members, strict=True):
        assert a.record["epochs"] == b.record["epochs"]
        for key, tolerance in (("train_mae", 5e-4), ("validation_mae", 5e-3)):
            np.testing.assert_allclose(
                [entry[key] for entry in a.record["history"]],
                [entry[key] for entry in b.record["history"]],
                rtol=tolerance,
            )
        assert {k: v.shape for k, v in a.state.items()} == {k: v.shape for k, v in b.state.items()}
        with torch.no_grad():
            predicted = [
                member.network(torch.from_numpy(member.scaling.inputs(x))) for member in (a, b)
            ]
        torch.testing.assert_close(*predicted, rtol=0, atol=0.02)


def test_learns_and_records(tmp_path: Path) -> None:
    seen: list[Progress] = []
    recipe = RECIPE.with_changes(epochs=40, architecture="32BARx2-1", patience=None)
    ensemble = train(tmp_path, recipe=recipe, progress=seen.append)
    x, y, names = data()
    record = ensemble.members[0].record
    history = record["history"]
    assert len(history) == len(seen) == 40
    assert history[-1]["validation_mae"] < 0.3 * history[0]["validation_mae"]
    assert seen[-1].best_error == record["validation_mae"]
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
        {"schedule": "cosine"},
        {"schedule": "step", "decay_epochs": 1},
        {"schedule": "step", "decay_epochs": 1, "decay_factor": 0.1},
        {"weight_averaging": "ema"},
        {"weight_averaging": "ema", "averaging_decay": 0.3},
        {"input_noise": 0.1},
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
    whole = train(tmp_path / "a")
    interrupt(tmp_path / "b")
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
        recipe = Recipe.from_json({RECIPE.to_json()!r})

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


def stop_at(epoch: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.epoch == epoch:
            raise KeyboardInterrupt

    return stop


def interrupt(folder: Path, **choices: object) -> Path:
    """Stop a training after epoch 3 and return the checkpoint of epoch 2."""
    with pytest.raises(KeyboardInterrupt):
        train(folder, progress=stop_at(3), **choices)
    return folder / "member-0" / "checkpoint.safetensors"


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_averaging": "ema", "averaging_decay": 0.9},
        {"input_noise": 0.2},
        {"schedule": "step", "decay_epochs": 2},
        {"precision": "bf16"},
    ],
)
def test_resuming_is_exact(tmp_path: Path, changes: dict[str, object]) -> None:
    recipe = RECIPE.with_changes(**changes)
    interrupt(tmp_path / "b", recipe=recipe)
    assert_same_members(train(tmp_path / "a", recipe=recipe), train(tmp_path / "b", recipe=recipe))


# a recipe and an identity as the first version wrote them, before recipes had more fields
FIRST_RECIPE = {
    "name": "default",
    "architecture": "16BARDx2-8BARx1-1",
    "epochs": 6,
    "batch_size": 32,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-2,
    "schedule": "one-cycle",
    "gradient_clip": 1.0,
    "scale_inputs": True,
    "clip_sigma": 6.0,
    "scale_target": True,
    "validation_fraction": 0.1,
    "patience": 40,
    "precision": "fp32",
    "dropout": 0.1,
}


def test_checkpoints_and_members_of_the_first_version_are_recognised(tmp_path: Path) -> None:
    first = {
        "data_sha256": hash_data(*data()),
        "groups_sha256": None,
        "recipe": FIRST_RECIPE,
        "seed": 0,
        "member": 0,
    }
    whole = train(tmp_path / "whole")
    checkpoint = interrupt(tmp_path / "b")
    tensors, header = read_tensors(checkpoint, "an irnet checkpoint")
    del header["format"], header["sha256"]
    header["best_mae"] = header.pop("best_error")
    for entry in header["history"]:
        del entry["learning_rate"]
    write_tensors(checkpoint, tensors, header | {"identity": first})
    resumed = train(tmp_path / "b")
    for key, value in whole.members[0].state.items():
        assert torch.equal(value, resumed.members[0].state[key]), key

    member = whole.members[0]
    Member(
        member.architecture,
        member.feature_names,
        member.scaling,
        member.state,
        {**member.record, "identity": first},
    ).save(tmp_path / "whole" / "member-0" / "member.safetensors")

    def refuse(progress: Progress) -> None:
        raise AssertionError("trained again")

    train(tmp_path / "whole", progress=refuse)
    with pytest.raises(CheckpointError, match="other recipe"):
        train(tmp_path / "whole", recipe=RECIPE.with_changes(input_noise=0.1))


# trained by the first version on `data()` with RECIPE, seed 0, on one thread of an AMD EPYC
FIRST_HISTORY = (
    (2.030775, 2.047),
    (1.922298, 2.008012),
    (1.720636, 1.859916),
    (1.579064, 1.735533),
    (1.518099, 1.659117),
    (1.505453, 1.635335),
)


def test_default_recipes_train_as_the_first_version_did(tmp_path: Path) -> None:
    history = train(tmp_path).members[0].record["history"]
    found = [(entry["train_mae"], entry["validation_mae"]) for entry in history]
    # rounding differs with the number of threads, and shows in the validation error first
    np.testing.assert_allclose(found, FIRST_HISTORY, rtol=1e-3)


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    checkpoint = interrupt(tmp_path)
    tensors, header = read_tensors(checkpoint, "an irnet checkpoint")
    write_tensors(checkpoint, tensors, header | {"format": 9})
    with pytest.raises(ModelFileError, match=r"format 9 by a newer version.*delete it"):
        train(tmp_path)


@pytest.mark.parametrize("part", ["weights", "history"])
def test_an_altered_checkpoint_is_refused(tmp_path: Path, part: str) -> None:
    checkpoint = interrupt(tmp_path)
    tensors, header = read_tensors(checkpoint, "an irnet checkpoint")
    if part == "weights":
        tensors["network.output.weight"][0, 0] += 1e-6
    else:
        header["history"][0]["train_mae"] += 1e-9
    write_tensors(checkpoint, tensors, header)
    with pytest.raises(ModelFileError, match=r"was altered.*delete it"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("network.output.weight", "output.weight"), ("optimizer.0.exp_avg", "0.exp_avg")],
)
def test_a_checkpoint_that_lacks_weights_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    checkpoint = interrupt(tmp_path)
    tensors, header = read_tensors(checkpoint, "an irnet checkpoint")
    del tensors[name], header["format"], header["sha256"]
    header["best_mae"] = header.pop("best_error")
    write_tensors(checkpoint, tensors, header)
    with pytest.raises(ModelFileError, match=f"does not fit.*{message}.*delete it"):
        train(tmp_path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "member-0").mkdir()
    (tmp_path / "member-0" / "checkpoint.safetensors").write_bytes(b"1234")
    with pytest.raises(ModelFileError, match=r"checkpoint\.safetensors: truncated.*delete it"):
        train(tmp_path)


def test_divergence_is_an_error(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(
        architecture="16Ax2-1", learning_rate=1e30, gradient_clip=None, schedule="constant"
    )
    with pytest.raises(TrainingDivergedError, match=r"member 0, epoch 1, step [23] of 8.*lower"):
        train(tmp_path, recipe=recipe)


def poison_step(monkeypatch: pytest.MonkeyPatch, number: int, member: int) -> None:
    """Spoil the weights of a member in one of the optimiser's steps, numbered from 1."""
    step = Optimizer.step
    steps = {"done": 0}

    def spoiled(self: Optimizer, loss: torch.Tensor, rate: float) -> None:
        step(self, loss, rate)
        steps["done"] += 1
        if steps["done"] == number:
            bias = self.network.output.bias.data
            (bias[member] if self.members > 1 else bias).fill_(math.inf)

    monkeypatch.setattr(Optimizer, "step", spoiled)


def test_the_best_weights_before_a_divergence_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(tmp_path / "a")
    # 8 steps an epoch: the fifth of the third epoch is the first to see the infinite weight
    with monkeypatch.context() as patch:
        poison_step(patch, 20, 0)
        with pytest.raises(TrainingDivergedError, match=r"member 0, epoch 3, step 5 of 8") as error:
            train(tmp_path / "b")
    file = tmp_path / "b" / "member-0" / "diverged.safetensors"
    assert str(file) in str(error.value)
    kept = Member.load(file)
    assert kept.record["history"] == undisturbed.members[0].record["history"][:2]
    assert kept.record["validation_mae"] == min(h["validation_mae"] for h in kept.record["history"])
    assert all(value.isfinite().all() for value in kept.state.values())
    assert_same_members(undisturbed, train(tmp_path / "b"))


def test_a_divergence_after_the_last_step_is_seen_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_step(monkeypatch, 8, 0)
    with pytest.raises(TrainingDivergedError, match="validation after the last step of 8"):
        train(tmp_path)


def test_a_member_that_diverges_loses_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(tmp_path / "a", members=3, together=True)
    with monkeypatch.context() as patch:
        poison_step(patch, 20, 1)
        with pytest.raises(TrainingDivergedError, match="member 1, epoch 3, step 5"):
            train(tmp_path / "b", members=3, together=True)
    seen: list[tuple[int, int]] = []
    resumed = train(
        tmp_path / "b",
        members=3,
        together=True,
        progress=lambda p: seen.append((p.member, p.epoch)),
    )
    # the others go on from the epoch in which the first was lost
    assert [epoch for member, epoch in seen if member == 0] == [4, 5, 6]
    assert [epoch for member, epoch in seen if member == 1] == [3, 4, 5, 6]
    assert_close_members(undisturbed, resumed)


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
    for choice in ({"members": 0}, {"checkpoint_every": 0}, {"seed": -1}):
        ((name, number),) = choice.items()
        with pytest.raises(DataError, match=f"{name} is {number}, must be at least"):
            train_ensemble(x, y, names, checkpoint_dir=tmp_path, **choice)
    with pytest.raises(DataError, match="no columns"):
        train_ensemble(x[:, :0], y, [], checkpoint_dir=tmp_path)


def test_groups_reach_the_split(tmp_path: Path) -> None:
    labels = np.arange(ROWS) // 3
    ensemble = train(tmp_path, groups=[f"formula {label}" for label in labels])
    _, validation = split_rows(
        ROWS, 0.1, ensemble.members[0].record["seeds"]["split"], labels.astype(np.int64)
    )
    assert ensemble.members[0].record["validation_rows"] == len(validation) == 30


def test_bf16_learns_as_well(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(epochs=30, architecture="32BARx2-1")
    full = train(tmp_path / "a", recipe=recipe).members[0].record["validation_mae"]
    half = train(tmp_path / "b", recipe=recipe.with_changes(precision="bf16"))
    assert half.members[0].record["validation_mae"] < 1.3 * full
    assert half.members[0].record["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("16BARx2-8BARx1-1", {}),
        ("16BAx2R-8ABx2R-1", {"weight_averaging": "ema", "averaging_decay": 0.9}),
        ("16ABRDx2-8Ax2D-1", {"input_noise": 0.1, "optimizer": "adam", "weight_decay": 0.0}),
        ("16Ax2-8ABx1-1", {"gradient_clip": 0.05, "frozen_layers": 2}),
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_members_trained_together_are_those_trained_alone(
    tmp_path: Path, architecture: str, changes: dict[str, object], ragged: bool
) -> None:
    recipe = RECIPE.with_changes(architecture=architecture, epochs=3)
    options: dict[str, object] = {"members": 3}
    if ragged:  # splits of whole groups leave the members different numbers of rows
        options["groups"] = np.minimum(np.arange(ROWS) // 7, 30)
        options["weights"] = 1.0 + np.arange(ROWS) % 3
    if "frozen_layers" in changes:
        options["init_from"] = train(tmp_path / "first", recipe=recipe, members=2)
    options["recipe"] = recipe.with_changes(**changes)
    alone = train(tmp_path / "a", **options)
    together = train(tmp_path / "b", together=True, **options)
    rows = {member.record["train_rows"] for member in alone.members}
    assert (len(rows) > 1) == ragged
    assert_close_members(alone, together)


def test_members_leave_their_stack_when_they_stop(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(
        epochs=30, patience=2, learning_rate=0.05, schedule="constant", architecture="16Ax1-1"
    )
    alone = train(tmp_path / "a", recipe=recipe, members=3)
    seen: list[tuple[int, int]] = []
    together = train(
        tmp_path / "b",
        recipe=recipe,
        members=3,
        together=True,
        progress=lambda p: seen.append((p.member, p.epoch)),
    )
    epochs = [member.record["epochs"] for member in together.members]
    assert len(set(epochs)) > 1
    assert epochs == [sum(m == number for m, _ in seen) for number in range(3)]
    for a, b in zip(alone.members, together.members, strict=True):
        assert a.record["history"][0]["validation_mae"] == pytest.approx(
            b.record["history"][0]["validation_mae"], rel=1e-4
        )


def test_a_stack_resumes_bit_for_bit(tmp_path: Path) -> None:
    options: dict[str, object] = {
        "members": 3,
        "together": True,
        "recipe": RECIPE.with_changes(weight_averaging="ema"),
    }
    interrupt(tmp_path / "b", **options)
    seen: list[tuple[int, int]] = []
    resumed = train(tmp_path / "b", progress=lambda p: seen.append((p.member, p.epoch)), **options)
    assert seen == [(member, epoch) for epoch in (3, 4, 5, 6) for member in range(3)]
    assert_same_members(train(tmp_path / "a", **options), resumed)


def test_a_stack_goes_on_with_what_single_trainings_left(tmp_path: Path) -> None:
    train(tmp_path / "b", members=1)  # member 0 is finished

    def stop(progress: Progress) -> None:
        if (progress.member, progress.epoch) == (1, 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", members=3, progress=stop)
    seen: list[tuple[int, int]] = []
    mixed = train(
        tmp_path / "b",
        members=4,
        together=True,
        progress=lambda p: seen.append((p.member, p.epoch)),
    )
    expected = [(1, 5), (1, 6)]
    expected += [(member, epoch) for epoch in range(1, 7) for member in (2, 3)]
    assert seen == expected
    assert_close_members(train(tmp_path / "a", members=4), mixed)


@pytest.mark.gpu
def test_a_stack_on_a_gpu_trains_the_members_of_the_cpu(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(architecture="16BARx2-8BAx2R-1", epochs=3)
    groups = np.minimum(np.arange(ROWS) // 7, 30)
    alone = train(tmp_path / "a", recipe=recipe, members=3, groups=groups)
    stacked = train(tmp_path / "b", recipe=recipe, members=3, groups=groups, device="cuda")
    assert stacked.members[0].record["device"] == "cuda"
    for a, b in zip(alone.members, stacked.members, strict=True):
        np.testing.assert_allclose(
            [entry["validation_mae"] for entry in a.record["history"]],
            [entry["validation_mae"] for entry in b.record["history"]],
            rtol=5e-3,
        )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stack_on_a_gpu_resumes(tmp_path: Path, precision: str) -> None:
    options: dict[str, object] = {
        "members": 3,
        "device": "cuda",
        "recipe": RECIPE.with_changes(precision=precision, weight_averaging="ema"),
    }
    interrupt(tmp_path, **options)
    seen: list[tuple[int, int]] = []
    train(tmp_path, progress=lambda p: seen.append((p.member, p.epoch)), **options)
    assert seen == [(member, epoch) for epoch in (3, 4, 5, 6) for member in range(3)]


def states_of(ensemble: Ensemble) -> list[dict[str, torch.Tensor]]:
    return [dict(member.state) for member in ensemble.members]


def test_starting_from_another_ensemble(tmp_path: Path) -> None:
    source = train(tmp_path / "source", members=2, recipe=RECIPE.with_changes(epochs=20))
    recipe = RECIPE.with_changes(epochs=1, learning_rate=1e-9, schedule="constant")
    tuned = train(tmp_path / "tuned", members=3, recipe=recipe, init_from=source, seed=5)
    for number, member in enumerate(tuned.members):
        origin = source.members[number % 2]
        np.testing.assert_array_equal(member.scaling.mean, origin.scaling.mean)
        assert member.scaling.target_std == origin.scaling.target_std
        for name, value in member.state.items():
            if "running" not in name and "num" not in name:
                torch.testing.assert_close(value, origin.state[name], rtol=1e-4, atol=1e-6)
    alone = train(tmp_path / "member", recipe=recipe, init_from=source.members[0], seed=5)
    assert_same_members(Ensemble(tuned.members[:1], tuned.card), alone)
    assert len(tuned.card["init_sha256"]) == 2
    with pytest.raises(CheckpointError, match="other init_sha256"):
        train(tmp_path / "tuned", members=3, recipe=recipe, init_from=source.members[1], seed=5)
    with pytest.raises(CheckpointError, match="other init_sha256, init_output"):
        train(tmp_path / "tuned", members=3, recipe=recipe, seed=5)


def test_another_target_gets_its_own_scaling_and_output_layer(tmp_path: Path) -> None:
    source = train(tmp_path / "source")
    x, y, names = data()
    recipe = RECIPE.with_changes(epochs=1, learning_rate=1e-9, schedule="constant")
    tuned = train_ensemble(
        x,
        100 + 10 * y,
        names,
        recipe=recipe,
        members=1,
        checkpoint_dir=tmp_path / "tuned",
        device="cpu",
        init_from=source,
        target_name="band_gap",
        target_unit="eV",
    ).members[0]
    origin = source.members[0]
    np.testing.assert_array_equal(tuned.scaling.mean, origin.scaling.mean)
    assert tuned.scaling.target_mean == pytest.approx(100 + 10 * y.mean(), rel=0.02)
    key = "stages.0.layers.0.linear.weight"
    torch.testing.assert_close(tuned.state[key], origin.state[key], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(tuned.state["output.weight"], origin.state["output.weight"])
    assert tuned.record["target"] == "band_gap"


@pytest.mark.parametrize("frozen", [1, 2, -1])
def test_frozen_layers_stay_as_they_were(tmp_path: Path, frozen: int) -> None:
    recipe = RECIPE.with_changes(architecture="16BAx2R-8BARx1-1")
    source = train(tmp_path / "source", recipe=recipe)
    tuned = train(
        tmp_path / "tuned", recipe=recipe.with_changes(frozen_layers=frozen), init_from=source
    )
    before, after = source.members[0].state, tuned.members[0].state
    changed = {
        name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])
    }
    second, block = "stages.0.layers.1", "stages.0"
    third = "stages.1.layers.0"
    expected = {"output"}
    if frozen == 1:
        expected |= {f"{second}.linear", f"{second}.norm", f"{block}.projection"}
    if frozen in (1, 2):
        expected |= {f"{third}.linear", f"{third}.norm", f"{third}.projection"}
    assert changed == expected


def test_freezing_needs_weights_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"frozen_layers is 1.*give init_from"):
        train(tmp_path, recipe=RECIPE.with_changes(frozen_layers=1))


def test_a_source_of_another_kind_is_refused(tmp_path: Path, ensemble: Ensemble) -> None:
    source = train(tmp_path / "source")
    x, y, names = data()
    other = RECIPE.with_changes(architecture="8BARx2-1")
    with pytest.raises(ArchitectureError, match=r"is 16BARx2-8BARx1-1 with relu, .* 8BARx2-1"):
        train(tmp_path / "a", recipe=other, init_from=source)
    with pytest.raises(FeatureMismatchError, match="member 0 of init_from expects 12 features"):
        train(tmp_path / "a", init_from=ensemble)
    with pytest.raises(FeatureMismatchError, match="order differs"):
        train_ensemble(
            x, y, names[::-1], recipe=RECIPE, checkpoint_dir=tmp_path / "a", init_from=source
        )
    member = source.members[0]
    nameless = Member(member.architecture, member.feature_names, member.scaling, member.state, {})
    with pytest.raises(DataError, match="does not say what its target is"):
        train(tmp_path / "a", init_from=nameless)


def test_weights_turn_the_training_to_the_rows_that_have_them(tmp_path: Path) -> None:
    x, y, names = data()
    y = np.where(x[:, 2] > 0, y, -y)  # without column 2, two rows in the same place disagree
    x[:, 2] = 0
    upper = data()[0][:, 2] > 0
    recipe = RECIPE.with_changes(epochs=40, architecture="32BARx2-1")
    errors = {}
    for name, weights in (("upper", np.where(upper, 1.0, 0.01)), ("lower", ~upper + 0.01)):
        ensemble = train_ensemble(
            x,
            y,
            names,
            recipe=recipe,
            members=1,
            checkpoint_dir=tmp_path / name,
            device="cpu",
            weights=weights,
        )
        predicted = ensemble.scorer().predict(x).mean
        errors[name] = np.abs(predicted - y)[upper].mean()
        assert "weights_sha256" in ensemble.members[0].record["identity"]
    assert errors["upper"] < 0.3 * errors["lower"]


def test_the_recorded_validation_error_is_weighted(tmp_path: Path) -> None:
    x, y, _ = data()
    weights = 1.0 + np.arange(ROWS) % 5
    member = train(tmp_path, weights=weights).members[0]
    _, rows = split_rows(ROWS, RECIPE.validation_fraction, member.record["seeds"]["split"])
    with torch.no_grad():
        scaled = member.network(torch.from_numpy(member.scaling.inputs(x[rows]))).numpy()
    error = np.abs(scaled * member.scaling.target_std + member.scaling.target_mean - y[rows])
    expected = np.average(error, weights=weights[rows])
    assert member.record["validation_mae"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - error.mean()) > 1e-3 * expected


def test_weights_have_no_scale_and_belong_to_the_identity(tmp_path: Path) -> None:
    weights = 1.0 + np.arange(ROWS) % 2
    first = train(tmp_path / "a", weights=weights).members[0].record
    second = train(tmp_path / "b", weights=4 * weights).members[0].record
    assert first["history"] == second["history"]
    with pytest.raises(CheckpointError, match="other weights_sha256"):
        train(tmp_path / "a")
    plain = train(tmp_path / "c").members[0].record
    assert "weights_sha256" not in plain["identity"]
    assert plain["history"] != first["history"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(ROWS - 1), r"weights have shape \(299,\), expected \(300,\)"),
        (np.where(np.arange(ROWS) == 4, -1.0, 1.0), "weights row 4 is -1.0"),
        (np.where(np.arange(ROWS) == 5, np.nan, 1.0), "weights row 5 is nan"),
        (np.where(np.arange(ROWS) == 6, np.inf, 1.0), "weights row 6 is inf"),
        (np.zeros(ROWS), "all weights are 0"),
        (np.arange(ROWS) == 0, "validation rows have weight 0"),
    ],
)
def test_bad_weights(tmp_path: Path, weights: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(tmp_path, weights=weights)


def test_a_constant_target_is_refused(tmp_path: Path) -> None:
    x, y, names = data()
    with pytest.raises(DataError, match=r"target is 3\.0 in every one of 300 rows"):
        train_ensemble(x, 0 * y + 3, names, checkpoint_dir=tmp_path, device="cpu")


def test_fewer_rows_than_a_batch_make_one_step(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(batch_size=512, epochs=2)
    record = train(tmp_path, recipe=recipe).members[0].record
    assert record["train_rows"] < 512
    rates = [entry["learning_rate"] for entry in record["history"]]
    assert rates == [learning_rate(recipe, step, 2) for step in range(2)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("together", [None, True])
def test_an_absent_device_is_named_before_any_work(tmp_path: Path, together: bool | None) -> None:
    with pytest.raises(DeviceError, match="torch finds no GPU"):
        train(tmp_path / "a", device="cuda", together=together)
    assert not (tmp_path / "a").exists()


def test_a_task_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = train(tmp_path / "source")
    sent: list[MemberTask] = []

    def elsewhere(
        function: Callable[[MemberTask], Member], tasks: list[MemberTask]
    ) -> list[Member]:
        sent.extend(tasks)
        return [function(pickle.loads(pickle.dumps(task))) for task in tasks]

    options: dict[str, object] = {
        "members": 2,
        "init_from": source,
        "weights": np.arange(1.0, ROWS + 1),
    }
    mapped = train(tmp_path / "a", map=elsewhere, **options)
    assert_same_members(train(tmp_path / "b", **options), mapped)
    # one copy for all members, so that it can be sent once
    assert sent[0].features is sent[1].features
    assert sent[0].weights is sent[1].weights
    assert sent[0].init is sent[1].init
    assert train_member(sent[0]).record == mapped.members[0].record


@pytest.mark.gpu
def test_trains_and_resumes_on_a_gpu(tmp_path: Path) -> None:
    interrupt(tmp_path, device="cuda")
    ensemble = train(tmp_path, device="cuda")
    assert ensemble.members[0].record["device"] == "cuda"
    assert ensemble.members[0].state["output.weight"].device.type == "cpu"


# --------------------------------------------------------------- losses, classes, watched rows


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_loss_decides_what_is_learnt(tmp_path: Path, loss: str, together: bool) -> None:
    # targets 0 and, in a fifth of the rows, 10: the median is 0, the mean 2
    x, _, names = data()
    y = np.where(np.arange(ROWS) % 5 == 0, 10.0, 0.0)
    recipe = Recipe(
        architecture="4Ax1-1",
        epochs=60,
        batch_size=60,
        loss=loss,
        learning_rate=0.05,
        weight_decay=0.0,
        precision="fp32",
        patience=None,
    )
    ensemble = train_ensemble(
        np.zeros_like(x),
        y,
        names,
        recipe=recipe,
        members=2,
        device="cpu",
        checkpoint_dir=tmp_path,
        together=together,
        groups=np.arange(ROWS) // 5,
    )
    with torch.no_grad():
        member = ensemble.members[0]
        scaled = float(member.network(torch.zeros(1, COLUMNS)))
    predicted = scaled * member.scaling.target_std + member.scaling.target_mean
    last = member.record["history"][-1]
    if loss == "mae":
        assert predicted == pytest.approx(0, abs=0.3)
        assert last["train_mae"] == pytest.approx(2.0, abs=0.2)
    else:
        # the best epoch goes by the mean absolute error: the last one tells what is learnt
        assert last["train_mae"] == pytest.approx(0.8 * 2 + 0.2 * 8, abs=0.3)


def labelled() -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    x, _, names = data()
    labels = np.where(x[:, 0] > 0.5, "metal", np.where(x[:, 0] < -0.5, "insulator", "semimetal"))
    numbers, classes = encode_classes(labels.tolist())
    return x, numbers, names, classes


@pytest.mark.parametrize("together", [False, True])
def test_classes_are_learnt_and_kept(tmp_path: Path, together: bool) -> None:
    x, numbers, names, classes = labelled()
    assert classes == ("insulator", "metal", "semimetal")
    recipe = RECIPE.with_changes(loss="cross_entropy", epochs=40, learning_rate=3e-3)
    seen: list[Progress] = []
    ensemble = train_ensemble(
        x,
        numbers,
        names,
        recipe=recipe,
        members=2,
        device="cpu",
        checkpoint_dir=tmp_path / "work",
        classes=classes,
        together=together,
        progress=seen.append,
    )
    ensemble.save(tmp_path / "model")
    again = Ensemble.load(tmp_path / "model")
    assert again.classes == classes
    found = again.scorer(precision="fp32").classify(x)
    assert (found.likeliest == numbers).mean() > 0.85
    last = ensemble.members[1].record
    assert (seen[-1].member, seen[-1].best_error) == (1, last["validation_cross_entropy"])
    record = ensemble.members[0].record
    assert "validation_mae" not in record
    # cross-entropy of the best epoch, by scikit-learn
    _, validation = split_rows(ROWS, recipe.validation_fraction, record["seeds"]["split"])
    expected = log_loss(
        numbers[validation],
        again.members[0]
        .network(torch.from_numpy(again.members[0].scaling.inputs(x[validation])))
        .softmax(dim=-1)
        .detach()
        .numpy(),
        labels=[0, 1, 2],
    )
    assert record["validation_cross_entropy"] == pytest.approx(expected, rel=1e-4)


def test_classes_and_loss_belong_together(tmp_path: Path) -> None:
    x, numbers, names, classes = labelled()

    def call(target: np.ndarray = numbers, **options: object) -> None:
        choices: dict[str, object] = {"recipe": RECIPE.with_changes(loss="cross_entropy")}
        choices |= {"checkpoint_dir": tmp_path, "classes": classes} | options
        train_ensemble(x, target, names, **choices)  # type: ignore[arg-type]

    with pytest.raises(RecipeError, match="belong together"):
        call(recipe=RECIPE)
    with pytest.raises(RecipeError, match="belong together"):
        call(classes=())
    with pytest.raises(DataError, match=r"row 3 is 0\.5, but the classes are numbered from 0 to 2"):
        call(np.where(np.arange(ROWS) == 3, 0.5, numbers))
    with pytest.raises(DataError, match="class 'none' has no rows"):
        call(classes=(*classes, "none"))
    with pytest.raises(DataError, match="all different"):
        call(classes=("a", "a", "b"))
    with pytest.raises(DataError, match="all 3 rows are 'x'"):
        encode_classes(["x", "x", "x"])
    with pytest.raises(DataError, match="label of row 1 is empty"):
        encode_classes(["x", " ", "y"])


def test_watched_rows_are_recorded_and_decide_nothing(tmp_path: Path) -> None:
    other_x, other_y, _ = data(seed=5)
    plain = train(tmp_path / "plain", members=2)
    watching = train(tmp_path / "watching", members=2, watched=(other_x, other_y))
    for a, b in zip(plain.members, watching.members, strict=True):
        for key, value in a.state.items():
            assert torch.equal(value, b.state[key])
        assert "watched_mae" not in a.record["history"][0]
        last = b.record["best_epoch"] - 1
        with torch.no_grad():
            scaled = b.network(torch.from_numpy(b.scaling.inputs(other_x))).numpy()
        predicted = scaled * b.scaling.target_std + b.scaling.target_mean
        error = np.abs(predicted - other_y).mean()
        assert b.record["history"][last]["watched_mae"] == pytest.approx(error, rel=1e-4)
    with pytest.raises(CheckpointError, match="watched_sha256"):
        train(tmp_path / "watching", members=2, watched=(other_x, other_y + 1))


def test_plateau_lets_the_rate_of_each_member_fall_by_itself(tmp_path: Path) -> None:
    recipe = RECIPE.with_changes(
        schedule="plateau", decay_epochs=2, decay_factor=0.1, epochs=30, learning_rate=0.05
    )
    ensemble = train(tmp_path / "a", recipe=recipe, members=2, together=True)
    rates = []
    for member in ensemble.members:
        history = member.record["history"]
        errors = [entry["validation_mae"] for entry in history]
        expected = [0.05 * 0.1 ** count_plateaus(errors[:done], 2) for done in range(len(history))]
        assert [entry["learning_rate"] for entry in history] == pytest.approx(expected)
        assert history[-1]["learning_rate"] < 0.05
        rates.append(expected)
    assert rates[0] != rates[1]
    assert_same_members(ensemble, train(tmp_path / "b", recipe=recipe, members=2))
