from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from distributed import Scheduler

from screening.cluster.dashboard import PAGE_TOPIC, ScreeningPage, install_page
from screening.cluster.preload import dask_setup
from screening.errors import ConfigurationError
from tests.screening.cluster.test_dashboard import scheduler


def test_a_scheduler_serves_the_page_from_the_start(tmp_path: Path) -> None:
    with scheduler(tmp_path, "--preload", "screening.cluster.preload") as client:
        page = client.dashboard_link.replace("/status", "/screening")
        with urlopen(page) as answer:
            assert b'<div id="screening">' in answer.read()
        assert install_page(client, pytest.fail) == page
        assert len(client.get_events(PAGE_TOPIC)) == 1
        assert client.run_on_scheduler(_count_applications) == 2


def _count_applications(dask_scheduler: Any) -> int:
    return len(dask_scheduler.http_application.applications)


def test_a_scheduler_without_a_dashboard_starts_all_the_same() -> None:
    async def start() -> Any:
        async with Scheduler(
            host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0",
            preload="screening.cluster.preload",
        ) as started:  # fmt: skip
            assert ScreeningPage.name in started.plugins
            return started.get_events(PAGE_TOPIC)

    [(_, said)] = asyncio.run(start())
    assert said == {"prefix": None, "note": "the scheduler runs without a dashboard"}


def test_a_worker_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is for schedulers: dask scheduler --preload"):
        asyncio.run(dask_setup(object()))  # type: ignore[arg-type]
