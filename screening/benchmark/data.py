"""Data sets of the benchmarks: made from the data folder once, kept as arrays, split by formula.

==========  =====================================================================================
oqmd-sc     271 columns of all structures: stand-in for the paper's OQMD-SC
icsd        the ICSD-flagged ones of these: stand-in for its OQMD-SC-ICSD
mp-c        the 145 composition columns of oqmd-sc without blown-up cells, with further targets:
            stand-in for its MP-C
oqmd-c      145 composition columns of OQMD compositions: stand-in for its OQMD-C
==========  =====================================================================================

Formulas of the evaluation set (the paper's Table 5) are in none of them. A tenth of the formulas is
held out, always the same; oqmd-sc, icsd and mp-c hold the same formulas out.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from screening.columns import written_atomically
from screening.crystal import Crystal
from screening.dataset import (
    CROSS_CHECK_TOLERANCE,
    DEFAULT_TARGET,
    Protocol,
    attach_features,
    read_energies,
    read_formulas,
    read_training_set,
    reduce_formula,
    require_columns,
    split_by_formula,
)
from screening.errors import InputDataError, OutputError, suggest
from screening.evaluation import featurize_ideal, group_rows, read_evaluation_set
from screening.feature_tables import (
    Features,
    ParallelMap,
    ProgressCall,
    featurize_structures,
    join_features,
    read_features,
)
from screening.features.schema import COMPOSITION_FEATURES, FEATURES
from screening.model_card import hash_file
from screening.parquet import read_columns, read_frame, read_names

HELD_OUT_SHARE: Final = 0.1
"""Of the formulas, as in the paper (section 4, Datasets)."""

SPLIT_SEED: Final = 2019
"""Of the held-out formulas and of every subset of rows."""

LARGEST_ENTHALPY: Final = 6.0
"""eV/atom: a few OQMD compositions are beyond, up to 43, for calculations that failed."""

LARGEST_VOLUME: Final = 130.0
"""Å^3/atom: caesium has 125, the most of all known crystals. Some hypothetical cells are blown up
to many times the volume that their atoms need, which no model can tell from the composition."""

GRAMS_PER_CM3: Final = 1.66053906660
"""Of one dalton per Å^3 (CODATA 2018)."""

TRAINING_SCHEME: Final = "MP-legacy"
"""Energy corrections of the training data, as the evaluation set calls them."""

STRUCTURES: Final = "structures"
COMPOSITIONS: Final = "compositions"
EVALUATION: Final = "evaluation"

EVALUATION_FILE: Final = "eval_prototypes.parquet"
COMPOSITION_FILE: Final = "oqmd_compositions.parquet"
STRUCTURE_FILES: Final = ("mp_icsd*.parquet", "mp_virtual*.parquet")

VOLUME: Final = "volume_per_atom"
DENSITY: Final = "density"
ABOVE_HULL: Final = "e_above_hull"

UNITS: Final[Mapping[str, str]] = {
    DEFAULT_TARGET: "eV/atom",
    VOLUME: "Å^3/atom",
    DENSITY: "g/cm^3",
    ABOVE_HULL: "eV/atom",
}
"""Targets and their units."""

DATA_SETS: Final[Mapping[str, str]] = {
    "oqmd-sc": "all structures, 271 columns",
    "icsd": "ICSD-flagged structures, 271 columns",
    "mp-c": "structures that are not blown up, the 145 composition columns",
    "oqmd-c": "OQMD compositions, 145 columns",
}
"""Data sets to learn from, and what they are."""

TRAINING_ROWS: Final[Mapping[str, int]] = {
    "oqmd-sc": 78_900,
    "icsd": 35_700,
    "mp-c": 77_300,
    "oqmd-c": 92_000,
}
"""About how many rows of the published data are not held out, for estimates of time."""

EXTRA_TESTS: Final[Mapping[str, str]] = {
    "known": "held-out rows of oqmd-sc that are ICSD-flagged",
    "virtual": "held-out rows of oqmd-sc that are not, without blown-up cells",
    "prototypes": "held-out rows of each of the ten prototypes that are left out elsewhere",
    "elements": "held-out rows with each of the ten elements that are left out elsewhere",
    "eval": "hypothetical compounds of each prototype, on relaxed and ideal geometry",
    "batch-statistics": "held-out rows again, with batch norm in training mode",
}
"""What a trial can be tested on besides its held-out rows."""

PROTOTYPES: Final = (
    "ABC2_16_225_a_b_c",
    "ABC2D6_40_225_a_b_c_e",
    "AB3_8_194_d_h",
    "AB3_4_221_a_c",
    "AB2C2_10_139_a_d_e",
    "AB3_8_139_a_bd",
    "ABC_12_62_c_c_c",
    "ABC2_12_166_a_b_c",
    "AB3_16_225_a_bc",
    "ABC3_5_221_a_b_c",
)
"""The ten most frequent Wyckoff labels of oqmd-sc, without one that nearly all cells have that are
larger than `LARGEST_VOLUME`."""

ELEMENTS: Final = ("O", "F", "S", "Cl", "N", "Fe", "Al", "Li", "La", "Si")
"""Elements that are left out one at a time."""

_ROWS_PREFIX: Final = "rows/"
_BUILD: Final = 1  # raise it when the making of the arrays changes
_SYMBOL: Final = re.compile(r"[A-Z][a-z]?")

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
TextArray = NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class BenchmarkData:
    """Rows to learn from and to test on.

    Attributes:
        name: Key of `DATA_SETS`.
        features: Shape (n, columns), float32, all finite.
        feature_names: Name of each column.
        targets: By name (see `UNITS`), shape (n,), NaN where a row has none.
        ids: Identifier of each row, shape (n,).
        formulas: Reduced formula of each row, shape (n,).
        prototypes: Wyckoff label of each row, shape (n,); empty texts without structures.
        known: Whether a row is ICSD-flagged, shape (n,).
        held_out: Whether its formula is in the held-out tenth, shape (n,).
        dropped: Rows of the files that were left out, by reason.
        sha256: Of the arrays that it was made of.
    """

    name: str
    features: NDArray[np.float32] = field(repr=False)
    feature_names: tuple[str, ...] = field(repr=False)
    targets: Mapping[str, FloatArray] = field(repr=False)
    ids: TextArray = field(repr=False)
    formulas: TextArray = field(repr=False)
    prototypes: TextArray = field(repr=False)
    known: BoolArray = field(repr=False)
    held_out: BoolArray = field(repr=False)
    dropped: Mapping[str, int]
    sha256: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def select(self, rows: IntArray | BoolArray) -> BenchmarkData:
        """The given rows."""
        return replace(
            self,
            features=self.features[rows],
            targets={name: values[rows] for name, values in self.targets.items()},
            ids=self.ids[rows],
            formulas=self.formulas[rows],
            prototypes=self.prototypes[rows],
            known=self.known[rows],
            held_out=self.held_out[rows],
        )

    def with_target(self, target: str) -> BenchmarkData:
        """The rows that have a target.

        Raises:
            InputDataError: The data set has no such target, or no row has it.
        """
        if target not in self.targets:
            hint = suggest(target, self.targets) or "."
            raise InputDataError(
                f"data set {self.name} has no target {target!r}{hint} "
                f"Targets: {', '.join(self.targets)}."
            )
        found = np.isfinite(self.targets[target])
        if not found.any():
            raise InputDataError(f"no row of data set {self.name} has a {target!r}.")
        return self if found.all() else self.select(found)

    def containing(self, symbol: str) -> BoolArray:
        """Whether each row's formula has an element, shape (n,)."""
        return np.array([symbol in _SYMBOL.findall(name) for name in self.formulas.tolist()])


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """Hypothetical compounds of a combinatorial search, on two geometries.

    Attributes:
        features: By geometry (``relaxed``, ``ideal``), shape (n, 271), float32.
        target: Formation enthalpies, eV/atom, shape (n,).
        groups: Row numbers by group, such as ``B2`` or ``B2/strict``; see
            `screening.benchmark.trial.TrialResult`.
        sha256: Of the arrays that it was made of.
    """

    features: Mapping[str, NDArray[np.float32]] = field(repr=False)
    target: FloatArray = field(repr=False)
    groups: Mapping[str, IntArray] = field(repr=False)
    sha256: str


