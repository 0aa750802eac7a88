"""Pruning-as-Search (Li et al. 2022): channels are pruned and weights trained by one gradient descent, under a budget.

A depth-wise binary convolution behind every block says which of its channels exist. It is trained with the weights: the loss pulls useful
channels up, their cost pulls them down, and a channel that is gone keeps its weights and can come back.

What the paper leaves open is settled like this: the regulariser is the squared relative error of the cost (`regulariser="paper"`: the
squared error in GMACs); the gradient of the cost goes through output and input widths; indicators start at 1, are not decayed, and stay
within 0 and 1 (`bounded=False`: they do not); every layer keeps at least `min_channels`, the top-scoring ones.
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
from search.masks import Keep, Scores, top
from search.method import Epoch, Phase, Problem
from search.methods.pruning import Pruning
from search.methods.settings import PasSettings
from search.spaces import Widths
from search.train import Part

THRESHOLD = 0.5
"""An indicator above it keeps its channel (Eq. 2); at exactly this value the channel is gone."""


class DepthwiseBinaryConv(nn.Module):
    """One 0 or 1 for every channel, trained by gradient descent (Eq. 1 and 2).

    The binary value is 1 where the indicator `v` is above 0.5; its gradient is handed to `v` unchanged (straight-through estimator).

    Args:
        channels: channels of what it is applied to.
        min_channels: number of channels, those with the highest indicators, that are kept whatever the threshold says; the lower index
            first where equal.
    """

    def __init__(self, channels: int, *, min_channels: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.ones(channels))
        self.min_channels = min(min_channels, channels)

    def kept(self) -> Keep:
        """The channels that exist."""
        return (self.v.detach() > THRESHOLD) | top(self.v, self.min_channels)

    def binary(self) -> Scores:
        """0 or 1 for every channel, with the gradient of `v`."""
        return self.kept().to(self.v.dtype) + (self.v - self.v.detach())

    def width(self) -> Float[Tensor, ""]:
        """Number of channels that exist, with gradient."""
        return self.binary().sum()

    def forward(self, x: Image) -> Image:
        """Multiply every channel by its 0 or 1."""
        return x * self.binary().view(-1, *[1] * (x.ndim - 2))


def indicators(network: nn.Module) -> list[DepthwiseBinaryConv]:
    """The depth-wise binary convolutions of a network, in the order of its groups."""
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
        """A depth-wise binary convolution behind each group.

        It stands behind norm and activation. For zeros and ones that computes the same as one before the activation; but a ReLU has no
        slope at 0, so there the indicator of a channel that is gone would get no gradient, and the channel could never come back.
        """
        least = self.settings.min_channels
        return insert_masks(
            trained, self.problem.example, self.groups, lambda group: DepthwiseBinaryConv(group.channels, min_channels=least)
        )

    def masked(self, trained: nn.Module, kept: Mapping[str, Keep]) -> nn.Module:
        """The indicators frozen."""
        masks.freeze(trained, self.groups, kept)
        return trained

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """One of weights and indicators."""
        policy = [indicator.v for indicator in indicators(network)]
        optimizer = self.optimizer(network, policy, self.settings.policy_lr)
        if self.settings.bounded:
            optimizer.register_step_post_hook(partial(_bounded, policy))
        return [optimizer]

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[Part]:
        """Weights and indicators together."""
        self.before = [indicator.kept() for indicator in indicators(network)]
        return super().parts(epoch, network, optimizers)

    def penalty(self, network: nn.Module) -> Tensor:
        """The weighted regulariser (Eq. 4 and 5)."""
        widths = [indicator.width() for indicator in indicators(network)]
        cost = self._cost(self._by_space(widths, lambda full: torch.tensor(float(full))))
        # What counts is the network that would ship, with every width rounded up; its gradient is that of the widths as they are.
        shipped = self._cost([torch.tensor(float(width)) for width in round_up(self.existing(network), self.choices)])
        cost = shipped + cost - cost.detach()
        beta, target = self.controller.weight, self.controller.target.amount
        self.controller.update(cost.item())
        error = (cost - target) / 1e9 if self.settings.regulariser == "paper" else cost / target - 1
        return beta * error**2

    def _cost(self, widths: Sequence[Scalar]) -> Scalar:
        return self.costs.expected(network_terms(self.costs, self.sites, widths))

    def scores(self, network: nn.Module) -> list[Scores]:
        """The indicators."""
        return [indicator.v.detach() for indicator in indicators(network)]

    def kept(self, network: nn.Module, scores: Sequence[Tensor]) -> Widths:
        """Channels whose indicator is above the threshold."""
        return self.existing(network)

    def existing(self, network: nn.Module) -> Widths:
        """Number of channels that exist of each group of the space."""
        return tuple(self._by_space([int(indicator.kept().sum()) for indicator in indicators(network)], int))

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """The penalty's weight, and of each group the channels that were gone after the epoch before and are back now."""
        super().ended(epoch, network)
        if epoch.phase.name != "search":
            return {}
        now = [indicator.kept() for indicator in indicators(network)]
        back = [int((kept & ~before).sum()) for kept, before in zip(now, self.before, strict=True)]
        named = zip(self.groups, back, strict=True)
        return {"beta": self.controller.weight} | {f"returned.{group.name}": float(count) for group, count in named if count}

    def state(self) -> dict[str, Any]:
        """The widths, and the penalty's weight."""
        return super().state() | {"beta": self.controller.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with them."""
        super().restore(state)
        self.controller.weight = state["beta"]


def _bounded(policy: Sequence[nn.Parameter], *_: Any) -> None:
    bound(policy)


def bound(policy: Iterable[nn.Parameter]) -> None:
    """Keep indicators within 0 and 1."""
    for v in policy:
        v.data.clamp_(0.0, 1.0)
