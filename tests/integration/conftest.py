"""One small real pass through every stage, shared by the tests of this folder: measured, trained and exported once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

QUICK = ("--pretrain-epochs", "2", "--search-epochs", "2", "--finetune-epochs", "2")
"""Enough epochs to go through every phase; too few to say anything of accuracy."""

Lathe = Callable[..., subprocess.CompletedProcess[str]]


def run_lathe(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`lathe ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "lathe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict:
    """What a command printed with --json."""
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def table(work: Path) -> Path:
    path = work / "cpu.latency.jsonl"
    done = run_lathe("profile", "repvgg-mini", "--protocol", "fast", "--networks", "8", "--out", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def search_command(table: Path) -> tuple[object, ...]:
    return ("search", "pas", "--space", "repvgg-mini", "--table", table, "--data", "digits", "--budget-fraction", "0.6", *QUICK)


@pytest.fixture(scope="session")
def run(work: Path, search_command: tuple[object, ...]) -> Path:
    done = run_lathe(*search_command, "--out", work / "run")
    assert done.returncode == 0, done.stderr
    return work / "run"


@pytest.fixture(scope="session")
def bundle(work: Path, run: Path) -> Path:
    done = run_lathe("export", run, "--target", "onnxruntime", "--protocol", "fast", "--out", work / "bundle", "--json")
    assert done.returncode in (0, 1), done.stderr  # a busy machine may miss the budget; the outputs must agree anyway
    return work / "bundle"
