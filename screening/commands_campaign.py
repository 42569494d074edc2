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
    RankByOption,
    RequireOption,
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
        metavar="[CAMPAIGN.toml]",
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
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A running Dask scheduler, instead of local workers."),
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
        help="Arithmetic of the networks: auto, bf16 or fp32.",
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
    out: OutOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    shard_size: ShardSizeOption = None,
    top: TopOption = None,
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
            "out": out,
            "workers": workers,
            "scheduler": scheduler,
            "device": device,
            "precision": precision,
            "shard_size": shard_size,
            "top": top,
        },
    )
    spaces, pools = open_spaces(settings.prototype, settings.elements, settings.roles)
    _run_and_show(settings, spaces, pools)


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
    top: TopOption = None,
) -> None:
    """Let a finished campaign's candidates compete with other phases.

    Their energies are taken over; energies above hull, probabilities and the ranking are new.
    Options that are not given stay as they were in the campaign.
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
            "top": top,
        },
    )
    if out is None or out.resolve() == folder.resolve():
        raise ConfigurationError(
            f"{folder} stays as it is; give --out another folder for the new ranking"
        )
    spaces, pools = restore_spaces(scored.manifest)
    _run_and_show(settings, spaces, pools, scored)


def _run_and_show(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    scored: RunFolder | None = None,
) -> None:
    from screening.campaign import run_campaign  # loads torch: not for a misspelt name
    from screening.progress import CampaignProgress
    from screening.settings import RankBy
    from screening.terminal import describe_gaps, describe_order, describe_requirements

    with CampaignProgress() as progress:
        result = run_campaign(settings, spaces, pools, progress, scored)
    total = len(result.ranking)
    shown = result.ranking.slice(0, settings.top)
    for line in describe_requirements(result.folder.manifest["removed"]):
        say(line)
    title = f"Top {len(shown)} of {total:,} candidates"
    print_ranking(result.folder, shown, title, result.comparison)
    for line in describe_gaps(result.ranking, result.folder.manifest["competitors"]):
        say(line)
    say(describe_order(settings.rank_by, RankBy(result.folder.manifest["ranked_by"])))
    if len(result.failures):
        reason = result.failures["reason"][0].as_py()
        say(
            f"{len(result.failures):,} candidates could not be scored (the first: {reason}); "
            f"all of them are in {settings.out / 'failures.parquet'}"
        )
    say(
        f"{settings.out}: ranking.parquet, ranking.csv, report.html; export structures with: "
        f"screening export {settings.out}"
    )
