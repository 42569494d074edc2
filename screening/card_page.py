"""The card of a model as one HTML page that needs nothing else: tables, plots, sources, limits.

Every plot has a table beside it that says the same in numbers. All text that comes from a model is
escaped, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from screening.classification import describe_accuracy, tabulate_classes, tabulate_each_class
from screening.errors import ModelError
from screening.model_card import Card, Reliability, Score, read_card
from screening.model_library import (
    ENSEMBLE_NAME,
    ENTHALPY_UNIT,
    join_classes,
    load_model,
    model_files,
)
from screening.page import (
    build_details,
    build_document,
    build_facts,
    build_figure,
    build_list,
    build_table,
)
from screening.plots import plot_errors, plot_learning_curves, plot_reliability
from screening.training import HELD_OUT_NAME, load_rows

PREDICTORS = {
    "irnet": "IRNet ensemble",
    "irnet_member": "one network (mean)",
    "random_forest": "Random Forest",
}
PERCENTILES = (50, 75, 90, 95, 99)
EVERY_SCHEME = "all"


@dataclass(frozen=True)
class CardFacts:
    """What a page tells beyond the card itself.

    Attributes:
        megabytes: Size of the model's files.
        unit: Unit of the predictions.
        members: Record of each network as its ensemble keeps it: epochs, errors, history.
        errors: Predicted minus true on the held-out rows by predictor, each of shape (n,); empty
            where the model has none of these rows or predicts classes.
    """

    megabytes: float
    unit: str = ENTHALPY_UNIT
    members: tuple[Mapping[str, Any], ...] = ()
    errors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def collect_facts(folder: Path, device: str = "auto") -> CardFacts:
    """Read the learning curves of a model, and predict its held-out rows where it has them.

    Args:
        folder: The model.
        device: Where the networks run.

    Returns:
        What the page needs.

    Raises:
        ModelError: A file is missing or damaged.
    """
    path = folder / ENSEMBLE_NAME / "ensemble.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        members = tuple(dict(entry) for entry in content["members"])
        unit = str(content["card"].get("unit", ENTHALPY_UNIT))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is missing or damaged ({error}). Get or train the model again."
        ) from error
    numbers = read_card(folder).classification is None
    errors = _held_out_errors(folder, device) if numbers else {}
    return CardFacts(
        megabytes=sum(file.stat().st_size for file in model_files(folder)) / 1e6,
        unit=unit,
        members=members,
        errors=errors,
    )


def render_page(card: Card, facts: CardFacts) -> str:
    """Write the page of a card.

    Args:
        card: The card.
        facts: Size, learning curves and held-out errors, from `collect_facts`.

    Returns:
        HTML, one self-contained document.
    """
    parts = [
        *_head(card, facts),
        *_held_out(card, facts),
        *_classes(card),
        *_search(card, facts.unit),
        *_intervals(card, facts.unit),
        *_learning(card, facts),
        *_data(card),
        *_making(card, facts.unit),
        *_limits(card),
    ]
    return build_document(f"{card.name}: model card", parts)


def page_of(folder: Path, device: str = "auto") -> str:
    """The page of a model folder.

    Args:
        folder: The model.
        device: Where the networks run, if held-out rows are there to predict.

    Returns:
        HTML.

    Raises:
        ModelError: The model is missing or damaged.
    """
    return render_page(read_card(folder), collect_facts(folder, device))


def _held_out_errors(folder: Path, device: str) -> dict[str, NDArray[np.float64]]:
    from safetensors import SafetensorError

    from screening.evaluation import predict_all

    path = folder / HELD_OUT_NAME
    if not path.exists():
        return {}
    try:
        features, target = load_rows(path)
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path} is damaged ({error}); remove it, or train again.") from error
    model = load_model(folder)
    predictions = predict_all(model.ensemble, model.forest, features, device)
    return {
        PREDICTORS[name]: values - target
        for name, values in predictions.items()
        if values.ndim == 1
    }


def _head(card: Card, facts: CardFacts) -> list[str]:
    score = card.find_score("held_out")
    entries = {
        "predicts": _name_prediction(card, facts.unit),
        "networks": f"{card.training.members} × {card.training.architecture}",
        "Random Forest": _name_forest(card),
        "trained on": f"{card.data.rows:,} structures, {card.data.formulas:,} compositions, "
        f"{len(card.data.elements)} elements",
        "size": f"{facts.megabytes:.1f} MB",
        "date": card.training.created,
        "licence of the weights": card.licence,
    }
    if score is not None:
        entries["held-out error"] = f"{score.mae:.4f} {facts.unit} (n = {score.n:,})"
    accuracy = None if card.classification is None else describe_accuracy(card.classification)
    if accuracy is not None:
        entries["on held-out rows"] = accuracy
    return [
        f"<h1>{escape(card.name)}</h1>",
        f"<p>{escape(card.description)}</p>",
        build_facts(entries),
    ]


def _name_prediction(card: Card, unit: str) -> str:
    if card.classification is None:
        return f"{card.data.target} in {unit}"
    return f"classes of {card.data.target}: {join_classes(card.classification.classes)}"


def _name_forest(card: Card) -> str:
    if card.classification is not None and card.classification.forest is not None:
        return "measured, not kept"
    return "yes" if card.training.forest is not None else "no"


def _held_out(card: Card, facts: CardFacts) -> list[str]:
    if not card.held_out and not facts.errors:
        return []
    parts = ["<h2>Held-out rows</h2>"]
    if card.measured_on_twin is not None:
        parts.append(
            "<p>These are the errors of a twin, trained in the same way: "
            f"{escape(card.measured_on_twin)}.</p>"
        )
    if card.held_out:
        parts.append(_score_table(card.held_out, f"Errors in {facts.unit}", grouped=False))
    if facts.errors:
        rows = [["predictor", *(f"{percent} %" for percent in PERCENTILES)]]
        rows += [
            [name, *(f"{value:.4f}" for value in np.percentile(np.abs(errors), PERCENTILES))]
            for name, errors in facts.errors.items()
        ]
        parts.append(
            build_figure(
                plot_errors(facts.errors, facts.unit),
                "Share of the held-out compounds whose error is below a value.",
            )
        )
        parts.append(
            build_table(
                rows, f"The same in numbers: percentiles of the absolute error, {facts.unit}"
            )
        )
    return parts


def _classes(card: Card) -> list[str]:
    found = card.classification
    if found is None:
        return []
    parts = ["<h2>Classes</h2>"]
    if found.split_at is not None:
        parts.append(
            f"<p>{escape(card.data.target)} is a number; it was cut in two at "
            f"{found.split_at:g}.</p>"
        )
    if found.held_out:
        parts += [
            "<p>The most common class is that of the training rows, with the shares of the classes "
            "there as probabilities: what one knows without a model.</p>",
            build_table(tabulate_classes(found), "Held-out rows; the log loss in nats"),
        ]
    rows = tabulate_each_class(found)
    return [*parts, build_table(rows, "Each class; AP is the average precision", words=rows[0][:1])]


def _search(card: Card, unit: str) -> list[str]:
    parts: list[str] = []
    for title, text, evaluation in (
        (
            "Hypothetical compounds",
            "Compounds of the prototypes that a campaign screens, against DFT.",
            card.evaluation,
        ),
        (
            "Cross-validation over hypothetical compounds",
            "Each compound was predicted by a model that was trained neither on its formula nor on "
            "compounds of this set with the same elements.",
            card.cross_validation,
        ),
    ):
        if evaluation is None or not evaluation.scores:
            continue
        parts += [f"<h2>{title}</h2>", f"<p>{text}</p>"]
        if evaluation.formulas_seen:
            parts.append(
                f"<p>The model was trained on the formulas of {evaluation.formulas_seen:,} of "
                f"these {evaluation.data.rows:,} compounds.</p>"
            )
        for geometry, meaning in (
            ("ideal", "the ideal cell of the prototype, as a campaign uses it"),
            ("relaxed", "the relaxed structure"),
        ):
            scores = [score for score in evaluation.scores if score.geometry == geometry]
            whole = [score for score in scores if score.scheme == EVERY_SCHEME]
            if whole:
                parts.append(_score_table(whole, f"On {meaning}, {unit}", grouped=True))
            if len(scores) > len(whole):
                table = _score_table(
                    [score for score in scores if score.scheme != EVERY_SCHEME],
                    f"By the energy corrections of the labels, on {meaning}, {unit}",
                    grouped=True,
                )
                parts.append(build_details("for each scheme of energy corrections", table))
        parts.append(
            f'<p class="faint">{escape(evaluation.data.name)}, {evaluation.data.rows:,} rows, '
            f"sha256 {evaluation.data.sha256[:12]}</p>"
        )
    return parts


def _intervals(card: Card, unit: str) -> list[str]:
    if card.classification is not None:
        return []
    parts = ["<h2>Intervals</h2>"]
    fitted = card.calibration
    if fitted is None:
        return [
            *parts,
            "<p>The model is not calibrated: its predictions come without intervals. The spread "
            "of the networks is how much they disagree, not how wrong they are.</p>",
        ]
    parts.append(
        f"<p>Intervals are made to hold {fitted.level:.0%} of the compounds. They rest on "
        f"{fitted.rows:,} compounds of {fitted.groups:,} chemical systems, predicted by networks "
        f"that were not trained on them: {escape(fitted.measured_on)}.</p>"
    )
    if card.measured_on_twin is not None:
        parts.append(
            "<p>What they hold was measured with a twin of this model: "
            f"{escape(card.measured_on_twin)}.</p>"
        )
    sources: list[tuple[str, Sequence[Reliability]]] = [
        ("on the compounds that they rest on", fitted.reliabilities),
        ("on held-out rows", card.held_out_reliability),
    ]
    for where, evaluation in (
        ("hypothetical compounds", card.evaluation),
        ("cross-validation", card.cross_validation),
    ):
        for geometry in ("ideal", "relaxed"):
            found = evaluation.reliabilities if evaluation is not None else ()
            chosen = [each for each in found if each.geometry == geometry]
            sources.append((f"on {where}, {geometry} geometry", chosen))
    for where, reliabilities in sources:
        if not reliabilities:
            continue
        whole = [each for each in reliabilities if each.scheme == EVERY_SCHEME]
        if whole:
            parts.append(
                build_figure(
                    plot_reliability(whole, name=f"reliability-{len(parts)}"),
                    f"Nominal against observed coverage {where}. Above the diagonal intervals are "
                    "too wide, below it too narrow.",
                )
            )
            parts.append(_reliability_table(whole, f"Coverage {where}", unit))
        if len(reliabilities) > len(whole):
            table = _reliability_table(
                [each for each in reliabilities if each.scheme != EVERY_SCHEME],
                f"Coverage by the energy corrections of the labels, {where}",
                unit,
            )
            parts.append(build_details("for each scheme of energy corrections", table))
    return parts


def _learning(card: Card, facts: CardFacts) -> list[str]:
    histories = [member["history"] for member in facts.members if member.get("history")]
    if not histories:
        return []
    metric, name, unit = "mae", "MAE", facts.unit
    if card.classification is not None:
        metric, name, unit = "cross_entropy", "cross-entropy", "nats"
    measured = (f"training {name}", f"validation {name}")
    rows = [["network", "epochs", "best epoch", *measured, "rows", "time"]]
    for number, member in enumerate(facts.members):
        history, best = member.get("history") or [], int(member.get("best_epoch", 0))
        at_best = history[best - 1] if 0 < best <= len(history) else {}
        rows.append(
            [
                str(number + 1),
                str(member.get("epochs", "")),
                str(best),
                f"{at_best[f'train_{metric}']:.4f}" if at_best else "",
                f"{at_best[f'validation_{metric}']:.4f}" if at_best else "",
                f"{member.get('train_rows', 0):,} + {member.get('validation_rows', 0):,}",
                f"{member.get('seconds', 0):,.0f} s",
            ]
        )
    return [
        "<h2>Learning curves</h2>",
        build_figure(
            plot_learning_curves(histories, unit, metric),
            "Error of each network after each epoch. The training error is taken while the weights "
            "still move and with dropout or noise if there is any, so it can lie above the other.",
        ),
        build_table(rows, f"At the epoch whose weights were kept, {unit}"),
    ]


def _data(card: Card) -> list[str]:
    data = card.data
    files = [["file", "rows", "sha256"]]
    files += [[file.name, f"{file.rows:,}", file.sha256] for file in data.files]
    sources = [["what", "citation", "licence"]]
    sources += [[source.what, source.citation, source.licence] for source in data.sources]
    entries = {
        "target": data.target,
        "rows used": f"{data.rows:,}, and {data.held_out_rows:,} held out",
        "formulas of an evaluation set kept out": f"{data.excluded_formulas:,}",
        "rows left out": "; ".join(f"{n:,} {why}" for why, n in data.dropped.items()) or "none",
        "elements": " ".join(data.elements),
        "hash of what was learnt": data.content_sha256,
    }
    return [
        "<h2>Data</h2>",
        build_facts(entries),
        *([build_table(sources, "Sources", words=sources[0])] if len(sources) > 1 else []),
        *([build_table(files, "Files", words=files[0])] if len(files) > 1 else []),
    ]


def _making(card: Card, unit: str) -> list[str]:
    training, cost = card.training, card.compression
    forest_settings = training.forest
    if card.classification is not None:
        forest_settings = card.classification.forest
    entries = {
        "recipe": _join(training.recipe),
        "seed": str(training.seed),
        "forest": "none" if forest_settings is None else _join(forest_settings),
        "share held out": f"{training.holdout:g}",
        "largest structure": "no limit" if training.max_sites is None else f"{training.max_sites}",
        "time": ", ".join(f"{stage} {value:,.0f} s" for stage, value in training.seconds.items()),
        "machine": training.machine,
        "software": _join(training.versions),
    }
    if cost is not None:
        forest = (
            ""
            if cost.random_forest_mae_before is None
            else f", that of the forest from {cost.random_forest_mae_before:.4f} to "
            f"{cost.random_forest_mae_after:.4f}"
        )
        entries["made small"] = (
            f"weights {cost.weights}; {cost.bytes_before / 1e6:.1f} to "
            f"{cost.bytes_after / 1e6:.1f} MB; on {cost.rows:,} {cost.measured_on} the error of "
            f"the networks went from {cost.irnet_mae_before:.4f} to {cost.irnet_mae_after:.4f}"
            f"{forest} {unit}; largest change of the networks {cost.largest_irnet_change:.4f}"
        )
    return ["<h2>How it was made</h2>", build_facts(entries)]


def _limits(card: Card) -> list[str]:
    if not card.limits:
        return []
    return ["<h2>Limits</h2>", build_list(card.limits)]


def _score_table(scores: Iterable[Score], caption: str, grouped: bool) -> str:
    rows = [["predictor", "n", "MAE", "95 % interval", "90th percentile", "bias", "rank corr."]]
    if grouped:
        rows[0] = ["kind", "scheme", *rows[0]]
    for score in scores:
        cells = [
            PREDICTORS[score.predictor],
            f"{score.n:,}",
            f"{score.mae:.4f}",
            score.interval,
            _number(score.p90, 4),
            f"{score.bias:+.4f}",
            _number(score.spearman, 3),
        ]
        rows.append([score.group, score.scheme, *cells] if grouped else cells)
    return build_table(rows, caption)


def _reliability_table(reliabilities: Iterable[Reliability], caption: str, unit: str) -> str:
    rows = [
        [
            *("kind", "scheme", "n", "coverage", "95 % interval", f"mean width ({unit})"),
            *("miscalibration area", "rank corr. with the error", "of the spread alone"),
        ]
    ]
    for each in reliabilities:
        rows.append(
            [
                each.group,
                each.scheme,
                f"{each.n:,}",
                f"{each.coverage:.1%}",
                f"{each.coverage_low:.1%}–{each.coverage_high:.1%}",
                f"{each.sharpness:.3f}",
                f"{each.miscalibration_area:.3f}",
                _number(each.sorting, 2),
                _number(each.spread_sorting, 2),
            ]
        )
    return build_table(rows, caption)


def _join(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items())


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
