from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from screening.folder import RunFolder
from screening.rank import rank_again
from screening.result_document import describe_result, list_rows, write_document
from screening.settings import RankBy

Program = Callable[..., Result]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def parse(text: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return document


def test_rows_have_the_digits_of_the_csv_and_null_for_nothing() -> None:
    table = pa.table(
        {
            "formula": pa.array(["MgO", None]),
            "single": pa.array([0.1, float("nan")], pa.float32()),
            "double": pa.array([0.1, None], pa.float64()),
            "count": pa.array([1, None], pa.int64()),
            "known": pa.array([True, False]),
        }
    )
    assert list_rows(table) == [
        {"formula": "MgO", "single": 0.1, "double": 0.1, "count": 1, "known": True},
        {"formula": None, "single": None, "double": None, "count": None, "known": False},
    ]
    assert list_rows(table.slice(0, 0)) == []


def test_a_document_is_strict_and_steers_no_terminal() -> None:
    steering = "\x1b\x7f\x9b\u202e"
    written = write_document({"a": steering})
    assert parse(written) == {"a": steering}
    assert written.replace("\n", "").isascii()
    assert written.replace("\n", "").isprintable()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_document({"a": float("nan")})


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from screening.cli import app

    folder = tmp_path_factory.mktemp("runs") / "first"
    call = ["run", "--prototype", "B2", "--elements", "Li,Na,K,F,Cl", "--model", str(tiny_model)]
    call += ["--device", "cpu", "--workers", "0", "--out", str(folder), "--quiet"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    return folder


def test_a_document_says_what_the_files_say(folder: Path) -> None:
    run = RunFolder.open(folder)
    ranking = run.read_ranking()
    order = RankBy(run.manifest["ranked_by"])
    document = describe_result(run, ranking, ranking.slice(0, 3), order, ["look out"])
    assert parse(write_document(document)) == document
    assert document["folder"] == str(folder.resolve())
    assert document["state"] == "complete"
    assert document["counts"]["scored"] == document["ranked"] == len(ranking) == 10
    assert document["ranked_by"] == str(order)
    assert "phases of 20 structure types" in document["hull"]["against"]
    assert document["warnings"][0] == "look out"
    assert any("discoveries" in each for each in document["warnings"])
    assert document["comparison"] == run.manifest["comparison"]
    written = pd.read_csv(folder / "ranking.csv", nrows=3)
    assert [row["formula"] for row in document["ranking"]] == written["formula"].tolist()
    for column in ("energy_above_hull_ev_per_atom", "formation_enthalpy_ev_per_atom"):
        assert [row[column] for row in document["ranking"]] == written[column].tolist()


def test_another_order_is_said(folder: Path) -> None:
    run = RunFolder.open(folder)
    again = rank_again(run.read_ranking(), run.prototypes, RankBy.FORMATION_ENTHALPY)
    document = describe_result(run, again, again.slice(0, 2), RankBy.FORMATION_ENTHALPY)
    assert document["ranked_by"] == "formation_enthalpy"
    energies = [row["formation_enthalpy_ev_per_atom"] for row in document["ranking"]]
    assert energies == sorted(energies)
    places = {(row["formula"], row["rank"], row["rf_rank"]) for row in again.to_pylist()}
    compared = document["comparison"]["disagreements"]
    assert {(row["formula"], row["rank"], row["rf_rank"]) for row in compared} <= places
    assert compared != run.manifest["comparison"]["disagreements"]
    assert parse(write_document(document)) == document


def test_a_run_gives_one_document_on_stdout_and_nothing_beside_it(
    screening: Program, folder: Path
) -> None:
    done = screening("run", folder / "campaign.toml", "--json", "--quiet", "--top", "2")
    assert done.exit_code == 0, done.output
    assert len(parse(done.stdout)["ranking"]) == 2
    assert done.stderr == ""


def test_shown_rows_stand_beside_what_they_were_chosen_from(
    screening: Program, tiny_model: Path, tmp_path: Path
) -> None:
    call = ["--prototype", "B2", "--elements", "Li,Na,F", "--model", tiny_model, "--device", "cpu"]
    call += ["--workers", "0", "--competitors", "none", "--out", tmp_path / "a", "--quiet"]
    assert screening("run", *call).exit_code == 0
    shown = screening("show", tmp_path / "a", "--with", "F", "--rank-by", "p_stable", "--json")
    document = parse(shown.stdout)
    assert (len(document["ranking"]), document["ranked"]) == (2, 3)
    assert document["ranked_by"] == "formation_enthalpy"  # there is no hull
