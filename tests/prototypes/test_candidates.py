import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.composition import Composition

from prototypes.aflow import entries
from prototypes.candidates import CandidateSpace
from prototypes.elements import SYMBOLS
from prototypes.errors import CandidateError, PoolError, RoleError
from prototypes.library import find_prototype, load_built_in
from prototypes.pools import ELEMENTS_89
from prototypes.prototype import Prototype
from prototypes.structures import build_structure

ALL = ELEMENTS_89
TIGHT = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1, scale=True)


def chain(count: int, spacing: float | None = None) -> Prototype:
    """A row of different atoms, evenly spaced unless told otherwise."""
    roles = "ABCDE"[:count]
    step = spacing or 1 / count
    return Prototype.from_sites(
        f"chain{count}",
        np.diag([3.0, 3.0, 2.5 * count]),
        [[0.0, 0.0, step * site] for site in range(count)],
        roles,
        dict(zip(roles, ["Li", "Na", "K", "Rb", "Cs"], strict=False)),
        source="test",
    )


PROTOTYPES = {
    "B2": load_built_in("B2"),
    "cubic_perovskite": load_built_in("cubic_perovskite"),
    "chain3": chain(3),
    "chain3 uneven": chain(3, 0.3),
    "chain4": chain(4),
    "chain4 uneven": chain(4, 0.22),
}


def same_pool(prototype: Prototype, pool: tuple[int, ...]) -> CandidateSpace:
    return CandidateSpace(prototype, dict.fromkeys(prototype.roles, pool))


def brute_force(space: CandidateSpace) -> list[tuple[int, ...]]:
    """One decoration per compound: the smallest of its equivalents that the pools allow."""
    decorations = {
        numbers for numbers in itertools.product(*space.pools) if len(set(numbers)) == len(numbers)
    }
    return sorted(
        numbers
        for numbers in decorations
        if not any(
            tuple(numbers[role] for role in permutation) < numbers
            for permutation in space.prototype.role_permutations
            if tuple(numbers[role] for role in permutation) in decorations
        )
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [("B2", 3916), ("L1_0", 3916), ("perovskite", 681_384), ("cubic_perovskite", 681_384)],
)
def test_counts_of_89_elements(name: str, count: int) -> None:
    space = same_pool(load_built_in(name), ALL)
    assert space.count == count
    indices, numbers = space.decode(0, space.index_count)
    assert indices.dtype == np.int64
    assert numbers.dtype == np.uint8
    assert len(indices) == len(numbers) == count
    assert np.all(np.diff(indices) > 0)


def test_count_of_double_perovskites_of_89_elements() -> None:
    space = same_pool(load_built_in("double_perovskite"), ALL)
    assert space.count == 89 * 88 * 87 * 86 // 2 == 29_299_512
    step = 2**22
    found = sum(
        len(space.decode(start, min(start + step, space.index_count))[0])
        for start in range(0, space.index_count, step)
    )
    assert found == space.count


def test_the_alternating_sites_of_a_double_perovskite_give_one_candidate_not_two() -> None:
    space = same_pool(load_built_in("double_perovskite"), ALL)
    rubidium, sodium, aluminium, fluorine = 37, 11, 13, 9
    one = space.index((rubidium, sodium, aluminium, fluorine))
    assert space.index((rubidium, aluminium, sodium, fluorine)) == one
    assert space.candidate(one) == (rubidium, sodium, aluminium, fluorine)
    assert space.formula(space.candidate(one)) == "Rb2NaAlF6"
    assert space.index((sodium, rubidium, aluminium, fluorine)) != one


pools = st.lists(st.sampled_from(range(1, 9)), min_size=1, max_size=6, unique=True)


@given(st.sampled_from(sorted(PROTOTYPES)), st.data())
@settings(deadline=None, max_examples=120)
def test_candidates_are_those_of_brute_force_for_any_pools(name: str, data: st.DataObject) -> None:
    prototype = PROTOTYPES[name]
    chosen = {role: data.draw(pools, label=role) for role in prototype.roles}
    try:
        space = CandidateSpace(prototype, chosen)
    except PoolError:
        decorations = itertools.product(*chosen.values())
        assert all(len(set(numbers)) < len(numbers) for numbers in decorations)
        return
    expected = brute_force(space)
    indices, numbers = space.decode(0, space.index_count)
    assert [tuple(row) for row in numbers.tolist()] == expected
    assert space.count == len(expected)
    for index, row in zip(indices.tolist(), expected, strict=True):
        assert space.candidate(index) == row
        assert space.index(row) == index


