"""The smallest forms of what the fuzz tests found: each once was a traceback, a hang or worse."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from irnet import Forest, IRNetError
from irnet.ensemble import Member
from irnet.uncertainty import Uncertainty
from prototypes import CandidateSpace, PoolError, find_prototype
from prototypes.errors import PrototypeError, StructureFileError
from screening.dataset import Protocol, read_formulas, read_training_set, reduce_formula
from screening.errors import InputDataError, ModelError
from screening.feature_tables import read_features
from screening.model_library import load_model
from screening.phases import count_atoms
from screening.references import read_references
from screening.structures import read_structures

CELL = """data_x
_cell_length_a {a}
_cell_length_b {b}
_cell_length_c {c}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
"""
PAIR = "Na 0 0 0\nCl 0.5 0.5 0.5\n"


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".cif", "a" * 300, "a" * 9000, "a\0b.cif", "a\0b", "~nobody-is-so/a.cif"]
)
def test_names_that_can_be_no_path(name: str) -> None:
    with pytest.raises(PrototypeError):
        find_prototype(name)


def write_cif(folder: Path, sites: str = PAIR, a: str = "4", b: str = "4", c: str = "4") -> Path:
    path = folder / "x.cif"
    path.write_text(CELL.format(a=a, b=b, c=c) + sites)
    return path


def test_a_word_of_many_digits_in_a_cif_is_no_hang(tmp_path: Path) -> None:
    path = write_cif(tmp_path)
    path.write_text(
        path.read_text() + "loop_\n_symmetry_equiv_pos_as_xyz\n" + "9" * 5000 + "x,y,z\n"
    )
    with pytest.raises(StructureFileError, match="line of 5,"):
        find_prototype(path)
    _, [failure] = read_structures([path])
    assert "line of 5," in failure.reason


@pytest.mark.parametrize("edges", [("0.6", "0.6", "900"), ("4", "4", "1e200")])
def test_long_and_thin_cells_do_not_fill_the_memory(tmp_path: Path, edges: tuple[str, ...]) -> None:
    path = write_cif(tmp_path, PAIR, *edges)
    with pytest.raises(StructureFileError, match=r"thin|edge"):
        find_prototype(path)
    read_structures([path])


def test_cells_in_which_an_atom_meets_itself_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text('1\nLattice="0.000001 0 0 0 1000 0 0 0 1000"\nNa 0 0 0\n')
    started = time.process_time()
    _, [failure] = read_structures([path])
    assert time.process_time() - started < 5
    assert "thin" in failure.reason or "flat" in failure.reason


def test_prototypes_of_hundreds_of_sites_are_refused(tmp_path: Path) -> None:
    sites = "".join(
        f"{'Na' if (x + y) % 2 else 'Cl'} {x / 10} {y / 10} {z / 10}\n"
        for x in range(10) for y in range(10) for z in range(10)
    )  # fmt: skip
    with pytest.raises(StructureFileError, match="1,000 sites"):
        find_prototype(write_cif(tmp_path, sites, "30", "30", "30"))


def test_pools_that_differ_in_every_role_are_counted_or_refused(tmp_path: Path) -> None:
    symbols = "Li Na K Rb Be Mg Ca Sr O S".split()
    sites = "".join(f"{s} {i / 10} {i / 10} {i / 10}\n" for i, s in enumerate(symbols))
    prototype = find_prototype(write_cif(tmp_path, sites, "30", "30", "30"))
    random = np.random.default_rng(0)
    pools = {
        role: tuple(sorted(random.choice(np.arange(1, 60), 30, replace=False).tolist()))
        for role in prototype.roles
    }
    with pytest.raises(PoolError, match="differ in too many ways"):
        CandidateSpace(prototype, pools)


def test_a_poscar_that_announces_four_billion_atoms(tmp_path: Path) -> None:
    path = tmp_path / "POSCAR"
    path.write_text("x\n1\n4 0 0\n0 4 0\n0 0 4\nNa Cl\n1 4294967296\ndirect\n0 0 0\n0.5 0.5 0.5\n")
    _, [failure] = read_structures([path])
    assert "announces 4,294,967,297 atoms" in failure.reason


@pytest.mark.parametrize(
    "text",
    [
        '1\nLattice="1 0 0 2 0 0 0 0 1" Properties=species:S:1:pos:R:3\nNa 0 0 0\n',
        '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa 0 0\n',
        '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa\n',
        '1\nLattice="nan 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa 0 0 0\n',
    ],
)
def test_frames_without_a_cell_or_coordinates(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.extxyz"
    path.write_text(text)
    _, [failure] = read_structures([path])
    assert failure.reason


@pytest.mark.parametrize(
    "formula",
    ["H" + "9" * 5000, "(" * 9999, "H9999999999(H9999999999)9999999999", "H1e400", "H" * 5000],
)
def test_formulas_of_any_size(formula: str, tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="not a chemical formula"):
        count_atoms(formula)
    path = tmp_path / "f.txt"
    path.write_text(formula)
    if formula != "H9999999999(H9999999999)9999999999":
        with pytest.raises(InputDataError, match="not a chemical formula"):
            read_formulas(path)


def test_a_formula_of_infinitely_many_atoms() -> None:
    with pytest.raises(InputDataError, match="not a chemical formula"):
        reduce_formula("H" + "9" * 400)


def test_references_nested_without_end(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[" * 100_000)
    with pytest.raises(InputDataError):
        read_references(path)


@pytest.mark.parametrize("ids", [[[1, 2]], [[]], [None], [b"\xff"], [{"a": 1}]])
def test_ids_of_any_type(tmp_path: Path, ids: list[Any]) -> None:
    path = tmp_path / "r.parquet"
    table = {"formula": ["NaCl"], "formation_energy_per_atom": [-2.0], "id": ids}
    pq.write_table(pa.table(table), path)
    assert len(read_references(path).phases) == 1


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    names = ["formula", "formation_energy_per_atom", "formula"]
    pq.write_table(pa.table([pa.array(["NaCl"]), pa.array([-2.0]), pa.array(["LiF"])], names), path)
    with pytest.raises(InputDataError, match="2 columns 'formula'"):
        read_references(path)


def change(source: Path, path: Path, name: str, values: Any) -> Path:
    frame = pq.read_table(source).to_pandas()
    frame[name] = values
    frame.to_parquet(path)
    return path


@pytest.mark.parametrize("values", ["x", [[1.0, 2.0]] * 9, pd.Categorical(["a"] * 9)])
@pytest.mark.parametrize(
    ("table", "column"), [("structures", "dE_matbench"), ("training", "mean Number")]
)
def test_training_columns_of_other_types(
    seeds: Path, tmp_path: Path, table: str, column: str, values: Any
) -> None:
    source = seeds / f"{table}.parquet"
    if column not in pq.read_schema(source).names:
        column = next(name for name in pq.read_schema(source).names if name.startswith("mean "))
    path = change(source, tmp_path / "t.parquet", column, values)
    with pytest.raises(InputDataError, match="does not hold numbers"):
        read_training_set([path], Protocol())


def test_ids_that_are_whole_numbers_but_for_one(seeds: Path, tmp_path: Path) -> None:
    frame = pq.read_table(seeds / "structures.parquet").to_pandas()
    frame["id"] = pd.array([*range(8), None], dtype="Int64")
    path = tmp_path / "t.parquet"
    frame.to_parquet(path)
    assert read_training_set([path], Protocol()).ids[:2] == ("0", "1")


def test_metadata_of_pandas_is_not_looked_at(seeds: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pq.read_table(seeds / "structures.parquet")
    pq.write_table(table.replace_schema_metadata({b"pandas": b"{}"}), path)
    assert len(read_training_set([path], Protocol())) == 9


@pytest.mark.parametrize("missing", ["id", "reason"])
def test_failures_without_their_columns(seeds: Path, tmp_path: Path, missing: str) -> None:
    shutil.copy(seeds / "features.parquet", tmp_path)
    failed = pd.DataFrame({"id": ["a"], "reason": ["b"]}).drop(columns=missing)
    failed.to_parquet(tmp_path / "features.failures.parquet")
    with pytest.raises(InputDataError, match="no columns id and reason"):
        read_features(tmp_path / "features.parquet")


def retouch(
    source: Path, path: Path, name: str, tensor: torch.Tensor | None, **header: Any
) -> Path:
    """Copy a safetensors file with another tensor and other entries in its header."""
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        content = json.loads(file.metadata()["header"]) | header
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path, {"header": json.dumps(content)})
    return path


@pytest.mark.parametrize(
    ("reader", "file", "name", "tensor", "header"),
    [
        (Forest, "forest", "feature", torch.zeros((2, 2), dtype=torch.uint16), {}),
        (Forest, "forest", "sizes", torch.zeros(10), {}),
        (Forest, "forest", "", None, {"card": 5}),
        (Member, "ensemble/member-0", "scaling.mean", torch.zeros(542, dtype=torch.float64), {}),
        (Member, "ensemble/member-0", "scaling.std", torch.zeros(271, dtype=torch.float64), {}),
        (Member, "ensemble/member-0", "scaling.mean", torch.full((271,), torch.nan).double(), {}),
        (Member, "ensemble/member-0", "", None, {"target_mean": []}),
        (Member, "ensemble/member-0", "", None, {"architecture": ["16BAR-1"]}),
        (Member, "ensemble/member-0", "", None, {"architecture": "9999999999BAx9999999999-1"}),
        (Uncertainty, "uncertainty", "mean", torch.zeros(271, dtype=torch.float64), {}),
        (Uncertainty, "uncertainty", "score_counts", torch.tensor(3), {}),
        (Uncertainty, "uncertainty", "value", torch.tensor(3.0), {}),
        (Uncertainty, "uncertainty", "", None, {"start": float("nan")}),
    ],
)
def test_weights_of_other_shapes_types_and_facts(
    seeds: Path, tmp_path: Path, reader: Any, file: str, name: str, tensor: Any, header: Any
) -> None:
    source = seeds / "model" / f"{file}.safetensors"
    with pytest.raises(IRNetError):
        reader.load(retouch(source, tmp_path / "w.safetensors", name, tensor, **header))


def test_weights_that_are_not_finite(seeds: Path, tmp_path: Path) -> None:
    source = seeds / "model" / "ensemble" / "member-0.safetensors"
    with safe_open(source, "pt") as file:
        name = next(key for key in file.keys() if key.endswith("weight"))  # noqa: SIM118
        broken = file.get_tensor(name) * torch.nan
    with pytest.raises(IRNetError, match="not finite"):
        Member.load(retouch(source, tmp_path / "w.safetensors", name, broken))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"kind": "an irnet ensemble", "card": []}', "1"])
def test_lists_of_members_nested_or_of_another_type(seeds: Path, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(seeds / "model", folder)
    (folder / "ensemble" / "ensemble.json").write_text(text)
    with pytest.raises(ModelError):
        load_model(folder)
