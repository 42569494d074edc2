"""The traditional regressors that IRNet is compared with, behind one call.

Those of the paper's Tables 3 and 4 (Jha et al., KDD 2019) and two that it lacks: gradient boosting
with an L1 loss, and kernel ridge regression with learnt scales (`irnet.kernel`). scikit-learn
searches all of them and fits all but the last; what is kept is plain arrays: coefficients, training
rows, support vectors, or trees as `irnet.forest` keeps them. A baseline predicts from
those arrays, each row on its own, so that a prediction does not depend on the rows beside it, and a
file is read without making any object that it names.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import sklearn
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    AdaBoostRegressor,
    BaggingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from .baseline_models import (
    FloatArray,
    Form,
    KeptModel,
    KernelModel,
    LinearModel,
    NeighboursModel,
    ScaledKernelModel,
    TreesModel,
    read_kept_model,
)
from .errors import DataError, ModelFileError, RecipeError, check_feature_names, nearest
from .forest import (
    MAX_DEPTH,
    MAX_FEATURES,
    MIN_SAMPLES_SPLIT,
    TREES,
    Forest,
    ForestParameters,
    fit_forest,
)
from .kernel import ScaledKernelRidge
from .rows import check_data, hash_data, split_rows
from .scaling import Scaling
from .storage import read_tensors, write_tensors

_KIND = "an irnet baseline"
_FORMAT = 1
_VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class BaselineKind:
    """One kind of baseline.

    Attributes:
        title: As the paper calls it.
        estimator: scikit-learn's class, or one of its interface.
        form: What a fitted one is kept as.
        grid: Values that a search tries, by scikit-learn's names.
        grid_source: Where the grid comes from.
        defaults: Every parameter that may be set, with its value where there is no search.
        fixed: Parameters that are always the same.
        standardised: Whether features and target are scaled to mean 0 and deviation 1, by the
            training rows; the model holds the scaling.
        paper_mae: Test error in the paper's Table 3, eV/atom, None where it has none.
    """

    title: str
    estimator: type[Any]
    form: Form
    grid: Mapping[str, tuple[Any, ...]]
    grid_source: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    standardised: bool = False
    paper_mae: float | None = None

    @property
    def grid_points(self) -> int:
        """Settings that a search compares."""
        return int(np.prod([len(values) for values in self.grid.values()], dtype=int))


_SRBENCH = "SRBench (La Cava et al. 2021): its grid of"

BASELINES: Final[Mapping[str, BaselineKind]] = {
    "linear_regression": BaselineKind(
        title="Linear Regression",
        estimator=LinearRegression,
        form="linear",
        grid={},
        grid_source="Nothing to choose",
        defaults={},
        standardised=True,
        paper_mae=0.261,
    ),
    "lasso": BaselineKind(
        title="Lasso",
        estimator=Lasso,
        form="linear",
        grid={"alpha": (1e-4, 1e-3, 1e-2, 1e-1, 1.0)},
        grid_source=f"{_SRBENCH} LassoLars",
        defaults={"alpha": 1e-3},
        fixed={"max_iter": 50_000, "precompute": True},
        standardised=True,
    ),
    "ridge": BaselineKind(
        title="Ridge",
        estimator=Ridge,
        form="linear",
        grid={"alpha": (0.01, 0.1, 1.0, 10.0, 100.0)},
        grid_source="The alphas of scikit-learn's RidgeCV, and a decade more at either end",
        defaults={"alpha": 1.0},
        standardised=True,
        paper_mae=0.261,
    ),
    "elastic_net": BaselineKind(
        title="ElasticNet",
        estimator=ElasticNet,
        form="linear",
        grid={"alpha": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "l1_ratio": (0.1, 0.5, 0.9)},
        grid_source=f"{_SRBENCH} LassoLars, times three of the ratios that the documentation of "
        "scikit-learn's ElasticNetCV names",
        defaults={"alpha": 1e-3, "l1_ratio": 0.5},
        fixed={"max_iter": 50_000, "precompute": True},
        standardised=True,
        paper_mae=0.384,
    ),
    "sgd": BaselineKind(
        title="SGD Regression",
        estimator=SGDRegressor,
        form="linear",
        grid={"alpha": (1e-6, 1e-4, 1e-2), "penalty": ("l2", "l1", "elasticnet")},
        grid_source=f"{_SRBENCH} SGDRegressor without alpha 1; Huber loss and small steps, because "
        "with a squared loss and the usual step of 0.01 it ends far off with 271 features",
        defaults={"alpha": 1e-4, "penalty": "l2"},
        fixed={"loss": "huber", "learning_rate": "adaptive", "eta0": 1e-3},
        standardised=True,
    ),
    "decision_tree": BaselineKind(
        title="Decision Tree",
        estimator=DecisionTreeRegressor,
        form="mean of trees",
        grid={"max_depth": MAX_DEPTH, "min_samples_split": MIN_SAMPLES_SPLIT},
        grid_source="The paper's grid of the Random Forest, where it is of single trees",
        defaults={"max_depth": 25, "min_samples_split": 20},
        paper_mae=0.104,
    ),
    "adaboost": BaselineKind(
        title="AdaBoost",
        estimator=AdaBoostRegressor,
        form="median of trees",
        grid={"learning_rate": (0.01, 0.1, 1.0), "loss": ("linear", "square", "exponential")},
        grid_source="TPOT (Olson et al. 2016): 100 trees, the losses, three of the learning rates; "
        "trees of depth 3 as scikit-learn's default",
        defaults={"learning_rate": 0.1, "loss": "linear", "n_estimators": 100},
        paper_mae=0.479,
    ),
    "k_neighbors": BaselineKind(
        title="KNeighbors",
        estimator=KNeighborsRegressor,
        form="neighbours",
        grid={"n_neighbors": (1, 3, 5, 10, 20), "weights": ("uniform", "distance")},
        grid_source="TPOT (Olson et al. 2016): both weights, five of its 1 to 100 neighbours",
        defaults={"n_neighbors": 5, "weights": "distance"},
        fixed={"algorithm": "brute"},
        standardised=True,
        paper_mae=0.154,
    ),
    "svr": BaselineKind(
        title="SVR",
        estimator=SVR,
        form="kernel",
        grid={"C": (2.0**-1, 2.0**3, 2.0**7), "gamma": (2.0**-11, 2.0**-9, 2.0**-7)},
        grid_source="The guide of LIBSVM (Hsu, Chang, Lin 2003): radial kernel, steps of 16 and 4 "
        "in its powers of two",
        defaults={"C": 2.0**3, "gamma": 2.0**-9, "epsilon": 0.01},
        fixed={"kernel": "rbf", "cache_size": 500},
        standardised=True,
        paper_mae=0.243,
    ),
    "bagging": BaselineKind(
        title="Bagging",
        estimator=BaggingRegressor,
        form="mean of trees",
        grid={"max_features": (0.33, 0.66, 1.0), "estimator__min_samples_split": (5, 20)},
        grid_source="100 trees; shares of the features and the ends of the rows per split, after "
        "the paper's grid of the Random Forest",
        defaults={"max_features": 1.0, "estimator__min_samples_split": 5, "n_estimators": 100},
        fixed={"estimator": DecisionTreeRegressor()},
        paper_mae=0.078,
    ),
    "random_forest": BaselineKind(
        title="Random Forest",
        estimator=RandomForestRegressor,
        form="mean of trees",
        grid={
            "n_estimators": TREES,
            "min_samples_split": MIN_SAMPLES_SPLIT,
            "max_features": MAX_FEATURES,
            "max_depth": MAX_DEPTH,
        },
        grid_source="The paper, section 4.1.4",
        defaults=vars(ForestParameters()),
        paper_mae=0.072,
    ),
    "gradient_boosting": BaselineKind(
        title="Gradient Boosting",
        estimator=HistGradientBoostingRegressor,
        form="sum of trees",
        grid={"learning_rate": (0.05, 0.1, 0.2), "max_leaf_nodes": (31, 127)},
        grid_source=f"{_SRBENCH} LGBMRegressor, the learning rates from 0.05; scikit-learn's 31 "
        "leaves and four times as many; 500 trees",
        defaults={"learning_rate": 0.1, "max_leaf_nodes": 31, "max_iter": 500},
        fixed={"loss": "absolute_error", "early_stopping": False},
    ),
    "kernel_ridge": BaselineKind(
        title="Kernel Ridge",
        estimator=ScaledKernelRidge,
        form="scaled kernel",
        grid={"alpha": (1e-3, 1e-2), "length": (0.75, 1.5, 3.0)},
        grid_source="Ours: Matérn 3/2 kernel with learnt scales (Radhakrishnan et al. 2024); the "
        "length in median distances",
        defaults={"alpha": 1e-3, "length": 1.5},
        standardised=True,
    ),
}
"""Every baseline by name, the two that the paper lacks last.

