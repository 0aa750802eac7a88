"""Pruning-as-Search (Li et al. 2022): channels are pruned and weights trained by one gradient descent, under a latency budget.

A depth-wise binary convolution behind every block says which of its channels exist. It is trained with the weights: the loss pulls useful
channels up, the latency table pulls costly ones down, and a channel that is gone keeps its weights and can come back.

What the paper leaves open is settled like this: the regulariser is the squared relative error of the latency (`regulariser="paper"`: the
squared error in GMACs); the gradient of the cost goes through output and input widths; indicators start at 1, are not decayed, and stay
within 0 and 1 (`bounded=False`: they do not); every layer keeps at least `min_channels`, the top-scoring ones.
"""

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import torch
from msgspec import Struct
from torch import Tensor, nn
from torch.optim import Optimizer

from latency import Latency, LatencyTable
from latency.files import sha256, write_whole
from reparam import ChannelGroup, count, fuse, squeeze
from search import masks, record
from search.architecture import Architecture, load_architecture
from search.budget import BudgetController, Price, fit_widths, free_channels, ranked_widths, require_reachable, round_up
from search.cost import Cost, ExpectedLatency, ExpectedMacs, NetworkLatency
from search.data import Dataset
from search.errors import SearchError
from search.files import read_json, to_json
from search.masks import DepthwiseBinaryConv, Scores
from search.methods import importance
from search.network import load_weights, save_weights
from search.record import PHASES, Chosen, EpochDone, Event, Finished, NetworkResult, Phase, Result, Resumed, Run, open_run
from search.runtime import Runtime, read_state, restore, save_checkpoint
from search.spaces import Prunable, Widths
from search.train import Score, cosine, evaluate, make_optimizer, train_epoch

T = TypeVar("T")

EVALUATION_BATCH = 256


class PasConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a run. The defaults suit a few thousand small images; `recipe` chooses by the data."""

    pretrain_epochs: int = 10
    """of the unpruned network"""
    search_epochs: int = 10
    """weights and indicators together, at the full learning rate (rewound, as in the paper)"""
    finetune_epochs: int = 10
    """with frozen indicators, learning rate annealed by a cosine"""
    batch: int = 64
    lr: float = 0.05
    """of the weights"""
    momentum: float = 0.875
    weight_decay: float = 5e-4
    """of weights only: neither norms and biases nor indicators are decayed"""
    label_smoothing: float = 0.1
    policy_lr: float = 0.5
    """of the indicators"""
    bounded: bool = True
    """keep indicators within 0 and 1, so that a channel that was decided long ago can soon be decided otherwise; False: as in the paper"""
    beta: float = 0.1
    """weight of the latency penalty at the start of the search; the controller adapts it"""
    beta_rate: float = 0.05
    """how fast it does: see BudgetController"""
    min_channels: int = 8
    """channels that every layer keeps at least"""
    exclude: str = ""
    """groups, layers, modules or patterns such as `layer4.*` that stay whole, separated by commas"""
    channel_multiple: int = 8
    """shipped widths are multiples of it (or the full width); itself a multiple of the space's granularity"""
    policy: Literal["dbc", "uniform", "magnitude", "slimming"] = "dbc"
    """who says which channels stay: learned depth-wise binary convolutions (the paper's), or a baseline with the same epochs and budget.
    `uniform` and `magnitude` prune once before the search's epochs, which then train what is left; `slimming` prunes after them"""
    slimming: float = 1e-3
    """policy `slimming`: weight of the L1 norm of the norms' scales; Liu et al. 2017 have 1e-4 over ten times as many epochs"""
    cost: Literal["latency", "macs"] = "latency"
    """what the penalty counts: microseconds of the table, or multiply-accumulates; the budget is in latency either way"""
    regulariser: Literal["relative", "paper"] = "relative"
    """(cost / target - 1) squared, or (GMACs - target GMACs) squared"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pretrain_epochs < 0:
            raise SearchError(f"pretrain_epochs must be 0 (start from the weights of the network) or more, found {self.pretrain_epochs}")
        for name in ("search_epochs", "finetune_epochs", "batch", "min_channels", "channel_multiple"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("lr", "policy_lr", "beta", "beta_rate", "slimming"):
            if not getattr(self, name) > 0:
                raise SearchError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.regulariser == "paper" and self.cost != "macs":
            raise SearchError(f"the regulariser 'paper' is in squared GMACs: it needs the cost 'macs', found {self.cost!r}")

    @property
    def excluded(self) -> list[str]:
        """The names and patterns in `exclude`."""
        return [pattern for pattern in self.exclude.split(",") if pattern]


def recipe(data: Dataset, name: Literal["auto", "paper"] = "auto", /, **settings: Any) -> PasConfig:
    """Settings that suit a data set, or those of the paper.

    `auto`: the defaults for up to 10,000 training images, fewer but longer epochs' worth of search for more. `paper` (Li et al. 2022,
    Section 5.1): from a trained network, at a learning rate that is rewound to 0.4, 10 epochs of search; then 50 of cosine annealing with
    frozen indicators. One optimiser has all, so the indicators have that rate too. Without a trained network to start from it trains one
    for 120 epochs, as the authors of RepVGG did.

    Args:
        data: what will be trained on.
        name: which.
        settings: fields of `PasConfig` that are chosen already.

    Raises:
        SearchError: a setting that makes no sense.
    """
    many = {"pretrain_epochs": 16, "search_epochs": 6, "finetune_epochs": 16, "batch": 128, "lr": 0.1, "policy_lr": 0.1}
    paper = {"pretrain_epochs": 120, "search_epochs": 10, "finetune_epochs": 50, "batch": 1024, "lr": 0.4, "policy_lr": 0.4}
    paper |= {"momentum": 0.875, "weight_decay": 3.05e-5}
    if name == "paper":
        return PasConfig(**(paper | settings))
    return PasConfig(**((many if len(data.train) > 10_000 else {}) | settings))


def run(
    config: PasConfig, space: Prunable, table: LatencyTable | None, data: Dataset, budget: float, out: Path, *, baseline: Path | None = None
) -> Iterator[Event]:
    """Train the unpruned network, search widths under the budget, fine-tune what is left; write the run to a directory.

    The same call goes on with a run that was interrupted, and has the same result as one that was not.

    Args:
        config: settings.
        space: what to search; its classes and resolution are those of the data. `search.spaces.of_module` makes one of any network, whose
            weights are then the start.
        table: covers the space; its prediction of what is chosen is within the budget with the whole interval. Without one the cost of a
            network is its multiply-accumulates.
        data: to train on, and to tell the accuracy on.
        budget: microseconds that the network may take; multiply-accumulates where there is no table.
        out: the run's directory.
        baseline: directory of another run of the space, whose trained unpruned network is the start instead of a new one.

    Yields:
        What happens, as it happens; `Finished` last, with the architecture.

    Raises:
        SearchError: space, data and settings do not fit each other, no network is within the budget, the directory holds something else, or
            the training diverges.
        CoverageError: the table does not cover the space.
        ReparamError: the network cannot be traced, fused or squeezed; the node is named.
    """
    _require_fit(space, data)
    search = _Search(config, space, table, data, budget, out, baseline)
    run_sha256 = open_run(
        out,
        Run(
            method="pas",
            config=msgspec.to_builtins(config),
            space=space.record(),
            budget_us=search.budget_us,
            budget_macs=search.budget_macs,
            table_sha256=table.sha256 if table else "",
            data=data.name,
            data_sha256=data.sha256(),
            baseline_sha256=search.baseline_sha256,
            versions={name: importlib.metadata.version(name) for name in ("torch", "lightning-fabric", "numpy")},
        ),
    )
    if (out / record.RESULT).exists():
        yield Finished(architecture=load_architecture(out / record.ARCHITECTURE), result=read_json(out / record.RESULT, Result))
    else:
        yield from search.run(run_sha256)


class _State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The numbers of a checkpoint."""

    history: tuple[EpochDone, ...]
    beta: float