@dataclass(frozen=True)
class DataSource:
    """Where data sets come from and where they are kept.

    Attributes:
        data: Folder with the files of `STRUCTURE_FILES`, `EVALUATION_FILE`, `COMPOSITION_FILE`.
        cache: Folder for the arrays made of them.
        features: Tables of `screening featurize` with features of some of the structures; those of
            the others are computed.
        run: How to compute features in parallel; in this process if None.
        progress: Told how many sites are featurized.
        note: Told what is being done.
    """

    data: Path
    cache: Path
    features: tuple[Path, ...] = ()
    run: ParallelMap | None = None
    progress: ProgressCall | None = None
    note: Callable[[str], None] | None = None

    def say(self, sentence: str) -> None:
        """Tell what is being done, if somebody listens."""
        if self.note is not None:
            self.note(sentence)


def find_source(name: str) -> str:
    """Name of the arrays that a data set is made of: ``structures`` or ``compositions``.

    Raises:
        InputDataError: There is no such data set.
    """
    if name not in DATA_SETS:
        raise InputDataError(
            f"unknown data set {name!r}{suggest(name, DATA_SETS) or '.'} "
            f"Data sets: {', '.join(DATA_SETS)}."
        )
    return COMPOSITIONS if name == "oqmd-c" else STRUCTURES


