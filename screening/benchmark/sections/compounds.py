"""Comparisons by what is predicted: new prototypes, what was left out, known and hypothetical."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from screening.benchmark.paper import ENTHALPY_UNIT, TABLE_5
from screening.benchmark.plots import Series
from screening.benchmark.sections.cells import (
    EVALUATION_PREFIX,
    FAILED,
    MISSING,
    NOT_RUN,
    STRUCTURE_TITLES,
    Plot,
    Section,
    Table,
    find_unit,
    list_groups,
    name_apart,
    name_group,
    name_with_data,
    number_file,
    show_bias,
    show_error,
    show_interval,
    show_published,
    sort_by_error,
    split_by,
)
from screening.benchmark.sections.drawing import (
    MOST_MODELS,
    draw_rows,
    make_published,
    make_series,
    say_drawn,
)
from screening.benchmark.summary import Measured, Summary, bound
from screening.benchmark.trial import MOST_ROW_ERRORS

GEOMETRIES: Final = ("relaxed", "ideal")

PARTS: Final = {
    "": ("Hypothetical compounds", "All compounds of the evaluation set."),
    "strict": (
        "Only formulas that no known crystal has",
        "Compounds whose formula is nowhere among the known crystals, in whatever structure.",
    ),
    "MP-legacy": (
        "Only the energy scheme of the training data",
        "The evaluation set mixes schemes of energy corrections; the energies of these compounds "
        "follow that of the training data.",
    ),
}
"""Parts of the evaluation set by the end of their group's name: title and what they are."""


def describe_search(summaries: Sequence[Summary]) -> list[Section]:
    """Table 5: hypothetical compounds of each prototype, on relaxed and on ideal geometry.

    Args:
        summaries: Of models that were tested on the evaluation set.
    """
    sections = []
    for part, (title, what) in PARTS.items():
        kinds = _list_kinds(summaries, part)
        if not kinds:
            continue
        text = f"{what} Errors and intervals as above."
        if not part:
            text = (
                f"{what} Mean absolute error, {ENTHALPY_UNIT}, and in brackets its 95 % interval "
                "over compounds like these; n is their number. Errors are averaged over the seeds "
                f"first. Up to {MOST_ROW_ERRORS} compounds the interval is from a bootstrap over "
                "them, beyond that from the standard error; bars in the plots are these. Beside "
                "it the paper's Table 5: the same structures, other compounds, other training "
                f"data.{say_drawn(len(summaries))}"
            )
        plots = [] if part else _draw_search(summaries, kinds)
        sections.append(Section(title, text, _tabulate_search(summaries, kinds, part), plots))
    groups = _list_whole(summaries)
    if groups:
        rows = [["compounds", *(name_with_data(each.trial, summaries) for each in summaries)]]
        for group in groups:
            rows.append([name_group(group), *(show_bias(each, group) for each in summaries)])
        sections.append(Section("Bias", _say_bias(ENTHALPY_UNIT), rows))
    return sections


def describe_left_out(summaries: Sequence[Summary]) -> list[Section]:
    """Errors on a prototype or an element that was left out, beside those of the ordinary split.

    Args:
        summaries: Of models with different `Trial.holdout`; those with ``formulas`` are the
            ordinary split.
    """
    usual = {
        (name_apart(each.trial, summaries), each.trial.data): each
        for each in summaries
        if each.trial.holdout == "formulas"
    }
    left = [each for each in summaries if each.trial.holdout != "formulas"]
    blocks = split_by(left, lambda trial: (name_apart(trial, summaries), trial.data))
    return [
        _compare_left_out(
            block,
            name_apart(block[0].trial, summaries),
            usual.get((name_apart(block[0].trial, summaries), block[0].trial.data)),
            number,
        )
        for number, block in enumerate(blocks)
    ]


def describe_known_only(summaries: Sequence[Summary]) -> list[Section]:
    """Models trained on known crystals alone beside models trained on everything.

    Args:
        summaries: Of models that differ in `Trial.data`.
    """
    present = list_groups(summaries)
    groups = [group for group in present if group in ("known", "virtual")]
    groups += _list_whole(summaries)
    drawn = [group for group in groups if not group.endswith("/relaxed")]
    unit = find_unit(summaries)
    names = [name_with_data(each.trial, summaries) for each in summaries]
    errors: Table = [["tested on", "n", *names]]
    biases: Table = [["tested on", *names]]
    for group in groups:
        counts = sorted({found.rows for each in summaries for found in each.errors(group)})
        errors.append(
            [
                name_group(group),
                ", ".join(f"{count:,}" for count in counts),
                *(show_error(each, group) for each in summaries),
            ]
        )
        biases.append([name_group(group), *(show_bias(each, group) for each in summaries)])
    series: list[Series] = []
    for place, (name, each) in enumerate(zip(names, summaries, strict=True)):
        points = [
            (float(row), measured)
            for row, group in enumerate(drawn)
            if (measured := each.mae(group)) is not None
        ]
        if points and len(series) < MOST_MODELS:
            series.append(make_series(name, points, place))
    title = "Known crystals only, or all data"
    text = (
        f"Mean absolute error, {unit}, on held-out rows that are flagged as known crystals, on "
        "those that are not (virtual: hypothetical, or nobody knows; without blown-up cells), and "
        "on the compounds of the evaluation set; n is their "
        f"number.{say_drawn(len(summaries))}"
    )
    plots = draw_rows("known-only.svg", title, [*map(name_group, drawn)], series, unit)
    return [Section(title, text, errors, plots), Section("Bias", _say_bias(unit), biases)]


