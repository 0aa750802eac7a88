"""What PRUNET's search does, part by part: widths, blocks, memory and time, and whole searches of `prunet-mini` on CIFAR-10.

    python benchmarks/prunet_search.py --work /tmp/prunet [--parts planted brute layer ...]
        [--archive cifar10-jpeg.tar.zst --table profiles/DEVICE/prunet-mini.fp32.latency.jsonl]

| part | what |
|---|---|
| planted | block pruning alone: layers of four blocks, of which one is best by construction, and a noisy loss of their shares |
| brute | a Prunode trained on digits, against the same block trained alone at each of its 24 widths |
| layer | memory and time of a Prunode over the number of its widths, beside separate blocks and superposed masks (FBNetV2) |
| frees | memory and time of the supernet of `prunet-mini` with four, two and one block a layer |
| epoch | memory and time of an epoch of the search of `prunet` at 288x288, 100 classes, batch 8 |
| search | whole searches: linear and constant threshold, and no block removed, from one warm-up |
| skips | searches with several phi and lambda: number of layers, latency, loss |
| budgets | networks found for three budgets, trained equally, beside random and uniformly scaled ones, and searches without each pruning |
| measured | latency of all these networks, in turns; on an otherwise idle core |

Each part keeps its numbers in WORK and is not run again; searches go on where they were interrupted. What is there is written to
benchmarks/prunet_search.md, with a plot beside it. What comes after `epoch` needs CIFAR-10 and the table.
"""

import argparse
import json
import math
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from cifar import accuracy, cifar
from nasbench201 import half, smaller
from outcome import make_once, mean_and_half, t_95, verdicts
from scipy.signal import savgol_filter
from torch import nn

from deploy.engine import measure_in_turns
from latency import LatencyTable, backends, protocol
from search import Choice, methods, ops, prunode, session, spaces
from search.architecture import Preprocessing, load_architecture
from search.augment import Augmentation
from search.blocks import trained
from search.budget import Budget
from search.classification import Classification, Split
from search.data import digits
from search.layered_supernet import LayeredSupernet, MixedLayer, Prunode
from search.method import Method, Phase, Problem
from search.methods.prunet import Prunet
from search.methods.settings import PrunetSettings, recipe
from search.network import load_weights
from search.record import EpochDone
from search.spaces.layered import SKIP, MultiBlock, StochasticLayer
from search.workloads import lower_network

HERE = Path(__file__).parent
PARTS = ("planted", "brute", "layer", "frees", "epoch", "search", "skips", "budgets", "measured")
LAYERS, BLOCKS, PLANTED_SEEDS, NOISE = 18, 4, range(5), 1.0
EPOCHS, EPOCH_STEPS = 130, 20
AUTO_RATE = recipe(PrunetSettings, 5 * 64 * EPOCH_STEPS, search_epochs=EPOCHS).theta_lr
"""Of so many steps: a fifth of the images train theta, 64 a step."""
PLANTED_RATES = sorted({0.1, 0.01, AUTO_RATE}, reverse=True)
ALPHAS, BRUTE_SEEDS, CURVE_SEEDS = (0.05, 0.2, 0.5, 1.0, 2.0), (0, 1, 2), (0, 1, 2, 3, 4, 5)
BRUTE_WARMUP, BRUTE_STEPS = 600, 600
"""Steps of weights alone before the search, as in the method, and of the search, every fifth of which trains the architecture."""
SMOOTHED = 17 / 35
"""What the smoothing of the curve leaves of the variance of a point."""
IMAGES = 6_000
CLASSES, EPOCH_IMAGES = 100, 40
SEARCHES: dict[str, dict] = {
    "linear threshold": {},
    "constant threshold": {"threshold": "constant", "t_initial": 0.133},
    "nothing removed": {"prune_blocks": False},
}
BUDGETS = (0.1, 0.2, 0.4)
"""Of the latency of the largest network."""
SEARCH_SEEDS, ABLATION_SEEDS, RANDOM, TRAIN_EPOCHS = (10, 11, 12, 13, 14), (10, 11, 12), 20, 10
SHORT_IMAGES, SHORT = (
    2_000,
    {"warmup_epochs": 4, "search_epochs": 8, "train_epochs": 8, "search_batch": 32, "batch": 32},
)
"""Of `budgets` and `skips`."""
ABLATIONS = {
    "widths kept": {"prune_widths": False},
    "blocks kept": {"prune_blocks": False},
    "layers kept": {"prune_layers": False},
}
"""The same search without one of its three prunings."""
WAYS = ("found", "random", "uniform", *ABLATIONS)
FACTORS = ((1.0, 1.0), (1.1, 0.85), (1.1, 0.55), (1.1, 0.4))
"""phi and lambda of the paper's Table 6."""


# Block pruning alone


