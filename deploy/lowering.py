"""The only path from a module to ONNX.

Profiled and shipped networks are lowered alike, so that tables predict what will run.
"""

import contextlib
import copy
import io as text_io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set

import onnx
import onnx.numpy_helper
import torch
from onnxscript import ir
from torch import Tensor, nn

from deploy import precision as half_precision
from deploy.adapter import Adapter, adapt
from deploy.errors import LoweringError
from deploy.graph import MAX_BYTES, OPSET, QUANTIZERS, Precision, check_model, first_line
from deploy.torch_exporter import without_repetition
from latency.lowered import Lowered
from latency.onnxproto import bodies
from reparam import Counts
from reparam.structure import map_tensors

LOWERING_VERSION = "1"
"""Recorded in every latency table. Increase it when a change here may affect the lowered graph's speed or results."""

_TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def to_onnx(
    module: nn.Module,
    example_input: object,
    *,
    precision: Precision = "fp32",
    io: Precision = "fp32",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> bytes:
    """Lower a copy of a module in evaluation mode to ONNX, without console output.

    Args:
        module: module with weights of any floating-point type; it may take and return tensors in tuples, lists,
            mappings and dataclasses.
        example_input: a tensor, a tuple of arguments or a mapping of keyword arguments, as in `adapter.call_of`. Shapes
            are static; inputs and outputs keep their types, arithmetic is in float32 or less.
        precision: precision of weights and arithmetic. It is encoded in the graph (strongly typed), not in a builder
            flag. FP16 is made by `deploy.precision` from the FP32 graph, here from weights and operators alone.
        io: type of the graph's float32 inputs and outputs; if it is not `precision`, each has one cast.
        inputs: names of the inputs; () for "input", or, for several, the parameters of forward.
        outputs: names of the outputs; () for "output", or, for several, their keys or "output0", "output1"; for
            `features`, the names of the modules.

    Returns:
        A serialised model with inline weights, checked by onnx.checker and strict shape inference.

    Raises:
        DeployError: `example_input` does not fit, or an input or output is not a tensor that can be shipped; names it.
        LoweringError: torch cannot export the module, the names do not fit, or the result is not a valid static graph
            of less than 2 GiB.
    """
    _require_inline(module)
    given = outputs or (module.names if isinstance(module, Features) else ())
    return onnx_of(adapt(module, example_input), precision=precision, io=io, inputs=inputs, outputs=given)


def onnx_of(
    adapter: Adapter,
    *,
    precision: Precision = "fp32",
    io: Precision = "fp32",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> bytes:
    """Like `to_onnx`, for an adapted module, which is not copied."""
    if (precision, io) == ("fp32", "fp16"):
        raise LoweringError("io 'fp16' needs precision 'fp16': an FP32 network has FP32 inputs and outputs")
    taken = _names("input", inputs, [value.name for value in adapter.inputs])
    given = _names("output", outputs, [value.name for value in adapter.outputs])
    with _quiet(), without_repetition():
        try:
            program = torch.onnx.export(
                adapter,
                adapter.call.tensors,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise LoweringError(
                f"torch cannot export {type(adapter.network).__name__} to ONNX: {first_line(error)}"
            ) from error
        assert program is not None
        _keep_small_terms(program.model.graph)
        program.optimize()
    model = program.model_proto
    del model.metadata_props[:]
    for graph in bodies(model.graph):
        for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
            del part.metadata_props[:]  # stack traces with paths of this machine
    _name_constants(model.graph)
    names = {tensor.name: tensor.name.removeprefix("network.") for tensor in model.graph.initializer}
    names |= dict(
        zip((value.name for value in (*model.graph.input, *model.graph.output)), (*taken, *given), strict=True)
    )
    _rename(model.graph, names)
    model = check_model(model)
    if precision == "fp16":
        model, _ = half_precision.convert(model, io=io)
    return model.SerializeToString(deterministic=True)


def _keep_small_terms(graph: ir.Graph) -> None:
    """Add a dimension to scalars close to 0 or 1: the optimizer treats such scalars as 0 or 1, and x + 1e-9 as x."""
    for node in graph:
        attribute = node.attributes.get("value") if node.op_type == "Constant" else None
        array = None if attribute is None else attribute.as_tensor().numpy()
        if array is None or array.ndim or array.dtype.kind != "f":
            continue
        near = any(array != exact and math.isclose(array, exact, rel_tol=1e-5, abs_tol=1e-8) for exact in (0, 1))
        if near and all(
            value.shape is not None and value.shape.rank()
            for use in node.outputs[0].uses()
            for value in use.node.outputs
        ):
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array.reshape(1)))
            node.outputs[0].shape = ir.Shape([1])


def lower(
    module: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    *,
    precision: Precision = "fp32",
    program: bool = False,
) -> Lowered:
    """Lower a module for latency backends: ONNX with FP32 inputs and outputs, and a program of the same network.

    Args:
        module: as in `to_onnx`.
        example_input: as in `to_onnx`.
        precision: precision of weights and arithmetic.
        program: whether to also make the program, which torch runs.

    Raises:
        LoweringError: as `to_onnx`.
    """
    data = to_onnx(module, example_input, precision=precision)
    return Lowered(onnx=data, program=to_program(module, example_input, precision=precision) if program else None)


def to_program(
    module: nn.Module, example_input: Tensor | tuple[Tensor, ...], *, precision: Precision = "fp32"
) -> bytes:
    """Return the output of `torch.export.save` for a copy of a module in evaluation mode.

    Inputs and outputs are FP32, like those of its ONNX.

    Raises:
        LoweringError: torch cannot export the module.
    """
    twin = _twin(module, _TYPES[precision])
    if precision == "fp16":
        twin = _Cast(twin, torch.float16, torch.float32).eval()
    stream = text_io.BytesIO()
    with _quiet():
        try:
            torch.export.save(
                torch.export.export(twin, (example_input,) if isinstance(example_input, Tensor) else example_input),
                stream,
            )
        except (RuntimeError, ValueError) as error:
            raise LoweringError(f"torch cannot export {type(module).__name__}: {first_line(error)}") from error
    return stream.getvalue()


def features(backbone: nn.Module, names: Sequence[str]) -> "Features":
    """Return a module that outputs several feature maps of a backbone, such as for a detector or segmenter.

    Args:
        backbone: a network with one input.
        names: names of the modules in it whose outputs to return, in order; they become the names of the ONNX outputs.

    Raises:
        LoweringError: the backbone has no module of a name; lists some of its modules.
    """
    known = dict(backbone.named_modules())
    for name in names:
        if not name or name not in known:
            some = ", ".join([name for name, _ in backbone.named_children()][:20])
            raise LoweringError(
                f"{type(backbone).__name__} has no module {name!r}: choose of {some} or a module within them"
            )
    if not names:
        raise LoweringError("features: name at least one module")
    return Features(backbone, tuple(names))


class Features(nn.Module):
    """A backbone that returns the outputs of some of its modules; made by `features`."""

    def __init__(self, backbone: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, names

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the feature maps in the order of their names.

        Raises:
            LoweringError: a module is not called, or does not return a tensor.
        """
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            if not isinstance(output, Tensor):
                raise LoweringError(
                    f"module {name!r} gives a {type(output).__name__}, a feature map is a tensor: choose another"
                )
            outputs[name] = output

        hooks = [
            self.backbone.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name in self.names
        ]
        try:
            self.backbone(x)
        finally:
            for hook in hooks:
                hook.remove()
        if missing := [name for name in self.names if name not in outputs]:
            raise LoweringError(f"module {missing[0]!r} takes no part in the network's forward: choose another")
        return tuple(outputs[name] for name in self.names)


def count_onnx(model: onnx.ModelProto) -> Counts:
    """Return the parameters and MACs of a model returned by `check_model`, for ONNX files without a module.

    All floating-point initializers with a dimension count as parameters, and all quantised ones except scales. Without
    inputs, the batch is 1.
    """
    graph = model.graph
    quantizers = [node for node in graph.node if node.op_type in QUANTIZERS]
    scales, integers = {name for node in quantizers for name in node.input[1:]}, {node.input[0] for node in quantizers}
    weights = {
        value.name: tuple(value.dims)
        for value in graph.initializer
        if value.dims and value.name not in scales and (value.data_type in _FLOATS or value.name in integers)
    }
    params = sum(math.prod(shape) for shape in weights.values())
    for node in quantizers:
        if node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    values = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    macs = sum(
        math.prod(values.get(node.output[0], ())) * _products(node, weights)
        for node in graph.node
        if len(node.input) > 1
    )
    batch = next((dim.dim_value for value in graph.input[:1] for dim in value.type.tensor_type.shape.dim[:1]), 1)
    return Counts(params=params, macs=macs // batch)


def _products(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of products per output value of a node.

    0 if it is neither a convolution nor linear in a weight.
    """
    left, right = (weights.get(name) for name in node.input[:2])
    match node.op_type:
        case "Conv" if right:
            return math.prod(right[1:])
        case "MatMul" if right:
            return right[max(-2, -len(right))]
        case "MatMul" if left:
            return left[-1]
        case "Gemm" if right:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            return right[1 if transposed else 0]
    return 0


_DRAWS = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def require_deterministic(model: onnx.ModelProto) -> None:
    """Require that a model is deterministic, including the graphs within its nodes.

    Raises:
        LoweringError: a node draws random numbers; names the node.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _nodes(model.graph):
        if node.op_type in _DRAWS or (node.op_type == "Dropout" and _trains(node, weights)):
            raise LoweringError(
                f"node {node.name or node.output[0]!r} ({node.op_type}) draws random numbers, so no output can be "
                "verified: export the "
                "network in evaluation mode, or draw its numbers outside and make them an input"
            )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, attribute.g):
                yield from _nodes(inner)


def _trains(dropout: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Return whether a Dropout may drop values, which includes one whose mode is not constant."""
    if len(dropout.input) < 3 or not dropout.input[2]:
        return False
    mode = weights.get(dropout.input[2])
    return mode is None or bool(onnx.numpy_helper.to_array(mode))


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)


class _Cast(nn.Module):
    """A module between two casts."""

    def __init__(self, body: nn.Module, inner: torch.dtype, outer: torch.dtype) -> None:
        super().__init__()
        self.body, self.inner, self.outer = body, inner, outer

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        output = self.body(*(x.to(self.inner) if x.is_floating_point() else x for x in inputs))
        return map_tensors(output, lambda value: value.to(self.outer) if value.is_floating_point() else value)


def _twin(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(module).to(dtype).eval()


def _require_inline(module: nn.Module) -> None:
    size = sum(4 * tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
    if size > MAX_BYTES:
        raise LoweringError(
            f"the weights of {type(module).__name__} take {size / 2**30:.1f} GiB in FP32, and an ONNX file with its "
            "weights inline holds "
            "less than 2: ship it in parts"
        )


def _names(kind: str, given: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    if given and not len(given) == len(set(given)) == len(known):
        raise LoweringError(f"{kind}s {', '.join(given)}: the network has {len(known)}, each needs a name of its own")
    return given or known


def _name_constants(graph: onnx.GraphProto) -> None:
    """Write constant outputs with a node, since not every runtime supports outputs that are weights."""
    outputs = {value.name for value in graph.output}
    for tensor in graph.initializer:
        if tensor.name in outputs:
            name, tensor.name = tensor.name, f"{tensor.name}.value"
            graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [name], f"constant_{name}"))


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename values, including reads in the bodies of nodes.

    Other values that already have one of the new names are renamed, too.
    """
    names = {old: new for old, new in names.items() if old != new}
    parts = list(bodies(graph))
    nodes = [node for part in parts for node in part.node]
    values = [value for part in parts for value in (*part.input, *part.output, *part.value_info, *part.initializer)]
    taken = {name for node in nodes for name in (*node.input, *node.output)} | {value.name for value in values}
    for name in set(names.values()) & (taken - names.keys()):
        names[name] = _unused(f"{name}_", taken | set(names.values()))
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in values:
        value.name = names.get(value.name, value.name)


def _unused(name: str, taken: Set[str]) -> str:
    while name in taken:
        name += "_"
    return name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's prints, logs and warnings; its errors are still raised as exceptions."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(text_io.StringIO()),
            contextlib.redirect_stderr(text_io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
