"""The table of a shard: one row for each candidate, scored or failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.features.elements import element_table

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.enumerate import Candidates
    from screening.model_library import ScreeningModel
    from screening.score import Scores

DECIMALS: Final = 6
"""Decimals kept of an enthalpy in eV/atom: far below any model's error, above rounding noise."""

_FIRST_SITES: Final = ("site_A", "site_B", "site_X")


@dataclass(frozen=True, eq=False)
class ScoredBlock:
    """Candidates that went through the stages together.

    Attributes:
        candidates: The candidates.
        rows: Which of them were scored.
        scores: Their scores, one for each of `rows`.
        reasons: Why the others were not, by row.
    """

    candidates: Candidates
    rows: NDArray[np.int64]
    scores: Scores
    reasons: Mapping[int, str]


def tabulate_shard(
    space: CandidateSpace, blocks: Sequence[ScoredBlock], model: ScreeningModel
) -> pa.Table:
    """Return the table of a shard.

    Args:
        space: Space that the candidates belong to.
        blocks: The candidates with their scores, in order.
        model: The model that scored them, which knows its training data.

    Returns:
        A table of the kind `screening.columns.SHARD`.
    """
    indices = np.concatenate(
        [np.empty(0, np.int64), *(block.candidates.indices for block in blocks)]
    )
    numbers = np.concatenate(
        [
            np.empty((0, len(space.pools)), np.uint8),
            *(block.candidates.numbers for block in blocks),
        ]
    )
    rows = len(indices)
    numerical = {
        name: np.full(rows, np.nan) for name in ("mean", "std", "low", "high", "forest", "distance")
    }
    reasons: list[str | None] = [None] * rows
    start = 0
    for block in blocks:
        for name, column in numerical.items():
            column[start + block.rows] = np.round(getattr(block.scores, name), DECIMALS) + 0.0
        for row, reason in block.reasons.items():
            reasons[start + row] = reason
        start += len(block.candidates)

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
    formulas = space.formulas(numbers)
    columns = {name: pa.array(values, from_pandas=True) for name, values in numerical.items()}
    return pa.table(
        {
            "prototype": pa.array([space.prototype.name] * rows, pa.string()),
            "candidate": indices,
            "formula": pa.array(formulas, pa.string()),
            **dict(sorted(on_role.items(), key=_site_order)),
            "formation_enthalpy_ev_per_atom": columns["mean"],
            "formation_enthalpy_std_ev_per_atom": columns["std"],
            "formation_enthalpy_low_ev_per_atom": columns["low"],
            "formation_enthalpy_high_ev_per_atom": columns["high"],
            "rf_formation_enthalpy_ev_per_atom": columns["forest"],
            "known": model.training_formulas.contains(formulas),
            "applicability_distance": columns["distance"],
            "unseen_elements": _name_elements(numbers, unseen, symbols, " ", none=""),
            "imputed_elements": _name_elements(numbers, imputed, symbols, ",", none=None),
            "reason": pa.array(reasons, pa.string()),
        }
    )


def _site_order(column: tuple[str, pa.Array]) -> tuple[bool, str]:
    return column[0] not in _FIRST_SITES, column[0]


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
