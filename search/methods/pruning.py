"""What methods of widths have in common: the unpruned network is trained, its widths are searched, what is left is trained on.

A `Narrowing` method says what network is searched. A `Pruning` one says what a channel is worth (`scores`), when channels go
(`pruned_in`), and what its search adds to the loss (`penalty`).
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reparam import ChannelGroup, fuse, squeeze
from search import masks, schedule
from search import widths as fitting
from search.budget import Budget, Price, free_channels, ranked_widths, round_up
from search.cost import CostModel, MacsModel
from search.errors import SearchError
from search.masks import Scores
from search.method import Epoch, Method, Phase, Problem
from search.methods.settings import PruningSettings
from search.space import Choice
from search.spaces import FREE_WIDTHS, WIDTHS, Widths, with_widths
from search.train import Part, make_optimizer

T = TypeVar("T")
P = TypeVar("P", bound=PruningSettings)


class Narrowing(Method[P]):
    """A method that ends with a narrower network of a space of widths.

    Args:
        settings: of the method.
        problem: over a space of widths.

    Raises:
        SearchError: nothing can be pruned, settings and space do not fit each other, or no widths are within the budget.
        CoverageError: the table does not cover the space.
        ReparamError: the network cannot be read, fused or squeezed; the node is named.
    """

    pruned_in: ClassVar[Literal["search", "finetune"]] = "finetune"
    """the phase that begins with the channels' going"""
    frees: ClassVar[bool] = False
    """layers that are added up may have widths of their own"""

    def __init__(self, settings: P, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.space = with_widths(problem.space, self.name)
        if self.space.free and not self.frees:
            other = self.space.name.replace(FREE_WIDTHS, WIDTHS)
            raise SearchError(f"{self.name} prunes layers that are added up together, unlike {self.space.name}: choose {other}")
        self.model = problem.model()
        with torch.random.fork_rng():
            network = self.space.module()
            self.space.join(network, None)
        self.groups = masks.prunable_groups(network, problem.example, settings.excluded)
        self.choices = self.width_choices()
        problem.require_reachable(self.smallest())
        _require_squeezable(network, problem.example, self.groups)
        self.widths = self.space.full_widths()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Pretraining of the unpruned network, search, fine-tuning."""
        settings, decides = self.settings, self.pruned_in
        return (
            Phase(name="pretrain", epochs=settings.pretrain_epochs, unpruned=True),
            Phase(name="search", epochs=settings.search_epochs, decides=decides == "search", batch_statistics=True),
            Phase(name="finetune", epochs=settings.finetune_epochs, decides=decides == "finetune", distils=True),
        )

    def width_choices(self) -> list[Widths]:
        """Of every group of the space the widths that can ship, ascending; the full one always can."""
        return _shippable(self.space, self.settings, {group.name for group in self.groups})

    def smallest(self) -> Choice:
        """The smallest network that the method can find."""
        return self.space.choice([options[0] for options in self.choices])

    def counted(self, cost: Literal["latency", "macs"]) -> tuple[CostModel, Budget]:
        """The model of a cost, and the target in its unit.

        Multiply-accumulates have no target of their own where a table is given: it is the same share of the unpruned network.
        """
        amount = self.problem.target
        if cost == "latency" or not self.problem.table:
            return self.model, Budget.of(amount, self.model.unit)
        model = MacsModel(self.space)
        return model, Budget.of(amount * self.space.macs() / self.price(self.space.full_widths()).cost, model.unit)

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """One of all weights, which holds those of channels that are gone."""
        return [self.optimizer(network)]

    def optimizer(self, network: nn.Module, policy: Sequence[nn.Parameter] = (), policy_lr: float = 0.0) -> Optimizer:
        """Stochastic gradient descent on all weights, and on a policy by a learning rate of its own."""
        settings = self.settings
        found = make_optimizer(
            network, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, policy=policy, policy_lr=policy_lr
        )
        if hasattr(network, "masks"):
            chosen = {id(parameter) for parameter in policy}
            masks.hold_gone(found, [weight for weight in network.parameters() if id(weight) not in chosen])
        return found

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[Part]:
        """All weights on all samples, towards the task's loss, and in the search towards the method's penalty."""
        (optimizer,) = optimizers
        batches = self.problem.task.training_batches(self.settings.batch, epoch.order)
        phase, steps = epoch.phase, len(batches)
        warmup = steps if phase.unpruned or (phase.name == "finetune" and self.settings.retrain == "scratch") else 0

        def factor(step: int) -> float:
            if phase.name == "search":
                return 1.0
            step += epoch.index * steps
            return schedule.factor(self.settings, step, epoch_steps=steps, epochs=phase.epochs, warmup=warmup)

        towards = self.problem.task.training_loss(self.settings, epoch.teacher)

        def loss(outputs: Any, targets: Any, inputs: Tensor) -> Tensor:
            added = self.penalty(network) if phase.name == "search" else None
            return towards(outputs, targets, inputs) if added is None else towards(outputs, targets, inputs) + added

        return [Part(optimizers=[optimizer], batches=batches, loss=loss, factor=factor)]

    def penalty(self, network: nn.Module) -> Tensor | None:
        """What a step of the search adds to the loss."""
        return None

    def choice(self) -> Choice:
        """The widths that the method has now."""
        return self.space.choice(self.widths)

    def shippable(self) -> Choice:
        """Those rounded up to ones that can ship."""
        return self.space.choice(round_up(self.widths, self.choices))

    def free_channels(self) -> dict[str, int]:
        """Channels that cost nothing, all other groups as they are."""
        free = free_channels(self.widths, self.choices, self.price)
        return {name: count for (name, _), count in zip(self.space.groups, free, strict=True)}

    def state(self) -> dict[str, Any]:
        """The widths."""
        return {"widths": list(self.widths)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with these widths."""
        self.widths = tuple(state["widths"])

    def price(self, widths: Widths) -> Price:
        """What a network of these widths costs, in the unit of the budget."""
        return self.model.price(self.space.choice(widths))

    def _by_space(self, values: Sequence[T], of_whole: Callable[[int], T]) -> list[T]:
        """A value for every group of the space, of those for the groups that are searched and one for those that are excluded."""
        named = dict(zip((group.name for group in self.groups), values, strict=True))
        return [named[name] if name in named else of_whole(full) for name, full in self.space.groups]


class Pruning(Narrowing[P]):
    """A method that removes channels of a trained network by what each is worth."""

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """Unpruned, then as `searched` makes it, then with masks behind the groups that lost channels; with new weights at last."""
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
        kept = masks.first(self.space.groups, self.widths)  # which channels they are is in the checkpoint
        return trained or masks.mask(self.space.module(), self.problem.example, self.groups, kept)

    def searched(self, trained: nn.Module) -> nn.Module:
        """The network that is searched, where its channels go later."""
        return trained

    def decided(self, network: nn.Module) -> dict[str, masks.Keep]:
        """Decide on the widths that ship; returns the channels that stay of each group of the space."""
        scores = self._scored(network)
        self.widths = self.fitted(scores, self.kept(network, scores))
        each = zip(self.space.groups, scores, self.widths, strict=True)
        return {name: masks.top(score, width) for (name, _), score, width in each}

    def masked(self, trained: nn.Module, kept: Mapping[str, masks.Keep]) -> nn.Module:
        """A trained network with masks behind the groups that lose channels."""
        return masks.mask(trained, self.problem.example, self.groups, kept)

    @abstractmethod
    def scores(self, network: nn.Module) -> list[Scores]:
        """What every channel of each prunable group is worth."""

    def _scored(self, network: nn.Module) -> list[Tensor]:
        """The scores for every group of the space."""
        return self._by_space(self.scores(network), torch.ones)

    def kept(self, network: nn.Module, scores: Sequence[Tensor]) -> Widths:
        """Channels of every group of the space that score at least the lowest threshold whose network is within the budget.

        Args:
            network: that is pruned.
            scores: of it, for every group of the space.
        """
        return ranked_widths([score.tolist() for score in scores], self.choices, self.price, self.problem.budget)

    def fitted(self, scores: Sequence[Tensor], kept: Widths) -> Widths:
        """The widths that ship: of those within the budget the ones that are worth most."""
        prices, budget = self.problem.block_prices(), self.problem.budget
        return fitting.fit(self.space, self.choices, self.values(scores, kept), prices, budget).widths

    def values(self, scores: Sequence[Tensor], kept: Widths) -> list[list[float]]:
        """What each width of each group is worth: closeness to the proportions of what the method keeps."""
        return fitting.proportional([max(1, count) for count in kept], self.choices, self.price, self.problem.budget)

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """While channels are still there: which ones would stay now."""
        if epoch.phase.name == "search" and self.pruned_in == "finetune":
            self.widths = self.kept(network, self._scored(network))
        return {}


def _require_squeezable(network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> None:
    """Say before the training, not after it, what cannot ship."""
    kept = {group.name: torch.arange(group.channels) < max(1, group.channels // 2) for group in groups}
    squeeze(fuse(masks.mask(network, example, groups, kept), example), example)


def _shippable(space: Any, settings: PruningSettings, searched: Set[str]) -> list[Widths]:
    """Of every group the widths that settings and space allow; the full one always is."""
    multiple, least = settings.channel_multiple, settings.min_channels

    def options(index: int, name: str, full: int) -> Widths:
        known = space.width_choices(index)
        if multiple % space.granularity:  # between widths that are measured, a table interpolates
            known = (*range(known[0], full), full)
        return tuple(width for width in known if width == full or (width % multiple == 0 and width >= least and name in searched))

    return [options(index, name, full) for index, (name, full) in enumerate(space.groups)]
