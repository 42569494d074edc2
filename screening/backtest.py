"""A retrospective test: would the ranking have found the compounds that turned out stable?

Compounds whose energy above hull is known from DFT are ranked by a model and by references that
have not seen them, and what the ranking finds is counted (`screening.discovery_metrics`). Nothing
that was calculated for an evaluated composition takes part: its reference phases are taken out, the
calibration that a probability comes from was fitted without its chemical system, and where the
evaluated compounds compete with each other, they do so with predicted energies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prototypes import reduced_formula
from screening.calibration import (
    FEWEST_ROWS,
    FOLDS,
    CalibrationRows,
    find_reference,
    fit_calibration,
    number_systems,
)
from screening.dataset import (
    DEFAULT_TARGET,
    Protocol,
    TrainingSet,
    attach_features,
    read_energies,
    read_training_set,
    refuse_second_features,
    require_columns,
)
from screening.discovery_metrics import (
    FIRST,
    BoolArray,
    Classification,
    FloatArray,
    HullErrors,
    ProbabilityScore,
    calculations_for,
    classify,
    count_found,
    measure_errors,
    order_by,
    precision_at,
    roc_auc,
    score_probabilities,
)
from screening.errors import InputDataError, ModelError
from screening.evaluation import predict_all
from screening.feature_tables import (
    ParallelMap,
    ProgressCall,
    featurize_structures,
    read_features,
)
from screening.features import Engine
from screening.hull import find_mixtures
from screening.model_card import DataFileEntry
from screening.model_library import NOT_CALIBRATED, ScreeningModel
from screening.parquet import read_frame, read_names
from screening.phases import Phases, parse_formula
from screening.references import References, read_references
from screening.reliability import Predictor, join_members
from screening.stability import LEAST_NOISE, judge_stability

if TYPE_CHECKING:
    from irnet.reference import TrainingReference
    from irnet.uncertainty import Uncertainty

Calibration = Literal["folds", "model", "none"]
CALIBRATIONS: Final[tuple[Calibration, ...]] = get_args(Calibration)

Truth = Literal["label", "same competitors"]
TRUTHS: Final[tuple[Truth, ...]] = get_args(Truth)

PREDICTORS: Final = {
    "irnet": "IRNet, probability",
    "irnet_energy": "IRNet, energy",
    "random_forest": "Random Forest, probability",
    "random_forest_energy": "Random Forest, energy",
    "dft": "DFT energies",
}
"""What ranks the compounds: by the probability of being stable (then energy above hull; above one
half is selected) or by the energy above hull (at most the tolerance is selected). The last one is
no model: it puts the true energies where the others put predicted ones, and so tells what the
references and the competitors leave to be found."""

ALL_ROWS: Final = "all"
NEW: Final = "new compositions"
"""Group of the compounds whose composition the model was not trained on."""

SELECTED_FROM: Final = 0.5
"""Probability of being stable above which a compound counts as predicted stable."""

SAME_ENERGY: Final = 0.005
"""eV/atom: a reference of the same composition this near is the compound itself."""

ROUNDING: Final = 1e-6
"""eV/atom: a computed energy above hull smaller in size is 0."""

DRAWS: Final = 8
"""Times that the energies of competing compounds are drawn for each member."""

FEWEST_IN_GROUP: Final = 10
"""Groups with fewer stable or fewer unstable compounds are not judged by themselves."""

_GROUP_COLUMNS: Final = ("kind", "scheme")

_View: TypeAlias = tuple[FloatArray, FloatArray, FloatArray | None]
"""Predicted mean (n,), members (n, members), and what stands beside them, (n,) or None; eV/atom."""


@dataclass(frozen=True)
class BacktestRequest:
    """What to rank, against what, and what counts as stable.

    Attributes:
        data: Parquet files of the compounds: structures, or features with id and formula; with
            their DFT formation energies.
        references: Reference phases; those of evaluated compositions are taken out.
        known: Parquet files of known crystals: where a composition was taken out, the lowest of
            them takes its place. Those that the model was trained on if empty.
        forget_known: Whether nothing takes the place of what was taken out.
        label: Column with the DFT energy above hull, eV/atom; None computes it from the
            references, all of them.
        target: Column with the DFT formation energy, eV/atom.
        within: Energy above hull up to which a compound counts as stable, eV/atom.
        near: Errors are told separately for compounds whose true energy above hull is smaller in
            size than this, eV/atom.
        compete: Whether the evaluated compounds compete with each other by predicted energies.
        calibration: Where probabilities come from: fitted in folds of the evaluated compounds by
            chemical system, the model's own, or none.
        features: Feature table to join by id instead of featurizing, or None.
        functional: What the references were computed with, if the user says so.
        engine: Which featurizer.
        device: Where the networks run.
        seed: Of folds and draws.
    """

    data: tuple[Path, ...]
    references: Path
    known: tuple[Path, ...] = ()
    forget_known: bool = False
    label: str | None = None
    target: str = DEFAULT_TARGET
    within: float = 0.0
    near: float = 0.1
    compete: bool = True
    calibration: Calibration = "folds"
    features: Path | None = None
    functional: str | None = None
    engine: Engine = "fast"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class DiscoveryScore:
    """How well one predictor finds the stable compounds of one group.

    Attributes:
        predictor: One of `PREDICTORS`.
        group: Which compounds.
        truth: What decides what is stable: the label, or the energy above the hull of just the
            competitors that the predictor had, with true energies.
        counts: Stable and selected compounds.
        roc_auc: Of the ranking.
        precision_at: Share of stable compounds among the first ones, by their number: `FIRST`
            and as many as are stable, where precision and recall are the same.
        half_found_after: Calculations until half of the stable compounds are found.
        errors: Of the energies above hull.
        errors_near_hull: Of those with a true energy near the hull, None if there are none.
        probabilities: How reliable the probabilities are, None for a ranking by energy.
        found: Stable compounds among the first k, shape (n + 1,).
    """

    predictor: str
    group: str
    truth: Truth
    counts: Classification
    roc_auc: float
    precision_at: Mapping[int, float]
    half_found_after: int
    errors: HullErrors
    errors_near_hull: HullErrors | None
    probabilities: ProbabilityScore | None
    found: NDArray[np.int64]


@dataclass(frozen=True)
class BacktestResult:
    """What a backtest found.

    Attributes:
        request: What was asked for.
        data: The files of compounds.
        references: Name, hash and number of the reference phases, and how many took part.
        rows: Compounds ranked.
        left_out: Rows of the data that were not, by reason.
        seen: Compounds whose composition the model was trained on.
        notes: What a reader must know, a sentence each.
        scores: Of each predictor, group and truth.
        seconds: Time of each stage.
    """

    request: BacktestRequest
    data: tuple[DataFileEntry, ...]
    references: Mapping[str, str | int | None]
    rows: int
    left_out: Mapping[str, int]
    seen: int
    notes: tuple[str, ...]
    scores: tuple[DiscoveryScore, ...]
    seconds: Mapping[str, float]

    def find(
        self, predictor: str, group: str = ALL_ROWS, truth: Truth = "label"
    ) -> DiscoveryScore | None:
        """The score of one predictor on one group, None if it was not measured."""
        for score in self.scores:
            if (score.predictor, score.group, score.truth) == (predictor, group, truth):
                return score
        return None


@dataclass(frozen=True, eq=False)
class _Compounds:
    """The compounds of a backtest.

    Attributes:
        rows: With features and DFT formation energies as target.
        formulas: Reduced formulas as the phases write them, shape (n,).
        numbers: Atomic numbers, 0 for none, shape (n, k).
        amounts: Atoms of each, shape (n, k).
        label: Energy above hull of the label column, eV/atom, shape (n,), or None.
        groups: Columns that divide the compounds, shape (n,) each, by name.
    """

    rows: TrainingSet
    formulas: NDArray[np.object_]
    numbers: NDArray[np.uint8]
    amounts: NDArray[np.int64]
    label: FloatArray | None
    groups: Mapping[str, NDArray[np.str_]]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class _Ranking:
    """A predictor's view of the compounds.

    Attributes:
        above_hull: Predicted energy above hull, eV/atom, shape (n,).
        probability: Of being stable, shape (n,), or None for a ranking by energy.
    """

    above_hull: FloatArray
    probability: FloatArray | None


def run_backtest(
    model: ScreeningModel,
    request: BacktestRequest,
    work: Path,
    *,
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> BacktestResult:
    """Rank compounds with known energies above hull, and count what the ranking finds.

    Args:
        model: The model; its formation enthalpies are in eV/atom.
        request: What to rank, and against what.
        work: Folder for features on the way.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).
        say: Called with each note as soon as it is known.

    Returns:
        The scores.

    Raises:
        InputDataError: Data or references cannot be used, or all or none of the compounds are
            stable.
        ModelError: The model has no calibration of its own and that was asked for, or no sample
            of its training features and folds were.
    """
    seconds: dict[str, float] = {}
    notes: list[str] = []

    def note(sentence: str) -> None:
        notes.append(sentence)
        say(sentence)

    with _timed(seconds, "read"):
        references = read_references(request.references, request.functional)
        for sentence in references.notes:
            note(sentence)
        compounds = _read_compounds(request, work, run, progress)
        label = compounds.label
        if label is None:
            label = label_by_references(
                references.phases, compounds.rows.formulas, compounds.rows.target
            )
        _refuse_one_class(label, request)
        competitors = _keep_unseen(model, references, compounds, request, note)
        seen = model.training_formulas.contains(compounds.rows.formulas)
        if seen.any():
            note(
                f"warning: the model was trained on the compositions of {seen.sum():,} of these "
                f"{len(compounds):,} compounds"
                + (
                    f'; judge it by the others, the group "{NEW}"'
                    if not seen.all()
                    else ": this is no test of what it finds"
                )
            )
    assert compounds.rows.features is not None
    with _timed(seconds, "predict"):
        predictions = predict_all(
            model.ensemble, model.forest, compounds.rows.features, request.device
        )
    rankings, truth = _rank(model, request, compounds, competitors, predictions, seconds, note)
    truths: dict[Truth, FloatArray] = {"label": label, "same competitors": truth}
    scores = tuple(
        _score(name, ranking, group, rows, which, energies, request)
        for which, energies in truths.items()
        for group, rows in _divide(compounds, seen, label <= request.within)
        for name, ranking in rankings.items()
        if (name, which) != ("dft", "same competitors")  # right by definition
    )
    return BacktestResult(
        request=request,
        data=tuple(
            DataFileEntry(name=source.name, sha256=source.sha256, rows=source.rows)
            for source in compounds.rows.sources
        ),
        references={
            "name": references.path.name,
            "sha256": references.sha256,
            "functional": references.functional,
            "phases": len(references.phases),
            "competitors": len(competitors),
        },
        rows=len(compounds),
        left_out=compounds.rows.dropped,
        seen=int(seen.sum()),
        notes=tuple(notes),
        scores=scores,
        seconds=seconds,
    )


def label_by_references(
    phases: Phases, formulas: Sequence[str], energies: FloatArray
) -> FloatArray:
    """Energies above the hull of all references, the compound itself apart.

    A reference of a compound's own composition competes with it only where it is lower: then the
    compound is a polymorph that decomposes into another one. Otherwise it is the compound, and the
    result is the energy of its decomposition into others, negative if it is stable.

    Args:
        phases: References with one energy column.
        formulas: Formulas of the compounds, length n.
        energies: Their DFT formation energies, eV/atom, shape (n,).

    Returns:
        Energies above hull, eV/atom, shape (n,).
    """
    own = {formula: row for row, formula in enumerate(phases.formulas.tolist())}
    reduced, numbers, amounts = _arrange(formulas)
    place = np.array([own.get(formula, -1) for formula in reduced.tolist()])
    listed = np.append(phases.energies[:, 0], np.inf)[place]  # -1 is the last
    lower = listed < energies - SAME_ENERGY
    numbered = replace(phases, identities=np.arange(1, len(phases) + 1, dtype=np.uint64))
    identities = np.where(lower, 0, place + 1).astype(np.uint64)
    mixtures = find_mixtures(numbered, numbers, amounts, identities)
    return _clean(energies - mixtures.energies[:, 0])


def draw_noise(
    uncertainty: Uncertainty, members: FloatArray, error_scale: FloatArray, draws: int, seed: int
) -> FloatArray:
    """Errors that predictions may have, drawn from the scores of the calibration compounds.

    As in `screening.stability` they are narrowed by what the members' spread shows already.

    Args:
        uncertainty: The calibration.
        members: Predictions of the members, eV/atom, shape (n, members).
        error_scale: Of each row, eV/atom, shape (n,).
        draws: How many of each row.
        seed: Of the draws.

    Returns:
        Differences to add to predictions, eV/atom, shape (n, draws), independent of each other.
    """
    random = np.random.default_rng(seed)
    shown = members.var(axis=1) / uncertainty.noise_std(error_scale) ** 2
    narrow = np.sqrt(np.clip(1.0 - shown, LEAST_NOISE**2, 1.0))[:, None]
    place = np.searchsorted(uncertainty.edges, error_scale, side="left")
    noise = np.empty((len(error_scale), draws))
    for number, scores in enumerate(uncertainty.scores):
        rows = np.flatnonzero(place == number)
        centre = scores.mean()
        drawn = random.choice(scores, size=(len(rows), draws))
        noise[rows] = error_scale[rows, None] * (centre + narrow[rows] * (drawn - centre))
    return noise


def fit_in_folds(
    rows: CalibrationRows, reference: TrainingReference, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], Uncertainty]]:
    """Calibrate on compounds of other chemical systems, a part of the compounds at a time.

    Args:
        rows: Compounds with known energies and predictions.
        reference: Sample of the model's training features.
        seed: Of the parts.

    Yields:
        Row numbers of a part, and the calibration that saw nothing of their chemical systems.
        The parts together hold every row once.

    Raises:
        InputDataError: There are too few rows or systems.
    """
    systems, number = np.unique(rows.systems, return_inverse=True)
    if len(rows) < FEWEST_ROWS or len(systems) < 2 * FOLDS:
        raise InputDataError(
            f"{len(rows):,} compounds of {len(systems):,} chemical systems are too few to "
            f"calibrate on in folds ({FEWEST_ROWS} of {2 * FOLDS} are needed); give "
            "--calibration model for the model's own, or none to rank by energy alone"
        )
    fold = (np.random.default_rng(seed).permutation(len(systems)) % FOLDS)[number]
    for part in range(FOLDS):
        others = rows.select(np.flatnonzero(fold != part))
        yield (
            np.flatnonzero(fold == part),
            fit_calibration(others, reference, seed),
        )


def _read_compounds(
    request: BacktestRequest,
    work: Path,
    run: ParallelMap | None,
    progress: ProgressCall | None,
) -> _Compounds:
    """Read the compounds that have an energy, a label where one is asked for, and features."""
    data = read_training_set(
        request.data,
        Protocol(target=request.target, drop_missing_energies=True, cross_check_tolerance=None),
    )
    table = _read_columns(request)
    if request.label is not None:
        labelled = np.isfinite(table.loc[list(data.ids), request.label].to_numpy())
        if not labelled.any():
            raise InputDataError(
                f"no row of the data has a number in column {request.label!r}; name the column "
                "with the energy above hull, or leave --label out to compute it"
            )
        data = data.select(np.flatnonzero(labelled), f"no {request.label}")
    refuse_second_features(data, request.features)
    if data.features is None:
        if request.features is not None:
            features = read_features(request.features)
        else:
            assert data.crystals is not None
            features = featurize_structures(
                data.crystals, work, engine=request.engine, run=run, progress=progress
            )
        data = attach_features(data, features)
    table = table.loc[list(data.ids)]
    formulas, numbers, amounts = _arrange(data.formulas)
    return _Compounds(
        replace(data, crystals=None),
        formulas,
        numbers,
        amounts,
        None if request.label is None else table[request.label].to_numpy(dtype=np.float64),
        {
            column: np.array([name.partition("(")[0] for name in table[column].astype(str)])
            for column in _GROUP_COLUMNS
            if column in table
        },
    )


def _read_columns(request: BacktestRequest) -> pd.DataFrame:
    """Read the label and the columns that divide the compounds, by id."""
    parts = []
    for path in request.data:
        names = read_names(path)
        if request.label is not None:
            require_columns(names, [request.label], path)
        asked = {request.label, *_GROUP_COLUMNS}
        wanted = ["id", *(name for name in names if name in asked)]
        part = read_frame(path, wanted)
        if request.label is not None:
            part[request.label] = read_energies(part[request.label], path)
        parts.append(part.assign(id=part["id"].astype(str)).set_index("id"))
    return pd.concat(parts)


def _arrange(
    formulas: Sequence[str],
) -> tuple[NDArray[np.object_], NDArray[np.uint8], NDArray[np.int64]]:
    """Formulas as phases write them (n,), atomic numbers (n, k), 0 for none, and amounts (n, k)."""
    parsed = [parse_formula(formula) for formula in formulas]
    width = max(len(which) for which, _ in parsed)
    numbers = np.zeros((len(parsed), width), dtype=np.uint8)
    amounts = np.zeros((len(parsed), width), dtype=np.int64)
    for row, (which, many) in enumerate(parsed):
        numbers[row, : len(which)] = which
        amounts[row, : len(many)] = many
    return np.array([reduced_formula(*each) for each in parsed], object), numbers, amounts


def _refuse_one_class(label: FloatArray, request: BacktestRequest) -> None:
    stable = int((label <= request.within).sum())
    if 0 < stable < len(label):
        return
    what = "all" if stable else "none"
    raise InputDataError(
        f"{what} of the {len(label):,} compounds are stable (energy above hull at most "
        f"{request.within:g} eV/atom by "
        f"{'the references' if request.label is None else f'column {request.label!r}'}): there is "
        "nothing to find. Give other compounds, another --label or another --stable-within."
    )


def _keep_unseen(
    model: ScreeningModel,
    references: References,
    compounds: _Compounds,
    request: BacktestRequest,
    note: Callable[[str], None],
) -> Phases:
    """The references without the evaluated compositions, known crystals in their place."""
    evaluated = set(compounds.formulas.tolist())
    taken_out = np.array([name in evaluated for name in references.phases.formulas.tolist()])
    kept = references.phases.select(~taken_out)
    note(
        f"{taken_out.sum():,} of {len(taken_out):,} reference phases have the composition of an "
        "evaluated compound and were taken out"
    )
    if request.forget_known:
        return kept
    if not request.known and np.isnan(model.training_formulas.energies).all():
        note(
            "warning: the model's folder holds no energies of its training data, so that no known "
            "crystal takes the place of what was taken out; give such crystals as --known FILE"
        )
    tested = set(compounds.rows.ids)
    lowest: dict[str, tuple[float, str]] = {}
    same = 0
    for name, formula, energy in _list_known(model, request):
        reduced = reduced_formula(*parse_formula(formula))
        if reduced not in evaluated:
            continue
        if name in tested:
            same += 1
        elif energy < lowest.get(reduced, (np.inf, ""))[0]:
            lowest[reduced] = energy, name
    if same:
        note(f"{same:,} of the known crystals are evaluated themselves and were left out")
    note(f"{len(lowest):,} evaluated compositions are known as another crystal, which competes")
    if not lowest:
        return kept
    energies, names = zip(*lowest.values(), strict=True)
    return Phases.join([kept, Phases.of(list(lowest), energies, names)])


def _list_known(
    model: ScreeningModel, request: BacktestRequest
) -> Iterator[tuple[str, str, float]]:
    """Known crystals: id, formula, and formation energy in eV/atom."""
    if request.known:
        protocol = Protocol(target=request.target, drop_missing_energies=True)
        known = read_training_set(request.known, protocol)
        yield from zip(known.ids, known.formulas, known.target.tolist(), strict=True)
        return
    table = model.training_formulas
    told = np.isfinite(table.energies)
    columns = (table.ids[told], table.formulas[told], table.energies[told])
    yield from zip(*(column.tolist() for column in columns), strict=True)


def _rank(
    model: ScreeningModel,
    request: BacktestRequest,
    compounds: _Compounds,
    competitors: Phases,
    predictions: Mapping[Predictor, FloatArray],
    seconds: dict[str, float],
    note: Callable[[str], None],
) -> tuple[dict[str, _Ranking], FloatArray]:
    """What every predictor says, and the true energy above the hull of the same competitors."""
    mean, members = predictions["irnet"], predictions["irnet_member"].T
    forest = predictions.get("random_forest")
    true = compounds.rows.target
    single = {"irnet_energy": mean, "random_forest_energy": forest, "dft": true}
    single = {name: energies for name, energies in single.items() if energies is not None}
    with _timed(seconds, "hull"):
        columns = np.stack([energies for energies in single.values() if energies is not None], 1)
        hull = _find_hull(competitors, compounds, columns if request.compete else None)
        hull = np.broadcast_to(hull, columns.shape)
    above = {name: _clean(columns[:, i] - hull[:, i]) for i, name in enumerate(single)}
    rankings = {name: _Ranking(energies, None) for name, energies in above.items()}
    if request.calibration == "none":
        return rankings, above["dft"]
    views: dict[str, _View] = {"irnet": (mean, members, forest)}
    if forest is not None and request.calibration == "folds":
        views["random_forest"] = (forest, forest[:, None], None)
    elif forest is not None:
        note("the model's own calibration is of its networks: no probabilities by Random Forest")
    for name, view in views.items():
        probability = _find_probabilities(model, request, compounds, competitors, view, seconds)
        rankings[name] = _Ranking(above[f"{name}_energy"], probability)
    order = [name for name in PREDICTORS if name in rankings]
    return {name: rankings[name] for name in order}, above["dft"]


def _find_hull(
    competitors: Phases, compounds: _Compounds, energies: FloatArray | None
) -> FloatArray:
    """Energies of the lowest mixtures at the compounds' compositions, eV/atom, shape (n, c).

    Args:
        competitors: With one energy column.
        compounds: Which do not compete with themselves.
        energies: Energies by which the compounds compete with each other, shape (n, c); None if
            they do not, which leaves one column.
    """
    if energies is None:
        return find_mixtures(competitors, compounds.numbers, compounds.amounts).energies
    identities = np.arange(1, len(compounds) + 1, dtype=np.uint64)
    width = energies.shape[1]
    fixed = replace(competitors, energies=np.repeat(competitors.energies, width, axis=1))
    own = Phases.of(compounds.rows.formulas, energies, compounds.rows.ids, identities)
    phases = Phases.join([fixed, own])
    return find_mixtures(phases, compounds.numbers, compounds.amounts, identities).energies


def _find_probabilities(
    model: ScreeningModel,
    request: BacktestRequest,
    compounds: _Compounds,
    competitors: Phases,
    view: _View,
    seconds: dict[str, float],
) -> FloatArray:
    """Probabilities of being stable, shape (n,).

    Args:
        model: The model.
        request: Where its calibration comes from.
        compounds: The compounds.
        competitors: With one energy column.
        view: What is predicted.
        seconds: Takes the time of fitting and of the hull.
    """
    mean, members, forest = view
    with _timed(seconds, "calibrate"):
        parts = list(_calibrate(model, request, compounds, view))
    scale = np.empty(len(compounds))
    noise = np.zeros((len(compounds), members.shape[1] * DRAWS))
    for number, (rows, uncertainty) in enumerate(parts):
        assert compounds.rows.features is not None
        scale[rows] = uncertainty.assess(
            compounds.rows.features[rows],
            join_members({"irnet": mean[rows], "irnet_member": members[rows].T}),
            None if forest is None else forest[rows],
        ).error_scale
        noise[rows] = draw_noise(
            uncertainty, members[rows], scale[rows], noise.shape[1], request.seed + number
        )
    each, drawn = members, None
    if request.compete:
        each = np.tile(members, (1, DRAWS))
        drawn = np.column_stack([mean, each + noise])
    with _timed(seconds, "hull"):
        hull = _find_hull(competitors, compounds, drawn)
    probability = np.empty(len(compounds))
    for rows, uncertainty in parts:
        probability[rows] = judge_stability(
            mean[rows],
            each[rows],
            np.full(len(rows), np.nan) if forest is None else forest[rows],
            hull[rows],
            error_scale=scale[rows],
            uncertainty=uncertainty,
            within=request.within,
        ).p_stable
    return probability


def _calibrate(
    model: ScreeningModel,
    request: BacktestRequest,
    compounds: _Compounds,
    view: _View,
) -> Iterator[tuple[NDArray[np.int64], Uncertainty]]:
    mean, members, forest = view
    features = compounds.rows.features
    assert features is not None
    if request.calibration == "model":
        if model.uncertainty is None:
            raise ModelError(f"{model.path} was {NOT_CALIBRATED}; or give --calibration folds")
        yield np.arange(len(compounds)), model.uncertainty
        return
    reference = find_reference(model)
    predictions: dict[Predictor, FloatArray] = {"irnet": mean, "irnet_member": members.T}
    if forest is not None:
        predictions["random_forest"] = forest
    rows = CalibrationRows(
        features,
        compounds.rows.target,
        predictions,
        number_systems(compounds.rows.formulas),
        reference.distance(features),
    )
    yield from fit_in_folds(rows, reference, request.seed)


def _divide(
    compounds: _Compounds, seen: BoolArray, stable: BoolArray
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Groups of compounds that are judged by themselves."""
    yield ALL_ROWS, np.arange(len(compounds))
    if seen.any() and not seen.all():
        yield NEW, np.flatnonzero(~seen)
    for values in compounds.groups.values():
        for name in np.unique(values).tolist():
            rows = np.flatnonzero(values == name)
            both = min(stable[rows].sum(), (~stable[rows]).sum())
            if name and both >= FEWEST_IN_GROUP and len(rows) < len(values):
                yield name, rows


