from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from screening.benchmark import data as benchmark_data_module
from screening.benchmark.data import (
    DATA_SETS,
    STRUCTURES,
    UNITS,
    DataSource,
    DataStore,
    draw_rows,
    find_source,
    prepare_arrays,
    split_rows,
)
from screening.errors import InputDataError
from screening.feature_tables import featurize_structures, write_features
from screening.features.schema import COMPOSITION_FEATURES, FEATURES
from screening.structures import read_structure_table


def evaluation_formulas(folder: Path) -> set[str]:
    from pymatgen.core import Composition

    table = pd.read_parquet(folder / "eval_prototypes.parquet")
    return {Composition(name).reduced_formula for name in table["formula"]}


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_hold_no_formula_of_the_evaluation_set(
    name: str, store: DataStore, benchmark_data: Path
) -> None:
    data = store.data(name)
    assert len(data) > 50
    assert not set(data.formulas.tolist()) & evaluation_formulas(benchmark_data)
    assert np.isfinite(data.features).all()
    columns = COMPOSITION_FEATURES if name in ("mp-c", "oqmd-c") else FEATURES
    assert data.feature_names == columns and data.features.shape == (len(data), len(columns))
    assert set(data.targets) <= set(UNITS)


def test_rows_that_are_left_out_are_counted(store: DataStore, benchmark_data: Path) -> None:
    files = [path for path in benchmark_data.glob("mp_*.parquet")]
    rows = sum(len(pd.read_parquet(path)) for path in files)
    data = store.data("oqmd-sc")
    assert len(data) + sum(data.dropped.values()) == rows
    assert any("independent table" in reason for reason in data.dropped)
    compositions = store.data("oqmd-c")
    given_rows = len(pd.read_parquet(benchmark_data / "oqmd_compositions.parquet"))
    assert len(compositions) + sum(compositions.dropped.values()) == given_rows
    assert compositions.dropped["no energy, or one beyond 6 eV/atom"] == 1


def test_targets_are_what_pymatgen_calculates(store: DataStore, benchmark_data: Path) -> None:
    data = store.data("mp-c")
    crystals, _ = read_structure_table(benchmark_data / "mp_icsd-00.parquet")
    crystal = next(each for each in crystals if each.id in data.ids)
    row = data.ids.tolist().index(crystal.id)
    structure = crystal.to_structure()
    assert data.targets["density"][row] == pytest.approx(float(structure.density), rel=1e-6)
    assert data.targets["volume_per_atom"][row] == pytest.approx(structure.volume / len(structure))
    table = pd.read_parquet(benchmark_data / "mp_icsd-00.parquet").set_index("id")
    above = float(table.loc[crystal.id, "e_above_hull_2018"])
    assert data.targets["e_above_hull"][row] == pytest.approx(above, nan_ok=True)
    filled = data.with_target("e_above_hull")
    assert 0 < len(filled) < len(data)
    assert np.isfinite(filled.targets["e_above_hull"]).all()


def test_what_composition_cannot_tell_is_not_asked_of_it(
    store: DataStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.data("oqmd-sc")
    volumes = whole.targets["volume_per_atom"]
    monkeypatch.setattr(benchmark_data_module, "LARGEST_VOLUME", float(np.median(volumes)))
    left = DataStore(store.arrays).data("mp-c")
    assert left.ids.tolist() == whole.ids[volumes <= np.median(volumes)].tolist()
    assert sum(left.dropped.values()) - sum(whole.dropped.values()) == len(whole) - len(left) > 0


def test_the_sets_made_of_structures_hold_the_same_formulas_out(store: DataStore) -> None:
    whole, known = store.data("oqmd-sc"), store.data("icsd")
    held = set(whole.formulas[whole.held_out].tolist())
    assert known.known.all() and len(known) == whole.known.sum()
    assert set(known.formulas[known.held_out].tolist()) <= held
    assert not set(known.formulas[~known.held_out].tolist()) & held
    assert len(held) == round(0.1 * len(set(whole.formulas.tolist())))


@pytest.mark.parametrize("holdout", ["formulas", "prototype:ABC3_5_221_a_b_c", "element:Fe"])
def test_no_formula_is_on_both_sides_of_a_split(holdout: str, store: DataStore) -> None:
    data = store.data("oqmd-sc")
    train, test = split_rows(data, holdout)
    assert len(train) > 10 and len(test) > 5
    assert not set(data.formulas[train].tolist()) & set(data.formulas[test].tolist())
    kind, _, value = holdout.partition(":")
    if kind == "prototype":
        assert set(data.prototypes[test].tolist()) == {value}
        assert value not in data.prototypes[train]
    if kind == "element":
        atoms = [set(re.findall("[A-Z][a-z]?", name)) for name in data.formulas.tolist()]
        assert all(value in atoms[row] for row in test)
        assert not any(value in atoms[row] for row in train)


def test_an_element_is_no_other_whose_symbol_begins_alike(store: DataStore) -> None:
    data = store.data("oqmd-sc")
    with_sodium = data.formulas[data.containing("Na")].tolist()
    with_nitrogen = data.formulas[data.containing("N")].tolist()
    assert with_sodium and not with_nitrogen  # the perovskites are oxides, fluorides and sulfides


@pytest.mark.parametrize("holdout", ["prototype:none", "element:Og", "formula", "elements:O"])
def test_a_holdout_without_rows_or_meaning_is_refused(holdout: str, store: DataStore) -> None:
    with pytest.raises(InputDataError, match="holdout"):
        split_rows(store.data("oqmd-sc"), holdout)


@given(
    rows=st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=200).map(sorted),
    few=st.integers(0, 100),
    more=st.integers(0, 300),
)
@settings(max_examples=50, deadline=None)
def test_fewer_rows_are_a_part_of_more(rows: list[int], few: int, more: int) -> None:
    every = np.array(rows)
    small, large = draw_rows(every, few), draw_rows(every, few + more)
    assert len(small) == min(few, len(rows)) and set(small.tolist()) <= set(large.tolist())
    assert large.tolist() == sorted(large.tolist()) and set(large.tolist()) <= set(rows)
    assert (draw_rows(every, None) == every).all()


