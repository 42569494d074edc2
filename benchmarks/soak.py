"""Campaigns in a loop while their workers and drivers are killed: what grows, what is left behind?

    python benchmarks/soak.py [--minutes 15] [--seed 0] [--all]

One long-lived process is the driver of campaign after campaign, in turn: with workers of their own;
on one local cluster that lives as long as the process; on a `dask scheduler` and `dask worker` of
their own. In each of them a worker, sometimes two, is killed (SIGKILL) at a random moment. Further
campaigns are begun by a command that is killed itself, with or without workers of its own, and
finished by the long-lived process. After each the ranking must be that of the first campaign, byte
for byte, and the result folder must hold the same files. What could leak is counted: memory,
threads and open files of the driver and of the scheduler, what the scheduler remembers, processes,
and entries of the temporary folder. The first third of the campaigns is warm-up; of the others the
growth per campaign is the median of the slopes between all pairs (Theil and Sen). The exit code is
1 if anything grows by more than its limit or a ranking differs.

Dask remembers the last 1,000 messages of each connection, tasks and all, so that a scheduler grows
by some 10 MB for each worker and then no more; here it remembers 100, to reach that in the warm-up.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
from machine import describe_machine
from scale import train_small_model

CAMPAIGN = (
    "--prototype", "B2", "--prototype", "cubic_perovskite", "--prototype", "double_perovskite",
    "--elements", "Li,Na,K,Rb,Mg,Ca,Al,O,F,Cl", "--shard-size", "300", "--device", "cpu",
    "--competitors", "binary",
)  # fmt: skip
"""3,285 candidates in 38 shards."""

KINDS = ("own workers", "long local cluster", "scheduler", "killed driver", "killed, own workers")
SECONDS_TO_SETTLE = 30.0
FEWEST = 3 * len(KINDS)
"""Campaigns below which no growth can be told, however slow the machine is."""

MIB = 2**20

DASK = {
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__SCHEDULER__EVENTS_CLEANUP_DELAY": "10s",
}
"""Settings under which what Dask remembers for a while is soon as much as it ever gets."""

LIMITS = {
    "memory": 0.25 * MIB,
    "threads": 0.05,
    "open_files": 0.05,
    "processes": 0.05,
    "temporary": 0.05,
    "scheduler_memory": 0.25 * MIB,
    "scheduler_files": 0.05,
    "remembered": 0.05,
}
"""Growth per campaign that is still called flat."""


@dataclass(frozen=True)
class Sample:
    """What there was after a campaign.

    Attributes:
        seconds: Time since the beginning.
        kind: Where the campaign ran.
        memory: Resident size of the driver, bytes.
        threads: Threads of the driver.
        open_files: Open file descriptors of the driver.
        processes: Processes below the driver, the long-lived ones too, and those whose driver was
            killed.
        temporary: Files and folders in the temporary folder, at any depth.
        scheduler_memory: Resident size of the long-lived scheduler, bytes.
        scheduler_files: Its open file descriptors.
        remembered: Tasks, clients and plugins that it knows.
        worker_memory: Largest resident size of a long-lived worker, bytes; workers that were killed
            begin anew.
    """

    seconds: float
    kind: str
    memory: int
    threads: int
    open_files: int
    processes: int
    temporary: int
    scheduler_memory: int
    scheduler_files: int
    remembered: int
    worker_memory: int


class Soak:
    """The long-lived driver and what it keeps from campaign to campaign.

    Args:
        scratch: Folder for everything; it exists.
        seed: Of the moments and victims.
    """

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.temporary = scratch / "tmp"
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.problems: list[str] = []
        self.first: dict[str, str] = {}
        self.files: set[str] = set()
        self.started = time.perf_counter()
        self.here = psutil.Process()
        self.strays: list[psutil.Process] = []
        self.model = train_small_model(scratch)

    @contextmanager
    def open_clusters(self) -> Iterator[None]:
        """Start what lives as long as the soak: a local cluster, a scheduler and its workers."""
        from distributed import Client, LocalCluster

        beside = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        file = self.scratch / "scheduler.json"
        beside += ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
        beside += ["--scheduler-file", str(file)]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.scheduler = psutil.Popen(beside, **quiet)
        wait_for(file.is_file)
        self.address = json.loads(file.read_text())["address"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address]
        command += ["--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1"]
        command += ["--dashboard-address", "127.0.0.1:0"]
        self.nannies = psutil.Popen(command, **quiet)
        try:
            with (
                LocalCluster(
                    n_workers=2,
                    threads_per_worker=1,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    silence_logs="CRITICAL",
                ) as self.cluster,
                Client(self.address) as client,
            ):
                client.wait_for_workers(2, timeout=60)
                self.client = client
                yield
        finally:
            for process in (self.nannies, self.scheduler):
                process.terminate()
                process.wait(30)

    def run(self, kind: str) -> None:
        """Run a campaign, with something killed on the way, and compare and count."""
        out = self.scratch / "out"
        command = ["run", *CAMPAIGN, "--model", str(self.model), "--out", str(out)]
        where = {
            "long local cluster": ["--scheduler", self.cluster.scheduler_address],
            "scheduler": ["--scheduler", self.address],
            "killed driver": ["--scheduler", self.address],
        }.get(kind, ["--workers", "2"])
        if kind.startswith("killed"):
            self._kill_driver([*command, *where], out)
            where = ["--scheduler", self.address]
        with self._killing(kind, out):
            said = StringIO()
            with redirect_stdout(said), redirect_stderr(said):
                code = call([*command, *where])
        if code:
            self.problems.append(f"{kind}: exit code {code}: {said.getvalue()[-500:]}")
        self._compare(kind, out)
        shutil.rmtree(out)
        self.samples.append(self._take_sample(kind))

    def _kill_driver(self, command: list[str], out: Path) -> None:
        """Begin a campaign with a command that is killed when some shards are finished."""
        victim = psutil.Popen(
            [sys.executable, "-m", "screening", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        shards = self.random.randint(0, 25)
        wait_for(lambda: count_receipts(out) >= shards or victim.poll() is not None)
        time.sleep(self.random.uniform(0, 0.1))
        with suppress(psutil.NoSuchProcess):
            self.strays += victim.children(recursive=True)
            victim.send_signal(signal.SIGKILL)
            self.kills["drivers"] += 1
        victim.wait()

    @contextmanager
    def _killing(self, kind: str, out: Path) -> Iterator[None]:
        """Kill workers at random moments until the end of the `with`."""
        over = threading.Event()
        marks = sorted(self.random.sample(range(38), self.random.choice([0, 1, 1, 1, 2])))
        kept = set(self._list_workers(self.here))
        begun = count_receipts(out)

        def kill() -> None:
            for mark in marks:
                while count_receipts(out) < max(mark, begun) and not over.wait(0.02):
                    pass
                if over.wait(self.random.uniform(0, 0.05)):
                    return
                if kind == "own workers":
                    victims = [p for p in self._list_workers(self.here) if p not in kept]
                elif kind == "long local cluster":
                    victims = list(kept)
                else:
                    victims = self._list_workers(self.nannies)
                if victims:
                    with suppress(psutil.NoSuchProcess):
                        self.random.choice(victims).kill()
                        self.kills["workers"] += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            yield
        finally:
            over.set()
            killer.join()

    def _list_workers(self, parent: psutil.Process) -> list[psutil.Process]:
        """Return the worker processes that a process has started itself."""
        found = []
        for child in parent.children():
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def _compare(self, kind: str, out: Path) -> None:
        """Check that results are those of the first campaign, and that no file was left over."""
        names = ("ranking.parquet", "ranking.csv", "failures.parquet")
        found = {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest()
            for name in names
            if (out / name).is_file()
        }
        files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        if not self.first:
            self.first, self.files = found, files
        where = f"campaign {len(self.samples) + 1} ({kind})"
        self.problems += [
            f"{where}: {name} differs from the first campaign's"
            for name in names
            if found.get(name) != self.first.get(name)
        ]
        self.problems += [f"{where}: {name} was left over" for name in sorted(files - self.files)]
        self.problems += [f"{where}: {name} is missing" for name in sorted(self.files - files)]

    def _take_sample(self, kind: str) -> Sample:
        """Count what is there, once processes that are about to end have ended."""
        workers = 4

        def settled() -> bool:
            self.strays = [each for each in self.strays if each.is_running()]
            return not self.strays and len(self._list_long_lived()) == workers

        wait_for(settled, SECONDS_TO_SETTLE)
        gc.collect()
        with self.scheduler.oneshot():
            scheduler_memory = self.scheduler.memory_info().rss
            scheduler_files = self.scheduler.num_fds()
        return Sample(
            seconds=time.perf_counter() - self.started,
            kind=kind,
            memory=self.here.memory_info().rss,
            threads=self.here.num_threads(),
            open_files=self.here.num_fds(),
            processes=len(self.here.children(recursive=True)) + len(self.strays),
            temporary=sum(1 for _ in self.temporary.rglob("*")),
            scheduler_memory=scheduler_memory,
            scheduler_files=scheduler_files,
            remembered=self.client.run_on_scheduler(count_remembered),
            worker_memory=max(each.memory_info().rss for each in self._list_long_lived()),
        )

    def _list_long_lived(self) -> list[psutil.Process]:
        return self._list_workers(self.here) + self._list_workers(self.nannies)


def count_remembered(dask_scheduler: Any) -> int:
    """Return how many tasks, clients and plugins a scheduler has.

    Left out is what Dask keeps for good by design: the name of an empty topic of events for each
    worker and client that ever was.
    """
    known = (dask_scheduler.tasks, dask_scheduler.clients, dask_scheduler.plugins)
    return sum(map(len, known))


def call(command: list[str]) -> int:
    """Call the program in this process and return its exit code."""
    from screening.cli import main

    before = sys.argv
    sys.argv = ["screening", *command]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.argv = before
    return 0


def count_receipts(out: Path) -> int:
    """Return how many shards of a campaign are finished."""
    return len(list((out / "shards").glob("*.json")))


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something is true, or for so long."""
    end = time.perf_counter() + seconds
    while not condition() and time.perf_counter() < end:
        time.sleep(0.02)


