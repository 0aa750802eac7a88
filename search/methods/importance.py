"""What a channel is worth by criteria that search nothing: the baselines that Pruning-as-Search is compared with."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from reparam import RepVGGBlock

Scores = Float[Tensor, " channels"]
"""A score for every channel of a layer; the highest ones stay."""


def top(scores: Scores, count: int) -> Bool[Tensor, " channels"]:
    """The `count` channels with the highest scores; the lower index first where equal."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    keep[scores.detach().argsort(descending=True, stable=True)[:count]] = True
    return keep


def magnitude(blocks: Sequence[RepVGGBlock]) -> list[Scores]:
    """The L1 norm of the filter that makes a channel in the form that ships, over the mean of its layer (Li et al. 2017).

    Norms of whole layers differ with their size, so each layer is scaled before layers are ranked together.
    """
    norms = [block.deployed().conv.weight.detach().abs().sum(dim=(1, 2, 3)) for block in blocks]
    return [norm / norm.mean() for norm in norms]


def uniform(blocks: Sequence[RepVGGBlock]) -> list[Scores]:
    """The rank of a channel in its layer by magnitude, from 1 down to above 0: one threshold keeps the same share of every layer."""
    return [1 - norm.argsort(descending=True, stable=True).argsort() / len(norm) for norm in magnitude(blocks)]


def scales(blocks: Sequence[RepVGGBlock]) -> list[Scores]:
    """The scales of a channel's norms, added up over the branches (network slimming, Liu et al. 2017)."""
    return [torch.stack([norm.weight.abs() for norm in norms(block)]).sum(dim=0) for block in blocks]


def norms(block: RepVGGBlock) -> list[nn.BatchNorm2d]:
    """The norms of a block: one a branch."""
    return [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