def planted(rate: float, policy: str, margin: float, seeds: Sequence[int] = PLANTED_SEEDS) -> dict:
    """Layers with a best block: the others lose `margin` to twice as much, and each step sees that through noise of NOISE."""
    kept = block_steps = 0
    for seed in seeds:
        torch.manual_seed(seed)
        layers = [_mixed(1) for _ in range(LAYERS)]
        best = torch.randint(BLOCKS, (LAYERS,))
        lost = margin * (1 + torch.rand(LAYERS, BLOCKS))
        lost[torch.arange(LAYERS), best] = 0.0
        optimizer = torch.optim.Adam([layer.theta for layer in layers], lr=rate)
        for epoch in range(EPOCHS):
            for step in range(EPOCH_STEPS):
                optimizer.zero_grad()
                total = torch.zeros(())
                for layer, losses in zip(layers, lost, strict=True):
                    here = torch.tensor([int(name) for name in layer.candidates])
                    total = total + layer.sample(1.0, noisy=True).blocks @ (
                        losses[here] + NOISE * torch.randn(len(here))
                    )
                if not total.requires_grad:
                    break  # one block is left of each layer
                total.backward()
                optimizer.param_groups[0]["lr"] = (
                    rate * (1 + math.cos(math.pi * (epoch * EPOCH_STEPS + step) / (EPOCHS * EPOCH_STEPS))) / 2
                )
                optimizer.step()
            block_steps += sum(len(layer.blocks) for layer in layers)
            for layer in layers:
                layer.prune(0.133 if policy == "constant" else 0.15 + 0.4 * (epoch + 1) / EPOCHS)
        kept += sum(layer.best == str(int(index)) for layer, index in zip(layers, best, strict=True))
    count = len(seeds) * LAYERS
    return {
        "rate": rate,
        "policy": policy,
        "margin": margin,
        "kept": kept / count,
        "ratio": block_steps / (count * EPOCHS * BLOCKS),
    }


def _mixed(channels: int) -> MixedLayer:
    """A layer of blocks that are told apart by their names alone."""
    options = tuple(
        MultiBlock(name=str(index), spec=ops.conv((channels, 1, 1), channels, kernel=1)) for index in range(BLOCKS)
    )
    return MixedLayer(StochasticLayer(name="layer", options=options), phi=1.0, lam=1.0)


# A Prunode against brute force


class Toy(nn.Module):
    """A stem, one inverted residual and a classifier."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem = trained(ops.conv((3, 8, 8), 8, stride=2, act="swish"))
        self.block = block
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor, *pair: torch.Tensor) -> torch.Tensor:
        """Images [batch, 3, 8, 8] -> logits."""
        return self.head(self.block(self.stem(x), *pair).mean((2, 3)))


def _block(hidden: int) -> MultiBlock:
    spec = ops.inverted_residual((8, 4, 4), 8, hidden=hidden, act="swish")
    return MultiBlock(name="irb", spec=spec, hidden=tuple(range(8, hidden + 1, 8)))


def _microseconds(width: float | torch.Tensor) -> float | torch.Tensor:
    """Of a made-up device: a fixed part, and so much a channel."""
    return 20 + 2.0 * width


def _penalty(alpha: float, width: int) -> float:
    return alpha * math.log(_microseconds(width)) ** 0.6


def _train(
    network: nn.Module, data: Classification, seed: int, step: Callable[[int, torch.Tensor, torch.Tensor], None]
) -> None:
    """Call `step` with its index, which is below 0 in the warm-up, and a batch."""
    generator, index = torch.Generator().manual_seed(seed), -BRUTE_WARMUP
    while index < BRUTE_STEPS:
        for images, labels in data.training_batches(64, generator):
            step(index, images, labels)
            index += 1


def _of_architecture(index: int) -> bool:
    return index >= 0 and index % 5 == 4


def _progress(index: int) -> float:
    return min(1.0, max(0, index) / BRUTE_STEPS)


@torch.no_grad()
def _loss(network: nn.Module, data: Classification, *pair: torch.Tensor) -> float:
    network.eval()
    each = [
        (F.cross_entropy(network(images, *pair), labels).item(), len(labels))
        for images, labels in data.held_out_batches(1000)
    ]
    network.train()
    return sum(loss * count for loss, count in each) / sum(count for _, count in each)


def alone(width: int, seed: int) -> float:
    """Held-out cross-entropy of the block trained alone at one width, by as many steps as a Prunode's weights."""
    torch.manual_seed(seed)
    data, network = digits(8), Toy(trained(_block(width).spec))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    def step(index: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        if _of_architecture(index):
            return
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * _progress(index)))
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    _train(network, data, seed, step)
    return _loss(network, data)


