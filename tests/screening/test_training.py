from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from irnet import Recipe
from irnet.ensemble import Member
from irnet.trainee import MemberTask
from irnet.training import train_together
from screening.dataset import Protocol, reduce_formula
from screening.errors import ConfigurationError, OutputError
from screening.features.schema import FEATURES
from screening.model_card import Source
from screening.model_library import FORMER_FORMULAS_NAME, REFERENCE_NAME, load_model
from screening.training import (
    HELD_OUT_NAME,
    REQUEST_NAME,
    WORK_NAME,
    Reporter,
    TrainingRequest,
    clear_folder,
    load_rows,
    train_model,
)

RECIPE = Recipe(architecture="16BAR-1", epochs=3, batch_size=32, precision="fp32")


class Killed(BaseException):
    """Stands for the death of the process."""


def write_data(path: Path, rows: int = 240) -> Path:
    random = np.random.default_rng(0)
    values = random.normal(size=(rows, len(FEATURES)))
    table = pd.DataFrame(values, columns=list(FEATURES))
    table.insert(0, "id", [f"r{i}" for i in range(rows)])
    symbols = "Li Na K Mg Ca Al Fe Cu O S F Cl".split()
    pairs = [a + b for a in symbols for b in symbols if a != b]
    table["formula"] = [pairs[i % len(pairs)] for i in range(rows)]
    table["formation_energy_per_atom"] = values[:, :4].sum(axis=1)
    table.to_parquet(path)
    return path


@pytest.fixture
def request_(tmp_path: Path) -> TrainingRequest:
    return TrainingRequest(
        data=(write_data(tmp_path / "d.parquet"),),
        out=tmp_path / "model",
        protocol=Protocol(excluded_formulas=frozenset({"NaCl"})),
        recipe=RECIPE,
        members=2,
        forest=False,
        device="cpu",
        sources=(Source(what="all", citation="nobody", licence="none"),),
    )


def test_a_training_ends_in_a_model_with_a_true_card(request_: TrainingRequest) -> None:
    card = train_model(request_)
    model = load_model(request_.out)
    assert model.card == card
    assert len(model.ensemble.members) == 2
    assert model.forest is None
    formulas = pd.read_parquet(request_.data[0])["formula"]
    pure = [f for f in formulas if f not in ("NaCl", "ClNa")]
    assert card.data.rows + card.data.held_out_rows == len(pure)
    assert sum(card.data.dropped.values()) == len(formulas) - len(pure)
    assert not model.training_formulas.contains(["NaCl"]).any()
    assert card.training.recipe["epochs"] == 3
    assert {score.predictor for score in card.held_out} == {"irnet", "irnet_member"}
    features, target = load_rows(request_.out / HELD_OUT_NAME)
    mean = model.ensemble.scorer().predict(features).mean
    score = card.find_score("held_out")
    assert score is not None
    assert score.mae == pytest.approx(np.abs(mean - target).mean(), rel=1e-5)
    assert score.n == len(target)
    assert not (request_.out / WORK_NAME).exists()
    assert set(card.data.elements) == set("Li Na K Mg Ca Al Fe Cu O S F Cl".split())


def test_numbers_are_not_learnt_by_cross_entropy_nor_classes_by_another_loss(
    request_: TrainingRequest,
) -> None:
    for wrong in (
        replace(request_, recipe=RECIPE.with_changes(loss="cross_entropy")),
        replace(request_, protocol=Protocol(classes=True, split_at=0.0)),
    ):
        with pytest.raises(ConfigurationError, match="are learnt by cross_entropy"):
            train_model(wrong)
    assert not request_.out.exists()


def test_training_on_everything_has_no_held_out_errors(request_: TrainingRequest) -> None:
    card = train_model(replace(request_, holdout=0.0))
    assert card.held_out == ()
    assert card.data.held_out_rows == 0


def test_a_forest_is_trained_and_described(request_: TrainingRequest) -> None:
    card = train_model(replace(request_, forest=True, members=1))
    model = load_model(request_.out)
    assert model.forest is not None
    assert card.training.forest is not None
    assert card.training.forest["n_estimators"] in (100, 150, 200)
    assert card.find_score("held_out", "random_forest") is not None


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_training_ends_as_an_undisturbed_one(
    request_: TrainingRequest, tmp_path: Path, jobs: int
) -> None:
    request_ = replace(request_, jobs=jobs)
    undisturbed = train_model(replace(request_, out=tmp_path / "other"))

    def die(done: int, total: int, note: str) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        train_model(request_, reporter=Reporter(trained=die))
    assert (request_.out / WORK_NAME).exists()
    epochs: list[int] = []
    card = train_model(
        request_, reporter=Reporter(trained=lambda done, total, note: epochs.append(done))
    )
    assert len(epochs) < 6
    assert max(epochs) == 6
    assert card.held_out == undisturbed.held_out


