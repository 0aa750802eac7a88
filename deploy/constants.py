"""Effects of half precision on constants, by the operators that read them.

Entries that vanish or cannot be represented.

A tiny weight of a layer does not matter next to the others that it is summed with, but a tiny divisor, rounded to zero,
produces infinities. So the operator determines the effect of a lost entry, and which nodes stay in FP32 together: those
that compute a divisor with the division, and those that make a value tiny with those that make it large again.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from deploy.casts import BOUNDS
from deploy.certificate import LARGEST, SMALLEST_NORMAL, VANISHING, TensorRange, WeightRange
from deploy.flow import DataFlow, attributes, carried, keep
from deploy.islands import HEAVY, Node
from deploy.values import Values, of_array

TOLERANCE = 2.0**-9
"""Relative error in half precision beyond which a constant is lost: four times the rounding error of a normal
number."""
AMPLIFIED = 2.0**16
"""Factor from which the part of a value that half precision loses is visible in the product."""

_DIVISORS = {
    "DequantizeLinear": 1,
    "Div": 1,
    "Log": 0,
    "Mod": 1,
    "Pow": 0,
    "QuantizeLinear": 1,
    "Reciprocal": 0,
    "Sqrt": 0,
}
"""Input for which zero differs fundamentally from any other number."""
_INVERTED = {"Div": 1, "Log": 0, "ReduceLogSum": 0, "Reciprocal": 0}
"""Input whose division or logarithm is large near zero."""
_SIGNS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sign"})
"""Operators for which zero differs fundamentally from any other number, in any input."""
_GUARDS = frozenset({"Add", "Clip", "Max", "Sub", "Sum", "Where"})
_SQUARES = frozenset({"Mul", "Pow", "ReduceL2", "ReduceSumSquare"})
_POWERS = _SQUARES | {"Div", "Sqrt"}
_POSITIVE = frozenset({"Exp", "Sigmoid", "Softmax", "Softplus"})
_ROOT = 0.5
"""Exponent below which a power makes tiny values large."""
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"})


def keep_constants(
    flow: DataFlow, values: Mapping[str, Values], ranges: Mapping[str, WeightRange], seen: Mapping[str, TensorRange]
) -> None:
    """Keep in FP32 the nodes that read a constant that half precision loses, and the nodes affected by it.

    Args:
        flow: the graph; reasons are set on its nodes.
        values: possible values of every tensor.
        ranges: ranges of the float constants.
        seen: ranges of the activations on samples.
    """
    for node in flow.nodes:
        if reason := _lost_constant(node, flow, ranges):
            keep([node], reason)
    for node in flow.nodes:
        if _is_huge(node.proto, flow, values):
            keep(_affected(node, flow), f"{node.proto.output[0]} holds a constant beyond half precision")
        factor, name = _factor(node.proto, flow)
        if factor >= AMPLIFIED and _in_range(node.proto, seen):
            keep([node, *flow.upstream(name)], f"{node.proto.name} multiplies {name} by up to {factor:.4g}")
        if path := _guarded(node, flow):
            keep(path, f"{node.proto.name} shows how far from zero a constant below half precision makes what it reads")
        if path := _vanishing(node, flow, values):
            keep(
                path, f"{node.proto.name} divides by, or takes the logarithm of, what half precision may round to zero"
            )
        if path := _normalised(node, flow):
            keep(path, f"{node.proto.name} normalises what a constant below half precision scales")


def _halved(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return array.astype(np.float16).astype(np.float64)


def _lost(array: np.ndarray) -> np.ndarray:
    """Return a mask of entries below the smallest normal number that are rounded by more than the tolerance."""
    size = np.abs(np.asarray(array, np.float64))
    return np.asarray((size > 0) & (size < SMALLEST_NORMAL) & (np.abs(_halved(array) - array) > TOLERANCE * size))


# one node


def _lost_constant(node: Node, flow: DataFlow, ranges: Mapping[str, WeightRange]) -> str:
    proto = node.proto
    for name in sorted(node.reads & ranges.keys()):
        weight = ranges[name]
        if weight.overflowing and proto.op_type not in BOUNDS:
            return f"its weight {name} reaches {weight.max_abs:.4g}"
        if weight.max_abs and weight.max_abs <= VANISHING:
            return f"its weight {name} of {weight.max_abs:.4g} would be zero"
    if (
        proto.op_type == "BatchNormalization"
        and (scales := _batch_scales(proto, flow)) is not None
        and _differs(*scales)
    ):
        return "its variance or epsilon is below half precision"
    if (
        proto.op_type == "Pow"
        and (power := flow.constants.get(proto.input[1])) is not None
        and np.abs(_halved(power) - power).max(initial=0.0) > TOLERANCE
    ):
        return f"its exponent {proto.input[1]} is rounded"
    divisors = (
        proto.input
        if proto.op_type in _SIGNS
        else proto.input[_DIVISORS[proto.op_type] :][:1]
        if proto.op_type in _DIVISORS
        else ()
    )
    for name in divisors:
        divisor = flow.constants.get(name)
        if divisor is not None and divisor.dtype == np.float32 and (lost := _lost(divisor)).any():
            return f"its constant {name} has entries as small as {np.abs(divisor[lost]).min():.4g}"
    if proto.op_type == "ConstantOfShape" and (fill := _fill(proto)) and (fill > LARGEST or fill <= VANISHING):
        return f"its value of {fill:.4g} is beyond half precision"
    if proto.op_type == "MeanVarianceNormalization" or (
        proto.op_type in _NORMS and not _stashed(proto) and _epsilon(proto) <= VANISHING
    ):
        return "its epsilon would be zero"
    return ""


def _fill(proto: NodeProto) -> float:
    value = attributes(proto).get("value")
    return (
        of_array(numpy_helper.to_array(value)).most
        if value is not None and value.data_type == TensorProto.FLOAT
        else 0.0
    )


def _epsilon(proto: NodeProto) -> float:
    return attributes(proto).get("epsilon", 1e-5)


def _stashed(proto: NodeProto) -> bool:
    """Return whether the operator itself computes mean and variance in FP32."""
    return proto.op_type != "InstanceNormalization" and attributes(proto).get("stash_type", 1) == 1


def _batch_scales(proto: NodeProto, flow: DataFlow) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the factors of a norm with constant statistics on each channel.

    In FP32 and in the worst case in half precision.
    """
    scale, variance = (flow.constants.get(proto.input[i]) for i in (1, 4))
    if scale is None or variance is None:
        return None
    epsilon = np.array(_epsilon(proto))
    with np.errstate(divide="ignore", invalid="ignore"):
        full = scale / np.sqrt(variance + epsilon)
        halves = [_halved(scale) / np.sqrt(_halved(variance) + e) for e in (epsilon, _halved(epsilon))]
    worst = np.where(np.abs(halves[0] - full) >= np.abs(halves[1] - full), *halves)
    return full, worst


