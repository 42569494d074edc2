"""A campaign from settings to report: competitors, candidates, hull, ranking, report.

`run_campaign` is the table of contents of a campaign, `screening.shard_tasks.screen_shard` that of
one of its shards; each stage is a module of its own and hands tables to the next. Shards are
computed by Dask workers or in this process, by the same function.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa

from irnet.device import choose_scoring_precision
from prototypes import find_doubt
from screening.comparison import Comparison, compare_models
from screening.competitors import (
    CompetitorPlan,
    GatheredCompetitors,
    find_unfinished,
    gather_competitors,
    list_tasks,
    plan_competitors,
    score_competitor_range,
)
from screening.enumerate import (
    Shard,
    ShardGrid,
    count_candidates,
    describe_grid,
    enumerate_candidates,
    plan_shards,
)
from screening.errors import (
    CampaignInterrupted,
    ConfigurationError,
    InputDataError,
    ScreeningError,
    WorkerKilledError,
)
from screening.failures import LostShard, gather_failures
from screening.folder import DamagedShard, Receipt, RunFolder, check_receipt, describe_damage
from screening.local_tasks import Done, Lost, take_results
from screening.manifest import (
    describe_competitors,
    describe_environment,
    describe_model,
    describe_prototype,
    identify,
    resolve_settings,
    sum_receipts,
)
from screening.manifest_check import check_manifest
from screening.phases import Phases
from screening.rank import rank_candidates, resolve_order
from screening.references import References, read_references
from screening.report import render_report
from screening.score import pick_device
from screening.selection import divide_requirements
from screening.settings import CampaignSettings, RankBy
from screening.shard_tasks import ShardTask, screen_shard
from screening.shards import SITE
from screening.status import CampaignStatus, State, StatusTracker, StatusWriter
from screening.workforce import (
    Workforce,
    check_performance_report,
    count_threads,
    describe_place,
)

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.model_library import ScreeningModel

REFERENCES_NAME: Final = "references.arrow"
PHASES_NAME: Final = "phases.arrow"
"""Files of reference phases, and of these with the candidates where candidates compete."""

MOST_LOST: Final = 3
"""Shards that may be lost before any is finished: more, and it is not the shards' fault."""


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

    def begin_competitors(self, counts: Mapping[str, int], left: int, tasks: int) -> None:
        """Competing phases are to be predicted before the candidates.

        Args:
            counts: Phases of each structure type.
            left: Tasks that are left to do.
            tasks: Tasks in all.
        """

    def advance_competitors(self) -> None:
        """One more task of competing phases is finished."""

    def advance(self, status: CampaignStatus) -> None:
        """One more shard is finished or set aside."""

    def lose(self, shard: Shard, reason: str) -> None:
        """A shard failed each time that it was tried, and is set aside."""


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """A finished campaign.

    Attributes:
        folder: The result folder.
        ranking: The scored candidates that are kept, best first.
        comparison: The ensemble beside the Random Forest; None without a forest, and where not all
            candidates are kept.
    """

    folder: RunFolder
    ranking: pa.Table
    comparison: Comparison | None


