"""Trials and results by hand, for tests of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from screening.benchmark.definitions import Benchmark
from screening.benchmark.trial import HELD_OUT, TestErrors, Trial, TrialResult


def make_trial(series: str, model: str, **fields: Any) -> Trial:
    """A trial of a network where the model is no baseline's name."""
    network = "-" in model
    trial = Trial(
        benchmark="table-2",
        series=series,
        kind="network" if network else "baseline",
        model=model,
        data="icsd",
        recipe="default" if network else "",
    )
    return replace(trial, **fields)


def make_errors(errors: Sequence[float]) -> TestErrors:
    """What is measured of given differences between prediction and truth."""
    true = np.linspace(-1.0, 1.0, len(errors))
    return TestErrors.measure(true + np.asarray(errors), true)


def make_result(
    trial: Trial, mae: float, groups: Mapping[str, Sequence[float]] | None = None, **fields: Any
) -> TrialResult:
    """A result with four held-out rows of that mean absolute error."""
    errors = {HELD_OUT: (-0.5 * mae, 0.5 * mae, mae, 2 * mae), **(groups or {})}
    result = TrialResult(
        trial=trial,
        fingerprint="f" * 64,
        data_sha256="d" * 64,
        train_rows=trial.train_rows or 900,
        unit="eV/atom",
        test={group: make_errors(values) for group, values in errors.items()},
        parameters=1234 if trial.kind == "network" else None,
        seconds=12.5,
        machine="2 cores of a kind",
        commit="abcdef",
        versions={"torch": "2.0"},
        created="2026-01-02T03:04:05+00:00",
    )
    return replace(result, **fields)


def make_history(errors: Sequence[float]) -> tuple[dict[str, float], ...]:
    """A history whose test errors are given; those of training rows are half of them."""
    return tuple(
        {"train_mae": each / 2, "validation_mae": each, "watched_mae": each, "learning_rate": 1e-3}
        for each in errors
    )


def make_benchmark(name: str, trials: Sequence[Trial]) -> Benchmark:
    """A benchmark of these trials, whatever the budget."""
    return Benchmark(name, f"Title of {name}", "Table 9", lambda budget: tuple(trials))
