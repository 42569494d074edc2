from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from irnet import Architecture, DataError, Ensemble, Member
from irnet.device import has_fast_int8
from irnet.network import new_network
from irnet.scaling import Scaling
from irnet.scorer import Scorer, _Affine, _Int8Affine

COLUMNS = 10
NAMES = tuple(f"f{i}" for i in range(COLUMNS))


needs_int8 = pytest.mark.skipif(
    not has_fast_int8(torch.device("cpu")), reason="this processor has no VNNI instructions"
)


def random_member(
    text: str, seed: int, clip: float | None = 6.0, classes: tuple[str, ...] = ()
) -> Member:
    architecture = Architecture.parse(*text.split())
    weights = torch.Generator().manual_seed(seed)
    network = new_network(architecture, COLUMNS, 0.0, weights, max(1, len(classes)))
    for step in range(5):  # running statistics of their own
        network(torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(step)))
    generator = np.random.default_rng(seed)
    scaling = Scaling(
        generator.normal(size=COLUMNS), generator.uniform(1, 2, size=COLUMNS), clip, -1.5, 0.7
    )
    return Member(architecture, NAMES, scaling, network.eval().state_dict(), {}, classes)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, COLUMNS)).astype(np.float32) * 3


def by_network(member: Member, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        scaled = member.network(torch.from_numpy(member.scaling.inputs(x))).double().numpy()
    result: np.ndarray = scaled * member.scaling.target_std + member.scaling.target_mean
    return result


KINDS = [
    "32BARx3-16BARx2-1",
    "32BAx3R-32BAx2R-16BAx2R-1",
    "32BAx2-8Ax1-1",
    "32ABRx2-8ABx2R-1",
    "32ARx3-16ARDx2-1",
    "32Ax2R-16ABDx2-1",
    "32BARx2-16ABRx1-1 tanh",
    "32BAx2R-1 sigmoid",
    "32ARx2P2-16BAx1P3-1 leaky_relu",
]


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("text", KINDS)
def test_folded_members_equal_their_networks(text: str, stacked: bool) -> None:
    members = [random_member(text, seed) for seed in range(3)]
    found = Scorer(members, precision="fp32", stacked=stacked).predict(rows(1500))
    for member, predicted in zip(members, found.members, strict=True):
        np.testing.assert_allclose(predicted, by_network(member, rows(1500)), atol=2e-5)
    np.testing.assert_allclose(found.mean, found.members.mean(axis=0))
    np.testing.assert_allclose(found.std, found.members.std(axis=0, ddof=1))


def mixed_members() -> list[Member]:
    return [
        random_member("32BARx2-1", 0),
        random_member("16BAx2-1", 1),
        random_member("32BARx2-1", 2, clip=None),
        random_member("32BARx2-1", 3),
        random_member("32BARx2-1", 4, clip=0.5),
        random_member("16BAx2-1", 5),
        random_member("32BARx2-1", 6, clip=0.5),
    ]


@pytest.mark.parametrize("stacked", [False, True])
def test_members_of_different_architecture_and_clip_keep_their_order(stacked: bool) -> None:
    scorer = Scorer(mixed_members(), precision="fp32", stacked=stacked)
    assert len(scorer._groups) == (4 if stacked else 7)
    found = scorer.predict(rows(50))
    for member, predicted in zip(mixed_members(), found.members, strict=True):
        np.testing.assert_allclose(predicted, by_network(member, rows(50)), atol=2e-5)


def hidden_of_network(member: Member, x: np.ndarray) -> np.ndarray:
    network, seen = member.network, []
    network.output.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.from_numpy(member.scaling.inputs(x)))
    result: np.ndarray = seen[0].numpy()
    return result


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("text", [*KINDS, "mixed"])
def test_hidden_layers_equal_those_of_the_networks(text: str, stacked: bool) -> None:
    members = (
        mixed_members() if text == "mixed" else [random_member(text, seed) for seed in range(3)]
    )
    scorer = Scorer(members, precision="fp32", stacked=stacked)
    found = scorer.predict(rows(1500), hidden=True)
    expected = np.concatenate([hidden_of_network(m, rows(1500)) for m in members], axis=1)
    assert found.hidden is not None
    assert found.hidden.dtype == np.float32
    assert found.hidden.shape == (1500, sum(m.architecture.blocks[-1].width for m in members))
    np.testing.assert_allclose(found.hidden, expected, atol=2e-5)
    without = scorer.predict(rows(1500))
    assert without.hidden is None
    np.testing.assert_array_equal(without.members, found.members)


