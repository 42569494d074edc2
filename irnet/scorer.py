"""Prediction: all members of an ensemble in one pass over fixed-size blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .device import choose_device, choose_scoring_precision
from .errors import DataError
from .network import Branches, activate_in_place

if TYPE_CHECKING:
    from .ensemble import Member
    from .network import Layer, Stage

_BLOCK_ROWS = {"cpu": 1024, "cuda": 16384}
_INT8_INPUTS = 512  # of narrower products int8 gains nothing and loses more
_INT8_TOP = 127
_TINY = 1e-30  # stands for the size of a row of zeros


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of an ensemble, in the target's unit.

    Attributes:
        mean: Mean over members, (n,), float64.
        std: Standard deviation over members (n - 1 in the denominator), (n,), float64; NaN with a
            single member, because one member says nothing about a spread.
        members: Every member's prediction, (members, n), float64.
        hidden: Activations of every member's last hidden layer, those that its linear output reads,
            member after member: (n, members x width of that layer), float32; None unless asked
            for. Features for another model of a property with few data (cross-property transfer).
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    members: NDArray[np.float64]
    hidden: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Classification:
    """Probabilities of the classes, by the softmax of the last layer (section 4.1.5).

    Attributes:
        classes: Names of the classes.
        probabilities: Mean over members, (n, classes), float64; each row adds up to 1.
        members: Every member's probabilities, (members, n, classes), float64.
    """

    classes: tuple[str, ...]
    probabilities: NDArray[np.float64]
    members: NDArray[np.float64]

    @property
    def likeliest(self) -> NDArray[np.int64]:
        """Number of the class of highest probability, (n,)."""
        numbers: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return numbers


@dataclass(frozen=True, eq=False)
class _Affine:
    """Weights of a product x W^T + b: (outputs, inputs) or stacked (k, inputs, outputs)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        return torch.baddbmm(self.bias, x, self.weight)


@dataclass(frozen=True, eq=False)
class _Int8Affine:
    """The same with products of 8-bit integers, which are added exactly.

    Weights are rounded once, in steps of their output's own, and inputs at every call, in steps of
    their row's own: a row's result depends on nothing but the row.

    Attributes:
        weight: (inputs, outputs), int8.
        step: Of each output's weights, times that of an input whose largest size is 1: (outputs,).
        bias: (outputs,).
    """

    weight: Tensor
    step: Tensor
    bias: Tensor

    @classmethod
    def round(cls, affine: _Affine) -> _Int8Affine:
        weight = affine.weight.double()
        step = weight.abs().amax(dim=1, keepdim=True).clamp_min(_TINY) / _INT8_TOP
        rounded = (weight / step).round().to(torch.int8)
        return cls(rounded.T, (step[:, 0] / _INT8_TOP).float(), affine.bias)

    def __call__(self, x: Tensor) -> Tensor:
        # the largest size of a row's values: two passes that hold nothing, not x.abs()
        size = torch.maximum(x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True).neg_())
        size.clamp_min_(_TINY)
        rounded = torch.mul(x, _INT8_TOP / size).round_().to(torch.int8)
        sums = torch._int_mm(rounded, self.weight)
        y = sums.view(torch.float32).copy_(sums).mul_(size)  # in the memory of the sums
        return torch.addcmul(self.bias, y, self.step, out=y)


@dataclass(frozen=True, eq=False)
class _Layer:
    """A folded layer; with a projection, its outputs stand behind the layer's own."""

    affine: _Affine | _Int8Affine
    width: int
    activate: Callable[[Tensor], Tensor]
    after: tuple[Tensor, Tensor] | None
    shortcut: bool
    projected: bool

    def __call__(self, x: Tensor) -> Tensor:
        z = self.affine(x)
        y = self.activate(z[..., : self.width])
        if self.after is not None:
            y = torch.addcmul(self.after[1], y, self.after[0])
        if self.projected:
            return y + z[..., self.width :]
        return y.add_(x) if self.shortcut else y


@dataclass(frozen=True, eq=False)
class _Stage:
    layers: tuple[_Layer, ...]
    shortcut: bool
    projection: _Affine | _Int8Affine | None

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        if self.shortcut:
            y = y + (x if self.projection is None else self.projection(x))
        return y


@dataclass(frozen=True, eq=False)
class _Branches:
    stages: tuple[_Stage, ...]

    def __call__(self, x: Tensor) -> Tensor:
        y = self.stages[0](x)
        for stage in self.stages[1:]:
            y = y + stage(x)
        return y


