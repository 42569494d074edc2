"""Site roles of a compound whose source does not give them."""

from collections.abc import Collection
from string import ascii_uppercase

import numpy as np

from prototypes.elements import ATOMIC_NUMBERS, formula_ranks

ANIONS = frozenset("N P As O S Se Te F Cl Br I".split())
"""Elements that count as the anion X of a reference compound: pnictogens but Sb and Bi,
chalcogens and halogens."""


def assign_roles(symbols: Collection[str]) -> dict[str, str]:
    """Assign a role to each element of a reference compound.

    The most electronegative element is X if it is one of ``ANIONS``; the others are A, B, C and
    so on in order of increasing electronegativity. So the A, B and X of CaTiO3 are Ca, Ti and O,
    whichever letters its AFLOW label uses.

    Args:
        symbols: The different elements.

    Returns:
        Role to element symbol, in the order A, B, ..., X.

    Example:
        >>> assign_roles(["O", "Ca", "Ti"])
        {'A': 'Ca', 'B': 'Ti', 'X': 'O'}
    """
    ranks = formula_ranks()
    ordered = sorted(symbols, key=lambda symbol: int(ranks[ATOMIC_NUMBERS[symbol]]))
    anion = ordered.pop() if ordered[-1] in ANIONS else None
    assigned = dict(zip(role_letters(len(ordered)), ordered, strict=True))
    if anion is not None:
        assigned["X"] = anion
    return assigned


def role_letters(count: int) -> list[str]:
    """Return the first role names that are not X: A, B, C, ..., then A2, B2 and so on."""
    letters = ascii_uppercase.replace("X", "")
    rounds = int(np.ceil(count / len(letters)))
    names = [
        letter + (str(round_ + 1) if round_ else "")
        for round_ in range(rounds)
        for letter in letters
    ]
    return names[:count]
