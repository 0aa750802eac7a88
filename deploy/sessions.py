"""ONNX Runtime on the CPU, with its many exceptions turned into two."""

import contextlib
from collections.abc import Mapping

import numpy as np
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as ort_errors

from deploy.errors import DeployError
from deploy.validate import CannotRun
from latency.backends.onnxruntime import limited, runtime_errors, session_options
from latency.errors import one_line


def start(model: bytes, threads: int = 1, *, plain: bool = False) -> onnxruntime.InferenceSession:
    """Make a session.

    Args:
        model: serialised ONNX.
        threads: of an operator.
        plain: run the operators as they are, none fused or replaced.

    Raises:
        CannotRun: there is no kernel for an operator.
        DeployError: the model is refused.
    """
    options = session_options(onnxruntime, threads)
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # Its fallback prints, and tries the same again.
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except ort_errors.NotImplemented as error:
        raise CannotRun(f"ONNX Runtime cannot run it on this CPU: {one_line(error)}") from error
    except (*runtime_errors(), ValueError) as error:  # ValueError: its words hold bytes of the file that are not UTF-8
        raise DeployError(f"ONNX Runtime refuses the model: {one_line(error)}") from error


def limit() -> contextlib.AbstractContextManager[onnxruntime.RunOptions]:
    """Options for the runs that are one inference: together they may take `latency.backends.onnxruntime.MAX_RUN_S`."""
    return limited(onnxruntime)


def run(
    session: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray], options: onnxruntime.RunOptions | None = None
) -> dict[str, np.ndarray]:
    """Outputs by name.

    Args:
        session: of a network, or of a part of one.
        inputs: by name.
        options: of `limit`, where the runs of several sessions are one inference; None for one of its own.

    Raises:
        DeployError: the network fails as it runs, or the inputs are not those that it takes.
        RunFailed: it takes too long.
    """
    if options is None:
        with limit() as options:
            return run(session, inputs, options)
    names = [value.name for value in session.get_outputs()]
    try:
        outputs = session.run(names, dict(inputs), options)
    except (*runtime_errors(), ValueError, TypeError, MemoryError) as error:
        raise DeployError(f"ONNX Runtime cannot run the network on these inputs: {one_line(error)}") from error
    return {name: np.asarray(value) for name, value in zip(names, outputs, strict=True)}
