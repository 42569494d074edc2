import pytest

from prototypes.cif import LONGEST_LINE, MOST_IMAGES, MOST_SIGNS, check_cif

HEAD = "data_x\n_cell_length_a 4\n"
SITES = "loop_\n_atom_site_label\n_atom_site_fract_x\n"


def make_sites(count: int) -> str:
    return SITES + "Na 0.5\n" * count


@pytest.mark.parametrize("group", ["", "_symmetry_space_group_name_H-M 'P 1'\n"])
def test_sites_without_symmetry_count_once(group: str) -> None:
    check_cif(HEAD + group + make_sites(MOST_IMAGES))
    with pytest.raises(ValueError, match="10,001 atoms"):
        check_cif(HEAD + group + make_sites(MOST_IMAGES + 1))


def test_sites_count_once_for_each_operation_that_is_listed() -> None:
    operations = "loop_\n_symmetry_equiv_pos_as_xyz\n" + "'x, y, z'\n" * 100
    check_cif(HEAD + operations + make_sites(100))
    with pytest.raises(ValueError, match="10,100 atoms"):
        check_cif(HEAD + operations + make_sites(101))


@pytest.mark.parametrize("key", ["_symmetry_Int_Tables_number 225", "_space_group_IT_number 225"])
def test_a_group_without_operations_may_have_192(key: str) -> None:
    check_cif(f"{HEAD}{key}\n" + make_sites(52))
    with pytest.raises(ValueError, match="10,176 atoms"):
        check_cif(f"{HEAD}{key}\n" + make_sites(53))


def test_lines_and_files_have_limits() -> None:
    check_cif(HEAD + "#" * LONGEST_LINE + "\n" + make_sites(1))
    with pytest.raises(ValueError, match="a line of 2,049 characters"):
        check_cif(HEAD + "#" * (LONGEST_LINE + 1))
    with pytest.raises(ValueError, match="5,000,001 characters"):
        check_cif("#\n" * (MOST_SIGNS // 2) + "#")
