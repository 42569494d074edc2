"""Plots of reports: results as points and curves, with what they say in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from screening.benchmark.plots import Curve, Series, Words, plot_curves, plot_rows
from screening.benchmark.sections.cells import Plot, name_apart
from screening.benchmark.summary import Measured, Summary, show_number

MOST_MODELS: Final = 7
"""In one plot: more are not told apart."""

Point = tuple[float, Measured]


def say_drawn(models: int) -> str:
    """Say that a plot leaves models out, where it does.

    >>> say_drawn(7), say_drawn(9)
    ('', ' The plot shows the first 7 of 9 models.')
    """
    if models <= MOST_MODELS:
        return ""
    return f" The plot shows the first {MOST_MODELS} of {models} models."


def make_series(label: str, points: Sequence[Point], place: int) -> Series:
    """Make points with bars of one standard deviation over seeds; none of one seed."""
    spreads = [math.nan if each.deviation is None else each.deviation for _, each in points]
    values = [each.mean for _, each in points]
    return Series(
        label,
        tuple(x for x, _ in points),
        tuple(values),
        tuple(value - spread for value, spread in zip(values, spreads, strict=True)),
        tuple(value + spread for value, spread in zip(values, spreads, strict=True)),
        place,
    )


def make_published(label: str, points: Sequence[tuple[float, float]], place: int) -> Series:
    """Make points of the paper, which have no bars."""
    nothing = (math.nan,) * len(points)
    x, y = tuple(x for x, _ in points), tuple(y for _, y in points)
    return Series(label, x, y, nothing, nothing, place, published=True)


def describe_points(series: Iterable[Series], of: str, unit: str) -> str:
    """Say in words what `plot_lines` draws."""
    lines = [
        f"{each.label}: "
        + ", ".join(
            f"{show_number(y)} at {x:,.0f} {of}" for x, y in zip(each.x, each.y, strict=True)
        )
        for each in series
    ]
    return (
        f"Mean absolute error in {unit}. {'. '.join(lines)}. Bars: one standard deviation over "
        "seeds."
    )


def describe_rows(names: Sequence[str], series: Iterable[Series], unit: str) -> str:
    """Say in words what `plot_rows` draws."""
    lines = [
        f"{each.label}: "
        + ", ".join(
            f"{names[round(x)]} {show_number(y)}" for x, y in zip(each.x, each.y, strict=True)
        )
        for each in series
    ]
    return f"Mean absolute error in {unit}. {'. '.join(lines)}."


def draw_rows(
    file: str, title: str, names: Sequence[str], series: Sequence[Series], unit: str
) -> list[Plot]:
    """Draw errors in named rows; nothing where there are none."""
    if not series:
        return []
    words = Words(file.removesuffix(".svg"), title, describe_rows(names, series, unit))
    return [Plot(file, plot_rows(names, series, f"mean absolute error ({unit})", words), title)]


def draw_ranking(
    file: str, title: str, models: Sequence[Summary], published: Mapping[str, float], unit: str
) -> list[Plot]:
    """Draw each model's error on the held-out rows in a row, the paper's beside it.

    Args:
        file: Name of the plot's file.
        title: What it shows.
        models: From top to bottom; those without a result are left out.
        published: The paper's errors by `Trial.model`.
        unit: Of the errors.
    """
    found = [(each, measured) for each in models if (measured := each.mae()) is not None]
    if not found:
        return []
    names = [name_apart(each.trial, models) for each, _ in found]
    points = [(float(row), measured) for row, (_, measured) in enumerate(found)]
    series = [make_series("measured", points, 0)]
    known = [
        (float(row), published[each.trial.model])
        for row, (each, _) in enumerate(found)
        if each.trial.model in published
    ]
    if known:
        series.append(make_published("paper, on its data", known, 1))
    return draw_rows(file, title, names, series, unit)


def make_curves(models: Sequence[tuple[str, Summary]]) -> list[Curve]:
    """Make learning curves of models by label; models without them are left out."""
    curves = []
    for label, summary in models:
        histories = [
            result.history
            for result in summary.results
            if result.history and all("watched_mae" in entry for entry in result.history)
        ]
        if histories:
            curves.append(
                Curve(
                    label,
                    tuple(tuple(entry["watched_mae"] for entry in each) for each in histories),
                    tuple(tuple(entry["train_mae"] for entry in each) for each in histories),
                )
            )
    return curves


def draw_curves(
    file: str, title: str, panels: Mapping[str, Sequence[Curve]], unit: str
) -> list[Plot]:
    """Draw learning curves in panels; nothing where there are none."""
    panels = {panel: curves for panel, curves in panels.items() if curves}
    if not panels:
        return []
    last = "; ".join(
        f"{', '.join(filter(None, (panel, curve.label)))} "
        + " and ".join(show_number(values[-1]) for values in curve.test)
        for panel, curves in panels.items()
        for curve in curves
    )
    words = Words(
        file.removesuffix(".svg"),
        title,
        f"Test error after the last epoch in {unit}, one figure for each seed: {last}.",
    )
    return [Plot(file, plot_curves(panels, unit, words), title)]
