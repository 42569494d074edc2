from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save
from typer.testing import Result

from irnet import Prediction
from irnet.reference import TrainingReference
from screening import calibration
from screening.calibration import (
    CalibrationRequest,
    CalibrationRows,
    calibrate_model,
    fit_intervals,
    number_systems,
)
from screening.dataset import Protocol
from screening.errors import ConfigurationError, InputDataError, ModelError
from screening.features.schema import FEATURES
from screening.model_card import (
    DataFileEntry,
    Evaluation,
    Reliability,
    Score,
    read_card,
    write_card,
)
from screening.model_library import UNCERTAINTY_NAME, load_model
from screening.reliability import find_intervals, join_members
from screening.training import HELD_OUT_NAME

Screening = Callable[..., Result]

SYMBOLS = "Li Na K Rb Cs Mg Ca Sr Ba Fe Cu Ag Zn F Cl Br I".split()


ALREADY = Reliability(
    group="B2", geometry="ideal", scheme="all", n=9, expected=(0.9,), observed=(0.9,),
    coverage=0.9, coverage_low=0.6, coverage_high=1.0, sharpness=0.4, miscalibration_area=0.0,
    sorting=None, spread_sorting=None,
)  # fmt: skip


@pytest.fixture
def compounds(tmp_path: Path) -> Path:
    """A table of 136 structures of the CsCl type with made-up energies; one is known as NaCl."""
    path = tmp_path / "compounds.parquet"
    pairs = [(a, b) for i, a in enumerate(SYMBOLS) for b in SYMBOLS[i + 1 :]]
    energies = np.random.default_rng(0).normal(-1, 0.4, len(pairs))
    pd.DataFrame(
        {
            "id": [a + b for a, b in pairs],
            "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
            "species": [list(pair) for pair in pairs],
            "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * len(pairs),
            "formation_energy_per_atom": energies,
            "kind": "B2",
        }
    ).to_parquet(path)
    return path


@pytest.fixture
def model(calibrated_model: Path, tmp_path: Path) -> Path:
    """The tiny model, with the reference of an earlier calibration."""
    return Path(shutil.copytree(calibrated_model, tmp_path / "model"))


def rows_of(systems: NDArray[np.int64], seed: int = 0) -> tuple[CalibrationRows, TrainingReference]:
    random = np.random.default_rng(seed)
    features = random.normal(size=(len(systems), len(FEATURES))).astype(np.float32)
    reference = TrainingReference.fit(random.normal(size=(300, len(FEATURES))), size=100)
    size = np.exp(features[:, 0].astype(np.float64))
    members = random.normal(size=(3, len(systems))) * 0.1 * size
    mean = members.mean(axis=0)
    target = mean + 0.3 * size * random.normal(size=len(systems))
    rows = CalibrationRows(
        features,
        target,
        {"irnet": mean, "irnet_member": members},
        systems,
        reference.distance(features),
    )
    return rows, reference


def test_systems_are_the_elements_whatever_their_amounts() -> None:
    numbers = number_systems(["Fe2O3", "FeO", "NaCl", "Fe3O4", "KFeO2"])
    assert numbers[0] == numbers[1] == numbers[3]
    assert len(set(numbers.tolist())) == 3


