from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screening.dataset import (
    Protocol,
    attach_features,
    read_formulas,
    read_training_set,
    reduce_formula,
    split_by_formula,
)
from screening.errors import ConfigurationError, InputDataError
from screening.feature_tables import Features
from screening.features.schema import FEATURES
from screening.features.table import Failure

CELL = [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.0]


def structures(path: Path, **columns: list[object]) -> Path:
    table = pd.DataFrame(
        {
            "id": ["a", "b", "c"],
            "lattice": [CELL] * 3,
            "species": [["Cs", "Cl"], ["Na", "Cl"], ["Cl", "Na"]],
            "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * 3,
            "formation_energy_per_atom": [-2.0, -2.1, -2.2],
        }
    )
    table.assign(**columns).to_parquet(path)
    return path


def feature_rows(path: Path, rows: int = 4) -> Path:
    values = np.arange(rows * len(FEATURES), dtype=float).reshape(rows, -1)
    table = pd.DataFrame(values, columns=list(FEATURES))
    table.insert(0, "id", [f"r{i}" for i in range(rows)])
    table["formula"] = ["Al2Cu2", "NaCl", "CsCl", "Fe2O3"][:rows]
    table["formation_energy_per_atom"] = np.linspace(-1, 0, rows)
    table.to_parquet(path)
    return path


def test_structures_become_rows(tmp_path: Path) -> None:
    data = read_training_set([structures(tmp_path / "d.parquet")], Protocol())
    assert data.ids == ("a", "b", "c")
    assert data.formulas == ("CsCl", "NaCl", "NaCl")
    assert data.target.tolist() == [-2.0, -2.1, -2.2]
    assert data.sources[0].rows == 3
    assert not data.dropped
    groups = data.formula_groups()
    assert groups[1] == groups[2] != groups[0]


def test_feature_tables_become_rows_with_reduced_formulas(tmp_path: Path) -> None:
    data = read_training_set([feature_rows(tmp_path / "f.parquet")], Protocol())
    assert data.features is not None
    assert data.features.shape == (4, 271)
    assert data.features[1, 0] == 271
    assert data.formulas[0] == "AlCu"


def test_excluded_formulas_go_and_are_counted(tmp_path: Path) -> None:
    protocol = Protocol(excluded_formulas=frozenset({"NaCl"}))
    data = read_training_set([structures(tmp_path / "d.parquet")], protocol)
    assert data.ids == ("a",)
    assert data.dropped == {"formula of the evaluation set": 2}


