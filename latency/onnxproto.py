"""Decoder of ONNX models: declared sizes are compared with actual ones before memory or time is spent on them.

Every tensor is checked, wherever ONNX allows one: dense and sparse initializers, attributes of nodes, bodies of If,
Loop and Scan, local functions and their defaults, at any depth.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    load_from_string,
)

from latency.errors import FileError, one_line
from latency.files import human_bytes

MAX_BYTES = 2**31 - 1
"""Maximum size of a protobuf message, and so of a model with inline weights."""

MAX_NODES = 200_000
"""Maximum number of nodes with local functions inlined. The largest exported networks have about ten thousand."""

MAX_DEPTH = 64
"""Maximum depth of calls among local functions."""

_BITS: dict[str, int] = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("FLOAT6E2M3", "FLOAT6E3M2"), 6),
    **dict.fromkeys(
        ("UINT8", "INT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8
    ),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("FLOAT", "UINT32", "INT32"), 32),
    **dict.fromkeys(("DOUBLE", "UINT64", "INT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}
_FIELDS: dict[str, str] = {
    **dict.fromkeys(("FLOAT", "COMPLEX64"), "float_data"),
    **dict.fromkeys(("DOUBLE", "COMPLEX128"), "double_data"),
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
    "INT64": "int64_data",
    "STRING": "string_data",
}
"""Field that holds the values of a type if they are not raw bytes; `int32_data` for other types."""


def decode_onnx(data: bytes, where: object, *, weights: bool = True) -> ModelProto:
    """Decode a serialised ONNX model.

    Args:
        data: the serialised model.
        where: start of the error message.
        weights: whether tensors must hold the values that they declare; in a graph stripped of its weights they may be
            empty.

    Raises:
        FileError: the data is not an ONNX model, a tensor does not hold as many values as it declares, or the model is
            larger or deeper than any network; names the tensor and the limit.
    """
    from google.protobuf.message import DecodeError

    if len(data) > MAX_BYTES:
        raise FileError(
            where,
            f"has {human_bytes(len(data))}: an ONNX model has less than 2 GiB, larger weights are in a file beside it",
        )
    try:
        model = load_from_string(data)
    except DecodeError as error:
        deep = "MaxDepth" in str(error) or "recursion" in str(error).lower()
        problem = "its graphs are nested deeper than protobuf allows" if deep else one_line(error)
        raise FileError(where, f"is not an ONNX model: it cannot be decoded ({problem})") from error
    if not model.ir_version:  # other data, or no bytes at all, may decode to a message without fields
        raise FileError(where, "is not an ONNX model: it has no ir_version")
    _require_names(model, where)
    _require_moderate(model, where)
    for owner, tensor in tensors(model):
        if not is_external(tensor):
            _require_whole(tensor, f"{where}: {named(tensor, owner)}", weights)
    return model


def graphs(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Yield every graph and function of a model, including bodies of nodes."""
    roots = [model.graph, *model.functions]
    for training in model.training_info:
        roots += [training.initialization, training.algorithm]
    for root in roots:
        yield root
        yield from _held(root.node)


