"""ONNX Runtime: on the CPU with a fixed number of threads, or with another of its execution providers."""

import contextlib
import math
import threading
import time
from collections.abc import Generator, Mapping
from types import ModuleType, TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np

from latency.backends.cuda import connect
from latency.device import Device, Runtime
from latency.errors import BuildFailed, DeviceUnavailable, LatencyError, RunFailed, import_extra, one_line
from latency.files import human_bytes
from latency.lowered import Lowered
from latency.monitor import Nvml
from latency.units import us_from_ns

MAX_TENSOR_BYTES = 8 * 2**30
"""Maximum size of an input or output of a network."""

MAX_RUN_S = 60.0
"""Maximum duration of an inference in seconds: a network may contain a Loop that never ends."""

OrtObject: TypeAlias = Any
"""A session, its options or a description of its inputs: ONNX Runtime has no types."""

_ON_CUDA = ("cuda", "tensorrt", "nvtensorrtrtx")


class OnnxRuntime:
    """Backend over one of ONNX Runtime's execution providers.

    A provider runs the whole network or none of it: nothing falls back to the CPU. Its name is part of the runtime's
    name, and so of every fingerprint. Builds are serial: on a CPU they would disturb measurements.

    Args:
        threads: threads of the intra-operator pool; operators run one after another.
        provider: `cpu`, or another provider of the installed package, such as `cuda` for CUDAExecutionProvider.
        precision: precision of the networks; None for fp32. The CPU only measures fp32, as it has few fp16 kernels.

    Raises:
        LatencyError: `threads` is below 1, the provider is not installed (lists those that are), or it does not measure
            the precision.
        MissingExtra: onnxruntime is not installed, or a package that a GPU needs.
        DeviceUnavailable: the provider needs a GPU and there is none.
    """

    clock = staticmethod(time.perf_counter_ns)

    def __init__(
        self, threads: int = 1, *, provider: str = "cpu", precision: Literal["fp32", "fp16"] | None = None
    ) -> None:
        if threads < 1:
            raise LatencyError(f"threads {threads}: at least 1 is needed")
        self._ort = import_extra("onnxruntime", "")
        installed = {_short(name): name for name in self._ort.get_available_providers()}
        short = _short(provider)
        if short not in installed:
            raise LatencyError(
                f"execution provider {provider!r} is not in the installed onnxruntime {self._ort.__version__}: choose "
                f"one of {', '.join(installed)}, or install an onnxruntime that has it, such as onnxruntime-gpu"
            )
        if short == "cpu" and precision == "fp16":
            raise LatencyError(
                "backend 'onnxruntime' measures precision 'fp32', not 'fp16': choose fp32, or tensorrt-rtx"
            )
        self.name = "onnxruntime" if short == "cpu" else f"onnxruntime:{short}"
        self.precision: Literal["fp32", "fp16"] = precision or "fp32"
        self.settings: dict[str, str] = {}
        self._provider, self._threads = installed[short], threads
        self._memory = "cuda" if short in _ON_CUDA else "cpu"
        cuda = connect("tensorrt") if short in _ON_CUDA else None
        self.device = cuda.device() if cuda else Device.cpu(threads)
        self.monitor = Nvml(cuda.pci_bus_id()) if cuda else None
        self.runtime = Runtime(name=self.name, version=self._ort.__version__)

    def compile(self, model: bytes | Lowered) -> "CompiledSession":
        """Create a session.

        Raises:
            BuildFailed: ONNX Runtime refuses the model, the provider cannot run all of it, or its shapes are not
                static.
            DeviceUnavailable: the provider does not start.
        """
        ort = self._ort
        options = session_options(ort, self._threads)
        if self._provider != "CPUExecutionProvider":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = ort.InferenceSession(Lowered.of(model).onnx, options, providers=[self._provider])
        except runtime_errors() as error:
            raise BuildFailed(one_line(error)) from error
        if self._provider not in session.get_providers():
            raise DeviceUnavailable(
                f"{self._provider} does not start and onnxruntime went on without it: are its libraries installed?"
            )
        return CompiledSession(ort, session, self._memory)


