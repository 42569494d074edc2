"""Tell the structure types of the data, and write the training tables of the bundled models.

    python scripts/write_training_tables.py TYPES [--data FOLDER]

TYPES is a Parquet file of structure types by id; it is written if it is not there, which takes a
quarter of an hour. A structure has the type of a prototype if both have the same space group and
as many sites of each element in the primitive cell, and pymatgen's StructureMatcher, with its
default tolerances and whatever elements on which sites, fits one onto the other. Null where it
fits prototypes of several types. Not looked for are prototypes whose geometry, as pymatgen ships
it, has another space group than their label says or does not fit their own reference compound.

`train_bundled_models.py` calls this script's functions; the script is for models that are there
already.
"""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from prototypes import find_prototype, list_prototypes
from screening.dataset import CROSS_CHECK_COLUMN, CROSS_CHECK_TOLERANCE
from screening.model_card import read_card
from screening.model_library import FORMULAS_NAME, find_model
from screening.training_table import TrainingTable, name_structure_type

SYMMETRY_PRECISION = 1e-3
"""Å: precision of the symmetry of a prototype's ideal geometry."""

COLUMNS = ["id", "formula", "nsites", "spacegroup", "lattice", "species", "frac_coords"]
Key = tuple[int, tuple[int, ...]]
"""Space group and, ascending, the sites of each element in the primitive cell."""


def list_types() -> dict[Key, dict[str, list[Structure]]]:
    """Reference compounds of the prototypes: by key, then by structure type."""
    found: dict[Key, dict[str, list[Structure]]] = defaultdict(lambda: defaultdict(list))
    for record in list_prototypes():
        if record.is_element:
            continue
        prototype = find_prototype(record.name)
        cell = (prototype.lattice, prototype.frac_coords, np.array(prototype.site_roles) + 1)
        group = int(spglib.get_symmetry_dataset(cell, symprec=SYMMETRY_PRECISION).number)
        name = name_structure_type(prototype)
        assert name is not None
        stated = re.search(r"_[a-z][A-Z]\d+_(\d+)", name)
        assert stated is not None
        if int(stated[1]) != group:
            print(f"{record.name} is not looked for: its geometry has the space group {group}")
            continue
        symbols = [prototype.reference_elements[role] for role in prototype.site_roles]
        structure = Structure(prototype.lattice, symbols, prototype.frac_coords)
        found[group, count_sites(symbols)][name].append(structure)
    return found


def match_types(table: pd.DataFrame) -> list[str | None]:
    """Name the structure type of each structure.

    Args:
        table: Structures with their space groups, the columns `COLUMNS`.

    Returns:
        The name of `screening.training_table.name_structure_type`, "" where a structure has none
        of them, None where it has several.
    """
    types = list_types()
    stoichiometries = {(group, reduce_amounts(amounts)) for group, amounts in types}
    matcher = StructureMatcher(primitive_cell=False, attempt_supercell=False)
    tested: set[str] = set()
    passed: set[str] = set()
    fits: list[set[str]] = []
    for row in table.itertuples(index=False):
        fitting: set[str] = set()
        fits.append(fitting)
        group, sites = int(row.spacegroup), count_sites(row.species)
        if (group, reduce_amounts(sites)) not in stoichiometries:
            continue
        coords = np.asarray(row.frac_coords, dtype=np.float64).reshape(-1, 3)
        structure = Structure(np.reshape(row.lattice, (3, 3)), list(row.species), coords)
        if (group, sites) not in types:
            structure = structure.get_primitive_structure()
            sites = count_sites([site.specie.symbol for site in structure])
        for name, references in types.get((group, sites), {}).items():
            fitted = [matcher.fit_anonymous(structure, reference) for reference in references]
            if any(fitted):
                fitting.add(name)
            for reference, fit in zip(references, fitted, strict=True):
                if reference.composition.reduced_formula == row.formula:
                    tested.add(name)
                    passed |= {name} if fit else set()
    unlike = tested - passed
    print(f"not looked for, since unlike their own compound: {', '.join(sorted(unlike))}")
    found = [names - unlike for names in fits]
    return [None if len(names) > 1 else next(iter(names), "") for names in found]


def count_sites(symbols: Sequence[str]) -> tuple[int, ...]:
    """Sites of each element, ascending."""
    return tuple(sorted(Counter(symbols).values()))


def reduce_amounts(amounts: tuple[int, ...]) -> tuple[int, ...]:
    """Amounts without a common divisor."""
    divisor = int(np.gcd.reduce(amounts))
    return tuple(amount // divisor for amount in amounts)


def read_types(path: Path, data: Path) -> dict[str, str | None]:
    """Structure types by id, of all structures of the data; written if they are not there."""
    if not path.exists():
        tables = (*sorted(data.glob("mp_*-*.parquet")), *sorted(data.glob("mp_*_extra.parquet")))
        files = (*tables, data / "eval_prototypes.parquet")
        table = pd.concat([pd.read_parquet(file, columns=COLUMNS) for file in files])
        table = table.drop_duplicates("id")
        matched = pa.array(match_types(table), pa.string())
        pq.write_table(pa.table({"id": table["id"].tolist(), "structure_type": matched}), path)
    types = pq.read_table(path)
    return dict(zip(*(types[name].to_pylist() for name in ("id", "structure_type")), strict=True))


def write_training_table(
    folder: Path, data: Path, types: dict[str, str | None], everything: bool
) -> None:
    """Write the training table of a bundled model, and check that it is that of its card.

    The energies of the data stay out of it: data is no part of the project.

    Args:
        folder: The model.
        data: Folder of the data.
        types: Structure types by id.
        everything: Whether it was trained on hypothetical crystals and the evaluation set too, not
            on known crystals alone.
    """
    files = sorted(data.glob("mp_*.parquet" if everything else "mp_icsd*.parquet"))
    files = [file for file in files if file.name != "mp_groundstates.parquet"]
    table = pd.concat([pd.read_parquet(file) for file in files])
    table = table[~(table[CROSS_CHECK_COLUMN].abs() > CROSS_CHECK_TOLERANCE)]
    if everything:
        table = pd.concat([table, pd.read_parquet(data / "eval_prototypes.parquet")])
    written = TrainingTable.of(
        table["formula"].tolist(),
        table["id"].tolist(),
        table["formation_energy_per_atom"],
        [types.get(each) for each in table["id"]],
    )
    expected = read_card(folder).data.formulas
    if len(written) != expected:
        raise SystemExit(f"{folder} was trained on {expected:,} formulas, not {len(written):,}")
    written.without_energies().save(folder / FORMULAS_NAME)
    size = (folder / FORMULAS_NAME).stat().st_size
    typed = sum(map(bool, written.types))
    print(f"{folder.name}: {len(written):,} formulas, {typed:,} with types, {size:,} bytes")


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
    write_training_table(find_model("mp-icsd-irnet17"), data, types, everything=False)
    write_training_table(find_model("mp-all-irnet17"), data, types, everything=True)


if __name__ == "__main__":
    main()