class _Search:
    """A run in progress."""

    def __init__(
        self,
        config: PasConfig,
        space: Prunable,
        table: LatencyTable | None,
        data: Dataset,
        budget: float,
        out: Path,
        baseline: Path | None,
    ) -> None:
        self.config, self.space, self.table, self.data, self.budget, self.out = config, space, table, data, budget, out
        self.budget_us, self.budget_macs = (budget, None) if table else (None, budget)
        self.macs, self.latency = ExpectedMacs(space), table and NetworkLatency(space, table)
        self.example = torch.zeros(1, *space.input_shape)
        self.network = self._build()
        self.groups = masks.prunable_groups(self.network, self.example, config.excluded)
        self.choices = _shippable(space, config, {group.name for group in self.groups})
        require_reachable(space.name, self._price(tuple(options[0] for options in self.choices)), budget, unit="us" if table else "macs")
        _require_squeezable(self.network, self.example, self.groups)
        self.cost: Cost = ExpectedLatency(space, table) if table and config.cost == "latency" else self.macs
        target = budget / (1 + table.predictor.half_width) if table else budget  # the upper end of the interval meets the budget there
        if table and config.cost == "macs":  # they have no budget of their own: aim at the same share of the unpruned network
            target *= space.macs() / self._price(space.full_widths()).cost
        self.controller = BudgetController(target=target, weight=config.beta, rate=config.beta_rate)
        self.epochs: dict[Phase, int] = {
            "pretrain": config.pretrain_epochs,
            "search": config.search_epochs,
            "finetune": config.finetune_epochs,
        }
        self.pruning_phase: Phase = "search" if config.policy in ("uniform", "magnitude") else "finetune"
        self.history: tuple[EpochDone, ...] = ()
        self.widths = space.full_widths()
        self.runtime = Runtime()
        self.baseline = baseline and baseline / record.BASELINE
        self.baseline_sha256 = ""
        if self.baseline:
            if not self.baseline.exists():
                raise SearchError(f"{self.baseline} does not exist: give the directory of a run whose unpruned network is trained")
            load_weights(self.network, self.baseline, {})
            self.baseline_sha256 = sha256(self.baseline)
        self.indicators: list[DepthwiseBinaryConv] = []
        self.before: dict[str, masks.Keep] = {}

    def _build(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.space.unpruned()

    def run(self, run_sha256: str) -> Iterator[Event]:
        checkpoint = self.out / record.CHECKPOINT
        if checkpoint.exists():
            state = read_state(checkpoint, _State)
            self.history, self.controller.weight = state.history, state.beta
            yield Resumed(history=self.history)
        last = self.history[-1] if self.history else None
        phases = PHASES[1:] if self.baseline else PHASES
        for phase in phases[phases.index(last.phase) if last else 0 :]:
            resumed = last if last and last.phase == phase else None
            if phase == "search" and not resumed:
                save_weights(self.network, self.out / record.BASELINE, {"run_sha256": run_sha256})
            self._enter(phase, resumed)
            if phase == self.pruning_phase:
                yield Chosen(widths=self.widths, latency=self._predict(self.widths))
            optimizer = self._optimizer()
            network, wrapped = self.runtime.setup(self.network, optimizer)
            if resumed:
                restore(checkpoint, self.network, optimizer)
            self.before = {group.name: indicator.kept() for group, indicator in zip(self.groups, self.indicators, strict=False)}
            for epoch in range(resumed.epoch if resumed else 0, self.epochs[phase]):
                score = self._train(network, wrapped, phase, epoch)
                self.history = (*self.history, self._describe(network, phase, epoch, score))
                write_whole(self.out / record.HISTORY, b"".join(msgspec.json.encode(done) + b"\n" for done in self.history))
                save_checkpoint(checkpoint, _State(history=self.history, beta=self.controller.weight), self.network, optimizer)
                yield self.history[-1]
        yield self._finish()

    def _enter(self, phase: Phase, resumed: EpochDone | None) -> None:
        """Give the network the masks of a phase."""
        self.network.cpu()  # it is traced there
        if phase == self.pruning_phase and not resumed:
            scores = self._scores()
            ordered = [sorted(score.tolist(), reverse=True) for score in scores]
            learned = self.config.policy == "dbc"  # a baseline has the proportions of its paper: only what is over or left is fitted
            self.widths = fit_widths(self._kept_counts(), ordered, self.choices, self._price, self.budget, exchange=learned)
            kept = {name: masks.top(score, width) for (name, _), score, width in zip(self.space.groups, scores, self.widths, strict=True)}
            if self.indicators:
                masks.freeze(self.network, self.groups, kept)
            else:
                self.network = masks.mask(self.network, self.example, self.groups, kept)
            self.indicators = []
        elif resumed and PHASES.index(phase) >= PHASES.index(self.pruning_phase):  # which channels they are is in the checkpoint
            self.widths = resumed.widths
            self.network = masks.mask(self.network, self.example, self.groups, masks.first(self.space.groups, self.widths))
        elif phase == "search" and self.config.policy == "dbc":
            least = self.config.min_channels
            self.network = masks.attach(self.network, self.example, exclude=self.config.excluded, min_channels=least)
            self.indicators = masks.indicators(self.network)

    def _optimizer(self) -> Optimizer:
        config = self.config
        policy = [indicator.v for indicator in self.indicators]
        optimizer = make_optimizer(
            self.network,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            policy=policy,
            policy_lr=config.policy_lr,
        )
        if hasattr(self.network, "masks"):
            chosen = {id(parameter) for parameter in policy}
            masks.hold_gone(optimizer, [weight for weight in self.network.parameters() if id(weight) not in chosen])
        if config.bounded:
            optimizer.register_step_post_hook(partial(_bound, policy))
        return optimizer

    def _train(self, network: nn.Module, optimizer: Optimizer, phase: Phase, epoch: int) -> Score:
        digest = hashlib.sha256(f"{self.config.seed}/{phase}/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        steps = max(1, len(self.data.train) // self.config.batch)

        def factor(step: int) -> float:
            if phase == "search":
                return 1.0
            return cosine(epoch * steps + step, self.epochs[phase] * steps, warmup=steps if phase == "pretrain" else 0)

        return train_epoch(
            network,
            optimizer,
            self.data.training_batches(self.config.batch, generator),
            runtime=self.runtime,
            factor=factor,
            label_smoothing=self.config.label_smoothing,
            penalty=self._penalty if phase == "search" and self.config.policy in ("dbc", "slimming") else None,
        )

    def _penalty(self) -> Tensor:
        """The weighted regulariser (Li et al. 2022, Eq. 4 and 5); of slimming the L1 norm of the scales (Liu et al. 2017, Eq. 1)."""
        if self.config.policy == "slimming":
            return self.config.slimming * torch.cat(importance.scales(self.network, self.groups)).sum()
        cost = self.cost(self._by_group([indicator.width() for indicator in self.indicators], lambda full: torch.tensor(float(full))))
        # What counts is the network that would ship, with every width rounded up; its gradient is that of the widths as they are.
        shipped = self.cost([torch.tensor(float(width)) for width in round_up(self._kept_counts(), self.choices)])
        cost = shipped + cost - cost.detach()
        beta, target = self.controller.weight, self.controller.target
        self.controller.update(cost.item())
        error = (cost - target) / 1e9 if self.config.regulariser == "paper" else cost / target - 1
        return beta * error**2

    def _by_group(self, values: Sequence[T], of_whole: Callable[[int], T]) -> list[T]:
        """A value for every group of the space, of those for the groups that are searched and one for those that are excluded."""
        named = dict(zip((group.name for group in self.groups), values, strict=True))
        return [named[name] if name in named else of_whole(full) for name, full in self.space.groups]

    def _describe(self, network: nn.Module, phase: Phase, epoch: int, score: Score) -> EpochDone:
        if phase == "search" and self.pruning_phase == "finetune":
            self.widths = self._kept_counts()
        ready = round_up(self.widths, self.choices)
        latency = self._predict(ready)
        return EpochDone(
            phase=phase,
            epoch=epoch + 1,
            epochs=self.epochs[phase],
            loss=score.loss,
            train_accuracy=score.accuracy,
            accuracy=evaluate(
                network, self.data.held_out_batches(EVALUATION_BATCH), runtime=self.runtime, batch_statistics=phase == "search"
            ).accuracy,
            widths=self.widths,
            returned=self._returned() if phase == "search" else (),
            latency_us=latency and latency.us,
            macs=self.macs.count(ready),
            beta=self.controller.weight if phase == "search" else 0.0,
        )

    def _returned(self) -> Widths:
        """Channels of each group that were gone after the epoch before and are back now."""
        now = {group.name: indicator.kept() for group, indicator in zip(self.groups, self.indicators, strict=False)}
        before, self.before = self.before, now
        return tuple(int((now[name] & ~before[name]).sum()) if name in now else 0 for name, _ in self.space.groups)

    def _kept_counts(self) -> Widths:
        """Channels of every group that the policy keeps: learned, or those above the lowest threshold that is within the budget."""
        if self.config.policy == "dbc":
            return tuple(self._by_group([int(indicator.kept().sum()) for indicator in self.indicators], int))
        return ranked_widths([score.tolist() for score in self._scores()], self.choices, self._price, self.budget)

    def _scores(self) -> list[Scores]:
        """What the policy says that every channel is worth."""
        with torch.no_grad():
            match self.config.policy:
                case "dbc":
                    found = [indicator.v.detach() for indicator in self.indicators]
                case "uniform":
                    found = importance.uniform(self.network, self.example, self.groups)
                case "magnitude":
                    found = importance.magnitude(self.network, self.example, self.groups)
                case "slimming":
                    found = importance.scales(self.network, self.groups)
        return self._by_group(found, torch.ones)

    def _finish(self) -> Finished:
        """Write what came out; the result last, which says that the run is complete."""
        accuracy = {done.phase: done.accuracy for done in self.history}  # of a phase's last epoch
        unpruned = self._build()
        load_weights(unpruned, self.out / record.BASELINE, {})
        if "pretrain" not in accuracy:
            unpruned.to(next(self.network.parameters()).device)
            accuracy["pretrain"] = evaluate(unpruned, self.data.held_out_batches(EVALUATION_BATCH), runtime=self.runtime).accuracy
        header = self.table and self.table.header
        architecture = Architecture(
            space=self.space.name,
            granularity=self.space.granularity,
            input_shape=self.space.input_shape,
            classes=self.space.classes,
            layers=Architecture.choose(self.space, self.widths),
            labels=self.data.labels,
            preprocessing=self.data.preprocessing,
            data=self.data.name,
            predicted=self._predict(self.widths),
            budget_us=self.budget_us,
            device=header and header.device,
            runtime=header and header.runtime,
            table_sha256=self.table.sha256 if self.table else "",
            method="pas",
            seed=self.config.seed,
            options=msgspec.to_builtins(self.config),
        )
        result = Result(
            architecture_sha256=architecture.sha256,
            held_out_images=len(self.data.held_out),
            budget_us=self.budget_us,
            budget_macs=self.budget_macs,
            unpruned=self._result(unpruned, self.space.full_widths(), accuracy["pretrain"]),
            shipped=self._result(self.network, self.widths, accuracy["finetune"]),
            free_channels=free_channels(self.widths, self.choices, self._price),
        )
        write_whole(self.out / record.ARCHITECTURE, to_json(architecture))
        save_weights(self.network, self.out / record.WEIGHTS, {"architecture_sha256": architecture.sha256})
        write_whole(self.out / record.RESULT, to_json(result))
        return Finished(architecture=architecture, result=result)

    def _result(self, network: nn.Module, widths: Widths, accuracy: float) -> NetworkResult:
        size = count(squeeze(fuse(network.cpu()), self.example), self.example)
        return NetworkResult(widths=widths, accuracy=accuracy, parameters=size.params, macs=size.macs, predicted=self._predict(widths))

    def _predict(self, widths: Widths) -> Latency | None:
        return self.latency and self.latency(widths)

    def _price(self, widths: Widths) -> Price:
        latency = self._predict(widths)
        if latency is None:
            macs = self.macs.count(widths)
            return Price(macs, macs)
        return Price(latency.us, latency.high_us)


def _bound(policy: Sequence[nn.Parameter], *_: Any) -> None:
    for v in policy:
        v.data.clamp_(0.0, 1.0)


def _require_fit(space: Prunable, data: Dataset) -> None:
    if space.classes != len(data.labels):
        raise SearchError(
            f"{data.name} has {len(data.labels)} classes, the space {space.classes}: profile and search with --classes {len(data.labels)}"
        )
    if space.input_shape[1:] != data.preprocessing.size:
        raise SearchError(
            f"the images of {data.name} are {data.preprocessing.size}, the space takes {space.input_shape[1:]}: load them at its resolution"
        )


def _require_squeezable(network: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> None:
    """Say before the training, not after it, what cannot ship."""
    kept = {group.name: torch.arange(group.channels) < max(1, group.channels // 2) for group in groups}
    squeeze(fuse(masks.mask(network, example, groups, kept)), example)


def _shippable(space: Prunable, config: PasConfig, searched: Set[str]) -> list[Widths]:
    """Of every group the widths that settings and table allow; the full one always is."""
    multiple, least = config.channel_multiple, config.min_channels
    if multiple % space.granularity:
        raise SearchError(
            f"channel_multiple must be a multiple of {space.granularity}, the widths that {space.name} is measured at; found {multiple}"
        )
    return [
        tuple(
            width
            for width in space.width_choices(index)
            if width == full or (width % multiple == 0 and width >= least and name in searched)
        )
        for index, (name, full) in enumerate(space.groups)
    ]
