"""Starting workers: processes of this machine, jobs of a batch system, or one per GPU."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

import dask
from dask.utils import format_bytes, parse_bytes
from distributed import Nanny, Scheduler, Security, SpecCluster
from distributed.deploy.spec import ProcessInterface
from distributed.system import MEMORY_LIMIT

from screening.cluster_settings import ClusterSettings, ClusterType
from screening.errors import ConfigurationError
from screening.settings import Device, count_cores

LOOPBACK: Final = "127.0.0.1"

MEMORY_SHARE: Final = 0.75
"""Share of this machine's memory for the workers; the driver and other programs need the rest."""

WORKER_BYTES: Final = 1_500_000_000
"""What a worker needs: libraries and a model, and a shard in the making."""

GPU: Final[Mapping[str, float]] = {"GPU": 1}
"""Dask resource that a worker with a GPU to itself declares."""

MMAP_BYTES: Final = 32 << 20
"""Arrays of workers from this size on are fetched from the system, and given back, one by one."""

LOCAL_CONFIGURATION: Final = {
    "distributed.worker.multiprocessing-method": "spawn",
    # A worker that leaks would be paused for ever below the limit at which it is restarted.
    "distributed.worker.memory.pause": False,
    # Of 1,000 remembered messages of each connection, with their tasks, schedulers grow by 60 MiB.
    "distributed.admin.low-level-log-length": 100,
    # Dask gives workers a low MALLOC_TRIM_THRESHOLD_, with which malloc fetches every array of more
    # than 128 kB from the system anew: a third of the time of 8-bit products. Larger ones may be.
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": MMAP_BYTES,
}

_CLASSES: Final[Mapping[ClusterType, str]] = {
    ClusterType.SLURM: "SLURMCluster",
    ClusterType.PBS: "PBSCluster",
    ClusterType.LSF: "LSFCluster",
}


@dataclass(frozen=True)
class LocalWorkers:
    """Workers to start on this machine.

    Attributes:
        gpus: The GPUs that have a worker each, as `CUDA_VISIBLE_DEVICES` names them.
        cpus: Workers without a GPU.
    """

    gpus: tuple[str, ...]
    cpus: int

    @property
    def total(self) -> int:
        """All of them."""
        return len(self.gpus) + self.cpus


def plan_workers(settings: ClusterSettings, device: str = "auto") -> LocalWorkers:
    """Return which workers this machine gets.

    Unless the settings say so, GPUs get one worker each and there are no others: results of a GPU
    and of a CPU differ in their last digits.

    Args:
        settings: Of type local or cuda.
        device: auto, cpu or cuda.

    Raises:
        ConfigurationError: More GPUs are asked for than there are.
    """
    if settings.gpus and device == Device.CPU:
        raise ConfigurationError(
            f"gpus = {settings.gpus} and --device cpu contradict each other; leave one of them out"
        )
    present = () if device == Device.CPU else list_gpus()
    if settings.gpus is not None and settings.gpus > len(present):
        raise ConfigurationError(
            f"gpus = {settings.gpus}, but torch sees {len(present)} CUDA devices on this machine; "
            "ask for as many as there are, or leave gpus out"
        )
    if device == Device.CUDA and (settings.gpus == 0 or not present):
        raise ConfigurationError(
            "--device cuda, but torch sees no CUDA device on this machine or gpus = 0; use "
            "--device cpu or auto"
        )
    chosen = present[: settings.workers if settings.gpus is None else settings.gpus]
    if settings.workers is None:
        cpus = 0 if chosen else _count_cpu_workers()
    elif (chosen and settings.gpus is None) or device == Device.CUDA:
        cpus = 0
    else:
        cpus = settings.workers - len(chosen)
    return LocalWorkers(chosen, cpus)


def list_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = [name.strip() for name in names if name.strip()]
    return tuple(named[:count] if named else map(str, range(count)))


