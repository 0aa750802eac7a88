"""What moves channels: views, transpositions, concatenations, parts, borders, shuffles."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from reparam.flow import JOINS, Channels, Flow, Value
from reparam.graph import args_of, shape, with_defaults
from reparam.rules.pixels import probed


def part(flow: Flow, node: fx.Node) -> Channels | None:
    """One of several results."""
    source, index = args_of(node)
    value = flow.values.get(source)
    if not isinstance(value, tuple) or not isinstance(index, int):
        return None
    if source in flow.alike:
        flow.alike.add(node)
    return value[index]


def view(flow: Flow, node: fx.Node) -> Channels | None:
    """Dimensions that are split or merged; channels that fill several dimensions go as a box."""
    source: Any = args_of(node)[0]
    x = flow.of(source)
    if x is None:
        return None
    old, new = shape(source), shape(node)
    wide, inner, mixed = list(x.ids.shape), [], False
    for before, after in _blocks(old, new):
        varied = any(x.ids.shape[dim] > 1 for dim in before)
        for dim in before:
            wide[dim] = old[dim] if varied else 1
        inner += [new[dim] if varied else 1 for dim in after]
        mixed = mixed or (varied and len(after) > 1)
    out = x.map(lambda array: np.broadcast_to(array, wide).reshape(inner))
    if mixed:
        for dim in out.dims:
            first = out.map(lambda array, dim=dim: array.take([0], dim))
            if all(bool((a == b).all()) for a, b in ((out.ids, first.ids), (out.live, first.live), (out.const, first.const))):
                out = first
        if len(out.dims) > 1:
            flow.boxes.append((node, out.ids))
    return out


def _blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Smallest runs of dimensions that hold the same entries before and after."""
    i = j = 0
    while i < len(old) or j < len(new):
        start = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while math.prod(old[start[0] : i]) != math.prod(new[start[1] : j]):
            if math.prod(old[start[0] : i]) < math.prod(new[start[1] : j]):
                i += 1
            else:
                j += 1
        yield range(start[0], i), range(start[1], j)


def permute(flow: Flow, node: fx.Node) -> Channels | None:
    """Dimensions in another order."""
    x, order = flow.of(args_of(node)[0]), args_of(node)[1]
    return None if x is None else x.map(lambda array: array.transpose(order))


def expand(flow: Flow, node: fx.Node) -> Channels | None:
    """Dimensions of size 1 are repeated; new ones in front."""
    x, rank = flow.of(args_of(node)[0]), len(shape(node))
    return None if x is None else x.map(lambda array: array.reshape((1,) * (rank - array.ndim) + array.shape))


def repeat(flow: Flow, node: fx.Node) -> Channels | None:
    """Copies, one behind the other."""
    x, times = flow.of(args_of(node)[0]), args_of(node)[1]
    if x is None or not isinstance(times, list | tuple):
        return None
    x = x.map(lambda array: array.reshape((1,) * (len(times) - array.ndim) + array.shape))
    own = [int(times[dim]) if size > 1 else 1 for dim, size in enumerate(x.ids.shape)]
    return x.map(lambda array: np.tile(array, own))


def cat(flow: Flow, node: fx.Node) -> Channels | None:
    """Side by side; along another dimension than channels they are tied."""
    listed: Any = args_of(node)[0]
    dim = (int(args_of(node)[1]) if len(args_of(node)) > 1 else 0) % len(shape(node))
    found = [flow.of(n) for n in listed]
    known = [x for n, x in zip(listed, found, strict=True) if x is not None and not flow.network.is_constant(n)]
    if not known:
        return None
    dims = {other for x in known for other in x.dims} - {dim}
    wide = [max(x.ids.shape[axis] for x in known) for axis in range(len(shape(node)))]
    if any(x.ids.shape[other] not in (1, wide[other]) or (x.ids.shape[other] == 1 and x.dims) for x in known for other in dims):
        return flow.opaque(node, " of values whose channels are different dimensions")
    along = any(dim in x.dims for x in known) or not dims
    parts = [_side(flow, node, n, x, dim if along else None, wide) for n, x in zip(listed, found, strict=True)]
    if along:
        return Channels(*(np.concatenate([getattr(x, name) for x in parts], dim) for name in ("ids", "live", "const")))
    return _united(flow, node, parts)