def run_campaign(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    observer: Observer,
    scored: RunFolder | None = None,
    performance_report: Path | None = None,
) -> CampaignResult:
    """Run a campaign, or go on with the one that the result folder holds.

    Args:
        settings: What to screen.
        spaces: The candidates, from `screening.enumerate.open_spaces`.
        pools: Atomic numbers that each role may take, from there too.
        observer: Told of the progress.
        scored: Folder of the same campaign with other competitors, whose predictions are taken
            over; None computes them.
        performance_report: Where Dask's performance report goes; None writes none.

    Returns:
        The ranking and where it is.

    Raises:
        ScreeningError: Anything the user can cure; finished shards are kept.
        CampaignInterrupted: Ctrl-C; finished shards are kept and ranked.
    """
    from screening.model_library import load_enthalpy_model

    started = time.perf_counter()
    if not settings.cluster.is_elsewhere and not settings.cluster.is_batch:
        choose_scoring_precision(settings.precision, pick_device(settings.device))
    _check_roles(settings, spaces)
    check_performance_report(settings, performance_report)
    model = load_enthalpy_model(settings.model)
    _warn_of_doubts(spaces, observer)
    references = _open_references(settings, model, pools, observer)
    if scored is not None:
        _check_earlier(scored, settings, model)
    plan = plan_competitors(spaces, settings.predicted_competitors, settings.compete)
    has_hull = references is not None or plan.total > 0
    order = resolve_order(
        settings.rank_by,
        has_hull=has_hull,
        has_probability=model.uncertainty is not None,
        has_std=model.uncertainty is not None or len(model.ensemble.members) > 1,
    )
    identity = identify(settings, spaces, pools, model, references, plan, order)
    counts = count_candidates(spaces)
    shards = plan_shards(spaces, settings.shard_size)
    manifest = {
        "campaign": identity,
        "environment": describe_environment(),
        "model": describe_model(settings, spaces, model),
        "competitors": describe_competitors(settings, references, plan),
        "prototypes": {
            space.prototype.name: describe_prototype(space.prototype) for space in spaces
        },
        "counts": {**counts, "total": sum(counts.values())},
        "rank_by": str(settings.rank_by),
        "ranked_by": str(order),
        "grid": describe_grid(shards),
    }
    with RunFolder.claim(settings.out, identity, observer.note) as folder:
        run = _Run(settings, spaces, folder, shards, order, observer, started)
        run.begin(manifest, resolve_settings(settings, pools, spaces))
        with (
            StatusWriter(folder.path, run.tracker, observer.note) as writer,
            Workforce(
                settings,
                folder.path.resolve(),
                tracker=run.tracker,
                writer=writer,
                note=observer.note,
                watch_at=observer.watch_at,
                performance_report=performance_report,
            ) as workforce,
        ):
            try:
                observer.begin(counts, pools, run.enumerated)
                phases, predicted = _gather_phases(
                    settings, model, references, plan, folder, workforce, run.tracker, observer
                )
                manifest["competitors"] = describe_competitors(
                    settings, references, plan, predicted
                )
                run.screen(workforce, run.list_tasks(model, phases, scored))
            except KeyboardInterrupt as error:
                writer.end(State.INTERRUPTED)
                if not run.finished:
                    folder.write_manifest(
                        {**manifest, "runs": run.earlier, "state": str(State.INTERRUPTED)}
                    )
                    raise CampaignInterrupted(
                        f"interrupted before the first of {len(shards)} shards was finished; run "
                        "the same command again to begin anew"
                    ) from error
                run.conclude(manifest, State.INTERRUPTED)
                raise CampaignInterrupted(
                    f"interrupted: {len(run.finished)} of {len(shards)} shards are finished and "
                    f"kept in {settings.out}, and ranked; run the same command again to go on, or "
                    f"look at them with: screening show {settings.out}"
                ) from error
            run.check_counts()
            try:
                result = run.conclude(manifest, State.COMPLETE)
            except KeyboardInterrupt as error:
                raise CampaignInterrupted(
                    f"interrupted before the ranking was written; all {len(shards)} shards are "
                    f"kept in {settings.out}: run the same command again to rank them"
                ) from error
            writer.end(State.COMPLETE)
    return result


