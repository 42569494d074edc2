"""Commands about structures: featurize, predict."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from screening.command_parts import (
    REFERENCE_FILES,
    DeviceOption,
    FunctionalOption,
    PrecisionOption,
    SchedulerOption,
    StableWithinOption,
    WorkersOption,
    check_device,
    check_energy,
    check_output,
    check_precision,
    count_structures,
    interruptible,
    print_table,
    run_in_parallel,
    say,
    show_progress,
)
from screening.completion import complete_from, complete_model
from screening.errors import ConfigurationError, InputDataError, suggest
from screening.features import Engine

if TYPE_CHECKING:
    from screening.crystal import Crystal
    from screening.feature_tables import ParallelMap
    from screening.features.table import Failure
    from screening.references import References

ENGINES: tuple[Engine, ...] = get_args(Engine)


TERMINAL_ROWS = 20


def complete_engine(incomplete: str) -> list[str]:
    """Complete a featurizer."""
    return complete_from(ENGINES, incomplete)


Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILES...",
        help="CIF, POSCAR, extxyz or Parquet files of structures, or folders of them.",
        show_default=False,
    ),
]


EngineOption = Annotated[
    str,
    typer.Option(
        help="fast (Voro++ and array arithmetic) or matminer (the reference, slow).",
        autocompletion=complete_engine,
    ),
]


ReferencesOption = Annotated[
    Path | None,
    typer.Option(
        "--references",
        "-r",
        metavar="FILE",
        help=f"Reference phases that the structures compete with: {REFERENCE_FILES}.",
        show_default="no energies above hull",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    app.command()(featurize)
    app.command()(predict)


def featurize(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write: id and 271 columns.")],
    engine: EngineOption = "fast",
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Compute the 271 features of structures.

    What cannot be used goes to OUT's .failures.parquet with its reason; rows with filled-in
    element properties are listed in .imputed.parquet. A killed run continues on the same command.
    """
    from screening.feature_tables import featurize_structures, write_features

    chosen = check_engine(engine)
    check_output(out, overwrite, ".parquet")
    crystals, unread = read_inputs(inputs, out)
    parts = out.with_name(f".{out.name}.parts")
    with interruptible("the same command goes on from here"), show_progress("sites") as [progress]:
        features = featurize_structures(
            crystals,
            parts,
            engine=chosen,
            run=run_in_parallel(workers, scheduler),
            progress=progress,
        )
    refuse_if_none(features.ids, [*unread, *features.failures], out)
    write_features(features, out, unread)
    shutil.rmtree(parts, ignore_errors=True)
    say(f"{out}: {count_structures(len(features.ids))}")
    say_failures([*unread, *features.failures], out)


