import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from prototypes.elements import ATOMIC_NUMBERS
from prototypes.errors import (
    AmbiguousPrototypeError,
    ElementPrototypeError,
    StructureFileError,
    UnknownPrototypeError,
)
from prototypes.library import BUILT_IN, find_prototype, list_prototypes, load_built_in
from prototypes.prototype import Prototype
from prototypes.structures import build_structure


def reference_structure(prototype: Prototype) -> Structure:
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in prototype.reference_elements]
    return build_structure(prototype, numbers, volume="prototype")


@pytest.mark.parametrize(
    ("name", "formula", "sites", "space_group"),
    [
        ("B2", "AB", 2, 221),
        ("L1_0", "AB", 2, 123),
        ("perovskite", "ABX3", 20, 62),
        ("cubic_perovskite", "ABX3", 5, 221),
        ("K2NiF4", "A2BX4", 7, 139),
        ("double_perovskite", "A2BCX6", 10, 225),
    ],
)
def test_built_in_prototypes_are_what_their_names_say(
    name: str, formula: str, sites: int, space_group: int
) -> None:
    prototype = find_prototype(name)
    assert prototype.name == name
    assert prototype.exact
    assert prototype.formula == formula
    assert len(prototype.site_roles) == sites
    structure = reference_structure(prototype)
    assert SpacegroupAnalyzer(structure, symprec=1e-5).get_space_group_number() == space_group


@pytest.mark.parametrize("name", ["B2", "L1_0", "cubic_perovskite"])
def test_built_in_geometry_is_that_of_the_aflow_entry_it_cites(name: str) -> None:
    prototype = load_built_in(name)
    assert prototype.aflow_label is not None
    entry = find_prototype(prototype.aflow_label)
    matcher = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, scale=False)
    assert matcher.fit(reference_structure(prototype), reference_structure(entry))


def test_perovskite_is_a_tilted_network_of_regular_octahedra() -> None:
    """Bertaut 1967: Fe in nearly regular octahedra of O, tilted so that Tb sees 8 O, not 12."""
    structure = reference_structure(load_built_in("perovskite"))
    iron = next(site for site in structure if site.specie.symbol == "Fe")
    bonds = [near.nn_distance for near in structure.get_neighbors(iron, 2.5)]
    assert len(bonds) == 6
    assert np.ptp(bonds) < 0.05
    terbium = next(site for site in structure if site.specie.symbol == "Tb")
    near = [n for n in structure.get_neighbors(terbium, 2.8) if n.specie.symbol == "O"]
    assert len(near) == 8


def test_perovskite_equals_its_source_in_the_source_setting() -> None:
    """Space group expansion by pymatgen of the asymmetric unit printed in COD 1008091."""
    source = Structure.from_spacegroup(
        "Pbnm",
        Lattice.orthorhombic(5.326, 5.602, 7.635),
        ["Fe", "Tb", "O", "O"],
        [[0, 0.5, 0], [-0.0185, 0.066, 0.25], [0.11, 0.458, 0.25], [-0.308, 0.306, 0.053]],
    )
    matcher = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, scale=False)
    assert matcher.fit(source, reference_structure(load_built_in("perovskite")))


def test_k2nif4_equals_its_source_in_the_source_setting() -> None:
    """Space group expansion by pymatgen of the parameters that Balz and Plieth 1955 give."""
    source = Structure.from_spacegroup(
        "I4/mmm",
        Lattice.tetragonal(4.006, 13.076),
        ["K", "Ni", "F", "F"],
        [[0, 0, 0.352], [0, 0, 0], [0, 0.5, 0], [0, 0, 0.151]],
    )
    matcher = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, scale=False)
    assert matcher.fit(source, reference_structure(load_built_in("K2NiF4")))


