"""Measures of a prediction's error, with confidence intervals and tables per group."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError

Metric = Callable[[ArrayLike, ArrayLike], float]


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
