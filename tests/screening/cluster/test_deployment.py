from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from distributed import Security, get_worker

from screening.cluster import deployment
from screening.cluster.client import connect, pick_resources
from screening.cluster.deployment import describe_job, is_loopback, plan_workers
from screening.cluster.tasks import map_tasks
from screening.cluster_settings import ClusterSettings
from screening.errors import ConfigurationError
from screening.local_tasks import Done

needs_jobqueue = pytest.mark.skipif(
    find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"
)

PATIENCE = 120
"""Seconds after which a test says that something never happened."""

ANYWHERE = "127.0.0.1:0"

BATCH_SYSTEM = """#!{python}
# Stands for a batch system whose jobs run at once on this machine.
import os, shutil, subprocess, sys
folder = os.environ["BATCH_SYSTEM"]
if os.path.exists(folder + "/refuses"):
    sys.exit("error: invalid partition specified: nowhere")
script = shutil.copy(sys.argv[1], folder + "/" + str(os.getpid()) + ".sh")
log = open(folder + "/log", "w")
job = subprocess.Popen(["bash", script], stdout=log, stderr=log, start_new_session=True)
print("Submitted batch job", job.pid)
"""


def say_device(task: int, worker: int) -> tuple[int, int, str]:
    time.sleep(0.05)
    return worker, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def running_at_once(task: int, worker: int) -> int:
    """How many tasks its worker runs while it runs this one."""
    time.sleep(0.05)
    return int(get_worker().state.executing_count)


