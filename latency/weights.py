"""ONNX graphs without their weights, and the rule that draws the weights again.

How long a network takes depends on its shapes, not on the numbers in its weights. So what is only measured gets random weights by a
fixed rule, and need not carry them: a graph of kilobytes stands for a model of megabytes, and every machine makes the same bytes of it.
"""

import math
from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

from latency.errors import BuildFailed
from latency.files import human_bytes
from latency.lowered import decode

MAX_WEIGHT_BYTES = 2**31 - 1
"""What a protobuf message may have."""

_PERIOD = 65_521
"""Numbers are drawn once and repeated, which is as fast as copying. The period is a prime, so that the rows of no weight are equal."""

_TYPES: dict[int, type[np.floating]] = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}


def strip_weights(model: onnx.ModelProto) -> None:
    """Drop the numbers of every weight: a floating-point initializer with at least one dimension. Its name, type and shape stay."""
    for tensor in _weights(model):
        tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))


def fill_weights(model: onnx.ModelProto) -> None:
    """Give every weight numbers: of variance 1 over its fan-in, the same ones on every machine.

    Of that magnitude, activations stay near 1: zeros or denormals would be timed differently.

    Raises:
        BuildFailed: the weights are larger than an ONNX model can be, or have no possible shape.
    """
    if (size := sum(_bytes(tensor) for tensor in _weights(model))) > MAX_WEIGHT_BYTES:
        raise BuildFailed(f"its weights take {human_bytes(size)}, and an ONNX model holds at most {human_bytes(MAX_WEIGHT_BYTES)}")
    start = 0
    for tensor in _weights(model):
        scale = 1 / math.sqrt(max(1, math.prod(tensor.dims[1:])))
        numbers = np.roll(_numbers() * np.float32(scale), -start).astype(_TYPES[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(np.resize(numbers, tuple(tensor.dims)), tensor.name))
        start = (start + math.prod(tensor.dims)) % _PERIOD


def filled(graph: bytes) -> bytes:
    """The serialized model that a serialized graph without weights stands for.

    Raises:
        BuildFailed: it is not an ONNX model, or claims more weights than one can have.
    """
    model = decode(graph)
    fill_weights(model)
    return model.SerializeToString(deterministic=True)


def _bytes(tensor: onnx.TensorProto) -> int:
    if any(size < 0 for size in tensor.dims):
        raise BuildFailed(f"weight {tensor.name!r} has the shape {list(tensor.dims)}: every dimension must be 0 or more")
    return math.prod(tensor.dims) * np.dtype(_TYPES[tensor.data_type]).itemsize


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if tensor.data_type in _TYPES and tensor.dims]


@cache
def _numbers() -> np.ndarray:
    # Uniform by NumPy's oldest generator: its stream is frozen for good, and nothing here depends on a mathematical library's last bit.
    return ((np.random.RandomState(0).random_sample(_PERIOD) - 0.5) * math.sqrt(12)).astype(np.float32)
