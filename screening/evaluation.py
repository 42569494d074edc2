"""How well a model does: on held-out rows, and on the compounds of a combinatorial search.

The second is the paper's Table 5: predicted against DFT formation enthalpies of hypothetical
compounds of each prototype, none of whose formulas the model was trained on. It is measured twice,
on the relaxed structure of each label and on the ideal cell that a campaign really uses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from screening.crystal import Crystal
from screening.dataset import DEFAULT_TARGET, read_energies, require_columns
from screening.errors import InputDataError
from screening.features.schema import FEATURES
from screening.model_card import (
    PROTOTYPE_KINDS,
    DataFileEntry,
    Evaluation,
    Reliability,
    Score,
    hash_file,
)
from screening.model_library import ScreeningModel
from screening.parquet import read_frame
from screening.printing import count_things
from screening.reliability import Predictor, find_intervals, measure_reliability
from screening.structures import read_structure_table

if TYPE_CHECKING:
    from irnet import Ensemble, Forest

Geometry = Literal["relaxed", "ideal"]

ALL_ROWS = "all"
"""Group of the scores of a set without kinds."""

NEIGHBOURS_OF_B = 6
"""A perovskite's B is in an octahedron of X."""

SAME_POSITION = 0.1
"""Å: two positions nearer than this are one when symmetry is looked for."""

OPTIONAL = 10
"""Column of the table of an evaluation from which on those with nothing to say are left out."""

PAPER_TABLE_5: dict[str, tuple[float, float]] = {
    "B2": (0.5114, 0.4780),
    "L1_0": (0.4793, 0.4419),
    "perov_Pnma": (0.6166, 0.3693),
}
"""MAE in eV/atom of Random Forest and IRNet-17 (Jha et al., KDD 2019, Table 5; other data)."""


@dataclass(frozen=True)
class EvaluationSet:
    """Compounds with known energies, sorted by prototype where that is known.

    Attributes:
        file: The file that they come from.
        crystals: The relaxed structures, in the order of the rows.
        kinds: Kind of each, such as ``B2``; shape (n,). None for compounds of any structure.
        schemes: Energy corrections of each label; shape (n,).
        target: Energies, eV/atom; shape (n,).
    """

    file: DataFileEntry
    crystals: tuple[Crystal, ...]
    kinds: NDArray[np.str_] | None
    schemes: NDArray[np.str_]
    target: NDArray[np.float64]


def read_evaluation_set(path: Path, target: str = DEFAULT_TARGET) -> EvaluationSet:
    """Read an evaluation set.

    Args:
        path: Parquet table of structures with the target and optionally columns ``kind`` and
            ``scheme``; what a label's scheme says after ``(`` is its provenance and is left out.
        target: Name of the energy column.

    Returns:
        The evaluation set.

    Raises:
        InputDataError: A column or every row is missing, a structure is unusable, an energy is
            not a number, or a kind is none of those that there are prototypes for.
    """
    crystals, failures = read_structure_table(path)
    if not crystals and not failures:
        raise InputDataError(f"{path} has no rows.")
    if failures:
        raise InputDataError(
            f"{path}: {len(failures)} of {len(failures) + len(crystals)} structures cannot be "
            f"used, the first is {failures[0].id!r}: {failures[0].reason}. Remove what fails."
        )
    table = read_frame(path)
    require_columns(list(table.columns), [target], path)
    energies = read_energies(table[target], path)
    if not np.isfinite(energies).all():
        missing = int((~np.isfinite(energies)).sum())
        raise InputDataError(f"{path}: {count_things(missing, 'row')} without {target}.")
    kinds = table["kind"].astype(str).to_numpy(dtype=np.str_) if "kind" in table else None
    unknown = sorted(set(() if kinds is None else kinds.tolist()) - set(PROTOTYPE_KINDS.values()))
    if unknown:
        which = f"kind {unknown[0]!r} has" if unknown[0] else "an empty kind has"
        raise InputDataError(
            f"{path}: {which} no prototype. "
            f"Known kinds: {', '.join(PROTOTYPE_KINDS.values())}. "
            "Without a kind column all rows are scored together: leave it out for that."
        )
    schemes = table["scheme"] if "scheme" in table else pd.Series(["all"] * len(table))
    return EvaluationSet(
        DataFileEntry(name=path.name, sha256=hash_file(path), rows=len(table)),
        tuple(crystals),
        kinds,
        np.array([str(name).partition("(")[0] for name in schemes], dtype=np.str_),
        energies,
    )


