"""The readers of the program, each given a damaged file as a command would give it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutations

Case = Callable[[], object]
"""Reads the damaged input; returns what came of it, nothing if it was read, or raises."""

_RAN_OUT = ("MemoryError", "allocate", "recursion")
"""Words of errors that no reader may turn into the reason of a failure."""


class SwallowedError(Exception):
    """A reader took running out of memory for a property of the file."""


def damage_settings(random: Random, seeds: Path, work: Path) -> Case:
    """A campaign's TOML, read as `screening run` reads it before anything is computed."""
    from screening.enumerate import open_spaces
    from screening.settings import read_settings, write_settings

    _load_prototypes()
    path = work / "campaign.toml"
    path.write_bytes(mutations.damage_text(random, _text(_pick(random, seeds, "settings*.toml"))))

    def read() -> None:
        settings = read_settings(path, {})
        open_spaces(settings.prototype, settings.elements, settings.roles)
        again = work / "again.toml"
        again.write_text(write_settings(settings), encoding="utf-8")
        assert read_settings(again, {}) == settings

    return read


def damage_prototype(random: Random, seeds: Path, work: Path) -> Case:
    """A CIF, as `--prototype` and `--roles` take it."""
    from screening.enumerate import open_spaces

    path = work / "mine.cif"
    path.write_bytes(mutations.damage_text(random, _text(_pick(random, seeds, "*.cif"))))
    roles = random.choice((None, None, None, "Sr=A,Ti=B,O=X", "Ti=A,O=B", "O=A,Ti=A"))
    return lambda: open_spaces([str(path)], ["default"], roles)


def damage_structures(random: Random, seeds: Path, work: Path) -> Case:
    """Structures of all kinds, read and featurized as `screening featurize` does it."""
    from screening.features import featurize_crystals
    from screening.structures import read_structures

    kind = random.choice(("mine.cif", "rutile.cif", "POSCAR", "file.extxyz", "structures.parquet"))
    path = work / kind
    if kind.endswith(".parquet"):
        mutations.damage_table(random, _table(seeds / kind), path)
    else:
        path.write_bytes(mutations.damage_text(random, _text(seeds / kind)))

    def read() -> None:
        crystals, failures = read_structures([path])
        featurized = featurize_crystals([each for each in crystals if len(each) <= 64][:2])
        for failure in (*failures, *featurized.failures):
            if any(word in failure.reason for word in _RAN_OUT):
                raise SwallowedError(failure.reason)

    return read


def damage_references(random: Random, seeds: Path, work: Path) -> Case:
    """Reference phases as CSV, Parquet and JSON."""
    from screening.references import read_references

    kind = random.choice(("references.csv", "references.parquet", "references.json"))
    path = work / kind
    if kind.endswith(".parquet"):
        mutations.damage_table(random, _table(seeds / kind), path)
    elif kind.endswith(".json"):
        path.write_bytes(mutations.write_json(random, _json(seeds / kind)))
    else:
        path.write_bytes(mutations.damage_text(random, _text(seeds / kind)))

    def read() -> None:
        references = read_references(path, "PBE")
        references.list_remarks([3, 8], "PBE")
        references.phases.save(work / "phases.arrow")

    return read


def damage_training(random: Random, seeds: Path, work: Path) -> Case:
    """Training data, feature tables and lists of formulas."""
    from screening.dataset import Protocol, read_formulas, read_training_set
    from screening.feature_tables import read_features

    kind = random.choice(("structures", "training", "features", "features.failures", "formulas"))
    if kind == "formulas":
        path = work / random.choice(("formulas.txt", "formulas.csv"))
        text = _text(seeds / "formulas.txt" if path.suffix == ".txt" else seeds / "references.csv")
        path.write_bytes(mutations.damage_text(random, text))
        return lambda: read_formulas(path)
    path = work / f"{kind}.parquet"
    mutations.damage_table(random, _table(seeds / f"{kind}.parquet"), path)
    if kind in ("structures", "training"):
        if random.random() < 0.2:
            return lambda: read_formulas(path)
        missing = random.random() < 0.5
        return lambda: read_training_set([path], Protocol(drop_missing_energies=missing))
    if kind == "features.failures":
        shutil.copy(seeds / "features.parquet", work / "features.parquet")
        path = work / "features.parquet"
    return lambda: read_features(path)


def damage_weights(random: Random, seeds: Path, work: Path) -> Case:
    """Members, forest, uncertainty and baselines; what can be read must predict."""
    import numpy as np

    from irnet import Baseline, Ensemble, Forest
    from irnet.ensemble import Member
    from irnet.uncertainty import Uncertainty

    names = ("model/ensemble/member-0", "model/forest", "model/uncertainty", "baselines/*")
    source = _pick(random, seeds, f"{random.choice(names)}.safetensors")
    damage = random.choice((mutations.damage_tensors, mutations.retype_tensors))
    path = work / source.name
    path.write_bytes(damage(random, _bytes(source)))
    rows = np.ones((3, 271), dtype=np.float32)

    def read() -> None:
        if source.name == "forest.safetensors":
            forest = Forest.load(path)
            if len(forest.feature_names) == rows.shape[1]:
                forest.predict(rows)
        elif source.name == "uncertainty.safetensors":
            uncertainty = Uncertainty.load(path)
            if len(uncertainty.reference.mean) == rows.shape[1]:
                uncertainty.reference.distance(rows)
        elif source.parent.name == "baselines":
            baseline = Baseline.load(path)
            if len(baseline.feature_names) == rows.shape[1]:
                baseline.predict(rows)
        else:
            member = Member.load(path)
            if len(member.feature_names) == rows.shape[1]:
                Ensemble((member, member), {}).scorer("cpu").predict(rows)

    return read