def trained_prunode(alpha: float, seed: int, *, paper: bool) -> int:
    """Width that a Prunode ends with: after a warm-up, every fifth step trains its weight, on a batch of its own."""
    torch.manual_seed(seed)
    data, node = digits(8), Prunode(_block(192), paper=paper)
    network = Toy(node)
    weights = [value for name, value in network.named_parameters() if name != "block.weight"]
    optimizer = torch.optim.Adam(weights, lr=2e-3)
    chooser = torch.optim.Adam([node.weight], lr=0.1, betas=(0.9, 0.999) if paper else prunode.BETAS)

    def step(index: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        progress = _progress(index)
        used = chooser if _of_architecture(index) else optimizer
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * progress))
        pair = node.pair(-(-torch.rand(2).clamp(1e-6, 1 - 1e-6).log()).log(), 1.0)
        us = _microseconds(pair @ torch.tensor([float(node.masks.small), float(node.masks.large)]))
        network.zero_grad()
        (F.cross_entropy(network(images, pair), labels) + alpha * us.log() ** 0.6).backward()
        used.step()
        if used is chooser:
            node.step(progress)

    _train(network, data, seed, step)
    return node.width


def brute(keep: Callable[[str, Callable[[], object]], object]) -> dict:
    """Loss of the chosen width beside the best one's, by the curve over all widths: the mean over seeds of blocks trained alone.

    The curve is smoothed by parabolas over five widths (Savitzky and Golay 1964). A mean of five would lift its steep end: it would have
    8 channels as good as their neighbours.
    """
    widths = range(8, 193, 8)
    curve = [
        [keep(f"brute-{width}-{seed}", lambda w=width, s=seed: alone(w, s)) for seed in CURVE_SEEDS] for width in widths
    ]
    smooth = dict(zip(widths, savgol_filter([statistics.mean(losses) for losses in curve], 5, 2), strict=True))
    rows = []
    for paper in (False, True):
        for alpha in ALPHAS:
            total = {width: loss + _penalty(alpha, width) for width, loss in smooth.items()}
            best = min(total, key=total.__getitem__)
            for seed in BRUTE_SEEDS:
                name = f"prunode-{alpha}-{seed}-{paper}"
                width = keep(name, lambda a=alpha, s=seed, p=paper: trained_prunode(a, s, paper=p))
                rows.append(
                    {
                        "paper": paper,
                        "alpha": alpha,
                        "seed": seed,
                        "width": width,
                        "best": best,
                        "lost": total[width] - total[best],
                    }
                )
    noise = statistics.mean(map(statistics.stdev, curve))
    return {"rows": rows, "noise": noise, "error": noise * math.sqrt(2 * SMOOTHED / len(CURVE_SEEDS))}


# Memory and time