def test_no_row_is_judged_by_a_fit_to_its_own_system(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, reference = rows_of(np.arange(400) // 4)
    fitted: list[set[int]] = []
    judged: list[NDArray[np.int64]] = []
    fit, find = calibration.fit_calibration, find_intervals

    def spy_on_fit(part: CalibrationRows, *arguments: Any) -> Any:
        fitted.append(set(part.systems.tolist()))
        return fit(part, *arguments)

    def spy_on_find(uncertainty: Any, features: Any, predictions: Any) -> Any:
        judged.append(np.flatnonzero(np.isin(rows.features[:, 0], features[:, 0])))
        return find(uncertainty, features, predictions)

    monkeypatch.setattr(calibration, "fit_calibration", spy_on_fit)
    monkeypatch.setattr(calibration, "find_intervals", spy_on_find)
    parts = np.where(np.arange(400) < 100, "few", "many")
    uncertainty, card = fit_intervals(rows, reference, measured_on="noise", parts=parts)
    assert fitted[0] == set(range(100))
    for systems, asked in zip(fitted[1:], judged, strict=True):
        assert not systems & set(rows.systems[asked].tolist())
    assert sorted(np.concatenate(judged).tolist()) == list(range(400))
    assert (card.rows, card.groups, card.level) == (400, 100, 0.9)
    assert [(r.group, r.n) for r in card.reliabilities] == [
        ("calibration", 400), ("few", 100), ("many", 300),
    ]  # fmt: skip
    assert card.reliabilities[0].coverage == pytest.approx(0.9, abs=0.05)
    assert uncertainty.level == 0.9


def test_intervals_keep_the_order_of_the_rows() -> None:
    rows, reference = rows_of(np.random.default_rng(1).integers(0, 60, 200))
    intervals = calibration.judge_intervals(rows, reference)
    np.testing.assert_array_equal(intervals.mean, rows.predictions["irnet"])
    assert isinstance(join_members(rows.predictions), Prediction)


def test_calibrate_drops_what_was_trained_on_and_writes_model_and_card(
    screening: Screening, model: Path, compounds: Path, tmp_path: Path
) -> None:
    write_card(
        read_card(model).model_copy(
            update={
                "limits": ("The spread of the members is not a calibrated uncertainty.",),
                "cross_validation": Evaluation(
                    data=DataFileEntry(name="e.parquet", sha256="0" * 64, rows=9),
                    scores=(
                        Score(predictor="irnet", group="B2", geometry="ideal", n=9, mae=3, bias=0),
                    ),
                    formulas_seen=0,
                    reliabilities=(ALREADY,),
                ),
            }
        ),
        model,
    )
    refused = screening("calibrate", model, compounds, "--workers", 0)
    assert refused.exit_code == 2
    assert "is calibrated already, on 300 compounds; give --overwrite" in refused.stderr

    before = (model / UNCERTAINTY_NAME).read_bytes()
    (tmp_path / "out.txt").write_text("KCl\n")
    call = ("calibrate", model, compounds, "--workers", 0, "--device", "cpu", "--overwrite")
    done = screening(*call, "--exclude-formulas", tmp_path / "out.txt")
    assert done.exit_code == 0, done.output
    assert "134 rows to calibrate on; left out: 1 formula of the evaluation set, " in done.stderr
    assert "1 formula that the model was trained on" in done.stderr
    assert "90% intervals, fitted on 134 compounds of 134 chemical systems" in done.stderr
    assert "in 90 %" in done.stdout
    assert (model / UNCERTAINTY_NAME).read_bytes() != before
    card = read_card(model)
    assert card.calibration is not None
    assert (card.calibration.rows, card.calibration.groups) == (134, 134)
    assert "compounds.parquet" in card.calibration.measured_on
    assert card.limits == (calibration.CALIBRATED_LIMIT,)
    assert card.cross_validation is not None
    assert card.cross_validation.reliabilities == ()
    assert load_model(model).uncertainty is not None

    shown = screening("models", "show", model)
    assert "90% intervals, fitted on 134 compounds" in shown.stdout
    assert "miscal." in shown.stdout
    assert "cross-validation, ideal geometry, eV/atom" in shown.stdout
    assert "3.000" in shown.stdout
    first = (model / UNCERTAINTY_NAME).read_bytes()
    assert screening(*call, "--seed", 5).exit_code == 0
    assert (model / UNCERTAINTY_NAME).read_bytes() != first


def test_a_feature_table_serves_as_well(
    screening: Screening, model: Path, compounds: Path, tmp_path: Path
) -> None:
    table = tmp_path / "features.parquet"
    made = screening("featurize", compounds, "--out", table, "--workers", 0)
    assert made.exit_code == 0, made.output
    features = pd.read_parquet(table)
    features[features["id"] != "LiF"].to_parquet(table)
    done = screening("calibrate", model, compounds, "--features", table, "--overwrite")
    assert done.exit_code == 0, done.output
    assert "1 not in the feature table" in done.stderr


def test_a_model_of_another_target_is_calibrated_on_its_own(
    screening: Screening, model: Path, compounds: Path
) -> None:
    path = model / "ensemble" / "ensemble.json"
    ensemble = json.loads(path.read_text())
    ensemble["card"]["unit"] = "eV"
    path.write_text(json.dumps(ensemble))
    card = read_card(model)
    data = card.data.model_copy(update={"target": "gap"})
    write_card(card.model_copy(update={"data": data}), model)
    call = ("calibrate", model, compounds, "--workers", 0, "--device", "cpu", "--overwrite")
    refused = screening(*call)
    assert refused.exit_code == 3
    assert "gap" in refused.stderr
    rows = pd.read_parquet(compounds).rename(columns={"formation_energy_per_atom": "gap"})
    rows.assign(dE_matbench=1.0).to_parquet(compounds)
    done = screening(*call)
    assert done.exit_code == 0, done.output
    assert "intervals, widths in eV\n" in re.sub(" +\n", "\n", done.stdout)
    measured = screening("evaluate", model, compounds, "--device", "cpu")
    assert measured.exit_code == 0, measured.output
    assert "ideal geometry, eV\n" in re.sub(" +\n", "\n", measured.stdout)
    assert "paper" not in measured.stdout, "its errors are those of formation enthalpies"
    shown = screening("models", "show", model)
    assert "eV/atom\n" not in re.sub(" +\n", "\n", shown.stdout)


def test_too_few_rows_say_how_many_are_needed(
    screening: Screening, model: Path, compounds: Path, tmp_path: Path
) -> None:
    pd.read_parquet(compounds)[:60].to_parquet(tmp_path / "few.parquet")
    done = screening("calibrate", model, tmp_path / "few.parquet", "--workers", 0, "--overwrite")
    assert done.exit_code == 3
    assert "59 rows of 59 chemical systems left to calibrate on" in done.stderr
    assert "at least 100 rows of 10 systems are needed" in done.stderr


def test_a_model_without_reference_is_refused(tiny_model: Path, compounds: Path) -> None:
    request = CalibrationRequest((compounds,), Protocol())
    with pytest.raises(ModelError, match=r"no reference\.safetensors"):
        calibrate_model(load_model(tiny_model), request, compounds.parent / "work")


def test_held_out_rows_that_were_fitted_on_do_not_judge(model: Path, compounds: Path) -> None:
    random = np.random.default_rng(0)
    rows: dict[str, NDArray[Any]] = {
        "features": random.normal(size=(30, len(FEATURES))).astype(np.float32),
        "target": random.normal(size=30),
    }
    formulas = ["KCl"] * 5 + ["K3Cl"] * 5 + ["SiC"] * 20
    (model / HELD_OUT_NAME).write_bytes(save(rows, {"formulas": json.dumps(formulas)}))
    request = CalibrationRequest((compounds,), Protocol(), device="cpu")
    work = compounds.parent / "work"
    loaded = load_model(model)
    card = calibrate_model(loaded, request, work, overwrite=True)
    (found,) = card.held_out_reliability
    assert (found.group, found.n) == ("held_out", 20)
    assert card.find_reliability("held_out") == found
    with pytest.raises(ConfigurationError, match="calibrated already"):
        calibrate_model(loaded, request, work)
    broken = pd.read_parquet(compounds).assign(formation_energy_per_atom="low")
    broken.to_parquet(compounds)
    with pytest.raises(InputDataError, match="does not hold numbers"):
        calibrate_model(loaded, request, work, overwrite=True)
