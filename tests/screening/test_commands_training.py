from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from typer.testing import Result

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
    for wrong, options in (
        (tmp_path / "typo.parquet", ()),
        (tmp_path / "text.parquet", ()),
        (data, ("--holdout", 1.5)),
        (data, ("--features", tmp_path / "features.parquet")),
        (data, ("--exclude-formulas", tmp_path / "none.csv")),
    ):
        assert train(wrong, "--overwrite", *options).exit_code == 3
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
