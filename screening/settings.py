"""Settings of a campaign: a frozen model read from a TOML file and from command-line flags.

Precedence: default < file < flag. An unknown key or a misspelt value fails with the nearest valid
name. The resolved settings are written into the result folder as `campaign.toml`, which runs again
with `screening run campaign.toml`.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from screening.cluster_settings import (
    ClusterSettings,
    read_cluster,
    replace_place,
    write_cluster,
)
from screening.errors import ConfigurationError, suggest, suggest_file
from screening.printing import make_printable


class Device(StrEnum):
    """Where networks and features are computed."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Precision(StrEnum):
    """Arithmetic of the networks' matrix products."""

    AUTO = "auto"
    INT8 = "int8"
    BF16 = "bf16"
    FP32 = "fp32"


class Competitors(StrEnum):
    """Where the competing phases come from when no references are given."""

    BINARY = "binary"
    TERNARY = "ternary"
    NONE = "none"


class RankBy(StrEnum):
    """What a ranking is ordered by."""

    P_STABLE = "p_stable"
    ENERGY_ABOVE_HULL = "energy_above_hull"
    FORMATION_ENTHALPY = "formation_enthalpy"
    UPPER_BOUND = "upper_bound"
    LOWER_BOUND = "lower_bound"


DEFAULT_SHARD_SIZE: Final = 32_768
DEFAULT_TOP: Final = 20
DEFAULT_STABLE_WITHIN: Final = 0.05
DEFAULT_ATTEMPTS: Final = 3
LONGEST_NAME: Final = 255
"""Bytes that the name of a file or folder may have."""

MOST_KEPT: Final = 10_000_000

PLACES: Final = ("workers", "scheduler", "scheduler_file", "dashboard")
"""Keys of the table `[cluster]` that may stand at the top level too, and are options."""

SLOWEST_RATE: Final = 10.0
"""Candidates per second below which a worker counts as hanging, unless a time is given."""

LEAST_PATIENCE: Final = 900.0
"""Seconds that any shard may take, unless a time is given."""
DEFAULT_COMPETITORS: Final = Competitors.BINARY


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


_CHOICES: Final[Mapping[str, type[StrEnum]]] = {
    "device": Device,
    "precision": Precision,
    "competitors": Competitors,
    "rank_by": RankBy,
}


