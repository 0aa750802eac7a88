"""What can go of networks that others wrote: `channel_groups` and `squeeze` on every family of timm, beside torch-pruning on the same masks.

    pip install --no-deps timm==1.0.31 torchvision==0.28.0 huggingface_hub torch-pruning==1.6.1
    python benchmarks/squeeze_timm.py

Of each network, fused, in float64, at its own input size: its channels, and those of groups that can be pruned; under random masks, the
first of half of each group, further ones, half of them extreme, for `--seconds` of CPU time: how far the squeezed network is from the
masked one, its parameters, whether its own code still runs or which modules became graphs, and the time that reading groups and squeezing
take. torch-pruning removes the same channels as the first mask; what it raises, or how far it is off, is its row. Of the channels that
torch-pruning can remove, group by group in its own graph, we count those that we can too; a group that we leave and of which its result is
not the network with these channels set to zero is not counted. Each network runs in a process of its own; what is done is kept in
benchmarks/squeeze_timm.json, and a second run goes on. Prints a table and writes it to benchmarks/squeeze_timm.md. An hour.
"""

import argparse
import copy
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fuse import NETWORKS, create
from outcome import verdicts
from squeeze import by_torch_pruning, draw_mask
from torch import Tensor, fx, nn

from reparam import ChannelGroup, ChannelMask, channel_groups, compare, fuse, insert_masks, squeeze

HERE = Path(__file__).parent
LIMIT = 1e-10
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
OUTPUT = "it is an output of the network"


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def peer(
    model: nn.Module, masked: nn.Module, x: Tensor, groups: list[ChannelGroup], keep: dict[str, Tensor]
) -> dict[str, Any]:
    """What torch-pruning makes of the same masks."""
    try:
        pruned = by_torch_pruning(model, x, groups, keep)
        return {"params": parameters(pruned), "float64": compare(masked, pruned, x).relative}
    except Exception as error:  # noqa: BLE001 -- whatever another tool raises is its result here
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]}


class Peer:
    """What torch-pruning's graph says of a network.

    Args:
        model: the network.
        x: its input.
        outputs: names of the layers that make its outputs.
    """

    def __init__(self, model: nn.Module, x: Tensor, outputs: set[str]) -> None:
        import torch_pruning

        self.tool, self.model, self.x = torch_pruning, copy.deepcopy(model), x
        self.graph = torch_pruning.DependencyGraph().build_dependency(self.model, example_inputs=x)
        self.names = {module: name for name, module in self.model.named_modules()}
        self.ignored = [module for module, name in self.names.items() if name in outputs]

    def groups(self) -> Iterator[dict[str, list[int]]]:
        """Layers, and which of their output channels go together."""
        for group in self.graph.get_all_groups(
            ignored_layers=self.ignored, root_module_types=[nn.modules.conv._ConvNd, nn.Linear]
        ):
            yield self.made(group)

    def made(self, group: Any) -> dict[str, list[int]]:
        """Of a group of its own, the layers and the channels that they make."""
        found: dict[str, list[int]] = {}
        for dependency, indices in group:
            module = dependency.target.module
            if isinstance(module, LAYERS) and self.graph.is_out_channel_pruning_fn(dependency.handler):
                found[self.names[module]] = sorted({*found.get(self.names[module], ()), *indices})
        return found

    def exact(self, layer: str) -> bool:
        """Whether its network without half of a group is the one in which these channels are zero."""
        root = self.model.get_submodule(layer)
        prune = (
            self.tool.prune_linear_out_channels if isinstance(root, nn.Linear) else self.tool.prune_conv_out_channels
        )
        width = root.out_features if isinstance(root, nn.Linear) else root.out_channels
        assert isinstance(width, int)
        reference = copy.deepcopy(self.model)
        group = self.graph.get_pruning_group(root, prune, idxs=list(range(0, width, 2)))
        for name, indices in self.made(group).items():
            module = reference.get_submodule(name)
            module.register_forward_hook(Zeroed(-1 if isinstance(module, nn.Linear) else 1, indices))
        try:
            group.prune()
            return compare(reference, self.model, self.x).within(LIMIT)
        except Exception:  # noqa: BLE001 -- a network that does not run
            return False


