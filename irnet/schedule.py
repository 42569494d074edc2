"""How the learning rate moves in the course of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .recipe import Recipe

_WARM_SHARE = 0.3
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4


def learning_rate(
    recipe: Recipe,
    step: int,
    steps: int,
    steps_per_epoch: int = 1,
    errors: Sequence[float] = (),
) -> float:
    """Learning rate of one step.

    Args:
        recipe: Names the schedule and the top rate.
        step: From 0.
        steps: Steps of all epochs.
        steps_per_epoch: Steps of one epoch.
        errors: Validation error after each epoch so far, for the "plateau" schedule.

    Returns:
        The rate.
    """
    top = recipe.learning_rate
    if recipe.schedule == "constant":
        return top
    if recipe.schedule == "step":
        return top * recipe.decay_factor ** (step // steps_per_epoch // recipe.decay_epochs)
    if recipe.schedule == "plateau":
        return top * recipe.decay_factor ** count_plateaus(errors, recipe.decay_epochs)
    if recipe.schedule == "cosine":
        return top * (1 + math.cos(math.pi * step / steps)) / 2
    warm = max(1.0, _WARM_SHARE * steps)
    start, end = top / _START_DIVISOR, top / _START_DIVISOR / _END_DIVISOR
    if step < warm:
        low, high, done = start, top, step / warm
    else:
        low, high, done = top, end, (step - warm) / max(1.0, steps - 1 - warm)
    return high + (low - high) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def count_plateaus(errors: Sequence[float], patience: int) -> int:
    """Count how often an error stood still.

    Args:
        errors: After each epoch.
        patience: Epochs without a lower error than ever before after which one more plateau is
            counted and the counting of epochs begins anew.

    Returns:
        Number of plateaus.
    """
    best, stale, plateaus = math.inf, 0, 0
    for error in errors:
        stale = 0 if error < best else stale + 1
        best = min(best, error)
        if stale == patience:
            plateaus, stale = plateaus + 1, 0
    return plateaus
