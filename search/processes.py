"""Start, watch and end the processes of a training on several devices. Needs no torch."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

from latency.process import Stopped
from search.errors import SearchError

RANK = "LOCAL_RANK"
"""Environment variable with the index of this process, from 0."""
LOST = 75
"""Exit code of a process that ends because another one ended: EX_TEMPFAIL of sysexits.h."""
_GRACE_S = 10.0
_POLL_S = 0.05


class PeerLost(SearchError):
    """Another process of the run has ended, so this one cannot continue."""


def is_worker() -> bool:
    """Return whether this is one of a training's processes and not their launcher."""
    return RANK in os.environ


def is_main() -> bool:
    """Return whether this process is the one that writes and prints."""
    return os.environ.get(RANK, "0") == "0"


def run_lathe(arguments: Sequence[str], devices: int) -> int:
    """Run a `lathe` command in several processes; see `run`."""
    return run(command_of(arguments), devices)


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return the command of a `lathe` subprocess; see `environment`."""
    return [sys.executable, "-P", "-m", "lathe", *arguments]  # -P: import nothing from the working directory


def environment(threads: int | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a `lathe` subprocess, which finds the packages of this process.

    Args:
        threads: default number of OpenMP threads; None leaves it to the process.
        more: further variables.
    """
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    omp = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**omp, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def run(command: Sequence[str], devices: int) -> int:
    """Run one command in several connected processes; only the output of the first one is shown.

    Args:
        command: the program and its arguments.
        devices: number of processes.

    Returns:
        Exit code of the first process.

    Raises:
        SearchError: another process failed; the message says how.
    """
    with contextlib.ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, devices)]
        processes: list[subprocess.Popen[bytes]] = stack.enter_context(ended_together())
        port = _free_port()
        for rank in range(devices):
            env = _environment(rank, devices, port)
            if rank == 0:
                process = subprocess.Popen(command, env=env)
            else:
                null = subprocess.DEVNULL
                process = subprocess.Popen(command, env=env, stdin=null, stdout=null, stderr=errors[rank - 1])
            processes.append(process)
        try:
            codes = _watch(processes)
        except KeyboardInterrupt as stop:  # the first process reports how the run ends
            for process in processes:
                process.send_signal(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
            codes = _watch(processes)
            return codes[0] or 128 + signal.SIGINT
        main_code = codes[0] or 0
        if (main_code > 0 and main_code != LOST) or not any(codes):  # it has reported its error itself
            return main_code
        failed = [rank for rank, code in enumerate(codes) if code not in (0, LOST, None)]
        rank = failed[0] if failed else 0
        how = _describe_end(codes[rank], errors[rank - 1] if rank else None)
    raise SearchError(f"process {rank + 1} of {devices} {how}: the same command goes on")


def _environment(rank: int, devices: int, port: int) -> dict[str, str]:
    group = {
        RANK: str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # DistributedDataParallel advises on speed
    return environment(max(1, (os.cpu_count() or 1) // devices), **quiet, **group)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait for all processes; if one fails, give the others some time to end.

    Return exit codes, None for those still running.
    """
    deadline: float | None = None
    while None in (codes := [process.poll() for process in processes]):
        if deadline is None and any(codes):
            deadline = time.monotonic() + _GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return codes


@contextlib.contextmanager
def ended_together() -> Generator[list[subprocess.Popen[bytes]], None, None]:
    """Yield a list whose processes are ended with the context, however it ends."""
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


def _describe_end(code: int | None, errors: IO[bytes] | None) -> str:
    """Describe how a process ended, by its last line of output if there is one."""
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines: list[str] = []
    if errors is not None:
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
    return f"failed ({lines[-1]})" if lines else f"ended with exit code {code}"
