"""Commands about the traditional regressors that IRNet is compared with: baselines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from screening.command_parts import (
    DropMissingOption,
    ExcludeFormulasOption,
    FeatureTableOption,
    KeepDoubtfulOption,
    MaxSitesOption,
    SchedulerOption,
    check_output,
    count_structures,
    interruptible,
    print_table,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_structures import (
    TERMINAL_ROWS,
    EngineOption,
    Inputs,
    check_engine,
    read_inputs,
    refuse_if_none,
    say_failures,
)
from screening.completion import complete_from
from screening.errors import ConfigurationError
from screening.printing import count_things, echo

KINDS = (
    "linear_regression",
    "lasso",
    "ridge",
    "elastic_net",
    "sgd",
    "decision_tree",
    "adaboost",
    "k_neighbors",
    "svr",
    "bagging",
    "random_forest",
    "gradient_boosting",
    "kernel_ridge",
)
ALL = "all"
"""Value of --kind for every one."""


def complete_kind(incomplete: str) -> list[str]:
    """Complete a kind of baseline."""
    return complete_from((*KINDS, ALL), incomplete)


def register(app: typer.Typer) -> None:
    """Add the group of commands to the program.

    Args:
        app: The program.
    """
    baselines = typer.Typer(
        help="Traditional regressors to compare IRNet with: those of the paper, and gradient "
        "boosting.",
        no_args_is_help=True,
    )
    baselines.command("list")(list_kinds)
    baselines.command("fit")(fit)
    baselines.command("predict")(predict)
    app.add_typer(baselines, name="baselines")


def list_kinds() -> None:
    """List the kinds of baselines with their grids and the paper's errors."""
    from irnet.baselines import BASELINES

    rows = [["kind", "settings", "scaled", "paper's MAE"]]
    for name, kind in BASELINES.items():
        paper = "" if kind.paper_mae is None else f"{kind.paper_mae:.3f}"
        rows.append([name, f"{kind.grid_points}", "yes" if kind.standardised else "", paper])
    print_table("baselines; the paper's errors (Table 3) are in eV/atom, on other data", rows)
    for name, kind in BASELINES.items():
        grid = "; ".join(
            f"{key} {', '.join(_show_value(value) for value in values)}"
            for key, values in kind.grid.items()
        )
        text = f"{name}: {grid + '. ' if grid else ''}{kind.grid_source}"
        echo(fill(text, 100, subsequent_indent="  "))


def fit(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            show_default=False,
            help="Parquet files of structures, or of features with id, formula and energy.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, one file per kind.")],
    kind: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="Kind of baseline, see `screening baselines list`, or all; repeatable.",
            autocompletion=complete_kind,
        ),
    ],
    target: Annotated[
        str, typer.Option(metavar="COLUMN", help="Column of numbers to learn.")
    ] = "formation_energy_per_atom",
    unit: Annotated[
        str,
        typer.Option(
            help="Unit of the target. Rows of another one than eV/atom are not checked against "
            "dE_matbench."
        ),
    ] = "eV/atom",
    rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most rows to fit: whole formulas, drawn at random with the seed. The held-out "
            "rows stay the same. SVR and AdaBoost take hours on tens of thousands, kernel_ridge "
            "much memory.",
            show_default="all",
        ),
    ] = None,
    search: Annotated[
        bool, typer.Option(help="Search the grids; else each kind's default setting is fitted.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the split, of the drawn formulas and of the fits.")
    ] = 0,
    holdout: Annotated[
        float,
        typer.Option(help="Share of the formulas held out for the errors; 0 fits all."),
    ] = 0.1,
    exclude_formulas: ExcludeFormulasOption = None,
    max_sites: MaxSitesOption = None,
    drop_missing_energies: DropMissingOption = False,
    keep_doubtful: KeepDoubtfulOption = False,
    features: FeatureTableOption = None,
    engine: EngineOption = "fast",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Worker processes for the features, and settings fitted at a time; 0 does one "
            "after the other in this process.",
            show_default="one per core",
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Remove the baselines in OUT and begin anew, once DATA are found usable."
        ),
    ] = False,
) -> None:
    """Fit baselines and measure them on held-out formulas.

    Rows, features and held-out formulas are those of `screening train` with the same options and
    seed. The same command goes on where it was killed, and adds kinds to those in OUT.
    """
    from screening.baselines import SUBSET, BaselineRequest, fit_baselines, tabulate_errors
    from screening.dataset import CROSS_CHECK_TOLERANCE, Protocol, read_formulas
    from screening.model_library import ENTHALPY_UNIT
    from screening.settings import count_cores

    protocol = Protocol(
        target=target,
        excluded_formulas=read_formulas(exclude_formulas) if exclude_formulas else frozenset(),
        max_sites=max_sites,
        drop_missing_energies=drop_missing_energies,
        cross_check_tolerance=(
            None if keep_doubtful or unit != ENTHALPY_UNIT else CROSS_CHECK_TOLERANCE
        ),
    )
    request = BaselineRequest(
        data=tuple(data),
        out=out,
        kinds=_check_kinds(kind),
        protocol=protocol,
        rows=rows,
        search=search,
        seed=seed,
        holdout=holdout,
        unit=unit,
        features=features,
        engine=check_engine(engine),
        jobs=count_cores() if workers is None else max(1, workers),
    )
    with (
        interruptible("the same command, without --overwrite, goes on from here"),
        show_progress("sites") as [featurized],
    ):
        fitted = fit_baselines(
            request,
            run=run_in_parallel(workers, scheduler),
            search_place=None if scheduler is None else _search_on(scheduler),
            say=say,
            progress=featurized,
            overwrite=overwrite,
        )
    print_table(f"held-out rows, {unit}", tabulate_errors(fitted))
    subset = fitted[0].card[SUBSET]
    if subset is not None:
        echo(f"* {subset}")
    say(f"{out}: finished")


