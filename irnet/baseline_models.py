"""What baselines are kept as: plain arrays, from which each row is predicted on its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .forest import Array, Forest
from .kernel import clip, matern
from .scaling import Scaling

_LINEAR_BLOCK = 4096
_NEIGHBOUR_BLOCK = 256
_TREE_BLOCK = 16384
_MARGIN = 16
"""Neighbours looked at beyond those asked for, because their distances are rough at first."""

Form = Literal[
    "linear",
    "neighbours",
    "kernel",
    "scaled kernel",
    "mean of trees",
    "median of trees",
    "sum of trees",
]
FloatArray = NDArray[np.float64]


class KeptModel(Protocol):
    """What a fitted baseline is kept as."""

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict contiguous finite rows (n, features) in the target's unit, (n,)."""

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds."""


def read_kept_model(
    form: Form,
    arrays: Mapping[str, Array],
    names: tuple[str, ...],
    parameters: Mapping[str, Any],
) -> KeptModel:
    """Check what a file holds and return it as a model.

    Args:
        form: What the baseline is kept as.
        arrays: Of the file.
        names: Of the features.
        parameters: Of the baseline, by scikit-learn's names.

    Returns:
        The model.

    Raises:
        AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError: Something is
            missing, or is not what it has to be.
    """
    if form == "mean of trees":
        return TreesModel(Forest.from_arrays(arrays, names, {}))
    if form == "sum of trees":
        forest = Forest.from_arrays(arrays, names, {})
        return TreesModel(forest, offset=_read_number(arrays, "offset"))
    if form == "median of trees":
        forest = Forest.from_arrays(arrays, names, {})
        weights = _read_floats(arrays, "weights", (forest.trees,))
        if (weights < 0).any() or not weights.any():
            raise ValueError("weights of trees are negative or all 0")
        return TreesModel(forest, weights=weights)
    scaling = Scaling(
        mean=_read_floats(arrays, "mean", (len(names),)),
        std=_read_floats(arrays, "std", (len(names),)),
        clip=None,
        target_mean=_read_number(arrays, "target_mean"),
        target_std=_read_number(arrays, "target_std"),
    )
    scaling.check(len(names))
    if form == "linear":
        coefficients = _read_floats(arrays, "coefficients", (len(names),))
        return LinearModel(scaling, coefficients, _read_number(arrays, "intercept"))
    rows = arrays["rows"]
    if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != len(names):
        raise ValueError(f"rows is {rows.dtype} of shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise ValueError("rows holds values that are not finite")
    if form == "neighbours":
        target = _read_floats(arrays, "target", (len(rows),))
        count, weights = parameters["n_neighbors"], parameters["weights"]
        if type(count) is not int or not 1 <= count <= len(rows):
            raise ValueError(f"n_neighbors is {count!r} for {len(rows)} rows")
        if weights not in ("uniform", "distance"):
            raise ValueError(f"weights is {weights!r}")
        return NeighboursModel(scaling, rows, target, count, weights)
    dual = _read_floats(arrays, "dual", (len(rows),))
    if form == "scaled kernel":
        scales = _read_floats(arrays, "scales", (len(names),))
        length = _read_number(arrays, "length")
        if length <= 0:
            raise ValueError(f"length is {length}")
        return ScaledKernelModel(scaling, rows, dual, scales, length)
    gamma = _read_number(arrays, "gamma")
    if gamma <= 0:
        raise ValueError(f"gamma is {gamma}")
    return KernelModel(scaling, rows, dual, _read_number(arrays, "intercept"), gamma)


def _read_floats(arrays: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> FloatArray:
    array = arrays[name]
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}, expected float64 of {shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
    return array


def _read_number(arrays: Mapping[str, Array], name: str) -> float:
    return float(_read_floats(arrays, name, (1,))[0])


def _number(value: float) -> FloatArray:
    return np.array([value], dtype=np.float64)


def _standardise(scaling: Scaling, x: NDArray[np.float32]) -> FloatArray:
    scaled: FloatArray = (x - scaling.mean) / scaling.std
    return scaled


def _unscale(scaling: Scaling, values: FloatArray) -> FloatArray:
    return values * scaling.target_std + scaling.target_mean


def _scaling_arrays(scaling: Scaling) -> dict[str, Array]:
    return {
        "mean": scaling.mean,
        "std": scaling.std,
        "target_mean": _number(scaling.target_mean),
        "target_std": _number(scaling.target_std),
    }


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A weighted sum of standardised features.

    Attributes:
        scaling: Of features and target.
        coefficients: (features,).
        intercept: Of the scaled target.
    """

    scaling: Scaling
    coefficients: FloatArray
    intercept: float

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict rows; see `KeptModel`."""
        values = np.empty(len(x))
        for start in range(0, len(x), _LINEAR_BLOCK):
            block = slice(start, start + _LINEAR_BLOCK)
            # a sum along each row: a product of matrices rounds by how many rows there are
            values[block] = (_standardise(self.scaling, x[block]) * self.coefficients).sum(axis=1)
        return _unscale(self.scaling, values + self.intercept)

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds; see `KeptModel`."""
        return _scaling_arrays(self.scaling) | {
            "coefficients": self.coefficients,
            "intercept": _number(self.intercept),
        }


