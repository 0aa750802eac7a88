"""SIGKILL in the middle, then the same command: nothing measured is lost or repeated, and a search ends in the same weights."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter

from integration.conftest import run_lathe, run_module


def kill_when(condition, arguments, timeout_s: float = 600) -> None:
    """Start `lathe ARGUMENTS` and kill it the moment that a condition holds."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lathe", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_profile_goes_on_after_sigkill(tmp_path, table):
    path = tmp_path / "t.latency.jsonl"
    command = (
        "profile",
        "repvgg-mini",
        "--backend",
        f"replay:{table}",
        "--protocol",
        "fast",
        "--networks",
        "2",
        "--shard",
        "1/12",
        "--out",
        path,
    )
    kill_when(lambda: path.exists() and path.read_bytes().count(b"\n") > 25, command)
    measured_before = path.read_bytes().rpartition(b"\n")[0]
    done = run_module("lathe", *command, "--json")  # measures by the same protocol as the process that was killed
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().startswith(measured_before)
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    again = Counter(row["key"] for row in rows if row["kind"] != "sentinel" and row["status"] == "ok")
    assert max(again.values()) == 1
    counts = json.loads(done.stdout)["rows"]
    assert (
        40
        < counts["block"] + counts["network"]
        == len({row["key"] for row in rows if row["kind"] in ("block", "network")})
    )


def test_search_goes_on_after_sigkill_to_the_same_weights(tmp_path, search_command, few_digits):
    search_command = [few_digits if word == "digits" else word for word in search_command]
    run, out = tmp_path / "whole", tmp_path / "run"
    assert run_lathe(*search_command, "--out", run).returncode == 0
    history = out / "history.jsonl"
    for epochs in (1, 3):  # while pretraining, and while searching
        kill_when(
            lambda epochs=epochs: history.exists() and history.read_bytes().count(b"\n") >= epochs,
            (*search_command, "--out", out),
        )
    done = run_lathe(*search_command, "--out", out)
    assert done.returncode == 0, done.stderr
    for name in ("history.jsonl", "architecture.json", "weights.safetensors", "baseline.safetensors"):
        whole, resumed = (hashlib.sha256((directory / name).read_bytes()).hexdigest() for directory in (run, out))
        assert whole == resumed, name
