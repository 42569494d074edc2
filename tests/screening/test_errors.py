from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from irnet.errors import DataError, FeatureMismatchError, RecipeError
from prototypes import PoolError, StructureFileError
from screening.errors import (
    CampaignInterrupted,
    ConfigurationError,
    FolderInUseError,
    InputDataError,
    ModelError,
    OutputError,
    ScreeningError,
    WorkerKilledError,
    exit_code_of,
    suggest,
    suggest_file,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (PoolError("x"), 2),
        (InputDataError("x"), 3),
        (StructureFileError("x"), 3),
        (ModelError("x"), 4),
        (FeatureMismatchError("x"), 4),
        (RecipeError("x"), 2),
        (DataError("x"), 3),
        (OutputError("x"), 5),
        (WorkerKilledError("x"), 6),
        (FolderInUseError("x"), 2),
        (CampaignInterrupted("x"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_a_bug_has_no_exit_code() -> None:
    assert exit_code_of(ValueError("unforeseen")) is None
    assert exit_code_of(ScreeningError("rows were lost")) is None


@pytest.mark.parametrize(
    "error", [ConfigurationError("a"), OutputError("cannot write x: the disk is full")]
)
def test_errors_survive_the_way_from_a_worker(error: ScreeningError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "permission"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_output_errors_say_what_to_do(number: int, remedy: str) -> None:
    error = OutputError.from_os_error(OSError(number, os.strerror(number)), Path("runs/first"))
    assert "runs/first" in str(error)
    assert remedy in str(error)


def test_suggest_ignores_capitals_and_says_nothing_without_a_near_name() -> None:
    assert suggest("PEROVSKIT", ["B2", "perovskite"]) == '; did you mean "perovskite"?'
    assert suggest("zzz", ["B2", "perovskite"]) == ""


def test_letters_in_the_wrong_order_are_the_nearest_spelling() -> None:
    assert suggest("MEA", ["mse", "mae"]) == '; did you mean "mae"?'


def test_suggest_file_names_a_file_of_the_same_folder(tmp_path: Path) -> None:
    (tmp_path / "phases.csv").touch()
    assert suggest_file(tmp_path / "phase.csv") == '; did you mean "phases.csv"?'
    assert suggest_file(tmp_path / "xyz") == ""
    assert suggest_file(tmp_path / "none" / "phase.csv") == ""
