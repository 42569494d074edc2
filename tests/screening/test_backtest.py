from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element

from irnet.reference import TrainingReference
from irnet.uncertainty import Uncertainty
from prototypes import CandidateSpace, element_pool, find_prototype
from screening import backtest
from screening.backtest import (
    NEW,
    BacktestRequest,
    BacktestResult,
    draw_noise,
    fit_in_folds,
    label_by_references,
    run_backtest,
)
from screening.calibration import CalibrationRows
from screening.errors import InputDataError, ModelError
from screening.evaluation import predict_all
from screening.features.geometry import measure_geometry
from screening.features.prototype import PrototypeFeaturizer
from screening.features.schema import FEATURES
from screening.model_library import ScreeningModel, load_model
from screening.phases import Phases
from screening.references import read_references
from screening.training_table import TrainingTable

COMPOUNDS = 160
POOL = "Li,Na,K,Rb,Mg,Ca,Ti,Fe,Al,O,S,F,Cl"
PHASES = {
    "Li2O": -2.0, "Fe2O3": -1.7, "LiFeO2": -1.75, "Li5FeO4": -1.9, "FeO": -1.4, "Li3FeO3": -0.9,
}  # fmt: skip


def write_compounds(folder: Path, model: ScreeningModel) -> Path:
    """Perovskites with features, and energies that the model gets about right."""
    prototype = find_prototype("cubic_perovskite")
    pool = element_pool(POOL)
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))
    _, numbers = space.decode(0, space.index_count)
    numbers = np.random.default_rng(3).permutation(numbers)[:COMPOUNDS]
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    features = featurizer(numbers).numpy()
    symbols = [[Element.from_Z(z).symbol for z in row] for row in numbers.tolist()]
    predicted = predict_all(model.ensemble, model.forest, features)["irnet"]
    energies = predicted + np.random.default_rng(4).normal(0, 0.3, COMPOUNDS)
    table = pd.DataFrame(features, columns=list(FEATURES))
    table.insert(0, "id", [f"row {row}" for row in range(COMPOUNDS)])
    table.insert(1, "formula", [f"{a}{b}{x}3" for a, b, x in symbols])
    table.insert(2, "formation_energy_per_atom", energies)
    table.insert(3, "kind", np.where(np.arange(COMPOUNDS) < 80, "first", "second"))
    path = folder / "compounds.parquet"
    table.to_parquet(path)
    return path


def write_references(folder: Path, formulas: list[str], energies: list[float]) -> Path:
    path = folder / "references.csv"
    table = pd.DataFrame({"formula": formulas, "formation_energy_per_atom": energies})
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(calibrated_model: Path) -> ScreeningModel:
    return load_model(calibrated_model)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory, model: ScreeningModel) -> BacktestRequest:
    """Compounds, of some of which the composition is a reference too."""
    folder = tmp_path_factory.mktemp("backtest")
    data = write_compounds(folder, model)
    table = pd.read_parquet(data, columns=["formula", "formation_energy_per_atom"])
    formulas = [*PHASES, "NaCl", "TiO2", *table["formula"][:40]]
    energies = [*PHASES.values(), -2.1, -3.2, *table["formation_energy_per_atom"][:40]]
    references = write_references(folder, formulas, energies)
    return BacktestRequest((data,), references, calibration="none", device="cpu")


def judge(
    model: ScreeningModel, request: BacktestRequest, **changes: Any
) -> tuple[BacktestResult, list[str]]:
    said: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        result = run_backtest(model, replace(request, **changes), Path(work), say=said.append)
    return result, said


def with_table(request: BacktestRequest, path: Path, **columns: Any) -> BacktestRequest:
    """The same compounds with columns added or replaced."""
    pd.read_parquet(request.data[0]).assign(**columns).to_parquet(path)
    return replace(request, data=(path,))


def scores_of(result: BacktestResult) -> list[dict[str, Any]]:
    return [{**vars(score), "found": score.found.tolist()} for score in result.scores]


