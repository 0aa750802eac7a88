"""Shapes of an ONNX model's inputs: dynamic ones are fixed before any build."""

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from onnx import ModelProto, ValueInfoProto

from deploy.errors import LoweringError
from latency.onnxproto import bodies
from latency.values import Count

MAX_ELEMENTS = 2**27
"""Maximum number of values of one input; an image of 6500 × 6500 pixels has fewer."""

_TYPICAL: dict[int, tuple[int, ...]] = {2: (1, 128), 3: (1, 128, 128), 4: (1, 3, 224, 224), 5: (1, 3, 16, 112, 112)}
"""Example sizes of dynamic dimensions, by the number of dimensions."""


class Span(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Range of an input's shapes."""

    min: tuple[Count, ...]
    opt: tuple[Count, ...]
    """shape for which engines are tuned and latencies measured"""
    max: tuple[Count, ...]

    @property
    def fixed(self) -> bool:
        """Whether there is only one shape."""
        return self.min == self.opt == self.max

    @property
    def sizes(self) -> tuple[int | tuple[int, int], ...]:
        """Each size, or its smallest and largest value."""
        return tuple(low if low == high else (low, high) for low, high in zip(self.min, self.max, strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{size[0]} to {size[1]}" if isinstance(size, tuple) else str(size) for size in self.sizes)


POINTS = ("min", "opt", "max")
"""The shapes of a span, by name."""
ENDS = ("min", "max")
"""The ends of a span, at which everything is validated as at its `opt`."""

Shapes = Mapping[str, Sequence[int] | Span]
"""Fixed shape or span of each input, by name."""


def shapes_at(spans: Mapping[str, Span], point: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs at `min`, `opt` or `max`, by name."""
    return {name: getattr(span, point) for name, span in spans.items()}


def inputs(model: ModelProto) -> list[ValueInfoProto]:
    """Return the graph inputs of a model without the initializers, which are among them before IR version 4."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    return [value for value in graph.input if value.name not in weights]


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse a name and its shape from `input=1x3x224x224`; the name may itself contain `=`.

    Raises:
        LoweringError: the text has another form.
    """
    name, equals, sizes = text.rpartition("=")
    if not (name and equals and re.fullmatch(r"[1-9][0-9]{0,9}(x[1-9][0-9]{0,9})*", sizes, re.ASCII)):
        raise LoweringError(f"shape {text!r}: give the name of an input and its sizes, such as input=1x3x224x224")
    return name, tuple(map(int, sizes.split("x")))


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Parse shapes by input name, see `parse_shape`.

    Raises:
        LoweringError: a text has another form, or two are for one input.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in map(parse_shape, texts):
        if name in shapes:
            raise LoweringError(f"shape of {name!r}: it is given twice, {_text(shapes[name])} and {_text(shape)}")
        shapes[name] = shape
    return shapes


def parse_spans(texts: Iterable[str]) -> dict[str, Span]:
    """Parse spans by input name: from one shape, see `parse_shapes`, or from three, `input=1x3x8x8:8x3x8x8:32x3x8x8`.

    Raises:
        LoweringError: a text has another form, its sizes decrease, or two are for one input.
    """
    spans: dict[str, Span] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        parts = sizes.split(":")
        if len(parts) not in (1, 3):
            raise LoweringError(
                f"shape {text!r}: give one shape, or the smallest, the usual and the largest: "
                "input=1x3x8x8:8x3x8x8:32x3x8x8"
            )
        low, usual, high = (
            parse_shape(f"{name}{equals}{part}")[1] for part in (parts if len(parts) == 3 else parts * 3)
        )
        if not len(low) == len(usual) == len(high) or any(
            a > b or b > c for a, b, c in zip(low, usual, high, strict=True)
        ):
            raise LoweringError(
                f"shape {text!r}: the smallest, the usual and the largest shape must not fall in any size"
            )
        if name in spans:
            raise LoweringError(f"shape of {name!r}: it is given twice")
        spans[name] = Span(low, usual, high)
    return spans


def fix_spans(model: ModelProto, shapes: Shapes) -> dict[str, Span]:
    """Set the shapes of dynamic inputs: sizes that are equal throughout a span are fixed, others stay dynamic.

    Returns:
        The inputs that remain dynamic, including those that share a symbol with another input.

    Raises:
        LoweringError: as `fix_shapes`, for any of the shapes; or an input remains without a shape.
    """
    if not shapes:
        return {}
    spans = {name: shape if isinstance(shape, Span) else Span(*[tuple(shape)] * 3) for name, shape in shapes.items()}
    fixed = []
    for point in POINTS:
        copy = ModelProto()
        copy.CopyFrom(model)
        fix_shapes(copy, shapes_at(spans, point))
        fixed.append(inputs(copy))
        require_static_inputs(fixed[-1])
    dynamic: dict[str, Span] = {}
    for value, *each in zip(inputs(model), *fixed, strict=True):
        kind = value.type.tensor_type
        symbols = [dim.dim_param for dim in kind.shape.dim] or [""] * len(each[1].type.tensor_type.shape.dim)
        span = Span(*(tuple(dim.dim_value for dim in copy.type.tensor_type.shape.dim) for copy in each))
        kind.shape.CopyFrom(each[1].type.tensor_type.shape)
        if span.fixed:
            continue
        dynamic[value.name] = span
        for number, (low, high) in enumerate(zip(span.min, span.max, strict=True)):
            if low != high:
                kind.shape.dim[number].dim_param = symbols[number] or f"{value.name}_{number}"
    _forget(model)
    return dynamic


def fix_shapes(model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix the shapes of dynamic inputs; a symbol such as `batch` is also fixed in the other inputs.

    Shapes of inner values and dynamic sizes of outputs are removed, to be inferred again.

    Raises:
        LoweringError: there is no such input, or it has a different fixed shape.
    """
    if not shapes:
        return
    values = {value.name: value for value in inputs(model)}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in values:
            raise LoweringError(
                f"shape of {name!r}: the model has no such input, its inputs are {', '.join(values) or 'none'}"
            )
        _fix(values[name], shape, symbols)
    for value in values.values():
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    _forget(model)


def _forget(model: ModelProto) -> None:
    """Remove shapes that follow from those of the inputs."""
    for graph in bodies(model.graph):
        graph.ClearField("value_info")
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.Clear()


def _fix(value: ValueInfoProto, shape: Sequence[int], symbols: dict[str, int]) -> None:
    kind, name = value.type.tensor_type, value.name
    if not all(type(size) is int and size > 0 for size in shape):
        raise LoweringError(f"shape of {name!r}: every size must be a whole number above 0, found {tuple(shape)}")
    if not value.type.HasField("tensor_type"):
        raise LoweringError(f"shape of {name!r}: the input is not a tensor")
    if not kind.HasField("shape"):
        for size in shape:
            kind.shape.dim.add(dim_value=size)
        kind.shape.SetInParent()
        return
    if len(shape) != len(kind.shape.dim):
        raise LoweringError(
            f"shape of {name!r}: {_text(shape)} has {len(shape)} dimensions, the input has ({sizes(value)})"
        )
    declared = sizes(value)
    for dim, size in zip(kind.shape.dim, shape, strict=True):
        if dim.dim_value > 0 and dim.dim_value != size:
            raise LoweringError(
                f"shape of {name!r}: {_text(shape)} does not fit ({declared}), of which only dynamic sizes can be "
                "chosen"
            )
        if (chosen := symbols.get(dim.dim_param, size)) != size:
            raise LoweringError(
                f"shape of {name!r}: {_text(shape)} does not fit ({declared}), {dim.dim_param!r} is already {chosen}: "
                "give it one size"
            )
        if dim.dim_param:
            symbols[dim.dim_param] = size
        dim.dim_value = size


def require_static_inputs(values: Sequence[ValueInfoProto]) -> None:
    """Require that all inputs have fixed shapes of a moderate size.

    Raises:
        LoweringError: an input does not; gives the flags that fix all shapes.
    """
    dynamic = [value for value in values if not is_static(value)]
    if dynamic:
        value = dynamic[0]
        if not value.type.tensor_type.HasField("shape"):
            problem = "has no shape"
        elif all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim):
            problem = f"has a size that is not above 0 in its shape ({sizes(value)})"
        else:
            problem = f"has a dynamic shape ({sizes(value)})"
        flags = " ".join("--shape " + shlex.quote(f"{value.name}={_example(value)}") for value in dynamic)
        raise LoweringError(f"input {value.name!r} {problem}: fix it, as by {flags}")
    for value in values:
        count = math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        if count > MAX_ELEMENTS:
            raise LoweringError(
                f"input {value.name!r} of shape ({sizes(value)}) has {count:,} values, at most {MAX_ELEMENTS:,} are fed"
            )


def is_static(value: ValueInfoProto) -> bool:
    """Return whether a tensor has a shape with all sizes known and above 0."""
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(dim.dim_value > 0 for dim in kind.shape.dim)


def sizes(value: ValueInfoProto) -> str:
    """Format the sizes of a shape: `n, 3, 224, 224`."""
    return ", ".join(
        str(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?")
        for dim in value.type.tensor_type.shape.dim
    )


def _example(value: ValueInfoProto) -> str:
    """Return a shape to paste, with fixed sizes unchanged and typical sizes for the others."""
    dims = value.type.tensor_type.shape.dim if value.type.tensor_type.HasField("shape") else [None] * 4
    typical = _TYPICAL.get(len(dims), (1,) * len(dims))
    return _text(
        [
            dim.dim_value if dim is not None and dim.dim_value > 0 else size
            for dim, size in zip(dims, typical, strict=True)
        ]
    )


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
