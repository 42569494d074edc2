"""What a campaign tells on the terminal: the top of the ranking, and what to make of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from screening.console import PrintableConsole
from screening.settings import DEFAULT_STABLE_WITHIN, RankBy

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, JustifyMethod, RenderResult

    from screening.comparison import Comparison

WIDTH_OF_FILES: Final = 140
"""Width of tables that go into a file or a pipe."""

BEST: Final = 100
"""Places of a ranking that gaps in its hull are counted among."""

_ELEMENTS_ALONE: Final = r"^([\d.]+ )?[A-Z][a-z]?\d*( \+ ([\d.]+ )?[A-Z][a-z]?\d*)*$"
"""Mixtures of elements, such as `1.5 F2 + Mg + K`."""

FEWEST_COMPARED: Final = 20
"""Candidates below which a comparison of two rankings says nothing."""

FOLDED: Final = 10
"""Width that a column of long names may be folded to."""

LEAVE_UNFOLDED: Final = 2
"""Columns up to this place leave a narrow table before long names are folded."""

_ORDERS: Final = {
    RankBy.P_STABLE: "probability of being stable, then energy above hull",
    RankBy.ENERGY_ABOVE_HULL: "energy above hull",
    RankBy.FORMATION_ENTHALPY: "formation enthalpy",
    RankBy.UPPER_BOUND: "the energy above hull that nine in ten are to stay below",
    RankBy.LOWER_BOUND: "the energy above hull that nine in ten are to exceed",
}

MOST_REASONS: Final = 3
"""Reasons of failures that are named."""


def open_stdout() -> Console:
    """Return the console for results; wide enough for tables where it is no terminal.

    What stands in brackets is text, such as the ends of an interval.
    """
    return PrintableConsole(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, markup=False)


@dataclass(frozen=True)
class _Column:
    """A column of a drawn ranking.

    Attributes:
        header: Its header.
        cells: Its cells.
        meaning: What the legend says of it.
        right: Whether to align it to the right.
        leaves: When it leaves a table that is too wide: the lowest number first, 0 never.
        folds: Whether its cells are long names, which may be broken.
        mixture: Whether its cells are mixtures of phases, which may go on in further lines.
    """

    header: str
    cells: tuple[str, ...]
    meaning: str = ""
    right: bool = False
    leaves: int = 0
    folds: bool = False
    mixture: bool = False

    @property
    def has_content(self) -> bool:
        return any(cell not in ("", "-") for cell in self.cells)

    @property
    def width(self) -> int:
        """Width that it needs at least, with no word broken."""
        cells = [_break_mixture(cell, 0) if self.mixture else cell for cell in self.cells]
        return max(cell_len(line) for text in (self.header, *cells) for line in text.split("\n"))


@dataclass(frozen=True)
class RankingTable:
    """Rows of a ranking, which a rich console draws to its width.

    Where it is too narrow, columns leave, which the legend says.

    Attributes:
        title: Title.
        columns: All columns.
        dim: Which rows are drawn dim.
    """

    title: str
    columns: tuple[_Column, ...]
    dim: tuple[bool, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.dim:
            yield Text(self.title, style="table.title")
            return
        columns, width = list(self.columns), options.max_width
        gap = 2 if _total_width(columns, 2) <= width else 1
        gone = []
        for column in sorted(columns, key=lambda each: each.leaves):
            folded = column.leaves > LEAVE_UNFOLDED
            if column.leaves and _total_width(columns, gap, folded=folded) > width:
                columns.remove(column)
                gone.append(column)
        spare = max(0, width - _total_width(columns, gap))
        fits = _total_width(columns, gap, folded=True) <= width
        table = Table(
            title=Text(self.title, style="table.title"),
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, gap - 1, 0, 0),
        )
        cells = []
        for column in columns:
            justify: JustifyMethod = "right" if column.right else "left"
            table.add_column(
                Text(column.header),
                justify=justify,
                overflow="fold",
                no_wrap=fits and not column.folds,
            )
            room = column.width + spare
            cells.append([_break_mixture(c, room) if column.mixture else c for c in column.cells])
        for dim, row in zip(self.dim, zip(*cells, strict=True), strict=True):
            table.add_row(*map(Text, row), style="dim" if dim else None)
        yield table
        legend = ["eV/atom, by IRNet", *(each.meaning for each in columns if each.meaning)]
        if gone:
            names = ", ".join(" ".join(column.header.split()) for column in gone)
            legend.append(f"no room here for: {names}")
        yield Text("; ".join(legend), style="table.caption")


def draw_ranking(
    rows: pa.Table,
    title: str,
    *,
    hull: str = "the competing phases",
    stable_within: float = DEFAULT_STABLE_WITHIN,
    screened: int = 1,
) -> RankingTable:
    """Draw rows of a ranking, known compounds and unseen elements marked.

    Columns without content are left out, and a prototype that all rows share stands in the title.

    Args:
        rows: Rows of a ranking.
        title: Title of the table.
        hull: The competing phases, to end "above the hull of".
        stable_within: Energy above hull that counts as stable, eV/atom.
        screened: How many prototypes the campaign has.

    Returns:
        A table that fits itself to the width of the console.
    """
    sites = [
        name
        for name in rows.column_names
        if name.startswith("site_") and rows[name].null_count < len(rows)
    ]
    prototypes = rows["prototype"].unique().to_pylist()
    calibrated = rows["formation_enthalpy_low_ev_per_atom"].null_count < len(rows)
    on_hull = rows["energy_above_hull_ev_per_atom"].null_count < len(rows)
    in_prototype = rows["known_in_prototype"].to_pylist()
    drawn = rows.to_pylist()

    def column(
        header: str, write: Callable[[dict[str, Any]], str], meaning: str = "", **options: Any
    ) -> _Column:
        return _Column(header, tuple(map(write, drawn)), meaning, **options)

    columns = (
        column("rank", lambda row: f"{row['rank']:,}", right=True),
        column("formula", lambda row: row["formula"]),
        column(
            " ".join(name.removeprefix("site_") for name in sites),
            lambda row: " ".join(row[name] for name in sites if row[name] is not None),
            leaves=7,
        ),
        column(
            "prototype", lambda row: row["prototype"] if len(prototypes) > 1 else "", folds=True
        ),
        column(
            "above hull",
            _write_above_hull,
            f"above hull: energy above the hull of {hull} ± standard deviation, negative below it",
            right=True,
        ),
        column(
            "p\nstable",
            lambda row: format_probability(row["p_stable"]),
            f"p stable: probability of at most {stable_within:g} above it",
            right=True,
        ),
        column(
            "ΔHf",
            lambda row: _written(row["formation_enthalpy_ev_per_atom"]),
            "ΔHf: formation enthalpy",
            right=True,
            leaves=4 if on_hull else 0,
        ),
        column(
            "90 % interval",
            _write_interval,
            "[low, high]: its calibrated interval",
            right=True,
            leaves=1,
        )
        if calibrated
        else column(
            "±",
            lambda row: _written(row["formation_enthalpy_std_ev_per_atom"]),
            "±: spread of the members",
            right=True,
            leaves=1,
        ),
        column(
            "RF\nhull" if on_hull else "RF",
            lambda row: _written(
                row["rf_energy_above_hull_ev_per_atom"]
                if on_hull
                else row["rf_formation_enthalpy_ev_per_atom"]
            ),
            "RF: the same by the Random Forest",
            right=True,
            leaves=5,
        ),
        column(
            "RF\nrank",
            lambda row: "-" if row["rf_rank"] is None else f"{row['rf_rank']:,}",
            right=True,
            leaves=3,
        ),
        column(
            "known",
            _mark_known,
            "known: in the training data or among the references"
            + ("; *: in another structure type" if False in in_prototype else ""),
            leaves=6,
        ),
        column(
            "unseen",
            lambda row: row["unseen_elements"],
            "unseen: not in the training data",
            folds=True,
        ),
        column(
            "charges",
            lambda row: "odd" if row["charge_neutral"] is False else "",
            "charges odd: plausible oxidation states do not sum to zero",
            leaves=5,
        ),
        column(
            "decomposes into",
            lambda row: row["decomposition"] or "-",
            "decomposes into its own formula: another phase of this composition competes"
            if any(row["decomposition"] == row["formula"] for row in drawn)
            else "",
            leaves=2,
            mixture=True,
        ),
    )
    return RankingTable(
        title=_name_prototype(title, prototypes, screened),
        columns=tuple(each for each in columns if each.has_content),
        dim=tuple(row["known"] for row in drawn),
    )


def _name_prototype(title: str, prototypes: Sequence[str], screened: int) -> str:
    """Add the prototype that all rows share to a title."""
    if len(prototypes) != 1:
        return title
    return f"{title}, {prototypes[0]}" if screened == 1 else f"{title}; these are {prototypes[0]}"


def _write_above_hull(row: Mapping[str, Any]) -> str:
    energy, std = row["energy_above_hull_ev_per_atom"], row["energy_above_hull_std_ev_per_atom"]
    return _written(energy) if energy is None or std is None else f"{energy:.3f} ± {std:.3f}"


def _write_interval(row: Mapping[str, Any]) -> str:
    return format_interval(
        row["formation_enthalpy_low_ev_per_atom"], row["formation_enthalpy_high_ev_per_atom"]
    )


def format_probability(probability: float | None) -> str:
    """A probability in hundredths that says neither never nor always."""
    if probability is None:
        return "-"
    if probability < 0.005:
        return "<0.01"
    return ">0.99" if probability >= 0.995 else f"{probability:.2f}"


def _mark_known(row: Mapping[str, Any]) -> str:
    if not row["known"]:
        return ""
    return (row["known_id"] or "yes") + ("*" if row["known_in_prototype"] is False else "")


def _break_mixture(mixture: str, width: int) -> str:
    """Break a mixture of phases into lines between the phases only."""
    lines: list[str] = []
    for phase in mixture.split(" + "):
        if lines and cell_len(lines[-1]) + len(" + ") + cell_len(phase) <= width:
            lines[-1] += f" + {phase}"
        else:
            lines.append(f"+ {phase}" if lines else phase)
    return "\n".join(lines)


def _total_width(columns: Sequence[_Column], gap: int, *, folded: bool = False) -> int:
    """Width of a table, long names in full or folded."""
    widths = [min(c.width, FOLDED) if folded and c.folds else c.width for c in columns]
    return sum(widths) + gap * (len(columns) - 1)


def format_interval(low: float | None, high: float | None) -> str:
    """An interval in eV/atom as text, such as ``[-1.40, -1.05]``; ``-`` where there is none."""
    if low is None or high is None or isnan(low) or isnan(high):
        return "-"
    return f"[{low:.2f}, {high:.2f}]"


def describe_hull(competitors: Mapping[str, Any]) -> str | None:
    """Say in a few words which phases the candidates compete with.

    Args:
        competitors: As the manifest has them.

    Returns:
        What ends "above the hull of"; None if no hull was computed.
    """
    references, predicted = competitors["references"], competitors["predicted"]
    parts = []
    if references is not None:
        functional = references["functional"]
        phases = references["phases"]
        parts.append(
            f"{phases:,} reference phase{'' if phases == 1 else 's'} in "
            f"{Path(references['file']).name}" + (f" ({functional})" if functional else "")
        )
    if predicted:
        parts.append(
            f"{sum(predicted.values()):,} phases of {len(predicted)} structure "
            f"type{'' if len(predicted) == 1 else 's'} that the model predicts itself"
            + (", the other candidates among them" if competitors["candidates_compete"] else "")
        )
    return " and ".join(parts) or None


def describe_gaps(ranking: pa.Table, competitors: Mapping[str, Any]) -> list[str]:
    """Say how many candidates compete with nothing but the elements.

    Args:
        ranking: The whole ranking, best first.
        competitors: What they compete with, as the manifest has it.

    Returns:
        Sentences, one per line; none where every candidate has competitors, or no hull.
    """
    alone = pc.fill_null(pc.match_substring_regex(ranking["decomposition"], _ELEMENTS_ALONE), False)
    count = pc.sum(alone).as_py() or 0
    if not count:
        return []
    best = min(BEST, len(ranking))
    among = pc.sum(alone.slice(0, best)).as_py()
    return [
        f"{count:,} of {len(ranking):,} candidates, {among:,} of the best {best:,}, compete with "
        "the elements alone: no competing phase of their systems lies lower. Where there are such "
        "phases in nature, these candidates only look stable."
        + (
            ""
            if competitors["predicted"]
            else " With --competitors binary the model predicts phases beside those of the file."
        )
    ]


def describe_order(rank_by: RankBy, order: RankBy) -> str:
    """Say what a ranking goes by.

    Args:
        rank_by: What was asked for.
        order: What it goes by, from `screening.rank.find_order`.

    Returns:
        A sentence.
    """
    if order is rank_by:
        return f"Ranked by {_ORDERS[order]}."
    if order is RankBy.FORMATION_ENTHALPY:
        reason = "no hull was computed"
    elif rank_by is RankBy.P_STABLE:
        reason = "the model was never calibrated"
    else:
        reason = "the model was never calibrated and has a single member"
    return f"Ranked by {_ORDERS[order]}, not by {_ORDERS[rank_by]}: {reason}."


def describe_comparison(comparison: Comparison) -> list[str]:
    """Say how far IRNet and the Random Forest agree, and where not.

    Args:
        comparison: From `screening.comparison`.

    Returns:
        Sentences, one per line; none for so few candidates that they would say nothing.
    """
    correlations = [
        f"{value:.3f} ({name})"
        for name, value in (
            ("formation enthalpy", comparison.enthalpy_correlation),
            ("energy above hull", comparison.hull_correlation),
        )
        if value is not None
    ]
    if comparison.candidates < FEWEST_COMPARED:
        return []
    lines = []
    if correlations:
        lines.append(f"IRNet and the Random Forest: rank correlation {', '.join(correlations)}.")
    if comparison.overlaps:
        shared = ", ".join(
            f"{each.shared:,} of the top {each.top:,} (by chance {each.by_chance:.0f})"
            for each in comparison.overlaps
        )
        lines.append(f"They share {shared}.")
    if (stable := comparison.stable) is not None:
        lines.append(
            f"At most {stable.within_ev_per_atom:g} eV/atom above the hull: {stable.irnet:,} by "
            f"IRNet, {stable.forest:,} by the Random Forest, {stable.both:,} by both."
        )
    if comparison.disagreements:
        lines.append(
            f"Of the {comparison.among} best of either they disagree most on ({comparison.energy}, "
            "eV/atom):"
        )
    lines += [
        f"  {each.formula} ({each.prototype}): IRNet {each.irnet_ev_per_atom:.3f}, rank "
        f"{each.rank:,}; Random Forest {each.forest_ev_per_atom:.3f}, rank {each.rf_rank:,}"
        for each in comparison.disagreements
    ]
    return lines


def describe_intervals(intervals: Mapping[str, Any] | str, model: str) -> list[str]:
    """Say what the intervals of a ranking rest on and how often they held.

    Args:
        intervals: As the manifest has them: how they were fitted and their measured coverage per
            prototype, or why there are none.
        model: The model's name.

    Returns:
        Sentences, one per line.
    """
    if isinstance(intervals, str):
        return [f"model {model}: {intervals}"]
    lines = [
        f"[low, high] are to hold {intervals['level']:.0%} of the energies; they were fitted on "
        f"{intervals['rows']:,} compounds of {intervals['chemical_systems']:,} chemical systems, "
        "predicted without training on them."
    ]
    for prototype, measured in intervals["measured_coverage"].items():
        if measured is not None:
            lines.append(
                f"{prototype}: they held {measured['coverage']:.0%} of {measured['n']} such "
                f"compounds (95 % interval {measured['low']:.0%} to {measured['high']:.0%})"
                f"{_judge_coverage(measured, intervals['level'])}"
            )
    unmeasured = [name for name, each in intervals["measured_coverage"].items() if each is None]
    if unmeasured:
        lines.append(f"{', '.join(unmeasured)}: what they hold there was never measured.")
    return lines


def _judge_coverage(measured: Mapping[str, float], level: float) -> str:
    """End a sentence on measured coverage by saying whether it is what was promised."""
    if measured["high"] < level:
        return f", not {level:.0%}: too narrow here, errors are often larger than they say."
    if measured["low"] > level:
        return f", more than {level:.0%}: wider here than they need be."
    return "."


def warn_of_bias(
    errors: Mapping[str, Mapping[str, Any] | None], *, hull: bool = False
) -> list[str]:
    """Say plainly what a ranking is worth.

    Args:
        errors: For each prototype the model's measured errors, as the manifest has them, or None
            where nothing was measured.
        hull: Whether the ranking has energies above hull.

    Returns:
        Sentences, one per line.
    """
    lines = [
        "These are candidates, not discoveries: where a competing phase is missing from the hull, "
        "a compound looks more stable than it is."
        if hull
        else "Warning: formation enthalpy alone is not stability. A compound is stable only if no "
        "mix of competing phases lies lower; these are candidates, not discoveries."
    ]
    for prototype, error in errors.items():
        if error is None:
            continue
        bias = error["bias_ev_per_atom"]
        direction = "too negative (too stable)" if bias < 0 else "too positive"
        lines.append(
            f"{prototype}: against DFT on {error['n']} such compounds the model is off by "
            f"{error['mae_ev_per_atom']:.2f} eV/atom, on average {abs(bias):.2f} eV/atom "
            f"{direction}."
        )
    unmeasured = [prototype for prototype, error in errors.items() if error is None]
    if unmeasured:
        lines.append(f"{', '.join(unmeasured)}: this model's error there was never measured.")
    return lines


def _written(energy: float | None) -> str:
    return "-" if energy is None else f"{energy:.3f}"


def describe_requirements(removed: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Say how many candidates each requirement removed.

    Args:
        removed: As the manifest has it: for the text of each requirement, how many candidates it
            `removed` of those that the ones before it had left, and how many have no value there
            (`not_applicable`): they stay, unless the text demands a value with `!`.

    Returns:
        Sentences, one per line.
    """
    lines = []
    for text, counts in removed.items():
        line = f"required {text}: {counts['removed']:,} candidates removed"
        if counts["not_applicable"]:
            without = f"{counts['not_applicable']:,}"
            line += (
                f", {without} of them without a value"
                if text.endswith("!")
                else f"; it does not apply to {without}, which stay"
            )
        lines.append(f"{line}.")
    return lines


