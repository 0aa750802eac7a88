"""What does VP-DARTS find on NAS-Bench-201, and what do DARTS and random search find in about the same time?

    python benchmarks/nasbench201.py --archive cifar10-jpeg.tar.zst --benchmark nasbench201.csv.gz --work /tmp/nasbench201

Each way searches `nasbench201-small` (8 channels, one cell a stage, 16x16) with 4,000 training and 2,000 validation images of CIFAR-10, with
seeds that were chosen before the first run. The found cell is then looked up in the benchmark, which the search never reads. The same
command goes on where it was interrupted, writes what is there so far, and `--ways` runs some of the ways only.
"""

import argparse
import csv
import gzip
import json
import resource
import statistics
import sys
from pathlib import Path

import torch
from cifar import cifar

from latency import LatencyTable
from search import methods, session, spaces
from search.budget import Budget
from search.data import Dataset, Split
from search.method import Task
from search.methods.settings import VpDartsSettings
from search.record import EpochDone
from search.spaces.cells import EDGES, OPTIONS, edge

HERE = Path(__file__).parent
SEEDS = (10, 11, 12, 13, 14)
IMAGES = 6_000
WAYS: dict[str, dict] = {
    "adjustable K, loss": {},
    "DARTS": {"variant": "darts"},
    "random search": {"variant": "random", "warmup_epochs": 112, "random_epochs": 4},  # 30 cells: about as long as the others take
    "adjustable K, accuracy": {"importance": "accuracy"},
    "fixed K, loss": {"variant": "fixed"},
    "hard, at once": {"variant": "hard"},
    "hard, 5-3-2": {"variant": "progressive"},
    "alpha as criterion": {"criterion": "alpha"},
    "budget 70 %": {"budget": 0.7},
    "budget 50 %": {"budget": 0.5},
}
SETS = {"CIFAR-10": "cifar10_test", "CIFAR-100": "cifar100_test", "ImageNet16-120": "imagenet16_test"}


def half(data: Dataset) -> Dataset:
    """The images at 16x16: the mean of each 2x2."""

    def smaller(split: Split) -> Split:
        images = torch.nn.functional.avg_pool2d(split.images.float(), 2).round().to(torch.uint8)
        return Split(images=images, labels=split.labels)

    preprocessing = type(data.preprocessing)(size=(16, 16), mean=data.preprocessing.mean, std=data.preprocessing.std)
    augmentation = type(data.augmentation)(shift_px=2, flip=True)
    return Dataset(
        name=f"{data.name}, 16x16",
        labels=data.labels,
        train=smaller(data.train),
        held_out=smaller(data.held_out),
        preprocessing=preprocessing,
        augmentation=augmentation,
    )


def search(way: str, seed: int, data: Dataset, table: LatencyTable | None, out: Path) -> dict:
    """The cell that one way finds with one seed; its training from scratch is left out."""
    space, chosen = spaces.get("nasbench201-small"), dict(WAYS[way])
    fraction = chosen.pop("budget", None)
    if table:
        budget = Budget(us=table.predict(space.network()).us * fraction) if fraction else Budget(us=table.predict(space.network()).high_us)
    else:
        budget = Budget(macs=space.macs() * (fraction or 1))
    method = methods.method(VpDartsSettings(seed=seed, train_epochs=1, **chosen), Task(space=space, data=data, table=table, budget=budget))
    begun, epochs = _cpu_s(), []
    for event in session.run(method, out):
        if isinstance(event, EpochDone) and event.phase != "train":
            epochs.append(event)
            spent = _cpu_s() - begun
            print(
                f"{way}, seed {seed}: {event.phase} {event.epoch}/{event.epochs}, {space.text(event.choice)}, {spent:.0f} s",
                file=sys.stderr,
            )
        elif isinstance(event, EpochDone):
            break
    figures = epochs[-1].figures
    rows = {
        kind: [[figures.get(f"{kind}.{edge(*ends)}.{name}") for name in OPTIONS] for ends in EDGES]
        for kind in ("worth", "alpha")
        if any(name.startswith(kind) for name in figures)
    }
    return {"arch": space.text(epochs[-1].choice), "cpu_s": _cpu_s() - begun, **rows}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def looked_up(path: Path) -> dict[str, dict[str, float]]:
    with gzip.open(path, "rt", newline="") as file:
        return {row["arch"]: {name: float(row[column]) for name, column in SETS.items()} for row in csv.DictReader(file)}


