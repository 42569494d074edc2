"""Lowest mixtures of competing phases: a small linear programme for each candidate, many at once.

The energy of the convex hull at a composition c is the minimum of sum x_i E_i over mixtures x of
the competing phases with sum x_i c_i = c and x >= 0. A vectorised simplex method solves it for
thousands of candidates together. It starts from the elements, which are always there at 0, prices
all phases of a candidate's chemical system, takes in the one that gains most, and goes on with the
candidates that still gain. Nothing here is specific to a prototype, and the energy of the candidate
itself is not asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from prototypes import reduced_formula
from screening.errors import InputDataError
from screening.phases import MOST_ELEMENTS, Phases, arrange_elements, count_atoms, pack_systems

_GAIN: Final = 1e-10
"""eV/atom: a phase that lowers the energy by less per atom of it is not taken in."""

_SMALLEST_SHARE: Final = 1e-9
"""Share of the atoms below which a phase is no member of a mixture, and a pivot counts as 0."""

_ROUNDING: Final = 1e-12
"""Shares of the atoms that differ by less are equal."""

_GREEDY_ROUNDS: Final = 50
"""Rounds that take in the phase with the largest gain; later ones follow Bland's rule, which
cannot cycle (R. G. Bland, Math. Oper. Res. 2 (1977) 103)."""

_MOST_ROUNDS: Final = 5_000

_BLOCK: Final = 1 << 17
"""Phases priced at a time, over all candidates of a block: bounds the memory, fits the cache."""

_LOOKUPS: Final = 1 << 21
"""Subsystems looked up at a time."""


@dataclass(frozen=True, eq=False)
class Mixtures:
    """The mixture of competing phases with the lowest energy, for each of m compositions.

    Attributes:
        energies: Its formation energy by each energy column of the phases, each its own optimum,
            eV/atom, shape (m, c).
        members: Rows of the phases in the optimum of column 0, -1 for a pure element or where
            there is none, shape (m, k).
        fractions: Share of the atoms that belongs to each member, largest first; where `members` is
            -1 it belongs to an element (`elements`), shape (m, k).
        elements: Atomic numbers of pure elements in the optimum of column 0, 0 elsewhere,
            shape (m, k), uint8.
        references: Number of competing phases in the chemical system with its subsystems, without
            the elements and the composition's own phase, shape (m,).
    """

    energies: NDArray[np.float64]
    members: NDArray[np.int64]
    fractions: NDArray[np.float64]
    elements: NDArray[np.uint8]
    references: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.members)

    def select(self, rows: NDArray[np.int64]) -> Mixtures:
        """The mixtures of some compositions, rows of shape (r,)."""
        return Mixtures(*(getattr(self, field.name)[rows] for field in fields(self)))


def find_mixtures(
    phases: Phases,
    numbers: NDArray[np.integer],
    amounts: ArrayLike,
    identities: NDArray[np.uint64] | None = None,
) -> Mixtures:
    """Find the mixture of competing phases with the lowest energy at each composition.

    Args:
        phases: The competing phases, with c energy columns.
        numbers: Atomic numbers, 0 for none, shape (m, k).
        amounts: Atoms of each, shape (k,) or (m, k).
        identities: Identity of each candidate, shape (m,); phases of the same identity other than
            0 do not compete with it. None lets all phases compete.

    Returns:
        The mixtures. The energy above hull of a candidate is its own energy minus theirs.

    Raises:
        InputDataError: A composition without atoms or with more than nine elements.
    """
    elements, shares = arrange_elements(numbers, amounts)
    count, width = elements.shape
    mixtures = Mixtures(
        np.zeros((count, phases.energies.shape[1])),
        np.full((count, width), -1, dtype=np.int64),
        np.zeros((count, width)),
        np.zeros((count, width), dtype=np.uint8),
        np.zeros(count, dtype=np.int64),
    )
    counts = (elements > 0).sum(axis=1)
    if counts.max(initial=0) > MOST_ELEMENTS:
        raise InputDataError(f"a composition has more than {MOST_ELEMENTS} elements.")
    own = None
    if identities is not None and len(phases.known_identities):
        own = np.asarray(identities, dtype=np.uint64)
    for size in np.unique(counts).tolist():
        of_size = np.flatnonzero(counts == size)
        for part in range(0, len(of_size), _LOOKUPS >> size):
            chosen = of_size[part : part + (_LOOKUPS >> size)]
            for block in _gather_blocks(phases, elements[chosen, :size]):
                rows = chosen[block.rows]
                left_out = _find_left_out(phases, block, None if own is None else own[rows])
                _minimise(mixtures, rows, block, shares[rows, :size].T, left_out)
    if own is not None:
        known = phases.known_identities
        first, last = (np.searchsorted(known, own, side=side) for side in ("left", "right"))
        mixtures.references[:] -= last - first
    return mixtures


def write_decompositions(
    phases: Phases, mixtures: Mixtures, numbers: NDArray[np.integer], amounts: ArrayLike
) -> list[str]:
    """Write what each composition decomposes into.

    Args:
        phases: The competing phases.
        mixtures: What `find_mixtures` found for these compositions.
        numbers: Atomic numbers, 0 for none, shape (m, k).
        amounts: Atoms of each, whole numbers, shape (k,) or (m, k).

    Returns:
        The m sums, such as "0.5 Al2O3 + 0.5 La2O3": formula units of each phase for one reduced
        formula unit of the composition, the phase with most atoms first.
    """
    if not len(mixtures):
        return []
    kinds = np.where(
        mixtures.members >= 0, mixtures.members, -1 - mixtures.elements.astype(np.int64)
    )
    present = mixtures.fractions > 0
    unique, which = _number_distinct(kinds[present])
    names = [
        phases.formulas[kind] if kind >= 0 else reduced_formula([-1 - kind], [1])
        for kind in unique.tolist()
    ]
    sizes = np.array([sum(count_atoms(name).values()) for name in names], dtype=np.float64)
    atoms = np.broadcast_to(_count_formula_atoms(numbers, amounts)[:, None], present.shape)[present]
    units = np.round(mixtures.fractions[present] * atoms / sizes[which], 6)
    values, place = _number_distinct(units)
    words = pa.array(
        [None if value == 1 else f"{value:.4g}" for value in values.tolist()], pa.string()
    )
    terms = pc.binary_join_element_wise(
        words.take(pa.array(place)),
        pa.array(names, pa.string()).take(pa.array(which)),
        " ",
        null_handling="skip",
    )
    term_of = np.full(present.shape, -1, dtype=np.int64)
    term_of[present] = np.arange(len(which))
    columns = [terms.take(pa.array(column, mask=column < 0)) for column in term_of.T]
    joined: list[str] = pc.binary_join_element_wise(
        *columns, " + ", null_handling="skip"
    ).to_pylist()
    return joined


@dataclass(frozen=True, eq=False)
class _Block:
    """Candidates of k elements with the phases of their systems, padded to p slots.

    Slot j of a system is its element j for j < k, then come its phases.

    Attributes:
        rows: The candidates, shape (a,).
        systems: Place of the system of each candidate in the other arrays, shape (a,).
        numbers: Elements of each system, shape (s, k).
        phases: Row of the phase in each slot, -1 for elements and padding, shape (s, p).
        fractions: Atomic fractions, shape (k, s, p).
        energies: Energies, infinite for padding, shape (c, s, p).
        references: Number of phases in each system, shape (s,).
    """

    rows: NDArray[np.int64]
    systems: NDArray[np.int64]
    numbers: NDArray[np.uint8]
    phases: NDArray[np.int64]
    fractions: NDArray[np.float64]
    energies: NDArray[np.float64]
    references: NDArray[np.int64]


def _gather_blocks(phases: Phases, elements: NDArray[np.uint8]) -> Iterator[_Block]:
    """Yield candidates with the phases of all their subsystems, few phases first.

    Args:
        phases: The competing phases.
        elements: Elements of each candidate, ascending, shape (r, k).
    """
    size = elements.shape[1]
    _, first, which = np.unique(pack_systems(elements), return_index=True, return_inverse=True)
    numbers = elements[first]
    places = _subset_places(size)
    keys = pack_systems(np.pad(numbers, ((0, 0), (0, 1)))[:, places])
    references = phases.index.locate(keys)[1].sum(axis=1)
    starts, counts = phases.competitive_index.locate(keys)
    slots = size + counts.sum(axis=1)

    system_order = np.argsort(slots, kind="stable")
    rank = np.empty_like(system_order)
    rank[system_order] = np.arange(len(system_order))
    row_order = np.argsort(rank[which], kind="stable")
    row_slots = slots[which[row_order]]
    begin = 0
    while begin < len(row_order):
        end = min(begin + max(_BLOCK // int(row_slots[begin]), 1), len(row_order))
        end = min(begin + max(_BLOCK // int(row_slots[end - 1]), 1), end)
        ranks = rank[which[row_order[begin:end]]]
        systems = system_order[ranks[0] : ranks[-1] + 1]
        gathered, fractions, energies = _gather_phases(
            phases, starts[systems], counts[systems], places, int(row_slots[end - 1])
        )
        yield _Block(
            row_order[begin:end],
            ranks - ranks[0],
            numbers[systems],
            gathered,
            fractions,
            energies,
            references[systems],
        )
        begin = end


def _subset_places(size: int) -> NDArray[np.int64]:
    """Places of the elements of each nonempty subset, ascending, `size` beyond: (2^k - 1, k)."""
    subsets = np.arange(1, 1 << size)[:, None] >> np.arange(size) & 1
    return np.sort(np.where(subsets, np.arange(size), size), axis=1)


def _gather_phases(
    phases: Phases,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    slots: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Put the phases of some systems side by side.

    Args:
        phases: The competing phases.
        starts: First place of each subset in their competitive index, shape (s, 2^k - 1).
        counts: Phases of each subset, of the same shape.
        places: What `_subset_places` returns.
        slots: Length to pad to, elements included.

    Returns:
        The arrays `phases`, `fractions` and `energies` of a block.
    """
    systems, size = len(starts), places.shape[1]
    flat = counts.ravel()
    subset = np.repeat(np.arange(flat.size), flat)
    within = np.arange(len(subset)) - np.repeat(np.cumsum(flat) - flat, flat)
    row = phases.competitive_index.rows[starts.ravel()[subset] + within]
    system, subset = np.divmod(subset, len(places))
    totals = counts.sum(axis=1)
    slot = size + np.arange(len(row)) - np.repeat(np.cumsum(totals) - totals, totals)

    gathered = np.full((systems, slots), -1, dtype=np.int64)
    gathered[system, slot] = row
    fractions = np.zeros((size + 1, systems, slots))
    fractions[np.arange(size), :, np.arange(size)] = 1.0
    for place in range(min(size, phases.fractions.shape[1])):
        fractions[places[subset, place], system, slot] = phases.fractions[row, place]
    energies = np.full((phases.energies.shape[1], systems, slots), np.inf)
    energies[:, :, :size] = 0.0
    energies[:, system, slot] = phases.energies[row].T
    return gathered, fractions[:size], energies


