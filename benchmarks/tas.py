"""What TAS finds, part by part: on CIFAR-10 (JPEG, a subset), networks of the shape of ResNet-20, with latency tables of this CPU.

    python benchmarks/tas.py --archive cifar10-jpeg.tar.zst --work /tmp/tas [--parts tables steps figure3 depths quarter macs full latency measured]

| part | what |
|---|---|
| tables | measures a latency table of each of the three spaces, in three passes; on an otherwise idle core |
| steps | time and memory of a step that samples 1, 2, 3, 5 or 8 sizes, beside the plain network's (the paper's Table 2) |
| figure3 | with and without interpolation, sampled or mixed, without a constraint: sizes and the gap between the two most probable (Figure 3) |
| depths | the same, sampled and interpolated: what the trained network loses at each of its depths |
| quarter, full | searches at a quarter and at full width for 25, 50 and 70 % of the latency: distance to the target, changes of side |
| macs, latency | predefined, random and searched sizes at 60 % of the cost, each plain, initialised and distilled (Table 1) |
| measured | all networks that were found, on this CPU |

Each part keeps its numbers in WORK and is not run again; searches go on where they were interrupted. What is there is written to
benchmarks/tas.md, .json and .png. `--seeds` are those of all searches and trainings.
"""

import argparse
import copy
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from cifar import accuracy, cifar
from nasbench201 import half, smaller
from outcome import fastest_in_turns, make_once, mean_and_half, slug, verdicts
from prunet_search import saved_mib
from torch import nn

from deploy.lowering import LOWERING_VERSION
from latency import LatencyTable, backends, protocol
from latency.profile import profile
from latency.sentinel import OFF
from latency.tablefile import TableWriter
from search import ops, session
from search.architecture import load_architecture
from search.budget import Budget
from search.classification import Classification, Split
from search.data import random_parts
from search.method import Epoch, Phase, Problem
from search.methods.settings import TasSettings, recipe
from search.methods.tas import Tas
from search.network import load_weights
from search.record import EpochDone, read_history, read_run
from search.sized_network import Sampling, SizedNetwork
from search.space import Choice
from search.spaces import Fixed, Traced, traced
from search.train import by_batch_statistics
from search.workloads import lower_network, workloads

HERE = Path(__file__).parent
SPACES = {"quarter": (4, 32, 1), "full": (16, 32, 4), "small": (8, 16, 2)}
"""Channels of the first stage, height and width of the images, channels between two widths."""
IMAGES, NETWORKS, PASSES = 6_000, 40, 3
BRIEF = msgspec.structs.replace(protocol.FAST, name="brief", settle_ms=100.0, max_time_ms=150.0)
TARGETS = (0.25, 0.5, 0.7)
EPOCHS = {"quarter": (4, 8), "full": (4, 5), "small": (6, 8)}
"""Of the unpruned network and of a search."""
TRAIN_EPOCHS, CANDIDATES, CANDIDATE_EPOCHS = 6, 8, 2
COUNTS = (1, 2, 3, 5, 8)
WAYS = {"sampled, interpolated": {}, "sampled, zeros": {"interpolate": False}}
WAYS |= {f"mixture, {name.split()[1]}": chosen | {"weights": "mixture"} for name, chosen in list(WAYS.items())}
TRANSFER = {
    "plain": {"distill": "none"},
    "w/ Init": {"distill": "none", "retrain": "rewind"},
    "w/ KD": {"distill": "tas"},
}


@cache
def space_of(name: str) -> Traced:
    """The widths and depths of a network of the shape of ResNet-20."""
    first, size, granularity = SPACES[name]
    sequence = [ops.conv((3, size, size), first)]
    for stage in range(3):
        for block in range(3):
            width, stride = first << stage, 2 if stage and not block else 1
            sequence.append(ops.residual(ops.output_shape(sequence[-1]), width, hidden=width, stride=stride))
    sequence.append(ops.head(ops.output_shape(sequence[-1]), 10))
    network = Fixed(name=f"resnet20-{name}", input_shape=(3, size, size), classes=10, sequence=tuple(sequence))
    example = torch.zeros(1, 3, size, size)
    return traced(
        network.module, example, name=network.name, granularity=granularity, points=16, stages=network.stages()
    )


# Tables


