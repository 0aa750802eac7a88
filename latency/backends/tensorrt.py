"""TensorRT and TensorRT for RTX, which share one API and so one backend.

Networks are strongly typed: the graph sets the precision, not a builder flag.
"""

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np

from latency.backends.builders import Builders
from latency.backends.cuda import Array, Cuda, Handle, connect, run_ahead
from latency.device import Runtime
from latency.errors import BuildFailed, DeviceUnavailable, LatencyError, RunFailed, import_extra, one_line
from latency.files import read_bytes, write_atomically
from latency.lowered import Lowered
from latency.monitor import Nvml

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""Smallest, usual and largest shape of an input; all the same if the input is static."""

TrtObject: TypeAlias = Any
"""A builder, network, config, runtime or engine of TensorRT, whose package is optional and has no types."""


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of an engine build.

    Attributes:
        workspace_mib: limit of the workspace memory; 0 for the builder's default.
        optimization_level: 0 to 5; how long the builder searches for faster kernels. Pinned, as it changes the engine.
        tf32: whether FP32 convolutions may round their inputs to TF32, which fails an FP32 validation.
        version_compatible: whether later versions of the runtime can load the engine. TensorRT only.
        hardware_compatible: whether every GPU from Ampere on can load the engine, at some cost in speed. TensorRT only.
        compute_capabilities: the GPUs to build for, such as `8.9`, or `current`; empty for the builder's default, which
            is 8.0 and later. TensorRT-RTX only: TensorRT builds for the current GPU.
    """

    workspace_mib: Annotated[int, msgspec.Meta(ge=0, le=2**24)] = 0
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()


class TimingCache:
    """Kernel timings of TensorRT's builder: equal layers get equal kernels and are timed only once.

    The file is read once and never changed, as its hash is in the fingerprint of every table built with it. Builds add
    their timings in memory; `save` writes them to a file for later tables.

    Args:
        path: path of the file; None or a missing file for an empty cache.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = path
        self.data = read_bytes(path) if path is not None and Path(path).exists() else b""
        self.sha256 = hashlib.sha256(self.data).hexdigest() if self.data else ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all timings atomically."""
        write_atomically(path, self.data)


def build_engine(
    onnx: bytes,
    flavour: Flavour,
    spec: EngineSpec | None = None,
    timing_cache: TimingCache | None = None,
    on_progress: Callable[[str], None] | None = None,
    shapes: Mapping[str, ShapeRange] | None = None,
    detailed: bool = False,
) -> bytes:
    """Build a serialized engine.

    Args:
        onnx: a serialized model, whose types the engine takes over.
        flavour: TensorRT, which needs a GPU, or TensorRT-RTX, which does not.
        spec: options of the engine; None for the defaults.
        timing_cache: read and extended by the builder. TensorRT only: TensorRT-RTX times no kernels.
        on_progress: called with the builder's progress, such as "Building engine 3/8". An interrupt then takes effect
            at the next step.
        shapes: shape range of each dynamic input; they form the engine's only optimization profile.
        detailed: store details of each layer in the engine for its inspector, such as the types of its tensors.

    Raises:
        MissingExtra: the flavour's package is not installed.
        DeviceUnavailable: its libraries do not load, or it needs a GPU and there is none.
        LatencyError: the flavour does not have an option of the spec, or the timing cache is of another GPU.
        BuildFailed: the parser refuses the model (names node and operator), or the builder does.
    """
    spec = spec or EngineSpec()
    trt = _load(flavour)
    if flavour == "tensorrt" or "current" in spec.compute_capabilities:
        connect(flavour)  # such a build needs the GPU; without one, this raises an error of one line
    logger = _logger(trt)
    logger.forget()
    builder = trt.Builder(logger)
    network = _parsed(trt, builder, onnx, flavour, shapes or {})
    config = _config(trt, builder, flavour, spec)
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if shapes:
        config.add_optimization_profile(_optimization_profile(builder, shapes))
    if timing_cache is not None and flavour == "tensorrt":
        cache = config.create_timing_cache(timing_cache.data)
        if cache is None or not config.set_timing_cache(cache, False):
            raise LatencyError(
                f"timing cache {timing_cache.path} is of another GPU or TensorRT ({one_line(logger.errors())}): "
                "leave it out, or give another"
            )
    monitor = _monitor(trt, on_progress) if on_progress else None
    if monitor:
        config.progress_monitor = monitor
    serialized = builder.build_serialized_network(network, config)
    if monitor and monitor.interrupted:
        raise KeyboardInterrupt
    if serialized is None:
        raise BuildFailed(one_line(logger.errors()))
    if timing_cache is not None and flavour == "tensorrt":
        timing_cache.data = bytes(config.get_timing_cache().serialize())
    return bytes(serialized)


