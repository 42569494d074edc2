from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from typer.core import TyperGroup
from typer.testing import Result

from screening import command_parts, commands_structures, commands_training
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


def test_predict_writes_enthalpies_and_their_interval(
    screening: Screening, salts: Path, tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "p.parquet"
    result = screening("predict", salts, "--out", out, "--model", tiny_model, "--device", "cpu")
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(out)
    assert list(table.columns[:7]) == [
        "id",
        "formula",
        "formation_enthalpy_ev_per_atom",
        "formation_enthalpy_std_ev_per_atom",
        "formation_enthalpy_low_ev_per_atom",
        "formation_enthalpy_high_ev_per_atom",
        "rf_formation_enthalpy_ev_per_atom",
    ]
    assert table["formula"].tolist() == ["KCl", "NaCl"]
    assert "NaCl.cif" in result.stdout
    assert "first" not in result.stdout
    first = screening(
        *("predict", salts / "NaCl.cif", salts / "KCl.cif", "--out", tmp_path / "q.parquet"),
        *("--model", tiny_model, "--device", "cpu", "--top", 1),
    )
    assert "first 1 of 2" in first.stdout
    assert "KCl.cif" not in first.stdout
    failures = pd.read_parquet(tmp_path / "p.failures.parquet")
    assert len(failures) == 2


def test_predict_places_structures_on_the_hull_of_references(
    screening: Screening, salts: Path, tmp_path: Path, calibrated_model: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(calibrated_model, model)
    card = json.loads((model / "card.json").read_text())
    card["data"]["functional"] = "PBE"
    (model / "card.json").write_text(json.dumps(card))
    mixed = ["Na", "K", "Mg", "Ca", "Ti", "Fe", "Al", "O", "S", "F"]
    places = [[number / 10, 0, 0] for number in range(10)]
    Structure(Lattice.orthorhombic(25, 3.5, 3.5), mixed, places).to(filename=str(salts / "x.cif"))
    table = pd.DataFrame({"formula": ["NaCl", "Na", "Na3Cl3"]})
    table["formation_enthalpy_ev_per_atom"] = [-2.1, 0.1, -2.0]
    table.to_csv(tmp_path / "r.csv", index=False)

    def predict(*options: object) -> tuple[Result, pd.DataFrame]:
        out = tmp_path / "p.parquet"
        call = ("predict", salts, "--out", out, "--model", model, "--overwrite", *options)
        result = screening(*call, "--device", "cpu")
        assert result.exit_code == 0, result.output
        return result, pd.read_parquet(out).set_index("formula")

    result, near = predict("--references", tmp_path / "r.csv", "--functional", "r2SCAN")
    shown, told = (" ".join(text.split()) for text in (result.stdout, result.stderr))
    assert "above that of 1 reference phase" in shown
    assert "r.csv (r2SCAN)" in shown and "at most 0.05 above it" in shown
    for header in ("above hull", "p stable", "decomposes into"):
        assert header in shown
    energy = near["energy_above_hull_ev_per_atom"]["KCl"]
    std = near["energy_above_hull_std_ev_per_atom"]["KCl"]
    assert f"{energy:.3f} ± {std:.3f}" in shown
    assert near["decomposition"]["NaCl"] == "NaCl"
    assert near["decomposition"]["KCl"] == "0.5 Cl2 + K"
    assert "left out: 1 row of elements" in told
    assert "left out: 1 row of a composition that is listed again" in told
    assert "r2SCAN energies and the model predicts PBE energies" in told
    assert "no reference phase holds O F Mg Al S K Ca Ti Fe: with these only" in told
    assert "1 structure of more than 9 elements: without an energy above hull" in told

    result, far = predict("-r", tmp_path / "r.csv", "--stable-within", 3)
    assert "r2SCAN" not in result.stderr + result.stdout
    assert far["p_stable"]["NaCl"] > near["p_stable"]["NaCl"]
    result, without = predict()
    assert "reference" not in result.stderr + result.stdout
    assert without["energy_above_hull_ev_per_atom"].isna().all()


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
        (("predict", "{salts}", "--functional", "PBE"), 2, "give --references FILE or leave"),
        (("predict", "{salts}", "--stable-within", "0.1"), 2, "give --references FILE or leave"),
        (("predict", "{salts}", "--stable-within", "inf"), 2, "inf is no energy"),
        (("predict", "{salts}", "--references", "{salts}/none.csv"), 3, "cannot read references"),
        (
            ("predict", "{salts}", "--references", "{data.parent}/e.parquet"),
            3,
            'did you mean "d.parq',
        ),
        (("featurize", "{salts}/nosuch.cif"), 3, "does not exist"),
        (("train", "{salts}/none.parquet"), 3, "there is no such file"),
        (("train", "{data}", "--target", "formation_energy"), 3, "formation_energy_per_atom"),
        (("train", "{data}", "--recipe", "papper"), 2, "paper"),
        (("train", "{data}", "--loss", "mea"), 2, 'did you mean "mae"'),
        (("train", "{data}", "--holdout", "1.5", "--workers", "0"), 2, "below 1"),
        (("train", "{data}", "--sources", "{salts}/none.toml"), 2, "none.toml"),
        (("evaluate", "nosuch", "{data}"), 4, "nosuch"),
    ],
)
def test_mistakes_end_in_one_message_and_their_code(
    screening: Screening,
    salts: Path,
    tmp_path: Path,
    training_data: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    data = training_data
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


def copy_card(folder: Path, **changes: object) -> Path:
    """Copy the card of folder/model, with some hyperparameters of its forest changed."""
    card = json.loads((folder / "model" / "card.json").read_text())
    card["training"]["forest"] |= changes
    (folder / "other").mkdir()
    (folder / "other" / "card.json").write_text(json.dumps(card))
    return folder / "other"


def test_train_evaluate_and_bundle(
    screening: Screening, tmp_path: Path, training_data: Path
) -> None:
    data, model = training_data, tmp_path / "model"
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
    assert screening("evaluate", tmp_path / "small", data, "--update-card").exit_code == 0
    shown = screening("models", "show", tmp_path / "small")
    assert shown.exit_code == 0, shown.output
    assert "CC0" in shown.stdout
    assert "B2" in shown.stdout
    words = " ".join(shown.stdout.split())
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert f"d.parquet {digest[:12]}" in words
    assert digest not in words
    assert "recipe: default, 2 epochs, 2 members, seed 0" in words
    assert f"machine: {card['training']['machine']}" in words
    assert f"n_estimators {card['training']['forest']['n_estimators']}" in words
    assert "largest change of the networks" in words
    assert "relaxed geometry" in words
    assert "Trained on known crystals" not in words
    as_json = screening("models", "show", tmp_path / "small", "--json")
    assert json.loads(as_json.stdout)["compression"]["rows"] > 0

    alike = screening(
        *train,
        "--seed",
        7,
        "--overwrite",
        "--forest-like",
        copy_card(tmp_path, min_samples_split=20),
    )
    assert alike.exit_code == 0, alike.output
    chosen = json.loads((model / "card.json").read_text())["training"]["forest"]
    assert chosen == card["training"]["forest"] | {"min_samples_split": 20}

    redone = screening(*train, "--seed", 7, "--overwrite", "--no-forest")
    assert redone.exit_code == 0, redone.output
    assert json.loads((model / "card.json").read_text())["training"]["forest"] is None
    assert screening(*train, "--forest-like", model, "--overwrite").exit_code == 4


def test_models_are_listed_with_and_without_the_word(screening: Screening) -> None:
    alone, asked = screening("models"), screening("models", "list")
    assert asked.exit_code == 0
    assert asked.stdout == alone.stdout
    assert "mp-icsd-irnet17" in alone.stdout


def test_a_model_is_never_bundled_onto_what_it_is_made_from(
    screening: Screening, train: Callable[..., Result], tmp_path: Path, training_data: Path
) -> None:
    model = tmp_path / "model"
    assert train(training_data).exit_code == 0
    missing = screening("models", "bundle", model, tmp_path / "s", "--twin", tmp_path / "none")
    assert missing.exit_code == 4
    assert "not a finished model" in missing.stderr
    assert not (tmp_path / "s").exists()
    assert screening("models", "bundle", model, tmp_path / "twin").exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for source, destination in (("model", "model"), ("model", "twin"), ("model", "twin/../model")):
        result = screening(
            *("models", "bundle", tmp_path / source, tmp_path / destination),
            *("--overwrite", "--twin", tmp_path / "twin"),
        )
        assert result.exit_code == 2, result.output
        assert "cannot be the destination" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_evaluation_without_kinds_scores_all_rows_as_they_are(
    screening: Screening, tmp_path: Path, training_data: Path, tiny_model: Path
) -> None:
    data = training_data
    pd.read_parquet(data).drop(columns="kind").to_parquet(data)
    result = screening("evaluate", tiny_model, data, "--device", "cpu", "--out", tmp_path / "e")
    assert result.exit_code == 0, result.output
    assert "no kind column: its 36 rows are scored as one group" in result.stderr
    assert "as given, eV/atom" in result.stdout
    assert "paper" not in result.stdout
    assert "ideal" not in result.stdout
    scores = json.loads((tmp_path / "e").read_text())["scores"]
    assert {(s["group"], s["geometry"], s["n"]) for s in scores} == {("all", "relaxed", 36)}
    refused = screening("evaluate", tiny_model, data, "--update-card")
    assert refused.exit_code == 2
    pd.read_parquet(data).assign(formation_energy_per_atom="low").to_parquet(data)
    text = screening("evaluate", tiny_model, data)
    assert text.exit_code == 3
    assert "does not hold numbers" in text.stderr


@pytest.mark.parametrize("command", ["predict", "evaluate", "train"])
def test_a_missing_gpu_is_reported_before_anything_is_read(
    screening: Screening,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "x.parquet").write_text("not a table")
    arguments = {
        "predict": ("--model", tiny_model, tmp_path / "x.parquet", "--out", tmp_path / "o.parquet"),
        "evaluate": (tiny_model, tmp_path / "x.parquet"),
        "train": (tmp_path / "x.parquet", "--out", tmp_path / "model"),
    }[command]
    result = screening(command, *arguments, "--device", "cuda")
    assert result.exit_code == 2, result.output
    assert "no GPU" in result.stderr


@pytest.mark.parametrize("command", ["predict", "featurize"])
def test_outputs_that_are_no_parquet_files_are_refused(
    screening: Screening, salts: Path, tmp_path: Path, command: str
) -> None:
    for out, message in ((tmp_path, "is a folder"), (tmp_path / "x.csv", "must end in .parquet")):
        for options in ((), ("--overwrite",)):
            result = screening(command, salts, "--out", out, *options)
            assert result.exit_code == 2, result.output
            assert message in result.stderr
    assert not (tmp_path / "x.csv").exists()


def test_predictions_into_the_folder_of_the_structures(
    screening: Screening, salts: Path, tiny_model: Path
) -> None:
    predict = ("predict", salts, "--out", salts / "p.parquet", "--model", tiny_model)
    assert screening(*predict).exit_code == 0
    again = screening(*predict, "--overwrite")
    assert again.exit_code == 0, again.output
    assert "left out" not in again.stderr
    assert len(pd.read_parquet(salts / "p.parquet")) == 2
    other = screening("featurize", salts, "--out", salts / "f.parquet", "--workers", 0)
    assert other.exit_code == 0, other.output
    assert other.stderr.count("left out 2 Parquet files") == 1


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
def test_structures_that_all_fail_are_listed(
    screening: Screening, salts: Path, tmp_path: Path, tiny_model: Path
) -> None:
    heavy = Structure(Lattice.cubic(4), ["Rf", "Cl"], [[0, 0, 0], [0.5] * 3])
    heavy.to(filename=str(salts / "heavy.cif"))
    inputs = [salts / name for name in ("heavy.cif", "broken.cif")]
    out = tmp_path / "p.parquet"
    result = screening("predict", *inputs, "--out", out, "--model", tiny_model)
    assert result.exit_code == 3, result.output
    assert result.stderr.count("error:") == 1
    assert "p.failures.parquet" in result.stderr
    failures = pd.read_parquet(tmp_path / "p.failures.parquet")
    assert sorted(failures["id"]) == ["broken.cif", "heavy.cif"]
    assert not out.exists()


def test_options_are_completed() -> None:
    from typer.main import get_command

    from irnet.recipe import RECIPES as KNOWN_RECIPES
    from screening.cli import app

    assert set(commands_training.RECIPES) == set(KNOWN_RECIPES)
    assert commands_training.complete_recipe("p") == ["paper"]
    assert commands_structures.complete_engine("") == ["fast", "matminer"]
    root = get_command(app)
    assert isinstance(root, TyperGroup)
    for command, names in {
        "predict": ("device", "model", "engine"),
        "featurize": ("engine",),
        "evaluate": ("device", "model"),
        "train": ("device", "recipe", "engine"),
    }.items():
        for parameter in root.commands[command].params:
            if parameter.name in names:
                assert parameter._custom_shell_complete is not None, (command, parameter.name)


class Terminal(io.StringIO):
    """Stands for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("width", "tables"), [(200, 1), (80, 3), (46, 6)])
def test_tables_that_do_not_fit_are_broken_between_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, tables: int
) -> None:
    monkeypatch.setattr(command_parts, "WIDTH_OF_FILES", width)
    header = ["kind", "scheme", *(f"IRNet value {i}" for i in range(12))]
    cells = [f"-{i}.12345" for i in range(12)]
    command_parts.print_table("errors", [header, ["perov_cubic", "[all]", *cells]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].strip() == "errors"
    assert all(len(line) <= width for line in lines)
    rows = [line.split() for line in lines if "perov_cubic" in line]
    assert len(rows) == tables
    assert all(row[:2] == ["perov_cubic", "[all]"] for row in rows)
    assert [cell for row in rows for cell in row[2:]] == cells


def test_one_bar_at_a_time_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    with command_parts.show_progress("sites", "epochs") as [sites, epochs]:
        sites(512_345, 512_345, "40,000 of 44,000 structures")
        epochs(263, 320, "network 3: MAE 0.0838, best 0.0819")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert lines[-1].startswith("epochs")
    assert "best 0.0819" in lines[-1]
    assert "263/320" in lines[-1]
    assert all(len(line) <= 80 for line in lines)
    assert not [line for line in lines if "sites" in line and "epochs" in line]


@pytest.mark.parametrize(
    ("command", "kept"), [("featurize", "goes on"), ("predict", "nothing"), ("train", "goes on")]
)
def test_ctrl_c_ends_in_one_message(
    screening: Screening,
    tmp_path: Path,
    training_data: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    kept: str,
) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("screening.features.featurize_crystals", press)
    out = tmp_path / ("model" if command == "train" else "x.parquet")
    options = ("--model", tiny_model) if command == "predict" else ()
    data = training_data
    result = screening(command, data, "--out", out, "--workers", 0, *options)
    assert result.exit_code == 130, result.output
    assert result.stderr.count("interrupted; ") == 1
    assert kept in result.stderr
    assert not out.is_file()


def test_models_lists_what_is_bundled(screening: Screening) -> None:
    result = screening("models")
    assert result.exit_code == 0, result.output
    from screening.model_library import list_models

    for folder in list_models():
        assert folder.name in result.stdout
