"""Fourth stage: all finished shards of a campaign as one ranking, best first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from screening.columns import FAILED_CANDIDATES, RANKING, check_table
from screening.errors import ConfigurationError, ScreeningError, suggest


def rank_candidates(shards: Sequence[Path], prototypes: Sequence[str]) -> tuple[pa.Table, pa.Table]:
    """Merge shards into a ranking over the whole campaign.

    Ties are broken by the order of the prototypes and then by the candidate's index, so that the
    same shards give the same bytes, in whatever order they were computed.

    Args:
        shards: Parquet files of finished shards.
        prototypes: Names of the campaign's prototypes in order.

    Returns:
        The ranking and the candidates that could not be scored, as `screening.columns` has them.

    Raises:
        ScreeningError: Rows were lost between the stages.
    """
    merged = pa.concat_tables(
        [pq.read_table(path) for path in shards], promote_options="default"
    ).combine_chunks()
    sites = [name for name in merged.column_names if name.startswith("site_")]
    failed = pc.is_valid(merged["reason"])
    failures = merged.filter(failed).select(["prototype", "candidate", "formula", *sites, "reason"])
    scored = merged.filter(pc.invert(failed))
    if len(scored) + len(failures) != len(merged):
        raise ScreeningError(
            f"{len(merged)} candidates in the shards, but {len(scored)} ranked and "
            f"{len(failures)} failed; please report this as a bug"
        )
    place = {name: number for number, name in enumerate(prototypes)}
    encoded = scored["prototype"].combine_chunks().dictionary_encode()
    orders = np.array([place[name] for name in encoded.dictionary.to_pylist()], dtype=np.int64)
    ties = (scored["candidate"].to_numpy(), orders[encoded.indices.to_numpy(zero_copy_only=False)])

    best_first = np.lexsort((*ties, scored["formation_enthalpy_ev_per_atom"].to_numpy()))
    forest = scored["rf_formation_enthalpy_ev_per_atom"]
    if forest.null_count:
        forest_ranks = pa.nulls(len(scored), pa.int64())
    else:
        forest_ranks = pa.array(_places(np.lexsort((*ties, forest.to_numpy()))))
    ranked = scored.append_column("rf_rank", forest_ranks).take(pa.array(best_first))
    ranked = ranked.append_column("rank", pa.array(np.arange(1, len(ranked) + 1)))
    order = [column.name for column in RANKING.columns if not column.name.endswith("*")]
    further = [name for name in sites if name not in order]
    after = order.index("site_X") + 1
    ranking = ranked.select([*order[:after], *further, *order[after:]])
    check_table(ranking, RANKING)
    check_table(failures, FAILED_CANDIDATES)
    return ranking, failures


def select_candidates(
    ranking: pa.Table,
    *,
    containing: Sequence[str] = (),
    new: bool = False,
    prototypes: Sequence[str] = (),
    top: int | None = None,
) -> pa.Table:
    """Pick rows of a ranking; ranks stay those of the whole campaign.

    Args:
        ranking: Ranking to pick from.
        containing: Symbols that must all be in the compound.
        new: Leave out compositions that are in the model's training data.
        prototypes: Only these prototypes; empty for all.
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
    return ranking.filter(pa.array(keep)).slice(0, top)


def _places(order: NDArray[np.intp]) -> NDArray[np.int64]:
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(1, len(order) + 1)
    return places


def _equals(column: pa.ChunkedArray, values: list[str]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(values)).to_numpy()
    return found
