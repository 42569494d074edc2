"""Commands about the results of campaigns: show, report, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import (
    FolderArgument,
    JsonResultOption,
    RankByOption,
    RequireOption,
    check_output,
    print_ranking,
    say,
)
from screening.completion import complete_from, complete_prototype
from screening.errors import ConfigurationError, InputDataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

    from screening.folder import RunFolder
    from screening.settings import RankBy

DEFAULT_TOP = 20
FORMATS = ("cif", "poscar", "csv")


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    for command in (show, report, export):
        app.command()(command)


def complete_format(incomplete: str) -> list[str]:
    """Complete an export format."""
    return complete_from(FORMATS, incomplete)


TopOption = Annotated[int, typer.Option("--top", "-n", min=1, help="How many candidates.")]
WithOption = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="SYMBOL", help="Only compounds of this element; repeat for several."
    ),
]
NewOption = Annotated[
    bool,
    typer.Option(
        "--new",
        help="Leave out known compositions: of the model's training data or the references.",
    ),
]
DiverseOption = Annotated[
    bool,
    typer.Option(
        "--diverse", help="Pass over candidates whose composition is close to a better one's."
    ),
]
DistanceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="STEPS",
        help="With --diverse: least element mover's distance between compositions.",
        show_default="2",
    ),
]
PrototypeFilter = Annotated[
    list[str] | None,
    typer.Option(
        "--prototype",
        "-p",
        help="Only this prototype; repeat for several.",
        autocompletion=complete_prototype,
    ),
]


def show(
    folder: FolderArgument,
    top: TopOption = DEFAULT_TOP,
    containing: WithOption = None,
    new: NewOption = False,
    prototype: PrototypeFilter = None,
    require: RequireOption = None,
    rank_by: RankByOption = None,
    diverse: DiverseOption = False,
    min_distance: DistanceOption = None,
    as_json: JsonResultOption = False,
) -> None:
    """Show the best candidates of a campaign, complete or not."""
    run_folder, ranking = _open_ranking(folder, rank_by)
    chosen = _select(run_folder, ranking, containing, new, prototype, require)
    if not len(chosen) and not as_json:
        say(f"none of the {len(ranking):,} candidates meets all conditions")
        return
    shown = _shorten(chosen, top, diverse, min_distance)
    if as_json:
        from screening.rank import find_order
        from screening.result_document import describe_result, write_document
        from screening.settings import parse_order

        order = find_order(ranking, parse_order(rank_by or run_folder.manifest["ranked_by"]))
        typer.echo(write_document(describe_result(run_folder, ranking, shown, order)))
        return
    title = f"{'Diverse' if diverse else 'Top'} {len(shown)} of {len(chosen):,} candidates"
    if len(chosen) < len(ranking):
        title += f" chosen from {len(ranking):,}"
    print_ranking(run_folder, shown, title)


def report(
    folder: FolderArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="HTML file to write or replace.",
            show_default="DIR/report.html",
        ),
    ] = None,
) -> None:
    """Write a complete campaign as one HTML page to read, print or send to a colleague.

    The page needs nothing else: what was screened, which hull, the best candidates, IRNet beside
    the Random Forest, how sure it is, and how to make it again.
    """
    from screening.columns import written_atomically
    from screening.folder import RunFolder
    from screening.report import report_of

    campaign = RunFolder.open(folder)
    target = out or campaign.report_path
    check_output(target, overwrite=True)
    page = report_of(campaign)
    with written_atomically(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"{target}: {len(page.encode()) / 1e3:,.0f} kB")


def export(
    folder: FolderArgument,
    top: TopOption = DEFAULT_TOP,
    form: Annotated[
        str,
        typer.Option("--format", "-f", help="cif, poscar or csv.", autocompletion=complete_format),
    ] = "cif",
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="DIR", help="Where to write.", show_default="DIR/export-FORMAT"
        ),
    ] = None,
    containing: WithOption = None,
    new: NewOption = False,
    prototype: PrototypeFilter = None,
    require: RequireOption = None,
    rank_by: RankByOption = None,
    diverse: DiverseOption = False,
    min_distance: DistanceOption = None,
) -> None:
    """Write the best candidates of a campaign as structures to start calculations with.

    Cells have a typical volume, between that of pymatgen's DLSVolumePredictor and the sum of
    atomic volumes: a start for a relaxation.
    """
    from screening.export import ExportFormat, export_candidates
    from screening.manifest import restore_prototype

    if form not in FORMATS:
        raise ConfigurationError(
            f'--format "{form}" is none of {", ".join(FORMATS)}{suggest(form, FORMATS)}'
        )
    run_folder, ranking = _open_ranking(folder, rank_by)
    chosen = _select(run_folder, ranking, containing, new, prototype, require)
    if not len(chosen):
        raise ConfigurationError(
            f"none of the {len(ranking):,} candidates meets all conditions: nothing to export"
        )
    chosen = _shorten(chosen, top, diverse, min_distance)
    target = to or folder / f"export-{form}"
    if to is None and target.is_symlink():
        raise ConfigurationError(
            f"{target} is a link to {target.readlink()}; give --to to write there, or remove it"
        )
    described = run_folder.manifest["prototypes"]
    exported = export_candidates(
        chosen,
        {name: restore_prototype(each) for name, each in described.items()},
        target,
        ExportFormat(form),
    )
    for path in exported.files:
        typer.echo(path)
    if exported.older:
        say(
            f"{len(exported.older):,} files of an earlier export stay in {target}, from "
            f"{exported.older[0].name} to {exported.older[-1].name}; delete them or give --to "
            "another folder to have these alone"
        )
    if exported.failures:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in exported.failures[:3])
        raise InputDataError(
            f"{len(exported.failures)} of {len(chosen)} structures could not be built ({reasons}); "
            "the others are written"
        )


def _resolve_names(given: Sequence[str], screened: Sequence[str]) -> list[str]:
    """Replace other names of prototypes, and files, by those that the campaign's tables have."""
    from prototypes import find_names

    resolved = []
    for name in given:
        known = [name, *([Path(name).stem] if name.lower().endswith(".cif") else [])]
        if not set(known) & set(screened):
            known += find_names(name)
        resolved.append(next((each for each in known if each in screened), name))
    return resolved


