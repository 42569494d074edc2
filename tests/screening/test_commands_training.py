from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from irnet import Forest, Progress, Recipe
from screening.features.schema import FEATURES

Screening = Callable[..., Result]


def test_overwrite_keeps_the_model_until_the_data_are_usable(
    train: Callable[..., Result], tmp_path: Path, training_data: Path
) -> None:
    data, model = training_data, tmp_path / "model"
    assert train(data).exit_code == 0
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    table = pd.read_parquet(data)
    table.assign(formation_energy_per_atom="low").to_parquet(tmp_path / "text.parquet")
    table[["id"]].to_parquet(tmp_path / "features.parquet")
    for wrong, options, code in (
        (tmp_path / "typo.parquet", (), 3),
        (tmp_path / "text.parquet", (), 3),
        (data, ("--holdout", 1.5), 2),
        (data, ("--features", tmp_path / "features.parquet"), 3),
        (data, ("--exclude-formulas", tmp_path / "none.csv"), 3),
    ):
        assert train(wrong, "--overwrite", *options).exit_code == code
        after = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
        assert after == before
    (model / ".card.json.1234.tmp").write_text("leftover")
    (model / ".member-0.safetensors.part").write_text("leftover")
    assert train(data, "--overwrite", "--seed", 1).exit_code == 0
    assert json.loads((model / "card.json").read_text())["training"]["seed"] == 1
    assert not list(model.glob(".*"))


def test_rows_leave_training_as_the_options_say(
    train: Callable[..., Result], tmp_path: Path, training_data: Path
) -> None:
    data = training_data
    table = pd.read_parquet(data)
    table["dE_matbench"] = [0.5, 0.3] + [0.0] * (len(table) - 2)
    table.loc[2, "formation_energy_per_atom"] = np.nan
    table.at[3, "species"] = ["Li", "Li", "Li"]
    table.at[3, "frac_coords"] = np.array([0.0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0.5])
    table.to_parquet(data)

    def dropped(out: str, *options: object) -> dict[str, int]:
        result = train(data, *options, out=out)
        assert result.exit_code == 0, result.output
        counts = json.loads((tmp_path / out / "card.json").read_text())["data"]["dropped"]
        return {str(key): int(count) for key, count in counts.items()}

    refused = train(data)
    assert refused.exit_code == 3
    assert "--drop-missing-energies" in refused.stderr
    doubtful = "energy more than 0.02 eV/atom from an independent table"
    assert dropped("a", "--drop-missing-energies") == {"no energy": 1, doubtful: 2}
    assert dropped("b", "--drop-missing-energies", "--keep-doubtful") == {"no energy": 1}
    assert dropped("c", "--drop-missing-energies", "--keep-doubtful", "--max-sites", 2) == {
        "no energy": 1,
        "more than 2 sites": 1,
    }