def test_k2nif4_is_the_type_that_aflow_has_as_lanthanum_cuprate_with_the_same_roles() -> None:
    """AFLOW part 3 calls the two equivalent; A is the large cation of both."""
    ours, theirs = load_built_in("K2NiF4"), find_prototype("AB2C4_tI14_139_a_e_ce")
    numbers = [ATOMIC_NUMBERS[symbol] for symbol in ("La", "Cu", "O")]
    by_role = dict(zip(("A", "B", "X"), numbers, strict=True))
    first = build_structure(ours, [by_role[role] for role in ours.roles], volume="prototype")
    second = build_structure(theirs, [by_role[role] for role in theirs.roles], volume="prototype")
    assert StructureMatcher().fit(first, second)


def test_nickel_of_k2nif4_has_six_fluorines_and_potassium_nine() -> None:
    structure = reference_structure(load_built_in("K2NiF4"))
    for symbol, count, reach in (("Ni", 6, 2.1), ("K", 9, 3.0)):
        site = next(each for each in structure if each.specie.symbol == symbol)
        near = [n for n in structure.get_neighbors(site, reach) if n.specie.symbol == "F"]
        assert len(near) == count


def test_double_perovskite_is_its_source_but_for_the_fluorine_between_the_octahedra() -> None:
    """Yakubovich et al. 2013 give x(F) = 0.2187; the prototype has 1/4, a shift of 0.26 A."""

    def from_source(x: float) -> Structure:
        return Structure.from_spacegroup(
            "Fm-3m",
            Lattice.cubic(8.3087),
            ["Rb", "Al", "Na", "F"],
            [[0.25, 0.25, 0.25], [0, 0, 0], [0.5, 0, 0], [0, x, 0]],
        )

    ours = reference_structure(load_built_in("double_perovskite"))
    tight = StructureMatcher(ltol=1e-6, stol=1e-6, angle_tol=1e-4, scale=False)
    assert tight.fit(from_source(0.25), ours)
    assert not tight.fit(from_source(0.2187), ours)
    assert StructureMatcher().fit(from_source(0.2187), ours)


def test_double_perovskite_is_a_cubic_perovskite_whose_b_sites_alternate() -> None:
    double = load_built_in("double_perovskite")
    same = {"A": "Ca", "B": "Ti", "C": "Ti", "X": "O"}
    numbers = [ATOMIC_NUMBERS[same[role]] for role in double.roles]
    plain = reference_structure(load_built_in("cubic_perovskite"))
    assert StructureMatcher().fit(build_structure(double, numbers, volume="prototype"), plain)
    structure = reference_structure(double)
    for symbol, count in (("Na", 6), ("Al", 6), ("Rb", 12)):
        site = next(each for each in structure if each.specie.symbol == symbol)
        near = [n for n in structure.get_neighbors(site, 3.0) if n.specie.symbol == "F"]
        assert len(near) == count
        assert np.ptp([n.nn_distance for n in near]) < 1e-9


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("elpasolite", "double_perovskite"),
        ("Double Perovskite", "double_perovskite"),
        ("k2nif4", "K2NiF4"),
        ("A4B2C_tI14_139_ce_e_a", "K2NiF4"),
        ("b2", "B2"),
        ("CsCl", "B2"),
        ("L10", "L1_0"),
        ("Perovskite", "perovskite"),
        ("GdFeO3", "perovskite"),
        ("Orthorhombic Perovskite", "perovskite"),
        ("E2_1", "cubic_perovskite"),
        ("cubic perovskite", "cubic_perovskite"),
        ("AB3C_oP20_62_c_cd_a", "AB3C_oP20_62_c_cd_a"),
        ("B1", "AB_cF8_225_a_b"),
        ("rock salt", "AB_cF8_225_a_b"),
        ("half-heusler", "ABC_cF12_216_b_c_a"),
        ("AB_oP8_62_c_c:MnP", "AB_oP8_62_c_c:MnP"),
        ("B31", "AB_oP8_62_c_c:MnP"),
        ("I4/mcm", "AB_tI16_140_ab_h"),
    ],
)
def test_names_of_every_kind_find_their_prototype(name: str, found: str) -> None:
    assert find_prototype(name).name == found


