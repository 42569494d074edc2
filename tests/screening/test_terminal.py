from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from screening.comparison import Comparison, Disagreement, Overlap, StableCounts
from screening.settings import RankBy
from screening.terminal import (
    describe_comparison,
    describe_hull,
    describe_intervals,
    describe_order,
    describe_requirements,
    draw_ranking,
    open_stdout,
    warn_of_bias,
)

ROW: dict[str, Any] = {
    "rank": 1234, "formula": "TbLuO3", "prototype": "perovskite",
    "site_A": "Tb", "site_B": "Lu", "site_X": "O", "site_D": None,
    "energy_above_hull_ev_per_atom": -0.02134, "energy_above_hull_std_ev_per_atom": 0.0456,
    "p_stable": 0.934, "decomposition": "0.5 Tb2O3 + 0.5 Lu2O3",
    "formation_enthalpy_ev_per_atom": -3.99612, "formation_enthalpy_std_ev_per_atom": 0.0334,
    "formation_enthalpy_low_ev_per_atom": -4.0849, "formation_enthalpy_high_ev_per_atom": -3.9,
    "rf_energy_above_hull_ev_per_atom": 0.012, "rf_formation_enthalpy_ev_per_atom": -3.9837,
    "rf_rank": 1217, "known": False, "known_id": None, "known_in_prototype": None,
    "charge_neutral": None, "unseen_elements": "",
}  # fmt: skip
KNOWN = {"known": True, "known_id": "mp-12345", "known_in_prototype": True}
WITHOUT_HULL = dict.fromkeys(
    (
        "energy_above_hull_ev_per_atom", "energy_above_hull_std_ev_per_atom", "p_stable",
        "decomposition", "rf_energy_above_hull_ev_per_atom",
    )
)  # fmt: skip
WITHOUT_INTERVALS = dict.fromkeys(
    ("formation_enthalpy_low_ev_per_atom", "formation_enthalpy_high_ev_per_atom")
)


def draw(*rows: dict[str, Any], width: int = 120, **options: Any) -> list[str]:
    """Lines of a drawn table, runs of spaces as one."""
    output = io.StringIO()
    console = Console(width=width, file=output)
    console.print(draw_ranking(pa.Table.from_pylist(rows), "Top", **options))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return [" ".join(line.split()) for line in lines]


def legend_start(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("eV/atom"))


def legend(lines: list[str]) -> str:
    return " ".join(lines[lines.index(legend_start(lines)) :])


def test_table_shows_what_a_chemist_acts_on() -> None:
    lines = draw(ROW, ROW | KNOWN | {"rank": 20}, width=130, hull="two phases", stable_within=0.07)
    assert lines[0] == "Top, perovskite"
    assert lines[1:3] == [
        "p RF RF",
        "rank formula A B X above hull stable ΔHf 90 % interval hull rank known decomposes into",
    ]
    numbers = "-0.021 ± 0.046 0.93 -3.996 [-4.08, -3.90] 0.012 1,217"
    assert lines[4] == f"1,234 TbLuO3 Tb Lu O {numbers} 0.5 Tb2O3 + 0.5 Lu2O3"
    assert lines[5] == f"20 TbLuO3 Tb Lu O {numbers} mp-12345 0.5 Tb2O3 + 0.5 Lu2O3"
    assert "above the hull of two phases ± standard deviation" in legend(lines)
    assert "probability of at most 0.07 above it" in legend(lines)
    assert "known: in the training data or among the references" in legend(lines)
    assert "unseen" not in legend(lines)
    assert "structure type" not in legend(lines)


