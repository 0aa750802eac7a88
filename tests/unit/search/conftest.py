"""A search small enough for tests: two classes of 8x8 images, three layers, and a made-up device whose latency is a staircase of 16 channels."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from latency import BlockSpec, Device, LatencyTable, Protocol, Row, Runtime, TableHeader
from search import ops, session
from search.architecture import Preprocessing
from search.augment import Augmentation
from search.blocks import trained
from search.budget import Budget
from search.classification import Classification, Split
from search.method import Problem
from search.methods.magnitude import Magnitude
from search.methods.pas import Pas
from search.methods.settings import MagnitudeSettings, PasSettings, SlimmingSettings, TableSettings, UniformSettings
from search.methods.slimming import Slimming
from search.methods.table import Table
from search.methods.uniform import Uniform
from search.space import Choice, Space
from search.spaces import (
    Chain,
    Fixed,
    Layer,
    Layered,
    MultiBlock,
    Prunable,
    StochasticLayer,
    Traced,
    free_widths,
    of_module,
    traced,
)


def block_us(spec: BlockSpec, tread: int = 16) -> float:
    """Latency of a block on the made-up device."""
    treads = math.prod(tread * math.ceil(width / tread) for _, width in spec.widths)
    return 2 + ops.counts(spec).macs / math.prod(width for _, width in spec.widths) * treads / 3_000


def network_us(blocks: list[BlockSpec], tread: int = 16) -> float:
    """Latency of a network there: each boundary saves 1 us."""
    return sum(block_us(spec, tread) for spec in blocks) - (len(blocks) - 1)


def make_table(
    space: Space,
    networks: Sequence[Choice] | None = None,
    *,
    tread: int = 16,
    name: str = "made-up",
    spread: float = 0.0,
) -> LatencyTable:
    """A table of every block of a space, and of some networks; of eight spread over its widths by default.

    Networks take up to `spread` more or less than their blocks say, relative, so that predictions have an interval.
    """
    header = TableHeader(
        device=Device(
            kind="cpu",
            name=name,
            cores=1,
            threads=1,
            isa=(),
            memory_mib=1024,
            driver="",
            compute_capability="",
            os="none",
        ),
        runtime=Runtime(name="made-up", version="1"),
        protocol=Protocol(name="fast", warmup_ms=0, min_samples=1, max_samples=1, min_time_ms=0, max_time_ms=0),
        precision="fp32",
        lowering="1",
        space=space.name,
        created="2000-01-01",
    )
    networks = networks or [space.choice([options[k % len(options)] for options in _choices(space)]) for k in range(8)]
    rows = [_row("block", spec.key, block_us(spec, tread)) for spec in space.blocks()]
    rows += [
        _row(
            "network",
            f"network-{index:016x}",
            network_us(blocks, tread) * (1 + spread * math.sin(index)),
            tuple(s.key for s in blocks),
        )
        for index, blocks in enumerate(map(space.network, networks))
    ]
    return LatencyTable(
        header,
        rows,
        sha256="5" * 64 if name == "made-up" else hashlib.sha256(name.encode()).hexdigest(),
        path=f"{name}.jsonl",
    )


def _choices(space: Prunable) -> list[tuple[int, ...]]:
    return [space.width_choices(index) for index in range(len(space.groups))]


def _row(kind: str, key: str, us: float, blocks: tuple[str, ...] = ()) -> Row:
    us = round(us, 3)
    return Row(kind=kind, key=key, status="ok", samples_us=(us,), median_us=us, low_us=us, high_us=us, blocks=blocks)


def make_tiny() -> Chain:
    layers = (Layer(name="a", width=32), Layer(name="b", width=32, stride=2), Layer(name="c", width=32))
    return Chain(name="tiny", input_shape=(3, 8, 8), classes=2, layers=layers)


def make_layers() -> Layered:
    """Layers of each kind: one without choice, of kernels alone, and of kernels, squeeze-and-excite and hidden widths; two can be skipped."""

    def inverted(shape: ops.Shape, c_out: int, stride: int, *, fused: bool) -> tuple[MultiBlock, ...]:
        return tuple(
            MultiBlock(
                name=f"{'fused_' if fused else ''}irb_k{kernel}{'_se' if se else ''}",
                spec=ops.inverted_residual(shape, c_out, hidden=32, kernel=kernel, stride=stride, se=se, fused=fused),
                hidden=(8, 16, 24, 32),
            )
            for kernel in (3, 5)
            for se in (False, True)
        )

    kernels = tuple(MultiBlock(name=f"conv_k{kernel}", spec=ops.conv((4, 8, 8), 4, kernel=kernel)) for kernel in (3, 5))
    layers = (
        StochasticLayer(name="stem", options=(MultiBlock(name="stem", spec=ops.conv((3, 8, 8), 4, act="swish")),)),
        StochasticLayer(name="a", options=kernels, skippable=True),
        StochasticLayer(name="b", options=inverted((4, 8, 8), 6, 2, fused=False)),
        StochasticLayer(name="c", options=inverted((6, 4, 4), 6, 1, fused=False)[:2], skippable=True),
        StochasticLayer(name="tail", options=(MultiBlock(name="tail", spec=ops.tail((6, 4, 4), 2, hidden=16)),)),
    )
    return Layered(name="layers", input_shape=(3, 8, 8), classes=2, layers=layers)


def make_stripes() -> Classification:
    """Images with horizontal against images with vertical stripes, in noise."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % 2
        stripe = (torch.arange(8) % 2 * 120).float()
        images = torch.where(labels[:, None, None] == 0, stripe[None, :, None], stripe[None, None, :]).expand(
            count, 8, 8
        )
        noisy = images[:, None] + 60 * torch.rand(count, 3, 8, 8, generator=generator)
        return Split(images=noisy.to(torch.uint8), labels=labels)

    return Classification(
        name="stripes",
        labels=("horizontal", "vertical"),
        train=split(64),
        held_out=split(32),
        preprocessing=Preprocessing(size=(8, 8), mean=(0.35, 0.35, 0.35), std=(0.25, 0.25, 0.25)),
        augmentation=Augmentation(shift_px=1, flip=True),
    )


