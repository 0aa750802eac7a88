"""Backends: they compile networks for a device and measure their latency."""

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
    """A compiled network. Its `run` raises RunFailed if the runtime refuses; its context frees its resources."""

    def __enter__(self) -> "Compiled": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@typing.runtime_checkable
class Backend(typing.Protocol):
    """A compiler and runtime on one device, at one precision."""

    @property
    def name(self) -> str:
        """Name, as given to `get`."""
        ...

    @property
    def device(self) -> Device:
        """Device that networks run on."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Runtime and its version."""
        ...

    @property
    def precision(self) -> Literal["fp32", "fp16"]:
        """Precision of the networks to compile; their graphs have it already."""
        ...

    @property
    def settings(self) -> Mapping[str, str]:
        """Other settings that select code, by name; part of a table's fingerprint."""
        ...

    @property
    def monitor(self) -> Monitor | None:
        """Monitor of the device; None if there is nothing to read."""
        ...

    @property
    def clock(self) -> Callable[[], int]:
        """Clock in monotonic nanoseconds; a simulated device has its own time."""
        ...

    def compile(self, model: bytes | Lowered) -> Compiled:
        """Compile a network of static shape: serialized ONNX, or all of its lowered forms.

        Raises:
            BuildFailed: the compiler refuses the network.
        """
        ...


@typing.runtime_checkable
class EngineBuilder(typing.Protocol):
    """Builds engines ahead of time, `workers` at once."""

    workers: int

    def submit(self, onnx: bytes) -> Future[bytes]:
        """Build an input of the backend's `load`; the future raises BuildFailed if the compiler refuses the network."""
        ...


@typing.runtime_checkable
class BuildsApart(Backend, typing.Protocol):
    """A backend that can compile without its device, while something else is measured there."""

    def builders(self) -> AbstractContextManager[EngineBuilder] | None:
        """Return builders for ahead-of-time builds; None if builds need the device on this machine."""
        ...

    def load(self, engine: bytes) -> Compiled:
        """Load what was built.

        Raises:
            RunFailed: the runtime refuses it.
        """
        ...


@typing.runtime_checkable
class Replays(Backend, typing.Protocol):
    """A backend that measures nothing but replays a recorded table."""

    @property
    def recording(self) -> Recording:
        """The recorded table."""
        ...


def get(
    name: str,
    *,
    threads: int = 1,
    precision: Literal["fp32", "fp16"] | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
) -> Backend:
    """Return a backend by name.

    Args:
        name: one of `KNOWN`. `onnxruntime:cuda` is ONNX Runtime with another execution provider, `replay:PATH` replays
            a table, `simulated:seed=1,noise=0.01` is a simulated device with its settings.
        threads: threads of a CPU runtime; GPU runtimes have none.
        precision: precision of the networks; None for the backend's default (fp32 on a CPU, fp16 on a GPU).
        timing_cache: file of TensorRT's timing cache; other backends have none.

    Raises:
        LatencyError: the name is unknown, or the backend lacks what is asked for; lists the known names.
        MissingExtra: the backend's package is not installed.
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
            from latency.backends.simulated import Simulated, SimulatedSettings

            return Simulated(SimulatedSettings.parse(detail), precision=precision or "fp32")
        case _:
            raise _unknown(name)


def require_known(name: str) -> None:
    """Require a known backend name, ignoring the part after its colon, without starting the backend.

    Raises:
        LatencyError: the name is unknown; lists the known names.
    """
    if name.partition(":")[0] not in KNOWN:
        raise _unknown(name)


def _unknown(name: str) -> LatencyError:
    return LatencyError(f"backend {name!r} is unknown: choose one of {', '.join(KNOWN)}")
