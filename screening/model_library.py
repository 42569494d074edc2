"""Models on disk: a folder with an ensemble, a forest, the formulas it knows, and a card.

A model folder holds ``card.json``, ``ensemble/`` (networks), ``forest.safetensors`` (where there is
one), ``training.parquet`` (the compositions it was trained on) and, once calibrated,
``uncertainty.safetensors`` (intervals and distances). Models that come with the program lie in
``screening/models`` and are called by name.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from screening.errors import ModelError, suggest
from screening.features.schema import FEATURES
from screening.model_card import CARD_NAME, Card, hash_file, read_card, refuse_baselines
from screening.training_table import TrainingTable

if TYPE_CHECKING:
    from irnet import Ensemble, Forest
    from irnet.uncertainty import Uncertainty

ENSEMBLE_NAME = "ensemble"
FOREST_NAME = "forest.safetensors"
FORMULAS_NAME = "training.parquet"
FORMER_FORMULAS_NAME = "training.safetensors"
"""Held hashes of the formulas instead, in models of version 0.1.0."""
UNCERTAINTY_NAME = "uncertainty.safetensors"
REFERENCE_NAME = "reference.safetensors"
"""Sample of the training features that `screening train` leaves for `screening calibrate`."""

ENTHALPY_UNIT = "eV/atom"
"""Unit of the formation enthalpies that campaigns rank."""

DEFAULT_MODEL = "default"
"""Stands for the first bundled model by preference."""

PREFERRED_MODELS = ("mp-all-irnet17", "mp-icsd-irnet17")
"""Bundled models in the order in which they are listed and stand for the default; others follow."""

NOT_CALIBRATED = (
    "never calibrated, so intervals and distances are empty; calibrate it with: "
    "screening calibrate MODEL DATA"
)
"""Why predictions of a model have no intervals."""


@dataclass(frozen=True, eq=False)
class ScreeningModel:
    """A model ready to score.

    Attributes:
        path: Its folder.
        ensemble: The networks.
        forest: The Random Forest, None if the model has none.
        card: Its card.
        training_formulas: The compositions it was trained on.
        uncertainty: Its intervals and distances, None if it was never calibrated.
    """

    path: Path
    ensemble: "Ensemble"
    forest: "Forest | None"
    card: Card
    training_formulas: TrainingTable
    uncertainty: "Uncertainty | None" = None

    @property
    def training_elements(self) -> tuple[str, ...]:
        """Symbols of the elements that it was trained on, by atomic number."""
        return self.card.data.elements

    @property
    def unit(self) -> str:
        """Unit of what it predicts."""
        return str(self.ensemble.card.get("unit", ENTHALPY_UNIT))

    @cached_property
    def content_hash(self) -> str:
        """Hash of everything that a prediction depends on, 64 hexadecimal digits."""
        return hash_model(self.path)


def load_model(name_or_path: str | Path) -> ScreeningModel:
    """Load a model of numbers by name or from its folder.

    Args:
        name_or_path: ``default``, the name of a bundled model, or a folder.

    Returns:
        The model, checked: every file is whole and expects the 271 features in their order.

    Raises:
        ModelError: There is no such model, a file is missing or damaged, it was trained on
            other features, or it predicts classes.
    """
    folder = find_model(name_or_path)
    card = read_card(folder)
    if card.classification is not None:
        raise ModelError(
            f"{folder} predicts classes of {card.data.target} "
            f"({join_classes(card.classification.classes)}), no numbers; "
            "it works with: screening predict, screening models show, screening models page"
        )
    return _load(folder, card)


def load_classifier(name_or_path: str | Path) -> ScreeningModel:
    """Load a model of classes by name or from its folder.

    Args:
        name_or_path: As for `load_model`.

    Returns:
        The model, checked as by `load_model`; its card has a classification, whose classes are
        those of the ensemble. It has no forest.

    Raises:
        ModelError: As for `load_model`, or it predicts numbers.
    """
    folder = find_model(name_or_path)
    card = read_card(folder)
    if card.classification is None:
        raise ModelError(f"{folder} predicts numbers ({card.data.target}), no classes")
    model = _load(folder, card)
    if model.ensemble.classes != card.classification.classes:
        raise ModelError(
            f"{folder}: its networks predict {join_classes(model.ensemble.classes) or 'numbers'}, "
            f"but its card says {join_classes(card.classification.classes)}. Get or train the "
            "model again."
        )
    return model


def join_classes(classes: Sequence[str], most: int = 5) -> str:
    """The names of the first classes as text, and how many more there are."""
    named = ", ".join(classes[:most])
    return named + (f" and {len(classes) - most} more" if len(classes) > most else "")


def _load(folder: Path, card: Card) -> ScreeningModel:
    from irnet import Ensemble, Forest, IRNetError

    try:
        ensemble = Ensemble.load(folder / ENSEMBLE_NAME)
        ensemble.check_features(FEATURES)
        forest = None
        if card.training.forest is not None:
            forest = Forest.load(folder / FOREST_NAME)
            forest.check_features(FEATURES)
        uncertainty = None
        if card.calibration is not None:
            from irnet.uncertainty import Uncertainty

            uncertainty = Uncertainty.load(folder / UNCERTAINTY_NAME)
    except (IRNetError, OSError) as error:
        raise ModelError(f"cannot use the model {folder}: {error}") from error
    formulas = _load_formulas(folder)
    return ScreeningModel(folder, ensemble, forest, card, formulas, uncertainty)


def _load_formulas(folder: Path) -> TrainingTable:
    path = folder / FORMULAS_NAME
    if not path.exists() and (folder / FORMER_FORMULAS_NAME).exists():
        raise ModelError(
            f"{folder} was made by an older version, whose {FORMER_FORMULAS_NAME} does not say on "
            "which compounds the model was trained. Train it again with the same command and "
            "--overwrite."
        )
    return TrainingTable.load(path)


def load_enthalpy_model(name_or_path: str | Path) -> ScreeningModel:
    """Load a model whose predictions can be ranked as formation enthalpies.

    Args:
        name_or_path: As for `load_model`.

    Returns:
        The model.

    Raises:
        ModelError: As for `load_model`, or it was trained on a target of another unit.
    """
    model = load_model(name_or_path)
    if model.unit != ENTHALPY_UNIT:
        raise ModelError(
            f"{model.path} predicts {model.card.data.target} in {model.unit}, not a formation "
            f"enthalpy in {ENTHALPY_UNIT}; campaigns and predict need a model of that"
        )
    return model


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a model.

    Args:
        name_or_path: ``default``, the name of a bundled model, or a folder.

    Returns:
        Its folder, with a card in it.

    Raises:
        ModelError: There is no such model; the message names the nearest.
    """
    bundled = {folder.name: folder for folder in list_models()}
    name = str(name_or_path)
    if name == DEFAULT_MODEL and bundled:
        return next(iter(bundled.values()))
    if name in bundled:
        return bundled[name]
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / CARD_NAME).exists():
            read_card(folder)
        return folder
    if folder.is_file():
        refuse_baselines(folder.parent)
    known = ", ".join(bundled) or "none"
    hint = suggest(name, [*bundled, DEFAULT_MODEL] if bundled else ()) or "."
    raise ModelError(
        f'there is no model "{name}"{hint} Bundled models: {known}; '
        "or give the folder that screening train wrote."
    )