class CompiledSession:
    """A session with inputs and outputs bound once on the provider's device: runs neither copy nor allocate.

    Inputs are drawn from a fixed seed, never zeros: zeros and denormals have other latencies. Integers may be indices,
    so they are 0 or 1.
    """

    def __init__(self, ort: ModuleType, session: OrtObject, memory: str = "cpu") -> None:
        rng = np.random.default_rng(0)
        self._ort, self._session, self._memory, self._ends = ort, session, memory, False
        self._binding = session.io_binding()
        for value in session.get_inputs():
            shape, dtype = _static_shape(value), np.dtype(_DTYPES[value.type])
            drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            self.bind({value.name: drawn.astype(dtype)})
        for value in session.get_outputs():
            array = np.zeros(_static_shape(value), _DTYPES[value.type])
            self._binding.bind_ortvalue_output(value.name, ort.OrtValue.ortvalue_from_numpy(array, memory))

    def bind(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Run on these inputs from now on; arrays by name, with the network's own shapes and types."""
        self._ends = False
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(
                name, self._ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"), self._memory)
            )

    def run(self, count: int) -> list[float]:
        """Run `count` inferences; return the latency of each in microseconds.

        A timer limits only the first inference on the bound inputs: later ones do the same work, undisturbed by it.

        Raises:
            RunFailed: ONNX Runtime refuses, or an inference takes longer than `MAX_RUN_S`.
        """
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        samples_us: list[float] = []
        try:
            if not self._ends and count:
                with limited(self._ort) as options:
                    start = clock()
                    run(binding, options)
                    samples_us.append(us_from_ns(clock() - start))
                self._ends = True
            for _ in range(count - len(samples_us)):
                start = clock()
                run(binding)
                samples_us.append(us_from_ns(clock() - start))
        except runtime_errors() as error:
            raise RunFailed(one_line(error)) from error
        return samples_us

    def __enter__(self) -> "CompiledSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._binding, self._session


_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(bool)": np.bool_,
    **{
        f"tensor({name})": getattr(np, name)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
}


def _static_shape(value: OrtObject) -> tuple[int, ...]:
    if value.type not in _DTYPES:
        raise BuildFailed(f"{value.name!r} is a {value.type}: tensors of numbers and booleans are allowed")
    if not all(isinstance(size, int) for size in value.shape):
        raise BuildFailed(f"{value.name!r} has shape {value.shape}: every dimension must be a fixed number")
    if (size := math.prod(value.shape) * np.dtype(_DTYPES[value.type]).itemsize) > MAX_TENSOR_BYTES:
        raise BuildFailed(
            f"{value.name!r} takes {human_bytes(size)}: inputs and outputs of at most {human_bytes(MAX_TENSOR_BYTES)} "
            "are run"
        )
    return tuple(value.shape)


@contextlib.contextmanager
def limited(ort: ModuleType) -> Generator[OrtObject]:
    """Yield options that limit runs to `MAX_RUN_S` together: ONNX Runtime stops at the next operator after that.

    Args:
        ort: the module `onnxruntime`.

    Raises:
        RunFailed: ONNX Runtime stopped.
    """
    options = ort.RunOptions()
    timer = threading.Timer(MAX_RUN_S, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        yield options
    except (*runtime_errors(), ValueError) as error:  # ValueError: the caller may have translated the error already
        if not options.terminate:
            raise
        raise RunFailed(
            f"one inference takes longer than {MAX_RUN_S:g} s: is there a Loop in the network that does not end?"
        ) from error
    finally:
        timer.cancel()


def session_options(ort: ModuleType, threads: int) -> OrtObject:
    """Return options of a session that prints nothing, as errors are raised anyway.

    Args:
        ort: the module `onnxruntime`.
        threads: number of threads that an operator may use.
    """
    ort.set_default_logger_severity(4)  # kernels log there while a session is created
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    return options


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return the errors of ONNX Runtime: RuntimeError with bound outputs, else C++ classes without a common base."""
    classes: dict[str, object] = vars(import_extra("onnxruntime.capi.onnxruntime_pybind11_state", ""))
    return (
        RuntimeError,
        *(value for value in classes.values() if isinstance(value, type) and issubclass(value, Exception)),
    )


def _short(provider: str) -> str:
    """Return the short name of a provider: `cuda` for CUDAExecutionProvider."""
    return provider.lower().removesuffix("executionprovider")
