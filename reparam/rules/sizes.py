"""Update channel counts in the arguments of operators after channels are removed."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import fx
from torch.fx.node import Target

from reparam.atoms import Flags
from reparam.flow import ChannelFlow
from reparam.graph import args_of, aten, shape_of, with_defaults
from reparam.structure import Arguments


def changed_arguments(flow: ChannelFlow, node: fx.Node) -> Arguments | None:
    """Return the new arguments of a node's operator; None if they do not change."""
    place, change = _CHANGES.get(node.target, (0, None))
    layer = node.target is aten.convolution.default
    if change is None or not (layer or any(flow.of(n) is not None for n in (node, args_of(node)[0]))):
        return None
    args = list(args_of(node))
    new = change(flow, node)
    if new is None or new == args[place : place + len(new)]:
        return None
    return (*args[:place], *new, *args[place + len(new) :])


def _kept(flow: ChannelFlow, node: fx.Node, dim: int, *, of: fx.Node | None = None) -> Flags | None:
    """Return which entries of a node's input are kept along a dimension; None if it holds no channels."""
    source = args_of(node)[0] if of is None else of
    x = flow.of(source)
    dim %= len(shape_of(source))
    return None if x is None or x.ids.shape[dim] == 1 else flow.kept(x, dim)


def _view(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    before = list(shape_of(node))
    after = [flow.size(node, dim) for dim in range(len(before))]
    return None if after == before else [after]


def _expand(flow: ChannelFlow, node: fx.Node) -> list[Any]:
    sizes, after = args_of(node)[1], [flow.size(node, dim) for dim in range(len(shape_of(node)))]
    return [[size if left == full else left for size, left, full in zip(sizes, after, shape_of(node), strict=True)]]


def _split(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    _, sizes, dim = with_defaults(args_of(node), (None, (), 0))
    kept = _kept(flow, node, dim)
    return None if kept is None else [[int(kept[a:b].sum()) for a, b in itertools.pairwise(np.cumsum([0, *sizes]))]]


def _slice(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    _, dim, start, stop, step = with_defaults(args_of(node), (None, 0, None, None, 1))
    kept = _kept(flow, node, dim)
    if kept is None or kept.all() or step != 1:
        return None
    low, high, _ = slice(start, stop).indices(len(kept))
    return [dim, int(kept[:low].sum()), int(kept[:high].sum())]


def _select(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    _, dim, index = args_of(node)
    kept = _kept(flow, node, dim)
    return None if kept is None else [int(kept[: index % len(kept)].sum())]


def _pad(flow: ChannelFlow, node: fx.Node) -> list[Any]:
    widths = list(args_of(node)[1])
    for place in range(0, len(widths), 2):
        kept = _kept(flow, node, -1 - place // 2, of=node)
        low, high = widths[place : place + 2]
        if kept is not None and (low or high):
            widths[place : place + 2] = [int(kept[:low].sum()), int(kept[len(kept) - high :].sum())]
    return [widths]


def _convolution(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    layer = flow.layers.get(args_of(node)[1])
    held = layer is None or layer.groups == 1 or _held(flow, node, "groups")
    return None if layer is None or held else [flow.groups(layer)]


def _group_norm(flow: ChannelFlow, node: fx.Node) -> list[Any] | None:
    groups = args_of(node)[1]
    return None if _held(flow, node, "num_groups") else [groups * flow.size(node, 1) // shape_of(node)[1]]


def _held(flow: ChannelFlow, node: fx.Node, name: str) -> bool:
    """Return whether a module stores a count, so that the module itself is cut."""
    return isinstance(getattr(flow.network.model.get_submodule(flow.network.calls[node][-1].path), name, None), int)


_CHANGES: dict[Target, tuple[int, Callable[[ChannelFlow, fx.Node], list[Any] | None]]] = {
    aten.view.default: (1, _view),
    aten.reshape.default: (1, _view),
    aten._unsafe_view.default: (1, _view),
    aten.expand.default: (1, _expand),
    aten.split_with_sizes.default: (1, _split),
    aten.slice.Tensor: (1, _slice),
    aten.select.int: (2, _select),
    aten.pad.default: (1, _pad),
    aten.constant_pad_nd.default: (1, _pad),
    aten.convolution.default: (8, _convolution),
    aten.group_norm.default: (1, _group_norm),
}
"""For each operator with channel counts among its arguments: the position of the first, and a function that returns the
new ones."""
