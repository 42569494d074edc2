"""Comparisons of networks: depth and shortcuts, their parts, recipes, and the code's quirks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from screening.benchmark.paper import DEPTHS, KINDS, TABLE_2
from screening.benchmark.plots import Words, plot_lines
from screening.benchmark.sections.cells import (
    KIND_TITLES,
    Plot,
    Section,
    Table,
    find_unit,
    list_groups,
    name_model,
    number_file,
    read_network,
    show_changes,
    show_epochs,
    show_error,
    show_measured,
    show_published,
    show_setting,
    show_time,
    split_by,
)
from screening.benchmark.sections.drawing import (
    MOST_MODELS,
    describe_points,
    draw_curves,
    draw_ranking,
    make_curves,
    make_published,
    make_series,
    say_drawn,
)
from screening.benchmark.summary import Summary
from screening.benchmark.trial import Trial

Networks = Mapping[tuple[str, int], Summary]
"""Networks of Table 2 by kind and depth."""

_DRAWN_KINDS = ("irnet", "srnet", "plain")

_NORM_TITLES = {"before": "before activation", "after": "after activation"}


def describe_depths(summaries: Sequence[Summary]) -> list[Section]:
    """Table 2 and Figures 2 to 4: plain, SRNet and IRNet by depth, and what plain ones consist of.

    Args:
        summaries: Of networks; those that differ in data, recipe or rows stand in tables of their
            own.
    """
    sections = []
    blocks = split_by(summaries, lambda t: (t.data, t.target, t.recipe, t.train_rows, t.holdout))
    for number, block in enumerate(blocks):
        standard: dict[tuple[str, int], Summary] = {}
        others = []
        for each in block:
            parts = read_network(each.trial)
            place = (parts.kind, parts.depth)
            if parts.is_standard and place not in standard:
                standard[place] = each
            else:
                others.append(each)
        setting = show_setting(block[0].trial, recipe=True)
        unit = find_unit(block)
        if standard:
            sections.append(_tabulate_depths(standard, setting, unit, number))
            sections += _draw_depths(standard, setting, unit, number)
        if others:
            known = [standard["plain", 17]] if ("plain", 17) in standard else []
            sections.append(_compare_parts([*known, *others], setting, unit, number))
    return sections


def describe_recipes(summaries: Sequence[Summary]) -> list[Section]:
    """Recipes and single changes to them, and what the reference code's quirks do.

    Args:
        summaries: Of networks.
    """
    sections = []
    blocks = split_by(summaries, lambda trial: (trial.data, trial.target, trial.train_rows))
    for number, block in enumerate(blocks):
        unit = find_unit(block)
        setting = show_setting(block[0].trial)
        rows = [["name", "test error", "recipe and what differs from the row above"]]
        rows[0] += ["epochs (kept)", "time of a fit"]
        before: Trial | None = None
        for each in block:
            rows.append(
                [
                    name_model(each.trial),
                    show_error(each),
                    _show_step(each.trial, before),
                    show_epochs(each),
                    show_time(each),
                ]
            )
            before = each.trial
        title = f"Recipes: {setting}"
        text = (
            f"Mean absolute error on the held-out rows, {unit}. A name that begins with + is a "
            "step that keeps all steps above it."
        )
        plots = draw_ranking(number_file("recipes", number), title, block, {}, unit)
        sections.append(Section(title, text, rows, plots))
        sections += _describe_quirks(block, setting, unit)
    return sections


def _show_step(trial: Trial, before: Trial | None) -> str:
    """Write the fields of a recipe that are not those of the trial before."""
    if before is None or before.recipe != trial.recipe:
        return show_changes(trial)
    kept = tuple(each for each in trial.changes if each not in before.changes)
    return show_changes(replace(trial, recipe="", changes=kept))


def _compares(networks: Networks) -> bool:
    """Whether the paper's Table 2, of OQMD-SC, is of the same kind of data."""
    return all(each.trial.data == "oqmd-sc" for each in networks.values())


def _tabulate_depths(networks: Networks, setting: str, unit: str, number: int) -> Section:
    kinds = [kind for kind in KINDS if any(kind == found for found, _ in networks)]
    depths = [depth for depth in DEPTHS if any(depth == found for _, found in networks)]
    beside = _compares(networks)
    rows: Table = [["layers"]]
    for kind in kinds:
        rows[0] += [KIND_TITLES[kind], *(["paper"] if beside else [])]
    for depth in depths:
        cells = [str(depth)]
        for kind in kinds:
            cells.append(show_error(networks.get((kind, depth))))
            if beside:
                cells.append(show_published(TABLE_2[kind, depth]))
        rows.append(cells)
    title = f"Networks by depth: {setting}"
    text = f"Mean absolute error on the held-out rows, {unit}."
    text += " Beside it the paper's Table 2, on other data." if beside else ""
    plots = _draw_errors_by_depth(networks, title, unit, number)
    return Section(title, text, rows, plots)


