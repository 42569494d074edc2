"""Classes instead of numbers: which class a row is of, and how well a model tells them apart.

The networks end in a softmax (section 4.1.5 of Jha et al., KDD 2019). Beside them stand a Random
Forest of the same rows, and the class that is the most common: what one knows without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from screening.errors import InputDataError
from screening.features.schema import FEATURES
from screening.model_card import ClassificationCard, ClassificationScore

if TYPE_CHECKING:
    from irnet import Forest

FloatArray = NDArray[np.float64]
Judge = Literal["irnet", "random_forest", "largest_class"]

CLASS_UNIT: Final = "class"
"""Stands for the unit of what is predicted where that is a class."""

JUDGES: Final[Mapping[str, str]] = {
    "irnet": "IRNet",
    "random_forest": "Random Forest",
    "largest_class": "most common class",
}
"""What tables call the predictors."""

FOREST_NAME: Final = "forest-{}.safetensors"
"""Where the forest of a class is kept while its training is not finished."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Classes of rows.

    Attributes:
        numbers: Number of each row's class, NaN where it has none, shape (n,).
        classes: Names of the classes.
    """

    numbers: FloatArray
    classes: tuple[str, ...]


def read_labels(column: pd.Series[Any], path: Path) -> Labels:
    """Read classes from a column of texts or truth values.

    Args:
        column: The column, length n; null or empty for a row without a class.
        path: Its file, for the message.

    Returns:
        The classes, their names sorted.

    Raises:
        InputDataError: The column holds something else, such as numbers.
    """
    texts = []
    for value, missing in zip(column.astype(object), column.isna(), strict=True):
        if missing:
            texts.append("")
        elif isinstance(value, (str, bool, np.bool_)):
            texts.append(str(value) if str(value).strip() else "")
        else:
            raise InputDataError(
                f"{path}: column {column.name!r} holds {value!r}, which is neither a text nor a "
                "truth value. Cut a column of numbers in two with --split-at, or write the names "
                "of the classes into it."
            )
    classes = tuple(sorted({text for text in texts if text}))
    place = {name: float(number) for number, name in enumerate(classes)}
    return Labels(np.array([place.get(text, np.nan) for text in texts], dtype=float), classes)


def cut_in_two(values: FloatArray, bound: float) -> Labels:
    """Make two classes of numbers.

    Args:
        values: Shape (n,); a row that is not finite has no class.
        bound: Largest number of the first class.

    Returns:
        The classes "at most ..." and "above ...", in this order.
    """
    numbers = np.where(np.isfinite(values), (values > bound).astype(np.float64), np.nan)
    return Labels(numbers, (f"at most {bound:.12g}", f"above {bound:.12g}"))


def merge_labels(parts: Sequence[Labels]) -> Labels:
    """Join the rows of several files.

    Args:
        parts: At least one.

    Returns:
        All rows, in the order of the parts. The classes are those of any part, sorted by name
        unless every part has the same.
    """
    classes = parts[0].classes
    if any(part.classes != classes for part in parts):
        classes = tuple(sorted({name for part in parts for name in part.classes}))
    place = {name: number for number, name in enumerate(classes)}
    numbers = []
    for part in parts:
        renumbered, known = np.full(len(part.numbers), np.nan), np.isfinite(part.numbers)
        own = np.array([place[name] for name in part.classes], dtype=np.float64)
        renumbered[known] = own[part.numbers[known].astype(np.int64)]
        numbers.append(renumbered)
    return Labels(np.concatenate(numbers), classes)


def drop_empty_classes(labels: Labels) -> Labels:
    """Leave out classes that no row is of.

    Args:
        labels: Of rows that all have a class.
    """
    used, numbers = np.unique(labels.numbers, return_inverse=True)
    names = tuple(labels.classes[int(number)] for number in used)
    return Labels(numbers.astype(np.float64), names)


def count_classes(numbers: FloatArray, classes: Sequence[str]) -> tuple[int, ...]:
    """Rows of each class.

    Args:
        numbers: Number of each row's class, shape (n,).
        classes: Their names.
    """
    counts = np.bincount(numbers.astype(np.int64), minlength=len(classes))
    return tuple(int(count) for count in counts)


def fit_class_forests(
    features: NDArray[np.float32],
    numbers: FloatArray,
    classes: Sequence[str],
    *,
    seed: int,
    jobs: int = 1,
    parameters: Mapping[str, Any] | None = None,
    target: str = "class",
    work: Path | None = None,
) -> tuple[Forest, ...]:
    """Fit Random Forests that tell classes apart.

    A forest that is fitted to 0 and 1 by squared error splits its nodes as one that is fitted to
    the two classes by Gini's impurity does, which is twice the variance, and its mean is the
    probability. So two classes need one forest, of the second class; more have one each, of this
    class against all others.

    Args:
        features: Shape (n, 271).
        numbers: Number of each row's class, shape (n,).
        classes: Their names.
        seed: Of the trees.
        jobs: Cores.
        parameters: Hyperparameters by scikit-learn's names; the deepest of the paper's grid if
            None. There is no search: its measure is that of numbers.
        target: Goes into the forests' cards.
        work: Folder from which forests that are there are read and into which others are written.

    Returns:
        One forest for two classes, else one for each.
    """
    from irnet import Forest, fit_forest
    from irnet.forest import ForestParameters

    forests = []
    for number in (1,) if len(classes) == 2 else range(len(classes)):
        path = None if work is None else work / FOREST_NAME.format(number)
        if path is not None and path.exists():
            forests.append(Forest.load(path))
            continue
        forest = fit_forest(
            features,
            numbers == number,
            FEATURES,
            seed=seed,
            n_jobs=jobs,
            search=False,
            parameters=None if parameters is None else ForestParameters(**parameters),
            target_name=f"{target}: {classes[number]}",
            target_unit=CLASS_UNIT,
        )
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            forest.save(path)
        forests.append(forest)
    return tuple(forests)


def combine_forests(forests: Sequence[Forest], features: NDArray[np.float32]) -> FloatArray:
    """Probabilities of the classes by what `fit_class_forests` fitted.

    Args:
        forests: One for two classes, else one for each.
        features: Shape (n, 271).

    Returns:
        Shape (n, classes); each row adds up to 1. Rows that every one of several forests gives
        the probability 0 have the same for all classes.
    """
    found = np.stack([forest.predict(features) for forest in forests], axis=1)
    if len(forests) == 1:
        return np.concatenate([1 - found, found], axis=1)
    total = found.sum(axis=1, keepdims=True)
    even = np.full_like(found, 1 / len(forests))
    return np.where(total > 0, found / np.where(total > 0, total, 1.0), even)


def score_classes(
    probabilities: Mapping[Judge, FloatArray], numbers: FloatArray, classes: Sequence[str]
) -> tuple[ClassificationScore, ...]:
    """Measure predicted probabilities.

    Args:
        probabilities: Of each class by predictor, shape (n, classes); the likeliest one is the
            predicted one, the first of them where several are.
        numbers: Number of each row's class, shape (n,).
        classes: Their names.

    Returns:
        One score per predictor.
    """
    from irnet import metrics

    scores = []
    for predictor, values in probabilities.items():
        predicted = values.argmax(axis=1)
        share = metrics.proportion(int((predicted == numbers).sum()), len(numbers))
        one_each = [(values[:, i], numbers == i) for i in range(len(classes))]
        auc = metrics.roc_auc(*one_each[1]) if len(classes) == 2 else float("nan")
        scores.append(
            ClassificationScore(
                predictor=predictor,
                n=len(numbers),
                accuracy=metrics.accuracy(predicted, numbers),
                accuracy_low=share.low,
                accuracy_high=share.high,
                balanced_accuracy=metrics.balanced_accuracy(predicted, numbers),
                log_loss=metrics.log_loss(values, numbers),
                roc_auc=_finite(auc),
                f1=tuple(map(_finite, metrics.f1_scores(predicted, numbers, len(classes)))),
                average_precision=tuple(
                    _finite(metrics.average_precision(*each)) for each in one_each
                ),
            )
        )
    return tuple(scores)


def expect_shares(counts: Sequence[int], rows: int) -> FloatArray:
    """Probabilities that are the shares of the classes in the training data, for every row.

    Args:
        counts: Training rows of each class.
        rows: Number of rows.

    Returns:
        Shape (rows, classes).
    """
    shares = np.asarray(counts, dtype=np.float64) / sum(counts)
    return np.tile(shares, (rows, 1))


def tabulate_classes(card: ClassificationCard) -> list[list[str]]:
    """How well classes are told apart, as a table.

    Args:
        card: What was measured.

    Returns:
        A header and one row per predictor, with the area under the ROC curve of two classes; the
        header alone where nothing was measured.
    """
    two = len(card.classes) == 2
    header = ["predictor", "n", "accuracy", "95 % interval", "balanced", "log loss"]
    rows = [header + ["ROC AUC"] * two]
    for score in card.held_out:
        cells = [
            JUDGES[score.predictor],
            f"{score.n:,}",
            f"{score.accuracy:.4f}",
            f"{score.accuracy_low:.3f}–{score.accuracy_high:.3f}",
            f"{score.balanced_accuracy:.4f}",
            f"{score.log_loss:.4f}",
        ]
        rows.append(cells + [show_measure(score.roc_auc)] * two)
    return rows


def tabulate_each_class(card: ClassificationCard) -> list[list[str]]:
    """Rows of each class, and how well each is found, as a table.

    Args:
        card: What was measured.

    Returns:
        A header and one row per class, with F1 and average precision of each predictor.
    """
    header = ["class", "rows", "held out"]
    for score in card.held_out:
        header += [f"F1 {JUDGES[score.predictor]}", f"AP {JUDGES[score.predictor]}"]
    rows = [header]
    for number, name in enumerate(card.classes):
        cells = [name, f"{card.rows[number]:,}", f"{card.held_out_rows[number]:,}"]
        for score in card.held_out:
            cells += [
                show_measure(score.f1[number]),
                show_measure(score.average_precision[number]),
            ]
        rows.append(cells)
    return rows


def describe_accuracy(card: ClassificationCard) -> str | None:
    """How well the networks do on held-out rows, beside the most common class, in a phrase.

    Args:
        card: What was measured.

    Returns:
        The phrase, None where nothing was measured.
    """
    score, common = card.find_score(), card.find_score("largest_class")
    if score is None or common is None:
        return None
    auc = "" if score.roc_auc is None else f", ROC AUC {score.roc_auc:.4f}"
    return (
        f"accuracy {score.accuracy:.4f}{auc} (n = {score.n:,}); always the most common class: "
        f"{common.accuracy:.4f}"
    )


def show_measure(value: float | None) -> str:
    """A measure from 0 to 1 as text, empty where it is not defined."""
    return "" if value is None else f"{value:.4f}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
