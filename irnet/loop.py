"""The training loop: epochs of one member, or of several on one device as a stack."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .errors import TrainingDivergedError
from .network import Batch, Network, stack_states
from .optimizer import Optimizer
from .schedule import learning_rate
from .trainee import Rows, Trainee, misfit

_DIVERGED_NAME = "diverged.safetensors"
_BLOCK_ROWS = 4096


class TrainingLoop:
    """The training loop of one member, or of several that have come to the same epoch."""

    def __init__(self, trainees: Sequence[Trainee]) -> None:
        self.trainees = trainees
        first = trainees[0]
        self.recipe = recipe = first.task.recipe
        self.device, self.dtype = first.device, first.dtype
        self.steps_per_epoch = first.steps_per_epoch
        stacked = len(trainees) > 1
        with torch.device("meta"):
            network = Network(
                first.architecture,
                len(first.task.feature_names),
                recipe.dropout,
                len(trainees) if stacked else None,
                max(1, len(first.task.classes)),
            )
        states = [trainee.tensors["network"] for trainee in trainees]
        joined = stack_states(states) if stacked else {k: v.clone() for k, v in states[0].items()}
        network.load_state_dict(joined, assign=True)
        self.frozen = network.leading_layers(recipe.frozen_depth)
        for module in self.frozen:
            module.requires_grad_(False)
        self.network = network
        network.batch.generators = [torch.Generator(self.device) for _ in trainees]
        self.noise = Batch([torch.Generator(self.device) for _ in trainees])
        self.optimizer = Optimizer(network, recipe, self.dtype)
        if "optimizer" in first.tensors:
            try:
                self.optimizer.restore(
                    [trainee.tensors["optimizer"] for trainee in trainees],
                    [trainee.tensors.get("average", {}) for trainee in trainees],
                )
            except (KeyError, RuntimeError) as error:
                raise misfit(first.checkpoint, error) from error
        for trainee in trainees:
            trainee.tensors = {}  # the run has them now
        self.train_x = _join([trainee.train.x for trainee in trainees])
        self.train_y = _join([trainee.train.y for trainee in trainees])
        weights = [t.train.weights for t in trainees if t.train.weights is not None]
        self.train_weights = _join(weights) if weights else None

    def train_epoch(self) -> None:
        """Go through all training rows once.

        Raises:
            TrainingDivergedError: If a loss is no longer finite; the best weights so far are kept.
        """
        started = time.perf_counter()
        batches = self._shuffle()
        epoch, steps = self.trainees[0].epoch, self.recipe.epochs * self.steps_per_epoch
        self.network.train()
        for module in self.frozen:
            module.eval()
        errors = torch.zeros((self.steps_per_epoch, len(self.trainees)), device=self.device)
        past = self.trainees[0].validation_errors
        for number in range(self.steps_per_epoch):
            step = epoch * self.steps_per_epoch + number
            rate = learning_rate(self.recipe, step, steps, self.steps_per_epoch, past)
            loss, errors[number] = self._loss([rows[number] for rows in batches])
            self.optimizer.step(loss.sum(), rate)
        sizes = torch.tensor([[len(rows) for rows in member] for member in batches]).T
        found = errors.cpu().double()
        totals = (found * sizes).sum(dim=0).tolist()
        validation = self._validate([trainee.validation for trainee in self.trainees])
        watched = [trainee.watched for trainee in self.trainees if trainee.watched is not None]
        watching = self._validate(watched) if watched else None
        seconds = (time.perf_counter() - started) / len(self.trainees)
        lost = []
        for place, trainee in enumerate(self.trainees):
            trainee.seconds += seconds
            unit = trainee.scaling.target_std
            train_error = totals[place] / len(trainee.train) * unit
            validation_error = validation[place] * unit
            if not (math.isfinite(train_error) and math.isfinite(validation_error)):
                wrong = (~found[:, place].isfinite()).nonzero()
                lost.append((trainee, int(wrong[0]) if len(wrong) else None))
                continue
            metric = self.recipe.metric
            entry = {f"train_{metric}": train_error, f"validation_{metric}": validation_error}
            if watching is not None:
                entry[f"watched_{metric}"] = watching[place] * unit
            trainee.history.append(entry | {"learning_rate": rate})
            if validation_error < trainee.best_error:
                trainee.best_error, trainee.best_epoch = validation_error, trainee.epoch
                trainee.best_state = self.optimizer.states(averaged=True)[place]
        if lost:
            self._give_up([trainee for trainee, _ in lost], *lost[0])

    def _shuffle(self) -> list[tuple[Tensor, ...]]:
        """Draw the batches of an epoch: row numbers of each member and step."""
        batches, first = [], 0
        generators = zip(self.network.batch.generators, self.noise.generators, strict=True)
        for trainee, (dropout, noise) in zip(self.trainees, generators, strict=True):
            seed = trainee.epoch_seed()
            shuffle = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(trainee.train), generator=shuffle) + first
            batches.append(order.to(self.device).tensor_split(self.steps_per_epoch))
            dropout.manual_seed(seed)
            noise.manual_seed(trainee.epoch_seed(1))
            first += len(trainee.train)
        return batches

    def _loss(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Loss and error of each member over its rows of a batch: (members,), or scalars."""
        lengths = tuple(map(len, rows))
        ragged = len(set(lengths)) > 1
        self.network.batch.rows = self.noise.rows = lengths if ragged else None
        if len(rows) == 1:
            numbers = rows[0]
        elif ragged:
            numbers = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        else:
            numbers = torch.stack(list(rows))
        x = self.train_x[numbers]
        if self.recipe.input_noise:
            x = x + (self.recipe.input_noise * self.noise.draw(x, normal=True)).to(x.dtype)
        predicted: Tensor = self.network(x)
        error = _measure(self.recipe.metric, predicted, self.train_y[numbers])

        def mean(values: Tensor) -> Tensor:
            if self.train_weights is not None:
                values = values * self.train_weights[numbers]
            if not ragged:
                return values.mean(dim=-1)
            valid = self.network.batch.valid(x)[..., 0]
            return (values * valid).sum(dim=-1) / valid.sum(dim=-1)

        loss = mean(error.square() if self.recipe.loss == "mse" else error)
        return loss, (mean(error.detach()) if self.recipe.loss == "mse" else loss.detach())

    @torch.no_grad()
    def _validate(self, rows: Sequence[Rows]) -> list[float]:
        """Mean error of each member on rows of its own, in scaled units."""
        self.network.eval()
        most = max(map(len, rows))
        with self.optimizer.averaged_weights():
            if len(rows) == 1:
                x = rows[0].x
                predicted = torch.cat([self.network(part) for part in x.split(_BLOCK_ROWS)])[None]
            else:
                # in evaluation mode a row has no influence on another: padding does no harm
                x = torch.stack([functional.pad(r.x, (0, 0, 0, most - len(r))) for r in rows])
                parts = x.split(_BLOCK_ROWS, dim=1)
                predicted = torch.cat([self.network(part) for part in parts], dim=1)
        found = []
        for each, own in zip(predicted, rows, strict=True):
            error = _measure(self.recipe.metric, each[: len(own)], own.y).double()
            found.append((error if own.weights is None else error * own.weights).mean())
        return torch.stack(found).tolist()

    def _give_up(self, lost: Sequence[Trainee], trainee: Trainee, step: int | None) -> None:
        self.keep()
        for other in self.trainees:
            if other not in lost:
                other.save()
        files = []
        for each in lost:
            files.append(each.task.folder / _DIVERGED_NAME)
            each.member().save(files[-1])
        place = "validation after the last step" if step is None else f"step {step + 1}"
        kept = f"epoch {trainee.best_epoch}" if trainee.best_epoch else "the start"
        raise TrainingDivergedError(
            f"member {trainee.task.number}, epoch {trainee.epoch + 1}, {place} of "
            f"{self.steps_per_epoch}: the loss is no longer finite; the best weights so far (of "
            f"{kept}) are in {files[0]}; lower the recipe's learning_rate or set gradient_clip"
        )

    def keep(self) -> None:
        """Hand the state of the run to the members, for a checkpoint or another run."""
        states, moments = self.optimizer.states(), self.optimizer.moments()
        for place, trainee in enumerate(self.trainees):
            trainee.tensors = {"network": states[place], "optimizer": moments[place]}
        if self.recipe.weight_averaging != "none":
            for trainee, average in zip(
                self.trainees, self.optimizer.states(averaged=True), strict=True
            ):
                trainee.tensors["average"] = average


def _measure(metric: str, predicted: Tensor, target: Tensor) -> Tensor:
    """Error of each row: predictions (...) or logits (..., classes), against targets (...)."""
    if metric == "cross_entropy":
        flat = functional.cross_entropy(
            predicted.flatten(end_dim=-2), target.flatten(), reduction="none"
        )
        return flat.view(target.shape)
    return (predicted - target).abs()


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
