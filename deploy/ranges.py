"""Ranges of activations, from samples in FP32, and of weights."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from deploy import sessions
from deploy.certificate import SMALLEST_NORMAL, VANISHING, TensorRange, WeightRange
from deploy.samples import Tensors, calls_of

CHUNK_BYTES = 256 << 20
"""Maximum size of the activations inspected in one run of the network."""

_FULL = TensorProto.FLOAT
_ROUNDS_TO_INFINITY = 65520.0

_SUMS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"})
_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})
"""With `_SUMS`: operators whose accumulator may be far larger than their output."""


def tensor_ranges(model: ModelProto, inputs: Tensors, threads: int) -> dict[str, TensorRange]:
    """Run a model and return the ranges of its floating-point values, in chunks that bound memory."""
    graph = model.graph
    writers = {name: node for node in graph.node for name in node.output}
    statistics = {value.name: _Statistics() for value in graph.input if value.type.tensor_type.elem_type == _FULL}
    for name, tensor in statistics.items():
        tensor.add(inputs[name])
    values = [
        value
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == _FULL and value.name in writers
    ]
    for chunk in _chunks(values):
        part = ModelProto()
        part.CopyFrom(model)
        part.graph.ClearField("output")
        part.graph.output.extend(chunk)
        session = sessions.start_session(part.SerializeToString(), threads)
        for call in calls_of(inputs):
            for name, array in sessions.run_session(session, call).items():
                statistics.setdefault(name, _Statistics()).add(array)
    return {name: _range(name, writers.get(name), tensor, graph) for name, tensor in statistics.items()}


def _chunks(values: Iterable[onnx.ValueInfoProto]) -> Iterator[list[onnx.ValueInfoProto]]:
    chunk, size = list[onnx.ValueInfoProto](), 0
    for value in values:
        more = 4 * math.prod(_shape(value.type.tensor_type))
        if chunk and size + more > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(value)
        size += more
    if chunk:
        yield chunk


@dataclass
class _Statistics:
    """Statistics of one tensor over all samples."""

    max_abs: float = 0.0
    count: int = 0
    subnormal: int = 0
    vanishing: int = 0

    def add(self, array: np.ndarray) -> None:
        size = np.abs(array)
        zeros = size.size - int(np.count_nonzero(size))
        finite = size if (largest := float(size.max(initial=0))) < math.inf else size[np.isfinite(size)]
        self.max_abs = max(self.max_abs, largest if finite is size else float(finite.max(initial=0)))
        self.count += size.size
        self.subnormal += int((size < SMALLEST_NORMAL).sum()) - zeros
        self.vanishing += int((size <= VANISHING).sum()) - zeros


def _range(name: str, writer: NodeProto | None, statistics: _Statistics, graph: GraphProto) -> TensorRange:
    tensor = TensorRange(
        name=name,
        node=writer.name if writer else "",
        op=writer.op_type if writer else "",
        max_abs=statistics.max_abs,
        subnormal=statistics.subnormal / statistics.count,
        vanishing=statistics.vanishing / statistics.count,
    )
    if writer is None or writer.op_type not in _SUMS | _SQUARES:
        return tensor
    if writer.op_type in ("ReduceL1", "ReduceSum", "ReduceSumSquare"):
        return msgspec.structs.replace(tensor, sum_abs=statistics.max_abs)
    if writer.op_type == "ReduceL2":
        return msgspec.structs.replace(tensor, sum_abs=statistics.max_abs**2)
    if kernel := next((attribute.ints for attribute in writer.attribute if attribute.name == "kernel_shape"), None):
        return msgspec.structs.replace(tensor, sum_abs=statistics.max_abs * math.prod(kernel))
    shapes = {value.name: _shape(value.type.tensor_type) for value in (*graph.input, *graph.value_info, *graph.output)}
    return msgspec.structs.replace(
        tensor, sum_abs=statistics.max_abs * math.prod(shapes[writer.input[0]]) / math.prod(shapes[name])
    )


def _shape(kind: onnx.TypeProto.Tensor) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in kind.shape.dim)


def weight_range(name: str, array: np.ndarray) -> WeightRange:
    """Return the range of an array and its losses in half precision."""
    size = np.abs(array[np.isfinite(array)])
    some = size[size > 0]
    return WeightRange(
        name=name,
        max_abs=float(size.max(initial=0)),
        min_abs=float(some.min()) if some.size else 0.0,
        subnormal=int((some < SMALLEST_NORMAL).sum()),
        vanishing=int((some <= VANISHING).sum()),
        overflowing=int((some >= _ROUNDS_TO_INFINITY).sum()),
    )
