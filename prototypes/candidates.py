"""The candidates of a prototype and its element pools, as a range of integers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import perm, prod
from operator import index as as_integer

import numpy as np
from numpy.typing import NDArray

from prototypes.elements import SYMBOLS
from prototypes.errors import CandidateError, PoolError, RoleError
from prototypes.formulas import FormulaWriter
from prototypes.prototype import Prototype

_MOST_CHOICES = 1_000_000
"""Ways to choose for every role one of the classes of elements."""

_BLOCK = 1 << 19
"""Indices decoded at a time: large enough for NumPy, small enough for the cache."""


class CandidateSpace:
    """All ways to put different elements on the roles of a prototype, each compound once.

    A candidate is an integer: the position of its elements in the pools, written as a number of
    mixed radix, the first role most significant. Not every integer is a candidate: elements must
    differ between roles, and of the decorations that an isometry of the prototype makes equal
    only the one with the smallest index counts. Nothing is enumerated into memory.

    Attributes:
        prototype: The prototype.
        pools: Atomic numbers of each role in increasing order, in order of the roles.
        index_count: Number of indices; candidates are some of ``range(index_count)``.
    """

    def __init__(self, prototype: Prototype, pools: Mapping[str, Sequence[int]]) -> None:
        """Define the space.

        Args:
            prototype: The prototype.
            pools: Role to atomic numbers; exactly the roles of the prototype.

        Raises:
            RoleError: If a role has no pool, or a pool no role.
            PoolError: If a pool is empty or holds what is no atomic number, if the pools together
                are too small for a single candidate, or if the space exceeds 64-bit integers.
        """
        roles = prototype.roles
        for role in roles:
            if role not in pools:
                raise RoleError(
                    f"site role {role} of {prototype.name} has no elements; its roles are "
                    f"{', '.join(roles)}: add {role}=default"
                )
        for role in pools:
            if role not in roles:
                raise RoleError(
                    f"{prototype.name} has no site role {role}; its roles are {', '.join(roles)}"
                )
        self.prototype = prototype
        self.pools = tuple(_checked_pool(prototype, role, pools[role]) for role in roles)
        self.index_count = prod(len(pool) for pool in self.pools)
        if self.index_count > np.iinfo(np.int64).max:
            raise PoolError(
                f"{prototype.name} with these pools has {self.index_count:.1e} indices, more than "
                "64 bits hold; make the pools smaller"
            )
        self._arrays = tuple(np.array(pool, dtype=np.uint8) for pool in self.pools)
        self._member = np.zeros((len(roles), len(SYMBOLS) + 1), dtype=bool)
        for row, numbers in zip(self._member, self._arrays, strict=True):
            row[numbers] = True
        self._permutations = prototype.role_permutations[1:]
        self._writer = FormulaWriter(prototype.amounts)
        if self.count == 0:
            sizes = ", ".join(f"{r}: {len(p)}" for r, p in zip(roles, self.pools, strict=True))
            raise PoolError(
                f"{prototype.name} needs {len(roles)} different elements, which these pools "
                f"cannot give ({sizes}); add elements"
            )

    @cached_property
    def count(self) -> int:
        """Exact number of candidates, computed without enumerating them.

        Elements fall into classes by the pools that they belong to. Decorations with the same
        class on every role number a product of falling factorials, and all have the same number
        of equivalents inside the space.
        """
        roles = range(len(self.pools))
        classes = Counter(
            tuple(self._member[:, number].tolist()) for number in sorted(set().union(*self.pools))
        )
        work = prod(sum(c[role] for c in classes) for role in roles)
        if work * len(self.prototype.role_permutations) > _MOST_CHOICES:
            raise PoolError(
                f"the pools of the {len(self.pools)} roles of {self.prototype.name} differ in too "
                "many ways to count the candidates; give several roles the same pool"
            )
        total = Fraction(0)
        for choice in product(*([c for c in classes if c[role]] for role in roles)):
            decorations = prod(
                perm(classes[kind], times) for kind, times in Counter(choice).items()
            )
            equivalents = sum(
                all(choice[permutation[role]][role] for role in roles)
                for permutation in self.prototype.role_permutations
            )
            total += Fraction(decorations, equivalents)
        return int(total)

    def decode(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return all candidates with an index in ``range(start, stop)``.

        Args:
            start: First index.
            stop: One past the last index, at most ``index_count``.

        Returns:
            Indices, shape (m,), increasing, and atomic numbers, shape (m, k), with m at most
            ``stop - start``.

        Raises:
            CandidateError: If the range does not lie within the space.
        """
        start, stop = as_integer(start), as_integer(stop)
        if not 0 <= start <= stop <= self.index_count:
            raise CandidateError(
                f"indices {start} to {stop} do not lie within 0 to {self.index_count}"
            )
        blocks = [
            self._decode_block(first, min(first + _BLOCK, stop))
            for first in range(start, stop, _BLOCK)
        ]
        if not blocks:
            return np.empty(0, dtype=np.int64), np.empty((0, len(self.pools)), dtype=np.uint8)
        if len(blocks) == 1:
            return blocks[0]
        indices, numbers = zip(*blocks, strict=True)
        return np.concatenate(indices), np.concatenate(numbers)

    def candidate(self, index: int) -> tuple[int, ...]:
        """Return the atomic numbers of a candidate, one per role.

        Args:
            index: Its index.

        Raises:
            CandidateError: If the index lies outside the space or is not a candidate.
        """
        index = as_integer(index)
        if not 0 <= index < self.index_count:
            raise CandidateError(f"index {index} does not lie within 0 to {self.index_count - 1}")
        rest, digits = index, []
        for pool in reversed(self.pools):
            rest, digit = divmod(rest, len(pool))
            digits.append(pool[digit])
        numbers = tuple(reversed(digits))
        if len(set(numbers)) < len(numbers):
            raise CandidateError(
                f"index {index} is not a candidate: it puts one element on two roles "
                f"({_written(numbers)})"
            )
        canonical = self.index(numbers)
        if canonical != index:
            raise CandidateError(
                f"index {index} ({_written(numbers)}) is not a candidate: it is the same compound "
                f"as index {canonical}"
            )
        return numbers

    def index(self, numbers: Sequence[int]) -> int:
        """Return the index of a candidate, given by any equivalent decoration.

        Args:
            numbers: Atomic numbers, one per role, all different.

        Raises:
            CandidateError: If an element is not in its role's pool, in any equivalent
                decoration, or elements repeat.
        """
        given = tuple(as_integer(number) for number in numbers)
        if len(given) != len(self.pools) or len(set(given)) != len(given):
            raise CandidateError(
                f"{self.prototype.name} needs {len(self.pools)} different elements, one for each "
                f"of the roles {', '.join(self.prototype.roles)}; got {list(given)}"
            )
        images = [
            image
            for image in (
                tuple(given[role] for role in permutation)
                for permutation in self.prototype.role_permutations
            )
            if all(number in pool for number, pool in zip(image, self.pools, strict=True))
        ]
        if not images:
            raise CandidateError(
                f"{_written(given)} is not a candidate: an element is not in the pool of its role"
            )
        index = 0
        for number, pool in zip(min(images), self.pools, strict=True):
            index = index * len(pool) + pool.index(number)
        return index

    def formula(self, numbers: Sequence[int]) -> str:
        """Return the reduced formula of one decoration, as pymatgen writes it.

        Args:
            numbers: Atomic numbers, one per role, all different.
        """
        return self.formulas(np.array([numbers]))[0]

    def formulas(self, numbers: NDArray[np.integer]) -> list[str]:
        """Return the reduced formulas of many decorations.

        Args:
            numbers: Shape (m, k), atomic numbers, all different within a row.

        Returns:
            The m formulas, as ``pymatgen.core.Composition.reduced_formula`` writes them.
        """
        return self._writer.write(numbers)

    def _decode_block(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Decode one range as a table: a row per choice of all roles but the last."""
        width = len(self.pools[-1])
        first_row, last_row = start // width, -(-stop // width)
        rest = np.arange(first_row, last_row, dtype=np.int64)
        columns: list[NDArray[np.uint8]] = [self._arrays[-1][None, :]]
        for pool in reversed(self._arrays[:-1]):
            rest, digit = np.divmod(rest, len(pool))
            columns.insert(0, pool[digit][:, None])
        valid = np.ones((last_row - first_row, width), dtype=bool)
        for role, column in enumerate(columns):
            for other in columns[:role]:
                valid &= column != other
        for permutation in self._permutations:
            valid &= ~self._has_smaller_image(columns, permutation)
        flat = valid.reshape(-1)
        offset = first_row * width
        flat[: start - offset] = False
        flat[stop - offset :] = False
        chosen = np.flatnonzero(flat)
        numbers = np.empty((len(chosen), len(columns)), dtype=np.uint8)
        for role, column in enumerate(columns):
            numbers[:, role] = np.broadcast_to(column, valid.shape)[valid]
        chosen += offset
        return chosen, numbers

    def _has_smaller_image(
        self, columns: list[NDArray[np.uint8]], permutation: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """Return where a permutation leads to a smaller index inside the space.

        All elements differ, so the first role that moves decides.
        """
        moved = [role for role, source in enumerate(permutation) if role != source]
        smaller = columns[permutation[moved[0]]] < columns[moved[0]]
        for role in moved:
            source = permutation[role]
            if not set(self.pools[source]) <= set(self.pools[role]):
                smaller = smaller & self._member[role][columns[source]]
        return smaller


def _checked_pool(prototype: Prototype, role: str, pool: Sequence[int]) -> tuple[int, ...]:
    numbers = tuple(sorted({as_integer(number) for number in pool}))
    if not numbers:
        raise PoolError(f"site role {role} of {prototype.name} is left without elements; add some")
    if numbers[0] < 1 or numbers[-1] > len(SYMBOLS):
        raise PoolError(f"the pool of site role {role} holds what is no atomic number: {pool}")
    return numbers


def _written(numbers: Sequence[int]) -> str:
    return ", ".join(
        SYMBOLS[number - 1] if 1 <= number <= len(SYMBOLS) else str(number) for number in numbers
    )
