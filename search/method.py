"""What a method of search is: phases, the network that each trains, what a step does, and the choice that it ends with.

A method knows its paper and nothing of files: `search.session` runs it, and owns its directory, its seeds, its checkpoint and its resume.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.optim import Optimizer

from latency import Latency, LatencyTable
from search import widths
from search.budget import Budget, Limit, Price, require_reachable
from search.cost import CostModel, cost_model
from search.errors import SearchError
from search.methods.settings import Settings
from search.space import Choice, Space
from search.task import Task
from search.train import Part

S = TypeVar("S", bound=Settings)


class Phase(Struct, frozen=True, kw_only=True):
    """A number of epochs in which one network is trained."""

    name: str
    """unique in the method"""
    epochs: int
    unpruned: bool = False
    """what it trains is the largest network of the space: another run can start from where it ends"""
    shared: bool = False
    """another run can start from where it ends; what is unpruned is shared, too"""
    decides: bool = False
    """the choice is made when it begins, of what the phase before trained"""
    distils: bool = False
    """its loss matches a teacher, where the settings have one"""
    batch_statistics: bool = False
    """the network changes from step to step: norms are evaluated with the statistics of each batch, see `train.evaluate`; weights are
    not averaged, and no branches dropped"""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, with all the randomness that it may use."""

    phase: Phase
    index: int
    """in its phase, from 0"""
    order: torch.Generator
    """for the order of the samples and their augmentation"""
    noise: torch.Generator
    """for what the method itself draws; dropout and its like draw from torch's global state, which is seeded too"""
    teacher: nn.Module | None = None
    """what the phase distils from, in evaluation mode"""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method is given: a space, a task, a budget, and what networks cost.

    Raises:
        SearchError: the task or the budget does not fit the space.
    """

    space: Space
    task: Task
    """what its networks are trained for"""
    table: LatencyTable | None
    """covers the space; without one the cost of a network is its multiply-accumulates"""
    budget: Budget
    """what the network may cost: latency with a table, multiply-accumulates without one"""
    also: tuple[Limit, ...] = ()
    """further devices, whose budgets are to be met as well"""

    def __post_init__(self) -> None:
        if self.budget.unit != ("us" if self.table else "macs"):
            known = "latency, so the budget is one of latency" if self.table else "multiply-accumulates alone without a table"
            raise SearchError(f"a budget of {self.budget} cannot be held against what is known: {known}")
        if self.also and not self.table:
            raise SearchError("budgets on further devices need a table of the first one")
        self.task.require_fit(self.space)

    @property
    def example(self) -> Tensor:
        """An image of zeros."""
        return torch.zeros(1, *self.space.input_shape)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Every device with its budget; none where multiply-accumulates are the cost."""
        return (Limit(self.table, self.budget), *self.also) if self.table else ()

    @property
    def target(self) -> float | int:
        """The cost, in the unit of the budget, at which the upper end of its interval is the budget."""
        return self.limits[0].target if self.limits else self.budget.amount

    def model(self) -> CostModel:
        """What networks cost; of several devices, on the one furthest over its budget."""
        return cost_model(self.space, self.limits)

    def block_prices(self) -> list[widths.BlockPrices]:
        """What blocks cost on each device, for the exact fit."""
        return widths.block_prices(self.limits)

    def require_reachable(self, smallest: Choice) -> None:
        """Refuse budgets that no network can meet.

        Args:
            smallest: the smallest network that a method can find.

        Raises:
            SearchError: it is over a budget; names its price.
            CoverageError: a table does not cover it.
        """
        if not self.limits:
            macs = self.macs(smallest)
            require_reachable(self.space.name, Price(macs, macs), self.budget)
        for index, (limit, latency) in enumerate(zip(self.limits, self.latencies(smallest), strict=True)):
            also = limit.table.path if index else ""
            require_reachable(self.space.name, Price(latency.us, latency.high_us), limit.budget, also=also)

    def latency(self, choice: Choice) -> Latency | None:
        """What the table predicts for a network; None without one."""
        return self.table and self.table.predict(self.space.network(choice))

    def latencies(self, choice: Choice) -> tuple[Latency, ...]:
        """The same on each device."""
        blocks = self.space.network(choice)
        return tuple(limit.table.predict(blocks) for limit in self.limits)

    def macs(self, choice: Choice) -> int:
        """Multiply-accumulates of a network as it ships."""
        return self.space.macs(self.space.network(choice))


class Method(ABC, Generic[S]):
    """One search in progress. All that it decides is in `state`; all that it trains, in its networks and optimizers.

    For each phase `network` is called, then `optimizers`; for every epoch `parts` before it and `ended` behind it.

    Attributes:
        settings: every number of it.
        problem: what it works on.
    """

    def __init__(self, settings: S, problem: Problem) -> None:
        self.settings, self.problem = settings, replace(problem, task=problem.task.prepared(settings))

    @property
    def name(self) -> str:
        """As the command line has it."""
        return self.settings.name

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """What is trained, in order."""

    @abstractmethod
    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """The network of a phase, on the CPU.

        Args:
            phase: that begins, or goes on.
            trained: what the phase before trained, the method's own from now on. None where the first phase begins, and where a phase
                goes on: then `state` has been restored, and a checkpoint will fill the weights.
        """

    @abstractmethod
    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """New optimizers of a phase."""

    @abstractmethod
    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[Part]:
        """What an epoch trains, on which samples and towards what.

        Args:
            epoch: which.
            network: of the phase, with the weights that the epoch starts from.
            optimizers: of the phase, in order.
        """

    def task(self, phase: Phase) -> Task:
        """What a phase is trained for, and evaluated on."""
        return self.problem.task

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """An epoch is over; returns numbers of it that are worth keeping, by name."""
        return {}

    @abstractmethod
    def choice(self) -> Choice:
        """The network that the method has now."""

    def shippable(self) -> Choice:
        """The network that would ship if the search ended now."""
        return self.choice()

    def free_channels(self) -> dict[str, int]:
        """Channels of the choice that cost nothing, by group."""
        return {}

    def state(self) -> dict[str, Any]:
        """What was decided, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        assert not state, f"{self.name} has no state"
