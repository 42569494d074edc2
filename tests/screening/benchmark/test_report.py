from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from screening.benchmark.report import (
    RECORD_NAME,
    REPORT_NAME,
    describe_making,
    escape_markdown,
    list_shortened,
    list_undone,
    read_record,
    write_report,
)
from screening.benchmark.sections import SECTIONS
from screening.benchmark.summary import gather
from screening.benchmark.trial import Trial, TrialResult
from screening.errors import InputDataError, OutputError
from tests.screening.benchmark.made_up import (
    make_benchmark,
    make_history,
    make_result,
    make_trial,
)

TRIALS = tuple(
    make_trial(
        f"icsd-{model}",
        model,
        data="oqmd-sc",
        seed=seed,
        shortened="25 epochs instead of 80" if seed else "",
    )
    for model in ("plain-17", "irnet-17", "irnet-24")
    for seed in (0, 1)
)


def measure(trial: Trial, mae: float) -> TrialResult:
    return make_result(
        trial,
        mae,
        {"eval/L1_0/ideal": [mae / 3] * 7},
        history=make_history([0.3, 0.1234567, mae]),
        figures={"best_epoch": 2.0},
        chosen={"architecture": trial.model, "learning_rate": 0.123456789},
    )


RESULTS = (
    measure(TRIALS[0], 0.1234567),
    measure(TRIALS[1], 0.1334567),
    measure(TRIALS[2], 0.11),
    make_result(TRIALS[4], 0.0, failure="loss became NaN | epoch 3", test={}),
)


def test_the_report_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    benchmark = make_benchmark("table-2", TRIALS)
    files = write_report(benchmark, "cpu", RESULTS, tmp_path / "new", ["screening", str(tmp_path)])
    assert {file.name for file in files} == {file.name for file in (tmp_path / "new").iterdir()}
    text = (tmp_path / "new" / REPORT_NAME).read_text()
    assert "# Title of table-2" in text
    assert "Budget `cpu`: 3 of 6 trials are done, 1 failed, 2 missing." in text
    assert "| 17 | 0.128 ± 0.007 (2) | 0.0653 | 0.1100 (1 of 2) | 0.0411 |" in text
    assert "| 24 | not run | 0.0719 | failed | 0.0403 |" in text
    assert "- icsd-irnet-24-s0 failed: loss became NaN \\| epoch 3" in text
    assert "- icsd-irnet-17, seed 1: missing" in text
    assert "- icsd-irnet-24, seed 1: missing" in text
    assert "- 25 epochs instead of 80 (3 of 6 trials)." in text
    assert "- Machine: 2 cores of a kind; 3 trials, 37.5 s of training." in text
    assert "- Commit: abcdef (3 trials)." in text
    assert "- Seeds: 0, 1." in text
    assert "- Epochs run: 3." in text
    assert f"screening {tmp_path.name}\n" in text
    for file in files:
        if file.suffix == ".svg":
            assert f"]({file.name})" in text
            ElementTree.fromstring(file.read_text())


def test_the_record_holds_what_the_report_shows(tmp_path: Path) -> None:
    benchmark = make_benchmark("table-2", TRIALS)
    first, second = tmp_path / "first", tmp_path / "second"
    files = write_report(benchmark, "cpu", RESULTS, first)
    read = read_record(first / RECORD_NAME)
    assert [result.trial for result in read] == [result.trial for result in RESULTS]
    assert [result.failure for result in read] == [result.failure for result in RESULTS]
    assert read[0].test["held-out"].mae == pytest.approx(RESULTS[0].test["held-out"].mae, rel=1e-5)
    assert read[0].history[1]["watched_mae"] == pytest.approx(0.1234567, rel=1e-3)
    assert read[0].seconds == RESULTS[0].seconds
    write_report(benchmark, "cpu", read, second)
    for file in files:
        assert (second / file.name).read_bytes() == file.read_bytes()


def test_the_record_is_strict_json_with_tables_and_trials(tmp_path: Path) -> None:
    write_report(make_benchmark("table-2", TRIALS), "cpu", RESULTS, tmp_path)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / RECORD_NAME).read_text()
    record = json.loads(text, parse_constant=refuse)
    assert [Trial.from_json(each) for each in record["trials"]] == list(TRIALS)
    assert ["17", "0.128 ± 0.007 (2)", "0.0653", "0.1100 (1 of 2)", "0.0411"] in record["tables"][
        0
    ]["rows"]
    assert len(record["undone"]) == 3


@pytest.mark.parametrize("name", [*SECTIONS, "of-another-kind"])
def test_nothing_measured_is_no_error_and_claims_nothing(name: str, tmp_path: Path) -> None:
    trials = [replace(trial, benchmark=name) for trial in TRIALS]
    files = write_report(make_benchmark(name, trials), "full", [], tmp_path)
    assert {file.name for file in files} == {REPORT_NAME, RECORD_NAME}
    text = (tmp_path / REPORT_NAME).read_text()
    assert "0 of 6 trials are done" in text
    assert "Nothing has been measured yet." in text
    assert "±" not in text.partition("##")[2]
    assert read_record(tmp_path / RECORD_NAME) == ()


def test_results_of_other_trials_are_not_shown(tmp_path: Path) -> None:
    foreign = make_result(replace(TRIALS[0], changes=(("epochs", 7),)), 0.777)
    write_report(make_benchmark("table-2", TRIALS), "cpu", [foreign], tmp_path)
    assert "0.777" not in (tmp_path / REPORT_NAME).read_text()
    assert "0.777" not in (tmp_path / RECORD_NAME).read_text()


def test_plots_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "depth-7.svg").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    write_report(make_benchmark("table-2", TRIALS), "cpu", RESULTS, tmp_path)
    assert not (tmp_path / "depth-7.svg").exists()
    assert (tmp_path / "notes.txt").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_report(make_benchmark("table-2", TRIALS), "cpu", RESULTS, tmp_path / "file" / "out")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', '{"format": 1, "results": [{}]}'])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / RECORD_NAME
    path.write_text(text)
    with pytest.raises(InputDataError, match="no record of a benchmark"):
        read_record(path)


def test_a_missing_record_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="write the report again"):
        read_record(tmp_path / "none.json")


def test_machines_dates_and_commits_are_all_named() -> None:
    others = {"machine": "a GPU", "commit": None, "created": "2026-02-03T00:00:00+00:00"}
    summaries = gather(TRIALS, [RESULTS[0], replace(RESULTS[1], **others)])
    lines = describe_making(summaries)
    assert lines[:4] == [
        "Machine: 2 cores of a kind; 1 trial, 12.5 s of training.",
        "Machine: a GPU; 1 trial, 12.5 s of training.",
        "Date: 2026-01-02 to 2026-02-03.",
        "Commit: abcdef (1 trial), unknown (1 trial).",
    ]
    assert "Packages: torch 2.0." in lines
    assert f"SHA-256 of the data: oqmd-sc {'d' * 12}." in lines
    assert list_undone(summaries)[0] == "icsd-irnet-17, seed 0, 1: missing"
    assert list_shortened(TRIALS[::2]) == []


@given(st.text(alphabet="ab_*`|[]<>\\\n ", max_size=12))
def test_markdown_shows_texts_as_they_are(text: str) -> None:
    markdown = MarkdownIt("commonmark").enable("table")
    shown = markdown.render(f"| head |\n| --- |\n| x{escape_markdown(text)}x |\n")
    (cell,) = [each.text for each in ElementTree.fromstring(shown).iter("td")]
    assert cell == f"x{' '.join(text.split())}x"