def _differs(full: np.ndarray, half: np.ndarray) -> bool:
    large = np.maximum(np.abs(full), np.abs(half)) >= SMALLEST_NORMAL
    return bool((~(np.abs(half - full) <= TOLERANCE * np.abs(full)) & (large | np.isnan(half))).any())


# nodes that belong together


def _is_huge(proto: NodeProto, flow: DataFlow, values: Mapping[str, Values]) -> bool:
    """Return whether a node passes on a finite constant beyond half precision, such as an attention mask."""
    if proto.op_type in ("Mul", "Div"):
        bounded = values[proto.output[0]].most
        return LARGEST < bounded < math.inf and flow.is_float(proto.output[0])
    if proto.op_type == "ConstantOfShape":
        return _fill(proto) > LARGEST
    handed = [*carried(proto), *(proto.input[2:3] if proto.op_type == "Pad" else ())]
    arrays = [flow.constants[name] for name in handed if name in flow.constants and proto.op_type not in BOUNDS]
    return any(
        bool((np.isfinite(array) & (np.abs(array) > LARGEST)).any()) for array in arrays if array.dtype == np.float32
    )


def _affected(node: Node, flow: DataFlow) -> list[Node]:
    """Return a node and all nodes that read the values it passes on, as far as values are carried."""
    affected, pending = {node.proto.name: node}, [node]
    while pending:
        for name in pending.pop().proto.output:
            for reader in flow.readers.get(name, ()):
                if reader.proto.name not in affected:
                    affected[reader.proto.name] = reader
                    pending += [reader] * (name in carried(reader.proto))
    return list(affected.values())


