"""Parts of reports and what stands in their cells: names of models, figures, settings, times."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from irnet import Architecture
from irnet.baselines import BASELINES
from irnet.metrics import Interval
from screening.benchmark.data import UNITS
from screening.benchmark.paper import DEPTHS, KINDS
from screening.benchmark.summary import Measured, Summary, show_number, show_value
from screening.benchmark.trial import HELD_OUT, Trial
from screening.dataset import DEFAULT_TARGET

MISSING: Final = "missing"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"

KIND_TITLES: Final = {"plain": "plain", "srnet": "SRNet", "irnet": "IRNet"}

STRUCTURE_TITLES: Final = {
    "perov_Pnma": "Pnma perovskite",
    "perov_cubic": "cubic perovskite",
    "all": "all structures",
}

EVALUATION_PREFIX: Final = "eval/"
"""Of test groups ``eval/<kind>/<geometry>[/<part>]``."""

Table = list[list[str]]


@dataclass(frozen=True)
class Plot:
    """A plot of a report.

    Attributes:
        file: Its name.
        svg: Its content.
        title: What it shows.
    """

    file: str
    svg: str
    title: str


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: Its heading.
        text: What stands above the table, as Markdown.
        table: Header and rows, plain text; empty for none.
        plots: What is drawn of it.
    """

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    plots: Sequence[Plot] = ()


@dataclass(frozen=True)
class NetworkParts:
    """What an architecture is made of, in the words of the paper's figures.

    Attributes:
        kind: "plain", "srnet" or "irnet", by where shortcuts stand; "mixed" where blocks differ.
        depth: Fully connected layers, the output counted.
        norm: Where batch norm stands: "before" or "after" the activation, "none", or "mixed".
        has_dropout: Whether there is dropout.
        is_standard: Whether it is one of the networks of Table 2.
    """

    kind: str
    depth: int
    norm: str
    has_dropout: bool
    is_standard: bool


def read_network(trial: Trial) -> NetworkParts:
    """Return what the network of a trial is made of.

    Raises:
        irnet.errors.ArchitectureError: Its model is no architecture.
    """
    activation = str(dict(trial.changes).get("activation", "relu"))
    network = Architecture.parse(trial.model, activation)
    kind = _name_all(
        {"none": "plain", "block": "srnet", "layer": "irnet"}[block.shortcut]
        for block in network.blocks
    )
    is_named = kind in KINDS and network.depth in DEPTHS
    return NetworkParts(
        kind=kind,
        depth=network.depth,
        norm=_name_all(block.norm for block in network.blocks),
        has_dropout=network.has_dropout,
        is_standard=is_named and network == Architecture.parse(f"{kind}-{network.depth}"),
    )


def name_model(trial: Trial) -> str:
    """What a model is called: by its label, as in the paper, or by its architecture string."""
    if trial.label:
        return trial.label
    if trial.kind == "baseline":
        return BASELINES[trial.model].title if trial.model in BASELINES else trial.model
    parts = read_network(trial)
    return f"{KIND_TITLES[parts.kind]}-{parts.depth}" if parts.is_standard else trial.model


def name_apart(trial: Trial, among: Iterable[Summary]) -> str:
    """A model's name, with its recipe where the same name stands for several."""
    name = name_model(trial)
    recipes = {each.trial.recipe for each in among if name_model(each.trial) == name}
    return f"{name}, recipe {trial.recipe}" if len(recipes) > 1 else name


def name_with_data(trial: Trial, among: Sequence[Summary]) -> str:
    """A model's name, with what it was trained on where that differs."""
    name = name_apart(trial, among)
    several = len({each.trial.data for each in among}) > 1
    return f"{name} on {trial.data}" if several else name


def name_group(group: str) -> str:
    """What a test group is called.

    >>> name_group("eval/perov_Pnma/ideal"), name_group("known")
    ('Pnma perovskite, ideal', 'known')
    """
    if not group.startswith(EVALUATION_PREFIX):
        return group
    kind, *others = group.removeprefix(EVALUATION_PREFIX).split("/")
    return ", ".join([STRUCTURE_TITLES.get(kind, kind), *others])


def list_groups(summaries: Iterable[Summary]) -> list[str]:
    """Test groups of any of the models, in the order in which they appear."""
    return list(dict.fromkeys(group for each in summaries for group in each.groups))


def show_measured(summary: Summary, measured: Measured | None) -> str:
    """Write a figure over seeds, ``mean ± deviation (seeds)``, or why there is none."""
    if measured is None:
        return FAILED if summary.failures else MISSING
    planned = len(summary.trials)
    count = f"{measured.seeds} of {planned}" if measured.seeds < planned else str(measured.seeds)
    return f"{show_value(measured.mean, measured.deviation)} ({count})"