def predict(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    model: Annotated[
        str, typer.Option(help="Bundled model or model folder.", autocompletion=complete_model)
    ] = "default",
    references: ReferencesOption = None,
    functional: FunctionalOption = None,
    stable_within: StableWithinOption = None,
    engine: EngineOption = "fast",
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: Annotated[
        int,
        typer.Option(min=0, help="Worker processes for the features; 0 computes in this process."),
    ] = 0,
    scheduler: SchedulerOption = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to show on the terminal.")] = TERMINAL_ROWS,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Predict the formation enthalpy of your own structures, and how stable they are.

    Energies above hull need --references: competing phases that the model itself predicts are
    offered for campaigns only. A model of classes predicts the likeliest class and the probability
    of each instead. What cannot be used goes to OUT's .failures.parquet with its reason.
    """
    from screening.model_card import read_card
    from screening.model_library import NOT_CALIBRATED, find_model, load_enthalpy_model
    from screening.phases import MOST_ELEMENTS
    from screening.predict import (
        count_left_out,
        describe_stability,
        predict_structures,
        show_predictions,
        write_predictions,
    )
    from screening.settings import DEFAULT_STABLE_WITHIN

    chosen = check_engine(engine)
    check_output(out, overwrite, ".parquet")
    check_precision(precision, check_device(device))
    if read_card(find_model(model)).classification is not None:
        _refuse_hull(references, functional, stable_within)
        _predict_classes(
            inputs, out, model, chosen, device, precision, run_in_parallel(workers, scheduler), top
        )
        return
    phases = _open_references(references, functional, stable_within)
    crystals, unread = read_inputs(inputs, out)
    loaded = load_enthalpy_model(model)
    if phases is not None:
        numbers = {int(number) for crystal in crystals for number in crystal.numbers}
        for remark in phases.list_remarks(numbers, loaded.card.data.functional):
            say(remark)
    with (
        interruptible("nothing was written"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        show_progress("sites") as [progress],
    ):
        table, failures = predict_structures(
            loaded,
            crystals,
            Path(work),
            references=phases,
            stable_within=DEFAULT_STABLE_WITHIN if stable_within is None else stable_within,
            engine=chosen,
            device=device,
            precision=precision,
            run=run_in_parallel(workers, scheduler),
            progress=progress,
        )
    everything = [*unread, *failures]
    refuse_if_none(range(table.num_rows), everything, out)
    write_predictions(table, everything, out)
    shown = show_predictions(table, top)
    if len(shown):
        part = len(shown) < table.num_rows
        first = f"first {len(shown):,} of {table.num_rows:,}, in the order of the input"
        titles = [first if part else None, describe_stability(table)]
        rows = [list(shown.columns), *shown.astype(str).to_numpy().tolist()]
        print_table("; ".join(filter(None, titles)), rows)
    say(f"{out}: {count_structures(table.num_rows)}, model {loaded.card.name}")
    if loaded.uncertainty is None:
        say(f"model {loaded.card.name}: {NOT_CALIBRATED}")
    left_out = count_left_out(table)
    if left_out:
        say(
            f"{count_structures(left_out)} of more than {MOST_ELEMENTS} elements: without an "
            "energy above hull"
        )
    say_failures(everything, out)


def _predict_classes(
    inputs: Sequence[Path],
    out: Path,
    model: str,
    engine: Engine,
    device: str,
    precision: str,
    run: ParallelMap | None,
    top: int,
) -> None:
    """Predict classes of structures, write and show them."""
    from screening.columns import CLASS_PREDICTIONS
    from screening.model_library import join_classes, load_classifier
    from screening.predict import classify_structures, show_classes, write_predictions

    crystals, unread = read_inputs(inputs, out)
    loaded = load_classifier(model)
    with (
        interruptible("nothing was written"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        show_progress("sites") as [progress],
    ):
        table, failures = classify_structures(
            loaded,
            crystals,
            Path(work),
            engine=engine,
            device=device,
            precision=precision,
            run=run,
            progress=progress,
        )
    everything = [*unread, *failures]
    refuse_if_none(range(table.num_rows), everything, out)
    write_predictions(table, everything, out, CLASS_PREDICTIONS)
    shown = show_classes(table, top)
    if len(shown):
        title = f"{loaded.card.data.target}: {join_classes(loaded.ensemble.classes)}"
        if len(shown) < table.num_rows:
            title = (
                f"first {len(shown):,} of {table.num_rows:,}, in the order of the input; {title}"
            )
        print_table(title, [list(shown.columns), *shown.astype(str).to_numpy().tolist()])
    say(f"{out}: {count_structures(table.num_rows)}, model {loaded.card.name}")
    say_failures(everything, out)


def _refuse_hull(path: Path | None, functional: str | None, stable_within: float | None) -> None:
    """Refuse what belongs to energies above hull, which classes have none of."""
    for option, value in (
        ("--references", path),
        ("--functional", functional),
        ("--stable-within", stable_within),
    ):
        if value is not None:
            raise ConfigurationError(
                f"{option} {value} is for energies above hull, and the model predicts classes; "
                "leave it out"
            )


def _open_references(
    path: Path | None, functional: str | None, stable_within: float | None
) -> References | None:
    """Read the references; refuse what would change nothing without them."""
    if stable_within is not None:
        check_energy("--stable-within", stable_within)
    if path is not None:
        from screening.references import read_references

        return read_references(path, functional)
    for option, value in (("--functional", functional), ("--stable-within", stable_within)):
        if value is not None:
            raise ConfigurationError(
                f"{option} {value} tells nothing without references; give --references FILE or "
                f"leave {option} out"
            )
    return None


def say_failures(failures: Sequence[Failure], out: Path) -> None:
    """Say how many structures could not be used, why the first, and where all of them are."""
    from screening.feature_tables import beside

    if failures:
        first = failures[0]
        say(
            f"{count_structures(len(failures))} could not be used (the first, {first.id}: "
            f"{first.reason}); all of them are in {beside(out, 'failures')}"
        )


def read_inputs(inputs: Sequence[Path], out: Path) -> tuple[list[Crystal], list[Failure]]:
    """Read the structures of a command's input.

    Args:
        inputs: Files and folders.
        out: The output of the command.

    Returns:
        The structures, at least one, and what could not be used.

    Raises:
        InputDataError: No structure can be used.
    """
    from screening.feature_tables import beside
    from screening.structures import read_structures

    written = (out, beside(out, "failures"), beside(out, "imputed"))
    crystals, unread = read_structures(inputs, output=written, say=say)
    refuse_if_none(crystals, unread, out)
    return crystals, unread


def refuse_if_none(found: Sequence[Any], failures: Sequence[Failure], out: Path) -> None:
    """Refuse to go on without a structure, once the reasons are in the failures table.

    Args:
        found: Structures that can be used.
        failures: Those that cannot.
        out: The output of the command.

    Raises:
        InputDataError: None can be used.
    """
    if len(found):
        return
    if not failures:
        raise InputDataError("the input holds no structures. Give other files.")
    from screening.feature_tables import write_failures

    reasons = "; ".join(f"{failure.id}: {failure.reason}" for failure in failures[:3])
    more = f" (and {len(failures) - 3:,} more)" if len(failures) > 3 else ""
    raise InputDataError(
        f"no structure can be used. {reasons}{more}. Correct or replace the files. "
        f"All of them are in {write_failures(failures, out)}"
    )


def check_engine(engine: str) -> Engine:
    """Return the engine if it is one.

    Raises:
        ConfigurationError: It is misspelt.
    """
    for known in ENGINES:
        if engine == known:
            return known
    raise ConfigurationError(
        f'--engine "{engine}" is none of {", ".join(ENGINES)}{suggest(engine, ENGINES)}'
    )
