from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spglib
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from scipy import stats

from prototypes import find_prototype
from screening.crystal import Crystal
from screening.errors import InputDataError
from screening.evaluation import (
    PAPER_TABLE_5,
    assign_roles,
    evaluate_model,
    featurize_ideal,
    read_evaluation_set,
    score_predictions,
    tabulate,
    tabulate_reliability,
)
from screening.features import featurize_crystals
from screening.model_library import load_model
from screening.structures import convert_structure


def perovskite(a: str, b: str, x: str) -> Crystal:
    cell = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(4), [a, b, x], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
    )
    return convert_structure(cell, a + b + x)


def write_set(path: Path) -> Path:
    rows = []
    cells = [("B2", [("Na", "Cl"), ("Fe", "Al"), ("Ca", "O")]), ("perov_cubic", ["SrTiO3"])]
    for kind, members in cells:
        for member in members:
            if kind == "B2":
                cell = Structure(Lattice.cubic(3), list(member), [[0, 0, 0], [0.5] * 3])
                crystal = convert_structure(cell, "".join(member))
            else:
                crystal = perovskite("Sr", "Ti", "O")
            rows.append(
                {
                    "id": crystal.id,
                    "kind": kind,
                    "formation_energy_per_atom": -1.0 - len(rows),
                    "scheme": "old(a)" if len(rows) % 2 else "new",
                    "lattice": crystal.lattice.ravel(),
                    "species": [site.symbol for site in crystal.to_structure().species],
                    "frac_coords": crystal.frac_coords.ravel(),
                }
            )
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_scores_are_those_of_scipy_and_numpy() -> None:
    random = np.random.default_rng(1)
    true = random.normal(size=200)
    predicted = true + random.normal(0.1, 0.2, size=200)
    members = np.stack([predicted + 0.1, predicted - 0.1])
    (net, single) = score_predictions(
        {"irnet": predicted, "irnet_member": members}, true, group="held_out"
    )
    assert net.mae == pytest.approx(np.abs(predicted - true).mean())
    assert net.bias == pytest.approx((predicted - true).mean())
    assert net.spearman == pytest.approx(stats.spearmanr(predicted, true).statistic)
    assert single.mae == pytest.approx(np.abs(members - true).mean())
    assert single.mae > net.mae
    assert net.p90 == pytest.approx(np.percentile(np.abs(predicted - true), 90))
    reference = stats.bootstrap((np.abs(predicted - true),), np.mean, method="percentile")
    assert net.mae_low == pytest.approx(reference.confidence_interval.low, abs=0.005)
    assert net.mae_high == pytest.approx(reference.confidence_interval.high, abs=0.005)


def test_rank_correlation_of_two_compounds_is_not_reported() -> None:
    (score,) = score_predictions({"irnet": np.zeros(2)}, np.ones(2), group="B2")
    assert score.spearman is None
    assert score.n == 2


def test_roles_of_cubic_perovskites_and_binaries() -> None:
    assert assign_roles(perovskite("Sr", "Ti", "O"), "perov_cubic") == (38, 22, 8)
    assert assign_roles(perovskite("Ti", "Sr", "O"), "perov_cubic") == (22, 38, 8)
    assert assign_roles(perovskite("O", "Li", "K"), "perov_cubic") == (8, 3, 19)
    with pytest.raises(InputDataError, match="is called B2 and is SrTiO3"):
        assign_roles(perovskite("Sr", "Ti", "O"), "B2")


def test_ideal_and_relaxed_geometry_agree_where_nothing_can_relax(tmp_path: Path) -> None:
    data = read_evaluation_set(write_set(tmp_path / "e.parquet"))
    assert data.kinds is not None
    ideal = featurize_ideal(data.crystals, data.kinds)
    relaxed = featurize_crystals(list(data.crystals)).values
    np.testing.assert_allclose(ideal, relaxed, rtol=1e-5, atol=1e-4)