def _optimization_profile(builder: TrtObject, shapes: Mapping[str, ShapeRange]) -> TrtObject:
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in shapes.items():
        profile.set_shape(name, low, usual, high)
    return profile


def _parsed(
    trt: ModuleType, builder: TrtObject, onnx: bytes, flavour: Flavour, shapes: Mapping[str, ShapeRange]
) -> TrtObject:
    """Return the parsed network; every input without a range in `shapes` must be static."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    logger = _logger(trt)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        words = "; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors)) or logger.errors()
        raise BuildFailed(one_line(f"{flavour} cannot parse {words}"))
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if min(tensor.shape, default=1) < 0 and tensor.name not in shapes:
            raise BuildFailed(
                f"input {tensor.name!r} has shape {tuple(tensor.shape)}: every dimension must be a fixed number"
            )
    return network


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
        self._trt = _load(flavour)
        self._cuda = connect(flavour)
        self.device = self._cuda.device()
        self.runtime = Runtime(name=flavour, version=self._trt.__version__)
        self.monitor = Nvml(self._cuda.pci_bus_id())
        self.timing_cache = TimingCache(timing_cache)
        capabilities = _capabilities(self._trt) if flavour == "tensorrt-rtx" else {}
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
        self._logger = _logger(trt)
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


def _load(flavour: Flavour) -> ModuleType:
    try:
        return import_extra(flavour.replace("-", "_"), flavour)
    except (ImportError, OSError) as error:
        raise DeviceUnavailable(f"{flavour} is installed but its libraries do not load: {one_line(error)}") from error


def require_options(flavour: Flavour, spec: EngineSpec) -> None:
    """Require that a flavour can build engines with these options; needs no network.

    Raises:
        LatencyError: it cannot; names the option.
        MissingExtra: its package is not installed.
    """
    if not 0 <= spec.optimization_level <= 5:
        raise LatencyError(f"optimization level {spec.optimization_level}: 0 to 5 are allowed")
    if flavour == "tensorrt":
        if spec.compute_capabilities:
            raise LatencyError(
                f"compute_capabilities {spec.compute_capabilities}: tensorrt builds for the current GPU; choose "
                "tensorrt-rtx"
            )
        return
    for name in ("version_compatible", "hardware_compatible"):
        if getattr(spec, name):
            raise LatencyError(f"{name}: only TensorRT builds such engines: leave it out, or choose tensorrt")
    capabilities = _capabilities(_load(flavour)) if spec.compute_capabilities else {}
    if unknown := [name for name in spec.compute_capabilities if name not in capabilities]:
        raise LatencyError(
            f"TensorRT-RTX does not build for compute capability {unknown[0]!r}: choose from {', '.join(capabilities)}"
        )


def _config(trt: ModuleType, builder: TrtObject, flavour: Flavour, spec: EngineSpec) -> TrtObject:
    require_options(flavour, spec)
    config = builder.create_builder_config()
    config.builder_optimization_level = spec.optimization_level
    if spec.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib << 20)
    if not spec.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if flavour == "tensorrt":
        if spec.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if spec.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return config
    capabilities = _capabilities(trt)
    config.num_compute_capabilities = len(spec.compute_capabilities)
    for i, name in enumerate(spec.compute_capabilities):
        config.set_compute_capability(capabilities[name], i)
    return config


def _capabilities(trt: ModuleType) -> dict[str, TrtObject]:
    """Return the compute capabilities that TensorRT-RTX builds for, by name: 8.9 for `SM89`, 12.0 for `SM120`."""
    members = {name: value for name, value in trt.ComputeCapability.__members__.items() if name != "NONE"}
    return {
        f"{name[2:-1]}.{name[-1]}" if name.startswith("SM") else name.lower(): value for name, value in members.items()
    }


def _parser_error(error: TrtObject) -> str:
    """Describe a parser's error by node, operator and message; the message often names only the failed check."""
    where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{where}{error.code().name} in {error.func()}: {error.desc()}"


def _monitor(trt: ModuleType, on_progress: Callable[[str], None]) -> TrtObject:
    """Return a monitor that reports the builder's progress.

    No exception may reach TensorRT's C++ code: an interrupt stops the build, and `build_engine` raises it.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.interrupted = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                on_progress(f"{phase_name} {step + 1}/{self._steps.get(phase_name, 0)}")
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


@functools.cache
def _logger(trt: ModuleType) -> TrtObject:
    """Return the logger of the process, which prints nothing and keeps errors.

    There is only one: TensorRT keeps its first logger while any object created with it lives, and sends all messages to
    it.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(message)

        def forget(self) -> None:
            self._errors.clear()

        def errors(self) -> str:
            """Return the errors since the last call."""
            errors = "; ".join(self._errors) or "no reason given"
            self.forget()
            return errors

    return Logger()
