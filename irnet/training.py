"""Training of ensembles: members one by one, together, or wherever a `map` takes them."""

from __future__ import annotations

import builtins
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .architecture import Architecture
from .device import choose_device
from .ensemble import Ensemble, Member
from .errors import ArchitectureError, DataError, RecipeError, check_feature_names
from .loop import TrainingLoop
from .recipe import Recipe, find_recipe
from .rows import check_classes, check_data, check_weights, hash_array, hash_data
from .trainee import MemberTask, Progress, Trainee, check_identity, hash_member

_MEMBER_NAME = "member.safetensors"
_GPU_SAVE_PAUSE = 10.0  # times the duration of the last save


class Map(Protocol):
    """What `train_ensemble` needs of a ``map``: builtin, executor's or a cluster's."""

    def __call__(
        self, function: Callable[[MemberTask], Member], tasks: Sequence[MemberTask], /
    ) -> Iterable[Member]:
        """Apply the function to each task, results in order."""
        ...


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
    classes: Sequence[str] = (),
    watched: tuple[NDArray[np.floating], ArrayLike] | None = None,
) -> Ensemble:
    """Train members that differ in seed and validation split.

    Called again with the same data, recipe and seed after an interruption, it continues: finished
    members are read, a begun one goes on at its last checkpoint and ends, on the same machine
    and number of threads, with the same weights bit for bit. Members trained together and one by
    one differ by rounding only, and either way goes on with what the other has begun.

    Args:
        features: (n, features); stored and used as float32.
        target: (n,), in `target_unit`; with the recipe's loss "cross_entropy" the numbers of the
            classes, see `irnet.encode_classes`.
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
        classes: Names of the classes of a classification, in the order of their numbers.
        watched: Features (m, features) and target (m,) of rows whose error is recorded after every
            epoch, as ``watched_...`` beside the others, and decides nothing.

    Returns:
        The ensemble; its card holds target, data hash, recipe, seeds and validation errors.

    Raises:
        DataError: If shapes disagree, a value is not finite (names row and column), the target is
            the same everywhere or no class's number, a weight is negative, or a number is too
            small.
        FeatureMismatchError: If `init_from` was trained on other columns.
        ArchitectureError: If `init_from` has another architecture.
        RecipeError: If layers are to be frozen without `init_from`, or a classification's classes
            or loss are missing.
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
    if (recipe.loss == "cross_entropy") != bool(classes):
        raise RecipeError(
            f"recipe loss is {recipe.loss!r} with {len(classes)} classes; cross_entropy and the "
            "names of the classes belong together"
        )
    if classes:
        check_classes(y, classes)
    beside = None
    if watched is not None:
        beside_x, beside_y, _ = check_data(*watched, names)
        beside = beside_x, beside_y
    labels = None
    if groups is not None:
        _, labels = np.unique(np.asarray(groups), return_inverse=True)
        labels = labels.astype(np.int64).reshape(-1)
        if len(labels) != len(y):
            raise DataError(f"groups has {len(labels)} labels for {len(y)} rows")
    row_weights = None if weights is None else check_weights(weights, len(y))
    sources, keep_target = _check_source(
        init_from, recipe, names, (target_name, target_unit, tuple(classes))
    )
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
            classes=tuple(classes),
            watched=beside,
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
        "architecture": str(recipe.layers),
        "seed": seed,
        f"validation_{recipe.metric}": [
            member.record[f"validation_{recipe.metric}"] for member in trained
        ],
        "seconds": sum(member.record["seconds"] for member in trained),
        "torch": torch.__version__,
    }
    if classes:
        card["classes"] = list(classes)
    if row_weights is not None:
        card["weights_sha256"] = hash_array(row_weights)
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
    training rows make different numbers of steps, are in different stacks; where the rate follows
    the validation error, every member is in one of its own. A member that stops early leaves its
    stack.

    Args:
        tasks: Of one training; they differ in number and folder.

    Returns:
        One member per task, with the weights of its best epoch.
    """
    members: dict[int, Member] = {}
    stacks: dict[tuple[int, int, int], list[Trainee]] = {}
    for task in tasks:
        finished = task.folder / _MEMBER_NAME
        if finished.exists():
            members[task.number] = Member.load(finished)
            check_identity(members[task.number].record.get("identity"), task, finished)
            continue
        task.folder.mkdir(parents=True, exist_ok=True)
        trainee = Trainee(task)
        if trainee.checkpoint.exists():
            trainee.restore()
        alone = task.number if task.recipe.schedule == "plateau" else -1
        place = (trainee.epoch, trainee.steps_per_epoch, alone)
        stacks.setdefault(place, []).append(trainee)
    for trainees in stacks.values():
        for member in _train_stack(trainees):
            members[member.record["number"]] = member
    return [members[task.number] for task in tasks]


def _train_stack(trainees: Sequence[Trainee]) -> Iterator[Member]:
    run: TrainingLoop | None = None
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
            run = TrainingLoop(trainees)
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


def _check_source(
    source: Ensemble | Member | None,
    recipe: Recipe,
    names: Sequence[str],
    target: tuple[str, str, tuple[str, ...]],
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
    wanted = _without_dropout(recipe.layers)
    for number, member in enumerate(members):
        check_feature_names(member.feature_names, names, f"member {number} of init_from")
        found = _without_dropout(member.architecture)
        if found != wanted:
            raise ArchitectureError(
                f"member {number} of init_from is {found} with {found.activation}, but the "
                f"recipe's architecture is {wanted} with {wanted.activation}; train the "
                "architecture of init_from"
            )
    name, unit, classes = target
    same = (facts["target"], facts.get("unit", unit), members[0].classes) == (name, unit, classes)
    return members, same


def _without_dropout(architecture: Architecture) -> Architecture:
    blocks = tuple(replace(block, dropout="none") for block in architecture.blocks)
    return replace(architecture, blocks=blocks)
