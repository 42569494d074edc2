"""Features of many structures: cut into chunks, computed anywhere, kept in Parquet.

A chunk is a few hundred sites to some thousand, so that structures of 600 sites and of one site
share the work evenly. Whoever computes a chunk writes its part file atomically and answers with a
receipt; rows of features never travel between processes, and parts that are already there are not
computed again.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from screening.columns import (
    FAILED_STRUCTURES,
    FEATURE_TABLE,
    IMPUTED_STRUCTURES,
    write_table,
    written_atomically,
)
from screening.crystal import Crystal
from screening.errors import InputDataError, OutputError, suggest
from screening.features import Engine
from screening.features.schema import FEATURES
from screening.features.table import Failure
from screening.parquet import read_columns, read_frame, read_names, read_numbers

ENGINES: tuple[Engine, ...] = get_args(Engine)

SITES_PER_CHUNK: dict[Engine, int] = {"fast": 3000, "matminer": 60}
"""About half a second to a second of work, of structures that add up to this many sites."""

STRUCTURE_OVERHEAD = 4
"""What a structure costs besides its sites, in sites."""

_PART_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("reason", pa.string()),
        ("imputed_elements", pa.string()),
        ("values", pa.list_(pa.float64(), len(FEATURES))),
    ]
)


@dataclass(frozen=True)
class FeatureChunk:
    """Some structures to featurize into one file.

    Attributes:
        crystals: The structures.
        engine: Which featurizer.
        path: Part file to write.
    """

    crystals: tuple[Crystal, ...]
    engine: Engine
    path: Path


@dataclass(frozen=True)
class ChunkReceipt:
    """That a chunk is on disk.

    Attributes:
        path: The part file.
        structures: Structures in it, failures included.
        sites: Sites of them.
    """

    path: Path
    structures: int
    sites: int


@dataclass(frozen=True)
class Features:
    """Features of structures.

    Attributes:
        ids: Identifier of each row.
        values: Shape (len(ids), 271), float64, in the order of ``FEATURES``.
        imputed: Elements of each row with a property that was filled, separated by commas; empty
            where there is none.
        failures: Structures without features, with their reasons.
    """

    ids: tuple[str, ...]
    values: NDArray[np.float64]
    imputed: tuple[str, ...]
    failures: tuple[Failure, ...]


ProgressCall = Callable[[int, int, str], None]
"""Told how many of how many are done, and a note."""

ParallelMap = Callable[
    [Callable[[FeatureChunk, int], ChunkReceipt], Sequence[FeatureChunk]], Iterable[ChunkReceipt]
]
"""Runs a function on every chunk and the number of a worker; yields the answers in any order."""


def join_features(parts: Sequence[Features]) -> Features:
    """Put the features of several tables, at least one, after each other.

    Args:
        parts: The tables.
    """
    return Features(
        tuple(name for part in parts for name in part.ids),
        np.concatenate([part.values for part in parts]),
        tuple(elements for part in parts for elements in part.imputed),
        tuple(failure for part in parts for failure in part.failures),
    )


def featurize_structures(
    crystals: Sequence[Crystal],
    work: Path,
    *,
    engine: Engine = "fast",
    run: ParallelMap | None = None,
    progress: ProgressCall | None = None,
) -> Features:
    """Compute the features of structures, chunk by chunk.

    Args:
        crystals: Structures with distinct ids.
        work: Folder for the part files. Parts found there are not computed again, so that a
            killed computation continues; remove the folder when the result is safe.
        engine: ``fast`` (one Voro++ tessellation and array arithmetic) or ``matminer``.
        run: How to run the chunks; one after the other in this process if None.
        progress: Called with (sites done, sites in all, a note) after each chunk.

    Returns:
        The features in the order of the crystals.

    Raises:
        InputDataError: The engine is not known.
        OutputError: A part cannot be written.
    """
    if engine not in ENGINES:
        raise InputDataError(
            f"unknown engine {engine!r}{suggest(engine, ENGINES)} Known: {', '.join(ENGINES)}."
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(error, work) from error
    chunks = [
        _make_chunk([crystals[i] for i in rows], engine, work)
        for rows in balance_chunks([len(c) for c in crystals], SITES_PER_CHUNK[engine])
    ]
    missing = [chunk for chunk in chunks if not chunk.path.exists()]
    total = sum(len(crystal) for crystal in crystals)
    sites = total - sum(len(crystal) for chunk in missing for crystal in chunk.crystals)
    structures = len(crystals) - sum(len(chunk.crystals) for chunk in missing)
    if progress:
        progress(sites, total, f"{structures:,} of {len(crystals):,} structures")
    for receipt in (run or _run_serially)(featurize_chunk, missing):
        sites += receipt.sites
        structures += receipt.structures
        if progress:
            progress(sites, total, f"{structures:,} of {len(crystals):,} structures")
    return _collect([crystal.id for crystal in crystals], [chunk.path for chunk in chunks])


def balance_chunks(sites: Sequence[int], sites_per_chunk: int) -> list[list[int]]:
    """Cut structures into chunks of about equal work, the dearest first.

    Args:
        sites: Number of sites of each structure.
        sites_per_chunk: Work of a chunk; a larger structure is a chunk of its own.

    Returns:
        Row numbers of each chunk; together every row once.
    """
    order = sorted(range(len(sites)), key=lambda row: (-sites[row], row))
    chunks: list[list[int]] = []
    load = sites_per_chunk
    for row in order:
        cost = sites[row] + STRUCTURE_OVERHEAD
        if not chunks or load + cost > sites_per_chunk:
            chunks.append([])
            load = 0
        chunks[-1].append(row)
        load += cost
    return chunks


def featurize_chunk(chunk: FeatureChunk, worker: int = 0) -> ChunkReceipt:
    """Compute one chunk and write its part file; runs in any process.

    Args:
        chunk: The structures and where to write.
        worker: Number of the worker that runs it, as `screening.cluster` hands to every task;
            all compute alike.

    Returns:
        A receipt.

    Raises:
        OutputError: The file cannot be written.
    """
    from screening.features import featurize_crystals

    table = featurize_crystals(list(chunk.crystals), engine=chunk.engine)
    ids = [*table.ids, *(failure.id for failure in table.failures)]
    reasons = [None] * len(table.ids) + [failure.reason for failure in table.failures]
    imputed = [",".join(elements) for elements in table.imputed] + [""] * len(table.failures)
    values = np.full((len(ids), len(FEATURES)), np.nan)
    values[: len(table.ids)] = table.values
    arrays = [
        pa.array(ids, pa.string()),
        pa.array(reasons, pa.string()),
        pa.array(imputed, pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(FEATURES)),
    ]
    with written_atomically(chunk.path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, schema=_PART_SCHEMA), temporary)
    return ChunkReceipt(chunk.path, len(ids), sum(len(crystal) for crystal in chunk.crystals))


def write_features(features: Features, path: Path, failures: Sequence[Failure] = ()) -> None:
    """Write features as an id column and 271 named columns, and what failed beside them.

    Three files are written: ``path``; ``<stem>.failures.parquet`` with id and reason; and
    ``<stem>.imputed.parquet`` with the rows whose elements have filled-in properties.

    Args:
        features: What to write.
        path: The feature table.
        failures: Further failures, of structures that could not even be read.

    Raises:
        OutputError: A file cannot be written.
    """
    columns = {"id": pa.array(features.ids, pa.string())}
    columns |= {
        name: pa.array(np.ascontiguousarray(features.values[:, i]))
        for i, name in enumerate(FEATURES)
    }
    filled = [
        (name, elements)
        for name, elements in zip(features.ids, features.imputed, strict=True)
        if elements
    ]
    imputed = pa.table(
        {
            "id": pa.array([name for name, _ in filled], pa.string()),
            "imputed_elements": pa.array([elements for _, elements in filled], pa.string()),
        }
    )
    write_failures([*failures, *features.failures], path)
    write_table(imputed, beside(path, "imputed"), IMPUTED_STRUCTURES)
    write_table(pa.table(columns), path, FEATURE_TABLE)


def write_failures(failures: Sequence[Failure], path: Path) -> Path:
    """Write the failures of a table beside it, also where there are none.

    Args:
        failures: What failed and why.
        path: The table that they are missing from.

    Returns:
        Where they are: ``<stem>.failures.parquet``.

    Raises:
        OutputError: The file cannot be written.
    """
    target = beside(path, "failures")
    table = pa.table(
        {
            "id": pa.array([failure.id for failure in failures], pa.string()),
            "reason": pa.array([failure.reason for failure in failures], pa.string()),
        }
    )
    write_table(table, target, FAILED_STRUCTURES)
    return target


def read_features(path: Path) -> Features:
    """Read a table that `write_features` wrote, or any with an id and the 271 columns.

    Args:
        path: The feature table. Failures are read from beside it where they are there.

    Returns:
        The features; ``imputed`` is empty for every row.

    Raises:
        InputDataError: The file cannot be read, lacks a column or repeats an id.
    """
    present = read_names(path)
    for column in ("id", *FEATURES):
        if column not in present:
            raise InputDataError(
                f'{path} has no column "{column}"{suggest(column, present)} '
                "Make the table with: screening featurize"
            )
    table = read_frame(path, ["id", *FEATURES])
    values = read_numbers(table[list(FEATURES)], path)
    ids = tuple(map(str, table["id"]))
    if len(set(ids)) < len(ids):
        name, count = Counter(ids).most_common(1)[0]
        raise InputDataError(f"{path} has {count} rows of the id {name!r}. Make ids unique.")
    failed = beside(path, "failures")
    failures: tuple[Failure, ...] = ()
    if failed.exists():
        present = read_names(failed)
        if not {"id", "reason"} <= set(present):
            raise InputDataError(f"{failed} has no columns id and reason; remove it")
        rows = read_frame(failed, ["id", "reason"])
        failures = tuple(
            Failure(str(name), str(reason))
            for name, reason in zip(rows["id"], rows["reason"], strict=True)
        )
    return Features(ids, values, ("",) * len(ids), failures)


def beside(path: Path, word: str) -> Path:
    """The companion of a table: ``X.parquet`` and ``failures`` give ``X.failures.parquet``."""
    stem = path.name.removesuffix(".parquet")
    return path.with_name(f"{stem}.{word}.parquet")


def _make_chunk(crystals: Sequence[Crystal], engine: Engine, work: Path) -> FeatureChunk:
    digest = hashlib.sha256(json.dumps([engine, *FEATURES]).encode())
    for crystal in crystals:
        digest.update(crystal.id.encode() + b"\0")
        for array in (crystal.lattice, crystal.numbers, crystal.frac_coords):
            digest.update(np.ascontiguousarray(array).tobytes())
    return FeatureChunk(tuple(crystals), engine, work / f"{digest.hexdigest()[:24]}.parquet")


def _run_serially(
    function: Callable[[FeatureChunk, int], ChunkReceipt], chunks: Sequence[FeatureChunk]
) -> Iterator[ChunkReceipt]:
    return (function(chunk, 0) for chunk in chunks)


def _collect(ids: Sequence[str], parts: Sequence[Path]) -> Features:
    position = {name: row for row, name in enumerate(ids)}
    values = np.full((len(ids), len(FEATURES)), np.nan)
    imputed = [""] * len(ids)
    reasons: dict[str, str] = {}
    read: list[str] = []
    for part in parts:
        table = read_columns(part)
        if not table.schema.equals(_PART_SCHEMA) or not set(table["id"].to_pylist()) <= {*ids}:
            raise InputDataError(f"{part} is no part of these features; remove it and run again.")
        names = table["id"].to_pylist()
        rows = np.array([position[name] for name in names], dtype=np.int64)
        block = table["values"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        values[rows] = block.reshape(len(rows), len(FEATURES))
        for name, reason, elements in zip(
            names, table["reason"].to_pylist(), table["imputed_elements"].to_pylist(), strict=True
        ):
            read.append(name)
            imputed[position[name]] = elements
            if reason is not None:
                reasons[name] = reason
    if len(read) != len(ids) or set(read) != set(ids):
        raise InputDataError(
            f"{len(ids)} structures went into featurizing and {len(read)} came out. "
            "Remove the part files and run again."
        )
    kept = np.array([i for i, name in enumerate(ids) if name not in reasons], dtype=np.int64)
    return Features(
        tuple(ids[i] for i in kept),
        values[kept],
        tuple(imputed[i] for i in kept),
        tuple(Failure(name, reasons[name]) for name in ids if name in reasons),
    )
