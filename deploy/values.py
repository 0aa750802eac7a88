"""Possible values in a graph from its operators and constants alone.

Whole numbers, fractions of them or any, and their limits.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from deploy.flow import DataFlow, attributes, carried

INTEGERS: dict[int, tuple[float, float]] = {
    TensorProto.BOOL: (0.0, 1.0),
    TensorProto.UINT8: (0.0, 255.0),
    TensorProto.INT8: (-128.0, 127.0),
    TensorProto.UINT16: (0.0, 65535.0),
    TensorProto.INT16: (-32768.0, 32767.0),
    TensorProto.UINT32: (0.0, math.inf),
    TensorProto.UINT64: (0.0, math.inf),
    TensorProto.INT32: (-math.inf, math.inf),
    TensorProto.INT64: (-math.inf, math.inf),
}
"""Integer types with their limits; those of 32 and 64 bits count as unlimited."""


STEPS = (1.0, 0.5, 0.25, 0.125)
"""Step sizes recognised in constants: positions are whole numbers or fractions of pixels."""


@dataclass(frozen=True)
class Values:
    """Possible values of a tensor's elements.

    Attributes:
        whole: whether all are whole numbers.
        low: smallest value.
        high: largest value.
        step: minimum distance between fractions, which are whole numbers times this, possibly shifted; 0 for arbitrary
            values.
    """

    whole: bool
    low: float = -math.inf
    high: float = math.inf
    step: float = 0.0

    @property
    def apart(self) -> float:
        """Minimum distance between values; 0 if unknown."""
        return 1.0 if self.whole else self.step

    @property
    def single(self) -> bool:
        """Whether all values are equal."""
        return self.low == self.high

    @property
    def most(self) -> float:
        """Largest possible magnitude."""
        return max(abs(self.low), abs(self.high))


_UNKNOWN = Values(whole=False)
_SHARE = Values(whole=False, low=0.0, high=1.0)
_UNIT = Values(whole=False, low=-1.0, high=1.0)
_LIMITS = {
    **dict.fromkeys(("HardSigmoid", "Sigmoid", "Softmax"), _SHARE),
    **dict.fromkeys(("Cos", "Erf", "Sin", "Softsign", "Tanh"), _UNIT),
    "Exp": Values(whole=False, low=0.0),
    "Hardmax": Values(whole=True, low=0.0, high=1.0),
    "Sign": Values(whole=True, low=-1.0, high=1.0),
}


def possible(flow: DataFlow) -> dict[str, Values]:
    """Return the possible values of every tensor of a graph, by name; "" is an omitted input."""
    values = {"": _UNKNOWN, **{name: of_array(array) for name, array in flow.constants.items()}}
    for value in flow.graph.input:
        values[value.name] = _of_type(value.type.tensor_type.elem_type)
    for node in flow.nodes:
        proto = node.proto
        read = [values[name] for name in proto.input]
        for i, name in enumerate(proto.output):
            if i == 0 or proto.op_type == "Split":
                result = (
                    _RULES[proto.op_type](proto, read, flow)
                    if proto.op_type in _RULES
                    else _LIMITS.get(proto.op_type, _UNKNOWN)
                )
            else:
                result = _index(flow.size(proto.input[0])) if proto.op_type in ("MaxPool", "TopK") else _UNKNOWN
            values[name] = _within(result, _of_type(flow.kinds.get(name, 0)))
    return values


def of_array(array: np.ndarray) -> Values:
    """Return the values of a constant; infinities, which every float type has, do not count as limits."""
    if array.dtype.kind not in "biuf" or np.isnan(array).any():
        return _UNKNOWN
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Values(True, 0.0, 0.0)
    step = next((step for step in STEPS if (finite / step == np.round(finite / step)).all()), 0.0)
    whole = step == 1
    return Values(whole, float(finite.min()), float(finite.max()), 0.0 if whole else step)


def _of_type(kind: int) -> Values:
    return Values(True, *INTEGERS[kind]) if kind in INTEGERS else _UNKNOWN


def _within(values: Values, typed: Values) -> Values:
    """Restrict values to those of a type; NaN limits, such as the sum of opposite infinities, become infinite."""
    low, high = (
        (-math.inf if math.isnan(values.low) else values.low),
        (math.inf if math.isnan(values.high) else values.high),
    )
    return Values(
        values.whole or typed.whole, max(low, typed.low), min(high, typed.high), 0.0 if typed.whole else values.step
    )


def _index(size: float) -> Values:
    return Values(whole=True, low=0.0, high=size - 1)


def _times(one: Values, other: Values) -> Values:
    corners = [0.0 if 0 in (a, b) else a * b for a in (one.low, one.high) for b in (other.low, other.high)]
    whole = one.whole and other.whole
    steps = [value.most if value.single else value.apart for value in (one, other)]
    return Values(whole, min(corners), max(corners), 0.0 if whole else math.prod(steps))


def _count(low: float, high: float) -> Values:
    return Values(whole=True, low=low, high=high)


def _made_of(parts: Sequence[Values], low: float, high: float) -> Values:
    """Return the values of joined or summed parts: the smallest step of any part applies.

    Single values only shift a sum.
    """
    whole = all(one.whole for one in parts)
    return Values(whole, low, high, 0.0 if whole else min((one.apart for one in parts if not one.single), default=0.0))


def _joined(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    inputs = dict(zip(proto.input, read, strict=True))
    parts = [inputs[name] for name in carried(proto)]
    if proto.op_type == "Pad":
        parts.append(read[2] if len(read) > 2 and proto.input[2] else _count(0.0, 0.0))
    elif proto.op_type == "OneHot":
        parts = [read[2]]
    joined = _made_of(parts, min(one.low for one in parts), max(one.high for one in parts))
    match attributes(proto).get("reduction", b"none"):
        case b"none":
            return joined
        case b"add":
            return _made_of([joined, read[2]], *_ends(joined, _times(read[2], _count(0.0, flow.size(proto.input[2])))))
        case _:
            return Values(joined.whole)


def _ends(one: Values, other: Values) -> tuple[float, float]:
    """Return the limits of a sum."""
    return one.low + other.low, one.high + other.high


def _added(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    if proto.op_type == "Sub":
        read = [read[0], _negated(proto, read[1:], flow)]
    return _made_of(read, sum((one.low for one in read), 0.0), sum((one.high for one in read), 0.0))


def _mean(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    share = 1 / len(read)
    return _times(_added(proto, read, flow), Values(False, share, share))


def _multiplied(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    return _times(read[0], read[1])


def _divided(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    one, other = read
    if flow.kinds.get(proto.output[0]) in INTEGERS:
        return Values(True, -one.most, one.most)
    if other.low <= 0 <= other.high:
        return _UNKNOWN
    return _times(one, Values(False, *sorted((1 / other.low, 1 / other.high))))


def _remainder(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    most = min(read[0].most if read[0].low >= 0 <= read[1].low else math.inf, read[1].most)
    return _made_of(read, 0.0 if read[1].low >= 0 else -most, most)


def _clipped(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return clipped values; before opset 11, the bounds are attributes."""
    low, high = -math.inf, math.inf
    old = attributes(proto)
    if len(read) > 1 and proto.input[1]:
        low = read[1].low
    if len(read) > 2 and proto.input[2]:
        high = read[2].high
    low, high = old.get("min", low), old.get("max", high)
    bounds = [bound for name, bound in zip(proto.input[1:], read[1:], strict=True) if name]
    return _made_of([read[0], *bounds], min(max(read[0].low, low), high), max(min(read[0].high, high), low))


