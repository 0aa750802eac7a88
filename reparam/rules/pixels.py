"""Operators over dimensions other than channels: pooling, resizing, reductions, softmax."""

from dataclasses import replace

import numpy as np
from torch import fx

from reparam.flow import ChannelFlow, Channels, Value, first_result
from reparam.graph import args_of, aten, shape_of
from reparam.typed_torch import from_numpy


def pool(flow: ChannelFlow, node: fx.Node) -> Value:
    """Handle an operator over the last, spatial dimensions, which may return indices as well."""
    x = flow.of(args_of(node)[0])
    if x is None:
        return None
    if max(x.dims, default=0) > 1:
        return flow.opaque(node, " where channels are not dimension 1")
    out = probed(flow, node, x)
    return (out, None) if isinstance(node.meta["val"], list | tuple) else out


def softmax(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Handle a softmax over a dimension other than channels, such as over branches with the same channels."""
    source, dim = args_of(node)[:2]
    operands = _over(flow, node, source, {dim % len(shape_of(source))})
    if operands is None:
        return None
    x, tied = operands
    const = flow.run(node, {source: flow.dead(source, x, {dim % x.ids.ndim})}).numpy()
    const = const if x.ids.shape[dim] > 1 else const.take([0], dim)
    return Channels(x.ids, np.broadcast_to(tied.live, x.ids.shape), np.where(tied.live, 0.0, const))


def reduction(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Handle means, sums, norms and other reductions over dimensions other than channels."""
    source, *rest = args_of(node)
    if node.target is aten.linalg_vector_norm.default:
        rest = rest[1:]  # its order
    dims, keeps, *_ = (*rest, None, False)
    rank = len(shape_of(source))
    gone = {dim % rank for dim in dims or range(rank)}
    operands = _over(flow, node, source, gone)
    if operands is None:
        return None
    x, tied = operands
    if not (keeps or node.kwargs.get("keepdim", False)):
        tied = tied.map(lambda array: array.squeeze(tuple(gone)))
    const = 0.0 if tied.live.all() else flow.run(node, {source: flow.dead(source, x, gone)}).numpy()
    return replace(tied, const=np.where(tied.live, 0.0, const))


def _over(flow: ChannelFlow, node: fx.Node, source: fx.Node, dims: set[int]) -> tuple[Channels, Channels] | None:
    """Tie the entries of a node's input along some dimensions; return the input, and it with one entry along each."""
    x = flow.of(source)
    along = tuple(dims.intersection(x.dims)) if x is not None else ()
    if x is None or (along and len(along) == len(x.dims)):
        return None if x is None else flow.opaque(node, " over channels")
    first = x
    for dim in along:
        first = first.map(lambda array, dim=dim: array.take([0], dim))
    flow.unite(x.ids, first.ids)
    return x, replace(first, live=x.live.any(along, keepdims=True))


def probed(flow: ChannelFlow, node: fx.Node, x: Channels) -> Channels:
    """Run an operator on the constants of dead channels to find the constants that it returns."""
    if x.live.all():
        return x
    (source,) = flow.network.reads(node)
    numbers = np.unique(x.const[~x.live])
    dim = max(x.dims, default=1)
    sizes = [
        len(numbers) if axis == dim else 1 if axis in (0, *x.dims) else size
        for axis, size in enumerate(shape_of(source))
    ]
    image = from_numpy(numbers).view([-1 if axis == dim else 1 for axis in range(len(sizes))]).expand(sizes).clone()
    output = first_result(flow.run(node, {source: image}))
    results = output.movedim(dim, 0).reshape(len(numbers), -1).numpy()
    where = np.searchsorted(numbers, x.const[~x.live])
    const, lost = np.zeros_like(x.const), np.zeros_like(x.live)
    const[~x.live] = results[where, 0]
    lost[~x.live] = np.any(~np.isclose(results, results[:, :1], rtol=1e-12, atol=0), axis=1)[where]
    flow.refuse(node, x.ids[lost], "turns the nonzero constant of a masked channel into different values")
    return Channels(x.ids, x.live | lost, np.where(lost, 0.0, const))
