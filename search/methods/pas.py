"""Pruning-as-Search (Li et al. 2022): channels are pruned and weights trained by one gradient descent, under a latency budget.

A depth-wise binary convolution behind every block says which of its channels exist. It is trained with the weights: the loss pulls useful
channels up, the latency table pulls costly ones down, and a channel that is gone keeps its weights and can come back.

What the paper leaves open is settled like this: the regulariser is the squared relative error of the latency (`regulariser="paper"`: the
squared error in GMACs); the gradient of the cost goes through output and input widths; indicators start at 1, are not decayed, and stay
within 0 and 1 (`bounded=False`: they do not); every layer keeps at least `min_channels`, the top-scoring ones.
"""

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from jaxtyping import Bool, Float
from msgspec import Struct
from torch import Tensor, nn
from torch.optim import Optimizer

from latency import Latency, LatencyTable
from latency.files import write_whole
from search import record
from search.architecture import Architecture, load_architecture
from search.budget import BudgetController, fit_widths, require_reachable, round_up
from search.cost import Cost, ExpectedLatency, ExpectedMacs, Scalar
from search.data import Dataset
from search.errors import SearchError
from search.files import read_json, to_json
from search.network import build_network, keep_channels, save_weights, searched_blocks
from search.record import PHASES, Chosen, EpochDone, Event, Finished, NetworkResult, Phase, Result, Resumed, Run, open_run
from search.runtime import Runtime, read_state, restore, save_checkpoint
from search.space import Chain, Widths
from search.train import Score, cosine, evaluate, make_optimizer, train_epoch

THRESHOLD = 0.5
"""An indicator above it keeps its channel (Li et al. 2022, Eq. 2); at exactly this value the channel is gone."""
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
    channel_multiple: int = 8
    """shipped widths are multiples of it (or the full width); itself a multiple of the space's granularity"""
    cost: Literal["latency", "macs"] = "latency"
    """what the penalty counts: microseconds of the table, or multiply-accumulates; the budget is in latency either way"""
    regulariser: Literal["relative", "paper"] = "relative"
    """(cost / target - 1) squared, or (GMACs - target GMACs) squared"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pretrain_epochs", "search_epochs", "finetune_epochs", "batch", "min_channels", "channel_multiple"):
            if getattr(self, name) < 1:
                raise SearchError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("lr", "policy_lr", "beta", "beta_rate"):
            if not getattr(self, name) > 0:
                raise SearchError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.regulariser == "paper" and self.cost != "macs":
            raise SearchError(f"the regulariser 'paper' is in squared GMACs: it needs the cost 'macs', found {self.cost!r}")


def recipe(data: Dataset, **settings: Any) -> PasConfig:
    """Settings that suit a data set: the defaults for up to 10,000 training images, fewer but longer epochs' worth of search for more.

    Args:
        data: what will be trained on.
        settings: fields of `PasConfig` that are chosen already.

    Raises:
        SearchError: a setting that makes no sense.
    """
    many = {"pretrain_epochs": 16, "search_epochs": 6, "finetune_epochs": 16, "batch": 128, "lr": 0.1, "policy_lr": 0.1}
    return PasConfig(**((many if len(data.train) > 10_000 else {}) | settings))


class DepthwiseBinaryConv(nn.Module):
    """One 0 or 1 for every channel, trained by gradient descent (Li et al. 2022, Eq. 1 and 2).

    The binary value is 1 where the indicator `v` is above 0.5; its gradient is handed to `v` unchanged (straight-through estimator).

    Args:
        channels: channels of what it is applied to.
        min_channels: so many, those with the highest indicators, are kept whatever the threshold says; the lower index first where equal.
    """

    def __init__(self, channels: int, *, min_channels: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.ones(channels))
        self.min_channels = min(min_channels, channels)

    def top(self, count: int) -> Bool[Tensor, " channels"]:
        """The `count` channels with the highest indicators."""
        keep = torch.zeros_like(self.v, dtype=torch.bool)
        keep[self.v.detach().argsort(descending=True, stable=True)[:count]] = True
        return keep

    def kept(self) -> Bool[Tensor, " channels"]:
        """The channels that exist."""
        return (self.v.detach() > THRESHOLD) | self.top(self.min_channels)

    def binary(self) -> Float[Tensor, " channels"]:
        """0 or 1 for every channel, with the gradient of `v`."""
        return self.kept().to(self.v.dtype) + (self.v - self.v.detach())

    def width(self) -> Scalar:
        """Number of channels that exist, with gradient."""
        return self.binary().sum()

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Multiply every channel by its 0 or 1."""
        return x * self.binary()[:, None, None]


