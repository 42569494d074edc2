"""Last stage: the top of a ranking as files to start calculations with."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from screening.columns import written_atomically
from screening.errors import OutputError
from screening.folder import write_csv
from screening.printing import make_printable

if TYPE_CHECKING:
    from prototypes import Prototype


_UNUSUAL: Final = re.compile(r"[^\w.+()-]")
_LONGEST_PART: Final = 60
_EXPORTED_NAME: Final = re.compile(r"\d{6,}_.+_.+\.(cif|vasp)")


class ExportFormat(StrEnum):
    """Formats of exported candidates."""

    CIF = "cif"
    POSCAR = "poscar"
    CSV = "csv"


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        files: The files, in the order of the ranking.
        failures: Candidates for which no structure could be built, with the reason.
        older: Files beside them that an earlier export wrote and this one did not.
    """

    files: tuple[Path, ...]
    failures: tuple[tuple[str, str], ...]
    older: tuple[Path, ...] = ()


def name_file(rank: int, prototype: str, formula: str) -> str:
    """Return the name of a candidate's file, without its ending.

    A prototype from a file is called what the file was called, and a ranking may be a stranger's:
    what is no letter, digit or one of ``.+-_()`` becomes ``_``, and a long name is cut.

    Example:
        >>> name_file(7, "../../evil", "CaTiO3")
        '000007_.._.._evil_CaTiO3'
    """
    parts = (_UNUSUAL.sub("_", part)[:_LONGEST_PART] for part in (prototype, formula))
    return "_".join([f"{rank:06d}", *parts])


def export_candidates(
    rows: pa.Table, prototypes: Mapping[str, Prototype], folder: Path, form: ExportFormat
) -> Exported:
    """Write candidates as files named `RANK_PROTOTYPE_FORMULA`.

    Structures have the prototype's cell, scaled to the "typical" volume of their elements (see
    `prototypes.build_structure`): a start for a relaxation, not a prediction. Files of an earlier
    export are left alone, since someone may have worked on them, and returned.

    Args:
        rows: Rows of a ranking.
        prototypes: The campaign's prototypes by name.
        folder: Where to write; made if needed.
        form: Format; `csv` writes one file with all the rows.

    Returns:
        The files, the candidates for which no structure could be built, and the older files.

    Raises:
        OutputError: A file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError.from_os_error(error, folder) from error
    if form is ExportFormat.CSV:
        path = folder / "candidates.csv"
        write_csv(rows, path)
        return Exported((path,), ())

    from pymatgen.io.cif import CifWriter
    from pymatgen.io.vasp import Poscar

    from prototypes import ATOMIC_NUMBERS, PrototypeError, build_structure
    from prototypes.elements import formula_ranks

    files, failures, ranks = [], [], formula_ranks()
    with warnings.catch_warnings():
        # Noble gases have no electronegativity, as pymatgen says whenever it sorts a formula.
        warnings.filterwarnings("ignore", message="No Pauling electronegativity")
        for row in rows.to_pylist():
            prototype = prototypes[row["prototype"]]
            name = name_file(row["rank"], row["prototype"], row["formula"])
            try:
                numbers = [ATOMIC_NUMBERS[row[f"site_{role}"]] for role in prototype.roles]
                structure = build_structure(prototype, numbers)
            except KeyError as error:
                failures.append((name, f"no element on some site ({error})"))
                continue
            except (PrototypeError, ValueError, ArithmeticError) as error:
                failures.append((name, str(error)))
                continue
            if form is ExportFormat.CIF:
                path, text = folder / f"{name}.cif", str(CifWriter(structure, symprec=0.01))
            else:
                comment = make_printable(
                    f"{row['formula']} {row['prototype']} rank {row['rank']}".replace("\n", " ")
                )
                # of pymatgen's own order noble gases, without electronegativity, make no order
                ordered = structure.get_sorted_structure(key=lambda site: ranks[site.specie.Z])
                path, text = folder / f"{name}.vasp", Poscar(ordered, comment=comment).get_str()
            with written_atomically(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            files.append(path)
    named_alike = (path for path in folder.iterdir() if _EXPORTED_NAME.fullmatch(path.name))
    return Exported(tuple(files), tuple(failures), tuple(sorted({*named_alike} - {*files})))
