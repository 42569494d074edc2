"""Files and folders of strangers: nothing runs, is written elsewhere, or steers a terminal."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from typer.testing import Result

from screening.errors import ConfigurationError, InputDataError
from screening.export import name_file
from screening.folder import CHECKSUM, hash_identity
from screening.parquet import read_columns
from screening.printing import make_printable
from screening.references import read_references
from screening.settings import read_settings

Program = Callable[..., Result]
Browser = Callable[[Path], tuple[str, list[str]]]

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("prototypes", "irnet", "screening")

PAYLOAD = "<img src=x onerror=document.title='owned'><script>document.title='owned'<"
"""Changes the title of a page that lets it in; without a slash, to be the name of a file too."""

INJECTION = 'x\n[cluster]\nscheduler = "tcp:127.0.0.1:9"\n#'
"""Becomes settings if it is written into a comment as it is."""

NAMES = (
    PAYLOAD,
    "$\\frac{$",
    "\x1b[2J\x1b]0;owned\x07",
    "=cmd|' 'C0",
    "‮fic",
    "a" * 200,
    "-rf",
    INJECTION,
)
"""Names that a file can have, each trouble for someone."""


# --------------------------------------------------------------------------- no code in data

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
FORBIDDEN_MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "ruamel",
    "jsonpickle",
}  # fmt: skip
FORBIDDEN_ATTRIBUTES = {
    ("np", "load"), ("numpy", "load"), ("torch", "load"), ("torch", "save"), ("pd", "read_pickle"),
    ("pd", "eval"), ("pandas", "read_pickle"), ("os", "system"), ("os", "popen"),
    ("pa", "PyExtensionType"), ("pa", "deserialize"), ("ast", "literal_eval"),
}  # fmt: skip
FORBIDDEN_METHODS = {"to_pickle", "read_pickle", "loadfn", "from_dict_recursive"}
FORBIDDEN_KEYWORDS = {"allow_pickle", "shell", "trust_remote_code", "weights_only"}
HARMLESS_IMPORTS = {"joblib": {"parallel_config"}}
"""What of a module reads nothing."""


def list_offences(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of what could run code that stands in data, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                if set(modules) <= HARMLESS_IMPORTS.get(node.module or "", set()):
                    continue
                modules.append(node.module or "")
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_MODULES:
                    yield module, node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        refused = any(  # of pickles inside of NumPy's files
            keyword.arg == "allow_pickle" and ast.unparse(keyword.value) == "False"
            for keyword in node.keywords
        )
        if refused and ast.unparse(called) == "np.load":
            continue
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            yield called.id, node.lineno
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if (owner, called.attr) in FORBIDDEN_ATTRIBUTES or called.attr in FORBIDDEN_METHODS:
                yield f"{owner}.{called.attr}", node.lineno
        for keyword in node.keywords:
            if keyword.arg in FORBIDDEN_KEYWORDS:
                yield f"{keyword.arg}=", node.lineno


def test_no_code_is_made_of_data() -> None:
    """The list of exceptions is empty, and is to stay so."""
    found = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, line in list_offences(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "import pickle", "from joblib import load", "np.load(p, allow_pickle=True)",
        "import joblib", "from joblib import load, parallel_config", "np.load(p)",
        "np.load(p, allow_pickle=flag)", "np.load(eval(p), allow_pickle=False)",
        "torch.load(p)", "subprocess.run(x, shell=True)", "import yaml", "pd.read_pickle(p)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(list_offences(ast.parse(code)))


def test_processes_are_started_with_fixed_words_alone() -> None:
    """No name or path of a user is ever part of a command line."""
    started = [
        ast.unparse(node.args[0])
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess.")
    ]
    assert started == ["['git', '-C', str(root), 'rev-parse', 'HEAD']"]  # of the program's own tree


class Evil(pa.ExtensionType):  # type: ignore[misc]
    """A type of Arrow's with state of its own, which is read only by who registers it."""

    def __init__(self) -> None:
        super().__init__(pa.string(), "screening.evil")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"cos\nsystem\n(S'touch owned'\ntR."

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Evil:
        raise AssertionError("the state of a foreign type is read")


def test_types_and_metadata_of_a_parquet_file_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    pickled = b"cos\nsystem\n(S'touch owned'\ntR."
    table = pa.table(
        {
            "formula": pa.array(["NaCl"]).cast(Evil()),
            "formation_energy_per_atom": [-2.0],
        }
    ).replace_schema_metadata({b"pandas": pickled, b"PANDAS_ATTRS": pickled, b"pickle": pickled})
    pq.write_table(table, path)
    assert read_references(path).entries == 1
    assert read_columns(path).schema.metadata is None
    assert not (Path.cwd() / "owned").exists()


