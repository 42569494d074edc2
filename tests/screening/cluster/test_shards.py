from __future__ import annotations

from pathlib import Path

from distributed import Client, LocalCluster

from screening.cluster.shards import screen_shard_on_worker
from screening.enumerate import describe_grid, open_spaces, plan_shards
from screening.folder import Receipt, RunFolder
from screening.model_library import load_model
from screening.shard_tasks import ShardTask


def test_receipts_name_the_worker_as_the_scheduler_does(tiny_model: Path, tmp_path: Path) -> None:
    (space,), _ = open_spaces(["B2"], ["Li,Na,F"])
    (shard,) = grid = plan_shards([space], 100)
    folder = RunFolder(tmp_path)
    (tmp_path / "shards").mkdir()
    folder.write_manifest({"campaign": {"prototypes": {"B2": ""}}, "grid": describe_grid(grid)})
    task = ShardTask(
        shard, space, str(tiny_model), load_model(tiny_model).content_hash, "cpu", "fp32", None,
        tmp_path, campaign=folder.campaign,
    )  # fmt: skip
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        receipt = client.submit(screen_shard_on_worker, task, 0).result()
        (worker,) = client.scheduler_info()["workers"].values()
        assert receipt.worker == str(worker["name"])
    found = folder.read_receipt(shard)
    assert isinstance(found, Receipt)
    assert found == receipt
