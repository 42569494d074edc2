from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irnet import Ensemble
from screening.columns import PREDICTIONS, check_table
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.model_library import load_model
from screening.predict import predict_structures, show_predictions, write_predictions


def salt(name: str, a: int, b: int) -> Crystal:
    numbers = np.array([a, b], dtype=np.int64)
    return Crystal(name, 4.1 * np.eye(3), numbers, np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]))


def test_predictions_are_the_models_own(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    crystals = [salt("x", 11, 17), salt("heavy", 104, 17), salt("y", 55, 17), salt("z", 85, 19)]
    table, failures = predict_structures(model, crystals, tmp_path / "w", device="cpu")
    check_table(table, PREDICTIONS)
    assert table["id"].to_pylist() == ["x", "y", "z"]
    assert [failure.id for failure in failures] == ["heavy"]
    values = featurize_crystals([crystals[0], crystals[2], crystals[3]]).values
    prediction = model.ensemble.scorer().predict(values.astype(np.float32))
    np.testing.assert_allclose(
        table["formation_enthalpy_ev_per_atom"].to_numpy(), prediction.mean, atol=1e-6
    )
    np.testing.assert_allclose(
        table["formation_enthalpy_std_ev_per_atom"].to_numpy(), prediction.std, atol=1e-6
    )
    assert model.forest is not None
    np.testing.assert_allclose(
        table["rf_formation_enthalpy_ev_per_atom"].to_numpy(),
        model.forest.predict(values.astype(np.float32)),
        atol=1e-6,
    )
    assert table["formula"].to_pylist() == ["NaCl", "CsCl", "KAt"]
    assert table["known"].to_pylist() == [True, False, False]
    assert table["unseen_elements"].to_pylist() == ["", "Cs", ""]
    assert table["imputed_elements"].to_pylist() == [None, None, "At"]
    write_predictions(table, failures, tmp_path / "p.parquet")
    assert (tmp_path / "p.failures.parquet").exists()
    shown = show_predictions(table, 2)
    assert shown["id"].tolist() == ["x", "y"]
    assert shown["known"].tolist() == ["yes", ""]
    assert shown["unseen"].tolist() == ["", "Cs"]
    assert "unseen" not in show_predictions(table, 1)
    assert table.column_names == [column.name for column in PREDICTIONS.columns]


def test_a_single_member_has_no_spread(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    alone = replace(model, ensemble=Ensemble(model.ensemble.members[:1], model.ensemble.card))
    table, _ = predict_structures(alone, [salt("x", 11, 17)], tmp_path, device="cpu")
    assert table["formation_enthalpy_std_ev_per_atom"].to_pylist() == [None]
    assert show_predictions(table, 1)["±"].tolist() == ["-"]


@pytest.mark.parametrize("count", [0, 1])
def test_few_structures_are_a_table_too(tiny_model: Path, tmp_path: Path, count: int) -> None:
    crystals = [salt("x", 11, 17)][:count]
    table, _ = predict_structures(load_model(tiny_model), crystals, tmp_path, device="cpu")
    check_table(table, PREDICTIONS)
    assert table.num_rows == count


def test_intervals_come_from_the_models_calibration(calibrated_model: Path, tmp_path: Path) -> None:
    model = load_model(calibrated_model)
    crystals = [salt("x", 11, 17), salt("y", 55, 17)]
    table, _ = predict_structures(model, crystals, tmp_path, device="cpu")
    check_table(table, PREDICTIONS)
    features = featurize_crystals(crystals).values.astype(np.float32)
    assert model.uncertainty is not None
    assert model.forest is not None
    assessed = model.uncertainty.assess(
        features, model.ensemble.scorer().predict(features), model.forest.predict(features)
    )
    for name, values in {
        "formation_enthalpy_low_ev_per_atom": assessed.low,
        "formation_enthalpy_high_ev_per_atom": assessed.high,
        "applicability_distance": assessed.distance,
    }.items():
        np.testing.assert_allclose(table[name].to_numpy(), values, atol=1e-6)
    shown = show_predictions(table, 2)
    assert "±" not in shown
    assert shown["90 % interval"][0] == f"[{assessed.low[0]:.2f}, {assessed.high[0]:.2f}]"
    assert shown["distance"][1] == f"{assessed.distance[1]:.2f}"
    uncalibrated = show_predictions(
        predict_structures(replace(model, uncertainty=None), crystals, tmp_path, device="cpu")[0], 2
    )
    assert "90 % interval" not in uncalibrated
    assert "distance" not in uncalibrated