class _Run:
    """One run of a campaign: what is finished, what is lost, and the ranking of it all.

    It holds numbers of shards; their receipts stay on disk, so that memory does not grow with them.
    """

    def __init__(
        self,
        settings: CampaignSettings,
        spaces: Sequence[CandidateSpace],
        folder: RunFolder,
        shards: ShardGrid,
        order: RankBy,
        observer: Observer,
        started: float,
    ) -> None:
        self.settings = settings
        self.spaces = {space.prototype.name: space for space in spaces}
        self.folder = folder
        self.shards = shards
        self.order = order
        self.observer = observer
        self.started = started
        self.finished: set[int] = set()
        self.with_failures: set[int] = set()
        self.lost: dict[int, LostShard] = {}
        self.candidates: Counter[str] = Counter()
        self.already = 0
        self.earlier: list[Any] = []
        self.tracker = StatusTracker(
            campaign=folder.path.resolve().name,
            counts=count_candidates(spaces),
            shards=len(shards),
            order=order,
            keep_top=settings.keep_top,
        )

    @property
    def enumerated(self) -> int:
        """Candidates of the shards that are finished or lost."""
        return self.candidates.total()

    def begin(self, manifest: Mapping[str, Any], settings: str) -> None:
        """Take over what earlier runs finished, and say whose folder this is."""
        folder = self.folder
        if folder.manifest_path.is_file():
            try:
                check_manifest(folder.manifest, folder.manifest_path)
                self.earlier = folder.manifest.get("runs", [])
            except InputDataError:
                self.observer.note(
                    f"{folder.manifest_path} is none of this program; it is made anew, and the "
                    "times of earlier runs are lost"
                )
        folder.write_manifest({**manifest, "runs": self.earlier})
        folder.write_text("campaign.toml", settings)
        damaged: list[DamagedShard] = []
        self.tracker.begin(self._take_over(damaged))
        self.already = len(self.finished)
        if self.already < len(self.shards):
            folder.clear_results()
        if damaged:
            self.observer.note(describe_damage(damaged))

    def _take_over(self, damaged: list[DamagedShard]) -> Iterator[Receipt]:
        """Yield the receipts of finished shards, one after the other; collect damaged ones."""
        for found in self.folder.inspect_shards(self.shards):
            if isinstance(found, DamagedShard):
                damaged.append(found)
            else:
                self._finish(found)
                yield found

    def _finish(self, receipt: Receipt) -> None:
        number = receipt.shard.number
        if receipt.failed:
            self.with_failures.add(number)
        self.candidates[receipt.shard.prototype] += receipt.enumerated
        self.finished.add(number)

    def list_tasks(
        self, model: ScreeningModel, phases: Path | None, scored: RunFolder | None
    ) -> Iterator[ShardTask]:
        """List what is left to do, in the order of the shards."""
        settings, root = self.settings, self.folder.path.resolve()
        make = partial(
            ShardTask,
            model=_name_model(settings, model),
            model_hash=model.content_hash,
            device=str(settings.device),
            precision=str(settings.precision),
            threads=count_threads(settings),
            folder=root,
            phases=phases,
            references=None if settings.references is None else root / REFERENCES_NAME,
            stable_within=settings.stable_within,
            require=settings.require,
            rank_by=self.order,
            keep_top=settings.keep_top,
            campaign=self.folder.campaign,
        )
        for shard in self.shards:
            if shard.number not in self.finished:
                earlier = None if scored is None else scored.table_path(shard).resolve()
                yield make(shard, self.spaces[shard.prototype], scored=earlier)

    def screen(self, workforce: Workforce, tasks: Iterator[ShardTask]) -> None:
        """Work off what is left; a shard that fails each time is set aside.

        Raises:
            ScreeningError: No other attempt and no other shard would do better.
        """
        screen = _find_function(self.settings)
        with closing(workforce.work_off(screen, tasks, self._check)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Done):
                    self._finish(outcome.result)
                    self.tracker.add(outcome.result)
                else:
                    self._set_aside(outcome)
                self.observer.advance(self.tracker.snapshot())

    def _check(self, task: ShardTask, receipt: object) -> str | None:
        return check_receipt(self.folder, task.shard, receipt)

    def _set_aside(self, outcome: Lost[ShardTask]) -> None:
        shard, space, reason = outcome.task.shard, outcome.task.space, outcome.reason
        candidates = len(enumerate_candidates(space, shard.start, shard.stop))
        self.lost[shard.number] = LostShard(space, shard, reason)
        self.candidates[shard.prototype] += candidates
        self.folder.set_aside(shard, reason, outcome.attempts, candidates)
        self.tracker.add_lost(shard.number, reason, candidates)
        self.observer.lose(shard, reason)
        if not self.finished and len(self.lost) >= MOST_LOST:
            raise WorkerKilledError(
                f"the first {MOST_LOST} shards all failed {outcome.attempts} times (the last: "
                f"{reason}), so it is hardly the shards' fault; run the same command again once "
                "the cause is cured"
            ) from outcome.error

    def check_counts(self) -> None:
        """Check that every candidate of every prototype came out of the shards: less is a bug."""
        for name, space in self.spaces.items():
            if self.candidates[name] != space.count:
                raise ScreeningError(
                    f"{name} has {space.count} candidates, but the shards account for "
                    f"{self.candidates[name]}; please report this as a bug"
                )

    def conclude(self, manifest: Mapping[str, Any], state: State) -> CampaignResult:
        """Rank what is finished and write it, with the manifest and the report."""
        settings, folder = self.settings, self.folder
        rank_started = time.perf_counter()
        ranking = rank_candidates(
            [folder.table_path(shard) for shard in self.shards if shard.number in self.finished],
            folder.prototypes,
            self.order,
            settings.keep_top,
        )
        totals = sum_receipts(self._read_receipts())
        comparison = None  # says nothing where the best of one model alone are kept
        # what its shards kept and the ranking does not is dropped too
        totals["dropped"] += totals.pop("kept") - len(ranking)
        if not totals["dropped"]:
            comparison = compare_models(ranking, settings.stable_within)
        failures = gather_failures(self._list_failed(), list(self.spaces.values()))
        failed = folder.write_failures(failures)
        folder.write_ranking(ranking)
        ended = time.perf_counter()
        this_run = {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": str(state),
            "workers": describe_place(settings),
            "shards_computed": len(self.finished) - self.already,
            "wall_seconds": round(ended - self.started, 3),
            "rank_and_write_seconds": round(ended - rank_started, 3),
        }
        folder.write_manifest(
            {
                **manifest,
                "state": str(state),
                "runs": [*self.earlier, this_run],
                "rows": {"scored": len(ranking), "failed": failed},
                "reasons": dict(self.tracker.snapshot(state).reasons),
                "shards_finished": len(self.finished),
                "shards_set_aside": len(self.lost),
                "comparison": None if comparison is None else asdict(comparison),
                **totals,
            }
        )
        folder.write_text(folder.report_path.name, render_report(folder, ranking))
        return CampaignResult(folder, ranking, comparison)

    def _list_failed(self) -> Iterator[Path | LostShard]:
        """List the shards with candidates that have no score, in order."""
        for number in sorted(self.with_failures | self.lost.keys()):
            lost = self.lost.get(number)
            yield self.folder.table_path(self.shards[number]) if lost is None else lost

    def _read_receipts(self) -> Iterator[Receipt]:
        for number in sorted(self.finished):
            found = self.folder.read_receipt(self.shards[number])
            if not isinstance(found, Receipt):
                raise InputDataError(
                    f"{self.folder.receipt_path(self.shards[number])} was changed while the "
                    "campaign ran; run the same command again, which computes that shard anew"
                )
            yield found