def evaluate_model(
    model: ScreeningModel,
    data: EvaluationSet,
    *,
    device: str = "auto",
    featurize: Callable[[Sequence[Crystal]], NDArray[np.float64]] | None = None,
) -> Evaluation:
    """Measure a model on an evaluation set, on relaxed and, where kinds are known, ideal geometry.

    Args:
        model: The model.
        data: The evaluation set.
        device: Where the networks run.
        featurize: Features of crystals, shape (n, 271); the fast engine in this process if None.

    Returns:
        Scores of every predictor and, for a calibrated model, reliability of its intervals, per
        kind and energy scheme; without kinds, of all rows together, on relaxed geometry alone.

    Raises:
        InputDataError: A structure cannot be featurized or does not match its prototype.
    """
    features_of: dict[Geometry, NDArray[np.float64]] = {
        "relaxed": (featurize or _featurize)(data.crystals)
    }
    if data.kinds is not None:
        features_of["ideal"] = featurize_ideal(data.crystals, data.kinds)
    seen = model.training_formulas.contains([crystal.formula for crystal in data.crystals])
    scores: list[Score] = []
    reliabilities: list[Reliability] = []
    for geometry, features in features_of.items():
        predictions = predict_all(model.ensemble, model.forest, features, device)
        intervals = None
        if model.uncertainty is not None:
            intervals = find_intervals(model.uncertainty, features, predictions)
        for group, scheme, rows in group_rows(data):
            if intervals is not None:
                reliabilities.append(
                    measure_reliability(
                        intervals.select(rows),
                        data.target[rows],
                        group=group,
                        scheme=scheme,
                        geometry=geometry,
                    )
                )
            scores += score_predictions(
                {name: values[..., rows] for name, values in predictions.items()},
                data.target[rows],
                group=group,
                scheme=scheme,
                geometry=geometry,
            )
    return Evaluation(
        data=data.file,
        scores=tuple(scores),
        formulas_seen=int(seen.sum()),
        reliabilities=tuple(reliabilities),
    )


def predict_all(
    ensemble: "Ensemble",
    forest: "Forest | None",
    features: NDArray[np.floating[Any]],
    device: str = "auto",
) -> dict[Predictor, NDArray[np.float64]]:
    """Predictions of everything in a model.

    Args:
        ensemble: Its networks.
        forest: Its Random Forest, if it has one.
        features: Shape (n, 271).
        device: Where the networks run.

    Returns:
        ``irnet`` of shape (n,), ``irnet_member`` of shape (members, n) and, where there is a
        forest, ``random_forest`` of shape (n,); eV/atom.
    """
    single = features.astype(np.float32)
    prediction = ensemble.scorer(device=device).predict(single)
    result: dict[Predictor, NDArray[np.float64]] = {
        "irnet": np.asarray(prediction.mean, dtype=np.float64),
        "irnet_member": np.asarray(prediction.members, dtype=np.float64),
    }
    if forest is not None:
        result["random_forest"] = np.asarray(forest.predict(single), dtype=np.float64)
    return result


def score_predictions(
    predictions: dict[Predictor, NDArray[np.float64]],
    target: NDArray[np.float64],
    *,
    group: str,
    scheme: str = "all",
    geometry: Geometry = "relaxed",
) -> list[Score]:
    """Errors of predictions.

    Args:
        predictions: By predictor, shape (n,); a predictor of several networks has (k, n), and
            its errors are means over them.
        target: True energies, shape (n,), eV/atom.
        group: What the rows are.
        scheme: Energy corrections of the labels.
        geometry: What the features were computed on.

    Returns:
        One score per predictor.
    """
    from irnet import metrics

    scores = []
    for predictor, values in predictions.items():
        rows = np.atleast_2d(values)
        errors = np.abs(rows - target).mean(axis=0)
        interval = metrics.bootstrap(metrics.mae, errors, np.zeros_like(errors))
        ranks = [metrics.spearman(row, target) for row in rows] if len(target) > 2 else []
        rank = float(np.mean(ranks)) if ranks else float("nan")
        scores.append(
            Score(
                predictor=predictor,
                group=group,
                scheme=scheme,
                geometry=geometry,
                n=len(target),
                mae=float(errors.mean()),
                mae_low=_finite(interval.low),
                mae_high=_finite(interval.high),
                p90=float(np.mean([metrics.error_quantile(row, target, 0.9) for row in rows])),
                bias=float((rows - target).mean()),
                spearman=_finite(rank),
            )
        )
    return scores


