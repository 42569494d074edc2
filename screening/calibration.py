"""Intervals for a model: fitted on compounds with known energies that it was not trained on.

A compound's chemical system (the elements in it) is never on both sides of a split, so that what
is said of the intervals holds for systems that the model knows nothing of.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from screening.dataset import (
    Protocol,
    TrainingSet,
    attach_features,
    read_training_set,
    refuse_second_features,
)
from screening.errors import ConfigurationError, InputDataError, ModelError
from screening.evaluation import predict_all
from screening.feature_tables import (
    ParallelMap,
    ProgressCall,
    featurize_structures,
    read_features,
)
from screening.features import Engine
from screening.model_card import CalibrationCard, Card, Reliability, write_card
from screening.model_library import (
    REFERENCE_NAME,
    UNCERTAINTY_NAME,
    ScreeningModel,
)
from screening.printing import count_things
from screening.reliability import (
    Intervals,
    Predictor,
    find_intervals,
    join_intervals,
    join_members,
    measure_reliability,
)
from screening.training import HELD_OUT_NAME, load_rows, writing_to

if TYPE_CHECKING:
    from irnet.reference import TrainingReference
    from irnet.uncertainty import Uncertainty

LEVEL = 0.9
"""Share of the energies that the stored intervals are made to hold."""

FEWEST_ROWS = 100
"""With fewer rows a tenth of them, which decides where a 90 % interval ends, says nothing."""

FOLDS = 5
"""Parts in which the calibration rows are judged, each by a fit to the others."""

CALIBRATED_LIMIT = (
    "The intervals hold for compounds like those they were fitted on; elsewhere their coverage is "
    "what the evaluation says, or unknown."
)
ALL_ROWS = "calibration"
"""Group of the reliability on all rows that intervals were fitted on."""

_UNCALIBRATED = "not a calibrated uncertainty"


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate on.

    Attributes:
        data: Parquet files of structures or of features.
        protocol: Which rows take part; those whose formula the model was trained on never do.
        features: Feature table to join by id instead of featurizing, or None.
        engine: Which featurizer.
        device: Where the networks run.
        seed: Of the splits.
    """

    data: tuple[Path, ...]
    protocol: Protocol
    features: Path | None = None
    engine: Engine = "fast"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """Compounds with known energies and what a model predicts for them.

    Attributes:
        features: Shape (n, 271).
        target: Energies, shape (n,), eV/atom.
        predictions: As `screening.evaluation.predict_all` returns them.
        systems: Number of the chemical system of each row, shape (n,).
        distance: To the data that the predicting networks were trained on, shape (n,).
    """

    features: NDArray[np.float32]
    target: NDArray[np.float64]
    predictions: Mapping[Predictor, NDArray[np.float64]]
    systems: NDArray[np.int64]
    distance: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.target)

    def select(self, rows: NDArray[np.int64]) -> "CalibrationRows":
        """Some of the rows."""
        return CalibrationRows(
            self.features[rows],
            self.target[rows],
            {name: values[..., rows] for name, values in self.predictions.items()},
            self.systems[rows],
            self.distance[rows],
        )


