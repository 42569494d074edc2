"""One member in training: its task, its rows and scaling, what has happened so far, checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .device import choose_device, choose_dtype
from .ensemble import Member
from .errors import CheckpointError, DataError, IRNetError, ModelFileError
from .network import new_network
from .recipe import Recipe
from .rows import hash_array, split_rows
from .scaling import Scaling
from .storage import read_tensors, write_tensors

_CHECKPOINT = "an irnet checkpoint"
_CHECKPOINT_FORMAT = 2
_CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True)
class Progress:
    """State of one member's training after an epoch.

    Attributes:
        member: Number of the member, from 0.
        members: How many are trained.
        epoch: Epochs done.
        epochs: Epochs at most.
        train_error: Over the epoch's batches: mean absolute error in the target's unit, or the mean
            cross-entropy (in nats) of a classification.
        validation_error: The same on the validation rows.
        best_error: Lowest validation error so far.
        seconds: Spent on this member's epochs, by earlier processes too; of members trained
            together, each counts its share.
    """

    member: int
    members: int
    epoch: int
    epochs: int
    train_error: float
    validation_error: float
    best_error: float
    seconds: float


@dataclass(frozen=True, eq=False)
class MemberTask:
    """Everything that training one member needs.

    Attributes:
        features: (n, features), float32.
        target: (n,), float64; of a classification the numbers of the classes.
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
        classes: Names of the classes of a classification; empty for a regression.
        watched: Features and target of rows whose error is recorded after every epoch and decides
            nothing, or None.
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
    classes: tuple[str, ...] = ()
    watched: tuple[NDArray[np.float32], NDArray[np.float64]] | None = field(
        default=None, repr=False
    )

    @property
    def identity(self) -> dict[str, Any]:
        """What must agree for a checkpoint to be this task's."""
        found: dict[str, Any] = {
            "data_sha256": self.data_hash,
            "groups_sha256": None if self.groups is None else hash_array(self.groups),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "member": self.number,
        }
        # only where they are given, so that other trainings keep the identity they always had
        if self.weights is not None:
            found["weights_sha256"] = hash_array(self.weights)
        if self.init is not None:
            found["init_sha256"] = hash_member(self.init)
            found["init_output"] = "kept" if self.keep_target else "new"
        if self.classes:
            found["classes"] = list(self.classes)
        if self.watched is not None:
            found["watched_sha256"] = [hash_array(values) for values in self.watched]
        return found


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one member on its device: scaled features, scaled target, weights of mean 1."""

    x: Tensor
    y: Tensor
    weights: Tensor | None

    def __len__(self) -> int:
        return len(self.y)


class Trainee:
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
        self.watched = None if task.watched is None else self._scaled(*task.watched)
        self.steps_per_epoch = max(1, len(train) // recipe.batch_size)
        self.architecture = recipe.layers
        self.history: list[dict[str, float]] = []
        self.best_error = math.inf
        self.best_epoch = 0
        self.seconds = 0.0
        self.tensors: dict[str, dict[str, Tensor]] = {"network": self._first_state()}
        self.best_state = self.tensors["network"]

    def _rows(self, rows: NDArray[np.int64], use: str) -> Rows:
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
        return self._scaled(task.features[rows], task.target[rows], weights)

    def _scaled(
        self,
        features: NDArray[np.float32],
        target: NDArray[np.float64],
        weights: Tensor | None = None,
    ) -> Rows:
        x = torch.from_numpy(self.scaling.inputs(features))
        y = torch.from_numpy(self.scaling.target(target))
        if self.task.classes:
            y = y.long()
        return Rows(x.to(self.device, self.dtype), y.to(self.device), weights)

    def _first_state(self) -> dict[str, Tensor]:
        task = self.task
        generator = torch.Generator().manual_seed(self.weight_seed)
        outputs = max(1, len(task.classes))
        fresh = new_network(self.architecture, len(task.feature_names), 0.0, generator, outputs)
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
        """Epochs done."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """Whether it has had all epochs, or its patience is at an end."""
        recipe = self.task.recipe
        stale = self.epoch - self.best_epoch
        return self.epoch >= recipe.epochs or (
            recipe.patience is not None and stale >= recipe.patience
        )

    @property
    def validation_errors(self) -> list[float]:
        """After each epoch so far."""
        return [entry[f"validation_{self.task.recipe.metric}"] for entry in self.history]

    @property
    def checkpoint(self) -> Path:
        """File of the checkpoint."""
        return self.task.folder / _CHECKPOINT_NAME

    def epoch_seed(self, *purpose: int) -> int:
        """Seed of shuffling, dropout or noise in this epoch: no generator's state need be kept."""
        words = [self.shuffle_seed, self.epoch, *purpose]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def progress(self) -> Progress:
        """What to tell after an epoch."""
        last = self.history[-1]
        return Progress(
            member=self.task.number,
            members=self.task.members,
            epoch=self.epoch,
            epochs=self.task.recipe.epochs,
            train_error=last[f"train_{self.task.recipe.metric}"],
            validation_error=last[f"validation_{self.task.recipe.metric}"],
            best_error=self.best_error,
            seconds=self.seconds,
        )

    def save(self) -> None:
        """Write the checkpoint: what `TrainingLoop.keep` left here, and the best weights so far."""
        parts = self.tensors | {"best": self.best_state}
        tensors = {f"{part}.{key}": v for part, vs in parts.items() for key, v in vs.items()}
        header = {
            "kind": _CHECKPOINT,
            "format": _CHECKPOINT_FORMAT,
            "identity": self.task.identity,
            "history": self.history,
            "best_error": self.best_error,
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
            check_identity(header["identity"], self.task, path)
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
            # format 2 renamed it when there came to be other measures
            self.best_error = header["best_error" if written > 1 else "best_mae"]
            self.best_epoch = header["best_epoch"]
            self.seconds = header["seconds"]
        except (KeyError, RuntimeError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise misfit(path, error) from error

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
            f"validation_{task.recipe.metric}": self.best_error if self.history else None,
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
            classes=task.classes,
        )


def _shape(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


def misfit(path: Path, error: Exception) -> ModelFileError:
    """Say that a checkpoint has other shapes than its training."""
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
        scale_target=recipe.scale_target and not task.classes,
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


def check_identity(found: object, task: MemberTask, path: Path) -> None:
    """Compare what a file says that it belongs to with a task.

    Args:
        found: ``identity`` of the file.
        task: The training at hand.
        path: The file.

    Raises:
        CheckpointError: It belongs to another training.
    """
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
