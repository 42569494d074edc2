"""What the page of campaigns shows, as HTML: the parts of a status, each a panel of its own.

Nothing here knows Dask or Bokeh. All text, names of files and reasons of failures among it, is
escaped; a panel that says the same as before is the same string, which the page then leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite
from typing import Final

from screening.page import build_paragraph, build_table
from screening.status import SILENCE_SECONDS, CampaignStatus, State, WorkerStatus
from screening.status_screen import format_seconds
from screening.terminal import describe_order, format_probability

MOST_WORKERS: Final = 24
"""Workers that are listed; the rest are added up."""

MOST_REASONS: Final = 12
"""Reasons of failures that are listed; the rest are added up."""

MOST_QUARANTINED: Final = 8
"""Quarantined shards that are listed."""

GIB: Final = 2**30
"""Bytes."""

STYLE: Final = """
:host { margin: 0; font-family: Helvetica, Arial, sans-serif; font-size: 14px; line-height: 1.4;
  color: #1b1f24; width: 100%; }
.bk-clearfix { width: 100%; }
h1 { margin: 0; font-size: 22px; line-height: 1.25; overflow-wrap: anywhere; }
h2, caption { margin: 0 0 6px; padding: 0; font-size: 14px; font-weight: 600; color: #1b1f24;
  text-align: left; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.faint, .note { color: #5c6672; }
.note { font-size: 12px; }
.warning { padding: 6px 10px; border-left: 3px solid #b45309; background: #fdf3e3; }
.title { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 12px; }
.badge { padding: 1px 10px; border-radius: 10px; font-size: 13px; color: #fff;
  background: #5c6672; }
.badge.running { background: #2b6ca8; }
.badge.complete { background: #2e7d4f; }
.badge.interrupted, .badge.silent { background: #b45309; }
.badge.stopped { background: #b3261e; }
.progress { height: 10px; margin: 10px 0 8px; border-radius: 5px; background: #e3e7ec;
  overflow: hidden; }
.progress > div { height: 100%; background: #2b6ca8; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(110px, 1fr));
  gap: 6px 16px; }
.figures .value { font-size: 19px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures .label { font-size: 12px; color: #5c6672; }
.funnel { display: grid; grid-template-columns: max-content 1fr max-content max-content;
  gap: 5px 10px; align-items: center; font-variant-numeric: tabular-nums; }
.funnel .step { display: contents; }
.funnel .track { height: 14px; border-radius: 2px; background: #eef1f4; }
.funnel .bar { height: 100%; border-radius: 2px; background: #2b6ca8; }
.funnel .loss .bar { background: #b8793a; }
.funnel .find .bar { background: #2e7d4f; }
.funnel .count, .funnel .share { text-align: right; white-space: nowrap; }
.funnel .share { color: #5c6672; }
.wide { overflow-x: auto; }
.wide + .wide, p + .wide { margin-top: 14px; }
table { width: 100%; border-collapse: collapse; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid #e3e7ec; }
th { font-weight: 600; font-size: 12px; color: #5c6672; white-space: normal;
  vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
.words { text-align: left; white-space: normal; }
td.words { min-width: 7em; overflow-wrap: anywhere; }
"""
"""CSS of every panel; it applies inside the panels alone."""

_STATES: Final = {
    State.RUNNING: "running",
    State.COMPLETE: "complete",
    State.INTERRUPTED: "interrupted",
    State.STOPPED: "stopped",
    State.UNKNOWN: "unknown",
}

Histogram = tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]
"""Left ends and right ends of the bars, eV/atom, and candidates in each."""


@dataclass(frozen=True)
class ProcessMemory:
    """Memory of a process as the scheduler sees it.

    Attributes:
        used_bytes: Memory in use.
        limit_bytes: Memory that it may use; None where there is no limit.
    """

    used_bytes: int
    limit_bytes: int | None = None


@dataclass(frozen=True)
class ClusterMemory:
    """Memory as the scheduler sees it.

    Attributes:
        scheduler: The scheduler's own process.
        workers: The connected workers, by name.
    """

    scheduler: ProcessMemory
    workers: Mapping[str, ProcessMemory]


def build_heading(status: CampaignStatus, silent_seconds: float) -> str:
    """Say which campaign it is, what it does, how far it is and how long it will take.

    Args:
        status: Where it stands.
        silent_seconds: Time since its driver was last heard of.
    """
    silent = status.state is State.RUNNING and silent_seconds >= SILENCE_SECONDS
    state = "silent" if silent else _STATES[status.state]
    done = status.enumerated / status.total if status.total else 1.0
    parts = [
        f'<div class="title"><h1>{escape(status.campaign)}</h1>'
        f'<span class="badge {state}">{state}</span></div>',
        build_paragraph(_describe_origin(status), faint=True),
    ]
    if silent:
        parts.append(_warn_of_silence(status, silent_seconds))
    if status.competitor_tasks_done < status.competitor_tasks:
        parts.append(
            build_paragraph(
                "Competing phases are predicted first: "
                f"{status.competitor_tasks_done:,} of {status.competitor_tasks:,} tasks are done."
            )
        )
    parts.append(f'<div class="progress"><div style="width: {100 * done:.2f}%"></div></div>')
    shards = f"{status.shards_done:,} of {status.shards:,}"
    figures = {
        "progress": (f"{_floor_percent(done)} %", "of all candidates"),
        "rate": (_format_rate(status.candidates_per_second), "candidates/s"),
        "left": (_format_seconds(status.seconds_left), "left"),
        "elapsed": (_format_seconds(status.elapsed_seconds), "elapsed"),
        "shards": (shards, "shards"),
    }
    cells = "".join(
        f'<div data-figure="{name}"><div class="value">{escape(value)}</div>'
        f'<div class="label">{escape(label)}</div></div>'
        for name, (value, label) in figures.items()
    )
    parts.append(f'<div class="figures">{cells}</div>')
    return "".join(parts)


def build_funnel(status: CampaignStatus) -> str:
    """Draw how many candidates are left after each step, and how many were lost where."""
    steps = [
        ("total", "Candidates", status.total, ""),
        ("enumerated", "Enumerated", status.enumerated, ""),
        ("removed", "Removed by conditions", status.removed, "loss"),
        ("featurized", "Featurized", status.featurized, ""),
        ("failed", "Failed", status.failed, "loss"),
        ("scored", "Scored", status.scored, ""),
        ("dropped", "Scored, not kept", status.dropped, "loss"),
    ]
    if status.has_hull:
        steps.append(("below_hull", "On or below the hull", status.below_hull, "find"))
    if status.has_probability:
        steps.append(("probable", "Probably stable (p ≥ 0.5)", status.probable, "find"))
    rows = []
    for name, label, count, kind in steps:
        share = count / status.total if status.total else 0.0
        width = max(100 * share, 0.5) if count else 0.0
        rows.append(
            f'<div class="step {kind}" data-step="{name}"><span>{escape(label)}</span>'
            f'<div class="track"><div class="bar" style="width: {width:.2f}%"></div></div>'
            f'<span class="count">{count:,}</span>'
            f'<span class="share">{_format_share(share)}</span></div>'
        )
    return f'<h2>Funnel, candidates</h2><div class="funnel">{"".join(rows)}</div>'


def build_best(status: CampaignStatus) -> str:
    """Build the table of the best candidates so far."""
    so_far = "" if status.state is State.COMPLETE else " so far"
    if not status.best:
        return f"<h2>Best{so_far}</h2>" + build_paragraph("Nothing is scored yet.", faint=True)
    head = ["", "Formula", "Prototype", "Formation enthalpy, eV/atom"]
    head += ["Energy above hull, eV/atom", "Probability of being stable"]
    rows = [
        [
            str(place),
            row.formula,
            row.prototype,
            _format_energy(row.formation_enthalpy_ev_per_atom),
            _format_energy(
                row.energy_above_hull_ev_per_atom, row.energy_above_hull_std_ev_per_atom
            ),
            "" if row.p_stable is None else format_probability(row.p_stable),
        ]
        for place, row in enumerate(status.best, start=1)
    ]
    caption = f"Best {len(rows)}{so_far}"
    order = describe_order(status.ranked_by, status.ranked_by)
    table = build_table([head, *rows], caption, words=("Formula", "Prototype"))
    return table + f'<p class="note">{escape(order)}</p>'


def build_stages(status: CampaignStatus) -> str:
    """Build the table of stages: time spent in them, and candidates/s."""
    if not status.stages:
        return "<h2>Stages</h2>" + build_paragraph("No shard is finished yet.", faint=True)
    head = ["Stage", "Time of all workers", "Candidates/s for each worker"]
    rows = [
        [
            name,
            _format_seconds(stage.worker_seconds),
            _format_rate(stage.candidates_per_worker_second),
        ]
        for name, stage in status.stages.items()
    ]
    return build_table([head, *rows], "Stages", words=("Stage",))


def build_workers(status: CampaignStatus, memory: ClusterMemory) -> str:
    """Build the table of workers: what they computed, how fast, and their memory.

    Args:
        status: Where the campaign stands.
        memory: Memory as the scheduler sees it.
    """
    head = ["Worker", "Host", "Device", "Candidates", "Candidates/s"]
    head += ["Memory as the driver sees it, GiB", "as the scheduler sees it, GiB", "Limit, GiB"]
    rows = []
    for worker in status.workers[:MOST_WORKERS]:
        seen = [memory.workers[worker.name]] if worker.name in memory.workers else []
        names = [worker.name, worker.host, worker.device or "–"]
        rows.append([*names, *_describe_work([worker]), *_describe_memory(seen)])
    if rest := status.workers_seen - len(rows):
        rows.append([f"{rest:,} more", *[""] * 7])
    whole = status.workers if status.workers_seen == len(status.workers) else ()
    seen = list(memory.workers.values())
    rows.append(["All workers", "", "", *_describe_work(whole), *_describe_memory(seen)])
    rows.append(["Dask scheduler", *[""] * 5, *_describe_memory([memory.scheduler])])
    return build_table([head, *rows], "Workers and memory", words=("Worker", "Host", "Device"))


def build_failures(status: CampaignStatus) -> str:
    """Build the tables of failures by reason and of quarantined shards."""
    parts = []
    if status.reasons:
        ordered = sorted(status.reasons.items(), key=lambda each: (-each[1], each[0]))
        rows = [[reason, f"{count:,}"] for reason, count in ordered[:MOST_REASONS]]
        if rest := ordered[MOST_REASONS:]:
            rows.append([f"{len(rest):,} more reasons", f"{sum(c for _, c in rest):,}"])
        head = ["Reason", "Candidates"]
        parts.append(build_table([head, *rows], "Failures by reason", words=("Reason",)))
    else:
        parts.append("<h2>Failures by reason</h2>" + build_paragraph("None.", faint=True))
    if status.shards_quarantined:
        named = sorted(status.quarantined.items())[:MOST_QUARANTINED]
        rows = [[f"{shard:,}", reason] for shard, reason in named]
        if left := status.shards_quarantined - len(named):
            rows.append(["", f"{left:,} more"])
        caption = f"Quarantined shards: {status.shards_quarantined:,}"
        parts.append(build_table([["Shard", "Reason"], *rows], caption, words=("Reason",)))
        parts.append('<p class="note">The same command tries them again.</p>')
    return "".join(parts)


def arrange_histogram(counts: Sequence[int], edges: Sequence[float]) -> Histogram:
    """Return the bars of the histogram of the ensemble's standard deviation.

    Args:
        counts: Candidates in each bin, shape (n,); empty before anything is scored.
        edges: Lower ends of the n bins, eV/atom; the last has no upper end and is drawn as wide as
            the one before.
    """
    right = (*edges[1:], 2 * edges[-1] - edges[-2])
    return tuple(edges), right, tuple(counts) or (0,) * len(edges)


def build_uncertainty(status: CampaignStatus, edges: Sequence[float]) -> str:
    """Say what the histogram of the ensemble's standard deviation shows.

    Args:
        status: Where the campaign stands.
        edges: Lower ends of the bins, eV/atom.
    """
    total = sum(status.std_histogram)
    said = "Nothing is scored yet."
    if total:
        middle = _find_median_bin(status.std_histogram)
        upper = f" to {edges[middle + 1]:.2f}" if middle + 1 < len(edges) else " or more"
        said = (
            f"{total:,} candidates; the median lies at {edges[middle]:.2f}{upper} eV/atom. "
            f"The last bar holds all from {edges[-1]:.2f} eV/atom."
        )
    return f'<h2>Uncertainty of formation enthalpies</h2><p class="note">{said}</p>'


def build_invitation(address: str, unreadable: int) -> str:
    """Say that no campaign has reported yet, and how to start one.

    Args:
        address: Address of the scheduler.
        unreadable: Messages of campaigns that could not be read.
    """
    return (
        "<h1>No campaign yet</h1>"
        + build_paragraph(
            "No campaign has reported to this scheduler. Start one with `screening run` and "
            f"--scheduler {address}; this page shows it by itself."
        )
        + build_notice(unreadable)
    )


def build_notice(unreadable: int) -> str:
    """Say that messages could not be read; nothing if all could.

    Args:
        unreadable: How many.
    """
    if not unreadable:
        return ""
    return (
        f'<p class="warning">{unreadable:,} messages of campaigns could not be read: they come '
        "from another version of screening than the scheduler has. Install the same on both.</p>"
    )


def label_campaign(status: CampaignStatus) -> str:
    """Name a campaign in a list of several."""
    since = "" if status.driver is None else f", since {_format_time(status.driver.since)}"
    return f"{status.campaign} ({_STATES[status.state]}{since})"


def _describe_origin(status: CampaignStatus) -> str:
    names = ", ".join(status.prototypes)
    parts = [f"Prototype {names}" if len(status.prototypes) == 1 else f"Prototypes {names}"]
    if status.driver is not None:
        parts.append(f"driver: process {status.driver.pid} on {status.driver.host}")
    return f"{'; '.join(parts)}; as of {_format_time(status.updated)}"


def _warn_of_silence(status: CampaignStatus, seconds: float) -> str:
    who = "the driver"
    if status.driver is not None:
        who += f" (process {status.driver.pid} on {status.driver.host})"
    return (
        f'<p class="warning">Nothing heard from {escape(who)} for '
        f"{_format_seconds(10 * (seconds // 10))}. If it was killed, the same command goes on "
        "where it stopped.</p>"
    )


def _describe_work(workers: Sequence[WorkerStatus]) -> list[str]:
    if not workers:
        return ["", "", ""]
    rates = [each.candidates_per_second for each in workers]
    memory = [each.memory_bytes for each in workers]
    return [
        f"{sum(worker.candidates for worker in workers):,}",
        _format_rate(_sum(rates)),
        _format_gib(_sum(memory)),
    ]


def _describe_memory(processes: Sequence[ProcessMemory]) -> list[str]:
    used = _sum([each.used_bytes for each in processes])
    return [_format_gib(used), _format_gib(_sum([each.limit_bytes for each in processes]))]


def _sum(amounts: Sequence[float | None]) -> float | None:
    """Return the sum of what is known; None where nothing is."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def _find_median_bin(counts: Sequence[int]) -> int:
    passed, total = 0, sum(counts)
    for number, count in enumerate(counts):
        passed += count
        if 2 * passed >= total:
            return number
    return len(counts) - 1


def _floor_percent(share: float) -> str:
    """Return a share in percent that is 100 only when all is done."""
    return f"{int(1000 * share) / 10:.1f}"


def _format_share(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{100 * share:.1f} %"


def _format_energy(value: float | None, std: float | None = None) -> str:
    if value is None or not isfinite(value):
        return ""
    text = f"{value:.3f}".replace("-", "−")
    return text if std is None else f"{text} ± {std:.3f}"


def _format_rate(rate: float | None) -> str:
    if rate is None:
        return "–"
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _format_gib(amount: float | None) -> str:
    return "" if amount is None else f"{amount / GIB:,.2f}"


def _format_seconds(seconds: float | None) -> str:
    return "–" if seconds is None else format_seconds(seconds)


def _format_time(moment: str) -> str:
    """Return a time of ISO 8601 without the date's T."""
    return moment.replace("T", " ").replace("+00:00", " UTC")
