"""Measures of a prediction's error, of numbers and of classes, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

Metric = Callable[[ArrayLike, ArrayLike], float]

NOMINAL_LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Levels at which a reliability curve is drawn: 0.05 to 0.95."""


def mae(predicted: ArrayLike, true: ArrayLike) -> float:
    """Mean absolute error.

    Args:
        predicted: (n,).
        true: (n,), in the same unit.

    Returns:
        The error, in that unit.

    Raises:
        DataError: If shapes differ, nothing is given, or a value is not finite; so do all here.
    """
    p, t = _pair(predicted, true)
    return float(np.abs(p - t).mean())


def rmse(predicted: ArrayLike, true: ArrayLike) -> float:
    """Root of the mean squared error of predictions (n,) against true values (n,)."""
    p, t = _pair(predicted, true)
    return float(np.sqrt(np.square(p - t).mean()))


def bias(predicted: ArrayLike, true: ArrayLike) -> float:
    """Mean of predicted minus true, (n,) each: negative means predicted too low."""
    p, t = _pair(predicted, true)
    return float((p - t).mean())


def spearman(predicted: ArrayLike, true: ArrayLike) -> float:
    """Rank correlation of predictions (n,) and true values (n,), ties given their mean rank.

    NaN where it is undefined: fewer than two rows, or all values of one side equal.
    """
    p, t = _pair(predicted, true)
    return _correlation(_ranks(p), _ranks(t))


def error_quantile(predicted: ArrayLike, true: ArrayLike, level: float) -> float:
    """Quantile of the absolute error.

    Args:
        predicted: (n,).
        true: (n,), in the same unit.
        level: From 0 to 1; 0.9 gives the error that nine of ten rows stay under.

    Returns:
        The quantile, in that unit.
    """
    p, t = _pair(predicted, true)
    return float(np.quantile(np.abs(p - t), level))


def accuracy(predicted: ArrayLike, true: ArrayLike) -> float:
    """Share of the rows whose class is predicted.

    Args:
        predicted: Number of the predicted class, (n,).
        true: Number of the true one, (n,).
    """
    p, t = _pair(predicted, true)
    return float((p == t).mean())


def balanced_accuracy(predicted: ArrayLike, true: ArrayLike) -> float:
    """Mean over the classes that occur of the share of their rows that is predicted as theirs.

    Always the same class gives one over the number of classes, however common it is.

    Args:
        predicted: Number of the predicted class, (n,).
        true: Number of the true one, (n,).
    """
    p, t = _pair(predicted, true)
    return float(np.mean([(p[t == number] == number).mean() for number in np.unique(t)]))


def f1_scores(predicted: ArrayLike, true: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Harmonic mean of precision and recall of each class.

    Args:
        predicted: Number of the predicted class, (n,).
        true: Number of the true one, (n,).
        classes: How many there are.

    Returns:
        (classes,); NaN for a class that neither occurs nor is predicted.
    """
    p, t = _pair(predicted, true)
    numbers = np.arange(classes)[:, None]
    of_class, as_class = t == numbers, p == numbers
    either = of_class.sum(axis=1) + as_class.sum(axis=1)
    both = (of_class & as_class).sum(axis=1)
    return np.where(either > 0, 2 * both / np.maximum(either, 1), np.nan)


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: how often a positive row has a higher score than a negative one.

    Ties count half (Hanley and McNeil, Radiology 143, 29, 1982).

    Args:
        scores: Higher for rows that are rather positive, (n,).
        positive: Whether a row is, (n,), 0 or 1.

    Returns:
        0.5 for chance, 1 for a perfect order; NaN where all rows are of one kind.
    """
    s, t = _pair(scores, positive)
    count = float(t.sum())
    pairs = count * (len(t) - count)
    if not pairs:
        return float("nan")
    return float(_ranks(s)[t > 0].sum() - count * (count + 1) / 2) / pairs


def average_precision(scores: ArrayLike, positive: ArrayLike) -> float:
    """Precision over the thresholds of the score, each weighted by the recall that it adds.

    Args:
        scores: Higher for rows that are rather positive, (n,).
        positive: Whether a row is, (n,), 0 or 1.

    Returns:
        From the share of positive rows (chance) to 1; NaN where there are none.
    """
    s, t = _pair(scores, positive)
    if not t.any():
        return float("nan")
    order = np.argsort(-s, kind="stable")
    last = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1)
    found = np.cumsum(t[order])[last]
    return float((np.diff(found, prepend=0.0) * found / (last + 1)).sum() / t.sum())


