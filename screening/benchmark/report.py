"""A benchmark's report: README.md with tables, plots as SVG, and results.json with everything."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from screening.benchmark.paper import CITATION
from screening.benchmark.sections import SECTIONS, describe_trials
from screening.benchmark.sections.cells import Section, show_seconds
from screening.benchmark.summary import Summary, gather
from screening.benchmark.trial import Trial, TrialResult
from screening.columns import written_atomically
from screening.errors import InputDataError, OutputError

if TYPE_CHECKING:
    from screening.benchmark.definitions import Benchmark, Budget

REPORT_NAME: Final = "README.md"
RECORD_NAME: Final = "results.json"

RECORD_FORMAT: Final = 1

DIGITS: Final = 6
"""Significant digits of single numbers in the record; tables and plots show no more."""

LIST_DIGITS: Final = 4
"""Significant digits of numbers in its lists: learning curves, percentiles, errors of rows."""

_HASH_DIGITS: Final = 12

_MARKDOWN: Final = re.compile(r"[\\`*\[\]<>|]|(?<![^\W_])_|_(?![^\W_])")


def write_report(
    benchmark: Benchmark,
    budget: Budget,
    results: Sequence[TrialResult],
    folder: Path,
    command: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write what a benchmark has measured, whether or not all of its trials are done.

    Tables and plots are made from the numbers of the record, so that a report made from
    `read_record` is the same.

    Args:
        benchmark: The benchmark.
        budget: Its budget: `benchmark.trials(budget)` is what is expected.
        results: Of its trials, failures among them; those of other trials are not shown.
        folder: Folder for the files, made if it is not there. Plots that an earlier report left
            there and this one does not have are removed.
        command: Words of the command that was run; of files only the names are kept.

    Returns:
        The files.

    Raises:
        OutputError: A file cannot be written.
    """
    trials = benchmark.trials(budget)
    results = [_round_result(result) for result in results if result.trial in set(trials)]
    summaries = gather(trials, results)
    describe = SECTIONS.get(benchmark.name)
    measured = any(each.results for each in summaries)
    sections = [*(describe(summaries) if describe and measured else []), describe_trials(summaries)]
    files = {
        REPORT_NAME: _write_markdown(benchmark, budget, summaries, sections, command),
        RECORD_NAME: _write_record(benchmark, budget, summaries, results, sections, command),
    }
    for section in sections:
        files |= {plot.file: plot.svg for plot in section.plots}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.svg"):
            if stale.name not in files:
                stale.unlink()
    except OSError as error:
        raise OutputError.from_os_error(error, folder) from error
    for name, text in files.items():
        with written_atomically(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return tuple(folder / name for name in files)


def read_record(path: Path) -> tuple[TrialResult, ...]:
    """Read the results that a report rests on.

    Args:
        path: A ``results.json`` of `write_report`.

    Returns:
        Results of all trials that were done, failures among them.

    Raises:
        InputDataError: The file is missing, damaged, or of another version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != RECORD_FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {RECORD_FORMAT}")
        return tuple(TrialResult.from_json(_unfold(each)) for each in record["results"])
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputDataError(
            f"{path} is no record of a benchmark ({reason}); write the report again"
        ) from error


def describe_making(summaries: Sequence[Summary]) -> list[str]:
    """Say where, when and from what the results came, a sentence each.

    Args:
        summaries: Of all trials.
    """
    results = [result for each in summaries for result in each.results]
    if not results:
        return ["Nothing has been measured yet."]
    machines = Counter(result.machine for result in results)
    seconds = {
        machine: sum(result.seconds for result in results if result.machine == machine)
        for machine in machines
    }
    dates = sorted(result.created[:10] for result in results if result.created)
    commits = Counter(result.commit or "unknown" for result in results)
    versions = sorted(
        {f"{name} {number}" for r in results for name, number in r.versions.items() if number}
    )
    seeds = sorted({result.trial.seed for result in results})
    lines = [
        f"Machine: {machine}; {_count_trials(count)}, {show_seconds(seconds[machine])} of training."
        for machine, count in machines.items()
    ]
    if dates:
        lines.append(f"Date: {dates[0]}" + (f" to {dates[-1]}." if dates[0] != dates[-1] else "."))
    lines.append(
        "Commit: "
        + ", ".join(f"{name} ({_count_trials(count)})" for name, count in commits.items())
        + "."
    )
    if versions:
        lines.append(f"Packages: {', '.join(versions)}.")
    contents = sorted(
        {
            f"{result.trial.data}{' and evaluation' * ('eval' in result.trial.tests)} "
            f"{result.data_sha256[:_HASH_DIGITS]}"
            for result in results
            if result.data_sha256
        }
    )
    if contents:
        lines.append(f"SHA-256 of the data: {', '.join(contents)}.")
    lines.append(f"Seeds: {', '.join(map(str, seeds))}.")
    rows = sorted({result.train_rows for result in results})
    lines.append(f"Training rows: {_join_numbers(rows)}.")
    epochs = sorted({len(result.history) for result in results if result.history})
    if epochs:
        lines.append(f"Epochs run: {_join_numbers(epochs)}.")
    return lines


def list_shortened(trials: Sequence[Trial]) -> list[str]:
    """Say what was made smaller than in the paper, and in how many trials.

    Args:
        trials: All trials.
    """
    found = Counter(trial.shortened for trial in trials if trial.shortened)
    return [
        f"{text.rstrip('.')} ({count} of {len(trials)} trials)." for text, count in found.items()
    ]


def list_undone(summaries: Sequence[Summary]) -> list[str]:
    """Say which trials failed, and why, and which are missing.

    Args:
        summaries: Of all trials.
    """
    failed = [
        f"{failure.trial.name} failed: {failure.failure}"
        for each in summaries
        for failure in each.failures
    ]
    missing = []
    for each in summaries:
        done = {result.trial for result in (*each.results, *each.failures)}
        left = [trial for trial in each.trials if trial not in done]
        if left:
            seeds = ", ".join(str(trial.seed) for trial in left)
            missing.append(f"{each.trial.series}, seed {seeds}: missing")
    return failed + missing


def _write_markdown(
    benchmark: Benchmark,
    budget: Budget,
    summaries: Sequence[Summary],
    sections: Sequence[Section],
    command: Sequence[str],
) -> str:
    trials = [trial for each in summaries for trial in each.trials]
    done = sum(len(each.results) for each in summaries)
    failed = sum(len(each.failures) for each in summaries)
    missing = len(trials) - done - failed
    lines = [
        f"# {escape_markdown(benchmark.title)}",
        "",
        f"Of the paper: {escape_markdown(benchmark.paper or 'nothing; this goes beyond it')}. "
        f"Figures called the paper's are from {CITATION}.",
        "",
        f"Budget `{budget}`: {done} of {len(trials)} trials are done, {failed} failed, {missing} "
        "missing.",
        "",
        "A figure is the mean over the seeds ± their standard deviation, with the number of seeds "
        "in brackets. The deviation says what another seed (weights, order of rows, validation "
        "split) would change. All seeds have the same test rows: what other test rows would change "
        "is not in it. Figures of one seed have no deviation. Bars in plots are one standard "
        "deviation over seeds where nothing else is said.",
        "",
    ]
    for section in sections:
        lines += [f"## {escape_markdown(section.title)}", ""]
        if section.text:
            lines += [section.text, ""]
        if section.table:
            lines += [*_write_table(section.table), ""]
        for plot in section.plots:
            lines += [f"![{escape_markdown(plot.title)}]({plot.file})", ""]
    lines += ["## What was shortened", ""]
    shortened = list_shortened(trials)
    lines += [
        *([f"- {escape_markdown(each)}" for each in shortened] or ["Nothing, by the definitions."]),
        "",
        "## What is missing",
        "",
    ]
    undone = list_undone(summaries)
    lines += [
        *([f"- {escape_markdown(each)}" for each in undone] or ["No trial failed or is missing."]),
        "",
        "## How it was made",
        "",
    ]
    if command:
        lines += ["```", " ".join(_name_files(command)), "```", ""]
    lines += [
        *(f"- {escape_markdown(each)}" for each in describe_making(summaries)),
        f"- All figures, every trial's settings and curves: [{RECORD_NAME}]({RECORD_NAME}).",
    ]
    return "\n".join([*lines, ""])


def escape_markdown(text: str) -> str:
    r"""Return a text that Markdown shows as it is, on one line.

    >>> escape_markdown("L1_0 | a*b\n_c_")
    'L1_0 \\| a\\*b \\_c\\_'
    """
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def _write_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as a Markdown table; the first row is the header."""
    header, *rest = [[escape_markdown(cell) for cell in row] for row in rows]
    rule = ["---"] * len(header)
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rest)]


