"""Training of ensembles: splits, the loop, early stopping, and checkpoints to resume from."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .architecture import Architecture
from .device import choose_device, choose_dtype
from .ensemble import Ensemble, Member
from .errors import (
    ArchitectureError,
    CheckpointError,
    DataError,
    IRNetError,
    ModelFileError,
    RecipeError,
    check_feature_names,
)
from .network import Batch, Network, new_network, stack_states
from .optimizer import Optimizer
from .recipe import Recipe, find_recipe
from .scaling import Scaling
from .storage import read_tensors, write_tensors

_CHECKPOINT = "an irnet checkpoint"
_CHECKPOINT_FORMAT = 1
_CHECKPOINT_NAME = "checkpoint.safetensors"
_MEMBER_NAME = "member.safetensors"
_DIVERGED_NAME = "diverged.safetensors"
_GPU_SAVE_PAUSE = 10.0  # times the duration of the last save
_BLOCK_ROWS = 4096
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
        seconds: Spent on this member's epochs, by earlier processes too; of members trained
            together, each counts its share.
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
        weights: (n,) weights of the rows, float64, or None for equal ones.
        init: Member to start from, or None for fresh weights.
        keep_target: Whether `init` was trained on the same target, so that its output layer and
            target scaling are kept.
        target_name: Goes into the member's record.
        target_unit: Goes into the member's record.
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
    weights: NDArray[np.float64] | None = field(default=None, repr=False)
    init: Member | None = field(default=None, repr=False)
    keep_target: bool = True
    target_name: str = "formation_enthalpy"
    target_unit: str = "eV/atom"

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this task's."""
        found = {
            "data_sha256": self.data_hash,
            "groups_sha256": None if self.groups is None else _hash_array(self.groups),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "member": self.number,
        }
        # only where they are given, so that other trainings keep the identity they always had
        if self.weights is not None:
            found["weights_sha256"] = _hash_array(self.weights)
        if self.init is not None:
            found["init_sha256"] = hash_member(self.init)
            found["init_output"] = "kept" if self.keep_target else "new"
        return found


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
    weights: ArrayLike | None = None,
    init_from: Ensemble | Member | None = None,
    together: bool | None = None,
) -> Ensemble:
    """Train members that differ in seed and validation split.

    Called again with the same data, recipe and seed after an interruption, it continues: finished
    members are read, a begun one goes on at its last checkpoint and ends, on the same machine
    and number of threads, with the same weights bit for bit. Members trained together and one by
    one differ by rounding only, and either way goes on with what the other has begun.

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
        checkpoint_every: Epochs between checkpoints. On a GPU, whose epochs are short, more pass
            where writing would otherwise take more than a tenth of the time.
        weights: (n,) weights of the rows, 0 or more, or None for equal ones. Loss, training and
            validation error are weighted means, so the best epoch is the best for rows of weight;
            the scaling is not weighted.
        init_from: A trained ensemble or member to start from, of the recipe's architecture (but for
            dropout) and these features; member i starts as its member i, modulo their number. Its
            input scaling is kept, whatever the recipe says, because its weights are relative to
            it. For the same target (name and unit) its output layer and target scaling are kept
            too; for another one, both are new.
        together: Train all members on one device as one stack of networks. By default where the
            device is a GPU and no `map` is given; a CPU is faster one by one. Then `map` is not
            called.

    Returns:
        The ensemble; its card holds target, data hash, recipe, seeds and validation errors.

    Raises:
        DataError: If shapes disagree, a value is not finite (names row and column), the target is
            the same everywhere, a weight is negative, or a number is too small.
        FeatureMismatchError: If `init_from` was trained on other columns.
        ArchitectureError: If `init_from` has another architecture.
        RecipeError: If layers are to be frozen without `init_from`.
        CheckpointError: If the folder holds the checkpoint of another training.
        ModelFileError: If a checkpoint is truncated, altered, or of a newer format.
        DeviceError: If there is no such device.
        TrainingDivergedError: If the loss is no longer finite.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    for name, number, least in (
        ("members", members, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("seed", seed, 0),
    ):
        if number < least:
            raise DataError(f"{name} is {number}, must be at least {least}")
    x, y, names = check_data(features, target, feature_names)
    if len(y) and (y == y[0]).all():
        raise DataError(
            f"target is {y[0]} in every one of {len(y)} rows: there is nothing to learn; "
            "is it the right column?"
        )
    labels = None
    if groups is not None:
        _, labels = np.unique(np.asarray(groups), return_inverse=True)
        labels = labels.astype(np.int64).reshape(-1)
        if len(labels) != len(y):
            raise DataError(f"groups has {len(labels)} labels for {len(y)} rows")
    row_weights = None if weights is None else _check_weights(weights, len(y))
    sources, keep_target = _check_source(init_from, recipe, names, target_name, target_unit)
    here = map is builtins.map
    if together is None:
        together = here and choose_device(device).type == "cuda"
    if together or here:
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
            weights=row_weights,
            init=sources[number % len(sources)] if sources else None,
            keep_target=keep_target,
            target_name=target_name,
            target_unit=target_unit,
        )
        for number in range(members)
    ]
    trained = tuple(train_together(tasks) if together else map(train_member, tasks))
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
    if row_weights is not None:
        card["weights_sha256"] = _hash_array(row_weights)
    if sources:
        card["init_sha256"] = [hash_member(source) for source in sources]
    return Ensemble(trained, card)


def train_member(task: MemberTask) -> Member:
    """Train one member, or read it if it is finished, or go on where it was interrupted.

    Args:
        task: Data, recipe and folder.

    Returns:
        The member with the weights of its best epoch.
    """
    return train_together([task])[0]


def train_together(tasks: Sequence[MemberTask]) -> list[Member]:
    """Train members of one ensemble on one device as one stack of networks.

    Finished members are read, begun ones go on. Members that stand at different epochs, or whose
    training rows make different numbers of steps, are in different stacks. A member that stops
    early leaves its stack.

    Args:
        tasks: Of one training; they differ in number and folder.

    Returns:
        One member per task, with the weights of its best epoch.
    """
    members: dict[int, Member] = {}
    stacks: dict[tuple[int, int], list[_Trainee]] = {}
    for task in tasks:
        finished = task.folder / _MEMBER_NAME
        if finished.exists():
            members[task.number] = Member.load(finished)
            _check_identity(members[task.number].record.get("identity"), task, finished)
            continue
        task.folder.mkdir(parents=True, exist_ok=True)
        trainee = _Trainee(task)
        if trainee.checkpoint.exists():
            trainee.restore()
        stacks.setdefault((trainee.epoch, trainee.steps_per_epoch), []).append(trainee)
    for trainees in stacks.values():
        for member in _train_stack(trainees):
            members[member.record["number"]] = member
    return [members[task.number] for task in tasks]


def _train_stack(trainees: Sequence[_Trainee]) -> Iterator[Member]:
    run: _Run | None = None
    saved_at, save_seconds = -math.inf, 0.0
    while trainees:
        finished = [trainee for trainee in trainees if trainee.finished]
        for trainee in finished:
            member = trainee.member()
            member.save(trainee.task.folder / _MEMBER_NAME)
            trainee.checkpoint.unlink(missing_ok=True)
            yield member
        trainees = [trainee for trainee in trainees if trainee not in finished]
        if not trainees:
            break
        if run is None or finished:
            if run is not None:
                run.keep()
            run = _Run(trainees)
        run.train_epoch()
        for trainee in trainees:
            if trainee.task.progress is not None:
                trainee.task.progress(trainee.progress())
        begun = time.perf_counter()
        early = begun - saved_at < _GPU_SAVE_PAUSE * save_seconds and run.device.type != "cpu"
        if trainees[0].epoch % trainees[0].task.checkpoint_every or early:
            continue
        run.keep()
        for trainee in trainees:
            if not trainee.finished:
                trainee.save()
            trainee.tensors = {}
        saved_at = time.perf_counter()
        save_seconds = saved_at - begun


def _check_weights(weights: ArrayLike, rows: int) -> NDArray[np.float64]:
    values = np.ascontiguousarray(weights, dtype=np.float64)
    if values.shape != (rows,):
        raise DataError(f"weights have shape {values.shape}, expected ({rows},), one per row")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"weights row {row} is {values[row]}; a weight is finite and 0 or more")
    if not values.any():
        raise DataError("all weights are 0; give weight to the rows to learn from")
    return values


def _check_source(
    source: Ensemble | Member | None,
    recipe: Recipe,
    names: Sequence[str],
    target_name: str,
    target_unit: str,
) -> tuple[tuple[Member, ...], bool]:
    """Return the members to start from and whether their target is the same."""
    if source is None:
        if recipe.frozen_layers:
            raise RecipeError(
                f"recipe frozen_layers is {recipe.frozen_layers}, but fresh weights are not worth "
                "keeping; give init_from, or set frozen_layers to 0"
            )
        return (), True
    members = source.members if isinstance(source, Ensemble) else (source,)
    facts = source.card if isinstance(source, Ensemble) else source.record
    if "target" not in facts:
        raise DataError(
            "init_from does not say what its target is; give the whole ensemble, whose card does"
        )
    wanted = str(_without_dropout(Architecture.parse(recipe.architecture)))
    for number, member in enumerate(members):
        check_feature_names(member.feature_names, names, f"member {number} of init_from")
        found = str(_without_dropout(member.architecture))
        if found != wanted:
            raise ArchitectureError(
                f"member {number} of init_from is {found}, but the recipe's architecture is "
                f"{wanted}; train the architecture of init_from"
            )
    same = (facts["target"], facts.get("unit", target_unit)) == (target_name, target_unit)
    return members, same


def _without_dropout(architecture: Architecture) -> Architecture:
    return Architecture(tuple(replace(block, dropout="none") for block in architecture.blocks))


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
    if not names:
        raise DataError("features have no columns: there is nothing to learn from")
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


def learning_rate(recipe: Recipe, step: int, steps: int, steps_per_epoch: int = 1) -> float:
    """Learning rate of one step.

    Args:
        recipe: Names the schedule and the top rate.
        step: From 0.
        steps: Steps of all epochs.
        steps_per_epoch: Steps of one epoch.

    Returns:
        The rate.
    """
    top = recipe.learning_rate
    if recipe.schedule == "constant":
        return top
    if recipe.schedule == "step":
        return top * recipe.decay_factor ** (step // steps_per_epoch // recipe.decay_epochs)
    if recipe.schedule == "cosine":
        return top * (1 + math.cos(math.pi * step / steps)) / 2
    warm = max(1.0, _WARM_SHARE * steps)
    start, end = top / _START_DIVISOR, top / _START_DIVISOR / _END_DIVISOR
    if step < warm:
        low, high, done = start, top, step / warm
    else:
        low, high, done = top, end, (step - warm) / max(1.0, steps - 1 - warm)
    return high + (low - high) * (1 + math.cos(math.pi * min(1.0, done))) / 2


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of one member on its device: scaled features, scaled target, weights of mean 1."""

    x: Tensor
    y: Tensor
    weights: Tensor | None

    def __len__(self) -> int:
        return len(self.y)


