"""What PRUNET's search does, part by part: widths, blocks, memory and time, and whole searches of `prunet-mini` on CIFAR-10.

    python benchmarks/prunet_search.py --work /tmp/prunet [--parts planted brute layer frees epoch search budgets]
        [--archive cifar10-jpeg.tar.zst --table profiles/DEVICE/prunet-mini.fp32.latency.jsonl]

| part | what |
|---|---|
| planted | block pruning alone: layers of four blocks, of which one is best by construction, and a noisy loss of their shares |
| brute | a Prunode trained on digits, against the same block trained alone at each of its 24 widths |
| layer | memory and time of a Prunode over the number of its widths, beside separate blocks and superposed masks (FBNetV2) |
| frees | memory and time of the supernet of `prunet-mini` with four, two and one block a layer |
| epoch | memory and time of an epoch of the search of `prunet` at 288x288, 100 classes, batch 8 |
| search | whole searches: linear and constant threshold, and no block removed, from one warm-up |
| budgets | networks found for three budgets, trained equally, beside random ones and uniformly scaled ones of the same latency |

Each part keeps its numbers in WORK and is not run again; searches go on where they were interrupted. What is there is written to
benchmarks/prunet_search.md. Only `search` and `budgets` need CIFAR-10 and the table.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from outcome import make_once, verdicts
from torch import nn

from latency import LatencyTable
from latency.block import network_key
from search import Choice, methods, ops, prunode, session, spaces
from search.architecture import Preprocessing
from search.blocks import trained
from search.budget import Budget
from search.data import Augmentation, Dataset, Split, digits
from search.layered_supernet import LayeredSupernet, MixedLayer, Prunode
from search.method import Task
from search.methods.settings import PrunetSettings
from search.record import EpochDone
from search.spaces.layered import MultiBlock, StochasticLayer

HERE = Path(__file__).parent
LAYERS, BLOCKS, PLANTED_SEEDS, NOISE = 18, 4, 5, 1.0
EPOCHS, EPOCH_STEPS = 130, 20
ALPHAS, BRUTE_SEEDS, BRUTE_STEPS = (0.05, 0.2, 0.5, 1.0, 2.0), (0, 1, 2), 600
IMAGES = 6_000
CLASSES, EPOCH_IMAGES = 100, 40
SEARCHES: dict[str, dict] = {
    "linear threshold": {},
    "constant threshold": {"threshold": "constant", "t_initial": 0.133},
    "nothing removed": {"prune_blocks": False},
}
BUDGETS = (0.3, 0.45, 0.6)
"""Of the latency of the largest network."""
SEARCH_SEEDS, RANDOM, TRAIN_EPOCHS = (0, 1, 2), 20, 10


# Block pruning alone


def planted(rate: float, policy: str, margin: float) -> dict:
    """Layers with a best block: the others lose `margin` to twice as much, and each step sees that through noise of NOISE."""
    kept = block_steps = 0
    for seed in range(PLANTED_SEEDS):
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
                    total = total + layer.sample(1.0, noisy=True).blocks @ (losses[here] + NOISE * torch.randn(len(here)))
                total.backward()
                optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * (epoch * EPOCH_STEPS + step) / (EPOCHS * EPOCH_STEPS))) / 2
                optimizer.step()
            block_steps += sum(len(layer.blocks) for layer in layers)
            for layer in layers:
                layer.prune(0.133 if policy == "constant" else 0.15 + 0.4 * (epoch + 1) / EPOCHS)
        kept += sum(layer.best == str(int(index)) for layer, index in zip(layers, best, strict=True))
    count = PLANTED_SEEDS * LAYERS
    return {"rate": rate, "policy": policy, "margin": margin, "kept": kept / count, "ratio": block_steps / (count * EPOCHS * BLOCKS)}


def _mixed(channels: int) -> MixedLayer:
    """A layer of blocks that are told apart by their names alone."""
    options = tuple(MultiBlock(name=str(index), spec=ops.conv((channels, 1, 1), channels, kernel=1)) for index in range(BLOCKS))
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


def _train(network: nn.Module, data: Dataset, seed: int, step: Callable[[int, torch.Tensor, torch.Tensor], None]) -> None:
    generator, index = torch.Generator().manual_seed(seed), 0
    while index < BRUTE_STEPS:
        for images, labels in data.training_batches(64, generator):
            step(index, images, labels)
            index += 1


@torch.no_grad()
def _loss(network: nn.Module, data: Dataset, *pair: torch.Tensor) -> float:
    network.eval()
    each = [(F.cross_entropy(network(images, *pair), labels).item(), len(labels)) for images, labels in data.held_out_batches(1000)]
    network.train()
    return sum(loss * count for loss, count in each) / sum(count for _, count in each)


def alone(width: int, seed: int) -> float:
    """Held-out cross-entropy of the block trained alone at one width."""
    torch.manual_seed(seed)
    data, network = digits(8), Toy(trained(_block(width).spec))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

    def step(index: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * min(1, index / BRUTE_STEPS)))
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    _train(network, data, seed, step)
    return _loss(network, data)


def trained_prunode(alpha: float, seed: int, *, paper: bool) -> int:
    """Width that a Prunode ends with: every fifth step trains its weight, on images of its own as the others do theirs."""
    torch.manual_seed(seed)
    data, node = digits(8), Prunode(_block(192), paper=paper)
    network = Toy(node)
    weights = [value for name, value in network.named_parameters() if name != "block.weight"]
    optimizer = torch.optim.Adam(weights, lr=2e-3)
    chooser = torch.optim.Adam([node.weight], lr=0.1, betas=(0.9, 0.999) if paper else prunode.BETAS)

    def step(index: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        progress = min(1.0, index / BRUTE_STEPS)
        used = chooser if index % 5 == 4 else optimizer
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
    """Loss of the chosen width beside the best one's, by the curve over all widths: the mean over seeds of blocks trained alone."""
    widths = range(8, 193, 8)
    curve = {width: [keep(f"brute-{width}-{seed}", lambda w=width, s=seed: alone(w, s)) for seed in BRUTE_SEEDS] for width in widths}
    means = {width: statistics.mean(values) for width, values in curve.items()}
    smooth = {width: statistics.mean(means[near] for near in range(width - 16, width + 17, 8) if near in means) for width in widths}
    rows = []
    for paper in (False, True):
        for alpha in ALPHAS:
            total = {width: smooth[width] + _penalty(alpha, width) for width in widths}
            best = min(total, key=total.__getitem__)
            for seed in BRUTE_SEEDS:
                name = f"prunode-{alpha}-{seed}-{paper}"
                width = keep(name, lambda a=alpha, s=seed, p=paper: trained_prunode(a, s, paper=p))
                rows.append(
                    {"paper": paper, "alpha": alpha, "seed": seed, "width": width, "best": best, "lost": total[width] - total[best]}
                )
    noise = statistics.mean(statistics.stdev(values) for values in curve.values())
    return {"rows": rows, "noise": noise}


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
        self.register_buffer("masks", torch.stack([(torch.arange(block.hidden[-1]) < width).float() for width in block.hidden]))

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
            count: {"mib": saved_mib(network, x), "ms": min(each[count] for each in times)} for count, network in networks.items()
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
        slots = sum(slot.numel() for state in optimizer.state.values() for slot in state.values() if isinstance(slot, torch.Tensor))
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

    data = Dataset(
        name="noise",
        labels=tuple(map(str, range(CLASSES))),
        train=split(EPOCH_IMAGES),
        held_out=split(8),
        preprocessing=Preprocessing(size=space.input_shape[1:], mean=(0.5,) * 3, std=(0.25,) * 3),
        augmentation=Augmentation(shift_px=0, flip=True),
    )
    settings = PrunetSettings(warmup_epochs=0, search_epochs=2, search_batch=8, recompute=True)
    task = Task(space=space, data=data, table=None, budget=Budget(macs=space.macs()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as out:
        next(event for event in session.run(methods.method(settings, task), Path(out) / "run") if isinstance(event, EpochDone))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_gib": peak / 2**20, "before_gib": before / 2**20, "cpu_s": _cpu_s(), "images": EPOCH_IMAGES, "size": space.input_shape[1]}


# Whole searches


def run(settings: PrunetSettings, task: Task, out: Path, *, baseline: Path | None = None) -> list[dict]:
    """A search, or what is left of it: an epoch a row, with its CPU-seconds, which are kept beside it."""
    clock = out.with_suffix(".cpu.json")
    spent = json.loads(clock.read_text()) if clock.exists() else {}
    begun = _cpu_s()
    for event in session.run(methods.method(settings, task), out, baseline=baseline):
        if isinstance(event, EpochDone):
            spent[f"{event.phase}/{event.epoch}"] = _cpu_s() - begun
            clock.write_text(json.dumps(spent))
            print(
                f"{out.name}: {event.phase} {event.epoch}/{event.epochs}, {event.accuracy:.2%}, {spent[f'{event.phase}/{event.epoch}']:.0f} s",
                file=sys.stderr,
            )
            begun = _cpu_s()
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return [row | {"cpu_s": spent.get(f"{row['phase']}/{row['epoch']}", math.nan)} for row in lines if "phase" in row]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def search(data: Dataset, table: LatencyTable, work: Path) -> dict:
    """Linear against constant threshold against none, from one warm-up: block-steps, CPU-seconds, and what was found."""
    space, found = spaces.get("prunet-mini"), {}
    task = Task(space=space, data=data, table=table, budget=Budget(us=table.predict(space.network()).high_us))
    first = work / "search" / next(iter(SEARCHES))
    for name, chosen in SEARCHES.items():
        out = work / "search" / name
        rows = run(PrunetSettings(train_epochs=TRAIN_EPOCHS, **chosen), task, out, baseline=None if out == first else first)
        phase = [row for row in rows if row["phase"] == "search"]
        fixed = sum(not layer.open for layer in space.layers)
        full = sum(len(layer.options) for layer in space.layers) - fixed
        found[name] = {
            "block_steps": sum(row["figures"]["blocks"] - fixed for row in phase) / (full * len(phase)),
            "search_cpu_s": sum(row["cpu_s"] for row in phase),
            "warmup_cpu_s": sum(row["cpu_s"] for row in rows if row["phase"] == "warmup"),
            "accuracy": rows[-1]["accuracy"],
            "latency_us": rows[-1]["latency_us"],
            "search_loss": phase[-1]["figures"]["search_loss"],
            "layers": sum(option != "skip" for option in rows[-1]["choice"]["options"].values()),
        }
    return found


# Three budgets


def budgets(data: Dataset, table: LatencyTable, work: Path, keep: Callable[[str, Callable[[], object]], object]) -> dict:
    """Accuracies of networks within each budget: found, random, and uniformly scaled; all trained equally."""
    space, found = spaces.get("prunet-mini"), {}
    largest = table.predict(space.network()).us
    warm = work / "search" / next(iter(SEARCHES))
    for fraction in BUDGETS:
        task = Task(space=space, data=data, table=table, budget=Budget(us=fraction * largest))
        rows: dict[str, list[tuple[float, float]]] = {"found": [], "random": [], "uniform": []}
        for seed in SEARCH_SEEDS:
            settings = PrunetSettings(seed=seed, train_epochs=TRAIN_EPOCHS)
            last = run(settings, task, work / "budgets" / f"{fraction}-{seed}", baseline=warm)[-1]
            rows["found"].append((last["accuracy"], last["latency_us"]))
        for name, choices in (("random", _random(task)), ("uniform", [_uniform(task)] * len(SEARCH_SEEDS))):
            for seed, choice in enumerate(choices):
                accuracy = keep(f"{name}-{fraction}-{seed}", lambda c=choice, s=seed, t=task: _trained(c, s, t, work))
                rows[name].append((accuracy, table.predict(space.network(choice)).us))
        found[str(fraction)] = rows
    return found


def _random(task: Task) -> list[Choice]:
    """Random networks within the budget, and above nine tenths of it."""
    draw, found = random.Random(0), []
    while len(found) < RANDOM:
        choice = task.space.random(draw)
        price = task.table.predict(task.space.network(choice))
        if price.high_us <= task.budget.us and price.us >= 0.9 * task.target:
            found.append(choice)
    return found


def _uniform(task: Task) -> Choice:
    """3x3 blocks without squeeze-and-excite, all at the same expansion, the highest within the budget; nothing is skipped."""
    options = {layer.name: layer.options[0].name for layer in task.space.layers if layer.open}

    def scaled(share: float) -> Choice:
        widths = {}
        for layer in task.space.layers:
            if hidden := layer.options[0].hidden:
                widths[layer.name] = hidden[max(0, round(share * len(hidden)) - 1)]
        return Choice(options=options, widths=widths)

    within = [scaled(index / 48) for index in range(1, 49)]
    within = [choice for choice in within if task.table.predict(task.space.network(choice)).high_us <= task.budget.us]
    return within[-1] if within else scaled(0)


def _trained(choice: Choice, seed: int, task: Task, work: Path) -> float:
    """Accuracy of one network, trained as a search trains the one that it found."""
    settings = PrunetSettings(seed=seed, train_epochs=TRAIN_EPOCHS)
    method = methods.method(settings, task)
    method.chosen = choice
    phase = method.phases[-1]
    method.__class__ = type("Trained", (method.__class__,), {"phases": (phase,)})
    key = network_key(block.key for block in task.space.network(choice))
    *_, last = (event for event in session.run(method, work / "trained" / f"{key}-{seed}") if isinstance(event, EpochDone))
    return last.accuracy


# The report


def _planted_lines(rows: list[dict]) -> Iterator[str]:
    yield "\n## Block pruning alone\n"
    yield f"{LAYERS} layers of {BLOCKS} blocks, {EPOCHS} epochs of {EPOCH_STEPS} steps, {PLANTED_SEEDS} seeds; the noise of a block's loss is {NOISE:g}.\n"
    yield "| rate of theta | threshold | margin of the best block | best block kept | block-steps |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {row['rate']:g} | {row['policy']} | {row['margin']:g} | {row['kept']:.0%} | {row['ratio']:.2f} |"


def _brute_lines(found: dict) -> Iterator[str]:
    yield "\n## A trained Prunode against brute force over 24 widths\n"
    yield f"Digits, 8x8; a block trained alone has a standard deviation of {found['noise']:.3f} over seeds, so the curve is smoothed over five widths.\n"
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
        yield f"| {name} | " + " | ".join(f"{each[count]['mib']:.1f} MiB, {each[count]['ms']:.0f} ms" for count in ("6", "24", "96")) + " |"


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
    yield f"{IMAGES} images of CIFAR-10 at 16x16, no budget, alpha 1; the found network trained for {TRAIN_EPOCHS} epochs. CPU-seconds of one core.\n"
    yield "| search | block-steps of phase 2 | CPU of phase 2 | of the warm-up | found: layers | latency | accuracy | search loss |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in found.items():
        yield (
            f"| {name} | {row['block_steps']:.2f} | {row['search_cpu_s']:.0f} s | {row['warmup_cpu_s']:.0f} s | {row['layers']} "
            f"| {row['latency_us']:.0f} us | {row['accuracy']:.2%} | {row['search_loss']:.3f} |"
        )


def _budget_lines(found: dict) -> Iterator[str]:
    yield "\n## Three budgets\n"
    yield "| budget, of the largest network | found | random | uniformly scaled |"
    yield "|---|---|---|---|"

    def said(rows: list) -> str:
        accuracies = [accuracy for accuracy, _ in rows]
        half = 2 * statistics.stdev(accuracies) / math.sqrt(len(accuracies)) if len(accuracies) > 1 else math.nan
        return f"{statistics.mean(accuracies):.2%} +- {half:.2%} at {statistics.mean(us for _, us in rows):.0f} us ({len(rows)})"

    for fraction, rows in found.items():
        yield f"| {float(fraction):.0%} | {said(rows['found'])} | {said(rows['random'])} | {said(rows['uniform'])} |"


def _verdicts(found: dict) -> list[str]:
    rows = []
    if "planted" in found:
        for rate in (0.1, 0.01):
            worst = min(row["kept"] for row in found["planted"] if row["rate"] == rate)
            rows.append((f"planted best block kept, theta at {rate:g}", f"{worst:.0%}", ">= 90 %", worst >= 0.9))
    if "brute" in found:
        lost = max(row["lost"] for row in found["brute"]["rows"] if not row["paper"])
        rows.append(("Prunode's loss above the best of 24 widths", f"{lost:.3f}", "<= 0.010", lost <= 0.01))
    if "layer" in found:
        each = found["layer"]["Prunode"]
        mib, ms = ([row[kind] for row in each.values()] for kind in ("mib", "ms"))
        rows.append(("memory of a Prunode, 6 to 96 widths", f"{max(mib) / min(mib) - 1:.1%}", "<= 2 %", max(mib) <= 1.02 * min(mib)))
        rows.append(("step time of a Prunode, 6 to 96 widths", f"{max(ms) / min(ms) - 1:.1%}", "<= 10 %", max(ms) <= 1.1 * min(ms)))
    if "epoch" in found:
        gib = found["epoch"]["peak_gib"]
        rows.append(("memory of an epoch of prunet, 288x288, batch 8", f"{gib:.2f} GiB", "<= 8 GiB", gib <= 8))
    if len(found.get("search", {})) == len(SEARCHES):
        linear, none = found["search"]["linear threshold"], found["search"]["nothing removed"]
        rows.append(("block-steps of phase 2, linear", f"{linear['block_steps']:.2f}", "<= 0.50", linear["block_steps"] <= 0.5))
        share = linear["search_cpu_s"] / none["search_cpu_s"]
        rows.append(("CPU time of phase 2 beside nothing removed", f"{share:.2f}", "<= 0.55", share <= 0.55))
        minutes = (linear["search_cpu_s"] + linear["warmup_cpu_s"]) / 60
        rows.append(("a search on one core", f"{minutes:.0f} min", "<= 30 min", minutes <= 30))
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
        "budgets": _budget_lines,
    }
    lines = ["PRUNET's search, part by part\n", *_verdicts(found)]
    for name, say in parts.items():
        if name in found:
            lines += say(found[name])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--parts", nargs="+", default=["planted", "brute", "layer", "frees", "epoch", "search", "budgets"])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    keep = partial(make_once, options.work)

    def all_planted() -> list[dict]:
        return [planted(rate, policy, margin) for rate in (0.1, 0.01) for policy in ("linear", "constant") for margin in (0.1, 0.3)]

    makes: dict[str, Callable[[], object]] = {
        "planted": all_planted,
        "brute": lambda: brute(keep),
        "layer": layer,
        "frees": frees,
        "epoch": epoch,
    }
    if options.archive and options.table:
        from cifar import cifar
        from nasbench201 import half

        data, table = half(cifar(options.archive, IMAGES)[0]), LatencyTable.load(options.table)
        makes |= {"search": lambda: search(data, table, options.work), "budgets": lambda: budgets(data, table, options.work, keep)}
    for part in options.parts:
        if part in makes:
            keep(part, makes[part])
    found = {name: json.loads(path.read_text()) for name in parser.get_default("parts") if (path := options.work / f"{name}.json").exists()}
    (HERE / "prunet_search.md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
