"""The card of a model: what it was trained on, how, how well it does, and where it does not."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from screening.columns import written_atomically
from screening.errors import ModelError

if TYPE_CHECKING:
    from prototypes import Prototype

CARD_NAME = "card.json"
BASELINES_NAME = "baselines.json"
"""What a folder of `screening baselines fit` has instead."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(_Closed):
    """Where data came from.

    Attributes:
        what: Which part of the data.
        citation: Whom to cite.
        licence: Its stated licence.
    """

    what: str
    citation: str
    licence: str


class DataFileEntry(_Closed):
    """A file that was read: its name, its SHA-256 and its rows."""

    name: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    rows: int = Field(ge=0)


class DataCard(_Closed):
    """The training data.

    Attributes:
        files: The files that were read.
        content_sha256: Hash of the rows that were used: ids, formulas, features, energies.
        target: Name of the learnt column.
        rows: Rows trained on, the members' validation splits included.
        formulas: Distinct reduced formulas among them.
        elements: Symbols of the elements among them, by atomic number.
        excluded_formulas: How many formulas of an evaluation set were kept out.
        dropped: Rows that were read and not used, by reason.
        held_out_rows: Rows kept for the held-out metrics, of other formulas.
        sources: Where the data came from.
        functional: How the energies were calculated, None if nobody said.
    """

    files: tuple[DataFileEntry, ...]
    content_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    target: str
    rows: int = Field(ge=1)
    formulas: int = Field(ge=1)
    elements: tuple[str, ...]
    excluded_formulas: int = Field(ge=0)
    dropped: dict[str, int]
    held_out_rows: int = Field(ge=0)
    sources: tuple[Source, ...]
    functional: str | None = None


class Score(_Closed):
    """Errors of one predictor on one group of compounds, eV/atom.

    Attributes:
        predictor: ``irnet`` (mean of the ensemble), ``irnet_member`` (mean over single members)
            or ``random_forest``.
        group: ``held_out``, a kind of the evaluation set such as ``B2``, or ``all`` for rows of no
            kind.
        scheme: Energy corrections of the labels, ``all`` for all together.
        geometry: ``relaxed`` (the structure of the label) or ``ideal`` (the prototype).
        n: Compounds.
        mae: Mean absolute error.
        mae_low: Lower end of its 95 % bootstrap interval, None for a single compound.
        mae_high: Upper end.
        p90: 90th percentile of the absolute error, None in cards that never measured it.
        bias: Mean of predicted minus true; negative is too stable.
        spearman: Rank correlation of predicted and true, None where it is not defined.
    """

    predictor: Literal["irnet", "irnet_member", "random_forest"]
    group: str
    scheme: str = "all"
    geometry: Literal["relaxed", "ideal"] = "relaxed"
    n: int = Field(ge=1)
    mae: float = Field(ge=0)
    mae_low: float | None = Field(default=None, ge=0)
    mae_high: float | None = Field(default=None, ge=0)
    p90: float | None = Field(default=None, ge=0)
    bias: float
    spearman: float | None = None

    @property
    def interval(self) -> str:
        """The interval of the error as text, empty where there is none."""
        if self.mae_low is None or self.mae_high is None:
            return ""
        return f"{self.mae_low:.3f}–{self.mae_high:.3f}"


