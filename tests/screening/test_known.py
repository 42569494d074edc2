from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototypes import ATOMIC_NUMBERS, Prototype, find_prototype
from screening.columns import KNOWN, KNOWN_DETAILS
from screening.known import KnownCompounds, tabulate_known, tabulate_nearest
from screening.model_library import load_model
from screening.phases import Phases
from screening.training_table import TrainingTable, name_structure_type

B2 = name_structure_type(find_prototype("B2"))
ROCKSALT = name_structure_type(find_prototype("AB_cF8_225_a_b"))


@pytest.fixture
def compounds() -> KnownCompounds:
    training = TrainingTable.of(
        ["NaCl", "NaCl", "CsCl", "TiO2", "SrTiO3"],
        ["t1", "t2", "t3", "t4", "t5"],
        [-2.1, -1.9, -2.2, -3.0, -3.5],
        [ROCKSALT, B2, B2, None, ""],
    )
    references = Phases.of(
        ["TiO2", "CsCl", "KCl", "CsCl", "KCl"],
        [-3.4, -2.2004, -2.25, -2.0, -2.3],
        ["r1", "r2", "r3", "r4", "r5"],
    )
    return KnownCompounds.of(training, references)


def test_sources_are_joined(compounds: KnownCompounds) -> None:
    found = compounds.find(["NaCl", "CsCl", "KCl", "TiO2", "LiCl", "NaCl"])
    assert found.known.tolist() == [True, True, True, True, False, True]
    assert found.source.tolist() == ["training", "both", "references", "both", "", "training"]
    assert found.ids.tolist() == ["t1", "t3", "r5", "r1", "", "t1"]
    assert found.energies[:4].tolist() == [-2.1, -2.2, -2.3, -3.4]
    assert np.isnan(found.energies[4])
    assert found.in_prototype.tolist() == [None] * 6
    assert compounds.find([]).known.tolist() == []


def test_an_id_stays_where_references_have_an_energy_and_no_id() -> None:
    training = TrainingTable.of(["NaCl", "KCl"], ["mp-22862", "mp-23193"])
    references = Phases.of(["NaCl", "KCl"], [-2.1, -2.2], labels=["", "ref-1"])
    found = KnownCompounds.of(training, references).find(["NaCl", "KCl"])
    assert found.ids.tolist() == ["mp-22862", "ref-1"]
    assert found.energies.tolist() == [-2.1, -2.2]


def test_energies_come_from_the_references_where_training_has_none() -> None:
    training = TrainingTable.of(["NaCl", "KCl"], ["a", "b"])
    found = KnownCompounds.of(training, Phases.of(["NaCl"], [-2.0], ["r"])).find(["NaCl", "KCl"])
    assert found.ids.tolist() == ["r", "b"]
    assert found.energies[0] == -2.0
    assert np.isnan(found.energies[1])


def test_types_are_told_where_they_are_known(compounds: KnownCompounds) -> None:
    asked = ["NaCl", "CsCl", "KCl", "TiO2", "LiCl", "SrTiO3"]

    def ask(prototype: Prototype) -> list[object]:
        return list(compounds.find(asked, prototype).in_prototype)

    # KCl is known from references alone, the type of TiO2 was not told, LiCl is unknown
    assert ask(find_prototype("B2")) == [True, True, None, None, None, False]
    assert ask(find_prototype("AB_cF8_225_a_b")) == [True, False, None, None, None, False]
    # what no compound has, nobody may have looked for
    assert ask(find_prototype("L1_0")) == [None] * 6


def test_a_type_that_one_structure_has_is_known_though_others_are_not_told() -> None:
    table = TrainingTable.of(["NaCl", "NaCl", "KCl", "KCl"], types=[B2, None, ROCKSALT, None])
    found = KnownCompounds.of(table).find(["NaCl", "KCl"], find_prototype("B2"))
    assert found.in_prototype.tolist() == [True, None]


NAMES = st.sampled_from(["NaCl", "KCl", "LiCl", "AlCu", "TiO2", "Al2O3", "CaTiO3"])
ENERGIES = st.floats(-5, 0).map(lambda energy: round(energy, 2))
TABLE = st.lists(st.tuples(NAMES, ENERGIES), max_size=10)


@given(TABLE, TABLE, st.lists(NAMES, max_size=8))
def test_the_lowest_energy_is_told(
    trained: list[tuple[str, float]], referred: list[tuple[str, float]], asked: list[str]
) -> None:
    training = TrainingTable.of([name for name, _ in trained], None, [e for _, e in trained])
    references = Phases.of([name for name, _ in referred], [e for _, e in referred])
    found = KnownCompounds.of(training, references).find(asked)
    for row, name in enumerate(asked):
        energies = [energy for known, energy in trained + referred if known == name]
        assert found.known[row] == bool(energies)
        if energies:
            assert found.energies[row] == pytest.approx(min(energies), abs=1e-3)


