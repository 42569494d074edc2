"""Commands about models and structures: featurize, train, evaluate, predict, models."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from screening.commands_campaign import DEVICES, complete_device, complete_from, complete_model
from screening.errors import ConfigurationError, InputDataError, suggest
from screening.features import Engine

if TYPE_CHECKING:
    from rich.progress import TaskID

    from screening.crystal import Crystal
    from screening.feature_tables import ParallelMap, ProgressCall
    from screening.features.table import Failure
    from screening.model_card import Card, Score, Source

RECIPES = ("default", "paper")
ENGINES: tuple[Engine, ...] = get_args(Engine)
TERMINAL_ROWS = 20
SECONDS_BETWEEN_LINES = 10.0


def complete_engine(incomplete: str) -> list[str]:
    """Complete a featurizer."""
    return complete_from(ENGINES, incomplete)


def complete_recipe(incomplete: str) -> list[str]:
    """Complete a training recipe."""
    return complete_from(RECIPES, incomplete)


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
DeviceOption = Annotated[
    str,
    typer.Option(help="Where networks run: auto, cpu or cuda.", autocompletion=complete_device),
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
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A running Dask scheduler, instead of local workers."),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    app.command()(featurize)
    app.command()(train)
    app.command()(evaluate)
    app.command()(predict)
    models = typer.Typer(
        help="Bundled models with their sources and errors.", invoke_without_command=True
    )
    models.callback()(list_bundled)
    models.command("show")(show_model)
    models.command("bundle")(bundle)
    app.add_typer(models, name="models")


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

    chosen = _check_engine(engine)
    _check_output(out, overwrite, ".parquet")
    crystals, unread = _read_inputs(inputs, out)
    parts = out.with_name(f".{out.name}.parts")
    with _interruptible("the same command goes on from here"), _progress("sites") as [progress]:
        features = featurize_structures(
            crystals, parts, engine=chosen, run=_parallel(workers, scheduler), progress=progress
        )
    _refuse_if_none(features.ids, [*unread, *features.failures], out)
    write_features(features, out, unread)
    shutil.rmtree(parts, ignore_errors=True)
    _say(f"{out}: {len(features.ids):,} structures")
    _say_failures([*unread, *features.failures], out)


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
        engine=_check_engine(engine),
        device=_check_device(device),
        jobs=count_cores() if workers is None else max(1, workers),
        licence=licence,
        sources=_read_sources(sources) if sources else (),
    )
    with (
        _interruptible("the same command, without --overwrite, goes on from here"),
        _progress("sites", "epochs") as [featurized, trained],
    ):
        card = train_model(
            request,
            run=_parallel(workers, scheduler),
            reporter=Reporter(_say, featurized, trained),
            overwrite=overwrite,
        )
    _print_scores(card.held_out, "held-out rows")
    _say(f"{out}: finished")


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
        _check_output(out, overwrite)
    _check_device(device)
    loaded = load_model(model)
    compounds = read_evaluation_set(data, target)
    if compounds.kinds is None:
        if update_card:
            raise ConfigurationError(
                f"{data} has no kind column, and a card keeps errors per prototype; leave out "
                "--update-card, or name the prototypes"
            )
        _say(
            f"{data} has no kind column: its {len(compounds.target):,} rows are scored as one "
            "group, on their own geometry only"
        )
    evaluation = evaluate_model(loaded, compounds, device=device)
    if evaluation.formulas_seen:
        _say(
            f"warning: the model was trained on the formulas of {evaluation.formulas_seen:,} of "
            f"these {evaluation.data.rows:,} compounds; keep them out of training with "
            "--exclude-formulas"
        )
    for geometry in ("relaxed", "ideal"):
        rows = tabulate(evaluation, "relaxed" if geometry == "relaxed" else "ideal")
        if len(rows) > 1:
            _print_table(f"{geometry} geometry, eV/atom", rows)
    if out is not None:
        with written_atomically(out) as temporary:
            temporary.write_text(evaluation.model_dump_json(indent=1) + "\n")
    if update_card:
        write_card(loaded.card.model_copy(update={"evaluation": evaluation}), loaded.path)
        _say(f"{loaded.path}: card updated")


def predict(
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    model: Annotated[
        str, typer.Option(help="Bundled model or model folder.", autocompletion=complete_model)
    ] = "default",
    engine: EngineOption = "fast",
    device: DeviceOption = "auto",
    workers: Annotated[
        int,
        typer.Option(min=0, help="Worker processes for the features; 0 computes in this process."),
    ] = 0,
    scheduler: SchedulerOption = None,
    top: Annotated[int, typer.Option(min=0, help="Rows to show on the terminal.")] = TERMINAL_ROWS,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
) -> None:
    """Predict the formation enthalpy of your own structures.

    What cannot be used goes to OUT's .failures.parquet with its reason.
    """
    from screening.model_library import load_model
    from screening.predict import predict_structures, show_predictions, write_predictions

    chosen = _check_engine(engine)
    _check_output(out, overwrite, ".parquet")
    _check_device(device)
    crystals, unread = _read_inputs(inputs, out)
    loaded = load_model(model)
    with (
        _interruptible("nothing was written"),
        tempfile.TemporaryDirectory(prefix="screening-") as work,
        _progress("sites") as [progress],
    ):
        table, failures = predict_structures(
            loaded,
            crystals,
            Path(work),
            engine=chosen,
            device=device,
            run=_parallel(workers, scheduler),
            progress=progress,
        )
    everything = [*unread, *failures]
    _refuse_if_none(range(table.num_rows), everything, out)
    write_predictions(table, everything, out)
    shown = show_predictions(table, top)
    if len(shown):
        _print_table("", [list(shown.columns), *shown.astype(str).to_numpy().tolist()])
    _say(f"{out}: {table.num_rows:,} structures, model {loaded.card.name}")
    _say_failures(everything, out)


def list_bundled(context: typer.Context) -> None:
    """List the bundled models with their sources and errors."""
    from screening.model_card import read_card
    from screening.model_library import list_models, model_files

    if context.invoked_subcommand is not None:
        return
    folders = list_models()
    if not folders:
        _say("no model is bundled; train one with: screening train DATA --out MODEL")
    for folder in folders:
        size = sum(path.stat().st_size for path in model_files(folder)) / 1e6
        _print_card(read_card(folder), f"{size:.1f} MB")


def show_model(
    model: ModelArgument = "default",
    json: Annotated[bool, typer.Option("--json", help="Print the whole card as JSON.")] = False,
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
    _print_scores(card.held_out, "held-out rows")
    if card.evaluation is not None:
        from screening.evaluation import tabulate

        _print_table("ideal geometry, eV/atom", tabulate(card.evaluation, "ideal"))
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
    _say(
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


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _say_failures(failures: Sequence[Failure], out: Path) -> None:
    from screening.feature_tables import beside

    if failures:
        first = failures[0]
        _say(
            f"{len(failures):,} structures could not be used (the first, {first.id}: "
            f"{first.reason}); all of them are in {beside(out, 'failures')}"
        )


def _read_inputs(inputs: Sequence[Path], out: Path) -> tuple[list[Crystal], list[Failure]]:
    """Read the structures; those of them that can be used are at least one."""
    from screening.feature_tables import beside
    from screening.structures import read_structures

    written = (out, beside(out, "failures"), beside(out, "imputed"))
    crystals, unread = read_structures(inputs, output=written, say=_say)
    _refuse_if_none(crystals, unread, out)
    return crystals, unread


def _refuse_if_none(found: Sequence[Any], failures: Sequence[Failure], out: Path) -> None:
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


def _check_output(out: Path, overwrite: bool, suffix: str | None = None) -> None:
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


def _check_engine(engine: str) -> Engine:
    for known in ENGINES:
        if engine == known:
            return known
    raise ConfigurationError(
        f'--engine "{engine}" is none of {", ".join(ENGINES)}{suggest(engine, ENGINES)}'
    )


def _check_device(device: str) -> str:
    if device not in DEVICES:
        raise ConfigurationError(
            f'--device "{device}" is none of {", ".join(DEVICES)}{suggest(device, DEVICES)}'
        )
    if device == "cuda":
        from irnet.device import choose_device

        choose_device(device)
    return device


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


def _parallel(workers: int | None, scheduler: str | None) -> ParallelMap | None:
    if workers == 0 and scheduler is None:
        return None

    def run(function: Callable[[Any, int], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        if not tasks:
            return
        from screening.cluster.client import connect
        from screening.cluster.tasks import map_tasks
        from screening.settings import count_cores

        with connect(workers or count_cores(), scheduler) as client:
            _say(f"dashboard: {client.dashboard_link}")
            yield from map_tasks(client, function, tasks)

    return run


@contextmanager
def _interruptible(what_now: str) -> Iterator[None]:
    """Say at Ctrl-C what is kept."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted; {what_now}") from error


@contextmanager
def _progress(*kinds: str) -> Iterator[list[ProgressCall]]:
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
            rate = (done - already) / max(now - began, 1e-9)
            left = (total - done) / rate if rate else 0.0
            _say(
                f"{what}: {done:,} of {total:,}, {rate:,.1f}/s, {left:,.0f} s left"
                + (f"; {note}" if note else "")
            )

        return show

    with bar:
        yield [count(kind) for kind in kinds]


def _print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=None)
    for name in rows[0]:
        table.add_column(name, justify="right" if name not in ("id", "formula") else "left")
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


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
    _print_table(f"{title}, eV/atom", rows)


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
