"""Comparisons of networks with other regressors: errors, properties, distributions, data sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from screening.benchmark.paper import FIGURE_5, TABLE_3, TABLE_4
from screening.benchmark.plots import Words, plot_distributions, plot_lines
from screening.benchmark.sections.cells import (
    KIND_TITLES,
    NOT_RUN,
    Plot,
    Section,
    Table,
    find_unit,
    name_apart,
    name_model,
    number_file,
    show_changes,
    show_chosen,
    show_error,
    show_measured,
    show_plainly,
    show_published,
    show_rows,
    show_time,
    sort_by_error,
    split_by,
)
from screening.benchmark.sections.drawing import (
    MOST_MODELS,
    describe_points,
    draw_ranking,
    make_series,
    say_drawn,
)
from screening.benchmark.summary import Measured, Summary, average_quantiles, show_number
from screening.dataset import DEFAULT_TARGET

PROPERTIES: Final[Mapping[tuple[str, str], str]] = {
    ("oqmd-c", DEFAULT_TARGET): "oqmd_formation_enthalpy",
    ("mp-c", "density"): "mp_density",
    ("mp-c", "e_above_hull"): "mp_energy_above_hull",
}
"""Rows of the paper's Table 4 by the data set and target that learn the same property."""

PROPERTY_NETWORKS: Final = ("plain-17", "irnet-17", "irnet-48")
"""Networks of Table 4, in the order of its columns."""

LEAST_TICK_RATIO: Final = 1.45
"""Of sizes that are marked on an axis: closer ones run into each other."""


def describe_baselines(summaries: Sequence[Summary]) -> list[Section]:
    """Table 3: regressors sorted by error, with hyperparameters and time.

    Args:
        summaries: Of baselines, and of networks if they are compared.
    """
    sections = []
    for number, block in enumerate(split_by(summaries, lambda t: (t.data, t.target))):
        ordered = sort_by_error(block)
        unit = find_unit(block)
        rows = [["model", "test error", "paper", "90th percentile", "training rows"]]
        rows[0] += ["time of a fit", "hyperparameters"]
        for each in ordered:
            rows.append(
                [
                    name_model(each.trial),
                    show_error(each),
                    show_published(TABLE_3.get(each.trial.model)),
                    show_plainly([errors.p90 for errors in each.errors()]),
                    show_rows(each),
                    show_time(each),
                    show_chosen(each),
                ]
            )
        title = f"Regressors: {block[0].trial.data}"
        text = (
            f"Mean absolute error on the held-out rows, {unit}, the best first. Beside it the "
            "paper's Table 3, on other data. Hyperparameters are those of the "
            "first seed. The time of a fit includes the search for them, where there was one."
        )
        plots = draw_ranking(number_file("regressors", number), title, ordered, TABLE_3, unit)
        sections.append(Section(title, text, rows, plots))
    return sections


def describe_properties(summaries: Sequence[Summary]) -> list[Section]:
    """Table 4: properties from composition alone, the best regressor beside networks.

    Args:
        summaries: Of baselines and networks on several data sets and targets.
    """
    rows: Table = [["data", "property", "unit", "best regressor", "paper"]]
    for name in PROPERTY_NETWORKS:
        kind, depth = name.split("-")
        rows[0] += [f"{KIND_TITLES[kind]}-{depth}", "paper"]
    details, shown = [], set()
    for block in split_by(summaries, lambda trial: (trial.data, trial.target)):
        trial, unit = block[0].trial, find_unit(block)
        row = PROPERTIES.get((trial.data, trial.target), "")
        shown.add(row)
        known = TABLE_4.get(row)
        published: Sequence[float | None] = (None,) * 4
        if known is not None:
            published = (known.best_baseline, known.plain_17, known.irnet_17, known.irnet_48)
        cells = [trial.data, trial.target, unit, _show_best(block), show_published(published[0])]
        for name, value in zip(PROPERTY_NETWORKS, published[1:], strict=True):
            found = [each for each in block if each.trial.model == name]
            cells += [show_error(found[0] if found else None), show_published(value)]
        rows.append(cells)
        details.append(_list_models(block, f"{trial.data}, {trial.target}", unit))
    absent = [f"{row.title} ({row.data})" for name, row in TABLE_4.items() if name not in shown]
    text = (
        "Mean absolute errors on the held-out rows. The paper's figures stand where it learns the "
        "same property, on other data; its caption gives eV/atom as the unit of all of them. Its "
        "best regressor is of ten, to which Bagging and gradient boosting are added here; the best "
        "has the lowest test error. Rows "
        f"of its Table 4 that are not measured here: {', '.join(absent)}. Band gaps, "
        "magnetisations and total energies are not in the data; a volume of the paper's MP-C is a "
        "cell's, not an atom's. To learn another property, add it as a column to the table of "
        "structures and name it with `screening train --target`."
    )
    return [Section("Properties from composition", text, rows), *details]


