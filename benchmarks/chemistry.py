"""What the rules of `screening.chemistry` tell about compounds of known stability, and how fast.

    python benchmarks/chemistry.py [--data FOLDER]

Compositions of known crystals, and of hypothetical ones that are stable (at most 0.05 eV/atom above
the hull) or not, from the data set (SCREENING_DATA or ../shared/data): which share of each has a
neutral assignment, with each table of oxidation states; the tolerance factors of perovskites; the
most plausible assignment beside pymatgen's; and the time for all ABX3 of 89 elements.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterable, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from machine import describe_machine
from numpy.typing import NDArray
from pymatgen.core import Composition, Element

from prototypes import ATOMIC_NUMBERS, ELEMENTS_89, CandidateSpace, find_prototype
from screening.chemistry import (
    BARTEL_LIMIT,
    ION_FORMERS,
    describe_chemistry,
    perovskite_roles,
    plausible_states,
    tabulate_chemistry,
    tabulate_compositions,
)

STABLE = 0.05
LARGEST_FORMULA = 14
"""pymatgen's guesses take long for larger formula units."""

States = Mapping[str, Iterable[int]]


def read_formulas(data: Path) -> pd.DataFrame:
    """Return one row per composition: formula, group, elements, last (most electronegative)."""
    parts = []
    for group in ("known", "virtual"):
        pattern = "mp_icsd*.parquet" if group == "known" else "mp_virtual*.parquet"
        files = sorted(data.glob(pattern))
        if not files:
            sys.exit(f"no {pattern} in {data}; name the folder with --data or SCREENING_DATA")
        columns = ["formula", "kind", "e_above_hull_2018"]
        table = pd.concat([pd.read_parquet(file, columns=columns) for file in files])
        if group == "virtual":
            table = table.dropna(subset="e_above_hull_2018").sort_values("e_above_hull_2018")
            table["group"] = np.where(table.e_above_hull_2018 <= STABLE, "stable", "unstable")
        else:
            table["group"] = group
        parts.append(table.drop_duplicates("formula"))
    rows = pd.concat(parts, ignore_index=True)
    rows["elements"] = [
        {str(e.symbol): int(n) for e, n in Composition(f).reduced_composition.items()}
        for f in rows.formula
    ]
    rows = rows[[len(e) > 1 and max(map(ATOMIC_NUMBERS.get, e)) < 104 for e in rows.elements]]
    rows["last"] = [max(e, key=lambda s: np.nan_to_num(Element(s).X)) for e in rows.elements]
    shapes = [tuple(sorted(e.values())) for e in rows.elements]
    rows["abx3"] = [
        shape == (1, 1, 3) and e[last] == 3
        for shape, e, last in zip(shapes, rows.elements, rows["last"], strict=True)
    ]
    return rows.reset_index(drop=True)


def is_balanced(elements: Mapping[str, int], states: States, mean: bool) -> bool:
    """Whether charges add up to zero, by sets of sums (one state per element, or any mean)."""
    sums = {0}
    for symbol, amount in elements.items():
        own = sorted(states[symbol])
        charges = {amount * state for state in own}
        for signed in ([s for s in own if s < 0], [s for s in own if s > 0]) if mean else ():
            if signed:
                charges |= set(range(amount * signed[0], amount * signed[-1] + 1))
        sums = {total + charge for total in sums for charge in charges}
    return 0 in sums


def print_shares(rows: pd.DataFrame, verdicts: Mapping[str, NDArray[np.bool_]]) -> None:
    """Print which share of each group each verdict holds for."""
    for name, verdict in verdicts.items():
        shares = [
            verdict[((rows.group == group) & part).to_numpy()].mean()
            for part in (rows.index >= 0, rows.abx3)
            for group in ("known", "stable", "unstable")
        ]
        print(f"{name:<44}" + "".join(f"{share:>10.3f}" for share in shares))


def compare_tables(rows: pd.DataFrame) -> None:
    """Print how well each table of oxidation states keeps known and parts hypothetical ones."""
    rows = rows[rows["last"].isin(ION_FORMERS)].reset_index(drop=True)
    sizes = [f"{len(rows)} in all", f"{int(rows.abx3.sum())} ABX3"]
    print(f"\nneutral, of {sizes[0]} and {sizes[1]} with {' '.join(sorted(ION_FORMERS))}")
    header = ("known", "stable", "unstable") * 2
    print(f"{'':<44}" + "".join(f"{name:>10}" for name in header))
    elements = [Element.from_Z(z) for z in range(1, 104)]
    common = {e.symbol: {s for s in e.common_oxidation_states if s} for e in elements}
    icsd = {
        e.symbol: {s for s in e.icsd_oxidation_states if s} or common[e.symbol] for e in elements
    }
    either = {symbol: common[symbol] | icsd[symbol] for symbol in common}
    every = {e.symbol: {s for s in e.oxidation_states if s} for e in elements}
    ours = plausible_states()
    tables: dict[str, States] = {
        "common_oxidation_states": common,
        "icsd_oxidation_states": icsd,
        "both": either,
        "oxidation_states (all)": every,
        "both and 1 % of ions in the ICSD": ours,
    }
    verdicts = {
        f"{name}{', any mean' if mean else ''}": np.array(
            [is_balanced(each, states, mean) for each in rows.elements]
        )
        for name, states in tables.items()
        for mean in ((False,) if states is every else (False, True))
    }
    columns = pa.table(
        tabulate_compositions(
            [{ATOMIC_NUMBERS[s]: n for s, n in each.items()} for each in rows.elements]
        )
    ).to_pandas()
    verdicts["charge_neutral"] = columns.charge_neutral.to_numpy(bool)
    verdicts["electronegativity_order"] = columns.electronegativity_order.to_numpy(bool)
    print_shares(rows, verdicts)
    differ = verdicts["both and 1 % of ions in the ICSD, any mean"] != verdicts["charge_neutral"]
    print(f"charge_neutral differs from the sets of sums for {int(differ.sum())} compositions")


