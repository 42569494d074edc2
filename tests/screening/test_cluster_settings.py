from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from screening.cluster_settings import (
    ClusterSettings,
    ClusterType,
    TlsSettings,
    read_cluster,
    replace_place,
    write_cluster,
)
from screening.errors import ConfigurationError

JOB = {"type": "slurm", "cores": 4, "memory": "16GB"}
TLS = {"ca": "ca.pem", "certificate": "a.pem", "key": "a.key"}


def test_without_anything_workers_are_of_this_machine_and_the_dashboard_is_on_loopback() -> None:
    settings = read_cluster({}, "c.toml")
    assert settings == ClusterSettings()
    assert settings.type is ClusterType.LOCAL
    assert settings.dashboard.startswith("127.0.0.1:")
    assert not settings.is_elsewhere
    assert write_cluster(settings) == ""


def test_a_table_is_read_with_hyphens_and_with_single_lines() -> None:
    settings = read_cluster(
        {**JOB, "log-directory": "logs", "prologue": "module load x", "tls": TLS}, "c.toml"
    )
    assert settings.log_directory == Path("logs")
    assert settings.prologue == ("module load x",)
    assert settings.tls == TlsSettings(ca=Path("ca.pem"), certificate="a.pem", key="a.key")
    assert settings.is_batch


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"wrkers": 1}, r'unknown key "wrkers" in \[cluster\] of c.toml; did you mean "workers"'),
        ({"tls": {**TLS, "cert": 1}}, r'"cert" in \[cluster.tls\].*did you mean "certificate"'),
        ({"tls": {"ca": "a", "key": "b"}}, "tls.certificate is missing"),
        ({"tls": "yes"}, "no table of keys; valid keys: ca, certificate, key"),
        (3, "no table of keys; valid keys: type, workers"),
        ({"type": "slum"}, 'type = "slum" is not one of local, .*did you mean "slurm"'),
        ({"workers": -1}, "workers = -1"),
        ({"memory": "lots"}, 'memory = "lots" is not an amount of memory, such as 16GB'),
        ({"dashboard": "here"}, 'dashboard = "here" is not a host and a port'),
        ({**JOB, "walltime": "2h"}, 'walltime = "2h" is not hours, minutes and seconds'),
        ({**JOB, "prologue": ["a\nb"]}, "must be one line"),
        ({"scheduler": "tcp://a:1", "scheduler_file": "f"}, "exclude each other"),
        ({"scheduler": "tcp://a:1", "workers": 2}, "and workers would start others"),
        ({"scheduler_file": "f", **JOB}, "and type, memory, cores would start others"),
        ({"scheduler": "tcp://a:1", "tls": TLS}, "write tls://a:1 or leave tls out"),
        ({"queue": "q", "jobs": 2}, 'jobs, queue belong to jobs .*type = "slurm"'),
        ({"type": "pbs", "cores": 2}, "pbs needs cores and memory"),
        ({**JOB, "workers": 2}, "slurm takes no workers; give jobs and cores"),
        ({**JOB, "gpus": 2, "jobs": 3}, "give gpus = 1 and jobs = 6"),
        ({"type": "cuda", "workers": 2}, "cuda starts one worker per GPU; say gpus = N"),
        ({"type": "cuda", "gpus": 0}, 'give type = "local"'),
        ({"workers": 1, "gpus": 2}, "gpus = 2 of workers = 1 are too many"),
    ],
)
def test_wrong_tables_are_refused_with_what_to_do(table: object, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        read_cluster(table, "c.toml")


def test_options_take_the_place_of_what_the_table_says() -> None:
    table = read_cluster({**JOB, "dashboard": "127.0.0.1:0", "queue": "q"}, "c.toml")
    assert replace_place(table) == table
    assert replace_place(table, workers=2) == ClusterSettings(workers=2, dashboard="127.0.0.1:0")
    for with_gpus in ({**JOB, "gpus": 1}, {"type": "cuda", "gpus": 4}):
        assert replace_place(read_cluster(with_gpus, "c.toml"), workers=0) == ClusterSettings(
            workers=0
        )
    there = replace_place(table, scheduler="tcp://a:1", dashboard="127.0.0.1:1")
    assert there == ClusterSettings(scheduler="tcp://a:1", dashboard="127.0.0.1:1")


def test_an_option_keeps_what_it_does_not_contradict() -> None:
    here = ClusterSettings(workers=4, gpus=2, memory="2GB")
    assert replace_place(here, workers=3) == here.model_copy(update={"workers": 3})
    assert replace_place(here, workers=1) == ClusterSettings(workers=1, memory="2GB")
    encrypted = read_cluster({"scheduler": "tls://a:1", "tls": TLS}, "c.toml")
    assert replace_place(encrypted, scheduler="tls://b:1").tls == encrypted.tls
    assert replace_place(encrypted, scheduler_file=Path("f")).tls == encrypted.tls


def test_options_that_exclude_each_other_or_are_wrong_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--workers and --scheduler exclude each other"):
        replace_place(ClusterSettings(), workers=1, scheduler="tcp://a:1")
    with pytest.raises(ConfigurationError, match='wrong option: dashboard = "x" is not a host'):
        replace_place(ClusterSettings(), dashboard="x")


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(
    Path
)
of_all = {
    "dashboard": st.sampled_from(["127.0.0.1:0", ":8787", "[::1]:1"]),
    "tls": st.none() | st.builds(TlsSettings, ca=paths, certificate=paths, key=paths),
}
here = st.builds(
    ClusterSettings,
    workers=st.none() | st.integers(3, 99),
    gpus=st.none() | st.integers(0, 3),
    memory=st.none() | st.just("1.5 GiB"),
    local_directory=st.none() | paths,
    **of_all,
)
elsewhere = st.builds(ClusterSettings, scheduler_file=paths, **of_all)
jobs = st.builds(
    ClusterSettings,
    type=st.sampled_from([ClusterType.SLURM, ClusterType.PBS, ClusterType.LSF]),
    cores=st.integers(1, 99),
    memory=st.just("16GB"),
    walltime=st.none() | st.just("10:00:00"),
    queue=st.none() | lines,
    account=st.none() | lines,
    directives=st.lists(lines).map(tuple),
    prologue=st.lists(lines).map(tuple),
    interface=st.none() | lines,
    **of_all,
)


@hypothesis.settings(deadline=None)
@given(here | elsewhere | jobs)
def test_what_is_written_reads_back_the_same(settings: ClusterSettings) -> None:
    table = tomllib.loads(f'prototype = "B2"\n{write_cluster(settings)}').get("cluster", {})
    assert read_cluster(table, "c.toml") == settings


def test_the_recipes_of_the_documentation_are_tables_that_are_read() -> None:
    text = (Path(__file__).parents[2] / "docs/clusters.md").read_text(encoding="utf-8")
    tables = [
        tomllib.loads(block)["cluster"] for block in re.findall(r"```toml\n(.*?)```", text, re.S)
    ]
    assert {read_cluster(table, "docs").type for table in tables} == set(ClusterType)
    named = {key.replace("-", "_") for table in tables for key in table}
    for key in ClusterSettings.model_fields:
        assert key in named or key.replace("_", "-") in text, f"{key} is documented nowhere"


def test_neither_dask_nor_torch_is_loaded() -> None:
    code = (
        "import sys, screening.cluster_settings\n"
        "assert not {'dask', 'distributed', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