def test_the_same_request_again_changes_nothing(request_: TrainingRequest) -> None:
    card = train_model(request_)
    before = {path: path.stat().st_mtime_ns for path in request_.out.rglob("*")}
    said: list[str] = []
    assert train_model(request_, reporter=Reporter(said.append)) == card
    assert {path: path.stat().st_mtime_ns for path in request_.out.rglob("*")} == before
    assert "nothing to do" in said[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": RECIPE.with_changes(epochs=4)}, "recipe epochs is 3, not 4"),
        ({"members": 3}, "number of members is 2, not 3"),
        ({"seed": 5}, "seed is 0, not 5"),
        ({"holdout": 0.2}, "held-out share"),
        ({"forest": True}, "forest is False, not True"),
        ({"protocol": Protocol()}, "its data is"),
        ({"unit": "eV"}, "unit is 'eV/atom', not 'eV'"),
    ],
)
def test_another_trainings_folder_is_refused(
    request_: TrainingRequest, change: dict[str, object], message: str
) -> None:
    train_model(request_)
    with pytest.raises(ConfigurationError, match=message):
        train_model(replace(request_, **change))  # type: ignore[arg-type]


def test_a_training_that_an_older_version_began_is_recognised(
    request_: TrainingRequest,
) -> None:
    card = train_model(request_)
    path = request_.out / REQUEST_NAME
    begun = json.loads(path.read_text())
    first_version = {
        *("data", "rows", "features", "number of members", "seed", "held-out share", "forest"),
        *("recipe name", "recipe architecture", "recipe epochs", "recipe batch_size"),
        *("recipe optimizer", "recipe learning_rate", "recipe weight_decay", "recipe schedule"),
        *("recipe gradient_clip", "recipe scale_inputs", "recipe clip_sigma"),
        *("recipe scale_target", "recipe validation_fraction", "recipe patience"),
        *("recipe precision", "recipe dropout"),
    }
    assert first_version < set(begun)
    path.write_text(json.dumps({key: begun[key] for key in first_version}))
    assert train_model(request_) == card
    noisy = replace(request_, recipe=RECIPE.with_changes(input_noise=0.1))
    with pytest.raises(ConfigurationError, match=r"recipe input_noise is 0\.0, not 0\.1"):
        train_model(noisy)


