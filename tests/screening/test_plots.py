from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.image import imread

from screening.discovery_metrics import ReliabilityBin
from screening.model_card import Reliability
from screening.plots import (
    CELLS,
    COLOURS,
    MOST_POINTS,
    draw_element_map,
    place_element,
    plot_density,
    plot_discoveries,
    plot_errors,
    plot_histogram,
    plot_learning_curves,
    plot_probabilities,
    plot_reliability,
    stand_alone,
)

LEVELS = (0.1, 0.5, 0.9)


def reliability(group: str) -> Reliability:
    return Reliability(
        group=group,
        n=1200,
        expected=LEVELS,
        observed=(0.2, 0.6, 0.95),
        coverage=0.95,
        coverage_low=0.93,
        coverage_high=0.97,
        sharpness=0.4,
        miscalibration_area=0.08,
    )


def history(epochs: int, offset: float) -> list[dict[str, float]]:
    return [
        {"train_mae": offset / (epoch + 1), "validation_mae": offset / (epoch + 2)}
        for epoch in range(epochs)
    ]


def lines_of(svg: str, colour: str) -> list[str]:
    """Data of the lines of a colour, without the level ones of the legend."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        data = element.get("d", "")
        if colour in element.get("style", "") and len(set(heights(data))) > 1:
            found.append(data)
    return found


def texts_of(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip()
        for element in ElementTree.fromstring(svg).iter()
        if element.tag.endswith("text")
    ]


def heights(line: str) -> list[float]:
    return [float(y) for _, y in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", line)]


def test_each_member_has_two_curves_on_a_logarithmic_axis() -> None:
    svg = plot_learning_curves([history(9, 1.0), history(5, 2.0)], "eV")
    validation = lines_of(svg, COLOURS[0])
    assert len(validation) == len(lines_of(svg, COLOURS[1])) == 2
    assert [len(heights(line)) for line in validation] == [9, 5]
    first, second, *_, last = heights(validation[0])
    # the errors are 1/2, 1/3, ..., 1/10: equal ratios are equal lengths
    assert (second - first) / (last - first) == pytest.approx(np.log(1.5) / np.log(5), rel=1e-3)
    assert "mean absolute error (eV)" in texts_of(svg)


def test_reliability_goes_through_the_cards_points() -> None:
    svg = plot_reliability([reliability("B2"), reliability("cost $5 to $6")])
    lines = lines_of(svg, COLOURS[0])
    low, middle, high = heights(lines[0])
    assert (middle - low) / (high - low) == pytest.approx(0.4 / 0.75, rel=1e-3)
    assert "B2 (n = 1,200)" in texts_of(svg)
    assert "cost $5 to $6 (n = 1,200)" in texts_of(svg)


def test_the_distribution_of_errors_ends_at_one() -> None:
    errors = np.array([0.1, -0.2, 0.0, 0.4])
    svg = plot_errors({"net": errors, "_forest": 2 * errors})
    assert len(lines_of(svg, COLOURS[0])) == len(lines_of(svg, COLOURS[1])) == 1
    assert {"net", "forest"} <= set(texts_of(svg))
    assert len(heights(lines_of(svg, COLOURS[0])[0])) == 4


def test_errors_of_nothing_can_be_drawn() -> None:
    assert plot_errors({"perfect": np.zeros(3)}).startswith("<svg")


def test_a_histogram_is_as_high_as_its_logarithms() -> None:
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    counts = {"net": np.array([1, 10, 100]), "forest": np.array([0, 5, 5])}
    svg = plot_histogram(edges, counts, "energy (eV)", mark=0.5)
    [line] = lines_of(svg, COLOURS[0])
    low, middle, high = sorted(set(heights(line)), reverse=True)[-3:]
    assert (low - middle) == pytest.approx(middle - high, rel=1e-3)
    assert {"energy (eV)", "candidates", "net", "forest", "100"} <= set(texts_of(svg))
    assert svg.count("<path") > plot_histogram(edges, counts, "energy (eV)").count("<path")


def test_density_colours_the_cells_that_hold_something() -> None:
    x, y = np.array([0.0, 0.0, 5.0, 0.31]), np.array([0.0, 0.0, -7.0, 0.91])
    svg = plot_density(x, y, (0.0, 1.0), ("forest", "net"))
    encoded = re.search(r'data:image/png;base64,([^"]+)', svg)
    assert encoded is not None
    image = imread(io.BytesIO(base64.b64decode(encoded[1])), format="png")
    strength = image[::-1, :, 3]  # matplotlib embeds it upside down
    height, width = strength.shape
    places = ((0.005, 0.005), (0.99, 0.005), (0.307, 0.907), (0.6, 0.5))
    found = [strength[int(height * (1 - b)), int(width * a)] for a, b in places]
    assert found == pytest.approx([1.0, 0.25, 0.25, 0.0], abs=0.02)
    assert (strength > 0).mean() == pytest.approx(3 / CELLS**2, rel=0.3)
    assert {"forest", "net"} <= set(texts_of(svg))


def test_elements_stand_where_pymatgen_has_them() -> None:
    from pymatgen.core import Element

    places = [place_element(number) for number in range(1, 119)]
    assert len(set(places)) == 118
    for number, (row, column) in enumerate(places, start=1):
        element = Element.from_Z(number)
        if element.is_lanthanoid or element.is_actinoid:
            assert (row, column) == (element.row + 2, number - (55 if number < 80 else 87))
        else:
            assert (row, column) == (element.row - 1, element.group - 1)


def test_the_element_map_is_strongest_where_the_value_is_largest() -> None:
    values = {"Li": -1.0, "O": 3.0, "U": 1.0}
    svg = draw_element_map(values, dict.fromkeys(values, "<"), "m")
    tree = ElementTree.fromstring(svg)
    strength = {group.get("id"): float(group[0].get("fill-opacity", "nan")) for group in tree}
    assert len(strength) == 118
    assert 0 < strength["m-Li"] < strength["m-U"] < strength["m-O"] < 1
    assert strength["m-U"] == pytest.approx((strength["m-Li"] + strength["m-O"]) / 2, abs=1e-3)
    assert strength["m-Fe"] == 0
    assert texts_of(svg).count("<") == 3
    assert draw_element_map({}, {}, "m").count("<rect") == 118


def test_plots_share_a_page_and_its_colour() -> None:
    one, other = (plot_reliability([reliability("B2")], name) for name in ("a", "b"))
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (one, other)]
    assert not set(ids[0]) & set(ids[1])
    for svg, known in zip((one, other), ids, strict=True):
        used = re.findall(r'(?:href="|url\()#([^")]+)', svg)
        assert used
        assert set(used) <= set(known)
    assert "currentColor" in one
    assert one == plot_reliability([reliability("B2")], "a")


def test_a_plot_of_its_own_has_a_ground_and_words_for_those_who_cannot_see_it() -> None:
    svg = plot_reliability([reliability("B2")], "a")
    tree = ElementTree.fromstring(stand_alone(svg, "B2 & <L1_0>", "half of each"))
    assert "background:#ffffff" in tree.get("style", "")
    assert tree.get("role") == "img"
    assert [(part.get("id"), part.text) for part in tree][:2] == [
        ("title", "B2 & <L1_0>"),
        ("desc", "half of each"),
    ]
    assert "<title" not in stand_alone(svg)


def test_pyplot_stays_out() -> None:
    code = (
        "import sys; from screening.plots import plot_learning_curves\n"
        "plot_learning_curves([[{'train_mae': 1.0, 'validation_mae': 1.0}]])\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_discoveries_stand_between_a_perfect_and_a_random_order() -> None:
    found = {"model": np.array([0, 1, 2, 2, 3, 3, 3]), "$other$": np.array([0, 0, 1, 1, 2, 3, 3])}
    svg = plot_discoveries(found)
    assert {"model", "$other$", "perfect order", "random order"} <= set(texts_of(svg))
    (curve,) = lines_of(svg, COLOURS[0])
    points = heights(curve)
    steps = -np.diff(points)
    assert steps.round(3).tolist() == (steps[0] * np.array([1, 1, 0, 1, 0, 0])).round(3).tolist()
    many = plot_discoveries({"model": np.arange(20_001) // 2})
    assert len(heights(lines_of(many, COLOURS[0])[0])) <= MOST_POINTS + 1


def test_probabilities_have_a_point_and_a_bar_each() -> None:
    bins = [
        ReliabilityBin(0.0, 0.1, 40, 0.05, 0.1, 0.04, 0.23),
        ReliabilityBin(0.5, 0.6, 9, 0.55, 0.3, 0.1, 0.6),
    ]
    svg = plot_probabilities({"model": bins}, "p")
    assert {"model", "as promised", "probability of being stable"} <= set(texts_of(svg))
    line = max(lines_of(svg, COLOURS[0]), key=len)
    assert heights(line)[0] > heights(line)[-1]
