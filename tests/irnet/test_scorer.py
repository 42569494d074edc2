from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from irnet import Architecture, DataError, Ensemble, Member
from irnet.network import new_network
from irnet.scaling import Scaling
from irnet.scorer import Scorer

COLUMNS = 10
NAMES = tuple(f"f{i}" for i in range(COLUMNS))


def random_member(text: str, seed: int, clip: float | None = 6.0) -> Member:
    architecture = Architecture.parse(text)
    network = new_network(architecture, COLUMNS, 0.0, torch.Generator().manual_seed(seed))
    for step in range(5):  # running statistics of their own
        network(torch.randn(64, COLUMNS, generator=torch.Generator().manual_seed(step)))
    generator = np.random.default_rng(seed)
    scaling = Scaling(
        generator.normal(size=COLUMNS), generator.uniform(1, 2, size=COLUMNS), clip, -1.5, 0.7
    )
    return Member(architecture, NAMES, scaling, network.eval().state_dict(), {})


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, COLUMNS)).astype(np.float32) * 3


def by_network(member: Member, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        scaled = member.network(torch.from_numpy(member.scaling.inputs(x))).double().numpy()
    result: np.ndarray = scaled * member.scaling.target_std + member.scaling.target_mean
    return result


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "text", ["32BARx3-16BARx2-1", "32BAx3R-32BAx2R-16BAx2R-1", "32BAx2-8Ax1-1", "32ABRx2-8ABx2R-1"]
)
def test_folded_members_equal_their_networks(text: str, stacked: bool) -> None:
    members = [random_member(text, seed) for seed in range(3)]
    found = Scorer(members, precision="fp32", stacked=stacked).predict(rows(1500))
    for member, predicted in zip(members, found.members, strict=True):
        np.testing.assert_allclose(predicted, by_network(member, rows(1500)), atol=2e-5)
    np.testing.assert_allclose(found.mean, found.members.mean(axis=0))
    np.testing.assert_allclose(found.std, found.members.std(axis=0, ddof=1))


def test_members_of_different_architecture_keep_their_order() -> None:
    members = [
        random_member("32BARx2-1", 0),
        random_member("16BAx2-1", 1),
        random_member("32BARx2-1", 2, clip=None),
        random_member("32BARx2-1", 3),
    ]
    found = Scorer(members, precision="fp32", stacked=True).predict(rows(50))
    for member, predicted in zip(members, found.members, strict=True):
        np.testing.assert_allclose(predicted, by_network(member, rows(50)), atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_row_does_not_depend_on_its_batch_mates(precision: str, stacked: bool) -> None:
    members = [random_member("64BARx3-32BARx2-1", seed) for seed in range(2)]
    scorer = Scorer(members, precision=precision, stacked=stacked)
    x = rows(2500)
    together = scorer.predict(x).members
    for row in (0, 1, 777, 1023, 1024, 2499):
        np.testing.assert_array_equal(
            scorer.predict(x[row : row + 1]).members[:, 0], together[:, row]
        )
    shuffled = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(scorer.predict(x[shuffled]).members, together[:, shuffled])
    others = np.concatenate([rows(1000, seed=5) * 100, x])
    np.testing.assert_array_equal(scorer.predict(others).members[:, 1000:], together)


def test_bf16_is_close_to_fp32(ensemble: Ensemble, table: Any) -> None:
    exact = ensemble.scorer(precision="fp32").predict(table.features).mean
    rounded = ensemble.scorer(precision="bf16").predict(table.features).mean
    change = np.abs(rounded - exact)
    assert 0 < change.mean() < 0.01 * table.target.std()


def test_one_member_has_no_spread() -> None:
    found = Scorer([random_member("8BARx1-1", 0)], precision="fp32").predict(rows(5))
    assert np.isnan(found.std).all()
    np.testing.assert_array_equal(found.mean, found.members[0])


def test_no_rows() -> None:
    found = Scorer([random_member("8BARx1-1", s) for s in (0, 1)]).predict(rows(0))
    assert found.mean.shape == found.std.shape == (0,)
    assert found.members.shape == (2, 0)


def test_tensors_and_float64_are_taken() -> None:
    scorer = Scorer([random_member("8BARx1-1", s) for s in (0, 1)], precision="fp32")
    x = rows(20)
    expected = scorer.predict(x).mean
    np.testing.assert_array_equal(scorer.predict(torch.from_numpy(x)).mean, expected)
    np.testing.assert_array_equal(scorer.predict(x.astype(np.float64)).mean, expected)


def test_nan_names_row_and_column() -> None:
    scorer = Scorer([random_member("8BARx1-1", 0)])
    x = rows(1500)
    x[1400, 3] = np.nan
    with pytest.raises(DataError, match="row 1400, column 'f3' is nan"):
        scorer.predict(x)
    with pytest.raises(DataError, match=r"shape \(5, 9\), expected \(rows, 10\)"):
        scorer.predict(rows(5)[:, :9])


@pytest.mark.gpu
def test_gpu_equals_cpu(ensemble: Ensemble, table: Any, tmp_path: Path) -> None:
    on_cpu = ensemble.scorer(device="cpu", precision="fp32").predict(table.features)
    on_gpu = ensemble.scorer(device="cuda", precision="fp32").predict(table.features)
    np.testing.assert_allclose(on_gpu.members, on_cpu.members, atol=1e-3)
