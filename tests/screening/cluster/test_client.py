from __future__ import annotations

import pytest
from distributed import Client, LocalCluster

from screening.cluster import client
from screening.errors import ConfigurationError


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(ConfigurationError, match=r"answers at tcp://127\.0\.0\.1:9"),
        client.connect(scheduler="tcp://127.0.0.1:9"),
    ):
        raise AssertionError("connected to nothing")


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
        monkeypatch.setattr(client, "WORKER_SECONDS", 30)
        cluster.scale(1)
        client.await_worker(there, "tcp://x:1", said.append)
        client.await_worker(there, "tcp://x:1", pytest.fail)


def test_a_scheduler_address_that_is_none_is_named() -> None:
    with (
        pytest.raises(ConfigurationError, match="no Dask scheduler answers at nonsense://x"),
        client.connect(scheduler="nonsense://x"),
    ):
        raise AssertionError("connected to nothing")
