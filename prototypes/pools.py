"""Element pools: which elements may take a site role."""

from collections.abc import Iterable, Sequence

from prototypes.elements import ATOMIC_NUMBERS, SYMBOLS, atomic_number
from prototypes.errors import PoolError, RoleError, nearest_hint


def _numbers(symbols: str) -> frozenset[int]:
    return frozenset(ATOMIC_NUMBERS[symbol] for symbol in symbols.split())


def _span(first: int, last: int) -> frozenset[int]:
    return frozenset(range(first, last + 1))


_ALL_89 = _span(1, 94) - _numbers("Po At Rn Fr Ra")
_NOBLE_GASES = _numbers("He Ne Ar Kr Xe")

ELEMENTS_89: tuple[int, ...] = tuple(sorted(_ALL_89))
"""Atomic numbers 1 to 94 without Po, At, Rn, Fr and Ra."""

DEFAULT_POOL: tuple[int, ...] = tuple(
    sorted(_ALL_89 - _NOBLE_GASES - _numbers("Tc Pm") - _span(84, 94))
)
"""ELEMENTS_89 without noble gases, Tc, Pm and everything beyond Bi: 76 elements."""

GROUPS: dict[str, tuple[str, frozenset[int]]] = {
    "default": (
        "all89 without noble gases, Tc, Pm and everything beyond Bi (Z > 83)",
        frozenset(DEFAULT_POOL),
    ),
    "all89": ("Z = 1 to 94 without Po, At, Rn, Fr, Ra", _ALL_89),
    "alkali": ("Li to Cs", _numbers("Li Na K Rb Cs")),
    "alkaline_earth": ("Be to Ba", _numbers("Be Mg Ca Sr Ba")),
    "lanthanides": ("La to Lu", _span(57, 71)),
    "actinides": ("Ac to Pu", _span(89, 94)),
    "rare_earths": ("Sc, Y and La to Lu", _numbers("Sc Y") | _span(57, 71)),
    "3d": ("Sc to Zn", _span(21, 30)),
    "4d": ("Y to Cd", _span(39, 48)),
    "5d": ("Hf to Hg", _span(72, 80)),
    "transition_metals": ("3d, 4d and 5d", _span(21, 30) | _span(39, 48) | _span(72, 80)),
    "noble_metals": ("Ru, Rh, Pd, Ag, Os, Ir, Pt, Au", _numbers("Ru Rh Pd Ag Os Ir Pt Au")),
    "post_transition": ("Al, Ga, In, Sn, Tl, Pb, Bi", _numbers("Al Ga In Sn Tl Pb Bi")),
    "metalloids": ("B, Si, Ge, As, Sb, Te", _numbers("B Si Ge As Sb Te")),
    "nonmetals": ("H, C, N, O, F, P, S, Cl, Se, Br, I", _numbers("H C N O F P S Cl Se Br I")),
    "pnictogens": ("N to Bi", _numbers("N P As Sb Bi")),
    "chalcogens": ("O to Te", _numbers("O S Se Te")),
    "halogens": ("F to I", _numbers("F Cl Br I")),
    "noble_gases": ("He to Xe", _NOBLE_GASES),
}
"""Named pools: what each holds in words, and its atomic numbers."""


def element_pool(spec: str | Iterable[str]) -> tuple[int, ...]:
    """Read an element pool.

    A pool is a list of element symbols and group names (see ``GROUPS``), in one string with
    commas or spaces between them or as separate strings. A leading ``-`` or ``!`` takes an
    element or a group out, wherever it stands in the list. A list of exclusions alone starts
    from the default pool.

    Args:
        spec: For instance "default", "Li,Na,K", "3d,Mg", "all89,-lanthanides" or "!O,!F".

    Returns:
        Atomic numbers in increasing order, at least one.

    Raises:
        PoolError: If a name is unknown, an element lies outside ELEMENTS_89, or nothing is left.

    Example:
        >>> element_pool("alkali,-Cs,F")
        (3, 9, 11, 19, 37)
    """
    words = [
        word
        for part in ([spec] if isinstance(spec, str) else spec)
        for word in part.replace(",", " ").split()
    ]
    if not words:
        raise PoolError("an element pool is empty; name elements (Li,Na) or a group (default)")
    taken: set[int] = set()
    excluded: set[int] = set()
    only_exclusions = all(word[0] in "-!" for word in words)
    for word in words:
        if word[0] in "-!":
            excluded |= _members(word[1:])
        else:
            taken |= _members(word)
    if only_exclusions:
        taken = set(DEFAULT_POOL)
    pool = tuple(sorted(taken - excluded))
    if not pool:
        raise PoolError(f'the element pool "{",".join(words)}" leaves no element; exclude less')
    return pool


def parse_role_pools(specs: Sequence[str], roles: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read the pools of all site roles from what a user gave.

    ``ROLE=POOL`` is the pool of one role, a string without ``=`` the pool of every role that has
    none of its own; without that, the default pool.

    Args:
        specs: For instance ``["all89", "X=O,S,F"]``; may be empty.
        roles: The valid roles, in order.

    Returns:
        Atomic numbers of each role, in the order of the roles.

    Raises:
        RoleError: If a role is unknown or given twice.
        PoolError: If a pool cannot be read.

    Example:
        >>> parse_role_pools(["Ca,Sr", "X=O"], ["A", "X"])
        {'A': (20, 38), 'X': (8,)}
    """
    own: dict[str, tuple[int, ...]] = {}
    common: tuple[int, ...] | None = None
    for spec in specs:
        role, equals, pool = spec.partition("=")
        role = role.strip()
        if not equals:
            if common is not None:
                raise RoleError(
                    f'"{spec}" is a second pool for all roles; join the two with a comma'
                )
            common = element_pool(spec)
        elif role not in roles:
            raise RoleError(
                f'unknown site role "{role}" in "{spec}"{nearest_hint(role, roles) or ";"} '
                f"the roles are {', '.join(roles)}"
            )
        elif role in own:
            raise RoleError(f'the pool of site role "{role}" is given twice; join the two')
        elif not pool.strip():
            raise PoolError(f"site role {role} is left without elements; write {role}=O,S")
        else:
            own[role] = element_pool(pool)
    fallback = DEFAULT_POOL if common is None else common
    return {role: own.get(role, fallback) for role in roles}


def _members(word: str) -> frozenset[int]:
    if word in GROUPS:
        return GROUPS[word][1]
    if word in ATOMIC_NUMBERS:
        number = atomic_number(word)
        if number not in _ALL_89:
            raise PoolError(
                f"{word} is not among the 89 elements that can be screened "
                "(Z = 1 to 94 without Po, At, Rn, Fr, Ra)"
            )
        return frozenset((number,))
    title = word.capitalize()
    if title in ATOMIC_NUMBERS:
        raise PoolError(f'unknown element or group "{word}"; did you mean "{title}"?')
    names = [*GROUPS, *SYMBOLS]
    raise PoolError(
        f'unknown element or group "{word}"{nearest_hint(word, names) or ";"} '
        f"write symbols (Li,Na) or one of the groups {', '.join(GROUPS)}"
    )
