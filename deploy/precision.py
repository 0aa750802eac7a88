"""Convert graphs to FP16, with the fewest casts and a certificate.

Nodes that overflow or have no form in half precision stay in FP32.

Strongly typed builders take precision from the graph alone, so it is decided here for profiled and shipped networks and
external files alike.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import onnx
import onnx.version_converter
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from deploy import casts, islands
from deploy.activations import keep_activations
from deploy.certificate import LARGEST, Certificate, Kept, TensorRange
from deploy.cleaning import constants_are_initializers, name_nodes
from deploy.constants import keep_constants
from deploy.errors import LoweringError
from deploy.flow import DataFlow
from deploy.graph import ONNX_ERRORS, Precision, check_model, parse_model, quantized, require_inline
from deploy.integers import keep_whole_numbers
from deploy.islands import Node
from deploy.narrow import FP16, NARROW, Narrow
from deploy.ranges import tensor_ranges, weight_range
from deploy.samples import Samples, inputs_of, samples_of
from deploy.values import possible
from latency.onnxproto import describe

HEADROOM = 2.0
"""Safety factor, since samples do not cover all inputs: activations above `LARGEST` / HEADROOM stay in FP32."""

_FULL = TensorProto.FLOAT
_KINDS: dict[Precision, int] = {"fp16": TensorProto.FLOAT16, "fp32": _FULL}

_EITHER = frozenset({"Cast", "Shape", "Size"})
"""Operators that accept an input of either type."""
_ALWAYS_FLOAT = frozenset({("Resize", 1), ("Resize", 2), ("Upsample", 1)})
"""Inputs that define a geometry: region and scales."""


def certified(
    model: bytes,
    samples: np.ndarray | Mapping[str, np.ndarray] | Samples,
    *,
    narrow: Narrow = FP16,
    io: Precision = "fp32",
    headroom: float = HEADROOM,
    threads: int = 1,
) -> tuple[bytes, Certificate]:
    """Turn an FP32 model into an FP16 one that does not overflow on samples, or into one in bfloat16.

    Args:
        model: serialised ONNX, of any origin.
        samples: inputs, [samples, *shape[1:]] or [calls, *shape]; by input name if there are several.
        narrow: type to compute in.
        io: type of the floating-point inputs and outputs.
        headroom: factor by which activations must stay below 65504, at least 1.
        threads: number of threads of ONNX Runtime.

    Returns:
        The model and its certificate.

    Raises:
        LoweringError: the model cannot be converted.
        DeployError: ONNX Runtime cannot run it, or the samples do not fit.
    """
    prepared = _prepare(parse_model(model), narrow)
    given = samples_of(samples, inputs_of(prepared))
    seen = tensor_ranges(prepared, given.inputs, threads)
    half, certificate = _convert(prepared, io, headroom, seen, narrow)
    return half.SerializeToString(deterministic=True), msgspec.structs.replace(certificate, samples=given.count)


def convert(model: ModelProto, *, io: Precision = "fp32", headroom: float = HEADROOM) -> tuple[ModelProto, Certificate]:
    """Like `certified`, from only the weights and operators of a checked model, without activations."""
    return _convert(_prepare(model, FP16), io, headroom, {}, FP16)


def convert_all_nodes(model: bytes) -> bytes:
    """Convert every node of an FP32 model that has an FP16 form, regardless of the values, to find where it breaks.

    Raises:
        LoweringError: the model cannot be converted.
    """
    return _convert(_prepare(parse_model(model), FP16), "fp32", HEADROOM, {}, FP16, keep=False)[0].SerializeToString(
        deterministic=True
    )


def reproduce(model: bytes, certificate: Certificate, io: Precision = "fp32") -> bytes:
    """Return the narrow model that `certified` made from an FP32 one.

    The ranges in its certificate stand in for samples.

    Raises:
        LoweringError: the model cannot be converted.
    """
    seen = {tensor.name: tensor for tensor in certificate.tensors}
    narrow = NARROW[certificate.precision]
    return _convert(_prepare(parse_model(model), narrow), io, certificate.headroom, seen, narrow)[0].SerializeToString(
        deterministic=True
    )


def _prepare(model: ModelProto, narrow: Narrow) -> ModelProto:
    """Return a copy whose constants are initializers and whose nodes have unique names.

    Its operator set has the narrow type.
    """
    if model.opset_import[0].version < narrow.opset:
        try:
            model = check_model(onnx.version_converter.convert_version(model, narrow.opset))
        except ONNX_ERRORS as error:
            raise LoweringError(
                f"onnx cannot raise the model to operator set {narrow.opset}, which {narrow.name} needs: ship fp16"
            ) from error
    made = ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        if any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute):
            raise LoweringError(
                f"{describe(node)} holds a graph of its own, which cannot be converted to FP16: export without control "
                "flow, or ship FP32 by --target onnxruntime"
            )
    constants_are_initializers(made.graph)
    return name_nodes(made)


def _convert(
    model: ModelProto,
    io: Precision,
    headroom: float,
    seen: Mapping[str, TensorRange],
    narrow: Narrow,
    *,
    keep: bool = True,
) -> tuple[ModelProto, Certificate]:
    """Convert a prepared model; with `keep`, sensitive nodes stay in FP32."""
    if headroom < 1:
        raise LoweringError(f"headroom {headroom}: at least 1 is needed")
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == _FULL}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    if unknown := next((name for proto in graph.node for name in proto.output if name and name not in kinds), None):
        raise LoweringError(
            f"the type of {unknown!r} cannot be inferred: its operator has no shape inference: ship FP32 by --target "
            "onnxruntime"
        )
    nodes = [_node(proto, opset, kinds, weights, narrow) for proto in graph.node]
    ranges = {name: weight_range(name, array) for name, array in weights.items()}
    _keep_quantized(graph, nodes)
    if keep:
        flow = DataFlow(
            graph, nodes, kinds, {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        )
        values = possible(flow)
        if narrow is FP16:  # BF16 has the range of FP32
            keep_constants(flow, values, ranges, seen)
            keep_activations(flow, seen, headroom)
        keep_whole_numbers(flow, values, narrow)
    if io == "fp16":
        _require_in_range([value.name for value in (*graph.input, *graph.output)], seen)
    if any(node.reason for node in nodes):
        islands.choose_islands(graph, nodes, set(weights), _KINDS[io])
    made = casts.write_mixed_precision(model, nodes, kinds, weights, _KINDS[io], narrow)
    require_inline(made)
    made = check_model(made)
    return made, Certificate(
        precision=narrow.name,
        samples=0,
        headroom=headroom,
        nodes=len(made.graph.node),
        casts=casts.count_casts(made),
        islands=islands.count_islands(nodes),
        kept=tuple(
            Kept(
                node=node.proto.name, op=node.proto.op_type, reason=node.reason or "between FP32 nodes: it saves casts"
            )
            for node in nodes
            if node.full
        ),
        tensors=tuple(seen.values()),
        weights=tuple(ranges.values()),
    )


def _keep_quantized(graph: GraphProto, nodes: Iterable[Node]) -> None:
    inside = set.union(*quantized(graph))
    for node in nodes:
        if inside & set(node.proto.output):
            node.reason = node.reason or "it is quantised: a cast beside it would take it out of INT8"


def _require_in_range(names: Iterable[str], seen: Mapping[str, TensorRange]) -> None:
    """Require that inputs and outputs fit in half precision, which nothing else could hold."""
    for name in names:
        if name in seen and seen[name].max_abs > LARGEST:
            raise LoweringError(
                f"{name} reaches {seen[name].max_abs:.4g}, half precision ends at {LARGEST:.0f}: give io fp32"
            )


def _node(proto: NodeProto, opset: int, kinds: Mapping[str, int], weights: Iterable[str], narrow: Narrow) -> Node:
    """Return a node with the inputs and outputs whose precision its operator's schema lets change."""
    node, wanted = Node(proto), f"tensor({narrow.dtype.name})"
    schema = onnx.defs.get_schema(proto.op_type, opset)
    allowed = {constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints}

    def form(formals: Sequence[onnx.defs.OpSchema.FormalParameter], i: int) -> str:
        return formals[min(i, len(formals) - 1)].type_str

    bound = set[str]()  # type variables bound by an input of the node's precision
    for i, name in enumerate(proto.input):
        if kinds.get(name) != _FULL or proto.op_type in _EITHER or (proto.op_type, i) in _ALWAYS_FLOAT:
            continue
        if wanted in allowed.get(form(schema.inputs, i), ()):
            node.inputs.append(i)
            bound.add(form(schema.inputs, i))
        elif name not in weights:  # a constant of fixed type, such as a threshold, is unchanged
            node.reason = f"{proto.op_type} has no {narrow.name.upper()} form"
    for i, name in enumerate(proto.output):
        if kinds.get(name) != _FULL:
            continue
        if form(schema.outputs, i) in bound or proto.op_type in ("Cast", "ConstantOfShape"):
            node.outputs.append(i)
        else:
            node.reason = node.reason or f"{proto.op_type} has no {narrow.name.upper()} form"
    if node.reason:
        node.inputs = [
            i for i, name in enumerate(proto.input) if kinds.get(name) == _FULL and proto.op_type not in _EITHER
        ]
        node.outputs = [i for i, name in enumerate(proto.output) if kinds.get(name) == _FULL]
    return node
