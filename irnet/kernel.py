"""Kernel ridge regression that learns how much each feature counts.

A Matérn kernel of equal scales is fitted to a sample of the rows first. How steeply that fit rises
along a feature becomes the feature's scale, and the kernel of the scaled features is fitted to all
rows. This is one round of a recursive feature machine of which only the diagonal is kept
(Radhakrishnan, Beaglehole, Pandit and Belkin, Science 383, 1461, 2024,
https://doi.org/10.1126/science.adi5639).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_X_y

SAMPLE_ROWS = 10_000
"""Most rows of the first fit."""

CLIP = 3.0
"""Standard deviations beyond which a feature says no more."""

MEMORY_SHARE = 0.8
"""Most of the machine's memory that a kernel matrix may take."""

_BLOCK = 1024
_ROWS_OF_MEDIAN = 2_000
_ROOT_3 = float(np.sqrt(3.0))

Floats = NDArray[np.float32]


class ScaledKernelRidge(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Kernel ridge regression with a Matérn 3/2 kernel and learnt scales, an estimator.

    The lower half of the kernel matrix of all rows is held and factored in single precision: 2
    bytes times the square of the rows, 2.6 GB and some minutes for 36,000.

    Args:
        alpha: Added to the diagonal of the kernel matrix, whose own diagonal is 1.
        length: Of the kernel, in median distances between rows.
        random_state: Draws the sample of the first fit.

    Attributes:
        scales_: Of the features, (features,), their squares have mean 1.
        length_: Of the kernel, in the scaled features' unit.
        rows_: Training rows, clipped, not scaled, (n, features).
        dual_: Their weights, (n,), float64.
    """

    def __init__(self, alpha: float = 1e-3, length: float = 1.5, random_state: int = 0) -> None:
        self.alpha = alpha
        self.length = length
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> ScaledKernelRidge:
        """Learn the scales, then the weights of the rows.

        Args:
            X: (n, features), standardised.
            y: (n,), standardised.

        Returns:
            Itself.

        Raises:
            ValueError: ``alpha`` or ``length`` is not positive, the kernel matrix does not fit into
                this machine's memory, or single precision cannot factor it with so small an
                ``alpha``.
        """
        for name in ("alpha", "length"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and 0 < value < np.inf):
                raise ValueError(f"{name} is {value!r}, not a positive number")
        checked, target = check_X_y(X, y, dtype=np.float64, y_numeric=True)
        _check_memory(len(checked))
        self.rows_ = clip(checked)
        rows = self.rows_.astype(np.float32)
        order = np.random.default_rng(self.random_state).permutation(len(rows))
        sample = order[:SAMPLE_ROWS]
        self.scales_ = self._learn_scales(rows[sample], target[sample])
        scaled = rows * self.scales_.astype(np.float32)
        self.length_ = self.length * _median_distance(scaled[sample])
        self.dual_ = solve_kernel(scaled, target, self.length_, self.alpha)
        return self

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predict rows.

        Args:
            X: (m, features), standardised as the training rows were.

        Returns:
            Standardised predictions, (m,).
        """
        check_is_fitted(self)
        asked = clip(np.asarray(X, dtype=np.float64)) * self.scales_
        known = self.rows_ * self.scales_
        values = np.empty(len(asked))
        for start in range(0, len(asked), _BLOCK):
            block = _distances(asked[start : start + _BLOCK], known)
            _to_kernel(block, self.length_)
            values[start : start + _BLOCK] = block @ self.dual_
        return values

    def _learn_scales(self, rows: Floats, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Root mean square of the first fit's derivative along each feature, at its rows."""
        equal = np.ones(rows.shape[1])
        length = self.length * _median_distance(rows)
        dual = solve_kernel(rows, target, length, self.alpha).astype(np.float32)
        distances = _distances(rows, rows)
        # dk/dx = -(c² exp(-c d)) (x - x'), c = √3 / length
        steepness = _ROOT_3 / length
        distances *= -steepness
        np.exp(distances, out=distances)
        distances *= dual
        slopes = distances @ rows - distances.sum(axis=1, keepdims=True) * rows
        mean = np.square(slopes.astype(np.float64)).mean(axis=0)
        if not mean.any():
            return equal
        scales: NDArray[np.float64] = np.sqrt(mean / mean.mean())
        return scales


def clip(standardised: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip standardised features at `CLIP`."""
    return np.clip(standardised, -CLIP, CLIP)


def _distances(asked: NDArray[Any], known: NDArray[Any]) -> NDArray[Any]:
    """Euclidean distances, (len(asked), len(known)), in the precision of the rows."""
    squares = np.square(known).sum(axis=1)
    distances = np.empty((len(asked), len(known)), dtype=known.dtype)
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        each = distances[start : start + _BLOCK]
        np.matmul(block, known.T, out=each)
        each *= -2
        each += squares
        each += np.square(block).sum(axis=1)[:, None]
        np.maximum(each, 0, out=each)
        np.sqrt(each, out=each)
    return distances


def _to_kernel(distances: NDArray[Any], length: float) -> None:
    """Turn distances into Matérn 3/2 kernels, in place."""
    for start in range(0, len(distances), _BLOCK):
        each = distances[start : start + _BLOCK]
        each *= _ROOT_3 / length
        falling = np.exp(-each)
        each += 1
        each *= falling


def solve_kernel(
    rows: Floats, target: NDArray[np.float64], length: float, alpha: float
) -> NDArray[np.float64]:
    """Weights of rows in kernel ridge regression with a Matérn 3/2 kernel.

    Args:
        rows: (n, features), scaled.
        target: (n,).
        length: Of the kernel.
        alpha: Added to the diagonal of the kernel matrix.

    Returns:
        Weights, (n,).

    Raises:
        ValueError: Single precision cannot factor the kernel matrix with so small an ``alpha``.
    """
    try:
        factor = _factor(rows, length, alpha)
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"single precision cannot factor the kernel matrix with alpha {alpha}; "
            "a larger alpha can"
        ) from error
    weights: NDArray[np.float64] = _substitute(factor, target).astype(np.float64)
    return weights


def _factor(rows: Floats, length: float, alpha: float) -> list[Floats]:
    """Cholesky factor of the kernel matrix of rows, with alpha on its diagonal.

    Args:
        rows: (n, features).
        length: Of the kernel.
        alpha: Added to the diagonal.

    Returns:
        The rows of the lower triangle in panels of `_BLOCK`, each as wide as it ends: the i-th is
        (`_BLOCK`, (i + 1) `_BLOCK`), the last one may be shorter.

    Raises:
        numpy.linalg.LinAlgError: The matrix is not positive definite in single precision.
    """
    panels: list[Floats] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        panel = _distances(block, rows[: start + len(block)])
        _to_kernel(panel, length)
        for at, above in zip(range(0, start, _BLOCK), panels, strict=True):
            part = panel[:, at : at + _BLOCK]
            part -= panel[:, :at] @ above[:, :at].T
            part[:] = _solve_lower(above[:, at:], part.T).T
        left, own = panel[:, :start], panel[:, start:]
        # a row is at no distance from itself, whatever rounding makes of it
        own[np.diag_indices_from(own)] = 1.0 + alpha
        own -= left @ left.T
        own[:] = cholesky(own, lower=True, check_finite=False)
        panels.append(panel)
    return panels


def _substitute(panels: list[Floats], target: NDArray[np.float64]) -> Floats:
    """Solve with a factor of `_factor`, (n,)."""
    values = target.astype(np.float32)
    starts = [panel.shape[1] - len(panel) for panel in panels]
    for start, panel in zip(starts, panels, strict=True):
        own = values[start : start + len(panel)]
        own -= panel[:, :start] @ values[:start]
        own[:] = _solve_lower(panel[:, start:], own)
    for start, panel in zip(reversed(starts), reversed(panels), strict=True):
        own = values[start : start + len(panel)]
        own[:] = _solve_lower(panel[:, start:], own, transposed=True)
        values[:start] -= own @ panel[:, :start]
    return values


def _solve_lower(lower: Floats, known: Floats, *, transposed: bool = False) -> Floats:
    """Solve with a lower triangular matrix or its transpose; nothing is checked."""
    solved: Floats = solve_triangular(
        lower, known, lower=True, trans=int(transposed), check_finite=False
    )
    return solved


def matern(distances: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """The Matérn 3/2 kernel of distances, any shape."""
    reduced = distances * (_ROOT_3 / length)
    kernel: NDArray[np.float64] = (1.0 + reduced) * np.exp(-reduced)
    return kernel


def _median_distance(rows: Floats) -> float:
    """Median distance between different ones of the first rows; 1 where there is none."""
    # from differences: through products of matrices, rows that are the same are not at distance 0
    pairs = pdist(rows[:_ROWS_OF_MEDIAN].astype(np.float64))
    pairs = pairs[pairs > 0]
    return float(np.median(pairs)) if len(pairs) else 1.0


def _check_memory(rows: int) -> None:
    needed = 2 * rows * (rows + _BLOCK)
    having = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * having:
        most = max(0, int(np.sqrt(MEMORY_SHARE * having / 2)) - _BLOCK) // 1000 * 1000
        raise ValueError(
            f"half their kernel matrix takes {needed / 2**30:.0f} GiB and this machine has "
            f"{having / 2**30:.0f}: fit at most {most:,} rows"
        )
