"""Predictions for structures of the user's own: as much as a campaign says of its candidates.

A model of classes gives the likeliest class and the probability of each instead.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from prototypes import SYMBOLS
from screening.chemistry import tabulate_compositions
from screening.columns import (
    ABOVE_HULL,
    ABOVE_HULL_STD,
    CLASS_PREDICTIONS,
    DECOMPOSITION,
    DISTANCE,
    ENTHALPY,
    ENTHALPY_HIGH,
    ENTHALPY_LOW,
    ENTHALPY_STD,
    P_STABLE,
    PREDICTED_CLASS,
    PREDICTIONS,
    RF_ABOVE_HULL,
    RF_ENTHALPY,
    TableKind,
    write_table,
)
from screening.crystal import Crystal
from screening.feature_tables import (
    ParallelMap,
    ProgressCall,
    featurize_structures,
    write_failures,
)
from screening.features import Engine
from screening.features.table import Failure
from screening.known import KnownCompounds
from screening.model_library import ScreeningModel
from screening.phases import MOST_ELEMENTS
from screening.prediction_columns import (
    DECIMALS,
    name_probability,
    round_column,
    tabulate_classes,
    tabulate_placement,
    tabulate_scores,
)
from screening.references import References
from screening.score import LoadedModel, Scores, score_candidates
from screening.settings import DEFAULT_STABLE_WITHIN
from screening.stability import place_on_hull
from screening.terminal import describe_hull, format_interval, format_probability

RECORD: Final = b"screening"
"""Key of the file's metadata that says, as JSON, what the predictions rest on."""


@dataclass(frozen=True, eq=False)
class _Compounds:
    """Compositions of m structures, of at most k elements.

    Attributes:
        formulas: Reduced formulas, length m.
        numbers: Atomic numbers, ascending, 0 beyond, shape (m, k), uint8.
        amounts: Atoms of each in the cell, 0 beyond, shape (m, k).
    """

    formulas: list[str]
    numbers: NDArray[np.uint8]
    amounts: NDArray[np.int64]

    @classmethod
    def of(cls, crystals: Sequence[Crystal]) -> "_Compounds":
        counted = [np.unique(crystal.numbers, return_counts=True) for crystal in crystals]
        width = max((len(which) for which, _ in counted), default=1)
        numbers = np.zeros((len(crystals), width), np.uint8)
        amounts = np.zeros((len(crystals), width), np.int64)
        for row, (which, many) in enumerate(counted):
            numbers[row, : len(which)] = which
            amounts[row, : len(many)] = many
        return cls([crystal.formula for crystal in crystals], numbers, amounts)

    def __len__(self) -> int:
        return len(self.formulas)

    def as_counts(self) -> list[dict[int, int]]:
        """Atoms of each atomic number, for each compound."""
        return [
            {int(z): int(amount) for z, amount in zip(which, many, strict=True) if z}
            for which, many in zip(self.numbers, self.amounts, strict=True)
        ]


def predict_structures(
    model: ScreeningModel,
    crystals: Sequence[Crystal],
    work: Path,
    *,
    references: References | None = None,
    stable_within: float = DEFAULT_STABLE_WITHIN,
    engine: Engine = "fast",
    device: str = "auto",
    precision: str = "auto",
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
) -> tuple[pa.Table, tuple[Failure, ...]]:
    """Predict formation enthalpies and, beside reference phases, energies above hull.

    Args:
        model: The model.
        crystals: Structures with distinct ids.
        work: Folder for features on the way.
        references: Phases that the structures compete with, one of their own composition
            included. None computes no hull: all columns of it are null.
        stable_within: Energy above hull that still counts as stable, eV/atom.
        engine: Which featurizer.
        device: Where the networks run.
        precision: Arithmetic of the networks: auto, int8, bf16 or fp32.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).

    Returns:
        A table of `screening.columns.PREDICTIONS` in the order of the crystals, and the structures
        that could not be featurized, among them those with elements beyond Lr. Compounds of more
        than nine elements have no energy above hull. The table's metadata say what it rests on.
    """
    features = featurize_structures(crystals, work, engine=engine, run=run, progress=progress)
    by_id = {crystal.id: crystal for crystal in crystals}
    compounds = _Compounds.of([by_id[name] for name in features.ids])
    loaded = LoadedModel(model, model.ensemble.scorer(device=device, precision=precision))
    scores = score_candidates(loaded, torch.from_numpy(features.values.astype(np.float32)))
    columns = {
        "id": pa.array(features.ids, pa.string()),
        "formula": pa.array(compounds.formulas, pa.string()),
        **tabulate_scores(scores),
        **_tabulate_stability(model, compounds, scores, references, stable_within),
        **_tabulate_known(model, compounds, references),
        **tabulate_compositions(compounds.as_counts()),
        "unseen_elements": _name_unseen(model, compounds),
        "imputed_elements": pa.array([names or None for names in features.imputed], pa.string()),
    }
    table = pa.table(PREDICTIONS.sort(columns)).replace_schema_metadata(
        {RECORD: json.dumps(_describe_basis(loaded, references, stable_within))}
    )
    return table, features.failures


