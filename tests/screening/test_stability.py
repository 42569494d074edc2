from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from irnet.reference import TrainingReference
from irnet.scorer import Prediction
from irnet.uncertainty import Uncertainty
from screening.phases import Phases
from screening.score import Scores
from screening.stability import LEAST_NOISE, judge_stability, place_on_hull

ROWS = 600


@pytest.fixture(scope="module")
def uncertainty() -> Uncertainty:
    """Calibrated on errors of standard deviation 0.1 around a bias of 0.04."""
    generator = np.random.default_rng(1)
    features = generator.normal(size=(ROWS, 6)).astype(np.float32)
    target = generator.normal(size=ROWS)
    members = target - 0.04 + 0.1 * generator.normal(size=(3, ROWS)) / np.sqrt(3)
    members += 0.08 * generator.normal(size=ROWS)
    prediction = Prediction(members.mean(axis=0), members.std(axis=0, ddof=1), members)
    reference = TrainingReference.fit(features, size=100)
    return Uncertainty.fit(
        target, prediction, None, reference.distance(features), reference=reference
    )


def spread(rows: int, members: int, width: float, seed: int = 3) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).normal(size=(rows, members)) * width
    return values - values.mean(axis=1, keepdims=True)


def test_energies_above_a_given_hull_are_differences(uncertainty: Uncertainty) -> None:
    mean, hull = np.array([-1.0, 0.2, -0.3]), np.array([[-1.2], [0.0], [-0.1]])
    found = judge_stability(
        mean, mean[:, None] + spread(3, 4, 0.01), mean - 0.5, hull,
        error_scale=np.full(3, 0.1), uncertainty=uncertainty, within=0.05,
    )  # fmt: skip
    np.testing.assert_allclose(found.energy_above_hull, [0.2, 0.2, -0.2])
    np.testing.assert_allclose(found.forest_energy_above_hull, [-0.3, -0.3, -0.7])
    assert found.p_stable[2] > 0.9 > 0.1 > found.p_stable[0]


def test_every_member_has_its_own_hull_and_the_forest_too(uncertainty: Uncertainty) -> None:
    hull = np.array([[-0.9, -0.8, -1.0, -0.7]])
    found = judge_stability(
        np.array([-1.0]), np.array([[-0.9, -1.1]]), np.array([-1.5]), hull,
        error_scale=np.array([0.1]), uncertainty=uncertainty, within=0.0,
    )  # fmt: skip
    assert found.energy_above_hull == pytest.approx([-0.1])
    assert found.forest_energy_above_hull == pytest.approx([-0.8])
    without = judge_stability(
        np.array([-1.0]), np.array([[-0.9, -1.1]]), np.array([-1.5]), hull[:, :3],
        error_scale=np.array([0.1]), uncertainty=uncertainty, within=0.0,
    )  # fmt: skip
    assert np.isnan(without.forest_energy_above_hull).all()
    with pytest.raises(ValueError, match="expected 1, 3 or 4"):
        judge_stability(
            np.array([-1.0]), np.array([[-0.9, -1.1]]), np.array([-1.5]), hull[:, :2],
            error_scale=None, uncertainty=None, within=0.0,
        )  # fmt: skip


def test_with_given_competitors_the_scatter_is_the_calibrated_one(
    uncertainty: Uncertainty,
) -> None:
    rows, scale = 50, np.geomspace(0.02, 0.3, 50)
    noise = uncertainty.noise_std(scale)
    members = noise[:, None] * 0.3 * spread(rows, 4, 1.0)
    found = judge_stability(
        np.zeros(rows), members, np.zeros(rows), np.zeros((rows, 1)),
        error_scale=scale, uncertainty=uncertainty, within=0.05,
    )  # fmt: skip
    np.testing.assert_allclose(found.std, noise)


