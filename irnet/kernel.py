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
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import pdist
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_X_y

SAMPLE_ROWS = 10_000
"""Most rows of the first fit."""

CLIP = 3.0
"""Standard deviations beyond which a feature says no more."""

_BLOCK = 1024
_ROWS_OF_MEDIAN = 2_000
_ROOT_3 = float(np.sqrt(3.0))

Floats = NDArray[np.float32]


class ScaledKernelRidge(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Kernel ridge regression with a Matérn 3/2 kernel and learnt scales, an estimator.

    The kernel matrix of all rows is held and factored in single precision: 4 bytes times the square
    of the rows, 5 GB and some minutes for 36,000.

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
        matrix = _distances(scaled, scaled)
        _to_kernel(matrix, self.length_)
        self.dual_ = self._solve(matrix, target)
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
        distances = _distances(rows, rows)
        matrix = distances.copy()
        _to_kernel(matrix, length)
        dual = self._solve(matrix, target).astype(np.float32)
        del matrix
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

    def _solve(self, matrix: Floats, target: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights of the rows; the kernel matrix is overwritten."""
        # a row is at no distance from itself, whatever rounding makes of it
        matrix[np.diag_indices_from(matrix)] = 1.0 + self.alpha
        try:
            # symmetric: its transpose is the column-wise form that is factored in place
            factor = cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"single precision cannot factor the kernel matrix with alpha {self.alpha}; "
                "a larger alpha can"
            ) from error
        weights = cho_solve(factor, target.astype(np.float32), check_finite=False)
        return np.asarray(weights, dtype=np.float64)


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
    needed = 4 * rows * rows
    having = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > having:
        raise ValueError(
            f"their kernel matrix takes {needed / 2**30:.0f} GiB and this machine has "
            f"{having / 2**30:.0f}: fit at most {int(np.sqrt(having / 4)) // 1000 * 1000:,} rows"
        )
