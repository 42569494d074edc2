from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    roc_auc_score,
)
from typer.testing import CliRunner, Result

from screening.card_page import page_of
from screening.classification import (
    Labels,
    combine_forests,
    count_classes,
    cut_in_two,
    describe_accuracy,
    drop_empty_classes,
    expect_shares,
    fit_class_forests,
    merge_labels,
    read_labels,
    score_classes,
    tabulate_classes,
    tabulate_each_class,
)
from screening.cli import app
from screening.columns import CLASS_PREDICTIONS, check_table
from screening.errors import InputDataError, ModelError
from screening.features.schema import FEATURES
from screening.model_card import ClassificationCard, read_card
from screening.model_library import load_classifier, load_model
from screening.parquet import read_columns
from screening.structures import read_structures
from screening.training import HELD_OUT_NAME, load_rows

Screening = Callable[..., Result]

FEW = {"n_estimators": 5, "max_depth": 6, "min_samples_split": 5, "max_features": 0.25}
FAST = (
    *("--architecture", "16BAR-1", "--members", 2, "--device", "cpu", "--workers", 0),
    *("--precision", "fp32", "--batch-size", 32, "--holdout", 0.25),
)

LEARNING = ("--epochs", 12, "--learning-rate", 0.01)


def names_of(labels: Labels) -> list[str | None]:
    return [None if np.isnan(n) else labels.classes[int(n)] for n in labels.numbers]


def column(*values: object) -> pd.Series[Any]:
    return pd.Series(list(values), name="kind", dtype=object)


def test_texts_and_truth_values_are_classes() -> None:
    labels = read_labels(column("metal", None, "gap", " ", "metal", float("nan")), Path("d"))
    assert labels.classes == ("gap", "metal")
    assert names_of(labels) == ["metal", None, "gap", None, "metal", None]
    truths = read_labels(pd.Series([True, False, True]), Path("d"))
    assert names_of(truths) == ["True", "False", "True"]
    holes = read_labels(pd.Series([True, None], dtype="boolean"), Path("d"))
    assert names_of(holes) == ["True", None]
    assert names_of(read_labels(pd.Series(["b", "a"], dtype="category"), Path("d"))) == ["b", "a"]
    assert names_of(read_labels(column(None, None), Path("d"))) == [None, None]
    assert read_labels(column(), Path("d")).classes == ()


@pytest.mark.parametrize("values", [[0, 1], [0.5, 0.2], ["a", 3], ["a", ["b"]]])
def test_numbers_are_no_classes_until_they_are_cut(values: list[object]) -> None:
    with pytest.raises(InputDataError, match=r"d: column 'kind' holds .*--split-at"):
        read_labels(column(*values), Path("d"))


@given(st.lists(st.floats(width=32), max_size=20), st.floats(-1e6, 1e6))
def test_a_cut_makes_two_classes(values: list[float], bound: float) -> None:
    labels = cut_in_two(np.array(values, dtype=np.float64), bound)
    first, second = labels.classes
    assert float(first.removeprefix("at most ")) == pytest.approx(bound, rel=1e-11)
    assert float(second.removeprefix("above ")) == pytest.approx(bound, rel=1e-11)
    expected = [(second if v > bound else first) if np.isfinite(v) else None for v in values]
    assert names_of(labels) == expected


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=4))
def test_files_with_other_classes_are_joined(parts: list[list[str | None]]) -> None:
    labels = [read_labels(column(*part), Path("d")) for part in parts]
    merged = merge_labels(labels)
    assert names_of(merged) == [name for part in parts for name in part]
    assert merged.classes == tuple(sorted({name for part in parts for name in part if name}))


