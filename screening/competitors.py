"""Competing phases that the model itself predicts, for campaigns without reference phases.

Common structure types of two and three elements, decorated with the elements of every chemical
system that a campaign touches, are scored once by the campaign's own ensemble. Their energies, one
column for the mean, one for each member and one for the forest, give the model's own hull. A last
column, the mean raised by the error to expect, gives the hull of competitors that are all less
stable than predicted; how far it lies above tells the error of the hull. Like the candidates, the
decorations are ranges of integers, scored by tasks that write a part each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import permutations
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from prototypes import SYMBOLS, FormulaWriter
from screening.columns import written_atomically
from screening.enumerate import Shard, enumerate_candidates
from screening.errors import OutputError, ScreeningError
from screening.featurize import featurize_candidates, find_failures, open_featurizer
from screening.model_card import hash_file
from screening.phases import Phases
from screening.score import LoadedModel, load_scorer, pick_device, score_candidates
from screening.settings import Competitors

if TYPE_CHECKING:
    from prototypes import CandidateSpace, Prototype
    from screening.features.prototype import PrototypeFeaturizer

RANGE: Final = 16_384
"""Decorations that a task scores: seconds on one core."""

_BLOCK: Final = 8_192
"""Decorations featurized and scored at once: 9 MB of features."""

_MOST_WAITING: Final = 1 << 19
"""Phases of one stoichiometry that are gathered before the beaten ones are dropped."""

_FORMAT: Final = 2
"""Of the parts: those of a version with other energy columns are scored anew."""

_SYMMETRY_TOLERANCE: Final = 0.05
"""Å: a user's relaxed cell may miss its symmetry by so much."""

_FOLDER: Final = "competitors"
_PHASES: Final = "competitors.arrow"
_RECEIPT: Final = "competitors.json"

Pools = tuple[tuple[tuple[int, ...], ...], ...]
"""Atomic numbers that each role may take, of each space of a campaign."""


@dataclass(frozen=True)
class CompetitorType:
    """A structure type that competing phases are looked for in.

    Attributes:
        prototype: Name by which `prototypes.find_prototype` finds it.
        title: What chemists call it.
    """

    prototype: str
    title: str


BINARY_TYPES: Final = (
    CompetitorType("A2B_mP12_14_2e_e", "baddeleyite"),
    CompetitorType("A2B3_hR10_167_c_e", "corundum"),
    CompetitorType("AB3_hR8_155_c_de", "AlF3"),
    CompetitorType("B2", "CsCl"),
    CompetitorType("A2B_cF24_227_c_a", "cristobalite"),
    CompetitorType("AB_cF8_225_a_b", "rocksalt"),
    CompetitorType("A2B_hP9_189_fg_bc", "Fe2P"),
    CompetitorType("A4B_cI10_217_c_a", "SiF4"),
    CompetitorType("AB_oC8_63_c_c", "CrB"),
    CompetitorType("AB_hP4_186_b_b", "wurtzite"),
    CompetitorType("A2B5_mC28_15_f_e2f", "Pd5B2"),
    CompetitorType("AB3_cP4_221_a_c", "L1_2"),
    CompetitorType("AB2_cF12_225_a_c", "fluorite"),
    CompetitorType("A2B_tP6_136_f_a", "rutile"),
    CompetitorType("AB_hP4_194_c_a", "NiAs"),
    CompetitorType("AB_cF8_216_c_a", "zincblende"),
    CompetitorType("A2B_cF24_227_d_a", "C15 Laves"),
    CompetitorType("A3B_cP8_223_c_a", "A15"),
    CompetitorType("AB3_cF16_225_a_bc", "D0_3"),
    CompetitorType("L1_0", "L1_0"),
)
"""Types of two elements, each the one that brought the hull nearest to that of DFT after those
before it; `benchmarks/own_hull.py` measures what each adds."""

TERNARY_TYPES: Final = (
    CompetitorType("ABC3_hR10_167_a_b_e:CaCO3", "calcite"),
    CompetitorType("A4BC_tI24_141_h_b_a", "zircon"),
    CompetitorType("A2BC4_cF56_227_d_a_e", "spinel"),
    CompetitorType("perovskite", "perovskite (Pnma)"),
    CompetitorType("ABC_cF12_216_b_c_a", "half-Heusler"),
    CompetitorType("cubic_perovskite", "perovskite (cubic)"),
    CompetitorType("AB3C_hR10_148_c_f_c", "ilmenite"),
    CompetitorType("AB2C_cF16_225_a_c_b", "Heusler"),
    CompetitorType("K2NiF4", "K2NiF4"),
)
"""Types of three elements, likewise."""


