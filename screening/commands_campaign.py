"""Commands about campaigns: run, show, export, prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.errors import ConfigurationError, InputDataError, suggest

if TYPE_CHECKING:
    import pyarrow as pa

    from prototypes import PrototypeRecord
    from screening.folder import RunFolder

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")
FORMATS = ("cif", "poscar", "csv")
BUILT_IN = ("B2", "L1_0", "perovskite", "cubic_perovskite")
DEFAULT_TOP = 20
ROWS_IN_FULL = 10
"""Prototypes up to which the list shows whole sources."""


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    for command in (run, show, export, prototypes):
        app.command()(command)


def complete_from(names: Sequence[str], incomplete: str) -> list[str]:
    """Return the names that begin as what was typed, for shell completion."""
    return [name for name in names if name.casefold().startswith(incomplete.casefold())]


def complete_prototype(incomplete: str) -> list[str]:
    """Complete the name of a built-in prototype."""
    return complete_from(BUILT_IN, incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Complete a device."""
    return complete_from(DEVICES, incomplete)


def complete_precision(incomplete: str) -> list[str]:
    """Complete a precision."""
    return complete_from(PRECISIONS, incomplete)


def complete_format(incomplete: str) -> list[str]:
    """Complete an export format."""
    return complete_from(FORMATS, incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Complete the name of a bundled model."""
    from screening.model_library import list_models

    return complete_from(["default", *(folder.name for folder in list_models())], incomplete)


FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Result folder of a campaign.", show_default=False)
]
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


def run(
    campaign: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CAMPAIGN.toml]",
            help="Settings from a file, with the same keys as the options; options win.",
            show_default=False,
        ),
    ] = None,
    prototype: Annotated[
        list[str] | None,
        typer.Option(
            "--prototype",
            "-p",
            help="Prototype by name, AFLOW label, Strukturbericht symbol or mineral, or a CIF; "
            "repeat for several.",
            autocompletion=complete_prototype,
        ),
    ] = None,
    elements: Annotated[
        list[str] | None,
        typer.Option(
            "--elements",
            "-e",
            metavar="[ROLE=]POOL",
            help="Elements for all roles or for one: default, all89, lanthanides, Li,Na,K, "
            "default,-O or X=O,S,F; repeatable.",
            show_default="default",
        ),
    ] = None,
    roles: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL=ROLE,...",
            help="Roles of the elements or site labels of a CIF, such as Ca=A,Ti=B,O=X.",
            show_default="A, B, X, ... by electronegativity",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Bundled model or model folder.",
            autocompletion=complete_model,
            show_default="default",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Result folder.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Local Dask workers; 0 computes in this process.",
            show_default="one per GPU if there are any, else one per core",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A running Dask scheduler, instead of local workers."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to compute: auto, cpu or cuda.",
            autocompletion=complete_device,
            show_default="auto",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Arithmetic of the networks: auto, bf16 or fp32.",
            autocompletion=complete_precision,
            show_default="auto",
        ),
    ] = None,
    shard_size: Annotated[
        int | None,
        typer.Option(min=1, help="Indices per task and Parquet shard.", show_default="32768"),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", "-n", min=1, help="Rows of the table.", show_default="20"),
    ] = None,
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

    from screening.campaign import run_campaign  # loads torch: not for a misspelt name
    from screening.terminal import CampaignProgress

    with CampaignProgress() as progress:
        result = run_campaign(settings, spaces, pools, progress)
    total = len(result.ranking)
    shown = result.ranking.slice(0, settings.top)
    _print_ranking(result.folder, shown, f"Top {len(shown)} of {total:,} candidates")
    if len(result.failures):
        reason = result.failures["reason"][0].as_py()
        _say(
            f"{len(result.failures):,} candidates could not be scored (the first: {reason}); "
            f"all of them are in {settings.out / 'failures.parquet'}"
        )
    _say(f"{settings.out}: ranking.parquet, ranking.csv; export structures with: "
         f"screening export {settings.out}")  # fmt: skip


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
    _print_ranking(run_folder, shown, title)


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
        _say(
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


def prototypes(
    search: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORD]", help="Only those with this in a name.", show_default=False
        ),
    ] = None,
    built_in: Annotated[
        bool, typer.Option("--built-in", help="Only those that come with the program.")
    ] = False,
) -> None:
    """List the prototypes that can be screened, with their sources."""
    from prototypes import list_prototypes

    records = [
        record
        for record in list_prototypes(aflow=not built_in)
        if not record.is_element
        and (search is None or search.casefold() in " ".join(_names(record)).casefold())
    ]
    if not records:
        raise ConfigurationError(
            f'no prototype has "{search}" in a name; list all with: screening prototypes'
        )
    exact = [
        record
        for record in records
        if search is not None and search.casefold() in map(str.casefold, _names(record))
    ]
    in_full = records if len(records) <= ROWS_IN_FULL else exact
    if in_full:
        typer.echo("\n\n".join(map(_describe_prototype, in_full)))
    records = [record for record in records if record not in in_full]
    if not records:
        return
    if in_full:
        typer.echo(f'\nalso with "{search}" in a name:')
    rows = [("name", "formula", "sites", "Strukturbericht", "mineral")]
    rows += [
        (
            record.name,
            record.formula,
            str(record.sites),
            record.strukturbericht or "-",
            record.mineral or "-",
        )
        for record in records
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip())
    _say("roles and sources of some of them: screening prototypes WORD")


def _describe_prototype(record: PrototypeRecord) -> str:
    """Return a paragraph about one prototype."""
    roles = ", ".join(f"{role} (here {element})" for role, element in record.roles)
    names = [name for name in dict.fromkeys(_names(record)) if name != record.name]
    lines = [
        f"{record.name}: {record.formula}, {record.sites} sites",
        f"  roles: {roles}",
        *([f"  also called: {', '.join(names)}"] if names else []),
        f"  source: {record.source}",
    ]
    return "\n".join(lines)


def _names(record: PrototypeRecord) -> tuple[str, ...]:
    names = (record.name, record.aflow_label, record.strukturbericht, record.mineral)
    return tuple(name for name in names if name)


def _resolve_names(given: Sequence[str], screened: Sequence[str]) -> list[str]:
    """Replace other names of prototypes by those that the campaign's tables have."""
    from prototypes import list_prototypes

    if all(name in screened for name in given):
        return list(given)
    known = {
        name.casefold(): record.name for record in list_prototypes() for name in _names(record)
    }
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
        _say(
            f"incomplete: ranks are among the {done:,} of {folder.manifest['counts']['total']:,} "
            "candidates whose shards are finished; go on with: screening run "
            f"{path / 'campaign.toml'}"
        )
    tables = [folder.table_path(receipt.shard) for receipt in finished]
    return folder, rank_candidates(tables, folder.prototypes)[0]


def _print_ranking(folder: RunFolder, rows: pa.Table, title: str) -> None:
    from screening.terminal import describe_intervals, draw_ranking, open_stdout, warn_of_bias

    open_stdout().print(draw_ranking(rows, title))
    model = folder.manifest["model"]
    for line in warn_of_bias(model["measured_errors"]):
        _say(line)
    for line in describe_intervals(model["intervals"], model["name"]):
        _say(line)


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)
