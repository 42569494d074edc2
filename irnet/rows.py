"""The rows of a training table: checks, hash, classes, and the choice of validation rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError


def check_data(
    features: NDArray[np.floating], target: ArrayLike, feature_names: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float64], tuple[str, ...]]:
    """Check a training table and bring it to float32 features and float64 targets.

    Args:
        features: (n, features).
        target: (n,).
        feature_names: One per column, no two alike.

    Returns:
        Features, target and names.

    Raises:
        DataError: If shapes disagree or a value is not finite (names row and column).
    """
    names = tuple(feature_names)
    x = np.asarray(features)
    y = np.asarray(target, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != len(names):
        raise DataError(f"features have shape {x.shape}, expected (rows, {len(names)})")
    if not names:
        raise DataError("features have no columns: there is nothing to learn from")
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise DataError(f"feature name {doubled!r} is given to two columns")
    if y.shape != (len(x),):
        raise DataError(f"target has shape {y.shape}, expected ({len(x)},), one value per row")
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(
            f"features row {row}, column {names[column]!r} is {x[row, column]}; "
            "remove or repair the row before training"
        )
    if not np.isfinite(y).all():
        row = int(np.argmin(np.isfinite(y)))
        raise DataError(f"target row {row} is {y[row]}; remove the row before training")
    return x, y, names


def check_weights(weights: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Check the weights of training rows.

    Args:
        weights: (rows,).
        rows: How many there should be.

    Returns:
        (rows,), float64.

    Raises:
        DataError: If the shape is wrong, a weight is negative or not finite, or all are 0.
    """
    values = np.ascontiguousarray(weights, dtype=np.float64)
    if values.shape != (rows,):
        raise DataError(f"weights have shape {values.shape}, expected ({rows},), one per row")
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"weights row {row} is {values[row]}; a weight is finite and 0 or more")
    if not values.any():
        raise DataError("all weights are 0; give weight to the rows to learn from")
    return values


def encode_classes(labels: Sequence[object]) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Number the classes of labels.

    Args:
        labels: (n,) of anything that has a text: names, truth values, whole numbers.

    Returns:
        The number of each row's class, (n,), float64, and the classes' names in sorted order.

    Raises:
        DataError: If there are fewer than two classes, or one has no name.
    """
    texts = np.array([str(label) for label in labels], dtype=np.str_)
    names, numbers = np.unique(texts, return_inverse=True)
    if len(names) < 2:
        only = f"all {len(texts)} rows are {str(names[0])!r}" if len(names) else "there are no rows"
        raise DataError(f"a classification needs two classes, but {only}")
    if not all(name.strip() for name in names.tolist()):
        row = int(np.argmax(np.char.strip(texts) == ""))
        raise DataError(f"label of row {row} is empty; name its class or leave the row out")
    return numbers.astype(np.float64).reshape(-1), tuple(names.tolist())


def check_classes(target: NDArray[np.float64], classes: Sequence[str]) -> None:
    """Check that targets are numbers of classes.

    Args:
        target: (n,).
        classes: Names, no two alike.

    Raises:
        DataError: If a value is no class's number, or a class has no rows.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise DataError(
            f"classes are {list(classes)}; a classification needs two or more, all different"
        )
    wrong = ~np.isin(target, np.arange(len(classes)))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(
            f"target row {row} is {target[row]}, but the classes are numbered from 0 to "
            f"{len(classes) - 1}; see irnet.encode_classes"
        )
    empty = set(range(len(classes))) - set(target.astype(int).tolist())
    if empty:
        raise DataError(f"class {classes[min(empty)]!r} has no rows; leave it out")


def hash_data(
    features: NDArray[np.float32], target: NDArray[np.float64], names: Sequence[str]
) -> str:
    """Return the SHA-256 of names, shape, features and target, as hexadecimal digits."""
    digest = hashlib.sha256(json.dumps([list(names), list(features.shape)]).encode())
    digest.update(np.ascontiguousarray(features).tobytes())
    digest.update(np.ascontiguousarray(target).tobytes())
    return digest.hexdigest()


def hash_array(values: NDArray[Any]) -> str:
    """Return the SHA-256 of an array's bytes."""
    return hashlib.sha256(values.tobytes()).hexdigest()


def split_rows(
    rows: int, fraction: float, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose validation rows at random, never dividing a group.

    Args:
        rows: Number of rows.
        fraction: Share of validation rows; the last group drawn may exceed it.
        seed: Of the choice.
        groups: (rows,) labels, or None for every row on its own.

    Returns:
        Sorted training and validation row numbers.

    Raises:
        DataError: If fewer than two training rows or no validation row would be left.
    """
    labels = np.arange(rows) if groups is None else groups
    unique, inverse = np.unique(labels, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    sizes = np.bincount(inverse, minlength=len(unique))[order]
    drawn = 1 + int(np.searchsorted(np.cumsum(sizes), fraction * rows))
    validation = np.zeros(len(unique), dtype=bool)
    validation[order[:drawn]] = True
    chosen = validation[inverse]
    train = np.flatnonzero(~chosen)
    if len(train) < 2 or not chosen.any():
        raise DataError(
            f"{rows} rows in {len(unique)} groups cannot be split into training and validation "
            f"with a validation share of {fraction}; give more rows or smaller groups"
        )
    return train, np.flatnonzero(chosen)
