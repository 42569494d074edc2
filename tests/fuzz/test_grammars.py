"""Inputs made by a grammar: what is refused is refused with an exit code, and in little time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prototypes import element_pool
from screening.errors import exit_code_of
from screening.phases import count_atoms
from screening.printing import make_printable
from screening.requirements import parse_requirement
from screening.settings import CampaignSettings, read_settings

EXAMPLES = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

signs = st.characters(codec="utf-8", exclude_characters="\r")
texts = st.text(signs, max_size=12) | st.sampled_from(
    ["B2", "perovskite", "Li,Na", "X=O", "p_stable >= 0.5", "charge_neutral", "../x", "1" * 5000]
)
numbers = st.integers() | st.floats() | st.sampled_from([10**9, 10**30, -1, 0])
values = st.recursive(
    texts | numbers | st.booleans(), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
keys = st.sampled_from([*CampaignSettings.model_fields, "cluster.type"]) | texts
symbols = st.sampled_from("H He Li O Ti Xx D Fe Uuo h 1".split())
amounts = st.sampled_from(["", "2", "0", "0.5", ".", "1e3", "-1", "9" * 20, "9" * 5000, "٣"])
formulas = st.recursive(
    st.tuples(symbols, amounts).map("".join),
    lambda inner: (
        st.lists(inner, max_size=4).map("".join)
        | st.tuples(inner, amounts).map("({0[0]}){0[1]}".format)
    ),
    max_leaves=20,
)


def ends_well(call: Callable[[], Any]) -> None:
    """Call; an error without an exit code, or one that cannot be printed, is a failure."""
    try:
        call()
    except Exception as error:
        if exit_code_of(error) is None:
            raise
        make_printable(str(error)).encode()


def as_toml(table: dict[str, Any]) -> str:
    lines = []
    for key, value in table.items():
        name = key if key.replace("_", "").isalnum() and key.isascii() else json.dumps(key)
        with contextlib.suppress(ValueError):
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)


@EXAMPLES
@given(st.dictionaries(keys, values, max_size=6), st.booleans())
def test_settings_of_any_keys_and_values(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any], complete: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "grammar.toml"
    needed = {"prototype": "B2", "out": "campaign"} if complete else {}
    path.write_text(as_toml(needed | table), encoding="utf-8", errors="surrogatepass")
    ends_well(lambda: read_settings(path, {}))


@EXAMPLES
@given(st.text(st.sampled_from("[]{}=\"'#\n.,:-_0123456789abc\\\x00é "), max_size=200))
def test_settings_of_the_signs_of_toml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "signs.toml"
    path.write_text(text, encoding="utf-8")
    ends_well(lambda: read_settings(path, {}))


@EXAMPLES
@given(
    st.lists(
        st.sampled_from(
            "p_stable charge_neutral not prototype toxic_elements known < <= = == != has lacks ! "
            "0.5 nan yes none any Pb __import__('os') ( ) ; site_A candidate".split()
        )
        | texts,
        max_size=5,
    ).map(" ".join)
)
def test_requirements_are_parsed_and_never_evaluated(text: str) -> None:
    ends_well(lambda: parse_requirement(text))


@EXAMPLES
@given(st.lists(texts | st.sampled_from(["-", "!", "-O", "all89", "3d", "li"]), max_size=4))
def test_element_pools(words: list[str]) -> None:
    ends_well(lambda: element_pool(words))


@EXAMPLES
@given(formulas | texts)
def test_formulas(text: str) -> None:
    ends_well(lambda: count_atoms(text))


cells = st.lists(
    st.floats(0, 1e4) | st.sampled_from([0.0, 1e-9, 0.3, 3.9, 1e300, -1.0]), min_size=3, max_size=3
)
angles = st.lists(
    st.sampled_from([90.0, 60.0, 120.0, 0.0, 180.0, 179.9999, 1e-5, -90.0, 45.0]),
    min_size=3,
    max_size=3,
)
coordinates = st.sampled_from([0.0, 0.5, 0.25, 1e-9, 1e9, -7.5, 0.123])
sites = st.lists(
    st.tuples(symbols, coordinates, coordinates, coordinates, st.sampled_from([1, 0.5, 0, 2, -1])),
    max_size=6,
)
groups = st.sampled_from(["P 1", "F m -3 m", "P 63/m m c", "R -3 m", "nonsense", "?", "I 41/a"])


@EXAMPLES
@given(cells, angles, sites, groups)
def test_crystals_of_any_cell(
    tmp_path_factory: pytest.TempPathFactory,
    edges: list[float],
    corners: list[float],
    atoms: list[tuple[Any, ...]],
    group: str,
) -> None:
    from prototypes import find_prototype
    from screening.structures import read_structures

    path = tmp_path_factory.getbasetemp() / "grammar.cif"
    lines = ["data_x"]
    lines += [f"_cell_length_{axis} {edge!r}" for axis, edge in zip("abc", edges, strict=True)]
    for name, corner in zip(("alpha", "beta", "gamma"), corners, strict=True):
        lines.append(f"_cell_angle_{name} {corner!r}")
    lines += [f"_symmetry_space_group_name_H-M '{group}'", "loop_", "_atom_site_label"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"] + ["_atom_site_occupancy"]
    lines += [" ".join(map(str, atom)) for atom in atoms]
    path.write_text("\n".join(lines) + "\n")
    ends_well(lambda: find_prototype(path))
    crystals, failures = read_structures([path])
    assert len(crystals) + len(failures) == 1


HUGE = """data_huge
_cell_length_a 300
_cell_length_b 300
_cell_length_c 300
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""


def test_a_million_atoms_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    from prototypes import find_prototype
    from prototypes.errors import StructureFileError
    from screening.structures import read_structures

    path = tmp_path / "huge.cif"
    path.write_text(HUGE + "".join(f"Na 0.{i:06d} 0.5 0.5\n" for i in range(1_000_000)))
    with pytest.raises(StructureFileError, match="characters, more than"):
        find_prototype(path)
    ((), (failure,)) = map(tuple, read_structures([path]))
    assert "characters, more than" in failure.reason

    path.write_text(HUGE + "".join(f"Na 0.{i:05d} 0.5 0.5\n" for i in range(20_000)))
    with pytest.raises(StructureFileError, match="20,000 atoms"):
        find_prototype(path)