@contextmanager
def start_cluster(
    settings: ClusterSettings,
    security: Security,
    note: Callable[[str], None],
    device: str = "auto",
) -> Iterator[SpecCluster]:
    """Start a scheduler in this process, and workers; end them on leaving.

    Args:
        settings: Which workers; not a scheduler that runs elsewhere.
        security: Certificates.
        note: Told what the user should know.
        device: auto, cpu or cuda: whether workers of this machine get its GPUs.

    Yields:
        The cluster; jobs of a batch system may still wait in their queue.

    Raises:
        ConfigurationError: What is asked for is not there.
    """
    _warn_of_openness(settings, security, note)
    with dask.config.set(LOCAL_CONFIGURATION):
        with _interrupts_left_to_this_process(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            if settings.is_batch:
                cluster = make_batch_cluster(settings, security)
            elif settings.type is ClusterType.CUDA:
                cluster = _make_cuda_cluster(settings, security)
            else:
                cluster = _make_local_cluster(settings, security, note, device)
        with cluster:
            yield cluster


def _make_local_cluster(
    settings: ClusterSettings, security: Security, note: Callable[[str], None], device: str
) -> SpecCluster:
    plan = plan_workers(settings, device)
    if settings.workers is not None and plan.total < settings.workers:
        note(
            f"{plan.total} of {settings.workers} workers are started, one for each GPU; gpus = "
            f"{len(plan.gpus)} in the table [cluster] asks for CPU workers beside them"
        )
    limit = _limit_memory(settings, plan.total)
    if limit < WORKER_BYTES and settings.memory is None:
        note(
            f"each of {plan.total} workers may use {format_bytes(limit)} of memory, and is "
            f"restarted beyond; about {format_bytes(WORKER_BYTES)} is usual: fewer --workers have "
            "more each"
        )
    protocol = "tls://" if security.require_encryption else "tcp://"
    place = {"host": LOOPBACK, "protocol": protocol, "security": security}
    common = {
        **place,
        "nthreads": 1,
        "preload": _list_preloads(),
        "memory_limit": limit,
        "local_directory": _text(settings.local_directory),
        "dashboard": False,
        "silence_logs": logging.CRITICAL,
    }
    options: list[dict[str, Any]] = [
        {**common, "resources": dict(GPU), "env": {"CUDA_VISIBLE_DEVICES": gpu}}
        for gpu in plan.gpus
    ]
    options += [{**common, "env": {"CUDA_VISIBLE_DEVICES": ""}} for _ in range(plan.cpus)]
    scheduler = {**place, "port": 0, "dashboard": True, "dashboard_address": settings.dashboard}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": scheduler},
        workers={number: {"cls": Nanny, "options": each} for number, each in enumerate(options)},
        security=security,
        silence_logs=logging.CRITICAL,
    )


def _list_preloads() -> list[str]:
    """Return what workers load first: what Dask's configuration names, and our own."""
    configured = dask.config.get("distributed.worker.preload", default=None) or []
    named = [configured] if isinstance(configured, str) else list(configured)
    return [*named, "screening.cluster.interrupts"]


def _make_cuda_cluster(settings: ClusterSettings, security: Security) -> SpecCluster:
    module = _import_extra("dask_cuda", "cuda", settings.type)
    count = settings.gpus or len(list_gpus())
    cluster: SpecCluster = module.LocalCUDACluster(
        n_workers=settings.gpus,
        threads_per_worker=1,
        memory_limit=_limit_memory(settings, max(1, count)),
        local_directory=_text(settings.local_directory),
        protocol="tls" if security.require_encryption else "tcp",
        host=LOOPBACK,
        security=security,
        resources=dict(GPU),
        dashboard_address=settings.dashboard,
        silence_logs=logging.CRITICAL,
    )
    return cluster


def make_batch_cluster(settings: ClusterSettings, security: Security) -> SpecCluster:
    """Start a scheduler in this process, and submit jobs whose workers connect to it.

    Args:
        settings: Of type slurm, pbs or lsf.
        security: Certificates, which jobs must find under the same paths.

    Returns:
        The cluster, of dask-jobqueue; what the batch system says against a job is raised by
        `check_jobs`.

    Raises:
        ConfigurationError: dask-jobqueue is not installed, the batch system is not on this
            machine, or dask-jobqueue refuses a value.
    """
    module = _import_extra("dask_jobqueue", "jobqueue", settings.type)
    kind = getattr(module, _CLASSES[settings.type])
    command = kind.job_cls.submit_command.split()[0]
    if shutil.which(command) is None:
        raise ConfigurationError(
            f'type = "{settings.type}" submits jobs with {command}, which is not on this machine; '
            "run this where jobs are submitted, or give another type"
        )
    job = describe_job(settings, security)
    try:
        cluster: SpecCluster = kind(job_cls=_reporting(kind.job_cls), **job)
        cluster.scale(jobs=settings.jobs or 1)  # type: ignore[call-arg]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f'the table [cluster] with type = "{settings.type}" cannot be used: {error}'
        ) from error
    return cluster