@dataclass(frozen=True, eq=False)
class CompetitorPlan:
    """Which decorations are to be scored, and in which ranges.

    Attributes:
        spaces: The decorations of each type, before those of other systems are masked out.
        parts: Ranges of indices into the spaces, those of each task together.
        counts: Exact number of decorations of each type that will be scored.
        pools: Pools of the campaign's spaces, which decide whose systems are wanted.
        own: Names of the campaign's prototypes: their decorations may be candidates.
    """

    spaces: tuple[CandidateSpace, ...]
    parts: tuple[tuple[Shard, ...], ...]
    counts: Mapping[str, int]
    pools: Pools
    own: frozenset[str]

    @property
    def total(self) -> int:
        """Number of decorations that will be scored."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class CompetitorTask:
    """All that a worker needs to score some ranges of decorations.

    Attributes:
        number: Place among the tasks, from 0.
        shards: The ranges of indices.
        spaces: The space of each range's type.
        pools: Pools of the campaign's spaces.
        model: Name or absolute path of the model.
        model_hash: What the model's hash must be.
        device: auto, cpu or cuda.
        precision: auto, int8, bf16 or fp32.
        threads: Threads of arithmetic for this worker; None leaves them as they are.
        folder: Result folder of the campaign, as the worker sees it.
    """

    number: int
    shards: tuple[Shard, ...]
    spaces: tuple[CandidateSpace, ...]
    pools: Pools
    model: str
    model_hash: str
    device: str
    precision: str
    threads: int | None
    folder: Path

    @property
    def key(self) -> str:
        """Hash of all that the part depends on, 64 hexadecimal digits."""
        content = [
            _FORMAT,
            [asdict(shard) for shard in self.shards],
            [[space.prototype.geometry_hash(), space.pools] for space in self.spaces],
            self.pools,
            self.model_hash,
            self.precision,
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class CompetitorReceipt:
    """What a worker says of ranges that it has scored.

    Attributes:
        key: The task's key: a part made for another task is not taken for this one's.
        decorations: Decorations of the wanted systems: scored and failed.
        failures: Formula and reason of each that could not be scored.
        sha256: Checksum of the part's file.
    """

    key: str
    decorations: int
    failures: tuple[tuple[str, str], ...]
    sha256: str


@dataclass(frozen=True, eq=False)
class ScoredCompetitors:
    """Scored decorations of one type.

    Attributes:
        numbers: Atomic number on each role, shape (m, k), uint8.
        energies: Formation energies in eV/atom, shape (m, c): mean of the members, each member,
            the forest if the model has one, and, if the model was calibrated, the mean raised by
            the standard deviation of its error.
        failures: Formula and reason of each decoration that could not be scored.
    """

    numbers: NDArray[np.uint8]
    energies: NDArray[np.float64]
    failures: tuple[tuple[str, str], ...]


def plan_competitors(
    spaces: Sequence[CandidateSpace], order: Competitors, compete: bool = False
) -> CompetitorPlan:
    """Say which decorations compete with the candidates of a campaign.

    A type is filled in every order with the campaign's elements. Of its decorations those count
    whose elements all lie within the elements of at least one candidate. Where the campaign screens
    a type itself, in whatever geometry, its geometry is taken, so that a candidate meets itself
    only once.

    Args:
        spaces: The campaign's candidates.
        order: Up to how many elements competing phases have.
        compete: Whether the campaign's own candidates compete too.

    Returns:
        The plan; what it says is exact, and nothing has been scored. Empty if `order` is none and
        candidates do not compete.
    """
    from prototypes import CandidateSpace, find_prototype

    types: tuple[CompetitorType, ...] = ()
    if order is not Competitors.NONE:
        types += BINARY_TYPES
    if order is Competitors.TERNARY:
        types += TERNARY_TYPES
    own = [space.prototype for space in spaces]
    pools = tuple(space.pools for space in spaces)
    elements = sorted({number for space in spaces for pool in space.pools for number in pool})
    planned: dict[str, CandidateSpace] = {}
    counts: dict[str, int] = {}
    for each in types:
        found = find_prototype(each.prototype)
        prototype = next((mine for mine in own if _are_same_type(mine, found)), found)
        wanted = int(_wanted_systems(pools, len(prototype.roles)).sum())
        if wanted and prototype.name not in planned:
            planned[prototype.name] = CandidateSpace(
                prototype, dict.fromkeys(prototype.roles, elements)
            )
            counts[prototype.name] = wanted // len(prototype.role_permutations)
    for space in spaces if compete else ():
        if space.prototype.name not in planned:
            planned[space.prototype.name] = space
            counts[space.prototype.name] = space.count
    return CompetitorPlan(
        tuple(planned.values()),
        _plan_parts(tuple(planned.values()), counts),
        counts,
        pools,
        frozenset(prototype.name for prototype in own),
    )


def score_decorations(
    pieces: Sequence[tuple[Prototype, NDArray[np.uint8]]],
    loaded: LoadedModel,
    device: torch.device,
) -> tuple[ScoredCompetitors, ...]:
    """Score decorations of one or more prototypes.

    The networks take rows in blocks of one size, so that few decorations of many prototypes cost
    no more than as many of one.

    Args:
        pieces: Prototypes, each with atomic numbers on its roles, shape (m, k).
        loaded: The model.
        device: Where the model is.

    Returns:
        For each piece what was scored, in order, and what could not be.
    """
    model = loaded.model
    columns = 1 + len(model.ensemble.members)
    columns += (model.forest is not None) + (model.uncertainty is not None)
    numbers: list[list[NDArray[np.uint8]]] = [[] for _ in pieces]
    energies: list[list[NDArray[np.float64]]] = [[] for _ in pieces]
    failures: list[list[tuple[str, str]]] = [[] for _ in pieces]
    waiting: list[tuple[int, torch.Tensor]] = []

    def predict() -> None:
        scored = _predict(loaded, torch.cat([features for _, features in waiting]))
        ends = np.cumsum([len(features) for _, features in waiting])
        for (piece, _), rows in zip(waiting, np.split(scored, ends[:-1]), strict=True):
            energies[piece].append(rows)
        waiting.clear()

    for piece, (prototype, decorations) in enumerate(pieces):
        featurizer = _open_featurizer(prototype)
        for first in range(0, len(decorations), _BLOCK):
            block = decorations[first : first + _BLOCK]
            features = featurize_candidates(featurizer, block, device)
            reasons = find_failures(features)
            if reasons:
                broken = sorted(reasons)
                formulas = FormulaWriter(prototype.amounts).write(block[broken])
                failures[piece] += zip(formulas, (reasons[row] for row in broken), strict=True)
                rows = np.setdiff1d(np.arange(len(block)), broken)
                block, features = block[rows], features[torch.from_numpy(rows).to(device)]
            numbers[piece].append(block)
            waiting.append((piece, features))
            if sum(len(each) for _, each in waiting) >= _BLOCK:
                predict()
    if waiting:
        predict()
    return tuple(
        ScoredCompetitors(
            np.concatenate([np.empty((0, len(prototype.roles)), np.uint8), *numbers[piece]]),
            np.concatenate([np.empty((0, columns)), *energies[piece]]),
            tuple(failures[piece]),
        )
        for piece, (prototype, _) in enumerate(pieces)
    )


def list_tasks(
    plan: CompetitorPlan,
    *,
    model: str,
    model_hash: str,
    device: str,
    precision: str,
    threads: int | None,
    folder: Path,
) -> tuple[CompetitorTask, ...]:
    """Return the tasks of a plan; see `CompetitorTask` for the arguments."""
    by_name = {space.prototype.name: space for space in plan.spaces}
    return tuple(
        CompetitorTask(
            number,
            shards,
            tuple(by_name[shard.prototype] for shard in shards),
            plan.pools,
            model=model,
            model_hash=model_hash,
            device=device,
            precision=precision,
            threads=threads,
            folder=folder,
        )
        for number, shards in enumerate(plan.parts)
    )


def find_unfinished(tasks: Sequence[CompetitorTask]) -> tuple[CompetitorTask, ...]:
    """Return the tasks whose parts are not there, or not unharmed; none if all were gathered."""
    if not tasks or _read_gathered(tasks) is not None:
        return ()
    return tuple(task for task in tasks if _read_receipt(task) is None)


def score_competitor_range(task: CompetitorTask, worker: int = 0) -> CompetitorReceipt:
    """Score some ranges of decorations and write their part.

    Runs in a Dask worker or in the driver's process; models and tessellations stay loaded from one
    call to the next. Decorations whose energy is above 0 by every column are not written: the
    elements always lie below them.

    Args:
        task: What to score.
        worker: Number of the worker, which picks its GPU where there are several.

    Returns:
        The receipt, which is also written beside the part.

    Raises:
        ScreeningError: The model does not fit, or the part cannot be written.
    """
    if task.threads is not None and torch.get_num_threads() != task.threads:
        torch.set_num_threads(task.threads)
    device = pick_device(task.device, worker)
    loaded = load_scorer(task.model, task.model_hash, str(device), task.precision)
    pieces = []
    for space, shard in zip(task.spaces, task.shards, strict=True):
        numbers = enumerate_candidates(space, shard.start, shard.stop).numbers
        pieces.append((space.prototype, numbers[find_wanted(numbers, task.pools)]))
    scored = score_decorations(pieces, loaded, device)
    phases = Phases.join(
        [_make_phases(space, each) for space, each in zip(task.spaces, scored, strict=True)]
    )
    path = _part_path(task)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(error, path.parent) from error
    phases.save(path)
    receipt = CompetitorReceipt(
        task.key,
        sum(len(each.numbers) + len(each.failures) for each in scored),
        tuple(failure for each in scored for failure in each.failures),
        hash_file(path),
    )
    with written_atomically(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(receipt)), encoding="utf-8")
    return receipt


@dataclass(frozen=True)
class GatheredCompetitors:
    """The competing phases of a campaign, on disk.

    Attributes:
        path: File of the phases, for `screening.phases.Phases.load`.
        decorations: Decorations scored or failed.
        phases: Those of them that can matter, which the file holds.
        failures: Formula and reason of each that could not be scored.
    """

    path: Path
    decorations: int
    phases: int
    failures: tuple[tuple[str, str], ...]


def gather_competitors(
    plan: CompetitorPlan, tasks: Sequence[CompetitorTask]
) -> GatheredCompetitors:
    """Put the parts of all tasks into one file and remove them.

    Of the phases of a composition only those are kept that can be the lowest for some candidate;
    see `drop_beaten`.

    Args:
        plan: The plan.
        tasks: All its tasks, at least one, finished.

    Returns:
        What was gathered, now or by an earlier run.

    Raises:
        ScreeningError: A part is missing or damaged, or decorations are missing.
        OutputError: The file cannot be written.
    """
    earlier = _read_gathered(tasks)
    if earlier is not None:
        return earlier
    labels: dict[tuple[int, ...], list[str]] = {}
    for space in plan.spaces:
        amounts = space.prototype.amounts
        stoichiometry = tuple(sorted(amount // gcd(*amounts) for amount in amounts))
        labels.setdefault(stoichiometry, []).append(space.prototype.name)
    kept: dict[tuple[int, ...], list[Phases]] = {each: [] for each in labels}
    decorations = 0
    failures: list[tuple[str, str]] = []
    for task in tasks:
        receipt = _read_receipt(task)
        if receipt is None:
            raise ScreeningError(
                f"{_part_path(task)} is missing or damaged; run the same command again, which "
                "scores it anew"
            )
        decorations += receipt.decorations
        failures += receipt.failures
        part = Phases.load(_part_path(task))
        for stoichiometry, names in labels.items():
            gathered = kept[stoichiometry]
            gathered.append(part.select(np.isin(part.labels, names)))
            if sum(map(len, gathered[1:])) > _MOST_WAITING:
                kept[stoichiometry] = [drop_beaten(Phases.join(gathered), plan.own)]
    if decorations != plan.total:
        raise ScreeningError(
            f"the plan has {plan.total} decorations of competing phases, but the parts hold "
            f"{decorations}; please report this as a bug"
        )
    phases = Phases.join([drop_beaten(Phases.join(each), plan.own) for each in kept.values()])
    folder = tasks[0].folder
    path = folder / _PHASES
    phases.save(path)
    content = {
        "key": _joint_key(tasks),
        "decorations": decorations,
        "phases": len(phases),
        "failures": failures,
        "sha256": hash_file(path),
    }
    with written_atomically(folder / _RECEIPT) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    for task in tasks:
        _part_path(task).unlink()
    return GatheredCompetitors(path, decorations, len(phases), tuple(failures))


def drop_beaten(phases: Phases, own: frozenset[str]) -> Phases:
    """Drop phases that no candidate's hull can rest on; every lowest mixture stays as it is.

    By one energy column a phase matters only if it lies below the elements and is the lowest of its
    composition, or the second lowest where the lowest may be the candidate itself, which does not
    compete with itself. What matters by no column is dropped.

    Args:
        phases: Phases with different identities.
        own: Labels of the phases that may be candidates.

    Returns:
        The others.
    """
    if not len(phases):
        return phases
    keys = [*phases.fractions.T, phases.systems]
    by_key = np.lexsort(keys)
    new = np.zeros(len(phases), dtype=bool)
    for key in keys:
        new[1:] |= key[by_key[1:]] != key[by_key[:-1]]
    composition = np.empty(len(phases), dtype=np.int64)
    composition[by_key] = np.cumsum(new)
    starts = np.concatenate([[0], np.flatnonzero(new)])
    sizes = np.diff(starts, append=len(phases))
    place_in_group = np.arange(len(phases)) - np.repeat(starts, sizes)
    foreign = ~np.isin(phases.labels, sorted(own))
    matters = np.zeros(len(phases), dtype=bool)
    for energies in phases.energies.T:
        order = np.lexsort((energies, composition))
        ordered = energies[order]
        lowest = np.minimum.reduceat(np.where(foreign[order], ordered, np.inf), starts)
        matters[order] |= (
            (ordered < 0) & (place_in_group < 2) & (ordered <= np.repeat(lowest, sizes))
        )
    return phases.select(matters)


def identify_decorations(prototype: Prototype, numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Give each decoration of a prototype a number by which it is known again.

    Args:
        prototype: The prototype.
        numbers: Atomic number on each role, shape (m, k).

    Returns:
        Shape (m,), never 0: the same for decorations that the prototype's isometries make equal,
        whatever the pools; different for others and for other prototypes, but for the odds of 64
        random bits.
    """
    seed = np.uint64(int(prototype.geometry_hash()[:16], 16))
    found = np.full(len(numbers), np.iinfo(np.uint64).max, dtype=np.uint64)
    for permutation in prototype.role_permutations:
        state = np.full(len(numbers), seed, dtype=np.uint64)
        for role in permutation:
            state = _mix(state ^ numbers[:, role].astype(np.uint64))
        np.minimum(found, state, out=found)
    return np.maximum(found, np.uint64(1))