def test_output_layer_of_the_hidden_layer_is_the_prediction() -> None:
    members = [random_member("32BARx2-16BARx1-1", seed) for seed in range(2)]
    found = Scorer(members, precision="bf16").predict(rows(30), hidden=True)
    assert found.hidden is not None
    for member, hidden, predicted in zip(
        members, np.split(found.hidden, 2, axis=1), found.members, strict=True
    ):
        with torch.no_grad():
            y = member.network.output(torch.from_numpy(hidden)).squeeze(-1).double().numpy()
        expected = y * member.scaling.target_std + member.scaling.target_mean
        np.testing.assert_allclose(predicted, expected, atol=1e-5)


def check_rows_stand_alone(scorer: Scorer) -> None:
    count = 2 * scorer.block_rows + 452
    x = rows(count)
    together = scorer.predict(x, hidden=True)
    assert together.hidden is not None
    for row in (0, 1, 777, scorer.block_rows - 1, scorer.block_rows, count - 1):
        alone = scorer.predict(x[row : row + 1], hidden=True)
        np.testing.assert_array_equal(alone.members[:, 0], together.members[:, row])
        assert alone.hidden is not None
        np.testing.assert_array_equal(alone.hidden[0], together.hidden[row])
    shuffled = np.random.default_rng(1).permutation(count)
    np.testing.assert_array_equal(
        scorer.predict(x[shuffled]).members, together.members[:, shuffled]
    )
    others = np.concatenate([rows(1000, seed=5) * 100, x])
    np.testing.assert_array_equal(scorer.predict(others).members[:, 1000:], together.members)


@needs_int8
@pytest.mark.parametrize("inputs", [7, 271, 512, 1024])
def test_int8_products_are_those_of_the_rounded_numbers(inputs: int) -> None:
    random = np.random.default_rng(inputs)
    weight = random.normal(size=(33, inputs)) * random.uniform(0.01, 9, size=(33, 1))
    weight[3] = 0.0
    bias = random.normal(size=33)
    x = random.normal(size=(50, inputs)) * 10.0 ** random.integers(-6, 6, size=(50, 1))
    x[4] = 0.0
    x[5] = -np.abs(x[5])
    x, weight, bias = (values.astype(np.float32) for values in (x, weight, bias))
    exact = _Affine(torch.from_numpy(weight), torch.from_numpy(bias))
    found = _Int8Affine.round(exact)(torch.from_numpy(x)).numpy()

    weight_size = np.abs(weight.astype(float)).max(axis=1).clip(1e-30)
    size = np.abs(x).max(axis=1, keepdims=True).clip(np.float32(1e-30))
    rounded_weight = np.rint(weight / (weight_size[:, None] / 127)).astype(np.int64)
    rounded = np.rint(x * (np.float32(127) / size)).astype(np.int64)
    products = (rounded @ rounded_weight.T) / 127**2 * size * weight_size
    largest = np.abs(rounded) @ np.abs(rounded_weight).T / 127**2 * size * weight_size
    assert (np.abs(found - (products + bias)) <= 1e-6 * (largest + np.abs(bias) + 1)).all()
    np.testing.assert_array_equal(found[4], bias)
    # half a step of either factor, times the other
    lost = (size * np.abs(weight).sum(axis=1) + np.abs(x).sum(axis=1)[:, None] * weight_size) / 254
    lost += inputs * size * weight_size / 254**2
    assert (np.abs(found - (x.astype(float) @ weight.T + bias)) <= 1.001 * lost + 1e-5).all()


