"""What is left of networks that others wrote: `fuse` beside timm's reparameterize_model, on every family of timm that has norms.

    pip install --no-deps timm==1.0.31 torchvision==0.28.0 huggingface_hub
    python benchmarks/fuse.py

Of each network: convolutions and linear layers, and batch norms, as trained and in both merged forms, counted in torch.export's own graph;
how far each merged form is from the network, in float64 and in float32; and the latency of both, lowered alike, in turns in one run on
ONNX Runtime with one thread. Norms' statistics are drawn, so that none of them is an identity. Each network runs in a process of its own;
what is done is kept in benchmarks/fuse.json, and a second run goes on. Latencies are measured, of models lowered into `--models`, while the
load is at most `--max-load`, or, as root, at real-time priority on the core `--core`, whatever else runs; `--unsure` measures once more
what was UNSURE. Prints a table and writes it to benchmarks/fuse.md. Two hours.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from outcome import verdicts
from torch import nn

from deploy.engine import measure_in_turns
from deploy.lowering import to_onnx
from deploy.validate import compare_latency
from latency import backends, protocol
from latency.measure import Measurement
from reparam import compare, fuse_with_report

HERE = Path(__file__).parent
NETWORKS = [
    "resnet18", "resnet50", "resnext50_32x4d", "seresnet18", "skresnet18", "res2net50_26w_4s", "resnest14d",
    "regnetx_002", "regnety_002", "cspresnet50", "cspdarknet53", "densenet121", "vgg11_bn", "inception_v3",
    "xception41", "dla34", "dpn48b", "hrnet_w18_small", "selecsls42", "ese_vovnet19b_dw", "hgnet_tiny", "hgnetv2_b0",
    "mobilenetv2_100", "mobilenetv3_small_100", "mobilenetv4_conv_small", "mnasnet_100", "fbnetc_100", "hardcorenas_a",
    "efficientnet_b0", "efficientnetv2_rw_t", "tinynet_e", "lcnet_050", "ghostnet_100", "ghostnetv2_100",
    "ghostnetv3_100", "rexnet_100", "repvgg_a0", "repvgg_b1g4", "mobileone_s0", "repvit_m0_9", "repghostnet_050",
    "fastvit_t8", "edgenext_xx_small", "mobilevit_xxs", "mobilevitv2_050", "efficientvit_b0", "efficientvit_m0",
    "efficientformer_l1", "efficientformerv2_s0", "levit_128s", "levit_conv_128s", "tiny_vit_5m_224", "swiftformer_xs",
    "shvit_s1", "starnet_s1", "fasternet_t0", "convmixer_768_32", "inception_next_atto", "gernet_s", "visformer_tiny",
    "botnet26t_256", "convnext_atto", "vit_tiny_patch16_224",
]  # fmt: skip
TRAINED, TIMM, OURS = "trained", "timm", "ours"
LIMITS = {"float64": 1e-10, "float32": 1e-5}


# --- one network, in a process of its own ---


def create(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of timm with statistics as after training, and an input of its size."""
    broken = "torchvision._meta_registrations"  # of another build of torch: torchvision registers operators that are not there
    sys.modules.setdefault(broken, types.ModuleType(broken))
    import timm  # pyright: ignore[reportMissingImports]

    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for norm in model.modules():
        if (
            isinstance(norm, nn.modules.batchnorm._BatchNorm)
            and norm.running_mean is not None
            and norm.running_var is not None
        ):
            norm.running_mean.normal_(std=0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            if norm.affine:
                nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(norm.bias, std=0.1, generator=generator)
    return model, torch.randn(1, *model.pretrained_cfg["input_size"], generator=generator)


def operators(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Convolutions and linear layers, and batch norms, that run."""
    with torch.no_grad():
        targets = [
            str(node.target)
            for node in torch.export.export(model, (x,), strict=False).graph.nodes
            if node.op == "call_function"
        ]
    layers = ("aten.conv", "aten.linear", "aten.addmm")
    return {"layers": sum(t.startswith(layers) for t in targets), "norms": sum("batch_norm" in t for t in targets)}


def row(name: str, models: Path | None) -> dict[str, Any]:
    """Counts and differences of every form of a network; what is timed is lowered, where asked."""
    model, x = create(name)
    from timm.utils.model import reparameterize_model  # pyright: ignore[reportMissingImports]

    model = model.double()
    begun = time.process_time()
    ours, report = fuse_with_report(model, x)
    said = {"seconds": round(time.process_time() - begun, 1), "graphs": len(report.graphs), "left": list(report.left)}
    theirs = reparameterize_model(copy.deepcopy(model)).eval().double()  # some of its layers are made in float32
    found: dict[str, Any] = {"size": list(x.shape[1:]), "fuse": said, TRAINED: operators(model, x.double())}
    for form, module in {TIMM: theirs, OURS: ours}.items():
        found[form] = operators(module, x.double())
        for kind in LIMITS if form == OURS else ():
            found[form][kind] = compare(model, module, x, getattr(torch, kind)).relative
        if models is not None:
            models.mkdir(parents=True, exist_ok=True)
            (models / f"{name}.{form}.onnx").write_bytes(to_onnx(module.float(), x))
    return found


def latencies(name: str, models: Path, pace: str, core: int | None) -> dict[str, Any]:
    """Both merged forms in turns, and ours against timm's."""
    contents = {form: (models / f"{name}.{form}.onnx").read_bytes() for form in (TIMM, OURS)}
    backend = backends.get("onnxruntime", threads=1)
    with ExitStack() as stack:
        running = {form: stack.enter_context(backend.compile(content)) for form, content in contents.items()}
        if core is not None:
            os.sched_setaffinity(0, {core})
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        measured = measure_in_turns(running, protocol.get(pace))
    word = compare_latency(measured[OURS], measured[TIMM])
    about = f"{backend.device.name}, {backend.device.threads} thread, {backend.runtime.name} {backend.runtime.version}, FP32, batch 1"
    return {
        "about": about if core is None else f"{about}, at real-time priority",
        "load": round(os.getloadavg()[0], 1),
        "verdict": word.word,
        "ratio": [word.ratio, word.low, word.high],
        **{form: _interval(row) for form, row in measured.items()},
    }


def _interval(row: Measurement) -> list[float]:
    return [row.median_us, row.low_us, row.high_us]


# --- all of them ---


def apart(what: str, arguments: Iterable[str]) -> dict[str, Any]:
    """A part of this script in its own process; what it raises is a row, too."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["died"])[-1]}
    return {what: json.loads(lines[-1])}


def wait(max_load: float) -> None:
    """Until the machine is as idle as asked."""
    while os.getloadavg()[0] > max_load:
        time.sleep(15)


def sweep(flags: argparse.Namespace) -> dict[str, Any]:
    """What is not known of each network yet."""
    record = flags.out.with_suffix(".json")
    rows: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    options = [
        "--models",
        str(flags.models),
        "--protocol",
        flags.protocol,
        *([] if flags.core is None else ["--core", str(flags.core)]),
    ]
    for name in flags.networks:
        known = rows.setdefault(name, {})
        known.pop("error", None)
        if flags.unsure and known.get("latency", {}).get("verdict") == "UNSURE":
            del known["latency"]
        lowered = all((flags.models / f"{name}.{form}.onnx").exists() for form in (TIMM, OURS))
        if "counts" not in known or not (flags.no_latency or "latency" in known or lowered):
            known |= apart("counts", ["--one", name, *options, *(["--no-latency"] if flags.no_latency else [])])
        if "counts" in known and "latency" not in known and not flags.no_latency:
            wait(flags.max_load)
            known |= apart("latency", ["--time", name, *options])
        record.write_text(json.dumps(rows, indent=1) + "\n")
        print(
            name,
            known.get("error") or known.get("latency", known.get("counts", {}).get(OURS)),
            file=sys.stderr,
            flush=True,
        )
    return rows


def table(rows: dict[str, Any]) -> list[str]:
    """A line a network, and what was asked."""
    known = {name: row for name, row in rows.items() if "counts" in row}
    timed = {name: row["latency"] for name, row in known.items() if "latency" in row}
    lines = [*dict.fromkeys(row["about"] for row in timed.values()), ""]
    lines += [
        "Convolutions and linear layers / batch norms; differences against the scale of the output; latencies in us.",
        "",
    ]
    lines += [
        "| network | trained | timm | ours | float64 | float32 | timm | ours | ours against timm's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if name not in known:
            lines.append(f"| {name} | {row.get('error', 'not read')} | | | | | | | |")
            continue
        cells = [f"{row['counts'][form]['layers']}/{row['counts'][form]['norms']}" for form in (TRAINED, TIMM, OURS)]
        cells += [f"{row['counts'][OURS][kind]:.1e}" for kind in LIMITS]
        found = timed.get(name)
        cells += ["", "", "not measured"] if found is None else [
            *(f"{found[form][0]:.0f} ({found[form][1]:.0f} to {found[form][2]:.0f})" for form in (TIMM, OURS)),
            "{} {:.3f} ({:.3f} to {:.3f})".format(found["verdict"], *found["ratio"]),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *verdicts(asked(rows, known, timed)), "", *left(known)]


def asked(rows: dict[str, Any], known: dict[str, Any], timed: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """The figures reached beside those that were asked."""
    more = [
        name
        for name, row in known.items()
        if any(row["counts"][OURS][kind] > row["counts"][TIMM][kind] for kind in ("layers", "norms"))
    ]
    worst = {kind: max(row["counts"][OURS][kind] for row in known.values()) for kind in LIMITS}
    words = [row["verdict"] for row in timed.values()]
    slow = [name for name, row in timed.items() if row["verdict"] not in ("FASTER", "SAME")]
    return [
        ("networks that are merged", f"{len(known)} of {len(rows)}", "all, at least 40", len(known) == len(rows) >= 40),
        ("networks with more layers or norms than timm leaves", ", ".join(more) or "none", "none", not more),
        *(
            (f"largest difference in {kind}", f"{worst[kind]:.1e}", f"<= {limit:.0e}", worst[kind] <= limit)
            for kind, limit in LIMITS.items()
        ),
        ("latencies measured", f"{len(timed)} of {len(known)}", "all", len(timed) == len(known)),
        ("neither FASTER nor SAME", ", ".join(slow) or "none", "none", not slow),
        ("FASTER", str(words.count("FASTER")), "at least 5", words.count("FASTER") >= 5),
    ]


def left(known: dict[str, Any]) -> list[str]:
    """Where norms stay, the first reason."""
    lines = ["Norms that stay, and the first reason:", "", "| network | norms | where and why |", "|---|---|---|"]
    for name, row in known.items():
        reasons = [line for line in row["counts"]["fuse"]["left"] if "multiply-accumulates" not in line]
        if row["counts"][OURS]["norms"]:
            lines.append(f"| {name} | {row['counts'][OURS]['norms']} | {reasons[0] if reasons else ''} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="of timm; all that are listed above if none")
    parser.add_argument("--protocol", default="default")
    parser.add_argument("--max-load", type=float, default=float("inf"))
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--unsure", action="store_true", help="measure again what was UNSURE")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "lathe-fuse")
    parser.add_argument("--out", type=Path, default=HERE / "fuse.md")
    parser.add_argument("--core", type=int, help="that latencies are measured on, at real-time priority; needs root")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--time", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if flags.one:
        print(json.dumps(row(flags.one, None if flags.no_latency else flags.models)))
        return
    if flags.time:
        print(json.dumps(latencies(flags.time, flags.models, flags.protocol, flags.core)))
        return
    rows = sweep(flags)
    lines = table(rows)
    print("\n".join(lines))
    flags.out.write_text("\n".join(lines) + "\n")
    sys.exit(any("MISSED" in line for line in lines))


if __name__ == "__main__":
    main()
