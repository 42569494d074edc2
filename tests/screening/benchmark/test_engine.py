from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from screening.benchmark import fitting
from screening.benchmark.data import DataSource
from screening.benchmark.engine import Standing, State, run_trials, survey
from screening.benchmark.trial import HELD_OUT, Trial, TrialResult, result_path
from screening.errors import FolderInUseError, InputDataError

NETWORK = Trial(
    benchmark="made-up",
    series="network",
    kind="network",
    model="24BARx2-1",
    data="oqmd-sc",
    recipe="default",
    changes=(("epochs", 8), ("batch_size", 32), ("precision", "fp32")),
    watched_rows=10,
)
RIDGE = Trial("made-up", "ridge", "baseline", "ridge", "icsd")
IMPOSSIBLE = Trial("made-up", "impossible", "baseline", "ridge", "icsd", holdout="element:Og")

Run = Callable[..., list[Standing]]


@pytest.fixture
def run(source: DataSource, tmp_path: Path) -> Run:
    """Runs trials in the temporary folder; tells what was said."""

    def run_there(trials: Sequence[Trial], **options: Any) -> list[Standing]:
        said: list[str] = options.pop("said", [])
        return run_trials(trials, source, tmp_path, note=said.append, **options)

    return run_there


def states(standings: Sequence[Standing]) -> list[str]:
    return [str(standing.state) for standing in standings]


def found(standing: Standing) -> TrialResult:
    assert standing.result is not None
    return standing.result


def measured(result: TrialResult) -> dict[str, Any]:
    """What must not depend on when, where and in how many pieces a trial was run."""
    values = result.to_json()
    for name in ("seconds", "created", "machine", "commit"):
        del values[name]
    if isinstance(values["chosen"], dict):
        values["chosen"] = {k: v for k, v in values["chosen"].items() if k != "seconds"}
    return values


def test_finished_trials_are_read_and_not_run_again(run: Run, tmp_path: Path) -> None:
    said: list[str] = []
    first = run([NETWORK, RIDGE], said=said)
    assert states(first) == ["done", "done"]
    assert any("held-out rows" in sentence for sentence in said)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made-up").glob("*.json")}
    assert len(before) == 2
    second = run([NETWORK, RIDGE], said=said)
    assert "2 of 2 trials are done already" in said
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "made-up").glob("*.json")}
    assert after == before and second == first
    assert not list((tmp_path / "made-up").glob("*.checkpoint*"))


@pytest.mark.parametrize(
    "change",
    [
        {"train_rows": 60},
        {"changes": (*NETWORK.changes[:2], ("precision", "fp32"), ("learning_rate", 1e-3))},
        {"model": "24BAx2R-1"},
        {"tests": ("known",)},
    ],
    ids=["rows", "recipe", "model", "tests"],
)
def test_a_changed_trial_is_run_anew(change: dict[str, Any], run: Run, tmp_path: Path) -> None:
    (before,) = run([NETWORK])
    changed = replace(NETWORK, **change)
    assert states(survey(tmp_path, [changed])) == [State.CHANGED]
    (after,) = run([changed])
    assert found(after).trial == changed
    assert measured(found(after)) != measured(found(before))
    assert states(survey(tmp_path, [NETWORK])) == [State.CHANGED]


def test_a_name_that_means_something_else_now_is_run_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import irnet.recipe

    run([NETWORK])
    assert states(survey(tmp_path, [NETWORK])) == [State.DONE]
    other = irnet.recipe.find_recipe("default").with_changes(weight_decay=0.3)
    monkeypatch.setitem(irnet.recipe.RECIPES, "default", other)
    assert states(survey(tmp_path, [NETWORK])) == [State.CHANGED]


def test_words_of_a_trial_can_change(run: Run, tmp_path: Path) -> None:
    run([RIDGE])
    said_otherwise = replace(RIDGE, label="Ridge!", shortened="a lot")
    (standing,) = survey(tmp_path, [said_otherwise])
    assert standing.state is State.DONE and found(standing).trial == said_otherwise


def test_results_of_other_data_are_run_anew(
    run: Run, source: DataSource, tmp_path: Path, benchmark_data: Path
) -> None:
    (before,) = run([RIDGE])
    folder = tmp_path / "data"
    folder.mkdir()
    for file in benchmark_data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    table = pd.read_parquet(folder / "mp_icsd-00.parquet")
    table["formation_energy_per_atom"] *= 2
    table.to_parquet(folder / "mp_icsd-00.parquet")
    other = replace(source, data=folder, cache=tmp_path / "cache")
    (after,) = run_trials([RIDGE], other, tmp_path, note=lambda sentence: None)
    assert found(after).data_sha256 != found(before).data_sha256
    assert found(after).test[HELD_OUT].mae != found(before).test[HELD_OUT].mae


