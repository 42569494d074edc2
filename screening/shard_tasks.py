"""What a worker does with one shard: enumerate, featurize, score, place on the hull, write.

`screen_shard` is the table of contents; each stage is a module of its own and hands arrays and
tables to the next. It runs in a Dask worker or in the driver's process.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from screening.competitors import identify_decorations
from screening.enumerate import Candidates, Shard, enumerate_candidates
from screening.errors import InputDataError
from screening.features.schema import FEATURES
from screening.featurize import featurize_candidates, find_failures, open_featurizer
from screening.folder import Receipt, RunFolder
from screening.known import KnownCompounds
from screening.manifest import STAGES
from screening.phases import Phases
from screening.poison import compute_without_poison
from screening.score import (
    LoadedModel,
    Scores,
    load_scorer,
    pick_device,
    score_candidates,
)
from screening.selection import divide_requirements, meet_requirements, select_rows, show_best
from screening.settings import RankBy
from screening.shards import ScoredCandidates, tabulate_chemistry_of
from screening.stability import Placement, place_on_hull

if TYPE_CHECKING:
    from prototypes import CandidateSpace, Prototype
    from screening.features.prototype import PrototypeFeaturizer
    from screening.model_library import ScreeningModel
    from screening.requirements import Requirement

DRIVER: Final = "driver"
"""What a receipt calls the worker if the command's own process computed the shard."""

BLOCK: Final = 8_192
"""Candidates featurized and scored at once: 9 MB of features."""


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to compute a shard.

    Attributes:
        shard: The range of indices.
        space: The space of its prototype.
        model: Name or absolute path of the model.
        model_hash: What the model's hash must be.
        device: auto, cpu or cuda.
        precision: auto, int8, bf16 or fp32.
        threads: Threads of arithmetic for this worker; None leaves them as they are.
        folder: Result folder, as the worker sees it.
        phases: File of the competing phases; None computes no hull.
        references: File of the reference phases, whose compositions are known; None if none are
            given.
        stable_within: Energy above hull that still counts as stable, eV/atom.
        require: Conditions that candidates must meet.
        rank_by: The campaign's order, which decides what is kept.
        keep_top: How many of the scored candidates are kept; None keeps all.
        campaign: Hash of the campaign's identity, for the receipt.
        scored: Table of the same shard, computed earlier with other competitors, whose scores are
            taken over; None computes them.
    """

    shard: Shard
    space: CandidateSpace
    model: str
    model_hash: str
    device: str
    precision: str
    threads: int | None
    folder: Path
    phases: Path | None = None
    references: Path | None = None
    stable_within: float = 0.05
    require: tuple[str, ...] = ()
    rank_by: RankBy = RankBy.P_STABLE
    keep_top: int | None = None
    campaign: str = ""
    scored: Path | None = None


def screen_shard(task: ShardTask, worker: int = 0, name: str = DRIVER) -> Receipt:
    """Compute a shard and write it.

    Models, tessellations and competing phases stay loaded from one call to the next.

    Args:
        task: What to compute.
        worker: Number of the worker, which picks its GPU where there are several.
        name: What the receipt calls the worker.

    Returns:
        The receipt, which is also written beside the shard's table.

    Raises:
        ScreeningError: The model does not fit or the shard cannot be written.
    """
    if task.threads is not None and torch.get_num_threads() != task.threads:
        torch.set_num_threads(task.threads)
    device = pick_device(task.device, worker)
    loaded = load_scorer(task.model, task.model_hash, str(device), task.precision)
    clock = _Clock()
    early, late = divide_requirements(task.require)

    with clock.measure("enumerate"):
        candidates = enumerate_candidates(task.space, task.shard.start, task.shard.stop)
    candidates, chemistry, removed = _test_chemistry(task.space, candidates, early, clock)
    if task.scored is None:
        scores, reasons = _score(task.space, candidates, loaded, device, clock)
    else:
        scores, reasons = read_scores(task.scored, candidates)
    with clock.measure("hull"):
        placement = _place(task, candidates, loaded, scores)
    with clock.measure("known"):
        known = _open_known(loaded.model, task.references, _find_change(task.references))
    scored = ScoredCandidates(
        task.space, candidates, scores, reasons, placement, loaded.model, known
    )
    selection = select_rows(
        scored, late, task.rank_by, task.keep_top, made=chemistry, measure=clock.measure
    )
    table = scored.select(selection.rows).tabulate(made=selection.table, measure=clock.measure)
    with clock.measure("write"):
        folder = RunFolder(task.folder)
        checksum = folder.write_shard(table, task.shard)
    receipt = Receipt(
        task.shard,
        campaign=task.campaign,
        candidates=len(table),
        failed=len(table) - table["reason"].null_count,
        scored=int(np.isfinite(scores.mean).sum()),
        dropped=selection.dropped,
        below_hull=selection.below_hull,
        probable=selection.probable,
        std_histogram=selection.std_histogram,
        reasons=dict(Counter(table["reason"].drop_null().to_pylist())),
        best=show_best(table, task.rank_by),
        removed={**removed, **selection.removed},
        seconds={stage: round(each, 6) for stage, each in clock.seconds.items()},
        sha256=checksum,
        device=_name_device(device),
        precision=loaded.scorer.precision,
        threads=torch.get_num_threads(),
        host=platform.node(),
        worker=name,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.write_receipt(receipt)
    return receipt


def read_scores(path: Path, candidates: Candidates) -> tuple[Scores, NDArray[np.object_]]:
    """Take the scores of candidates from a shard that was computed earlier.

    Args:
        path: Table of the shard.
        candidates: The candidates that it must hold.

    Returns:
        Their scores, and why they failed, None for those that did not, shape (m,).

    Raises:
        InputDataError: The table holds other candidates or cannot be read.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputDataError(f"cannot read the earlier shard {path}: {error}") from error
    if not np.array_equal(table["candidate"].to_numpy(), candidates.indices):
        raise InputDataError(
            f"{path} holds other candidates than this campaign's; run the campaign anew"
        )

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy(), dtype=np.float64)

    names = [n for n in table.column_names if n.startswith("member_")]
    members = [f"member_{number}_ev_per_atom" for number in range(1, len(names) + 1)]
    reasons = np.array(table["reason"].to_pylist(), dtype=object)
    scores = Scores(
        mean=column("formation_enthalpy_ev_per_atom"),
        std=column("formation_enthalpy_std_ev_per_atom"),
        low=column("formation_enthalpy_low_ev_per_atom"),
        high=column("formation_enthalpy_high_ev_per_atom"),
        distance=column("applicability_distance"),
        error_scale=column("error_scale_ev_per_atom"),
        members=np.column_stack([column(name) for name in members]),
        forest=column("rf_formation_enthalpy_ev_per_atom"),
        network_seconds=0.0,
        forest_seconds=0.0,
        uncertainty_seconds=0.0,
    )
    return scores, reasons


