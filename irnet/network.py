"""The trainable network: an architecture as a torch module, of one member or of several at once.

A stack of k members is one module whose weights have an axis of members in front, and which maps
(k, n, inputs) to (k, n): a GPU then multiplies all members in one batched product. Its members
never see each other; what a stack computes for one of them is what that member computes alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .architecture import Architecture, Block

_MOMENTUM = 0.1  # of running statistics, as in nn.BatchNorm1d
_EPSILON = 1e-5

LEAKY_SLOPE = 0.3
"""Of the leaky ReLU below zero: that of Keras, with which BRNet was published."""


def activate_in_place(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation that may overwrite what it is given.

    Args:
        name: One of `irnet.architecture.ACTIVATIONS`.
    """
    return {
        "relu": torch.relu_,
        "tanh": torch.tanh_,
        "sigmoid": torch.sigmoid_,
        "leaky_relu": lambda x: functional.leaky_relu_(x, LEAKY_SLOPE),
    }[name]


def _activate(name: str, x: Tensor) -> Tensor:
    if name == "leaky_relu":
        return functional.leaky_relu(x, LEAKY_SLOPE)
    activated: Tensor = getattr(torch, name)(x)
    return activated


@dataclass(eq=False)
class Batch:
    """What the layers of one network must know of the rows at hand in training.

    Attributes:
        generators: Source of random numbers of each member.
        rows: Number of rows of each member of a stack where they differ, or None. The rows of x
            are as many as the largest; what stands in a member's superfluous rows has no influence
            on its others.
    """

    generators: Sequence[torch.Generator] = ()
    rows: tuple[int, ...] | None = None

    def valid(self, x: Tensor) -> Tensor:
        """Return 1 for the rows of x (k, n, width) that count and 0 for others: (k, n, 1)."""
        rows = torch.tensor(self.rows, device=x.device)
        number = torch.arange(x.shape[1], device=x.device)
        return (number < rows[:, None])[..., None].float()

    def draw(self, x: Tensor, *, normal: bool = False) -> Tensor:
        """Draw a float32 number for every value of x, each member's from its own generator.

        Args:
            x: (n, width), or (k, n, width) of a stack.
            normal: Standard normal numbers instead of numbers uniform in [0, 1).

        Returns:
            Numbers of the shape of x; 0 in superfluous rows.
        """

        def sample(shape: Sequence[int], generator: torch.Generator) -> Tensor:
            if normal:
                return torch.randn(shape, generator=generator, device=x.device)
            return torch.rand(shape, generator=generator, device=x.device)

        if x.ndim == 2:
            return sample(x.shape, self.generators[0])
        count, most, width = x.shape
        rows = self.rows or (most,) * count
        drawn = [
            sample((n, width), generator)
            for n, generator in zip(rows, self.generators, strict=True)
        ]
        return torch.stack([functional.pad(d, (0, 0, 0, most - len(d))) for d in drawn])


class Dropout(nn.Module):
    """Dropout whose random numbers come from generators of its own, not from a global state.

    Args:
        probability: Of setting a value to zero.
        batch: Holds the generators.
    """

    def __init__(self, probability: float, batch: Batch) -> None:
        super().__init__()
        self.probability = probability
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        """Drop values of x, any shape, in training; return it unchanged in evaluation."""
        if not self.training or not self.probability:
            return x
        return x * (self.batch.draw(x) >= self.probability) / (1.0 - self.probability)


class StackedLinear(nn.Module):
    """The linear layers of several members, weights (members, inputs, outputs).

    Args:
        members: Number of members.
        inputs: Width of the input.
        outputs: Width of the output.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(members, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (members, n, inputs) to (members, n, outputs)."""
        return torch.baddbmm(self.bias[:, None], x, self.weight)


