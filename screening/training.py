"""Training a model from data files: the ensemble of networks, the Random Forest, and the card.

A training is a folder. What was asked for is written there first; features, checkpoints and
finished parts are kept while it runs, so that the same call continues a killed training, and
another call is refused.
"""

import datetime
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prototypes import SYMBOLS
from screening.classification import (
    CLASS_UNIT,
    Judge,
    combine_forests,
    count_classes,
    expect_shares,
    fit_class_forests,
    score_classes,
)
from screening.columns import written_atomically
from screening.dataset import (
    Protocol,
    TrainingSet,
    attach_features,
    read_training_set,
    refuse_second_features,
    split_by_formula,
)
from screening.errors import (
    ConfigurationError,
    InputDataError,
    ModelError,
    OutputError,
    exit_code_of,
)
from screening.evaluation import predict_all, score_predictions
from screening.feature_tables import (
    ParallelMap,
    ProgressCall,
    featurize_structures,
    read_features,
)
from screening.features import Engine
from screening.features.schema import FEATURES
from screening.model_card import (
    CARD_NAME,
    Card,
    ClassificationCard,
    DataCard,
    DataFileEntry,
    Score,
    Source,
    TrainingCard,
    hash_file,
    read_card,
    write_card,
)
from screening.model_library import (
    ENSEMBLE_NAME,
    ENTHALPY_UNIT,
    FOREST_NAME,
    FORMER_FORMULAS_NAME,
    FORMULAS_NAME,
    REFERENCE_NAME,
    UNCERTAINTY_NAME,
    find_model,
    join_classes,
)
from screening.printing import count_things
from screening.settings import count_cores
from screening.training_table import TrainingTable

if TYPE_CHECKING:
    from irnet import Ensemble, Forest, Recipe
    from irnet.ensemble import Member
    from irnet.trainee import MemberTask, Progress
    from irnet.training import Map

    MemberMap = Callable[[Callable[[MemberTask], Member], Sequence[MemberTask]], Sequence[Member]]

REQUEST_NAME = "training.json"
WORK_NAME = "work"
HELD_OUT_NAME = "held_out.safetensors"
FINISHED_MEMBER = "member-{}/member.safetensors"
"""Where `irnet.train_ensemble` keeps a finished member in its folder of checkpoints."""

SMALL_MODEL_FILES = frozenset(
    {
        CARD_NAME,
        ENSEMBLE_NAME,
        FOREST_NAME,
        FORMER_FORMULAS_NAME,
        FORMULAS_NAME,
        REFERENCE_NAME,
        UNCERTAINTY_NAME,
    }
)
TRAINING_FILES = SMALL_MODEL_FILES | {REQUEST_NAME, HELD_OUT_NAME, WORK_NAME}
"""What a training writes into its folder."""

DEFAULT_LIMITS = (
    "Compounds unlike the training data are predicted worse than the held-out error says: "
    "evaluate the model on such compounds before use.",
    "The spread of the members is not a calibrated uncertainty.",
    "Formation enthalpy alone is not stability: compare with competing phases.",
    "Energies are those of the training data's DFT settings; they do not mix with others.",
)
OTHER_TARGET_LIMITS = (
    *DEFAULT_LIMITS[:2],
    "It does not predict formation enthalpies: campaigns cannot rank by it.",
)
CLASS_LIMITS = (
    "Compounds unlike the training data are told apart worse than the held-out rows say.",
    "The probabilities are those of the networks' softmax and are not calibrated.",
    "It predicts classes, no energies: campaigns cannot rank by it.",
)


