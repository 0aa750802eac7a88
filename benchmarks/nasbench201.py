"""What does VP-DARTS find on NAS-Bench-201, and what do DARTS and random search find in about the same time?

    python benchmarks/nasbench201.py --archive cifar10-jpeg.tar.zst --benchmark nasbench201.csv.gz --work /tmp/nasbench201

Each way searches `nasbench201-small` (8 channels, one cell a stage, 16x16) with 4,000 training and 2,000 validation images of CIFAR-10, with
seeds that were chosen before the first run. The found cell is then looked up in the benchmark, which the search never reads. The same
command goes on where it was interrupted, in the middle of a search too, writes what is there so far, and `--ways` runs some of the ways only.

`--setting true` searches as the paper does: 16 channels, five cells a stage, 32x32, all 50,000 images, 20 + 30 epochs; on a GPU where there is
one. `--steps` measures a few steps of that. `--measure` times the cells that were found within a budget, on this machine.
"""

import argparse
import csv
import gzip
import json
import resource
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cifar import cifar
from outcome import verdicts

from deploy.engine import measure_in_turns
from latency import LatencyTable, backends, protocol
from search import methods, session, spaces
from search.budget import Budget
from search.classification import Classification, Split
from search.cost import LatencyModel, Price
from search.method import Problem
from search.methods.settings import VpDartsSettings, recipe
from search.record import EpochDone, Started, read_usage
from search.spaces import Cells, with_cells
from search.spaces.cells import EDGES, OPTIONS, edge
from search.workloads import lower_network

HERE = Path(__file__).parent
SEEDS = (10, 11, 12, 13, 14)


@dataclass(frozen=True)
class Setting:
    """What is searched, with what."""

    space: str
    images: int
    recipe: str
    stem: str
    """of the files that are written"""
    given: Mapping[str, int] = field(default_factory=dict)
    """settings that no way changes"""


SETTINGS = {
    "small": Setting("nasbench201-small", 6_000, "auto", "nasbench201"),
    "true": Setting("nasbench201", 50_000, "paper", "nasbench201_true", {"warmup_epochs": 20}),
}
FIRST = "VP-DARTS, all looks"
"""As it is by default; the ways below choose by the last look, as the paper does."""
LAST = {"importance": "loss", "looks": "last"}
WAYS: dict[str, dict] = {
    FIRST: {"importance": "loss", "looks": "all"},
    "budget 70 %": {"importance": "loss", "looks": "all", "budget": 0.7},
    "budget 50 %": {"importance": "loss", "looks": "all", "budget": 0.5},
    "adjustable K, loss": LAST,
    "DARTS": {"variant": "darts"},
    "random search": {
        "variant": "random",
        "warmup_epochs": 112,
        "random_epochs": 4,
    },  # 30 cells: about as long as the others take
    "adjustable K, accuracy": {"importance": "accuracy", "looks": "last"},
    "fixed K, loss": LAST | {"variant": "fixed"},
    "fixed K, looks at 10 %": LAST | {"variant": "fixed", "subset": 0.1, "final_subset": 0.1},
    "fixed K, looks at 100 %": LAST | {"variant": "fixed", "subset": 1.0, "final_subset": 1.0},
    "hard, at once": LAST | {"variant": "hard"},
    "hard, 5-3-2": LAST | {"variant": "progressive"},
    "alpha as criterion": {"criterion": "alpha"},
}
BUDGETS = {way: chosen["budget"] for way, chosen in WAYS.items() if "budget" in chosen}
SETS = {"CIFAR-10": "cifar10_test", "CIFAR-100": "cifar100_test", "ImageNet16-120": "imagenet16_test"}


def cells_of(setting: Setting) -> Cells:
    return with_cells(spaces.get(setting.space), "VP-DARTS")


def smaller(split: Split) -> Split:
    """The images at half the height and width: the mean of each 2x2."""
    return Split(
        images=torch.nn.functional.avg_pool2d(split.images.float(), 2).round().to(torch.uint8), labels=split.labels
    )


def half(data: Classification) -> Classification:
    """The images at 16x16."""
    preprocessing = type(data.preprocessing)(size=(16, 16), mean=data.preprocessing.mean, std=data.preprocessing.std)
    augmentation = type(data.augmentation)(shift_px=2, flip=True)
    return Classification(
        name=f"{data.name}, 16x16",
        labels=data.labels,
        train=smaller(data.train),
        held_out=smaller(data.held_out),
        preprocessing=preprocessing,
        augmentation=augmentation,
    )


