"""ONNX graphs without their weights, and the rule that generates the weights again.

The latency of a network depends on its shapes, not on the values of its weights. So networks that are only measured get
random weights by a fixed rule and need not store them: a graph of kilobytes stands for a model of megabytes, and every
machine generates the same bytes from it.
"""

import math
from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

from latency.errors import BuildFailed
from latency.lowered import decode

_PERIOD = 65_521
"""Values are drawn once and repeated, which is as fast as copying. The period is a prime, so that no two rows of a
weight are equal."""

_TYPES: dict[int, type[np.floating]] = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}


_READERS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Einsum": (0, 1),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
}
"""Indices of the inputs of which only the shape affects an operator's latency. Other constants, such as the scales of a
`Resize`, are part of the computation and keep their values."""

_NUMBERS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Fields of a tensor that can hold its values."""

_FORWARDED = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose first input is a weight if their output is one."""


def strip_weights(model: onnx.ModelProto) -> None:
    """Drop the values of every weight; its name, type and shape stay. Its readers make it a weight: `_READERS`."""
    for tensor in _weights(model):
        tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))


def fill_weights(model: onnx.ModelProto) -> None:
    """Give every weight values of variance 1 / fan-in, the same on every machine.

    This keeps activations near 1: zeros or denormals would change the latency.

    Raises:
        BuildFailed: a constant that is not a weight has no values; names it.
    """
    start = 0
    for tensor in _weights(model):
        scale = 1 / math.sqrt(max(1, math.prod(tensor.dims[1:])))
        numbers = np.roll(_random_numbers() * np.float32(scale), -start).astype(_TYPES[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(np.resize(numbers, tuple(tensor.dims)), tensor.name))
        start = (start + math.prod(tensor.dims)) % _PERIOD
    for tensor in model.graph.initializer:
        if not is_filled(tensor):
            raise BuildFailed(
                f"constant {tensor.name!r} is not a weight and has no numbers: write the bundle again with "
                "`lathe bundle`"
            )


def is_filled(tensor: onnx.TensorProto) -> bool:
    """Return whether a tensor has its values, or needs none."""
    return not math.prod(tensor.dims) or any(getattr(tensor, field) for field in _NUMBERS)


def filled(graph: bytes) -> bytes:
    """Return the serialized model of a serialized graph without weights.

    Raises:
        BuildFailed: the graph is not an ONNX model, declares impossible sizes (see `latency.lowered.decode`), or lacks
            a constant.
    """
    model = decode(graph, weights=False)
    fill_weights(model)
    return model.SerializeToString(deterministic=True)


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the floating-point initializers with at least one dimension that are only read as weights."""
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    elsewhere = {value.name for value in model.graph.output} | _read_in_bodies(model.graph)
    constant = _constants(model.graph)

    def is_weight(name: str) -> bool:
        uses = readers.get(name, [])
        return bool(uses) and name not in elsewhere and all(reads(node, place) for node, place in uses)

    def reads(node: onnx.NodeProto, place: int) -> bool:
        if place == 0 and node.op_type in _FORWARDED:
            return all(map(is_weight, node.output))
        if constant.issuperset(node.output):  # it computes a constant, such as the `scales` picked by a `Gather`
            return False
        return place in _READERS.get(node.op_type, ())

    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type in _TYPES and tensor.dims and is_weight(tensor.name)
    ]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the values that do not depend on a graph's inputs; "" stands for an omitted input."""
    names = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if not bodies and names.issuperset(node.input):
            names.update(node.output)
    return names


def _read_in_bodies(graph: onnx.GraphProto) -> set[str]:
    """Return the names that the bodies of a graph's `If`, `Loop` and `Scan` nodes read."""
    names: set[str] = set()
    bodies = [body for node in graph.node for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    for body in bodies:
        names |= {name for node in body.node for name in node.input} | _read_in_bodies(body)
    return names


@cache
def _random_numbers() -> np.ndarray:
    # Uniform values of NumPy's legacy generator: its stream is frozen, and no step depends on rounding in a math
    # library.
    return ((np.random.RandomState(0).random_sample(_PERIOD) - 0.5) * math.sqrt(12)).astype(np.float32)
