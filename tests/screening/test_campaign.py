from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from prototypes import ATOMIC_NUMBERS, find_prototype
from screening import campaign, shard_tasks
from screening.columns import RANKING
from screening.crystal import Crystal
from screening.errors import ScreeningError
from screening.features import featurize_crystals
from screening.folder import Receipt, RunFolder
from screening.lock import LOCK_NAME, locked
from screening.model_library import load_model
from screening.status import State, read_status

Program = Callable[..., Result]

POOL = "Li,Na,K,Cs,Mg,Ca,O,F,Cl"


@pytest.fixture
def arguments(tiny_model: Path) -> list[str]:
    """A campaign of 36 + 36 + 504 candidates in 10 shards, in this process."""
    return [
        "run", "--prototype", "B2", "--prototype", "L1_0", "--prototype", "perovskite",
        "--elements", POOL, "--model", str(tiny_model), "--workers", "0", "--shard-size", "100",
    ]  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    names = ("ranking.parquet", "ranking.csv", "failures.parquet")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    from typer.testing import CliRunner

    from screening.cli import app

    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    call = [
        "run", "--prototype", "B2", "--prototype", "L1_0", "--prototype", "perovskite",
        "--elements", POOL, "--model", str(tiny_model), "--workers", "0", "--shard-size", "100",
        "--out", str(folder),
    ]  # fmt: skip
    assert CliRunner().invoke(app, call).exit_code == 0
    return folder


def test_every_candidate_is_ranked_once_by_the_models_own_numbers(
    undisturbed: Path, tiny_model: Path
) -> None:
    frame = pq.read_table(undisturbed / "ranking.parquet").to_pandas()
    assert frame["prototype"].value_counts().to_dict() == {"perovskite": 504, "B2": 36, "L1_0": 36}
    assert len(frame.drop_duplicates(["prototype", "candidate"])) == 576
    assert frame["rank"].to_list() == list(range(1, 577))
    assert frame["p_stable"].isna().all()  # the model was never calibrated
    assert frame["energy_above_hull_ev_per_atom"].is_monotonic_increasing
    by_forest = frame.sort_values("rf_rank")["rf_energy_above_hull_ev_per_atom"]
    assert by_forest.is_monotonic_increasing
    assert frame[frame["prototype"] != "perovskite"]["site_X"].isna().all()

    model = load_model(tiny_model)
    scorer = model.ensemble.scorer("cpu")
    for _, row in frame.iloc[[0, 100, 575]].iterrows():
        prototype = find_prototype(row["prototype"])
        elements = [row[f"site_{role}"] for role in prototype.roles]
        numbers = np.array([ATOMIC_NUMBERS[elements[i]] for i in prototype.site_roles])
        crystal = Crystal("x", prototype.lattice, numbers, prototype.frac_coords)
        assert crystal.formula == row["formula"]
        features = featurize_crystals([crystal]).values.astype(np.float32)
        prediction = scorer.predict(features)
        assert row["formation_enthalpy_ev_per_atom"] == pytest.approx(prediction.mean[0], abs=0.02)
        assert row["formation_enthalpy_std_ev_per_atom"] == pytest.approx(
            prediction.std[0], abs=0.02
        )
        assert model.forest is not None
        assert row["rf_formation_enthalpy_ev_per_atom"] == pytest.approx(
            model.forest.predict(features)[0], abs=0.02
        )


