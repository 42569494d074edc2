from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from prototypes import find_prototype
from screening.enumerate import Shard, open_spaces
from screening.folder import Receipt
from screening.manifest import (
    STAGES,
    describe_environment,
    describe_prototype,
    resolve_settings,
    restore_prototype,
    sum_receipts,
)
from screening.settings import CampaignSettings, read_settings


def test_prototypes_come_back_from_json() -> None:
    for name in ("B2", "perovskite"):
        prototype = find_prototype(name)
        again = restore_prototype(json.loads(json.dumps(describe_prototype(prototype))))
        assert again == prototype
        assert again.role_permutations == prototype.role_permutations
        assert np.array_equal(again.lattice, prototype.lattice)


def test_resolved_settings_name_every_element_and_read_back(tmp_path: Path) -> None:
    settings = CampaignSettings(
        prototype=("perovskite",), elements=("alkali", "X=O,F"), out=Path("runs/a")
    )
    spaces, pools = open_spaces(settings.prototype, settings.elements)
    path = tmp_path / "campaign.toml"
    path.write_text(resolve_settings(settings, pools, spaces))
    again = read_settings(path, {})
    assert again.elements == ("Li,Na,K,Rb,Cs", "X=O,F")
    assert open_spaces(again.prototype, again.elements)[1] == pools
    assert "perovskite 40" in path.read_text()


def test_environment_names_the_versions_that_numbers_depend_on() -> None:
    packages = describe_environment()["packages"]
    assert packages["torch"]
    assert packages["numpy"] == np.__version__


def test_stage_rates_are_per_second_of_a_worker(make_receipt: Callable[..., Receipt]) -> None:
    receipts = [
        make_receipt(Shard(n, "B2", 0, 9), candidates=50, seconds=dict.fromkeys(STAGES, 0.5))
        for n in range(2)
    ]
    assert sum_receipts(receipts)["stages"]["irnet"] == {
        "worker_seconds": 1.0,
        "candidates_per_worker_second": 100,
    }


def test_receipts_add_up(make_receipt: Callable[..., Receipt]) -> None:
    removed = {"charge_neutral": {"removed": 3, "not_applicable": 2}}
    receipts = [
        make_receipt(Shard(n, "B2", 0, 9), dropped=n, threads=n, removed=removed) for n in (1, 2)
    ]
    totals = sum_receipts(iter(receipts))
    assert totals["dropped"] == 3
    assert totals["threads"] == [1, 2]
    assert totals["removed"] == {"charge_neutral": {"removed": 6, "not_applicable": 4}}