class _Trainee:
    """One member in training: its rows, its scaling and what has happened so far."""

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
        self.scaling = _fit_scaling(task, train)
        self.train = self._rows(train, "training")
        self.validation = self._rows(validation, "validation")
        self.steps_per_epoch = max(1, len(train) // recipe.batch_size)
        self.architecture = Architecture.parse(recipe.architecture)
        self.history: list[dict[str, float]] = []
        self.best_mae = math.inf
        self.best_epoch = 0
        self.seconds = 0.0
        self.tensors: dict[str, dict[str, Tensor]] = {"network": self._first_state()}
        self.best_state = self.tensors["network"]

    def _rows(self, rows: NDArray[np.int64], use: str) -> _Rows:
        task = self.task
        weights = None
        if task.weights is not None:
            values = task.weights[rows]
            if not values.any():
                raise DataError(
                    f"member {task.number}: all of its {len(rows)} {use} rows have weight 0; "
                    "give weight to more rows"
                )
            weights = torch.from_numpy((values / values.mean()).astype(np.float32)).to(self.device)
        x = torch.from_numpy(self.scaling.inputs(task.features[rows]))
        y = torch.from_numpy(self.scaling.target(task.target[rows]))
        return _Rows(x.to(self.device, self.dtype), y.to(self.device), weights)

    def _first_state(self) -> dict[str, Tensor]:
        task = self.task
        generator = torch.Generator().manual_seed(self.weight_seed)
        fresh = new_network(self.architecture, len(task.feature_names), 0.0, generator)
        state = dict(fresh.state_dict())
        if task.init is not None:
            kept = {
                name: value
                for name, value in task.init.state.items()
                if task.keep_target or not name.startswith("output.")
            }
            state |= {name: value.clone() for name, value in kept.items()}
        return {name: value.detach().to(self.device) for name, value in state.items()}

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
    def checkpoint(self) -> Path:
        return self.task.folder / _CHECKPOINT_NAME

    def epoch_seed(self, *purpose: int) -> int:
        # shuffling, dropout and noise draw from seeds of the epoch: a resumed run needs no
        # generator state
        words = [self.shuffle_seed, self.epoch, *purpose]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

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

    def save(self) -> None:
        """Write the checkpoint: what `_Run.keep` left here, and the best weights so far."""
        parts = self.tensors | {"best": self.best_state}
        tensors = {f"{part}.{key}": v for part, vs in parts.items() for key, v in vs.items()}
        header = {
            "kind": _CHECKPOINT,
            "format": _CHECKPOINT_FORMAT,
            "identity": self.task.identity,
            "history": self.history,
            "best_mae": self.best_mae,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        tensors = {key: value.cpu() for key, value in tensors.items()}
        header["sha256"] = _hash_checkpoint(tensors, header)
        write_tensors(self.checkpoint, tensors, header)

    def restore(self) -> None:
        """Read the checkpoint."""
        path = self.checkpoint
        try:
            tensors, header = read_tensors(path, _CHECKPOINT)
        except ModelFileError as error:
            raise ModelFileError(f"{error}; delete it to start this member afresh") from error
        written = header.get("format", 0)  # the first version wrote none
        if not isinstance(written, int) or written > _CHECKPOINT_FORMAT:
            raise ModelFileError(
                f"{path}: written in format {written} by a newer version, this one reads up to "
                f"{_CHECKPOINT_FORMAT}; update, or delete it to start this member afresh"
            )
        digest = header.pop("sha256", None)
        if written and digest != _hash_checkpoint(tensors, header):
            raise ModelFileError(
                f"{path}: was altered after it was written; delete it to start this member afresh"
            )
        try:
            _check_identity(header["identity"], self.task, path)
            parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}, "optimizer": {}}
            for name, value in tensors.items():
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = value.to(self.device)
            expected = self.tensors["network"]
            for state in (parts["network"], parts["best"]):
                wrong = [key for key in expected if _shape(state.get(key)) != _shape(expected[key])]
                if wrong or len(state) != len(expected):
                    raise RuntimeError(f"weights differ: {', '.join(wrong) or 'unknown names'}")
            self.best_state = parts.pop("best")
            self.tensors = parts
            self.history = header["history"]
            self.best_mae, self.best_epoch = header["best_mae"], header["best_epoch"]
            self.seconds = header["seconds"]
        except (KeyError, RuntimeError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise _misfit(path, error) from error

    def member(self) -> Member:
        """The member with the weights of its best epoch."""
        task = self.task
        record = {
            "identity": task.identity,
            "recipe": task.recipe.to_json(),
            "seed": task.seed,
            "number": task.number,
            "seeds": {
                "weights": self.weight_seed,
                "split": self.split_seed,
                "shuffle": self.shuffle_seed,
            },
            "target": task.target_name,
            "unit": task.target_unit,
            "train_rows": len(self.train),
            "validation_rows": len(self.validation),
            "epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "validation_mae": self.best_mae if self.history else None,
            "history": self.history,
            "seconds": round(self.seconds, 3),
            "device": self.device.type,
            "precision": str(self.dtype).removeprefix("torch."),
        }
        return Member(
            architecture=self.architecture,
            feature_names=task.feature_names,
            scaling=self.scaling,
            state={k: v.cpu() for k, v in self.best_state.items()},
            record=record,
        )


class _Run:
    """The training loop of one member, or of several that have come to the same epoch."""

    def __init__(self, trainees: Sequence[_Trainee]) -> None:
        self.trainees = trainees
        first = trainees[0]
        self.recipe = recipe = first.task.recipe
        self.device, self.dtype = first.device, first.dtype
        self.steps_per_epoch = first.steps_per_epoch
        stacked = len(trainees) > 1
        with torch.device("meta"):
            network = Network(
                first.architecture,
                len(first.task.feature_names),
                recipe.dropout,
                len(trainees) if stacked else None,
            )
        states = [trainee.tensors["network"] for trainee in trainees]
        joined = stack_states(states) if stacked else {k: v.clone() for k, v in states[0].items()}
        network.load_state_dict(joined, assign=True)
        self.frozen = network.leading_layers(recipe.frozen_depth)
        for module in self.frozen:
            module.requires_grad_(False)
        self.network = network
        network.batch.generators = [torch.Generator(self.device) for _ in trainees]
        self.noise = Batch([torch.Generator(self.device) for _ in trainees])
        self.optimizer = Optimizer(network, recipe, self.dtype)
        if "optimizer" in first.tensors:
            try:
                self.optimizer.restore(
                    [trainee.tensors["optimizer"] for trainee in trainees],
                    [trainee.tensors.get("average", {}) for trainee in trainees],
                )
            except (KeyError, RuntimeError) as error:
                raise _misfit(first.checkpoint, error) from error
        for trainee in trainees:
            trainee.tensors = {}  # the run has them now
        self.train_x = _join([trainee.train.x for trainee in trainees])
        self.train_y = _join([trainee.train.y for trainee in trainees])
        weights = [t.train.weights for t in trainees if t.train.weights is not None]
        self.train_weights = _join(weights) if weights else None

    def train_epoch(self) -> None:
        """Go through all training rows once.

        Raises:
            TrainingDivergedError: If a loss is no longer finite; the best weights so far are kept.
        """
        started = time.perf_counter()
        batches = self._shuffle()
        epoch, steps = self.trainees[0].epoch, self.recipe.epochs * self.steps_per_epoch
        self.network.train()
        for module in self.frozen:
            module.eval()
        losses = torch.zeros((self.steps_per_epoch, len(self.trainees)), device=self.device)
        for number in range(self.steps_per_epoch):
            rate = learning_rate(
                self.recipe, epoch * self.steps_per_epoch + number, steps, self.steps_per_epoch
            )
            loss = self._loss([rows[number] for rows in batches])
            losses[number] = loss.detach()
            self.optimizer.step(loss.sum(), rate)
        sizes = torch.tensor([[len(rows) for rows in member] for member in batches]).T
        found = losses.cpu().double()
        totals = (found * sizes).sum(dim=0).tolist()
        validation = self._validate()
        seconds = (time.perf_counter() - started) / len(self.trainees)
        lost = []
        for place, trainee in enumerate(self.trainees):
            trainee.seconds += seconds
            train_mae = totals[place] / len(trainee.train) * trainee.scaling.target_std
            validation_mae = validation[place] * trainee.scaling.target_std
            if not (math.isfinite(train_mae) and math.isfinite(validation_mae)):
                wrong = (~found[:, place].isfinite()).nonzero()
                lost.append((trainee, int(wrong[0]) if len(wrong) else None))
                continue
            trainee.history.append(
                {
                    "train_mae": train_mae,
                    "validation_mae": validation_mae,
                    "learning_rate": rate,
                }
            )
            if validation_mae < trainee.best_mae:
                trainee.best_mae, trainee.best_epoch = validation_mae, trainee.epoch
                trainee.best_state = self.optimizer.states(averaged=True)[place]
        if lost:
            self._give_up([trainee for trainee, _ in lost], *lost[0])

    def _shuffle(self) -> list[tuple[Tensor, ...]]:
        """Draw the batches of an epoch: row numbers of each member and step."""
        batches, first = [], 0
        generators = zip(self.network.batch.generators, self.noise.generators, strict=True)
        for trainee, (dropout, noise) in zip(self.trainees, generators, strict=True):
            seed = trainee.epoch_seed()
            shuffle = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(trainee.train), generator=shuffle) + first
            batches.append(order.to(self.device).tensor_split(self.steps_per_epoch))
            dropout.manual_seed(seed)
            noise.manual_seed(trainee.epoch_seed(1))
            first += len(trainee.train)
        return batches

    def _loss(self, rows: Sequence[Tensor]) -> Tensor:
        """Mean absolute error of each member over its rows of a batch: (members,), or a scalar."""
        lengths = tuple(map(len, rows))
        ragged = len(set(lengths)) > 1
        self.network.batch.rows = self.noise.rows = lengths if ragged else None
        if len(rows) == 1:
            numbers = rows[0]
        elif ragged:
            numbers = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        else:
            numbers = torch.stack(list(rows))
        x = self.train_x[numbers]
        if self.recipe.input_noise:
            x = x + (self.recipe.input_noise * self.noise.draw(x, normal=True)).to(x.dtype)
        predicted: Tensor = self.network(x)
        error = (predicted - self.train_y[numbers]).abs()
        if self.train_weights is not None:
            error = error * self.train_weights[numbers]
        if ragged:
            valid = self.network.batch.valid(x)[..., 0]
            return (error * valid).sum(dim=-1) / valid.sum(dim=-1)
        return error.mean(dim=-1)

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Mean absolute error of each member on its validation rows, in scaled units."""
        self.network.eval()
        rows = [trainee.validation for trainee in self.trainees]
        most = max(map(len, rows))
        with self.optimizer.averaged_weights():
            if len(rows) == 1:
                x = rows[0].x
                predicted = torch.cat([self.network(part) for part in x.split(_BLOCK_ROWS)])[None]
            else:
                # in evaluation mode a row has no influence on another: padding does no harm
                x = torch.stack(
                    [torch.nn.functional.pad(r.x, (0, 0, 0, most - len(r))) for r in rows]
                )
                parts = x.split(_BLOCK_ROWS, dim=1)
                predicted = torch.cat([self.network(part) for part in parts], dim=1)
        found = []
        for each, own in zip(predicted, rows, strict=True):
            error = (each[: len(own)] - own.y).abs().double()
            found.append((error if own.weights is None else error * own.weights).mean())
        return torch.stack(found).tolist()

    def _give_up(self, lost: Sequence[_Trainee], trainee: _Trainee, step: int | None) -> None:
        self.keep()
        for other in self.trainees:
            if other not in lost:
                other.save()
        files = []
        for each in lost:
            files.append(each.task.folder / _DIVERGED_NAME)
            each.member().save(files[-1])
        place = "validation after the last step" if step is None else f"step {step + 1}"
        kept = f"epoch {trainee.best_epoch}" if trainee.best_epoch else "the start"
        raise TrainingDivergedError(
            f"member {trainee.task.number}, epoch {trainee.epoch + 1}, {place} of "
            f"{self.steps_per_epoch}: the loss is no longer finite; the best weights so far (of "
            f"{kept}) are in {files[0]}; lower the recipe's learning_rate or set gradient_clip"
        )

    def keep(self) -> None:
        """Hand the state of the run to the members, for a checkpoint or another run."""
        states, moments = self.optimizer.states(), self.optimizer.moments()
        for place, trainee in enumerate(self.trainees):
            trainee.tensors = {"network": states[place], "optimizer": moments[place]}
        if self.recipe.weight_averaging != "none":
            for trainee, average in zip(
                self.trainees, self.optimizer.states(averaged=True), strict=True
            ):
                trainee.tensors["average"] = average


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def _misfit(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        f"{path}: does not fit this training ({error}); delete it to start afresh"
    )


def _fit_scaling(task: MemberTask, train: NDArray[np.int64]) -> Scaling:
    recipe, source = task.recipe, task.init
    fitted = Scaling.fit(
        task.features[train],
        task.target[train],
        scale_inputs=recipe.scale_inputs and source is None,
        clip=recipe.clip_sigma,
        scale_target=recipe.scale_target,
    )
    if source is None:
        return fitted
    if task.keep_target:
        return source.scaling
    return replace(source.scaling, target_mean=fitted.target_mean, target_std=fitted.target_std)


def _hash_checkpoint(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    _hash_tensors(digest, tensors)
    return digest.hexdigest()


def _hash_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> None:
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.numpy().data)


def hash_member(member: Member) -> str:
    """Return the SHA-256 of a member's weights, scaling, features and architecture."""
    scaling = member.scaling
    facts = [
        str(member.architecture),
        list(member.feature_names),
        scaling.clip,
        scaling.target_mean,
        scaling.target_std,
    ]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for values in (scaling.mean, scaling.std):
        digest.update(np.ascontiguousarray(values, dtype=np.float64).tobytes())
    _hash_tensors(digest, member.state)
    return digest.hexdigest()


def _hash_array(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _check_identity(found: object, task: MemberTask, path: Path) -> None:
    expected = task.identity
    given = dict(found) if isinstance(found, dict) else {}
    # fields that an older version's recipe did not have are at their defaults
    with contextlib.suppress(KeyError, IRNetError, TypeError):
        given["recipe"] = Recipe.from_json(given["recipe"]).to_json()
    if given == expected:
        return
    keys = [*expected, *(key for key in given if key not in expected)]
    wrong = [key for key in keys if given.get(key) != expected.get(key)]
    raise CheckpointError(
        f"{path} belongs to another training (other {', '.join(wrong)}); "
        "choose another checkpoint folder or delete this one"
    )
