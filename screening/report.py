"""The report of a finished campaign: one HTML page to send to a colleague.

Everything on it comes from the campaign's manifest, ranking and failures, and `render_report` reads
as its table of contents. Each plot has a table beside it that says the same in numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from screening.errors import ConfigurationError
from screening.folder import RunFolder
from screening.page import (
    SORTING,
    SORTING_STYLE,
    build_code,
    build_details,
    build_document,
    build_facts,
    build_figure,
    build_list,
    build_paragraph,
    build_table,
    build_title,
)
from screening.plots import draw_element_map, plot_density, plot_histogram
from screening.printing import count_things
from screening.rank import select_candidates
from screening.settings import RankBy
from screening.shortlist import pick_shortlist
from screening.terminal import (
    describe_hull,
    describe_intervals,
    describe_order,
    format_interval,
    warn_of_bias,
)

TOP: Final = 50
"""Candidates of the ranking on the page."""

SHORTLIST: Final = 20
"""Candidates of the diverse shortlist."""

LOOKED_AT: Final = 16_384
"""Best candidates among which the shortlist is picked, which bounds the time."""

MOST_FAILURES: Final = 5
"""Failed competing phases that are named."""

LIKELY: Final = 0.5
"""Least probability of being stable of the candidates that the funnel counts as likely."""

BINS: Final = 40
"""Bars of the histogram of energies."""

SHOWN_SHARE: Final = 99.0
"""Percentile of the energies up to which they are drawn; the rest counts in the last bar or cell.
"""

STYLE: Final = (
    SORTING_STYLE
    + """
body { max-width: 86rem; }
p, ul { max-width: 54rem; }
.sortable { font-size: .82rem; }
.sortable th, .sortable td { padding: .28rem .5rem; }
.sortable td.words { min-width: 5rem; max-width: 17rem; }
.elements svg { max-width: 56rem; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  .sortable { font-size: 6.5pt; }
  .sortable th, .sortable td { padding: .15rem .3rem; } }