@dataclass(frozen=True)
class TrainingRequest:
    """What to train.

    Attributes:
        data: Parquet files of structures or of features.
        out: Model folder.
        protocol: Which rows take part.
        recipe: How the networks are trained.
        members: Number of networks.
        seed: Seed that splits, networks and forest derive theirs from.
        holdout: Share of the formulas held out for the metrics; 0 trains on everything.
        forest: Whether to train a Random Forest too; where classes are learnt, only to measure it
            beside the networks.
        forest_parameters: Hyperparameters of the forest by scikit-learn's names; if None, searched
            on the paper's grid, or the grid's deepest where classes are learnt.
        features: Feature table to join by id instead of featurizing, or None.
        engine: Which featurizer.
        device: Where the networks are trained.
        jobs: Cores of the forest, and most networks trained side by side on the CPU; never more
            than there are cores.
        unit: Unit of a target of numbers; a model of another one than eV/atom is none of formation
            enthalpies.
        init_from: Model whose networks the new ones begin as, by name or folder, or None.
        name: The model's name; the folder's name if None.
        licence: Licence of the weights.
        sources: Where the data comes from.
    """

    data: tuple[Path, ...]
    out: Path
    protocol: Protocol
    recipe: "Recipe"
    members: int = 4
    seed: int = 0
    holdout: float = 0.1
    forest: bool = True
    forest_parameters: Mapping[str, Any] | None = None
    features: Path | None = None
    engine: Engine = "fast"
    device: str = "auto"
    jobs: int = 1
    unit: str = ENTHALPY_UNIT
    init_from: str | None = None
    name: str | None = None
    licence: str = "not stated"
    sources: tuple[Source, ...] = ()

    @property
    def target_unit(self) -> str:
        """Unit of what the model predicts."""
        return CLASS_UNIT if self.protocol.classes else self.unit


@dataclass(frozen=True)
class Reporter:
    """How a training tells its progress.

    Attributes:
        say: Called with a sentence at each stage.
        featurized: Called with (done, all) sites and a note.
        trained: Called with (done, all) epochs of all members and a note.
    """

    say: Callable[[str], None] = lambda sentence: None
    featurized: ProgressCall | None = None
    trained: ProgressCall | None = None


def train_model(
    request: TrainingRequest,
    *,
    run: ParallelMap | None = None,
    run_members: "MemberMap | None" = None,
    reporter: Reporter | None = None,
    overwrite: bool = False,
) -> Card:
    """Train a model, or continue or recognise one that the same request began.

    Args:
        request: What to train.
        run: How to run the chunks of featurizing; in this process if None.
        run_members: Trains the members elsewhere, all at once as far as there is room; in threads
            of this process if None.
        reporter: Where progress goes.
        overwrite: Whether to remove the model or training in the folder and begin anew, once the
            data are read and found usable.

    Returns:
        The card of the finished model.

    Raises:
        InputDataError: The data cannot be used.
        ModelError: The networks to begin from are missing, damaged or do not fit.
        ConfigurationError: The folder belongs to another training or to something else, the recipe
            learns classes and the protocol numbers or the reverse, or the loss became infinite or
            NaN.
        OutputError: The folder cannot be written.
    """
    from irnet.reference import TrainingReference

    if (request.recipe.loss == "cross_entropy") != request.protocol.classes:
        raise ConfigurationError(
            f"the loss {request.recipe.loss} does not fit a target of "
            f"{'classes' if request.protocol.classes else 'numbers'}; classes, and nothing else, "
            "are learnt by cross_entropy"
        )
    reporter = reporter or Reporter()
    seconds: dict[str, float] = {}
    if (
        not overwrite
        and (request.out / CARD_NAME).exists()
        and not (request.out / REQUEST_NAME).exists()
    ):
        raise ConfigurationError(
            f"{request.out} holds a model that was not trained here. Choose another --out."
        )
    begin = _read_initial(request)
    with _timed(seconds, "read data"):
        data = read_training_set(request.data, request.protocol)
        joined = _join_features(data, request)
        _hold_out(data if joined is None else joined, request)
    reporter.say(f"{count_things(len(data), 'row')} of data" + _describe_dropped(data))
    if overwrite:
        clear_folder(request.out)
    claim_folder(request, data)
    if (request.out / CARD_NAME).exists():
        reporter.say(f"{request.out} is finished; nothing to do")
        return read_card(request.out)

    work = request.out / WORK_NAME
    with _timed(seconds, "featurize"):
        data = _featurize(data, request, run, reporter) if joined is None else joined
    assert data.features is not None
    train, held = _hold_out(data, request)
    reporter.say(f"training on {count_things(len(train), 'row')}, {len(held):,} held out")
    if len(train) < request.recipe.batch_size:
        reporter.say(
            f"these are fewer rows than a batch of {request.recipe.batch_size:,}: each epoch is a "
            "single step"
        )

    with _timed(seconds, "ensemble"), writing_to(request.out):
        ensemble = _train_ensemble(
            train, request, begin, work / "checkpoints", reporter, run_members
        )
        ensemble.save(request.out / ENSEMBLE_NAME)
    networks = count_things(request.members, "network")
    reporter.say(f"{networks} trained in {seconds['ensemble']:.0f} s")
    forest = classification = None
    with _timed(seconds, "forest"), writing_to(request.out):
        if data.classes:
            classification = _judge_classes(train, held, ensemble, request, work)
        else:
            forest = _train_forest(train, request)
    if request.forest and (len(held) or not data.classes):
        reporter.say(f"Random Forest trained in {seconds['forest']:.0f} s")

    assert train.features is not None
    with writing_to(request.out):
        reference = TrainingReference.fit(train.features, seed=request.seed)
        reference.save(request.out / REFERENCE_NAME)
    formulas = TrainingTable.of(
        train.formulas,
        train.ids,
        train.target if request.target_unit == ENTHALPY_UNIT else None,
        train.structure_types,
    )
    formulas.save(request.out / FORMULAS_NAME)
    scores: list[Score] = []
    if len(held):
        assert held.features is not None
        if not data.classes:
            with _timed(seconds, "held-out metrics"):
                predictions = predict_all(ensemble, forest, held.features, request.device)
                scores = score_predictions(predictions, held.target, group="held_out")
        save_rows(held, request.out / HELD_OUT_NAME)
    card = _describe(request, data, train, held, forest, seconds, tuple(scores), classification)
    write_card(card, request.out)
    shutil.rmtree(work, ignore_errors=True)
    return card


