"""Several hosts: network namespaces with addresses of their own, joined by a bridge.

All of them see the same files. A cable is pulled out in the middle of a campaign, and put back.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from screening import __file__ as program_file

PATIENCE = 300
"""Seconds after which a test says that something never happened."""

SCHEDULER = "tcp://10.77.0.1:8786"

IMPATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "20s"}
"""After so long without an answer the operating system gives up a connection; usually 30 s."""

CAMPAIGN = (
    "--prototype", "B2", "--elements", "all89", "--competitors", "none", "--device", "cpu",
    "--precision", "fp32", "--shard-size", "80",
)  # fmt: skip


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Network:
    """Hosts 10.77.0.1, 10.77.0.2 and so on, and the programs that run on them."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.name = f"screening-{uuid.uuid4().hex[:8]}"
        self.hub = self._add_namespace("hub")
        run_ip("-n", self.hub, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", self.hub, "link", "set", "bridge", "up")

    def _add_namespace(self, name: str) -> str:
        full = f"{self.name}-{name}"
        run_ip("netns", "add", full)
        self.stack.callback(run_ip, "netns", "del", full)
        return full

    def add_host(self, number: int) -> str:
        """Return the namespace of a new host, whose cable to the hub is `port NUMBER`."""
        host = self._add_namespace(str(number))
        port = ("-n", self.hub, "link")
        pair = (f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", host)
        run_ip(*port, "add", *pair)
        run_ip(*port, "set", f"port{number}", "master", "bridge", "up")
        run_ip("-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        run_ip("-n", host, "link", "set", "eth0", "up")
        run_ip("-n", host, "link", "set", "lo", "up")
        return host

    def set_cable(self, number: int, state: str) -> None:
        """Pull out (down) or put back (up) the cable of a host."""
        run_ip("-n", self.hub, "link", "set", f"port{number}", state)

    def start(self, host: str, arguments: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
        """Run Python on a host until the end of the test."""
        root = Path(program_file).parents[1]
        command = ["ip", "netns", "exec", host, sys.executable, "-m", *map(str, arguments)]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=log.parent,
                env=os.environ | IMPATIENT | {"PYTHONPATH": str(root)},
            )
        self.stack.callback(stop, process)
        return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def open_network() -> Iterator[Network]:
    with ExitStack() as stack:
        yield Network(stack)


@pytest.fixture
def network() -> Iterator[Network]:
    """An empty network; skip where none may be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    try:
        with open_network() as trial:
            trial.add_host(1)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    with open_network() as made:
        yield made


def await_that(condition: Callable[[], object], *logs: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("it never happened\n" + "\n".join(log.read_text() for log in logs))
        time.sleep(0.05)


def read_receipts(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("shards/*[0-9].json"))]


@pytest.mark.slow
def test_cables_that_are_pulled_out_and_put_back_change_nothing(
    network: Network, screening: Callable[..., Result], tiny_model: Path, tmp_path: Path
) -> None:
    campaign = ["run", *CAMPAIGN, "--model", str(tiny_model), "--out"]
    assert screening(*campaign, tmp_path / "undisturbed", "--workers", "0").exit_code == 0
    hosts = [network.add_host(number) for number in (1, 2, 3, 4)]
    logs = [tmp_path / f"{name}.log" for name in ("scheduler", "first", "second", "driver")]
    scheduler = ("dask", "scheduler", "--host", "10.77.0.1", "--port", "8786")
    network.start(hosts[0], (*scheduler, "--dashboard-address", "127.0.0.1:0"), logs[0])
    for host, log in zip(hosts[1:3], logs[1:3], strict=True):
        worker = ("dask", "worker", SCHEDULER, "--nthreads", "1", "--name", log.stem)
        network.start(host, (*worker, "--dashboard-address", "127.0.0.1:0"), log)
    disturbed = tmp_path / "disturbed"
    driver = network.start(
        hosts[3], ("screening", *campaign, disturbed, "--scheduler", SCHEDULER), logs[3]
    )

    def finished_by(worker: str) -> int:
        return sum(receipt["worker"] == worker for receipt in read_receipts(disturbed))

    def go_on_until(condition: Callable[[], object]) -> None:
        await_that(lambda: condition() or driver.poll() is not None, *logs)
        assert driver.poll() is None, logs[3].read_text()

    go_on_until(lambda: finished_by("first") > 3 and finished_by("second") > 3)
    network.set_cable(2, "down")
    # for a moment: what was under way arrives late, and the worker goes on
    alone = finished_by("second")
    go_on_until(lambda: finished_by("second") > alone + 1)
    network.set_cable(2, "up")
    back = finished_by("first")
    go_on_until(lambda: finished_by("first") > back + 3)
    # and for ever: the worker is given up, and the other takes over
    network.set_cable(3, "down")
    await_that(lambda: driver.poll() is not None, *logs)
    assert driver.returncode == 0, logs[3].read_text()
    assert "name: second" in logs[0].read_text().partition("Remove worker addr")[2]
    for name in ("ranking.csv", "ranking.parquet"):
        same = (disturbed / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
        assert same, name