def _minimise(
    mixtures: Mixtures,
    rows: NDArray[np.int64],
    block: _Block,
    shares: NDArray[np.float64],
    left_out: NDArray[np.bool_] | None,
) -> None:
    """Solve the linear programmes of a block and write the optima into `mixtures`.

    Every energy column starts from the optimum of the one before it: whatever the energies are, it
    is a mixture of the right composition.

    Args:
        mixtures: Where to write.
        rows: Its rows, shape (a,).
        block: The candidates and their phases.
        shares: Atomic fractions of the candidates, shape (k, a).
        left_out: Slots that do not compete with a candidate, shape (a, p), or None.
    """
    size, count = shares.shape
    system = block.systems
    basis = np.repeat(np.arange(size)[:, None], count, axis=1)
    inverse = np.repeat(np.eye(size)[:, :, None], count, axis=2)
    amounts = shares.copy()
    for column, energies in enumerate(block.energies):
        _improve(block, energies, shares, left_out, basis, inverse, amounts)
        mixtures.energies[rows, column] = (amounts * energies[system, basis]).sum(axis=0)
        if column == 0:
            kept = np.where(amounts > _SMALLEST_SHARE, amounts, 0.0)
            order = np.lexsort((basis, -np.round(kept, 9)), axis=0)
            kept, slots = (np.take_along_axis(each, order, axis=0) for each in (kept, basis))
            pure = np.where(slots < size, block.numbers[system, slots % size], 0)
            phases = np.where(kept > 0, block.phases[system, slots], -1)
            mixtures.fractions[rows, :size] = kept.T
            mixtures.elements[rows, :size] = np.where(kept > 0, pure, 0).T
            mixtures.members[rows, :size] = phases.T
            mixtures.references[rows] = block.references[system]