def test_labels_are_those_of_pymatgen() -> None:
    """A ground state gets the energy of its decomposition, a polymorph its energy above hull."""
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in PHASES.items()]
    elements = [PDEntry(Composition(symbol), 0.0) for symbol in ("Li", "Fe", "O")]
    diagram = PhaseDiagram([*entries, *elements])
    phases = Phases.of(list(PHASES), list(PHASES.values()))
    label = label_by_references(phases, list(PHASES), np.array(list(PHASES.values())))
    for value, entry in zip(label.tolist(), entries, strict=True):
        expected = diagram.get_phase_separation_energy(entry)
        assert value == pytest.approx(expected, abs=1e-6), entry.name
    assert label.min() < -0.01 < 0.1 < label.max()
    alone = label_by_references(Phases.of([], np.empty((0, 1))), ["Li2O"], np.array([-2.0]))
    assert alone.tolist() == [-2.0], "elements compete always"
    polymorph = label_by_references(phases, ["FeLiO2", "LiO2"], np.array([-1.6, -0.5]))
    expected = diagram.get_e_above_hull(PDEntry(Composition("LiFeO2"), -1.6 * 4))
    assert polymorph[0] == pytest.approx(expected, abs=1e-6)
    expected = diagram.get_e_above_hull(PDEntry(Composition("LiO2"), -0.5 * 3))
    assert polymorph[1] == pytest.approx(expected, abs=1e-6)


