"""What every model of the package keeps to, whatever it is made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irnet import DataError, Ensemble, FeatureMismatchError, Forest, IRNetError, metrics
from irnet.baselines import BASELINES, Baseline, fit_baseline

SMALL_PARAMETERS: dict[str, dict[str, Any]] = {
    "adaboost": {"n_estimators": 10},
    "bagging": {"n_estimators": 5},
    "random_forest": {"n_estimators": 5},
    "gradient_boosting": {"max_iter": 20},
}


class EnsembleModel:
    share_of_the_mean = 0.6

    def __init__(self, ensemble: Ensemble) -> None:
        self.model = ensemble
        self._scorer = ensemble.scorer(precision="fp32")

    def predict(self, x: Any) -> np.ndarray:
        return self._scorer.predict(x).mean

    def reload(self, folder: Path) -> "EnsembleModel":
        self.model.save(folder / "model")
        return EnsembleModel(Ensemble.load(folder / "model"))


class ForestModel:
    share_of_the_mean = 0.6

    def __init__(self, forest: Forest) -> None:
        self.model = forest

    def predict(self, x: Any) -> np.ndarray:
        return self.model.predict(x)

    def reload(self, folder: Path) -> "ForestModel":
        self.model.save(folder / "forest.safetensors")
        return ForestModel(Forest.load(folder / "forest.safetensors"))


class BaselineModel:
    def __init__(self, baseline: Baseline) -> None:
        self.model = baseline
        # half of the made-up target is not linear in the features
        linear = BASELINES[baseline.name].form == "linear"
        self.share_of_the_mean = 0.75 if linear else 0.6

    def predict(self, x: Any) -> np.ndarray:
        return self.model.predict(x)

    def reload(self, folder: Path) -> "BaselineModel":
        self.model.save(folder / "baseline.safetensors")
        return BaselineModel(Baseline.load(folder / "baseline.safetensors"))


@pytest.fixture(scope="module", params=["ensemble", "forest", *BASELINES])
def model(request: pytest.FixtureRequest) -> Any:
    if request.param in BASELINES:
        return BaselineModel(fit_small(request.param, request.getfixturevalue("table")))
    wrap: Callable[[Any], Any] = {"ensemble": EnsembleModel, "forest": ForestModel}[request.param]
    return wrap(request.getfixturevalue(request.param))


def fit_small(name: str, table: Any) -> Baseline:
    parameters = SMALL_PARAMETERS.get(name)
    return fit_baseline(
        name, table.features, table.target, table.names, search=False, parameters=parameters
    )


def test_beats_the_mean(model: Any, table: Any) -> None:
    error = metrics.mae(model.predict(table.features), table.target)
    mean = np.abs(table.target - table.target.mean()).mean()
    assert error < model.share_of_the_mean * mean


def test_reloaded_model_predicts_the_same(model: Any, table: Any, tmp_path: Path) -> None:
    again = model.reload(tmp_path)
    np.testing.assert_array_equal(again.predict(table.features), model.predict(table.features))
    assert dict(again.model.card) == dict(model.model.card)


def test_rows_are_independent_and_in_order(model: Any, table: Any) -> None:
    whole = model.predict(table.features)
    assert whole.shape == (len(table.features),)
    assert whole.dtype == np.float64
    np.testing.assert_array_equal(model.predict(table.features[::-1].copy()), whole[::-1])
    np.testing.assert_array_equal(model.predict(table.features[17:18]), whole[17:18])
    np.testing.assert_array_equal(model.predict(torch.from_numpy(table.features)), whole)


def test_owns_its_feature_names(model: Any, table: Any) -> None:
    assert model.model.feature_names == table.names
    model.model.check_features(list(table.names))
    swapped = [table.names[1], table.names[0], *table.names[2:]]
    with pytest.raises(FeatureMismatchError, match="order differs: 'column 0' is column 1"):
        model.model.check_features(swapped)
    with pytest.raises(FeatureMismatchError, match='missing "column 11"'):
        model.model.check_features(table.names[:-1])


def test_permuted_columns_would_matter(model: Any, table: Any) -> None:
    permuted = np.ascontiguousarray(table.features[:, ::-1])
    assert np.abs(model.predict(permuted) - model.predict(table.features)).mean() > 0.1


def test_refuses_bad_rows(model: Any, table: Any) -> None:
    x = table.features.copy()
    x[3, 4] = np.inf
    with pytest.raises(DataError, match="row 3, column 'column 4' is inf"):
        model.predict(x)
    with pytest.raises(IRNetError):
        model.predict(x[:, :-1])


def test_card_names_target_unit_and_data(model: Any) -> None:
    card = model.model.card
    assert (card["target"], card["unit"]) == ("formation_enthalpy", "eV/atom")
    assert len(card["data_sha256"]) == 64
    assert card["rows"] == 400
