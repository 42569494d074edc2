from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import (
    AdaBoostRegressor,
    BaggingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, Ridge, SGDRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor

from irnet import DataError, ModelFileError, RecipeError, baseline_models, fit_forest
from irnet import forest as forest_module
from irnet.baselines import BASELINES, Baseline, find_baseline, fit_baseline
from irnet.forest import ForestParameters
from irnet.kernel import ScaledKernelRidge
from irnet.rows import hash_data
from irnet.storage import read_tensors, write_tensors

KIND = "an irnet baseline"

FITS: dict[str, tuple[dict[str, Any], Any]] = {
    "linear_regression": ({}, LinearRegression()),
    "lasso": ({"alpha": 0.01}, Lasso(0.01)),
    "ridge": ({"alpha": 3.0}, Ridge(3.0)),
    "elastic_net": ({"alpha": 0.01, "l1_ratio": 0.3}, ElasticNet(0.01, l1_ratio=0.3)),
    "sgd": (
        {"alpha": 1e-5, "penalty": "l1"},
        SGDRegressor("huber", penalty="l1", alpha=1e-5, learning_rate="adaptive", eta0=1e-3),
    ),
    "decision_tree": (
        {"max_depth": 6, "min_samples_split": 7},
        DecisionTreeRegressor(max_depth=6, min_samples_split=7),
    ),
    "adaboost": (
        {"learning_rate": 0.5, "loss": "square", "n_estimators": 9},
        AdaBoostRegressor(n_estimators=9, learning_rate=0.5, loss="square"),
    ),
    "k_neighbors": (
        {"n_neighbors": 4, "weights": "distance"},
        KNeighborsRegressor(4, weights="distance"),
    ),
    "svr": ({"C": 5.0, "gamma": 0.05, "epsilon": 0.1}, SVR(C=5.0, gamma=0.05, epsilon=0.1)),
    "bagging": (
        {"max_features": 0.5, "estimator__min_samples_split": 8, "n_estimators": 6},
        BaggingRegressor(DecisionTreeRegressor(min_samples_split=8), 6, max_features=0.5),
    ),
    "random_forest": (
        {"n_estimators": 6, "min_samples_split": 4, "max_features": 0.5, "max_depth": 9},
        RandomForestRegressor(6, min_samples_split=4, max_features=0.5, max_depth=9),
    ),
    "gradient_boosting": (
        {"learning_rate": 0.3, "max_leaf_nodes": 7, "max_iter": 12},
        HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.3, max_leaf_nodes=7, max_iter=12
        ),
    ),
    "kernel_ridge": ({"alpha": 0.01, "length": 2.0}, ScaledKernelRidge(0.01, 2.0)),
}
"""For each kind parameters of ours, and the same as an estimator (see test_kernel.py for ours)."""

SCALED = (
    "linear_regression", "lasso", "ridge", "elastic_net", "sgd", "k_neighbors", "svr",
    "kernel_ridge",
)  # fmt: skip


def fresh_rows(count: int, seed: int = 3) -> np.ndarray:
    scale = np.geomspace(0.01, 100, 12)
    noise = np.random.default_rng(seed).normal(size=(count, 12))
    return (noise * scale + 3 * scale).astype(np.float32)


def fit_small(name: str, table: Any) -> Baseline:
    return fit_baseline(
        name,
        table.features[:150],
        table.target[:150],
        table.names,
        search=False,
        parameters=FITS[name][0],
    )


@pytest.fixture(scope="module")
def fitted(table: Any) -> dict[str, Baseline]:
    return {name: fit_small(name, table) for name in BASELINES}


@pytest.mark.parametrize("name", BASELINES)
def test_predictions_equal_scikit_learn(fitted: dict[str, Baseline], table: Any, name: str) -> None:
    x, y = table.features[:150], table.target[:150]
    estimator = FITS[name][1]
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    fresh = fresh_rows(200)
    if name in SCALED:
        inputs = StandardScaler().fit(x.astype(np.float64))
        scaled = (y - y.mean()) / y.std()
        estimator.fit(inputs.transform(x.astype(np.float64)), scaled)
        own = estimator.predict(inputs.transform(fresh.astype(np.float64))) * y.std() + y.mean()
        tolerance = 1e-9  # the solvers' own rounding
    else:
        own = estimator.fit(x, y).predict(fresh)
        tolerance = 2e-6  # leaves are kept as float32
    np.testing.assert_allclose(fitted[name].predict(fresh), own, rtol=0, atol=tolerance)
    assert fitted[name].card["parameters"] == FITS[name][0]


