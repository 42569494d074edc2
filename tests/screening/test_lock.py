from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from screening.errors import FolderInUseError, OutputError
from screening.lock import LOCK_NAME, Holder, locked


def write_lock(folder: Path, pid: int, host: str | None = None, birth: str | None = None) -> None:
    started = "2026-01-01T00:00:00+00:00"
    holder = {"pid": pid, "host": host or platform.node(), "started": started, "birth": birth}
    (folder / LOCK_NAME).write_text(json.dumps(holder))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    with (
        locked(tmp_path, pytest.fail),
        pytest.raises(FolderInUseError, match=f"process {os.getpid()} on {platform.node()}"),
        locked(tmp_path, pytest.fail),
    ):
        raise AssertionError("two runs hold the lock")
    with locked(tmp_path, pytest.fail):
        assert (tmp_path / LOCK_NAME).is_file()
    assert not (tmp_path / LOCK_NAME).exists()


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), locked(tmp_path, pytest.fail):
        raise KeyboardInterrupt
    assert not (tmp_path / LOCK_NAME).exists()


def test_the_lock_of_a_dead_process_is_taken_over_with_a_word(tmp_path: Path) -> None:
    pid, said = ended_process(), list[str]()
    write_lock(tmp_path, pid)
    with locked(tmp_path, said.append):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert f"from a run that was killed (process {pid}" in said[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_later_process_of_the_same_number_does_not_hold_the_lock(tmp_path: Path) -> None:
    said: list[str] = []
    write_lock(tmp_path, os.getpid(), birth="1")
    with locked(tmp_path, said.append):
        assert len(said) == 1


@pytest.mark.parametrize("content", ["", "{}", None])
def test_what_may_be_held_elsewhere_is_not_taken(tmp_path: Path, content: str | None) -> None:
    if content is None:
        write_lock(tmp_path, ended_process(), host="elsewhere")
    else:
        (tmp_path / LOCK_NAME).write_text(content)
    with (
        pytest.raises(FolderInUseError, match=r"delete .*\.lock"),
        locked(tmp_path, pytest.fail),
    ):
        raise AssertionError("took a lock that may be held")
    assert (tmp_path / LOCK_NAME).exists()


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), locked(tmp_path / "x", pytest.fail):
        raise AssertionError("locked nothing")


def test_of_two_runs_that_find_a_lock_stale_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_over_meanwhile(holder: Holder) -> bool:
        write_lock(tmp_path, os.getpid())
        return True

    write_lock(tmp_path, ended_process())
    monkeypatch.setattr(Holder, "is_gone", take_over_meanwhile)
    with pytest.raises(FolderInUseError, match="just begun"), locked(tmp_path, pytest.fail):
        raise AssertionError("two runs hold the lock")
    assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


def test_a_run_releases_no_lock_but_its_own(tmp_path: Path) -> None:
    with locked(tmp_path, pytest.fail):
        write_lock(tmp_path, os.getpid(), host="elsewhere")
    assert json.loads((tmp_path / LOCK_NAME).read_text())["host"] == "elsewhere"
