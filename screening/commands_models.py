"""Commands about models: train, evaluate, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.command_parts import (
    DeviceOption,
    ModelArgument,
    SchedulerOption,
    check_device,
    check_output,
    interruptible,
    print_table,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_campaign import complete_from
from screening.commands_structures import EngineOption, check_engine
from screening.errors import ConfigurationError

if TYPE_CHECKING:
    from screening.model_card import Card, Score, Source

RECIPES = ("default", "paper")

SHORT_HASH = 12
"""Hexadecimal digits of a file's hash on the terminal; the card has all 64."""


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a training recipe."""
    return complete_from(RECIPES, incomplete)


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    app.command()(train)
    app.command()(evaluate)
    models = typer.Typer(
        help="Bundled models with their sources and errors.", invoke_without_command=True
    )
    models.callback()(list_bundled)
    models.command("show")(show_model)
    models.command("bundle")(bundle)
    app.add_typer(models, name="models")


def train(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            show_default=False,
            help="Parquet files of structures, or of features with id, formula and energy.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    target: Annotated[str, typer.Option(help="Energy column, eV/atom.")] = (
        "formation_energy_per_atom"
    ),
    recipe: Annotated[
        str,
        typer.Option(help="Training recipe: default or paper.", autocompletion=complete_recipe),
    ] = "default",
    architecture: Annotated[
        str | None,
        typer.Option(
            help="irnet-17, irnet-24, irnet-48, plain-17, srnet-17, ... or a string such as "
            "1024BARx4-512BARx3-1.",
            show_default="the recipe's",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs.", show_default="the recipe's")
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="Networks of the ensemble.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of splits, networks and forest.")] = 0,
    device: DeviceOption = "auto",
    holdout: Annotated[
        float,
        typer.Option(help="Share of the formulas held out for the metrics; 0 trains on all."),
    ] = 0.1,
    exclude_formulas: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Formulas to keep out of training: Parquet or CSV with a formula column, or text.",
        ),
    ] = None,
    max_sites: Annotated[
        int | None, typer.Option(min=1, help="Leave out larger structures.")
    ] = None,
    drop_missing_energies: Annotated[
        bool, typer.Option(help="Count and drop rows without energy instead of refusing them.")
    ] = False,
    keep_doubtful: Annotated[
        bool,
        typer.Option(help="Keep rows whose dE_matbench says that their energy is doubtful."),
    ] = False,
    forest: Annotated[bool, typer.Option(help="Train a Random Forest beside the networks.")] = True,
    forest_like: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Model whose forest's hyperparameters are taken, instead of a search.",
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Feature table of these structures, from featurize."),
    ] = None,
    engine: EngineOption = "fast",
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML with [[source]] what, citation, licence, for the card."
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the card.")] = (
        "not stated"
    ),
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Worker processes for the features, cores of the forest and, on the CPU, most "
            "networks trained side by side; 0 computes the features in this process and trains "
            "one network after the other and the forest on one core.",
            show_default="one per core",
        ),
    ] = None,
    scheduler: SchedulerOption = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Remove the model or training in OUT and begin anew, once DATA are found usable."
        ),
    ] = False,
) -> None:
    """Train an ensemble of IRNets and a Random Forest.

    A killed training continues on the same command; another training's folder is refused.
    """
    from irnet.recipe import find_recipe
    from screening.dataset import CROSS_CHECK_TOLERANCE, Protocol, read_formulas
    from screening.settings import count_cores
    from screening.training import Reporter, TrainingRequest, train_model

    changes: dict[str, Any] = {"architecture": architecture, "epochs": epochs}
    chosen = find_recipe(recipe).with_changes(
        **{key: value for key, value in changes.items() if value is not None}
    )
    protocol = Protocol(
        target=target,
        excluded_formulas=read_formulas(exclude_formulas) if exclude_formulas else frozenset(),
        max_sites=max_sites,
        drop_missing_energies=drop_missing_energies,
        cross_check_tolerance=None if keep_doubtful else CROSS_CHECK_TOLERANCE,
    )
    request = TrainingRequest(
        data=tuple(data),
        out=out,
        protocol=protocol,
        recipe=chosen,
        members=members,
        seed=seed,
        holdout=holdout,
        forest=forest,
        forest_parameters=_forest_parameters(forest_like) if forest_like else None,
        features=features,
        engine=check_engine(engine),
        device=check_device(device),
        jobs=count_cores() if workers is None else max(1, workers),
        licence=licence,
        sources=_read_sources(sources) if sources else (),
    )
    with (
        interruptible("the same command, without --overwrite, goes on from here"),
        show_progress("sites", "epochs") as [featurized, trained],
    ):
        card = train_model(
            request,
            run=run_in_parallel(workers, scheduler),
            reporter=Reporter(say, featurized, trained),
            overwrite=overwrite,
        )
    _print_scores(card.held_out, "held-out rows")
    say(f"{out}: finished")


def evaluate(
    model: ModelArgument,
    data: Annotated[
        Path,
        typer.Argument(
            help="Parquet table of structures with an energy column; a kind column (B2, L1_0, "
            "perov_Pnma, perov_cubic) names their prototypes."
        ),
    ],
    target: Annotated[str, typer.Option(help="Energy column, eV/atom.")] = (
        "formation_energy_per_atom"
    ),
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
    from screening.model_library import load_model

    if out is not None:
        check_output(out, overwrite)
    check_device(device)
    loaded = load_model(model)
    compounds = read_evaluation_set(data, target)
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
        rows = tabulate(evaluation, "relaxed" if geometry == "relaxed" else "ideal")
        if len(rows) > 1:
            as_given = compounds.kinds is None
            print_table(f"{'as given' if as_given else f'{geometry} geometry'}, eV/atom", rows)
    if out is not None:
        with written_atomically(out) as temporary:
            temporary.write_text(evaluation.model_dump_json(indent=1) + "\n")
    if update_card:
        write_card(loaded.card.model_copy(update={"evaluation": evaluation}), loaded.path)
        say(f"{loaded.path}: card updated")


def list_bundled(context: typer.Context) -> None:
    """List the bundled models with their sources and errors."""
    from screening.model_card import read_card
    from screening.model_library import list_models, model_files

    if context.invoked_subcommand is not None:
        return
    folders = list_models()
    if not folders:
        say("no model is bundled; train one with: screening train DATA --out MODEL")
    for folder in folders:
        size = sum(path.stat().st_size for path in model_files(folder)) / 1e6
        _print_card(read_card(folder), f"{size:.1f} MB")


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
    from screening.model_library import find_model, model_files

    folder = find_model(model)
    card = read_card(folder)
    if json:
        typer.echo(card.model_dump_json(indent=1))
        return
    size = sum(path.stat().st_size for path in model_files(folder)) / 1e6
    _print_card(card, f"{size:.1f} MB")
    _print_making(card)
    _print_scores(card.held_out, "held-out rows")
    if card.evaluation is not None:
        from screening.evaluation import tabulate

        scheme = None if schemes else "all"
        print_table("ideal geometry, eV/atom", tabulate(card.evaluation, "ideal", scheme))
        print_table("relaxed geometry, eV/atom", tabulate(card.evaluation, "relaxed", scheme))
    for limit in card.limits:
        typer.echo(f"- {limit}")


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
    overwrite: Annotated[bool, typer.Option(help="Replace the destination.")] = False,
) -> None:
    """Make a model small: 8-bit weights and a pruned forest, with the cost in error measured."""
    from screening.compression import bundle_model

    card = bundle_model(
        source,
        destination,
        twin=twin,
        trees=trees,
        nodes=nodes,
        overwrite=overwrite,
    )
    cost = card.compression
    assert cost is not None
    say(
        f"{destination}: {cost.bytes_after / 1e6:.1f} MB (was {cost.bytes_before / 1e6:.1f}); on "
        f"{cost.rows:,} rows the networks' MAE went from {cost.irnet_mae_before:.4f} to "
        f"{cost.irnet_mae_after:.4f} eV/atom"
        + (
            f", the forest's from {cost.random_forest_mae_before:.4f} to "
            f"{cost.random_forest_mae_after:.4f}"
            if cost.random_forest_mae_before is not None
            else ""
        )
    )


def _forest_parameters(folder: Path) -> dict[str, Any]:
    """Return the hyperparameters of a model's forest."""
    from screening.errors import ModelError
    from screening.model_card import read_card

    parameters = read_card(folder).training.forest
    if parameters is None:
        raise ModelError(f"{folder} has no Random Forest; leave --forest-like out to search")
    return parameters


