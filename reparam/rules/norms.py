"""Norms over the batch, single channels, groups of channels or all channels."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from reparam.flow import ChannelFlow, Channels, Value, first_result
from reparam.graph import args_of, shape_of


def by_channel(flow: ChannelFlow, node: fx.Node) -> Value:
    """Handle channels separately, with their own scale, shift, statistics or slope: batch and instance norms, PReLU."""
    source, *numbers = args_of(node)
    channels = shape_of(source)[1:2]
    x = _first_dimension(flow, node, source, [n for n in numbers if isinstance(n, fx.Node) and shape_of(n) == channels])
    if x is not None:
        output = first_result(flow.run(node, {source: flow.dead(source, x)}))
        x = replace(x, const=np.where(x.live, 0.0, output.numpy()))
    return (x, None, None) if isinstance(node.meta["val"], list | tuple) else x


def group_norm(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Tie channels that share statistics."""
    source, groups, *numbers = args_of(node)
    x = _first_dimension(flow, node, source, numbers[:2])
    if x is None:
        return None
    if groups == 1:
        return _all_tied(flow, node, x)
    rows = x.map(lambda array: array.reshape(groups, -1))
    flow.unite(rows.ids, rows.ids[:, :1])
    live = np.repeat(rows.live.any(1), rows.ids.shape[1]).reshape(x.ids.shape)
    return Channels(x.ids, live, np.where(live, 0.0, flow.run(node, {source: flow.dead(source, x)}).numpy()))


def layer_norm(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Keep all channels, since they share statistics."""
    source, normalized, *_ = args_of(node)
    x = flow.of(source)
    if x is None:
        return None
    if min(x.dims, default=0) < len(shape_of(node)) - len(normalized):
        return flow.opaque(node, " over another dimension than channels")
    return _all_tied(flow, node, x)


def _first_dimension(flow: ChannelFlow, node: fx.Node, source: fx.Node, numbers: list[Any]) -> Channels | None:
    """Return the channels in dimension 1, and cut the entries of parameters with them."""
    x = flow.of(source)
    if x is None or set(x.dims) - {1}:
        return None if x is None else flow.opaque(node, " where channels are not dimension 1")
    ids = x.ids.ravel()
    for value in numbers:
        flow.cut(value, ids)
    flow.sized.append((node, ids, ids))
    flow.alike.add(node)
    return x


def _all_tied(flow: ChannelFlow, node: fx.Node, x: Channels) -> Channels:
    why = "takes its statistics over all channels"
    flow.pin(x, f"{flow.describe(node)} {why}")
    if not x.live.any():
        flow.refuse(node, x.ids.ravel(), f"{why}, and all of them are masked")
    return replace(x, live=np.ones_like(x.live), const=np.zeros_like(x.const))
