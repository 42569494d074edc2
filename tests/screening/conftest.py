"""A tiny trained model, and the program called as a user calls it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

if TYPE_CHECKING:
    from screening.enumerate import Shard
    from screening.folder import Receipt

UNSEEN = "Cs"
"""An element that the tiny model's card does not list."""

KNOWN = ("KMgF3", "NaCl")
"""Compositions that the tiny model counts as trained on."""


def build_tiny_model(folder: Path) -> Path:
    """Train one-layer networks and a small forest on made-up energies of real candidates."""
    from irnet import Ensemble, Recipe, fit_forest, train_ensemble
    from irnet.forest import ForestParameters
    from prototypes import ATOMIC_NUMBERS, CandidateSpace, element_pool, find_prototype
    from screening.features.geometry import measure_geometry
    from screening.features.prototype import PrototypeFeaturizer
    from screening.features.schema import FEATURES
    from screening.model_card import Card, DataCard, TrainingCard, write_card
    from screening.model_library import ENSEMBLE_NAME, FOREST_NAME, FORMULAS_NAME
    from screening.training_table import TrainingTable

    prototype = find_prototype("cubic_perovskite")
    pool = element_pool("Li,Na,K,Rb,Cs,Mg,Ca,Ti,Fe,Al,O,S,F,Cl")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))
    _, numbers = space.decode(0, space.index_count)
    numbers = np.random.default_rng(0).permutation(numbers)[:400]
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    features = featurizer(numbers).numpy()
    energies = np.sin(numbers.astype(np.float64)).sum(axis=1)
    ensemble: Ensemble = train_ensemble(
        features,
        energies,
        FEATURES,
        recipe=Recipe(architecture="16BAR-1", epochs=3, batch_size=64, precision="fp32"),
        members=2,
        checkpoint_dir=folder / "checkpoints",
        device="cpu",
    )
    folder.mkdir(exist_ok=True)
    ensemble.save(folder / ENSEMBLE_NAME)
    few = ForestParameters(n_estimators=10, max_depth=10)
    forest = fit_forest(features, energies, FEATURES, search=False, parameters=few)
    forest.save(folder / FOREST_NAME)
    TrainingTable.of(KNOWN).save(folder / FORMULAS_NAME)
    write_card(
        Card(
            name="tiny",
            description="Made-up energies, for tests.",
            licence="none",
            data=DataCard(
                files=(),
                content_sha256="0" * 64,
                target="formation_energy_per_atom",
                rows=400,
                formulas=400,
                elements=tuple(symbol for symbol in ATOMIC_NUMBERS if symbol != UNSEEN),
                excluded_formulas=0,
                dropped={},
                held_out_rows=0,
                sources=(),
            ),
            training=TrainingCard(
                recipe={},
                architecture="16BAR-1",
                members=2,
                seed=0,
                forest={},
                holdout=0.0,
                max_sites=None,
                seconds={},
                machine="none",
                versions={},
                created="2026-01-01",
            ),
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model that takes milliseconds, with a forest."""
    return build_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def calibrate_tiny_model(tiny: Path, folder: Path) -> Path:
    """Give a copy of the tiny model intervals, fitted on made-up energies of other candidates."""
    from irnet.reference import TrainingReference
    from prototypes import CandidateSpace, element_pool, find_prototype
    from screening.calibration import CalibrationRows, fit_intervals
    from screening.evaluation import predict_all
    from screening.features.geometry import measure_geometry
    from screening.features.prototype import PrototypeFeaturizer
    from screening.model_card import write_card
    from screening.model_library import UNCERTAINTY_NAME, load_model

    shutil.copytree(tiny, folder)
    model = load_model(folder)
    prototype = find_prototype("cubic_perovskite")
    pool = element_pool("Li,Na,K,Rb,Cs,Mg,Ca,Ti,Fe,Al,O,S,F,Cl")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))
    _, numbers = space.decode(0, space.index_count)
    numbers = np.random.default_rng(0).permutation(numbers)[:700]
    featurizer = PrototypeFeaturizer(
        measure_geometry(prototype.lattice, prototype.frac_coords, prototype.site_roles)
    )
    features = featurizer(numbers).numpy().astype(np.float32)
    reference = TrainingReference.fit(features[:400], size=200)
    asked = features[400:]
    rows = CalibrationRows(
        asked,
        np.sin(numbers[400:].astype(np.float64)).sum(axis=1),
        predict_all(model.ensemble, model.forest, asked, "cpu"),
        np.unique(np.sort(numbers[400:], axis=1), axis=0, return_inverse=True)[1].ravel(),
        reference.distance(asked),
    )
    uncertainty, calibration = fit_intervals(rows, reference, measured_on="made-up energies")
    uncertainty.save(folder / UNCERTAINTY_NAME)
    write_card(model.card.model_copy(update={"calibration": calibration}), folder)
    return folder


@pytest.fixture(scope="session")
def calibrated_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny model with intervals and distances."""
    return calibrate_tiny_model(tiny_model, tmp_path_factory.mktemp("model") / "calibrated")


@pytest.fixture
def screening() -> Callable[..., Result]:
    """Call the program with these arguments, in this process."""
    from screening.cli import app

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def make_receipt() -> Callable[..., Receipt]:
    """Make the receipt of a shard of ten scored candidates, of which none is gone."""
    from screening.folder import STD_EDGES, Receipt

    def make(shard: Shard, **changes: Any) -> Receipt:
        values: dict[str, Any] = {
            "campaign": "",
            "candidates": 10,
            "failed": 0,
            "dropped": 0,
            "below_hull": 0,
            "probable": 0,
            "std_histogram": (0,) * len(STD_EDGES),
            "reasons": {},
            "best": (),
            "removed": {},
            "seconds": {},
            "sha256": "",
            "device": "cpu",
            "precision": "float32",
            "threads": 1,
            "host": "host",
            "worker": "driver",
            "finished": "2026-01-01T00:00:00+00:00",
        }
        values |= changes
        scored = values["candidates"] - values["failed"] + values["dropped"]
        return Receipt(shard, **{"scored": scored} | values)

    return make


@pytest.fixture
def training_data(tmp_path: Path) -> Path:
    """A table of 36 structures of the CsCl type with made-up energies."""
    path = tmp_path / "d.parquet"
    symbols = ["Li", "Na", "K", "Rb", "F", "Cl", "Br", "Cu", "Ag"]
    pairs = [(a, b) for a in symbols for b in symbols if a < b]
    pd.DataFrame(
        {
            "id": [a + b for a, b in pairs],
            "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
            "species": [list(pair) for pair in pairs],
            "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * len(pairs),
            "formation_energy_per_atom": np.linspace(-2, 0, len(pairs)),
            "kind": "B2",
        }
    ).to_parquet(path)
    return path


@pytest.fixture
def train(screening: Callable[..., Result], tmp_path: Path) -> Callable[..., Result]:
    """Train a tiny network into a folder, for an epoch unless told otherwise."""

    def call(
        data: Path,
        *options: object,
        out: str = "model",
        epochs: int = 1,
        architecture: str | None = "4A-1",
    ) -> Result:
        fast = ("--epochs", epochs, "--members", 1, "--device", "cpu")
        layers = () if architecture is None else ("--architecture", architecture)
        rest = ("--no-forest", "--workers", 0, "--holdout", 0.2, *options)
        return screening("train", data, "--out", tmp_path / out, *fast, *layers, *rest)

    return call


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path], tuple[str, list[str]]]:
    """Open a page in Chromium; skip where there is none.

    Returns the document after the page's scripts ran, and what the console says.
    """
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium on this machine")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options.append(f"--user-data-dir={tmp_path / 'browser'}")

    def open_page(path: Path) -> tuple[str, list[str]]:
        done = subprocess.run(
            [chromium, *options, "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page