def test_training_takes_features_and_knows_their_file(
    screening: Screening, train: Callable[..., Result], tmp_path: Path, training_data: Path
) -> None:
    data, features = training_data, tmp_path / "f.parquet"
    assert screening("featurize", data, "--out", features, "--workers", 0).exit_code == 0
    joined = train(data, "--features", features)
    assert joined.exit_code == 0, joined.output
    assert "sites" not in joined.stderr
    assert train(data, out="other").exit_code == 0
    cards = [json.loads((tmp_path / out / "card.json").read_text()) for out in ("model", "other")]
    assert cards[0]["data"]["content_sha256"] == cards[1]["data"]["content_sha256"]
    assert "nothing to do" in train(data, "--features", features).stderr
    table = pd.read_parquet(features)
    table[FEATURES[5]] += 1.0
    table.to_parquet(features)
    changed = train(data, "--features", features)
    assert changed.exit_code == 2
    assert "its features is" in changed.stderr


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of features of 120 made-up rows with several columns to learn."""
    random = np.random.default_rng(0)
    values = random.normal(size=(120, len(FEATURES)))
    symbols = "Li Na K Mg Ca Al Fe Cu O S F Cl".split()
    pairs = [a + b for a in symbols for b in symbols if a < b]
    rows = pd.DataFrame(values, columns=list(FEATURES))
    rows.insert(0, "id", [f"r{i}" for i in range(len(rows))])
    rows["formula"] = [pairs[i % len(pairs)] for i in range(len(rows))]
    rows["formation_energy_per_atom"] = values[:, :3].sum(axis=1)
    rows["gap"] = values[:, 3] + 2
    rows["flat"] = 1.5
    rows["text"] = "low"
    rows["holes"] = np.where(np.arange(len(rows)) == 7, np.nan, values[:, 0])
    rows["endless"] = np.where(np.arange(len(rows)) == 8, np.inf, values[:, 0])
    rows["weight"] = np.where(np.arange(len(rows)) % 2, 2.0, 0.5)
    rows["negative"] = -1.0
    path = tmp_path / "table.parquet"
    rows.to_parquet(path)
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_card(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "card.json").read_text()))


@pytest.mark.parametrize(
    ("options", "code", "complaint"),
    [
        (["--target", "gapp"], 3, "no column 'gapp'; did you mean \"gap\"?"),
        (["--target", "flat"], 3, "'flat' is 1.5 in all 120 rows"),
        (["--target", "text"], 3, "'text' does not hold numbers"),
        (["--target", "holes"], 3, "1 row without a finite 'holes', the first is 'r7'"),
        (["--target", "endless"], 3, "1 row without a finite 'endless', the first is 'r8'"),
        (["--weights", "wait"], 3, "no column 'wait'"),
        (["--weights", "negative"], 3, "no sample weight, the first is 'r0' with -1"),
        (["--weights", "holes"], 3, "no sample weight"),
        (["--set", "weigth_decay=0"], 2, "no field 'weigth_decay'; did you mean \"weight_decay\"?"),
        (["--set", "weight_decay"], 2, "is no field=value"),
        (["--set", "weight_decay=little"], 2, 'weight_decay="little" must be a number'),
        (["--set", "decay_epochs=1.5"], 2, 'decay_epochs="1.5" must be a whole number'),
        (["--set", "scale_inputs=1"], 2, "must be true or false"),
        (["--set", "epochs=2"], 2, "epochs is set twice"),
        (["--schedule", "cosin"], 2, 'did you mean "cosine"?'),
        (["--dropout", "1"], 2, "dropout is 1.0"),
        (["--weight-averaging", "swa"], 2, "weight_averaging 'swa' is none of"),
        (["--freeze", "some"], 2, "neither a number of layers nor all"),
        (["--freeze", "1"], 2, "name it with --init-from"),
        (["--init-from", "nowhere"], 4, 'there is no model "nowhere"'),
        (["--device", "tpu"], 2, "none of auto, cpu, cuda"),
    ],
)
def test_bad_training_input_ends_in_one_message_and_its_code(
    train: Callable[..., Result],
    table: Path,
    tmp_path: Path,
    options: list[str],
    code: int,
    complaint: str,
) -> None:
    result = train(table, *options)
    assert result.exit_code == code, result.output
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "model").exists()


def test_options_that_would_change_nothing_are_refused(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    (tmp_path / "typo.toml").write_text('[[sources]]\nwhat = "w"\ncitation = "c"\nlicence = "l"\n')
    (tmp_path / "empty.toml").write_text("")
    for options, code, complaint in (
        (("--dropout", 0.3), 2, "the architecture 4A-1 has no D"),
        (("--set", "dropout=0.3"), 2, "the architecture 4A-1 has no D"),
        (("--max-sites", 2), 3, "do not say how many sites"),
        (("--features", table), 3, "the data files hold features themselves"),
        (("--forest-like", "default"), 2, "--no-forest trains none"),
        (("--sources", tmp_path / "typo.toml"), 2, "called [[source]] and nothing else; it has s"),
        (("--sources", tmp_path / "empty.toml"), 2, "it has nothing"),
    ):
        result = train(table, *options)
        assert result.exit_code == code, result.output
        assert complaint in result.stderr
        assert not (tmp_path / "model").exists()


def test_options_reach_the_recipe_and_the_weights(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    assert train(table, out="plain", architecture="4BA-1").exit_code == 0
    options: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
        "rate": (("--learning-rate", 0.01), {"learning_rate": 0.01}),
        "batch": (("--batch-size", 16), {"batch_size": 16}),
        "noise": (("--input-noise", 0.5), {"input_noise": 0.5}),
        "other": (("--set", "clip_sigma=none", "--set", "weight_decay=0.5"), {"clip_sigma": None}),
        "several": (
            (
                *("--schedule", "step", "--patience", 3, "--weight-averaging", "ema"),
                *("--dropout", 0.3, "--precision", "fp32", "--set", "decay_epochs=1"),
                *("--architecture", "4BAD-1"),
            ),
            {
                "schedule": "step",
                "patience": 3,
                "weight_averaging": "ema",
                "dropout": 0.3,
                "precision": "fp32",
                "decay_epochs": 1,
            },
        ),
        "weights": (("--weights", "weight"), {}),
    }
    before = read_card(tmp_path / "plain")["held_out"]
    for out, (given, expected) in options.items():
        result = train(table, *given, out=out, architecture="4BA-1")
        assert result.exit_code == 0, result.output
        card = read_card(tmp_path / out)
        assert expected.items() <= card["training"]["recipe"].items()
        assert card["held_out"] != before, out
    refused = train(table, "--batch-size", 8, out="batch", architecture="4BA-1")
    assert refused.exit_code == 2
    assert "its recipe batch_size is 16, not 8" in refused.stderr
    refused = train(table, out="weights", architecture="4BA-1")
    assert refused.exit_code == 2
    assert "its data is" in refused.stderr


def test_any_column_of_numbers_is_learnt_in_its_unit(
    screening: Callable[..., Result], train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(table)
    rows["dE_matbench"] = 1.0
    rows.to_parquet(table)
    result = train(table, "--target", "gap", "--unit", "eV", "--forest", "--forest-like", "default")
    assert result.exit_code == 0, result.output
    assert Forest.load(tmp_path / "model" / "forest.safetensors").card["unit"] == "eV"
    assert "held-out rows, eV\n" in re.sub(" +\n", "\n", result.stdout)
    card = read_card(tmp_path / "model")
    assert card["data"]["target"] == "gap"
    assert card["data"]["dropped"] == {}
    assert card["description"].startswith("gap (eV) of a crystal")
    assert any("campaigns cannot rank" in limit for limit in card["limits"])
    ensemble = json.loads((tmp_path / "model" / "ensemble" / "ensemble.json").read_text())
    assert ensemble["card"]["unit"] == "eV"
    assert len(ensemble["members"][0]["history"]) == 1
    refused = train(table, "--target", "gap")
    assert refused.exit_code == 3, "every row is doubtful as an energy"

    model, small = tmp_path / "model", tmp_path / "small"
    bundled = screening("models", "bundle", model, small, "--nodes", 3000)
    assert bundled.exit_code == 0, bundled.output
    shown = screening("models", "show", small)
    assert " eV; largest change of the networks " in " ".join(shown.stdout.split())
    assert "eV/atom" not in bundled.stderr + shown.stdout


def test_training_begins_from_another_models_networks(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    from irnet import Ensemble

    def weights(out: str) -> dict[str, Any]:
        return dict(Ensemble.load(tmp_path / out / "ensemble").members[0].state)

    layers = ("--architecture", "8Ax2-4A-1", "--activation", "tanh")
    assert train(table, *layers, out="first").exit_code == 0
    first = tmp_path / "first"
    gap = ("--target", "gap", "--unit", "eV", "--seed", 1, "--init-from", first)
    frozen = screening_like(train, table, *gap, "--freeze", "all", out="frozen")
    assert frozen.exit_code == 0, frozen.output
    before, after = weights("first"), weights("frozen")
    changed = {name for name in before if not (before[name] == after[name]).all()}
    output = {name for name in before if before[name].shape in ((1, 4), (1,))}
    assert changed == output
    card = read_card(tmp_path / "frozen")
    assert card["training"]["architecture"] == "8Ax2-4A-1"
    assert card["training"]["recipe"]["activation"] == "tanh"
    one = screening_like(train, table, *gap, "--freeze", 1, out="one")
    assert one.exit_code == 0, one.output
    assert len({name for name in before if (before[name] == weights("one")[name]).all()}) == 2
    free = screening_like(train, table, *gap, out="free")
    assert free.exit_code == 0, free.output
    refused = screening_like(train, table, *gap[:-2], out="free")
    assert refused.exit_code == 2
    assert "another training" in refused.stderr

    other = train(table, "--architecture", "8A-1", "--init-from", first, out="wrong")
    assert other.exit_code == 4, other.output
    assert "its networks are 8Ax2-4Ax1-1, not 8Ax1-1" in other.stderr
    other = screening_like(train, table, *gap, "--activation", "relu", out="wrong")
    assert other.exit_code == 4, other.output
    assert "its networks are tanh, not relu; leave --activation out" in other.stderr
    member = first / "ensemble" / "member-0.safetensors"
    member.write_bytes(member.read_bytes()[:500])
    torn = screening_like(train, table, *gap, out="wrong")
    assert torn.exit_code == 4, torn.output
    assert "member-0.safetensors" in torn.stderr
    assert not (tmp_path / "wrong").exists()


def screening_like(train: Callable[..., Result], *arguments: object, **options: str) -> Result:
    """Train without the architecture that the fixture gives."""
    return train(*arguments, **options, architecture=None)


def test_networks_of_other_features_are_no_beginning(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    from irnet import train_ensemble

    assert train(table, out="first").exit_code == 0
    features = np.random.default_rng(0).normal(size=(60, 3))
    train_ensemble(
        features,
        features.sum(axis=1),
        ["a", "b", "c"],
        recipe=Recipe(architecture="4A-1", epochs=1, batch_size=16),
        members=1,
        checkpoint_dir=tmp_path / "checkpoints",
        device="cpu",
    ).save(tmp_path / "first" / "ensemble")
    result = train(table, "--init-from", tmp_path / "first", out="second")
    assert result.exit_code == 4, result.output
    assert "expects 3 features, got 271" in result.stderr


def test_feature_tables_fit_by_name(
    train: Callable[..., Result], training_data: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(training_data)
    random = np.random.default_rng(0)
    features = pd.DataFrame(random.normal(size=(len(rows), len(FEATURES))), columns=list(FEATURES))
    features.insert(0, "id", rows["id"])
    path = tmp_path / "features.parquet"

    def call(table: pd.DataFrame, out: str) -> Result:
        table.to_parquet(path)
        return train(training_data, "--features", path, out=out)

    assert call(features, "straight").exit_code == 0
    assert call(features[features.columns[::-1]], "reversed").exit_code == 0
    cards = [read_card(tmp_path / out) for out in ("straight", "reversed")]
    assert cards[0]["held_out"] == cards[1]["held_out"]
    renamed = call(features.rename(columns={FEATURES[4]: FEATURES[4] + "s"}), "wrong")
    fewer = call(features.drop(columns=FEATURES[9]), "wrong")
    holes = call(features.assign(**{FEATURES[0]: np.nan}), "wrong")
    for result, complaint in (
        (renamed, f'no column "{FEATURES[4]}"; did you mean "{FEATURES[4]}s"?'),
        (fewer, f'no column "{FEATURES[9]}"'),
        (holes, "no row has features that are all finite"),
    ):
        assert result.exit_code == 3, result.output
        assert complaint in result.stderr
    assert not (tmp_path / "wrong").exists()


def test_fewer_rows_than_a_batch_are_told(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    result = train(table, "--batch-size", 128)
    assert result.exit_code == 0, result.output
    assert "fewer rows than a batch of 128: each epoch is a single step" in result.stderr
    assert "fewer rows" not in train(table, "--batch-size", 32, out="small").stderr
    few = pd.read_parquet(table).head(2)
    few.to_parquet(table)
    result = train(table, "--holdout", 0, out="two")
    assert result.exit_code == 3, result.output
    assert "cannot be split" in result.stderr


def test_a_loss_that_is_no_number_keeps_the_last_good_state(
    train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    wild = ("--learning-rate", 1e30, "--set", "gradient_clip=none", "--schedule", "constant")
    result = train(table, *wild, "--batch-size", 16)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert re.search(r"epoch 1, (step \d+|validation after the last step) of \d+", result.stderr)
    assert "learning_rate" in result.stderr
    [named] = re.findall(r"are in (\S+\.safetensors)", result.stderr)
    from irnet import Member

    assert Member.load(named).feature_names == tuple(FEATURES)
    assert Path(named).is_relative_to(tmp_path / "model")
    again = train(table, "--overwrite")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: data[:700], "truncated"),
        (lambda data: data[:-40] + bytes(40), "altered"),
        (lambda data: pickle.dumps({"weights": 1}), "not a safetensors file"),
        (lambda data: data.replace(b'\\"format\\": ', b'\\"format\\": 7', 1), "newer version"),
    ],
)
def test_damaged_checkpoints_are_named_and_kept(
    train: Callable[..., Result],
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[bytes], bytes],
    complaint: str,
) -> None:
    from irnet import train_ensemble

    class Killed(BaseException):
        pass

    def die(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    def dying(*arguments: Any, **options: Any) -> object:
        return train_ensemble(*arguments, **(options | {"progress": die}))

    monkeypatch.setattr("irnet.train_ensemble", dying)
    with pytest.raises(Killed):
        train(table, "--set", "patience=none", epochs=6)
    monkeypatch.undo()
    checkpoint = tmp_path / "model" / "work" / "checkpoints" / "member-0" / "checkpoint.safetensors"
    data = damage(checkpoint.read_bytes())
    size = len(data) - len(checkpoint.read_bytes())
    if complaint == "newer version":  # the header grew by a digit: say so in its length
        length = int.from_bytes(data[:8], "little") + size
        data = length.to_bytes(8, "little") + data[8:]
    checkpoint.write_bytes(data)
    before = contents(tmp_path / "model")
    result = train(table, "--set", "patience=none", epochs=6)
    assert result.exit_code == 4, result.output
    assert complaint in result.stderr
    assert "checkpoint.safetensors" in result.stderr
    assert "Traceback" not in result.output
    assert contents(tmp_path / "model") == before
    checkpoint.unlink()
    assert train(table, "--set", "patience=none", epochs=6).exit_code == 0


def test_the_page_of_a_model_is_one_file(
    screening: Screening, train: Callable[..., Result], table: Path, tmp_path: Path
) -> None:
    assert train(table).exit_code == 0
    out = tmp_path / "new" / "card.html"
    call = ("models", "page", tmp_path / "model", "--device", "cpu", "--out")
    result = screening(*call, out)
    assert result.exit_code == 0, result.output
    page = out.read_text()
    assert page.count("<svg") == 2, "learning curves and the distribution of held-out errors"
    assert screening(*call, out).exit_code == 2
    assert screening(*call, out, "--overwrite").exit_code == 0
    assert screening("models", "page", tmp_path, "--out", tmp_path / "x.html").exit_code == 4


def test_a_scheduler_that_is_none(
    train: Callable[..., Result], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("screening.cluster.client.CONNECT_SECONDS", 1)
    result = train(table, "--scheduler", "tcp://127.0.0.1:1")
    assert result.exit_code == 2, result.output
    assert "no Dask scheduler answers" in result.stderr
