"""The CUDA calls that timing on a GPU needs, through pycuda or, if that is absent or broken, cuda.core.

Both use the GPU's primary context, as torch and TensorRT do. Every resource is a context manager, which releases it.
"""

import atexit
import ctypes
import functools
import operator
import platform
import typing
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from numpy.typing import NDArray

from latency.device import Device
from latency.errors import DeviceUnavailable, MissingExtra, RunFailed, import_extra, one_line
from latency.units import us_from_ms

_FIX = "look at `nvidia-smi`, or measure on the CPU with --backend onnxruntime"


_T = TypeVar("_T")

Array = NDArray[Any]

Handle: TypeAlias = Any
"""A stream or an event of the binding in use."""


@typing.runtime_checkable
class Cuda(typing.Protocol):
    """The current GPU. A call that CUDA refuses raises RunFailed."""

    def device(self) -> Device:
        """Return the fingerprint of the GPU."""
        ...

    def pci_bus_id(self) -> str:
        """Return the PCI bus ID, such as `0000:01:00.0`."""
        ...

    def memory(self, size: int) -> AbstractContextManager[int]:
        """Allocate `size` bytes of device memory; the context holds their address."""
        ...

    def upload(self, address: int, array: Array) -> None:
        """Copy an array to device memory and wait for the copy."""
        ...

    def download(self, array: Array, address: int) -> None:
        """Copy device memory to an array and wait for the copy."""
        ...

    def stream(self) -> AbstractContextManager[Handle]:
        """Create a stream."""
        ...

    def address(self, stream: Handle) -> int:
        """Return the address of a stream, as other libraries take it."""
        ...

    def synchronize(self, stream: Handle) -> None:
        """Wait until all work on a stream is done."""
        ...

    def event(self, *, blocking: bool) -> AbstractContextManager[Handle]:
        """Create a timing event; `wait` sleeps if it is `blocking`, else spins."""
        ...

    def record(self, event: Handle, stream: Handle) -> None:
        """Record an event on a stream."""
        ...

    def wait(self, event: Handle) -> None:
        """Wait until the stream reaches an event."""
        ...

    def elapsed_us(self, start: Handle, end: Handle) -> float:
        """Return the microseconds between two events that the stream has passed."""
        ...

    def graph(self, stream: Handle, enqueue: Callable[[], None]) -> AbstractContextManager[Callable[[], None]]:
        """Capture what `enqueue` puts on a stream as a graph; the context holds a function that launches it there."""
        ...


