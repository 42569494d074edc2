"""Making a model small enough to ship: rounded weights, a pruned forest, and what that costs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from screening.errors import ConfigurationError, ModelError
from screening.evaluation import predict_all, score_predictions
from screening.model_card import Card, Compression, read_card, write_card
from screening.model_library import (
    ENSEMBLE_NAME,
    FOREST_NAME,
    FORMULAS_NAME,
    REFERENCE_NAME,
    UNCERTAINTY_NAME,
    ScreeningModel,
    load_model,
    model_files,
)
from screening.training import (
    HELD_OUT_NAME,
    SMALL_MODEL_FILES,
    clear_folder,
    load_rows,
    writing_to,
)

Weights = Literal["int8", "int6"]
LEAVES = "float16"


def bundle_model(
    source: Path,
    destination: Path,
    *,
    nodes: int,
    twin: Path | None = None,
    trees: int | None = None,
    members: int | None = None,
    weights: Weights = "int8",
    overwrite: bool = False,
) -> Card:
    """Write a small copy of a model, with the cost in error measured and put into its card.

    Weights become integers of 8 or 6 bits with one scale per output channel; the forest loses the
    subtrees that save the least squared error on its training rows, and its leaves become 16-bit
    floats. Every error in the card is then that of the small model on held-out rows. A model that
    was trained on everything has none: it takes the errors of a twin, a small model of the same
    recipe that was made in the same way from a training with held-out rows, and, unless it was
    calibrated itself, the twin's intervals and distances too. What the card says of intervals on
    held-out rows is what they did before the weights were rounded.

    Args:
        source: The model.
        destination: Folder of the small model.
        nodes: Most nodes of the pruned forest.
        twin: Small model whose errors, evaluation and cost of compression the card takes over.
        trees: Trees of the forest to keep; all if None.
        members: Networks to keep, the first ones; all if None.
        weights: How the weights are stored.
        overwrite: Whether to replace a model at the destination.

    Returns:
        The card of the small model.

    Raises:
        ModelError: The source is no finished model or has no held-out rows and no twin; or the
            twin is not a small model.
        ConfigurationError: The destination is there already, or is the source or the twin.
        OutputError: It cannot be written.
    """
    for needed in (source, twin):
        if needed is not None and needed.resolve() == destination.resolve():
            raise ConfigurationError(
                f"{destination} is read from and cannot be the destination. Choose another folder."
            )
    if twin is None and not (source / HELD_OUT_NAME).exists():
        raise ModelError(
            f"{source} has no held-out rows to measure the cost on. Give --twin a small model of "
            "the same recipe, bundled from a training with --holdout."
        )
    large = load_model(source)
    calibrated = _calibrated(source, twin)
    if calibrated is not None:
        _refuse_other_members(large, calibrated, members)
    measured = None if twin is None else read_card(twin)
    if measured is not None and measured.compression is None:
        raise ModelError(f"{twin} is not a small model. Bundle it first, then give it as --twin.")
    with writing_to(destination):
        if not overwrite and destination.exists() and any(destination.iterdir()):
            raise ConfigurationError(f"{destination} exists; give --overwrite to replace it")
    clear_folder(destination, SMALL_MODEL_FILES)
    with writing_to(destination):
        destination.mkdir(parents=True, exist_ok=True)
        kept = replace(large.ensemble, members=large.ensemble.members[:members])
        kept.save(destination / ENSEMBLE_NAME, precision=weights)
        if large.forest is not None:
            small_forest = large.forest.pruned(
                nodes=nodes, trees=None if trees is None else min(trees, large.forest.trees)
            )
            small_forest.save(destination / FOREST_NAME, precision=LEAVES, prunable=False)
        shutil.copyfile(source / FORMULAS_NAME, destination / FORMULAS_NAME)
        if calibrated is not None:
            shutil.copyfile(calibrated / UNCERTAINTY_NAME, destination / UNCERTAINTY_NAME)
        elif (source / REFERENCE_NAME).exists():
            shutil.copyfile(source / REFERENCE_NAME, destination / REFERENCE_NAME)
    calibration = None if calibrated is None else read_card(calibrated).calibration
    card = large.card.model_copy(
        update={
            "name": destination.resolve().name,
            "held_out": (),
            "evaluation": None,
            "calibration": calibration,
            "training": large.card.training.model_copy(update={"members": len(kept.members)}),
        }
    )
    write_card(card, destination)
    small = load_model(destination)
    if measured is None:
        card = card.model_copy(update=_measure(large, small, weights))
    else:
        assert measured.compression is not None
        errors = {field: getattr(measured.compression, field) for field in _ERRORS}
        card = card.model_copy(
            update={
                "held_out": measured.held_out,
                "held_out_reliability": measured.held_out_reliability,
                "evaluation": measured.evaluation,
                "cross_validation": card.cross_validation or measured.cross_validation,
                "limits": card.limits if large.card.calibration else measured.limits,
                "compression": Compression(**_describe(large, small, weights), **errors),
                "measured_on_twin": (
                    f"a small model of the same recipe, trained on {measured.data.rows:,} "
                    f"structures, without {measured.data.excluded_formulas:,} evaluated formulas "
                    f"and {measured.data.held_out_rows:,} held-out structures"
                ),
            }
        )
    write_card(card, destination)
    return card


def _calibrated(source: Path, twin: Path | None) -> Path | None:
    """Return the model whose intervals the small model gets: its source's, else its twin's."""
    for folder in (source, twin):
        if folder is not None and read_card(folder).calibration is not None:
            return folder
    return None


def _refuse_other_members(large: ScreeningModel, calibrated: Path, members: int | None) -> None:
    """Refuse intervals that were fitted to the mean and spread of another number of networks."""
    fitted_with = read_card(calibrated).training.members
    kept = len(large.ensemble.members[:members])
    if kept != fitted_with:
        raise ConfigurationError(
            f"the intervals of {calibrated} were fitted with {fitted_with} networks and do not "
            f"hold for {kept}: keep as many, or make the model small before calibrating the copy"
        )


_ERRORS = (
    "rows",
    "measured_on",
    "irnet_mae_before",
    "irnet_mae_after",
    "random_forest_mae_before",
    "random_forest_mae_after",
    "largest_irnet_change",
)


def _describe(large: ScreeningModel, small: ScreeningModel, weights: Weights) -> dict[str, Any]:
    """Return what was stored how, and the sizes."""
    forest = None
    if large.forest is not None and small.forest is not None:
        forest = {
            "nodes_before": large.forest.nodes,
            "nodes_after": small.forest.nodes,
            "trees": small.forest.trees,
            "leaves": LEAVES,
        }
    return {
        "weights": f"{weights} per output channel{_fewer(large, small)}",
        "forest": forest,
        "bytes_before": sum(path.stat().st_size for path in model_files(large.path)),
        "bytes_after": sum(path.stat().st_size for path in model_files(small.path)),
    }


def _fewer(large: ScreeningModel, small: ScreeningModel) -> str:
    before, after = len(large.ensemble.members), len(small.ensemble.members)
    return "" if before == after else f", {after} of {before} members"


def _measure(large: ScreeningModel, small: ScreeningModel, weights: Weights) -> dict[str, Any]:
    """Return the fields of the card that held-out rows decide."""
    features, target = load_rows(large.path / HELD_OUT_NAME)
    before = predict_all(large.ensemble, large.forest, features)
    after = predict_all(small.ensemble, small.forest, features)

    def mae(values: NDArray[np.float64]) -> float:
        return float(np.abs(values - target).mean())

    forest = large.forest is not None and small.forest is not None
    return {
        "held_out": tuple(score_predictions(after, target, group="held_out")),
        "compression": Compression(
            **_describe(large, small, weights),
            rows=len(target),
            measured_on=f"held-out rows of {large.card.name}",
            irnet_mae_before=mae(before["irnet"]),
            irnet_mae_after=mae(after["irnet"]),
            random_forest_mae_before=mae(before["random_forest"]) if forest else None,
            random_forest_mae_after=mae(after["random_forest"]) if forest else None,
            largest_irnet_change=float(np.abs(after["irnet"] - before["irnet"]).max()),
        ),
    }