SRBench: https://github.com/cavalab/srbench, experiment/methods. TPOT:
https://github.com/EpistasisLab/tpot, tpot/config/regressor.py.
"""


def find_baseline(name: str) -> BaselineKind:
    """Return a kind of baseline.

    Args:
        name: A key of `BASELINES`.

    Raises:
        RecipeError: There is none of this name.
    """
    if name not in BASELINES:
        raise RecipeError(
            f'no baseline "{name}"{nearest(name, BASELINES)} (baselines: {", ".join(BASELINES)})'
        )
    return BASELINES[name]


@dataclass(frozen=True, eq=False)
class Baseline:
    """A fitted baseline.

    Attributes:
        name: Its kind, a key of `BASELINES`.
        feature_names: Columns that it was fitted on, in order.
        card: Facts of the fit: target, unit, parameters, search table with validation errors,
            seed, rows, data hash, whether it converged, scikit-learn's version, time.
    """

    name: str
    feature_names: tuple[str, ...] = field(repr=False)
    card: Mapping[str, Any]
    _model: KeptModel = field(repr=False)

    @property
    def title(self) -> str:
        """The paper's name of its kind."""
        return BASELINES[self.name].title

    def check_features(self, names: Sequence[str]) -> None:
        """Compare a table's columns with the baseline's own.

        Args:
            names: Columns of the data, in order.

        Raises:
            FeatureMismatchError: Names the missing, unknown or moved columns.
        """
        check_feature_names(self.feature_names, names, f"the baseline {self.name}")

    def predict(self, features: Tensor | NDArray[np.floating]) -> FloatArray:
        """Predict rows of unscaled features; the rows beside one change nothing.

        Args:
            features: (n, features) in the order of `feature_names`; used as float32.

        Returns:
            Predictions (n,), float64, in the target's unit.

        Raises:
            DataError: If the shape is wrong or a value is not finite; names row and column.
        """
        if features.ndim != 2 or features.shape[1] != len(self.feature_names):
            raise DataError(
                f"features have shape {tuple(features.shape)}, "
                f"expected (rows, {len(self.feature_names)})"
            )
        if isinstance(features, Tensor):
            features = features.detach().float().cpu().numpy()
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(features, dtype=np.float32)
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise DataError(
                f"features row {row}, column {self.feature_names[column]!r} is {x[row, column]}; "
                "remove or repair the row before predicting"
            )
        return self._model.predict(x)

    def save(self, path: Path | str) -> None:
        """Write the baseline into one safetensors file, atomically.

        Args:
            path: The file; its folder must exist.

        Raises:
            ModelFileError: If it cannot be written, because the disk is full for example.
        """
        header = {
            "kind": _KIND,
            "format": _FORMAT,
            "name": self.name,
            "feature_names": list(self.feature_names),
            "card": dict(self.card),
        }
        tensors = {
            key: torch.from_numpy(np.ascontiguousarray(array))
            for key, array in self._model.to_arrays().items()
        }
        write_tensors(Path(path), tensors, header)

    @classmethod
    def load(cls, path: Path | str) -> Baseline:
        """Read a baseline.

        Nothing in the file names code to run, and nothing is predicted with before it was checked:
        shapes, types, that numbers are finite, that nodes form whole trees and split on features
        that there are.

        Args:
            path: The file that `save` wrote.

        Returns:
            The baseline.

        Raises:
            ModelFileError: If the file is missing, damaged, or no baseline.
        """
        path = Path(path)
        tensors, header = read_tensors(path, _KIND)
        try:
            if header["format"] != _FORMAT:
                raise ModelFileError(
                    f"{path}: written in format {header['format']}, this version reads {_FORMAT}"
                )
            if header["name"] not in BASELINES:
                raise ModelFileError(
                    f"{path}: holds a baseline {header['name']!r}, which this version does not know"
                )
            names = tuple(header["feature_names"])
            if not names or len({str(name) for name in names}) < len(names):
                raise ValueError("feature names are missing or given twice")
            card = dict(header["card"])
            if not {"target", "unit", "parameters", "rows", "data_sha256"} <= set(card):
                raise ValueError("the card is not whole")
            arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
            model = read_kept_model(
                BASELINES[header["name"]].form, arrays, names, card["parameters"]
            )
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise ModelFileError(f"{path}: arrays or header do not fit ({error})") from error
        return cls(header["name"], tuple(map(str, names)), card, model)


