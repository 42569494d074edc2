"""Reduced formulas of candidates, in pymatgen's convention but without pymatgen."""

from collections.abc import Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

from prototypes.elements import SYMBOLS, electronegativities, formula_ranks

_POLYANION_GAP = 1.65
"""Largest electronegativity difference inside a bracketed group (pymatgen's threshold)."""

_DOUBLED = {f"{metal}O": f"{metal}2O2" for metal in ("H", "Li", "Na", "K", "Rb", "Cs")} | {
    symbol: f"{symbol}2" for symbol in ("H", "N", "O", "F", "Cl")
}
"""Formulas that pymatgen does not reduce all the way: peroxides and diatomic gases."""


def reduced_formula(numbers: Sequence[int], amounts: Sequence[int]) -> str:
    """Return the reduced formula of a composition.

    Elements stand in order of electronegativity (then alphabetically; those without a value
    last). If there are at least three and the amounts of the last two, less than 1.65 apart in
    electronegativity, share a divisor, these two are bracketed, as in Ca(NO3)2.

    Args:
        numbers: Atomic numbers; an element may occur more than once.
        amounts: How many atoms of each, positive.

    Returns:
        What ``pymatgen.core.Composition.reduced_formula`` returns.

    Example:
        >>> reduced_formula([8, 20, 22], [12, 4, 4])
        'CaTiO3'
    """
    total: dict[int, int] = {}
    for number, amount in zip(numbers, amounts, strict=True):
        total[int(number)] = total.get(int(number), 0) + int(amount)
    ranks = formula_ranks()
    order = sorted(total, key=lambda number: int(ranks[number]))
    divisor = gcd(*total.values())
    tokens = [_token(number, total[number] // divisor) for number in order]
    if len(order) >= 3:
        last, second = order[-1], order[-2]
        shared = gcd(total[last] // divisor, total[second] // divisor)
        values = electronegativities()
        if shared > 1 and values[last] - values[second] < _POLYANION_GAP:
            inner = "".join(_token(n, total[n] // divisor // shared) for n in (second, last))
            tokens[-2:] = [f"({inner}){shared}"]
    formula = "".join(tokens)
    return _DOUBLED.get(formula, formula)


class FormulaWriter:
    """Writes the formulas of many decorations of the same sites at once."""

    def __init__(self, amounts: Sequence[int]) -> None:
        """Prepare for one stoichiometry.

        Args:
            amounts: Atoms of each of the k roles, in any common multiple.
        """
        divisor = gcd(*amounts)
        self.amounts = tuple(amount // divisor for amount in amounts)
        self._tokens = np.array(
            [[""] + [_token(z + 1, a) for z in range(len(SYMBOLS))] for a in self.amounts],
            dtype=object,
        )
        self._shared = np.array([[gcd(a, b) for b in self.amounts] for a in self.amounts])

    def write(self, numbers: NDArray[np.integer]) -> list[str]:
        """Return the reduced formula of each row.

        Args:
            numbers: Shape (m, k), atomic numbers, all different within a row.

        Returns:
            The m formulas, as ``reduced_formula`` gives them.
        """
        numbers = np.asarray(numbers)
        rows, roles = numbers.shape
        if rows == 0:
            return []
        order = np.argsort(formula_ranks()[numbers], axis=1)
        ordered = np.take_along_axis(numbers, order, axis=1)
        written = self._tokens[order[:, 0], ordered[:, 0]]
        for place in range(1, roles):
            written = written + self._tokens[order[:, place], ordered[:, place]]
        formulas: list[str] = written.tolist()
        if roles >= 3 and self._shared.max(initial=1, where=~np.eye(roles, dtype=bool)) > 1:
            values = electronegativities()
            bracketed = (self._shared[order[:, -2], order[:, -1]] > 1) & (
                values[ordered[:, -1]] - values[ordered[:, -2]] < _POLYANION_GAP
            )
            for row in np.flatnonzero(bracketed):
                formulas[row] = reduced_formula(numbers[row].tolist(), self.amounts)
        if roles == 2 and self.amounts == (1, 1):
            formulas = [_DOUBLED.get(formula, formula) for formula in formulas]
        return formulas


def _token(number: int, amount: int) -> str:
    return SYMBOLS[number - 1] + (str(amount) if amount > 1 else "")
