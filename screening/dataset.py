"""Training data: reading the tables, keeping the protocol, and naming exactly what was used.

A training set is made from one or more Parquet files, each either a table of structures (columns
``lattice``, ``species``, ``frac_coords``) or a table of the 271 feature columns, with an ``id``,
a ``formula`` and a column to learn beside them. Rows never leave silently: every row read is
either in the training set or counted under the reason it was dropped for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from screening.classification import (
    Labels,
    cut_in_two,
    drop_empty_classes,
    merge_labels,
    read_labels,
)
from screening.crystal import Crystal
from screening.errors import ConfigurationError, InputDataError, suggest
from screening.feature_tables import Features
from screening.features.schema import FEATURES
from screening.model_card import hash_file
from screening.parquet import read_columns, read_frame, read_names, read_numbers
from screening.phases import LONGEST_FORMULA, shorten
from screening.printing import count_things
from screening.structures import STRUCTURE_COLUMNS, read_structure_table
from screening.training_table import read_structure_types

DEFAULT_TARGET = "formation_energy_per_atom"
STRUCTURE_TYPE_COLUMN = "structure_type"
"""Names of prototypes, for the model to say in which types a composition is known."""

CROSS_CHECK_COLUMN = "dE_matbench"
CROSS_CHECK_TOLERANCE = 0.02
"""eV/atom: rows whose energy differs more than this from an independent table are dropped."""

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class DataFile:
    """One file that a training set came from.

    Attributes:
        name: File name without its folder.
        sha256: Hash of the file's bytes.
        rows: Rows in the file.
    """

    name: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Protocol:
    """Which rows of the data take part in training.

    Attributes:
        target: Name of the column to learn.
        excluded_formulas: Reduced formulas that must not be trained on (the evaluation set).
        max_sites: Largest number of sites of a structure, or None for no limit.
        drop_missing_energies: Count and drop rows without a finite target instead of refusing.
        cross_check_tolerance: Rows whose ``dE_matbench`` is larger (eV/atom) are dropped where the
            data has that column; None keeps them.
        weights: Name of a column of sample weights, or None where all rows weigh the same.
        classes: Whether the target holds classes, not numbers.
        split_at: Cuts a target of numbers into the classes "at most" and "above" this; None where
            it holds texts or truth values.
    """

    target: str = DEFAULT_TARGET
    excluded_formulas: frozenset[str] = frozenset()
    max_sites: int | None = None
    drop_missing_energies: bool = False
    cross_check_tolerance: float | None = CROSS_CHECK_TOLERANCE
    weights: str | None = None
    classes: bool = False
    split_at: float | None = None


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on, before or after their features are known.

    Attributes:
        ids: Identifier of each row, unique.
        formulas: Reduced formula of each row (pymatgen's convention).
        target: What is to be learnt, shape (n,); eV/atom where it is an energy, the number of the
            row's class where there are classes.
        crystals: The structures, or None where the data held features.
        features: Shape (n, 271) float32 in the order of ``FEATURES``, or None before featurizing.
        sources: The files that were read.
        dropped: Number of rows left out, by reason.
        weights: Sample weights, shape (n,), none negative; None where all rows weigh the same.
        structure_types: Structure type of each row as `screening.training_table` names it, "" for
            none of the program's prototypes, None where that is not known; None for all unknown.
        classes: Names of the classes, empty where the target is a number.
    """

    ids: tuple[str, ...]
    formulas: tuple[str, ...]
    target: FloatArray
    crystals: tuple[Crystal, ...] | None
    features: NDArray[np.float32] | None
    sources: tuple[DataFile, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)
    weights: FloatArray | None = None
    structure_types: tuple[str | None, ...] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def select(self, rows: IntArray, reason: str | None = None) -> TrainingSet:
        """The given rows, in the given order.

        Args:
            rows: Row numbers to keep, shape (m,).
            reason: Why the others go; None where they are used elsewhere and are not dropped.

        Returns:
            A training set of m rows; with a reason, the rest are added to ``dropped``.
        """
        dropped = Counter(self.dropped)
        if reason is not None and len(rows) < len(self):
            dropped[reason] += len(self) - len(rows)
        return replace(
            self,
            ids=tuple(self.ids[i] for i in rows),
            formulas=tuple(self.formulas[i] for i in rows),
            target=self.target[rows],
            crystals=None if self.crystals is None else tuple(self.crystals[i] for i in rows),
            features=None if self.features is None else self.features[rows],
            dropped=dict(dropped),
            weights=None if self.weights is None else self.weights[rows],
            structure_types=(
                None
                if self.structure_types is None
                else tuple(self.structure_types[i] for i in rows)
            ),
        )

    def content_hash(self) -> str:
        """Hash of all that a model can learn from: names, features or structures, target, classes.

        Returns:
            64 hexadecimal digits, the same whatever the files were called; the order counts.
        """
        digest = hashlib.sha256()
        digest.update("\n".join(self.ids).encode())
        digest.update("\n".join(self.formulas).encode())
        digest.update(np.ascontiguousarray(self.target, dtype="<f8").tobytes())
        if self.features is not None:
            digest.update("\n".join(FEATURES).encode())
            digest.update(np.ascontiguousarray(self.features, dtype="<f4").tobytes())
        else:
            for crystal in self.crystals or ():
                digest.update(np.ascontiguousarray(crystal.lattice, dtype="<f8").tobytes())
                digest.update(np.ascontiguousarray(crystal.numbers, dtype="<i8").tobytes())
                digest.update(np.ascontiguousarray(crystal.frac_coords, dtype="<f8").tobytes())
        if self.weights is not None:
            digest.update(b"weights")
            digest.update(np.ascontiguousarray(self.weights, dtype="<f8").tobytes())
        if self.classes:
            digest.update("\n".join(["classes", *self.classes]).encode())
        return digest.hexdigest()

    def formula_groups(self) -> IntArray:
        """A number per row, equal for rows of one reduced formula, shape (n,)."""
        return np.unique(np.array(self.formulas, dtype=object), return_inverse=True)[1].astype(
            np.int64
        )