def _side(flow: Flow, node: fx.Node, n: fx.Node, x: Channels | None, dim: int | None, wide: list[int]) -> Channels:
    """An operand with an entry for each of its channels."""
    sizes = [shape(n)[axis] if axis == dim else size for axis, size in enumerate(wide)]
    if x is not None and flow.network.is_constant(n):
        for axis in [axis for axis in x.dims if sizes[axis] == 1]:
            flow.unite(x.ids, x.ids.take([0], axis))
            x = Channels(x.ids.take([0], axis), np.ones_like(x.live.take([0], axis)), np.zeros_like(x.const.take([0], axis)))
        return x.map(lambda array: np.broadcast_to(array, sizes))
    fits = x is not None and all(own in (size, 1) for own, size in zip(x.ids.shape, sizes, strict=True))
    if x is not None and fits and (dim is None or x.ids.shape[dim] == sizes[dim]):
        return x.map(lambda array: np.broadcast_to(array, sizes))
    fresh = flow.fresh(math.prod(sizes)).map(lambda array: array.reshape(sizes))
    why = f"they are tied to {flow.value_name(n)}, which has no channels to remove"
    flow.pin(x, f"{flow.describe(node)} has them beside others")
    flow.pin(fresh, why)
    return fresh


def _united(flow: Flow, node: fx.Node, parts: list[Channels]) -> Channels:
    first = parts[0]
    for other in parts[1:]:
        flow.unite(first.ids, other.ids)
    live = np.logical_or.reduce([x.live for x in parts])
    mixed = ~live & np.logical_or.reduce([x.const != first.const for x in parts])
    flow.refuse(node, first.ids[mixed], JOINS)
    live = live | mixed
    return Channels(first.ids, live, np.where(live, 0.0, first.const))


def slice_(flow: Flow, node: fx.Node) -> Channels | None:
    """Entries between two places."""
    x, (dim, start, stop, step) = flow.of(args_of(node)[0]), with_defaults(args_of(node)[1:], (0, None, None, 1))
    if x is None:
        return None
    dim %= x.ids.ndim
    return x if x.ids.shape[dim] == 1 else x.map(lambda array: array[(slice(None),) * dim + (slice(start, stop, step),)])


def select(flow: Flow, node: fx.Node) -> Channels | None:
    """One entry."""
    x, dim, index = flow.of(args_of(node)[0]), args_of(node)[1], args_of(node)[2]
    if x is None or not isinstance(dim, int) or not isinstance(index, int):
        return None
    dim %= x.ids.ndim
    return x.map(lambda array: array.take(index if array.shape[dim] > 1 else 0, dim))


def split(flow: Flow, node: fx.Node) -> Value:
    """Parts, one behind the other."""
    x, sizes, dim = flow.of(args_of(node)[0]), args_of(node)[1], int(args_of(node)[2]) if len(args_of(node)) > 2 else 0
    if x is None or not isinstance(sizes, list | tuple):
        return None
    dim %= x.ids.ndim
    if x.ids.shape[dim] == 1:
        return tuple(x for _ in sizes)
    ends = np.cumsum([0, *sizes]).tolist()
    return tuple(x.map(lambda array, a=a, b=b: array[(slice(None),) * dim + (slice(a, b),)]) for a, b in itertools.pairwise(ends))


def index_select(flow: Flow, node: fx.Node) -> Channels | None:
    """Entries at known places."""
    _, dim, index = args_of(node)
    return _picked(flow, node, {int(dim): index})


def index(flow: Flow, node: fx.Node) -> Channels | None:
    """Entries at known places."""
    listed: Any = args_of(node)[1]
    return _picked(flow, node, {dim: chosen for dim, chosen in enumerate(listed) if chosen is not None})


