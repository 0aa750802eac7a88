"""What the values of a graph can be, from its operators and constants alone: whole numbers or any, and between which limits."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from deploy.flow import Flow, attributes, carried

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
"""Types of whole numbers, with their limits; those of 32 and 64 bits are taken to have none."""


@dataclass(frozen=True)
class Values:
    """What the elements of a tensor can be."""

    whole: bool
    low: float = -math.inf
    high: float = math.inf

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
    "Sign": Values(whole=True, low=-1.0, high=1.0),
}


def possible(flow: Flow) -> dict[str, Values]:
    """What every value of a graph can be, by its name; "" is an input that is left out."""
    values = {"": _UNKNOWN, **{name: of_array(array) for name, array in flow.constants.items()}}
    for value in flow.graph.input:
        values[value.name] = _of_type(value.type.tensor_type.elem_type)
    for node in flow.nodes:
        proto = node.proto
        read = [values[name] for name in proto.input]
        for i, name in enumerate(proto.output):
            if i == 0 or proto.op_type == "Split":
                found = _RULES[proto.op_type](proto, read, flow) if proto.op_type in _RULES else _LIMITS.get(proto.op_type, _UNKNOWN)
            else:
                found = _index(flow.size(proto.input[0])) if proto.op_type in ("MaxPool", "TopK") else _UNKNOWN
            values[name] = _within(found, _of_type(flow.kinds.get(name, 0)))
    return values


def of_array(array: np.ndarray) -> Values:
    """What the elements of a constant are; infinities, which every float type has, are no limits."""
    if array.dtype.kind not in "biuf" or np.isnan(array).any():
        return _UNKNOWN
    finite = array[np.isfinite(array)]
    if not finite.size:
        return Values(True, 0.0, 0.0)
    return Values(bool((finite == np.round(finite)).all()), float(finite.min()), float(finite.max()))


def _of_type(kind: int) -> Values:
    return Values(True, *INTEGERS[kind]) if kind in INTEGERS else _UNKNOWN


def _within(values: Values, typed: Values) -> Values:
    """Values of a type; what is not a number, such as the sum of opposite infinities, is no limit."""
    low, high = (-math.inf if math.isnan(values.low) else values.low), (math.inf if math.isnan(values.high) else values.high)
    return Values(values.whole or typed.whole, max(low, typed.low), min(high, typed.high))


def _index(size: float) -> Values:
    return Values(whole=True, low=0.0, high=size - 1)


def _times(one: Values, other: Values) -> Values:
    corners = [0.0 if 0 in (a, b) else a * b for a in (one.low, one.high) for b in (other.low, other.high)]
    return Values(one.whole and other.whole, min(corners), max(corners))


def _count(low: float, high: float) -> Values:
    return Values(whole=True, low=low, high=high)


def _whole(values: Sequence[Values]) -> bool:
    return all(one.whole for one in values)


def _joined(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    inputs = dict(zip(proto.input, read, strict=True))
    parts = [inputs[name] for name in carried(proto)]
    if proto.op_type == "Pad":
        parts.append(read[2] if len(read) > 2 and proto.input[2] else _count(0.0, 0.0))
    elif proto.op_type == "OneHot":
        parts = [read[2]]
    return Values(_whole(parts), min(one.low for one in parts), max(one.high for one in parts))


def _added(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    if proto.op_type == "Sub":
        read = [read[0], Values(read[1].whole, -read[1].high, -read[1].low)]
    return Values(_whole(read), sum((one.low for one in read), 0.0), sum((one.high for one in read), 0.0))


def _multiplied(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return _times(read[0], read[1])


def _divided(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    one, other = read
    if flow.kinds.get(proto.output[0]) in INTEGERS:
        return Values(True, -one.most, one.most)
    if other.low <= 0 <= other.high:
        return _UNKNOWN
    return _times(one, Values(False, *sorted((1 / other.low, 1 / other.high))))


def _remainder(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    most = min(read[0].most if read[0].low >= 0 <= read[1].low else math.inf, read[1].most)
    return Values(_whole(read), 0.0 if read[1].low >= 0 else -most, most)


def _clipped(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    """Before opset 11 the bounds are attributes."""
    low, high = -math.inf, math.inf
    whole, old = read[0].whole, attributes(proto)
    if len(read) > 1 and proto.input[1]:
        low, whole = read[1].low, whole and read[1].whole
    if len(read) > 2 and proto.input[2]:
        high, whole = read[2].high, whole and read[2].whole
    low, high = old.get("min", low), old.get("max", high)
    return Values(whole, min(max(read[0].low, low), high), max(min(read[0].high, high), low))


def _extreme(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    pick = max if proto.op_type == "Max" else min
    return Values(_whole(read), pick(one.low for one in read), pick(one.high for one in read))


def _rectified(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return Values(read[0].whole, max(0.0, read[0].low), max(0.0, read[0].high))


def _absolute(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return Values(read[0].whole, 0.0, read[0].most)


def _negated(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return Values(read[0].whole, -read[0].high, -read[0].low)


def _summed(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    one = read[0]
    if proto.op_type == "ReduceL1":
        one = Values(one.whole, 0.0, one.most)
    elif proto.op_type == "ReduceSumSquare":
        one = Values(one.whole, 0.0, one.most**2)
    before, after = flow.size(proto.input[0]), flow.size(proto.output[0])
    count = before if math.inf in (before, after) else before / max(after, 1)
    return _times(one, _count(count, count))


def _averaged(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return Values(False, min(read[0].low, 0.0), max(read[0].high, 0.0))  # padding counts as zeros


def _cumulated(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    axis = flow.constants.get(proto.input[1])
    length = flow.size(proto.input[0]) if axis is None else flow.dim(proto.input[0], int(axis.reshape(-1)[0]))
    return _times(read[0], _count(0.0, length))


def _layer(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    """Of a layer: whole where its input, weights and bias all are."""
    if proto.op_type == "MatMul":
        inner = flow.dim(proto.input[0], -1)
    elif proto.op_type == "Gemm":
        given = attributes(proto)
        if not all(float(given.get(name, 1)).is_integer() for name in ("alpha", "beta")):
            return _UNKNOWN
        inner = flow.dim(proto.input[0], 0 if given.get("transA") else 1) * abs(given.get("alpha", 1))
    else:
        inner = flow.size(proto.input[1])
    one = _times(_times(read[0], read[1]), _count(-inner, inner))
    return _added(proto, [one, *(read[2:3] if len(read) > 2 and proto.input[2] else ())], flow)


def _powered(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    exponent = read[1].low
    if not read[1].whole or exponent != read[1].high or not 0 <= exponent <= 8:
        return _UNKNOWN
    most = read[0].most ** exponent
    return Values(read[0].whole, 0.0 if exponent % 2 == 0 else -most, most)


def _rounded(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    """Also of a cast to whole numbers, which takes the fraction away."""
    return Values(True, read[0].low - 1, read[0].high + 1)


def _cast(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return _rounded(proto, read, flow) if flow.kinds.get(proto.output[0]) in INTEGERS and not read[0].whole else read[0]


def _resized(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    match attributes(proto).get("mode", b"nearest"):
        case b"nearest":
            return read[0]
        case b"linear":
            return Values(False, min(read[0].low, 0.0), max(read[0].high, 0.0))
        case _:
            return _UNKNOWN


def _filled(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    fill = attributes(proto).get("value")
    return _count(0.0, 0.0) if fill is None else of_array(numpy_helper.to_array(fill))


def _ranged(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    return Values(_whole([read[0], read[2]]), min(read[0].low, read[1].low), max(read[0].high, read[1].high))


def _extent(proto: NodeProto, read: list[Values], flow: Flow) -> Values:
    """Of what counts elements, or says where they are."""
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


Rule = Callable[[NodeProto, list[Values], Flow], Values]

_CARRYING = (
    "Compress", "Concat", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool",
    "Identity", "MaxPool", "OneHot", "Pad", "ReduceMax", "ReduceMin", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_CARRYING, _joined),
    **dict.fromkeys(("Add", "Sub", "Sum"), _added),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("ReduceL1", "ReduceSum", "ReduceSumSquare"), _summed),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _averaged),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _layer),
    **dict.fromkeys(("Ceil", "Floor", "Round"), _rounded),
    **dict.fromkeys(("ArgMax", "ArgMin", "NonZero", "Shape", "Size"), _extent),
    "Abs": _absolute,
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clipped,
    "ConstantOfShape": _filled,
    "CumSum": _cumulated,
    "Div": _divided,
    "Mod": _remainder,
    "Mul": _multiplied,
    "Neg": _negated,
    "Pow": _powered,
    "Range": _ranged,
    "Relu": _rectified,
    "Resize": _resized,
    "Upsample": _resized,
}
