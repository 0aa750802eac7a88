"""What compiles a network for a device and runs it against the clock."""

import os
import typing
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Literal

from latency.device import Device, Runtime
from latency.errors import LatencyError
from latency.lowered import Lowered
from latency.measure import Timed
from latency.monitor import Monitor
from latency.rows import Recording

KNOWN = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch-cuda", "replay", "simulated")


@typing.runtime_checkable
class Compiled(Timed, typing.Protocol):
    """A compiled network, whose `run` raises RunFailed where the runtime refuses.

    At the end of its context it releases what it holds.
    """

    def __enter__(self) -> "Compiled": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@typing.runtime_checkable
class Backend(typing.Protocol):
    """A compiler and runtime on one device, at one precision."""

    @property
    def name(self) -> str:
        """The name that `get` knows it by."""
        ...

    @property
    def device(self) -> Device:
        """Where it runs."""
        ...

    @property
    def runtime(self) -> Runtime:
        """What runs there, with its version."""
        ...

    @property
    def precision(self) -> Literal["fp32", "fp16"]:
        """Precision of the networks that it is given; it is in their graph."""
        ...

    @property
    def settings(self) -> Mapping[str, str]:
        """What else decides which code runs, by name; part of a table's fingerprint."""
        ...

    @property
    def monitor(self) -> Monitor | None:
        """Watches the device; None where there is nothing to read."""
        ...

    @property
    def clock(self) -> Callable[[], int]:
        """Monotonic nanoseconds in the device's world, where a simulated one has its own time."""
        ...

    def compile(self, model: bytes | Lowered) -> Compiled:
        """Compile a network of static shape: serialized ONNX, or all that it was lowered to.

        Raises:
            BuildFailed: the compiler refuses.
        """
        ...


@typing.runtime_checkable
class Builds(typing.Protocol):
    """Compiles ahead, with as many `workers` as it has."""

    workers: int

    def submit(self, onnx: bytes) -> Future[bytes]:
        """What the backend's `load` takes, when it is ready; raises BuildFailed where the compiler refuses."""
        ...


@typing.runtime_checkable
class BuildsApart(Backend, typing.Protocol):
    """A backend that can compile without its device, so that it is at it while something else is timed there."""

    def builders(self) -> AbstractContextManager[Builds] | None:
        """What compiles ahead; None where here and now it cannot be done apart."""
        ...

    def load(self, engine: bytes) -> Compiled:
        """Make what was compiled ready to run.

        Raises:
            RunFailed: the runtime refuses it.
        """
        ...


@typing.runtime_checkable
class Replays(Backend, typing.Protocol):
    """A backend that measures nothing, but repeats what a table has recorded."""

    @property
    def recording(self) -> Recording:
        """Which table."""
        ...


def get(
    name: str,
    *,
    threads: int = 1,
    precision: Literal["fp32", "fp16"] | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
) -> Backend:
    """A backend by its name.

    Args:
        name: one of `KNOWN`. `onnxruntime:cuda` is ONNX Runtime with another execution provider, `replay:PATH` a table
            as a device, `simulated:seed=1,noise=0.01` a device that does not exist, with its settings.
        threads: of a CPU runtime; GPU runtimes have none.
        precision: of the networks to come; None for the backend's own choice (fp32 on a CPU, fp16 on a GPU).
        timing_cache: file of TensorRT's timing cache; other backends have none.

    Raises:
        LatencyError: there is none of that name, or it does not do that; lists what is known.
        MissingExtra: its package is not installed.
        DeviceUnavailable: this machine has no device for it.
    """
    kind, _, detail = name.partition(":")
    if timing_cache is not None and kind != "tensorrt":
        raise LatencyError(f"timing_cache {timing_cache}: backend {name!r} has none: leave it out, or choose tensorrt")
    if detail and kind in ("tensorrt", "tensorrt-rtx", "torch-cuda"):
        raise _unknown(name)
    match kind:
        case "onnxruntime":
            from latency.backends.onnxruntime import OnnxRuntime

            return OnnxRuntime(threads=threads, provider=detail or "cpu", precision=precision)
        case "tensorrt" | "tensorrt-rtx":
            from latency.backends.tensorrt import TensorRT

            return TensorRT(kind, precision=precision or "fp16", timing_cache=timing_cache)
        case "torch-cuda":
            from latency.backends.torch_cuda import TorchCuda

            return TorchCuda(precision=precision or "fp16")
        case "replay":
            from latency.backends.replay import Replay

            return Replay(detail, precision=precision)
        case "simulated":
            from latency.backends.simulated import Settings, Simulated

            return Simulated(Settings.parse(detail), precision=precision or "fp32")
        case _:
            raise _unknown(name)


def require_known(name: str) -> None:
    """Check a backend's name, what follows its colon aside, without starting the backend.

    Raises:
        LatencyError: there is none of that name; lists what is known.
    """
    if name.partition(":")[0] not in KNOWN:
        raise _unknown(name)


def _unknown(name: str) -> LatencyError:
    return LatencyError(f"backend {name!r} is unknown: choose one of {', '.join(KNOWN)}")
