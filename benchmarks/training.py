"""Time of training one member, and of several members together on a GPU.

    python benchmarks/training.py [--rows 40000] [--epochs 3] [--full] [--members 8] [--device cpu]

One member of the default recipe on random rows of 271 features, with as many threads as cores (or
OMP_NUM_THREADS). After a first epoch that warms up, some more are timed and extrapolated to 40;
``--full`` trains all 40. The share of a large matrix product's rate, measured in the same run, says
how much of the time is spent on anything but multiplying. With a GPU, the same for several members
in one stack.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time

import numpy as np
import torch
from machine import describe_machine

from irnet import Architecture, Progress, Recipe, train_ensemble
from irnet.device import choose_device, choose_dtype

COLUMNS = 271
EPOCHS = 40


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating point operations per second of a large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def multiplications(recipe: Recipe, rows: int) -> float:
    """Return the floating point operations of one epoch's matrix products.

    A layer takes part in three products (forward, its weights' gradient, its input's gradient),
    the first layer and its projection in two, a validation row in one.
    """
    architecture = Architecture.parse(recipe.architecture)
    shapes = []
    for number, (inputs, outputs) in enumerate(architecture.main_path(COLUMNS)):
        hidden = outputs != 1
        shapes.append((number == 0, inputs * outputs * (2 if hidden and inputs != outputs else 1)))
    held = int(rows * recipe.validation_fraction)
    products = sum(size * ((2 if first else 3) * (rows - held) + held) for first, size in shapes)
    return 2.0 * products


def seconds_per_epoch(recipe: Recipe, rows: int, members: int, device: str) -> list[float]:
    """Train on random rows and return the seconds of every epoch, of all members together."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, COLUMNS)).astype(np.float32)
    target = np.abs(features[:, :20]).sum(axis=1) + features[:, 0] * features[:, 1]
    ends: list[float] = []

    def note(progress: Progress) -> None:
        if progress.member == members - 1:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_ensemble(
            features,
            target,
            [f"feature {number}" for number in range(COLUMNS)],
            recipe=recipe,
            members=members,
            checkpoint_dir=folder,
            device=device,
            progress=note,
        )
        print(f"  {time.perf_counter() - start:.1f} s from the arrays to the finished members")
    return [end - begin for begin, end in itertools.pairwise([start, *ends])]


def report(recipe: Recipe, rows: int, members: int, device: str) -> float:
    """Print what the training of some members takes and return the seconds of one epoch."""
    print(f"{members} x {recipe.architecture}, {rows:,} x {COLUMNS}, {recipe.epochs} epochs")
    first, *others = seconds_per_epoch(recipe, rows, members, device)
    epoch = float(np.mean(others))
    where = choose_device(device)
    rate = product_rate(where, choose_dtype(recipe.precision, where))
    share = members * multiplications(recipe, rows) / epoch / rate
    print(
        f"  first epoch {first:.2f} s (with set-up), others {epoch:.2f} s, "
        f"{share:.0%} of a large product's rate ({rate / 1e9:,.0f} GFLOP/s)"
    )
    if recipe.epochs == EPOCHS:
        print(f"  {EPOCHS} epochs: {first + sum(others):.0f} s")
    else:
        print(f"  {EPOCHS} epochs: {first + (EPOCHS - 1) * epoch:.0f} s, extrapolated")
    return epoch


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help=f"train all {EPOCHS} epochs")
    parser.add_argument("--members", type=int, default=8, help="in one stack, on a GPU")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    epochs = EPOCHS if arguments.full else max(2, arguments.epochs)
    recipe = Recipe(epochs=epochs, patience=None)
    print(f"{describe_machine()}; {torch.get_num_threads()} threads")
    one = report(recipe, arguments.rows, 1, arguments.device)
    if device.type == "cuda":
        several = report(recipe, arguments.rows, arguments.members, arguments.device)
        print(f"{arguments.members} members together take {several / one:.2f} times as long as one")
    else:
        print("no GPU here: members are trained one after the other")


if __name__ == "__main__":
    main()
