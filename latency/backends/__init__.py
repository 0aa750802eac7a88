"""What compiles an ONNX model for a device and runs it against the clock."""

import typing
from types import TracebackType
from typing import Literal

from latency.device import Device, Runtime
from latency.errors import LatencyError
from latency.measure import Timed

KNOWN = ("onnxruntime", "tensorrt", "tensorrt-rtx")


@typing.runtime_checkable
class Compiled(Timed, typing.Protocol):
    """A compiled network, whose `run` raises RunFailed where the runtime refuses. At the end of its context it releases what it holds."""

    def __enter__(self) -> "Compiled": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


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

    def compile(self, onnx: bytes) -> Compiled:
        """Compile a serialized ONNX model of static shape.

        Raises:
            BuildFailed: the compiler refuses.
        """
        ...


def get(name: str, *, threads: int = 1, precision: Literal["fp32", "fp16"] | None = None) -> Backend:
    """A backend by its name.

    Args:
        name: one of `KNOWN`.
        threads: of a CPU runtime; GPU runtimes have none.
        precision: of the networks to come; None for the backend's own choice (fp32 on a CPU, fp16 on a GPU).

    Raises:
        LatencyError: there is none of that name, or it does not do that precision; lists what is known.
        MissingExtra: its package is not installed.
        DeviceUnavailable: this machine has no device for it.
    """
    match name:
        case "onnxruntime":
            from latency.backends.onnxruntime import OnnxRuntime

            if precision not in (None, "fp32"):
                raise LatencyError(f"backend 'onnxruntime' measures precision 'fp32', not {precision!r}: choose fp32, or tensorrt-rtx")
            return OnnxRuntime(threads=threads)
        case "tensorrt" | "tensorrt-rtx":
            from latency.backends.tensorrt import TensorRT

            return TensorRT(name, precision=precision or "fp16")
        case _:
            raise _unknown(name)


def require_known(name: str) -> None:
    """Check a backend's name without starting the backend.

    Raises:
        LatencyError: there is none of that name; lists what is known.
    """
    if name not in KNOWN:
        raise _unknown(name)


def _unknown(name: str) -> LatencyError:
    return LatencyError(f"backend {name!r} is unknown: choose one of {', '.join(KNOWN)}")