def fit_slope(values: list[float]) -> float:
    """Return the growth per step: the median of the slopes between all pairs."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in pairs)


def print_sample(number: int, sample: Sample, kills: Counter[str]) -> None:
    """Print a line of the table."""
    print(
        f"{sample.seconds / 60:>6.1f}{number:>6}{kills['workers']:>8}{kills['drivers']:>8}"
        f"{sample.memory / MIB:>9.0f}{sample.threads:>9}{sample.open_files:>7}"
        f"{sample.processes:>7}{sample.temporary:>6}{sample.scheduler_memory / MIB:>11.0f}"
        f"{sample.scheduler_files:>7}{sample.remembered:>7}{sample.worker_memory / MIB:>9.0f}",
        flush=True,
    )


def judge(samples: list[Sample]) -> list[str]:
    """Print the growth of everything after the warm-up, and return what grows too fast."""
    after = samples[len(samples) // 3 :]
    print(f"\ngrowth per campaign over the last {len(after)} of {len(samples)} campaigns")
    leaks = []
    for each in fields(Sample):
        if each.name not in LIMITS:
            continue
        values = [float(getattr(sample, each.name)) for sample in after]
        slope, limit = fit_slope(values), LIMITS[each.name]
        unit, scale = (" MiB", MIB) if each.name.endswith("memory") else ("", 1)
        verdict = "flat" if slope <= limit else "GROWS"
        print(
            f"{each.name:<18}{slope / scale:>+9.3f}{unit:<5} from {values[0] / scale:,.0f} to "
            f"{values[-1] / scale:,.0f}{unit}, limit {limit / scale:g}{unit}: {verdict}"
        )
        if slope > limit:
            leaks.append(each.name)
    return leaks


def main() -> None:
    """Soak, print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="print a line for every campaign")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as scratch:
        temporary = Path(scratch) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        os.environ |= DASK
        soak = Soak(Path(scratch), arguments.seed)
        print(
            "   min  runs workers drivers   driver  threads  files  procs  temp  scheduler  files"
            "  knows  worker\n"
            "             killed  killed      MiB                                       MiB"
            "                 MiB"
        )
        with soak.open_clusters():
            shown = 0.0
            for kind in itertools.cycle(KINDS):
                soak.run(kind)
                last = soak.samples[-1]
                ended = last.seconds >= arguments.minutes * 60 and len(soak.samples) >= FEWEST
                if arguments.all or ended or last.seconds - shown >= 30:
                    shown = last.seconds
                    print_sample(len(soak.samples), last, soak.kills)
                if ended:
                    break
        tempfile.tempdir = None
        leaks = judge(soak.samples)
    print(
        f"\n{len(soak.samples)} campaigns: "
        + ", ".join(
            f"{count} {kind}" for kind, count in Counter(s.kind for s in soak.samples).items()
        )
    )
    for problem in soak.problems:
        print(problem)
    if leaks or soak.problems:
        sys.exit(f"{len(leaks)} leaks ({', '.join(leaks)}), {len(soak.problems)} other problems")
    print("every ranking is the first one's, byte for byte; nothing grows, nothing is left behind")


if __name__ == "__main__":
    main()
