"""Is squeezing exact on every network of the zoo, what does it cost, and how does torch-pruning do on the same masks?

    pip install -e .[bench] -c constraints.txt
    python benchmarks/squeeze.py

Prints tables and writes them, with every number behind them, to benchmarks/squeeze.<machine>.md and .json. Three parts: small networks
under 100 random masks each; the full networks squeezed by us and by torch-pruning, side by side; time and memory for the full ResNet-50.
An hour on a quiet core; `--draws 2 --small --protocol fast` tries everything out in two minutes.
"""

import argparse
import copy
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from outcome import slug
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from deploy.lowering import to_onnx  # noqa: E402
from deploy.validate import compare_latency  # noqa: E402
from latency import protocol  # noqa: E402
from latency.backends.onnxruntime import OnnxRuntime  # noqa: E402
from latency.measure import Measurement, measure  # noqa: E402
from reparam import ChannelGroup, ChannelMask, channel_groups, compare, count, fuse, insert_masks, squeeze  # noqa: E402
from zoo import ZOO, Network  # noqa: E402

ROUNDS = 3
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5}


def draw_mask(draw: random.Random, width: int) -> Tensor:
    """Half of them extreme: one channel left, all but one, all."""
    kind, share = draw.choice(["one", "all but one", "all", "free", "free", "free"]), draw.uniform(0.1, 0.9)
    keep = torch.tensor([kind != "one" and (kind != "free" or draw.random() < share) for _ in range(width)])
    if kind != "all":
        keep[draw.randrange(width)] = kind != "all but one" or width == 1
    return keep


def prunable(model: nn.Module, x: Tensor) -> list[ChannelGroup]:
    return [group for group in channel_groups(model, x) if not group.why]


def exactness(network: Network, draws: int) -> dict[str, Any]:
    """The worst differences of a small network under random masks, fused and squeezed."""
    draw, worst, x = random.Random(0), dict.fromkeys(LIMITS, 0.0), network.input(small=True)
    for seed in range(draws):
        model = network.make(small=True, seed=seed).double()
        groups = prunable(model, x)
        keep = {group.name: draw_mask(draw, group.channels) for group in groups}
        masked = insert_masks(model, x, groups, lambda group, keep=keep: ChannelMask(keep[group.name]))
        for block in model.modules() if not groups else ():
            if hasattr(block, "mask"):  # a network whose groups are tied: masks in its blocks
                block.mask = ChannelMask(draw_mask(draw, block.dense.conv.out_channels))
        masked = masked if groups else model
        squeezed = squeeze(fuse(masked, x), x)
        for dtype in LIMITS:
            worst[dtype] = max(worst[dtype], compare(masked, squeezed, x, dtype).relative)
    return {"network": network.name, "draws": draws, "float64": worst[torch.float64], "float32": worst[torch.float32]}


