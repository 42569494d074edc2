"""Competing phases: compositions with an energy, ordered by chemical system.

What a candidate can decompose into comes from a file of references or from the model itself. Both
become one table of phases, sorted by chemical system, so that the phases of any system are found by
binary search and nothing is grouped in Python.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from prototypes import ATOMIC_NUMBERS, reduced_formula
from screening.columns import written_atomically
from screening.errors import InputDataError, OutputError

Composition: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""Atomic numbers, ascending, and the atoms of each in the reduced formula."""

MOST_ELEMENTS: Final = 9
"""Elements that fit into a packed chemical system: seven bits each."""

_BITS: Final = np.uint64(7)
_ABSENT: Final = 255
_FORMAT: Final = b"phases 1"

_NUMBERS: Final = ATOMIC_NUMBERS | {"D": 1, "T": 1}
LONGEST_FORMULA: Final = 1000
"""Signs of a formula: more are no formula, and take long to read."""

LONGEST_AMOUNT: Final = 12
"""Signs of an amount in a formula."""

MOST_ATOMS: Final = 10**12
"""Of a formula, brackets multiplied out."""

_SHOWN: Final = 60
_TOKEN: Final = re.compile(r"(?:([A-Z][a-z]?)|([(\[{])|([)\]}]))(\d+(?:\.\d*)?|\.\d+)?")
_CLOSING: Final = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, eq=False)
class SystemIndex:
    """Where the rows of each chemical system lie in an order of rows.

    Attributes:
        systems: The systems that occur, packed and ascending, shape (s,), uint64.
        starts: Rows of system `i` are `rows[starts[i]:starts[i + 1]]`, shape (s + 1,), int64.
        rows: Rows of the table of phases, shape (r,), int64.
    """

    systems: NDArray[np.uint64]
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, systems: NDArray[np.uint64], rows: NDArray[np.int64]) -> SystemIndex:
        """Index some rows of a sorted column.

        Args:
            systems: Ascending, shape (n,).
            rows: Ascending row numbers, shape (r,).
        """
        chosen = systems[rows]
        new = np.flatnonzero(np.concatenate([[True], chosen[1:] != chosen[:-1]])[: len(chosen)])
        return cls(chosen[new], np.append(new, len(chosen)).astype(np.int64), rows)

    def locate(self, systems: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the rows of systems.

        Args:
            systems: Packed systems, any shape.

        Returns:
            First position in `rows`, and how many there are (0 where the system does not occur),
            each of the same shape.
        """
        if not len(self.systems):
            return np.zeros(systems.shape, np.int64), np.zeros(systems.shape, np.int64)
        place = np.searchsorted(self.systems, systems)
        place[place == len(self.systems)] = 0
        first = self.starts[place]
        count = np.where(self.systems[place] == systems, self.starts[place + 1] - first, 0)
        return first, count


@dataclass(frozen=True, eq=False)
class Phases:
    """Phases that a candidate can decompose into; the elements, at 0, need not be among them.

    Rows are sorted by chemical system. All n rows have the same c energy columns: one for
    references from a file; for phases predicted by a model the mean, then other views of it.

    Attributes:
        formulas: Reduced formulas (pymatgen's convention), shape (n,), str.
        labels: Id in the source, or name of the prototype, "" where there is none, shape (n,), str.
        systems: Chemical system, see `pack_systems`, shape (n,), uint64, ascending.
        fractions: Atomic fractions in order of ascending atomic number, 0 beyond, shape (n, K).
        energies: Formation energy, eV/atom, shape (n, c).
        identities: 0, or the identity of the decoration that this phase is, shape (n,), uint64: a
            candidate of the same identity does not compete with itself.
    """

    formulas: NDArray[np.object_]
    labels: NDArray[np.object_]
    systems: NDArray[np.uint64]
    fractions: NDArray[np.float64]
    energies: NDArray[np.float64]
    identities: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.systems)

    @classmethod
    def of(
        cls,
        formulas: Sequence[str],
        energies: ArrayLike,
        labels: Sequence[str] | None = None,
        identities: ArrayLike | None = None,
    ) -> Phases:
        """Make phases from formulas.

        Args:
            formulas: Any formulas, reduced or not, length n.
            energies: Formation energies, eV/atom, shape (n,) or (n, c).
            labels: Id of each, or None where there are none.
            identities: Identity of each, shape (n,), or None where there are none.

        Raises:
            InputDataError: What is no formula, more than nine elements, an energy that is not
                finite.
        """
        return cls.of_compositions(
            [parse_formula(formula) for formula in formulas], energies, labels, identities
        )

    @classmethod
    def of_compositions(
        cls,
        compositions: Sequence[Composition],
        energies: ArrayLike,
        labels: Sequence[str] | None = None,
        identities: ArrayLike | None = None,
    ) -> Phases:
        """Make phases from formulas that were read already.

        Args:
            compositions: What `parse_formula` returns, length n.
            energies: Formation energies, eV/atom, shape (n,) or (n, c).
            labels: Id of each, or None where there are none.
            identities: Identity of each, shape (n,), or None where there are none.

        Raises:
            InputDataError: More than nine elements, or an energy that is not finite.
        """
        width = max((len(numbers) for numbers, _ in compositions), default=1)
        numbers = np.zeros((len(compositions), width), dtype=np.uint8)
        amounts = np.zeros((len(compositions), width))
        for row, (which, many) in enumerate(compositions):
            numbers[row, : len(which)] = which
            amounts[row, : len(many)] = many
        return cls._make(
            numbers,
            amounts,
            energies,
            [""] * len(compositions) if labels is None else labels,
            identities,
            [reduced_formula(*composition) for composition in compositions],
        )

    @classmethod
    def of_decorations(
        cls,
        numbers: NDArray[np.integer],
        amounts: ArrayLike,
        energies: ArrayLike,
        label: str,
        identities: ArrayLike | None,
        formulas: Sequence[str],
    ) -> Phases:
        """Make phases from decorations of one prototype, without parsing.

        Args:
            numbers: Atomic number on each role, shape (n, k), at most nine roles.
            amounts: Sites of each role, shape (k,).
            energies: Formation energies, eV/atom, shape (n,) or (n, c).
            label: Name of the prototype.
            identities: Identity of each, shape (n,), or None where there are none.
            formulas: Reduced formulas, length n.

        Raises:
            InputDataError: An energy that is not finite.
        """
        return cls._make(numbers, amounts, energies, [label] * len(numbers), identities, formulas)

    @classmethod
    def _make(
        cls,
        numbers: NDArray[np.integer],
        amounts: ArrayLike,
        energies: ArrayLike,
        labels: Sequence[str],
        identities: ArrayLike | None,
        formulas: Sequence[str],
    ) -> Phases:
        rows = len(numbers)
        columns = np.asarray(energies, dtype=np.float64)
        if columns.ndim == 1:
            columns = columns[:, None]
        elements, fractions = arrange_elements(numbers, amounts)
        broken = np.flatnonzero(~np.isfinite(columns).all(axis=1))
        if len(broken):
            raise InputDataError(
                f"phases with an energy that is not finite: {len(broken):,}, the first is "
                f"{formulas[broken[0]]}. Leave them out."
            )
        systems = pack_systems(elements)
        order = np.argsort(systems, kind="stable")
        return cls(
            _strings(formulas)[order],
            _strings(labels)[order],
            systems[order],
            fractions[order],
            columns[order],
            np.zeros(rows, np.uint64)
            if identities is None
            else np.asarray(identities, dtype=np.uint64)[order],
        )

    @classmethod
    def join(cls, parts: Sequence[Phases]) -> Phases:
        """Put tables of phases together.

        Args:
            parts: At least one; all with the same number of energy columns.

        Raises:
            ValueError: The numbers of energy columns differ.
        """
        width = max(part.fractions.shape[1] for part in parts)
        systems = np.concatenate([part.systems for part in parts])
        order = np.argsort(systems, kind="stable")
        padded = [
            np.pad(part.fractions, ((0, 0), (0, width - part.fractions.shape[1]))) for part in parts
        ]
        return cls(
            np.concatenate([part.formulas for part in parts])[order],
            np.concatenate([part.labels for part in parts])[order],
            systems[order],
            np.concatenate(padded)[order],
            np.concatenate([part.energies for part in parts])[order],
            np.concatenate([part.identities for part in parts])[order],
        )

    def select(self, rows: NDArray[Any]) -> Phases:
        """Return some of the phases.

        Args:
            rows: Ascending row numbers, shape (r,), or a mask, shape (n,).
        """
        return Phases(
            self.formulas[rows],
            self.labels[rows],
            self.systems[rows],
            self.fractions[rows],
            self.energies[rows],
            self.identities[rows],
        )

    @cached_property
    def index(self) -> SystemIndex:
        """All rows by chemical system."""
        return SystemIndex.of(self.systems, np.arange(len(self), dtype=np.int64))

    @cached_property
    def competitive_index(self) -> SystemIndex:
        """The rows with an energy below 0 in some column, by chemical system.

        Others take part in no mixture: the elements in their place have a lower energy.
        """
        return SystemIndex.of(self.systems, np.flatnonzero((self.energies < 0).any(axis=1)))

    @cached_property
    def known_identities(self) -> NDArray[np.uint64]:
        """All identities but 0, ascending."""
        return np.sort(self.identities[self.identities != 0])

    @cached_property
    def elements(self) -> frozenset[int]:
        """Atomic numbers of the elements that occur in some phase."""
        return frozenset(np.unique(unpack_systems(self.index.systems)).tolist()) - {0}

    def save(self, path: Path) -> None:
        """Write the phases as an Arrow IPC file, which readers map into memory.

        Raises:
            OutputError: The file cannot be written.
        """
        table = pa.table(
            {
                "formula": pa.array(self.formulas, pa.string()),
                "label": pa.array(self.labels, pa.string()).dictionary_encode(),
                "system": self.systems,
                "fractions": _lists(self.fractions),
                "energies": _lists(self.energies),
                "identity": self.identities,
            },
            metadata={b"format": _FORMAT},
        )
        try:
            with (
                written_atomically(path) as temporary,
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table.combine_chunks())
        except OSError as error:
            raise OutputError.from_os_error(error, path) from error

    @classmethod
    def load(cls, path: Path) -> Phases:
        """Open a file that `save` wrote; its numbers stay on disk until they are read.

        Raises:
            InputDataError: The file is missing, or `save` did not write it.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise InputDataError(f"cannot read phases from {path}: {error}") from error
        if (table.schema.metadata or {}).get(b"format") != _FORMAT:
            raise InputDataError(f"{path} does not hold phases of this version of the program.")
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        labels = columns["label"]
        return cls(
            columns["formula"].to_numpy(zero_copy_only=False),
            labels.dictionary.to_numpy(zero_copy_only=False)[labels.indices.to_numpy()]
            if len(labels)
            else np.empty(0, dtype=object),
            columns["system"].to_numpy(),
            _unlist(columns["fractions"]),
            _unlist(columns["energies"]),
            columns["identity"].to_numpy(),
        )


def parse_formula(formula: str) -> Composition:
    """Read a chemical formula.

    Args:
        formula: Element symbols with amounts and brackets, such as "Ca(NO3)2"; deuterium and
            tritium count as hydrogen, and amounts may be decimal ("Li0.5CoO2").

    Returns:
        Atomic numbers, ascending, and how many atoms of each, without a common divisor.

    Raises:
        InputDataError: It is no formula.

    Example:
        >>> parse_formula("Ca2(NO3)4")
        ((7, 8, 20), (2, 6, 1))
    """
    return reduce_amounts(count_atoms(formula))


def reduce_amounts(atoms: Mapping[int, Fraction | int]) -> Composition:
    """Return a composition in whole numbers without a common divisor.

    Args:
        atoms: Atoms of each element, by atomic number, positive.

    Example:
        >>> reduce_amounts({8: Fraction(3, 2), 26: 1})
        ((8, 26), (3, 2))
    """
    numbers = tuple(sorted(atoms))
    common = lcm(*(atoms[number].denominator for number in numbers))
    whole = [int(atoms[number] * common) for number in numbers]
    divisor = gcd(*whole)
    return numbers, tuple(amount // divisor for amount in whole)


def count_atoms(formula: str) -> dict[int, Fraction | int]:
    """Count the atoms of a chemical formula as it is written.

    Args:
        formula: Element symbols with amounts and brackets, as for `parse_formula`.

    Returns:
        Atoms of each element, by atomic number, brackets multiplied out.

    Raises:
        InputDataError: It is no formula.

    Example:
        >>> count_atoms("Ca2(NO3)4")
        {20: 2, 7: 4, 8: 12}
    """
    text = "".join(formula.split())
    if len(text) > LONGEST_FORMULA:
        raise InputDataError(f"{shorten(formula)} is not a chemical formula: it is too long.")
    open_groups: list[tuple[str, dict[int, Fraction | int]]] = []
    atoms: dict[int, Fraction | int] = {}
    place = 0
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            raise InputDataError(f"{shorten(formula)} is not a chemical formula.")
        symbol, opening, closing, written = token.groups()
        place = token.end()
        amount: Fraction | int = 1
        if written and len(written) > LONGEST_AMOUNT:
            raise InputDataError(f"{shorten(formula)} is not a chemical formula.")
        if written:
            amount = int(written) if written.isdigit() else Fraction(written)
        if symbol:
            number = _NUMBERS.get(symbol)
            if number is None:
                raise InputDataError(
                    f"{shorten(formula)} is not a chemical formula: there is no element {symbol!r}."
                )
            atoms[number] = atoms.get(number, 0) + amount
        elif opening and not written:
            open_groups.append((_CLOSING[opening], atoms))
            atoms = {}
        elif closing and open_groups and open_groups[-1][0] == closing:
            group, atoms = atoms, open_groups.pop()[1]
            for number, inside in group.items():
                atoms[number] = atoms.get(number, 0) + inside * amount
        else:
            raise InputDataError(f"{shorten(formula)} is not a chemical formula.")
    if open_groups or not atoms or not all(atoms.values()):
        raise InputDataError(f"{shorten(formula)} is not a chemical formula.")
    if sum(atoms.values()) > MOST_ATOMS:
        raise InputDataError(f"{shorten(formula)} is not a chemical formula: too many atoms.")
    return atoms


def shorten(formula: str) -> str:
    """Return a formula in quotation marks, as messages show it: of a long one only the start."""
    return repr(formula if len(formula) <= _SHOWN else f"{formula[:_SHOWN]}…")


def arrange_elements(
    numbers: NDArray[np.integer], amounts: ArrayLike
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Bring compositions into one form.

    Args:
        numbers: Atomic numbers, 0 for none, shape (n, k); an element may occur more than once.
        amounts: Atoms of each, shape (k,) or (n, k), none negative.

    Returns:
        Atomic numbers of each row, ascending, 0 beyond, and their atomic fractions, each of shape
        (n, k).

    Raises:
        InputDataError: A row without atoms.
    """
    elements = np.array(numbers, dtype=np.uint8)
    atoms = np.array(np.broadcast_to(np.asarray(amounts, dtype=np.float64), elements.shape))
    atoms[elements == 0] = 0.0
    elements[atoms == 0] = _ABSENT
    elements, atoms = _sort_elements(elements, atoms)
    repeated = (elements[:, 1:] == elements[:, :-1]) & (elements[:, 1:] != _ABSENT)
    if repeated.any():
        for place in range(1, elements.shape[1]):
            rows = repeated[:, place - 1]
            atoms[rows, place] += atoms[rows, place - 1]
            atoms[rows, place - 1] = 0.0
        elements[:, :-1][repeated] = _ABSENT
        elements, atoms = _sort_elements(elements, atoms)
    totals = atoms.sum(axis=1, keepdims=True)
    empty = np.flatnonzero(~(totals[:, 0] > 0))
    if len(empty):
        raise InputDataError(f"composition {empty[0]} of {len(elements):,} has no atoms.")
    elements[elements == _ABSENT] = 0
    return elements, atoms / totals


def pack_systems(elements: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Write the elements of each row as one integer.

    Args:
        elements: Atomic numbers, shape (..., k); ascending, with 0 anywhere for none. At most nine
            are not 0.

    Returns:
        Seven bits for each element, the last one in the lowest bits, shape (...).

    Raises:
        InputDataError: A row has more than nine elements.
    """
    if elements.shape[-1] > MOST_ELEMENTS and ((elements > 0).sum(axis=-1) > MOST_ELEMENTS).any():
        raise InputDataError(f"a composition has more than {MOST_ELEMENTS} elements.")
    packed = np.zeros(elements.shape[:-1], dtype=np.uint64)
    for place in range(elements.shape[-1]):
        number = elements[..., place].astype(np.uint64)
        packed = np.where(number > 0, (packed << _BITS) | number, packed)
    return packed


def unpack_systems(systems: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return the elements of packed systems.

    Args:
        systems: What `pack_systems` returns, shape (n,).

    Returns:
        Atomic numbers, ascending, 0 beyond, shape (n, 9).
    """
    shifts = _BITS * np.arange(MOST_ELEMENTS, dtype=np.uint64)
    numbers = ((systems[:, None] >> shifts) & np.uint64(127)).astype(np.uint8)
    numbers[numbers == 0] = _ABSENT
    numbers.sort(axis=1)
    numbers[numbers == _ABSENT] = 0
    return numbers


def _sort_elements(
    elements: NDArray[np.uint8], atoms: NDArray[np.float64]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    order = np.argsort(elements, axis=1, kind="stable")
    return np.take_along_axis(elements, order, axis=1), np.take_along_axis(atoms, order, axis=1)


def _strings(values: Sequence[str]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _lists(values: NDArray[np.float64]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(values).ravel()), values.shape[1]
    )


def _unlist(column: pa.FixedSizeListArray) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.flatten().to_numpy()
    return values.reshape(len(column), column.type.list_size)