class StackedNorm(nn.Module):
    """The batch norms of several members, each over its own rows.

    Args:
        members: Number of members.
        width: Number of features.
        batch: Says which rows count.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, members: int, width: int, batch: Batch) -> None:
        super().__init__()
        self.batch = batch
        self.eps = _EPSILON
        self.weight = nn.Parameter(torch.ones(members, width))
        self.bias = nn.Parameter(torch.zeros(members, width))
        self.register_buffer("running_mean", torch.zeros(members, width))
        self.register_buffer("running_var", torch.ones(members, width))
        self.register_buffer("num_batches_tracked", torch.zeros(members, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (members, n, width)."""
        if self.training:
            self.num_batches_tracked.add_(1)
            if self.batch.rows is not None:
                return self._normalise_ragged(x)
        # features of all members side by side: torch's own kernel then does them at once
        members, rows, width = x.shape
        y = functional.batch_norm(
            x.transpose(0, 1).reshape(rows, members * width),
            self.running_mean.view(-1),
            self.running_var.view(-1),
            self.weight.reshape(-1),
            self.bias.reshape(-1),
            self.training,
            _MOMENTUM,
            self.eps,
        )
        return y.view(rows, members, width).transpose(0, 1)

    def _normalise_ragged(self, x: Tensor) -> Tensor:
        valid = self.batch.valid(x)
        count = valid.sum(dim=1, keepdim=True)
        mean = (x * valid).sum(dim=1, keepdim=True) / count
        centred = (x - mean) * valid
        var = centred.square().sum(dim=1, keepdim=True) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean[:, 0], _MOMENTUM)
            self.running_var.lerp_((var * count / (count - 1))[:, 0], _MOMENTUM)
        y = centred * torch.rsqrt(var + self.eps)
        return (y * self.weight[:, None] + self.bias[:, None]).to(x.dtype)


def _linear(members: int | None, inputs: int, outputs: int) -> nn.Linear | StackedLinear:
    if members is None:
        return nn.Linear(inputs, outputs)
    return StackedLinear(members, inputs, outputs)


class Layer(nn.Module):
    """Fully connected, batch norm, activation, with an optional shortcut around them.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        activation: One of `irnet.architecture.ACTIVATIONS`.
        norm: "before" or "after" the activation, or "none".
        shortcut: Whether the input (or its projection) is added to the activated output.
        members: Number of members of a stack, or None for one network.
        batch: Shared by all layers of the network.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: str,
        norm: str,
        shortcut: bool,
        members: int | None,
        batch: Batch,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear = _linear(members, inputs, outputs)
        self.norm: nn.BatchNorm1d | StackedNorm | None = None
        if norm != "none":
            self.norm = (
                nn.BatchNorm1d(outputs) if members is None else StackedNorm(members, outputs, batch)
            )
        self.norm_first = norm == "before"
        self.shortcut = shortcut
        self.projection = (
            _linear(members, inputs, outputs) if shortcut and inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, outputs), or with an axis of members in front of both."""
        y: Tensor = self.linear(x)
        if self.norm is not None and self.norm_first:
            y = self.norm(y)
        y = _activate(self.activation, y)
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
        members: Number of members of a stack, or None for one network.
        batch: Shared by all layers of the network.
    """

    def __init__(
        self,
        inputs: int,
        layers: list[Layer],
        shortcut: bool,
        layer_dropout: float,
        stage_dropout: float,
        members: int | None,
        batch: Batch,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        outputs = layers[-1].linear.out_features
        self.shortcut = shortcut
        self.projection = (
            _linear(members, inputs, outputs) if shortcut and inputs != outputs else None
        )
        self.layer_dropout = Dropout(layer_dropout, batch)
        self.stage_dropout = Dropout(stage_dropout, batch)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, width), or with an axis of members in front of both."""
        y = x
        for layer in self.layers:
            y = self.layer_dropout(layer(y))
        if self.shortcut:
            y = y + (x if self.projection is None else self.projection(x))
        dropped: Tensor = self.stage_dropout(y)
        return dropped


