"""One small real pass through every stage, shared by the tests of this folder: the README's own commands, each run once."""

import json
import re
import shlex
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
    command = [sys.executable, "-P", "-W", "error", "-m", "lathe", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict:
    """What a command printed with --json."""
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


README = (Path(__file__).parents[2] / "README.md").read_text()


def readme_commands() -> list[list[str]]:
    """Every `lathe` command of the README, as arguments."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines() if line.startswith("lathe ")]


def readme(*words: str) -> list[str]:
    """The README's command that begins with these words."""
    (found,) = (command for command in readme_commands() if command[: len(words)] == list(words))
    return found


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def table(work: Path) -> Path:
    done = run_lathe(*readme("profile"), "--networks", "8", cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "cpu.latency.jsonl"


@pytest.fixture(scope="session")
def search_command(table: Path) -> list[str]:
    """The README's search with few epochs and the table's whole path, and without where the run goes."""
    command = readme("search")
    assert command[-2:] == ["--out", "run"]
    return [str(table) if word == table.name else word for word in command[:-2]] + list(QUICK)


@pytest.fixture(scope="session")
def run(work: Path, search_command: list[str]) -> Path:
    done = run_lathe(*search_command, "--out", "run", cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "run"


@pytest.fixture(scope="session")
def bundle(work: Path, run: Path) -> Path:
    done = run_lathe(*readme("export"), "--protocol", "fast", cwd=work)
    assert done.returncode in (0, 1), done.stderr  # a busy machine may miss the budget; the outputs must agree anyway
    return work / "bundle"
