from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor

from irnet import DataError, Forest, ModelFileError, fit_forest, metrics
from irnet import forest as forest_module
from irnet.forest import ForestParameters


def fresh_rows(count: int, seed: int = 3) -> np.ndarray:
    scale = np.geomspace(0.01, 100, 12)
    noise = np.random.default_rng(seed).normal(size=(count, 12))
    return (noise * scale + 3 * scale).astype(np.float32)


@pytest.fixture(scope="module")
def reference(table: Any) -> RandomForestRegressor:
    model = RandomForestRegressor(
        n_estimators=12, min_samples_split=5, max_features=0.25, max_depth=10, random_state=0
    )
    return model.fit(table.features, table.target)


def test_predictions_equal_scikit_learn(
    forest: Forest, reference: RandomForestRegressor, table: Any
) -> None:
    assert forest.trees == 12
    assert forest.nodes == sum(tree.tree_.node_count for tree in reference.estimators_)
    for x in (table.features, fresh_rows(500)):
        np.testing.assert_allclose(forest.predict(x), reference.predict(x), rtol=0, atol=1e-6)


def test_each_tree_equals_scikit_learn(
    forest: Forest, reference: RandomForestRegressor, table: Any
) -> None:
    x = fresh_rows(100)
    own = np.stack([tree.predict(x) for tree in reference.estimators_], axis=1)
    np.testing.assert_allclose(forest.predict_trees(x), own, rtol=0, atol=1e-6)
    x[7, 2] = np.nan
    with pytest.raises(DataError, match="row 7, column 'column 2' is nan"):
        forest.predict_trees(x)


def test_thresholds_split_float32_like_float64() -> None:
    # neighbouring float32 values: their middle is no float32
    low = np.float32(4.0)
    x = np.array([[low], [np.nextafter(low, np.float32(8))]] * 8, dtype=np.float32)
    y = np.array([0.0, 1.0] * 8)
    tree = DecisionTreeRegressor().fit(x, y)
    forest = fit_forest(
        x, y, ["a"], search=False, parameters=ForestParameters(3, 2, 1.0, 10), seed=0
    )
    np.testing.assert_array_equal(tree.predict(x), y)
    np.testing.assert_array_equal(forest.predict(x) > 0.5, y > 0.5)
    assert forest.nodes == 9


def test_children_from_preorder_equal_scikit_learn(
    forest: Forest, reference: RandomForestRegressor
) -> None:
    start = 0
    for estimator in reference.estimators_:
        tree = estimator.tree_
        inner = tree.children_left >= 0
        own = slice(start, start + tree.node_count)
        np.testing.assert_array_equal(
            forest._shape.right[own][inner] - start, tree.children_right[inner]
        )
        depth = forest._shape.depth[own]
        assert depth.max() == tree.max_depth
        start += tree.node_count


@pytest.mark.parametrize("prunable", [True, False])
@pytest.mark.parametrize(("precision", "most"), [("float32", 0.0), ("float16", 2e-3)])
def test_saved_and_loaded(
    forest: Forest, tmp_path: Path, precision: str, most: float, prunable: bool
) -> None:
    path = tmp_path / "forest.safetensors"
    forest.save(path, precision, prunable=prunable)
    loaded = Forest.load(path)
    x = fresh_rows(300)
    np.testing.assert_allclose(loaded.predict(x), forest.predict(x), rtol=0, atol=most)
    assert loaded.feature_names == forest.feature_names
    assert loaded.card == forest.card
    assert (loaded.count is not None) == prunable


def test_five_bytes_a_node(table: Any, tmp_path: Path) -> None:
    x, y = np.tile(table.features, (8, 1)), np.tile(table.target, 8)
    x += np.random.default_rng(0).normal(size=x.shape) * 1e-3
    forest = fit_forest(
        x, y, table.names, search=False, parameters=ForestParameters(10, 2, 0.25, 25)
    )
    forest.save(tmp_path / "f", "float16", prunable=False)
    header = 4000
    assert (tmp_path / "f").stat().st_size < 5.01 * forest.nodes + header


