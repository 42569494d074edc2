"""Whether intervals keep what they promise: coverage, sharpness, and what sorts the errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from screening.model_card import Reliability

if TYPE_CHECKING:
    from irnet import Prediction
    from irnet.uncertainty import Uncertainty

Predictor = Literal["irnet", "irnet_member", "random_forest"]


@dataclass(frozen=True, eq=False)
class Intervals:
    """Predictions of some rows with their intervals, eV/atom.

    Attributes:
        mean: Mean of the members, shape (n,).
        spread: Their standard deviation, shape (n,); NaN with a single member.
        error_scale: Expected size of the error, shape (n,).
        low: Lower end of the stored (90 %) interval, shape (n,).
        high: Upper end.
        lows: Lower ends at each of `irnet.metrics.NOMINAL_LEVELS`, shape (levels, n).
        highs: Upper ends.
    """

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    error_scale: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    lows: NDArray[np.float64]
    highs: NDArray[np.float64]

    def select(self, rows: NDArray[np.int64]) -> "Intervals":
        """Those of some rows, in that order."""
        return Intervals(*(getattr(self, field.name)[..., rows] for field in fields(self)))


def join_intervals(parts: Sequence[Intervals]) -> Intervals:
    """The intervals of several parts, one after the other."""
    return Intervals(
        *(
            np.concatenate([getattr(part, field.name) for part in parts], axis=-1)
            for field in fields(Intervals)
        )
    )


def find_intervals(
    uncertainty: "Uncertainty",
    features: NDArray[np.floating[Any]],
    predictions: Mapping[Predictor, NDArray[np.float64]],
) -> Intervals:
    """The intervals of predictions, at the stored level and at all nominal ones.

    Args:
        uncertainty: The calibration.
        features: What was predicted from, shape (n, 271).
        predictions: As `screening.evaluation.predict_all` returns them.
    """
    from irnet import metrics

    prediction = join_members(predictions)
    assessed = uncertainty.assess(features, prediction, predictions.get("random_forest"))
    ends = [
        uncertainty.interval(prediction.mean, assessed.error_scale, level)
        for level in metrics.NOMINAL_LEVELS
    ]
    return Intervals(
        prediction.mean,
        prediction.std,
        assessed.error_scale,
        assessed.low,
        assessed.high,
        np.stack([low for low, _ in ends]),
        np.stack([high for _, high in ends]),
    )


def join_members(predictions: Mapping[Predictor, NDArray[np.float64]]) -> "Prediction":
    """The ensemble's prediction as its scorer gives it.

    Args:
        predictions: With ``irnet``, shape (n,), and ``irnet_member``, shape (members, n).
    """
    from irnet import Prediction

    mean, members = predictions["irnet"], predictions["irnet_member"]
    alone = len(members) == 1
    spread = np.full(len(mean), np.nan) if alone else members.std(axis=0, ddof=1)
    return Prediction(mean=mean, std=spread, members=members)


def measure_reliability(
    intervals: Intervals,
    target: NDArray[np.float64],
    *,
    group: str,
    scheme: str = "all",
    geometry: Literal["relaxed", "ideal"] = "relaxed",
) -> Reliability:
    """How well intervals do on compounds with known energies.

    Args:
        intervals: The intervals of n rows.
        target: True energies, shape (n,), eV/atom.
        group: What the rows are.
        scheme: Energy corrections of the labels.
        geometry: What the features were computed on.

    Returns:
        Coverage, sharpness, miscalibration area, and how well the expected error and the spread
        of the members sort the errors; `irnet.metrics` says how each is computed.
    """
    from irnet import metrics

    error = np.abs(intervals.mean - target)
    held = metrics.coverage(intervals.low, intervals.high, target)
    places = {level: place for place, level in enumerate(metrics.NOMINAL_LEVELS)}
    curve = metrics.reliability(
        lambda level: (intervals.lows[places[level]], intervals.highs[places[level]]), target
    )

    def sort(scale: NDArray[np.float64]) -> float | None:
        if len(target) < 3 or not np.isfinite(scale).all():
            return None
        correlation = metrics.spearman(scale, error)
        return correlation if np.isfinite(correlation) else None

    return Reliability(
        group=group,
        scheme=scheme,
        geometry=geometry,
        n=len(target),
        expected=curve.nominal,
        observed=curve.observed,
        coverage=held.value,
        coverage_low=held.low,
        coverage_high=held.high,
        sharpness=metrics.sharpness(intervals.low, intervals.high),
        miscalibration_area=curve.miscalibration_area,
        sorting=sort(intervals.error_scale),
        spread_sorting=sort(intervals.spread),
    )
