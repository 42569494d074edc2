"""Plots as SVG text: learning curves, reliability, errors, what a ranking finds and is made of.

Lines of text and axes take the colour of the surrounding page (``currentColor``), so that a plot
reads on light and dark ground. Nothing here touches the global state of matplotlib's pyplot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prototypes import SYMBOLS

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

CELLS = 80
"""Of a density plot, along each axis."""

FAINTEST, STRONGEST = 0.08, 0.62
"""Share of the colour in the cells of the element map; their text must stay readable."""

NOBLE_GASES = (2, 10, 18, 36, 54, 86, 118)
"""Atomic numbers; each ends a period."""

LOWEST_ERROR = 1e-4
"""Errors below this share of the largest are drawn at it: the axis is logarithmic."""

_GROUND = 'style="background:#ffffff;color:#0b0c0d" '


def plot_learning_curves(
    histories: Sequence[Sequence[Mapping[str, float]]], unit: str = "eV/atom", metric: str = "mae"
) -> str:
    """Training and validation error of each member over the epochs.

    Args:
        histories: For each member one entry per epoch with ``train_`` and ``validation_`` of the
            metric.
        unit: Unit of a mean absolute error.
        metric: ``mae``, or ``cross_entropy`` of classes.

    Returns:
        SVG text; errors on a logarithmic axis, one thin line per member and kind.
    """
    title = f"mean absolute error ({unit})" if metric == "mae" else "cross-entropy (nats)"
    figure, axes = new_figure("epoch", title)
    for key, label, colour, style in (
        (f"train_{metric}", "training rows, as they are learnt", COLOURS[1], "--"),
        (f"validation_{metric}", "validation rows", COLOURS[0], "-"),
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
    mark_decades(axes)
    add_legend(axes)
    return to_svg(figure, "curves")


def plot_reliability(reliabilities: Sequence[Reliability], name: str = "reliability") -> str:
    """Nominal against observed coverage of central intervals, a line per group.

    Args:
        reliabilities: From a model card; the label of a line is its group.
        name: What the ids in the SVG begin with; two plots of one page need two names.

    Returns:
        SVG text. Above the diagonal the intervals are too wide, below it too narrow.
    """
    figure, axes = new_figure("nominal coverage", "observed coverage")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.6, label="as promised")
    for number, each in enumerate(reliabilities):
        axes.plot(
            each.expected,
            each.observed,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=make_label(f"{each.group} (n = {each.n:,})"),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_legend(axes)
    return to_svg(figure, name)


def plot_errors(errors: Mapping[str, NDArray[np.float64]], unit: str = "eV/atom") -> str:
    """Share of the compounds whose absolute error is below a value.

    Args:
        errors: Predicted minus true of each predictor, shape (n,).
        unit: Their unit.

    Returns:
        SVG text; the errors on a logarithmic axis.
    """
    figure, axes = new_figure(f"absolute error ({unit})", "share of the compounds below")
    largest = max(float(np.abs(values).max()) for values in errors.values()) or 1.0
    for number, (name, values) in enumerate(errors.items()):
        size = np.sort(np.abs(values)).clip(min=LOWEST_ERROR * largest)
        axes.plot(
            size,
            np.arange(1, len(size) + 1) / len(size),
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            label=make_label(name),
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    add_legend(axes)
    return to_svg(figure, "errors")


def plot_discoveries(found: Mapping[str, NDArray[np.integer[Any]]], name: str = "found") -> str:
    """Stable compounds found against calculations spent, beside a perfect and a random order.

    Args:
        found: For each ranking the stable compounds among its first k, shape (n + 1,); all rank
            the same compounds.
        name: What the ids in the SVG begin with.

    Returns:
        SVG text; thousands of points are thinned out.
    """
    figure, axes = new_figure("DFT calculations spent", "stable compounds found")
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
            label=make_label(label),
        )
    axes.plot(
        [0, compounds], [0, stable], color=INK, linewidth=0.9, alpha=0.4, label="random order"
    )
    axes.set_xlim(0, compounds)
    axes.set_ylim(0, stable * 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,.0f}")
    add_legend(axes)
    return to_svg(figure, name)


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
    figure, axes = new_figure("probability of being stable", "share that is stable")
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
            label=make_label(label),
        )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_legend(axes)
    return to_svg(figure, name)


def plot_histogram(
    edges: NDArray[np.float64],
    counts: Mapping[str, NDArray[np.integer[Any]]],
    label: str,
    *,
    mark: float | None = None,
    name: str = "histogram",
) -> str:
    """How many candidates have which value; the counts on a logarithmic axis.

    Args:
        edges: Borders of the bins, shape (n + 1,), ascending.
        counts: Candidates in each bin by predictor, each of shape (n,).
        label: What the values are, with their unit.
        mark: A value to draw a line at.
        name: What the ids in the SVG begin with.
    """
    figure, axes = new_figure(label, "candidates")
    for number, (predictor, heights) in enumerate(counts.items()):
        axes.stairs(
            heights,
            edges,
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number % len(STYLES)],
            linewidth=1.6,
            fill=False,
            label=make_label(predictor),
        )
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=0.9, alpha=0.7)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    add_legend(axes)
    return to_svg(figure, name)


def plot_density(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    limits: tuple[float, float],
    labels: tuple[str, str],
    *,
    mark: float | None = None,
    name: str = "density",
) -> str:
    """How many candidates have which pair of values: cells from pale to strong, logarithmically.

    Args:
        x: First value of each candidate, shape (n,), finite.
        y: Second value, shape (n,), finite.
        limits: Both axes go from the first to the second; values beyond count in the last cells.
        labels: What the two values are, with their unit.
        mark: A value to draw a line at, on both axes.
        name: What the ids in the SVG begin with.
    """
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb

    figure, axes = new_figure(*labels)
    edges = np.linspace(*limits, CELLS + 1)
    counts = np.histogram2d(x.clip(*limits), y.clip(*limits), bins=(edges, edges))[0]
    hue = to_rgb(COLOURS[0])
    axes.imshow(
        np.ma.masked_equal(counts.T, 0),
        extent=(*limits, *limits),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        cmap=LinearSegmentedColormap.from_list("pale to strong", [(*hue, 0.25), (*hue, 1.0)]),
        norm=LogNorm(1, max(2.0, counts.max())),
    )
    axes.plot(limits, limits, color=INK, linewidth=0.8, alpha=0.6)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=0.9, alpha=0.7, linestyle=":")
        axes.axhline(mark, color=INK, linewidth=0.9, alpha=0.7, linestyle=":")
    return to_svg(figure, name)


def draw_element_map(values: Mapping[str, float], texts: Mapping[str, str], name: str) -> str:
    """Draw a periodic table whose elements are coloured the more strongly the larger their value.

    Args:
        values: Value by symbol; other elements are drawn as empty cells.
        texts: What stands below each of these symbols.
        name: What the ids in the SVG begin with.

    Returns:
        SVG text in the page's accent colour. Lanthanum to lutetium and actinium to lawrencium
        stand below.
    """
    width, height, gap = 46, 38, 3
    lowest, highest = min(values.values(), default=0.0), max(values.values(), default=0.0)
    cells = []
    for number, symbol in enumerate(SYMBOLS, start=1):
        row, column = place_element(number)
        x, y = column * width, (row - 0.5 * (row > 7)) * height
        middle = x + (width - gap) / 2
        screened = symbol in values
        share = (values[symbol] - lowest) / (highest - lowest or 1.0) if screened else 0.0
        strength = FAINTEST + (STRONGEST - FAINTEST) * share if screened else 0.0
        cells.append(
            f'<g id="{name}-{symbol}"><rect x="{x}" y="{y:g}" width="{width - gap}" '
            f'height="{height - gap}" rx="3" style="fill: var(--accent)" '
            f'fill-opacity="{strength:.3f}" stroke="currentColor" stroke-opacity="0.25"/>'
            f'<text x="{middle:g}" y="{y + 16:g}" font-size="14" text-anchor="middle" '
            f'fill-opacity="{1 if screened else 0.45}">{symbol}</text>'
        )
        if screened:
            cells.append(
                f'<text x="{middle:g}" y="{y + 29:g}" font-size="10" text-anchor="middle">'
                f"{escape(texts[symbol])}</text>"
            )
        cells.append("</g>")
    return (
        f'<svg viewBox="-1 -1 {18 * width} {9.5 * height:g}" fill="currentColor" '
        f'font-family="sans-serif" xmlns="http://www.w3.org/2000/svg">{"".join(cells)}</svg>'
    )


def place_element(number: int) -> tuple[int, int]:
    """Return row and column of an element in the periodic table of 18 columns, both from 0.

    Lanthanoids and actinoids, lanthanum and actinium among them, stand in rows 8 and 9 with a row
    left free above; their first is in the third column.

    Args:
        number: Atomic number, 1 to 118.

    >>> place_element(1), place_element(26), place_element(57), place_element(72)
    ((0, 0), (3, 7), (8, 2), (5, 3))
    """
    period = next(i for i, noble in enumerate(NOBLE_GASES) if number <= noble)
    before = NOBLE_GASES[period - 1] if period else 0
    after = number - before
    to_end = NOBLE_GASES[period] - number
    if to_end == 0 or (period and to_end <= 5):
        return period, 17 - to_end
    if period < 5 or after <= 2:
        return period, after - 1
    return (period + 3, after - 1) if after <= 17 else (period, after - 15)


def new_figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of the house's size and its axes, without a frame and with a faint grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    dress_axes(axes, x_label, y_label)
    return figure, axes


def dress_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Give axes their labels, the page's ink and a faint grid; leave two of the four spines."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, which="both")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_edgecolor(INK)
        spine.set_visible(side in ("left", "bottom"))


def mark_decades(axes: Axes) -> None:
    """Write plain numbers on a logarithmic axis that often spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter("")


def add_legend(axes: Axes) -> None:
    """Add a legend in the page's ink, without a frame."""
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def make_label(label: str) -> str:
    """Keep matplotlib from reading dollar signs as formulas and underscores as no label."""
    return label.replace("$", r"\$").lstrip("_")


def to_svg(figure: Figure, name: str) -> str:
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


def stand_alone(svg: str, title: str = "", description: str = "") -> str:
    """Make a file of a plot, where no page gives it a ground and a colour of text.

    Args:
        svg: From one of these functions.
        title: What the plot shows, for those who cannot see it; none if empty.
        description: What can be read from it, for the same; goes with a title.

    Returns:
        SVG text, dark on white.
    """
    named = 'role="img" aria-labelledby="title desc" ' if title else ""
    tag, _, rest = svg.replace("<svg ", f"<svg {named}{_GROUND}", 1).partition(">")
    spoken = ""
    if title:
        spoken = f'\n <title id="title">{escape(title)}</title>'
        spoken += f'\n <desc id="desc">{escape(description)}</desc>'
    return f"{tag}>{spoken}{rest}\n"