def _improve(
    block: _Block,
    energies: NDArray[np.float64],
    shares: NDArray[np.float64],
    left_out: NDArray[np.bool_] | None,
    basis: NDArray[np.int64],
    inverse: NDArray[np.float64],
    amounts: NDArray[np.float64],
) -> None:
    """Exchange phases in place until no exchange lowers the energy of any candidate.

    Args:
        block: The candidates and their phases.
        energies: One energy column, shape (s, p).
        shares: Atomic fractions of the candidates, shape (k, a).
        left_out: Slots that do not compete with a candidate, shape (a, p), or None.
        basis: Slots that make up each mixture, shape (k, a).
        inverse: Inverse of the matrix with their fractions as columns, shape (k, k, a).
        amounts: Share of the atoms of each, shape (k, a).
    """
    active = np.arange(shares.shape[1])
    for turn in range(_MOST_ROUNDS):
        system, inverted = block.systems[active], inverse[:, :, active]
        prices = np.einsum("ia,ija->ja", energies[system, basis[:, active]], inverted)
        costs = energies.take(system, axis=0)
        for price, fractions in zip(prices, block.fractions, strict=True):
            costs -= price[:, None] * fractions.take(system, axis=0)
        if left_out is not None:
            costs[left_out[active]] = np.inf
        greedy = turn < _GREEDY_ROUNDS
        entering = (costs if greedy else costs >= -_GAIN).argmin(axis=1)
        gains = costs[np.arange(len(active)), entering] < -_GAIN
        active, entering, system = active[gains], entering[gains], system[gains]
        if not len(active):
            return
        entered = block.fractions[:, system, entering]
        replaced = np.einsum("ija,ja->ia", inverted[:, :, gains], entered)
        ratios = np.full_like(replaced, np.inf)
        np.divide(amounts[:, active], replaced, out=ratios, where=replaced > _SMALLEST_SHARE)
        ties = ratios <= ratios.min(axis=0) + _ROUNDING
        if greedy:
            leaving = np.where(ties, replaced, 0.0).argmax(axis=0)
        else:
            leaving = np.where(ties, basis[:, active], np.iinfo(np.int64).max).argmin(axis=0)
        basis[leaving, active] = entering
        inverted = _invert(block.fractions[:, system, basis[:, active]])
        inverse[:, :, active] = inverted
        mixed = np.einsum("ija,ja->ia", inverted, shares[:, active])
        amounts[:, active] = np.maximum(mixed, 0.0)
    raise ArithmeticError(
        f"the hull of {len(active)} compositions was not found within {_MOST_ROUNDS} exchanges"
    )


