"""The grammar of `--require`: a column, turned into a filter.

    charge_neutral                      a flag that must be true
    not likely_metal                    a flag that must be false
    known = no                          the same, as a comparison (yes, no, true, false)
    bartel_tolerance_factor < 4.18      a number: <, <=, >, >=, =, !=
    prototype = B2                      a name: =, !=
    toxic_elements = none               a list of elements: none, any, or exactly these
    toxic_elements lacks Pb             a list of elements: has (all), lacks (all)

Null means that a rule does not apply to a candidate, so a requirement keeps it: a rule for ionic
crystals removes no intermetallic. An exclamation mark at the end demands a value as well
(`charge_neutral!`). Hyphens and underscores are the same in names of columns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from prototypes.elements import ATOMIC_NUMBERS
from screening.columns import RANKING, Column
from screening.errors import ConfigurationError, suggest

Operator = Literal["<", "<=", ">", ">=", "=", "!=", "has", "lacks"]

ELEMENT_LISTS: Final = frozenset(
    {"toxic_elements", "radioactive_elements", "unseen_elements", "imputed_elements"}
)
"""Columns that list element symbols, separated by spaces or commas; no element is "" or null."""

_OPERATORS: Final[Mapping[str, tuple[Operator, ...]]] = MappingProxyType(
    {
        "flag": ("=", "!="),
        "number": ("<", "<=", ">", ">=", "=", "!="),
        "name": ("=", "!="),
        "elements": ("=", "!=", "has", "lacks"),
    }
)
_COMPARE: Final[Mapping[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        "<": pc.less,
        "<=": pc.less_equal,
        ">": pc.greater,
        ">=": pc.greater_equal,
        "=": pc.equal,
        "!=": pc.not_equal,
    }
)
_FLAGS: Final = MappingProxyType({"yes": True, "true": True, "no": False, "false": False})
_COMPARISON: Final = re.compile(r"\s*([\w-]+)\s*(<=|>=|!=|==|=|<|>|\s(?:has|lacks)\s)\s*(.*?)\s*")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a requirement does to a table of m rows.

    Attributes:
        keep: Whether each row stays, shape (m,).
        removed: How many rows go.
        not_applicable: How many rows have no value: they stay, unless the requirement demands one.
    """

    keep: NDArray[np.bool_]
    removed: int
    not_applicable: int


@dataclass(frozen=True)
class Requirement:
    """A condition on one column.

    Attributes:
        column: Name of the column.
        operator: How to compare.
        value: What with: a flag, a number, a name, or the symbols of elements.
        demanded: Whether rows without a value go too.
    """

    column: str
    operator: Operator
    value: bool | float | str | frozenset[str]
    demanded: bool = False

    @property
    def text(self) -> str:
        """The requirement in its one canonical form, which parses to the same requirement."""
        if isinstance(self.value, bool):
            wanted = self.value == (self.operator == "=")
            core = self.column if wanted else f"not {self.column}"
            return core + "!" * self.demanded
        if isinstance(self.value, frozenset):
            value = " ".join(sorted(self.value)) or "none"
        elif isinstance(self.value, float):
            value = repr(self.value).removesuffix(".0")
        else:
            value = self.value
        return f"{self.column} {self.operator} {value}" + "!" * self.demanded

    def check(self, table: pa.Table) -> None:
        """Check that a table has the column.

        Raises:
            ConfigurationError: It does not.
        """
        if self.column not in table.column_names:
            raise ConfigurationError(
                f'--require "{self.text}": there is no column {self.column} at this stage; '
                f"there are {', '.join(table.column_names)}"
            )

    def test(self, table: pa.Table) -> Outcome:
        """Test every row of a table.

        Args:
            table: A table that has the column, m rows.

        Returns:
            Which rows stay.

        Raises:
            ConfigurationError: The table does not have the column.
        """
        self.check(table)
        values = table[self.column].combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if isinstance(self.value, frozenset):
            fulfilled = _compare_elements(values, self.operator, self.value)
        else:
            fulfilled = _COMPARE[self.operator](values, self.value)
        missing = np.asarray(fulfilled.is_null())
        keep = np.asarray(pc.fill_null(fulfilled, not self.demanded)).astype(np.bool_)
        return Outcome(keep, int((~keep).sum()), int(missing.sum()))


def apply_requirements(
    requirements: Sequence[Requirement], table: pa.Table
) -> tuple[NDArray[np.bool_], tuple[Outcome, ...]]:
    """Test a table against requirements, one after the other.

    Args:
        requirements: The requirements, in order.
        table: A table that has all their columns, m rows.

    Returns:
        Which rows fulfil all of them, shape (m,), and the outcome of each requirement on the rows
        that those before it left: removed rows are counted once.

    Raises:
        ConfigurationError: The table lacks a column.
    """
    left = np.arange(table.num_rows)
    outcomes = []
    for requirement in requirements:
        requirement.check(table)
        outcome = requirement.test(table.select([requirement.column]).take(pa.array(left)))
        outcomes.append(outcome)
        left = left[outcome.keep]
    keep = np.zeros(table.num_rows, np.bool_)
    keep[left] = True
    return keep, tuple(outcomes)


