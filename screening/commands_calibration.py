"""Command that gives a model intervals: calibrate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from screening.command_parts import (
    DeviceOption,
    DropMissingOption,
    FeatureTableOption,
    KeepDoubtfulOption,
    ModelArgument,
    ModelTargetOption,
    SchedulerOption,
    WorkersOption,
    check_device,
    interruptible,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_models import print_reliability
from screening.commands_structures import EngineOption, check_engine


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(calibrate)


def calibrate(
    model: ModelArgument,
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            show_default=False,
            help="Parquet files of structures, or of features with id, formula and energy; best of "
            "compounds like those to be screened. Rows whose formula the model was trained on are "
            "left out.",
        ),
    ],
    target: ModelTargetOption = None,
    features: FeatureTableOption = None,
    exclude_formulas: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Formulas to leave out: Parquet or CSV with a formula column, or text.",
        ),
    ] = None,
    drop_missing_energies: DropMissingOption = False,
    keep_doubtful: KeepDoubtfulOption = False,
    seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    engine: EngineOption = "fast",
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier calibration.")] = False,
) -> None:
    """Give a model calibrated 90 % intervals and distances to its training data.

    They go into the model's folder, and how well they do into its card.
    """
    from screening.calibration import CalibrationRequest, calibrate_model
    from screening.dataset import CROSS_CHECK_TOLERANCE, Protocol, read_formulas
    from screening.model_library import ENTHALPY_UNIT, load_model

    chosen_engine, chosen_device = check_engine(engine), check_device(device)
    loaded = load_model(model)
    doubt = keep_doubtful or loaded.unit != ENTHALPY_UNIT
    request = CalibrationRequest(
        data=tuple(data),
        protocol=Protocol(
            target=target or loaded.card.data.target,
            excluded_formulas=read_formulas(exclude_formulas) if exclude_formulas else frozenset(),
            drop_missing_energies=drop_missing_energies,
            cross_check_tolerance=None if doubt else CROSS_CHECK_TOLERANCE,
        ),
        features=features,
        engine=chosen_engine,
        device=chosen_device,
        seed=seed,
    )
    with (
        interruptible("the model is as it was"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        show_progress("sites") as [progress],
    ):
        card = calibrate_model(
            loaded,
            request,
            Path(work),
            run=run_in_parallel(workers, scheduler),
            progress=progress,
            say=say,
            overwrite=overwrite,
        )
    calibration = card.calibration
    assert calibration is not None
    print_reliability(
        (*calibration.reliabilities, *card.held_out_reliability),
        f"intervals, widths in {loaded.unit}",
    )
    say(
        f"{loaded.path}: {calibration.level:.0%} intervals, fitted on {calibration.rows:,} "
        f"compounds of {calibration.groups:,} chemical systems; each row above was judged by "
        "intervals that were fitted without its chemical system"
    )
    if loaded.card.evaluation is not None:
        say("measure them on the evaluation set with: screening evaluate MODEL DATA --update-card")
