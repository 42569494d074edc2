"""Training recipes: every choice of a training run in one frozen record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .architecture import ACTIVATIONS, Architecture
from .errors import RecipeError, nearest

OPTIMIZERS = ("adamw", "adam", "sgd", "momentum", "rmsprop")
LOSSES = ("mae", "mse", "cross_entropy")
SCHEDULES = ("one-cycle", "constant", "cosine", "step", "plateau")
PRECISIONS = ("auto", "bf16", "fp32")
AVERAGINGS = ("none", "ema")


@dataclass(frozen=True)
class Recipe:
    """How one member of an ensemble is trained.

    Attributes:
        name: Name of the recipe that this one was made from.
        architecture: Name or string of the network, see `irnet.architecture`.
        activation: "relu", "tanh", "sigmoid" or "leaky_relu", of all hidden layers.
        loss: "mae" (mean absolute error) or "mse" (mean squared error) of a regression, or
            "cross_entropy" of a classification. The best epoch of a regression is that of the
            lowest mean absolute error on the validation rows with either loss.
        epochs: Passes over the training rows, at most.
        batch_size: Rows per step, about: an epoch's rows are divided evenly into as many steps as
            there are full batches.
        optimizer: "adamw", "adam", "sgd" (plain), "momentum" (SGD with momentum 0.9) or "rmsprop"
            (smoothing 0.99), each as in torch.
        learning_rate: Constant rate, or the top of the one-cycle.
        weight_decay: Decoupled weight decay of AdamW; must be 0 for the others.
        schedule: "one-cycle" (cosine up for 30 % of all steps from 1/25 of the top rate, then
            cosine down to nearly 0; Smith and Topin 2019), "constant", "cosine" (half a cosine from
            `learning_rate` to 0 over all epochs), "step" (times `decay_factor` after every
            `decay_epochs`) or "plateau" (times `decay_factor` after `decay_epochs` without a better
            validation error).
        gradient_clip: Largest norm of the whole gradient, or None.
        scale_inputs: Whether features are standardised with the training rows' mean and deviation.
        clip_sigma: Standardised features are clipped to this many deviations, or None.
        scale_target: Whether the target is standardised.
        validation_fraction: Share of the rows (or groups) kept for validation.
        patience: Epochs without a better validation error after which training stops, or None.
        precision: "bf16" runs the matrix products in bfloat16 and keeps the weights in float32,
            "fp32" multiplies in float32, "auto" uses bfloat16 where the device multiplies it
            faster.
        dropout: Probability wherever the architecture has a ``D``.
        frozen_layers: So many leading fully connected layers, each with its norm and shortcut, stay
            as they were: no gradient, batch norm in evaluation mode (a shortcut around a block
            goes with the block's last layer). -1 freezes all but the output. Needs weights to
            start from.
        weight_averaging: "none", or "ema": validation, best epoch and result are those of a running
            average of the weights and batch-norm statistics of every step (Polyak and Juditsky
            1992), each counting `averaging_decay` times what the next one does.
        averaging_decay: Of "ema"; over the first steps it is no more than
            (1 + step) / (10 + step), so that the initial weights are soon forgotten.
        input_noise: Standard deviation of Gaussian noise added to the scaled inputs in training.
        decay_epochs: Epochs before the rate falls under the "step" and "plateau" schedules.
        decay_factor: What the rate is then multiplied with.
    """

    name: str = "default"
    architecture: str = "irnet-17"
    activation: str = "relu"
    loss: str = "mae"
    epochs: int = 80
    batch_size: int = 512
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    schedule: str = "one-cycle"
    gradient_clip: float | None = 1.0
    scale_inputs: bool = True
    clip_sigma: float | None = 6.0
    scale_target: bool = True
    validation_fraction: float = 0.1
    patience: int | None = 40
    precision: str = "auto"
    dropout: float = 0.1
    frozen_layers: int = 0
    weight_averaging: str = "none"
    averaging_decay: float = 0.999
    input_noise: float = 0.0
    decay_epochs: int = 20
    decay_factor: float = 0.5

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            RecipeError: Names the field and what it may be.
            ArchitectureError: If the architecture cannot be read.
        """
        for field, choices in (
            ("activation", ACTIVATIONS),
            ("loss", LOSSES),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("weight_averaging", AVERAGINGS),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise RecipeError(
                    f"recipe {field} {value!r} is none of {', '.join(choices)}"
                    f"{nearest(str(value), choices)}"
                )
        hidden = self.layers.depth - 1
        for field, fine, rule in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2 (batch norm needs two rows)"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("gradient_clip", self.gradient_clip is None or self.gradient_clip > 0, "above 0"),
            ("clip_sigma", self.clip_sigma is None or self.clip_sigma > 0, "above 0"),
            ("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
            (
                "frozen_layers",
                -1 <= self.frozen_layers <= hidden,
                f"from 0 to {hidden}, the architecture's hidden layers, or -1 for all of them",
            ),
            ("averaging_decay", 0 < self.averaging_decay < 1, "between 0 and 1"),
            ("input_noise", self.input_noise >= 0, "0 or more"),
            ("decay_epochs", self.decay_epochs >= 1, "at least 1"),
            ("decay_factor", 0 < self.decay_factor <= 1, "above 0 and at most 1"),
        ):
            if not fine:
                raise RecipeError(f"recipe {field} is {getattr(self, field)!r}, must be {rule}")
        if self.optimizer != "adamw" and self.weight_decay:
            raise RecipeError(
                f"recipe weight_decay is {self.weight_decay}, must be 0 with {self.optimizer}; use "
                "adamw to decay weights, or set weight_decay to 0"
            )
        if self.clip_sigma is not None and not self.scale_inputs:
            raise RecipeError(
                "recipe clip_sigma needs scale_inputs: unscaled inputs are not clipped"
            )

    @property
    def layers(self) -> Architecture:
        """The architecture, read."""
        return Architecture.parse(self.architecture, self.activation)

    @property
    def metric(self) -> str:
        """What is recorded of every epoch: "mae" or "cross_entropy"."""
        return "cross_entropy" if self.loss == "cross_entropy" else "mae"

    @property
    def frozen_depth(self) -> int:
        """Number of hidden layers that stay frozen, -1 counted out."""
        hidden = self.layers.depth - 1
        return hidden if self.frozen_layers == -1 else self.frozen_layers

    def with_changes(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed.

        Args:
            **changes: Fields and their new values.

        Returns:
            The changed recipe, checked.

        Raises:
            RecipeError: If a field does not exist; names the nearest that does.
        """
        _check_fields(changes)
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Recipe:
        """Read what `to_json` wrote; fields that an older version did not have get their defaults.

        Raises:
            RecipeError: If a field does not exist.
        """
        _check_fields(values)
        return cls(**values)


def _check_fields(values: dict[str, Any]) -> None:
    known = [field.name for field in fields(Recipe)]
    for key in values:
        if key not in known:
            raise RecipeError(
                f"a recipe has no field {key!r}{nearest(key, known)} (fields: {', '.join(known)})"
            )


RECIPES: dict[str, Recipe] = {
    "default": Recipe(),
    "paper": Recipe(
        name="paper",
        epochs=5000,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        schedule="constant",
        gradient_clip=None,
        scale_inputs=False,
        clip_sigma=None,
        scale_target=False,
        patience=200,
        precision="fp32",
        dropout=0.1,
    ),
}
RECIPES["brnet"] = RECIPES["paper"].with_changes(
    name="brnet", architecture="brnet", activation="leaky_relu", epochs=3000, batch_size=32
)
RECIPES["ibrnet"] = RECIPES["brnet"].with_changes(
    name="ibrnet", schedule="plateau", decay_factor=0.5, decay_epochs=20, patience=60
)
"""Recipes by name.

"paper" follows section 4 of Jha et al. 2019: Adam, 1e-4, batches of 64, mean absolute error,
patience 200; it stops by patience, the 5,000 epochs are only a bound. Features and target go in
unscaled, as in the paper's code; the validation rows are the member's own.

"brnet" is BRNet as its code trains it (Gupta et al. 2023): no batch norm, leaky ReLU, two branches,
batches of 32, at most 3,000 epochs. "ibrnet" adds what iBRNet (Gupta et al. 2024) is about, a rate
that falls where the validation error stands still, before training stops; how fast it falls and
after how many epochs is this package's choice.
"""


def find_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Args:
        name: A key of `RECIPES`.

    Returns:
        The recipe.

    Raises:
        RecipeError: Names the nearest recipe.
    """
    if name not in RECIPES:
        raise RecipeError(
            f"unknown recipe {name!r}{nearest(name, RECIPES)} (recipes: {', '.join(RECIPES)})"
        )
    return RECIPES[name]
