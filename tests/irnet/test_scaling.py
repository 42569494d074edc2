import numpy as np
from sklearn.preprocessing import StandardScaler

from irnet.scaling import Scaling


def fit(x: np.ndarray, y: np.ndarray, **choices: object) -> Scaling:
    options = {"scale_inputs": True, "clip": 6.0, "scale_target": True} | choices
    return Scaling.fit(x, y, **options)  # type: ignore[arg-type]


def test_inputs_equal_scikit_learn_where_not_clipped() -> None:
    x = np.random.default_rng(0).normal(5, 3, size=(200, 4)).astype(np.float32)
    scaling = fit(x, x[:, 0].astype(float))
    np.testing.assert_allclose(scaling.inputs(x), StandardScaler().fit_transform(x), atol=1e-5)


def test_clip_and_constant_columns() -> None:
    x = np.ones((101, 2), dtype=np.float32) * np.float32(0.1)
    x[0, 0] = 100
    scaling = fit(x, np.arange(101.0))
    scaled = scaling.inputs(x)
    assert scaled[0, 0] == 6.0
    assert scaling.std[1] == 1.0
    np.testing.assert_allclose(scaled[:, 1], 0.0, atol=1e-6)


def test_target() -> None:
    y = np.array([1.0, 2.0, 6.0])
    scaling = fit(np.zeros((3, 1), dtype=np.float32), y)
    np.testing.assert_allclose(scaling.target(y), (y - 3) / y.std(), rtol=1e-6)
    assert fit(np.zeros((3, 1), dtype=np.float32), np.full(3, 2.0)).target_std == 1.0


def test_without_scaling_nothing_changes() -> None:
    x = np.array([[1e6, -3.0]], dtype=np.float32)
    scaling = fit(x, np.array([4.0]), scale_inputs=False, clip=None, scale_target=False)
    np.testing.assert_array_equal(scaling.inputs(x), x)
    assert scaling.target(np.array([4.0])) == 4.0
