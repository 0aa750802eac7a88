"""FP16 in the graph: what half precision would overflow in, or has no form of, stays FP32, with the fewest casts and a certificate.

Strongly typed builders take precision from the graph alone, so this is where it is decided: for what is profiled, what ships, and files
from outside alike.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy import sessions
from deploy.errors import LoweringError
from deploy.graph import Precision, check, parse, require_inline

LARGEST = 65504.0
"""Largest number of half precision."""
SMALLEST_NORMAL = 2.0**-14
"""Below it, about 6.1e-5, half precision has fewer bits the smaller a number is."""
VANISHING = 2.0**-25
"""What is no larger is rounded to zero."""
HEADROOM = 2.0
"""Samples are not all inputs: what comes nearer to `LARGEST` than by this factor stays FP32."""
CHUNK_BYTES = 256 << 20
"""Activations that are looked at in one run of the network, at most."""

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT
_KINDS: dict[Precision, int] = {"fp16": _HALF, "fp32": _FULL}

_HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
"""What half precision is for: never FP32 for the sake of a cast."""
_BOUNDS = frozenset({"Clip", "Max", "Min"})
"""Their constants may be cut to the range of half precision: what is compared with them is within it."""
_SUMS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceL1", "ReduceMean", "ReduceSum"})
_SQUARES = frozenset({"ReduceL2", "ReduceSumSquare"})
"""With `_SUMS`: where the accumulator may be far above what comes out."""
_EITHER = frozenset({"Cast", "Shape", "Size"})
"""What takes an input of either type without a word."""
_ALWAYS_FLOAT = frozenset({("Resize", 1), ("Resize", 2), ("Upsample", 1)})
"""Inputs that tell a geometry: region and scales."""


class TensorRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of an activation in FP32."""

    name: str
    node: str
    """that writes it; "" for an input"""
    op: str
    max_abs: float
    """largest finite |x|, against 65504"""
    subnormal: float
    """share of the values with 0 < |x| < 6.1e-5"""
    vanishing: float
    """share of the values that are not zero and would be rounded to it"""
    sum_abs: float = 0.0
    """of a reduction, the largest |sum| that it divides or takes the root of"""


class WeightRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What half precision does to a weight."""

    name: str
    max_abs: float
    min_abs: float
    """smallest |w| that is not zero; 0 where all are"""
    subnormal: int
    """how many with 0 < |w| < 6.1e-5"""
    vanishing: int
    """how many that are not zero would be rounded to it"""
    overflowing: int
    """how many finite ones would be infinite"""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node that stays FP32."""

    node: str
    op: str
    reason: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a graph may be run in half precision."""

    samples: int
    """that the ranges were seen on; 0 where none were, and only weights and operators were looked at"""
    largest: float = LARGEST
    headroom: float
    nodes: int
    """of the FP16 graph, casts included"""
    casts: int
    """between FP32 and FP16, those at inputs and outputs included"""
    islands: int
    kept: tuple[Kept, ...]
    tensors: tuple[TensorRange, ...]
    weights: tuple[WeightRange, ...]

    @property
    def summary(self) -> str:
        """The certificate in a line."""
        kept = "every node is FP16"
        if self.kept:
            nodes, islands = (f"{count} {noun}{'s' * (count != 1)}" for count, noun in ((len(self.kept), "node"), (self.islands, "island")))
            kept = f"{nodes} in {islands} {'stays' if len(self.kept) == 1 else 'stay'} FP32"
        seen = "no activations were looked at"
        if self.tensors:
            worst = max(self.tensors, key=lambda seen: seen.max_abs)
            seen = f"largest |x| {worst.max_abs:.4g} at {worst.name} of {self.samples} samples"
        return f"{kept}, {self.casts} casts; {seen}"


def certified(
    model: bytes, samples: np.ndarray | Mapping[str, np.ndarray], *, io: Precision = "fp32", headroom: float = HEADROOM, threads: int = 1
) -> tuple[bytes, Certificate]:
    """Turn an FP32 model into an FP16 one that does not overflow on samples.

    Args:
        model: serialised ONNX, of any origin.
        samples: inputs, [samples, ...]; by the input's name where there are several.
        io: type of the floating-point inputs and outputs.
        headroom: how far below 65504 an activation must stay, at least 1.
        threads: of ONNX Runtime.

    Returns:
        The model and its certificate.

    Raises:
        LoweringError: the model cannot be converted.
        DeployError: ONNX Runtime cannot run it, or the samples do not fit.
    """
    prepared = _prepare(parse(model))
    seen = _ranges(prepared, samples, threads)
    half, certificate = _convert(prepared, io, headroom, seen)
    count = len(next(iter(samples.values())) if isinstance(samples, Mapping) else samples)
    return half.SerializeToString(deterministic=True), msgspec.structs.replace(certificate, samples=count)


def convert(model: ModelProto, *, io: Precision = "fp32", headroom: float = HEADROOM) -> tuple[ModelProto, Certificate]:
    """As `certified`, by the weights and operators of a checked model alone: no activation is looked at."""
    return _convert(_prepare(model), io, headroom, {})


def again(model: bytes, certificate: Certificate) -> bytes:
    """The FP16 model that `certified` made of an FP32 one, by the ranges in its certificate instead of samples.

    Raises:
        LoweringError: the model cannot be converted.
    """
    seen = {found.name: found for found in certificate.tensors}
    return _convert(_prepare(parse(model)), "fp32", certificate.headroom, seen)[0].SerializeToString(deterministic=True)


def _prepare(model: ModelProto) -> ModelProto:
    """A copy whose constants are all initializers and whose nodes have names of their own."""
    made = ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    nodes, names = [], set[str]()
    for node in graph.node:
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise LoweringError(
                f"node {node.name!r} ({node.op_type}) holds a graph of its own, which cannot be converted to FP16: export without control "
                "flow, or ship FP32"
            )
        if node.op_type == "Constant" and (array := _constant(node)) is not None:
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
            continue
        name = node.name or node.op_type
        number = 1
        while node.name in names or not node.name:
            node.name, number = f"{name}_{number}", number + 1
        names.add(node.name)
        nodes.append(node)
    fresh = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(fresh)
    return made


def _constant(node: NodeProto) -> np.ndarray | None:
    """The numbers of a Constant; None where it holds something else."""
    attribute = node.attribute[0]
    match attribute.name:
        case "value":
            return numpy_helper.to_array(attribute.t)
        case "value_float" | "value_floats":
            return np.asarray(helper.get_attribute_value(attribute), np.float32)
        case "value_int" | "value_ints":
            return np.asarray(helper.get_attribute_value(attribute), np.int64)
        case _:
            return None


# what is seen of activations


def _ranges(model: ModelProto, samples: np.ndarray | Mapping[str, np.ndarray], threads: int) -> dict[str, TensorRange]:
    """Run a model and look at each of its floating-point values, so many at a time that memory stays bounded."""
    graph = model.graph
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    if not isinstance(samples, Mapping):
        if len(inputs) != 1:
            raise LoweringError(f"the network has {len(inputs)} inputs, {', '.join(inputs)}: give samples of each by its name")
        samples = {graph.input[0].name: samples}
    if samples.keys() != inputs.keys():
        raise LoweringError(f"samples are of {', '.join(samples) or 'nothing'}, the network's inputs are {', '.join(inputs)}")
    feeds = list(_batches(samples, {name: _shape(kind) for name, kind in inputs.items()}, inputs))
    writers = {name: node for node in graph.node for name in node.output}
    found = {name: _Seen() for name, kind in inputs.items() if kind.elem_type == _FULL}
    for name, feed in itertools.product(found, feeds):
        found[name].add(feed[name])
    values = [value for value in (*graph.value_info, *graph.output) if value.type.tensor_type.elem_type == _FULL and value.name in writers]
    for chunk in _chunks(values):
        part = ModelProto()
        part.CopyFrom(model)
        part.graph.ClearField("output")
        part.graph.output.extend(chunk)
        session = sessions.start(part.SerializeToString(), threads)
        for feed in feeds:
            for name, array in sessions.run(session, feed).items():
                found.setdefault(name, _Seen()).add(array)
    return {name: _range(name, writers.get(name), seen, graph) for name, seen in found.items()}


def _batches(
    samples: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, onnx.TypeProto.Tensor]
) -> Iterator[dict[str, np.ndarray]]:
    """Samples as the network takes them; the last batch is filled up with its own first sample."""
    counts = {len(values) for values in samples.values()}
    if len(counts) != 1 or 0 in counts:
        raise LoweringError(f"samples: as many of every input are needed, at least 1; found {', '.join(map(str, sorted(counts)))}")
    for name, values in samples.items():
        if values.shape[1:] != shapes[name][1:]:
            wanted = ", ".join(map(str, ("samples", *shapes[name][1:])))
            raise LoweringError(f"samples of {name} have shape {list(values.shape)}, the network takes [{wanted}]")
        if not np.isfinite(values).all():
            raise LoweringError(f"samples of {name} contain values that are infinite or not a number: look at the preprocessing")
    batch = next(iter(shapes.values()))[0]
    for start in range(0, counts.pop(), batch):
        feed = {}
        for name, values in samples.items():
            part = values[start : start + batch].astype(helper.tensor_dtype_to_np_dtype(kinds[name].elem_type))
            feed[name] = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
        yield feed


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
class _Seen:
    """Of one tensor, over all samples."""

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


def _range(name: str, writer: NodeProto | None, seen: _Seen, graph: GraphProto) -> TensorRange:
    found = TensorRange(
        name=name,
        node=writer.name if writer else "",
        op=writer.op_type if writer else "",
        max_abs=seen.max_abs,
        subnormal=seen.subnormal / seen.count,
        vanishing=seen.vanishing / seen.count,
    )
    if writer is None or writer.op_type not in _SUMS | _SQUARES:
        return found
    if writer.op_type in ("ReduceL1", "ReduceSum", "ReduceSumSquare"):
        return msgspec.structs.replace(found, sum_abs=seen.max_abs)
    if writer.op_type == "ReduceL2":
        return msgspec.structs.replace(found, sum_abs=seen.max_abs**2)
    if kernel := next((attribute.ints for attribute in writer.attribute if attribute.name == "kernel_shape"), None):
        return msgspec.structs.replace(found, sum_abs=seen.max_abs * math.prod(kernel))
    shapes = {value.name: _shape(value.type.tensor_type) for value in (*graph.input, *graph.value_info, *graph.output)}
    return msgspec.structs.replace(found, sum_abs=seen.max_abs * math.prod(shapes[writer.input[0]]) / math.prod(shapes[name]))


def _shape(kind: onnx.TypeProto.Tensor) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in kind.shape.dim)


# what stays FP32


@dataclass
class _Node:
    """A node as far as precision goes."""

    proto: NodeProto
    inputs: list[int] = field(default_factory=list)
    """those that have the node's precision; others are of one type, or of either"""
    outputs: list[int] = field(default_factory=list)
    reason: str = ""
    """why it must be FP32"""
    full: bool = False

    @property
    def reads(self) -> set[str]:
        return {self.proto.input[i] for i in self.inputs}