def _tabulate_search(summaries: Sequence[Summary], kinds: Sequence[str], part: str) -> Table:
    rows: Table = [["structure", "geometry", "n"]]
    rows[0] += [name_with_data(each.trial, summaries) for each in summaries]
    if not part:
        rows[0] += ["paper: Random Forest", "paper: IRNet-17"]
    for kind in kinds:
        known = TABLE_5.get(kind)
        for geometry in GEOMETRIES:
            group = _name_part(kind, geometry, part)
            counts = {errors.rows for each in summaries for errors in each.errors(group)}
            cells = [STRUCTURE_TITLES.get(kind, kind), geometry]
            cells.append(", ".join(f"{n:,}" for n in sorted(counts)))
            for each in summaries:
                errors = each.errors(group)
                if errors:
                    cells.append(show_interval(bound(errors)))
                else:
                    cells.append(FAILED if each.failures else MISSING)
            if not part:
                cells.append(show_published(known.random_forest if known else None))
                cells.append(show_published(known.irnet_17 if known else None))
            rows.append(cells)
    return rows


def _draw_search(summaries: Sequence[Summary], kinds: Sequence[str]) -> list[Plot]:
    names = [STRUCTURE_TITLES.get(kind, kind) for kind in kinds]
    known = [(float(row), TABLE_5[kind]) for row, kind in enumerate(kinds) if kind in TABLE_5]
    # the paper's figures look like ours of the same model, if there is one
    places = {"random_forest": MOST_MODELS - 1, "irnet-17": MOST_MODELS - 2}
    for place, each in reversed(list(enumerate(summaries[:MOST_MODELS]))):
        places[each.trial.model] = place
    plots = []
    for geometry in GEOMETRIES:
        series: list[Series] = []
        for place, each in enumerate(summaries[:MOST_MODELS]):
            found = [
                (float(row), bound(errors))
                for row, kind in enumerate(kinds)
                if (errors := each.errors(_name_part(kind, geometry, "")))
            ]
            if found:
                series.append(
                    Series(
                        name_with_data(each.trial, summaries),
                        tuple(row for row, _ in found),
                        tuple(interval.value for _, interval in found),
                        tuple(interval.low for _, interval in found),
                        tuple(interval.high for _, interval in found),
                        place,
                    )
                )
        if series and known:
            forest = [(row, errors.random_forest) for row, errors in known]
            network = [(row, errors.irnet_17) for row, errors in known]
            series.append(make_published("paper: Random Forest", forest, places["random_forest"]))
            series.append(make_published("paper: IRNet-17", network, places["irnet-17"]))
        title = f"Error on hypothetical compounds, {geometry} geometry"
        plots += draw_rows(f"search-{geometry}.svg", title, names, series, ENTHALPY_UNIT)
    return plots


def _compare_left_out(
    block: Sequence[Summary], model: str, usual: Summary | None, number: int
) -> Section:
    """One model's errors on what was left out, the worst first."""
    unit = find_unit(block)
    rows = [["left out", "rows", "error", "ordinary split: rows", "error", "ratio"]]
    names: list[str] = []
    apart: list[tuple[float, Measured]] = []
    together: list[tuple[float, Measured]] = []
    for each in sort_by_error(block, worst_first=True):
        kind, _, value = each.trial.holdout.partition(":")
        group = f"{kind}/{value}"
        measured, same = each.mae(), usual.mae(group) if usual else None
        ratio = measured.mean / same.mean if measured and same and same.mean else None
        rows.append(
            [
                value,
                f"{each.errors()[0].rows:,}" if each.results else "",
                show_error(each),
                f"{usual.errors(group)[0].rows:,}" if usual and same else "",
                show_error(usual, group) if usual else NOT_RUN,
                "" if ratio is None else f"{ratio:.2f}",
            ]
        )
        if measured:
            row = float(len(names))
            names.append(value)
            apart.append((row, measured))
            if same:
                together.append((row, same))
    title = f"Left out: {model}, {block[0].trial.data}"
    text = (
        f"Mean absolute error, {unit}, on all rows of what was left out of training, the worst "
        "first. Beside it the error on rows of the same kind where a tenth of all formulas was "
        "held out instead, and the ratio of the two."
    )
    if usual and usual.results:
        text += f" On all held-out rows of that split: {show_error(usual)}."
    series = []
    if apart:
        series.append(make_series("left out of training", apart, 0))
    if together:
        series.append(make_series("ordinary split", together, 1))
    plots = draw_rows(number_file("left-out", number), title, names, series, unit)
    return Section(title, text, rows, plots)


def _list_kinds(summaries: Sequence[Summary], part: str) -> list[str]:
    """Structures of the evaluation set of which there is this part, all of them last."""
    kinds = dict.fromkeys(
        group.split("/")[1]
        for group in list_groups(summaries)
        if group.startswith(EVALUATION_PREFIX)
        if group == _name_part(group.split("/")[1], group.split("/")[2], part)
    )
    return sorted(kinds, key=lambda kind: kind == "all")


def _name_part(kind: str, geometry: str, part: str) -> str:
    return "/".join(filter(None, (EVALUATION_PREFIX.rstrip("/"), kind, geometry, part)))


def _list_whole(summaries: Sequence[Summary]) -> list[str]:
    """Test groups that are all compounds of a structure on one geometry, all structures last."""
    groups = [
        group
        for group in list_groups(summaries)
        if group.startswith(EVALUATION_PREFIX) and group.count("/") == 2
    ]
    return sorted(groups, key=lambda group: group.split("/")[1] == "all")


def _say_bias(unit: str) -> str:
    return f"Mean of predicted minus true, {unit}; negative is too stable."
