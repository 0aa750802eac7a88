"""TensorRT-RTX engines built in processes of their own, while this one is timing on the GPU.

A process of its own does not hold this one's interpreter while it builds, and a builder that dies takes nothing with
it: what it was building has failed, and the next one starts. A process ends with its standard input, so none outlives
its parent.
"""

import os
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from latency.errors import BuildFailed, LatencyError

if TYPE_CHECKING:
    from latency.backends.tensorrt import EngineSpec

_HEAD = 8  # bytes of a message's length
_GRACE_S = 10.0


class Builders:
    """Builds engines ahead. A context manager.

    Args:
        flavour: of TensorRT; one that builds with no GPU.
        spec: of the engines.
        workers: how many processes; None for one less than the machine has cores, at most four: the timing needs a
            core.
    """

    def __init__(self, flavour: str, spec: "EngineSpec", workers: int | None = None) -> None:
        self.workers = workers or max(1, min(4, (os.cpu_count() or 1) - 1))
        self._flavour, self._spec = flavour, msgspec.to_builtins(spec)
        self._threads = ThreadPoolExecutor(self.workers)
        self._own, self._processes = threading.local(), list[subprocess.Popen[bytes]]()
        self._closed, self._starting = False, threading.Lock()

    def submit(self, onnx: bytes) -> Future[bytes]:
        """Build an engine as soon as a process is free.

        The future raises BuildFailed where the build fails or its process dies.
        """
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
        command = [
            sys.executable,
            "-P",
            "-m",
            "latency.backends.builders",
        ]  # -P: nothing is imported from the working directory
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
        with (
            self._starting
        ):  # a process that is just being started must be killed, too: else its whole build is waited for
            self._closed = True
            for process in self._processes:
                process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Exit code of a process that answers no more.

    One that closes its output and lives on must not be waited for without end.
    """
    try:
        return process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _send(stream: BinaryIO | Any, message: dict[str, Any]) -> None:
    data = msgspec.msgpack.encode(message)
    stream.write(len(data).to_bytes(_HEAD, "big") + data)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> dict[str, Any]:
    head = stream.read(_HEAD)
    size = int.from_bytes(head, "big")
    data = stream.read(size)
    if len(head) < _HEAD or len(data) < size:
        raise EOFError
    return msgspec.msgpack.decode(data)


def _work() -> None:
    """Answer every request on standard input with an engine, or with why there is none, on standard output."""
    from latency.backends.tensorrt import EngineSpec, build_engine

    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not stand between the answers
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
        _work()
        code = 0
    finally:
        # Threads of TensorRT that outlive a build call its logger, which is Python: one that does so while the
        # interpreter is being torn down waits for ever, and the process with it. So nothing is torn down.
        os._exit(code)
