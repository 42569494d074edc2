from __future__ import annotations

import asyncio
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

import screening
from screening.cluster import client
from screening.cluster.client import connect, hash_sources, look_around, probe_workers
from screening.cluster_settings import ClusterSettings
from screening.errors import ConfigurationError, OutputError, SchedulerLostError

PATIENCE = 120
"""Seconds after which a test says that something never happened."""

LET_GO = threading.Event()


@pytest.fixture
def there() -> Iterator[LocalCluster]:
    """A scheduler with one worker, in threads of this process, that listens on a port."""
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


def assert_refused(settings: ClusterSettings, complaint: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=complaint),
        connect(settings, lambda sentence: None),
    ):
        raise AssertionError("connected to nothing")


@contextmanager
def serve_pages() -> Iterator[str]:
    """Something that answers, but is no scheduler: what runs on the dashboard's port is alike."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def listen_in_silence() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:9", "Connection refused"),
        ("nonsense://x", "unknown address scheme"),
        ("tcp://127.0.0.1", "missing port number"),
        ("tcp://127.0.0.1:port", "invalid literal"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_named(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 2)
    monkeypatch.setattr(client, "GRACE_SECONDS", PATIENCE)
    complaint = rf"no Dask scheduler answers at {address} \(.*{reason}.*start one with `dask sched"
    assert_refused(ClusterSettings(scheduler=address), complaint)


def test_the_reason_is_known_though_dask_had_no_time_to_learn_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 1e-6)
    monkeypatch.setattr(client, "GRACE_SECONDS", PATIENCE)
    assert_refused(
        ClusterSettings(scheduler="tcp://127.0.0.1:9"), r"127\.0\.0\.1:9 \(Connection refused\)"
    )


@pytest.mark.parametrize("other", [serve_pages, listen_in_silence])
def test_something_else_that_listens_there_is_not_waited_for_in_vain(
    other: type[Iterator[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(client, "GRACE_SECONDS", 0.5)
    with other() as address:  # type: ignore[attr-defined]
        assert_refused(
            ClusterSettings(scheduler=address), f"no Dask scheduler answers at {address}"
        )


def test_the_address_of_a_worker_is_no_scheduler(there: LocalCluster) -> None:
    address = there.workers[0].address
    assert_refused(ClusterSettings(scheduler=address), f"{address} is a Dask worker, no scheduler")


def test_a_scheduler_without_workers_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "WORKER_SECONDS", 0.5)
    said: list[str] = []
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as there,
    ):
        with pytest.raises(ConfigurationError, match="at tcp://x:1 has no workers; start some"):
            client.await_worker(there, "tcp://x:1", said.append)
        assert said == ["tcp://x:1 has no workers; waiting 0.5 s for the first"]
        monkeypatch.setattr(client, "WORKER_SECONDS", PATIENCE)
        cluster.scale(1)
        client.await_worker(there, "tcp://x:1", said.append)
        client.await_worker(there, "tcp://x:1", pytest.fail)


def test_a_scheduler_beyond_this_machine_without_encryption_is_told(
    there: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with connect(ClusterSettings(scheduler=there.scheduler_address), said.append) as connected:
        assert connected.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
    assert said == []
    monkeypatch.setattr(client, "is_loopback", lambda host: host == "elsewhere")
    with connect(ClusterSettings(scheduler=there.scheduler_address), said.append):
        pass
    assert said[0].startswith(f"{there.scheduler_address} is reached without encryption")


# scheduler files


def test_a_scheduler_file_is_waited_for(
    there: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FILE_SECONDS", PATIENCE)
    path = tmp_path / "scheduler.json"
    path.write_text('{"addr')  # half written

    def finish(sentence: str) -> None:
        assert sentence.startswith(f"waiting up to {PATIENCE} s for a scheduler to write {path}")
        path.write_text(json.dumps({"address": there.scheduler_address}))

    with connect(ClusterSettings(scheduler_file=path), finish) as connected:
        assert connected.scheduler_info()["address"] == there.scheduler_address


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "there is no scheduler file .*start a scheduler with: dask scheduler --scheduler-f"),
        ("", "is no scheduler file: it should be JSON with the scheduler's address; remove it"),
        ('{"addr', "is no scheduler file"),
        ('["tcp://127.0.0.1:9"]', "is no scheduler file"),
        ('{"address": 5}', "is no scheduler file"),
        ("[" * 100_000, "is no scheduler file"),
        ('{"address": "tcp://127.0.0.1:9"}', "left by one that is gone; remove the file and start"),
    ],
)
def test_a_scheduler_file_that_names_no_scheduler_is_an_error_after_a_while(
    content: str | None, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FILE_SECONDS", 0.2)
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    assert_refused(ClusterSettings(scheduler_file=path), complaint)


def test_a_folder_is_no_scheduler_file(tmp_path: Path) -> None:
    assert_refused(ClusterSettings(scheduler_file=tmp_path), "cannot read the scheduler file")


def test_a_killed_scheduler_is_left_without_delay_or_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scheduler.json"
    with (
        run_dask("scheduler", "--port", "0", "--scheduler-file", path) as scheduler,
        run_dask("worker", "--scheduler-file", path, "--nthreads", "1", "--no-nanny"),
        connect(ClusterSettings(scheduler_file=path), lambda sentence: None) as connected,
    ):
        assert connected.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        scheduler.send_signal(signal.SIGKILL)
        scheduler.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while connected.status == "running":
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert capfd.readouterr().err == ""


# what workers see


@contextmanager
def run_dask(*arguments: object, root: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dask scheduler` or `dask worker` as by hand, with our program from a folder."""
    place = root or Path(screening.__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, arguments), "--host", "127.0.0.1",
         "--dashboard-address", "127.0.0.1:0"],
        cwd=place, env=os.environ | {"PYTHONPATH": str(place)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def copy_program(folder: Path) -> Path:
    """Copy the modules of our program, without their data."""
    root = Path(screening.__file__).parents[1]
    for package in ("irnet", "prototypes", "screening"):
        for path in (root / package).rglob("*.py"):
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return folder


def pretend_version(folder: Path, package: str, version: str) -> None:
    """Let a package count as of another version for programs that run in the folder."""
    place = folder / f"{package}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")