WIDE = ["640BARx3-512BARx2-64BARx1-1", "512BAx3R-512BAx2R-32BAx1R-1", "600ARx2P2-16BAx1P3-1"]


@needs_int8
@pytest.mark.parametrize("text", WIDE)
def test_int8_is_about_as_close_to_fp32_as_bf16(text: str) -> None:
    members = [random_member(text, seed) for seed in range(2)]
    x = rows(700)
    exact, bf16, int8 = (
        Scorer(members, precision=precision).predict(x, hidden=True)
        for precision in ("fp32", "bf16", "int8")
    )
    for name in ("members", "hidden"):
        true = getattr(exact, name)
        of_int8, of_bf16 = (np.abs(getattr(each, name) - true).mean() for each in (int8, bf16))
        assert 0 < of_int8 < 4 * of_bf16
        assert of_int8 < 0.02 * true.std()


@needs_int8
def test_int8_leaves_narrow_networks_alone() -> None:
    members = [random_member("256BARx3-32BARx2-1", seed) for seed in range(2)]
    exact, int8 = (Scorer(members, precision=each).predict(rows(30)) for each in ("fp32", "int8"))
    np.testing.assert_array_equal(int8.members, exact.members)


@needs_int8
def test_int8_rows_do_not_depend_on_their_batch_mates() -> None:
    members = [random_member("640BARx3-512BARx2-64BARx1-1", seed) for seed in range(2)]
    scorer = Scorer(members, precision="int8", stacked=True)
    assert scorer.precision == "int8"
    check_rows_stand_alone(scorer)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_row_does_not_depend_on_its_batch_mates(precision: str, stacked: bool) -> None:
    members = [random_member("64BARx3-32BARx2-1", seed) for seed in range(2)]
    check_rows_stand_alone(Scorer(members, precision=precision, stacked=stacked))


def test_bf16_is_close_to_fp32(ensemble: Ensemble, table: Any) -> None:
    exact = ensemble.scorer(precision="fp32").predict(table.features).mean
    rounded = ensemble.scorer(precision="bf16").predict(table.features).mean
    change = np.abs(rounded - exact)
    assert 0 < change.mean() < 0.01 * table.target.std()


def test_one_member_has_no_spread() -> None:
    found = Scorer([random_member("8BARx1-1", 0)], precision="fp32").predict(rows(5))
    assert np.isnan(found.std).all()
    np.testing.assert_array_equal(found.mean, found.members[0])


