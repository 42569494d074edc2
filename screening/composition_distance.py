"""How far compositions are from each other: the element mover's distance, and what it is good for.

The element mover's distance (C. J. Hargreaves, M. S. Dyer, M. W. Gaultois, V. A. Kurlin and M. J.
Rosseinsky, Chem. Mater. 32, 10610, 2020) is the least work that turns one composition into
another: atoms of the one are carried to those of the other along a line on which chemically alike
elements stand side by side, the modified Pettifor scale. NaCl and KCl differ by 0.5, because half
of the atoms move one place. On a line the least work is the area between the two cumulative
distributions, which is exact and needs no optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from prototypes import ATOMIC_NUMBERS, SYMBOLS
from screening.errors import InputDataError
from screening.phases import count_atoms

MODIFIED_PETTIFOR = (
    "He Ne Ar Kr Xe Rn Fr Cs Rb K Na Li Ra Ba Sr Ca Eu Yb Lu Tm Y Er Ho Dy Tb Gd Sm Pm Nd Pr Ce "
    "La Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Sc Zr Hf Ti Ta Nb V Cr Mo W Re Tc Os Ru Ir Rh "
    "Pt Pd Au Ag Cu Ni Co Fe Mn Mg Zn Cd Hg Be Al Ga In Tl Pb Sn Ge Si B C N P As Sb Bi Po Te Se S "
    "O At I Br Cl F H"
).split()
"""Elements in order of the modified Pettifor scale: H. Glawe, A. Sanna, E. K. U. Gross and M. A. L.
Marques, New J. Phys. 18, 093011 (2016). Neighbours differ by 1."""

SAME = 1e-9
"""Compositions that are nearer than this are one composition, and the rest is rounding."""

_BINS = 5
_FIRST_NEIGHBOURS = 8
_PAIRS_AT_ONCE = 1 << 16
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Compositions:
    """Compositions as distributions over the modified Pettifor scale.

    Attributes:
        places: Place of each element on the scale, ascending in a row, shape (n, k); 0 beyond a
            row's last element.
        ends: Share of the atoms up to and with each element, shape (n, k); 1 from a row's last
            element on.
        sizes: Number of elements of each composition, shape (n,).
    """

    places: NDArray[np.float64]
    ends: NDArray[np.float64]
    sizes: NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of compositions."""
        return len(self.sizes)

    @classmethod
    def of(cls, numbers: ArrayLike, amounts: ArrayLike) -> Compositions:
        """Place compositions on the scale.

        Args:
            numbers: Atomic numbers, shape (n, k); 0 where there is no element.
            amounts: Atoms of each element in any multiple, positive, shape (n, k) or, alike for
                all, (k,).

        Raises:
            InputDataError: An element has no place on the scale, which ends at Lr.
        """
        numbers = np.asarray(numbers).astype(np.int64)
        places = _places()[numbers]
        if np.isnan(places).any():
            symbol = SYMBOLS[int(numbers[np.isnan(places)][0]) - 1]
            raise InputDataError(
                f"{symbol} has no place on the modified Pettifor scale, which ends at Lr: leave "
                "out compositions of heavier elements"
            )
        present = numbers > 0
        weights = np.where(present, np.broadcast_to(amounts, numbers.shape), 0.0)
        order = np.argsort(np.where(present, places, np.inf), axis=1, kind="stable")
        ends = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
        # columns are what every computation here goes through, so each is contiguous
        return cls(
            np.asfortranarray(np.take_along_axis(places, order, axis=1)),
            np.asfortranarray(ends / ends[:, -1:]),
            present.sum(axis=1, dtype=np.uint8),
        )

    def select(self, rows: NDArray[np.int64]) -> Compositions:
        """The given compositions, in the given order."""
        return Compositions(self.places.T[:, rows].T, self.ends.T[:, rows].T, self.sizes[rows])


