"""A campaign from settings to ranking: enumerate, featurize, score, rank, export.

`run_campaign` and `screen_shard` are the table of contents; each stage is a module of its own and
hands tables to the next. Shards are computed by Dask workers or in this process, by the same
function.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import pyarrow as pa
import torch

from screening.enumerate import (
    Shard,
    count_candidates,
    enumerate_candidates,
    plan_shards,
)
from screening.errors import CampaignInterrupted, ScreeningError
from screening.featurize import featurize_candidates, find_failures, open_featurizer
from screening.folder import Receipt, RunFolder
from screening.manifest import (
    STAGES,
    describe_environment,
    describe_model,
    describe_prototype,
    identify,
    resolve_settings,
    sum_stages,
)
from screening.rank import rank_candidates
from screening.score import load_scorer, pick_device, score_candidates
from screening.settings import CampaignSettings, Device, count_cores
from screening.shards import ScoredBlock, tabulate_shard

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.features.prototype import PrototypeFeaturizer
    from screening.model_library import ScreeningModel

BLOCK: Final = 8_192
"""Candidates featurized and scored at once: 9 MB of features."""


class Observer(Protocol):
    """Watches a campaign; see `screening.terminal` for the one that draws progress."""

    def begin(
        self, counts: Mapping[str, int], pools: Mapping[str, tuple[int, ...]], done: int
    ) -> None:
        """The campaign has so many candidates, `done` of them finished by an earlier run.

        Args:
            counts: Candidates of each prototype.
            pools: Atomic numbers that each role may take.
            done: Candidates of finished shards.
        """

    def note(self, sentence: str) -> None:
        """Something that the user should know while waiting."""

    def watch_at(self, dashboard: str) -> None:
        """The Dask dashboard is at this address."""

    def advance(self, receipt: Receipt) -> None:
        """A shard is finished."""


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to compute a shard.

    Attributes:
        shard: The range of indices.
        space: The space of its prototype.
        model: Name or absolute path of the model.
        model_hash: What the model's hash must be.
        device: auto, cpu or cuda.
        precision: auto, bf16 or fp32.
        threads: Threads of arithmetic for this worker; None leaves them as they are.
        folder: Result folder, as the worker sees it.
    """

    shard: Shard
    space: CandidateSpace
    model: str
    model_hash: str
    device: str
    precision: str
    threads: int | None
    folder: Path


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """A finished campaign.

    Attributes:
        folder: The result folder.
        ranking: All scored candidates, best first.
        failures: Candidates that could not be scored.
    """

    folder: RunFolder
    ranking: pa.Table
    failures: pa.Table


def run_campaign(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    observer: Observer,
) -> CampaignResult:
    """Run a campaign, or go on with the one that the result folder holds.

    Args:
        settings: What to screen.
        spaces: The candidates, from `screening.enumerate.open_spaces`.
        pools: Atomic numbers that each role may take, from there too.
        observer: Told of the progress.

    Returns:
        The ranking and where it is.

    Raises:
        ScreeningError: Anything the user can cure; finished shards are kept.
        CampaignInterrupted: Ctrl-C; finished shards are kept.
    """
    from screening.model_library import load_enthalpy_model

    started = time.perf_counter()
    if settings.scheduler is None:
        pick_device(settings.device)
    model = load_enthalpy_model(settings.model)
    shards = plan_shards(spaces, settings.shard_size)
    identity = identify(settings, spaces, pools, model)
    counts = count_candidates(spaces)
    manifest = {
        "campaign": identity,
        "environment": describe_environment(),
        "model": describe_model(settings, spaces, model),
        "prototypes": {
            space.prototype.name: describe_prototype(space.prototype) for space in spaces
        },
        "counts": {**counts, "total": sum(counts.values())},
        "shards": [[s.number, s.prototype, s.start, s.stop] for s in shards],
    }
    with RunFolder.claim(settings.out, identity, observer.note) as folder:
        earlier = folder.manifest.get("runs", []) if folder.manifest_path.is_file() else []
        finished = {receipt.shard: receipt for receipt in folder.read_receipts(shards)}
        already = len(finished)
        folder.write_manifest(manifest | {"runs": earlier})
        folder.write_text("campaign.toml", resolve_settings(settings, pools, spaces))

        observer.begin(counts, pools, sum(each.candidates for each in finished.values()))
        tasks = [
            _make_task(settings, space, shard, model)
            for space in spaces
            for shard in shards
            if shard.prototype == space.prototype.name and shard not in finished
        ]
        try:
            for receipt in _work_off(settings, tasks, observer):
                finished[receipt.shard] = receipt
                observer.advance(receipt)
        except KeyboardInterrupt as error:
            raise CampaignInterrupted(
                f"interrupted: {len(finished)} of {len(shards)} shards are finished and kept in "
                f"{settings.out}; run the same command again to go on, or look at them with: "
                f"screening show {settings.out}"
            ) from error
        receipts = [finished[shard] for shard in shards]
        _check_counts(spaces, receipts)

        rank_started = time.perf_counter()
        ranking, failures = rank_candidates(
            [folder.table_path(shard) for shard in shards], folder.prototypes
        )
        folder.write_ranking(ranking, failures)
        ended = time.perf_counter()
        this_run = {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "workers": settings.scheduler or count_workers(settings),
            "shards_computed": len(shards) - already,
            "wall_seconds": round(ended - started, 3),
            "rank_and_write_seconds": round(ended - rank_started, 3),
        }
        folder.write_manifest(
            manifest
            | {
                "runs": [*earlier, this_run],
                "rows": {"scored": len(ranking), "failed": len(failures)},
                "devices": sorted({receipt.device for receipt in receipts}),
                "stages": sum_stages(receipts),
            }
        )
    return CampaignResult(folder, ranking, failures)


