from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from screening.columns import FAILED_CANDIDATES, RANKING, SHARD, TableKind
from screening.enumerate import Shard
from screening.errors import ConfigurationError, FolderInUseError, OutputError
from screening.folder import (
    PROBE,
    DamagedManifestError,
    DamagedShard,
    Receipt,
    RunFolder,
    check_receipt,
    describe_damage,
    hash_identity,
)
from screening.lock import LOCK_NAME, locked

MakeReceipt = Callable[..., Receipt]

IDENTITY: dict[str, Any] = {
    "model": "abc",
    "prototypes": {"B2": "hash"},
    "elements": {"A": ["Li", "Na"], "B": ["F"]},
}

GRID = {"shard_size": 10, "index_counts": {"B2": 10}}


def claim(path: Path, **changes: Any) -> RunFolder:
    with RunFolder.claim(path, IDENTITY | changes, pytest.fail) as folder:
        if not folder.manifest_path.exists():
            folder.write_manifest({"campaign": IDENTITY | changes, "grid": GRID})
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
    leftovers += [tmp_path / f"{PROBE}1234", tmp_path / f"{PROBE}1234-5678"]
    for leftover in leftovers:
        leftover.write_text("x")
    claim(tmp_path)
    assert not any(leftover.exists() for leftover in leftovers)


def test_a_folder_in_use_is_refused_left_alone_and_cleared_at_the_end(tmp_path: Path) -> None:
    with RunFolder.claim(tmp_path, IDENTITY, pytest.fail):
        being_written = tmp_path / "shards" / ".00000.parquet.abcd.tmp"
        being_written.write_text("x")
        with pytest.raises(FolderInUseError):
            claim(tmp_path)
        assert being_written.exists()
    assert not being_written.exists()


def test_a_campaign_that_ended_while_another_waited_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def lock_late(path: Path, note: Callable[[str], None]) -> Iterator[None]:
        with locked(path, note):
            RunFolder(path).write_manifest({"campaign": IDENTITY | {"model": "xyz"}})
        with locked(path, note):
            yield

    monkeypatch.setattr("screening.folder.locked", lock_late)
    with pytest.raises(ConfigurationError, match="another campaign"):
        claim(tmp_path / "a")
    assert not (tmp_path / "a" / LOCK_NAME).exists()


def write_shard(folder: RunFolder, shard: Shard, make_receipt: MakeReceipt, rows: int = 3) -> None:
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
    assert not list(folder.read_receipts([shard]))
    write_shard(folder, shard, make_receipt)
    (receipt,) = folder.read_receipts([shard])
    assert receipt.shard == shard
    assert receipt.candidates == 3


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def rewrite(path: Path, **changes: Any) -> None:
    """Change a receipt in a way that its checksum does not show."""
    raw = json.loads(path.read_text())
    del raw["checksum"]
    raw |= changes
    path.write_text(json.dumps(raw | {"checksum": hash_identity(raw)}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda table, receipt: cut(table), "00000.parquet was cut off or changed"),
        (lambda table, receipt: flip(table, 40, 3), "00000.parquet was cut off or changed"),
        (lambda table, receipt: table.unlink(), "00000.parquet cannot be read: No such file"),
        (lambda table, receipt: cut(receipt), "its receipt cannot be read"),
        (lambda table, receipt: receipt.write_text("[]"), "its receipt cannot be read"),
        (lambda table, receipt: receipt.write_bytes(b"\xff\x00"), "its receipt cannot be read"),
        (lambda table, receipt: rewrite(receipt, candidates=4), "has 3 rows, .* says 4"),
        (lambda table, receipt: rewrite(receipt, campaign="0" * 64), "another campaign"),
        (
            lambda table, receipt: rewrite(
                receipt, shard={"number": 0, "prototype": "B2", "start": 0, "stop": 11}
            ),
            "its receipt is of Shard.*stop=11",
        ),
    ],
)
def test_harmed_shards_do_not_count_as_finished(
    damage: Callable[[Path, Path], None], reason: str, tmp_path: Path, make_receipt: MakeReceipt
) -> None:
    folder = claim(tmp_path)
    (shard,) = folder.shards
    write_shard(folder, shard, make_receipt)
    damage(folder.table_path(shard), folder.receipt_path(shard))
    assert not list(folder.read_receipts([shard]))
    (found,) = folder.inspect_shards([shard])
    assert isinstance(found, DamagedShard)
    assert found.shard == shard
    assert re.search(reason, found.reason)
    assert re.search(
        f"^1 finished shard was damaged .*: 00000 .*{reason}", describe_damage([found])
    )


