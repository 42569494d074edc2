"""What can go wrong in a screening, and the exit code that each kind of error ends with.

Every error that a user can cause or cure is a `ScreeningError`: its message says what is wrong,
where, and what to do next. The command line turns it into one message on stderr and the exit code
of its class. Errors of the packages `prototypes` and `irnet` get their code from `exit_code_of`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of the `screening` command."""

    OK = 0
    UNEXPECTED = 1
    """Something nobody foresaw: a bug. The traceback is printed."""
    CONFIGURATION = 2
    """A wrong option, a misspelt name, a pool that is too small, another campaign's folder."""
    INPUT_DATA = 3
    """A structure or data file that cannot be used."""
    MODEL = 4
    """A model that is missing, damaged, or made for other features."""
    OUTPUT = 5
    """The output cannot be written: no permission, disk full."""
    WORKERS = 6
    """Workers or the scheduler died, most often for lack of memory; finished work is kept."""
    NOT_COMPLETE = 7
    """A watched campaign ended before it was complete, or trials of a benchmark failed."""
    INTERRUPTED = 130
    """Ctrl-C; finished work is kept."""


class ScreeningError(Exception):
    """Base of all errors that `screening` raises on purpose.

    One without an exit code of its own is a bug: `exit_code_of` gives None for it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED


class ConfigurationError(ScreeningError, ValueError):
    """The campaign or the command cannot be run as it was asked for."""

    exit_code = ExitCode.CONFIGURATION


class FolderInUseError(ConfigurationError):
    """Another run is writing into the result folder."""


class InputDataError(ScreeningError, ValueError):
    """A file given as input is unreadable, incomplete or holds values that cannot be used."""

    exit_code = ExitCode.INPUT_DATA


class ModelError(ScreeningError, ValueError):
    """A model is missing, damaged, or does not fit the features."""

    exit_code = ExitCode.MODEL


class OutputError(ScreeningError, OSError):
    """A result cannot be written."""

    exit_code = ExitCode.OUTPUT

    @classmethod
    def from_os_error(cls, error: OSError, path: Path) -> OutputError:
        """Say in one sentence why `path` could not be written, and what to do about it."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "the disk is full; free some space"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "no permission to write there; choose another place or change its permissions"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            remedy = "a part of this path is a file, not a folder; choose another place"
        else:
            remedy = error.strerror or str(error)
        return cls(f"cannot write {path}: {remedy}")


class WorkerKilledError(ScreeningError, RuntimeError):
    """Workers died again and again on the same task, most often for lack of memory."""

    exit_code = ExitCode.WORKERS


class WorkersGoneError(ScreeningError, RuntimeError):
    """A cluster has had no workers for too long."""

    exit_code = ExitCode.WORKERS


class SchedulerLostError(ScreeningError, ConnectionError):
    """The Dask scheduler ended, or the connection to it was cut."""

    exit_code = ExitCode.WORKERS


class CampaignInterrupted(ScreeningError, KeyboardInterrupt):
    """Ctrl-C during a campaign, with the number of shards that are kept."""

    exit_code = ExitCode.INTERRUPTED


def exit_code_of(error: BaseException) -> ExitCode | None:
    """Return the exit code for an error that was raised on purpose, None for an unforeseen one."""
    from irnet.errors import ArchitectureError, DataError, DeviceError, IRNetError, RecipeError
    from prototypes.errors import PrototypeError, StructureFileError

    if isinstance(error, ScreeningError):
        return None if error.exit_code is ExitCode.UNEXPECTED else error.exit_code
    for kinds, code in (
        (KeyboardInterrupt, ExitCode.INTERRUPTED),
        ((ArchitectureError, DeviceError, RecipeError), ExitCode.CONFIGURATION),
        ((DataError, StructureFileError), ExitCode.INPUT_DATA),
        (IRNetError, ExitCode.MODEL),
        (PrototypeError, ExitCode.CONFIGURATION),
    ):
        if isinstance(error, kinds):
            return code
    return None


def suggest(word: str, names: Iterable[str]) -> str:
    """Return `; did you mean "name"?` for the name nearest to `word`, or an empty string.

    The hint ends its sentence; what follows it starts a new one: `{suggest(...) or ";"} then`.
    """
    folded = word.casefold()
    by_folded = {name.casefold(): name for name in names}
    near = difflib.get_close_matches(folded, list(by_folded), cutoff=0.5)
    if folded == "gpu" and "cuda" in by_folded:
        near = ["cuda"]
    near.sort(key=lambda name: sorted(name) != sorted(folded))  # two letters in the wrong order
    return f'; did you mean "{by_folded[near[0]]}"?' if near else ""


def suggest_file(path: Path) -> str:
    """Return a hint as `suggest` does, of the name in the same folder nearest to that of a file."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    return suggest(path.name, names)
