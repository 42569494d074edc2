"""What each benchmark shows: its tables and plots, from results, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from screening.benchmark.sections.cells import (
    Section,
    name_model,
    show_changes,
    show_epochs,
    show_error,
    show_plainly,
    show_rows,
    show_time,
)
from screening.benchmark.sections.compounds import (
    describe_known_only,
    describe_left_out,
    describe_search,
)
from screening.benchmark.sections.networks import describe_depths, describe_recipes
from screening.benchmark.sections.regressors import (
    describe_baselines,
    describe_distributions,
    describe_properties,
    describe_sizes,
)
from screening.benchmark.summary import Summary

Describe = Callable[[Sequence[Summary]], list[Section]]

SECTIONS: Final[Mapping[str, Describe]] = {
    "table-2": describe_depths,
    "table-3": describe_baselines,
    "table-4": describe_properties,
    "table-5": describe_search,
    "figure-5": describe_distributions,
    "training-size": describe_sizes,
    "leave-prototype-out": describe_left_out,
    "leave-element-out": describe_left_out,
    "known-only": describe_known_only,
    "recipes": describe_recipes,
    "patience": describe_depths,
}
"""What describes a benchmark, by its name."""


def describe_trials(summaries: Sequence[Summary]) -> Section:
    """Return all trials of a benchmark in one table, whatever it compares.

    Args:
        summaries: Of its trials.
    """
    rows = [["trials", "model", "data", "training rows", "recipe and changes", "parameters"]]
    rows[0] += ["test rows", "MAE", "RMSE", "R²", "90th percentile", "epochs (kept)"]
    rows[0] += ["time of a fit"]
    for each in summaries:
        errors = each.errors()
        parameters = {each.parameters for each in each.results if each.parameters is not None}
        rows.append(
            [
                each.trial.series,
                name_model(each.trial),
                each.trial.data,
                show_rows(each),
                show_changes(each.trial),
                ", ".join(f"{count:,}" for count in sorted(parameters)),
                ", ".join(f"{count:,}" for count in sorted({part.rows for part in errors})),
                show_error(each),
                show_plainly([part.rmse for part in errors]),
                show_plainly([part.r2 for part in errors if part.r2 is not None]),
                show_plainly([part.p90 for part in errors]),
                show_epochs(each),
                show_time(each),
            ]
        )
    return Section("All trials", "Errors on the rows that each trial held out.", rows)
