"""Making a model small enough to ship: 8-bit weights, a pruned forest, and what that costs."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from screening.errors import ConfigurationError, ModelError, OutputError
from screening.evaluation import predict_all
from screening.model_card import CARD_NAME, Card, Compression, read_card, write_card
from screening.model_library import (
    ENSEMBLE_NAME,
    FOREST_NAME,
    FORMULAS_NAME,
    ScreeningModel,
    load_model,
    model_files,
)
from screening.training import HELD_OUT_NAME, load_rows, writing_to

WEIGHTS = "int8"
LEAVES = "float16"


def bundle_model(
    source: Path,
    destination: Path,
    *,
    measure_on: Path,
    twin: Path | None = None,
    trees: int | None = None,
    nodes: int = 600_000,
    overwrite: bool = False,
) -> Card:
    """Write a small copy of a model, with the cost in error measured and put into its card.

    Weights become 8-bit integers with one scale per output channel; the forest loses the subtrees
    that save the least squared error on its training rows, and its leaves become 16-bit floats.

    Args:
        source: The model.
        destination: Folder of the small model.
        measure_on: Training folder whose held-out rows the cost is measured on. If it is not the
            source's own, the source may have been trained on them: the cost is then the difference
            between two fits, which is what counts here.
        twin: Model of the same recipe whose held-out errors and evaluation the card takes over,
            where the source was trained on everything.
        trees: Trees of the forest to keep; all if None.
        nodes: Most nodes of the pruned forest.
        overwrite: Whether to replace a model at the destination.

    Returns:
        The card of the small model.

    Raises:
        ModelError: The source or the twin is no finished model, or there are no held-out rows.
        ConfigurationError: The destination is there already.
        OutputError: It cannot be written.
    """
    rows = measure_on / HELD_OUT_NAME
    if not rows.exists():
        raise ModelError(
            f"{measure_on} has no held-out rows to measure the cost on. Give --measure-on a model "
            "that was trained with --holdout."
        )
    large = load_model(source)
    _clear(destination, overwrite)
    features, target = load_rows(rows)
    with writing_to(destination):
        destination.mkdir(parents=True, exist_ok=True)
        large.ensemble.save(destination / ENSEMBLE_NAME, precision=WEIGHTS)
        if large.forest is not None:
            small_forest = large.forest.pruned(
                nodes=nodes, trees=None if trees is None else min(trees, large.forest.trees)
            )
            small_forest.save(destination / FOREST_NAME, precision=LEAVES, prunable=False)
        shutil.copyfile(source / FORMULAS_NAME, destination / FORMULAS_NAME)
    card = large.card.model_copy(update={"name": destination.resolve().name})
    if twin is not None:
        measured = read_card(twin)
        card = card.model_copy(
            update={
                "held_out": measured.held_out,
                "evaluation": measured.evaluation,
                "measured_on_twin": (
                    f"a model of the same recipe trained on {measured.data.rows:,} structures, "
                    f"without {measured.data.excluded_formulas:,} evaluated formulas and "
                    f"{measured.data.held_out_rows:,} held-out structures"
                ),
            }
        )
    write_card(card, destination)
    small = load_model(destination)
    card = card.model_copy(
        update={"compression": _measure(large, small, features, target, measure_on.name)}
    )
    write_card(card, destination)
    return card


def _measure(
    large: ScreeningModel,
    small: ScreeningModel,
    features: NDArray[np.float32],
    target: NDArray[np.float64],
    measured_on: str,
) -> Compression:
    before = predict_all(large.ensemble, large.forest, features)
    after = predict_all(small.ensemble, small.forest, features)

    def mae(values: NDArray[np.float64]) -> float:
        return float(np.abs(values - target).mean())

    forest = None
    if large.forest is not None and small.forest is not None:
        forest = {
            "nodes_before": large.forest.nodes,
            "nodes_after": small.forest.nodes,
            "trees": small.forest.trees,
            "leaves": LEAVES,
        }
    return Compression(
        weights=f"{WEIGHTS} per output channel",
        forest=forest,
        rows=len(target),
        measured_on=f"held-out rows of {measured_on}",
        irnet_mae_before=mae(before["irnet"]),
        irnet_mae_after=mae(after["irnet"]),
        random_forest_mae_before=mae(before["random_forest"]) if forest else None,
        random_forest_mae_after=mae(after["random_forest"]) if forest else None,
        largest_irnet_change=float(np.abs(after["irnet"] - before["irnet"]).max()),
        bytes_before=sum(path.stat().st_size for path in model_files(large.path)),
        bytes_after=sum(path.stat().st_size for path in model_files(small.path)),
    )


def _clear(destination: Path, overwrite: bool) -> None:
    try:
        if not destination.exists() or not any(destination.iterdir()):
            return
        if not overwrite:
            raise ConfigurationError(f"{destination} exists; give --overwrite to replace it")
        owned = {CARD_NAME, ENSEMBLE_NAME, FOREST_NAME, FORMULAS_NAME}
        foreign = sorted(entry.name for entry in destination.iterdir() if entry.name not in owned)
        if foreign:
            raise ConfigurationError(
                f"{destination} holds {foreign[0]!r}, which is no part of a small model; it is "
                "left as it is. Choose another folder."
            )
        shutil.rmtree(destination)
    except OSError as error:
        raise OutputError.from_os_error(error, destination) from error
