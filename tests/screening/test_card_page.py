from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from screening.card_page import CardFacts, collect_facts, page_of, render_page
from screening.errors import ModelError
from screening.model_card import (
    CalibrationCard,
    Card,
    Compression,
    DataFileEntry,
    Evaluation,
    Reliability,
    Score,
    Source,
    read_card,
)

EVIL = '<script>alert("x")</script> & Co'
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tables and text, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self._caption = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in ("src", "onload"), (tag, name)
            assert not (name.endswith("href") and value and not value.startswith("#")), value
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.tables[self._caption].append([])
        elif tag in ("td", "th"):
            self.tables[self._caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "caption":
            self._caption = data
            self.tables[data] = []
        elif inside in ("td", "th"):
            self.tables[self._caption][-1][-1] += data
        elif inside != "style":
            self.words.append(data)


def score(group: str, mae: float, scheme: str = "all", geometry: str = "ideal") -> Score:
    return Score(
        predictor="irnet",
        group=group,
        scheme=scheme,
        geometry=geometry,  # type: ignore[arg-type]
        n=77,
        mae=mae,
        mae_low=mae / 2,
        mae_high=mae * 2,
        p90=mae * 3,
        bias=-mae,
        spearman=0.9,
    )


def reliability(group: str, coverage: float) -> Reliability:
    return Reliability(
        group=group,
        geometry="ideal",
        n=77,
        expected=(0.5, 0.9),
        observed=(0.4, coverage),
        coverage=coverage,
        coverage_low=coverage - 0.1,
        coverage_high=min(1.0, coverage + 0.1),
        sharpness=0.5,
        miscalibration_area=0.05,
        sorting=0.51,
    )


@pytest.fixture
def card(tiny_model: Path) -> Card:
    """The tiny model's card with something in every part, and a name that tries to be a tag."""
    plain = read_card(tiny_model)
    evaluation = Evaluation(
        data=DataFileEntry(name="eval.parquet", sha256="1" * 64, rows=77),
        scores=(score("B2", 0.2), score("B2", 0.3, "MP2020"), score("B2", 0.1, geometry="relaxed")),
        formulas_seen=0,
        reliabilities=(reliability("B2", 0.87),),
    )
    return plain.model_copy(
        update={
            "name": EVIL,
            "held_out": (score("held_out", 0.0456, geometry="relaxed"),),
            "evaluation": evaluation,
            "cross_validation": evaluation.model_copy(update={"scores": (score("L1_0", 0.07),)}),
            "calibration": CalibrationCard(
                level=0.9,
                rows=500,
                groups=300,
                measured_on="compounds of nobody",
                reliabilities=(reliability("calibration", 0.9),),
            ),
            "data": plain.data.model_copy(
                update={"sources": (Source(what=EVIL, citation="A. Body", licence="CC0"),)}
            ),
            "limits": ("Not for L1_0.", EVIL),
        }
    )


def test_the_page_tells_the_whole_card(card: Card) -> None:
    history = [
        {"train_mae": 0.5, "validation_mae": 0.4},
        {"train_mae": 0.25, "validation_mae": 0.2},
    ]
    member = {"epochs": 2, "best_epoch": 2, "history": history, "train_rows": 9000}
    errors = np.linspace(-1, 1, 201)
    html = render_page(card, CardFacts(1.5, "eV/atom", (member,), {"IRNet ensemble": errors}))
    page = Page(html)
    words = " ".join(page.words)
    assert "script" not in page.tags
    assert EVIL in words
    for expected in ("compounds of nobody", "Not for L1_0.", "1.5 MB", "500 compounds of 300"):
        assert expected in words, expected
    cells = {cell for rows in page.tables.values() for row in rows for cell in row}
    for expected in ("0.0456", "0.2000", "0.3000", "0.0700", "87.0%", "0.1368", "A. Body"):
        assert expected in cells, expected
    [percentiles] = [rows for name, rows in page.tables.items() if "percentiles" in name]
    assert percentiles[1] == ["IRNet ensemble", "0.5000", "0.7500", "0.9000", "0.9500", "0.9900"]
    [learning] = [rows for name, rows in page.tables.items() if "weights were kept" in name]
    assert learning[1][:5] == ["1", "2", "2", "0.2500", "0.2000"]
    assert page.tags.count("svg") == 5
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in html


def test_what_was_never_measured_is_left_out(tiny_model: Path) -> None:
    page = Page(render_page(read_card(tiny_model), CardFacts(0.1)))
    words = " ".join(page.words)
    assert "not calibrated" in words
    assert "Held-out" not in words
    assert "Learning curves" not in words
    assert page.tags.count("svg") == 0


def test_a_model_of_another_target_says_its_unit(card: Card) -> None:
    html = render_page(card, replace(CardFacts(1.0), unit="GPa"))
    assert "formation_energy_per_atom in GPa" in html
    assert "eV/atom" not in html


def test_the_page_says_what_was_measured_on_a_twin_and_what_smallness_cost(card: Card) -> None:
    cost = Compression(
        weights="int6 per output channel", forest=None, rows=30, measured_on="held-out rows of x",
        irnet_mae_before=0.1, irnet_mae_after=0.11, random_forest_mae_before=0.2,
        random_forest_mae_after=0.21, largest_irnet_change=0.3, bytes_before=9, bytes_after=3,
    )  # fmt: skip
    changed = card.model_copy(update={"compression": cost, "measured_on_twin": "a twin of x"})
    html = render_page(changed, CardFacts(1.0))
    assert "measured with a twin of this model: a twin of x" in html
    assert "of the forest from 0.2000 to 0.2100 eV/atom; largest change" in html
    assert "measured with a twin" not in render_page(card, CardFacts(1.0))


def test_facts_come_from_the_models_folder(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from screening.model_library import load_model
    from screening.training import HELD_OUT_NAME

    copy = shutil.copytree(tiny_model, tmp_path / "model")
    random = np.random.default_rng(0)
    features = random.normal(size=(30, 271)).astype(np.float32)
    target = random.normal(size=30)
    assert collect_facts(copy).errors == {}
    save_file({"features": features, "target": target}, copy / HELD_OUT_NAME)
    facts = collect_facts(copy, "cpu")
    model = load_model(copy)
    predicted = model.ensemble.scorer(device="cpu").predict(features).mean
    assert np.allclose(facts.errors["IRNet ensemble"], np.asarray(predicted) - target)
    assert set(facts.errors) == {"IRNet ensemble", "Random Forest"}
    assert len(facts.members) == 2
    assert "Learning curves" in page_of(copy, "cpu")


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"members": []})])
def test_damaged_ensembles_are_a_model_error(
    tiny_model: Path, tmp_path: Path, content: str
) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    (copy / "ensemble" / "ensemble.json").write_text(content)
    with pytest.raises(ModelError, match=r"ensemble\.json is missing or damaged"):
        collect_facts(copy)