def test_a_flipped_bit_of_a_receipt_is_found(tmp_path: Path, make_receipt: MakeReceipt) -> None:
    folder = claim(tmp_path)
    (shard,) = folder.shards
    write_shard(folder, shard, make_receipt)
    receipt, path = folder.read_receipt(shard), folder.receipt_path(shard)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in random.choice(len(whole), 100, replace=False).tolist():
        flip(path, place, int(random.integers(8)))
        found = folder.read_receipt(shard)
        assert isinstance(found, DamagedShard) or found == receipt, whole[place - 9 : place + 9]
        path.write_bytes(whole)


def test_a_shard_of_another_campaign_is_foreign(tmp_path: Path, make_receipt: MakeReceipt) -> None:
    folder, other = claim(tmp_path / "a"), claim(tmp_path / "b", model="xyz")
    (shard,) = folder.shards
    write_shard(other, shard, make_receipt)
    assert len(list(other.read_receipts([shard]))) == 1
    for path in (other.table_path(shard), other.receipt_path(shard)):
        shutil.copy(path, tmp_path / "a" / "shards")
    (found,) = folder.inspect_shards(folder.shards)
    assert isinstance(found, DamagedShard)
    assert found.reason == "it belongs to another campaign"


def test_results_of_workers_are_checked(tmp_path: Path, make_receipt: MakeReceipt) -> None:
    folder = claim(tmp_path)
    (shard,) = folder.shards
    write_shard(folder, shard, make_receipt)
    receipt = folder.read_receipt(shard)
    assert isinstance(receipt, Receipt)
    assert check_receipt(folder, shard, receipt) is None
    for result, complaint in (
        (None, "a receipt was expected, not NoneType"),
        (replace(receipt, sha256="0" * 64), "cut off or changed"),
        (replace(receipt, campaign=""), "another campaign"),
        (replace(receipt, shard=Shard(1, "B2", 10, 20)), "its receipt is of Shard"),
    ):
        assert complaint in str(check_receipt(folder, shard, result))


def test_many_damaged_shards_are_counted() -> None:
    damaged = [DamagedShard(Shard(number, "B2", 0, 1), "cut off") for number in range(4)]
    assert describe_damage(damaged) == (
        "4 finished shards were damaged and are computed again: 00000 (cut off), "
        "00001 (cut off), 00002 (cut off), ..."
    )


def test_more_than_a_hundred_thousand_shards_have_files_of_their_own(
    tmp_path: Path, make_receipt: MakeReceipt
) -> None:
    many = {"shard_size": 1, "index_counts": {"B2": 1_000_001}}
    with RunFolder.claim(tmp_path, IDENTITY, pytest.fail) as folder:
        folder.write_manifest({"campaign": IDENTITY, "grid": many})
    shards = [folder.shards[number] for number in (10_000, 100_000, 1_000_000)]
    for shard in shards:
        write_shard(folder, shard, make_receipt)
    assert [receipt.shard for receipt in folder.read_receipts(shards)] == shards
    assert folder.table_path(shards[-1]).name == "1000000.parquet"


@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda path: flip(path, 30, 0)])
def test_a_damaged_manifest_beside_whole_shards_is_made_anew(
    damage: Callable[[Path], None], tmp_path: Path, make_receipt: MakeReceipt
) -> None:
    folder = claim(tmp_path)
    (shard,) = folder.shards
    write_shard(folder, shard, make_receipt)
    folder.quarantine_path(shard).write_text("{}")
    (tmp_path / "campaign.toml").write_text("")
    damage(folder.manifest_path)
    said: list[str] = []
    with RunFolder.claim(tmp_path, IDENTITY, said.append) as again:
        (sentence,) = said
        assert "manifest.json" in sentence
        assert sentence.endswith("but the times of earlier runs are lost")
        assert not again.manifest_path.exists()
        again.write_manifest({"campaign": IDENTITY, "grid": GRID})
        assert len(list(again.read_receipts(again.shards))) == 1


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_manifest_beside_shards_of_another_campaign_is_refused(
    damage: Callable[[Path], None], tmp_path: Path, make_receipt: MakeReceipt
) -> None:
    folder = claim(tmp_path)
    write_shard(folder, folder.shards[0], make_receipt)
    damage(folder.manifest_path)
    with pytest.raises(ConfigurationError, match=r"manifest.json .* are of another campaign"):
        claim(tmp_path, model="xyz")
    assert len(list((tmp_path / "shards").iterdir())) == 2


