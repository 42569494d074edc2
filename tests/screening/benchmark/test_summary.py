from __future__ import annotations

import math
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from screening.benchmark.summary import (
    DECIMALS,
    Measured,
    average_quantiles,
    bound,
    gather,
    show_number,
    show_value,
)
from screening.benchmark.trial import MOST_ROW_ERRORS
from tests.screening.benchmark.made_up import make_errors, make_result, make_trial

MEANS = st.floats(-2000, 2000, allow_nan=False)
DEVIATIONS = st.floats(1e-9, 900, allow_nan=False)


@given(MEANS, DEVIATIONS)
def test_no_digit_is_written_that_the_deviation_does_not_support(mean: float, sd: float) -> None:
    text = show_value(mean, sd)
    value, spread = text.replace(",", "").split(" ± ")
    if spread.startswith("<"):
        assert sd < float(spread[1:])
        assert abs(Decimal(value).as_tuple().exponent) == DECIMALS
        return
    # both end at the same place, which is that of the deviation's first or second digit
    assert Decimal(value).as_tuple().exponent == Decimal(spread).as_tuple().exponent
    digits = re.sub(r"^0+|\.", "", spread.replace(".", "")).strip("0") or "0"
    assert len(digits) == 1 or (len(digits) == 2 and digits[0] == "1")
    unit = 10.0 ** -(len(spread.partition(".")[2]))
    if sd < 9.5:
        assert abs(float(value) - mean) <= 0.5001 * unit
        assert abs(float(spread) - sd) <= 0.5001 * unit
        assert unit <= sd * 1.06


@given(MEANS)
def test_a_figure_without_deviation_has_few_digits(mean: float) -> None:
    text = show_number(mean).replace(",", "")
    assert float(text) == pytest.approx(mean, abs=0.51 * 10.0 ** -len(text.partition(".")[2]))
    assert len(text.partition(".")[2]) <= DECIMALS


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [
        (0.0411, None, "0.0411"),
        (0.04114, 0.0006, "0.0411 ± 0.0006"),
        (0.04114, 0.0099, "0.04 ± 0.01"),
        (0.04114, 0.0123, "0.041 ± 0.012"),
        (0.04114, 1e-7, "0.0411 ± <0.0001"),
        (0.04114, 0.0, "0.0411 ± 0"),
        (12.5, 3.4, "12 ± 3"),
        (225.671, 14.2, "226 ± 14"),
        (1234.5, 250.0, "1200 ± 200"),
    ],
)
def test_figures_are_written_as_one_would_by_hand(
    mean: float, deviation: float | None, text: str
) -> None:
    assert show_value(mean, deviation) == text


def test_deviations_are_those_of_a_sample() -> None:
    measured = Measured.of([1.0, 2.0, 4.0])
    assert measured is not None
    assert measured.deviation == pytest.approx(stats.tstd([1.0, 2.0, 4.0]))
    assert (measured.mean, measured.seeds) == (pytest.approx(7 / 3), 3)
    assert Measured.of([0.5]) == Measured(0.5, None, 1)
    assert Measured.of([]) is None


def test_trials_are_gathered_by_series_and_keep_what_is_missing() -> None:
    trials = [make_trial("net", "irnet-17", seed=seed) for seed in range(3)]
    alone = make_trial("forest", "random_forest")
    other = make_trial("net", "irnet-17", seed=9)
    results = [
        make_result(trials[2], 0.2),
        make_result(trials[0], 0.1, failure="NaN", test={}),
        make_result(other, 0.3),
    ]
    net, forest = gather([*trials, alone], results)
    assert [each.seed for each in net.trials] == [0, 1, 2]
    assert [each.trial.seed for each in net.results] == [2]
    assert [each.failure for each in net.failures] == ["NaN"]
    assert (forest.results, forest.failures, forest.mae()) == ((), (), None)
    assert net.mae() == Measured(pytest.approx(0.2), None, 1)


def test_series_of_two_benchmarks_are_not_mixed() -> None:
    trials = [make_trial("forest", "random_forest", benchmark=name) for name in ("a", "b")]
    assert [len(each.trials) for each in gather(trials, [])] == [1, 1]


def test_small_groups_get_the_bootstrap_of_scipy() -> None:
    errors = np.random.default_rng(3).exponential(0.2, size=11)
    interval = bound([make_errors(errors)])
    expected = stats.bootstrap(
        (errors,), np.mean, method="percentile", n_resamples=20_000, random_state=0
    ).confidence_interval
    assert interval.value == pytest.approx(errors.mean())
    assert interval.low == pytest.approx(expected.low, rel=0.06)
    assert interval.high == pytest.approx(expected.high, rel=0.06)


def test_large_groups_get_the_interval_of_the_standard_error() -> None:
    errors = np.random.default_rng(4).exponential(0.2, size=MOST_ROW_ERRORS + 1)
    measured = make_errors(errors)
    assert not measured.errors
    interval = bound([measured])
    low, high = stats.norm.interval(0.95, loc=errors.mean(), scale=stats.sem(errors))
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))


def test_errors_are_averaged_over_seeds_before_rows_are_drawn() -> None:
    rising, falling = np.linspace(0.1, 0.3, 12), np.linspace(0.3, 0.1, 12)
    both = bound([make_errors(rising), make_errors(falling)])
    # every row has the same mean error: other rows would change nothing
    assert (both.low, both.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert bound([make_errors(rising)]).low < 0.19


def test_a_single_row_has_no_interval() -> None:
    assert math.isnan(bound([make_errors([0.3])]).low)


def test_percentiles_are_averaged_over_seeds() -> None:
    found = average_quantiles([make_errors([0.0, 0.2]), make_errors([0.2, 0.4])])
    assert (found[0], found[50], found[100]) == pytest.approx((0.1, 0.2, 0.3))