def test_a_model_of_an_older_version_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / FORMER_FORMULAS_NAME).write_bytes(b"hashes")
    clear_folder(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_model_knows_ids_energies_and_types(request_: TrainingRequest) -> None:
    data = pd.read_parquet(request_.data[0])
    data["structure_type"] = ["B2" if f == "LiNa" else None for f in data["formula"]]
    data.to_parquet(request_.data[0])
    everything = replace(request_, holdout=0.0)
    train_model(everything)
    table = load_model(request_.out).training_formulas
    trained = data[~data["formula"].isin(["NaCl", "ClNa"])].copy()
    trained["formula"] = [reduce_formula(formula) for formula in trained["formula"]]
    lowest = trained.sort_values("formation_energy_per_atom").drop_duplicates("formula")
    lowest = lowest.set_index("formula").loc[list(table.formulas)]
    assert table.ids.tolist() == lowest["id"].tolist()
    assert table.energies == pytest.approx(lowest["formation_energy_per_atom"], abs=5.1e-4)
    typed = {reduce_formula("LiNa"): "AB_cP2_221_a_b"}
    assert table.types.tolist() == [typed.get(formula, "") for formula in table.formulas]

    other = replace(everything, out=request_.out.with_name("other"), unit="g/cm³")
    train_model(other)
    assert np.isnan(load_model(other.out).training_formulas.energies).all()


def test_a_sample_of_the_training_features_is_kept(request_: TrainingRequest) -> None:
    from irnet.reference import TrainingReference

    train_model(request_)
    reference = TrainingReference.load(request_.out / REFERENCE_NAME)
    held_out, _ = load_rows(request_.out / HELD_OUT_NAME)
    assert reference.distance(held_out).min() > 0
    clear_folder(request_.out)
    assert not request_.out.exists()


def test_members_are_trained_by_what_is_given(request_: TrainingRequest, tmp_path: Path) -> None:
    folders: list[Path] = []

    def run(function: Callable[[MemberTask], Member], tasks: Sequence[MemberTask]) -> list[Member]:
        folders.extend(task.folder for task in tasks)
        return [function(task) for task in tasks]

    done: list[tuple[int, int]] = []
    reporter = Reporter(trained=lambda done_, total, note: done.append((done_, total)))
    card = train_model(request_, run_members=run, reporter=reporter)
    assert len(folders) == request_.members
    assert all(folder.is_absolute() for folder in folders)
    assert done[-1] == (6, 6)
    assert [each for each, _ in done] == sorted(each for each, _ in done)
    here = train_model(replace(request_, out=tmp_path / "here"))
    assert card.held_out == here.held_out


def test_progress_of_stacked_members_counts_the_epochs_of_each(
    request_: TrainingRequest, tmp_path: Path
) -> None:
    done: list[tuple[int, int]] = []

    def train(name: str, members: int, begin: int) -> None:
        def run(_: object, tasks: Sequence[MemberTask]) -> list[Member]:
            for finished in tasks[:begin]:
                train_together([replace(finished, progress=None)])
            return train_together(tasks)

        done.clear()
        reporter = Reporter(trained=lambda *progress: done.append(progress[:2]))
        request = replace(request_, members=members, out=tmp_path / name)
        train_model(request, run_members=run, reporter=reporter)

    train("all", 3, begin=0)
    assert done == [(epochs, 9) for epochs in range(1, 10)]
    train("two", 3, begin=1)
    assert done == [(epochs, 9) for epochs in range(4, 10)]


def test_a_member_that_lost_patience_counts_as_done(request_: TrainingRequest) -> None:
    recipe = RECIPE.with_changes(epochs=40, patience=1, learning_rate=0.5)
    done: list[int] = []
    reporter = Reporter(trained=lambda epochs, total, note: done.append(total - epochs))
    train_model(replace(request_, recipe=recipe), reporter=reporter)
    stopped = load_model(request_.out).ensemble.members
    assert max(member.record["epochs"] for member in stopped) < 40
    assert done[-1] == 40 - stopped[1].record["epochs"]


def test_jobs_are_never_more_than_cores(
    request_: TrainingRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, list[int]] = {"members": [], "forest": []}

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            given["members"].append(workers)
            super().__init__(workers)

    def fit(*_: object, n_jobs: int, **__: object) -> None:
        given["forest"].append(n_jobs)
        raise Killed

    monkeypatch.setattr("screening.training.ThreadPoolExecutor", Pool)
    monkeypatch.setattr("screening.training.count_cores", lambda: 2)
    monkeypatch.setattr("irnet.fit_forest", fit)
    for jobs in (1, 8):
        out = request_.out.with_name(f"jobs-{jobs}")
        with pytest.raises(Killed):
            train_model(replace(request_, jobs=jobs, members=3, forest=True, out=out))
    assert given == {"members": [2], "forest": [1, 2]}


def test_folders_of_something_else_are_left_alone(request_: TrainingRequest) -> None:
    request_.out.mkdir()
    (request_.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match="holds no training"):
        train_model(request_)
    with pytest.raises(ConfigurationError, match=r"thesis\.tex"):
        clear_folder(request_.out)
    assert (request_.out / "thesis.tex").exists()
    (request_.out / "thesis.tex").unlink()
    (request_.out / REQUEST_NAME).write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        train_model(request_)
    clear_folder(request_.out)
    assert not request_.out.exists()


def test_unwritable_folders_are_an_output_error(request_: TrainingRequest) -> None:
    request_.out.write_text("a file")
    with pytest.raises(OutputError):
        train_model(request_)


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
def test_structures_are_featurized_or_joined_to_features(
    request_: TrainingRequest, tmp_path: Path
) -> None:
    symbols = ["Li", "Na", "K", "Rb", "Cs", "F", "Cl", "Br", "I", "Cu", "Ag"]
    rows = [
        {
            "id": a + b,
            "lattice": (4 * np.eye(3)).ravel(),
            "species": [a, b],
            "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
            "formation_energy_per_atom": float(i % 7),
        }
        for i, (a, b) in enumerate((a, b) for a in symbols for b in symbols if a < b)
    ]
    rows[3]["species"] = ["Lr", "Rf"]
    path = tmp_path / "s.parquet"
    pd.DataFrame(rows).to_parquet(path)
    request = replace(request_, data=(path,), members=1, holdout=0.0, protocol=Protocol())
    card = train_model(request)
    assert card.data.rows == len(rows) - 1
    assert sum(card.data.dropped.values()) == 1

    from screening.feature_tables import featurize_structures, write_features
    from screening.structures import read_structure_table

    crystals, _ = read_structure_table(path)
    table = tmp_path / "f.parquet"
    write_features(featurize_structures(crystals[:30], tmp_path / "parts"), table)
    joined = train_model(replace(request, features=table, out=tmp_path / "joined"))
    assert joined.data.rows == 29
    assert joined.data.dropped["not in the feature table"] == len(rows) - 30


def test_the_request_is_readable(request_: TrainingRequest) -> None:
    train_model(request_)
    written = json.loads((request_.out / REQUEST_NAME).read_text())
    assert written["recipe epochs"] == 3
    assert len(written["data"]) == 64
