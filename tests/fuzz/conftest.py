"""How many inputs the fuzz tests read, and the valid files that they damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fuzz.seeds import build_seeds


@pytest.fixture(scope="session")
def fuzz_inputs() -> int:
    """Damaged files in all: SCREENING_FUZZ_INPUTS, 10,000 without it."""
    return int(os.environ.get("SCREENING_FUZZ_INPUTS", "10000"))


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of valid files of every kind that the program reads."""
    folder = tmp_path_factory.mktemp("fuzz") / "seeds"
    build_seeds(folder)
    return folder
