"""Clients: the one place that turns settings into a connection to a scheduler and its workers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import platform
import secrets
import socket
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from distributed import Client, Security, SpecCluster
from distributed.comm.addressing import parse_host_port
from distributed.core import rpc

from screening.cluster.deployment import GPU, check_jobs, is_loopback, start_cluster
from screening.cluster_settings import ClusterSettings, TlsSettings
from screening.errors import ConfigurationError, OutputError, SchedulerLostError
from screening.folder import PROBE

CONNECT_SECONDS = 15
GRACE_SECONDS = 5
WORKER_SECONDS = 30
FILE_SECONDS = 30
PROBE_SECONDS = 60

JOB_CHECK_SECONDS = 2.0
JOB_NOTE_SECONDS = 60.0
"""How often to ask whether the batch system refused a job, and to say that jobs are waiting."""

PROBED_PACKAGES: Final = ("torch", "numpy", "distributed")
"""Packages that driver and workers are compared by, besides our own code."""

_LOGGERS: Final = ("distributed", "distributed.client")
"""Loggers that Dask gives a level each; what matters of it is said by our own errors and notes."""

_LOST: Final = (OSError, ValueError, TypeError, RuntimeError, MemoryError)
"""What Dask raises when an address is none, or something else answers there."""


@contextmanager
def connect(
    settings: ClusterSettings, note: Callable[[str], None], *, device: str = "auto"
) -> Iterator[Client]:
    """Open a client with at least one worker; on leaving, close it and end what was started.

    Args:
        settings: Where the workers come from.
        note: Told what the user should know while waiting.
        device: auto, cpu or cuda: whether workers that are started get GPUs.

    Yields:
        A client.

    Raises:
        ConfigurationError: No scheduler answers, it has no workers, certificates do not fit, or
            what is asked for is not there.
    """
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    security = read_certificates(settings.tls)
    if settings.is_elsewhere:
        address = settings.scheduler or _await_address(settings.scheduler_file, note)
        _check_scheduler(address, settings, security)
        _warn_of_clear_text(address, note)
        with _open_client(address, security) as client:
            await_worker(client, address, note)
            yield client
        return
    with (
        start_cluster(settings, security, note, device) as cluster,
        _open_client(cluster, security) as client,
    ):
        if settings.is_batch:
            _await_jobs(client, cluster, note)
        yield client


def _open_client(scheduler: str | SpecCluster, security: Security) -> Client:
    with warnings.catch_warnings():
        # `probe_workers` says what matters about versions
        warnings.filterwarnings("ignore", message=r"(?s).*Mismatched versions")
        return Client(scheduler, security=security, timeout=CONNECT_SECONDS)


def read_certificates(tls: TlsSettings | None) -> Security:
    """Return certificates as Dask takes them.

    Args:
        tls: Their files; None leaves it to Dask's own configuration.

    Raises:
        ConfigurationError: A file is missing or no certificate, or the key is another's.
    """
    if tls is None:
        return Security()
    ca, certificate, key = (path.absolute() for path in (tls.ca, tls.certificate, tls.key))
    for path in (ca, certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {path}, which is named under [cluster.tls]: {error.strerror}"
            ) from error
    roles = ("client", "scheduler", "worker")
    security = Security(
        require_encryption=True,
        tls_ca_file=str(ca),
        **{f"tls_{role}_cert": str(certificate) for role in roles},
        **{f"tls_{role}_key": str(key) for role in roles},
    )
    try:
        security.get_connection_args("client")
    except ssl.SSLError as error:
        reason = "the key is not the certificate's" if "MISMATCH" in str(error) else str(error)
        raise ConfigurationError(
            f"{ca}, {certificate} and {key} under [cluster.tls] cannot be used "
            f"together: {reason}; they must be PEM files without a password"
        ) from error
    return security


def await_worker(client: Client, scheduler: str, note: Callable[[str], None]) -> None:
    """Wait until a scheduler that runs elsewhere has a worker.

    Args:
        client: Client of the scheduler.
        scheduler: Its address, for messages.
        note: Told that there is something to wait for.

    Raises:
        ConfigurationError: There is still none after `WORKER_SECONDS`.
    """
    if client.scheduler_info(n_workers=-1)["workers"]:
        return
    note(f"{scheduler} has no workers; waiting {WORKER_SECONDS:g} s for the first")
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError as error:
        raise ConfigurationError(
            f"the Dask scheduler at {scheduler} has no workers; start some with `dask worker "
            f"{scheduler} --nthreads 1` and run the same command again, or leave --scheduler out "
            "to use this machine"
        ) from error


def pick_resources(client: Client) -> dict[str, float] | None:
    """Return the resources that a task should ask for which is best off on a GPU.

    Args:
        client: Client of the workers.

    Returns:
        A GPU if any worker declares one, else None.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return dict(GPU) if any(each["resources"].get("GPU") for each in workers) else None