def _convert(model: ModelProto, io: Precision, headroom: float, seen: Mapping[str, TensorRange]) -> tuple[ModelProto, Certificate]:
    if headroom < 1:
        raise LoweringError(f"headroom {headroom}: at least 1 is needed")
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == _FULL}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    if unknown := next((name for proto in graph.node for name in proto.output if name and name not in kinds), None):
        raise LoweringError(f"the type of {unknown!r} cannot be inferred: its operator has no shape inference; ship FP32")
    nodes = [_node(proto, opset, kinds, weights) for proto in graph.node]
    ranges = {name: weight_range(name, array) for name, array in weights.items()}
    for node in nodes:
        node.reason = node.reason or _weights_reason(node, ranges) or _activations_reason(node, seen, headroom)
    if io == "fp16":
        for value in (*graph.input, *graph.output):
            if value.name in seen and seen[value.name].max_abs > LARGEST:
                raise LoweringError(
                    f"{value.name} reaches {seen[value.name].max_abs:.4g}, half precision ends at {LARGEST:.0f}: give io fp32"
                )
    if any(node.reason for node in nodes):
        _grow(graph, nodes, set(weights), _KINDS[io])
    made = _write(model, nodes, kinds, weights, _KINDS[io])
    require_inline(made)
    made = check(made)
    return made, Certificate(
        samples=0,
        headroom=headroom,
        nodes=len(made.graph.node),
        casts=_casts(made),
        islands=_islands(nodes),
        kept=tuple(
            Kept(node=node.proto.name, op=node.proto.op_type, reason=node.reason or "between FP32 nodes: it saves casts")
            for node in nodes
            if node.full
        ),
        tensors=tuple(seen.values()),
        weights=tuple(ranges.values()),
    )


