"""The few calls into CUDA that timing on a GPU needs, over pycuda or, if that is absent or broken, cuda.core.

Both use the GPU's primary context, as torch and TensorRT do. What is made here is a context manager and is released at
its end.
"""

import atexit
import ctypes
import functools
import operator
import platform
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np

from latency.device import Device
from latency.errors import DeviceUnavailable, MissingExtra, RunFailed, import_extra, one_line
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
        driver = import_extra("pycuda.driver", extra)
    except MissingExtra:
        return CudaCore(extra)
    except ImportError as error:  # built for another Python or CUDA, or no driver to link to
        return _instead_of_pycuda(error, extra)
    return PyCuda(driver, extra)


def _instead_of_pycuda(error: ImportError, extra: str) -> "CudaCore":
    broken = f"pycuda cannot be loaded ({one_line(error)})"
    try:
        found = CudaCore(extra)
    except MissingExtra as missing:
        raise DeviceUnavailable(f"{broken}, and there is no cuda.core to take its place: {missing}") from error
    warnings.warn(f"{broken}: cuda.core is used; reinstall pycuda, or remove it", RuntimeWarning, stacklevel=3)
    return found


def gpu(extra: str, *, name: str, memory_bytes: int, capability: tuple[int, int]) -> Device:
    """Fingerprint of a GPU by what CUDA says of it; the driver's version is NVML's."""
    nvml = import_extra("pynvml", extra)
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


class CudaCore:
    """The current GPU through cuda.core.

    Two things come from elsewhere: the size of the GPU's memory as CUDA counts it, from cuda.bindings (cuda.core has
    NVML's figure only, which is larger), and the exception that cuda.core raises, from the private module that has it.

    Args:
        extra: as of `connect`.
    """

    def __init__(self, extra: str) -> None:
        self._extra = extra
        self._bindings: Any = import_extra("cuda.bindings.driver", extra)
        self._core: Any = import_extra("cuda.core", extra)
        errors = import_extra("cuda.core._utils.cuda_utils", extra)
        self._errors = (errors.CUDAError, RuntimeError)
        try:
            self._device = self._core.Device()
            self._device.set_current()  # the primary context
        except errors.CUDAError as error:
            raise DeviceUnavailable(f"CUDA does not start: {one_line(error).rstrip('.')}: {_WAY_OUT}") from error
        except RuntimeError as error:  # the driver's library, or a function of it, is looked for only now
            raise DeviceUnavailable(
                f"no NVIDIA driver found (libcuda.so.1 is missing or too old): {_WAY_OUT}"
            ) from error

    def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except self._errors as error:
            raise RunFailed(one_line(error)) from error

    @contextmanager
    def _closing(self, resource: Any) -> Iterator[Any]:
        try:
            yield resource
        finally:
            self._call(resource.close)

    def device(self) -> Device:
        """Its fingerprint."""
        found = self._device
        error, memory_bytes = self._bindings.cuDeviceTotalMem(found.device_id)
        if error:
            raise RunFailed(f"cuDeviceTotalMem: {error.name}")
        capability = found.compute_capability
        return gpu(
            self._extra,
            name=found.name,
            memory_bytes=memory_bytes,
            capability=(capability.major, capability.minor),
        )

    def pci_bus_id(self) -> str:
        """Its place on the bus."""
        return self._call(lambda: self._device.pci_bus_id)

    @contextmanager
    def memory(self, size: int) -> Iterator[int]:
        """So many bytes on the device."""
        with self._closing(self._call(self._device.allocate, size, stream=self._core.LEGACY_DEFAULT_STREAM)) as buffer:
            yield int(buffer.handle)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy an array to device memory, and wait for it."""
        self._copy(array.ctypes.data, address, array.nbytes)

    def download(self, array: np.ndarray, address: int) -> None:
        """Copy device memory to an array, and wait for it."""
        self._copy(address, array.ctypes.data, array.nbytes)

    def _copy(self, source: int, target: int, size: int) -> None:
        stream, at = self._core.LEGACY_DEFAULT_STREAM, self._core.Buffer.from_handle
        self._call(at(source, size).copy_to, at(target, size), stream=stream)
        self._call(stream.sync)

    def stream(self) -> AbstractContextManager[Any]:
        """A stream of its own, which waits for the default one, on which memory is made and copied."""
        return self._closing(
            self._call(self._device.create_stream, options=self._core.StreamOptions(nonblocking=False))
        )

    def address(self, stream: Any) -> int:
        """A stream as other libraries take it."""
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        """Wait for all that is enqueued on a stream."""
        self._call(stream.sync)

    def event(self, *, blocking: bool) -> AbstractContextManager[Any]:
        """An event that tells the time."""
        options = self._core.EventOptions(timing_enabled=True, blocking_sync=blocking)
        return self._closing(self._call(self._device.create_event, options))

    def record(self, event: Any, stream: Any) -> None:
        """Put an event on a stream."""
        self._call(stream.record, event)

    def wait(self, event: Any) -> None:
        """Wait until the stream has come to an event."""
        self._call(event.sync)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Time between two events."""
        return us_from_ms(self._call(operator.sub, end, start))

    @contextmanager
    def graph(self, stream: Any, enqueue: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """What `enqueue` puts on a stream, as a graph."""
        builder = self._call(stream.create_graph_builder)
        try:
            self._call(builder.begin_building, "thread_local")
            enqueue()
            self._call(builder.end_building)
            graph = self._call(builder.complete)
        finally:
            with suppress(*self._errors):  # it ends a capture that failed, by the same error once more
                builder.close()
        with self._closing(graph):
            yield functools.partial(self._call, graph.launch, stream)


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
