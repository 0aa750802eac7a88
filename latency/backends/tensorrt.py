"""TensorRT and TensorRT for RTX: one API, one backend.

Networks are strongly typed: precision is in the graph, never in a flag.
"""

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from latency.backends.builders import Builders
from latency.backends.cuda import Cuda, connect
from latency.device import Runtime
from latency.errors import BuildFailed, DeviceUnavailable, LatencyError, RunFailed, import_extra, one_line
from latency.files import read_bytes, write_atomically
from latency.lowered import Lowered
from latency.monitor import Nvml

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Shape = tuple[int, ...]


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine is built.

    Attributes:
        workspace_mib: limit of scratch memory; 0 for the builder's own.
        optimization_level: 0 to 5; how long the builder may look for faster code. Pinned, as it changes the engine.
        tf32: whether FP32 convolutions may round their inputs to TF32, which is not FP32 to a validation.
        version_compatible: whether later versions of the runtime may load the engine. TensorRT only.
        hardware_compatible: whether every GPU from Ampere on may load the engine, at some cost in speed. TensorRT only.
        compute_capabilities: the GPUs to build for, such as `8.9`, or `current`; empty for the builder's own choice,
            which is 8.0 and what comes after it. TensorRT-RTX only: TensorRT builds for the GPU at hand.
    """

    workspace_mib: Annotated[int, msgspec.Meta(ge=0, le=2**24)] = 0
    optimization_level: Annotated[int, msgspec.Meta(ge=0, le=5)] = 3
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()


class TimingCache:
    """What TensorRT's builder measured of its kernels.

    Equal layers get equal kernels and are not measured twice.

    A file is read once and stays as it is: its hash is in the fingerprint of what is built with it. What later builds
    add is shared among them in memory, and goes to a file by `save`, for tables to come.

    Args:
        path: of the file; None, or one that is not there, for an empty cache.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = path
        self.data = read_bytes(path) if path is not None and Path(path).exists() else b""
        self.sha256 = hashlib.sha256(self.data).hexdigest() if self.data else ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that it holds now; the file appears whole."""
        write_atomically(path, self.data)


def build_engine(
    onnx: bytes,
    flavour: Flavour,
    spec: EngineSpec | None = None,
    timing_cache: TimingCache | None = None,
    on_progress: Callable[[str], None] | None = None,
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] | None = None,
    detailed: bool = False,
) -> bytes:
    """Build a serialized engine.

    Args:
        onnx: a serialized model; its types are the engine's.
        flavour: TensorRT, which needs a GPU, or TensorRT-RTX, which does not.
        spec: None for the defaults.
        timing_cache: used, and filled, by the builder. TensorRT only: the builder of TensorRT-RTX measures nothing.
        on_progress: called with what the builder is at, such as "Building engine 3/8". An interrupt is then heard at
            the next step.
        shapes: of each dynamic input the smallest, the usual and the largest shape: the engine's one optimization
            profile.
        detailed: keep in the engine what its inspector says of each layer, the types of its tensors among it.

    Raises:
        MissingExtra: the flavour's package is not installed.
        DeviceUnavailable: its libraries do not load, or it needs a GPU and there is none.
        LatencyError: the spec asks for what the flavour does not have.
        BuildFailed: the parser refuses (names node and operator) or the builder does.
    """
    spec = spec or EngineSpec()
    trt = _load(flavour)
    if flavour == "tensorrt" or "current" in spec.compute_capabilities:
        connect(flavour)  # such a build looks at the GPU; without one this says so in one line
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


def _optimization_profile(builder: Any, shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> Any:
    profile = builder.create_optimization_profile()
    for name, (low, usual, high) in shapes.items():
        profile.set_shape(name, low, usual, high)
    return profile


def _parsed(
    trt: Any, builder: Any, onnx: bytes, flavour: Flavour, shapes: Mapping[str, tuple[Shape, Shape, Shape]]
) -> Any:
    """Return the network of a model, whose only dynamic inputs are those with `shapes`."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    logger = _logger(trt)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        words = "; ".join(_words(parser.get_error(i)) for i in range(parser.num_errors)) or logger.errors()
        raise BuildFailed(one_line(f"{flavour} cannot parse {words}"))
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        if min(tensor.shape, default=1) < 0 and tensor.name not in shapes:
            raise BuildFailed(
                f"input {tensor.name!r} has shape {tuple(tensor.shape)}: every dimension must be a fixed number"
            )
    return network


