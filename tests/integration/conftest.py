"""One small pass through every stage, shared by the tests of this folder: the commands of README and docs, each run once.

The latencies that a search is given are simulated, as those of a device far slower than this machine: what is searched, and whether a budget
is met, is the same on an idle machine and on a busy one.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from sklearn.datasets import load_digits

from deploy.lowering import LOWERING_VERSION
from latency import BlockSpec, Lowered, Workload, profile
from latency.backends.onnxruntime import OnnxRuntime
from latency.backends.simulated import Simulated, SimulatedNetwork
from latency.lowered import OVERHEAD, overhead_onnx
from latency.protocol import FAST
from lathe import cli
from search import Space, ops, spaces
from search.workloads import workloads

QUICK = ("--pretrain-epochs", "2", "--search-epochs", "2", "--finetune-epochs", "2")
"""Enough epochs to go through every phase; too few to say anything of accuracy."""

Lathe = Callable[..., subprocess.CompletedProcess[str]]


def run_lathe(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`lathe ARGUMENTS`, in this process: one of its own would spend most of its time on imports."""
    words, printed, said = [str(word) for word in arguments], io.StringIO(), io.StringIO()
    with chdir(cwd or Path()), redirect_stdout(printed), redirect_stderr(said), pytest.raises(SystemExit) as stop:
        cli.main(words)
    return subprocess.CompletedProcess(words, stop.value.code or 0, printed.getvalue(), said.getvalue())


def run_module(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m ARGUMENTS` in a process of its own, where a warning is an error."""
    command = [sys.executable, "-P", "-W", "error", "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def result_of(done: subprocess.CompletedProcess[str]) -> dict:
    """What a command printed with --json."""
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""The README and the pages of docs/, by their path."""
GUIDES = ("docs/prune.md", "docs/profile.md", "docs/ship.md")
"""Pages whose commands belong together, on files of their own; a test runs each as a whole."""


def commands_of(page: str, program: str = "lathe") -> list[list[str]]:
    """Every command of a page that begins so, as arguments; the tables that come with Lathe by their whole path."""
    blocks = re.findall(r"```console\n(.*?)```", PAGES[page], re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith(f"{program} ")]
    commands = [shlex.split(line.removeprefix(program), comments=True) for line in lines]
    return [[str(ROOT / word) if word.startswith("profiles/") else word for word in command] for command in commands]


def documented(*words: str, program: str = "lathe") -> list[str]:
    """The command of README and stages that begins with these words."""
    pages = [page for page in PAGES if page not in GUIDES]
    (found,) = (
        command for page in pages for command in commands_of(page, program) if command[: len(words)] == list(words)
    )
    return found


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


class SlowCpu(Simulated):
    """This machine's ONNX Runtime by fingerprint, so that a search's device is the one that its network is exported on; far slower, and as
    fast as a block has multiply-accumulates. Nothing is lowered for it.
    """

    def __init__(self, works: Sequence[Workload]) -> None:
        super().__init__()
        real = OnnxRuntime()
        self.name, self.device, self.runtime, self.settings = real.name, real.device, real.runtime, real.settings
        self.works = [replace(work, onnx=overhead_onnx) for work in works]
        self._blocks = {work.key: work.blocks or (work.key,) for work in works} | {OVERHEAD: ()}

    def compile(self, model: bytes | Lowered) -> SimulatedNetwork:
        blocks = map(BlockSpec.parse, self._blocks[Lowered.of(model).key])
        return SimulatedNetwork(self, 10.0 + sum(ops.counts(spec).macs / 500 for spec in blocks))


def slow_table(path: Path, space: str | Space) -> Path:
    """The table of a space on the slow CPU."""
    space = spaces.get(space) if isinstance(space, str) else space
    device = SlowCpu(workloads(space, networks=8))
    for _ in profile(device.works, device, path, protocol=FAST, lowering=LOWERING_VERSION, space=space.name):
        pass
    return path


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of all workers of this run of the tests."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    path.mkdir(exist_ok=True)
    return path


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """What the first worker that asks for it makes; the others wait for it."""
    with FileLock(f"{path}.lock"):
        if not path.exists():
            made = path.with_name(f"making-{path.name}")
            make(made)
            made.rename(path)
    return path


@pytest.fixture(scope="session")
def table(shared: Path, work: Path) -> Path:
    name = documented("profile")[-1]
    path = once(shared / name, lambda path: slow_table(path, "repvgg-mini"))
    shutil.copy(path, work / name)
    return path


@pytest.fixture(scope="session")
def search_command(table: Path) -> list[str]:
    """The README's search with few epochs and the table's whole path, and without where the run goes."""
    command = documented("search", "pas")
    assert command[-2:] == ["--out", "run"]
    return [str(table) if word == table.name else word for word in command[:-2]] + list(QUICK)


@pytest.fixture(scope="session")
def run(shared: Path, work: Path, search_command: list[str]) -> Path:
    def search(out: Path) -> None:
        done = run_lathe(*search_command, "--out", out)
        assert done.returncode == 0, done.stderr

    return Path(shutil.copytree(once(shared / "run", search), work / "run"))


@pytest.fixture(scope="session")
def bundle(shared: Path, work: Path, run: Path) -> Path:
    def export(out: Path) -> None:
        command = documented("export", "run")
        assert command[-2:] == ["--out", "bundle"]
        done = run_lathe(*command[:-1], out, "--protocol", "fast", cwd=run.parent)
        assert done.returncode == 0, done.stderr

    return Path(shutil.copytree(once(shared / "bundle", export), work / "bundle"))


@pytest.fixture(scope="session")
def few_digits(shared: Path) -> str:
    """Twelve images of each digit, as `--data` takes them: enough for every step of a search."""

    def write(path: Path) -> None:
        digits = load_digits()
        for label in range(10):
            (path / str(label)).mkdir(parents=True)
            for index, image in enumerate(digits.images[digits.target == label][:12]):
                Image.fromarray(np.kron(image * 15.9, np.ones((4, 4))).astype(np.uint8)).save(
                    path / str(label) / f"{index}.png"
                )

    return f"folder:{once(shared / 'digits', write)}"
