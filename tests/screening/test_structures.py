from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure
from pymatgen.io.cif import CifWriter

from screening.crystal import Crystal
from screening.errors import ConfigurationError, InputDataError
from screening.structures import (
    SHORTEST_DISTANCE,
    convert_structure,
    find_defect,
    read_structure_table,
    read_structures,
)

ROCK_SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)


def write_table(path: Path, **changes: object) -> Path:
    row: dict[str, object] = {
        "id": "a",
        "lattice": [3.0, 0, 0, 0, 3.0, 0, 0, 0, 3.0],
        "species": ["Cs", "Cl"],
        "frac_coords": [0.0, 0, 0, 0.5, 0.5, 0.5],
    }
    pd.DataFrame([row, row | {"id": "b"} | changes]).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["salt.cif", "POSCAR", "salt.vasp", "POSCAR_salt"])
def test_files_give_the_structure_that_pymatgen_wrote(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ROCK_SALT.to(filename=str(path), fmt="cif" if name.endswith("cif") else "poscar")
    crystals, failures = read_structures([path])
    assert not failures
    assert crystals[0].id == name
    assert crystals[0].formula == "NaCl"
    assert crystals[0].volume / len(crystals[0]) == pytest.approx(ROCK_SALT.volume / 8, rel=1e-6)
    assert sorted(crystals[0].numbers) == sorted(ROCK_SALT.atomic_numbers)


def test_oxidation_states_and_deuterium_are_elements() -> None:
    charged = ROCK_SALT.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert convert_structure(charged, "x").formula == "NaCl"
    heavy = Structure(Lattice.cubic(4), ["D", "Li"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert sorted(convert_structure(heavy, "x").numbers) == [1, 3]


EXTXYZ = """2
Lattice="4.0 0.0 0.0 0.0 4.0 0.0 1.0 0.0 5.0" Properties=species:S:1:pos:R:3:forces:R:3 pbc="T T T"
Na 0.0 0.0 0.0 1 2 3
Cl 2.5 2.0 2.5 4 5 6
"""


def test_extended_xyz_with_columns_and_frames(tmp_path: Path) -> None:
    path = tmp_path / "traj.extxyz"
    path.write_text(EXTXYZ + EXTXYZ.replace("Na", "K"))
    crystals, failures = read_structures([path])
    assert not failures
    assert [(c.id, c.formula) for c in crystals] == [
        ("traj.extxyz#0", "NaCl"),
        ("traj.extxyz#1", "KCl"),
    ]
    np.testing.assert_allclose(crystals[0].frac_coords[1], [0.5, 0.5, 0.5], atol=1e-12)
    np.testing.assert_allclose(crystals[0].lattice[2], [1, 0, 5])


def test_extended_xyz_agrees_with_ase(tmp_path: Path) -> None:
    ase_io = pytest.importorskip("ase.io", reason="ase is not installed")
    atoms = pytest.importorskip("ase.build").bulk("ZnS", "wurtzite", a=3.8, c=6.2)
    path = tmp_path / "zns.extxyz"
    ase_io.write(path, atoms, format="extxyz")
    (crystal,), _ = read_structures([path])
    np.testing.assert_allclose(crystal.lattice, atoms.cell[:], atol=1e-7)
    np.testing.assert_allclose(
        crystal.frac_coords @ crystal.lattice, atoms.get_positions(), atol=1e-6
    )
    assert crystal.numbers.tolist() == atoms.numbers.tolist()


def test_molecules_and_truncated_xyz_fail(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("1\nwater\nH 0 0 0\n")
    (tmp_path / "b.xyz").write_text(EXTXYZ.rsplit("Cl", 1)[0])
    crystals, failures = read_structures([tmp_path])
    assert not crystals
    assert "not a crystal" in failures[0].reason
    assert "announces 2 atoms, 1 follow" in failures[1].reason


def test_partially_occupied_cif_fails_with_the_site(tmp_path: Path) -> None:
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    alloy.to(filename=str(tmp_path / "alloy.cif"))
    crystals, failures = read_structures([tmp_path / "alloy.cif"])
    assert not crystals
    assert failures[0].id == "alloy.cif"
    assert "partially occupied" in failures[0].reason


def test_vacancies_are_partial_occupancy(tmp_path: Path) -> None:
    Structure(Lattice.cubic(3), [{"Cu": 0.9}], [[0, 0, 0]]).to(filename=str(tmp_path / "v.cif"))
    _, failures = read_structures([tmp_path / "v.cif"])
    assert "partially occupied" in failures[0].reason


def test_overlapping_atoms_in_a_cif(tmp_path: Path) -> None:
    close = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0.98], [0, 0, 0.05]])
    close.to(filename=str(tmp_path / "close.cif"))
    _, failures = read_structures([tmp_path / "close.cif"])
    assert "overlapping atoms" in failures[0].reason
    assert "0.28 Å" in failures[0].reason


def test_unknown_element_in_a_cif(tmp_path: Path) -> None:
    ROCK_SALT.to(filename=str(tmp_path / "x.cif"))
    text = (tmp_path / "x.cif").read_text()
    (tmp_path / "x.cif").write_text(text.replace("Na", "Qq"))
    crystals, failures = read_structures([tmp_path / "x.cif"])
    assert not crystals
    assert len(failures) == 1


def test_garbage_is_a_failure_and_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "bad.cif").write_bytes(b"\x00\xff not a cif")
    (tmp_path / "sub").mkdir()
    ROCK_SALT.to(filename=str(tmp_path / "sub" / "good.cif"))
    (tmp_path / "notes.txt").write_text("ignored")
    crystals, failures = read_structures([tmp_path])
    assert [c.id for c in crystals] == ["sub/good.cif"]
    assert [f.id for f in failures] == ["bad.cif"]
    assert failures[0].reason.startswith("unreadable")


