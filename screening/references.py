"""Reference phases from a user's file: read, checked, and recorded with what was noticed.

A reference is a composition with its formation energy per atom. What cannot be read or cannot be
meant is an error; what can be put right (duplicates, unreduced formulas, elements) is put right and
noted with its number, so that nothing happens in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isnan
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from prototypes import SYMBOLS, reduced_formula
from screening.errors import InputDataError, suggest, suggest_file
from screening.model_card import hash_file
from screening.parquet import read_frame, read_names
from screening.phases import MOST_ELEMENTS, Composition, Phases, count_atoms, reduce_amounts

FORMULA_COLUMN: Final = "formula"
ENERGY_COLUMNS: Final = ("formation_energy_per_atom", "formation_enthalpy_ev_per_atom")
ID_COLUMNS: Final = ("id", "material_id")

LARGEST_ENERGY: Final = 6.0
"""eV/atom: no compound's formation energy is larger in size. The 84,484 lowest ones of the
Materials Project (2018-2020) go down to -4.6, those of thorium oxides."""

FEW: Final = 0.01
"""Share of energies beyond `LARGEST_ENERGY` that are taken for single mistakes and left out."""

ELEMENT_TOLERANCE: Final = 1e-6
"""eV/atom: an element's energy counts as 0 up to this."""

MOST_NEGATIVE_ELEMENT: Final = -0.01
"""eV/atom: an element below this shows that the energies are no formation energies."""

CONTRADICTION: Final = 1.0
"""eV/atom: energies of one composition that differ by more are not those of two polymorphs."""

_GROWTH: Final = 0.5
"""Correlation of energies with atoms above which they count as energies of whole formulas: 0.8 for
those of the Materials Project, 0.3 for its energies per atom."""

_ENTRY_CLASSES: Final = ("ComputedEntry", "ComputedStructureEntry", "PDEntry")
_SHOWN: Final = 5
_FINEST_AMOUNT: Final = 10_000
"""Largest denominator of an amount: amounts are small whole numbers but for rounding."""


@dataclass(frozen=True, eq=False)
class References:
    """Reference phases with their source.

    Attributes:
        phases: The lowest phase of each composition, without elements; one energy column.
        path: The file.
        sha256: Hash of its bytes.
        functional: What the user says that the energies were computed with, None if nothing.
        entries: Rows of the file.
        notes: What was noticed and put right, a sentence each.
    """

    phases: Phases
    path: Path
    sha256: str
    functional: str | None
    entries: int
    notes: tuple[str, ...]

    def missing(self, numbers: Iterable[int]) -> tuple[str, ...]:
        """Return the symbols of the elements that no reference phase contains.

        Compounds of them compete with the element itself, at 0, alone.

        Args:
            numbers: Atomic numbers, those of the candidates.
        """
        absent = {int(number) for number in numbers} - self.phases.elements
        return tuple(SYMBOLS[number - 1] for number in sorted(absent - {0}))

    def compare_functional(self, functional: str | None) -> str | None:
        """Compare the declared functional with the one that a model was trained on.

        Args:
            functional: That of the model's training data, None if it is not known.

        Returns:
            A warning where both are known and differ, else None.
        """
        if self.functional is None or functional is None:
            return None
        if _fold(self.functional) == _fold(functional):
            return None
        return (
            f"the references in {self.path} are {self.functional} energies and the model predicts "
            f"{functional} energies: energies above hull mix the two. Give references of "
            f"{functional}, or shift yours to it."
        )

    def list_remarks(self, numbers: Iterable[int], functional: str | None) -> list[str]:
        """List what a user should know before energies above hull are computed.

        Args:
            numbers: Atomic numbers that occur in the compounds.
            functional: That of the model's training data, None if it is not known.

        Returns:
            Sentences: what was put right in the file, another functional, elements that are
            missing.
        """
        remarks = list(self.notes)
        warning = self.compare_functional(functional)
        if warning is not None:
            remarks.append(f"Warning: {warning}")
        missing = self.missing(numbers)
        if missing:
            remarks.append(
                f"no reference phase holds {' '.join(missing)}: with these only the elements "
                "compete, at 0 eV/atom"
            )
        return remarks