def test_no_pickle_and_no_precision_by_surprise(forest: Forest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float8"):
        forest.save(tmp_path / "f", "float8")
    assert not list(tmp_path.iterdir())


def test_truncated_foreign_and_broken_files(forest: Forest, ensemble: Any, tmp_path: Path) -> None:
    path = tmp_path / "forest.safetensors"
    forest.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelFileError, match=r"forest\.safetensors: truncated"):
        Forest.load(path)
    ensemble.members[0].save(path)
    with pytest.raises(ModelFileError, match="holds an irnet member, expected an irnet random"):
        Forest.load(path)
    replace(forest, sizes=forest.sizes[::-1].copy()).save(path)
    with pytest.raises(ModelFileError, match="do not form whole trees"):
        Forest.load(path)
    replace(forest, feature_names=("only",)).save(path)
    with pytest.raises(ModelFileError, match="feature that does not exist"):
        Forest.load(path)


def test_pruning_keeps_to_the_budget(forest: Forest, table: Any) -> None:
    errors = []
    for budget in (forest.nodes, forest.nodes // 2, forest.nodes // 5, 12):
        pruned = forest.pruned(nodes=budget)
        pruned._check_structure()
        assert 0.8 * budget <= pruned.nodes <= budget
        assert pruned.trees == 12
        errors.append(metrics.rmse(pruned.predict(table.features), table.target))
    assert errors == sorted(errors)
    stumps = forest.pruned(nodes=12)
    assert stumps.nodes == 12
    assert np.ptp(stumps.predict(table.features)) < 1e-6


def test_pruning_equals_scikit_learns_weakest_link(table: Any) -> None:
    # one tree on all rows: scikit-learn prunes the same tree by the same rule
    path = DecisionTreeRegressor(random_state=0, min_samples_split=5).cost_complexity_pruning_path(
        table.features, table.target
    )
    alpha = path.ccp_alphas[len(path.ccp_alphas) // 2] * 1.0000001
    pruned = DecisionTreeRegressor(random_state=0, min_samples_split=5, ccp_alpha=alpha)
    pruned.fit(table.features, table.target)
    whole = DecisionTreeRegressor(random_state=0, min_samples_split=5)
    whole.fit(table.features, table.target)
    tree = whole.tree_
    leaf = tree.children_left < 0
    forest = Forest(
        feature_names=table.names,
        sizes=np.array([tree.node_count]),
        feature=np.where(leaf, 65535, tree.feature).astype(np.uint16),
        threshold=np.where(leaf, np.nan, tree.threshold).astype(np.float32),
        value=np.where(leaf, tree.value[:, 0, 0], np.nan).astype(np.float32),
        count=np.where(leaf, tree.n_node_samples, 0).astype(np.uint32),
        card={},
    )
    ours = forest.pruned(nodes=pruned.tree_.node_count)
    assert ours.nodes == pruned.tree_.node_count
    np.testing.assert_allclose(
        ours.predict(table.features), pruned.predict(table.features), atol=1e-5
    )


def test_fewer_trees(forest: Forest, reference: RandomForestRegressor) -> None:
    x = fresh_rows(50)
    few = forest.pruned(nodes=forest.nodes, trees=3)
    expected = np.mean([tree.predict(x) for tree in reference.estimators_[:3]], axis=0)
    np.testing.assert_allclose(few.predict(x), expected, atol=1e-6)


def test_a_pruned_forest_can_be_pruned_again(forest: Forest) -> None:
    once = forest.pruned(nodes=forest.nodes // 3)
    twice = forest.pruned(nodes=forest.nodes // 2).pruned(nodes=forest.nodes // 3)
    x = fresh_rows(200)
    assert metrics.rmse(once.predict(x), twice.predict(x)) < 0.1


def test_impossible_pruning(forest: Forest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 trees need at least 12 nodes"):
        forest.pruned(nodes=11)
    with pytest.raises(DataError, match="trees is 13"):
        forest.pruned(nodes=100, trees=13)
    forest.save(tmp_path / "f", prunable=False)
    with pytest.raises(DataError, match="prunable=True"):
        Forest.load(tmp_path / "f").pruned(nodes=100)


def test_threads_blocks_and_tensors_change_nothing(
    forest: Forest, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = fresh_rows(1000)
    expected = forest.predict(x)
    np.testing.assert_array_equal(forest.predict(torch.from_numpy(x)), expected)
    monkeypatch.setattr(forest_module, "_BLOCK_ROWS", 70)
    np.testing.assert_array_equal(forest.predict(x), expected)
    np.testing.assert_array_equal(forest.predict(x, workers=3), expected)
    on_device = forest._predict_on_device(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(on_device, expected, rtol=1e-12)
    assert forest.predict(x[:0]).shape == (0,)


def test_layout_and_type_of_the_input_change_nothing(forest: Forest) -> None:
    x = fresh_rows(100)
    expected = forest.predict(x)
    for same in (
        x.astype(np.float64),
        np.asfortranarray(x),
        np.repeat(x, 2, axis=1)[:, ::2],
        torch.from_numpy(x).double(),
        torch.from_numpy(np.repeat(x, 2, axis=1))[:, ::2],
    ):
        np.testing.assert_array_equal(forest.predict(same), expected)
    np.testing.assert_array_equal(forest.predict(x[::-1]), expected[::-1])


@pytest.mark.gpu
def test_gpu_equals_cpu(forest: Forest) -> None:
    x = fresh_rows(1000)
    on_gpu = forest.predict(torch.from_numpy(x).cuda())
    np.testing.assert_allclose(on_gpu, forest.predict(x), rtol=1e-12)
    assert forest.predict(torch.from_numpy(x[:0]).cuda()).shape == (0,)


def test_search_covers_the_papers_grid(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forest_module, "TREES", (5, 10))
    forest = fit_forest(
        table.features, table.target, table.names, search_rows=300, groups=np.arange(400) // 2
    )
    search = forest.card["search"]
    assert len(search) == 2 * 4 * 2 * 2
    best = min(search, key=lambda entry: entry["validation_mae"])
    assert all(best[key] == value for key, value in forest.card["parameters"].items())
    assert forest.trees == best["n_estimators"]
    assert forest.card["rows"] == 400
    by_depth = {
        depth: np.mean([e["validation_mae"] for e in search if e["max_depth"] == depth])
        for depth in (10, 25)
    }
    assert by_depth[10] != by_depth[25]


def test_shallower_settings_are_read_off_the_deepest(table: Any) -> None:
    # with every feature tried at each split nothing is drawn at random but the bootstrap, so that
    # reading a setting off a deeper fit must give just the trees that its own fit gives
    deep, rows = forest_module._fit(
        table.features, table.target, table.names, ForestParameters(4, 5, 1.0, 25), 0, 1
    )
    value, _ = deep._node_values_and_errors()
    for depth, split in ((3, 5), (25, 20), (6, 15)):
        stop = (deep._shape.depth >= depth) | (rows < split)
        found = deep._collapsed(stop, value, {})
        own, _ = forest_module._fit(
            table.features, table.target, table.names, ForestParameters(4, split, 1.0, depth), 0, 1
        )
        assert found.nodes == own.nodes
        x = fresh_rows(200)
        close = np.isclose(found.predict(x), own.predict(x), atol=1e-5)
        assert close.mean() > 0.85  # between equally good splits the draw decides


def test_bad_input(table: Any, forest: Forest) -> None:
    x = table.features.copy()
    x[5, 1] = np.nan
    with pytest.raises(DataError, match="row 5, column 'column 1' is nan"):
        fit_forest(x, table.target, table.names, search=False)
    with pytest.raises(DataError, match="row 5, column 'column 1' is nan"):
        forest.predict(x)
    with pytest.raises(DataError, match=r"expected \(rows, 12\)"):
        forest.predict(x[:, :3])
    with pytest.raises(DataError, match="search=False"):
        fit_forest(table.features, table.target, table.names, parameters=ForestParameters())
    with pytest.raises(DataError, match="groups has 1 labels"):
        fit_forest(table.features, table.target, table.names, groups=[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_shape_of_random_trees(leaves: int, seed: int) -> None:
    """Right children, subtree ends and depths against a plain walk down the tree."""
    generator = np.random.default_rng(seed)

    def grow(count: int) -> list[bool]:
        if count == 1:
            return [True]
        left = int(generator.integers(1, count))
        return [False, *grow(left), *grow(count - left)]

    leaf = np.array(grow(leaves) + grow(3) + grow(1))
    shape = forest_module._Shape.of(leaf)

    def check(node: int, depth: int) -> int:
        assert shape.depth[node] == depth
        end = node + 1
        if not leaf[node]:
            right = check(node + 1, depth + 1)
            assert shape.right[node] == right
            end = check(right, depth + 1)
        assert shape.end[node] == end
        return end

    assert check(check(check(0, 0), 0), 0) == len(leaf)
