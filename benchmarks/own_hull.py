"""How near the model's own hull comes to that of DFT, type by type of its competing phases.

    python benchmarks/own_hull.py --data DIR [--compounds 2000] [--seed 1] [--model default]

Draws known and hypothetical compounds of three elements from `mp_groundstates.parquet`, whose hull
without the compound is known, and finds their hull anew among the model's competing phases: with
the elements alone, then with one further structure type after the other, in the order of
`screening.competitors`. Phases of the compound's own composition do not count, as in the data. The
compound's own energy is that of DFT on both sides, so that only the hulls differ.
"""

from __future__ import annotations

import argparse
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from machine import describe_machine
from numpy.typing import NDArray

from prototypes import ATOMIC_NUMBERS, ELEMENTS_89, CandidateSpace, FormulaWriter, find_prototype
from screening.competitors import BINARY_TYPES, TERNARY_TYPES, score_decorations
from screening.hull import find_mixtures
from screening.model_library import load_enthalpy_model
from screening.phases import Phases, parse_formula
from screening.score import load_scorer

STABLE_WITHIN = 0.05
"""eV/atom above the hull that still counts as stable."""

NONMETALS = frozenset(
    ATOMIC_NUMBERS[symbol] for symbol in "H C N O F P S Cl As Se Br Te I He Ne Ar Kr Xe".split()
)


def draw_compounds(data: Path, count: int, seed: int) -> pd.DataFrame:
    """Draw compounds of three of the 89 elements, with atomic numbers and amounts."""
    table = pd.read_parquet(data / "mp_groundstates.parquet")
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    parsed = [parse_formula(formula) for formula in table.formula]
    pool = set(ELEMENTS_89)
    usable = [len(numbers) == 3 and pool.issuperset(numbers) for numbers, _ in parsed]
    chosen = table[usable].head(count).copy()
    kept = [each for each, use in zip(parsed, usable, strict=True) if use][:count]
    chosen["numbers"] = [numbers for numbers, _ in kept]
    chosen["amounts"] = [amounts for _, amounts in kept]
    return chosen


def read_known_formulas(data: Path) -> set[str]:
    """Return the formulas of the known crystals."""
    parts = sorted(data.glob("mp_icsd*.parquet"))
    return {each for part in parts for each in pd.read_parquet(part, columns=["formula"]).formula}


def identify_compositions(formulas: list[str]) -> NDArray[np.uint64]:
    """Give each reduced formula a number of its own."""
    return np.array([hash(formula) % (2**63) + 1 for formula in formulas], dtype=np.uint64)


def main() -> None:
    """Score, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--compounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    compounds = draw_compounds(arguments.data, arguments.compounds, arguments.seed)
    numbers = np.array(compounds.numbers.tolist(), dtype=np.uint8)
    amounts = np.array(compounds.amounts.tolist())
    energies = compounds.formation_energy_per_atom.to_numpy()
    hull = energies - compounds.decomposition_energy_per_atom.to_numpy()
    own = identify_compositions(
        [
            FormulaWriter(row).write(np.array([which]))[0]
            for which, row in zip(numbers, amounts.tolist(), strict=True)
        ]
    )
    stable = energies - hull <= STABLE_WITHIN

    wanted = {size: np.zeros((120,) * size, dtype=bool) for size in (2, 3)}
    for size, systems in wanted.items():
        for roles in permutations(range(3), size):
            systems[tuple(numbers[:, role] for role in roles)] = True
    model = load_enthalpy_model(arguments.model)
    device = torch.device("cpu")
    torch.set_num_threads(1)
    loaded = load_scorer(arguments.model, model.content_hash, "cpu", "auto")

    oxides = (numbers == ATOMIC_NUMBERS["O"]).any(axis=1)
    metallic = ~np.isin(numbers, sorted(NONMETALS)).any(axis=1)
    classes = {
        "all": np.ones(len(numbers), dtype=bool),
        "hypothetical": ~compounds.formula.isin(read_known_formulas(arguments.data)).to_numpy(),
        "oxides": oxides,
        "intermetallic": metallic,
    }
    print(describe_machine())
    print(
        f"model {model.path.name}; {len(numbers):,} compounds of three elements, seed "
        f"{arguments.seed}; {stable.mean():.0%} lie within {STABLE_WITHIN} eV/atom of the DFT hull"
    )
    print(
        "hull minus DFT hull in eV/atom: mean, mean size; verdicts that are those of the DFT hull"
    )
    head = f"{'competing phases':<26}{'of 89 elements':>15}"
    print(head + "".join(f"{f'{name} ({rows.sum()})':>24}" for name, rows in classes.items()))

    def report(name: str, decorations: int | None, found: NDArray[np.float64]) -> None:
        line = f"{name:<26}{'' if decorations is None else f'{decorations:,}':>15}"
        same = (energies - found <= STABLE_WITHIN) == stable
        for rows in classes.values():
            off = (found - hull)[rows]
            line += f"{off.mean():>+10.3f}{np.abs(off).mean():>7.3f}{same[rows].mean():>7.1%}"
        print(line, flush=True)

    report("elements", 0, np.zeros(len(numbers)))
    phases: list[Phases] = []
    total, scored, seconds = 0, 0, 0.0
    for kind in (*BINARY_TYPES, *TERNARY_TYPES):
        prototype = find_prototype(kind.prototype)
        space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, ELEMENTS_89))
        decorations = space.decode(0, space.index_count)[1]
        decorations = decorations[wanted[len(prototype.roles)][tuple(decorations.T)]]
        started = time.process_time()
        (result,) = score_decorations([(prototype, decorations)], loaded, device)
        seconds += time.process_time() - started
        scored += len(result.numbers)
        below = result.energies[:, 0] < 0
        formulas = space.formulas(result.numbers[below])
        phases.append(
            Phases.of_decorations(
                result.numbers[below],
                prototype.amounts,
                result.energies[below, 0],
                kind.title,
                identify_compositions(formulas),
                formulas,
            )
        )
        total += space.count
        found = find_mixtures(Phases.join(phases), numbers, amounts, own).energies[:, 0]
        report(f"+ {kind.title}", total, found)
    table = pd.read_parquet(arguments.data / "mp_groundstates.parquet")
    references = Phases.of(table.formula.tolist(), table.formation_energy_per_atom.to_numpy())
    binary = references.select((references.fractions > 0).sum(axis=1) <= 2)
    report("DFT, binaries only", None, find_mixtures(binary, numbers, amounts).energies[:, 0])
    print(
        f"{scored:,} decorations scored in {seconds:.0f} s of one core, {scored / seconds:,.0f} /s"
    )


if __name__ == "__main__":
    main()