def _with_underscores(value: object) -> object:
    return value.replace("-", "_") if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class CampaignSettings(BaseModel):
    """What to screen, with which model, where and how.

    Attributes:
        prototype: Prototypes to fill: built-in names, AFLOW labels, minerals, or paths of CIFs.
        elements: Element pools: `POOL` for every role or `ROLE=POOL` for one, where a pool is a
            name, a comma list of symbols, or exclusions from a pool.
        roles: Roles of the elements of CIFs among the prototypes, such as `Ca=A,Ti=B,O=X`.
        model: Name of a bundled model or path of a model folder.
        references: File of reference phases that candidates compete with; None predicts competing
            phases with the model itself.
        functional: How the energies of the references were calculated, if not as the model's
            training data.
        competitors: Up to how many elements competing phases are predicted; None means binary
            without references and none with them.
        compete: Whether candidates of a chemical system compete with each other.
        stable_within: Energy above hull that still counts as stable, eV/atom.
        require: Conditions on columns that candidates must meet.
        rank_by: Order of the ranking.
        keep_top: Keep only so many candidates, the best of the ranking; None keeps all.
        out: Result folder.
        cluster: Where the workers come from; `workers`, `scheduler`, `scheduler_file` and
            `dashboard` may be given as keys of their own.
        attempts: How often a shard is computed at most before it is set aside as lost.
        shard_timeout: Seconds after which a worker that computes one shard counts as hanging; None
            is `LEAST_PATIENCE` or what `SLOWEST_RATE` takes, whichever is more.
        device: Where networks and features are computed.
        precision: Arithmetic of the networks' matrix products.
        shard_size: Indices per task and Parquet shard.
        top: Rows of the table on the terminal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    prototype: Names = Field(min_length=1)
    elements: Names = Field(default=("default",), min_length=1)
    roles: str | None = None
    model: str = Field(default="default", min_length=1)
    references: Path | None = None
    functional: str | None = Field(default=None, min_length=1)
    competitors: Competitors | None = None
    compete: bool = False
    stable_within: float = Field(default=DEFAULT_STABLE_WITHIN, ge=0, le=10, allow_inf_nan=False)
    require: Names = ()
    rank_by: Annotated[RankBy, BeforeValidator(_with_underscores)] = RankBy.P_STABLE
    keep_top: int | None = Field(default=None, ge=1, le=MOST_KEPT)
    out: Path
    cluster: ClusterSettings = ClusterSettings()
    attempts: int = Field(default=DEFAULT_ATTEMPTS, ge=1, le=100)
    shard_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    device: Device = Device.AUTO
    precision: Precision = Precision.AUTO
    shard_size: int = Field(default=DEFAULT_SHARD_SIZE, ge=1, le=10_000_000)
    top: int = Field(default=DEFAULT_TOP, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _gather_places(cls, values: Any) -> Any:
        """Put keys of their own into the table that they belong to."""
        if not isinstance(values, dict) or not values.keys() & set(PLACES):
            return values
        places = {key: values[key] for key in PLACES if values.get(key) is not None}
        cluster = values.get("cluster") or {}
        if isinstance(cluster, ClusterSettings):
            cluster = cluster.model_dump(exclude_unset=True)
        rest = {key: value for key, value in values.items() if key not in PLACES}
        return {**rest, "cluster": {**cluster, **places}}

    @property
    def computes_here(self) -> bool:
        """Whether the program's own process computes, without Dask."""
        return self.cluster.workers == 0

    @property
    def patience_seconds(self) -> float:
        """Seconds after which a worker that computes one shard counts as hanging."""
        if self.shard_timeout is not None:
            return self.shard_timeout
        return max(LEAST_PATIENCE, self.shard_size / SLOWEST_RATE)

    @property
    def predicted_competitors(self) -> Competitors:
        """Up to how many elements the model predicts competing phases.

        Without being asked it predicts none where there are references.
        """
        if self.competitors is not None:
            return self.competitors
        return DEFAULT_COMPETITORS if self.references is None else Competitors.NONE


def parse_order(name: str) -> RankBy:
    """Return an order of the ranking by its name, with hyphens or underscores.

    Raises:
        ConfigurationError: There is no such order.
    """
    try:
        return RankBy(name.replace("-", "_"))
    except ValueError as error:
        names = [str(order) for order in RankBy]
        raise ConfigurationError(
            f"--rank-by {name} is not one of {', '.join(names)}{suggest(name, names)}"
        ) from error


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_settings(
    path: Path | None, flags: Mapping[str, object], *, own: bool = True
) -> CampaignSettings:
    """Merge defaults, a TOML file and flags into settings.

    Args:
        path: TOML file with the same keys as the flags (`shard-size` or `shard_size`), or None.
        flags: Values of flags; None and empty lists mean that the flag was not given.
        own: Whether the user chose the file as settings to run. Of another, which lies in a
            result folder that may be a stranger's, nothing of the table `[cluster]` counts but the
            number of local workers: the rest may name a scheduler, which could run any code here,
            and commands for a batch system.

    Returns:
        The resolved settings.

    Raises:
        ConfigurationError: The file is unreadable, has an unknown key, a value is not allowed, or
            no prototype or output folder is given.
    """
    merged: dict[str, Any] = {} if path is None else _read_toml(path)
    if path is not None and not own:
        there = merged["cluster"]
        workers = there.workers if there.type == "local" else None
        merged["cluster"] = ClusterSettings(workers=workers)
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    places: dict[str, Any] = {key: given.pop(key) for key in PLACES if key in given}
    merged["cluster"] = replace_place(merged.get("cluster", ClusterSettings()), **places)
    if "references" in given:
        merged.pop("competitors", None)
        merged.pop("functional", None)
    elif "competitors" in given:
        merged.pop("references", None)
        merged.pop("functional", None)
    merged |= given
    for key, remedy in (
        ("prototype", "give --prototype NAME (see: screening prototypes)"),
        ("out", "give --out FOLDER"),
    ):
        if key not in merged:
            raise ConfigurationError(f"no {key} given; {remedy} or the key {key} in a TOML file")
    if merged.get("references") is None and merged.get("functional") is not None:
        raise ConfigurationError(
            "functional says how the energies of references were calculated, and none are given; "
            "give --references FILE or leave --functional out"
        )
    try:
        settings = CampaignSettings.model_validate(merged)
    except ValidationError as error:
        problems = [_describe(dict(each), given, path) for each in error.errors()]
        raise ConfigurationError(
            "\n".join(f"wrong setting: {each}" for each in problems)
        ) from error
    try:
        write_settings(settings).encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"a name or path among the settings is no text ({error.object[error.start]!r}); rename "
            "the file or folder"
        ) from error
    for key in ("out", "references", "model"):
        text = str(getattr(settings, key))
        if "\0" in text or any(len(part.encode()) > LONGEST_NAME for part in Path(text).parts):
            raise ConfigurationError(
                f"{key} {text[:40]!r}… can be no path: it holds a NUL, or a name of more than "
                f"{LONGEST_NAME} bytes"
            )
    if not settings.require:
        return settings
    from screening.columns import RANKING, RF_ABOVE_HULL, SHARD, STABILITY
    from screening.requirements import parse_requirement

    of_shards = {column.name for column in SHARD.columns}
    columns = [column for column in RANKING.columns if column.name in of_shards]
    parsed = [parse_requirement(text, columns) for text in settings.require]
    against_nothing = settings.references is None and not settings.compete
    if against_nothing and settings.predicted_competitors is Competitors.NONE:
        of_hull = {column.name for column in (*STABILITY, RF_ABOVE_HULL)}
        for requirement in parsed:
            if requirement.column in of_hull:
                raise ConfigurationError(
                    f'--require "{requirement.text}" needs a hull, and --competitors none computes '
                    "none; leave one of them out"
                )
    texts = dict.fromkeys(requirement.text for requirement in parsed)
    return settings.model_copy(update={"require": tuple(texts)})