def _node(proto: NodeProto, opset: int, kinds: Mapping[str, int], weights: Iterable[str]) -> _Node:
    """What the operator's schema allows."""
    node = _Node(proto)
    schema = onnx.defs.get_schema(proto.op_type, opset)
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}

    def form(formals: Sequence[onnx.defs.OpSchema.FormalParameter], i: int) -> str:
        return formals[min(i, len(formals) - 1)].type_str

    bound = set[str]()  # type variables that an input of the node's precision decides
    for i, name in enumerate(proto.input):
        if kinds.get(name) != _FULL or proto.op_type in _EITHER or (proto.op_type, i) in _ALWAYS_FLOAT:
            continue
        if "tensor(float16)" in allowed.get(form(schema.inputs, i), ()):
            node.inputs.append(i)
            bound.add(form(schema.inputs, i))
        elif name not in weights:  # a constant of one type, such as a threshold, stays as it is
            node.reason = f"{proto.op_type} has no FP16 form"
    for i, name in enumerate(proto.output):
        if kinds.get(name) != _FULL:
            continue
        if form(schema.outputs, i) in bound or proto.op_type in ("Cast", "ConstantOfShape"):
            node.outputs.append(i)
        else:
            node.reason = node.reason or f"{proto.op_type} has no FP16 form"
    if node.reason:
        node.inputs = [i for i, name in enumerate(proto.input) if kinds.get(name) == _FULL and proto.op_type not in _EITHER]
        node.outputs = [i for i, name in enumerate(proto.output) if kinds.get(name) == _FULL]
    return node


def weight_range(name: str, array: np.ndarray) -> WeightRange:
    """What half precision does to an array."""
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


_ROUNDS_TO_INFINITY = 65520.0


def _weights_reason(node: _Node, ranges: Mapping[str, WeightRange]) -> str:
    for name in sorted(node.reads & ranges.keys()):
        found = ranges[name]
        if found.overflowing and node.proto.op_type not in _BOUNDS:
            return f"its weight {name} reaches {found.max_abs:.4g}"
        if found.max_abs and found.max_abs <= VANISHING:
            return f"its weight {name} of {found.max_abs:.4g} would be zero"
    return ""


def _activations_reason(node: _Node, seen: Mapping[str, TensorRange], headroom: float) -> str:
    limit = LARGEST / headroom
    for name in [node.proto.output[i] for i in node.outputs] + [node.proto.input[i] for i in node.inputs]:
        if name in seen and seen[name].max_abs > limit:
            return f"{name} reaches {seen[name].max_abs:.4g}, more than {limit:.0f}"
    for name in (node.proto.output[i] for i in node.outputs):
        if name in seen and seen[name].sum_abs > limit:
            return f"the sum of {name} reaches {seen[name].sum_abs:.4g}, more than {limit:.0f}"
    return ""


def _grow(graph: GraphProto, nodes: list[_Node], weights: set[str], io: int) -> None:
    """Choose the nodes that are FP32, those with a reason among them, so that casts are fewest, and then FP32 nodes.

    A minimum cut: it separates FP32 from FP16, a tensor between the two costs a cast however many read it, and a node that is FP32 with no
    reason costs so little that any cast outweighs all of them. What is heavy is FP16 unless it has a reason.
    """
    import networkx as nx  # comes with torch; the structs above are read without it

    cut = nx.DiGraph()
    cut.add_nodes_from(("fp32", "fp16"))
    end = "fp32" if io == _FULL else "fp16"
    cast = len(nodes) + 1
    writers: dict[str, int | str] = {value.name: end for value in graph.input}
    readers: dict[str, list[int | str]] = {value.name: [end] for value in graph.output}
    for number, node in enumerate(nodes):
        if not node.inputs and not node.outputs:
            continue
        if node.reason:
            cut.add_edge("fp32", number)
        elif node.proto.op_type in _HEAVY:
            cut.add_edge(number, "fp16")
        else:
            cut.add_edge(number, "fp16", capacity=1)
        for i in node.outputs:
            writers[node.proto.output[i]] = number
        for name in node.reads - weights:
            readers.setdefault(name, []).append(number)
    for name, writer in writers.items():
        for reader in readers.get(name, ()):
            cut.add_edge(writer, ("to fp16", name), capacity=cast)
            cut.add_edge(("to fp16", name), reader)
            cut.add_edge(reader, ("to fp32", name))
            cut.add_edge(("to fp32", name), writer, capacity=cast)
    _, (full, _) = nx.minimum_cut(cut, "fp32", "fp16")
    for number, node in enumerate(nodes):
        node.full = number in full


