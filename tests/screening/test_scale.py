"""Campaigns that keep only their best: exact, and in memory that their size does not change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

Program = Callable[..., Result]

POOL = "Li,Na,K,Cs,Mg,Al,Ti,O,F"
"""Elements of 1,512 double perovskites."""

KEPT = 40

MEASURE = """
import json, sys
from pathlib import Path
import pyarrow
from screening.cli import main

try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
status = Path("/proc/self/status").read_text().split()
peak = 1024 * int(status[status.index("VmHWM:") + 1])
arrow = pyarrow.default_memory_pool().max_memory()
Path(sys.argv[-1], "peak.json").write_text(json.dumps([peak, arrow]))
"""


def command(model: Path, out: Path, *options: object) -> list[str]:
    return [
        "run", "--prototype", "double_perovskite", "--model", str(model), "--workers", "0",
        *map(str, options), "--out", str(out),
    ]  # fmt: skip


def read_ranking(folder: Path) -> pa.Table:
    return pq.read_table(folder / "ranking.parquet")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a campaign that keeps all."""
    return tmp_path_factory.mktemp("whole") / "campaign"


@pytest.mark.parametrize("order", ["p_stable", "energy_above_hull", "upper_bound"])
def test_what_is_kept_are_the_first_rows_of_everything_sorted(
    calibrated_model: Path, everything: Path, tmp_path: Path, screening: Program, order: str
) -> None:
    options = ("--elements", POOL, "--shard-size", 500, "--rank-by", order)
    whole = screening(*command(calibrated_model, everything, *options))
    assert whole.exit_code == 0, whole.output
    options += ("--keep-top", KEPT)
    kept = screening(*command(calibrated_model, tmp_path / "kept", *options))
    assert kept.exit_code == 0, kept.output
    ranking, best = read_ranking(everything), read_ranking(tmp_path / "kept")
    assert len(ranking) == 1512
    assert len(best) == KEPT
    assert best["rank"].to_pylist() == list(range(1, KEPT + 1))
    forest = ["rf_rank"]  # is about the rows that are there
    assert best.drop_columns(forest).equals(ranking.slice(0, KEPT).drop_columns(forest))
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert manifest["counts"]["total"] == 1512
    shards = [pq.read_metadata(path).num_rows for path in (tmp_path / "kept").rglob("0*.parquet")]
    assert len(shards) > 10
    assert max(shards) == KEPT


def measure_peak(model: Path, out: Path, elements: str, *options: object) -> tuple[int, int]:
    """Run a campaign in a process of its own; its largest resident size, and Arrow's, in bytes."""
    shards = ("--competitors", "none", "--shard-size", 2000)
    call = command(model, out, "--elements", elements, *shards, *options)
    subprocess.run([sys.executable, "-c", MEASURE, *call], check=True, capture_output=True)
    peak, arrow = json.loads((out / "peak.json").read_text())
    return peak, arrow


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_number_of_candidates(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Shards of the same size, but 20 instead of 4; without --keep-top the same measures grow.

    The driver is its own worker, so that neither of the two can hide what grows.
    """
    many = f"{POOL},Be,N,P,S,Cl"
    small, small_arrow = measure_peak(tiny_model, tmp_path / "a", POOL, "--keep-top", KEPT)
    large, large_arrow = measure_peak(tiny_model, tmp_path / "b", many, "--keep-top", KEPT)
    whole, whole_arrow = measure_peak(tiny_model, tmp_path / "c", many)
    assert len(read_ranking(tmp_path / "c")) == 12_012
    assert large_arrow < 1.5 * small_arrow < whole_arrow
    assert large - small < 12e6
    assert whole - small > 20e6
