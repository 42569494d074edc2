"""What a list of prototypes shows, and how names are compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrototypeRecord:
    """One line of the list of prototypes.

    Attributes:
        name: The name under which ``find_prototype`` finds it.
        formula: Stoichiometry in roles, such as "ABX3".
        roles: Role names with the element of the reference compound, such as (("A", "Cs"), ...).
        aflow_label: AFLOW label, if known.
        strukturbericht: Strukturbericht symbol, if there is one.
        mineral: Mineral name, if there is one.
        source: Where the geometry comes from.
        exact: Whether the roles were assigned by hand (built in) rather than by rule.
        sites: Sites of the cell as its source gives it.
        is_element: Whether it holds a single element, so that ``find_prototype`` refuses it.
        doubt: What is doubtful about its geometry, such as atoms that lie elsewhere in the known
            structure of the reference compound; None where nothing is known to be.
    """

    name: str
    formula: str
    roles: tuple[tuple[str, str], ...]
    aflow_label: str | None
    strukturbericht: str | None
    mineral: str | None
    source: str
    exact: bool
    sites: int
    is_element: bool
    doubt: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """All names that it has."""
        names = (self.name, self.aflow_label, self.strukturbericht, self.mineral)
        return tuple(name for name in names if name)


def normalise_name(name: str) -> str:
    """Return a name as names are compared: lower case, only letters, digits and primes.

    Example:
        >>> normalise_name("(Cubic) Perovskite")
        'cubicperovskite'
    """
    return "".join(sign for sign in name.casefold() if sign.isalnum() or sign == "'")


def role_formula(amounts: dict[str, int]) -> str:
    """Return a stoichiometry in roles.

    Args:
        amounts: Sites per formula unit of each role, already reduced.

    Example:
        >>> role_formula({"A": 1, "B": 1, "X": 3})
        'ABX3'
    """
    return "".join(role + (str(amount) if amount > 1 else "") for role, amount in amounts.items())