def compare_anions(rows: pd.DataFrame) -> None:
    """Print which share has a neutral assignment, by the most electronegative element."""
    columns = tabulate_compositions(
        [{ATOMIC_NUMBERS[s]: n for s, n in each.items()} for each in rows.elements]
    )
    assigned = np.array(columns["oxidation_states"].is_valid())
    print("\nwith an assignment, by the most electronegative element")
    print(f"{'':<6}{'known':>8}{'share':>8}{'stable':>8}{'share':>8}{'unstable':>10}{'share':>8}")
    for symbol, count in rows[rows.group == "known"]["last"].value_counts().items():
        if count < 500:
            break
        cells = ""
        for group, width in (("known", 8), ("stable", 8), ("unstable", 10)):
            chosen = ((rows["last"] == symbol) & (rows.group == group)).to_numpy()
            cells += f"{int(chosen.sum()):>{width}}{assigned[chosen].mean():>8.3f}"
        print(f"{symbol:<6}{cells}")


def compare_perovskites(rows: pd.DataFrame) -> None:
    """Print which share of perovskite entries tau calls perovskites, A being the larger ion."""
    rows = rows[rows.abx3 & rows.kind.str.startswith("perov")]
    print("\nABX3 entries in a perovskite structure: rows, with tau, tau < 4.18, 0.825 < t < 1.059")
    for group, part in rows.groupby("group"):
        tau, goldschmidt = [], []
        for elements, last in zip(part.elements, part["last"], strict=True):
            cations = [ATOMIC_NUMBERS[s] for s in elements if s != last]
            pairs = np.array([(*p, ATOMIC_NUMBERS[last]) for p in permutations(cations)], np.uint8)
            chemistry = describe_chemistry(pairs, (1, 1, 3), (0, 1, 2))
            finite = np.flatnonzero(np.isfinite(chemistry.bartel))
            if len(finite):
                tau.append(chemistry.bartel[finite].min())
                goldschmidt.append(chemistry.goldschmidt[finite].max())
        t = np.array(goldschmidt)
        print(
            f"{group:<10}{len(part):>6}{len(tau):>6}{np.mean(np.array(tau) < BARTEL_LIMIT):>8.3f}"
            f"{np.mean((t > 0.825) & (t < 1.059)):>8.3f}"
        )


def compare_guesses(rows: pd.DataFrame) -> None:
    """Print how often the assignment is pymatgen's first guess, for known compositions."""
    rows = rows[(rows.group == "known") & rows["last"].isin(ION_FORMERS)]
    rows = rows[[sum(each.values()) <= LARGEST_FORMULA for each in rows.elements]]
    rows = rows.sample(1000, random_state=0)
    columns = tabulate_compositions(
        [{ATOMIC_NUMBERS[s]: n for s, n in each.items()} for each in rows.elements]
    )
    both = same = 0
    for elements, ions in zip(rows.elements, columns["oxidation_states"].to_pylist(), strict=True):
        guesses = Composition(elements).oxi_state_guesses()
        if not guesses or ions is None:
            continue
        both += 1
        states = {}
        for ion in ions.split():
            symbol = ion.rstrip("+-0123456789.")
            size = float(ion[len(symbol) : -1] or 1)
            states[symbol] = size if ion.endswith("+") else -size
        same += all(abs(states[s] - value) < 0.01 for s, value in guesses[0].items())
    print(f"\n{both} of 1,000 known: assigned here and by pymatgen, {same} of them alike")


def time_columns() -> None:
    """Print the rate for all ABX3 of 89 elements."""
    prototype = find_prototype("cubic_perovskite")
    space = CandidateSpace(prototype, dict.fromkeys(prototype.roles, ELEMENTS_89))
    _, numbers = space.decode(0, space.index_count)
    start = time.process_time()
    roles = perovskite_roles(prototype)
    columns = tabulate_chemistry(describe_chemistry(numbers, prototype.amounts, roles))
    seconds = time.process_time() - start
    print(f"\n{len(numbers):,} ABX3: {seconds:.1f} s of one core, {len(numbers) / seconds:,.0f}/s")
    neutral = columns["charge_neutral"]
    counts = (neutral.true_count, neutral.false_count, neutral.null_count)
    print("charge_neutral: {:,} true, {:,} false, {:,} null".format(*counts))


def main() -> None:
    """Print all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.environ.get("SCREENING_DATA", Path(__file__).parents[1] / "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(describe_machine())
    rows = read_formulas(arguments.data)
    compare_tables(rows)
    compare_anions(rows)
    compare_perovskites(rows)
    compare_guesses(rows)
    time_columns()


if __name__ == "__main__":
    main()
