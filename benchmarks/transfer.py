"""How well is a new device known from the tables of old ones and a few measurements? On latencies that were recorded on real devices.

    python benchmarks/transfer.py --own OLD.latency.jsonl NEW.latency.jsonl

Reads ../shared/data: networks of NAS-Bench-201 (of which those without a path to the output are left out), FBNet and Once-for-all on up to 27
devices (HELP, HW-NAS-Bench), and single convolutions on a V100 with TensorRT. Each device in turn is the new one; its other batch sizes are not
among the old ones. A fifth of the anchors is drawn at random, the others are chosen, as `lathe profile --like` does; each seed draws 1000
networks anew. Beside it, on anchors drawn at random: a linear map of one old device, the same of the old device that correlates best at the
anchors (One Proxy Device, Lu et al. 2021), a ridge regression from scratch on the features, of the latency or its logarithm, whichever is
better; and what HELP (Lee et al. 2021) publishes, with its devices. Writes transfer.md, .json and .png; what transfer.json has
is not computed again. Three minutes on one core; nothing is timed or measured.
"""

import argparse
import collections
import csv
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from outcome import verdicts
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from latency import BlockSpec, LatencyTable
from latency.transfer import Transfer, describe

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data"
SEEDS = (10, 11, 12, 13, 14)
COUNTS = (10, 30, 100)
NETWORKS = 1000
JUDGES = 5  # one anchor in so many is drawn at random
PEERS = ("linear map of one table", "best table by the anchors", "ridge from scratch")
OURS = ("ours, all tables", "ours, one table")
SCORES = ("Spearman", "within 5 %", "within 10 %", "in the 95 % interval")
HELP = {  # rank correlation by 10 samples, README of github.com/HayeonLee/HELP (Tables 2 and 3 of the paper)
    "NAS-Bench-201": {
        "titan_rtx_256": 0.987,
        "gold_6226": 0.989,
        "pixel2": 0.802,
        "raspi4": 0.890,
        "eyeriss": 0.940,
        "fpga": 0.985,
    },
    "FBNet": {"raspi4": 0.887, "eyeriss": 0.943, "fpga": 0.892},
}
HELP_OLD = ("1080ti", "silver_4114", "silver_4210r", "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7")
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


class Data(NamedTuple):
    """Recorded latencies of networks or blocks.

    Attributes:
        name: of the space.
        features: of each [blocks, features].
        us: on each device [blocks, devices]; in what unit plays no part.
        devices: their names, with the batch.
        groups: of each block what it is a kind of; one for networks.
        tasks: new device and old ones, by their columns.
    """

    name: str
    features: np.ndarray
    us: np.ndarray
    devices: list[str]
    groups: list[Any]
    tasks: list[tuple[int, list[int]]]


def rows(name: str) -> list[dict[str, str]]:
    with gzip.open(DATA / f"latency_{name}.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def networks(name: str, recorded: list[dict[str, str]], features: list[list[float]]) -> Data:
    """Each device is new once, and those of another name are old."""
    columns = [column for column in recorded[0] if column.endswith("_ms")]
    devices = [column.removesuffix("_ms") for column in columns]
    us = np.array([[float(row[column]) for column in columns] for row in recorded])
    machines = [re.sub(r"_(1|32|64|256)$", "", device) for device in devices]
    tasks = [
        (new, [old for old, machine in enumerate(machines) if machine != machines[new]]) for new in range(len(devices))
    ]
    return Data(name, np.array(features), us, devices, [0] * len(us), tasks)


def nasbench201() -> Data:
    def operations(arch: str) -> list[str]:
        return [edge.split("~")[0] for node in arch.split("+") for edge in node.strip("|").split("|")]

    def connected(ops: list[str]) -> bool:
        reached = {0}
        for op, (start, end) in zip(ops, ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)), strict=True):
            if start in reached and op != "none":
                reached.add(end)
        return 3 in reached

    recorded = [row for row in rows("nasbench201") if connected(operations(row["arch"]))]
    return networks(
        "NAS-Bench-201",
        recorded,
        [[float(op == one) for op in operations(row["arch"]) for one in OPS] for row in recorded],
    )