def read_references(path: Path, functional: str | None = None) -> References:
    """Read reference phases.

    Args:
        path: A Parquet or CSV file with columns ``formula`` and ``formation_energy_per_atom`` or
            ``formation_enthalpy_ev_per_atom`` (eV/atom), and ``id`` or ``material_id`` if there
            is one; or a JSON list of pymatgen entries (total energies, eV), the elements among
            them.
        functional: What the energies were computed with, if the user says so.

    Returns:
        The lowest phase of each composition. Elements are 0 by definition and left out.

    Raises:
        InputDataError: The file is missing, empty, of another kind, lacks a column, holds what is
            no formula or no finite number, or energies that are no formation energies per atom.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_entries}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputDataError(
            f"{path}: references are read from {', '.join(readers)}; its name ends otherwise."
        )
    try:
        rows = reader(path)
        sha256 = hash_file(path)
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "" if path.exists() else suggest_file(path)
        raise InputDataError(f"cannot read references from {path}: {reason}{hint}") from error
    entries = len(rows)
    notes: list[str] = []
    rows = _leave_out_elements(rows, path, notes)
    rows = _check_sizes(rows, path, notes)
    rows = _leave_out_complex(rows, notes)
    rows = _keep_lowest(rows, notes)
    if not len(rows):
        raise InputDataError(f"{path} holds no compound. {' '.join(notes)}".strip())
    return References(
        Phases.of_compositions(rows.compositions, rows.energies, rows.ids),
        path,
        sha256,
        functional,
        entries,
        tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a file, or those that are left of them.

    Attributes:
        places: Number of each row in the file, from 1, shape (n,).
        compositions: What they consist of, length n.
        energies: Formation energies, eV/atom, shape (n,).
        ids: Id of each, "" where there is none, length n.
        atoms: Atoms in each formula as it was written, shape (n,); None where energies were
            divided by them here.
    """

    places: NDArray[np.int64]
    compositions: Sequence[Composition]
    energies: NDArray[np.float64]
    ids: Sequence[str]
    atoms: NDArray[np.float64] | None

    def __len__(self) -> int:
        return len(self.energies)

    def select(self, kept: NDArray[np.bool_]) -> _Rows:
        """Return the rows where a mask is true."""
        chosen = np.flatnonzero(kept).tolist()
        return _Rows(
            self.places[kept],
            [self.compositions[row] for row in chosen],
            self.energies[kept],
            [self.ids[row] for row in chosen],
            None if self.atoms is None else self.atoms[kept],
        )

    def describe(self, row: int) -> str:
        """Say which row this is."""
        name = reduced_formula(*self.compositions[row])
        return f"row {self.places[row]:,} ({name}, {self.energies[row]:g} eV/atom)"


def _read_parquet(path: Path) -> _Rows:
    formula, energy, label = _find_columns(read_names(path), path)
    table = read_frame(path, [formula, energy, *([label] if label else [])])
    return _check_table(table, formula, energy, label, path)


def _read_csv(path: Path) -> _Rows:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError as error:
        raise InputDataError(f"{path} is empty.") from error
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputDataError(f"cannot read {path} as CSV: {error}") from error
    formula, energy, label = _find_columns(list(table.columns), path)
    return _check_table(table, formula, energy, label, path)


def _find_columns(present: Sequence[str], path: Path) -> tuple[str, str, str | None]:
    """Return the columns of formulas, energies and ids."""
    energy = next((name for name in ENERGY_COLUMNS if name in present), ENERGY_COLUMNS[0])
    for needed in (FORMULA_COLUMN, energy):
        if needed not in present:
            unit = "" if needed == FORMULA_COLUMN else f" (nor {ENERGY_COLUMNS[1]!r}; eV/atom)"
            hint = suggest(needed, present) or f"; it has {', '.join(present[:20])}."
            raise InputDataError(f"{path} has no column {needed!r}{unit}{hint}")
    return FORMULA_COLUMN, energy, next((name for name in ID_COLUMNS if name in present), None)