@pytest.mark.parametrize("stacked", [False, True])
def test_no_rows(stacked: bool) -> None:
    scorer = Scorer([random_member("8BARx1-1", s) for s in (0, 1)], stacked=stacked)
    found = scorer.predict(rows(0), hidden=True)
    assert found.mean.shape == found.std.shape == (0,)
    assert found.members.shape == (2, 0)
    assert found.hidden is not None
    assert found.hidden.shape == (0, 16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layout_and_type_of_the_input_change_nothing(precision: str) -> None:
    scorer = Scorer([random_member("64BARx2-1", s) for s in (0, 1)], precision=precision)
    x = rows(scorer.block_rows + 20)
    expected = scorer.predict(x).members
    wide = np.repeat(x, 2, axis=1)
    for same in (
        torch.from_numpy(x),
        x.astype(np.float64),
        torch.from_numpy(x).double(),
        np.asfortranarray(x),
        torch.from_numpy(np.asfortranarray(x)),
        wide[:, ::2],
        torch.from_numpy(wide)[:, ::2],
    ):
        np.testing.assert_array_equal(scorer.predict(same).members, expected)
    np.testing.assert_array_equal(scorer.predict(x[::-1]).members, expected[:, ::-1])


def test_float64_beyond_float32_is_named() -> None:
    x = rows(3).astype(np.float64)
    x[2, 1] = 1e300
    with pytest.raises(DataError, match="row 2, column 'f1' is inf"):
        Scorer([random_member("8BARx1-1", 0)]).predict(x)


@pytest.mark.parametrize("shape", [(10,), (5, 9), (5, 11), (2, 5, 10)])
def test_wrong_width_names_both(shape: tuple[int, ...]) -> None:
    scorer = Scorer([random_member("8BARx1-1", 0)])
    for features in (np.zeros(shape), torch.zeros(shape)):
        with pytest.raises(DataError, match=r"have shape \(.*\), expected \(rows, 10\)"):
            scorer.predict(features)


def test_nan_names_row_and_column() -> None:
    scorer = Scorer([random_member("8BARx1-1", 0)])
    x = rows(1500)
    x[1400, 3] = np.nan
    with pytest.raises(DataError, match="row 1400, column 'f3' is nan"):
        scorer.predict(x)


@pytest.mark.gpu
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("text", [*KINDS, "mixed"])
def test_gpu_equals_cpu(text: str, stacked: bool) -> None:
    members = (
        mixed_members() if text == "mixed" else [random_member(text, seed) for seed in range(3)]
    )
    x = rows(20_000)
    on_cpu = Scorer(members, precision="fp32").predict(x, hidden=True)
    scorer = Scorer(members, device="cuda", precision="fp32", stacked=stacked)
    on_gpu = scorer.predict(x, hidden=True)
    np.testing.assert_allclose(on_gpu.members, on_cpu.members, atol=1e-3)
    assert on_gpu.hidden is not None
    assert on_cpu.hidden is not None
    np.testing.assert_allclose(on_gpu.hidden, on_cpu.hidden, atol=1e-3)


@pytest.mark.gpu
def test_trained_ensemble_on_gpu_equals_cpu(ensemble: Ensemble, table: Any) -> None:
    on_cpu = ensemble.scorer(device="cpu", precision="fp32").predict(table.features)
    on_gpu = ensemble.scorer(device="cuda", precision="fp32").predict(table.features)
    np.testing.assert_allclose(on_gpu.members, on_cpu.members, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_batch_mates_on_gpu(precision: str) -> None:
    members = [random_member("64BARx3-32BARx2-1", seed) for seed in range(2)]
    check_rows_stand_alone(Scorer(members, device="cuda", precision=precision))


@pytest.mark.gpu
def test_tensors_come_from_any_device() -> None:
    members, x = [random_member("8BARx1-1", s) for s in (0, 1)], torch.from_numpy(rows(20))
    for device in ("cpu", "cuda"):
        scorer = Scorer(members, device=device, precision="fp32")
        np.testing.assert_array_equal(
            scorer.predict(x.cuda()).members, scorer.predict(x.cpu()).members
        )
        assert scorer.predict_members(x.cuda()).device.type == device


@pytest.mark.parametrize("stacked", [False, True])
def test_probabilities_are_the_softmax_of_the_networks(stacked: bool) -> None:
    classes = ("insulator", "metal", "semimetal")
    unscaled = Scaling(np.zeros(COLUMNS), np.ones(COLUMNS), 6.0, 0.0, 1.0)
    members = [
        replace(random_member("32BARx2-1", seed, classes=classes), scaling=unscaled)
        for seed in range(3)
    ]
    scorer = Scorer(members, precision="fp32", stacked=stacked)
    found = scorer.classify(rows(1500))
    assert found.classes == classes
    assert found.members.shape == (3, 1500, 3)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1.0)
    for member, each in zip(members, found.members, strict=True):
        with torch.no_grad():
            logits = member.network(torch.from_numpy(member.scaling.inputs(rows(1500))))
        np.testing.assert_allclose(each, logits.double().softmax(dim=-1), atol=2e-5)
    np.testing.assert_allclose(found.probabilities, found.members.mean(axis=0))
    assert (found.likeliest == found.probabilities.argmax(axis=1)).all()
    with pytest.raises(DataError, match="classes insulator, metal, semimetal; call classify"):
        scorer.predict(rows(3))
    with pytest.raises(DataError, match="call classify"):
        scorer.predict_members(rows(3))
    with pytest.raises(DataError, match="predicts numbers; call predict"):
        Scorer([random_member("32BARx2-1", 0)]).classify(rows(3))
