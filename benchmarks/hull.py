"""Energies above hull per second: this project beside a plain pymatgen loop, in one run.

    python benchmarks/hull.py [--data FOLDER] [--systems 300] [--columns 7]

All 681,384 ABX3 of 89 elements against the references of `mp_groundstates.parquet` (SCREENING_DATA
or ../shared/data), on one core, with their decompositions. Then all candidates of a random sample
of chemical systems with pymatgen, as one would write it: one `PhaseDiagram` for each system from
the phases of all its subsystems, and `get_decomp_and_e_above_hull` for each of its six candidates.
Finding the phases of a system is not counted for pymatgen. The two must agree. Times are processor
seconds of one core, which hardly depend on what else the machine does.

Then as many energy columns as a model's own hull has (mean, members, forest): the references'
energies with made-up noise of 0.05 eV/atom.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
import warnings
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
from machine import describe_machine
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from prototypes import ELEMENTS_89, SYMBOLS, CandidateSpace, find_prototype
from screening.hull import find_mixtures, write_decompositions
from screening.phases import Phases, pack_systems
from screening.references import read_references

TOLERANCE = 1e-6
"""eV/atom: largest difference that is accepted between the two."""


def gather_entries(phases: Phases, elements: list[int]) -> list[PDEntry]:
    """Return the phases of a chemical system and its elements, as pymatgen wants them."""
    entries = [PDEntry(Composition(SYMBOLS[number - 1]), 0.0) for number in elements]
    for size in range(2, len(elements) + 1):
        for subset in combinations(sorted(elements), size):
            first, count = phases.index.locate(pack_systems(np.array([subset])))
            for row in phases.index.rows[first[0] : first[0] + count[0]]:
                whole = Composition(phases.formulas[row])
                entries.append(PDEntry(whole, phases.energies[row, 0] * whole.num_atoms))
    return entries


def run_pymatgen(
    phases: Phases, systems: list[list[int]], numbers: NDArray[np.uint8], amounts: tuple[int, ...]
) -> tuple[NDArray[np.float64], float]:
    """Return the hull energy of the candidates of each system, and the seconds that it took.

    Args:
        phases: The references.
        systems: Elements of each of s systems.
        numbers: Atomic numbers of their candidates, shape (s, q, k).
        amounts: Atoms of each role.

    Returns:
        Energies, shape (s, q), eV/atom, and the seconds.
    """
    entries = [gather_entries(phases, elements) for elements in systems]
    energies = np.empty(numbers.shape[:2])
    start = time.process_time()
    for system, competitors in enumerate(entries):
        diagram = PhaseDiagram(competitors)
        for place, row in enumerate(numbers[system].tolist()):
            atoms = {SYMBOLS[z - 1]: count for z, count in zip(row, amounts, strict=True)}
            candidate = PDEntry(Composition(atoms), 0.0)
            above = diagram.get_decomp_and_e_above_hull(candidate, allow_negative=True)[1]
            assert above is not None
            energies[system, place] = -above
    return energies, time.process_time() - start


def peak_memory() -> float:
    """Return the largest resident size of this process so far, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--systems", type=int, default=300)
    parser.add_argument("--columns", type=int, default=7)
    arguments = parser.parse_args()
    path = arguments.data / "mp_groundstates.parquet"
    if not path.is_file():
        sys.exit(f"no {path}; name the folder of the data set with --data")
    print(describe_machine())
    warnings.filterwarnings("ignore", "No Pauling electronegativity")

    start = time.process_time()
    phases = read_references(path).phases
    print(f"{len(phases):,} references read and checked: {time.process_time() - start:.1f} s")
    prototype = find_prototype("perovskite")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, ELEMENTS_89))
    _, numbers = space.decode(0, space.index_count)
    before = peak_memory()

    start, wall = time.process_time(), time.perf_counter()
    mixtures = find_mixtures(phases, numbers, prototype.amounts)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    fast = len(numbers) / seconds
    print(
        f"{len(numbers):,} candidates: {seconds:.1f} s ({wall:.1f} s by the clock), {fast:,.0f} /s"
    )
    print(f"phases in a candidate's system: {mixtures.references.mean():.1f} in the mean")
    start = time.process_time()
    write_decompositions(phases, mixtures, numbers, prototype.amounts)
    print(f"their decompositions written: {time.process_time() - start:.1f} s")
    print(f"peak memory: {peak_memory():.2f} GiB, {before:.2f} GiB before the hull")

    rng = np.random.default_rng(0)
    systems = [
        rng.choice(ELEMENTS_89, len(prototype.amounts), replace=False).tolist()
        for _ in range(arguments.systems)
    ]
    sample = np.array([list(permutations(system)) for system in systems], dtype=np.uint8)
    energies, seconds = run_pymatgen(phases, systems, sample, prototype.amounts)
    ours = find_mixtures(phases, sample.reshape(energies.size, -1), prototype.amounts)
    worst = float(np.abs(energies.ravel() - ours.energies[:, 0]).max())
    slow = energies.size / seconds
    print(
        f"pymatgen, all {energies.size:,} candidates of {len(systems):,} systems: {slow:,.0f} /s; "
        f"ours is {fast / slow:,.0f} times as fast"
    )
    print(f"largest difference: {worst:.1e} eV/atom")
    if worst > TOLERANCE:
        sys.exit("the two disagree")

    noise = rng.normal(0.0, 0.05, (len(phases), arguments.columns))
    many = Phases.of(phases.formulas.tolist(), phases.energies + noise)
    part = numbers[rng.choice(len(numbers), len(numbers) // 8, replace=False)]
    start = time.process_time()
    find_mixtures(many, part, prototype.amounts)
    seconds = time.process_time() - start
    print(
        f"{arguments.columns} energy columns, {len(part):,} of them: {len(part) / seconds:,.0f} /s"
    )


if __name__ == "__main__":
    main()
