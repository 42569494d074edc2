from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from distributed import Client, KilledWorker, LocalCluster
from distributed.client import FutureCancelledError
from joblib import parallel_config

from irnet.baselines import BASELINES, Baseline, fit_baseline
from screening.cluster.grid_search import search_on_workers
from screening.errors import SchedulerLostError, WorkerKilledError

NAMES = [f"f{i}" for i in range(6)]

random = np.random.default_rng(0)
FEATURES = random.normal(size=(200, len(NAMES))).astype(np.float32)
TARGET = FEATURES[:, 0] + np.abs(FEATURES[:, 1]).astype(np.float64)
GROUPS = np.arange(200) // 2


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread each."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as cluster:
        yield cluster


def fit(name: str, n_jobs: int = 1) -> Baseline:
    return fit_baseline(name, FEATURES, TARGET, NAMES, groups=GROUPS, n_jobs=n_jobs)


def count_fits(cluster: LocalCluster) -> int:
    """Settings that were fitted on the workers: joblib joins quick ones and says how many."""
    done = {
        str(key)
        for worker in cluster.workers.values()
        for key, *story in worker.state.log
        if "fit_and_score" in str(key) and story[:2] == ["executing", "memory"]
    }
    return sum(int(re.findall(r"_(\d+)_calls", key)[0]) for key in done)


@pytest.mark.parametrize("name", ["elastic_net", "decision_tree", "svr"])
def test_the_search_runs_on_the_workers_and_chooses_the_same(
    cluster: LocalCluster, name: str
) -> None:
    with Client(cluster) as client, search_on_workers(client) as n_jobs:
        there = fit(name, n_jobs)
    assert count_fits(cluster) == BASELINES[name].grid_points
    here = fit(name)
    assert there.card["search"] == here.card["search"]
    assert there.card["parameters"] == here.card["parameters"]
    np.testing.assert_array_equal(there.predict(FEATURES), here.predict(FEATURES))


def test_outside_nothing_runs_on_the_workers(cluster: LocalCluster) -> None:
    with Client(cluster) as client, search_on_workers(client):
        pass
    with parallel_config("threading"):
        fit("ridge", 2)
    assert count_fits(cluster) == 0


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (KilledWorker("fit", None, 3), WorkerKilledError),
        (FutureCancelledError("fit", "scheduler-connection-lost"), SchedulerLostError),
    ],
)
def test_lost_workers_are_told_apart(
    cluster: LocalCluster, raised: Exception, becomes: type[Exception]
) -> None:
    with (
        Client(cluster) as client,
        pytest.raises(becomes, match=r"--rows|run the same command again"),
        search_on_workers(client),
    ):
        raise raised
