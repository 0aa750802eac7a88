"""What a channel is worth by criteria that search nothing: the baselines that Pruning-as-Search is compared with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam import ChannelGroup, insert_masks
from search.errors import SearchError
from search.masks import Scores, fused_form


def magnitude(model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """The L1 norm of the filters that make a channel in the form that ships, over the mean of its group (Li et al. 2017).

    Norms of whole layers differ with their size, so each group is scaled before groups are ranked together.
    """
    fused, twins = fused_form(model, example_input)
    scores = []
    for group in groups:
        norm, twin = torch.zeros(group.channels), twins[group.name]
        for producer, entries in zip(twin.producers, twin.entries, strict=True):
            layer = fused.get_submodule(producer)
            weight = layer.get_parameter("weight").detach()
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
            own = torch.tensor(entries)
            norm.index_add_(0, own[own >= 0], weight.abs().flatten(1).sum(dim=1)[own >= 0])
        scores.append(norm / norm.mean())
    return scores


def uniform(model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """The rank of a channel in its group by magnitude, from 1 down to above 0: one threshold keeps the same share of every group."""
    return [1 - norm.argsort(descending=True, stable=True).argsort() / len(norm) for norm in magnitude(model, example_input, groups)]


class _Gate(nn.Module):
    """A factor of 1 on every channel, whose gradient is what the loss would change by if the channel went, to first order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply every channel by its factor."""
        return x * self.factor.view(-1, *[1] * (x.ndim - 2))


def taylor(
    model: nn.Module,
    example_input: Tensor,
    groups: Sequence[ChannelGroup],
    loss: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Tensor, Any]],
) -> list[Scores]:
    """First-order Taylor: how much the loss of a batch would change if a channel went, on average over batches.

    Molchanov et al. 2019, Eq. 8, on the activations behind each group; behind a norm and a ReLU that is the |gamma g + beta g'| of HALP
    (Shen et al. 2022, Eq. 3). Scores of different groups are in one unit, that of the loss.

    Args:
        model: trained; it stays as it was, and is run in evaluation mode.
        example_input: a batch of the shape that it is for.
        groups: of the network.
        loss: of outputs and targets.
        batches: inputs and targets.
    """
    gated = insert_masks(model, example_input, groups, lambda group: _Gate(group.channels)).eval()
    factors = [module.factor for module in gated.modules() if isinstance(module, _Gate)]
    totals, count = [torch.zeros_like(factor) for factor in factors], 0
    for inputs, targets in batches:
        gradients = torch.autograd.grad(loss(gated(inputs), targets), factors)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient.abs()
        count += 1
    return [total / max(1, count) for total in totals]


def scales(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """The scales of a channel's norms, added up over the layers that make it (network slimming, Liu et al. 2017); with gradient.

    Raises:
        SearchError: a group without a norm that scales it.
    """
    return [torch.stack([norm.weight.abs() for norm in found]).sum(dim=0) for found in norms(model, groups)]


def norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[list[nn.BatchNorm2d]]:
    """The norms of each group: inside of the trained-form blocks, and right behind the layers, that make its channels.

    Raises:
        SearchError: a group has none.
    """
    found = []
    for group in groups:
        modules = [part for name in group.producers for part in model.get_submodule(name).modules()]
        modules += [model.get_submodule(name) for name in group.norms]
        scaling = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.affine and m.num_features == group.channels]
        if not scaling:
            raise SearchError(f"slimming ranks channels by the norm behind them: group {group.name} has none; exclude it")
        found.append(scaling)
    return found