def read_training_set(paths: Sequence[Path], protocol: Protocol) -> TrainingSet:
    """Read data files and apply the protocol.

    Args:
        paths: Parquet files, all of structures or all of features.
        protocol: Which rows take part.

    Returns:
        The rows that take part, in the order of the files, with every other row counted.

    Raises:
        InputDataError: A file is missing or unreadable, lacks a needed column, has targets that
            are no numbers or no classes (unless the protocol drops them) or weights that are none,
            repeats an id, nothing is left, or the target or the weights leave nothing to learn.
    """
    if not paths:
        raise InputDataError("no data file given. Give one or more Parquet files of structures.")
    parts = [_read_file(Path(path), protocol) for path in paths]
    kinds = {part.features is not None for part in parts}
    if len(kinds) > 1:
        raise InputDataError(
            "some data files hold structures and others hold features. "
            "Give files of one kind, or structures together with --features."
        )
    whole = _concatenate(parts)
    repeated = [name for name, count in Counter(whole.ids).items() if count > 1]
    if repeated:
        raise InputDataError(
            f"{len(repeated)} ids occur more than once in the data, the first is {repeated[0]!r}. "
            "Give each file once, and make ids unique."
        )
    if protocol.excluded_formulas:
        excluded = protocol.excluded_formulas
        kept = [i for i, name in enumerate(whole.formulas) if name not in excluded]
        whole = whole.select(np.array(kept, dtype=np.int64), "formula of the evaluation set")
    if not len(whole):
        dropped = ", ".join(f"{count:,} {why}" for why, count in whole.dropped.items())
        raise InputDataError(
            f"no row is left to train on (dropped: {dropped}). Give more data."
            if dropped
            else "the data have no rows. Give other files."
        )
    if whole.classes:
        left = drop_empty_classes(Labels(whole.target, whole.classes))
        whole = replace(whole, target=left.numbers, classes=left.classes)
    _check_learnable(whole, protocol)
    return whole


def refuse_second_features(data: TrainingSet, table: Path | None) -> None:
    """Refuse a feature table for rows whose files hold features already.

    Args:
        data: The rows.
        table: The feature table that was given, or None.

    Raises:
        InputDataError: Both are there: which ones count cannot be told.
    """
    if table is not None and data.features is not None:
        raise InputDataError(
            f"--features {table}: the data files hold features themselves. Leave --features out, "
            "or give files of structures."
        )


