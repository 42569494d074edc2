"""Residual regression networks for feature vectors, ensembles of them, and their baselines.

Knows vectors and the names of their columns, nothing of crystals. Needs torch, NumPy,
scikit-learn and safetensors; importing the package itself loads none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import metrics
    from .architecture import ARCHITECTURES, Architecture
    from .baselines import BASELINES, Baseline, fit_baseline
    from .ensemble import Ensemble, Member
    from .errors import (
        ArchitectureError,
        CheckpointError,
        DataError,
        DeviceError,
        FeatureMismatchError,
        IRNetError,
        ModelFileError,
        RecipeError,
        TrainingDivergedError,
    )
    from .forest import Forest, fit_forest
    from .network import Network, count_parameters
    from .recipe import RECIPES, Recipe, find_recipe
    from .reference import TrainingReference
    from .rows import encode_classes
    from .scorer import Classification, Prediction, Scorer
    from .trainee import Progress
    from .training import train_ensemble
    from .uncertainty import Assessment, Uncertainty

_HOMES = {
    "ARCHITECTURES": "architecture",
    "BASELINES": "baselines",
    "Baseline": "baselines",
    "Architecture": "architecture",
    "ArchitectureError": "errors",
    "Assessment": "uncertainty",
    "CheckpointError": "errors",
    "Classification": "scorer",
    "DataError": "errors",
    "DeviceError": "errors",
    "Ensemble": "ensemble",
    "FeatureMismatchError": "errors",
    "Forest": "forest",
    "IRNetError": "errors",
    "Member": "ensemble",
    "ModelFileError": "errors",
    "Network": "network",
    "Prediction": "scorer",
    "Progress": "trainee",
    "RECIPES": "recipe",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Scorer": "scorer",
    "TrainingDivergedError": "errors",
    "TrainingReference": "reference",
    "Uncertainty": "uncertainty",
    "count_parameters": "network",
    "encode_classes": "rows",
    "find_recipe": "recipe",
    "fit_baseline": "baselines",
    "fit_forest": "forest",
    "train_ensemble": "training",
}

__all__ = [
    "ARCHITECTURES",
    "BASELINES",
    "RECIPES",
    "Architecture",
    "ArchitectureError",
    "Assessment",
    "Baseline",
    "CheckpointError",
    "Classification",
    "DataError",
    "DeviceError",
    "Ensemble",
    "FeatureMismatchError",
    "Forest",
    "IRNetError",
    "Member",
    "ModelFileError",
    "Network",
    "Prediction",
    "Progress",
    "Recipe",
    "RecipeError",
    "Scorer",
    "TrainingDivergedError",
    "TrainingReference",
    "Uncertainty",
    "count_parameters",
    "encode_classes",
    "find_recipe",
    "fit_baseline",
    "fit_forest",
    "metrics",
    "train_ensemble",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module(".metrics", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
