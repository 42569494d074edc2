"""A whole campaign on this machine: time, candidates per second of each stage, memory.

    python benchmarks/campaign.py [--prototype perovskite] [--elements all89] [--workers 2] ...

Runs `screening run` as a user does, in a process of its own, and samples the memory of that
process and its workers. Without options: all 681,384 ABX3 of 89 elements on the Pnma perovskite,
scored by the bundled ensemble and the Random Forest, against the phases that the model predicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from machine import describe_machine


def watch_memory(process: psutil.Process, peaks: dict[int, int], stop: threading.Event) -> None:
    """Keep the largest resident size of a process and of each of its children, in bytes."""
    while not stop.wait(0.2):
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for member in family:
            try:
                peaks[member.pid] = max(peaks.get(member.pid, 0), member.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


def main() -> None:
    """Run the campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prototype", action="append")
    parser.add_argument("--elements", action="append")
    parser.add_argument("--model", default="default")
    parser.add_argument("--workers", default="2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--references", help="reference phases; without, the model predicts them")
    parser.add_argument("--competitors", choices=("binary", "ternary", "none"))
    arguments = parser.parse_args()
    options = ["--model", arguments.model, "--workers", arguments.workers]
    options += ["--device", arguments.device, "--precision", arguments.precision]
    for option in ("references", "competitors"):
        given = getattr(arguments, option)
        options += [] if given is None else [f"--{option}", given]
    for name in arguments.prototype or ["perovskite"]:
        options += ["--prototype", name]
    for pool in arguments.elements or ["all89"]:
        options += ["--elements", pool]

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "campaign"
        command = [sys.executable, "-m", "screening", "run", *options, "--out", str(out)]
        peaks: dict[int, int] = {}
        stop = threading.Event()
        start = time.perf_counter()
        child = psutil.Popen(command, stdout=subprocess.DEVNULL)
        watcher = threading.Thread(target=watch_memory, args=(child, peaks, stop))
        watcher.start()
        code = child.wait()
        seconds = time.perf_counter() - start
        stop.set()
        watcher.join()
        if code:
            sys.exit(f"screening run ended with exit code {code}")
        manifest = json.loads((out / "manifest.json").read_text())

    candidates = manifest["counts"]["total"]
    members = manifest["model"]["members"]
    print(describe_machine())
    print(
        f"{candidates:,} candidates, {members} members and the Random Forest, "
        f"{arguments.workers} workers: {seconds:.0f} s in all, {candidates / seconds:,.0f} /s"
    )
    print(f"arithmetic of the networks: {', '.join(manifest['precisions'])}")
    print(f"largest process: {max(peaks.values()) / 2**30:.2f} GiB")
    print(f"{'stage':<12}{'worker seconds':>16}{'candidates/s per worker':>26}")
    for stage, figures in manifest["stages"].items():
        rate = figures["candidates_per_worker_second"]
        print(
            f"{stage:<12}{figures['worker_seconds']:>16.1f}"
            f"{'-' if rate is None else f'{rate:,.0f}':>26}"
        )
    print(f"{'rank':<12}{manifest['runs'][-1]['rank_and_write_seconds']:>16.1f}")


if __name__ == "__main__":
    main()
