"""The chemical elements: symbols, electronegativities and the element ranges used as pools."""

import json
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from prototypes.errors import PoolError, nearest_hint

SYMBOLS: tuple[str, ...] = tuple(
    """
    H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se
    Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb
    Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm
    Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
    """.split()
)
"""Symbols in order of atomic number; ``SYMBOLS[z - 1]`` belongs to ``z``."""

ATOMIC_NUMBERS: dict[str, int] = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}
"""Atomic number of each symbol."""


def atomic_number(symbol: str) -> int:
    """Return the atomic number of an element symbol.

    Args:
        symbol: The symbol, spelt exactly ("Fe", not "FE").

    Returns:
        The atomic number.

    Raises:
        PoolError: If there is no such element; names the nearest symbol.
    """
    try:
        return ATOMIC_NUMBERS[symbol]
    except KeyError:
        title = symbol.strip().capitalize()
        hint = (
            f'; did you mean "{title}"?'
            if title in ATOMIC_NUMBERS
            else nearest_hint(symbol, SYMBOLS)
        )
        raise PoolError(f'unknown element "{symbol}"{hint}') from None


@cache
def electronegativities() -> NDArray[np.float64]:
    """Return Pauling electronegativities by atomic number.

    Returns:
        Array of shape (119,); entry z belongs to atomic number z; NaN where there is no value
        (and at 0). Source: ``data/elements.json``.
    """
    return _column("electronegativity")


@cache
def atomic_volumes() -> NDArray[np.float64]:
    """Return typical volumes per atom in crystals by atomic number.

    Returns:
        Array of shape (119,), Å3; entry z belongs to atomic number z; NaN for elements outside
        the 89 that can be screened. Source: ``data/elements.json``.
    """
    return _column("atomic_volume")


@cache
def formula_ranks() -> NDArray[np.int16]:
    """Return the position of each element in a formula: by electronegativity, then by symbol.

    Elements without an electronegativity come last, as in pymatgen.

    Returns:
        Array of shape (119,); entry z is the rank of atomic number z (entry 0 is unused).
    """
    values = electronegativities()

    def order(z: int) -> tuple[float, str]:
        value = float(values[z])
        return (float("inf") if np.isnan(value) else value, SYMBOLS[z - 1])

    ranks = np.zeros(len(SYMBOLS) + 1, dtype=np.int16)
    for rank, z in enumerate(sorted(range(1, len(SYMBOLS) + 1), key=order)):
        ranks[z] = rank
    ranks.setflags(write=False)
    return ranks


def _column(name: str) -> NDArray[np.float64]:
    text = files("prototypes").joinpath("data", "elements.json").read_text(encoding="utf-8")
    table: dict[str, float | None] = json.loads(text)[name]
    values = np.full(len(SYMBOLS) + 1, np.nan)
    for symbol, value in table.items():
        if value is not None:
            values[ATOMIC_NUMBERS[symbol]] = value
    values.setflags(write=False)
    return values
