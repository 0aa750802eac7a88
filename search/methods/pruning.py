"""Common parts of methods over widths: train the unpruned network, search its widths, fine-tune the pruned network.

A `Narrowing` method defines the network to search. A `Pruning` method defines the channels' scores (`scores`), when
channels are removed (`pruned_in`), and the search's penalty (`penalty`).
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reparam import ChannelGroup, fuse, squeeze
from reparam.typed_torch import fork_rng, to_list
from search import masks, schedule
from search import widths as fitting
from search.budget import Budget, Price, free_channels, ranked_widths, round_up
from search.cost import CostModel, MacsModel
from search.errors import SearchError
from search.masks import Scores
from search.method import Epoch, Method, Phase, Problem
from search.methods.settings import PruningSettings
from search.space import Choice
from search.spaces import FREE_WIDTHS, WIDTHS, Prunable, Widths, with_widths
from search.task import Tree
from search.train import TrainingPart, make_optimizer

T = TypeVar("T")
P = TypeVar("P", bound=PruningSettings)


class Narrowing(Method[P]):
    """A method that returns a narrower network of a space of widths.

    Args:
        settings: settings of the method.
        problem: a problem over a space of widths.

    Raises:
        SearchError: nothing can be pruned, settings and space do not match, or no widths are within the budget.
        CoverageError: the table does not cover the space.
        ReparamError: the network cannot be read, fused or squeezed; the message names the node.
    """

    pruned_in: ClassVar[Literal["search", "finetune"]] = "finetune"
    """the phase at whose start channels are removed"""
    frees: ClassVar[bool] = False
    """whether layers that are added may have different widths"""

    def __init__(self, settings: P, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.space = with_widths(problem.space, self.name)
        if self.space.free and not self.frees:
            other = self.space.name.replace(FREE_WIDTHS, WIDTHS)
            raise SearchError(
                f"{self.name} prunes layers that are added up together, unlike {self.space.name}: choose {other}"
            )
        self.model = problem.model()
        with fork_rng():
            network = self.space.module()
            self.space.insert_shortcuts(network, None)
        self.groups = masks.prunable_groups(network, problem.example, settings.excluded)
        self.choices = self.width_choices()
        problem.require_reachable(self.smallest())
        _require_squeezable(network, problem.example, self.groups)
        self.widths = self.space.full_widths()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases: pretraining of the unpruned network, search, fine-tuning."""
        settings, decides = self.settings, self.pruned_in
        return (
            Phase(name="pretrain", epochs=settings.pretrain_epochs, unpruned=True),
            Phase(name="search", epochs=settings.search_epochs, decides=decides == "search", batch_statistics=True),
            Phase(
                name="finetune",
                epochs=settings.finetune_epochs,
                decides=decides == "finetune",
                rewinds=settings.retrain == "rewind",  # pyright: ignore[reportUnnecessaryComparison] (some methods widen it)
                distils=True,
            ),
        )

    def width_choices(self) -> list[Widths]:
        """Return the widths of each group that can ship, ascending; the full width is always included."""
        return _shippable(self.space, self.settings, {group.name for group in self.groups})

    def smallest(self) -> Choice:
        """Return the smallest network that the method can return."""
        return self.space.choice([options[0] for options in self.choices])

    def counted(self, cost: Literal["latency", "macs"]) -> tuple[CostModel, Budget]:
        """Return the model of a cost and the target in its unit.

        If there is a table, the target for multiply-accumulates is the same share of the unpruned network as for
        latency.
        """
        amount = self.problem.target
        if cost == "latency" or not self.problem.table:
            return self.model, Budget.of(amount, self.model.unit)
        model = MacsModel(self.space)
        return model, Budget.of(amount * self.space.macs() / self.price(self.space.full_widths()).cost, model.unit)

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Create one optimizer for all weights, which freezes those of removed channels."""
        return [self.optimizer(network)]

    def optimizer(self, network: nn.Module, policy: Sequence[nn.Parameter] = (), policy_lr: float = 0.0) -> Optimizer:
        """Create an SGD optimizer for all weights, and for a policy with its own learning rate."""
        settings = self.settings
        optimizer = make_optimizer(
            network,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            policy=policy,
            policy_lr=policy_lr,
        )
        if hasattr(network, "masks"):
            policy_ids = {id(parameter) for parameter in policy}
            masks.hold_gone(optimizer, [weight for weight in network.parameters() if id(weight) not in policy_ids])
        return optimizer

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Train all weights on all samples with the task's loss, and in the search with the method's penalty."""
        (optimizer,) = optimizers
        batches = self.problem.task.training_batches(self.settings.batch, epoch.order)
        phase, steps = epoch.phase, len(batches)
        warmup = steps if phase.unpruned or (phase.name == "finetune" and self.settings.retrain == "scratch") else 0

        def factor(step: int) -> float:
            if phase.name == "search":
                return 1.0
            step += epoch.index * steps
            return schedule.factor(self.settings, step, epoch_steps=steps, epochs=phase.epochs, warmup=warmup)

        task_loss = self.problem.task.training_loss(self.settings, epoch.teacher)

        def loss(outputs: Tree, targets: Tree, inputs: Tensor) -> Tensor:
            penalty = self.penalty(network) if phase.name == "search" else None
            value = task_loss(outputs, targets, inputs)
            return value if penalty is None else value + penalty

        return [TrainingPart(optimizers=[optimizer], batches=batches, loss=loss, factor=factor)]

    def penalty(self, network: nn.Module) -> Tensor | None:
        """Return the penalty that a step of the search adds to the loss; None for none."""
        return None

    def choice(self) -> Choice:
        """Return the current widths."""
        return self.space.choice(self.widths)

    def shippable(self) -> Choice:
        """Return the current widths, rounded up to those that can ship."""
        return self.space.choice(round_up(self.widths, self.choices))

    def free_channels(self) -> dict[str, int]:
        """Return each group's number of free channels.

        Removing these, from that group alone, saves no cost.
        """
        free = free_channels(self.widths, self.choices, self.price)
        return {name: count for (name, _), count in zip(self.space.groups, free, strict=True)}

    def state(self) -> dict[str, Any]:
        """Return the widths."""
        return {"widths": list(self.widths)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the widths."""
        self.widths = tuple(state["widths"])

    def price(self, widths: Widths) -> Price:
        """Return the price of a network with these widths, in the unit of the budget."""
        return self.model.price(self.space.choice(widths))

    def _by_space(self, values: Sequence[T], of_whole: Callable[[int], T]) -> list[T]:
        """Extend values for the searched groups to all groups of the space.

        Excluded groups get `of_whole(full width)`.
        """
        named = dict(zip((group.name for group in self.groups), values, strict=True))
        return [named[name] if name in named else of_whole(full) for name, full in self.space.groups]


class Pruning(Narrowing[P]):
    """A method that removes channels of a trained network by their scores."""

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """Return the unpruned network, then the one from `searched`, then the masked one.

        The last has new weights if trained from scratch.
        """
        if phase.decides and trained is not None:
            trained = self.masked(trained, self.decided(trained))
        if phase.name == "finetune" and self.settings.retrain == "scratch":
            trained = None
        elif phase.decides and trained is not None:
            return trained
        if phase.unpruned:
            return trained or self.space.module()
        if phase.name == "search" and self.pruned_in == "finetune":
            return self.searched(trained or self.space.module())
        kept = masks.first_channels(self.space.groups, self.widths)  # the checkpoint restores the actual masks
        return trained or masks.mask(self.space.module(), self.problem.example, self.groups, kept)

    def searched(self, trained: nn.Module) -> nn.Module:
        """Return the network to search, if channels are removed after the search."""
        return trained

    def decided(self, network: nn.Module) -> dict[str, masks.Keep]:
        """Decide the widths that ship; return the kept channels of each group of the space."""
        scores = self._scored(network)
        self.widths = self.fitted(scores, self.kept(network, scores))
        names = [name for name, _ in self.space.groups]
        return {
            name: masks.top_channels(score, width)
            for name, score, width in zip(names, scores, self.widths, strict=True)
        }

    def masked(self, trained: nn.Module, kept: Mapping[str, masks.Keep]) -> nn.Module:
        """Return a trained network with masks for the groups that lose channels."""
        return masks.mask(trained, self.problem.example, self.groups, kept)

    @abstractmethod
    def scores(self, network: nn.Module) -> list[Scores]:
        """Return the scores of all channels of each prunable group."""

    def _scored(self, network: nn.Module) -> list[Tensor]:
        """Return the scores for every group of the space."""
        return self._by_space(self.scores(network), torch.ones)

    def kept(self, network: nn.Module, scores: Sequence[Tensor]) -> Widths:
        """Return the width of each group under the lowest common score threshold whose network is within the budget.

        Args:
            network: the network to prune.
            scores: its scores, for every group of the space.
        """
        return ranked_widths([to_list(score) for score in scores], self.choices, self.price, self.problem.budget)

    def fitted(self, scores: Sequence[Tensor], kept: Widths) -> Widths:
        """Return the widths that ship: the most valuable ones within the budget."""
        prices, budget = self.problem.block_prices(), self.problem.budget
        return fitting.fit(self.space, self.choices, self.values(scores, kept), prices, budget).widths

    def values(self, scores: Sequence[Tensor], kept: Widths) -> list[list[float]]:
        """Return the value of each width of each group: closeness to the proportions that the method keeps."""
        return fitting.proportional([max(1, count) for count in kept], self.choices, self.price, self.problem.budget)

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Record the current widths if channels are removed only after the search."""
        if epoch.phase.name == "search" and self.pruned_in == "finetune":
            self.widths = self.kept(network, self._scored(network))
        return {}


def _require_squeezable(network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> None:
    """Require that the pruned network can be fused and squeezed, before the training."""
    kept = {group.name: torch.arange(group.channels) < max(1, group.channels // 2) for group in groups}
    squeeze(fuse(masks.mask(network, example, groups, kept), example), example)


def _shippable(space: Prunable, settings: PruningSettings, searched: Set[str]) -> list[Widths]:
    """Return the widths of each group that settings and space allow; the full width is always included."""
    multiple, least = settings.channel_multiple, settings.min_channels

    def options(index: int, name: str, full: int) -> Widths:
        known = space.width_choices(index)
        if multiple % space.granularity:  # the table interpolates between measured widths
            known = (*range(known[0], full), full)
        return tuple(
            width for width in known if width == full or (width % multiple == 0 and width >= least and name in searched)
        )

    return [options(index, name, full) for index, (name, full) in enumerate(space.groups)]
