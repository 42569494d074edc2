"""First stage: which candidates a campaign has, and in which ranges they are worked off.

A candidate is an index into the space of its prototype; nothing is enumerated into memory. The
grid of shards is fixed by the campaign's settings alone, so that a later run finds the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from screening.errors import ConfigurationError

if TYPE_CHECKING:
    from prototypes import CandidateSpace, Prototype


@dataclass(frozen=True)
class Shard:
    """A range of indices of one prototype's space: one task, one Parquet file.

    Attributes:
        number: Place in the campaign's grid, from 0.
        prototype: Name of the prototype.
        start: First index.
        stop: One past the last index.
    """

    number: int
    prototype: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Candidates:
    """Distinct candidates of one prototype.

    Attributes:
        indices: Index of each candidate in its space, shape (m,), int64.
        numbers: Atomic number on each role, shape (m, roles), uint8.
    """

    indices: NDArray[np.int64]
    numbers: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, rows: NDArray[np.int64]) -> Candidates:
        """Return the candidates in these rows, shape (r,)."""
        return Candidates(self.indices[rows], self.numbers[rows])

    def blocks(self, size: int) -> Iterator[Candidates]:
        """Yield consecutive parts of at most `size` candidates."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Candidates(self.indices[part], self.numbers[part])


def open_spaces(
    names: Sequence[str], pools: Sequence[str], roles: str | None = None
) -> tuple[tuple[CandidateSpace, ...], dict[str, tuple[int, ...]]]:
    """Find the prototypes and open their candidate spaces.

    Args:
        names: Prototypes by any name, or paths of CIFs.
        pools: Element pools: `POOL` for every role or `ROLE=POOL` for one.
        roles: Roles of the elements or site labels of CIFs, such as `Ca=A,Ti=B,O=X`; None lets
            each element be a role.

    Returns:
        One space per prototype, and the pool of every role.

    Raises:
        ConfigurationError: A prototype given twice, or roles without a CIF.
        prototypes.PrototypeError: An unknown prototype, element, pool or role; an unusable CIF;
            pools too small for any candidate.
    """
    from prototypes import CandidateSpace, find_prototype, parse_role_names, parse_role_pools

    role_names = None if roles is None else parse_role_names(roles)
    found: dict[str, Prototype] = {}
    given_as: dict[str, str] = {}
    for name in names:
        prototype = find_prototype(name, role_names)
        earlier = given_as.get(prototype.name)
        if earlier is not None:
            raise ConfigurationError(_describe_clash(found[prototype.name], earlier, name))
        found[prototype.name] = prototype
        given_as[prototype.name] = name
    if roles is not None and not any(_is_from_file(each) for each in found.values()):
        raise ConfigurationError(
            f"--roles {roles} is for prototypes from CIFs, and this campaign has none; "
            f"{_find_shadowed(names)}give --prototype FILE.cif or leave --roles out"
        )
    all_roles = list(dict.fromkeys(role for each in found.values() for role in each.roles))
    by_role = parse_role_pools(pools, all_roles)
    spaces = tuple(
        CandidateSpace(prototype, {role: by_role[role] for role in prototype.roles})
        for prototype in found.values()
    )
    return spaces, by_role


def _is_from_file(prototype: Prototype) -> bool:
    return not prototype.exact and prototype.aflow_label is None


def _describe_clash(prototype: Prototype, earlier: str, later: str) -> str:
    """Say why two prototypes cannot have the same name."""
    files = [name for name in (earlier, later) if name.lower().endswith(".cif")]
    if earlier == later or not files:
        return (
            f"prototype {prototype.name} is given twice (--prototype {earlier} and --prototype "
            f"{later}); give it once"
        )
    return (
        f"two prototypes would be called {prototype.name}: --prototype {earlier} and --prototype "
        f"{later}; a CIF is called what its file is called, so rename {files[-1]}"
    )


def _find_shadowed(names: Sequence[str]) -> str:
    """Say which names were taken for those of prototypes although files are called so too."""
    shadowed = [name for name in names if Path(name).is_file()]
    if not shadowed:
        return ""
    return (
        f"{', '.join(shadowed)} is the name of a prototype, which goes before the file of that "
        "name (rename the file to one that ends in .cif); "
    )


@dataclass(frozen=True)
class ShardGrid(Sequence[Shard]):
    """All shards of a campaign, in order. None of them is in memory: they follow from their number.

    Attributes:
        shard_size: Indices of a shard at most.
        index_counts: Name of each prototype, in order, with the number of indices of its space.
    """

    shard_size: int
    index_counts: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return sum(self._count(indices) for _, indices in self.index_counts)

    def __iter__(self) -> Iterator[Shard]:
        number = 0
        for prototype, indices in self.index_counts:
            for start in range(0, indices, self.shard_size):
                yield Shard(number, prototype, start, min(start + self.shard_size, indices))
                number += 1

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Shard, ...]: ...

    def __getitem__(self, number: int | slice) -> Shard | tuple[Shard, ...]:
        if isinstance(number, slice):
            return tuple(self[each] for each in range(len(self))[number])
        place = number = range(len(self))[number]
        for prototype, indices in self.index_counts:
            if place < self._count(indices):
                start = place * self.shard_size
                return Shard(number, prototype, start, min(start + self.shard_size, indices))
            place -= self._count(indices)
        raise IndexError(number)

    def __contains__(self, shard: object) -> bool:
        return (
            isinstance(shard, Shard)
            and 0 <= shard.number < len(self)
            and self[shard.number] == shard
        )

    def _count(self, indices: int) -> int:
        return -(-indices // self.shard_size)


def plan_shards(spaces: Sequence[CandidateSpace], shard_size: int) -> ShardGrid:
    """Cut the spaces into shards of at most `shard_size` indices, in the order of the spaces."""
    return ShardGrid(
        shard_size, tuple((space.prototype.name, space.index_count) for space in spaces)
    )


def describe_grid(grid: ShardGrid) -> dict[str, Any]:
    """Return a grid as JSON; `restore_grid` makes it again."""
    return {"shard_size": grid.shard_size, "index_counts": dict(grid.index_counts)}


def restore_grid(described: Mapping[str, Any]) -> ShardGrid:
    """Return the grid that a manifest describes."""
    return ShardGrid(described["shard_size"], tuple(described["index_counts"].items()))


def enumerate_candidates(space: CandidateSpace, start: int, stop: int) -> Candidates:
    """Decode the distinct candidates among the indices start <= i < stop."""
    return Candidates(*space.decode(start, stop))


def count_candidates(spaces: Sequence[CandidateSpace]) -> Mapping[str, int]:
    """Return the exact number of distinct candidates of each prototype, without enumerating."""
    return {space.prototype.name: space.count for space in spaces}