def featurize_ideal(crystals: Sequence[Crystal], kinds: NDArray[np.str_]) -> NDArray[np.float64]:
    """Features of each compound on the ideal cell of its prototype.

    Args:
        crystals: The compounds.
        kinds: Kind of each; shape (n,).

    Returns:
        Shape (n, 271).

    Raises:
        InputDataError: A compound's amounts are not those of its prototype.
    """
    from prototypes import find_prototype
    from screening.features.geometry import measure_geometry
    from screening.features.prototype import PrototypeFeaturizer

    values = np.full((len(crystals), len(FEATURES)), np.nan)
    for prototype_name, kind in PROTOTYPE_KINDS.items():
        rows = np.flatnonzero(kinds == kind)
        if not len(rows):
            continue
        prototype = find_prototype(prototype_name)
        featurize = PrototypeFeaturizer(
            measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
        )
        numbers = np.array([assign_roles(crystals[i], kind) for i in rows.tolist()], dtype=np.int64)
        values[rows] = np.asarray(featurize(numbers), dtype=np.float64)
    return values


def assign_roles(crystal: Crystal, kind: str) -> tuple[int, ...]:
    """Which element has which role in a compound of a known kind.

    Args:
        crystal: The structure.
        kind: ``B2`` or ``L1_0`` (AB, roles interchangeable) or a perovskite kind (ABX3): X is the
            threefold element; B the cation on inversion centres, as its octahedron demands, or,
            where that does not tell them apart, the one whose six nearest X are nearer.

    Returns:
        Atomic number per role, A, B(, X).

    Raises:
        InputDataError: The amounts are not those of the kind.
    """
    elements, counts = np.unique(crystal.numbers, return_counts=True)
    amounts = sorted((counts / counts.min()).tolist())
    expected = [1, 1] if kind in ("B2", "L1_0") else [1, 1, 3]
    if amounts != expected:
        raise InputDataError(f"{crystal.id!r} is called {kind} and is {crystal.formula}.")
    if len(expected) == 2:
        return int(elements[0]), int(elements[1])
    x = int(elements[np.argmax(counts)])
    cations = [int(element) for element in elements if element != x]
    central = [_is_inversion_centre(crystal, element) for element in cations]
    if central[0] != central[1]:
        b, a = sorted(cations, key=lambda element: not central[cations.index(element)])
        return a, b, x
    distances = [_mean_distance(crystal, element, x) for element in cations]
    a, b = (cations[i] for i in np.argsort(distances)[::-1])
    return a, b, x


def tabulate(
    evaluation: Evaluation,
    geometry: Geometry = "ideal",
    scheme: str | None = None,
    *,
    paper: bool = True,
) -> list[list[str]]:
    """The evaluation as a table like the paper's Table 5, beside the paper's numbers.

    Args:
        evaluation: The scores.
        geometry: Which of the two geometries.
        scheme: Only rows of these energy corrections, such as ``all``; every row if None.
        paper: Whether the paper's numbers, of formation enthalpies, are shown beside them.

    Returns:
        A header and one row per kind and scheme; no row where nothing was measured, and no
        column from the 90th percentiles on that has nothing to say in any row.
    """
    header = [
        *("kind", "scheme", "n", "RF MAE", "IRNet MAE", "95 % interval", "RF bias", "IRNet bias"),
        *("RF rank corr.", "IRNet rank corr."),
        *("RF p90", "IRNet p90", "in 90 % interval", "paper RF", "paper IRNet"),
    ]
    held = {(r.group, r.scheme): r for r in evaluation.reliabilities if r.geometry == geometry}
    scores = [score for score in evaluation.scores if score.geometry == geometry]
    by_key = {(score.predictor, score.group, score.scheme): score for score in scores}
    rows = [header]
    for (predictor, group, corrections), net in by_key.items():
        if predictor != "irnet" or scheme not in (None, corrections):
            continue
        forest = by_key.get(("random_forest", group, corrections))
        published = PAPER_TABLE_5.get(group) if paper and corrections == "all" else None
        reliability = held.get((group, corrections))
        rows.append(
            [
                group,
                corrections,
                str(net.n),
                f"{forest.mae:.3f}" if forest else "",
                f"{net.mae:.3f}",
                net.interval,
                f"{forest.bias:+.3f}" if forest else "",
                f"{net.bias:+.3f}",
                _show(forest.spearman) if forest else "",
                _show(net.spearman),
                f"{forest.p90:.3f}" if forest and forest.p90 is not None else "",
                "" if net.p90 is None else f"{net.p90:.3f}",
                "" if reliability is None else f"{reliability.coverage:.0%}",
                f"{published[0]:.4f}" if published else "",
                f"{published[1]:.4f}" if published else "",
            ]
        )
    told = [i < OPTIONAL or any(row[i] for row in rows[1:]) for i in range(len(header))]
    return [[cell for cell, wanted in zip(row, told, strict=True) if wanted] for row in rows]


