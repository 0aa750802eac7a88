"""Transformable Architecture Search (Dong and Yang 2019).

Learned distributions over widths of layers and depths of stages.

At every step, each layer draws a few widths; their outputs are interpolated to the widest and added with weights that
carry the distribution's gradient. Each stage mixes the outputs of all its depths. Weights are trained on one half of
the images and, in turns, distributions on the other. The chosen network is then trained, by default from new weights
with the unpruned network as its teacher.

What the paper leaves open, or its cost term does not reach, is settled as follows. Layers that are added draw a common
width. In a space such as resnet20/free-widths each draws its own: the search adds the channels that two widths share,
like the authors' code, and the chosen network has a 1x1 convolution on the shortcut. Eq. 8 compares the most probable
network's cost, F, but moves the expected cost, E, and the two differ by up to a fifth of the target while distributions
are flat. So by default E follows an aim, which is adapted until F meets the target, and the entropy of the
distributions is minimised (`penalty="banded"` and `"paper"`: Eq. 8 with log(E / R) and with log E, which differ in
value but not in gradient). A single block may cost more than the tolerance, so that F would cross the target for ever;
the last epochs therefore ignore the cost and drive the distributions to the network that was derived at their start.
The most probable network may miss the budget by a channel; the chosen one has exactly the most probable sizes within it
(`derive="argmax"`: the paper's).
"""

import contextlib
import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from reparam.modules import named_modules
from reparam.typed_torch import to_list
from search import schedule
from search import widths as fitting
from search.budget import BudgetController, Price
from search.cost import DrawnWidths, Scalar
from search.data import random_parts
from search.errors import SearchError
from search.method import Epoch, Phase, Problem
from search.methods.pruning import Narrowing
from search.methods.settings import TasSettings
from search.sized_network import DepthPart, Sampling, SizedNetwork, WidthPart
from search.space import Choice
from search.spaces import Widths
from search.task import Tree
from search.train import TrainingPart

RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Widths that a layer draws from, as shares of its full width (Section 4.1)."""
BETAS = (0.5, 0.999)
"""Adam's betas for the distributions, as in the authors' code."""
DECIDED = 0.6
"""Share of a controlled search after which the distributions are driven to the network derived from them."""


class Tas(Narrowing[TasSettings]):
    """Pretraining; search of sizes; training of the chosen network (Algorithm 1)."""

    frees = True

    def __init__(self, settings: TasSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.depths = self.space.full_depths()
        self.costs, target = self.counted(settings.cost)
        self.controller = BudgetController(target=target, weight=1.0, rate=settings.aim_rate)
        sites, self._conditions = zip(*self.space.conditional_sites(), strict=True)
        self.drawn = DrawnWidths(self.costs, sites, self.choices, self._conditions)
        self._sides: list[int] = []
        self._decided: Choice | None = None
        self._prices: dict[Choice, float] = {}

    # The space of sizes

    @property
    def _searches_widths(self) -> bool:
        return self.settings.searched != "depths"

    @property
    def _searches_depths(self) -> bool:
        return self.settings.searched in ("both", "depths") or (
            self.settings.searched == "auto" and bool(self.space.stages)
        )

    def width_choices(self) -> list[Widths]:
        """Return the multiples of `channel_multiple` nearest to the shares of each group's width.

        Raises:
            SearchError: a layer has only one option, or fewer than a step samples; names the layer.
        """
        allowed = super().width_choices()
        if self._searches_widths:
            allowed = [
                tuple(sorted({min(o, key=lambda width: abs(width - share * o[-1])) for share in RATIOS}))
                for o in allowed
            ]
        else:
            allowed = [options[-1:] for options in allowed]
        self._require_options(allowed)
        return allowed

    def depth_choices(self) -> dict[str, Widths]:
        """Return the depths that each stage draws from, ascending, including its full depth."""
        if not self._searches_depths:
            return {name: (depth,) for name, depth in self.space.full_depths().items()}
        step = 2 if self.settings.depth_options == "odd" else 1
        return {
            name: tuple(sorted({*range(1, depth, step), depth})) for name, depth in self.space.full_depths().items()
        }

    def smallest(self) -> Choice:
        """Return the network of the smallest width of every group and the smallest depth of every stage."""
        depths = {name: options[0] for name, options in self.depth_choices().items()}
        return self.space.choice([options[0] for options in self.choices], depths)

    def _require_options(self, choices: Sequence[Widths]) -> None:
        settings, searched = self.settings, {group.name for group in self.groups}
        if self._searches_depths and not self.space.stages:
            raise SearchError(
                f"--searched {settings.searched}: no stage of {self.space.name} can lose a block; give --searched "
                "widths, "
                "or a space such as resnet20/widths"
            )
        layers = [
            (name, options) for (name, _), options in zip(self.space.groups, choices, strict=True) if name in searched
        ]
        for name, options in layers if self._searches_widths else ():
            if len(options) == 1:
                raise SearchError(
                    f"layer {name} has one option, {options[0]} channels, at --channel-multiple "
                    f"{settings.channel_multiple} and "
                    f"--min-channels {settings.min_channels}: give lower ones, or --exclude {name}"
                )
            if settings.weights == "sample" and settings.samples > len(options):
                listed = ", ".join(map(str, options))
                raise SearchError(
                    f"--samples {settings.samples} is above the number of options of layer {name}, {len(options)} "
                    f"({listed})"
                )

    # Phases

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """The unpruned network, then that of sampled sizes, then the chosen one."""
        if phase.unpruned:
            return trained or self.space.module()
        if phase.name == "search":
            return self._sized(trained)
        if trained is None:
            return self.space.module(self.choice())
        assert isinstance(trained, SizedNetwork)
        self._decide(self.derived(trained))
        network = self.space.module(self.choice())
        if self.settings.retrain == "finetune":
            learned = trained.released().state_dict()
            network.load_state_dict({name: learned.get(name, value) for name, value in network.state_dict().items()})
        return network

    def _sized(self, trained: nn.Module | None) -> SizedNetwork:
        settings = self.settings
        network = trained if trained is not None and settings.start == "unpruned" else self.space.module()
        options = {name: widths for (name, _), widths in zip(self.space.groups, self.choices, strict=True)}
        modules_by_name = dict(named_modules(network))
        widths = [
            WidthPart(
                group.name,
                group.channels,
                tuple(layer for layer in group.producers if layer in modules_by_name),
                options[group.name],
            )
            for group in (self.groups if self._searches_widths else ())
        ]
        modules = {stage.name: tuple(block.module for block in stage.blocks) for stage in self.space.stages}
        output_groups = (
            {stage.name: self.space.output_groups(stage) for stage in self.space.stages} if self.space.free else {}
        )
        depths = [
            DepthPart(name, modules[name], depth_options, output_groups.get(name, ()))
            for name, depth_options in self.depth_choices().items()
            if len(depth_options) > 1
        ]
        sampling = Sampling(
            settings.samples,
            interpolate=settings.interpolate,
            sample=settings.weights == "sample",
            each_norm=settings.norms == "each",
        )
        return SizedNetwork(network, widths, depths, self.problem.example, sampling)

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Optimizers of the weights and, during the search, of the distributions."""
        if not isinstance(network, SizedNetwork):
            return super().optimizers(phase, network)
        settings = self.settings
        group = {"params": network.logits(), "peak_lr": settings.architecture_lr, "scheduled": False}
        decay = settings.architecture_weight_decay
        return [
            self.optimizer(network.network),
            Adam([group], lr=settings.architecture_lr, betas=BETAS, weight_decay=decay),
        ]

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Train weights on their images and, in turns, distributions on the others.

        The split is the same in every epoch.
        """
        if not isinstance(network, SizedNetwork):
            return super().parts(epoch, network, optimizers)
        settings, task, share = self.settings, self.problem.task, self.settings.validation_share
        rows, others = random_parts(len(task.train), (1 - share, share), torch.Generator().manual_seed(settings.seed))
        batches, validation = (task.training_batches(settings.batch, epoch.order, part) for part in (rows, others))
        steps, architecture_steps = len(batches), len(validation)
        each = steps + architecture_steps
        network.taken = epoch.index * each
        network.temperature = lambda taken: self.tau(taken / (epoch.phase.epochs * each))
        turn = itertools.count(epoch.index * architecture_steps)
        self._sides = []
        late = (
            settings.penalty == "controlled"
            and settings.cost_weight > 0
            and epoch.index >= DECIDED * epoch.phase.epochs
        )
        self._decided = self.derived(network) if late else None

        def loss(outputs: Tree, targets: Tree, _: Tensor) -> Tensor:
            progress = next(turn) / (epoch.phase.epochs * architecture_steps)
            return task.loss(outputs, targets) + self.penalty_of(network, progress)

        def factor(step: int) -> float:
            return schedule.factor(settings, step + epoch.index * steps, epoch_steps=steps, epochs=epoch.phase.epochs)

        weights, architecture = optimizers
        return [
            TrainingPart(optimizers=[weights], batches=batches, loss=task.training_loss(settings, None), factor=factor),
            TrainingPart(optimizers=[architecture], batches=validation, loss=loss, factor=lambda _: 1.0),
        ]

    def tau(self, progress: float) -> float:
        """Return the temperature after a share of the search."""
        settings = self.settings
        passed = (
            progress if settings.tau_schedule == "linear" else 1 - schedule.cosine(round(progress * 10**6), 10**6, 0)
        )
        return settings.tau + (settings.tau_final - settings.tau) * passed

    # Cost

    def shares(self, network: SizedNetwork) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the probabilities of the widths of every group and of the depths of every stage, with gradient."""
        by_group = {part.name: sizes.shares() for part, sizes in network.width_sizes()}
        widths = [by_group.get(name, torch.ones(1)) for name, _ in self.space.groups]
        return widths, {stage.name: sizes.shares() for stage, sizes in network.depth_sizes()}

    def expected(self, network: SizedNetwork) -> Scalar:
        """Return E: the mean cost of networks drawn from the distributions, in the unit of the penalty's cost."""
        widths, depths = self.shares(network)
        options, present = self.depth_choices(), dict[Hashable, Scalar]()
        for condition in filter(None, set(self._conditions)):
            stage, running = condition
            present[condition] = depths.get(stage, torch.ones(1))[[depth in running for depth in options[stage]]].sum()
        return self.drawn.expected(widths, present)

    def most_probable(self, network: SizedNetwork) -> Choice:
        """Return A: the most probable width of each group and depth of each stage."""
        best = {part.name: sizes.best for part, sizes in network.width_sizes()}
        depths = {stage.name: sizes.best for stage, sizes in network.depth_sizes()}
        return self.space.choice([best.get(name, full) for name, full in self.space.groups], depths)

    def cost_of(self, choice: Choice) -> float:
        """Return F: the cost of one network, in the unit of the penalty's cost."""
        if choice not in self._prices:
            self._prices[choice] = float(self.costs.price(choice).cost)
        return self._prices[choice]

    def penalty_of(self, network: SizedNetwork, progress: float) -> Scalar:
        """Return the weighted cost term of Eq. 7 plus the entropy term.

        Once a network is decided on, its negative log probability.
        """
        settings, target = self.settings, self.controller.target.amount
        best_cost = self.cost_of(self.most_probable(network))
        self._sides.append(int(math.copysign(abs(best_cost - target) > 0, best_cost - target)))
        if self._decided:
            return -settings.entropy * self._log_probability(network, self._decided)
        expected = self.expected(network)
        on_target = abs(best_cost / target - 1) <= settings.tolerance
        if settings.penalty != "controlled":
            cost = banded(
                expected / (1.0 if settings.penalty == "paper" else target), best_cost / target, settings.tolerance
            )
        elif on_target or not settings.cost_weight:
            cost = 0.0 * expected
        else:
            self.controller.update(best_cost)
            cost = (expected * self.controller.weight / target).log() ** 2
        return settings.cost_weight * cost + settings.entropy * self._entropy(network, progress, on_target=on_target)

    def _entropy(self, network: SizedNetwork, progress: float, *, on_target: bool) -> Scalar:
        """Return the entropy term, which drives each distribution to one size.

        First depths, of coarse cost steps, then widths.
        """
        widths, depths = (
            [distribution.entropy() for _, distribution in sizes]
            for sizes in (network.width_sizes(), network.depth_sizes())
        )
        total = torch.zeros(())
        if depths:
            total = total + min(1.0, (2 * progress) ** 2) * torch.stack(depths).mean()
        if widths and (on_target or not self.settings.cost_weight):
            total = total + progress**2 * torch.stack(widths).mean()
        return total

    def _log_probability(self, network: SizedNetwork, choice: Choice) -> Scalar:
        """Return the log probability of drawing a network; groups that it lacks may have any width."""
        widths = [
            (sizes, choice.widths[part.name]) for part, sizes in network.width_sizes() if part.name in choice.widths
        ]
        depths = [(sizes, choice.depths[stage.name]) for stage, sizes in network.depth_sizes()]
        return torch.stack(
            [sizes.logits.log_softmax(0)[sizes.options.index(size)] for sizes, size in (*widths, *depths)]
        ).sum()

    # The chosen network

    def derived(self, network: SizedNetwork) -> Choice:
        """Return the most probable network within the budget that leaves no more of it unused than the tolerance."""
        if self.settings.derive == "argmax":
            return self.most_probable(network)
        shares, depth_shares = self.shares(network)
        depths = self._depths_within(depth_shares)
        values: list[list[float]] = [to_list(share.detach().log().clamp(min=-1e6)) for share in shares]
        space, prices = self.space.at_depths(depths), self.problem.block_prices()
        fit = partial(fitting.fit, space, self.choices, values, prices, self.problem.budget)
        best = fit()
        for slack in (1.0, 0.5, 0.25):  # the program uses the upper ends of the blocks' intervals
            if self._price(best.widths, depths).cost >= self._least:
                break
            with contextlib.suppress(SearchError):  # the options are too coarse
                best = fit(least=self.problem.budget.amount * (1 - slack * self.settings.tolerance))
        return self.space.choice(best.widths, depths)

    @property
    def _least(self) -> float:
        """The lowest cost of a network that leaves no more of the budget unused than the tolerance."""
        return self.problem.target * (1 - self.settings.tolerance)

    def _depths_within(self, shares: Mapping[str, Tensor]) -> dict[str, int]:
        """Return the most probable depths whose widths can meet the budget.

        If none can, those that leave the least of it unused.
        """
        narrowest, widest = ([options[end] for options in self.choices] for end in (0, -1))
        nearest: tuple[float, dict[str, int]] = 0.0, {}
        for depths in self._depths_by_probability(shares):
            if self.problem.budget.holds(self._price(narrowest, depths)):
                nearest = max(nearest, (self._price(widest, depths).cost, depths), key=lambda each: each[0])
                if nearest[0] >= self._least:
                    break
        return nearest[1]

    def _depths_by_probability(self, shares: Mapping[str, Tensor]) -> list[dict[str, int]]:
        options = self.depth_choices()
        logs: dict[str, list[float]] = {
            name: to_list(shares[name].detach().log()) if name in shares else [0.0] for name in options
        }
        combinations = itertools.product(*(zip(logs[name], depths, strict=True) for name, depths in options.items()))
        ranked = sorted(combinations, key=lambda combination: -sum(log for log, _ in combination))
        return [dict(zip(options, (depth for _, depth in combination), strict=True)) for combination in ranked]

    def _price(self, widths: Sequence[int], depths: Mapping[str, int]) -> Price:
        return self.model.price(self.space.choice(widths, depths))

    # What is decided

    def _decide(self, choice: Choice) -> None:
        self.widths, self.depths = self.space.widths(choice), choice.depths

    def price(self, widths: Widths) -> Price:
        """Return the price of the network of the given widths at the present depths, in the unit of the budget."""
        return self._price(widths, self.depths)

    def choice(self) -> Choice:
        """Return the present network."""
        return self.space.choice(self.widths, self.depths)

    def shippable(self) -> Choice:
        """Return the present network: every size that is drawn can ship."""
        return self.choice()

    def free_channels(self) -> dict[str, int]:
        """Return the number of channels that cost nothing, of each group in the present network."""
        return {name: count for name, count in super().free_channels().items() if name in self.choice().widths}

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Return distributions, costs, and how often the most probable network crossed the target.

        Costs are the expected one and that of the most probable network.
        """
        if not isinstance(network, SizedNetwork):
            return {}
        self._decide(self.most_probable(network))
        with torch.no_grad():
            figures = {"expected": float(self.expected(network)), "most_probable": self.cost_of(self.choice())}
        figures |= {
            "aim": self.controller.target.amount / self.controller.weight,
            "crossings": float(crossings(self._sides)),
        }
        gaps: list[float] = []
        for part, sizes in (*network.width_sizes(), *network.depth_sizes()):
            shares: list[float] = to_list(sizes.shares())
            figures |= {f"p.{part.name}.{option}": share for option, share in zip(sizes.options, shares, strict=True)}
            most, next_most = sorted(shares)[:-3:-1]
            gaps.append(most - next_most)
        return figures | {"gap": sum(gaps) / len(gaps)}

    def state(self) -> dict[str, Any]:
        """Widths, depths and the aim."""
        return super().state() | {"depths": self.depths, "aim": self.controller.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        super().restore(state)
        self.depths, self.controller.weight = dict(state["depths"]), state["aim"]


def banded(expected: Scalar, ratio: float, tolerance: float) -> Scalar:
    """Return the cost term of Eq. 8: log of the expected cost above the band, its negative below, and 0 within.

    Args:
        expected: E in any unit, which does not affect the gradient.
        ratio: F / R, cost of the most probable network as a share of the target.
        tolerance: t, half the width of the band.
    """
    if ratio > 1 + tolerance:
        return expected.log()
    return -expected.log() if ratio < 1 - tolerance else 0.0 * expected


def crossings(sides: Sequence[int]) -> int:
    """Return the number of sign changes in a sequence of 1 and -1, ignoring 0."""
    nonzero = [side for side in sides if side]
    return sum(one != other for one, other in itertools.pairwise(nonzero))