def _check_table(
    table: pd.DataFrame, formula: str, energy: str, label: str | None, path: Path
) -> _Rows:
    """Read formulas and energies of a table, refusing it if any cannot be read."""
    if not len(table):
        raise InputDataError(f"{path} holds no rows.")
    written = [str(value) for value in table[formula]]
    atoms: list[Mapping[int, Fraction | int]] = []
    wrong: list[str] = []
    for place, text in enumerate(written, start=1):
        try:
            atoms.append(count_atoms(text))
        except InputDataError:
            wrong.append(f"row {place:,} ({text!r})")
    _refuse(wrong, path, "no chemical formula", "Correct or remove them.")
    energies = pd.to_numeric(table[energy], errors="coerce").to_numpy(np.float64)
    wrong = [
        f"row {row + 1:,} ({written[row]}, {str(table[energy].iloc[row])!r})"
        for row in np.flatnonzero(~np.isfinite(energies)).tolist()
    ]
    _refuse(wrong, path, f"no finite number in {energy!r}", "Correct or remove them.")
    return _Rows(
        np.arange(1, len(table) + 1),
        [reduce_amounts(each) for each in atoms],
        energies,
        [""] * len(table)
        if label is None
        else [_name(value) for value in table[label].convert_dtypes()],
        np.array([float(sum(each.values())) for each in atoms]),
    )


def _name(value: object) -> str:
    """An id as text, "" where there is none."""
    missing = value is None or value is pd.NA or value is pd.NaT
    return "" if missing or (isinstance(value, float) and isnan(value)) else str(value)


