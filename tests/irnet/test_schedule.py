from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from irnet import Recipe
from irnet.schedule import count_plateaus, learning_rate


def test_one_cycle_follows_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    steps = 200
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=Recipe().learning_rate, total_steps=steps, cycle_momentum=False
    )
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(Recipe(), step, steps) for step in range(steps)]
    # torch's summit is one step earlier
    np.testing.assert_allclose(ours, rates, atol=2e-5)
    constant = Recipe(schedule="constant", learning_rate=1e-3)
    assert learning_rate(constant, 7, steps) == 1e-3


@pytest.mark.parametrize(
    ("recipe", "make"),
    [
        (
            Recipe(schedule="cosine"),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=60),
        ),
        (
            Recipe(schedule="step", decay_epochs=4, decay_factor=0.3),
            lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=20, gamma=0.3),
        ),
    ],
)
def test_other_schedules_are_torchs(
    recipe: Recipe, make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = make(optimizer)
    for step in range(60):
        found = learning_rate(recipe, step, 60, steps_per_epoch=5)
        assert found == pytest.approx(schedule.get_last_lr()[0], rel=1e-6, abs=1e-12)
        optimizer.step()
        schedule.step()


@given(st.lists(st.floats(0, 1), max_size=40), st.integers(1, 5))
def test_plateaus_are_those_of_torch(errors: list[float], patience: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0.0, threshold_mode="abs", eps=0
    )
    for error in errors:
        schedule.step(error)
    assert optimizer.param_groups[0]["lr"] == 0.5 ** count_plateaus(errors, patience)
