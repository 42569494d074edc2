"""What a chemist asks of a composition first, as columns: charges, sizes, metallicity, hazards.

Everything is a rule over tables of the elements, vectorised over candidates; no rule removes
anything by itself. `docs/chemistry.md` says how far each rule can be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from math import gcd
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prototypes.elements import ATOMIC_NUMBERS, SYMBOLS, electronegativities, formula_ranks

if TYPE_CHECKING:
    from prototypes import Prototype

CHEMISTRY_COLUMNS: Final = (
    "charge_neutral",
    "oxidation_states",
    "electronegativity_order",
    "goldschmidt_tolerance_factor",
    "bartel_tolerance_factor",
    "likely_metal",
    "radioactive_elements",
    "toxic_elements",
)
"""Columns that `tabulate_chemistry` makes, in order: all are known before anything is scored."""

BARTEL_LIMIT: Final = 4.18
"""Perovskites have a smaller tau (Bartel et al., Sci. Adv. 5, eaav0693, 2019)."""

ION_FORMERS: Final = frozenset("O S Se F Cl Br I".split())
"""Where one of these is the most electronegative element, a compound without a neutral assignment
of charges is called not neutral; elsewhere (nitrides, phosphides, intermetallics, ...) the lack of
one does not speak against a compound, and the rule gives no verdict."""

TOXIC: Final = frozenset("Be As Se Cd Sb Hg Tl Pb U".split())
"""Elements whose compounds have a group entry with acute toxicity, carcinogenicity or reproductive
toxicity in Annex VI, Table 3, of Regulation (EC) 1272/2008 (CLP): index numbers 004-002-00-2,
033-002-00-5, 034-002-00-8, 048-001-00-5, 051-003-00-9, 080-002-00-6, 081-002-00-9, 082-001-00-6 and
092-002-00-3. Chromium is added where it is Cr6+ (024-017-00-8)."""

_PEROVSKITES: Final = frozenset({"perovskite", "cubic_perovskite"})
_HARD_ANIONS: Final = frozenset("O F Cl Br I".split())
_NONMETALS: Final = frozenset("H He B C N O F Ne Si P S Cl Ar Ge Se Br Kr Te I Xe At Rn".split())
_LAST_Z: Final = 103
_LOWEST, _HIGHEST = -4, 8
"""Range of oxidation states in the tables."""

_IMPOSSIBLE: Final = -10_000_000
_MIXED: Final = -50_000
"""Scores are 1000 times the decadic logarithm of how common an oxidation state is, as integers so
that the order of the elements cannot matter. Atoms of unlike state cost more than any rarity."""

_BLOCK: Final = 8_192
"""Candidates worked on at a time: the sums of their charges stay in the processor's cache."""

_DECIMALS: Final = 4

_CLOSED_SHELLS: Final = {
    -4: "C Si Ge Sn",
    -3: "N P As Sb",
    -2: "O S Se Te",
    -1: "H F Cl Br I",
    1: "H Li Na K Rb Cs Cu Ag In Tl",
    2: "Be Mg Ca Sr Ba Zn Cd Hg Ge Sn Pb Eu Yb Pd Pt",
    3: "B Al Ga In Tl Sc Y La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu P As Sb Bi Rh Ir Au",
    4: "C Si Ge Sn Ti Zr Hf Th S Se Te Pt",
    5: "P As Sb V Nb Ta",
    6: "S Se Te Cr Mo W U",
}
"""Ions whose outer s, p and d shells are full or empty, or d6 and square-planar d8 of heavy
platinum metals and gold; 4f electrons count as core."""


