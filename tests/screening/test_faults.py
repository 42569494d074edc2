"""Faults that are really caused, through the program as users run it.

Whatever happens to a campaign, the same command given again ends it with the ranking of a campaign
that was left in peace, byte for byte.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

PATIENCE = 300.0
"""Seconds after which a test says that something never happened."""

MARK = "SCREENING_TEST_RUN"
"""Environment variable by which the processes of a run are known, wherever their parents are."""

SHARDS = 41
SHARD_SIZE = 100

SETTINGS = """
prototype = ["cubic_perovskite"]
elements = ["Li,Na,K,Rb,Mg,Ca,Sr,Ba,Ti,Fe,Ni,Al,O,S,F,Cl"]
model = "{model}"
references = "{references}"
device = "cpu"
shard_size = {size}
[cluster]
memory = "900MB"
dashboard = "127.0.0.1:0"
"""

REFERENCES = """formula,formation_energy_per_atom
LiF,-3.1
NaCl,-2.1
MgO,-3.0
CaO,-3.2
CaF2,-4.1
Al2O3,-3.3
TiO2,-3.1
Fe2O3,-1.7
KMgF3,-3.4
"""

PRELOAD = '''
"""Faults of workers: `dask_setup` is called by Dask when a worker starts."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path


def dask_setup(worker):
    import screening.shard_tasks as stage
    from screening.folder import RunFolder

    faults = json.loads(os.environ["SCREENING_TEST_FAULTS"])
    place = Path(os.environ["SCREENING_TEST_MARKERS"])
    screen_shard = stage.screen_shard

    def suffer(task, *rest):
        time.sleep(faults.get("pace", 0))
        number = task.shard.number
        fault = faults.get(str(number))
        marker = place / f"{number}-{fault}"
        if fault is None or (marker.exists() and not faults.get("always")):
            return screen_shard(task, *rest)
        with marker.open("a") as stream:
            stream.write("once\\n")
        if fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hang":
            time.sleep(3600)
        elif fault == "memory":
            hoard = []
            while True:
                hoard.append(os.urandom(1000) * 20_000)
                time.sleep(0.01)
        elif fault == "bug":
            raise ZeroDivisionError("this shard is cursed")
        receipt = screen_shard(task, *rest)
        path = RunFolder(task.folder).table_path(task.shard)
        content = bytearray(path.read_bytes())
        if fault == "bit":
            content[len(content) // 2] ^= 1
        elif fault == "half":
            del content[len(content) // 2 :]
        elif fault == "lie":
            return replace(receipt, candidates=receipt.candidates + 1)
        path.write_bytes(content)
        return receipt

    stage.screen_shard = suffer
'''


@dataclass(frozen=True)
class Bench:
    """Where campaigns of one kind are run, and the folder of the one that was left in peace."""

    scratch: Path
    settings: Path

    @property
    def peaceful(self) -> Path:
        return self.scratch / "peaceful"

    def run(self, out: Path, *options: object, **environment: str) -> Run:
        return Run(self, out, tuple(map(str, options)), environment)


@dataclass
class Run:
    """One run of the program, begun at once; leaving its `with` leaves no process."""

    bench: Bench
    out: Path
    options: tuple[str, ...]
    environment: Mapping[str, str]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.log = self.bench.scratch / f"{self.mark}.log"
        command = [sys.executable, "-m", "screening", "run", str(self.bench.settings)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--out", str(self.out), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, MARK: self.mark, **self.environment},
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self.process, *self.find_processes()):
            process.kill()
        self.process.wait()

    @property
    def messages(self) -> str:
        """What it said on stderr, as one line."""
        return " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())

    def find_processes(self) -> list[psutil.Process]:
        """All processes that this run started and that live, but for the first."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK) == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return [each for each in found if each.pid != self.process.pid]

    def find_workers(self) -> list[psutil.Process]:
        """Workers among them, not the process that tracks their resources."""
        workers = []
        for process in self.find_processes():
            try:
                if "spawn_main" in " ".join(process.cmdline()):
                    workers.append(process)
            except psutil.Error:
                continue
        return workers

    def wait(self, code: int = 0) -> str:
        """Wait for its end; return what it said."""
        if not self.ends_within(PATIENCE):
            pytest.fail(f"{finished(self.out)} shards after {PATIENCE} s: {self.messages}")
        ended = self.process.returncode
        assert ended == code, f"exit code {ended}: {self.log.read_text(errors='replace')}"
        return self.messages

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself so soon."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so, or it ended."""
        await_that(lambda: condition() or self.process.poll() is not None)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def finished(out: Path) -> int:
    """Number of shards that are finished."""
    return len(list(out.glob("shards/?????.json")))


def assert_undisturbed(bench: Bench, out: Path) -> None:
    """The ranking is that of the campaign that was left in peace, and no leftovers are there."""
    for name in ("ranking.parquet", "ranking.csv", "failures.parquet"):
        assert (out / name).read_bytes() == (bench.peaceful / name).read_bytes(), name
    files, expected = (
        {str(path.relative_to(folder)) for path in folder.rglob("*")}
        for folder in (out, bench.peaceful)
    )
    assert files == expected


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    scratch = tmp_path_factory.mktemp("faults")
    references = scratch / "references.csv"
    references.write_text(REFERENCES)
    settings = scratch / "campaign.toml"
    settings.write_text(SETTINGS.format(model=tiny_model, references=references, size=SHARD_SIZE))
    (scratch / "faults.py").write_text(PRELOAD)
    bench = Bench(scratch, settings)
    with bench.run(bench.peaceful, "--workers", 0) as run:
        run.wait()
    assert finished(bench.peaceful) == SHARDS
    assert pq.read_metadata(bench.peaceful / "ranking.parquet").num_rows > 1000
    return bench


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "campaign"


@pytest.fixture
def suffering(bench: Bench, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Environment in which workers suffer from faults: what happens to which shard."""
    markers = tmp_path / "markers"
    markers.mkdir()

    def describe(**faults: object) -> dict[str, str]:
        return {
            "DASK_DISTRIBUTED__WORKER__PRELOAD": str(bench.scratch / "faults.py"),
            "SCREENING_TEST_FAULTS": json.dumps(
                {name.removeprefix("shard_"): fault for name, fault in faults.items()}
            ),
            "SCREENING_TEST_MARKERS": str(markers),
        }

    return describe


# kill -9


def kill_driver(
    bench: Bench, out: Path, moments: random.Random, stage: str, workers: int
) -> tuple[str, int]:
    """Begin a run, kill it, and say at what stage that hit it and how many shards were there."""
    before = finished(out)
    with bench.run(out, "--workers", workers) as run:
        if stage == "start":
            run.wait_until((out / ".lock").exists)
            time.sleep(moments.uniform(0, 0.3))
        elif stage == "shards":
            goal = min(before + moments.randint(1, 3), SHARDS - 1)
            run.wait_until(lambda: finished(out) >= goal)
            time.sleep(moments.uniform(0, 0.01))
        else:
            run.wait_until(lambda: finished(out) == SHARDS)
            time.sleep(moments.uniform(0, 0.3))
        running = run.process.poll() is None
        run.kill()
        if workers:  # they end by themselves
            await_that(lambda: not run.find_processes())
    now = finished(out)
    if not running:
        return "too late", now
    if now == before and now < SHARDS:
        return "before the first shard", now
    return ("between shards" if now < SHARDS else "after the last shard"), now


@pytest.mark.parametrize(
    ("workers", "stages", "seed"),
    [
        (0, ["start"] * 3 + ["shards"] * 9 + ["end"] * 2, 1),
        (2, ["start"] * 1 + ["shards"] * 4 + ["end"] * 1, 2),
    ],
)
def test_driver_killed(bench: Bench, out: Path, workers: int, stages: list[str], seed: int) -> None:
    """Twenty kills of drivers in both cases together."""
    moments = random.Random(seed)
    hits: Counter[str] = Counter()
    kept = []
    for stage in stages:
        hit, there = kill_driver(bench, out, moments, stage, workers)
        hits[hit] += 1
        kept.append(there)
    print(f"kills of a driver with {workers} workers: {dict(hits)}; shards kept: {kept}")
    assert hits["between shards"] >= 3
    assert hits["too late"] == 0
    assert kept == sorted(kept), "a finished shard was lost"
    assert len(set(kept)) > 3
    with bench.run(out, "--workers", workers) as run:
        said = run.wait()
    assert re.search(r"taking .* over from a run that was killed", said)
    assert_undisturbed(bench, out)


def test_workers_killed(bench: Bench, out: Path, suffering: Callable[..., dict[str, str]]) -> None:
    """Twenty kills of workers of one campaign, each after it has got on since the last."""
    moments = random.Random(3)
    options = ("--workers", 2, "--attempts", 6)
    with bench.run(out, *options, **suffering(pace=0.1)) as run:
        for kill in range(20):
            before = finished(out)
            run.wait_until(lambda before=before: finished(out) > before)
            time.sleep(moments.uniform(0, 0.3))
            while not (victims := run.find_workers()):
                assert run.process.poll() is None
            assert finished(out) < SHARDS, "too late to kill anything"
            # one that has just been started takes its nanny along, and is missed for seconds
            victims.sort(key=lambda victim: victim.create_time())
            (moments.choice(victims) if kill % 5 == 4 else victims[0]).kill()
        run.wait()
        await_that(lambda: not run.find_processes())
    assert_undisturbed(bench, out)


@contextmanager
def running_scheduler(folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen]:
    """A scheduler and a worker of its own; their address is in `scheduler.json`."""
    address = folder / "scheduler.json"
    address.unlink(missing_ok=True)
    dask, rest = [sys.executable, "-m", "dask"], ["--scheduler-file", str(address)]
    with (folder / "dask.log").open("ab") as log:
        scheduler, worker = (
            subprocess.Popen(
                [*dask, *command, *rest], stdout=log, stderr=log, env={**os.environ, **environment}
            )
            for command in (
                ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
                ["worker", "--nthreads", "1", "--no-dashboard", "--death-timeout", "60"],
            )
        )
    try:
        await_that(address.exists)
        yield scheduler
    finally:
        for process in (*psutil.Process(worker.pid).children(recursive=True), worker, scheduler):
            process.kill()
        worker.wait()
        scheduler.wait()


def test_scheduler_killed(
    bench: Bench, out: Path, tmp_path: Path, suffering: Callable[..., dict[str, str]]
) -> None:
    options = ("--scheduler-file", tmp_path / "scheduler.json")
    with (
        running_scheduler(tmp_path, suffering(pace=0.1)) as scheduler,
        bench.run(out, *options) as run,
    ):
        run.wait_until(lambda: finished(out) >= 3)
        scheduler.kill()
        killed = time.monotonic()
        said = run.wait(code=6)
        assert time.monotonic() - killed < 60, "it took more than seconds to notice"
    assert "scheduler at tcp://127.0.0.1" in said
    assert "run the same command again" in said
    assert 3 <= finished(out) < SHARDS
    with running_scheduler(tmp_path, suffering()), bench.run(out, *options) as run:
        run.wait()
    assert_undisturbed(bench, out)


# workers that do not die


def test_lack_of_memory_a_hang_and_garbage(
    bench: Bench, out: Path, tmp_path: Path, suffering: Callable[..., dict[str, str]]
) -> None:
    """Six shards suffer once each, and are computed again."""
    faults = {
        "shard_4": "memory", "shard_9": "hang", "shard_14": "bit", "shard_19": "half",
        "shard_24": "lie", "shard_29": "bug",
    }  # fmt: skip
    options = ("--workers", 2, "--shard-timeout", 20, "--attempts", 5)
    with bench.run(out, *options, **suffering(**faults)) as run:
        run.wait()
        await_that(lambda: not run.find_processes())
    suffered = {path.name: path.read_text() for path in (tmp_path / "markers").iterdir()}
    assert suffered == {
        f"{name.removeprefix('shard_')}-{fault}": "once\n" for name, fault in faults.items()
    }
    assert_undisturbed(bench, out)


def test_poisonous_shards_are_set_aside_and_tried_again(
    bench: Bench, out: Path, tmp_path: Path, suffering: Callable[..., dict[str, str]]
) -> None:
    environment = suffering(shard_7="death", shard_21="bug", always=True)
    with bench.run(out, "--workers", 2, "--attempts", 2, **environment) as run:
        said = run.wait()
    deaths = (tmp_path / "markers" / "7-death").read_text().count("once")
    assert deaths in (2, 3), "one more where a neighbour had to be cleared of suspicion"
    assert (tmp_path / "markers" / "21-bug").read_text().count("once") == 2
    assert finished(out) == SHARDS - 2
    for number, reason in ((7, "died"), (21, "ZeroDivisionError: this shard is cursed")):
        quarantined = json.loads((out / f"shards/{number:05d}.quarantine.json").read_text())
        assert reason in quarantined["reason"]
        assert quarantined["attempts"] == 2
        assert reason in said
    failures = pq.read_table(out / "failures.parquet").to_pylist()
    numbers = {row["candidate"] // SHARD_SIZE for row in failures}
    assert numbers == {7, 21}
    assert all(("died" in row["reason"]) != ("cursed" in row["reason"]) for row in failures)
    ranked = pq.read_metadata(out / "ranking.parquet").num_rows
    everything = pq.read_metadata(bench.peaceful / "ranking.parquet").num_rows
    assert ranked + len(failures) == everything
    with bench.run(out, "--workers", 0) as run:
        run.wait()
    assert_undisturbed(bench, out)


# what is found at resume


def damage_shards(out: Path) -> int:
    """Harm shards, each in a way of its own; return how many."""
    table = {number: out / f"shards/{number:05d}.parquet" for number in range(SHARDS)}
    receipt = {number: path.with_suffix(".json") for number, path in table.items()}
    content = table[0].read_bytes()
    table[0].write_bytes(content[: len(content) // 2])
    flipped = bytearray(table[1].read_bytes())
    flipped[len(flipped) // 2] ^= 4
    table[1].write_bytes(flipped)
    shutil.copy(table[30], table[2])
    shutil.copy(table[31], table[3])
    shutil.copy(receipt[31], receipt[3])
    table[4].unlink()
    table[5].write_bytes(b"")
    receipt[6].write_text(receipt[6].read_text()[:100])
    receipt[7].write_bytes(b"\xff\x00 no text")
    receipt[8].write_text("[]")
    changed = json.loads(receipt[9].read_text())
    receipt[9].write_text(json.dumps(changed | {"candidates": changed["candidates"] - 1}))
    receipt[10].write_text(json.dumps(changed))  # of another shard
    return 11


def test_damaged_shards_are_found_reported_and_computed_again(bench: Bench, out: Path) -> None:
    shutil.copytree(bench.peaceful, out)
    damaged = damage_shards(out)
    with bench.run(out, "--workers", 0) as run:
        said = run.wait()
    assert f"{damaged} finished shards were damaged and are computed again" in said
    assert_undisturbed(bench, out)


@pytest.mark.parametrize("damage", ["truncated", "bit", "foreign"])
def test_a_damaged_manifest_is_found_and_written_again(
    bench: Bench, out: Path, damage: str
) -> None:
    shutil.copytree(bench.peaceful, out)
    (out / "shards/00005.json").unlink()
    manifest = out / "manifest.json"
    content = manifest.read_bytes()
    if damage == "truncated":
        manifest.write_bytes(content[: len(content) // 2])
    elif damage == "bit":
        manifest.write_bytes(content.replace(b'"counts"', b'"countr"', 1))
    else:
        manifest.write_bytes(b'{"name": "of another program"}')
    with bench.run(out, "--workers", 0) as run:
        said = run.wait()
    assert "manifest.json" in said and "it is made anew, and finished shards are kept" in said
    assert_undisturbed(bench, out)


# disks and clocks


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of so many bytes at a folder, where mounting is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_disk_full_on_a_small_file_system(bench: Bench, out: Path, workers: int) -> None:
    with mounted(out, "800k"):
        with bench.run(out, "--workers", workers) as run:
            said = run.wait(code=5)
        assert "the disk is full; free some space" in said
        assert 0 < finished(out) < SHARDS
        if workers == 0:
            remount(out, "ro")
            with bench.run(out, "--workers", workers) as run:
                said = run.wait(code=5)
            assert "no permission to write there" in said
            remount(out, "rw")
        remount(out, "size=50m")
        with bench.run(out, "--workers", workers) as run:
            run.wait()
        assert_undisturbed(bench, out)


JUMPING_CLOCK = """
import os
import time

SPAN = 400 * 86_400.0
real, begun = time.time, time.monotonic()


def jumping():
    phase = int((time.monotonic() - begun) / float(os.environ["SCREENING_TEST_SECONDS"]))
    return real() + (0.0, SPAN, -SPAN)[phase % 3]


time.time = jumping
time.time_ns = lambda: int(jumping() * 1e9)
"""
"""A clock that leaps more than a year every few seconds, to and fro; Python loads it at start."""

LEAPING_PATIENCE = 150.0
"""Seconds after which a run under such a clock is killed and begun again, as its user would.

Dask's streams (`distributed.batched.BatchedSend`) put a message that follows another within
milliseconds off until a time of day; where the clock leaps back between the two, the stream says
nothing more until the clock has caught up, here after 400 days.
"""


@pytest.mark.parametrize(("workers", "seconds"), [(0, 1), (1, 8)])
def test_clock_that_jumps(
    bench: Bench,
    out: Path,
    tmp_path: Path,
    workers: int,
    seconds: int,
    suffering: Callable[..., dict[str, str]],
) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    clock = {"PYTHONPATH": paths, "SCREENING_TEST_SECONDS": str(seconds), **suffering(pace=0.2)}
    options = ("--workers", workers, "--attempts", 6)
    with bench.run(out, *options, **clock) as run:
        run.wait_until(lambda: finished(out) >= 2)
        run.kill()
    year = 365 * 86_400.0
    for number, path in enumerate(sorted(out.glob("shards/*"))):
        when = time.time() + (year if number % 2 else -year) * 9
        os.utime(path, (when, when))
    kept = {path: path.stat().st_mtime_ns for path in out.glob("shards/*.json")}
    for _ in range(3):
        with bench.run(out, *options, **clock) as run:
            if run.ends_within(LEAPING_PATIENCE):
                run.wait()
                break
    else:
        pytest.fail(f"{finished(out)} shards after three runs: {run.messages}")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished shards were redone"
    assert_undisturbed(bench, out)


# who may write


def test_two_drivers_on_one_folder(
    bench: Bench, out: Path, suffering: Callable[..., dict[str, str]]
) -> None:
    with bench.run(out, "--workers", 1, **suffering(pace=0.2)) as first:
        first.wait_until(lambda: finished(out) >= 1)
        with bench.run(out, "--workers", 0) as second:
            said = second.wait(code=2)
        assert f"process {first.process.pid} on" in said
        assert first.process.poll() is None
        first.kill()
    lock = out / ".lock"
    holder = json.loads(lock.read_text())
    assert holder["pid"] == first.process.pid
    # the number is that of a living process now, which was born at another time
    lock.write_text(json.dumps(holder | {"pid": os.getpid()}))
    with bench.run(out, "--workers", 0) as third:
        said = third.wait()
    assert f"from a run that was killed (process {os.getpid()} on" in said
    assert_undisturbed(bench, out)


@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGINT, 2), (signal.SIGINT, 0), (signal.SIGTERM, 2)]
)
def test_interrupts(
    bench: Bench,
    out: Path,
    how: signal.Signals,
    workers: int,
    suffering: Callable[..., dict[str, str]],
) -> None:
    with bench.run(out, "--workers", workers, **suffering(pace=0.1)) as run:
        run.wait_until(lambda: finished(out) >= 3)
        run.process.send_signal(how)
        said = run.wait(code=130)
        await_that(lambda: not run.find_processes())
    counted = re.search(rf"(\d+) of {SHARDS} shards are finished", said)
    assert counted is not None
    done = int(counted[1])
    assert 1 <= done <= finished(out) < SHARDS, "workers may have ended what they had begun"
    assert "run the same command again to go on" in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["state"] == "interrupted"
    assert manifest["shards_finished"] == done
    ranked = pq.read_metadata(out / "ranking.parquet").num_rows
    assert 0 < ranked <= done * SHARD_SIZE
    assert manifest["rows"]["scored"] == ranked
    with bench.run(out, "--workers", 0) as run:
        run.wait()
    assert_undisturbed(bench, out)