def test_columns_are_those_of_the_registry(compounds: KnownCompounds) -> None:
    prototype = find_prototype("B2")
    symbols = [("Na", "Cl"), ("K", "Cl"), ("Rb", "Cl")]
    numbers = np.array([[ATOMIC_NUMBERS[s] for s in pair] for pair in symbols], dtype=np.uint8)
    columns = tabulate_known(compounds, ["NaCl", "KCl", "RbCl"], prototype)
    columns |= tabulate_nearest(compounds, numbers, prototype.amounts)
    assert list(columns) == [KNOWN.name, *(column.name for column in KNOWN_DETAILS)]
    for column in (KNOWN, *KNOWN_DETAILS):
        assert columns[column.name].type == pa.type_for_alias(column.dtype)
        assert column.nullable or not columns[column.name].null_count
    assert columns["known"].to_pylist() == [True, True, False]
    assert columns["known_id"].to_pylist() == ["t1", "r5", None]
    assert columns["known_formation_enthalpy_ev_per_atom"].to_pylist() == [-2.1, -2.3, None]
    assert columns["known_in_prototype"].to_pylist() == [True, None, None]
    # on the scale: Cs, Rb, K, Na
    assert columns["nearest_known_formula"].to_pylist()[:2] == ["KCl", "NaCl"]
    assert columns["nearest_known_formula"].to_pylist()[2] in ("CsCl", "KCl")
    assert columns["nearest_known_distance"].to_pylist() == [0.5, 0.5, 0.5]


def test_elements_beyond_the_scale_are_no_neighbours() -> None:
    references = Phases.of(["RfCl", "KCl"], [-3.0, -2.3], ["r1", "r2"])
    compounds = KnownCompounds.of(TrainingTable.of(["AcO"]), references)
    formulas, distances = compounds.find_nearest(np.array([[11, 17]], dtype=np.uint8), (1, 1))
    assert formulas.tolist() == ["KCl"]
    assert distances.tolist() == [0.5]
    assert compounds.find(references.formulas.tolist()).ids.tolist() == references.labels.tolist()


def test_nothing_known_leaves_nulls() -> None:
    prototype = find_prototype("B2")
    numbers = np.array([[11, 17]], dtype=np.uint8)
    nothing = KnownCompounds.of(TrainingTable.of([]))
    columns = tabulate_known(nothing, ["NaCl"], prototype)
    columns |= tabulate_nearest(nothing, numbers, prototype.amounts)
    assert [columns[name].to_pylist() for name in columns] == [[False]] + [[None]] * 5


@pytest.mark.data
def test_kinds_of_the_real_data_are_told(data_dir: Path) -> None:
    """B2, L1_0 and cubic perovskites, as the data marks them, are known in these types."""
    compounds = KnownCompounds.of(load_model("mp-all-irnet17").training_formulas)
    data = pd.read_parquet(data_dir / "eval_prototypes.parquet")
    names = {"B2": "B2", "L1_0": "L1_0", "perov_cubic": "cubic_perovskite"}
    for kind, name in names.items():
        formulas = data.loc[data["kind"] == kind, "formula"].tolist()
        found = compounds.find(formulas, find_prototype(name))
        assert found.known.all()
        assert np.mean(found.in_prototype == True) > 0.98  # noqa: E712


@pytest.mark.data
def test_references_of_the_real_data(data_dir: Path) -> None:
    table = pd.read_parquet(data_dir / "mp_groundstates.parquet")
    references = Phases.of(table["formula"].tolist(), table["formation_energy_per_atom"])
    compounds = KnownCompounds.of(load_model("mp-icsd-irnet17").training_formulas, references)
    listed = table["formula"].sample(500, random_state=0).tolist()
    found = compounds.find(listed)
    assert found.known.all()
    lowest = table.groupby("formula")["formation_energy_per_atom"].min()
    assert (found.energies <= lowest[listed].to_numpy() + 1.5e-3).all()
    pool = [z for z in range(1, 95) if not 84 <= z <= 88][::7]
    numbers = np.array(list(permutations(pool, 3)), dtype=np.uint8)
    formulas, distances = compounds.find_nearest(numbers, (1, 1, 3))
    assert len(formulas) == len(numbers)
    assert np.isfinite(distances).all()
    assert (distances > 0).all()