def describe_kept(manifest: Mapping[str, Any]) -> list[str]:
    """Say how many scored candidates a campaign did not keep; nothing if it kept all.

    Args:
        manifest: Of the campaign.
    """
    dropped = manifest["dropped"]
    if not dropped:
        return []
    kept = manifest["rows"]["scored"]
    return [
        f"{kept + dropped:,} candidates were scored and the best {kept:,} are kept; ranks by the "
        "Random Forest are among these, and the two are not compared."
    ]


def describe_failures(manifest: Mapping[str, Any], path: Path) -> list[str]:
    """Say what could not be scored and why; nothing if all was.

    Args:
        manifest: Of the campaign.
        path: Where these candidates are.
    """
    failed, lost = manifest["rows"]["failed"], manifest["shards_set_aside"]
    if not failed:
        return []
    reasons = list(manifest["reasons"].items())
    named = "; ".join(f"{reason} ({count:,})" for reason, count in reasons[:MOST_REASONS])
    more = "; ..." if len(reasons) > MOST_REASONS else ""
    lines = [f"{failed:,} candidates could not be scored: {named}{more}; they are in {path}."]
    if lost:
        shards = "shard was" if lost == 1 else "shards were"
        lines.append(
            f"{lost:,} {shards} set aside after repeated failures; the same command tries "
            f"{'it' if lost == 1 else 'them'} again."
        )
    return lines