def claim_folder(request: TrainingRequest, data: TrainingSet) -> None:
    """Make the model folder this training's own.

    Args:
        request: What to train.
        data: The rows that were read.

    Raises:
        ConfigurationError: The folder holds another training, or files of something else.
        OutputError: It cannot be written.
    """
    path = request.out / REQUEST_NAME
    wanted = _identity(request, data)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        entries = [entry for entry in request.out.iterdir() if not entry.name.startswith(".")]
        if not path.exists():
            if entries:
                raise ConfigurationError(
                    f"{request.out} is not empty and holds no training. Choose another --out."
                )
            with written_atomically(path) as temporary:
                temporary.write_text(json.dumps(wanted, indent=1) + "\n")
            return
        begun = json.loads(path.read_text())
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path} is damaged. Give --overwrite to begin anew.") from error
    except OSError as error:
        raise OutputError.from_os_error(error, request.out) from error
    begun = _identity_defaults() | begun
    for key in sorted({*begun, *wanted}):
        if begun.get(key) != wanted.get(key):
            raise ConfigurationError(
                f"{request.out} holds another training: its {key} is {begun.get(key)!r}, "
                f"not {wanted.get(key)!r}. Choose another --out, or give --overwrite to begin anew."
            )


def clear_folder(folder: Path, owned: Collection[str] = TRAINING_FILES) -> None:
    """Remove a training or a model, and refuse to remove anything else.

    Args:
        folder: A folder that `train_model` or `bundle_model` wrote, or none.
        owned: Names that may be removed; hidden leftovers of a killed write may be too.

    Raises:
        ConfigurationError: The folder holds something else.
        OutputError: It cannot be removed.
    """
    if not folder.exists():
        return
    try:
        foreign = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.name not in owned
            and not (entry.name.startswith(".") and entry.suffix in (".part", ".tmp"))
        )
        if foreign:
            raise ConfigurationError(
                f"{folder} holds {foreign[0]!r}, which is no part of what is to be replaced; it is "
                "left as it is. Choose another folder."
            )
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError.from_os_error(error, folder) from error


def save_rows(data: TrainingSet, path: Path) -> None:
    """Keep rows with their features, to measure later what compressing the model costs.

    Args:
        data: Rows with features.
        path: A safetensors file.

    Raises:
        OutputError: It cannot be written.
    """
    from safetensors.numpy import save

    assert data.features is not None
    tensors: dict[str, NDArray[Any]] = {
        "features": np.ascontiguousarray(data.features),
        "target": data.target,
    }
    labels = {"ids": json.dumps(data.ids), "formulas": json.dumps(data.formulas)}
    with written_atomically(path) as temporary:
        temporary.write_bytes(save(tensors, labels))


