from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from screening.columns import SHARD, write_table
from screening.errors import ConfigurationError
from screening.rank import (
    ONE_SIDED_90,
    find_order,
    rank_again,
    rank_candidates,
    resolve_order,
    select_candidates,
)
from screening.requirements import parse_requirement
from screening.settings import RankBy


def make_shard(rows: list[dict[str, Any]]) -> pa.Table:
    columns = [column for column in SHARD.columns if column.name != "site_*"]
    zero = {"string": "", "bool": False, "int64": 0, "double": 0.0}
    blank = {column.name: None if column.nullable else zero[column.dtype] for column in columns} | {
        "formula": "AB",
        "site_A": "K",
        "site_B": "F",
        "formation_enthalpy_ev_per_atom": 0.0,
    }
    table = pa.Table.from_pylist(
        [blank | row for row in rows],
        schema=pa.schema({column.name: pa.type_for_alias(column.dtype) for column in columns}),
    )
    return table.rename_columns({"member_*_ev_per_atom": "member_1_ev_per_atom"})


def add_role_d(table: pa.Table) -> pa.Table:
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return pa.table(SHARD.sort(columns | {"site_D": pa.array(["Fe"] * len(table))}))


def rank(
    rows: list[dict[str, Any]], folder: Path, rank_by: RankBy, prototypes: tuple[str, ...] = ("",)
) -> pa.Table:
    path = folder / "shard.parquet"
    write_table(make_shard(rows), path, SHARD)
    return rank_candidates([path], prototypes, rank_by)


numbers = st.sampled_from([-1.0, -0.5, 0.0, 0.5])
Z90 = norm.ppf(0.9)
PRIMARY: dict[RankBy, Callable[[pd.DataFrame], pd.Series]] = {
    RankBy.P_STABLE: lambda frame: -frame["p_stable"],
    RankBy.ENERGY_ABOVE_HULL: lambda frame: frame["energy_above_hull_ev_per_atom"],
    RankBy.FORMATION_ENTHALPY: lambda frame: frame["formation_enthalpy_ev_per_atom"],
    RankBy.UPPER_BOUND: lambda frame: (
        frame["energy_above_hull_ev_per_atom"] + Z90 * frame["energy_above_hull_std_ev_per_atom"]
    ),
    RankBy.LOWER_BOUND: lambda frame: (
        frame["energy_above_hull_ev_per_atom"] - Z90 * frame["energy_above_hull_std_ev_per_atom"]
    ),
}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    drawn=st.lists(
        st.fixed_dictionaries(
            {
                "prototype": st.sampled_from(["b", "a"]),
                "candidate": st.integers(0, 99),
                "formation_enthalpy_ev_per_atom": numbers,
                "rf_formation_enthalpy_ev_per_atom": numbers,
                "energy_above_hull_ev_per_atom": numbers,
                "energy_above_hull_std_ev_per_atom": st.sampled_from([0.1, 0.4, None]),
                "p_stable": st.sampled_from([0.0, 0.5, 1.0, None]),
                "rf_energy_above_hull_ev_per_atom": st.sampled_from([-0.5, 0.0, 0.5, None]),
            }
        ),
        min_size=1, max_size=30, unique_by=lambda row: (row["prototype"], row["candidate"]),
    ),
    rank_by=st.sampled_from(RankBy),
    random=st.randoms(use_true_random=False),
)  # fmt: skip
def test_ranks_are_those_of_pandas_whatever_the_shards(
    drawn: list[dict[str, Any]], rank_by: RankBy, random: Any, tmp_path: Path
) -> None:
    rows = random.sample(drawn, len(drawn))
    paths = []
    for number in range(0, len(rows), 7):
        paths.append(tmp_path / f"{number}.parquet")
        write_table(make_shard(rows[number : number + 7]), paths[-1], SHARD)
    ranking = rank_candidates(paths, ["b", "a"], rank_by)

    frame = pd.DataFrame(drawn).astype(
        dict.fromkeys([name for name in drawn[0] if name not in ("prototype", "candidate")], float)
    )
    order = rank_by
    if PRIMARY[order](frame).isna().all():
        order = RankBy.ENERGY_ABOVE_HULL
    forest = frame["rf_energy_above_hull_ev_per_atom"]
    if forest.isna().all() or order is RankBy.FORMATION_ENTHALPY:
        forest = frame["rf_formation_enthalpy_ev_per_atom"]
    frame["order"] = frame["prototype"].map({"b": 0, "a": 1})
    frame = frame.assign(forest=forest, first=PRIMARY[order](frame))
    if order is RankBy.FORMATION_ENTHALPY:
        keys = ["first", "order", "candidate"]
    else:
        keys = ["first", "energy_above_hull_ev_per_atom", "order", "candidate"]
    frame = frame.sort_values(["forest", "order", "candidate"], na_position="last")
    frame["rf_rank"] = np.where(frame["forest"].isna(), None, np.arange(1, len(frame) + 1))
    frame = frame.sort_values(keys, na_position="last")
    assert find_order(ranking, rank_by) is order
    assert ranking["rank"].to_pylist() == list(range(1, len(frame) + 1))
    for column in ("prototype", "candidate", "rf_rank", "formation_enthalpy_ev_per_atom"):
        assert ranking[column].to_pylist() == frame[column].to_list()