def write_settings(settings: CampaignSettings, comments: tuple[str, ...] = ()) -> str:
    """Return settings as TOML text that `read_settings` reads back to the same settings.

    Args:
        settings: Settings to write; keys that are None are left out, TOML has no null.
        comments: Lines to put above, without the leading `#`.
    """
    # names of files stand in comments, and a line end in one would begin a setting
    lines = [f"# {make_printable(' '.join(line.split()))}" for line in comments]
    values = settings.model_dump(mode="json", exclude_none=True, exclude={"cluster"})
    for key, value in values.items():
        # JSON strings and lists are TOML too, but for the one control character JSON lets through.
        written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        lines.append(f"{key} = {written}")
    return "\n".join(lines) + "\n" + write_cluster(settings.cluster)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "" if path.exists() else suggest_file(path)
        if "=" in path.name:
            hint = f"; did you mean --elements {path}?"
        raise ConfigurationError(
            f"cannot read the settings file {path}: {error.strerror}{hint}"
        ) from error
    except (ValueError, RecursionError) as error:  # also numbers too long, nesting too deep
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
    known = (*CampaignSettings.model_fields, *PLACES)
    read: dict[str, Any] = {}
    for key, value in raw.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigurationError(
                f'unknown key "{key}" in {path}{suggest(name, known) or ";"} '
                f"valid keys: {', '.join(known)}"
            )
        read[name] = value
    places = {key: read.pop(key) for key in PLACES if key in read}
    table = read.get("cluster", {})
    if places and isinstance(table, Mapping):
        table = {**table, **places}
    read["cluster"] = read_cluster(table, str(path), places)
    return read


def _describe(problem: dict[str, Any], flags: Mapping[str, object], path: Path | None) -> str:
    """Say what is wrong with a value, as it was written: as a flag or as a line of the file."""
    key = ".".join(str(part) for part in problem["loc"][:1])
    value = problem["input"]
    if key in flags:
        written = f"--{key.replace('_', '-')} {value}"
    else:
        written = f"{key} = {json.dumps(value, default=str)} in {path}"
    choices = _CHOICES.get(key)
    if choices is not None:
        names = [str(choice) for choice in choices]
        return f"{written} is not one of {', '.join(names)}{suggest(str(value), names)}"
    return f"{written}: {problem['msg']}"
