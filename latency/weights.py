"""ONNX graphs without their weights, and the rule that draws the weights again.

How long a network takes depends on its shapes, not on the numbers in its weights. So what is only measured gets random
weights by a fixed rule, and need not carry them: a graph of kilobytes stands for a model of megabytes, and every
machine makes the same bytes of it.
"""

import math
from functools import cache

import numpy as np
import onnx
from onnx import numpy_helper

from latency.errors import BuildFailed
from latency.lowered import decode

_PERIOD = 65_521
"""Numbers are drawn once and repeated, which is as fast as copying. The period is a prime, so that the rows of no
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
"""Inputs, by place, of which only the shape matters to the time that an operator takes. Other constants are part of
what a network computes, such as the scales of a `Resize`, and keep their numbers."""

_NUMBERS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Fields of a tensor that can hold its numbers."""

_FORWARDED = frozenset({"Cast", "DequantizeLinear", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose first input is a weight where their output is one."""


def strip_weights(model: onnx.ModelProto) -> None:
    """Drop the numbers of every weight; its name, type and shape stay.

    What is a weight follows from what reads it, see `_READERS`.
    """
    for tensor in _weights(model):
        tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))


def fill_weights(model: onnx.ModelProto) -> None:
    """Give every weight numbers: of variance 1 over its fan-in, the same ones on every machine.

    Of that magnitude, activations stay near 1: zeros or denormals would be timed differently.

    Raises:
        BuildFailed: a constant that is not a weight has no numbers; names it.
    """
    start = 0
    for tensor in _weights(model):
        scale = 1 / math.sqrt(max(1, math.prod(tensor.dims[1:])))
        numbers = np.roll(_numbers() * np.float32(scale), -start).astype(_TYPES[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(np.resize(numbers, tuple(tensor.dims)), tensor.name))
        start = (start + math.prod(tensor.dims)) % _PERIOD
    for tensor in model.graph.initializer:
        if not is_filled(tensor):
            raise BuildFailed(
                f"constant {tensor.name!r} is not a weight and has no numbers: write the bundle again with `lathe "
                "bundle`"
            )


def is_filled(tensor: onnx.TensorProto) -> bool:
    """Whether a tensor has its numbers, or needs none."""
    return not math.prod(tensor.dims) or any(getattr(tensor, field) for field in _NUMBERS)


def filled(graph: bytes) -> bytes:
    """The serialized model that a serialized graph without weights stands for.

    Raises:
        BuildFailed: it is not an ONNX model, claims more weights than one can have (see `latency.lowered.decode`), or
            lacks a constant.
    """
    model = decode(graph, weights=False)
    fill_weights(model)
    return model.SerializeToString(deterministic=True)


def _weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Floating-point initializers with at least one dimension that are read as weights, and as nothing else."""
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, place))
    elsewhere = {value.name for value in model.graph.output} | _read_in_bodies(model.graph)
    constant = _constants(model.graph)

    def is_weight(name: str) -> bool:
        found = readers.get(name, [])
        return bool(found) and name not in elsewhere and all(reads(node, place) for node, place in found)

    def reads(node: onnx.NodeProto, place: int) -> bool:
        if place == 0 and node.op_type in _FORWARDED:
            return all(map(is_weight, node.output))
        if constant.issuperset(node.output):  # it computes a constant, such as the `scales` that a `Gather` picks
            return False
        return place in _READERS.get(node.op_type, ())

    return [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_type in _TYPES and tensor.dims and is_weight(tensor.name)
    ]


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Names of the values of a graph that do not depend on what it is fed; "" stands for an input left out."""
    found = {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        bodies = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if not bodies and found.issuperset(node.input):
            found.update(node.output)
    return found


def _read_in_bodies(graph: onnx.GraphProto) -> set[str]:
    """Names that the bodies of a graph's `If`, `Loop` and `Scan` read."""
    found: set[str] = set()
    bodies = [body for node in graph.node for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    for body in bodies:
        found |= {name for node in body.node for name in node.input} | _read_in_bodies(body)
    return found


@cache
def _numbers() -> np.ndarray:
    # Uniform by NumPy's oldest generator: its stream is frozen for good, and nothing here depends on a mathematical
    # library's last bit.
    return ((np.random.RandomState(0).random_sample(_PERIOD) - 0.5) * math.sqrt(12)).astype(np.float32)