def test_both_sides_of_a_cut_keep_their_order_and_empty_classes_go() -> None:
    parts = [cut_in_two(np.array(values), 0.5) for values in ([0.1], [0.9, 0.2])]
    merged = merge_labels(parts)
    assert merged.classes == ("at most 0.5", "above 0.5")
    assert names_of(merged) == ["at most 0.5", "above 0.5", "at most 0.5"]
    left = drop_empty_classes(Labels(np.array([2.0, 0.0, 2.0]), ("a", "b", "c")))
    assert left.classes == ("a", "c")
    assert names_of(left) == ["c", "a", "c"]
    assert count_classes(left.numbers, left.classes) == (1, 2)
    assert count_classes(np.array([]), left.classes) == (0, 0)


def rows_of_classes(classes: int, rows: int = 150) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    features = random.normal(size=(rows, len(FEATURES))).astype(np.float32)
    numbers = np.argmax(features[:, :classes] + random.normal(size=(rows, classes)), axis=1)
    return features, numbers.astype(np.float64)


def test_a_forest_of_two_classes_is_scikit_learns_classifier(tmp_path: Path) -> None:
    features, numbers = rows_of_classes(2)
    forests = fit_class_forests(
        features, numbers, ("a", "b"), seed=3, parameters=FEW, work=tmp_path
    )
    expected = RandomForestClassifier(random_state=3, **FEW).fit(features, numbers)
    asked = np.random.default_rng(1).normal(size=(50, len(FEATURES))).astype(np.float32)
    found = combine_forests(forests, asked)
    assert found == pytest.approx(expected.predict_proba(asked), abs=1e-6)
    other = fit_class_forests(features, numbers, ("a", "b"), seed=4, parameters=FEW, work=tmp_path)
    assert np.array_equal(combine_forests(other, asked), found), "it reads what is there"
    anew = fit_class_forests(features, numbers, ("a", "b"), seed=4, parameters=FEW)
    assert not np.array_equal(combine_forests(anew, asked), found)


def test_forests_of_more_classes_are_one_for_each() -> None:
    features, numbers = rows_of_classes(3)
    found = combine_forests(
        fit_class_forests(features, numbers, "abc", seed=0, parameters=FEW), features
    )
    each = np.stack(
        [
            RandomForestClassifier(random_state=0, **FEW)
            .fit(features, numbers == number)
            .predict_proba(features)[:, 1]
            for number in range(3)
        ],
        axis=1,
    )
    assert found == pytest.approx(each / each.sum(axis=1, keepdims=True), abs=1e-6)
    assert (found.argmax(axis=1) == numbers).mean() > 0.8


