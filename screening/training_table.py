"""What a model was trained on, one line a composition: formula, id, energy, structure types.

The table lies in the model folder as ``training.parquet``. It lets a campaign say which of its
candidates are known, under which identifier, at which energy and in which structure type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from prototypes import BUILT_IN, Prototype, list_prototypes
from screening.columns import written_atomically
from screening.errors import InputDataError, ModelError, suggest
from screening.parquet import read_columns

SEPARATOR: Final = " "
"""Stands between the structure types of a composition."""

_SCHEMA: Final = pa.schema(
    [
        pa.field("formula", pa.string(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("formation_energy_mev_per_atom", pa.int32()),
        pa.field("structure_types", pa.string(), nullable=False),
        pa.field("all_types_known", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class TrainingTable:
    """The n compositions that a model was trained on, in alphabetical order.

    Attributes:
        formulas: Reduced formulas (pymatgen's convention), each once, shape (n,), str.
        ids: Identifier of the structure of lowest energy, "" where there is none, shape (n,), str.
        energies: Its formation energy, eV/atom, rounded to 0.001; NaN where none is known, as
            after training on something else; shape (n,).
        types: Structure types of the composition's structures that are among the program's
            prototypes, as `name_structure_type` names them, separated by spaces, shape (n,), str.
        all_types_known: Whether it is known of each of these structures which prototype it has, if
            any, shape (n,).
    """

    formulas: NDArray[np.object_]
    ids: NDArray[np.object_]
    energies: NDArray[np.float64]
    types: NDArray[np.object_]
    all_types_known: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of compositions."""
        return len(self.formulas)

    @classmethod
    def of(
        cls,
        formulas: Sequence[str],
        ids: Sequence[str] | None = None,
        energies: ArrayLike | None = None,
        types: Sequence[str | None] | None = None,
    ) -> TrainingTable:
        """Make the table of training structures.

        Args:
            formulas: Reduced formula of each of m structures.
            ids: Identifier of each, or None where there are none.
            energies: Formation energy of each, eV/atom, shape (m,), or None where none are known.
            types: Structure type of each as `name_structure_type` names it, "" where it is none of
                the program's prototypes, None where that is not known; None for all unknown.
        """
        rows = len(formulas)
        energy = np.full(rows, np.nan) if energies is None else np.asarray(energies, np.float64)
        names = np.array(formulas, dtype=object)
        order = np.lexsort((energy, names))  # the lowest energy of a formula first, NaN last
        first = np.ones(rows, dtype=np.bool_)
        first[1:] = names[order][1:] != names[order][:-1]
        chosen = order[first]
        found: list[set[str]] = [set() for _ in chosen]
        known = np.full(len(chosen), types is not None)
        if types is not None:
            for row, place in zip(order.tolist(), (np.cumsum(first) - 1).tolist(), strict=True):
                if types[row] is None:
                    known[place] = False
                elif types[row]:
                    found[place].add(str(types[row]))
        return cls(
            names[chosen],
            np.array([""] * rows if ids is None else list(ids), dtype=object)[chosen],
            np.round(energy[chosen], 3),
            np.array([SEPARATOR.join(sorted(each)) for each in found], dtype=object),
            known,
        )

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {formula: row for row, formula in enumerate(self.formulas)}

    def contains(self, formulas: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the formulas the model was trained on.

        Args:
            formulas: Reduced formulas in pymatgen's convention, length m.

        Returns:
            Shape (m,).
        """
        known = self._rows
        return np.fromiter((formula in known for formula in formulas), np.bool_, len(formulas))

    def without_energies(self) -> TrainingTable:
        """The same table without the energies, which belong to the data and are not given away."""
        return replace(self, energies=np.full(len(self), np.nan))

    def save(self, path: Path) -> None:
        """Write the table as Parquet, energies in whole meV/atom.

        Raises:
            OutputError: It cannot be written.
        """
        columns = [
            pa.array(self.formulas, pa.string()),
            pa.array([name or None for name in self.ids], pa.string()),
            pa.array(np.round(1000 * self.energies), from_pandas=True).cast(pa.int32()),
            pa.array(self.types, pa.string()),
            pa.array(self.all_types_known),
        ]
        with written_atomically(path) as temporary:
            pq.write_table(
                pa.Table.from_arrays(columns, schema=_SCHEMA),
                temporary,
                compression="zstd",
                compression_level=22,
                use_dictionary=["structure_types"],
                column_encoding={
                    "formula": "DELTA_BYTE_ARRAY",
                    "formation_energy_mev_per_atom": "BYTE_STREAM_SPLIT",
                },
                write_statistics=False,
            )

    @classmethod
    def load(cls, path: Path) -> TrainingTable:
        """Read a table that `save` wrote.

        Raises:
            ModelError: The file is missing or damaged.
        """
        try:
            table = read_columns(path)
            if not table.schema.equals(_SCHEMA):
                raise ValueError(f"it has the columns {', '.join(table.column_names)}")
            for field in _SCHEMA:
                if not field.nullable and table[field.name].null_count:
                    raise ValueError(f"the column {field.name} has gaps")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} is missing or damaged ({error}). Get or train the model again."
            ) from error

        def read(name: str) -> NDArray[Any]:
            return np.asarray(table[name].to_numpy())

        return cls(
            read("formula"),
            np.asarray(table["id"].fill_null("").to_numpy()),
            read("formation_energy_mev_per_atom") / 1000.0,
            read("structure_types"),
            read("all_types_known").astype(np.bool_),
        )


def name_structure_type(prototype: Prototype) -> str | None:
    """The name of a prototype's structure type, the same for all prototypes of that type.

    Args:
        prototype: Any prototype.

    Returns:
        Its AFLOW label with the elements in order of amount and Wyckoff letters, followed by ``:``
        and the reference compound where several types share the label; the name of a built-in
        prototype without a label; None for a user's own.

    Example:
        >>> from prototypes import find_prototype
        >>> name_structure_type(find_prototype("perovskite"))
        'ABC3_oP20_62_a_c_cd'
    """
    return _name_type(prototype.name, prototype.aflow_label)


def read_structure_types(names: Sequence[str | None], path: Path) -> list[str | None]:
    """Bring a column of prototype names into the names of structure types.

    Args:
        names: Names that `screening prototypes` lists, "" where a structure has none of these
            prototypes, None where that is not known.
        path: The file, for the message.

    Returns:
        The same with the names of `name_structure_type`.

    Raises:
        InputDataError: There is no prototype of a name.
    """
    types: dict[str | None, str | None] = {None: None, "": ""}
    for record in list_prototypes():
        if record.is_element:
            continue
        name = _name_type(record.name, record.aflow_label)
        types[record.name] = types[name] = name
    for wanted in dict.fromkeys(names):
        if wanted not in types:
            hint = suggest(str(wanted), [known for known in types if known]) or "."
            raise InputDataError(
                f"{path}: the column structure_type holds {wanted!r}, which is no prototype that "
                f"`screening prototypes` lists{hint}"
            )
    return [types[wanted] for wanted in names]


def _name_type(name: str, aflow_label: str | None) -> str | None:
    """Name of a structure type from a prototype's name and its label."""
    if aflow_label is None:
        return name if name in BUILT_IN else None
    formula, pearson, group, *letters = aflow_label.split("_")
    amounts = [int(amount or 1) for amount in re.findall(r"[A-Z](\d*)", formula)]
    if len(amounts) != len(letters):  # sigma_tP30_136_bf2ij, a solution on the sites of one element
        return name
    order = sorted(range(len(letters)), key=lambda place: (amounts[place], letters[place]))
    written = "".join(
        symbol + (str(amounts[place]) if amounts[place] > 1 else "")
        for symbol, place in zip(ascii_uppercase, order, strict=False)
    )
    label = "_".join([written, pearson, group, *(letters[place] for place in order)])
    compound = name.partition(":")[2] if name.startswith(f"{aflow_label}:") else ""
    return f"{label}:{compound}" if compound else label
