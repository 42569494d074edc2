from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from screening import commands_backtest
from screening.backtest import CALIBRATIONS
from screening.backtest_report import (
    FOUND_NAME,
    PROBABILITIES_NAME,
    RECORD_NAME,
    REPORT_NAME,
)
from screening.commands_backtest import complete_calibration
from screening.errors import InputDataError

Screening = Callable[..., Result]

SYMBOLS = "Li Na K Rb Cs Mg Ca Sr Ba Fe Cu Ag Zn F Cl Br I".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """136 compounds of the CsCl type, 24 stretched, references, known crystals, features."""
    from screening.feature_tables import featurize_structures, write_features
    from screening.structures import read_structure_table

    folder = tmp_path_factory.mktemp("backtest")
    pairs = [(a, b) for i, a in enumerate(SYMBOLS) for b in SYMBOLS[i + 1 :]]
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": [a + b for a, b in pairs],
            "formula": [a + b for a, b in pairs],
            "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
            "species": [list(pair) for pair in pairs],
            "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * len(pairs),
            "formation_energy_per_atom": random.normal(-0.2, 0.5, len(pairs)),
            "other_energy": random.normal(-0.2, 0.5, len(pairs)),
            "hull": random.normal(0.1, 0.2, len(pairs)),
        }
    )
    stretched = table.head(24).assign(lattice=[np.diag([4.0, 4.0, 6.0]).ravel()] * 24)
    stretched = stretched.assign(id="long " + stretched["id"])
    table = pd.concat([table, stretched], ignore_index=True)
    table.to_parquet(folder / "compounds.parquet")
    known = table.head(40)
    known = known.assign(formation_energy_per_atom=known["formation_energy_per_atom"] - 3)
    known.assign(id="known " + known["id"]).to_parquet(folder / "known.parquet")
    pd.DataFrame(
        {"formula": ["Li2Mg", "NaK2", "FeF3"], "formation_energy_per_atom": [-0.1, -0.2, -3.0]}
    ).to_csv(folder / "references.csv", index=False)
    crystals, _ = read_structure_table(folder / "compounds.parquet")
    features = featurize_structures(crystals, folder / "parts")
    few = slice(0, 120)
    write_features(
        type(features)(features.ids[few], features.values[few], features.imputed[few], ()),
        folder / "features.parquet",
    )
    return folder


@pytest.fixture
def backtest(screening: Screening, calibrated_model: Path, folder: Path) -> Callable[..., Result]:
    def call(*options: object) -> Result:
        return screening(
            "backtest",
            calibrated_model,
            folder / "compounds.parquet",
            "--references",
            folder / "references.csv",
            *("--workers", 0, "--device", "cpu"),
            *options,
        )

    return call


