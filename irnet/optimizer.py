"""The step of a training: clipping, the optimiser, and a running average of the weights.

The weights of a network, or of a stack of them, lie side by side in a few float32 matrices with a
row per member. On a CPU a step walks over them in blocks that stay in the cache, and does all that
there is to do to a block while it is there: the weights are read from and written to memory once.
On a GPU a matrix is one block, so that a step is a handful of kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .network import Network, StackedLinear, stack_states, unstack_state
from .recipe import Recipe

_CPU_BLOCK = 1 << 18  # values; a float32 array of them is 1 MiB
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MOMENTUM = 0.9  # of SGD
_SMOOTHING = 0.99  # of RMSprop's mean square
_NORM_FLOOR = 1e-6  # as in torch.nn.utils.clip_grad_norm_


class _Part:
    """Weights of one working precision: a matrix (members, values) and what belongs to it."""

    def __init__(self, parameters: Sequence[nn.Parameter], members: int, working: bool) -> None:
        self.parameters = parameters
        self.weights = torch.cat([p.detach().reshape(members, -1) for p in parameters], dim=1)
        self.working = self.weights.to(torch.bfloat16) if working else None
        self.exp_avg = torch.zeros_like(self.weights)
        self.exp_avg_sq = torch.zeros_like(self.weights)
        self.average: Tensor | None = None
        columns = self.weights.shape[1]
        whole = self.weights.device.type != "cpu"
        self.blocks = (
            [(slice(None), slice(None))]
            if whole
            else [
                (slice(row, row + 1), slice(start, min(start + _CPU_BLOCK, columns)))
                for row in range(members)
                for start in range(0, columns, _CPU_BLOCK)
            ]
        )

    def views(self, matrix: Tensor) -> list[Tensor]:
        """Cut a matrix (members, values) into tensors of the parameters' shapes."""
        sizes = [p.numel() // len(matrix) for p in self.parameters]
        stops = itertools.accumulate(sizes)
        return [
            matrix[:, stop - size : stop].view(p.shape)
            for size, stop, p in zip(sizes, stops, self.parameters, strict=True)
        ]

    def bind(self, matrix: Tensor) -> None:
        """Let the parameters be views of a matrix (members, values)."""
        for parameter, view in zip(self.parameters, self.views(matrix), strict=True):
            parameter.data = view


class Optimizer:
    """Trains the weights of a network in place.

    The network's matrices become bfloat16 copies of the float32 weights that are kept here, where
    that is the precision, and are renewed with every step.

    Args:
        network: One network or a stack, float32, on its device. Parameters that need no gradient
            are left as they are.
        recipe: Optimiser, weight decay, clipping and averaging.
        dtype: Of the matrix products, bfloat16 or float32.
    """

    def __init__(self, network: Network, recipe: Recipe, dtype: torch.dtype) -> None:
        self.network = network
        self.recipe = recipe
        self.members = network.members or 1
        parameters = dict(network.named_parameters())
        self._fixed = {
            name: p.detach().clone() for name, p in parameters.items() if not p.requires_grad
        }
        matrices = {
            parameter
            for module in network.modules()
            if isinstance(module, nn.Linear | StackedLinear)
            for parameter in module.parameters()
        }
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        lowered = [name for name, p in trained.items() if p in matrices and dtype != torch.float32]
        others = [name for name in trained if name not in set(lowered)]
        for name in self._fixed:
            if parameters[name] in matrices:
                parameters[name].data = parameters[name].data.to(dtype)
        device = next(iter(parameters.values())).device
        self._numbers = {name: number for number, name in enumerate(trained)}
        self._names: list[list[str]] = []
        self._parts: list[_Part] = []
        for names, working in ((lowered, True), (others, False)):
            # what fills a block by itself need not be copied beside others first
            large = [n for n in names if trained[n].numel() >= _CPU_BLOCK and device.type == "cpu"]
            small = [n for n in names if n not in set(large)]
            for group in (*([name] for name in large), small):
                if group:
                    self._names.append(group)
                    parts = [trained[name] for name in group]
                    self._parts.append(_Part(parts, self.members, working))
        self._steps = 0
        self._step = torch.zeros((), device=device)
        # aliases, so that the buffers can be exchanged for their averages and back
        self._buffers = {name: buffer.detach() for name, buffer in network.named_buffers()}
        self._average_buffers: dict[str, Tensor] | None = None
        if recipe.weight_averaging == "ema":
            for part in self._parts:
                part.average = part.weights.clone()
            self._average_buffers = {
                name: buffer.clone()
                for name, buffer in self._buffers.items()
                if buffer.is_floating_point()
            }
        self._bind(averaged=False)

    def step(self, loss: Tensor, rate: float) -> None:
        """Change the weights by one step.

        Args:
            loss: Sum of the members' losses, a scalar.
            rate: Learning rate.
        """
        parameters = [p for part in self._parts for p in part.parameters]
        flat = [g.reshape(self.members, -1) for g in torch.autograd.grad(loss, parameters)]
        gradients = []
        for part in self._parts:
            own = flat[: len(part.parameters)]
            gradients.append(own[0] if len(own) == 1 else torch.cat(own, dim=1))
            del flat[: len(part.parameters)]
        self._apply(gradients, rate)

    @torch.no_grad()
    def _apply(self, gradients: Sequence[Tensor], rate: float) -> None:
        recipe = self.recipe
        scale = self._clip_scale(gradients)
        self._steps += 1
        self._step += 1
        newest = 1.0 - min(recipe.averaging_decay, self._steps / (9.0 + self._steps))
        for part, gradient in zip(self._parts, gradients, strict=True):
            for block in part.blocks:
                weights, g = part.weights[block], gradient[block].float()
                if scale is not None:
                    g.mul_(scale[block[0]])
                self._change(weights, g, part.exp_avg[block], part.exp_avg_sq[block], rate)
                if part.working is not None:
                    part.working[block].copy_(weights)
                if part.average is not None:
                    part.average[block].lerp_(weights, newest)
        if self._average_buffers is not None:
            names = list(self._average_buffers)
            torch._foreach_lerp_(
                [self._average_buffers[name] for name in names],
                [self._buffers[name] for name in names],
                newest,
            )

    def _change(
        self, weights: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rate: float
    ) -> None:
        """Change a block of weights and the moments of its gradient in place."""
        match self.recipe.optimizer:
            case "sgd":
                weights.add_(gradient, alpha=-rate)
            case "momentum":
                weights.add_(first.mul_(_MOMENTUM).add_(gradient), alpha=-rate)
            case "rmsprop":
                second.mul_(_SMOOTHING).addcmul_(gradient, gradient, value=1.0 - _SMOOTHING)
                weights.addcdiv_(gradient, second.sqrt().add_(_EPSILON), value=-rate)
            case optimizer:
                adam = torch._fused_adamw_ if optimizer == "adamw" else torch._fused_adam_
                adam(
                    [weights],
                    [gradient],
                    [first],
                    [second],
                    [],
                    [self._step],
                    lr=rate,
                    beta1=_BETAS[0],
                    beta2=_BETAS[1],
                    weight_decay=self.recipe.weight_decay,
                    eps=_EPSILON,
                    amsgrad=False,
                    maximize=False,
                )

    def _clip_scale(self, gradients: Sequence[Tensor]) -> Tensor | None:
        limit = self.recipe.gradient_clip
        if limit is None:
            return None
        squares = torch.zeros((self.members, 1), device=self._step.device)
        for part, gradient in zip(self._parts, gradients, strict=True):
            for block in part.blocks:
                values = gradient[block].float()
                squares[block[0]] += torch.linalg.vector_norm(values, dim=1, keepdim=True).square()
        return (limit / (squares.sqrt() + _NORM_FLOOR)).clamp(max=1.0)

    def _bind(self, *, averaged: bool) -> None:
        for part in self._parts:
            matrix = part.weights
            if averaged:
                assert part.average is not None
                matrix = part.average
            if part.working is not None:
                matrix = matrix.to(part.working.dtype) if averaged else part.working
            part.bind(matrix)
        for name, average in (self._average_buffers or {}).items():
            buffer = self.network.get_buffer(name)
            buffer.data = average if averaged else self._buffers[name]

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """While open, the network has its averaged weights, if the recipe averages them."""
        if self._average_buffers is None:
            yield
            return
        self._bind(averaged=True)
        try:
            yield
        finally:
            self._bind(averaged=False)

    def states(self, *, averaged: bool = False) -> list[dict[str, Tensor]]:
        """Copy the float32 weights of each member.

        Args:
            averaged: Their averages, if the recipe averages them.

        Returns:
            One state per member, as a network of its own has it.
        """
        average = self._average_buffers if averaged else None
        found = {**self._fixed, **self._buffers, **(average or {})}
        for part, names in zip(self._parts, self._names, strict=True):
            matrix = part.weights if average is None or part.average is None else part.average
            found.update(zip(names, part.views(matrix), strict=True))
        return [
            {name: state[name].clone(memory_format=torch.contiguous_format) for name in state}
            for state in self._divide({name: found[name] for name in self.network.state_dict()})
        ]

    def moments(self) -> list[dict[str, Tensor]]:
        """Copy the moments of each member's gradient.

        Returns:
            ``<number>.step``, ``<number>.exp_avg`` and ``<number>.exp_avg_sq`` per parameter.
        """
        found = {}
        for part, names in zip(self._parts, self._names, strict=True):
            for key, matrix in (("exp_avg", part.exp_avg), ("exp_avg_sq", part.exp_avg_sq)):
                for name, view in zip(names, part.views(matrix), strict=True):
                    found[f"{self._numbers[name]}.{key}"] = view
        step = {f"{number}.step": self._step.clone() for number in self._numbers.values()}
        return [
            {key: v.clone(memory_format=torch.contiguous_format) for key, v in each.items()} | step
            for each in self._divide(found)
        ]

    @torch.no_grad()
    def restore(
        self, moments: Sequence[Mapping[str, Tensor]], averages: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """Continue with what `moments` and ``states(averaged=True)`` gave.

        Args:
            moments: One mapping per member.
            averages: One averaged state per member; empty without averaging.

        Raises:
            KeyError: If a value is missing.
            RuntimeError: If a shape differs.
        """
        device = self._step.device
        self._steps = int(moments[0]["0.step"])
        self._step.fill_(self._steps)
        vectors = [{k: v for k, v in each.items() if v.ndim} for each in moments]
        joined = self._join(vectors)
        for part, names in zip(self._parts, self._names, strict=True):
            for key, matrix in (("exp_avg", part.exp_avg), ("exp_avg_sq", part.exp_avg_sq)):
                for name, view in zip(names, part.views(matrix), strict=True):
                    view.copy_(_same_shape(joined[f"{self._numbers[name]}.{key}"], view))
        if self._average_buffers is None:
            return
        joined = self._join(averages)
        for part, names in zip(self._parts, self._names, strict=True):
            assert part.average is not None
            for name, view in zip(names, part.views(part.average), strict=True):
                view.copy_(_same_shape(joined[name], view))
        for name, buffer in self._average_buffers.items():
            buffer.copy_(_same_shape(joined[name], buffer).to(device))

    def _divide(self, state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        return [state] if self.network.members is None else unstack_state(state)

    def _join(self, states: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return states[0] if self.network.members is None else stack_states(states)


def _same_shape(value: Tensor, like: Tensor) -> Tensor:
    # copy_ would stretch a value of another shape
    if value.shape != like.shape:
        raise RuntimeError(f"a tensor has shape {tuple(value.shape)}, expected {tuple(like.shape)}")
    return value
