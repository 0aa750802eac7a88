"""ONNX Runtime on the CPU, with a fixed number of threads."""

import time
from types import TracebackType
from typing import Any, Literal

import numpy as np

from latency.device import Device, Runtime
from latency.errors import BuildFailed, LatencyError, RunFailed, one_line, require


class OnnxRuntime:
    """Backend over ONNX Runtime's CPU execution provider.

    Args:
        threads: of the intra-operator pool; operators run one after another.

    Raises:
        LatencyError: no thread at all.
        MissingExtra: onnxruntime is not installed.
    """

    name = "onnxruntime"
    precision: Literal["fp32", "fp16"] = "fp32"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise LatencyError(f"threads {threads}: at least 1 is needed")
        self._ort: Any = require("onnxruntime", "")
        self.device = Device.cpu(threads)
        self.runtime = Runtime(name=self.name, version=self._ort.__version__)

    def compile(self, onnx: bytes) -> "CompiledSession":
        """Make a session.

        Raises:
            BuildFailed: ONNX Runtime refuses the model, or its shapes are not static.
        """
        ort = self._ort
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.device.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what matters arrives as an exception
        try:
            session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except _errors() as error:
            raise BuildFailed(one_line(error)) from error
        return CompiledSession(ort, session)


class CompiledSession:
    """A session with inputs and outputs bound once, so that a run copies and allocates nothing.

    Inputs are drawn from a fixed seed, never zeros: zeros and denormals take other times than numbers do.
    """

    def __init__(self, ort: Any, session: Any) -> None:
        rng = np.random.default_rng(0)
        self._session = session
        self._binding = session.io_binding()
        for value in session.get_inputs():
            array = rng.standard_normal(_static(value)).astype(_DTYPES[value.type])
            self._binding.bind_ortvalue_input(value.name, ort.OrtValue.ortvalue_from_numpy(array))
        for value in session.get_outputs():
            array = np.zeros(_static(value), _DTYPES[value.type])
            self._binding.bind_ortvalue_output(value.name, ort.OrtValue.ortvalue_from_numpy(array))

    def run(self, count: int) -> list[float]:
        """Run `count` inferences; the latency of each in microseconds.

        Raises:
            RunFailed: ONNX Runtime refuses.
        """
        run, binding, clock = self._session.run_with_iobinding, self._binding, time.perf_counter_ns
        samples_us: list[float] = []
        try:
            for _ in range(count):
                start = clock()
                run(binding)
                samples_us.append((clock() - start) / 1e3)
        except _errors() as error:
            raise RunFailed(one_line(error)) from error
        return samples_us

    def __enter__(self) -> "CompiledSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        del self._binding, self._session


_DTYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _static(value: Any) -> tuple[int, ...]:
    if value.type not in _DTYPES:
        raise BuildFailed(f"{value.name!r} is a {value.type}: {' and '.join(_DTYPES)} are allowed")
    if not all(isinstance(size, int) for size in value.shape):
        raise BuildFailed(f"{value.name!r} has shape {value.shape}: every dimension must be a fixed number")
    return tuple(value.shape)


def _errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: RuntimeError where outputs are bound, else classes of its C++ module without a common base."""
    state: Any = require("onnxruntime.capi.onnxruntime_pybind11_state", "")
    return (RuntimeError, *(value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)))
