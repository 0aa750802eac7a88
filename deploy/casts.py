"""Write a graph in mixed precision: casts between nodes, and weights in the precision of the nodes that read them.

By hand rather than with onnx-graphsurgeon, which cannot write attributes that are empty lists, and whose version would
be one more thing on which the bytes depend that `verify` writes again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.certificate import LARGEST
from deploy.islands import Node
from deploy.narrow import FP16, NARROW, Narrow

BOUNDS = frozenset({"Clip", "Max", "Min"})
"""Operators whose constants may be clipped to the range of half precision, since the values compared with them are
within it."""

_FULL = TensorProto.FLOAT


def write_mixed_precision(
    model: ModelProto,
    nodes: list[Node],
    kinds: Mapping[str, int],
    weights: Mapping[str, np.ndarray],
    io: int,
    narrow: Narrow = FP16,
) -> ModelProto:
    """Return `model` with every node in its precision and floating-point inputs and outputs of type `io`."""
    old = model.graph
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for part in ("node", "initializer", "value_info"):
        graph.ClearField(part)
    types = {name: kind for name, kind in kinds.items() if name not in weights}
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _FULL:
            types[value.name] = value.type.tensor_type.elem_type = io
    renamed: dict[str, str] = {}
    for node in nodes:
        for name in (node.proto.output[i] for i in node.outputs):
            types[name] = _FULL if node.full else narrow.kind
            if name in {value.name for value in graph.output} and types[name] != io:
                renamed[name] = _fresh(f"{name}.{'fp32' if types[name] == _FULL else narrow.name}", types)
                types[renamed[name]] = types[name]
    writer = _Writer(graph, types, weights, renamed, io, narrow)
    for node in nodes:
        writer.add(node)
    for tensor in old.initializer:
        if tensor.name not in weights:
            graph.initializer.add().CopyFrom(tensor)
    _drop_idle_casts(graph, {**types, **dict.fromkeys(renamed, io)})
    return made


@dataclass
class _Writer:
    """Appends nodes to a graph in their precision, with the necessary casts and weights."""

    graph: GraphProto
    types: dict[str, int]
    weights: Mapping[str, np.ndarray]
    renamed: Mapping[str, str]
    io: int
    narrow: Narrow
    made: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: Node) -> None:
        kind = _FULL if node.full else self.narrow.kind
        new = NodeProto()
        new.CopyFrom(node.proto)
        for i, name in enumerate(new.input):
            bound = node.proto.op_type in BOUNDS and i > 0
            if name in self.weights:
                new.input[i] = self._weight(name, kind if i in node.inputs else _FULL, bound)
            elif i in node.inputs:
                new.input[i] = self._value(self.renamed.get(name, name), kind)
            else:
                new.input[i] = self.renamed.get(name, name)
        new.output[:] = [self.renamed.get(name, name) for name in node.proto.output]
        if node.outputs and new.op_type in ("Cast", "ConstantOfShape"):
            _retype(new, kind)
        self.graph.node.append(new)
        for name in node.proto.output:
            if name in self.renamed:
                self._cast(self.renamed[name], name, self.io)

    def _value(self, name: str, kind: int) -> str:
        if self.types[name] == kind:
            return name
        if (name, kind) not in self.made:
            cast = _fresh(f"{name}.{'fp32' if kind == _FULL else self.narrow.name}", self.types)
            self.types[cast] = kind
            self._cast(name, cast, kind)
        return self.made[name, kind]

    def _cast(self, name: str, cast: str, kind: int) -> None:
        self.made[name, kind] = cast
        self.graph.node.append(helper.make_node("Cast", [name], [cast], f"cast_{cast}", to=kind))

    def _weight(self, name: str, kind: int, bound: bool) -> str:
        """Return the name of a weight in the given precision; a weight read in both precisions is written in both."""
        if (name, kind) not in self.made:
            array = self.weights[name]
            if kind != _FULL:
                with np.errstate(over="ignore", under="ignore"):
                    bound = bound and self.narrow is FP16
                    array = (np.clip(array, -LARGEST, LARGEST) if bound else array).astype(self.narrow.dtype)
            taken = any(other == name for other, _ in self.made)
            self.made[name, kind] = (
                _fresh(f"{name}.{'fp32' if kind == _FULL else self.narrow.name}", self.types) if taken else name
            )
            self.graph.initializer.append(numpy_helper.from_array(array, self.made[name, kind]))
        return self.made[name, kind]


def _fresh(name: str, taken: Mapping[str, int]) -> str:
    while name in taken:
        name += "_"
    return name


def _retype(node: NodeProto, kind: int) -> None:
    """Set the output type of a Cast or ConstantOfShape."""
    if node.op_type == "Cast":
        next(attribute for attribute in node.attribute if attribute.name == "to").i = kind
        return
    value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    del node.attribute[:]
    node.attribute.append(
        helper.make_attribute("value", numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind))))
    )


def _drop_idle_casts(graph: GraphProto, types: Mapping[str, int]) -> None:
    """Remove casts of values to their own type, left from a file that was already partly FP16."""
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        if (
            node.op_type == "Cast"
            and node.output[0] not in outputs
            and types.get(node.input[0]) == types.get(node.output[0], -1)
        ):
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(NodeProto.FromString(node.SerializeToString()))
    if instead:
        graph.ClearField("node")
        graph.node.extend(kept)


def count_casts(model: ModelProto) -> int:
    """Return the number of casts between FP32 and a narrow type."""
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    pairs = [{_FULL, narrow.kind} for narrow in NARROW.values()]
    return sum(
        node.op_type == "Cast" and {kinds.get(node.input[0]), kinds.get(node.output[0])} in pairs for node in graph.node
    )