def read_compositions(
    formulas: Sequence[str],
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read many formulas at once.

    Args:
        formulas: Formulas such as ``Ca3(PO4)2``, length n.

    Returns:
        Atomic numbers, 0 where there is no further element, and amounts, both of shape (n, k) for
        the largest number k of elements; each element stands once in a row.

    Raises:
        InputDataError: One is no formula.
    """
    read = [count_atoms(formula) for formula in formulas]
    width = max(map(len, read), default=0)
    numbers = np.zeros((len(read), width), dtype=np.uint8)
    amounts = np.zeros((len(read), width))
    for row, composition in enumerate(read):
        numbers[row, : len(composition)] = list(composition)
        amounts[row, : len(composition)] = list(composition.values())
    return numbers, amounts


def find_placed(numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Say which compositions hold only elements that have a place on the scale.

    Args:
        numbers: Atomic numbers, shape (n, k); 0 where there is no element.

    Returns:
        Shape (n,).
    """
    return np.asarray(np.isfinite(_places()[numbers]).all(axis=1))


def find_distances(first: Compositions, second: Compositions) -> NDArray[np.float64]:
    """Element mover's distance of each composition to its partner.

    Args:
        first: n compositions.
        second: As many, or one for all (or the other way round).

    Returns:
        Shape (n,), in places of the scale: 0 for the same composition, 102 at most.

    Example:
        >>> salts = [Compositions.of(*read_compositions([name])) for name in ("NaCl", "KCl")]
        >>> find_distances(*salts)
        array([0.5])
    """
    if len(first) == 1:
        first, second = second, first
    rows = np.arange(len(first))
    return _find_work(first, rows, second, rows if len(second) != 1 else np.zeros_like(rows))


def _find_work(
    first: Compositions,
    first_rows: NDArray[np.int64],
    second: Compositions,
    second_rows: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Element mover's distance of n pairs of rows.

    Quantile by quantile, the share of the atoms that the i-th element of the one and the j-th of
    the other have in common moves from the place of the one to that of the other.
    """
    sizes = second.sizes[second_rows]
    order = np.argsort(sizes, kind="stable")[::-1]  # long ones first, to be done with short ones
    sizes, first_rows, second_rows = sizes[order], first_rows[order], second_rows[order]
    width = int(first.sizes.max(initial=0))
    places = [first.places[:, i][first_rows] for i in range(width)]
    ends = [first.ends[:, i][first_rows] for i in range(width)]
    work = np.zeros(len(order))
    begin = np.zeros(len(order))
    for j in range(int(sizes.max(initial=0))):
        pairs = int((sizes > j).sum())
        place = second.places[:, j][second_rows[:pairs]]
        end = second.ends[:, j][second_rows[:pairs]]
        for i in range(width):
            share = np.minimum(ends[i][:pairs], end)
            share -= np.maximum(ends[i - 1][:pairs], begin[:pairs]) if i else begin[:pairs]
            np.maximum(share, 0.0, out=share)
            way = places[i][:pairs] - place
            share *= np.abs(way, out=way)
            work[:pairs] += share
        begin = end
    distances = np.empty_like(work)
    distances[order] = work
    return distances


@dataclass(frozen=True, eq=False)
class NearestComposition:
    """Finds the nearest of many known compositions, exactly.

    Candidates for the nearest come from a k-d tree over a few averages of the distributions, whose
    distance is never larger than the element mover's. It is computed for these; where the result
    does not prove that no other known composition is nearer, more are taken.

    Attributes:
        known: The n known compositions.
    """

    known: Compositions
    _tree: cKDTree

    @classmethod
    def of(cls, known: Compositions) -> NearestComposition:
        """Prepare for questions."""
        return cls(known, cKDTree(_summarise(known)))

    def find(self, asked: Compositions) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The nearest known composition other than the asked one.

        Args:
            asked: m compositions.

        Returns:
            Row of the nearest known composition, shape (m,), and the element mover's distance to
            it, shape (m,), larger than 0: a known composition is not its own neighbour. Of several
            at the same distance the first is returned, whatever else is asked for. -1 and infinity
            where nothing else is known.
        """
        nearest = np.full(len(asked), -1, dtype=np.int64)
        distances = np.full(len(asked), np.inf)
        summaries = _summarise(asked)
        left = np.arange(len(asked))
        neighbours = min(_FIRST_NEIGHBOURS, len(self.known))
        while len(left) and neighbours:
            left = left[np.argsort(distances[left], kind="stable")]
            step = max(1, _PAIRS_AT_ONCE // neighbours)
            unproven = []
            for start in range(0, len(left), step):
                rows = left[start : start + step]
                bounds, found = self._tree.query(
                    summaries[rows],
                    k=np.arange(1, neighbours + 1),
                    p=1,
                    distance_upper_bound=distances[rows[-1]] + SAME,
                )
                none = found == len(self.known)
                found[none] = 0
                exact = _find_work(
                    asked, np.repeat(rows, neighbours), self.known, found.ravel()
                ).reshape(found.shape)
                exact[none | (exact < SAME)] = np.inf
                best = exact.min(axis=1)
                found[exact > best[:, None] + SAME] = len(self.known)
                near = np.isfinite(best)  # what was found before is found again
                nearest[rows[near]], distances[rows[near]] = found.min(axis=1)[near], best[near]
                unproven.append(rows[bounds[:, -1] <= distances[rows] + SAME])
            if neighbours == len(self.known):
                break
            left = np.concatenate(unproven)
            neighbours = min(4 * neighbours, len(self.known))
        return nearest, distances


def pick_diverse(
    numbers: ArrayLike,
    amounts: ArrayLike,
    order: ArrayLike,
    count: int,
    min_distance: float,
) -> NDArray[np.int64]:
    """Choose the best candidates that are no neighbours of each other.

    Candidates are taken in the given order; one that is nearer than `min_distance` to a candidate
    already taken is passed over. No more of the order is looked at than needed.

    Args:
        numbers: Atomic numbers of the candidates, shape (m, k); 0 where there is no element.
        amounts: Atoms of each element in any multiple, shape (m, k) or, alike for all, (k,).
        order: Row numbers, best first; it may be a part of all.
        count: How many to choose at most.
        min_distance: Least element mover's distance between any two of the chosen ones; 0 takes
            the first `count` rows.

    Returns:
        Row numbers in the order of their ranks, at most `count`: fewer where there are no more
        that far apart.

    Raises:
        InputDataError: An element has no place on the scale.
    """
    numbers, order = np.asarray(numbers), np.asarray(order).astype(np.int64)
    amounts = np.broadcast_to(np.asarray(amounts, dtype=np.float64), numbers.shape)
    chosen: list[int] = []
    taken: list[Compositions] = []
    for start in range(0, len(order), _ROWS_AT_ONCE):
        if len(chosen) >= count:
            break
        rows = order[start : start + _ROWS_AT_ONCE]
        block = Compositions.of(numbers[rows], amounts[rows])
        left = np.arange(len(rows))
        for one in taken:
            left = _keep_far(block, left, one, min_distance)
        while len(left) and len(chosen) < count:
            chosen.append(int(rows[left[0]]))
            taken.append(block.select(left[:1]))
            left = _keep_far(block, left[1:], taken[-1], min_distance)
    return np.array(chosen, dtype=np.int64)


def _keep_far(
    block: Compositions, rows: NDArray[np.int64], one: Compositions, min_distance: float
) -> NDArray[np.int64]:
    """The rows of a block whose compositions are at least so far from one composition."""
    return rows[find_distances(block.select(rows), one) >= min_distance - SAME]


def _summarise(compositions: Compositions) -> NDArray[np.float64]:
    """Averages of the place over equal shares of the atoms, in the order of the scale.

    Args:
        compositions: n compositions.

    Returns:
        Shape (n, bins), divided by the number of bins: the sum of the absolute differences of two
        rows is at most the element mover's distance, since the mean of a difference is at most
        the mean of its absolute value.
    """
    ends = compositions.ends
    begins = np.concatenate([np.zeros((len(compositions), 1)), ends[:, :-1]], axis=1)
    averages = np.empty((len(compositions), _BINS))
    for share in range(_BINS):
        low, high = share / _BINS, (share + 1) / _BINS
        overlap = np.clip(np.minimum(ends, high) - np.maximum(begins, low), 0.0, None)
        averages[:, share] = (overlap * compositions.places).sum(axis=1)
    return averages


@cache
def _places() -> NDArray[np.float64]:
    """Place of each atomic number on the scale, 0 for none, NaN where the scale ends."""
    places = np.full(len(SYMBOLS) + 1, np.nan)
    places[0] = 0.0
    for place, symbol in enumerate(MODIFIED_PETTIFOR):
        places[ATOMIC_NUMBERS[symbol]] = place
    return places
