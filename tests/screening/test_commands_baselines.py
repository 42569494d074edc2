from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster
from typer.testing import Result

import irnet.baselines
from irnet import Forest, metrics
from irnet.baselines import BASELINES, Baseline
from screening.benchmark.paper import TABLE_3
from screening.commands_baselines import KINDS
from screening.dataset import reduce_formula, split_by_formula
from screening.features.schema import FEATURES

Screening = Callable[..., Result]
FEW = ("ridge", "decision_tree")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of features of 120 made-up rows, two or three of each formula."""
    random = np.random.default_rng(0)
    values = random.normal(size=(120, len(FEATURES)))
    symbols = "Li Na K Mg Ca Al Fe Cu O S F Cl".split()
    pairs = [a + b for a in symbols for b in symbols if a < b][:50]
    rows = pd.DataFrame(values, columns=list(FEATURES))
    rows.insert(0, "id", [f"r{i}" for i in range(len(rows))])
    rows["formula"] = [pairs[i % len(pairs)] for i in range(len(rows))]
    rows["formation_energy_per_atom"] = values[:, :3].sum(axis=1)
    rows["gap"] = values[:, 3] + 2
    rows["holes"] = np.where(np.arange(len(rows)) == 7, np.nan, values[:, 0])
    rows["dE_matbench"] = np.where(np.arange(len(rows)) < 5, 0.3, 0.0)
    path = tmp_path / "table.parquet"
    rows.to_parquet(path)
    return path


@pytest.fixture
def fit(screening: Screening, table: Path, tmp_path: Path) -> Callable[..., Result]:
    """Fit a few kinds without a search unless told otherwise."""

    def call(*options: object, kinds: tuple[str, ...] = FEW, out: str = "fitted") -> Result:
        named = [part for kind in kinds for part in ("--kind", kind)]
        return screening(
            "baselines", "fit", table, "--out", tmp_path / out, *named,
            "--workers", 0, "--no-search", "--holdout", 0.2, *options,
        )  # fmt: skip

    return call


def load(folder: Path, kind: str = "ridge") -> Baseline:
    return Baseline.load(folder / f"{kind}.safetensors")


def test_list_names_every_kind_and_the_papers_errors(screening: Screening) -> None:
    assert tuple(BASELINES) == KINDS
    listed = screening("baselines", "list")
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in KINDS)
    assert "0.072" in listed.stdout
    assert "alpha 0.01, 0.1, 1, 10, 100. The alphas of scikit-learn's RidgeCV" in listed.stdout
    assert {name: kind.paper_mae for name, kind in BASELINES.items() if kind.paper_mae} == TABLE_3


def test_errors_are_those_of_a_trainings_held_out_rows(
    train: Callable[..., Result], screening: Screening, training_data: Path, tmp_path: Path
) -> None:
    assert train(training_data, "--forest", "--seed", 3).exit_code == 0
    done = screening(
        "baselines", "fit", training_data, "--kind", "ridge", "--kind", "random_forest",
        "--out", tmp_path / "fitted", "--workers", 0, "--no-search",
        "--holdout", 0.2, "--seed", 3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    forest = Forest.load(tmp_path / "model" / "forest.safetensors")
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    held = card["data"]["held_out_rows"]
    for kind in ("ridge", "random_forest"):
        found = load(tmp_path / "fitted", kind).card
        assert found["data_sha256"] == forest.card["data_sha256"]
        assert found["held_out"]["rows"] == held
    assert not (tmp_path / "fitted" / "work").exists()


def test_what_is_printed_is_measured(fit: Callable[..., Result], table: Path) -> None:
    done = fit()
    assert done.exit_code == 0, done.output
    folder = table.parent / "fitted"
    rows = pd.read_parquet(table)
    rows = rows[rows["dE_matbench"] == 0]
    for kind in FEW:
        baseline = load(folder, kind)
        error = baseline.card["held_out"]
        predicted = baseline.predict(rows[list(FEATURES)].to_numpy())
        errors = np.abs(predicted - rows["formation_energy_per_atom"].to_numpy())
        # the held-out rows are those of whole formulas whose errors have the stored mean
        whole = {str(name): errors[rows["formula"] == name] for name in rows["formula"]}
        assert error["rows"] == len(rows) - baseline.card["rows"]
        assert errors.min() <= error["mae"] <= max(each.max() for each in whole.values())
        assert f"{error['mae']:.4f}" in done.stdout
        assert baseline.title in done.stdout
    assert (
        load(folder).card["held_out"]["mae"] < load(folder, "decision_tree").card["held_out"]["mae"]
    ), "a linear target"
    assert "5 left out: energy more than 0.02 eV/atom" in done.stderr


def test_held_out_error_is_of_the_rows_left_out(fit: Callable[..., Result], table: Path) -> None:
    assert fit("--keep-doubtful").exit_code == 0
    rows = pd.read_parquet(table)
    _, held = split_by_formula([reduce_formula(name) for name in rows["formula"]], 0.2, 0)
    left_out = rows.iloc[held]
    baseline = load(table.parent / "fitted")
    predicted = baseline.predict(left_out[list(FEATURES)].to_numpy())
    target = left_out["formation_energy_per_atom"].to_numpy()
    error = baseline.card["held_out"]
    assert error["rows"] == len(held)
    assert error["mae"] == pytest.approx(metrics.mae(predicted, target))
    assert error["rmse"] == pytest.approx(metrics.rmse(predicted, target))
    assert error["mae_low"] < error["mae"] < error["mae_high"]


def test_the_same_command_goes_on_and_adds_kinds(
    fit: Callable[..., Result], tmp_path: Path
) -> None:
    assert fit(kinds=("ridge",)).exit_code == 0
    before = (tmp_path / "fitted/ridge.safetensors").read_bytes()
    more = fit(kinds=("ridge", "lasso"))
    assert more.exit_code == 0, more.output
    assert "Ridge: already fitted" in more.stderr
    assert "Lasso" in more.stdout
    assert (tmp_path / "fitted/ridge.safetensors").read_bytes() == before
    for options, complaint in (
        (("--seed", 1), "their seed is 0, not 1"),
        (("--rows", 50), "their rows to fit is 'all', not 50"),
        (("--search",), "their search is False, not True"),
        (("--target", "gap"), "their data is"),
    ):
        refused = fit(*options)
        assert refused.exit_code == 2, refused.output
        assert complaint in refused.stderr
    again = fit("--seed", 1, "--overwrite", kinds=("ridge",))
    assert again.exit_code == 0, again.output
    assert load(tmp_path / "fitted").card["seed"] == 1
    assert not (tmp_path / "fitted/lasso.safetensors").exists()


def test_foreign_and_damaged_folders_are_left_alone(
    fit: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").write_text("years of work")
    assert "holds no baselines" in fit(out="own").stderr
    refused = fit("--overwrite", out="own")
    assert refused.exit_code == 2
    assert "'thesis.txt', which is no part" in refused.stderr
    assert (tmp_path / "own/thesis.txt").exists()
    assert fit(kinds=("ridge",)).exit_code == 0
    (tmp_path / "fitted/ridge.safetensors").write_bytes(b"broken")
    damaged = fit(kinds=("ridge",))
    assert damaged.exit_code == 4
    assert "not a safetensors file" in damaged.stderr
    (tmp_path / "fitted/baselines.json").write_text("{")
    assert fit().exit_code == 2


def test_a_subset_is_named_in_table_and_card(fit: Callable[..., Result], tmp_path: Path) -> None:
    whole, part = fit(out="whole"), fit("--rows", 50, out="part")
    assert part.exit_code == 0, part.output
    all_of_it, some = load(tmp_path / "whole").card, load(tmp_path / "part").card
    assert all_of_it["subset"] is None
    assert "*" not in whole.stdout
    assert 45 < some["rows"] <= 50 < all_of_it["rows"]
    assert some["held_out"]["rows"] == all_of_it["held_out"]["rows"]
    assert f"{some['rows']} of {all_of_it['rows']} rows" in some["subset"]
    assert f"{some['rows']}*" in part.stdout
    assert f"* {some['subset']}" in part.stdout


def test_options_change_what_is_fitted(fit: Callable[..., Result], tmp_path: Path) -> None:
    def card(out: str, *options: object) -> dict[str, Any]:
        done = fit(*options, kinds=("ridge",), out=out)
        assert done.exit_code == 0, done.output
        return dict(load(tmp_path / out).card)

    plain = card("plain")
    assert (plain["search"], plain["parameters"]) == ([], {"alpha": 1.0})
    searched = card("searched", "--search")
    assert len(searched["search"]) == 5
    assert searched["parameters"]["alpha"] in (0.01, 0.1, 1, 10, 100)
    gap = card("gap", "--target", "gap", "--unit", "eV")
    assert (gap["target"], gap["unit"]) == ("gap", "eV")
    assert gap["rows"] > plain["rows"], "of other units no row is doubtful"
    everything = card("everything", "--holdout", 0)
    assert (everything["held_out"], everything["rows"]) == (None, 115)
    assert card("seed", "--seed", 2)["data_sha256"] != plain["data_sha256"]
    assert card("holes", "--target", "holes", "--drop-missing-energies")["target"] == "holes"
    (tmp_path / "out.txt").write_text("LiNa\nKLi\n")
    fewer = card("fewer", "--holdout", 0, "--exclude-formulas", tmp_path / "out.txt")
    assert fewer["rows"] < 115


def test_features_are_joined_and_sites_limited(
    screening: Screening, training_data: Path, table: Path, tmp_path: Path
) -> None:
    features = tmp_path / "f.parquet"
    assert screening("featurize", training_data, "--out", features, "--workers", 0).exit_code == 0

    def fit_ridge(out: str, *options: object) -> Result:
        return screening(
            "baselines", "fit", training_data, "--kind", "ridge", "--no-search", "--workers", 0,
            "--holdout", 0.2, "--out", tmp_path / out, *options,
        )  # fmt: skip

    joined = fit_ridge("joined", "--features", features)
    assert joined.exit_code == 0, joined.output
    assert "sites" not in joined.stderr
    assert fit_ridge("made").exit_code == 0
    one, other = load(tmp_path / "joined"), load(tmp_path / "made")
    assert one.card["data_sha256"] == other.card["data_sha256"]
    none = fit_ridge("none", "--max-sites", 1)
    assert none.exit_code == 3
    assert "no row is left" in none.stderr
    assert "engine" in fit_ridge("slow", "--engine", "slow").stderr
    twice = screening(
        "baselines", "fit", table, "--kind", "ridge", "--features", features,
        "--out", tmp_path / "twice",
    )  # fmt: skip
    assert twice.exit_code == 3
    assert "the data files hold features themselves" in twice.stderr


def test_workers_say_how_many_fits_run_at_a_time(
    fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    really = irnet.baselines.fit_baseline

    def spy(*args: Any, n_jobs: int, **options: Any) -> Baseline:
        asked.append(n_jobs)
        return really(*args, n_jobs=1, **options)

    monkeypatch.setattr(irnet.baselines, "fit_baseline", spy)
    assert fit(kinds=("ridge",), out="none").exit_code == 0
    assert fit("--workers", 3, kinds=("ridge",), out="three").exit_code == 0
    assert asked == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_grids_are_searched_on_the_workers_of_a_scheduler(
    fit: Callable[..., Result], tmp_path: Path, threads: int
) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=threads,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        done = fit("--scheduler", cluster.scheduler_address, "--search", out="there")
        ran = [entry for entry in cluster.workers[0].state.log if "fit_and_score" in str(entry)]
        again = fit("--scheduler", cluster.scheduler_address, "--search", out="there")
    assert done.exit_code == 0, done.output
    if threads == 1:
        assert "has one thread: grids are searched in this process" in done.stderr
        assert not ran
    else:
        assert "searching grids on 2 threads of 1 worker" in done.stderr
        assert ran
    assert "searching" not in again.stderr
    assert "has one thread" not in again.stderr
    assert fit("--search", out="here").exit_code == 0
    for kind in FEW:
        one, other = load(tmp_path / "there", kind).card, load(tmp_path / "here", kind).card
        assert one["search"] == other["search"]
        assert one["held_out"] == other["held_out"]


@pytest.mark.parametrize(
    ("options", "kinds", "code", "complaint"),
    [
        ((), ("rigde",), 2, 'no baseline "rigde"; did you mean "ridge"?'),
        ((), ("all", "ridge"), 2, "--kind all is every kind"),
        (("--rows", 1), ("ridge",), 2, "--rows 1 has no room for one formula"),
        (("--rows", 0), ("ridge",), 2, "--rows"),
        (("--target", "gapp"), ("ridge",), 3, 'did you mean "gap"'),
        (("--target", "holes"), ("ridge",), 3, "--drop-missing-energies"),
        (("--holdout", 1.5), ("ridge",), 2, "held-out fraction is 1.5"),
        (("--rows", 12, "--search"), ("k_neighbors",), 2, "cannot be fitted on"),
    ],
)
def test_bad_calls(
    fit: Callable[..., Result],
    tmp_path: Path,
    options: tuple[object, ...],
    kinds: tuple[str, ...],
    code: int,
    complaint: str,
) -> None:
    refused = fit(*options, kinds=kinds)
    assert refused.exit_code == code, refused.output
    assert complaint in refused.stderr
    assert not list(tmp_path.glob("fitted/*.safetensors"))


def test_all_kinds_can_be_asked_for(
    fit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fitted = []
    really = irnet.baselines.fit_baseline

    def spy(name: str, *args: Any, **options: Any) -> Baseline:
        fitted.append(name)
        return really("ridge", *args, **options)

    monkeypatch.setattr(irnet.baselines, "fit_baseline", spy)
    assert fit(kinds=("all",)).exit_code == 0
    assert tuple(fitted) == KINDS


@pytest.fixture
def fitted_pairs(screening: Screening, training_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    done = screening(
        "baselines", "fit", training_data, "--kind", "k_neighbors", "--kind", "lasso",
        "--no-search", "--workers", 0, "--out", folder,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder


def test_predictions_are_those_of_each_baseline(
    screening: Screening, training_data: Path, fitted_pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    broken = pd.read_parquet(training_data).head(4)
    broken.at[2, "species"] = ["Li", "Xx"]
    broken.to_parquet(tmp_path / "some.parquet")
    done = screening("baselines", "predict", fitted_pairs, tmp_path / "some.parquet", "--out", out)
    assert done.exit_code == 0, done.output
    predicted = pd.read_parquet(out)
    assert list(predicted.columns) == [
        "id", "formula", "prediction_k_neighbors", "prediction_lasso",
    ]  # fmt: skip
    assert (
        screening(
            "featurize", training_data, "--out", tmp_path / "f.parquet", "--workers", 0
        ).exit_code
        == 0
    )
    features = pd.read_parquet(tmp_path / "f.parquet").set_index("id").loc[predicted["id"]]
    for kind in ("k_neighbors", "lasso"):
        own = load(fitted_pairs, kind).predict(features[list(FEATURES)].to_numpy())
        np.testing.assert_allclose(predicted[f"prediction_{kind}"], own, rtol=0, atol=1e-6)
    assert len(predicted) == 3
    failed = pd.read_parquet(tmp_path / "p.failures.parquet")
    assert failed["id"].tolist() == [broken["id"][2]]
    assert "1 structure could not be used" in done.stderr
    assert "Lasso eV/atom" in done.stdout
    assert "formation_energy_per_atom" in done.stdout
    assert (
        screening("baselines", "predict", fitted_pairs, training_data, "--out", out).exit_code == 2
    )
    fewer = screening(
        "baselines", "predict", fitted_pairs, training_data, "--out", out, "--overwrite",
        "--top", 0,
    )  # fmt: skip
    assert fewer.exit_code == 0
    assert fewer.stdout == ""
    assert len(pd.read_parquet(out)) == 36


def test_the_table_of_predictions_says_of_how_many_rows_it_shows_the_first(
    screening: Screening, training_data: Path, fitted_pairs: Path, tmp_path: Path
) -> None:
    predict = ("baselines", "predict", fitted_pairs, training_data, "--out")
    part = screening(*predict, tmp_path / "part.parquet", "--top", 2)
    assert " ".join(part.stdout.split()).startswith(
        "first 2 of 36, in the order of the input; formation_energy_per_atom"
    )
    assert "36 structures, 2 baselines of" in part.stderr
    whole = screening(*predict, tmp_path / "whole.parquet", "--top", 36)
    assert whole.stdout.startswith("formation_energy_per_atom")
    (fitted_pairs / "lasso.safetensors").unlink()
    one = screening(*predict, tmp_path / "one.parquet")
    assert "36 structures, 1 baseline of" in one.stderr


@pytest.mark.parametrize("inside", ["", "lasso.safetensors"])
def test_baselines_given_as_a_model_name_the_command_that_reads_them(
    screening: Screening, training_data: Path, fitted_pairs: Path, tmp_path: Path, inside: str
) -> None:
    wrong = screening(
        "predict", training_data, "--model", fitted_pairs / inside, "--out", tmp_path / "p.parquet"
    )
    assert wrong.exit_code == 4
    assert f"screening baselines predict {fitted_pairs} FILES" in wrong.stderr


def test_predicting_needs_baselines_and_structures(
    screening: Screening, training_data: Path, fitted_pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    nothing = screening("baselines", "predict", tmp_path / "xyz", training_data, "--out", out)
    assert nothing.exit_code == 4
    assert "holds no baselines; fit some" in nothing.stderr
    near = screening("baselines", "predict", tmp_path / "pair", training_data, "--out", out)
    assert 'holds no baselines; did you mean "pairs"? fit some' in " ".join(near.stderr.split())
    model = screening("baselines", "predict", "mp-icsd-irnet17", training_data, "--out", out)
    assert model.exit_code == 4
    assert "screening predict FILES --model mp-icsd-irnet17" in model.stderr
    unusable = pd.read_parquet(training_data).head(1)
    unusable.at[0, "species"] = ["Li", "Xx"]
    unusable.to_parquet(tmp_path / "bad.parquet")
    refused = screening(
        "baselines", "predict", fitted_pairs, tmp_path / "bad.parquet", "--out", out
    )
    assert refused.exit_code == 3
    assert "no structure can be used" in refused.stderr
    (fitted_pairs / "lasso.safetensors").write_bytes(os.urandom(100))
    damaged = screening("baselines", "predict", fitted_pairs, training_data, "--out", out)
    assert damaged.exit_code == 4
    assert not out.exists()


@pytest.mark.data
def test_on_real_crystals_a_curve_beats_a_line(
    screening: Screening, data_dir: Path, tmp_path: Path
) -> None:
    rows = pd.read_parquet(data_dir / "mp_icsd-00.parquet").query("nsites <= 6").head(1000)
    rows.to_parquet(tmp_path / "some.parquet")
    done = screening(
        "baselines", "fit", tmp_path / "some.parquet", "--kind", "ridge", "--kind", "svr",
        "--no-search", "--workers", 0, "--holdout", 0.3, "--out", tmp_path / "real",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    errors = {
        kind: load(tmp_path / "real", kind).card["held_out"]["mae"] for kind in ("ridge", "svr")
    }
    assert errors["svr"] < 0.8 * errors["ridge"] < 0.4
