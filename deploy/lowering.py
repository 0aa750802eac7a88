"""The only way from a module to ONNX: what is profiled and what ships are lowered alike, so a table predicts what will run."""

import contextlib
import copy
import io as text_io
import logging
import math
import warnings
from collections.abc import Iterator

import onnx
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from deploy.bundle import Precision
from deploy.errors import LoweringError
from reparam import Counts

LOWERING_VERSION = "1"
"""Recorded in every latency table. Raise it when a change here can change how fast or what the lowered graph computes."""

OPSET = 20
"""ONNX operator set of every graph; ONNX Runtime >= 1.17 and TensorRT >= 10 read it."""

_TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def to_onnx(module: nn.Module, example_input: Tensor, *, precision: Precision = "fp32", io: Precision = "fp32") -> bytes:
    """Lower a copy of a module in evaluation mode to ONNX; says nothing on the console.

    Args:
        module: one tensor in, one tensor out; its weights may be of any floating type.
        example_input: a tensor of the input's shape; the batch is static and is its first dimension.
        precision: what weights and arithmetic are in. The graph itself says so (strongly typed), no builder flag does.
        io: type of the graph's input and output; where it is not `precision`, one cast stands at each side.

    Returns:
        A serialised model with input "input" and output "output", weights inline, checked by onnx.checker and strict shape inference.

    Raises:
        LoweringError: torch cannot export the module, or the result is not a valid static graph.
    """
    twin = copy.deepcopy(module).to(_TYPES[precision]).eval()
    if precision != io:
        twin = _Cast(twin, _TYPES[precision], _TYPES[io]).eval()
    with _quiet():
        try:
            program = torch.onnx.export(
                twin,
                (example_input.to(_TYPES[io]),),
                dynamo=True,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise LoweringError(f"torch cannot export {type(module).__name__} to ONNX: {_cause(error)}") from error
    assert program is not None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # stack traces with the paths of this machine
    return check(model).SerializeToString(deterministic=True)


def parse(data: bytes) -> onnx.ModelProto:
    """Read a serialised model and `check` it.

    Raises:
        LoweringError: it is no ONNX model, or not one that can be shipped.
    """
    try:
        return check(onnx.load_from_string(data))
    except DecodeError as error:
        raise LoweringError("this is no ONNX model: it cannot be decoded") from error


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the shapes of all its values, if it is valid, static, and has one input and one output.

    Raises:
        LoweringError: it is not; says why.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"the ONNX graph is not valid: {_cause(error)}") from error
    if len(inferred.graph.input) != 1 or len(inferred.graph.output) != 1:
        ends = f"{len(inferred.graph.input)} inputs and {len(inferred.graph.output)} outputs"
        raise LoweringError(f"the network has {ends}; one of each can be shipped")
    for value in (*inferred.graph.input, *inferred.graph.output):
        if not all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim):
            raise LoweringError(f"{value.name} has a dynamic shape; export with a fixed batch and fixed image size")
    return inferred


def count(model: onnx.ModelProto) -> Counts:
    """Parameters and MACs of a model as `check` returned it, for an ONNX file that has no module beside it.

    Every floating-point initializer counts as parameters.
    """
    graph = model.graph
    weights = {value.name: tuple(value.dims) for value in graph.initializer if value.data_type in _FLOATS}
    values = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.value_info, *graph.output)}
    macs = 0
    for node in graph.node:
        if len(node.input) < 2 or (kernel := weights.get(node.input[1])) is None:
            continue
        elements = math.prod(values[node.output[0]])
        match node.op_type:
            case "Conv":
                macs += elements * math.prod(kernel[1:])
            case "MatMul":
                macs += elements * kernel[-2]
            case "Gemm":
                transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                macs += elements * kernel[1 if transposed else 0]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return Counts(params=sum(math.prod(shape) for shape in weights.values()), macs=macs // batch)


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


class _Cast(nn.Module):
    """A module between two casts."""

    def __init__(self, body: nn.Module, inner: torch.dtype, outer: torch.dtype) -> None:
        super().__init__()
        self.body, self.inner, self.outer = body, inner, outer

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.inner)).to(self.outer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, logs and warns about itself; its errors still come as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(text_io.StringIO()), contextlib.redirect_stderr(text_io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _cause(error: BaseException) -> str:
    """The first line of the innermost cause: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
