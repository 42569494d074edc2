"""Third stage: the ensemble's and the Random Forest's opinion of each candidate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from screening.errors import ConfigurationError, ModelError
from screening.settings import Device

if TYPE_CHECKING:
    from irnet import Scorer
    from screening.model_library import ScreeningModel


@dataclass(frozen=True, eq=False)
class Scores:
    """Predicted formation enthalpies of candidates, in eV/atom, and how far to trust them.

    Attributes:
        mean: Mean of the members, shape (m,), float64.
        std: Standard deviation of the members, shape (m,), float64.
        low: Lower end of the 90 % interval, shape (m,), float64; NaN if not calibrated.
        high: Upper end.
        distance: Distance to the training data, shape (m,), float64; NaN if not calibrated.
        error_scale: Absolute error to expect, shape (m,), float64; NaN if not calibrated.
        members: Each member's value, shape (m, members), float64.
        forest: The Random Forest's value, shape (m,), float64; NaN without a forest.
        network_seconds: Time that the networks took.
        forest_seconds: Time that the forest took.
        uncertainty_seconds: Time that intervals and distances took.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    distance: NDArray[np.float64]
    error_scale: NDArray[np.float64]
    members: NDArray[np.float64]
    forest: NDArray[np.float64]
    network_seconds: float
    forest_seconds: float
    uncertainty_seconds: float

    def place(self, rows: NDArray[np.int64], count: int) -> Scores:
        """The same scores among candidates that have none.

        Args:
            rows: Row of each score, shape (m,).
            count: Rows in all; those without score become NaN.
        """

        def among(values: NDArray[np.float64]) -> NDArray[np.float64]:
            placed = np.full((count, *values.shape[1:]), np.nan)
            placed[rows] = values
            return placed

        arrays: dict[str, Any] = {name: among(getattr(self, name)) for name in _SCORE_ARRAYS}
        return replace(self, **arrays)

    def select(self, rows: NDArray[np.int64]) -> Scores:
        """The scores of some rows, shape (r,)."""
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in _SCORE_ARRAYS}
        return replace(self, **arrays)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """Scores of consecutive parts as one; at least one part."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in _SCORE_ARRAYS
        }
        return cls(
            **arrays,
            network_seconds=sum(part.network_seconds for part in parts),
            forest_seconds=sum(part.forest_seconds for part in parts),
            uncertainty_seconds=sum(part.uncertainty_seconds for part in parts),
        )


_SCORE_ARRAYS: Final = (
    "mean",
    "std",
    "low",
    "high",
    "distance",
    "error_scale",
    "members",
    "forest",
)


def pick_device(device: str, worker: int = 0) -> torch.device:
    """Return the device to compute on.

    Args:
        device: auto, cpu or cuda; auto takes a GPU where there is one.
        worker: Number of the worker; workers share several GPUs in turn.

    Returns:
        The CPU or one GPU.

    Raises:
        ConfigurationError: cuda was asked for and torch sees no GPU.
    """
    if device == Device.CPU or (device == Device.AUTO and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigurationError(
            "--device cuda: torch sees no CUDA device on this machine; use --device cpu or auto"
        )
    return torch.device("cuda", worker % torch.cuda.device_count())


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
        precision: Arithmetic of the networks: auto, int8, bf16 or fp32.

    Returns:
        The model with its scorer.

    Raises:
        ModelError: The model differs from the one that the campaign began with, or expects other
            features.
        irnet.IRNetError: The model's files are damaged.
    """
    from screening.features.schema import FEATURES
    from screening.model_library import load_enthalpy_model

    model = load_enthalpy_model(name)
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
    model, unknown = loaded.model, np.full(len(features), np.nan)
    started = time.perf_counter()
    prediction = loaded.scorer.predict(features)
    networks_done = time.perf_counter()
    forest = None
    if model.forest is not None:
        forest = np.asarray(
            model.forest.predict(features, workers=torch.get_num_threads()), dtype=np.float64
        )
    forest_done = time.perf_counter()
    low = high = distance = error_scale = unknown
    if model.uncertainty is not None and len(features):
        assessed = model.uncertainty.assess(features, prediction, forest)
        low, high, distance = assessed.low, assessed.high, assessed.distance
        error_scale = assessed.error_scale
    return Scores(
        mean=np.asarray(prediction.mean, dtype=np.float64),
        std=np.asarray(prediction.std, dtype=np.float64),
        low=low,
        high=high,
        distance=distance,
        error_scale=error_scale,
        members=np.asarray(prediction.members, dtype=np.float64).T,
        forest=unknown if forest is None else forest,
        network_seconds=networks_done - started,
        forest_seconds=forest_done - networks_done,
        uncertainty_seconds=time.perf_counter() - forest_done,
    )
