from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from screening.benchmark.trial import TestErrors, Trial, TrialResult, result_path
from screening.errors import InputDataError, OutputError

TRIAL = Trial(
    benchmark="table-2",
    series="icsd-irnet-17",
    kind="network",
    model="irnet-17",
    data="icsd",
    label="ours",
    recipe="paper",
    changes=(("epochs", 3), ("clip_sigma", None), ("scale_inputs", True)),
    train_rows=100,
    tests=("eval", "known"),
    watched_rows=None,
    seed=2,
    shortened="3 epochs",
)

numbers = st.floats(-1e3, 1e3)


@given(
    predicted=arrays(np.float64, 30, elements=numbers),
    true=arrays(np.float64, 30, elements=numbers),
)
@settings(max_examples=50, deadline=None)
def test_errors_are_those_of_scikit_learn(
    predicted: np.ndarray[Any, Any], true: np.ndarray[Any, Any]
) -> None:
    errors = TestErrors.measure(predicted, true)
    assert errors.rows == 30
    assert errors.mae == pytest.approx(mean_absolute_error(true, predicted))
    assert errors.rmse == pytest.approx(root_mean_squared_error(true, predicted))
    assert errors.bias == pytest.approx(float((predicted - true).mean()), abs=1e-9)
    if np.ptp(true) > 1e-3:
        assert errors.r2 == pytest.approx(r2_score(true, predicted), rel=1e-6, abs=1e-6)
    sorted_errors = np.sort(np.abs(predicted - true))
    assert len(errors.quantiles) == 101
    assert errors.quantiles[0] == sorted_errors[0] and errors.quantiles[100] == sorted_errors[-1]
    assert errors.quantiles[90] == pytest.approx(errors.p90)
    assert list(errors.errors) == np.abs(predicted - true).tolist()


def test_no_r2_where_all_targets_are_equal() -> None:
    assert TestErrors.measure(np.array([1.0, 2.0]), np.array([1.0, 1.0])).r2 is None


def test_rows_of_large_groups_are_not_kept_one_by_one() -> None:
    assert TestErrors.measure(np.zeros(1000), np.ones(1000)).errors == ()


def make_result() -> TrialResult:
    errors = TestErrors.measure(np.array([1.0, 2.5]), np.array([1.0, 2.0]))
    return TrialResult(
        trial=TRIAL,
        fingerprint="0" * 64,
        data_sha256="1" * 64,
        train_rows=90,
        unit="eV/atom",
        test={"held-out": errors, "eval/B2/ideal": errors},
        history=({"train_mae": 1.0, "validation_mae": 2.0},),
        figures={"best_epoch": 0.0},
        parameters=12,
        chosen={"epochs": 3, "patience": None},
        seconds=1.5,
        machine="two cores",
        commit=None,
        versions={"torch": "2"},
        created="2026-01-01T00:00:00+00:00",
    )


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for result in (make_result(), TrialResult(TRIAL, "0" * 64, failure="no rows")):
        result.write(path)
        assert TrialResult.read(path) == result
        assert TrialResult.read(path).trial == TRIAL
        hash(result.trial)
    assert not [file for file in tmp_path.iterdir() if file != path]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 9'),
        lambda text: text.replace('"model": "irnet-17"', '"modell": "irnet-17"'),
        lambda text: text.replace('"rows": 2', '"row": 2'),
        lambda text: text.replace('"mae"', '"mean"'),
        lambda text: "",
    ],
)
def test_a_damaged_file_is_named(spoil: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    make_result().write(path)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputDataError, match=r"result\.json is no result of a trial.*remove"):
        TrialResult.read(path)
    path.unlink()
    with pytest.raises(InputDataError, match="no result"):
        TrialResult.read(path)


def test_numbers_that_json_does_not_know_are_null(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    replace(make_result(), figures={"best_epoch": float("nan")}, chosen={"a": float("inf")}).write(
        path
    )
    written = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["figures"] == {"best_epoch": None} and written["chosen"] == {"a": None}


def test_a_result_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make_result().write(tmp_path / "none" / "result.json")


def test_each_trial_has_its_own_file(tmp_path: Path) -> None:
    assert result_path(tmp_path, TRIAL) == tmp_path / "table-2" / "icsd-irnet-17-s2.json"
    assert TRIAL.title == "ours" and replace(TRIAL, label="").title == "irnet-17"
