from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from irnet.errors import IRNetError
from screening.benchmark import fitting
from screening.benchmark.data import DataStore
from screening.benchmark.fitting import (
    estimate_seconds,
    fingerprint,
    fit_trial,
    list_arrays,
)
from screening.benchmark.trial import HELD_OUT, Trial
from screening.errors import ConfigurationError

NETWORK = Trial(
    benchmark="made-up",
    series="network",
    kind="network",
    model="24BARx2-1",
    data="oqmd-sc",
    recipe="default",
    changes=(("epochs", 8), ("batch_size", 32), ("precision", "fp32")),
    watched_rows=10,
)
RIDGE = Trial("made-up", "ridge", "baseline", "ridge", "icsd")


def test_results_say_what_was_measured(store: DataStore, tmp_path: Path) -> None:
    tests = ("known", "virtual", "prototypes", "elements", "eval", "batch-statistics")
    reports: list[str] = []
    trial = replace(NETWORK, tests=tests)
    result = fit_trial(trial, store, tmp_path / "checkpoints", report=reports.append)
    assert reports[0].startswith("epoch 1 of 8") and reports[-1] == "testing"
    data = store.data("oqmd-sc")
    held = int(data.held_out.sum())
    assert result.train_rows == len(data) - held
    assert result.test[HELD_OUT].rows == held
    assert result.test["known"].rows + result.test["virtual"].rows == held
    prototypes = [errors.rows for name, errors in result.test.items() if "prototype/" in name]
    assert sum(prototypes) == held  # all pretend to be of two of the ten
    assert {"eval/B2/ideal", "eval/all/relaxed", "eval/all/ideal/strict"} <= set(result.test)
    assert result.test["eval/all/ideal"].rows == len(store.evaluation().target)
    with_oxygen = data.containing("O")[data.held_out]
    assert result.test["element/O"].rows == with_oxygen.sum() < held
    assert len(result.history) == 8 and result.parameters is not None
    watched = [entry["watched_mae"] for entry in result.history]
    assert result.figures["lowest_watched_mae"] == min(watched)
    best = int(result.figures["best_epoch"])
    assert result.figures["watched_mae_at_best_validation"] == watched[best]
    assert np.argmin([entry["validation_mae"] for entry in result.history]) == best
    assert result.chosen["learning_rate"] == 5e-4 and result.chosen["epochs"] == 8
    assert result.unit == "eV/atom" and result.versions["torch"] == torch.__version__


def test_the_error_of_all_watched_rows_is_the_held_out_error(
    store: DataStore, tmp_path: Path
) -> None:
    result = fit_trial(replace(NETWORK, watched_rows=None), store, tmp_path / "watched")
    watched = result.figures["watched_mae_at_best_validation"]
    assert watched == pytest.approx(result.test[HELD_OUT].mae, rel=1e-3)
    unwatched = fit_trial(replace(NETWORK, watched_rows=0), store, tmp_path / "checkpoints")
    assert "watched_mae" not in unwatched.history[0]
    # watched rows decide nothing
    assert unwatched.test[HELD_OUT] == result.test[HELD_OUT]


def test_a_baseline_is_what_scikit_learn_fits(store: DataStore, tmp_path: Path) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import mean_absolute_error, r2_score
    from sklearn.preprocessing import StandardScaler

    result = fit_trial(RIDGE, store, tmp_path)
    data = store.data("icsd")
    target = data.targets["formation_energy_per_atom"]
    train, test = np.flatnonzero(~data.held_out), np.flatnonzero(data.held_out)
    scaler = StandardScaler().fit(data.features[train].astype(np.float64))
    model = Ridge(alpha=1.0).fit(scaler.transform(data.features[train]), target[train])
    predicted = model.predict(scaler.transform(data.features[test]))
    errors = result.test[HELD_OUT]
    assert errors.rows == len(test)
    assert errors.mae == pytest.approx(mean_absolute_error(target[test], predicted), rel=1e-4)
    assert errors.r2 == pytest.approx(r2_score(target[test], predicted), abs=1e-4)
    assert result.chosen["parameters"] == {"alpha": 1.0} and not result.history


