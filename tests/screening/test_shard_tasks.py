from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from screening import shard_tasks
from screening.enumerate import describe_grid, open_spaces, plan_shards
from screening.errors import OutputError
from screening.folder import BEST, BEST_COLUMNS, STD_EDGES, Receipt, RunFolder, check_receipt
from screening.known import KnownCompounds
from screening.model_library import load_model
from screening.phases import Phases
from screening.rank import rank_candidates, select_candidates
from screening.requirements import parse_requirement
from screening.settings import RankBy
from screening.shard_tasks import DRIVER, ShardTask, screen_shard

NAMES = ("B2", "perovskite", "double_perovskite")
POOL = "Li,Na,K,Mg,O,F,Cl"
SIZE = 900


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few phases of made-up energies, low enough that some candidates are above them."""
    path = tmp_path_factory.mktemp("references") / "references.arrow"
    formulas = ["LiF", "NaF", "KF", "MgF2", "LiCl", "NaCl", "KCl", "MgO", "KMgF3", "Li2O"]
    Phases.of(formulas, [-0.4, 0.1, -1.0, 0.2, -0.3, -1.2, 0.1, -0.5, -0.8, -0.2], formulas).save(
        path
    )
    return path


Screen = Callable[..., tuple[RunFolder, list[Receipt]]]


@pytest.fixture(scope="module")
def screen(
    calibrated_model: Path, references: Path, tmp_path_factory: pytest.TempPathFactory
) -> Screen:
    """Screen all shards of a small campaign, in this process."""
    content_hash = load_model(calibrated_model).content_hash

    def call(names: Sequence[str] = NAMES, **settings: Any) -> tuple[RunFolder, list[Receipt]]:
        spaces, _ = open_spaces(names, [POOL])
        grid = plan_shards(spaces, SIZE)
        folder = RunFolder(tmp_path_factory.mktemp("run"))
        (folder.path / "shards").mkdir()
        campaign = {"prototypes": dict.fromkeys(names, "")}
        folder.write_manifest({"campaign": campaign, "grid": describe_grid(grid)})
        by_name = {space.prototype.name: space for space in spaces}
        tasks = [
            ShardTask(
                shard, by_name[shard.prototype], str(calibrated_model), content_hash, "cpu",
                "fp32", 1, folder.path, campaign=folder.campaign,
                **{"phases": references, "references": references} | settings,
            )
            for shard in grid
        ]  # fmt: skip
        return folder, [screen_shard(task) for task in tasks]

    return call


@pytest.fixture(scope="module")
def everything(screen: Screen) -> tuple[RunFolder, list[Receipt]]:
    return screen()


def rank(folder: RunFolder, **settings: Any) -> pa.Table:
    return rank_candidates(list(map(folder.table_path, folder.shards)), NAMES, **settings)


def test_receipts_say_what_the_tables_hold(everything: tuple[RunFolder, list[Receipt]]) -> None:
    folder, receipts = everything
    assert sum(receipt.enumerated for receipt in receipts) == sum(
        space.count for space in open_spaces(NAMES, [POOL])[0]
    )
    for receipt in receipts:
        assert check_receipt(folder, receipt.shard, receipt) is None
        assert folder.read_receipt(receipt.shard) == receipt
        table = pq.read_table(folder.table_path(receipt.shard)).to_pandas()
        assert (receipt.candidates, receipt.scored, receipt.ranked) == (len(table),) * 3
        assert (receipt.failed, receipt.dropped, receipt.reasons) == (0, 0, {})
        assert receipt.below_hull == (table["energy_above_hull_ev_per_atom"] <= 0).sum()
        assert receipt.probable == (table["p_stable"] >= 0.5).sum()
        stds = pd.cut(
            table["formation_enthalpy_std_ev_per_atom"], [*STD_EDGES, np.inf], right=False
        )
        assert list(receipt.std_histogram) == stds.value_counts(sort=False).to_list()
        assert len(receipt.best) == min(BEST, len(table))
        keys = ["p_stable", "energy_above_hull_ev_per_atom", "candidate"]
        best = table.sort_values(keys, ascending=[False, True, True])[list(BEST_COLUMNS)][:BEST]
        assert list(receipt.best) == best.to_dict("records")
        assert (receipt.threads, receipt.worker) == (1, DRIVER)
    ranking = rank(folder)
    assert 0 < sum(receipt.below_hull for receipt in receipts) < len(ranking)


@pytest.mark.parametrize(
    ("order", "top"), [*((order, 25) for order in RankBy), (RankBy.P_STABLE, 1)]
)
def test_the_best_that_are_kept_are_the_first_of_the_whole_ranking(
    screen: Screen, everything: tuple[RunFolder, list[Receipt]], order: RankBy, top: int
) -> None:
    whole = rank(everything[0], rank_by=order)
    folder, receipts = screen(keep_top=top, rank_by=order)
    kept = rank(folder, rank_by=order, keep_top=top)
    assert kept.drop_columns("rf_rank").equals(whole.slice(0, top).drop_columns("rf_rank"))
    assert sorted(kept["rf_rank"].to_pylist()) == list(range(1, top + 1))
    for receipt, before in zip(receipts, everything[1], strict=True):
        assert receipt.candidates == min(top, before.candidates)
        assert receipt.dropped == before.candidates - receipt.candidates
        for number in ("enumerated", "ranked", "scored", "below_hull", "probable", "std_histogram"):
            assert getattr(receipt, number) == getattr(before, number)
        if order is RankBy.P_STABLE:
            assert receipt.best == before.best[:top]


@pytest.mark.parametrize(
    "require",
    [
        ("charge_neutral",),
        ("energy_above_hull_ev_per_atom < 0.5", "site_C = Mg"),
        ("nearest_known_distance < 2", "not known"),
        ("decomposition != LiF", "formation_enthalpy_ev_per_atom < 0.2", "charge_neutral!"),
    ],
)
def test_conditions_see_all_candidates_before_the_best_are_kept(
    screen: Screen, everything: tuple[RunFolder, list[Receipt]], require: tuple[str, ...]
) -> None:
    requirements = [parse_requirement(text) for text in require]
    met = select_candidates(rank(everything[0]), requirements=requirements)
    folder, receipts = screen(require=require, keep_top=15)
    kept = rank(folder, keep_top=15)
    names = [name for name in kept.column_names if "rank" not in name]
    assert kept.select(names).equals(met.slice(0, 15).select(names))
    for receipt, before in zip(receipts, everything[1], strict=True):
        assert receipt.enumerated == before.enumerated
        assert list(receipt.removed) == sorted(require, key=lambda text: "neutral" not in text)
        early = receipt.removed.get(require[-1], {"removed": 0})["removed"]
        assert receipt.scored == before.scored - early * require[-1].startswith("charge")
    assert 15 < sum(receipt.ranked for receipt in receipts) == len(met)
    assert all(any(each.removed[text]["removed"] for each in receipts) for text in require)


def test_what_costs_most_is_computed_only_of_what_is_kept(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    find = KnownCompounds.find_nearest

    def count(self: KnownCompounds, numbers: Any, amounts: Any) -> Any:
        asked.append(len(numbers))
        return find(self, numbers, amounts)

    monkeypatch.setattr(KnownCompounds, "find_nearest", count)
    _, receipts = screen(["perovskite"], keep_top=5, require=("not known",))
    assert asked == [receipt.candidates for receipt in receipts]
    assert max(asked) == 5


class Poison:
    """Spoils the featurizer for candidates that hold potassium and chlorine."""

    def __init__(self, error: Exception, only: int | None = None) -> None:
        self.error, self.only, self.calls = error, only, 0
        self.featurize = shard_tasks.featurize_candidates

    def __call__(self, featurizer: Any, numbers: Any, device: Any) -> torch.Tensor:
        self.calls += 1
        held = ((numbers == 19).any(axis=1) & (numbers == 17).any(axis=1)).nonzero()[0]
        if self.only is not None:
            held = held[np.isin(numbers[held, 0], [self.only])]
        if len(held):
            raise self.error
        return self.featurize(featurizer, numbers, device)


def test_a_poisonous_candidate_does_not_take_its_shard_along(
    screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rank(screen(["perovskite"])[0])
    poison = Poison(ZeroDivisionError("no such radius"), only=3)
    monkeypatch.setattr(shard_tasks, "featurize_candidates", poison)
    for keep_top in (None, 20):
        folder, receipts = screen(["perovskite"], keep_top=keep_top)
        tables = pa.concat_tables(map(pq.read_table, map(folder.table_path, folder.shards)))
        failed = tables.filter(tables["reason"].is_valid())
        assert set(failed["reason"].to_pylist()) == {"ZeroDivisionError: no such radius"}
        assert failed["formation_enthalpy_ev_per_atom"].null_count == len(failed) == 2
        assert all(
            (row["site_A"], {row["site_B"], row["site_X"]}) == ("Li", {"K", "Cl"})
            for row in failed.to_pylist()
        )
        assert sum((Counter(each.reasons) for each in receipts), Counter()) == {
            "ZeroDivisionError: no such radius": 2
        }
        lost = set(failed["candidate"].to_pylist())
        others = whole.filter(
            pa.array([each not in lost for each in whole["candidate"].to_pylist()])
        )
        names = [name for name in whole.column_names if "rank" not in name]
        ranking = rank(folder, keep_top=keep_top)
        assert ranking.select(names).equals(others.slice(0, keep_top).select(names))


@pytest.mark.parametrize("error", [MemoryError(), OutputError("full"), ValueError("all of them")])
def test_what_is_no_fault_of_a_candidate_ends_the_shard(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    poison = Poison(error)
    monkeypatch.setattr(shard_tasks, "featurize_candidates", poison)
    monkeypatch.setattr("screening.poison.MOST_POISONOUS", 3)
    with pytest.raises(type(error)):
        screen(["perovskite"])
    assert poison.calls < 40