def classify_structures(
    model: ScreeningModel,
    crystals: Sequence[Crystal],
    work: Path,
    *,
    engine: Engine = "fast",
    device: str = "auto",
    precision: str = "auto",
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
) -> tuple[pa.Table, tuple[Failure, ...]]:
    """Predict classes.

    Args:
        model: A model of classes.
        crystals: Structures with distinct ids.
        work: Folder for features on the way.
        engine: Which featurizer.
        device: Where the networks run.
        precision: Arithmetic of the networks: auto, int8, bf16 or fp32.
        run: How to run the chunks of featurizing; in this process if None.
        progress: Called with (sites featurized, sites in all, a note).

    Returns:
        A table of `screening.columns.CLASS_PREDICTIONS` in the order of the crystals, and the
        structures that could not be featurized. The table's metadata say what it rests on.
    """
    features = featurize_structures(crystals, work, engine=engine, run=run, progress=progress)
    by_id = {crystal.id: crystal for crystal in crystals}
    compounds = _Compounds.of([by_id[name] for name in features.ids])
    scorer = model.ensemble.scorer(device=device, precision=precision)
    found = scorer.classify(features.values.astype(np.float32))
    columns = {
        "id": pa.array(features.ids, pa.string()),
        "formula": pa.array(compounds.formulas, pa.string()),
        **tabulate_classes(found),
        **_tabulate_known(model, compounds, None),
        **tabulate_compositions(compounds.as_counts()),
        "unseen_elements": _name_unseen(model, compounds),
        "imputed_elements": pa.array([names or None for names in features.imputed], pa.string()),
    }
    del columns["known_formation_enthalpy_ev_per_atom"]
    table = pa.table(CLASS_PREDICTIONS.sort(columns)).replace_schema_metadata(
        {
            RECORD: json.dumps(
                {
                    "model": _describe_model(model),
                    "precision": scorer.precision,
                    "classes": found.classes,
                }
            )
        }
    )
    return table, features.failures


def write_predictions(
    table: pa.Table, failures: Sequence[Failure], path: Path, kind: TableKind = PREDICTIONS
) -> None:
    """Write predictions, and what failed beside them.

    Args:
        table: As `predict_structures` or `classify_structures` returns it.
        failures: Structures that could not be read or featurized.
        path: The Parquet file; failures go to ``<stem>.failures.parquet``.
        kind: `PREDICTIONS` or `CLASS_PREDICTIONS`, as the table is.

    Raises:
        OutputError: A file cannot be written.
    """
    write_failures(failures, path)
    write_table(table, path, kind)


def read_basis(table: pa.Table) -> dict[str, Any]:
    """Return what predictions rest on.

    Args:
        table: As `predict_structures` returns it, or read from its file.

    Returns:
        `model` (name, sha256), `precision` of the networks, `references` (file, sha256, phases,
        functional) and `stable_within_ev_per_atom`; the last two are None without references.
    """
    basis: dict[str, Any] = json.loads(table.schema.metadata[RECORD])
    return basis


def _tabulate_stability(
    model: ScreeningModel,
    compounds: _Compounds,
    scores: Scores,
    references: References | None,
    within: float,
) -> dict[str, pa.Array]:
    """Columns of the hull; null where there is none, by lack of references or many elements."""
    if references is None:
        return tabulate_placement(None, len(compounds))
    few = np.flatnonzero((compounds.numbers > 0).sum(axis=1) <= MOST_ELEMENTS)
    placement = place_on_hull(
        references.phases,
        compounds.numbers[few],
        compounds.amounts[few],
        scores.select(few),
        model.uncertainty,
        within=within,
    )
    places = np.full(len(compounds), -1)
    places[few] = np.arange(len(few))
    taken = pa.array(places, mask=places < 0)
    columns = tabulate_placement(placement, len(few))
    return {name: column.take(taken) for name, column in columns.items()}


def _tabulate_known(
    model: ScreeningModel, compounds: _Compounds, references: References | None
) -> dict[str, pa.Array]:
    known = KnownCompounds.of(
        model.training_formulas, None if references is None else references.phases
    )
    found = known.find(compounds.formulas)
    nearest, distances = known.find_nearest(compounds.numbers, compounds.amounts)
    return {
        "known": pa.array(found.known, pa.bool_()),
        "known_id": pa.array([name or None for name in found.ids], pa.string()),
        "known_formation_enthalpy_ev_per_atom": round_column(found.energies),
        "nearest_known_formula": pa.array(nearest.tolist(), pa.string()),
        "nearest_known_distance": pa.array(distances.round(DECIMALS), mask=~np.isfinite(distances)),
    }


