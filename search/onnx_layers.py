"""Read the convolutions and linear layers of an ONNX graph as blocks of a latency table.

`spaces.traced` does the same for modules.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import GraphProto, NodeProto, helper, numpy_helper

from deploy.cleaning import clean
from deploy.shapes import inputs, require_static_inputs
from latency.block import BlockSpec
from search import ops
from search.errors import SearchError
from search.ops import Geometry

_ACTIVATIONS = {"Relu": "relu", "HardSwish": "hardswish", "Sigmoid": "sigmoid", "Tanh": "tanh", "Swish": "swish"}
_VIEWS = frozenset({"Cast", "Constant", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators without computation."""


@dataclass(frozen=True, kw_only=True)
class OnnxLayers:
    """Layers of a graph.

    Attributes:
        names: names of the layers' nodes, in order.
        blocks: the layers.
        batch: images per inference: the first size of every layer's input.
        others: number of operators not covered by a block, by type; bias, norm and activation after a layer belong to
            it.
    """

    names: tuple[str, ...]
    blocks: tuple[BlockSpec, ...]
    batch: int
    others: Mapping[str, int]


def read(data: bytes, shapes: Mapping[str, Sequence[int]] | None = None) -> OnnxLayers:
    """Read the layers of a serialised model.

    Args:
        data: the model.
        shapes: shapes of inputs with dynamic shapes, by name.

    Raises:
        LoweringError: the data is not an ONNX model, a shape does not fit, or an input has a dynamic shape.
        SearchError: the model has no layer, or its layers have different batch sizes.
    """
    model = onnx.load_from_string(clean(data, shapes).onnx)
    require_static_inputs(inputs(model))
    graph = _Graph(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    names, blocks, inside = list[str](), list[BlockSpec](), set[str]()
    for node in graph.nodes:
        if (spec := graph.block(node)) is not None:
            names.append(node.name)
            blocks.append(spec)
            inside.update(part.name for part in (node, *graph.epilogue(node)[0]))
    if not blocks:
        raise SearchError(
            "the model has no convolution or linear layer of known shape, which tables are about: predict its source"
        )
    others = Counter(node.op_type for node in graph.nodes if node.name not in inside and node.op_type not in _VIEWS)
    return OnnxLayers(
        names=tuple(names), blocks=tuple(blocks), batch=graph.batch or 1, others=dict(others.most_common())
    )


class _Graph:
    def __init__(self, graph: GraphProto) -> None:
        self.nodes = list(graph.node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._shapes = {name: tuple(tensor.dims) for name, tensor in self._constants.items()}
        for value in (*graph.input, *graph.value_info, *graph.output):
            self._shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        self._readers: dict[str, list[NodeProto]] = {value.name: [] for value in graph.output}
        self._outputs = frozenset(self._readers)
        self.batch = 0  # unknown until the first layer
        for node in self.nodes:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def block(self, node: NodeProto) -> BlockSpec | None:
        """Return a layer's block; None for other nodes, and for layers that no block describes."""
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return None
        before, weight, after = (self._shapes.get(name, ()) for name in (node.input[0], node.input[1], node.output[0]))
        if not (before and weight and after and all((*before, *weight, *after))):
            return None
        self.batch = self.batch or before[0]
        if before[0] != self.batch:
            raise SearchError(
                f"layer {node.name} has a batch of {before[0]}, others have {self.batch}: tables are of one batch"
            )
        _, act = self.epilogue(node)
        if node.op_type in ("Conv", "ConvTranspose"):
            return _convolution(node, before, weight, after, act)
        if node.input[1] not in self._constants:  # a product of two activations, as in attention
            return None
        return ops.layer("linear", (before[-1], math.prod(before[1:-1]), 1), after[-1], act=act)

    def epilogue(self, node: NodeProto) -> tuple[list[NodeProto], str]:
        """Return the bias, norm and activation after a layer, and the activation's name or `none`.

        Runtimes fuse these into the layer.
        """
        fused: list[NodeProto] = []
        convolution, value = node.op_type in ("Conv", "ConvTranspose"), node.output[0]
        while value not in self._outputs:
            readers = {reader.op_type: reader for reader in self._readers.get(value, [])}
            if set(readers) == {"Sigmoid", "Mul"} and self._readers.get(readers["Sigmoid"].output[0]) == [
                readers["Mul"]
            ]:
                return [*fused, readers["Sigmoid"], readers["Mul"]], "swish"
            if len(self._readers.get(value, [])) != 1:
                break
            (reader,) = readers.values()
            if act := self._activation(reader):
                return [*fused, reader], act
            norm = reader.op_type == "BatchNormalization" and convolution
            bias = reader.op_type == "Add" and any(name in self._constants for name in reader.input)
            if not norm and not bias:
                break
            fused.append(reader)
            value = reader.output[0]
        return fused, "none"

    def _activation(self, node: NodeProto) -> str:
        """Return the name of an activation; "" for other nodes."""
        if node.op_type == "Clip":
            limits = [
                numpy_helper.to_array(self._constants[name]).item()
                for name in node.input[1:]
                if name in self._constants
            ]
            return "relu6" if limits == [0, 6] else ""
        return _ACTIVATIONS.get(node.op_type, "")


def _convolution(
    node: NodeProto, before: tuple[int, ...], weight: tuple[int, ...], after: tuple[int, ...], act: str
) -> BlockSpec | None:
    attrs = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups, transposed = attrs.get("group", 1), node.op_type == "ConvTranspose"
    if len(before) != 4 or (transposed and groups > 1):
        return None
    kernel, stride = (weight[2], weight[3]), tuple(attrs.get("strides", (1, 1)))
    dilation, out_pad = attrs.get("dilations", [1, 1]), attrs.get("output_padding", [0, 0])
    pads = attrs.get("pads", [0, 0, 0, 0])
    geometry = Geometry(kernel, stride, (pads[0], pads[1]), dilation[0], out_pad[0])
    if geometry.output((before[2], before[3]), transposed=transposed) != after[2:]:
        return None  # padded or dilated unevenly
    shape, c_out = (before[1], before[2], before[3]), after[1]
    if groups > 1 and groups == before[1] == c_out:
        return ops.layer("depthwise", shape, None, geometry, act=act)
    return ops.layer("conv_transpose" if transposed else "conv", shape, c_out, geometry, act=act, groups=groups)