class _OneOutput(nn.Module):
    """All outputs as one vector: what the lowering takes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        found = self.body(x)
        return torch.cat([value.flatten() for value in found.values()])[None] if isinstance(found, dict) else found


def by_us(fused: nn.Module, x: Tensor, groups: list[ChannelGroup], keep: dict[str, Tensor]) -> nn.Module:
    return squeeze(insert_masks(fused, x, groups, lambda group: ChannelMask(keep[group.name])), x)


def by_torch_pruning(fused: nn.Module, x: Tensor, groups: list[ChannelGroup], keep: dict[str, Tensor]) -> nn.Module:
    import torch_pruning

    model = copy.deepcopy(fused)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    for group in groups:
        gone = [index for index, entry in enumerate(group.entries[0]) if entry >= 0 and not keep[group.name][entry]]
        layer = model.get_submodule(group.producers[0])
        prune = (
            torch_pruning.prune_linear_out_channels
            if isinstance(layer, nn.Linear)
            else torch_pruning.prune_conv_out_channels
        )
        if gone:
            graph.get_pruning_group(layer, prune, idxs=gone).prune()
    return model.eval()


TOOLS: dict[str, Callable[..., nn.Module]] = {"ours": by_us, "torch-pruning": by_torch_pruning}


def side_by_side(network: Network, *, small: bool, timing: protocol.Protocol) -> Iterator[dict[str, Any]]:
    """Each tool on the same fused network and the same masks, about half of each group's channels."""
    x = network.input(small=small)
    fused = fuse(network.make(small=small), x)
    groups = prunable(fused, x)
    draw = torch.Generator().manual_seed(0)
    keep = {group.name: torch.rand(group.channels, generator=draw).argsort() >= group.channels // 2 for group in groups}
    masked = insert_masks(fused, x, groups, lambda group: ChannelMask(keep[group.name]))
    backend = OnnxRuntime(threads=1)
    lowered, rows = {}, []
    for tool, prune in TOOLS.items():
        row: dict[str, Any] = {"network": network.name, "tool": tool, "groups": len(groups)}
        rows.append(row)
        start = time.perf_counter()
        try:
            result = prune(fused, x, groups, keep)
            row["seconds"] = time.perf_counter() - start
            row["params"] = count(result, x).params
            row |= {str(dtype).removeprefix("torch."): compare(masked, result, x, dtype).relative for dtype in LIMITS}
            lowered[tool] = to_onnx(_OneOutput(result), x)
        except Exception as error:  # noqa: BLE001 -- whatever another tool raises is its result here
            row["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    rounds: dict[str, list[Measurement]] = {tool: [] for tool in lowered}
    for _ in range(ROUNDS):  # in turns, in sessions of their own: where a session's memory lies makes a difference too
        for tool, onnx in lowered.items():
            with backend.compile(onnx) as compiled:
                rounds[tool].append(measure(compiled, timing))
    found = {tool: together(measured) for tool, measured in rounds.items()}
    for row in rows:
        if row["tool"] in found:
            one = found[row["tool"]]
            row["latency_us"] = [one.low_us, one.median_us, one.high_us]
            if len(found) == 2:
                verdict = compare_latency(one, next(other for tool, other in found.items() if tool != row["tool"]))
                row["verdict"] = f"{verdict.word} ({verdict.low:.3f} to {verdict.high:.3f})"
    yield from rows


def together(rounds: list[Measurement]) -> Measurement:
    """The median of the rounds' medians, with an interval that spans theirs."""
    return msgspec.structs.replace(
        rounds[0],
        median_us=statistics.median(one.median_us for one in rounds),
        low_us=min(one.low_us for one in rounds),
        high_us=max(one.high_us for one in rounds),
    )


def cost_of_resnet50(*, small: bool) -> dict[str, float]:
    """In a process of its own: seconds, and by how much its memory peaks above what it held before."""
    done = subprocess.run(
        [sys.executable, __file__, "--cost", *(["--small"] if small else [])],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def print_cost(*, small: bool) -> None:
    network = next(network for network in ZOO if network.name == "ResNet-50")
    x = network.input(small=small)
    fused = fuse(network.make(small=small), x)
    masked = insert_masks(
        fused, x, prunable(fused, x), lambda group: ChannelMask(torch.arange(group.channels) % 2 == 0)
    )
    del fused
    held_mib = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    start = time.perf_counter()
    squeeze(masked, x)
    seconds = time.perf_counter() - start
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        json.dumps(
            {"seconds": seconds, "held_mib": held_mib, "peak_mib": peak_mib, "increase_mib": peak_mib - held_mib}
        )
    )


def number(row: dict[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100, help="random masks for each network")
    parser.add_argument(
        "--small", action="store_true", help="compare small networks side by side too, not the full ones"
    )
    parser.add_argument("--protocol", default="default", help="of the latencies")
    parser.add_argument("--networks", nargs="*", default=[network.name for network in ZOO], help="names of the zoo")
    parser.add_argument("--out", type=Path, default=HERE, help="directory of the results")
    parser.add_argument("--cost", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.cost:
        print_cost(small=asked.small)
        return
    chosen = [network for network in ZOO if network.name in asked.networks]
    cost = cost_of_resnet50(small=asked.small)
    drawn = []
    for network in chosen:
        drawn.append(exactness(network, asked.draws))
        print(drawn[-1], file=sys.stderr)
    rows = []
    for network in chosen:
        for row in side_by_side(network, small=asked.small, timing=protocol.get(asked.protocol)):
            rows.append(row)
            print(row, file=sys.stderr)

    device = OnnxRuntime(threads=1).device
    size = "small" if asked.small else "full"
    exact = all(row["float64"] <= LIMITS[torch.float64] and row["float32"] <= LIMITS[torch.float32] for row in drawn)
    lines = [
        f"{device.name}, 1 thread, torch {torch.__version__}",
        "",
        f"Squeezing ResNet-50 ({size}): {cost['seconds']:.1f} s, asked < 10 s; peak memory {cost['increase_mib']:.0f} MiB above the "
        f"{cost['held_mib']:.0f} MiB held before, asked < 2048 MiB.",
        "",
        f"Small networks under random masks, fused and squeezed: largest difference / output scale; {'holds' if exact else 'MISSED'}.",
        "",
        "| network | masks | float64, <= 1e-10 | float32, <= 1e-5 |",
        "|---|---|---|---|",
        *(f"| {row['network']} | {row['draws']} | {row['float64']:.1e} | {row['float32']:.1e} |" for row in drawn),
        "",
        f"Side by side, {size} networks, the same fused network and masks (half of the channels of each prunable group):",
        "",
        "| network | groups | tool | float64 | float32 | parameters | time to squeeze | latency, us (interval) | against the other |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        latency = (
            "{1:.0f} ({0:.0f} to {2:.0f})".format(*row["latency_us"]) if "latency_us" in row else row.get("error", "-")
        )
        lines.append(
            f"| {row['network']} | {row['groups']} | {row['tool']} | {number(row, 'float64', '.1e')} | {number(row, 'float32', '.1e')} | "
            f"{number(row, 'params', ',')} | {number(row, 'seconds', '.2f')} s | {latency} | {row.get('verdict', '-')} |"
        )
    for tool in TOOLS:
        mine = [row for row in rows if row["tool"] == tool]
        handled = sum(
            row.get("float64", 1.0) <= LIMITS[torch.float64] or row.get("float32", 1.0) <= LIMITS[torch.float32]
            for row in mine
        )
        lines += ["", f"Handled, that is run and equal to the masked network, by {tool}: {handled} of {len(mine)}."]
    print("\n".join(lines))
    machine = slug(device.name)
    (asked.out / f"squeeze.{machine}.md").write_text("\n".join(lines) + "\n")
    record = {"device": lines[0], "cost": cost, "drawn": drawn, "side_by_side": rows}
    (asked.out / f"squeeze.{machine}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
