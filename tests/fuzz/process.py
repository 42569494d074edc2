"""Cases run one after the other in a process of their own, so that a crash is seen as one.

    python -m tests.fuzz.process READER SEEDS WORK FIRST LAST

prints a line of JSON before and after each case. Whoever reads the lines knows which case killed
the process, and starts another one behind it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

SECONDS = 10
"""Processor time of one case: more is a hang."""

WALL_SECONDS = 120
"""A case that does not even use the processor hangs after this."""

MEMORY = 1 << 30
"""Bytes that a case may take beyond what the process has: more is a fault."""

ROOT = Path(__file__).resolve().parents[2]


class TimeLimitExceeded(BaseException):
    """A case has used up its time; no `except Exception` catches it."""


@dataclass(frozen=True)
class Fault:
    """A case that ended neither well nor in an error of the program's own.

    Attributes:
        reader: Which reader.
        case: Number of the case.
        what: What happened, with a traceback where there is one.
    """

    reader: str
    case: int
    what: str

    def __str__(self) -> str:
        return f"{self.reader} {self.case}: {self.what}"


@dataclass
class Outcome:
    """What came of some cases.

    Attributes:
        outcomes: How many ended how: "read", or the name of an exit code.
        faults: Cases that broke the contract.
        slowest: Longest processor time of a case, in seconds.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def inputs(self) -> int:
        """Number of cases."""
        return sum(self.outcomes.values()) + len(self.faults)


def run_cases(reader: str, seeds: Path, work: Path, first: int, last: int) -> Outcome:
    """Run the cases first <= case < last of a reader in processes of their own.

    Args:
        reader: A name of `readers.READERS`.
        seeds: What `build_seeds` wrote.
        work: Folder for the damaged files.
        first: First case; a case's number is its seed.
        last: One past the last.
    """
    result = Outcome()
    while first < last:
        command = [sys.executable, "-m", "tests.fuzz.process", reader, str(seeds), str(work)]
        errors = work / "stderr.txt"
        work.mkdir(parents=True, exist_ok=True)
        running = -1
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with (
            errors.open("w") as stderr,
            subprocess.Popen(
                [*command, str(first), str(last)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=environment,
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                entry = json.loads(line)
                if "begun" in entry:
                    running = entry["begun"]
                    continue
                result.slowest = max(result.slowest, entry["seconds"])
                if "fault" in entry:
                    result.faults.append(Fault(reader, running, entry["fault"]))
                else:
                    result.outcomes[entry["outcome"]] += 1
                first, running = running + 1, -1
        if running >= 0:
            told = errors.read_text(errors="replace")[-3000:]
            result.faults.append(Fault(reader, running, f"exit {process.returncode}\n{told}"))
            first = running + 1
        elif process.returncode:
            raise RuntimeError(errors.read_text(errors="replace"))
    return result


def _stop(number: int, frame: FrameType | None) -> None:
    raise TimeLimitExceeded("".join(traceback.format_stack(frame)[-6:]))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    faulthandler.dump_traceback_later(WALL_SECONDS, exit=True)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def _run_case(prepare: Any, random: Random, seeds: Path, work: Path) -> dict[str, str]:
    """Run one case; returns its outcome or its fault."""
    from screening.errors import exit_code_of
    from screening.printing import make_printable

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = prepare(random, seeds, work)
    try:
        with _limited():
            result = case()
        outcome = result if isinstance(result, str) else "read"
    except (Exception, SystemExit, TimeLimitExceeded) as error:
        code = exit_code_of(error)
        if code is None:
            return {"fault": "".join(traceback.format_exception(error, limit=-8))[-3000:]}
        outcome = code.name.lower()
        make_printable(str(error)).encode()  # as the program prints it
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024
    if grown > MEMORY // 2:
        return {"fault": f"took {grown / 1e6:,.0f} MB"}
    return {"outcome": outcome}


def main(reader: str, seeds: Path, work: Path, first: int, last: int) -> None:
    """Run cases of a reader in this process, a line of JSON before and after each."""
    from tests.fuzz.readers import READERS

    prepare, _ = READERS[reader]
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGPROF, _stop)
    warnings.simplefilter("ignore")
    place = work / "case"
    for number in range(first, last):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.chdir(place)
        random = Random(f"{reader} {number}")
        if number == first:  # what is imported late is no fault of the first case
            importlib.import_module("matplotlib.figure")
            with contextlib.suppress(Exception):
                prepare(Random(0), seeds, place)()
            spare = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (max(size, spare) + MEMORY, -1))
        say.write(json.dumps({"begun": number}) + "\n")
        began = resource.getrusage(resource.RUSAGE_SELF)
        result: dict[str, Any] = dict(_run_case(prepare, random, seeds, place))
        ended = resource.getrusage(resource.RUSAGE_SELF)
        result["seconds"] = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        say.write(json.dumps(result) + "\n")
        if number % 100 == 0:
            gc.collect()


if __name__ == "__main__":
    name, source, target, start, stop = sys.argv[1:]
    main(name, Path(source), Path(target), int(start), int(stop))
