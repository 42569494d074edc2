"""What a model does not know: distance to its training data, expected error, prediction interval.

Three steps, each learnt from compounds that the model was not trained on:

1. `TrainingReference` measures how far a row lies from the training rows.
2. Boosted trees turn the signs of an error (spread of the members, disagreement with the forest,
   distance, the prediction itself, all features) into an error scale: the
   mean absolute error to expect of such a row.
3. Split conformal prediction (Papadopoulos et al. 2002; Lei et al., J. Am. Stat. Assoc. 113, 1094,
   2018) turns the error scale into an interval. Scores are errors in units of the scale, taken
   with their sign, because a model that learnt from stable compounds errs to one side; their
   quantiles are taken within bins of the error scale (Mondrian; Boström and Johansson, COPA 2020),
   because scores of small and of large scales differ in shape. Each row's score comes from trees
   that were fitted without its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import GradientBoostingRegressor
from torch import Tensor

from .errors import DataError, ModelFileError
from .metrics import spearman
from .reference import (
    FORMAT,
    TrainingReference,
    check_arrays,
    check_finite,
    read_arrays,
    write_arrays,
)
from .scorer import Prediction

FILE_NAME = "uncertainty.safetensors"
"""How the file is called inside a model's folder."""

_KIND = "an irnet uncertainty"
_BLOCK_ROWS = 4096
_FEWEST_ROWS = 40
_ROWS_PER_BIN = 400
_MOST_BINS = 10
_FOLDS = 5
_TREES = 150
_DEPTH = 3
_LEARNING_RATE = 0.05
_SHARE = 0.1  # of the signs tried at each split: all features are among them

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Assessment:
    """What is known about the errors of predictions.

    Attributes:
        low: Lower ends of the prediction intervals, (n,), float64, in the target's unit; never
            above the predicted mean.
        high: Upper ends, (n,); never below the predicted mean.
        error_scale: Mean absolute error to expect, (n,), in the target's unit.
        distance: To the training data, (n,), 1 for an ordinary training row.
    """

    low: FloatArray
    high: FloatArray
    error_scale: FloatArray
    distance: FloatArray


