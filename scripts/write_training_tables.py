"""Tell the structure types of the data, and write the training tables of the bundled models.

    python scripts/write_training_tables.py TYPES [--data FOLDER]

TYPES is a Parquet file of structure types by id; it is written if it is not there, which takes a
quarter of an hour. A structure has the type of a prototype if both have the same space group,
stoichiometry and number of sites in the primitive cell, and pymatgen's StructureMatcher, with its
default tolerances and whatever elements on which sites, fits one onto the other; of several
prototypes, the one that fits with the least root mean square displacement, with all that stand for
the same type. Prototypes whose geometry, as pymatgen ships it, has another symmetry than their
label says are not looked for.

`train_bundled_models.py` uses the same types; this script is for models that are there already.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from prototypes import find_prototype, list_prototypes
from screening.dataset import CROSS_CHECK_COLUMN, CROSS_CHECK_TOLERANCE
from screening.model_card import read_card
from screening.model_library import FORMULAS_NAME, find_model
from screening.training_table import TrainingTable, name_structure_type

SYMMETRY_PRECISION = 1e-3
"""Å: precision of the symmetry of a prototype's ideal geometry."""

COLUMNS = ["id", "formula", "nsites", "spacegroup", "lattice", "species", "frac_coords"]
Key = tuple[int, tuple[int, ...]]


def list_types() -> dict[Key, dict[str, object]]:
    """Structures of the prototypes by space group and sites of each element, then by type."""
    import spglib
    from pymatgen.core import Structure

    found: dict[Key, dict[str, object]] = defaultdict(dict)
    for record in list_prototypes():
        if record.is_element:
            continue
        prototype = find_prototype(record.name)
        cell = (prototype.lattice, prototype.frac_coords, np.array(prototype.site_roles) + 1)
        group = int(spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_PRECISION).number)
        name = name_structure_type(prototype)
        assert name is not None
        stated = re.match(r"[A-Z0-9]+_[a-z][A-Z]\d+_(\d+)", name)
        if stated and int(stated[1]) != group:
            print(f"{name} is not looked for: its geometry has the space group {group}")
            continue
        symbols = [prototype.reference_elements[role] for role in prototype.site_roles]
        key = group, tuple(sorted(Counter(symbols).values()))
        found[key][name] = Structure(prototype.lattice, symbols, prototype.frac_coords)
    return found


def match_types(table: pd.DataFrame) -> list[str]:
    """Name the structure type of each structure.

    Args:
        table: Structures with their space groups, the columns `COLUMNS`.

    Returns:
        The name of `screening.training_table.name_structure_type`, "" where it has none of them.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    types = list_types()
    stoichiometries = {(group, reduce_amounts(amounts)) for group, amounts in types}
    matcher = StructureMatcher(primitive_cell=False, attempt_supercell=False)
    names = []
    for row in table.itertuples(index=False):
        group, amounts = int(row.spacegroup), tuple(sorted(Counter(row.species).values()))
        best, name = np.inf, ""
        if (group, reduce_amounts(amounts)) in stoichiometries:
            coords = np.asarray(row.frac_coords, dtype=np.float64).reshape(-1, 3)
            structure = Structure(
                np.asarray(row.lattice).reshape(3, 3), row.species, coords
            ).get_primitive_structure()
            sites = tuple(sorted(Counter(str(s) for s in structure.species).values()))
            for candidate, ideal in types.get((group, sites), {}).items():
                displacement = matcher.get_rms_anonymous(structure, ideal)[0]
                if displacement is not None and displacement < best:
                    best, name = displacement, candidate
        names.append(name)
    return names


def reduce_amounts(amounts: tuple[int, ...]) -> tuple[int, ...]:
    """Amounts without a common divisor."""
    divisor = int(np.gcd.reduce(amounts))
    return tuple(amount // divisor for amount in amounts)


def read_types(path: Path, data: Path) -> dict[str, str]:
    """Structure types by id, of all structures of the data; written if they are not there."""
    if not path.exists():
        tables = (*sorted(data.glob("mp_*-*.parquet")), *sorted(data.glob("mp_*_extra.parquet")))
        parts = [
            pd.read_parquet(file, columns=COLUMNS)
            for file in (*tables, data / "eval_prototypes.parquet")
        ]
        table = pd.concat(parts).drop_duplicates("id")
        types = table[["id"]].assign(structure_type=match_types(table))
        types.to_parquet(path, compression="zstd")
    types = pd.read_parquet(path)
    return dict(zip(types["id"], types["structure_type"], strict=True))


def write_training_table(
    name: str, files: list[Path], types: dict[str, str], compounds: Path | None = None
) -> None:
    """Write the training table of a bundled model, and check that it is that of its card.

    Args:
        name: The model.
        files: Structures that it was trained on.
        types: Structure types by id.
        compounds: The evaluation set, if it was trained on that too.
    """
    parts = [pd.read_parquet(file) for file in files]
    table = pd.concat(parts)
    table = table[~(table[CROSS_CHECK_COLUMN].abs() > CROSS_CHECK_TOLERANCE)]
    if compounds is not None:
        table = pd.concat([table, pd.read_parquet(compounds)])
    written = TrainingTable.of(
        table["formula"].tolist(),
        table["id"].tolist(),
        table["formation_energy_per_atom"],
        [types.get(each) for each in table["id"]],
    )
    folder = find_model(name)
    expected = read_card(folder).data.formulas
    if len(written) != expected:
        raise SystemExit(f"{name} was trained on {expected:,} formulas, not {len(written):,}")
    written.save(folder / FORMULAS_NAME)
    size = (folder / FORMULAS_NAME).stat().st_size
    typed = sum(map(bool, written.types))
    print(f"{name}: {len(written):,} formulas, {typed:,} of known types, {size:,} bytes")


def main() -> None:
    """Write the tables."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", type=Path)
    default = os.environ.get("SCREENING_DATA", "../shared/data")
    parser.add_argument("--data", type=Path, default=Path(default))
    arguments = parser.parse_args()
    data = arguments.data
    types = read_types(arguments.types, data)
    known = sorted(data.glob("mp_icsd*.parquet"))
    others = sorted(data.glob("mp_virtual*.parquet"))
    write_training_table("mp-icsd-irnet17", known, types)
    compounds = data / "eval_prototypes.parquet"
    write_training_table("mp-all-irnet17", [*known, *others], types, compounds)


if __name__ == "__main__":
    main()