def measure_table(name: str, out: Path) -> None:
    """Every block of a space, and some networks to judge sums by, in several passes: of each the fastest row counts.

    The speed of a core that shares a machine jumps while others work, by more than a row's own interval says.
    """
    works = [replace(work, onnx=cache(work.onnx)) for work in workloads(space_of(name), networks=NETWORKS)]
    backend = backends.get("onnxruntime", threads=1)
    parts = [out.with_suffix(f".{number}") for number in range(PASSES)]
    for part in parts:
        for _ in profile(works, backend, part, protocol=BRIEF, lowering=LOWERING_VERSION, space=name, safeguards=OFF):
            pass
    tables = [LatencyTable.load(part) for part in parts]
    with TableWriter(out, tables[0].header) as writer:
        for rows in zip(*(table.rows for table in tables), strict=True):
            writer.append(min(rows, key=lambda row: row.median_us))


# Searches


def problem_of(name: str, data: Classification, budget: Budget, table: LatencyTable | None) -> Problem:
    return Problem(space=space_of(name), task=data, table=table, budget=budget)


def settings_of(name: str, seed: int, data: Classification, **given: Any) -> TasSettings:
    """As `auto` has them, with the epochs of this benchmark.

    torch 2.13 crashes in the backward pass of a 1x1 convolution of stride 2 with 4 input channels, channels last, on a CPU without AVX-512.
    """
    pretrain, search = EPOCHS[name]
    given = {"pretrain_epochs": pretrain, "search_epochs": search, "finetune_epochs": 1} | given
    given |= {"memory_format": "contiguous"} if name == "quarter" else {}
    return recipe(TasSettings, len(data.train), "auto", seed=seed, channel_multiple=SPACES[name][2], **given)


def searched(method: Tas, out: Path, baseline: Path) -> tuple[Choice, list[EpochDone]]:
    """What a run finds, and its epochs; where it was run already, nothing is run again."""
    for event in session.run(method, out, baseline=None if out == baseline else baseline):
        if isinstance(event, EpochDone) and event.figures:
            figures = ", ".join(
                f"{key} {event.figures[key]:.4g}" for key in ("expected", "most_probable", "aim", "gap", "crossings")
            )
            print(
                f"{out.name}: {event.epoch}/{event.epochs}, {event.score:.1%}, {figures}", file=sys.stderr, flush=True
            )
    history = [epoch for epoch in read_history(out, read_run(out)) if epoch.phase == "search"]
    return load_architecture(out / "architecture.json").choice, history


def unpruned(name: str, seed: int, data: Classification, work: Path) -> Path:
    """The directory of a run that trained the unpruned network of a space and seed, from which all others start."""
    out = work / f"{name}-unpruned-{seed}"
    method = Tas(
        settings_of(name, seed, data, search_epochs=1), problem_of(name, data, Budget(macs=space_of(name).macs()), None)
    )
    for event in session.run(method, out):
        if isinstance(event, EpochDone) and event.phase == "search":
            break  # its baseline is written
    return out


def budget_of(name: str, table: LatencyTable, fraction: float) -> Budget:
    """A share of the unpruned network's latency, as measured where the table has it."""
    whole = table.measured_network(space_of(name).network()) or table.predict(space_of(name).network())
    return Budget(us=whole.us * fraction)


def one_search(name: str, fraction: float, seed: int, data: Classification, table: LatencyTable, work: Path) -> dict:
    """A search for a share of the latency: what was found, and how it went."""
    baseline, out = unpruned(name, seed, data, work), work / f"{name}-{fraction:g}-{seed}"
    method = Tas(settings_of(name, seed, data), problem_of(name, data, budget_of(name, table, fraction), table))
    begun = time.process_time()
    choice, history = searched(method, out, baseline)
    target, figures = method.problem.target, [epoch.figures for epoch in history]
    return {
        "choice": {"widths": choice.widths, "depths": choice.depths},
        "budget_us": method.problem.budget.amount,
        "predicted": method.model.price(choice).cost / target,
        "interval": method.model.price(choice).most / method.problem.budget.amount,
        **{name: [row[name] / target for row in figures] for name in ("expected", "most_probable")},
        **{name: [row[name] for row in figures] for name in ("crossings", "gap")},
        "cpu_seconds": time.process_time() - begun,
    }


