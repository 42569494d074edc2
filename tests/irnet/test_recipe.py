from typing import Any

import pytest

from irnet import RECIPES, ArchitectureError, Recipe, RecipeError, find_recipe


def test_paper_recipe_follows_section_4() -> None:
    paper = find_recipe("paper")
    assert (paper.optimizer, paper.learning_rate, paper.batch_size) == ("adam", 1e-4, 64)
    assert (paper.patience, paper.schedule) == (200, "constant")
    assert not paper.scale_inputs
    assert not paper.scale_target


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'papper'; did you mean \"paper\""):
        find_recipe("papper")


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no field 'epoch'; did you mean \"epochs\""):
        Recipe().with_changes(epoch=3)


def test_fields_of_a_later_version_have_defaults_that_change_nothing() -> None:
    # the fields of the first released version, all of them given
    first = {
        "name": "default",
        "architecture": "irnet-17",
        "epochs": 80,
        "batch_size": 512,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 1e-2,
        "schedule": "one-cycle",
        "gradient_clip": 1.0,
        "scale_inputs": True,
        "clip_sigma": 6.0,
        "scale_target": True,
        "validation_fraction": 0.1,
        "patience": 40,
        "precision": "auto",
        "dropout": 0.1,
    }
    assert Recipe.from_json(first) == Recipe(learning_rate=1e-3)
    with pytest.raises(RecipeError, match="no field 'droput'; did you mean \"dropout\""):
        Recipe.from_json({**first, "droput": 0.2})


def test_all_hidden_layers_can_be_frozen() -> None:
    assert Recipe(frozen_layers=-1).frozen_depth == 16
    assert Recipe(frozen_layers=3).frozen_depth == 3


@pytest.mark.parametrize("name", RECIPES)
def test_json_and_back(name: str) -> None:
    assert Recipe.from_json(RECIPES[name].to_json()) == RECIPES[name]


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lion"},
        {"activation": "gelu"},
        {"loss": "huber"},
        {"schedule": "cosin"},
        {"precision": "fp16"},
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"gradient_clip": 0.0},
        {"clip_sigma": -6.0},
        {"validation_fraction": 1.0},
        {"patience": 0},
        {"dropout": 1.0},
        {"frozen_layers": -2},
        {"frozen_layers": 17},
        {"weight_averaging": "mean"},
        {"averaging_decay": 1.0},
        {"input_noise": -0.1},
        {"decay_epochs": 0},
        {"decay_factor": 0.0},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"optimizer": "rmsprop", "weight_decay": 0.1},
        {"clip_sigma": 6.0, "scale_inputs": False},
    ],
)
def test_impossible_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(
        RecipeError, match=list(changes)[-1] if len(changes) > 1 else next(iter(changes))
    ):
        Recipe().with_changes(**changes)


def test_architecture_is_read_at_once() -> None:
    with pytest.raises(ArchitectureError):
        Recipe(architecture="irnet-171")
