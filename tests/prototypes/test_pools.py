import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element

from prototypes.elements import ATOMIC_NUMBERS, SYMBOLS
from prototypes.errors import PoolError, RoleError
from prototypes.pools import DEFAULT_POOL, ELEMENTS_89, GROUPS, element_pool, parse_role_pools


def symbols(pool: tuple[int, ...]) -> set[str]:
    return {SYMBOLS[number - 1] for number in pool}


def test_all89_is_z_1_to_94_without_five() -> None:
    expected = set(range(1, 95)) - {ATOMIC_NUMBERS[s] for s in ("Po", "At", "Rn", "Fr", "Ra")}
    assert set(ELEMENTS_89) == expected
    assert len(ELEMENTS_89) == 89
    assert element_pool("all89") == ELEMENTS_89


def test_default_pool_leaves_out_what_it_says() -> None:
    left_out = symbols(ELEMENTS_89) - symbols(DEFAULT_POOL)
    noble = {"He", "Ne", "Ar", "Kr", "Xe"}
    assert left_out == noble | {"Tc", "Pm", "Ac", "Th", "Pa", "U", "Np", "Pu"}
    assert element_pool("default") == DEFAULT_POOL


@pytest.mark.parametrize(
    ("group", "is_member"),
    [
        ("lanthanides", lambda e: e.is_lanthanoid),
        ("actinides", lambda e: e.is_actinoid),
        ("alkali", lambda e: e.is_alkali),
        ("alkaline_earth", lambda e: e.is_alkaline),
        ("halogens", lambda e: e.is_halogen),
        ("chalcogens", lambda e: e.is_chalcogen),
        ("noble_gases", lambda e: e.is_noble_gas),
        ("post_transition", lambda e: e.is_post_transition_metal),
        ("pnictogens", lambda e: e.group == 15),
        ("4d", lambda e: e.row == 5 and 3 <= e.group <= 12),
    ],
)
def test_groups_agree_with_pymatgen(group: str, is_member: object) -> None:
    assert callable(is_member)
    expected = {z for z in ELEMENTS_89 if is_member(Element.from_Z(z))}
    assert set(element_pool(group)) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("Li,Na,K", "Li Na K"),
        ("Li Na,K", "Li Na K"),
        ("alkali,-Cs,!Rb", "Li Na K"),
        ("-alkali,alkali,Mg", "Mg"),
        ("3d,-transition_metals,Al", "Al"),
        (["Li", "Na,K"], "Li Na K"),
    ],
)
def test_pools_from_lists_and_exclusions(spec: str | list[str], expected: str) -> None:
    assert symbols(element_pool(spec)) == set(expected.split())


def test_exclusions_alone_start_from_the_default_pool() -> None:
    assert set(element_pool("!O,-F")) == set(DEFAULT_POOL) - {8, 9}
    assert element_pool("default,-O,-F") == element_pool("-O,-F")


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_a_pool_within_the_89(group: str) -> None:
    assert set(element_pool(group)) <= set(ELEMENTS_89)


@given(st.sets(st.sampled_from(ELEMENTS_89), min_size=1))
def test_a_pool_written_as_symbols_reads_back(numbers: set[int]) -> None:
    assert element_pool(",".join(symbols(tuple(numbers)))) == tuple(sorted(numbers))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("li", 'did you mean "Li"'),
        ("lantanides", 'did you mean "lanthanides"'),
        ("Po", "not among the 89"),
        ("Li,-Li", "leaves no element"),
        ("", "empty"),
        (" , ", "empty"),
    ],
)
def test_bad_pools_say_what_to_do(spec: str, message: str) -> None:
    with pytest.raises(PoolError, match=message):
        element_pool(spec)


def test_role_pools_take_the_common_pool_where_they_have_none() -> None:
    pools = parse_role_pools(["Ca,Sr,Ba", "X=O,S,F"], ["A", "B", "X"])
    assert pools == {"A": (20, 38, 56), "B": (20, 38, 56), "X": (8, 9, 16)}
    assert parse_role_pools([], ["A", "B"]) == {"A": DEFAULT_POOL, "B": DEFAULT_POOL}
    assert parse_role_pools(["X=!O"], ["X"])["X"] == element_pool("-O")


@pytest.mark.parametrize(
    ("specs", "kind", "message"),
    [
        (["Y=O"], RoleError, 'unknown site role "Y".*the roles are A, X'),
        (["X=O", "X=S"], RoleError, "twice"),
        (["O", "S"], RoleError, "second pool"),
        (["X="], PoolError, "site role X is left without elements"),
        (["X=o"], PoolError, 'did you mean "O"'),
    ],
)
def test_bad_role_pools(specs: list[str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        parse_role_pools(specs, ["A", "X"])
