"""Stochastic depth (Huang et al. 2016): in training, residual branches are left out at random, for each image by a draw of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.tracing import operator_name, trace
from search.errors import SearchError


def residual_branches(network: nn.Module) -> list[str]:
    """Names of the modules that end the residual branches of a network, in the order in which they run.

    A branch is the longer one of the two paths to an addition, counted in convolutions and linear layers; the other one is the shortcut.
    Branches that do not end in a module of their own, or that run twice, are not among them.

    Raises:
        ReparamError: torch.fx cannot trace the network; the node is named.
    """
    modules = dict(network.named_modules())
    depth: dict[fx.Node, int] = {}
    ends: list[str] = []
    for node in trace(network).nodes:
        inputs = node.all_input_nodes
        weighs = node.op == "call_module" and isinstance(modules.get(str(node.target)), nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        depth[node] = max((depth[before] for before in inputs), default=0) + weighs
        if operator_name(node) == "add" and len(inputs) == 2:
            short, long = sorted(inputs, key=depth.__getitem__)
            while str(long.target).startswith("masks."):  # a mask of `insert_masks` may stand at several places, and scales as well
                (long,) = long.all_input_nodes
            if depth[short] < depth[long] and long.op == "call_module" and len(long.users) == 1:
                ends.append(str(long.target))
    return [name for name in ends if ends.count(name) == 1]


@contextlib.contextmanager
def drop_path(network: nn.Module, rate: float, generator: torch.Generator, *, rank: int = 0, ranks: int = 1) -> Iterator[None]:
    """Drop residual branches of a network for a while, and scale those that stay by 1 / (1 - p): the mean is as without.

    Branch k of n is dropped with p = rate * k / n (Huang et al. 2016, Eq. 4). The network is not changed: it is traced, saved and
    evaluated afterwards as ever.

    Args:
        network: in training mode while it is used.
        rate: probability of the last branch, at least 0 and below 1; 0 draws nothing.
        generator: the only source of randomness, on the CPU.
        rank: which of the equal shares of a batch this process has.
        ranks: number of shares; all are drawn, so that a batch is treated alike however many processes share it.

    Raises:
        SearchError: the network has no residual branches.
        ReparamError: torch.fx cannot trace the network.
    """
    branches = residual_branches(network) if rate else []
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
