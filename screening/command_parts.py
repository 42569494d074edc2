"""What several commands share: options, checks, progress, and tables on the terminal."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from math import isfinite
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.completion import (
    DEVICES,
    ORDERS,
    PRECISIONS,
    complete_device,
    complete_model,
    complete_order,
    complete_precision,
)
from screening.errors import ConfigurationError, suggest
from screening.printing import count_things, echo

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.progress import TaskID

    from screening.comparison import Comparison
    from screening.feature_tables import ParallelMap, ProgressCall
    from screening.folder import RunFolder

SECONDS_BETWEEN_LINES = 10.0

WIDTH_OF_FILES = 200
"""Width of tables that go into a file or a pipe."""

LABEL_WIDTH = 24
"""Most that the label of a row may take from the other columns."""

LOWEST_RATE = 0.5
"""Things per second below which a rate is told per minute."""

ROW_LABELS = ("id", "formula", "kind", "group", "predictor", "geometry", "scheme", "trial", "state")
"""Columns that say what a row is, not what was measured."""

REFERENCE_FILES = (
    "Parquet or CSV with formula and formation_energy_per_atom, or a JSON list of pymatgen entries"
)
"""What files of reference phases are, for the help of `--references`."""

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Result folder of a campaign.", show_default=False)
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="Keep only candidates that meet it, such as charge_neutral, 'p_stable >= 0.5' or "
        "'toxic_elements = none'; repeatable.",
    ),
]
RankByOption = Annotated[
    str | None,
    typer.Option(
        help=f"Order of the ranking: {', '.join(ORDERS)}.",
        autocompletion=complete_order,
        show_default="p_stable",
    ),
]
FunctionalOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How the references were calculated, if not as the model's training data.",
    ),
]
StableWithinOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="EV_PER_ATOM",
        help="Energy above hull that still counts as stable.",
        show_default="0.05",
    ),
]
JsonResultOption = Annotated[
    bool, typer.Option("--json", help="The result as one JSON document instead of a table.")
]
FeatureTableOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Feature table of these structures, from featurize."),
]
DropMissingOption = Annotated[
    bool, typer.Option(help="Count and drop rows without energy or label instead of refusing them.")
]
KeepDoubtfulOption = Annotated[
    bool,
    typer.Option(help="Keep rows whose dE_matbench says that their energy is doubtful."),
]
ModelTargetOption = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column of what the model predicts, in its unit.",
        show_default="the model's",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(help="Where networks run: auto, cpu or cuda.", autocompletion=complete_device),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the networks: auto, int8, bf16 or fp32.",
        autocompletion=complete_precision,
    ),
]


ModelArgument = Annotated[
    str,
    typer.Argument(help="Bundled model or model folder.", autocompletion=complete_model),
]


WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Worker processes for the features; 0 computes in this process.",
        show_default="one per core",
    ),
]


ExcludeFormulasOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Formulas to keep out of training: Parquet or CSV with a formula column, or text.",
    ),
]
MaxSitesOption = Annotated[int | None, typer.Option(min=1, help="Leave out larger structures.")]


SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A running Dask scheduler, instead of local workers."),
]


def say(sentence: str) -> None:
    """Write a sentence to stderr."""
    echo(sentence, err=True)


def count_structures(count: int) -> str:
    """A number of structures in words, such as ``1 structure`` or ``2,000 structures``."""
    return count_things(count, "structure")


def check_output(out: Path, overwrite: bool, suffix: str | None = None) -> None:
    """Refuse an output file that cannot be written, before anything is computed.

    Args:
        out: The file.
        overwrite: Whether it may be there already.
        suffix: What its name must end in, if anything.

    Raises:
        ConfigurationError: It is a folder, ends otherwise, or exists.
        OutputError: Its folder cannot be written to.
    """
    from screening.errors import OutputError

    if out.is_dir():
        raise ConfigurationError(f"--out {out} is a folder; give the name of a file")
    if suffix is not None and out.suffix != suffix:
        raise ConfigurationError(
            f"--out {out} must end in {suffix}: it is written as Parquet, nothing else"
        )
    if out.exists() and not overwrite:
        raise ConfigurationError(f"{out} exists; give --overwrite to replace it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise OutputError.from_os_error(error, out) from error


def check_energy(option: str, energy: float) -> None:
    """Refuse an energy that is infinite or no number.

    Raises:
        ConfigurationError: It is.
    """
    if not isfinite(energy):
        raise ConfigurationError(f"{option} {energy} is no energy; give a number of eV/atom")


def check_device(device: str) -> str:
    """Return the device if it is one and is there.

    Raises:
        ConfigurationError: It is misspelt.
        irnet.errors.DeviceError: torch sees no such device.
    """
    if device not in DEVICES:
        raise ConfigurationError(
            f'--device "{device}" is none of {", ".join(DEVICES)}{suggest(device, DEVICES)}'
        )
    if device == "cuda":
        from irnet.device import choose_device

        choose_device(device)
    return device


def check_precision(precision: str, device: str) -> str:
    """Return the precision if it is one and the device has it.

    Raises:
        ConfigurationError: It is misspelt.
        irnet.errors.DeviceError: The device cannot.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(
            f'--precision "{precision}" is none of {", ".join(PRECISIONS)}'
            f"{suggest(precision, PRECISIONS)}"
        )
    if precision == "int8":
        from irnet.device import choose_device, choose_scoring_precision

        choose_scoring_precision(precision, choose_device(device))
    return precision


