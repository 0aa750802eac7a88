"""Which method prunes best? CIFAR-10, one network, latency budgets on this CPU, seven methods side by side.

    python benchmarks/cifar.py --archive cifar10-jpeg.tar.zst --table profiles/DEVICE/repvgg-mini.fp32.latency.jsonl --work /tmp/cifar

The baselines are uniform widths, L1 magnitude, network slimming, and `table`, an exact fit by Taylor scores. The methods that learn widths are
Pruning-as-Search that counts latency, the same that counts MACs, and TAS. All runs of a seed start from one unpruned network, and have the
same epochs, the same rates and the same loss. What they find is fused, squeezed, and timed in turns in ONNX Runtime. The training set is a
subset and the epochs are few, so accuracies compare methods, not papers.

| part | what |
|---|---|
| search | trains one run after the other, in the order of budgets, ways and seeds |
| measure | times the networks of all finished runs in turns; wants a quiet machine |
| report | writes cifar.<machine>.md, .json and .svg from what there is, and lists what is missing |

The archive holds train/CLASS/*.jpg and test/CLASS/*.jpg. The same command goes on where it was interrupted; several may share a work directory
if their seeds differ.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from outcome import fastest_in_turns, make_once, mean_and_half, slug

from deploy.lowering import to_onnx
from deploy.validate import compare_latency
from latency import LatencyTable, Measurement, backends
from reparam import count, fuse, squeeze
from search import finished, methods, session, spaces
from search.architecture import Preprocessing
from search.augment import Augmentation
from search.budget import Budget
from search.classification import Classification, Split
from search.method import Method, Problem
from search.methods.settings import (
    MagnitudeSettings,
    PasSettings,
    PruningSettings,
    SlimmingSettings,
    TableSettings,
    TasSettings,
    UniformSettings,
    recipe,
)
from search.network import load_weights
from search.record import Chosen, EpochDone

HERE = Path(__file__).parent
BASELINES: dict[str, tuple[type[PruningSettings], dict[str, Any]]] = {
    "uniform": (UniformSettings, {}),
    "slimming": (SlimmingSettings, {}),
    "table": (TableSettings, {}),
    "magnitude": (MagnitudeSettings, {}),
}
LEARNED: dict[str, tuple[type[PruningSettings], dict[str, Any]]] = {
    "PaS, latency": (PasSettings, {"cost": "latency"}),
    "PaS, MACs": (PasSettings, {"cost": "macs"}),
    "TAS": (TasSettings, {"searched": "widths", "retrain": "rewind"}),
}
WAYS = BASELINES | LEARNED
PARTS = ("search", "measure", "report")
PHASES = ("pretrain", "search", "finetune")
TRAINING = ("batch", "lr", "momentum", "weight_decay", "label_smoothing")
"""Settings of the training that all methods share; elsewhere TAS has its own."""
MEASURED = "latencies.json"
SAME_ACCURACY = 0.005
WATCHED = 1_000
"""Number of test images that are evaluated after every epoch; all are in the end."""


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


@torch.no_grad()
def accuracy(network: torch.nn.Module, data: Classification, test: Split) -> float:
    network.eval()
    batches = zip(test.images.split(500), test.labels.split(500), strict=True)
    return sum(int((network(data.normalise(images)).argmax(1) == labels).sum()) for images, labels in batches) / len(
        test
    )


# Runs


@dataclass(frozen=True)
class Job:
    """A run: a way to choose widths, a budget as a share of the unpruned network's latency, and a seed."""

    way: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{slug(self.way)}-{self.budget:g}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs of a work directory have in common."""

    work: Path
    network: str
    epochs: Sequence[int]
    distill: str
    data: Classification
    test: Split
    table: LatencyTable

    def method(self, way: str, budget: float, seed: int) -> Method[Any]:
        """A method with its problem; the budget is a share of the unpruned network's latency."""
        space = spaces.get(self.network, classes=len(self.data.labels))
        whole = self.table.measured_network(space.network()) or self.table.predict(space.network())
        kind, given = WAYS[way]
        usual = recipe(UniformSettings, len(self.data.train))
        given = {name: getattr(usual, name) for name in TRAINING} | given
        given |= dict(zip((f"{phase}_epochs" for phase in PHASES), self.epochs, strict=True))
        config = recipe(kind, len(self.data.train), **given, distill=self.distill, seed=seed)
        return methods.method(
            config, Problem(space=space, task=self.data, table=self.table, budget=Budget(us=budget * whole.us))
        )

    def unpruned(self, seed: int) -> Path:
        """The directory of a run that stopped after its first phase, from which the others of its seed start."""
        out = self.work / "runs" / f"unpruned-{seed}"
        if not (out / "baseline.safetensors").exists():
            for event in session.run(self.method("uniform", 1.0, seed), out):
                _tell(out, event)
                if isinstance(event, Chosen):
                    break  # the unpruned network is saved
        return out

    def figures_of_unpruned(self, seed: int) -> dict[str, Any]:
        """Accuracy and cost of the unpruned network of a seed."""
        out, method = self.unpruned(seed), self.method("uniform", 1.0, seed)
        network = method.problem.space.module()
        load_weights(network, out / "baseline.safetensors", {})
        return self._figures(network, method, method.problem.space.largest(), f"unpruned-{seed}")

    def figures(self, job: Job) -> dict[str, Any]:
        """Run a job; return its figures."""
        method, out, cpu = self.method(job.way, job.budget, job.seed), self.work / "runs" / job.name, defaultdict(list)
        begun = time.process_time()
        for event in session.run(method, out, baseline=self.unpruned(job.seed)):
            _tell(out, event)
            if isinstance(event, EpochDone):
                cpu[event.phase].append(time.process_time() - begun)
                begun = time.process_time()
        run = finished.load(out)
        searched = statistics.mean(cpu["search"]) * self.epochs[1] if cpu["search"] else None
        found = self._figures(run.network(), method, run.architecture.choice, job.name)
        return found | {"budget_us": method.problem.budget.amount, "search_cpu_s": searched}

    def _figures(self, network: torch.nn.Module, method: Method[Any], choice: Any, name: str) -> dict[str, Any]:
        example = method.problem.example
        small = squeeze(fuse(network.eval(), example), example)
        (self.work / f"{name}.onnx").write_bytes(to_onnx(small, example))
        size, predicted = count(small, example), method.problem.latency(choice)
        return {
            "widths": list(choice.widths.values()),
            "parameters": size.params,
            "macs": size.macs,
            "predicted_us": predicted.us,
            "predicted_high_us": predicted.high_us,
            "accuracy": accuracy(small, self.data, self.test),
        }


