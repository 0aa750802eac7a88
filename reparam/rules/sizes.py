"""Numbers of channels among the arguments of operators, when channels are gone."""

import itertools
from typing import Any

import numpy as np
from torch import fx

from reparam.atoms import Flags
from reparam.flow import Flow
from reparam.graph import args_of, aten, shape, with_defaults


def changed_arguments(flow: Flow, node: fx.Node) -> tuple[Any, ...] | None:
    """What the operator of a node is called with then; None where that is as before."""
    args = args_of(node)
    change = _CHANGES.get(node.target)
    if change is None or (node.target not in _LAYERS and not _knows(flow, node)):
        return None
    changed = change(flow, node)
    return None if changed == args else changed


def _knows(flow: Flow, node: fx.Node) -> bool:
    return flow.of(node) is not None or flow.of(args_of(node)[0]) is not None


def _replaced(node: fx.Node, **new: Any) -> tuple[Any, ...]:
    """The arguments of a node with others at the places `at0`, `at1`..."""
    args = list(args_of(node))
    for place, value in new.items():
        args[int(place.removeprefix("at"))] = value
    return tuple(args)


def _kept(flow: Flow, node: fx.Node, dim: int) -> Flags | None:
    """Which entries of what it reads stay, where channels are in that dimension."""
    source: Any = args_of(node)[0]
    x = flow.of(source)
    dim %= len(shape(source))
    return None if x is None or x.ids.shape[dim] == 1 else flow.kept(x, dim)


def _view(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    before = list(shape(node))
    after = [flow.size(node, dim) for dim in range(len(before))]
    return args_of(node) if after == before else _replaced(node, at1=after)


def _expand(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    sizes: Any = args_of(node)[1]
    after = [flow.size(node, dim) if size != -1 and flow.size(node, dim) != shape(node)[dim] else size for dim, size in enumerate(sizes)]
    return args_of(node) if after == list(sizes) else _replaced(node, at1=after)


def _split(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    sizes: Any = args_of(node)[1]
    kept = _kept(flow, node, int(args_of(node)[2]) if len(args_of(node)) > 2 else 0)
    if kept is None:
        return args_of(node)
    ends = np.cumsum([0, *sizes])
    left = [int(kept[a:b].sum()) for a, b in itertools.pairwise(ends)]
    return args_of(node) if left == list(sizes) else _replaced(node, at1=left)


def _slice(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    _, dim, start, stop, step = with_defaults(args_of(node), (None, 0, None, None, 1))
    kept = _kept(flow, node, int(dim))
    if kept is None or kept.all() or step != 1:
        return args_of(node)
    low, high, _ = slice(start, stop).indices(len(kept))
    return (args_of(node)[0], dim, int(kept[:low].sum()), int(kept[:high].sum()))


def _select(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    _, dim, index = args_of(node)
    kept = _kept(flow, node, int(dim))
    return args_of(node) if kept is None else _replaced(node, at2=int(kept[: int(index) % len(kept)].sum()))


def _pad(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    widths: Any = list(args_of(node)[1])
    x, before = flow.of(node), flow.of(args_of(node)[0])
    for place in range(0, len(widths), 2):
        dim = len(shape(node)) - 1 - place // 2
        if x is not None and before is not None and x.ids.shape[dim] > 1 and any(widths[place : place + 2]):
            kept, low, high = flow.kept(x, dim), *widths[place : place + 2]
            widths[place : place + 2] = [int(kept[:low].sum()), int(kept[len(kept) - high :].sum())]
    return args_of(node) if widths == args_of(node)[1] else _replaced(node, at1=widths)


def _convolution(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    layer = flow.layers.get(args_of(node)[1])
    held = layer is None or layer.groups == 1 or _held(flow, node, "groups")
    return args_of(node) if layer is None or held else _replaced(node, at8=flow.groups(layer))


def _group_norm(flow: Flow, node: fx.Node) -> tuple[Any, ...]:
    groups = args_of(node)[1]
    return args_of(node) if _held(flow, node, "num_groups") else _replaced(node, at1=groups * flow.size(node, 1) // shape(node)[1])


def _held(flow: Flow, node: fx.Node, name: str) -> bool:
    """Whether a module holds a number, and is cut itself."""
    return isinstance(getattr(flow.network.model.get_submodule(flow.network.calls[node][-1].path), name, None), int)


_LAYERS = (aten.convolution.default,)
_CHANGES = {
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.expand.default: _expand,
    aten.split_with_sizes.default: _split,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
    aten.convolution.default: _convolution,
    aten.group_norm.default: _group_norm,
}
