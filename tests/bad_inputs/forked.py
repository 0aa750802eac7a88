"""Runs a command line in a forked child of a process that has imported everything: a case costs what its command does, and no import.

The parent computes nothing: a fork of a process whose thread pools were in use may wait for threads that it does not have.
"""

import gc
import importlib
import os
import resource
import signal
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MEMORY_BYTES = 4 * 2**30
CPU_S = 60
WALL_S = 600.0
FILE_BYTES = 2**30

WARM = (
    "lathe.cli",
    "lathe.exporting",
    "lathe.predicting",
    "lathe.profiling",
    "lathe.searching",
    "lathe.render",
    "lathe.__main__",
    "latency.__main__",
    "latency.plot",
    "latency.blocks_zip",
    "latency.backends.simulated",
    "latency.backends.onnxruntime",
    "latency.backends.replay",
    "deploy",
    "deploy.pipeline",
    "search.report",
    "deploy.verify",
    "torch",
    "onnx",
    "onnxruntime",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "jinja2",
    "PIL.Image",
    "search.data",
    "search.methods.pas",
    "search.spaces",
    "rich.progress",
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `changed` names what it left or changed in its directory."""

    code: int | str
    stdout: str
    stderr: str
    changed: tuple[str, ...]
    wall_s: float


def warm() -> None:
    """Import all that the commands do."""
    for name in WARM:
        importlib.import_module(name)
    gc.freeze()  # else a child that collects garbage copies every page of what was imported


def run(program: str, argv: list[str | bytes], here: Path, out: Path) -> Outcome:
    """Run a command line in the directory `here`, with its output in files of the directory `out`."""
    before, began = _snapshot(here), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(program, [os.fsdecode(word) for word in argv], here, out)
    code = _wait(pid, began + WALL_S)
    said = {name: (out / name).read_bytes().decode(errors="backslashreplace") for name in ("stdout", "stderr")}
    after = _snapshot(here)
    changed = tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))
    return Outcome(code, said["stdout"], said["stderr"], changed, time.monotonic() - began)


def _child(program: str, argv: list[str], here: Path, out: Path) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(here)
        for descriptor, path in ((0, Path(os.devnull)), (1, out / "stdout"), (2, out / "stderr")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        for what, limit in (
            (resource.RLIMIT_AS, used + MEMORY_BYTES),
            (resource.RLIMIT_CPU, CPU_S),
            (resource.RLIMIT_FSIZE, FILE_BYTES),
        ):
            resource.setrlimit(what, (limit, limit))
        code = _main(program, argv)
    except BaseException:  # noqa: BLE001 -- it is what the parent looks for
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _main(program: str, argv: list[str]) -> int:
    if program == "latency":
        from latency.__main__ import main as latency

        try:
            return latency(argv)
        except SystemExit as stop:  # of argparse
            return int(stop.code or 0)
    from lathe import cli

    try:
        cli.main(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("lathe leaves by SystemExit")


def _wait(pid: int, end: float) -> int | str:
    pause_s = 0.002
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else f"killed by {signal.Signals(-code).name}"
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hangs"
        time.sleep(pause_s := min(0.05, pause_s * 1.3))


def _snapshot(directory: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        found[str(path.relative_to(directory))] = (
            (kind,) if stat.S_ISDIR(status.st_mode) else (kind, status.st_size, status.st_mtime_ns)
        )
    return found