class Reliability(_Closed):
    """How well the intervals of the ensemble keep what they promise on one group of compounds.

    Attributes:
        group: As in `Score`, or ``calibration`` for the rows that the intervals were fitted on,
            each judged by intervals that were fitted without its chemical system.
        scheme: As in `Score`.
        geometry: As in `Score`.
        n: Compounds.
        expected: Nominal coverages of central intervals, ascending, between 0 and 1.
        observed: Share of the compounds within the interval of each.
        coverage: Share of the compounds within the stored (90 %) interval.
        coverage_low: Lower end of the 95 % binomial interval of that share.
        coverage_high: Upper end.
        sharpness: Mean width of the 90 % interval, eV/atom.
        miscalibration_area: Area between the curve of `observed` over `expected` and the diagonal;
            0 is perfect, 0.5 the worst.
        sorting: Spearman's rank correlation of the expected size of the error with the absolute
            error, None where it is not defined.
        spread_sorting: The same of the spread of the members, None with a single member.
    """

    group: str
    scheme: str = "all"
    geometry: Literal["relaxed", "ideal"] = "relaxed"
    n: int = Field(ge=1)
    expected: tuple[float, ...]
    observed: tuple[float, ...]
    coverage: float = Field(ge=0, le=1)
    coverage_low: float = Field(ge=0, le=1)
    coverage_high: float = Field(ge=0, le=1)
    sharpness: float = Field(ge=0)
    miscalibration_area: float = Field(ge=0)
    sorting: float | None = None
    spread_sorting: float | None = None

    @model_validator(mode="after")
    def _check_curve(self) -> Self:
        if len(self.expected) != len(self.observed):
            raise ValueError("expected and observed must have the same length")
        return self


class CalibrationCard(_Closed):
    """How the intervals of the predictions were fitted.

    Attributes:
        level: Share of compounds that the stored intervals are made to contain, such as 0.9.
        rows: Compounds with known energies that they rest on, each predicted by networks that were
            not trained on its formula.
        groups: Chemical systems among them; no system is on both sides of a split.
        measured_on: What the compounds are.
        reliabilities: How well the intervals did on these compounds themselves, each judged by a
            fit without its chemical system.
    """

    level: float = Field(gt=0, lt=1)
    rows: int = Field(ge=1)
    groups: int = Field(ge=1)
    measured_on: str
    reliabilities: tuple[Reliability, ...] = ()


class Evaluation(_Closed):
    """Errors on the evaluation set of the combinatorial search.

    Attributes:
        data: The evaluation file.
        scores: One per predictor, kind, scheme and geometry.
        formulas_seen: Compounds whose formula the evaluated model was trained on.
        reliabilities: One per kind, scheme and geometry, if the model's predictions have intervals.
    """

    data: DataFileEntry
    scores: tuple[Score, ...]
    formulas_seen: int = Field(ge=0)
    reliabilities: tuple[Reliability, ...] = ()


class TrainingCard(_Closed):
    """How the model was made.

    Attributes:
        recipe: Name and settings of the training recipe.
        architecture: Layers of each network, in the reference implementation's language.
        members: Networks of the ensemble.
        seed: Seed that every other one was derived from.
        forest: Settings of the Random Forest that won the search, None without a forest.
        holdout: Share of the formulas that was held out.
        max_sites: Largest structure trained on, None without a limit.
        seconds: Wall-clock time of each stage.
        machine: What it ran on.
        versions: Versions of the software.
        created: Date, ISO 8601.
    """

    recipe: dict[str, Any]
    architecture: str
    members: int = Field(ge=1)
    seed: int
    forest: dict[str, Any] | None
    holdout: float
    max_sites: int | None
    seconds: dict[str, float]
    machine: str
    versions: dict[str, str]
    created: str


class ClassificationScore(_Closed):
    """How well one predictor tells the classes of held-out rows apart.

    Attributes:
        predictor: ``irnet`` (mean of the ensemble's probabilities), ``random_forest``, or
            ``largest_class``: always the most common class of the training rows, with the shares of
            the classes there as probabilities.
        n: Rows.
        accuracy: Share of the rows whose class is the likeliest.
        accuracy_low: Lower end of its 95 % binomial interval.
        accuracy_high: Upper end.
        balanced_accuracy: Mean over the classes of the share of their rows that is found.
        log_loss: Mean negative logarithm of the probability of the true class.
        roc_auc: Area under the ROC curve of two classes, None for more or where one of them has no
            row.
        f1: Harmonic mean of precision and recall of each class, None where it is not defined.
        average_precision: Of each class against the others, by its probability; None where the
            class has no row.
    """

    predictor: Literal["irnet", "random_forest", "largest_class"]
    n: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    accuracy_low: float = Field(ge=0, le=1)
    accuracy_high: float = Field(ge=0, le=1)
    balanced_accuracy: float = Field(ge=0, le=1)
    log_loss: float = Field(ge=0)
    roc_auc: float | None = Field(default=None, ge=0, le=1)
    f1: tuple[float | None, ...]
    average_precision: tuple[float | None, ...]