@pytest.mark.parametrize("width", range(50, 131, 10))
def test_a_narrow_table_says_what_it_leaves_out(width: int) -> None:
    rows = [ROW, ROW | KNOWN | {"rank": 12345, "prototype": "cubic_perovskite"}]
    lines = draw(*rows, width=width)
    table, text = " ".join(lines[: lines.index(legend_start(lines))]), legend(lines)
    least_first = {
        "90 % interval": "[-4.08, -3.90]", "decomposes into": "0.5 Tb2O3", "RF rank": "1,217",
        "ΔHf": "-3.996", "RF hull": "0.012", "known": "mp-12345", "A B X": "Tb Lu O",
    }  # fmt: skip
    named = [name for name in text.partition("no room here for: ")[2].split(", ") if name]
    assert named == list(least_first)[: len(named)]
    assert len(named) <= {50: 7, 60: 6, 70: 5, 80: 3, 90: 2, 100: 2}.get(width, 1)
    for name, value in least_first.items():
        assert (value in table) == (name not in named)
        assert (f"{name}:" in text) <= (name not in named)
    for value in ("12,345", "TbLuO3", "-0.021 ± 0.046", "0.93"):  # in one piece, always
        assert value in table


def test_a_decomposition_breaks_between_phases_only() -> None:
    mixture = "0.25 Ba4Ti11O26 + 0.3333 Na4Ti3(FeO4)2 + 0.5 NaLuO2 + Na2O"
    rows = [ROW | KNOWN | {"decomposition": mixture, "rank": number} for number in (1, 2)]
    lines = draw(*rows, width=118)
    phases = [f"+ {phase}" for phase in mixture.split(" + ")]
    for phase in (phases[0][2:], *phases[1:]):
        assert sum(phase in line for line in lines) == 2
    assert sum(mixture in line for line in draw(*rows, width=160)) == 2


@pytest.mark.parametrize(
    ("probability", "shown"),
    [(0.0, "<0.01"), (0.004, "<0.01"), (0.005, "0.01"), (0.994, "0.99"), (0.995, ">0.99"),
     (1.0, ">0.99")],
)  # fmt: skip
def test_no_probability_is_certain(probability: float, shown: str) -> None:
    assert f" {shown} -3.996" in draw(ROW | {"p_stable": probability})[4]


def test_table_marks_known_and_unseen() -> None:
    lines = draw(
        ROW | KNOWN | {"known_in_prototype": False},
        ROW | KNOWN | {"known_id": None, "known_in_prototype": None},
        ROW | {"unseen_elements": "Pu Np"},
        width=140,
    )
    assert "1,217 mp-12345* 0.5" in lines[4]
    assert "1,217 yes 0.5" in lines[5]
    assert "1,217 Pu Np 0.5" in lines[6]
    assert "*: in another structure type" in legend(lines)
    assert "unseen: not in the training data" in legend(lines)


def test_known_rows_are_dim() -> None:
    table = draw_ranking(pa.Table.from_pylist([ROW, ROW | KNOWN]), "")
    assert table.dim == (False, True)


@pytest.mark.parametrize("width", [80, 120])
def test_without_a_hull_enthalpies_stand_side_by_side(width: int) -> None:
    row = ROW | WITHOUT_HULL
    lines = draw(row, row | {"prototype": "B2", "rf_rank": None}, width=width)
    assert lines[1:3] == ["RF", "rank formula A B X prototype ΔHf 90 % interval RF rank"]
    assert lines[4] == "1,234 TbLuO3 Tb Lu O perovskite -3.996 [-4.08, -3.90] -3.984 1,217"
    assert lines[5] == "1,234 TbLuO3 Tb Lu O B2 -3.996 [-4.08, -3.90] -3.984 -"
    assert "hull" not in legend(lines)
    spread = draw(row | WITHOUT_INTERVALS, width=width)
    assert spread[4] == "1,234 TbLuO3 Tb Lu O -3.996 0.033 -3.984 1,217"
    assert "±: spread of the members" in legend(spread)


def test_without_a_standard_deviation_there_is_no_sign_of_one() -> None:
    row = ROW | {"energy_above_hull_std_ev_per_atom": None, "p_stable": None}
    lines = draw(row, width=140)
    assert "Tb Lu O -0.021 -3.996" in lines[4]
    assert "stable" not in lines[2]


def test_brackets_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW | {"prototype": "mine[old]"}, ROW | {"prototype": "mine[bold]"}]
    assert "mine[bold]" in " ".join(draw(*rows))
    open_stdout().print(draw_ranking(pa.Table.from_pylist(rows), "of [old]"))
    shown = " ".join(capsys.readouterr().out.split())
    assert "mine[old]" in shown
    assert "of [old]" in shown
    assert "[-4.08, -3.90]" in shown


