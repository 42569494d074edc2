from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from screening import failures, shards
from screening.columns import FAILED_CANDIDATES, check_table
from screening.enumerate import Shard, enumerate_candidates, open_spaces
from screening.failures import LostShard, gather_failures

SPACES, _ = open_spaces(["B2", "perovskite"], ["Li,Na,K,Mg,O,F"])
B2, PEROVSKITE = SPACES


def write_shard(path: Path, reasons: list[str | None]) -> Path:
    rows = len(reasons)
    table = pa.table(
        {
            "prototype": ["B2"] * rows,
            "candidate": list(range(rows)),
            "formula": ["NaF"] * rows,
            "site_A": ["Na"] * rows,
            "p_stable": pa.array([0.5] * rows),
            "reason": pa.array(reasons, pa.string()),
        }
    )
    pq.write_table(table, path)
    return path


def test_failures_of_shards_and_lost_shards_come_in_order(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "0.parquet", [None, "not finite", None, "no radius"])
    lost = LostShard(PEROVSKITE, Shard(1, "perovskite", 10, 90), "killed the worker")
    last = write_shard(tmp_path / "2.parquet", ["not finite"])
    (table,) = gather_failures([first, lost, last], SPACES)
    check_table(table, FAILED_CANDIDATES)
    candidates = enumerate_candidates(PEROVSKITE, 10, 90)
    assert table["candidate"].to_pylist() == [1, 3, *candidates.indices.tolist(), 0]
    of_lost = table.slice(2, len(candidates))
    assert set(of_lost["reason"].to_pylist()) == {"killed the worker"}
    assert of_lost["formula"].to_pylist() == PEROVSKITE.formulas(candidates.numbers)
    assert table["reason"].to_pylist()[:2] == ["not finite", "no radius"]
    assert table["site_X"].to_pylist()[:2] == [None, None]


def test_without_failures_there_is_one_empty_table() -> None:
    (table,) = gather_failures([], SPACES)
    assert len(table) == 0
    assert table.column_names[-1] == "reason"


def test_every_role_of_the_campaign_has_its_column() -> None:
    spaces, _ = open_spaces(["B2", "double_perovskite"], ["Li,Na,K,Mg,O,F"])
    (table,) = gather_failures([], spaces)
    names = ["site_A", "site_B", "site_X", "site_C"]
    assert table.column_names == ["prototype", "candidate", "formula", *names, "reason"]


def test_no_more_than_so_many_rows_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "ROWS_TOGETHER", 30)
    monkeypatch.setattr(shards, "LOST_BLOCK", 16)
    lost = LostShard(PEROVSKITE, Shard(0, "perovskite", 0, PEROVSKITE.index_count), "lost")
    tables = list(gather_failures([lost], SPACES))
    assert len(tables) > 3
    assert all(len(table) < 30 + 16 for table in tables)
    indices = np.concatenate([table["candidate"].to_numpy() for table in tables])
    assert indices.tolist() == PEROVSKITE.decode(0, PEROVSKITE.index_count)[0].tolist()
