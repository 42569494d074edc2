from __future__ import annotations

import pytest

from irnet import ARCHITECTURES
from irnet.baselines import BASELINES
from screening.benchmark.definitions import VARIANTS, write_plain_17
from screening.benchmark.paper import TABLE_3
from screening.benchmark.sections.cells import (
    FAILED,
    MISSING,
    NOT_RUN,
    list_groups,
    name_apart,
    name_group,
    name_model,
    name_with_data,
    read_network,
    show_changes,
    show_chosen,
    show_epochs,
    show_error,
    show_setting,
    sort_by_error,
    split_by,
)
from screening.benchmark.summary import gather
from tests.screening.benchmark.made_up import make_history, make_result, make_trial


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "brnet"])
def test_networks_of_the_paper_are_known_by_name_and_by_string(name: str) -> None:
    kind, depth = name.split("-")
    for model in (name, ARCHITECTURES[name]):
        parts = read_network(make_trial("net", model))
        assert (parts.kind, parts.depth, parts.norm) == (kind, int(depth), "before")
        assert parts.is_standard
        assert name_model(make_trial("net", model)).lower() == name


def test_what_is_changed_in_a_network_is_seen() -> None:
    norms = {name: write_plain_17(pattern) for name, (_, pattern) in VARIANTS.items()}
    parts = {name: read_network(make_trial("net", text)) for name, text in norms.items()}
    assert parts["plain-17-norm-after"].norm == "after"
    assert parts["plain-17-no-norm"].norm == "none"
    assert parts["plain-17-dropout"].has_dropout
    assert not any(each.is_standard for each in parts.values())
    assert {(each.kind, each.depth) for each in parts.values()} == {("plain", 17)}
    tanh = make_trial("net", "irnet-17", changes=(("activation", "tanh"),))
    assert not read_network(tanh).is_standard
    assert read_network(make_trial("net", "64BARx2-32BAx2-1")).kind == "mixed"
    assert name_model(make_trial("net", "64BARx2-32BAx2-1")) == "64BARx2-32BAx2-1"


def test_baselines_are_called_as_in_the_paper() -> None:
    assert name_model(make_trial("forest", "random_forest")) == BASELINES["random_forest"].title
    assert name_model(make_trial("forest", "random_forest", label="trees")) == "trees"


def test_the_published_errors_of_table_3_are_those_that_baselines_state() -> None:
    stated = {name: kind.paper_mae for name, kind in BASELINES.items() if kind.paper_mae}
    assert stated == TABLE_3


def test_names_say_no_more_than_is_needed() -> None:
    default, paper = make_trial("a", "irnet-17"), make_trial("b", "irnet-17", recipe="paper")
    assert name_apart(default, gather([default], [])) == "IRNet-17"
    both = gather([default, paper], [])
    assert name_apart(paper, both) == "IRNet-17, recipe paper"
    assert name_with_data(paper, both) == "IRNet-17, recipe paper"
    more = gather([default, make_trial("c", "irnet-17", data="oqmd-sc")], [])
    assert name_with_data(default, more) == "IRNet-17 on icsd"


def test_a_figure_says_of_how_many_seeds_it_is_and_why_it_is_not_there() -> None:
    trials = [make_trial("net", "irnet-17", seed=seed) for seed in (0, 1)]
    results = [make_result(trial, 0.1) for trial in trials]
    failure = make_result(trials[1], 0.1, failure="NaN", test={})
    for found, shown in (
        (results, "0.1000 ± 0 (2)"),
        (results[:1], "0.1000 (1 of 2)"),
        ([results[0], failure], "0.1000 (1 of 2)"),
        ([failure], FAILED),
        ([], MISSING),
    ):
        assert show_error(*gather(trials, found)) == shown
    assert show_error(None) == NOT_RUN
    assert show_error(*gather(trials, results), group="virtual") == MISSING


def test_settings_changes_and_epochs_are_written_out() -> None:
    changes = (("clip_sigma", None), ("epochs", 20))
    trial = make_trial("net", "irnet-17", changes=changes, train_rows=5000, target="density")
    assert show_changes(trial) == "default, clip_sigma=none, epochs=20"
    assert show_setting(trial) == "icsd, density, at most 5,000 training rows"
    assert show_setting(trial, recipe=True).split(", ")[2] == "recipe default"
    found = make_result(
        trial, 0.1, history=make_history([0.3, 0.2, 0.25]), figures={"best_epoch": 1.0}
    )
    (summary,) = gather([trial], [found])
    assert show_epochs(summary) == "3 (2)"
    assert show_chosen(summary) == show_changes(trial)
    forest = make_trial("forest", "random_forest")
    parameters = {"parameters": {"max_features": 0.25, "max_depth": None, "trees": 100}}
    (summary,) = gather([forest], [make_result(forest, 0.1, chosen=parameters)])
    assert show_chosen(summary) == "max_features=0.25, max_depth=None, trees=100"
    assert show_epochs(summary) == ""


def test_groups_have_names_for_readers() -> None:
    assert name_group("eval/L1_0/ideal/strict") == "L1_0, ideal, strict"
    assert name_group("eval/all/relaxed") == "all structures, relaxed"
    assert name_group("held-out") == "held-out"
    trial = make_trial("net", "irnet-17")
    assert list_groups(gather([trial], [make_result(trial, 0.1, {"known": [0.1]})])) == [
        "held-out",
        "known",
    ]


def test_models_are_sorted_with_the_missing_ones_last() -> None:
    trials = [make_trial(str(place), "ridge") for place in range(3)]
    summaries = gather(trials, [make_result(trials[1], 0.3), make_result(trials[2], 0.1)])
    assert [each.trial.series for each in sort_by_error(summaries)] == ["2", "1", "0"]
    worst = sort_by_error(summaries, worst_first=True)
    assert [each.trial.series for each in worst] == ["1", "2", "0"]
    blocks = split_by(summaries, lambda trial: trial.series == "1")
    assert [len(block) for block in blocks] == [2, 1]