def _read_entries(path: Path) -> _Rows:
    """Read a list of pymatgen entries as plain data, and subtract the elements' energies.

    Only numbers and texts are taken from the file: no class that it names is ever made.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputDataError(
            f"{path} is empty." if not path.stat().st_size else f"cannot read {path}: {error}"
        ) from error
    if not isinstance(entries, list):
        raise InputDataError(f"{path} does not hold a list of pymatgen entries.")
    if not entries:
        raise InputDataError(f"{path} holds no entries.")
    atoms: list[Mapping[int, Fraction | int]] = []
    totals: list[float] = []
    wrong: list[str] = []
    for place, entry in enumerate(entries, start=1):
        try:
            counted, total = _read_entry(entry)
        except InputDataError as error:
            wrong.append(f"row {place:,} ({error})")
        else:
            atoms.append(counted)
            totals.append(total)
    _refuse(wrong, path, "no pymatgen entry", "Write the list with each entry's as_dict().")
    sizes = np.array([float(sum(counted.values())) for counted in atoms])
    energies = np.array(totals) / sizes
    elements: dict[int, float] = {}
    for counted, energy in zip(atoms, energies.tolist(), strict=True):
        if len(counted) == 1:
            (number,) = counted
            elements[number] = min(energy, elements.get(number, energy))
    needed = sorted({number for counted in atoms for number in counted} - set(elements))
    if needed:
        symbols = ", ".join(SYMBOLS[number - 1] for number in needed)
        raise InputDataError(
            f"{path} holds total energies, and no entry of the element{'s' * (len(needed) > 1)} "
            f"{symbols}: without, there is no formation energy. Add the elements' entries."
        )
    mixed = [
        sum(float(amount) * elements[number] for number, amount in counted.items())
        for counted in atoms
    ]
    formation = energies - np.array(mixed) / sizes
    return _Rows(
        np.arange(1, len(entries) + 1),
        [reduce_amounts(counted) for counted in atoms],
        formation,
        [str(entry.get("entry_id") or "") for entry in entries],
        None,
    )


def _read_entry(entry: object) -> tuple[Mapping[int, Fraction | int], float]:
    """Return the atoms of an entry and its total energy with corrections, eV."""
    if not isinstance(entry, dict):
        raise InputDataError("not an object")
    kind = entry.get("@class", _ENTRY_CLASSES[0])
    if kind not in _ENTRY_CLASSES:
        raise InputDataError(f"class {kind!r}; known are {', '.join(_ENTRY_CLASSES)}")
    composition = entry.get("composition")
    if isinstance(composition, dict):
        atoms = _count_amounts(composition)
    elif isinstance(composition, str):
        atoms = count_atoms(composition)
    else:
        raise InputDataError("without a composition")
    correction = entry.get("correction")
    if correction is None and entry.get("energy_adjustments"):
        raise InputDataError("energy_adjustments without their sum, correction")
    total = _read_number(entry, "energy")
    return atoms, total if correction is None else total + _read_number(entry, "correction")


def _read_number(entry: Mapping[str, object], name: str) -> float:
    value = entry.get(name)
    if not isinstance(value, int | float) or not isfinite(value):
        raise InputDataError(f"{name} is {value!r}")
    return float(value)


def _count_amounts(composition: Mapping[str, object]) -> Mapping[int, Fraction | int]:
    """Return the atoms of a composition that is written as symbols with amounts."""
    atoms: dict[int, Fraction | int] = {}
    for symbol, amount in composition.items():
        if not isinstance(amount, int | float) or not isfinite(amount) or amount <= 0:
            raise InputDataError(f"amount {amount!r} of {symbol!r}")
        for number, count in count_atoms(symbol).items():
            share = Fraction(amount).limit_denominator(_FINEST_AMOUNT) * count
            atoms[number] = atoms.get(number, 0) + share
    if not atoms:
        raise InputDataError("an empty composition")
    return atoms


def _leave_out_elements(rows: _Rows, path: Path, notes: list[str]) -> _Rows:
    """Leave out elements, which are 0 by definition; refuse the file if they are far below."""
    elements = np.array([len(numbers) == 1 for numbers, _ in rows.compositions], dtype=bool)
    if not elements.any():
        return rows
    lowest = int(np.where(elements, rows.energies, np.inf).argmin())
    if rows.energies[lowest] < MOST_NEGATIVE_ELEMENT:
        raise InputDataError(
            f"{path}: {rows.describe(lowest)} is an element below 0, so these are no formation "
            "energies: those of the elements are 0. Subtract the elements' energies, or give the "
            "total energies as a JSON list of pymatgen entries."
        )
    other = int((elements & (np.abs(rows.energies) > ELEMENT_TOLERANCE)).sum())
    if other:
        notes.append(
            f"left out: {_some(other, 'row')} of elements at another energy than 0; elements are 0 "
            "by definition."
        )
    return rows.select(~elements)


def _check_sizes(rows: _Rows, path: Path, notes: list[str]) -> _Rows:
    """Refuse energies that are too large for formation energies; leave out a few that are."""
    outside = np.abs(rows.energies) > LARGEST_ENERGY
    count = int(outside.sum())
    if not count:
        return rows
    limits = f"outside -{LARGEST_ENERGY:g} to {LARGEST_ENERGY:g} eV/atom"
    first = rows.describe(int(outside.argmax()))
    if count > FEW * len(rows):
        grow = rows.atoms is not None and _grows(np.abs(rows.energies), rows.atoms)
        remedy = (
            "They grow with the number of atoms in the formula: divide them by it, and subtract "
            "the elements' energies if these are total energies."
            if grow
            else "They look like total energies (subtract the elements' energies, or give them as "
            "a JSON list of pymatgen entries) or like kJ/mol (divide by 96.485)."
        )
        raise InputDataError(
            f"{path}: {count / len(rows):.0%} of the energies lie {limits}, where no formation "
            f"energy lies; the first is {first}. {remedy}"
        )
    notes.append(f"left out: {_some(count, 'row')} with an energy {limits}; the first is {first}.")
    return rows.select(~outside)


def _grows(sizes: NDArray[np.float64], atoms: NDArray[np.float64]) -> bool:
    """Whether energies grow with the atoms of their formulas, as energies per formula do."""
    if np.ptp(sizes) == 0 or np.ptp(atoms) == 0:
        return False
    return bool(np.corrcoef(sizes, atoms)[0, 1] > _GROWTH)


def _leave_out_complex(rows: _Rows, notes: list[str]) -> _Rows:
    """Leave out compositions with too many elements for a packed system."""
    too_many = np.array([len(each) > MOST_ELEMENTS for each, _ in rows.compositions], dtype=bool)
    if too_many.any():
        notes.append(
            f"left out: {_some(int(too_many.sum()), 'row')} with more than {MOST_ELEMENTS} "
            f"elements; the first is {rows.describe(int(too_many.argmax()))}."
        )
    return rows.select(~too_many)


def _keep_lowest(rows: _Rows, notes: list[str]) -> _Rows:
    """Keep the lowest row of each composition, and note repetitions and contradictions."""
    if not len(rows):
        return rows
    codes: dict[Composition, int] = {}
    code = np.array([codes.setdefault(each, len(codes)) for each in rows.compositions])
    order = np.lexsort((rows.energies, code))
    ends = np.flatnonzero(np.append(np.diff(code[order]) > 0, True))
    lowest, highest = order[np.append(0, ends[:-1] + 1)], order[ends]
    if len(codes) < len(rows):
        notes.append(
            f"left out: {_some(len(rows) - len(codes), 'row')} of a composition that is listed "
            "again; its lowest energy counts."
        )
    gaps = rows.energies[highest] - rows.energies[lowest]
    apart = int((gaps > CONTRADICTION).sum())
    if apart:
        worst = int(gaps.argmax())
        notes.append(
            f"contradictory: {_some(apart, 'composition')} with energies more than "
            f"{CONTRADICTION:g} eV/atom apart, too far for polymorphs; the worst are "
            f"{rows.describe(int(highest[worst]))} and {rows.describe(int(lowest[worst]))}. The "
            "lower one counts; check which is right."
        )
    _note_repeated_ids(rows, code, notes)
    kept = np.zeros(len(rows), dtype=bool)
    kept[lowest] = True
    return rows.select(kept)


def _note_repeated_ids(rows: _Rows, code: NDArray[np.int64], notes: list[str]) -> None:
    """Note ids that stand for one composition with different energies, or for several."""
    named = pd.DataFrame({"id": rows.ids, "code": code, "energy": rows.energies})
    named = named[named["id"] != ""]
    spread = named.groupby("id", sort=False).agg(
        low=("energy", "min"), high=("energy", "max"), first=("code", "min"), last=("code", "max")
    )
    contradictory = spread[
        (spread["high"] - spread["low"] > ELEMENT_TOLERANCE) | (spread["first"] < spread["last"])
    ]
    if len(contradictory):
        notes.append(
            f"contradictory: {_some(len(contradictory), 'id')} with several energies or "
            "compositions; the first is "
            f"{contradictory.index[0]!r}. Each row counts by itself."
        )


def _refuse(wrong: Sequence[str], path: Path, what: str, remedy: str) -> None:
    """Raise if anything is wrong, naming the first few."""
    if wrong:
        more = f" and {len(wrong) - _SHOWN:,} more" if len(wrong) > _SHOWN else ""
        raise InputDataError(
            f"{path}: {_some(len(wrong), 'row')} with {what}: {', '.join(wrong[:_SHOWN])}{more}. "
            f"{remedy}"
        )


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _fold(name: str) -> str:
    """A functional's name as it is compared: GGA is PBE, and a +U on some elements is no other."""
    folded = "".join(sign for sign in name.casefold() if sign.isalnum() or sign == "+")
    return folded.removesuffix("+u").replace("gga", "pbe")