class Zeroed:
    """Hook that sets channels of an output to zero."""

    def __init__(self, dim: int, indices: list[int]) -> None:
        self.dim, self.indices = dim, indices

    def __call__(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        """The output without these channels."""
        return output.index_fill(self.dim, torch.tensor(self.indices), 0.0)


def shared(model: nn.Module, x: Tensor, found: Sequence[ChannelGroup]) -> dict[str, Any]:
    """How many channels torch-pruning can remove, and how many of them we can."""
    outputs = {name for group in found if OUTPUT in group.why for name in group.producers}
    free: dict[str, set[int]] = {}
    for group in found:
        for name, entries in zip(group.producers, group.entries, strict=True):
            if not group.why:
                free.setdefault(name, set()).update(index for index, entry in enumerate(entries) if entry >= 0)
    count, ours, wrong = 0, 0, 0
    try:
        for layers in Peer(model, x, outputs).groups():
            here = sum(len(indices) for indices in layers.values())
            both = sum(len(free.get(name, set()).intersection(indices)) for name, indices in layers.items())
            if both < here and not Peer(model, x, outputs).exact(next(iter(layers))):
                wrong, here = wrong + here - both, both
            count, ours = count + here, ours + both
    except Exception as error:  # noqa: BLE001 -- whatever another tool raises is its result here
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]}
    return {"channels": count, "ours": ours, "wrong": wrong}


def row(name: str, seconds: float) -> dict[str, Any]:
    """All about a network; fused, as it would ship, in float64."""
    model, x = create(name)
    model, x = fuse(model.double(), x.double()), x.double()
    begun = time.process_time()
    found = channel_groups(model, x)
    read = time.process_time() - begun
    groups, generator = [group for group in found if not group.why], torch.Generator().manual_seed(0)

    def channels(some: Any) -> int:
        return sum(sum(entry >= 0 for entry in entries) for group in some for entries in group.entries)

    made: dict[str, Any] = {
        "channels": channels(found), "free": channels(groups), "why": sorted({group.why for group in found if group.why}),
        "params": parameters(model), "read_s": round(read, 1),
    }  # fmt: skip
    keep = {
        group.name: torch.rand(group.channels, generator=generator).argsort() >= group.channels // 2 for group in groups
    }
    masked = insert_masks(model, x, groups, lambda group: ChannelMask(keep[group.name]))
    begun = time.process_time()
    try:
        small = squeeze(masked, x)
    except ValueError as error:
        made["ours"] = {"error": str(error)[:160]}
    else:
        graphs = sum(isinstance(part, fx.GraphModule) for part in small.modules())
        graphs -= sum(isinstance(part, fx.GraphModule) for part in model.modules())
        spent = round(time.process_time() - begun, 1)
        made["ours"] = {
            "seconds": spent,
            "float64": compare(masked, small, x).relative,
            "params": parameters(small),
            "graphs": graphs,
        }
        made["masks"] = more_masks(model, x, groups, begun + seconds)
    made["torch-pruning"] = peer(model, masked, x, groups, keep)
    made["shared"] = shared(model, x, found)
    return made


def more_masks(model: nn.Module, x: Tensor, groups: list[ChannelGroup], until: float) -> dict[str, Any]:
    """The largest difference under masks of any kind, as many as there is time for."""
    draw, worst, count, refused = random.Random(0), 0.0, 0, set()
    while time.process_time() < until:
        keep = {group.name: draw_mask(draw, group.channels) for group in groups}
        masked = insert_masks(model, x, groups, lambda group, keep=keep: ChannelMask(keep[group.name]))
        count += 1
        try:
            worst = max(worst, compare(masked, squeeze(masked, x), x).relative)
        except ValueError as error:
            refused.add(str(error)[:160])
    return {"count": count, "float64": worst, "refused": sorted(refused)}


