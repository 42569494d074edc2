"""Where a campaign runs: the `[cluster]` table of its TOML file, as a frozen model.

Nothing here knows Dask: `screening.cluster.client.connect` turns these settings into a client.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from screening.errors import ConfigurationError, suggest

DEFAULT_DASHBOARD: Final = "127.0.0.1:8787"


class ClusterType(StrEnum):
    """Who starts the workers."""

    LOCAL = "local"
    SLURM = "slurm"
    PBS = "pbs"
    LSF = "lsf"
    CUDA = "cuda"


BATCH_TYPES: Final = (ClusterType.SLURM, ClusterType.PBS, ClusterType.LSF)
"""Those that submit jobs to a batch system, through dask-jobqueue."""

_OF_JOBS: Final = (
    "jobs",
    "cores",
    "walltime",
    "queue",
    "account",
    "directives",
    "prologue",
    "interface",
    "log_directory",
)


def _check_line(text: str) -> str:
    if "\n" in text or "\r" in text:
        raise ValueError("must be one line; give a list for several")
    return text


Line = Annotated[str, Field(min_length=1), AfterValidator(_check_line)]


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(_Closed):
    """Certificates by which scheduler, workers and client know each other: PEM files.

    Attributes:
        ca: Certificate of the authority that signed the others; only they are let in.
        certificate: This program's certificate, for all of its roles.
        key: The certificate's private key.
    """

    ca: Path
    certificate: Path
    key: Path


class ClusterSettings(_Closed):
    """Where the workers of a campaign come from.

    Without anything they are processes of this machine. `scheduler` or `scheduler_file` name a Dask
    scheduler that runs already. The types slurm, pbs and lsf submit jobs of workers through
    dask-jobqueue, and cuda starts one worker per GPU of this machine through dask-cuda. Keys of
    jobs that are left out come from dask-jobqueue's own configuration.

    Attributes:
        type: Who starts the workers.
        workers: Worker processes on this machine, those with a GPU included; 0 computes in the
            program's own process, None is one per GPU where GPUs are used and else one per core.
        gpus: On this machine: how many of the workers have a GPU to themselves; None is as many as
            there are, unless the device is the CPU, and 0 is none. In a job of a batch system: 1
            for a job of one worker with one GPU.
        scheduler: Address of a running scheduler, such as `tcp://10.0.0.1:8786`.
        scheduler_file: File that a running scheduler wrote its address into.
        dashboard: Host and port that the dashboard listens on, of a scheduler started here.
        tls: Certificates; None leaves connections in the clear, unless Dask's own configuration
            names some.
        memory: Memory of a job, or of one worker on this machine, such as `16GB`; None shares three
            quarters of this machine's memory among its workers.
        local_directory: Folder for temporary files of the workers, on their machine.
        jobs: Jobs to submit.
        cores: CPU cores of a job; it runs one worker on each, or one worker if it has a GPU.
        walltime: Time limit of a job: hours, minutes and seconds, as `02:00:00`.
        queue: Queue or partition.
        account: Account or project to be charged.
        directives: Further directives of the job script, without the leading `#SBATCH` or the like.
        prologue: Shell lines that a job runs before its workers start.
        interface: Network interface by which jobs reach the scheduler, such as `ib0`.
        log_directory: Folder for the batch system's logs.
    """

    type: ClusterType = ClusterType.LOCAL
    workers: int | None = Field(default=None, ge=0, le=10_000)
    gpus: int | None = Field(default=None, ge=0, le=10_000)
    scheduler: Line | None = None
    scheduler_file: Path | None = None
    dashboard: str = Field(default=DEFAULT_DASHBOARD, pattern=r"^[^\s/]*:\d{1,5}$")
    tls: TlsSettings | None = None
    memory: str | None = Field(default=None, pattern=r"^\d+(\.\d+)? ?([kKMGT]i?)?B$")
    local_directory: Path | None = None
    jobs: int | None = Field(default=None, ge=1)
    cores: int | None = Field(default=None, ge=1)
    walltime: str | None = Field(default=None, pattern=r"^\d+:\d{2}:\d{2}$")
    queue: Line | None = None
    account: Line | None = None
    directives: tuple[Line, ...] = ()
    prologue: tuple[Line, ...] = ()
    interface: Line | None = None
    log_directory: Path | None = None

    @property
    def is_elsewhere(self) -> bool:
        """Whether a scheduler is used that something else started."""
        return self.scheduler is not None or self.scheduler_file is not None

    @property
    def is_batch(self) -> bool:
        """Whether workers are jobs of a batch system."""
        return self.type in BATCH_TYPES

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        given = [name for name in self.model_fields_set if getattr(self, name) not in (None, ())]
        if self.scheduler is not None and self.scheduler_file is not None:
            raise ValueError("scheduler and scheduler_file exclude each other; give one of them")
        if self.is_elsewhere:
            name = "scheduler" if self.scheduler is not None else "scheduler_file"
            others = ("type", "workers", "gpus", "memory", "local_directory", *_OF_JOBS)
            wrong = [key for key in others if key in given and key != "type"]
            if self.type is not ClusterType.LOCAL:
                wrong.insert(0, "type")
            if wrong:
                raise ValueError(
                    f"{name} means a scheduler that has its workers already, and "
                    f"{', '.join(wrong)} would start others; leave one of the two out"
                )
            self._check_address()
        elif self.is_batch:
            if self.workers is not None:
                raise ValueError(
                    f"{self.type} takes no workers; give jobs and cores: a job runs one worker on "
                    "each of its cores"
                )
            if self.cores is None or self.memory is None:
                raise ValueError(
                    f"{self.type} needs cores and memory of one job, such as cores = 16 and "
                    'memory = "64GB"'
                )
            if self.gpus is not None and self.gpus > 1:
                raise ValueError(
                    f"a job of {self.type} has one GPU at most; give gpus = 1 and jobs = "
                    f"{self.gpus * (self.jobs or 1)}"
                )
        else:
            wrong = [key for key in _OF_JOBS if key in given]
            if wrong:
                raise ValueError(
                    f"{', '.join(wrong)} belong to jobs of a batch system; give type = "
                    f'"slurm", "pbs" or "lsf", or leave them out'
                )
            self._check_machine()
        return self

    def _check_address(self) -> None:
        if self.scheduler is None or self.tls is None or "://" not in self.scheduler:
            return
        protocol = self.scheduler.partition("://")[0]
        if protocol != "tls":
            raise ValueError(
                f"tls is given, and {self.scheduler} is reached without; write "
                f"tls://{self.scheduler.partition('://')[2]} or leave tls out"
            )

    def _check_machine(self) -> None:
        if self.type is ClusterType.CUDA:
            if self.workers is not None:
                raise ValueError(
                    "cuda starts one worker per GPU; say gpus = N for some of them, or leave "
                    "workers out"
                )
            if self.gpus == 0:
                raise ValueError('cuda without a GPU is nothing; give type = "local"')
        elif self.workers is not None and self.gpus is not None and self.gpus > self.workers:
            raise ValueError(
                f"gpus = {self.gpus} of workers = {self.workers} are too many: gpus counts the "
                "workers that have a GPU"
            )


def read_cluster(table: object, source: str, outside: Collection[str] = ()) -> ClusterSettings:
    """Check a `[cluster]` table.

    Args:
        table: What TOML reads; keys may have hyphens instead of underscores.
        source: Where it comes from, for messages.
        outside: Keys that were written at the top level instead of in the table.

    Returns:
        The settings.

    Raises:
        ConfigurationError: A key is unknown, a value is not allowed, or keys exclude each other.
    """
    known = tuple(ClusterSettings.model_fields)
    values = _rename(table, known, f"[cluster] of {source}")
    if "tls" in values:
        of_tls = tuple(TlsSettings.model_fields)
        values["tls"] = _rename(values["tls"], of_tls, f"[cluster.tls] of {source}")
    for key in ("directives", "prologue"):
        if isinstance(values.get(key), str):
            values[key] = [values[key]]
    try:
        return ClusterSettings.model_validate(values)
    except ValidationError as error:
        problems = []
        for each in error.errors():
            at_top = bool(each["loc"]) and each["loc"][0] in outside
            place = source if at_top else f"[cluster] of {source}"
            problems.append(f"wrong setting in {place}: {_describe(dict(each))}")
        raise ConfigurationError("\n".join(problems)) from error


def replace_place(
    settings: ClusterSettings,
    workers: int | None = None,
    scheduler: str | None = None,
    scheduler_file: Path | None = None,
    dashboard: str | None = None,
) -> ClusterSettings:
    """Return settings changed by options of the command line.

    An option that says where to run takes the place of all that the table says about it, but for
    the certificates of a scheduler.

    Args:
        settings: From a file, or the defaults.
        workers: Value of `--workers`, None if it is not given.
        scheduler: Value of `--scheduler`.
        scheduler_file: Value of `--scheduler-file`.
        dashboard: Value of `--dashboard`.

    Raises:
        ConfigurationError: Options exclude each other, or a value is not allowed.
    """
    places: dict[str, object] = {
        "workers": workers,
        "scheduler": scheduler,
        "scheduler_file": scheduler_file,
    }
    given = {name: value for name, value in places.items() if value is not None}
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigurationError(f"{names} exclude each other; give one of them")
    values = settings.model_dump(exclude_unset=True)
    if workers is not None:
        of_machine = {"workers", "gpus", "dashboard", "memory", "local_directory"}
        kept = of_machine if settings.type is ClusterType.LOCAL else {"dashboard"}
        values = {name: value for name, value in values.items() if name in kept}
        if (settings.gpus or 0) > workers:
            values.pop("gpus", None)
    elif given:
        values = {name: value for name, value in values.items() if name in ("dashboard", "tls")}
    values |= given
    if dashboard is not None:
        values["dashboard"] = dashboard
    try:
        return ClusterSettings.model_validate(values)
    except ValidationError as error:
        problems = [_describe(dict(each)) for each in error.errors()]
        raise ConfigurationError("\n".join(f"wrong option: {each}" for each in problems)) from error


def write_cluster(settings: ClusterSettings) -> str:
    """Return settings as a `[cluster]` table of TOML that reads back to the same settings.

    Args:
        settings: Settings to write; what is as by default is left out.

    Returns:
        Lines of TOML, nothing if all is as by default. They end a file: no other keys of its top
        level can follow.
    """
    values = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    tls = values.pop("tls", None)
    tables = {"cluster": values} if values else {}
    if tls is not None:
        tables["cluster.tls"] = tls
    lines = []
    for name, entries in tables.items():
        lines.append(f"\n[{name}]")
        for key, value in entries.items():
            # JSON strings and lists are TOML too, but for the one control character it lets through
            written = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {written}")
    return "".join(f"{line}\n" for line in lines)


def _rename(table: object, known: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return the table with underscores in its keys, all of them known."""
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where} is no table of keys; valid keys: {', '.join(known)}")
    renamed: dict[str, Any] = {}
    for key, value in table.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ConfigurationError(
                f'unknown key "{key}" in {where}{suggest(name, known) or ";"} '
                f"valid keys: {', '.join(known)}"
            )
        renamed[name] = value
    return renamed


_EXAMPLES: Final[Mapping[str, str]] = {
    "dashboard": "a host and a port, such as 127.0.0.1:8787",
    "memory": "an amount of memory, such as 16GB",
    "walltime": "hours, minutes and seconds, such as 02:00:00",
}


def _describe(problem: dict[str, Any]) -> str:
    """Say what is wrong with a value, or with several together."""
    keys = [str(part) for part in problem["loc"]]
    message = re.sub("^Value error, ", "", problem["msg"])
    if not keys:
        return message
    if problem["type"] == "missing":
        return f"{'.'.join(keys)} is missing"
    written = f"{'.'.join(keys)} = {json.dumps(problem['input'], default=str)}"
    if keys[0] == "type":
        names = [str(each) for each in ClusterType]
        return f"{written} is not one of {', '.join(names)}{suggest(str(problem['input']), names)}"
    if keys[0] in _EXAMPLES and problem["type"] == "string_pattern_mismatch":
        return f"{written} is not {_EXAMPLES[keys[0]]}"
    return f"{written}: {message}"