def test_doubtful_energies_go_and_are_counted(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", dE_matbench=[0.0, -0.03, np.nan])
    data = read_training_set([path], Protocol())
    assert data.ids == ("a", "c")
    assert sum(data.dropped.values()) == 1
    kept = read_training_set([path], Protocol(cross_check_tolerance=None))
    assert len(kept) == 3


def test_large_and_unreadable_structures_are_counted(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", species=[["Cs", "Cl"], ["Na", "Xx"], ["Cl", "Na"]])
    data = read_training_set([path], Protocol())
    assert data.ids == ("a", "c")
    assert data.dropped == {"unreadable structure": 1}
    with pytest.raises(
        InputDataError, match=r"no row is left to train on \(dropped: 1 unreadable structure, 2 "
    ):
        read_training_set([path], Protocol(max_sites=1))


def test_a_file_without_rows_and_a_file_that_is_missing_are_told_apart(tmp_path: Path) -> None:
    path = structures(tmp_path / "full.parquet")
    empty = tmp_path / "empty.parquet"
    pd.read_parquet(path).head(0).to_parquet(empty)
    with pytest.raises(InputDataError, match="the data have no rows"):
        read_training_set([empty], Protocol())
    with pytest.raises(
        InputDataError,
        match=r'cannot read .*ful\.parquet: there is no such file; did you mean "full\.parquet"',
    ):
        read_training_set([tmp_path / "ful.parquet"], Protocol())


def test_truth_values_are_no_target_of_numbers(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", metal=[True, False, True])
    with pytest.raises(InputDataError, match=r"'metal' holds truth values.*--loss cross_entropy"):
        read_training_set([path], Protocol(target="metal"))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_missing_energies_are_refused_or_counted(tmp_path: Path, bad: float) -> None:
    path = structures(tmp_path / "d.parquet", formation_energy_per_atom=[-2.0, bad, -1.0])
    with pytest.raises(InputDataError, match=r"1 row without a finite.*'b'.*drop-missing-energies"):
        read_training_set([path], Protocol())
    data = read_training_set([path], Protocol(drop_missing_energies=True))
    assert data.dropped == {"no energy": 1}


def test_a_misspelt_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match='did you mean "formation_energy_per_atom"'):
        read_training_set(
            [structures(tmp_path / "d.parquet")], Protocol(target="formation_enrgy_per_atom")
        )


def test_a_missing_feature_column_is_named(tmp_path: Path) -> None:
    path = feature_rows(tmp_path / "f.parquet")
    pd.read_parquet(path).drop(columns=FEATURES[3]).to_parquet(path)
    with pytest.raises(InputDataError, match="lattice"):
        read_training_set([path], Protocol())


def test_other_unusable_data(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet")
    with pytest.raises(InputDataError, match="more than once"):
        read_training_set([path, path], Protocol())
    with pytest.raises(InputDataError, match="some data files hold structures"):
        read_training_set([path, feature_rows(tmp_path / "f.parquet")], Protocol())
    with pytest.raises(InputDataError, match="cannot read"):
        read_training_set([tmp_path / "none.parquet"], Protocol())
    text = structures(tmp_path / "t.parquet", formation_energy_per_atom=["a", "b", "c"])
    with pytest.raises(InputDataError, match="does not hold numbers"):
        read_training_set([text], Protocol())
    with pytest.raises(InputDataError, match="no data file"):
        read_training_set([], Protocol())


def test_content_hash_sees_every_part_and_no_file_name(tmp_path: Path) -> None:
    first = read_training_set([structures(tmp_path / "d.parquet")], Protocol())
    same = read_training_set([structures(tmp_path / "e.parquet")], Protocol())
    assert first.content_hash() == same.content_hash()
    moved = [[0.0, 0, 0, 0.5, 0.5, 0.5]] * 2 + [[0.0, 0, 0, 0.5, 0.5, 0.51]]
    for column, values in {
        "formation_energy_per_atom": [-2.0, -2.1, -2.3],
        "frac_coords": moved,
        "id": ["a", "b", "d"],
    }.items():
        other = read_training_set(
            [structures(tmp_path / "o.parquet", **{column: values})], Protocol()
        )
        assert other.content_hash() != first.content_hash(), column


def test_features_join_by_id_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    data = read_training_set([structures(tmp_path / "d.parquet")], Protocol())
    values = np.zeros((2, len(FEATURES)))
    values[0] = 1
    failures = (Failure("a", "no cell"),)
    joined = attach_features(data, Features(("c", "x"), values, ("", ""), failures))
    assert joined.ids == ("c",)
    assert joined.features is not None
    assert joined.features[0, 0] == 1
    assert joined.dropped == {"could not be featurized": 1, "not in the feature table": 1}
    values[0, 5] = np.inf
    with pytest.raises(InputDataError, match="none of the rows has features"):
        attach_features(data, Features(("x", "y"), values, ("", ""), ()))


@given(
    st.lists(st.sampled_from("ABCDEFGHIJ"), min_size=1, max_size=60),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_split_keeps_formulas_together(formulas: list[str], fraction: float, seed: int) -> None:
    train, held = split_by_formula(formulas, fraction, seed)
    assert sorted([*train, *held]) == list(range(len(formulas)))
    assert not {formulas[i] for i in train} & {formulas[i] for i in held}
    assert len({formulas[i] for i in held}) == round(fraction * len(set(formulas)))


def test_split_refuses_impossible_shares() -> None:
    with pytest.raises(ConfigurationError, match="at least 0 and below 1"):
        split_by_formula(["A"], 1.0, 0)


@pytest.mark.parametrize("name", ["f.parquet", "f.csv", "f.txt"])
def test_formulas_are_reduced_from_any_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    table = pd.DataFrame({"formula": ["Al2Cu2", "NaCl"]})
    if name.endswith("parquet"):
        table.to_parquet(path)
    elif name.endswith("csv"):
        table.to_csv(path)
    else:
        path.write_text("Al2Cu2\n\nNaCl\n")
    assert read_formulas(path) == {"AlCu", "NaCl"}


def test_formulas_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_text("NaCl\nQqZz\n")
    with pytest.raises(InputDataError, match=r"'QqZz'.*f\.txt.*not a chemical formula"):
        read_formulas(tmp_path / "f.txt")
    with pytest.raises(InputDataError, match="cannot read"):
        read_formulas(tmp_path / "none.txt")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputDataError, match="cannot read formulas"):
        read_formulas(tmp_path / "empty.csv")
    pd.DataFrame({"formulas": ["NaCl"]}).to_csv(tmp_path / "f.csv")
    with pytest.raises(InputDataError, match='did you mean "formulas"'):
        read_formulas(tmp_path / "f.csv")


def test_reduced_formulas_are_pymatgens() -> None:
    assert reduce_formula("O6Ti2Sr2") == "SrTiO3"


def test_the_protocol_on_the_real_data(data_dir: Path) -> None:
    excluded = read_formulas(data_dir / "eval_prototypes.parquet")
    path = data_dir / "mp_icsd-03.parquet"
    data = read_training_set([path], Protocol(excluded_formulas=excluded))
    assert not excluded & set(data.formulas)
    assert len(data) + sum(data.dropped.values()) == data.sources[0].rows
    table = pd.read_parquet(path, columns=["dE_matbench"])
    doubtful = int((table["dE_matbench"].abs() > 0.02).sum())
    assert doubtful in data.dropped.values()


def test_weights_follow_their_rows(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", w=[0.0, 2.0, 0.5])
    protocol = Protocol(weights="w", excluded_formulas=frozenset({"CsCl"}))
    data = read_training_set([path, feature_free(path, tmp_path)], protocol)
    assert data.weights is not None
    assert data.weights.tolist() == [2.0, 0.5, 2.0, 0.5]
    assert data.select(np.array([3, 0])).weights.tolist() == [0.5, 2.0]  # type: ignore[union-attr]
    plain = read_training_set([path], Protocol())
    assert plain.weights is None
    weighted = read_training_set([path], Protocol(weights="w"))
    assert weighted.content_hash() != plain.content_hash()


def feature_free(path: Path, folder: Path) -> Path:
    """The same structures under other ids."""
    table = pd.read_parquet(path)
    table["id"] = [f"{name}-again" for name in table["id"]]
    table.to_parquet(folder / "again.parquet")
    return folder / "again.parquet"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0, 1.0], r"no sample weight, the first is 'b' with -1"),
        ([1.0, float("nan"), float("inf")], "2 rows have a 'w'"),
        ([0.0, 0.0, 0.0], "is 0 in all 3 rows"),
        (["much", "more", "most"], "does not hold numbers"),
    ],
)
def test_weights_that_are_none(tmp_path: Path, weights: list[object], message: str) -> None:
    with pytest.raises(InputDataError, match=message):
        read_training_set([structures(tmp_path / "d.parquet", w=weights)], Protocol(weights="w"))


