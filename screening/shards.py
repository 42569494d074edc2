"""The table of a shard: one row for each candidate, scored or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.columns import SHARD
from screening.features.elements import element_table
from screening.prediction_columns import tabulate_placement, tabulate_scores

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.enumerate import Candidates
    from screening.model_library import ScreeningModel
    from screening.score import Scores
    from screening.stability import Placement

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
        **tabulate_scores(scores),
        **tabulate_placement(placement, rows),
        **dict(zip(described.column_names, described.columns, strict=True)),
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
