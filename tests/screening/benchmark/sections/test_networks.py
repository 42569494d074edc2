from __future__ import annotations

from screening.benchmark.definitions import VARIANTS, write_plain_17
from screening.benchmark.sections.networks import describe_depths, describe_recipes
from screening.benchmark.summary import gather
from tests.screening.benchmark.made_up import make_history, make_result, make_trial

CURVE = make_history([0.4, 0.2])


def test_table_2_stands_as_the_paper_prints_it() -> None:
    trials = [
        make_trial(f"{kind}-{depth}", f"{kind}-{depth}", data="oqmd-sc", seed=seed)
        for kind in ("irnet", "plain", "srnet")
        for depth in (48, 17)
        for seed in (0, 1)
    ]
    results = [
        make_result(trial, 0.1 + 0.02 * trial.seed, history=CURVE)
        for trial in trials
        if trial.series != "srnet-48"
    ]
    table, curves = describe_depths(gather(trials, results))
    assert [list(row) for row in table.table] == [
        ["layers", "plain", "paper", "SRNet", "paper", "IRNet", "paper"],
        ["17", *_row("0.0653", "0.0551", "0.0411")],
        ["48", "0.110 ± 0.014 (2)", "0.1085", "missing", "0.0471", "0.110 ± 0.014 (2)", "0.0382"],
    ]
    assert [plot.file for plot in table.plots] == ["depth.svg"]
    assert "plain: 0.1100 at 17 layers, 0.1100 at 48 layers." in table.plots[0].svg
    assert [plot.file for plot in curves.plots] == ["curves.svg", "curves-plain.svg"]
    assert "17 layers, SRNet 0.2000 and 0.2000" in curves.plots[0].svg


def _row(*published: str) -> list[str]:
    return [cell for figure in published for cell in ("0.110 ± 0.014 (2)", figure)]


def test_every_recipe_and_data_set_has_a_table_of_its_own() -> None:
    trials = [
        make_trial(f"{data}-{recipe}", "irnet-17", data=data, recipe=recipe)
        for recipe in ("default", "paper")
        for data in ("oqmd-sc", "icsd")
    ]
    results = [make_result(trial, 0.1, history=CURVE) for trial in trials]
    sections = describe_depths(gather(trials, results))
    assert [each.title for each in sections if each.table] == [
        f"Networks by depth: {data}, recipe {recipe}"
        for recipe in ("default", "paper")
        for data in ("oqmd-sc", "icsd")
    ]
    files = [plot.file for each in sections for plot in each.plots]
    assert len(files) == len(set(files)) == 8


def test_parts_of_the_plain_network_stand_beside_it() -> None:
    trials = [make_trial("plain-17", "plain-17")]
    trials += [
        make_trial(series, write_plain_17(pattern), label=label)
        for series, (label, pattern) in VARIANTS.items()
    ]
    results = [make_result(trial, 0.1, history=CURVE) for trial in trials]
    parts = describe_depths(gather(trials, results))[-1]
    assert [row[:4] for row in parts.table[1:]] == [
        ["plain-17", "before activation", "no", "0.1000 (1)"],
        ["plain-17, batch norm after", "after activation", "no", "0.1000 (1)"],
        ["plain-17, no batch norm", "none", "no", "0.1000 (1)"],
        ["plain-17, dropout", "before activation", "yes", "0.1000 (1)"],
    ]
    assert [plot.file for plot in parts.plots] == ["parts.svg"]


def test_the_rows_of_learning_curves_are_counted() -> None:
    for watched, words in ((None, "on the held-out rows;"), (50, "on 50 of the held-out rows;")):
        trial = make_trial("net", "irnet-17", watched_rows=watched)
        sections = describe_depths(gather([trial], [make_result(trial, 0.1, history=CURVE)]))
        assert words in sections[1].text


def test_recipes_stand_in_their_own_order_with_their_quirks() -> None:
    first = (("scale_inputs", True), ("epochs", 9))
    second = (*first[:1], ("clip_sigma", 6.0), *first[1:])
    steps = [
        make_trial("paper", "irnet-17", recipe="paper", label="the paper's recipe"),
        make_trial("inputs", "irnet-17", recipe="paper", label="+ scaled inputs", changes=first),
        make_trial("clip", "irnet-17", recipe="paper", label="never measured", changes=second),
        make_trial("default", "irnet-17", label="another recipe", changes=second),
    ]
    quirks = {"watched_mae_at_best_validation": 0.31, "lowest_watched_mae": 0.25}
    results = [
        make_result(steps[0], 0.3, {"batch-statistics/32": [0.5]}, figures=quirks),
        make_result(steps[1], 0.2),
    ]
    table, found = describe_recipes(gather(steps, results))
    assert [tuple(row[:3]) for row in table.table[1:]] == [
        ("the paper's recipe", "0.3000 (1)", "paper"),
        ("+ scaled inputs", "0.2000 (1)", "scale_inputs=True, epochs=9"),
        ("never measured", "missing", "clip_sigma=6.0"),
        ("another recipe", "missing", "default, scale_inputs=True, clip_sigma=6.0, epochs=9"),
    ]
    assert [list(row) for row in found.table[1:]] == [
        ["the paper's recipe", "0.3000 (1)", "0.3100 (1)", "0.2500 (1)", "0.5000 (1)"]
    ]
    assert found.table[0][-1] == "batches of 32"
