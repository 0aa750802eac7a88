"""VP-DARTS: validated pruning differentiable architecture search over cells.

A supernet runs every operation of every edge, weighted by raw alphas (Eq. 3). The importance of an operation is not its
alpha but the loss in quality on held-out images without it (Algorithm 1). So before each epoch, each operation is
removed in turn and the rest is validated; all but the most important one of each edge are then pruned softly: their
alphas shrink (Eq. 2) and may recover. After the last epoch, each is removed once more, and each edge keeps the one
whose removal hurts most, in the mean of all looks or, as printed, in the last.

The options of `VpDartsSettings` settle what the paper leaves open. Latency is our extension: if the largest cell
exceeds the budget, the expected cost of the alphas' shares is part of the loss, the faster of operations that validate
equally is kept, and the final cell is the one of highest total importance within the budget.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils._pytree import tree_map

from reparam.typed_torch import to_list
from search import options, schedule
from search.budget import Budget, BudgetController
from search.cost import cell_terms
from search.data import random_parts
from search.errors import SearchError
from search.method import Epoch, Method, Phase, Problem
from search.methods.settings import VpDartsSettings
from search.space import Choice
from search.spaces import with_cells
from search.spaces.cells import EDGES, NONE, OPTIONS, edge
from search.supernet import CellSupernet
from search.task import Tree
from search.train import TrainingPart, by_batch_statistics, evaluation, weight_groups

VALIDATION_BATCH = 200
FEW_IMAGES = 5_000
"""Number of validation images below which accuracy is too coarse to rank operations."""
WORST, TIE = -1e6, 1e-9
"""Score of a removed operation; score difference that breaks ties, below the rounding of scores."""
STAGED = (5, 3, 2)
"""Number of operations per edge in the three stages of progressive pruning."""

Damage = tuple[float, float]
"""How much a removal hurts: the criterion, then the tie-break."""


class VpDarts(Method[VpDartsSettings]):
    """Warm-up of the weights; validated pruning; training of the remaining cell (Section 3).

    Args:
        settings: settings of the method.
        problem: a problem over a space of cells.

    Raises:
        SearchError: the space has no cells, there are too few images, or no cell that connects input to output is
            within the budget.
        CoverageError: the table does not cover the space.
    """

    def __init__(self, settings: VpDartsSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.space = with_cells(problem.space, self.name)
        self.model = problem.model()
        self.price = cache(self.model.price)  # the fit prices many of the same cells after every epoch
        problem.require_reachable(self.space.smallest())
        self.limited = not problem.budget.holds(self.price(self.space.largest()))
        target = Budget.of(problem.target, self.model.unit)
        self.controller = BudgetController(target=target, weight=settings.latency_weight, rate=settings.latency_rate)
        self.costs = [self._cost_of(option) for option in OPTIONS]
        share = settings.validation_share
        fixed = torch.Generator().manual_seed(settings.seed)
        self.trained_rows, self.validation_rows = random_parts(len(problem.task.train), (1 - share, share), fixed)
        _require_images(settings, len(self.validation_rows), len(self.trained_rows))
        self.chosen = self.space.largest() if not self.limited else self.space.smallest()
        self.importance: list[list[float]] = []
        self.seen = 0.0
        self.best: float | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Warm-up, pruning, training of the chosen cell."""
        settings = self.settings
        return (
            Phase(name="warmup", epochs=settings.warmup_epochs, batch_statistics=True),
            Phase(name="prune", epochs=settings.prune_epochs, batch_statistics=True),
            Phase(name="train", epochs=settings.train_epochs, decides=True, distils=True),
        )

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """The supernet, then the network of the chosen cell."""
        if phase.decides:
            return self.space.module(self.chosen)
        network = trained if isinstance(trained, CellSupernet) else self._supernet()
        for cell in network.cells:
            cell.skip.p = self.settings.skip_dropout if phase.name == "warmup" else self.settings.prune_dropout
        return network

    def _supernet(self) -> CellSupernet:
        weigh: Callable[[Tensor], Tensor] = _softmax if self.settings.variant == "darts" else _raw
        start = {"darts": 0.0, "random": 1.0}.get(self.settings.variant, self.settings.alpha)
        return CellSupernet(self.space, alpha=start, weigh=weigh)

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Optimizers of the weights and, in the supernet, of the alphas."""
        settings, weights = self.settings, [value for name, value in network.named_parameters() if name != "alpha"]
        groups = weight_groups(weights, lr=settings.lr, weight_decay=settings.weight_decay)
        sgd = SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
        if not isinstance(network, CellSupernet):
            return [sgd]
        sgd.register_step_pre_hook(partial(_clip_gradients, weights, settings.clip))
        group = {"params": [network.alpha], "peak_lr": settings.alpha_lr, "scheduled": False}
        alphas = Adam([group], lr=settings.alpha_lr)
        if not settings.negative_alphas:
            alphas.register_step_post_hook(partial(_clamp, network.alpha))
        return [sgd, alphas]

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Run the variant's pruning, then train weights on the training images.

        Alphas are trained with them or on the validation images.
        """
        settings, task = self.settings, self.problem.task
        towards = task.training_loss(settings, epoch.teacher)
        if not isinstance(network, CellSupernet):
            batches = task.training_batches(settings.batch, epoch.order)
            return [
                TrainingPart(
                    optimizers=optimizers, batches=batches, loss=towards, factor=self._factor(epoch, len(batches))
                )
            ]
        rows = self.trained_rows
        if epoch.phase.name == "prune" and settings.prune_images < 1:
            (rows, *_) = random_parts(len(rows), (settings.prune_images, 1 - settings.prune_images), epoch.noise)
            rows = self.trained_rows[rows]
        if settings.variant == "random":
            self._draw_cell(epoch, network, optimizers[0])
        elif epoch.phase.name == "prune" and settings.variant != "darts":
            self._prune(epoch, network)
        batches = task.training_batches(settings.batch, epoch.order, rows)
        factor = self._factor(epoch, len(batches))

        def loss(outputs: Tree, targets: Tree, inputs: Tensor) -> Tensor:
            return towards(outputs, targets, inputs) + self._penalty(network)

        trains_alphas = settings.variant == "darts" or (epoch.phase.name == "prune" and settings.variant != "random")
        weights, alphas = optimizers
        if not trains_alphas:
            return [TrainingPart(optimizers=[weights], batches=batches, loss=towards, factor=factor)]
        if settings.split == "one-level" and settings.variant != "darts":
            return [TrainingPart(optimizers=[weights, alphas], batches=batches, loss=loss, factor=factor)]
        validation_batches = task.training_batches(settings.batch, epoch.order, self.validation_rows)
        return [
            TrainingPart(optimizers=[weights], batches=batches, loss=towards, factor=factor),
            TrainingPart(optimizers=[alphas], batches=validation_batches, loss=loss, factor=factor),
        ]

    def _factor(self, epoch: Epoch, steps: int) -> Callable[[int], float]:
        """Return the learning-rate factor.

        One schedule over warm-up and pruning or each random cell, another over the final training.
        """
        settings, done, epochs = self.settings, epoch.index, epoch.phase.epochs
        if not epoch.phase.decides:
            done, epochs = self._index(epoch), settings.warmup_epochs + settings.prune_epochs
            if settings.variant == "random":
                done, epochs = done % settings.random_epochs, settings.random_epochs
        warmup = steps if epoch.phase.decides else 0
        return lambda step: schedule.factor(
            settings, step + done * steps, epoch_steps=steps, epochs=epochs, warmup=warmup
        )

    def _index(self, epoch: Epoch) -> int:
        """Return the index of an epoch from the start of the warm-up."""
        return epoch.index + (self.settings.warmup_epochs if epoch.phase.name == "prune" else 0)

    # Soft pruning

    @torch.no_grad()
    def _prune(self, epoch: Epoch, network: CellSupernet) -> None:
        """Validate every operation, then shrink the alphas of all but the best one per edge (Eq. 2).

        Or remove them for good.
        """
        settings, last = self.settings, epoch.phase.epochs
        if settings.variant in ("hard", "progressive"):
            before, left = self._kept_count(epoch.index - 1, last), self._kept_count(epoch.index, last)
            if left < before:
                ranked = self._ranked(network, settings.subset, epoch.noise)
                for index, order in enumerate(ranked):
                    for option in order[left:]:
                        network.kept[index, option] = False
            return
        k = last if settings.variant == "fixed" else epoch.index + settings.first_k
        for index, order in enumerate(self._ranked(network, settings.subset, epoch.noise)):
            for option in order[1:]:
                start = network.alpha[index, option] if settings.alpha_0 == "current" else settings.alpha
                network.alpha[index, option] = start * (1 - k / last)

    def _kept_count(self, index: int, epochs: int) -> int:
        """Return the number of operations that hard pruning leaves on an edge in an epoch."""
        if index < 0:
            return STAGED[0]
        return 1 if self.settings.variant == "hard" else STAGED[min(index * len(STAGED) // epochs, len(STAGED) - 1)]

    # Algorithm 1

    def _ranked(self, network: CellSupernet, share: float, draw: torch.Generator) -> list[list[int]]:
        """Return the remaining options of each edge, the most important in this look first.

        Their importance is remembered.
        """
        damages = self._damages(network, share, draw)
        self._update_importance([[damage[0] for damage in row] for row in damages], share)
        ranked: list[list[int]] = []
        for index, row in enumerate(damages):
            kept = [option for option in range(len(OPTIONS)) if network.kept[index, option]]
            ranked.append(sorted(kept, key=lambda option: (*row[option], self._tie_break(option)), reverse=True))
        self.chosen = self._best_cell()
        return ranked

    def _update_importance(self, look: list[list[float]], share: float) -> None:
        """Update the importance of each option.

        The mean of all looks, weighted by their share of the images, or only the last look.

        Looks differ in the images and in the state of the network, so their mean is more reliable than any single one;
        a common offset of all removals of a look affects every cell equally. Alphas are trained rather than validated,
        so only the last ones count.
        """
        if self.seen and self.settings.looks == "all" and self._validates:
            part = share / (self.seen + share)
            pairs = [zip(old, new, strict=True) for old, new in zip(self.importance, look, strict=True)]
            look = [[new if math.isinf(new) else old + part * (new - old) for old, new in row] for row in pairs]
        self.importance, self.seen = look, self.seen + share

    def _tie_break(self, option: int) -> tuple[float, int]:
        """Return the tie-break for equal importance.

        The cheaper operation is less important, or more if a budget binds.
        """
        sign = -1 if self.limited else 1
        return sign * self.costs[option], sign * option

    @torch.no_grad()
    def _damages(self, network: CellSupernet, share: float, draw: torch.Generator) -> list[list[Damage]]:
        """Return how much each removal hurts on a new random share of the validation images.

        The alphas, if they are the criterion.
        """
        if not self._validates:
            alphas: list[list[float]] = to_list(network.alpha.masked_fill(~network.kept, -torch.inf))
            return [[(value, 0.0) for value in row] for row in alphas]
        (looked_at, *_) = random_parts(len(self.validation_rows), (share, 1 - share) if share < 1 else (1.0,), draw)
        rows = self.validation_rows[looked_at]
        base, damages = self._validate(network, rows), list[list[Damage]]()
        for index in range(len(EDGES)):
            damages.append([self._damage_without(network, index, option, rows, base) for option in range(len(OPTIONS))])
        return damages

    def _damage_without(self, network: CellSupernet, index: int, option: int, rows: Tensor, base: Damage) -> Damage:
        """Validate the network without one candidate; removing `none` changes nothing."""
        if not network.kept[index, option]:
            return -torch.inf, -torch.inf
        if OPTIONS[option] == NONE:
            return base if self.settings.zeroize == "candidate" else (-torch.inf, -torch.inf)
        places = [None] if self.settings.removal == "edge" else network.cells
        damages: list[Damage] = []
        for cell in places:
            with network.without(index, option, cell=cell):
                damages.append(self._validate(network, rows))
        return sum(first for first, _ in damages) / len(damages), sum(second for _, second in damages) / len(damages)

    def _validate(self, network: CellSupernet, rows: Tensor) -> Damage:
        """Return metric and loss, the criterion first; higher is worse."""
        task = self.problem.task
        device = network.alpha.device
        batch = max(1, len(rows) // max(1, round(len(rows) / VALIDATION_BATCH)))
        was_training = network.training
        network.eval()
        batches = task.plain_batches(
            batch, rows[: len(rows) // batch * batch]
        )  # a smaller batch would have other statistics
        with by_batch_statistics(network) if self.settings.norms == "batch" else contextlib.nullcontext():
            evaluated = evaluation(network, (tree_map(partial(_moved_to, device), batch) for batch in batches), task)
        network.train(was_training)
        worse = -task.metric.gain(evaluated.score)
        return (evaluated.loss, worse) if self.by_loss else (worse, evaluated.loss)

    @property
    def _validates(self) -> bool:
        """Whether importance is measured by removal, not by alpha."""
        return self.settings.criterion == "validation" and self.settings.variant != "darts"

    @property
    def by_loss(self) -> bool:
        """Whether importance is measured by loss."""
        kind = self.settings.importance
        return kind == "loss" or (kind == "auto" and len(self.validation_rows) < FEW_IMAGES)

    def _best_cell(self) -> Choice:
        """Return the cell of highest total importance that connects input to output and is within the budget."""
        order = sorted(range(len(OPTIONS)), key=self._tie_break)
        scores = {
            edge(*ends): {
                name: max(row[option], WORST) + TIE * order.index(option) for option, name in enumerate(OPTIONS)
            }
            for ends, row in zip(EDGES, self.importance, strict=True)
        }
        return options.fit(self.space, scores, self.price, self.problem.budget if self.limited else None).choice

    def _allowed(self, choice: Choice) -> bool:
        return self.space.connected(choice) and (not self.limited or self.problem.budget.holds(self.price(choice)))

    # Baselines

    def _draw_cell(self, epoch: Epoch, network: CellSupernet, optimizer: Optimizer) -> None:
        """Draw another cell with new weights every few epochs, for random search."""
        if self._index(epoch) % self.settings.random_epochs:
            return
        while True:
            picks = torch.randint(len(OPTIONS), (len(EDGES),), generator=epoch.noise)
            if self._allowed(self._choice(picks)):
                break
        network.kept.zero_()
        network.kept[torch.arange(len(EDGES)), picks] = True
        network.body.load_state_dict(self._supernet().body.state_dict())
        optimizer.state.clear()

    def _choice(self, picks: Tensor) -> Choice:
        indices: list[int] = to_list(picks)
        return self.space.of(OPTIONS[index] for index in indices)

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Return every alpha and importance; after the last epoch of pruning, take the last look, which decides."""
        if not isinstance(network, CellSupernet):
            return {}
        settings, last = self.settings, epoch.phase.name == "prune" and epoch.index + 1 == epoch.phase.epochs
        if settings.variant == "random":
            return self._ended_random(epoch, network, last=last)
        if settings.variant == "darts" or last:
            self._ranked(network, settings.final_subset, epoch.noise)
        figures = {
            f"alpha.{edge(*ends)}.{name}": value for (ends, name), value in _by_operation(to_list(network.alpha))
        }
        figures |= {
            f"worth.{edge(*ends)}.{name}": value
            for (ends, name), value in _by_operation(self.importance)
            if value > -torch.inf
        }
        return figures | ({"latency_weight": self.controller.weight} if self.limited else {})

    @torch.no_grad()
    def _ended_random(self, epoch: Epoch, network: CellSupernet, *, last: bool) -> dict[str, float]:
        if (self._index(epoch) + 1) % self.settings.random_epochs and not last:
            return {}
        worse, _ = self._validate(network, self.validation_rows)
        if self.best is None or worse < self.best:
            self.best, self.chosen = worse, self._choice(network.kept.int().argmax(1))
        return {"validation": worse}

    # Latency

    def _penalty(self, network: CellSupernet) -> Tensor:
        """Return the weighted squared relative excess of the expected cost; 0 if no cell exceeds the budget."""
        if not self.limited:
            return torch.zeros((), device=network.alpha.device)
        cost = self.model.expected(cell_terms(self.model, self.space, self._shares(network)))
        error = cost / self.controller.target.amount - 1
        self.controller.update(cost.item())
        return self.controller.weight * error.clamp(min=0) ** 2

    def _shares(self, network: CellSupernet) -> Tensor:
        """Return the shares of each edge's options: normalised magnitudes of alphas, or their softmax."""
        if self.settings.variant == "darts":
            return network.alpha.softmax(1)
        sizes = network.alpha.masked_fill(~network.kept, 0.0).abs()
        return sizes / sizes.sum(1, keepdim=True).clamp(min=1e-9)

    def _cost_of(self, option: str) -> float:
        """Return the cost of one operation in every stage, without sums."""
        sure = torch.ones(1, dtype=torch.float64)
        blocks = [self.space.candidates(stage)[option] for stage in range(len(self.space.shapes()))]
        return float(self.model.expected([self.model.over([block], sure) for block in blocks]))

    # What is decided

    def choice(self) -> Choice:
        """The cell that would be chosen now."""
        return self.chosen

    def state(self) -> dict[str, Any]:
        """The choice, the importance of each operation, and the weight of the latency."""
        finite_rows = [[None if value == -torch.inf else value for value in row] for row in self.importance]
        return {
            "options": dict(self.chosen.options),
            "worth": finite_rows,
            "seen": self.seen,
            "weight": self.controller.weight,
            "best": self.best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        self.chosen, self.controller.weight, self.best = (
            Choice(options=dict(state["options"])),
            state["weight"],
            state["best"],
        )
        self.importance = [[-torch.inf if value is None else value for value in row] for row in state["worth"]]
        self.seen = state["seen"]


def _by_operation(rows: Sequence[Sequence[float]]) -> Iterator[tuple[tuple[tuple[int, int], str], float]]:
    for ends, row in zip(EDGES, rows, strict=False):
        for name, value in zip(OPTIONS, row, strict=True):
            yield (ends, name), value


def _raw(alpha: Tensor) -> Tensor:
    return alpha


def _softmax(alpha: Tensor) -> Tensor:
    return alpha.softmax(1)


def _moved_to(device: torch.device, tensor: Tensor) -> Tensor:
    return tensor.to(device)


def _clip_gradients(weights: Sequence[nn.Parameter], norm: float, *_: object) -> None:
    nn.utils.clip_grad_norm_(weights, norm)


def _clamp(alpha: nn.Parameter, *_: object) -> None:
    alpha.data.clamp_(min=0)


def _require_images(settings: VpDartsSettings, validation: int, trained: int) -> None:
    """Require enough images for every look."""
    for share, flag in ((settings.subset, "--subset"), (settings.final_subset, "--final-subset")):
        if round(validation * share) < 1:
            raise SearchError(f"{flag} {share:g} of {validation} validation images is none: give a larger share")
    if validation < settings.batch:
        raise SearchError(
            f"{validation} images validate, fewer than a batch of {settings.batch}: give a larger --validation-share "
            "or a smaller --batch"
        )
    if round(trained * settings.prune_images) < 1:
        raise SearchError(f"--prune-images {settings.prune_images:g} of {trained} images is none: give a larger share")
