from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from crepes import ConformalPredictiveSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import beta, binom, kstest
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from irnet import DataError, ModelFileError, metrics
from irnet.reference import TrainingReference
from irnet.scorer import Prediction
from irnet.storage import read_tensors, write_tensors
from irnet.uncertainty import FILE_NAME, Uncertainty, _Trees, conformal_quantiles


@dataclass(frozen=True)
class Rows:
    features: np.ndarray
    target: np.ndarray
    prediction: Prediction
    forest: np.ndarray
    groups: np.ndarray


def make_rows(rows: int, seed: int, members: int = 3, hypothetical: float = 0.0) -> Rows:
    """Errors whose size follows a feature; a hypothetical row errs by 0.5 to one side."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 8))
    foreign = generator.random(rows) < hypothetical
    x[:, 7] += 6 * foreign
    target = x[:, 0] + x[:, 1]
    scale = 0.1 * np.exp(0.7 * x[:, 2])
    mean = target + scale * generator.laplace(size=rows) - 0.5 * foreign
    spread = generator.normal(size=(members, rows)) * scale * 0.5
    spread -= spread.mean(axis=0)
    std = spread.std(axis=0, ddof=1) if members > 1 else np.full(rows, np.nan)
    forest = target + generator.normal(size=rows) * 0.3
    prediction = Prediction(mean=mean, std=std, members=mean + spread)
    return Rows(x.astype(np.float32), target, prediction, forest, np.arange(rows) // 3)


def fit(rows: Rows, reference: TrainingReference, **choices: object) -> Uncertainty:
    options: dict[str, object] = {"features": rows.features, "groups": rows.groups} | choices
    return Uncertainty.fit(
        rows.target,
        rows.prediction,
        rows.forest,
        reference.distance(rows.features),
        reference=reference,
        **options,  # type: ignore[arg-type]
    )


def part(prediction: Prediction, rows: slice) -> Prediction:
    return Prediction(prediction.mean[rows], prediction.std[rows], prediction.members[:, rows])


@pytest.fixture(scope="module")
def reference() -> TrainingReference:
    return TrainingReference.fit(make_rows(1500, 1).features, size=400)


@pytest.fixture(scope="module")
def uncertainty(reference: TrainingReference) -> Uncertainty:
    return fit(make_rows(900, 2, hypothetical=0.3), reference)


# ------------------------------------------------------------------------- distance


def test_distance_against_scikit_learn() -> None:
    train, new = make_rows(700, 1).features, make_rows(50, 2).features
    found = TrainingReference.fit(train, size=10_000)
    scaler, pca = StandardScaler().fit(train), PCA(whiten=True)
    coordinates = pca.fit_transform(scaler.transform(train))
    neighbours = NearestNeighbors(n_neighbors=2).fit(coordinates)
    unit = np.median(neighbours.kneighbors(coordinates)[0][:, 1])
    expected = neighbours.kneighbors(pca.transform(scaler.transform(new)))[0][:, 0] / unit
    # points are stored with eleven bits and variances divided by n, not n - 1
    np.testing.assert_allclose(found.distance(new), expected, rtol=5e-3, atol=2e-3)


def test_ordinary_rows_are_at_one_and_foreign_ones_farther(reference: TrainingReference) -> None:
    inside = reference.distance(make_rows(1000, 9).features)
    assert np.median(inside) == pytest.approx(1.0, abs=0.1)
    outside = reference.distance(make_rows(1000, 9, hypothetical=1.0).features)
    assert np.median(outside) > 2 * np.median(inside)


def test_a_representative_is_at_no_distance() -> None:
    train = make_rows(300, 1).features
    assert TrainingReference.fit(train).distance(train).max() < 0.01


@given(st.integers(1, 200), st.integers(4000, 4200))
@settings(deadline=None, max_examples=15)
def test_distance_does_not_depend_on_other_rows(rows: int, first: int) -> None:
    reference = _small_reference()
    new = make_rows(4500, 3).features
    some = slice(first, first + rows)
    np.testing.assert_array_equal(
        reference.distance(new)[some], reference.distance(new[some]), strict=True
    )


@cache
def _small_reference() -> TrainingReference:
    return TrainingReference.fit(make_rows(200, 1).features, size=50)


def test_reference_depends_on_its_choices_and_nothing_else() -> None:
    train, new = make_rows(500, 1).features, make_rows(20, 2).features

    def distances(**choices: int) -> np.ndarray:
        return TrainingReference.fit(train, **{"size": 100, **choices}).distance(new)

    np.testing.assert_array_equal(distances(), distances())
    for other in ({"seed": 1}, {"size": 90}, {"components": 3}):
        assert (distances(**other) != distances()).any()


def test_constant_columns_do_not_count() -> None:
    train = make_rows(200, 1).features
    padded = np.hstack([train, np.full((200, 2), 0.1, dtype=np.float32)])
    reference = TrainingReference.fit(padded, size=50)
    assert reference.projection.shape == (10, 8)
    np.testing.assert_allclose(
        reference.distance(padded), TrainingReference.fit(train, size=50).distance(train), atol=1e-3
    )


def test_layout_and_type_of_the_input_change_nothing(reference: TrainingReference) -> None:
    x = make_rows(4100, 4).features
    expected = reference.distance(x)
    for same in (
        torch.from_numpy(x),
        x.astype(np.float64),
        np.asfortranarray(x),
        torch.from_numpy(np.asfortranarray(x)),
        np.repeat(x, 2, axis=1)[:, ::2],
    ):
        np.testing.assert_array_equal(reference.distance(same), expected)
    np.testing.assert_array_equal(reference.distance(x[::-1]), expected[::-1])


def test_reference_saved_and_loaded(reference: TrainingReference, tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    x = make_rows(30, 4).features
    again = TrainingReference.load(path)
    np.testing.assert_array_equal(again.distance(x), reference.distance(x))
    np.testing.assert_array_equal(again.coordinates(x), reference.coordinates(x))


@pytest.mark.parametrize(
    ("tensor", "header", "message"),
    [
        ({}, {"format": 7}, "format 7, this version reads 1"),
        ({}, {"kind": "a cat"}, "a cat"),
        ({}, {"unit": 0.0}, "unit is 0.0"),
        ({"mean": torch.zeros(3)}, {}, "mean has shape"),
        ({"projection": torch.full((8, 8), torch.nan)}, {}, "projection holds values"),
        ({"points": torch.zeros(0, 8).half()}, {}, "points has shape"),
        ({"points": torch.zeros(9, 8)}, {}, "points is float32, expected float16"),
        ({"projection": torch.zeros(8)}, {}, "do not fit"),
    ],
)
def test_reference_files_that_were_tampered_with(
    reference: TrainingReference,
    tmp_path: Path,
    tensor: dict[str, torch.Tensor],
    header: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / "reference.safetensors"
    reference.save(path)
    tensors, old = read_tensors(path, "an irnet training reference")
    write_tensors(path, {**tensors, **tensor}, {**old, **header})
    with pytest.raises(ModelFileError, match=message):
        TrainingReference.load(path)


@pytest.mark.gpu
def test_distance_on_a_gpu(reference: TrainingReference) -> None:
    x = torch.from_numpy(make_rows(300, 4).features)
    np.testing.assert_allclose(
        reference.distance(x.cuda()), reference.distance(x), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("features", "choices", "message"),
    [
        (np.ones((5, 3)), {}, "all training rows are equal"),
        (np.ones((1, 3)), {}, "2 rows or more"),
        (np.ones(4), {}, "2 rows or more"),
        (np.array([[0.0, 1.0], [1.0, np.nan]]), {}, "row 1, column 1 is nan"),
        (np.eye(4), {"size": 0}, "at least 1"),
        (np.eye(4), {"components": 0}, "at least 1"),
    ],
)
def test_unusable_training_rows(
    features: np.ndarray, choices: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        TrainingReference.fit(features, **choices)


def test_unusable_new_rows(reference: TrainingReference) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 7\), expected \(rows, 8\)"):
        reference.distance(np.ones((3, 7)))
    x = np.ones((5000, 8))
    x[4500, 2] = np.inf
    with pytest.raises(DataError, match="row 4500, column 2 is inf"):
        reference.distance(x)


# ------------------------------------------------------------------------- conformal


@given(st.integers(0, 1000), st.integers(60, 400), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=30)
def test_quantiles_against_crepes(seed: int, rows: int, level: float) -> None:
    scores = np.random.default_rng(seed).standard_t(3, size=rows)
    found = conformal_quantiles(scores, level)
    system = ConformalPredictiveSystem().fit(scores)
    expected = system.predict_int(np.zeros(1), confidence=level)[0]
    ordered = np.sort(scores)
    places = np.searchsorted(ordered, found)
    # crepes takes the same order statistics but for one where the rank is no whole number
    assert abs(places[0] - np.searchsorted(ordered, expected[0])) <= 1
    assert abs(places[1] - np.searchsorted(ordered, expected[1])) <= 1


def test_quantiles_hold_what_they_promise() -> None:
    # coverage of split conformal intervals given the scores is beta distributed (Vovk 2012)
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        low, high = conformal_quantiles(generator.random(99), 0.9)
        covered.append(high - low)
    assert np.mean(covered) == pytest.approx(beta(90, 10).mean(), abs=0.005)
    assert np.std(covered) == pytest.approx(beta(90, 10).std(), rel=0.15)


@pytest.mark.parametrize(("rows", "level"), [(18, 0.9), (198, 0.99), (3, 0.5 + 1e-3)])
def test_too_few_scores_for_a_level(rows: int, level: float) -> None:
    with pytest.raises(DataError, match=f"needs {rows + 1} calibration rows or more"):
        conformal_quantiles(np.arange(rows), level)
    least = rows + 1
    assert conformal_quantiles(np.arange(least), level) == (0.0, least - 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90.0, float("nan")])
def test_impossible_levels(level: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        conformal_quantiles([1.0, 2.0], level)


# ------------------------------------------------------------------------- error trees


def test_trees_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 5)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + np.abs(x[:, 2])
    model = GradientBoostingRegressor(
        n_estimators=150,
        learning_rate=0.05,
        max_depth=3,
        min_samples_leaf=5,
        subsample=0.5,
        max_features=0.1,
        random_state=3,
    ).fit(x, y)
    new = generator.normal(size=(9000, 5)).astype(np.float32)
    found = _Trees.fit(x, y, seed=3).predict(new)
    np.testing.assert_allclose(found, model.predict(new), atol=1e-5)


# ------------------------------------------------------------------------- the whole


def test_intervals_hold_on_rows_like_those_calibrated_on(uncertainty: Uncertainty) -> None:
    new = make_rows(2000, 5, hypothetical=0.3)
    found = uncertainty.assess(new.features, new.prediction, new.forest)
    covered = metrics.coverage(found.low, found.high, new.target).value
    # three deviations of 2,000 rows and of the calibration's own 900
    margin = 3 * (binom(2000, 0.9).std() / 2000 + beta(810, 90).std())
    assert covered == pytest.approx(0.9, abs=margin)
    error = np.abs(new.prediction.mean - new.target)
    # a bias that only the features show comes on top of what the spread knows
    spread = metrics.spearman(new.prediction.std, error)
    assert metrics.spearman(found.error_scale, error) > spread + 0.1
    assert found.error_scale.mean() == pytest.approx(error.mean(), rel=0.25)


def test_calibrated_on_known_rows_it_fails_on_hypothetical_ones(
    reference: TrainingReference,
) -> None:
    known = fit(make_rows(900, 2), reference)
    new = make_rows(2000, 5, hypothetical=1.0)
    found = known.assess(new.features, new.prediction, new.forest)
    assert metrics.coverage(found.low, found.high, new.target).high < 0.75


def test_a_bias_makes_the_interval_lean(uncertainty: Uncertainty) -> None:
    new = make_rows(500, 5, hypothetical=1.0)
    found = uncertainty.assess(new.features, new.prediction, new.forest)
    above, below = found.high - new.prediction.mean, new.prediction.mean - found.low
    assert above.mean() > 1.2 * below.mean()
    assert (above >= 0).all()
    assert (below >= 0).all()


def test_reliability_curve_is_near_the_diagonal(uncertainty: Uncertainty) -> None:
    new = make_rows(3000, 6, hypothetical=0.3)
    scale = uncertainty.assess(new.features, new.prediction, new.forest).error_scale
    curve = metrics.reliability(
        lambda level: uncertainty.interval(new.prediction.mean, scale, level), new.target
    )
    assert curve.miscalibration_area < 0.03


def test_level_and_seed_and_features_matter(
    reference: TrainingReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("irnet.uncertainty._TREES", 20)  # six calibrations of six fits are slow
    rows, new = make_rows(400, 2), make_rows(300, 5)

    def widths(**choices: object) -> np.ndarray:
        found = fit(rows, reference, **choices).assess(new.features, new.prediction, new.forest)
        return found.high - found.low

    plain = widths()
    np.testing.assert_array_equal(plain, widths())
    assert widths(level=0.6).mean() < 0.7 * plain.mean()
    assert (widths(seed=1) != plain).any()
    assert (widths(features=None) != plain).any()
    assert (widths(groups=np.arange(400) % 4) != plain).any()


def test_groups_stay_together(reference: TrainingReference) -> None:
    # each row stands twice: trees that saw the twin would know its error
    rows = make_rows(150, 2)
    twice = np.tile(np.arange(150), 2)
    doubled = _take(rows, twice)
    together = fit(doubled, reference, groups=twice)
    apart = fit(doubled, reference, groups=None)
    assert together.record["groups"] == 150
    assert apart.record["groups"] == 300
    assert apart.record["spearman"] > together.record["spearman"] + 0.1


def _take(rows: Rows, order: np.ndarray) -> Rows:
    p = rows.prediction
    taken = Prediction(p.mean[order], p.std[order], p.members[:, order])
    return Rows(
        rows.features[order], rows.target[order], taken, rows.forest[order], rows.groups[order]
    )


def test_without_forest_and_with_one_member(reference: TrainingReference, tmp_path: Path) -> None:
    rows, new = make_rows(400, 2, members=1), make_rows(1000, 5, members=1)
    alone = Uncertainty.fit(
        rows.target,
        rows.prediction,
        None,
        reference.distance(rows.features),
        reference=reference,
    )
    assert not (alone.uses_spread or alone.uses_forest or alone.uses_features)
    alone.save(tmp_path / FILE_NAME)
    found = Uncertainty.load(tmp_path / FILE_NAME).assess(new.features, new.prediction, None)
    assert metrics.coverage(found.low, found.high, new.target).value == pytest.approx(0.9, abs=0.06)
    # a forest that was not there at calibration changes nothing
    also = alone.assess(new.features, new.prediction, new.forest)
    np.testing.assert_array_equal(also.high, found.high)


def test_a_row_does_not_depend_on_the_others(uncertainty: Uncertainty) -> None:
    new = make_rows(4500, 7)
    whole = uncertainty.assess(new.features, new.prediction, new.forest)
    some = slice(4090, 4110)
    few = uncertainty.assess(new.features[some], part(new.prediction, some), new.forest[some])
    for name in ("low", "high", "error_scale", "distance"):
        np.testing.assert_array_equal(getattr(whole, name)[some], getattr(few, name))
        assert getattr(few, name).dtype == np.float64


def test_no_rows_give_no_assessments(uncertainty: Uncertainty) -> None:
    none = slice(0, 0)
    rows = make_rows(5, 1)
    found = uncertainty.assess(rows.features[none], part(rows.prediction, none), rows.forest[none])
    assert found.low.shape == found.distance.shape == (0,)


def test_saved_and_loaded_it_says_the_same(uncertainty: Uncertainty, tmp_path: Path) -> None:
    uncertainty.save(tmp_path / FILE_NAME)
    again = Uncertainty.load(tmp_path / FILE_NAME)
    new = make_rows(300, 5)
    first = uncertainty.assess(new.features, new.prediction, new.forest)
    second = again.assess(new.features, new.prediction, new.forest)
    for name in ("low", "high", "error_scale", "distance"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert again.record == uncertainty.record
    assert again.level == 0.9


def test_file_of_a_full_reference_is_small(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).normal(size=(7000, 80)).astype(np.float32)
    rows = make_rows(60, 1)
    reference = TrainingReference.fit(wide)
    Uncertainty.fit(
        rows.target, rows.prediction, rows.forest, np.ones(60), reference=reference
    ).save(tmp_path / FILE_NAME)
    assert (tmp_path / FILE_NAME).stat().st_size < 1e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "one"}, "got a prediction of one"),
        ({"forest": None}, "got no forest prediction"),
        ({"forest": np.ones(3)}, "of the forest"),
        ({"features": np.ones((3, 8))}, "10 predictions, 3 distances"),
        ({"features": np.ones((10, 5))}, "expected"),
        ({"forest": np.full(10, np.nan)}, "forest prediction row 0 is nan"),
    ],
)
def test_assessments_refused(
    uncertainty: Uncertainty, change: dict[str, object], message: str
) -> None:
    rows = make_rows(10, 1)
    given_: dict[str, object] = {
        "features": rows.features,
        "prediction": rows.prediction,
        "forest": rows.forest,
    } | change
    if given_["prediction"] == "one":
        given_["prediction"] = make_rows(10, 1, members=1).prediction
    with pytest.raises(DataError, match=message):
        uncertainty.assess(*given_.values())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choices", "rows", "message"),
    [
        ({}, 39, "39 calibration rows are too few"),
        ({"level": 0.99}, 100, "level 0.99 needs 199 calibration rows or more"),
        ({"level": 1.0}, 100, "between 0 and 1"),
        ({"groups": np.zeros(100)}, 100, "of one group"),
        ({"groups": np.zeros(7)}, 100, "groups have shape"),
        ({"features": np.ones((5, 8))}, 100, "5 rows of features"),
    ],
)
def test_calibrations_refused(
    reference: TrainingReference, choices: dict[str, object], rows: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit(make_rows(rows, 1), reference, **choices)


def test_target_that_cannot_be_calibrated_on(reference: TrainingReference) -> None:
    rows = make_rows(50, 1)
    target = rows.target.copy()
    target[7] = np.inf
    with pytest.raises(DataError, match="target row 7 is inf"):
        fit(replace(rows, target=target), reference)
    with pytest.raises(DataError, match="target has 49 rows, the predictions 50"):
        fit(replace(rows, target=rows.target[:49]), reference)
    with pytest.raises(DataError, match="exact"):
        fit(replace(rows, target=rows.prediction.mean), reference)


def test_damaged_files(uncertainty: Uncertainty, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with pytest.raises(ModelFileError, match="no such file"):
        Uncertainty.load(path)
    uncertainty.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="truncated"):
        Uncertainty.load(path)
    path.write_bytes(whole)
    save_file(load_file(path), path)
    with pytest.raises(ModelFileError, match="foreign tensors"):
        Uncertainty.load(path)


@pytest.mark.parametrize(
    ("tensor", "header", "message"),
    [
        ({}, {"format": 2}, "format 2, this version reads 1"),
        ({"points": None}, {}, "points"),
        ({"points": torch.zeros(3, 3).half()}, {}, "points has shape"),
        ({"points": torch.zeros(3, 3)}, {}, "points is float32, expected float16"),
        ({"value": torch.full((150, 8), torch.inf)}, {}, "value holds values"),
        ({"column": torch.full((150, 7), 99, dtype=torch.int16)}, {}, "does not exist"),
        ({"edges": torch.tensor([2.0, 1.0])}, {}, "edges"),
        ({"score_counts": torch.tensor([900, 0])}, {}, "do not fit"),
        ({"score_counts": torch.tensor([450, 449])}, {}, "score_counts does not sum"),
        ({"value": torch.zeros((150, 8), dtype=torch.bfloat16)}, {}, "BFloat16"),
        ({}, {"level": 2}, "out of range"),
        ({}, {"factor": -1.0}, "out of range"),
        ({}, {"factor": None}, "do not fit"),
    ],
)
def test_files_that_were_tampered_with(
    uncertainty: Uncertainty,
    tmp_path: Path,
    tensor: dict[str, torch.Tensor | None],
    header: dict[str, object],
    message: str,
) -> None:
    path = tmp_path / FILE_NAME
    uncertainty.save(path)
    tensors, old = read_tensors(path, "an irnet uncertainty")
    changed = {k: v for k, v in {**tensors, **tensor}.items() if v is not None}
    write_tensors(path, changed, {**old, **header})
    with pytest.raises(ModelFileError, match=message):
        Uncertainty.load(path)


# ---------------------------------------------------------------------- probabilities


def scales(uncertainty: Uncertainty, rows: Rows) -> np.ndarray:
    return uncertainty.assess(rows.features, rows.prediction, rows.forest).error_scale


def test_probabilities_are_right_as_often_as_they_say(uncertainty: Uncertainty) -> None:
    rows = make_rows(4000, 11, hypothetical=0.3)
    scale = scales(uncertainty, rows)
    errors = rows.target - rows.prediction.mean
    for deviation in (-0.2, -0.05, 0.0, 0.05, 0.2):
        said = uncertainty.probability_at_most(np.full(len(errors), deviation), scale)
        assert said.mean() == pytest.approx((errors <= deviation).mean(), abs=0.06)
        confident = said > 0.9
        if confident.sum() > 200:
            assert (errors[confident] <= deviation).mean() > 0.85
    ranks = uncertainty.probability_at_most(errors, scale)
    assert kstest(ranks, "uniform").statistic < 0.06


def test_the_ends_of_an_interval_have_the_probabilities_of_its_level(
    uncertainty: Uncertainty,
) -> None:
    scale = np.geomspace(0.02, 1.0, 50)
    low, high = uncertainty.interval(np.zeros(50), scale, 0.9)
    np.testing.assert_allclose(uncertainty.probability_at_most(low, scale), 0.05, atol=0.012)
    np.testing.assert_allclose(uncertainty.probability_at_most(high, scale), 0.95, atol=0.012)


@given(
    deviations=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20),
    scale=st.floats(1e-3, 10),
    shrink=st.floats(0.05, 1),
)
def test_probabilities_never_fall_and_are_never_certain(
    uncertainty: Uncertainty, deviations: list[float], scale: float, shrink: float
) -> None:
    ordered = np.sort(deviations)
    said = uncertainty.probability_at_most(ordered, np.full(len(ordered), scale), shrink)
    assert (np.diff(said) >= 0).all()
    assert (said > 0).all()
    assert (said < 1).all()


def test_shrinking_draws_the_noise_to_its_mean(uncertainty: Uncertainty) -> None:
    scores, scale = uncertainty.scores[0], uncertainty.edges[0] / 2
    at = np.array([scores.mean() - 1e-3, scores.mean() + 1e-3]) * scale
    narrow = uncertainty.probability_at_most(at, np.full(2, scale), 1e-6)
    np.testing.assert_allclose(narrow, [0, 1], atol=2 / len(scores))
    with pytest.raises(DataError, match="above 0"):
        uncertainty.probability_at_most(at, np.full(2, scale), 0.0)


def test_noise_is_that_of_the_calibration_scores(uncertainty: Uncertainty) -> None:
    edges = uncertainty.edges
    middle = np.concatenate([[edges[0] / 2], (edges[1:] + edges[:-1]) / 2, [edges[-1] * 2]])
    expected = [
        scale * scores.std() for scale, scores in zip(middle, uncertainty.scores, strict=True)
    ]
    np.testing.assert_allclose(uncertainty.noise_std(middle), expected)
