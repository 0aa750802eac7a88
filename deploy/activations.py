"""Effects of half precision on activations, seen on samples: tensors that are too large, or lost as a whole.

A few tiny values among others do not matter. But if all values of a tensor are below the smallest normal number, the
loss shows in nodes that divide it, take its root or multiply it by a large factor, in one or several steps.
"""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from deploy.certificate import LARGEST, SMALLEST_NORMAL, TensorRange
from deploy.flow import DataFlow, attributes, keep
from deploy.islands import Node

_ABSORBING = frozenset({
    "Add", "Attention", "Clip", "Concat", "Cos", "Exp", "GRU", "HardSigmoid", "LSTM", "LogSoftmax", "Max", "Mean",
    "Min", "RNN", "ScatterElements", "ScatterND", "Sigmoid", "Softmax", "Softplus", "Sub", "Sum", "Where",
})  # fmt: skip
"""Operators whose output is dominated by other inputs, so that a tiny one does not matter."""


def keep_activations(flow: DataFlow, seen: Mapping[str, TensorRange], headroom: float) -> None:
    """Keep in FP32 the nodes whose activations approach the limit of half precision.

    Nodes affected by activations that are lost there stay, too.

    Args:
        flow: the graph; reasons are set on its nodes.
        seen: ranges of the activations on samples.
        headroom: factor by which activations must stay below 65504.
    """
    for node in flow.nodes:
        keep([node], _overflow(node, seen, LARGEST / headroom))
    matters = set[str]()
    for node in reversed(flow.nodes):
        written = [node.proto.output[i] for i in node.outputs]
        read = sorted(name for name in node.reads if _is_lost(name, seen))
        hidden = all(_is_lost(name, seen) and name in flow.readers and name not in matters for name in written)
        if read and written and not hidden and not _absorbs(node.proto, read, written, flow, seen):
            matters.update(read)
            keep([node], _lost(read[0], seen))
        if left := [name for name in written if _is_lost(name, seen) and (name in matters or name not in flow.readers)]:
            keep([node], _lost(left[0], seen))


def _overflow(node: Node, seen: Mapping[str, TensorRange], limit: float) -> str:
    for name in [node.proto.output[i] for i in node.outputs] + [node.proto.input[i] for i in node.inputs]:
        if name in seen and seen[name].max_abs > limit:
            return f"{name} reaches {seen[name].max_abs:.4g}, more than {limit:.0f}"
    for name in (node.proto.output[i] for i in node.outputs):
        if name in seen and seen[name].sum_abs > limit:
            return f"the sum of {name} reaches {seen[name].sum_abs:.4g}, more than {limit:.0f}"
    return ""


def _is_lost(name: str, seen: Mapping[str, TensorRange]) -> bool:
    return name in seen and 0 < seen[name].max_abs < SMALLEST_NORMAL


def _lost(name: str, seen: Mapping[str, TensorRange]) -> str:
    return f"{name} reaches only {seen[name].max_abs:.4g}, half precision is coarse below {SMALLEST_NORMAL:.2g}"


def _absorbs(
    proto: NodeProto, read: list[str], written: list[str], flow: DataFlow, seen: Mapping[str, TensorRange]
) -> bool:
    """Return whether a node's outputs are of normal size for reasons other than its lost inputs."""
    if any(_is_lost(name, seen) for name in written):
        return False
    gain = _gain(proto, flow)
    return proto.op_type in _ABSORBING or (gain is not None and gain * seen[read[0]].max_abs < SMALLEST_NORMAL)


def _gain(proto: NodeProto, flow: DataFlow) -> float | None:
    """Return the largest factor by which a layer with constant weights multiplies, or None for other nodes."""
    if proto.op_type == "BatchNormalization":
        scale, variance = (flow.constants.get(proto.input[i]) for i in (1, 4))
        if scale is None or variance is None:
            return None
        return float(np.abs(scale / np.sqrt(variance + attributes(proto).get("epsilon", 1e-5))).max(initial=0.0))
    weight = flow.constants.get(proto.input[1]) if proto.op_type in ("Conv", "Gemm", "MatMul") else None
    return None if weight is None else float(np.abs(weight).sum(dtype=np.float64))
