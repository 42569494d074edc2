"""Where a campaign stands: counts, rates, workers, failures and the best rows so far.

The driver keeps a `StatusTracker`, and a `StatusWriter` puts what it says into `status.json` of the
result folder about once a second. Nearly all of it is a sum over the receipts of finished shards,
so that `read_status` finds the same numbers in the folder of a campaign that does not run.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from heapq import nsmallest
from itertools import islice, zip_longest
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from screening.enumerate import Shard
from screening.errors import InputDataError
from screening.folder import Receipt, RunFolder
from screening.lock import LOCK_NAME, read_holder
from screening.rank import FALLBACKS, ONE_SIDED_90
from screening.settings import RankBy

if TYPE_CHECKING:
    from screening.lock import Holder

STATUS_NAME: Final = "status.json"
"""What the driver writes into the result folder while it runs."""

MOST_BEST: Final = 10
"""Best rows that a status holds."""

MOST_QUARANTINED: Final = 100
"""Quarantined shards that a status names; all of them are counted."""

MOST_WORKERS: Final = 200
"""Workers that a status lists; all of them are counted."""

MOST_REASONS: Final = 100
"""Reasons of failures that are told apart."""

OTHER_REASONS: Final = "other reasons"
"""What failures of further reasons are counted under."""

WINDOW_SECONDS: Final = 60.0
"""Length of the moving window of rates."""

WINDOW_POINTS: Final = 16
"""Moments that the window spans at least, where shards take long."""

POINT_SECONDS: Final = 0.25
"""Time between two remembered moments: those between are merged."""

SECONDS_BETWEEN: Final = 1.0
"""Time between two snapshots."""

SILENCE_SECONDS: Final = 30.0
"""How long a driver on another machine may write nothing before it is no longer waited for."""

STOP_SECONDS: Final = 5.0
"""Longest that the end of a campaign waits for its last snapshot to be told."""

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Energy = Annotated[float, Field(allow_inf_nan=False)]


class State(StrEnum):
    """What a campaign does."""

    RUNNING = "running"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    """Ctrl-C: what was finished is ranked."""
    STOPPED = "stopped"
    """Neither complete nor interrupted, and nobody works at it: its driver was killed."""
    UNKNOWN = "unknown"
    """A process on another machine holds the lock, or the lock cannot be read: whether the driver
    lives cannot be told from here."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class StageStatus(_Part):
    """One stage, summed over all workers.

    Attributes:
        worker_seconds: Time spent in it.
        candidates_per_worker_second: Candidates through it for each of these seconds; None where no
            time was spent.
    """

    worker_seconds: Amount
    candidates_per_worker_second: Amount | None


class WorkerStatus(_Part):
    """One worker.

    Attributes:
        name: Its name; `driver` where the driver itself computes.
        host: Its machine.
        device: Where it computes; None before its first shard.
        candidates: Candidates of the shards that it finished.
        candidates_per_second: Of these, for each second that it was busy with them.
        memory_bytes: Memory of its process now; None where it is not connected.
    """

    name: str
    host: str
    device: str | None = None
    candidates: Count = 0
    candidates_per_second: Amount | None = None
    memory_bytes: Count | None = None


class BestRow(_Part):
    """A candidate among the best so far; the columns are those of the ranking."""

    prototype: str
    candidate: Count
    formula: str
    formation_enthalpy_ev_per_atom: Energy | None
    energy_above_hull_ev_per_atom: Energy | None
    energy_above_hull_std_ev_per_atom: Energy | None
    p_stable: Energy | None


class Driver(_Part):
    """The process that runs a campaign.

    Attributes:
        pid: Its number.
        host: Its machine.
        since: When it took the result folder, ISO 8601.
    """

    pid: Count
    host: str
    since: str


