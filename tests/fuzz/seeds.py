"""Valid files of every kind that the program reads: what the fuzz tests damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from pymatgen.io.vasp import Poscar
from typer.testing import CliRunner

from irnet import fit_baseline
from screening.features.schema import FEATURES
from tests.screening.conftest import build_tiny_model, calibrate_tiny_model

POOL = "Li,Na,Mg,Ca,Ti,O,F"

SETTINGS = (
    'prototype = ["B2", "perovskite"]\nelements = ["Li,Na,K", "X=O,S,F"]\nout = "campaign"\n',
    'prototype = "spinel"\nelements = ["default,-O", "all89,-lanthanides"]\nout = "campaign"\n'
    'model = "default"\nstable-within = 0.05\nrequire = ["charge_neutral", "p_stable >= 0.5"]\n'
    'rank-by = "p_stable"\nworkers = 2\ndevice = "cpu"\nprecision = "fp32"\nshard-size = 1000\n'
    "top = 20\ncompete = true\n",
    'prototype = ["mine.cif"]\nroles = "Sr=A,Ti=B,O=X"\nelements = ["A=Ca,Sr", "B=Ti", "X=O"]\n'
    'references = "references.csv"\nfunctional = "PBE"\nout = "campaign"\n'
    'scheduler = "tcp://127.0.0.1:8786"\n',
    'prototype = "B2"\nout = "campaign"\ncompetitors = "ternary"\nkeep-top = 100\n'
    '[cluster]\ntype = "slurm"\njobs = 4\ncores = 8\nmemory = "16 GB"\nwalltime = "01:00:00"\n'
    'prologue = ["module load python"]\n',
)

EXTENDED_XYZ = (
    '2\nLattice="4.2 0 0 0 4.2 0 0 0 4.2" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
    "Na 0.0 0.0 0.0\nCl 2.1 2.1 2.1\n"
    '2\nLattice="3.5 0 0 0 3.5 0 0 0 3.5" Properties=species:S:1:pos:R:3\n'
    "Cs 0.0 0.0 0.0\nCl 1.75 1.75 1.75\n"
)

REFERENCES = (
    "material_id,formula,formation_energy_per_atom\n"
    "mp-1,NaF,-2.9\nmp-2,LiF,-3.1\nmp-3,CaTiO3,-3.4\nmp-4,MgO,-3.0\nmp-5,MgF2,-3.6\n"
    "mp-6,Li2O,-2.0\nmp-7,Ca(TiO2)2,-2.8\nmp-8,TiO2,-3.3\nmp-9,CaF2,-4.1\n"
)


def build_seeds(folder: Path) -> None:
    """Write valid files of every kind into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny = build_tiny_model(folder / "tiny")
    shutil.rmtree(tiny / "checkpoints", ignore_errors=True)
    calibrate_tiny_model(tiny, folder / "model")
    _fit_baselines(folder / "baselines")
    for number, text in enumerate(SETTINGS):
        (folder / f"settings{number}.toml").write_text(text)
    (folder / "references.csv").write_text(REFERENCES)
    (folder / "file.extxyz").write_text(EXTENDED_XYZ)
    _write_structures(folder)
    _write_tables(folder)
    _run_campaign(folder)


def _fit_baselines(folder: Path) -> None:
    """Write a baseline of every form, on numbers that mean nothing."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, len(FEATURES))).astype(np.float32)
    smaller = {"adaboost": {"n_estimators": 3}, "gradient_boosting": {"max_iter": 3}}
    for name in (
        *("ridge", "k_neighbors", "svr", "kernel_ridge"),
        *("decision_tree", "adaboost", "gradient_boosting"),
    ):
        baseline = fit_baseline(
            name, features, features[:, 0], FEATURES, search=False, parameters=smaller.get(name)
        )
        baseline.save(folder / f"{name}.safetensors")


def _write_structures(folder: Path) -> None:
    perovskite = Structure(
        Lattice.cubic(3.905),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    CifWriter(perovskite).write_file(str(folder / "mine.cif"))
    CifWriter(rutile, symprec=0.01).write_file(str(folder / "rutile.cif"))
    Poscar(rutile).write_file(str(folder / "POSCAR"))


def _write_tables(folder: Path) -> None:
    import numpy as np
    import pandas as pd

    from screening.features.schema import FEATURES

    table = pd.read_csv(folder / "references.csv")
    table.to_parquet(folder / "references.parquet")
    entries = [
        {
            "@module": "pymatgen.entries.computed_entries",
            "@class": "ComputedEntry",
            "energy": -3.0 * count,
            "composition": composition,
            "entry_id": f"mp-{count}",
            "correction": -0.5,
        }
        for count, composition in enumerate(
            ({"Na": 1.0}, {"F": 2.0}, {"Na": 1.0, "F": 1.0}, {"Li": 2.0}, {"Li": 1.0, "F": 1.0}), 1
        )
    ]
    (folder / "references.json").write_text(json.dumps(entries))
    pairs = [(a, b) for a in ("Li", "Na", "K") for b in ("F", "Cl", "Br")]
    data = {
        "id": [a + b for a, b in pairs],
        "lattice": [(4 * np.eye(3)).ravel()] * len(pairs),
        "species": [list(pair) for pair in pairs],
        "frac_coords": [[0.0, 0, 0, 0.5, 0.5, 0.5]] * len(pairs),
        "formation_energy_per_atom": np.linspace(-2, 0, len(pairs)),
        "dE_matbench": np.zeros(len(pairs)),
        "structure_type": "B2",
    }
    pd.DataFrame(data).to_parquet(folder / "structures.parquet")
    values = np.random.default_rng(0).normal(size=(len(pairs), len(FEATURES)))
    features = pd.DataFrame(values, columns=list(FEATURES))
    features.insert(0, "id", data["id"])
    features.to_parquet(folder / "features.parquet")
    features["formula"] = data["id"]
    features["formation_energy_per_atom"] = data["formation_energy_per_atom"]
    features.to_parquet(folder / "training.parquet")
    failed = pd.DataFrame({"id": ["X"], "reason": ["unreadable"]})
    failed.to_parquet(folder / "features.failures.parquet")
    (folder / "formulas.txt").write_text("NaCl\nCa(TiO2)2\nLiF\n")


def _run_campaign(folder: Path) -> None:
    from screening.cli import app

    out = folder / "campaign"
    call = [
        "run", "--prototype", "B2", "--prototype", str(folder / "mine.cif"), "--elements", POOL,
        "--model", str(folder / "model"), "--references", str(folder / "references.csv"),
        "--workers", "0", "--shard-size", "100", "--out", str(out),
    ]  # fmt: skip
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert pq.read_metadata(out / "ranking.parquet").num_rows