def _await_address(path: Path | None, note: Callable[[str], None]) -> str:
    """Read the address in a scheduler file, which may still have to be written."""
    assert path is not None
    address = _read_address(path)
    if address is None:
        note(f"waiting up to {FILE_SECONDS:g} s for a scheduler to write {path}")
    deadline = time.monotonic() + FILE_SECONDS
    while address is None and time.monotonic() < deadline:
        time.sleep(0.1)
        address = _read_address(path)
    if address is not None:
        return address
    if not path.exists():
        raise ConfigurationError(
            f"there is no scheduler file {path}; start a scheduler with: dask scheduler "
            f"--scheduler-file {path}"
        )
    raise ConfigurationError(
        f"{path} is no scheduler file: it should be JSON with the scheduler's address; remove it "
        f"and start a scheduler with: dask scheduler --scheduler-file {path}"
    )


def _read_address(path: Path) -> str | None:
    """Address in a scheduler file; None if it is missing or half written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the scheduler file {path}: {error.strerror}"
        ) from error
    address = content.get("address") if isinstance(content, dict) else None
    return address if isinstance(address, str) and address else None


def _check_scheduler(address: str, settings: ClusterSettings, security: Security) -> None:
    """Check that a scheduler answers: Dask's client would wait for ever for another program."""
    if address.startswith("tls://") and getattr(security, "tls_ca_file", None) is None:
        raise ConfigurationError(
            f"{address} is encrypted; name the certificates under [cluster.tls]: ca, certificate "
            "and key"
        )
    try:
        kind = asyncio.run(_ask_kind(address, security))
    except _LOST as error:
        raise ConfigurationError(_explain(error, address, settings)) from error
    if kind != "Scheduler":
        raise ConfigurationError(
            f"{address} is a Dask {str(kind).lower()}, no scheduler; give the address that `dask "
            "scheduler` prints"
        )


async def _ask_kind(address: str, security: Security) -> object:
    async def ask() -> object:
        arguments = security.get_connection_args("client")
        async with rpc(address, connection_args=arguments, timeout=CONNECT_SECONDS) as there:
            return (await there.identity()).get("type")

    # longer than Dask waits, whose own error knows more, but for a program of another kind
    return await asyncio.wait_for(ask(), CONNECT_SECONDS + GRACE_SECONDS)


