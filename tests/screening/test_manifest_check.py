from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from screening.cli import app
from screening.errors import InputDataError
from screening.manifest_check import check_manifest

PATH = Path("manifest.json")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    """The manifest of a small campaign."""
    folder = tmp_path_factory.mktemp("manifest") / "campaign"
    call = ["run", "-p", "B2", "--elements", "Li,Na,K,F", "--model", str(tiny_model)]
    call += ["--workers", "0", "--competitors", "none", "--out", str(folder)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def test_what_a_campaign_writes_passes(complete: dict[str, Any]) -> None:
    check_manifest(complete, PATH)


def test_keys_of_later_versions_are_left_alone(complete: dict[str, Any]) -> None:
    check_manifest({**complete, "something": {"new": 1}}, PATH)


@pytest.mark.parametrize(
    "key", ["campaign", "environment", "model", "competitors", "prototypes", "counts", "grid"]
)
def test_a_key_that_is_missing_is_named(complete: dict[str, Any], key: str) -> None:
    without = {name: value for name, value in complete.items() if name != key}
    with pytest.raises(InputDataError, match=rf"\({key}: Field required\)"):
        check_manifest(without, PATH)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["counts"].pop("total"), "counts lack"),
        (lambda m: m["counts"].update(total=1.5), "counts.total"),
        (lambda m: m["counts"].update(total=-1), "counts.total"),
        (lambda m: m.update(rank_by="beauty"), "rank_by"),
        (lambda m: m["grid"].update(index_counts={"B2": 17}), "16 indices"),
        (lambda m: m["grid"].update(index_counts={"B3": 16}), "not that of the prototypes"),
        (lambda m: m["prototypes"]["B2"].update(name="B3"), "not those of the campaign"),
        (lambda m: m["prototypes"]["B2"].update(roles=["A", "A"]), "do not fit"),
        (lambda m: m["prototypes"]["B2"].update(roles=["A", "../B"]), "prototypes.B2.roles"),
        (lambda m: m["prototypes"]["B2"].update(site_roles=[0, 7]), "do not fit"),
        (lambda m: m["prototypes"]["B2"].update(extra=1), "unknown extra"),
        (lambda m: m["campaign"]["elements"].update(B=["O", "Qq"]), "no element"),
        (lambda m: m["campaign"].update(stable_within=float("nan")), "no finite number"),
        (lambda m: m["competitors"].update(references={"file": 1}), "competitors.references"),
        (lambda m: m["stages"].update(hull=[]), "stages.hull"),
    ],
)
def test_what_is_wrong_is_said(
    complete: dict[str, Any], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    manifest = copy.deepcopy(complete)
    change(manifest)
    with pytest.raises(InputDataError, match=words):
        check_manifest(manifest, PATH)