def test_kinds_are_those_of_the_paper() -> None:
    """Table 3, and the ten of Table 4's caption."""
    table_3 = {kind.title: kind.paper_mae for kind in BASELINES.values() if kind.paper_mae}
    assert table_3 == {
        "AdaBoost": 0.479,
        "ElasticNet": 0.384,
        "Linear Regression": 0.261,
        "Ridge": 0.261,
        "SVR": 0.243,
        "KNeighbors": 0.154,
        "Decision Tree": 0.104,
        "Bagging": 0.078,
        "Random Forest": 0.072,
    }
    assert set(list(BASELINES)[-2:]) == {"gradient_boosting", "kernel_ridge"}
    assert {"lasso", "sgd"} <= set(BASELINES)
    forest = find_baseline("random_forest")
    assert forest.grid_points == 48
    assert forest.grid["max_features"] == (0.25, 0.33)


@pytest.mark.parametrize("name", BASELINES)
def test_search_tries_the_whole_grid_and_takes_the_best(
    table: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kind = BASELINES[name]
    few = {"n_estimators": 4, "max_iter": 8}
    fewer = {key: few.get(key, value) for key, value in kind.defaults.items()}
    if name == "random_forest":
        monkeypatch.setattr(forest_module, "TREES", (3, 4))
        kind = replace(kind, grid={**kind.grid, "n_estimators": (3, 4)})
    else:
        monkeypatch.setitem(BASELINES, name, replace(kind, defaults=fewer))
    found = fit_baseline(name, table.features[:120], table.target[:120], table.names)
    search = found.card["search"]
    assert len(search) == kind.grid_points
    for key, values in kind.grid.items():
        assert {entry[key] for entry in search} == set(values)
    best = min(search, key=lambda entry: float(entry["validation_mae"]))
    assert all(found.card["parameters"][key] == best[key] for key in kind.grid)
    direct = fit_baseline(
        name,
        table.features[:120],
        table.target[:120],
        table.names,
        search=False,
        parameters=found.card["parameters"],
    )
    np.testing.assert_array_equal(direct.predict(table.features), found.predict(table.features))
    assert direct.card["search"] == []
    if kind.grid_points > 1:
        assert len({entry["validation_mae"] for entry in search}) > 1


def test_search_never_divides_a_group(table: Any) -> None:
    # each row twice: where its twin is among the training rows, the nearest neighbour is exact
    x, y = np.repeat(table.features, 2, axis=0), np.repeat(table.target, 2)

    def nearest_one(groups: Any) -> float:
        found = fit_baseline("k_neighbors", x, y, table.names, groups=groups)
        return next(
            float(entry["validation_mae"])
            for entry in found.card["search"]
            if entry["n_neighbors"] == 1
        )

    assert nearest_one([f"g{i // 2}" for i in range(800)]) > 2.5 * nearest_one(None)
    with pytest.raises(DataError, match="groups has 3 labels for 800 rows"):
        fit_baseline("ridge", x, y, table.names, groups=[1, 2, 3])


def test_search_is_scored_in_the_targets_unit(table: Any) -> None:
    errors = [
        fit_baseline("ridge", table.features, table.target * factor, table.names).card["search"]
        for factor in (1.0, 50.0)
    ]
    for small, large in zip(*errors, strict=True):
        assert large["validation_mae"] == pytest.approx(50 * small["validation_mae"])


@pytest.mark.parametrize("name", ["elastic_net", "bagging"])
def test_the_search_runs_on_the_backend_that_the_caller_entered(table: Any, name: str) -> None:
    def fit(n_jobs: int) -> Baseline:
        return fit_baseline(
            name, table.features[:100], table.target[:100], table.names, n_jobs=n_jobs
        )

    alone = fit(1)
    counted: list[int] = []

    class Counting(joblib._parallel_backends.ThreadingBackend):
        def submit(self, func: Any, callback: Any = None) -> Any:
            counted.append(1)
            return super().submit(func, callback)

    joblib.register_parallel_backend("counting", Counting)
    with joblib.parallel_config("counting"):
        beside = fit(2)
    assert len(counted) > 1
    assert beside.card["search"] == alone.card["search"]
    np.testing.assert_array_equal(beside.predict(table.features), alone.predict(table.features))


def test_seed_changes_split_and_fit(table: Any) -> None:
    cards = [
        fit_baseline("decision_tree", table.features, table.target, table.names, seed=seed).card
        for seed in (0, 0, 1)
    ]
    assert cards[0]["search"] == cards[1]["search"] != cards[2]["search"]
    assert (cards[0]["seed"], cards[2]["seed"]) == (0, 1)


def test_card_says_what_was_fitted(fitted: dict[str, Baseline], table: Any) -> None:
    x, y = table.features[:150], table.target[:150]
    for baseline in fitted.values():
        card = baseline.card
        assert card["data_sha256"] == hash_data(x, y, table.names)
        assert (card["rows"], card["seed"], card["converged"]) == (150, 0, True)
        assert json.loads(json.dumps(card)) == card
    other = fit_baseline(
        "ridge", x, y, table.names, search=False, target_name="gap", target_unit="eV"
    )
    assert (other.card["target"], other.card["unit"]) == ("gap", "eV")
    assert other.title == "Ridge"


def test_a_fit_that_did_not_converge_says_so(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BASELINES["sgd"]
    hasty = replace(kind, fixed={**kind.fixed, "max_iter": 2})
    monkeypatch.setitem(BASELINES, "sgd", hasty)
    found = fit_baseline("sgd", table.features, table.target, table.names)
    assert found.card["converged"] is False


def test_parameters_may_be_numpys_and_names_of_rules(table: Any, tmp_path: Path) -> None:
    parameters = {"C": np.float64(4.0), "gamma": "scale"}
    found = fit_baseline(
        "svr", table.features, table.target, table.names, search=False, parameters=parameters
    )
    found.save(tmp_path / "svr")
    assert Baseline.load(tmp_path / "svr").card["parameters"] == {
        "C": 4.0, "gamma": "scale", "epsilon": 0.01,
    }  # fmt: skip
    same = {"C": 4.0, "gamma": 1 / 12}  # the rule's value where features are standardised
    direct = fit_baseline(
        "svr", table.features, table.target, table.names, search=False, parameters=same
    )
    x = fresh_rows(50)
    np.testing.assert_allclose(found.predict(x), direct.predict(x), rtol=0, atol=1e-6)


def test_random_forest_is_the_forest(fitted: dict[str, Baseline], table: Any) -> None:
    parameters = ForestParameters(**FITS["random_forest"][0])
    forest = fit_forest(
        table.features[:150], table.target[:150], table.names, search=False, parameters=parameters
    )
    x = fresh_rows(300)
    np.testing.assert_array_equal(fitted["random_forest"].predict(x), forest.predict(x))


@pytest.mark.parametrize(
    ("call", "kind", "complaint"),
    [
        ({"name": "lasoo"}, RecipeError, 'no baseline "lasoo"; did you mean "lasso"'),
        ({"parameters": {"alhpa": 1}}, RecipeError, "no parameter 'alhpa' to set; did you mean"),
        ({"name": "linear_regression", "parameters": {"a": 1}}, RecipeError, "there are: none"),
        ({"parameters": {"alpha": -1.0}}, RecipeError, "Ridge cannot be fitted on 400 rows"),
        ({"parameters": {"alpha": len}}, RecipeError, "alpha is <built-in .* neither a number"),
        ({"name": "k_neighbors", "parameters": {"weights": len}}, RecipeError, "none of uniform"),
        ({"name": "sgd", "parameters": {"penalty": "l3"}}, RecipeError, "'l3', none of l2, l1"),
        ({"parameters": {"alpha": 1.0}, "search": True}, DataError, "search=False"),
        ({"name": "k_neighbors", "search": True, "rows": 12}, RecipeError, "on 12 rows: .*more"),
        ({"search": True, "rows": 2}, DataError, "cannot be split"),
        ({"target": [1.0]}, DataError, "target has shape"),
    ],
)
def test_bad_calls(table: Any, call: dict[str, Any], kind: type[Exception], complaint: str) -> None:
    rows = call.get("rows", 400)
    with pytest.raises(kind, match=complaint):
        fit_baseline(
            call.get("name", "ridge"),
            table.features[:rows],
            call.get("target", table.target[:rows]),
            table.names,
            search=call.get("search", False),
            parameters=call.get("parameters"),
        )


def test_input_layout_changes_nothing(fitted: dict[str, Baseline]) -> None:
    x = fresh_rows(60)
    for name, baseline in fitted.items():
        expected = baseline.predict(x)
        assert baseline.predict(x[:0]).shape == (0,), name
        for same in (
            x.astype(np.float64),
            np.asfortranarray(x),
            torch.from_numpy(x).double(),
            torch.from_numpy(np.repeat(x, 2, axis=1))[:, ::2],
        ):
            np.testing.assert_array_equal(baseline.predict(same), expected, name)
    with pytest.raises(DataError, match="row 0, column 'column 3' is inf"):
        fitted["svr"].predict(np.where(np.arange(12) == 3, 1e300, 0.0)[None])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("ridge", "_LINEAR_BLOCK"),
        ("k_neighbors", "_NEIGHBOUR_BLOCK"),
        ("adaboost", "_TREE_BLOCK"),
    ],
)
def test_blocks_change_nothing(
    fitted: dict[str, Baseline], monkeypatch: pytest.MonkeyPatch, name: str, block: str
) -> None:
    x = fresh_rows(100)
    expected = fitted[name].predict(x)
    monkeypatch.setattr(baseline_models, block, 7)
    np.testing.assert_array_equal(fitted[name].predict(x), expected)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.sampled_from(["uniform", "distance"]),
    st.booleans(),
)
def test_neighbours_are_the_nearest_however_near_the_next(
    seed: int, count: int, weights: str, crowded: bool
) -> None:
    """Against distances of all pairs; crowded: many rows alike, the first of them win."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(90, 3)).astype(np.float32)
    if crowded:
        x = x[generator.integers(0, 5, size=len(x))]
    y = generator.normal(size=90)
    baseline = fit_baseline(
        "k_neighbors",
        x,
        y,
        ["a", "b", "c"],
        search=False,
        parameters={"n_neighbors": count, "weights": weights},
    )
    asked = np.concatenate([x[:10], generator.normal(size=(10, 3)).astype(np.float32)])
    std = x.std(axis=0, dtype=np.float64)
    distances = np.sqrt((((asked[:, None] - x[None].astype(np.float64)) / std) ** 2).sum(axis=2))
    for predicted, distance in zip(baseline.predict(asked), distances, strict=True):
        kth = np.sort(distance)[count - 1]
        inside, edge = distance < kth - 1e-9, np.abs(distance - kth) <= 1e-9
        places = np.concatenate([np.flatnonzero(inside), np.flatnonzero(edge)])[:count]
        near = distance[places]
        if weights == "uniform":
            own = y[places].mean()
        elif (near < 1e-12).any():
            own = y[places][near < 1e-12].mean()
        else:
            own = np.average(y[places], weights=1 / near)
        assert predicted == pytest.approx(own, abs=1e-9)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    tensors, header = read_tensors(path, KIND)
    change(tensors, header)
    write_tensors(path, tensors, header)


def put(name: str, value: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    """A change of a file: a tensor by another, or by what a function makes of it."""

    def change(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        tensors[name] = value(tensors[name].clone()) if callable(value) else value

    return change


def poke(place: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[place] = value
        return tensor

    return change


def drop(name: str) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    return lambda tensors, header: tensors.__delitem__(name)


def head(**changes: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    return lambda tensors, header: header.update(changes)


def parameter(name: str, value: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    return lambda tensors, header: header["card"]["parameters"].update({name: value})


TREES = ("decision_tree", "adaboost", "bagging", "random_forest", "gradient_boosting")
HOSTILE: list[tuple[str, Any, str]] = [
    *((name, put("feature", poke(0, 12)), "feature that does not exist") for name in TREES),
    *((name, put("feature", poke(0, 65535)), "do not fit") for name in TREES),
    *((name, put("sizes", poke(0, 1)), "whole trees") for name in TREES),
    *((name, put("sizes", poke(0, 10**15)), "do not fit") for name in TREES),
    *((name, put("value", poke(0, np.nan)), "not finite") for name in TREES),
    *((name, put("threshold", poke(0, np.inf)), "not finite") for name in TREES),
    *((name, drop("value"), "value") for name in TREES),
    ("decision_tree", put("feature", lambda t: t[:-1]), "do not fit"),
    ("decision_tree", put("sizes", torch.zeros(0, dtype=torch.int64)), "whole trees"),
    ("decision_tree", put("threshold", lambda t: t.to(torch.bfloat16)), "do not fit"),
    ("adaboost", drop("weights"), "weights"),
    ("adaboost", put("weights", lambda t: -t), "negative"),
    ("adaboost", put("weights", lambda t: t[:-1]), "weights is float64 of shape"),
    ("gradient_boosting", drop("offset"), "offset"),
    ("gradient_boosting", put("offset", poke(0, np.inf)), "not finite"),
    *((name, put("std", poke(3, 0.0)), "deviation is 0") for name in SCALED),
    *((name, put("mean", lambda t: t.float()), "mean is float32") for name in SCALED),
    *((name, put("target_std", lambda t: t.repeat(2)), "target_std") for name in SCALED),
    ("ridge", put("coefficients", lambda t: t[:5]), "coefficients is float64 of shape"),
    ("ridge", drop("intercept"), "intercept"),
    ("k_neighbors", put("rows", lambda t: t[:, :5].contiguous()), "rows is float32 of shape"),
    ("k_neighbors", put("rows", lambda t: t[:2].contiguous()), "target is float64"),
    ("k_neighbors", put("rows", poke(7, np.nan)), "rows holds"),
    ("k_neighbors", parameter("n_neighbors", 10**9), "n_neighbors is 1000000000 for 150 rows"),
    ("k_neighbors", parameter("n_neighbors", 0), "n_neighbors is 0"),
    ("k_neighbors", parameter("n_neighbors", "4"), "n_neighbors is '4'"),
    ("k_neighbors", parameter("weights", "os.system"), "weights is 'os.system'"),
    ("k_neighbors", head(card={}), "card is not whole"),
    ("svr", put("gamma", poke(0, -1.0)), "gamma is -1"),
    ("svr", put("dual", lambda t: t[:-1]), "dual is float64"),
    ("kernel_ridge", put("length", poke(0, 0.0)), "length is 0"),
    ("kernel_ridge", put("scales", lambda t: t[:-1]), "scales is float64"),
    ("kernel_ridge", put("dual", lambda t: t[:-1]), "dual is float64"),
    ("svr", head(name="kernel_ridge"), "scales"),
    ("svr", head(name="ridge"), "coefficients"),
    ("ridge", head(name="svc"), "a baseline 'svc'"),
    ("ridge", head(name=["ridge"]), "do not fit"),
    ("ridge", head(format=9), "written in format 9"),
    ("ridge", head(kind="an irnet random forest"), "holds an irnet random forest"),
    ("ridge", head(feature_names=[]), "feature names"),
    ("ridge", head(feature_names=None), "do not fit"),
    ("ridge", head(feature_names=["a"] * 12), "given twice"),
    ("ridge", head(card=[1]), "do not fit"),
    ("k_neighbors", lambda _, header: header["card"].update(parameters=[]), "do not fit"),
]


@pytest.mark.parametrize(("name", "change", "complaint"), HOSTILE)
def test_hostile_files_are_refused(
    fitted: dict[str, Baseline], tmp_path: Path, name: str, change: Any, complaint: str
) -> None:
    path = tmp_path / "baseline.safetensors"
    fitted[name].save(path)
    rewrite(path, change)
    with pytest.raises(ModelFileError, match=complaint):
        Baseline.load(path)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        Baseline.load(tmp_path / "none")
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        Baseline.load(tmp_path / "text")


DAMAGED = ("elastic_net", "k_neighbors", "svr", "kernel_ridge", "adaboost", "gradient_boosting")


@pytest.fixture(scope="module")
def saved(fitted: dict[str, Baseline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in DAMAGED:
        fitted[name].save(folder / name)
    return folder


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(DAMAGED),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
    st.booleans(),
)
def test_damage_anywhere_is_refused_or_harmless(
    saved: Path, name: str, where: float, noise: bytes, cut: bool
) -> None:
    """A file with bytes changed, or cut off, is refused or predicts numbers; nothing else."""
    content = bytearray((saved / name).read_bytes())
    place = int(where * len(content))
    content[place : place + len(noise)] = noise
    damaged = saved / f"{name}.damaged"
    damaged.write_bytes(bytes(content[:place] if cut else content))
    try:
        baseline = Baseline.load(damaged)
    except ModelFileError:
        return
    with np.errstate(all="ignore"):
        assert baseline.predict(fresh_rows(5)[:, : len(baseline.feature_names)]).shape == (5,)
