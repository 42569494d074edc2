"""What the manifest of a campaign says: its identity, its making, and the machine's part in it."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import screening
from screening.enumerate import count_candidates
from screening.features.elements import element_table
from screening.settings import CampaignSettings, RankBy, write_settings

if TYPE_CHECKING:
    from prototypes import CandidateSpace, Prototype
    from screening.competitors import CompetitorPlan, GatheredCompetitors
    from screening.folder import Receipt
    from screening.model_card import Score
    from screening.model_library import ScreeningModel
    from screening.references import References

STAGES: Final = (
    "enumerate",
    "chemistry",
    "featurize",
    "irnet",
    "forest",
    "uncertainty",
    "hull",
    "known",
    "write",
)
"""Stages that are timed on the workers."""


def identify(
    settings: CampaignSettings,
    spaces: Sequence[CandidateSpace],
    pools: Mapping[str, tuple[int, ...]],
    model: ScreeningModel,
    references: References | None,
    plan: CompetitorPlan,
    order: RankBy,
) -> dict[str, Any]:
    """Return what makes a campaign this one: everything that its numbers depend on."""
    return {
        "screening": screening.__version__,
        "prototypes": {space.prototype.name: space.prototype.geometry_hash() for space in spaces},
        "elements": {role: _name_pool(pool) for role, pool in pools.items()},
        "model": model.content_hash,
        "references": None if references is None else references.sha256,
        "competitors": _name_competitors(plan),
        "compete": settings.compete,
        "stable_within": settings.stable_within,
        "require": list(settings.require),
        "device": str(settings.device),
        "precision": str(settings.precision),
        "shard_size": settings.shard_size,
        "keep_top": settings.keep_top,
        "kept_by": None if settings.keep_top is None else str(order),
    }


def _name_competitors(plan: CompetitorPlan) -> str:
    """Name predicted competitors by the number of their types and a hash of the geometries."""
    hashes = [space.prototype.geometry_hash() for space in plan.spaces]
    if not hashes:
        return "none"
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return f"{len(hashes)} predicted types {digest[:12]}"


def _name_pool(pool: Sequence[int]) -> list[str]:
    return [element_table().symbols[number] for number in pool]


def resolve_settings(
    settings: CampaignSettings,
    pools: Mapping[str, tuple[int, ...]],
    spaces: Sequence[CandidateSpace],
) -> str:
    """Return the settings as TOML with named pools written out."""
    common = Counter(pools.values()).most_common(1)[0][0]
    elements = (
        ",".join(_name_pool(common)),
        *(f"{r}={','.join(_name_pool(pool))}" for r, pool in pools.items() if pool != common),
    )
    counts = ", ".join(f"{name} {count:,}" for name, count in count_candidates(spaces).items())
    return write_settings(
        settings.model_copy(update={"elements": elements}),
        (
            f"Settings of a campaign of screening {screening.__version__}.",
            f"Candidates: {counts}.",
            "Run it again, or go on with it: screening run campaign.toml",
        ),
    )


def describe_model(
    settings: CampaignSettings, spaces: Sequence[CandidateSpace], model: ScreeningModel
) -> dict[str, Any]:
    """Return what a reader of the manifest needs to know of the model; its card says the rest."""
    card = model.card
    return {
        "name": card.name,
        "given_as": settings.model,
        "content_sha256": model.content_hash,
        "architecture": card.training.architecture,
        "members": card.training.members,
        "seed": card.training.seed,
        "training_data_sha256": card.data.content_sha256,
        "measured_errors": {
            space.prototype.name: _describe_score(card.find_bias(space.prototype))
            for space in spaces
        },
        "intervals": _describe_intervals(spaces, model),
    }


def _describe_score(score: Score | None) -> dict[str, float] | None:
    if score is None:
        return None
    return {"n": score.n, "mae_ev_per_atom": score.mae, "bias_ev_per_atom": score.bias}


def _describe_intervals(
    spaces: Sequence[CandidateSpace], model: ScreeningModel
) -> dict[str, Any] | str:
    """Return how the intervals were fitted and what they covered, or why there are none."""
    from screening.model_library import NOT_CALIBRATED

    calibration = model.card.calibration
    if calibration is None:
        return NOT_CALIBRATED
    measured = {space.prototype.name: model.card.find_coverage(space.prototype) for space in spaces}
    return {
        "level": calibration.level,
        "rows": calibration.rows,
        "chemical_systems": calibration.groups,
        "measured_on": calibration.measured_on,
        "measured_coverage": {
            name: None
            if each is None
            else {
                "n": each.n,
                "coverage": each.coverage,
                "low": each.coverage_low,
                "high": each.coverage_high,
            }
            for name, each in measured.items()
        },
    }


def describe_competitors(
    settings: CampaignSettings,
    references: References | None,
    plan: CompetitorPlan,
    predicted: GatheredCompetitors | None = None,
) -> dict[str, Any]:
    """Return what the candidates compete with, for the manifest and the table's legend."""
    described: dict[str, Any] = {
        "stable_within_ev_per_atom": settings.stable_within,
        "candidates_compete": settings.compete,
        "predicted": dict(plan.counts),
        "references": None,
    }
    if predicted is not None:
        described |= {
            "predicted_phases": predicted.phases,
            "failures": [list(each) for each in predicted.failures],
        }
    if references is not None:
        described["references"] = {
            "file": str(references.path),
            "sha256": references.sha256,
            "entries": references.entries,
            "phases": len(references.phases),
            "functional": references.functional,
            "notes": list(references.notes),
        }
    return described


