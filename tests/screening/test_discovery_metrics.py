from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    root_mean_squared_error,
)

from screening.discovery_metrics import (
    Classification,
    calculations_for,
    classify,
    count_found,
    measure_errors,
    order_by,
    precision_at,
    roc_auc,
    score_probabilities,
)
from screening.errors import InputDataError

flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
scored = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=60)


def drawn(n: int = 500, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores with ties, and outcomes that they tell something of."""
    random = np.random.default_rng(seed)
    score = random.integers(0, 21, n) / 20
    return score, random.random(n) < score


def test_example_counted_by_hand() -> None:
    """Ten compounds, four stable; three selected, two of them stable."""
    stable = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    selected = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 0], dtype=bool)
    found = classify(stable, selected)
    assert found == Classification(2, 1, 5, 2)
    assert found.prevalence == 0.4
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == 0.5
    assert found.f1 == pytest.approx(4 / 7)
    assert found.acceleration == pytest.approx((2 / 3) / 0.4)
    assert found.ceiling == 2.5
    assert found.false_negative_rate == 0.5
    assert found.false_positive_rate == pytest.approx(1 / 6)
    assert found.true_negative_rate == pytest.approx(5 / 6)
    assert found.accuracy == 0.7
    assert (found.rows, found.stable, found.selected) == (10, 4, 3)


def test_published_figures_belong_together() -> None:
    """Voronoi Random Forest on Matbench Discovery (its model card): three digits each."""
    precision, recall, f1, acceleration = 0.241, 0.535, 0.333, 1.58
    prevalence = precision / acceleration
    stable = round(1_000_000 * prevalence)
    hits = round(recall * stable)
    selected = round(hits / precision)
    found = Classification(
        hits, selected - hits, 1_000_000 - stable - selected + hits, stable - hits
    )
    assert found.f1 == pytest.approx(f1, abs=2e-3)
    assert found.acceleration == pytest.approx(acceleration, abs=2e-3)


@given(flags)
def test_classification_is_that_of_scikit_learn(rows: list[tuple[bool, bool]]) -> None:
    stable, selected = (np.array(column) for column in zip(*rows, strict=True))
    found = classify(stable, selected)
    counts = confusion_matrix(stable, selected, labels=[False, True])
    assert counts.tolist() == [
        [found.true_negatives, found.false_positives],
        [found.false_negatives, found.true_positives],
    ]
    for ours, theirs in (
        (found.precision, precision_score(stable, selected, zero_division=np.nan)),
        (found.recall, recall_score(stable, selected, zero_division=np.nan)),
        (found.f1, f1_score(stable, selected, zero_division=np.nan)),
        (found.accuracy, accuracy_score(stable, selected)),
    ):
        assert ours == pytest.approx(theirs, nan_ok=True)
    if found.stable:
        assert found.recall + found.false_negative_rate == pytest.approx(1)
    if found.stable < found.rows:
        assert found.false_positive_rate + found.true_negative_rate == pytest.approx(1)
    if found.stable and found.selected:
        assert 0 <= found.acceleration <= found.ceiling * (1 + 1e-12)


@given(scored)
def test_area_under_the_curve_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    score, stable = (np.array(column) for column in zip(*rows, strict=True))
    area = roc_auc(score, stable)
    if stable.all() or not stable.any():
        assert math.isnan(area)
    else:
        assert area == pytest.approx(roc_auc_score(stable, score))
        assert roc_auc(-score, stable) == pytest.approx(1 - area)


@given(scored)
def test_no_ranking_finds_faster_than_the_oracle(rows: list[tuple[int, bool]]) -> None:
    score, stable = (np.array(column) for column in zip(*rows, strict=True))
    found = count_found(stable, order_by(score))
    best = count_found(stable, order_by(stable))
    assert (found <= best).all()
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert found[-1] == best[-1] == stable.sum()
    assert best.tolist() == np.minimum(np.arange(len(stable) + 1), stable.sum()).tolist()
    if stable.any():
        for share in (0.1, 0.5, 1.0):
            spent = calculations_for(found, share)
            assert found[spent] >= share * stable.sum() - 1e-9
            assert found[spent - 1] < share * stable.sum()


def test_later_keys_order_what_earlier_ones_leave_equal() -> None:
    order = order_by([0.5, 0.9, 0.5, 0.9], [1.0, -2.0, 3.0, -1.0])
    assert order.tolist() == [3, 1, 2, 0]


def test_precision_of_shortlists() -> None:
    found = count_found([True, False, True, True], [0, 2, 1, 3])
    assert found.tolist() == [0, 1, 2, 2, 3]
    assert precision_at(found, (1, 2, 3, 4, 5)) == {1: 1.0, 2: 1.0, 3: 2 / 3, 4: 0.75}


def test_errors_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    true = random.normal(size=200)
    predicted = true + random.normal(0.1, 0.3, 200)
    errors = measure_errors(predicted, true)
    assert errors.mae == pytest.approx(mean_absolute_error(true, predicted))
    assert errors.rmse == pytest.approx(root_mean_squared_error(true, predicted))
    assert errors.r2 == pytest.approx(r2_score(true, predicted))
    assert errors.bias == pytest.approx((predicted - true).mean())
    assert math.isnan(measure_errors([0.1, 0.2], [0.0, 0.0]).r2)


def test_reliability_is_that_of_scikit_learn() -> None:
    probability, stable = drawn()
    score = score_probabilities(probability, stable)
    assert score.brier == pytest.approx(brier_score_loss(stable, probability))
    assert score.brier_of_prevalence == pytest.approx(
        brier_score_loss(stable, np.full(len(stable), stable.mean()))
    )
    # scikit-learn's bins are closed above, these below: probabilities off the edges agree
    inside = np.clip(probability + 0.01, 0, 0.99)
    ours = score_probabilities(inside, stable)
    observed, promised = calibration_curve(stable, inside, n_bins=10)
    assert [each.observed for each in ours.bins] == pytest.approx(observed.tolist())
    assert [each.promised for each in ours.bins] == pytest.approx(promised.tolist())
    weights = [each.rows / len(stable) for each in ours.bins]
    gaps = np.abs(observed - promised)
    assert ours.calibration_error == pytest.approx(float(weights @ gaps))


def test_true_probabilities_are_reliable_and_overconfident_ones_are_not() -> None:
    random = np.random.default_rng(2)
    true = random.random(20_000)
    stable = random.random(20_000) < true
    assert score_probabilities(true, stable).calibration_error < 0.02
    bold = np.where(true > 0.5, 0.97, 0.03)
    assert score_probabilities(bold, stable).calibration_error > 0.2
    for each in score_probabilities(true, stable).bins:
        assert each.low <= each.promised <= each.high
        assert each.observed_low <= each.observed <= each.observed_high


def test_last_bin_holds_certainty() -> None:
    (only,) = score_probabilities([1.0, 1.0], [True, False]).bins
    assert (only.low, only.high, only.rows, only.observed) == (0.9, 1.0, 2, 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classify([], []), "no compound"),
        (lambda: classify([True], [True, False]), "do not belong together"),
        (lambda: roc_auc([np.nan, 1.0], [True, False]), "score of row 0 is nan"),
        (lambda: measure_errors([1.0], [np.inf]), "true energy above hull of row 0 is inf"),
        (lambda: score_probabilities([1.2], [True]), "not between 0 and 1"),
    ],
)
def test_unusable_input_is_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InputDataError, match=message):
        call()
