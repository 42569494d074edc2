"""Training of ensembles: splits, the loop, early stopping, and checkpoints to resume from."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .architecture import Architecture
from .device import choose_device, choose_dtype
from .ensemble import Ensemble, Member
from .errors import CheckpointError, DataError, IRNetError, ModelFileError
from .network import Dropout, new_network
from .recipe import Recipe, find_recipe
from .scaling import Scaling
from .storage import read_tensors, write_tensors

_CHECKPOINT = "an irnet checkpoint"
_WARM_SHARE = 0.3
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4


class TrainingDivergedError(IRNetError, ArithmeticError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True)
class Progress:
    """State of one member's training after an epoch.

    Attributes:
        member: Number of the member, from 0.
        members: How many are trained.
        epoch: Epochs done.
        epochs: Epochs at most.
        train_mae: Mean absolute error over the epoch's batches, in the target's unit.
        validation_mae: Mean absolute error on the validation rows, in the target's unit.
        best_mae: Lowest validation error so far.
        seconds: Since this process began this member.
    """

    member: int
    members: int
    epoch: int
    epochs: int
    train_mae: float
    validation_mae: float
    best_mae: float
    seconds: float


class Map(Protocol):
    """What `train_ensemble` needs of a ``map``: builtin, executor's or a cluster's."""

    def __call__(
        self, function: Callable[[MemberTask], Member], tasks: Sequence[MemberTask], /
    ) -> Iterable[Member]:
        """Apply the function to each task, results in order."""
        ...


@dataclass(frozen=True, eq=False)
class MemberTask:
    """Everything that training one member needs.

    Attributes:
        features: (n, features), float32.
        target: (n,), float64.
        feature_names: Column names.
        groups: (n,) integer labels kept on one side of the split, or None.
        recipe: How to train.
        number: Number of the member.
        members: How many members there are.
        seed: Seed of the ensemble.
        device: Device name.
        data_hash: Of features, target and names.
        folder: Where checkpoint and finished member are kept.
        progress: Called after every epoch, or None.
        checkpoint_every: Epochs between checkpoints.
    """

    features: NDArray[np.float32] = field(repr=False)
    target: NDArray[np.float64] = field(repr=False)
    feature_names: tuple[str, ...] = field(repr=False)
    groups: NDArray[np.int64] | None = field(repr=False)
    recipe: Recipe
    number: int
    members: int
    seed: int
    device: str
    data_hash: str
    folder: Path
    progress: Callable[[Progress], None] | None = None
    checkpoint_every: int = 2

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this task's."""
        groups = None if self.groups is None else hashlib.sha256(self.groups.tobytes()).hexdigest()
        return {
            "data_sha256": self.data_hash,
            "groups_sha256": groups,
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "member": self.number,
        }