def _write_record(
    benchmark: Benchmark,
    budget: Budget,
    summaries: Sequence[Summary],
    results: Sequence[TrialResult],
    sections: Sequence[Section],
    command: Sequence[str],
) -> str:
    trials = [trial for each in summaries for trial in each.trials]
    facts = {
        "format": RECORD_FORMAT,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "paper": benchmark.paper,
        "budget": budget,
        "command": _name_files(command),
        "making": describe_making(summaries),
        "shortened": list_shortened(trials),
        "undone": list_undone(summaries),
    }
    lists: dict[str, list[Any]] = {
        "tables": [{"title": each.title, "rows": each.table} for each in sections if each.table],
        "trials": [trial.to_json() for trial in trials],
        "results": [_fold(result.to_json()) for result in results],
    }
    parts = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in facts.items()]
    for name, values in lists.items():
        lines = [
            json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            for value in values
        ]
        parts.append(f'"{name}": [\n' + ",\n".join(lines) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _round_result(result: TrialResult) -> TrialResult:
    return TrialResult.from_json(_round(result.to_json()) | {"trial": result.trial.to_json()})


def _round(value: Any, digits: int = DIGITS) -> Any:
    """Numbers to significant digits; those that JSON does not know become null."""
    if isinstance(value, Mapping):
        return {name: _round(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_round(each, LIST_DIGITS) for each in value]
    if isinstance(value, float):
        rounded = float(f"{value:.{digits}g}")
        return rounded if abs(rounded) < float("inf") else None
    return value


def _fold(result: dict[str, Any]) -> dict[str, Any]:
    """Write a history by column: a fraction of the length."""
    names = list(dict.fromkeys(name for entry in result["history"] for name in entry))
    columns = {name: [entry.get(name) for entry in result["history"]] for name in names}
    return result | {"history": columns}


def _unfold(result: dict[str, Any]) -> dict[str, Any]:
    columns = result["history"]
    rows = [
        {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in zip(*columns.values(), strict=True)
    ]
    return result | {"history": rows}


def _name_files(words: Sequence[str]) -> list[str]:
    return [Path(word).name if Path(word).exists() else word for word in words]


def _count_trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"


def _join_numbers(values: Sequence[int]) -> str:
    if len(values) > 4:
        return f"{values[0]:,} to {values[-1]:,}"
    return ", ".join(f"{value:,}" for value in values)
