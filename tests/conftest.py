"""Fixtures and markers that the whole suite shares."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for tests that say nothing new most of the time, and take long."""
    parser.addoption("--exhaustive", action="store_true", help="run tests marked exhaustive too")


def pytest_configure() -> None:
    """Take Ctrl-C up again where a shell's background job ignores it: tests send it to programs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data set, from SCREENING_DATA or beside the repository."""
    named = os.environ.get("SCREENING_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not (folder / "eval_prototypes.parquet").is_file():
        origin = "SCREENING_DATA" if named else "the default place"
        pytest.skip(f"no data set in {folder} ({origin}); set SCREENING_DATA to its folder")
    return folder


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that use the data; skip exhaustive ones, and GPU tests where there is none."""
    for item in items:
        if item.get_closest_marker("exhaustive") and not config.getoption("exhaustive"):
            item.add_marker(pytest.mark.skip(reason="runs with --exhaustive alone"))
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))
