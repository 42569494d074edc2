from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from prototypes.errors import ElementPrototypeError, RoleError, StructureFileError
from prototypes.library import find_prototype
from prototypes.structure_file import parse_role_names, read_prototype

CUBE = Lattice.cubic(3.905)
PEROVSKITE = Structure(
    CUBE,
    ["Sr", "Ti", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)

HEADER = """data_test
_cell_length_a 4.0
_cell_length_b 4.0
_cell_length_c 4.0
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


def written(folder: Path, structure: Structure, symprec: float | None = None) -> Path:
    path = folder / "mine.cif"
    CifWriter(structure, symprec=symprec).write_file(str(path))
    return path


def by_hand(folder: Path, rows: str) -> Path:
    path = folder / "mine.cif"
    path.write_text(HEADER + rows)
    return path


def test_species_become_roles_like_those_of_the_built_in_prototype(tmp_path: Path) -> None:
    prototype = find_prototype(written(tmp_path, PEROVSKITE))
    built_in = find_prototype("cubic_perovskite")
    assert prototype.name == "mine"
    assert prototype.roles == built_in.roles
    assert prototype.reference_elements == ("Sr", "Ti", "O")
    assert prototype.formula == built_in.formula
    assert not prototype.exact
    np.testing.assert_allclose(prototype.lattice, np.eye(3) * 3.905, atol=1e-12)


def test_a_supercell_and_symmetry_operations_give_the_primitive_cell(tmp_path: Path) -> None:
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    for structure, symprec in ((salt, 1e-3), (salt * (2, 1, 1), None)):
        prototype = read_prototype(written(tmp_path, structure, symprec))
        assert prototype.amounts == (1, 1)
        assert prototype.role_permutations == ((0, 1), (1, 0))


def test_roles_can_be_given_by_element_or_by_label(tmp_path: Path) -> None:
    path = by_hand(
        tmp_path,
        "Sr1 Sr 0 0 0 1\nTi1 Ti 0.5 0.5 0.5 1\n"
        "O1 O 0.5 0.5 0 1\nO2 O 0.5 0 0.5 1\nO3 O 0 0.5 0.5 1\n",
    )
    plain = read_prototype(path, {"Sr": "B", "Ti": "A", "O": "X"})
    assert dict(zip(plain.roles, plain.reference_elements, strict=True)) == {
        "A": "Ti",
        "B": "Sr",
        "X": "O",
    }
    split = read_prototype(path, {"Sr": "A", "Ti": "B", "O": "X", "O1": "Y"})
    assert split.formula == "ABX2Y"
    assert split.amounts == (1, 1, 2, 1)


def test_four_interchangeable_roles_of_a_quaternary_heusler_compound(tmp_path: Path) -> None:
    heusler = Structure.from_spacegroup(
        "F-43m",
        Lattice.cubic(6.3),
        ["Li", "Mg", "Pd", "Sn"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]],
    )
    prototype = read_prototype(written(tmp_path, heusler))
    assert prototype.amounts == (1, 1, 1, 1)
    assert len(prototype.role_permutations) == 8
    assert prototype.interchangeable_roles() == (("A", "B", "C", "D"),)


def test_partial_occupancy_is_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Na1 Na 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1\n")
    with pytest.raises(StructureFileError, match=r"site \d .*Na:0\.5.* is partially occupied"):
        read_prototype(path)


def test_mixed_occupancy_is_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Na1 Na 0 0 0 0.5\nK1 K 0 0 0 0.5\nCl1 Cl 0.5 0.5 0.5 1\n")
    with pytest.raises(StructureFileError, match="partially occupied"):
        read_prototype(path)


def test_overlapping_atoms_are_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Na1 Na 0 0 0 1\nK1 K 0.05 0 0 1\nCl1 Cl 0.5 0.5 0.5 1\n")
    with pytest.raises(StructureFileError, match=r"overlap: they are 0\.200 Å apart"):
        read_prototype(path)


def test_two_atoms_on_one_place_are_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Na1 Na 0 0 0 1\nK1 K 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 1\n")
    with pytest.raises(StructureFileError, match=r"mine\.cif"):
        read_prototype(path)


@pytest.mark.parametrize(
    "text", ["", "not a cif at all\n", "data_x\n_cell_length_a 4.0\n", HEADER, "\x00\x01\x02"]
)
def test_an_unreadable_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.cif"
    path.write_text(text)
    with pytest.raises(StructureFileError, match=r"mine\.cif"):
        read_prototype(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.cif"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(StructureFileError, match="cannot be read"):
        read_prototype(path)


def test_two_structures_in_one_file_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, PEROVSKITE)
    path.write_text(path.read_text() + path.read_text().replace("data_", "data_again_"))
    with pytest.raises(StructureFileError, match="holds 2 structures"):
        read_prototype(path)


def test_deuterium_counts_as_hydrogen(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Li1 Li 0 0 0 1\nD1 D 0.5 0.5 0.5 1\n")
    assert read_prototype(path).reference_elements == ("Li", "H")


def test_a_placeholder_species_is_refused(tmp_path: Path) -> None:
    path = by_hand(tmp_path, "Li1 Li 0 0 0 1\nX1 X 0.5 0.5 0.5 1\n")
    with pytest.raises(StructureFileError, match="no element"):
        read_prototype(path)


def test_an_element_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ElementPrototypeError, match="single site role"):
        read_prototype(written(tmp_path, Structure(CUBE, ["Po"], [[0, 0, 0]])))


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"Sr": "A", "Ti": "B"}, r"has no role; add O=ROLE"),
        ({"Sr": "A", "Ti": "B", "O": "X", "Na": "C"}, 'no element or site label "Na"'),
    ],
)
def test_roles_that_do_not_fit_the_file(
    tmp_path: Path, roles: dict[str, str], message: str
) -> None:
    with pytest.raises(RoleError, match=message):
        read_prototype(written(tmp_path, PEROVSKITE), roles)


@pytest.mark.parametrize("specs", ["Ca", "Ca=", "=A", "Ca=A,Ca=B", "Ca=1"])
def test_badly_written_role_names(specs: str) -> None:
    with pytest.raises(RoleError):
        parse_role_names(specs)
