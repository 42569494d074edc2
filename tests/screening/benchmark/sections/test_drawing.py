from __future__ import annotations

import math

from screening.benchmark.plots import Curve
from screening.benchmark.sections.drawing import (
    draw_curves,
    draw_ranking,
    draw_rows,
    make_curves,
    make_published,
    make_series,
)
from screening.benchmark.summary import Measured, gather
from tests.screening.benchmark.made_up import make_history, make_result, make_trial


def test_bars_are_one_deviation_and_none_where_there_is_none() -> None:
    series = make_series("net", [(1.0, Measured(0.5, 0.1, 3)), (2.0, Measured(0.4, None, 1))], 2)
    assert (series.x, series.y, series.place) == ((1.0, 2.0), (0.5, 0.4), 2)
    assert (series.low[0], series.high[0]) == (0.4, 0.6)
    assert math.isnan(series.low[1])
    published = make_published("paper", [(1.0, 0.3)], 1)
    assert published.published
    assert math.isnan(published.high[0])


def test_a_ranking_has_the_papers_figures_in_the_rows_of_their_models() -> None:
    trials = [make_trial(name, name) for name in ("ridge", "lasso", "svr")]
    summaries = gather(trials, [make_result(trials[0], 0.2), make_result(trials[2], 0.1)])
    (plot,) = draw_ranking("r.svg", "Errors", summaries, {"svr": 0.243, "lasso": 0.5}, "eV")
    assert "measured: Ridge 0.2000, SVR 0.1000. paper, on its data: SVR 0.2430." in plot.svg
    assert (plot.file, plot.title) == ("r.svg", "Errors")
    assert draw_ranking("r.svg", "Errors", gather(trials, []), {}, "eV") == []


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_rows("r.svg", "Errors", [], [], "eV") == []
    assert draw_curves("c.svg", "Curves", {"17 layers": []}, "eV") == []


def test_curves_are_those_of_the_watched_rows() -> None:
    trials = [make_trial("net", "irnet-17", seed=seed) for seed in (0, 1)]
    watched = make_result(trials[0], 0.1, history=make_history([0.3, 0.2]))
    blind = make_result(trials[1], 0.1, history=({"train_mae": 0.1, "validation_mae": 0.2},))
    (curve,) = make_curves([("IRNet", *gather(trials, [watched, blind]))])
    assert curve == Curve("IRNet", ((0.3, 0.2),), ((0.15, 0.1),))
    (plot,) = draw_curves("c.svg", "Curves", {"17 layers": [curve], "24 layers": []}, "eV")
    assert "17 layers, IRNet 0.2000" in plot.svg
    assert "24 layers" not in plot.svg