def parse_requirement(text: str, columns: Iterable[Column] = RANKING.columns) -> Requirement:
    """Read a requirement.

    Args:
        text: As the head of this module shows.
        columns: The columns that there are, with their types.

    Returns:
        The requirement.

    Raises:
        ConfigurationError: A column that does not exist, an operator that does not fit its type, a
            value that cannot be read; the message says what would be right.
    """
    known = tuple(columns)
    for turned, right in (("=>", ">="), ("=<", "<=")):
        if turned in text:
            raise ConfigurationError(f'--require "{text}": write {right} instead of {turned}')
    stripped = text.strip()
    demanded = stripped.endswith("!")
    core = stripped.removesuffix("!").rstrip()
    match = _COMPARISON.fullmatch(core)
    if match is None:
        words = core.split()
        negated = len(words) == 2 and words[0] == "not"
        if len(words) != 1 + negated:
            raise ConfigurationError(
                f'--require "{text}" cannot be read; write a flag ("charge_neutral", '
                '"not likely_metal") or a comparison ("p_stable >= 0.5", '
                '"toxic_elements lacks Pb")'
            )
        column = _find_column(words[-1], known, text)
        kind = _kind_of(column)
        if kind != "flag":
            raise ConfigurationError(
                f'--require "{text}": {column.name} is {_describe(kind)}, not a flag; compare it, '
                f"with {', '.join(_OPERATORS[kind])}"
            )
        return Requirement(column.name, "=", not negated, demanded)
    name, sign, value = match.groups()
    column = _find_column(name, known, text)
    kind = _kind_of(column)
    operator = next(
        (each for each in _OPERATORS[kind] if each == sign.strip().replace("==", "=")), None
    )
    if operator is None:
        raise ConfigurationError(
            f'--require "{text}": {column.name} is {_describe(kind)}, which {sign.strip()} cannot '
            f"compare; use {', '.join(_OPERATORS[kind])}"
        )
    if kind == "elements":
        return Requirement(column.name, *_parse_elements(value, operator, text), demanded)
    if kind == "flag":
        wanted = _parse_flag(value, text) == (operator == "=")
        return Requirement(column.name, "=", wanted, demanded)
    parsed = _parse_number(value, column, text) if kind == "number" else value
    if not parsed and kind == "name":
        raise ConfigurationError(f'--require "{text}" does not say what to compare with')
    return Requirement(column.name, operator, parsed, demanded)


def _parse_flag(value: str, text: str) -> bool:
    if value.casefold() not in _FLAGS:
        raise ConfigurationError(f'--require "{text}": write yes or no instead of "{value}"')
    return _FLAGS[value.casefold()]


def _parse_number(value: str, column: Column, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        unit = f" in {column.unit}" if column.unit else ""
        raise ConfigurationError(
            f'--require "{text}": "{value}" is not a number; {column.name} takes one{unit}'
        )
    return number


def _parse_elements(value: str, operator: Operator, text: str) -> tuple[Operator, frozenset[str]]:
    """Read the symbols; none and any are no elements and the opposite."""
    words = value.replace(",", " ").split()
    compares = operator in ("=", "!=")
    if compares and words == ["none"]:
        return operator, frozenset()
    if compares and words == ["any"]:
        return ("!=" if operator == "=" else "="), frozenset()
    if not words:
        raise ConfigurationError(f'--require "{text}" names no elements; give symbols, such as Pb')
    for word in words:
        if word not in ATOMIC_NUMBERS:
            hint = suggest(word, ATOMIC_NUMBERS) or "; give symbols, such as Pb"
            raise ConfigurationError(f'--require "{text}": unknown element "{word}"{hint}')
    return operator, frozenset(words)


def _compare_elements(
    values: pa.Array, operator: Operator, wanted: frozenset[str]
) -> pa.BooleanArray:
    """Compare lists of elements; no value is a list without elements."""
    coded = pc.fill_null(values, "").dictionary_encode()
    lists = [frozenset(each.replace(",", " ").split()) for each in coded.dictionary.to_pylist()]
    tests: Mapping[Operator, Callable[[frozenset[str]], bool]] = {
        "=": lambda each: each == wanted,
        "!=": lambda each: each != wanted,
        "has": lambda each: each >= wanted,
        "lacks": lambda each: not each & wanted,
    }
    return pa.array([tests[operator](each) for each in lists], pa.bool_()).take(coded.indices)


def _find_column(name: str, columns: Sequence[Column], text: str) -> Column:
    """Return the column of that name; a member of a family under its own name."""
    folded = name.replace("-", "_")
    for each in columns:
        if each.name.casefold() == folded.casefold():
            return each
    for each in columns:
        if each.matches(folded):
            return replace(each, name=folded)
    names = [each.name for each in columns if not each.name.endswith("*")]
    hint = suggest(folded, names) or f"; there are {', '.join(names)}"
    raise ConfigurationError(f'--require "{text}": there is no column {name}{hint}')


def _kind_of(column: Column) -> str:
    if column.name in ELEMENT_LISTS:
        return "elements"
    if column.dtype == "bool":
        return "flag"
    return "name" if column.dtype == "string" else "number"


def _describe(kind: str) -> str:
    names = {"flag": "yes or no", "number": "a number", "name": "a name"}
    return names.get(kind, "a list of elements")