def test_a_damaged_manifest_beside_results_without_shards_is_refused(tmp_path: Path) -> None:
    folder = claim(tmp_path)
    cut(folder.manifest_path)
    with RunFolder.claim(tmp_path, IDENTITY, lambda sentence: None):
        pass  # nothing was computed, so nothing can be lost
    claim(tmp_path)
    cut(folder.manifest_path)
    folder.ranking_path.write_text("x")
    with pytest.raises(ConfigurationError, match="holds no campaign"):
        claim(tmp_path)
    assert folder.ranking_path.exists()


def test_a_flipped_bit_of_a_manifest_is_found(tmp_path: Path) -> None:
    path = claim(tmp_path).manifest_path
    manifest, whole = RunFolder(tmp_path).manifest, path.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for place in random.choice(len(whole), 100, replace=False).tolist():
        flip(path, place, int(random.integers(8)))
        try:
            assert RunFolder(tmp_path).manifest == manifest  # white space is nobody's loss
        except DamagedManifestError:
            found += 1
        path.write_bytes(whole)
    assert found > 50


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / ".filler").open("wb", buffering=0) as stream:
        while stream.write(b"x" * 512):
            pass


def list_files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_table(kind: TableKind) -> pa.Table:
    blank = {"string": "", "bool": False, "int64": 0, "double": 0.0, "float": 0.0}
    columns = {
        column.name.replace("member_*", "member_1"): pa.array(
            [blank[column.dtype]] * 3, pa.type_for_alias(column.dtype)
        )
        for column in kind.columns
        if column.name != "site_*"
    }
    return pa.table(columns)


def list_writers(folder: RunFolder, make_receipt: MakeReceipt) -> list[Callable[[], object]]:
    (shard,) = folder.shards
    return [
        lambda: folder.write_shard(make_table(SHARD), shard),
        lambda: folder.write_receipt(make_receipt(shard)),
        lambda: folder.write_manifest({"campaign": IDENTITY, "grid": GRID, "new": "x" * 9999}),
        lambda: folder.write_failures([make_table(FAILED_CANDIDATES)] * 2),
        lambda: folder.write_ranking(make_table(RANKING)),
        lambda: folder.write_text("campaign.toml", "x" * 9999),
    ]


def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(
    small_disk: Path, make_receipt: MakeReceipt
) -> None:
    folder = claim(small_disk / "a")
    writers = list_writers(folder, make_receipt)
    writers[0]()
    fill(small_disk)
    before = list_files(small_disk / "a")
    for write in writers:
        with pytest.raises(OutputError, match=r"cannot write .*: the disk is full; free some"):
            write()
    with pytest.raises(OutputError, match="the disk is full"):
        claim(small_disk / "a")
    assert list_files(small_disk / "a") == before
    (small_disk / ".filler").unlink()
    claim(small_disk / "a")
    for write in writers:
        write()
    assert len(list_files(small_disk / "a")) == 7


def test_a_disk_without_permission_is_one_clear_error(
    small_disk: Path, make_receipt: MakeReceipt
) -> None:
    folder = claim(small_disk / "a")
    before = list_files(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in list_writers(folder, make_receipt):
        with pytest.raises(OutputError, match=r"cannot write .*: no permission to write there"):
            write()
    for name in "ab":
        with pytest.raises(OutputError, match="no permission"):
            claim(small_disk / name)
    assert list_files(small_disk) == before


def test_results_of_a_part_and_quarantines_are_cleared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "shards").mkdir()
    folder.set_aside(Shard(3, "B2", 0, 9), "its worker died", 3, 9)
    assert json.loads(folder.quarantine_path(Shard(3, "B2", 0, 9)).read_text())["candidates"] == 9
    for name in ("ranking.csv", "ranking.parquet", "failures.parquet", "report.html"):
        (tmp_path / name).write_text("of a part")
    (tmp_path / "shards" / "00001.json").write_text("a receipt")
    folder.clear_results()
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["00001.json"]
