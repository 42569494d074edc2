"""A small data set, and the arrays that benchmarks make of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from screening.benchmark.data import (
    COMPOSITIONS,
    EVALUATION,
    STRUCTURES,
    DataSource,
    DataStore,
    prepare_arrays,
)
from tests.screening.benchmark.small_data import write_data


@pytest.fixture(scope="session")
def benchmark_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small data set."""
    return write_data(tmp_path_factory.mktemp("benchmark") / "data")


@pytest.fixture(scope="session")
def source(benchmark_data: Path, tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """Where its arrays are kept; they are made once."""
    return DataSource(benchmark_data, tmp_path_factory.mktemp("arrays"))


@pytest.fixture(scope="session")
def store(source: DataSource) -> DataStore:
    """The data sets made of it."""
    return DataStore(
        {name: prepare_arrays(name, source) for name in (STRUCTURES, COMPOSITIONS, EVALUATION)}
    )
