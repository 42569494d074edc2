from __future__ import annotations

import numpy as np
import pytest

from screening.benchmark.sections.compounds import (
    describe_known_only,
    describe_left_out,
    describe_search,
)
from screening.benchmark.summary import bound, gather
from tests.screening.benchmark.made_up import make_errors, make_result, make_trial

L1_0 = np.random.default_rng(0).normal(-0.1, 0.2, size=11)


def test_table_5_has_an_interval_for_each_structure_and_geometry() -> None:
    trials = [make_trial(name, name, tests=("eval",)) for name in ("irnet-17", "random_forest")]
    groups = {
        "eval/L1_0/relaxed": L1_0,
        "eval/L1_0/ideal": 2 * L1_0,
        "eval/all/ideal": np.full(300, 0.25),
        "eval/L1_0/ideal/MP-legacy": L1_0[:4],
    }
    result = make_result(trials[0], 0.1, {name: list(found) for name, found in groups.items()})
    whole, legacy, bias = describe_search(gather(trials, [result]))
    assert [list(row[:3]) for row in whole.table] == [
        ["structure", "geometry", "n"],
        ["L1_0", "relaxed", "11"],
        ["L1_0", "ideal", "11"],
        ["all structures", "relaxed", ""],
        ["all structures", "ideal", "300"],
    ]
    interval = bound([make_errors(L1_0)])
    shown = f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"
    assert list(whole.table[1][3:]) == [shown, "missing", "0.4793", "0.4419"]
    assert list(whole.table[4][3:]) == ["0.250 (0.250–0.250)", "missing", "", ""]
    assert list(whole.table[3][3:5]) == ["missing", "missing"]
    assert [plot.file for plot in whole.plots] == ["search-relaxed.svg", "search-ideal.svg"]
    assert "paper: IRNet-17: L1_0 0.4419." in whole.plots[1].svg
    assert [list(row[:3]) for row in legacy.table[1:]][1] == ["L1_0", "ideal", "4"]
    assert "paper" not in " ".join(legacy.table[0])
    assert float(bias.table[1][1].split(" ")[0]) == pytest.approx(L1_0.mean(), abs=1e-4)


def test_plots_that_leave_models_out_say_so() -> None:
    trials = [make_trial(str(place), "irnet-17", tests=("eval",)) for place in range(8)]
    results = [make_result(trial, 0.1, {"eval/B2/ideal": L1_0.tolist()}) for trial in trials]
    for describe in (describe_search, describe_known_only):
        for count, says in ((7, False), (8, True)):
            section = describe(gather(trials[:count], results[:count]))[0]
            assert ("first 7 of 8 models" in section.text) == says
            assert len(section.table[0]) >= count


def test_what_is_left_out_stands_beside_the_ordinary_split_the_worst_first() -> None:
    usual = make_trial("usual", "irnet-17", tests=("elements",))
    left = [make_trial(x, "irnet-17", holdout=f"element:{x}") for x in ("O", "F", "Fe", "La")]
    results = [
        make_result(usual, 0.05, {"element/O": [0.1, 0.1], "element/F": [0.2]}),
        make_result(left[0], 0.3),
        make_result(left[1], 0.5),
        make_result(left[2], 0.1),
    ]
    (section,) = describe_left_out(gather([usual, *left], results))
    assert [list(row) for row in section.table[1:]] == [
        ["F", "4", "0.5000 (1)", "1", "0.2000 (1)", "2.50"],
        ["O", "4", "0.3000 (1)", "2", "0.1000 (1)", "3.00"],
        ["Fe", "4", "0.1000 (1)", "", "missing", ""],
        ["La", "", "missing", "", "missing", ""],
    ]
    assert "On all held-out rows of that split: 0.0500 (1)." in section.text
    assert "ordinary split: F 0.2000, O 0.1000." in section.plots[0].svg
    (section,) = describe_left_out(gather(left, results))
    assert [row[4] for row in section.table[1:]] == ["not run"] * 4


def test_each_model_has_its_own_table_of_what_was_left_out() -> None:
    left = [make_trial(name, name, holdout="prototype:AB_1") for name in ("irnet-17", "ridge")]
    sections = describe_left_out(gather(left, [make_result(trial, 0.1) for trial in left]))
    assert [each.title for each in sections] == [
        "Left out: IRNet-17, icsd",
        "Left out: Ridge, icsd",
    ]
    assert [plot.file for each in sections for plot in each.plots] == [
        "left-out.svg",
        "left-out-2.svg",
    ]


def test_known_only_is_compared_group_by_group() -> None:
    trials = [make_trial(data, "irnet-17", data=data) for data in ("icsd", "oqmd-sc")]
    groups = {
        "eval/B2/ideal": [-0.1, -0.3],
        "eval/B2/ideal/strict": [0.4],
        "virtual": [0.2, 0.4],
        "known": [0.1],
    }
    errors, biases = describe_known_only(gather(trials, [make_result(trials[0], 0.1, groups)]))
    assert [list(row) for row in errors.table] == [
        ["tested on", "n", "IRNet-17 on icsd", "IRNet-17 on oqmd-sc"],
        ["virtual", "2", "0.3000 (1)", "missing"],
        ["known", "1", "0.1000 (1)", "missing"],
        ["B2, ideal", "2", "0.2000 (1)", "missing"],
    ]
    assert [row[1] for row in biases.table[1:]] == ["0.3000 (1)", "0.1000 (1)", "-0.2000 (1)"]
    assert [plot.file for plot in errors.plots] == ["known-only.svg"]
