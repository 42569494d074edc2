"""Errors of this package: one base class, each error also a builtin one."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class PrototypeError(Exception):
    """Base class of every error that this package raises on purpose."""


class UnknownPrototypeError(PrototypeError, LookupError):
    """No prototype has this name."""


class AmbiguousPrototypeError(PrototypeError, LookupError):
    """Several prototypes share this name."""


class ElementPrototypeError(PrototypeError, ValueError):
    """The prototype holds one element, so that there is nothing to substitute."""


class RoleError(PrototypeError, ValueError):
    """A site role is missing, unknown or badly given."""


class StructureFileError(PrototypeError, ValueError):
    """A structure file cannot serve as a prototype."""


class PoolError(PrototypeError, ValueError):
    """An element pool cannot be understood, or is too small."""


class CandidateError(PrototypeError, ValueError):
    """An index or a set of elements is not a candidate of this space."""


def nearest_file(path: Path) -> str:
    """Return a hint as `nearest_hint` does, of the files beside one that does not exist."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    return nearest_hint(path.name, names)


def nearest_hint(word: str, names: Iterable[str]) -> str:
    """Return ``; did you mean "..."?`` for the nearest of the names, or an empty string.

    Args:
        word: What the user wrote.
        names: The valid names.

    Returns:
        A hint that starts with a semicolon, empty if nothing is near.
    """
    spelling: dict[str, str] = {}
    for name in names:
        spelling.setdefault(name.casefold(), name)
    folded = word.casefold()
    found = get_close_matches(folded, spelling, cutoff=0.5)
    found.sort(key=lambda name: sorted(name) != sorted(folded))  # two letters in the wrong order
    return f'; did you mean "{spelling[found[0]]}"?' if found else ""