def _draw_errors_by_depth(networks: Networks, title: str, unit: str, number: int) -> list[Plot]:
    series, published = [], []
    for place, kind in enumerate(_DRAWN_KINDS):
        points = [
            (float(depth), measured)
            for depth in DEPTHS
            if (kind, depth) in networks and (measured := networks[kind, depth].mae()) is not None
        ]
        if points:
            label = KIND_TITLES[kind]
            series.append(make_series(label, points, place))
            if _compares(networks):
                known = [(float(depth), TABLE_2[kind, depth]) for depth in DEPTHS]
                published.append(make_published(f"Jha et al.: {label}", known, place))
    if not series:
        return []
    drawn = [*series, *published]
    file = number_file("depth", number)
    words = Words(file.removesuffix(".svg"), title, describe_points(drawn, "layers", unit))
    svg = plot_lines(drawn, ("layers", f"test error ({unit})"), words, ticks=DEPTHS)
    return [Plot(file, svg, title)]


def _draw_depths(networks: Networks, setting: str, unit: str, number: int) -> list[Section]:
    """Figure 4, a panel for each depth, and Figure 3, plain networks of all depths."""
    title = f"Learning curves by depth: {setting}"
    panels = {
        f"{depth} layers": make_curves(
            [
                (KIND_TITLES[kind], networks[kind, depth])
                for kind in _DRAWN_KINDS
                if (kind, depth) in networks
            ]
        )
        for depth in DEPTHS
    }
    plots = draw_curves(number_file("curves", number), title, panels, unit)
    plain = make_curves(
        [
            (f"plain, {depth} layers", networks["plain", depth])
            for depth in DEPTHS
            if ("plain", depth) in networks
        ]
    )
    if len(plain) > 1:
        title_of_plain = f"Learning curves of plain networks: {setting}"
        plots += draw_curves(number_file("curves-plain", number), title_of_plain, {"": plain}, unit)
    if not plots:
        return []
    watched = {networks[place].trial.watched_rows for place in networks if networks[place].results}
    part = next(iter(watched)) if len(watched) == 1 else None
    rows = f"{part:,} of the held-out rows" if part else "the held-out rows"
    text = (
        f"Test error above, on {rows}; training error below; one line for each seed. Test rows "
        "decide nothing: the epoch that is kept is the best on validation rows. The training error "
        "is the mean over an epoch's batches, while the network changes. The paper has such curves "
        "in its Figures 3 and 4."
    )
    return [Section(title, text, plots=plots)]


def _compare_parts(networks: Sequence[Summary], setting: str, unit: str, number: int) -> Section:
    """Figure 2: batch norm before, after and without; dropout."""
    rows = [["network", "batch norm", "dropout", "test error", "recipe and changes"]]
    for each in networks:
        parts = read_network(each.trial)
        rows.append(
            [
                name_model(each.trial),
                _NORM_TITLES.get(parts.norm, parts.norm),
                "yes" if parts.has_dropout else "no",
                show_error(each),
                show_changes(each.trial),
            ]
        )
    title = f"Parts of the network: {setting}"
    text = (
        f"Mean absolute error on the held-out rows, {unit}. The paper shows batch norm before, "
        "after and without in Figure 2 and tells of dropout in section 4.1.1, both without figures "
        f"in print.{say_drawn(len(networks))}"
    )
    curves = make_curves([(name_model(each.trial), each) for each in networks[:MOST_MODELS]])
    plots = draw_curves(number_file("parts", number), title, {"": curves}, unit)
    return Section(title, text, rows, plots)


def _describe_quirks(summaries: Sequence[Summary], setting: str, unit: str) -> list[Section]:
    """What the test error would have been by the reference code's habits."""
    batches = [group for group in list_groups(summaries) if group.startswith("batch-statistics/")]
    rows = [["name", "test error", "kept epoch, watched rows", "best epoch, watched rows"]]
    rows[0] += [f"batches of {group.rpartition('/')[2]}" for group in batches]
    for each in summaries:
        kept = each.figure("watched_mae_at_best_validation")
        lowest = each.figure("lowest_watched_mae")
        if lowest is None and not any(group in each.groups for group in batches):
            continue
        rows.append(
            [
                name_model(each.trial),
                show_error(each),
                "" if kept is None else show_measured(each, kept),
                "" if lowest is None else show_measured(each, lowest),
                *(show_error(each, g) if g in each.groups else "" for g in batches),
            ]
        )
    if len(rows) == 1:
        return []
    text = (
        f"Mean absolute errors, {unit}. Test error: ours, on the held-out rows, with the epoch "
        "that validation rows choose and batch norm by the statistics of training. Watched rows "
        "are held-out rows, or a part of them, whose error is measured after each epoch: beside "
        "their error at the kept epoch stands the lowest of all epochs, which is what stopping "
        "early on test rows reports. Batches: the held-out rows with batch norm in training mode, "
        "so that a prediction depends on the other rows of its batch."
    )
    return [Section(f"Quirks of the reference code: {setting}", text, rows)]
