"""The result of a campaign as one JSON document, for programs: what the terminal says to people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from screening.status import read_status
from screening.terminal import describe_gaps, describe_hull, describe_intervals, warn_of_bias

if TYPE_CHECKING:
    from screening.folder import RunFolder
    from screening.settings import RankBy

DOCUMENT_FORMAT: Final = 1

_COUNTS: Final = (
    "total",
    "enumerated",
    "featurized",
    "scored",
    "failed",
    "removed",
    "dropped",
    "below_hull",
    "probable",
    "shards",
    "shards_done",
    "shards_quarantined",
)


def describe_result(
    folder: RunFolder,
    ranking: pa.Table,
    rows: pa.Table,
    order: RankBy,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what a campaign found, as values that JSON knows.

    Args:
        folder: The campaign, complete or not.
        ranking: The ranking of all candidates that are kept.
        rows: The rows of it that are shown.
        order: What they are ranked by.
        notes: Warnings of the run besides those that follow from the result.

    Returns:
        `folder`, `state`, `prototypes`, `model`, `counts` (see `screening.status.CampaignStatus`),
        `quarantined` and `reasons` of failures, `ranked` (rows of the whole ranking), `ranked_by`,
        `hull` (what the candidates compete with), `ranking` (the rows, by column; null where there
        is nothing), `comparison` with the Random Forest, and `warnings`.
    """
    manifest, status = folder.manifest, read_status(folder)
    competitors, model = manifest["competitors"], manifest["model"]
    against = describe_hull(competitors)
    return {
        "format": DOCUMENT_FORMAT,
        "folder": str(folder.path.resolve()),
        "state": str(status.state),
        "prototypes": list(folder.prototypes),
        "model": {key: model[key] for key in ("name", "content_sha256")},
        "counts": {
            **{name: getattr(status, name) for name in _COUNTS},
            "below_hull": status.below_hull if status.has_hull else None,
            "probable": status.probable if status.has_probability else None,
        },
        "reasons": dict(status.reasons),
        "quarantined": {str(number): reason for number, reason in status.quarantined.items()},
        "ranked": len(ranking),
        "ranked_by": str(order),
        "hull": {"against": against, **competitors},
        "ranking": list_rows(rows),
        "comparison": _compare(manifest, ranking, order),
        "warnings": [
            *notes,
            *warn_of_bias(model["measured_errors"], hull=against is not None),
            *describe_intervals(model["intervals"], model["name"]),
            *describe_gaps(ranking, competitors),
        ],
    }


def _compare(
    manifest: Mapping[str, Any], ranking: pa.Table, order: RankBy
) -> dict[str, Any] | None:
    """Return the comparison with the Random Forest, anew where the ranking has another order."""
    told: dict[str, Any] | None = manifest.get("comparison")
    if told is None or str(order) == manifest["ranked_by"]:
        return told
    from screening.comparison import compare_models

    found = compare_models(ranking, manifest["competitors"]["stable_within_ev_per_atom"])
    return None if found is None else dict(json.loads(json.dumps(asdict(found))))


def list_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return rows by column; numbers of single precision with the digits that they have in a CSV.

    Args:
        table: Rows; NaN becomes None.
    """
    columns = [_list_values(column) for column in table.columns]
    names = table.column_names
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def write_document(document: dict[str, Any]) -> str:
    """Return a document as JSON text: strict, and of characters that steer no terminal."""
    return json.dumps(document, indent=1, allow_nan=False).replace("\x7f", "\\u007f")


def _list_values(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if not pa.types.is_floating(column.type):
        return values
    single = pa.types.is_float32(column.type)
    return [
        None
        if value is None or not math.isfinite(value)
        else float(str(np.float32(value)))
        if single
        else value
        for value in values
    ]
