"""TensorRT and TensorRT for RTX, which share one API and so one backend."""

import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from types import ModuleType, TracebackType
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from latency.backends.builders import Builders
from latency.backends.cuda import Array, Cuda, Handle, connect, run_ahead
from latency.backends.engines import (
    EngineSpec,
    Flavour,
    Shape,
    ShapeRange,
    TimingCache,
    TrtObject,
    build_engine,
    compute_capabilities,
    import_flavour,
    process_logger,
)
from latency.device import Runtime
from latency.errors import LatencyError, RunFailed, one_line
from latency.lowered import Lowered
from latency.monitor import Nvml


class TensorRT:
    """Backend over TensorRT or TensorRT-RTX on the current GPU.

    TensorRT-RTX builds on the CPU for a compute capability, so `builders` can work while the GPU measures something
    else. TensorRT's builder times kernels on the GPU itself, so it builds only between measurements.

    Args:
        flavour: the flavour of TensorRT.
        precision: precision of the networks to compile.
        spec: options of the engines; None for the defaults, with RTX for the current GPU.
        timing_cache: file of a `TimingCache`; TensorRT only.

    Raises:
        MissingExtra: a package is not installed.
        DeviceUnavailable: there is no driver or GPU, or the libraries do not load.
        LatencyError: a timing cache is given for TensorRT-RTX.
    """

    clock = staticmethod(time.perf_counter_ns)

    def __init__(
        self,
        flavour: Flavour,
        *,
        precision: Literal["fp32", "fp16"] = "fp16",
        spec: EngineSpec | None = None,
        timing_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if timing_cache is not None and flavour == "tensorrt-rtx":
            raise LatencyError(f"timing_cache {timing_cache}: TensorRT-RTX has none: leave it out, or choose tensorrt")
        self.name: Flavour = flavour
        self.precision: Literal["fp32", "fp16"] = precision
        self._trt = import_flavour(flavour)
        self._cuda = connect(flavour)
        self.device = self._cuda.device()
        self.runtime = Runtime(name=flavour, version=self._trt.__version__)
        self.monitor = Nvml(self._cuda.pci_bus_id())
        self.timing_cache = TimingCache(timing_cache)
        capabilities = compute_capabilities(self._trt) if flavour == "tensorrt-rtx" else {}
        own = self.device.compute_capability if self.device.compute_capability in capabilities else "current"
        self.spec = spec or EngineSpec(compute_capabilities=(own,) if flavour == "tensorrt-rtx" else ())
        self.settings = {
            name: str(value)
            for name, value in msgspec.structs.asdict(self.spec).items()
            if name not in ("compute_capabilities", "hardware_compatible")
        }
        if self.spec.hardware_compatible:  # only if set: tables from before this option keep their fingerprint
            self.settings["hardware_compatible"] = "True"
        if flavour == "tensorrt":
            self.settings["timing_cache"] = self.timing_cache.sha256

    def compile(self, model: bytes | Lowered) -> "CompiledEngine":
        """Build an engine and load it.

        Raises:
            BuildFailed: the parser or the builder refuses the network.
            RunFailed: the runtime refuses the engine.
        """
        return self.load(build_engine(Lowered.of(model).onnx, self.name, self.spec, self.timing_cache))

    def builders(self) -> AbstractContextManager[Builders] | None:
        """Return processes that build engines while the GPU measures; None if a build needs the GPU."""
        if self.name == "tensorrt" or "current" in self.spec.compute_capabilities:
            return None
        return Builders(self.name, self.spec)

    def load(self, engine: bytes) -> "CompiledEngine":
        """Load a serialized engine.

        Raises:
            RunFailed: the runtime refuses the engine: it was built for another GPU or another version.
        """
        return CompiledEngine(self._trt, self._cuda, engine, brings_runtime=self.spec.version_compatible)


class CompiledEngine:
    """An engine on its own stream, with all of its memory bound.

    Inputs are drawn from a fixed seed and never zero: zeros draw less power, and a GPU that draws less power runs
    faster.

    Args:
        trt: the flavour's module.
        cuda: the GPU.
        engine: the serialized engine.
        brings_runtime: whether the engine may contain host code, as a version-compatible one does.

    Raises:
        RunFailed: the runtime refuses the engine.
    """

    def __init__(self, trt: ModuleType, cuda: Cuda, engine: bytes, *, brings_runtime: bool = False) -> None:
        self._cuda, self._trt = cuda, trt
        self._logger = process_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if brings_runtime:
            self._runtime.engine_host_code_allowed = True
        if reason := _why_invalid(trt, self._runtime, engine):
            raise RunFailed(
                f"{trt.__name__} {trt.__version__} does not take the engine: {reason}: build it again from its ONNX"
            )
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise RunFailed(
                f"{trt.__name__} {trt.__version__} does not load the engine, which is for one version and kind of GPU: "
                f"build it again from its ONNX: {one_line(self._logger.errors())}"
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RunFailed(one_line(self._logger.errors()))
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._ranges = {name: self._range(name) for name in inputs}
        self._tensors: dict[str, _Tensor] = {}
        with ExitStack() as stack:
            self._stream = stack.enter_context(cuda.stream())
            self._reshape({name: high for name, (_, _, high) in self._ranges.items()})
            for name in names:
                dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
                address = stack.enter_context(cuda.memory(math.prod(self._shape(name)) * dtype.itemsize))
                self._context.set_tensor_address(name, int(address))
                self._tensors[name] = _Tensor(name in inputs, address, dtype)
            rng = np.random.default_rng(0)
            self._timed_inputs = {
                name: rng.standard_normal(usual).astype(self._tensors[name].dtype)
                for name, (_, usual, _) in self._ranges.items()
            }
            self._upload(self._timed_inputs)
            self._launch_resources = stack.enter_context(ExitStack())  # events and graph of the current launch mode
            self._resources = stack.pop_all()
        self.launch(cuda_graph=False, spin_wait=True)

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched and waited for.

        Args:
            cuda_graph: capture the inference once and launch it as one graph. Some engines cannot be captured.
            spin_wait: poll for the end of an inference instead of sleeping.

        Returns:
            Why there is no graph, in which case inferences are enqueued kernel by kernel; "" if all is as requested.

        Raises:
            RunFailed: the runtime refuses an inference.
        """
        self._launch_resources.close()

        def event() -> Handle:
            return self._launch_resources.enter_context(self._cuda.event(blocking=not spin_wait))

        self._events = [(event(), event()) for _ in range(2)]
        self._launch = self._enqueue
        if not cuda_graph:
            return ""
        self._enqueue()  # the one-time work of a first inference must not be captured
        self._cuda.synchronize(self._stream)
        try:
            self._launch = self._launch_resources.enter_context(self._cuda.graph(self._stream, self._enqueue))
        except RunFailed as error:
            return f"measured without a CUDA graph, as it cannot be captured: {error}"
        return ""

    def run(self, count: int) -> list[float]:
        """Run `count` inferences back to back; return the time of each on the GPU in microseconds.

        Like trtexec's "GPU Compute Time": events on the stream around each inference and no copies in between.

        Raises:
            RunFailed: the runtime refuses an inference.
        """
        return run_ahead(count, self._timed_launch, self._elapsed_us)

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return outputs by name for inputs by name, with the engine's own types and with shapes in its ranges.

        Later runs are timed on these inputs if they have the usual shapes.

        Raises:
            LatencyError: an input is missing, unknown or of another shape.
            RunFailed: the runtime refuses the inference.
        """
        given = {name: value.shape for name, value in inputs.items()}
        if given.keys() != self._ranges.keys() or not all(
            _in_range(shape, self._ranges[name]) for name, shape in given.items()
        ):
            wanted = {
                name: usual if low == high else f"{low} to {high}" for name, (low, usual, high) in self._ranges.items()
            }
            raise LatencyError(f"the engine takes inputs of shape {wanted}, given {given}")
        arrays = {name: np.ascontiguousarray(value, self._tensors[name].dtype) for name, value in inputs.items()}
        self._upload(arrays)
        self._enqueue()
        self._cuda.synchronize(self._stream)
        outputs = {
            name: np.empty(self._shape(name), tensor.dtype)
            for name, tensor in self._tensors.items()
            if not tensor.is_input
        }
        for name, value in outputs.items():
            self._cuda.download(value, self._tensors[name].address)
        if given == {name: usual for name, (_, usual, _) in self._ranges.items()}:
            self._timed_inputs = arrays
        else:
            self._upload(self._timed_inputs)
        return outputs

    def information(self) -> str:
        """Return the inspector's JSON of the engine's layers, with the types of tensors if it was built `detailed`."""
        return self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)

    def _range(self, name: str) -> ShapeRange:
        shape = tuple(self._engine.get_tensor_shape(name))
        if min(shape, default=1) >= 0:
            return shape, shape, shape
        low, usual, high = self._engine.get_tensor_profile_shape(name, 0)
        return tuple(low), tuple(usual), tuple(high)

    def _shape(self, name: str) -> Shape:
        """Return the current shape of an input or output; that of a dynamic output follows from the inputs."""
        shape = tuple(self._engine.get_tensor_shape(name))
        return shape if min(shape, default=1) >= 0 else tuple(self._context.get_tensor_shape(name))

    def _reshape(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            low, _, high = self._ranges[name]
            if low != high and not self._context.set_input_shape(name, shape):
                raise RunFailed(one_line(self._logger.errors()))

    def _upload(self, inputs: Mapping[str, Array]) -> None:
        self._reshape({name: value.shape for name, value in inputs.items()})
        for name, value in inputs.items():
            self._cuda.upload(self._tensors[name].address, value)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.address(self._stream)):
            raise RunFailed(one_line(self._logger.errors()))

    def _timed_launch(self, slot: int) -> None:
        start, end = self._events[slot]
        self._cuda.record(start, self._stream)
        self._launch()
        self._cuda.record(end, self._stream)

    def _elapsed_us(self, slot: int) -> float:
        start, end = self._events[slot]
        self._cuda.wait(end)
        return self._cuda.elapsed_us(start, end)

    def __enter__(self) -> "CompiledEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        del self._context, self._engine, self._runtime


def _why_invalid(trt: ModuleType, runtime: TrtObject, engine: bytes) -> str:
    """Return why a runtime cannot run an engine according to its header; "" if it can or has no such check."""
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, diagnostics = runtime.get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return ""
    flags = trt.EngineInvalidityDiagnostics.__members__
    return (
        ", ".join(name.lower().replace("_", " ") for name, flag in flags.items() if int(diagnostics) & int(flag))
        or "it is invalid"
    )


class _Tensor(NamedTuple):
    is_input: bool
    address: int
    """device memory with room for the largest shape"""
    dtype: np.dtype[np.generic]


def _in_range(shape: Shape, shape_range: ShapeRange) -> bool:
    low, _, high = shape_range
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
