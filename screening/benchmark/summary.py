"""Results of trials that differ only in their seed, as one: mean, spread and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from irnet import metrics
from screening.benchmark.trial import HELD_OUT, TestErrors, Trial, TrialResult

DECIMALS: Final = 4
"""Decimals of an error whose spread is not known, and at most of one whose spread is."""

CONFIDENCE: Final = 0.95

_NORMAL_HALF_WIDTH: Final = 1.959964
"""Of a 95 % interval in standard deviations of a normal distribution."""


@dataclass(frozen=True)
class Measured:
    """A figure measured with several seeds.

    Attributes:
        mean: Over the seeds.
        deviation: Standard deviation over the seeds, n - 1 in the denominator; None of one seed.
        seeds: How many.
    """

    mean: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured | None:
        """Return mean and deviation of at least one value; None where there is none."""
        if not values:
            return None
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))

    def __str__(self) -> str:
        """Return the figure with no digit that its deviation does not support."""
        return f"{show_value(self.mean, self.deviation)} ({self.seeds})"


def show_value(mean: float, deviation: float | None) -> str:
    """Write a mean and its deviation, both to the deviation's last certain digit.

    The deviation keeps one digit, or two where the first is 1: a handful of seeds supports no more.

    Args:
        mean: Finite.
        deviation: Finite and not negative; None where it is not known.

    Returns:
        The text; the mean alone where there is no deviation.

    >>> show_value(0.041234, 0.00063), show_value(0.041234, 0.0014), show_value(0.041234, None)
    ('0.0412 ± 0.0006', '0.0412 ± 0.0014', '0.0412')
    >>> show_value(215.037, 23.0), show_value(0.5, 0.0)
    ('220 ± 20', '0.5000 ± 0')
    """
    if deviation is None:
        return show_number(mean)
    if not deviation:
        return f"{show_number(mean)} ± 0"
    decimals = _certain_decimals(deviation)
    if decimals > DECIMALS:
        return f"{mean:.{DECIMALS}f} ± <{10.0**-DECIMALS:.{DECIMALS}f}"
    return f"{_round_to(mean, decimals)} ± {_round_to(deviation, decimals)}"


def show_number(value: float) -> str:
    """Write an error whose spread is not known.

    >>> show_number(0.041234), show_number(225.671)
    ('0.0412', '226')
    """
    decimals = DECIMALS if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{decimals}f}"


@dataclass(frozen=True)
class Summary:
    """Trials that are the same but for their seed, and what came out of them.

    Attributes:
        trials: As they are defined, at least one.
        results: Of those that are done, failures not among them.
        failures: Results of those that failed.
    """

    trials: tuple[Trial, ...]
    results: tuple[TrialResult, ...]
    failures: tuple[TrialResult, ...]

    @property
    def trial(self) -> Trial:
        """The first of the trials: what all have in common, and a seed."""
        return self.trials[0]

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Test groups that every result has, in the order of the first."""
        if not self.results:
            return ()
        return tuple(
            group
            for group in self.results[0].test
            if all(group in result.test for result in self.results)
        )

    def errors(self, group: str = HELD_OUT) -> tuple[TestErrors, ...]:
        """Return the errors on a test group, one for each result that has it."""
        return tuple(result.test[group] for result in self.results if group in result.test)

    def mae(self, group: str = HELD_OUT) -> Measured | None:
        """Return the mean absolute error on a test group; None where it was not measured."""
        return Measured.of([errors.mae for errors in self.errors(group)])

    def figure(self, name: str) -> Measured | None:
        """Return one of the results' further figures; None where it was not measured."""
        values = [result.figures[name] for result in self.results if name in result.figures]
        return Measured.of(values)

    def seconds(self) -> Measured | None:
        """Return how long a training took; None where nothing was trained."""
        return Measured.of([result.seconds for result in self.results])


def gather(trials: Sequence[Trial], results: Iterable[TrialResult]) -> tuple[Summary, ...]:
    """Put trials and results together that differ only in their seed.

    Args:
        trials: All trials of a benchmark.
        results: Those that there are, failures among them.

    Returns:
        One summary for each series in the order of the trials, also where nothing is done.
    """
    by_trial = {result.trial: result for result in results}
    series: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        series.setdefault((trial.benchmark, trial.series), []).append(trial)
    return tuple(
        Summary(
            tuple(members),
            tuple(result for result in found if result.failure is None),
            tuple(result for result in found if result.failure is not None),
        )
        for members in series.values()
        for found in ([by_trial[trial] for trial in members if trial in by_trial],)
    )


def bound(errors: Sequence[TestErrors], *, seed: int = 0) -> metrics.Interval:
    """Interval of the mean absolute error over the rows of a test group.

    It says how much the mean would vary with other compounds of the same kind, which the spread
    over seeds does not. Groups whose results hold every row's error get a percentile bootstrap over
    the rows, whose errors are first averaged over the seeds. Larger ones get the mean ± 1.96
    standard errors, where the deviation of the absolute error over the rows follows from its mean
    and mean square: sqrt(RMSE² - MAE²).

    Args:
        errors: Of one model with one seed each, at least one, all on the same rows.
        seed: Of the bootstrap.

    Returns:
        Mean over the seeds and ends of its 95 % interval; NaN ends of a single row.
    """
    rows = errors[0].rows
    mean = float(np.mean([each.mae for each in errors]))
    if all(len(each.errors) == rows for each in errors):
        sizes = np.mean([each.errors for each in errors], axis=0)
        return metrics.bootstrap(metrics.mae, sizes, np.zeros(rows), level=CONFIDENCE, seed=seed)
    variances = [max(0.0, each.rmse**2 - each.mae**2) for each in errors]
    half = _NORMAL_HALF_WIDTH * math.sqrt(float(np.mean(variances)) / (rows - 1))
    return metrics.Interval(mean, mean - half, mean + half)


def average_quantiles(errors: Sequence[TestErrors]) -> tuple[float, ...]:
    """Mean over seeds of each percentile of the absolute error.

    Args:
        errors: Of one model with one seed each, at least one.

    Returns:
        Percentiles at 0, 1, ..., 100 %.
    """
    return tuple(np.mean([each.quantiles for each in errors], axis=0).tolist())


def _certain_decimals(deviation: float) -> int:
    """Decimals to which a deviation is written: one digit, or two if the first is 1."""
    mantissa, exponent = f"{deviation:.1e}".split("e")
    if mantissa.startswith("1"):
        return 1 - int(exponent)
    return -int(f"{deviation:.0e}".split("e")[1])


def _round_to(value: float, decimals: int) -> str:
    return f"{round(value, decimals):.{max(0, decimals)}f}"