@dataclass(frozen=True, eq=False)
class _Group:
    """Members that go through the arithmetic together."""

    members: tuple[int, ...]
    mean: Tensor
    inverse_std: Tensor
    clip: float | None
    dtype: torch.dtype
    stages: tuple[_Stage | _Branches, ...]
    output: _Affine
    target_mean: Tensor
    target_std: Tensor

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map unscaled rows (n, inputs) to ([k,] n, outputs) and activations ([k,] n, width)."""
        x = (x - self.mean) * self.inverse_std
        if self.clip is not None:
            x = x.clamp_(-self.clip, self.clip)
        x = x.to(self.dtype)
        for stage in self.stages:
            x = stage(x)
        hidden = x.float()
        y = self.output(hidden)
        return y.double() * self.target_std + self.target_mean, hidden


class Scorer:
    """An ensemble ready to predict on one device.

    Rows are scored in blocks of one fixed size, the last one padded, so that a row's prediction is
    the same whatever stands beside it and however many rows there are.

    Args:
        members: Trained members with the same feature names.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        precision: "auto", "int8", "bf16" or "fp32". With int8 the products over 512 inputs and more
            are those of 8-bit integers and the others in fp32; it needs a processor with VNNI.
        stacked: Whether members of one architecture share batched products; by default on a GPU,
            never with int8.

    Attributes:
        device: Where it runs.
        precision: Of its matrix products: "int8", "bf16" or "fp32".
        block_rows: Rows that go through the networks at a time.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        device: str = "cpu",
        precision: str = "auto",
        stacked: bool | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.precision = choose_scoring_precision(precision, self.device)
        self.block_rows = _BLOCK_ROWS[self.device.type]
        self.feature_names = members[0].feature_names
        self.classes = members[0].classes
        self._widths = [member.architecture.blocks[-1].width for member in members]
        if stacked is None:
            stacked = self.device.type == "cuda"
        stacked = stacked and self.precision != "int8"
        groups: dict[object, list[int]] = {}
        for number, member in enumerate(members):
            key = (member.architecture, member.scaling.clip) if stacked else number
            groups.setdefault(key, []).append(number)
        self._groups = [
            _fold(
                [members[i] for i in numbers], tuple(numbers), self.device, self.precision, stacked
            )
            for numbers in groups.values()
        ]

    def predict(self, features: Tensor | NDArray[np.floating], hidden: bool = False) -> Prediction:
        """Predict rows of unscaled features.

        Args:
            features: (n, features) in the order of `feature_names`; a tensor may already be on
                the scorer's device.
            hidden: Whether to return the last hidden layers too, at no further arithmetic. They
                are the way to feature extraction: fit a model of your own on them.

        Returns:
            Mean, spread and every member's prediction, n values each, and what `hidden` asks for.

        Raises:
            DataError: If the shape is wrong or a value is not finite (names row and column), or the
                ensemble predicts classes.
        """
        self._check_kind(classes=False)
        on_device, activations = self._run(features, hidden)
        values = on_device[..., 0].cpu().numpy()
        alone = len(values) == 1
        return Prediction(
            mean=values.mean(axis=0),
            std=np.full(values.shape[1], np.nan) if alone else values.std(axis=0, ddof=1),
            members=values,
            hidden=None if activations is None else activations.cpu().numpy(),
        )

    def classify(self, features: Tensor | NDArray[np.floating]) -> Classification:
        """Predict the probabilities of the classes.

        Args:
            features: (n, features) in the order of `feature_names`, unscaled.

        Returns:
            Probabilities of the ensemble and of every member.

        Raises:
            DataError: If the shape is wrong or a value is not finite (names row and column), or the
                ensemble is one of regressions.
        """
        self._check_kind(classes=True)
        members = self._run(features, hidden=False)[0].softmax(dim=-1).cpu().numpy()
        return Classification(self.classes, members.mean(axis=0), members)

    def _check_kind(self, *, classes: bool) -> None:
        if bool(self.classes) == classes:
            return
        kind = f"the classes {', '.join(self.classes)}" if self.classes else "numbers"
        raise DataError(
            f"this ensemble predicts {kind}; call {'predict' if classes else 'classify'} instead"
        )

    def predict_members(self, features: Tensor | NDArray[np.floating]) -> Tensor:
        """Predict with every member, leaving the result on the device.

        Args:
            features: (n, features), unscaled.

        Returns:
            (members, n), float64, in the target's unit.

        Raises:
            DataError: If the shape is wrong or a value is not finite, or the ensemble predicts
                classes.
        """
        self._check_kind(classes=False)
        return self._run(features, hidden=False)[0][..., 0]

    @torch.inference_mode()
    def _run(
        self, features: Tensor | NDArray[np.floating], hidden: bool
    ) -> tuple[Tensor, Tensor | None]:
        # NumPy's reversed views have strides that torch cannot take
        x = (
            features
            if isinstance(features, Tensor)
            else torch.as_tensor(np.ascontiguousarray(features))
        )
        if x.ndim != 2 or x.shape[1] != len(self.feature_names):
            raise DataError(
                f"features have shape {tuple(x.shape)}, expected (rows, {len(self.feature_names)})"
            )
        shape = (len(self._widths), len(x), max(1, len(self.classes)))
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        ends = np.cumsum(self._widths).tolist()
        kept = torch.empty((len(x), ends[-1]), device=self.device) if hidden else None
        for start in range(0, len(x), self.block_rows):
            # one layout whatever the caller's: a product's last bits may depend on it
            block = x[start : start + self.block_rows].to(self.device, torch.float32).contiguous()
            rows = len(block)
            if not bool(torch.isfinite(block).all()):
                self._report_not_finite(block, start)
            if rows < self.block_rows:
                block = torch.nn.functional.pad(block, (0, 0, 0, self.block_rows - rows))
            for group in self._groups:
                values, activations = group(block)
                out[list(group.members), start : start + rows] = values[..., :rows, :]
                if kept is None:
                    continue
                each = activations if activations.ndim == 3 else activations[None]
                for number, own in zip(group.members, each, strict=True):
                    columns = slice(ends[number] - self._widths[number], ends[number])
                    kept[start : start + rows, columns] = own[:rows]
        return out, kept

    def _report_not_finite(self, block: Tensor, start: int) -> None:
        row, column = torch.nonzero(~torch.isfinite(block))[0].tolist()
        raise DataError(
            f"features row {start + row}, column {self.feature_names[column]!r} is "
            f"{block[row, column].item()}; remove or repair the row before predicting"
        )


