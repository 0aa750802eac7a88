"""Channel importance by criteria that need no search: baselines for Pruning-as-Search."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from reparam import ChannelGroup, insert_masks
from search.errors import SearchError
from search.masks import Scores, fused_form
from search.task import Batch, Tree


def magnitude(model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """Return the L1 norm of each channel's filters in the deployed form (Li et al. 2017).

    It is relative to the mean of its group.

    Norms depend on the size of a layer, so each group is scaled before groups are ranked together.
    """
    fused, twins = fused_form(model, example_input)
    scores: list[Scores] = []
    for group in groups:
        norm, twin = torch.zeros(group.channels), twins[group.name]
        for producer, entries in zip(twin.producers, twin.entries, strict=True):
            layer = fused.get_submodule(producer)
            weight: Tensor = layer.get_parameter("weight").detach()
            if isinstance(layer, nn.ConvTranspose2d):
                weight = weight.reshape(layer.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
            own = torch.tensor(entries)
            norm.index_add_(0, own[own >= 0], weight.abs().flatten(1).sum(dim=1)[own >= 0])
        scores.append(norm / norm.mean())
    return scores


def uniform(model: nn.Module, example_input: Tensor, groups: Sequence[ChannelGroup]) -> list[Scores]:
    """Return each channel's rank in its group by magnitude, from 1 down to above 0.

    A common threshold keeps equal shares.
    """
    return [
        1 - norm.argsort(descending=True, stable=True).argsort() / len(norm)
        for norm in magnitude(model, example_input, groups)
    ]


class _Gate(nn.Module):
    """A factor of 1 on every channel.

    Its gradient is the first-order change of the loss if the channel is removed.
    """

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
    loss: Callable[[Tree, Tree], Tensor],
    batches: Iterable[Batch],
) -> list[Scores]:
    """Return the first-order Taylor importance.

    The change of a batch's loss if a channel is removed, averaged over batches.

    Molchanov et al. 2019, Eq. 8, on the activations after each group; after a norm and a ReLU this is |gamma g + beta
    g'| of HALP (Shen et al. 2022, Eq. 3). Scores of all groups share the unit of the loss.

    Args:
        model: the trained network; it stays unchanged and runs in evaluation mode.
        example_input: a batch of the network's input shape.
        groups: groups of the network.
        loss: maps outputs and targets to the loss.
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
    """Return the scales of each channel's norms, with gradient (network slimming, Liu et al. 2017).

    They are summed over the channel's producers.

    Raises:
        SearchError: a group has no norm that scales it.
    """
    return [torch.stack([norm.weight.abs() for norm in group_norms]).sum(dim=0) for group_norms in norms(model, groups)]


def norms(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[list[nn.BatchNorm2d]]:
    """Return the norms of each group.

    Those inside training-form blocks and directly after layers that produce its channels.

    Raises:
        SearchError: a group has none.
    """
    norms_by_group: list[list[nn.BatchNorm2d]] = []
    for group in groups:
        modules = [part for name in group.producers for part in model.get_submodule(name).modules()]
        modules += [model.get_submodule(name) for name in group.norms]
        scaling = [
            m for m in modules if isinstance(m, nn.BatchNorm2d) and m.affine and m.num_features == group.channels
        ]
        if not scaling:
            raise SearchError(
                f"slimming ranks channels by the norm behind them: group {group.name} has none; exclude it"
            )
        norms_by_group.append(scaling)
    return norms_by_group
