"""Commands about models: evaluate, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import (
    DeviceOption,
    ModelArgument,
    ModelTargetOption,
    check_device,
    check_output,
    print_table,
    say,
)
from screening.errors import ConfigurationError
from screening.printing import count_things, echo

if TYPE_CHECKING:
    from screening.evaluation import Geometry
    from screening.model_card import Card, ClassificationCard, Reliability, Score

GEOMETRIES: tuple[Geometry, ...] = ("ideal", "relaxed")

SHORT_HASH = 12
"""Hexadecimal digits of a file's hash on the terminal; the card has all 64."""


def register(app: typer.Typer) -> typer.Typer:
    """Add the commands to the program.

    Args:
        app: The program.

    Returns:
        The group `models`, for further commands about a model.
    """
    app.command()(evaluate)
    models = typer.Typer(
        help="Bundled models with their sources and errors.", invoke_without_command=True
    )
    models.callback()(list_unless_invoked)
    models.command("list")(list_bundled)
    models.command("show")(show_model)
    models.command("bundle")(bundle)
    app.add_typer(models, name="models")
    return models


def evaluate(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Argument(
            help="Parquet table of structures with an energy column; a kind column (B2, L1_0, "
            "perov_Pnma, perov_cubic) names their prototypes."
        ),
    ],
    target: ModelTargetOption = None,
    device: DeviceOption = "auto",
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Store the result in the model's card.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="JSON file to write the scores to.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Measure a model on compounds with known energies.

    With a kind column: per prototype, on relaxed and on ideal cells (the paper's Table 5). Without
    one: all rows as one group, on the structures as they are.
    """
    from screening.columns import written_atomically
    from screening.evaluation import evaluate_model, read_evaluation_set, tabulate
    from screening.model_card import write_card
    from screening.model_library import ENTHALPY_UNIT, load_model

    if out is not None:
        check_output(out, overwrite)
    check_device(device)
    loaded = load_model(model)
    compounds = read_evaluation_set(data, target or loaded.card.data.target)
    if compounds.kinds is None:
        if update_card:
            raise ConfigurationError(
                f"{data} has no kind column, and a card keeps errors per prototype; leave out "
                "--update-card, or name the prototypes"
            )
        say(
            f"{data} has no kind column: its {len(compounds.target):,} rows are scored as one "
            "group, on their own geometry only"
        )
    evaluation = evaluate_model(loaded, compounds, device=device)
    if evaluation.formulas_seen:
        say(
            f"warning: the model was trained on the formulas of {evaluation.formulas_seen:,} of "
            f"these {evaluation.data.rows:,} compounds; keep them out of training with "
            "--exclude-formulas"
        )
    for geometry in ("relaxed", "ideal"):
        shown: Geometry = "relaxed" if geometry == "relaxed" else "ideal"
        rows = tabulate(evaluation, shown, paper=loaded.unit == ENTHALPY_UNIT)
        if len(rows) > 1:
            as_given = compounds.kinds is None
            where = "as given" if as_given else f"{geometry} geometry"
            print_table(f"{where}, {loaded.unit}", rows)
    print_reliability(evaluation.reliabilities, f"intervals, widths in {loaded.unit}")
    if out is not None:
        with written_atomically(out) as temporary:
            temporary.write_text(evaluation.model_dump_json(indent=1) + "\n")
    if update_card:
        write_card(loaded.card.model_copy(update={"evaluation": evaluation}), loaded.path)
        say(f"{loaded.path}: card updated")


def list_unless_invoked(context: typer.Context) -> None:
    """List the bundled models with their sources and errors."""
    if context.invoked_subcommand is None:
        list_bundled()


def list_bundled() -> None:
    """List the bundled models with their sources and errors, as `screening models` alone does."""
    from screening.model_card import read_card
    from screening.model_library import list_models, model_files, read_unit

    folders = list_models()
    if not folders:
        say("no model is bundled; train one with: screening train DATA --out MODEL")
    for folder in folders:
        size = sum(path.stat().st_size for path in model_files(folder)) / 1e6
        _print_card(read_card(folder), f"{size:.1f} MB", read_unit(folder))


def show_model(
    model: ModelArgument = "default",
    json: Annotated[bool, typer.Option("--json", help="Print the whole card as JSON.")] = False,
    schemes: Annotated[
        bool,
        typer.Option("--schemes", help="Show the errors per energy correction of the labels too."),
    ] = False,
) -> None:
    """Show the card of a model."""
    from screening.model_card import read_card
    from screening.model_library import ENTHALPY_UNIT, find_model, model_files, read_unit

    folder = find_model(model)
    card = read_card(folder)
    if json:
        echo(card.model_dump_json(indent=1))
        return
    size = sum(path.stat().st_size for path in model_files(folder)) / 1e6
    unit = read_unit(folder)
    _print_card(card, f"{size:.1f} MB", unit)
    _print_making(card, unit)
    print_scores(card.held_out, "held-out rows", unit)
    print_classification(card.classification)
    measured = {"evaluation set": card.evaluation, "cross-validation": card.cross_validation}
    found = {name: evaluation for name, evaluation in measured.items() if evaluation is not None}
    for name, evaluation in found.items():
        from screening.evaluation import tabulate

        scheme = None if schemes else "all"
        for geometry in GEOMETRIES:
            rows = tabulate(evaluation, geometry, scheme, paper=unit == ENTHALPY_UNIT)
            if len(rows) > 1:
                print_table(f"{name}, {geometry} geometry, {unit}", rows)
    if card.calibration is not None:
        own = (*card.calibration.reliabilities, *card.held_out_reliability)
        print_reliability(own, f"intervals, widths in {unit}")
        for name, evaluation in found.items():
            print_reliability(
                [each for each in evaluation.reliabilities if schemes or each.scheme == "all"],
                f"intervals, {name}, widths in {unit}",
            )
    for limit in card.limits:
        echo(f"- {limit}")


def bundle(
    source: Annotated[Path, typer.Argument(help="Model folder that screening train wrote.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write the small model to.")],
    twin: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Small model of the same recipe whose errors go into the card, because SOURCE was "
            "trained on everything.",
        ),
    ] = None,
    trees: Annotated[
        int | None, typer.Option(min=1, help="Trees of the forest to keep.", show_default="all")
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Nodes that the pruned forest may have.")
    ] = 2_100_000,
    members: Annotated[
        int | None, typer.Option(min=1, help="Networks to keep.", show_default="all")
    ] = None,
    bits: Annotated[int, typer.Option(help="Bits of a weight: 8 or 6.")] = 8,
    overwrite: Annotated[bool, typer.Option(help="Replace the destination.")] = False,
) -> None:
    """Make a model small: rounded weights and a pruned forest, with the cost in error measured."""
    from screening.compression import bundle_model
    from screening.model_library import read_unit

    if bits not in (6, 8):
        raise ConfigurationError(f"--bits is {bits}; weights are stored in 8 or 6 bits")

    card = bundle_model(
        source,
        destination,
        twin=twin,
        trees=trees,
        nodes=nodes,
        members=members,
        weights="int8" if bits == 8 else "int6",
        overwrite=overwrite,
    )
    cost = card.compression
    assert cost is not None
    say(
        f"{destination}: {cost.bytes_after / 1e6:.1f} MB (was {cost.bytes_before / 1e6:.1f}); on "
        f"{cost.rows:,} rows the networks' MAE went from {cost.irnet_mae_before:.4f} to "
        f"{cost.irnet_mae_after:.4f} {read_unit(destination)}"
        + (
            f", the forest's from {cost.random_forest_mae_before:.4f} to "
            f"{cost.random_forest_mae_after:.4f}"
            if cost.random_forest_mae_before is not None
            else ""
        )
    )


def print_scores(scores: Sequence[Score], title: str, unit: str = "eV/atom") -> None:
    """Print the errors of each predictor as a table; nothing where there are none.

    Args:
        scores: What was measured.
        title: On what.
        unit: Unit of the errors.
    """
    if not scores:
        return
    rows = [["predictor", "n", "MAE", "95 % interval", "p90", "bias", "rank corr."]]
    rows += [
        [
            score.predictor,
            f"{score.n:,}",
            f"{score.mae:.4f}",
            score.interval,
            "" if score.p90 is None else f"{score.p90:.4f}",
            f"{score.bias:+.4f}",
            "" if score.spearman is None else f"{score.spearman:.3f}",
        ]
        for score in scores
    ]
    print_table(f"{title}, {unit}", rows)


def print_classification(card: ClassificationCard | None) -> None:
    """Print the classes of a model and how well it tells them apart; nothing where it has none.

    Args:
        card: What was measured.
    """
    if card is None:
        return
    from screening.classification import tabulate_classes, tabulate_each_class

    rows = tabulate_classes(card)
    if len(rows) > 1:
        print_table("held-out rows", rows)
    print_table("classes (AP: average precision)", tabulate_each_class(card))


def print_reliability(reliabilities: Sequence[Reliability], title: str) -> None:
    """Print how well the intervals of a model do as a table; nothing where there are none.

    Args:
        reliabilities: What was measured.
        title: On what.
    """
    from screening.evaluation import tabulate_reliability

    rows = tabulate_reliability(reliabilities)
    if len(rows) > 1:
        print_table(title, rows)


def _print_making(card: Card, unit: str) -> None:
    """Print how a model was made: recipe, time, data files, forest, and what compression cost.

    Args:
        card: The model's card.
        unit: Unit of its errors.
    """
    training, cost = card.training, card.compression
    recipe = training.recipe
    seconds = ", ".join(f"{stage} {value:,.0f} s" for stage, value in training.seconds.items())
    files = ", ".join(f"{file.name} {file.sha256[:SHORT_HASH]}" for file in card.data.files)
    lines = [
        f"recipe: {recipe.get('name', 'unnamed')}, {recipe.get('epochs', '?')} epochs, "
        f"{count_things(training.members, 'member')}, seed {training.seed}; "
        f"trained {training.created}",
        f"time: {seconds}; machine: {training.machine}",
        f"data files (sha256): {files}",
    ]
    forest_settings = training.forest
    if card.classification is not None:
        forest_settings = card.classification.forest
    if forest_settings is not None:
        settings = ", ".join(f"{name} {value}" for name, value in forest_settings.items())
        lines.append(f"forest: {settings}")
    if cost is not None:
        forest = (
            ""
            if cost.random_forest_mae_before is None
            else f", forest {cost.random_forest_mae_before:.4f} to "
            f"{cost.random_forest_mae_after:.4f}"
        )
        lines.append(
            f"compression ({cost.weights}): MAE on {cost.rows:,} {cost.measured_on}: networks "
            f"{cost.irnet_mae_before:.4f} to {cost.irnet_mae_after:.4f}{forest} {unit}; largest "
            f"change of the networks {cost.largest_irnet_change:.4f} {unit}"
        )
    for line in lines:
        echo(fill(line, 100, initial_indent="  ", subsequent_indent="    "))


def _print_card(card: Card, size: str, unit: str) -> None:
    score = card.find_score("held_out")
    echo(f"{card.name}  ({size}, {card.training.members} × {card.training.architecture})")
    echo(f"  {card.description}")
    echo(
        f"  trained on {card.data.rows:,} structures, {card.data.formulas:,} compositions, "
        f"{len(card.data.elements)} elements; licence: {card.licence}"
    )
    if score is not None:
        echo(f"  held-out MAE {score.mae:.4f} {unit} (n = {score.n:,})")
    if card.classification is not None:
        from screening.classification import describe_accuracy

        accuracy = describe_accuracy(card.classification)
        if accuracy is not None:
            echo(f"  held-out {accuracy}")
    if card.calibration is not None:
        echo(
            f"  {card.calibration.level:.0%} intervals, fitted on {card.calibration.rows:,} "
            f"compounds of {card.calibration.groups:,} chemical systems"
        )
    if card.measured_on_twin:
        echo(f"  errors are those of {card.measured_on_twin}")
    for source in card.data.sources:
        echo(f"  {source.what}: {source.citation} ({source.licence})")