def screen_shard(task: ShardTask, worker: int = 0) -> Receipt:
    """Compute a shard and write it: enumerate, featurize, score.

    Runs in a Dask worker or in the driver's process; models and tessellations stay loaded from one
    call to the next.

    Args:
        task: What to compute.
        worker: Number of the worker, which picks its GPU where there are several.

    Returns:
        The receipt, which is also written beside the shard's table.

    Raises:
        ScreeningError: The model does not fit or the shard cannot be written.
    """
    if task.threads is not None and torch.get_num_threads() != task.threads:
        torch.set_num_threads(task.threads)
    device = pick_device(task.device, worker)
    loaded = load_scorer(task.model, task.model_hash, str(device), task.precision)
    featurizer = _open_featurizer(_SpaceKey(task.space))
    seconds = dict.fromkeys(STAGES, 0.0)

    started = time.perf_counter()
    candidates = enumerate_candidates(task.space, task.shard.start, task.shard.stop)
    seconds["enumerate"] = time.perf_counter() - started

    scored: list[ScoredBlock] = []
    for block in candidates.blocks(BLOCK):
        started = time.perf_counter()
        features = featurize_candidates(featurizer, block.numbers, device)
        reasons = find_failures(features)
        seconds["featurize"] += time.perf_counter() - started
        rows = np.setdiff1d(np.arange(len(block)), list(reasons))
        scores = score_candidates(loaded, features[torch.from_numpy(rows).to(device)])
        seconds["irnet"] += scores.network_seconds
        seconds["forest"] += scores.forest_seconds
        seconds["uncertainty"] += scores.uncertainty_seconds
        scored.append(ScoredBlock(block, rows, scores, reasons))

    started = time.perf_counter()
    table = tabulate_shard(task.space, scored, loaded.model)
    folder = RunFolder(task.folder)
    checksum = folder.write_shard(table, task.shard)
    seconds["write"] = time.perf_counter() - started
    receipt = Receipt(
        task.shard,
        candidates=len(candidates),
        failed=len(table) - table["reason"].null_count,
        seconds={stage: round(each, 6) for stage, each in seconds.items()},
        sha256=checksum,
        device=_name_device(device),
        precision=str(loaded.scorer.dtype).removeprefix("torch."),
        host=platform.node(),
    )
    folder.write_receipt(receipt)
    return receipt


def count_workers(settings: CampaignSettings) -> int:
    """Return the number of local workers; 0 computes in this process.

    Unless the settings say so, GPUs get one worker each: more would only fill their memory.
    """
    if settings.workers is not None:
        return settings.workers
    if settings.device != Device.CPU and torch.cuda.is_available():
        return torch.cuda.device_count()
    return count_cores()


def _work_off(
    settings: CampaignSettings, tasks: Sequence[ShardTask], observer: Observer
) -> Iterator[Receipt]:
    if not tasks:
        return
    if settings.scheduler is None and count_workers(settings) == 0:
        for task in tasks:
            yield screen_shard(task)
        return
    from screening.cluster.client import await_worker, connect
    from screening.cluster.tasks import map_tasks

    with connect(count_workers(settings), settings.scheduler) as client:
        if settings.scheduler is not None:
            await_worker(client, settings.scheduler, observer.note)
        observer.watch_at(client.dashboard_link)
        yield from map_tasks(client, screen_shard, tasks)


def _make_task(
    settings: CampaignSettings, space: CandidateSpace, shard: Shard, model: ScreeningModel
) -> ShardTask:
    workers = count_workers(settings)
    local = settings.scheduler is None and workers > 0
    return ShardTask(
        shard,
        space,
        model=str(model.path.resolve()) if Path(settings.model).is_dir() else settings.model,
        model_hash=model.content_hash,
        device=str(settings.device),
        precision=str(settings.precision),
        threads=max(1, count_cores() // workers) if local else None,
        folder=settings.out.resolve(),
    )


class _SpaceKey:
    """A space as the key of a cache: equal if its prototype's geometry is."""

    def __init__(self, space: CandidateSpace) -> None:
        self.prototype = space.prototype

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SpaceKey) and self.prototype == other.prototype

    def __hash__(self) -> int:
        return hash(self.prototype)


@lru_cache(maxsize=16)
def _open_featurizer(key: _SpaceKey) -> PrototypeFeaturizer:
    return open_featurizer(key.prototype)


def _check_counts(spaces: Sequence[CandidateSpace], receipts: Sequence[Receipt]) -> None:
    """Check that every candidate of every prototype came out of the shards: less is a bug."""
    for space in spaces:
        name = space.prototype.name
        got = sum(r.candidates for r in receipts if r.shard.prototype == name)
        if got != space.count:
            raise ScreeningError(
                f"{name} has {space.count} candidates, but the shards hold {got}; "
                "please report this as a bug"
            )


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
