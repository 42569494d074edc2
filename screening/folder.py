"""The result folder of a campaign: what is in it, whose it is, and what is finished.

    campaign.toml      resolved settings; `screening run campaign.toml` does the same again
    manifest.json      the campaign's identity, versions, model, counts and timings
    *.arrow            phases that the candidates compete with: references, or predicted ones
    shards/NNNNN.*     one Parquet table and one receipt (JSON) per finished shard
    ranking.parquet    all scored candidates, best first; ranking.csv holds the same
    failures.parquet   candidates that could not be scored, each with its reason
    report.html        all of it for people, in one page
    .lock              who writes into the folder at the moment

A shard counts as finished when its receipt is there and the table has the rows and the checksum
that the receipt promises. Every file is written to a temporary name, flushed and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from screening.columns import (
    FAILED_CANDIDATES,
    RANKING,
    SHARD,
    write_table,
    written_atomically,
)
from screening.enumerate import Shard
from screening.errors import ConfigurationError, InputDataError, OutputError, suggest
from screening.lock import locked

_OF_THE_HULL: Final = ("references", "competitors", "compete", "stable_within")
"""Settings in which a campaign may differ from one whose predictions it takes over."""

BEST: Final = 10
"""Rows that a receipt shows."""

BEST_COLUMNS: Final = (
    "prototype",
    "candidate",
    "formula",
    "formation_enthalpy_ev_per_atom",
    "energy_above_hull_ev_per_atom",
    "energy_above_hull_std_ev_per_atom",
    "p_stable",
)
"""Columns of the rows that a receipt shows, as in `screening.columns.SHARD`."""

STD_EDGES: Final = tuple(number / 100 for number in range(21))
"""Lower ends of the bins of `Receipt.std_histogram`, eV/atom."""

MANIFEST_FORMAT: Final = 3
"""3 since tables have energies above hull."""


@dataclass(frozen=True)
class Receipt:
    """What a worker says of a shard that it has written.

    Candidates are enumerated; conditions remove some before they are scored; the others are scored
    or fail; further conditions remove some of these; of the scored ones among the rest only so many
    are kept if the campaign keeps no more of a shard, and the others are dropped.

    Attributes:
        shard: The shard.
        campaign: Hash of the campaign's identity; see `RunFolder.campaign`.
        candidates: Rows of the table: scored ones that are kept, and failed ones.
        failed: Rows that could not be scored.
        scored: Candidates that were scored, those that conditions removed afterwards too.
        dropped: Candidates that were scored and met all conditions, but are not kept.
        below_hull: Of those that were scored and met all conditions, kept or not, how many have an
            energy above hull of at most 0.
        probable: How many of them have a probability of at least one half.
        std_histogram: How many of them have a standard deviation of the formation enthalpy between
            each of `STD_EDGES` and the next; the last number has no upper limit.
        reasons: How many rows failed, by reason.
        best: The best rows of the shard in the campaign's order, `BEST` at most, with the columns
            `BEST_COLUMNS`.
        removed: By condition, how many candidates it removed, and to how many of those left it
            does not apply; in the order in which the conditions were tested.
        seconds: Time of each stage on the worker.
        sha256: Checksum of the table's file.
        device: Where it was computed.
        precision: Arithmetic of the networks' matrix products.
        threads: Threads of arithmetic.
        host: Name of the machine.
        worker: Name or address of the worker; "driver" in the process of the command.
        finished: When, in ISO format with time zone; for people only.
    """

    shard: Shard
    campaign: str
    candidates: int
    failed: int
    scored: int
    dropped: int
    below_hull: int
    probable: int
    std_histogram: tuple[int, ...]
    reasons: Mapping[str, int]
    best: tuple[Mapping[str, Any], ...]
    removed: Mapping[str, Mapping[str, int]]
    seconds: Mapping[str, float]
    sha256: str
    device: str
    precision: str
    threads: int
    host: str
    worker: str
    finished: str

    @property
    def enumerated(self) -> int:
        """All candidates of the shard, those removed by conditions and those not kept too."""
        gone = sum(each["removed"] for each in self.removed.values())
        return self.candidates + self.dropped + gone

    @property
    def ranked(self) -> int:
        """Candidates that were scored and met all conditions, kept or not."""
        return self.candidates - self.failed + self.dropped


class RunFolder:
    """A result folder.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        """Path of the manifest."""
        return self.path / "manifest.json"

    @property
    def ranking_path(self) -> Path:
        """Path of the ranking as Parquet."""
        return self.path / "ranking.parquet"

    @property
    def report_path(self) -> Path:
        """Path of the report, an HTML page."""
        return self.path / "report.html"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a campaign that has begun.

        Raises:
            ConfigurationError: There is no campaign in it.
        """
        folder = cls(path)
        if not folder.manifest_path.is_file():
            siblings = [each.parent.name for each in path.parent.glob("*/manifest.json")]
            hint = suggest(path.name, siblings)
            raise ConfigurationError(
                f"{path} is not a campaign's folder: it has no manifest.json{hint or ';'} "
                "start a campaign with: screening run --prototype NAME --out FOLDER"
            )
        folder.manifest  # noqa: B018  (fails here, and clearly, if it cannot be read)
        return folder

    @classmethod
    @contextmanager
    def claim(
        cls, path: Path, identity: Mapping[str, Any], note: Callable[[str], None]
    ) -> Iterator[RunFolder]:
        """Make the folder of a campaign, or take up the one that the same campaign began.

        Until the end of the `with` no other run can claim it.

        Args:
            path: The folder.
            identity: What makes the campaign this one; see `screening.manifest`.
            note: Told when the folder is taken over from a run that was killed.

        Yields:
            The folder, without leftovers of processes that were killed while writing.

        Raises:
            ConfigurationError: The folder belongs to another campaign or to something else, or
                another run is writing into it.
            OutputError: It cannot be made or written.
        """
        folder = cls(path)
        if folder.manifest_path.is_file():
            differences = list(_compare(folder.manifest["campaign"], identity))
            if differences:
                by_hull = all(each.startswith(_OF_THE_HULL) for each in differences)
                remedy = f"; for another hull: screening hull {path} --out NEW" if by_hull else ""
                raise ConfigurationError(
                    f"{path} holds another campaign ({'; '.join(differences)}); choose another "
                    f"--out, or repeat that campaign's settings to go on with it{remedy}"
                )
        elif path.is_dir() and any(
            each.name != "shards" and not each.name.startswith(".") for each in path.iterdir()
        ):
            raise ConfigurationError(
                f"{path} is not empty and holds no campaign; choose another --out"
            )
        try:
            (path / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError.from_os_error(error, path) from error
        with locked(path, note):
            folder._clear_leftovers()
            yield folder

    def _clear_leftovers(self) -> None:
        try:
            for folder in (self.path, self.path / "shards", self.path / "competitors"):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink()
        except OSError as error:
            raise OutputError.from_os_error(error, self.path) from error

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk.

        Raises:
            ConfigurationError: It cannot be read.
        """
        try:
            read: dict[str, Any] = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            form, writer = read["format"], read.get("environment", {}).get("screening", "?")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"cannot read {self.manifest_path} ({error}); choose another folder"
            ) from error
        if form != MANIFEST_FORMAT:
            raise ConfigurationError(
                f"{self.path} was written by another version of the program (screening {writer}, "
                f"format {form}; this one writes format {MANIFEST_FORMAT}), whose tables have "
                "other columns; its ranking.csv stays readable, but to go on or to show it here, "
                "screen again into another --out"
            )
        return read

    @property
    def campaign(self) -> str:
        """Hash of the campaign's identity, which its receipts carry."""
        return hash_identity(self.manifest["campaign"])

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The grid of shards that the manifest fixes."""
        return tuple(Shard(*each) for each in self.manifest["shards"])

    @property
    def prototypes(self) -> tuple[str, ...]:
        """Names of the campaign's prototypes, in order."""
        return tuple(self.manifest["campaign"]["prototypes"])

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, atomically."""
        text = json.dumps({"format": MANIFEST_FORMAT, **manifest}, indent=1, ensure_ascii=False)
        self.write_text("manifest.json", text + "\n")
        self.__dict__.pop("manifest", None)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder, atomically."""
        with written_atomically(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_ranking(self, ranking: pa.Table, failures: pa.Table) -> None:
        """Write the ranking as Parquet and CSV, and the failures."""
        write_table(failures, self.path / "failures.parquet", FAILED_CANDIDATES)
        write_csv(ranking, self.path / "ranking.csv")
        write_table(ranking, self.ranking_path, RANKING)

    def read_ranking(self) -> pa.Table:
        """Read the ranking of a complete campaign.

        Raises:
            InputDataError: The file is damaged.
        """
        return self._read_table(self.ranking_path)

    def read_failures(self) -> pa.Table:
        """Read the candidates of a complete campaign that could not be scored.

        Raises:
            InputDataError: The file is missing or damaged.
        """
        return self._read_table(self.path / "failures.parquet")

    def read_settings(self) -> str:
        """Read the resolved settings, as TOML.

        Raises:
            InputDataError: The file is missing or damaged.
        """
        path = self.path / "campaign.toml"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputDataError(_describe_damage(path, error)) from error

    def _read_table(self, path: Path) -> pa.Table:
        try:
            return pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputDataError(_describe_damage(path, error)) from error

    def table_path(self, shard: Shard) -> Path:
        """Path of a shard's table."""
        return self.path / "shards" / f"{shard.number:05d}.parquet"

    def receipt_path(self, shard: Shard) -> Path:
        """Path of a shard's receipt."""
        return self.table_path(shard).with_suffix(".json")

    def write_shard(self, table: pa.Table, shard: Shard) -> str:
        """Write a shard's table.

        Returns:
            The checksum of the file.

        Raises:
            OutputError: It cannot be written.
        """
        path = self.table_path(shard)
        write_table(table, path, SHARD)
        return _checksum(path)

    def write_receipt(self, receipt: Receipt) -> None:
        """Write a shard's receipt, which makes the shard finished."""
        path = self.receipt_path(receipt.shard)
        with written_atomically(path) as temporary:
            temporary.write_text(json.dumps(asdict(receipt)), encoding="utf-8")

    def read_receipts(self, shards: Sequence[Shard]) -> tuple[Receipt, ...]:
        """Return the receipts of the shards that are finished and unharmed, in the grid's order."""
        receipts = (self._read_receipt(shard) for shard in shards)
        return tuple(receipt for receipt in receipts if receipt is not None)

    def _read_receipt(self, shard: Shard) -> Receipt | None:
        table = self.table_path(shard)
        try:
            raw = json.loads(self.receipt_path(shard).read_text(encoding="utf-8"))
            receipt = Receipt(
                **raw
                | {
                    "shard": Shard(**raw["shard"]),
                    "best": tuple(raw["best"]),
                    "std_histogram": tuple(raw["std_histogram"]),
                }
            )
            whole = receipt.shard == shard and receipt.sha256 == _checksum(table)
            if whole and pq.read_metadata(table).num_rows == receipt.candidates:
                return receipt
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return None


def hash_identity(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a campaign's identity, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_csv(table: pa.Table, path: Path) -> None:
    """Write a table as CSV, atomically; null is an empty field.

    Raises:
        OutputError: It cannot be written.
    """
    with written_atomically(path) as temporary:
        pyarrow.csv.write_csv(table, temporary, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _describe_damage(path: Path, error: Exception) -> str:
    return (
        f"{path} is missing or damaged ({error}); delete it and run the campaign's command again, "
        "which computes nothing anew"
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    differences = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        name = f"{prefix}{key}"
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += _compare(old, new, f"{name} ")
        elif isinstance(old, list) and isinstance(new, list):
            gone = [f"-{each}" for each in old if each not in new]
            come = [f"+{each}" for each in new if each not in old]
            differences.append(f"{name}: {' '.join(gone + come) or 'other order'}")
        else:
            differences.append(f"{name}: {_shorten(old)} there, {_shorten(new)} now")
    return differences


def _shorten(value: object) -> str:
    if value is None:
        return "none"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