"""
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Scored:
    """Columns of a ranking of n candidates as arrays, each (n,), NaN for null; eV/atom."""

    above_hull: FloatArray
    forest_above_hull: FloatArray
    p_stable: FloatArray
    enthalpy: FloatArray
    forest_enthalpy: FloatArray
    new: NDArray[np.bool_]

    @classmethod
    def read(cls, ranking: pa.Table) -> _Scored:
        return cls(
            above_hull=ranking["energy_above_hull_ev_per_atom"].to_numpy(),
            forest_above_hull=ranking["rf_energy_above_hull_ev_per_atom"].to_numpy(),
            p_stable=ranking["p_stable"].to_numpy(),
            enthalpy=ranking["formation_enthalpy_ev_per_atom"].to_numpy(),
            forest_enthalpy=ranking["rf_formation_enthalpy_ev_per_atom"].to_numpy(),
            new=~ranking["known"].to_numpy(),
        )

    @property
    def on_hull(self) -> bool:
        """Whether there are energies above hull."""
        return bool(np.isfinite(self.above_hull).any())

    @property
    def calibrated(self) -> bool:
        """Whether there are probabilities."""
        return bool(np.isfinite(self.p_stable).any())

    @property
    def by_model(self) -> dict[str, FloatArray]:
        """Energies of each model: above hull, or formation enthalpies without a hull."""
        energies = (
            (self.above_hull, self.forest_above_hull)
            if self.on_hull
            else (self.enthalpy, self.forest_enthalpy)
        )
        named = zip(("IRNet", "Random Forest"), energies, strict=True)
        return {name: values for name, values in named if np.isfinite(values).any()}

    @property
    def energy(self) -> str:
        """Name of these energies, with their unit."""
        return f"{'energy above hull' if self.on_hull else 'formation enthalpy'} (eV/atom)"


def report_of(folder: RunFolder) -> str:
    """Write the report of the campaign in a folder.

    Args:
        folder: The campaign.

    Returns:
        HTML, one self-contained document.

    Raises:
        ConfigurationError: The campaign is not complete.
        InputDataError: A file of the folder is damaged.
    """
    if not folder.is_ranked:
        finished = sum(each.enumerated for each in folder.read_receipts(folder.shards))
        raise ConfigurationError(
            f"{folder.path} is not complete: {finished:,} of {folder.manifest['counts']['total']:,}"
            " candidates are finished, and a report tells of all; finish it with: screening run "
            f"{folder.path / 'campaign.toml'}"
        )
    return render_report(folder, folder.read_ranking())


def render_report(folder: RunFolder, ranking: pa.Table) -> str:
    """Write the report of a campaign that is complete or was interrupted.

    Args:
        folder: The campaign, whose manifest says how it ended.
        ranking: The ranking of what is finished.

    Returns:
        HTML, one self-contained document.
    """
    manifest, scored = folder.manifest, _Scored.read(ranking)
    parts = [
        *_head(manifest, scored),
        *_screened(manifest),
        *_hull(manifest["competitors"], folder.prototypes),
        *_funnel(manifest, scored),
        *_top(manifest, ranking, scored),
        *_shortlist(ranking, scored),
        *_distributions(manifest, scored),
        *_models(manifest, scored),
        *_elements(ranking, scored, _within(manifest)),
        *_certainty(manifest["model"]),
        *_making(folder, manifest),
    ]
    return build_document(_title(manifest), parts, style=STYLE, script=SORTING)


def _title(manifest: Mapping[str, Any]) -> str:
    return f"Screening of {', '.join(manifest['prototypes'])}"


def _within(manifest: Mapping[str, Any]) -> float:
    return float(manifest["competitors"]["stable_within_ev_per_atom"])


def _head(manifest: Mapping[str, Any], scored: _Scored) -> list[str]:
    against, within = describe_hull(manifest["competitors"]), _within(manifest)
    total = f"Screened: {count_things(manifest['counts']['total'], 'candidate')}"
    if scored.on_hull:
        stable = scored.above_hull <= within
        found = (
            f"{total}. The model predicts {stable.sum():,} of them at most {within:g} eV/atom "
            f"above the hull of {against}; {_describe_new(stable & scored.new)}"
        )
    else:
        found = f"{total}; ranked: {len(scored.new):,}."
    remarks = []
    if manifest["state"] != "complete":
        remarks.append(
            "This run was interrupted: it tells of what was finished by then. The same command "
            "goes on."
        )
    if manifest["shards_set_aside"]:
        remarks.append(
            f"{manifest['shards_set_aside']:,} shards were set aside after repeated failures; "
            "their candidates are among those that could not be scored. The same command tries "
            "them again."
        )
    if manifest["dropped"]:
        remarks.append(
            f"Only the {manifest['campaign']['keep_top']:,} best are kept: what is counted of the "
            "predictions below, and the ranks by the Random Forest, are among these."
        )
    return [
        build_title(_title(manifest)),
        build_paragraph(
            f"{manifest['runs'][-1]['ended']}, screening {manifest['environment']['screening']}, "
            f"model {manifest['model']['name']}",
            faint=True,
        ),
        build_paragraph(found),
        *map(build_paragraph, remarks),
        build_paragraph(warn_of_bias({}, hull=scored.on_hull)[0]),
    ]


def _describe_new(new: NDArray[np.bool_]) -> str:
    """A sentence on how many of the candidates found are of new compositions."""
    count = int(new.sum())
    which = "is of a composition that is" if count == 1 else "are of compositions that are"
    return f"{count:,} of these {which} not known."


def _screened(manifest: Mapping[str, Any]) -> list[str]:
    rows = [["prototype", "formula", "candidates", "known as", "geometry from"]]
    for name, prototype in manifest["prototypes"].items():
        names = (prototype["strukturbericht"], prototype["mineral"], prototype["aflow_label"])
        rows.append(
            [
                name,
                prototype["formula"],
                f"{manifest['counts'][name]:,}",
                ", ".join(each for each in names if each and each != name),
                prototype["source"],
            ]
        )
    pools: dict[tuple[str, ...], list[str]] = {}
    for role, pool in manifest["campaign"]["elements"].items():
        pools.setdefault(tuple(pool), []).append(role)
    elements = {
        f"elements on {', '.join(roles)}": f"{len(pool)}: {' '.join(pool)}"
        for pool, roles in pools.items()
    }
    return [
        "<h2>What was screened</h2>",
        build_table(
            rows,
            "Every distinct way to put the elements on the sites of these prototypes",
            words=("prototype", "formula", "known as", "geometry from"),
        ),
        build_facts(elements),
    ]


def _hull(competitors: Mapping[str, Any], screened: Collection[str]) -> list[str]:
    references, compete = competitors["references"], competitors["candidates_compete"]
    types = {
        name: count
        for name, count in competitors["predicted"].items()
        if not (compete and name in screened)
    }
    parts = ["<h2>The hull: what candidates compete with</h2>"]
    if references is not None:
        parts += _given_hull(references)
    if types:
        parts += _own_hull(types, alone=references is None)
    if references is None and not types and not compete:
        parts += [
            build_paragraph(
                "None was computed: candidates are ranked by formation enthalpy alone, which says "
                "how much energy the elements give off, not whether the compound is stable. To let "
                "the candidates compete:"
            ),
            build_code("screening hull DIR --out OTHER"),
        ]
    if compete:
        parts.append(
            build_paragraph(
                "Candidates of one chemical system compete with each other, too, with the energies "
                "that the model predicts for them."
            )
        )
    failed = competitors.get("failures", [])
    if failed:
        rows = [["phase", "reason"], *failed[:MOST_FAILURES]]
        caption = f"{len(failed):,} competing phases could not be predicted, among them"
        parts.append(build_table(rows, caption, words=rows[0]))
    return parts


def _given_hull(references: Mapping[str, Any]) -> list[str]:
    parts = [
        build_paragraph(
            f"Each candidate competes with all mixtures of {references['phases']:,} reference "
            "phases from a file, and of the elements at 0 eV/atom. Where the file lacks a phase, "
            "or its energies were calculated in another way than those that the model was trained "
            "on, the energies above hull are off."
        ),
        build_facts(
            {
                "file": references["file"],
                "sha256": references["sha256"],
                "functional": references["functional"]
                or "not stated: taken to be that of the model's training data",
                "entries read": f"{references['entries']:,}",
                "phases": f"{references['phases']:,}",
            }
        ),
    ]
    return [*parts, build_list(references["notes"])] if references["notes"] else parts


def _own_hull(predicted: Mapping[str, int], alone: bool) -> list[str]:
    types = [["structure type", "phases predicted"]]
    types += [[name, f"{count:,}"] for name, count in predicted.items()]
    plural = "s" * (len(predicted) != 1)
    return [
        build_paragraph(
            f"Each candidate competes with all mixtures of {sum(predicted.values()):,} phases of "
            f"{len(predicted)} structure type{plural} that the model itself predicted, and of the "
            "elements at 0 eV/atom. No energy of this hull comes from DFT or experiment."
            if alone
            else f"Besides, {sum(predicted.values()):,} phases of {len(predicted)} structure "
            f"type{plural} compete that the model itself predicted; their energies come neither "
            "from DFT nor from experiment."
        ),
        *(_warn_of_own_hull() if alone else []),
        build_details(
            "Which structure types",
            build_table(types, "Competing phases by structure type", words=types[0][:1]),
        ),
    ]


def _warn_of_own_hull() -> list[str]:
    return [
        build_paragraph(
            "What this means: phases of other structure types are not in the hull, however stable "
            "they are, so candidates can look more stable than they are; that is worst where "
            "structures are many, as in oxides and other salts. And the model's errors are in "
            "candidates and competitors alike. Before anyone acts on this ranking, let the "
            "candidates compete with phases of known energy:"
        ),
        build_code("screening hull DIR --references FILE --out OTHER"),
    ]


def _funnel(manifest: Mapping[str, Any], scored: _Scored) -> list[str]:
    rows = [["step", "candidates", "of these new", "remarks"]]
    rows.append(["enumerated", f"{manifest['counts']['total']:,}", "", ""])
    for condition, counts in manifest["removed"].items():
        without = counts["not_applicable"]
        fate = "are removed, too" if condition.endswith("!") else "stay"
        remark = f"{without:,} have no value there and {fate}" if without else ""
        rows.append([f"removed by {condition}", f"{counts['removed']:,}", "", remark])
    most = list(manifest["reasons"].items())[:3]
    remark = "; ".join(f"{count:,}: {reason}" for reason, count in most)
    rows.append(["could not be scored", f"{manifest['rows']['failed']:,}", "", remark])

    def count(step: str, chosen: NDArray[np.bool_], remark: str = "") -> None:
        rows.append([step, f"{chosen.sum():,}", f"{(chosen & scored.new).sum():,}", remark])

    if manifest["dropped"]:
        rows.append(["scored, not kept", f"{manifest['dropped']:,}", "", "only the best are kept"])
    count("scored and ranked", np.ones(len(scored.new), dtype=bool))
    if scored.on_hull:
        within = _within(manifest)
        stable = scored.above_hull <= within
        by_forest = scored.forest_above_hull <= within
        meaning = f"energy above hull at most {within:g} eV/atom"
        count("predicted stable by IRNet", stable, meaning)
        if "Random Forest" in scored.by_model:
            count("predicted stable by the Random Forest", by_forest, meaning)
            count("predicted stable by both", stable & by_forest, meaning)
        if scored.calibrated:
            likely = f"p_stable at least {LIKELY:g}"
            count("probably stable", scored.p_stable >= LIKELY, likely)
    return [
        "<h2>From candidates to finds</h2>",
        build_table(
            rows,
            "New: no compound of this composition is in the model's training data or among the "
            "reference phases",
            words=("step", "remarks"),
        ),
    ]


def _top(manifest: Mapping[str, Any], ranking: pa.Table, scored: _Scored) -> list[str]:
    order = describe_order(RankBy(manifest["rank_by"]), RankBy(manifest["ranked_by"]))
    title = f"<h2>The best {min(TOP, len(ranking))}</h2>"
    if len(ranking) == 0:
        return [title, build_paragraph("No candidate could be scored.")]
    legend = ["Energies in eV/atom, by IRNet. ΔHf: formation enthalpy."]
    if scored.on_hull:
        legend.append(
            "Above hull: energy above the hull ± standard deviation, negative below it; "
            f"p_stable: probability that it is at most {_within(manifest):g}, not that the "
            "compound can be made."
        )
    legend.append(
        "RF: the Random Forest. Known compositions are in the training data or among the reference "
        "phases and drawn fainter. Nearest known: the most alike known composition, with the "
        "element mover's distance in steps of the modified Pettifor scale. A click on a header "
        "sorts."
    )
    return [
        title,
        build_paragraph(order),
        _rank_table(ranking.slice(0, TOP), f"Best {min(TOP, len(ranking))} of {len(ranking):,}"),
        build_paragraph(" ".join(legend), faint=True),
    ]


def _shortlist(ranking: pa.Table, scored: _Scored) -> list[str]:
    if len(ranking) == 0:
        return []
    best = select_candidates(ranking.slice(0, LOOKED_AT), new=True)
    picked = pick_shortlist(best, SHORTLIST) if len(best) else best
    parts = [
        "<h2>A diverse shortlist of new compounds</h2>",
        build_paragraph(
            "Going down the ranking, known compositions and each candidate whose composition is "
            "close to one already picked are passed over, so that a batch of calculations teaches "
            "something about different chemistries. The same in a terminal:"
        ),
        build_code(f"screening show DIR --new --diverse --top {SHORTLIST}"),
    ]
    if len(picked) == 0:
        return [*parts, build_paragraph("All of the best candidates are known.")]
    return [*parts, _rank_table(picked, f"Best {len(picked)} new compounds unlike each other")]


def _rank_table(rows: pa.Table, caption: str) -> str:
    sites = [
        name
        for name in rows.column_names
        if name.startswith("site_") and rows[name].null_count < len(rows)
    ]
    on_hull = rows["energy_above_hull_ev_per_atom"].null_count < len(rows)
    roles = " ".join(name.removeprefix("site_") for name in sites)
    forest = "rf_energy_above_hull_ev_per_atom" if on_hull else "rf_formation_enthalpy_ev_per_atom"
    head = [
        *("rank", "formula", roles, "prototype", "above hull", "p_stable", "ΔHf", "90 % interval"),
        *("RF above hull" if on_hull else "RF ΔHf", "RF rank", "known", "decomposes into"),
        *("nearest known", "warnings"),
    ]
    words = ("formula", roles, "prototype", *head[10:])
    cells = []
    for row in rows.to_pylist():
        low, high = (row[f"formation_enthalpy_{end}_ev_per_atom"] for end in ("low", "high"))
        cells.append(
            [
                f"{row['rank']:,}",
                row["formula"],
                " ".join(row[name] for name in sites if row[name] is not None),
                row["prototype"],
                _write_energy(
                    row["energy_above_hull_ev_per_atom"], row["energy_above_hull_std_ev_per_atom"]
                ),
                _write_probability(row["p_stable"]),
                _write_energy(row["formation_enthalpy_ev_per_atom"]),
                "" if low is None else format_interval(low, high),
                _write_energy(row[forest]),
                "" if row["rf_rank"] is None else f"{row['rf_rank']:,}",
                _describe_known(row),
                row["decomposition"] or "",
                _describe_nearest(row),
                "; ".join(_list_warnings(row)),
            ]
        )
    known = rows["known"].to_pylist()
    faint = {number for number, there in enumerate(known, start=1) if there}
    return build_table([head, *cells], caption, words=words, sortable=True, faint=faint)


def _write_energy(energy: float | None, std: float | None = None) -> str:
    if energy is None:
        return ""
    return f"{energy:.3f}" if std is None else f"{energy:.3f} ± {std:.3f}"


def _write_probability(probability: float | None) -> str:
    """A probability in thousandths that says neither never nor always."""
    if probability is None:
        return ""
    if probability < 0.0005:
        return "<0.001"
    return ">0.999" if probability >= 0.9995 else f"{probability:.3f}"


def _describe_known(row: Mapping[str, Any]) -> str:
    if not row["known"]:
        return ""
    where = {True: " in this structure type", False: " in another structure type"}
    return f"{row['known_id'] or 'yes'}{where.get(row['known_in_prototype'], '')}"


def _describe_nearest(row: Mapping[str, Any]) -> str:
    if row["nearest_known_formula"] is None:
        return ""
    return f"{row['nearest_known_formula']} ({row['nearest_known_distance']:.1f})"


def _list_warnings(row: Mapping[str, Any]) -> list[str]:
    named = (
        ("not in the training data", row["unseen_elements"]),
        ("filled properties", row["imputed_elements"]),
        ("radioactive", row["radioactive_elements"]),
        ("toxic", row["toxic_elements"]),
    )
    warnings = [f"{what}: {elements}" for what, elements in named if elements]
    if row["charge_neutral"] is False:
        warnings.append("charges do not balance")
    elif row["electronegativity_order"] is False:
        warnings.append("cation more electronegative than anion")
    return warnings


def _distributions(manifest: Mapping[str, Any], scored: _Scored) -> list[str]:
    if len(scored.new) == 0:
        return []
    mark = _within(manifest) if scored.on_hull else None
    low, high = _find_limits(scored, mark)
    edges = np.linspace(low, high, BINS + 1)
    what = "energies above hull" if scored.on_hull else "formation enthalpies"
    remark = "" if mark is None else f" The line is at {mark:g} eV/atom, the tolerance."
    parts = [
        "<h2>Distributions</h2>",
        *_draw_histogram(
            edges,
            scored.by_model,
            scored.energy,
            f"How many candidates have which {what}; the last bar holds all beyond.{remark}",
            mark,
            "energies",
        ),
    ]
    if scored.calibrated:
        parts += _draw_histogram(
            np.linspace(0, 1, 21),
            {"IRNet": scored.p_stable},
            "p_stable",
            "How many candidates have which probability of being stable.",
            None,
            "probabilities",
        )
    return parts


def _find_limits(scored: _Scored, mark: float | None) -> tuple[float, float]:
    """Return energies between which almost all of the candidates lie."""
    finite = [values[np.isfinite(values)] for values in scored.by_model.values()]
    low = min(float(values.min()) for values in finite)
    high = max(float(np.percentile(values, SHOWN_SHARE)) for values in finite)
    high = max(high, low + 0.01, -np.inf if mark is None else mark + 0.01)
    return low, high


def _draw_histogram(
    edges: FloatArray,
    values: Mapping[str, FloatArray],
    label: str,
    caption: str,
    mark: float | None,
    name: str,
) -> list[str]:
    counts = {}
    for model, numbers in values.items():
        finite = numbers[np.isfinite(numbers)]
        counts[model] = np.histogram(finite.clip(edges[0], edges[-1]), edges)[0]
    rows = [["from", "to", *counts]]
    rows += [
        [f"{low:.3f}", f"{high:.3f}", *(f"{heights[i]:,}" for heights in counts.values())]
        for i, (low, high) in enumerate(pairwise(edges))
    ]
    return [
        build_figure(plot_histogram(edges, counts, label, mark=mark, name=name), caption),
        build_details("The same in numbers", build_table(rows, f"Candidates by {label}")),
    ]


def _models(manifest: Mapping[str, Any], scored: _Scored) -> list[str]:
    title = "<h2>IRNet beside the Random Forest</h2>"
    comparison = manifest["comparison"]
    if comparison is None:
        return [title, build_paragraph(_explain_no_comparison(scored))]
    correlations = {
        f"rank correlation, {name}": "" if value is None else f"{value:.3f}"
        for name, value in (
            ("formation enthalpy", comparison["enthalpy_correlation"]),
            ("energy above hull", comparison["hull_correlation"]),
        )
    }
    overlaps = [["top", "in both", "by chance"]]
    overlaps += [
        [f"{each['top']:,}", f"{each['shared']:,}", f"{each['by_chance']:.1f}"]
        for each in comparison["overlaps"]
    ]
    differing = [["formula", "prototype", "IRNet", "rank", "RF", "RF rank"]]
    differing += [
        [
            each["formula"],
            each["prototype"],
            f"{each['irnet_ev_per_atom']:.3f}",
            f"{each['rank']:,}",
            f"{each['forest_ev_per_atom']:.3f}",
            f"{each['rf_rank']:,}",
        ]
        for each in comparison["disagreements"]
    ]
    mark = _within(manifest) if scored.on_hull else None
    x, y = scored.by_model["Random Forest"], scored.by_model["IRNet"]
    both = np.isfinite(x) & np.isfinite(y)
    svg = plot_density(
        x[both],
        y[both],
        _find_limits(scored, mark),
        (f"Random Forest: {scored.energy}", f"IRNet: {scored.energy}"),
        mark=mark,
        name="models",
    )
    dotted = "" if mark is None else f" The dotted lines are at {mark:g} eV/atom, the tolerance."
    parts = [
        title,
        build_facts(correlations),
        build_figure(
            svg,
            f"All {both.sum():,} candidates by both models: the stronger a cell's colour, the more "
            "of them, those beyond in the last ones; on the diagonal the models agree."
            f"{dotted}",
        ),
    ]
    if len(overlaps) > 1:
        parts.append(build_table(overlaps, "Candidates at the top of both rankings"))
    if len(differing) > 1:
        caption = (
            f"Largest disagreements among the best {comparison['among']} of either, "
            f"{comparison['energy']} in eV/atom"
        )
        parts.append(build_table(differing, caption, words=differing[0][:2]))
    return parts


def _explain_no_comparison(scored: _Scored) -> str:
    """Say why a campaign's ranking is not compared with the Random Forest's."""
    if len(scored.new) == 0:
        return "No candidate could be scored."
    if "Random Forest" not in scored.by_model:
        return "The model has no Random Forest to compare with."
    return (
        "Not compared: the candidates that are best by the Random Forest may be among those that "
        "were not kept."
    )


@dataclass(frozen=True, eq=False)
class _ElementCounts:
    """What holds of the candidates with an element: their number, sums over them, best rank."""

    candidates: int
    stable: int
    p_stable: float
    enthalpy: float
    best: int


def _count_elements(ranking: pa.Table, scored: _Scored, within: float) -> dict[str, _ElementCounts]:
    """Count the candidates of each element; each holds it on one kind of site only."""
    stable = (scored.above_hull <= within).astype(np.float64)
    sums: dict[str, FloatArray] = {}
    best: dict[str, int] = {}
    for name in (each for each in ranking.column_names if each.startswith("site_")):
        column = ranking[name].combine_chunks().dictionary_encode()
        there = column.indices.is_valid().to_numpy(zero_copy_only=False)
        held = column.indices.drop_null().to_numpy()
        symbols = column.dictionary.to_pylist()
        columns = [np.ones(len(held))]
        columns += [x[there] for x in (stable, scored.p_stable, scored.enthalpy)]
        counted = np.stack([np.bincount(held, weights=x, minlength=len(symbols)) for x in columns])
        first = np.full(len(symbols), len(ranking))
        np.minimum.at(first, held, np.flatnonzero(there))
        for place, symbol in enumerate(symbols):
            sums[symbol] = sums.get(symbol, np.zeros(4)) + counted[:, place]
            best[symbol] = min(best.get(symbol, len(ranking)), int(first[place]) + 1)
    return {
        symbol: _ElementCounts(int(n), int(stable), p_stable / n, enthalpy / n, best[symbol])
        for symbol, (n, stable, p_stable, enthalpy) in sums.items()
    }


def _elements(ranking: pa.Table, scored: _Scored, within: float) -> list[str]:
    if len(ranking) == 0:
        return []
    counts = _count_elements(ranking, scored, within)
    if scored.calibrated:
        what = "mean p_stable of the candidates with it"
        values = {symbol: each.p_stable for symbol, each in counts.items()}
        texts = {symbol: f"{value:.3f}" for symbol, value in values.items()}
    elif scored.on_hull:
        what = f"share of the candidates with it at most {within:g} eV/atom above the hull"
        values = {symbol: each.stable / each.candidates for symbol, each in counts.items()}
        texts = {symbol: f"{value:.1%}" for symbol, value in values.items()}
    else:
        what = "mean formation enthalpy (eV/atom) of the candidates with it"
        values = {symbol: -each.enthalpy for symbol, each in counts.items()}
        texts = {symbol: f"{each.enthalpy:.2f}" for symbol, each in counts.items()}
    rows = [["element", "candidates", "mean p_stable", "predicted stable", "mean ΔHf", "best rank"]]
    rows += [
        [
            symbol,
            f"{each.candidates:,}",
            f"{each.p_stable:.4f}" if scored.calibrated else "",
            f"{each.stable:,}" if scored.on_hull else "",
            f"{each.enthalpy:.3f}",
            f"{each.best:,}",
        ]
        for symbol, each in sorted(counts.items(), key=lambda pair: -values[pair[0]])
    ]
    svg = draw_element_map(values, texts, "element")
    return [
        "<h2>Which chemistry wins</h2>",
        '<div class="elements">',
        build_figure(svg, f"For each element the {what}; the better, the stronger the colour."),
        "</div>",
        build_details(
            "The same in numbers",
            build_table(rows, f"Elements by the {what}", words=("element",), sortable=True),
        ),
    ]


def _certainty(model: Mapping[str, Any]) -> list[str]:
    return [
        "<h2>How sure this is</h2>",
        build_list(
            [
                *warn_of_bias(model["measured_errors"])[1:],
                *describe_intervals(model["intervals"], model["name"]),
            ]
        ),
    ]


def _making(folder: RunFolder, manifest: Mapping[str, Any]) -> list[str]:
    model, environment = manifest["model"], manifest["environment"]
    packages = environment["packages"].items()
    runs = [["ended", "workers", "shards computed", "seconds"]]
    runs += [
        [
            each["ended"],
            str(each["workers"]),
            f"{each['shards_computed']:,} of {len(folder.shards):,}",
            f"{each['wall_seconds']:,.1f}",
        ]
        for each in manifest["runs"]
    ]
    stages = [["stage", "worker seconds", "candidates per worker second"]]
    stages += [
        [name, f"{each['worker_seconds']:,.1f}", _write_rate(each["candidates_per_worker_second"])]
        for name, each in manifest["stages"].items()
    ]
    return [
        "<h2>How it was made, and how to make it again</h2>",
        build_facts(
            {
                "model": f"{model['name']}: {model['members']} × {model['architecture']}",
                "model sha256": model["content_sha256"],
                "training data sha256": model["training_data_sha256"],
                "seed of the training": str(model["seed"]),
                "screening": environment["screening"]
                + (f", commit {environment['commit']}" if environment["commit"] else ""),
                "Python": environment["python"],
                "packages": ", ".join(f"{name} {version}" for name, version in packages if version),
                "platform": environment["platform"],
                "computed on": ", ".join(manifest["devices"]),
                "precision": ", ".join(manifest.get("precisions", [])),
            }
        ),
        build_table(runs, "Runs", words=("workers",)),
        build_table(stages, "Time by stage, summed over the workers", words=("stage",)),
        build_paragraph("To make it again, put the settings below into campaign.toml and call:"),
        build_code("screening run campaign.toml --out again"),
        build_code(folder.read_settings()),
    ]


def _write_rate(rate: float | None) -> str:
    """Write candidates per second; a stage that was not done has none."""
    return "-" if rate is None else f"{rate:,}"