def _name_unseen(model: ScreeningModel, compounds: _Compounds) -> pa.Array:
    trained = set(model.training_elements)
    return pa.array(
        [
            " ".join(s for s in (SYMBOLS[z - 1] for z in row if z) if s not in trained)
            for row in compounds.numbers.tolist()
        ],
        pa.string(),
    )


def _describe_model(model: ScreeningModel) -> dict[str, str]:
    return {"name": model.card.name, "sha256": model.content_hash}


def _describe_basis(
    loaded: LoadedModel, references: References | None, within: float
) -> dict[str, Any]:
    return {
        "model": _describe_model(loaded.model),
        "precision": loaded.scorer.precision,
        "references": None
        if references is None
        else {
            "file": str(references.path),
            "sha256": references.sha256,
            "phases": len(references.phases),
            "functional": references.functional,
        },
        "stable_within_ev_per_atom": None if references is None else within,
    }


def show_predictions(table: pa.Table, most: int) -> pd.DataFrame:
    """The first rows of predictions, as text for a terminal.

    Beside references, what there is of the hull takes the place of the interval, of the Random
    Forest's enthalpy and of the distance. Without, the interval takes the place of the spread where
    there is one. Columns that say nothing are left out.

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
            "above hull": list(
                map(_show_with_std, shown[ABOVE_HULL.name], shown[ABOVE_HULL_STD.name])
            ),
            "p stable": shown[P_STABLE.name].map(
                lambda p: format_probability(None if pd.isna(p) else p)
            ),
            "RF above hull": shown[RF_ABOVE_HULL.name].map(_show),
            "known": list(map(_show_known, shown["known"], shown["known_id"])),
            "distance": shown[DISTANCE.name].map(lambda d: "" if pd.isna(d) else f"{d:.2f}"),
            "unseen": shown["unseen_elements"],
            "decomposes into": shown[DECOMPOSITION.name].fillna("-"),
        }
    )
    calibrated = table[ENTHALPY_LOW.name].null_count < len(table)
    idle = [] if (rows["unseen"] != "").any() else ["unseen"]
    if table[ABOVE_HULL.name].null_count < len(table):
        idle += ["±", "90 % interval", "RF eV/atom", "distance"]
        idle += [] if calibrated else ["p stable"]
    else:
        idle += ["above hull", "p stable", "RF above hull", "decomposes into"]
        idle += ["±"] if calibrated else ["90 % interval", "distance"]
    return rows.drop(columns=idle)


def show_classes(table: pa.Table, most: int) -> pd.DataFrame:
    """The first rows of predicted classes, as text for a terminal.

    Args:
        table: As `classify_structures` returns it.
        most: Rows to show.
    """
    shown = table.slice(0, most).to_pandas()
    likeliest = [
        f"{shown.loc[row, name_probability(name)]:.3f}"
        for row, name in shown[PREDICTED_CLASS.name].items()
    ]
    rows = pd.DataFrame(
        {
            "id": shown["id"],
            "formula": shown["formula"],
            "class": shown[PREDICTED_CLASS.name],
            "probability": likeliest,
            "known": list(map(_show_known, shown["known"], shown["known_id"])),
            "unseen": shown["unseen_elements"],
        }
    )
    return rows if (rows["unseen"] != "").any() else rows.drop(columns="unseen")


def count_left_out(table: pa.Table) -> int:
    """Count the structures that have no energy above hull although there are references.

    Args:
        table: As `predict_structures` returns it.
    """
    return int(table[ABOVE_HULL.name].null_count) if read_basis(table)["references"] else 0


def describe_stability(table: pa.Table) -> str | None:
    """Say what the columns of the hull mean on the terminal.

    Args:
        table: As `predict_structures` returns it.

    Returns:
        A phrase that names the reference phases; None without references.
    """
    basis = read_basis(table)
    hull = describe_hull(
        {"references": basis["references"], "predicted": {}, "candidates_compete": False}
    )
    if hull is None:
        return None
    phrase = f"above hull: eV/atom above that of {hull}, the same composition included"
    if table[P_STABLE.name].null_count == len(table):
        return phrase
    within = basis["stable_within_ev_per_atom"]
    return f"{phrase}; p stable: probability of at most {within:g} above it"


def _show(energy: float | None) -> str:
    return "-" if pd.isna(energy) else f"{energy:.3f}"


def _show_with_std(energy: float | None, std: float | None) -> str:
    return _show(energy) if pd.isna(std) else f"{_show(energy)} ± {_show(std)}"


def _show_known(known: bool, name: str | None) -> str:
    return (name or "yes") if known else ""
