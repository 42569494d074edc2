"""The progress of a campaign on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from screening.printing import count_things
from screening.status_screen import describe_outcome, describe_progress, write_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from screening.enumerate import Shard
    from screening.status import CampaignStatus

SECONDS_BETWEEN_LINES: Final = 5.0
"""Time between two lines of progress where stderr is no terminal."""

MOST_SECONDS_BETWEEN_LINES: Final = 60.0
"""The same in a campaign that takes hours: a line for every twentieth of the time so far."""

MOST_SYMBOLS: Final = 20
"""Elements of a pool that are named."""


class CampaignProgress:
    """Draws the progress of a campaign: a bar on a terminal, plain lines elsewhere.

    Args:
        quiet: Say nothing but what the user must know.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._bar = _Bar(
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._live,
        )
        self._row: TaskID | None = None
        self._of_competitors: TaskID | None = None
        self._competitors = self._predicted = 0
        self._began = self._spoken = time.monotonic()

    def __enter__(self) -> CampaignProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(
        self, counts: Mapping[str, int], pools: Mapping[str, tuple[int, ...]], done: int
    ) -> None:
        """Say how many candidates there are, of what, and start with `done` of them finished."""
        total = sum(counts.values())
        self._began = self._spoken = time.monotonic()
        each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        self._say(f"{count_things(total, 'candidate')}: {each}")
        for line in describe_pools(pools):
            self._say(line)
        if done:
            are = "is" if done == 1 else "are"
            self._say(
                f"going on: {done:,} of {count_things(total, 'candidate')} {are} finished already"
            )
        self._bar.start()
        what = f"{done:,} of {total:,} candidates"
        self._row = self._bar.add_task(what, total=total, completed=done)

    def note(self, sentence: str) -> None:
        """Say something that the user must know."""
        self._print(sentence)

    def watch_at(self, dashboard: str) -> None:
        """Say where the Dask dashboard is."""
        self._say(f"dashboard: {dashboard}")

    def begin_competitors(self, counts: Mapping[str, int], left: int, tasks: int) -> None:
        """Say which competing phases are predicted first, `left` of so many tasks still to do."""
        self._competitors, self._predicted = tasks, tasks - left
        self._say(
            f"competing phases to predict first: {sum(counts.values()):,} of {len(counts)} "
            "structure types"
        )
        self._of_competitors = self._bar.add_task(
            self._describe_competitors(), total=tasks, completed=tasks - left
        )

    def advance_competitors(self) -> None:
        """Count a finished task of competing phases; candidates begin after the last."""
        self._predicted += 1
        what, last = self._describe_competitors(), self._predicted == self._competitors
        if self._of_competitors is not None:
            self._bar.update(
                self._of_competitors, completed=self._predicted, description=what, visible=not last
            )
        if self._speaks(last=last):
            self._say(what)

    def _describe_competitors(self) -> str:
        return f"competing phases: {self._predicted:,} of {self._competitors:,} tasks"

    def lose(self, shard: Shard, reason: str) -> None:
        """Say that a shard failed each time that it was tried, and is set aside."""
        self._print(
            f"shard {shard.number} ({shard.prototype}) is set aside, its candidates count as "
            f"failed, and the others go on: {reason}"
        )

    def advance(self, status: CampaignStatus) -> None:
        """Show where the campaign stands after one more shard."""
        progress, outcome = describe_progress(status), describe_outcome(status)
        if self._row is not None:
            self._bar.update(self._row, completed=status.enumerated, description=progress)
        self._bar.show_below(outcome)
        if self._speaks(last=status.shards_done + status.shards_quarantined == status.shards):
            self._say(f"{progress}; {outcome}")

    def _speaks(self, last: bool) -> bool:
        """Say whether it is time for a line of progress, which the last step always is."""
        now = time.monotonic()
        pause = (now - self._began) / 20
        pause = min(max(pause, SECONDS_BETWEEN_LINES), MOST_SECONDS_BETWEEN_LINES)
        if self._live or (now - self._spoken < pause and not last):
            return False
        self._spoken = now
        return True

    def _say(self, sentence: str) -> None:
        if not self._quiet:
            self._print(sentence)

    def _print(self, sentence: str) -> None:
        for line in sentence.splitlines():
            self._console.print(write_line(line), highlight=False, soft_wrap=True, markup=False)


class _Bar(Progress):
    """Progress with a line of text below the bars."""

    _below: Text | None = None

    def show_below(self, line: str) -> None:
        """Show a line below the bars from now on."""
        self._below = Text(line, style="dim", overflow="ellipsis", no_wrap=True)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self._below is not None:
            yield self._below


def describe_pools(pools: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Say which elements each role may take; for the default pool, what it leaves out.

    Args:
        pools: Atomic numbers of each role.

    Returns:
        One line per pool.
    """
    from prototypes import DEFAULT_POOL, GROUPS, SYMBOLS

    roles: dict[tuple[int, ...], list[str]] = {}
    for role, pool in pools.items():
        roles.setdefault(pool, []).append(role)
    lines = []
    for pool, names in roles.items():
        symbols = [SYMBOLS[number - 1] for number in pool]
        if pool == DEFAULT_POOL:
            what = f"default pool, {GROUPS['default'][0]}"
        elif len(symbols) > MOST_SYMBOLS:
            what = f"{' '.join(symbols[:MOST_SYMBOLS])} ..."
        else:
            what = " ".join(symbols)
        lines.append(f"elements on {', '.join(names)}: {len(pool)} ({what})")
    return lines
