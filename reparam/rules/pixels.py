"""What works channel by channel over the other dimensions: pools, resizing, reductions, softmax."""

from typing import Any

import numpy as np
import torch
from torch import fx

from reparam.flow import Channels, Flow, Value
from reparam.graph import args_of, shape


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
    """Over another dimension than channels."""
    x, dim = flow.of(args_of(node)[0]), args_of(node)[1]
    if x is None or not isinstance(dim, int):
        return None
    if dim % len(shape(node)) in x.dims:
        return flow.opaque(node, " over channels")
    return probed(flow, node, x)


def reduction(flow: Flow, node: fx.Node) -> Channels | None:
    """Means, sums and the like over other dimensions than channels."""
    source, dims, keeps, *_ = (*args_of(node), None, False)[:3]
    x = flow.of(source)
    if x is None or not isinstance(source, fx.Node):
        return None
    rank = len(shape(source))
    gone = {dim % rank for dim in dims} if isinstance(dims, list | tuple) and dims else set(range(rank))
    if gone & {*x.dims}:
        return flow.opaque(node, " over channels")
    keeps = keeps or node.kwargs.get("keepdim", False)
    return probed(flow, node, x, lambda array: array if keeps else array.squeeze(tuple(gone)))


def probed(flow: Flow, node: fx.Node, x: Channels, moved: Any = lambda array: array) -> Channels:
    """Run an operator on what is in the dead channels, to see what it makes of them."""
    if x.live.all():
        return x.map(moved)
    (source,) = flow.network.reads(node)
    numbers = np.unique(x.const[~x.live])
    const, lost = np.zeros_like(x.const), np.zeros_like(x.live)
    dim = max(x.dims, default=1)
    sizes = [len(numbers) if axis == dim else 1 if axis in (0, *x.dims) else size for axis, size in enumerate(shape(source))]
    image = torch.from_numpy(numbers).view([-1 if axis == dim else 1 for axis in range(len(sizes))]).expand(sizes).clone()
    made = flow.run(node, {source: image})
    made = (made[0] if isinstance(made, tuple) else made).double()
    axes = moved(np.arange(len(sizes)).reshape([-1 if axis == dim else 1 for axis in range(len(sizes))]))
    place = next((axis for axis, size in enumerate(axes.shape) if size > 1), 0)
    found = made.movedim(place, 0).reshape(len(numbers), -1).numpy()
    where = np.searchsorted(numbers, x.const[~x.live])
    const[~x.live] = found[where, 0]
    lost[~x.live] = np.any(~np.isclose(found, found[:, :1], rtol=1e-12, atol=0), axis=1)[where]
    flow.refuse(node, x.ids[lost], "makes different numbers of a masked channel that is not 0")
    return Channels(x.ids, x.live | lost, np.where(lost, 0.0, const)).map(moved)
