from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from typer.testing import Result

from screening.features.schema import FEATURES

Screening = Callable[..., Result]


@pytest.fixture
def salts(tmp_path: Path) -> Path:
    """A folder with two good structures, an alloy and garbage."""
    folder = tmp_path / "salts"
    folder.mkdir()
    for a in ("Na", "K"):
        cell = Structure(Lattice.cubic(3.5), [a, "Cl"], [[0, 0, 0], [0.5] * 3])
        cell.to(filename=str(folder / f"{a}Cl.cif"))
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    alloy.to(filename=str(folder / "alloy.cif"))
    (folder / "broken.cif").write_text("data_\n_cell_length_a x\n")
    return folder


def write_training_data(path: Path) -> Path:
    symbols = ["Li", "Na", "K", "Rb", "F", "Cl", "Br", "Cu", "Ag"]
    pairs = [(a, b) for a in symbols for b in symbols if a < b]
    pd.DataFrame(
        {
            "id": [a + b for a, b in pairs],
            "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
            "species": [list(pair) for pair in pairs],
            "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * len(pairs),
            "formation_energy_per_atom": np.linspace(-2, 0, len(pairs)),
            "kind": "B2",
        }
    ).to_parquet(path)
    return path


def test_featurize_writes_id_and_271_columns(
    screening: Screening, salts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "x.parquet"
    result = screening("featurize", salts, "--out", out, "--workers", 0)
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(out)
    assert list(table.columns) == ["id", *FEATURES]
    assert table["id"].tolist() == ["KCl.cif", "NaCl.cif"]
    failures = pd.read_parquet(out.with_name("x.failures.parquet"))
    assert failures["id"].tolist() == ["alloy.cif", "broken.cif"]
    assert "2 structures could not be used" in result.stderr
    assert not list(out.parent.glob(".*"))

    again = screening("featurize", salts, "--out", out, "--workers", 0)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert screening("featurize", salts, "--out", out, "--workers", 0, "--overwrite").exit_code == 0


@pytest.mark.slow
def test_engines_and_workers_agree(screening: Screening, salts: Path, tmp_path: Path) -> None:
    tables = {}
    for name, options in {
        "fast": ("--workers", 0),
        "dask": ("--workers", 1),
        "matminer": ("--engine", "matminer", "--workers", 0),
    }.items():
        out = tmp_path / f"{name}.parquet"
        result = screening("featurize", salts, "--out", out, *options)
        assert result.exit_code == 0, result.output
        tables[name] = pd.read_parquet(out).set_index("id")
    pd.testing.assert_frame_equal(tables["fast"], tables["dask"], check_exact=True)
    pd.testing.assert_frame_equal(tables["fast"], tables["matminer"], rtol=1e-6, atol=1e-9)


def test_predict_writes_the_three_enthalpies(
    screening: Screening, salts: Path, tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "p.parquet"
    result = screening("predict", salts, "--out", out, "--model", tiny_model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(out)
    assert list(table.columns[:5]) == [
        "id",
        "formula",
        "formation_enthalpy_ev_per_atom",
        "formation_enthalpy_std_ev_per_atom",
        "rf_formation_enthalpy_ev_per_atom",
    ]
    assert table["formula"].tolist() == ["KCl", "NaCl"]
    assert "NaCl.cif" in result.stdout
    failures = pd.read_parquet(tmp_path / "p.failures.parquet")
    assert len(failures) == 2


@pytest.mark.parametrize("command", ["predict", "featurize"])
@pytest.mark.parametrize(
    ("name", "reason"), [("alloy.cif", "partially occupied"), ("broken.cif", "unreadable")]
)
def test_nothing_usable_is_an_error(
    screening: Screening, salts: Path, tmp_path: Path, command: str, name: str, reason: str
) -> None:
    result = screening(command, salts / name, "--out", tmp_path / "x.parquet")
    assert result.exit_code == 3
    assert name in result.stderr
    assert reason in result.stderr
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("predict", "{salts}", "--model", "nosuch"), 4, 'no model "nosuch"'),
        (("predict", "{salts}", "--device", "gpu"), 2, '--device "gpu"'),
        (("predict", "{salts}", "--engine", "mattminer"), 2, 'did you mean "matminer"'),
        (("featurize", "{salts}/nosuch.cif"), 3, "does not exist"),
        (("train", "{salts}/none.parquet"), 3, "cannot read"),
        (("train", "{data}", "--target", "formation_energy"), 3, "formation_energy_per_atom"),
        (("train", "{data}", "--recipe", "papper"), 2, "paper"),
        (("train", "{data}", "--holdout", "1.5", "--workers", "0"), 3, "below 1"),
        (("train", "{data}", "--sources", "{salts}/none.toml"), 2, "none.toml"),
        (("evaluate", "nosuch", "{data}"), 4, "nosuch"),
    ],
)
def test_mistakes_end_in_one_message_and_their_code(
    screening: Screening,
    salts: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    data = write_training_data(tmp_path / "d.parquet")
    filled = [word.format(salts=salts, data=data) for word in arguments]
    out = () if arguments[0] == "evaluate" else ("--out", tmp_path / "out.parquet")
    result = screening(*filled, *out)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_outputs_in_impossible_places(screening: Screening, salts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = screening("featurize", salts, "--out", tmp_path / "file" / "x.parquet")
    assert result.exit_code == 5
    assert "not a folder" in result.stderr


def test_train_evaluate_and_bundle(screening: Screening, tmp_path: Path) -> None:
    data, model = write_training_data(tmp_path / "d.parquet"), tmp_path / "model"
    (tmp_path / "s.toml").write_text(
        '[[source]]\nwhat = "all"\ncitation = "nobody"\nlicence = "CC0"\n'
    )
    pd.DataFrame({"formula": ["NaCl"]}).to_csv(tmp_path / "out.csv")
    train = (
        *("train", data, "--out", model, "--epochs", 2, "--members", 2, "--workers", 0),
        *("--architecture", "8BAR-1", "--device", "cpu", "--sources", tmp_path / "s.toml"),
        *("--exclude-formulas", tmp_path / "out.csv", "--licence", "MIT", "--holdout", 0.2),
    )
    result = screening(*train)
    assert result.exit_code == 0, result.output
    card = json.loads((model / "card.json").read_text())
    assert card["data"]["sources"][0]["licence"] == "CC0"
    assert card["data"]["dropped"] == {"formula of the evaluation set": 1}
    assert card["training"]["architecture"] == "8BAR-1"
    assert "random_forest" in result.stdout
    assert "nothing to do" in screening(*train).stderr
    changed = screening(*train, "--seed", 7)
    assert changed.exit_code == 2
    assert "seed is 0, not 7" in changed.stderr

    evaluated = screening(
        "evaluate", model, data, "--device", "cpu", "--update-card", "--out", tmp_path / "e.json"
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert "0.4780" in evaluated.stdout
    assert "trained on the formulas of" in evaluated.stderr
    scores = json.loads((tmp_path / "e.json").read_text())["scores"]
    assert json.loads((model / "card.json").read_text())["evaluation"]["scores"] == scores

    small = screening("models", "bundle", model, tmp_path / "small", "--nodes", 3000)
    assert small.exit_code == 0, small.output
    shown = screening("models", "show", tmp_path / "small")
    assert shown.exit_code == 0, shown.output
    assert "CC0" in shown.stdout
    assert "B2" in shown.stdout
    as_json = screening("models", "show", tmp_path / "small", "--json")
    assert json.loads(as_json.stdout)["compression"]["rows"] > 0

    redone = screening(*train, "--seed", 7, "--overwrite", "--no-forest")
    assert redone.exit_code == 0, redone.output
    assert json.loads((model / "card.json").read_text())["training"]["forest"] is None


def test_models_lists_what_is_bundled(screening: Screening) -> None:
    result = screening("models")
    assert result.exit_code == 0, result.output
    from screening.model_library import list_models

    for folder in list_models():
        assert folder.name in result.stdout