def _read_sources(path: Path) -> tuple[Source, ...]:
    import tomllib

    from pydantic import ValidationError

    from screening.model_card import Source

    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("source", [])
        return tuple(Source.model_validate(entry) for entry in entries)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{path}: each [[source]] has exactly what, citation and licence "
            f"({error.errors()[0]['msg']})"
        ) from error


def _print_scores(scores: Sequence[Score], title: str) -> None:
    if not scores:
        return
    rows = [["predictor", "n", "MAE", "95 % interval", "bias", "rank corr."]]
    rows += [
        [
            score.predictor,
            f"{score.n:,}",
            f"{score.mae:.4f}",
            score.interval,
            f"{score.bias:+.4f}",
            "" if score.spearman is None else f"{score.spearman:.3f}",
        ]
        for score in scores
    ]
    print_table(f"{title}, eV/atom", rows)


def _print_making(card: Card) -> None:
    """Print how a model was made: recipe, time, data files, forest, and what compression cost."""
    training, cost = card.training, card.compression
    recipe = training.recipe
    seconds = ", ".join(f"{stage} {value:,.0f} s" for stage, value in training.seconds.items())
    files = ", ".join(f"{file.name} {file.sha256[:SHORT_HASH]}" for file in card.data.files)
    lines = [
        f"recipe: {recipe.get('name', 'unnamed')}, {recipe.get('epochs', '?')} epochs, "
        f"{training.members} members, seed {training.seed}; trained {training.created}",
        f"time: {seconds}; machine: {training.machine}",
        f"data files (sha256): {files}",
    ]
    if training.forest is not None:
        settings = ", ".join(f"{name} {value}" for name, value in training.forest.items())
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
            f"{cost.irnet_mae_before:.4f} to {cost.irnet_mae_after:.4f}{forest} eV/atom; largest "
            f"change of the networks {cost.largest_irnet_change:.4f} eV/atom"
        )
    for line in lines:
        typer.echo(fill(line, 100, initial_indent="  ", subsequent_indent="    "))


def _print_card(card: Card, size: str) -> None:
    score = card.find_score("held_out")
    typer.echo(f"{card.name}  ({size}, {card.training.members} × {card.training.architecture})")
    typer.echo(f"  {card.description}")
    typer.echo(
        f"  trained on {card.data.rows:,} structures, {card.data.formulas:,} compositions, "
        f"{len(card.data.elements)} elements; licence: {card.licence}"
    )
    if score is not None:
        typer.echo(f"  held-out MAE {score.mae:.4f} eV/atom (n = {score.n:,})")
    if card.measured_on_twin:
        typer.echo(f"  errors are those of {card.measured_on_twin}")
    for source in card.data.sources:
        typer.echo(f"  {source.what}: {source.citation} ({source.licence})")
