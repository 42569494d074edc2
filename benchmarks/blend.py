"""What a baseline adds to an ensemble of networks: errors of weighted means of both.

    python benchmarks/blend.py MODEL BASELINE --evaluation FILE

MODEL is a folder of `screening train` with its held-out rows, BASELINE a file of `screening
baselines fit` that held out the same ones: same data, seed, `--holdout` and `--exclude-formulas`.
FILE holds compounds of the built-in prototypes that neither was trained on; they are predicted on
ideal cells.
Errors are mean absolute errors and, of the held-out rows, the 90th percentile, in eV/atom.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from machine import describe_machine

from irnet import Ensemble
from irnet.baselines import Baseline
from screening.evaluation import featurize_ideal, read_evaluation_set
from screening.model_library import ENSEMBLE_NAME
from screening.training import HELD_OUT_NAME, load_rows

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
"""Of the baseline."""


def main() -> None:
    """Print the errors of each weight."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("baseline", type=Path)
    parser.add_argument("--evaluation", type=Path, required=True)
    arguments = parser.parse_args()
    ensemble = Ensemble.load(arguments.model / ENSEMBLE_NAME)
    baseline = Baseline.load(arguments.baseline)
    scorer = ensemble.scorer()

    features, target = load_rows(arguments.model / HELD_OUT_NAME)
    known = baseline.predict(features)
    measured = float(np.abs(known - target).mean())
    card = baseline.card["held_out"]
    if len(target) != card["rows"] or not np.isclose(measured, card["mae"], rtol=1e-4):
        raise SystemExit(
            f"{arguments.baseline} held out {card['rows']:,} rows with an error of "
            f"{card['mae']:.4f} eV/atom; on the {len(target):,} rows that {arguments.model} held "
            f"out its error is {measured:.4f}: fit it with the same data, seed and options"
        )
    evaluation = read_evaluation_set(arguments.evaluation)
    if evaluation.kinds is None:
        raise SystemExit(f"{arguments.evaluation} has no column kind")
    ideal = featurize_ideal(evaluation.crystals, evaluation.kinds).astype(np.float32)
    kinds = sorted(set(evaluation.kinds))

    errors = [scorer.predict(features).mean - target, known - target]
    misses = [
        scorer.predict(ideal).mean - evaluation.target,
        baseline.predict(ideal) - evaluation.target,
    ]
    print(describe_machine())
    print(f"{len(ensemble.members)} networks and {baseline.title}\n")
    print(f"| weight of {baseline.title} | held out | 90th percentile | {' | '.join(kinds)} |")
    print("|---" * (3 + len(kinds)) + "|")
    for weight in WEIGHTS:
        held = np.abs((1 - weight) * errors[0] + weight * errors[1])
        new = np.abs((1 - weight) * misses[0] + weight * misses[1])
        cells = [f"{weight:.1f}", f"{held.mean():.4f}", f"{np.quantile(held, 0.9):.4f}"]
        cells += [f"{new[evaluation.kinds == kind].mean():.3f}" for kind in kinds]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
