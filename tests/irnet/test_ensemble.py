import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irnet import Ensemble, FeatureMismatchError, Member, ModelFileError
from irnet.errors import EmptyEnsembleError
from irnet.scaling import Scaling
from irnet.storage import read_tensors, write_tensors


def predict(ensemble: Ensemble, features: np.ndarray) -> np.ndarray:
    return ensemble.scorer(precision="fp32").predict(features).mean


def test_saved_and_loaded_predict_the_same(ensemble: Ensemble, table: Any, tmp_path: Path) -> None:
    ensemble.save(tmp_path / "model")
    loaded = Ensemble.load(tmp_path / "model")
    assert loaded.feature_names == table.names
    assert loaded.card == ensemble.card
    assert [m.record for m in loaded.members] == [m.record for m in ensemble.members]
    np.testing.assert_array_equal(
        predict(loaded, table.features), predict(ensemble, table.features)
    )


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.02), ("int8", 0.03)])
def test_lower_precision_costs_little(
    ensemble: Ensemble, table: Any, tmp_path: Path, precision: str, most: float
) -> None:
    ensemble.save(tmp_path, precision)
    change = predict(Ensemble.load(tmp_path), table.features) - predict(ensemble, table.features)
    assert 0 < np.abs(change).mean() < most * table.target.std()
    assert np.abs(change).max() < 10 * most * table.target.std()


def test_int8_takes_a_quarter_of_the_room(tmp_path: Path) -> None:
    from irnet import Architecture
    from irnet.network import new_network

    architecture = Architecture.parse("256BARx4-1")
    network = new_network(architecture, 271, 0.0, torch.Generator().manual_seed(0))
    scaling = Scaling(np.zeros(271), np.ones(271), None, 0.0, 1.0)
    names = tuple(f"f{i}" for i in range(271))
    member = Member(architecture, names, scaling, network.state_dict(), {})
    sizes = {}
    for precision in ("fp32", "bf16", "int8"):
        member.save(tmp_path / precision, precision)
        sizes[precision] = (tmp_path / precision).stat().st_size
    assert sizes["bf16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.31 * sizes["fp32"]


def test_the_card_tells_how_it_was_made(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path)
    content = json.loads((tmp_path / "ensemble.json").read_text())
    assert content["card"]["target"] == "formation_enthalpy"
    assert content["card"]["recipe"]["epochs"] == 6
    assert content["feature_names"][:2] == ["column 0", "column 1"]
    for entry in content["members"]:
        assert len(entry["history"]) == 6
        assert entry["architecture"] == "32BARx2-16BARx2-1"
        assert entry["identity"]["data_sha256"] == content["card"]["data_sha256"]
        assert entry["clip"] == 6.0


def test_members_with_different_scaling(ensemble: Ensemble, table: Any) -> None:
    first = ensemble.members[0]
    scaling = first.scaling
    shifted = replace(
        first,
        scaling=replace(
            scaling,
            target_mean=scaling.target_mean + 10,
            target_std=scaling.target_std * 2,
            mean=scaling.mean + scaling.std,
        ),
    )
    together = Ensemble((first, shifted), {}).scorer(precision="fp32").predict(table.features)
    np.testing.assert_allclose(
        together.members[0], predict(Ensemble((first,), {}), table.features), atol=1e-6
    )
    np.testing.assert_allclose(
        together.members[1], predict(Ensemble((shifted,), {}), table.features), atol=1e-6
    )
    moved = table.features + scaling.std.astype(np.float32)
    expected = predict(Ensemble((first,), {}), moved - scaling.std.astype(np.float32))
    unscaled = (expected - scaling.target_mean) * 2 + scaling.target_mean + 10
    again = Ensemble((shifted,), {}).scorer(precision="fp32").predict(moved).mean
    np.testing.assert_allclose(again, unscaled, atol=1e-3)


def test_earlier_versions_are_told_of_what_they_would_not_apply(
    ensemble: Ensemble, tmp_path: Path
) -> None:
    # they read format 1 and take every activation for a ReLU
    usual = ensemble.members[0]
    for activation, format_ in (("relu", 1), ("tanh", 2)):
        member = replace(usual, architecture=replace(usual.architecture, activation=activation))
        member.save(tmp_path / activation)
        tensors, header = read_tensors(tmp_path / activation, "an irnet member")
        assert header["format"] == format_
        assert Member.load(tmp_path / activation).architecture.activation == activation
    write_tensors(tmp_path / "newer", tensors, header | {"format": 3})
    with pytest.raises(ModelFileError, match="newer: written in format 3, this version reads 1"):
        Member.load(tmp_path / "newer")


def test_mismatched_members_are_refused(ensemble: Ensemble) -> None:
    other = replace(ensemble.members[0], feature_names=ensemble.feature_names[::-1])
    with pytest.raises(FeatureMismatchError, match="member 1 expects 12 features"):
        Ensemble((ensemble.members[0], other), {})


def test_an_ensemble_needs_members() -> None:
    with pytest.raises(EmptyEnsembleError, match="at least one member"):
        Ensemble((), {})


def test_truncated_foreign_and_missing_files(ensemble: Ensemble, tmp_path: Path) -> None:
    ensemble.save(tmp_path)
    file = tmp_path / "member-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ModelFileError, match=r"member-1\.safetensors: differs"):
        Ensemble.load(tmp_path)
    with pytest.raises(ModelFileError, match=r"member-1\.safetensors: truncated"):
        Member.load(file)
    file.write_bytes((tmp_path / "member-0.safetensors").read_bytes())
    with pytest.raises(ModelFileError, match=r"member-1\.safetensors: differs"):
        Ensemble.load(tmp_path)
    file.unlink()
    with pytest.raises(ModelFileError, match=r"member-1\.safetensors: no such file"):
        Ensemble.load(tmp_path)
    (tmp_path / "ensemble.json").write_text('{"kind": "an irnet ensemble", "format": 1}')
    with pytest.raises(ModelFileError, match=r"ensemble\.json: lacks or garbles 'members'"):
        Ensemble.load(tmp_path)
    (tmp_path / "ensemble.json").unlink()
    with pytest.raises(ModelFileError, match=r"ensemble\.json: no such file"):
        Ensemble.load(tmp_path)


def test_a_forest_is_not_an_ensemble(forest: Any, tmp_path: Path) -> None:
    forest.save(tmp_path / "forest.safetensors")
    with pytest.raises(ModelFileError, match="holds an irnet random forest, expected"):
        Member.load(tmp_path / "forest.safetensors")


def test_weights_that_do_not_fit_the_architecture(ensemble: Ensemble, tmp_path: Path) -> None:
    from irnet import Architecture

    wrong = replace(ensemble.members[0], architecture=Architecture.parse("32BARx3-1"))
    wrong.save(tmp_path / "wrong.safetensors")
    with pytest.raises(ModelFileError, match=r"wrong\.safetensors: weights or header do not fit"):
        Member.load(tmp_path / "wrong.safetensors")
