from __future__ import annotations

import re

import pytest

from irnet import Architecture, count_parameters, find_recipe
from irnet.baselines import BASELINES as KINDS
from screening import commands_benchmark
from screening.benchmark.data import DATA_SETS, ELEMENTS, EXTRA_TESTS, PROTOTYPES, UNITS
from screening.benchmark.definitions import (
    BASELINES,
    BENCHMARKS,
    BUDGETS,
    NETWORKS,
    VARIANTS,
    Benchmark,
    Budget,
    find_benchmarks,
    find_budget,
    write_plain_17,
)
from screening.benchmark.fitting import estimate_seconds, find_recipe_of, fingerprint
from screening.benchmark.trial import Trial
from screening.errors import ConfigurationError

EVERY = [
    pytest.param(benchmark, budget, id=f"{name}-{budget}")
    for name, benchmark in BENCHMARKS.items()
    for budget in BUDGETS
]


@pytest.mark.parametrize(("benchmark", "budget"), EVERY)
def test_trials_ask_for_what_there_is(benchmark: Benchmark, budget: Budget) -> None:
    trials = benchmark.trials(budget)
    assert trials
    for trial in trials:
        assert trial.data in DATA_SETS and trial.target in UNITS
        assert set(trial.tests) <= set(EXTRA_TESTS)
        assert re.fullmatch(r"[\w.-]+", trial.name), "it is the name of a file"
        assert (trial.kind == "network") == bool(trial.recipe)
        assert trial.kind == "network" or trial.model in KINDS
        assert Trial.from_json(trial.to_json()) == trial
    names = [(trial.benchmark, trial.name) for trial in trials]
    assert len(set(names)) == len(names)
    assert len({fingerprint(trial) for trial in trials}) == len(trials)
    seeds = [trial.seed for trial in trials]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize(("benchmark", "budget"), EVERY)
def test_what_is_shortened_is_said(benchmark: Benchmark, budget: Budget) -> None:
    for trial in benchmark.trials(budget):
        if trial.train_rows is not None:
            assert f"{trial.train_rows:,} training rows" in trial.shortened
        if trial.kind == "baseline" and not trial.search:
            assert "no grid search" in trial.shortened
        if trial.kind == "network" and (trial.benchmark, budget) == ("patience", "cpu"):
            assert "epochs" not in dict(trial.changes)
        elif trial.kind == "network" and budget != "full":
            assert f"{dict(trial.changes)['epochs']} epochs instead of" in trial.shortened


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_budget_of_two_cores_is_kept(benchmark: Benchmark) -> None:
    from screening.benchmark.data import TRAINING_ROWS

    def hours(budget: Budget) -> float:
        trials = benchmark.trials(budget)
        return sum(estimate_seconds(each, TRAINING_ROWS[each.data]) for each in trials) / 7200

    assert hours("tiny") < 0.01 < hours("cpu") < 2.5


def test_every_network_and_baseline_of_the_paper_is_there() -> None:
    for budget in ("cpu", "full"):
        trials = BENCHMARKS["table-2"].trials(find_budget(budget))
        for data in ("oqmd-sc", "icsd"):
            for recipe in ("default", "paper"):
                found = {t.model for t in trials if (t.data, t.recipe) == (data, recipe)}
                assert {*NETWORKS} <= found and len(found) == len(NETWORKS) + len(VARIANTS)
        assert {t.model for t in BENCHMARKS["table-3"].trials(find_budget(budget))} == set(KINDS)
    assert set(BASELINES) == set(KINDS)


def test_variants_of_the_plain_network_differ_in_what_they_say() -> None:
    plain = Architecture.parse("plain-17")
    assert str(Architecture.parse(write_plain_17("{width}BAx{count}"))) == str(plain)
    after, none, dropout = (
        Architecture.parse(write_plain_17(pattern)) for _, pattern in VARIANTS.values()
    )
    assert {block.norm for block in after.blocks} == {"after"}
    assert {block.norm for block in none.blocks} == {"none"}
    assert [block.dropout for block in dropout.blocks] == ["block"] * 4 + ["none"] * 2
    assert {block.norm for block in dropout.blocks} == {"before"}
    for each in (after, dropout):
        assert each.depth == 17 and count_parameters(each, 271) == count_parameters(plain, 271)


def test_steps_lead_from_the_papers_recipe_to_ours() -> None:
    trials = {trial.series: trial for trial in BENCHMARKS["recipes"].trials("full")}
    first, last = find_recipe_of(trials["paper"]), find_recipe_of(trials["precision"])
    assert first == find_recipe("paper").with_changes(architecture="irnet-17")
    assert last == find_recipe("default").with_changes(name="paper", architecture="irnet-17")
    recipes = [find_recipe_of(trial) for trial in trials.values() if trial.recipe == "paper"]
    assert len({str(recipe.to_json()) for recipe in recipes}) == 8
    said = {trial.series: trial.shortened for trial in BENCHMARKS["recipes"].trials("cpu")}
    assert "epochs instead of up to 5,000 with a patience of 200" in said["adamw"]
    assert "epochs instead of 80" in said["one-cycle"]


def test_everything_is_left_out_once_and_once_nothing() -> None:
    for name, kind, values in (
        ("leave-prototype-out", "prototype", PROTOTYPES),
        ("leave-element-out", "element", ELEMENTS),
    ):
        trials = [t for t in BENCHMARKS[name].trials("cpu") if t.seed == 0]
        for model in ("irnet-17", "random_forest", "gradient_boosting"):
            holdouts = [trial.holdout for trial in trials if trial.model == model]
            assert sorted(holdouts) == sorted(["formulas", *(f"{kind}:{v}" for v in values)])
        assert {t.tests for t in trials if t.holdout == "formulas"} == {(f"{kind}s",)}


def test_figure_5_is_of_the_trials_of_tables_2_and_3() -> None:
    for budget in BUDGETS:
        others = BENCHMARKS["table-2"].trials(budget) + BENCHMARKS["table-3"].trials(budget)
        assert set(BENCHMARKS["figure-5"].trials(budget)) <= set(others)


def test_a_name_that_there_is_not_gets_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match='did you mean "table-2"'):
        find_benchmarks("table2")
    with pytest.raises(ConfigurationError, match="there are: tiny, cpu, full"):
        find_budget("gpu")
    assert [each.name for each in find_benchmarks("recipes")] == ["recipes"]
    assert [each.name for each in find_benchmarks("all")] == list(BENCHMARKS)
    assert find_budget("cpu") == "cpu"


def test_the_command_completes_what_there_is() -> None:
    assert tuple(BENCHMARKS) == commands_benchmark.BENCHMARKS
    assert commands_benchmark.BUDGETS == BUDGETS