class ClassificationCard(_Closed):
    """The classes of a model that predicts classes instead of numbers.

    Attributes:
        classes: Their names, in the order of the probabilities.
        split_at: Where a column of numbers was cut in two, in its unit; None where the column holds
            the classes.
        rows: Training rows of each class.
        held_out_rows: Held-out rows of each class.
        held_out: How well they are told apart on the held-out rows.
        forest: Settings of the Random Forest that was measured beside the networks, None without
            one. It is not kept.
    """

    classes: tuple[str, ...] = Field(min_length=2)
    split_at: float | None = None
    rows: tuple[int, ...]
    held_out_rows: tuple[int, ...]
    held_out: tuple[ClassificationScore, ...] = ()
    forest: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        sizes = {len(self.rows), len(self.held_out_rows)}
        for score in self.held_out:
            sizes |= {len(score.f1), len(score.average_precision)}
        if sizes != {len(self.classes)}:
            raise ValueError("every class needs its rows and its measures")
        return self

    def find_score(self, predictor: str = "irnet") -> ClassificationScore | None:
        """The score of a predictor on the held-out rows, None where it was not measured."""
        return next((score for score in self.held_out if score.predictor == predictor), None)


class Compression(_Closed):
    """What making the model small cost, measured on rows with known energies.

    Attributes:
        weights: Precision of the stored weights.
        forest: How the forest was pruned, None without a forest.
        rows: Rows that the cost was measured on.
        measured_on: Which rows.
        irnet_mae_before: MAE of the ensemble before, eV/atom.
        irnet_mae_after: And after.
        random_forest_mae_before: MAE of the forest before, eV/atom.
        random_forest_mae_after: And after.
        largest_irnet_change: Largest change of a prediction of the ensemble, eV/atom.
        bytes_before: Size of the model's files before.
        bytes_after: And after.
    """

    weights: str
    forest: dict[str, Any] | None
    rows: int = Field(ge=1)
    measured_on: str
    irnet_mae_before: float
    irnet_mae_after: float
    random_forest_mae_before: float | None
    random_forest_mae_after: float | None
    largest_irnet_change: float
    bytes_before: int
    bytes_after: int


