"""PRUNET: latency-aware tiered pruning of a supernet of blocks.

Source: "Tiered Pruning for Efficient Differentiable Inference-Aware Neural Architecture Search", 2022, whose sections
are cited below. After a warm-up of the weights, weights and architecture weights are trained in turns, with three kinds
of pruning: the two candidates of each Prunode converge to a hidden width (3.2.1), blocks whose probability is below a
rising threshold are removed (3.2.2), and a skip block replaces the penultimate block of a layer that can be skipped
(3.2.3). The remaining network is trained from scratch.

The options of `PrunetSettings` settle what the paper leaves open. Two extensions are ours: if a budget binds, alpha is
adapted so that the expected cost approaches it over the search, and `search.layer_fit` fits the network to it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from reparam.typed_torch import to_list
from search import layer_fit, ops, prunode, schedule
from search.blocks import trained as trained_block
from search.budget import Budget, BudgetController
from search.classification import Classification
from search.data import random_parts
from search.errors import SearchError
from search.layered_supernet import LayeredSupernet, LayerState
from search.method import Epoch, Method, Phase, Problem
from search.methods.settings import PrunetSettings
from search.space import Choice
from search.spaces import with_layers
from search.spaces.layered import SKIP, Layered, StochasticLayer
from search.task import Task, Tree
from search.train import TrainingPart, weight_groups

RMSPROP_ALPHA, RMSPROP_EPS, RMSPROP_MOMENTUM = 0.9, 1e-3, 0.9
"""The usual values for such networks (Tan and Le 2019). With torch's default eps of 1e-8, weights without a gradient,
such as those of masked channels, would decay at the full rate."""
LEAST_COST = 2.0
"""Lower bound on the cost in the logarithm, whose power has no gradient at 1."""


class Prunet(Method[PrunetSettings]):
    """Warm-up of the weights; search; training of the chosen network (Section 3.2).

    Args:
        settings: settings of the method.
        problem: a problem over a layered space.

    Raises:
        SearchError: the space is not layered or cannot be searched with these settings, or no network is within the
            budget.
        CoverageError: the table does not cover every block of the space.
    """

    def __init__(self, settings: PrunetSettings, problem: Problem) -> None:
        super().__init__(settings, problem)
        self.space = with_layers(problem.space, self.name)
        self.searched = _restricted(self.space, settings)
        _require_sound(self.searched, settings)
        self.model = problem.model()
        for limit, block in itertools.product(problem.limits, self.space.blocks()):
            limit.table.lookup(block)
        problem.require_reachable(self.space.smallest())
        self.limited = not problem.budget.holds(self.model.price(self.space.largest()))
        target = Budget.of(problem.target, self.model.unit)
        self.controller = BudgetController(target=target, weight=settings.alpha, rate=settings.alpha_rate)
        self.proxy = _proxy(settings, self.problem.task)
        self.chosen = self.space.largest()
        self.layers: dict[str, LayerState] = {}
        self._progress: Callable[[], float] = float
        self._losses: list[float] = []
        self._optimizers: list[Optimizer] = []

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Warm-up, search, training of the chosen network."""
        settings = self.settings
        return (
            Phase(name="warmup", epochs=settings.warmup_epochs, shared=True, batch_statistics=True),
            Phase(name="search", epochs=settings.search_epochs, batch_statistics=True),
            Phase(name="train", epochs=settings.train_epochs, decides=True, distils=True),
        )

    def task(self, phase: Phase) -> Task:
        """The task of a phase: the supernet sees only the proxy classes."""
        return self.problem.task if phase.decides else self.proxy

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """The supernet in its current pruned state, then the chosen network."""
        if phase.decides:
            network = self.space.module(self.chosen)
            if self.settings.retrain == "finetune" and isinstance(trained, LayeredSupernet):
                _inherit(network, trained, self.chosen)
            return network
        network = trained if isinstance(trained, LayeredSupernet) else self._supernet()
        if self.layers:
            network.restore(self.layers)
        for weight in (*network.thetas(), *network.widths()):
            weight.requires_grad_(phase.name == "search")
        return network

    def _supernet(self) -> LayeredSupernet:
        settings = self.settings
        network = LayeredSupernet(
            self.searched,
            tau=settings.tau,
            phi=settings.phi,
            lam=settings.lam,
            paper=settings.prunode == "paper",
            literal=settings.last_norm == "each",
            recompute=settings.recompute,
        )
        if (
            self.proxy is not self.problem.task
        ):  # its classifier has fewer classes, but costs as much as that of all classes
            (name, layer), (option,) = list(network.each())[-1], self.space.layers[-1].options
            layer.blocks[option.name] = trained_block(option.spec.with_widths(c_out=len(self.proxy.labels)))
            assert name == self.space.layers[-1].name
        return network

    def optimizers(self, phase: Phase, network: nn.Module) -> Sequence[Optimizer]:
        """Optimizers of the weights and, during the search, of the architecture weights."""
        settings = self.settings
        if not isinstance(network, LayeredSupernet):
            groups = weight_groups(list(network.parameters()), lr=settings.lr, weight_decay=settings.weight_decay)
            if settings.optimizer == "rmsprop":
                return [_rmsprop(groups, settings.lr, settings.momentum)]
            return [SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)]
        groups = weight_groups(network.weights(), lr=settings.search_lr, weight_decay=settings.search_weight_decay)
        self._optimizers = [_rmsprop(groups, settings.search_lr, RMSPROP_MOMENTUM)]
        if phase.name == "search":
            self._optimizers.append(self._architecture_optimizer(network))
        return self._optimizers

    def _architecture_optimizer(self, network: LayeredSupernet) -> Optimizer:
        settings, paper = self.settings, self.settings.prunode == "paper"
        thetas = {"params": network.thetas(), "peak_lr": settings.theta_lr}
        widths: dict[str, Any] = {"params": network.widths(), "peak_lr": settings.width_lr}
        adam = Adam([thetas, widths if paper else widths | {"betas": prunode.BETAS}], lr=settings.theta_lr)
        adam.register_step_post_hook(partial(self._step_prunodes, network))
        return adam

    def _step_prunodes(self, network: LayeredSupernet, *_: object) -> None:
        """Run Algorithm 1 after a step of the architecture weights."""
        progress = self._progress()
        for node in network.prunodes():
            node.step(progress)

    def parts(self, epoch: Epoch, network: nn.Module, optimizers: Sequence[Optimizer]) -> Sequence[TrainingPart]:
        """Train weights on most images of the epoch and, in turns, architecture weights on the others."""
        settings, task = self.settings, self.task(epoch.phase)
        if not isinstance(network, LayeredSupernet):
            return [self._final_training(epoch, optimizers)]

        def towards(outputs: Tree, targets: Tree, _: Tensor) -> Tensor:
            return task.loss(outputs, targets)

        epochs, done = settings.warmup_epochs + settings.search_epochs, epoch.index
        if epoch.phase.name == "warmup":
            batches = task.training_batches(settings.search_batch, epoch.order)
            return [
                TrainingPart(
                    optimizers=optimizers, batches=batches, loss=towards, factor=_cosine(len(batches), done, epochs)
                )
            ]
        share = settings.theta_images
        weight_rows, theta_rows = random_parts(len(task.train), (1 - share, share), epoch.noise)
        batches = task.training_batches(settings.search_batch, epoch.order, weight_rows)
        theta_batches = task.training_batches(settings.search_batch, epoch.order, theta_rows)
        taken, self._losses = iter(range(epoch.index * len(theta_batches) + 1, 10**9)), []
        self._progress = lambda: next(taken) / (len(theta_batches) * epoch.phase.epochs)
        now, left = self._expected_cost(network), epoch.phase.epochs - epoch.index

        def aim() -> float:
            """Return an aim that moves geometrically from the present cost to the budget.

            Blocks removed too early never come back.
            """
            return now * (self.problem.target / now) ** (len(self._losses) / len(theta_batches) / left)

        def loss(outputs: Tree, targets: Tree, _: Tensor) -> Tensor:
            value = task.loss(outputs, targets) + self._penalty(network, aim())
            self._losses.append(value.item())
            return value

        weights, architecture = optimizers
        rate = _cosine(len(batches), settings.warmup_epochs + done, epochs)
        return [
            TrainingPart(optimizers=[weights], batches=batches, loss=towards, factor=rate),
            TrainingPart(
                optimizers=[architecture],
                batches=theta_batches,
                loss=loss,
                factor=_cosine(len(theta_batches), done, settings.search_epochs),
            ),
        ]

    def _final_training(self, epoch: Epoch, optimizers: Sequence[Optimizer]) -> TrainingPart:
        """Train the chosen network on all images."""
        settings, task = self.settings, self.task(epoch.phase)
        batches = task.training_batches(settings.batch, epoch.order)
        steps, done = len(batches), epoch.index * len(batches)

        def factor(step: int) -> float:
            return schedule.factor(settings, step + done, epoch_steps=steps, epochs=epoch.phase.epochs, warmup=steps)

        return TrainingPart(
            optimizers=optimizers,
            batches=batches,
            loss=task.training_loss(settings, epoch.teacher),
            factor=factor,
        )

    def _expected_cost(self, network: LayeredSupernet) -> float:
        """Return the expected cost of the present supernet without Gumbel noise."""
        with torch.no_grad():
            shares = [layer.sample(self.settings.tau, noisy=False) for _, layer in network.each()]
            return float(network.expected(self.model, shares))

    def _penalty(self, network: LayeredSupernet, aim: float) -> Tensor:
        """Return the loss's second term, alpha * ln(LAT)^beta (Eq. 2 and 5).

        LAT is the latency expected from the shares of this step.
        """
        cost = network.expected(self.model, network.shares)
        alpha = self.controller.weight
        if self.limited:
            self.controller.update(cost.item(), aim)
        return alpha * cost.clamp(min=LEAST_COST).log() ** self.settings.beta

    # Block pruning and layer skipping

    def threshold(self, ended: int) -> float:
        """Return the threshold of Eq. 6 after `ended` epochs of the search."""
        settings = self.settings
        if settings.threshold == "constant":
            return settings.t_initial
        return settings.t_initial + (settings.t_final - settings.t_initial) * ended / settings.search_epochs

    def _prune(self, network: LayeredSupernet, threshold: float) -> None:
        """Remove blocks below the threshold, along with their optimizer state."""
        gone: set[nn.Parameter] = set()
        for _, layer in network.each():
            skipped = layer.skip
            gone |= {parameter for module in layer.prune(threshold) for parameter in module.parameters()}
            if layer.skip and not skipped:
                for optimizer in self._optimizers:  # theta is reset, so its optimizer state is, too
                    optimizer.state.pop(layer.theta, None)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"][:] = [parameter for parameter in group["params"] if parameter not in gone]
            for parameter in gone:
                optimizer.state.pop(parameter, None)

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """Remove blocks and record the remaining network, after the last epoch fitted to the budget."""
        if not isinstance(network, LayeredSupernet) or epoch.phase.name != "search":
            return {}
        figures = _figures(network) | {"threshold": self.threshold(epoch.index + 1), "alpha": self.controller.weight}
        figures["search_loss"] = sum(self._losses) / max(1, len(self._losses))
        figures["cost"] = self._expected_cost(network)
        if self.settings.prune_blocks:
            self._prune(network, figures["threshold"])
        self.layers, self.chosen = network.state(), self._most_probable(network)
        if epoch.index + 1 == epoch.phase.epochs:
            self.chosen = self._fitted_to_budget(self.chosen)
        return figures

    def _most_probable(self, network: LayeredSupernet) -> Choice:
        """Return the most probable block of each layer at the preferred width of its Prunode."""
        options, widths = dict[str, str](), dict[str, int]()
        for layer, (_, mixed) in zip(self.space.layers, network.each(), strict=True):
            best = mixed.best
            if layer.open:
                options[layer.name] = best
            if node := mixed.prunode(best):
                widths[layer.name] = node.width
        return Choice(options=options, widths=widths)

    def _fitted_to_budget(self, choice: Choice) -> Choice:
        """Return a network within the budget; the given one if no budget binds."""
        if not self.limited and self.problem.budget.holds(self.model.price(choice)):
            return choice
        return layer_fit.fit(self.space, choice, self.problem.block_prices(), self.problem.budget)

    # What is decided

    def choice(self) -> Choice:
        """The network that would be chosen now."""
        return self.chosen

    def state(self) -> dict[str, Any]:
        """The chosen network, the remaining candidates and masks of each layer, and alpha."""
        return {
            "chosen": msgspec.to_builtins(self.chosen),
            "layers": msgspec.to_builtins(self.layers),
            "alpha": self.controller.weight,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`."""
        self.chosen, self.controller.weight = msgspec.convert(state["chosen"], Choice), state["alpha"]
        self.layers = msgspec.convert(state["layers"], dict[str, LayerState])


def _rmsprop(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return RMSprop(groups, lr=lr, alpha=RMSPROP_ALPHA, eps=RMSPROP_EPS, momentum=momentum)


def _cosine(steps: int, done: int, epochs: int) -> Callable[[int], float]:
    """Return a factor that follows half a cosine over `epochs` of `steps` each, starting after `done` epochs."""
    return lambda step: schedule.cosine(step + done * steps, epochs * steps, 0)


def _figures(network: LayeredSupernet) -> dict[str, float]:
    """Return probabilities, masks and the size of the supernet, before blocks are removed."""
    figures: dict[str, float] = {}
    for name, layer in network.each():
        if len(layer.candidates) > 1:
            figures |= {f"p.{name}.{option}": value for option, value in layer.probabilities().items()}
        for option in layer.candidates:
            if node := layer.prunode(option):
                figures |= {f"small.{name}.{option}": node.masks.small, f"large.{name}.{option}": node.masks.large}
    figures["blocks"] = sum(len(layer.blocks) for _, layer in network.each())
    figures["parameters"] = sum(weight.numel() for weight in network.weights())
    return {name: float(value) for name, value in figures.items()}


def _restricted(space: Layered, settings: PrunetSettings) -> Layered:
    """Return the space without disabled prunings.

    With only the largest widths, and with layers that cannot be skipped.
    """

    def restricted(layer: StochasticLayer) -> StochasticLayer:
        options = layer.options
        if not settings.prune_widths:
            options = tuple(dataclasses.replace(option, hidden=option.hidden[-1:]) for option in options)
        return dataclasses.replace(layer, options=options, skippable=layer.skippable and settings.prune_layers)

    return dataclasses.replace(space, layers=tuple(map(restricted, space.layers)))


def _proxy(settings: PrunetSettings, task: Task) -> Task:
    """Return the supernet's task.

    Some classes, drawn independently of the seed, so that searches can share a warm-up.
    """
    share = settings.proxy_classes
    if share == 1:
        return task
    if not isinstance(task, Classification):
        raise SearchError(
            f"--proxy-classes {share:g} is for images of classes, which {task.name} has none of: leave it out"
        )
    classes = len(task.labels)
    count = round(classes * share)
    if count < 2:
        raise SearchError(f"--proxy-classes {share:g} of {classes} classes leaves {count}, and at least 2 are needed")
    drawn: list[int] = to_list(torch.randperm(classes, generator=torch.Generator().manual_seed(0))[:count])
    return task if count == classes else task.of_classes(sorted(drawn))


def _require_sound(space: Layered, settings: PrunetSettings) -> None:
    """Require that the blocks of each layer can be mixed, and that some survive the first threshold.

    Raises:
        SearchError: they cannot, or none survives; names the layer.
    """
    for layer in space.layers:
        shapes = {(option.spec.width("c_in"), ops.output_shape(option.spec)) for option in layer.options}
        if len(shapes) > 1:
            listed = ", ".join(f"{c_in} to {'x'.join(map(str, out))}" for c_in, out in sorted(shapes))
            raise SearchError(
                f"{space.name}: the blocks of layer {layer.name} make different shapes ({listed} channels, height and "
                "width): "
                f"give it blocks of one shape, or make two layers of them"
            )
        for option in layer.options:
            if option.hidden and option.hidden != tuple(
                range(option.hidden[0], option.hidden[-1] + 1, option.hidden[0])
            ):
                raise SearchError(
                    f"{space.name}: the hidden widths of layer {layer.name}, {option.name}, must be all multiples of "
                    "the first one, "
                    f"{option.hidden[0]}, up to the last one, {option.hidden[-1]}"
                )
        if settings.prune_blocks and len(layer.options) > 1 and settings.t_initial > 1 / len(layer.options):
            raise SearchError(
                f"--t-initial {settings.t_initial:g} would remove every block of layer {layer.name} at once, which has "
                f"{len(layer.options)}: give at most {1 / len(layer.options):g}"
            )


def _inherit(network: nn.Module, supernet: LayeredSupernet, choice: Choice) -> None:
    """Copy the first channels of the supernet's weights to the chosen network's blocks.

    Blocks that the supernet lacks keep theirs.
    """
    for name, layer in supernet.each():
        option = choice.options.get(name, layer.candidates[0])
        if option == SKIP or option not in layer.blocks:
            continue
        target, source = network.get_submodule(name), layer.blocks[option]
        learned = (layer.prunode(option) or source).state_dict()
        for key, value in target.state_dict().items():
            weight = learned.get(f"block.{key}", learned.get(key))
            if (
                weight is not None
                and weight.ndim == value.ndim
                and all(a >= b for a, b in zip(weight.shape, value.shape, strict=True))
            ):
                value.copy_(weight[tuple(slice(size) for size in value.shape)])