def _fold(
    members: Sequence[Member],
    numbers: tuple[int, ...],
    device: torch.device,
    precision: str,
    stacked: bool,
) -> _Group:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    networks = [member.network.double() for member in members]

    def tensor(values: Sequence[Tensor], like: torch.dtype) -> Tensor:
        joined = torch.stack(list(values)) if stacked else values[0]
        return joined.detach().to(device, like).contiguous()

    def hidden(pairs: Sequence[tuple[Tensor, Tensor]]) -> _Affine | _Int8Affine:
        exact = affine(pairs, dtype)
        wide = exact.weight.shape[-1] >= _INT8_INPUTS
        return _Int8Affine.round(exact) if precision == "int8" and wide else exact

    def affine(pairs: Sequence[tuple[Tensor, Tensor]], like: torch.dtype) -> _Affine:
        weights, biases = zip(*pairs, strict=True)
        if stacked:
            weights = tuple(w.T for w in weights)
            biases = tuple(b[None] for b in biases)
        return _Affine(tensor(weights, like), tensor(biases, like))

    def layer(parts: Sequence[Layer]) -> _Layer:
        folded = [_fold_layer(part) for part in parts]
        first = parts[0]
        after = None
        if first.norm is not None and not first.norm_first:
            shape = (1, -1) if stacked else (-1,)
            scales, shifts = zip(*(_norm_affine(part) for part in parts), strict=True)
            after = (
                tensor([s.reshape(shape) for s in scales], dtype),
                tensor([s.reshape(shape) for s in shifts], dtype),
            )
        return _Layer(
            affine=hidden(folded),
            width=first.linear.out_features,
            activate=activate_in_place(first.activation),
            after=after,
            shortcut=first.shortcut,
            projected=first.projection is not None,
        )

    def stage(parts: Sequence[Stage]) -> _Stage:
        projections = [part.projection for part in parts]
        return _Stage(
            layers=tuple(map(layer, zip(*(part.layers for part in parts), strict=True))),
            shortcut=parts[0].shortcut,
            projection=hidden([(p.weight, p.bias) for p in projections if p is not None])
            if projections[0] is not None
            else None,
        )

    stages: list[_Stage | _Branches] = []
    for parts in zip(*(network.stages for network in networks), strict=True):
        if isinstance(parts[0], Branches):
            branches = zip(*(part.branches for part in parts), strict=True)
            stages.append(_Branches(tuple(map(stage, branches))))
        else:
            stages.append(stage(parts))
    scalings = [member.scaling for member in members]
    row = (1, -1) if stacked else (-1,)
    one = (1, 1) if stacked else ()
    return _Group(
        members=numbers,
        mean=tensor([torch.from_numpy(s.mean).reshape(row) for s in scalings], torch.float32),
        inverse_std=tensor(
            [torch.from_numpy(1.0 / s.std).reshape(row) for s in scalings], torch.float32
        ),
        clip=scalings[0].clip,
        dtype=dtype,
        stages=tuple(stages),
        output=affine([(n.output.weight, n.output.bias) for n in networks], torch.float32),
        target_mean=tensor(
            [torch.tensor(s.target_mean).double().reshape(one) for s in scalings], torch.float64
        ),
        target_std=tensor(
            [torch.tensor(s.target_std).double().reshape(one) for s in scalings], torch.float64
        ),
    )


def _fold_layer(part: Layer) -> tuple[Tensor, Tensor]:
    weight: Tensor = part.linear.weight
    bias: Tensor = part.linear.bias
    if part.norm is not None and part.norm_first:
        scale, shift = _norm_affine(part)
        weight, bias = weight * scale[:, None], bias * scale + shift
    if part.projection is not None:
        weight = torch.cat([weight, part.projection.weight])
        bias = torch.cat([bias, part.projection.bias])
    return weight, bias


def _norm_affine(part: Layer) -> tuple[Tensor, Tensor]:
    norm = part.norm
    assert norm is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale
