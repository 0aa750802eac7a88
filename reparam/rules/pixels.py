"""What works channel by channel over the other dimensions: pools, resizing, reductions, softmax."""

from dataclasses import replace

import numpy as np
import torch
from torch import fx

from reparam.flow import Channels, Flow, Value
from reparam.graph import args_of, aten, shape


def pool(flow: Flow, node: fx.Node) -> Value:
    """Over the pixels, which are the last dimensions; some return the places of what they took as well."""
    x = flow.of(args_of(node)[0])
    if x is None:
        return None
    if max(x.dims, default=0) > 1:
        return flow.opaque(node, " where channels are not dimension 1")
    made = probed(flow, node, x)
    return (made, None) if isinstance(node.meta["val"], list | tuple) else made


def softmax(flow: Flow, node: fx.Node) -> Channels | None:
    """Over another dimension than channels, as over branches that have the same ones."""
    source, dim = args_of(node)[:2]
    found = _over(flow, node, source, {dim % len(shape(source))})
    if found is None:
        return None
    x, tied = found
    const = flow.run(node, {source: flow.dead(source, x, {dim % x.ids.ndim})}).numpy()
    const = const if x.ids.shape[dim] > 1 else const.take([0], dim)
    return Channels(x.ids, np.broadcast_to(tied.live, x.ids.shape), np.where(tied.live, 0.0, const))


def reduction(flow: Flow, node: fx.Node) -> Channels | None:
    """Means, sums, norms and the like over other dimensions than channels."""
    source, *rest = args_of(node)
    dims, keeps, *_ = (*(rest[1:] if node.target is aten.linalg_vector_norm.default else rest), None, False)
    rank = len(shape(source))
    gone = {dim % rank for dim in dims or range(rank)}
    found = _over(flow, node, source, gone)
    if found is None:
        return None
    x, tied = found
    if not (keeps or node.kwargs.get("keepdim", False)):
        tied = tied.map(lambda array: array.squeeze(tuple(gone)))
    const = 0.0 if tied.live.all() else flow.run(node, {source: flow.dead(source, x, gone)}).numpy()
    return replace(tied, const=np.where(tied.live, 0.0, const))


def _over(flow: Flow, node: fx.Node, source: fx.Node, dims: set[int]) -> tuple[Channels, Channels] | None:
    """What a node reads, and the same with one entry along some dimensions, to which all others there are tied."""
    x = flow.of(source)
    along = tuple(dims.intersection(x.dims)) if x is not None else ()
    if x is None or (along and len(along) == len(x.dims)):
        return None if x is None else flow.opaque(node, " over channels")
    first = x
    for dim in along:
        first = first.map(lambda array, dim=dim: array.take([0], dim))
    flow.unite(x.ids, first.ids)
    return x, replace(first, live=x.live.any(along, keepdims=True))


def probed(flow: Flow, node: fx.Node, x: Channels) -> Channels:
    """Run an operator on what is in the dead channels, to see what it makes of them."""
    if x.live.all():
        return x
    (source,) = flow.network.reads(node)
    numbers = np.unique(x.const[~x.live])
    dim = max(x.dims, default=1)
    sizes = [len(numbers) if axis == dim else 1 if axis in (0, *x.dims) else size for axis, size in enumerate(shape(source))]
    image = torch.from_numpy(numbers).view([-1 if axis == dim else 1 for axis in range(len(sizes))]).expand(sizes).clone()
    made = flow.run(node, {source: image})
    found = (made[0] if isinstance(made, tuple) else made).movedim(dim, 0).reshape(len(numbers), -1).numpy()
    where = np.searchsorted(numbers, x.const[~x.live])
    const, lost = np.zeros_like(x.const), np.zeros_like(x.live)
    const[~x.live] = found[where, 0]
    lost[~x.live] = np.any(~np.isclose(found, found[:, :1], rtol=1e-12, atol=0), axis=1)[where]
    flow.refuse(node, x.ids[lost], "makes different numbers of a masked channel that is not 0")
    return Channels(x.ids, x.live | lost, np.where(lost, 0.0, const))
