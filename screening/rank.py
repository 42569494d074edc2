"""Sixth stage: all finished shards of a campaign as one ranking, best first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from screening.columns import RANKING, SHARD, ColumnError, check_table
from screening.errors import ConfigurationError, InputDataError, suggest
from screening.requirements import Requirement, apply_requirements
from screening.settings import RankBy

ONE_SIDED_90: Final = 1.2816
"""Standard deviations between the mean and the bound that 90 % of a normal distribution keep."""

ORDER_COLUMNS: Final = (
    "prototype",
    "candidate",
    "formation_enthalpy_ev_per_atom",
    "energy_above_hull_ev_per_atom",
    "energy_above_hull_std_ev_per_atom",
    "p_stable",
)
"""Columns that decide the place of a scored candidate, by whatever order."""

FloatArray = NDArray[np.float64]

FALLBACKS: Final = {
    RankBy.P_STABLE: (RankBy.ENERGY_ABOVE_HULL, RankBy.FORMATION_ENTHALPY),
    RankBy.UPPER_BOUND: (RankBy.ENERGY_ABOVE_HULL, RankBy.FORMATION_ENTHALPY),
    RankBy.LOWER_BOUND: (RankBy.ENERGY_ABOVE_HULL, RankBy.FORMATION_ENTHALPY),
    RankBy.ENERGY_ABOVE_HULL: (RankBy.FORMATION_ENTHALPY,),
    RankBy.FORMATION_ENTHALPY: (),
}
"""What a ranking goes by where a column is null for all candidates, the first that there is."""


def rank_candidates(
    shards: Sequence[Path],
    prototypes: Sequence[str],
    rank_by: RankBy = RankBy.P_STABLE,
    keep_top: int | None = None,
) -> pa.Table:
    """Merge shards into a ranking over the whole campaign.

    The most probably stable candidates come first, then those of the lowest energy above hull; or
    those of the lowest energy above hull or formation enthalpy alone; or those of the lowest bound
    that nine in ten energies above hull are to stay below (upper bound, averse to risk) or to
    exceed (lower bound, exploratory). Where a column is null for all candidates, `find_order` says
    what the ranking goes by instead; candidates for which it is null among others go last.

    Ties are broken by the order of the prototypes and then by the candidate's index, so that the
    same shards give the same bytes, in whatever order they were computed.

    Args:
        shards: Parquet files of finished shards, in the order of their numbers.
        prototypes: Names of the campaign's prototypes in order.
        rank_by: What to rank by; with `keep_top`, the campaign's order from `resolve_order`.
        keep_top: How many of the best to keep; None keeps all. No more than twice as many and the
            rows of one shard are in memory at any time.

    Returns:
        The ranking, as `screening.columns` has it, without the candidates that were not scored.
    """
    if keep_top is None:
        tables = [_read_scored(path) for path in shards]
    else:
        tables = _read_top(shards, prototypes, rank_by, keep_top)
    merged = pa.concat_tables(tables or [_make_empty()], promote_options="default")
    del tables
    return rank_again(merged, prototypes, rank_by)


def rank_again(
    candidates: pa.Table, prototypes: Sequence[str], rank_by: RankBy = RankBy.P_STABLE
) -> pa.Table:
    """Rank scored candidates, or a ranking anew by something else.

    Args:
        candidates: A ranking, or its columns without the ranks, in any order.
        prototypes: Names of the campaign's prototypes in order.
        rank_by: What to rank by.

    Returns:
        The ranking, as `screening.columns` has it.
    """
    order = find_order(candidates, rank_by)
    best_first = sort_candidates(candidates, prototypes, order)

    columns = dict(zip(candidates.column_names, candidates.columns, strict=True))
    columns["rf_rank"] = _rank_by_forest(candidates, order, _read_ties(candidates, prototypes))
    columns["rank"] = pa.array(_places(best_first))
    del candidates
    rows = pa.array(best_first)
    registered = [column.name for column in RANKING.columns if not column.name.endswith("*")]
    further = [name for name in columns if name.startswith("site_") and name not in registered]
    after = registered.index("site_X") + 1
    ranking = pa.table(
        {
            name: columns.pop(name).take(rows)  # one after the other: no second copy of all
            for name in (*registered[:after], *further, *registered[after:])
        }
    )
    check_table(ranking, RANKING)
    return ranking


def sort_candidates(
    candidates: pa.Table, prototypes: Sequence[str], order: RankBy
) -> NDArray[np.intp]:
    """Sort scored candidates: the one order of rankings, receipts and of what a shard keeps.

    Args:
        candidates: Any table with the columns `ORDER_COLUMNS`.
        prototypes: Names of the campaign's prototypes in order.
        order: What to sort by, as it is.

    Returns:
        Rows of the table, best first.
    """
    ties = _read_ties(candidates, prototypes)
    return np.lexsort((*ties, *reversed(_ascending(candidates, order))))


def resolve_order(
    rank_by: RankBy, *, has_hull: bool, has_probability: bool, has_std: bool
) -> RankBy:
    """Say what a ranking will go by before any candidate is scored.

    `find_order` says the same afterwards.

    Args:
        rank_by: What was asked for.
        has_hull: Whether energies above hull are computed.
        has_probability: Whether the model is calibrated, without which no candidate has a
            probability of being stable.
        has_std: Whether energies above hull have a standard deviation: by a calibrated model, or by
            one of several members.

    Returns:
        What the candidates can be ranked by.
    """
    possible = {
        RankBy.P_STABLE: has_hull and has_probability,
        RankBy.UPPER_BOUND: has_hull and has_std,
        RankBy.LOWER_BOUND: has_hull and has_std,
        RankBy.ENERGY_ABOVE_HULL: has_hull,
        RankBy.FORMATION_ENTHALPY: True,
    }
    return next(order for order in (rank_by, *FALLBACKS[rank_by]) if possible[order])


def find_order(candidates: pa.Table, rank_by: RankBy) -> RankBy:
    """Say what a ranking goes by, given what its columns hold.

    Without a hull there is no energy above it, and without a calibrated model no probability: where
    a column is null for all candidates, the ranking goes by the next of probability, energy above
    hull and formation enthalpy.

    Args:
        candidates: A ranking, or the columns that it is made of.
        rank_by: What was asked for.

    Returns:
        What the candidates can be ranked by.
    """
    for order in (rank_by, *FALLBACKS[rank_by]):
        if len(candidates) == 0 or not np.isnan(_ascending(candidates, order)[0]).all():
            return order
    return RankBy.FORMATION_ENTHALPY


def select_candidates(
    ranking: pa.Table,
    *,
    containing: Sequence[str] = (),
    new: bool = False,
    prototypes: Sequence[str] = (),
    requirements: Sequence[Requirement] = (),
    top: int | None = None,
) -> pa.Table:
    """Pick rows of a ranking; ranks stay those of the whole campaign.

    Args:
        ranking: Ranking to pick from.
        containing: Symbols that must all be in the compound.
        new: Leave out known compositions.
        prototypes: Only these prototypes; empty for all.
        requirements: Conditions that all must be met.
        top: At most this many rows; None for all.

    Returns:
        The rows, in the ranking's order.

    Raises:
        ConfigurationError: A symbol or prototype of which the campaign has no candidate.
    """
    sites = [name for name in ranking.column_names if name.startswith("site_")]
    for symbol in containing:
        there = {found for name in sites for found in pc.unique(ranking[name]).to_pylist()}
        if symbol not in there:
            elements = sorted(found for found in there if found)
            raise ConfigurationError(
                f"no candidate of this campaign holds {symbol}"
                f"{suggest(symbol, elements) or ';'} it has {' '.join(elements)}"
            )
    names = pc.unique(ranking["prototype"]).to_pylist()
    for prototype in prototypes:
        if prototype not in names:
            raise ConfigurationError(
                f"no candidate of this campaign has the prototype {prototype}"
                f"{suggest(prototype, names) or ';'} it has {', '.join(names)}"
            )
    keep = np.ones(len(ranking), dtype=bool)
    for symbol in containing:
        keep &= np.logical_or.reduce([_equals(ranking[name], [symbol]) for name in sites])
    if prototypes:
        keep &= _equals(ranking["prototype"], list(prototypes))
    if new:
        keep &= ~ranking["known"].to_numpy()
    chosen = ranking.filter(pa.array(keep))
    if requirements:
        chosen = chosen.filter(pa.array(apply_requirements(requirements, chosen)[0]))
    return chosen.slice(0, top)


def _read_top(
    shards: Sequence[Path], prototypes: Sequence[str], order: RankBy, top: int
) -> list[pa.Table]:
    """Read shard after shard and return tables with the best candidates of all.

    The tables together have the columns of all shards, also of those without such a candidate.
    """
    tables: list[pa.Table] = []
    columns, rows, limit = pa.schema([]), 0, float("nan")
    for path in shards:
        scored = _read_scored(path, order, limit)
        columns = pa.unify_schemas([columns, scored.schema])
        if not len(scored):
            continue
        tables.append(scored)
        rows += len(scored)
        if rows >= 2 * top:
            best = _take_best(columns, tables, prototypes, order, top)
            limit = float(_ascending(best.slice(top - 1), order)[0][0])
            tables, rows = [best], top
    return [_take_best(columns, tables, prototypes, order, top)] if shards else []


def _take_best(
    columns: pa.Schema,
    tables: Sequence[pa.Table],
    prototypes: Sequence[str],
    order: RankBy,
    top: int,
) -> pa.Table:
    joined = pa.concat_tables([columns.empty_table(), *tables], promote_options="default")
    return joined.take(pa.array(sort_candidates(joined, prototypes, order)[:top]))


def _read_scored(
    path: Path, order: RankBy = RankBy.FORMATION_ENTHALPY, limit: float = float("nan")
) -> pa.Table:
    """Read the scored candidates of a shard, and what the ranking holds of them.

    Args:
        path: Its table.
        order: What to rank by.
        limit: Largest of the numbers to sort by that can matter; NaN for all.
    """
    try:
        check_table(pq.read_schema(path).empty_table(), SHARD)
        return _read_checked(path, order, limit)
    except (OSError, pa.ArrowException, ColumnError) as error:
        raise InputDataError(
            f"{path} is damaged ({error}); delete it, and run the campaign's command again"
        ) from error


def _read_checked(path: Path, order: RankBy, limit: float) -> pa.Table:
    """Read what `_read_scored` does of a table with the columns of a shard."""
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if RANKING.column(name)]
        keys = file.read([*ORDER_COLUMNS, "reason"])
        wanted = np.asarray(keys["reason"].is_null())
        if not np.isnan(limit):
            wanted &= _ascending(keys, order)[0] <= limit
        if not wanted.any():
            schema = file.schema_arrow
            return pa.schema([schema.field(name) for name in names]).empty_table()
        table = file.read(names)
    return table if wanted.all() else table.filter(pa.array(wanted))


def _make_empty() -> pa.Table:
    """Make the table of a campaign whose shards are all lost."""
    columns = [column for column in SHARD.columns if RANKING.column(column.name)]
    return pa.schema(
        [
            (column.name, pa.type_for_alias(column.dtype))
            for column in columns
            if not column.name.endswith("*")
        ]
    ).empty_table()


def _read_ties(
    candidates: pa.Table, prototypes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return what breaks ties: the candidate's index, and before it the place of its prototype."""
    place = {name: number for number, name in enumerate(prototypes)}
    encoded = candidates["prototype"].combine_chunks().dictionary_encode()
    names = np.array([place[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    return (
        candidates["candidate"].to_numpy(),
        names[encoded.indices.to_numpy(zero_copy_only=False)],
    )


def _ascending(candidates: pa.Table, order: RankBy) -> tuple[FloatArray, ...]:
    """Return what to sort by in ascending order, the decisive array first; NaN goes last."""
    if order is RankBy.FORMATION_ENTHALPY:
        return (_read_numbers(candidates, "formation_enthalpy_ev_per_atom"),)
    energy = _read_numbers(candidates, "energy_above_hull_ev_per_atom")
    if order is RankBy.ENERGY_ABOVE_HULL:
        return (energy,)
    if order is RankBy.P_STABLE:
        return -_read_numbers(candidates, "p_stable"), energy
    std = _read_numbers(candidates, "energy_above_hull_std_ev_per_atom")
    margin = ONE_SIDED_90 * std
    return energy + margin if order is RankBy.UPPER_BOUND else energy - margin, energy


def _rank_by_forest(
    candidates: pa.Table, order: RankBy, ties: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> pa.Array:
    """Rank by the same kind of energy of the Random Forest; null where it has none."""
    energy = _read_numbers(candidates, "rf_energy_above_hull_ev_per_atom")
    if order is RankBy.FORMATION_ENTHALPY or np.isnan(energy).all():
        energy = _read_numbers(candidates, "rf_formation_enthalpy_ev_per_atom")
    return pa.array(_places(np.lexsort((*ties, energy))), mask=np.isnan(energy))


def _read_numbers(candidates: pa.Table, name: str) -> FloatArray:
    """Return a column as an array with NaN for null."""
    numbers: FloatArray = candidates[name].to_numpy()
    return numbers


def _places(order: NDArray[np.intp]) -> NDArray[np.int64]:
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return places


def _equals(column: pa.ChunkedArray, values: list[str]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(values)).to_numpy()
    return found
