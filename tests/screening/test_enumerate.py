from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Structure

from prototypes import PoolError, RoleError, UnknownPrototypeError
from screening.enumerate import (
    Candidates,
    Shard,
    ShardGrid,
    count_candidates,
    describe_grid,
    enumerate_candidates,
    open_spaces,
    plan_shards,
    restore_grid,
)
from screening.errors import ConfigurationError


def test_counts_are_those_of_the_paper() -> None:
    spaces, _ = open_spaces(["B2", "L1_0", "perovskite"], ["all89"])
    assert count_candidates(spaces) == {"B2": 3916, "L1_0": 3916, "perovskite": 681_384}


@settings(deadline=None)
@given(st.integers(1, 3000))
def test_shards_cover_every_index_once(shard_size: int) -> None:
    spaces, _ = open_spaces(["B2", "perovskite"], ["Li,Na,K,Rb,Mg,Ca,O,S,F,Cl"])
    shards = plan_shards(spaces, shard_size)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for space in spaces:
        own = [shard for shard in shards if shard.prototype == space.prototype.name]
        assert own[0].start == 0
        assert own[-1].stop == space.index_count
        assert all(a.stop == b.start for a, b in pairwise(own))
        assert all(0 < shard.stop - shard.start <= shard_size for shard in own)


@given(
    st.integers(1, 50),
    st.lists(st.integers(0, 120), min_size=1, max_size=4),
    st.integers(-500, 500),
    st.integers(-500, 500),
)
def test_a_grid_is_the_list_of_its_shards(
    shard_size: int, indices: list[int], start: int, stop: int
) -> None:
    grid = ShardGrid(shard_size, tuple((f"p{n}", count) for n, count in enumerate(indices)))
    shards = list(grid)
    assert len(grid) == len(shards)
    assert [grid[number] for number in range(len(grid))] == shards
    assert grid[start:stop] == tuple(shards[start:stop])
    assert [grid[-number] for number in range(1, len(grid) + 1)] == shards[::-1]
    with pytest.raises(IndexError):
        grid[len(grid)]
    assert all(shard in grid for shard in shards)
    assert Shard(len(shards), "p0", 0, 1) not in grid
    assert Shard(0, "other", 0, shard_size) not in grid
    assert restore_grid(json.loads(json.dumps(describe_grid(grid)))) == grid


def test_a_grid_of_a_billion_candidates_is_two_numbers() -> None:
    grid = ShardGrid(32_768, (("B2", 7921), ("A2BB'X6", 10**9)))
    assert len(grid) == 1 + 30_518
    assert grid[-1] == Shard(30_518, "A2BB'X6", 30_517 * 32_768, 10**9)
    assert len(json.dumps(describe_grid(grid))) < 100


def test_shards_hold_every_candidate_once() -> None:
    (space,), _ = open_spaces(["perovskite"], ["Li,Na,K,Rb,Mg,Ca", "X=O,S,F"])
    parts = [enumerate_candidates(space, s.start, s.stop) for s in plan_shards([space], 7)]
    assert sum(map(len, parts)) == space.count
    assert len({tuple(row) for part in parts for row in part.numbers.tolist()}) == space.count


def test_blocks_are_the_candidates_in_order() -> None:
    candidates = Candidates(np.arange(10), np.arange(20, dtype=np.uint8).reshape(10, 2))
    blocks = list(candidates.blocks(4))
    assert [len(block) for block in blocks] == [4, 4, 2]
    assert np.array_equal(np.concatenate([block.indices for block in blocks]), candidates.indices)
    assert np.array_equal(np.concatenate([block.numbers for block in blocks]), candidates.numbers)


@pytest.mark.parametrize(
    ("names", "pools", "error", "complaint"),
    [
        (["perovskit"], ["default"], UnknownPrototypeError, "perovskite"),
        (["B2", "CsCl"], ["default"], ConfigurationError, "given twice"),
        (["B2"], ["Li,Xy"], PoolError, "Xy"),
        (["B2"], ["Li,na"], PoolError, 'did you mean "Na"'),
        (["B2"], ["Li"], PoolError, "different elements"),
        (["B2"], ["X=O"], RoleError, "X"),
        (["perovskite"], ["X="], PoolError, "without elements"),
    ],
)
def test_impossible_campaigns_are_refused(
    names: list[str], pools: list[str], error: type[Exception], complaint: str
) -> None:
    with pytest.raises(error, match=complaint):
        open_spaces(names, pools)


def test_roles_need_a_cif() -> None:
    with pytest.raises(ConfigurationError, match="--roles Ca=A is for prototypes from CIFs"):
        open_spaces(["B2"], ["default"], "Ca=A")


def test_roles_are_not_ignored_where_a_file_is_called_like_a_prototype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("B2").write_text("x")
    with pytest.raises(ConfigurationError, match=r"B2 is the name of a prototype.*rename the file"):
        open_spaces(["B2"], ["default"], "Ca=A")


def test_roles_name_the_sites_of_a_cif(tmp_path: Path) -> None:
    cif = write_cif(tmp_path / "mine.cif")
    (space,), _ = open_spaces([str(cif)], ["default"], "Cs=X,Cl=A")
    assert dict(zip(space.prototype.roles, space.prototype.reference_elements, strict=True)) == {
        "A": "Cl",
        "X": "Cs",
    }


def write_cif(path: Path) -> Path:
    lattice = 4.12 * np.eye(3)
    Structure(lattice, ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(str(path))
    return path


def test_files_that_would_have_the_same_name_are_to_be_renamed(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    file, other = write_cif(tmp_path / "B2.cif"), write_cif(tmp_path / "other" / "B2.cif")
    for names in (["B2", str(file)], [str(file), "B2"], [str(file), str(other)]):
        with pytest.raises(ConfigurationError, match=r"would be called B2.*so rename .*B2\.cif"):
            open_spaces(names, ["default"])
    with pytest.raises(ConfigurationError, match="given twice"):
        open_spaces([str(file), str(file)], ["default"])


def test_a_cif_of_seven_elements_has_a_role_for_each(tmp_path: Path) -> None:
    symbols = ["Li", "Na", "K", "Mg", "Al", "O", "F"]
    sites = [[0.09 * n, 0.13 * n, 0.05 * n * n] for n in range(7)]
    Structure(8 * np.eye(3), symbols, sites).to(str(tmp_path / "seven.cif"))
    (space,), pools = open_spaces([str(tmp_path / "seven.cif")], [",".join([*symbols, "Cl"])])
    assert len(space.prototype.roles) == len(pools) == 7
    assert space.count == 40_320
