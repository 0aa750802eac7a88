"""What each core ATen operator does to channels: one function an operator, and one table of them."""

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx

from reparam.flow import Flow, Value
from reparam.graph import aten
from reparam.rules import layers, norms, pixels, pointwise, shapes

Rule = Callable[[Flow, fx.Node], Value]


@cache
def _table() -> Mapping[Any, Rule]:
    pools = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    upsample = ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d", "trilinear3d", "bicubic2d")
    return {
        aten.convolution.default: layers.convolution,
        aten.linear.default: layers.linear,
        aten.matmul.default: layers.matmul,
        aten.bmm.default: layers.matmul,
        aten.mm.default: layers.matmul,
        aten.scaled_dot_product_attention.default: layers.attention,
        aten._native_batch_norm_legit_no_training.default: norms.batch_norm,
        aten._native_batch_norm_legit.no_stats: norms.batch_norm_of_the_batch,
        aten.instance_norm.default: norms.instance_norm,
        aten.group_norm.default: norms.group_norm,
        aten.layer_norm.default: norms.layer_norm,
        aten.prelu.default: pointwise.prelu,
        aten.glu.default: pointwise.glu,
        aten.softmax.int: pixels.softmax,
        aten.log_softmax.int: pixels.softmax,
        aten._softmax.default: pixels.softmax,
        aten._log_softmax.default: pixels.softmax,
        aten.mean.dim: pixels.reduction,
        aten.sum.dim_IntList: pixels.reduction,
        aten.amax.default: pixels.reduction,
        aten.amin.default: pixels.reduction,
        aten.var.correction: pixels.reduction,
        **{getattr(aten, f"{pool}{rank}d").default: pixels.pool for pool in pools for rank in (1, 2, 3)},
        aten._adaptive_avg_pool2d.default: pixels.pool,
        aten._adaptive_avg_pool3d.default: pixels.pool,
        aten.max_pool2d_with_indices.default: pixels.pool,
        aten.max_pool3d_with_indices.default: pixels.pool,
        **{getattr(aten, f"upsample_{kind}").vec: pixels.pool for kind in upsample},
        **{getattr(aten, f"upsample_{kind}").default: pixels.pool for kind in upsample},
        aten.pad.default: shapes.pad,
        aten.constant_pad_nd.default: shapes.pad,
        aten.view.default: shapes.view,
        aten.reshape.default: shapes.view,
        aten._unsafe_view.default: shapes.view,
        aten.squeeze.dims: shapes.view,
        aten.squeeze.dim: shapes.view,
        aten.unsqueeze.default: shapes.view,
        aten.permute.default: shapes.permute,
        aten.expand.default: shapes.expand,
        aten.repeat.default: shapes.repeat,
        aten.cat.default: shapes.cat,
        aten.slice.Tensor: shapes.slice_,
        aten.select.int: shapes.select,
        aten.split_with_sizes.default: shapes.split,
        aten.index_select.default: shapes.index_select,
        aten.index.Tensor: shapes.index,
        aten.flip.default: shapes.flip,
        aten.pixel_shuffle.default: shapes.pixel_shuffle,
        aten.pixel_unshuffle.default: shapes.pixel_unshuffle,
        aten.channel_shuffle.default: shapes.channel_shuffle,
        operator.getitem: shapes.part,
        **dict.fromkeys((aten._to_copy.default, aten.alias.default, aten.hardswish.default), pointwise.pointwise),
    }


def rule_of(node: fx.Node) -> Rule:
    """What the operator of a node does to channels."""
    rule = _table().get(node.target)
    if rule is None:
        rule = pointwise.pointwise if torch.Tag.pointwise in getattr(node.target, "tags", ()) else Flow.opaque
    return rule