def train_ensemble(
    features: NDArray[np.floating],
    target: ArrayLike,
    feature_names: Sequence[str],
    *,
    recipe: Recipe | str = "default",
    members: int = 4,
    seed: int = 0,
    checkpoint_dir: Path | str,
    device: str = "auto",
    groups: ArrayLike | None = None,
    progress: Callable[[Progress], None] | None = None,
    map: Map = map,
    target_name: str = "formation_enthalpy",
    target_unit: str = "eV/atom",
    checkpoint_every: int = 2,
) -> Ensemble:
    """Train members that differ in seed and validation split.

    Called again with the same data, recipe and seed after an interruption, it continues: finished
    members are read, a begun one goes on at its last checkpoint and ends, on the same machine
    and number of threads, with the same weights bit for bit.

    Args:
        features: (n, features); stored and used as float32.
        target: (n,), in `target_unit`.
        feature_names: One name per column; they become part of the model.
        recipe: A recipe or the name of one.
        members: Number of members.
        seed: Seed of initial weights, splits and shuffling; a member's own seeds derive from it.
        checkpoint_dir: Folder for checkpoints and finished members.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        groups: (n,) labels; rows of one label stay on one side of each validation split.
        progress: Called after each epoch.
        map: ``map``-like callable; members are independent of each other. With one that crosses
            process boundaries, `progress` must be picklable.
        target_name: Goes into the card.
        target_unit: Goes into the card.
        checkpoint_every: Epochs between checkpoints.

    Returns:
        The ensemble; its card holds target, data hash, recipe, seeds and validation errors.

    Raises:
        DataError: If shapes disagree or a value is not finite (names row and column).
        CheckpointError: If the folder holds the checkpoint of another training.
        TrainingDivergedError: If the loss is no longer finite.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    if members < 1:
        raise DataError(f"members is {members}, must be at least 1")
    x, y, names = check_data(features, target, feature_names)
    labels = None
    if groups is not None:
        _, labels = np.unique(np.asarray(groups), return_inverse=True)
        labels = labels.astype(np.int64).reshape(-1)
        if len(labels) != len(y):
            raise DataError(f"groups has {len(labels)} labels for {len(y)} rows")
    choose_device(device)
    data_hash = hash_data(x, y, names)
    tasks = [
        MemberTask(
            features=x,
            target=y,
            feature_names=names,
            groups=labels,
            recipe=recipe,
            number=number,
            members=members,
            seed=seed,
            device=device,
            data_hash=data_hash,
            folder=Path(checkpoint_dir) / f"member-{number}",
            progress=progress,
            checkpoint_every=checkpoint_every,
        )
        for number in range(members)
    ]
    trained = tuple(map(train_member, tasks))
    card = {
        "target": target_name,
        "unit": target_unit,
        "data_sha256": data_hash,
        "rows": len(y),
        "recipe": recipe.to_json(),
        "architecture": str(Architecture.parse(recipe.architecture)),
        "seed": seed,
        "validation_mae": [member.record["validation_mae"] for member in trained],
        "seconds": sum(member.record["seconds"] for member in trained),
        "torch": torch.__version__,
    }
    return Ensemble(trained, card)


def train_member(task: MemberTask) -> Member:
    """Train one member, or read it if it is finished, or go on where it was interrupted.

    Args:
        task: Data, recipe and folder.

    Returns:
        The member with the weights of its best epoch.
    """
    finished = task.folder / "member.safetensors"
    if finished.exists():
        member = Member.load(finished)
        _check_identity(member.record["identity"], task, finished)
        return member
    task.folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task)
    checkpoint = task.folder / "checkpoint.safetensors"
    if checkpoint.exists():
        run.restore(checkpoint)
    while not run.finished:
        run.train_epoch()
        if task.progress is not None:
            task.progress(run.progress())
        if run.epoch % task.checkpoint_every == 0 and not run.finished:
            run.save(checkpoint)
    member = run.member()
    member.save(finished)
    checkpoint.unlink(missing_ok=True)
    return member


def check_data(
    features: NDArray[np.floating], target: ArrayLike, feature_names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float64], tuple[str, ...]]:
    """Check a training table and bring it to float32 features and float64 targets.

    Args:
        features: (n, features).
        target: (n,).
        feature_names: One per column, no two alike.

    Returns:
        Features, target and names.

    Raises:
        DataError: If shapes disagree or a value is not finite (names row and column).
    """
    names = tuple(feature_names)
    x = np.asarray(features)
    y = np.asarray(target, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != len(names):
        raise DataError(f"features have shape {x.shape}, expected (rows, {len(names)})")
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise DataError(f"feature name {doubled!r} is given to two columns")
    if y.shape != (len(x),):
        raise DataError(f"target has shape {y.shape}, expected ({len(x)},), one value per row")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(
            f"features row {row}, column {names[column]!r} is {x[row, column]}; "
            "remove or repair the row before training"
        )
    if not np.isfinite(y).all():
        row = int(np.argmin(np.isfinite(y)))
        raise DataError(f"target row {row} is {y[row]}; remove the row before training")
    return x, y, names


def hash_data(
    features: NDArray[np.float32], target: NDArray[np.float64], names: Sequence[str]
) -> str:
    """Return the SHA-256 of names, shape, features and target, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([list(names), list(features.shape)]).encode())
    digest.update(np.ascontiguousarray(features).tobytes())
    digest.update(np.ascontiguousarray(target).tobytes())
    return digest.hexdigest()