@dataclass(frozen=True, eq=False)
class _ElementTables:
    """Tables by atomic number, row 0 unused.

    Attributes:
        weights: How often each oxidation state from -4 to 8 occurs, shape (104, 13); 0 = never.
        closed: The same for ions with closed shells, 1 or 0.
        radii: Shannon radii nearest to twelve- and sixfold coordination, shape (2, 104, 13), Å;
            NaN where there are none.
        radioactive: Whether the element has no stable isotope, shape (104,).
    """

    weights: NDArray[np.float64]
    closed: NDArray[np.float64]
    radii: NDArray[np.float64]
    radioactive: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Chemistry:
    """Chemistry of m compositions of k elements.

    Attributes:
        numbers: Atomic numbers, shape (m, k), uint8.
        amounts: Atoms of each element in a formula unit, shape (k,).
        charges: Charge on all atoms of each element in a formula unit, shape (m, k), int64; 0 where
            nothing was assigned.
        assigned: Whether there is a neutral assignment of plausible oxidation states, shape (m,);
            where none is expected, only one in order counts.
        expected: Whether there should be one: the most electronegative element is one of
            `ION_FORMERS`, shape (m,).
        ordered: Whether in the assignment all positive ions are less electronegative than all
            negative ones, shape (m,).
        goldschmidt: Goldschmidt's tolerance factor, shape (m,); NaN where it does not apply.
        bartel: Bartel's tolerance factor tau, shape (m,); NaN where it does not apply, infinity
            where A is not larger than B.
        likely_metal: Whether the compound is guessed to be a metal, shape (m,).
    """

    numbers: NDArray[np.uint8]
    amounts: tuple[int, ...]
    charges: NDArray[np.int64]
    assigned: NDArray[np.bool_]
    expected: NDArray[np.bool_]
    ordered: NDArray[np.bool_]
    goldschmidt: NDArray[np.float64]
    bartel: NDArray[np.float64]
    likely_metal: NDArray[np.bool_]


def plausible_states() -> dict[str, tuple[int, ...]]:
    """Return the oxidation states that each element may have in an assignment, by symbol."""
    return {
        SYMBOLS[z - 1]: tuple((np.flatnonzero(_tables().weights[z]) + _LOWEST).tolist())
        for z in range(1, _LAST_Z + 1)
    }


def perovskite_roles(prototype: Prototype) -> tuple[int, int, int] | None:
    """Return the places of the roles A, B and X if the prototype is a built-in perovskite."""
    if prototype.name not in _PEROVSKITES or not prototype.exact:
        return None
    a, b, x = (prototype.roles.index(role) for role in "ABX")
    return a, b, x