def _extreme(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    pick = max if proto.op_type == "Max" else min
    return _made_of(read, pick(one.low for one in read), pick(one.high for one in read))


def _rectified(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    return replace(read[0], low=max(0.0, read[0].low), high=max(0.0, read[0].high))


def _leaky(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return the values of a rectifier with a slope for negative inputs; positive numbers keep their steps."""
    slope = read[1] if len(read) > 1 else Values(False, *[attributes(proto).get("alpha", 0.01)] * 2)
    below = _times(replace(read[0], high=min(0.0, read[0].high)), slope)
    return replace(
        read[0],
        whole=False,
        low=min(below.low, max(0.0, read[0].low)),
        high=max(below.high, read[0].high),
        step=read[0].apart,
    )


def _absolute(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    return replace(read[0], low=0.0, high=read[0].most)


def _negated(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    return replace(read[0], low=-read[0].high, high=-read[0].low)


def _summed(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    one = read[0]
    if proto.op_type == "ReduceL1":
        one = _absolute(proto, read, flow)
    elif proto.op_type == "ReduceSumSquare":
        one = replace(_times(one, one), low=0.0)
    count = _reduced(proto, flow)
    return replace(one, low=one.low * count if one.low else 0.0, high=one.high * count if one.high else 0.0)


def _reduced(proto: NodeProto, flow: DataFlow) -> float:
    """Return the number of elements that a reduction combines into one."""
    before, after = flow.size(proto.input[0]), flow.size(proto.output[0])
    return before if math.inf in (before, after) else before / max(after, 1)


def _averaged(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    kernel = attributes(proto).get("kernel_shape")
    count = math.prod(kernel) if kernel else _reduced(proto, flow)
    return Values(
        False, min(read[0].low, 0.0), max(read[0].high, 0.0), read[0].apart / count
    )  # padding counts as zeros


def _product(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    try:
        most = max(1.0, read[0].most) ** _reduced(proto, flow)
    except OverflowError:
        most = math.inf
    return Values(read[0].whole, 0.0 if read[0].low >= 0 else -most, most)


def _cumulated(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    axis = flow.constants.get(proto.input[1])
    length = flow.size(proto.input[0]) if axis is None else flow.dim(proto.input[0], int(axis.reshape(-1)[0]))
    return _times(read[0], _count(0.0, length))


def _layer(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return the values of a layer.

    Whole if its input, weights and bias are, and with steps if input and weights have steps.
    """
    if proto.op_type == "MatMul":
        inner = flow.dim(proto.input[0], -1)
    elif proto.op_type == "Gemm":
        given = attributes(proto)
        if not all(float(given.get(name, 1)).is_integer() for name in ("alpha", "beta")):
            return _UNKNOWN
        inner = flow.dim(proto.input[0], 0 if given.get("transA") else 1) * abs(given.get("alpha", 1))
    elif proto.op_type == "Einsum":
        inner = math.prod(flow.size(name) for name in proto.input[1:])
        for other in read[1:-1]:
            read = [_times(read[0], other), read[-1]]
    else:
        inner = flow.size(proto.input[1]) / (flow.dim(proto.input[1], 0) if proto.op_type == "Conv" else 1)
    one = _times(read[0], read[1])
    one = replace(one, low=-inner * one.most if one.most else 0.0, high=inner * one.most if one.most else 0.0)
    bias = read[2:3] if len(read) > 2 and proto.input[2] else []
    return _made_of([one, *bias], one.low + sum(b.low for b in bias), one.high + sum(b.high for b in bias))


def _powered(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    exponent = read[1].low
    if not read[1].whole or exponent != read[1].high or not 0 <= exponent <= 8:
        return _UNKNOWN
    most = read[0].most ** exponent
    return Values(
        read[0].whole, 0.0 if exponent % 2 == 0 else -most, most, 0.0 if read[0].whole else read[0].step ** exponent
    )


def _root(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return the values of a root; neighbouring roots are closest where they are largest."""
    most = math.sqrt(max(0.0, read[0].high))
    return Values(False, 0.0, most, read[0].apart / (2 * most) if 0 < most < math.inf else 0.0)


def _rounded(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return the values of rounding, or of a cast to whole numbers, which truncates."""
    return Values(True, read[0].low - 1, read[0].high + 1)


def _cast(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    return _rounded(proto, read, flow) if flow.kinds.get(proto.output[0]) in INTEGERS and not read[0].whole else read[0]


def _resized(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    match attributes(proto).get("mode", b"nearest"):
        case b"nearest":
            return read[0]
        case b"linear":
            return Values(False, min(read[0].low, 0.0), max(read[0].high, 0.0))
        case _:
            return _UNKNOWN


def _filled(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    fill = attributes(proto).get("value")
    return _count(0.0, 0.0) if fill is None else of_array(numpy_helper.to_array(fill))


def _ranged(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    step = read[2].most if read[2].single else read[2].apart
    return Values(read[0].whole and read[2].whole, min(read[0].low, read[1].low), max(read[0].high, read[1].high), step)


def _dequantised(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    moved = _added(
        proto, [read[0], _negated(proto, read[2:], flow)] if len(read) > 2 and proto.input[2] else read[:1], flow
    )
    return _times(moved, read[1])


def _extent(proto: NodeProto, read: list[Values], flow: DataFlow) -> Values:
    """Return the values of operators that count elements or return their indices."""
    shape = flow.shapes.get(proto.input[0], (0,))
    most = math.inf if 0 in shape else float(max(shape, default=1))
    match proto.op_type:
        case "Size":
            return _count(0.0, flow.size(proto.input[0]))
        case "Shape":
            return _count(0.0, most)
        case "ArgMax" | "ArgMin":
            return _index(flow.dim(proto.input[0], attributes(proto).get("axis", 0)))
        case _:
            return _index(most)


Rule = Callable[[NodeProto, list[Values], DataFlow], Values]

_CARRYING = (
    "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalMaxPool", "Identity", "MaxPool", "OneHot", "Pad", "ReduceMax", "ReduceMin", "Reshape", "ReverseSequence",
    "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu",
    "Unsqueeze", "Where",
)  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CARRYING, _joined),
    **dict.fromkeys(("Add", "Sub", "Sum"), _added),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("ReduceL1", "ReduceSum", "ReduceSumSquare"), _summed),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _averaged),
    **dict.fromkeys(("LeakyRelu", "PRelu"), _leaky),
    **dict.fromkeys(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"), _layer),
    **dict.fromkeys(("Ceil", "Floor", "Round"), _rounded),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"), _extent),
    "Abs": _absolute,
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clipped,
    "ConstantOfShape": _filled,
    "CumSum": _cumulated,
    "DequantizeLinear": _dequantised,
    "Div": _divided,
    "Mean": _mean,
    "Mod": _remainder,
    "Mul": _multiplied,
    "Neg": _negated,
    "Pow": _powered,
    "Range": _ranged,
    "ReduceProd": _product,
    "Relu": _rectified,
    "Resize": _resized,
    "Sqrt": _root,
    "Upsample": _resized,
}