class Branches(nn.Module):
    """Parallel copies of a block, whose outputs are added.

    Args:
        branches: At least two, of equal widths.
    """

    def __init__(self, branches: list[Stage]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs) to (n, width), or with an axis of members in front of both."""
        first, *others = self.branches
        y: Tensor = first(x)
        for branch in others:
            y = y + branch(x)
        return y


class Network(nn.Module):
    """A network of fully connected layers, or a stack of them.

    Args:
        architecture: What to build.
        inputs: Number of features.
        dropout: Probability wherever the architecture has a ``D``.
        members: Number of members of a stack, or None for one network.
        outputs: 1 for a regression; for a classification the number of classes.

    Attributes:
        batch: What its layers must know of the rows at hand in training.
    """

    def __init__(
        self,
        architecture: Architecture,
        inputs: int,
        dropout: float = 0.0,
        members: int | None = None,
        outputs: int = 1,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.members = members
        self.batch = Batch()

        def stage(inputs: int, block: Block) -> Stage:
            widths = [inputs] + [block.width] * block.count
            layers = [
                Layer(
                    before,
                    after,
                    architecture.activation,
                    block.norm,
                    block.shortcut == "layer",
                    members,
                    self.batch,
                )
                for before, after in itertools.pairwise(widths)
            ]
            return Stage(
                inputs,
                layers,
                block.shortcut == "block",
                dropout if block.dropout == "layer" else 0.0,
                dropout if block.dropout == "block" else 0.0,
                members,
                self.batch,
            )

        stages: list[Stage | Branches] = []
        width = inputs
        for block in architecture.blocks:
            copies = [stage(width, block) for _ in range(block.branches)]
            stages.append(Branches(copies) if len(copies) > 1 else copies[0])
            width = block.width
        self.stages = nn.ModuleList(stages)
        self.output = _linear(members, width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map scaled features (n, inputs) to scaled targets (n,), or logits (n, classes), float32.

        A stack has an axis of members in front of both.
        """
        for stage in self.stages:
            x = stage(x)
        y: Tensor = self.output(x)
        return (y.squeeze(-1) if y.shape[-1] == 1 else y).float()

    def leading_layers(self, count: int) -> list[nn.Module]:
        """Modules of the first hidden layers on the main path, with their shortcuts.

        Args:
            count: How many layers; a shortcut around a block belongs to the block's last layer, and
            what is parallel counts once.

        Returns:
            The modules that hold the weights of these layers.
        """
        found: list[nn.Module] = []
        for stage, block in zip(self.stages, self.architecture.blocks, strict=True):
            for branch in stage.branches if isinstance(stage, Branches) else [stage]:
                assert isinstance(branch, Stage)
                found += list(branch.layers)[: max(0, count)]
                if count >= block.count and branch.projection is not None:
                    found.append(branch.projection)
            count -= block.count
        return found


def new_network(
    architecture: Architecture,
    inputs: int,
    dropout: float,
    generator: torch.Generator,
    outputs: int = 1,
) -> Network:
    """Build a network with fresh weights drawn from one generator.

    Weights and biases are uniform within 1/sqrt(inputs of the layer), torch's own start for a
    fully connected layer; batch norm begins as the identity.

    Args:
        architecture: What to build.
        inputs: Number of features.
        dropout: Probability wherever the architecture has a ``D``.
        generator: Source of all random numbers.
        outputs: 1, or the number of classes.

    Returns:
        The network on the CPU, in training mode.
    """
    with torch.device("meta"):  # torch's own start would draw from its global generator
        network = Network(architecture, inputs, dropout, outputs=outputs)
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


def stack_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join the weights of several members into those of a stack.

    Args:
        states: One state per member; matrices are (outputs, inputs).

    Returns:
        Weights with an axis of members in front; matrices become (members, inputs, outputs).
    """
    joined = {}
    for name in states[0]:
        values = [state[name] for state in states]
        joined[name] = torch.stack([v.T if v.ndim == 2 else v for v in values])
    return joined


def unstack_state(state: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Divide the weights of a stack into those of its members; the inverse of `stack_states`.

    Args:
        state: Weights with an axis of members in front.

    Returns:
        One state per member, its tensors views of the given ones.
    """
    members = len(next(iter(state.values())))
    return [
        {name: v[i].T if v.ndim == 3 else v[i] for name, v in state.items()} for i in range(members)
    ]


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


def network_of(
    architecture: Architecture, inputs: int, state: Mapping[str, Tensor], outputs: int = 1
) -> Network:
    """Build a network in evaluation mode that holds the given weights.

    Args:
        architecture: What to build.
        inputs: Number of features.
        state: Weights by name, as ``Network.state_dict()`` gives them.
        outputs: 1, or the number of classes.

    Returns:
        The network, ``eval()`` called.
    """
    with torch.device("meta"):
        network = Network(architecture, inputs, outputs=outputs)
    network.load_state_dict(dict(state), assign=True)
    return network.eval()