@given(st.sampled_from(sorted(PROTOTYPES)), st.data())
@settings(deadline=None, max_examples=60)
def test_any_range_is_a_slice_of_the_whole(name: str, data: st.DataObject) -> None:
    space = same_pool(PROTOTYPES[name], (1, 3, 4, 8, 9, 26))
    start = data.draw(st.integers(0, space.index_count))
    stop = data.draw(st.integers(start, space.index_count))
    indices, numbers = space.decode(start, stop)
    everything, rows = space.decode(0, space.index_count)
    inside = (everything >= start) & (everything < stop)
    np.testing.assert_array_equal(indices, everything[inside])
    np.testing.assert_array_equal(numbers, rows[inside])


@given(st.integers(0, 89**3 - 1))
def test_index_and_candidate_are_inverse_over_all_perovskites(index: int) -> None:
    space = same_pool(load_built_in("perovskite"), ALL)
    indices, numbers = space.decode(index, index + 1)
    if len(indices):
        assert space.candidate(index) == tuple(numbers[0].tolist())
        assert space.index(space.candidate(index)) == index
    else:
        with pytest.raises(CandidateError, match="one element on two roles"):
            space.candidate(index)


def test_every_equivalent_decoration_has_the_same_index() -> None:
    space = same_pool(chain(4), ALL)
    numbers = (3, 11, 26, 8)
    equivalents = {
        tuple(numbers[role] for role in permutation)
        for permutation in space.prototype.role_permutations
    }
    assert len(equivalents) == 8
    assert len({space.index(equivalent) for equivalent in equivalents}) == 1
    assert space.candidate(space.index(numbers)) == min(equivalents)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("B2", (3, 12, 13, 28)),
        ("L1_0", (3, 12, 13, 28)),
        ("cubic_perovskite", (8, 20, 22, 9)),
        ("double_perovskite", (9, 11, 13, 37)),
        ("perovskite", (8, 20, 22)),
        ("B1", (3, 12, 13, 28)),
        ("B3", (3, 12, 13, 28)),
        ("B4", (3, 12, 13, 28)),
        ("B8_1", (3, 12, 13, 28)),
        ("B10", (3, 12, 13, 28)),
        ("L1_2", (3, 12, 13, 28)),
        ("C1", (3, 12, 13, 28)),
        ("C1_b", (3, 12, 13, 28)),
        ("L2_1", (3, 12, 13, 28)),
        ("ABC_hP3_187_a_d_f", (3, 12, 13, 28)),
        ("ABC_hP6_194_c_d_a", (3, 12, 13)),
        ("F0_1", (3, 12, 13)),
        ("E0_1", (3, 12, 13)),
        ("F5_9", (3, 12, 13, 28)),
        ("chain3", (3, 12, 13, 28)),
        ("chain3 uneven", (3, 12, 13, 28)),
        ("chain4", (3, 12, 13, 28)),
    ],
)
def test_candidates_are_the_compounds_that_structure_matcher_tells_apart(
    name: str, pool: tuple[int, ...]
) -> None:
    """Every pair of decorations: the same index if and only if pymatgen calls them the same."""
    prototype = PROTOTYPES[name] if name.startswith("chain") else find_prototype(name)
    space = same_pool(prototype, pool)
    decorations = list(itertools.permutations(pool, len(prototype.roles)))
    structures = [build_structure(prototype, numbers, "prototype") for numbers in decorations]
    formulas = [structure.composition.reduced_formula for structure in structures]
    for one, other in itertools.combinations(range(len(decorations)), 2):
        same = formulas[one] == formulas[other] and TIGHT.fit(structures[one], structures[other])
        assert same == (space.index(decorations[one]) == space.index(decorations[other])), (
            decorations[one],
            decorations[other],
        )
    assert len({space.index(numbers) for numbers in decorations}) == space.count


@pytest.mark.slow
def test_structure_matcher_agrees_on_every_aflow_prototype_of_up_to_40_sites() -> None:
    """Roles of unequal amounts differ by composition; this is about the others."""
    checked = 0
    for entry in entries():
        if entry.is_element or entry.sites > 40 or len(entry.roles) > 4:
            continue
        prototype = entry.prototype()
        if len(set(prototype.amounts)) == len(prototype.amounts):
            continue
        space = same_pool(prototype, (3, 12, 13, 28)[: len(prototype.roles)])
        first, *others = itertools.permutations(space.pools[0])
        reference = build_structure(prototype, first, "prototype")
        for numbers in others:
            other = build_structure(prototype, numbers, "prototype")
            same = reference.composition == other.composition and TIGHT.fit(reference, other)
            assert same == (space.index(first) == space.index(numbers)), entry.name
        checked += 1
    assert checked == 90