# Table 2 and Figure 3


def steps(data: Classification) -> dict:
    """A step of both passes at quarter width, for each number of sampled sizes and without any; CPU milliseconds, the least of ten."""
    images, labels = next(iter(data.training_batches(64, torch.Generator().manual_seed(0))))
    images = images.contiguous(memory_format=torch.channels_last)
    found = {}
    for name in ("quarter", "full"):
        space = space_of(name)
        networks: dict[str, nn.Module] = {"plain": space.module()}
        for norms, count in itertools.product(("shared", "each"), COUNTS if name == "full" else (2,)):
            method = Tas(
                settings_of(name, 0, data, norms=norms), problem_of(name, data, Budget(macs=space.macs()), None)
            )
            network = method.network(method.phases[1], None)
            network.sampling = Sampling(count, each_norm=norms == "each")
            networks[f"{count}{', a norm each' if norms == 'each' else ''}"] = network
        for network in networks.values():
            network.to(memory_format=torch.channels_last)
        least = dict.fromkeys(networks, math.inf)
        for _ in range(10):
            for key, network in networks.items():
                begun = time.process_time()
                network.zero_grad()
                F.cross_entropy(network(images), labels).backward()
                least[key] = min(least[key], 1e3 * (time.process_time() - begun))
        still = [sizes.logits.grad for sizes in networks["1"].widths] if "1" in networks else []
        found[name] = {key: {"ms": least[key], "mib": saved_mib(network, images)} for key, network in networks.items()}
        if still:
            found["largest_gradient_of_one"] = max(float(gradient.abs().max()) for gradient in still)
    return found


def figure3(data: Classification, work: Path, seed: int) -> dict:
    """Searches without a constraint, of widths and depths, in four ways."""
    found, space = {}, space_of("small")
    baseline = unpruned("small", seed, data, work)
    for way, chosen in WAYS.items():
        given = {"cost_weight": 0.0, "entropy": 0.0, "derive": "argmax"} | chosen
        method = Tas(
            settings_of("small", seed, data, **given), problem_of("small", data, Budget(macs=space.macs()), None)
        )
        choice, history = searched(method, work / f"figure3-{slug(way)}-{seed}", baseline)
        found[way] = {
            "width": statistics.mean(width / dict(space.groups)[name] for name, width in choice.widths.items()),
            "depth": statistics.mean(choice.depths.values()) / 3,
            "macs": space.macs(space.network(choice)) / space.macs(),
            "cost": [epoch.figures["most_probable"] / space.macs() for epoch in history],
            "gap": [epoch.figures["gap"] for epoch in history],
        }
    return found


class Watched(Tas):
    """Keeps what the trained network of all sizes loses at each of its depths, at full width; on images of the distributions."""

    losses: Mapping[tuple[int, ...], float]

    def ended(self, epoch: Epoch, network: nn.Module) -> dict[str, float]:
        """As ever; the network goes on as it was."""
        if isinstance(network, SizedNetwork) and epoch.index + 1 == epoch.phase.epochs:
            batches, chosen = (
                list(itertools.islice(_others(self.problem.task, self.settings.seed), 4)),
                copy.deepcopy(network),
            )
            self.losses = {depths: _loss(chosen, depths, batches) for depths in itertools.product((1, 2, 3), repeat=3)}
        return super().ended(epoch, network)