def load_rows(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read features (n, 271) and energies (n,) that `save_rows` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(str(path))
    return tensors["features"], tensors["target"]


def _identity(request: TrainingRequest, data: TrainingSet) -> dict[str, Any]:
    identity: dict[str, Any] = {
        "data": data.content_hash(),
        "rows": len(data),
        "features": hash_file(request.features) if request.features else request.engine,
        **{f"recipe {key}": value for key, value in request.recipe.to_json().items()},
        "number of members": request.members,
        "seed": request.seed,
        "held-out share": request.holdout,
        "forest": dict(request.forest_parameters) if request.forest_parameters else request.forest,
        "unit": request.target_unit,
        "classes": data.classes,
        "initial model": (
            None
            if request.init_from is None
            else hash_file(find_model(request.init_from) / ENSEMBLE_NAME / "ensemble.json")
        ),
    }
    return dict(json.loads(json.dumps(identity)))


def _identity_defaults() -> dict[str, Any]:
    """What a training asked for where its file, written by an older version, does not say."""
    from irnet import Recipe

    recipe = {f"recipe {key}": value for key, value in Recipe().to_json().items()}
    return {**recipe, "unit": ENTHALPY_UNIT, "classes": [], "initial model": None}


def read_layers(model: str) -> dict[str, str]:
    """What networks must share with those of a model to begin as them.

    Args:
        model: A bundled model or a model folder.

    Returns:
        The recipe's fields ``architecture`` and ``activation``.

    Raises:
        ModelError: There is no such model.
    """
    training = read_card(find_model(model)).training
    # the recipes of earlier versions had no choice of it
    activation = str(training.recipe.get("activation", "relu"))
    return {"architecture": training.architecture, "activation": activation}


def _read_initial(request: TrainingRequest) -> "Ensemble | None":
    """The networks that those of the request begin as.

    Raises:
        ModelError: There is no such model, it is damaged, or its features or layers are others.
    """
    if request.init_from is None:
        return None
    from irnet import Ensemble, IRNetError

    folder = find_model(request.init_from)
    try:
        ensemble = Ensemble.load(folder / ENSEMBLE_NAME)
        ensemble.check_features(FEATURES)
    except (IRNetError, OSError) as error:
        raise ModelError(f"cannot begin from the model {folder}: {error}") from error
    wanted, found = request.recipe.layers, ensemble.members[0].architecture
    for option, own, others in (
        ("--architecture", str(wanted), str(found)),
        ("--activation", wanted.activation, found.activation),
    ):
        if own.replace("D", "") != others.replace("D", ""):  # dropout has no weights
            raise ModelError(
                f"cannot begin from the model {folder}: its networks are {others}, not {own}; "
                f"leave {option} out to take its layers"
            )
    return ensemble


def _join_features(data: TrainingSet, request: TrainingRequest) -> TrainingSet | None:
    """The rows with the features that data files or a feature table hold, None without either."""
    refuse_second_features(data, request.features)
    if data.features is not None:
        return data
    if request.features is None:
        return None
    return attach_features(data, read_features(request.features))


def _featurize(
    data: TrainingSet, request: TrainingRequest, run: ParallelMap | None, reporter: Reporter
) -> TrainingSet:
    assert data.crystals is not None
    features = featurize_structures(
        data.crystals,
        request.out / WORK_NAME / "features",
        engine=request.engine,
        run=run,
        progress=reporter.featurized,
    )
    return attach_features(data, features)


def _hold_out(data: TrainingSet, request: TrainingRequest) -> tuple[TrainingSet, TrainingSet]:
    """Rows to train on and rows held out.

    Raises:
        ConfigurationError: The share is out of range.
        InputDataError: A class has no row to train on.
    """
    train, held = split_by_formula(data.formulas, request.holdout, request.seed)
    counts = count_classes(data.target[train], data.classes) if data.classes else ()
    lost = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if lost:
        raise InputDataError(
            f"column {request.protocol.target!r}: no row is left to train on of {len(lost)} of its "
            f"{len(data.classes)} classes, the first is {lost[0]!r}. Leave out such rare classes, "
            "or choose another --holdout or --seed."
        )
    return data.select(train), data.select(held)


def _judge_classes(
    train: TrainingSet,
    held: TrainingSet,
    ensemble: "Ensemble",
    request: TrainingRequest,
    work: Path,
) -> ClassificationCard:
    """What the card says of the classes; fits the forest that is measured beside the networks."""
    assert train.features is not None
    assert held.features is not None
    counts = count_classes(train.target, train.classes)
    probabilities: dict[Judge, NDArray[np.float64]] = {}
    parameters = None
    if len(held):
        scorer = ensemble.scorer(device=request.device)
        probabilities["irnet"] = scorer.classify(held.features).probabilities
        if request.forest:
            forests = fit_class_forests(
                train.features,
                train.target,
                train.classes,
                seed=request.seed,
                jobs=min(request.jobs, count_cores()),
                parameters=request.forest_parameters,
                target=request.protocol.target,
                work=work,
            )
            parameters = dict(forests[0].card["parameters"])
            probabilities["random_forest"] = combine_forests(forests, held.features)
        probabilities["largest_class"] = expect_shares(counts, len(held))
    return ClassificationCard(
        classes=train.classes,
        split_at=request.protocol.split_at,
        rows=counts,
        held_out_rows=count_classes(held.target, train.classes),
        held_out=score_classes(probabilities, held.target, train.classes),
        forest=parameters,
    )


def _train_forest(train: TrainingSet, request: TrainingRequest) -> "Forest | None":
    if not request.forest:
        return None
    from irnet import Forest, fit_forest
    from irnet.forest import ForestParameters

    path = request.out / FOREST_NAME
    if path.exists():
        return Forest.load(path)
    assert train.features is not None
    forest = fit_forest(
        train.features,
        train.target,
        FEATURES,
        seed=request.seed,
        n_jobs=min(request.jobs, count_cores()),
        groups=train.formula_groups(),
        search=request.forest_parameters is None,
        parameters=(
            None
            if request.forest_parameters is None
            else ForestParameters(**request.forest_parameters)
        ),
        target_name=request.protocol.target,
        target_unit=request.unit,
    )
    forest.save(path)
    return forest


def _train_ensemble(
    train: TrainingSet,
    request: TrainingRequest,
    begin: "Ensemble | None",
    checkpoints: Path,
    reporter: Reporter,
    run_members: "MemberMap | None",
) -> "Ensemble":
    from irnet import TrainingDivergedError, train_ensemble
    from irnet.device import choose_device

    assert train.features is not None

    on_cpu = choose_device(request.device).type == "cpu"
    threads = min(request.jobs, request.members, count_cores()) if on_cpu else 1
    done = dict.fromkeys(range(request.members), 0)
    measure = "cross-entropy" if train.classes else "MAE"
    stop = threading.Event()

    def tell(progress: "Progress") -> None:
        if stop.is_set():
            raise _Stopped
        done[progress.member] = progress.epoch
        # finished by an earlier run, or before the last epoch for lack of patience
        for number in (number for number, epochs in done.items() if epochs < progress.epochs):
            if (checkpoints / FINISHED_MEMBER.format(number)).exists():
                done[number] = progress.epochs
        if reporter.trained is not None:
            reporter.trained(
                sum(done.values()),
                progress.members * progress.epochs,
                f"network {progress.member + 1}: {measure} {progress.validation_error:.4f}, "
                f"best {progress.best_error:.4f}",
            )

    members: AbstractContextManager[Map] = (
        _members_in_threads(threads, stop) if run_members is None else nullcontext(run_members)
    )
    with members as run:
        try:
            return train_ensemble(
                train.features,
                train.target,
                FEATURES,
                recipe=request.recipe,
                members=request.members,
                seed=request.seed,
                checkpoint_dir=checkpoints.resolve(),
                device=request.device,
                groups=train.formula_groups(),
                weights=train.weights,
                init_from=begin,
                progress=tell,
                map=run,
                target_name=request.protocol.target,
                target_unit=request.target_unit,
                classes=train.classes,
            )
        except TrainingDivergedError as error:
            raise ConfigurationError(str(error)) from error


class _Stopped(BaseException):
    """Ends the training of a member because that of another ended in an error."""


@contextmanager
def _members_in_threads(threads: int, stop: threading.Event) -> Iterator["Map"]:
    """A map that trains members side by side, with the cores divided between them.

    Args:
        threads: How many at a time.
        stop: Set when one of them fails or Ctrl-C is pressed, for the others to see.
    """
    import torch

    if threads == 1:
        yield map
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // threads))
    pool = ThreadPoolExecutor(threads)

    def run(function: "Callable[[MemberTask], Member]", tasks: "Sequence[MemberTask]") -> list[Any]:
        try:
            return list(pool.map(function, tasks))
        except BaseException:
            stop.set()
            raise

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _describe(
    request: TrainingRequest,
    data: TrainingSet,
    train: TrainingSet,
    held: TrainingSet,
    forest: "Forest | None",
    seconds: dict[str, float],
    scores: tuple[Score, ...],
    classification: ClassificationCard | None,
) -> Card:
    target = request.protocol.target
    enthalpy = request.target_unit == ENTHALPY_UNIT
    subject = f"{'Formation enthalpy' if enthalpy else target} ({request.target_unit})"
    networks = "deep residual regression networks"
    if classification is not None:
        subject = f"Classes of {target} ({join_classes(classification.classes)})"
        networks = "deep residual networks with a softmax at the end"
    limits = DEFAULT_LIMITS if enthalpy else OTHER_TARGET_LIMITS
    return Card(
        name=request.name or request.out.resolve().name,
        description=(
            f"{subject} of a crystal from 271 features of its composition and Voronoi "
            f"tessellation: an ensemble of {networks} (IRNet; Jha et al., KDD 2019)"
            + (" and a Random Forest." if forest else ".")
        ),
        licence=request.licence,
        data=DataCard(
            files=tuple(
                DataFileEntry(name=source.name, sha256=source.sha256, rows=source.rows)
                for source in data.sources
            ),
            content_sha256=train.content_hash(),
            target=target,
            rows=len(train),
            formulas=len(set(train.formulas)),
            elements=elements_of(train),
            excluded_formulas=len(request.protocol.excluded_formulas),
            dropped=dict(data.dropped),
            held_out_rows=len(held),
            sources=request.sources,
        ),
        training=TrainingCard(
            recipe=request.recipe.to_json(),
            architecture=request.recipe.architecture,
            members=request.members,
            seed=request.seed,
            forest=None if forest is None else dict(forest.card["parameters"]),
            holdout=request.holdout,
            max_sites=request.protocol.max_sites,
            seconds={stage: round(value, 1) for stage, value in seconds.items()},
            machine=describe_machine(request.device),
            versions={
                name: version(name)
                for name in ("torch", "scikit-learn", "numpy", "pymatgen", "pyvoro2")
            },
            created=datetime.date.today().isoformat(),
        ),
        held_out=scores,
        classification=classification,
        limits=limits if classification is None else CLASS_LIMITS,
    )


def elements_of(data: TrainingSet) -> tuple[str, ...]:
    """Symbols of the elements in the formulas of some rows, by atomic number."""
    from pymatgen.core.composition import Composition

    found = {
        str(element.symbol)
        for formula in set(data.formulas)
        for element in Composition(formula).elements
    }
    return tuple(symbol for symbol in SYMBOLS if symbol in found)


def describe_machine(device: str) -> str:
    """The processor and, where the networks use one, the accelerator."""
    import torch

    processor = platform.processor() or platform.machine()
    text = f"{os.cpu_count()} cores {processor}, {platform.system()}"
    if device != "cpu" and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def _describe_dropped(data: TrainingSet) -> str:
    if not data.dropped:
        return ""
    return "; left out: " + ", ".join(f"{count:,} {why}" for why, count in data.dropped.items())


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error that says what to do.

    Args:
        folder: What is written to.

    Raises:
        OutputError: Something inside could not be written.
    """
    try:
        yield
    except OSError as error:
        if exit_code_of(error) is not None:
            raise
        raise OutputError.from_os_error(error, folder) from error


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
