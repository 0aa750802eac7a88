"""Operators that move channels: views, transpositions, concatenations, splits, padding, shuffles."""

import math

import numpy as np
import torch
from torch import Tensor, fx

from reparam.atoms import Ids
from reparam.flow import ChannelFlow, Channels, Value
from reparam.graph import args_of, aten, shape_of, with_defaults
from reparam.rules.pixels import probed

_VIEWS = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})


def getitem(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Return one of several results."""
    source, index = args_of(node)
    value = flow.values.get(source)
    if not isinstance(value, tuple) or not isinstance(index, int):
        return None
    if source in flow.alike:
        flow.alike.add(node)
    return value[index]


def moved(flow: ChannelFlow, node: fx.Node) -> Value:
    """Run a view, transposition, copy or split on the indices of the entries.

    Channels in several dimensions are kept as a box.
    """
    source, *rest = args_of(node)
    x = flow.of(source)
    if x is None:
        return None
    if any(n is not source and not flow.network.is_constant(n) for n in node.all_input_nodes):
        return flow.opaque(node, " at computed places")
    places = torch.arange(x.ids.size).view(x.ids.shape).expand(shape_of(source))
    output = places.reshape(rest[0]) if node.target in _VIEWS else flow.run(node, {source: places})
    if not isinstance(output, Tensor):
        return tuple(_entries_at(x, part) for part in output)
    out = _entries_at(x, output)
    if node.target in _VIEWS and len(out.dims) > 1 and _channel_sizes(out) != _channel_sizes(x):
        flow.boxes.append((node, out.ids))
    return out


def _entries_at(x: Channels, places: Tensor) -> Channels:
    """Return the entries at some places, reduced to size 1 along dimensions in which they are the same."""
    for dim, size in enumerate(places.shape):
        first = places.narrow(dim, 0, 1) if size > 1 else places
        if places.stride(dim) == 0 or bool((places == first).all()):
            places = first
    at: Ids = places.numpy()
    return x.map(lambda array: array.ravel()[at])


def _channel_sizes(x: Channels) -> list[int]:
    return [x.ids.shape[dim] for dim in x.dims]


def cat(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Concatenate channels; tie them if the concatenation is along another dimension."""
    listed: list[fx.Node] = args_of(node)[0]
    dim = with_defaults(args_of(node), (None, 0))[1] % len(shape_of(node))
    operands = [flow.of(n) for n in listed]
    computed = [x for n, x in zip(listed, operands, strict=True) if x is not None and not flow.network.is_constant(n)]
    if not computed:
        return None
    dims = {other for x in computed for other in x.dims} - {dim}
    wide = [max(x.ids.shape[axis] for x in computed) for axis in range(len(shape_of(node)))]
    if any(
        x.ids.shape[other] not in (1, wide[other]) or (x.ids.shape[other] == 1 and x.dims)
        for x in computed
        for other in dims
    ):
        return flow.opaque(node, " of values whose channels are different dimensions")
    along = any(dim in x.dims for x in computed) or not dims
    parts = [_side(flow, node, n, x, dim if along else None, wide) for n, x in zip(listed, operands, strict=True)]
    if along:
        return Channels(*(np.concatenate([getattr(x, name) for x in parts], dim) for name in ("ids", "live", "const")))
    stacked = Channels(*(np.stack([getattr(x, name) for x in parts]) for name in ("ids", "live", "const")))
    return flow.joined(node, stacked, 0).map(lambda array: array[0])


def _side(
    flow: ChannelFlow, node: fx.Node, n: fx.Node, x: Channels | None, dim: int | None, wide: list[int]
) -> Channels:
    """Return an operand of a concatenation, expanded to one entry per channel."""
    sizes = [shape_of(n)[axis] if axis == dim else size for axis, size in enumerate(wide)]
    if x is not None and flow.network.is_constant(n):
        for axis in [axis for axis in x.dims if sizes[axis] == 1]:
            flow.unite(x.ids, x.ids.take([0], axis))
            x = Channels(
                x.ids.take([0], axis), np.ones_like(x.live.take([0], axis)), np.zeros_like(x.const.take([0], axis))
            )
        return x.map(lambda array: np.broadcast_to(array, sizes))
    fits = x is not None and all(own in (size, 1) for own, size in zip(x.ids.shape, sizes, strict=True))
    if x is not None and fits and (dim is None or x.ids.shape[dim] == sizes[dim]):
        return x.map(lambda array: np.broadcast_to(array, sizes))
    fresh = flow.fresh(math.prod(sizes)).map(lambda array: array.reshape(sizes))
    why = f"they are tied to {flow.value_name(n)}, which has no channels to remove"
    flow.pin(x, f"{flow.describe(node)} concatenates them with other values")
    flow.pin(fresh, why)
    return fresh


def pad(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Pad an image, or pad channels with a constant, which adds dead channels."""
    source, widths, mode, number = with_defaults(args_of(node), (None, (), "constant", None))
    if not isinstance(mode, str):  # constant_pad_nd
        mode, number = "constant", mode
    x = flow.of(source)
    if x is None:
        return None
    rank, number = len(shape_of(node)), float(number or 0.0)
    sides = {rank - 1 - index // 2: (widths[index], widths[index + 1]) for index in range(0, len(widths), 2)}
    around = {dim: sides[dim] for dim in x.dims if any(sides.get(dim, ()))}
    if not around:
        return probed(flow, node, x)
    ((dim, (low, high)), *more) = around.items()
    if mode != "constant" or more or min(low, high) < 0 or any(any(sides[other]) for other in sides if other != dim):
        return flow.opaque(node, " of channels")

    def padding(count: int) -> Channels:
        sizes = [count if axis == dim else size for axis, size in enumerate(x.ids.shape)]
        ids = flow.atoms.new(math.prod(sizes)).reshape(sizes)
        return Channels(ids, np.zeros(sizes, bool), np.full(sizes, number))

    parts = (padding(low), x, padding(high))
    return Channels(
        *(np.concatenate([getattr(part, name) for part in parts], dim) for name in ("ids", "live", "const"))
    )


def pixel_shuffle(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Tie the channels that form one output channel."""
    source, side = args_of(node)
    x = flow.of(source)
    if x is None:
        return None
    rank = len(shape_of(node))
    if set(x.dims) - {rank - 3}:
        return flow.opaque(node, " where channels are not dimension 1")
    rows = flow.joined(node, x.map(lambda array: array.reshape(-1, side**2)), 1)
    return rows.map(lambda array: array.reshape([-1 if dim == rank - 3 else 1 for dim in range(rank)]))


def channel_shuffle(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Interleave the channels of several groups; tie those at the same position of each group."""
    source, groups = args_of(node)
    x = flow.of(source)
    if x is None:
        return None
    if set(x.dims) - {1}:
        return flow.opaque(node, " where channels are not dimension 1")
    rows = x.ids.reshape(groups, -1)
    flow.unite(rows, rows[:1])
    return x.map(lambda array: array.reshape(groups, -1).T.reshape(array.shape))
