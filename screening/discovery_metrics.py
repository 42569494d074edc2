"""How well a ranking finds stable compounds: the measures of Matbench Discovery.

A compound is stable if its energy above hull is at most a tolerance, and found if a model selects
it. J. Riebesell et al., Nat. Mach. Intell. 7, 836 (2025) tell which measures matter: errors of
energies say little, because most compounds lie near the hull. Everything here is a function of
arrays; what a row is, only the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from screening.errors import InputDataError

FIRST: Final = (10, 100, 1000)
"""Lengths of the shortlists whose precision is told."""

BINS: Final = 10
"""Bins of equal width in which promised and observed shares are compared."""

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Classification:
    """Counts of selected and of stable compounds, and what follows from them.

    A share of nothing (no compound selected, or none stable) is NaN.

    Attributes:
        true_positives: Selected and stable.
        false_positives: Selected, not stable.
        true_negatives: Neither.
        false_negatives: Stable, not selected.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def rows(self) -> int:
        """All compounds."""
        return self.selected + self.true_negatives + self.false_negatives

    @property
    def stable(self) -> int:
        """Stable compounds."""
        return self.true_positives + self.false_negatives

    @property
    def selected(self) -> int:
        """Selected compounds: what one would calculate."""
        return self.true_positives + self.false_positives

    @property
    def prevalence(self) -> float:
        """Share of stable compounds: the precision of random choice."""
        return _share(self.stable, self.rows)

    @property
    def precision(self) -> float:
        """Share of the selected that are stable."""
        return _share(self.true_positives, self.selected)

    @property
    def recall(self) -> float:
        """Share of the stable that are selected; the true positive rate."""
        return _share(self.true_positives, self.stable)

    @property
    def false_negative_rate(self) -> float:
        """Share of the stable that are missed."""
        return _share(self.false_negatives, self.stable)

    @property
    def false_positive_rate(self) -> float:
        """Share of the unstable that are selected."""
        return _share(self.false_positives, self.rows - self.stable)

    @property
    def true_negative_rate(self) -> float:
        """Share of the unstable that are not selected."""
        return _share(self.true_negatives, self.rows - self.stable)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _share(
            2 * self.true_positives,
            2 * self.true_positives + self.false_positives + self.false_negatives,
        )

    @property
    def accuracy(self) -> float:
        """Share of compounds that are told rightly."""
        return _share(self.true_positives + self.true_negatives, self.rows)

    @property
    def acceleration(self) -> float:
        """Discovery acceleration factor: precision over prevalence; random choice has 1."""
        return _share(self.precision, self.prevalence)

    @property
    def ceiling(self) -> float:
        """Largest acceleration factor there can be, one over the prevalence."""
        return _share(1.0, self.prevalence)


