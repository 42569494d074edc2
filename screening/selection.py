"""Which of a shard's candidates stay: those that meet the conditions, and of these the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from screening.chemistry import CHEMISTRY_COLUMNS
from screening.columns import ABOVE_HULL, ENTHALPY_STD, P_STABLE
from screening.folder import BEST, BEST_COLUMNS, STD_EDGES
from screening.rank import ORDER_COLUMNS, sort_candidates
from screening.requirements import Requirement, apply_requirements, parse_requirement
from screening.shards import SITE, measure_nothing

if TYPE_CHECKING:
    from screening.settings import RankBy
    from screening.shards import Measure, ScoredCandidates

PROBABLE: Final = 0.5
"""Probability of being stable from which a candidate counts as probable."""

_STD: Final = ENTHALPY_STD.name


@dataclass(frozen=True, eq=False)
class Selection:
    """What stays of a shard, and what became of the others.

    Attributes:
        rows: Rows of the shard that stay, ascending, shape (r,).
        table: Columns that were made for the choice, of these rows.
        removed: By condition, as in `screening.folder.Receipt`, as are the following.
        dropped: Scored candidates that met all conditions and are not among the best.
        below_hull: Scored candidates that met all conditions and are not above the hull.
        probable: Those that met all conditions and are probably stable.
        std_histogram: Standard deviations of the formation enthalpies of those that met them.
    """

    rows: NDArray[np.int64]
    table: pa.Table
    removed: Mapping[str, Mapping[str, int]]
    dropped: int
    below_hull: int
    probable: int
    std_histogram: tuple[int, ...]


def divide_requirements(
    texts: Sequence[str],
) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...]]:
    """Return the conditions that can be tested before candidates are scored, and the others."""
    requirements = [parse_requirement(text) for text in texts]
    early = tuple(each for each in requirements if each.column in CHEMISTRY_COLUMNS)
    return early, tuple(each for each in requirements if each not in early)


def meet_requirements(
    requirements: Sequence[Requirement], table: pa.Table
) -> tuple[NDArray[np.int64], dict[str, dict[str, int]]]:
    """Say which rows meet all conditions, and what each condition did.

    Args:
        requirements: The conditions.
        table: A table with their columns. A role that it lacks is one of another prototype of the
            campaign: null.

    Returns:
        The rows, ascending, and numbers as in `screening.folder.Receipt.removed`.
    """
    for requirement in requirements:
        name = requirement.column
        if name.startswith(SITE) and name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    keep, outcomes = apply_requirements(requirements, table)
    return np.flatnonzero(keep), {
        requirement.text: {"removed": each.removed, "not_applicable": each.not_applicable}
        for requirement, each in zip(requirements, outcomes, strict=True)
    }


def select_rows(
    shard: ScoredCandidates,
    requirements: Sequence[Requirement],
    order: RankBy,
    keep_top: int | None,
    *,
    made: pa.Table | None = None,
    measure: Measure = measure_nothing,
) -> Selection:
    """Choose the candidates of a shard that its table will hold.

    Only the columns that the choice needs are made for all of them.

    Args:
        shard: The candidates, scored or failed.
        requirements: Conditions that they must meet.
        order: The campaign's order.
        keep_top: How many of the scored ones stay; None lets all stay.
        made: Columns that were made before.
        measure: Measures the time of a stage.

    Returns:
        The choice: the best, and all failures that meet the conditions.
    """
    table = shard.tabulate({each.column for each in requirements}, made=made, measure=measure)
    with measure("write"):
        rows, removed = meet_requirements(requirements, table)
        ranked = rows[np.asarray(table["reason"].is_null())[rows]]
        of_ranked = table.select([*ORDER_COLUMNS, _STD]).take(pa.array(ranked))
        kept = ranked
        if keep_top is not None and len(ranked) > keep_top:
            best_first = sort_candidates(of_ranked, [shard.space.prototype.name], order)
            kept = ranked[best_first[:keep_top]]
        stays = np.union1d(np.setdiff1d(rows, ranked), kept)
        above_hull, p_stable, std = (
            of_ranked[name].to_numpy() for name in (ABOVE_HULL.name, P_STABLE.name, _STD)
        )
        histogram, _ = np.histogram(std, (*STD_EDGES, np.inf))
        return Selection(
            rows=stays,
            table=table.take(pa.array(stays)),
            removed=removed,
            dropped=len(ranked) - len(kept),
            below_hull=int((above_hull <= 0).sum()),
            probable=int((p_stable >= PROBABLE).sum()),
            std_histogram=tuple(histogram.tolist()),
        )


def show_best(table: pa.Table, order: RankBy) -> tuple[dict[str, Any], ...]:
    """Return the best rows of a shard's table, as its receipt shows them, best first."""
    scored = table.filter(table["reason"].is_null())
    best = sort_candidates(scored, pc.unique(scored["prototype"]).to_pylist(), order)[:BEST]
    return tuple(scored.select(list(BEST_COLUMNS)).take(pa.array(best)).to_pylist())
