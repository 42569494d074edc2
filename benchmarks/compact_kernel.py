"""What a kernel keeps of its accuracy when it does not carry all of its training rows.

    python benchmarks/compact_kernel.py WORK [--rows N] [--centres N ...] [--components N ...]

WORK holds the tables of ``scripts/train_bundled_models.py --stage tables``. `ScaledKernelRidge` is
fitted to some of the training rows and judged on the held-out tenth of the ICSD-flagged rows and on
the ideal cells of the evaluation set. Beside it, with the scales that it learnt:

centres     the same kernel fitted to the same rows, as a sum over few of them (subset of
            regressors; Quinonero-Candela and Rasmussen, J. Mach. Learn. Res. 6, 1939, 2005, sec. 5)
components  a kernel of all rows, each as so many principal components of the scaled features in 8
            bits

Megabytes are those of the rows (single precision, or 8 bits), and 4 bytes for each row's weight.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from trials import Rows, read

from irnet.kernel import ScaledKernelRidge, clip, matern, solve_kernel

BLOCK = 2000
JITTER = 1e-7
"""Added to the diagonal of the centres' own kernel matrix, in double precision."""

Values = NDArray[np.float64]


def kernel(asked: Values, known: Values, length: float) -> Values:
    """Kernels between rows, (len(asked), len(known)), in double precision."""
    values = np.empty((len(asked), len(known)))
    squares = np.square(known).sum(axis=1)
    for start in range(0, len(asked), BLOCK):
        block = asked[start : start + BLOCK]
        distances = np.square(block).sum(axis=1)[:, None] + squares - 2 * block @ known.T
        values[start : start + BLOCK] = matern(np.sqrt(distances.clip(min=0)), length)
    return values


def fit_centres(
    rows: Values, centres: Values, target: Values, length: float, alpha: float
) -> Values:
    """Weights of the centres that fit all rows best, (centres,)."""
    own = kernel(centres, centres, length)
    own[np.diag_indices_from(own)] = 1 + JITTER
    root = cholesky(own, lower=True, overwrite_a=True)
    # in coordinates in which the ridge is a multiple of the unit matrix, the normal equations of
    # nearly dependent columns can be solved
    white = np.empty((len(rows), len(centres)))
    for start in range(0, len(rows), BLOCK):
        block = kernel(rows[start : start + BLOCK], centres, length)
        white[start : start + BLOCK] = solve_triangular(root, block.T, lower=True).T
    normal = white.T @ white
    normal[np.diag_indices_from(normal)] += alpha
    solved = cho_solve(cho_factor(normal, overwrite_a=True), white.T @ target)
    return np.asarray(solve_triangular(root, solved, lower=True, trans="T"))


def project(rows: Values, components: int) -> tuple[Values, Values]:
    """Mean of rows, (d,), and their leading principal axes, (d, components)."""
    mean = rows.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((rows - mean).T))
    return mean, axes[:, ::-1][:, :components]


def main() -> None:
    """Print size and errors of each form."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--centres", type=int, nargs="*", default=[4_000, 8_000])
    parser.add_argument("--components", type=int, nargs="*", default=[32, 64, 96])
    arguments = parser.parse_args()
    if max(arguments.centres, default=0) > arguments.rows:
        parser.error(f"--centres: more than the {arguments.rows:,} rows of --rows")
    print(describe_machine())

    (features, energies), _ = read(arguments.work, "train")
    order = np.random.default_rng(0).permutation(len(features))[: arguments.rows]
    features, energies = features[order], energies[order]
    tests = read_tests(arguments.work)
    mean, std, offset, unit = features.mean(0), features.std(0), energies.mean(), energies.std()
    std[std == 0] = 1.0
    target = (energies - offset) / unit

    def scaled(values: Values) -> Values:
        return np.asarray(clip((values - mean) / std) * exact.scales_, dtype=np.float64)

    def tell(name: str, megabytes: float, seconds: float, predicted: list[Values]) -> None:
        errors = [
            np.abs(values * unit + offset - true)
            for values, (_, true) in zip(predicted, tests.values(), strict=True)
        ]
        cells = [name, f"{megabytes:.1f}", f"{seconds:.0f}", *(f"{e.mean():.4f}" for e in errors)]
        print(f"| {' | '.join(cells)} |", flush=True)

    print(f"{len(features):,} rows\n\n| form | MB | fit, s | {' | '.join(tests)} |")
    print("|---" * (3 + len(tests)) + "|")
    started = time.perf_counter()
    exact = ScaledKernelRidge().fit((features - mean) / std, target)
    elapsed = time.perf_counter() - started
    predicted = [exact.predict((asked - mean) / std) for asked, _ in tests.values()]
    tell("all rows", features.size * 4e-6 + len(features) * 4e-6, elapsed, predicted)
    rows, asked = scaled(features), [scaled(values) for values, _ in tests.values()]
    for count in arguments.centres:
        started = time.perf_counter()
        centres = rows[:count]
        weights = fit_centres(rows, centres, target, exact.length_, exact.alpha)
        elapsed = time.perf_counter() - started
        predicted = [kernel(values, centres, exact.length_) @ weights for values in asked]
        tell(f"{count:,} centres", centres.size * 4e-6 + count * 4e-6, elapsed, predicted)
    for count in arguments.components:
        started = time.perf_counter()
        middle, axes = project(rows, count)
        known = (rows - middle) @ axes
        step = np.abs(known).max() / 127  # one for all components: a distance counts them alike
        known = np.round(known / step) * step
        weights = solve_kernel(known.astype(np.float32), target, exact.length_, exact.alpha)
        elapsed = time.perf_counter() - started
        predicted = [kernel((values - middle) @ axes, known, exact.length_) @ weights
                     for values in asked]  # fmt: skip
        tell(f"{count} components", known.size * 1e-6 + len(known) * 4e-6, elapsed, predicted)


def read_tests(work: Path) -> dict[str, Rows]:
    """Rows to judge on: known crystals held out, and the evaluation set's ideal cells."""
    (features, energies), labels = read(work, "evaluation")
    ideal = labels["id"].str.endswith(" ideal").to_numpy()
    return {
        "held out": read(work, "held_out")[0],
        "evaluation set": (features[ideal], energies[ideal]),
    }


if __name__ == "__main__":
    main()