few = st.sampled_from([None, 0.0, 0.25, 0.5])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(
    drawn=st.lists(
        st.fixed_dictionaries(
            {
                "prototype": st.sampled_from(["b", "a"]),
                "candidate": st.integers(0, 99),
                "formation_enthalpy_ev_per_atom": numbers,
                "energy_above_hull_ev_per_atom": numbers,
                "energy_above_hull_std_ev_per_atom": few,
                "p_stable": few,
                "reason": st.sampled_from([None, None, None, "not finite"]),
            }
        ),
        max_size=40, unique_by=lambda row: (row["prototype"], row["candidate"]),
    ),
    rank_by=st.sampled_from(RankBy),
    top=st.integers(1, 12),
    size=st.integers(1, 9),
)  # fmt: skip
def test_the_best_of_shard_after_shard_are_the_first_of_all(
    drawn: list[dict[str, Any]], rank_by: RankBy, top: int, size: int, tmp_path: Path
) -> None:
    for row in drawn:
        if row["reason"]:
            row |= dict.fromkeys((key for key in row if key.endswith(("atom", "stable"))), None)
    paths = []
    for number, start in enumerate(range(0, len(drawn), size)):
        table = make_shard(drawn[start : start + size])
        if number % 3 == 1:
            table = add_role_d(table)
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(table, paths[-1])
    everything = rank_candidates(paths, ["b", "a"], rank_by)
    order = find_order(everything, rank_by)
    best = rank_candidates(paths, ["b", "a"], order, keep_top=top)
    assert best.drop_columns("rf_rank").equals(everything.slice(0, top).drop_columns("rf_rank"))
    assert len(best) == min(top, sum(row["reason"] is None for row in drawn))


def test_the_best_are_ranked_by_the_forest_among_themselves(tmp_path: Path) -> None:
    write_table(
        make_shard([
            {"candidate": number, "formation_enthalpy_ev_per_atom": float(number),
             "rf_formation_enthalpy_ev_per_atom": -float(number)}
            for number in range(9)
        ]),
        tmp_path / "shard.parquet", SHARD,
    )  # fmt: skip
    best = rank_candidates(
        [tmp_path / "shard.parquet"], [""], RankBy.FORMATION_ENTHALPY, keep_top=3
    )
    assert best["candidate"].to_pylist() == [0, 1, 2]
    assert best["rf_rank"].to_pylist() == [3, 2, 1]


@pytest.mark.parametrize("keep_top", [None, 5])
def test_no_shard_at_all_is_an_empty_ranking(keep_top: int | None) -> None:
    assert len(rank_candidates([], ["B2"], keep_top=keep_top)) == 0


