"""TensorRT-RTX engines built in worker processes while this one measures on the GPU.

A worker process does not hold this process's interpreter lock while it builds. If a builder crashes, only its current
build fails, and the next one starts a new process. A worker ends with its standard input, so none outlives its parent.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import msgspec

from latency.backends.engines import EngineSpec, build_engine
from latency.errors import BuildFailed, LatencyError

_HEAD = 8  # bytes of a message's length
_GRACE_S = 10.0


class Builders:
    """Builds engines ahead in worker processes. A context manager.

    Args:
        flavour: flavour of TensorRT that builds without a GPU.
        spec: specification of the engines.
        workers: number of processes; None for one less than the machine has cores, at most four, as measuring needs a
            core.
    """

    def __init__(self, flavour: str, spec: EngineSpec, workers: int | None = None) -> None:
        self.workers = workers or max(1, min(4, (os.cpu_count() or 1) - 1))
        self._flavour, self._spec = flavour, msgspec.to_builtins(spec)
        self._threads = ThreadPoolExecutor(self.workers)
        self._own, self._processes = threading.local(), list[subprocess.Popen[bytes]]()
        self._closed, self._starting = False, threading.Lock()

    def submit(self, onnx: bytes) -> Future[bytes]:
        """Build an engine as soon as a worker is free; the future raises BuildFailed if that fails."""
        return self._threads.submit(self._build, onnx)

    def _build(self, onnx: bytes) -> bytes:
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is None or process.poll() is not None:
            process = self._own.process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, {"flavour": self._flavour, "spec": self._spec, "onnx": onnx})
            answer = _receive(process.stdout)
        except (OSError, EOFError) as error:
            raise BuildFailed(f"the builder died with exit code {_end(process)}") from error
        if "error" in answer:
            raise BuildFailed(answer["error"])
        return answer["engine"]

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        # -P: nothing is imported from the working directory
        command = [sys.executable, "-P", "-m", "latency.backends.builders"]
        with self._starting:
            if self._closed:
                raise BuildFailed("the builders are closed")
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
            self._processes.append(process)
        return process

    def __enter__(self) -> "Builders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._starting:  # also kill a starting process: else its whole build is waited for
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Return the exit code of a process that stopped answering; kill it if it does not exit."""
    try:
        return process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _send(stream: IO[bytes], message: dict[str, Any]) -> None:
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(_HEAD, "big") + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> dict[str, Any]:
    head = stream.read(_HEAD)
    size = int.from_bytes(head, "big")
    data = stream.read(size)
    if len(head) < _HEAD or len(data) < size:
        raise EOFError
    return msgspec.msgpack.decode(data)


def _serve() -> None:
    """Answer every request on standard input with an engine or an error on standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # prints of libraries must not mix with the answers
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            engine = build_engine(request["onnx"], request["flavour"], msgspec.convert(request["spec"], EngineSpec))
            _send(answers, {"engine": engine})
        except LatencyError as error:
            _send(answers, {"error": str(error)})


if __name__ == "__main__":
    code = 1
    try:
        _serve()
        code = 0
    finally:
        # Threads of TensorRT that outlive a build call its logger, which is Python: one that does so while the
        # interpreter is being torn down waits for ever, and the process with it. So nothing is torn down.
        os._exit(code)