@dataclass(frozen=True)
class HullErrors:
    """Errors of predicted energies above hull, eV/atom.

    Attributes:
        rows: How many compounds.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        bias: Mean of predicted minus true.
        r2: Coefficient of determination; NaN where all true values are equal.
    """

    rows: int
    mae: float
    rmse: float
    bias: float
    r2: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Compounds that were promised about the same probability.

    Attributes:
        low: Least probability of the bin.
        high: Largest; only the last bin includes it.
        rows: How many compounds.
        promised: Their mean probability.
        observed: Share of them that is stable.
        observed_low: Lower end of the 95 % interval of that share (Wilson).
        observed_high: Upper end.
    """

    low: float
    high: float
    rows: int
    promised: float
    observed: float
    observed_low: float
    observed_high: float


@dataclass(frozen=True)
class ProbabilityScore:
    """How far probabilities of being stable can be taken at their word.

    Attributes:
        brier: Mean squared difference of probability and outcome (Brier 1950); 0 is perfect.
        brier_of_prevalence: That of giving every compound the prevalence.
        calibration_error: Mean over compounds of the difference between promised and observed
            share of their bin (expected calibration error; Naeini et al., AAAI 2015).
        bins: The reliability diagram; bins without compounds are left out.
    """

    brier: float
    brier_of_prevalence: float
    calibration_error: float
    bins: tuple[ReliabilityBin, ...]


def classify(stable: ArrayLike, selected: ArrayLike) -> Classification:
    """Count which stable and unstable compounds are selected.

    Args:
        stable: Shape (n,), bool.
        selected: Shape (n,), bool.

    Returns:
        The counts.

    Raises:
        InputDataError: Shapes differ or there is no row.
    """
    true, chosen = _pair(stable, selected)
    true, chosen = true.astype(bool), chosen.astype(bool)
    return Classification(
        true_positives=int((chosen & true).sum()),
        false_positives=int((chosen & ~true).sum()),
        true_negatives=int((~chosen & ~true).sum()),
        false_negatives=int((~chosen & true).sum()),
    )


def roc_auc(score: ArrayLike, stable: ArrayLike) -> float:
    """Area under the receiver operating characteristic.

    The chance that a random stable compound has a higher score than a random unstable one, equal
    scores counting half (Hanley and McNeil, Radiology 143, 29, 1982).

    Args:
        score: Higher for what is more likely to be stable, shape (n,).
        stable: Shape (n,), bool.

    Returns:
        0.5 for random scores, 1 for perfect ones; NaN if all or no compounds are stable.

    Raises:
        InputDataError: As for `classify`, or a score is not a number.
    """
    values, true = _pair(score, stable)
    _check_finite(values, "score")
    true = true.astype(bool)
    positives = int(true.sum())
    negatives = len(true) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    above = float(ranks[true].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def order_by(*keys: ArrayLike) -> NDArray[np.int64]:
    """Rows by falling score, the first key before the others; equal rows in their own order.

    Args:
        keys: Higher for what comes first, shape (n,) each.

    Returns:
        Row numbers, shape (n,).
    """
    return np.lexsort([-np.asarray(key, dtype=np.float64) for key in reversed(keys)])


def count_found(stable: ArrayLike, order: ArrayLike) -> NDArray[np.int64]:
    """Stable compounds found after each calculation.

    Args:
        stable: Shape (n,), bool.
        order: Row numbers in the order in which they are calculated, shape (n,).

    Returns:
        Entry k is the number among the first k, shape (n + 1,).
    """
    true, rows = _pair(stable, order)
    return np.concatenate([[0], np.cumsum(true.astype(bool)[rows])]).astype(np.int64)


def precision_at(found: NDArray[np.int64], lengths: Sequence[int] = FIRST) -> dict[int, float]:
    """Share of stable compounds in shortlists.

    Args:
        found: As `count_found` returns it.
        lengths: Lengths of the shortlists; those longer than the ranking are left out.

    Returns:
        Precision by length.
    """
    return {length: float(found[length] / length) for length in lengths if length < len(found)}


def calculations_for(found: NDArray[np.int64], share: float) -> int:
    """Calculations until a share of the stable compounds is found.

    Args:
        found: As `count_found` returns it, with at least one stable compound.
        share: Above 0, at most 1.

    Returns:
        How many.
    """
    wanted = int(np.ceil(share * found[-1] - 1e-9))
    return int(np.searchsorted(found, wanted, side="left"))


def measure_errors(predicted: ArrayLike, true: ArrayLike) -> HullErrors:
    """Errors of energies above hull.

    Args:
        predicted: Shape (n,), eV/atom.
        true: Shape (n,), eV/atom.

    Returns:
        The errors.

    Raises:
        InputDataError: Shapes differ, there is no row, or a value is not a number.
    """
    p, t = _pair(predicted, true)
    _check_finite(p, "predicted energy above hull")
    _check_finite(t, "true energy above hull")
    error = p - t
    spread = float(np.square(t - t.mean()).sum())
    return HullErrors(
        rows=len(t),
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt(np.square(error).mean())),
        bias=float(error.mean()),
        r2=1.0 - float(np.square(error).sum()) / spread if spread > 0 else float("nan"),
    )


def score_probabilities(
    probability: ArrayLike, stable: ArrayLike, bins: int = BINS
) -> ProbabilityScore:
    """Compare probabilities of being stable with what is stable.

    Args:
        probability: Shape (n,), from 0 to 1.
        stable: Shape (n,), bool.
        bins: Of equal width.

    Returns:
        Brier score, expected calibration error and reliability diagram.

    Raises:
        InputDataError: As for `classify`, or a value is no probability.
    """
    from irnet import metrics

    p, true = _pair(probability, stable)
    p, outcome = p.astype(np.float64), true.astype(np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputDataError("a probability of being stable is not between 0 and 1")
    place = np.minimum((p * bins).astype(np.int64), bins - 1)
    parts, gap = [], 0.0
    for number in np.unique(place).tolist():
        rows = place == number
        count = int(rows.sum())
        observed = metrics.proportion(int(outcome[rows].sum()), count)
        promised = float(p[rows].mean())
        gap += count * abs(promised - observed.value) / len(p)
        parts.append(
            ReliabilityBin(
                low=number / bins,
                high=(number + 1) / bins,
                rows=count,
                promised=promised,
                observed=observed.value,
                observed_low=observed.low,
                observed_high=observed.high,
            )
        )
    return ProbabilityScore(
        brier=float(np.square(p - outcome).mean()),
        brier_of_prevalence=float(outcome.mean() * (1 - outcome.mean())),
        calibration_error=gap,
        bins=tuple(parts),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1:
        raise InputDataError(f"arrays of shape {a.shape} and {b.shape} do not belong together")
    if not len(a):
        raise InputDataError("there is no compound to judge a ranking on")
    return a, b


def _check_finite(values: NDArray[Any], what: str) -> None:
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise InputDataError(f"{what} of row {row} is {values[row]}")
