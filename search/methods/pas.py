"""Pruning-as-Search (Li et al. 2022): prune channels and train weights by a single gradient descent, under a budget.

A depth-wise binary convolution after every block selects its channels. It is trained with the weights: the loss pulls
useful channels up, their cost pulls them down, and a removed channel keeps its weights and can return.

The paper leaves some details open. Here the regulariser is the squared relative error of the cost
(`regulariser="paper"`: the squared error in GMACs); the gradient of the cost flows through output and input widths;
indicators start at 1, are not decayed, and are clamped to [0, 1] (unless `bounded=False`); every layer keeps at least
its `min_channels` top-scoring channels.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from reparam import insert_masks
from reparam.blocks import Image
from search import masks
from search.budget import BudgetController, round_up
from search.cost import Scalar, network_terms
from search.masks import Keep, Scores, top_channels
from search.method import Epoch, Phase, Problem
from search.methods.pruning import Pruning
from search.methods.settings import PasSettings
from search.spaces import Widths
from search.train import TrainingPart

THRESHOLD = 0.5
"""An indicator above this value keeps its channel (Eq. 2); an equal one removes it."""


class DepthwiseBinaryConv(nn.Module):
    """A factor of 0 or 1 for every channel, trained by gradient descent (Eq. 1 and 2).

    The factor is 1 if the indicator `v` is above 0.5; its gradient is passed to `v` unchanged (straight-through
    estimator).

    Args:
        channels: number of channels.
        min_channels: number of channels to keep regardless of the threshold: those with the highest indicators, of
            equal ones those with lower indices.
    """

    def __init__(self, channels: int, *, min_channels: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.ones(channels))
        self.min_channels = min(min_channels, channels)

    def kept(self) -> Keep:
        """Return which channels are kept."""
        return (self.v.detach() > THRESHOLD) | top_channels(self.v, self.min_channels)

    def binary(self) -> Scores:
        """Return 0 or 1 for every channel, with the gradient of `v`."""
        return self.kept().to(self.v.dtype) + (self.v - self.v.detach())

    def width(self) -> Float[Tensor, ""]:
        """Return the number of kept channels, with gradient."""
        return self.binary().sum()

    def forward(self, x: Image) -> Image:
        """Multiply every channel by its 0 or 1."""
        return x * self.binary().view(-1, *[1] * (x.ndim - 2))


def indicators(network: nn.Module) -> list[DepthwiseBinaryConv]:
    """Return the depth-wise binary convolutions of a network, in the order of its groups."""
    return [module for module in network.modules() if isinstance(module, DepthwiseBinaryConv)]


class Pas(Pruning[PasSettings]):
    """Pretraining; joint training of weights and indicators; fine-tuning with the indicators frozen (Section 5.1)."""

    pruned_in = "finetune"

    def __init__(self, settings: PasSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.costs, target = self.counted(settings.cost)
        self.sites = self.space.sites()
        self.controller = BudgetController(target=target, weight=settings.beta, rate=settings.beta_rate)
        self.before: list[Keep] = []

    def searched(self, trained: nn.Module) -> nn.Module:
        """Insert a depth-wise binary convolution after each group.

        It comes after norm and activation. With factors of 0 and 1 this is equivalent to a place before the activation;
        but a ReLU has no slope at 0, so the indicator of a removed channel would get no gradient there, and the channel
        could never return.
        """
        least = self.settings.min_channels
        return insert_masks(
            trained,
            self.problem.example,
            self.groups,
            lambda group: DepthwiseBinaryConv(group.channels, min_channels=least),
        )

    def masked(self, trained: nn.Module, kept: Mapping[str, Keep]) -> nn.Module:
        """Freeze the indicators."""
        masks.freeze(trained, self.groups, kept)
        return trained

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Create one optimizer for weights and indicators."""
        policy = [indicator.v for indicator in indicators(network)]
        optimizer = self.optimizer(network, policy, self.settings.policy_lr)
        if self.settings.bounded:
            optimizer.register_step_post_hook(partial(_bounded, policy))
        return [optimizer]

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Train weights and indicators together."""
        self.before = [indicator.kept() for indicator in indicators(network)]
        return super().parts(epoch, network, optimizers)

    def penalty(self, network: nn.Module) -> Tensor:
        """Return the weighted regulariser (Eq. 4 and 5)."""
        widths = [indicator.width() for indicator in indicators(network)]
        cost = self._cost(self._by_space(widths, lambda full: torch.tensor(float(full))))
        # The value is the cost of the network that would ship, with widths rounded up; the gradient is that of the
        # unrounded widths.
        shipped = self._cost([torch.tensor(float(width)) for width in round_up(self.existing(network), self.choices)])
        cost = shipped + cost - cost.detach()
        beta, target = self.controller.weight, self.controller.target.amount
        self.controller.update(cost.item())
        error = (cost - target) / 1e9 if self.settings.regulariser == "paper" else cost / target - 1
        return beta * error**2

    def _cost(self, widths: Sequence[Scalar]) -> Scalar:
        return self.costs.expected(network_terms(self.costs, self.sites, widths))

    def scores(self, network: nn.Module) -> list[Scores]:
        """Return the indicators."""
        return [indicator.v.detach() for indicator in indicators(network)]

    def kept(self, network: nn.Module, scores: Sequence[Tensor]) -> Widths:
        """Return the number of channels whose indicator is above the threshold."""
        return self.existing(network)

    def existing(self, network: nn.Module) -> Widths:
        """Return the number of kept channels of each group of the space."""
        return tuple(self._by_space([int(indicator.kept().sum()) for indicator in indicators(network)], int))

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Return the penalty's weight, and the number of channels of each group that returned in this epoch."""
        super().ended(epoch, network)
        if epoch.phase.name != "search":
            return {}
        figures = {"beta": self.controller.weight}
        for group, indicator, before in zip(self.groups, indicators(network), self.before, strict=True):
            if count := int((indicator.kept() & ~before).sum()):
                figures[f"returned.{group.name}"] = float(count)
        return figures

    def state(self) -> dict[str, Any]:
        """Return the widths and the penalty's weight."""
        return super().state() | {"beta": self.controller.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the widths and the penalty's weight."""
        super().restore(state)
        self.controller.weight = state["beta"]


def _bounded(policy: Sequence[nn.Parameter], *_: object) -> None:
    bound(policy)


def bound(policy: Iterable[nn.Parameter]) -> None:
    """Clamp indicators to [0, 1]."""
    for v in policy:
        v.data.clamp_(0.0, 1.0)