@dataclass(frozen=True, eq=False)
class NeighboursModel:
    """The mean over the nearest training rows, by Euclidean distance of standardised features.

    Attributes:
        scaling: Of features and target.
        rows: Training rows as they came, (m, features), float32.
        target: Scaled targets, (m,).
        count: Neighbours of the mean.
        weights: uniform, or distance for the inverse of it; rows at no distance then count alone.
    """

    scaling: Scaling
    rows: NDArray[np.float32]
    target: FloatArray
    count: int
    weights: str

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict rows; see `KeptModel`."""
        known = _standardise(self.scaling, self.rows)
        squares = np.square(known).sum(axis=1)
        looked_at = min(self.count + _MARGIN, len(known))
        values = np.empty(len(x))
        for start in range(0, len(x), _NEIGHBOUR_BLOCK):
            asked = _standardise(self.scaling, x[start : start + _NEIGHBOUR_BLOCK])
            own = np.square(asked).sum(axis=1)
            rough = own[:, None] + squares - 2.0 * (asked @ known.T)
            near = np.argpartition(rough, looked_at - 1, axis=1)[:, :looked_at]
            # rough distances are rounded by this much at most, exact ones far less
            doubt = 1e-12 * (own + squares.max())
            for i, row in enumerate(asked):
                candidates = np.sort(near[i])
                exact = np.square(known[candidates] - row).sum(axis=1)
                order = np.argsort(exact, kind="stable")[: self.count]
                edge = rough[i, near[i]].max() - doubt[i]
                if looked_at < len(known) and exact[order[-1]] >= edge:
                    candidates = np.arange(len(known))
                    exact = np.square(known - row).sum(axis=1)
                    order = np.argsort(exact, kind="stable")[: self.count]
                values[start + i] = self._average(exact[order], self.target[candidates[order]])
        return _unscale(self.scaling, values)

    def _average(self, squared: FloatArray, target: FloatArray) -> float:
        if self.weights == "uniform":
            return float(target.mean())
        same = squared == 0
        weights = same.astype(np.float64) if same.any() else 1.0 / np.sqrt(squared)
        return float((weights * target).sum() / weights.sum())

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds; see `KeptModel`."""
        return _scaling_arrays(self.scaling) | {"rows": self.rows, "target": self.target}