class CampaignStatus(_Part):
    """Where a campaign stands.

    Attributes:
        format: Version of this form.
        state: What the campaign does.
        campaign: Name of its result folder.
        prototypes: Names of its prototypes, in order.
        total: Candidates in all.
        enumerated: Candidates of the shards that are done, the quarantined ones too.
        featurized: Candidates whose features were computed, well or not.
        scored: Candidates with an energy.
        failed: Candidates without: features that could not be computed, and quarantined shards.
        removed: Candidates that conditions removed.
        dropped: Scored candidates that were not kept, with `--keep-top`.
        below_hull: Scored candidates on the hull of their competitors or below it.
        probable: Scored candidates that are stable with a probability of at least one half.
        shards: Shards in all.
        shards_done: Shards that are finished.
        shards_quarantined: Shards that were given up.
        quarantined: Why, by number of the shard; the first `MOST_QUARANTINED` of them.
        reasons: Failed candidates by reason.
        stages: The stages in order.
        workers_seen: Workers that are connected or finished a shard.
        workers: `MOST_WORKERS` of them, by name; those that are connected go before the others.
        best: The best rows so far, best first.
        ranked_by: Their order.
        std_histogram: Candidates by standard deviation of the formation enthalpy, in the bins of
            the receipts.
        competitor_tasks: Tasks of predicting competing phases, which come before the candidates.
        competitor_tasks_done: Of these, those that are finished.
        elapsed_seconds: Time of the run that is going on, else of all that came to their end or
            were interrupted; None where none did.
        candidates_per_second: Rate over the last minute or so; None before the first shard and
            where no run is going on.
        seconds_left: Time left at that rate; None where there is none.
        driver: Who runs it; None where nobody does.
        updated: When this was written, ISO 8601; for people only, clocks may jump.
    """

    format: Literal[1] = 1
    state: State
    campaign: str
    prototypes: tuple[str, ...]
    total: Count
    enumerated: Count
    featurized: Count
    scored: Count
    failed: Count
    removed: Count
    dropped: Count
    below_hull: Count
    probable: Count
    shards: Count
    shards_done: Count
    shards_quarantined: Count
    quarantined: Mapping[int, str]
    reasons: Mapping[str, Count]
    stages: Mapping[str, StageStatus]
    workers_seen: Count
    workers: tuple[WorkerStatus, ...]
    best: tuple[BestRow, ...]
    ranked_by: RankBy
    std_histogram: tuple[Count, ...]
    competitor_tasks: Count
    competitor_tasks_done: Count
    elapsed_seconds: Amount | None
    candidates_per_second: Amount | None
    seconds_left: Amount | None
    driver: Driver | None
    updated: str

    @property
    def has_hull(self) -> bool:
        """Whether energies above hull are computed, as far as anything is scored."""
        return not self.best or self.best[0].energy_above_hull_ev_per_atom is not None

    @property
    def has_probability(self) -> bool:
        """Whether probabilities of being stable are computed, as far as anything is scored."""
        return not self.best or self.best[0].p_stable is not None

    def to_json(self) -> dict[str, Any]:
        """Return the status as values that JSON knows."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, raw: str | bytes | Mapping[str, Any]) -> CampaignStatus:
        """Return the status that was written.

        Args:
            raw: What `to_json` gave, as JSON text or read from it.

        Raises:
            InputDataError: It is not a status, or one of another version.
        """
        try:
            text = raw if isinstance(raw, str | bytes) else json.dumps(raw)
            return cls.model_validate_json(text)
        except (ValidationError, ValueError, TypeError) as error:
            raise InputDataError(f"not the status of a campaign: {error}") from error


Listener = Callable[[CampaignStatus], None]
"""Is told every snapshot; it must neither raise nor take long."""


class StatusTracker:
    """Adds up where a campaign stands, shard by shard.

    Nothing here grows with the number of shards but a set of their numbers. The methods may be
    called from several threads.

    Args:
        campaign: Name of the result folder.
        counts: Candidates of each prototype, in order.
        shards: Shards in all.
        order: What the ranking is to go by; without a hull or probabilities the best rows go by
            what there is, as the ranking does.
        keep_top: How many candidates the campaign keeps; None keeps all.
        clock: Seconds by a clock that never jumps.
    """

    def __init__(
        self,
        *,
        campaign: str,
        counts: Mapping[str, int],
        shards: int,
        order: RankBy,
        keep_top: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._campaign = campaign
        self._prototypes = tuple(counts)
        self._total = sum(counts.values())
        self._shards = shards
        self._asked = self._order = order
        self._keep_top = keep_top
        self._driver: Driver | None = None
        self._lock = threading.Lock()
        self._done: set[int] = set()
        self._lost: set[int] = set()
        self._named: dict[int, str] = {}
        self._sums: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._workers: dict[str, _Worker] = {}
        self._connected: dict[str, WorkerStatus] = {}
        self._best: list[BestRow] = []
        self._histogram: tuple[int, ...] = ()
        self._competitors = self._competitors_done = 0
        self._began = self._clock()
        self._window = _Window(self._began)

    def begin(self, receipts: Iterable[Receipt] = ()) -> None:
        """Start the clock, with the shards that earlier runs finished.

        Args:
            receipts: Their receipts.
        """
        with self._lock:
            for receipt in receipts:
                self._count(receipt)
            self._began = self._clock()
            self._window = _Window(self._began, self._accounted)

    def set_driver(self, driver: Driver | None) -> None:
        """Say who runs the campaign; nobody does until it is said."""
        self._driver = driver

    def begin_competitors(self, left: int, tasks: int) -> None:
        """Competing phases are to be predicted first: `left` of so many tasks are still to do."""
        with self._lock:
            self._competitors, self._competitors_done = tasks, tasks - left

    def advance_competitors(self) -> None:
        """One more task of competing phases is finished."""
        with self._lock:
            self._competitors_done += 1

    def add(self, receipt: Receipt) -> None:
        """A shard is finished.

        Args:
            receipt: Its receipt; a second one of the same shard changes nothing.
        """
        with self._lock:
            self._count(receipt)
            busy = sum(receipt.seconds.values())
            self._window.add(self._clock(), self._accounted, busy)

    def add_lost(self, shard: int, reason: str, candidates: int) -> None:
        """A shard is given up and put into quarantine.

        Args:
            shard: Its number.
            reason: Why.
            candidates: Its candidates, which all count as failed.
        """
        with self._lock:
            if shard in self._done or shard in self._lost:
                return
            self._lost.add(shard)
            self._named[shard] = reason
            if len(self._named) > MOST_QUARANTINED:
                del self._named[max(self._named)]
            self._sums.update(lost=candidates, failed=candidates)
            self._count_reason(reason, candidates)
            self._window.add(self._clock(), self._accounted, 0.0)

    def set_workers(self, workers: Sequence[WorkerStatus]) -> None:
        """Say which workers are connected now, and how much memory they use.

        Args:
            workers: All of them; what they computed is known from receipts and need not be told.
        """
        with self._lock:
            self._connected = {each.name: each for each in workers}

    def snapshot(self, state: State = State.RUNNING) -> CampaignStatus:
        """Return where the campaign stands now.

        Args:
            state: What it does; there is a rate and time left only while it runs.
        """
        now = self._clock()
        with self._lock:
            enumerated = self._accounted
            rate = self._window.rate(now) if state is State.RUNNING else None
            left = max(0, self._total - enumerated)
            return CampaignStatus(
                state=state,
                campaign=self._campaign,
                prototypes=self._prototypes,
                total=self._total,
                enumerated=enumerated,
                featurized=self._sums["featurized"],
                scored=self._sums["scored"],
                failed=self._sums["failed"],
                removed=self._sums["removed"],
                dropped=self._count_dropped(),
                below_hull=self._sums["below_hull"],
                probable=self._sums["probable"],
                shards=self._shards,
                shards_done=len(self._done),
                shards_quarantined=len(self._lost),
                quarantined=dict(sorted(self._named.items())),
                reasons=dict(sorted(self._reasons.items(), key=lambda each: (-each[1], each[0]))),
                stages={
                    name: StageStatus(
                        worker_seconds=seconds,
                        candidates_per_worker_second=_divide(self._sums[_worked_at(name)], seconds),
                    )
                    for name, seconds in self._seconds.items()
                },
                workers_seen=len(self._workers.keys() | self._connected.keys()),
                workers=self._list_workers(),
                best=tuple(self._best),
                ranked_by=self._order,
                std_histogram=self._histogram,
                competitor_tasks=self._competitors,
                competitor_tasks_done=self._competitors_done,
                elapsed_seconds=max(0.0, now - self._began),
                candidates_per_second=rate,
                seconds_left=_divide(left, rate) if rate else None,
                driver=self._driver,
                updated=datetime.now(UTC).isoformat(timespec="seconds"),
            )

    @property
    def _accounted(self) -> int:
        return self._sums["enumerated"] + self._sums["lost"]

    def _count(self, receipt: Receipt) -> None:
        number = receipt.shard.number
        if number in self._done:
            return
        self._done.add(number)
        self._sums.update(
            enumerated=receipt.enumerated,
            featurized=receipt.scored + receipt.failed,
            scored=receipt.scored,
            failed=receipt.failed,
            removed=sum(each["removed"] for each in receipt.removed.values()),
            dropped=receipt.dropped,
            kept=receipt.candidates - receipt.failed,
            below_hull=receipt.below_hull,
            probable=receipt.probable,
        )
        for reason, count in receipt.reasons.items():
            self._count_reason(reason, count)
        for stage, seconds in receipt.seconds.items():
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds
        worker = self._workers.setdefault(receipt.worker, _Worker())
        worker.host, worker.device = receipt.host, receipt.device
        worker.candidates += receipt.enumerated
        worker.seconds += sum(receipt.seconds.values())
        self._histogram = tuple(
            a + b for a, b in zip_longest(self._histogram, receipt.std_histogram, fillvalue=0)
        )
        rows = [*self._best, *map(_read_row, receipt.best)]
        self._order = find_row_order(rows, self._asked)
        self._best = nsmallest(MOST_BEST, rows, key=self._place)

    def _place(self, row: BestRow) -> tuple[float, ...]:
        """Return what to sort by; ties go by prototype and candidate, as in the ranking."""
        return (*rank_row(row, self._order), self._prototypes.index(row.prototype), row.candidate)

    def _count_dropped(self) -> int:
        """Count what shards did not keep, and what they kept and the ranking does not."""
        kept = self._sums["kept"]
        beyond = 0 if self._keep_top is None else max(0, kept - self._keep_top)
        return self._sums["dropped"] + beyond

    def _count_reason(self, reason: str, count: int) -> None:
        if not count:  # a shard without candidates is lost like any other
            return
        if reason not in self._reasons and len(self._reasons) >= MOST_REASONS:
            reason = OTHER_REASONS
        self._reasons[reason] += count

    def _list_workers(self) -> tuple[WorkerStatus, ...]:
        gone = sorted(self._workers.keys() - self._connected.keys(), key=_natural)
        there = sorted(self._connected, key=_natural)
        return tuple(
            self._workers.get(name, _Worker()).describe(name, self._connected.get(name))
            for name in sorted((there + gone)[:MOST_WORKERS], key=_natural)
        )


class StatusWriter:
    """Writes where a campaign stands into its result folder, about once a second.

    A thread of its own takes a snapshot, writes `status.json` and hands the snapshot to whoever
    listens. On leaving, the file is removed: manifest and receipts say the same then. A status that
    cannot be written never ends a campaign.

    Args:
        folder: The result folder, whose lock this process holds.
        tracker: What to ask; it is told who holds the lock.
        note: Told once that the file cannot be written.
        seconds: Time between two snapshots.
    """

    def __init__(
        self,
        folder: Path,
        tracker: StatusTracker,
        note: Callable[[str], None],
        seconds: float = SECONDS_BETWEEN,
    ) -> None:
        self._path = folder / STATUS_NAME
        self._tracker = tracker
        self._note = note
        self._seconds = seconds
        self._listeners: list[Listener] = []
        self._telling = threading.Lock()
        self._stopping = threading.Event()
        self._noted = False
        self._last = State.STOPPED
        tracker.set_driver(_find_driver(read_holder(folder)))
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    @contextmanager
    def telling(self, listener: Listener) -> Iterator[None]:
        """Hand snapshots to a listener, on the thread of this writer; the last one on leaving."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            with self._telling:
                self._listeners.remove(listener)
            listener(self._tracker.snapshot(self._last))

    def end(self, state: State) -> None:
        """Say what the last snapshot is to call the campaign; otherwise it is stopped."""
        self._last = state

    def __enter__(self) -> StatusWriter:
        self._write(self._tracker.snapshot())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stopping.set()
            self._thread.join(STOP_SECONDS)
        finally:  # a second Ctrl-C ends the waiting
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            status = self._tracker.snapshot()
            self._write(status)
            with self._telling:
                for listener in self._listeners:
                    listener(status)

    def _write(self, status: CampaignStatus) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(status.to_json()), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._noted:
                self._noted = True
                self._note(
                    f"cannot write {self._path}: {error.strerror}; the campaign goes on, but "
                    "`screening watch` does not see what it does"
                )