@pytest.mark.parametrize("rank_by", RankBy)
@pytest.mark.parametrize(
    ("hull", "probability", "std"),
    [(False, False, False), (True, False, False), (True, False, True), (True, True, True)],
)
def test_the_order_before_any_candidate_is_the_order_afterwards(
    rank_by: RankBy, hull: bool, probability: bool, std: bool, tmp_path: Path
) -> None:
    row = {
        "energy_above_hull_ev_per_atom": 0.1 if hull else None,
        "energy_above_hull_std_ev_per_atom": 0.1 if std else None,
        "p_stable": 0.3 if probability else None,
    }
    before = resolve_order(rank_by, has_hull=hull, has_probability=probability, has_std=std)
    assert before is find_order(rank([row], tmp_path, rank_by), rank_by)


def test_the_bound_leaves_one_in_ten_of_a_normal_distribution() -> None:
    assert pytest.approx(Z90, abs=1e-4) == ONE_SIDED_90


def test_orders_differ_as_a_chemist_would_expect(tmp_path: Path) -> None:
    names = (
        "formula", "formation_enthalpy_ev_per_atom", "energy_above_hull_ev_per_atom",
        "energy_above_hull_std_ev_per_atom", "p_stable",
    )  # fmt: skip
    rows = [
        dict(zip(names, values, strict=True), candidate=number)
        for number, values in enumerate([
            ("exothermic", -4.0, 0.30, 0.05, 0.01),
            ("safe", -1.0, -0.02, 0.02, 0.999),
            ("lowest", -2.0, -0.10, 0.20, 0.80),
            ("uncertain", -2.0, 0.10, 0.50, 0.46),
        ])
    ]  # fmt: skip

    def best(rank_by: RankBy) -> str:
        return rank(rows, tmp_path, rank_by)["formula"][0].as_py()

    assert best(RankBy.P_STABLE) == "safe"
    assert best(RankBy.ENERGY_ABOVE_HULL) == "lowest"
    assert best(RankBy.FORMATION_ENTHALPY) == "exothermic"
    assert best(RankBy.UPPER_BOUND) == "safe"
    assert best(RankBy.LOWER_BOUND) == "uncertain"


@pytest.mark.parametrize("rank_by", RankBy)
def test_without_a_hull_the_order_is_that_of_enthalpies(rank_by: RankBy, tmp_path: Path) -> None:
    rows = [
        {"candidate": 0, "formation_enthalpy_ev_per_atom": -1.0},
        {"candidate": 1, "formation_enthalpy_ev_per_atom": -2.0},
    ]
    ranking = rank(rows, tmp_path, rank_by)
    assert find_order(ranking, rank_by) is RankBy.FORMATION_ENTHALPY
    assert ranking["candidate"].to_pylist() == [1, 0]


@pytest.mark.parametrize("rank_by", [RankBy.P_STABLE, RankBy.UPPER_BOUND, RankBy.LOWER_BOUND])
def test_without_a_calibration_the_hull_decides(rank_by: RankBy, tmp_path: Path) -> None:
    rows = [
        {"candidate": 0, "formation_enthalpy_ev_per_atom": -2.0},
        {"candidate": 1, "formation_enthalpy_ev_per_atom": -1.0},
    ]
    for row, energy in zip(rows, (0.3, 0.1), strict=True):
        row["energy_above_hull_ev_per_atom"] = energy
    ranking = rank(rows, tmp_path, rank_by)
    assert find_order(ranking, rank_by) is RankBy.ENERGY_ABOVE_HULL
    assert ranking["candidate"].to_pylist() == [1, 0]


def test_ranking_again_is_ranking_by_something_else(tmp_path: Path) -> None:
    rows = [
        {
            "candidate": number, "formation_enthalpy_ev_per_atom": -number,
            "energy_above_hull_ev_per_atom": float(number),
            "rf_formation_enthalpy_ev_per_atom": -number % 3,
            "rf_energy_above_hull_ev_per_atom": number % 4,
        }
        for number in range(9)
    ]  # fmt: skip
    by_hull = rank(rows, tmp_path, RankBy.ENERGY_ABOVE_HULL)
    by_enthalpy = rank(rows, tmp_path, RankBy.FORMATION_ENTHALPY)
    assert not by_hull.equals(by_enthalpy)
    assert rank_again(by_hull, [""], RankBy.FORMATION_ENTHALPY).equals(by_enthalpy)
    assert rank_again(by_enthalpy, [""], RankBy.ENERGY_ABOVE_HULL).equals(by_hull)