def _picked(flow: Flow, node: fx.Node, chosen: dict[int, Any]) -> Channels | None:
    x = flow.of(args_of(node)[0])
    if x is None:
        return None
    ((dim, places), *more) = chosen.items()
    dim %= x.ids.ndim
    places = flow.network.constant(places) if flow.network.is_constant(places) else None
    if more or places is None or places.ndim != 1 or places.dtype.is_floating_point:
        return flow.opaque(node, " at several places" if more else " at computed places")
    return x if x.ids.shape[dim] == 1 else x.map(lambda array: array.take(places.cpu().numpy(), dim))


def flip(flow: Flow, node: fx.Node) -> Channels | None:
    """Backwards."""
    x, dims = flow.of(args_of(node)[0]), args_of(node)[1]
    return None if x is None else x.map(lambda array: np.flip(array, dims))


def pad(flow: Flow, node: fx.Node) -> Channels | None:
    """Pixels around an image; around channels only a number, in new ones."""
    source, widths, mode, number = with_defaults(args_of(node), (None, (), "constant", None))
    if not isinstance(mode, str):  # of constant_pad_nd
        mode, number = "constant", mode
    x = flow.of(source)
    if x is None:
        return None
    rank, number = len(shape(node)), float(number or 0.0)
    sides = {rank - 1 - index // 2: (widths[index], widths[index + 1]) for index in range(0, len(widths), 2)}
    around = {dim: sides[dim] for dim in x.dims if any(sides.get(dim, ()))}
    if not around:
        return probed(flow, node, x)
    ((dim, (low, high)), *more) = around.items()
    if mode != "constant" or more or min(low, high) < 0 or any(any(sides[other]) for other in sides if other != dim):
        return flow.opaque(node, " of channels")
    new = [(*x.ids.shape[:dim], count, *x.ids.shape[dim + 1 :]) for count in (low, high)]
    before, after = (flow.atoms.new(math.prod(sizes)).reshape(sizes) for sizes in new)
    return Channels(
        np.concatenate([before, x.ids, after], dim),
        np.concatenate([np.zeros(new[0], bool), x.live, np.zeros(new[1], bool)], dim),
        np.concatenate([np.full(new[0], number), x.const, np.full(new[1], number)], dim),
    )


def _rows(flow: Flow, node: fx.Node) -> Channels | None:
    """What a shuffle of an image reads, in one dimension."""
    x = flow.of(args_of(node)[0])
    if x is not None and set(x.dims) - {x.ids.ndim - 3}:
        return flow.opaque(node, " where channels are not dimension 1")
    return None if x is None else x.map(np.ravel)


def _shaped(x: Channels, node: fx.Node) -> Channels:
    return x.map(lambda array: array.reshape([-1 if dim == len(shape(node)) - 3 else 1 for dim in range(len(shape(node)))]))


def pixel_shuffle(flow: Flow, node: fx.Node) -> Channels | None:
    """One channel of several."""
    x = _rows(flow, node)
    if x is None:
        return None
    rows = x.map(lambda array: array.reshape(-1, int(args_of(node)[1]) ** 2))
    flow.unite(rows.ids, rows.ids[:, :1])
    mixed = ~rows.live.any(1) & (rows.const != rows.const[:, :1]).any(1)
    flow.refuse(node, rows.ids[mixed].ravel(), JOINS)
    alive = rows.live.any(1) | mixed
    return _shaped(Channels(rows.ids[:, 0], alive, np.where(alive, 0.0, rows.const[:, 0])), node)


def pixel_unshuffle(flow: Flow, node: fx.Node) -> Channels | None:
    """Several channels of one."""
    x = _rows(flow, node)
    return None if x is None else _shaped(x.map(lambda array: array.repeat(int(args_of(node)[1]) ** 2)), node)


def channel_shuffle(flow: Flow, node: fx.Node) -> Channels | None:
    """The channels of several groups in turns."""
    x = flow.of(args_of(node)[0])
    if x is None:
        return None
    if set(x.dims) - {1}:
        return flow.opaque(node, " where channels are not dimension 1")
    order = np.arange(x.ids.size).reshape(int(args_of(node)[1]), -1).T
    ids = x.ids.ravel()[order]
    flow.unite(ids, ids[:, :1])
    return x.map(lambda array: array.ravel()[order.ravel()].reshape(array.shape))