def find_wanted(numbers: NDArray[np.uint8], pools: Pools) -> NDArray[np.bool_]:
    """Say which decorations have only elements that one candidate of a campaign has together.

    Args:
        numbers: Different atomic numbers in each row, shape (m, k). With more than three in a row
            they are the campaign's own candidates, and all are wanted.
        pools: Pools of the campaign's spaces.

    Returns:
        Shape (m,).
    """
    if numbers.shape[1] > 3:
        return np.ones(len(numbers), dtype=bool)
    return np.asarray(_wanted_systems(pools, numbers.shape[1])[tuple(numbers.T)])


@lru_cache(maxsize=4)
def _wanted_systems(pools: Pools, size: int) -> NDArray[np.bool_]:
    """Return for any `size` elements, in any order, whether a candidate holds them together.

    Elements that can stand on different roles of a space at once are part of some candidate: they
    are a partial transversal of the pools, and every partial transversal extends to a full one if
    there is any (J. Edmonds, D. R. Fulkerson, J. Res. Natl. Bur. Stand. B 69 (1965) 147).

    Returns:
        Shape (119,) * size; False where an element is repeated.
    """
    wanted = np.zeros((len(SYMBOLS) + 1,) * size, dtype=bool)
    for space in pools:
        member = np.zeros((len(space), len(SYMBOLS) + 1), dtype=bool)
        for row, pool in zip(member, space, strict=True):
            row[list(pool)] = True
        for roles in permutations(range(len(space)), size):
            together = np.ones((), dtype=bool)
            for role in roles:
                together = together[..., None] & member[role]
            wanted |= together
    grids = np.indices(wanted.shape, sparse=True)
    for place, grid in enumerate(grids):
        for other in grids[:place]:
            wanted &= grid != other
    wanted.setflags(write=False)
    return wanted