def attach(network: nn.Module, *, min_channels: int) -> list[DepthwiseBinaryConv]:
    """Put a depth-wise binary convolution behind the activation of every searched block; changes the network in place.

    For zeros and ones that computes the same as one before the activation, where `freeze` leaves a mask. But a ReLU has no slope at 0, so
    there the indicator of a channel that is gone would get no gradient, and the channel could never come back.
    """
    indicators = []
    for block in searched_blocks(network):
        indicators.append(DepthwiseBinaryConv(block.dense.conv.out_channels, min_channels=min_channels))
        block.act = nn.Sequential(block.act, indicators[-1])
    return indicators


def freeze(network: nn.Module, widths: Sequence[int]) -> None:
    """Put masks that keep the top-scoring channels of every layer in the place of what `attach` put in; changes the network in place."""
    kept = []
    for block, width in zip(searched_blocks(network), widths, strict=True):
        assert isinstance(block.act, nn.Sequential)
        act, indicator = block.act
        assert isinstance(indicator, DepthwiseBinaryConv)
        block.act = act
        kept.append(indicator.top(width))
    keep_channels(network, kept)


def run(config: PasConfig, space: Chain, table: LatencyTable, data: Dataset, budget_us: float, out: Path) -> Iterator[Event]:
    """Train the unpruned network, search widths under the budget, fine-tune what is left; write the run to a directory.

    The same call goes on with a run that was interrupted, and has the same result as one that was not.

    Args:
        config: settings.
        space: what to search; its classes and resolution are those of the data.
        table: covers the space; its prediction of what is chosen is within the budget with the whole interval.
        data: to train on, and to tell the accuracy on.
        budget_us: latency that the network may take.
        out: the run's directory.

    Yields:
        What happens, as it happens; `Finished` last, with the architecture.

    Raises:
        SearchError: space, data and settings do not fit each other, no network is within the budget, the directory holds something else, or
            the training diverges.
        CoverageError: the table does not cover the space.
    """
    _require_fit(space, data)
    search = _Search(config, space, table, data, budget_us, out)
    run_sha256 = open_run(
        out,
        Run(
            method="pas",
            config=msgspec.to_builtins(config),
            space=space,
            budget_us=budget_us,
            table_sha256=table.sha256,
            data=data.name,
            data_sha256=data.sha256(),
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

    def __init__(self, config: PasConfig, space: Chain, table: LatencyTable, data: Dataset, budget_us: float, out: Path) -> None:
        self.config, self.space, self.table, self.data, self.budget_us, self.out = config, space, table, data, budget_us, out
        self.choices = _shippable(space, config)
        require_reachable(space, table, tuple(options[0] for options in self.choices), budget_us)
        target = budget_us / (1 + table.predictor.half_width)  # the upper end of the interval meets the budget there
        self.cost: Cost = ExpectedLatency(space, table)
        if config.cost == "macs":  # they have no budget of their own: aim at the same share of the unpruned network
            self.cost = ExpectedMacs(space)
            target *= space.macs() / self._predict(space.full_widths()).us
        self.controller = BudgetController(target=target, weight=config.beta, rate=config.beta_rate)
        self.epochs: dict[Phase, int] = {
            "pretrain": config.pretrain_epochs,
            "search": config.search_epochs,
            "finetune": config.finetune_epochs,
        }
        self.history: tuple[EpochDone, ...] = ()
        self.widths = space.full_widths()
        self.runtime = Runtime()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = build_network(space)
        self.indicators: list[DepthwiseBinaryConv] = []

    def run(self, run_sha256: str) -> Iterator[Event]:
        checkpoint = self.out / record.CHECKPOINT
        if checkpoint.exists():
            state = read_state(checkpoint, _State)
            self.history, self.controller.weight = state.history, state.beta
            yield Resumed(history=self.history)
        last = self.history[-1] if self.history else None
        for phase in PHASES[PHASES.index(last.phase) if last else 0 :]:
            resumed = last if last and last.phase == phase else None
            self._enter(phase, resumed)
            if phase == "finetune":
                yield Chosen(widths=self.widths, latency=self._predict(self.widths))
            optimizer = self._optimizer()
            network, wrapped = self.runtime.setup(self.network, optimizer)
            if resumed:
                restore(checkpoint, self.network, optimizer)
            for epoch in range(resumed.epoch if resumed else 0, self.epochs[phase]):
                score = self._train(network, wrapped, phase, epoch)
                self.history = (*self.history, self._describe(network, phase, epoch, score))
                if phase == "pretrain" and epoch + 1 == self.epochs[phase]:
                    save_weights(self.network, self.out / record.BASELINE, {"run_sha256": run_sha256})
                write_whole(self.out / record.HISTORY, b"".join(msgspec.json.encode(done) + b"\n" for done in self.history))
                save_checkpoint(checkpoint, _State(history=self.history, beta=self.controller.weight), self.network, optimizer)
                yield self.history[-1]
        yield self._finish()

    def _enter(self, phase: Phase, resumed: EpochDone | None) -> None:
        """Give the network the masks of a phase."""
        if phase == "search":
            self.indicators = attach(self.network, min_channels=self.config.min_channels)
        elif phase == "finetune" and resumed:  # which channels they are is in the checkpoint
            self.widths = resumed.widths
            keep_channels(
                self.network, [torch.arange(layer.width) < width for layer, width in zip(self.space.layers, self.widths, strict=True)]
            )
        elif phase == "finetune":
            scores = [sorted(indicator.v.tolist(), reverse=True) for indicator in self.indicators]
            self.widths = fit_widths(self._kept_counts(), scores, self.choices, self._predict, self.budget_us)
            freeze(self.network, self.widths)
            self.indicators = []

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
            penalty=self._penalty if phase == "search" else None,
        )

    def _penalty(self) -> Tensor:
        """The weighted regulariser (Li et al. 2022, Eq. 4 and 5)."""
        cost = self.cost([indicator.width() for indicator in self.indicators])
        beta, target = self.controller.weight, self.controller.target
        self.controller.update(cost.item())
        error = (cost - target) / 1e9 if self.config.regulariser == "paper" else cost / target - 1
        return beta * error**2

    def _describe(self, network: nn.Module, phase: Phase, epoch: int, score: Score) -> EpochDone:
        if phase == "search":
            self.widths = self._kept_counts()
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
            latency_us=self._predict(round_up(self.widths, self.choices)).us,
            beta=self.controller.weight if phase == "search" else 0.0,
        )

    def _kept_counts(self) -> Widths:
        return tuple(int(indicator.kept().sum()) for indicator in self.indicators)

    def _finish(self) -> Finished:
        """Write what came out; the result last, which says that the run is complete."""
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
            device=self.table.header.device,
            runtime=self.table.header.runtime,
            table_sha256=self.table.sha256,
            method="pas",
            seed=self.config.seed,
            options=msgspec.to_builtins(self.config),
        )
        accuracy = {done.phase: done.accuracy for done in self.history}  # of a phase's last epoch
        result = Result(
            architecture_sha256=architecture.sha256,
            held_out_images=len(self.data.held_out),
            budget_us=self.budget_us,
            unpruned=self._result(self.space.full_widths(), accuracy["pretrain"]),
            shipped=self._result(self.widths, accuracy["finetune"]),
        )
        write_whole(self.out / record.ARCHITECTURE, to_json(architecture))
        save_weights(self.network, self.out / record.WEIGHTS, {"architecture_sha256": architecture.sha256})
        write_whole(self.out / record.RESULT, to_json(result))
        return Finished(architecture=architecture, result=result)

    def _result(self, widths: Widths, accuracy: float) -> NetworkResult:
        network = self.space.network(widths)
        return NetworkResult(
            widths=widths,
            accuracy=accuracy,
            parameters=self.space.parameters(network),
            macs=self.space.macs(network),
            predicted=self._predict(widths),
        )

    def _predict(self, widths: Widths) -> Latency:
        return self.table.predict(self.space.network(widths))


def _bound(policy: Sequence[nn.Parameter], *_: Any) -> None:
    for v in policy:
        v.data.clamp_(0.0, 1.0)


def _require_fit(space: Chain, data: Dataset) -> None:
    if space.classes != len(data.labels):
        raise SearchError(
            f"{data.name} has {len(data.labels)} classes, the space {space.classes}: profile and search with --classes {len(data.labels)}"
        )
    if space.input_shape[1:] != data.preprocessing.size:
        raise SearchError(
            f"the images of {data.name} are {data.preprocessing.size}, the space takes {space.input_shape[1:]}: load them at its resolution"
        )


def _shippable(space: Chain, config: PasConfig) -> list[Widths]:
    """Of every layer the widths that settings and table allow; the full one always is."""
    multiple, least = config.channel_multiple, config.min_channels
    if multiple % space.granularity:
        raise SearchError(
            f"channel_multiple must be a multiple of {space.granularity}, the widths that {space.name} is measured at; found {multiple}"
        )
    return [
        tuple(width for width in space.width_choices(index) if width == layer.width or (width % multiple == 0 and width >= least))
        for index, layer in enumerate(space.layers)
    ]
