"""Building engines by TensorRT and TensorRT for RTX, which share one API.

Networks are strongly typed: the graph sets the precision, not a builder flag.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from latency.backends.cuda import connect
from latency.errors import BuildFailed, DeviceUnavailable, LatencyError, import_extra, one_line
from latency.files import read_bytes, write_atomically

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
    trt = import_flavour(flavour)
    if flavour == "tensorrt" or "current" in spec.compute_capabilities:
        connect(flavour)  # such a build needs the GPU; without one, this raises an error of one line
    logger = process_logger(trt)
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
    logger = process_logger(trt)
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


def import_flavour(flavour: Flavour) -> ModuleType:
    """Import the package of a flavour.

    Raises:
        MissingExtra: it is not installed.
        DeviceUnavailable: its libraries do not load.
    """
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
    capabilities = compute_capabilities(import_flavour(flavour)) if spec.compute_capabilities else {}
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
    known = compute_capabilities(trt)
    config.num_compute_capabilities = len(spec.compute_capabilities)
    for i, name in enumerate(spec.compute_capabilities):
        config.set_compute_capability(known[name], i)
    return config


def compute_capabilities(trt: ModuleType) -> dict[str, TrtObject]:
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
def process_logger(trt: ModuleType) -> TrtObject:
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