def predict(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder of `baselines fit`.", show_default=False),
    ],
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    engine: EngineOption = "fast",
    workers: Annotated[
        int,
        typer.Option(min=0, help="Worker processes for the features; 0 computes in this process."),
    ] = 0,
    scheduler: SchedulerOption = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to show on the terminal.")] = TERMINAL_ROWS,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Predict your own structures by every baseline of a folder.

    What cannot be used goes to OUT's .failures.parquet with its reason.
    """
    from screening.baselines import PREDICTION, load_baselines, predict_structures
    from screening.columns import BASELINE_PREDICTIONS, write_table
    from screening.feature_tables import write_failures

    chosen = check_engine(engine)
    check_output(out, overwrite, ".parquet")
    baselines = load_baselines(folder)
    crystals, unread = read_inputs(inputs, out)
    with (
        interruptible("nothing was written"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        show_progress("sites") as [progress],
    ):
        table, failures = predict_structures(
            baselines,
            crystals,
            Path(work),
            engine=chosen,
            run=run_in_parallel(workers, scheduler),
            progress=progress,
        )
    everything = [*unread, *failures]
    refuse_if_none(range(table.num_rows), everything, out)
    write_failures(everything, out)
    write_table(table, out, BASELINE_PREDICTIONS)
    shown = table.slice(0, top).to_pydict()
    units = {PREDICTION + each.name: f"{each.title} {each.card['unit']}" for each in baselines}
    if top:
        columns = [[f"{v:.3f}" if name in units else v for v in shown[name]] for name in shown]
        header = [units.get(name, name) for name in shown]
        title = ", ".join(sorted({str(each.card["target"]) for each in baselines}))
        if top < table.num_rows:
            title = f"first {top:,} of {table.num_rows:,}, in the order of the input; {title}"
        print_table(title, [header, *map(list, zip(*columns, strict=True))])
    of_folder = f"{count_things(len(baselines), 'baseline')} of {folder}"
    say(f"{out}: {count_structures(table.num_rows)}, {of_folder}")
    say_failures(everything, out)


def _check_kinds(names: list[str]) -> tuple[str, ...]:
    """Kinds without repetition, in the order of the list where all are asked for."""
    if ALL in names:
        if len(names) > 1:
            raise ConfigurationError("--kind all is every kind; leave the others out")
        return KINDS
    return tuple(dict.fromkeys(names))


def _search_on(scheduler: str) -> Callable[[], AbstractContextManager[int]]:
    """Return what searches grids on the workers of a running scheduler."""

    @contextmanager
    def place() -> Iterator[int]:
        from screening.cluster.client import connect, probe_workers
        from screening.cluster.grid_search import search_on_workers
        from screening.cluster_settings import ClusterSettings, replace_place

        with connect(replace_place(ClusterSettings(), scheduler=scheduler), say) as client:
            probe_workers(client, None, say)
            threads = client.nthreads()
            if sum(threads.values()) == 1:
                say(f"{scheduler} has one thread: grids are searched in this process")
            else:
                few = "worker" if len(threads) == 1 else "workers"
                say(
                    f"searching grids on {sum(threads.values())} threads of {len(threads)} {few}; "
                    f"dashboard: {client.dashboard_link}"
                )
            with search_on_workers(client) as n_jobs:
                yield n_jobs

    return place


def _show_value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
