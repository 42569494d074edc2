"""What is known of a composition: under which id, at which energy and in which structure.

Known compounds are those of the model's training data and, where a campaign has a file of
references, these too. Both are joined once into a table with one row a composition; candidates are
looked up by their reduced formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from prototypes import Prototype
from screening.composition_distance import (
    Compositions,
    NearestComposition,
    find_placed,
    read_compositions,
)
from screening.phases import Phases
from screening.training_table import SEPARATOR, TrainingTable, name_structure_type

SAME_ENERGY: Final = 0.001
"""eV/atom: energies of a training table are rounded to this, so nearer ones count as equal."""

DECIMALS: Final = 6

SOURCES: Final = np.array(["", "training", "references", "both"], dtype=object)
"""Where a composition is known from."""


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of m compositions.

    Attributes:
        known: Whether there is a known compound of this composition, shape (m,).
        source: "training", "references", "both" or "", shape (m,), str.
        ids: Identifier of the known compound of lowest energy, "" where there is none, shape (m,).
        energies: Its formation energy, eV/atom, NaN where it is not known, shape (m,).
        in_prototype: Whether the composition is known in the structure type asked for, shape (m,),
            True, False or None: unknown composition, or a type that cannot be told.
    """

    known: NDArray[np.bool_]
    source: NDArray[np.object_]
    ids: NDArray[np.object_]
    energies: NDArray[np.float64]
    in_prototype: NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class KnownCompounds:
    """The n compositions of which a compound is known, in alphabetical order.

    Attributes:
        formulas: Reduced formulas, each once, shape (n,), str.
        sources: Index into `SOURCES`, shape (n,), uint8.
        ids: Identifier of the compound of lowest energy, "" where there is none, shape (n,), str.
        energies: Its formation energy, eV/atom, NaN where none is known, shape (n,).
        types: Structure types as in `TrainingTable`, "" of a composition of the references alone,
            shape (n,), str.
        all_types_known: As in `TrainingTable`, shape (n,).
    """

    formulas: NDArray[np.object_]
    sources: NDArray[np.uint8]
    ids: NDArray[np.object_]
    energies: NDArray[np.float64]
    types: NDArray[np.object_]
    all_types_known: NDArray[np.bool_]

    def __len__(self) -> int:
        """Number of known compositions."""
        return len(self.formulas)

    @classmethod
    def of(cls, training: TrainingTable, references: Phases | None = None) -> KnownCompounds:
        """Join training data and references.

        Where both have a composition, the compound of lower energy tells id and energy; the
        training data's where they agree to 0.001 eV/atom. Where the training table has no energy,
        the references' counts, and their id if they have one.

        Args:
            training: What the model was trained on.
            references: Phases of a file of references; the first column of their energies counts.
        """
        other = np.empty(0, dtype=object) if references is None else references.formulas
        formulas, place = np.unique(np.concatenate([training.formulas, other]), return_inverse=True)
        trained, referred = place[: len(training)], place[len(training) :]
        rows = len(formulas)
        sources = np.zeros(rows, dtype=np.uint8)
        ids = np.full(rows, "", dtype=object)
        energies = np.full(rows, np.nan)
        types = np.full(rows, "", dtype=object)
        all_types_known = np.zeros(rows, dtype=np.bool_)
        sources[trained] = 1
        ids[trained] = training.ids
        energies[trained] = training.energies
        types[trained] = training.types
        all_types_known[trained] = training.all_types_known
        if references is not None:
            sources[referred] |= 2
            energy = references.energies[:, 0]
            # from high to low, so that the lowest of a formula is the last to be written
            order = np.argsort(-energy, kind="stable")
            lowest = np.full(rows, np.inf)
            label = np.full(rows, "", dtype=object)
            lowest[referred[order]] = energy[order]
            label[referred[order]] = references.labels[order]
            lower = lowest < np.where(np.isnan(energies), np.inf, energies - SAME_ENERGY)
            named = lower & ((label != "") | ~np.isnan(energies))
            energies[lower], ids[named] = lowest[lower], label[named]
        return cls(formulas, sources, ids, energies, types, all_types_known)

    def find(self, formulas: Sequence[str], prototype: Prototype | None = None) -> Known:
        """Look compositions up.

        Args:
            formulas: Reduced formulas in pymatgen's convention, length m.
            prototype: The structure type to ask for; None asks for none.
        """
        index = self._rows
        rows = np.fromiter((index.get(formula, -1) for formula in formulas), np.int64)
        known = rows >= 0
        found = rows[known]

        def spread(values: NDArray[np.object_], empty: object) -> NDArray[np.object_]:
            column = np.full(len(rows), empty, dtype=object)
            column[known] = values[found]
            return column

        energies = np.full(len(rows), np.nan)
        energies[known] = self.energies[found]
        return Known(
            known,
            spread(SOURCES[self.sources], ""),
            spread(self.ids, ""),
            energies,
            spread(self._in_prototype(prototype), None),
        )

    def find_nearest(
        self, numbers: NDArray[np.integer], amounts: ArrayLike
    ) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """The nearest other known composition, by the element mover's distance.

        Args:
            numbers: Atomic numbers up to 103, 0 where there is no element, shape (m, k).
            amounts: Atoms of each in any multiple, shape (m, k) or, alike for all, (k,).

        Returns:
            Its formula, None where nothing else is known, and the distance to it (infinite then),
            each of shape (m,). Known compositions of elements beyond Lr have no distance and are
            no neighbours.
        """
        rows, search = self._nearest
        nearest, distances = search.find(Compositions.of(numbers, amounts))
        formulas = np.full(len(nearest), None, dtype=object)
        formulas[nearest >= 0] = self.formulas[rows[nearest[nearest >= 0]]]
        return formulas, distances

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {formula: row for row, formula in enumerate(self.formulas)}

    @cached_property
    def _nearest(self) -> tuple[NDArray[np.int64], NearestComposition]:
        """Rows of the compositions that have a place on the scale of elements, and their search."""
        numbers, amounts = read_compositions(self.formulas.tolist())
        rows = np.flatnonzero(find_placed(numbers))
        return rows, NearestComposition.of(Compositions.of(numbers[rows], amounts[rows]))

    @cached_property
    def _type_sets(self) -> tuple[list[list[str]], NDArray[np.int64]]:
        """The sets of structure types that occur, and which of them each composition has."""
        distinct, place = np.unique(self.types, return_inverse=True)
        return [types.split(SEPARATOR) for types in distinct], place

    def _in_prototype(self, prototype: Prototype | None) -> NDArray[np.object_]:
        """Whether each known composition has the structure type, None where it cannot be told."""
        name = None if prototype is None else name_structure_type(prototype)
        sets, place = self._type_sets
        has = np.array([name in types for types in sets], dtype=np.bool_)
        answer = np.full(len(self), None, dtype=object)
        if has.any():  # what no known structure has, nobody looked for
            answer[self.all_types_known] = False
            answer[has[place]] = True
        return answer


