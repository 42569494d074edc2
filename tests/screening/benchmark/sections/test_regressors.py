from __future__ import annotations

import pytest

from screening.benchmark.data import UNITS
from screening.benchmark.definitions import PROPERTIES as LEARNT
from screening.benchmark.paper import TABLE_4
from screening.benchmark.sections.regressors import (
    PROPERTIES,
    describe_baselines,
    describe_distributions,
    describe_properties,
    describe_sizes,
)
from screening.benchmark.summary import gather
from tests.screening.benchmark.made_up import make_result, make_trial


def test_table_3_is_sorted_and_says_what_was_chosen() -> None:
    trials = [make_trial(name, name) for name in ("svr", "ridge", "gradient_boosting")]
    results = [
        make_result(trials[0], 0.2, train_rows=200, seconds=600.0),
        make_result(trials[1], 0.1, chosen={"parameters": {"alpha": 10.0}}),
    ]
    (section,) = describe_baselines(gather(trials, results))
    assert [list(row) for row in section.table[1:]] == [
        ["Ridge", "0.1000 (1)", "0.2610", "0.1700", "900", "12.5 s", "alpha=10"],
        ["SVR", "0.2000 (1)", "0.2430", "0.3400", "200", "10.0 min", ""],
        ["Gradient Boosting", "missing", "", "", "", "", ""],
    ]
    assert [plot.file for plot in section.plots] == ["regressors.svg"]


def test_table_4_has_the_best_regressor_and_the_papers_figure_of_the_same_property() -> None:
    models = ("ridge", "random_forest", "svr", "irnet-17", "irnet-48")
    trials = [
        make_trial(f"{target}-{model}", model, data="mp-c", target=target)
        for target in ("density", "volume_per_atom")
        for model in models
    ]
    errors = {"ridge": 0.5, "random_forest": 0.4, "irnet-17": 0.3}
    results = [
        make_result(trial, errors[trial.model], unit="g/cm^3")
        for trial in trials
        if trial.target == "density" and trial.model in errors
    ]
    section, details, _ = describe_properties(gather(trials, results))
    _, density, volume = section.table
    best = "0.4000 (1), Random Forest; 1 of 3 without a result"
    assert list(density[:5]) == ["mp-c", "density", "g/cm^3", best, "0.5052"]
    assert list(density[5:]) == ["not run", "0.4010", "0.3000 (1)", "0.3480", "missing", "0.3860"]
    assert list(volume[2:5]) == ["Å^3/atom", "missing", ""]
    assert "Bandgap (OQMD-C)" in section.text
    assert "Density (MP-C)" not in section.text
    assert [row[0] for row in details.table[1:]] == [
        *("IRNet-17", "Random Forest", "Ridge"),
        *("SVR", "IRNet-48"),
    ]


def test_properties_of_the_paper_are_among_those_that_are_learnt() -> None:
    assert set(PROPERTIES) <= set(LEARNT)
    assert set(PROPERTIES.values()) <= set(TABLE_4)
    for (data, target), row in PROPERTIES.items():
        assert TABLE_4[row].data.lower() == data
        assert target in UNITS


def test_figure_5_has_the_percentile_that_was_measured_and_the_papers() -> None:
    trials = [make_trial(name, name) for name in ("random_forest", "irnet-48")]
    results = [make_result(trials[0], 0.2), make_result(trials[1], 0.1)]
    (section,) = describe_distributions(gather(trials, results))
    net, forest = section.table[1:]
    # errors are 0.5, 0.5, 1 and 2 times the first figure: 90 % of the way is at 1.7 times it
    assert (net[0], net[3], net[4], net[5]) == ("IRNet-48", "0.1700 (1)", "0.0810", "0.0750")
    assert (forest[0], forest[3], forest[4]) == ("Random Forest", "0.3400 (1)", "0.1580")
    assert "IRNet-48 0.1700, Random Forest 0.3400" in section.plots[0].svg


def test_sizes_are_rows_and_models_columns() -> None:
    trials = [
        make_trial(f"{model}-{rows}", model, train_rows=rows, changes=changes)
        for rows, batch in ((1000, 64), (None, 512), (30_000, 256))
        for model in ("irnet-17", "ridge")
        for changes in [(("batch_size", batch),) if model == "irnet-17" else ()]
        if (model, rows) != ("ridge", 1000)
    ]
    results = [
        make_result(trial, 10 / (trial.train_rows or 80_000), train_rows=trial.train_rows or 80_000)
        for trial in trials
        if trial.series != "ridge-30000"
    ]
    (section,) = describe_sizes(gather(trials, results))
    assert [list(row) for row in section.table] == [
        ["training rows", "IRNet-17", "Ridge"],
        ["1,000", "0.0100 (1)", "not run"],
        ["30,000", "0.0003 (1)", "missing"],
        ["all (80,000)", "0.0001 (1)", "0.0001 (1)"],
    ]
    svg = section.plots[0].svg
    assert "IRNet-17: 0.0100 at 1,000 rows, 0.0003 at 30,000 rows, 0.0001 at 80,000 rows." in svg


@pytest.mark.parametrize("describe", [describe_baselines, describe_distributions, describe_sizes])
def test_data_sets_are_not_mixed(describe: object) -> None:
    assert callable(describe)
    trials = [make_trial(data, "ridge", data=data) for data in ("icsd", "oqmd-sc")]
    sections = describe(gather(trials, [make_result(trial, 0.1) for trial in trials]))
    assert [len(each.table) for each in sections] == [2, 2]
    files = [plot.file for each in sections for plot in each.plots]
    assert len(files) == len(set(files)) == 2