class Separate(nn.Module):
    """A block for each width, weighted."""

    def __init__(self, block: MultiBlock) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(map(trained, block.blocks()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float [batch, channels, h, w], and the same back."""
        return sum(block(x) / len(self.blocks) for block in self.blocks)


class Superposed(nn.Module):
    """One block, whose hidden channels are multiplied by the weighted sum of the masks of all widths (Wan et al. 2020)."""

    def __init__(self, block: MultiBlock) -> None:
        super().__init__()
        self.block, self.theta = trained(block.spec), nn.Parameter(torch.zeros(len(block.hidden)))
        self.register_buffer(
            "masks", torch.stack([(torch.arange(block.hidden[-1]) < width).float() for width in block.hidden])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float [batch, channels, h, w], and the same back."""
        body = self.block.body
        mask = (self.theta.softmax(0) @ self.masks).view(1, -1, 1, 1)
        return x + body.project(body.depthwise(body.expand(x) * mask) * mask)


class Alone(nn.Module):
    """A Prunode in the middle of a search."""

    def __init__(self, block: MultiBlock, *, literal: bool) -> None:
        super().__init__()
        self.node = Prunode(block, literal=literal)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float [batch, channels, h, w], and the same back."""
        return self.node(x, self.node.pair(torch.zeros(2), 1.0))


def saved_mib(network: nn.Module, x: torch.Tensor) -> float:
    """MiB that a forward pass saves for its backward pass, weights left out."""
    saved: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return value

    held = {weight.untyped_storage().data_ptr() for weight in (*network.parameters(), *network.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        out = network(x)
    out.sum().backward()
    return sum(size for place, size in saved.items() if place not in held) / 2**20


def step_ms(networks: dict[str, nn.Module], x: torch.Tensor, *, rounds: int) -> dict[str, float]:
    """CPU milliseconds of both passes of each network: the least of several rounds, in each of which every one takes its turn."""
    found = dict.fromkeys(networks, math.inf)
    for _ in range(rounds):
        for name, network in networks.items():
            begun = time.process_time()
            network(x).sum().backward()
            found[name] = min(found[name], 1e3 * (time.process_time() - begun))
    return found


def layer() -> dict:
    """24 channels, hidden 192, 16x16, batch 32: 6, 24 and 96 widths.

    The step time is the least of several networks that are built alike: where their tensors lie in memory alone makes up to 30 %.
    """
    torch.manual_seed(0)
    x, found = torch.randn(32, 24, 16, 16), {}
    spec = ops.inverted_residual((24, 16, 16), 24, hidden=192, act="swish")
    blocks = [MultiBlock(name="irb", spec=spec, hidden=tuple(range(granule, 193, granule))) for granule in (32, 8, 2)]
    kinds: dict[str, Callable[[MultiBlock], nn.Module]] = {
        "Prunode": lambda block: Alone(block, literal=False),
        "Prunode, a norm of each candidate": lambda block: Alone(block, literal=True),
        "separate blocks": Separate,
        "superposed masks (FBNetV2)": Superposed,
    }
    for name, make in kinds.items():
        times = []
        for _ in range(1 if make is Separate else 4):
            networks = {str(len(block.hidden)): make(block) for block in blocks}
            times.append(step_ms(networks, x, rounds=3 if make is Separate else 15))
        found[name] = {
            count: {"mib": saved_mib(network, x), "ms": min(each[count] for each in times)}
            for count, network in networks.items()
        }
    return found


def frees() -> dict:
    """The supernet of prunet-mini while layers have four, two and one block: memory, time, and what optimizers hold."""
    networks, found = {}, {}
    x = torch.randn(64, 3, 16, 16)
    for left in (4, 2, 1):
        torch.manual_seed(0)
        networks[str(left)] = network = LayeredSupernet(spaces.get("prunet-mini"), tau=1.0, phi=1.1, lam=0.55)
        for _, mixed in network.each():
            mixed.skippable = False
            with torch.no_grad():
                mixed.theta[:left] += 10.0 if len(mixed.theta) > left else 0.0
            mixed.prune(0.01)
        optimizer = torch.optim.RMSprop(network.weights(), momentum=0.9)
        mib = saved_mib(network, x)
        optimizer.step()
        slots = sum(
            slot.numel()
            for state in optimizer.state.values()
            for slot in state.values()
            if isinstance(slot, torch.Tensor)
        )
        weights = sum(weight.numel() for weight in network.weights())
        found[str(left)] = {"mib": mib, "weights_mib": 4 * weights / 2**20, "optimizer_mib": 4 * slots / 2**20}
    ms = step_ms(networks, x, rounds=8)
    return {left: row | {"ms": ms[left]} for left, row in found.items()}


def epoch() -> dict:
    """An epoch of the search of `prunet` at its full size, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_epoch).result()


def _epoch() -> dict:
    torch.set_num_threads(1)
    space = spaces.get("prunet", classes=CLASSES)
    draw = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, *space.input_shape), dtype=torch.uint8, generator=draw)
        return Split(images=images, labels=torch.randint(CLASSES, (count,), generator=draw))

    data = Classification(
        name="noise",
        labels=tuple(map(str, range(CLASSES))),
        train=split(EPOCH_IMAGES),
        held_out=split(8),
        preprocessing=Preprocessing(size=space.input_shape[1:], mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=Augmentation(shift_px=0, flip=True),
    )
    settings = PrunetSettings(warmup_epochs=0, search_epochs=2, search_batch=8, recompute=True)
    problem = Problem(space=space, task=data, table=None, budget=Budget(macs=space.macs()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as out:
        next(
            event
            for event in session.run(methods.method(settings, problem), Path(out) / "run")
            if isinstance(event, EpochDone)
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_gib": peak / 2**20,
        "before_gib": before / 2**20,
        "cpu_s": _cpu_s(),
        "images": EPOCH_IMAGES,
        "size": space.input_shape[1],
    }


# Whole searches


def settings_of(data: Classification, **given: Any) -> PrunetSettings:
    """As `auto` has them, with the training of this benchmark."""
    return recipe(PrunetSettings, len(data.train), **{"train_epochs": TRAIN_EPOCHS} | given)


def problem_of(data: Classification, table: LatencyTable, fraction: float | None = None) -> Problem:
    """Networks of prunet-mini within a share of the largest one's latency, or all of them."""
    space = spaces.get("prunet-mini")
    largest = table.predict(space.network())
    return Problem(
        space=space, task=data, table=table, budget=Budget(us=fraction * largest.us if fraction else largest.high_us)
    )


def run(method: Method, out: Path, *, baseline: Path | None = None, until: str = "") -> list[dict]:
    """A search, or what is left of it, up to a phase: an epoch a row, with its CPU-seconds, which are kept beside it."""
    clock = out.with_suffix(".cpu.json")
    spent = json.loads(clock.read_text()) if clock.exists() else {}
    begun = _cpu_s()
    for event in session.run(method, out, baseline=baseline):
        if isinstance(event, EpochDone):
            if event.phase == until:
                break
            name = f"{event.phase}/{event.epoch}"
            spent[name] = _cpu_s() - begun
            clock.write_text(json.dumps(spent))
            print(
                f"{out.name}: {name} of {event.epochs}, {event.score:.2%}, {spent[name]:.0f} s",
                file=sys.stderr,
                flush=True,
            )
            begun = _cpu_s()
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [
        row | {"cpu_s": spent.get(f"{row['phase']}/{row['epoch']}", math.nan)}
        for row in lines
        if row.get("phase", until) != until
    ]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def search(data: Classification, table: LatencyTable, work: Path) -> dict:
    """Linear against constant threshold against none, from one warm-up: block-steps, CPU-seconds, and what was found."""
    problem, found = problem_of(data, table), {}
    first = work / "search" / next(iter(SEARCHES))
    for name, chosen in SEARCHES.items():
        out = work / "search" / name
        rows = run(methods.method(settings_of(data, **chosen), problem), out, baseline=None if out == first else first)
        phase = [row for row in rows if row["phase"] == "search"]
        fixed = sum(not layer.open for layer in problem.space.layers)
        full = sum(len(layer.options) for layer in problem.space.layers) - fixed
        found[name] = {
            "block_steps": sum(row["figures"]["blocks"] - fixed for row in phase) / (full * len(phase)),
            "search_cpu_s": sum(row["cpu_s"] for row in phase),
            "warmup_cpu_s": sum(row["cpu_s"] for row in rows if row["phase"] == "warmup"),
            "accuracy": rows[-1]["score"],
            "latency_us": rows[-1]["latency_us"],
            "search_loss": phase[-1]["figures"]["search_loss"],
            "layers": _layers(rows[-1]["choice"]),
        }
    return found


def _layers(choice: dict) -> int:
    """Open layers that a network does not skip."""
    return sum(option != SKIP for option in choice["options"].values())


# Three budgets, and layer skipping


def warmed(data: Classification, table: LatencyTable, work: Path) -> Path:
    """Directory of the run whose warm-up all of these searches start from."""
    out = work / "warmup"
    if not (out / "baseline.safetensors").exists():
        run(methods.method(settings_of(data, **SHORT), problem_of(data, table)), out, until="search")
    return out


def skips(data: Classification, table: LatencyTable, work: Path) -> list[dict]:
    """Searches without a budget that differ in phi and lambda alone."""
    rows = []
    for phi, lam in FACTORS:
        method = methods.method(settings_of(data, **SHORT, phi=phi, lam=lam), problem_of(data, table))
        last = run(method, work / "skips" / f"{phi}-{lam}", baseline=warmed(data, table, work), until="train")[-1]
        row = {"phi": phi, "lam": lam, "layers": _layers(last["choice"]), "latency_us": last["latency_us"]}
        rows.append(row | {"search_loss": last["figures"]["search_loss"]})
    return rows


def planned() -> list[tuple[str, float, int]]:
    """Way, budget and seed of every network that is trained; what matters most comes first."""
    first = [(way, fraction, seed) for seed in SEARCH_SEEDS for way in ("found", "uniform") for fraction in BUDGETS]
    drawn = [("random", fraction, index) for index in range(RANDOM) for fraction in BUDGETS]
    ablations = [(way, fraction, seed) for seed in ABLATION_SEEDS for way in ABLATIONS for fraction in BUDGETS]
    return first + drawn + ablations


def of_way(rows: dict[str, dict], way: str, fraction: float) -> dict[str, dict]:
    """Networks of a way and a budget."""
    return {name: row for name, row in rows.items() if name.startswith(f"{way}-{fraction}-")}


def one_network(
    way: str, fraction: float, seed: int, data: Classification, test: Split, table: LatencyTable, work: Path
) -> dict:
    """A network within a budget, and its accuracy on all test images after the training that all of them have."""
    problem, out = problem_of(data, table, fraction), work / way / f"{fraction}-{seed}"
    if way in ("uniform", "random"):
        method = Given(settings_of(data, **SHORT, seed=seed), problem)
        method.chosen = _uniform(problem) if way == "uniform" else _random(problem)[seed]
        run(method, out)
    else:
        method = methods.method(settings_of(data, **SHORT, **ABLATIONS.get(way, {}), seed=seed), problem)
        run(method, out, baseline=warmed(data, table, work))
    choice = load_architecture(out / "architecture.json").choice
    network = problem.space.module(choice)
    load_weights(network, out / "weights.safetensors", {})
    us = {"budget_us": problem.budget.us, "predicted_us": table.predict(problem.space.network(choice)).us}
    return {"accuracy": accuracy(network, data, test), **us, "choice": msgspec.to_builtins(choice)}


class Given(Prunet):
    """Trains a given network, `chosen`, as a search trains the one that it found."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The last one alone."""
        return super().phases[-1:]


def _random(problem: Problem) -> list[Choice]:
    """Random networks within the budget, and above nine tenths of it."""
    draw, found = random.Random(0), []
    while len(found) < RANDOM:
        choice = problem.space.random(draw)
        price = problem.table.predict(problem.space.network(choice))
        if price.high_us <= problem.budget.us and price.us >= 0.9 * problem.target:
            found.append(choice)
    return found


def _uniform(problem: Problem) -> Choice:
    """Of the cheapest kind of block with which the budget binds: all layers, all at the same expansion, the highest within the budget."""
    layers = [layer for layer in problem.space.layers if layer.open]

    def scaled(kind: int, share: float) -> Choice:
        options = {layer.name: layer.options[min(kind, len(layer.options) - 1)] for layer in layers}
        widths = {name: o.hidden[max(0, round(share * len(o.hidden)) - 1)] for name, o in options.items() if o.hidden}
        return Choice(options={name: option.name for name, option in options.items()}, widths=widths)

    def holds(choice: Choice) -> bool:
        return problem.table.predict(problem.space.network(choice)).high_us <= problem.budget.us

    kind = next(kind for kind in range(BLOCKS) if not holds(scaled(kind, 1.0)))
    return [choice for index in range(1, 49) if holds(choice := scaled(kind, index / 48))][-1]


def measured(rows: dict[str, dict]) -> dict[str, float]:
    """Median microseconds of each network, in turns, on this CPU."""
    space, backend = spaces.get("prunet-mini"), backends.get("onnxruntime", threads=1)
    choices = {name: msgspec.convert(row["choice"], Choice) for name, row in rows.items()}
    with ExitStack() as stack:
        timed = {
            name: stack.enter_context(backend.compile(lower_network(space, choice))) for name, choice in choices.items()
        }
        return {name: row.median_us for name, row in measure_in_turns(timed, protocol.FAST).items()}


# The report


def _planted_lines(rows: list[dict]) -> Iterator[str]:
    yield "\n## Block pruning alone\n"
    yield f"{LAYERS} layers of {BLOCKS} blocks, {EPOCHS} epochs of {EPOCH_STEPS} steps, {len(PLANTED_SEEDS)} seeds; the noise of a block's loss is {NOISE:g}.\n"
    yield "| rate of theta | threshold | margin of the best block | best block kept | block-steps |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {row['rate']:g} | {row['policy']} | {row['margin']:g} | {row['kept']:.0%} | {row['ratio']:.2f} |"


def _brute_lines(found: dict) -> Iterator[str]:
    yield "\n## A trained Prunode against brute force over 24 widths\n"
    yield (
        f"Digits, 8x8. As in the method, {BRUTE_WARMUP} steps of weights alone come first, then {BRUTE_STEPS} of the search; blocks trained "
        "alone get as many steps of their weights. (An earlier version had no warm-up: the masks shrank before the weights had learned "
        "anything. The change was made on seeds 20 to 25.) "
        f"A block trained alone has a standard deviation of {found['noise']:.3f} over seeds, so the curve over widths is smoothed by "
        f"parabolas; a difference between two of its widths has a standard error of {found['error']:.3f}.\n"
    )
    yield "| rule | alpha | best width | found, seeds 0 to 2 | loss above the best |"
    yield "|---|---|---|---|---|"
    for paper in (False, True):
        for alpha in ALPHAS:
            rows = [row for row in found["rows"] if (row["paper"], row["alpha"]) == (paper, alpha)]
            widths, lost = ", ".join(str(row["width"]) for row in rows), ", ".join(f"{row['lost']:.3f}" for row in rows)
            yield f"| {'paper' if paper else 'default'} | {alpha:g} | {rows[0]['best']} | {widths} | {lost} |"


def _layer_lines(found: dict) -> Iterator[str]:
    yield "\n## Memory and time of a layer over its number of widths\n"
    yield "24 channels, hidden 192, 16x16, batch 32, one thread; MiB saved for the backward pass, CPU milliseconds of both passes.\n"
    yield "| kind | 6 widths | 24 widths | 96 widths |"
    yield "|---|---|---|---|"
    for name, each in found.items():
        yield (
            f"| {name} | "
            + " | ".join(f"{each[count]['mib']:.1f} MiB, {each[count]['ms']:.0f} ms" for count in ("6", "24", "96"))
            + " |"
        )


def _frees_lines(found: dict) -> Iterator[str]:
    yield "\n## What removed blocks free\n"
    yield "The supernet of prunet-mini, batch 64, one thread.\n"
    yield "| blocks a layer | saved for the backward pass | step | weights | optimizer |"
    yield "|---|---|---|---|---|"
    for left, row in found.items():
        yield f"| {left} | {row['mib']:.0f} MiB | {row['ms']:.0f} ms | {row['weights_mib']:.2f} MiB | {row['optimizer_mib']:.2f} MiB |"


def _epoch_lines(found: dict) -> Iterator[str]:
    size = found["size"]
    yield f"\n## An epoch of the search of prunet at {size}x{size}\n"
    yield (
        f"{found['images']} images of noise of {CLASSES} classes, batch 8, `--recompute True`, one thread: at most {found['peak_gib']:.2f} GiB "
        f"in all, of which {found['before_gib']:.2f} GiB before it starts; {found['cpu_s']:.0f} CPU-seconds."
    )


def _search_lines(found: dict) -> Iterator[str]:
    yield "\n## Searches of prunet-mini\n"
    yield f"{IMAGES} images of CIFAR-10 at 16x16, no budget, alpha 1; the found network trained for {TRAIN_EPOCHS} epochs. CPU-seconds of one core. Theta at 0.1; `auto` has 0.07 for so many steps since.\n"
    yield "| search | block-steps of phase 2 | CPU of phase 2 | of the warm-up | found: layers | latency | accuracy | search loss |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in found.items():
        yield (
            f"| {name} | {row['block_steps']:.2f} | {row['search_cpu_s']:.0f} s | {row['warmup_cpu_s']:.0f} s | {row['layers']} "
            f"| {row['latency_us']:.0f} us | {row['accuracy']:.2%} | {row['search_loss']:.3f} |"
        )


def _skip_lines(rows: list[dict]) -> Iterator[str]:
    yield "\n## Layer skipping: phi and lambda\n"
    yield f"Searches of prunet-mini as in the next section, without a budget, alpha 1, one seed; of {_open_layers()} layers (the paper's Table 6).\n"
    yield "| phi, lambda | layers kept | latency | search loss |"
    yield "|---|---|---|---|"
    for row in rows:
        yield f"| {row['phi']:g}, {row['lam']:g} | {row['layers']} | {row['latency_us']:.0f} us | {row['search_loss']:.3f} |"


def _open_layers() -> int:
    return sum(layer.open for layer in spaces.get("prunet-mini").layers)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _ahead(ones: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Difference of two means, and half of its 95 % interval (Welch's t, degrees of freedom rounded down)."""
    errors = [_standard_error(each) ** 2 for each in (ones, others)]
    freedom = sum(errors) ** 2 / sum(
        error**2 / (len(each) - 1) for error, each in zip(errors, (ones, others), strict=True)
    )
    return statistics.mean(ones) - statistics.mean(others), t_95(int(freedom)) * math.sqrt(sum(errors))


def _budget_lines(rows: dict[str, dict], times: dict[str, float]) -> Iterator[str]:
    yield "\n## Three budgets\n"
    yield (
        f"Shares of the largest network's latency. {SHORT_IMAGES:,} images of CIFAR-10 at 16x16; {SHORT['warmup_epochs']} epochs of a shared "
        f"warm-up, {SHORT['search_epochs']} of search; every network is trained for {SHORT['train_epochs']}. Accuracy on 10,000 test images, mean and 95 % interval "
        f"(Student's t){'; latency measured in turns' if times else ''}. Random networks are drawn between nine tenths of the budget and all of it; uniform ones "
        "have one kind of block, the cheapest with which the budget binds, at one expansion, and skip no layer. Seeds 13 and 14 of the found "
        "and the uniform networks, and random networks beyond seven, were planned after the others had been looked at.\n"
    )
    if times:
        ratios = [times[name] / rows[name]["predicted_us"] for name in times]
        yield (
            f"Measured latency is {min(ratios):.1f} to {max(ratios):.1f} times the predicted one: the table is of a core with AVX-512, what is "
            "measured of one without. So equal predictions are not equal latencies there.\n"
        )
    yield "| budget | networks | number | accuracy | measured | predicted | layers |"
    yield "|---|---|---|---|---|---|---|"
    for fraction in BUDGETS:
        for way in WAYS:
            if each := of_way(rows, way, fraction):
                mean, half_width = mean_and_half([row["accuracy"] for row in each.values()])
                timed = [times[name] for name in each if name in times]
                cells = [
                    f"{mean:.2%} +- {half_width:.2%}" if len(each) > 1 else f"{mean:.2%}",
                    f"{statistics.mean(timed):.1f} us" if timed else "-",
                ]
                cells += [f"{statistics.mean(row['predicted_us'] for row in each.values()):.1f} us"]
                cells += [f"{statistics.mean(_layers(row['choice']) for row in each.values()):.1f}"]
                budget_us = next(iter(each.values()))["budget_us"]
                yield f"| {fraction:.0%}, {budget_us:.0f} us | {way} | {len(each)} | {' | '.join(cells)} |"


def plot(rows: dict[str, dict], times: dict[str, float], path: Path) -> None:
    """Accuracy of every network over its measured latency."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for way, marker in zip(WAYS, "osx^vD", strict=True):
        names = [name for name in rows if name.startswith(f"{way}-") and name in times]
        if not names:
            continue
        axes.plot(
            [times[name] for name in names],
            [100 * rows[name]["accuracy"] for name in names],
            marker,
            label=way,
            alpha=0.8,
        )
    axes.set(
        xlabel="measured latency, us (ONNX Runtime, one thread, batch 1)", ylabel="accuracy on 10,000 test images, %"
    )
    figure.legend(loc="outside upper center", ncols=len(WAYS))
    figure.savefig(path, dpi=100)


def _verdicts(found: dict) -> list[str]:
    rows = []
    if "planted" in found:
        for rate in PLANTED_RATES:
            worst = min(row["kept"] for row in found["planted"] if row["rate"] == rate)
            name = f"{rate:g}, as auto has it" if rate == AUTO_RATE else f"{rate:g}"
            rows.append((f"planted best block kept, theta at {name}", f"{worst:.0%}", ">= 90 %", worst >= 0.9))
        most = max(row["ratio"] for row in found["planted"] if (row["rate"], row["policy"]) == (AUTO_RATE, "linear"))
        rows.append(("block-steps of the planted, auto, linear", f"{most:.2f}", "<= 0.50", most <= 0.5))
    if "brute" in found:
        lost = max(row["lost"] for row in found["brute"]["rows"] if not row["paper"])
        rows.append(("Prunode's loss above the best of 24 widths", f"{lost:.3f}", "<= 0.010", lost <= 0.01))
    if "layer" in found:
        each = found["layer"]["Prunode"]
        mib, ms = ([row[kind] for row in each.values()] for kind in ("mib", "ms"))
        rows.append(
            (
                "memory of a Prunode, 6 to 96 widths",
                f"{max(mib) / min(mib) - 1:.1%}",
                "<= 2 %",
                max(mib) <= 1.02 * min(mib),
            )
        )
        rows.append(
            (
                "step time of a Prunode, 6 to 96 widths",
                f"{max(ms) / min(ms) - 1:.1%}",
                "<= 10 %",
                max(ms) <= 1.1 * min(ms),
            )
        )
    if "epoch" in found:
        gib = found["epoch"]["peak_gib"]
        rows.append(("memory of an epoch of prunet, 288x288, batch 8", f"{gib:.2f} GiB", "<= 8 GiB", gib <= 8))
    if len(found.get("search", {})) == len(SEARCHES):
        linear, none = found["search"]["linear threshold"], found["search"]["nothing removed"]
        rows.append(
            ("block-steps of phase 2, linear", f"{linear['block_steps']:.2f}", "<= 0.50", linear["block_steps"] <= 0.5)
        )
        share = linear["search_cpu_s"] / none["search_cpu_s"]
        rows.append(("CPU time of phase 2 beside nothing removed", f"{share:.2f}", "<= 0.55", share <= 0.55))
        minutes = (linear["search_cpu_s"] + linear["warmup_cpu_s"]) / 60
        rows.append(("a search on one core", f"{minutes:.0f} min", "<= 30 min", minutes <= 30))
    for other in ("random", "uniform"):
        for fraction in BUDGETS:
            pair = [
                [row["accuracy"] for row in of_way(found.get("budgets", {}), way, fraction).values()]
                for way in ("found", other)
            ]
            if min(map(len, pair)) > 1:
                mean, half_width = _ahead(*pair)
                reached = f"{100 * mean:+.1f} +- {100 * half_width:.1f} points"
                rows.append(
                    (
                        f"found ahead of {other}, {fraction:.0%} of the latency",
                        reached,
                        "above the interval",
                        mean > half_width,
                    )
                )
    return verdicts(rows)


def report(found: dict) -> str:
    """As Markdown, of what is there."""
    parts = {
        "planted": _planted_lines,
        "brute": _brute_lines,
        "layer": _layer_lines,
        "frees": _frees_lines,
        "epoch": _epoch_lines,
        "search": _search_lines,
        "skips": _skip_lines,
        "budgets": partial(_budget_lines, times=found.get("measured", {})),
    }
    lines = ["PRUNET's search, part by part\n", *_verdicts(found)]
    if "measured" in found:
        lines.append("\n![accuracy over latency](prunet_search.png)")
    for name, say in parts.items():
        if name in found:
            lines += say(found[name])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--parts", nargs="*", default=PARTS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    keep = partial(make_once, options.work)

    makes: dict[str, Callable[[], object]] = {
        "planted": all_planted,
        "brute": lambda: brute(keep),
        "layer": layer,
        "frees": frees,
        "epoch": epoch,
    }
    if options.archive and options.table:
        table = LatencyTable.load(options.table)
        makes["search"] = lambda: search(half(cifar(options.archive, IMAGES)[0]), table, options.work)
        few, test = cifar(options.archive, SHORT_IMAGES)
        few, test = half(few), smaller(test)
        makes["skips"] = lambda: skips(few, table, options.work)
        for way, fraction, seed in planned() if "budgets" in options.parts else ():
            keep(f"{way}-{fraction}-{seed}", partial(one_network, way, fraction, seed, few, test, table, options.work))
    for part in options.parts:
        if part in makes:
            keep(part, makes[part])
    found = kept(options.work)
    if "measured" in options.parts:
        found["measured"] = keep("measured", partial(measured, found["budgets"]))
    (HERE / "prunet_search.md").write_text(report(found))
    if found.get("measured"):
        plot(found["budgets"], found["measured"], HERE / "prunet_search.png")
    print(report(found))


def all_planted() -> list[dict]:
    """At the paper's rate of theta, at a tenth of it, and at what `auto` makes of the number of steps."""
    return [
        planted(rate, policy, margin)
        for rate in PLANTED_RATES
        for policy in ("linear", "constant")
        for margin in (0.1, 0.3)
    ]


def kept(work: Path) -> dict[str, Any]:
    """All that is there."""

    def read(name: str) -> Any:
        path = work / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    found = {name: read(name) for name in PARTS}
    networks = [f"{way}-{fraction}-{seed}" for way, fraction, seed in planned()]
    found["budgets"] = {name: row for name in networks if (row := read(name))}
    return {name: rows for name, rows in found.items() if rows}


if __name__ == "__main__":
    main()