def bodies(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the graphs in its nodes, at any depth."""
    yield graph
    yield from _held(graph.node)


def _held(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from bodies(body)


def tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield every tensor of a model with a description of its place: "" for an initializer, which has a name."""
    for graph in graphs(model):
        if isinstance(graph, FunctionProto):
            for attribute in graph.attribute_proto:
                for tensor in _tensors_of(attribute):
                    yield f"the default of {attribute.name!r} of function {graph.name!r}", tensor
        else:
            for tensor in graph.initializer:
                yield "", tensor
            for sparse in graph.sparse_initializer:
                yield "", sparse.values
                yield f"the indices of {sparse.values.name!r}", sparse.indices
        for node in graph.node:
            for attribute in node.attribute:
                for tensor in _tensors_of(attribute):
                    yield f"{attribute.name!r} of {describe(node)}", tensor


def sparse_tensors(model: ModelProto) -> Iterator[SparseTensorProto]:
    """Yield every sparse tensor of a model."""
    for graph in graphs(model):
        if isinstance(graph, GraphProto):
            yield from graph.sparse_initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor"):
                    yield attribute.sparse_tensor
                yield from attribute.sparse_tensors


def describe(node: NodeProto) -> str:
    """Describe a node for messages: by its name, or by its outputs if it has none."""
    if node.name:
        return f"node {node.name!r} ({node.op_type})"
    return f"the {node.op_type or 'node'} that writes {next(filter(None, node.output), 'nothing')!r}"


def named(tensor: TensorProto, owner: str) -> str:
    """Describe a tensor for messages."""
    return (
        f"tensor {tensor.name!r}" if tensor.name else f"the tensor in {owner}" if owner else "a tensor without a name"
    )


def is_external(tensor: TensorProto) -> bool:
    """Return whether a tensor's values are in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def size_of(tensor: TensorProto, where: str) -> int:
    """Return the size of a tensor's values in bytes, by its type and shape; for strings, their number.

    Raises:
        FileError: the shape or type is invalid; `where` starts the message.
    """
    kind = _kind(tensor, where)
    if any(size < 0 for size in tensor.dims):
        raise FileError(where, f"has the shape {list(tensor.dims)}: no dimension may be negative")
    return -(-math.prod(tensor.dims) * _BITS.get(kind, 8) // 8)


def _kind(tensor: TensorProto, where: str) -> str:
    kinds = {number: name for name, number in TensorProto.DataType.items()}
    kind = kinds.get(tensor.data_type, "UNDEFINED")
    if kind not in _BITS and kind != "STRING":
        raise FileError(where, f"has the type {tensor.data_type}, which this version of ONNX does not know")
    return kind


def _require_whole(tensor: TensorProto, where: str, weights: bool) -> None:
    """Require that a tensor holds as many values as it declares."""
    size, kind = size_of(tensor, where), _kind(tensor, where)
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) == size and kind != "STRING":
            return
        held = human_bytes(len(tensor.raw_data))
    else:
        packed = _BITS.get(kind, 8)
        wanted = -(-count * packed // 8) if packed < 8 else count * (2 if kind.startswith("COMPLEX") else 1)
        values = getattr(tensor, _FIELDS.get(kind, "int32_data"))
        if len(values) == wanted or (not weights and not values):
            return
        held = f"{len(values)} values"
    raise FileError(where, f"declares the shape {list(tensor.dims)} of {kind}, {human_bytes(size)}, and holds {held}")


def _require_names(model: ModelProto, where: object) -> None:
    """Require that names are text: protobuf returns names that are not UTF-8 as bytes."""
    texts: list[object] = []
    for graph in graphs(model):
        texts.append(graph.name)
        if isinstance(graph, GraphProto):
            texts += [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
            texts += [
                dim.dim_param
                for value in (*graph.input, *graph.output, *graph.value_info)
                for dim in _dimensions(value)
            ]
        else:
            texts += [*graph.input, *graph.output, graph.domain]
        for node in graph.node:
            texts += [
                node.name,
                node.op_type,
                node.domain,
                *node.input,
                *node.output,
                *(part.name for part in node.attribute),
            ]
    for _, tensor in tensors(model):
        texts += [
            tensor.name,
            *(entry.key for entry in tensor.external_data),
            *(entry.value for entry in tensor.external_data),
        ]
    texts += [entry.domain for entry in model.opset_import]
    if strange := next((text for text in texts if isinstance(text, bytes)), None):
        raise FileError(where, f"is damaged: the name {strange!r} is not UTF-8")


def _dimensions(value: ValueInfoProto) -> Sequence[TensorShapeProto.Dimension]:
    return value.type.tensor_type.shape.dim


@dataclass(frozen=True)
class _Load:
    """Nodes and bytes of a graph after expansion."""

    nodes: int = 0
    size: int = 0

    def __add__(self, other: "_Load") -> "_Load":
        return _Load(self.nodes + other.nodes, self.size + other.size)


@dataclass
class _Expansion:
    """Counts nodes and bytes after each call of a local function is replaced by its nodes."""

    functions: dict[tuple[str, str, str], FunctionProto]
    where: object
    known: dict[tuple[str, str, str], _Load] = field(default_factory=dict)

    def of(self, graph: GraphProto | FunctionProto, callers: tuple[tuple[str, str, str], ...] = ()) -> _Load:
        load = _Load(size=graph.ByteSize())
        for node in chain(graph.node, *(body.node for body in _held(graph.node))):
            key = (node.domain, node.op_type, node.overload)
            load += self._of_function(key, callers) if key in self.functions else _Load(1)
        return load

    def _of_function(self, key: tuple[str, str, str], callers: tuple[tuple[str, str, str], ...]) -> _Load:
        if key in callers:
            raise FileError(f"{self.where}:", f"local function {key[1]!r} calls itself, which ONNX does not allow")
        if len(callers) >= MAX_DEPTH:
            raise FileError(
                f"{self.where}:",
                f"local functions are nested {len(callers) + 1} deep, and at most {MAX_DEPTH} are read",
            )
        if key not in self.known:
            self.known[key] = self.of(self.functions[key], (*callers, key))
        return self.known[key]


def _require_moderate(model: ModelProto, where: object) -> None:
    """Limit the size of an expanded model.

    Its functions are inlined, sparse tensors made dense, and missing weights drawn.
    """
    functions = {(function.domain, function.name, function.overload): function for function in model.functions}
    load = _Expansion(functions, where).of(model.graph)
    inlined = " with its local functions inlined" * bool(functions)
    if load.nodes > MAX_NODES:
        raise FileError(where, f"has {load.nodes:,} nodes{inlined}, and at most {MAX_NODES:,} are read")
    if load.size > MAX_BYTES:
        raise FileError(where, f"has {human_bytes(load.size)}{inlined}, and at most {human_bytes(MAX_BYTES)} are read")
    declared = load.size
    for sparse in sparse_tensors(model):
        name = f"{where}: sparse tensor {sparse.values.name!r}"
        declared += (size := size_of(TensorProto(data_type=sparse.values.data_type, dims=sparse.dims), name))
        if declared > MAX_BYTES:
            raise FileError(
                name, f"of shape {list(sparse.dims)} is {human_bytes(size)} when dense: a model has less than 2 GiB"
            )
    for owner, tensor in tensors(model):
        if not (tensor.HasField("raw_data") or is_external(tensor)):
            name = f"{where}: {named(tensor, owner)}"
            declared += (size := size_of(tensor, name))
            if declared > MAX_BYTES:
                raise FileError(
                    name, f"declares the shape {list(tensor.dims)}, {human_bytes(size)}: a model has less than 2 GiB"
                )


def _tensors_of(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in (
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
        *attribute.sparse_tensors,
    ):
        yield sparse.values
        yield sparse.indices
