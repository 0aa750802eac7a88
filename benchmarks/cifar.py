"""Which way of choosing channels is best? CIFAR-10, one network, equal epochs, one latency budget on this CPU, three seeds, five ways.

    python benchmarks/cifar.py --archive cifar10-jpeg.tar.zst --table profiles/DEVICE/repvgg-mini.fp32.latency.jsonl --work /tmp/cifar

The ways: Pruning-as-Search that counts latency, the same that counts MACs, uniform widths, L1 magnitude, network slimming. A seed trains one
unpruned network, from which all five start. What comes out is fused, squeezed and timed in turns in ONNX Runtime. The training set is a
subset and the epochs are few, so that all of it takes about half an hour on two cores: accuracies compare ways, not papers.

The archive holds train/CLASS/*.jpg and test/CLASS/*.jpg. The same command goes on where it was interrupted. Prints a report and writes it
to benchmarks/cifar.<machine>.md, with a plot beside it and every number in the .json.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import torch
from outcome import slug

from deploy.engine import measure_in_turns
from deploy.lowering import to_onnx
from deploy.validate import Comparison, compare_latency
from latency import LatencyTable, Measurement, backends, protocol
from reparam import fuse, squeeze
from search import methods, session, spaces
from search.architecture import Preprocessing, load_architecture
from search.augment import Augmentation
from search.budget import Budget
from search.classification import Classification, Split
from search.method import Problem
from search.methods.settings import MagnitudeSettings, PasSettings, SlimmingSettings, UniformSettings, recipe
from search.network import load_weights
from search.record import EpochDone, Finished

HERE = Path(__file__).parent
WAYS = {
    "PaS, latency": (PasSettings, {"cost": "latency"}),
    "PaS, MACs": (PasSettings, {"cost": "macs"}),
    "uniform": (UniformSettings, {}),
    "magnitude": (MagnitudeSettings, {}),
    "slimming": (SlimmingSettings, {}),
}
FIRST = next(iter(WAYS))
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""
SAME_ACCURACY = 0.005
WATCHED = 1_000
"""Test images that are looked at after every epoch; in the end all are."""


def cifar(archive: Path, images: int) -> tuple[Classification, Split]:
    """A subset of the training images, equal in classes, with some test images to watch; and all test images."""
    shown: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    from PIL import Image

    with (
        subprocess.Popen(["zstd", "-dc", str(archive)], stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar,
    ):
        for member in tar:
            part, label, *_ = [*Path(member.name).parts, "", ""]
            if member.isfile() and (part == "test" or len(shown[part, label]) < images // 10):
                with Image.open(tar.extractfile(member)) as image:
                    shown[part, label].append(np.asarray(image.convert("RGB")))
    labels = tuple(sorted({label for _, label in shown}))

    def split(part: str) -> Split:
        pixels = np.concatenate([np.stack(shown[part, label]) for label in labels])
        targets = [index for index, label in enumerate(labels) for _ in shown[part, label]]
        return Split(images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels=torch.tensor(targets))

    train, test = split("train"), split("test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:WATCHED]
    channels = (train.images / 255).transpose(0, 1).flatten(1)
    data = Classification(
        name=f"{archive.name}, {len(train)} images",
        labels=labels,
        train=train,
        held_out=Split(images=test.images[order], labels=test.labels[order]),
        preprocessing=Preprocessing(
            size=(32, 32), mean=tuple(channels.mean(1).tolist()), std=tuple(channels.std(1).tolist())
        ),
        augmentation=Augmentation(shift_px=4, flip=True),
    )
    return data, test


def search(
    way: str, seed: int, data: Classification, table: LatencyTable, budget_us: float, settings: dict, runs: Path
) -> Path:
    """One way's run for one seed; the seed's first way trains the unpruned network that the others start from."""
    out, first = directory(way, seed, runs), directory(FIRST, seed, runs)
    kind, chosen = WAYS[way]
    config = recipe(kind, len(data.train), **chosen, **settings, seed=seed)
    space = spaces.get("repvgg-mini", classes=len(data.labels))
    start = time.perf_counter()
    method = methods.method(config, Problem(space=space, task=data, table=table, budget=Budget(us=budget_us)))
    for event in session.run(method, out, baseline=None if out == first else first):
        if isinstance(event, EpochDone):
            figures = f"accuracy {event.score:.2%}, predicted {event.latency_us:.1f} us, widths {' '.join(map(str, event.choice.widths.values()))}"
            print(f"{out.name}: {event.phase} {event.epoch}/{event.epochs}, {figures}", file=sys.stderr, flush=True)
        elif isinstance(event, Finished):
            print(f"{out.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return out


def directory(way: str, seed: int, runs: Path) -> Path:
    return runs / f"{seed}-{re.sub('[^a-z]+', '-', way.lower())}"


@torch.no_grad()
def accuracy(network: torch.nn.Module, data: Classification, test: Split) -> float:
    network.eval()
    batches = zip(test.images.split(500), test.labels.split(500), strict=True)
    return sum(int((network(data.normalise(images)).argmax(1) == labels).sum()) for images, labels in batches) / len(
        test
    )


def ship(run: Path, data: Classification, test: Split, *, unpruned: bool = False) -> tuple[dict, bytes]:
    """What a run ends with, or began with: figures, and the ONNX of the fused and squeezed network."""
    architecture = load_architecture(run / "architecture.json")
    network = architecture.unpruned() if unpruned else architecture.build()
    load_weights(network, run / ("baseline.safetensors" if unpruned else "weights.safetensors"), {})
    example = torch.zeros(1, *architecture.input_shape)
    small = squeeze(fuse(network.eval(), example), example)
    result = json.loads((run / "result.json").read_text())["unpruned" if unpruned else "shipped"]
    facts = {"widths": list(result["choice"]["widths"].values())} | {
        name: result[name] for name in ("parameters", "macs", "predicted")
    }
    return {**facts, "accuracy": accuracy(small, data, test)}, to_onnx(small, example)


def mean_difference(pairs: list[tuple[float, float]]) -> tuple[float, float, str]:
    """Mean of paired differences, half of its 95 % interval (Student's t), and a word."""
    differences = [one - other for one, other in pairs]
    mean = statistics.mean(differences)
    half = T_95[len(pairs) - 1] * statistics.stdev(differences) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.inf
    if abs(mean) + half <= SAME_ACCURACY:
        return mean, half, "SAME"
    return mean, half, "BETTER" if mean - half > 0 else "WORSE" if mean + half < 0 else "UNSURE"


def mean_and_each(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def plot(found: dict[str, list[dict]], unpruned: list[dict], budget_us: float, out: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for (name, runs), marker in zip([*found.items(), ("unpruned", unpruned)], "osD^vx", strict=True):
        axes.plot(
            [run["measured_us"] for run in runs], [100 * run["accuracy"] for run in runs], marker, label=name, alpha=0.8
        )
    axes.axvline(budget_us, color="black", linestyle="--", linewidth=1, label="budget")
    axes.set(
        xlabel="measured latency, µs (ONNX Runtime, one thread, batch 1)", ylabel="accuracy on 10,000 test images, %"
    )
    axes.set_xlim(left=0)
    axes.legend()
    figure.savefig(out, metadata={"Date": None})


def report(
    found: dict[str, list[dict]], unpruned: list[dict], budget_us: float, words: dict[str, list[Comparison]]
) -> list[str]:
    """Two tables and what they say, all from the numbers."""
    lines = [
        f"budget {budget_us:.1f} us; mean of {len(unpruned)} seeds (each seed)",
        "",
        "| way | accuracy, % | measured latency, us | predicted, us | MACs | within the budget, measured |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in [("unpruned", unpruned), *found.items()]:
        cells = [
            mean_and_each([100 * run["accuracy"] for run in runs], ".2f"),
            mean_and_each([run["measured_us"] for run in runs], ".1f"),
            f"{statistics.mean(run['predicted']['us'] for run in runs):.1f}",
            f"{statistics.mean(run['macs'] for run in runs):,.0f}",
            f"{sum(run['high_us'] <= budget_us for run in runs)} of {len(runs)}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"{FIRST} against", "", "| way | accuracy, points | latency, each seed |", "|---|---|---|"]
    verdicts = defaultdict(list)
    for name in list(found)[1:]:
        pairs = [(one["accuracy"], other["accuracy"]) for one, other in zip(found[FIRST], found[name], strict=True)]
        mean, half, word = mean_difference(pairs)
        verdicts[word].append(name)
        ratios = ", ".join(f"{c.word} {c.ratio:.3f} ({c.low:.3f} to {c.high:.3f})" for c in words[name])
        lines.append(f"| {name} | {word}: {100 * mean:+.2f} ± {100 * half:.2f} | {ratios} |")
    lines += ["", "What was found:", ""]
    for word, meaning in {
        "BETTER": "is more accurate than",
        "SAME": f"is as accurate, within {100 * SAME_ACCURACY:g} points, as",
        "WORSE": "loses to",
        "UNSURE": "differs by less than the seeds tell from",
    }.items():
        if verdicts[word]:
            lines.append(f"- {FIRST} {meaning} {', '.join(verdicts[word])}.")
    best = max(found, key=lambda name: statistics.mean(run["accuracy"] for run in found[name]))
    lines += [
        f"- The highest mean accuracy is that of {best}.",
        "",
        "Widths of each layer:",
        "",
        "| way | seed | widths |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {run['seed']} | {' '.join(map(str, run['widths']))} |"
        for name, runs in found.items()
        for run in runs
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True, help="cifar10-jpeg.tar.zst")
    parser.add_argument(
        "--table", type=Path, required=True, help="latency table of repvgg-mini, measured on this machine"
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="directory for report, plot and numbers")
    parser.add_argument("--budget-fraction", type=float, default=0.5, help="of the unpruned network's measured latency")
    parser.add_argument("--images", type=int, default=8_000, help="training images")
    parser.add_argument("--epochs", type=int, nargs=3, default=(8, 3, 9), help="of pretraining, search and fine-tuning")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse_args()
    missing = None if options.archive.exists() else f"{options.archive} does not exist"
    if missing or not shutil.which("zstd"):
        print(f"skipped: {missing or 'zstd is not installed'}")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    data, test = cifar(options.archive, options.images)
    table = LatencyTable.load(options.table)
    space = spaces.get("repvgg-mini", classes=len(data.labels))
    whole = table.measured_network(space.network()) or table.predict(space.network())
    budget_us = options.budget_fraction * whole.us
    settings = dict(zip(("pretrain_epochs", "search_epochs", "finetune_epochs"), options.epochs, strict=True))
    runs = {
        (way, seed): search(way, seed, data, table, budget_us, settings, options.work)
        for seed in range(options.seeds)
        for way in WAYS
    }

    shipped = {key: ship(run, data, test) for key, run in runs.items()}
    shipped |= {("unpruned", seed): ship(runs[FIRST, seed], data, test, unpruned=True) for seed in range(options.seeds)}
    backend = backends.get("onnxruntime", threads=1)
    with ExitStack() as stack:
        timed = {key: stack.enter_context(backend.compile(model)) for key, (_, model) in shipped.items()}
        measured: dict[tuple[str, int], Measurement] = measure_in_turns(timed, protocol.DEFAULT)
    rows = defaultdict(list)
    for (way, seed), (facts, _) in shipped.items():
        found = measured[way, seed]
        figures = {
            "measured_us": found.median_us,
            "low_us": found.low_us,
            "high_us": found.high_us,
            "status": found.status,
        }
        rows[way].append({"seed": seed, **facts, **figures})
    unpruned = rows.pop("unpruned")
    words = {
        way: [compare_latency(measured[FIRST, seed], measured[way, seed]) for seed in range(options.seeds)]
        for way in WAYS
    }

    about = (
        f"{backend.device.name}, 1 thread, {backend.runtime.name} {backend.runtime.version}; repvgg-mini on {len(data.train):,} CIFAR-10"
        f" training images (JPEG), epochs {'/'.join(map(str, options.epochs))}; {len(runs)} runs"
    )
    if (backend.device, backend.runtime) != (table.header.device, table.header.runtime):
        about += "; THE TABLE IS OF ANOTHER DEVICE OR RUNTIME"
    lines = [about, "", *report(rows, unpruned, budget_us, words)]
    print("\n".join([*lines, "", f"{time.perf_counter() - start:.0f} s this time"]))
    stem = options.out / f"cifar.{slug(backend.device.name)}"
    plot(rows, unpruned, budget_us, stem.with_name(stem.name + ".svg"))
    stem.with_name(stem.name + ".md").write_text(
        "\n".join([*lines, "", f"![accuracy against latency]({stem.name}.svg)"]) + "\n"
    )
    record = {"about": about, "budget_us": budget_us, "settings": settings, "unpruned": unpruned, "ways": rows}
    stem.with_name(stem.name + ".json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


if __name__ == "__main__":
    main()
