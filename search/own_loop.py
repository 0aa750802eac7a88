"""Prune within the user's own training loop.

`with masked(network, example, budget, table) as state: ...`, or at once by `pruned`.

The loop keeps its optimizer, data and loss. It adds the penalty to the loss, and calls `step` after its optimizer's
step. The search itself is that of `search.methods.pas`.
"""

import contextlib
import copy
from collections.abc import Generator, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from deploy.metric import Metric
from latency import Latency, LatencyTable
from reparam import ChannelGroup, squeeze
from reparam.masking import attach_mask, attached_masks, detach_masks
from reparam.modules import named_modules
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
from search.task import Statistics, Task, Tree


@contextlib.contextmanager
def masked(
    network: nn.Module,
    example: Tensor,
    budget: Budget,
    table: LatencyTable | None = None,
    *,
    optimizer: Optimizer | None = None,
    settings: PasSettings | None = None,
) -> "Generator[MaskedSearch, None, None]":
    """Search which channels of a network to keep while the caller trains it.

        with masked(network, example, Budget(us=400.0), table, optimizer=optimizer) as state:
            for images, targets in loader:
                loss = my_loss(network(images), targets) + state.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                state.step()
        small = state.squeezed()

    Within the context the channels of `network` are masked. Afterwards the masks are removed, and the trained weights
    stay.

    Args:
        network: the network, trained or not; its parameter objects stay the same.
        example: one image, float [1, channels, height, width].
        budget: latency with a table, multiply-accumulates without one.
        table: latencies of the network's layers, as measured by `lathe profile FILE.py:FUNCTION`.
        optimizer: optimizer of the network's weights; if given, it leaves the weights of masked channels unchanged
            until they return.
        settings: settings of Pruning-as-Search; those of its own training, such as epochs and learning rates of
            weights, are ignored.

    Yields:
        The search. Its choice is made when the context ends without an error.

    Raises:
        SearchError: nothing can be pruned, or no network is within the budget.
        CoverageError: the table does not cover the network's layers.
        ReparamError: the network cannot be read; the message names the node.
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
        space: the space of the network's widths.
        policy: the indicators, one number per channel that determines whether it is kept.
    """

    def __init__(
        self, network: nn.Module, example: Tensor, budget: Budget, table: LatencyTable | None, settings: PasSettings
    ) -> None:
        unpruned, self._example = copy.deepcopy(network).cpu(), example[:1].cpu()
        self.space: Space = of_module(unpruned, self._example, name="network")
        self._method = Pas(settings, Problem(space=self.space, task=_OwnLoop(), table=table, budget=budget))
        self._network, searched = network, self._method.searched(unpruned)
        for name, module in named_modules(searched):
            for hook in attached_masks(module):
                attach_mask(network.get_submodule(name), hook)
        self._masks = searched.get_submodule("masks").to(next(network.parameters()).device)
        self.policy = [indicator.v for indicator in indicators(self._masks)]
        self._optimizer = SGD(self.policy, lr=settings.policy_lr, momentum=settings.momentum)
        self._kept: dict[str, Keep] | None = None

    def penalty(self) -> Tensor:
        """Return the penalty for the loss.

        It grows with the distance from the budget, and its weight adapts until the budget is met.
        """
        return self._method.penalty(self._masks)

    def step(self) -> None:
        """Update which channels are kept, using the gradients of the last backward pass."""
        self._optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        self._optimizer.zero_grad()
        if self._method.settings.bounded:
            bound(self.policy)

    def choice(self) -> Choice:
        """Return the current widths; after the search, the chosen ones."""
        if self._kept is None:
            self._method.widths = self._method.existing(self._masks)
        return self._method.choice()

    def latency(self) -> Latency | None:
        """Return the predicted latency of the network that would ship now; None without a table."""
        self.choice()
        return self._method.problem.latency(self._method.shippable())

    def decide(self) -> Choice:
        """End the search with the widths within the budget that are nearest to the learned ones."""
        self._kept = self._method.decided(self._masks)
        return self.choice()

    def close(self) -> None:
        """Remove the masks."""
        for module in self._network.modules():
            detach_masks(module)

    def squeezed(self) -> nn.Module:
        """Return the pruned network with the current weights, in the network's mode, to fine-tune instead of it.

        Raises:
            SearchError: the search is not over.
            ReparamError: the network cannot be squeezed; the message names the node.
        """
        if self._kept is None:
            raise SearchError("the search is not over: call squeezed() after the `with` block")
        return _squeezed(self._network, self._example, self._method.groups, self._kept)


def pruned(
    network: nn.Module,
    example: Tensor,
    budget: Budget,
    table: LatencyTable | None = None,
    *,
    settings: UniformSettings | MagnitudeSettings | None = None,
) -> nn.Module:
    """Prune a network at once, without a search; a baseline for learned networks.

    Args:
        network: the trained network; it stays unchanged.
        example: see `masked`.
        budget: see `masked`.
        table: see `masked`.
        settings: settings of the method: keep the same share of every group (default), or the filters of the largest
            magnitude.

    Raises:
        SearchError: nothing can be pruned, or no network is within the budget.
        CoverageError: the table does not cover the network's layers.
        ReparamError: the network cannot be read or squeezed; the message names the node.
    """
    unpruned, example = copy.deepcopy(network).cpu().eval(), example[:1].cpu()
    problem = Problem(space=of_module(unpruned, example, name="network"), task=_OwnLoop(), table=table, budget=budget)
    method: Pruning[Any] = methods.method(settings or UniformSettings(), problem)  # pyright: ignore[reportAssignmentType]
    return _squeezed(network, example, method.groups, method.decided(unpruned))


def _squeezed(
    network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup], kept: Mapping[str, Keep]
) -> nn.Module:
    """Return a network without its removed channels, on its device and in its mode."""
    device = next(network.parameters()).device
    masked_network = masks.mask(
        copy.deepcopy(network).cpu(), example, groups, {name: keep.cpu() for name, keep in kept.items()}
    )
    return squeeze(masked_network, example).to(device).train(network.training)


@final
class _OwnLoop(Task):
    """Placeholder for the task of the user's loop."""

    metric, train, held_out = Metric(name="metric"), (), ()

    def require_fit(self, space: Space) -> None:
        """Accept any space."""

    def loss(self, outputs: Tree, targets: Tree) -> Tensor:
        """Not used: the loop has its own."""
        raise NotImplementedError

    def statistics(self, outputs: Tree, targets: Tree) -> Statistics:
        """Not used: the loop has its own."""
        raise NotImplementedError
