"""The columns of what a model predicts, for candidates and for structures of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.columns import (
    ABOVE_HULL,
    ABOVE_HULL_STD,
    CLASS_PROBABILITY,
    DECOMPOSITION,
    DISTANCE,
    ENTHALPY,
    ENTHALPY_HIGH,
    ENTHALPY_LOW,
    ENTHALPY_STD,
    P_STABLE,
    PREDICTED_CLASS,
    REFERENCES_IN_SYSTEM,
    RF_ABOVE_HULL,
    RF_ENTHALPY,
    STABILITY,
)

if TYPE_CHECKING:
    from irnet import Classification
    from screening.score import Scores
    from screening.stability import Placement

DECIMALS: Final = 6
"""Decimals kept of an energy in eV/atom: far below any model's error, above rounding noise."""


def tabulate_scores(scores: Scores) -> dict[str, pa.Array]:
    """Return the columns of formation enthalpies, their intervals and the distance, by name."""
    return {
        ENTHALPY.name: round_column(scores.mean),
        ENTHALPY_STD.name: round_column(scores.std),
        ENTHALPY_LOW.name: round_column(scores.low),
        ENTHALPY_HIGH.name: round_column(scores.high),
        RF_ENTHALPY.name: round_column(scores.forest),
        DISTANCE.name: round_column(scores.distance),
    }


def tabulate_classes(found: Classification) -> dict[str, pa.Array]:
    """Return the columns of the likeliest class and of the probability of each, by name."""
    names = [found.classes[number] for number in found.likeliest.tolist()]
    return {
        PREDICTED_CLASS.name: pa.array(names, pa.string()),
        **{
            name_probability(name): round_column(found.probabilities[:, number])
            for number, name in enumerate(found.classes)
        },
    }


def name_probability(name: str) -> str:
    """Return the name of the column with the probability of a class."""
    return CLASS_PROBABILITY.name.replace("*", name)


def tabulate_placement(placement: Placement | None, rows: int) -> dict[str, pa.Array]:
    """Return the columns of the hull, by name.

    Args:
        placement: Where `rows` candidates stand; None if no hull was computed: all null.
        rows: Number of candidates.
    """
    return {
        **tabulate_stability(placement, rows),
        DECOMPOSITION.name: tabulate_decompositions(placement, rows),
    }


def tabulate_stability(placement: Placement | None, rows: int) -> dict[str, pa.Array]:
    """Return the columns of the hull but for the decompositions, the only dear one, by name.

    Args:
        placement: Where `rows` candidates stand; None if no hull was computed: all null.
        rows: Number of candidates.
    """
    if placement is None:
        return {
            column.name: pa.nulls(rows, pa.type_for_alias(column.dtype))
            for column in (*STABILITY, RF_ABOVE_HULL)
            if column is not DECOMPOSITION
        }
    judged = placement.stability
    return {
        ABOVE_HULL.name: round_column(judged.energy_above_hull),
        ABOVE_HULL_STD.name: round_column(judged.std),
        P_STABLE.name: round_column(judged.p_stable),
        REFERENCES_IN_SYSTEM.name: pa.array(placement.references, pa.int64()),
        RF_ABOVE_HULL.name: round_column(judged.forest_energy_above_hull),
    }


def tabulate_decompositions(placement: Placement | None, rows: int) -> pa.Array:
    """Return the column of decompositions of `rows` candidates; null if no hull was computed."""
    if placement is None:
        return pa.nulls(rows, pa.string())
    return pa.array(placement.write_decompositions(), pa.string())


def round_column(values: NDArray[np.float64]) -> pa.Array:
    """Return energies as a column: rounded, NaN as null, -0.0 as 0.0.

    Args:
        values: In eV/atom, shape (m,).
    """
    return pa.array(np.round(values, DECIMALS) + 0.0, pa.float64(), from_pandas=True)