def _tell(out: Path, event: Any) -> None:
    if isinstance(event, EpochDone):
        widths = " ".join(map(str, event.choice.widths.values()))
        figures = f"accuracy {event.score:.2%}, predicted {event.latency_us:.1f} us, widths {widths}"
        print(f"{out.name}: {event.phase} {event.epoch}/{event.epochs}, {figures}", file=sys.stderr, flush=True)


# Latency


def measure(work: Path) -> None:
    """Time one network for each distinct tuple of widths, in turns."""
    models = {_key(row): (work / f"{name}.onnx").read_bytes() for name, row in sorted(_finished(work).items())}
    backend = backends.get("onnxruntime", threads=1)
    with ExitStack() as stack:
        timed = {key: stack.enter_context(backend.compile(model)) for key, model in models.items()}
        (work / MEASURED).write_bytes(msgspec.json.encode(fastest_in_turns(timed)))


def _measured(work: Path) -> dict[str, Measurement]:
    path = work / MEASURED
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Measurement]) if path.exists() else {}


def _key(row: Mapping[str, Any]) -> str:
    return " ".join(map(str, row["widths"]))


def _finished(work: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))}


# Report


@dataclass
class Rows:
    """Figures of the finished runs that a report is about, by way and budget, and by seed; the unpruned networks are of budget 1."""

    each: dict[tuple[str, float], dict[int, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    missing: list[str] = field(default_factory=list)
    times: dict[str, Measurement] = field(default_factory=dict)

    def best_baseline(self, budget: float) -> str | None:
        """The baseline of the highest mean accuracy."""
        means = {
            way: statistics.mean(row["accuracy"] for row in each.values())
            for way in BASELINES
            if (each := self.each.get((way, budget)))
        }
        return max(means, key=lambda way: means[way], default=None)

    def against(self, one: str, other: str, budget: float) -> dict[str, Any] | None:
        """Accuracy and latency of one way against another's, paired by seed."""
        ones, others = self.each.get((one, budget), {}), self.each.get((other, budget), {})
        seeds = sorted(ones.keys() & others.keys())
        if not seeds:
            return None
        mean, half = mean_and_half([ones[seed]["accuracy"] - others[seed]["accuracy"] for seed in seeds])
        words = [self._latency(_key(ones[seed]), _key(others[seed])) for seed in seeds]
        return {
            "seeds": seeds,
            "accuracy": mean,
            "half_width": half,
            "word": _word(mean, half),
            "latency": words,
            "holds": mean - half > 0 and all(word.startswith(("FASTER", "SAME")) for word in words),
        }

    def _latency(self, one: str, other: str) -> str:
        """One network's latency against another's, by their widths."""
        if one == other:
            return "SAME widths"
        if not (one in self.times and other in self.times):
            return "not measured"
        compared = compare_latency(self.times[one], self.times[other])
        return f"{compared.word} {compared.ratio:.3f}"


def _word(mean: float, half: float) -> str:
    if abs(mean) + half <= SAME_ACCURACY:
        return "SAME"
    return "BETTER" if mean - half > 0 else "WORSE" if mean + half < 0 else "UNSURE"


def rows_of(work: Path, jobs: Iterable[Job], seeds: Iterable[int]) -> Rows:
    there, rows = _finished(work), Rows(times=_measured(work))
    for job in [Job("unpruned", 1.0, seed) for seed in seeds] + list(jobs):
        name = f"unpruned-{job.seed}" if job.way == "unpruned" else job.name
        if name in there:
            rows.each[job.way, job.budget][job.seed] = there[name]
        else:
            rows.missing.append(name)
    return rows


def _interval(values: Sequence[float]) -> str:
    mean, half = mean_and_half(values)
    return (
        f"{mean:.2f}"
        + (f" ± {half:.2f}" if len(values) > 1 else "")
        + f" ({', '.join(f'{value:.2f}' for value in values)})"
    )


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):{form}}" if known else "-"