class Card(_Closed):
    """A model card.

    Attributes:
        format: Version of this schema.
        name: The model's name.
        description: What it predicts, in a sentence.
        licence: Licence of the weights.
        data: The training data.
        training: How it was made.
        held_out: Errors on the held-out rows.
        classification: The classes of a model of classes and how well it does; None for a model of
            numbers.
        held_out_reliability: How well the intervals do there.
        evaluation: Errors on the evaluation set.
        cross_validation: Errors on hypothetical compounds, each predicted by a model that was
            trained neither on its formula nor on compounds of the set with the same elements.
        calibration: How the intervals were fitted; None where the predictions have none.
        measured_on_twin: Where the errors are those of a twin of this model, what the twin was
            not trained on; None where they are its own.
        compression: What making it small cost.
        limits: Known limits, one sentence each.
    """

    format: Literal[1] = 1
    name: str
    description: str
    licence: str
    data: DataCard
    training: TrainingCard
    held_out: tuple[Score, ...] = ()
    classification: ClassificationCard | None = None
    held_out_reliability: tuple[Reliability, ...] = ()
    evaluation: Evaluation | None = None
    cross_validation: Evaluation | None = None
    calibration: CalibrationCard | None = None
    measured_on_twin: str | None = None
    compression: Compression | None = None
    limits: tuple[str, ...] = ()

    def find_score(
        self, group: str, predictor: str = "irnet", geometry: str = "ideal", scheme: str = "all"
    ) -> Score | None:
        """The score of a kind of compound, or None where it was not measured.

        Args:
            group: ``held_out`` or a kind of the evaluation set, such as ``B2``.
            predictor: As in `Score`.
            geometry: As in `Score`; held-out rows are always ``relaxed``.
            scheme: As in `Score`.
        """
        scores = self.held_out + (self.evaluation.scores if self.evaluation else ())
        wanted = (group, predictor, "relaxed" if group == "held_out" else geometry, scheme)
        for score in scores:
            if (score.group, score.predictor, score.geometry, score.scheme) == wanted:
                return score
        return None

    def find_reliability(
        self, group: str, geometry: str = "ideal", scheme: str = "all"
    ) -> Reliability | None:
        """How well the intervals of a kind of compound do, or None where it was not measured.

        Args:
            group: As in `find_score`.
            geometry: As in `find_score`.
            scheme: As in `find_score`.
        """
        found = self.held_out_reliability + (
            self.evaluation.reliabilities if self.evaluation else ()
        )
        wanted = (group, "relaxed" if group == "held_out" else geometry, scheme)
        for each in found:
            if (each.group, each.geometry, each.scheme) == wanted:
                return each
        return None

    @property
    def search(self) -> Evaluation | None:
        """What says best how the model does on compounds that it does not know.

        The cross-validation where there is one, because the model itself may have been trained on
        the evaluation set; else the evaluation.
        """
        return self.cross_validation or self.evaluation

    def find_bias(self, prototype: "Prototype") -> Score | None:
        """The ensemble's score on ideal cells of a built-in prototype, None if not measured.

        It is the cross-validated one where the model has been cross-validated.

        Args:
            prototype: Any prototype. Only the built-in ones were ever measured; a file's has no
                score, whatever it is called.
        """
        for score in self.search.scores if self.search else ():
            if score.predictor == "irnet" and _is_ideal(score, prototype):
                return score
        return None

    def find_coverage(self, prototype: "Prototype") -> Reliability | None:
        """How the intervals do on ideal cells of a built-in prototype, None if not measured.

        Args:
            prototype: As in `find_bias`.
        """
        for each in self.search.reliabilities if self.search else ():
            if _is_ideal(each, prototype):
                return each
        return None


PROTOTYPE_KINDS: Mapping[str, str] = {
    "B2": "B2",
    "L1_0": "L1_0",
    "perovskite": "perov_Pnma",
    "cubic_perovskite": "perov_cubic",
}
"""Kind in the evaluation set of each built-in prototype."""


def _is_ideal(measured: Score | Reliability, prototype: "Prototype") -> bool:
    """Whether something was measured on all compounds of a built-in prototype, on ideal cells."""
    return prototype.exact and (measured.group, measured.geometry, measured.scheme) == (
        PROTOTYPE_KINDS.get(prototype.name),
        "ideal",
        "all",
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_card(folder: Path) -> Card:
    """Read the card of a model folder.

    Args:
        folder: The model.

    Returns:
        The card.

    Raises:
        ModelError: There is none, or it breaks the schema.
    """
    path = folder / CARD_NAME
    try:
        return Card.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        refuse_baselines(folder)
        raise ModelError(
            f"{folder} is not a finished model: it has no {CARD_NAME}. "
            "Train one with: screening train DATA --out MODEL"
        ) from error
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{path} is not a valid model card ({where or 'file'}: {first['msg']}). "
            "The file is damaged or of another version; get the model again."
        ) from error


def refuse_baselines(folder: Path) -> None:
    """Refuse a folder of baselines where a model is asked for, and name what reads it.

    Raises:
        ModelError: It is one.
    """
    if (folder / BASELINES_NAME).is_file():
        raise ModelError(
            f"{folder} holds baselines, which are no model; predict with them: "
            f"screening baselines predict {folder} FILES --out OUT.parquet"
        )


def write_card(card: Card, folder: Path) -> None:
    """Write a card into a model folder, atomically.

    Args:
        card: The card.
        folder: The model.

    Raises:
        OutputError: It cannot be written.
    """
    with written_atomically(folder / CARD_NAME) as temporary:
        temporary.write_text(
            json.dumps(card.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        )