def test_a_cif_that_lists_what_its_symmetry_makes_says_so(tmp_path: Path) -> None:
    path = tmp_path / "doubled.cif"
    ends = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    perovskite = Structure(Lattice.cubic(3.9), ["Sr", "Ti", "O", "O", "O"], ends)
    text = str(CifWriter(perovskite, symprec=0.01)).rstrip()
    path.write_text(text + "\n  O  O9  3  0.5  0.0  0.5  1\n")
    assert "P 1'" not in text
    (failure,) = read_structures([path])[1]
    assert failure.reason.startswith("unreadable: ")
    assert failure.reason.endswith("Occupancy 2.0 exceeded tolerance")


def test_paths_that_cannot_be_meant(tmp_path: Path) -> None:
    (tmp_path / "salt.cif").write_text("")
    with pytest.raises(InputDataError, match=r"does not exist.*salt\.cif"):
        read_structures([tmp_path / "slat.cif"])
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(InputDataError, match="not known"):
        read_structures([tmp_path / "a.docx"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="no structure file"):
        read_structures([tmp_path / "empty"])
    with pytest.raises(InputDataError, match=r"salt\.cif is given 2 times"):
        read_structures([tmp_path / "salt.cif", tmp_path / "empty" / ".." / "salt.cif"])


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    places = ["a/c1/POSCAR", "a/c2/POSCAR", "b/c1/POSCAR", "b/c3/CONTCAR"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True)
        ROCK_SALT.to(filename=str(tmp_path / place), fmt="poscar")
    files, _ = read_structures([tmp_path / place for place in places])
    assert [c.id for c in files] == ["a/c1/POSCAR", "c2/POSCAR", "b/c1/POSCAR", "CONTCAR"]
    folders, _ = read_structures([tmp_path / "a", tmp_path / "b"])
    assert [c.id for c in folders] == ["a/c1/POSCAR", "c2/POSCAR", "b/c1/POSCAR", "c3/CONTCAR"]
    whole, _ = read_structures([tmp_path])
    assert [c.id for c in whole] == places


def test_tables_with_the_same_ids_are_refused(tmp_path: Path) -> None:
    tables = [write_table(tmp_path / name) for name in ("t.parquet", "u.parquet")]
    with pytest.raises(InputDataError, match="2 structures are called 'a'"):
        read_structures(tables)


def test_other_tables_and_hidden_files_of_folders_are_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet")
    write_table(tmp_path / ".t.parquet")
    for name in ("x.parquet", "p.parquet", "q.parquet"):
        pd.DataFrame({"id": ["a"]}).to_parquet(tmp_path / name)
    said: list[str] = []
    crystals, failures = read_structures(
        [tmp_path], output=[tmp_path / "p.parquet"], say=said.append
    )
    assert [c.id for c in crystals] == ["a", "b"]
    assert not failures
    assert len(said) == 1
    assert "2 Parquet files" in said[0]
    with pytest.raises(InputDataError, match="no column"):
        read_structures([tmp_path / "x.parquet"])
    for path in (tmp_path, tmp_path / "t.parquet"):
        with pytest.raises(ConfigurationError, match=r"t\.parquet holds structures and is the out"):
            read_structures([path], output=[tmp_path / "t.parquet"])


def test_table_rows_are_crystals_or_failures(tmp_path: Path) -> None:
    crystals, failures = read_structure_table(write_table(tmp_path / "t.parquet"))
    assert [c.id for c in crystals] == ["a", "b"]
    assert not failures
    assert crystals[0].formula == "CsCl"
    np.testing.assert_array_equal(crystals[1].frac_coords[1], [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"species": ["Cs", "Xx"]}, "unknown element 'Xx'"),
        ({"species": ["Cs"]}, "malformed row"),
        ({"species": [], "frac_coords": []}, "malformed row"),
        ({"species": None}, "malformed row"),
        ({"lattice": [1.0] * 8}, "malformed row"),
        ({"lattice": [1.0, 0, 0, 2.0, 0, 0, 0, 0, 1.0]}, "flat"),
        ({"lattice": [float("nan")] * 9}, "not finite"),
        ({"frac_coords": [0.0, 0, 0, 0, 0, 0.1]}, "overlapping atoms"),
        ({"frac_coords": [0.0, 0, 0, 5.0, -3.0, 0.95]}, "overlapping atoms"),
    ],
)
def test_bad_rows(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    crystals, failures = read_structure_table(write_table(tmp_path / "t.parquet", **changes))
    assert [c.id for c in crystals] == ["a"]
    assert [f.id for f in failures] == ["b"]
    assert reason in failures[0].reason


def test_nested_lists_are_the_same_table(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet")
    flat, _ = read_structure_table(path)
    table = pd.read_parquet(path)
    for column in ("lattice", "frac_coords"):
        table[column] = [np.reshape(row, (-1, 3)).tolist() for row in table[column]]
    table.to_parquet(path)
    nested, failures = read_structure_table(path)
    assert not failures
    for one, other in zip(flat, nested, strict=True):
        assert one.id == other.id
        np.testing.assert_array_equal(one.lattice, other.lattice)
        np.testing.assert_array_equal(one.frac_coords, other.frac_coords)
    # three lists of n numbers, one an axis, would be read as sites if only their total counted
    table.at[1, "frac_coords"] = [[0.0, 0.5], [0.0, 0.5], [0.0, 0.5]]
    table.to_parquet(path)
    crystals, failures = read_structure_table(path)
    assert [c.id for c in crystals] == ["a"]
    assert "inner list" in failures[0].reason


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("frac_coords", "0 0 0", "numbers"),
        ("lattice", 4.0, "numbers"),
        ("frac_coords", ["x"] * 6, "numbers"),
        ("species", [["Cs"], ["Cl"]], "symbols"),
    ],
)
def test_columns_of_another_type_are_named(
    tmp_path: Path, column: str, value: object, wanted: str
) -> None:
    path = write_table(tmp_path / "t.parquet")
    pd.read_parquet(path).assign(**{column: [value, value]}).to_parquet(path)
    with pytest.raises(InputDataError, match=f'"{column}" must hold lists of {wanted}'):
        read_structure_table(path)