def _factor(proto: NodeProto, flow: DataFlow) -> tuple[float, str]:
    """Return the largest factor by which a node's constants multiply an activation, and the activation's name."""
    data = next((name for name in proto.input if name not in flow.constants), "")
    arrays = [flow.constants[name] for name in proto.input if name in flow.constants]
    if proto.op_type == "BatchNormalization":
        scales = _batch_scales(proto, flow)
        return (0.0, "") if scales is None else (_largest(scales[0]), data)
    if proto.op_type not in ("Div", "Mul", "QuantizeLinear") or not data or not arrays or arrays[0].dtype != np.float32:
        return 0.0, ""
    if proto.op_type == "Mul":
        return _largest(arrays[0]), data
    with np.errstate(divide="ignore", over="ignore"):
        return (_largest(np.asarray(1 / arrays[0].astype(np.float64))), data) if data == proto.input[0] else (0.0, "")


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _in_range(proto: NodeProto, seen: Mapping[str, TensorRange]) -> bool:
    """Return whether a product is within half precision, so that one of its factors must be tiny.

    False without samples.
    """
    return bool(seen) and (proto.output[0] not in seen or seen[proto.output[0]].max_abs <= LARGEST)


def _guarded(node: Node, flow: DataFlow) -> list[Node]:
    """Return a node for which zero differs fundamentally from other numbers.

    With it come all nodes from those that half precision rounds to zero.

    These are nodes that add or multiply a constant too small for half precision, as in x / (|x| + 1e-12), or squares
    without an added constant.
    """
    proto = node.proto
    if proto.op_type in _SIGNS:
        return _joined(*_losing(proto.input, flow, guards_only=True), node, flow)
    divisor = _INVERTED.get(proto.op_type)
    if proto.op_type == "Pow" and (flow.constants.get(proto.input[1], np.ones(1)) < _ROOT).any():
        divisor = 0
    if divisor is None:
        return []
    begin, near = _losing([proto.input[divisor]], flow)
    guards = [one for one in near if one.proto.op_type in _GUARDS and _bounds(one.proto, flow)]
    squares = [name for one in begin.values() if one.proto.op_type in _GUARDS for name in one.proto.input]
    if not guards and any(one.proto.op_type in ("ReduceL2", "Sqrt") for one in near):
        squares.append(proto.input[divisor])
    begin.update((one.proto.name, one) for name in squares for one in _squares(name, flow))
    if begin and proto.op_type == "Div":  # the dividend may be as small as the divisor
        above, more = _losing([proto.input[0]], flow)
        begin, near = begin | above, [*near, *more]
    return _joined(begin, near, node, flow)


def _losing(names: Iterable[str], flow: DataFlow, *, guards_only: bool = False) -> tuple[dict[str, Node], list[Node]]:
    """Return the nodes that read a constant lost in half precision, by name.

    All nodes that compute the values, up to layers, are included.
    """
    near = list({one.proto.name: one for name in names for one in _upstream(name, flow, _POWERS)}.values())
    summing = [
        one for one in near if one.proto.op_type not in HEAVY and (one.proto.op_type in _GUARDS or not guards_only)
    ]
    lost = [one for one in summing if any(_lost(array).any() for array in _bounds(one.proto, flow))]
    return {one.proto.name: one for one in lost}, near