def prepare_arrays(name: str, source: DataSource) -> Path:
    """Make the arrays behind data sets, unless they are there.

    Args:
        name: ``structures``, ``compositions`` or ``evaluation``.
        source: Where from and where to.

    Returns:
        Their file, whose name tells which files they were made of.

    Raises:
        InputDataError: A file is missing or cannot be used.
        OutputError: The arrays cannot be written.
    """
    files = _find_files(name, source.data)
    tables = source.features if name == STRUCTURES else ()
    contents = [name, _BUILD, *FEATURES, *map(hash_file, files), *map(_hash_table, tables)]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    path = source.cache / f"{name}-{digest[:16]}.npz"
    if path.exists():
        return path
    source.say(f"{name}: reading {len(files)} files of {source.data}")
    arrays, dropped = _BUILDERS[name](files, source)
    facts = json.dumps({"dropped": dropped, "sha256": _hash_arrays(arrays)})
    try:
        source.cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(error, source.cache) from error
    with written_atomically(path) as temporary, temporary.open("wb") as stream:
        stored: dict[str, Any] = {"facts": np.array(facts), **arrays}
        np.savez(stream, **stored)
    shutil.rmtree(_parts_folder(source, name), ignore_errors=True)
    reasons = "".join(f"; left out: {count:,} {reason}" for reason, count in dropped.items())
    source.say(f"{name}: {len(arrays['ids']):,} rows{reasons}")
    return path