def _test_chemistry(
    space: CandidateSpace, candidates: Candidates, early: Sequence[Requirement], clock: _Clock
) -> tuple[Candidates, pa.Table | None, dict[str, dict[str, int]]]:
    """Test conditions on the chemistry, if there are any.

    Returns:
        The candidates that meet them; their chemistry, None without conditions; and what each
        condition did.
    """
    if not early:
        return candidates, None, {}
    with clock.measure("chemistry"):
        table = pa.table(tabulate_chemistry_of(space, candidates))
        rows, removed = meet_requirements(early, table)
        return candidates.select(rows), table.take(pa.array(rows)), removed


def _score(
    space: CandidateSpace,
    candidates: Candidates,
    loaded: LoadedModel,
    device: torch.device,
    clock: _Clock,
) -> tuple[Scores, NDArray[np.object_]]:
    """Featurize and score candidates block by block; NaN and a reason for those that fail."""
    featurizer = _open_featurizer(space.prototype)
    parts: list[Scores] = []
    reasons: list[NDArray[np.object_]] = []
    for block in candidates.blocks(BLOCK):

        def score(rows: NDArray[np.int64], block: Candidates = block) -> _Scored:
            return _score_rows(featurizer, block.numbers[rows], loaded, device, clock)

        (scores, failed), rows, poison = compute_without_poison(score, len(block))
        clock.seconds["irnet"] += scores.network_seconds
        clock.seconds["forest"] += scores.forest_seconds
        clock.seconds["uncertainty"] += scores.uncertainty_seconds
        parts.append(scores.place(rows, len(block)))
        of_block = np.full(len(block), None, dtype=object)
        for row, reason in failed.items():
            of_block[rows[row]] = reason
        for row, reason in poison.items():
            of_block[row] = reason
        reasons.append(of_block)
    if not parts:
        empty = torch.empty((0, len(FEATURES)), device=device)
        return score_candidates(loaded, empty), np.empty(0, dtype=object)
    return Scores.join(parts), np.concatenate(reasons)


_Scored = tuple[Scores, dict[int, str]]


def _score_rows(
    featurizer: PrototypeFeaturizer,
    numbers: NDArray[np.uint8],
    loaded: LoadedModel,
    device: torch.device,
    clock: _Clock,
) -> _Scored:
    """Featurize and score candidates together; NaN and a reason for those without features."""
    with clock.measure("featurize"):
        features = featurize_candidates(featurizer, numbers, device)
        failed = find_failures(features)
        rows = np.setdiff1d(np.arange(len(numbers)), list(failed))
    scores = score_candidates(loaded, features[torch.from_numpy(rows).to(device)])
    return scores.place(rows, len(numbers)), failed


def _place(
    task: ShardTask, candidates: Candidates, loaded: LoadedModel, scores: Scores
) -> Placement | None:
    if task.phases is None:
        return None
    prototype = task.space.prototype
    return place_on_hull(
        _open_phases(task.phases, _find_change(task.phases)),
        candidates.numbers,
        prototype.amounts,
        scores,
        loaded.model.uncertainty,
        within=task.stable_within,
        identities=identify_decorations(prototype, candidates.numbers),
    )


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started


@lru_cache(maxsize=16)
def _open_featurizer(prototype: Prototype) -> PrototypeFeaturizer:
    return open_featurizer(prototype)


@lru_cache(maxsize=2)
def _open_phases(path: Path, changed: int) -> Phases:
    return Phases.load(path)


@lru_cache(maxsize=2)
def _open_known(model: ScreeningModel, references: Path | None, changed: int) -> KnownCompounds:
    phases = None if references is None else Phases.load(references)
    return KnownCompounds.of(model.training_formulas, phases)


def _find_change(path: Path | None) -> int:
    """When a file was written, ns: a worker outlives campaigns, and their folders may be reused."""
    return 0 if path is None else path.stat().st_mtime_ns


def _name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