def _check_roles(settings: CampaignSettings, spaces: Sequence[CandidateSpace]) -> None:
    """Check that some prototype has the roles that conditions ask for."""
    roles = list(dict.fromkeys(role for space in spaces for role in space.prototype.roles))
    for requirement in divide_requirements(settings.require)[1]:
        role = requirement.column.removeprefix(SITE)
        if requirement.column.startswith(SITE) and role not in roles:
            raise ConfigurationError(
                f'--require "{requirement.text}": no prototype of the campaign has a role {role}; '
                f"the roles are {', '.join(roles)}"
            )


def _check_earlier(scored: RunFolder, settings: CampaignSettings, model: ScreeningModel) -> None:
    """Check that the predictions of an earlier campaign can be taken over."""
    earlier = scored.manifest["campaign"]
    if earlier["model"] != model.content_hash:
        raise ConfigurationError(
            f"{scored.path} was predicted by another model than {model.path.name} is now; run the "
            "campaign anew, or restore the model"
        )
    if scored.keep_top is not None:
        raise ConfigurationError(
            f"{scored.path} kept only its {scored.keep_top:,} best candidates, and with other "
            "competitors others may be better; run the campaign anew"
        )
    missing = len(scored.shards) - sum(1 for _ in scored.read_receipts(scored.shards))
    if missing:
        raise ConfigurationError(
            f"{scored.path} is not complete: {missing} of {len(scored.shards)} shards are missing "
            f"or damaged; finish it with: screening run {scored.path / 'campaign.toml'}"
        )
    late = [each.text for each in divide_requirements(settings.require)[1]]
    if late:
        raise ConfigurationError(
            f"{scored.path} left out candidates by {', '.join(late)} after they were scored, and "
            "other competitors may bring them back; run the campaign anew"
        )