@dataclass(frozen=True, eq=False)
class KernelModel:
    """A weighted sum of radial kernels around support vectors.

    Attributes:
        scaling: Of features and target.
        rows: Support vectors as they came, (m, features), float32.
        dual: Their weights, (m,).
        intercept: Of the scaled target.
        gamma: The kernel is exp(-gamma d²) of the standardised distance d.
    """

    scaling: Scaling
    rows: NDArray[np.float32]
    dual: FloatArray
    intercept: float
    gamma: float

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict rows; see `KeptModel`."""
        known = _standardise(self.scaling, self.rows)
        values = np.empty(len(x))
        distances = _square_distances(_standardise(self.scaling, x), known)
        for i, squared in enumerate(distances):
            values[i] = (self.dual * np.exp(-self.gamma * squared)).sum()
        return _unscale(self.scaling, values + self.intercept)

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds; see `KeptModel`."""
        return _scaling_arrays(self.scaling) | {
            "rows": self.rows,
            "dual": self.dual,
            "intercept": _number(self.intercept),
            "gamma": _number(self.gamma),
        }


@dataclass(frozen=True, eq=False)
class ScaledKernelModel:
    """A weighted sum of Matérn kernels around all training rows; see `irnet.kernel`.

    Attributes:
        scaling: Of features and target.
        rows: Training rows as they came, (m, features), float32.
        dual: Their weights, (m,).
        scales: Of the standardised features, (features,).
        length: Of the kernel, in the scaled features' unit.
    """

    scaling: Scaling
    rows: NDArray[np.float32]
    dual: FloatArray
    scales: FloatArray
    length: float

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict rows; see `KeptModel`."""
        known = self._scale(self.rows)
        values = np.empty(len(x))
        for i, squared in enumerate(_square_distances(self._scale(x), known)):
            values[i] = (self.dual * matern(np.sqrt(squared), self.length)).sum()
        return _unscale(self.scaling, values)

    def _scale(self, x: NDArray[np.float32]) -> FloatArray:
        scaled: FloatArray = clip(_standardise(self.scaling, x)) * self.scales
        return scaled

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds; see `KeptModel`."""
        return _scaling_arrays(self.scaling) | {
            "rows": self.rows,
            "dual": self.dual,
            "scales": self.scales,
            "length": _number(self.length),
        }


def _square_distances(asked: FloatArray, known: FloatArray) -> Iterator[FloatArray]:
    """Squares of the distances of each row asked from all known ones, (len(known),)."""
    squares = np.square(known).sum(axis=1)
    # one row at a time: a product of matrices rounds by how many rows there are
    for row in asked:
        yield np.maximum(squares + np.square(row).sum() - 2.0 * (known @ row), 0.0)


@dataclass(frozen=True, eq=False)
class TreesModel:
    """Trees and how their predictions become one: their mean unless one of the others is given.

    Attributes:
        forest: The trees.
        weights: Of each tree in a median (Drucker 1997), (trees,).
        offset: What their sum is added to.
    """

    forest: Forest
    weights: FloatArray | None = None
    offset: float | None = None

    def predict(self, x: NDArray[np.float32]) -> FloatArray:
        """Predict rows; see `KeptModel`."""
        if self.weights is not None:
            return self._median(x, self.weights)
        mean = self.forest.predict(x)
        return mean if self.offset is None else mean * self.forest.trees + self.offset

    def _median(self, x: NDArray[np.float32], weights: FloatArray) -> FloatArray:
        values = np.empty(len(x))
        for start in range(0, len(x), _TREE_BLOCK):
            each = self.forest.predict_trees(x[start : start + _TREE_BLOCK])
            order = np.argsort(each, axis=1, kind="stable")
            reached = np.cumsum(weights[order], axis=1)
            middle = (reached >= 0.5 * reached[:, -1:]).argmax(axis=1)
            rows = np.arange(len(each))
            values[start : start + len(each)] = each[rows, order[rows, middle]]
        return values

    def to_arrays(self) -> dict[str, Array]:
        """Return what a file holds; see `KeptModel`."""
        arrays = self.forest.to_arrays(prunable=False)
        if self.weights is not None:
            arrays["weights"] = self.weights
        if self.offset is not None:
            arrays["offset"] = _number(self.offset)
        return arrays
