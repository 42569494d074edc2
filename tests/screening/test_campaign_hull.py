"""Campaigns against reference phases, against the model's own hull, and against each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from typer.testing import CliRunner, Result

from prototypes import ATOMIC_NUMBERS, find_prototype
from screening.cli import app
from screening.competitors import identify_decorations
from screening.phases import Phases

POOL = "Li,Na,Mg,Ca,O,F,Cl"
REFERENCES = {
    "LiF": -3.0, "NaF": -2.8, "NaCl": -2.1, "LiCl": -2.0, "MgO": -3.0, "CaO": -3.2, "Li2O": -2.0,
    "CaF2": -4.1, "MgF2": -3.8, "Mg2Ca": -0.1, "NaMgF3": -3.4, "LiCaF3": -3.5, "NaClO3": -0.7,
    "Na2O": -1.4, "ClF3": -0.4,
}  # fmt: skip


def run(folder: Path, model: Path, *options: str) -> Result:
    call = [
        "run", "--prototype", "B2", "--prototype", "cubic_perovskite", "--elements", POOL,
        "--model", str(model), "--workers", "0", "--shard-size", "100", "--out", str(folder),
        *options,
    ]  # fmt: skip
    return CliRunner().invoke(app, call)


def read(folder: Path) -> pd.DataFrame:
    return pq.read_table(folder / "ranking.parquet").to_pandas()


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("references") / "phases.csv"
    table = pd.DataFrame(
        {"formula": REFERENCES.keys(), "formation_energy_per_atom": REFERENCES.values()}
    )
    table["id"] = [f"ref-{number}" for number in range(len(table))]
    table.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def against_references(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, references: Path
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "references"
    done = run(folder, tiny_model, "--references", str(references))
    assert done.exit_code == 0, done.output
    assert "above the hull of 15 reference phases in phases.csv" in " ".join(done.stdout.split())
    return folder


@pytest.fixture(scope="module")
def against_itself(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "itself"
    done = run(folder, tiny_model, "--competitors", "ternary")
    assert done.exit_code == 0, done.output
    return folder


def hull_energy(formula: str, phases: list[tuple[str, float]]) -> float:
    """Formation energy of the lowest mixture by pymatgen, eV/atom."""
    composition = Composition(formula)
    entries = [PDEntry(Composition(symbol), 0.0) for symbol in composition.chemical_system_set]
    entries += [
        PDEntry(Composition(name), energy * Composition(name).num_atoms)
        for name, energy in phases
        if Composition(name).chemical_system_set <= composition.chemical_system_set
    ]
    return float(PhaseDiagram(entries).get_hull_energy_per_atom(composition))


def test_energies_above_references_are_those_of_pymatgen(against_references: Path) -> None:
    ranking = read(against_references)
    rows = ranking.iloc[:: max(1, len(ranking) // 60)]
    phases = list(REFERENCES.items())
    for _, row in rows.iterrows():
        expected = hull_energy(row["formula"], phases)
        above = row["formation_enthalpy_ev_per_atom"] - expected
        assert row["energy_above_hull_ev_per_atom"] == pytest.approx(above, abs=2e-6)
        by_forest = row["rf_formation_enthalpy_ev_per_atom"] - expected
        assert row["rf_energy_above_hull_ev_per_atom"] == pytest.approx(by_forest, abs=2e-6)


def test_known_references_are_told(against_references: Path) -> None:
    row = read(against_references).set_index("formula").loc["NaMgF3"].iloc[0]
    assert row["known"]
    assert row["known_id"] == "ref-10"
    assert row["known_formation_enthalpy_ev_per_atom"] == pytest.approx(-3.4)
    manifest = json.loads((against_references / "manifest.json").read_text())
    assert manifest["competitors"]["references"]["phases"] == len(REFERENCES)
    assert manifest["campaign"]["references"] == manifest["competitors"]["references"]["sha256"]


def test_energies_above_the_models_own_hull_are_those_of_pymatgen(against_itself: Path) -> None:
    phases = Phases.load(against_itself / "competitors.arrow")
    ranking = read(against_itself)
    assert ranking["references_in_system"].min() > 0
    for _, row in ranking.iloc[:: max(1, len(ranking) // 40)].iterrows():
        prototype = find_prototype(row["prototype"])
        numbers = np.array([[ATOMIC_NUMBERS[row[f"site_{role}"]] for role in prototype.roles]])
        own = identify_decorations(prototype, numbers)[0]
        others = [
            (formula, energies[0])
            for formula, energies, identity in zip(
                phases.formulas, phases.energies, phases.identities, strict=True
            )
            if identity != own
        ]
        above = row["formation_enthalpy_ev_per_atom"] - hull_energy(row["formula"], others)
        assert row["energy_above_hull_ev_per_atom"] == pytest.approx(above, abs=2e-6)


def test_more_competitors_never_lower_an_energy_above_hull(
    against_itself: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / "binary", tiny_model, "--competitors", "binary")
    assert done.exit_code == 0, done.output
    keys = ["prototype", "candidate"]
    binary = read(tmp_path / "binary").set_index(keys)["energy_above_hull_ev_per_atom"]
    ternary = read(against_itself).set_index(keys)["energy_above_hull_ev_per_atom"]
    gain = ternary - binary
    assert gain.min() > -2e-6
    assert gain.max() > 0.01


def test_without_competitors_there_is_no_hull(tiny_model: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "none", tiny_model, "--competitors", "none")
    assert done.exit_code == 0, done.output
    ranking = read(tmp_path / "none")
    for name in ("energy_above_hull_ev_per_atom", "decomposition", "references_in_system"):
        assert ranking[name].isna().all()
    assert ranking["formation_enthalpy_ev_per_atom"].is_monotonic_increasing
    assert "no hull was computed" in done.stderr
    assert "formation enthalpy alone is not stability" in " ".join(done.stderr.split())


def test_other_competitors_take_the_energies_over(
    against_itself: Path, against_references: Path, references: Path, tmp_path: Path
) -> None:
    call = ["hull", against_itself, "--references", references, "--out", tmp_path / "new"]
    done = CliRunner().invoke(app, [str(each) for each in (*call, "--workers", "0")])
    assert done.exit_code == 0, done.output
    keys = ["prototype", "candidate"]
    expected = read(against_references).sort_values(keys).reset_index(drop=True)
    found = read(tmp_path / "new").sort_values(keys).reset_index(drop=True)
    close = ["energy_above_hull_ev_per_atom", "energy_above_hull_std_ev_per_atom"]
    close += ["rf_energy_above_hull_ev_per_atom"]
    for name in close:
        np.testing.assert_allclose(found[name], expected[name], atol=3e-6)
    ranks = ["rank", "rf_rank"]
    pd.testing.assert_frame_equal(
        found.drop(columns=[*close, *ranks]), expected.drop(columns=[*close, *ranks])
    )


def test_other_competitors_need_another_folder(against_itself: Path, references: Path) -> None:
    call = ["hull", str(against_itself), "--references", str(references)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2
    assert "give --out another folder" in done.stderr


def test_an_incomplete_campaign_gives_no_energies_to_take_over(
    against_itself: Path, references: Path, tmp_path: Path
) -> None:
    shutil.copytree(against_itself, tmp_path / "part")
    (tmp_path / "part" / "shards" / "00001.parquet").unlink()
    call = ["hull", tmp_path / "part", "--references", references, "--out", tmp_path / "new"]
    done = CliRunner().invoke(app, [str(each) for each in call])
    assert done.exit_code == 2
    assert "is not complete: 1 of" in done.stderr


def test_candidates_that_compete_see_each_other(
    against_references: Path, tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / "compete", tiny_model, "--references", str(references), "--compete")
    assert done.exit_code == 0, done.output
    assert "the other candidates" in " ".join(done.stdout.split())
    ranking = read(tmp_path / "compete")
    energies = read(against_references)
    rows = ranking[ranking["prototype"] == "cubic_perovskite"].iloc[::25]
    for _, row in rows.iterrows():
        itself = (energies["prototype"] == row["prototype"]) & (
            energies["candidate"] == row["candidate"]
        )
        others = energies[~itself]
        phases = [
            *REFERENCES.items(),
            *zip(others["formula"], others["formation_enthalpy_ev_per_atom"], strict=True),
        ]
        above = row["formation_enthalpy_ev_per_atom"] - hull_energy(row["formula"], phases)
        assert row["energy_above_hull_ev_per_atom"] == pytest.approx(above, abs=3e-6)


def test_conditions_remove_candidates_and_say_how_many(
    against_references: Path, tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references),
        "--require", "charge-neutral", "--require", "energy_above_hull_ev_per_atom < 1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    everything, kept = read(against_references), read(tmp_path / "a")
    neutral = everything["charge_neutral"].fillna(True).astype(bool)
    low = everything["energy_above_hull_ev_per_atom"] < 1
    assert 0 < (neutral & low).sum() < neutral.sum() < len(everything)
    assert set(kept["formula"]) == set(everything[neutral & low]["formula"])
    assert len(kept) == (neutral & low).sum()
    removed = json.loads((tmp_path / "a" / "manifest.json").read_text())["removed"]
    assert removed["charge_neutral"] == {
        "removed": (~neutral).sum(),
        "not_applicable": everything["charge_neutral"].isna().sum(),
    }
    assert removed["energy_above_hull_ev_per_atom < 1"]["removed"] == (neutral & ~low).sum()
    assert f"required charge_neutral: {(~neutral).sum():,} candidates removed" in done.stderr


def test_a_condition_that_is_given_twice_counts_once(
    against_references: Path, tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references),
        "--require", "charge_neutral", "--require", "charge-neutral = yes",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    removed = json.loads((tmp_path / "a" / "manifest.json").read_text())["removed"]
    assert list(removed) == ["charge_neutral"]
    gone = len(read(against_references)) - len(read(tmp_path / "a"))
    assert removed["charge_neutral"]["removed"] == gone > 0


def test_a_condition_on_a_role_keeps_prototypes_without_it(
    tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references),
        "--prototype", "ABCD_tP8_129_c_b_a_c", "--elements", "A=Li,Na", "--elements", "B=Mg,Ca",
        "--elements", "C=O,F", "--elements", "X=Cl,F", "--require", "site_C = O",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    on_c = read(tmp_path / "a").set_index("prototype")["site_C"]
    assert set(on_c["ABCD_tP8_129_c_b_a_c"]) == {"O"}
    assert len(on_c["B2"]) == 4 and len(on_c["cubic_perovskite"]) == 8
    removed = json.loads((tmp_path / "a" / "manifest.json").read_text())["removed"]
    assert removed == {"site_C = O": {"removed": 4, "not_applicable": 12}}


def test_workers_notice_other_references_in_a_folder_of_the_same_name(
    tiny_model: Path, tmp_path: Path
) -> None:
    known = []
    for formula in ("NaMgF3", "LiCaF3"):
        table = pd.DataFrame({"formula": [formula], "formation_energy_per_atom": [-5.0]})
        table.to_csv(tmp_path / "references.csv", index=False)
        done = run(tmp_path / "a", tiny_model, "--references", str(tmp_path / "references.csv"))
        assert done.exit_code == 0, done.output
        told = read(tmp_path / "a").set_index("formula")["known_formation_enthalpy_ev_per_atom"]
        known.append({name for name in ("NaMgF3", "LiCaF3") if (told[name] == -5.0).all()})
        shutil.rmtree(tmp_path / "a")
    assert known == [{"NaMgF3"}, {"LiCaF3"}]


def test_a_campaign_does_not_go_on_when_its_references_changed(
    tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "references.csv"
    call = (tmp_path / "a", tiny_model, "--references", str(path))
    for energy, code in ((-3.0, 0), (-3.1, 2)):
        table = pd.DataFrame({"formula": ["NaMgF3"], "formation_energy_per_atom": [energy]})
        table.to_csv(path, index=False)
        done = run(*call)
        assert done.exit_code == code, done.output
    assert "holds another campaign (references: " in done.stderr


def test_candidates_left_out_by_the_old_hull_are_not_missed_on_a_new_one(
    tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references), "--compete",
        "--require", "charge_neutral", "--require", "energy_above_hull_ev_per_atom < 1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    call = ["hull", str(tmp_path / "a"), "--no-compete", "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2
    assert "left out candidates by energy_above_hull_ev_per_atom < 1 after" in done.stderr


def test_conditions_of_a_campaign_hold_on_a_new_hull(
    against_references: Path, tiny_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references), "--compete",
        "--require", "charge_neutral",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    call = ["hull", tmp_path / "a", "--no-compete", "--workers", "0", "--out", tmp_path / "b"]
    done = CliRunner().invoke(app, [str(each) for each in call])
    assert done.exit_code == 0, done.output
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab"]
    assert manifests[0]["removed"] == manifests[1]["removed"]
    assert [each["campaign"]["compete"] for each in manifests] == [True, False]
    columns = ["prototype", "candidate", "energy_above_hull_ev_per_atom"]
    found = read(tmp_path / "b")[columns]
    expected = found.merge(read(against_references)[columns], on=columns[:2])
    assert len(found) == len(expected) == len(read(tmp_path / "a"))
    np.testing.assert_allclose(expected[f"{columns[2]}_x"], expected[f"{columns[2]}_y"], atol=3e-6)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--require", "charge_netral"], 2, 'did you mean "charge_neutral"'),
        (["--require", "rank < 10"], 2, "rank"),
        (
            ["--require", "site_C = O"],
            2,
            "no prototype of the campaign has a role C; the roles are",
        ),
        (["--competitors", "binry"], 2, 'did you mean "binary"'),
        (["--rank-by", "p_stabel"], 2, 'did you mean "p_stable"'),
        (["--functional", "r2SCAN"], 2, "none are given"),
        (["--references", "nothing.parquet"], 3, "nothing.parquet"),
        (["--stable-within", "nan"], 2, "stable-within"),
        (["--competitors", "none", "--require", "p_stable > 0.5"], 2, "needs a hull"),
    ],
)
def test_mistakes_are_told_before_anything_is_computed(
    options: list[str], code: int, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / "a", tiny_model, *options)
    assert done.exit_code == code, done.output
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "a" / "ranking.parquet").exists()


def test_predicted_phases_fill_the_gaps_of_references(
    against_references: Path, references: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", tiny_model, "--references", str(references), "--competitors", "binary"
    )
    assert done.exit_code == 0, done.output
    told = " ".join(done.stdout.split())
    predicted = json.loads((tmp_path / "a" / "manifest.json").read_text())["competitors"]
    count = sum(predicted["predicted"].values())
    assert f"15 reference phases in phases.csv and {count:,} phases of 20 structure types" in told
    keys = ["prototype", "candidate"]
    filled = read(tmp_path / "a").set_index(keys)
    given = read(against_references).set_index(keys).loc[filled.index]
    gain = filled["energy_above_hull_ev_per_atom"] - given["energy_above_hull_ev_per_atom"]
    assert gain.min() > -2e-6
    assert gain.max() > 0.01
    phases = Phases.load(tmp_path / "a" / "phases.arrow")
    rows = list(zip(phases.formulas, phases.energies[:, 0], phases.identities, strict=True))
    for (name, _), row in list(filled.iterrows())[::30]:
        prototype = find_prototype(name)
        numbers = np.array([[ATOMIC_NUMBERS[row[f"site_{role}"]] for role in prototype.roles]])
        own = identify_decorations(prototype, numbers)[0]
        others = [(formula, energy) for formula, energy, identity in rows if identity != own]
        above = row["formation_enthalpy_ev_per_atom"] - hull_energy(row["formula"], others)
        assert row["energy_above_hull_ev_per_atom"] == pytest.approx(above, abs=2e-6)


def test_candidates_without_competitors_are_counted(
    against_references: Path, references: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = run(tmp_path / "a", tiny_model, "--references", str(references))
    ranking = read(tmp_path / "a")
    terms = ranking["decomposition"].str.split(" + ", regex=False)
    alone = terms.map(lambda each: all(Composition(term.split()[-1]).is_element for term in each))
    assert 0 < alone.sum() < len(ranking)
    assert (
        f"{alone.sum():,} of {len(ranking):,} candidates, {alone[:100].sum()} of the best 100, "
        "compete with the elements alone" in done.stderr
    )
    assert "With --competitors binary the model predicts phases" in done.stderr


def test_references_of_another_functional_are_warned_of(
    references: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    card = json.loads((model / "card.json").read_text())
    card["data"]["functional"] = "PBE"
    (model / "card.json").write_text(json.dumps(card))
    done = run(
        tmp_path / "a", model, "--references", str(references), "--functional", "r2SCAN",
        "--elements", "X=F,K",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = " ".join(done.stderr.split())
    assert "r2SCAN energies and the model predicts PBE" in told
    assert "no reference phase holds K" in told


def test_a_calibrated_model_ranks_by_probability(
    calibrated_model: Path, references: Path, tmp_path: Path
) -> None:
    done = run(
        tmp_path / "a", calibrated_model, "--references", str(references),
        "--stable-within", "0.2",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    ranking = read(tmp_path / "a")
    ordered = ranking.sort_values(
        ["p_stable", "energy_above_hull_ev_per_atom"], ascending=[False, True], kind="stable"
    )
    assert ranking["p_stable"].between(0, 1).all()
    assert (ordered["rank"].diff().dropna() == 1).mean() > 0.95  # ties apart
    assert ranking["p_stable"].is_monotonic_decreasing
    assert (ranking["energy_above_hull_std_ev_per_atom"] > 0).all()

    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "a" / "shards").iterdir())
    again = run(
        tmp_path / "a", calibrated_model, "--references", str(references),
        "--stable-within", "0.2", "--rank-by", "upper-bound",
    )  # fmt: skip
    assert again.exit_code == 0, again.output
    cautious = read(tmp_path / "a")
    bound = (
        cautious["energy_above_hull_ev_per_atom"]
        + 1.2816 * cautious["energy_above_hull_std_ev_per_atom"]
    )
    assert bound.is_monotonic_increasing
    after = sorted(path.stat().st_mtime_ns for path in (tmp_path / "a" / "shards").iterdir())
    assert before == after

    other = run(
        tmp_path / "a", calibrated_model, "--references", str(references),
        "--stable-within", "0.2", "--rank-by", "formation-enthalpy",
    )  # fmt: skip
    assert other.exit_code == 0, other.output
    status = json.loads(CliRunner().invoke(app, ["status", str(tmp_path / "a"), "--json"]).stdout)
    assert [(row["prototype"], row["candidate"]) for row in status["best"]] == list(
        read(tmp_path / "a")[["prototype", "candidate"]].head(10).itertuples(index=False, name=None)
    )


def test_results_are_filtered_ordered_and_thinned_on_request(against_references: Path) -> None:
    def show(*options: str) -> str:
        done = CliRunner().invoke(app, ["show", str(against_references), *options])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "chosen from" in show("--require", "references_in_system >= 3")
    by_name = show("--top", "5", "--prototype", "B2")
    for name in ("b2", "CsCl", "cscl", "elsewhere/B2.cif"):
        assert show("--top", "5", "--prototype", name) == by_name
    everything = show("--top", "5")
    assert show("--top", "5", "--rank-by", "formation_enthalpy") != everything
    diverse = show("--top", "5", "--diverse")
    assert diverse.startswith("Diverse 5 of")
    formulas = [line.split()[1] for line in diverse.splitlines() if line[:4].strip().isdigit()]
    assert len(set(formulas)) == 5
