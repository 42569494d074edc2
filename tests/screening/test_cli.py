from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import Result

from screening.predict import read_basis

ROOT = Path(__file__).resolve().parents[2]
Program = Callable[..., Result]

PARTIAL = """\
data_partial
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    from typer.testing import CliRunner

    from screening.cli import app

    folder = tmp_path_factory.mktemp("runs") / "small"
    call = [
        "run", "-p", "B2", "-p", "perovskite", "-e", "Li,Na,K,Cs,Mg,F,Cl",
        "--model", str(tiny_model), "--workers", "0", "-o", str(folder),
    ]  # fmt: skip
    assert CliRunner().invoke(app, call).exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["runn"], 2, "Did you mean 'run'"),
        (["run", "--protoype", "B2"], 2, "--prototype"),
        (["run"], 2, "no prototype given; give --prototype"),
        (["run", "-p", "B2"], 2, "no out given; give --out"),
        (["run", "-p", "perovskit", "-o", "OUT"], 2, 'did you mean "perovskite"'),
        (["run", "-p", "B2", "-e", "Li,Xx", "-o", "OUT"], 2, 'unknown element or group "Xx"'),
        (["run", "-p", "B2", "-e", "Li", "-o", "OUT"], 2, "needs 2 different elements"),
        (["run", "-p", "B2", "-e", "X=O", "-o", "OUT"], 2, 'unknown site role "X"'),
        (["run", "-p", "perovskite", "-e", "X=", "-o", "OUT"], 2, "X is left without elements"),
        (["run", "-p", "B2", "-p", "CsCl", "-o", "OUT"], 2, "given twice"),
        (
            ["run", "-p", "B2", "--device", "gpu", "-o", "OUT"],
            2,
            'not one of auto, cpu, cuda; did you mean "cuda"',
        ),
        (
            ["run", "-p", "B2", "--precision", "fp8", "-o", "OUT"],
            2,
            "not one of auto, int8, bf16, fp32",
        ),
        (["run", "-p", "B22", "-o", "OUT"], 2, 'prototype "B22"; did you mean "B2"? `screening'),
        (["run", "-p", "B2", "--model", "OUT/none", "-o", "OUT"], 4, "there is no model"),
        (["run", "-p", "none.cif", "-o", "OUT"], 3, "there is no file none.cif"),
        (["run", "OUT/none.toml"], 2, "cannot read"),
        (["run", "tests/conftest.pi"], 2, 'did you mean "conftest.py"'),
        (["show", "OUT"], 2, "is not a campaign's folder"),
        (["export", "OUT", "--format", "xyz"], 2, "none of cif, poscar, csv"),
        (["prototypes", "nothing-like-it"], 2, "no prototype has"),
    ],
)
def test_bad_input_ends_in_one_message_and_its_code(
    screening: Program,
    arguments: list[str],
    code: int,
    complaint: str,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    out = tmp_path / "out"
    call = [argument.replace("OUT", str(out)) for argument in arguments]
    if call[0] == "run" and "-o" in call and "--model" not in call:
        call += ["--model", str(tiny_model), "--workers", "0"]
    done = screening(*call)
    flat = " ".join(done.stderr.replace("│", " ").split())
    assert done.exit_code == code, done.output
    assert complaint in flat
    assert "Traceback" not in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("not a cif", "cannot be read as a CIF"),
        (PARTIAL + "Li1 Li 0 0 0 0.5\nNa1 Na 0 0 0 0.5\nCl1 Cl .5 .5 .5 1\n", "partially occupied"),
        (PARTIAL + "Li1 Li 0 0 0 1\nCl1 Cl 0 0 0.01 1\n", "overlap"),
        (PARTIAL + "Li1 Li 0 0 0 1\n", "element"),
    ],
)
def test_unusable_cifs_are_refused(
    screening: Program, text: str, complaint: str, tmp_path: Path, tiny_model: Path
) -> None:
    cif = tmp_path / "mine.cif"
    cif.write_text(text)
    done = screening("run", "-p", cif, "-o", tmp_path / "out", "--model", tiny_model)
    assert done.exit_code in (2, 3), done.output
    assert complaint in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_cif_becomes_a_prototype_with_its_own_roles(
    screening: Program, tmp_path: Path, tiny_model: Path
) -> None:
    import pyarrow.parquet as pq

    cif = tmp_path / "mine.cif"
    cif.write_text(PARTIAL + "Li1 Li 0 0 0 1\nNa1 Na .5 0 0 1\nK1 K 0 .5 0 1\nCl1 Cl 0 0 .5 1\n")
    roles = "Li=A,Na=B,K=D,Cl=X"
    done = screening(
        "run", "-p", cif, "--roles", roles, "-e", "Li,Na,K,Mg,F", "-o", tmp_path / "out",
        "--model", tiny_model, "--workers", "0",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    cif.unlink()
    ranking = pq.read_table(tmp_path / "out" / "ranking.parquet")
    assert ranking["site_D"].null_count == 0
    exported = screening("export", tmp_path / "out", "--top", "2", "--format", "poscar")
    assert exported.exit_code == 0, exported.output
    assert len(exported.stdout.split()) == 2


def test_a_gpu_that_is_not_there_is_named(
    screening: Program, tmp_path: Path, tiny_model: Path
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    done = screening(
        "run", "-p", "B2", "-o", tmp_path / "out", "--model", tiny_model, "--device", "cuda"
    )
    assert done.exit_code == 2, done.output
    assert "use --device cpu or auto" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_arithmetic_that_is_not_there_is_named(
    screening: Program, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    out, options = tmp_path / "out", ("--model", tiny_model, "--device", "cpu", "--precision")
    file = tmp_path / "salt.cif"
    salt = Structure(Lattice.cubic(3.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    file.write_text(salt.to(fmt="cif"))
    table = tmp_path / "p.parquet"
    for command in (
        ("run", "-p", "B2", "-o", out, "--workers", 0),
        ("predict", file, "--out", table),
    ):
        done = screening(*command, *options, "int8")
        assert done.exit_code == 2, done.output
        expected = "VNNI instructions, which this processor has not; use auto, bf16 or fp32"
        assert expected in " ".join(done.stderr.split())
    assert not out.exists()
    assert not table.exists()
    typed = screening("predict", file, "--out", table, *options, "int9")
    assert typed.exit_code == 2
    assert '--precision "int9" is none of auto, int8, bf16, fp32; did you mean "int8"?' in (
        " ".join(typed.stderr.split())
    )
    done = screening("predict", file, "--out", table, *options, "auto")
    assert done.exit_code == 0, done.output
    assert read_basis(pq.read_table(table))["precision"] == "fp32"


def test_a_truncated_model_is_refused(screening: Program, tmp_path: Path, tiny_model: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "model")
    member = next((copy / "ensemble").glob("*.safetensors"))
    member.write_bytes(member.read_bytes()[:1000])
    done = screening("run", "-p", "B2", "-o", tmp_path / "out", "--model", copy)
    assert done.exit_code == 4, done.output
    assert member.name in done.stderr


def test_another_campaigns_folder_is_refused_and_kept(
    screening: Program, small_run: Path, tiny_model: Path
) -> None:
    before = (small_run / "manifest.json").read_bytes()
    done = screening(
        "run", "-p", "B2", "-e", "Li,Na", "-o", small_run, "--model", tiny_model, "--workers", "0"
    )
    assert done.exit_code == 2
    assert "holds another campaign" in done.stderr
    assert "-Cs" in done.stderr
    assert (small_run / "manifest.json").read_bytes() == before


def test_an_unwritable_folder_is_one_message(
    screening: Program, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "file").write_text("x")
    done = screening("run", "-p", "B2", "-o", tmp_path / "file" / "run", "--model", tiny_model)
    assert done.exit_code == 5, done.output
    assert "cannot write" in done.stderr


def test_show_picks_and_marks(screening: Program, small_run: Path) -> None:
    shown = screening("show", small_run, "--with", "Cs", "--prototype", "B2", "--top", "2")
    assert shown.exit_code == 0, shown.output
    assert "Top 2 of 6 candidates chosen from 231" in shown.stdout
    assert "unseen: not in the training data" in " ".join(shown.stdout.split())
    assert "These are candidates, not discoveries" in " ".join(shown.stderr.split())
    known = screening("show", small_run, "--with", "Na", "--with", "Cl", "-p", "B2")
    assert "known" in known.stdout
    new = screening("show", small_run, "--with", "Na", "--with", "Cl", "-p", "B2", "--new", "-n", 1)
    assert new.exit_code == 0
    assert "NaCl" not in new.stdout


def test_show_names_the_nearest_element(screening: Program, small_run: Path) -> None:
    done = screening("show", small_run, "--with", "cs")
    assert done.exit_code == 2
    assert 'did you mean "Cs"' in done.stderr


def test_a_damaged_ranking_is_one_message(
    screening: Program, small_run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_run, tmp_path / "copy")
    (copy / "ranking.parquet").write_bytes(b"PAR1")
    done = screening("show", copy)
    assert done.exit_code == 3, done.output
    assert "damaged" in done.stderr


def test_export_writes_the_same_candidates_as_show(screening: Program, small_run: Path) -> None:
    to = small_run.parent / "chosen"
    done = screening("export", small_run, "-n", 3, "-f", "csv", "--new", "--to", to)
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((to / "candidates.csv").open()))
    shown = screening("show", small_run, "-n", 3, "--new").stdout
    assert len(rows) == 3
    assert all(row["formula"] in shown and row["rank"] in shown for row in rows)


def test_export_says_how_many_older_files_stay(
    screening: Program, small_run: Path, tmp_path: Path
) -> None:
    first = screening("export", small_run, "-n", 3, "-f", "poscar", "--to", tmp_path)
    assert "earlier export" not in first.stderr
    again = screening("export", small_run, "-n", 1, "-f", "poscar", "--to", tmp_path)
    assert again.stdout.split() == first.stdout.split()[:1]
    assert f"2 files of an earlier export stay in {tmp_path}, from 000002_" in again.stderr


def test_prototypes_lists_sources(screening: Program) -> None:
    done = screening("prototypes", "--built-in")
    assert done.exit_code == 0
    for name in ("B2", "L1_0", "perovskite", "cubic_perovskite", "AFLOW", "TbFeO3"):
        assert name in done.stdout


def test_prototypes_lists_those_of_aflow(screening: Program) -> None:
    done = screening("prototypes")
    assert done.exit_code == 0
    (spinel,) = [line for line in done.stdout.splitlines() if line.endswith("  Spinel")]
    assert spinel.split() == ["A2BC4_cF56_227_d_a_e", "AB2X4", "14", "H1_1", "Spinel"]
    described = screening("prototypes", "spinel").stdout
    assert "roles assigned by electronegativity" in described
    assert "A (here Mg), B (here Al), X (here O)" in described


def test_a_misspelt_prototype_loads_no_torch(tmp_path: Path) -> None:
    call = ["screening", "run", "-p", "B22", "-o", str(tmp_path / "out")]
    code = (
        f"import sys; sys.argv = {call!r}\n"
        "from screening.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_an_exact_name_is_described_before_the_others(screening: Program) -> None:
    lines = screening("prototypes", "B1").stdout.splitlines()
    assert lines[0] == "AB_cF8_225_a_b: AX, 2 sites"
    assert 'also with "B1" in a name:' in lines
    assert len(lines) > 15


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("screening sh", "show"), ("screening run --prototype cub", "cubic_perovskite")],
)
def test_shell_completion_completes(typed: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from screening.cli import main; main()"],
        cwd=ROOT,
        env=os.environ
        | {
            "_SCREENING_COMPLETE": "complete_bash",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(typed.split()) - 1),
        },
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout.split()


def test_version(screening: Program) -> None:
    import screening as package

    assert screening("--version").stdout.strip() == f"screening {package.__version__}"


def test_a_bug_keeps_its_traceback(
    screening: Program, monkeypatch: pytest.MonkeyPatch, small_run: Path
) -> None:
    from screening import rank

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(rank, "select_candidates", fail)
    done = screening("show", small_run)
    assert done.exit_code == 1
    assert isinstance(done.exception, ZeroDivisionError)