def _way_lines(rows: Rows, budget: float) -> Iterator[str]:
    yield "| way | accuracy, % | measured, us | predicted, us | budget used, % | MACs | search, CPU s |"
    yield "|---|---|---|---|---|---|---|"
    for way in WAYS:
        if each := rows.each.get((way, budget)):
            runs = list(each.values())
            times = [rows.times[_key(run)].median_us for run in runs if _key(run) in rows.times]
            cells = [
                _interval([100 * run["accuracy"] for run in runs]),
                _mean(times, ".1f"),
                _mean([run["predicted_us"] for run in runs], ".1f"),
                _mean([100 * run["predicted_high_us"] / run["budget_us"] for run in runs], ".1f"),
                _mean([run["macs"] for run in runs], ",.0f"),
                _mean([run["search_cpu_s"] for run in runs], ".0f"),
            ]
            yield f"| {way} | {' | '.join(cells)} |"


def _verdict_lines(rows: Rows, budgets: Sequence[float]) -> Iterator[str]:
    yield "| way | budget | against | accuracy, points | latency, each seed | ahead, in at most the same latency |"
    yield "|---|---|---|---|---|---|"
    for way in LEARNED:
        for budget in budgets:
            for other in dict.fromkeys(("uniform", rows.best_baseline(budget))):
                if other and (found := rows.against(way, other, budget)):
                    half = f" ± {100 * found['half_width']:.2f}" if len(found["seeds"]) > 1 else ", one seed"
                    cells = [
                        f"{budget:.0%}",
                        other if other == "uniform" else f"{other}, the best baseline",
                        f"{found['word']}: {100 * found['accuracy']:+.2f}{half}",
                        ", ".join(found["latency"]),
                        "holds" if found["holds"] else "MISSED",
                    ]
                    yield f"| {way} | {' | '.join(cells)} |"


def _unpruned_line(rows: Rows) -> str:
    runs = list(rows.each["unpruned", 1.0].values())
    if not runs:
        return "The unpruned network is not trained yet."
    time = rows.times.get(_key(runs[0]))
    accuracies = _interval([100 * run["accuracy"] for run in runs])
    return (
        f"Unpruned: accuracy {accuracies} %, predicted {runs[0]['predicted_us']:.1f} us, {runs[0]['macs']:,} MACs"
        + (f", measured {time.median_us:.1f} us" if time else "")
        + "."
    )


def report(rows: Rows, about: str, budgets: Sequence[float]) -> Iterator[str]:
    """The tables, all from the figures."""
    yield "# CIFAR-10: widths by seven methods\n"
    yield about + "\n"
    if rows.missing:
        yield f"Not run yet, {len(rows.missing)}: {', '.join(rows.missing)}.\n"
    yield _unpruned_line(rows)
    yield (
        "\nAccuracies are of the 10,000 test images: mean, 95 % interval over seeds (Student's t) and each seed. A budget is a share of the"
        " unpruned network's latency; what is used of it is the upper end of the prediction. CPU seconds are of the search's epochs: for"
        " baselines that prune before the search, those epochs train the pruned network."
    )
    for budget in budgets:
        if any(rows.each.get((way, budget)) for way in WAYS):
            yield f"\n## Budget {budget:.0%}\n"
            yield from _way_lines(rows, budget)
    yield "\n## Learned widths against baselines\n"
    yield (
        "Differences are paired by seed. The best baseline is the one of the highest mean accuracy at the budget, known only afterwards.\n"
    )
    yield from _verdict_lines(rows, budgets)
    yield "\n## Widths\n"
    yield "| budget | way | seed | widths |"
    yield "|---|---|---|---|"
    for (way, budget), each in rows.each.items():
        yield from (f"| {budget:.0%} | {way} | {seed} | {_key(run)} |" for seed, run in each.items())