def describe_environment() -> dict[str, Any]:
    """Return versions and platform of the driver."""
    packages: dict[str, str | None] = {}
    for package in ("torch", "numpy", "pyarrow", "pymatgen", "pyvoro2", "dask", "distributed"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return {
        "screening": screening.__version__,
        "commit": _find_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
    }


def _find_commit() -> str | None:
    """Return the commit of the source tree that this package is run from, None outside of one."""
    root = Path(screening.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def describe_prototype(prototype: Prototype) -> dict[str, Any]:
    """Return a prototype as JSON; `restore_prototype` makes it again."""
    described = {field.name: getattr(prototype, field.name) for field in fields(prototype)}
    return described | {
        "lattice": prototype.lattice.tolist(),
        "frac_coords": prototype.frac_coords.tolist(),
    }


def restore_prototype(described: Mapping[str, Any]) -> Prototype:
    """Return the prototype that a manifest describes, whatever became of its file."""
    from prototypes import Prototype

    return Prototype(
        **{key: _freeze(value) for key, value in described.items()}
        | {
            "lattice": np.array(described["lattice"], dtype=np.float64),
            "frac_coords": np.array(described["frac_coords"], dtype=np.float64),
        }
    )


def restore_spaces(
    manifest: Mapping[str, Any],
) -> tuple[tuple[CandidateSpace, ...], dict[str, tuple[int, ...]]]:
    """Return the candidates of a campaign and the pool of every role, from its manifest."""
    from prototypes import ATOMIC_NUMBERS, CandidateSpace

    pools = {
        role: tuple(ATOMIC_NUMBERS[symbol] for symbol in symbols)
        for role, symbols in manifest["campaign"]["elements"].items()
    }
    prototypes = map(restore_prototype, manifest["prototypes"].values())
    spaces = tuple(
        CandidateSpace(prototype, {role: pools[role] for role in prototype.roles})
        for prototype in prototypes
    )
    return spaces, pools


def _freeze(value: Any) -> Any:
    return tuple(_freeze(each) for each in value) if isinstance(value, list) else value


def sum_receipts(receipts: Iterable[Receipt]) -> dict[str, Any]:
    """Return what the receipts of a campaign add up to, one after the other.

    Returns:
        `dropped` and `kept`: scored candidates that shards did not keep, or did; `removed`: by
        condition, how many candidates it removed and how many it did not apply to; `devices`,
        `precisions` and `threads` that computed; `stages`: time of each and its rate per worker
        process, null of what was not done.
    """
    dropped = candidates = kept = 0
    removed: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    devices: set[str] = set()
    precisions: set[str] = set()
    threads: set[int] = set()
    for receipt in receipts:
        dropped += receipt.dropped
        candidates += receipt.candidates + receipt.dropped
        kept += receipt.candidates - receipt.failed
        for text, numbers in receipt.removed.items():
            removed.setdefault(text, Counter(dict.fromkeys(numbers, 0))).update(numbers)
        seconds.update(receipt.seconds)
        devices.add(receipt.device)
        precisions.add(receipt.precision)
        threads.add(receipt.threads)
    return {
        "dropped": dropped,
        "kept": kept,
        "removed": {text: dict(numbers) for text, numbers in removed.items()},
        "devices": sorted(devices),
        "precisions": sorted(precisions),
        "threads": sorted(threads),
        "stages": {
            stage: {
                "worker_seconds": round(seconds[stage], 3),
                "candidates_per_worker_second": round(candidates / seconds[stage])
                if seconds[stage]
                else None,
            }
            for stage in STAGES
        },
    }