@pytest.mark.parametrize("rank_by", RankBy)
def test_nothing_to_rank_is_an_empty_ranking(rank_by: RankBy, tmp_path: Path) -> None:
    for rows in ([], [{"formation_enthalpy_ev_per_atom": None, "reason": "not finite"}]):
        ranking = rank(rows, tmp_path, rank_by)
        assert len(ranking) == 0
        assert find_order(ranking, rank_by) is rank_by


def test_what_only_shards_hold_stays_there(tmp_path: Path) -> None:
    names = rank([{}], tmp_path, RankBy.P_STABLE).column_names
    assert "member_1_ev_per_atom" not in names
    assert "error_scale_ev_per_atom" not in names
    assert "reason" not in names


def write_shards(tmp_path: Path) -> list[Path]:
    scored = [
        {
            "prototype": "B2", "candidate": number, "site_A": a, "site_B": b,
            "formation_enthalpy_ev_per_atom": float(number),
            "rf_formation_enthalpy_ev_per_atom": None, "known": number == 0,
        }
        for number, (a, b) in enumerate([("K", "F"), ("Li", "F"), ("Li", "Na"), ("Na", "Cl")])
    ]  # fmt: skip
    failed = {
        "prototype": "L1_0", "candidate": 5, "formation_enthalpy_std_ev_per_atom": None,
        "reason": "feature not finite",
    }  # fmt: skip
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    pq.write_table(make_shard(scored), paths[0])
    pq.write_table(add_role_d(make_shard([failed])), paths[1])
    return paths


def test_what_was_not_scored_is_not_ranked(tmp_path: Path) -> None:
    ranking = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    assert ranking["prototype"].to_pylist() == ["B2"] * 4


def test_without_a_forest_its_ranks_are_null(tmp_path: Path) -> None:
    ranking = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    assert ranking["rf_rank"].to_pylist() == [None] * 4


def test_further_roles_stand_after_the_first_three(tmp_path: Path) -> None:
    ranking = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    names = ranking.column_names
    assert names[names.index("site_X") + 1] == "site_D"


def test_selection_keeps_the_ranks_of_the_campaign(tmp_path: Path) -> None:
    ranking = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])

    def ranks(**wanted: Any) -> list[int]:
        return select_candidates(ranking, **wanted)["rank"].to_pylist()

    assert ranks() == [1, 2, 3, 4]
    assert ranks(top=2) == [1, 2]
    assert ranks(new=True) == [2, 3, 4]
    assert ranks(containing=["Na"]) == [3, 4]
    assert ranks(containing=["Na", "Li"]) == [3]
    assert ranks(prototypes=["B2"], containing=["F"], new=True) == [2]

    def require(*texts: str) -> list[int]:
        return ranks(requirements=[parse_requirement(text) for text in texts])

    assert require("formation_enthalpy_ev_per_atom >= 1") == [2, 3, 4]
    assert require("formation_enthalpy_ev_per_atom >= 1", "rank < 4") == [2, 3]
    assert require("charge_neutral") == [1, 2, 3, 4]  # null: the rule does not apply
    assert require("charge_neutral!") == []
    wanted = [parse_requirement("not known")]
    assert ranks(requirements=wanted, containing=["F"], top=1) == [2]


def test_selection_names_the_nearest(tmp_path: Path) -> None:
    ranking = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    with pytest.raises(ConfigurationError, match=r'no candidate of this campaign holds li.*"Li"'):
        select_candidates(ranking, containing=["li"])
    with pytest.raises(ConfigurationError, match="spinel; it has B2"):
        select_candidates(ranking, prototypes=["spinel"])