def _are_same_type(one: Prototype, other: Prototype) -> bool:
    """Say whether two prototypes are one structure type, in whatever geometry and roles."""
    if sorted(one.amounts) != sorted(other.amounts):
        return False
    if one == other:
        return True
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    first, second = (
        Structure(
            each.lattice,
            [each.reference_elements[role] for role in each.site_roles],
            each.frac_coords,
        )
        for each in (one, other)
    )
    groups = {
        SpacegroupAnalyzer(structure, symprec=_SYMMETRY_TOLERANCE).get_space_group_number()
        for structure in (first, second)
    }
    return len(groups) == 1 and bool(StructureMatcher().fit_anonymous(first, second))


def _plan_parts(
    spaces: Sequence[CandidateSpace], counts: Mapping[str, int]
) -> tuple[tuple[Shard, ...], ...]:
    """Cut spaces into ranges, and put small ones together: about `RANGE` decorations a task."""
    parts: list[list[Shard]] = []
    room, number = 0, 0
    for space in spaces:
        name, indices = space.prototype.name, space.index_count
        pieces = ceil(counts[name] / RANGE)
        size, expected = ceil(indices / pieces), ceil(counts[name] / pieces)
        for start in range(0, indices, size):
            if expected > room:
                parts.append([])
                room = RANGE
            parts[-1].append(Shard(number, name, start, min(start + size, indices)))
            room -= expected
            number += 1
    return tuple(map(tuple, parts))


