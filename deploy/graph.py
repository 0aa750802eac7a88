"""Decode ONNX graphs, and require that they are static, valid, self-contained and of standard operators."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import onnx
import onnx.inliner
import onnx.version_converter
from google.protobuf.message import DecodeError
from onnx import TensorProto, ValueInfoProto

from deploy.errors import LoweringError
from deploy.shapes import fix_shapes, inputs, is_static, require_static_inputs, sizes
from latency.backends.onnxruntime import MAX_TENSOR_BYTES
from latency.files import human_bytes, raised_as
from latency.onnxproto import MAX_BYTES, bodies, decode_onnx, describe, is_external, named, tensors

Precision = Literal["fp32", "fp16", "bf16"]

OPSET = 20
"""ONNX operator set of shipped graphs, if possible; ONNX Runtime >= 1.17 and TensorRT >= 10 read it."""

ONNX_ERRORS = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    onnx.version_converter.ConvertError,
    DecodeError,
    RuntimeError,
    ValueError,
)
"""Exceptions raised by onnx's own tools for a model; ValueError if their message has names that are not UTF-8."""

QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})

_INT8 = (TensorProto.INT8, TensorProto.UINT8)

DOMAINS = ("", "ai.onnx")
"""Names of the standard domain."""

_FED = frozenset(
    {"FLOAT", "FLOAT16", "DOUBLE", "BOOL", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))}
)
"""Supported types of inputs and outputs."""


def decode_model(data: bytes) -> onnx.ModelProto:
    """Read a serialised, self-contained model.

    Raises:
        LoweringError: the data is not an ONNX model, declares more than it holds, or a tensor is in another file.
    """
    with raised_as(LoweringError, "give MODEL.onnx as an exporter wrote it"):
        model = decode_onnx(data, "this")
    if outside := next(((owner, tensor) for owner, tensor in tensors(model) if is_external(tensor)), None):
        name = named(outside[1], outside[0])
        raise LoweringError(f"{name} is in another file: give the path of MODEL.onnx, with that file beside it")
    return model


def parse_model(data: bytes) -> onnx.ModelProto:
    """Read a serialised model and `check_model` it.

    Raises:
        LoweringError: the data is not an ONNX model, or the model cannot be shipped.
    """
    return check_model(decode_model(data))


def freeze(data: bytes, shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Fix the shapes of a model's dynamic inputs; without shapes, return the same bytes.

    Raises:
        LoweringError: the model is not valid with these shapes.
    """
    if not shapes:
        return data
    model = decode_model(data)
    fix_shapes(model, shapes)
    return check_model(model).SerializeToString(deterministic=True)


def thaw(data: bytes, like: bytes) -> bytes:
    """Undo `freeze`: give a model with fixed shapes the dynamic inputs of the model `like`."""
    model, dynamic = decode_model(data), decode_model(like)
    if not is_dynamic(dynamic):
        return data
    shapes = {value.name: value.type.tensor_type.shape for value in (*dynamic.graph.input, *dynamic.graph.output)}
    for value in model.graph.value_info:
        value.type.tensor_type.ClearField("shape")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.CopyFrom(shapes[value.name])
    return check_model(model, dynamic=True).SerializeToString(deterministic=True)


def is_dynamic(model: onnx.ModelProto) -> bool:
    """Return whether an input may have several shapes."""
    return not all(map(is_static, inputs(model)))


def quantized(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """Return the INT8 part of a graph.

    Names of the outputs of its quantisers, and of nodes whose operands are all dequantised.

    Operands are the first two inputs, not a bias. Builders compute such a node in INT8 only if nothing, not even a
    cast, is between it and its quantisers.
    """
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    eight = {name for name, kind in kinds.items() if kind in _INT8} | {
        each.name for each in graph.initializer if each.data_type in _INT8
    }
    dequantized = {
        node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in eight
    }
    quantizers = dequantized | {
        node.output[0] for node in graph.node if node.op_type == "QuantizeLinear" and node.output[0] in eight
    }
    inner = {
        name for node in graph.node if node.input and dequantized.issuperset(node.input[:2]) for name in node.output
    }
    return quantizers, inner - quantizers


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with each call of a local function replaced by the function's nodes.

    Raises:
        LoweringError: onnx cannot inline a function.
    """
    if not model.functions:
        return model
    try:
        inlined = onnx.inliner.inline_local_functions(model)
        if inlined.functions:  # functions of another operator set than the model's
            inlined = onnx.inliner.inline_local_functions(_typed(inlined), convert_version=True)
    except ONNX_ERRORS as error:
        raise LoweringError(f"onnx cannot inline the model's local functions: {first_line(error)}") from error
    if inlined.functions:
        left = inlined.functions[0]
        raise LoweringError(
            f"onnx cannot inline local function {left.name!r} of domain {left.domain!r}: export again without functions"
        )
    return inlined


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with types for all values of its graph in `value_info`.

    Weights are included, as onnx's inliner requires.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    known = {value.name for value in (*typed.graph.input, *typed.graph.value_info)}
    weights = [tensor for tensor in typed.graph.initializer if tensor.name not in known]
    typed.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in weights
    )
    return typed


