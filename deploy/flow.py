"""Data flow of a graph: the traversals that determine which nodes stay in FP32 together."""

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
    """Return the inputs whose values pass to the output at the same magnitude.

    Empty for operators that compute with them.
    """
    if node.op_type in _ALL:
        return [name for name in node.input if name]
    if node.op_type in _FIRST:
        return [node.input[0]]
    return [node.input[i] for i in _SOME.get(node.op_type, ())]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes set on a node, by name, without the operator's defaults."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


@dataclass(frozen=True)
class DataFlow:
    """A graph whose constants are initializers and whose values all have types."""

    graph: GraphProto
    nodes: list[Node]
    kinds: Mapping[str, int]
    """element type of every value"""
    constants: Mapping[str, np.ndarray]
    """every initializer"""
    writers: dict[str, Node] = field(init=False, default_factory=dict)
    readers: dict[str, list[Node]] = field(init=False, default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)
    """shapes of values, if known; 0 for unknown sizes"""

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
        """Return the number of elements; infinite if unknown."""
        return math.inf if name not in self.shapes or 0 in self.shapes[name] else float(math.prod(self.shapes[name]))

    def dim(self, name: str, axis: int) -> float:
        """Return the size of an axis; infinite if unknown."""
        shape = self.shapes.get(name, ())
        return float(shape[axis]) or math.inf if -len(shape) <= axis < len(shape) else math.inf

    def is_float(self, name: str) -> bool:
        """Return whether a value is float32, so that its precision can be chosen."""
        return self.kinds.get(name) == TensorProto.FLOAT

    def upstream(self, name: str) -> Iterator[Node]:
        """Yield the nodes that determine a value's magnitude.

        Its writer and those of carried inputs, up to the nodes that compute it.
        """
        pending, done = [name], set[str]()
        while pending:
            node = self.writers.get(pending.pop())
            if node is not None and node.proto.name not in done:
                done.add(node.proto.name)
                yield node
                pending += carried(node.proto)


def keep(nodes: Iterable[Node], reason: str) -> None:
    """Keep nodes in FP32 and record the reason, unless they have one already."""
    for node in nodes:
        node.reason = node.reason or reason
