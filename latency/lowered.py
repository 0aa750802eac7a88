"""A network in the form that backends take: its ONNX, and other forms that it was lowered to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from latency.errors import BuildFailed
from latency.files import raised_as

if TYPE_CHECKING:
    from onnx import ModelProto

OVERHEAD = "overhead"
"""Key of the network that computes almost nothing."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """One network in every form that it was lowered to; each backend uses the form that it runs.

    Attributes:
        onnx: serialized ONNX.
        program: the same network as written by `torch.export.save` (.pt2), from the same call as the ONNX; None if no
            backend needs it.
        key: key of the table's row that it is measured for; "" for none.
    """

    onnx: bytes
    program: bytes | None = None
    key: str = ""

    @classmethod
    def of(cls, model: "bytes | Lowered") -> "Lowered":
        """Wrap serialized ONNX; return a lowered network unchanged."""
        return cls(onnx=model) if isinstance(model, bytes) else model


def decode(onnx: bytes, *, weights: bool = True) -> "ModelProto":
    """Decode a self-contained serialized ONNX model.

    Args:
        onnx: the serialized model.
        weights: whether its tensors must hold the values that they declare.

    Raises:
        BuildFailed: the data is not an ONNX model, declares larger sizes than it has or than any network needs, or
            refers to a tensor in another file.
    """
    from latency.onnxproto import decode_onnx, is_external, named, tensors

    with raised_as(BuildFailed, "write it again"):
        model = decode_onnx(onnx, "the graph", weights=weights)
    if outside := next(((owner, tensor) for owner, tensor in tensors(model) if is_external(tensor)), None):
        raise BuildFailed(
            f"{named(outside[1], outside[0])} is in another file, which is not read: what is measured is one file"
        )
    return model


def require_static(onnx: bytes, *, batch: int | None = None) -> None:
    """Require that every input of a serialized ONNX model has a fixed shape.

    Args:
        onnx: the serialized model.
        batch: required first dimension; None for any.

    Raises:
        BuildFailed: the data is not an ONNX model, or an input has another shape; names the input and its shape.
    """
    graph = decode(onnx).graph
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in weights:
            continue
        dims = [
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
            for dim in value.type.tensor_type.shape.dim
        ]
        where = f"input {value.name!r} has shape ({', '.join(map(str, dims))})"
        if not value.type.tensor_type.HasField("shape") or not all(isinstance(size, int) and size > 0 for size in dims):
            raise BuildFailed(f"{where}: every dimension must be a fixed number: export with a static shape")
        if batch is not None and (not dims or dims[0] != batch):
            raise BuildFailed(f"{where}: the first dimension, the batch, must be {batch}: export with batch {batch}")


def overhead_onnx(batch: int = 1) -> bytes:
    """Return a serialized network that computes almost nothing; its latency is the overhead of every inference."""
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, 1, 1]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"])], OVERHEAD, values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
