"""The trainable network: an architecture as a torch module."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .architecture import Architecture


class Dropout(nn.Module):
    """Dropout whose random numbers come from a generator of its own, not from a global state.

    Args:
        probability: Of setting a value to zero.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x, any shape, in training; return it unchanged in evaluation."""
        if not self.training or not self.probability:
            return x
        draw = torch.rand(x.shape, generator=self.generator, device=x.device)
        return x * (draw >= self.probability) / (1.0 - self.probability)


class Layer(nn.Module):
    """Fully connected, batch norm, activation, with an optional shortcut around them.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        norm: "before" or "after" the activation, or "none".
        shortcut: Whether the input (or its projection) is added to the activated output.
    """

    def __init__(self, inputs: int, outputs: int, norm: str, shortcut: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs) if norm != "none" else None
        self.norm_first = norm == "before"
        self.shortcut = shortcut
        self.projection = nn.Linear(inputs, outputs) if shortcut and inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, outputs)."""
        y: Tensor = self.linear(x)
        if self.norm is not None and self.norm_first:
            y = self.norm(y)
        y = torch.relu(y)
        if self.norm is not None and not self.norm_first:
            y = self.norm(y)
        if self.shortcut:
            y = y + (x if self.projection is None else self.projection(x))
        return y


class Stage(nn.Module):
    """One block of an architecture: its layers, its own shortcut, its dropout.

    Args:
        inputs: Width of the input.
        layers: The layers in order.
        shortcut: Whether one shortcut goes around all layers (SRNet).
        layer_dropout: Dropout after every layer, as a probability.
        stage_dropout: Dropout after the last layer, as a probability.
    """

    def __init__(
        self,
        inputs: int,
        layers: list[Layer],
        shortcut: bool,
        layer_dropout: float,
        stage_dropout: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        outputs = layers[-1].linear.out_features
        self.shortcut = shortcut
        self.projection = nn.Linear(inputs, outputs) if shortcut and inputs != outputs else None
        self.layer_dropout = Dropout(layer_dropout)
        self.stage_dropout = Dropout(stage_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, width)."""
        y = x
        for layer in self.layers:
            y = self.layer_dropout(layer(y))
        if self.shortcut:
            y = y + (x if self.projection is None else self.projection(x))
        dropped: Tensor = self.stage_dropout(y)
        return dropped


class Network(nn.Module):
    """A regression network of fully connected layers with one output.

    Args:
        architecture: What to build.
        inputs: Number of features.
        dropout: Probability wherever the architecture has a ``D``.
    """

    def __init__(self, architecture: Architecture, inputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.architecture = architecture
        stages = []
        width = inputs
        for block in architecture.blocks:
            widths = [width] + [block.width] * block.count
            layers = [
                Layer(a, b, block.norm, block.shortcut == "layer")
                for a, b in itertools.pairwise(widths)
            ]
            stages.append(
                Stage(
                    width,
                    layers,
                    block.shortcut == "block",
                    dropout if block.dropout == "layer" else 0.0,
                    dropout if block.dropout == "block" else 0.0,
                )
            )
            width = block.width
        self.stages = nn.ModuleList(stages)
        self.output = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map scaled features (n, inputs) to scaled targets (n,), float32."""
        for stage in self.stages:
            x = stage(x)
        y: Tensor = self.output(x)
        return y.squeeze(-1).float()


def new_network(
    architecture: Architecture, inputs: int, dropout: float, generator: torch.Generator
) -> Network:
    """Build a network with fresh weights drawn from one generator.

    Weights and biases are uniform within 1/sqrt(inputs of the layer), torch's own start for a
    fully connected layer; batch norm begins as the identity.

    Args:
        architecture: What to build.
        inputs: Number of features.
        dropout: Probability wherever the architecture has a ``D``.
        generator: Source of all random numbers.

    Returns:
        The network on the CPU, in training mode.
    """
    with torch.device("meta"):  # torch's own start would draw from its global generator
        network = Network(architecture, inputs, dropout)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)
    return network


def count_parameters(architecture: Architecture | str, inputs: int) -> int:
    """Number of trainable parameters, without allocating them.

    Args:
        architecture: An architecture or its string or name.
        inputs: Number of features; the paper's networks have 271.

    Returns:
        Weights, biases and batch-norm parameters together.
    """
    if isinstance(architecture, str):
        architecture = Architecture.parse(architecture)
    with torch.device("meta"):
        network = Network(architecture, inputs)
    return sum(p.numel() for p in network.parameters())


def network_of(architecture: Architecture, inputs: int, state: Mapping[str, Tensor]) -> Network:
    """Build a network in evaluation mode that holds the given weights.

    Args:
        architecture: What to build.
        inputs: Number of features.
        state: Weights by name, as ``Network.state_dict()`` gives them.

    Returns:
        The network, ``eval()`` called.
    """
    with torch.device("meta"):
        network = Network(architecture, inputs)
    network.load_state_dict(dict(state), assign=True)
    return network.eval()
