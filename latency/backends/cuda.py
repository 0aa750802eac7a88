"""The few calls into CUDA that timing on a GPU needs, over pycuda or, if that is absent or broken, cuda-python.

Both use the GPU's primary context, as torch and TensorRT do. What is made here is a context manager and is released at
its end.
"""

import atexit
import ctypes
import functools
import platform
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from latency.device import Device
from latency.errors import DeviceUnavailable, MissingExtra, RunFailed, one_line, require
from latency.units import us_from_ms

_WAY_OUT = "look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime"


@typing.runtime_checkable
class Cuda(typing.Protocol):
    """The current GPU. Handles of streams and events are the binding's own; whatever is refused raises RunFailed."""

    def device(self) -> Device:
        """Its fingerprint."""
        ...

    def pci_bus_id(self) -> str:
        """Its place on the bus, such as `0000:01:00.0`."""
        ...

    def memory(self, size: int) -> AbstractContextManager[int]:
        """So many bytes on the device; their address."""
        ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to device memory, and wait for it."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory to an array, and wait for it."""
        ...

    def stream(self) -> AbstractContextManager[Any]:
        """A stream of its own."""
        ...

    def address(self, stream: Any) -> int:
        """A stream as other libraries take it."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait for all that is enqueued on a stream."""
        ...

    def event(self, *, blocking: bool) -> AbstractContextManager[Any]:
        """An event that tells the time; one waits for it asleep (`blocking`) or spinning."""
        ...

    def record(self, event: Any, stream: Any) -> None:
        """Put an event on a stream."""
        ...

    def wait(self, event: Any) -> None:
        """Wait until the stream has come to an event."""
        ...

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Time between two events that the stream has passed."""
        ...

    def graph(self, stream: Any, enqueue: Callable[[], None]) -> AbstractContextManager[Callable[[], None]]:
        """What `enqueue` puts on a stream, captured as a graph; a function that launches it there."""
        ...


def connect(extra: str) -> Cuda:
    """The current GPU.

    Args:
        extra: the extra of this project that installs CUDA's Python bindings, for the error that says so.

    Raises:
        MissingExtra: neither binding is installed.
        DeviceUnavailable: there is no driver, or no GPU.
    """
    try:
        driver = require("pycuda.driver", extra)
    except MissingExtra:
        return CudaPython(extra)
    except ImportError as error:  # built for another Python or CUDA, or no driver to link to
        return _instead_of_pycuda(error, extra)
    return PyCuda(driver, extra)


def _instead_of_pycuda(error: ImportError, extra: str) -> "CudaPython":
    broken = f"pycuda cannot be loaded ({one_line(error)})"
    try:
        found = CudaPython(extra)
    except MissingExtra as missing:
        raise DeviceUnavailable(f"{broken}, and there is no cuda-python to take its place: {missing}") from error
    warnings.warn(f"{broken}: cuda-python is used; reinstall pycuda, or remove it", RuntimeWarning, stacklevel=3)
    return found


def gpu(extra: str, *, name: str, memory_bytes: int, capability: tuple[int, int]) -> Device:
    """Fingerprint of a GPU by what CUDA says of it; the driver's version is NVML's."""
    nvml = require("pynvml", extra)
    nvml.nvmlInit()
    try:
        driver = nvml.nvmlSystemGetDriverVersion()
    finally:
        nvml.nvmlShutdown()
    return Device(
        kind="gpu",
        name=name,
        cores=0,
        threads=0,
        isa=(),
        memory_mib=memory_bytes >> 20,
        driver=driver,
        compute_capability=f"{capability[0]}.{capability[1]}",
        os=f"{platform.system()} {platform.machine()}",
    )


class CudaPython:
    """The current GPU through cuda-python: CUDA's runtime API, its error codes turned into exceptions."""

    def __init__(self, extra: str) -> None:
        self._extra = extra
        self._runtime: Any = require("cuda.bindings.runtime", extra)
        error, count = self._runtime.cudaGetDeviceCount()
        if error or not count:
            what = {
                "cudaErrorInsufficientDriver": "no NVIDIA driver found (libcuda.so.1 is missing or too old)",
                "cudaErrorNoDevice": "the NVIDIA driver finds no GPU",
            }.get(error.name, "CUDA does not start")
            raise DeviceUnavailable(f"{what}: {error.name}: {_WAY_OUT}")

    def _call(self, function: str, *args: Any) -> Any:
        error, *values = getattr(self._runtime, function)(*args)
        if error:
            raise RunFailed(f"{function}: {error.name}")
        return values[0] if values else None

    @contextmanager
    def _made(self, make: str, release: str, *args: Any) -> Iterator[Any]:
        handle = self._call(make, *args)
        try:
            yield handle
        finally:
            self._call(release, handle)

    def device(self) -> Device:
        """Its fingerprint."""
        found = self._call("cudaGetDeviceProperties", self._call("cudaGetDevice"))
        name = found.name.decode().rstrip("\0")
        return gpu(self._extra, name=name, memory_bytes=found.totalGlobalMem, capability=(found.major, found.minor))

    def pci_bus_id(self) -> str:
        """Its place on the bus."""
        return self._call("cudaDeviceGetPCIBusId", 32, self._call("cudaGetDevice")).decode().rstrip("\0")

    def memory(self, size: int) -> AbstractContextManager[int]:
        """So many bytes on the device."""
        return self._made("cudaMalloc", "cudaFree", size)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to device memory, and wait for it."""
        self._call(
            "cudaMemcpy", address, array.ctypes.data, array.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        )

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory to an array, and wait for it."""
        self._call(
            "cudaMemcpy", array.ctypes.data, address, array.nbytes, self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        )

    def stream(self) -> AbstractContextManager[Any]:
        """A stream of its own."""
        return self._made("cudaStreamCreate", "cudaStreamDestroy")

    def address(self, stream: Any) -> int:
        """A stream as other libraries take it."""
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        """Wait for all that is enqueued on a stream."""
        self._call("cudaStreamSynchronize", stream)

    def event(self, *, blocking: bool) -> AbstractContextManager[Any]:
        """An event that tells the time."""
        flags = self._runtime.cudaEventBlockingSync if blocking else self._runtime.cudaEventDefault
        return self._made("cudaEventCreateWithFlags", "cudaEventDestroy", flags)

    def record(self, event: Any, stream: Any) -> None:
        """Put an event on a stream."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event: Any) -> None:
        """Wait until the stream has come to an event."""
        self._call("cudaEventSynchronize", event)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Time between two events."""
        return us_from_ms(self._call("cudaEventElapsedTime", start, end))

    @contextmanager
    def graph(self, stream: Any, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """What `enqueue` puts on a stream, as a graph."""
        self._call(
            "cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            enqueue()
        except RunFailed:
            self._runtime.cudaStreamEndCapture(stream)  # its error is the same one once more
            self._runtime.cudaGetLastError()
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)
        try:
            yield functools.partial(self._call, "cudaGraphLaunch", executable, stream)
        finally:
            self._call("cudaGraphExecDestroy", executable)


class PyCuda:
    """The first visible GPU through pycuda. Graphs, which pycuda does not have, go to the driver's library itself.

    Args:
        driver: `pycuda.driver`.
        extra: as of `connect`.
    """

    def __init__(self, driver: Any, extra: str) -> None:
        self._driver, self._extra = driver, extra
        try:
            driver.init()
            self._device = driver.Device(0)
            context = self._device.retain_primary_context()
            context.push()
        except driver.Error as error:
            raise DeviceUnavailable(f"CUDA does not start: {one_line(error)}: {_WAY_OUT}") from error
        atexit.register(context.pop)  # pycuda aborts a process that ends with a context on its stack

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except self._driver.Error as error:
            raise RunFailed(one_line(error)) from error

    def device(self) -> Device:
        """Its fingerprint."""
        found = self._device
        return gpu(
            self._extra, name=found.name(), memory_bytes=found.total_memory(), capability=found.compute_capability()
        )

    def pci_bus_id(self) -> str:
        """Its place on the bus."""
        return self._device.pci_bus_id()

    @contextmanager
    def memory(self, size: int) -> Iterator[int]:
        """So many bytes on the device."""
        allocation = self._call(self._driver.mem_alloc, size)
        try:
            yield int(allocation)
        finally:
            allocation.free()

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to device memory, and wait for it."""
        self._call(self._driver.memcpy_htod, address, array)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory to an array, and wait for it."""
        self._call(self._driver.memcpy_dtoh, array, address)

    @contextmanager
    def stream(self) -> Iterator[Any]:
        """A stream of its own, which pycuda releases with its last reference."""
        yield self._call(self._driver.Stream)

    def address(self, stream: Any) -> int:
        """A stream as other libraries take it."""
        return stream.handle

    def synchronize(self, stream: Any) -> None:
        """Wait for all that is enqueued on a stream."""
        self._call(stream.synchronize)

    @contextmanager
    def event(self, *, blocking: bool) -> Iterator[Any]:
        """An event that tells the time, which pycuda releases with its last reference."""
        flags = self._driver.event_flags
        yield self._call(self._driver.Event, flags.BLOCKING_SYNC if blocking else flags.DEFAULT)

    def record(self, event: Any, stream: Any) -> None:
        """Put an event on a stream."""
        self._call(event.record, stream)

    def wait(self, event: Any) -> None:
        """Wait until the stream has come to an event."""
        self._call(event.synchronize)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Time between two events."""
        return us_from_ms(self._call(end.time_since, start))

    @contextmanager
    def graph(self, stream: Any, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """What `enqueue` puts on a stream, as a graph."""
        library = ctypes.CDLL("libcuda.so.1")
        handle, graph, executable = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()

        def call(function: str, *args: Any) -> None:
            if code := getattr(library, function)(*args):
                raise RunFailed(f"{function}: error {code}")

        call("cuStreamBeginCapture_v2", handle, 1)  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            enqueue()
        except RunFailed:
            library.cuStreamEndCapture(handle, ctypes.byref(graph))  # its error is the same one once more
            raise
        call("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            call("cuGraphDestroy", graph)
        try:
            yield functools.partial(call, "cuGraphLaunch", executable, handle)
        finally:
            call("cuGraphExecDestroy", executable)
