"""What a backtest found, as tables, as plots and as the files that go into the documents."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any, Final

import numpy as np

from screening.backtest import (
    ALL_ROWS,
    NEW,
    PREDICTORS,
    TRUTHS,
    BacktestResult,
    DiscoveryScore,
    Truth,
)
from screening.columns import written_atomically
from screening.manifest import describe_environment
from screening.model_library import ScreeningModel
from screening.plots import plot_discoveries, plot_probabilities, stand_alone
from screening.training import describe_machine

REPORT_NAME: Final = "backtest.md"
RECORD_NAME: Final = "backtest.json"
FOUND_NAME: Final = "found.svg"
PROBABILITIES_NAME: Final = "probabilities.svg"

CURVE_POINTS: Final = 50
"""Points of a curve in the record."""

_HASH_DIGITS: Final = 12


def tabulate_discoveries(
    result: BacktestResult, truth: Truth = "label", groups: Sequence[str] | None = None
) -> list[list[str]]:
    """What each predictor finds, as a table.

    Args:
        result: The backtest.
        truth: What decides what is stable.
        groups: Only these groups, all if None.

    Returns:
        A header and a row for each group and predictor.
    """
    rows = [
        [
            *("group", "predictor", "n", "stable", "selected", "precision", "recall", "F1"),
            *("accuracy", "FPR", "DAF", "of", "ROC AUC", "in first 10", "100", "1000"),
            "half found after",
        ]
    ]
    for score in _choose(result, truth, groups):
        counts = score.counts
        rows.append(
            [
                score.group,
                PREDICTORS[score.predictor],
                f"{counts.rows:,}",
                f"{counts.stable:,}",
                f"{counts.selected:,}",
                _show(counts.precision),
                _show(counts.recall),
                _show(counts.f1),
                _show(counts.accuracy),
                _show(counts.false_positive_rate),
                _show(counts.acceleration, 2),
                _show(counts.ceiling, 2),
                _show(score.roc_auc),
                *(_show(score.precision_at.get(first, np.nan), 2) for first in (10, 100)),
                _show(score.precision_at.get(1000, np.nan), 3),
                f"{score.half_found_after:,}",
            ]
        )
    return rows


def tabulate_shortlists(
    result: BacktestResult, groups: Sequence[str] | None = None
) -> list[list[str]]:
    """What the first of each ranking are worth, as a table.

    Args:
        result: The backtest.
        groups: Only these groups, all if None.

    Returns:
        A header and a row for each group, predictor and length.
    """
    from irnet import metrics

    rows = [["group", "predictor", "first", "stable", "precision", "95 % interval", "DAF"]]
    for score in _choose(result, "label", groups):
        for first, precision in score.precision_at.items():
            found = round(precision * first)
            interval = metrics.proportion(found, first)
            rows.append(
                [
                    score.group,
                    PREDICTORS[score.predictor],
                    f"{first:,}",
                    f"{found:,}",
                    _show(precision),
                    f"{interval.low:.2f}–{interval.high:.2f}",
                    _show(precision / score.counts.prevalence, 2),
                ]
            )
    return rows


def tabulate_hull_errors(
    result: BacktestResult, truth: Truth, groups: Sequence[str] | None = None
) -> list[list[str]]:
    """Errors of the energies above hull, as a table.

    Args:
        result: The backtest.
        truth: Against what.
        groups: Only these groups, all if None.

    Returns:
        A header and a row for each group and predictor; rankings by probability are left out,
        because they have the same energies.
    """
    near = f"|true| < {result.request.near:g}"
    rows = [
        [
            "group",
            "predictor",
            "n",
            "MAE",
            "RMSE",
            "bias",
            "R²",
            f"n, {near}",
            "MAE",
            "RMSE",
            "bias",
        ]
    ]
    for score in _choose(result, truth, groups):
        if score.probabilities is not None:
            continue
        close = score.errors_near_hull
        rows.append(
            [
                score.group,
                PREDICTORS[score.predictor],
                f"{score.errors.rows:,}",
                *(_show(value) for value in (score.errors.mae, score.errors.rmse)),
                f"{score.errors.bias:+.3f}",
                _show(score.errors.r2, 2),
                *(
                    ("0", "", "", "")
                    if close is None
                    else (
                        f"{close.rows:,}",
                        _show(close.mae),
                        _show(close.rmse),
                        f"{close.bias:+.3f}",
                    )
                ),
            ]
        )
    return rows


def tabulate_probabilities(
    result: BacktestResult, groups: Sequence[str] | None = None
) -> list[list[str]]:
    """How reliable the probabilities of being stable are, as a table.

    Args:
        result: The backtest.
        groups: Only these groups, all if None.

    Returns:
        A header and a row for each truth, group and predictor with probabilities.
    """
    rows = [["group", "predictor", "truth", "n", "Brier", "of prevalence", "calibration error"]]
    for truth in TRUTHS:
        for score in _choose(result, truth, groups):
            if score.probabilities is not None:
                rows.append(
                    [
                        score.group,
                        PREDICTORS[score.predictor],
                        truth,
                        f"{score.counts.rows:,}",
                        _show(score.probabilities.brier),
                        _show(score.probabilities.brier_of_prevalence),
                        _show(score.probabilities.calibration_error),
                    ]
                )
    return rows


def write_report(
    result: BacktestResult, model: ScreeningModel, out: Path, command: Sequence[str]
) -> tuple[Path, ...]:
    """Write a backtest as Markdown with plots, and as JSON.

    Args:
        result: The backtest.
        model: The model that ranked.
        out: Folder for the files.
        command: Words of the command that was run; of files only the names are kept.

    Returns:
        The files.

    Raises:
        OutputError: A file cannot be written.
    """
    environment = describe_environment()
    making = {
        "created": datetime.date.today().isoformat(),
        "machine": describe_machine(result.request.device),
        "environment": {name: environment[name] for name in ("screening", "commit", "packages")},
        "model": {"name": model.card.name, "content_sha256": model.content_hash},
        "command": " ".join(_name_files(command)),
    }
    curves = {
        PREDICTORS[score.predictor]: score.found
        for score in _choose(result, "label", (ALL_ROWS,))
        if score.predictor != "irnet_energy" or result.request.calibration == "none"
    }
    bins = {
        PREDICTORS[score.predictor]: score.probabilities.bins
        for score in _choose(result, "label", (ALL_ROWS,))
        if score.probabilities is not None
    }
    files = {
        RECORD_NAME: json.dumps(_record(result) | {"making": making}, indent=1) + "\n",
        FOUND_NAME: stand_alone(plot_discoveries(curves)),
    }
    if bins:
        files[PROBABILITIES_NAME] = stand_alone(plot_probabilities(bins))
    files[REPORT_NAME] = _write_markdown(result, making, bool(bins))
    for name, text in files.items():
        with written_atomically(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(out / name for name in files)


def summarise(result: BacktestResult) -> list[str]:
    """Say in a sentence for each what IRNet and the Random Forest find among all compounds.

    Args:
        result: The backtest.
    """
    by_probability = result.find("irnet") is not None
    names = ("irnet" if by_probability else "irnet_energy", "random_forest_energy")
    sentences = []
    for name in names:
        score = result.find(name)
        if score is None:
            continue
        counts = score.counts
        sentences.append(
            f"{PREDICTORS[name]}: {counts.true_positives:,} of {counts.selected:,} selected "
            f"compounds are stable, acceleration {_show(counts.acceleration, 2) or '-'} of at most "
            f"{counts.ceiling:.2f}; "
            + ", ".join(
                f"{score.found[first]:,} of the first {first:,}" for first in score.precision_at
            )
        )
    return sentences


def describe_test(result: BacktestResult) -> list[str]:
    """Say what was tested and how, a sentence each.

    Args:
        result: The backtest.
    """
    request = result.request
    label = (
        "computed from the references, all of them"
        if request.label is None
        else f"column {request.label}"
    )
    compete = (
        "The evaluated compounds compete with each other, by predicted energies."
        if request.compete
        else "The evaluated compounds do not compete with each other."
    )
    origin = {
        "folds": "Probabilities come from calibrations that saw no compound of the chemical system "
        "that they judge.",
        "model": "Probabilities come from the model's own calibration.",
        "none": "Compounds are ranked by energy alone.",
    }[request.calibration]
    return [
        f"Stable: DFT energy above hull at most {request.within:g} eV/atom ({label}).",
        f"Competitors: {result.references['competitors']:,} of {result.references['phases']:,} "
        f"reference phases of {result.references['name']}, none of an evaluated composition"
        + ("." if request.forget_known else " but known crystals."),
        compete,
        origin,
        *(f"{note[:1].upper()}{note[1:].rstrip('.')}." for note in result.notes),
        *(f"Left out: {count:,} rows, {why}." for why, count in result.left_out.items()),
    ]


def _choose(
    result: BacktestResult, truth: Truth, groups: Sequence[str] | None
) -> list[DiscoveryScore]:
    return [
        score
        for score in result.scores
        if score.truth == truth and (groups is None or score.group in groups)
    ]


def _name_files(words: Sequence[str]) -> list[str]:
    return [Path(word).name if Path(word).exists() else word for word in words]


def _show(value: float, digits: int = 3) -> str:
    return "" if isnan(value) else f"{value:.{digits}f}"


def _record(result: BacktestResult) -> dict[str, Any]:
    request = asdict(result.request) | {
        "data": [path.name for path in result.request.data],
        "references": result.request.references.name,
        "known": [path.name for path in result.request.known],
        "features": result.request.features and result.request.features.name,
    }
    return {
        "request": request,
        "data": [source.model_dump() for source in result.data],
        "references": dict(result.references),
        "rows": result.rows,
        "left_out": dict(result.left_out),
        "compositions_seen_in_training": result.seen,
        "notes": list(result.notes),
        "seconds": {stage: round(value, 1) for stage, value in result.seconds.items()},
        "scores": [_record_score(score) for score in result.scores],
    }


def _record_score(score: DiscoveryScore) -> dict[str, Any]:
    from irnet import metrics

    counts = score.counts
    derived = (
        *("rows", "stable", "selected", "prevalence", "precision", "recall"),
        *("false_negative_rate", "false_positive_rate", "true_negative_rate"),
        *("f1", "accuracy", "acceleration", "ceiling"),
    )
    spent = np.unique(np.linspace(0, counts.rows, CURVE_POINTS + 1).round().astype(np.int64))
    record: dict[str, Any] = {
        "predictor": score.predictor,
        "group": score.group,
        "truth": score.truth,
        "counts": asdict(counts) | {name: _finite(getattr(counts, name)) for name in derived},
        "roc_auc": _finite(score.roc_auc),
        "precision_at": {
            str(first): asdict(metrics.proportion(round(value * first), first))
            for first, value in score.precision_at.items()
        },
        "acceleration_at": {
            str(first): _finite(value / counts.prevalence if counts.stable else np.nan)
            for first, value in score.precision_at.items()
        },
        "half_found_after": score.half_found_after,
        "hull_errors_ev_per_atom": _record_errors(asdict(score.errors)),
        "hull_errors_near_hull_ev_per_atom": score.errors_near_hull
        and _record_errors(asdict(score.errors_near_hull)),
        "probabilities": score.probabilities and asdict(score.probabilities),
    }
    if score.group == ALL_ROWS and score.truth == "label":
        record["curve"] = {"spent": spent.tolist(), "found": score.found[spent].tolist()}
    return record


def _record_errors(errors: dict[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in errors.items()}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _write_markdown(result: BacktestResult, making: dict[str, Any], has_bins: bool) -> str:
    environment, model = making["environment"], making["model"]
    files = ", ".join(f"{file.name} {file.sha256[:_HASH_DIGITS]}" for file in result.data)
    lines = [
        f"# Backtest of {model['name']}",
        "",
        f"{result.rows:,} compounds with known energies, ranked as if nobody had calculated them.",
        "",
        *(f"- {sentence}" for sentence in describe_test(result)),
        "",
        f"![Stable compounds found against calculations spent]({FOUND_NAME})",
        "",
        "## What is found",
        "",
        "Selected: probability of being stable above one half, or predicted energy above hull at "
        f"most {result.request.within:g} eV/atom. DAF: discovery acceleration factor, precision "
        "over prevalence, and the ceiling that the prevalence sets. In first: share of stable "
        "compounds among the first of the ranking. Half found after: calculations until half of "
        "the stable compounds are found. DFT energies: no model, the true energies with the same "
        "references and competitors.",
        "",
        *_mark_table(tabulate_discoveries(result)),
        "",
        "## What the first ones are worth",
        "",
        *_mark_table(tabulate_shortlists(result, (ALL_ROWS, NEW))),
        "",
        "## Another truth",
        "",
        "What is found, where stable is decided by the DFT energy above the hull of exactly "
        "the competitors that the predictors had.",
        "",
        *_mark_table(tabulate_discoveries(result, "same competitors", (ALL_ROWS,))),
        "",
        "## Errors of the energy above hull, eV/atom",
        "",
    ]
    for truth in TRUTHS:
        lines += [f"Against the {truth}:" if truth == "label" else "With the same competitors:", ""]
        lines += [*_mark_table(tabulate_hull_errors(result, truth)), ""]
    if has_bins:
        lines += [
            "## Can the probabilities be taken at their word?",
            "",
            f"![Promised probability against observed share]({PROBABILITIES_NAME})",
            "",
            "Bars are 95 % intervals that take the compounds as independent. Brier: mean squared "
            "difference of probability and outcome, beside that of always saying the prevalence. "
            "Calibration error: mean difference of promised and observed share over ten bins.",
            "",
            *_mark_table(tabulate_probabilities(result)),
            "",
        ]
    return "\n".join(
        [
            *lines,
            "## How it was made",
            "",
            "```",
            making["command"],
            "```",
            "",
            f"- {making['created']}, {making['machine']}, screening {environment['screening']}, "
            f"commit {environment['commit'] or 'unknown'}, seed {result.request.seed}",
            "- time: "
            + ", ".join(f"{stage} {value:,.0f} s" for stage, value in result.seconds.items()),
            f"- model: {model['name']} {model['content_sha256'][:_HASH_DIGITS]}",
            f"- data: {files}",
            f"- references: {result.references['name']} "
            f"{str(result.references['sha256'])[:_HASH_DIGITS]}",
            f"- all figures, curves included: [{RECORD_NAME}]({RECORD_NAME})",
            "",
        ]
    )


def _mark_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as a Markdown table; the first row is the header."""
    header, *rest = rows
    words = sum(name in ("group", "predictor", "truth") for name in header)
    rule = ["---"] * words + ["--:"] * (len(header) - words)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, rule, *rest)]
    return [f"| {' | '.join(row)} |" for row in escaped]
