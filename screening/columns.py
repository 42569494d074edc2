"""The one registry of table columns: name, type, unit and a sentence for each.

Every Parquet table that `screening` writes is checked here first, and the column reference of the
documentation is generated from here (`scripts/write_reference.py`).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from screening.errors import OutputError, ScreeningError

Content = TypeVar("Content")


class ColumnError(ScreeningError, ValueError):
    """A table does not have the columns that the registry says it has."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Name in the file. A name with a `*` stands for a family (`site_*`).
        dtype: Arrow type, as `pyarrow.type_for_alias` names it.
        unit: Unit of the values; empty for counts, names and flags.
        sentence: What the column holds.
        nullable: Whether null is allowed, and if so what it means is in the sentence.
        required: Whether every table of the kind has the column.
    """

    name: str
    dtype: str
    unit: str
    sentence: str
    nullable: bool = False
    required: bool = True

    def matches(self, name: str) -> bool:
        """Whether a column called `name` is this column or of this family."""
        head, star, tail = self.name.partition("*")
        if star:
            return name.startswith(head) and name.endswith(tail)
        return name == self.name


@dataclass(frozen=True)
class TableKind:
    """A kind of table: its name, a sentence, and its columns in order."""

    name: str
    sentence: str
    columns: tuple[Column, ...]

    def column(self, name: str) -> Column | None:
        """Return the registered column for `name`; an exact name wins over a family."""
        exact = [column for column in self.columns if column.name == name]
        return next(iter(exact + [c for c in self.columns if c.matches(name)]), None)

    def sort(self, columns: Mapping[str, Content]) -> dict[str, Content]:
        """Return columns in the registry's order, those of a family by name.

        Raises:
            ColumnError: A column is not registered.
        """
        places = {}
        for name in columns:
            registered = self.column(name)
            if registered is None:
                raise ColumnError(f'{self.name} table: column "{name}" is not in screening.columns')
            places[name] = (self.columns.index(registered), name)
        return {name: columns[name] for name in sorted(columns, key=places.__getitem__)}


_ENERGY: Final = "eV/atom"

ID: Final = Column("id", "string", "", "Identifier of the structure: its id column or file name.")
FORMULA: Final = Column("formula", "string", "", "Reduced formula, in pymatgen's element order.")
ENTHALPY: Final = Column(
    "formation_enthalpy_ev_per_atom",
    "double",
    _ENERGY,
    "Formation enthalpy: mean of the ensemble's members, rounded to 1e-6.",
)
ENTHALPY_STD: Final = Column(
    "formation_enthalpy_std_ev_per_atom",
    "double",
    _ENERGY,
    "Standard deviation of the members' predictions, rounded to 1e-6; null with a single member. "
    "How much the networks disagree, not an interval.",
    nullable=True,
)
ENTHALPY_LOW: Final = Column(
    "formation_enthalpy_low_ev_per_atom",
    "double",
    _ENERGY,
    "Lower end of the calibrated 90 % interval of the formation enthalpy, rounded to 1e-6; null if "
    "the model was never calibrated.",
    nullable=True,
)
ENTHALPY_HIGH: Final = Column(
    "formation_enthalpy_high_ev_per_atom",
    "double",
    _ENERGY,
    "Upper end of the calibrated 90 % interval of the formation enthalpy, rounded to 1e-6; null if "
    "the model was never calibrated.",
    nullable=True,
)
RF_ENTHALPY: Final = Column(
    "rf_formation_enthalpy_ev_per_atom",
    "double",
    _ENERGY,
    "Formation enthalpy by the Random Forest, rounded to 1e-6; null if the model has no forest.",
    nullable=True,
)
PREDICTED_CLASS: Final = Column(
    "predicted_class",
    "string",
    "",
    "The likeliest class by the ensemble; the first of them where several are.",
)
CLASS_PROBABILITY: Final = Column(
    "probability_*",
    "double",
    "",
    "Probability of the class whose name follows: mean over the ensemble's members of their "
    "softmax, rounded to 1e-6. Not calibrated.",
    required=False,
)
PROTOTYPE: Final = Column("prototype", "string", "", "Name of the crystal prototype.")
SITES: Final = (
    Column(
        "site_A",
        "string",
        "",
        "Element on the sites of role A; null where there is none.",
        nullable=True,
    ),
    Column(
        "site_B",
        "string",
        "",
        "Element on the sites of role B; null where there is none.",
        nullable=True,
    ),
    Column(
        "site_X",
        "string",
        "",
        "Element on the sites of role X; null where there is none.",
        nullable=True,
    ),
    Column(
        "site_*",
        "string",
        "",
        "Element on the sites of a further role; null where there is none.",
        nullable=True,
        required=False,
    ),
)
RF_ABOVE_HULL: Final = Column(
    "rf_energy_above_hull_ev_per_atom",
    "double",
    _ENERGY,
    "Energy above hull by the Random Forest: its formation enthalpy less the lowest mixture of the "
    "same competitors, which it predicts itself where the model does; rounded to 1e-6, null if the "
    "model has no forest.",
    nullable=True,
)
ABOVE_HULL: Final = Column(
    "energy_above_hull_ev_per_atom",
    "double",
    _ENERGY,
    "Formation enthalpy less that of the lowest mixture of competing phases, rounded to 1e-6; "
    "negative below the hull of the competitors. Which competitors, says the manifest.",
    nullable=True,
)
ABOVE_HULL_STD: Final = Column(
    "energy_above_hull_std_ev_per_atom",
    "double",
    _ENERGY,
    "Standard deviation of the energy above hull: the members', each with its own hull, and "
    "calibrated noise of the candidate and, where it is predicted, of the hull; rounded to 1e-6. "
    "Of the members alone if the model was never calibrated, null then with a single member.",
    nullable=True,
)
P_STABLE: Final = Column(
    "p_stable",
    "double",
    "",
    "Probability that the energy above hull is at most the campaign's tolerance (stable-within), "
    "rounded to 1e-6; null if the model was never calibrated.",
    nullable=True,
)
DECOMPOSITION: Final = Column(
    "decomposition",
    "string",
    "",
    "Lowest mixture of competing phases, in formula units of each per formula unit of the "
    "compound.",
    nullable=True,
)
REFERENCES_IN_SYSTEM: Final = Column(
    "references_in_system",
    "int64",
    "",
    "Competing phases in the chemical system and its subsystems, elements not counted; of phases "
    "that the model predicts only those that can matter to some candidate.",
    nullable=True,
)
STABILITY: Final = (
    ABOVE_HULL,
    ABOVE_HULL_STD,
    P_STABLE,
    DECOMPOSITION,
    REFERENCES_IN_SYSTEM,
)
KNOWN: Final = Column(
    "known",
    "bool",
    "",
    "Whether a compound of this composition is in the model's training data or among the "
    "reference phases.",
)
KNOWN_DETAILS: Final = (
    Column(
        "known_id",
        "string",
        "",
        "Identifier of the known compound of lowest energy; null if unknown or without one.",
        nullable=True,
    ),
    Column(
        "known_formation_enthalpy_ev_per_atom",
        "double",
        _ENERGY,
        "Lowest known formation enthalpy of the composition, from references or a training table "
        "that holds energies; null if there is none.",
        nullable=True,
    ),
    Column(
        "known_in_prototype",
        "bool",
        "",
        "Whether the training data holds the composition in this structure type; null if unknown "
        "or if the type of the known compound cannot be told.",
        nullable=True,
    ),
    Column(
        "nearest_known_formula",
        "string",
        "",
        "The nearest other known composition by the element mover's distance; null if none is "
        "known.",
        nullable=True,
    ),
    Column(
        "nearest_known_distance",
        "double",
        "",
        "Element mover's distance to it, in steps of the modified Pettifor scale, rounded to 1e-6.",
        nullable=True,
    ),
)
CHEMISTRY: Final = (
    Column(
        "charge_neutral",
        "bool",
        "",
        "Whether plausible oxidation states sum to zero; false only where O, S, Se or a halogen is "
        "the most electronegative element, null where the rule gives no verdict, as on "
        "intermetallics.",
        nullable=True,
    ),
    Column(
        "oxidation_states",
        "string",
        "",
        "The most plausible oxidation states that sum to zero; null if there are none.",
        nullable=True,
    ),
    Column(
        "electronegativity_order",
        "bool",
        "",
        "Whether in these oxidation states every positive ion is less electronegative than every "
        "negative one; false too where charge_neutral is false, null where it is null.",
        nullable=True,
    ),
    Column(
        "goldschmidt_tolerance_factor",
        "double",
        "",
        "Goldschmidt's tolerance factor by Shannon's radii, rounded to 1e-4; null but for "
        "perovskites whose ions have tabulated radii.",
        nullable=True,
    ),
    Column(
        "bartel_tolerance_factor",
        "double",
        "",
        "Tolerance factor of Bartel et al. (2019), rounded to 1e-4: below 4.18 for a likely "
        "perovskite, infinite where A is not larger than B; null as for Goldschmidt's.",
        nullable=True,
    ),
    Column("likely_metal", "bool", "", "A guess from the elements whether it is a metal."),
    Column(
        "radioactive_elements",
        "string",
        "",
        "Elements without a stable isotope, separated by spaces; empty if there are none.",
    ),
    Column(
        "toxic_elements",
        "string",
        "",
        "Elements whose compounds are classified as toxic, separated by spaces; empty if there "
        "are none.",
    ),
)
DISTANCE: Final = Column(
    "applicability_distance",
    "double",
    "",
    "How far the features are from those of the model's training data, as `irnet.uncertainty` "
    "measures it: larger is less alike; rounded to 1e-6, null if the model was never calibrated.",
    nullable=True,
)
UNSEEN: Final = Column(
    "unseen_elements",
    "string",
    "",
    "Elements of the compound that no training structure of the model holds, separated by spaces: "
    "treat the prediction as a guess; empty if there are none.",
)
IMPUTED: Final = Column(
    "imputed_elements",
    "string",
    "",
    "Elements with a property that matminer's tables lack and that is filled with the mean over "
    "all elements, separated by commas; null if there are none.",
    nullable=True,
)
CANDIDATE: Final = Column(
    "candidate", "int64", "", "Index of the candidate in its prototype's space."
)

SHARD: Final = TableKind(
    "shard",
    "One range of candidates of one prototype, as a worker wrote it (`shards/*.parquet`).",
    (
        PROTOTYPE,
        CANDIDATE,
        FORMULA,
        *SITES,
        Column(
            ENTHALPY.name,
            ENTHALPY.dtype,
            _ENERGY,
            "As in the ranking; null for a failure.",
            nullable=True,
        ),
        Column(
            ENTHALPY_STD.name,
            ENTHALPY_STD.dtype,
            _ENERGY,
            "As in the ranking; null for a failure.",
            nullable=True,
        ),
        ENTHALPY_LOW,
        ENTHALPY_HIGH,
        *STABILITY,
        RF_ENTHALPY,
        RF_ABOVE_HULL,
        KNOWN,
        *KNOWN_DETAILS,
        *CHEMISTRY,
        DISTANCE,
        UNSEEN,
        IMPUTED,
        Column(
            "member_*_ev_per_atom",
            "float",
            _ENERGY,
            "Formation enthalpy by one member of the ensemble; null for a failure.",
            nullable=True,
        ),
        Column(
            "error_scale_ev_per_atom",
            "float",
            _ENERGY,
            "Absolute error to expect; null for a failure or if the model was never calibrated.",
            nullable=True,
        ),
        Column(
            "reason",
            "string",
            "",
            "Why the candidate could not be scored; null if it was.",
            nullable=True,
        ),
    ),
)

RANKING: Final = TableKind(
    "ranking",
    "All scored candidates of a campaign, or the best of them if it keeps no more, best first "
    "(`ranking.parquet`, `ranking.csv`).",
    (
        Column(
            "rank",
            "int64",
            "",
            "Place in the whole campaign, from 1, in the order that the manifest names; ties go by "
            "prototype and candidate.",
        ),
        PROTOTYPE,
        FORMULA,
        *SITES,
        *STABILITY,
        ENTHALPY,
        ENTHALPY_STD,
        ENTHALPY_LOW,
        ENTHALPY_HIGH,
        RF_ABOVE_HULL,
        RF_ENTHALPY,
        Column(
            "rf_rank",
            "int64",
            "",
            "Place by the Random Forest's energy above hull, or by its formation enthalpy where "
            "the ranking goes by that too or no hull was computed; among the candidates of this "
            "table, which are not all if the campaign keeps only the best; null if the model has "
            "no forest.",
            nullable=True,
        ),
        KNOWN,
        *KNOWN_DETAILS,
        *CHEMISTRY,
        DISTANCE,
        UNSEEN,
        IMPUTED,
        CANDIDATE,
    ),
)

FAILED_CANDIDATES: Final = TableKind(
    "failed candidates",
    "Candidates of a campaign that could not be scored (`failures.parquet`).",
    (
        PROTOTYPE,
        CANDIDATE,
        FORMULA,
        *SITES,
        Column("reason", "string", "", "Why the candidate could not be scored."),
    ),
)

FAILED_STRUCTURES: Final = TableKind(
    "failed structures",
    "Structures that could not be read or featurized, each with its reason.",
    (ID, Column("reason", "string", "", "Why the structure could not be used.")),
)

FEATURE_TABLE: Final = TableKind(
    "features",
    "The 271 columns of structures, under matminer's labels (`screening featurize`).",
    (
        ID,
        Column(
            "*",
            "double",
            "as in matminer",
            "One of the 271 features, named and ordered as in "
            "`screening.features.schema.FEATURES`.",
        ),
    ),
)

IMPUTED_STRUCTURES: Final = TableKind(
    "imputed structures",
    "Rows of a table of features that rest on filled properties (beside the table).",
    (ID, Column(IMPUTED.name, IMPUTED.dtype, "", IMPUTED.sentence)),
)

PREDICTIONS: Final = TableKind(
    "predictions",
    "Predictions for structures of the user's own (`screening predict`). Columns of the hull are "
    "null without reference phases and for compounds of more than nine elements.",
    (
        ID,
        FORMULA,
        ENTHALPY,
        ENTHALPY_STD,
        ENTHALPY_LOW,
        ENTHALPY_HIGH,
        RF_ENTHALPY,
        Column(
            ABOVE_HULL.name,
            ABOVE_HULL.dtype,
            _ENERGY,
            "Formation enthalpy less that of the lowest mixture of the reference phases, among "
            "them the compound's own composition where they list it, rounded to 1e-6; negative "
            "below their hull.",
            nullable=True,
        ),
        Column(
            ABOVE_HULL_STD.name,
            ABOVE_HULL_STD.dtype,
            _ENERGY,
            "Standard deviation of the energy above hull: the members' and calibrated noise, "
            "rounded to 1e-6. Of the members alone if the model was never calibrated, null then "
            "with a single member.",
            nullable=True,
        ),
        Column(
            P_STABLE.name,
            P_STABLE.dtype,
            "",
            "Probability that the energy above hull is at most the tolerance (stable-within), "
            "rounded to 1e-6; null if the model was never calibrated.",
            nullable=True,
        ),
        DECOMPOSITION,
        REFERENCES_IN_SYSTEM,
        Column(
            RF_ABOVE_HULL.name,
            RF_ABOVE_HULL.dtype,
            _ENERGY,
            "Energy above the same hull by the Random Forest, rounded to 1e-6; null if the model "
            "has no forest.",
            nullable=True,
        ),
        KNOWN,
        *(column for column in KNOWN_DETAILS if column.name != "known_in_prototype"),
        *CHEMISTRY,
        DISTANCE,
        UNSEEN,
        IMPUTED,
    ),
)

CLASS_PREDICTIONS: Final = TableKind(
    "class predictions",
    "Predictions for structures of the user's own by a model of classes (`screening predict`).",
    (
        ID,
        FORMULA,
        PREDICTED_CLASS,
        CLASS_PROBABILITY,
        Column(
            KNOWN.name,
            KNOWN.dtype,
            "",
            "Whether a compound of this composition is in the model's training data.",
        ),
        Column(
            "known_id",
            "string",
            "",
            "Identifier of a training structure of this composition; null if there is none.",
            nullable=True,
        ),
        *(column for column in KNOWN_DETAILS if column.name.startswith("nearest_known_")),
        *CHEMISTRY,
        UNSEEN,
        IMPUTED,
    ),
)

BASELINE_PREDICTIONS: Final = TableKind(
    "baseline predictions",
    "Predictions for structures of the user's own by baselines (`screening baselines predict`).",
    (
        ID,
        FORMULA,
        Column(
            "prediction_*",
            "double",
            "of the baseline's target",
            "Prediction of the baseline of this name, rounded to 1e-6.",
        ),
    ),
)

TABLES: Final = (
    RANKING,
    FAILED_CANDIDATES,
    SHARD,
    PREDICTIONS,
    CLASS_PREDICTIONS,
    BASELINE_PREDICTIONS,
    FEATURE_TABLE,
    IMPUTED_STRUCTURES,
    FAILED_STRUCTURES,
)


def check_table(table: pa.Table, kind: TableKind) -> None:
    """Check a table against the registry.

    Args:
        table: Table to check.
        kind: What it should be.

    Raises:
        ColumnError: A column is missing, unknown, out of order, of another type, or has nulls it
            must not have.
    """
    where = f"{kind.name} table"
    for column in kind.columns:
        if column.required and not any(column.matches(name) for name in table.column_names):
            raise ColumnError(f'{where}: column "{column.name}" is missing')
    for field in table.schema:
        registered = kind.column(field.name)
        if registered is None:
            raise ColumnError(f'{where}: column "{field.name}" is not in screening.columns')
        found = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if found != pa.type_for_alias(registered.dtype):
            raise ColumnError(
                f'{where}: column "{field.name}" is {found}, expected {registered.dtype}'
            )
        if not registered.nullable and table[field.name].null_count:
            raise ColumnError(f'{where}: column "{field.name}" has nulls')
    columns = [kind.column(name) for name in table.column_names]
    places = [kind.columns.index(column) for column in columns if column is not None]
    for name, place, next_place in zip(table.column_names[1:], places, places[1:], strict=False):
        if next_place < place:
            raise ColumnError(f'{where}: column "{name}" is out of order')


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving, flush it to disk and rename it.

    A reader sees the old file or the whole new one, never a part, also after a crash.

    Args:
        path: Where the finished file belongs. Its folder must exist.

    Raises:
        OutputError: The disk is full, the folder cannot be written, and the like.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError.from_os_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush the names of files to disk, where the file system knows such a thing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_tables(tables: Iterable[pa.Table], path: Path, kind: TableKind) -> int:
    """Check tables one after the other and write them into one zstd Parquet file, atomically.

    Args:
        tables: Tables with the same columns, at least one; no two are in memory together.
        path: Parquet file to write or replace.
        kind: What each table should be.

    Returns:
        The number of rows.

    Raises:
        ColumnError: A table is not of that kind.
        OutputError: The file cannot be written.
    """
    rows = 0
    with written_atomically(path) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for table in tables:
            check_table(table, kind)
            if writer is None:
                writer = stack.enter_context(
                    pq.ParquetWriter(temporary, table.schema, compression="zstd")
                )
            writer.write_table(table)
            rows += len(table)
    return rows


def write_table(table: pa.Table, path: Path, kind: TableKind) -> None:
    """Check a table and write it as zstd Parquet, atomically.

    Args:
        table: Table to write.
        path: Parquet file to write or replace.
        kind: What the table should be.

    Raises:
        ColumnError: The table is not of that kind.
        OutputError: The file cannot be written.
    """
    check_table(table, kind)
    with written_atomically(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def column_reference() -> str:
    """Return the reference of all tables and columns as Markdown."""
    lines = ["# Tables and columns", ""]
    for kind in TABLES:
        lines += [f"## {kind.name.capitalize()}", "", kind.sentence, ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{column.name}` | {column.dtype} | {column.unit} | {column.sentence} |"
            for column in kind.columns
        ]
        lines.append("")
    return "\n".join(lines)