def test_truncated_files_have_a_plain_reason(tmp_path: Path) -> None:
    poscar = ROCK_SALT.to(fmt="poscar")
    for lines in (1, 4, 9):
        (tmp_path / f"POSCAR_{lines}").write_text("\n".join(poscar.splitlines()[:lines]))
    (tmp_path / "POSCAR_word").write_text(poscar.rsplit(" ", 2)[0].rsplit(" ", 1)[0])
    (tmp_path / "word.xyz").write_text(EXTXYZ.rsplit("Cl", 1)[0] + "Cl 1.0 2.0\n")
    (tmp_path / "count.xyz").write_text("2")
    (tmp_path / "text.xyz").write_text("hello\nworld\n")
    _, failures = read_structures([tmp_path])
    assert len(failures) == 7
    for failure in failures:
        name = "extended XYZ" if failure.id.endswith("xyz") else "POSCAR"
        assert failure.reason == f"unreadable: it ends early or is no {name}"


def test_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.parquet")
    pd.read_parquet(path).rename(columns={"frac_coords": "frac_coord"}).to_parquet(path)
    with pytest.raises(InputDataError, match=r'"frac_coords"; did you mean "frac_coord"'):
        read_structure_table(path)
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputDataError, match="cannot read"):
        read_structure_table(tmp_path / "no.parquet")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-3, 3), min_size=9, max_size=9),
    st.lists(st.floats(-2, 2), min_size=3, max_size=18),
)
@example([-2.0, 0.0, -2.5, 0.0, 0.0, 0.0, -2.0, 2.0, 0.0], [0.0, 0.0, 0.0])
def test_overlaps_are_those_that_pymatgen_finds(cell: list[float], coords: list[float]) -> None:
    lattice = np.array(cell).reshape(3, 3) + 3.5 * np.eye(3)
    positions = np.array(coords[: len(coords) // 3 * 3]).reshape(-1, 3)
    crystal = Crystal("x", lattice, np.full(len(positions), 11, dtype=np.int64), positions)
    defect = find_defect(crystal)
    if defect is not None and ("flat" in defect or "too thin" in defect):
        return  # refused whatever the distances are
    structure = crystal.to_structure()
    images = structure.get_all_neighbors(SHORTEST_DISTANCE * (1 + 1e-9))
    shortest = min((n.nn_distance for site in images for n in site), default=np.inf)
    if abs(shortest - SHORTEST_DISTANCE) > 1e-6:
        assert (defect is not None) == (shortest < SHORTEST_DISTANCE)


def test_the_real_tables_are_whole(data_dir: Path) -> None:
    crystals, failures = read_structure_table(data_dir / "eval_prototypes.parquet")
    table = pd.read_parquet(data_dir / "eval_prototypes.parquet")
    assert len(crystals) + len(failures) == len(table) == 666
    assert not failures
    assert [c.formula for c in crystals[:200]] == table["formula"].tolist()[:200]
