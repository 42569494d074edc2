import pickle

import numpy as np
import pytest

from prototypes.errors import ElementPrototypeError, RoleError, StructureFileError
from prototypes.library import load_built_in
from prototypes.prototype import Prototype

CUBE = np.eye(3) * 4.0


def test_arrays_cannot_be_changed() -> None:
    prototype = load_built_in("B2")
    with pytest.raises(ValueError, match="read-only"):
        prototype.lattice[0, 0] = 1.0


def test_equality_and_hash_follow_the_geometry() -> None:
    first = load_built_in("perovskite")
    copy = pickle.loads(pickle.dumps(first))
    assert copy == first
    assert hash(copy) == hash(first)
    assert len(first.geometry_hash()) == 64
    assert first != load_built_in("cubic_perovskite")
    assert first != "perovskite"


def test_formula_and_amounts_follow_the_primitive_cell() -> None:
    conventional = Prototype.from_sites(
        "rock salt",
        CUBE * 1.4,
        [
            *([0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]),
            *([0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]),
        ],
        ["A"] * 4 + ["X"] * 4,
        {"A": "Na", "X": "Cl"},
        source="test",
    )
    assert conventional.formula == "AX"
    assert conventional.amounts == (1, 1)
    assert conventional.site_roles == (0, 1)
    assert conventional.interchangeable_roles() == (("A", "X"),)


def test_overlapping_sites_are_named() -> None:
    with pytest.raises(StructureFileError, match=r"atoms 1 \(Na\) and 2 \(Cl\) of x overlap"):
        Prototype.from_sites(
            "x",
            CUBE,
            [[0, 0, 0], [0.99, 0, 0]],
            ["A", "B"],
            {"A": "Na", "B": "Cl"},
            source="test",
        )


def test_a_flat_cell_is_refused() -> None:
    with pytest.raises(StructureFileError, match="no volume"):
        Prototype.from_sites(
            "x",
            np.ones((3, 3)),
            [[0, 0, 0], [0.5, 0.5, 0.5]],
            ["A", "B"],
            {"A": "Na", "B": "Cl"},
            source="test",
        )


def test_one_role_is_an_element() -> None:
    with pytest.raises(ElementPrototypeError, match="nothing to substitute"):
        Prototype.from_sites("x", CUBE, [[0, 0, 0]], ["A"], {"A": "Na"}, source="test")


def test_roles_of_sites_and_reference_must_agree() -> None:
    with pytest.raises(RoleError, match="roles A, C"):
        Prototype.from_sites(
            "x",
            CUBE,
            [[0, 0, 0], [0.5, 0.5, 0.5]],
            ["A", "C"],
            {"A": "Na", "B": "Cl"},
            source="test",
        )
