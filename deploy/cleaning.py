"""Clean external ONNX files: every runtime gets the same plain graph, regardless of the tool that wrote the file.

Local functions are inlined, sparse initializers become dense, constants become initializers, initializers are neither
inputs nor outputs, IR version and operator set are those of all shipped graphs, constants are folded, and unused values
are removed.

onnx-graphsurgeon folds constants and removes what is unused. The rest edits the protos, since onnx-graphsurgeon loses
or refuses some attributes (see `_readable`), and models that have them are cleaned as well.
"""

import contextlib
import functools
import io
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.version_converter
import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from deploy import sessions
from deploy.errors import DeployError, LoweringError
from deploy.graph import (
    DOMAINS,
    ONNX_ERRORS,
    OPSET,
    check_model,
    decode_model,
    first_line,
    freeze,
    inline,
    require_inline,
)
from deploy.shapes import POINTS, Shapes, Span, fix_spans, inputs, require_static_inputs, shapes_at
from deploy.validate import LIMITS
from latency.errors import one_line
from latency.onnxproto import bodies

IR_VERSION = 10
"""IR version of shipped files unless their operator set needs a newer one; ONNX Runtime >= 1.18 and TensorRT >= 10 read
it."""

FOLDED_BYTES = 2**20
GROWTH = 8
"""A constant is folded if it has at most `FOLDED_BYTES`, or at most `GROWTH` times the bytes of the constants it is
computed from."""

_ROUNDS = 8
_RANDOM = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_UNREAD = frozenset(
    {
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
        AttributeProto.TENSORS,
        AttributeProto.GRAPHS,
        AttributeProto.TYPE_PROTO,
        AttributeProto.TYPE_PROTOS,
    }
)
"""Attribute types that onnx-graphsurgeon loses."""


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A model before and after cleaning.

    Attributes:
        original: the serialised model, unchanged except for its input shapes.
        onnx: the serialised clean model.
        spans: spans of the inputs that may have several shapes; the models are then dynamic.
        facts: what was left unchanged, with the reason.
    """

    original: bytes
    onnx: bytes
    spans: Mapping[str, Span] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def usual(self) -> bytes:
        """The clean model with the usual input shapes."""
        return freeze(self.onnx, shapes_at(self.spans, "opt"))


def clean(data: bytes, shapes: Shapes | None = None, *, float_biases: bool = False) -> Cleaned:
    """Clean a serialised model.

    Args:
        data: the model, without external data.
        shapes: shapes of inputs with dynamic shapes, by name.
        float_biases: convert the INT32 biases of a quantised network to float: ONNX Runtime expects the former,
            TensorRT the latter.

    Raises:
        LoweringError: the data is not an ONNX model, the model cannot be shipped, or the shapes do not fit.
    """
    model = decode_model(data)
    spans = fix_spans(model, shapes or {})
    if shapes:
        data = model.SerializeToString(deterministic=True)
    model = inline(model)
    model.ClearField("training_info")
    _standard_domain(model)
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True))
    constants_are_initializers(model.graph)
    if float_biases:
        _float_biases(model.graph)
    _nodes_write_outputs(model.graph)
    model, facts = _in_opset(check_model(model, dynamic=bool(spans)), spans)
    model = name_nodes(_folded(model, dynamic=bool(spans)))
    require_inline(model)
    cleaned = Cleaned(
        original=data,
        onnx=check_model(model, dynamic=bool(spans)).SerializeToString(deterministic=True),
        spans=spans,
        facts=facts,
    )
    for point in POINTS:
        freeze(cleaned.onnx, shapes_at(spans, point))
    return cleaned


def input_shape(data: bytes, shapes: Shapes) -> tuple[int, ...]:
    """Return the usual shape of a serialised model's only input.

    Raises:
        LoweringError: the data is not an ONNX model, the model has several inputs, or sizes remain dynamic.
    """
    model = decode_model(data)
    spans = fix_spans(model, shapes)
    values = inputs(model)
    if len(values) != 1:
        raise LoweringError(
            f"the model has {len(values)} inputs, {', '.join(value.name for value in values)}: give samples of each"
        )
    if values[0].name in spans:
        return spans[values[0].name].opt
    require_static_inputs(values)
    return tuple(dim.dim_value for dim in values[0].type.tensor_type.shape.dim)


def constants_are_initializers(graph: GraphProto) -> None:
    """Turn all Constant nodes and sparse initializers of a graph and its bodies into initializers."""
    for part in bodies(graph):
        for sparse in part.sparse_initializer:
            part.initializer.append(_dense(sparse, sparse.values.name))
        part.ClearField("sparse_initializer")
        kept = []
        for node in part.node:
            if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
                part.initializer.append(tensor)
            else:
                kept.append(node)
        _set_nodes(part, kept)


def _constant(node: NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node, named like its output, or None if it has none known to ONNX."""
    if len(node.attribute) != 1 or len(node.output) != 1:
        return None
    attribute, name = node.attribute[0], node.output[0]
    match attribute.name:
        case "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = name
            return tensor
        case "value_float":
            return numpy_helper.from_array(np.asarray(attribute.f, np.float32), name)
        case "value_floats":
            return numpy_helper.from_array(np.asarray(attribute.floats, np.float32), name)
        case "value_int":
            return numpy_helper.from_array(np.asarray(attribute.i, np.int64), name)
        case "value_ints":
            return numpy_helper.from_array(np.asarray(attribute.ints, np.int64), name)
        case "value_string":
            return TensorProto(name=name, data_type=TensorProto.STRING, string_data=[attribute.s])
        case "value_strings":
            return TensorProto(
                name=name, data_type=TensorProto.STRING, dims=[len(attribute.strings)], string_data=attribute.strings
            )
        case "sparse_value":
            return _dense(attribute.sparse_tensor, name)
        case _:
            return None