def attach_features(data: TrainingSet, features: Features) -> TrainingSet:
    """Join features to the rows of a training set.

    Args:
        data: The rows.
        features: Of these rows and perhaps of others. Rows that failed are counted as such.

    Returns:
        The rows that have features, all finite, in the order of ``data``.

    Raises:
        InputDataError: No row has features, or none has finite ones.
    """
    position = {name: i for i, name in enumerate(features.ids)}
    reasons = {failure.id: failure.reason for failure in features.failures}
    kept = np.array([i for i, name in enumerate(data.ids) if name in position], dtype=np.int64)
    if not len(kept):
        raise InputDataError(
            "none of the rows has features"
            + (f"; the first failed with: {next(iter(reasons.values()))}" if reasons else "")
            + ". Check that the ids of the feature table are those of the data."
        )
    lost = [name for name in data.ids if name not in position]
    failed = sum(name in reasons for name in lost)
    dropped = Counter(data.dropped)
    if failed:
        dropped["could not be featurized"] += failed
    if len(lost) > failed:
        dropped["not in the feature table"] += len(lost) - failed
    values = features.values[[position[data.ids[i]] for i in kept]].astype(np.float32)
    joined = replace(data.select(kept), features=values, dropped=dict(dropped))
    finite = np.flatnonzero(np.isfinite(values).all(axis=1))
    if not len(finite):
        column = FEATURES[int(np.flatnonzero(~np.isfinite(values[0]))[0])]
        raise InputDataError(
            f"no row has features that are all finite: {column!r} of {joined.ids[0]!r} is "
            f"{values[0][FEATURES.index(column)]:g}. Make the table with: screening featurize"
        )
    return joined.select(finite, "feature that is not finite")