def apart(name: str, seconds: float) -> dict[str, Any]:
    """One network in its own process; what it raises is a row, too."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", name, "--seconds", str(seconds)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    return (
        json.loads(lines[-1])
        if not done.returncode and lines
        else {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    )


def cell(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"].replace("|", "/")
    return f"{found['params']:,} ({found['float64']:.0e}{'' if found['float64'] <= LIMIT else ', WRONG'})"


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"torch {torch.__version__}, timm 1.0.31, torch-pruning 1.6.1; fused networks, in float64, one thread, half of each group masked; "
        "then further masks. The last column: channels that we can remove, of those that torch-pruning can. - is of a run that did not ask.",
        "",
        "| network | channels, free | parameters | ours: left (difference) | more masks (worst) | graphs | read, squeeze, CPU-s | "
        "torch-pruning: left (difference) | ours of theirs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    known = {name: found for name, found in rows.items() if "error" not in found}
    for name, found in rows.items():
        if name not in known:
            lines.append(f"| {name} | {found['error'].replace('|', '/')} | | | | | | | |")
            continue
        ours, more, both = found["ours"], found.get("masks"), found.get("shared", {"error": "not asked"})
        cells = [
            f"{found['channels']:,}, {found['free']:,}",
            f"{found['params']:,}",
            cell(ours),
            "{count} ({float64:.0e})".format(**more) if more else "-",
            f"{ours.get('graphs', '-')}",
            f"{found['read_s']}, {ours.get('seconds', '-')}",
            cell(found["torch-pruning"]),
            "-" if "error" in both else "{ours:,} of {channels:,}".format(**both),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    handled = {
        tool: sum(row.get(tool, {}).get("float64", 1.0) <= LIMIT for row in rows.values())
        for tool in ("ours", "torch-pruning")
    }
    worst = max((row["masks"]["float64"] for row in known.values() if "masks" in row), default=0.0)
    shares = {
        name: row["shared"] for name, row in known.items() if "error" not in row.get("shared", {"error": "not asked"})
    }
    fewer = [name for name, both in shares.items() if both["ours"] < 0.95 * both["channels"]]
    checks = [
        ("networks", str(len(rows)), "at least 40", len(rows) >= 40),
        (
            "squeezed and equal to the masked network: ours",
            f"{handled['ours']} of {len(rows)}",
            "all",
            handled["ours"] == len(rows),
        ),
        ("largest difference under any mask", f"{worst:.0e}", f"<= {LIMIT:.0e}", worst <= LIMIT),
        (
            f"of {len(shares)}, those with less than 95 % of torch-pruning's channels",
            ", ".join(fewer) or "none",
            "none",
            not fewer,
        ),
    ]
    lines += [
        "",
        *verdicts(checks),
        "",
        f"Squeezed and equal to the masked network by torch-pruning: {handled['torch-pruning']} of {len(rows)}.",
    ]
    refused = [
        f"- {name}: {'; '.join(row['masks']['refused'])}"
        for name, row in known.items()
        if row.get("masks", {}).get("refused")
    ]
    lines += ["", "Masks that were refused:", "", *refused] if refused else []
    reasons = [f"- {name}: {'; '.join(some)}" for name, row in known.items() if (some := _reasons(row["why"]))]
    return "\n".join([*lines, "", "Why channels are not free, other than those of outputs:", "", *reasons]) + "\n"


def _reasons(why: list[str]) -> list[str]:
    """The first of those that name an operator, of each operator, and how many there are."""
    found: dict[str, list[str]] = {}
    for reason in why:
        if OUTPUT not in reason:
            found.setdefault(reason.partition(": ")[2] or reason.partition(") ")[2] or reason, []).append(reason)
    return [some[0] + (f" ({len(some)} such)" if len(some) > 1 else "") for some in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU time for masks, of each network")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        print(json.dumps(row(asked.one, asked.seconds)))
        return
    kept = HERE / "squeeze_timm.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in asked.networks:
        if name not in rows:
            rows[name] = apart(name, asked.seconds)
            print(name, rows[name], file=sys.stderr)
            kept.write_text(json.dumps(rows, indent=2) + "\n")
    (HERE / "squeeze_timm.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
