"""A trial, one fit of one model to some rows, and its result; both as JSON.

A trial says everything that decides its result but the data's content and the meaning of names
(recipes, architectures, grids). The result holds digests of these, so that it is never taken for
that of another trial.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from screening.columns import written_atomically
from screening.errors import InputDataError

RESULT_FORMAT: Final = 1

MOST_ROW_ERRORS: Final = 200
"""Rows of a test group up to which every row's error is kept, for intervals from a bootstrap."""

HELD_OUT: Final = "held-out"
"""Test group of every trial: the rows that its hold-out took out of training."""

Kind = Literal["network", "baseline"]

Value = str | float | int | bool | None


@dataclass(frozen=True)
class Trial:
    """One fit of one model, the unit of work and of going on after an interruption.

    Attributes:
        benchmark: Benchmark that it belongs to, such as ``table-2``; folder of its result.
        series: What it is apart from its seed, such as ``icsd-default-irnet-17``; unique in the
            benchmark together with the seed.
        kind: ``network`` or ``baseline``.
        model: Name of an architecture or an architecture string; or a baseline of
            `irnet.baselines`.
        data: Data set to learn, see `screening.benchmark.data.DATA_SETS`.
        target: Which of its targets.
        label: What the model is called in tables, where `model` does not say it.
        recipe: A network's recipe, before `changes`; empty for a baseline.
        changes: Fields of the recipe that are changed, and to what; fields are named once.
        holdout: What is held out of training: ``formulas`` (a tenth of them, always the same),
            ``prototype:<Wyckoff label>`` or ``element:<symbol>``.
        train_rows: Rows to train on, drawn with a fixed seed from those not held out (of two sizes
            the smaller is a part of the larger); None for all. A network takes its validation rows
            from these.
        tests: What it is tested on besides the held-out rows, see
            `screening.benchmark.data.EXTRA_TESTS`.
        watched_rows: Held-out rows whose error is recorded after every epoch of a network; drawn
            with a fixed seed, None for all of them.
        search: Whether a baseline's hyperparameters are searched in its grid.
        seed: Of weights, batches and validation split, or of the baseline.
        shortened: What was made smaller than in the paper for lack of time, in words; empty for
            nothing.
    """

    benchmark: str
    series: str
    kind: Kind
    model: str
    data: str
    target: str = "formation_energy_per_atom"
    label: str = ""
    recipe: str = ""
    changes: tuple[tuple[str, Value], ...] = ()
    holdout: str = "formulas"
    train_rows: int | None = None
    tests: tuple[str, ...] = ()
    watched_rows: int | None = 0
    search: bool = False
    seed: int = 0
    shortened: str = ""

    @property
    def name(self) -> str:
        """Its name in the benchmark and that of its file, such as ``icsd-default-irnet-17-s0``."""
        return f"{self.series}-s{self.seed}"

    @property
    def title(self) -> str:
        """What the model is called in tables."""
        return self.label or self.model

    def to_json(self) -> dict[str, Any]:
        """Return the trial as values that JSON knows."""
        return {**asdict(self), "changes": dict(self.changes), "tests": list(self.tests)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Trial:
        """Read what `to_json` returned.

        Raises:
            TypeError: A field is missing or unknown.
        """
        given = dict(values)
        return cls(
            **{
                **given,
                "changes": tuple(dict(given["changes"]).items()),
                "tests": tuple(given["tests"]),
            }
        )


@dataclass(frozen=True)
class TestErrors:
    """Errors on one group of rows, in the target's unit.

    Attributes:
        rows: How many.
        mae: Mean absolute error.
        rmse: Root of the mean squared error.
        r2: Coefficient of determination; None where all targets are equal.
        bias: Mean of predicted minus true.
        p90: 90th percentile of the absolute error.
        quantiles: The absolute error's 0th, 1st, ..., 100th percentile: 101 values, for the
            cumulative distribution.
        errors: Absolute error of each row in the order of the test group, shape (rows,); empty for
            groups of more than `MOST_ROW_ERRORS` rows.
    """

    __test__ = False  # no test of pytest's, in spite of its name

    rows: int
    mae: float
    rmse: float
    r2: float | None
    bias: float
    p90: float
    quantiles: tuple[float, ...] = field(repr=False)
    errors: tuple[float, ...] = field(default=(), repr=False)

    @classmethod
    def measure(cls, predicted: NDArray[np.float64], true: NDArray[np.float64]) -> TestErrors:
        """Compare predictions with the truth.

        Args:
            predicted: Shape (n,).
            true: Shape (n,).

        Raises:
            irnet.errors.DataError: There are no rows, or a value is not finite.
        """
        from irnet import metrics

        spread = float(np.square(true - true.mean()).sum()) if len(true) else 0.0
        rmse = metrics.rmse(predicted, true)
        errors = np.abs(predicted - true)
        quantiles = np.quantile(errors, np.linspace(0, 1, 101))
        return cls(
            rows=len(true),
            mae=metrics.mae(predicted, true),
            rmse=rmse,
            r2=1 - len(true) * rmse**2 / spread if spread > 0 else None,
            bias=metrics.bias(predicted, true),
            p90=metrics.error_quantile(predicted, true, 0.9),
            quantiles=tuple(quantiles.tolist()),
            errors=tuple(errors.tolist()) if len(errors) <= MOST_ROW_ERRORS else (),
        )


@dataclass(frozen=True)
class TrialResult:
    """What came out of a trial.

    Attributes:
        trial: The trial.
        fingerprint: SHA-256 of what the trial asks for, its recipe and architecture or grid in
            full; `label` and `shortened` are words and do not count.
        data_sha256: Of the data that it was trained and tested on.
        failure: Why there is no result; None where there is one. The rest is then empty.
        train_rows: Rows that it was trained on, validation rows included.
        unit: Of the target and of all errors.
        test: Errors by group: ``held-out``, and those of the trial's `tests`: ``known`` and
            ``virtual`` (held-out rows that are and are not ICSD-flagged; the latter without
            blown-up cells), ``prototype/<label>``, ``element/<symbol>``,
            ``eval/<kind>/<geometry>`` (kind such as ``B2`` or ``all``, geometry ``relaxed`` or
            ``ideal``; formulas that no model is trained on) and, of these,
            ``eval/<kind>/<geometry>/strict`` (not ICSD-flagged in any structure) and
            ``eval/<kind>/<geometry>/MP-legacy`` (the energy scheme of the training data), or
            ``batch-statistics/<rows>`` (the held-out rows, predicted in batches of so many with
            batch norm in training mode).
        history: For a network, one entry per epoch: ``train_mae``, ``validation_mae``,
            ``watched_mae`` (of held-out rows, which decide nothing, where there are any watched),
            ``learning_rate``.
        figures: Further single numbers: for a network ``best_epoch`` (from 0, by validation),
            ``watched_mae_at_best_validation``, ``lowest_watched_mae`` (choosing the epoch on the
            test set).
        parameters: Trainable parameters of a network.
        chosen: Recipe of a network in full; parameters of a baseline, and its search's table.
        seconds: Time of training, without features.
        machine: What it ran on.
        commit: Of the source tree, None outside of one.
        versions: Of packages.
        created: When it was finished, ISO 8601, UTC.
    """

    trial: Trial
    fingerprint: str
    data_sha256: str = ""
    failure: str | None = None
    train_rows: int = 0
    unit: str = ""
    test: Mapping[str, TestErrors] = field(default_factory=dict)
    history: tuple[Mapping[str, float], ...] = field(default=(), repr=False)
    figures: Mapping[str, float] = field(default_factory=dict)
    parameters: int | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict, repr=False)
    seconds: float = 0.0
    machine: str = ""
    commit: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the result as values that JSON knows."""
        return {
            "format": RESULT_FORMAT,
            **{each.name: getattr(self, each.name) for each in fields(self)},
            "trial": self.trial.to_json(),
            "test": {
                group: {
                    **asdict(errors),
                    "quantiles": list(errors.quantiles),
                    "errors": list(errors.errors),
                }
                for group, errors in self.test.items()
            },
            "history": [dict(entry) for entry in self.history],
            "figures": dict(self.figures),
            "chosen": dict(self.chosen),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrialResult:
        """Read what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: It is no such thing.
        """
        given = dict(values)
        written = given.pop("format")
        if written != RESULT_FORMAT:
            raise ValueError(f"format {written}, this version reads {RESULT_FORMAT}")
        given["trial"] = Trial.from_json(given["trial"])
        given["test"] = {
            group: TestErrors(
                **{
                    **errors,
                    "quantiles": tuple(errors["quantiles"]),
                    "errors": tuple(errors["errors"]),
                }
            )
            for group, errors in given["test"].items()
        }
        given["history"] = tuple(given["history"])
        return cls(**given)

    def write(self, path: Path) -> None:
        """Write the result, whole or not at all.

        Args:
            path: The file; its folder must exist.

        Raises:
            OutputError: It cannot be written.
        """
        text = json.dumps(_strict(self.to_json()), indent=1, allow_nan=False)
        with written_atomically(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> TrialResult:
        """Read what `write` wrote.

        Raises:
            InputDataError: The file is missing, damaged, or of another version.
        """
        with _reading(path):
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))


def result_path(work: Path, trial: Trial) -> Path:
    """Where the result of a trial is: ``<work>/<benchmark>/<name>.json``."""
    return work / trial.benchmark / f"{trial.name}.json"


def _strict(value: Any) -> Any:
    """Replace numbers that JSON does not know by null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputDataError(
            f"{path} is no result of a trial ({reason}); remove it and run the benchmark again"
        ) from error