def test_blown_up_cells_are_not_among_the_hypothetical_test_rows(
    store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = store.data("oqmd-sc")
    volumes = data.targets["volume_per_atom"][data.held_out & ~data.known]
    bound = float(np.median(volumes))
    monkeypatch.setattr(fitting, "LARGEST_VOLUME", bound)
    result = fit_trial(replace(RIDGE, tests=("virtual",)), store, tmp_path)
    assert result.test["virtual"].rows == (volumes <= bound).sum() < len(volumes)


def test_a_search_chooses_from_the_grid(store: DataStore, tmp_path: Path) -> None:
    from irnet.baselines import BASELINES

    result = fit_trial(replace(RIDGE, search=True), store, tmp_path)
    assert len(result.chosen["search"]) == BASELINES["ridge"].grid_points
    best = min(result.chosen["search"], key=lambda entry: entry["validation_mae"])
    assert result.chosen["parameters"]["alpha"] == best["alpha"]


def test_batch_statistics_are_those_of_the_batch(
    store: DataStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "STATISTICS_ROWS", (4, 1000))
    trial = replace(NETWORK, tests=("batch-statistics",))
    result = fit_trial(trial, store, tmp_path / "checkpoints")
    few, all_at_once = (result.test[f"batch-statistics/{rows}"] for rows in (4, 1000))
    assert few.rows == all_at_once.rows == result.test[HELD_OUT].rows
    assert len({few.mae, all_at_once.mae, result.test[HELD_OUT].mae}) == 3
    without = replace(trial, model="24ARx2-1")
    result = fit_trial(without, store, tmp_path / "without")
    own = result.test[HELD_OUT].mae
    assert result.test["batch-statistics/4"].mae == pytest.approx(own, rel=1e-5)


def test_a_trial_is_known_by_what_decides_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    same = fingerprint(NETWORK)
    for words in ({"label": "ours"}, {"shortened": "fewer rows"}):
        assert fingerprint(replace(NETWORK, **words)) == same
    for change in (
        {"seed": 1},
        {"data": "icsd"},
        {"recipe": "paper"},
        {"model": "24BAx2R-1"},
        {"changes": NETWORK.changes[:2]},
        {"train_rows": 100},
        {"watched_rows": None},
        {"holdout": "element:O"},
        {"tests": ("eval",)},
        {"target": "density"},
    ):
        assert fingerprint(replace(NETWORK, **change)) != same
    assert fingerprint(RIDGE) != fingerprint(replace(RIDGE, search=True))
    tested = replace(NETWORK, tests=("prototypes",))
    before = fingerprint(tested)
    monkeypatch.setattr(fitting, "PROTOTYPES", ("AB_2_221_a_b",))
    assert fingerprint(tested) != before
    assert fingerprint(NETWORK) == same


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigurationError, match='did you mean "known"'):
        fingerprint(replace(NETWORK, tests=("knwon",)))
    for wrong in (
        replace(NETWORK, model="irnet-18"),
        replace(NETWORK, recipe="papre"),
        replace(NETWORK, changes=(("epoch", 3),)),
        replace(RIDGE, model="rigde"),
    ):
        with pytest.raises(IRNetError):
            fingerprint(wrong)


def test_more_work_is_estimated_to_take_longer() -> None:
    network = replace(NETWORK, model="irnet-17", changes=(("epochs", 10),))
    assert estimate_seconds(network, 10_000) > estimate_seconds(network, 5_000)
    assert estimate_seconds(replace(network, model="irnet-48"), 10_000) > 1.5 * estimate_seconds(
        network, 10_000
    )
    assert estimate_seconds(replace(network, train_rows=100), 10_000) < estimate_seconds(
        network, 10_000
    )
    assert estimate_seconds(replace(RIDGE, search=True), 1_000) > estimate_seconds(RIDGE, 1_000)


def test_a_trial_says_which_arrays_it_needs() -> None:
    assert list_arrays(RIDGE) == ("structures",)
    assert list_arrays(replace(RIDGE, data="oqmd-c", tests=("eval",))) == (
        "compositions",
        "evaluation",
    )
    assert list_arrays(replace(RIDGE, data="oqmd-c", tests=("virtual",))) == (
        "compositions",
        "structures",
    )