def read_unit(folder: Path) -> str:
    """Unit of what a model predicts, without loading its networks.

    Args:
        folder: The model.

    Raises:
        ModelError: The file that says so is missing or damaged.
    """
    path = folder / ENSEMBLE_NAME / "ensemble.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["card"].get("unit", ENTHALPY_UNIT))
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise ModelError(
            f"{path} is missing or damaged ({error}). Get or train the model again."
        ) from error


def list_models() -> tuple[Path, ...]:
    """Folders of the bundled models: the preferred ones in their order, then others by name."""
    library = Path(__file__).parent / "models"
    if not library.is_dir():
        return ()
    order = {name: place for place, name in enumerate(PREFERRED_MODELS)}
    folders = [path for path in library.iterdir() if (path / CARD_NAME).is_file()]
    return tuple(sorted(folders, key=lambda path: (order.get(path.name, len(order)), path.name)))


def hash_model(folder: Path) -> str:
    """Hash of the names and bytes of a model's files that predictions depend on, not its card.

    Args:
        folder: The model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in model_files(folder):
        if path.name != CARD_NAME:
            digest.update(str(path.relative_to(folder)).encode() + b"\0")
            digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()


def model_files(folder: Path) -> tuple[Path, ...]:
    """The files that make a model, sorted; leftovers of a training are not among them."""
    names = (CARD_NAME, FOREST_NAME, FORMULAS_NAME, UNCERTAINTY_NAME)
    parts = [folder / name for name in names]
    parts += (folder / ENSEMBLE_NAME).glob("*")
    return tuple(sorted(path for path in parts if path.is_file()))
