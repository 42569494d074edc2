from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from prototypes import find_prototype
from screening.errors import OutputError
from screening.export import ExportFormat, export_candidates

PROTOTYPES = {name: find_prototype(name) for name in ("B2", "perovskite")}
ROWS: list[dict[str, Any]] = [
    {"rank": 1, "prototype": "perovskite", "formula": "CaTiO3", "site_A": "Ca", "site_B": "Ti",
     "site_X": "O"},
    {"rank": 2, "prototype": "B2", "formula": "CsCl", "site_A": "Cl", "site_B": "Cs",
     "site_X": None},
]  # fmt: skip


@pytest.mark.parametrize("form", [ExportFormat.CIF, ExportFormat.POSCAR])
def test_structures_read_back_as_the_prototype(tmp_path: Path, form: ExportFormat) -> None:
    exported = export_candidates(pa.Table.from_pylist(ROWS), PROTOTYPES, tmp_path / "out", form)
    assert exported.failures == ()
    for row, path in zip(ROWS, exported.files, strict=True):
        assert path.name.startswith(f"{row['rank']:06d}_{row['prototype']}_{row['formula']}.")
        structure = Structure.from_file(path)
        prototype = PROTOTYPES[row["prototype"]]
        elements = [row[f"site_{role}"] for role in prototype.roles]
        expected = Structure(
            prototype.lattice, [elements[i] for i in prototype.site_roles], prototype.frac_coords
        )
        matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1, scale=True)
        assert matcher.fit(structure.get_primitive_structure(), expected)
        assert structure.volume / len(structure) < 40


def test_files_of_an_earlier_export_stay_and_are_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    first = export_candidates(table, PROTOTYPES, tmp_path, ExportFormat.POSCAR)
    assert first.older == ()
    (tmp_path / "notes.txt").write_text("x")
    again = export_candidates(table.slice(0, 1), PROTOTYPES, tmp_path, ExportFormat.POSCAR)
    assert again.files == first.files[:1]
    assert again.older == first.files[1:]
    assert first.files[1].is_file()


def test_atoms_of_an_element_stand_together_in_a_poscar(tmp_path: Path) -> None:
    sites = {"A": "Cs", "B": "Al", "C": "Zr", "X": "He"}
    row = {"rank": 1, "prototype": "double_perovskite", "formula": "Cs2ZrAlHe6"}
    row |= {f"site_{role}": symbol for role, symbol in sites.items()}
    prototypes = {"double_perovskite": find_prototype("double_perovskite")}
    exported = export_candidates(
        pa.Table.from_pylist([row]), prototypes, tmp_path, ExportFormat.POSCAR
    )
    lines = exported.files[0].read_text().splitlines()
    assert lines[5].split() == ["Cs", "Zr", "Al", "He"]
    assert [int(count) for count in lines[6].split()] == [2, 1, 1, 6]


def test_csv_holds_the_rows(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    exported = export_candidates(table, PROTOTYPES, tmp_path, ExportFormat.CSV)
    read = pyarrow.csv.read_csv(
        exported.files[0], convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    )
    assert read.to_pylist() == ROWS


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file, not a folder"):
        export_candidates(
            pa.Table.from_pylist(ROWS), PROTOTYPES, tmp_path / "file" / "x", ExportFormat.CIF
        )