@dataclass(frozen=True, eq=False)
class _Trees:
    """Boosted regression trees of depth 3, complete, as arrays.

    Attributes:
        column: Column compared at the seven inner nodes, (trees, 7), breadth first.
        threshold: A row goes left if its value is at most this, (trees, 7).
        value: At the eight leaves, (trees, 8).
        start: Sum before the first tree.
    """

    column: NDArray[np.int16]
    threshold: NDArray[np.float32]
    value: NDArray[np.float32]
    start: float

    @classmethod
    def fit(cls, signs: NDArray[np.float32], target: FloatArray, seed: int) -> _Trees:
        model = GradientBoostingRegressor(
            n_estimators=_TREES,
            learning_rate=_LEARNING_RATE,
            max_depth=_DEPTH,
            min_samples_leaf=max(5, len(signs) // 200),
            subsample=0.5,
            max_features=_SHARE,
            random_state=seed,
        ).fit(signs, target)
        inner, leaves = 2**_DEPTH - 1, 2**_DEPTH
        column = np.zeros((_TREES, inner), dtype=np.int16)
        threshold = np.full((_TREES, inner), np.inf, dtype=np.float32)
        value = np.zeros((_TREES, leaves), dtype=np.float32)
        for number, (estimator,) in enumerate(model.estimators_):
            tree = estimator.tree_

            def place(node: int, slot: int, tree: Any = tree, number: int = number) -> None:
                is_leaf = tree.children_left[node] < 0
                if slot >= inner:
                    value[number, slot - inner] = _LEARNING_RATE * tree.value[node, 0, 0]
                    return
                if not is_leaf:
                    column[number, slot] = tree.feature[node]
                    threshold[number, slot] = _round_down(tree.threshold[node])
                # a leaf above the last level is repeated on both sides
                place(node if is_leaf else tree.children_left[node], 2 * slot + 1)
                place(node if is_leaf else tree.children_right[node], 2 * slot + 2)

            place(0, 0)
        return cls(column, threshold, value, float(target.mean()))

    def predict(self, signs: NDArray[np.float32]) -> FloatArray:
        """Sum of the trees for signs (n, columns), (n,)."""
        total = torch.full((len(signs),), self.start, dtype=torch.float64)
        table = torch.from_numpy(self.value)
        for start in range(0, len(signs), _BLOCK_ROWS):
            columns = torch.from_numpy(
                np.ascontiguousarray(signs[start : start + _BLOCK_ROWS].T, dtype=np.float32)
            )
            block = total[start : start + _BLOCK_ROWS]
            for number in range(len(self.value)):
                right = [
                    columns[c] > t
                    for c, t in zip(
                        self.column[number].tolist(), self.threshold[number].tolist(), strict=True
                    )
                ]
                second = torch.where(right[0], right[2], right[1])
                third = torch.where(
                    right[0],
                    torch.where(second, right[6], right[5]),
                    torch.where(second, right[4], right[3]),
                )
                leaf = right[0].int() * 4 + second.int() * 2 + third.int()
                block += table[number].index_select(0, leaf)
        return total.numpy()


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Calibrated knowledge of a model's errors.

    Attributes:
        level: Share of true values that the interval of an assessment is to hold.
        reference: Of the model's training rows.
        uses_spread: Whether the spread of the members is among the signs; not with one member.
        uses_forest: Whether the forest's prediction is among the signs.
        uses_features: Whether the features are among the signs.
        factor: Error scale of a row whose trees sum to 0, in the target's unit.
        edges: Error scales that divide the bins, (bins - 1,), ascending.
        scores: Of each bin, ascending: (true - predicted) / error scale of calibration rows.
        record: Facts of the fit: rows, groups, bins, rank correlation of scale and error.
    """

    level: float
    reference: TrainingReference
    uses_spread: bool
    uses_forest: bool
    uses_features: bool
    factor: float
    edges: FloatArray = field(repr=False)
    scores: tuple[FloatArray, ...] = field(repr=False)
    record: Mapping[str, Any]
    _trees: _Trees = field(repr=False)

    @classmethod
    def fit(
        cls,
        target: ArrayLike,
        prediction: Prediction,
        forest_prediction: ArrayLike | None,
        distance: ArrayLike,
        *,
        reference: TrainingReference,
        features: NDArray[np.floating] | None = None,
        groups: ArrayLike | None = None,
        level: float = 0.9,
        seed: int = 0,
    ) -> Uncertainty:
        """Learn from compounds that the model was not trained on.

        The intervals hold for compounds like these: calibrate on known and hypothetical ones if
        both will be asked for.

        Args:
            target: True values, (n,).
            prediction: The ensemble's, n rows; with one member its spread (NaN) is not used.
            forest_prediction: (n,), or None for a model without a forest.
            distance: (n,), from a reference of the rows that each prediction was trained on.
            reference: Of the rows that the model in use was trained on.
            features: (n, features), unscaled; None leaves them out of the signs.
            groups: (n,) labels, chemical systems for example: a row's error scale, whose score
                calibrates the interval, comes from trees that saw no row of its group. None
                makes each row its own group.
            level: Share of true values to hold, between 0 and 1.
            seed: Of folds and trees.

        Returns:
            The calibrated uncertainty.

        Raises:
            DataError: If shapes differ, values are not finite, rows are fewer than 40 or too few
                for the level, groups fewer than two, or every prediction is exact.
        """
        true = _vector(target, "target")
        n = len(true)
        if n < _FEWEST_ROWS:
            raise DataError(
                f"{n} calibration rows are too few to calibrate on; give {_FEWEST_ROWS} or more"
            )
        uses_spread = len(prediction.members) > 1
        signs = _signs(
            prediction,
            forest_prediction,
            _vector(distance, "distance"),
            None if features is None else _checked(features, reference),
            uses_spread,
        )
        if len(signs) != n:
            raise DataError(f"target has {n} rows, the predictions {len(signs)}")
        labels = np.arange(n) if groups is None else np.asarray(groups)
        if labels.shape != (n,):
            raise DataError(f"groups have shape {labels.shape}, expected ({n},)")
        folds = _folds(labels, seed)
        error = true - prediction.mean
        size = np.abs(error)
        typical = float(np.median(size))
        if typical <= 0:
            raise DataError("at least half of the predictions are exact: nothing to calibrate")
        logs = np.log(size + 0.1 * typical)
        scale = np.empty(n)
        for fold in range(int(folds.max()) + 1):
            inside = folds == fold
            scale[inside] = np.exp(
                _Trees.fit(signs[~inside], logs[~inside], seed).predict(signs[inside])
            )
        factor = float(size.sum() / scale.sum())
        scale *= factor
        bins = int(np.clip(n // _ROWS_PER_BIN, 1, _MOST_BINS))
        edges = np.unique(np.quantile(scale, np.arange(1, bins) / bins))
        place = np.searchsorted(edges, scale, side="left")
        scores = tuple(
            np.sort((error / scale)[place == b]).astype(np.float32).astype(np.float64)
            for b in range(len(edges) + 1)
        )
        uncertainty = cls(
            level=level,
            reference=reference,
            uses_spread=uses_spread,
            uses_forest=forest_prediction is not None,
            uses_features=features is not None,
            factor=factor,
            edges=edges,
            scores=scores,
            record={
                "rows": n,
                "groups": len(np.unique(labels)),
                "bins": len(scores),
                "spearman": spearman(scale, size),
            },
            _trees=_Trees.fit(signs, logs, seed),
        )
        uncertainty._quantiles(level)
        return uncertainty

    def assess(
        self,
        features: Tensor | NDArray[np.floating],
        prediction: Prediction,
        forest_prediction: ArrayLike | None,
    ) -> Assessment:
        """Intervals, expected errors and distances of predictions.

        Args:
            features: (n, features), unscaled.
            prediction: The ensemble's, n rows.
            forest_prediction: (n,), or None for a model without a forest.

        Returns:
            The assessment at the level of this object. Where the calibrated interval leaves the
            mean outside, it is extended to the mean.

        Raises:
            DataError: If the members' spread or the forest, which this was calibrated with, is
                missing, shapes differ, or a value is not finite.
        """
        if self.uses_spread and len(prediction.members) < 2:
            raise DataError(
                "calibrated with the spread of several members, got a prediction of one; "
                "calibrate again for the smaller model"
            )
        if self.uses_forest and forest_prediction is None:
            raise DataError(
                "calibrated with a forest beside the networks, got no forest prediction; "
                "give it, or calibrate again without"
            )
        distance = self.reference.distance(features)
        signs = _signs(
            prediction,
            forest_prediction if self.uses_forest else None,
            distance,
            _checked(features, self.reference) if self.uses_features else None,
            self.uses_spread,
        )
        scale = np.exp(self._trees.predict(signs)) * self.factor
        low, high = self.interval(prediction.mean, scale, self.level)
        return Assessment(
            low=np.minimum(low, prediction.mean),
            high=np.maximum(high, prediction.mean),
            error_scale=scale,
            distance=distance,
        )

    def interval(
        self, mean: ArrayLike, error_scale: ArrayLike, level: float
    ) -> tuple[FloatArray, FloatArray]:
        """Prediction intervals of any level.

        Args:
            mean: Predicted, (n,).
            error_scale: Of an assessment, (n,).
            level: Share of true values to hold, between 0 and 1.

        Returns:
            Lower and upper ends, (n,) each. As many true values are to be expected below as
            above, so at a small level an interval may leave a biased mean outside.

        Raises:
            DataError: If the level is out of range or too high for the calibration rows there are.
        """
        centre, scale = np.asarray(mean, np.float64), np.asarray(error_scale, np.float64)
        quantiles = self._quantiles(level)[np.searchsorted(self.edges, scale, side="left")]
        return centre + scale * quantiles[:, 0], centre + scale * quantiles[:, 1]

    def noise_std(self, error_scale: ArrayLike) -> FloatArray:
        """Standard deviation of true - predicted, as calibration rows of like scale had it.

        Args:
            error_scale: Of an assessment, (n,).

        Returns:
            (n,), in the target's unit. The mean of true - predicted, a bias, is not in it.
        """
        scale = np.asarray(error_scale, np.float64)
        stds = np.array([scores.std() for scores in self.scores])
        return np.asarray(scale * stds[np.searchsorted(self.edges, scale, side="left")])

    def probability_at_most(
        self, deviation: ArrayLike, error_scale: ArrayLike, shrink: ArrayLike = 1.0
    ) -> FloatArray:
        """Probability that true - predicted is at most a deviation.

        The share of calibration scores of the row's bin below it, by the ranks of conformal
        prediction: interpolated between scores, never nearer to 0 or 1 than 1 / (rows + 1).

        Args:
            deviation: (n,), in the target's unit.
            error_scale: Of an assessment, (n,).
            shrink: Factor on the deviations of the scores from their mean, above 0, one or (n,):
                for a part of the noise where the rest enters in another way.

        Returns:
            (n,), never decreasing in the deviation.

        Raises:
            DataError: If shapes differ or `shrink` is not above 0.
        """
        scale = _vector(error_scale, "error scale")
        score = _vector(deviation, "deviation") / scale
        narrow = np.broadcast_to(np.asarray(shrink, np.float64), scale.shape)
        if not (narrow > 0).all():
            raise DataError("shrink must be above 0")
        place = np.searchsorted(self.edges, scale, side="left")
        probability = np.empty(len(scale))
        for number, scores in enumerate(self.scores):
            rows = place == number
            centre = scores.mean()
            probability[rows] = np.interp(
                centre + (score[rows] - centre) / narrow[rows],
                scores,
                np.arange(1, len(scores) + 1) / (len(scores) + 1),
            )
        return probability

    def _quantiles(self, level: float) -> FloatArray:
        return np.array([conformal_quantiles(scores, level) for scores in self.scores])

    def save(self, path: Path | str) -> None:
        """Write into one safetensors file, atomically.

        Args:
            path: The file, usually `FILE_NAME` in the model's folder, which must exist.

        Raises:
            ModelFileError: If it cannot be written.
        """
        arrays = {
            **self.reference.arrays(),
            "column": self._trees.column,
            "threshold": self._trees.threshold,
            "value": self._trees.value,
            "edges": self.edges,
            "scores": np.concatenate(self.scores).astype(np.float32),
            "score_counts": np.array([len(s) for s in self.scores], dtype=np.int64),
        }
        header = {
            "kind": _KIND,
            "format": FORMAT,
            "level": self.level,
            "unit": self.reference.unit,
            "uses_spread": self.uses_spread,
            "uses_forest": self.uses_forest,
            "uses_features": self.uses_features,
            "factor": self.factor,
            "start": self._trees.start,
            "record": dict(self.record),
        }
        write_arrays(Path(path), arrays, header)

    @classmethod
    def load(cls, path: Path | str) -> Uncertainty:
        """Read what `save` wrote.

        Args:
            path: The file.

        Returns:
            The same uncertainty.

        Raises:
            ModelFileError: If the file is missing, truncated, damaged, of a newer format or of
                another kind.
        """
        path = Path(path)
        arrays, header = read_arrays(path, _KIND)
        try:
            counts = arrays["score_counts"]
            if counts.ndim != 1 or (counts < 0).any():
                raise ValueError("score_counts holds no numbers of scores")
            uncertainty = cls(
                level=float(header["level"]),
                reference=TrainingReference.from_arrays(arrays, header),
                uses_spread=bool(header["uses_spread"]),
                uses_forest=bool(header["uses_forest"]),
                uses_features=bool(header["uses_features"]),
                factor=float(header["factor"]),
                edges=arrays["edges"],
                scores=tuple(np.split(arrays["scores"].astype(np.float64), np.cumsum(counts)[:-1])),
                record=dict(header["record"]),
                _trees=_Trees(
                    arrays["column"],
                    arrays["threshold"],
                    arrays["value"],
                    float(header["start"]),
                ),
            )
            uncertainty._check(arrays)
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: arrays or header do not fit ({error})") from error
        return uncertainty

    def _check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        trees = len(self._trees.value)
        expected = {
            "column": (trees, 2**_DEPTH - 1),
            "threshold": (trees, 2**_DEPTH - 1),
            "value": (trees, 2**_DEPTH),
            "edges": (len(self.scores) - 1,),
        }
        check_arrays(arrays, expected)
        signs = 2 + self.uses_spread + 2 * self.uses_forest
        signs += len(self.reference.mean) if self.uses_features else 0
        column = self._trees.column
        if column.size and not 0 <= column.min() <= column.max() < signs:
            raise ValueError("a tree reads a sign that does not exist")
        if not np.isfinite(self._trees.start):
            raise ValueError("start is not finite")
        if not (0 < self.factor < np.inf and 0 < self.level < 1):
            raise ValueError("factor or level is out of range")
        if arrays["score_counts"].sum() != len(arrays["scores"]):
            raise ValueError("score_counts does not sum to the number of scores")
        if (np.diff(self.edges) <= 0).any() or any((np.diff(s) < 0).any() for s in self.scores):
            raise ValueError("edges or scores are not ascending")
        self._quantiles(self.level)


def conformal_quantiles(scores: ArrayLike, level: float) -> tuple[float, float]:
    """Bounds between which the next score falls with at least the given probability.

    The order statistics of split conformal prediction, with half of the remaining probability on
    either side, for a next score exchangeable with these.

    Args:
        scores: (n,), in any order.
        level: Between 0 and 1.

    Returns:
        Lower and upper bound.

    Raises:
        DataError: If the level is out of range, or so near 1 that no score of these is a bound.
    """
    if not 0 < level < 1:
        raise DataError(f"level is {level}, must be between 0 and 1")
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    # the small number keeps rounding of the product from adding a rank
    rank = int(np.ceil((n + 1) * (1 + level) / 2 - 1e-9))
    if rank > n:
        least = int(np.ceil((1 + level) / (1 - level) - 1e-9))
        raise DataError(f"level {level} needs {least} calibration rows or more, there are {n}")
    return float(ordered[n - rank]), float(ordered[rank - 1])


def _signs(
    prediction: Prediction,
    forest_prediction: ArrayLike | None,
    distance: FloatArray,
    features: NDArray[np.float32] | None,
    uses_spread: bool,
) -> NDArray[np.float32]:
    mean = _vector(prediction.mean, "prediction")
    columns = [distance, mean]
    if uses_spread:
        columns.append(_vector(prediction.std, "spread"))
    if forest_prediction is not None:
        forest = _vector(forest_prediction, "forest prediction")
        if forest.shape != mean.shape:
            raise DataError(f"{len(mean)} predictions, but {len(forest)} of the forest")
        columns += [forest - mean, np.abs(forest - mean)]
    lengths = {len(column) for column in columns} | (
        {len(features)} if features is not None else set()
    )
    if len(lengths) > 1:
        raise DataError(
            f"{len(mean)} predictions, {len(distance)} distances"
            + ("" if features is None else f", {len(features)} rows of features")
        )
    signs = np.stack(columns, axis=1).astype(np.float32)
    return signs if features is None else np.hstack([signs, features])


def _checked(
    features: Tensor | NDArray[np.floating], reference: TrainingReference
) -> NDArray[np.float32]:
    """Features (n, features) as float32, of the number that the reference has."""
    x = features.cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)
    if x.ndim != 2 or x.shape[1] != len(reference.mean):
        raise DataError(f"features have shape {x.shape}, expected (rows, {len(reference.mean)})")
    values = np.ascontiguousarray(x, dtype=np.float32)
    check_finite(values)
    return values


def _folds(labels: NDArray[Any], seed: int) -> NDArray[np.int64]:
    unique, inverse = np.unique(labels, return_inverse=True)
    if len(unique) < 2:
        raise DataError("all calibration rows are of one group; give rows of two or more")
    folds = min(_FOLDS, len(unique))
    order = np.random.default_rng(seed).permutation(len(unique))
    fold_of = np.empty(len(unique), dtype=np.int64)
    fold_of[order] = np.arange(len(unique)) % folds
    placed: NDArray[np.int64] = fold_of[inverse]
    return placed


def _vector(values: ArrayLike, name: str) -> FloatArray:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"{name} has shape {vector.shape}, expected (n,)")
    if not np.isfinite(vector).all():
        row = int(np.argmin(np.isfinite(vector)))
        raise DataError(f"{name} row {row} is {vector[row]}; leave the row out or repair it")
    return vector


def _round_down(threshold: float) -> np.float32:
    single = np.float32(threshold)
    return np.nextafter(single, np.float32(-np.inf)) if single > threshold else single