def _select(
    folder: RunFolder,
    ranking: pa.Table,
    containing: Sequence[str] | None,
    new: bool,
    prototype: Sequence[str] | None,
    require: Sequence[str] | None,
) -> pa.Table:
    """Return the rows of a ranking that the options ask for."""
    from screening.rank import select_candidates
    from screening.requirements import parse_requirement

    return select_candidates(
        ranking,
        containing=containing or (),
        new=new,
        prototypes=_resolve_names(prototype or (), folder.prototypes),
        requirements=[parse_requirement(text) for text in require or ()],
    )


def _shorten(rows: pa.Table, top: int, diverse: bool, min_distance: float | None) -> pa.Table:
    if not diverse:
        if min_distance is not None:
            raise ConfigurationError("--min-distance is for shortlists; give --diverse too")
        return rows.slice(0, top)
    from screening.shortlist import DEFAULT_DISTANCE, pick_shortlist

    return pick_shortlist(rows, top, DEFAULT_DISTANCE if min_distance is None else min_distance)


def _open_ranking(path: Path, rank_by: str | None) -> tuple[RunFolder, pa.Table]:
    """Return the ranking of a campaign; of its finished shards if it is not complete."""
    from screening.folder import RunFolder
    from screening.rank import find_order, rank_again
    from screening.settings import parse_order
    from screening.terminal import describe_order

    folder = RunFolder.open(path)
    manifest = folder.manifest
    ranked_by = parse_order(manifest["ranked_by"])
    order = ranked_by if rank_by is None else parse_order(rank_by)
    if order != ranked_by and folder.keep_top is not None:
        say(
            f"the campaign kept only its {folder.keep_top:,} best by {manifest['ranked_by']}: by "
            f"{order} others may be better, and are not here"
        )
    ranking = folder.read_ranking() if folder.is_ranked else _rank_finished(folder, ranked_by)
    if rank_by is not None:
        ranking = rank_again(ranking, folder.prototypes, order)
        say(describe_order(order, find_order(ranking, order)))
    return folder, ranking


def _rank_finished(folder: RunFolder, order: RankBy) -> pa.Table:
    """Rank the finished shards of a campaign that is not complete."""
    from screening.rank import rank_candidates

    path, finished, done = folder.path, [], 0
    for receipt in folder.read_receipts(folder.shards):
        finished.append(receipt.shard)
        done += receipt.enumerated
    if not finished:
        raise ConfigurationError(
            f"no shard of {path} is finished yet; wait, or run its command again to go on"
        )
    if len(finished) < len(folder.shards):
        say(
            f"incomplete: ranks are among the {done:,} of {folder.manifest['counts']['total']:,} "
            "candidates whose shards are finished; go on with: screening run "
            f"{path / 'campaign.toml'}"
        )
    tables = [folder.table_path(shard) for shard in finished]
    return rank_candidates(tables, folder.prototypes, order, folder.keep_top)