@dataclass(frozen=True)
class DataStore:
    """Data sets that are made, read when they are asked for and kept in memory.

    Attributes:
        arrays: File of `prepare_arrays` by name, of those that are needed.
    """

    arrays: Mapping[str, Path]
    _read: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def digest(self, name: str) -> str:
        """SHA-256 of the arrays of a name, without reading all of them."""
        key = f"sha256 of {name}"
        if key not in self._read:
            self._read[key] = _read_arrays(self.arrays[name], facts_only=True)[1]["sha256"]
        return str(self._read[key])

    def data(self, name: str) -> BenchmarkData:
        """Return a data set of `DATA_SETS`.

        Raises:
            InputDataError: There is none of this name, or its file is damaged.
        """
        if name not in self._read:
            self._read[name] = self._load(name)
        found: BenchmarkData = self._read[name]
        return found

    def evaluation(self) -> EvaluationData:
        """Return the evaluation set.

        Raises:
            InputDataError: Its file is damaged.
        """
        if EVALUATION not in self._read:
            read, facts = _read_arrays(self.arrays[EVALUATION])
            prefix = _ROWS_PREFIX
            self._read[EVALUATION] = EvaluationData(
                features={geometry: read[geometry] for geometry in ("relaxed", "ideal")},
                target=read[DEFAULT_TARGET],
                groups={
                    key.removeprefix(prefix): rows
                    for key, rows in read.items()
                    if key.startswith(prefix)
                },
                sha256=facts["sha256"],
            )
        found: EvaluationData = self._read[EVALUATION]
        return found

    def _load(self, name: str) -> BenchmarkData:
        if name == "icsd":
            whole = self.data("oqmd-sc")
            return replace(whole.select(whole.known), name=name)
        if name == "mp-c":
            count = len(COMPOSITION_FEATURES)
            whole = self.data("oqmd-sc")
            kept = whole.targets[VOLUME] <= LARGEST_VOLUME
            reason = f"cell of more than {LARGEST_VOLUME:g} Å^3/atom"
            whole = whole.select(kept)
            return replace(
                whole,
                name=name,
                features=whole.features[:, :count].copy(),
                feature_names=COMPOSITION_FEATURES,
                dropped={**whole.dropped, reason: int((~kept).sum())},
            )
        read, facts = _read_arrays(self.arrays[find_source(name)])
        return BenchmarkData(
            name=name,
            features=read["features"],
            feature_names=COMPOSITION_FEATURES if name == "oqmd-c" else FEATURES,
            targets={target: read[target] for target in UNITS if target in read},
            ids=read["ids"],
            formulas=read["formulas"],
            prototypes=read["prototypes"],
            known=read["known"],
            held_out=read["held_out"],
            dropped=facts["dropped"],
            sha256=facts["sha256"],
        )


def split_rows(data: BenchmarkData, holdout: str) -> tuple[IntArray, IntArray]:
    """Split rows into those to train on and those to test on.

    Args:
        data: The data set.
        holdout: ``formulas``, ``prototype:<Wyckoff label>`` or ``element:<symbol>``.

    Returns:
        Row numbers of both, each ascending; no formula is on both sides.

    Raises:
        InputDataError: The holdout is not known, or one side would be empty.
    """
    kind, _, value = holdout.partition(":")
    if holdout == "formulas":
        test = data.held_out
    elif kind == "prototype":
        test = data.prototypes == value
    elif kind == "element":
        test = data.containing(value)
    else:
        raise InputDataError(
            f"unknown holdout {holdout!r}; it is formulas, prototype:<label> or element:<symbol>."
        )
    train = ~test & ~np.isin(data.formulas, data.formulas[test])
    if not (train.any() and test.any()):
        raise InputDataError(
            f"holdout {holdout!r} leaves {int(train.sum())} rows of data set {data.name} to train "
            f"on and {int(test.sum())} to test on."
        )
    return np.flatnonzero(train), np.flatnonzero(test)


def draw_rows(rows: IntArray, count: int | None) -> IntArray:
    """Draw rows with a fixed seed; fewer rows are a part of more.

    Args:
        rows: Row numbers, ascending.
        count: How many; None, or more than there are, for all.

    Returns:
        Row numbers, ascending.
    """
    if count is None or count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(SPLIT_SEED).permutation(rows)[:count])


def _find_files(name: str, folder: Path) -> list[Path]:
    """Files that arrays are made of; for structures, the evaluation set last."""
    patterns = {
        STRUCTURES: (*STRUCTURE_FILES, EVALUATION_FILE),
        COMPOSITIONS: (COMPOSITION_FILE, EVALUATION_FILE),
        EVALUATION: (EVALUATION_FILE,),
    }[name]
    found = []
    for pattern in patterns:
        files = sorted(folder.glob(pattern))
        if not files:
            raise InputDataError(
                f"{folder} has no {pattern}; name the folder of the data set with --data."
            )
        found += files
    return found


def _hash_table(path: Path) -> str:
    if not path.is_file():
        raise InputDataError(f"there is no feature table {path}.")
    return hash_file(path)


