"""The command that lists prototypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import say
from screening.errors import ConfigurationError, suggest
from screening.printing import echo

if TYPE_CHECKING:
    from prototypes import PrototypeRecord

ROWS_IN_FULL = 10
"""Prototypes up to which the list shows whole sources."""


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: The program.
    """
    app.command()(prototypes)


def prototypes(
    search: Annotated[
        str | None,
        typer.Argument(metavar="WORD", help="Only those with this in a name.", show_default=False),
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
        and (search is None or search.casefold() in " ".join(record.names).casefold())
    ]
    if not records:
        names = {name for each in list_prototypes(aflow=not built_in) for name in each.names}
        raise ConfigurationError(
            f'no prototype has "{search}" in a name{suggest(search or "", names) or ";"} '
            "list all with: screening prototypes"
        )
    exact = [
        record
        for record in records
        if search is not None and search.casefold() in map(str.casefold, record.names)
    ]
    in_full = records if len(records) <= ROWS_IN_FULL else exact
    if in_full:
        echo("\n\n".join(map(_describe_prototype, in_full)))
    records = [record for record in records if record not in in_full]
    if not records:
        return
    if in_full:
        echo(f'\nalso with "{search}" in a name:')
    rows = [("name", "formula", "sites", "Strukturbericht", "mineral", "geometry")]
    rows += [
        (
            record.name,
            record.formula,
            str(record.sites),
            record.strukturbericht or "-",
            record.mineral or "-",
            "doubtful" if record.doubt else "",
        )
        for record in records
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        echo(line.rstrip())
    say("roles, sources and doubts of some of them: screening prototypes WORD")


def _describe_prototype(record: PrototypeRecord) -> str:
    """Return a paragraph about one prototype."""
    roles = ", ".join(f"{role} (here {element})" for role, element in record.roles)
    names = [name for name in dict.fromkeys(record.names) if name != record.name]
    lines = [
        f"{record.name}: {record.formula}, {record.sites} sites",
        f"  roles: {roles}",
        *([f"  also called: {', '.join(names)}"] if names else []),
        f"  source: {record.source}",
        *([f"  doubtful: {record.doubt}; to be safe, give a CIF"] if record.doubt else []),
    ]
    return "\n".join(lines)
