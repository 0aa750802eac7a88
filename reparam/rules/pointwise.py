"""Elementwise operators: activations, sums, products, comparisons, conversions."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor, fx

from reparam.atoms import Flags
from reparam.flow import ChannelFlow, Channels, Numbers
from reparam.graph import args_of, aten, shape_of
from reparam.typed_torch import from_numpy

Operands = Mapping[fx.Node, Channels]

_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
_QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)


def pointwise(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Tie the channels of the operands elementwise."""
    constant = flow.network.is_constant(node)
    if not constant and not flow.inputs_of(node):
        return None
    operands = {n: _ranked(x, len(shape_of(node))) for n in node.all_input_nodes if (x := flow.of(n)) is not None}
    dims = sorted({dim for n, x in operands.items() for dim in x.dims if constant or not flow.network.is_constant(n)})
    if not operands:
        return None
    tied: dict[fx.Node, Channels] = {}
    for n in node.all_input_nodes:
        sizes = (1,) * (len(shape_of(node)) - len(shape_of(n))) + shape_of(n)
        operand = _operand(flow, node, n, operands.get(n), sizes, dims)
        if operand is None:
            flow.opaque(node, " of values whose channels are different dimensions")
            return None
        tied[n] = operand
    flow.alike.add(node)
    return _joined(flow, node, tied)


def _ranked(x: Channels, rank: int) -> Channels:
    return x.map(lambda array: array.reshape((1,) * (rank - array.ndim) + array.shape))


def _operand(
    flow: ChannelFlow, node: fx.Node, n: fx.Node, x: Channels | None, sizes: tuple[int, ...], dims: list[int]
) -> Channels | None:
    """Return an operand's channels in the given dimensions; None if it has channels in others."""
    constant = flow.network.is_constant(n)
    shared = all(sizes[dim] == 1 for dim in dims)
    if x is None or (constant and shared and dims):
        if not shared:
            for other in flow.inputs_of(node):
                flow.pin(other, f"{flow.value_name(n)} has a number for each of them")
        return _number(x if constant else None, flow.network.constant(n) if constant else None, len(sizes))
    masks = constant and flow.network.constant(n).dtype == torch.bool
    # a constant cannot be cut along only one of several dimensions
    if constant and not masks and any(sizes[dim] == 1 for dim in dims):
        for other in flow.inputs_of(node):
            _tie(flow, other, [dim for dim in dims if sizes[dim] != 1], len(sizes))
        return _number(None, None, len(sizes))
    if constant:
        return _folded(flow, x, dims)
    if set(x.dims) == set(dims):
        return x
    if not x.dims and shared:
        flow.pin(x, f"{flow.describe(node)} uses it for all channels")
        return replace(x, ids=np.empty([0] + [1] * (len(sizes) - 1), np.int64))
    return x if x.dims and all(sizes[dim] == 1 for dim in dims if dim not in x.dims) else None


def _number(x: Channels | None, value: Tensor | None, rank: int) -> Channels:
    """Return an operand without channels: dead if all its entries are one known constant, else live."""
    none, ones = np.empty([0] + [1] * (rank - 1), np.int64), [1] * rank
    numbers = np.empty(0)
    if x is not None:
        numbers = x.const.ravel()
    elif value is not None:
        numbers = value.double().cpu().numpy().ravel()
    known = bool(numbers.size) and bool((numbers == numbers[0]).all())
    return Channels(none, np.full(ones, not known), np.full(ones, float(numbers[0]) if known else 0.0))


def _tie(flow: ChannelFlow, x: Channels, dims: list[int], rank: int) -> None:
    ids = _ranked(x, rank).ids
    for dim in dims:
        flow.unite(ids, ids.take([0], dim))


def _folded(flow: ChannelFlow, x: Channels, dims: list[int]) -> Channels:
    """Reduce a constant to one entry per channel; live where it varies within a channel."""
    others = [dim for dim in x.dims if dim not in dims]
    if not others:
        return x
    first = x
    for dim in others:
        first = first.map(lambda array, dim=dim: array.take([0], dim))
    flow.unite(x.ids, first.ids)
    varied = (x.const != first.const).any(tuple(others), keepdims=True)
    return Channels(first.ids, varied, np.where(varied, 0.0, first.const))


def _joined(flow: ChannelFlow, node: fx.Node, operands: Operands) -> Channels | None:
    with_ids = [x.ids for x in operands.values() if x.ids.size]
    if not with_ids:
        return None
    ids = max(with_ids, key=lambda array: array.size)
    for other in with_ids:
        flow.unite(ids, other)
    live = reduce(np.logical_or, (x.live for x in operands.values()))
    live, const = (np.broadcast_to(array, ids.shape) for array in (live, _result(flow, node, operands)))
    zero = _annihilated(node, operands)
    live, const = np.logical_and(live, ~zero), np.where(zero, 0.0, const)
    return Channels(ids, live, np.where(live, 0.0, const))


def _result(flow: ChannelFlow, node: fx.Node, operands: Operands) -> Numbers:
    """Run the operator on the constants of dead channels."""
    if not any(x.ids.size and not x.live.all() for x in operands.values()):
        return np.zeros([1] * len(shape_of(node)))
    constants: dict[fx.Node, Tensor] = {}
    for n, x in operands.items():
        value, dtype = from_numpy(np.array(x.const)), n.meta["val"].dtype
        constants[n] = value if dtype.is_floating_point else value.to(dtype)
    return flow.run(node, constants).double().numpy()


def _annihilated(node: fx.Node, operands: Operands) -> Flags:
    """Return where a factor of 0 makes the result 0."""
    zeros = {n: ~x.live & (x.const == 0) for n, x in operands.items()}
    nowhere = np.zeros([1] * len(shape_of(node)), bool)
    if node.target in _PRODUCTS:
        return reduce(np.logical_or, zeros.values(), nowhere)
    if node.target in _QUOTIENTS and isinstance(args_of(node)[0], fx.Node):
        dividend, divisor = args_of(node)[:2]
        return np.logical_and(zeros[dividend], operands[divisor].live if isinstance(divisor, fx.Node) else ~nowhere)
    return nowhere


def glu(flow: ChannelFlow, node: fx.Node) -> Channels | None:
    """Multiply one half of the channels by the sigmoid of the other."""
    source, dim = (*args_of(node), -1)[:2]
    x = flow.of(source)
    if not isinstance(source, fx.Node) or not isinstance(dim, int) or x is None:
        return None
    dim %= len(shape_of(source))
    if dim not in x.dims:
        return flow.opaque(node, " over another dimension than channels")
    value = x.map(lambda array: np.split(array, 2, dim)[0])
    gate = x.map(lambda array: np.split(array, 2, dim)[1])
    flow.unite(value.ids, gate.ids)
    zero, both = ~value.live & (value.const == 0), ~value.live & ~gate.live
    return Channels(value.ids, ~(zero | both), np.where(both, value.const / (1 + np.exp(-gate.const)), 0.0))
