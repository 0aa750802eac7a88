"""ONNX graphs as files hold them: read with their weights, checked to be static and whole."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper

from deploy.errors import LoweringError

Precision = Literal["fp32", "fp16"]

MAX_BYTES = 2**31 - 1
"""What a protobuf message may have: weights are inline up to here."""

_DOMAINS = ("", "ai.onnx")


def read(path: str | Path) -> bytes:
    """A serialised model with its weights inline; the very bytes of the file where they are.

    Raises:
        LoweringError: it is no ONNX model, its external weights are missing or cut short, or they are too large to be inline.
        OSError: the file cannot be read.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        model = _decode(data)
    except LoweringError as error:
        raise LoweringError(f"{path} is no ONNX model: give MODEL.onnx as an exporter wrote it") from error
    outside = [tensor for tensor in model.graph.initializer if external_data_helper.uses_external_data(tensor)]
    if not outside:
        return data
    for tensor in outside:
        where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, OSError, ValueError) as error:
            raise LoweringError(
                f"{path.name}: the weights of {tensor.name!r} are in {where!r}, which is missing beside it or damaged: copy it there"
            ) from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    require_inline(model)
    return model.SerializeToString(deterministic=True)


def parse(data: bytes) -> onnx.ModelProto:
    """Read a serialised model and `check` it.

    Raises:
        LoweringError: it is no ONNX model, or not one that can be shipped.
    """
    return check(_decode(data))


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the types and shapes of all its values, if it is valid, static and of standard operators.

    Local functions are inlined first.

    Raises:
        LoweringError: it is not; says why.
    """
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise LoweringError("the model's weights are in another file: give the path of the .onnx, with that file beside it")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if stranger := next((node for node in model.graph.node if node.domain not in _DOMAINS), None):
        raise LoweringError(
            f"node {stranger.name!r} ({stranger.op_type}) is of the custom domain {stranger.domain!r}: only standard ONNX operators can be "
            "shipped: export again without fused or custom operators"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    _require_static("input", [value for value in model.graph.input if value.name not in weights])
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, UnicodeDecodeError) as error:
        raise LoweringError(f"the ONNX graph is not valid: {first_line(error)}") from error
    inputs = [value for value in inferred.graph.input if value.name not in weights]  # before IR 4 weights were inputs, too
    if len(inputs) < len(inferred.graph.input):
        kept = onnx.GraphProto(input=inputs)
        inferred.graph.ClearField("input")
        inferred.graph.input.extend(kept.input)
    _require_static("output", inferred.graph.output)
    return inferred


def _require_static(kind: str, values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if not value.type.tensor_type.HasField("shape"):
            raise LoweringError(f"{kind} {value.name!r} has no shape: export with a fixed batch and image size")
        sizes = [dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise LoweringError(
                f"{kind} {value.name!r} has a dynamic shape ({', '.join(map(str, sizes))}): export with a fixed batch and image size, or "
                "fix it by `python -m onnxruntime.tools.make_dynamic_shape_fixed`"
            )


def require_single(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model if it has one input; it may have several outputs.

    Raises:
        LoweringError: it has several inputs, or none.
    """
    if len(model.graph.input) != 1:
        raise LoweringError(f"the network has {len(model.graph.input)} inputs; one can be shipped")
    return model


def require_inline(model: onnx.ModelProto) -> None:
    """Check that a model can be one message.

    Raises:
        LoweringError: its weights are too large.
    """
    if (size := model.ByteSize()) > MAX_BYTES:
        raise LoweringError(
            f"the model takes {size / 2**30:.1f} GiB and an ONNX file with its weights inline holds less than 2: ship it in parts"
        )


def first_line(error: BaseException) -> str:
    """The first line of the innermost cause: exporter and checker wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _decode(data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_from_string(data)
    except DecodeError as error:
        raise LoweringError("this is no ONNX model: it cannot be decoded") from error
    if not model.ir_version:  # bytes that mean something else, or none at all, can be a message without any field
        raise LoweringError("this is no ONNX model: it has no ir_version")
    return model