def test_evaluation_of_a_model(tmp_path: Path, tiny_model: Path) -> None:
    model = load_model(tiny_model)
    data = read_evaluation_set(write_set(tmp_path / "e.parquet"))
    evaluation = evaluate_model(model, data, device="cpu")
    assert evaluation.formulas_seen == 1
    keys = [(s.predictor, s.group, s.scheme, s.geometry) for s in evaluation.scores]
    assert len(keys) == len(set(keys))
    assert ("random_forest", "B2", "all", "ideal") in keys
    assert ("irnet", "B2", "old", "relaxed") in keys
    assert ("irnet", "perov_cubic", "all", "ideal") in keys
    assert data.kinds is not None
    ideal = featurize_ideal(data.crystals, data.kinds)
    mean = model.ensemble.scorer().predict(ideal[:3]).mean
    score = next(s for s in evaluation.scores if s.geometry == "ideal" and s.predictor == "irnet")
    assert score.mae == pytest.approx(np.abs(mean - data.target[:3]).mean(), rel=1e-6)
    table = tabulate(evaluation)
    row = dict(zip(table[0], table[1], strict=True))
    assert (row["kind"], row["scheme"], row["n"]) == ("B2", "all", "3")
    assert (row["paper RF"], row["paper IRNet"]) == ("0.5114", "0.4780")
    assert all(len(line) == len(table[0]) for line in table)
    of_all = [line[1] for line in tabulate(evaluation, scheme="all")[1:]]
    assert set(of_all) == {"all"}
    assert len(of_all) < len(table) - 1


def test_evaluation_of_a_calibrated_model_says_what_its_intervals_hold(
    tmp_path: Path, calibrated_model: Path
) -> None:
    model = load_model(calibrated_model)
    data = read_evaluation_set(write_set(tmp_path / "e.parquet"))
    evaluation = evaluate_model(model, data, device="cpu")
    assert [(r.group, r.scheme, r.geometry, r.n) for r in evaluation.reliabilities[:3]] == [
        ("B2", "all", "relaxed", 3), ("B2", "new", "relaxed", 2), ("B2", "old", "relaxed", 1),
    ]  # fmt: skip
    assert data.kinds is not None
    ideal = featurize_ideal(data.crystals, data.kinds)[:3].astype(np.float32)
    assert model.uncertainty is not None
    assert model.forest is not None
    assessed = model.uncertainty.assess(
        ideal, model.ensemble.scorer().predict(ideal), model.forest.predict(ideal)
    )
    inside = (assessed.low <= data.target[:3]) & (data.target[:3] <= assessed.high)
    (found,) = (
        r
        for r in evaluation.reliabilities
        if (r.group, r.scheme, r.geometry) == ("B2", "all", "ideal")
    )
    assert found.coverage == pytest.approx(inside.mean())
    assert found.sharpness == pytest.approx((assessed.high - assessed.low).mean())
    card = model.card.model_copy(update={"evaluation": evaluation})
    assert card.find_coverage(find_prototype("B2")) == found
    table = tabulate(evaluation, scheme="all")
    row = dict(zip(table[0], table[1], strict=True))
    assert row["in 90 % interval"] == f"{found.coverage:.0%}"
    rows = tabulate_reliability(evaluation.reliabilities)
    assert len(rows) == 1 + len(evaluation.reliabilities)
    assert (
        "in 90 % interval" not in tabulate(evaluation.model_copy(update={"reliabilities": ()}))[0]
    )


def test_unusable_evaluation_sets(tmp_path: Path) -> None:
    path = write_set(tmp_path / "e.parquet")
    table = pd.read_parquet(path)
    cases = {
        "has no column": table.drop(columns="lattice"),
        "has no rows": table[:0],
        "does not hold numbers": table.assign(formation_energy_per_atom="low"),
        "kind 'None'": table.assign(kind=["B2", None, "B2", "perov_cubic"]),
        "no prototype": table.assign(kind="D0_3"),
        "an empty kind has no prototype": table.assign(kind=""),
        "4 rows without formation_energy": table.assign(formation_energy_per_atom=np.nan),
        "cannot be used": table.assign(species=[["Xx", "Cl"]] * 4),
    }
    for message, broken in cases.items():
        broken.to_parquet(path)
        with pytest.raises(InputDataError, match=message):
            read_evaluation_set(path)


def test_the_papers_numbers_are_its_table_5() -> None:
    assert PAPER_TABLE_5["perov_Pnma"] == (0.6166, 0.3693)


def test_roles_of_real_perovskites_are_those_of_their_wyckoff_positions(data_dir: Path) -> None:
    data = read_evaluation_set(data_dir / "eval_prototypes.parquet")
    checked = 0
    for row in np.flatnonzero(data.kinds == "perov_Pnma"):
        crystal = data.crystals[row]
        cell = (crystal.lattice, crystal.frac_coords, crystal.numbers)
        symmetry = spglib.get_symmetry_dataset(cell, symprec=1e-2)
        if symmetry is None or symmetry.number != 62:
            continue
        a, b, _ = assign_roles(crystal, "perov_Pnma")
        letters = np.array(symmetry.wyckoffs)
        assert set(letters[crystal.numbers == a]) == {"c"}, crystal.id
        assert set(letters[crystal.numbers == b]) <= {"a", "b"}, crystal.id
        checked += 1
    assert checked > 90