def split_rows(
    rows: int, fraction: float, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose validation rows at random, never dividing a group.

    Args:
        rows: Number of rows.
        fraction: Share of validation rows; the last group drawn may exceed it.
        seed: Of the choice.
        groups: (rows,) labels, or None for every row on its own.

    Returns:
        Sorted training and validation row numbers.

    Raises:
        DataError: If fewer than two training rows or no validation row would be left.
    """
    labels = np.arange(rows) if groups is None else groups
    unique, inverse = np.unique(labels, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    sizes = np.bincount(inverse, minlength=len(unique))[order]
    drawn = 1 + int(np.searchsorted(np.cumsum(sizes), fraction * rows))
    validation = np.zeros(len(unique), dtype=bool)
    validation[order[:drawn]] = True
    chosen = validation[inverse]
    train = np.flatnonzero(~chosen)
    if len(train) < 2 or not chosen.any():
        raise DataError(
            f"{rows} rows in {len(unique)} groups cannot be split into training and validation "
            f"with a validation share of {fraction}; give more rows or smaller groups"
        )
    return train, np.flatnonzero(chosen)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Learning rate of one step.

    Args:
        recipe: Names the schedule and the top rate.
        step: From 0.
        steps: Steps of all epochs.

    Returns:
        The rate.
    """
    top = recipe.learning_rate
    if recipe.schedule == "constant":
        return top
    warm = max(1.0, _WARM_SHARE * steps)
    start, end = top / _START_DIVISOR, top / _START_DIVISOR / _END_DIVISOR
    if step < warm:
        low, high, done = start, top, step / warm
    else:
        low, high, done = top, end, (step - warm) / max(1.0, steps - 1 - warm)
    return high + (low - high) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class _Run:
    """One member's training: network, optimiser, data and what has happened so far."""

    def __init__(self, task: MemberTask) -> None:
        self.task = task
        recipe = task.recipe
        self.device = choose_device(task.device)
        self.dtype = choose_dtype(recipe.precision, self.device)
        seeds = np.random.SeedSequence([task.seed, task.number]).generate_state(3)
        self.weight_seed, self.split_seed, self.shuffle_seed = map(int, seeds)
        train, validation = split_rows(
            len(task.target), recipe.validation_fraction, self.split_seed, task.groups
        )
        self.scaling = Scaling.fit(
            task.features[train],
            task.target[train],
            scale_inputs=recipe.scale_inputs,
            clip=recipe.clip_sigma,
            scale_target=recipe.scale_target,
        )
        self.train_x, self.train_y = self._tensors(train)
        self.validation_x, self.validation_y = self._tensors(validation)
        self.steps_per_epoch = max(1, len(train) // recipe.batch_size)
        self.architecture = Architecture.parse(recipe.architecture)
        generator = torch.Generator().manual_seed(self.weight_seed)
        network = new_network(self.architecture, len(task.feature_names), recipe.dropout, generator)
        self.network = network.to(self.device)
        self.dropout_generator = torch.Generator(self.device)
        for module in self.network.modules():
            if isinstance(module, Dropout):
                module.generator = self.dropout_generator
        self.parameters = list(self.network.parameters())
        make = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = make(
            self.parameters,
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.history: list[dict[str, float]] = []
        self.best_mae = math.inf
        self.best_epoch = 0
        self.best_state = self._copy_state()
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def _tensors(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(self.scaling.inputs(self.task.features[rows]))
        y = torch.from_numpy(self.scaling.target(self.task.target[rows]))
        return x.to(self.device, self.dtype), y.to(self.device)

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def finished(self) -> bool:
        recipe = self.task.recipe
        stale = self.epoch - self.best_epoch
        return self.epoch >= recipe.epochs or (
            recipe.patience is not None and stale >= recipe.patience
        )

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def train_epoch(self) -> None:
        # shuffling and dropout draw from seeds of the epoch: a resumed run needs no generator state
        recipe, epoch = self.task.recipe, self.epoch
        seed = int(np.random.SeedSequence([self.shuffle_seed, epoch]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train_y), generator=generator).to(self.device)
        steps = recipe.epochs * self.steps_per_epoch
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        self.network.train()
        self.dropout_generator.manual_seed(seed)
        for number, rows in enumerate(order.tensor_split(self.steps_per_epoch)):
            rate = learning_rate(recipe, epoch * self.steps_per_epoch + number, steps)
            self.optimizer.param_groups[0]["lr"] = rate
            with self._autocast():
                predicted = self.network(self.train_x[rows])
            loss = (predicted - self.train_y[rows]).abs().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(self.parameters, recipe.gradient_clip)
            self.optimizer.step()
            total += loss.detach() * len(rows)
        train_mae = float(total) / len(self.train_y) * self.scaling.target_std
        validation_mae = self._validate()
        if not (math.isfinite(train_mae) and math.isfinite(validation_mae)):
            raise TrainingDivergedError(
                f"member {self.task.number}, epoch {epoch + 1}: the loss is no longer finite; "
                "lower the recipe's learning_rate or set gradient_clip"
            )
        self.history.append({"train_mae": train_mae, "validation_mae": validation_mae})
        if validation_mae < self.best_mae:
            self.best_mae, self.best_epoch = validation_mae, self.epoch
            self.best_state = self._copy_state()

    @torch.no_grad()
    def _validate(self) -> float:
        self.network.eval()
        with self._autocast():
            predicted = torch.cat([self.network(x) for x in self.validation_x.split(4096)])
        mae = (predicted - self.validation_y).abs().double().mean()
        return float(mae) * self.scaling.target_std

    def _autocast(self) -> torch.autocast:
        bf16 = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _copy_state(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def progress(self) -> Progress:
        last = self.history[-1]
        return Progress(
            member=self.task.number,
            members=self.task.members,
            epoch=self.epoch,
            epochs=self.task.recipe.epochs,
            train_mae=last["train_mae"],
            validation_mae=last["validation_mae"],
            best_mae=self.best_mae,
            seconds=self.seconds,
        )

    def save(self, path: Path) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best_state.items()}
        for number, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{number}.{key}"] = value
        header = {
            "kind": _CHECKPOINT,
            "identity": self.task.identity,
            "history": self.history,
            "best_mae": self.best_mae,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        write_tensors(path, tensors, header)

    def restore(self, path: Path) -> None:
        try:
            tensors, header = read_tensors(path, _CHECKPOINT)
        except ModelFileError as error:
            raise ModelFileError(f"{error}; delete it to start this member afresh") from error
        try:
            _check_identity(header["identity"], self.task, path)
            part: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
            for name, value in tensors.items():
                kind, _, rest = name.partition(".")
                part[kind][rest] = value.to(self.device)
            self.network.load_state_dict(part["network"])
            self.best_state = part["best"]
            for number, parameter in enumerate(self.parameters):
                self.optimizer.state[parameter] = {
                    key: part["optimizer"][f"{number}.{key}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
            self.history = header["history"]
            self.best_mae, self.best_epoch = header["best_mae"], header["best_epoch"]
            self.seconds_before = header["seconds"]
        except (KeyError, RuntimeError) as error:
            raise ModelFileError(
                f"{path}: does not fit this training ({error}); delete it to start afresh"
            ) from error

    def member(self) -> Member:
        record = {
            "identity": self.task.identity,
            "recipe": self.task.recipe.to_json(),
            "seed": self.task.seed,
            "number": self.task.number,
            "seeds": {
                "weights": self.weight_seed,
                "split": self.split_seed,
                "shuffle": self.shuffle_seed,
            },
            "train_rows": len(self.train_y),
            "validation_rows": len(self.validation_y),
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "validation_mae": self.best_mae,
            "history": self.history,
            "seconds": round(self.seconds, 3),
            "device": self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
        }
        return Member(
            architecture=self.architecture,
            feature_names=self.task.feature_names,
            scaling=self.scaling,
            state={k: v.cpu() for k, v in self.best_state.items()},
            record=record,
        )


def _check_identity(found: object, task: MemberTask, path: Path) -> None:
    if found == task.identity:
        return
    differing = ""
    if isinstance(found, dict):
        wrong = [key for key, value in task.identity.items() if found.get(key) != value]
        differing = f" (other {', '.join(wrong)})"
    raise CheckpointError(
        f"{path} belongs to another training{differing}; "
        "choose another checkpoint folder or delete this one"
    )