def _invert(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert matrices, shape (k, k, a); by cofactors for k = 3, ten times as fast as LAPACK."""
    if len(matrices) != 3:
        return (
            np.linalg.inv(matrices.transpose(2, 0, 1)).transpose(1, 2, 0).astype(float, copy=False)
        )
    inverse = np.empty_like(matrices)
    for row in range(3):
        (a, b, c), (d, e, f) = matrices[(row + 1) % 3], matrices[(row + 2) % 3]
        inverse[0, row] = b * f - c * e
        inverse[1, row] = c * d - a * f
        inverse[2, row] = a * e - b * d
    inverse /= (matrices[0] * inverse[:, 0]).sum(axis=0)
    return inverse


def _find_left_out(
    phases: Phases, block: _Block, own: NDArray[np.uint64] | None
) -> NDArray[np.bool_] | None:
    """Return the slots (a, p) that hold a candidate itself, None if there is none."""
    if own is None:
        return None
    identities = np.where(block.phases >= 0, phases.identities[block.phases], 0)
    left_out: NDArray[np.bool_] = (identities[block.systems] == own[:, None]) & (own != 0)[:, None]
    return left_out if left_out.any() else None


def _number_distinct(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return the distinct values, and which of them each value is; by hashing, not sorting."""
    encoded = pa.array(values).dictionary_encode()
    return encoded.dictionary.to_numpy(), encoded.indices.to_numpy()


def _count_formula_atoms(numbers: NDArray[np.integer], amounts: ArrayLike) -> NDArray[np.float64]:
    """Return the atoms in the reduced formula of each composition, shape (m,)."""
    elements, shares = arrange_elements(numbers, amounts)
    atoms = np.broadcast_to(np.asarray(amounts), numbers.shape) * (np.asarray(numbers) > 0)
    whole = np.rint(shares * atoms.sum(axis=1, keepdims=True)).astype(np.int64)
    whole //= np.gcd.reduce(whole, axis=1)[:, None]
    totals = whole.sum(axis=1)
    doubled = np.flatnonzero((whole <= 1).all(axis=1) & (totals <= 2))
    if len(doubled):  # O2, Na2O2: formulas that pymatgen does not reduce all the way
        unique, which = np.unique(elements[doubled, :2], axis=0, return_inverse=True)
        pairs = [[number for number in row if number] for row in unique.tolist()]
        formulas = [reduced_formula(pair, [1] * len(pair)) for pair in pairs]
        sizes = np.array([sum(count_atoms(formula).values()) for formula in formulas], np.int64)
        totals[doubled] = sizes[which]
    counts: NDArray[np.float64] = totals.astype(np.float64)
    return counts
