"""Candidates without a score, of all shards of a campaign, as tables of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from screening.columns import FAILED_CANDIDATES
from screening.shards import FIRST_SITES, SITE, tabulate_lost

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.enumerate import Shard

ROWS_TOGETHER: Final = 65_536
"""Rows that are gathered at least before they are handed on."""


@dataclass(frozen=True, eq=False)
class LostShard:
    """A shard that was given up.

    Attributes:
        space: The space of its prototype.
        shard: The shard.
        reason: Why it was given up.
    """

    space: CandidateSpace
    shard: Shard
    reason: str


def gather_failures(
    shards: Iterable[Path | LostShard], spaces: Sequence[CandidateSpace]
) -> Iterator[pa.Table]:
    """Yield the candidates that could not be scored, with their reasons.

    Args:
        shards: Shards in order, each as the Parquet file of its table or as a lost one; those
            without failures may be left out.
        spaces: The spaces of the campaign, whose roles the tables have columns for.

    Yields:
        Tables of the kind `screening.columns.FAILED_CANDIDATES` with the columns of `list_columns`,
        at least one.
    """
    schema = list_columns(spaces)
    gathered, rows = [schema.empty_table()], 0
    for table in _read_all(shards):
        gathered.append(table)
        rows += len(table)
        if rows >= ROWS_TOGETHER:
            yield _join(gathered, schema)
            gathered, rows = [], 0
    if gathered:
        yield _join(gathered, schema)


def list_columns(spaces: Sequence[CandidateSpace]) -> pa.Schema:
    """Return the columns of a campaign's failures: the prototypes' roles are among them."""
    roles = [f"{SITE}{role}" for space in spaces for role in space.prototype.roles]
    names = ("prototype", "candidate", "formula", *FIRST_SITES, *roles, "reason")
    columns = {}
    for name in names:
        registered = FAILED_CANDIDATES.column(name)
        if registered is not None:
            columns[name] = pa.field(name, pa.type_for_alias(registered.dtype))
    return pa.schema(FAILED_CANDIDATES.sort(columns).values())


def _read_all(shards: Iterable[Path | LostShard]) -> Iterator[pa.Table]:
    for shard in shards:
        if isinstance(shard, LostShard):
            yield from tabulate_lost(shard.space, shard.shard, shard.reason)
        else:
            yield _read_failures(shard)


def _read_failures(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if FAILED_CANDIDATES.column(name)]
        table = file.read(names)
    return table.filter(table["reason"].is_valid())


def _join(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    joined = pa.concat_tables(tables, promote_options="default")
    return joined.select(schema.names).combine_chunks()
