"""The pages about the paper say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from irnet import ARCHITECTURES, RECIPES, Architecture, count_parameters
from irnet.network import LEAKY_SLOPE
from screening.benchmark.definitions import BENCHMARKS, BUDGETS
from screening.benchmark.paper import ROWS
from screening.benchmark.trial import MOST_ROW_ERRORS

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def networks() -> str:
    return (DOCS / "architectures.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def paper() -> str:
    return (DOCS / "paper.md").read_text(encoding="utf-8")


def cells_of(text: str) -> list[list[str]]:
    """Rows of all tables of a page."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip(" `") for cell in row] for row in rows]


def test_networks_have_the_strings_and_parameters_of_the_page(networks: str) -> None:
    stated = {row[0]: row[1:] for row in cells_of(networks) if row[0] in ARCHITECTURES}
    assert stated == {
        name: [string, f"{count_parameters(Architecture.parse(name), 271):,}"]
        for name, string in ARCHITECTURES.items()
    }
    # of Gupta et al. 2023
    assert count_parameters(Architecture.parse("brnet"), 86) == 4_548_385
    assert "4,548,385" in networks
    assert f"slope {LEAKY_SLOPE}" in networks


def test_recipes_have_the_fields_of_the_page(networks: str) -> None:
    rows = cells_of(networks)
    at = rows.index(["", *RECIPES])
    fields = {row[0]: row[1:] for row in rows[at + 2 : at + 17]}
    assert len(fields) == 15
    for field, stated in fields.items():
        for recipe, text in zip(RECIPES.values(), stated, strict=True):
            value = getattr(recipe, field)
            if isinstance(value, bool):
                assert text == ("yes" if value else "no")
            elif isinstance(value, float):
                assert float(text) == value
            else:
                assert text == ("none" if value is None else str(value))
    changed = {
        name
        for recipe in RECIPES.values()
        for name, value in recipe.to_json().items()
        if value != RECIPES["default"].to_json()[name] and name != "name"
    }
    assert changed <= set(fields)


def test_the_page_of_the_paper_names_every_benchmark_and_budget(paper: str) -> None:
    first = {name for row in cells_of(paper) for name in re.split(r"`?, `?", row[0])}
    assert set(BENCHMARKS) <= first
    assert set(BUDGETS) <= first
    for name in BENCHMARKS:
        if (DOCS / "results" / name).is_dir():
            assert f"(results/{name}/README.md)" in paper
    for name, rows in ROWS.items():
        assert any(row[:2] == [name, f"{rows:,}"] for row in cells_of(paper))
    assert f"at most {MOST_ROW_ERRORS}," in paper