def await_that(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def gpus_are(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(deployment, "list_gpus", lambda: names)


@pytest.mark.parametrize(
    ("device", "asked", "gpus", "cpus"),
    [
        ("auto", {}, ("0", "1"), 0),
        ("cuda", {}, ("0", "1"), 0),
        ("cpu", {}, (), 5),
        ("auto", {"workers": 1}, ("0",), 0),
        ("auto", {"workers": 4}, ("0", "1"), 0),
        ("cpu", {"workers": 4}, (), 4),
        ("auto", {"gpus": 1}, ("0",), 0),
        ("auto", {"gpus": 0}, (), 5),
        ("auto", {"gpus": 0, "workers": 3}, (), 3),
        ("auto", {"gpus": 1, "workers": 4}, ("0",), 3),
        ("cuda", {"gpus": 1, "workers": 4}, ("0",), 0),
    ],
)
def test_gpus_have_a_worker_each_and_cpu_workers_only_where_they_are_asked_for(
    device: str,
    asked: dict[str, int],
    gpus: tuple[str, ...],
    cpus: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus_are(monkeypatch, "0", "1")
    monkeypatch.setattr(deployment, "count_cores", lambda: 5)
    monkeypatch.setattr(deployment, "MEMORY_LIMIT", 64_000_000_000)
    plan = plan_workers(ClusterSettings(**asked), device)  # type: ignore[arg-type]
    assert (plan.gpus, plan.cpus) == (gpus, cpus)
    assert plan.total == len(gpus) + cpus


def test_a_machine_of_little_memory_gets_fewer_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus_are(monkeypatch)
    monkeypatch.setattr(deployment, "count_cores", lambda: 8)
    monkeypatch.setattr(deployment, "MEMORY_LIMIT", 8_000_000_000)
    assert plan_workers(ClusterSettings()).cpus == 4
    monkeypatch.setattr(deployment, "MEMORY_LIMIT", 1_000_000_000)
    assert plan_workers(ClusterSettings()).cpus == 1
    assert plan_workers(ClusterSettings(workers=8)).cpus == 8


@pytest.mark.parametrize(
    ("device", "gpus", "complaint"),
    [
        ("cpu", 1, "gpus = 1 and --device cpu contradict each other"),
        ("auto", 3, "gpus = 3, but torch sees 2 CUDA devices"),
        ("cuda", 0, "--device cuda, but torch sees no CUDA device on this machine or gpus = 0"),
    ],
)
def test_gpus_that_are_not_there_are_refused(
    device: str, gpus: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus_are(monkeypatch, "0", "1")
    with pytest.raises(ConfigurationError, match=complaint):
        plan_workers(ClusterSettings(gpus=gpus), device)


def test_gpus_are_named_as_cuda_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert deployment.list_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5a")
    assert deployment.list_gpus() == ("3", "GPU-5a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert deployment.list_gpus() == ()


@pytest.mark.gpu
def test_a_gpu_worker_sees_its_gpu_and_a_cpu_worker_none() -> None:
    settings = ClusterSettings(workers=2, gpus=1, dashboard=ANYWHERE)
    with connect(settings, pytest.fail) as client:
        counts = client.run(torch.cuda.device_count)
        workers = client.scheduler_info(n_workers=-1)["workers"]
    assert {bool(workers[address]["resources"]): n for address, n in counts.items()} == {
        True: 1,
        False: 0,
    }


def test_gpu_and_cpu_workers_work_side_by_side_each_gpu_on_one_task_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus_are(monkeypatch, "7", "8")
    settings = ClusterSettings(workers=3, gpus=2, dashboard=ANYWHERE)
    with connect(settings, pytest.fail) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert sorted(each["resources"].get("GPU", 0) for each in workers) == [0, 1, 1]
        assert all(each["nthreads"] == 1 for each in workers)
        assert pick_resources(client) == {"GPU": 1}
        outcomes = list(map_tasks(client, say_device, range(40)))
        at_once = list(map_tasks(client, running_at_once, range(20)))
    seen = {outcome.result for outcome in outcomes if isinstance(outcome, Done)}
    assert len(outcomes) == 40
    numbers = sorted((device, number) for number, _, device in seen)
    assert numbers == [("", 2), ("7", 0), ("8", 0)], "a GPU is the first that its worker sees"
    assert len(seen) == 3, "each worker is one process with one kind of device"
    assert os.getpid() not in {process for _, process, _ in seen}
    assert {each.result for each in at_once if isinstance(each, Done)} == {1}


def test_workers_asked_for_beyond_the_gpus_are_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus_are(monkeypatch, "0")
    said: list[str] = []
    with connect(ClusterSettings(workers=3, dashboard=ANYWHERE), said.append) as client:
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1
    assert said == [
        "1 of 3 workers are started, one for each GPU; gpus = 1 in the table [cluster] asks for "
        "CPU workers beside them"
    ]


def leak(share: float) -> int:
    """Hold so much of the worker's memory limit for ever."""
    limit = get_worker().memory_manager.memory_limit
    missing = int(share * limit) - psutil.Process().memory_info().rss
    sys.modules["leaked"] = [b"x" * missing]  # type: ignore[assignment]
    return os.getpid()


def test_workers_listen_on_loopback_only_are_spawned_and_restarted_when_they_leak() -> None:
    settings = ClusterSettings(workers=1, memory="500MB", dashboard=ANYWHERE)
    with connect(settings, pytest.fail, device="cpu") as client:
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            connection.laddr.ip
            for process in family
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 4
        assert set(listening) == {"127.0.0.1"}
        [process] = client.run(os.getpid).values()
        assert "multiprocessing.spawn" in " ".join(psutil.Process(process).cmdline())
        assert client.submit(os.getenv, "MALLOC_MMAP_THRESHOLD_").result(timeout=PATIENCE) == (
            "33554432"
        )
        # above the share at which Dask would pause it for ever, it goes on
        assert client.submit(leak, 0.86).result(timeout=PATIENCE) == process
        time.sleep(0.5)  # longer than the interval at which Dask looks
        assert client.submit(os.getpid, pure=False).result(timeout=PATIENCE) == process
        before = set(client.scheduler_info(n_workers=-1)["workers"])
        too_much = client.submit(leak, 1.2)
        await_that(lambda: set(client.scheduler_info(n_workers=-1)["workers"]) - before)
        too_much.cancel()
        assert client.submit(os.getpid, pure=False).result(timeout=PATIENCE) != process
    left = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [each for each in left if "resource_tracker" not in each]


def test_little_memory_for_each_worker_and_an_open_dashboard_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "MEMORY_LIMIT", 1_000_000_000)
    said: list[str] = []
    settings = ClusterSettings(workers=1, dashboard=":0")
    with connect(settings, said.append, device="cpu") as client:
        limits = [w["memory_limit"] for w in client.scheduler_info()["workers"].values()]
    assert limits == [750_000_000]
    assert said[0].startswith("the dashboard listens on all addresses of this machine, port 0:")
    assert said[1].startswith("each of 1 workers may use 715.26 MiB of memory")
    assert len(said) == 2


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True),
        ("0.0.0.0", False), ("", False), ("10.0.0.1", False), ("node1", False), ("::", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_the_world(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# batch systems


def batch(kind: str, **more: object) -> ClusterSettings:
    values = {"cores": 4, "memory": "16GB", "interface": "lo", "dashboard": ANYWHERE}
    return ClusterSettings(type=kind, **{**values, **more})  # type: ignore[arg-type]


@pytest.fixture
def batch_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a program that runs what is submitted at once, in the place of a batch system."""
    folder = tmp_path / "batch"
    folder.mkdir()
    for name in ("sbatch", "qsub", "bsub"):
        (folder / name).write_text(BATCH_SYSTEM.format(python=sys.executable))
    for name in ("scancel", "qdel", "bkill"):
        (folder / name).write_text('#!/bin/sh\nkill -- "-$1"\n')
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BATCH_SYSTEM", str(folder))
    return folder


ASKED = {
    "account": "materials",
    "queue": "short",
    "walltime": "10:30:00",
    "local_directory": Path("$TMPDIR"),
    "directives": ("--exclusive",),
    "prologue": ("module load python", "export A=1"),
}


@needs_jobqueue
@pytest.mark.parametrize(
    ("kind", "header", "gpu_header"),
    [
        (
            "slurm",
            ["-p short", "-A materials", "-n 1", "--cpus-per-task=4", "--mem=15G", "-t 10:30:00"],
            ["--cpus-per-task=4", "--gres=gpu:1", "--exclusive"],
        ),
        (
            "pbs",
            ["-q short", "-A materials", "-l select=1:ncpus=4:mem=15GB", "-l walltime=10:30:00"],
            ["-l select=1:ncpus=4:mem=16000000000b:ngpus=1", "--exclusive"],
        ),
        (
            "lsf",
            ["-q short", '-P "materials"', "-n 4", '-R "span[hosts=1]"', "-W 10:30"],
            ["-n 4", '-gpu "num=1"', "--exclusive"],
        ),
    ],
)
def test_job_scripts_ask_for_what_the_table_says(
    kind: str, header: list[str], gpu_header: list[str], batch_system: Path
) -> None:
    (batch_system / "refuses").touch()
    sign = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB"}[kind]
    with deployment.make_batch_cluster(batch(kind, **ASKED), Security()) as cluster:
        script = cluster.job_script().splitlines()  # type: ignore[attr-defined]
    for line in [*header, "--exclusive"]:
        assert f"{sign} {line}" in script
    *_, threshold, load, export, start = script
    assert threshold == "export MALLOC_MMAP_THRESHOLD_=33554432"
    assert (load, export) == ("module load python", "export A=1")
    assert start.startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:")
    for option in (
        "--nthreads 1", "--nworkers 4", "--nanny", "--memory-limit 3.73GiB", "--interface lo",
        "--local-directory $TMPDIR",
    ):  # fmt: skip
        assert option in start
    assert "--resources" not in start
    with deployment.make_batch_cluster(batch(kind, gpus=1, **ASKED), Security()) as cluster:
        script = cluster.job_script().splitlines()  # type: ignore[attr-defined]
    for line in gpu_header:
        assert f"{sign} {line}" in script
    assert script[-2] == "export OMP_NUM_THREADS=4"
    assert "--nthreads 1" in script[-1]
    assert "--nworkers" not in script[-1], "one worker"
    assert "--resources GPU=1" in script[-1]


@needs_jobqueue
def test_jobs_come_to_work_and_are_cancelled_at_the_end(batch_system: Path) -> None:
    said: list[str] = []
    settings = batch("slurm", gpus=1, cores=2, memory="2GB", prologue=("export A=b",))
    with connect(settings, said.append) as client:
        assert client.submit(os.getenv, "A").result(timeout=PATIENCE) == "b"
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result(timeout=PATIENCE) == "2"
        threshold = client.submit(os.getenv, "MALLOC_MMAP_THRESHOLD_").result(timeout=PATIENCE)
        assert threshold == "33554432"
        [worker] = client.scheduler_info(n_workers=-1)["workers"].values()
        assert worker["resources"] == {"GPU": 1}
        [job] = [int(path.stem) for path in batch_system.glob("*.sh")]
        at_work = psutil.Process(next(iter(client.run(os.getpid).values())))
    assert job
    await_that(lambda: not at_work.is_running() or at_work.status() == psutil.STATUS_ZOMBIE)
    assert said[0].startswith("the scheduler listens on interface lo")
    assert "[cluster.tls]" in said[0]
    assert said[1].startswith("jobs are submitted; waiting for the first")


@needs_jobqueue
def test_a_job_that_the_batch_system_refuses_is_an_error(batch_system: Path) -> None:
    (batch_system / "refuses").touch()
    with (
        pytest.raises(ConfigurationError, match="refuses the job: error: invalid partition spec"),
        connect(batch("slurm"), lambda sentence: None),
    ):
        raise AssertionError("connected to nothing")


@needs_jobqueue
def test_a_batch_system_that_is_not_here_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ConfigurationError, match="submits jobs with qsub, which is not on this"),
        connect(batch("pbs"), lambda sentence: None),
    ):
        raise AssertionError("connected to nothing")


@needs_jobqueue
def test_an_interface_that_is_not_here_is_named(batch_system: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"cannot be used: .*'ib7' is not a valid"),
        connect(batch("slurm", interface="ib7"), lambda sentence: None),
    ):
        raise AssertionError("connected to nothing")


def test_a_blank_in_a_path_is_refused_instead_of_tearing_the_command_apart() -> None:
    with pytest.raises(ConfigurationError, match='"/a b" has a blank in it'):
        describe_job(batch("slurm", local_directory=Path("/a b")), Security())


@pytest.mark.parametrize(
    ("settings", "module", "package", "extra"),
    [
        (ClusterSettings(type="cuda"), "dask_cuda", "dask-cuda", "cuda"),  # type: ignore[arg-type]
        (batch("lsf"), "dask_jobqueue", "dask-jobqueue", "jobqueue"),
    ],
)
def test_a_missing_package_is_named_with_its_installation(
    settings: ClusterSettings,
    module: str,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ConfigurationError, match=rf'{package}.*install "irnet-screening\[{extra}\]'),
        connect(settings, lambda sentence: None),
    ):
        raise AssertionError("connected to nothing")


@pytest.mark.gpu
def test_dask_cuda_starts_a_worker_for_each_gpu() -> None:
    if find_spec("dask_cuda") is None:
        pytest.skip("dask-cuda is not installed")
    settings = ClusterSettings(type="cuda", dashboard=ANYWHERE)  # type: ignore[arg-type]
    with connect(settings, pytest.fail) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert [each["resources"] for each in workers] == [{"GPU": 1}] * torch.cuda.device_count()


@needs_jobqueue
def test_importing_dask_jobqueue_leaves_ctrl_c_to_this_program() -> None:
    program = (
        "import signal\n"
        "from screening.cluster.deployment import _import_extra\n"
        "_import_extra('dask_jobqueue', 'jobqueue', 'slurm')\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
