"""RepVGG-A0 at 224x224 on this machine's CPU: is what ships the fastest form, and how long does shipping take?

    python benchmarks/export.py

Four forms of one trained network, in turns in one run on ONNX Runtime, one thread: as it was trained, branches and norms in the graph; as
torch.onnx exports it by itself; every block merged into one convolution as timm's reparameterize_model does, then torch.onnx; and ours.
Then the whole of `deploy.export`, with every validation, in a process of its own. Prints a table and writes it to
benchmarks/export.<machine>.md, with every number in the .json. Three minutes.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import onnxruntime
import torch
from outcome import slug, verdicts
from torch import nn

from deploy.engine import measure_in_turns
from deploy.lowering import to_onnx
from deploy.validate import compare_latency
from latency import backends, protocol
from reparam import RepVGGBlock, fuse
from search import spaces

HERE = Path(__file__).parent
OURS = "ours: fuse, to_onnx"
SHIP = """
import sys, torch
from deploy import export
from search import spaces

torch.manual_seed(0)
bundle = export(spaces.get("repvgg-a0").module().eval(), torch.zeros(1, 3, 224, 224), target="onnxruntime", out=sys.argv[1])
assert not bundle.manifest.failures, bundle.manifest.failures
"""


def trained() -> nn.Module:
    """RepVGG-A0 in its training form; the norms' statistics are drawn, so that none of them is an identity."""
    torch.manual_seed(0)
    model = spaces.get("repvgg-a0").module()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def merged_block_by_block(model: nn.Module) -> nn.Module:
    """Each block's branches as one convolution, computed in float32 from its weights: kernel and bias sums, as timm has them."""

    def folded(weight: torch.Tensor, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale

    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, block in parent.named_children():
            if not isinstance(block, RepVGGBlock):
                continue
            dense, point = block.dense.conv, block.point.conv
            parts = [
                folded(dense.weight, block.dense.norm),
                folded(nn.functional.pad(point.weight, [1, 1, 1, 1]), block.point.norm),
            ]
            if block.identity is not None:
                kernel = torch.zeros_like(dense.weight)
                index = torch.arange(dense.out_channels)
                kernel[index, index, 1, 1] = 1
                parts.append(folded(kernel, block.identity))
            conv = nn.Conv2d(dense.in_channels, dense.out_channels, 3, dense.stride, padding=1)
            conv.weight.data, conv.bias.data = (sum(values).detach() for values in zip(*parts, strict=True))
            setattr(parent, name, nn.Sequential(conv, block.act))
    return model.eval()


def as_it_comes(model: nn.Module, *, optimize: bool = True) -> bytes:
    program = torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), dynamo=True, optimize=optimize, verbose=False)
    return program.model_proto.SerializeToString()


def main() -> None:
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    model = trained()
    models = {
        "trained multi-branch, norms in the graph": as_it_comes(model, optimize=False),
        "torch.onnx as it comes": as_it_comes(model),
        "timm-style fusing, torch.onnx": as_it_comes(merged_block_by_block(model)),
        OURS: to_onnx(fuse(model, torch.zeros(1, 3, 224, 224)), torch.zeros(1, 3, 224, 224)),
    }
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    errors = {}
    for name, content in models.items():
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        errors[name] = float(abs(found - expected).max() / abs(expected).max())
    backend = backends.get("onnxruntime", threads=1)
    with ExitStack() as stack:
        measured = measure_in_turns(
            {name: stack.enter_context(backend.compile(content)) for name, content in models.items()}, protocol.DEFAULT
        )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", SHIP, str(Path(folder) / "bundle")], check=True)
        export_s = time.perf_counter() - start

    about = f"{backend.device.name}, {backend.device.threads} thread, {backend.runtime.name} {backend.runtime.version}, RepVGG-A0, 224x224, FP32, batch 1"
    lines = [
        about,
        "",
        "| form | median, us | ours against it | largest difference from float64, of its scale |",
        "|---|---|---|---|",
    ]
    words = {name: compare_latency(measured[OURS], row) for name, row in measured.items()}
    for name, row in measured.items():
        word = (
            ""
            if name == OURS
            else f"{words[name].word} {words[name].ratio:.3f} ({words[name].low:.3f} to {words[name].high:.3f})"
        )
        lines.append(
            f"| {name} | {row.median_us:.0f} ({row.low_us:.0f} to {row.high_us:.0f}) | {word} | {errors[name]:.1e} |"
        )
    holds = all(words[name].word in ("FASTER", "SAME") for name in models if name != OURS)
    quick = export_s < 60
    against = ", ".join(words[name].word for name in models if name != OURS)
    rows = [
        ("ours against the others", against, "FASTER or SAME", holds),
        ("export to onnxruntime, every validation, its own process", f"{export_s:.1f} s", "< 60 s", quick),
    ]
    lines += ["", *verdicts(rows)]
    print("\n".join(lines))
    stem = HERE / f"export.{slug(backend.device.name)}"
    stem.with_name(stem.name + ".md").write_text("\n".join(lines) + "\n")
    record = {
        "about": about,
        "forms": {
            n: {
                "median_us": r.median_us,
                "low_us": r.low_us,
                "high_us": r.high_us,
                "status": r.status,
                "error": errors[n],
            }
            for n, r in measured.items()
        },
        "export_s": export_s,
    }
    stem.with_name(stem.name + ".json").write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(not (holds and quick))


if __name__ == "__main__":
    main()
