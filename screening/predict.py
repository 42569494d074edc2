"""Predictions for structures of the user's own."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from prototypes import SYMBOLS
from screening.columns import (
    DISTANCE,
    ENTHALPY,
    ENTHALPY_HIGH,
    ENTHALPY_LOW,
    ENTHALPY_STD,
    PREDICTIONS,
    RF_ENTHALPY,
    write_table,
)
from screening.crystal import Crystal
from screening.feature_tables import (
    Features,
    ParallelMap,
    ProgressCall,
    featurize_structures,
    write_failures,
)
from screening.features import Engine
from screening.features.table import Failure
from screening.model_library import ScreeningModel
from screening.score import LoadedModel, score_candidates
from screening.terminal import format_interval

DECIMALS = 6


def predict_structures(
    model: ScreeningModel,
    crystals: Sequence[Crystal],
    work: Path,
    *,
    engine: Engine = "fast",
    device: str = "auto",
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
) -> tuple[pa.Table, tuple[Failure, ...]]:
    """Predict formation enthalpies.

    Args:
        model: The model.
        crystals: Structures with distinct ids.
        work: Folder for features on the way.
        engine: Which featurizer.
        device: Where the networks run.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).

    Returns:
        A table of `screening.columns.PREDICTIONS` in the order of the crystals, and the structures
        that could not be featurized.
    """
    features = featurize_structures(crystals, work, engine=engine, run=run, progress=progress)
    by_id = {crystal.id: crystal for crystal in crystals}
    return _tabulate(model, features, [by_id[name] for name in features.ids], device), (
        features.failures
    )


def write_predictions(table: pa.Table, failures: Sequence[Failure], path: Path) -> None:
    """Write predictions, and what failed beside them.

    Args:
        table: As `predict_structures` returns it.
        failures: Structures that could not be read or featurized.
        path: The Parquet file; failures go to ``<stem>.failures.parquet``.

    Raises:
        OutputError: A file cannot be written.
    """
    write_failures(failures, path)
    write_table(table, path, PREDICTIONS)


def _tabulate(
    model: ScreeningModel, features: Features, crystals: Sequence[Crystal], device: str
) -> pa.Table:
    formulas = [crystal.formula for crystal in crystals]
    loaded = LoadedModel(model, model.ensemble.scorer(device=device))
    scores = score_candidates(loaded, torch.from_numpy(features.values.astype(np.float32)))
    trained = set(model.training_elements)
    unseen = [
        " ".join(s for s in (SYMBOLS[z - 1] for z in np.unique(c.numbers)) if s not in trained)
        for c in crystals
    ]

    def column(values: NDArray[np.float64]) -> pa.Array:
        # a single member has no spread, a model without forest no opinion of one: NaN becomes null
        return pa.array(values.round(DECIMALS), pa.float64(), from_pandas=True)

    return pa.table(
        {
            "id": pa.array(features.ids, pa.string()),
            "formula": pa.array(formulas, pa.string()),
            ENTHALPY.name: column(scores.mean),
            ENTHALPY_STD.name: column(scores.std),
            ENTHALPY_LOW.name: column(scores.low),
            ENTHALPY_HIGH.name: column(scores.high),
            RF_ENTHALPY.name: column(scores.forest),
            "known": pa.array(model.training_formulas.contains(formulas), pa.bool_()),
            DISTANCE.name: column(scores.distance),
            "unseen_elements": pa.array(unseen, pa.string()),
            "imputed_elements": pa.array([t or None for t in features.imputed], pa.string()),
        }
    )


def show_predictions(table: pa.Table, most: int) -> pd.DataFrame:
    """The first rows of predictions, as text for a terminal.

    The interval takes the place of the spread where there is one; `unseen` and `distance` are left
    out where they say nothing.

    Args:
        table: As `predict_structures` returns it.
        most: Rows to show.
    """
    shown = table.slice(0, most).to_pandas()
    rows = pd.DataFrame(
        {
            "id": shown["id"],
            "formula": shown["formula"],
            "IRNet eV/atom": shown[ENTHALPY.name].map(_show),
            "±": shown[ENTHALPY_STD.name].map(_show),
            "90 % interval": list(
                map(format_interval, shown[ENTHALPY_LOW.name], shown[ENTHALPY_HIGH.name])
            ),
            "RF eV/atom": shown[RF_ENTHALPY.name].map(_show),
            "known": shown["known"].map({True: "yes", False: ""}),
            "distance": shown[DISTANCE.name].map(lambda d: "" if pd.isna(d) else f"{d:.2f}"),
            "unseen": shown["unseen_elements"],
        }
    )
    calibrated = table[ENTHALPY_LOW.name].null_count < len(table)
    idle = ["±"] if calibrated else ["90 % interval", "distance"]
    return rows.drop(columns=idle if (rows["unseen"] != "").any() else [*idle, "unseen"])


def _show(energy: float | None) -> str:
    return "-" if pd.isna(energy) else f"{energy:.3f}"
