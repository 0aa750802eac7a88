"""Stochastic depth (Huang et al. 2016): drop residual branches at random in training, independently for each image."""

import contextlib
from collections.abc import Generator

import torch
from torch import Tensor, fx, nn

from reparam.blocks import Block
from reparam.graph import aten, read_network
from reparam.modules import named_modules
from reparam.regions import call_output
from search.errors import SearchError


def residual_branches(network: nn.Module, example_input: Tensor) -> list[str]:
    """Return the names of the modules that end the residual branches of a network, in execution order.

    Of the two paths to an addition, the branch is the one with more convolutions and linear layers; the other one is
    the shortcut. Branches that do not end in a module, run twice or lie inside training-form blocks are left out.

    Args:
        network: the network, in any mode.
        example_input: a batch of the network's input shape.

    Raises:
        ReparamError: the network cannot be read.
    """
    graph = read_network(network, (example_input,))
    blocks = {name for name, module in named_modules(network) if isinstance(module, Block)}
    ends = {
        call_output(graph, call): call.path for calls in graph.by_path.values() for call in calls[:1] if len(calls) == 1
    }
    depth: dict[fx.Node, int] = {}
    names: list[str] = []
    for node in graph.graph.nodes:
        inputs = graph.reads(node)
        is_layer = node.target in (aten.convolution.default, aten.linear.default)
        depth[node] = max((depth[before] for before in inputs), default=0) + is_layer
        if (
            node.target is aten.add.Tensor
            and len(inputs) == 2
            and blocks.isdisjoint(call.path for call in graph.calls[node])
        ):
            short, long = sorted(inputs, key=depth.__getitem__)
            if depth[short] < depth[long] and len(long.users) == 1 and long in ends:
                names.append(ends[long])
    return names


@contextlib.contextmanager
def drop_path(
    network: nn.Module, example_input: Tensor, rate: float, generator: torch.Generator, *, rank: int = 0, ranks: int = 1
) -> Generator[None, None, None]:
    """Drop residual branches of a network within the context.

    Kept ones are scaled by 1 / (1 - p), which preserves the mean.

    Branch k of n is dropped with p = rate * k / n (Huang et al. 2016, Eq. 4). The network itself stays unchanged.

    Args:
        network: the network; branches are dropped only in training mode.
        example_input: a batch of the network's input shape.
        rate: probability of the last branch, at least 0 and below 1; 0 draws nothing.
        generator: the only source of randomness, on the CPU.
        rank: index of this process's equal share of a batch.
        ranks: number of shares; all are drawn, so that the result does not depend on the number of processes.

    Raises:
        SearchError: the network has no residual branches.
        ReparamError: the network cannot be read.
    """
    branches = residual_branches(network, example_input) if rate else []
    if rate and not branches:
        raise SearchError(f"--drop-path {rate:g}: the network has no residual branches that can be dropped")
    handles = [
        network.get_submodule(name).register_forward_hook(
            _Dropped(network, rate * index / len(branches), generator, rank, ranks)
        )
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

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if not self._network.training:
            return output
        images = len(output)
        drawn = torch.rand(images * self._ranks, generator=self._generator)[self._rank * images :][:images]
        scale = (drawn >= self._p).to(output.dtype) / (1 - self._p)
        return output * scale.to(output.device).view(-1, *[1] * (output.ndim - 1))
