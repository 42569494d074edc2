"""Where a campaign stands, for people: a line, and a screen that a rich console draws.

Names and reasons may come from a user's files: nothing in them steers the terminal or is read as
markup.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from screening.printing import count_things, make_printable
from screening.status import State
from screening.terminal import format_probability

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from screening.status import BestRow, CampaignStatus

MOST_LINES: Final = 6
"""Workers, reasons and quarantined shards that a screen shows of each."""

LONGEST_REASON: Final = 120
"""Characters of a reason in a table."""

BAR_WIDTH: Final = 50
"""Width of the bar."""

NUMBERS_OF_WORKERS: Final = 42
"""Width of the numbers in the table of workers, gaps included."""

BESIDE: Final = 72
"""Width from which the funnel and the stages find room beside each other."""

_STYLES: Final = {
    State.RUNNING: "bold cyan",
    State.COMPLETE: "bold green",
    State.INTERRUPTED: "bold yellow",
    State.STOPPED: "bold red",
    State.UNKNOWN: "bold yellow",
}


def write_line(text: str) -> str:
    r"""Return text as one line that steers no terminal.

    >>> write_line("B2\x1b[31m\nred")
    'B2\\u001b[31m red'
    """
    return make_printable(" ".join(text.splitlines()))


def format_seconds(seconds: float) -> str:
    """Return a time in the two units that matter.

    >>> [format_seconds(each) for each in (0.4, 75, 7_500, 100_000)]
    ['0.4 s', '1 min 15 s', '2 h 05 min', '1 d 03 h']
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"
    return f"{whole // 86_400:,} d {whole % 86_400 // 3_600:02d} h"


def format_rate(rate: float) -> str:
    """Return a rate of candidates, with decimals where it is small.

    >>> format_rate(12_345.6), format_rate(0.25)
    ('12,346 candidates/s', '0.25 candidates/s')
    """
    return f"{rate:,.0f} candidates/s" if rate >= 10 else f"{rate:.2g} candidates/s"


def format_memory(memory: int) -> str:
    """Return an amount of memory, such as ``1.2 GiB``."""
    return f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB"


def describe_progress(status: CampaignStatus) -> str:
    """Say in one line how far a campaign is, with the rate and the time that is left."""
    if status.competitor_tasks_done < status.competitor_tasks and not status.enumerated:
        return (
            f"competing phases: {status.competitor_tasks_done:,} of {status.competitor_tasks:,} "
            "tasks"
        )
    parts = [f"{status.enumerated:,} of {status.total:,} candidates"]
    if status.candidates_per_second is not None:
        parts.append(format_rate(status.candidates_per_second))
    if status.enumerated >= status.total and status.elapsed_seconds is not None:
        parts.append(f"in {format_seconds(status.elapsed_seconds)}")
    elif status.seconds_left is not None:
        parts.append(f"{format_seconds(status.seconds_left)} left")
    return ", ".join(parts)


def describe_outcome(status: CampaignStatus) -> str:
    """Say in one line what came out so far: scored, failed, quarantined, and the best row."""
    parts = [f"{status.scored:,} scored"]
    if status.failed:
        parts.append(f"{status.failed:,} failed")
    if status.shards_quarantined:
        parts.append(f"{count_things(status.shards_quarantined, 'shard')} quarantined")
    if status.best:
        parts.append(f"best so far {describe_row(status.best[0])}")
    return ", ".join(parts)


def describe_row(row: BestRow) -> str:
    """Say in a few words what a row of the ranking is: formula, prototype and why it is good."""
    energy = row.energy_above_hull_ev_per_atom
    if energy is None:
        enthalpy = row.formation_enthalpy_ev_per_atom
        worth = "" if enthalpy is None else f", {enthalpy:.3f} eV/atom"
    else:
        worth = f", {energy:+.3f} eV/atom above hull"
    stable = "" if row.p_stable is None else f", p stable {format_probability(row.p_stable)}"
    return f"{write_line(row.formula)} ({write_line(row.prototype)}{worth}{stable})"


def describe_state(status: CampaignStatus) -> str:
    """Say in one line what a campaign does and who runs it."""
    driver = status.driver
    whose = "" if driver is None else f"process {driver.pid} on {write_line(driver.host)}"
    if status.state is State.UNKNOWN:
        return (
            f"unknown: {whose or 'a process'} holds the folder, but whether it still runs cannot "
            "be told from here"
        )
    if driver is None:
        return {
            State.COMPLETE: "complete",
            State.INTERRUPTED: "interrupted; the same command goes on with it",
        }.get(status.state, "stopped before it was complete; the same command goes on with it")
    running = (
        "" if status.elapsed_seconds is None else f" ({format_seconds(status.elapsed_seconds)})"
    )
    return f"{status.state}: {whose}, since {write_line(driver.since)}{running}"