def _make_phases(space: CandidateSpace, scored: ScoredCompetitors) -> Phases:
    """Return the decorations that lie below the elements by some column, as phases."""
    below = (scored.energies < 0).any(axis=1)
    numbers = scored.numbers[below]
    return Phases.of_decorations(
        numbers,
        space.prototype.amounts,
        scored.energies[below],
        space.prototype.name,
        identify_decorations(space.prototype, numbers),
        space.formulas(numbers),
    )


@lru_cache(maxsize=64)
def _open_featurizer(prototype: Prototype) -> PrototypeFeaturizer:
    return open_featurizer(prototype)


def _predict(loaded: LoadedModel, features: torch.Tensor) -> NDArray[np.float64]:
    """Return the energies of `ScoredCompetitors`, in eV/atom, shape (m, c)."""
    scores = score_candidates(loaded, features)
    columns = [scores.mean, *scores.members.T]
    if loaded.model.forest is not None:
        columns.append(scores.forest)
    if loaded.model.uncertainty is not None:
        columns.append(scores.mean + loaded.model.uncertainty.noise_std(scores.error_scale))
    return np.column_stack(columns)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers one to one (SplitMix64: G. L. Steele et al., OOPSLA 2014)."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _part_path(task: CompetitorTask) -> Path:
    return task.folder / _FOLDER / f"{task.number:05d}.arrow"


def _read_receipt(task: CompetitorTask) -> CompetitorReceipt | None:
    """Return the receipt of a finished task whose part is unharmed."""
    path = _part_path(task)
    try:
        raw = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        receipt = CompetitorReceipt(
            key=raw["key"],
            decorations=raw["decorations"],
            failures=tuple((formula, reason) for formula, reason in raw["failures"]),
            sha256=raw["sha256"],
        )
        if receipt.key == task.key and receipt.sha256 == hash_file(path):
            return receipt
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return None


def _joint_key(tasks: Sequence[CompetitorTask]) -> str:
    return hashlib.sha256("".join(task.key for task in tasks).encode()).hexdigest()


def _read_gathered(tasks: Sequence[CompetitorTask]) -> GatheredCompetitors | None:
    """Return what an earlier run gathered of the same tasks, if it is unharmed."""
    folder = tasks[0].folder
    try:
        raw = json.loads((folder / _RECEIPT).read_text(encoding="utf-8"))
        if raw["key"] == _joint_key(tasks) and raw["sha256"] == hash_file(folder / _PHASES):
            failures = tuple((formula, reason) for formula, reason in raw["failures"])
            return GatheredCompetitors(
                folder / _PHASES, raw["decorations"], raw["phases"], failures
            )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return None