def read_status(folder: RunFolder) -> CampaignStatus:
    """Return where a campaign stands, whether it runs or not.

    A campaign that runs tells it in `status.json`. For others it is added up from the manifest and
    the receipts, which promise more than is there if a shard was damaged since: a campaign that
    goes on checks them and computes such shards again.

    Args:
        folder: Its result folder.

    Raises:
        ConfigurationError: The manifest cannot be read.
        InputDataError: A receipt holds what cannot be.
    """
    holder = read_holder(folder.path)
    driver = None
    if holder is None and (folder.path / LOCK_NAME).exists():
        state = State.UNKNOWN
    elif holder is None or holder.is_gone():
        state = _read_end(folder.manifest)
    else:
        driver = _find_driver(holder)
        state = State.RUNNING if holder.host == platform.node() else State.UNKNOWN
        told = _read_told(folder.path / STATUS_NAME)
        if told is not None and told.driver == driver:
            return told.model_copy(update={"state": state})
    return _add_up(folder, driver, state)


def follow_status(
    path: Path, *, seconds: float = SECONDS_BETWEEN, silence: float = SILENCE_SECONDS
) -> Iterator[CampaignStatus]:
    """Yield where a campaign stands again and again, until it ends; the last says how.

    The driver may run on another machine that shares the file system: it is taken to run as long as
    what it writes changes.

    Args:
        path: The result folder.
        seconds: Time between two looks.
        silence: How long a driver on another machine may write nothing new; after that the last
            status is `State.UNKNOWN`.

    Raises:
        ConfigurationError: The manifest cannot be read.
    """
    heard, alive = time.monotonic(), False
    told: CampaignStatus | None = None
    while True:
        status = read_status(RunFolder(path))
        if status.state is State.UNKNOWN:
            if told is not None and told.elapsed_seconds != status.elapsed_seconds:
                heard, alive = time.monotonic(), True
            told = status
            if time.monotonic() - heard >= silence:
                yield status
                return
            if alive:
                status = status.model_copy(update={"state": State.RUNNING})
        yield status
        if status.state not in (State.RUNNING, State.UNKNOWN):
            return
        time.sleep(seconds)


