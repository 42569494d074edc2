from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from typer.testing import CliRunner

from irnet import Ensemble
from prototypes import ATOMIC_NUMBERS
from screening.cli import app
from screening.columns import PREDICTIONS, check_table
from screening.crystal import Crystal
from screening.features import featurize_crystals
from screening.model_library import load_model
from screening.predict import (
    count_left_out,
    describe_stability,
    predict_structures,
    read_basis,
    show_predictions,
    write_predictions,
)
from screening.references import References, read_references
from screening.structures import read_structures

ENERGIES = {
    "NaCl": -2.1, "KCl": -2.2, "NaF": -2.8, "KF": -2.9, "MgF2": -3.8, "NaMgF3": -3.5, "MgO": -3.0,
    "KMgF3": -3.6, "Na2O": -1.4, "MgCl2": -2.2, "CaF2": -4.1, "CaO": -3.2,
}  # fmt: skip
HULL = (
    "energy_above_hull_ev_per_atom",
    "energy_above_hull_std_ev_per_atom",
    "p_stable",
    "decomposition",
    "references_in_system",
    "rf_energy_above_hull_ev_per_atom",
)


def salt(name: str, a: int, b: int) -> Crystal:
    numbers = np.array([a, b], dtype=np.int64)
    return Crystal(name, 4.1 * np.eye(3), numbers, np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]))


def cell(name: str, *symbols: str) -> Crystal:
    """Atoms in a row, 2.5 angstrom apart."""
    numbers = np.array([ATOMIC_NUMBERS[symbol] for symbol in symbols], dtype=np.int64)
    places = np.zeros((len(symbols), 3))
    places[:, 0] = np.arange(len(symbols)) / len(symbols)
    return Crystal(name, np.diag([2.5 * len(symbols), 3.5, 3.5]), numbers, places)


@pytest.fixture(scope="module")
def reference_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "phases.csv"
    table = pd.DataFrame(
        {"formula": ENERGIES.keys(), "formation_energy_per_atom": ENERGIES.values()}
    )
    table["id"] = [f"ref-{number}" for number in range(len(table))]
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def references(reference_file: Path) -> References:
    return read_references(reference_file, "PBE")


