"""Where the values of a graph come from and go to: the walks that decide which nodes stay FP32 together."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from deploy.islands import Node

_ALL = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum"})
_FIRST = frozenset({
    "Abs", "AveragePool", "Cast", "CastLike", "Clip", "Compress", "CumSum", "DepthToSpace", "Dropout", "Expand",
    "Flatten", "Gather", "GatherElements", "GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu",
    "MaxPool", "Neg", "PRelu", "Pad", "ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Resize", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose",
    "Trilu", "Unsqueeze", "Upsample",
})  # fmt: skip
_SOME = {"ScatterElements": (0, 2), "ScatterND": (0, 2), "Where": (1, 2)}


def carried(node: NodeProto) -> list[str]:
    """Inputs whose values, as large as they are, make up the output; none of an operator that computes with them."""
    if node.op_type in _ALL:
        return [name for name in node.input if name]
    if node.op_type in _FIRST:
        return [node.input[0]]
    return [node.input[i] for i in _SOME.get(node.op_type, ())]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes that a node has, by name; the operator's defaults are not among them."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@dataclass(frozen=True)
class Flow:
    """A graph whose constants are initializers and whose values all have a type."""

    graph: GraphProto
    nodes: list[Node]
    kinds: Mapping[str, int]
    """element type of every value"""
    constants: Mapping[str, np.ndarray]
    """every initializer"""
    writers: dict[str, Node] = field(init=False, default_factory=dict)
    readers: dict[str, list[Node]] = field(init=False, default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)
    """of the values whose shape is known; 0 where a size is not"""

    def __post_init__(self) -> None:
        for node in self.nodes:
            for name in node.proto.output:
                self.writers[name] = node
            for name in dict.fromkeys(node.proto.input):
                self.readers.setdefault(name, []).append(node)
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            if value.type.tensor_type.HasField("shape"):
                self.shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        self.shapes.update({name: array.shape for name, array in self.constants.items()})

    def size(self, name: str) -> float:
        """Number of elements; infinite where it is not known."""
        return math.inf if name not in self.shapes or 0 in self.shapes[name] else float(math.prod(self.shapes[name]))

    def dim(self, name: str, axis: int) -> float:
        """Size of an axis; infinite where it is not known."""
        shape = self.shapes.get(name, ())
        return float(shape[axis]) or math.inf if -len(shape) <= axis < len(shape) else math.inf

    def is_float(self, name: str) -> bool:
        """Whether a value is float32, so that its precision is a question."""
        return self.kinds.get(name) == TensorProto.FLOAT

    def upstream(self, name: str) -> Iterator[Node]:
        """The nodes that a value's size comes from: its writer, and what that carries along, up to what computes it."""
        pending, done = [name], set[str]()
        while pending:
            node = self.writers.get(pending.pop())
            if node is not None and node.proto.name not in done:
                done.add(node.proto.name)
                yield node
                pending += carried(node.proto)


def keep(nodes: Iterable[Node], reason: str) -> None:
    """Keep nodes FP32, for a reason that is said unless there is one already."""
    for node in nodes:
        node.reason = node.reason or reason
