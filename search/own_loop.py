"""Pruning in a training loop of one's own: `with masked(network, example, budget, table) as state: ...` while it trains, `pruned` at once.

The loop keeps its optimizer, its data and its loss; what it adds is the penalty to the loss, and a step behind that of its optimizer. All
that decides is that of `search.methods.pas`.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from deploy.metric import Metric
from latency import Latency, LatencyTable
from reparam import ChannelGroup, squeeze
from reparam.masking import lift, place, placed
from search import masks, methods
from search.budget import Budget
from search.errors import SearchError
from search.masks import Keep
from search.method import Problem
from search.methods.pas import Pas, bound, indicators
from search.methods.pruning import Pruning
from search.methods.settings import MagnitudeSettings, PasSettings, UniformSettings
from search.space import Choice, Space
from search.spaces import of_module
from search.task import Statistics, Task


@contextlib.contextmanager
def masked(
    network: nn.Module,
    example: Tensor,
    budget: Budget,
    table: LatencyTable | None = None,
    *,
    optimizer: Optimizer | None = None,
    settings: PasSettings | None = None,
) -> "Iterator[MaskedSearch]":
    """Search which channels of a network to keep, while it is trained by whoever calls this.

        with masked(network, example, Budget(us=400.0), table, optimizer=optimizer) as state:
            for images, targets in loader:
                loss = my_loss(network(images), targets) + state.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step()
        small = state.squeezed()

    Inside, the channels of the network that is given are masked; behind it the network is as it was, with the weights that it has then.

    Args:
        network: trained, or to be trained; its parameters stay the objects that they are.
        example: one image of the shape that it is for [1, channels, height, width].
        budget: what the network may take: latency with a table, multiply-accumulates without one.
        table: of the network's layers, as `lathe profile FILE.py:FUNCTION` measures it.
        optimizer: of the network's weights: it then leaves those of channels that are gone as they are, until the channels come back.
        settings: of Pruning-as-Search; those of its own training, such as epochs and learning rates of the weights, mean nothing here.

    Yields:
        The search. Its choice is made when the context ends without an error.

    Raises:
        SearchError: nothing can be pruned, or no network is within the budget.
        CoverageError: the table is of other layers.
        ReparamError: the network cannot be read; the node is named.
    """
    state = MaskedSearch(network, example, budget, table, settings or PasSettings())
    held = masks.hold_gone(optimizer, network.parameters()) if optimizer else ()
    try:
        yield state
        state.decide()
    finally:
        state.close()
        for handle in held:
            handle.remove()


@final
class MaskedSearch:
    """A search in progress; see `masked`.

    Attributes:
        space: of the network's widths.
        policy: the indicators: one number a channel, that says whether it exists.
    """

    def __init__(self, network: nn.Module, example: Tensor, budget: Budget, table: LatencyTable | None, settings: PasSettings) -> None:
        whole, self._example = copy.deepcopy(network).cpu(), example[:1].cpu()
        self.space: Space = of_module(whole, self._example, name="network")
        self._method = Pas(settings, Problem(space=self.space, task=_OwnLoop(), table=table, budget=budget))
        self._network, searched = network, self._method.searched(whole)
        for name, module in searched.named_modules():
            for hook in placed(module):
                place(network.get_submodule(name), hook)
        self._masks = searched.get_submodule("masks").to(next(network.parameters()).device)
        self.policy = [indicator.v for indicator in indicators(self._masks)]
        self._optimizer = SGD(self.policy, lr=settings.policy_lr, momentum=settings.momentum)
        self._kept: dict[str, Keep] | None = None

    def penalty(self) -> Tensor:
        """What a step adds to the loss: it grows with the distance from the budget, and its weight adapts until the budget is met."""
        return self._method.penalty(self._masks)

    def step(self) -> None:
        """Decide anew which channels exist, by the gradients of the last backward pass."""
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._method.settings.bounded:
            bound(self.policy)

    def choice(self) -> Choice:
        """The widths that the network has now; behind the search, those that were chosen."""
        if self._kept is None:
            self._method.widths = self._method.existing(self._masks)
        return self._method.choice()

    def latency(self) -> Latency | None:
        """What the table predicts for the network that would ship now; None without one."""
        self.choice()
        return self._method.problem.latency(self._method.shippable())

    def decide(self) -> Choice:
        """End the search with the widths that are within the budget, nearest to the learned ones."""
        self._kept = self._method.decided(self._masks)
        return self.choice()

    def close(self) -> None:
        """Take the masks away."""
        for module in self._network.modules():
            lift(module)

    def squeezed(self) -> nn.Module:
        """A smaller network, with the weights that the network has now: in its mode, to be fine-tuned in its place.

        Raises:
            SearchError: the search is not over.
            ReparamError: the network cannot be squeezed; the node is named.
        """
        if self._kept is None:
            raise SearchError("the search is not over: ask for the squeezed network behind the `with` block")
        return _squeezed(self._network, self._example, self._method.groups, self._kept)


def pruned(
    network: nn.Module,
    example: Tensor,
    budget: Budget,
    table: LatencyTable | None = None,
    *,
    settings: UniformSettings | MagnitudeSettings | None = None,
) -> nn.Module:
    """A smaller network at once, without a search: what a learned one has to beat.

    Args:
        network: trained; it stays as it was.
        example: see `masked`, as the next two.
        budget: what the network may take.
        table: of the network's layers.
        settings: of the method: the same share of every group's channels, which is the default, or those of the largest filters.

    Raises:
        SearchError: nothing can be pruned, or no network is within the budget.
        CoverageError: the table is of other layers.
        ReparamError: the network cannot be read or squeezed; the node is named.
    """
    whole, example = copy.deepcopy(network).cpu().eval(), example[:1].cpu()
    problem = Problem(space=of_module(whole, example, name="network"), task=_OwnLoop(), table=table, budget=budget)
    method: Pruning[Any] = methods.method(settings or UniformSettings(), problem)  # pyright: ignore[reportAssignmentType]
    return _squeezed(network, example, method.groups, method.decided(whole))


def _squeezed(network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup], kept: Mapping[str, Keep]) -> nn.Module:
    """A network without the channels that do not stay, on its device and in its mode."""
    device = next(network.parameters()).device
    whole = masks.mask(copy.deepcopy(network).cpu(), example, groups, {name: keep.cpu() for name, keep in kept.items()})
    return squeeze(whole, example).to(device).train(network.training)


@final
class _OwnLoop(Task):
    """What the loop trains for, which it alone knows."""

    metric, train, held_out = Metric(name="metric"), (), ()

    def require_fit(self, space: Space) -> None:
        """It does."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Of the loop."""
        raise NotImplementedError

    def statistics(self, outputs: Any, targets: Any) -> Statistics:
        """Of the loop."""
        raise NotImplementedError
