"""Operators that mix channels: convolutions, linear layers, matrix products."""

from dataclasses import replace

import numpy as np
from torch import fx

from reparam.atoms import Flags, Ids
from reparam.flow import BORDER, GENERIC, ChannelFlow, Channels, FlowLayer, Numbers, folded_bias
from reparam.graph import args_of, aten, shape_of, with_defaults


def channel_dim(node: fx.Node) -> int:
    """Return the channel dimension: the last one of a linear layer, the last but the spatial ones of a convolution."""
    rank = len(shape_of(node))
    return rank - 1 if node.target is aten.linear.default else rank - len(shape_of(args_of(node)[1])) + 1


def convolution(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Mix the channels in the dimension before the spatial ones."""
    source, weight, bias, _, padding, _, transposed, _, groups = args_of(node)
    if not flow.network.is_constant(weight):
        return flow.opaque(node, " with computed weights")
    kernel = shape_of(weight)
    width = kernel[1] * groups if transposed else kernel[0]
    exact = not transposed and not any(padding)
    return _layer(flow, node, source, (weight, bias), channel_dim(node), width, exact, groups, bool(transposed))


def linear(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Mix the channels in the last dimension."""
    source, weight, bias = with_defaults(args_of(node), (None, None, None))
    if not flow.network.is_constant(weight):
        return flow.opaque(node, " with computed weights")
    width = shape_of(weight)[0]
    return _layer(flow, node, source, (weight, bias), channel_dim(node), width, True, 1, False)


def _layer(
    flow: ChannelFlow,
    node: fx.Node,
    source: fx.Node,
    weights: tuple[fx.Node, fx.Node | None],
    dim: int,
    width: int,
    exact: bool,
    groups: int,
    transposed: bool,
) -> Channels:
    x = flow.along(source, dim, node)
    weight, bias = weights
    layer = flow.layers.get(weight)
    if layer is None:
        layer = flow.layers[weight] = FlowLayer(node, weight, bias, x.ids, flow.atoms.new(width), groups, transposed)
        flow.cut(bias, layer.out)
    else:  # a layer used twice has one weight, so its channels are removed in both places or neither
        flow.unite(layer.into, x.ids)
    layer.folds.append((node, x, exact))
    flow.sized.append((node, x.ids, layer.out))
    flow.readers.append((node, x.ids))
    flow.makers.append((node, layer.out))
    out = _layer_output(flow, node, layer, x, exact=exact)
    return out.map(lambda array: array.reshape([-1 if axis == dim else 1 for axis in range(len(shape_of(node)))]))


def _layer_output(flow: ChannelFlow, node: fx.Node, layer: FlowLayer, x: Channels, *, exact: bool) -> Channels:
    """Return the output channels of a layer in one dimension."""
    groups, ids = layer.groups, layer.out
    out = Channels(ids, np.ones(len(ids), bool), np.zeros(len(ids)))
    if groups == 1:
        flow.atoms.read(x.ids[x.live])
        return out
    into, live = x.ids.reshape(groups, -1), x.live.reshape(groups, -1)
    by_group = ids.reshape(groups, -1)
    if into.shape[1] == by_group.shape[1] == 1:
        flow.atoms.unite(x.ids, ids)
        flow.alike.add(node)
    elif flow.generic:
        _tie_groups(flow, into, by_group)
        flow.atoms.read(x.ids[x.live])
    else:
        flow.atoms.balance(into, by_group, live)
    dead = np.repeat(~live.any(1), by_group.shape[1])
    if not dead.any():
        return out
    if not exact and x.const.any():
        flow.refuse(node, x.ids[x.const != 0], BORDER)
        return out
    flow.filled.append(ids[dead])
    return replace(out, live=~dead, const=np.where(dead, _bias_alone(flow, layer, x), 0.0))


def _tie_groups(flow: ChannelFlow, into: Ids, out: Ids) -> None:
    """Tie channels so that groups stay equal in size: within them if a side has one channel per group, else across."""
    if 1 in (into.shape[1], out.shape[1]):
        flow.unite(into, into[:, :1])
        flow.unite(out, into[:, :1])
    else:
        flow.unite(into, into[:1])
        flow.unite(out, out[:1])


def _bias_alone(flow: ChannelFlow, layer: FlowLayer, x: Channels) -> Numbers | float:
    """Return the constant output of groups without live inputs."""
    if flow.generic:
        return GENERIC if layer.bias is not None or x.const.any() else 0.0
    weight, bias = flow.network.constant(layer.weight), flow.network.constant(layer.bias)
    return folded_bias(weight, bias, layer, x.const, np.ones(len(x.ids), bool))


def matmul(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Tie the channels of the summed dimension, and pass on channels of the batch dimensions."""
    first, second = args_of(node)[:2]
    if flow.network.is_constant(second) and len(shape_of(second)) == 2:
        return flow.opaque(node, " with a matrix of weights")
    return _product(flow, node, first, second, shared=(-1, -2), kept=(-2, -1))


def attention(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Pass on whole heads."""
    query, key, value, mask = with_defaults(args_of(node), (None,) * 4)[:4]
    if flow.of(mask) is not None or node.kwargs.get("enable_gqa"):
        return flow.opaque(node, " with a mask or shared heads")
    scores = _product(flow, node, query, key, shared=(-1, -1), kept=(-2, -2))
    values = flow.of(value)
    if scores is None or values is None:
        return flow.opaque(node, " of values without heads")
    return _by_head(flow, node, scores, values)


def _product(
    flow: ChannelFlow, node: fx.Node, first: fx.Node, second: fx.Node, shared: tuple[int, int], kept: tuple[int, int]
) -> Channels | None:
    left, right = flow.of(first), flow.of(second)
    if left is None or right is None or left.ids.ndim != right.ids.ndim:
        return flow.opaque(node, " of values whose channels are different dimensions")
    left, right = _tied(flow, left, shared[0]), _tied(flow, right, shared[1])
    if left.ids.shape[kept[0]] == 1:
        return _by_head(flow, node, left, right)
    if right.ids.shape[kept[1]] == 1:
        return _by_head(flow, node, right, left)
    return flow.opaque(node, " of values whose channels are different dimensions")


def _tied(flow: ChannelFlow, x: Channels, dim: int) -> Channels:
    """Tie the entries along a summed dimension; the sum is live if any of them is not 0."""
    first = x.ids.take([0], dim)
    flow.unite(x.ids, first)
    alive: Flags = (x.live | (x.const != 0)).any(dim, keepdims=True)
    return Channels(first, alive, np.zeros(alive.shape))


def _by_head(flow: ChannelFlow, node: fx.Node, heads: Channels, x: Channels) -> Channels | None:
    """Multiply a value by a factor that is common to all entries of a head: 0 if either is 0, else live."""
    ids: Ids = x.ids
    if heads.ids.ndim != ids.ndim or any(a not in (1, b) for a, b in zip(heads.ids.shape, ids.shape, strict=True)):
        return flow.opaque(node, " of values whose channels are different dimensions")
    if heads.dims == () and ids.size > 1:
        flow.pin(heads, f"{flow.describe(node)} uses it for all channels")
    else:
        flow.unite(ids, heads.ids)
    alive: Flags = (x.live | (x.const != 0)) & (heads.live | (heads.const != 0))
    return Channels(ids, alive, np.zeros(alive.shape))
