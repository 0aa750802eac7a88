"""Norms: with the statistics of training, of the batch, of groups of channels, of all."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import fx

from reparam.flow import GENERIC, Channels, Flow, Numbers
from reparam.graph import args_of, shape


def batch_norm(flow: Flow, node: fx.Node) -> tuple[Channels | None, None, None]:
    """A scale and a shift for each channel."""
    _, scale, shift, mean, variance, _, eps = args_of(node)
    found = _channels(flow, node, (scale, shift, mean, variance))
    if found is None:
        return None, None, None
    x, const = found
    count = len(const)
    if flow.generic:
        normed = np.full(count, GENERIC)
    else:
        gain = flow.numbers(scale, count, 1.0) / np.sqrt(flow.numbers(variance, count, 1.0) + eps)
        normed = (const - flow.numbers(mean, count, 0.0)) * gain + flow.numbers(shift, count, 0.0)
    return _shifted(x, normed), None, None


def batch_norm_of_the_batch(flow: Flow, node: fx.Node) -> tuple[Channels | None, None, None]:
    """Of the batch a constant is its own mean."""
    found = _channels(flow, node, args_of(node)[1:3])
    return (None if found is None else _shifted(found[0], _shift(flow, args_of(node)[2], len(found[1])))), None, None


def instance_norm(flow: Flow, node: fx.Node) -> Channels | None:
    """Statistics of each channel of each image, or those of training."""
    _, scale, shift, mean, variance, of_the_image, _, eps, *_ = args_of(node)
    found = _channels(flow, node, (scale, shift, mean, variance))
    if found is None:
        return None
    x, const = found
    count = len(const)
    if of_the_image:
        return _shifted(x, _shift(flow, shift, count))
    if flow.generic:
        return _shifted(x, np.full(count, GENERIC))
    gain = flow.numbers(scale, count, 1.0) / np.sqrt(flow.numbers(variance, count, 1.0) + eps)
    return _shifted(x, (const - flow.numbers(mean, count, 0.0)) * gain + flow.numbers(shift, count, 0.0))


def group_norm(flow: Flow, node: fx.Node) -> Channels | None:
    """Channels with common statistics go together."""
    _, groups, scale, shift, eps = (*args_of(node), None, None, 1e-5)[:5]
    found = _channels(flow, node, (scale, shift))
    if found is None:
        return None
    x, const = found
    rows = x.map(lambda array: array.reshape(groups, -1))
    if rows.ids.shape[1] > 1:
        flow.unite(rows.ids, rows.ids[:, :1])
    dead = np.repeat(~rows.live.any(1), rows.ids.shape[1])
    if groups == 1:
        return _all_tied(flow, node, x)
    normed = (rows.const - rows.const.mean(1, keepdims=True)) / np.sqrt(rows.const.var(1, keepdims=True) + eps)
    numbers = normed.ravel() * flow.numbers(scale, len(const), 1.0) + flow.numbers(shift, len(const), 0.0)
    if flow.generic:
        numbers = np.full(len(const), GENERIC if shift is not None else 0.0)
    shaped = dead.reshape(x.ids.shape)
    return Channels(x.ids, ~shaped, np.where(shaped, numbers.reshape(x.ids.shape), 0.0))


def layer_norm(flow: Flow, node: fx.Node) -> Channels | None:
    """All that is normalised goes together: all of it stays."""
    source, normalized, *_ = args_of(node)
    x = flow.of(source)
    if x is None:
        return None
    if min(x.dims, default=0) < len(shape(node)) - len(normalized):
        return flow.opaque(node, " over another dimension than channels")
    return _all_tied(flow, node, x)


def _channels(flow: Flow, node: fx.Node, numbers: Any) -> tuple[Channels, Numbers] | None:
    """What a norm over dimension 1 reads, whose parameters go with its channels; and the numbers of dead ones."""
    x: Any = flow.of(args_of(node)[0])
    if x is None or set(x.dims) - {1}:
        if x is not None:
            flow.opaque(node, " where channels are not dimension 1")
        return None
    ids = x.ids.ravel()
    for value in numbers:
        flow.cut(value, ids)
    flow.sized.append((node, ids, ids))
    flow.alike.add(node)
    return x, x.const.ravel()


def _shift(flow: Flow, shift: Any, count: int) -> Numbers:
    return np.full(count, GENERIC if shift is not None else 0.0) if flow.generic else flow.numbers(shift, count, 0.0)


def _shifted(x: Channels, numbers: Numbers) -> Channels:
    return replace(x, const=np.where(x.live, 0.0, numbers.reshape(x.ids.shape)))


def _all_tied(flow: Flow, node: fx.Node, x: Channels) -> Channels:
    why = "takes its statistics over all channels"
    flow.pin(x, f"{flow.describe(node)} {why}")
    if not x.live.any():
        flow.refuse(node, x.ids.ravel(), f"{why}, and all of them are masked")
    return replace(x, live=np.ones_like(x.live), const=np.zeros_like(x.const))
