"""The progress of a campaign on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from screening.folder import Receipt

SECONDS_BETWEEN_LINES: Final = 5.0
"""Time between two lines of progress where stderr is no terminal."""

MOST_SYMBOLS: Final = 20
"""Elements of a pool that are named."""


class CampaignProgress:
    """Draws the progress of a campaign: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._row: TaskID | None = None
        self._of_competitors: TaskID | None = None
        self._competitors = self._predicted = 0
        self._total = self._done = self._computed = 0
        self._started = self._spoken = time.monotonic()

    def __enter__(self) -> CampaignProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(
        self, counts: Mapping[str, int], pools: Mapping[str, tuple[int, ...]], done: int
    ) -> None:
        """Say how many candidates there are, of what, and start with `done` of them finished."""
        self._total, self._done = sum(counts.values()), done
        self._started = self._spoken = time.monotonic()
        each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        self._say(f"{self._total:,} candidates: {each}")
        for line in describe_pools(pools):
            self._say(line)
        if done:
            self._say(f"going on: {done:,} of {self._total:,} candidates are finished already")
        self._bar.start()
        self._row = self._bar.add_task(
            "candidates", total=self._total, completed=done, rate="- candidates/s"
        )

    def note(self, sentence: str) -> None:
        """Say something."""
        self._say(sentence)

    def watch_at(self, dashboard: str) -> None:
        """Say where the Dask dashboard is; time before the workers were there does not count."""
        self._say(f"dashboard: {dashboard}")
        self._started = time.monotonic()

    def begin_competitors(self, counts: Mapping[str, int], left: int, tasks: int) -> None:
        """Say which competing phases are predicted first, `left` of so many tasks still to do."""
        self._competitors, self._predicted = tasks, tasks - left
        self._say(
            f"competing phases to predict first: {sum(counts.values()):,} of {len(counts)} "
            "structure types"
        )
        self._of_competitors = self._bar.add_task(
            "competing phases", total=tasks, completed=tasks - left, rate=""
        )

    def advance_competitors(self) -> None:
        """Count a finished task of competing phases; candidates begin after the last."""
        self._predicted += 1
        self._started = time.monotonic()
        if self._of_competitors is not None:
            self._bar.update(self._of_competitors, completed=self._predicted)
        if self._speaks(last=self._predicted == self._competitors):
            self._say(f"competing phases: {self._predicted:,} of {self._competitors:,} tasks")

    def advance(self, receipt: Receipt) -> None:
        """Count the candidates of a finished shard."""
        self._done += receipt.enumerated
        self._computed += receipt.enumerated
        rate = self._computed / max(time.monotonic() - self._started, 1e-9)
        if self._row is not None:
            self._bar.update(self._row, completed=self._done, rate=f"{rate:,.0f} candidates/s")
        if not self._speaks(last=self._done == self._total and receipt.enumerated > 0):
            return
        left = (self._total - self._done) / max(rate, 1e-9)
        self._say(
            f"{self._done:,} of {self._total:,} candidates, {rate:,.0f} candidates/s, "
            f"{left:,.0f} s left"
        )

    def _speaks(self, last: bool) -> bool:
        """Say whether it is time for a line of progress, which the last step always is."""
        now = time.monotonic()
        if self._live or (now - self._spoken < SECONDS_BETWEEN_LINES and not last):
            return False
        self._spoken = now
        return True

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, soft_wrap=True, markup=False)


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
