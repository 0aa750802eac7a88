"""Rules for what each core ATen operator does to channels, and the table of them."""

import operator
from collections.abc import Mapping
from functools import cache

import torch
from torch import fx
from torch.fx.node import Target

from reparam.flow import ChannelFlow, Rule
from reparam.graph import aten
from reparam.rules import layers, norms, pixels, pointwise, shapes

_KINDS = "nearest1d nearest2d nearest3d linear1d bilinear2d trilinear3d bicubic2d"
_POOLS = "max_pool avg_pool adaptive_avg_pool adaptive_max_pool"
_RULES: Mapping[Rule, str] = {
    layers.convolution: "convolution",
    layers.linear: "linear",
    layers.matmul: "matmul bmm mm",
    layers.attention: "scaled_dot_product_attention",
    norms.by_channel: "_native_batch_norm_legit_no_training _native_batch_norm_legit.no_stats instance_norm prelu",
    norms.group_norm: "group_norm",
    norms.layer_norm: "layer_norm",
    pointwise.pointwise: "_to_copy alias hardswish",
    pointwise.glu: "glu",
    pixels.softmax: "softmax.int log_softmax.int _softmax _log_softmax",
    pixels.reduction: "mean.dim sum.dim_IntList amax amin var.correction linalg_vector_norm",
    pixels.pool: " ".join(
        [f"{pool}{rank}d" for pool in _POOLS.split() for rank in (1, 2, 3)]
        + [f"upsample_{kind}{overload}" for kind in _KINDS.split() for overload in ("", ".vec")]
        + ["_adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d_with_indices max_pool3d_with_indices"]
    ),
    shapes.moved: (
        "view reshape _unsafe_view squeeze.dims squeeze.dim unsqueeze permute expand repeat slice.Tensor select.int "
        "split_with_sizes "
        "index_select index.Tensor flip pixel_unshuffle"
    ),
    shapes.cat: "cat",
    shapes.pad: "pad constant_pad_nd",
    shapes.pixel_shuffle: "pixel_shuffle",
    shapes.channel_shuffle: "channel_shuffle",
}
"""Rules with the ATen operators that they apply to, each with its overload if it is not the default one."""


@cache
def _table() -> Mapping[Target, Rule]:
    table: dict[Target, Rule] = {operator.getitem: shapes.getitem}
    for rule, names in _RULES.items():
        for full in names.split():
            name, _, overload = full.partition(".")
            table[getattr(getattr(aten, name), overload or "default")] = rule
    return table


def rule_of(node: fx.Node) -> Rule:
    """Return the rule of a node's operator."""
    rule = _table().get(node.target)
    if rule is None:
        rule = pointwise.pointwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else ChannelFlow.opaque
    return rule
