"""The command that trains models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from screening.command_parts import (
    DeviceOption,
    SchedulerOption,
    check_device,
    interruptible,
    run_in_parallel,
    say,
    show_progress,
)
from screening.commands_campaign import complete_from
from screening.commands_models import print_scores
from screening.commands_structures import EngineOption, check_engine
from screening.errors import ConfigurationError

if TYPE_CHECKING:
    from screening.model_card import Source

RECIPES = ("default", "paper")


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a training recipe."""
    return complete_from(RECIPES, incomplete)


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(train)


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
    print_scores(card.held_out, "held-out rows")
    say(f"{out}: finished")


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