def _others(data: Classification, seed: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """The images that the distributions of a search are trained on."""
    _, others = random_parts(len(data.train), (0.5, 0.5), torch.Generator().manual_seed(seed))
    return data.training_batches(500, torch.Generator().manual_seed(1), others)


@torch.no_grad()
def _loss(network: SizedNetwork, depths: Sequence[int], batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Cross-entropy of the network of these depths and of full width, with norms by the statistics of each batch."""
    for sizes, size in zip(network.sizes(), [*(part.full for part in network.parts), *depths], strict=True):
        sizes.logits.zero_()
        sizes.logits[sizes.options.index(size)] = 1.0
    network.eval()
    with by_batch_statistics(network):
        return statistics.mean(F.cross_entropy(network(images), labels).item() for images, labels in batches)


def depths(data: Classification, work: Path, seed: int) -> dict:
    """A search without a constraint: probability of each depth at its end, loss at each, and loss of networks trained at one alone."""
    baseline, space = unpruned("small", seed, data, work), space_of("small")
    given = {"cost_weight": 0.0, "entropy": 0.0, "derive": "argmax"}
    method = Watched(
        settings_of("small", seed, data, **given), problem_of("small", data, Budget(macs=space.macs()), None)
    )
    _, history = searched(method, work / f"depths-{seed}", baseline)
    names, losses = list(space.full_depths()), method.losses
    rows, _ = random_parts(len(data.train), (0.5, 0.5), torch.Generator().manual_seed(seed))
    alone = {}
    for depth in (1, 2, 3):
        torch.manual_seed(seed)
        network = space.module(space.choice(space.full_widths(), dict.fromkeys(names, depth)))
        _train(network, data, rows, seed, EPOCHS["small"][1])
        with torch.no_grad():
            alone[str(depth)] = statistics.mean(
                F.cross_entropy(network(x), labels).item() for x, labels in _others(data, seed)
            )
    return {
        "seed": seed,
        "shares": {name: [history[-1].figures[f"p.{name}.{depth}"] for depth in (1, 2, 3)] for name in names},
        "losses": {
            name: [statistics.mean(loss for at, loss in losses.items() if at[stage] == depth) for depth in (1, 2, 3)]
            for stage, name in enumerate(names)
        },
        "best": min(losses, key=lambda at: losses[at]),
        "whole": losses[3, 3, 3],
        "least": losses[1, 1, 1],
        "alone": alone,
    }


# Table 1


class Given(Tas):
    """The unpruned network, then one of given sizes, trained as a search trains the one that it found."""

    given: Choice

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Without the search."""
        first, _, last = super().phases
        return first, last

    def network(self, phase: Phase, trained: nn.Module | None) -> nn.Module:
        """The unpruned network, or one of the given sizes with new weights, which a run rewinds where it should."""
        self._decide(self.given)
        return super().network(phase, trained if phase.unpruned else None)


def predefined(budget: Budget, model: Any) -> Choice:
    """All layers at the same share of their width, the largest within the budget."""
    space, step, best = space_of("small"), SPACES["small"][2], None
    for share in range(20, 101):
        choice = space.choice([max(step, step * round(width * share / 100 / step)) for _, width in space.groups])
        if budget.holds(model.price(choice)):
            best = choice
    assert best
    return best


def drawn(method: Tas, seed: int, data: Classification) -> Choice:
    """The best of some networks at random near the budget, each trained for a few epochs on one half of the images, by the other half."""
    space, budget, draw, found = method.space, method.problem.budget, random.Random(seed), []
    rows, others = random_parts(len(data.train), (0.5, 0.5), torch.Generator().manual_seed(seed))
    while len(found) < CANDIDATES:
        depths = {name: draw.choice(options) for name, options in method.depth_choices().items()}
        choice = space.choice([draw.choice(options) for options in method.choices], depths)
        price = method.model.price(choice)
        if budget.holds(price) and price.most > 0.95 * budget.amount:
            torch.manual_seed(seed)
            found.append((_glance(space.module(choice), data, rows, others, seed), choice))
    return max(found, key=lambda each: each[0])[1]


def _glance(network: nn.Module, data: Classification, rows: torch.Tensor, others: torch.Tensor, seed: int) -> float:
    _train(network, data, rows, seed, CANDIDATE_EPOCHS)
    return accuracy(network, data, Split(images=data.train.images[others], labels=data.train.labels[others]))


def _train(network: nn.Module, data: Classification, rows: torch.Tensor, seed: int, epochs: int) -> None:
    optimizer, order = (
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4),
        torch.Generator().manual_seed(seed),
    )
    network.to(memory_format=torch.channels_last)
    step, total = 0, epochs * len(data.training_batches(64, order, rows))
    for _ in range(epochs):
        for images, labels in data.training_batches(64, order, rows):
            optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / total))
            optimizer.zero_grad()
            F.cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), labels).backward()
            optimizer.step()
            step += 1


