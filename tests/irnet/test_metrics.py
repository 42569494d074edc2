import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, norm, spearmanr
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)
from uncertainty_toolbox import metrics_calibration

from irnet import DataError, metrics

values = st.integers(2, 40).flatmap(
    lambda n: arrays(np.float64, (2, n), elements=st.integers(-50, 50).map(lambda i: i / 8))
)


@given(values)
def test_against_scikit_learn_and_scipy(pair: np.ndarray) -> None:
    predicted, true = pair
    assert metrics.mae(predicted, true) == pytest.approx(mean_absolute_error(true, predicted))
    assert metrics.rmse(predicted, true) == pytest.approx(root_mean_squared_error(true, predicted))
    assert metrics.bias(predicted, true) == pytest.approx(predicted.mean() - true.mean(), abs=1e-9)
    if np.ptp(predicted) > 0 and np.ptp(true) > 0:
        expected = spearmanr(predicted, true).statistic
        assert metrics.spearman(predicted, true) == pytest.approx(expected, abs=1e-9)
    else:
        assert np.isnan(metrics.spearman(predicted, true))


def test_error_quantile() -> None:
    assert metrics.error_quantile(np.arange(101.0), np.zeros(101), 0.9) == 90.0


def test_bootstrap_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    predicted, true = generator.normal(size=(2, 300))
    found = metrics.bootstrap(metrics.mae, predicted, true, resamples=3000)
    expected = scipy_bootstrap(
        (np.abs(predicted - true),), np.mean, n_resamples=3000, method="percentile", rng=1
    ).confidence_interval
    assert found.low < found.value < found.high
    assert found.low == pytest.approx(expected.low, abs=0.01)
    assert found.high == pytest.approx(expected.high, abs=0.01)


def test_bootstrap_depends_on_its_seed_and_level() -> None:
    predicted, true = np.random.default_rng(0).normal(size=(2, 50))
    first = metrics.bootstrap(metrics.bias, predicted, true, resamples=200)
    assert first == metrics.bootstrap(metrics.bias, predicted, true, resamples=200)
    assert first != metrics.bootstrap(metrics.bias, predicted, true, resamples=200, seed=1)
    narrow = metrics.bootstrap(metrics.bias, predicted, true, resamples=200, level=0.5)
    assert narrow.high - narrow.low < first.high - first.low


def test_one_row_has_no_interval() -> None:
    interval = metrics.bootstrap(metrics.mae, [1.0], [3.0])
    assert interval.value == 2.0
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([1.0], [1.0, 2.0], "shape"),
        ([], [], "no rows"),
        ([1.0, np.nan], [1.0, 2.0], "predicted row 1 is nan"),
        ([1.0, 2.0], [np.inf, 2.0], "true row 0 is inf"),
    ],
)
def test_bad_input(predicted: list[float], true: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.mae(predicted, true)


@given(st.integers(1, 2000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_proportion_against_scipy(trials: int, share: float, level: float) -> None:
    successes = round(share * trials)
    found = metrics.proportion(successes, trials, level=level)
    expected = binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert found.value == successes / trials
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_proportions(successes: int, trials: int) -> None:
    with pytest.raises(DataError, match="no share"):
        metrics.proportion(successes, trials)


def test_coverage_counts_both_ends_and_takes_a_level() -> None:
    found = metrics.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0.5, 1.01])
    assert found.value == 0.75
    assert found == metrics.proportion(3, 4)
    wide = metrics.coverage([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0.5, 1.01], level=0.99)
    assert wide == metrics.proportion(3, 4, level=0.99)


def test_intervals_upside_down_or_without_rows() -> None:
    with pytest.raises(DataError, match=r"row 1 ends at 0\.0, below its start 2\.0"):
        metrics.coverage([0, 2], [1, 0], [0, 0])
    with pytest.raises(DataError, match="row 0 ends"):
        metrics.sharpness([1.0], [0.0])
    with pytest.raises(DataError, match="no rows"):
        metrics.sharpness([], [])
    with pytest.raises(DataError, match="true row 0 is nan"):
        metrics.coverage([0.0], [1.0], [np.nan])


def test_sharpness_is_the_mean_width() -> None:
    assert metrics.sharpness([0, -1], [1, 2]) == 2.0


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_reliability_against_uncertainty_toolbox(factor: float, shift: float) -> None:
    generator = np.random.default_rng(0)
    true, std = generator.normal(size=500), np.full(500, factor)
    predicted = np.full(500, shift)

    def interval(level: float) -> tuple[np.ndarray, np.ndarray]:
        half = std * norm.ppf((1 + level) / 2)
        return predicted - half, predicted + half

    curve = metrics.reliability(interval, true)
    assert curve.rows == 500
    assert curve.nominal == metrics.NOMINAL_LEVELS == tuple(np.arange(5, 100, 5) / 100)
    for level, observed in zip(curve.nominal, curve.observed, strict=True):
        expected = metrics_calibration.get_proportion_in_interval(predicted, std, true, level)
        assert observed == pytest.approx(expected, abs=1e-12)
    area = metrics_calibration.miscalibration_area_from_proportions(
        np.array([0.0, *curve.nominal, 1.0]), np.array([0.0, *curve.observed, 1.0])
    )
    assert curve.miscalibration_area == pytest.approx(area, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=19, max_size=19).map(sorted))
