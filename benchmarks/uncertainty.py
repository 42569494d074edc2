"""What sorts errors, and whether intervals hold: on known, hypothetical and evaluation compounds.

    python benchmarks/uncertainty.py MODEL CALIBRATION... --training FILE... --features TABLE...

MODEL is a folder of `screening train`, trained without the formulas of the evaluation set and with
held-out rows: those whose formulas it was not trained on. CALIBRATION are Parquet tables of
hypothetical compounds with energies, TRAINING those that the model was trained on, and the feature
tables hold the rows of both by id. Formulas of the evaluation set and of the training never
calibrate.

The first table gives Spearman's rank correlation of each sign with the absolute error, the second
coverage of the 90 % interval with its 95 % binomial interval, mean width, and miscalibration area.
Held-out and hypothetical rows are judged by fits that saw no compound of their chemical system,
evaluation compounds by the fit to all.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from machine import describe_machine

from irnet import Prediction, metrics
from irnet.reference import TrainingReference
from irnet.uncertainty import Uncertainty
from screening.dataset import Protocol, TrainingSet, attach_features, read_formulas
from screening.dataset import read_training_set as read_rows
from screening.evaluation import featurize_ideal, read_evaluation_set
from screening.feature_tables import join_features, read_features
from screening.model_library import ScreeningModel, load_model

FOLDS = 5


@dataclass(frozen=True)
class Rows:
    """Compounds, what is predicted for them, and the signs of an error."""

    features: np.ndarray
    target: np.ndarray
    systems: np.ndarray
    part: np.ndarray
    mean: np.ndarray
    members: np.ndarray
    forest: np.ndarray
    hidden: np.ndarray

    def select(self, rows: np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(
            **{
                name: values[:, rows] if name == "members" else values[rows]
                for name, values in vars(self).items()
            }
        )

    @property
    def prediction(self) -> Prediction:
        """As the scorer gives it."""
        return Prediction(self.mean, self.members.std(axis=0, ddof=1), self.members)

    @property
    def error(self) -> np.ndarray:
        """Absolute error, eV/atom."""
        return np.abs(self.mean - self.target)


def join(*parts: Rows) -> Rows:
    """Put rows one after the other."""
    return Rows(
        **{
            name: np.concatenate(
                [getattr(part, name) for part in parts], axis=1 if name == "members" else 0
            )
            for name in vars(parts[0])
        }
    )


def predict(
    model: ScreeningModel,
    features: np.ndarray,
    target: np.ndarray,
    formulas: list[str],
    part: np.ndarray,
) -> Rows:
    x = features.astype(np.float32)
    found = model.ensemble.scorer().predict(x, hidden=True)
    assert model.forest is not None
    assert found.hidden is not None
    return Rows(
        x,
        target,
        np.array(["-".join(sorted(elements_of(f))) for f in formulas]),
        part,
        found.mean,
        found.members,
        model.forest.predict(x),
        found.hidden,
    )


def elements_of(formula: str) -> set[str]:
    from pymatgen.core.composition import Composition

    return {element.symbol for element in Composition(formula).elements}


def draw(rows: TrainingSet, most: int, seed: int) -> TrainingSet:
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[:most]))


def fit(rows: Rows, reference: TrainingReference, learn_features: bool) -> Uncertainty:
    return Uncertainty.fit(
        rows.target,
        rows.prediction,
        rows.forest,
        reference.distance(rows.features),
        reference=reference,
        features=rows.features if learn_features else None,
        groups=rows.systems,
    )


def splits(systems: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    unique, inverse = np.unique(systems, return_inverse=True)
    fold = (np.random.default_rng(1).permutation(len(unique)) % FOLDS)[inverse]
    for number in range(FOLDS):
        yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


@dataclass(frozen=True)
class Judged:
    """Rows with intervals of each nominal level, and the 90 % one."""

    rows: Rows
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ends: dict[float, tuple[np.ndarray, np.ndarray]]


def assess(uncertainty: Uncertainty, rows: Rows) -> Judged:
    found = uncertainty.assess(rows.features, rows.prediction, rows.forest)
    ends = {
        level: uncertainty.interval(rows.mean, found.error_scale, level)
        for level in metrics.NOMINAL_LEVELS
    }
    return Judged(rows, found.error_scale, found.low, found.high, ends)


def judge(
    calibration: Rows, others: Rows, reference: TrainingReference, learn_features: bool
) -> Judged:
    """Judge calibration rows out of fold and others by the fit to all."""
    parts = [
        assess(
            fit(calibration.select(kept), reference, learn_features), calibration.select(left_out)
        )
        for kept, left_out in splits(calibration.systems)
    ]
    parts.append(assess(fit(calibration, reference, learn_features), others))
    return Judged(
        join(*(p.rows for p in parts)),
        np.concatenate([p.scale for p in parts]),
        np.concatenate([p.low for p in parts]),
        np.concatenate([p.high for p in parts]),
        {
            level: (
                np.concatenate([p.ends[level][0] for p in parts]),
                np.concatenate([p.ends[level][1] for p in parts]),
            )
            for level in metrics.NOMINAL_LEVELS
        },
    )


def groups_of(rows: Rows) -> list[tuple[str, np.ndarray]]:
    names = ["held out", "hypothetical"]
    kinds = sorted(set(rows.part.tolist()) - set(names))
    found = [(name, np.flatnonzero(rows.part == name)) for name in [*names, *kinds]]
    return [*found, ("evaluation, all", np.flatnonzero(np.isin(rows.part, kinds)))]


def print_sorters(signs: dict[str, np.ndarray], rows: Rows) -> None:
    groups = groups_of(rows)
    print("\n| sign | " + " | ".join(f"{name} ({len(i)})" for name, i in groups) + " |")
    print("|" + "---|" * (len(groups) + 1))
    for name, sign in signs.items():
        values = [metrics.spearman(sign[i], rows.error[i]) for _, i in groups]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |")


def print_intervals(name: str, judged: Judged) -> None:
    for group, i in groups_of(judged.rows):
        true = judged.rows.target[i]
        held = metrics.coverage(judged.low[i], judged.high[i], true)
        curve = metrics.reliability(
            lambda level, i=i: tuple(ends[i] for ends in judged.ends[level]), true
        )
        width = metrics.sharpness(judged.low[i], judged.high[i])
        print(
            f"| {name} | {group} | {len(i)} | {held.value:.1%} ({held.low:.1%}–{held.high:.1%}) "
            f"| {width:.3f} | {curve.miscalibration_area:.3f} |"
        )


def parse() -> argparse.Namespace:
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder of a model with held-out rows")
    parser.add_argument("calibration", type=Path, nargs="+")
    parser.add_argument("--training", type=Path, nargs="+", required=True)
    parser.add_argument("--features", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--evaluation", type=Path, default=Path(default) / "eval_prototypes.parquet"
    )
    parser.add_argument("--rows", type=int, default=4000, help="hypothetical compounds to draw")
    parser.add_argument("--known", type=int, help="held-out compounds to draw (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    arguments = parse()
    model = load_model(arguments.model)
    excluded = Protocol(excluded_formulas=read_formulas(arguments.evaluation))
    features = join_features([read_features(path) for path in arguments.features])

    training = read_rows(arguments.training, excluded)
    known = model.training_formulas.contains(training.formulas)
    trained = attach_features(training.select(np.flatnonzero(known)), features)
    left_out = attach_features(training.select(np.flatnonzero(~known)), features)
    if len(left_out) != model.card.data.held_out_rows:
        raise SystemExit(
            f"{len(left_out)} rows of the training files were not trained on, but the model has "
            f"{model.card.data.held_out_rows} held-out rows: give the files that it was trained on"
        )
    if arguments.known is not None:
        left_out = draw(left_out, arguments.known, arguments.seed)
    assert trained.features is not None
    assert left_out.features is not None
    held_out = predict(
        model,
        left_out.features,
        left_out.target,
        list(left_out.formulas),
        np.full(len(left_out), "held out", dtype="U20"),
    )
    others = read_rows(arguments.calibration, excluded)
    unknown = np.flatnonzero(~model.training_formulas.contains(others.formulas))
    drawn = draw(others.select(unknown), arguments.rows, arguments.seed)
    drawn = attach_features(drawn, features)
    assert drawn.features is not None
    hypothetical = predict(
        model,
        drawn.features,
        drawn.target,
        list(drawn.formulas),
        np.full(len(drawn), "hypothetical", dtype="U20"),
    )
    data = read_evaluation_set(arguments.evaluation)
    assert data.kinds is not None
    evaluation = predict(
        model,
        featurize_ideal(data.crystals, data.kinds),
        data.target,
        [crystal.formula for crystal in data.crystals],
        data.kinds,
    )
    calibration = join(held_out, hypothetical)

    print(describe_machine())
    start = perf_counter()
    reference = TrainingReference.fit(trained.features, seed=arguments.seed)
    seconds = perf_counter() - start
    print(f"reference of {len(trained):,} rows in {seconds:.1f} s")
    many = np.tile(trained.features, (4, 1))
    start = perf_counter()
    reference.distance(many)
    print(f"distances: {len(many) / (perf_counter() - start):,.0f} rows/s")
    start = perf_counter()
    uncertainty = fit(calibration, reference, True)
    print(f"calibrated on {len(calibration.target):,} rows in {perf_counter() - start:.1f} s")
    tiled = many[: len(calibration.target)]
    start = perf_counter()
    uncertainty.assess(tiled, calibration.prediction, calibration.forest)
    print(f"assessed, distances included: {len(tiled) / (perf_counter() - start):,.0f} rows/s")

    scored = model.ensemble.scorer().predict(trained.features, hidden=True)
    assert scored.hidden is not None
    in_hidden = TrainingReference.fit(scored.hidden)
    plain = judge(calibration, evaluation, reference, False)
    learnt = judge(calibration, evaluation, reference, True)
    only_known = judge(held_out, join(hypothetical, evaluation), reference, True)
    rows = learnt.rows
    everything = TrainingReference.fit(trained.features, size=len(trained))
    few = TrainingReference.fit(trained.features, size=1024)
    print_sorters(
        {
            "spread of the members": rows.prediction.std,
            "difference from the forest": np.abs(rows.mean - rows.forest),
            "predicted enthalpy": rows.mean,
            "distance in features, all training rows": everything.distance(rows.features),
            "distance in features, the reference": reference.distance(rows.features),
            "distance in features, 1,024 rows": few.distance(rows.features),
            "distance in the last hidden layers": in_hidden.distance(rows.hidden),
            "learnt from spread, forest, distance, prediction": plain.scale,
            "learnt, with all features": learnt.scale,
        },
        rows,
    )
    print("\n| calibrated on | group | n | coverage (95 %) | mean width, eV/atom | area |")
    print("|---|---|---|---|---|---|")
    print_intervals("known", only_known)
    print_intervals("known + hypothetical", learnt)


if __name__ == "__main__":
    main()