def log_loss(probabilities: ArrayLike, true: ArrayLike) -> float:
    """Mean negative logarithm of the probability of the true class, in nats.

    Args:
        probabilities: Of each class, (n, classes); none counts as less than the float64 epsilon.
        true: Number of the true class, (n,).

    Raises:
        DataError: If shapes differ, a value is not finite, or a number is no class's.
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.ndim != 2 or p.shape[:1] != t.shape:
        raise DataError(
            f"probabilities have shape {p.shape}, true {t.shape}; give (n, classes) and (n,)"
        )
    wrong = ~np.isin(t, np.arange(p.shape[1]))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"true row {row} is {t[row]}, the number of none of {p.shape[1]} classes")
    own = p[np.arange(len(t)), t.astype(np.int64)]
    surprise, _ = _pair(-np.log(np.clip(own, np.finfo(np.float64).eps, 1.0)), t)
    return float(surprise.mean())


@dataclass(frozen=True)
class Interval:
    """A measured value and its confidence interval.

    Attributes:
        value: On the rows as they are.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    metric: Metric,
    predicted: ArrayLike,
    true: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a metric (Efron and Tibshirani 1993, chapter 13).

    Args:
        metric: One of this module, or any function of (predicted, true).
        predicted: (n,).
        true: (n,).
        level: Confidence.
        resamples: Number of draws with replacement; those where the metric is NaN do not count.
        seed: Of the draws.

    Returns:
        The metric on all rows and its interval; NaN ends with fewer than two rows or
        where no draw has a value.
    """
    p, t = _pair(predicted, true)
    value = metric(p, t)
    if len(p) < 2:
        return Interval(value, float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(p), size=(resamples, len(p)))
    values = np.array([metric(p[rows], t[rows]) for rows in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def proportion(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """A share and the interval of the probability behind it, after Wilson.

    E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927), without continuity correction. It stays
    inside 0 to 1 and has a width also where no trial or every trial succeeds.

    Args:
        successes: From 0 to `trials`.
        trials: At least 1.
        level: Confidence.

    Returns:
        The share and its interval.

    Raises:
        DataError: If there are no trials, or fewer trials than successes.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"{successes} of {trials} is no share; give 0 to n of n >= 1 trials")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) * z
    half = float(half) / (1 + z * z / trials)
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def coverage(low: ArrayLike, high: ArrayLike, true: ArrayLike, *, level: float = 0.95) -> Interval:
    """Share of the true values inside their prediction intervals, ends included.

    Args:
        low: Lower ends, (n,).
        high: Upper ends, (n,), none below its lower end.
        true: (n,), in the same unit.
        level: Confidence of the binomial interval around the share (see `proportion`).

    Returns:
        The share and its binomial interval; that takes the rows as independent.

    Raises:
        DataError: If shapes differ, nothing is given, a value is not finite, or an interval is
            upside down.
    """
    _check_ends(low, high)
    below, t = _pair(low, true)
    above, _ = _pair(high, true)
    return proportion(int(((below <= t) & (t <= above)).sum()), len(t), level=level)


def sharpness(low: ArrayLike, high: ArrayLike) -> float:
    """Mean width of prediction intervals, in their unit; of two calibrated ones, less is better.

    Args:
        low: Lower ends, (n,).
        high: Upper ends, (n,), none below its lower end.
    """
    below, above = _check_ends(low, high)
    return float((above - below).mean())


@dataclass(frozen=True)
class Reliability:
    """Nominal against observed coverage.

    Attributes:
        nominal: Levels, (k,), ascending, between 0 and 1.
        observed: Share of rows inside their interval of each level, (k,).
        rows: Number of rows.
    """

    nominal: tuple[float, ...]
    observed: tuple[float, ...]
    rows: int

    @property
    def miscalibration_area(self) -> float:
        """Area between this curve and the diagonal, from (0, 0) to (1, 1).

        0 is perfect and 0.5 the worst (Tran et al., Mach. Learn.: Sci. Technol. 1, 025006, 2020).
        """
        x = np.array([0.0, *self.nominal, 1.0])
        gap = np.array([0.0, *self.observed, 1.0]) - x
        left, right, width = gap[:-1], gap[1:], np.diff(x)
        total = np.abs(left) + np.abs(right)
        trapezia = width * total / 2
        # where the curve crosses the diagonal, two triangles stand on either side of it
        triangles = width * (left**2 + right**2) / np.where(total > 0, 2 * total, 1.0)
        return float(np.where(left * right < 0, triangles, trapezia).sum())


def reliability(
    interval: Callable[[float], tuple[ArrayLike, ArrayLike]],
    true: ArrayLike,
    levels: tuple[float, ...] = NOMINAL_LEVELS,
) -> Reliability:
    """Observed coverage of the prediction intervals of each nominal level.

    Args:
        interval: Gives lower and upper ends, (n,) each, for a level.
        true: (n,).
        levels: Nominal levels, ascending, between 0 and 1.

    Returns:
        The curve.

    Raises:
        DataError: As `coverage` does.
    """
    observed = tuple(coverage(*interval(level), true).value for level in levels)
    return Reliability(tuple(levels), observed, len(np.asarray(true)))


def _check_ends(low: ArrayLike, high: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    below, above = _pair(low, high)
    if (below > above).any():
        row = int(np.argmax(below > above))
        raise DataError(f"interval row {row} ends at {above[row]}, below its start {below[row]}")
    return below, above


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise DataError(f"predicted has shape {p.shape}, true {t.shape}; both must be (n,)")
    if not len(p):
        raise DataError("no rows to measure an error on")
    for name, values in (("predicted", p), ("true", t)):
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise DataError(f"{name} row {row} is {values[row]}; leave the row out or repair it")
    return p, t


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")
