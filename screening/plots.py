"""Plots as SVG text: learning curves, reliability, errors, and what a ranking finds.

Lines of text and axes take the colour of the surrounding page (``currentColor``), so that a plot
reads on light and dark ground. Nothing here touches the global state of matplotlib's pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from screening.discovery_metrics import ReliabilityBin
    from screening.model_card import Reliability

INK = "#0b0c0d"
"""Stands for the page's own text colour until the SVG is written."""

COLOURS = ("#3b82c4", "#e07b39", "#3a9d6e", "#b5569c", "#a8872a", "#7a6fd0", "#c94f4f")
"""Told apart on light and dark ground; a line's style differs from its neighbour's too."""

STYLES = ("-", "--", "-.", ":")

WIDTH, HEIGHT = 6.4, 3.8
"""Inches."""

MOST_POINTS = 400
"""Of a curve of discoveries: more are not told apart."""

LOWEST_ERROR = 1e-4
"""Errors below this share of the largest are drawn at it: the axis is logarithmic."""


def plot_learning_curves(
    histories: Sequence[Sequence[Mapping[str, float]]], unit: str = "eV/atom"
) -> str:
    """Training and validation error of each member over the epochs.

    Args:
        histories: For each member one entry per epoch with ``train_mae`` and ``validation_mae``.
        unit: Unit of the errors.

    Returns:
        SVG text; errors on a logarithmic axis, one thin line per member and kind.
    """
    figure, axes = _new_figure("epoch", f"mean absolute error ({unit})")
    for key, label, colour, style in (
        ("train_mae", "training rows, as they are learnt", COLOURS[1], "--"),
        ("validation_mae", "validation rows", COLOURS[0], "-"),
    ):
        for number, history in enumerate(histories):
            axes.plot(
                range(1, len(history) + 1),
                [entry[key] for entry in history],
                color=colour,
                linestyle=style,
                linewidth=0.9,
                alpha=0.85,
                label=label if number == 0 else None,
            )
    axes.set_yscale("log")
    _mark_decades(axes)
    _add_legend(axes)
    return _to_svg(figure, "curves")


def plot_reliability(reliabilities: Sequence[Reliability], name: str = "reliability") -> str:
    """Nominal against observed coverage of central intervals, a line per group.

    Args:
        reliabilities: From a model card; the label of a line is its group.
        name: What the ids in the SVG begin with; two plots of one page need two names.

    Returns:
        SVG text. Above the diagonal the intervals are too wide, below it too narrow.
    """
    figure, axes = _new_figure("nominal coverage", "observed coverage")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.6, label="as promised")
    for number, each in enumerate(reliabilities):
        axes.plot(
            each.expected,
            each.observed,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=_plain(f"{each.group} (n = {each.n:,})"),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _add_legend(axes)
    return _to_svg(figure, name)


def plot_errors(errors: Mapping[str, NDArray[np.float64]], unit: str = "eV/atom") -> str:
    """Share of the compounds whose absolute error is below a value.

    Args:
        errors: Predicted minus true of each predictor, shape (n,).
        unit: Their unit.

    Returns:
        SVG text; the errors on a logarithmic axis.
    """
    figure, axes = _new_figure(f"absolute error ({unit})", "share of the compounds below")
    largest = max(float(np.abs(values).max()) for values in errors.values()) or 1.0
    for number, (name, values) in enumerate(errors.items()):
        size = np.sort(np.abs(values)).clip(min=LOWEST_ERROR * largest)
        axes.plot(
            size,
            np.arange(1, len(size) + 1) / len(size),
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=_plain(name),
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    _add_legend(axes)
    return _to_svg(figure, "errors")


def plot_discoveries(found: Mapping[str, NDArray[np.integer[Any]]], name: str = "found") -> str:
    """Stable compounds found against calculations spent, beside a perfect and a random order.

    Args:
        found: For each ranking the stable compounds among its first k, shape (n + 1,); all rank
            the same compounds.
        name: What the ids in the SVG begin with.

    Returns:
        SVG text; thousands of points are thinned out.
    """
    figure, axes = _new_figure("DFT calculations spent", "stable compounds found")
    curves = list(found.values())
    compounds, stable = len(curves[0]) - 1, int(curves[0][-1])
    axes.plot(
        [0, stable, compounds],
        [0, stable, stable],
        color=INK,
        linewidth=0.9,
        alpha=0.7,
        label="perfect order",
    )
    spent = np.unique(np.linspace(0, compounds, num=min(compounds, MOST_POINTS) + 1).round())
    for number, (label, curve) in enumerate(found.items()):
        axes.plot(
            spent,
            curve[spent.astype(np.int64)],
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=_plain(label),
        )
    axes.plot(
        [0, compounds], [0, stable], color=INK, linewidth=0.9, alpha=0.4, label="random order"
    )
    axes.set_xlim(0, compounds)
    axes.set_ylim(0, stable * 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    _add_legend(axes)
    return _to_svg(figure, name)


def plot_probabilities(
    bins: Mapping[str, Sequence[ReliabilityBin]], name: str = "probabilities"
) -> str:
    """Promised probability of being stable against the share that is.

    Args:
        bins: Reliability diagram of each predictor; bars are 95 % intervals of the share.
        name: What the ids in the SVG begin with.

    Returns:
        SVG text. Below the diagonal the probabilities promise too much.
    """
    figure, axes = _new_figure("probability of being stable", "share that is stable")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.6, label="as promised")
    for number, (label, parts) in enumerate(bins.items()):
        observed = np.array([part.observed for part in parts])
        ends = np.array([(part.observed_low, part.observed_high) for part in parts])
        axes.errorbar(
            [part.promised for part in parts],
            observed,
            yerr=np.abs(ends - observed[:, None]).T,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.4,
            elinewidth=1.0,
            capsize=2.5,
            marker="o",
            markersize=3.5,
            label=_plain(label),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _add_legend(axes)
    return _to_svg(figure, name)


def _new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_edgecolor(INK)
        spine.set_visible(side in ("left", "bottom"))
    return figure, axes


def _mark_decades(axes: Axes) -> None:
    """Write plain numbers on a logarithmic axis that often spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter("")


def _add_legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _plain(label: str) -> str:
    """Keep matplotlib from reading dollar signs as formulas and underscores as no label."""
    return label.replace("$", r"\$").lstrip("_")


def _to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element whose ids begin with a name, so that plots share a page."""
    from matplotlib import rc_context

    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name}
    text = io.StringIO()
    with rc_context(settings):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", svg)
    return svg.replace(INK, "currentColor")