def tau(ours: list[float], theirs: list[float]) -> float:
    """Kendall's tau-b of two lists."""
    from scipy.stats import kendalltau

    return float(kendalltau(ours, theirs).statistic)


def marginals(accuracies: dict[str, dict[str, float]]) -> list[list[float]]:
    """Of each edge and operation the mean accuracy on CIFAR-10 of all cells that have it."""
    space = spaces.get("nasbench201-small")
    sums = [[[0.0, 0] for _ in OPTIONS] for _ in EDGES]
    for choice in space.choices():
        found = accuracies[space.text(choice)]["CIFAR-10"]
        for index, ends in enumerate(EDGES):
            entry = sums[index][OPTIONS.index(choice.options[edge(*ends)])]
            entry[0], entry[1] = entry[0] + found, entry[1] + 1
    return [[total / count for total, count in row] for row in sums]


def report(runs: dict[str, dict], accuracies: dict[str, dict[str, float]]) -> str:
    """What was found so far."""
    wanted, lines = marginals(accuracies), []
    ranks = sorted((found["CIFAR-10"] for found in accuracies.values()), reverse=True)
    lines += ["# VP-DARTS on NAS-Bench-201", "", *(__doc__ or "").strip().splitlines()[4:], ""]
    lines += [f"Seeds {', '.join(map(str, SEEDS))}; mean of the benchmark's test accuracy in percent over the seeds that are done.", ""]
    lines += [
        "| way | seeds | CIFAR-10 | least | CIFAR-100 | ImageNet16-120 | tau worth | tau alpha | CPU-s a search |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        done = [runs[key] for seed in SEEDS if (key := f"{way}/{seed}") in runs]
        if not done:
            continue
        each = {name: [accuracies[run["arch"]][name] for run in done] for name in SETS}
        taus = []
        for kind in ("worth", "alpha"):
            found = [
                statistics.mean(
                    tau([v if v is not None else -1e9 for v in row], other) for row, other in zip(run[kind], wanted, strict=True)
                )
                for run in done
                if kind in run
            ]
            taus.append(f"{statistics.mean(found):.2f}" if found and way not in ("DARTS", "random search") else "-")
        means = [f"{statistics.mean(values):.2f}" for values in each.values()]
        lines.append(
            f"| {way} | {len(done)} | {means[0]} | {min(each['CIFAR-10']):.2f} | {means[1]} | {means[2]} | {taus[0]} | {taus[1]} "
            f"| {statistics.mean(run['cpu_s'] for run in done):.0f} |"
        )
    all3 = accuracies[spaces.get("nasbench201-small").text(spaces.get("nasbench201-small").largest())]
    lines += [
        "",
        "All 3x3 has " + " / ".join(f"{all3[name]:.2f}" for name in SETS) + "; the best cell on CIFAR-10 " + f"{ranks[0]:.2f}.",
        "",
    ]
    lines += ["| way | seed | cell | CIFAR-10 | rank |", "|---|---|---|---|---|"]
    for way in WAYS:
        for seed in SEEDS:
            if run := runs.get(f"{way}/{seed}"):
                found = accuracies[run["arch"]]["CIFAR-10"]
                arch = run["arch"].replace("|", "\\|")
                lines.append(f"| {way} | {seed} | `{arch}` | {found:.2f} | {1 + sum(other > found for other in ranks)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--benchmark", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="of nasbench201-small; without one budgets are of multiply-accumulates")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    accuracies = looked_up(arguments.benchmark)
    data, table = None, LatencyTable.load(arguments.table) if arguments.table else None
    store = arguments.work / "runs.json"
    for way in arguments.ways:
        for seed in arguments.seeds:
            runs = json.loads(store.read_text()) if store.exists() else {}
            if f"{way}/{seed}" in runs:
                continue
            data = data or half(cifar(arguments.archive, IMAGES)[0])
            name = "".join(letter if letter.isalnum() else "-" for letter in way)
            found = search(way, seed, data, table, arguments.work / f"{name}.{seed}")
            runs = json.loads(store.read_text()) if store.exists() else {}
            store.write_text(json.dumps(runs | {f"{way}/{seed}": found}, indent=1))
            print(f"{way}, seed {seed}: {accuracies[found['arch']]}", file=sys.stderr, flush=True)
            if set(arguments.seeds) <= set(SEEDS):
                runs = json.loads(store.read_text())
                (HERE / "nasbench201.json").write_text(json.dumps(runs, indent=1) + "\n")
                (HERE / "nasbench201.md").write_text(report(runs, accuracies))


if __name__ == "__main__":
    main()