def connect(extra: str) -> Cuda:
    """Return the current GPU.

    Args:
        extra: the extra of this project that installs CUDA's Python bindings, for the error message.

    Raises:
        MissingExtra: neither binding is installed.
        DeviceUnavailable: there is no driver or no GPU.
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
        cuda_core = CudaCore(extra)
    except MissingExtra as missing:
        raise DeviceUnavailable(f"{broken}, and there is no cuda.core to take its place: {missing}") from error
    warnings.warn(f"{broken}: cuda.core is used; reinstall pycuda, or remove it", RuntimeWarning, stacklevel=3)
    return cuda_core


def run_ahead(count: int, launch: Callable[[int], None], elapsed_us: Callable[[int], float]) -> list[float]:
    """Run `count` inferences back to back; return the time of each in microseconds.

    One inference is always enqueued ahead of the one that is waited for, so that the GPU never waits for the host.

    Args:
        count: number of inferences.
        launch: enqueues an inference between the events of slot 0 or 1.
        elapsed_us: waits for the last inference of a slot and returns its time.
    """
    samples_us: list[float] = []
    for i in range(count):
        launch(i % 2)
        if i:
            samples_us.append(elapsed_us((i - 1) % 2))
    if count:
        samples_us.append(elapsed_us((count - 1) % 2))
    return samples_us


def gpu(extra: str, *, name: str, memory_bytes: int, capability: tuple[int, int]) -> Device:
    """Return the fingerprint of a GPU from CUDA's data, with the driver's version from NVML."""
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

    The size of the GPU's memory comes from cuda.bindings, as cuda.core has only NVML's larger figure. The exception
    that cuda.core raises comes from its private module.

    Args:
        extra: see `connect`.
    """

    def __init__(self, extra: str) -> None:
        self._extra = extra
        self._bindings = import_extra("cuda.bindings.driver", extra)
        self._core = import_extra("cuda.core", extra)
        errors = import_extra("cuda.core._utils.cuda_utils", extra)
        self._errors = (errors.CUDAError, RuntimeError)
        try:
            self._device = self._core.Device()
            self._device.set_current()  # the primary context
        except errors.CUDAError as error:
            raise DeviceUnavailable(f"CUDA does not start: {one_line(error).rstrip('.')}: {_FIX}") from error
        except RuntimeError as error:  # the driver's library and functions are loaded only now
            raise DeviceUnavailable(f"no NVIDIA driver found (libcuda.so.1 is missing or too old): {_FIX}") from error

    def _call(self, function: Callable[..., _T], *args: object, **options: object) -> _T:
        try:
            return function(*args, **options)
        except self._errors as error:
            raise RunFailed(one_line(error)) from error

    @contextmanager
    def _closing(self, resource: Handle) -> Generator[Handle]:
        try:
            yield resource
        finally:
            self._call(resource.close)

    def device(self) -> Device:
        """Return the fingerprint of the GPU."""
        device = self._device
        error, memory_bytes = self._bindings.cuDeviceTotalMem(device.device_id)
        if error:
            raise RunFailed(f"cuDeviceTotalMem: {error.name}")
        capability = device.compute_capability
        return gpu(
            self._extra,
            name=device.name,
            memory_bytes=memory_bytes,
            capability=(capability.major, capability.minor),
        )

    def pci_bus_id(self) -> str:
        """Return the PCI bus ID."""
        return self._call(lambda: self._device.pci_bus_id)

    @contextmanager
    def memory(self, size: int) -> Generator[int]:
        """Allocate `size` bytes of device memory."""
        with self._closing(self._call(self._device.allocate, size, stream=self._core.LEGACY_DEFAULT_STREAM)) as buffer:
            yield int(buffer.handle)

    def upload(self, address: int, array: Array) -> None:
        """Copy an array to device memory and wait for the copy."""
        self._copy(array.ctypes.data, address, array.nbytes)

    def download(self, array: Array, address: int) -> None:
        """Copy device memory to an array and wait for the copy."""
        self._copy(address, array.ctypes.data, array.nbytes)

    def _copy(self, source: int, target: int, size: int) -> None:
        stream, at = self._core.LEGACY_DEFAULT_STREAM, self._core.Buffer.from_handle
        self._call(at(source, size).copy_to, at(target, size), stream=stream)
        self._call(stream.sync)

    def stream(self) -> AbstractContextManager[Handle]:
        """Create a stream that waits for the default one, on which memory is allocated and copied."""
        return self._closing(
            self._call(self._device.create_stream, options=self._core.StreamOptions(nonblocking=False))
        )

    def address(self, stream: Handle) -> int:
        """Return the address of a stream, as other libraries take it."""
        return int(stream.handle)

    def synchronize(self, stream: Handle) -> None:
        """Wait until all work on a stream is done."""
        self._call(stream.sync)

    def event(self, *, blocking: bool) -> AbstractContextManager[Handle]:
        """Create a timing event."""
        options = self._core.EventOptions(timing_enabled=True, blocking_sync=blocking)
        return self._closing(self._call(self._device.create_event, options))

    def record(self, event: Handle, stream: Handle) -> None:
        """Record an event on a stream."""
        self._call(stream.record, event)

    def wait(self, event: Handle) -> None:
        """Wait until the stream reaches an event."""
        self._call(event.sync)

    def elapsed_us(self, start: Handle, end: Handle) -> float:
        """Return the microseconds between two events."""
        return us_from_ms(self._call(operator.sub, end, start))

    @contextmanager
    def graph(self, stream: Handle, enqueue: Callable[[], None]) -> Generator[Callable[[], None]]:
        """Capture what `enqueue` puts on a stream as a graph."""
        builder = self._call(stream.create_graph_builder)
        try:
            self._call(builder.begin_building, "thread_local")
            enqueue()
            self._call(builder.end_building)
            graph = self._call(builder.complete)
        finally:
            with suppress(*self._errors):  # raises the error of a failed capture again
                builder.close()
        with self._closing(graph):
            yield functools.partial(self._call, graph.launch, stream)