def describe_chemistry(
    numbers: NDArray[np.uint8],
    amounts: Sequence[int],
    perovskite: tuple[int, int, int] | None = None,
) -> Chemistry:
    """Describe compositions that share their amounts, as the candidates of a prototype do.

    Args:
        numbers: Atomic numbers up to 103, shape (m, k); all different within a row.
        amounts: Atoms of each of the k elements, positive, in any common multiple.
        perovskite: Places of A, B and X among the k, for the tolerance factors; None if the
            structure is no perovskite.

    Returns:
        The chemistry of the m compositions. Permuting elements of equal amounts changes nothing
        but their places (and, in a perovskite, the tolerance factors).
    """
    divisor = gcd(*amounts)
    reduced = tuple(int(amount) // divisor for amount in amounts)
    rows, roles = numbers.shape
    charges = np.zeros((rows, roles), np.int64)
    assigned, ordered = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
    last = _most_electronegative(numbers)
    expected, hard = _is_one_of(ION_FORMERS)[last] & (roles > 1), _is_one_of(_HARD_ANIONS)[last]
    nonmetal: NDArray[np.bool_] = np.all(_is_one_of(_NONMETALS)[numbers], axis=1)
    negative = np.any(_tables().weights[:, :-_LOWEST] > 0, axis=1)
    ionic = np.flatnonzero(np.any(negative[numbers], axis=1)) if roles > 1 else np.arange(0)
    for start in range(0, len(ionic), _BLOCK):
        part = ionic[start : start + _BLOCK]
        charges[part], assigned[part], ordered[part] = _assign_charges(numbers[part], reduced)
        nonmetal[part] |= assigned[part] & hard[part]
        unsure = part[ordered[part] & ~nonmetal[part]]
        nonmetal[unsure] = _has_closed_shells(numbers[unsure], reduced)
    assigned &= ordered | expected
    charges[~assigned] = 0
    goldschmidt, bartel = np.full(rows, np.nan), np.full(rows, np.nan)
    if perovskite is not None and rows:
        goldschmidt, bartel = _tolerance_factors(numbers, charges, reduced, perovskite)
    return Chemistry(
        numbers,
        reduced,
        charges,
        assigned,
        expected,
        ordered,
        goldschmidt,
        bartel,
        ~nonmetal,
    )


def tabulate_chemistry(chemistry: Chemistry) -> dict[str, pa.Array]:
    """Return the columns `CHEMISTRY_COLUMNS`, one value for each composition.

    Null means that a rule does not apply, never that it is broken: `charge_neutral` and
    `electronegativity_order` where no assignment was found and none is expected,
    `oxidation_states` where none was found, tolerance factors where there is no perovskite of
    ions with tabulated radii.
    """
    silent = ~chemistry.assigned & ~chemistry.expected
    columns = (
        pa.array(chemistry.assigned, mask=silent),
        pa.array(_write_ions(chemistry), pa.string()),
        pa.array(chemistry.ordered, mask=silent),
        _round(chemistry.goldschmidt),
        _round(chemistry.bartel),
        pa.array(chemistry.likely_metal),
        _name_elements(chemistry.numbers, _tables().radioactive[chemistry.numbers]),
        _name_elements(chemistry.numbers, _find_toxic(chemistry)),
    )
    return dict(zip(CHEMISTRY_COLUMNS, columns, strict=True))


def tabulate_compositions(compositions: Sequence[dict[int, int]]) -> dict[str, pa.Array]:
    """Return the columns `CHEMISTRY_COLUMNS` for any compositions, without a structure.

    Args:
        compositions: Atoms of each atomic number (up to 103), for each of m compounds.

    Returns:
        The columns, m values each; the tolerance factors are null.
    """
    by_amounts: dict[tuple[int, ...], list[int]] = {}
    ordered = [sorted(each.items(), key=lambda item: (item[1], item[0])) for each in compositions]
    for row, elements in enumerate(ordered):
        divisor = gcd(*(amount for _, amount in elements))
        amounts = tuple(amount // divisor for _, amount in elements)
        by_amounts.setdefault(amounts, []).append(row)
    tables = []
    for amounts, rows in by_amounts.items():
        numbers = np.array([[z for z, _ in ordered[row]] for row in rows], np.uint8)
        tables.append(pa.table(tabulate_chemistry(describe_chemistry(numbers, amounts))))
    if not tables:
        empty = describe_chemistry(np.empty((0, 2), np.uint8), (1, 1))
        return tabulate_chemistry(empty)
    places = np.argsort(np.concatenate([np.array(rows) for rows in by_amounts.values()]))
    table = pa.concat_tables(tables).take(pa.array(places)).combine_chunks()
    return {name: table[name].combine_chunks() for name in CHEMISTRY_COLUMNS}


# ------------------------------------------------------------------------------- element tables


@cache
def _tables() -> _ElementTables:
    """Read the tables that ship with the package (source: see the file's own `source`)."""
    text = (files("screening") / "chemistry_tables.json").read_text(encoding="utf-8")
    states = _HIGHEST - _LOWEST + 1
    weights = np.zeros((_LAST_Z + 1, states))
    closed = np.zeros((_LAST_Z + 1, states))
    radii = np.full((2, _LAST_Z + 1, states), np.nan)
    radioactive = np.zeros(_LAST_Z + 1, np.bool_)
    for entry in json.loads(text)["elements"].values():
        z = entry["number"]
        radioactive[z] = entry["radioactive"]
        for state, weight in entry["oxidation_states"].items():
            weights[z, int(state) - _LOWEST] = weight
        for state, by_coordination in entry["radii"].items():
            for place, coordination in enumerate(("12", "6")):
                radii[place, z, int(state) - _LOWEST] = by_coordination[coordination][1]
    for charge, symbols in _CLOSED_SHELLS.items():
        for symbol in symbols.split():
            closed[ATOMIC_NUMBERS[symbol], charge - _LOWEST] = 1.0
    return _ElementTables(weights, closed, radii, radioactive)


def _is_one_of(symbols: frozenset[str]) -> NDArray[np.bool_]:
    flags = np.zeros(_LAST_Z + 1, np.bool_)
    flags[[ATOMIC_NUMBERS[symbol] for symbol in symbols]] = True
    return flags


def _most_electronegative(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the atomic number of the most electronegative element of each row, shape (m,)."""
    values = np.nan_to_num(electronegativities(), nan=0.0)
    place = values[numbers].argmax(axis=1)
    return np.asarray(numbers[np.arange(len(numbers)), place])


# ------------------------------------------------------------------------------------- charges


@lru_cache(maxsize=64)
def _charge_scores(amount: int) -> NDArray[np.int32]:
    """Return how plausible each charge on `amount` atoms of each element is.

    Returns:
        Shape (3, 12 * amount + 1, 104): any ion, cations only, anions only; the charge counts from
        -4 * amount. A charge that is no multiple of `amount`, or means a state that the element
        does not have, is a mixture of the element's two nearest states of the same sign.
    """
    weights = _tables().weights
    charges = np.arange(_LOWEST * amount, _HIGHEST * amount + 1)
    scores = np.full((3, len(charges), _LAST_Z + 1), _IMPOSSIBLE, np.int32)
    for z in range(1, _LAST_Z + 1):
        states = np.flatnonzero(weights[z]) + _LOWEST
        if not len(states):
            continue
        common = 1000 * np.log10(weights[z, states - _LOWEST] / weights[z].sum())
        for sign, place in ((1, 1), (-1, 2)):
            of_sign = states * sign > 0
            some, values = states[of_sign], common[of_sign]
            if not len(some):
                continue
            inside = (charges >= amount * some[0]) & (charges <= amount * some[-1])
            mean = charges[inside] / amount
            mixed = np.where(np.isin(mean, some), 0, _MIXED)
            scores[place, inside, z] = np.rint(np.interp(mean, some, values)) + mixed
    scores[0] = np.maximum(scores[1], scores[2])
    scores.setflags(write=False)
    return scores


@lru_cache(maxsize=64)
def _closed_shell_scores(amount: int) -> NDArray[np.int32]:
    """Return 0 for charges on `amount` atoms that close their shells; as `_charge_scores`."""
    states = np.repeat(_tables().closed.T[:, None, :], amount, axis=1)
    states[:, 1:] = 0.0
    flat = states.reshape(-1, _LAST_Z + 1)[: (_HIGHEST - _LOWEST) * amount + 1]
    return np.where(flat > 0, 0, _IMPOSSIBLE).astype(np.int32)


def _assign_charges(
    numbers: NDArray[np.uint8], amounts: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the most plausible neutral assignment of charges.

    One in which all positive ions are less electronegative than all negative ones goes before any
    other, then one with fewer elements whose atoms are in unlike states; then the product of the
    shares that the oxidation states have among the element's ions in the ICSD decides.

    Returns:
        Charges, shape (m, k); whether there is an assignment, and whether it is so ordered, (m,).
    """
    rows, roles = numbers.shape
    order = _sort_equal_roles(numbers, amounts)
    sorted_numbers = np.take_along_axis(numbers, order, axis=1)
    values = electronegativities()[sorted_numbers]
    by_value = np.argsort(values, axis=1, kind="stable")
    place = np.argsort(by_value, axis=1, kind="stable")
    ascending = np.take_along_axis(values, by_value, axis=1)
    best = np.full(rows, _IMPOSSIBLE, np.int64)
    charges = np.zeros((rows, roles), np.int64)
    for cations in range(1, roles):
        apart = np.flatnonzero(ascending[:, cations - 1] < ascending[:, cations])
        signs = np.where(place[apart] < cations, 1, 2)
        score, found = _balance(sorted_numbers[apart], amounts, signs)
        better = score > best[apart]
        best[apart[better]], charges[apart[better]] = score[better], found[better]
    ordered = best > _IMPOSSIBLE
    rest = np.flatnonzero(~ordered)
    anywhere = np.zeros((len(rest), roles), np.int64)
    best[rest], charges[rest] = _balance(sorted_numbers[rest], amounts, anywhere)
    unsorted = np.empty_like(charges)
    np.put_along_axis(unsorted, order, charges, axis=1)
    return unsorted, best > _IMPOSSIBLE, ordered


def _sort_equal_roles(numbers: NDArray[np.uint8], amounts: tuple[int, ...]) -> NDArray[np.int64]:
    """Return for each row the roles in an order that sorts the elements of equal amounts."""
    order = np.tile(np.arange(len(amounts)), (len(numbers), 1))
    for amount in set(amounts):
        places = [place for place, each in enumerate(amounts) if each == amount]
        if len(places) > 1:
            inside = np.argsort(numbers[:, places], axis=1, kind="stable")
            order[:, places] = np.array(places)[inside]
    return order


def _balance(
    numbers: NDArray[np.uint8], amounts: tuple[int, ...], signs: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the charges that add up to zero with the highest sum of scores.

    Args:
        numbers: Shape (m, k).
        amounts: Shape (k,).
        signs: For each element, which of the three tables of `_charge_scores` holds, shape (m, k).

    Returns:
        Highest score, shape (m,), `_IMPOSSIBLE` where no charges add up to zero, and the charges,
        shape (m, k), 0 there.
    """
    scores = [
        np.ascontiguousarray(_charge_scores(amount).swapaxes(0, 1)[:, signs[:, role], z])
        for role, (amount, z) in enumerate(zip(amounts, numbers.T, strict=True))
    ]
    sums = [scores[0]]
    for score in scores[1:-1]:
        sums.append(_add_role(sums[-1], score))
    rows = np.arange(len(numbers))
    left, right = _facing(sums[-1], scores[-1], sum(amounts[:-1]), amounts[-1])
    total = left + right
    pick = total.argmax(axis=0)
    best = total[pick, rows].astype(np.int64)
    possible = best > _IMPOSSIBLE // 2
    charges = np.zeros(numbers.shape, np.int64)
    remaining = pick + max(_LOWEST * sum(amounts[:-1]), -_HIGHEST * amounts[-1])
    charges[:, -1] = -remaining
    for role in range(len(amounts) - 2, 0, -1):
        before, amount = sum(amounts[:role]), amounts[role]
        own = np.arange(_LOWEST * amount, _HIGHEST * amount + 1)[:, None]
        others = remaining[None, :] - own - _LOWEST * before
        inside = (others >= 0) & (others < len(sums[role - 1]))
        reached = sums[role - 1][np.where(inside, others, 0), rows] + scores[role]
        charges[:, role] = np.where(inside, reached, 3 * _IMPOSSIBLE).argmax(axis=0) + own[0, 0]
        remaining = remaining - charges[:, role]
    charges[:, 0] = remaining
    charges[~possible] = 0
    return np.where(possible, best, _IMPOSSIBLE), charges


def _add_role(sums: NDArray[np.int32], score: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the best score of each sum of charges with one more element, charges on axis 0."""
    result = np.full((len(sums) + len(score) - 1, sums.shape[1]), _IMPOSSIBLE, np.int32)
    for shift, column in enumerate(score):
        if (column > _IMPOSSIBLE).any():
            window = result[shift : shift + len(sums)]
            np.maximum(window, sums + column, out=window)
    return result


def _facing(
    sums: NDArray[np.int32], score: NDArray[np.int32], others: int, amount: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cut the sums of the other elements and the last one's charges to where they cancel.

    Returns:
        Two arrays of equal shape: row i of the second belongs to minus the charge of row i of the
        first.
    """
    lowest = max(_LOWEST * others, -_HIGHEST * amount)
    highest = min(_HIGHEST * others, -_LOWEST * amount)
    left = sums[lowest - _LOWEST * others : highest - _LOWEST * others + 1]
    right = score[-highest - _LOWEST * amount : -lowest - _LOWEST * amount + 1][::-1]
    return left, right


def _has_closed_shells(numbers: NDArray[np.uint8], amounts: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether ions with closed shells balance, every element in a single state, shape (m,)."""
    scores = [
        _closed_shell_scores(amount)[:, z] for amount, z in zip(amounts, numbers.T, strict=True)
    ]
    sums = scores[0]
    for score in scores[1:-1]:
        sums = _add_role(sums, score)
    left, right = _facing(sums, scores[-1], sum(amounts[:-1]), amounts[-1])
    return np.asarray((left + right == 0).any(axis=0))


# -------------------------------------------------------------------------- tolerance factors


def _tolerance_factors(
    numbers: NDArray[np.uint8],
    charges: NDArray[np.int64],
    amounts: tuple[int, ...],
    perovskite: tuple[int, int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Goldschmidt's t and Bartel's tau, each of shape (m,).

    Both need positive A and B, negative X, and a radius of each in its state: A at the tabulated
    coordination nearest to twelve, B and X nearest to six, as Bartel et al. do.
    """
    states, radii = [], []
    for role, nearest in zip(perovskite, (0, 1, 1), strict=True):
        whole = charges[:, role] % amounts[role] == 0
        state = charges[:, role] // amounts[role]
        radius = _tables().radii[nearest, numbers[:, role], state - _LOWEST]
        states.append(state)
        radii.append(np.where(whole & (state != 0) & (radius > 0), radius, np.nan))
    (n_a, n_b, n_x), (r_a, r_b, r_x) = states, radii
    ionic = (n_a > 0) & (n_b > 0) & (n_x < 0)
    r_a = np.where(ionic, r_a, np.nan)
    goldschmidt = (r_a + r_x) / (np.sqrt(2.0) * (r_b + r_x))
    ratio = r_a / r_b
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = r_x / r_b - n_a * (n_a - ratio / np.log(ratio))
    bartel = np.where(ratio <= 1.0, np.inf, tau)
    return goldschmidt, np.where(np.isnan(r_x), np.nan, bartel)


# ----------------------------------------------------------------------------------- columns


def _round(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(np.round(values, _DECIMALS) + 0.0, from_pandas=True)


def _write_ions(chemistry: Chemistry) -> NDArray[np.object_]:
    """Write the assignment of each row, such as "La3+ Al3+ O2-", None where there is none.

    The elements stand in the order of the formula; a mean of unlike states keeps two decimals.
    """
    written = np.full(len(chemistry.numbers), None, dtype=object)
    rows = np.flatnonzero(chemistry.assigned)
    if not len(rows):
        return written
    numbers, charges = chemistry.numbers[rows], chemistry.charges[rows]
    ions = np.empty(numbers.shape, dtype=object)
    for role, amount in enumerate(chemistry.amounts):
        codes = charges[:, role] * 128 + numbers[:, role]
        kinds, inverse = np.unique(codes, return_inverse=True)
        names = [_write_ion(int(code % 128), int(code // 128), amount) for code in kinds]
        ions[:, role] = np.array(names, dtype=object)[inverse.ravel()]
    order = np.argsort(formula_ranks()[numbers], axis=1)
    first, *others = np.take_along_axis(ions, order, axis=1).T
    for ion in others:
        first = first + " " + ion
    written[rows] = first
    return written


def _write_ion(number: int, charge: int, amount: int) -> str:
    size = f"{abs(charge) / amount:.2f}".rstrip("0").rstrip(".")
    return f"{SYMBOLS[number - 1]}{'' if size == '1' else size}{'+' if charge > 0 else '-'}"


def _find_toxic(chemistry: Chemistry) -> NDArray[np.bool_]:
    chromium = ATOMIC_NUMBERS["Cr"]
    six = chemistry.charges == 6 * np.array(chemistry.amounts)
    toxic = _is_one_of(TOXIC)[chemistry.numbers]
    return np.asarray(toxic | ((chemistry.numbers == chromium) & six))


def _name_elements(numbers: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> pa.Array:
    """Name the chosen elements of each row, by atomic number, separated by spaces."""
    bits = np.zeros(_LAST_Z + 1, np.uint64)
    kinds = np.unique(numbers[chosen])
    bits[kinds] = np.uint64(1) << np.arange(len(kinds), dtype=np.uint64)
    held = np.bitwise_or.reduce(np.where(chosen, bits[numbers], np.uint64(0)), axis=1)
    sets, inverse = np.unique(held, return_inverse=True)
    names = [
        " ".join(SYMBOLS[z - 1] for place, z in enumerate(kinds.tolist()) if each >> place & 1)
        for each in sets.tolist()
    ]
    return pa.array(names, pa.string()).take(pa.array(inverse))
