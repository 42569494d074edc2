"""Small trained models that several tests read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from irnet import Ensemble, Forest, Recipe, fit_forest, train_ensemble
from irnet.forest import ForestParameters


@dataclass(frozen=True)
class Table:
    features: NDArray[np.float32]
    target: NDArray[np.float64]
    names: tuple[str, ...]


def make_table(rows: int, columns: int = 12, seed: int = 0) -> Table:
    generator = np.random.default_rng(seed)
    scale = np.geomspace(0.01, 100, columns)
    x = (generator.normal(size=(rows, columns)) * scale + 3 * scale).astype(np.float32)
    z = (x - 3 * scale) / scale
    y = z[:, 0] + np.abs(z[:, 1]) - 0.5 * z[:, 2] * z[:, 3] - 2.0
    return Table(x, y, tuple(f"column {i}" for i in range(columns)))


SMALL = Recipe(
    architecture="32BARx2-16BARx2-1", epochs=6, batch_size=32, learning_rate=1e-3, precision="fp32"
)


@pytest.fixture(scope="session")
def table() -> Table:
    return make_table(400)


@pytest.fixture(scope="session")
def ensemble(table: Table, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    return train_ensemble(
        table.features,
        table.target,
        table.names,
        recipe=SMALL,
        members=3,
        checkpoint_dir=tmp_path_factory.mktemp("checkpoints"),
        device="cpu",
    )


@pytest.fixture(scope="session")
def forest(table: Table) -> Forest:
    return fit_forest(
        table.features,
        table.target,
        table.names,
        search=False,
        parameters=ForestParameters(n_estimators=12, max_depth=10),
    )