class StatusScreen:
    """One screen that says where a campaign stands, fitted to the width of the console.

    Args:
        status: Where it stands.
        title: What the campaign is called, its folder for instance.
    """

    def __init__(self, status: CampaignStatus, title: str) -> None:
        self._status = status
        self._title = title

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status = self._status
        yield Text.assemble(
            (write_line(self._title), "bold"),
            f"  {write_line(', '.join(status.prototypes))}",
            overflow="ellipsis",
            no_wrap=True,
        )
        yield Text(describe_state(status), style=_STYLES[status.state])
        shards = f"{status.shards_done:,} of {count_things(status.shards, 'shard')}"
        yield Text(f"{describe_progress(status)}; {shards}")
        if console.is_terminal:
            yield self._draw_bar()
        yield ""
        funnel, stages = self._draw_funnel(), self._draw_stages()
        if not status.stages:
            yield funnel
        elif options.max_width >= BESIDE:
            beside = Table.grid(padding=(0, 4, 0, 0))
            beside.add_row(funnel, stages)
            yield beside
        else:
            yield Group(funnel, "", stages)
        for part in self._draw_lists(options.max_width):
            yield ""
            yield part

    def _draw_bar(self) -> Table:
        done, total = self._status.enumerated, max(1, self._status.total)
        bar = Table.grid(padding=(0, 1, 0, 0))
        bar.add_row(ProgressBar(total, done, width=BAR_WIDTH), f"{100 * done // total} %")
        return bar

    def _draw_funnel(self) -> Table:
        status = self._status
        table = _open_table("candidates", "")
        rows = [
            ("enumerated", status.enumerated, True),
            ("removed by conditions", status.removed, status.removed > 0),
            ("featurized", status.featurized, True),
            ("scored", status.scored, True),
            ("failed", status.failed, True),
            ("scored, not kept", status.dropped, status.dropped > 0),
            ("on the hull or below", status.below_hull, status.has_hull),
            ("p stable at least 0.5", status.probable, status.has_probability),
        ]
        for name, count, shown in rows:
            if shown:
                alarming = name == "failed" and count > 0
                table.add_row(name, Text(f"{count:,}", style="red" if alarming else ""))
        return table

    def _draw_stages(self) -> Table:
        table = _open_table("stage", "worker seconds", "candidates/s")
        for name, stage in self._status.stages.items():
            rate = stage.candidates_per_worker_second
            table.add_row(
                Text(write_line(name)),
                f"{stage.worker_seconds:,.1f}",
                "-" if rate is None else f"{rate:,.0f}",
            )
        return table

    def _draw_lists(self, width: int) -> Iterator[RenderableType]:
        status = self._status
        if status.best:
            yield self._draw_best()
        if status.workers:
            yield self._draw_workers(width)
        reason = max(20, min(width - 20, LONGEST_REASON))
        if status.reasons:
            table = _open_table("failed because", "candidates")
            for text, count in islice(status.reasons.items(), MOST_LINES):
                table.add_row(Text(_shorten(text, reason)), f"{count:,}")
            yield Group(table, *_say_more(len(status.reasons), "reasons"))
        if status.quarantined:
            table = _open_table("quarantined shard", "because")
            table.columns[1].justify = "left"
            for number, text in islice(status.quarantined.items(), MOST_LINES):
                table.add_row(f"{number}", Text(_shorten(text, reason)))
            yield Group(table, *_say_more(status.shards_quarantined, "shards"))

    def _draw_best(self) -> Table:
        status = self._status
        several = len(status.prototypes) > 1
        on_hull = any(row.energy_above_hull_ev_per_atom is not None for row in status.best)
        headers = ["", "best so far" if status.state is State.RUNNING else "best"]
        headers += ["prototype"] * several
        headers += ["above hull", "p stable"] * on_hull + ["ΔHf"]
        table = _open_table(*headers)
        for column in table.columns[: 2 + several]:
            column.justify = "left"
        for place, row in enumerate(status.best, start=1):
            cells = [f"{place}", write_line(row.formula)]
            cells += [_shorten(row.prototype, 24)] * several
            if on_hull:
                cells += [_write_hull(row), format_probability(row.p_stable)]
            table.add_row(*map(Text, cells), _write(row.formation_enthalpy_ev_per_atom))
        return table

    def _draw_workers(self, width: int) -> RenderableType:
        workers = self._status.workers
        with_memory = any(each.memory_bytes is not None for each in workers)
        table = _open_table(
            "worker", "host", "device", "candidates", "candidates/s", *["memory"] * with_memory
        )
        for column in table.columns[:3]:
            column.justify = "left"
            column.max_width = max(6, (width - NUMBERS_OF_WORKERS) // 3)
        for each in workers[:MOST_LINES]:
            rate, memory = each.candidates_per_second, each.memory_bytes
            cells = [
                write_line(each.name),
                write_line(each.host),
                write_line(each.device or "-"),
                f"{each.candidates:,}",
                "-" if rate is None else f"{rate:,.0f}",
            ]
            if with_memory:
                cells.append("gone" if memory is None else format_memory(memory))
            table.add_row(*map(Text, cells))
        return Group(table, *_say_more(self._status.workers_seen, "workers"))


def _open_table(*headers: str) -> Table:
    """Open a table whose first column is aligned to the left and the others to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, header in enumerate(headers):
        table.add_column(
            Text(header),
            justify="right" if number else "left",
            overflow="ellipsis",
            no_wrap=True,
        )
    return table


def _say_more(count: int, what: str) -> Iterator[Text]:
    """Say how many are not shown."""
    if count > MOST_LINES:
        yield Text(f"and {count - MOST_LINES:,} more {what}", style="dim")


def _shorten(text: str, width: int) -> str:
    text = write_line(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _write(energy: float | None) -> str:
    return "-" if energy is None else f"{energy:.3f}"


def _write_hull(row: BestRow) -> str:
    energy, std = row.energy_above_hull_ev_per_atom, row.energy_above_hull_std_ev_per_atom
    return _write(energy) if energy is None or std is None else f"{energy:.3f} ± {std:.3f}"