def test_miscalibration_area_against_a_fine_grid(observed: list[float]) -> None:
    curve = metrics.Reliability(metrics.NOMINAL_LEVELS, tuple(observed), 100)
    x = np.linspace(0, 1, 20001)
    y = np.interp(x, [0, *curve.nominal, 1], [0, *observed, 1])
    assert curve.miscalibration_area == pytest.approx(np.trapezoid(np.abs(y - x), x), abs=1e-4)


def test_reliability_takes_levels() -> None:
    curve = metrics.reliability(lambda level: ([0.0], [level]), [0.4], levels=(0.3, 0.5))
    assert curve.observed == (0.0, 1.0)


labelled = st.integers(2, 5).flatmap(
    lambda classes: st.integers(2, 40).flatmap(
        lambda rows: st.tuples(
            arrays(np.float64, (rows, classes), elements=st.integers(1, 8).map(float)),
            arrays(np.int64, rows, elements=st.integers(0, classes - 1)),
        )
    )
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true:UserWarning")
@given(labelled)
def test_measures_of_classes_are_those_of_scikit_learn(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    amounts, true = drawn
    probabilities = amounts / amounts.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    numbers = range(probabilities.shape[1])
    assert metrics.accuracy(predicted, true) == pytest.approx(accuracy_score(true, predicted))
    assert metrics.balanced_accuracy(predicted, true) == pytest.approx(
        balanced_accuracy_score(true, predicted)
    )
    assert metrics.f1_scores(predicted, true, len(numbers)) == pytest.approx(
        f1_score(true, predicted, average=None, labels=list(numbers), zero_division=np.nan),
        nan_ok=True,
    )
    assert metrics.log_loss(probabilities, true) == pytest.approx(
        log_loss(true, probabilities, labels=list(numbers))
    )
    for number in numbers:
        scores, positive = probabilities[:, number], true == number
        auc, precision = (
            metrics.roc_auc(scores, positive),
            metrics.average_precision(scores, positive),
        )
        if positive.any() and not positive.all():
            assert auc == pytest.approx(roc_auc_score(positive, scores))
        else:
            assert np.isnan(auc)
        if positive.any():
            assert precision == pytest.approx(average_precision_score(positive, scores))
        else:
            assert np.isnan(precision)


def test_a_class_that_was_impossible_costs_no_infinite_loss() -> None:
    assert metrics.log_loss([[1.0, 0.0]], [1]) == pytest.approx(
        log_loss([1], [[1.0, 0.0]], labels=[0, 1])
    )


@pytest.mark.parametrize(
    ("probabilities", "true", "message"),
    [
        ([[0.5, 0.5]], [2], "true row 0 is 2.0, the number of none of 2 classes"),
        ([[0.5, 0.5]], [0, 1], r"shape \(1, 2\), true \(2,\)"),
        ([0.5, 0.5], [0, 1], r"shape \(2,\)"),
        ([[np.nan, 0.5]], [0], "row 0 is nan"),
    ],
)
def test_probabilities_that_are_none(
    probabilities: list[object], true: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        metrics.log_loss(probabilities, true)
