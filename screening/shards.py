"""The table of a shard: one row for each candidate, scored or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.columns import (
    ABOVE_HULL,
    ABOVE_HULL_STD,
    DECOMPOSITION,
    P_STABLE,
    REFERENCES_IN_SYSTEM,
    RF_ABOVE_HULL,
    SHARD,
    STABILITY,
)
from screening.features.elements import element_table

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.enumerate import Candidates
    from screening.model_library import ScreeningModel
    from screening.score import Scores
    from screening.stability import Placement

DECIMALS: Final = 6
"""Decimals kept of an enthalpy in eV/atom: far below any model's error, above rounding noise."""

_FIRST_SITES: Final = ("site_A", "site_B", "site_X")


def tabulate_shard(
    space: CandidateSpace,
    candidates: Candidates,
    formulas: Sequence[str],
    scores: Scores,
    reasons: Mapping[int, str],
    model: ScreeningModel,
    *,
    placement: Placement | None,
    described: pa.Table,
) -> pa.Table:
    """Return the table of a shard.

    Args:
        space: Space that the candidates belong to.
        candidates: The candidates.
        formulas: Their reduced formulas.
        scores: Their scores; NaN for those that failed.
        reasons: Why they failed, by row.
        model: The model that scored them, which knows its training data.
        placement: Where they stand beside their competitors; None if no hull was computed.
        described: Columns about the compositions: chemistry, and what is known of them.

    Returns:
        A table of the kind `screening.columns.SHARD`.
    """
    numbers, rows = candidates.numbers, len(candidates)
    table = element_table()
    symbols = np.array(table.symbols, dtype=object)
    on_role = {
        f"site_{role}": pa.array(symbols[numbers[:, place]], pa.string())
        for place, role in enumerate(space.prototype.roles)
    }
    for site in _FIRST_SITES:
        on_role.setdefault(site, pa.nulls(rows, pa.string()))
    trained_on = frozenset(model.training_elements)
    unseen = np.array([bool(symbol) and symbol not in trained_on for symbol in table.symbols])
    imputed = np.array([bool(properties) for properties in table.imputed])
    columns = {
        "prototype": pa.array([space.prototype.name] * rows, pa.string()),
        "candidate": pa.array(candidates.indices),
        "formula": pa.array(formulas, pa.string()),
        **on_role,
        "formation_enthalpy_ev_per_atom": _round(scores.mean),
        "formation_enthalpy_std_ev_per_atom": _round(scores.std),
        "formation_enthalpy_low_ev_per_atom": _round(scores.low),
        "formation_enthalpy_high_ev_per_atom": _round(scores.high),
        "rf_formation_enthalpy_ev_per_atom": _round(scores.forest),
        **_tabulate_placement(placement, rows),
        **dict(zip(described.column_names, described.columns, strict=True)),
        "applicability_distance": _round(scores.distance),
        "unseen_elements": _name_elements(numbers, unseen, symbols, " ", none=""),
        "imputed_elements": _name_elements(numbers, imputed, symbols, ",", none=None),
        **{
            f"member_{number}_ev_per_atom": pa.array(member, pa.float32(), from_pandas=True)
            for number, member in enumerate(scores.members.T, start=1)
        },
        "error_scale_ev_per_atom": pa.array(scores.error_scale, pa.float32(), from_pandas=True),
        "reason": pa.array([reasons.get(row) for row in range(rows)], pa.string()),
    }
    return pa.table(SHARD.sort(columns))


def _tabulate_placement(placement: Placement | None, rows: int) -> dict[str, pa.Array]:
    if placement is None:
        return {
            column.name: pa.nulls(rows, pa.type_for_alias(column.dtype))
            for column in (*STABILITY, RF_ABOVE_HULL)
        }
    judged = placement.stability
    return {
        ABOVE_HULL.name: _round(judged.energy_above_hull),
        ABOVE_HULL_STD.name: _round(judged.std),
        P_STABLE.name: _round(judged.p_stable),
        DECOMPOSITION.name: pa.array(placement.decompositions, pa.string()),
        REFERENCES_IN_SYSTEM.name: pa.array(placement.references, pa.int64()),
        RF_ABOVE_HULL.name: _round(judged.forest_energy_above_hull),
    }


def _round(values: NDArray[np.float64]) -> pa.Array:
    """As a column: NaN becomes null, and -0.0 becomes 0.0."""
    return pa.array(np.round(values, DECIMALS) + 0.0, pa.float64(), from_pandas=True)


def _name_elements(
    numbers: NDArray[np.uint8],
    chosen: NDArray[np.bool_],
    symbols: NDArray[np.object_],
    separator: str,
    none: str | None,
) -> pa.Array:
    """Name the elements of each row that are among the chosen ones, in the order of the roles."""
    named: list[str | None] = [none] * len(numbers)
    hits = chosen[numbers]
    for row in np.flatnonzero(hits.any(axis=1)).tolist():
        named[row] = separator.join(symbols[numbers[row][hits[row]]])
    return pa.array(named, pa.string())
