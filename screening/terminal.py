"""What a campaign shows on the terminal: progress on stderr, the top of the ranking on stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from math import isnan
from typing import TYPE_CHECKING, Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pyarrow as pa

    from screening.folder import Receipt

SECONDS_BETWEEN_LINES: Final = 5.0
"""Time between two lines of progress where stderr is no terminal."""

MOST_SYMBOLS: Final = 20
"""Elements of a pool that are named."""

WIDTH_OF_FILES: Final = 120
"""Width of tables that go into a file or a pipe."""


class CampaignProgress:
    """Draws the progress of a campaign: a bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("candidates"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} candidates/s"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._row: TaskID | None = None
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
        self._row = self._bar.add_task("", total=self._total, completed=done, rate="-")

    def note(self, sentence: str) -> None:
        """Say something."""
        self._say(sentence)

    def watch_at(self, dashboard: str) -> None:
        """Say where the Dask dashboard is; time before the workers were there does not count."""
        self._say(f"dashboard: {dashboard}")
        self._started = time.monotonic()

    def advance(self, receipt: Receipt) -> None:
        """Count the candidates of a finished shard."""
        self._done += receipt.candidates
        self._computed += receipt.candidates
        now = time.monotonic()
        rate = self._computed / max(now - self._started, 1e-9)
        if self._row is not None:
            self._bar.update(self._row, completed=self._done, rate=f"{rate:,.0f}")
        finished = self._done == self._total and receipt.candidates > 0
        if self._live or (now - self._spoken < SECONDS_BETWEEN_LINES and not finished):
            return
        self._spoken = now
        left = (self._total - self._done) / max(rate, 1e-9)
        self._say(
            f"{self._done:,} of {self._total:,} candidates, {rate:,.0f} candidates/s, "
            f"{left:,.0f} s left"
        )

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


def open_stdout() -> Console:
    """Return the console for results; wide enough for tables where it is no terminal.

    What stands in brackets is text, such as the ends of an interval.
    """
    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, markup=False)


def draw_ranking(rows: pa.Table, title: str) -> Table:
    """Draw rows of a ranking, known compounds and unseen elements marked.

    The calibrated interval takes the place of the members' spread where there is one.

    Args:
        rows: Rows of a ranking.
        title: Title of the table.

    Returns:
        A rich table.
    """
    sites = [name for name in rows.column_names if name.startswith("site_")]
    used = [name for name in sites if rows[name].null_count < len(rows)]
    calibrated = rows["formation_enthalpy_low_ev_per_atom"].null_count < len(rows)
    legend = (
        "formation enthalpies in eV/atom: IRNet (mean of the members), "
        f"{'[low, high] (calibrated 90 % interval)' if calibrated else '± (their spread)'}, RF "
        "(Random Forest); known: the composition is in the model's training data"
    )
    if any(rows["unseen_elements"].to_pylist()):
        legend += "; unseen X: the element X is not"
    drawn = Table(
        title=title,
        title_justify="left",
        caption=legend,
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("rank", justify="right", no_wrap=True)
    drawn.add_column("formula", no_wrap=True)
    drawn.add_column(" ".join(name.removeprefix("site_") for name in used), overflow="fold")
    drawn.add_column("prototype", overflow="fold")
    drawn.add_column("IRNet", justify="right", no_wrap=True)
    drawn.add_column("90 % interval" if calibrated else "±", justify="right", no_wrap=True)
    drawn.add_column("RF", justify="right", no_wrap=True)
    drawn.add_column("RF\nrank", justify="right", no_wrap=True)
    drawn.add_column("", overflow="fold")
    for row in rows.to_pylist():
        notes = ["known"] if row["known"] else []
        if row["unseen_elements"]:
            notes.append(f"unseen {row['unseen_elements']}")
        drawn.add_row(
            f"{row['rank']:,}",
            row["formula"],
            " ".join(row[name] for name in used if row[name] is not None),
            row["prototype"],
            _written(row["formation_enthalpy_ev_per_atom"]),
            format_interval(
                row["formation_enthalpy_low_ev_per_atom"],
                row["formation_enthalpy_high_ev_per_atom"],
            )
            if calibrated
            else _written(row["formation_enthalpy_std_ev_per_atom"]),
            _written(row["rf_formation_enthalpy_ev_per_atom"]),
            "-" if row["rf_rank"] is None else f"{row['rf_rank']:,}",
            Text(", ".join(notes)),
            style="dim" if row["known"] else None,
        )
    return drawn


def format_interval(low: float | None, high: float | None) -> str:
    """An interval in eV/atom as text, such as ``[-1.40, -1.05]``; ``-`` where there is none."""
    if low is None or high is None or isnan(low) or isnan(high):
        return "-"
    return f"[{low:.2f}, {high:.2f}]"


def describe_intervals(intervals: Mapping[str, Any] | str, model: str) -> list[str]:
    """Say what the intervals of a ranking rest on and how often they held.

    Args:
        intervals: As the manifest has them: how they were fitted and their measured coverage per
            prototype, or why there are none.
        model: The model's name.

    Returns:
        Sentences, one per line.
    """
    if isinstance(intervals, str):
        return [f"model {model}: {intervals}"]
    lines = [
        f"[low, high] are to hold {intervals['level']:.0%} of the energies; they were fitted on "
        f"{intervals['rows']:,} compounds of {intervals['chemical_systems']:,} chemical systems, "
        "predicted without training on them."
    ]
    for prototype, measured in intervals["measured_coverage"].items():
        if measured is not None:
            lines.append(
                f"{prototype}: they held {measured['coverage']:.0%} of {measured['n']} such "
                f"compounds (95 % interval {measured['low']:.0%} to {measured['high']:.0%})"
                f"{_judge_coverage(measured, intervals['level'])}"
            )
    unmeasured = [name for name, each in intervals["measured_coverage"].items() if each is None]
    if unmeasured:
        lines.append(f"{', '.join(unmeasured)}: what they hold there was never measured.")
    return lines


def _judge_coverage(measured: Mapping[str, float], level: float) -> str:
    """End a sentence on measured coverage by saying whether it is what was promised."""
    if measured["high"] < level:
        return f", not {level:.0%}: too narrow here, errors are often larger than they say."
    if measured["low"] > level:
        return f", more than {level:.0%}: wider here than they need be."
    return "."


def warn_of_bias(errors: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Say plainly what a ranking by enthalpy is worth.

    Args:
        errors: For each prototype the model's measured errors, as the manifest has them, or None
            where nothing was measured.

    Returns:
        Sentences, one per line.
    """
    lines = [
        "Warning: formation enthalpy alone is not stability. A compound is stable only if no mix "
        "of competing phases lies lower; these are candidates, not discoveries."
    ]
    for prototype, error in errors.items():
        if error is None:
            continue
        bias = error["bias_ev_per_atom"]
        direction = "too negative (too stable)" if bias < 0 else "too positive"
        lines.append(
            f"{prototype}: against DFT on {error['n']} such compounds the model is off by "
            f"{error['mae_ev_per_atom']:.2f} eV/atom, on average {abs(bias):.2f} eV/atom "
            f"{direction}."
        )
    unmeasured = [prototype for prototype, error in errors.items() if error is None]
    if unmeasured:
        lines.append(f"{', '.join(unmeasured)}: this model's error there was never measured.")
    return lines


def _written(energy: float | None) -> str:
    return "-" if energy is None else f"{energy:.3f}"
