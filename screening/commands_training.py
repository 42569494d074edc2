"""Commands about the making of models: train, and the page of a model's card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.command_parts import (
    DeviceOption,
    DropMissingOption,
    ExcludeFormulasOption,
    FeatureTableOption,
    KeepDoubtfulOption,
    MaxSitesOption,
    ModelArgument,
    check_device,
    check_output,
    interruptible,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_models import print_classification, print_scores
from screening.commands_structures import EngineOption, check_engine
from screening.completion import complete_from, complete_model
from screening.errors import ConfigurationError
from screening.printing import count_things

if TYPE_CHECKING:
    from irnet import Recipe
    from irnet.ensemble import Member
    from irnet.trainee import MemberTask
    from screening.model_card import Source
    from screening.training import MemberMap

RECIPES = ("default", "paper", "brnet", "ibrnet")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "leaky_relu")
OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "rmsprop")
CROSS_ENTROPY = "cross_entropy"
"""The loss that learns classes."""

LOSSES = ("mae", "mse", CROSS_ENTROPY)
SCHEDULES = ("one-cycle", "constant", "cosine", "step", "plateau")
AVERAGINGS = ("none", "ema")
PRECISIONS = ("auto", "bf16", "fp32")

DECAYS_WEIGHTS = "adamw"
"""The one optimiser for which a recipe's weight decay is kept."""