def test_a_small_file_of_billions_of_values_is_refused_before_it_fills_the_memory(
    tmp_path: Path,
) -> None:
    path = tmp_path / "bomb.parquet"
    part = pa.table({"formula": pa.array([None] * 3_000_000, pa.string())})
    with pq.ParquetWriter(path, part.schema, compression="zstd") as writer:
        for _ in range(5):
            writer.write_table(part)
    assert path.stat().st_size < 45_000
    with pytest.raises(InputDataError, match="15,000,000 values in"):
        read_columns(path)


# --------------------------------------------------------------------------- names of files


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, calibrated_model: Path) -> Path:
    """A finished campaign over prototypes with hostile names, in a folder with nothing beside."""
    from typer.testing import CliRunner

    from screening.cli import app

    root = tmp_path_factory.mktemp("hostile")
    cell = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    given = []
    for name in NAMES:
        path = root / "given" / f"{name}.cif"
        path.parent.mkdir(exist_ok=True)
        CifWriter(cell).write_file(str(path))
        given += ["--prototype", str(path)]
    references = root / "given" / f"{PAYLOAD}.csv"
    references.write_text(f'id,formula,formation_energy_per_atom\n"{PAYLOAD}/\x1b[2J",NaF,-2.9\n')
    call = ["run", *given, "--elements", "Li,Na,K,F", "--model", str(calibrated_model)]
    call += ["--workers", "0", "--references", str(references), "--out", str(root / "campaign")]
    call += ["--functional", PAYLOAD]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert_printable(done.output)
    assert sorted(path.name for path in root.iterdir()) == ["campaign", "given"]
    return root / "campaign"


def assert_printable(output: str) -> None:
    assert {sign for sign in output if not sign.isprintable()} <= {"\n", "\t"}


