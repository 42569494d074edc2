from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from screening.columns import SHARD
from screening.enumerate import Shard
from screening.errors import ConfigurationError, FolderInUseError, OutputError
from screening.folder import Receipt, RunFolder

MakeReceipt = Callable[..., Receipt]

IDENTITY: dict[str, Any] = {
    "model": "abc",
    "prototypes": {"B2": "hash"},
    "elements": {"A": ["Li", "Na"], "B": ["F"]},
}


def claim(path: Path, **changes: Any) -> RunFolder:
    with RunFolder.claim(path, IDENTITY | changes, pytest.fail) as folder:
        if not folder.manifest_path.exists():
            grid = {"shard_size": 10, "index_counts": {"B2": 10}}
            folder.write_manifest({"campaign": IDENTITY | changes, "grid": grid})
    return folder


def test_the_same_campaign_takes_its_folder_up_again(tmp_path: Path) -> None:
    claim(tmp_path / "runs" / "a")
    folder = claim(tmp_path / "runs" / "a")
    assert list(folder.shards) == [Shard(0, "B2", 0, 10)]
    assert folder.prototypes == ("B2",)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"model": "xyz"}, "model: abc there, xyz now"),
        ({"elements": {"A": ["Li", "K"], "B": ["F"]}}, r"elements A: -Na \+K"),
        ({"prototypes": {"L1_0": "hash"}}, "prototypes B2: hash there, none now"),
        ({"precision": "bf16"}, "precision: none there, bf16 now"),
    ],
)
def test_another_campaign_is_refused_with_what_differs(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    claim(tmp_path)
    with pytest.raises(ConfigurationError, match=difference):
        claim(tmp_path, **changes)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigurationError, match="not empty and holds no campaign"):
        claim(tmp_path)


def test_a_path_below_a_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file, not a folder"):
        claim(tmp_path / "file" / "run")


def test_a_forbidden_path_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="no permission"):
        claim(tmp_path / "run")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"cannot read .*manifest\.json"):
        RunFolder.open(tmp_path)


def test_a_folder_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    claim(tmp_path)
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_text())
    del raw["checksum"]  # which early versions did not write
    path.write_text(json.dumps(raw | {"format": 1}))
    for touch in (RunFolder.open, claim):
        with pytest.raises(ConfigurationError, match=r"another version .*format 1.*another --out"):
            touch(tmp_path)


def test_opening_nothing_names_the_neighbour(tmp_path: Path) -> None:
    claim(tmp_path / "first")
    with pytest.raises(ConfigurationError, match='did you mean "first"'):
        RunFolder.open(tmp_path / "frist")


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    claim(tmp_path)
    (tmp_path / "competitors").mkdir()
    leftovers = [
        tmp_path / folder / ".00000.parquet.abcd.tmp" for folder in ("", "shards", "competitors")
    ]
    for leftover in leftovers:
        leftover.write_text("x")
    claim(tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    with RunFolder.claim(tmp_path, IDENTITY, pytest.fail):
        being_written = tmp_path / "shards" / ".00000.parquet.abcd.tmp"
        being_written.write_text("x")
        with pytest.raises(FolderInUseError):
            claim(tmp_path)
        assert being_written.exists()
    claim(tmp_path)
    assert not being_written.exists()


def write_shard(folder: RunFolder, shard: Shard, make_receipt: MakeReceipt, rows: int = 3) -> None:
    import pyarrow as pa

    types = {c.name: pa.type_for_alias(c.dtype) for c in SHARD.columns if c.required}
    schema = pa.schema(types)
    row = {
        "prototype": "B2",
        "candidate": 1,
        "formula": "LiF",
        "likely_metal": False,
        "radioactive_elements": "",
        "toxic_elements": "",
        "known": True,
        "unseen_elements": "",
    }
    table = pa.Table.from_pylist([row] * rows, schema=schema)
    checksum = folder.write_shard(table, shard)
    receipt = make_receipt(
        shard, campaign=folder.campaign, candidates=rows, failed=rows, sha256=checksum
    )
    folder.write_receipt(receipt)


def test_receipts_come_back(tmp_path: Path, make_receipt: MakeReceipt) -> None:
    folder = claim(tmp_path)
    shard = folder.shards[0]
    assert folder.read_receipts([shard]) == ()
    write_shard(folder, shard, make_receipt)
    (receipt,) = folder.read_receipts([shard])
    assert receipt.shard == shard
    assert receipt.candidates == 3


@pytest.mark.parametrize("damage", ["truncate", "remove", "other_rows", "receipt", "other_range"])
def test_harmed_shards_do_not_count_as_finished(
    tmp_path: Path, damage: str, make_receipt: MakeReceipt
) -> None:
    folder = claim(tmp_path)
    shard = folder.shards[0]
    write_shard(folder, shard, make_receipt)
    table, receipt = folder.table_path(shard), folder.receipt_path(shard)
    if damage == "truncate":
        table.write_bytes(table.read_bytes()[:-20])
    elif damage == "remove":
        table.unlink()
    elif damage == "receipt":
        receipt.write_text(receipt.read_text()[:-20])
    elif damage == "other_rows":
        receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"candidates": 4}))
    else:
        shard = Shard(0, "B2", 0, 11)
    assert folder.read_receipts([shard]) == ()