def find_row_order(rows: Sequence[BestRow], order: RankBy) -> RankBy:
    """Say what rows can be ranked by, as `screening.rank.find_order` does for tables.

    Args:
        rows: The best rows of all shards so far.
        order: What was asked for.
    """
    for each in (order, *FALLBACKS[order]):
        if not rows or any(rank_row(row, each)[0] < inf for row in rows):
            return each
    return RankBy.FORMATION_ENTHALPY


def rank_row(row: BestRow, order: RankBy) -> tuple[float, ...]:
    """Return what to sort a row by in ascending order; a missing number goes last.

    It is the order of `screening.rank`, in the single precision of the tables' columns.
    """
    energy = _last_if_none(row.energy_above_hull_ev_per_atom)
    if order is RankBy.FORMATION_ENTHALPY:
        return (_last_if_none(row.formation_enthalpy_ev_per_atom),)
    if order is RankBy.ENERGY_ABOVE_HULL:
        return (energy,)
    if order is RankBy.P_STABLE:
        return (inf if row.p_stable is None else -row.p_stable, energy)
    std = row.energy_above_hull_std_ev_per_atom
    if std is None or energy == inf:
        return (inf, energy)
    margin = np.float32(ONE_SIDED_90) * np.float32(std)
    bound = np.float32(energy) + (margin if order is RankBy.UPPER_BOUND else -margin)
    return (float(bound), energy)


