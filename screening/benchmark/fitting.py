"""One trial from data to result: fit the model, test it, say how it was made."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from screening.benchmark.data import (
    ELEMENTS,
    EVALUATION,
    EXTRA_TESTS,
    LARGEST_VOLUME,
    PROTOTYPES,
    SPLIT_SEED,
    STRUCTURES,
    UNITS,
    VOLUME,
    BenchmarkData,
    DataStore,
    FloatArray,
    IntArray,
    draw_rows,
    find_source,
    split_rows,
)
from screening.benchmark.trial import HELD_OUT, TestErrors, Trial, TrialResult
from screening.errors import ConfigurationError, suggest
from screening.manifest import describe_environment
from screening.training import describe_machine

if TYPE_CHECKING:
    from irnet import Recipe
    from irnet.ensemble import Member
    from irnet.trainee import Progress

STATISTICS_ROWS: Final = (32, 1024)
"""Rows of a batch that is predicted with its own statistics, where a trial asks for that."""

SECONDS_BETWEEN_CHECKPOINTS: Final = 60.0

_COLUMNS: Final = 271
_SECONDS_PER_ROW: Final = 2.3e-4
_SECONDS_PER_STEP: Final = 4.7e-2
_WEIGHTS_OF_IRNET_17: Final = 5.8e6

_BASELINE_SECONDS: Final[Mapping[str, tuple[float, float]]] = {
    "linear_regression": (0.7, 1.0),
    "lasso": (1.0, 1.0),
    "ridge": (0.2, 1.0),
    "elastic_net": (1.0, 1.0),
    "sgd": (0.5, 1.0),
    "decision_tree": (2.0, 1.1),
    "adaboost": (40.0, 1.1),
    "k_neighbors": (5.0, 1.5),
    "svr": (35.0, 2.0),
    "bagging": (100.0, 1.1),
    "random_forest": (50.0, 1.1),
    "gradient_boosting": (25.0, 0.8),
    "kernel_ridge": (30.0, 2.3),
}
"""Core seconds of one fit to 10,000 rows, and the power of the rows with which they grow; rough."""

Predict = Callable[[NDArray[np.float32]], FloatArray]

Report = Callable[[str], None]
"""Told where a fit stands."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model that is fitted, and how.

    Attributes:
        predict: From features (n, columns) to predictions (n,) in the target's unit.
        chosen: Recipe of a network; parameters of a baseline and its search's table.
        seconds: Time of the fit.
        parameters: Trainable parameters of a network.
        history: Of a network, per epoch.
        member: The network.
    """

    predict: Predict
    chosen: Mapping[str, Any]
    seconds: float
    parameters: int | None = None
    history: tuple[Mapping[str, float], ...] = ()
    member: Member | None = None


def find_recipe_of(trial: Trial) -> Recipe:
    """The recipe of a network's trial, in full.

    Raises:
        irnet.errors.RecipeError: There is no such recipe or field.
        irnet.errors.ArchitectureError: There is no such network.
    """
    from irnet import find_recipe

    return find_recipe(trial.recipe).with_changes(architecture=trial.model, **dict(trial.changes))


def fingerprint(trial: Trial) -> str:
    """SHA-256 of what a trial asks for, with what names stand for written out.

    Raises:
        ConfigurationError: The trial names what there is not.
        irnet.errors.IRNetError: So does its recipe.
    """
    unknown = [name for name in trial.tests if name not in EXTRA_TESTS]
    if unknown:
        raise ConfigurationError(
            f"trial {trial.name} has an unknown test {unknown[0]!r}"
            f"{suggest(unknown[0], EXTRA_TESTS)}"
        )
    asked = trial.to_json()
    for words in ("label", "shortened"):
        del asked[words]
    meant = {
        "prototypes": PROTOTYPES,
        "elements": ELEMENTS,
        "virtual": LARGEST_VOLUME,
        "batch-statistics": STATISTICS_ROWS,
    }
    if any(test in meant for test in trial.tests):
        asked["tests mean"] = {test: meant[test] for test in trial.tests if test in meant}
    if trial.kind == "network":
        recipe = find_recipe_of(trial)
        asked["meaning"] = {**recipe.to_json(), "layers": str(recipe.layers)}
    else:
        asked["meaning"] = _find_grid(trial.model)
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def estimate_seconds(trial: Trial, rows: int) -> float:
    """About how long a trial takes on one core of a server of 2023; within a factor of two or so.

    Args:
        trial: The trial.
        rows: Rows that there are to train on.
    """
    from irnet import count_parameters

    rows = rows if trial.train_rows is None else min(rows, trial.train_rows)
    if trial.kind == "baseline":
        seconds, power = _BASELINE_SECONDS[trial.model]
        points = 1 if trial.model == "random_forest" else _find_grid(trial.model)["points"]
        fits = points + 1 if trial.search else 1
        return float(seconds * (rows / 10_000) ** power * fits)
    recipe = find_recipe_of(trial)
    weights = count_parameters(recipe.layers, _COLUMNS) / _WEIGHTS_OF_IRNET_17
    epoch = rows * _SECONDS_PER_ROW + rows // recipe.batch_size * _SECONDS_PER_STEP
    return float(recipe.epochs * weights * epoch)


def fit_trial(
    trial: Trial,
    store: DataStore,
    folder: Path,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> TrialResult:
    """Fit a trial's model and test it.

    Args:
        trial: The trial.
        store: Where its data are.
        folder: For checkpoints of a network; what is there from an interrupted fit of this trial
            is gone on with. The caller removes it when the result is safe.
        device: Where networks run.
        report: Told where the fit stands.

    Returns:
        The result.

    Raises:
        ScreeningError, irnet.errors.IRNetError: The trial cannot be fitted, and why.
    """
    own = store.data(trial.data).with_target(trial.target)
    train, test = split_rows(own, trial.holdout)
    train = draw_rows(train, trial.train_rows)
    report = report or _say_nothing
    fit = _fit_network if trial.kind == "network" else _fit_baseline
    fitted = fit(trial, own, train, test, folder, device, report)
    report("testing")
    groups = {
        name: TestErrors.measure(fitted.predict(features), target)
        for name, features, target in _list_tests(trial, store, own, test)
    }
    if "batch-statistics" in trial.tests:
        groups |= _test_batch_statistics(trial, fitted, own, test)
    environment = describe_environment()
    return TrialResult(
        trial=trial,
        fingerprint=fingerprint(trial),
        data_sha256=digest_data(trial, store),
        train_rows=len(train),
        unit=UNITS[trial.target],
        test=groups,
        history=fitted.history,
        figures=_find_figures(fitted.history),
        parameters=fitted.parameters,
        chosen=fitted.chosen,
        seconds=round(fitted.seconds, 2),
        machine=describe_machine(device),
        commit=environment["commit"],
        versions=_find_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def list_arrays(trial: Trial) -> tuple[str, ...]:
    """Names of the arrays (see `prepare_arrays`) that a trial needs.

    Raises:
        InputDataError: There is no such data set.
    """
    names = {find_source(trial.data)}
    if "eval" in trial.tests:
        names.add(EVALUATION)
    if {"known", "virtual"} & set(trial.tests):
        names.add(STRUCTURES)
    return tuple(sorted(names))


def digest_data(trial: Trial, store: DataStore) -> str:
    """SHA-256 of everything that a trial is trained and tested on."""
    digests = [store.digest(name) for name in list_arrays(trial)]
    return hashlib.sha256(" ".join([trial.data, *digests]).encode()).hexdigest()


def _fit_network(
    trial: Trial,
    data: BenchmarkData,
    train: IntArray,
    test: IntArray,
    folder: Path,
    device: str,
    report: Report,
) -> Fitted:
    from irnet import count_parameters, train_ensemble

    recipe = find_recipe_of(trial)
    watched = draw_rows(test, trial.watched_rows)
    target = data.targets[trial.target]
    unit = UNITS[trial.target]

    def tell(progress: Progress) -> None:
        report(
            f"epoch {progress.epoch} of {progress.epochs}, "
            f"validation {progress.validation_error:.4f} {unit}"
        )

    epoch = estimate_seconds(replace(trial, train_rows=len(train)), len(train)) / recipe.epochs
    ensemble = train_ensemble(
        data.features[train],
        target[train],
        data.feature_names,
        recipe=recipe,
        members=1,
        seed=trial.seed,
        checkpoint_dir=folder,
        device=device,
        groups=data.formulas[train],
        progress=tell,
        target_name=trial.target,
        target_unit=unit,
        checkpoint_every=max(1, round(SECONDS_BETWEEN_CHECKPOINTS / epoch)),
        watched=(data.features[watched], target[watched]) if len(watched) else None,
    )
    (member,) = ensemble.members
    scorer = ensemble.scorer(device=device, precision="fp32")

    def predict(features: NDArray[np.float32]) -> FloatArray:
        return np.asarray(scorer.predict(features).mean, dtype=np.float64)

    return Fitted(
        predict=predict,
        chosen={**recipe.to_json(), "computed in": member.record["precision"]},
        seconds=float(member.record["seconds"]),
        parameters=count_parameters(recipe.layers, len(data.feature_names)),
        history=tuple(member.record["history"]),
        member=member,
    )


def _fit_baseline(
    trial: Trial,
    data: BenchmarkData,
    train: IntArray,
    test: IntArray,
    folder: Path,
    device: str,
    report: Report,
) -> Fitted:
    from irnet.baselines import fit_baseline

    report("searching its grid" if trial.search else "fitting")
    begun = time.perf_counter()
    baseline = fit_baseline(
        trial.model,
        data.features[train],
        data.targets[trial.target][train],
        data.feature_names,
        search=trial.search,
        seed=trial.seed,
        n_jobs=1,
        groups=data.formulas[train],
        target_name=trial.target,
        target_unit=UNITS[trial.target],
    )
    return Fitted(
        predict=baseline.predict, chosen=baseline.card, seconds=time.perf_counter() - begun
    )


def _list_tests(
    trial: Trial, store: DataStore, data: BenchmarkData, test: IntArray
) -> Iterator[tuple[str, NDArray[np.float32], FloatArray]]:
    """Name, features and targets of each group that a trial is tested on; none without rows."""
    target = data.targets[trial.target]
    held = data.select(test)
    groups: list[tuple[str, IntArray]] = [(HELD_OUT, test)]
    if "prototypes" in trial.tests:
        groups += [(f"prototype/{each}", test[held.prototypes == each]) for each in PROTOTYPES]
    if "elements" in trial.tests:
        groups += [(f"element/{each}", test[held.containing(each)]) for each in ELEMENTS]
    for name, rows in groups:
        if len(rows):
            yield name, data.features[rows], target[rows]
    for name, known in (("known", True), ("virtual", False)):
        if name in trial.tests:
            whole = store.data("oqmd-sc").with_target(trial.target)
            fitting = whole.held_out & (whole.targets[VOLUME] <= LARGEST_VOLUME)
            rows = np.flatnonzero(fitting & (whole.known == known))
            if len(rows):
                yield name, whole.features[rows], whole.targets[trial.target][rows]
    if "eval" in trial.tests:
        evaluation = store.evaluation()
        for geometry, features in evaluation.features.items():
            for group, rows in evaluation.groups.items():
                kind, *part = group.split("/")
                name = "/".join(["eval", kind, geometry, *part])
                yield name, features[rows], evaluation.target[rows]


def _test_batch_statistics(
    trial: Trial, fitted: Fitted, data: BenchmarkData, test: IntArray
) -> dict[str, TestErrors]:
    """Errors of predictions whose batch norm takes the statistics of the batch it is given.

    That is what the published code does where it predicts: a row's prediction then depends on the
    rows beside it. They are shuffled with a fixed seed.
    """
    import torch
    from torch import nn

    member = fitted.member
    if member is None:
        return {}
    network = deepcopy(member.network)  # batch norm changes its averages in training mode
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train()
    order = np.random.default_rng(SPLIT_SEED).permutation(test)
    inputs = torch.from_numpy(member.scaling.inputs(data.features[order]))
    true = data.targets[trial.target][order]
    errors = {}
    for rows in STATISTICS_ROWS:
        batches = inputs.tensor_split(max(1, len(inputs) // rows))
        with torch.inference_mode():
            scaled = torch.cat([network(batch) for batch in batches]).double().numpy()
        predicted = scaled * member.scaling.target_std + member.scaling.target_mean
        errors[f"batch-statistics/{rows}"] = TestErrors.measure(predicted, true)
    return errors


def _find_figures(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What it makes of the error to choose the epoch on the rows that it is measured on."""
    if not history:
        return {}
    validation = [entry["validation_mae"] for entry in history]
    best = int(np.argmin(validation))
    figures = {"best_epoch": float(best)}
    if "watched_mae" in history[0]:
        watched = [entry["watched_mae"] for entry in history]
        figures["watched_mae_at_best_validation"] = watched[best]
        figures["lowest_watched_mae"] = min(watched)
    return figures


@cache
def _find_versions() -> dict[str, str | None]:
    from importlib.metadata import version

    names = ("torch", "scikit-learn", "numpy", "pymatgen", "pyvoro2")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _find_grid(model: str) -> dict[str, Any]:
    """What a baseline's name stands for."""
    from irnet.baselines import find_baseline

    kind = find_baseline(model)
    return {
        "grid": dict(kind.grid),
        "points": kind.grid_points,
        "defaults": dict(kind.defaults),
        "fixed": dict(kind.fixed),
    }


def _say_nothing(sentence: str) -> None:
    """Report to nobody."""
