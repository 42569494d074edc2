"""Third stage: the ensemble's and the Random Forest's opinion of each candidate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from screening.errors import ModelError

if TYPE_CHECKING:
    from irnet import Scorer
    from screening.model_library import ScreeningModel


@dataclass(frozen=True, eq=False)
class Scores:
    """Predicted formation enthalpies of candidates, all in eV/atom.

    Attributes:
        mean: Mean of the members, shape (m,), float64.
        std: Standard deviation of the members, shape (m,), float64.
        forest: The Random Forest's value, shape (m,), float64; NaN without a forest.
        network_seconds: Time that the networks took.
        forest_seconds: Time that the forest took.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    forest: NDArray[np.float64]
    network_seconds: float
    forest_seconds: float


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to score on one device."""

    model: ScreeningModel
    scorer: Scorer


@lru_cache(maxsize=2)
def load_scorer(name: str, content_hash: str, device: str, precision: str) -> LoadedModel:
    """Load a model once per process and put its networks on a device.

    Args:
        name: Name of a bundled model or path of a model folder.
        content_hash: What the model's hash must be.
        device: Torch device.
        precision: Arithmetic of the networks: auto, bf16 or fp32.

    Returns:
        The model with its scorer.

    Raises:
        ModelError: The model differs from the one that the campaign began with, or expects other
            features.
        irnet.IRNetError: The model's files are damaged.
    """
    from screening.features.schema import FEATURES
    from screening.model_library import load_model

    model = load_model(name)
    if model.content_hash != content_hash:
        raise ModelError(
            f"model {name} changed: its hash is {model.content_hash[:12]}, the campaign began with "
            f"{content_hash[:12]}; restore the model or start a new campaign in another folder"
        )
    model.ensemble.check_features(FEATURES)
    return LoadedModel(model, model.ensemble.scorer(device=device, precision=precision))


def score_candidates(loaded: LoadedModel, features: torch.Tensor) -> Scores:
    """Score candidates with all members of the ensemble and with the forest.

    Args:
        loaded: Model to score with.
        features: Features, shape (m, 271), on the scorer's device, all finite.

    Returns:
        Formation enthalpies in eV/atom and the time that each model took.
    """
    started = time.perf_counter()
    prediction = loaded.scorer.predict(features)
    networks_done = time.perf_counter()
    if loaded.model.forest is None:
        forest = np.full(len(features), np.nan)
    else:
        forest = loaded.model.forest.predict(features, workers=torch.get_num_threads())
    return Scores(
        mean=np.asarray(prediction.mean, dtype=np.float64),
        std=np.asarray(prediction.std, dtype=np.float64),
        forest=np.asarray(forest, dtype=np.float64),
        network_seconds=networks_done - started,
        forest_seconds=time.perf_counter() - networks_done,
    )