def describe_job(settings: ClusterSettings, security: Security) -> dict[str, Any]:
    """Return what dask-jobqueue is told about the scheduler and the jobs.

    A job has one worker of one thread on each core; one with a GPU has one worker, whose arithmetic
    may use all cores.

    Args:
        settings: Of type slurm, pbs or lsf.
        security: Certificates.

    Raises:
        ConfigurationError: A path cannot be passed on.
    """
    cores, memory = settings.cores or 1, settings.memory or ""
    workers = 1 if settings.gpus else cores
    directives = list(settings.directives)
    prologue = [f"export MALLOC_MMAP_THRESHOLD_={MMAP_BYTES}", *settings.prologue]
    arguments: list[str] = []
    job: dict[str, Any] = {}
    tls = security.get_tls_config_for_role("worker") if security.require_encryption else {}
    for path in (settings.local_directory, *tls.values()):
        if " " in str(path):
            raise ConfigurationError(
                f'"{path}" has a blank in it, which dask-jobqueue cannot pass on to jobs; give a '
                "path without"
            )
    if settings.gpus:
        arguments = ["--resources", "GPU=1"]
        prologue.append(f"export OMP_NUM_THREADS={cores}")
        if settings.type is ClusterType.SLURM:
            directives.insert(0, "--gres=gpu:1")
            job["job_cpu"] = cores
        elif settings.type is ClusterType.PBS:
            amount = f"mem={parse_bytes(memory)}b"
            job["resource_spec"] = f"select=1:ncpus={cores}:{amount}:ngpus=1"
        else:
            directives.insert(0, '-gpu "num=1"')
            job["ncpus"] = cores
    account, walltime = "account", settings.walltime
    if settings.type is ClusterType.LSF:
        account = "project"
        walltime = walltime and walltime.rpartition(":")[0]  # LSF knows no seconds
    job |= {
        "cores": workers,
        "processes": workers,
        "memory": memory,
        "walltime": walltime,
        "queue": settings.queue,
        account: settings.account,
        "interface": settings.interface,
        "local_directory": _text(settings.local_directory),
        "log_directory": _text(settings.log_directory),
        # without any, those of dask-jobqueue's own configuration
        "job_extra_directives": directives or None,
        "job_script_prologue": prologue,
    }
    if arguments:
        job["worker_extra_args"] = arguments
    return {name: value for name, value in job.items() if value is not None} | {
        "scheduler_options": {"dashboard_address": settings.dashboard},
        "security": security if tls else None,
        "silence_logs": logging.CRITICAL,
    }


REFUSALS: Final = "refusals"
"""Attribute of a class of jobs: what the batch system said against them."""


def _reporting(job_class: type) -> type:
    """Return a class of jobs that keeps what the batch system says against them.

    dask-jobqueue lets it go by as the exception of a background task.
    """
    refusals: list[str] = []

    async def start(self: Any) -> None:
        try:
            await job_class.start(self)  # type: ignore[attr-defined]
        except (OSError, RuntimeError, ValueError) as error:
            refusals.append(" ".join(str(error).rpartition("stderr:")[2].split()) or str(error))
            await ProcessInterface.start(self)

    return type(job_class.__name__, (job_class,), {"start": start, REFUSALS: refusals})


def check_jobs(cluster: SpecCluster) -> None:
    """Check that the batch system took the jobs, as far as it has answered.

    Raises:
        ConfigurationError: It refused one.
    """
    refusals = getattr(getattr(cluster, "job_cls", None), REFUSALS, ())
    if refusals:
        raise ConfigurationError(
            f"the batch system refuses the job: {refusals[0]}; change the table [cluster]"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host; no name stands for all of its addresses."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _warn_of_openness(
    settings: ClusterSettings, security: Security, note: Callable[[str], None]
) -> None:
    host, _, port = settings.dashboard.rpartition(":")
    if not is_loopback(host):
        note(
            f"the dashboard listens on {host or 'all addresses of this machine'}, port {port}: "
            "whoever reaches it sees the campaign; docs/clusters.md tells how to look at it "
            "through SSH instead"
        )
    if settings.is_batch and not security.require_encryption:
        where = f"interface {settings.interface}" if settings.interface else "all its addresses"
        note(
            f"the scheduler listens on {where} of this machine so that jobs reach it, without "
            "encryption: whoever reaches it can run programs as you; [cluster.tls] prevents that"
        )


def _count_cpu_workers() -> int:
    """One per core, or as many as find room in memory."""
    return max(1, min(count_cores(), int(MEMORY_SHARE * MEMORY_LIMIT) // WORKER_BYTES))


def _limit_memory(settings: ClusterSettings, workers: int) -> int:
    """Bytes at which a worker of this machine is restarted."""
    if settings.memory is not None:
        return parse_bytes(settings.memory)
    return int(MEMORY_SHARE * MEMORY_LIMIT) // workers


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _import_extra(module: str, extra: str, kind: ClusterType) -> Any:
    try:
        with (
            _interrupts_left_to_this_process()
        ):  # dask_jobqueue takes Ctrl-C over where it is imported
            return importlib.import_module(module)
    except ImportError as error:
        package = module.replace("_", "-")
        raise ConfigurationError(
            f'type = "{kind}" needs {package}, which cannot be imported ({error}); install it '
            f'with: pip install "irnet-screening[{extra}]"'
        ) from error


@contextmanager
def _interrupts_left_to_this_process() -> Iterator[None]:
    """Let processes that are started inside ignore Ctrl-C: the driver alone decides to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