def test_errors_that_candidate_and_competitors_share_cancel(uncertainty: Uncertainty) -> None:
    members = spread(1, 4, 0.08)
    scale = np.array([0.1])
    moving = np.concatenate([[[0.0]], members], axis=1)
    against = np.concatenate([[[0.0]], -members], axis=1)
    stds = [
        judge_stability(
            np.zeros(1), members, np.zeros(1), hull,
            error_scale=scale, uncertainty=uncertainty, within=0.0,
        ).std[0]
        for hull in (moving, np.zeros((1, 1)), against)
    ]  # fmt: skip
    assert stds[0] < stds[1] < stds[2]
    noise = uncertainty.noise_std(scale)[0]
    assert stds[0] >= LEAST_NOISE * noise


def test_the_probability_is_that_of_drawing_members_and_noise(uncertainty: Uncertainty) -> None:
    generator = np.random.default_rng(7)
    scale, within = np.array([0.12]), 0.03
    members = spread(1, 4, 0.06) + 0.02
    hull = np.concatenate([[[0.0]], spread(1, 4, 0.04, seed=9)], axis=1)
    found = judge_stability(
        members.mean(axis=1), members, np.zeros(1), hull,
        error_scale=scale, uncertainty=uncertainty, within=within,
    )  # fmt: skip
    scores = uncertainty.scores[int(np.searchsorted(uncertainty.edges, scale[0]))]
    share = members.var() / uncertainty.noise_std(scale)[0] ** 2
    shrink = np.sqrt(np.clip(1 - share, LEAST_NOISE**2, 1))
    draws = scores.mean() + shrink * (generator.choice(scores, 200_000) - scores.mean())
    drawn = generator.choice((members - hull[:, 1:])[0], 200_000) + draws * scale[0]
    assert found.p_stable[0] == pytest.approx((drawn <= within).mean(), abs=0.01)
    assert found.std[0] == pytest.approx(drawn.std(), rel=0.01)


def test_the_error_of_a_predicted_hull_widens_the_distribution(uncertainty: Uncertainty) -> None:
    """The calibration's errors are normal here, so that their sum with another one is known."""
    generator = np.random.default_rng(8)
    scale, hull_noise, within = np.array([0.12]), np.array([0.2]), 0.03
    members = spread(1, 4, 0.06) + 0.1
    hull = np.concatenate([[[0.0]], spread(1, 4, 0.05, seed=9)], axis=1)
    found = judge_stability(
        members.mean(axis=1), members, np.zeros(1), hull,
        error_scale=scale, uncertainty=uncertainty, within=within, hull_noise=hull_noise,
    )  # fmt: skip
    noise = uncertainty.noise_std(scale)[0]
    own = generator.normal(0.0, np.sqrt(noise**2 - members.var()), 200_000)
    other = generator.normal(0.0, np.sqrt(hull_noise[0] ** 2 - hull[:, 1:].var()), 200_000)
    bias = scale[0] * uncertainty.scores[int(np.searchsorted(uncertainty.edges, 0.12))].mean()
    drawn = generator.choice((members - hull[:, 1:])[0], 200_000) + own + bias - other
    assert found.p_stable[0] == pytest.approx((drawn <= within).mean(), abs=0.02)
    assert found.std[0] == pytest.approx(drawn.std(), rel=0.01)


def test_given_competitors_have_no_error(uncertainty: Uncertainty) -> None:
    members, scale = spread(1, 4, 0.05), np.array([0.1])
    with_noise, without = (
        judge_stability(
            np.zeros(1), members, np.zeros(1), np.zeros((1, 1)),
            error_scale=scale, uncertainty=uncertainty, within=0.05, hull_noise=noise,
        )
        for noise in (np.array([0.3]), None)
    )  # fmt: skip
    assert with_noise.p_stable == without.p_stable
    assert with_noise.std == without.std


def some_scores(members: NDArray[np.float64], error_scale: float) -> Scores:
    """Scores of candidates, shape (m, members); the forest's are lower by 0.1."""
    mean = members.mean(axis=1)
    return Scores(
        mean=mean,
        std=members.std(axis=1, ddof=1),
        low=mean - 0.1,
        high=mean + 0.1,
        distance=np.zeros(len(mean)),
        error_scale=np.full(len(mean), error_scale),
        members=members,
        forest=mean - 0.1,
        network_seconds=0.0,
        forest_seconds=0.0,
        uncertainty_seconds=0.0,
    )