def _find_driver(holder: Holder | None) -> Driver | None:
    if holder is None:
        return None
    return Driver(pid=holder.pid, host=holder.host, since=holder.started)


def _read_told(path: Path) -> CampaignStatus | None:
    try:
        return CampaignStatus.from_json(path.read_bytes())
    except (OSError, InputDataError):
        return None


def _read_end(manifest: Mapping[str, Any]) -> State:
    """Say how a campaign ended at which nobody works."""
    ended = manifest.get("state")
    return State(ended) if ended in (State.COMPLETE, State.INTERRUPTED) else State.STOPPED


def _add_up(folder: RunFolder, driver: Driver | None, state: State) -> CampaignStatus:
    """Add up the receipts and the quarantine of a campaign."""
    manifest, shards = folder.manifest, folder.shards
    tracker = StatusTracker(
        campaign=folder.path.resolve().name,
        counts={name: manifest["counts"][name] for name in folder.prototypes},
        shards=len(shards),
        order=RankBy(manifest.get("ranked_by", RankBy.P_STABLE)),
        keep_top=folder.keep_top,
    )
    tracker.set_driver(driver)
    try:
        for shard in shards:
            receipt = folder.read_receipt(shard)
            lost = None if isinstance(receipt, Receipt) else _read_quarantine(folder, shard)
            if isinstance(receipt, Receipt):
                tracker.add(receipt)
            elif lost is not None:
                tracker.add_lost(shard.number, *lost)
        status = tracker.snapshot(state)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputDataError(
            f"{folder.path / 'shards'} holds what no run of this program wrote ({error}); run the "
            "campaign anew in another folder"
        ) from error
    runs = manifest.get("runs", [])
    elapsed = max(0.0, sum(run["wall_seconds"] for run in runs)) if runs else None
    best = _read_best(folder) if folder.is_ranked else None
    return status.model_copy(
        update={
            "elapsed_seconds": elapsed,
            "candidates_per_second": None,
            "seconds_left": None,
            "best": status.best if best is None else best,
        }
    )