def test_predictions_are_the_models_own(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    crystals = [salt("x", 11, 17), salt("heavy", 104, 17), salt("y", 55, 17), salt("z", 85, 19)]
    table, failures = predict_structures(model, crystals, tmp_path / "w", device="cpu")
    check_table(table, PREDICTIONS)
    assert table["id"].to_pylist() == ["x", "y", "z"]
    assert [failure.id for failure in failures] == ["heavy"]
    values = featurize_crystals([crystals[0], crystals[2], crystals[3]]).values
    prediction = model.ensemble.scorer().predict(values.astype(np.float32))
    np.testing.assert_allclose(
        table["formation_enthalpy_ev_per_atom"].to_numpy(), prediction.mean, atol=1e-6
    )
    np.testing.assert_allclose(
        table["formation_enthalpy_std_ev_per_atom"].to_numpy(), prediction.std, atol=1e-6
    )
    assert model.forest is not None
    np.testing.assert_allclose(
        table["rf_formation_enthalpy_ev_per_atom"].to_numpy(),
        model.forest.predict(values.astype(np.float32)),
        atol=1e-6,
    )
    assert table["formula"].to_pylist() == ["NaCl", "CsCl", "KAt"]
    assert table["known"].to_pylist() == [True, False, False]
    assert table["unseen_elements"].to_pylist() == ["", "Cs", ""]
    assert table["imputed_elements"].to_pylist() == [None, None, "At"]
    write_predictions(table, failures, tmp_path / "p.parquet")
    assert (tmp_path / "p.failures.parquet").exists()
    shown = show_predictions(table, 2)
    assert shown["id"].tolist() == ["x", "y"]
    assert shown["known"].tolist() == ["yes", ""]
    assert shown["unseen"].tolist() == ["", "Cs"]
    assert "unseen" not in show_predictions(table, 1)
    assert table.column_names == [column.name for column in PREDICTIONS.columns]


def test_the_arithmetic_is_chosen_and_recorded(tiny_model: Path, tmp_path: Path) -> None:
    model, crystals = load_model(tiny_model), [salt("x", 11, 17), salt("y", 55, 17)]
    features = featurize_crystals(crystals).values.astype(np.float32)
    for precision in ("bf16", "fp32"):
        table, _ = predict_structures(
            model, crystals, tmp_path / precision, device="cpu", precision=precision
        )
        assert read_basis(table)["precision"] == precision
        expected = model.ensemble.scorer(precision=precision).predict(features)
        np.testing.assert_allclose(
            table["formation_enthalpy_ev_per_atom"].to_numpy(), expected.mean, atol=1e-6
        )


def test_a_single_member_has_no_spread(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    alone = replace(model, ensemble=Ensemble(model.ensemble.members[:1], model.ensemble.card))
    table, _ = predict_structures(alone, [salt("x", 11, 17)], tmp_path, device="cpu")
    assert table["formation_enthalpy_std_ev_per_atom"].to_pylist() == [None]
    assert show_predictions(table, 1)["±"].tolist() == ["-"]


@pytest.mark.parametrize("count", [0, 1])
def test_few_structures_are_a_table_too(tiny_model: Path, tmp_path: Path, count: int) -> None:
    crystals = [salt("x", 11, 17)][:count]
    table, _ = predict_structures(load_model(tiny_model), crystals, tmp_path, device="cpu")
    check_table(table, PREDICTIONS)
    assert table.num_rows == count


def test_intervals_come_from_the_models_calibration(calibrated_model: Path, tmp_path: Path) -> None:
    model = load_model(calibrated_model)
    crystals = [salt("x", 11, 17), salt("y", 55, 17)]
    table, _ = predict_structures(model, crystals, tmp_path, device="cpu")
    check_table(table, PREDICTIONS)
    features = featurize_crystals(crystals).values.astype(np.float32)
    assert model.uncertainty is not None
    assert model.forest is not None
    assessed = model.uncertainty.assess(
        features, model.ensemble.scorer().predict(features), model.forest.predict(features)
    )
    for name, values in {
        "formation_enthalpy_low_ev_per_atom": assessed.low,
        "formation_enthalpy_high_ev_per_atom": assessed.high,
        "applicability_distance": assessed.distance,
    }.items():
        np.testing.assert_allclose(table[name].to_numpy(), values, atol=1e-6)
    shown = show_predictions(table, 2)
    assert "±" not in shown
    assert shown["90 % interval"][0] == f"[{assessed.low[0]:.2f}, {assessed.high[0]:.2f}]"
    assert shown["distance"][1] == f"{assessed.distance[1]:.2f}"
    uncalibrated = show_predictions(
        predict_structures(replace(model, uncertainty=None), crystals, tmp_path, device="cpu")[0], 2
    )
    assert "90 % interval" not in uncalibrated
    assert "distance" not in uncalibrated


def test_energies_above_hull_are_those_of_pymatgen(
    tiny_model: Path, references: References, tmp_path: Path
) -> None:
    crystals = [
        salt("known", 11, 17),
        salt("alloy", 12, 20),
        cell("ternary", "Na", "Na", "Mg", "F", "F", "F", "F"),
        cell("quaternary", "Na", "K", "Mg", "F", "F", "F", "Cl", "O"),
        cell("element", "Mg", "Mg"),
    ]
    table, _ = predict_structures(
        load_model(tiny_model), crystals, tmp_path / "w", references=references, device="cpu"
    )
    check_table(table, PREDICTIONS)
    rows = table.to_pandas().set_index("id")
    entries = [
        PDEntry(Composition(name), energy * Composition(name).num_atoms)
        for name, energy in ENERGIES.items()
    ]
    elements = {element for entry in entries for element in entry.composition}
    diagram = PhaseDiagram([*entries, *(PDEntry(Composition({e: 1}), 0.0) for e in elements)])
    for crystal in crystals:
        row = rows.loc[crystal.id]
        hull = diagram.get_hull_energy_per_atom(Composition(crystal.formula))
        for prefix in ("", "rf_"):
            enthalpy = row[f"{prefix}formation_enthalpy_ev_per_atom"]
            above = row[f"{prefix}energy_above_hull_ev_per_atom"]
            assert above == pytest.approx(enthalpy - hull, abs=2e-6)
    assert rows["decomposition"].to_dict() | {"quaternary": ""} == {
        "known": "NaCl",  # the references list it
        "alloy": "Mg + Ca",
        "ternary": "NaMgF3 + NaF",
        "quaternary": "",
        "element": "Mg",
    }
    assert rows["references_in_system"].tolist() == [1, 0, 3, 10, 0]
    assert (rows["energy_above_hull_std_ev_per_atom"] > 0).all()
    assert rows["p_stable"].isna().all()  # the model was never calibrated


def test_a_campaigns_candidates_come_out_the_same(
    calibrated_model: Path, reference_file: Path, references: References, tmp_path: Path
) -> None:
    """Structures that a campaign exports, predicted from their files."""
    folder = tmp_path / "run"
    options = ["--prototype", "B2", "--prototype", "cubic_perovskite", "--workers", "0"]
    options += ["--elements", "Na,K,Mg,Ca,O,F", "--model", str(calibrated_model), "--out"]
    options += [str(folder), "--references", str(reference_file), "--stable-within", "0.3"]
    done = CliRunner().invoke(app, ["run", *options, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        app, ["export", str(folder), "--top", "40", "--to", str(tmp_path / "cifs")]
    )
    assert done.exit_code == 0, done.output
    crystals, unread = read_structures([tmp_path / "cifs"])
    assert len(crystals) == 40 and not unread
    table, failures = predict_structures(
        load_model(calibrated_model),
        crystals,
        tmp_path / "w",
        references=references,
        stable_within=0.3,
        device="cpu",
    )
    assert not failures
    found = table.to_pandas()
    ranking = pq.read_table(folder / "ranking.parquet").to_pandas().set_index("rank")
    expected = ranking.loc[[int(name.partition("_")[0]) for name in found["id"]]].reset_index()
    assert found["p_stable"].between(0.01, 0.99).any()
    shared = [name for name in found.columns if name in expected.columns]
    assert set(found.columns) - set(shared) == {"id"}
    for name in shared:
        if "tolerance_factor" in name:  # that a structure is a perovskite is not looked for
            assert found[name].isna().all()
        elif found[name].dtype == np.float64:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
        else:
            pd.testing.assert_series_equal(found[name], expected[name])


def test_without_references_there_is_no_hull(tiny_model: Path, tmp_path: Path) -> None:
    table, _ = predict_structures(
        load_model(tiny_model), [salt("x", 11, 17), salt("y", 19, 17)], tmp_path, device="cpu"
    )
    for name in HULL:
        assert table[name].null_count == 2
    assert table["known"].to_pylist() == [True, False]
    assert table["nearest_known_formula"].to_pylist() == ["KMgF3", "NaCl"]
    assert table["nearest_known_distance"].to_pylist()[1] == 0.5
    assert read_basis(table)["references"] is None
    assert describe_stability(table) is None
    assert "above hull" not in show_predictions(table, 2)


def test_what_references_know_is_known(
    tiny_model: Path, references: References, tmp_path: Path
) -> None:
    crystals = [salt("x", 19, 9), salt("y", 12, 16)]
    table, _ = predict_structures(
        load_model(tiny_model), crystals, tmp_path / "w", references=references, device="cpu"
    )
    assert table["known"].to_pylist() == [True, False]
    assert table["known_id"].to_pylist() == ["ref-3", None]
    assert table["known_formation_enthalpy_ev_per_atom"].to_pylist() == [-2.9, None]
    assert table["nearest_known_formula"].to_pylist()[1] == "MgO"
    assert table["nearest_known_distance"].to_pylist()[0] == 0.5  # NaF and KCl
    assert table["charge_neutral"].to_pylist() == [True, True]
    assert table["oxidation_states"].to_pylist() == ["K+ F-", "Mg2+ S2-"]
    write_predictions(table, (), tmp_path / "p.parquet")
    basis = read_basis(pq.read_table(tmp_path / "p.parquet"))
    assert basis["references"] == {
        "file": str(references.path),
        "sha256": references.sha256,
        "phases": len(ENERGIES),
        "functional": "PBE",
    }
    assert basis["stable_within_ev_per_atom"] == 0.05
    assert basis["model"] == {"name": "tiny", "sha256": load_model(tiny_model).content_hash}
    assert describe_stability(table) == (
        "above hull: eV/atom above that of 12 reference phases in phases.csv (PBE), the same "
        "composition included"
    )
    shown = show_predictions(table, 2)
    assert shown["known"].tolist() == ["ref-3", ""]
    assert shown["decomposes into"].tolist() == ["KF", "Mg + S"]
    row = table.slice(0, 1).to_pylist()[0]
    energy, std = (row[name] for name in HULL[:2])
    assert shown["above hull"][0] == f"{energy:.3f} ± {std:.3f}"
    assert "p stable" not in shown


def test_the_tolerance_moves_the_probability(
    calibrated_model: Path, references: References, tmp_path: Path
) -> None:
    crystals = [salt("x", 11, 17), salt("y", 19, 9), salt("z", 12, 8)]
    strict, lenient = (
        predict_structures(
            load_model(calibrated_model),
            crystals,
            tmp_path / "w",
            references=references,
            stable_within=within,
            device="cpu",
        )[0]
        for within in (0.0, 2.0)
    )
    assert (lenient["p_stable"].to_numpy() > strict["p_stable"].to_numpy()).all()
    assert strict["energy_above_hull_ev_per_atom"] == lenient["energy_above_hull_ev_per_atom"]
    assert str(describe_stability(lenient)).endswith("probability of at most 2 above it")
    shown = show_predictions(lenient, 3)["p stable"]
    assert [float(value) for value in shown] == [
        pytest.approx(value, abs=0.005) for value in lenient["p_stable"].to_pylist()
    ]


def test_many_elements_leave_the_hull_empty_and_the_rest_filled(
    tiny_model: Path, references: References, tmp_path: Path
) -> None:
    ten = cell("ten", "Na", "K", "Mg", "Ca", "Ti", "Fe", "Al", "O", "S", "F")
    nine = cell("nine", "Na", "K", "Mg", "Ca", "Ti", "Fe", "Al", "O", "F")
    crystals = [ten, salt("x", 11, 17), nine]
    table, failures = predict_structures(
        load_model(tiny_model), crystals, tmp_path / "w", references=references, device="cpu"
    )
    check_table(table, PREDICTIONS)
    assert not failures
    assert count_left_out(table) == 1
    assert [table[name][0].as_py() for name in HULL] == [None] * len(HULL)
    alone, _ = predict_structures(
        load_model(tiny_model), crystals[1:], tmp_path / "v", references=references, device="cpu"
    )
    assert table.slice(1).equals(alone)
    assert table["formation_enthalpy_ev_per_atom"].null_count == 0
    assert table["nearest_known_distance"].null_count == 0
    shown = show_predictions(table, 3)
    assert shown["above hull"][0] == shown["decomposes into"][0] == "-"
