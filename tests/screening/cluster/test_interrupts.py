from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

from screening.cluster.client import connect
from screening.cluster.deployment import plan_workers
from screening.cluster_settings import ClusterSettings


def list_processes() -> dict[int, bool]:
    """The worker that calls, and whether it ignores Ctrl-C."""
    return {os.getpid(): signal.getsignal(signal.SIGINT) is signal.SIG_IGN}


def test_a_worker_that_replaces_another_ignores_ctrl_c_too() -> None:
    settings = ClusterSettings(workers=1, dashboard="127.0.0.1:0")
    assert plan_workers(settings).total == 1
    with connect(settings, pytest.fail, device="cpu") as client:
        [first] = client.run(list_processes).values()
        [process] = first
        assert first == {process: True}
        psutil.Process(process).kill()
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            seen = client.run(list_processes, on_error="ignore")
            others = [each for each in seen.values() if process not in each]
            if others:
                break
            time.sleep(0.1)
        [second] = others
        assert list(second.values()) == [True]
        os.kill(next(iter(second)), signal.SIGINT)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        assert list(client.run(list_processes).values()) == [second]
