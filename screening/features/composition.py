"""The 145 composition columns (Ward et al. 2016) as tensor arithmetic.

A batch of compositions with k elements each is an array of atomic numbers, shape (n, k), and
their amounts, shape (n, k) or (1, k). Nothing here loops over compositions, except for the one
column that asks whether a charge-neutral compound is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from screening.features.elements import LAST_Z, element_table
from screening.features.schema import NORMS, ORBITALS, PROPERTIES

_TIE_RTOL = 1e-5  # numpy.isclose, with which matminer's mode finds the most frequent elements
_TIE_ATOL = 1e-8
_TABULATED_ROLES = 4
_VALENCE = [PROPERTIES.index(f"N{orbital}Valence") for orbital in ORBITALS]
_TOTAL_VALENCE = PROPERTIES.index("NValence")


def write_composition_columns(
    out: torch.Tensor,
    properties: Sequence[torch.Tensor],
    electronegativity: Sequence[torch.Tensor],
    fractions: Sequence[torch.Tensor],
    possible: torch.Tensor,
) -> None:
    """Fill the 145 composition columns of a batch.

    Args:
        out: Where the columns go, shape (145, n), float64.
        properties: For each of the k elements, its Magpie properties, shape (22, n).
        electronegativity: For each element, its electronegativity, shape (n,).
        fractions: For each element, its atomic fraction, shape (n,) or (1,).
        possible: Whether a charge-neutral compound is possible, shape (n,), bool.
    """
    for row, p in enumerate(NORMS):
        if p == 0:
            out[row] = len(properties)
        else:
            norm = sum((f**p for f in fractions[1:]), fractions[0] ** p)
            out[row] = norm ** (1.0 / p)

    statistics = out[len(NORMS) : len(NORMS) + 6 * len(PROPERTIES)]
    statistics = statistics.view(len(PROPERTIES), 6, -1)
    low, high = extremes(properties)
    mean = properties[0] * fractions[0]
    for values, f in zip(properties[1:], fractions[1:], strict=True):
        mean.addcmul_(values, f)
    statistics[:, 0] = low
    statistics[:, 1] = high
    torch.sub(high, low, out=statistics[:, 2])
    statistics[:, 3] = mean
    statistics[:, 4] = mean_deviation(properties, fractions, mean)
    statistics[:, 5] = _mode(properties, fractions)

    rest = out[len(NORMS) + 6 * len(PROPERTIES) :]
    for row, index in enumerate(_VALENCE):
        torch.div(mean[index], mean[_TOTAL_VALENCE], out=rest[row])
    rest[4] = possible
    rest[5] = 0.0
    rest[6] = 0.0
    for i, j in combinations(range(len(properties)), 2):
        character = 1.0 - torch.exp(-0.25 * (electronegativity[i] - electronegativity[j]) ** 2)
        torch.maximum(rest[5], character, out=rest[5])
        rest[6].addcmul_(character, fractions[i] * fractions[j])


def extremes(values: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the elementwise minimum and maximum of tensors of equal shape."""
    low = high = values[0]
    for value in values[1:]:
        low, high = torch.minimum(low, value), torch.maximum(high, value)
    return low, high


def mean_deviation(
    values: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor | float],
    mean: torch.Tensor,
) -> torch.Tensor:
    """Return the mean absolute deviation from `mean`, with weights that sum to 1."""
    total = torch.zeros_like(mean)
    for value, weight in zip(values, weights, strict=True):
        deviation = (value - mean).abs_()
        if isinstance(weight, float):
            total.add_(deviation, alpha=weight)
        else:
            total.addcmul_(deviation, weight)
    return total


