"""How fast candidates are looked up among known compounds, and how far the nearest of them are.

    python benchmarks/known.py [MODEL] [--references FILE]

One core. Compositions of all ABX3 of 89 elements are looked up by formula; 20,000 of them drawn at
random, 20,000 in the order of a campaign, and as many of other stoichiometries, get the nearest
known composition; a shortlist is picked from a ranking of all in random order.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from machine import describe_machine

from prototypes import ELEMENTS_89, CandidateSpace, element_pool, find_prototype
from screening.composition_distance import pick_diverse
from screening.known import KnownCompounds
from screening.model_library import FORMULAS_NAME, find_model
from screening.references import read_references
from screening.training_table import TrainingTable

ROWS = 20_000
ABX3 = (1, 1, 3)
OTHERS = {
    "AB": (1, 1),
    "ABX": (1, 1, 1),
    "A2BX": (2, 1, 1),
    "AB2X4": (1, 2, 4),
    "A2BCX6": (2, 1, 1, 6),
}

Result = TypeVar("Result")


def measure(what: str, rows: int, call: Callable[[], Result]) -> Result:
    """Call something, and print how many rows a second of processor time it did."""
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
    print(f"{what:<58} {rows / seconds:>10,.0f}/s {seconds:>7.2f} s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="default")
    parser.add_argument("--references", type=Path)
    arguments = parser.parse_args()
    print(describe_machine())

    path = find_model(arguments.model) / FORMULAS_NAME
    table = measure("read the training table", 1, lambda: TrainingTable.load(path))
    phases = read_references(arguments.references).phases if arguments.references else None
    compounds = measure("join it with the references", 1, lambda: KnownCompounds.of(table, phases))
    print(f"{len(compounds):,} known compositions")

    prototype = find_prototype("perovskite")
    pool = element_pool("all89")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))
    _, numbers = space.decode(0, space.index_count)
    formulas = space.formulas(numbers)
    found = measure("look up ABX3", len(numbers), lambda: compounds.find(formulas, prototype))
    print(f"{found.known.sum():,} of {len(numbers):,} are known")
    measure("prepare for the nearest", 1, lambda: compounds.find_nearest(numbers[:1], ABX3))

    random = np.random.default_rng(0)
    drawn = numbers[random.permutation(len(numbers))[:ROWS]]
    _, distances = measure("nearest, ABX3", ROWS, lambda: compounds.find_nearest(drawn, ABX3))
    shares = ", ".join(f"{each:.1f}" for each in np.quantile(distances, [0.1, 0.5, 0.9]))
    print(f"distances: {shares} at 10, 50 and 90 %")
    row = numbers[300_000 : 300_000 + ROWS]
    measure("nearest, ABX3 in order", ROWS, lambda: compounds.find_nearest(row, ABX3))
    for name, amounts in OTHERS.items():
        decorations = np.array(
            [random.permutation(ELEMENTS_89)[: len(amounts)] for _ in range(ROWS)], dtype=np.uint8
        )
        measure(
            f"nearest, {name}",
            ROWS,
            lambda n=decorations, a=amounts: compounds.find_nearest(n, a),  # type: ignore[misc]
        )

    order = random.permutation(len(numbers))
    for count, least in ((20, 2.0), (200, 2.0)):
        chosen = measure(
            f"pick {count} at least {least:g} apart",
            1,
            lambda c=count, d=least: pick_diverse(numbers, ABX3, order, c, d),  # type: ignore[misc]
        )
        assert len(chosen) == count


if __name__ == "__main__":
    main()
