"""The processes of a training on several devices: started, watched and ended together. Needs no torch."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from latency.process import Stopped
from search.errors import SearchError

RANK = "LOCAL_RANK"
"""Environment variable: which of the processes this one is, from 0."""
LOST = 75
"""Exit code of a process that ends because another one has: EX_TEMPFAIL of sysexits.h."""
_GRACE_S = 10.0
_POLL_S = 0.05


class PeerLost(SearchError):
    """Another process of the run has ended, and this one cannot go on alone."""


def is_one() -> bool:
    """Whether this is one of the processes of a training, rather than what starts them."""
    return RANK in os.environ


def is_heard() -> bool:
    """Whether this process is the one that writes and prints."""
    return os.environ.get(RANK, "0") == "0"


def run_lathe(arguments: Sequence[str], devices: int) -> int:
    """Run this program's own command line in several processes; see `run`."""
    return run(command_of(arguments), devices)


def command_of(arguments: Sequence[str]) -> list[str]:
    """This program's command line as that of a process of its own; see `environment`."""
    return [sys.executable, "-P", "-m", "lathe", *arguments]  # -P: nothing is imported from the working directory


def environment(threads: int | None = None, **more: str) -> dict[str, str]:
    """Of such a process: it finds the packages of this one.

    Args:
        threads: of its linear algebra, where the environment says nothing; None leaves that to the process.
        more: further variables.
    """
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    omp = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**omp, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def run(command: Sequence[str], devices: int) -> int:
    """Run one command in several processes, which find each other; only the first one is heard.

    Args:
        command: the program and its arguments.
        devices: number of processes.

    Returns:
        Exit code of the first process.

    Raises:
        SearchError: another process failed; says how.
    """
    with contextlib.ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, devices)]
        processes: list[subprocess.Popen[bytes]] = stack.enter_context(ended_together())
        port = _free_port()
        for rank in range(devices):
            stdin, stdout, stderr = (None, None, None) if rank == 0 else (subprocess.DEVNULL, subprocess.DEVNULL, said[rank - 1])
            processes.append(subprocess.Popen(command, env=_environment(rank, devices, port), stdin=stdin, stdout=stdout, stderr=stderr))
        try:
            codes = _watch(processes)
        except KeyboardInterrupt as stop:  # the first process tells how the run ends
            for process in processes:
                process.send_signal(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
            codes = _watch(processes)
            return codes[0] or 128 + signal.SIGINT
        first = codes[0] or 0
        if (first > 0 and first != LOST) or not any(codes):  # it has said why itself
            return first
        failed = [rank for rank, code in enumerate(codes) if code not in (0, LOST, None)]
        rank = failed[0] if failed else 0
        how = _end(codes[rank], said[rank - 1] if rank else None)
    raise SearchError(f"process {rank + 1} of {devices} {how}: the same command goes on")


def _environment(rank: int, devices: int, port: int) -> dict[str, str]:
    group = {RANK: str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(devices), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DistributedDataParallel advises on speed
    return environment(max(1, (os.cpu_count() or 1) // devices), **quiet, **group)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait for all; where one fails, the others have a while to notice. Returns exit codes, None of those that did not end."""
    deadline: float | None = None
    while None in (codes := [process.poll() for process in processes]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return codes


@contextlib.contextmanager
def ended_together() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that do not outlive this block, however it ends."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end(code: int | None, said: IO[bytes] | None) -> str:
    """How a process ended, in words: its own last line where it has one."""
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines: list[str] = []
    if said is not None:
        said.seek(0)
        lines = said.read().decode(errors="replace").strip().splitlines()
    return f"failed ({lines[-1]})" if lines else f"ended with exit code {code}"