class NoForest:
    """Stands for a forest that finds its class nowhere."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        return np.zeros(len(features))


def test_rows_that_no_forest_claims_may_be_anything() -> None:
    forests: Any = [NoForest()] * 4
    assert combine_forests(forests, np.zeros((2, 3), np.float32)).tolist() == [[0.25] * 4] * 2


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    random = np.random.default_rng(0)
    names = "abc"[:classes]
    numbers = random.integers(0, classes, 80).astype(np.float64)
    values = random.dirichlet(np.ones(classes), 80)
    shares = expect_shares([3] + [1] * (classes - 1), 80)
    irnet, largest = score_classes({"irnet": values, "largest_class": shares}, numbers, names)
    predicted = values.argmax(axis=1)
    assert irnet.n == 80
    assert irnet.accuracy == pytest.approx(accuracy_score(numbers, predicted))
    assert irnet.accuracy_low < irnet.accuracy < irnet.accuracy_high
    assert irnet.balanced_accuracy == pytest.approx(balanced_accuracy_score(numbers, predicted))
    assert irnet.log_loss == pytest.approx(log_loss(numbers, values))
    assert irnet.f1 == pytest.approx(f1_score(numbers, predicted, average=None))
    assert irnet.average_precision == pytest.approx(
        [average_precision_score(numbers == i, values[:, i]) for i in range(classes)]
    )
    if classes == 2:
        assert irnet.roc_auc == pytest.approx(roc_auc_score(numbers, values[:, 1]))
        assert largest.roc_auc == 0.5
    else:
        assert irnet.roc_auc is None
    assert largest.accuracy == (numbers == 0).mean()
    assert largest.balanced_accuracy == pytest.approx(1 / classes)
    assert largest.f1[1] == 0.0
    assert largest.average_precision[1] == pytest.approx((numbers == 1).mean())


def test_what_is_not_defined_stands_empty() -> None:
    values = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1]])
    (score,) = score_classes({"irnet": values}, np.zeros(2), "abc")
    assert score.f1 == (1.0, None, None)
    assert score.average_precision == (1.0, None, None)
    card = ClassificationCard(
        classes=("a", "b", "c"), rows=(4, 2, 1), held_out_rows=(2, 0, 0), held_out=(score,)
    )
    assert tabulate_each_class(card)[1:] == [
        ["a", "4", "2", "1.0000", "1.0000"],
        ["b", "2", "0", "", ""],
        ["c", "1", "0", "", ""],
    ]
    assert describe_accuracy(card) is None, "there is nothing to compare with"


@pytest.mark.parametrize(
    "change", [{"classes": ("a", "a")}, {"rows": (1,)}, {"classes": ("a",), "rows": (1,)}]
)
def test_cards_of_classes_keep_their_schema(change: dict[str, object]) -> None:
    fine = {"classes": ("a", "b"), "rows": (1, 2), "held_out_rows": (0, 0)}
    ClassificationCard.model_validate(fine)
    with pytest.raises(ValueError, match=r"classes|class"):
        ClassificationCard.model_validate(fine | change)


def write_table(path: Path, rows: int = 240) -> Path:
    """Features that blur two quantities, which decide a class of three, and one is a number."""
    random = np.random.default_rng(0)
    height, width = random.normal(size=(2, rows, 1))
    values = random.normal(size=(rows, len(FEATURES)))
    values[:, :100] += height
    values[:, 100:200] += width
    table = pd.DataFrame(values, columns=list(FEATURES))
    table.insert(0, "id", [f"r{i}" for i in range(rows)])
    symbols = "Li Na K Mg Ca Al Fe Cu O S F Cl".split()
    pairs = [a + b for a in symbols for b in symbols if a != b]
    table["formula"] = [pairs[i % len(pairs)] for i in range(rows)]
    table["kind"] = np.where(height > 0.6, "soft", np.where(width > 0, "hard", "odd"))
    table["metal"] = height > 0
    table["height"] = height
    table.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classes")


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    return write_table(folder / "table.parquet")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def train(data: Path, out: Path, target: str, *options: object) -> Result:
    classes = ("--target", target, "--loss", "cross_entropy")
    return call("train", data, "--out", out, *classes, *FAST, *options)


@pytest.fixture(scope="module")
def classifier(table: Path, folder: Path) -> Path:
    """A model of three classes, with its forest measured."""
    result = train(table, folder / "kinds", "kind", *LEARNING)
    assert result.exit_code == 0, result.output
    assert "Random Forest trained" in result.stderr
    assert "IRNet" in result.stdout
    return folder / "kinds"


def test_a_training_on_texts_ends_in_a_true_card(classifier: Path, table: Path) -> None:
    card = read_card(classifier)
    found = card.classification
    assert found is not None
    assert found.classes == ("hard", "odd", "soft")
    assert card.held_out == ()
    assert card.training.forest is None
    assert found.forest is not None
    features, numbers = load_rows(classifier / HELD_OUT_NAME)
    counts = pd.read_parquet(table)["kind"].value_counts()
    for name, own, held in zip(found.classes, found.rows, found.held_out_rows, strict=True):
        assert own + held == counts[name]
    assert found.held_out_rows == tuple(np.bincount(numbers.astype(int)).tolist())
    model = load_classifier(classifier)
    values = model.ensemble.scorer(device="cpu").classify(features).probabilities
    irnet, forest, largest = found.held_out
    assert [irnet.predictor, forest.predictor] == ["irnet", "random_forest"]
    assert irnet.accuracy == accuracy_score(numbers, values.argmax(axis=1))
    assert irnet.log_loss == pytest.approx(log_loss(numbers, values), rel=1e-6)
    assert irnet.accuracy > largest.accuracy + 0.1
    assert forest.accuracy > largest.accuracy + 0.1
    assert irnet.log_loss < largest.log_loss
    assert largest.predictor == "largest_class"
    assert largest.accuracy == (numbers == np.argmax(found.rows)).mean()
    assert "Classes of kind (hard, odd, soft)" in card.description
    assert any("no energies" in limit for limit in card.limits)
    assert (
        model.training_formulas.energies is None or np.isnan(model.training_formulas.energies).all()
    )


def test_a_killed_training_ends_as_an_undisturbed_one(
    table: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "kinds"
    with monkeypatch.context() as patched:
        patched.setattr("screening.training.score_classes", stop)
        assert train(table, out, "kind", *LEARNING).exit_code == 130
    assert not (out / "card.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr("irnet.forest.fit_forest", stop)
        done = train(table, out, "kind", *LEARNING)
    assert done.exit_code == 0, done.output
    assert read_card(out).classification == read_card(classifier).classification
    assert not (out / "work").exists()


def test_cards_of_classes_are_shown(classifier: Path) -> None:
    shown = call("models", "show", classifier)
    assert shown.exit_code == 0, shown.output
    card = read_card(classifier)
    found = card.classification
    assert found is not None
    score = found.find_score()
    assert score is not None
    assert f"held-out accuracy {score.accuracy:.4f}" in shown.stdout
    assert "most common class" in shown.stdout
    assert "n_estimators" in shown.stdout
    assert "eV/atom" not in shown.stdout
    assert json.loads(call("models", "show", classifier, "--json").stdout) == card.model_dump(
        mode="json"
    )
    page = page_of(classifier, "cpu")
    for cells in tabulate_classes(found) + tabulate_each_class(found):
        for cell in cells:
            assert cell in page, cell
    for expected in (
        *("classes of kind: hard, odd, soft", "measured, not kept", "validation cross-entropy"),
        "cross-entropy (nats)",
    ):
        assert expected in page, expected
    for foreign in ("eV/atom", "MAE", "Intervals"):
        assert foreign not in page, foreign


def test_predictions_are_the_networks_probabilities(
    classifier: Path, training_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    done = call("predict", training_data, "--model", classifier, "--out", out, "--device", "cpu")
    assert done.exit_code == 0, done.output
    found = read_columns(out)
    check_table(found, CLASS_PREDICTIONS)
    frame = found.to_pandas()
    assert frame["id"].tolist() == pd.read_parquet(training_data)["id"].tolist()
    from screening.features import featurize_crystals

    crystals, _ = read_structures([training_data])
    features = featurize_crystals(crystals, engine="fast").values.astype(np.float32)
    expected = load_classifier(classifier).ensemble.scorer(device="cpu").classify(features)
    names = [f"probability_{name}" for name in ("hard", "odd", "soft")]
    assert list(frame.columns[:6]) == ["id", "formula", "predicted_class", *names]
    assert frame[names].to_numpy() == pytest.approx(expected.probabilities, abs=1e-6)
    assert frame["predicted_class"].tolist() == [
        names[i].removeprefix("probability_") for i in expected.probabilities.argmax(axis=1)
    ]
    assert frame.set_index("id").loc["LiNa", "known"]
    assert frame.set_index("id").loc["BrLi", "unseen_elements"] == "Br"
    assert "first 20 of 36" in done.stdout
    assert frame["predicted_class"][0] in done.stdout


@pytest.mark.parametrize(
    "option", [("--references", "phases.csv"), ("--functional", "PBE"), ("--stable-within", 0.1)]
)
def test_classes_have_no_hull(
    classifier: Path, training_data: Path, tmp_path: Path, option: tuple[object, ...]
) -> None:
    out = tmp_path / "p.parquet"
    refused = call("predict", training_data, "--model", classifier, "--out", out, *option)
    assert refused.exit_code == 2
    assert f"{option[0]} {option[1]} is for energies above hull" in refused.stderr
    assert not out.exists()


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "backtest", "bundle", "run"])
def test_what_needs_numbers_refuses_classes(
    classifier: Path, training_data: Path, tmp_path: Path, command: str
) -> None:
    phases = tmp_path / "phases.csv"
    phases.write_text("formula,formation_energy_per_atom\nNaCl,-2.1\n")
    words: dict[str, tuple[object, ...]] = {
        "evaluate": ("evaluate", classifier, training_data),
        "calibrate": ("calibrate", classifier, training_data),
        "backtest": ("backtest", classifier, training_data, "--references", phases),
        "bundle": ("models", "bundle", classifier, tmp_path / "small"),
        "run": (
            *("run", "--prototype", "B2", "--elements", "Na,K,Cl", "--model", classifier),
            *("--out", tmp_path / "campaign", "--workers", 0),
        ),
    }
    refused = call(*words[command])
    assert refused.exit_code == 4, refused.output
    assert "predicts classes of kind (hard, odd, soft), no numbers" in refused.stderr
    assert refused.stderr.count("error: ") == 1
    assert "Traceback" not in refused.output


def test_models_of_the_other_kind_are_refused(
    classifier: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"predicts numbers \(formation_energy_per_atom\)"):
        load_classifier(tiny_model)
    with pytest.raises(ModelError, match="predicts classes of kind"):
        load_model(classifier)
    copy = shutil.copytree(classifier, tmp_path / "copy")
    card = json.loads((copy / "card.json").read_text())
    card["classification"]["classes"][0] = "harder"
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="networks predict hard, odd, soft, but its card says"):
        load_classifier(copy)


def test_a_number_is_cut_in_two_and_another_cut_is_another_training(
    table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "high"
    options = ("--epochs", 2, "--no-forest")
    done = train(table, out, "height", "--split-at", 0.25, *options)
    assert done.exit_code == 0, done.output
    card = read_card(out).classification
    assert card is not None
    assert card.classes == ("at most 0.25", "above 0.25")
    assert card.split_at == 0.25
    assert card.forest is None
    assert [score.predictor for score in card.held_out] == ["irnet", "largest_class"]
    irnet = card.find_score()
    assert irnet is not None
    assert irnet.roc_auc is not None
    heights = pd.read_parquet(table)["height"]
    assert card.rows[1] + card.held_out_rows[1] == (heights > 0.25).sum()
    assert "ROC AUC" in call("models", "show", out).stdout
    assert "it was cut in two at 0.25" in page_of(out, "cpu")
    assert "nothing to do" in train(table, out, "height", "--split-at", 0.25, *options).stderr
    other = train(table, out, "height", "--split-at", 0.3, *options)
    assert other.exit_code == 2
    assert "its classes is ['at most 0.25', 'above 0.25']" in other.stderr


def test_truth_values_are_learnt_from_anothers_networks(
    table: Path, classifier: Path, tmp_path: Path
) -> None:
    from irnet import Ensemble

    def output(folder: Path) -> Any:
        return Ensemble.load(folder / "ensemble").members[0].network.output.weight

    still = ("--epochs", 1, "--learning-rate", 1e-12, "--no-forest", "--members", 1)
    metal, kind = tmp_path / "metal", tmp_path / "kind"
    done = train(table, metal, "metal", "--init-from", classifier, *still, "--holdout", 0)
    assert done.exit_code == 0, done.output
    card = read_card(metal).classification
    assert card is not None
    assert card.classes == ("False", "True")
    assert card.held_out == ()
    assert tuple(output(metal).shape) == (2, 16)
    assert "accuracy" not in call("models", "show", metal).stdout
    assert train(table, kind, "kind", "--init-from", classifier, *still).exit_code == 0
    assert np.allclose(output(kind).detach(), output(classifier).detach(), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "code", "complaint"),
    [
        ({}, ["--split-at", "0"], 3, "column 'kind' does not hold numbers"),
        ({"kind": 1.5}, [], 3, "column 'kind' holds 1.5, which is neither a text nor a truth"),
        ({"kind": "hard"}, [], 3, "column 'kind' is 'hard' in all 240 rows"),
        ({"kind": [None] + ["a", "b"] * 119 + [""]}, [], 3, "2 rows without a label in 'kind'"),
        ({"kind": ["a", "b"] * 119 + ["c", "c"]}, ["--seed", "SEED"], 3, "'c'. Leave out such"),
        ({}, ["--unit", "eV"], 2, "--unit eV is for numbers"),
        ({}, ["--split-at", "nan"], 2, "--split-at nan is no number"),
        ({}, ["--loss", "mae", "--split-at", "1"], 2, "are learnt with --loss cross_entropy"),
        ({}, ["--loss", "cros_entropy"], 2, 'did you mean "cross_entropy"?'),
        ({}, ["--optimizer", "adma"], 2, 'did you mean "adam"?'),
        ({}, ["--activation", "leakyrelu"], 2, 'did you mean "leaky_relu"?'),
        ({}, ["--loss", "mae"], 3, "column 'kind' does not hold numbers"),
    ],
)
def test_bad_classes_end_in_one_message_and_its_code(
    table: Path,
    tmp_path: Path,
    change: dict[str, Any],
    options: list[str],
    code: int,
    complaint: str,
) -> None:
    frame = pd.read_parquet(table).assign(**change)
    data = tmp_path / "d.parquet"
    if "SEED" in options:
        frame["formula"] = [*frame["formula"][:-2], "NaCl", "NaCl"]
        options = ["--seed", str(find_seed(frame["formula"].tolist()))]
    frame.to_parquet(data)
    result = train(data, tmp_path / "model", "kind", "--epochs", 1, *options)
    assert result.exit_code == code, result.output
    assert complaint in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "model").exists()


def find_seed(formulas: list[str]) -> int:
    """A seed with which the last formula is held out."""
    from screening.dataset import reduce_formula, split_by_formula

    reduced = [reduce_formula(formula) for formula in formulas]
    return next(s for s in range(99) if len(reduced) - 1 in split_by_formula(reduced, 0.25, s)[1])


def test_rows_without_a_label_are_dropped_on_request(table: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(table)
    frame["kind"] = [None, " ", *frame["kind"][2:]]
    frame["dE_matbench"] = 1.0
    frame.to_parquet(tmp_path / "d.parquet")
    options = ("--epochs", 1, "--no-forest", "--drop-missing-energies")
    done = train(tmp_path / "d.parquet", tmp_path / "model", "kind", *options)
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "model")
    assert card.data.dropped == {"no label": 2}
    assert card.data.rows + card.data.held_out_rows == 238


def test_stable_or_not_is_learnt_from_real_structures(data_dir: Path, tmp_path: Path) -> None:
    names = ("mp_icsd-00.parquet", "mp_virtual-00.parquet")
    files = []
    for name in names:
        frame = pd.read_parquet(data_dir / name)
        small = frame[(frame["nsites"] <= 6) & frame["e_above_hull_2018"].notna()]
        files.append(tmp_path / name)
        small.head(700).to_parquet(files[-1])
    done = call(
        *("train", *files, "--out", tmp_path / "stable", "--loss", "cross_entropy", *FAST),
        *("--target", "e_above_hull_2018", "--split-at", 0.05, "--epochs", 10, "--no-forest"),
        *("--learning-rate", 0.005),
    )
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "stable").classification
    assert card is not None
    assert card.classes == ("at most 0.05", "above 0.05")
    irnet, largest = card.held_out
    assert irnet.accuracy_low > largest.accuracy
    assert irnet.roc_auc is not None
    assert irnet.roc_auc > 0.75
