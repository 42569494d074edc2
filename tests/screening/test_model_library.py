from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prototypes import find_prototype
from screening import model_library
from screening.errors import ExitCode, ModelError, exit_code_of
from screening.features.schema import FEATURES
from screening.model_card import DataFileEntry, Evaluation, Score
from screening.model_library import (
    ENSEMBLE_NAME,
    FOREST_NAME,
    FORMER_FORMULAS_NAME,
    FORMULAS_NAME,
    PREFERRED_MODELS,
    UNCERTAINTY_NAME,
    find_model,
    hash_model,
    list_models,
    load_enthalpy_model,
    load_model,
)
from screening.training_table import TrainingTable


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_model_loads_whole(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert model.ensemble.feature_names == FEATURES
    assert model.forest is not None
    assert model.training_formulas.contains(["NaCl", "KCl"]).tolist() == [True, False]
    assert model.content_hash == hash_model(tiny_model)
    assert "Na" in model.training_elements


@pytest.mark.parametrize(
    "name", [f"{ENSEMBLE_NAME}/member-0.safetensors", FOREST_NAME, FORMULAS_NAME]
)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_are_refused(model: Path, name: str, share: float) -> None:
    path = model / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match=path.name) as caught:
        load_model(model)
    assert exit_code_of(caught.value) == ExitCode.MODEL


@pytest.mark.parametrize("name", ["card.json", ENSEMBLE_NAME, FOREST_NAME, FORMULAS_NAME])
def test_missing_files_are_refused(model: Path, name: str) -> None:
    path = model / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(ModelError):
        load_model(model)


def test_other_features_are_refused(model: Path) -> None:
    from irnet import Recipe, train_ensemble

    recipe = Recipe(architecture="4A-1", epochs=1, batch_size=8)
    names = (*FEATURES[1:], "mean of nothing")
    features = np.random.default_rng(0).normal(size=(40, len(FEATURES)))
    train_ensemble(
        features, features[:, 0], names, recipe=recipe, members=1, checkpoint_dir=model / "w"
    ).save(model / ENSEMBLE_NAME)
    with pytest.raises(ModelError, match=r"0-norm"):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": 3}, "licence"),
        ({"colour": "red"}, "colour"),
        ({"format": 2}, "format"),
    ],
)
def test_cards_keep_their_schema(model: Path, change: dict[str, object], message: str) -> None:
    path = model / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        load_model(model)
    path.write_text("{")
    with pytest.raises(ModelError, match="not a valid model card"):
        load_model(model)


def test_names_find_bundled_models(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "package" / "models"
    shutil.copytree(model, library / "irnet17")
    monkeypatch.setattr(model_library, "__file__", str(tmp_path / "package" / "x.py"))
    assert [folder.name for folder in list_models()] == ["irnet17"]
    assert find_model("irnet17") == find_model("default") == library / "irnet17"
    with pytest.raises(ModelError, match='did you mean "irnet17"'):
        find_model("irnet71")
    with pytest.raises(ModelError, match=r'did you mean "default"\? Bundled models: irnet17;'):
        find_model("defalt")
    with pytest.raises(ModelError, match=r'no model "xyz"\. Bundled'):
        find_model("xyz")
    with pytest.raises(ModelError, match="not a finished model"):
        find_model(tmp_path)


def test_preferred_models_come_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "package" / "models"
    for name in ("another", *PREFERRED_MODELS[::-1], "zebra"):
        shutil.copytree(model, library / name)
    monkeypatch.setattr(model_library, "__file__", str(tmp_path / "package" / "x.py"))
    assert [folder.name for folder in list_models()] == [*PREFERRED_MODELS, "another", "zebra"]
    assert find_model("default").name == "mp-all-irnet17"
    shutil.rmtree(library / "mp-all-irnet17")
    assert find_model("default").name == "mp-icsd-irnet17"


def test_a_damaged_calibration_is_refused(calibrated_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(calibrated_model, tmp_path / "model"))
    assert load_model(folder).uncertainty is not None
    before = hash_model(folder)
    path = folder / UNCERTAINTY_NAME
    path.write_bytes(path.read_bytes()[:-100])
    assert hash_model(folder) != before
    with pytest.raises(ModelError, match=UNCERTAINTY_NAME):
        load_model(folder)
    path.unlink()
    with pytest.raises(ModelError, match=UNCERTAINTY_NAME):
        load_model(folder)


def test_the_hash_is_of_what_predicts(model: Path) -> None:
    before = hash_model(model)
    (model / "card.json").write_text("{}")
    assert hash_model(model) == before
    TrainingTable.of(["KCl"]).save(model / FORMULAS_NAME)
    assert hash_model(model) != before


def test_a_model_of_an_older_version_says_so(model: Path) -> None:
    (model / FORMULAS_NAME).unlink()
    (model / FORMER_FORMULAS_NAME).write_bytes(b"hashes")
    with pytest.raises(ModelError, match=r"older version.*Train it again"):
        load_model(model)


def test_only_built_in_prototypes_have_a_measured_bias(tiny_model: Path) -> None:
    card = load_model(tiny_model).card
    score = Score(predictor="irnet", group="B2", geometry="ideal", n=9, mae=0.3, bias=-0.2)
    data = DataFileEntry(name="e.parquet", sha256="0" * 64, rows=9)
    measured = card.model_copy(
        update={"evaluation": Evaluation(data=data, scores=(score,), formulas_seen=0)}
    )
    built_in = find_prototype("B2")
    assert measured.find_bias(built_in) == score
    assert card.find_bias(built_in) is None
    assert measured.find_bias(replace(built_in, exact=False)) is None
    assert measured.find_bias(replace(built_in, name="held_out")) is None
    unseen = score.model_copy(update={"mae": 0.4})
    relaxed, member = ({"geometry": "relaxed"}, {"predictor": "irnet_member"})
    others = tuple(unseen.model_copy(update=change) for change in (relaxed, member))
    held = Evaluation(data=data, scores=(*others, unseen), formulas_seen=0)
    validated = measured.model_copy(update={"cross_validation": held})
    assert validated.find_bias(built_in) == unseen


def test_bundled_models_are_whole_and_small() -> None:
    folders = list_models()
    assert [folder.name for folder in folders] == list(PREFERRED_MODELS)
    size = 0
    for folder in folders:
        model = load_model(folder)
        size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert len(model.ensemble.members) == model.card.training.members >= 2
        assert model.forest is not None
        assert model.uncertainty is not None
        assert model.card.data.sources
        assert model.card.find_score("held_out") is not None
        assert model.card.find_bias(find_prototype("B2")) is not None
        assert model.card.find_coverage(find_prototype("B2")) is not None
    assert size < 40e6


def test_a_model_of_another_target_is_no_model_of_enthalpies(model: Path) -> None:
    assert load_enthalpy_model(model).path == model
    path = model / "ensemble" / "ensemble.json"
    content = json.loads(path.read_text())
    content["card"]["unit"] = "g/cm³"
    path.write_text(json.dumps(content))
    assert load_model(model).path == model
    with pytest.raises(ModelError, match=r"in g/cm³, not a formation enthalpy in eV/atom"):
        load_enthalpy_model(model)
