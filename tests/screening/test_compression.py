from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from screening.compression import bundle_model
from screening.errors import ConfigurationError, ModelError
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.model_card import Score, read_card, write_card
from screening.model_library import FOREST_NAME, REFERENCE_NAME, UNCERTAINTY_NAME, load_model
from screening.training import HELD_OUT_NAME


@pytest.fixture
def trained(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model as a training that held out some rows."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "trained"))
    lattice = 4 * np.eye(3)
    coords = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    featurizer = PrototypeFeaturizer(measure_geometry(lattice, coords, [0, 1, 2, 2, 2]))
    numbers = np.array([[a, b, x] for a in (11, 19, 37) for b in (12, 20, 22) for x in (8, 9)])
    rows = {"features": np.asarray(featurizer(numbers)), "target": numbers.sum(axis=1) / 10.0}
    (folder / HELD_OUT_NAME).write_bytes(save(rows))
    score = Score(
        predictor="irnet", group="held_out", n=9, mae=0.1, mae_low=0.05, mae_high=0.2, bias=-0.1
    )
    write_card(read_card(folder).model_copy(update={"held_out": (score,)}), folder)
    return folder


def test_a_small_model_predicts_nearly_the_same_and_says_how_nearly(
    trained: Path, tmp_path: Path
) -> None:
    card = bundle_model(trained, tmp_path / "small", nodes=800)
    cost = card.compression
    assert cost is not None
    assert cost.rows == 18
    assert card.name == "small"
    assert cost.bytes_after < cost.bytes_before
    large, small = load_model(trained), load_model(tmp_path / "small")
    assert small.card == card
    assert small.forest is not None
    assert large.forest is not None
    assert small.forest.nodes <= 800 < large.forest.nodes
    assert cost.forest is not None
    assert cost.forest["nodes_after"] == small.forest.nodes
    assert 0 < cost.largest_irnet_change < 0.2
    assert abs(cost.irnet_mae_after - cost.irnet_mae_before) <= cost.largest_irnet_change
    assert cost.random_forest_mae_after != cost.random_forest_mae_before
    assert small.training_formulas.contains(["NaCl"]).all()


def test_six_bits_and_fewer_members_are_smaller_and_said(trained: Path, tmp_path: Path) -> None:
    eight = bundle_model(trained, tmp_path / "eight", nodes=800)
    six = bundle_model(trained, tmp_path / "six", nodes=800, weights="int6")
    one = bundle_model(trained, tmp_path / "one", nodes=800, weights="int6", members=1)
    assert eight.compression is not None
    assert six.compression is not None
    assert one.compression is not None
    assert one.compression.bytes_after < six.compression.bytes_after
    assert six.compression.bytes_after < eight.compression.bytes_after
    assert 0 < six.compression.largest_irnet_change < 1
    assert (six.training.members, one.training.members) == (2, 1)
    assert len(load_model(tmp_path / "one").ensemble.members) == 1
    assert one.compression.weights == "int6 per output channel, 1 of 2 members"
    assert six.compression.weights == "int6 per output channel"


def test_a_twins_errors_are_taken_over_and_called_so(trained: Path, tmp_path: Path) -> None:
    final = Path(shutil.copytree(trained, tmp_path / "final"))
    write_card(read_card(final).model_copy(update={"held_out": ()}), final)
    (final / HELD_OUT_NAME).unlink()
    with pytest.raises(ModelError, match="no held-out rows"):
        bundle_model(final, tmp_path / "small", nodes=9000)
    with pytest.raises(ModelError, match="not a small model"):
        bundle_model(final, tmp_path / "small", nodes=9000, twin=trained)
    measured = bundle_model(trained, tmp_path / "twin", nodes=9000, trees=5)
    card = bundle_model(final, tmp_path / "small", twin=tmp_path / "twin", nodes=9000, trees=5)
    assert card.held_out == measured.held_out != read_card(trained).held_out
    assert card.compression is not None
    assert measured.compression is not None
    assert card.compression.irnet_mae_after == measured.compression.irnet_mae_after
    assert card.compression.bytes_after > 0
    assert "same recipe" in str(card.measured_on_twin)
    forest = load_model(tmp_path / "small").forest
    assert forest is not None
    assert forest.trees == 5


def test_destinations_are_replaced_only_when_asked_and_only_models(
    trained: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    bundle_model(trained, small, nodes=9000)
    with pytest.raises(ConfigurationError, match="--overwrite"):
        bundle_model(trained, small, nodes=9000)
    bundle_model(trained, small, nodes=700, overwrite=True)
    (small / "notes.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match=r"notes\.txt"):
        bundle_model(trained, small, nodes=9000, overwrite=True)
    assert (small / FOREST_NAME).exists()


def test_intervals_are_the_models_own_or_else_its_twins(
    trained: Path, calibrated_model: Path, tmp_path: Path
) -> None:
    calibrated = Path(shutil.copytree(trained, tmp_path / "calibrated"))
    shutil.copyfile(calibrated_model / UNCERTAINTY_NAME, calibrated / UNCERTAINTY_NAME)
    calibration = read_card(calibrated_model).calibration
    write_card(
        read_card(calibrated).model_copy(update={"calibration": calibration, "limits": ("own",)}),
        calibrated,
    )
    own = bundle_model(calibrated, tmp_path / "small", nodes=9000)
    assert own.calibration == calibration
    assert load_model(tmp_path / "small").uncertainty is not None
    twins = bundle_model(trained, tmp_path / "other", twin=tmp_path / "small", nodes=9000)
    assert twins.calibration == calibration
    assert twins.limits == ("own",)
    uncertainty = (tmp_path / "other" / UNCERTAINTY_NAME).read_bytes()
    assert uncertainty == (calibrated_model / UNCERTAINTY_NAME).read_bytes()
    (trained / REFERENCE_NAME).write_bytes(b"a sample of the training features")
    bare = bundle_model(trained, tmp_path / "bare", nodes=9000)
    assert bare.calibration is None
    assert not (tmp_path / "bare" / UNCERTAINTY_NAME).exists()
    reference = (tmp_path / "bare" / REFERENCE_NAME).read_bytes()
    assert reference == (trained / REFERENCE_NAME).read_bytes(), "to calibrate the small model with"
    with pytest.raises(ConfigurationError, match="fitted with 2 networks and do not hold for 1"):
        bundle_model(calibrated, tmp_path / "one", nodes=9000, members=1)
    assert not (tmp_path / "one").exists()
