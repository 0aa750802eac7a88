"""Whole numbers in a graph: positions, indices and counts, which half precision represents exactly only up to 2048.

The graph alone, without samples, shows which floating-point values are always whole numbers, or fractions made of them,
and their largest size.
"""

import math
from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto

from deploy.casts import BOUNDS
from deploy.flow import DataFlow, attributes, keep
from deploy.islands import HEAVY, Node
from deploy.narrow import FP16, Narrow
from deploy.values import INTEGERS, Values

ANGLE = 2**-7
"""Share of the largest exact whole number above which an angle is off by more than 0.004."""

_TURNS = frozenset({"Cos", "Sin", "Tan"})
_ROUNDS = frozenset({"Ceil", "Floor", "Round"})


def keep_whole_numbers(flow: DataFlow, values: Mapping[str, Values], narrow: Narrow = FP16) -> None:
    """Keep in FP32 all nodes that need more whole numbers or angles than the narrow type has.

    They write or read whole numbers beyond it, round to such numbers, or take sines of such angles.

    FP16 represents whole numbers exactly up to 2048. The same holds for fractions made of whole numbers: beyond 2048
    steps from zero, neighbours are indistinguishable. The chain ends where activations enter.
    """
    for node in flow.nodes:
        for name in (*node.proto.output, *node.proto.input):
            if (
                flow.is_float(name)
                and name not in flow.constants
                and values[name].most > narrow.exact * values[name].apart > 0
            ):
                keep([node], f"{name} holds {_described(values[name], narrow)}")
        if node.proto.op_type not in HEAVY | BOUNDS:
            for name in sorted(node.reads & flow.constants.keys()):
                if values[name].most > narrow.exact * values[name].apart > 0 and _is_rounded(
                    flow.constants[name], narrow
                ):
                    keep([node], f"its constant {name} holds {_described(values[name], narrow)}")
    for node in flow.nodes:
        name = node.proto.input[0] if node.proto.input else ""
        if (
            _rounds(node.proto, flow)
            and not values[name].whole
            and (values[name].most > narrow.exact or values[name].step)
        ):
            keep(
                [node, *_computing(name, flow, values)],
                f"{node.proto.name} rounds {name} to whole numbers {_up_to(values[name])}",
            )
        if (
            node.proto.op_type in _TURNS
            and flow.is_float(name)
            and (path := _angle(name, flow, values, ANGLE * narrow.exact)) is not None
        ):
            keep([node, *path], f"the angle {name} reaches {_up_to(values[name]).removeprefix('up to ')}")


def _up_to(values: Values) -> str:
    return f"up to {values.most:.4g}" if values.most < math.inf else "of any size"


def _described(values: Values, narrow: Narrow) -> str:
    numbers = "whole numbers" if values.whole else f"numbers {values.apart:.4g} apart"
    return f"{numbers} {_up_to(values)}, {_NAMES[narrow.name]} only up to {narrow.exact * values.apart:.4g}"


_NAMES = {"fp16": "half precision", "bf16": "bfloat16"}


def _is_rounded(array: np.ndarray, narrow: Narrow) -> bool:
    finite = array[np.isfinite(array)]
    with np.errstate(over="ignore"):
        return bool((finite.astype(narrow.dtype).astype(finite.dtype) != finite).any())


def _rounds(proto: NodeProto, flow: DataFlow) -> bool:
    if not proto.input or not flow.is_float(proto.input[0]):
        return False
    to_integers = (
        proto.op_type == "Cast"
        and flow.kinds[proto.output[0]] in INTEGERS
        and flow.kinds[proto.output[0]] != TensorProto.BOOL
    )
    return proto.op_type in _ROUNDS or proto.op_type == "Mod" or to_integers


def _computing(name: str, flow: DataFlow, values: Mapping[str, Values]) -> list[Node]:
    """Return the nodes between a value and the layers or whole numbers that it is computed from."""
    nodes, pending = dict[str, Node](), [name]
    while pending:
        node = flow.writers.get(pending.pop())
        if node is None or node.proto.op_type in HEAVY or node.proto.name in nodes:
            continue
        nodes[node.proto.name] = node
        pending += [read for read in node.reads if not values[read].whole and values[read].most > 1]
    return list(nodes.values())


def _angle(name: str, flow: DataFlow, values: Mapping[str, Values], large: float) -> list[Node] | None:
    """Return the nodes that compute an angle from an input or positions; None if it comes from a layer or is small."""
    inputs = {value.name for value in flow.graph.input}
    path, done, begins = list[Node](), set[str](), False
    pending = [name] if values[name].most > large else []
    while pending:
        read = pending.pop()
        if read in done or values[read].most <= 1 or _is_layer(flow.writers.get(read), flow):
            continue
        done.add(read)
        positions = (values[read].whole or read in flow.constants) and values[read].most > large and flow.size(read) > 1
        begins = begins or read in inputs or positions
        if (node := flow.writers.get(read)) and not positions:
            path.append(node)
            pending += node.proto.input
    return path if begins else None


def _is_layer(node: Node | None, flow: DataFlow) -> bool:
    """Return whether a node mixes activations with weights, unlike a product of positions and frequencies."""
    if node is None or node.proto.op_type not in HEAVY:
        return False
    if node.proto.op_type == "Einsum":
        read, _, written = attributes(node.proto)["equation"].decode().partition("->")
        return bool(set(read) - set(written) - set(", ."))
    return node.proto.op_type != "MatMul" or flow.dim(node.proto.input[0], -1) > 1