def calibrate_model(
    model: ScreeningModel,
    request: CalibrationRequest,
    work: Path,
    *,
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
    say: Callable[[str], None] = lambda sentence: None,
    overwrite: bool = False,
) -> Card:
    """Fit the intervals of a model and put them, and how well they do, into its folder.

    Args:
        model: The model; its folder gets ``uncertainty.safetensors`` and a new card.
        request: What to calibrate on.
        work: Folder for features on the way.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).
        say: Called with a sentence about rows that were left out.
        overwrite: Whether to replace an earlier calibration.

    Returns:
        The new card.

    Raises:
        ConfigurationError: The model is calibrated already.
        ModelError: The model has no sample of its training features.
        InputDataError: The data cannot be used, or too few rows are left.
        OutputError: The model's folder cannot be written.
    """
    if model.card.calibration is not None and not overwrite:
        raise ConfigurationError(
            f"{model.path} is calibrated already, on {model.card.calibration.rows:,} compounds; "
            "give --overwrite to do it again"
        )
    reference = find_reference(model)
    data = _leave_out_known(read_training_set(request.data, request.protocol), model)
    _refuse_too_few(data)
    data = _with_features(data, request, work, run, progress)
    if data.dropped:
        left_out = ", ".join(f"{count:,} {why}" for why, count in data.dropped.items())
        say(f"{count_things(len(data), 'row')} to calibrate on; left out: {left_out}")
    _refuse_too_few(data)
    assert data.features is not None
    rows = CalibrationRows(
        data.features,
        data.target,
        predict_all(model.ensemble, model.forest, data.features, request.device),
        number_systems(data.formulas),
        reference.distance(data.features),
    )
    measured_on = ", ".join(f"{source.name} {source.sha256[:12]}" for source in data.sources)
    uncertainty, calibration = fit_intervals(
        rows,
        reference,
        measured_on=f"compounds of {measured_on} with formulas that the model was not trained on",
        seed=request.seed,
    )
    card = model.card.model_copy(
        update={
            "calibration": calibration,
            **{
                measured: evaluation and evaluation.model_copy(update={"reliabilities": ()})
                for measured, evaluation in (
                    ("evaluation", model.card.evaluation),
                    ("cross_validation", model.card.cross_validation),
                )
            },
            "held_out_reliability": _judge_held_out(model, uncertainty, data, request.device),
            "limits": tuple(
                CALIBRATED_LIMIT if _UNCALIBRATED in limit else limit for limit in model.card.limits
            ),
        }
    )
    with writing_to(model.path):
        uncertainty.save(model.path / UNCERTAINTY_NAME)
    write_card(card, model.path)
    return card


def fit_intervals(
    rows: CalibrationRows,
    reference: "TrainingReference",
    *,
    measured_on: str,
    parts: NDArray[np.str_] | None = None,
    seed: int = 0,
) -> "tuple[Uncertainty, CalibrationCard]":
    """Fit intervals, and judge them on the same rows by fits without their chemical systems.

    Args:
        rows: At least a few hundred compounds with known energies, none of them trained on.
        reference: Sample of the training features of the model that gets the intervals.
        measured_on: What the rows are, for the card.
        parts: Label of each row, shape (n,), if the card is to tell how the intervals do on each
            part of the rows too.
        seed: Of the splits.

    Returns:
        The calibration of all rows, and what the card says of it.

    Raises:
        irnet.DataError: There are too few rows or chemical systems.
    """
    whole = fit_calibration(rows, reference, seed)
    intervals = judge_intervals(rows, reference, seed=seed)
    reliabilities = [measure_reliability(intervals, rows.target, group=ALL_ROWS)]
    for part in () if parts is None else np.unique(parts).tolist():
        of_part = np.flatnonzero(parts == part)
        reliabilities.append(
            measure_reliability(intervals.select(of_part), rows.target[of_part], group=part)
        )
    return whole, CalibrationCard(
        level=LEVEL,
        rows=len(rows),
        groups=len(np.unique(rows.systems)),
        measured_on=measured_on,
        reliabilities=tuple(reliabilities),
    )


def judge_intervals(
    rows: CalibrationRows, reference: "TrainingReference", *, seed: int = 0
) -> Intervals:
    """Intervals of rows, each by a fit to the rows of other chemical systems.

    Args:
        rows: As in `fit_intervals`.
        reference: As there.
        seed: Of the splits.

    Returns:
        Intervals in the order of the rows.

    Raises:
        irnet.DataError: There are too few rows or chemical systems.
    """
    systems = np.unique(rows.systems)
    folds = np.random.default_rng(seed).permutation(len(systems)) % FOLDS
    fold = folds[np.searchsorted(systems, rows.systems)]
    parts, order = [], []
    for number in np.unique(fold):
        fitted = fit_calibration(rows.select(np.flatnonzero(fold != number)), reference, seed)
        order.append(np.flatnonzero(fold == number))
        judged = rows.select(order[-1])
        parts.append(find_intervals(fitted, judged.features, judged.predictions))
    return join_intervals(parts).select(np.argsort(np.concatenate(order)))