def test_energies_of_evaluated_compositions_are_not_looked_at(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    table = pd.read_csv(request_.references)
    label = np.linspace(-0.5, 0.5, COMPOUNDS)
    honest = with_table(request_, tmp_path / "compounds.parquet", hull=label)
    before, said = judge(model, honest, label="hull")
    evaluated = table.index[8:]
    table.loc[evaluated, "formation_energy_per_atom"] = -5.5
    path = write_references(tmp_path, *(table[column].tolist() for column in table))
    after, _ = judge(model, honest, label="hull", references=path)
    assert scores_of(before) == scores_of(after)
    assert any("were taken out" in sentence for sentence in said)
    assert before.references["competitors"] == 8
    table.loc[table.index[:2], "formation_energy_per_atom"] = -5.5
    path = write_references(tmp_path, *(table[column].tolist() for column in table))
    other, _ = judge(model, honest, label="hull", references=path)
    assert scores_of(before) != scores_of(other)


def test_true_energies_find_all_where_nothing_else_competes(
    model: ScreeningModel, request_: BacktestRequest
) -> None:
    result, _ = judge(model, request_)
    perfect = result.find("dft")
    assert perfect is not None
    assert perfect.roc_auc > 0.95
    net, forest = result.find("irnet_energy"), result.find("random_forest_energy")
    assert net is not None
    assert forest is not None
    assert perfect.roc_auc > net.roc_auc > forest.roc_auc
    assert net.counts.rows == net.errors.rows == COMPOUNDS
    assert set(net.precision_at) == {10, 100, net.counts.stable}
    assert net.precision_at[100] == net.found[100] / 100
    assert net.errors.mae < 0.5 < forest.errors.mae
    assert result.find("irnet") is None
    assert {score.group for score in result.scores} == {"all", "first", "second"}
    assert result.find("dft", truth="same competitors") is None


def test_compounds_compete_with_each_other_by_what_is_predicted(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    """A second crystal of each composition, predicted alike, changes nothing; a lower one all."""
    alone, _ = judge(model, request_, compete=False)
    together, _ = judge(model, request_)
    selected = [
        score.counts.selected
        for result in (alone, together)
        for score in result.scores
        if (score.predictor, score.group, score.truth) == ("irnet_energy", "all", "label")
    ]
    assert selected[0] > selected[1] > 0
    table = pd.read_parquet(request_.data[0])
    twice = pd.concat([table, table.assign(id=table["id"] + " twin")])
    twice.to_parquet(tmp_path / "twice.parquet")
    twins, _ = judge(model, request_, data=(tmp_path / "twice.parquet",))
    counted = twins.find("irnet_energy")
    assert counted is not None
    assert counted.counts.selected == 2 * selected[1]


def test_known_crystals_take_the_place_of_references(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    table = pd.read_parquet(request_.data[0])
    known = table.assign(id="known " + table["id"], formation_energy_per_atom=-5.0)
    known = pd.concat([known, table.iloc[:7]])
    known.iloc[0, known.columns.get_loc("formation_energy_per_atom")] = -4.9
    known.to_parquet(tmp_path / "known.parquet")
    result, said = judge(model, request_, known=(tmp_path / "known.parquet",))
    score = result.find("irnet_energy")
    assert score is not None
    assert score.counts.selected == 0
    compositions = len({Composition(formula).reduced_formula for formula in table["formula"]})
    assert result.references["competitors"] == 8 + compositions
    assert any("7 of the known crystals are evaluated themselves" in each for each in said)


def test_training_data_are_known_unless_forgotten(
    model: ScreeningModel, request_: BacktestRequest
) -> None:
    table = pd.read_parquet(request_.data[0])
    names = ["row 0", *("known " + table["id"][1:])]
    reduced = [Composition(formula).reduced_formula for formula in table["formula"]]
    trained = TrainingTable.of(reduced, names, np.full(COMPOUNDS, -5.0))
    result, said = judge(replace(model, training_formulas=trained), request_)
    score = result.find("irnet_energy")
    assert score is not None
    assert score.counts.selected <= 1
    assert any("1 of the known crystals are evaluated themselves" in each for each in said)
    forgotten, _ = judge(replace(model, training_formulas=trained), request_, forget_known=True)
    plain, _ = judge(model, request_)
    assert forgotten.references == plain.references
    assert forgotten.references["competitors"] == 8


def test_probabilities_come_from_folds_or_from_the_model(
    model: ScreeningModel, request_: BacktestRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("irnet.uncertainty._TREES", 10)
    folds, _ = judge(model, request_, calibration="folds")
    again, _ = judge(model, request_, calibration="folds")
    other, _ = judge(model, request_, calibration="folds", seed=1)
    own, said = judge(model, request_, calibration="model")
    assert scores_of(folds) == scores_of(again)
    found = [result.find("irnet") for result in (folds, other, own)]
    briers = [score.probabilities.brier for score in found if score and score.probabilities]
    assert len(set(briers)) == 3
    assert folds.find("random_forest") is not None
    assert own.find("random_forest") is None
    assert any("no probabilities by Random Forest" in sentence for sentence in said)
    first = found[0]
    assert first is not None
    assert first.probabilities is not None
    assert first.probabilities.brier < first.probabilities.brier_of_prevalence
    assert sum(each.rows for each in first.probabilities.bins) == COMPOUNDS


def rows_of(systems: NDArray[np.int64]) -> tuple[CalibrationRows, TrainingReference]:
    random = np.random.default_rng(0)
    features = random.normal(size=(len(systems), 271)).astype(np.float32)
    reference = TrainingReference.fit(random.normal(size=(300, 271)), size=100)
    members = random.normal(size=(3, len(systems))) * 0.1
    mean = members.mean(axis=0)
    target = mean + random.gamma(2.0, 0.2, len(systems))
    rows = CalibrationRows(
        features,
        target,
        {"irnet": mean, "irnet_member": members},
        systems,
        reference.distance(features),
    )
    return rows, reference


def test_no_compound_is_judged_by_its_own_system(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, reference = rows_of(np.arange(200) // 4)
    fitted: list[set[int]] = []

    class Spy:
        @staticmethod
        def fit(*_: Any, groups: NDArray[np.int64], **__: Any) -> None:
            fitted.append(set(groups.tolist()))

    monkeypatch.setattr("irnet.uncertainty.Uncertainty", Spy)
    parts = [part for part, _ in fit_in_folds(rows, reference)]
    assert np.sort(np.concatenate(parts)).tolist() == list(range(200))
    for part, others in zip(parts, fitted, strict=True):
        assert others
        assert not others & set(rows.systems[part].tolist())
        assert others | set(rows.systems[part].tolist()) == set(range(50))


def test_drawn_noise_is_that_of_the_calibration() -> None:
    rows, reference = rows_of(np.arange(200))
    uncertainty = Uncertainty.fit(
        rows.target,
        backtest.join_members(rows.predictions),
        None,
        rows.distance,
        reference=reference,
        groups=rows.systems,
    )
    scale = np.full(4, 0.3)
    alike = np.zeros((4, 3))
    noise = draw_noise(uncertainty, alike, scale, 20_000, 0)
    assert noise.shape == (4, 20_000)
    assert noise.std(axis=1) == pytest.approx(uncertainty.noise_std(scale), rel=0.03)
    low, high = uncertainty.interval(np.zeros(4), scale, 0.8)
    share = ((noise > low[:, None]) & (noise < high[:, None])).mean()
    assert share == pytest.approx(0.8, abs=0.03)
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.03
    spread = np.tile([-0.2, 0.0, 0.2], (4, 1))
    assert (draw_noise(uncertainty, spread, scale, 20_000, 0).std(axis=1) < noise.std(axis=1)).all()
    assert (draw_noise(uncertainty, alike, scale, 5, 1) != noise[:, :5]).any()


def test_compositions_that_the_model_knows_are_told_and_set_apart(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    """KMgF3 is among those that the tiny model was trained on."""
    table = pd.read_parquet(request_.data[0])
    names = table["formula"].where(table.index >= 10, "KMgF3")
    request = with_table(request_, tmp_path / "known.parquet", formula=names)
    result, said = judge(model, request)
    assert result.seen == 10
    assert any("trained on the compositions of 10 of these 160" in each for each in said)
    new = result.find("irnet_energy", NEW)
    assert new is not None
    assert new.counts.rows == COMPOUNDS - 10


def test_stable_is_what_the_tolerance_says(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    label = np.linspace(-0.5, 0.5, COMPOUNDS)
    request = with_table(request_, tmp_path / "labelled.parquet", hull=label)
    for within, near in ((0.0, 0.1), (0.2, 0.3)):
        result, _ = judge(model, request, label="hull", within=within, near=near)
        score = result.find("irnet_energy")
        assert score is not None
        assert score.counts.stable == (label <= within).sum()
        assert score.errors_near_hull is not None
        assert score.errors_near_hull.rows == (np.abs(label) < near).sum()


def test_rows_without_label_or_energy_are_counted(
    model: ScreeningModel, request_: BacktestRequest, tmp_path: Path
) -> None:
    label = np.linspace(-0.5, 0.5, COMPOUNDS)
    label[:5] = np.nan
    energies = pd.read_parquet(request_.data[0])["formation_energy_per_atom"].to_numpy(copy=True)
    energies[-3:] = np.nan
    request = with_table(
        request_, tmp_path / "gaps.parquet", hull=label, formation_energy_per_atom=energies
    )
    result, _ = judge(model, request, label="hull")
    assert result.rows == COMPOUNDS - 8
    assert result.left_out == {"no hull": 5, "no energy": 3}


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({"label": "hul"}, {"hull": 0.1}, r"no column 'hul'; did you mean \"hull\""),
        ({"label": "hull"}, {"hull": 0.1}, "none of the 160 compounds are stable"),
        ({"label": "hull"}, {"hull": -0.1}, "all of the 160 compounds are stable"),
        ({"label": "hull", "within": 0.2}, {"hull": 0.1}, "all of the 160 .* --stable-within"),
        ({"label": "hull"}, {"hull": np.nan}, "no row of the data has a number in column 'hull'"),
        ({"label": "kind"}, {}, "does not hold numbers"),
        ({"target": "energy"}, {}, "no column 'energy'"),
    ],
)
def test_unusable_input_is_refused(
    changes: dict[str, Any],
    columns: dict[str, Any],
    message: str,
    model: ScreeningModel,
    request_: BacktestRequest,
    tmp_path: Path,
) -> None:
    request = with_table(request_, tmp_path / "changed.parquet", **columns)
    with pytest.raises(InputDataError, match=message):
        judge(model, request, **changes)


def test_too_few_compounds_cannot_calibrate_themselves(
    model: ScreeningModel, tiny_model: Path, request_: BacktestRequest, tmp_path: Path
) -> None:
    pd.read_parquet(request_.data[0]).head(60).to_parquet(tmp_path / "few.parquet")
    few = replace(request_, data=(tmp_path / "few.parquet",))
    with pytest.raises(InputDataError, match=r"60 compounds .* too few to calibrate on in folds"):
        judge(model, few, calibration="folds")
    with pytest.raises(ModelError, match="never calibrated"):
        judge(load_model(tiny_model), few, calibration="model")


def test_real_labels_and_rankings(data_dir: Path, tmp_path: Path) -> None:
    """Labels are the decomposition energies of the data; IRNet beats the Random Forest.

    Of 6,000 ground states 98.9 % agree within 1 meV/atom and 99.9 % on what is stable.
    """
    table = pd.read_parquet(data_dir / "mp_groundstates.parquet").sample(2000, random_state=0)
    phases = read_references(data_dir / "mp_groundstates.parquet").phases
    energies = table["formation_energy_per_atom"].to_numpy()
    ours = label_by_references(phases, table["formula"].tolist(), energies)
    theirs = table["decomposition_energy_per_atom"].to_numpy()
    assert (np.abs(ours - theirs) < 1e-3).mean() > 0.98
    assert ((ours <= 0) == (theirs <= 0)).mean() > 0.995
    result = run_backtest(
        load_model("mp-icsd-irnet17"),
        BacktestRequest(
            (data_dir / "eval_prototypes.parquet",),
            data_dir / "mp_groundstates.parquet",
            calibration="model",
        ),
        tmp_path,
    )
    net, forest, perfect = (result.find(name) for name in ("irnet", "random_forest_energy", "dft"))
    assert net is not None
    assert forest is not None
    assert perfect is not None
    assert result.seen == 162
    assert net.counts.acceleration > forest.counts.acceleration
    assert perfect.roc_auc > 0.95 > net.roc_auc > forest.roc_auc
