from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from irnet.metrics import NOMINAL_LEVELS
from screening.reliability import Intervals, join_intervals, join_members, measure_reliability


def gaussian(rows: int, width: float = 1.0) -> tuple[Intervals, NDArray[np.float64]]:
    """Predictions with normal errors of known size, and the truth; `width` 1 is calibrated."""
    random = np.random.default_rng(3)
    scale = random.uniform(0.05, 0.5, rows)
    mean = random.normal(size=rows)

    def ends(level: float) -> NDArray[np.float64]:
        return float(stats.norm.ppf((1 + level) / 2)) * scale * width

    half = np.stack([ends(level) for level in NOMINAL_LEVELS])
    intervals = Intervals(
        mean, np.full(rows, np.nan), scale, mean - ends(0.9), mean + ends(0.9),
        mean - half, mean + half,
    )  # fmt: skip
    return intervals, mean + random.normal(0, scale)


def test_calibrated_intervals_lie_on_the_diagonal() -> None:
    intervals, target = gaussian(4000)
    found = measure_reliability(intervals, target, group="B2", scheme="old", geometry="ideal")
    assert (found.group, found.scheme, found.geometry, found.n) == ("B2", "old", "ideal", 4000)
    assert found.expected == NOMINAL_LEVELS
    np.testing.assert_allclose(found.observed, found.expected, atol=0.03)
    assert found.miscalibration_area < 0.02
    inside = int(((intervals.low <= target) & (target <= intervals.high)).sum())
    wilson = stats.binomtest(inside, 4000).proportion_ci(0.95, method="wilson")
    assert found.coverage == inside / 4000
    assert found.coverage_low == pytest.approx(wilson.low)
    assert found.coverage_high == pytest.approx(wilson.high)
    assert found.sharpness == pytest.approx((intervals.high - intervals.low).mean())
    error = np.abs(intervals.mean - target)
    assert found.sorting == pytest.approx(stats.spearmanr(intervals.error_scale, error).statistic)
    assert found.spread_sorting is None  # a single member has no spread


def test_intervals_half_as_wide_hold_less() -> None:
    intervals, target = gaussian(2000, width=0.5)
    found = measure_reliability(replace(intervals, spread=intervals.mean), target, group="all")
    # P(|z| < 1.645 / 2) of the normal distribution
    assert found.coverage == pytest.approx(0.589, abs=0.03)
    assert found.miscalibration_area > 0.15
    assert found.sorting is not None
    assert found.spread_sorting is not None
    assert abs(found.spread_sorting) < 0.1 < found.sorting


def test_what_sorts_two_errors_is_not_reported() -> None:
    intervals, target = gaussian(2)
    assert measure_reliability(intervals, target, group="B2").sorting is None


def test_parts_join_to_the_whole() -> None:
    intervals, _ = gaussian(10)
    rows = np.arange(10)
    joined = join_intervals([intervals.select(rows[:3]), intervals.select(rows[3:])])
    for name, values in vars(intervals).items():
        np.testing.assert_array_equal(getattr(joined, name), values)


def test_members_join_as_in_the_scorer() -> None:
    members = np.array([[1.0, 2.0], [3.0, 2.0]])
    joined = join_members({"irnet": members.mean(axis=0), "irnet_member": members})
    assert joined.std.tolist() == [pytest.approx(np.sqrt(2)), 0.0]
    alone = join_members({"irnet": members[0], "irnet_member": members[:1]})
    assert np.isnan(alone.std).all()
