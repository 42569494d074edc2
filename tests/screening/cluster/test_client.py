from __future__ import annotations

import pytest

from screening.cluster import client
from screening.errors import ConfigurationError


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(ConfigurationError, match=r"answers at tcp://127\.0\.0\.1:9"),
        client.connect(scheduler="tcp://127.0.0.1:9"),
    ):
        raise AssertionError("connected to nothing")


def test_a_scheduler_address_that_is_none_is_named() -> None:
    with (
        pytest.raises(ConfigurationError, match="no Dask scheduler answers at nonsense://x"),
        client.connect(scheduler="nonsense://x"),
    ):
        raise AssertionError("connected to nothing")
