"""What can go of networks that others wrote: `channel_groups` and `squeeze` on every family of timm, beside torch-pruning on the same masks.

    pip install --no-deps timm==1.0.31 torchvision==0.28.0 huggingface_hub torch-pruning==1.6.1
    python benchmarks/squeeze_timm.py

Of each network at its own input size: its channels, and those of groups that can be pruned; under random masks, a half of each group,
how far the squeezed network is from the masked one in float64, its parameters, whether its own code still runs or which modules became
graphs, and the time that reading groups and squeezing take. torch-pruning removes the same channels; what it raises, or how far it is off,
is its row. Each network runs in a process of its own; what is done is kept in benchmarks/squeeze_timm.json, and a second run goes on.
Prints a table and writes it to benchmarks/squeeze_timm.md. Half an hour.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fuse import NETWORKS, create
from squeeze import by_torch_pruning
from torch import Tensor, fx, nn

from reparam import ChannelGroup, ChannelMask, channel_groups, compare, fuse, insert_masks, squeeze

HERE = Path(__file__).parent
LIMIT = 1e-10


def parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def peer(model: nn.Module, masked: nn.Module, x: Tensor, groups: list[ChannelGroup], keep: dict[str, Tensor]) -> dict[str, Any]:
    """What torch-pruning makes of the same masks."""
    try:
        pruned = by_torch_pruning(model, x, groups, keep)
        return {"params": parameters(pruned), "float64": compare(masked, pruned, x).relative}
    except Exception as error:  # noqa: BLE001 -- whatever another tool raises is its result here
        return {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]}


def row(name: str) -> dict[str, Any]:
    """All about a network; fused, as it would ship, in float64."""
    model, x = create(name)
    model = fuse(model.double(), x.double())
    begun = time.process_time()
    found = channel_groups(model, x.double())
    read = time.process_time() - begun
    groups, draw = [group for group in found if not group.why], torch.Generator().manual_seed(0)

    def channels(some: Any) -> int:
        return sum(sum(entry >= 0 for entry in entries) for group in some for entries in group.entries)

    made: dict[str, Any] = {
        "channels": channels(found), "free": channels(groups), "why": sorted({group.why for group in found if group.why}),
        "params": parameters(model), "read_s": round(read, 1),
    }  # fmt: skip
    keep = {group.name: torch.rand(group.channels, generator=draw).argsort() >= group.channels // 2 for group in groups}
    masked = insert_masks(model, x.double(), groups, lambda group: ChannelMask(keep[group.name]))
    begun = time.process_time()
    try:
        small = squeeze(masked, x.double())
    except ValueError as error:
        made["ours"] = {"error": str(error)[:160]}
    else:
        graphs = sum(isinstance(part, fx.GraphModule) for part in small.modules())
        graphs -= sum(isinstance(part, fx.GraphModule) for part in model.modules())
        made["ours"] = {
            "seconds": round(time.process_time() - begun, 1), "float64": compare(masked, small, x).relative, "params": parameters(small),
            "graphs": graphs,
        }  # fmt: skip
    made["torch-pruning"] = peer(model, masked, x.double(), groups, keep)
    return made


def apart(name: str) -> dict[str, Any]:
    """One network in its own process; what it raises is a row, too."""
    done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if not done.returncode and lines else {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}


def cell(found: dict[str, Any]) -> str:
    if "error" in found:
        return found["error"].replace("|", "/")
    return f"{found['params']:,} ({found['float64']:.0e}{'' if found['float64'] <= LIMIT else ', WRONG'})"


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"torch {torch.__version__}, timm 1.0.31, torch-pruning 1.6.1; fused networks, in float64, one thread, half of each group masked.",
        "",
        "| network | channels, free | parameters | ours: left (difference) | graphs | read, squeeze, CPU-s | torch-pruning: left (difference) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        if "error" in found:
            lines.append(f"| {name} | {found['error'].replace('|', '/')} | | | | | |")
            continue
        ours = found["ours"]
        lines.append(
            f"| {name} | {found['channels']:,}, {found['free']:,} | {found['params']:,} | {cell(ours)} | {ours.get('graphs', '-')} | "
            f"{found['read_s']}, {ours.get('seconds', '-')} | {cell(found['torch-pruning'])} |"
        )
    handled = {tool: sum(row.get(tool, {}).get("float64", 1.0) <= LIMIT for row in rows.values()) for tool in ("ours", "torch-pruning")}
    lines += [
        "",
        f"Handled, that is run and equal to the masked network: ours {handled['ours']}, torch-pruning {handled['torch-pruning']} of {len(rows)}.",
    ]
    reasons = [f"- {name}: {'; '.join(row['why'])}" for name, row in rows.items() if row.get("why")]
    return "\n".join([*lines, "", "Why channels are not free:", "", *reasons]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        print(json.dumps(row(asked.one)))
        return
    kept = HERE / "squeeze_timm.json"
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in asked.networks:
        if name not in rows:
            rows[name] = apart(name)
            print(name, rows[name], file=sys.stderr)
            kept.write_text(json.dumps(rows, indent=2) + "\n")
    (HERE / "squeeze_timm.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