def _mode(properties: Sequence[torch.Tensor], fractions: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the smallest value among the elements of largest fraction."""
    _, largest = extremes([torch.atleast_1d(f) for f in fractions])
    threshold = _TIE_ATOL + _TIE_RTOL * largest
    result: torch.Tensor | None = None
    for value, fraction in zip(properties, fractions, strict=True):
        tied = (fraction - largest).abs() <= threshold
        if tied.numel() == 1:
            if not bool(tied):
                continue
            candidate = value
        else:
            candidate = torch.where(tied, value, torch.inf)
        result = candidate if result is None else torch.minimum(result, candidate)
    if result is None:
        raise ValueError("no element has the largest fraction: fractions hold NaN")
    return result


@cache
def _charges(number: int, amount: int) -> frozenset[int]:
    """Charges that `amount` atoms of one element bring if all have the same state."""
    return frozenset(amount * state for state in element_table().oxidation_states[number])


def neutral_possible(numbers: Sequence[int], amounts: Sequence[int]) -> bool:
    """Tell whether one common oxidation state per element can add up to no charge.

    This is matminer's `IonProperty(fast=True)`: every atom of an element is in the same state;
    a single element always counts as possible.

    Args:
        numbers: Atomic numbers of the elements of one composition.
        amounts: Integer amount of each.
    """
    if len(numbers) < 2:
        return True
    totals = {0}
    for number, amount in zip(numbers, amounts, strict=True):
        charges = _charges(int(number), int(amount))
        totals = {total + charge for total in totals for charge in charges}
    return 0 in totals


class NeutralityTable:
    """`neutral_possible` for many compositions of equal amounts, by table look-up.

    The roles are split into two halves of one or two; the charges that a half can reach are a bit
    set, looked up by the elements of that half, and two halves can balance when the sets of one
    and the negative of the other meet. Beyond four roles, where such tables would fill the
    memory, compositions are taken one by one.

    Args:
        amounts: Integer amount of each of the k roles.
    """

    def __init__(self, amounts: Sequence[int]) -> None:
        divisor = int(np.gcd.reduce(np.asarray(amounts)))
        reduced = [int(a) // divisor for a in amounts]
        self._amounts = reduced
        self._split = (len(reduced) + 1) // 2
        self._tables: tuple[torch.Tensor, ...] = ()
        if len(reduced) <= _TABULATED_ROLES:
            halves = (reduced[: self._split], reduced[self._split :])
            bound = max(max(-low, high) for low, high in map(_half_charges, halves))
            self._tables = (_half_bits(halves[0], bound, +1), _half_bits(halves[1], bound, -1))

    def __call__(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return whether a neutral compound is possible.

        Args:
            numbers: Atomic numbers, shape (n, k), int64.

        Returns:
            Shape (n,), bool, on the device of `numbers`.
        """
        if not self._tables:
            rows = [neutral_possible(row, self._amounts) for row in numbers.tolist()]
            return torch.tensor(rows, dtype=torch.bool, device=numbers.device)
        bits = []
        for table, columns in zip(
            self._tables,
            (numbers[:, : self._split], numbers[:, self._split :]),
            strict=True,
        ):
            index = columns[:, 0]
            for column in range(1, columns.shape[1]):
                index = index * (LAST_Z + 1) + columns[:, column]
            bits.append(table.to(numbers.device)[:, index])
        return (bits[0] & bits[1]).ne(0).any(dim=0)


def _half_charges(amounts: Sequence[int]) -> tuple[int, int]:
    """Return the lowest and highest charge that elements in these amounts can reach."""
    states = [s for states in element_table().oxidation_states for s in states]
    return min(states) * sum(amounts), max(states) * sum(amounts)


def _half_bits(amounts: Sequence[int], bound: int, sign: int) -> torch.Tensor:
    """Tabulate reachable charges as bit sets, shape (words, 104**len(amounts)), int64."""
    width = 2 * bound + 1
    reach: NDArray[np.bool_] = np.zeros((1, width), dtype=bool)
    reach[0, bound] = True
    states = element_table().oxidation_states
    for amount in amounts:
        wider = np.zeros((len(reach), LAST_Z + 1, width), dtype=bool)
        for z in range(1, LAST_Z + 1):
            for state in states[z]:
                wider[:, z] |= np.roll(reach, sign * amount * state, axis=1)
        reach = wider.reshape(-1, width)
    bits = np.zeros((-(-width // 63), len(reach)), dtype=np.int64)
    for charge in range(width):
        bits[charge // 63] |= reach[:, charge].astype(np.int64) << (charge % 63)
    return torch.from_numpy(bits)