def _islands(nodes: list[_Node]) -> int:
    """How many parts the FP32 nodes are in."""
    import networkx as nx

    full = [node for node in nodes if node.full]
    writers = {node.proto.output[i]: node.proto.name for node in full for i in node.outputs}
    joined = nx.Graph()
    joined.add_nodes_from(node.proto.name for node in full)
    joined.add_edges_from((writers[name], node.proto.name) for node in full for name in node.reads & writers.keys())
    return nx.number_connected_components(joined)


# the new graph


def _write(model: ModelProto, nodes: list[_Node], kinds: Mapping[str, int], weights: Mapping[str, np.ndarray], io: int) -> ModelProto:
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
            types[name] = _FULL if node.full else _HALF
            if name in {value.name for value in graph.output} and types[name] != io:
                renamed[name] = _fresh(f"{name}.{'fp16' if types[name] == _HALF else 'fp32'}", types)
                types[renamed[name]] = types[name]
    writer = _Writer(graph, types, weights, renamed, io)
    for node in nodes:
        writer.add(node)
    for tensor in old.initializer:
        if tensor.name not in weights:
            graph.initializer.add().CopyFrom(tensor)
    _drop_idle_casts(graph, {**types, **dict.fromkeys(renamed, io)})
    return made


@dataclass
class _Writer:
    """Appends nodes to a graph in their precision, with the casts and weights that they need."""

    graph: GraphProto
    types: dict[str, int]
    weights: Mapping[str, np.ndarray]
    renamed: Mapping[str, str]
    io: int
    made: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, node: _Node) -> None:
        kind = _FULL if node.full else _HALF
        new = NodeProto()
        new.CopyFrom(node.proto)
        for i, name in enumerate(new.input):
            bound = node.proto.op_type in _BOUNDS and i > 0
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
            cast = _fresh(f"{name}.{'fp16' if kind == _HALF else 'fp32'}", self.types)
            self.types[cast] = kind
            self._cast(name, cast, kind)
        return self.made[name, kind]

    def _cast(self, name: str, cast: str, kind: int) -> None:
        self.made[name, kind] = cast
        self.graph.node.append(helper.make_node("Cast", [name], [cast], f"cast_{cast}", to=kind))

    def _weight(self, name: str, kind: int, bound: bool) -> str:
        """A weight in one precision; both where nodes of both read it."""
        if (name, kind) not in self.made:
            array = self.weights[name]
            if kind == _HALF:
                with np.errstate(over="ignore", under="ignore"):
                    array = (np.clip(array, -LARGEST, LARGEST) if bound else array).astype(np.float16)
            taken = any(other == name for other, _ in self.made)
            self.made[name, kind] = _fresh(f"{name}.{'fp16' if kind == _HALF else 'fp32'}", self.types) if taken else name
            self.graph.initializer.append(numpy_helper.from_array(array, self.made[name, kind]))
        return self.made[name, kind]


def _fresh(name: str, taken: Mapping[str, int]) -> str:
    while name in taken:
        name += "_"
    return name


def _retype(node: NodeProto, kind: int) -> None:
    """Make a Cast or ConstantOfShape write another type."""
    if node.op_type == "Cast":
        next(attribute for attribute in node.attribute if attribute.name == "to").i = kind
        return
    value = next((attribute.t for attribute in node.attribute if attribute.name == "value"), None)
    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)))))


def _drop_idle_casts(graph: GraphProto, types: Mapping[str, int]) -> None:
    """Remove casts to the type that a value has: those of a file that was partly FP16 before."""
    outputs = {value.name for value in graph.output}
    instead: dict[str, str] = {}
    kept = []
    for node in graph.node:
        node.input[:] = [instead.get(name, name) for name in node.input]
        if node.op_type == "Cast" and node.output[0] not in outputs and types.get(node.input[0]) == types.get(node.output[0], -1):
            instead[node.output[0]] = node.input[0]
        else:
            kept.append(NodeProto.FromString(node.SerializeToString()))
    if instead:
        graph.ClearField("node")
        graph.node.extend(kept)


def _casts(model: ModelProto) -> int:
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    both = {_HALF, _FULL}
    return sum(node.op_type == "Cast" and {kinds.get(node.input[0]), kinds.get(node.output[0])} == both for node in graph.node)