ALL_HIDDEN = "all"
"""Value of --freeze for every layer but the output."""


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a training recipe."""
    return complete_from(RECIPES, incomplete)


def complete_activation(incomplete: str) -> list[str]:
    """Complete an activation."""
    return complete_from(ACTIVATIONS, incomplete)


def complete_optimizer(incomplete: str) -> list[str]:
    """Complete an optimiser."""
    return complete_from(OPTIMIZERS, incomplete)


def complete_loss(incomplete: str) -> list[str]:
    """Complete a loss."""
    return complete_from(LOSSES, incomplete)


def complete_schedule(incomplete: str) -> list[str]:
    """Complete a schedule of the learning rate."""
    return complete_from(SCHEDULES, incomplete)


def complete_averaging(incomplete: str) -> list[str]:
    """Complete a way to average weights."""
    return complete_from(AVERAGINGS, incomplete)


def complete_precision(incomplete: str) -> list[str]:
    """Complete a precision of the matrix products."""
    return complete_from(PRECISIONS, incomplete)


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(train)


def register_page(models: typer.Typer) -> None:
    """Add the page of a card to the commands about models.

    Args:
        models: The group.
    """
    models.command("page")(write_page)


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
    target: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Column to learn: numbers or, with --loss cross_entropy, classes: texts, truth "
            "values, or numbers with --split-at.",
        ),
    ] = "formation_energy_per_atom",
    unit: Annotated[
        str | None,
        typer.Option(
            help="Unit of a target of numbers. A model of another unit than eV/atom is none of "
            "formation enthalpies, and its rows are not checked against dE_matbench.",
            show_default="eV/atom",
        ),
    ] = None,
    split_at: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Cut a target of numbers into two classes, at most X and above X; with --loss "
            "cross_entropy.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of sample weights for the networks."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Training recipe: default, paper, brnet or ibrnet.",
            autocompletion=complete_recipe,
        ),
    ] = "default",
    architecture: Annotated[
        str | None,
        typer.Option(
            help="irnet-17, irnet-24, irnet-48, plain-17, srnet-17, ..., brnet, or a string such "
            "as 1024BARx4-512BARx3-1.",
            show_default="the recipe's",
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="Activation of the hidden layers: relu, tanh, sigmoid or leaky_relu.",
            show_default="the recipe's",
            autocompletion=complete_activation,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="What is made small: mae or mse of a number, or cross_entropy of classes.",
            show_default="the recipe's",
            autocompletion=complete_loss,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw, adam, sgd, momentum or rmsprop; all but adamw decay no weights.",
            show_default="the recipe's",
            autocompletion=complete_optimizer,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs.", show_default="the recipe's")
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Bundled model or model folder whose networks the new ones begin as.",
            autocompletion=complete_model,
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            metavar="N|all",
            help="Layers, counted from the input, that keep the weights of --init-from; all: every "
            "one but the output.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="How the learning rate moves: one-cycle, constant, cosine, step or plateau.",
            show_default="the recipe's",
            autocompletion=complete_schedule,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Rows per step.", show_default="the recipe's")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs without a better validation error after which a network stops.",
            show_default="the recipe's",
        ),
    ] = None,
    weight_averaging: Annotated[
        str | None,
        typer.Option(
            help="Average of the weights that is kept: none or ema.",
            show_default="the recipe's",
            autocompletion=complete_averaging,
        ),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            help="Share of the outputs dropped wherever the architecture has a D, which it must.",
            show_default="the recipe's",
        ),
    ] = None,
    input_noise: Annotated[
        float | None,
        typer.Option(
            help="Deviation of the noise added to the scaled features.",
            show_default="the recipe's",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Matrix products in training: auto, bf16 or fp32.",
            show_default="the recipe's",
            autocompletion=complete_precision,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any other field of the recipe, such as weight_decay=0.1 or clip_sigma=none; "
            "repeatable.",
        ),
    ] = None,
    members: Annotated[int, typer.Option(min=1, help="Networks of the ensemble.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of splits, networks and forest.")] = 0,
    device: DeviceOption = "auto",
    holdout: Annotated[
        float,
        typer.Option(help="Share of the formulas held out for the metrics; 0 trains on all."),
    ] = 0.1,
    exclude_formulas: ExcludeFormulasOption = None,
    max_sites: MaxSitesOption = None,
    drop_missing_energies: DropMissingOption = False,
    keep_doubtful: KeepDoubtfulOption = False,
    forest: Annotated[bool, typer.Option(help="Train a Random Forest beside the networks.")] = True,
    forest_like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Bundled model or model folder whose forest's hyperparameters are taken, instead "
            "of a search.",
            autocompletion=complete_model,
        ),
    ] = None,
    features: FeatureTableOption = None,
    engine: EngineOption = "fast",
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TOML with tables called source (what, citation, licence), for the card.",
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
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A running Dask scheduler, instead of local workers: each of its workers trains "
            "one network at a time. All must see OUT under the same path.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Remove the model or training in OUT and begin anew, once DATA are found usable."
        ),
    ] = False,
) -> None:
    """Train an ensemble of IRNets and a Random Forest, on numbers or on classes.

    A model of classes is for predict alone; its Random Forest is measured and not kept. A killed
    training continues on the same command; another training's folder is refused.
    """
    from irnet.recipe import find_recipe
    from screening.dataset import CROSS_CHECK_TOLERANCE, Protocol, read_formulas
    from screening.model_library import ENTHALPY_UNIT
    from screening.settings import count_cores
    from screening.training import (
        Reporter,
        TrainingRequest,
        read_layers,
        train_model,
    )

    if forest_like is not None and not forest:
        raise ConfigurationError(
            f"--forest-like {forest_like} is for a Random Forest, and --no-forest trains none; "
            "leave one of them out"
        )
    given: dict[str, Any] = {
        "architecture": architecture,
        "activation": activation,
        "loss": loss,
        "optimizer": optimizer,
        "epochs": epochs,
        "frozen_layers": None if freeze is None else _frozen_layers(freeze),
        "schedule": schedule,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "patience": patience,
        "weight_averaging": weight_averaging,
        "dropout": dropout,
        "input_noise": input_noise,
        "precision": precision,
    }
    given = {key: value for key, value in given.items() if value is not None}
    named = {*given, *(setting.partition("=")[0].strip() for setting in settings or ())}
    if init_from is not None:
        layers = read_layers(init_from)
        given |= {name: value for name, value in layers.items() if name not in named}
    chosen = change_recipe(find_recipe(recipe), given, settings or ())
    if init_from is None and chosen.frozen_layers:
        raise ConfigurationError("--freeze keeps layers of another model: name it with --init-from")
    if "dropout" in named and chosen.dropout and not chosen.layers.has_dropout:
        raise ConfigurationError(
            f"dropout {chosen.dropout:g} would drop nothing: the architecture "
            f"{chosen.architecture} has no D; give one that has, such as 1024BARDx4-512BARDx3-1"
        )
    classes = chosen.loss == CROSS_ENTROPY
    _check_target_options(classes, unit, split_at)
    unit = unit or ENTHALPY_UNIT
    protocol = Protocol(
        target=target,
        excluded_formulas=read_formulas(exclude_formulas) if exclude_formulas else frozenset(),
        max_sites=max_sites,
        drop_missing_energies=drop_missing_energies,
        cross_check_tolerance=(
            None if keep_doubtful or classes or unit != ENTHALPY_UNIT else CROSS_CHECK_TOLERANCE
        ),
        weights=weights,
        classes=classes,
        split_at=split_at,
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
        unit=unit,
        init_from=init_from,
        licence=licence,
        sources=read_sources(sources) if sources else (),
    )
    with (
        interruptible("the same command, without --overwrite, goes on from here"),
        show_progress("sites", "epochs") as [featurized, trained],
    ):
        card = train_model(
            request,
            run=run_in_parallel(workers, scheduler),
            run_members=None if scheduler is None else train_on_cluster(scheduler),
            reporter=Reporter(say, featurized, trained),
            overwrite=overwrite,
        )
    print_scores(card.held_out, "held-out rows", unit)
    print_classification(card.classification)
    say(f"{out}: finished")


def _check_target_options(classes: bool, unit: str | None, split_at: float | None) -> None:
    """Refuse options that mean nothing for what is learnt.

    Raises:
        ConfigurationError: Classes have a unit, numbers are to be cut, or the cut is no number.
    """
    if classes and unit is not None:
        raise ConfigurationError(
            f"--unit {unit} is for numbers, and --loss {CROSS_ENTROPY} learns classes; leave it out"
        )
    if split_at is None:
        return
    if not classes:
        raise ConfigurationError(
            f"--split-at {split_at:g} makes classes of numbers; they are learnt with --loss "
            f"{CROSS_ENTROPY}"
        )
    if not isfinite(split_at):
        raise ConfigurationError(f"--split-at {split_at} is no number to cut at; give a finite one")


def write_page(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="HTML file to write.")],
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Write a model's card as one HTML page, with learning curves and reliability plots.

    Where the model's folder still has its held-out rows, they are predicted for the distribution of
    the errors.
    """
    from screening.card_page import page_of
    from screening.columns import written_atomically
    from screening.model_library import find_model

    check_output(out, overwrite)
    page = page_of(find_model(model), check_device(device))
    with written_atomically(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"{out}: {len(page.encode()) / 1e3:,.0f} kB")


