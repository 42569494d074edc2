"""Commands that look at a campaign from another shell: status, watch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from screening.command_parts import FolderArgument, say
from screening.errors import ExitCode
from screening.printing import echo

if TYPE_CHECKING:
    from screening.status import CampaignStatus

SECONDS_TO_TELL = 3.0
"""How long `status` looks whether a driver on another machine writes anything."""

SECONDS_BETWEEN_LINES = 5.0
"""Time between two lines of `watch` where its output is no terminal."""

SECONDS_BETWEEN_SAME_LINES = 60.0
"""The same where nothing changed."""

WaitOption = Annotated[
    float,
    typer.Option(
        "--wait", min=0, metavar="SECONDS", help="How long to wait for a campaign to begin there."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="As one JSON document instead of a screen.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: The program.
    """
    for command in (status, watch):
        app.command()(command)


def status(folder: FolderArgument, json: JsonOption = False) -> None:
    """Show where a campaign stands, running or not.

    From any shell that sees the folder, on another machine too.
    """
    from screening.folder import RunFolder
    from screening.status import State, follow_status

    RunFolder.open(folder)
    until = time.monotonic() + SECONDS_TO_TELL
    for found in follow_status(folder):
        if found.state is not State.UNKNOWN or time.monotonic() >= until:
            break
    if json:
        from screening.result_document import write_document

        echo(write_document(found.to_json()))
        return
    _print_screen(folder, found)


def watch(folder: FolderArgument, wait: WaitOption = 30.0) -> None:
    """Watch a campaign until it ends; Ctrl-C ends the watching alone.

    Exit code 0 if it is complete, 7 if it ended before, 130 after Ctrl-C.
    """
    from screening.status import State

    try:
        _await_campaign(folder, wait)
        last = _watch_live(folder) if sys.stdout.isatty() else _watch_in_lines(folder)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"no longer watching {folder}; what runs there goes on") from error
    if last.state is not State.COMPLETE:
        raise typer.Exit(ExitCode.NOT_COMPLETE)


def _await_campaign(folder: Path, seconds: float) -> None:
    """Wait for a folder to become a campaign's.

    Raises:
        ConfigurationError: It did not in time.
    """
    from screening.folder import RunFolder

    until = time.monotonic() + seconds
    said = False
    while not RunFolder(folder).manifest_path.is_file() and time.monotonic() < until:
        if not said:
            said = True
            say(f"no campaign in {folder} yet; waiting {seconds:g} s for one to begin")
        time.sleep(0.2)
    RunFolder.open(folder)


def _watch_live(folder: Path) -> CampaignStatus:
    """Redraw one screen until the campaign ends."""
    from rich.live import Live

    from screening.status import follow_status
    from screening.status_screen import StatusScreen
    from screening.terminal import open_stdout

    with Live(console=open_stdout(), auto_refresh=False) as live:
        for found in follow_status(folder):
            live.update(StatusScreen(found, str(folder)), refresh=True)
    return found


def _watch_in_lines(folder: Path) -> CampaignStatus:
    """Write a line every few seconds, and the whole screen at the end."""
    from screening.status import State, follow_status
    from screening.status_screen import describe_outcome, describe_progress

    spoken, said = float("-inf"), ""
    for found in follow_status(folder):
        line = f"{found.state}: {describe_progress(found)}; {describe_outcome(found)}"
        pause = SECONDS_BETWEEN_LINES if line != said else SECONDS_BETWEEN_SAME_LINES
        going_on = found.state in (State.RUNNING, State.UNKNOWN)
        if going_on and time.monotonic() - spoken >= pause:
            spoken, said = time.monotonic(), line
            echo(line)
    _print_screen(folder, found)
    return found


def _print_screen(folder: Path, found: CampaignStatus) -> None:
    from screening.status_screen import StatusScreen
    from screening.terminal import open_stdout

    open_stdout().print(StatusScreen(found, str(folder)))
