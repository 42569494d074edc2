"""What a ranking takes in time and memory, of all candidates and of the best alone.

    python benchmarks/ranking.py CAMPAIGN [--shards 31] [--keep-top 1000]

The largest shard of a finished campaign is written again and again, each time with other numbers
and energies, once whole and once cut to its best rows, as --keep-top cuts it. Each set of shards is
merged and written in a process of its own, whose memory is that above an empty ranking's.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe_machine

from screening.enumerate import ShardGrid, describe_grid
from screening.folder import RunFolder
from screening.rank import rank_candidates, sort_candidates
from screening.settings import RankBy

ENERGY = "energy_above_hull_ev_per_atom"


def write_shards(model: Path, out: Path, shards: int, keep_top: int) -> None:
    """Write the folders `whole` and `cut` of so many shards like the largest of a campaign."""
    campaign = RunFolder.open(model)
    largest = max((model / "shards").glob("*.parquet"), key=lambda path: path.stat().st_size)
    table, random = pq.read_table(largest), np.random.default_rng(0)
    (prototype,) = set(table["prototype"].to_pylist())
    grid = ShardGrid(len(table), ((prototype, shards * len(table)),))
    folders = [RunFolder(out / name) for name in ("whole", "cut")]
    for folder in folders:
        (folder.path / "shards").mkdir(parents=True)
        folder.write_manifest({**campaign.manifest, "grid": describe_grid(grid)})
    for shard in grid:
        above_hull = table[ENERGY].to_numpy() + random.normal(0.0, 0.01, len(table))
        changed = {"candidate": np.arange(shard.start, shard.stop), ENERGY: above_hull.round(6)}
        other = table
        for name, values in changed.items():
            place = other.column_names.index(name)
            other = other.set_column(place, name, pa.array(values))
        best = sort_candidates(other, [prototype], RankBy.ENERGY_ABOVE_HULL)[:keep_top]
        folders[0].write_shard(other, shard)
        folders[1].write_shard(other.take(pa.array(np.sort(best))), shard)


def merge(path: Path, shards: int, keep_top: int | None) -> None:
    """Rank and write, and print what it took."""
    folder = RunFolder(path)
    started = time.perf_counter()
    ranking = rank_candidates(
        [folder.table_path(shard) for shard in folder.shards[:shards]],
        [*folder.shards.index_counts[0][:1]],
        RankBy.ENERGY_ABOVE_HULL,
        keep_top,
    )
    folder.write_ranking(ranking)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's peak too
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    print(json.dumps({"rows": len(ranking), "seconds": seconds, "bytes": int(peak) * 1024}))


def measure(out: Path, shards: int, keep_top: int) -> Iterator[str]:
    """Yield the rows of a Markdown table."""
    size = RunFolder(out / "whole").shards.shard_size
    tops: dict[str, int | None] = {"whole": None, "cut": keep_top}
    parts = (shards // 4, shards // 2, shards)

    def call(name: str, part: int, top: int | None) -> dict[str, float]:
        command = [sys.executable, __file__, str(out / name), "--merge", "--shards", str(part)]
        kept = [] if top is None else ["--keep-top", str(top)]
        done = subprocess.run([*command, *kept], capture_output=True, text=True, check=True)
        read: dict[str, float] = json.loads(done.stdout)
        return read

    empty = call("cut", 0, None)["bytes"]
    yield "| candidates | kept | ranked and written in | memory |"
    yield "|---|---|---|---|"
    for (name, top), part in product(tops.items(), parts):
        found = call(name, part, top)
        yield (
            f"| {part * size:,} | {found['rows']:,.0f} | {found['seconds']:.1f} s "
            f"| {(found['bytes'] - empty) / 1e6:,.0f} MB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("campaign", type=Path)
    parser.add_argument("--shards", type=int, default=31)
    parser.add_argument("--keep-top", type=int)
    parser.add_argument("--merge", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge:
        merge(arguments.campaign, arguments.shards, arguments.keep_top)
        return
    keep_top = arguments.keep_top or 1000
    print(describe_machine())
    with tempfile.TemporaryDirectory() as temporary:
        write_shards(arguments.campaign, Path(temporary), arguments.shards, keep_top)
        for line in measure(Path(temporary), arguments.shards, keep_top):
            print(line, flush=True)


if __name__ == "__main__":
    main()