def fbnet() -> Data:
    recorded = rows("fbnet")
    return networks(
        "FBNet",
        recorded,
        [[float(int(op) == one) for op in row["op_idx"].split() for one in range(9)] for row in recorded],
    )


def ofa() -> Data:
    recorded, features = rows("ofa_mbv3"), []
    for row in recorded:
        kernels, expansions, depths = ([int(word) for word in row[name].split()] for name in ("ks", "e", "d"))
        used = [layer % 4 < depths[layer // 4] for layer in range(len(kernels))]
        kinds = [float(on and k == one) for on, k in zip(used, kernels, strict=True) for one in (3, 5, 7)]
        wide = [float(on and e == one) for on, e in zip(used, expansions, strict=True) for one in (3, 4, 6)]
        features.append([*kinds, *wide, float(row["r"])])
    return networks("Once-for-all", recorded, features)


def tensorrt() -> list[Data]:
    """From one precision or batch of convolutions to another, on one GPU."""
    latencies: dict[BlockSpec, dict[str, float]] = collections.defaultdict(dict)
    for row in rows("trt_v100_conv"):
        attributes = {name: int(row[name]) for name in ("h", "w", "kernel", "stride", "sum_fused")}
        spec = BlockSpec.of(row["conv"], attrs=attributes, widths={name: int(row[name]) for name in ("c_in", "c_out")})
        for precision in ("fp32", "fp16", "int8"):
            if row[f"{precision}_us"]:
                latencies[spec][f"{precision}, batch {row['batch']}"] = float(row[f"{precision}_us"])
    steps = [
        ("fp32, batch 1", "fp16, batch 1"),
        ("fp16, batch 1", "int8, batch 1"),
        ("fp16, batch 32", "fp16, batch 1"),
    ]
    found = []
    for old, new in steps:
        both = {spec: us for spec, us in latencies.items() if old in us and new in us}
        groups = [(spec.op, spec.attr("kernel"), spec.attr("stride")) for spec in both]
        groups = groups if len(set(groups)) < min(COUNTS) * (1 - 1 / JUDGES) else [spec.op for spec in both]
        us = np.array([[values[old], values[new]] for values in both.values()])
        found.append(Data("TensorRT, V100", describe(list(both)), us, [old, f"{old} to {new}"], groups, [(1, [0])]))
    return found


def own(old: Path, new: Path) -> Data:
    """From one of our tables to another."""
    tables = [
        {row.key: row.median_us for row in LatencyTable.load(path).rows if row.kind == "block" and row.measured}
        for path in (old, new)
    ]
    keys = [key for key in tables[0] if key in tables[1]]
    specs = [BlockSpec.parse(key) for key in keys]
    us = np.array([[table[key] for table in tables] for key in keys])
    return Data(
        "our CPU", describe(specs), us, ["1 thread", "1 thread to 2 threads"], [spec.op for spec in specs], [(1, [0])]
    )


def score(
    us: np.ndarray, true: np.ndarray, anchors: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> list[float]:
    """Of what was not measured."""
    rest = np.setdiff1d(np.arange(len(true)), anchors)
    errors = np.abs(us / true - 1)[rest]
    inside = float("nan") if low is None or high is None else float(((low <= true) & (true <= high))[rest].mean())
    rank = float(np.nan_to_num(spearmanr(us[rest], true[rest]).statistic))
    return [rank, float((errors <= 0.05).mean()), float((errors <= 0.10).mean()), inside]


def ours(
    old: np.ndarray,
    new: np.ndarray,
    features: np.ndarray,
    groups: list[Any],
    draw: np.random.RandomState,
    counts: tuple[int, ...],
) -> Iterator[list[float]]:
    """Scores for each number of anchors."""
    transfer = Transfer(old, features)
    judges = draw.permutation(len(new))[: max(counts) // JUDGES]
    order = transfer.order(groups, judges)
    chosen = [next(order) for _ in range(max(counts) - len(judges))]
    for count in counts:
        anchors = np.array([*chosen[: count - count // JUDGES], *judges[: count // JUDGES]])
        found = transfer.fit(anchors, new[anchors])
        yield score(found.us, new, anchors, found.low_us, found.high_us)


def peers(
    old: np.ndarray, new: np.ndarray, features: np.ndarray, count: int, draw: np.random.RandomState
) -> list[list[float]]:
    """Scores of the others, in the order of PEERS, by anchors drawn at random."""
    anchors = draw.permutation(len(new))[:count]
    y = new[anchors]

    def linear(table: int) -> np.ndarray:
        return np.polyval(np.polyfit(old[anchors, table], y, 1), old[:, table])

    best = int(np.argmax([np.corrcoef(old[anchors, table], y)[0, 1] for table in range(old.shape[1])]))
    strengths = np.logspace(-4, 4, 17)
    varied = features[:, features.std(axis=0) > 0]
    x = (varied - varied.mean(axis=0)) / varied.std(axis=0)
    plain = RidgeCV(strengths).fit(x[anchors], y).predict(x)
    logs = np.exp(np.clip(RidgeCV(strengths).fit(x[anchors], np.log(y)).predict(x), -20, 20))
    ridges = np.array([score(plain, new, anchors), score(logs, new, anchors)])
    drawn = int(draw.randint(old.shape[1]))
    return [score(linear(drawn), new, anchors), score(linear(best), new, anchors), ridges.max(axis=0).tolist()]


def compare(data: Data, known: set[tuple[str, str]]) -> Iterator[list[dict[str, Any]]]:
    """Of every new device that is not known: of each number of anchors and way the mean over seeds."""
    for new, old in data.tasks:
        if (data.name, data.devices[new]) in known:
            continue
        scores: dict[tuple[int, str], list[list[float]]] = collections.defaultdict(list)
        for seed in SEEDS:
            draw = np.random.RandomState(1000 * seed + new)
            some = draw.permutation(len(data.us))[:NETWORKS]
            us, features, groups = data.us[some], data.features[some], [data.groups[i] for i in some]
            counts = tuple(count for count in COUNTS if 3 * count <= len(some))
            one = us[:, [old[draw.randint(len(old))]]]
            for name, tables in zip(OURS, (us[:, old], one), strict=True):
                if name == OURS[0] or len(old) > 1:
                    for count, values in zip(
                        counts, ours(tables, us[:, new], features, groups, draw, counts), strict=True
                    ):
                        scores[count, name].append(values)
            for count in counts:
                for name, values in zip(PEERS, peers(us[:, old], us[:, new], features, count, draw), strict=True):
                    scores[count, name].append(values)
        found = []
        for (count, name), values in scores.items():
            reached = dict(zip(SCORES, np.mean(values, axis=0).round(4).tolist(), strict=True))
            found.append({"space": data.name, "device": data.devices[new], "anchors": count, "way": name, **reached})
        print(data.name, data.devices[new], flush=True)
        yield found


def with_help(data: Data) -> list[dict[str, Any]]:
    """Rank correlation in HELP's setting: its nine old devices, its new ones, 10 anchors, all networks."""
    old = [
        i
        for i, device in enumerate(data.devices)
        if re.sub(r"_(1|32|64|256)$", "", device) in HELP_OLD or device in HELP_OLD
    ]
    found = []
    for device, published in HELP[data.name].items():
        new, values = data.us[:, data.devices.index(device)], []
        for seed in SEEDS:
            values += [
                next(iter(ours(data.us[:, old], new, data.features, data.groups, np.random.RandomState(seed), (10,))))[
                    0
                ]
            ]
        entry = {"space": data.name, "device": device, "HELP": published, "ours": round(float(np.mean(values)), 4)}
        found.append({**entry, "least": round(min(values), 4), "most": round(max(values), 4)})
    return found


def means(found: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """Of each space and number of anchors the scores of each way, over its devices."""
    gathered: dict[tuple[str, int], dict[str, list[list[float]]]] = {}
    for row in found:
        gathered.setdefault((row["space"], row["anchors"]), {}).setdefault(row["way"], []).append(
            [row[name] for name in SCORES]
        )
    return {
        key: {way: np.array(values, dtype=float).mean(axis=0) for way, values in ways.items()}
        for key, ways in gathered.items()
    }


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """As markdown: the figures, and whether ours are ahead of every other's."""
    asked: list[tuple[str, str, str, bool]] = []
    lines = [
        "# A new device from old tables and a few measurements",
        "",
        "## HELP's setting: its nine old devices, 10 anchors",
        "",
    ]
    lines += [
        "| space | new device | HELP, published | ours: mean of 5 seeds | least | most |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["help"]:
        lines.append(
            f"| {row['space']} | {row['device']} | {row['HELP']:.3f} | {row['ours']:.3f} | {row['least']:.3f} | {row['most']:.3f} |"
        )
        what = f"{row['space']}, {row['device']}: rank correlation in HELP's setting"
        asked.append((what, f"{row['ours']:.3f}", f"above {row['HELP']:.3f}", row["ours"] > row["HELP"]))
    lines += ["", "## Each device left out with its other batches: means over devices", ""]
    lines += [f"| space | anchors | way | {' | '.join(SCORES)} |", "|---|---|---|" + "---|" * len(SCORES)]
    for (space, count), ways in means(found["compared"]).items():
        for way in (*OURS, *PEERS):
            if way in ways:
                rank, *shares = ways[way]
                cells = [f"{rank:.3f}", *("-" if np.isnan(share) else f"{share:.1%}" for share in shares)]
                lines.append(f"| {space} | {count} | {way} | {' | '.join(cells)} |")
        rivals = {OURS[0]: PEERS, OURS[1]: (PEERS[0], PEERS[2])}  # that choose among tables, or that have one or none
        for way in (way for way in OURS if way in ways):
            for place, name in enumerate(SCORES[:3]):
                best = max(float(ways[peer][place]) for peer in rivals[way])
                reached = float(ways[way][place])
                asked.append(
                    (f"{space}, {count} anchors, {way}: {name}", f"{reached:.3f}", f"above {best:.3f}", reached > best)
                )
    held = sum(holds for *_, holds in asked)
    lines += ["", f"## Ahead at {held} of {len(asked)} numbers", "", *verdicts(asked)]
    return "\n".join(lines) + "\n"


def draw(found: list[dict[str, Any]]) -> None:
    """Shares within 10 % over the number of anchors, a panel a space."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    table = means(found)
    spaces = list(dict.fromkeys(space for space, _ in table))
    figure, axes = plt.subplots(
        2, len(spaces), figsize=(3.4 * len(spaces), 6), squeeze=False, sharex=True, layout="constrained"
    )
    for column, space in enumerate(spaces):
        counts = [count for name, count in table if name == space]
        for row, place in enumerate((0, 2)):
            ax = axes[row, column]
            for way, style in zip((*OURS, *PEERS), ("o-", "o--", "s:", "^:", "x:"), strict=True):
                if way in table[space, counts[0]]:
                    ax.plot(counts, [table[space, count][way][place] for count in counts], style, label=way)
            ax.set(
                xscale="log",
                ylim=(0, 1.02),
                title=space if row == 0 else "",
                ylabel=SCORES[place] if column == 0 else "",
            )
            ax.set_xticks(counts, [str(count) for count in counts])
            ax.minorticks_off()
            ax.grid(alpha=0.3)
        axes[1, column].set_xlabel("anchors")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(HERE / "transfer.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--own", type=Path, nargs=2, metavar=("OLD", "NEW"), help="two of our tables of the same blocks"
    )
    given = parser.parse_args()
    path = HERE / "transfer.json"
    found: dict[str, list[dict[str, Any]]] = (
        json.loads(path.read_text()) if path.exists() else {"help": [], "compared": []}
    )
    for data in (nasbench201(), fbnet(), ofa(), *tensorrt(), *([own(*given.own)] if given.own else [])):
        if data.name in HELP and data.name not in {row["space"] for row in found["help"]}:
            found["help"] += with_help(data)
            path.write_text(json.dumps(found, indent=1) + "\n")
        for more in compare(data, {(row["space"], row["device"]) for row in found["compared"]}):
            found["compared"] += more
            path.write_text(json.dumps(found, indent=1) + "\n")
    text = report(found)
    print(text)
    (HERE / "transfer.md").write_text(text)
    draw(found["compared"])


if __name__ == "__main__":
    main()