def tabulate_reliability(reliabilities: Sequence[Reliability]) -> list[list[str]]:
    """How well intervals do, as a table.

    Args:
        reliabilities: What was measured.

    Returns:
        A header and one row each; no row where nothing was measured.
    """
    rows = [
        [
            *("group", "geometry", "scheme", "n", "in 90 %", "95 % interval", "mean width"),
            *("miscal. area", "sorting", "spread's"),
        ]
    ]
    rows += [
        [
            each.group,
            each.geometry,
            each.scheme,
            f"{each.n:,}",
            f"{each.coverage:.1%}",
            f"{each.coverage_low:.0%}–{each.coverage_high:.0%}",
            f"{each.sharpness:.3f}",
            f"{each.miscalibration_area:.3f}",
            _show(each.sorting),
            _show(each.spread_sorting),
        ]
        for each in reliabilities
    ]
    return rows


def group_rows(data: EvaluationSet) -> Iterator[tuple[str, str, NDArray[np.int64]]]:
    """Groups that scores are given for: each kind, and each energy scheme of a kind.

    Args:
        data: The evaluation set.

    Yields:
        Kind (or ``all`` without kinds), scheme (``all`` for all together) and row numbers.
    """
    kinds = np.full(len(data.target), ALL_ROWS) if data.kinds is None else data.kinds
    for kind in (ALL_ROWS, *PROTOTYPE_KINDS.values()):
        of_kind = kinds == kind
        if not of_kind.any():
            continue
        yield kind, "all", np.flatnonzero(of_kind)
        schemes = sorted(set(data.schemes[of_kind].tolist()))
        if len(schemes) > 1:
            for scheme in schemes:
                yield kind, scheme, np.flatnonzero(of_kind & (data.schemes == scheme))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _featurize(crystals: Sequence[Crystal]) -> NDArray[np.float64]:
    from screening.features import featurize_crystals

    table = featurize_crystals(list(crystals), engine="fast")
    if table.failures:
        failure = table.failures[0]
        raise InputDataError(f"{failure.id!r} cannot be featurized: {failure.reason}.")
    return np.asarray(table.values, dtype=np.float64)


def _mean_distance(crystal: Crystal, element: int, x: int) -> float:
    centre = crystal.frac_coords[np.flatnonzero(crystal.numbers == element)[0]]
    others = crystal.frac_coords[crystal.numbers == x]
    shifts = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T
    offset = (others - centre) - np.round(others - centre)
    vectors = (offset[:, None, :] + shifts).reshape(-1, 3) @ crystal.lattice
    nearest = np.sort(np.linalg.norm(vectors, axis=1))[:NEIGHBOURS_OF_B]
    return float(nearest.mean())


def _is_inversion_centre(crystal: Crystal, element: int) -> bool:
    """Whether the structure stays itself when inverted at the first site of an element."""
    centre = crystal.frac_coords[np.flatnonzero(crystal.numbers == element)[0]]
    for number in np.unique(crystal.numbers):
        sites = crystal.frac_coords[crystal.numbers == number]
        offsets = (2 * centre - sites)[:, None, :] - sites
        offsets -= np.round(offsets)
        distances = np.linalg.norm(offsets @ crystal.lattice, axis=2)
        if distances.min(axis=1).max() > SAME_POSITION:
            return False
    return True