def test_no_rows_are_drawn_as_none() -> None:
    empty = pa.Table.from_pylist([ROW]).slice(0, 0)
    console = Console(file=io.StringIO())
    console.print(draw_ranking(empty, "Top 0"))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "Top 0\n"


def test_order_says_what_it_goes_by_and_why() -> None:
    assert describe_order(RankBy.P_STABLE, RankBy.P_STABLE) == (
        "Ranked by probability of being stable, then energy above hull."
    )
    for asked, used, reason in (
        (RankBy.P_STABLE, RankBy.ENERGY_ABOVE_HULL, "the model was never calibrated."),
        (RankBy.UPPER_BOUND, RankBy.ENERGY_ABOVE_HULL, "calibrated and has a single member."),
        (RankBy.P_STABLE, RankBy.FORMATION_ENTHALPY, "no hull was computed."),
    ):
        assert describe_order(asked, used).endswith(reason)
    assert "not by probability" in describe_order(RankBy.P_STABLE, RankBy.FORMATION_ENTHALPY)


def test_comparison_is_told_in_sentences() -> None:
    comparison = Comparison(
        candidates=5550, enthalpy_correlation=0.98123, hull_correlation=0.5,
        overlaps=(Overlap(10, 4, 0.02), Overlap(1000, 801, 180.2)),
        stable=StableCounts(0.05, irnet=1812, forest=640, both=590),
        energy="energy above hull", among=100,
        disagreements=(Disagreement("CsHO3", "perovskite", 4883, 4, 0.6412, -0.727),),
    )  # fmt: skip
    lines = describe_comparison(comparison)
    assert "0.981 (formation enthalpy), 0.500 (energy above hull)" in lines[0]
    assert (
        lines[1]
        == "They share 4 of the top 10 (by chance 0), 801 of the top 1,000 (by chance 180)."
    )
    assert "1,812 by IRNet, 640 by the Random Forest, 590 by both" in lines[2]
    assert "100 best" in lines[3]
    assert lines[4] == (
        "  CsHO3 (perovskite): IRNet 0.641, rank 4,883; Random Forest -0.727, rank 4"
    )
    bare = Comparison(1, None, None, (), None, "formation enthalpy", 100, ())
    assert describe_comparison(bare) == []


def test_requirements_say_what_they_removed() -> None:
    removed = {
        "charge_neutral": {"removed": 3210, "not_applicable": 41},
        "electronegativity_order!": {"removed": 51, "not_applicable": 40},
        "p_stable >= 0.5": {"removed": 0, "not_applicable": 0},
    }
    assert describe_requirements(removed) == [
        "required charge_neutral: 3,210 candidates removed; it does not apply to 41, which stay.",
        "required electronegativity_order!: 51 candidates removed, 40 of them without a value.",
        "required p_stable >= 0.5: 0 candidates removed.",
    ]


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
    with_hull = warn_of_bias({"B2": error, "spinel": None}, hull=True)
    assert "not stability" not in with_hull[0]
    assert "missing from the hull" in with_hull[0]
    assert with_hull[1:] == lines[1:]


def test_the_hull_is_named() -> None:
    none: dict[str, Any] = {"references": None, "predicted": {}, "candidates_compete": False}
    assert describe_hull(none) is None
    references = {"file": "data/mp.parquet", "phases": 84484, "functional": None}
    assert describe_hull(none | {"references": references}) == (
        "84,484 reference phases in mp.parquet"
    )
    declared = references | {"functional": "r2SCAN", "phases": 1}
    everything = {
        "references": declared,
        "predicted": {"rocksalt": 1000, "fluorite": 234},
        "candidates_compete": True,
    }
    assert describe_hull(everything) == (
        "1 reference phase in mp.parquet (r2SCAN) and 1,234 phases of 2 structure types that the "
        "model predicts itself, the other candidates among them"
    )