def show_error(summary: Summary | None, group: str = HELD_OUT) -> str:
    """Write the mean absolute error on a test group; ``not run`` where no trial asks for it."""
    return NOT_RUN if summary is None else show_measured(summary, summary.mae(group))


def show_bias(summary: Summary, group: str) -> str:
    """Write the mean of predicted minus true on a test group."""
    return show_measured(summary, Measured.of([each.bias for each in summary.errors(group)]))


def show_published(value: float | None) -> str:
    """Write a figure of the paper; empty where it has none."""
    return "" if value is None else show_number(value)


def show_plainly(values: Sequence[float]) -> str:
    """Write mean and deviation over seeds without their number; empty where there are none."""
    measured = Measured.of(values)
    return "" if measured is None else show_value(measured.mean, measured.deviation)


def show_interval(interval: Interval) -> str:
    """Write an error and its interval, where it has one."""
    if math.isnan(interval.low):
        return show_number(interval.value)
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"


def show_seconds(seconds: float) -> str:
    """Write a time in the unit that fits.

    >>> show_seconds(4.25), show_seconds(300), show_seconds(9000)
    ('4.2 s', '5.0 min', '2.5 h')
    """
    if seconds < 0.05:
        return "< 0.1 s"
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_time(summary: Summary) -> str:
    """Write the mean time of a fit; empty where nothing was fitted."""
    seconds = summary.seconds()
    return "" if seconds is None else show_seconds(seconds.mean)


def show_changes(trial: Trial) -> str:
    """Write a network's recipe and the fields that are changed, such as ``paper, epochs=20``."""
    changes = [f"{name}={'none' if value is None else value}" for name, value in trial.changes]
    return ", ".join([*filter(None, [trial.recipe]), *changes])


def show_setting(trial: Trial, *, recipe: bool = False) -> str:
    """Write what trials of a block have in common: data, target, rows, and perhaps the recipe."""
    words = [trial.data]
    if trial.target != DEFAULT_TARGET:
        words.append(trial.target)
    if recipe and trial.recipe:
        words.append(f"recipe {trial.recipe}")
    if trial.train_rows is not None:
        words.append(f"at most {trial.train_rows:,} training rows")
    return ", ".join(words)


def show_rows(summary: Summary) -> str:
    """Write how many rows were trained on."""
    return ", ".join(f"{n:,}" for n in sorted({result.train_rows for result in summary.results}))


def show_epochs(summary: Summary) -> str:
    """Write the epochs that were run and, in brackets, the ones that were kept."""
    ran = [len(result.history) for result in summary.results if result.history]
    if not ran:
        return ""
    figures = [result.figures for result in summary.results]
    best = [round(each["best_epoch"]) + 1 for each in figures if "best_epoch" in each]
    return f"{_show_range(ran)} ({_show_range(best)})" if best else _show_range(ran)


def show_chosen(summary: Summary) -> str:
    """Write the parameters of the first seed's baseline, or a network's recipe."""
    if summary.trial.kind == "network":
        return show_changes(summary.trial)
    if not summary.results:
        return ""
    parameters = summary.results[0].chosen.get("parameters", {})
    return ", ".join(
        f"{name}={f'{value:g}' if isinstance(value, float) else value}"
        for name, value in parameters.items()
    )


def find_unit(summaries: Iterable[Summary]) -> str:
    """Unit of the errors; more than one where the targets differ in it."""
    return ", ".join(sorted({UNITS[each.trial.target] for each in summaries}))


def sort_by_error(summaries: Iterable[Summary], *, worst_first: bool = False) -> list[Summary]:
    """Sort by the error on the held-out rows; those without a result stand last."""

    def order(summary: Summary) -> float:
        measured = summary.mae()
        if measured is None:
            return math.inf
        return -measured.mean if worst_first else measured.mean

    return sorted(summaries, key=order)


def split_by(summaries: Iterable[Summary], key: Callable[[Trial], Hashable]) -> list[list[Summary]]:
    """Put together what has the same key, in the order of appearance."""
    blocks: dict[Hashable, list[Summary]] = {}
    for each in summaries:
        blocks.setdefault(key(each.trial), []).append(each)
    return list(blocks.values())


def number_file(name: str, number: int) -> str:
    """Name of a plot's file, the same as ever for the first of several blocks.

    >>> number_file("depth", 0), number_file("depth", 1)
    ('depth.svg', 'depth-2.svg')
    """
    return f"{name}-{number + 1}.svg" if number else f"{name}.svg"


def _name_all(values: Iterable[str]) -> str:
    found = set(values)
    return found.pop() if len(found) == 1 else "mixed"


def _show_range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