Arrays = dict[str, NDArray[Any]]


def _build_structures(files: Sequence[Path], source: DataSource) -> tuple[Arrays, dict[str, int]]:
    *tables, evaluation = files
    protocol = Protocol(
        target=DEFAULT_TARGET,
        excluded_formulas=read_formulas(evaluation),
        drop_missing_energies=True,
        cross_check_tolerance=CROSS_CHECK_TOLERANCE,
    )
    data = read_training_set(tables, protocol)
    assert data.crystals is not None
    features = _find_features(data.crystals, source, STRUCTURES)
    data = attach_features(data, features)
    assert data.crystals is not None and data.features is not None
    other = ("proto", "provenance", "e_above_hull_2018")
    columns: dict[str, list[Any]] = {name: [] for name in ("id", *other)}
    for table in tables:
        require_columns(read_names(table), columns, table)
        read = read_columns(table, list(columns))
        for name in columns:
            columns[name] += read[name].to_pylist()
    place = {str(name): row for row, name in enumerate(columns["id"])}
    rows = [place[name] for name in data.ids]
    above = [columns["e_above_hull_2018"][row] for row in rows]
    atoms = np.array([len(crystal) for crystal in data.crystals])
    volumes = np.array([crystal.volume for crystal in data.crystals])
    formulas = np.array(data.formulas, dtype=np.str_)
    return {
        "ids": np.array(data.ids, dtype=np.str_),
        "formulas": formulas,
        "prototypes": np.array([columns["proto"][row] or "" for row in rows], dtype=np.str_),
        "known": np.array([columns["provenance"][row] == "icsd" for row in rows]),
        "held_out": _hold_out(formulas),
        DEFAULT_TARGET: data.target,
        VOLUME: volumes / atoms,
        DENSITY: _measure_masses(data.crystals) / volumes * GRAMS_PER_CM3,
        ABOVE_HULL: np.array([np.nan if value is None else value for value in above], np.float64),
        "features": data.features,
    }, dict(data.dropped)


def _build_compositions(files: Sequence[Path], source: DataSource) -> tuple[Arrays, dict[str, int]]:
    from pymatgen.core import Composition

    from screening.features.crystals import check_elements, composition_columns
    from screening.features.table import FeaturizationError

    path, evaluation = files
    excluded = read_formulas(evaluation)
    table = read_frame(path, ["formula", DEFAULT_TARGET])
    energies = read_energies(table[DEFAULT_TARGET], path)
    dropped: Counter[str] = Counter()
    crystals: list[Crystal] = []
    kept: list[int] = []
    seen: set[str] = set()
    for row, (formula, energy) in enumerate(zip(table["formula"], energies, strict=True)):
        reduced = reduce_formula(str(formula), where=path)
        reason = None
        if not abs(energy) <= LARGEST_ENTHALPY:
            reason = f"no energy, or one beyond {LARGEST_ENTHALPY:g} eV/atom"
        elif reduced in excluded:
            reason = "formula of the evaluation set"
        elif reduced in seen:
            reason = "formula that occurs before"
        else:
            amounts = Composition(reduced)
            numbers = [z.Z for z, amount in amounts.items() for _ in range(round(amount))]
            # only what it consists of is asked of such a crystal
            crystal = Crystal(
                reduced, np.eye(3), np.array(numbers, np.int64), np.zeros((len(numbers), 3))
            )
            try:
                check_elements(crystal)
            except FeaturizationError:
                reason = "element beyond the tables"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(reduced)
        crystals.append(crystal)
        kept.append(row)
    if not crystals:
        raise InputDataError(f"{path}: no row is left to learn from (left out: {dict(dropped)}).")
    formulas = np.array([crystal.id for crystal in crystals], dtype=np.str_)
    return {
        "ids": formulas,
        "formulas": formulas,
        "prototypes": np.zeros(len(formulas), dtype="<U1"),
        "known": np.zeros(len(formulas), dtype=np.bool_),
        "held_out": _hold_out(formulas),
        DEFAULT_TARGET: energies[kept],
        "features": composition_columns(crystals).astype(np.float32),
    }, dict(dropped)


