"""Command that asks whether a ranking finds what is stable: backtest."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import (
    DeviceOption,
    FeatureTableOption,
    ModelArgument,
    ModelTargetOption,
    SchedulerOption,
    WorkersOption,
    check_device,
    check_energy,
    interruptible,
    print_table,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_structures import EngineOption, check_engine
from screening.errors import ConfigurationError, OutputError, suggest
from screening.printing import echo

if TYPE_CHECKING:
    from screening.backtest import Calibration

CALIBRATIONS: tuple[Calibration, ...] = ("folds", "model", "none")


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(backtest)


def complete_calibration(incomplete: str) -> list[str]:
    """Origins of probabilities that begin like this."""
    return [name for name in CALIBRATIONS if name.startswith(incomplete)]


def backtest(
    model: ModelArgument,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            show_default=False,
            help="Parquet files of compounds with DFT formation energies: structures, or features "
            "with id and formula. Best of compounds that the model was not trained on.",
        ),
    ],
    references: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Reference phases: formula and formation_energy_per_atom in Parquet or CSV, or a "
            "JSON list of pymatgen entries. Compositions of DATA are taken out.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of DATA with the DFT energy above hull, eV/atom; rows without are left "
            "out.",
            show_default="computed from all references",
        ),
    ] = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Structures of known crystals with energies: the lowest of a composition that was "
            "taken out competes in its place. Can be repeated.",
            show_default="those that the model was trained on",
        ),
    ] = None,
    forget_known: Annotated[
        bool,
        typer.Option(
            "--forget-known", help="Let nothing compete in the place of what was taken out."
        ),
    ] = False,
    stable_within: Annotated[
        float,
        typer.Option(help="Energy above hull that still counts as stable, eV/atom."),
    ] = 0.0,
    compete: Annotated[
        bool,
        typer.Option(
            "--compete/--no-compete",
            help="Let the compounds compete with each other, by predicted energies.",
        ),
    ] = True,
    calibration: Annotated[
        str,
        typer.Option(
            help="Where probabilities come from: folds (of DATA, by chemical system), model (its "
            "own), none (rank by energy alone).",
            autocompletion=complete_calibration,
        ),
    ] = "folds",
    target: ModelTargetOption = None,
    features: FeatureTableOption = None,
    functional: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Functional of the references, for the record."),
    ] = None,
    near: Annotated[
        float,
        typer.Option(
            help="Errors are told apart for compounds nearer to the hull than this, eV/atom."
        ),
    ] = 0.1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the report, its plots and a JSON record."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of folds and draws.")] = 0,
    engine: EngineOption = "fast",
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier report.")] = False,
) -> None:
    """Ask whether a model would have found the compounds that are stable.

    Compounds of known DFT energy are ranked by IRNet and by the Random Forest, with references
    that have not seen them; what each finds is counted as Matbench Discovery does.
    """
    from screening.backtest import BacktestRequest, run_backtest
    from screening.backtest_report import (
        describe_test,
        summarise,
        tabulate_discoveries,
        tabulate_hull_errors,
        tabulate_probabilities,
        write_report,
    )
    from screening.model_library import load_enthalpy_model

    if known and forget_known:
        raise ConfigurationError("--known and --forget-known contradict each other; give one")
    chosen_engine, chosen_device = check_engine(engine), check_device(device)
    check_energy("--stable-within", stable_within)
    check_energy("--near", near)
    _check_folder(out, overwrite)
    loaded = load_enthalpy_model(model)
    request = BacktestRequest(
        data=tuple(data),
        references=references,
        known=tuple(known or ()),
        forget_known=forget_known,
        label=label,
        target=target or loaded.card.data.target,
        within=stable_within,
        near=near,
        compete=compete,
        calibration=_check_calibration(calibration),
        features=features,
        functional=functional,
        engine=chosen_engine,
        device=chosen_device,
        seed=seed,
    )
    with (
        interruptible("nothing was written"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        show_progress("sites") as [progress],
    ):
        result = run_backtest(
            loaded,
            request,
            Path(work),
            run=run_in_parallel(workers, scheduler),
            progress=progress,
            say=say,
        )
    print_table(
        f"{result.rows:,} compounds, {loaded.card.name}; DAF: precision over prevalence",
        tabulate_discoveries(result),
    )
    print_table(
        "energy above hull, same competitors, eV/atom",
        tabulate_hull_errors(result, "same competitors"),
    )
    probabilities = tabulate_probabilities(result)
    if len(probabilities) > 1:
        print_table("probability of being stable", probabilities)
    for sentence in (*summarise(result), *describe_test(result)):
        echo(f"- {sentence}")
    if out is not None:
        for path in write_report(result, loaded, out, ("screening", *sys.argv[1:])):
            say(f"wrote {path}")


def _check_calibration(name: str) -> Calibration:
    for known in CALIBRATIONS:
        if name == known:
            return known
    raise ConfigurationError(
        f'--calibration "{name}" is none of {", ".join(CALIBRATIONS)}{suggest(name, CALIBRATIONS)}'
    )


def _check_folder(out: Path | None, overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, before anything is computed."""
    if out is None:
        return
    if out.is_file():
        raise ConfigurationError(f"--out {out} is a file; give a folder")
    if any(out.glob("backtest.*")) and not overwrite:
        raise ConfigurationError(f"{out} holds a report; give --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out, prefix=".backtest."):
            pass
    except OSError as error:
        raise OutputError.from_os_error(error, out) from error