def nine(
    cost: str,
    data: Classification,
    test: Split,
    table: LatencyTable,
    work: Path,
    seed: int,
    keep: Callable[[str, Callable[[], Any]], Any],
) -> dict:
    """Of one seed: three ways to choose sizes at 60 % of a cost, and three ways to transfer, equally trained."""
    space, baseline, found = space_of("small"), unpruned("small", seed, data, work), {}
    budget = Budget(macs=0.6 * space.macs()) if cost == "macs" else budget_of("small", table, 0.6)
    problem = problem_of("small", data, budget, table if cost == "latency" else None)
    method = Tas(settings_of("small", seed, data), problem)

    def chosen(way: str) -> dict:
        if way == "TAS":
            choice, _ = searched(method, work / f"nine-{cost}-{seed}", baseline)
        elif way == "random":
            choice = drawn(method, seed, data)
        else:
            choice = predefined(budget, method.model)
        return {"widths": choice.widths, "depths": choice.depths}

    for way in ("predefined", "random", "TAS"):
        choice = Choice(**keep(f"nine-{cost}-{way}-{seed}", partial(chosen, way)))
        row: dict[str, Any] = {"choice": {"widths": choice.widths, "depths": choice.depths}}
        row["macs"] = space.macs(space.network(choice)) / space.macs()
        for transfer, given in TRANSFER.items():
            name = f"nine-{cost}-{way}-{slug(transfer)}-{seed}"
            row[transfer] = keep(
                name, partial(trained, choice, problem, given, baseline, work / "trained" / name, data, test, seed)
            )
        found[way] = row
    return found


def trained(
    choice: Choice,
    problem: Problem,
    given: dict,
    baseline: Path,
    out: Path,
    data: Classification,
    test: Split,
    seed: int,
) -> float:
    """Accuracy on all test images of one network after its training."""
    settings = settings_of("small", seed, data, finetune_epochs=TRAIN_EPOCHS, **({"retrain": "scratch"} | given))
    method = Given(settings, problem)
    method.given = choice
    for _ in session.run(method, out, baseline=baseline):
        pass
    network = space_of("small").module(choice)
    load_weights(network, out / "weights.safetensors", {})
    return accuracy(network, data, test)


# Measured


def measured(found: dict) -> dict:
    """Latency of every network that was found within a budget of latency, and of the unpruned ones, in turns: the fastest of several."""
    networks: dict[str, tuple[str, Choice]] = {}
    for name in SPACES:
        networks[f"{name} unpruned"] = name, space_of(name).largest()
    for part in ("quarter", "full"):
        for key, row in found.get(part, {}).items():
            networks[f"{part} {key}"] = part, Choice(**row["choice"])
    for cost in ("macs", "latency"):
        for seed, rows in found.get(cost, {}).items():
            networks |= {f"{cost} {way} {seed}": ("small", Choice(**row["choice"])) for way, row in rows.items()}
    backend, medians = backends.get("onnxruntime", threads=1), {}
    for name in SPACES:
        with ExitStack() as stack:
            timed = {
                key: stack.enter_context(backend.compile(lower_network(space_of(name), choice)))
                for key, (space, choice) in networks.items()
                if space == name
            }
            medians |= {key: found.median_us for key, found in fastest_in_turns(timed).items()}
    return medians


# The report