def describe_distributions(summaries: Sequence[Summary]) -> list[Section]:
    """Figure 5: the error's cumulative distribution and its 90th percentile.

    Args:
        summaries: Of baselines and networks.
    """
    sections = []
    for number, block in enumerate(split_by(summaries, lambda t: (t.data, t.target))):
        ordered = sort_by_error(block)
        unit = find_unit(block)
        rows = [["model", "recipe and changes", "MAE", "90th percentile", "paper's"]]
        rows[0] += ["median", "99th percentile", "largest", "training rows"]
        drawn: dict[str, Sequence[float]] = {}
        for each in ordered:
            errors = each.errors()
            percentiles = average_quantiles(errors) if errors else ()
            rows.append(
                [
                    name_model(each.trial),
                    show_changes(each.trial),
                    show_error(each),
                    show_measured(each, Measured.of([part.p90 for part in errors])),
                    show_published(FIGURE_5.get(each.trial.model)),
                    *(show_number(percentiles[at]) if errors else "" for at in (50, 99, 100)),
                    show_rows(each),
                ]
            )
            if errors and len(drawn) < MOST_MODELS:
                drawn[name_apart(each.trial, ordered)] = percentiles
        title = f"Distribution of the error: {block[0].trial.data}"
        text = (
            f"Absolute error on the held-out rows, {unit}. Nine of ten rows are below the 90th "
            "percentile. The paper's stand in the caption of its Figure 5, on other data. "
            "Median, 99th percentile and largest error are means over the seeds, as are "
            f"the curves.{say_drawn(sum(bool(each.results) for each in block))}"
        )
        sections.append(Section(title, text, rows, _draw_distributions(drawn, title, unit, number)))
    return sections


def describe_sizes(summaries: Sequence[Summary]) -> list[Section]:
    """Error against the number of training rows.

    Args:
        summaries: Of models that differ in `Trial.train_rows`.
    """
    sections = []
    for number, block in enumerate(split_by(summaries, lambda t: (t.data, t.target))):
        names = {id(each): name_apart(each.trial, block) for each in block}
        models = list(dict.fromkeys(names.values()))
        found = {(names[id(each)], each.trial.train_rows): each for each in block}
        sizes = sorted(
            {each.trial.train_rows for each in block},
            key=lambda size: math.inf if size is None else size,
        )
        rows: Table = [["training rows", *models]]
        for size in sizes:
            cells = [found.get((model, size)) for model in models]
            rows.append([_show_size(size, cells), *map(show_error, cells)])
        title = f"Error by training rows: {block[0].trial.data}"
        unit = find_unit(block)
        text = (
            f"Mean absolute error on the same held-out rows, {unit}. A smaller set of training "
            "rows is a part of every larger one; a network takes its validation rows from "
            f"it.{say_drawn(len(models))}"
        )
        sections.append(Section(title, text, rows, _draw_sizes(found, models, title, unit, number)))
    return sections


def _draw_distributions(
    drawn: Mapping[str, Sequence[float]], title: str, unit: str, number: int
) -> list[Plot]:
    if not drawn:
        return []
    file = number_file("distribution", number)
    ends = ", ".join(f"{name} {show_number(values[90])}" for name, values in drawn.items())
    words = Words(
        file.removesuffix(".svg"), title, f"Nine of ten held-out rows are below, in {unit}: {ends}."
    )
    return [Plot(file, plot_distributions(drawn, unit, words), title)]


def _draw_sizes(
    found: Mapping[tuple[str, int | None], Summary],
    models: Sequence[str],
    title: str,
    unit: str,
    number: int,
) -> list[Plot]:
    series = []
    for place, model in enumerate(models[:MOST_MODELS]):
        points = [
            (float(each.results[0].train_rows), measured)
            for (name, _), each in found.items()
            if name == model and (measured := each.mae()) is not None
        ]
        if points:
            points.sort(key=lambda point: point[0])
            series.append(make_series(model, points, place))
    if not series:
        return []
    ticks: list[float] = []
    for size in sorted({x for each in series for x in each.x}):
        if not ticks or size >= LEAST_TICK_RATIO * ticks[-1]:
            ticks.append(size)
    file = number_file("training-size", number)
    words = Words(file.removesuffix(".svg"), title, describe_points(series, "rows", unit))
    svg = plot_lines(series, ("training rows", f"test error ({unit})"), words, ticks=ticks)
    return [Plot(file, svg, title)]


def _show_size(size: int | None, summaries: Sequence[Summary | None]) -> str:
    if size is not None:
        return f"{size:,}"
    counts = {result.train_rows for each in summaries if each for result in each.results}
    return f"all ({', '.join(f'{n:,}' for n in sorted(counts))})" if counts else "all"


def _show_best(block: Sequence[Summary]) -> str:
    baselines = sort_by_error(each for each in block if each.trial.kind == "baseline")
    if not baselines:
        return NOT_RUN
    undone = sum(not each.results for each in baselines)
    shown = show_error(baselines[0])
    if not baselines[0].results:
        return shown
    shown += f", {name_model(baselines[0].trial)}"
    return f"{shown}; {undone} of {len(baselines)} without a result" if undone else shown


def _list_models(block: Sequence[Summary], setting: str, unit: str) -> Section:
    rows = [["model", "recipe or hyperparameters", "training rows", "test error", "R²"]]
    rows[0] += ["time of a fit"]
    for each in sort_by_error(block):
        r2 = [errors.r2 for errors in each.errors() if errors.r2 is not None]
        rows.append(
            [
                name_model(each.trial),
                show_chosen(each),
                show_rows(each),
                show_error(each),
                show_plainly(r2),
                show_time(each),
            ]
        )
    text = f"Mean absolute error on the held-out rows, {unit}, the best first."
    return Section(f"All models: {setting}", text, rows)