def number_systems(formulas: Sequence[str]) -> NDArray[np.int64]:
    """A number per formula, equal for compounds of the same elements.

    Args:
        formulas: Length n.

    Returns:
        Shape (n,).
    """
    return np.unique(_name_systems(formulas), return_inverse=True)[1].astype(np.int64)


def find_reference(model: ScreeningModel) -> "TrainingReference":
    """The sample of its training features that a model's distances are measured from.

    Args:
        model: The model.

    Raises:
        ModelError: The model has none, or its file is damaged.
    """
    from irnet import IRNetError
    from irnet.reference import TrainingReference

    path = model.path / REFERENCE_NAME
    if not path.exists():
        if model.uncertainty is not None:
            return model.uncertainty.reference
        raise ModelError(
            f"{model.path} has no {REFERENCE_NAME}, which training leaves for the distance to its "
            "data; train the model again with: screening train"
        )
    try:
        return TrainingReference.load(path)
    except IRNetError as error:
        raise ModelError(f"cannot use the model {model.path}: {error}") from error


def _name_systems(formulas: Sequence[str]) -> NDArray[np.str_]:
    """Chemical system of each formula, such as ``Fe-O``."""
    from pymatgen.core.composition import Composition

    names = {formula: Composition(formula).chemical_system for formula in set(formulas)}
    return np.array([names[formula] for formula in formulas], dtype=np.str_)


def fit_calibration(
    rows: CalibrationRows, reference: "TrainingReference", seed: int
) -> "Uncertainty":
    """Fit intervals on rows, with their chemical systems as groups.

    Args:
        rows: Compounds that the predicting networks were not trained on.
        reference: Of the model's training rows.
        seed: Of folds and trees.
    """
    from irnet.uncertainty import Uncertainty

    return Uncertainty.fit(
        rows.target,
        join_members(rows.predictions),
        rows.predictions.get("random_forest"),
        rows.distance,
        reference=reference,
        features=rows.features,
        groups=rows.systems,
        level=LEVEL,
        seed=seed,
    )


def _leave_out_known(data: TrainingSet, model: ScreeningModel) -> TrainingSet:
    unknown = np.flatnonzero(~model.training_formulas.contains(data.formulas))
    return data.select(unknown, "formula that the model was trained on")


def _refuse_too_few(data: TrainingSet) -> None:
    systems = len(np.unique(number_systems(data.formulas))) if len(data) else 0
    if len(data) < FEWEST_ROWS or systems < 2 * FOLDS:
        left_out = ", ".join(f"{count:,} {why}" for why, count in data.dropped.items())
        raise InputDataError(
            f"{count_things(len(data), 'row')} of {count_things(systems, 'chemical system')} left "
            "to calibrate on"
            f"{f' (left out: {left_out})' if left_out else ''}; at least {FEWEST_ROWS} rows of "
            f"{2 * FOLDS} systems are needed. Give more compounds that the model was not "
            "trained on."
        )


def _with_features(
    data: TrainingSet,
    request: CalibrationRequest,
    work: Path,
    run: ParallelMap | None,
    progress: ProgressCall | None,
) -> TrainingSet:
    refuse_second_features(data, request.features)
    if data.features is not None:
        return data
    if request.features is not None:
        features = read_features(request.features)
    else:
        assert data.crystals is not None
        features = featurize_structures(
            data.crystals, work, engine=request.engine, run=run, progress=progress
        )
    return attach_features(data, features)


def _judge_held_out(
    model: ScreeningModel, uncertainty: "Uncertainty", data: TrainingSet, device: str
) -> tuple[Reliability, ...]:
    """Measure the intervals on held-out rows whose chemical system they were not fitted on."""
    path = model.path / HELD_OUT_NAME
    if not path.exists():
        return ()
    from safetensors import safe_open

    features, target = load_rows(path)
    with safe_open(path, "np") as file:
        formulas = json.loads(file.metadata()["formulas"])
    rows = np.flatnonzero(~np.isin(_name_systems(formulas), _name_systems(data.formulas)))
    if not len(rows):
        return ()
    predictions = predict_all(model.ensemble, model.forest, features[rows], device)
    intervals = find_intervals(uncertainty, features[rows], predictions)
    return (measure_reliability(intervals, target[rows], group="held_out"),)