def _read_best(folder: RunFolder) -> tuple[BestRow, ...] | None:
    """Read the best rows of a ranking: receipts show those of the order that shards began with.

    Returns:
        The rows; None if the file is damaged.
    """
    try:
        with pq.ParquetFile(folder.ranking_path) as file:
            batches = file.iter_batches(MOST_BEST, columns=list(BestRow.model_fields))
            rows = [row for batch in islice(batches, 1) for row in batch.to_pylist()]
        return tuple(map(_read_row, rows))
    except (OSError, pa.ArrowException, ValueError, KeyError):
        return None


def _read_quarantine(folder: RunFolder, shard: Shard) -> tuple[str, int] | None:
    """Read why a shard was given up, and how many candidates it has."""
    try:
        raw = json.loads(folder.quarantine_path(shard).read_text(encoding="utf-8"))
        return str(raw["reason"]), int(raw["candidates"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _read_row(row: Mapping[str, Any]) -> BestRow:
    """Read a row of a receipt; what is no number, which a broken model may predict, is left out."""
    values: dict[str, Any] = {name: row[name] for name in BestRow.model_fields}
    for name, value in values.items():
        if isinstance(value, float) and not isfinite(value):
            values[name] = None
    return BestRow(**values)


def _last_if_none(number: float | None) -> float:
    return inf if number is None else number


def _divide(amount: float, by: float | None) -> float | None:
    """Return a rate; None where it would be infinite or there is none."""
    if not by:
        return None
    rate = amount / by
    return rate if rate < inf else None


def _worked_at(stage: str) -> str:
    """Return which candidates go through a stage: conditions remove some after the first two."""
    return "enumerated" if stage in ("enumerate", "chemistry") else "featurized"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort names with numbers in them as people do: 2 before 10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


@dataclass
class _Worker:
    """What the receipts of a worker add up to."""

    host: str = ""
    device: str | None = None
    candidates: int = 0
    seconds: float = 0.0

    def describe(self, name: str, connected: WorkerStatus | None) -> WorkerStatus:
        """Return it as a part of a status; a worker without receipts is known by its connection."""
        return WorkerStatus(
            name=name,
            host=self.host or (connected.host if connected else ""),
            device=self.device,
            candidates=self.candidates,
            candidates_per_second=_divide(self.candidates, self.seconds),
            memory_bytes=connected.memory_bytes if connected else None,
        )


class _Window:
    """The rate over the last minute or so, by a clock that does not jump.

    Moments closer than `POINT_SECONDS` are merged. The window reaches back `WINDOW_SECONDS`, or
    over `WINDOW_POINTS` moments where these are rarer.

    Args:
        start: When work began, seconds.
        done: What was done by then.
    """

    def __init__(self, start: float, done: int = 0) -> None:
        self._points = deque([(start, done)])
        self._first = True

    def add(self, now: float, done: int, busy: float) -> None:
        """So much is done by now.

        Args:
            now: Seconds.
            done: What is done in all.
            busy: Seconds of work in what was added: what was before the first of it is waiting for
                workers, which does not count.
        """
        if self._first:
            self._first = False
            start, already = self._points[0]
            if busy:
                self._points[0] = (max(start, now - busy), already)
        if len(self._points) > 1 and now - self._points[-1][0] < POINT_SECONDS:
            self._points[-1] = (self._points[-1][0], done)
            return
        self._points.append((now, done))
        while len(self._points) > WINDOW_POINTS and self._points[1][0] < now - WINDOW_SECONDS:
            self._points.popleft()

    def rate(self, now: float) -> float | None:
        """Return how much was done per second; None before anything was."""
        (start, before), (_, done) = self._points[0], self._points[-1]
        return _divide(done - before, now - start) if len(self._points) > 1 else None
