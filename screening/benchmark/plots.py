"""Plots of benchmarks as SVG files: curves of learning, errors against size or depth, dots in rows.

Every plot stands alone, dark on white, with a title and a description in words for those who cannot
see it. What is told apart by colour is told apart by line style and marker too, so that a print in
grey loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from screening.plots import (
    COLOURS,
    INK,
    STYLES,
    WIDTH,
    add_legend,
    dress_axes,
    make_label,
    mark_decades,
    new_figure,
    stand_alone,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")

MOST_EPOCHS: Final = 200
"""Points of a learning curve: of longer ones only every second, third, ... epoch is drawn."""

PANEL_WIDTH, PANEL_HEIGHT = 3.1, 2.5
"""Inches of one of several panels."""

ROW_HEIGHT, ROWS_MARGIN = 0.3, 1.2
"""Inches of a row of dots, and of all that stands above and below the rows."""

CHARACTERS_PER_INCH, SIGN_CHARACTERS = 13, 7
"""Of a legend's labels, about; and how many of them its sign and the gap take."""

LOWEST_ERROR: Final = 1e-6
"""Errors below are drawn at it where the axis is logarithmic."""

LOG_MARGIN: Final = 1.15
"""How far a logarithmic axis goes beyond what is drawn."""

NARROW: Final = 4
"""Ratio of the ends of a logarithmic axis below which its marks are evenly spaced."""

PERCENTILES: Final = 101
"""Quantiles that a distribution of errors is drawn from: at 0, 1, ..., 100 %."""

_LOWEST_SHARE: Final = 1e-3


@dataclass(frozen=True)
class Words:
    """What a plot says besides its marks.

    Attributes:
        name: What the ids in the SVG begin with.
        title: What is shown.
        description: What can be read from it, in sentences.
    """

    name: str
    title: str
    description: str