def _build_evaluation(files: Sequence[Path], source: DataSource) -> tuple[Arrays, dict[str, int]]:
    (path,) = files
    data = read_evaluation_set(path)
    if data.kinds is None:
        raise InputDataError(f"{path} has no column 'kind'.")
    require_columns(read_names(path), ["strict"], path)
    strict = read_frame(path, ["strict"])["strict"].to_numpy(dtype=np.bool_)
    relaxed = _find_features(data.crystals, replace(source, features=()), EVALUATION)
    if relaxed.failures:
        failure = relaxed.failures[0]
        raise InputDataError(f"{path}: {failure.id!r} cannot be featurized: {failure.reason}.")
    groups = {"all": np.arange(len(data.target))}
    groups |= {kind: rows for kind, scheme, rows in group_rows(data) if scheme == "all"}
    legacy = data.schemes == TRAINING_SCHEME
    parts = {
        f"{kind}/{word}": rows[mask[rows]]
        for kind, rows in groups.items()
        for word, mask in (("strict", strict), (TRAINING_SCHEME, legacy))
        if mask[rows].any()
    }
    return {
        "ids": np.array([crystal.id for crystal in data.crystals], dtype=np.str_),
        DEFAULT_TARGET: data.target,
        "relaxed": relaxed.values.astype(np.float32),
        "ideal": featurize_ideal(data.crystals, data.kinds).astype(np.float32),
        **{_ROWS_PREFIX + name: rows for name, rows in (groups | parts).items()},
    }, {}


_BUILDERS: Final[
    Mapping[str, Callable[[Sequence[Path], DataSource], tuple[Arrays, dict[str, int]]]]
] = {
    STRUCTURES: _build_structures,
    COMPOSITIONS: _build_compositions,
    EVALUATION: _build_evaluation,
}


def _find_features(crystals: Sequence[Crystal], source: DataSource, name: str) -> Features:
    """Features of crystals, perhaps among others: from the tables given, the others computed."""
    parts = [read_features(path) for path in source.features]
    given = {name for part in parts for name in part.ids}
    given |= {failure.id for part in parts for failure in part.failures}
    left = [crystal for crystal in crystals if crystal.id not in given]
    if parts:
        source.say(f"{name}: {len(crystals) - len(left):,} of the features are given")
    if left:
        parts.append(
            featurize_structures(
                left, _parts_folder(source, name), run=source.run, progress=source.progress
            )
        )
    return join_features(parts)


def _parts_folder(source: DataSource, name: str) -> Path:
    return source.cache / f"{name}-parts"


def _hold_out(formulas: TextArray) -> BoolArray:
    _, test = split_by_formula(formulas.tolist(), HELD_OUT_SHARE, SPLIT_SEED)
    mask = np.zeros(len(formulas), dtype=np.bool_)
    mask[test] = True
    return mask


def _measure_masses(crystals: Sequence[Crystal]) -> FloatArray:
    """Mass of each cell in dalton, shape (n,)."""
    from pymatgen.core import Element

    found = sorted({number for crystal in crystals for number in crystal.numbers.tolist()})
    masses = np.zeros(max(found) + 1)
    masses[found] = [float(Element.from_Z(number).atomic_mass) for number in found]
    return np.array([masses[crystal.numbers].sum() for crystal in crystals])


def _hash_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.kind} {values.shape}".encode())
        text = values.dtype.kind == "U"
        digest.update("\0".join(values.tolist()).encode() if text else values.tobytes())
    return digest.hexdigest()


def _read_arrays(path: Path, facts_only: bool = False) -> tuple[Arrays, dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = ["facts"] if facts_only else stored.files
            arrays = {name: stored[name] for name in names}
        return arrays, json.loads(str(arrays.pop("facts")))
    except (BadZipFile, EOFError, KeyError, OSError, ValueError) as error:
        raise InputDataError(
            f"{path} is damaged ({error}); remove it and run the benchmark again."
        ) from error
