from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from screening.errors import ConfigurationError
from screening.rank import rank_candidates, select_candidates


def make_shard(rows: list[dict[str, Any]]) -> pa.Table:
    blank: dict[str, Any] = {
        "formula": "AB", "site_A": "K", "site_B": "F", "site_X": None,
        "formation_enthalpy_std_ev_per_atom": 0.1, "known": False,
        "unseen_elements": "", "imputed_elements": None, "reason": None,
    }  # fmt: skip
    text, real = pa.string(), pa.float64()
    schema = pa.schema(
        {
            "prototype": text, "candidate": pa.int64(), "formula": text, "site_A": text,
            "site_B": text, "site_X": text, "formation_enthalpy_ev_per_atom": real,
            "formation_enthalpy_std_ev_per_atom": real,
            "formation_enthalpy_low_ev_per_atom": real,
            "formation_enthalpy_high_ev_per_atom": real,
            "rf_formation_enthalpy_ev_per_atom": real, "known": pa.bool_(),
            "applicability_distance": real,
            "unseen_elements": text, "imputed_elements": text, "reason": text,
        }
    )  # fmt: skip
    return pa.Table.from_pylist([blank | row for row in rows], schema=schema)


energies = st.sampled_from([-1.0, -0.5, 0.0, 0.5])


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(["b", "a"]), st.integers(0, 99), energies, energies),
        min_size=1, max_size=30, unique_by=lambda row: row[:2],
    ),
    random=st.randoms(use_true_random=False),
)  # fmt: skip
def test_ranks_are_those_of_pandas_whatever_the_shards(
    drawn: list[tuple[str, int, float, float]], random: Any, tmp_path: Path
) -> None:
    rows = [
        {
            "prototype": prototype, "candidate": candidate,
            "formation_enthalpy_ev_per_atom": mean, "rf_formation_enthalpy_ev_per_atom": forest,
        }
        for prototype, candidate, mean, forest in drawn
    ]  # fmt: skip
    random.shuffle(rows)
    paths = []
    for number in range(0, len(rows), 7):
        paths.append(tmp_path / f"{number}.parquet")
        pq.write_table(make_shard(rows[number : number + 7]), paths[-1])
    ranking, failures = rank_candidates(paths, ["b", "a"])

    frame = pd.DataFrame(rows)
    frame["order"] = frame["prototype"].map({"b": 0, "a": 1})
    ties = ["order", "candidate"]
    frame = frame.sort_values(["rf_formation_enthalpy_ev_per_atom", *ties])
    frame["rf_rank"] = np.arange(1, len(frame) + 1)
    frame = frame.sort_values(["formation_enthalpy_ev_per_atom", *ties])
    assert ranking["rank"].to_pylist() == list(range(1, len(frame) + 1))
    for column in ("prototype", "candidate", "rf_rank", "formation_enthalpy_ev_per_atom"):
        assert ranking[column].to_pylist() == frame[column].to_list()
    assert len(failures) == 0


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
    quaternary = make_shard([failed]).append_column("site_D", pa.array(["Fe"]))
    pq.write_table(quaternary, paths[1])
    return paths


def test_failures_stand_apart_with_their_reason(tmp_path: Path) -> None:
    ranking, failures = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    assert len(ranking) == 4
    (failure,) = failures.to_pylist()
    assert failure["candidate"] == 5
    assert failure["reason"] == "feature not finite"
    assert failure["site_D"] == "Fe"


def test_without_a_forest_its_ranks_are_null(tmp_path: Path) -> None:
    ranking, _ = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    assert ranking["rf_rank"].to_pylist() == [None] * 4


def test_further_roles_stand_after_the_first_three(tmp_path: Path) -> None:
    ranking, _ = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    names = ranking.column_names
    assert names[names.index("site_X") + 1] == "site_D"


def test_selection_keeps_the_ranks_of_the_campaign(tmp_path: Path) -> None:
    ranking, _ = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])

    def ranks(**wanted: Any) -> list[int]:
        return select_candidates(ranking, **wanted)["rank"].to_pylist()

    assert ranks() == [1, 2, 3, 4]
    assert ranks(top=2) == [1, 2]
    assert ranks(new=True) == [2, 3, 4]
    assert ranks(containing=["Na"]) == [3, 4]
    assert ranks(containing=["Na", "Li"]) == [3]
    assert ranks(prototypes=["B2"], containing=["F"], new=True) == [2]


def test_selection_names_the_nearest(tmp_path: Path) -> None:
    ranking, _ = rank_candidates(write_shards(tmp_path), ["B2", "L1_0"])
    with pytest.raises(ConfigurationError, match=r'no candidate of this campaign holds li.*"Li"'):
        select_candidates(ranking, containing=["li"])
    with pytest.raises(ConfigurationError, match="spinel; it has B2"):
        select_candidates(ranking, prototypes=["spinel"])