class TensorRT:
    """Backend over TensorRT or TensorRT-RTX on the current GPU.

    TensorRT-RTX builds on the CPU for the GPU's compute capability, so `builders` can be at it while the GPU times
    something else. The builder of TensorRT times kernels on the GPU itself: it has to wait its turn.

    Args:
        flavour: which of the two.
        precision: of the networks that it will be given.
        spec: None for the defaults, and for RTX the GPU at hand.
        timing_cache: file of a TimingCache; TensorRT only.

    Raises:
        MissingExtra: a package is not installed.
        DeviceUnavailable: there is no driver or no GPU, or the libraries do not load.
        LatencyError: a timing cache for a flavour without one.
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
        known = _capabilities(self._trt) if flavour == "tensorrt-rtx" else {}
        here = self.device.compute_capability if self.device.compute_capability in known else "current"
        self.spec = spec or EngineSpec(compute_capabilities=(here,) if flavour == "tensorrt-rtx" else ())
        self.settings = {
            name: str(value) for name, value in msgspec.to_builtins(self.spec).items() if name not in _APART
        }
        if (
            self.spec.hardware_compatible
        ):  # what tables name since there is such a thing, and only then: older ones stay equal
            self.settings["hardware_compatible"] = "True"
        if flavour == "tensorrt":
            self.settings["timing_cache"] = self.timing_cache.sha256

    def compile(self, model: bytes | Lowered) -> "CompiledEngine":
        """Build an engine and load it.

        Raises:
            BuildFailed: the parser or the builder refuses.
            RunFailed: the engine does not load.
        """
        return self.load(build_engine(Lowered.of(model).onnx, self.name, self.spec, self.timing_cache))

    def builders(self) -> AbstractContextManager[Builders] | None:
        """Processes that build engines while the GPU is timing; None where building needs the GPU."""
        if self.name == "tensorrt" or "current" in self.spec.compute_capabilities:
            return None
        return Builders(self.name, self.spec)

    def load(self, engine: bytes) -> "CompiledEngine":
        """Load a serialized engine.

        Raises:
            RunFailed: the runtime refuses it: made for another GPU or another version.
        """
        return CompiledEngine(self._trt, self._cuda, engine, brings_runtime=self.spec.version_compatible)


class CompiledEngine:
    """An engine on a stream of its own, with all of its memory bound.

    Inputs are drawn from a fixed seed, never zeros: zeros draw less power, and a GPU that draws less runs faster.

    Args:
        trt: the flavour's module.
        cuda: where it runs.
        engine: serialized.
        brings_runtime: whether it may bring code of its own, as a version-compatible engine does.

    Raises:
        RunFailed: the runtime refuses it.
    """

    def __init__(self, trt: Any, cuda: Cuda, engine: bytes, *, brings_runtime: bool = False) -> None:
        self._cuda, self._trt = cuda, trt
        self._logger = _logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if brings_runtime:
            self._runtime.engine_host_code_allowed = True
        if reason := _invalid(trt, self._runtime, engine):
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
        self._spans = {name: self._span(name) for name in inputs}
        self._tensors: dict[str, _Tensor] = {}
        with ExitStack() as stack:
            self._stream = stack.enter_context(cuda.stream())
            self._reshape({name: high for name, (_, _, high) in self._spans.items()})
            for name in names:
                dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name)))
                address = stack.enter_context(cuda.memory(math.prod(self._shape(name)) * dtype.itemsize))
                self._context.set_tensor_address(name, int(address))
                self._tensors[name] = _Tensor(name in inputs, address, dtype)
            rng = np.random.default_rng(0)
            self._timed = {
                name: rng.standard_normal(usual).astype(self._tensors[name].dtype)
                for name, (_, usual, _) in self._spans.items()
            }
            self._upload(self._timed)
            self._launching = stack.enter_context(ExitStack())  # what a way to launch holds
            self._resources = stack.pop_all()
        self.launch(cuda_graph=False, spin_wait=True)

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched and waited for.

        Args:
            cuda_graph: capture the inference once and launch it as one graph. An engine may hold what cannot be
                captured.
            spin_wait: poll for the end of an inference rather than sleep.

        Returns:
            Why there is no graph, in which case inferences are enqueued kernel by kernel; "" where all is as asked.

        Raises:
            RunFailed: the runtime refuses an inference.
        """
        self._launching.close()
        self._events = [
            tuple(self._launching.enter_context(self._cuda.event(blocking=not spin_wait)) for _ in "se")
            for _ in range(2)
        ]
        self._start = self._enqueue
        if not cuda_graph:
            return ""
        self._enqueue()  # what happens at the first inference alone must not be captured
        self._cuda.synchronize(self._stream)
        try:
            self._start = self._launching.enter_context(self._cuda.graph(self._stream, self._enqueue))
        except RunFailed as error:
            return f"measured without a CUDA graph, as it cannot be captured: {error}"
        return ""

    def run(self, count: int) -> list[float]:
        """Run `count` inferences back to back; the time that each took on the GPU, in microseconds.

        As trtexec's "GPU Compute Time": events on the stream around each inference, no copies in between, and always
        one inference enqueued ahead of the one that is waited for, so that the GPU does not wait for the host.

        Raises:
            RunFailed: the runtime refuses.
        """
        cuda, stream, samples_us = self._cuda, self._stream, list[float]()
        for i in range(count):
            start, end = self._events[i % 2]
            cuda.record(start, stream)
            self._start()
            cuda.record(end, stream)
            if i:
                samples_us.append(self._elapsed_us(i - 1))
        if count:
            samples_us.append(self._elapsed_us(count - 1))
        return samples_us

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, of the engine's own types and of shapes that it takes.

        Inputs of the usual shapes are those that later runs are timed on.

        Raises:
            LatencyError: an input is missing, unknown, or of another shape.
            RunFailed: the runtime refuses.
        """
        given = {name: value.shape for name, value in inputs.items()}
        if given.keys() != self._spans.keys() or not all(
            _within(shape, self._spans[name]) for name, shape in given.items()
        ):
            wanted = {
                name: usual if low == high else f"{low} to {high}" for name, (low, usual, high) in self._spans.items()
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
        if given == {name: usual for name, (_, usual, _) in self._spans.items()}:
            self._timed = arrays
        else:
            self._upload(self._timed)
        return outputs

    def information(self) -> str:
        """JSON of the engine's layers by its inspector.

        The types of their tensors are there if the engine was built `detailed`.
        """
        return self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)

    def _span(self, name: str) -> tuple[Shape, Shape, Shape]:
        """The smallest, the usual and the largest shape of an input; the same where it has one only."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if min(shape, default=1) >= 0:
            return shape, shape, shape
        low, usual, high = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
        return low, usual, high

    def _shape(self, name: str) -> Shape:
        """The shape of an input or output as the context stands: those of dynamic outputs follow from the inputs."""
        shape = tuple(self._engine.get_tensor_shape(name))
        return shape if min(shape, default=1) >= 0 else tuple(self._context.get_tensor_shape(name))

    def _reshape(self, shapes: Mapping[str, Shape]) -> None:
        for name, shape in shapes.items():
            low, _, high = self._spans[name]
            if low != high and not self._context.set_input_shape(name, shape):
                raise RunFailed(one_line(self._logger.errors()))

    def _upload(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._reshape({name: value.shape for name, value in inputs.items()})
        for name, value in inputs.items():
            self._cuda.upload(self._tensors[name].address, value)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.address(self._stream)):
            raise RunFailed(one_line(self._logger.errors()))

    def _elapsed_us(self, i: int) -> float:
        start, end = self._events[i % 2]
        self._cuda.wait(end)
        return self._cuda.elapsed_us(start, end)

    def __enter__(self) -> "CompiledEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        del self._context, self._engine, self._runtime