def test_given_features_are_taken_and_missing_ones_computed(
    source: DataSource, store: DataStore, benchmark_data: Path, tmp_path: Path
) -> None:
    crystals, _ = read_structure_table(benchmark_data / "mp_icsd-00.parquet")
    features = featurize_structures(crystals[:10], tmp_path / "parts")
    marked = replace(features, values=features.values + 1000)
    write_features(marked, tmp_path / "some.parquet")
    given_some = replace(source, cache=tmp_path, features=(tmp_path / "some.parquet",))
    other = DataStore({STRUCTURES: prepare_arrays(STRUCTURES, given_some)}).data("oqmd-sc")
    data = store.data("oqmd-sc")
    assert (other.ids == data.ids).all() and other.sha256 != data.sha256
    changed = np.isin(data.ids, features.ids)
    assert 0 < changed.sum() < len(data)
    assert np.allclose(other.features[changed], data.features[changed] + 1000, rtol=1e-4)
    assert (other.features[~changed] == data.features[~changed]).all()


def test_arrays_are_made_once_and_again_when_a_file_changes(
    benchmark_data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    folder = tmp_path / "data"
    folder.mkdir()
    for file in benchmark_data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    source = DataSource(folder, tmp_path / "cache", note=said.append)
    first = prepare_arrays("compositions", source)
    count = len(said)
    written = first.stat().st_mtime_ns
    assert prepare_arrays("compositions", source) == first
    assert len(said) == count and first.stat().st_mtime_ns == written
    table = pd.read_parquet(folder / "oqmd_compositions.parquet")
    table[:-20].to_parquet(folder / "oqmd_compositions.parquet")
    second = prepare_arrays("compositions", source)
    assert second != first
    digests = {DataStore({"compositions": path}).digest("compositions") for path in (first, second)}
    assert len(digests) == 2


def test_what_is_missing_is_named(tmp_path: Path, source: DataSource, store: DataStore) -> None:
    with pytest.raises(InputDataError, match=r"mp_icsd\*\.parquet.*--data"):
        prepare_arrays("structures", DataSource(tmp_path, tmp_path))
    with pytest.raises(InputDataError, match="no feature table"):
        prepare_arrays("structures", replace(source, features=(tmp_path / "none.parquet",)))
    with pytest.raises(InputDataError, match='did you mean "icsd"'):
        find_source("icds")
    with pytest.raises(InputDataError, match="no target 'gap'"):
        store.data("icsd").with_target("gap")
    with pytest.raises(InputDataError, match="no target 'density'"):
        store.data("oqmd-c").with_target("density")
    damaged = tmp_path / "structures-0.npz"
    damaged.write_bytes(prepare_arrays("structures", source).read_bytes()[:5000])
    with pytest.raises(InputDataError, match="damaged"):
        DataStore({"structures": damaged}).data("icsd")


def test_the_evaluation_set_has_both_geometries_and_its_parts(
    store: DataStore, benchmark_data: Path
) -> None:
    evaluation = store.evaluation()
    table = pd.read_parquet(benchmark_data / "eval_prototypes.parquet")
    assert len(evaluation.target) == len(table) == len(evaluation.groups["all"])
    assert set(evaluation.features) == {"relaxed", "ideal"}
    for values in evaluation.features.values():
        assert values.shape == (len(table), len(FEATURES)) and np.isfinite(values).all()
    strict, kinds = table["strict"].to_numpy(), table["kind"].to_numpy()
    for kind in set(kinds.tolist()):
        assert evaluation.groups[kind].tolist() == np.flatnonzero(kinds == kind).tolist()
    assert evaluation.groups["all/strict"].tolist() == np.flatnonzero(strict).tolist()
    legacy = table["scheme"].str.startswith("MP-legacy").to_numpy()
    assert evaluation.groups["all/MP-legacy"].tolist() == np.flatnonzero(legacy).tolist()


def test_the_published_data_are_what_the_benchmarks_expect(data_dir: Path) -> None:
    from screening.benchmark.data import LARGEST_VOLUME, PROTOTYPES

    names = ["id", "formula", "proto", "provenance", "dE_matbench", "volume", "nsites"]
    paths = [*data_dir.glob("mp_icsd*.parquet"), *data_dir.glob("mp_virtual*.parquet")]
    table = pd.concat([pd.read_parquet(path, columns=names) for path in paths])
    assert len(table) == 89_738
    excluded = set(pd.read_parquet(data_dir / "eval_prototypes.parquet")["formula"])
    used = table[~(table["dE_matbench"].abs() > 0.02) & ~table["formula"].isin(excluded)]
    blown_up = used["volume"] / used["nsites"] > LARGEST_VOLUME
    assert 1_700 < blown_up.sum() < 1_800
    assert "icsd" not in set(used.loc[blown_up, "provenance"])
    assert tuple(used[~blown_up]["proto"].value_counts().index[:10]) == PROTOTYPES
