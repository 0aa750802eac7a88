"""Tasks of a cluster, on one that runs each where it is submitted; `tests/integration/test_ray.py` has a real one."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from latency.errors import MissingExtra
from search import SearchError, cluster
from search.cluster import Cluster, last_words, run_lathe


class FakeRay:
    """What is used of Ray, with two nodes; a task that raises was lost with its node."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self) -> None:
        self.connected, self.options_seen = False, []

    def init(self, *, address, **_):
        if address != "auto":
            raise ConnectionError(f"nothing\nat {address}")
        self.connected = True

    def shutdown(self):
        self.connected = False

    def nodes(self):
        return [
            {"Alive": True, "Resources": {"CPU": 8.0, "node:10.0.0.1": 1.0, "memory": 1.0}},
            {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "gpu_type:h100": 1.0}},
            {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
        ]

    def remote(self, function):
        def options(**given):
            self.options_seen.append(given)
            return SimpleNamespace(remote=lambda *arguments: (function, arguments))

        return SimpleNamespace(options=options)

    def wait(self, tasks, *, num_returns):
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task):
        function, (after, run, arguments) = task
        try:
            return function(None if after is None else self.get(after), run, arguments)
        except OSError as error:
            raise self.exceptions.RayError(f"the node\nwas lost: {error}") from error


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_tasks_end_with_their_codes_and_what_ray_gave_up_says_why(ray):
    def lost(_):
        raise OSError("9")

    with Cluster() as found:
        assert ray.connected
        first = found.submit("a", int, 3, needs={"CPU": 2, "GPU": 0.5, "gpu_type:h100": 1})
        tasks = {
            "a": first,
            "b": found.submit("b", lost, 0, needs={"CPU": 1}),
            "c": found.submit("c", int, 0, needs={}, after=first),
        }
        assert list(found.ended(tasks)) == [("a", 3, ""), ("b", 1, "the node was lost: 9"), ("c", 0, "")]
    assert not ray.connected
    assert ray.options_seen[0] == {
        "name": "a", "num_cpus": 2, "num_gpus": 0.5, "resources": {"gpu_type:h100": 1}, "scheduling_strategy": "SPREAD"
    }  # fmt: skip


def test_what_no_living_node_has_is_refused(ray):
    with Cluster() as found:
        found.require_resources({"CPU": 8})
        found.require_resources({"CPU": 2, "GPU": 1, "gpu_type:h100": 1})
        with pytest.raises(
            SearchError,
            match=r"^no node of the Ray cluster has CPU=4, GPU=1; its nodes have CPU, GPU, gpu_type:h100: ask",
        ):
            found.require_resources({"CPU": 4, "GPU": 1})


def test_without_ray_or_a_cluster_one_line_says_so(ray, monkeypatch):
    with pytest.raises(
        SearchError,
        match=r"^there is no Ray cluster at here:1 \(nothing at here:1\): start one with `ray start --head`$",
    ):
        Cluster("here:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"^this needs the package 'ray': pip install .*\[ray\]"):
        Cluster()


def test_a_command_runs_where_it_is_told_and_its_log_keeps_what_it_says(tmp_path):
    log = tmp_path / "log"
    assert run_lathe(["table", "show", "none.jsonl"], log, tmp_path) == 2
    assert last_words(log, 2).startswith("none.jsonl does not exist: ")
    log.write_text("")
    assert last_words(log, -9) == "ended with exit code -9"


def alive(pid: int) -> bool:
    """Whether a process runs, which may not be taken note of yet after its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="a process ends with its parent on Linux alone")
def test_a_command_does_not_outlive_what_runs_it(tmp_path):
    """Otherwise it would write into the run that Ray starts again elsewhere."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(cluster.__file__).parents[1])!r})
from pathlib import Path
from search import cluster
cluster.command_of = lambda words: [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
cluster.run_lathe([], Path("pid"), Path())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    while not (tmp_path / "pid").exists() or not (pid := (tmp_path / "pid").read_text()).endswith("\n"):
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(pid))
