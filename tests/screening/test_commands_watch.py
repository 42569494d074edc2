"""Campaigns that really run, are killed and interrupted, watched from other processes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

import screening as package
from screening.enumerate import Shard
from screening.folder import BEST_COLUMNS, Receipt, RunFolder
from screening.lock import locked
from screening.settings import RankBy
from screening.status import CampaignStatus, State, StatusTracker, StatusWriter

Program = Callable[..., Result]
MakeReceipt = Callable[..., Receipt]

PATIENCE = 120
"""Seconds after which a test says that something never happened."""

SHARDS = 192
"""Enough that a campaign is still running when it is told to stop, on any machine."""


@pytest.fixture
def campaign(tiny_model: Path, tmp_path: Path) -> list[str]:
    """Arguments of a campaign that takes seconds, in many shards."""
    call = ["run", "--prototype", "cubic_perovskite"]
    call += ["--elements", "Li,Na,K,Rb,Mg,Ca,Ti,Fe,Al,O,S,F"]
    call += ["--model", str(tiny_model), "--competitors", "none", "--workers", "0"]
    return [*call, "--out", str(tmp_path / "runs" / "first"), "--shard-size", "9"]


@contextmanager
def start(arguments: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start the program as in a shell that can draw, whatever the tests were started from."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "screening", *arguments],
        text=True,
        cwd=Path(package.__file__).parent.parent,
        env=environment | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read(screening: Program, folder: Path) -> CampaignStatus:
    done = screening("status", folder, "--json")
    assert done.exit_code == 0, done.output
    return CampaignStatus.from_json(done.stdout)


def wait_until_running(
    screening: Program, process: subprocess.Popen[str], folder: Path, shards: int
) -> CampaignStatus:
    """Look at a campaign from beside until so many shards are told."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        if (folder / "manifest.json").is_file():
            status = read(screening, folder)
            if status.state is State.RUNNING and status.shards_done >= shards:
                return status
        time.sleep(0.02)
    return pytest.fail(f"never seen running: {process.communicate()}")


@pytest.mark.slow
def test_a_campaign_is_watched_killed_interrupted_and_completed(
    screening: Program, campaign: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "first"
    with start(["watch", str(folder), "--wait", f"{PATIENCE}"]) as watcher:
        with start(campaign) as driver:
            status = wait_until_running(screening, driver, folder, shards=3)
            assert status.driver is not None
            assert (status.driver.pid, status.shards) == (driver.pid, SHARDS)
            assert 0 < status.enumerated < status.total
            assert status.enumerated == status.scored + status.failed
            assert status.candidates_per_second
            assert status.seconds_left
            assert len(status.best) == 10
            driver.kill()
            driver.wait()
        told, notes = watcher.communicate(timeout=PATIENCE)
    assert "waiting 120 s for one to begin" in notes
    assert "running: " in told
    assert "stopped before it was complete; the same command goes on with it" in told
    assert watcher.returncode == 7
    killed = read(screening, folder)
    assert (killed.state, killed.driver, killed.seconds_left) == (State.STOPPED, None, None)
    assert killed.shards_done >= status.shards_done

    with start(campaign) as driver:
        status = wait_until_running(screening, driver, folder, shards=killed.shards_done + 2)
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 130, errors
    interrupted = read(screening, folder)
    assert interrupted.state is State.INTERRUPTED
    assert killed.shards_done < interrupted.shards_done < SHARDS
    assert not (folder / "status.json").exists()

    done = screening(*campaign)
    assert done.exit_code == 0, done.output
    complete = read(screening, folder)
    rows = RunFolder.open(folder).manifest["rows"]
    assert complete.state is State.COMPLETE
    assert complete.shards_done == SHARDS
    assert (complete.scored, complete.failed) == (rows["scored"], rows["failed"])
    ranking = RunFolder.open(folder).read_ranking().slice(0, 10)
    assert [row.model_dump() for row in complete.best] == ranking.select(
        list(BEST_COLUMNS)
    ).to_pylist()
    shown = screening("watch", folder)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == screening("status", folder).stdout
    assert ranking["formula"][0].as_py() in shown.stdout
    assert "\ncomplete\n" in shown.stdout


@pytest.mark.parametrize("command", [["status"], ["watch", "--wait", "0"]])
def test_what_is_no_campaign_is_one_clear_error(
    screening: Program, tmp_path: Path, command: list[str]
) -> None:
    done = screening(*command, tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path} is not a campaign's folder" in done.stderr


@pytest.fixture
def running(
    screening: Program, tiny_model: Path, tmp_path: Path, make_receipt: MakeReceipt
) -> Iterator[StatusWriter]:
    """A campaign that this process goes on with, with names that a stranger chose."""
    folder = tmp_path / "first"
    call = ["run", "--prototype", "B2", "--elements", "Li,F", "--model", tiny_model]
    call += ["--competitors", "none", "--device", "cpu", "--workers", "0", "--out", folder]
    assert screening(*call).exit_code == 0
    evil = "\x1b]0;title\x07[red]B2\x9b31m\u202e"
    best = dict.fromkeys(BEST_COLUMNS) | {"prototype": evil, "candidate": 1, "formula": "[b]MgO"}
    tracker = StatusTracker(campaign="first", counts={evil: 100}, shards=10, order=RankBy.P_STABLE)
    tracker.add(
        make_receipt(
            Shard(0, evil, 0, 10),
            failed=2,
            reasons={"[bold]\x1b[31mno radius\r\n": 2},
            best=(best,),
            worker=evil,
            host=evil,
            device="cpu\x08",
            seconds={"irnet": 1.0},
        )
    )
    tracker.add_lost(1, f"it {evil}\ndied", 10)
    with (
        locked(folder, pytest.fail),
        StatusWriter(folder, tracker, pytest.fail, seconds=0.05) as writer,
    ):
        yield writer


def test_names_from_files_neither_steer_the_terminal_nor_are_markup(
    screening: Program, running: StatusWriter, tmp_path: Path
) -> None:
    for arguments in (["status"], ["status", "--json"]):
        told = screening(*arguments, tmp_path / "first").stdout
        assert "[red]B2" in told
        assert not any(sign in told for sign in "\x1b\x9b\x07\x08\r\u202e")
    assert json.loads(told)["best"][0]["formula"] == "[b]MgO"


def read_terminal(terminal: int, until: Callable[[str], bool]) -> str:
    """Read what is written to a terminal until it says something, or nobody has it open."""
    written = b""
    while not until(written.decode(errors="replace")):
        assert select.select([terminal], [], [], PATIENCE)[0], written.decode()
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # Linux says so when nobody has the terminal open any more
            break
        if not part:
            break
        written += part
    return written.decode()


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_the_screen_is_redrawn_until_ctrl_c(
    running: StatusWriter, tmp_path: Path, columns: int
) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with start(["watch", str(tmp_path / "first")], **streams) as watcher:
        os.close(theirs)
        screen = read_terminal(ours, lambda told: told.count("20 of 100 candidates") >= 2)
        watcher.send_signal(signal.SIGINT)
        last = read_terminal(ours, lambda told: False)
        assert watcher.wait(PATIENCE) == 130
    os.close(ours)
    assert "━" in screen
    assert f"running: process {os.getpid()} on " in screen
    assert "quarantined shard" in screen
    assert "\x1b]0;" not in screen  # the title of the window stays
    assert "no longer watching" in last
    assert running._path.exists()
