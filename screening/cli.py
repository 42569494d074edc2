"""The program `screening`: its commands, and where all errors end.

Exit codes: 0 fine, 1 unforeseen (a bug, with traceback), 2 wrong usage or configuration, 3 input
data that cannot be used, 4 model missing or damaged, 5 output that cannot be written, 6 workers
or the scheduler lost, 7 a watched campaign ended before it was complete, 130 Ctrl-C.
Only this module and the modules of commands are loaded for `--help`.
"""

from __future__ import annotations

import signal
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import screening
from screening import (
    commands_backtest,
    commands_baselines,
    commands_benchmark,
    commands_calibration,
    commands_campaign,
    commands_models,
    commands_prototypes,
    commands_results,
    commands_structures,
    commands_training,
    commands_watch,
)
from screening.errors import exit_code_of
from screening.printing import echo


class ErrorReportingGroup(TyperGroup):
    """Turns every error raised on purpose into one message on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; see the class."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code = exit_code_of(error)
            if code is None:
                raise
            wanted = isinstance(error, KeyboardInterrupt)
            echo((str(error) or "interrupted") if wanted else f"error: {error}", err=True)
            raise typer.Exit(code) from error


app = typer.Typer(
    name="screening",
    cls=ErrorReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Exit codes: 0 fine, 1 bug, 2 usage or configuration, 3 input data, 4 model, 5 output, "
    "6 workers or scheduler lost, 7 watched campaign not complete or trials failed, "
    "130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"screening {screening.__version__}")
        raise typer.Exit


@app.callback()
def describe(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Screen crystal prototypes with ensembles of IRNets.

    Pick prototypes and elements, get a ranked table of candidate compounds.
    """


commands_campaign.register(app)
commands_watch.register(app)
commands_results.register(app)
commands_prototypes.register(app)
commands_structures.register(app)
commands_training.register(app)
commands_calibration.register(app)
commands_backtest.register(app)
commands_baselines.register(app)
commands_benchmark.register(app)
commands_training.register_page(commands_models.register(app))


def main() -> None:
    """Run the program; SIGTERM, which batch systems send, ends it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    app(prog_name="screening")