def check_model(model: onnx.ModelProto, *, dynamic: bool = False) -> onnx.ModelProto:
    """Require a valid, static model of standard operators, and return it with types and shapes of all values.

    Local functions are inlined, and initializers removed from its inputs. A `dynamic` model has the shapes that can be
    inferred.

    Raises:
        LoweringError: the model cannot be shipped; says why.
    """
    model = inline(model)
    for graph in bodies(model.graph):
        if stranger := next((node for node in graph.node if node.domain not in DOMAINS), None):
            raise LoweringError(
                f"{describe(stranger)} is of the custom domain {stranger.domain!r}: only standard ONNX operators can "
                "be shipped: export "
                "again without fused or custom operators"
            )
    fed = inputs(model)
    for kind, values in (("input", fed), ("output", model.graph.output)):
        for value in values:
            _require_numbers(kind, value)
    if not dynamic:
        require_static_inputs(fed)
    if not model.graph.output:
        raise LoweringError("the ONNX graph has no output")
    try:
        if not all(
            value.type.tensor_type.HasField("shape") for value in model.graph.output
        ):  # the checker requires them, runtimes do not
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except ONNX_ERRORS as error:
        raise LoweringError(f"the ONNX graph is not valid: {first_line(error)}") from error
    _require_moderate(inferred)
    if len(fed) < len(inferred.graph.input):
        kept = onnx.GraphProto(input=inputs(inferred))
        inferred.graph.ClearField("input")
        inferred.graph.input.extend(kept.input)
    for value in inferred.graph.output:
        if not dynamic and not is_static(value):
            raise LoweringError(
                f"output {value.name!r} has the shape ({sizes(value)}), which depends on the data: only fixed shapes "
                "can be shipped"
            )
    return inferred


def _require_moderate(model: onnx.ModelProto) -> None:
    """Require that no value of a model exceeds the size limit: an eight-byte constant may be the shape of terabytes."""
    for graph in bodies(model.graph):
        for value in (*graph.value_info, *graph.output):
            kind = value.type.tensor_type
            bits = 64 if kind.elem_type in (TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64) else 32
            if (
                is_static(value)
                and (size := math.prod(dim.dim_value for dim in kind.shape.dim) * bits // 8) > MAX_TENSOR_BYTES
            ):
                raise LoweringError(
                    f"value {value.name!r} of shape ({sizes(value)}) takes {human_bytes(size)}: values of at most "
                    f"{human_bytes(MAX_TENSOR_BYTES)} are computed"
                )


def _require_numbers(kind: str, value: ValueInfoProto) -> None:
    """Require that an input or output is a tensor of numbers or booleans."""
    form = (value.type.WhichOneof("value") or "value of no type").removesuffix("_type").replace("_", " ")
    if form != "tensor":
        raise LoweringError(f"{kind} {value.name!r} is of type {form}: only tensors of numbers can be shipped")
    numbers = {number: name for name, number in TensorProto.DataType.items()}
    type_name = numbers.get(value.type.tensor_type.elem_type, "unknown")
    if type_name not in _FED:
        raise LoweringError(
            f"{kind} {value.name!r} is a tensor of type {type_name}: only tensors of {', '.join(sorted(_FED))} can be "
            "shipped"
        )


def require_inline(model: onnx.ModelProto) -> None:
    """Require that a model fits into one protobuf message.

    Raises:
        LoweringError: its weights are too large.
    """
    if (size := model.ByteSize()) > MAX_BYTES:
        raise LoweringError(
            f"the model takes {size / 2**30:.1f} GiB and an ONNX file with its weights inline holds less than 2: ship "
            "it in parts"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of the innermost cause, plus the next one after a colon.

    Exporter and checker add pages of advice.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