def plot(rows: Rows, budgets: Sequence[float], out: Path) -> None:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for way, marker in zip(["unpruned", *WAYS], "xosD^vPd", strict=True):
        points = []
        for budget in [1.0] if way == "unpruned" else sorted(budgets):
            if runs := list(rows.each.get((way, budget), {}).values()):
                times = [
                    rows.times[_key(run)].median_us if _key(run) in rows.times else run["predicted_us"] for run in runs
                ]
                mean, half = mean_and_half([100 * run["accuracy"] for run in runs])
                points.append((statistics.mean(times), mean, half if len(runs) > 1 else 0.0))
        if points:
            axes.errorbar(*zip(*points, strict=True), fmt=f"{marker}-", label=way, alpha=0.8, capsize=3)
    axes.set(xlabel="latency, µs (ONNX Runtime, one thread, batch 1)", ylabel="accuracy on 10,000 test images, %")
    axes.legend()
    figure.savefig(out, metadata={"Date": None})


def write(options: argparse.Namespace, jobs: Sequence[Job], table: LatencyTable) -> None:
    """Print the report and write it with its figures and its plot."""
    rows = rows_of(options.work, jobs, options.seeds)
    device, runtime = table.header.device, table.header.runtime
    about = (
        f"{device.name}, 1 thread, {runtime.name} {runtime.version}; {options.network} on {options.images:,} CIFAR-10 training images (JPEG),"
        f" epochs {'/'.join(map(str, options.epochs))} of pretraining, search and fine-tuning; distillation: {options.distill};"
        f" seeds {', '.join(map(str, options.seeds))}; {len(jobs) + len(options.seeds) - len(rows.missing)} of"
        f" {len(jobs) + len(options.seeds)} runs."
    )
    text = "\n".join(report(rows, about, options.budgets)) + "\n"
    print(text)
    stem = options.out / f"cifar.{slug(device.name)}"
    plot(rows, options.budgets, Path(f"{stem}.svg"))
    Path(f"{stem}.md").write_text(f"{text}\n![accuracy against latency]({stem.name}.svg)\n")
    record = {
        "about": about,
        "missing": rows.missing,
        "runs": [
            {"way": way, "budget": budget, "seed": seed, **run}
            for (way, budget), each in rows.each.items()
            for seed, run in each.items()
        ],
        "measured_us": {key: [found.median_us, found.low_us, found.high_us] for key, found in rows.times.items()},
    }
    Path(f"{stem}.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True, help="cifar10-jpeg.tar.zst")
    parser.add_argument(
        "--table", type=Path, required=True, help="latency table of the network, measured on this machine"
    )
    parser.add_argument("--work", type=Path, required=True, help="directory for the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="directory for report, plot and figures")
    parser.add_argument("--network", default="repvgg-mini", help="space of widths, such as resnet20/widths")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=(0.55, 0.4, 0.7), help="shares of the unpruned network's latency"
    )
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=(10, 11, 12))
    parser.add_argument("--images", type=int, default=20_000, help="training images")
    parser.add_argument(
        "--epochs", type=int, nargs=3, default=(16, 6, 16), help="of pretraining, search and fine-tuning"
    )
    parser.add_argument(
        "--distill", choices=("none", "tas", "hinton"), default="none", help="from the unpruned network, in all runs"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    missing = None if options.archive.exists() else f"{options.archive} does not exist"
    if missing or not shutil.which("zstd"):
        print(f"skipped: {missing or 'zstd is not installed'}")
        return
    for name in ("", "runs", "results"):
        (options.work / name).mkdir(parents=True, exist_ok=True)
    jobs = [Job(way, budget, seed) for budget in options.budgets for way in options.ways for seed in options.seeds]
    table = LatencyTable.load(options.table)
    same = {name: getattr(options, name) for name in ("network", "images", "distill")}
    same |= {"epochs": list(options.epochs), "table": table.sha256}
    if (there := make_once(options.work, "setting", lambda: same)) != same:
        raise SystemExit(f"{options.work} holds runs of another setting: {there}; asked for {same}")
    if "search" in options.parts:
        data, test = cifar(options.archive, options.images)
        setting = Setting(
            work=options.work,
            network=options.network,
            epochs=options.epochs,
            distill=options.distill,
            data=data,
            test=test,
            table=table,
        )
        for seed in options.seeds:
            make_once(options.work / "results", f"unpruned-{seed}", partial(setting.figures_of_unpruned, seed))
        for job in jobs:
            make_once(options.work / "results", job.name, partial(setting.figures, job))
    if "measure" in options.parts:
        measure(options.work)
    if "report" in options.parts:
        write(options, jobs, table)


if __name__ == "__main__":
    main()