def _warn_of_doubts(spaces: Sequence[CandidateSpace], observer: Observer) -> None:
    """Name the prototypes whose geometry is known to be doubtful, and what to do."""
    for prototype in (space.prototype for space in spaces):
        doubt = find_doubt(prototype)
        if doubt is not None:
            observer.note(
                f"the geometry of {prototype.name} is doubtful: {doubt}; to be safe, give "
                "--prototype a CIF of your own"
            )


def _open_references(
    settings: CampaignSettings,
    model: ScreeningModel,
    pools: Mapping[str, tuple[int, ...]],
    observer: Observer,
) -> References | None:
    """Read the references and say what is noteworthy about them."""
    if settings.references is None:
        return None
    references = read_references(settings.references, settings.functional)
    numbers = {number for pool in pools.values() for number in pool}
    for remark in references.list_remarks(numbers, model.card.data.functional):
        observer.note(remark)
    return references


def _gather_phases(
    settings: CampaignSettings,
    model: ScreeningModel,
    references: References | None,
    plan: CompetitorPlan,
    folder: RunFolder,
    workforce: Workforce,
    tracker: StatusTracker,
    observer: Observer,
) -> tuple[Path | None, GatheredCompetitors | None]:
    """Put all that candidates compete with into one file that every worker opens.

    Returns:
        The file, None if no hull is computed; and what the model predicted of it.
    """
    root = folder.path.resolve()
    if references is not None:
        references.phases.save(root / REFERENCES_NAME)
    if not plan.total:
        return (None if references is None else root / REFERENCES_NAME), None
    tasks = list_tasks(
        plan,
        model=_name_model(settings, model),
        model_hash=model.content_hash,
        device=str(settings.device),
        precision=str(settings.precision),
        threads=count_threads(settings),
        folder=root,
    )
    unfinished = find_unfinished(tasks)
    if unfinished:
        observer.begin_competitors(plan.counts, len(unfinished), len(tasks))
        tracker.begin_competitors(len(unfinished), len(tasks))
    with closing(workforce.work_off(score_competitor_range, unfinished)) as outcomes:
        for _ in take_results(outcomes):
            observer.advance_competitors()
            tracker.advance_competitors()
    gathered = gather_competitors(plan, tasks)
    if references is None:
        return gathered.path, gathered
    predicted = Phases.load(gathered.path)
    columns = predicted.energies.shape[1]
    given = replace(
        references.phases, energies=np.repeat(references.phases.energies, columns, axis=1)
    )
    Phases.join([given, predicted]).save(root / PHASES_NAME)
    return root / PHASES_NAME, gathered


def _find_function(settings: CampaignSettings) -> Callable[[ShardTask, int], Receipt]:
    """Return what computes a shard, here or on a worker of a cluster."""
    if settings.computes_here:
        return screen_shard
    from screening.cluster.shards import screen_shard_on_worker

    return screen_shard_on_worker


def _name_model(settings: CampaignSettings, model: ScreeningModel) -> str:
    """How workers find the model: by name, or by its absolute path."""
    return str(model.path.resolve()) if Path(settings.model).is_dir() else settings.model
