"""The result folder of a campaign: what is in it, whose it is, and what is finished.

    campaign.toml      resolved settings; `screening run campaign.toml` does the same again
    manifest.json      the campaign's identity, versions, model, counts and timings
    *.arrow            phases that the candidates compete with: references, or predicted ones
    shards/NNNNN.*     one Parquet table and one receipt (JSON) per finished shard
    ranking.parquet    scored candidates, best first; ranking.csv holds the same
    failures.parquet   candidates that could not be scored, each with its reason
    report.html        all of it for people, in one page
    .lock              who writes into the folder at the moment

A shard counts as finished when its receipt is there and the table has the rows and the checksum
that the receipt promises, and the receipt is of this campaign. Manifest and receipts hold a
checksum of themselves. Every file is written to a temporary name, flushed and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from screening.columns import (
    FAILED_CANDIDATES,
    RANKING,
    SHARD,
    ColumnError,
    TableKind,
    check_table,
    write_table,
    write_tables,
    written_atomically,
)
from screening.enumerate import Shard, ShardGrid, restore_grid
from screening.errors import ConfigurationError, InputDataError, OutputError, suggest
from screening.lock import locked
from screening.manifest_check import check_manifest
from screening.parquet import read_columns

_WORDS: Final = {"keep_top": "--keep-top", "kept_by": "order of the kept"}
"""What people know entries of a manifest as, where that is another word."""

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

MANIFEST_FORMAT: Final = 4
"""4 since the manifest holds the grid of shards instead of a list of them."""

CHECKSUM: Final = "checksum"
"""Key of the checksum in the JSON of manifests and receipts."""

QUARANTINE: Final = ".quarantine.json"
"""How the files end that say why a shard was given up."""

PROBE: Final = ".probe-"
"""How the files begin by which workers show that they see the folder."""

_DAMAGE: Final = (OSError, ValueError, TypeError, KeyError, RecursionError)
"""What reading a damaged JSON file may raise."""

NAMED_SHARDS: Final = 3
"""Damaged shards that a sentence names."""


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


@dataclass(frozen=True)
class DamagedShard:
    """A shard that counted as finished and does not any more.

    Attributes:
        shard: The shard.
        reason: What is wrong with it.
    """

    shard: Shard
    reason: str


class DamagedManifestError(ConfigurationError):
    """A manifest is cut off, changed, or no manifest."""


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
    def failures_path(self) -> Path:
        """Path of the candidates that could not be scored."""
        return self.path / "failures.parquet"

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
            what = "it has no manifest.json" if path.is_dir() else "there is no such folder"
            raise ConfigurationError(
                f"{path} is not a campaign's folder: {what}{hint or ';'} "
                "start a campaign with: screening run --prototype NAME --out FOLDER"
            )
        try:
            check_manifest(folder.manifest, folder.manifest_path)
        except DamagedManifestError as error:
            raise ConfigurationError(
                f"{error}; repeat the campaign's command, which makes it anew and keeps what is "
                f"finished: screening run {path / 'campaign.toml'}"
            ) from error
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
            The folder, without leftovers of processes that were killed while writing; those that
            come meanwhile are removed at the end.

        Raises:
            ConfigurationError: The folder belongs to another campaign or to something else, or
                another run is writing into it.
            OutputError: It cannot be made or written.
        """
        folder = cls(path)
        folder._compare_identity(identity)
        for part in (path / "shards", path / "competitors"):
            if part.is_symlink():
                raise ConfigurationError(
                    f"{part} is a link to {part.readlink()}, and a campaign writes into its own "
                    "folder alone; choose another --out, or put the files in place of the link"
                )
        try:
            (path / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError.from_os_error(error, path) from error
        with locked(path, note):
            folder.__dict__.pop("manifest", None)
            damage = folder._compare_identity(identity)  # another run may just have ended
            folder._clear_leftovers()
            if damage is not None:
                folder._remove_manifest()
                note(
                    f"{damage}; it is made anew, and finished shards are kept, but the times of "
                    "earlier runs are lost"
                )
            yield folder
            folder._clear_leftovers()  # of workers that were killed while writing

    def _compare_identity(self, identity: Mapping[str, Any]) -> str | None:
        """Check that a campaign may write here.

        Returns:
            What is wrong with the manifest if it must be made anew.

        Raises:
            ConfigurationError: The folder belongs to another campaign or to something else.
        """
        try:
            if self.manifest_path.is_file():
                self._refuse_another(identity)
                return None
            damage = f"{self.manifest_path} is missing"
        except DamagedManifestError as error:
            damage = str(error)
        campaigns = self._read_campaigns()
        if campaigns == {hash_identity(identity)}:
            return damage
        if campaigns:
            raise ConfigurationError(
                f"{damage}, and finished shards there are of another campaign; choose another --out"
            )
        if self.manifest_path.is_file() and not self.ranking_path.exists():
            return damage  # nothing was computed yet
        if self.path.is_dir() and any(
            each.name != "shards" and not each.name.startswith(".") for each in self.path.iterdir()
        ):
            raise ConfigurationError(
                f"{self.path} is not empty and holds no campaign; choose another --out"
            )
        return None

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        campaign = self.manifest.get("campaign")
        if not isinstance(campaign, dict):
            raise DamagedManifestError(f"cannot read {self.manifest_path} (it has no campaign)")
        differences = list(_compare(campaign, identity))
        if differences:
            by_hull = all(each.startswith(_OF_THE_HULL) for each in differences)
            remedy = f"; for another hull: screening hull {self.path} --out NEW" if by_hull else ""
            raise ConfigurationError(
                f"{self.path} holds another campaign ({'; '.join(differences)}); choose another "
                f"--out, or repeat that campaign's settings to go on with it{remedy}"
            )

    def _read_campaigns(self) -> set[str]:
        """Return the campaigns of all receipts that can be read."""
        campaigns = set()
        for path in (self.path / "shards").glob("*.json"):
            if not path.name.endswith(QUARANTINE):
                with suppress(*_DAMAGE):
                    campaigns.add(_read_receipt(path).campaign)
        return campaigns

    def _remove_manifest(self) -> None:
        try:
            self.manifest_path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError.from_os_error(error, self.manifest_path) from error

    def _clear_leftovers(self) -> None:
        try:
            for folder in (self.path, self.path / "shards", self.path / "competitors"):
                for leftover in (*folder.glob(".*.tmp"), *folder.glob(f"{PROBE}*")):
                    # a worker that outlived its driver may finish writing
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError.from_os_error(error, self.path) from error

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk.

        Raises:
            ConfigurationError: It cannot be read.
        """
        try:
            raw = json.loads(self.manifest_path.read_text(encoding="utf-8"))
            form, writer = raw["format"], raw.get("environment", {}).get("screening", "?")
            read = _unseal(raw) if form == MANIFEST_FORMAT or CHECKSUM in raw else raw
        except (*_DAMAGE, AttributeError) as error:
            raise DamagedManifestError(
                f"cannot read {self.manifest_path} ({_name_damage(error)})"
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
    def shards(self) -> ShardGrid:
        """The grid of shards that the manifest fixes."""
        return restore_grid(self.manifest["grid"])

    @property
    def is_ranked(self) -> bool:
        """Whether the ranking of all candidates is there; one of an interrupted run is partial."""
        return self.manifest.get("state") == "complete" and self.ranking_path.is_file()

    @property
    def keep_top(self) -> int | None:
        """How many candidates the campaign keeps; None if it keeps all."""
        kept: int | None = self.manifest["campaign"].get("keep_top")
        return kept

    @property
    def prototypes(self) -> tuple[str, ...]:
        """Names of the campaign's prototypes, in order."""
        return tuple(self.manifest["campaign"]["prototypes"])

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, atomically."""
        sealed = _seal({"format": MANIFEST_FORMAT, **manifest})
        self.write_text("manifest.json", json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")
        self.__dict__.pop("manifest", None)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder, atomically."""
        with written_atomically(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_ranking(self, ranking: pa.Table) -> None:
        """Write the ranking as Parquet and CSV."""
        write_csv(ranking, self.path / "ranking.csv")
        write_table(ranking, self.ranking_path, RANKING)

    def write_failures(self, tables: Iterable[pa.Table]) -> int:
        """Write the candidates that could not be scored, one table after the other.

        Returns:
            How many they are.
        """
        return write_tables(tables, self.failures_path, FAILED_CANDIDATES)

    def read_ranking(self) -> pa.Table:
        """Read the ranking of a complete campaign.

        Raises:
            InputDataError: The file is damaged.
        """
        return self._read_table(self.ranking_path, RANKING)

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

    def _read_table(self, path: Path, kind: TableKind) -> pa.Table:
        try:
            table = read_columns(path)
            check_table(table, kind)
        except (InputDataError, ColumnError) as error:
            raise InputDataError(_describe_damage(path, error)) from error
        for name in set(table["prototype"].unique().to_pylist()) - {*self.prototypes}:
            foreign = ValueError(f"{name!r} is no prototype of the campaign")
            raise InputDataError(_describe_damage(path, foreign))
        return table

    def table_path(self, shard: Shard) -> Path:
        """Path of a shard's table."""
        return self.path / "shards" / f"{shard.number:05d}.parquet"

    def receipt_path(self, shard: Shard) -> Path:
        """Path of a shard's receipt."""
        return self.table_path(shard).with_suffix(".json")

    def quarantine_path(self, shard: Shard) -> Path:
        """Path of the file that says why a shard was given up."""
        return self.table_path(shard).with_suffix(QUARANTINE)

    def clear_results(self) -> None:
        """Remove what earlier runs made of a part, and which shards they gave up.

        Raises:
            OutputError: Something cannot be removed.
        """
        results = (self.ranking_path, self.path / "ranking.csv", self.failures_path)
        given_up = (self.path / "shards").glob(f"*{QUARANTINE}")
        try:
            for path in (*results, self.report_path, *given_up):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError.from_os_error(error, self.path) from error

    def set_aside(self, shard: Shard, reason: str, attempts: int, candidates: int) -> None:
        """Write down that a shard was given up, and why.

        Args:
            shard: The shard.
            reason: Why its last attempt failed.
            attempts: How often it was tried.
            candidates: How many candidates it has.

        Raises:
            OutputError: It cannot be written.
        """
        told = {"reason": reason, "attempts": attempts, "candidates": candidates}
        with written_atomically(self.quarantine_path(shard)) as temporary:
            temporary.write_text(json.dumps(told), encoding="utf-8")

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
            temporary.write_text(json.dumps(_seal(asdict(receipt))), encoding="utf-8")

    def read_receipt(self, shard: Shard) -> Receipt | DamagedShard | None:
        """Read the receipt of a shard, without a look at its table.

        Returns:
            The receipt, what is wrong with it, or None if the shard is not finished.
        """
        try:
            receipt = _read_receipt(self.receipt_path(shard))
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            return DamagedShard(shard, f"its receipt cannot be read: {_name_damage(error)}")
        foreign = _find_foreign(self, shard, receipt)
        return receipt if foreign is None else DamagedShard(shard, foreign)

    def inspect_shards(self, shards: Iterable[Shard]) -> Iterator[Receipt | DamagedShard]:
        """Look at shards and their tables, one after the other.

        Yields:
            The receipt of each shard that is finished and unharmed, and what is wrong with each
            other one that has a receipt.
        """
        for shard in shards:
            found = self.read_receipt(shard)
            if isinstance(found, Receipt):
                reason = check_receipt(self, shard, found)
                yield found if reason is None else DamagedShard(shard, reason)
            elif found is not None:
                yield found

    def read_receipts(self, shards: Iterable[Shard]) -> Iterator[Receipt]:
        """Yield the receipts of the shards that are finished and unharmed, one after the other."""
        for found in self.inspect_shards(shards):
            if isinstance(found, Receipt):
                yield found


def check_receipt(folder: RunFolder, shard: Shard, receipt: object) -> str | None:
    """Check what a worker, or an earlier run, says of a shard against the table on disk.

    Args:
        folder: The result folder.
        shard: The shard.
        receipt: What should be its receipt.

    Returns:
        What is wrong; None if nothing is.
    """
    if not isinstance(receipt, Receipt):
        return f"a receipt was expected, not {type(receipt).__name__}"
    foreign = _find_foreign(folder, shard, receipt)
    if foreign is not None:
        return foreign
    path = folder.table_path(shard)
    try:
        if _checksum(path) != receipt.sha256:
            return f"{path.name} was cut off or changed: its checksum is not that of the receipt"
        rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        return f"{path.name} cannot be read: {_name_damage(error)}"
    if rows != receipt.candidates:
        return f"{path.name} has {rows} rows, and its receipt says {receipt.candidates}"
    return None


def describe_damage(damaged: Sequence[DamagedShard]) -> str:
    """Say which finished shards are computed again, and why; at least one."""
    count = "1 finished shard was" if len(damaged) == 1 else f"{len(damaged)} finished shards were"
    named = [f"{each.shard.number:05d} ({each.reason})" for each in damaged[:NAMED_SHARDS]]
    more = ["..."] if len(damaged) > NAMED_SHARDS else []
    again = "is" if len(damaged) == 1 else "are"
    return f"{count} damaged and {again} computed again: {', '.join([*named, *more])}"


def _find_foreign(folder: RunFolder, shard: Shard, receipt: Receipt) -> str | None:
    if receipt.campaign != folder.campaign:
        return "it belongs to another campaign"
    if receipt.shard != shard:
        return f"its receipt is of {receipt.shard}"
    return None


def _read_receipt(path: Path) -> Receipt:
    raw = _unseal(json.loads(path.read_text(encoding="utf-8")))
    return _receipts().validate_python(raw)


@cache
def _receipts() -> TypeAdapter[Receipt]:
    """What makes a receipt of plain data; a type that does not fit is a ValueError."""
    return TypeAdapter(Receipt)


def _seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a JSON object the checksum of all else that is in it."""
    plain = json.loads(json.dumps(content))
    return {**plain, CHECKSUM: hash_identity(plain)}


def _unseal(sealed: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object without its checksum.

    Raises:
        ValueError: It is not what the checksum is of.
        KeyError: It has none.
    """
    content = dict(sealed)
    if content.pop(CHECKSUM) != hash_identity(content):
        raise ValueError("it was changed: its checksum is not that of its content")
    return content


def _name_damage(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


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
        name = f"{prefix}{_WORDS.get(key, key)}"
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
