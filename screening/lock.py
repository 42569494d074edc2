"""The lock of a result folder: one run at a time writes into it.

The lock is a file that names its holder. A run that is killed leaves it behind; the next run on the
same machine sees that the process is gone and takes the lock over.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from screening.errors import FolderInUseError, OutputError

LOCK_NAME: Final = ".lock"

LARGEST_PID: Final = 2**31
"""What no number of a process reaches on any system."""


@dataclass(frozen=True)
class Holder:
    """A run that holds a lock.

    Attributes:
        pid: Its process.
        host: Its machine.
        started: When it took the lock, ISO 8601.
        birth: When the process was started, as the system counts (Linux: ticks since boot), to
            tell it from a later process of the same number; None where the system does not say.
    """

    pid: int
    host: str
    started: str
    birth: str | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.started}"

    def is_gone(self) -> bool:
        """Whether the process has surely ended: never of one on another machine."""
        if self.host != platform.node():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # it lives, under another user
        return self.birth is not None and self.birth != _read_birth(self.pid)


@contextmanager
def locked(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder; release it on leaving.

    Args:
        folder: The folder, which exists.
        note: Told when the lock of a run that is gone is taken over.

    Raises:
        FolderInUseError: Another run holds the lock, or may hold it.
        OutputError: The lock cannot be written.
    """
    path = folder / LOCK_NAME
    own = Holder(
        os.getpid(),
        platform.node(),
        datetime.now(UTC).isoformat(timespec="seconds"),
        _read_birth(os.getpid()),
    )
    if not _write_new(path, own):
        other = _read(path)
        if other is None or not other.is_gone():
            raise FolderInUseError(
                f"another run is writing into {folder}: {other or 'its lock cannot be read'}; wait "
                f"for it or choose another --out (if that run is surely over, delete {path})"
            )
        if not (_remove(path, other) and _write_new(path, own)):
            raise FolderInUseError(f"another run has just begun to write into {folder}; wait")
        note(f"taking {folder} over from a run that was killed ({other})")
    try:
        yield
    finally:
        if _read(path) == own:  # else somebody deleted it by hand, and another run began
            with suppress(OSError):
                path.unlink(missing_ok=True)


def read_holder(folder: Path) -> Holder | None:
    """Return who holds the lock of a folder; None if nobody does, or if it cannot be read."""
    return _read(folder / LOCK_NAME)


def _write_new(path: Path, holder: Holder) -> bool:
    """Write the lock, unless there is one."""
    try:
        stream = path.open("x", encoding="utf-8")
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError.from_os_error(error, path) from error
    try:
        with stream:
            json.dump(asdict(holder), stream)
    except OSError as error:
        path.unlink(missing_ok=True)  # an empty lock would shut everybody out
        raise OutputError.from_os_error(error, path) from error
    return True


def _remove(path: Path, holder: Holder) -> bool:
    """Remove a lock if it is still this holder's: another run may have found it stale too."""
    aside = path.with_name(f"{path.name}-{secrets.token_hex(8)}")
    try:
        path.rename(aside)
        if _read(aside) != holder:
            aside.rename(path)
            return False
        aside.unlink()
    except FileNotFoundError:
        pass  # the other run has removed it; one of the two writes the next first
    except OSError as error:
        raise OutputError.from_os_error(error, path) from error
    return True


def _read(path: Path) -> Holder | None:
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    texts = (holder.host, holder.started, holder.birth or "")
    is_process = type(holder.pid) is int and 0 < holder.pid < LARGEST_PID
    return holder if is_process and all(isinstance(each, str) for each in texts) else None


def _read_birth(pid: int) -> str | None:
    """Return field 22 of /proc/PID/stat (man 5 proc), None where there is no such file."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
