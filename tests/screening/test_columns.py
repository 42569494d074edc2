from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from screening.columns import (
    FAILED_STRUCTURES,
    PREDICTIONS,
    RANKING,
    SHARD,
    TABLES,
    ColumnError,
    check_table,
    column_reference,
    write_table,
    write_tables,
    written_atomically,
)
from screening.errors import OutputError


def failures(**changes: pa.Array) -> pa.Table:
    columns = {"id": pa.array(["a"]), "reason": pa.array(["b"])} | changes
    return pa.table(columns)


def test_ranking_has_the_promised_columns() -> None:
    promised = {
        "prototype", "formula", "site_A", "site_B", "site_X", "formation_enthalpy_ev_per_atom",
        "formation_enthalpy_std_ev_per_atom", "rf_formation_enthalpy_ev_per_atom", "rank",
        "rf_rank", "known",
    }  # fmt: skip
    assert promised <= {column.name for column in RANKING.columns if column.required}


def test_energies_carry_their_unit() -> None:
    for kind in TABLES:
        for column in kind.columns:
            assert column.name.endswith("_ev_per_atom") == (column.unit == "eV/atom")


def test_further_sites_belong_to_the_registry() -> None:
    for kind in (RANKING, SHARD):
        column = kind.column("site_D")
        assert column is not None
        assert not column.required
        assert kind.column("site_X") is not column
    assert PREDICTIONS.column("site_D") is None


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        (failures().drop_columns("reason"), 'column "reason" is missing'),
        (failures(more=pa.array(["c"])), 'column "more" is not in'),
        (failures(id=pa.array([1])), "is int64, expected string"),
        (failures(id=pa.array([None], pa.string())), "has nulls"),
        (failures().select(["reason", "id"]), '"id" is out of order'),
    ],
)
def test_wrong_tables_are_refused(table: pa.Table, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match=complaint):
        write_table(table, tmp_path / "x.parquet", FAILED_STRUCTURES)
    assert not list(tmp_path.iterdir())


def test_dictionaries_count_as_their_values() -> None:
    check_table(failures(id=pa.array(["a"]).dictionary_encode()), FAILED_STRUCTURES)


def test_tables_come_back_as_written(tmp_path: Path) -> None:
    write_table(failures(), tmp_path / "x.parquet", FAILED_STRUCTURES)
    assert pq.read_table(tmp_path / "x.parquet").equals(failures())
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_tables_one_after_the_other_become_one_file(tmp_path: Path) -> None:
    path = tmp_path / "failures.parquet"
    parts = [pa.table({"id": [name], "reason": ["x"]}) for name in "abc"]
    assert write_tables(iter(parts), path, FAILED_STRUCTURES) == 3
    assert pq.read_table(path).equals(pa.concat_tables(parts))
    wrong = pa.table({"id": ["d"]})
    with pytest.raises(ColumnError, match='"reason" is missing'):
        write_tables([parts[0], wrong], path, FAILED_STRUCTURES)
    assert pq.read_table(path).equals(pa.concat_tables(parts))
    assert [each.name for each in tmp_path.iterdir()] == ["failures.parquet"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), written_atomically(path) as temporary:
        temporary.write_text("new and unfin")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    with (
        pytest.raises(OutputError, match=r"x\.txt: the disk is full; free some space"),
        written_atomically(path),
        open("/dev/full", "w") as full,
    ):
        full.write("anything")
    assert not path.exists()


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there.txt"
    with pytest.raises(OutputError, match="cannot write"), written_atomically(path) as temporary:
        temporary.write_text("x")


def test_reference_has_every_column_with_its_sentence() -> None:
    text = column_reference()
    for kind in TABLES:
        assert kind.sentence in text
        for column in kind.columns:
            assert f"| `{column.name}` | {column.dtype} | {column.unit} | {column.sentence}" in text