def _score(
    predictor: str,
    ranking: _Ranking,
    group: str,
    rows: NDArray[np.int64],
    truth: Truth,
    energies: FloatArray,
    request: BacktestRequest,
) -> DiscoveryScore:
    true, above = energies[rows], ranking.above_hull[rows]
    stable = true <= request.within
    if ranking.probability is None:
        probability = None
        order = order_by(-above)
        selected = above <= request.within
    else:
        probability = ranking.probability[rows]
        order = order_by(probability, -above)
        selected = probability > SELECTED_FROM
    place = np.empty(len(rows))
    place[order] = np.arange(len(rows), 0, -1)
    found = count_found(stable, order)
    near = np.abs(true) < request.near
    return DiscoveryScore(
        predictor=predictor,
        group=group,
        truth=truth,
        counts=classify(stable, selected),
        roc_auc=roc_auc(place, stable),
        precision_at=precision_at(found, sorted({*FIRST, max(int(found[-1]), 1)})),
        half_found_after=calculations_for(found, 0.5) if stable.any() else 0,
        errors=measure_errors(above, true),
        errors_near_hull=measure_errors(above[near], true[near]) if near.any() else None,
        probabilities=None if probability is None else score_probabilities(probability, stable),
        found=found,
    )


def _clean(energies: FloatArray) -> FloatArray:
    """Energies above hull without the rounding of compounds that lie on it."""
    return np.where(np.abs(energies) < ROUNDING, 0.0, energies)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