def test_four_roles_of_89_elements_are_counted_at_once_and_decoded_in_little_memory() -> None:
    tracemalloc.start()
    space = same_pool(chain(4, 0.22), ALL)
    assert space.index_count == 89**4
    assert space.count == math.perm(89, 4) // 2
    assert tracemalloc.get_traced_memory()[1] < 2e6
    found = 0
    for start in range(40_000_000, 44_000_000, 1_000_000):
        tracemalloc.reset_peak()
        indices, _ = space.decode(start, start + 1_000_000)
        found += len(indices)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert 0.3 * 4e6 < found < 0.6 * 4e6


def test_four_roles_with_a_pool_each_are_counted_exactly() -> None:
    prototype = chain(4)
    chosen = {"A": ALL[:40], "B": ALL[20:70], "C": ALL, "D": ALL[5:30]}
    space = CandidateSpace(prototype, chosen)
    total = sum(
        len(space.decode(start, min(start + 10**6, space.index_count))[0])
        for start in range(0, space.index_count, 10**6)
    )
    assert space.count == total


def test_decoding_is_fast() -> None:
    """At least ten million indices a second even on a busy machine; about 80 on a free core."""
    space = same_pool(load_built_in("cubic_perovskite"), ALL)
    best = math.inf
    for _ in range(5):
        begin = time.process_time()
        space.decode(0, space.index_count)
        best = min(best, time.process_time() - begin)
    assert space.index_count / best > 10e6


@pytest.mark.filterwarnings("ignore:No Pauling")
def test_formulas_of_random_candidates_are_pymatgens() -> None:
    rng = np.random.default_rng(7)
    for name in ("B2", "perovskite", "H1_1", "C1_b", "L2_1"):
        prototype = find_prototype(name)
        space = same_pool(prototype, ALL)
        start = int(rng.integers(space.index_count // 2))
        _, numbers = space.decode(start, min(start + 200_000, space.index_count))
        numbers = numbers[rng.permutation(len(numbers))[:400]]
        expected = [
            Composition(
                {SYMBOLS[z - 1]: n for z, n in zip(row, prototype.amounts, strict=True)}
            ).reduced_formula
            for row in numbers.tolist()
        ]
        assert space.formulas(numbers) == expected
        assert space.formula(tuple(numbers[0])) == expected[0]


def test_what_is_not_a_candidate_says_why() -> None:
    space = same_pool(load_built_in("B2"), (3, 8, 9))
    with pytest.raises(CandidateError, match="one element on two roles"):
        space.candidate(0)
    with pytest.raises(CandidateError, match="same compound as index 1"):
        space.candidate(3)
    for index in (-1, 9):
        with pytest.raises(CandidateError, match="does not lie within 0 to 8"):
            space.candidate(index)
    with pytest.raises(CandidateError, match="not in the pool"):
        space.index((3, 26))
    for numbers in ((3, 3), (3,), (3, 8, 9)):
        with pytest.raises(CandidateError, match="needs 2 different elements"):
            space.index(numbers)
    for start, stop in ((-1, 2), (3, 2), (0, 10)):
        with pytest.raises(CandidateError, match="do not lie within"):
            space.decode(start, stop)
    with pytest.raises(TypeError):
        space.candidate(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("chosen", "kind", "message"),
    [
        ({"A": [3]}, RoleError, "site role B of B2 has no elements"),
        ({"A": [3], "B": [8], "X": [9]}, RoleError, "no site role X; its roles are A, B"),
        ({"A": [3], "B": []}, PoolError, "site role B of B2 is left without elements"),
        ({"A": [3], "B": [3]}, PoolError, "needs 2 different elements"),
        ({"A": [3], "B": [0]}, PoolError, "no atomic number"),
        ({"A": [3], "B": [300]}, PoolError, "no atomic number"),
    ],
)
def test_bad_pools_are_refused(
    chosen: dict[str, list[int]], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        CandidateSpace(load_built_in("B2"), chosen)


def test_a_space_beyond_64_bits_is_refused() -> None:
    roles = [f"R{number}" for number in range(10)]
    big = Prototype.from_sites(
        "big",
        np.diag([3.0, 3.0, 200.0]),
        [[0, 0, number**2 / 100] for number in range(10)],
        roles,
        dict(zip(roles, SYMBOLS, strict=False)),
        source="test",
    )
    with pytest.raises(PoolError, match="more than 64 bits hold"):
        same_pool(big, ALL)
