"""Encryption by certificates that are made here, between real programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import dask
import pytest
from distributed import Security

from screening.cluster import client
from screening.cluster.client import connect, probe_workers, read_certificates
from screening.cluster.deployment import make_batch_cluster
from screening.cluster_settings import ClusterSettings, TlsSettings
from screening.errors import ConfigurationError

PATIENCE = 120
"""Seconds after which a test says that something never happened."""

ANYWHERE = "127.0.0.1:0"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")


needs_jobqueue = pytest.mark.skipif(
    find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"
)


def make_certificates(folder: Path) -> TlsSettings:
    """Make an authority, and a certificate that it signed."""
    folder.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl("req", "-x509", *new_key, "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=ca")
    openssl("req", *new_key, "own.key", "-out", "own.csr", "-subj", "/CN=screening")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "own.pem")
    openssl("x509", "-req", "-in", "own.csr", "-days", "2", *signed)
    return TlsSettings(ca=folder / "ca.pem", certificate=folder / "own.pem", key=folder / "own.key")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    """What scheduler and workers have, and who belongs to them."""
    return make_certificates(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> TlsSettings:
    """What somebody else has."""
    return make_certificates(tmp_path_factory.mktemp("tls") / "theirs")


@pytest.fixture(scope="module")
def scheduler(tls: TlsSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of `dask scheduler`, started by hand with TLS, as is its one worker."""
    path = tmp_path_factory.mktemp("scheduler") / "scheduler.json"
    options = [
        "--protocol", "tls", "--host", "127.0.0.1", "--scheduler-file", str(path),
        "--dashboard-address", ANYWHERE, "--tls-ca-file", str(tls.ca),
        "--tls-cert", str(tls.certificate), "--tls-key", str(tls.key),
    ]  # fmt: skip
    dask = [sys.executable, "-m", "dask"]
    programs = [
        subprocess.Popen([*dask, *program, *options], stderr=subprocess.DEVNULL)
        for program in (["scheduler", "--port", "0"], ["worker", "--nthreads", "1", "--no-nanny"])
    ]
    try:
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, "the scheduler never started"
            time.sleep(0.05)
        yield json.loads(path.read_text())["address"]
    finally:
        for program in programs:
            program.kill()
            program.wait()


def assert_refused(settings: ClusterSettings, complaint: str) -> None:
    with (
        pytest.raises(ConfigurationError, match=complaint),
        connect(settings, lambda sentence: None),
    ):
        raise AssertionError("let in")


def test_who_has_the_right_certificate_is_let_in(
    scheduler: str, tls: TlsSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WORKER_SECONDS", PATIENCE)
    assert scheduler.startswith("tls://")
    with connect(ClusterSettings(scheduler=scheduler, tls=tls), lambda sentence: None) as there:
        [worker] = there.scheduler_info(n_workers=-1)["workers"]
        assert worker.startswith("tls://")
        assert there.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        probe_workers(there, tmp_path, pytest.fail)


def test_who_has_none_or_anothers_is_told_so(
    scheduler: str, tls: TlsSettings, foreign: TlsSettings
) -> None:
    assert_refused(
        ClusterSettings(scheduler=scheduler),
        rf"{scheduler} is encrypted; name the certificates under \[cluster.tls\]",
    )
    assert_refused(
        ClusterSettings(scheduler=scheduler.replace("tls://", "tcp://")),
        "closes the connection; if a scheduler with TLS runs there, write tls://",
    )
    for certificates in (foreign, foreign.model_copy(update={"ca": tls.ca})):
        assert_refused(
            ClusterSettings(scheduler=scheduler, tls=certificates),
            "do not accept each other's certificates .*signed by the same authority",
        )


def test_certificates_may_come_from_the_configuration_of_dask(
    scheduler: str, tls: TlsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WORKER_SECONDS", PATIENCE)
    own = {
        "distributed.comm.tls.ca-file": str(tls.ca),
        "distributed.comm.tls.client.cert": str(tls.certificate),
        "distributed.comm.tls.client.key": str(tls.key),
    }
    with (
        dask.config.set(own),
        connect(ClusterSettings(scheduler=scheduler), lambda sentence: None) as there,
    ):
        assert there.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3


def test_local_workers_can_be_encrypted_too(tls: TlsSettings) -> None:
    settings = ClusterSettings(workers=1, tls=tls, dashboard=ANYWHERE)
    with connect(settings, pytest.fail, device="cpu") as here:
        info = here.scheduler_info(n_workers=-1)
        assert info["address"].startswith("tls://127.0.0.1:")
        assert all(worker.startswith("tls://127.0.0.1:") for worker in info["workers"])
        assert here.submit(sum, [1, 2]).result(timeout=PATIENCE) == 3
        stranger = ClusterSettings(scheduler=info["address"])
        assert_refused(stranger, "is encrypted; name the certificates")


@needs_jobqueue
def test_jobs_are_told_where_the_certificates_are(
    tls: TlsSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = tmp_path / "sbatch"
    submit.write_text("#!/bin/sh\nexit 1\n")
    submit.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tls.ca.parent)
    beside = TlsSettings.model_validate(
        {"ca": "ca.pem", "certificate": "own.pem", "key": "own.key"}
    )
    values = {"type": "slurm", "cores": 1, "memory": "2GB", "interface": "lo", "tls": beside}
    settings = ClusterSettings.model_validate({**values, "dashboard": ANYWHERE})
    with make_batch_cluster(settings, read_certificates(beside)) as cluster:
        start = cluster.job_script().splitlines()[-1]  # type: ignore[attr-defined]
    assert "dask_worker tls://127.0.0.1:" in start
    assert f"--tls-ca-file {tls.ca} --tls-cert {tls.certificate} --tls-key {tls.key}" in start


@pytest.mark.parametrize(
    ("part", "content", "complaint"),
    [
        ("key", None, r"cannot read .*key, which is named under \[cluster.tls\]: No such file"),
        ("ca", "no certificate", "cannot be used together: "),
        ("certificate", "", "cannot be used together: "),
    ],
)
def test_files_that_are_no_certificates_are_named(
    part: str, content: str | None, complaint: str, tls: TlsSettings, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{part}"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=complaint):
        read_certificates(tls.model_copy(update={part: path}))


def test_the_key_of_another_certificate_is_named(tls: TlsSettings, foreign: TlsSettings) -> None:
    with pytest.raises(ConfigurationError, match="the key is not the certificate's"):
        read_certificates(tls.model_copy(update={"key": foreign.key}))


def test_without_certificates_there_is_no_encryption() -> None:
    security = read_certificates(None)
    assert isinstance(security, Security)
    assert not security.require_encryption