tiny = pytest.fixture(scope="session")(make_tiny)
stripes = pytest.fixture(scope="session")(make_stripes)


@pytest.fixture(scope="session")
def table(tiny: Chain) -> LatencyTable:
    return make_table(tiny)


METHODS: dict[str, tuple[type, type]] = {
    "pas": (PasSettings, Pas),
    "uniform": (UniformSettings, Uniform),
    "magnitude": (MagnitudeSettings, Magnitude),
    "slimming": (SlimmingSettings, Slimming),
    "table": (TableSettings, Table),
}
EPOCHS = {"pretrain_epochs": 2, "search_epochs": 4, "finetune_epochs": 2, "batch": 16}
FAST = {"beta": 1.0, "beta_rate": 0.2}
"""A controller that meets the budget within a few steps."""


def make_method(name: str, space, table, data, budget: float, **settings):
    """A method with few epochs."""
    kind, make = METHODS[name]
    found = kind(**(EPOCHS | (FAST if name == "pas" else {}) | settings))
    return make(
        found, Problem(space=space, table=table, task=data, budget=Budget.of(budget, "us" if table else "macs"))
    )


def weights_before(method, phase: str, out: Path) -> dict[str, torch.Tensor]:
    """Run a method; return the weights with which a phase starts to train."""
    starts, optimizers = {}, method.optimizers

    def watched(phase, network):
        starts[phase.name] = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return optimizers(phase, network)

    method.optimizers = watched
    for _ in session.run(method, out):
        pass
    return starts[phase]


@pytest.fixture(scope="session")
def budget_us(tiny, table) -> float:
    return 0.6 * table.predict(tiny.network()).us


@pytest.fixture
def search_into(tiny, table, stripes, budget_us):
    """Searches the tiny space: search_into(OUT, METHOD, SETTING=..., space=..., budget=...)."""

    def start(
        out: Path, name: str = "pas", *, baseline: Path | None = None, space=tiny, budget: float = budget_us, **settings
    ):
        return session.run(make_method(name, space, table, stripes, budget, **settings), out, baseline=baseline)

    return start


def make_staged() -> Traced:
    """The widths of a stem, three residual blocks, of which the last two can be left out, and a classifier."""

    def network() -> nn.Module:
        blocks = [trained(ops.residual((16, 8, 8), 16, hidden=16)) for _ in range(3)]
        classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        return nn.Sequential(trained(ops.conv((3, 8, 8), 16)), *blocks, classifier)

    return traced(network, torch.zeros(1, 3, 8, 8), name="staged", granularity=4, stages={"stage1": ["1", "2", "3"]})


@pytest.fixture(scope="session")
def staged() -> Traced:
    return make_staged()


def residual_network() -> Fixed:
    """Three residual blocks of one shape, two of another, and a classifier."""
    sequence = [ops.conv((3, 8, 8), 16)]
    for stride in (1, 1, 1, 2, 1):
        sequence.append(ops.residual(ops.output_shape(sequence[-1]), 16, hidden=16, stride=stride))
    sequence.append(ops.head(ops.output_shape(sequence[-1]), 2))
    return Fixed(name="residual", input_shape=(3, 8, 8), classes=2, sequence=tuple(sequence))


@pytest.fixture(scope="session")
def free() -> Traced:
    """Its widths, each layer's free, and its depths."""
    return free_widths(residual_network(), granularity=4)


class Shortcut(nn.Module):
    """Two convolutions that are added up, a depth-wise one, one that is not searched below, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32))
        self.wide = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(48, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2))

    def forward(self, x):
        x = self.stem(x)
        return self.classifier(self.last(self.wide(torch.relu(x + self.body(x)))))


@pytest.fixture(scope="session")
def shortcut():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Shortcut()


@pytest.fixture(scope="session")
def shortcut_space(shortcut):
    return of_module(shortcut, torch.zeros(1, 3, 8, 8), name="shortcut")
