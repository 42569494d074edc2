"""What a manifest must hold before anything is done with it: it may be a stranger's.

The commands that show, export and report a campaign read the manifest of its folder. It is checked
here once, so that a damaged or made-up one ends in one sentence and not somewhere in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from prototypes import ATOMIC_NUMBERS
from screening.errors import InputDataError
from screening.settings import RankBy

MOST_SITES: Final = 1000
"""Of a prototype's cell; one from a file has at most `prototypes.structure_file.MOST_SITES`."""

MOST_SHARDS: Final = 10_000_000
"""Of a campaign: with the default size of shards, 3 × 10^11 candidates."""

LARGEST_COUNT: Final = 2**63


def _check_symbol(symbol: str) -> str:
    if symbol not in ATOMIC_NUMBERS:
        raise ValueError("no element")
    return symbol


def _check_number(value: float) -> float:
    if not isfinite(value):
        raise ValueError("no finite number")
    return value


Order = Annotated[RankBy, BeforeValidator(RankBy)]
Symbol = Annotated[str, AfterValidator(_check_symbol)]
Number = Annotated[float, AfterValidator(_check_number)]
Count = Annotated[int, Field(ge=0, lt=LARGEST_COUNT)]
Role = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$", max_length=40)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Row = Annotated[list[Number], Field(min_length=3, max_length=3)]
Indices = Annotated[list[Count], Field(max_length=MOST_SITES)]


class _Part(BaseModel):
    """What is named is checked; other keys are nobody's business here."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Prototype(_Part):
    name: Name
    formula: str
    roles: Annotated[list[Role], Field(min_length=1)]
    site_roles: Indices
    lattice: Annotated[list[Row], Field(min_length=3, max_length=3)]
    frac_coords: Annotated[list[Row], Field(max_length=MOST_SITES)]
    amounts: Indices
    aflow_label: str | None
    strukturbericht: str | None
    mineral: str | None
    source: str
    exact: bool
    reference_elements: list[Symbol]
    role_permutations: list[Indices]

    @model_validator(mode="after")
    def _fits(self) -> _Prototype:
        roles = range(len(self.roles))
        whole = (
            len(set(self.roles)) == len(self.roles) == len(self.amounts)
            and len(self.reference_elements) == len(self.roles)
            and len(self.site_roles) == len(self.frac_coords)
            and self.amounts == [self.site_roles.count(role) for role in roles]
            and all(sorted(each) == list(roles) for each in self.role_permutations)
        )
        if not (whole and self.amounts and min(self.amounts) > 0):
            raise ValueError("roles, sites and amounts do not fit")
        if set(self.model_extra or {}):
            raise ValueError(f"unknown {', '.join(self.model_extra or {})}")
        return self


class _Identity(_Part):
    prototypes: Annotated[dict[Name, str], Field(min_length=1)]
    elements: dict[Role, list[Symbol]]
    model: str
    references: str | None
    competitors: str
    compete: bool
    stable_within: Number
    require: list[str]
    keep_top: Count | None = None
    device: str
    precision: str
    shard_size: Count


class _Environment(_Part):
    screening: str
    commit: str | None = None
    python: str
    platform: str
    packages: dict[str, str | None]


class _Error(_Part):
    n: Count
    mae_ev_per_atom: Number
    bias_ev_per_atom: Number


class _Coverage(_Part):
    n: Count
    coverage: Number
    low: Number
    high: Number


class _Intervals(_Part):
    level: Number
    rows: Count
    chemical_systems: Count
    measured_on: str
    measured_coverage: dict[str, _Coverage | None]


class _Model(_Part):
    name: str
    given_as: str
    content_sha256: str
    architecture: str
    members: Count
    seed: int
    training_data_sha256: str
    measured_errors: dict[str, _Error | None]
    intervals: _Intervals | str


class _References(_Part):
    file: str
    sha256: str
    entries: Count
    phases: Count
    functional: str | None
    notes: list[str]


class _Competitors(_Part):
    stable_within_ev_per_atom: Number
    candidates_compete: bool
    predicted: dict[str, Count]
    references: _References | None
    predicted_phases: Count = 0
    failures: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []


class _Grid(_Part):
    shard_size: Annotated[int, Field(ge=1)]
    index_counts: dict[str, Count]

    @model_validator(mode="after")
    def _fits(self) -> _Grid:
        if sum(self.index_counts.values()) // self.shard_size > MOST_SHARDS:
            raise ValueError(f"more than {MOST_SHARDS:,} shards")
        return self


class _Run(_Part):
    ended: str
    workers: str | Count
    shards_computed: Count
    wall_seconds: Number
    rank_and_write_seconds: Number


class _Stage(_Part):
    worker_seconds: Number
    candidates_per_worker_second: Number | None


class _Overlap(_Part):
    top: Count
    shared: Count
    by_chance: Number


class _StableCounts(_Part):
    within_ev_per_atom: Number
    irnet: Count
    forest: Count
    both: Count


class _Disagreement(_Part):
    formula: str
    prototype: str
    rank: Count
    rf_rank: Count
    irnet_ev_per_atom: Number
    forest_ev_per_atom: Number


class _Comparison(_Part):
    candidates: Count
    enthalpy_correlation: Number | None
    hull_correlation: Number | None
    overlaps: list[_Overlap]
    stable: _StableCounts | None
    energy: str
    among: Count
    disagreements: list[_Disagreement]


class _Manifest(_Part):
    campaign: _Identity
    environment: _Environment
    model: _Model
    competitors: _Competitors
    prototypes: dict[Name, _Prototype]
    counts: dict[str, Count]
    grid: _Grid
    rank_by: Order
    ranked_by: Order = RankBy.P_STABLE
    state: Literal["running", "complete", "interrupted", "stopped"] = "stopped"
    runs: list[_Run] = []
    rows: dict[str, Count] = {}
    removed: dict[str, dict[str, Count]] = {}
    comparison: _Comparison | None = None
    devices: list[str] = []
    precisions: list[str] = []
    threads: list[int] = []
    reasons: dict[str, Count] = {}
    dropped: Count = 0
    shards_finished: Count = 0
    shards_set_aside: Count = 0
    stages: dict[str, _Stage] = {}

    @model_validator(mode="after")
    def _fits(self) -> _Manifest:
        names = list(self.campaign.prototypes)
        if list(self.prototypes) != names or any(
            each.name != name for name, each in self.prototypes.items()
        ):
            raise ValueError("the prototypes are not those of the campaign")
        if not {*names, "total"} <= set(self.counts):
            raise ValueError("counts lack a prototype or the total")
        roles = {role for each in self.prototypes.values() for role in each.roles}
        if not roles <= set(self.campaign.elements):
            raise ValueError("a role has no elements")
        if list(self.grid.index_counts) != names:
            raise ValueError("the grid is not that of the prototypes")
        for name, each in self.prototypes.items():
            indices = prod(len(self.campaign.elements[role]) for role in each.roles)
            if self.grid.index_counts[name] != indices:
                raise ValueError(f"{name} has {indices} indices with these elements")
        return self


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Check that a manifest holds what the commands read from it, of the types that they expect.

    Args:
        manifest: What was read.
        path: Its file, for the message.

    Raises:
        InputDataError: It does not.
    """
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:4])[:100]
        raise InputDataError(
            f"{path} is damaged, or no manifest of this program ({where or 'manifest'}: "
            f"{first['msg']}); get the campaign's folder again, or run the campaign anew"
        ) from error