def _invalid(trt: Any, runtime: Any, engine: bytes) -> str:
    """What a runtime finds in the header of an engine that it cannot run here.

    "" where it may, or has no such check.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    validity, found = runtime.get_engine_validity(engine)
    if validity != trt.EngineValidity.INVALID:
        return ""
    known = trt.EngineInvalidityDiagnostics.__members__
    return (
        ", ".join(name.lower().replace("_", " ") for name, flag in known.items() if int(found) & int(flag))
        or "it is invalid"
    )


_APART = ("compute_capabilities", "hardware_compatible")


class _Tensor(NamedTuple):
    is_input: bool
    address: int  # on the device, of the size of its largest shape
    dtype: np.dtype


def _within(shape: Shape, span: tuple[Shape, Shape, Shape]) -> bool:
    low, _, high = span
    return len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))


def _load(flavour: Flavour) -> Any:
    try:
        return import_extra(flavour.replace("-", "_"), flavour)
    except (ImportError, OSError) as error:
        raise DeviceUnavailable(f"{flavour} is installed but its libraries do not load: {one_line(error)}") from error


def require_options(flavour: Flavour, spec: EngineSpec) -> None:
    """Check that a flavour builds engines of these options; no network is needed for that.

    Raises:
        LatencyError: it does not; names the option.
        MissingExtra: it is not installed.
    """
    if not 0 <= spec.optimization_level <= 5:
        raise LatencyError(f"optimization level {spec.optimization_level}: 0 to 5 are allowed")
    if flavour == "tensorrt":
        if spec.compute_capabilities:
            raise LatencyError(
                f"compute_capabilities {spec.compute_capabilities}: tensorrt builds for the GPU at hand; choose "
                "tensorrt-rtx"
            )
        return
    for name in ("version_compatible", "hardware_compatible"):
        if getattr(spec, name):
            raise LatencyError(f"{name}: only TensorRT has such engines: leave it out, or choose tensorrt")
    known = _capabilities(_load(flavour)) if spec.compute_capabilities else {}
    if unknown := [name for name in spec.compute_capabilities if name not in known]:
        raise LatencyError(
            f"compute capability {unknown[0]!r} is not one that TensorRT-RTX builds for: choose of {', '.join(known)}"
        )


def _config(trt: Any, builder: Any, flavour: Flavour, spec: EngineSpec) -> Any:
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
    known = _capabilities(trt)
    config.num_compute_capabilities = len(spec.compute_capabilities)
    for i, name in enumerate(spec.compute_capabilities):
        config.set_compute_capability(known[name], i)
    return config


def _capabilities(trt: Any) -> dict[str, Any]:
    """What TensorRT-RTX builds for, as people write it: `SM89` is 8.9 and `SM120` is 12.0."""
    members = {name: value for name, value in trt.ComputeCapability.__members__.items() if name != "NONE"}
    return {
        f"{name[2:-1]}.{name[-1]}" if name.startswith("SM") else name.lower(): value for name, value in members.items()
    }


def _words(error: Any) -> str:
    """A parser's error: node, operator, and all that it says: often no more than which of its checks failed."""
    where = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{where}{error.code().name} in {error.func()}: {error.desc()}"


def _monitor(trt: Any, on_progress: Callable[[str], None]) -> Any:
    """Tells what the builder is at.

    An exception must not reach its C++: an interrupt stops the build, and is raised by who started it.
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
def _logger(trt: Any) -> Any:
    """A logger that prints nothing and keeps what went wrong.

    One for the process: TensorRT keeps the first that it is given while anything made with it lives, and hands all it
    says to that.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self._errors.append(message)

        def forget(self) -> None:
            self._errors.clear()

        def errors(self) -> str:
            """What went wrong since this was last asked."""
            found = "; ".join(self._errors) or "no reason given"
            self.forget()
            return found

    return Logger()
