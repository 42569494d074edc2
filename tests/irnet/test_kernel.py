"""Kernel ridge regression with learnt scales, against scikit-learn's Gaussian process.

The mean of a Gaussian process with fixed hyperparameters is kernel ridge regression.
"""

import os
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from irnet import kernel
from irnet.kernel import ScaledKernelRidge


def make_rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal features (count, 5), of which the second counts most and the last nothing."""
    x = np.random.default_rng(seed).normal(size=(count, 5))
    return x, np.sin(2 * x[:, 1]) + 0.3 * x[:, 0] * x[:, 2] + 0.1 * x[:, 3]


def fit_process(
    x: np.ndarray, y: np.ndarray, length: float, alpha: float
) -> GaussianProcessRegressor:
    process = GaussianProcessRegressor(Matern(length, nu=1.5), alpha=alpha, optimizer=None)
    return process.fit(x, y)


@pytest.mark.parametrize(("alpha", "length"), [(1e-3, 1.5), (0.1, 0.4)])
def test_predictions_are_those_of_a_gaussian_process(alpha: float, length: float) -> None:
    x, y = make_rows(400)
    fresh, _ = make_rows(150, seed=1)
    ours = ScaledKernelRidge(alpha, length).fit(x, y)
    scaled, asked = (np.clip(each, -3, 3) * ours.scales_ for each in (x, fresh))
    process = fit_process(scaled, y, ours.length_, alpha)
    np.testing.assert_allclose(ours.predict(fresh), process.predict(asked), rtol=0, atol=2e-4)


def test_scales_are_the_slopes_of_a_first_fit() -> None:
    x, y = make_rows(300)
    ours = ScaledKernelRidge(1e-2, 1.0).fit(x, y)
    clipped = np.clip(x, -3, 3)
    pairs = np.linalg.norm(clipped[:, None] - clipped, axis=2)[np.triu_indices(300, k=1)]
    process = fit_process(clipped, y, float(np.median(pairs)), 1e-2)
    step = 1e-4
    slopes = np.stack(
        [
            (process.predict(clipped + step * axis) - process.predict(clipped - step * axis))
            / (2 * step)
            for axis in np.eye(5)
        ],
        axis=1,
    )
    steep = np.square(slopes).mean(axis=0)
    np.testing.assert_allclose(ours.scales_, np.sqrt(steep / steep.mean()), rtol=2e-3)
    assert ours.scales_.argmax() == 1
    assert ours.scales_.argmin() == 4


def test_learnt_scales_beat_equal_ones() -> None:
    generator = np.random.default_rng(5)
    x = np.hstack([make_rows(600)[0], generator.normal(size=(600, 20))])
    fresh = np.hstack([make_rows(500, seed=1)[0], generator.normal(size=(500, 20))])
    y, truth = make_rows(600)[1], make_rows(500, seed=1)[1]
    ours = ScaledKernelRidge().fit(x, y)
    equal = fit_process(np.clip(x, -3, 3), y, 1.5 * np.sqrt(2 * 25), 1e-3)
    errors = [np.abs(each.predict(np.clip(fresh, -3, 3)) - truth).mean() for each in (ours, equal)]
    assert errors[0] < 0.6 * errors[1]


def test_blocks_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = make_rows(200)
    whole = ScaledKernelRidge().fit(x, y)
    monkeypatch.setattr(kernel, "_BLOCK", 7)
    np.testing.assert_allclose(
        ScaledKernelRidge().fit(x, y).predict(x), whole.predict(x), rtol=0, atol=1e-4
    )
    monkeypatch.setattr(kernel, "SAMPLE_ROWS", 60)
    sampled = ScaledKernelRidge(random_state=3).fit(x, y)
    again = ScaledKernelRidge(random_state=3).fit(x, y)
    np.testing.assert_array_equal(sampled.scales_, again.scales_)
    assert not np.allclose(sampled.scales_, whole.scales_, rtol=1e-3)
    assert len(sampled.rows_) == 200


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 100), st.integers(1, 5), st.booleans())
@example(rows=1, seed=3, repeats=5, constant=False)
def test_repeated_rows_and_constant_targets_give_numbers(
    rows: int, seed: int, repeats: int, constant: bool
) -> None:
    x = np.repeat(make_rows(rows, seed)[0], repeats, axis=0)
    x[:, 2] = 0.0  # a constant feature after scaling
    y = np.zeros(len(x)) if constant else np.random.default_rng(seed).normal(size=len(x))
    found = ScaledKernelRidge().fit(x, y)
    predicted = found.predict(x)
    assert np.isfinite(predicted).all()
    # (K + alpha 1) dual = y, so that K dual = y - alpha dual
    rounding = 1e-3 + 2e-5 * np.abs(found.dual_).max()
    expected = y - found.alpha * found.dual_
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=rounding)
    if constant:
        np.testing.assert_array_equal(predicted, 0.0)


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"alpha": 0.0}, "alpha is 0.0, not a positive number"),
        ({"alpha": "scale"}, "alpha is 'scale', not"),
        ({"length": float("inf")}, "length is inf"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"length": -1.0}, "length is -1.0"),
        ({"alpha": 1e-9, "length": 1e3}, "cannot factor the kernel matrix with alpha 1e-09"),
    ],
)
def test_bad_parameters(parameters: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ScaledKernelRidge(**parameters).fit(*make_rows(300))


def test_rows_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64}.__getitem__)
    with pytest.raises(ValueError, match="takes 0 GiB and this machine has 0: fit at most 0 rows"):
        ScaledKernelRidge().fit(*make_rows(300))


@pytest.mark.parametrize("gibibytes", [1, 16, 24, 1000])
def test_as_many_rows_as_said_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int
) -> None:
    memory = gibibytes * 2**30
    monkeypatch.setattr(
        os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.__getitem__
    )
    with pytest.raises(ValueError, match="fit at most") as caught:
        kernel._check_memory(10_000_000)
    said = re.search("at most ([0-9,]+) rows", str(caught.value))
    assert said is not None
    most = int(said[1].replace(",", ""))
    kernel._check_memory(most)
    assert 0.6 * memory < 2 * most**2 < 0.8 * memory
    with pytest.raises(ValueError, match="fit at most"):
        kernel._check_memory(most + 3_000)


def test_the_factor_is_that_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_BLOCK", 32)
    rows, target = make_rows(107)
    panels = kernel._factor(rows.astype(np.float32), 1.3, 0.01)
    assert [panel.shape for panel in panels] == [(32, 32), (32, 64), (32, 96), (11, 107)]
    found = np.zeros((107, 107))
    for number, panel in enumerate(panels):
        found[32 * number : 32 * number + len(panel), : panel.shape[1]] = panel
    matrix = Matern(1.3, nu=1.5)(rows) + 0.01 * np.eye(107)
    np.testing.assert_allclose(found, np.linalg.cholesky(matrix), rtol=0, atol=1e-5)
    expected = np.linalg.solve(matrix, target)
    np.testing.assert_allclose(kernel._substitute(panels, target), expected, rtol=1e-3, atol=1e-3)
