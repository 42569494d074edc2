import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

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