def change_recipe(recipe: Recipe, given: Mapping[str, Any], settings: Sequence[str]) -> Recipe:
    """Change fields of a recipe as the command line says.

    Args:
        recipe: Where to begin.
        given: Fields that have an option of their own.
        settings: Further ones, each ``field=value``; ``none`` stands for no value.

    Returns:
        The changed recipe.

    Raises:
        ConfigurationError: A setting is no ``field=value``, its value is of another type than the
            field, or a field is set twice.
        irnet.errors.RecipeError: There is no such field, or it cannot have this value.
    """
    types = {field.name: str(field.type) for field in fields(recipe)}
    changes = dict(given)
    for entry in settings:
        name, separator, text = (part.strip() for part in entry.partition("="))
        if not separator or not name or not text:
            raise ConfigurationError(
                f'--set "{entry}" is no field=value; write for example --set weight_decay=0.1'
            )
        if name in changes:
            raise ConfigurationError(f"the recipe's {name} is set twice; leave one of them out")
        changes[name] = _parse_value(name, text, types.get(name, "str"))
    if changes.get("optimizer", DECAYS_WEIGHTS) != DECAYS_WEIGHTS:
        changes.setdefault("weight_decay", 0.0)
    return recipe.with_changes(**changes)


def _parse_value(name: str, text: str, kind: str) -> object:
    """Read a value of a field whose annotation is like ``int``, ``bool`` or ``float | None``."""
    if "None" in kind and text.casefold() == "none":
        return None
    base = kind.partition("|")[0].strip()
    try:
        if base == "bool":
            return {"true": True, "false": False}[text.casefold()]
        if base == "int":
            return int(text)
        if base == "float":
            return float(text)
    except (KeyError, ValueError) as error:
        expected = {"bool": "true or false", "int": "a whole number", "float": "a number"}[base]
        optional = ", or none" if "None" in kind else ""
        raise ConfigurationError(f'--set {name}="{text}" must be {expected}{optional}') from error
    return text


def _frozen_layers(text: str) -> int:
    """Number of frozen layers, -1 for all but the output."""
    if text.casefold() == ALL_HIDDEN:
        return -1
    if not text.isdecimal():
        raise ConfigurationError(f'--freeze "{text}" is neither a number of layers nor all')
    return int(text)


def train_on_cluster(scheduler: str) -> MemberMap:
    """Return what trains members on the workers of a running scheduler.

    Args:
        scheduler: Its address.
    """

    def run(function: Callable[[MemberTask], Member], tasks: Sequence[MemberTask]) -> list[Member]:
        from screening.cluster.client import connect, probe_workers
        from screening.cluster.members import map_members
        from screening.cluster_settings import ClusterSettings, replace_place

        with connect(replace_place(ClusterSettings(), scheduler=scheduler), say) as client:
            folder = tasks[0].folder.parent
            folder.mkdir(parents=True, exist_ok=True)
            probe_workers(client, folder, say)
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            networks = count_things(len(tasks), "network")
            say(f"{networks} on {count_things(workers, 'worker')}; checkpoints go to {folder}")
            return map_members(client, function, tasks)

    return run


def _forest_parameters(model: str) -> dict[str, Any]:
    """Return the hyperparameters of a model's forest."""
    from screening.errors import ModelError
    from screening.model_card import read_card
    from screening.model_library import find_model

    parameters = read_card(find_model(model)).training.forest
    if parameters is None:
        raise ModelError(f"{model} has no Random Forest; leave --forest-like out to search")
    return parameters


def read_sources(path: Path) -> tuple[Source, ...]:
    """Read where data comes from: a TOML with [[source]] what, citation and licence.

    Raises:
        ConfigurationError: The file is missing, no TOML, or holds something else.
    """
    import tomllib

    from pydantic import ValidationError

    from screening.model_card import Source

    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tables.get("source"), list) or len(tables) > 1:
            raise ConfigurationError(
                f"{path} must hold tables called [[source]] and nothing else; it has "
                f"{', '.join(tables) or 'nothing'}"
            )
        return tuple(Source.model_validate(entry) for entry in tables["source"])
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{path}: each [[source]] has exactly what, citation and licence "
            f"({error.errors()[0]['msg']})"
        ) from error