def _mean(values: Sequence[float], form: str = ".2%") -> str:
    """Mean and half of its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    mean, half_width = mean_and_half(values)
    return f"{mean:{form}} +- {half_width:{form}}"


def late(each: Sequence[float]) -> float:
    """The sum of the last fifth of the epochs, rounded up."""
    return sum(each[-math.ceil(len(each) / 5) :])


def _step_lines(found: dict) -> Iterator[str]:
    yield "\n## Time and memory of a step\n"
    yield "Both passes at batch 64, one thread, CPU milliseconds; MiB that the forward pass keeps for the gradients. 32x32.\n"
    yield "| network | sampled sizes | time | beside plain | memory | beside plain |"
    yield "|---|---|---|---|---|---|"
    for name in ("quarter", "full"):
        plain = found[name]["plain"]
        for key, row in found[name].items():
            ratios = (row["ms"] / plain["ms"], row["mib"] / plain["mib"])
            yield f"| {name} | {key} | {row['ms']:.0f} ms | {ratios[0]:.2f} | {row['mib']:.1f} MiB | {ratios[1]:.2f} |"
    yield (
        "\nOne convolution at full width makes every size. With shared norms the sizes are added up by one matrix over the channels, so "
        "neither time nor memory grows with their number; with a norm each, as in the paper, both do, linearly. A layer of fewer options "
        f"than sampled sizes samples all. The largest gradient of a logit with one sampled size is {found['largest_gradient_of_one']:g}."
    )


def _figure_lines(rows: Mapping[str, dict]) -> Iterator[str]:
    yield "\n## Without a constraint: interpolation and sampling\n"
    yield "The most probable sizes at the end as shares of the largest, and the gap between the two most probable sizes; means over seeds.\n"
    yield "| way | seeds | width | depth | MACs | gap |"
    yield "|---|---|---|---|---|---|"
    for way in WAYS:
        each = [row[way] for row in rows.values()]
        means = " | ".join(f"{statistics.mean(row[name] for row in each):.2f}" for name in ("width", "depth", "macs"))
        yield f"| {way} | {len(each)} | {means} | {statistics.mean(row['gap'][-1] for row in each):.3f} |"


def _depth_lines(found: dict) -> Iterator[str]:
    yield "\n## Without a constraint: depths\n"
    yield (
        "At the end of a search without a constraint (sampled, interpolated): probability of each depth of a stage, and cross-entropy of the "
        "trained network of all sizes with that depth, at full width on images of the distributions, the mean over the depths of the other "
        f"stages. Seed {found['seed']}.\n"
    )
    yield "| stage | probability of 1 block | 2 | 3 | loss with 1 block | 2 | 3 |"
    yield "|---|---|---|---|---|---|---|"
    for stage, shares in found["shares"].items():
        yield f"| {stage} | {' | '.join(f'{share:.2f}' for share in shares)} | {' | '.join(f'{loss:.3f}' for loss in found['losses'][stage])} |"
    alone = ", ".join(f"{loss:.3f}" for loss in found.get("alone", {}).values())
    yield (
        f"\nThe lowest loss of all is with {found['best'][0]}, {found['best'][1]} and {found['best'][2]} blocks; with all blocks it is "
        f"{found['whole']:.3f}, with one in every stage {found['least']:.3f}."
        + f" Networks of 1, 2 and 3 blocks in every stage, trained alone for as many epochs on the images of the weights: {alone}."
        * bool(alone)
    )


def _search_lines(name: str, rows: Mapping[str, dict], times: Mapping[str, float]) -> Iterator[str]:
    yield f"\n## Searches for a latency, {name} width\n"
    yield (
        "The target is where the upper end of the prediction's interval meets the budget, a share of the unpruned network's measured latency. "
        "E: expected cost, F: cost of the most probable network, both at the end, found: predicted cost, all over the "
        "target. The last fifth is rounded up to whole epochs; a search's CPU time is of one thread.\n"
    )
    yield "| budget, seed | E | F | found | measured / budget | changes of side, last fifth | gap | search |"
    yield "|---|---|---|---|---|---|---|---|"
    for key, row in rows.items():
        us = times.get(f"{name} {key}")
        beside = f"{us / row['budget_us']:.3f}" if us else "-"
        yield (
            f"| {key} | {row['expected'][-1]:.3f} | {row['most_probable'][-1]:.3f} | {row['predicted']:.3f} "
            f"| {beside} | {late(row['crossings']):.0f} | {row['gap'][-1]:.2f} "
            f"| {row['cpu_seconds']:.0f} s |"
        )


def _nine_lines(found: dict) -> Iterator[str]:
    times = found.get("measured", {})
    yield "\n## Sizes and transfer\n"
    yield (
        f"ResNet-20 at half width, images of 16x16, with 60 % of its MACs, or of its latency; {TRAIN_EPOCHS} epochs of {IMAGES:,} images each, accuracy on 10,000 "
        "test images: mean and 95 % interval (Student's t). MACs and measured latency are shares of the unpruned network's.\n"
    )
    yield f"| cost | sizes | seeds | MACs | latency | {' | '.join(TRANSFER)} |"
    yield "|---|---|---|---|---|---|---|---|"
    for cost in ("macs", "latency"):
        rows = found.get(cost, {})
        for way in ("predefined", "random", "TAS") if rows else ():
            each = [row[way] for row in rows.values()]
            us = [times[key] / times["small unpruned"] for seed in rows if (key := f"{cost} {way} {seed}") in times]
            cells = " | ".join(_mean([row[name] for row in each]) for name in TRANSFER)
            yield f"| {cost} | {way} | {', '.join(rows)} | {_mean([row['macs'] for row in each], '.1%')} | {_mean(us, '.1%')} | {cells} |"


def _verdicts(found: dict) -> list[str]:
    rows, times = [], found.get("measured", {})
    if "steps" in found:
        for name in ("quarter", "full"):
            plain, two = found["steps"][name]["plain"], found["steps"][name]["2"]
            for what, key, limit in (("time", "ms", 2.2), ("memory", "mib", 1.9)):
                ratio = two[key] / plain[key]
                rows.append((f"{what} of a step with two sizes, {name}", f"{ratio:.2f}", f"<= {limit}", ratio <= limit))
        gradient = found["steps"]["largest_gradient_of_one"]
        rows.append(("gradient of the logits with one size", f"{gradient:g}", "exactly 0", gradient == 0))
    for name in ("quarter", "full"):
        if each := found.get(name):
            last = {key: late(row["crossings"]) for key, row in each.items()}
            near = [abs(row["predicted"] - 1) <= 0.05 for row in each.values()]
            rows.append((f"found within 5 % of the target, {name}", f"{sum(near)} of {len(near)}", "each", all(near)))
            rows.append(
                (
                    f"changes of side in the last fifth, {name}",
                    f"{max(last.values()):.0f}",
                    "<= 3",
                    max(last.values()) <= 3,
                )
            )
            seconds = max(row["cpu_seconds"] for row in each.values())
            rows.append(
                (f"CPU time of the longest search, one thread, {name}", f"{seconds:.0f} s", "<= 600 s", seconds <= 600)
            )
            if under := [
                times[f"{name} {key}"] <= row["budget_us"] for key, row in each.items() if f"{name} {key}" in times
            ]:
                rows.append(
                    (f"within the budget when measured, {name}", f"{sum(under)} of {len(under)}", "each", all(under))
                )
    if each := found.get("figure3"):
        for what in ("width", "depth"):
            share = statistics.mean(row[next(iter(WAYS))][what] for row in each.values())
            rows.append(
                (f"{what} without a constraint, sampled and interpolated", f"{share:.2f}", "1.00", share > 0.995)
            )
    for cost in ("macs", "latency"):
        if each := found.get(cost):
            mean = {
                way: statistics.mean(row[way]["w/ KD"] for row in each.values())
                for way in ("TAS", "predefined", "random")
            }
            for way in ("predefined", "random"):
                ahead = mean["TAS"] - mean[way]
                rows.append((f"TAS w/ KD ahead of {way} w/ KD, {cost}", f"{100 * ahead:+.2f} points", "> 0", ahead > 0))
    return verdicts(rows)


def report(found: dict, about: str) -> str:
    """As Markdown, of what is there."""
    times = found.get("measured", {})
    lines = ["# What TAS finds\n", f"{about}\n", *_verdicts(found), "\n![searches over their steps](tas.png)"]
    if missing := ["latency"] * ("latency" not in found) + [
        f"{name} width at {target:g} of the latency"
        for name in ("quarter", "full")
        for target in TARGETS
        if not any(key.startswith(f"{target:g},") for key in found.get(name, ()))
    ]:
        lines.append(f"\nNot run: {'; '.join(missing)}.")
    if "steps" in found:
        lines += _step_lines(found["steps"])
    if found.get("figure3"):
        lines += _figure_lines(found["figure3"])
    if found.get("depths"):
        lines += _depth_lines(found["depths"])
    for name in ("quarter", "full"):
        if found.get(name):
            lines += _search_lines(name, found[name], times)
    if found.get("macs") or found.get("latency"):
        lines += _nine_lines(found)
    return "\n".join(lines) + "\n"


def plot(found: dict, path: Path) -> None:
    """Expected and most probable cost over the epochs of every search, and cost and gap of the four ways, of what is there."""
    import matplotlib.pyplot as plt

    panels: list[Callable[[Any], None]] = [
        partial(_plot_searches, name, found[name]) for name in ("quarter", "full") if found.get(name)
    ]
    panels += [partial(_plot_ways, key, found["figure3"]) for key in ("cost", "gap") if found.get("figure3")]
    if not panels:
        return
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), layout="constrained", squeeze=False)
    for paint, place in zip(panels, axes.flat, strict=True):
        paint(place)
    figure.savefig(path, dpi=100)


def _plot_searches(name: str, rows: Mapping[str, dict], place: Any) -> None:
    for key, row in rows.items():
        budget, seed = key.split(", ")
        colour, epochs = f"C{TARGETS.index(float(budget))}", range(1, len(row["expected"]) + 1)
        place.plot(
            epochs,
            row["most_probable"],
            color=colour,
            label=budget if seed == next(iter(rows)).split(", ")[1] else None,
        )
        place.plot(epochs, row["expected"], color=colour, linestyle=":")
    place.axhspan(0.95, 1.05, color="0.9", zorder=0)
    place.set(title=f"{name} width: F (line) and E (dotted)", xlabel="epoch", ylabel="cost / target")
    place.legend(title="budget")


def _plot_ways(key: str, rows: Mapping[str, dict], place: Any) -> None:
    for index, way in enumerate(WAYS):
        for number, row in enumerate(rows.values()):
            place.plot(
                range(1, len(row[way][key]) + 1), row[way][key], color=f"C{index}", label=way if number == 0 else None
            )
    label = {"cost": "F / unpruned network, MACs", "gap": "gap of the two most probable sizes"}[key]
    place.set(title="without a constraint", xlabel="epoch", ylabel=label)
    place.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument(
        "--parts",
        nargs="*",
        default=["tables", "steps", "figure3", "depths", "quarter", "macs", "full", "latency", "measured"],
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)

    keep = partial(make_once, options.work)

    tables = {name: options.work / f"{name}.latency.jsonl" for name in SPACES}
    for name, path in tables.items() if "tables" in options.parts else ():
        keep(f"table-{name}", partial(measure_table, name, path))
    data, test = cifar(options.archive, IMAGES)
    halved, found = (half(data), smaller(test)), {}
    for part in options.parts:
        if part == "steps":
            keep(part, partial(steps, data))
        if part == "depths":
            keep(part, partial(depths, halved[0], options.work, 0))
        for seed in options.seeds if part in ("figure3", "quarter", "full", "macs", "latency") else ():
            if part == "figure3":
                keep(f"figure3-{seed}", partial(figure3, halved[0], options.work, seed))
            elif part in ("macs", "latency"):
                table = LatencyTable.load(tables["small"])
                keep(f"{part}-{seed}", partial(nine, part, *halved, table, options.work, seed, keep))
            else:
                table = LatencyTable.load(tables[part])
                for fraction in TARGETS:
                    keep(
                        f"{part}-{fraction:g}-{seed}-found",
                        partial(one_search, part, fraction, seed, data, table, options.work),
                    )
        found = kept(options.work, options.seeds)
        if part == "measured":
            found["measured"] = keep(part, partial(measured, found))
    device = backends.get("onnxruntime", threads=1)
    about = (
        f"{device.device.name}, one thread, {device.runtime.name} {device.runtime.version}; {IMAGES:,} training images of CIFAR-10 (JPEG); "
        f"epochs of the unpruned network and of a search: {', '.join(f'{name} {a} and {b}' for name, (a, b) in EPOCHS.items())}."
    )
    (HERE / "tas.md").write_text(report(found, about))
    (HERE / "tas.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, HERE / "tas.png")
    print(report(found, about))


def kept(work: Path, seeds: Sequence[int]) -> dict:
    """All that is there."""

    def read(name: str) -> Any:
        path = work / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    found: dict = {name: read(name) for name in ("steps", "depths", "measured")}
    found |= {name: {str(seed): read(f"{name}-{seed}") for seed in seeds} for name in ("figure3", "macs", "latency")}
    for part in ("quarter", "full"):
        found[part] = {
            f"{fraction:g}, {seed}": read(f"{part}-{fraction:g}-{seed}-found") for fraction in TARGETS for seed in seeds
        }
    for name in ("figure3", "macs", "latency", "quarter", "full"):
        found[name] = {key: row for key, row in found[name].items() if row}
    return {name: rows for name, rows in found.items() if rows}


if __name__ == "__main__":
    main()