def test_the_anion_of_aflows_perovskite_is_x() -> None:
    prototype = find_prototype("AB3C_cP5_221_a_c_b")
    assert dict(zip(prototype.roles, prototype.reference_elements, strict=True)) == {
        "A": "Ca",
        "B": "Ti",
        "X": "O",
    }
    assert prototype.formula == "ABX3"
    assert not prototype.exact


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("C22", ["A2B_hP9_150_ef_bd", "A2B_hP9_189_fg_bc"]),
        ("A2B_oP12_62_2c_c", [":Co2Si", ":HgCl2", ":PbCl2"]),
        ("hexagonal laves", ["C14", "C36"]),
    ],
)
def test_an_ambiguous_name_lists_its_choices(name: str, choices: list[str]) -> None:
    with pytest.raises(AmbiguousPrototypeError) as caught:
        find_prototype(name)
    for choice in choices:
        assert choice in str(caught.value)


@pytest.mark.parametrize("name", ["A1", "diamond", "A_cF4_225_a", "alpha"])
def test_an_element_is_refused(name: str) -> None:
    with pytest.raises(ElementPrototypeError, match="element"):
        find_prototype(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("perovskit", "perovskite"), ("spinell", "Spinel"), ("AB_cF8_225_a_c", "AB_cF8_225_a_b")],
)
def test_an_unknown_name_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownPrototypeError, match=f'did you mean "{nearest}"'):
        find_prototype(name)


@pytest.mark.parametrize("path", ["nowhere/mine.cif", "mine.cif", "some/where"])
def test_a_missing_file_is_called_missing(path: str) -> None:
    with pytest.raises(StructureFileError, match="there is no file"):
        find_prototype(path)


def test_a_misspelt_file_names_the_nearest_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.cif").touch()
    for name in ("min.cif", "mine.cf"):
        with pytest.raises(StructureFileError, match=r'did you mean "mine\.cif"\? check the path'):
            find_prototype(str(tmp_path / name))


def test_the_list_is_complete_and_every_name_in_it_is_found() -> None:
    records = list_prototypes()
    assert len(records) == 6 + 288
    assert len({record.name for record in records}) == len(records)
    assert sum(record.is_element for record in records) == 55
    assert sum(record.strukturbericht is None for record in records[6:]) == 114
    for record in records:
        if record.is_element:
            with pytest.raises(ElementPrototypeError):
                find_prototype(record.name)
        else:
            prototype = find_prototype(record.name)
            assert prototype.name == record.name
            assert prototype.formula == record.formula
            assert prototype.source == record.source
            assert tuple(zip(prototype.roles, prototype.reference_elements, strict=True)) == (
                record.roles
            )


def test_built_in_prototypes_and_their_candidates_need_no_pymatgen() -> None:
    code = (
        "import sys, prototypes as p\n"
        "for name in p.BUILT_IN:\n"
        "    found = p.find_prototype(name)\n"
        "    space = p.CandidateSpace(found, p.parse_role_pools(['all89'], found.roles))\n"
        "    indices, numbers = space.decode(0, min(20_000, space.index_count))\n"
        "    space.formulas(numbers), space.index(space.candidate(int(indices[7])))\n"
        "p.list_prototypes(aflow=False)\n"
        "heavy = {'pymatgen', 'spglib', 'torch', 'dask', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_listing_and_naming_aflow_prototypes_needs_no_pymatgen() -> None:
    code = (
        "import sys, prototypes as p\n"
        "assert len(p.list_prototypes()) == 294\n"
        "for name, error in {'spinell': p.UnknownPrototypeError, 'no/such': p.StructureFileError,\n"
        "        'C22': p.AmbiguousPrototypeError, 'diamond': p.ElementPrototypeError}.items():\n"
        "    try:\n"
        "        p.find_prototype(name)\n"
        "    except error:\n"
        "        continue\n"
        "    raise AssertionError(name)\n"
        "heavy = {'pymatgen', 'spglib', 'torch', 'dask', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_prototype_names_its_source(name: str) -> None:
    years = ("(1925)", "(1955)", "(1967)", "(1986)", "(1990)", "(2013)")
    assert any(year in load_built_in(name).source for year in years)