def test_a_constant_target_is_nothing_to_learn(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", formation_energy_per_atom=[-1.5, -1.5, -1.5])
    with pytest.raises(InputDataError, match=r"is -1\.5 in all 3 rows"):
        read_training_set([path], Protocol())


def test_structure_types_follow_their_rows(tmp_path: Path) -> None:
    path = structures(tmp_path / "d.parquet", structure_type=["B2", "", None])
    plain = feature_free(structures(tmp_path / "plain.parquet"), tmp_path)
    protocol = Protocol(excluded_formulas=frozenset({"CsCl"}))
    data = read_training_set([path], Protocol())
    assert data.structure_types == ("AB_cP2_221_a_b", "", None)
    assert data.select(np.array([2, 0])).structure_types == (None, "AB_cP2_221_a_b")
    assert read_training_set([path, plain], protocol).structure_types == ("", None, None, None)
    assert read_training_set([plain], Protocol()).structure_types is None
    misspelt = structures(tmp_path / "m.parquet", structure_type=["B2", "perovskit", ""])
    with pytest.raises(InputDataError, match=r"m\.parquet.*'perovskit'.*did you mean"):
        read_training_set([misspelt], Protocol())


def test_classes_of_several_files_are_numbered_together(tmp_path: Path) -> None:
    first = structures(tmp_path / "a.parquet", kind=["salt", "salt", "metal"])
    second = structures(tmp_path / "b.parquet", id=["d", "e", "f"], kind=["gas", None, "salt"])
    protocol = Protocol(target="kind", classes=True, drop_missing_energies=True)
    data = read_training_set([first, second], protocol)
    assert data.classes == ("gas", "metal", "salt")
    assert data.target.tolist() == [2, 2, 1, 0, 2]
    assert data.dropped == {"no label": 1}
    assert data.select(np.array([3])).classes == data.classes
    without = replace(protocol, excluded_formulas=frozenset({"CsCl"}))
    left = read_training_set([first, second], without)
    assert left.classes == ("metal", "salt")
    assert left.target.tolist() == [1, 0, 1]


def test_a_number_is_cut_into_classes(tmp_path: Path) -> None:
    path = structures(tmp_path / "a.parquet", gap=[0.0, 0.5, np.nan])
    protocol = Protocol(target="gap", classes=True, split_at=0.1, drop_missing_energies=True)
    data = read_training_set([path], protocol)
    assert data.classes == ("at most 0.1", "above 0.1")
    assert data.target.tolist() == [0, 1]
    other = read_training_set([path], replace(protocol, split_at=0.2))
    assert other.target.tolist() == data.target.tolist()
    assert other.content_hash() != data.content_hash()
    with pytest.raises(InputDataError, match="1 row without a finite 'gap', the first is 'c'"):
        read_training_set([path], replace(protocol, drop_missing_energies=False))
    with pytest.raises(InputDataError, match="'gap' is 'at most 9' in all 2 rows"):
        read_training_set([path], replace(protocol, split_at=9.0))
