from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screening import feature_tables
from screening.crystal import Crystal
from screening.errors import InputDataError, OutputError
from screening.feature_tables import (
    STRUCTURE_OVERHEAD,
    FeatureChunk,
    balance_chunks,
    featurize_chunk,
    featurize_structures,
    read_features,
    write_features,
)
from screening.features import featurize_crystals
from screening.features.schema import FEATURES
from screening.features.table import Failure


def caesium_chloride(name: str, a: int = 55, b: int = 17) -> Crystal:
    return Crystal(
        name,
        4.1 * np.eye(3),
        np.array([a, b], dtype=np.int64),
        np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]),
    )


CRYSTALS = [
    caesium_chloride("a"),
    caesium_chloride("helium", 2, 17),
    caesium_chloride("too heavy", 110, 17),
    caesium_chloride("b", 26, 13),
]


@given(st.lists(st.integers(1, 700), max_size=80), st.integers(10, 3000))
def test_chunks_hold_every_row_once_and_little_more_than_asked(
    sites: list[int], limit: int
) -> None:
    chunks = balance_chunks(sites, limit)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(len(sites)))
    for chunk in chunks:
        cost = sum(sites[row] + STRUCTURE_OVERHEAD for row in chunk)
        assert cost <= limit or len(chunk) == 1
    firsts = [sites[chunk[0]] for chunk in chunks]
    assert firsts == sorted(firsts, reverse=True)


def test_rows_in_are_rows_out_and_failures_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(feature_tables.SITES_PER_CHUNK, "fast", 7)
    features = featurize_structures(CRYSTALS, tmp_path / "parts")
    assert features.ids == ("a", "helium", "b")
    assert features.imputed == ("", "He", "")
    assert [failure.id for failure in features.failures] == ["too heavy"]
    assert len(list((tmp_path / "parts").iterdir())) == 4
    expected = featurize_crystals([CRYSTALS[0], CRYSTALS[3]]).values
    np.testing.assert_array_equal(features.values[[0, 2]], expected)


def test_parts_on_disk_are_not_computed_again(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    first = featurize_structures(CRYSTALS, tmp_path)
    again = featurize_structures(
        CRYSTALS,
        tmp_path,
        run=lambda function, chunks: [pytest.fail("computed again") for _ in chunks],
        progress=lambda *state: told.append(state),
    )
    np.testing.assert_array_equal(first.values, again.values)
    assert told == [(8, 8, "4 of 4 structures")]
    moved = [caesium_chloride("a", 55, 35), *CRYSTALS[1:]]
    changed = featurize_structures(moved, tmp_path)
    assert not np.array_equal(changed.values[0], first.values[0])


def test_tables_round_trip_with_failures_and_imputed_elements(tmp_path: Path) -> None:
    features = featurize_structures(CRYSTALS, tmp_path / "parts")
    write_features(features, tmp_path / "x.parquet", [Failure("bad.cif", "unreadable")])
    table = pd.read_parquet(tmp_path / "x.parquet")
    assert list(table.columns) == ["id", *FEATURES]
    assert len(table) == 3
    failures = pd.read_parquet(tmp_path / "x.failures.parquet")
    assert failures["id"].tolist() == ["bad.cif", "too heavy"]
    imputed = pd.read_parquet(tmp_path / "x.imputed.parquet")
    assert imputed.to_dict("records") == [{"id": "helium", "imputed_elements": "He"}]
    read = read_features(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read.values, features.values)
    assert read.ids == features.ids
    assert [failure.id for failure in read.failures] == ["bad.cif", "too heavy"]


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_features(featurize_structures(CRYSTALS[:1], tmp_path / "p"), tmp_path / "x.parquet")
    table = pd.read_parquet(tmp_path / "x.parquet")
    table.rename(columns={FEATURES[7]: FEATURES[7] + "s"}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputDataError, match=f'"{FEATURES[7]}"; did you mean "{FEATURES[7]}s"'):
        read_features(tmp_path / "x.parquet")


def test_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    write_features(featurize_structures(CRYSTALS[:1], tmp_path / "p"), tmp_path / "x.parquet")
    table = pd.read_parquet(tmp_path / "x.parquet")
    changed = table.assign(**{FEATURES[0]: 5.0})
    pd.concat([table, changed]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputDataError, match=r"has 2 rows of the id"):
        read_features(tmp_path / "x.parquet")


def test_unknown_engines_and_unwritable_folders(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match='did you mean "matminer"'):
        featurize_structures(CRYSTALS, tmp_path, engine="matminr")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not a folder"):
        featurize_structures(CRYSTALS, tmp_path / "file" / "parts")
    with pytest.raises(OutputError):
        featurize_chunk(FeatureChunk((CRYSTALS[0],), "fast", tmp_path / "none" / "x.parquet"))