def loaded(archive: Path, setting: Setting) -> Classification:
    """The images of a setting at the size of its space."""
    data, _ = cifar(archive, setting.images)
    return half(data) if cells_of(setting).input_shape[1] == 16 else data


def problem_of(setting: Setting, data: Classification, table: LatencyTable | None, fraction: float | None) -> Problem:
    """The space under a share of the cost of "all 3x3", or under a budget that binds nothing."""
    space = cells_of(setting)
    if table:
        whole = table.predict(space.network())
        budget = Budget(us=whole.us * fraction if fraction else whole.high_us)
    else:
        budget = Budget(macs=space.macs() * (fraction or 1))
    return Problem(space=space, task=data, table=table, budget=budget)


def search(way: str, seed: int, setting: Setting, data: Classification, table: LatencyTable | None, out: Path) -> dict:
    """The cell that one way finds with one seed; its training from scratch is left out."""
    chosen = {**WAYS[way], **setting.given}
    problem = problem_of(setting, data, table, chosen.pop("budget", None))
    settings = recipe(VpDartsSettings, len(data.train), setting.recipe, **chosen, seed=seed, train_epochs=1)
    begun, epochs = _cpu_s(), []
    for event in session.run(methods.method(settings, problem), out):
        if isinstance(event, Started):
            epochs += [epoch for epoch in event.history if epoch.phase != "train"]
        elif isinstance(event, EpochDone) and event.phase != "train":
            epochs.append(event)
            spent = _cpu_s() - begun
            print(
                f"{way}, seed {seed}: {event.phase} {event.epoch}/{event.epochs}, {problem.space.text(event.choice)}, {spent:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        elif isinstance(event, EpochDone):
            break
    figures = epochs[-1].figures
    rows = {
        kind: [[figures.get(f"{kind}.{edge(*ends)}.{name}") for name in OPTIONS] for ends in EDGES]
        for kind in ("worth", "alpha")
        if any(name.startswith(kind) for name in figures)
    }
    return {"arch": problem.space.text(epochs[-1].choice), "cpu_s": _cpu_s() - begun, **rows}


def steps(setting: Setting, data: Classification, out: Path) -> list[str]:
    """Seconds and memory of a search step, in the warm-up and while pruning, by few of them."""
    chosen = {**setting.given, "warmup_epochs": 1, "prune_epochs": 1, "train_epochs": 1}
    settings = recipe(VpDartsSettings, len(data.train), setting.recipe, **chosen, seed=SEEDS[0])
    for event in session.run(methods.method(settings, problem_of(setting, data, None, None)), out):
        if isinstance(event, EpochDone) and event.phase == "train":
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    lines = [
        f"`{setting.space}`, batch {settings.batch}, {torch.get_num_threads()} thread; peak memory of the process {peak:.2f} GiB.",
        "",
    ]
    lines += ["| phase | steps | s a step | MiB kept for the gradient |", "|---|---|---|---|"]
    return lines + [
        f"| {usage.phase} | {usage.steps} | {usage.seconds / usage.steps:.2f} | {usage.saved_bytes / 2**20:.0f} |"
        for usage in read_usage(out)
        if usage.phase != "train"
    ]


def timed(archs: list[str], setting: Setting) -> dict[str, list[float]]:
    """Median, lower and upper end in microseconds of whole cells' networks on this machine, measured in turns; "all 3x3" is among them."""
    space, backend = cells_of(setting), backends.get("onnxruntime", threads=1)
    choices = {arch: space.parse(arch) for arch in [space.text(space.largest()), *archs]}
    with ExitStack() as stack:
        ready = {
            arch: stack.enter_context(backend.compile(lower_network(space, choice))) for arch, choice in choices.items()
        }
        found = measure_in_turns(ready, protocol.DEFAULT)
    return {arch: [value.median_us, value.low_us, value.high_us] for arch, value in found.items()}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def looked_up(path: Path) -> dict[str, dict[str, float]]:
    with gzip.open(path, "rt", newline="") as file:
        return {
            row["arch"]: {name: float(row[column]) for name, column in SETS.items()} for row in csv.DictReader(file)
        }


def tau(ours: list[float], theirs: list[float]) -> float:
    """Kendall's tau-b of two lists."""
    from scipy.stats import kendalltau

    return float(kendalltau(ours, theirs).statistic)


def marginals(accuracies: dict[str, dict[str, float]]) -> list[list[float]]:
    """Of each edge and operation the mean accuracy on CIFAR-10 of all cells that have it."""
    space = cells_of(SETTINGS["small"])
    sums = [[[0.0, 0] for _ in OPTIONS] for _ in EDGES]
    for choice in space.choices():
        found = accuracies[space.text(choice)]["CIFAR-10"]
        for index, ends in enumerate(EDGES):
            entry = sums[index][OPTIONS.index(choice.options[edge(*ends)])]
            entry[0], entry[1] = entry[0] + found, entry[1] + 1
    return [[total / count for total, count in row] for row in sums]


def taus(runs: list[dict], kind: str, wanted: list[list[float]]) -> float | None:
    """Mean over runs and edges of Kendall's tau-b with the benchmark's marginal; None where no run has that criterion."""
    found = [
        statistics.mean(
            tau([v if v is not None else -1e9 for v in row], other)
            for row, other in zip(run[kind], wanted, strict=True)
        )
        for run in runs
        if kind in run
    ]
    return statistics.mean(found) if found else None


def report(
    setting: Setting, runs: dict[str, dict], accuracies: dict[str, dict[str, float]], prices: dict[str, Price]
) -> str:
    """What was found so far."""
    space, wanted = cells_of(setting), marginals(accuracies)
    done = {way: [runs[key] for seed in SEEDS if (key := f"{way}/{seed}") in runs] for way in WAYS}
    done = {way: found for way, found in done.items() if found}
    ranks = sorted((found["CIFAR-10"] for found in accuracies.values()), reverse=True)
    lines = ["# VP-DARTS on NAS-Bench-201", "", *(__doc__ or "").strip().splitlines()[4:], ""]
    lines += [
        f"Seeds {', '.join(map(str, SEEDS))}; mean of the benchmark's test accuracy in percent over the seeds that are done.",
        "",
    ]
    lines += [
        "A search looks at 30 % of the validation images in each epoch and at 60 % in the last look, where nothing else is said.",
        "",
        "Tau is Kendall's, of an edge's operations by their worth or by their alpha with the benchmark's mean over all cells that have them.",
        "",
        "| way | seeds | CIFAR-10 | least | CIFAR-100 | ImageNet16-120 | tau worth | tau alpha | CPU-s a search |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for way, found in done.items():
        each = {name: [accuracies[run["arch"]][name] for run in found] for name in SETS}
        means = [f"{statistics.mean(values):.2f}" for values in each.values()]
        kinds = {"random search": (), "DARTS": ("alpha",)}.get(way, ("worth", "alpha"))
        ranked = [taus(found, kind, wanted) if kind in kinds else None for kind in ("worth", "alpha")]
        words = ["-" if value is None else f"{value:.2f}" for value in ranked]
        lines.append(
            f"| {way} | {len(found)} | {means[0]} | {min(each['CIFAR-10']):.2f} | {means[1]} | {means[2]} | {words[0]} | {words[1]} "
            f"| {statistics.mean(run['cpu_s'] for run in found):.0f} |"
        )
    all3 = accuracies[space.text(space.largest())]
    lines += [
        "",
        "All 3x3 has "
        + " / ".join(f"{all3[name]:.2f}" for name in SETS)
        + f"; the best cell on CIFAR-10 {ranks[0]:.2f}.",
        "",
    ]
    rows = asked(done, accuracies, wanted)
    if prices and any(way in done for way in BUDGETS):
        words, more = budgets(prices, space.text(space.largest()), done, runs.get("measured_us", {}), accuracies)
        lines, rows = [*lines, *words], [*rows, *more]
    lines += ["## What was asked", "", *verdicts(rows), "", "## Cells", ""]
    lines += ["| way | seed | cell | CIFAR-10 | rank |", "|---|---|---|---|---|"]
    for way in done:
        for seed in SEEDS:
            if run := runs.get(f"{way}/{seed}"):
                reached = accuracies[run["arch"]]["CIFAR-10"]
                lines.append(
                    f"| {way} | {seed} | `{cell(run['arch'])}` | {reached:.2f} | {1 + sum(other > reached for other in ranks)} |"
                )
    return "\n".join(lines) + "\n"


def cell(arch: str) -> str:
    """An architecture string within a table."""
    return arch.replace("|", "\\|")


def asked(
    done: dict[str, list[dict]], accuracies: dict[str, dict[str, float]], wanted: list[list[float]]
) -> list[tuple]:
    """What the searches without a budget are to reach."""
    mean = {
        way: {name: statistics.mean(accuracies[run["arch"]][name] for run in found) for name in SETS}
        for way, found in done.items()
    }
    if FIRST not in done:
        return []
    first, rows = done[FIRST], []
    for name, least in {"CIFAR-10": 93.6, "CIFAR-100": 71.3, "ImageNet16-120": 43.5}.items():
        rows.append((f"mean on {name}", f"{mean[FIRST][name]:.2f}", f"at least {least}", mean[FIRST][name] >= least))
    worst = min(accuracies[run["arch"]]["CIFAR-10"] for run in first)
    rows.append(("each seed on CIFAR-10", f"{worst:.2f}", "at least 93.2", worst >= 93.2))
    rows.append(
        ("aim: mean on CIFAR-10", f"{mean[FIRST]['CIFAR-10']:.2f}", "at least 93.85", mean[FIRST]["CIFAR-10"] >= 93.85)
    )
    skips = sum("+|skip_connect~0|nor" in run["arch"] for run in first)
    rows.append(("aim: skip from the input to the last node", f"{skips} of {len(first)} seeds", "3 of 5", skips >= 3))
    slowest = max(run["cpu_s"] for run in first)
    rows.append(("CPU-seconds of the longest search", f"{slowest:.0f}", "at most 900", slowest <= 900))
    for way in ("DARTS", "random search"):
        if way in mean:
            ahead = [mean[FIRST][name] - mean[way][name] for name in SETS]
            rows.append(
                (
                    f"ahead of {way}, on each data set",
                    ", ".join(f"{value:+.2f}" for value in ahead),
                    "above 0",
                    min(ahead) > 0,
                )
            )
    worth = taus(first, "worth", wanted)
    assert worth is not None
    rows.append(("tau of validated worth", f"{worth:.2f}", "at least 0.6", worth >= 0.6))
    for way, whose in {
        "DARTS": "DARTS' alphas",
        FIRST: "its own alphas",
        "alpha as criterion": "alphas as criterion",
    }.items():
        if way in done and (alpha := taus(done[way], "alpha", wanted)) is not None:
            rows.append(
                (f"that tau above that of {whose}", f"{worth - alpha:+.2f}", "at least +0.3", worth - alpha >= 0.3)
            )
    return rows


def priced(space: Cells, table: LatencyTable) -> dict[str, Price]:
    """What a table predicts for every cell, by its architecture string."""
    model = LatencyModel(space, table)
    return {space.text(choice): model.price(choice) for choice in space.choices()}


def budgets(
    prices: dict[str, Price],
    all3: str,
    done: dict[str, list[dict]],
    measured: dict[str, list[float]],
    accuracies: dict[str, dict[str, float]],
) -> tuple[list[str], list[tuple]]:
    """The cells found within each budget among all cells within it, and what was asked."""
    lines, rows, shares = ["## Within a budget", ""], [], []
    lines += [
        "Budgets are shares of the predicted latency of all 3x3. Cells are within one by the upper end of their prediction.",
        "",
    ]
    for way, fraction in BUDGETS.items():
        if way not in done:
            continue
        limit = fraction * prices[all3].cost
        inside = sorted(
            (accuracies[arch]["CIFAR-10"] for arch, price in prices.items() if price.most <= limit), reverse=True
        )
        found = [run["arch"] for run in done[way]]
        places = [1 + sum(other > accuracies[arch]["CIFAR-10"] for other in inside) for arch in found]
        lines += [
            f"{way}: {limit:.1f} us; {len(inside):,} cells within it, the best {inside[0]:.2f} on CIFAR-10, the tenth part above "
            f"{inside[len(inside) // 10]:.2f}, a random one {statistics.mean(inside):.2f} in the mean.",
            "",
            "| cell | CIFAR-10 | rank | predicted, us | measured, us | of all 3x3, measured |",
            "|---|---|---|---|---|---|",
        ]
        for arch, place in zip(found, places, strict=True):
            words = ("-", "-")
            if arch in measured:
                median, low, high = measured[arch]
                words = (f"{median:.1f} ({low:.1f} to {high:.1f})", f"{median / measured[all3][0]:.1%}")
            row = (
                f"`{cell(arch)}`",
                f"{accuracies[arch]['CIFAR-10']:.2f}",
                str(place),
                f"{prices[arch].cost:.1f}",
                *words,
            )
            lines.append(f"| {' | '.join(row)} |")
        lines.append("")
        shares.append(statistics.mean(places) / len(inside))
        rows.append((f"{way}: mean rank within it", f"best {shares[-1]:.1%}", "best 10 %", shares[-1] <= 0.1))
        if all(arch in measured for arch in found):
            holds = [measured[arch][2] <= limit and measured[arch][0] <= fraction * measured[all3][0] for arch in found]
            rows.append((f"{way}: within it when measured", f"{sum(holds)} of {len(holds)}", "each", all(holds)))
    rows.append(
        (
            "mean rank over both budgets",
            f"best {statistics.mean(shares):.1%}",
            "best 10 %",
            statistics.mean(shares) <= 0.1,
        )
    )
    return lines, rows


def plot(
    prices: dict[str, Price], all3: str, runs: dict[str, dict], accuracies: dict[str, dict[str, float]], out: Path
) -> None:
    """Accuracy over predicted latency: all cells that are of use, and those that were found."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    us = {arch: price.cost for arch, price in prices.items()}
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    archs = [arch for arch in us if accuracies[arch]["CIFAR-10"] > 86]
    values = [accuracies[arch]["CIFAR-10"] for arch in archs]
    axes.scatter([us[arch] for arch in archs], values, s=2, color="0.8", label="all cells")
    for (way, label), marker in zip(
        {FIRST: "no budget", **{way: way for way in BUDGETS}, "DARTS": "DARTS"}.items(), "osDx", strict=True
    ):
        found = [run["arch"] for key, run in runs.items() if key.partition("/")[0] == way]
        axes.plot([us[arch] for arch in found], [accuracies[arch]["CIFAR-10"] for arch in found], marker, label=label)
    for fraction in BUDGETS.values():
        axes.axvline(fraction * us[all3], color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="predicted latency, µs", ylabel="test accuracy on CIFAR-10 after 200 epochs, %", ylim=(86, 95))
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--benchmark", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--table", type=Path, help="of the setting's space; without one budgets are of multiply-accumulates"
    )
    parser.add_argument("--setting", default="small", choices=list(SETTINGS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument(
        "--measure", action="store_true", help="time the cells that were found within a budget on this machine"
    )
    parser.add_argument("--steps", action="store_true", help="only measure a few steps of a search")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.steps:
        few = Setting(setting.space, 1_280, setting.recipe, setting.stem, setting.given)
        words = steps(few, loaded(arguments.archive, few), arguments.work / "steps")
        (HERE / f"{setting.stem}_steps.md").write_text("\n".join(["# A step of the search", "", *words]) + "\n")
        return
    accuracies = looked_up(arguments.benchmark)
    table = LatencyTable.load(arguments.table) if arguments.table else None
    run_all(setting, arguments, table)
    store, space = arguments.work / "runs.json", cells_of(setting)
    runs = json.loads(store.read_text())
    if arguments.measure:
        archs = [run["arch"] for key, run in runs.items() if key.partition("/")[0] in BUDGETS]
        runs["measured_us"] = timed(list(dict.fromkeys(archs)), setting)
        store.write_text(json.dumps(runs, indent=1))
    if set(arguments.seeds) <= set(SEEDS):
        (HERE / f"{setting.stem}.json").write_text(json.dumps(runs, indent=1) + "\n")
        prices = priced(space, table) if table else {}
        (HERE / f"{setting.stem}.md").write_text(report(setting, runs, accuracies, prices))
        if table:
            plot(prices, space.text(space.largest()), runs, accuracies, HERE / f"{setting.stem}.png")


def run_all(setting: Setting, arguments: argparse.Namespace, table: LatencyTable | None) -> None:
    """Every search that is not done yet, each kept as soon as it is."""
    data, store = None, arguments.work / "runs.json"
    for way in arguments.ways:
        for seed in arguments.seeds:
            runs = json.loads(store.read_text()) if store.exists() else {}
            if f"{way}/{seed}" in runs:
                continue
            data = data or loaded(arguments.archive, setting)
            name = "".join(letter if letter.isalnum() else "-" for letter in way)
            found = search(way, seed, setting, data, table, arguments.work / f"{name}.{seed}")
            runs = json.loads(store.read_text()) if store.exists() else {}
            store.write_text(json.dumps(runs | {f"{way}/{seed}": found}, indent=1))


if __name__ == "__main__":
    main()
