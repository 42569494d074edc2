from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import Result

from screening.feature_tables import featurize_structures, write_features
from screening.structures import read_structure_table
from tests.screening.benchmark.small_data import write_data

Screening = Callable[..., Result]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small data set."""
    return write_data(tmp_path_factory.mktemp("benchmark") / "data")


@pytest.fixture
def benchmark(screening: Screening, data: Path, tmp_path: Path) -> Screening:
    """Run a benchmark at the smallest budget in this process."""

    def call(name: str, *options: object) -> Result:
        return screening(
            *("benchmark", name, "--data", data, "--work", tmp_path / "work"),
            *("--budget", "tiny", "--workers", 0, "--device", "cpu", *options),
        )

    return call


def test_a_benchmark_is_run_listed_and_reported(benchmark: Screening, tmp_path: Path) -> None:
    listed = benchmark("table-3", "--list")
    assert listed.exit_code == 0 and listed.stdout.count("missing") == 2
    assert not (tmp_path / "work").exists()
    done = benchmark("table-3", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "Ridge" in readme and results
    listed = benchmark("table-3", "--list")
    assert listed.stdout.count("done") == 2 and listed.stdout.count("eV/atom") == 2
    assert "about 0 core seconds left" in listed.stderr
    larger = benchmark("table-3", "--list", "--budget", "cpu")
    assert "done" not in larger.stdout and "changed" not in larger.stdout


def test_the_report_alone_needs_no_data(
    benchmark: Screening, screening: Screening, tmp_path: Path
) -> None:
    assert benchmark("table-3", "--only", "ridge").exit_code == 0
    report = screening(
        *("benchmark", "table-3", "--work", tmp_path / "work", "--budget", "tiny"),
        *("--report-only", "--out", tmp_path / "out"),
    )
    assert report.exit_code == 0, report.output
    assert "report of 1 trials, 1 missing" in report.stderr
    assert (tmp_path / "out" / "README.md").is_file()


def test_only_runs_what_has_the_pattern_in_its_name(benchmark: Screening, tmp_path: Path) -> None:
    assert benchmark("table-3", "--only", "rid?e").exit_code == 0
    found = [path.name for path in (tmp_path / "work" / "tiny" / "table-3").glob("*.json")]
    assert found == ["ridge-s0.json"]
    none = benchmark("table-3", "--only", "svr")
    assert none.exit_code == 2 and "--list" in none.stderr


def test_all_benchmarks_are_run_and_reported_by_one_command(
    benchmark: Screening, screening: Screening, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    done = benchmark("all", "--out", out, "--only", "ridge-s0")
    assert done.exit_code == 0, done.output
    assert "table-3: Traditional regressors" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["table-3", "table-4"]
    listed = benchmark("all", "--list")
    assert listed.exit_code == 0 and "known-only" in listed.stdout
    assert listed.stdout.count(" done ") == len(list(work.glob("tiny/*/*.json")))
    again = screening(
        *("benchmark", "all", "--work", work, "--budget", "tiny"),
        *("--report-only", "--out", tmp_path / "again"),
    )
    assert again.exit_code == 0, again.output
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["table-3", "table-4"]
    nothing = screening("benchmark", "all", "--work", out, "--report-only", "--out", work)
    assert nothing.exit_code == 2 and "holds no result of all" in nothing.stderr


def test_given_features_are_used(benchmark: Screening, data: Path, tmp_path: Path) -> None:
    crystals = [
        crystal
        for path in sorted(data.glob("mp_*.parquet"))
        for crystal in read_structure_table(path)[0]
    ]
    write_features(featurize_structures(crystals, tmp_path / "parts"), tmp_path / "some.parquet")
    done = benchmark("table-3", "--only", "ridge", "--features", tmp_path / "some.parquet")
    assert done.exit_code == 0, done.output
    assert "of the features are given" in done.stderr and "sites:" not in done.stderr
    without = benchmark("table-3", "--only", "ridge", "--features", tmp_path / "none.parquet")
    assert without.exit_code == 3 and "none.parquet" in without.stderr


def test_failing_trials_are_told_at_the_end(
    benchmark: Screening, screening: Screening, data: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for file in data.iterdir():
        table = pd.read_parquet(file)
        if "proto" in table and file.name != "eval_prototypes.parquet":
            table["proto"] = "none of the ten"
        table.to_parquet(few / file.name)
    done = screening(
        *("benchmark", "leave-prototype-out", "--data", few, "--work", tmp_path / "work"),
        *("--budget", "tiny", "--workers", 0, "--device", "cpu", "--out", tmp_path / "out"),
    )
    assert done.exit_code == 7, done.output
    assert "1 of 2 trials failed: ABC2_16_225_a_b_c-irnet-17-s0" in done.stderr
    assert "leaves" in done.stderr and "failed" in (tmp_path / "out" / "README.md").read_text()
    result = tmp_path / "work" / "tiny" / "leave-prototype-out" / "ordinary-irnet-17-s0.json"
    assert json.loads(result.read_text())["failure"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("table2", "--work", "work"), 2, 'did you mean "table-2"'),
        (("table-2", "--work", "work", "--budget", "huge"), 2, "tiny, cpu, full"),
        (("table-2", "--work", "work"), 2, "--data"),
        (("table-2", "--work", "work", "--report-only"), 2, "--out"),
        (("table-2", "--work", "work", "--data", "none"), 3, "mp_icsd"),
        (("table-2", "--work", "work", "--data", "none", "--device", "gpu"), 2, "--device"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    screening: Screening,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = screening("benchmark", *arguments)
    assert result.exit_code == code and said in result.stderr, result.output


def test_ctrl_c_ends_the_processes_and_the_command_goes_on(
    benchmark: Screening, data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    assert benchmark("table-3", "--only", "ridge").exit_code == 0  # the arrays are made
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "screening", "benchmark", "table-2", "--data", str(data)),
            *("--work", str(work), "--budget", "tiny", "--device", "cpu", "--workers", "1"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    while not list(work.glob("tiny/table-2/*.checkpoint")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all processes of the command
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said and "Traceback" not in said
    assert len(list(work.glob("tiny/table-2/*.json"))) < 12
    again = benchmark("table-2", "--only", "oqmd-sc-paper-irnet")
    assert again.exit_code == 0, again.output
    assert (work / "tiny" / "table-2" / "oqmd-sc-paper-irnet-17-s0.json").is_file()