def _bounds(proto: NodeProto, flow: DataFlow) -> list[np.ndarray]:
    """Return the constants that a node combines with a value; before opset 11, those of Clip are attributes."""
    given = [
        flow.constants[name]
        for name in proto.input
        if name in flow.constants and flow.constants[name].dtype == np.float32
    ]
    return given + [np.array(bound) for key, bound in attributes(proto).items() if key in ("min", "max")]


def _squares(name: str, flow: DataFlow) -> Iterator[Node]:
    """Yield the nodes of the sum of squares that a value is computed from.

    Squares of small values vanish in half precision.
    """
    path = list[Node]()
    while (node := flow.writers.get(name)) and (
        node.proto.op_type.startswith("Reduce") or node.proto.op_type in _POWERS
    ):
        path.append(node)
        if node.proto.op_type in _SQUARES and not (
            node.proto.op_type == "Mul" and node.proto.input[0] != node.proto.input[1]
        ):
            yield from path
            return
        name = node.proto.input[0]


def _vanishing(node: Node, flow: DataFlow, values: Mapping[str, Values]) -> list[Node]:
    """Return a logarithm or division and the nodes that compute its argument.

    Only if the argument can be too close to zero for half precision.

    Divisors that may also be zero in FP32 are the network's own responsibility; only exponentials and similar functions
    are checked.
    """
    proto = node.proto
    argument = _INVERTED.get(proto.op_type)
    if argument is None or values[proto.input[argument]].low >= SMALLEST_NORMAL:
        return []
    near = [one for one in _upstream(proto.input[argument], flow, {"Div", "Mul"}) if one.proto.op_type not in HEAVY]
    divides = proto.op_type in ("Div", "Reciprocal")
    if divides and (values[proto.input[argument]].low < 0 or not any(one.proto.op_type in _POSITIVE for one in near)):
        return []
    return [node, *near]


def _normalised(node: Node, flow: DataFlow) -> list[Node]:
    """Return a norm over data, with all nodes from weights whose values half precision loses.

    Such weights are too small, and the norm rescales them.
    """
    proto = node.proto
    if proto.op_type not in _NORMS:
        return []
    near = _upstream(proto.input[0], flow, {"Div", "Mul"})
    path = dict[str, Node]()
    for one in near:
        for array in (flow.constants[name] for name in one.reads if name in flow.constants):
            rows = (
                np.abs(array.reshape(len(array), -1)).max(1)
                if one.proto.op_type == "Conv"
                else np.array([_largest(array)])
            )
            sizes = rows[_lost(rows)]
            if sizes.size and (proto.op_type == "InstanceNormalization" or len(sizes) == len(rows)):
                largest = float(sizes.max())
                if largest > TOLERANCE * math.sqrt(largest**2 + _epsilon(proto)):
                    path[one.proto.name] = one
    return _joined(path, near, node, flow)


def _upstream(name: str, flow: DataFlow, through: Collection[str]) -> list[Node]:
    """Like `DataFlow.upstream`, but also through some operators that compute."""
    upstream, pending = dict[str, Node](), [name]
    while pending:
        for node in flow.upstream(pending.pop()):
            if node.proto.name not in upstream:
                upstream[node.proto.name] = node
                pending += node.proto.input if node.proto.op_type in through else ()
    return list(upstream.values())


def _joined(begin: Mapping[str, Node], near: Iterable[Node], end: Node, flow: DataFlow) -> list[Node]:
    """Return the nodes in `begin` and those of `near` and `end` that depend on them, in graph order."""
    if not begin:
        return []
    names = {node.proto.name for node in (*near, end)}
    joined, written = list[Node](), set[str]()
    for node in flow.nodes:
        if node.proto.name in begin or (node.proto.name in names and not written.isdisjoint(node.proto.input)):
            joined.append(node)
            written.update(node.proto.output)
    return joined