def list_tree(folder: Path) -> dict[str, int]:
    """All files below a folder with the time of their last change."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_hostile_names_are_ranked_and_shown_as_text(hostile: Path, screening: Program) -> None:
    ranking = pq.read_table(hostile / "ranking.parquet")
    assert set(ranking["prototype"].to_pylist()) == set(NAMES)
    shown = screening("show", hostile, "--top", 50)
    assert shown.exit_code == 0
    assert "\\u001b[2J" in shown.output.replace("\n", "")
    assert_printable(shown.output)


def test_pages_show_hostile_names_and_run_nothing(
    hostile: Path, screening: Program, browse: Browser, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    assert screening("report", hostile, "--out", page).exit_code == 0
    document, console = browse(page)
    assert "<title>Screening of &lt;img src=x" in document
    assert "<img" not in document
    assert not [line for line in console if "Refused" in line or "error" in line.casefold()]


def test_the_browser_would_have_noticed(browse: Browser, tmp_path: Path) -> None:
    page = tmp_path / "naive.html"
    page.write_text(f"<title>fine</title><body>{PAYLOAD}/script>")
    assert "<title>owned</title>" in browse(page)[0]


def test_the_page_of_a_model_escapes_its_card(
    calibrated_model: Path, screening: Program, browse: Browser, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(calibrated_model, folder)
    card = json.loads((folder / "card.json").read_text())
    evil = f"{PAYLOAD}/script>\x1b[2J"
    for part, key in ((card, "name"), (card, "description"), (card, "licence")):
        part[key] = evil
    card["calibration"]["measured_on"] = evil
    card["training"]["machine"] = evil
    (folder / "card.json").write_text(json.dumps(card))
    page = tmp_path / "card.html"
    made = screening("models", "page", folder, "--out", page)
    assert made.exit_code == 0, made.output
    document, _ = browse(page)
    assert "<title>owned" not in document
    assert "&lt;img src=x" in document
    assert_printable(screening("models", "card", folder).output)


def test_exported_files_stay_in_their_folder(strange: Path, screening: Program) -> None:
    before = list_tree(strange.parent)
    for form in ("cif", "poscar", "csv"):
        done = screening("export", strange, "--format", form, "--top", 60)
        assert done.exit_code == 0, done.output
        assert_printable(done.output)
    new = {path for path, time in list_tree(strange.parent).items() if before.get(path) != time}
    folders = tuple(str(strange / f"export-{form}") for form in ("cif", "poscar", "csv"))
    assert all(path.startswith(folders) for path in new - {str(strange)})
    names = [path.name for path in (strange / "export-cif").iterdir()]
    assert len(names) == 6 * len(NAMES)
    assert all(set(name) <= set(make_printable(name)) and len(name) < 150 for name in names)


@pytest.mark.parametrize("formula", ["../../../evil", "/evil", "a\x00b", "x" * 999, "", ".", "é/"])
def test_the_name_of_an_exported_file_is_one_name(formula: str) -> None:
    name = name_file(1, formula, formula)
    assert Path(name).name == name
    assert len(name.encode()) < 250
    assert name.isprintable()


# --------------------------------------------------------------------------- a stranger's folder


@pytest.fixture
def strange(hostile: Path, tmp_path: Path) -> Path:
    """A copy of the campaign, to be tampered with."""
    folder = tmp_path / "strange"
    shutil.copytree(hostile, folder)
    return folder


def reseal(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as someone would who knows how its checksum is made."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content[CHECKSUM]
    change(content)
    path.write_text(json.dumps({**content, CHECKSUM: hash_identity(content)}))


def test_a_formula_that_is_a_path_is_exported_beside_the_others(
    strange: Path, screening: Program, tmp_path: Path
) -> None:
    path = strange / "ranking.parquet"
    table = pq.read_table(path)
    evil = pa.array(["../../../../evil"] * len(table))
    place = table.column_names.index("formula")
    pq.write_table(table.set_column(place, "formula", evil), path)
    before = set(list_tree(tmp_path))
    assert screening("export", strange, "--top", 3).exit_code == 0
    new = {Path(each) for each in set(list_tree(tmp_path)) - before}
    assert len([each for each in new if each.suffix == ".cif"]) == 3
    assert {each.parent for each in new} == {strange, strange / "export-cif"}


def test_links_in_a_folder_do_not_lead_outside(
    strange: Path, screening: Program, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "precious.html"
    precious.write_text("mine")
    (strange / "report.html").unlink()
    (strange / "report.html").symlink_to(precious)
    (strange / "export-cif").symlink_to(outside)
    assert screening("report", strange).exit_code == 0
    assert precious.read_text() == "mine"
    assert not (strange / "report.html").is_symlink()

    refused = screening("export", strange)
    assert refused.exit_code == 2
    assert "is a link to" in refused.output
    assert [path.name for path in outside.iterdir()] == ["precious.html"]
    assert screening("export", strange, "--to", strange / "export-cif").exit_code == 0

    (outside / ".x.tmp").touch()
    shutil.rmtree(strange / "shards")
    (strange / "shards").symlink_to(outside)
    again = screening("run", strange / "campaign.toml", "--out", strange, "--workers", 0)
    assert again.exit_code == 2
    assert "shards is a link to" in again.output
    assert (outside / ".x.tmp").exists()


def test_settings_in_a_folder_start_no_jobs_and_reach_no_scheduler(
    strange: Path, screening: Program, tmp_path: Path
) -> None:
    """Who answers as a Dask scheduler can run any code in its clients."""
    path = strange / "campaign.toml"
    lines = path.read_text().partition("\n[cluster]\n")[0].splitlines()
    plain = "\n".join(line for line in lines if not line.startswith(("out =", "workers =")))
    assert 'scheduler = "tcp:127.0.0.1:9"\n' not in plain
    outside = f'out = "{tmp_path / "elsewhere"}"\n'
    for place in (
        'scheduler = "tcp://127.0.0.1:9"',
        f'scheduler_file = "{tmp_path / "s.json"}"',
        'type = "slurm"\njobs = 1\ncores = 1\nmemory = "1 GB"\nprologue = ["touch owned"]',
        'dashboard = "0.0.0.0:8787"',
    ):
        path.write_text(f"{outside}{plain}\n[cluster]\n{place}\n")
        settings = read_settings(path, {"out": tmp_path / "mine"}, own=False)
        assert settings.cluster == type(settings.cluster)()
        assert settings.out == tmp_path / "mine"
    out = tmp_path / "mine"
    done = screening("hull", strange, "--out", out, "--workers", 0, "--competitors", "none")
    assert done.exit_code == 0, done.output
    assert (out / "ranking.parquet").is_file()
    assert not (tmp_path / "elsewhere").exists()


def first_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The first prototype that a manifest describes."""
    return next(iter(manifest["prototypes"].values()))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m["grid"].update(shard_size="../../x"), "grid.shard_size"),
        (lambda m: m["grid"].update(shard_size=0), "grid.shard_size"),
        (
            lambda m: m["grid"].update(
                shard_size=1, index_counts=dict.fromkeys(m["grid"]["index_counts"], 2**62)
            ),
            "shards",
        ),
        (lambda m: m["counts"].update(total="<script>"), "counts.total"),
        (lambda m: m["runs"][0].update(ended=["x"]), "runs.0.ended"),
        (lambda m: first_of(m).update(lattice=[[1e999] * 3] * 3), "lattice"),
        (lambda m: first_of(m).update(amounts=[10**18, 1]), "fit"),
        (lambda m: m["campaign"].update(elements={"A": ["Xx"]}), "no element"),
    ],
)  # fmt: skip
def test_a_manifest_that_was_made_up_is_refused_in_one_sentence(
    strange: Path, screening: Program, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    reseal(strange, change)
    for command in (["show"], ["report"], ["export"], ["status"]):
        done = screening(*command, strange)
        assert done.exit_code == 3, done.output
        assert "is damaged, or no manifest" in done.output
        assert word in done.output


# --------------------------------------------------------------------------- terminal and tables


def test_errors_about_hostile_text_steer_no_terminal(screening: Program, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    for text in ("\x1b[2J", "Na\x9b2J", "‮LiF"):
        path.write_text(f"formula,formation_energy_per_atom\n{text},-1\n", encoding="utf-8")
        call = ("run", "-p", "B2", "--elements", "Li,F", "--references", path, "--workers", 0)
        done = screening(*call, "--out", tmp_path / "out")
        assert done.exit_code == 3
        assert_printable(done.output)
    done = screening("run", "-p", "B2\x1b[2J", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert_printable(done.output)


def test_ids_that_spreadsheets_take_for_formulas_stay_what_they_are(
    screening: Program, calibrated_model: Path, tmp_path: Path
) -> None:
    """A table is data for programs: nothing is put before an id; the documents say so."""
    path = tmp_path / "s.parquet"
    ids = ["=1+1", "@SUM(A1)", "\x1b[2J"]
    cell = [4.1, 0, 0, 0, 4.1, 0, 0, 0, 4.1]
    pd.DataFrame(
        {
            "id": ids,
            "lattice": [cell] * 3,
            "species": [["Na", "F"]] * 3,
            "frac_coords": [[0, 0, 0, 0.5, 0.5, 0.5]] * 3,
        }
    ).to_parquet(path)
    out = tmp_path / "p.parquet"
    done = screening("predict", path, "--model", calibrated_model, "--out", out)
    assert done.exit_code == 0, done.output
    assert sorted(pq.read_table(out)["id"].to_pylist()) == sorted(ids)
    assert_printable(done.output)


@pytest.mark.parametrize(
    "line",
    [
        "shard_size = 1_000_000_000", "keep_top = 1_000_000_000", "workers = 1_000_000_000",
        "shard_size = 0", "top = 0", "workers = -1", f"workers = {'9' * 5000}", "top = nan",
        "stable_within = inf", "shard_size = [1]", f"require = {'[' * 5000}",
    ],
)  # fmt: skip
def test_settings_of_any_size_are_refused_in_words(line: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'prototype = "B2"\nout = "x"\n{line}\n')
    with pytest.raises(ConfigurationError, match=r"c\.toml"):
        read_settings(path, {})


@pytest.mark.parametrize("key", ["out", "references", "model"])
@pytest.mark.parametrize("value", ["a\\u0000b", "a" * 300])
def test_paths_that_can_be_none_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "c.toml"
    lines = {"prototype": "B2", "out": "x", key: value}
    path.write_text("".join(f'{name} = "{each}"\n' for name, each in lines.items()))
    with pytest.raises(ConfigurationError, match="can be no path"):
        read_settings(path, {})


def test_a_name_that_is_no_text_is_refused(screening: Program, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.cif")
    cell = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    CifWriter(cell).write_file(str(path))
    done = screening("run", "-p", path, "--elements", "Li,F", "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert "is no text" in done.output


def test_a_very_long_table_is_cut_to_what_there_is(hostile: Path, screening: Program) -> None:
    done = screening("show", hostile, "--top", 10**9)
    assert done.exit_code == 0
    assert f"of {len(pq.read_table(hostile / 'ranking.parquet'))} candidates" in done.output


def test_an_architecture_of_terabytes_is_refused(screening: Program, tmp_path: Path) -> None:
    from irnet import ArchitectureError
    from irnet.architecture import Architecture

    for text in ("1000000BARx1000-1", "9999999999BA-1", "8BAx99999999-1", f"{'9' * 5000}BA-1"):
        with pytest.raises(ArchitectureError):
            Architecture.parse(text)
    assert Architecture.parse("irnet-48").depth == 48


def test_a_member_may_not_name_a_file_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    from screening.errors import ModelError
    from screening.model_library import load_model

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    listing = folder / "ensemble" / "ensemble.json"
    content = json.loads(listing.read_text())
    moved = tmp_path / "member.safetensors"
    os.rename(folder / "ensemble" / content["members"][0]["file"], moved)
    for name in (str(moved), "../../member.safetensors"):
        content["members"][0]["file"] = name
        listing.write_text(json.dumps(content))
        with pytest.raises(ModelError, match="no file of this folder"):
            load_model(folder)