def run_in_parallel(workers: int | None, scheduler: str | None) -> ParallelMap | None:
    """Return what runs tasks on Dask workers; None where this process is to compute them.

    The tasks need no GPU: local workers get none.

    Args:
        workers: Local workers; None for one per core, 0 for none.
        scheduler: Address of a running scheduler instead.
    """
    if workers == 0 and scheduler is None:
        return None

    def run(function: Callable[[Any, int], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        if not tasks:
            return
        from screening.cluster.client import connect, probe_workers
        from screening.cluster.tasks import map_tasks
        from screening.cluster_settings import ClusterSettings, replace_place
        from screening.local_tasks import take_results

        place = replace_place(
            ClusterSettings(), workers=workers if scheduler is None else None, scheduler=scheduler
        )
        with connect(place, say, device="cpu") as client:
            probe_workers(client, None, say)
            say(f"dashboard: {client.dashboard_link}")
            yield from take_results(map_tasks(client, function, tasks, note=say))

    return run


@contextmanager
def interruptible(what_now: str) -> Iterator[None]:
    """Say at Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {what_now}") from error


@contextmanager
def show_progress(*kinds: str) -> Iterator[list[ProgressCall]]:
    """A bar on a terminal, a line every few seconds elsewhere; both on stderr.

    Args:
        kinds: What is counted, one after the other: the bar shows the last that began.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    live = sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not live,
    )
    rows: dict[str, TaskID] = {}

    def count(what: str) -> ProgressCall:
        began = spoken = time.monotonic()
        already = 0

        def show(done: int, total: int, note: str) -> None:
            nonlocal began, spoken, already
            if what not in rows:
                for row in rows.values():
                    bar.update(row, visible=False)
                rows[what] = bar.add_task(what, total=total, note=note)
                began = spoken = time.monotonic()
                already = done
            bar.update(rows[what], completed=done, note=note)
            now = time.monotonic()
            if live or (now - spoken < SECONDS_BETWEEN_LINES and done < total):
                return
            spoken = now
            words = [f"{what}: {done:,} of {total:,}"]
            if done > already:
                rate = (done - already) / max(now - began, 1e-9)
                words += [f"{rate:,.1f}/s" if rate >= LOWEST_RATE else f"{60 * rate:,.1f}/min"]
                words += [f"{(total - done) / rate:,.0f} s left"]
            say(", ".join(words) + (f"; {note}" if note else ""))

        return show

    with bar:
        yield [count(kind) for kind in kinds]


def print_ranking(
    folder: RunFolder, rows: pa.Table, title: str, comparison: Comparison | None = None
) -> None:
    """Print rows of a campaign's ranking, and on stderr what to make of them.

    Args:
        folder: The campaign.
        rows: The rows.
        title: Title of the table.
        comparison: The ensemble beside the Random Forest, where it is to be told too.
    """
    from screening.terminal import (
        describe_comparison,
        describe_hull,
        describe_intervals,
        draw_ranking,
        open_stdout,
        warn_of_bias,
    )

    manifest = folder.manifest
    competitors, model = manifest["competitors"], manifest["model"]
    against = describe_hull(competitors)
    open_stdout().print(
        draw_ranking(
            rows,
            title,
            hull=against or "the competing phases",
            stable_within=competitors["stable_within_ev_per_atom"],
            screened=len(folder.prototypes),
        )
    )
    lines = [] if comparison is None else describe_comparison(comparison)
    lines += warn_of_bias(model["measured_errors"], hull=against is not None)
    lines += describe_intervals(model["intervals"], model["name"])
    for line in lines:
        say(line)


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells, the first of them the header.

    Columns that find no room beside the others go below, with the labels of the rows again.
    """
    from rich.table import Table

    from screening.console import PrintableConsole

    console = PrintableConsole(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, markup=False)
    names, parts = _fit_columns(rows, console.width)
    for number, columns in enumerate(parts):
        table = Table(title=title or None if number == 0 else None, title_justify="left", box=None)
        for column in columns:
            left = rows[0][column] in ROW_LABELS
            table.add_column(names[column], justify="left" if left else "right", overflow="fold")
        for row in rows[1:]:
            table.add_row(*(row[column] for column in columns))
        console.print(table)


def _fit_columns(
    rows: Sequence[Sequence[str]], width: int
) -> tuple[Sequence[str], list[list[int]]]:
    """Divide the columns of a table into parts that fit a width, labels of the rows in each.

    Returns:
        The header, its words below each other where the table would be too wide otherwise, and the
        columns of each part.
    """
    every = range(len(rows[0]))
    if sum(2 + max(len(row[i]) for row in rows) for i in every) <= width:
        return rows[0], [list(every)]
    needed = [max(map(len, (*rows[0][i].split(), *(row[i] for row in rows[1:])))) for i in every]
    names = [fill(name, room) for name, room in zip(rows[0], needed, strict=True)]
    labels = list(takewhile(lambda i: rows[0][i] in ROW_LABELS, every))
    for label in labels:  # a longer one is folded
        needed[label] = min(needed[label], LABEL_WIDTH)
    parts = [labels]
    for column in every[len(labels) :]:
        if parts[-1] != labels and sum(2 + needed[i] for i in (*parts[-1], column)) > width:
            parts.append(labels)
        parts[-1] = [*parts[-1], column]
    return names, parts