def tabulate_known(
    compounds: KnownCompounds, formulas: Sequence[str], prototype: Prototype
) -> dict[str, pa.Array]:
    """The columns that say what is known of the decorations of a prototype.

    Args:
        compounds: The known compounds.
        formulas: Reduced formula of each of m candidates.
        prototype: The prototype.

    Returns:
        Columns of `screening.columns`, by name: `known` and its details up to the nearest ones.
    """
    found = compounds.find(formulas, prototype)
    return {
        "known": pa.array(found.known, pa.bool_()),
        "known_id": pa.array([name or None for name in found.ids], pa.string()),
        "known_formation_enthalpy_ev_per_atom": pa.array(
            found.energies.round(DECIMALS), pa.float64(), from_pandas=True
        ),
        "known_in_prototype": pa.array(found.in_prototype.tolist(), pa.bool_()),
    }


def tabulate_nearest(
    compounds: KnownCompounds, numbers: NDArray[np.integer], amounts: ArrayLike
) -> dict[str, pa.Array]:
    """The columns of the nearest other known composition; by far the dearest ones of all.

    Args:
        compounds: The known compounds.
        numbers: Atomic number on each role, shape (m, k).
        amounts: Atoms of each role, shape (k,).

    Returns:
        Columns of `screening.columns`, by name.
    """
    nearest, distances = compounds.find_nearest(numbers, amounts)
    return {
        "nearest_known_formula": pa.array(nearest.tolist(), pa.string()),
        "nearest_known_distance": pa.array(distances.round(DECIMALS), mask=~np.isfinite(distances)),
    }