def test_a_doubtful_geometry_is_named_before_anything_is_screened(
    tiny_model: Path, tmp_path: Path, screening: Program
) -> None:
    done = screening(
        "run", "--prototype", "B2", "--prototype", "AB_tP4_131_c_e", "--elements", "Pt,S,Cu",
        "--competitors", "none", "--model", tiny_model, "--workers", "0", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    words = " ".join(done.stderr.split())
    assert words.count("is doubtful") == 1
    assert words.index("the geometry of AB_tP4_131_c_e is doubtful: its a axis") < words.index(
        "give --prototype a CIF of your own"
    )


def test_known_and_unseen_are_marked(undisturbed: Path) -> None:
    frame = pq.read_table(undisturbed / "ranking.parquet").to_pandas()
    assert set(frame[frame["known"]]["formula"]) == {"NaCl", "KMgF3"}
    with_cs = (frame[["site_A", "site_B", "site_X"]] == "Cs").any(axis=1)
    assert frame["unseen_elements"].to_list() == ["Cs" if there else "" for there in with_cs]


def test_without_calibration_intervals_are_empty_and_it_says_why(
    undisturbed: Path, screening: Program
) -> None:
    frame = pq.read_table(undisturbed / "ranking.parquet").to_pandas()
    for name in ("low", "high"):
        assert frame[f"formation_enthalpy_{name}_ev_per_atom"].isna().all()
    assert frame["applicability_distance"].isna().all()
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert "never calibrated" in manifest["model"]["intervals"]
    shown = screening("show", undisturbed)
    assert shown.stderr.count("model tiny: never calibrated") == 1
    assert "±" in shown.stdout


def test_intervals_and_distances_stand_beside_the_predictions(
    screening: Program, arguments: list[str], calibrated_model: Path, tmp_path: Path
) -> None:
    call = [*arguments, "--model", calibrated_model, "--out", tmp_path / "a"]
    done = screening(*call)
    assert done.exit_code == 0, done.output
    table = pq.read_table(tmp_path / "a" / "ranking.parquet")
    named = [column.name for column in RANKING.columns if not column.name.endswith("*")]
    assert table.column_names == named
    frame = table.to_pandas()
    low, high = (frame[f"formation_enthalpy_{name}_ev_per_atom"] for name in ("low", "high"))
    assert (low < high).all()
    assert (frame["applicability_distance"] > 0).all()
    with_cs = (frame[["site_A", "site_B", "site_X"]] == "Cs").any(axis=1)
    assert frame["unseen_elements"].to_list() == ["Cs" if there else "" for there in with_cs]

    model = load_model(calibrated_model)
    assert model.uncertainty is not None
    row = frame[frame["prototype"] == "perovskite"].iloc[7]
    prototype = find_prototype("perovskite")
    elements = [row[f"site_{role}"] for role in prototype.roles]
    numbers = np.array([ATOMIC_NUMBERS[elements[i]] for i in prototype.site_roles])
    crystal = Crystal("x", prototype.lattice, numbers, prototype.frac_coords)
    features = featurize_crystals([crystal]).values.astype(np.float32)
    assert model.forest is not None
    assessed = model.uncertainty.assess(
        features, model.ensemble.scorer("cpu").predict(features), model.forest.predict(features)
    )
    assert row["applicability_distance"] == pytest.approx(assessed.distance[0], rel=0.02)
    assert high[row.name] - low[row.name] == pytest.approx(
        assessed.high[0] - assessed.low[0], rel=0.2
    )

    first = frame.iloc[0]
    interval = (
        f"[{first['formation_enthalpy_low_ev_per_atom']:.2f}, "
        f"{first['formation_enthalpy_high_ev_per_atom']:.2f}]"
    )
    assert interval in done.stdout
    assert "[low, high] are to hold 90% of the energies" in done.stderr
    assert "fitted on 300 compounds" in done.stderr
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["model"]["intervals"]["rows"] == 300
    assert manifest["stages"]["uncertainty"]["candidates_per_worker_second"] > 0

    before = results(tmp_path / "a")
    for number in (1, 4, 8):
        (tmp_path / "a" / "shards" / f"{number:05d}.json").unlink()
    (tmp_path / "a" / "ranking.parquet").unlink()
    assert screening(*call).exit_code == 0
    assert results(tmp_path / "a") == before
    other = screening(*call[:-1], tmp_path / "b", "--shard-size", "37")
    assert other.exit_code == 0, other.output
    assert results(tmp_path / "b") == before


def test_a_calibration_makes_another_model_of_it(
    screening: Program, arguments: list[str], calibrated_model: Path, tmp_path: Path
) -> None:
    few = [*arguments[:3], "--elements", "Li,F", "--workers", "0", "--out", tmp_path / "a"]
    assert screening(*few, "--model", arguments[10]).exit_code == 0
    refused = screening(*few, "--model", calibrated_model)
    assert refused.exit_code == 2
    assert "holds another campaign (model:" in refused.stderr


def test_csv_holds_what_parquet_holds(undisturbed: Path) -> None:
    ranking = pq.read_table(undisturbed / "ranking.parquet")
    read = pyarrow.csv.read_csv(
        undisturbed / "ranking.csv",
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=ranking.schema, strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    assert read.equals(ranking)


def test_manifest_says_how_the_numbers_were_made(undisturbed: Path, tiny_model: Path) -> None:
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert manifest["counts"] == {"B2": 36, "L1_0": 36, "perovskite": 504, "total": 576}
    assert manifest["rows"] == {"scored": 576, "failed": 0}
    assert manifest["campaign"]["model"] == load_model(tiny_model).content_hash
    assert manifest["model"]["seed"] == 0
    assert manifest["devices"]
    assert manifest["runs"][0]["shards_computed"] == 10
    assert manifest["environment"]["packages"]["torch"]
    for stage in ("enumerate", "featurize", "irnet", "forest", "write"):
        assert manifest["stages"][stage]["candidates_per_worker_second"] > 0


def test_the_resolved_campaign_runs_again_to_the_same_bytes(
    undisturbed: Path, screening: Program, tmp_path: Path
) -> None:
    done = screening("run", undisturbed / "campaign.toml", "--out", tmp_path / "again")
    assert done.exit_code == 0, done.output
    assert results(tmp_path / "again") == results(undisturbed)


def test_a_finished_campaign_computes_nothing_again(
    undisturbed: Path, screening: Program, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results(undisturbed)

    def refuse(*_: object) -> None:
        raise AssertionError("computed a finished shard")

    monkeypatch.setattr(campaign, "screen_shard", refuse)
    done = screening(*arguments, "--out", undisturbed)
    assert done.exit_code == 0, done.output
    assert "576 of 576 candidates are finished already" in done.stderr
    assert results(undisturbed) == before


def test_a_damaged_shard_is_computed_again(
    screening: Program, arguments: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    assert screening(*arguments, "--out", tmp_path / "a").exit_code == 0
    shard = tmp_path / "a" / "shards" / "00003.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    assert screening(*arguments, "--out", tmp_path / "a").exit_code == 0
    assert results(tmp_path / "a") == results(undisturbed)


def test_shards_are_as_large_as_asked_for(
    screening: Program, arguments: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    done = screening(*arguments, "--out", tmp_path / "a", "--shard-size", "250")
    assert done.exit_code == 0, done.output
    shards = RunFolder.open(tmp_path / "a").shards
    assert [shard.stop - shard.start for shard in shards] == [81, 81, 250, 250, 229]
    assert results(tmp_path / "a") == results(undisturbed)


def test_precision_changes_the_arithmetic(
    screening: Program, arguments: list[str], tmp_path: Path
) -> None:
    rankings = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        done = screening(*arguments, "--out", out, "--precision", precision)
        assert done.exit_code == 0, done.output
        folder = RunFolder.open(out)
        used = {receipt.precision for receipt in folder.read_receipts(folder.shards)}
        assert used == {precision}
        assert json.loads((out / "manifest.json").read_text())["precisions"] == [precision]
        assert f"<dd>{precision}</dd>" in (out / "report.html").read_text()
        frame = folder.read_ranking().to_pandas()
        rankings[precision] = frame.set_index(["prototype", "candidate"]).sort_index()
    fp32, bf16 = (rankings[each]["formation_enthalpy_ev_per_atom"] for each in ("fp32", "bf16"))
    assert not fp32.equals(bf16)
    assert np.allclose(fp32, bf16, atol=0.1)


def test_a_folder_that_another_run_writes_into_is_refused(
    screening: Program, arguments: list[str], tmp_path: Path
) -> None:
    with locked(tmp_path, pytest.fail):
        done = screening(*arguments, "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert f"another run is writing into {tmp_path}: process {os.getpid()} on" in done.stderr
    assert screening(*arguments, "--out", tmp_path).exit_code == 0
    assert not (tmp_path / LOCK_NAME).exists()


def test_lost_candidates_are_a_bug(
    screening: Program, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = campaign.screen_shard

    def lose(task: Any, worker: int) -> Receipt:
        receipt = screen(task, worker)
        lost = receipt.shard.number == 0
        return replace(receipt, dropped=int(lost))

    monkeypatch.setattr(campaign, "screen_shard", lose)
    done = screening(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 1
    assert isinstance(done.exception, ScreeningError)
    assert "B2 has 36 candidates, but the shards account for 37" in str(done.exception)


@pytest.mark.slow
def test_dask_workers_give_what_this_process_gives(
    screening: Program, arguments: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    done = screening(*arguments, "--out", tmp_path / "a", "--workers", "2")
    assert done.exit_code == 0, done.output
    assert "dashboard: http://127.0.0.1:" in done.stderr
    assert results(tmp_path / "a") == results(undisturbed)


def test_a_scheduler_elsewhere_gives_what_this_process_gives(
    screening: Program, arguments: list[str], tmp_path: Path, undisturbed: Path
) -> None:
    from distributed import LocalCluster

    call = [argument for argument in arguments if argument not in ("--workers", "0")]
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        dashboard_address=":0",
    ) as cluster:
        done = screening(*call, "--out", tmp_path / "a", "--scheduler", cluster.scheduler_address)
    assert done.exit_code == 0, done.output
    assert results(tmp_path / "a") == results(undisturbed)


def test_a_scheduler_without_workers_is_an_error_after_a_while(
    screening: Program, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    from screening.cluster import client

    monkeypatch.setattr(client, "WORKER_SECONDS", 0.5)
    call = [argument for argument in arguments if argument not in ("--workers", "0")]
    with LocalCluster(
        n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0"
    ) as cluster:
        address = cluster.scheduler_address
        done = screening(*call, "--out", tmp_path / "a", "--scheduler", address)
    assert done.exit_code == 2, done.output
    assert f"{address} has no workers; waiting 0.5 s for the first" in done.stderr
    assert f"start some with `dask worker {address} --nthreads 1`" in done.stderr


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "screening", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(campaign.__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def wait_for_shards(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    until = time.monotonic() + 120
    while len(list(folder.glob("shards/*.json"))) < count:
        if process.poll() is not None or time.monotonic() > until:
            pytest.fail(f"ended before it could be stopped: {process.communicate()}")
        time.sleep(0.002)


def many_shards(arguments: list[str], folder: Path) -> list[str]:
    """The same campaign in 92 shards, so that it can be stopped in the middle."""
    return [*arguments[:-1], "10", "--out", str(folder)]


@pytest.mark.slow
def test_a_killed_campaign_goes_on_to_the_same_bytes(
    screening: Program, arguments: list[str], tmp_path: Path
) -> None:
    call = many_shards(arguments, tmp_path / "killed")
    process = start(call)
    wait_for_shards(process, tmp_path / "killed", 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = RunFolder.open(tmp_path / "killed")
    assert 5 <= len(list(folder.read_receipts(folder.shards))) < len(folder.shards)
    assert not folder.ranking_path.exists()

    shown = screening("show", tmp_path / "killed", "--top", "3")
    assert shown.exit_code == 0
    assert "incomplete: ranks are among the" in shown.stderr
    exported = screening("export", tmp_path / "killed", "--top", "1")
    assert exported.exit_code == 0
    assert Path(exported.stdout.strip()).is_file()

    (tmp_path / "killed" / "export-cif").rename(tmp_path / "export-cif")
    done = screening(*call)
    assert done.exit_code == 0, done.output
    assert f"from a run that was killed (process {process.pid} on" in done.stderr
    assert "going on:" in done.stderr
    assert screening(*many_shards(arguments, tmp_path / "whole")).exit_code == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "sign"), [(0, signal.SIGINT), (1, signal.SIGINT), (1, signal.SIGTERM)]
)
def test_ctrl_c_keeps_finished_shards_and_says_how_to_go_on(
    arguments: list[str], tmp_path: Path, workers: int, sign: signal.Signals
) -> None:
    call = [*many_shards(arguments, tmp_path / "a"), "--workers", str(workers)]
    process = start(call)
    wait_for_shards(process, tmp_path / "a", 3)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal does: to the driver and all its workers
    else:
        process.send_signal(sign)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "\ninterrupted" in stderr
    assert "error" not in stderr
    assert "run the same command again" in stderr
    folder = RunFolder.open(tmp_path / "a")
    assert len(list(folder.read_receipts(folder.shards))) >= 3


def test_a_full_disk_keeps_finished_shards(
    screening: Program,
    arguments: list[str],
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, written = pq.write_table, []

    def fill_up(table: Any, path: Path, **options: Any) -> None:
        written.append(path)
        if len(written) == 4:
            with open("/dev/full", "wb") as full:  # opened here: pyarrow would remove a path
                write(table, full, **options)
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", fill_up)
    done = screening(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 5
    assert "00003.parquet: the disk is full; free some space" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: cannot write")
    assert "Traceback" not in done.output
    folder = RunFolder.open(tmp_path / "a")
    assert len(list(folder.read_receipts(folder.shards))) == 3
    assert not list(folder.path.glob("shards/.*"))
    assert screening(*arguments, "--out", tmp_path / "a").exit_code == 0
    assert results(tmp_path / "a") == results(undisturbed)


@pytest.mark.parametrize("damage", [{"campaign": None}, {"runs": "none"}])
def test_a_made_up_manifest_is_made_anew(
    screening: Program, arguments: list[str], tmp_path: Path, undisturbed: Path, damage: Any
) -> None:
    shutil.copytree(undisturbed, tmp_path / "a")
    folder = RunFolder(tmp_path / "a")
    folder.write_manifest(folder.manifest | damage)
    done = screening(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    assert "manifest.json" in done.stderr
    assert "made anew" in done.stderr
    assert results(tmp_path / "a") == results(undisturbed)
    assert len(RunFolder.open(tmp_path / "a").manifest["runs"]) == 1


def test_an_interrupted_ranking_says_how_to_get_it(
    screening: Program,
    arguments: list[str],
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(campaign, "rank_candidates", interrupt)
        done = screening(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 130
    assert "run the same command again to rank them" in done.stderr
    assert read_status(RunFolder.open(tmp_path / "a")).state is State.STOPPED
    assert screening(*arguments, "--out", tmp_path / "a").exit_code == 0
    assert results(tmp_path / "a") == results(undisturbed)


def test_a_candidate_that_fails_is_a_row_with_its_reason(
    screening: Program, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    featurize = shard_tasks.featurize_candidates

    def spoil(featurizer: Any, numbers: Any, device: Any) -> Any:
        features = featurize(featurizer, numbers, device)
        features[(numbers == 55).any(axis=1).nonzero()[0], 7] = np.nan
        return features

    monkeypatch.setattr(shard_tasks, "featurize_candidates", spoil)
    done = screening(*arguments, "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    ranking = pq.read_table(tmp_path / "a" / "ranking.parquet")
    failures = pq.read_table(tmp_path / "a" / "failures.parquet").to_pandas()
    assert len(ranking) + len(failures) == 576
    assert len(failures) == 8 + 8 + 3 * 8 * 7
    assert failures["formula"].str.contains("Cs").all()
    assert failures["reason"].str.startswith("feature not finite").all()
    assert "184 candidates could not be scored" in done.stderr


def test_a_model_that_changed_under_a_campaign_is_refused(tiny_model: Path) -> None:
    from screening.errors import ModelError
    from screening.score import load_scorer

    with pytest.raises(ModelError, match="changed"):
        load_scorer(str(tiny_model), "0" * 64, "cpu", "auto")


def test_a_performance_report_needs_dask(
    screening: Program, arguments: list[str], tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    call = [*arguments, "--out", tmp_path / "a", "--workers", "0", "--performance-report", page]
    done = screening(*call)
    assert done.exit_code == 2
    assert "--workers 0 works without Dask" in done.stderr
    assert not (tmp_path / "a").exists()


def test_what_is_kept_and_dropped_adds_up_over_shards(
    screening: Program, arguments: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "a"
    call = [*many_shards(arguments, out), "--keep-top", "3", "--competitors", "none"]
    done = screening(*call)
    assert done.exit_code == 0, done.output
    manifest = RunFolder.open(out).manifest
    total = manifest["counts"]["total"]
    assert manifest["rows"]["scored"] == 3
    assert manifest["dropped"] == total - 3
    assert f"{total:,} candidates were scored and the best 3 are kept" in done.stderr
    told = json.loads(screening("status", out, "--json").stdout)
    assert (told["scored"], told["dropped"]) == (total, total - 3)
    counts = json.loads(screening("show", out, "--json").stdout)["counts"]
    assert (counts["below_hull"], counts["probable"]) == (None, None)
    same = screening("show", out, "--rank-by", "formation_enthalpy")
    assert "others may be better" not in same.stderr
    other = screening("show", out, "--rank-by", "energy_above_hull")
    assert "by energy_above_hull others may be better" in other.stderr
    assert "no hull was computed" in other.stderr
    assert other.stdout == same.stdout
