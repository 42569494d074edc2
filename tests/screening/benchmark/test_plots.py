from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from screening.benchmark.plots import (
    MOST_EPOCHS,
    Curve,
    Series,
    Words,
    plot_curves,
    plot_distributions,
    plot_lines,
    plot_rows,
)
from screening.plots import COLOURS

WORDS = Words("name", "Errors of <A> & B", "A is below B.")
NOTHING = (math.nan,) * 3

CHARACTER = 4.5
"""Width of an average character of a legend in the units of an SVG, at 9 points."""

Point = tuple[float, float]


def read(svg: str) -> ElementTree.Element:
    tree = ElementTree.fromstring(svg)
    spoken = {part.get("id"): part.text for part in tree}
    assert spoken["title"] == WORDS.title
    assert spoken["desc"] == WORDS.description
    assert tree.get("role") == "img"
    assert tree.get("aria-labelledby") == "title desc"
    return tree


def texts_of(svg: str) -> list[str]:
    found = (e for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text"))
    return ["".join(each.itertext()).strip() for each in found]


def lines_of(svg: str, colour: str) -> list[list[Point]]:
    """Lines of a colour in the order in which they are drawn, those of the legend left out."""
    return [
        points
        for element in ElementTree.fromstring(svg).iter()
        if f"stroke: {colour}" in element.get("style", "") and element.get("clip-path")
        if len(points := _points(element.get("d", ""))) > 1
    ]


def markers_of(svg: str, colour: str) -> list[Point]:
    """Where markers of a colour stand, those of the legend left out."""
    found = []
    for group in ElementTree.fromstring(svg).iter():
        if group.get("clip-path") and group.tag.endswith("g"):
            for use in group:
                if f"stroke: {colour}" in use.get("style", "") and use.tag.endswith("use"):
                    found.append((float(use.get("x", "nan")), float(use.get("y", "nan"))))
    return found


def _points(data: str) -> list[Point]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", data)]


def test_learning_curves_have_a_line_for_each_seed_above_and_below() -> None:
    errors = (0.8, 0.4, 0.2, 0.1)
    curves = [
        Curve("first", (errors, errors[:3]), (errors, errors[:3])),
        Curve("second", (errors[::-1],), (errors,)),
    ]
    svg = plot_curves({"17 layers": curves, "24 layers": curves[:1]}, "eV", WORDS)
    read(svg)
    first, second = lines_of(svg, COLOURS[0]), lines_of(svg, COLOURS[1])
    assert [len(line) for line in first] == [4, 3] * 4
    assert [len(line) for line in second] == [4, 4]
    heights = [y for _, y in first[0]]
    # errors are halved from epoch to epoch: equal steps on a logarithmic axis
    assert np.diff(heights) == pytest.approx([heights[1] - heights[0]] * 3, rel=1e-3)
    assert heights[1] > heights[0]
    assert [y for _, y in second[0]] == pytest.approx(heights[::-1])
    assert {"17 layers", "24 layers", "test error (eV)", "train error (eV)"} <= set(texts_of(svg))
    assert texts_of(svg).count("first") == 1


def test_errors_that_hardly_differ_are_still_marked() -> None:
    nothing = (math.nan, math.nan)
    series = Series("net", (17.0, 24.0), (0.0611, 0.0655), nothing, nothing)
    svg = plot_lines([series], ("layers", "error"), WORDS, ticks=(17, 24))
    marks = [float(text) for text in texts_of(svg) if text.startswith("0.0")]
    assert len(marks) >= 3
    assert min(marks) < 0.0611 < max(marks)


def test_epochs_are_whole_numbers() -> None:
    svg = plot_curves({"": [Curve("net", ((0.3, 0.2),), ((0.3, 0.2),))]}, "eV", WORDS)
    numbers = [text for text in texts_of(svg) if re.fullmatch(r"[\d.]+", text)]
    assert {"1", "2"} <= set(numbers)
    assert not [text for text in numbers if text.startswith("1.")]


@pytest.mark.parametrize("value", [0.2, 0.0, np.nextafter(0.1, 0)])
def test_a_single_value_can_be_drawn(value: float) -> None:
    single = Series("net", (100.0,), (value,), (math.nan,), (math.nan,))
    read(plot_lines([single], ("rows", "error"), WORDS, ticks=(100,)))
    read(plot_rows(["row"], [replace(single, x=(0.0,))], "error", WORDS))
    read(plot_curves({"": [Curve("net", ((value,),), ((value,),))]}, "eV", WORDS))
    read(plot_distributions({"net": [value] * 101}, "eV", WORDS))


def test_long_learning_curves_are_thinned() -> None:
    # up and down by turns, so that matplotlib has nothing to simplify
    errors = tuple(0.1 + 0.01 * (-1) ** (epoch // 5) for epoch in range(5 * MOST_EPOCHS - 1))
    svg = plot_curves({"": [Curve("long", (errors,), (errors,))]}, "eV", WORDS)
    test, train = lines_of(svg, COLOURS[0])
    # matplotlib may add the last point once more
    assert {len(test), len(train)} <= {MOST_EPOCHS, MOST_EPOCHS + 1}


def test_models_are_told_apart_without_colour() -> None:
    errors = (0.5, 0.3)
    curves = [Curve(str(number), (errors,), (errors,)) for number in range(4)]
    svg = plot_curves({"": curves}, "eV", WORDS)
    dashes = set()
    for element in ElementTree.fromstring(svg).iter():
        style = element.get("style", "")
        for colour in COLOURS[:4]:
            if f"stroke: {colour}" in style:
                dash = re.search(r"stroke-dasharray: ([^;]+)", style)
                dashes.add((colour, dash[1] if dash else "solid"))
    assert len(dashes) == 4
    assert len({dash for _, dash in dashes}) == 4


def test_a_distribution_rises_and_is_marked_at_nine_tenths() -> None:
    quantiles = {"net": np.linspace(0, 1, 101), "forest": np.linspace(0, 2, 101)}
    svg = plot_distributions({name: list(q) for name, q in quantiles.items()}, "eV", WORDS)
    read(svg)
    marks = []
    for colour in COLOURS[:2]:
        curve, drop = lines_of(svg, colour)
        assert len(curve) == 101
        assert [x for x, _ in curve] == sorted(x for x, _ in curve)
        assert [y for _, y in curve] == sorted((y for _, y in curve), reverse=True)
        (mark,) = markers_of(svg, colour)
        assert mark == pytest.approx(curve[90], abs=1e-3)
        bottom, top = drop
        assert bottom[0] == top[0] == pytest.approx(mark[0], abs=1e-3)
        marks.append(mark)
    # 0.9 and 1.8 on an axis that holds three decades
    left, right = (min(x for x, _ in lines_of(svg, COLOURS[1])[0]), lines_of(svg, COLOURS[1])[0])
    decade = (right[-1][0] - left) / 3
    assert (marks[1][0] - marks[0][0]) / decade == pytest.approx(math.log10(2), rel=1e-2)
    assert "90%" in texts_of(svg)


def test_lines_stand_at_their_logarithms_with_bars_where_there_are_any() -> None:
    x = (1000.0, 10_000.0, 100_000.0)
    ours = Series("net", x, (0.4, 0.2, 0.1), (0.39, 0.19, math.nan), (0.41, 0.21, math.nan))
    paper = Series("net, paper", x, (0.1, 0.1, 0.1), NOTHING, NOTHING, 1, published=True)
    svg = plot_lines([ours, paper], ("rows", "error"), WORDS, ticks=x)
    read(svg)
    points = markers_of(svg, COLOURS[0])
    line = next(line for line in lines_of(svg, COLOURS[0]) if len(line) == 3)
    assert np.diff([x for x, _ in line]) == pytest.approx([line[1][0] - line[0][0]] * 2, rel=1e-3)
    assert np.diff([y for _, y in line]) == pytest.approx([line[1][1] - line[0][1]] * 2, rel=1e-3)
    assert {(round(x, 2), round(y, 2)) for x, y in line} <= {
        (round(x, 2), round(y, 2)) for x, y in points
    }
    assert [label for label in texts_of(svg) if "000" in label] == ["1,000", "10,000", "100,000"]
    flat = next(line for line in lines_of(svg, COLOURS[1]) if len(line) == 3)
    assert len({y for _, y in flat}) == 1
    assert svg.count("fill: none") > 0
    plain = Series("net", x, ours.y, NOTHING, NOTHING)
    bare = plot_lines([plain, paper], ("rows", "error"), WORDS, ticks=x)
    assert len(lines_of(svg, COLOURS[0])) > len(lines_of(bare, COLOURS[0]))


def test_dots_stand_in_their_rows_from_nought() -> None:
    rows = ["linear_regression", "L1_0", "_x"]
    nets = Series("net", (0.0, 1.0, 2.0), (0.1, 0.3, 0.2), NOTHING, NOTHING)
    forest = Series("forest", (1.0,), (0.3,), (0.2,), (0.4,), 1)
    svg = plot_rows(rows, [nets, forest], "error", WORDS)
    read(svg)
    first, second, third = markers_of(svg, COLOURS[0])[:3]
    assert first[1] < second[1] < third[1]
    assert (second[0] - first[0]) == pytest.approx(2 * (third[0] - first[0]), rel=1e-3)
    (dot, *_) = sorted(markers_of(svg, COLOURS[1]), key=lambda point: abs(point[0] - second[0]))
    assert dot[0] == pytest.approx(second[0], abs=1e-3)
    assert second[1] < dot[1] < third[1]
    (bar,) = lines_of(svg, COLOURS[1])
    assert (bar[0][0] + bar[1][0]) / 2 == pytest.approx(dot[0], abs=1e-3)
    assert {"linear_regression", "L1_0", "x", "net", "forest"} <= set(texts_of(svg))
    assert texts_of(svg).index("linear_regression") < texts_of(svg).index("L1_0")


def test_legends_stay_inside_the_plot() -> None:
    names = [f"a model with a rather long name, number {number}" for number in range(5)]
    series = [
        Series(name, (0.0,), (0.1 + place,), (math.nan,), (math.nan,), place)
        for place, name in enumerate(names)
    ]
    tree = read(plot_rows(["row"], series, "error", WORDS))
    width = float(tree.get("viewBox", "").split()[2])
    ends = [
        float(element.get("x", "nan")) + CHARACTER * len(element.text or "")
        for element in tree.iter()
        if element.text in names
    ]
    assert len(ends) == 5
    assert max(ends) < width