@pytest.fixture
def record(backtest: Callable[..., Result], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What the record of a backtest says, without when it was made."""

    def call(*options: object) -> dict[str, Any]:
        defaults = () if "--calibration" in options else ("--calibration", "none")
        result = backtest(*defaults, "--out", tmp_path / "out", "--overwrite", *options)
        assert result.exit_code == 0, result.output
        read: dict[str, Any] = json.loads((tmp_path / "out" / RECORD_NAME).read_text())
        return read

    return call


def test_table_stands_on_stdout_and_notes_on_stderr(backtest: Callable[..., Result]) -> None:
    result = backtest("--calibration", "model")
    assert result.exit_code == 0, result.output
    for words in ("IRNet, probability", "Random Forest, energy", "DFT energies", "F1", "ROC AUC"):
        assert words in result.stdout
    assert "160 compounds" in result.stdout
    assert "0 of 3 reference phases" in result.stderr
    assert "half found" in result.stdout


def test_report_has_its_plots_and_says_how_it_was_made(
    backtest: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    words = ["screening", "backtest", str(folder / "compounds.parquet"), "--seed", "3"]
    monkeypatch.setattr("sys.argv", words)
    out = tmp_path / "deep" / "out"
    result = backtest("--calibration", "model", "--out", out)
    assert result.exit_code == 0, result.output
    text = (out / REPORT_NAME).read_text()
    assert "screening backtest compounds.parquet --seed 3" in text
    assert str(tmp_path) not in text
    assert re.search(r"commit [0-9a-f]{40}|commit unknown", text)
    found = [line.split(" | ") for line in text.splitlines() if line.startswith("| all |")]
    (row,) = [line for line in found if line[1:3] == ["IRNet, energy", "100"]]
    assert float(row[4]) == int(row[3]) / 100
    for name in (FOUND_NAME, PROBABILITIES_NAME):
        assert f"({name})" in text
        assert ElementTree.fromstring((out / name).read_text()).tag.endswith("svg")
    made = json.loads((out / RECORD_NAME).read_text())["making"]
    assert made["environment"]["packages"]["numpy"] == np.__version__
    assert "cores" in made["machine"]
    refused = backtest("--out", out)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr


def test_rankings_by_energy_alone_have_no_plot_of_probabilities(
    backtest: Callable[..., Result], tmp_path: Path
) -> None:
    result = backtest("--calibration", "none", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / FOUND_NAME).exists()
    assert not (tmp_path / PROBABILITIES_NAME).exists()
    assert "taken at their word" not in (tmp_path / REPORT_NAME).read_text()


def test_record_holds_what_the_table_says(
    record: Callable[..., dict[str, Any]],
) -> None:
    found = record("--calibration", "model")
    assert found["rows"] == 160
    for score in found["scores"]:
        if score["group"] != "all":
            continue
        counts = score["counts"]
        assert counts["rows"] == 160
        assert counts["acceleration"] is None or counts["acceleration"] == pytest.approx(
            counts["precision"] / counts["prevalence"]
        )
        assert counts["ceiling"] == pytest.approx(1 / counts["prevalence"])
        first = score["precision_at"]["100"]
        assert first["low"] <= first["value"] <= first["high"]
        assert score["acceleration_at"]["100"] == pytest.approx(
            first["value"] / counts["prevalence"]
        )
        if score["truth"] == "label":
            assert score["curve"]["spent"][-1] == 160
            assert score["curve"]["found"][-1] == counts["stable"]


@pytest.mark.parametrize(
    "options",
    [
        ("--label", "hull"),
        ("--known", "known.parquet"),
        ("--stable-within", 0.2),
        ("--no-compete",),
        ("--calibration", "model"),
        ("--target", "other_energy"),
        ("--features", "features.parquet"),
        ("--near", 0.5),
    ],
    ids=lambda options: str(options[0]),
)
def test_every_option_changes_what_is_found(
    options: tuple[object, ...], record: Callable[..., dict[str, Any]], folder: Path
) -> None:
    named = [folder / str(word) if str(word).endswith(".parquet") else word for word in options]
    assert record(*named)["scores"] != record()["scores"]


def test_functional_and_seed_are_recorded(record: Callable[..., dict[str, Any]]) -> None:
    found = record("--functional", "PBEsol", "--seed", 5)
    assert found["references"]["functional"] == "PBEsol"
    assert found["request"]["seed"] == 5


def test_engine_computes_the_features(
    backtest: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def featurize(*_: object, engine: str, **__: object) -> None:
        asked.append(engine)
        raise InputDataError("enough")

    monkeypatch.setattr("screening.backtest.featurize_structures", featurize)
    for engine in ("fast", "matminer"):
        assert backtest("--engine", engine).exit_code == 3
    assert asked == ["fast", "matminer"]
    assert backtest("--engine", "fats").exit_code == 2


def test_misspelt_calibration_is_refused(backtest: Callable[..., Result]) -> None:
    result = backtest("--calibration", "fold")
    assert result.exit_code == 2
    assert 'did you mean "folds"' in result.stderr
    assert commands_backtest.CALIBRATIONS == CALIBRATIONS
    assert complete_calibration("m") == ["model"]


@pytest.mark.parametrize("option", ["--stable-within", "--near"])
def test_energies_that_are_no_numbers_are_refused(
    option: str, backtest: Callable[..., Result]
) -> None:
    result = backtest(option, "nan")
    assert result.exit_code == 2
    assert f"{option} nan is no energy" in result.stderr
    assert result.stdout == ""


def test_known_crystals_cannot_be_given_and_forgotten(
    backtest: Callable[..., Result], folder: Path, record: Callable[..., dict[str, Any]]
) -> None:
    result = backtest("--known", folder / "known.parquet", "--forget-known")
    assert result.exit_code == 2
    assert "contradict" in result.stderr
    assert record("--forget-known")["request"]["forget_known"]


def test_output_that_is_a_file_is_refused(backtest: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = backtest("--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "give a folder" in result.stderr


def test_model_of_another_quantity_is_refused(
    screening: Screening, folder: Path, tmp_path: Path
) -> None:
    result = screening("backtest", tmp_path, folder, "--references", folder / "references.csv")
    assert result.exit_code == 4


def test_missing_references_are_bad_input(
    screening: Screening, calibrated_model: Path, folder: Path
) -> None:
    data = folder / "compounds.parquet"
    result = screening("backtest", calibrated_model, data, "--references", folder / "none.csv")
    assert result.exit_code == 3
    assert "none.csv" in result.stderr
