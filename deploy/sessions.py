"""ONNX Runtime on the CPU, with its many exceptions mapped to two."""

import contextlib
from collections.abc import Mapping

import numpy as np
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors

from deploy.errors import DeployError
from deploy.validate import CannotRun
from latency.backends.onnxruntime import limited, runtime_errors, session_options
from latency.errors import one_line


def start_session(model: bytes, threads: int = 1, *, plain: bool = False) -> onnxruntime.InferenceSession:
    """Start a session.

    Args:
        model: serialised ONNX.
        threads: number of threads per operator.
        plain: run the operators unchanged, without fusing or replacing any.

    Raises:
        CannotRun: there is no kernel for an operator.
        DeployError: the model is rejected.
    """
    options = session_options(onnxruntime, threads)
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # The fallback prints, and only repeats the attempt.
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except ort_errors.NotImplemented as error:
        raise CannotRun(f"ONNX Runtime cannot run it on this CPU: {one_line(error)}") from error
    except (*runtime_errors(), ValueError) as error:  # ValueError: the message has bytes of the file that are not UTF-8
        raise DeployError(f"ONNX Runtime refuses the model: {one_line(error)}") from error


def limit() -> contextlib.AbstractContextManager[onnxruntime.RunOptions]:
    """Return options for the runs of one inference.

    Together they may take `latency.backends.onnxruntime.MAX_RUN_S`.
    """
    return limited(onnxruntime)


def run_session(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, np.ndarray],
    options: onnxruntime.RunOptions | None = None,
) -> dict[str, np.ndarray]:
    """Run a session and return its outputs by name.

    Args:
        session: session of a network, or of a part of one.
        inputs: inputs by name.
        options: options from `limit`, if several sessions run as one inference; None for a separate inference.

    Raises:
        DeployError: the network fails, or the inputs do not fit.
        RunFailed: the run exceeds the time limit.
    """
    if options is None:
        with limit() as options:
            return run_session(session, inputs, options)
    names = [value.name for value in session.get_outputs()]
    try:
        outputs = session.run(names, dict(inputs), options)
    except (*runtime_errors(), ValueError, TypeError, MemoryError) as error:
        raise DeployError(f"ONNX Runtime cannot run the network on these inputs: {one_line(error)}") from error
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}
