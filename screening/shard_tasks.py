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
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from screening.chemistry import (
    CHEMISTRY_COLUMNS,
    describe_chemistry,
    perovskite_roles,
    tabulate_chemistry,
)
from screening.competitors import identify_decorations
from screening.enumerate import Candidates, Shard, enumerate_candidates
from screening.errors import InputDataError
from screening.features.schema import FEATURES
from screening.featurize import featurize_candidates, find_failures, open_featurizer
from screening.folder import BEST, BEST_COLUMNS, STD_EDGES, Receipt, RunFolder
from screening.known import KnownCompounds, tabulate_known
from screening.manifest import STAGES
from screening.phases import Phases
from screening.rank import rank_again
from screening.requirements import Requirement, apply_requirements, parse_requirement
from screening.score import (
    LoadedModel,
    Scores,
    load_scorer,
    pick_device,
    score_candidates,
)
from screening.settings import RankBy
from screening.shards import tabulate_shard
from screening.stability import Placement, place_on_hull

if TYPE_CHECKING:
    from prototypes import CandidateSpace, Prototype
    from screening.features.prototype import PrototypeFeaturizer
    from screening.model_library import ScreeningModel

SITE: Final = "site_"
"""How the columns of the elements on the roles begin."""

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
        precision: auto, bf16 or fp32.
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
    removed: dict[str, dict[str, int]] = {}
    before, after = divide_requirements(task.require)

    with clock.measure("enumerate"):
        candidates = enumerate_candidates(task.space, task.shard.start, task.shard.stop)
    with clock.measure("chemistry"):
        described = describe_candidates(task.space, candidates)
        kept = _test(before, described, removed)
        described = described.filter(pa.array(kept))
        candidates = candidates.select(kept)
    if task.scored is None:
        scores, reasons = _score(task.space, candidates, loaded, device, clock)
    else:
        scores, reasons = read_scores(task.scored, candidates)
    with clock.measure("hull"):
        placement = _place(task, candidates, loaded, scores)
    with clock.measure("known"):
        known = _open_known(loaded.model, task.references, _find_change(task.references))
        formulas = task.space.formulas(candidates.numbers)
        described = pa.table(
            {
                **dict(zip(described.column_names, described.columns, strict=True)),
                **tabulate_known(known, formulas, candidates.numbers, task.space.prototype),
            }
        )
    with clock.measure("write"):
        table = tabulate_shard(
            task.space,
            candidates,
            formulas,
            scores,
            reasons,
            loaded.model,
            placement=placement,
            described=described,
        )
        table = table.filter(pa.array(_test(after, _with_all_sites(table, after), removed)))
        folder = RunFolder(task.folder)
        checksum = folder.write_shard(table, task.shard)
    kept_rows = table.filter(pc.is_null(table["reason"]))
    receipt = Receipt(
        task.shard,
        campaign=task.campaign,
        candidates=len(table),
        failed=len(table) - len(kept_rows),
        scored=int(np.isfinite(scores.mean).sum()),
        dropped=0,
        below_hull=_count(pc.less_equal(kept_rows["energy_above_hull_ev_per_atom"], 0.0)),
        probable=_count(pc.greater_equal(kept_rows["p_stable"], 0.5)),
        std_histogram=_count_stds(kept_rows["formation_enthalpy_std_ev_per_atom"].to_numpy()),
        reasons=dict(Counter(table["reason"].drop_null().to_pylist())),
        best=tuple(
            rank_again(kept_rows, [task.shard.prototype], task.rank_by)
            .slice(0, BEST)
            .select(list(BEST_COLUMNS))
            .to_pylist()
        ),
        removed=removed,
        seconds={stage: round(each, 6) for stage, each in clock.seconds.items()},
        sha256=checksum,
        device=_name_device(device),
        precision=str(loaded.scorer.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        host=platform.node(),
        worker=name,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    folder.write_receipt(receipt)
    return receipt


def describe_candidates(space: CandidateSpace, candidates: Candidates) -> pa.Table:
    """Return what is known of candidates before they are scored: prototype, formula, chemistry.

    Args:
        space: Their space.
        candidates: The candidates.

    Returns:
        One row for each, with columns of `screening.columns.RANKING`.
    """
    chemistry = describe_chemistry(
        candidates.numbers, space.prototype.amounts, perovskite_roles(space.prototype)
    )
    return pa.table(tabulate_chemistry(chemistry))


def divide_requirements(
    texts: Sequence[str],
) -> tuple[tuple[Requirement, ...], tuple[Requirement, ...]]:
    """Return the conditions that can be tested before candidates are scored, and the others."""
    requirements = [parse_requirement(text) for text in texts]
    early = tuple(each for each in requirements if each.column in CHEMISTRY_COLUMNS)
    return early, tuple(each for each in requirements if each not in early)


def read_scores(path: Path, candidates: Candidates) -> tuple[Scores, dict[int, str]]:
    """Take the scores of candidates from a shard that was computed earlier.

    Args:
        path: Table of the shard.
        candidates: The candidates that it must hold.

    Returns:
        Their scores, and why some of them failed, by row.

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
    reasons = table["reason"].to_pylist()
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
    return scores, {row: reason for row, reason in enumerate(reasons) if reason is not None}


def _score(
    space: CandidateSpace,
    candidates: Candidates,
    loaded: LoadedModel,
    device: torch.device,
    clock: _Clock,
) -> tuple[Scores, dict[int, str]]:
    """Featurize and score candidates block by block; NaN and a reason for those that fail."""
    featurizer = _open_featurizer(space.prototype)
    parts: list[Scores] = []
    reasons: dict[int, str] = {}
    for number, block in enumerate(candidates.blocks(BLOCK)):
        with clock.measure("featurize"):
            features = featurize_candidates(featurizer, block.numbers, device)
            failed = find_failures(features)
            rows = np.setdiff1d(np.arange(len(block)), list(failed))
        scores = score_candidates(loaded, features[torch.from_numpy(rows).to(device)])
        clock.seconds["irnet"] += scores.network_seconds
        clock.seconds["forest"] += scores.forest_seconds
        clock.seconds["uncertainty"] += scores.uncertainty_seconds
        parts.append(scores.place(rows, len(block)))
        reasons |= {number * BLOCK + row: reason for row, reason in failed.items()}
    if not parts:
        empty = torch.empty((0, len(FEATURES)), device=device)
        parts.append(score_candidates(loaded, empty))
    return Scores.join(parts), reasons


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


def _with_all_sites(table: pa.Table, requirements: Sequence[Requirement]) -> pa.Table:
    """Add the roles that conditions ask for and another prototype of the campaign has, as null."""
    for requirement in requirements:
        name = requirement.column
        if name.startswith(SITE) and name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table


def _test(
    requirements: Sequence[Requirement], table: pa.Table, removed: dict[str, dict[str, int]]
) -> NDArray[np.bool_]:
    """Say which rows meet all conditions, and count in `removed` what each one takes away."""
    keep, outcomes = apply_requirements(requirements, table)
    for requirement, outcome in zip(requirements, outcomes, strict=True):
        removed[requirement.text] = {
            "removed": outcome.removed,
            "not_applicable": outcome.not_applicable,
        }
    return keep


def _count(flags: pa.ChunkedArray) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _count_stds(stds: NDArray[np.float64]) -> tuple[int, ...]:
    counts, _ = np.histogram(stds, (*STD_EDGES, np.inf))
    return tuple(counts.tolist())


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