def damage_model(random: Random, seeds: Path, work: Path) -> Case:
    """A model folder with one file damaged, its recorded checksum put right half of the time."""
    from irnet.storage import file_sha256
    from screening.card_page import page_of
    from screening.model_library import load_enthalpy_model

    folder = work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds / "model", folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    cards = [path for path in paths if path.suffix == ".json"]
    path = random.choice(cards if random.random() < 0.6 else paths)
    if path.suffix == ".json":
        path.write_bytes(mutations.write_json(random, _json(path)))
    elif path.suffix == ".parquet":
        mutations.damage_table(random, _table(seeds / "model" / path.name), path)
    else:
        path.write_bytes(mutations.damage_tensors(random, path.read_bytes()))
    listing = folder / "ensemble" / "ensemble.json"
    if path.parent == listing.parent and path != listing and random.random() < 0.5:
        content = json.loads(listing.read_text())
        for entry in content["members"]:
            entry["sha256"] = file_sha256(listing.parent / entry["file"])
        listing.write_text(json.dumps(content))

    def read() -> None:
        model = load_enthalpy_model(folder)
        page_of(folder)
        str(model.content_hash)

    return read


def damage_folder(random: Random, seeds: Path, work: Path) -> Case:
    """A campaign's folder of a stranger: shown, exported, reported, resumed."""
    folder = work / "campaign"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seeds / "campaign", folder)
    if random.random() < 0.3:
        for name in ("ranking.parquet", "ranking.csv", "report.html"):
            (folder / name).unlink(missing_ok=True)
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".parquet"))
    named = [path for path in paths if path.name in ("manifest.json", "ranking.parquet")]
    path = random.choice(named if random.random() < 0.6 else paths)
    if path.suffix == ".json":
        path.write_bytes(_write_sealed(random, path))
    else:
        mutations.damage_table(random, _table(path), path)
        if path.parent.name == "shards":
            _adopt_table(path)
    command = random.choice(
        (
            ["show", "campaign"], ["show", "campaign", "--diverse"], ["show", "campaign", "--new"],
            ["show", "campaign", "--rank-by", "formation-enthalpy"], ["status", "campaign"],
            ["status", "campaign", "--json"], ["show", "campaign", "--with", "O"],
            ["report", "campaign"], ["export", "campaign", "--top", "2"],
            ["export", "campaign", "--top", "2", "--format", "poscar"],
            ["export", "campaign", "--format", "csv"],
        )
    )  # fmt: skip
    return lambda: _call(command)


def _write_sealed(random: Random, path: Path) -> bytes:
    """Damage a JSON file of a campaign, and make its checksum right again most of the time."""
    from screening.folder import CHECKSUM, hash_identity

    data = mutations.write_json(random, _json(path))
    if random.random() < 0.25:
        return data
    with suppress(ValueError, RecursionError, TypeError):
        content = json.loads(data)
        if isinstance(content, dict) and content.pop(CHECKSUM, None) is not None:
            return json.dumps({**content, CHECKSUM: hash_identity(content)}).encode()
    return data


def _adopt_table(path: Path) -> None:
    """Write the checksum of a shard's table into its receipt."""
    from screening.folder import CHECKSUM, hash_identity
    from screening.model_card import hash_file

    receipt = path.with_suffix(".json")
    content = json.loads(receipt.read_text()) | {"sha256": hash_file(path)}
    del content[CHECKSUM]
    receipt.write_text(json.dumps({**content, CHECKSUM: hash_identity(content)}))


@cache
def _program() -> Any:
    from typer.main import get_command

    from screening.cli import app

    return get_command(app)


def _call(command: list[str]) -> str:
    """Call a command of the program; what it prints must be text without control characters.

    Returns:
        Name of its exit code.
    """
    from click.testing import CliRunner

    from screening.errors import ExitCode

    done = CliRunner().invoke(_program(), command, catch_exceptions=False)
    for sign in done.output:
        assert sign.isprintable() or sign in "\n\t", f"{sign!r} reaches the terminal"
    assert done.exit_code != ExitCode.UNEXPECTED
    return "read" if done.exit_code == ExitCode.OK else ExitCode(done.exit_code).name.lower()


READERS: dict[str, tuple[Callable[[Random, Path, Path], Case], int]] = {
    "settings": (damage_settings, 3200),
    "prototype": (damage_prototype, 1500),
    "structures": (damage_structures, 1000),
    "references": (damage_references, 2000),
    "training": (damage_training, 700),
    "weights": (damage_weights, 1200),
    "model": (damage_model, 300),
    "folder": (damage_folder, 100),
}
"""By name: what prepares a case, and how many of 10,000 inputs it gets."""


@cache
def _load_prototypes() -> None:
    """Read the geometries that pymatgen ships, which takes seconds, before a case is timed."""
    from prototypes import find_prototype

    find_prototype("spinel")


def _pick(random: Random, seeds: Path, pattern: str) -> Path:
    return random.choice(sorted(seeds.glob(pattern)))


@cache
def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _text(path: Path) -> str:
    return _bytes(path).decode()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path)