def test_checkpoints_go_when_the_result_is_safe(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def stop(done: int, total: int, text: str) -> None:
        if "epoch 5 of" in text:
            raise KeyboardInterrupt

    for trial in (NETWORK, replace(NETWORK, train_rows=80)):
        with pytest.raises(KeyboardInterrupt):
            run([trial], progress=stop)
        # of another specification of the trial there is nothing left
        (folder,) = (tmp_path / "made-up").glob("network-s0.*.checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr("screening.benchmark.engine.shutil.rmtree", lambda *given, **named: None)
        run([trial])
    assert folder.exists()  # as if killed just then
    run([trial])
    assert not folder.exists()


def test_a_failing_trial_is_recorded_and_the_others_go_on(run: Run, tmp_path: Path) -> None:
    diverging = replace(
        NETWORK, series="diverging", changes=(("learning_rate", 1e30), ("gradient_clip", None))
    )
    said: list[str] = []
    standings = run([IMPOSSIBLE, diverging, RIDGE], said=said)
    assert states(standings) == ["failed", "failed", "done"]
    assert "element:Og" in (found(standings[0]).failure or "")
    assert "no longer finite" in (found(standings[1]).failure or "")
    assert sum("failed: " in sentence for sentence in said) == 2
    assert states(survey(tmp_path, [IMPOSSIBLE, diverging, RIDGE])) == states(standings)
    said.clear()
    run([IMPOSSIBLE, RIDGE], said=said)  # it is tried again
    assert any("impossible-s0 failed" in sentence for sentence in said)


def test_a_damaged_result_is_named(run: Run, tmp_path: Path) -> None:
    run([RIDGE])
    path = result_path(tmp_path, RIDGE)
    path.write_text(path.read_text()[:200])
    with pytest.raises(InputDataError, match=r"ridge-s0\.json"):
        survey(tmp_path, [RIDGE])


def test_a_damaged_checkpoint_is_begun_anew(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (undisturbed,) = run([NETWORK])
    result_path(tmp_path, NETWORK).unlink()
    monkeypatch.setattr(fitting, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)

    def stop(done: int, total: int, text: str) -> None:
        if "epoch 5 of" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([NETWORK], progress=stop)
    (checkpoint,) = tmp_path.rglob("checkpoint.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    (standing,) = run([NETWORK])
    assert measured(found(standing)) == measured(found(undisturbed))


def test_one_run_at_a_time(run: Run, tmp_path: Path) -> None:
    def second(done: int, total: int, text: str) -> None:
        with pytest.raises(FolderInUseError):
            run([RIDGE])
        refused.append(text)

    refused: list[str] = []
    run([replace(RIDGE, series="other")], progress=second)
    assert refused


KILLED = """
import os, signal, sys
from pathlib import Path
from screening.benchmark import fitting
from screening.benchmark.data import DataSource
from screening.benchmark.engine import run_trials
from screening.benchmark.trial import Trial
import json

if __name__ == "__main__":
    data, cache, work, trials, word = sys.argv[1:]
    fitting.SECONDS_BETWEEN_CHECKPOINTS = 0.0

    def end(done, total, text):
        if word in text:
            os.kill(os.getpid(), signal.SIGKILL)

    run_trials(
        [Trial.from_json(each) for each in json.loads(trials)],
        DataSource(Path(data), Path(cache)), Path(work), note=print, progress=end,
    )
"""


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(
    run: Run, source: DataSource, tmp_path: Path
) -> None:
    trials = [RIDGE, NETWORK, replace(NETWORK, seed=1)]
    work = tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [str(source.data), str(source.cache), str(work)]
    arguments += [json.dumps([trial.to_json() for trial in trials]), "epoch 6 of"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert states(survey(work, trials)) == ["done", "missing", "missing"]
    assert list(work.rglob("checkpoint.safetensors"))
    told: list[str] = []
    said: list[str] = []
    resumed = run_trials(
        trials, source, work, note=said.append, progress=lambda done, total, text: told.append(text)
    )
    assert any("taking" in sentence and "killed" in sentence for sentence in said)
    epochs = [text for text in told if text.startswith("network-s0 epoch")]
    assert epochs and not any("epoch 1 of" in text or "epoch 4 of" in text for text in epochs)
    undisturbed = run(trials)
    assert states(resumed) == ["done"] * 3
    for one, other in zip(resumed, undisturbed, strict=True):
        assert measured(found(one)) == measured(found(other))


def test_processes_side_by_side_find_the_same_and_one_that_dies_costs_its_trial_only(
    run: Run, tmp_path: Path, source: DataSource
) -> None:
    endless = replace(NETWORK, series="endless", changes=(("epochs", 100_000), ("patience", None)))
    killed: list[int] = []

    def kill(done: int, total: int, text: str) -> None:
        if done == 3 and "endless-s0 epoch" in text and not killed:
            for child in multiprocessing.active_children():  # the other one has nothing to do
                assert child.pid is not None
                killed.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)

    trials = [NETWORK, RIDGE, IMPOSSIBLE]
    there = run_trials(
        [endless, *trials],
        source,
        tmp_path / "there",
        workers=2,
        note=lambda sentence: None,
        progress=kill,
    )
    assert states(there) == ["failed", "done", "done", "failed"]
    assert len(killed) == 2 and "SIGKILL" in (found(there[0]).failure or "")
    assert not multiprocessing.active_children()
    here = run(trials)
    for one, other in zip(there[1:3], here[:2], strict=True):
        mae = found(one).test[HELD_OUT].mae
        assert mae == pytest.approx(found(other).test[HELD_OUT].mae, rel=1e-3)


ORPHANED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from screening.benchmark.data import DataSource
from screening.benchmark.engine import run_trials
from screening.benchmark.trial import Trial
import json

if __name__ == "__main__":
    data, cache, work, trial = sys.argv[1:]

    def end(done, total, text):
        if "epoch" in text:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    run_trials(
        [Trial.from_json(json.loads(trial))], DataSource(Path(data), Path(cache)), Path(work),
        workers=1, note=lambda sentence: None, progress=end,
    )
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look processes up in")
def test_processes_end_with_the_one_that_started_them(source: DataSource, tmp_path: Path) -> None:
    endless = replace(NETWORK, changes=(("epochs", 100_000), ("patience", None)))
    script = tmp_path / "orphaned.py"
    script.write_text(ORPHANED)
    arguments = [str(source.data), str(source.cache), str(tmp_path), json.dumps(endless.to_json())]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    (child,) = map(int, done.stdout.split())
    for _ in range(600):
        if not is_running(child):
            break
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
