"""Write the generated pages: docs/commands.md and docs/columns.md.

The first comes from the program's own commands and options, the second from the registry of table
columns, `screening/columns.py`. Run it after a change to either, with the
project installed: `python scripts/write_reference.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from screening.cli import app
from screening.columns import column_reference

DOCS = Path(__file__).resolve().parent.parent / "docs"
COMPLETION = {"install_completion", "show_completion"}


def walk_commands(
    name: str, command: TyperCommand | TyperGroup
) -> Iterator[tuple[str, TyperCommand | TyperGroup]]:
    """Yield every command that can be run, with its full name, groups before their members."""
    if not isinstance(command, TyperGroup) or command.invoke_without_command:
        yield name, command
    if isinstance(command, TyperGroup):
        for child, inner in command.commands.items():
            yield from walk_commands(f"{name} {child}", inner)


def name_argument(argument: TyperArgument) -> str:
    """Return an argument as a usage line has it, in brackets if it can be left out."""
    name = argument.metavar or (argument.name or "").upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def describe_option(option: TyperOption) -> str:
    """Return the table row of an option: its names, its help and its default."""
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    notes = []
    if option.required:
        notes.append("required")
    default = option.show_default if isinstance(option.show_default, str) else option.default
    empty = default is None or default is False or default in ("", (), [])
    if not empty and not option.required and not callable(default):
        default = "yes" if default is True else getattr(default, "value", default)
        notes.append(f"default: {default}")
    text = f"{option.help or ''} ({'; '.join(notes)})" if notes else option.help or ""
    return f"| {names} | {text.replace('|', chr(92) + '|')} |"


def describe_command(name: str, command: TyperCommand | TyperGroup) -> list[str]:
    """Return the lines of a command's section."""
    arguments = [p for p in command.params if isinstance(p, TyperArgument)]
    options = [p for p in command.params if isinstance(p, TyperOption) and p.name not in COMPLETION]
    usage = " ".join([name, *(["[OPTIONS]"] if options else [])])
    usage = " ".join([usage, *(name_argument(argument) for argument in arguments)])
    lines = [f"## {name}", "", "```", usage, "```", "", inspect.cleandoc(command.help or ""), ""]
    rows = [f"| `{name_argument(argument)}` | {argument.help or ''} |" for argument in arguments]
    rows += [describe_option(option) for option in options]
    if rows:
        lines += ["| argument or option | meaning |", "|---|---|", *rows, ""]
    return lines


def command_reference() -> str:
    """Return the reference of all commands as Markdown."""
    lines = [
        "# Commands",
        "",
        "Tables go to stdout, progress and messages to stderr. Every command has `--help`;",
        "`screening --install-completion` sets up completion for the shell in use.",
        "",
    ]
    root = typer.main.get_command(app)
    for name, command in walk_commands("screening", root):
        if name != "screening":
            lines += describe_command(name, command)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write both pages."""
    (DOCS / "commands.md").write_text(command_reference(), encoding="utf-8")
    (DOCS / "columns.md").write_text(column_reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
