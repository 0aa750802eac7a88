"""A table and a sweep on a local Ray cluster of two nodes, of which one is killed: it loses nothing but the epoch that it was in."""

import time
from pathlib import Path

import pytest

from latency import LatencyTable, check
from lathe import cli, profiling, searching
from search import SearchError, spaces
from search.cluster import Cluster

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the extra ray is not installed")

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
"""
EPOCHS = ("--set", "pretrain_epochs=1", "--set", "search_epochs=12", "--set", "finetune_epochs=1")


ROOM = {"num_cpus": 1, "resources": {"gpu_type:h100": 1}}


@pytest.fixture(scope="module")
def nodes():
    """A head that takes no tasks, and a node that does; the head soon notices when that one is gone."""
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_failure_threshold": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": health})
        second = cluster.add_node(**ROOM)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, second
        cluster.shutdown()


@pytest.fixture(autouse=True)
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


@pytest.mark.usefixtures("nodes")
def test_a_table_is_measured_in_shards_and_merged():
    words = "profile net.py:make --input 3x8x8 --backend simulated:seed=0 --networks 8 --engine ray --shards 2 --out t.latency.jsonl"
    with pytest.raises(
        SearchError, match=r"no node of the Ray cluster has CPU=1, gpu_type:a100=1; its nodes have CPU, gpu_type:h100"
    ):
        list(profiling.profile(cli.parse([*words.split(), "--resources", "gpu_type:a100"])))
    events = list(profiling.profile(cli.parse([*words.split(), "--resources", "gpu_type:h100"])))
    assert sorted(event.shard for event in events) == ["1-of-2", "2-of-2"]
    table = LatencyTable.load("t.latency.jsonl")
    assert {row.status for row in table.rows} == {"ok"}
    assert {row.kind for row in table.rows} == {"block", "network", "overhead", "sentinel"}
    blocks = spaces.get("net.py:make", input_shape=(3, 8, 8)).blocks()
    assert [found.problem for found in check.check(table, [spec.key for spec in blocks])] == [
        "not measured"
    ]  # but simulated: none missing


def history(run: Path) -> bytes:
    return (run / "history.jsonl").read_bytes() if (run / "history.jsonl").exists() else b""


@pytest.mark.usefixtures("nodes")
def test_a_sweep_that_no_node_has_room_for_is_not_begun():
    words = "sweep uniform --module net.py:make --input 3x8x8 --budget-fraction 0.6 --engine ray --gpus-per-run 1 --out sweep"
    with pytest.raises(
        SearchError, match=r"no node of the Ray cluster has CPU=1, GPU=1; its nodes have CPU, gpu_type:h100"
    ):
        list(searching.sweep(cli.parse(words.split())))
    assert not Path("sweep").exists()


def test_a_node_that_is_killed_loses_no_more_than_its_epoch(nodes, monkeypatch):
    cluster, second = nodes
    run, log = Path("sweep/runs/0.6x_seed=0"), Path("sweep/logs/0.6x_seed=0.log")
    before, ended = [], Cluster.ended

    def after_a_kill(self, tasks):
        while history(run).count(b"\n") < 4:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        before.append(history(run))
        cluster.add_node(**ROOM)
        yield from ended(self, tasks)

    monkeypatch.setattr(Cluster, "ended", after_a_kill)
    words = (
        "sweep uniform --module net.py:make --input 3x8x8 --budget-fraction 0.6 --no-measure --engine ray --out sweep"
    )
    (row,) = searching.sweep(cli.parse([*words.split(), *EPOCHS]))
    assert (row.name, row.status) == (run.name, "finished")
    assert b"finetune" not in before[0]
    assert history(run).startswith(before[0])
    assert "epochs are done already; going on" in log.read_text()