def split_by_formula(
    formulas: Sequence[str], fraction: float, seed: int
) -> tuple[IntArray, IntArray]:
    """Split rows so that no reduced formula is on both sides.

    Args:
        formulas: Reduced formula of each row, length n.
        fraction: Share of the formulas to hold out, 0 to below 1.
        seed: Which formulas.

    Returns:
        Row numbers to train on and row numbers held out, each ascending.

    Raises:
        ConfigurationError: The fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigurationError(
            f"the held-out fraction is {fraction}; it must be at least 0 and below 1"
        )
    unique, codes = np.unique(np.array(formulas, dtype=object), return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(unique))[: round(fraction * len(unique))]
    held_out = np.isin(codes, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def read_formulas(path: Path) -> frozenset[str]:
    """Read formulas to keep out of training, as reduced formulas.

    Args:
        path: A Parquet or CSV file with a ``formula`` column, or a text file with one per line.

    Returns:
        The reduced formulas.

    Raises:
        InputDataError: The file is missing, lacks the column, or holds what is no formula.
    """
    try:
        if path.suffix == ".parquet":
            names = read_names(path)
            require_columns(names, ["formula"], path)
            listed = read_frame(path, ["formula"])["formula"].tolist()
        elif path.suffix == ".csv":
            table = pd.read_csv(path, keep_default_na=False)
            require_columns(list(table.columns), ["formula"], path)
            listed = table["formula"].tolist()
        else:
            lines = path.read_text().splitlines()
            listed = [line.strip() for line in lines if line.strip()]
    except (
        OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError
    ) as error:  # fmt: skip
        raise InputDataError(f"cannot read formulas from {path}: {error}") from error
    return frozenset(reduce_formula(str(name), where=path) for name in listed)


@lru_cache(maxsize=1 << 17)
def reduce_formula(formula: str, where: Path | None = None) -> str:
    """The reduced formula in pymatgen's convention.

    Args:
        formula: Any formula, such as ``Al2Cu2``.
        where: The file it came from, for the message.

    Returns:
        For example ``AlCu``.

    Raises:
        InputDataError: It is not a formula.
    """
    from pymatgen.core.composition import Composition

    try:
        if len(formula) > LONGEST_FORMULA:
            raise ValueError("too long")
        composition = Composition(formula)
        if not composition.valid:
            raise ValueError("unknown element")
        return str(composition.reduced_formula)
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        place = f" in {where}" if where else ""
        raise InputDataError(f"{shorten(formula)}{place} is not a chemical formula.") from error


def require_columns(present: Iterable[str], needed: Iterable[str], path: Path) -> None:
    """Refuse a table that lacks a column, naming the nearest one that it has.

    Args:
        present: Columns of the table.
        needed: Columns that must be among them.
        path: The file, for the message.

    Raises:
        InputDataError: A column is missing.
    """
    names = list(present)
    for name in needed:
        if name not in names:
            hint = suggest(name, names) or f"; it has {', '.join(names[:20])}"
            raise InputDataError(f"{path} has no column {name!r}{hint}")


def read_energies(column: pd.Series[Any], path: Path) -> FloatArray:
    """The numbers of a column, of energies most often.

    Args:
        column: The column, length n.
        path: The file, for the message.

    Returns:
        Shape (n,), NaN where there is none.

    Raises:
        InputDataError: The column holds something else than numbers.
    """
    try:
        return column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputDataError(f"{path}: column {column.name!r} does not hold numbers.") from error


def _check_learnable(data: TrainingSet, protocol: Protocol) -> None:
    if len(data) > 1 and np.ptp(data.target) == 0:
        only = repr(data.classes[0]) if data.classes else f"{data.target[0]:g}"
        raise InputDataError(
            f"column {protocol.target!r} is {only} in all {len(data):,} rows: there "
            "is nothing to learn. Name the column to learn with --target."
        )
    if data.weights is not None and not data.weights.any():
        raise InputDataError(
            f"column {protocol.weights!r} is 0 in all {len(data):,} rows. Give some rows a weight, "
            "or leave --weights out."
        )


def _read_weights(column: pd.Series[Any], ids: Sequence[str], path: Path) -> FloatArray:
    weights = read_energies(column, path)
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise InputDataError(
            f"{path}: {len(wrong)} rows have a {column.name!r} that is no sample weight, the first "
            f"is {ids[wrong[0]]!r} with {weights[wrong[0]]:g}. Weights are finite and not negative."
        )
    return weights


def _read_types(column: pd.Series[Any], path: Path) -> list[str | None]:
    names = [
        None if missing else str(name) for name, missing in zip(column, column.isna(), strict=True)
    ]
    return read_structure_types(names, path)


def _read_file(path: Path, protocol: Protocol) -> TrainingSet:
    columns = read_names(path)
    has_features = set(FEATURES) <= set(columns)
    light_columns = ["id", protocol.target, *([protocol.weights] if protocol.weights else [])]
    needed = ["formula"] if has_features else list(STRUCTURE_COLUMNS)
    require_columns(columns, [*light_columns, *needed], path)
    optional = [name for name in (CROSS_CHECK_COLUMN, STRUCTURE_TYPE_COLUMN) if name in columns]
    light = read_frame(path, list(dict.fromkeys([*light_columns, *optional])))
    if has_features and protocol.max_sites is not None:
        raise InputDataError(
            f"{path} holds features, which do not say how many sites a structure has: give the "
            "structures (with --features, if they are featurized), or leave --max-sites out."
        )
    source = DataFile(path.name, hash_file(path), len(light))
    ids = [str(name) for name in read_columns(path, ["id"])["id"].to_pylist()]
    target, classes = _read_target(light[protocol.target], path, protocol)
    weights = _read_weights(light[protocol.weights], ids, path) if protocol.weights else None
    types = (
        _read_types(light[STRUCTURE_TYPE_COLUMN], path) if STRUCTURE_TYPE_COLUMN in light else None
    )

    dropped: Counter[str] = Counter()
    keep = np.ones(len(light), dtype=bool)

    def drop(mask: NDArray[np.bool_], reason: str) -> None:
        count = int((keep & mask).sum())
        if count:
            dropped[reason] += count
        keep[mask] = False

    missing = ~np.isfinite(target)
    if missing.any() and not protocol.drop_missing_energies:
        first = ids[int(np.flatnonzero(missing)[0])]
        named = protocol.classes and protocol.split_at is None
        lacking = "label in" if named else "finite"
        raise InputDataError(
            f"{path}: {count_things(int(missing.sum()), 'row')} without a {lacking} "
            f"{protocol.target!r}, the first is {first!r}. Remove them, or count and drop them "
            "with --drop-missing-energies."
        )
    drop(missing, "no label" if protocol.classes else "no energy")
    if CROSS_CHECK_COLUMN in light and protocol.cross_check_tolerance is not None:
        difference = np.abs(read_energies(light[CROSS_CHECK_COLUMN], path))
        tolerance = protocol.cross_check_tolerance
        drop(
            np.asarray(np.nan_to_num(difference) > tolerance, dtype=np.bool_),
            f"energy more than {tolerance:g} eV/atom from an independent table",
        )

    if has_features:
        table = read_frame(path, ["formula", *FEATURES])
        features = read_numbers(table[list(FEATURES)], path).astype(np.float32)
        finite = np.asarray(np.isfinite(features).all(axis=1), dtype=np.bool_)
        drop(~finite, "feature that is not finite")
        formulas = [reduce_formula(str(name), where=path) for name in table["formula"]]
        rows = np.flatnonzero(keep)
        return TrainingSet(
            tuple(ids[i] for i in rows),
            tuple(formulas[i] for i in rows),
            target[rows],
            None,
            features[rows],
            (source,),
            dict(dropped),
            None if weights is None else weights[rows],
            None if types is None else tuple(types[i] for i in rows),
            classes,
        )

    structures, failures = read_structure_table(path)
    reasons = {failure.id: failure.reason for failure in failures}
    by_id = {crystal.id: crystal for crystal in structures}
    drop(np.array([name in reasons for name in ids], dtype=bool), "unreadable structure")
    if protocol.max_sites is not None:
        limit = protocol.max_sites
        too_large = [name in by_id and len(by_id[name].numbers) > limit for name in ids]
        drop(np.array(too_large, dtype=bool), f"more than {limit} sites")
    rows = np.flatnonzero(keep)
    crystals = tuple(by_id[ids[i]] for i in rows)
    return TrainingSet(
        tuple(ids[i] for i in rows),
        tuple(crystal.formula for crystal in crystals),
        target[rows],
        crystals,
        None,
        (source,),
        dict(dropped),
        None if weights is None else weights[rows],
        None if types is None else tuple(types[i] for i in rows),
        classes,
    )


def _read_target(
    column: pd.Series[Any], path: Path, protocol: Protocol
) -> tuple[FloatArray, tuple[str, ...]]:
    """Numbers of a column, or of its classes, NaN where a row has none; and their names."""
    if not protocol.classes:
        if pd.api.types.is_bool_dtype(column):
            raise InputDataError(
                f"{path}: column {protocol.target!r} holds truth values, no numbers; learn them as "
                "classes, with: screening train --loss cross_entropy"
            )
        return read_energies(column, path), ()
    if protocol.split_at is None:
        labels = read_labels(column, path)
    else:
        labels = cut_in_two(read_energies(column, path), protocol.split_at)
    return labels.numbers, labels.classes


def _concatenate(parts: Sequence[TrainingSet]) -> TrainingSet:
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    crystals = [part.crystals for part in parts if part.crystals is not None]
    features = [part.features for part in parts if part.features is not None]
    weights = [part.weights for part in parts if part.weights is not None]
    target = np.concatenate([part.target for part in parts])
    classes: tuple[str, ...] = ()
    if any(part.classes for part in parts):
        labels = merge_labels([Labels(part.target, part.classes) for part in parts])
        target, classes = labels.numbers, labels.classes
    return TrainingSet(
        tuple(name for part in parts for name in part.ids),
        tuple(name for part in parts for name in part.formulas),
        target,
        tuple(c for part in crystals for c in part) if crystals else None,
        np.concatenate(features) if features else None,
        tuple(source for part in parts for source in part.sources),
        dict(dropped),
        np.concatenate(weights) if weights else None,
        _concatenate_types(parts),
        classes,
    )


def _concatenate_types(parts: Sequence[TrainingSet]) -> tuple[str | None, ...] | None:
    if all(part.structure_types is None for part in parts):
        return None
    return tuple(name for part in parts for name in part.structure_types or (None,) * len(part))
