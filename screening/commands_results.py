"""Commands about the results of campaigns: show, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import FolderArgument, print_ranking, say
from screening.completion import complete_from, complete_prototype
from screening.errors import ConfigurationError, InputDataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

    from screening.folder import RunFolder

DEFAULT_TOP = 20
FORMATS = ("cif", "poscar", "csv")


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    for command in (show, export):
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
    bool, typer.Option("--new", help="Leave out compositions that the model was trained on.")
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
) -> None:
    """Show the best candidates of a campaign, complete or not."""
    from screening.rank import select_candidates

    run_folder, ranking = _open_ranking(folder)
    names = _resolve_names(prototype or (), run_folder.prototypes)
    chosen = select_candidates(ranking, containing=containing or (), new=new, prototypes=names)
    shown = chosen.slice(0, top)
    title = f"Top {len(shown)} of {len(chosen):,} candidates"
    if len(chosen) < len(ranking):
        title += f" chosen from {len(ranking):,}"
    print_ranking(run_folder, shown, title)


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
) -> None:
    """Write the best candidates of a campaign as structures to start calculations with.

    Cells have a typical volume, between that of pymatgen's DLSVolumePredictor and the sum of
    atomic volumes: a start for a relaxation.
    """
    from screening.export import ExportFormat, export_candidates
    from screening.manifest import restore_prototype
    from screening.rank import select_candidates

    if form not in FORMATS:
        raise ConfigurationError(
            f'--format "{form}" is none of {", ".join(FORMATS)}{suggest(form, FORMATS)}'
        )
    run_folder, ranking = _open_ranking(folder)
    names = _resolve_names(prototype or (), run_folder.prototypes)
    chosen = select_candidates(
        ranking, containing=containing or (), new=new, prototypes=names, top=top
    )
    target = to or folder / f"export-{form}"
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
    """Replace other names of prototypes by those that the campaign's tables have."""
    from prototypes import list_prototypes

    if all(name in screened for name in given):
        return list(given)
    known = {name.casefold(): record.name for record in list_prototypes() for name in record.names}
    return [name if name in screened else known.get(name.casefold(), name) for name in given]


def _open_ranking(path: Path) -> tuple[RunFolder, pa.Table]:
    """Return the ranking of a campaign; of its finished shards if it is not complete."""
    from screening.folder import RunFolder
    from screening.rank import rank_candidates

    folder = RunFolder.open(path)
    if folder.ranking_path.is_file():
        return folder, folder.read_ranking()
    finished = folder.read_receipts(folder.shards)
    if not finished:
        raise ConfigurationError(
            f"no shard of {path} is finished yet; wait, or run its command again to go on"
        )
    if len(finished) < len(folder.shards):
        done = sum(receipt.candidates for receipt in finished)
        say(
            f"incomplete: ranks are among the {done:,} of {folder.manifest['counts']['total']:,} "
            "candidates whose shards are finished; go on with: screening run "
            f"{path / 'campaign.toml'}"
        )
    tables = [folder.table_path(receipt.shard) for receipt in finished]
    return folder, rank_candidates(tables, folder.prototypes)[0]
