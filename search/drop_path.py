"""Stochastic depth (Huang et al. 2016): in training, residual branches are left out at random, for each image by a draw of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.blocks import Block
from reparam.graph import aten, read
from reparam.regions import returned
from search.errors import SearchError


def residual_branches(network: nn.Module, example_input: Tensor) -> list[str]:
    """Names of the modules that end the residual branches of a network, in the order in which they run.

    A branch is the longer one of the two paths to an addition, counted in convolutions and linear layers; the other one is the shortcut.
    Branches that do not end in a module of their own, or that run twice, are not among them, nor are those inside of trained-form blocks.

    Args:
        network: in any mode.
        example_input: a batch of the shape that it is for.

    Raises:
        ReparamError: the network cannot be read.
    """
    found = read(network, (example_input,))
    blocks = {name for name, module in network.named_modules() if isinstance(module, Block)}
    ends = {returned(found, call): call.path for calls in found.by_path.values() for call in calls[:1] if len(calls) == 1}
    depth: dict[fx.Node, int] = {}
    names: list[str] = []
    for node in found.graph.nodes:
        inputs = found.reads(node)
        weighs = node.target in (aten.convolution.default, aten.linear.default)
        depth[node] = max((depth[before] for before in inputs), default=0) + weighs
        if node.target is aten.add.Tensor and len(inputs) == 2 and blocks.isdisjoint(call.path for call in found.calls[node]):
            short, long = sorted(inputs, key=depth.__getitem__)
            if depth[short] < depth[long] and len(long.users) == 1 and long in ends:
                names.append(ends[long])
    return names


@contextlib.contextmanager
def drop_path(
    network: nn.Module, example_input: Tensor, rate: float, generator: torch.Generator, *, rank: int = 0, ranks: int = 1
) -> Iterator[None]:
    """Drop residual branches of a network for a while, and scale those that stay by 1 / (1 - p): the mean is as without.

    Branch k of n is dropped with p = rate * k / n (Huang et al. 2016, Eq. 4). The network is not changed: it is read, saved and
    evaluated afterwards as ever.

    Args:
        network: in training mode while it is used.
        example_input: a batch of the shape that it is for.
        rate: probability of the last branch, at least 0 and below 1; 0 draws nothing.
        generator: the only source of randomness, on the CPU.
        rank: which of the equal shares of a batch this process has.
        ranks: number of shares; all are drawn, so that a batch is treated alike however many processes share it.

    Raises:
        SearchError: the network has no residual branches.
        ReparamError: the network cannot be read.
    """
    branches = residual_branches(network, example_input) if rate else []
    if rate and not branches:
        raise SearchError(f"--drop-path {rate:g}: the network has no residual branches that can be left out")
    handles = [
        network.get_submodule(name).register_forward_hook(_Dropped(network, rate * index / len(branches), generator, rank, ranks))
        for index, name in enumerate(branches, 1)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Dropped:
    """Hook that scales the output of a branch by 0 or 1 / (1 - p) for each image."""

    def __init__(self, network: nn.Module, p: float, generator: torch.Generator, rank: int, ranks: int) -> None:
        self._network, self._p, self._generator, self._rank, self._ranks = network, p, generator, rank, ranks

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not self._network.training:
            return output
        images = len(output)
        drawn = torch.rand(images * self._ranks, generator=self._generator)[self._rank * images :][:images]
        scale = (drawn >= self._p).to(output.dtype) / (1 - self._p)
        return output * scale.to(output.device).view(-1, *[1] * (output.ndim - 1))