@dataclass(frozen=True)
class Curve:
    """How one model's error went from epoch to epoch.

    Attributes:
        label: The model.
        test: Error on the test rows after each epoch, for each seed a sequence (epochs,).
        train: Error on the training rows, the same.
    """

    label: str
    test: tuple[tuple[float, ...], ...]
    train: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Series:
    """Points of one model, joined by a line or standing in rows.

    Attributes:
        label: The model.
        x: Where the points stand, (n,): rows, layers, or numbers of rows of dots from 0.
        y: Their values, (n,).
        low: Lower ends of their bars, (n,); NaN for none.
        high: Upper ends, (n,).
        place: Which colour, marker and line style it has: the same number, the same looks.
        published: Whether the values are the paper's: drawn hollow and pale.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    place: int = 0
    published: bool = False


def plot_curves(panels: Mapping[str, Sequence[Curve]], unit: str, words: Words) -> str:
    """Test error (above) and training error (below) over the epochs, a column for each panel.

    Args:
        panels: Curves by the title of their panel; a model has the same place in each.
        unit: Unit of the errors.
        words: Name, title and description.

    Returns:
        SVG text; errors on logarithmic axes, shared by the panels of a row; one line per seed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = len(panels)
    width = max(WIDTH, PANEL_WIDTH * columns)
    figure = Figure(figsize=(width, 2 * PANEL_HEIGHT + 0.4), layout="constrained")
    grid = figure.subplots(2, columns, sharex="col", sharey="row", squeeze=False)
    every = [curve for curves in panels.values() for curve in curves]
    lines = {
        "test": [value for curve in every for values in curve.test for value in values],
        "train": [value for curve in every for values in curve.train for value in values],
    }
    for column, (title, curves) in enumerate(panels.items()):
        for row, kind in enumerate(("test", "train")):
            axes: Axes = grid[row, column]
            dress_axes(
                axes,
                "epoch" if row else "",
                "" if column else f"{kind} error ({unit})",
            )
            if title and not row:
                axes.set_title(make_label(title), color=INK, fontsize=10)
            axes.set_yscale("log")
            axes.set_ylim(*_find_limits(lines[kind]))
            for number, curve in enumerate(curves):
                for seed, values in enumerate(curve.test if kind == "test" else curve.train):
                    step = -(-len(values) // MOST_EPOCHS)
                    axes.plot(
                        range(1, len(values) + 1, step),
                        np.maximum(values[::step], LOWEST_ERROR),
                        color=COLOURS[number % len(COLOURS)],
                        linestyle=STYLES[number % len(STYLES)],
                        linewidth=1.2,
                        marker="o" if len(values) == 1 else None,
                        label=None if seed else make_label(curve.label),
                    )
            _mark_errors(axes, lines[kind])
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    handles = {
        label: handle
        for axes in grid[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    _add_legend_above(figure, handles)
    return stand_alone(to_svg(figure, words.name), words.title, words.description)


def plot_distributions(
    quantiles: Mapping[str, Sequence[float]], unit: str, words: Words, level: float = 0.9
) -> str:
    """Share of the test rows whose absolute error is below a value, with one percentile marked.

    Args:
        quantiles: Of each model's absolute error, at 0, 1, ..., 100 %.
        unit: Unit of the errors.
        words: Name, title and description.
        level: The share that is marked, a whole percentage.

    Returns:
        SVG text; the errors on a logarithmic axis, which ends at a thousandth of the largest.
    """
    figure, axes = new_figure(f"absolute error ({unit})", "share of the test rows below")
    shares = np.linspace(0, 1, PERCENTILES)
    largest = max((max(values) for values in quantiles.values()), default=1.0) or 1.0
    axes.set_xscale("log")
    axes.set_xlim(_LOWEST_SHARE * largest, largest)
    axes.set_ylim(0, 1)
    axes.axhline(level, color=INK, linewidth=0.8, alpha=0.5)
    for number, (label, values) in enumerate(quantiles.items()):
        errors: NDArray[np.float64] = np.asarray(values).clip(min=_LOWEST_SHARE * largest)
        at = round(level * (PERCENTILES - 1))
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            errors,
            shares,
            color=colour,
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            marker=MARKERS[number % len(MARKERS)],
            markersize=5,
            markevery=[at],
            label=make_label(label),
        )
        axes.plot([errors[at]] * 2, [0, level], color=colour, linewidth=0.7, alpha=0.6)
    _write_plainly(axes.xaxis)
    axes.annotate(
        f"{level:.0%}",
        (_LOWEST_SHARE * largest, level),
        xytext=(4, 2),
        textcoords="offset points",
        color=INK,
        fontsize=9,
    )
    add_legend(axes)
    return stand_alone(to_svg(figure, words.name), words.title, words.description)


def plot_lines(
    series: Sequence[Series],
    labels: tuple[str, str],
    words: Words,
    *,
    ticks: Sequence[float] = (),
) -> str:
    """Error against something that is counted, both on logarithmic axes, a line for each model.

    Args:
        series: The models; bars are drawn where `low` and `high` are numbers.
        labels: What stands along the two axes, with units.
        words: Name, title and description.
        ticks: Values to mark along the first axis; those that matplotlib chooses if empty.

    Returns:
        SVG text.
    """
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axes = new_figure(*labels)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*_find_limits([x for each in series for x in each.x]))
    axes.set_ylim(*_find_limits([y for e in series for y in (*e.y, *e.low, *e.high)]))
    for each in series:
        _draw_points(axes, each, horizontal=False)
    _mark_errors(axes, [y for each in series for y in each.y])
    _write_plainly(axes.xaxis)
    if ticks:
        axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
    handles, names = axes.get_legend_handles_labels()
    _add_legend_above(figure, dict(zip(names, handles, strict=True)))
    return stand_alone(to_svg(figure, words.name), words.title, words.description)


def plot_rows(rows: Sequence[str], series: Sequence[Series], label: str, words: Words) -> str:
    """Dots in named rows, the first on top, from 0 on a linear axis.

    Args:
        rows: Names of the rows.
        series: The models; their `x` are numbers of rows from 0.
        label: What the values are, with their unit.
        words: Name, title and description.

    Returns:
        SVG text.
    """
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(WIDTH, ROWS_MARGIN + ROW_HEIGHT * len(rows) * max(1, len(series) / 2.5)),
        layout="constrained",
    )
    axes = figure.add_subplot()
    dress_axes(axes, label, "")
    for number, each in enumerate(series):
        _draw_points(axes, each, horizontal=True, shift=_shift(number, len(series)))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [make_label(name) for name in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(left=0)
    handles, names = axes.get_legend_handles_labels()
    _add_legend_above(figure, dict(zip(names, handles, strict=True)))
    return stand_alone(to_svg(figure, words.name), words.title, words.description)


def _draw_points(axes: Axes, series: Series, *, horizontal: bool, shift: float = 0.0) -> None:
    number = series.place
    colour = COLOURS[number % len(COLOURS)]
    values = np.maximum(series.y, 0.0 if horizontal else LOWEST_ERROR)
    places = np.asarray(series.x, dtype=np.float64) + shift
    bars = np.stack([values - np.asarray(series.low), np.asarray(series.high) - values])
    bars = np.where(np.isfinite(bars), bars, 0.0)
    line = "none" if horizontal else ":" if series.published else STYLES[number % len(STYLES)]
    x, y = (values, places) if horizontal else (places, values)
    axes.errorbar(
        x,
        y,
        xerr=bars if horizontal and bars.any() else None,
        yerr=bars if not horizontal and bars.any() else None,
        color=colour,
        linestyle=line,
        linewidth=1.4,
        alpha=0.75 if series.published else 1.0,
        marker=MARKERS[number % len(MARKERS)],
        markersize=5.5,
        markerfacecolor="none" if series.published else colour,
        elinewidth=1.0,
        capsize=2.5,
        label=make_label(series.label),
    )


def _find_limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis: a little beyond what is drawn, also of a single value."""
    found = np.maximum([value for value in values if np.isfinite(value)], LOWEST_ERROR)
    return float(found.min()) / LOG_MARGIN, float(found.max()) * LOG_MARGIN


def _add_legend_above(figure: Figure, handles: Mapping[str, Artist]) -> None:
    """Add a legend above the axes, with as many labels beside each other as there is room for."""
    longest = max(map(len, handles), default=0) + SIGN_CHARACTERS
    room = int(figure.get_figwidth() * CHARACTERS_PER_INCH / longest)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=max(1, min(room, len(handles))),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )


def _shift(number: int, count: int) -> float:
    """Where a model's dots stand within their rows, so that dots do not cover each other."""
    return 0.0 if count == 1 else (number / (count - 1) - 0.5) * 0.6


def _mark_errors(axes: Axes, values: Sequence[float]) -> None:
    """Write numbers along a logarithmic axis of errors, round ones if it spans little."""
    from matplotlib.ticker import MaxNLocator

    mark_decades(axes)
    low, high = _find_limits(values)
    if high < NARROW * low:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _write_plainly(axis: Axis) -> None:
    """Write numbers of a logarithmic axis without powers of ten."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter("")
