"""The baseline: a Random Forest fitted by scikit-learn, kept as plain arrays.

Nodes of all trees stand in one sequence, each tree in preorder, so that a node's left child is the
next node. Where its right child stands follows from which nodes are leaves: going through the
sequence, count +1 for an inner node and -1 for a leaf; a left subtree has count -1, so the right
child of a node is the next place where the running count is what it was before the node. The same
count gives the end of every subtree. A stored node therefore needs its feature and either a
threshold or a value: 5 bytes on average, and no pickle.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.ensemble import RandomForestRegressor
from torch import Tensor

from .errors import DataError, ModelFileError, check_feature_names
from .metrics import mae
from .rows import check_data, hash_data, split_rows
from .storage import read_tensors, write_tensors

Array = NDArray[Any]

_KIND = "an irnet random forest"
_FORMAT = 1
_LEAF = np.iinfo(np.uint16).max
_BLOCK_ROWS = 16384
_STORED = {
    "sizes": (np.int64,),
    "feature": (np.uint16,),
    "threshold": (np.float32,),
    "value": (np.float32, np.float16),
    "count": (np.uint16, np.uint32),
}
"""Types in which a file holds its arrays, each with one axis."""

MIN_SAMPLES_SPLIT = (5, 10, 15, 20)
TREES = (100, 150, 200)
MAX_FEATURES = (0.25, 0.33)
MAX_DEPTH = (10, 25)


@dataclass(frozen=True)
class ForestParameters:
    """Hyperparameters of a Random Forest, as scikit-learn names them.

    Attributes:
        n_estimators: Trees.
        min_samples_split: Fewest rows of a node that may be split.
        max_features: Share of the features tried at each split.
        max_depth: Most splits between root and leaf.
    """

    n_estimators: int = 200
    min_samples_split: int = 5
    max_features: float = 0.25
    max_depth: int = 25


@dataclass(frozen=True, eq=False)
class Forest:
    """A fitted forest.

    Attributes:
        feature_names: Columns that it was fitted on, in order.
        sizes: Nodes of each tree, (trees,), int64.
        feature: Column that a node splits on, 65535 for a leaf, (nodes,), uint16.
        threshold: A row goes left if its feature is at most this; (nodes,), float32, NaN at leaves.
        value: Mean target of the rows in a leaf, (nodes,), float32, NaN at inner nodes.
        count: Training rows (with repetitions of the bootstrap) in a leaf, 0 at inner nodes,
            (nodes,), uint32; None in a file saved without them, which cannot be pruned.
        card: Facts of the fit: parameters, search table, data hash, seed, time.
    """

    feature_names: tuple[str, ...] = field(repr=False)
    sizes: NDArray[np.int64] = field(repr=False)
    feature: NDArray[np.uint16] = field(repr=False)
    threshold: NDArray[np.float32] = field(repr=False)
    value: NDArray[np.float32] = field(repr=False)
    count: NDArray[np.uint32] | None = field(repr=False)
    card: Mapping[str, Any]

    @property
    def trees(self) -> int:
        """Number of trees."""
        return len(self.sizes)

    @property
    def nodes(self) -> int:
        """Number of nodes of all trees."""
        return len(self.feature)

    def check_features(self, names: Sequence[str]) -> None:
        """Compare a table's columns with the forest's own.

        Args:
            names: Columns of the data, in order.

        Raises:
            FeatureMismatchError: Names the missing, unknown or moved columns.
        """
        check_feature_names(self.feature_names, names, "the forest")

    def predict(
        self, features: Tensor | NDArray[np.floating], workers: int = 1
    ) -> NDArray[np.float64]:
        """Predict rows of unscaled features.

        Args:
            features: (n, features) in the order of `feature_names`; a tensor on a GPU is
                predicted there.
            workers: Threads on the CPU.

        Returns:
            Predictions (n,), float64 NumPy array, in the target's unit.

        Raises:
            DataError: If the shape is wrong or a value is not finite; names row and column.
        """
        if features.ndim != 2 or features.shape[1] != len(self.feature_names):
            raise DataError(
                f"features have shape {tuple(features.shape)}, "
                f"expected (rows, {len(self.feature_names)})"
            )
        if isinstance(features, Tensor):
            if features.device.type != "cpu":
                on_device: NDArray[np.float64] = self._predict_on_device(features).cpu().numpy()
                return on_device
            features = features.numpy()
        x = np.ascontiguousarray(features, dtype=np.float32)
        self._check_finite(x)
        blocks = [x[start : start + _BLOCK_ROWS] for start in range(0, len(x), _BLOCK_ROWS)]
        if workers > 1 and len(blocks) > 1:
            with ThreadPoolExecutor(workers) as pool:
                sums = list(pool.map(self._sum_prefixes, blocks))
        else:
            sums = [self._sum_prefixes(block) for block in blocks]
        predicted: NDArray[np.float64] = np.concatenate([s[-1] for s in sums] or [np.empty(0)])
        return predicted / self.trees

    def predict_trees(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predict rows of unscaled features by each tree alone.

        Args:
            features: (n, features) in the order of `feature_names`.

        Returns:
            (n, trees), float64.

        Raises:
            DataError: If a value is not finite; names row and column.
        """
        x = np.ascontiguousarray(features, dtype=np.float32)
        self._check_finite(x)
        return np.stack(list(self._each_tree(x)), axis=1)

    def pruned(self, *, nodes: int, trees: int | None = None) -> Forest:
        """Cut the forest down to a number of nodes at the least cost in squared error.

        Takes the first `trees` trees, then collapses subtrees by minimal cost-complexity pruning
        (Breiman et al. 1984, chapter 3) with one complexity for all trees: a subtree goes where
        the squared error on its training rows that it saves is worth less than its leaves.

        Args:
            nodes: Most nodes of the result.
            trees: Trees to keep; all by default.

        Returns:
            A forest of at most `nodes` nodes.

        Raises:
            DataError: If the forest was saved without row counts, or the budget is below one node
                per tree.
        """
        if self.count is None:
            raise DataError(
                "this forest was saved without the row counts that pruning needs; "
                "prune before saving, or save with prunable=True"
            )
        kept = self.trees if trees is None else trees
        if not 1 <= kept <= self.trees:
            raise DataError(f"trees is {kept}, must be from 1 to {self.trees}")
        if nodes < kept:
            raise DataError(f"{kept} trees need at least {kept} nodes, got a budget of {nodes}")
        fewer = self._first_trees(kept)
        if fewer.nodes <= nodes:
            return fewer
        value, error = fewer._node_values_and_errors()
        shape, depth = fewer._shape, fewer._shape.depth
        inner = np.flatnonzero(~shape.leaf)
        levels = [inner[depth[inner] == d] for d in range(int(depth.max()), -1, -1)]

        def collapsed_at(price: float) -> NDArray[np.bool_]:
            cost = np.full(fewer.nodes, price)
            collapse = np.zeros(fewer.nodes, dtype=bool)
            for level in levels:
                grown = cost[level + 1] + cost[shape.right[level]]
                single = error[level] + price
                collapse[level] = single <= grown
                cost[level] = np.minimum(single, grown)
            return collapse

        low, high = 0.0, float(error.max()) + 1.0
        best = collapsed_at(high)
        for _ in range(60):
            middle = (low + high) / 2 if low else high / 16
            collapse = collapsed_at(middle)
            left = fewer.nodes - int(shape.inside(collapse).sum())
            if left > nodes:
                low = middle
            else:
                high, best = middle, collapse
            if left <= nodes and left >= 0.999 * nodes:
                break
        return fewer._collapsed(best, value, {"pruned_from_nodes": self.nodes})

    def save(self, path: Path | str, precision: str = "float32", prunable: bool = True) -> None:
        """Write the forest into one safetensors file, atomically.

        Args:
            path: The file; its folder must exist.
            precision: "float32" or "float16" for the leaves' values; thresholds stay float32.
            prunable: Whether the leaves' row counts are stored; `pruned` needs them.

        Raises:
            ValueError: If the precision is unknown.
        """
        arrays = self.to_arrays(precision, prunable)
        header = {
            "kind": _KIND,
            "format": _FORMAT,
            "feature_names": list(self.feature_names),
            "card": dict(self.card),
        }
        write_tensors(Path(path), {k: torch.from_numpy(a) for k, a in arrays.items()}, header)

    def to_arrays(self, precision: str = "float32", prunable: bool = True) -> dict[str, Array]:
        """Return what a file holds of the trees.

        Args:
            precision: "float32" or "float16" for the leaves' values; thresholds stay float32.
            prunable: Whether the leaves' row counts are among it; `pruned` needs them.

        Returns:
            Arrays of one axis each by name, for `from_arrays`.

        Raises:
            ValueError: If the precision is unknown.
        """
        kinds = {"float32": np.float32, "float16": np.float16}
        if precision not in kinds:
            raise ValueError(f"precision {precision!r} is none of {', '.join(kinds)}")
        leaf = self._shape.leaf
        arrays: dict[str, Array] = {
            "sizes": self.sizes,
            "feature": self.feature,
            "threshold": self.threshold[~leaf],
            "value": self.value[leaf].astype(kinds[precision]),
        }
        if prunable and self.count is not None:
            counts = self.count[leaf]
            small = counts.max() <= np.iinfo(np.uint16).max
            arrays["count"] = counts.astype(np.uint16 if small else np.uint32)
        return arrays

    @classmethod
    def load(cls, path: Path | str) -> Forest:
        """Read a forest.

        Args:
            path: The file that `save` wrote.

        Returns:
            The forest.

        Raises:
            ModelFileError: If the file is missing, truncated, or not a forest.
        """
        path = Path(path)
        tensors, header = read_tensors(path, _KIND)
        try:
            if header["format"] != _FORMAT:
                raise ModelFileError(
                    f"{path}: written in format {header['format']}, this version reads {_FORMAT}"
                )
            arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
            return cls.from_arrays(arrays, tuple(map(str, header["feature_names"])), header["card"])
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: arrays or header do not fit ({error})") from error

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Array], feature_names: Sequence[str], card: Mapping[str, Any]
    ) -> Forest:
        """Return the forest whose `to_arrays` these are; they may come from a stranger's file.

        Args:
            arrays: By name; others than the forest's are left alone.
            feature_names: Columns that it was fitted on, in order.
            card: Facts of the fit.

        Raises:
            IndexError: Arrays have other lengths than they should.
            KeyError: An array is missing.
            ValueError: Arrays are of another type, the nodes form no whole trees, a node splits on
                a feature that there is not, or a threshold or value is not finite.
        """
        for name, kinds in _STORED.items():
            if name in arrays and not (arrays[name].ndim == 1 and arrays[name].dtype in kinds):
                found = arrays[name]
                raise ValueError(f"{name} is {found.dtype} of shape {found.shape}")
        feature = arrays["feature"]
        leaf = feature == _LEAF
        threshold = np.full(len(feature), np.nan, dtype=np.float32)
        threshold[~leaf] = arrays["threshold"]
        value = np.full(len(feature), np.nan, dtype=np.float32)
        value[leaf] = arrays["value"]
        count = None
        if "count" in arrays:
            count = np.zeros(len(feature), dtype=np.uint32)
            count[leaf] = arrays["count"]
        forest = cls(
            feature_names=tuple(feature_names),
            sizes=arrays["sizes"],
            feature=feature,
            threshold=threshold,
            value=value,
            count=count,
            card=dict(card),
        )
        forest._check_structure()
        return forest

    @classmethod
    def of_nodes(
        cls,
        feature_names: Sequence[str],
        sizes: Sequence[int],
        leaf: NDArray[np.bool_],
        feature: NDArray[np.integer],
        threshold: NDArray[np.float64],
        value: NDArray[np.float64],
        count: NDArray[np.floating] | None = None,
    ) -> Forest:
        """Build a forest from the nodes of trees that were fitted elsewhere.

        Args:
            feature_names: Columns that they were fitted on, in order.
            sizes: Nodes of each tree, (trees,).
            leaf: Which nodes are leaves, (nodes,); each tree in preorder.
            feature: Column that a node splits on, (nodes,); anything at leaves.
            threshold: A row goes left if its float32 feature is at most this float64, (nodes,);
                anything at leaves.
            value: Prediction of a leaf, (nodes,); anything at inner nodes. Kept as float32.
            count: Training rows in a leaf, (nodes,), if known; pruning needs them.

        Returns:
            The forest, with an empty card.

        Raises:
            DataError: There are too many features.
        """
        if len(feature_names) >= _LEAF:
            raise DataError(
                f"{len(feature_names)} features; a forest's file holds at most {_LEAF - 1}"
            )
        # the largest float32 that is not above: float32 features compare with it as with the
        # float64
        single = threshold.astype(np.float32)
        above = single.astype(np.float64) > threshold
        single[above] = np.nextafter(single[above], np.float32(-np.inf))
        single[leaf] = np.nan
        return cls(
            feature_names=tuple(feature_names),
            sizes=np.array(sizes, dtype=np.int64),
            feature=np.where(leaf, _LEAF, feature).astype(np.uint16),
            threshold=single,
            value=np.where(leaf, value.astype(np.float32), np.float32(np.nan)),
            count=None if count is None else np.where(leaf, count, 0).round().astype(np.uint32),
            card={},
        )

    def _check_structure(self) -> None:
        leaf = self.feature == _LEAF
        balance = np.cumsum(np.where(leaf, -1, 1))
        ends = np.cumsum(self.sizes) - 1
        whole = self.trees > 0 and ends[-1] == self.nodes - 1 and (self.sizes > 0).all()
        if not whole or (balance[ends] != -np.arange(1, self.trees + 1)).any():
            raise ValueError("the nodes do not form whole trees")
        if (self.feature[~leaf] >= len(self.feature_names)).any():
            raise ValueError("a node splits on a feature that does not exist")
        if not (np.isfinite(self.threshold[~leaf]).all() and np.isfinite(self.value[leaf]).all()):
            raise ValueError("a threshold or value is not finite")

    def _check_finite(self, x: NDArray[np.float32]) -> None:
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise DataError(
                f"features row {row}, column {self.feature_names[column]!r} is {x[row, column]}; "
                "remove or repair the row before predicting"
            )

    @cached_property
    def _shape(self) -> _Shape:
        return _Shape.of(self.feature == _LEAF)

    @cached_property
    def _walk(self) -> _Walk:
        shape = self._shape
        depth = np.maximum.reduceat(shape.depth, np.cumsum(self.sizes) - self.sizes)
        own = np.arange(self.nodes)
        children = np.empty((self.nodes, 2), dtype=np.int64)
        children[:, 0] = np.where(shape.leaf, own, own + 1)
        children[:, 1] = np.where(shape.leaf, own, shape.right)
        return _Walk(
            roots=np.cumsum(self.sizes) - self.sizes,
            depth=depth,
            feature=np.where(shape.leaf, 0, self.feature).astype(np.int64),
            threshold=np.where(shape.leaf, np.float32(np.inf), self.threshold),
            children=children.reshape(-1),
            value=self.value.astype(np.float64),
        )

    @cached_property
    def _on_device(self) -> dict[torch.device, tuple[Tensor, ...]]:
        return {}

    def _sum_prefixes(
        self, x: NDArray[np.float32], stops: Sequence[int] = ()
    ) -> list[NDArray[np.float64]]:
        """Sums over the first trees for each of `stops`, then over all, (rows,) each."""
        total = np.zeros(len(x))
        sums = []
        for tree, values in enumerate(self._each_tree(x)):
            total += values
            if tree + 1 in stops:
                sums.append(total.copy())
        return [*sums, total]

    def _each_tree(self, x: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
        """Predictions of one tree after the other, (rows,) each."""
        # one level at a time for all rows of the block: the arrays of one tree stay in the cache
        walk = self._walk
        flat, base = x.reshape(-1), np.arange(len(x)) * x.shape[1]
        for tree in range(self.trees):
            node = np.full(len(x), walk.roots[tree])
            for _ in range(walk.depth[tree]):
                place = np.take(walk.feature, node, mode="clip")
                place += base
                seen = np.take(flat, place, mode="clip")
                bound = np.take(walk.threshold, node, mode="clip")
                node *= 2
                node += seen > bound
                node = np.take(walk.children, node, mode="clip")
            yield walk.value[node]

    def _predict_on_device(self, x: Tensor) -> Tensor:
        x = x.float()
        if not bool(torch.isfinite(x).all()):
            self._check_finite(x.cpu().numpy())
        walk = self._walk
        if x.device not in self._on_device:
            arrays = (walk.feature, walk.threshold, walk.children, walk.value)
            self._on_device[x.device] = tuple(torch.from_numpy(a).to(x.device) for a in arrays)
        feature, threshold, children, value = self._on_device[x.device]
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for root, depth in zip(walk.roots.tolist(), walk.depth.tolist(), strict=True):
            node = torch.full((len(x),), root, dtype=torch.int64, device=x.device)
            for _ in range(depth):
                seen = x.gather(1, feature[node][:, None]).squeeze(1)
                node = children[2 * node + (seen > threshold[node])]
            total += value[node]
        mean: Tensor = total / self.trees
        return mean

    def _first_trees(self, trees: int) -> Forest:
        if trees == self.trees:
            return self
        nodes = int(self.sizes[:trees].sum())
        return Forest(
            feature_names=self.feature_names,
            sizes=self.sizes[:trees],
            feature=self.feature[:nodes],
            threshold=self.threshold[:nodes],
            value=self.value[:nodes],
            count=None if self.count is None else self.count[:nodes],
            card=self.card,
        )

    def _node_values_and_errors(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Value of every node, and the squared error that collapsing it adds on its rows."""
        assert self.count is not None
        leaf, end = self._shape.leaf, self._shape.end
        count = self.count.astype(np.float64)
        value = np.where(leaf, self.value, 0.0).astype(np.float64)

        def subtree(amount: NDArray[np.float64]) -> NDArray[np.float64]:
            running = np.concatenate([[0.0], np.cumsum(amount)])
            inside: NDArray[np.float64] = running[end] - running[:-1]
            return inside

        rows, total = subtree(count), subtree(count * value)
        squares = subtree(count * value**2)
        mean = np.where(leaf, value, total / rows)
        return mean, np.maximum(squares - rows * mean**2, 0.0)

    def _collapsed(
        self,
        collapse: NDArray[np.bool_],
        value: NDArray[np.float64],
        facts: Mapping[str, Any],
    ) -> Forest:
        """Turn marked inner nodes into leaves of the given values."""
        shape = self._shape
        collapse = collapse & ~shape.leaf
        kept = ~shape.inside(collapse)
        feature = np.where(collapse, np.uint16(_LEAF), self.feature)[kept]
        threshold = np.where(collapse, np.float32(np.nan), self.threshold)[kept]
        new_value = np.where(collapse, value, self.value).astype(np.float32)[kept]
        count = None
        if self.count is not None:
            running = np.concatenate([[0], np.cumsum(self.count.astype(np.int64))])
            subtree = running[shape.end] - running[:-1]
            count = np.where(collapse, subtree, self.count).astype(np.uint32)[kept]
        starts = np.cumsum(self.sizes) - self.sizes
        return Forest(
            feature_names=self.feature_names,
            sizes=np.add.reduceat(kept.astype(np.int64), starts),
            feature=feature,
            threshold=threshold,
            value=new_value,
            count=count,
            card={**self.card, **facts},
        )


@dataclass(frozen=True, eq=False)
class _Shape:
    """What preorder and leaf marks say about all trees.

    Attributes:
        leaf: (nodes,) bool.
        right: Right child of inner nodes, (nodes,); meaningless at leaves.
        end: One past the last node of each subtree, (nodes,).
        depth: Inner nodes above each node, (nodes,).
    """

    leaf: NDArray[np.bool_]
    right: NDArray[np.int64]
    end: NDArray[np.int64]
    depth: NDArray[np.int64]

    @classmethod
    def of(cls, leaf: NDArray[np.bool_]) -> _Shape:
        nodes = len(leaf)
        places = np.arange(nodes + 1)
        before = np.concatenate([[0], np.cumsum(np.where(leaf, -1, 1))])
        # equal counts in order of place: the next of a node's own count is its right child
        keys = np.sort((before - before.min()) * (nodes + 1) + places)

        def next_with(count: NDArray[np.int64]) -> NDArray[np.int64]:
            wanted = (count - before.min()) * (nodes + 1) + places[:-1]
            found = np.searchsorted(keys, wanted, side="right")
            result: NDArray[np.int64] = keys[np.minimum(found, nodes)] % (nodes + 1)
            return result

        right, end = next_with(before[:-1]), next_with(before[:-1] - 1)
        steps = np.zeros(nodes + 1, dtype=np.int64)
        inner = np.flatnonzero(~leaf)
        steps[inner + 1] += 1
        np.subtract.at(steps, end[inner], 1)
        return cls(leaf, right, end, np.cumsum(steps)[:-1])

    def inside(self, marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Nodes below any marked node, (nodes,)."""
        steps = np.zeros(len(self.leaf) + 1, dtype=np.int64)
        chosen = np.flatnonzero(marked)
        steps[chosen + 1] += 1
        np.subtract.at(steps, self.end[chosen], 1)
        result: NDArray[np.bool_] = np.cumsum(steps)[:-1] > 0
        return result


@dataclass(frozen=True, eq=False)
class _Walk:
    """Arrays for going down the trees; a leaf's children are itself."""

    roots: NDArray[np.int64]
    depth: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    children: NDArray[np.int64]
    value: NDArray[np.float64]


def fit_forest(
    features: NDArray[np.floating],
    target: ArrayLike,
    feature_names: Sequence[str],
    *,
    seed: int = 0,
    n_jobs: int = 1,
    search: bool = True,
    search_rows: int = 10_000,
    groups: ArrayLike | None = None,
    parameters: ForestParameters | None = None,
    target_name: str = "formation_enthalpy",
    target_unit: str = "eV/atom",
) -> Forest:
    """Search the paper's hyperparameter grid, then fit the best forest on all rows.

    Per ``max_features`` one forest of 200 trees is fitted at the deepest setting on four fifths of
    the search rows. The shallower settings are read off it: scikit-learn stops at a node that is
    too deep or has too few rows, and nothing above the node depends on that. So the grid's 48
    points cost two fits, up to the random draws that a fit of its own would have made.

    Args:
        features: (n, features); stored and used as float32.
        target: (n,), in `target_unit`.
        feature_names: One name per column.
        seed: Of the search rows and the trees.
        n_jobs: Processor cores.
        search: False fits `parameters` at once.
        search_rows: Rows of the search, drawn at random; all if there are fewer.
        groups: (n,) labels; rows of one label stay on one side of the search's split.
        parameters: Used without a search; scikit-learn's names, the grid's deepest by default.
        target_name: Goes into the card.
        target_unit: Goes into the card.

    Returns:
        The forest; its card holds parameters, search table, seed, data hash and time.

    Raises:
        DataError: If shapes disagree, a value is not finite (names row and column), parameters are
            given although a search was asked for, or there are too many features.
    """
    started = time.perf_counter()
    x, y, names = check_data(features, target, feature_names)
    if search and parameters is not None:
        raise DataError("parameters are given, but the search would replace them: search=False")
    labels = None
    if groups is not None:
        _, labels = np.unique(np.asarray(groups), return_inverse=True)
        labels = labels.astype(np.int64).reshape(-1)
        if len(labels) != len(y):
            raise DataError(f"groups has {len(labels)} labels for {len(y)} rows")
    table: list[dict[str, float]] = []
    chosen = parameters or ForestParameters()
    if search:
        table = _search(x, y, names, labels, seed, n_jobs, search_rows)
        best = min(table, key=lambda entry: entry["validation_mae"])
        chosen = ForestParameters(
            n_estimators=int(best["n_estimators"]),
            min_samples_split=int(best["min_samples_split"]),
            max_features=best["max_features"],
            max_depth=int(best["max_depth"]),
        )
    forest, _ = _fit(x, y, names, chosen, seed, n_jobs)
    card = {
        "target": target_name,
        "unit": target_unit,
        "parameters": vars(chosen),
        "search": table,
        "seed": seed,
        "rows": len(y),
        "data_sha256": hash_data(x, y, names),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Forest(
        feature_names=forest.feature_names,
        sizes=forest.sizes,
        feature=forest.feature,
        threshold=forest.threshold,
        value=forest.value,
        count=forest.count,
        card=card,
    )


def _search(
    x: NDArray[np.float32],
    y: NDArray[np.float64],
    names: tuple[str, ...],
    groups: NDArray[np.int64] | None,
    seed: int,
    n_jobs: int,
    search_rows: int,
) -> list[dict[str, float]]:
    drawn = np.random.default_rng(seed).permutation(len(y))[:search_rows]
    drawn.sort()
    labels = None if groups is None else groups[drawn]
    train, validation = split_rows(len(drawn), 0.2, seed, labels)
    train, validation = drawn[train], drawn[validation]
    table = []
    for share in MAX_FEATURES:
        deepest = ForestParameters(TREES[-1], min(MIN_SAMPLES_SPLIT), share, max(MAX_DEPTH))
        forest, rows = _fit(x[train], y[train], names, deepest, seed, n_jobs)
        value, _ = forest._node_values_and_errors()
        for depth in MAX_DEPTH:
            for split in MIN_SAMPLES_SPLIT:
                stop = (forest._shape.depth >= depth) | (rows < split)
                sums = forest._collapsed(stop, value, {})._sum_prefixes(x[validation], TREES[:-1])
                table += [
                    {
                        "n_estimators": trees,
                        "min_samples_split": split,
                        "max_features": share,
                        "max_depth": depth,
                        "validation_mae": mae(total / trees, y[validation]),
                    }
                    for trees, total in zip(TREES, sums, strict=True)
                ]
    return table


def _fit(
    x: NDArray[np.float32],
    y: NDArray[np.float64],
    names: tuple[str, ...],
    parameters: ForestParameters,
    seed: int,
    n_jobs: int,
) -> tuple[Forest, NDArray[np.int64]]:
    """Fit with scikit-learn; returns the forest and the distinct training rows of each node."""
    model = RandomForestRegressor(random_state=seed, n_jobs=n_jobs, **vars(parameters))
    model.fit(x, y)
    trees = [estimator.tree_ for estimator in model.estimators_]

    def joined(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(list(values))

    forest = Forest.of_nodes(
        names,
        [tree.node_count for tree in trees],
        joined([tree.children_left < 0 for tree in trees]),
        joined([tree.feature for tree in trees]),
        joined([tree.threshold for tree in trees]),
        joined([tree.value[:, 0, 0] for tree in trees]),
        joined([tree.weighted_n_node_samples for tree in trees]),
    )
    return forest, joined([tree.n_node_samples for tree in trees])
