"""A small data set in the layout of the published one, with made-up energies of real crystals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from prototypes import ATOMIC_NUMBERS, find_prototype

PROTOTYPES = {"B2": "ABC2_16_225_a_b_c", "cubic_perovskite": "ABC3_5_221_a_b_c"}
"""Prototypes of the structures, and the Wyckoff labels that they pretend to have."""

METALS = ("Li", "Na", "K", "Mg", "Ca", "Sr", "Ti", "Fe", "Al", "La")
ANIONS = ("O", "F", "S", "Cl", "N")


def write_data(folder: Path, eval_rows: int = 8) -> Path:
    """Write the four kinds of files of the data set."""
    rows = list(make_rows())
    table = pd.DataFrame(rows)
    hypothetical = table.sample(eval_rows, random_state=0)
    hypothetical = hypothetical.assign(
        id=["eval-" + name for name in hypothetical["id"]],
        kind=["B2" if n == 2 else "perov_cubic" for n in hypothetical["nsites"]],
        scheme=["MP-legacy(derived)", "MP2020"] * (eval_rows // 2),
        strict=[True, True, False, False] * (eval_rows // 4),
    )
    folder.mkdir(parents=True, exist_ok=True)
    hypothetical.to_parquet(folder / "eval_prototypes.parquet")
    known = table["provenance"] == "icsd"
    table[known][::2].to_parquet(folder / "mp_icsd-00.parquet")
    table[known][1::2].to_parquet(folder / "mp_icsd_extra.parquet")
    table[~known].to_parquet(folder / "mp_virtual-00.parquet")
    compositions = table[["formula", "formation_energy_per_atom"]]
    outlier = pd.DataFrame({"formula": ["HfTa3"], "formation_energy_per_atom": [43.0]})
    pd.concat([compositions, outlier]).to_parquet(folder / "oqmd_compositions.parquet")
    return folder


def make_rows() -> Iterator[dict[str, object]]:
    """About 200 crystals of two prototypes."""
    number = 0
    for name, label in PROTOTYPES.items():
        prototype = find_prototype(name)
        for a in METALS:
            for b in METALS[: METALS.index(a)]:
                for x in ("",) if name == "B2" else ANIONS[:3]:
                    symbols = (a, b, x)
                    species = [symbols[role] for role in prototype.site_roles]
                    scale = 1.0 + 0.01 * (number % 7)
                    z = [ATOMIC_NUMBERS[symbol] for symbol in species]
                    yield {
                        "id": f"made-{number}",
                        "formula": "".join(species),
                        "nsites": len(species),
                        "proto": label,
                        "provenance": "icsd" if number % 3 else "virtual",
                        "formation_energy_per_atom": float(np.sin(z).mean() - len(set(z))),
                        "e_above_hull_2018": 0.01 * number if number % 2 else None,
                        "dE_matbench": 0.5 if number == 5 else 0.0,
                        "lattice": (np.asarray(prototype.lattice) * scale).ravel(),
                        "species": species,
                        "frac_coords": np.asarray(prototype.frac_coords).ravel(),
                    }
                    number += 1