def probe(root: Path, folder: Path | None) -> list[str]:
    """Probe a worker that has our program from a folder."""
    said: list[str] = []
    with (
        LocalCluster(
            n_workers=0, processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0"
        ) as cluster,
        run_dask("worker", cluster.scheduler_address, "--nthreads", "1", "--no-nanny", root=root),
        Client(cluster.scheduler_address) as connected,
    ):
        connected.wait_for_workers(1, timeout=PATIENCE)
        probe_workers(connected, folder, said.append)
    return said


def test_a_worker_like_the_driver_is_no_cause_for_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    root = copy_program(tmp_path / "program")
    digest = hash_sources(root)
    monkeypatch.setattr(client, "hash_program", lambda: digest)
    pretend_version(root, "numpy", "1.0")
    said = probe(root, out)
    assert len(said) == 1
    assert said[0].startswith("workers have numpy 1.0, this program ")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("code", r"the worker tcp://.* on .* runs another version of this program; install"),
        ("nothing", r"the worker .* cannot run this program \(.*No module named 'screening"),
    ],
)
def test_a_worker_with_another_program_is_found_before_the_first_task(
    change: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_program(tmp_path)
    digest = hash_sources(root)
    monkeypatch.setattr(client, "hash_program", lambda: digest)
    if change == "code":
        (root / "screening/rank.py").write_text("# another\n")
    else:
        shutil.rmtree(root / "screening/cluster")
    with pytest.raises(ConfigurationError, match=complaint):
        probe(root, None)


def test_another_torch_gives_other_results() -> None:
    here = look_around(None)
    there = replace(here, versions={**here.versions, "torch": "1.0"})
    client._check_program("the worker w", here, here)
    with pytest.raises(ConfigurationError, match=r"w has torch 1\.0, this program .*; install the"):
        client._check_program("the worker w", here, there)


def test_a_worker_must_see_the_folder_and_write_there(
    there: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(there) as connected:
        probe_workers(connected, tmp_path, pytest.fail)
        assert list(tmp_path.iterdir()) == []
        see = look_around
        monkeypatch.setattr(client, "look_around", lambda place: see(place and place / "no"))
        with pytest.raises(ConfigurationError, match=f"does not see the folder {tmp_path}; put"):
            probe_workers(connected, tmp_path, pytest.fail)
        with pytest.raises(OutputError, match="cannot write"):
            probe_workers(connected, tmp_path / "missing", pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_write_says_why(tmp_path: Path) -> None:
    place = tmp_path / ("x" * 240)  # the name beside it is too long for any file system
    place.write_text("token")
    seen = look_around(place)
    assert seen.token == "token"
    assert seen.problem == "File name too long"
    with pytest.raises(ConfigurationError, match=r"w cannot write to .*: File name too long"):
        client._check_folder("the worker w", seen, tmp_path, "token")


def test_a_scheduler_with_another_program_is_found_before_the_first_task(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    root = copy_program(tmp_path / "program")
    (root / "screening/rank.py").write_text("# another\n")
    start = ("scheduler", "--port", "0", "--scheduler-file", path)
    with (
        run_dask(*start, root=root) as scheduler,
        Client(scheduler_file=str(wait_for(path))) as connected,
    ):
        with pytest.raises(ConfigurationError, match="the scheduler runs another version of this"):
            probe_workers(connected, None, pytest.fail)
        scheduler.kill()
        with pytest.raises(SchedulerLostError, match="gone before the first task"):
            probe_workers(connected, None, pytest.fail)


def wait_for(path: Path) -> Path:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.05)
    return path


def hold(number: int) -> None:
    LET_GO.wait(PATIENCE)


def test_a_busy_worker_answers_and_one_that_hangs_is_left_unchecked(
    there: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with Client(there) as connected:
        busy = connected.submit(hold, 0)
        try:
            while not there.workers[0].state.executing_count:
                time.sleep(0.01)
            probe_workers(connected, tmp_path, pytest.fail)
        finally:
            LET_GO.set()
        busy.result(timeout=PATIENCE)
        monkeypatch.setattr(client, "PROBE_SECONDS", 0.3)
        monkeypatch.setattr(client, "look_around", hang)
        assert client._ask_workers(connected, tmp_path, said.append) == {}
    assert len(said) == 1
    assert "did not answer within 0.3 s" in said[0]


async def hang(place: Path | None) -> None:
    await asyncio.sleep(PATIENCE)
