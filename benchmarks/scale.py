"""Cost per candidate of a growing campaign: time, memory and disk from 10^4 to 10^7.

    python benchmarks/scale.py [--sizes 1e4 1e5 1e6 1e7] [--model small] [--keep-top 1000] ...

Runs `screening run` as a user does, on double perovskites A2BCX6 of more and more elements, one
campaign after the other, and samples the memory and processor time of the command and of its
workers. What every campaign costs before its first candidate is measured by one of 60 candidates
and taken off where a column says "beyond start-up". The model "small" is one tiny network, trained
here in seconds on made-up energies: what it predicts means nothing, and the cost of what surrounds
the networks is not hidden behind them. What a shard costs the driver comes from the first campaign
cut into many more shards. The last table extends the largest campaign on paper; the formula is
printed with it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from machine import describe_machine

from prototypes import ELEMENTS_89, SYMBOLS
from screening.enumerate import restore_grid

PROTOTYPE = "double_perovskite"
SMALLEST = 5
"""Elements of the campaign that measures the start-up: 60 candidates."""

SMALL_SHARDS = 200
"""Indices in each shard of the campaign that measures what a shard costs."""

PAPER = (1e7, 1e8, 1e9)
PAPER_CORES = (2, 64)


@dataclass
class Usage:
    """What the processes of a command took, in bytes and seconds."""

    driver_memory: int = 0
    driver_seconds: float = 0.0
    worker_memory: dict[int, int] = field(default_factory=dict)
    worker_seconds: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """Figures of one campaign; seconds of the driver and of its workers are processor time."""

    candidates: int
    shards: int
    wall_seconds: float
    driver_seconds: float
    worker_seconds: float
    driver_memory: int
    worker_memory: int
    disk: int
    files: int
    stages: dict[str, float]


def count_candidates(elements: int) -> int:
    """Return how many double perovskites there are of so many elements."""
    return math.perm(elements, 4) // 2


def choose_elements(size: float) -> int:
    """Return the least number of elements that give at least so many candidates."""
    for elements in range(4, len(ELEMENTS_89) + 1):
        if count_candidates(elements) >= size:
            return elements
    sys.exit(f"{size:g} candidates are more than {len(ELEMENTS_89)} elements give")


def train_small_model(folder: Path) -> Path:
    """Train one tiny network on made-up energies of compounds of the CsCl type."""
    symbols = "Li Na K Rb Mg Ca Sr Al Ti Fe Ni Cu Zn O S F Cl Br".split()
    pairs = list(combinations(symbols, 2))
    table = {
        "id": ["".join(pair) for pair in pairs],
        "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
        "species": [list(pair) for pair in pairs],
        "frac_coords": [[0.0, 0.0, 0.0, 0.5, 0.5, 0.5]] * len(pairs),
        "formation_energy_per_atom": np.linspace(-2.0, 0.0, len(pairs)),
    }
    pd.DataFrame(table).to_parquet(folder / "made-up.parquet")
    command = [sys.executable, "-m", "screening", "train", str(folder / "made-up.parquet")]
    command += ["--out", str(folder / "small"), "--architecture", "16A-1", "--epochs", "2"]
    command += ["--members", "1", "--no-forest", "--workers", "0", "--device", "cpu"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "small"


def watch(process: psutil.Process, usage: Usage, stop: threading.Event) -> None:
    """Keep the largest resident sizes of a process and its children, and their processor time."""
    while not stop.wait(0.2):
        try:
            usage.driver_memory = max(usage.driver_memory, process.memory_info().rss)
            usage.driver_seconds = sum(process.cpu_times()[:2])
            children = process.children(recursive=True)
        except psutil.NoSuchProcess:
            return
        for child in children:
            try:
                size, seconds = child.memory_info().rss, sum(child.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
            usage.worker_memory[child.pid] = max(usage.worker_memory.get(child.pid, 0), size)
            usage.worker_seconds[child.pid] = seconds


def run_campaign(elements: int, options: list[str], out: Path) -> Run:
    """Run a campaign on so many elements and return its figures."""
    pool = ",".join(SYMBOLS[number - 1] for number in ELEMENTS_89[:elements])
    command = [sys.executable, "-m", "screening", "run", "--prototype", PROTOTYPE]
    command += ["--elements", pool, "--out", str(out), *options]
    usage, stop = Usage(), threading.Event()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        watcher = threading.Thread(target=watch, args=(child, usage, stop))
        watcher.start()
        code = child.wait()
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        if code:
            said.seek(0)
            sys.exit(f"screening run ended with exit code {code}: {said.read().decode()[-2000:]}")
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return Run(
        candidates=manifest["counts"]["total"],
        shards=len(restore_grid(manifest["grid"])),
        wall_seconds=seconds,
        driver_seconds=usage.driver_seconds,
        worker_seconds=sum(usage.worker_seconds.values()),
        driver_memory=usage.driver_memory,
        worker_memory=max(usage.worker_memory.values(), default=0),
        disk=sum(sizes),
        files=len(sizes),
        stages={name: each["worker_seconds"] for name, each in manifest["stages"].items()},
    )


def print_runs(base: Run, runs: list[Run]) -> None:
    """Print what the campaigns took, a row for each."""
    print(
        f"\nstart-up, of a campaign of {base.candidates} candidates: {base.wall_seconds:.1f} s, "
        f"processor time {base.driver_seconds:.1f} s of the driver and {base.worker_seconds:.1f} s "
        f"of its workers; driver {base.driver_memory / 2**20:,.0f} MiB, "
        f"worker {base.worker_memory / 2**20:,.0f} MiB"
    )
    print(
        "per candidate beyond start-up: time on the clock, and processor time of workers and driver"
    )
    print(
        f"{'candidates':>12}{'shards':>8}{'wall s':>9}{'clock':>11}{'workers':>11}{'driver':>10}"
        f"{'driver MiB':>12}{'worker MiB':>12}{'disk MB':>9}{'files':>7}"
    )
    for run in runs:
        times = [
            (run.wall_seconds - base.wall_seconds) / run.candidates,
            (run.worker_seconds - base.worker_seconds) / run.candidates,
            (run.driver_seconds - base.driver_seconds) / run.candidates,
        ]
        clock, workers, driver = (f"{each * 1e6:.1f} µs" for each in times)
        print(
            f"{run.candidates:>12,}{run.shards:>8,}{run.wall_seconds:>9,.1f}"
            f"{clock:>11}{workers:>11}{driver:>10}"
            f"{run.driver_memory / 2**20:>12,.0f}{run.worker_memory / 2**20:>12,.0f}"
            f"{run.disk / 1e6:>9,.1f}{run.files:>7,}"
        )


def print_stages(runs: list[Run]) -> None:
    """Print the time of each stage per candidate, a column for each campaign."""
    print("\ntime of a worker per candidate, on the clock, µs")
    print(f"{'':<14}" + "".join(f"{run.candidates:>14,}" for run in runs))
    for stage in runs[-1].stages:
        figures = "".join(f"{run.stages[stage] / run.candidates * 1e6:>14.2f}" for run in runs)
        print(f"{stage:<14}{figures}")


def print_paper(base: Run, runs: list[Run], many: Run, workers: int) -> None:
    """Extend the largest campaign: what more candidates would take."""
    few, last = runs[0], runs[-1]
    worker = (last.worker_seconds - base.worker_seconds) / last.candidates
    per_shard = last.candidates / last.shards
    more = many.shards - few.shards
    driver = max(0.0, many.driver_seconds - few.driver_seconds) / more
    growth = max(0.0, last.driver_memory - few.driver_memory) / max(1, last.shards - few.shards)
    disk = (last.disk - base.disk) / last.shards
    print(
        f"\n{few.candidates:,} candidates in {many.shards:,} shards instead of {few.shards:,}: "
        f"{driver * 1e3:.1f} ms of the driver's processor time for each more shard\n"
        f"on paper, from {last.candidates:,} candidates on {workers} workers, of which each takes "
        f"{worker * 1e6:.1f} µs of a worker, and each shard of {per_shard:,.0f} candidates "
        f"{disk / 1e3:.1f} kB on disk and at most {growth / 1e3:.1f} kB of the driver's memory:\n"
        "time = start-up + the larger of candidates × worker / cores and shards × driver"
    )
    print(
        f"{'candidates':>14}{'shards':>9}"
        + "".join(f"{f'{cores} cores':>12}" for cores in PAPER_CORES)
        + f"{'disk GB':>10}{'driver MiB':>12}"
    )
    for candidates in PAPER:
        shards = candidates / per_shard
        times = [
            base.wall_seconds + max(candidates * worker / cores, shards * driver)
            for cores in PAPER_CORES
        ]
        memory = last.driver_memory + growth * max(0.0, shards - last.shards)
        print(
            f"{candidates:>14,.0f}{shards:>9,.0f}"
            + "".join(f"{describe_time(seconds):>12}" for seconds in times)
            + f"{(base.disk + shards * disk) / 1e9:>10.2f}{memory / 2**20:>12,.0f}"
        )


def describe_time(seconds: float) -> str:
    """Write a time in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Run the campaigns and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--model", default="small", help="small, or what `screening run` takes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep-top", type=int, default=1000, help="0 keeps all")
    parser.add_argument("--competitors", choices=("binary", "ternary", "none"), default="binary")
    parser.add_argument("--shard-size", type=int)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    options = ["--workers", str(arguments.workers), "--device", arguments.device]
    options += ["--competitors", arguments.competitors]
    if arguments.keep_top:
        options += ["--keep-top", str(arguments.keep_top)]
    if arguments.shard_size:
        options += ["--shard-size", str(arguments.shard_size)]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        small = arguments.model == "small"
        options += ["--model", str(train_small_model(work)) if small else arguments.model]
        print(describe_machine())
        print(f"double perovskites, {arguments.model} model, {' '.join(options[:-2])}", flush=True)
        base = run_campaign(SMALLEST, options, work / "start-up")
        runs = []
        for size in sorted(arguments.sizes):
            with tempfile.TemporaryDirectory(dir=work) as out:
                run = run_campaign(choose_elements(size), options, Path(out) / "campaign")
            runs.append(run)
            print(f"{run.candidates:,} candidates: {run.wall_seconds:.1f} s", flush=True)
        finer = [*options, "--shard-size", str(SMALL_SHARDS)]
        elements = choose_elements(min(arguments.sizes))
        many = run_campaign(elements, finer, work / "many-shards")
    print_runs(base, runs)
    print_stages(runs)
    print_paper(base, runs, many, arguments.workers)


if __name__ == "__main__":
    main()
