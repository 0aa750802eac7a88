"""A search on two devices: processes on this machine's CPU, joined by gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.conftest import run_module

FILES = ("history.jsonl", "architecture.json", "weights.safetensors", "baseline.safetensors")


def command(data: str, out: Path) -> list[str]:
    epochs = ("--pretrain-epochs", "1", "--search-epochs", "1", "--finetune-epochs", "1")
    return [
        *("search", "uniform", "--space", "repvgg-mini", "--data", data, "--budget-fraction", "0.6", *epochs),
        *("--batch", "16", "--devices", "2", "--ema", "0.9", "--json", "--out", str(out)),
    ]


def children(pid: int) -> dict[str, int]:
    """Processes that a process has started, by their number in the run."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {word.partition(b"=")[2].decode(): int(child) for word in words if word.startswith(b"LOCAL_RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of a run by /proc")
def test_a_killed_process_ends_the_run_in_one_line_and_the_same_command_goes_on(tmp_path, few_digits):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run_module("lathe", *command(few_digits, whole))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == str(whole)  # one process alone prints

    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "lathe", *command(few_digits, killed)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    end = time.monotonic() + 600
    while not ((killed / "history.jsonl").exists() and (killed / "history.jsonl").read_bytes().count(b"\n") >= 2):
        assert started.poll() is None, started.stderr
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(children(started.pid)["1"], signal.SIGKILL)
    _, said = started.communicate(timeout=600)
    assert started.returncode == 2
    lines = [line for line in said.decode().splitlines() if line.startswith("lathe: ")]
    assert lines == ["lathe: process 2 of 2 was ended by SIGKILL: the same command goes on"]
    assert "Traceback" not in said.decode()
    assert not (killed / "result.json").exists()

    again = run_module("lathe", *command(few_digits, killed))
    assert again.returncode == 0, again.stderr
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(file.name for file in killed.iterdir()) == sorted(file.name for file in whole.iterdir())
