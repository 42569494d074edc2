from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from screening.backtest import ALL_ROWS, NEW, BacktestRequest, BacktestResult, DiscoveryScore
from screening.backtest_report import (
    RECORD_NAME,
    REPORT_NAME,
    describe_test,
    summarise,
    tabulate_discoveries,
    tabulate_hull_errors,
    tabulate_probabilities,
    tabulate_shortlists,
    write_report,
)
from screening.discovery_metrics import (
    classify,
    count_found,
    measure_errors,
    order_by,
    precision_at,
    score_probabilities,
)
from screening.model_card import DataFileEntry
from screening.model_library import load_model

STABLE = np.arange(20) % 4 == 0
SCORE = np.where(STABLE, 0.6, 0.3) + np.linspace(0, 0.35, 20)


def score(predictor: str, group: str = ALL_ROWS) -> DiscoveryScore:
    found = count_found(STABLE, order_by(SCORE))
    true = np.where(STABLE, -0.05, 0.2)
    return DiscoveryScore(
        predictor=predictor,
        group=group,
        truth="label",
        counts=classify(STABLE, SCORE > 0.5),
        roc_auc=0.75,
        precision_at=precision_at(found, (5, 10)),
        half_found_after=6,
        errors=measure_errors(true + 0.1, true),
        errors_near_hull=measure_errors([0.1], [0.0]) if group == ALL_ROWS else None,
        probabilities=score_probabilities(SCORE, STABLE) if predictor == "irnet" else None,
        found=found,
    )


@pytest.fixture
def result() -> BacktestResult:
    names = ("irnet", "irnet_energy")
    return BacktestResult(
        request=BacktestRequest((Path("/a/compounds.parquet"),), Path("/b/refs.csv"), label="hull"),
        data=(DataFileEntry(name="compounds.parquet", sha256="0" * 64, rows=23),),
        references={
            "name": "refs.csv",
            "sha256": "1" * 64,
            "functional": None,
            "phases": 1200,
            "competitors": 1000,
        },
        rows=20,
        left_out={"no hull": 3},
        seen=4,
        notes=("warning: something",),
        scores=tuple(score(name, group) for group in (ALL_ROWS, NEW) for name in names),
        seconds={"hull": 1.25},
    )


def test_tables_say_what_was_measured(result: BacktestResult) -> None:
    header, first, *others = tabulate_discoveries(result)
    row = dict(zip(header, first, strict=True))
    assert (row["predictor"], row["n"], row["stable"]) == ("IRNet, probability", "20", "5")
    counts = result.scores[0].counts
    assert float(row["precision"]) == pytest.approx(counts.precision, abs=5e-4)
    assert float(row["DAF"]) == pytest.approx(counts.precision / 0.25, abs=5e-3)
    assert row["of"] == "4.00"
    assert row["1000"] == ""
    assert len(others) == 3
    assert len(tabulate_discoveries(result, groups=(NEW,))) == 3
    assert len(tabulate_discoveries(result, "same competitors")) == 1


def test_shortlists_have_intervals(result: BacktestResult) -> None:
    table = tabulate_shortlists(result, (ALL_ROWS,))
    assert len(table) == 1 + 2 * 2
    row = dict(zip(table[0], table[1], strict=True))
    assert float(row["precision"]) == int(row["stable"]) / int(row["first"])
    low, high = map(float, row["95 % interval"].split("–"))
    assert low < float(row["precision"]) <= high
    assert float(row["DAF"]) == pytest.approx(float(row["precision"]) / 0.25)


def test_errors_stand_once_for_rankings_of_the_same_energies(result: BacktestResult) -> None:
    header, whole, new = tabulate_hull_errors(result, "label")
    assert [whole[1], new[1]] == ["IRNet, energy"] * 2
    assert whole[header.index("MAE")] == "0.100"
    assert whole[7:] == ["1", "0.100", "0.100", "+0.100"]
    assert new[7:] == ["0", "", "", ""]
    assert len(tabulate_probabilities(result)) == 3


def test_test_is_described_in_sentences(result: BacktestResult) -> None:
    text = " ".join(describe_test(result))
    assert "column hull" in text
    assert "1,000 of 1,200 reference phases of refs.csv" in text
    assert "Warning: something." in text
    assert "Left out: 3 rows, no hull." in text
    assert "compete with each other" in text


def test_summary_is_of_the_ranking_that_users_get(result: BacktestResult) -> None:
    (sentence,) = summarise(result)
    counts, found = result.scores[0].counts, result.scores[0].found
    assert sentence.startswith(f"IRNet, probability: {counts.true_positives} of {counts.selected} ")
    assert f"acceleration {counts.acceleration:.2f} of at most 4.00" in sentence
    assert sentence.endswith(f"{found[5]} of the first 5, {found[10]} of the first 10")
    forest = replace(result.scores[1], predictor="random_forest_energy")
    (other, last) = summarise(replace(result, scores=(result.scores[1], forest)))
    assert other.startswith("IRNet, energy")
    assert last.startswith("Random Forest, energy")


def test_files_name_no_folder(result: BacktestResult, tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "compounds.parquet"
    data.touch()
    files = write_report(
        result,
        load_model(tiny_model),
        tmp_path,
        ("screening", "backtest", str(data), "--seed", "1"),
    )
    assert {path.name for path in files} >= {RECORD_NAME, REPORT_NAME}
    record = json.loads((tmp_path / RECORD_NAME).read_text())
    assert record["making"]["command"] == "screening backtest compounds.parquet --seed 1"
    assert record["request"]["data"] == ["compounds.parquet"]
    assert record["scores"][0]["counts"]["acceleration"] == pytest.approx(
        record["scores"][0]["counts"]["precision"] / 0.25
    )
    for path in files:
        assert str(tmp_path) not in path.read_text()
        assert "/a/" not in path.read_text()