def _explain(error: BaseException, address: str, settings: ClusterSettings) -> str:
    """Say why there is no talking to an address, and what to do."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    refusal = next((each for each in causes if isinstance(each, ssl.SSLError)), None)
    if refusal is not None:
        return (
            f"{address} and this program do not accept each other's certificates "
            f"({refusal.reason or refusal}); those under [cluster.tls] must be signed by the same "
            "authority as the scheduler's"
        )
    reset = any(isinstance(each, ConnectionResetError) for each in causes)
    if reset and not address.startswith("tls://"):
        return (
            f"{address} closes the connection; if a scheduler with TLS runs there, write tls:// "
            "and name the certificates under [cluster.tls]"
        )
    told = [each.strerror for each in causes if isinstance(each, OSError) and each.strerror]
    if not told and isinstance(error, OSError):
        told = _ask_system(address)
    if told:
        reason = told[-1]
    elif isinstance(error, TimeoutError):
        reason = "no answer"
    else:
        reason = "something else listens there" if isinstance(error, MemoryError) else str(error)
    if settings.scheduler_file is not None:
        return (
            f"no Dask scheduler answers at {address} ({reason}), which {settings.scheduler_file} "
            "names: it was left by one that is gone; remove the file and start a scheduler with: "
            f"dask scheduler --scheduler-file {settings.scheduler_file}"
        )
    return (
        f"no Dask scheduler answers at {address} ({reason}); start one with `dask scheduler`, or "
        "leave --scheduler out to use this machine"
    )


def _ask_system(address: str) -> list[str]:
    """Return why there is no connection, if so: Dask forgets it where its time ends meanwhile."""
    try:
        with socket.create_connection(parse_host_port(address.rpartition("://")[2]), timeout=1):
            return []
    except ValueError:
        return []
    except OSError as error:
        return [error.strerror] if error.strerror else []


def _warn_of_clear_text(address: str, note: Callable[[str], None]) -> None:
    if address.startswith("tls://"):
        return
    host, _ = parse_host_port(address.rpartition("://")[2])
    if not is_loopback(host):
        note(
            f"{address} is reached without encryption: whoever reaches it too can run programs as "
            "those who started it; docs/clusters.md tells how to use TLS"
        )


def _await_jobs(client: Client, cluster: SpecCluster, note: Callable[[str], None]) -> None:
    """Wait for the first worker of a job, however long the queue is."""
    noted = time.monotonic() - JOB_NOTE_SECONDS
    while not client.scheduler_info(n_workers=-1)["workers"]:
        check_jobs(cluster)
        if time.monotonic() - noted >= JOB_NOTE_SECONDS:
            noted = time.monotonic()
            note(
                "jobs are submitted; waiting for the first to start (if it does not, the batch "
                "system's queue and logs tell why)"
            )
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=JOB_CHECK_SECONDS)


@dataclass(frozen=True)
class Surroundings:
    """What a worker sees.

    Attributes:
        host: Its machine.
        code: Hash of our own program.
        versions: Versions of Python and of `PROBED_PACKAGES`.
        token: What the driver wrote into the result folder; None if there is no such file.
        problem: Why the worker could not write there itself; None if it could.
    """

    host: str
    code: str
    versions: Mapping[str, str]
    token: str | None
    problem: str | None


def probe_workers(client: Client, folder: Path | None, note: Callable[[str], None]) -> None:
    """Check before the first task that each worker runs this program and sees the result folder.

    Workers that do not answer within `PROBE_SECONDS` are not checked.

    Args:
        client: Client of the workers.
        folder: The result folder; None if tasks write nowhere.
        note: Told of differences that may do no harm.

    Raises:
        ConfigurationError: A worker or the scheduler has not this program or another version of
            it, or a worker has another version of torch, or does not see the folder or cannot
            write there.
        OutputError: The driver cannot write to the folder.
        SchedulerLostError: The scheduler is gone.
    """
    if client.cluster is None:  # else this process started it just now
        _check_scheduler_program(client)
    token = secrets.token_hex(16)
    place = None if folder is None else folder.resolve() / f"{PROBE}{token}"
    try:
        if place is not None:
            try:
                place.write_text(token, encoding="utf-8")
            except OSError as error:
                raise OutputError.from_os_error(error, place) from error
        seen = _ask_workers(client, place, note)
    finally:
        if place is not None:
            place.unlink(missing_ok=True)
    here = look_around(None)
    for address, there in seen.items():
        if client.cluster is None:
            _check_program(f"the worker {address} on {there.host}", here, there)
        if place is not None:
            _check_folder(f"the worker {address} on {there.host}", there, place.parent, token)
    for name in ("python", *PROBED_PACKAGES):
        others = {there.versions[name] for there in seen.values()} - {here.versions[name]}
        if others:
            note(
                f"workers have {name} {' and '.join(sorted(others))}, this program "
                f"{here.versions[name]}: results may differ in their last digits"
            )


def look_around(place: Path | None) -> Surroundings:
    """Say what this process sees, and try to write beside a file.

    Args:
        place: A file in the result folder; None leaves that out.
    """
    token = problem = None
    if place is not None:
        with suppress(OSError, UnicodeDecodeError):
            token = place.read_text(encoding="utf-8")
        answer = place.with_name(f"{place.name}-{secrets.token_hex(8)}")
        try:
            if token is not None:
                answer.write_text(token, encoding="utf-8")
                answer.unlink()
        except OSError as error:
            problem = error.strerror or str(error)
    versions = {name: metadata.version(name).partition("+")[0] for name in PROBED_PACKAGES}
    versions["python"] = ".".join(platform.python_version_tuple()[:2])
    return Surroundings(platform.node(), hash_program(), versions, token, problem)


@lru_cache(maxsize=1)
def hash_program() -> str:
    """Return the hash of our own source: versions in the making share one number.

    It stays what it was when first asked for, as does what this process has imported: workers that
    outlive an update of the program are told apart by it.
    """
    return hash_sources(Path(__file__).resolve().parents[2])


def hash_sources(root: Path) -> str:
    """Return a SHA-256 of the modules of our packages.

    Args:
        root: Folder that holds the packages.
    """
    digest = hashlib.sha256()
    for package in ("irnet", "prototypes", "screening"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _ask_workers(
    client: Client, place: Path | None, note: Callable[[str], None]
) -> dict[str, Surroundings]:
    """Have each worker look around, but for those that do not answer or leave meanwhile.

    What is run like this, not as a task, does not end a worker that cannot import it, and is
    answered by a busy one.
    """

    async def ask(address: str) -> dict[str, Surroundings | BaseException]:
        answering: Awaitable[Any] = client.run(
            look_around, place, workers=[address], on_error="return"
        )
        return await asyncio.wait_for(answering, PROBE_SECONDS)

    async def ask_all() -> list[dict[str, Surroundings | BaseException] | BaseException]:
        return await asyncio.gather(*map(ask, addresses), return_exceptions=True)

    addresses = list(client.scheduler_info(n_workers=-1)["workers"])
    answers = client.sync(ask_all)
    still_there = client.scheduler_info(n_workers=-1)["workers"]
    seen = {}
    for address, answer in zip(addresses, answers, strict=True):
        said = answer.get(address) if isinstance(answer, dict) else answer
        if isinstance(said, Surroundings):
            seen[address] = said
        elif address in still_there and isinstance(said, TimeoutError):
            note(
                f"the worker {address} did not answer within {PROBE_SECONDS:g} s: whether it runs "
                "the same program is not checked"
            )
        elif address in still_there:
            raise ConfigurationError(_explain_missing(f"the worker {address}", said))
    return seen


def _check_scheduler_program(client: Client) -> None:
    """Check that a scheduler that runs elsewhere knows the tasks that it hands on."""
    try:
        there = client.run_on_scheduler(hash_program)
    except OSError as error:
        raise SchedulerLostError(
            f"the Dask scheduler is gone before the first task ({error}); see that it runs, and "
            "run the same command again"
        ) from error
    except Exception as error:
        raise ConfigurationError(_explain_missing("the scheduler", error)) from error
    if there != hash_program():
        raise ConfigurationError(
            "the scheduler runs another version of this program; install the same one there as "
            "here, and restart it"
        )


def _explain_missing(who: str, error: object) -> str:
    return f"{who} cannot run this program ({error}); install the same version there as here"


def _check_program(worker: str, here: Surroundings, there: Surroundings) -> None:
    if there.code != here.code:
        raise ConfigurationError(
            f"{worker} runs another version of this program; install the same one there as here, "
            "and restart it"
        )
    if there.versions["torch"] != here.versions["torch"]:
        raise ConfigurationError(
            f"{worker} has torch {there.versions['torch']}, this program {here.versions['torch']}: "
            "their results differ; install the same version there as here"
        )


def _check_folder(worker: str, there: Surroundings, folder: Path, token: str) -> None:
    if there.token != token:
        raise ConfigurationError(
            f"{worker} does not see the folder {folder}; put it on a file system that all workers "
            "share, under the same path"
        )
    if there.problem is not None:
        raise ConfigurationError(
            f"{worker} cannot write to {folder}: {there.problem}; see to its permissions and space"
        )
