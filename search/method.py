"""Interface of search methods.

Their phases, the network that each phase trains, the steps of an epoch, and the resulting choice.

A method implements its paper and knows nothing about files: `search.session` runs it, and handles directory, seeds,
checkpoints and resume.
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
from search.train import TrainingPart

S = TypeVar("S", bound=Settings)


class Phase(Struct, frozen=True, kw_only=True):
    """A number of epochs that train one network."""

    name: str
    """unique within the method"""
    epochs: int
    unpruned: bool = False
    """trains the largest network of the space; another run can start from its end"""
    shared: bool = False
    """another run can start from its end; implied by `unpruned`"""
    decides: bool = False
    """the choice is made at its start, from the network of the previous phase"""
    rewinds: bool = False
    """starts from the weights of the unpruned network; what that lacks, such as masks, stays as it is"""
    distils: bool = False
    """its loss includes a teacher, if the settings have one"""
    batch_statistics: bool = False
    """the network changes between steps: norms are evaluated with batch statistics, see `train.evaluate`, weights are
    not averaged and no branches are dropped"""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, with its random generators."""

    phase: Phase
    index: int
    """index in its phase, from 0"""
    order: torch.Generator
    """for the order of samples and their augmentation"""
    noise: torch.Generator
    """for the method's own draws; dropout and the like use torch's global state, which is seeded, too"""
    teacher: nn.Module | None = None
    """network to distil from, in evaluation mode"""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The input of a method: space, task, budget and latency tables.

    Raises:
        SearchError: the task or the budget does not fit the space.
    """

    space: Space
    task: Task
    """task to train networks for"""
    table: LatencyTable | None
    """covers the space; if None, cost is counted in multiply-accumulates"""
    budget: Budget
    """latency with a table, multiply-accumulates without one"""
    also: tuple[Limit, ...] = ()
    """further devices, whose budgets must be met as well"""

    def __post_init__(self) -> None:
        if self.budget.unit != ("us" if self.table else "macs"):
            available = (
                "latency, so the budget is one of latency"
                if self.table
                else "multiply-accumulates alone without a table"
            )
            raise SearchError(f"a budget of {self.budget} cannot be held against what is known: {available}")
        if self.also and not self.table:
            raise SearchError("budgets on further devices need a table of the first one")
        self.task.require_fit(self.space)

    @property
    def example(self) -> Tensor:
        """A batch of one image of zeros."""
        return torch.zeros(1, *self.space.input_shape)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All devices with their budgets; empty if the cost is multiply-accumulates."""
        return (Limit(self.table, self.budget), *self.also) if self.table else ()

    @property
    def target(self) -> float | int:
        """The cost, in the unit of the budget, whose interval ends at the budget."""
        return self.limits[0].target if self.limits else self.budget.amount

    def model(self) -> CostModel:
        """Return the cost model; with several devices, the one furthest over its budget counts."""
        return cost_model(self.space, self.limits)

    def block_prices(self) -> list[widths.BlockPrices]:
        """Return the prices of blocks on each device, for the exact fit."""
        return widths.block_prices(self.limits)

    def require_reachable(self, smallest: Choice) -> None:
        """Require budgets that the smallest network can meet.

        Args:
            smallest: the smallest network that the method can return.

        Raises:
            SearchError: the network exceeds a budget; the message names its price.
            CoverageError: a table does not cover the network.
        """
        if not self.limits:
            macs = self.macs(smallest)
            require_reachable(self.space.name, Price(macs, macs), self.budget)
        for index, (limit, latency) in enumerate(zip(self.limits, self.latencies(smallest), strict=True)):
            also = limit.table.path if index else ""
            require_reachable(self.space.name, Price(latency.us, latency.high_us), limit.budget, also=also)

    def latency(self, choice: Choice) -> Latency | None:
        """Return the predicted latency of a network; None without a table."""
        return self.table and self.table.predict(self.space.network(choice))

    def latencies(self, choice: Choice) -> tuple[Latency, ...]:
        """Return the predicted latency of a network on each device."""
        blocks = self.space.network(choice)
        return tuple(limit.table.predict(blocks) for limit in self.limits)

    def macs(self, choice: Choice) -> int:
        """Return the multiply-accumulates of a network in deployed form."""
        return self.space.macs(self.space.network(choice))


class Method(ABC, Generic[S]):
    """One search in progress. Its decisions are in `state`, everything it trains in its networks and optimizers.

    Each phase calls `network`, then `optimizers`; each epoch calls `parts` before and `ended` after training.

    Attributes:
        settings: the method's settings.
        problem: the search problem.
    """

    def __init__(self, settings: S, problem: Problem) -> None:
        self.settings, self.problem = settings, replace(problem, task=problem.task.prepared(settings))

    @property
    def name(self) -> str:
        """Name of the method on the command line."""
        return self.settings.name

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases, in order."""

    @abstractmethod
    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """Return the network of a phase, on the CPU.

        Args:
            phase: the phase that starts or resumes.
            trained: the network of the previous phase, which the method may modify. None at the start of the first
                phase, and when a phase resumes: then `state` has been restored, and the weights will be loaded from a
                checkpoint.
        """

    @abstractmethod
    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Create the optimizers of a phase."""

    @abstractmethod
    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Return the parts of an epoch: what to train, on which samples and with which loss.

        Args:
            epoch: the epoch.
            network: the phase's network, with the weights at the start of the epoch.
            optimizers: the phase's optimizers, in order.
        """

    def task(self, phase: Phase) -> Task:
        """Return the task that a phase is trained for and evaluated on."""
        return self.problem.task

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Handle the end of an epoch; return figures to record, by name."""
        return {}

    @abstractmethod
    def choice(self) -> Choice:
        """Return the current network."""

    def shippable(self) -> Choice:
        """Return the network that would ship if the search ended now."""
        return self.choice()

    def free_channels(self) -> dict[str, int]:
        """Return the number of channels of the choice that add no cost, by group."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return the method's decisions, as JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state`."""
        assert not state, f"{self.name} has no state"
