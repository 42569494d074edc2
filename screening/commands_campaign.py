"""Commands that screen: run, and hull for other competitors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import (
    REFERENCE_FILES,
    FolderArgument,
    FunctionalOption,
    JsonResultOption,
    RankByOption,
    RequireOption,
    SchedulerOption,
    StableWithinOption,
    print_ranking,
    say,
)
from screening.completion import (
    complete_competitors,
    complete_device,
    complete_model,
    complete_precision,
    complete_prototype,
)
from screening.errors import ConfigurationError

if TYPE_CHECKING:
    from prototypes import CandidateSpace
    from screening.folder import RunFolder
    from screening.settings import CampaignSettings

CampaignArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="CAMPAIGN.toml",
        help="Settings from a file, with the same keys as the options; options win.",
        show_default=False,
    ),
]
PrototypeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prototype",
        "-p",
        help="Prototype by name, AFLOW label, Strukturbericht symbol or mineral, or a CIF; "
        "repeat for several.",
        autocompletion=complete_prototype,
    ),
]
ElementsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--elements",
        "-e",
        metavar="[ROLE=]POOL",
        help="Elements for all roles or for one: default, all89, lanthanides, Li,Na,K, "
        "default,-O or X=O,S,F; repeatable.",
        show_default="default",
    ),
]
RolesOption = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL=ROLE,...",
        help="Roles of the elements or site labels of a CIF, such as Ca=A,Ti=B,O=X.",
        show_default="A, B, X, ... by electronegativity",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Bundled model or model folder.",
        autocompletion=complete_model,
        show_default="default",
    ),
]
ReferencesOption = Annotated[
    Path | None,
    typer.Option(
        "--references",
        "-r",
        metavar="FILE",
        help=f"Reference phases that candidates compete with: {REFERENCE_FILES}.",
        show_default="the model predicts competing phases",
    ),
]
CompetitorsOption = Annotated[
    str | None,
    typer.Option(
        help="Competing phases that the model predicts: binary, ternary (these too) or none.",
        autocompletion=complete_competitors,
        show_default="binary without references",
    ),
]
CompeteOption = Annotated[
    bool | None,
    typer.Option(
        "--compete/--no-compete",
        help="Let candidates of one chemical system compete with each other.",
        show_default="no-compete",
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Result folder.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Local Dask workers; 0 computes in this process.",
        show_default="one per GPU if there are any, else one per core",
    ),
]
SchedulerFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="The same by the file that `dask scheduler --scheduler-file` wrote."
    ),
]
DashboardOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where the dashboard of local workers listens.",
        show_default="127.0.0.1:8787",
    ),
]
KeepTopOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Keep only the N best candidates: memory and disk do not grow with the campaign.",
        show_default="all",
    ),
]
AttemptsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="How often a shard is tried before it is set aside and the others go on.",
        show_default="3",
    ),
]
ShardTimeoutOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Time after which a worker that computes one shard counts as hanging.",
        show_default="15 minutes, or 0.1 s per candidate if that is more",
    ),
]
PerformanceReportOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.html", help="Write Dask's performance report of this run."),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing on stderr but warnings and errors.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Where to compute: auto, cpu or cuda.",
        autocompletion=complete_device,
        show_default="auto",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Arithmetic of the networks: auto, int8, bf16 or fp32.",
        autocompletion=complete_precision,
        show_default="auto",
    ),
]
ShardSizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Indices per task and Parquet shard.", show_default="32768"),
]
TopOption = Annotated[
    int | None,
    typer.Option("--top", "-n", min=1, help="Rows of the table.", show_default="20"),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    for command in (run, hull):
        app.command()(command)


def run(
    campaign: CampaignArgument = None,
    prototype: PrototypeOption = None,
    elements: ElementsOption = None,
    roles: RolesOption = None,
    model: ModelOption = None,
    references: ReferencesOption = None,
    functional: FunctionalOption = None,
    competitors: CompetitorsOption = None,
    compete: CompeteOption = None,
    stable_within: StableWithinOption = None,
    require: RequireOption = None,
    rank_by: RankByOption = None,
    keep_top: KeepTopOption = None,
    out: OutOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    dashboard: DashboardOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    shard_size: ShardSizeOption = None,
    attempts: AttemptsOption = None,
    shard_timeout: ShardTimeoutOption = None,
    performance_report: PerformanceReportOption = None,
    top: TopOption = None,
    quiet: QuietOption = False,
    as_json: JsonResultOption = False,
) -> None:
    """Screen all compositions of prototypes and rank them.

    The same command again goes on where it stopped.
    """
    from screening.enumerate import open_spaces
    from screening.settings import read_settings

    settings = read_settings(
        campaign,
        {
            "prototype": prototype,
            "elements": elements,
            "roles": roles,
            "model": model,
            "references": references,
            "functional": functional,
            "competitors": competitors,
            "compete": compete,
            "stable_within": stable_within,
            "require": require,
            "rank_by": rank_by,
            "keep_top": keep_top,
            "out": out,
            "workers": workers,
            "scheduler": scheduler,
            "scheduler_file": scheduler_file,
            "dashboard": dashboard,
            "device": device,
            "precision": precision,
            "shard_size": shard_size,
            "attempts": attempts,
            "shard_timeout": shard_timeout,
            "top": top,
        },
    )
    spaces, pools = open_spaces(settings.prototype, settings.elements, settings.roles)
    _run_and_show(
        settings,
        spaces,
        pools,
        performance_report=performance_report,
        quiet=quiet,
        as_json=as_json,
    )


def hull(
    folder: FolderArgument,
    out: OutOption = None,
    references: ReferencesOption = None,
    functional: FunctionalOption = None,
    competitors: CompetitorsOption = None,
    compete: CompeteOption = None,
    stable_within: StableWithinOption = None,
    rank_by: RankByOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    scheduler_file: SchedulerFileOption = None,
    dashboard: DashboardOption = None,
    top: TopOption = None,
    quiet: QuietOption = False,
    as_json: JsonResultOption = False,
) -> None:
    """Let a finished campaign's candidates compete with other phases.

    Their energies are taken over; energies above hull, probabilities and the ranking are new.
    Options that are not given stay as they were in the campaign, but for these: references take
    the place of predicted phases and these that of references, unless both options are given.
    """
    from screening.folder import RunFolder
    from screening.manifest import restore_spaces
    from screening.settings import read_settings

    scored = RunFolder.open(folder)
    settings = read_settings(
        folder / "campaign.toml",
        {
            "references": references,
            "functional": functional,
            "competitors": competitors,
            "compete": compete,
            "stable_within": stable_within,
            "rank_by": rank_by,
            "out": out,
            "workers": workers,
            "scheduler": scheduler,
            "scheduler_file": scheduler_file,
            "dashboard": dashboard,
            "top": top,
        },
        own=False,
    )
    if out is None or out.resolve() == folder.resolve():
        raise ConfigurationError(
            f"{folder} stays as it is; give --out another folder for the new ranking"
        )
    spaces, pools = restore_spaces(scored.manifest)
    _run_and_show(settings, spaces, pools, scored=scored, quiet=quiet, as_json=as_json)


def _run_and_show(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    *,
    scored: RunFolder | None = None,
    performance_report: Path | None = None,
    quiet: bool = False,
    as_json: bool = False,
) -> None:
    from screening.campaign import run_campaign  # loads torch: not for a misspelt name
    from screening.progress import CampaignProgress
    from screening.settings import RankBy
    from screening.terminal import (
        describe_failures,
        describe_gaps,
        describe_kept,
        describe_order,
        describe_requirements,
    )

    with CampaignProgress(quiet=quiet) as progress:
        result = run_campaign(settings, spaces, pools, progress, scored, performance_report)
    folder, manifest = result.folder, result.folder.manifest
    order = RankBy(manifest["ranked_by"])
    shown = result.ranking.slice(0, settings.top)
    warnings = describe_failures(manifest, folder.failures_path)
    if as_json:
        from screening.result_document import describe_result, write_document

        document = describe_result(folder, result.ranking, shown, order, warnings)
        typer.echo(write_document(document))
        return
    told = [*describe_requirements(manifest["removed"]), *describe_kept(manifest)]
    for line in () if quiet else told:
        say(line)
    print_ranking(
        folder,
        shown,
        f"Top {len(shown)} of {len(result.ranking):,} candidates",
        None if quiet else result.comparison,
    )
    for line in (*describe_gaps(result.ranking, manifest["competitors"]), *warnings):
        say(line)
    if not quiet:
        say(describe_order(settings.rank_by, order))
        say(
            f"{settings.out}: ranking.parquet, ranking.csv, report.html; export structures with: "
            f"screening export {settings.out}"
        )
