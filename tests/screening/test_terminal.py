from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from prototypes import element_pool
from screening.enumerate import Shard
from screening.folder import Receipt
from screening.terminal import (
    CampaignProgress,
    describe_intervals,
    describe_pools,
    draw_ranking,
    open_stdout,
    warn_of_bias,
)

ROW: dict[str, Any] = {
    "rank": 1234, "formula": "NaCl", "prototype": "B2", "formation_enthalpy_ev_per_atom": -1.98765,
    "formation_enthalpy_std_ev_per_atom": None, "rf_formation_enthalpy_ev_per_atom": None,
    "formation_enthalpy_low_ev_per_atom": None, "formation_enthalpy_high_ev_per_atom": None,
    "rf_rank": None, "known": True, "unseen_elements": "",
}  # fmt: skip


def test_the_default_pool_says_what_it_leaves_out() -> None:
    (line,) = describe_pools(dict.fromkeys("AB", element_pool("default")))
    assert line.startswith("elements on A, B: 76 (default pool")
    assert "noble gases, Tc, Pm and everything beyond Bi" in line


def test_pools_are_named_by_role() -> None:
    lines = describe_pools({"A": element_pool("all89"), "X": element_pool("O,S")})
    assert lines[0].startswith("elements on A: 89 (H He Li")
    assert lines[1] == "elements on X: 2 (O S)"


def test_table_marks_known_and_unseen() -> None:
    output = io.StringIO()
    console = Console(width=120, file=output)
    rows = [ROW, ROW | {"known": False, "unseen_elements": "Pa", "rf_rank": 7}]
    console.print(draw_ranking(pa.Table.from_pylist(rows), "title"))
    lines = [line for line in output.getvalue().splitlines() if "NaCl" in line]
    assert "1,234" in lines[0]
    assert "-1.988" in lines[0]
    assert "known" in lines[0]
    assert "known" not in lines[1]
    assert "unseen Pa" in lines[1]


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_a_terminal(width: int) -> None:
    output = io.StringIO()
    row = ROW | {
        "rank": 20, "formula": "KMgF3", "prototype": "cubic_perovskite",
        "site_A": "K", "site_B": "Mg", "site_X": "F", "rf_rank": 16,
        "formation_enthalpy_std_ev_per_atom": 0.0334, "rf_formation_enthalpy_ev_per_atom": -3.2184,
    }  # fmt: skip
    rows = pa.Table.from_pylist([row, row | {"unseen_elements": "Pa", "known": False}])
    Console(width=width, file=output).print(draw_ranking(rows, "title"))
    lines = [" ".join(line.split()) for line in output.getvalue().splitlines()]
    assert lines[1:3] == ["RF", "rank formula A B X prototype IRNet ± RF rank"]
    assert "20 KMgF3 K Mg F cubic_perovskite -1.988 0.033 -3.218 16 known" in lines
    assert "20 KMgF3 K Mg F cubic_perovskite -1.988 0.033 -3.218 16 unseen Pa" in lines


@pytest.mark.parametrize("width", [96, 100])
def test_intervals_stand_beside_the_prediction(width: int) -> None:
    output = io.StringIO()
    row = ROW | {
        "rank": 12345, "formula": "KMgF3", "prototype": "cubic_perovskite", "rf_rank": 16789,
        "site_A": "K", "site_B": "Mg", "site_X": "F", "known": False, "unseen_elements": "Pu Np",
        "formation_enthalpy_low_ev_per_atom": -2.4049,
        "formation_enthalpy_high_ev_per_atom": 1.0451, "rf_formation_enthalpy_ev_per_atom": -3.2184,
    }  # fmt: skip
    Console(width=width, file=output).print(draw_ranking(pa.Table.from_pylist([row]), "title"))
    lines = [" ".join(line.split()) for line in output.getvalue().splitlines()]
    row_text = "12,345 KMgF3 K Mg F cubic_perovskite -1.988 [-2.40, 1.05] -3.218 16,789 unseen Pu"
    assert any(line.startswith(row_text) for line in lines)
    assert "90 % interval" in output.getvalue()
    assert "±" not in output.getvalue()


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    row = ROW | {"prototype": "mine[old]", "formation_enthalpy_low_ev_per_atom": -2.4}
    open_stdout().print(draw_ranking(pa.Table.from_pylist([row]), "title"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "mine[old]" in shown
    assert "[low, high] (calibrated 90 % interval)" in shown


def test_notes_on_intervals_give_the_measured_coverage() -> None:
    measured = {"n": 77, "coverage": 0.883, "low": 0.79, "high": 0.94}
    intervals = {
        "level": 0.9, "rows": 1234, "chemical_systems": 567, "measured_on": "x",
        "measured_coverage": {"B2": measured, "spinel": None},
    }  # fmt: skip
    lines = describe_intervals(intervals, "tiny")
    assert "1,234 compounds of 567 chemical systems" in lines[0]
    assert lines[1].startswith("B2: they held 88% of 77 such compounds")
    assert lines[1].endswith("79% to 94%).")
    assert lines[2] == "spinel: what they hold there was never measured."
    assert describe_intervals("never calibrated, so", "tiny") == [
        "model tiny: never calibrated, so"
    ]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.49, 0.58, "(95 % interval 49% to 58%), not 90%: too narrow here, errors are often "),
        (0.93, 0.99, "(95 % interval 93% to 99%), more than 90%: wider here than they need be."),
    ],
)
def test_coverage_that_breaks_the_promise_is_called_so(
    low: float, high: float, verdict: str
) -> None:
    measured = {"n": 473, "coverage": (low + high) / 2, "low": low, "high": high}
    intervals = {
        "level": 0.9, "rows": 9, "chemical_systems": 9, "measured_coverage": {"B2": measured},
    }  # fmt: skip
    assert verdict in describe_intervals(intervals, "tiny")[1]


def test_warning_gives_the_measured_bias() -> None:
    error = {"n": 77, "mae_ev_per_atom": 0.231, "bias_ev_per_atom": -0.121}
    lines = warn_of_bias({"B2": error, "spinel": None})
    assert "not stability" in lines[0]
    assert "B2: against DFT on 77 such compounds" in lines[1]
    assert "0.12 eV/atom too negative (too stable)" in lines[1]
    assert "spinel" in lines[2]
    assert "never measured" in lines[2]


def test_progress_counts_only_what_this_run_computes(capsys: pytest.CaptureFixture[str]) -> None:
    with CampaignProgress() as progress:
        progress.begin({"B2": 100}, {"A": (3, 11)}, done=60)
        progress.watch_at("http://127.0.0.1:8787/status")
        progress._started -= 4.0
        progress.advance(Receipt(Shard(0, "B2", 0, 40), 40, 0, {}, "", "cpu", "float32", "host"))
        progress.advance(Receipt(Shard(1, "B2", 40, 80), 0, 0, {}, "", "cpu", "float32", "host"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5  # a shard without candidates is no news
    assert lines[0] == "100 candidates: B2 100"
    assert lines[2] == "going on: 60 of 100 candidates are finished already"
    assert lines[3] == "dashboard: http://127.0.0.1:8787/status"
    assert lines[4] == "100 of 100 candidates, 10 candidates/s, 0 s left"