def fit_baseline(
    name: str,
    features: NDArray[np.floating],
    target: ArrayLike,
    feature_names: Sequence[str],
    *,
    search: bool = True,
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    groups: ArrayLike | None = None,
    target_name: str = "formation_enthalpy",
    target_unit: str = "eV/atom",
) -> Baseline:
    """Search a kind's grid, then fit the best setting on all rows.

    Each setting is fitted on four fifths of the rows and judged by its mean absolute error on the
    rest (scikit-learn's `GridSearchCV`). The search runs on whatever joblib backend the caller
    entered; that of the Random Forest, see `irnet.forest.fit_forest`, stays in this process. All
    rows are used, however long it takes: SVR and AdaBoost take hours on tens of thousands.

    Args:
        name: A key of `BASELINES`.
        features: (n, features); used as float32.
        target: (n,), in `target_unit`.
        feature_names: One name per column.
        search: False fits `parameters` at once.
        parameters: Used without a search, by scikit-learn's names; the kind's defaults for those
            that are not given.
        seed: Of the search's split and of the fit.
        n_jobs: Fits at a time, as joblib counts them: -1 for all that the backend has.
        groups: (n,) labels; rows of one label stay on one side of the search's split.
        target_name: Goes into the card.
        target_unit: Goes into the card.

    Returns:
        The baseline.

    Raises:
        DataError: If shapes disagree, a value is not finite (names row and column), or parameters
            are given although a search was asked for.
        RecipeError: There is no such kind or parameter, or these rows cannot be fitted with its
            values.
    """
    started = time.perf_counter()
    kind = find_baseline(name)
    x, y, names = check_data(features, target, feature_names)
    if search and parameters is not None:
        raise DataError("parameters are given, but the search would replace them: search=False")
    chosen = _complete(kind, parameters or {})
    labels = _number_groups(groups, len(y))
    table: list[dict[str, Any]] = []
    converged = True
    model: KeptModel
    try:
        if kind.estimator is RandomForestRegressor:
            forest = fit_forest(
                x,
                y,
                names,
                seed=seed,
                n_jobs=n_jobs,
                search=search,
                search_rows=len(y),
                groups=labels,
                parameters=None if search else ForestParameters(**chosen),
            )
            chosen, table = forest.card["parameters"], forest.card["search"]
            model = TreesModel(forest)
        else:
            rows = x.astype(np.float64) if kind.standardised else x
            estimator = _build(kind, chosen, seed)
            if search:
                table = _search(kind, estimator, rows, y, labels, seed, n_jobs)
                best = min(table, key=lambda entry: float(entry["validation_mae"]))
                chosen = chosen | {key: best[key] for key in kind.grid}
            estimator = _build(kind, chosen, seed, n_jobs)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                estimator.fit(rows, y)
            converged = not any(issubclass(each.category, ConvergenceWarning) for each in caught)
            model = _keep(kind, estimator, x, y, names)
    except DataError:
        raise
    except ValueError as error:
        raise RecipeError(
            f"{kind.title} cannot be fitted on {len(y)} rows: {error}; give other parameters, or "
            "more or fewer rows"
        ) from error
    card = {
        "target": target_name,
        "unit": target_unit,
        "parameters": dict(chosen),
        "search": table,
        "seed": seed,
        "rows": len(y),
        "data_sha256": hash_data(x, y, names),
        "converged": converged,
        "scikit_learn": sklearn.__version__,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Baseline(name, names, card, model)


def _complete(kind: BaselineKind, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter of a kind: those given, and defaults for the others."""
    for key in parameters:
        if key not in kind.defaults:
            having = ", ".join(kind.defaults) or "none"
            raise RecipeError(
                f"{kind.title} has no parameter {key!r} to set{nearest(key, kind.defaults)}; "
                f"there are: {having}"
            )
    chosen = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in {**kind.defaults, **parameters}.items()
    }
    for key, value in chosen.items():
        words = [each for each in kind.grid.get(key, ()) if isinstance(each, str)]
        if words and value not in words:
            raise RecipeError(f"{kind.title}: {key} is {value!r}, none of {', '.join(words)}")
        if value is not None and not isinstance(value, int | float | str):
            raise RecipeError(f"{kind.title}: {key} is {value!r}, neither a number nor a word")
    return chosen


def _number_groups(groups: ArrayLike | None, rows: int) -> NDArray[np.int64] | None:
    if groups is None:
        return None
    labels = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64).reshape(-1)
    if len(labels) != rows:
        raise DataError(f"groups has {len(labels)} labels for {rows} rows")
    return labels


def _build(kind: BaselineKind, parameters: Mapping[str, Any], seed: int, n_jobs: int = 1) -> Any:
    """An estimator of scikit-learn that is not fitted yet, with its scaling around it."""
    estimator = kind.estimator()
    own = set(estimator.get_params(deep=False))
    general = {"random_state": seed, "n_jobs": n_jobs}
    estimator.set_params(**{key: value for key, value in general.items() if key in own})
    estimator.set_params(**{key: clone(value, safe=False) for key, value in kind.fixed.items()})
    estimator.set_params(**parameters)
    if not kind.standardised:
        return estimator
    return TransformedTargetRegressor(
        regressor=Pipeline([("scale", StandardScaler()), ("model", estimator)]),
        transformer=StandardScaler(),
    )


def _search(
    kind: BaselineKind,
    estimator: Any,
    x: NDArray[np.floating],
    y: FloatArray,
    groups: NDArray[np.int64] | None,
    seed: int,
    n_jobs: int,
) -> list[dict[str, Any]]:
    prefix = "regressor__model__" if kind.standardised else ""
    search = GridSearchCV(
        estimator,
        {prefix + key: list(values) for key, values in kind.grid.items()},
        scoring="neg_mean_absolute_error",
        cv=[split_rows(len(y), _VALIDATION_SHARE, seed, groups)],
        refit=False,
        n_jobs=n_jobs,
        error_score="raise",
    )
    with warnings.catch_warnings():
        # a setting that does not converge is judged by its error as the others are
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(x, y)
    return [
        {key.removeprefix(prefix): value for key, value in setting.items()}
        | {"validation_mae": -float(score)}
        for setting, score in zip(
            search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
        )
    ]


def _keep(
    kind: BaselineKind,
    fitted: Any,
    x: NDArray[np.float32],
    y: FloatArray,
    names: tuple[str, ...],
) -> KeptModel:
    """Take out of a fitted estimator what predicting needs."""
    if not kind.standardised:
        return _keep_trees(kind, fitted, names)
    inputs, model = (step for _, step in fitted.regressor_.steps)
    target = fitted.transformer_
    scaling = Scaling(
        mean=inputs.mean_,
        std=inputs.scale_,
        clip=None,
        target_mean=float(target.mean_[0]),
        target_std=float(target.scale_[0]),
    )
    if kind.form == "linear":
        intercept = float(np.reshape(model.intercept_, -1)[0])
        return LinearModel(scaling, np.reshape(model.coef_, -1).astype(np.float64), intercept)
    if kind.form == "neighbours":
        scaled = (y - scaling.target_mean) / scaling.target_std
        return NeighboursModel(scaling, x, scaled, model.n_neighbors, model.weights)
    if kind.form == "scaled kernel":
        return ScaledKernelModel(scaling, x, model.dual_, model.scales_, model.length_)
    return KernelModel(
        scaling,
        x[model.support_],
        model.dual_coef_[0].astype(np.float64),
        float(model.intercept_[0]),
        float(model._gamma),
    )


def _keep_trees(kind: BaselineKind, fitted: Any, names: tuple[str, ...]) -> TreesModel:
    if kind.form == "sum of trees":
        nodes = [predictor.nodes for (predictor,) in fitted._predictors]
        every = np.concatenate(nodes)
        forest = Forest.of_nodes(
            names,
            [len(each) for each in nodes],
            every["is_leaf"].astype(bool),
            every["feature_idx"],
            every["num_threshold"].astype(np.float64),
            every["value"].astype(np.float64),
        )
        return TreesModel(forest, offset=float(np.reshape(fitted._baseline_prediction, -1)[0]))
    if kind.form == "median of trees":
        estimators = fitted.estimators_
        weights = np.array(fitted.estimator_weights_[: len(estimators)], dtype=np.float64)
        return TreesModel(_join(estimators, names), weights=weights)
    if kind.estimator is BaggingRegressor:
        return TreesModel(_join(fitted.estimators_, names, fitted.estimators_features_))
    return TreesModel(_join([fitted], names))


def _join(
    estimators: Sequence[Any],
    names: tuple[str, ...],
    columns: Sequence[NDArray[np.int64]] | None = None,
) -> Forest:
    """Join scikit-learn's trees, each of which may know only some of the columns."""
    trees = [estimator.tree_ for estimator in estimators]
    every = np.arange(len(names))
    leaf = [tree.children_left < 0 for tree in trees]
    return Forest.of_nodes(
        names,
        [tree.node_count for tree in trees],
        np.concatenate(leaf),
        np.concatenate(
            [
                (every if columns is None else columns[number])[
                    np.where(leaf[number], 0, tree.feature)
                ]
                for number, tree in enumerate(trees)
            ]
        ),
        np.concatenate([tree.threshold for tree in trees]),
        np.concatenate([tree.value[:, 0, 0] for tree in trees]),
    )