class PyCuda:
    """The first visible GPU through pycuda. Graphs, which pycuda does not support, use the driver's library directly.

    Args:
        driver: `pycuda.driver`.
        extra: see `connect`.
    """

    def __init__(self, driver: ModuleType, extra: str) -> None:
        self._driver, self._extra = driver, extra
        try:
            driver.init()
            self._device = driver.Device(0)
            context = self._device.retain_primary_context()
            context.push()
        except driver.Error as error:
            raise DeviceUnavailable(f"CUDA does not start: {one_line(error)}: {_FIX}") from error
        atexit.register(context.pop)  # pycuda aborts the process at exit if a context is left on its stack

    def _call(self, function: Callable[..., _T], *args: object) -> _T:
        try:
            return function(*args)
        except self._driver.Error as error:
            raise RunFailed(one_line(error)) from error

    def device(self) -> Device:
        """Return the fingerprint of the GPU."""
        device = self._device
        return gpu(
            self._extra, name=device.name(), memory_bytes=device.total_memory(), capability=device.compute_capability()
        )

    def pci_bus_id(self) -> str:
        """Return the PCI bus ID."""
        return self._device.pci_bus_id()

    @contextmanager
    def memory(self, size: int) -> Generator[int]:
        """Allocate `size` bytes of device memory."""
        allocation = self._call(self._driver.mem_alloc, size)
        try:
            yield int(allocation)
        finally:
            allocation.free()

    def upload(self, address: int, array: Array) -> None:
        """Copy an array to device memory and wait for the copy."""
        self._call(self._driver.memcpy_htod, address, array)

    def download(self, array: Array, address: int) -> None:
        """Copy device memory to an array and wait for the copy."""
        self._call(self._driver.memcpy_dtoh, array, address)

    @contextmanager
    def stream(self) -> Generator[Handle]:
        """Create a stream, which pycuda releases with its last reference."""
        yield self._call(self._driver.Stream)

    def address(self, stream: Handle) -> int:
        """Return the address of a stream, as other libraries take it."""
        return stream.handle

    def synchronize(self, stream: Handle) -> None:
        """Wait until all work on a stream is done."""
        self._call(stream.synchronize)

    @contextmanager
    def event(self, *, blocking: bool) -> Generator[Handle]:
        """Create a timing event, which pycuda releases with its last reference."""
        flags = self._driver.event_flags
        yield self._call(self._driver.Event, flags.BLOCKING_SYNC if blocking else flags.DEFAULT)

    def record(self, event: Handle, stream: Handle) -> None:
        """Record an event on a stream."""
        self._call(event.record, stream)

    def wait(self, event: Handle) -> None:
        """Wait until the stream reaches an event."""
        self._call(event.synchronize)

    def elapsed_us(self, start: Handle, end: Handle) -> float:
        """Return the microseconds between two events."""
        return us_from_ms(self._call(end.time_since, start))

    @contextmanager
    def graph(self, stream: Handle, enqueue: Callable[[], None]) -> Generator[Callable[[], None]]:
        """Capture what `enqueue` puts on a stream as a graph."""
        library = ctypes.CDLL("libcuda.so.1")
        handle, graph, executable = ctypes.c_void_p(stream.handle), ctypes.c_void_p(), ctypes.c_void_p()

        def call(function: str, *args: object) -> None:
            if code := getattr(library, function)(*args):
                raise RunFailed(f"{function}: error {code}")

        call("cuStreamBeginCapture_v2", handle, 1)  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            enqueue()
        except RunFailed:
            library.cuStreamEndCapture(handle, ctypes.byref(graph))  # raises the same error again
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