def _dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    if (
        sparse.values.data_type in (TensorProto.UNDEFINED, TensorProto.STRING)
        or sparse.indices.data_type != TensorProto.INT64
    ):
        raise LoweringError(f"sparse tensor {name!r} has no values of numbers with indices of INT64")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dims = tuple(sparse.dims)
    dense = np.zeros(dims, values.dtype)
    limits = np.asarray(dims if indices.ndim == 2 else (math.prod(dims),))
    paired = values.ndim == 1 and indices.shape in ((len(values),), (len(values), len(dims)))
    if not paired or (indices < 0).any() or (indices >= limits).any():
        raise LoweringError(
            f"sparse tensor {name!r} of shape {list(dims)} has indices outside of it, or not one for each value"
        )
    if indices.ndim == 2:
        dense[tuple(indices.T)] = values
    else:
        dense.reshape(-1)[indices] = values
    return numpy_helper.from_array(dense, name)


def _float_biases(graph: GraphProto) -> None:
    """Fold the dequantisation of one-dimensional INT32 constants.

    Other quantisation stays, since onnx-graphsurgeon does not fold it.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        given = [constants.get(name) for name in node.input if name]
        bias = given[0] if given else None
        whole = bias is not None and bias.data_type == TensorProto.INT32 and len(bias.dims) == 1 and None not in given
        if node.op_type == "DequantizeLinear" and whole:
            values, scale, *zero = (numpy_helper.to_array(tensor) for tensor in given if tensor)
            floats = (values - (zero[0] if zero else 0)).astype(np.float32) * scale
            graph.initializer.append(numpy_helper.from_array(floats, node.output[0]))
        else:
            kept.append(node)
    _set_nodes(graph, kept)


def _nodes_write_outputs(graph: GraphProto) -> None:
    """Write each output that is an initializer, or in a body an outer value, with an Identity.

    Runtimes and rewrites expect every output to be written by a node.
    """
    taken = {name for part in bodies(graph) for node in part.node for name in (*node.input, *node.output)}
    taken |= {value.name for part in bodies(graph) for value in (*part.input, *part.output, *part.initializer)}
    for part in bodies(graph):
        written = {name for node in part.node for name in node.output} | {value.name for value in part.input}
        weights = {tensor.name: tensor for tensor in part.initializer}
        for value in part.output:
            if value.name in written:
                continue
            fresh = _fresh(value.name, taken)
            if part is not graph:  # outputs of a body are positional
                part.node.append(helper.make_node("Identity", [value.name], [fresh]))
                value.name = fresh
            elif value.name in weights:
                _rename_reads(graph, value.name, fresh)
                weights[value.name].name = fresh
                part.node.append(helper.make_node("Identity", [fresh], [value.name]))


def _rename_reads(graph: GraphProto, old: str, new: str) -> None:
    for part in bodies(graph):
        for node in part.node:
            node.input[:] = [new if name == old else name for name in node.input]


def _fresh(name: str, taken: set[str]) -> str:
    number = 1
    while (fresh := f"{name}.{number}") in taken:
        number += 1
    taken.add(fresh)
    return fresh


def _standard_domain(model: ModelProto) -> None:
    """Use one name for the standard domain, and drop other domains: no shipped node uses them."""
    version = max((entry.version for entry in model.opset_import if entry.domain in DOMAINS), default=OPSET)
    model.ClearField("opset_import")
    model.opset_import.append(helper.make_opsetid("", version))
    for part in bodies(model.graph):
        for node in part.node:
            if node.domain in DOMAINS:
                node.ClearField("domain")


def _in_opset(model: ModelProto, spans: Mapping[str, Span]) -> tuple[ModelProto, dict[str, str]]:
    """Return the model in operator set `OPSET`.

    Unchanged if it is newer or onnx cannot convert it, with the reason why it cannot.
    """
    version = model.opset_import[0].version
    if version >= OPSET:
        return model, {}
    try:
        raised = check_model(onnx.version_converter.convert_version(model, OPSET), dynamic=bool(spans))
    except ONNX_ERRORS as error:
        raised, reason = model, one_line(first_line(error), 200)
    else:
        reason = _difference(model, raised, shapes_at(spans, "opt"))
    return (
        (model, {"opset": f"{version}, as it came: onnx cannot raise it to {OPSET}: {reason}"})
        if reason
        else (raised, {})
    )


def _difference(model: ModelProto, raised: ModelProto, shapes: Mapping[str, Sequence[int]]) -> str:
    """Return how a converted model's outputs differ on one random input.

    "" if they do not, or the original does not run.
    """
    draw = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        numbers = draw.standard_normal(shapes.get(value.name) or [dim.dim_value for dim in kind.shape.dim])
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feed[value.name] = (numbers if dtype.kind == "f" else numbers > 0).astype(dtype)
    try:
        before = sessions.run_session(sessions.start_session(model.SerializeToString()), feed)
    except DeployError:
        return ""
    try:
        after = sessions.run_session(sessions.start_session(raised.SerializeToString()), feed)
    except DeployError as error:
        return one_line(error, 200)
    for name, output in before.items():
        scale = float(np.abs(output[np.isfinite(output)]).max(initial=0)) or 1.0
        same = output.shape == after[name].shape and np.allclose(
            output, after[name], rtol=0, atol=LIMITS["fp32"] * scale, equal_nan=True
        )
        if not same:
            return f"output {name!r} would change"
    return ""


def _folded(model: ModelProto, *, dynamic: bool) -> ModelProto:
    """Return the model with constants folded, unused values removed, and types and shapes of all values."""
    if not _readable(model):
        return model
    outputs = {value.name for value in model.graph.output}
    for _ in range(_ROUNDS):
        before = len(model.graph.node)
        try:
            with (
                G_LOGGER.suppress(),
                contextlib.redirect_stdout(io.StringIO()),
            ):  # ONNX Runtime prints nodes that it cannot compute
                surgeon = gs.import_onnx(model)
                _fold_shapes(surgeon, outputs)
                surgeon.fold_constants(
                    fold_shapes=False,  # theirs removes casts of shapes and loses fractions: see `_fold_shapes`
                    recurse_subgraphs=False,  # recursion ignores the excluded nodes
                    should_exclude_node=_Excluded(outputs),
                )
                graph = gs.export_onnx(surgeon.cleanup().toposort()).graph
        except (OnnxGraphSurgeonException, ValueError) as error:
            raise LoweringError(
                f"onnx-graphsurgeon cannot fold the model's constants: {one_line(error, 200)}"
            ) from error
        made = ModelProto()
        made.CopyFrom(model)
        made.graph.CopyFrom(graph)
        require_inline(made)
        model = check_model(made, dynamic=dynamic)
        if len(model.graph.node) == before:
            break
    return model


def _readable(model: ModelProto) -> bool:
    """Return whether onnx-graphsurgeon reads the model without loss."""
    for part in bodies(model.graph):
        if any(
            value.type.WhichOneof("value") not in ("tensor_type", None)
            for value in (*part.input, *part.output, *part.value_info)
        ):
            return False
        for attribute in (attribute for node in part.node for attribute in node.attribute):
            empty = attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS) and not (
                attribute.ints or attribute.floats or attribute.strings
            )
            if attribute.type in _UNREAD or empty:
                return False
    return True


def _fold_shapes(graph: gs.Graph, outputs: Set[str]) -> None:
    """Turn Shape nodes whose input has a known shape into constants."""
    for node in graph.nodes:
        if node.op != "Shape" or node.outputs[0].name in outputs or (shape := _fixed(node.inputs[0].shape)) is None:
            continue
        written = node.outputs[0]
        written.to_constant(np.asarray(shape, np.int64)[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))])
        written.inputs.clear()


@dataclass(frozen=True)
class _Excluded:
    """Selects nodes that are not folded although all their inputs are constant."""

    outputs: Set[str]

    def __call__(self, node: gs.Node) -> bool:
        if (
            node.op in _RANDOM
            or any(True for _ in node.subgraphs())
            or any(tensor.name in self.outputs for tensor in node.outputs)
        ):
            return True
        read, written = _bytes(node.inputs), _bytes(node.outputs)
        return read is None or written is None or written > max(FOLDED_BYTES, GROWTH * read)


def _bytes(values: Iterable[gs.Tensor]) -> int | None:
    """Return the number of bytes of tensors; None if one has an unknown shape or type, or strings."""
    total = 0
    for value in values:
        if value.is_empty():
            continue
        shape = _fixed(value.shape)
        if shape is None or not isinstance(value.dtype, (np.dtype, type)) or np.dtype(value.dtype).kind == "O":
            return None
        total += math.prod(shape) * np.dtype(value.dtype).itemsize
    return total


def _fixed(shape: Iterable[object] | None) -> list[int] | None:
    """Return a shape if all its sizes are known, otherwise None."""
    dims = [] if shape is None else list(shape)
    sizes = [size for size in dims if isinstance(size, int) and size >= 0]
    return None if shape is None or len(sizes) < len(dims) else sizes


def name_nodes(model: ModelProto) -> ModelProto:
    """Give every node a unique name, so that it can be found in a runtime's messages, and return the model."""
    taken = set[str]()
    for part in bodies(model.graph):
        for node in part.node:
            node.name = node.name if node.name and node.name not in taken else _fresh(node.name or node.op_type, taken)
            taken.add(node.name)
            node.ClearField("domain")  # the standard domain, written in one way
    return model


def _set_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    fresh = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(fresh)
