"""The command that repeats the paper's tables and figures: benchmark."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import (
    DeviceOption,
    check_device,
    interruptible,
    print_table,
    run_in_parallel,
    say,
    show_progress,
)
from screening.completion import complete_from
from screening.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from screening.benchmark.data import DataSource
    from screening.benchmark.definitions import Benchmark, Budget
    from screening.benchmark.engine import Standing
    from screening.benchmark.trial import Trial

BENCHMARKS = (
    "table-2",
    "table-3",
    "table-4",
    "table-5",
    "figure-5",
    "training-size",
    "leave-prototype-out",
    "leave-element-out",
    "known-only",
    "recipes",
    "patience",
)
ALL = "all"
"""In place of a name: each of them."""

BUDGETS = ("tiny", "cpu", "full")

MOST_FAILURES = 5
"""Failed trials that are named at the end."""


def complete_benchmark(incomplete: str) -> list[str]:
    """Complete the name of a benchmark."""
    return complete_from((*BENCHMARKS, ALL), incomplete)


def complete_budget(incomplete: str) -> list[str]:
    """Complete a budget."""
    return complete_from(BUDGETS, incomplete)


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(benchmark)


def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help=f"What to repeat: {', '.join(BENCHMARKS)}; or {ALL}, one after the other.",
            autocompletion=complete_benchmark,
        ),
    ],
    work: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder for data and for results and checkpoints by budget."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            envvar="SCREENING_DATA",
            help="Folder of the data set (docs/paper.md names its files); to run, not to list or "
            "report.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for the report: results.json, README.md and plots; of all benchmarks, "
            "for a folder of each.",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="tiny (seconds), cpu (at most an hour or two of two cores) or full (as the paper, "
            "for a GPU). The features of all structures come first, once for a --work.",
            autocompletion=complete_budget,
        ),
    ] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Trials side by side, each in a process with one thread; 0 runs one after the "
            "other in this process with all threads.",
            show_default="one per core; with --device cuda 1",
        ),
    ] = None,
    device: DeviceOption = "auto",
    only: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Run only trials whose name contains it; * and ? stand for anything.",
        ),
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Feature table of some of the structures, from featurize; the others are "
            "computed, which takes minutes. Repeatable.",
        ),
    ] = None,
    list_trials: Annotated[
        bool, typer.Option("--list", help="List the trials, run nothing.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Write the report of what is there, run nothing.")
    ] = False,
) -> None:
    """Repeat a table or figure of the paper on public data, or go beyond it.

    A killed run goes on when the command is given again. Trials that fail are recorded with their
    reason and the others go on; the command then ends with exit code 7.
    """
    from screening.benchmark.data import DataSource
    from screening.benchmark.definitions import find_benchmarks, find_budget
    from screening.benchmark.engine import State, TrialsFailedError, survey

    defined = find_benchmarks(name)
    spent = find_budget(budget)
    chosen = _choose(defined, spent, only)
    results = work / spent  # so that a smaller budget leaves those of a larger one alone
    if list_trials:
        _print_trials({each: survey(results, trials) for each, trials in chosen.items()})
        return

    def report(each: Benchmark) -> bool:
        """Write what there is of a benchmark; False if there is nothing."""
        found = survey(results, each.trials(spent))
        if out is None or all(standing.result is None for standing in found):
            return False
        _report(each, spent, found, out / each.name if name == ALL else out)
        return True

    if report_only:
        if out is None:
            raise ConfigurationError("--report-only writes into a folder: name it with --out")
        if not any([report(each) for each in defined]):
            raise ConfigurationError(
                f"{results if name == ALL else results / name} holds no result of {name}; is "
                "--work right? Without --report-only the trials are run"
            )
        return
    if data is None:
        raise ConfigurationError(
            "name the folder of the data set with --data, or in SCREENING_DATA; docs/paper.md "
            "says what it holds"
        )
    source = DataSource(data, work / "data", tuple(features or ()), note=say)
    place = check_device(device)
    failed = []
    for each, trials in chosen.items():
        if name == ALL:
            say(f"{each.name}: {each.title}")
        standings = _run(trials, source, results, workers, place)
        report(each)
        failed += [standing.trial.name for standing in standings if standing.state is State.FAILED]
    if failed:
        more = ", ..." if len(failed) > MOST_FAILURES else ""
        count = sum(map(len, chosen.values()))
        raise TrialsFailedError(
            f"{len(failed)} of {count} trials failed: {', '.join(failed[:MOST_FAILURES])}"
            f"{more}; the reasons stand above and in {results}, the same command tries them again"
        )


def _run(
    trials: Sequence[Trial], source: DataSource, results: Path, workers: int | None, device: str
) -> list[Standing]:
    from irnet.device import choose_device
    from screening.benchmark.engine import run_trials
    from screening.settings import count_cores

    place = choose_device(device).type
    if workers is None:
        workers = 1 if place == "cuda" else count_cores()
    with (
        interruptible("the same command goes on from here"),
        show_progress("sites", "trials") as [featurized, fitted],
    ):
        return run_trials(
            trials,
            replace(source, run=run_in_parallel(workers, None), progress=featurized),
            results,
            workers=workers,
            device=place,
            note=say,
            progress=fitted,
        )


def _choose(
    benchmarks: Sequence[Benchmark], budget: Budget, only: str | None
) -> dict[Benchmark, list[Trial]]:
    """Trials of benchmarks whose name has a pattern in it."""
    trials = {each: each.trials(budget) for each in benchmarks}
    chosen = {
        each: [trial for trial in some if only is None or fnmatchcase(trial.name, f"*{only}*")]
        for each, some in trials.items()
    }
    if not any(chosen.values()):
        every = [trial for some in trials.values() for trial in some]
        raise ConfigurationError(
            f'--only "{only}" is in the name of none of the {len(every)} trials, such as '
            f"{every[0].name}; see --list"
        )
    return {each: some for each, some in chosen.items() if some}


def _print_trials(found: Mapping[Benchmark, Sequence[Standing]]) -> None:
    from screening.benchmark.data import TRAINING_ROWS
    from screening.benchmark.fitting import estimate_seconds
    from screening.benchmark.trial import HELD_OUT

    left: dict[Trial, float] = {}  # two benchmarks may have the same trial
    for benchmark, standings in found.items():
        rows = [["trial", "rows", "state", "core s", "held-out MAE"]]
        for each in standings:
            trial, result = each.trial, each.result
            seconds = estimate_seconds(trial, TRAINING_ROWS[trial.data])
            left[trial] = seconds if result is None else 0.0
            errors = None if result is None else result.test.get(HELD_OUT)
            rows.append(
                [
                    trial.name,
                    "all" if trial.train_rows is None else f"{trial.train_rows:,}",
                    str(each.state),
                    f"{seconds:,.0f}" if result is None else "",
                    f"{errors.mae:.4f} {result.unit}" if result and errors else "",
                ]
            )
        print_table(benchmark.name if len(found) > 1 else "", rows)
    say(f"{len(left)} trials, about {sum(left.values()):,.0f} core seconds left")


def _report(benchmark: Benchmark, budget: Budget, standings: Sequence[Standing], out: Path) -> None:
    from screening.benchmark.report import write_report

    results = [standing.result for standing in standings if standing.result is not None]
    command = ["screening", "benchmark", benchmark.name, "--data", "DATA", "--work", "WORK"]
    command += ["--out", "OUT", "--budget", budget]
    write_report(benchmark, budget, results, out, command)
    missing = len(standings) - len(results)
    say(f"{out}: report of {len(results)} trials" + (f", {missing} missing" if missing else ""))