@pytest.mark.parametrize("forest", [True, False])
def test_the_hull_of_raised_competitors_tells_the_error_of_the_hull(
    uncertainty: Uncertainty, forest: bool
) -> None:
    """LiF and NaF raised by 0.1 and 0.3: between them the hull is off by half of each."""
    energies = np.array([[-3.0, -3.1, -2.9, -3.2, -2.9], [-2.8, -2.8, -2.8, -2.7, -2.5]])
    kept = [0, 1, 2, 3, 4] if forest else [0, 1, 2, 4]
    phases = Phases.of(["LiF", "NaF"], energies[:, kept])
    numbers = np.array([[3, 11, 9]] * 2, dtype=np.uint8)
    scores = some_scores(np.array([[-2.9, -2.8], [np.nan, np.nan]]), 0.1)
    placement = place_on_hull(phases, numbers, [1, 1, 2], scores, uncertainty, within=0.05)
    expected = judge_stability(
        scores.mean[:1], scores.members[:1], scores.forest[:1],
        np.array([[-2.9, -2.95, -2.85, -2.95][: 4 if forest else 3]]),
        error_scale=np.array([0.1]), uncertainty=uncertainty, within=0.05,
        hull_noise=np.array([0.2]),
    )  # fmt: skip
    found = placement.stability
    assert found.p_stable[0] == pytest.approx(expected.p_stable[0])
    assert found.std[0] == pytest.approx(expected.std[0])
    assert found.energy_above_hull[0] == pytest.approx(0.05)
    if forest:
        assert found.forest_energy_above_hull[0] == pytest.approx(0.0)
    else:
        assert np.isnan(found.forest_energy_above_hull[0])
    assert np.isnan(found.p_stable[1])


def test_competitors_of_a_model_without_calibration_are_not_raised() -> None:
    phases = Phases.of(["LiF"], [[-3.0, -3.1, -2.9, -3.2]])
    numbers = np.array([[3, 9]], dtype=np.uint8)
    scores = some_scores(np.array([[-2.9, -2.8]]), np.nan)
    found = place_on_hull(phases, numbers, [1, 1], scores, None, within=0.05).stability
    assert found.energy_above_hull == pytest.approx([0.15])
    assert found.forest_energy_above_hull == pytest.approx([-2.95 + 3.2])
    assert found.std == pytest.approx([np.std([0.2, 0.1], ddof=1)])


@given(
    energies=st.lists(st.floats(-1, 1), min_size=2, max_size=15), within=st.floats(0, 0.5)
)  # fmt: skip
def test_lower_is_more_probably_stable(
    uncertainty: Uncertainty, energies: list[float], within: float
) -> None:
    mean = np.sort(energies)
    members = mean[:, None] + spread(1, 3, 0.05)

    def probabilities(tolerance: float) -> NDArray[np.float64]:
        return judge_stability(
            mean, members, np.full(len(mean), np.nan), np.zeros((len(mean), 1)),
            error_scale=np.full(len(mean), 0.1), uncertainty=uncertainty, within=tolerance,
        ).p_stable  # fmt: skip

    assert (np.diff(probabilities(within)) <= 0).all()
    assert (probabilities(within + 0.1) >= probabilities(within)).all()


def test_without_calibration_there_is_no_probability() -> None:
    members = np.array([[0.1, 0.3]])
    found = judge_stability(
        np.array([0.2]), members, np.array([np.nan]), np.zeros((1, 1)),
        error_scale=None, uncertainty=None, within=0.05,
    )  # fmt: skip
    assert np.isnan(found.p_stable).all()
    assert found.std == pytest.approx([np.std([0.1, 0.3], ddof=1)])
    alone = judge_stability(
        np.array([0.2]), members[:, :1], np.array([np.nan]), np.zeros((1, 1)),
        error_scale=None, uncertainty=None, within=0.05,
    )  # fmt: skip
    assert np.isnan(alone.std).all()
    assert np.isnan(alone.forest_energy_above_hull).all()
