"""A campaign from settings to report: competitors, candidates, hull, ranking, report.

`run_campaign` is the table of contents of a campaign, `screening.shard_tasks.screen_shard` that of
one of its shards; each stage is a module of its own and hands tables to the next. Shards are
computed by Dask workers or in this process, by the same function.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import pyarrow as pa
import torch

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
from screening.enumerate import Shard, count_candidates, plan_shards
from screening.errors import CampaignInterrupted, ConfigurationError, ScreeningError
from screening.folder import Receipt, RunFolder
from screening.manifest import (
    describe_competitors,
    describe_environment,
    describe_model,
    describe_prototype,
    identify,
    resolve_settings,
    sum_removed,
    sum_stages,
)
from screening.phases import Phases
from screening.rank import find_order, rank_candidates
from screening.references import References, read_references
from screening.report import render_report
from screening.score import pick_device
from screening.settings import CampaignSettings, Device, count_cores
from screening.shard_tasks import SITE, ShardTask, divide_requirements, screen_shard

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.model_library import ScreeningModel

REFERENCES_NAME: Final = "references.arrow"
PHASES_NAME: Final = "phases.arrow"
"""Files of reference phases, and of these with the candidates where candidates compete."""

Work = Callable[[Callable[[Any, int], Any], Sequence[Any]], Iterator[Any]]
"""Calls a function for each task on the workers and yields the results as they come."""


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

    def advance(self, receipt: Receipt) -> None:
        """A shard is finished."""


@dataclass(frozen=True, eq=False)
class CampaignResult:
    """A finished campaign.

    Attributes:
        folder: The result folder.
        ranking: All scored candidates, best first.
        failures: Candidates that could not be scored.
        comparison: The ensemble beside the Random Forest; None without a forest.
    """

    folder: RunFolder
    ranking: pa.Table
    failures: pa.Table
    comparison: Comparison | None


def run_campaign(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    observer: Observer,
    scored: RunFolder | None = None,
) -> CampaignResult:
    """Run a campaign, or go on with the one that the result folder holds.

    Args:
        settings: What to screen.
        spaces: The candidates, from `screening.enumerate.open_spaces`.
        pools: Atomic numbers that each role may take, from there too.
        observer: Told of the progress.
        scored: Folder of the same campaign with other competitors, whose predictions are taken
            over; None computes them.

    Returns:
        The ranking and where it is.

    Raises:
        ScreeningError: Anything the user can cure; finished shards are kept.
        CampaignInterrupted: Ctrl-C; finished shards are kept.
    """
    from screening.model_library import load_enthalpy_model

    started = time.perf_counter()
    if settings.cluster.scheduler is None:
        pick_device(settings.device)
    _check_roles(settings, spaces)
    model = load_enthalpy_model(settings.model)
    _warn_of_doubts(spaces, observer)
    references = _open_references(settings, model, pools, observer)
    if scored is not None:
        _check_earlier(scored, settings, model)
    plan = plan_competitors(spaces, settings.predicted_competitors, settings.compete)
    shards = plan_shards(spaces, settings.shard_size)
    identity = identify(settings, spaces, pools, model, references, plan)
    counts = count_candidates(spaces)
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
        "shards": [[s.number, s.prototype, s.start, s.stop] for s in shards],
    }
    with (
        RunFolder.claim(settings.out, identity, observer.note) as folder,
        _hire_workers(settings, observer) as work,
    ):
        earlier = folder.manifest.get("runs", []) if folder.manifest_path.is_file() else []
        finished = {receipt.shard: receipt for receipt in folder.read_receipts(shards)}
        already = len(finished)
        folder.write_manifest(manifest | {"runs": earlier})
        folder.write_text("campaign.toml", resolve_settings(settings, pools, spaces))
        try:
            observer.begin(counts, pools, sum(each.enumerated for each in finished.values()))
            phases, predicted = _gather_phases(
                settings, model, references, plan, folder, work, observer
            )
            tasks = [
                _make_task(settings, space, shard, model, folder, phases, scored)
                for space in spaces
                for shard in shards
                if shard.prototype == space.prototype.name and shard not in finished
            ]
            for receipt in work(screen_shard, tasks):
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
            [folder.table_path(shard) for shard in shards], folder.prototypes, settings.rank_by
        )
        comparison = compare_models(ranking, settings.stable_within)
        folder.write_ranking(ranking, failures)
        ended = time.perf_counter()
        this_run = {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "workers": settings.cluster.scheduler or count_workers(settings),
            "shards_computed": len(shards) - already,
            "wall_seconds": round(ended - started, 3),
            "rank_and_write_seconds": round(ended - rank_started, 3),
        }
        against = describe_competitors(settings, references, plan, predicted)
        folder.write_manifest(
            manifest
            | {
                "competitors": against,
                "runs": [*earlier, this_run],
                "rows": {"scored": len(ranking), "failed": len(failures)},
                "removed": sum_removed(receipts),
                "ranked_by": str(find_order(ranking, settings.rank_by)),
                "comparison": None if comparison is None else asdict(comparison),
                "devices": sorted({receipt.device for receipt in receipts}),
                "stages": sum_stages(receipts),
            }
        )
        folder.write_text(folder.report_path.name, render_report(folder, ranking, failures))
    return CampaignResult(folder, ranking, failures, comparison)


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
    missing = len(scored.shards) - len(scored.read_receipts(scored.shards))
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
    work: Work,
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
        threads=_count_threads(settings),
        folder=root,
    )
    unfinished = find_unfinished(tasks)
    if unfinished:
        observer.begin_competitors(plan.counts, len(unfinished), len(tasks))
    for _ in work(score_competitor_range, unfinished):
        observer.advance_competitors()
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


def count_workers(settings: CampaignSettings) -> int:
    """Return the number of local workers; 0 computes in this process.

    Unless the settings say so, GPUs get one worker each: more would only fill their memory.
    """
    if settings.cluster.workers is not None:
        return settings.cluster.workers
    if settings.device != Device.CPU and torch.cuda.is_available():
        return torch.cuda.device_count()
    return count_cores()


@contextmanager
def _hire_workers(settings: CampaignSettings, observer: Observer) -> Iterator[Work]:
    """Yield what works off tasks; workers start with the first task and stay to the end."""
    with ExitStack() as stack:
        hired: list[Any] = []

        def work(function: Callable[[Any, int], Any], tasks: Sequence[Any]) -> Iterator[Any]:
            if not tasks:
                return
            if settings.cluster.scheduler is None and count_workers(settings) == 0:
                for task in tasks:
                    yield function(task, 0)
                return
            from screening.cluster.client import await_worker, connect
            from screening.cluster.tasks import map_tasks
            from screening.local_tasks import take_results

            if not hired:
                client = stack.enter_context(
                    connect(count_workers(settings), settings.cluster.scheduler)
                )
                if settings.cluster.scheduler is not None:
                    await_worker(client, settings.cluster.scheduler, observer.note)
                observer.watch_at(client.dashboard_link)
                hired.append(client)
            yield from take_results(map_tasks(hired[0], function, tasks))

        yield work


def _make_task(
    settings: CampaignSettings,
    space: CandidateSpace,
    shard: Shard,
    model: ScreeningModel,
    folder: RunFolder,
    phases: Path | None,
    scored: RunFolder | None,
) -> ShardTask:
    root = folder.path.resolve()
    return ShardTask(
        shard,
        space,
        model=_name_model(settings, model),
        model_hash=model.content_hash,
        device=str(settings.device),
        precision=str(settings.precision),
        threads=_count_threads(settings),
        folder=root,
        phases=phases,
        references=None if settings.references is None else root / REFERENCES_NAME,
        stable_within=settings.stable_within,
        require=settings.require,
        campaign=folder.campaign,
        scored=None if scored is None else scored.table_path(shard).resolve(),
    )


def _name_model(settings: CampaignSettings, model: ScreeningModel) -> str:
    """How workers find the model: by name, or by its absolute path."""
    return str(model.path.resolve()) if Path(settings.model).is_dir() else settings.model


def _count_threads(settings: CampaignSettings) -> int | None:
    """Threads of arithmetic for each local worker; None leaves them as they are."""
    workers = count_workers(settings)
    local = settings.cluster.scheduler is None and workers > 0
    return max(1, count_cores() // workers) if local else None


def _check_counts(spaces: Sequence[CandidateSpace], receipts: Sequence[Receipt]) -> None:
    """Check that every candidate of every prototype came out of the shards: less is a bug."""
    for space in spaces:
        name = space.prototype.name
        got = sum(r.enumerated for r in receipts if r.shard.prototype == name)
        if got != space.count:
            raise ScreeningError(
                f"{name} has {space.count} candidates, but the shards account for {got}; "
                "please report this as a bug"
            )
