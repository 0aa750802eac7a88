"""Everything that needs a GPU, in one go: what runs here, its latency tables, its engines. `make gpu` runs the GPU tests before.

    python benchmarks/gpu.py --out out/gpu
    python benchmarks/gpu.py --out /tmp/gpu --dry-run      # no GPU: the simulated device, and ONNX Runtime for the bundles

Asks every backend whether it runs here and keeps its own words where it does not; of TensorRT-RTX for every GPU that it can build for.
Then profiles the spaces by each that does, with both of trtexec's protocols side by side on whole networks, and ships a bundle of every
named network by each flavour of TensorRT. What fails is a line of the record; the rest goes on. The same command resumes: tables go on,
bundles that are there are verified again. Writes tables to OUT/profiles/<device>/ and what it found to OUT/gpu.<device>.md and .json.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
from outcome import slug

from deploy.lowering import to_onnx
from latency import LatencyError, backends
from latency.backends.engines import EngineSpec, build_engine
from latency.backends.tensorrt import TensorRT
from latency.measure import measure
from latency.protocol import get as protocol_of
from search import spaces
from search.workloads import lower

GPU_BACKENDS = ("tensorrt", "tensorrt-rtx", "torch-cuda", "onnxruntime:cuda")
DRY_BACKENDS = ("simulated:seed=0",)
PROFILES = (("repvgg-mini", "full"), ("prunet-cifar", "full"), ("prunet", "adaptive"))
NETWORKS = ("gpunet-0", "gpunet-1", "gpunet-2", "repvgg-a0", "resnet-50", "mobilenetv2-1.0", "repvgg-mini")
PROTOCOLS = ("trtexec-10", "trtexec-11", "default")


def attempt(action: Any, *arguments: Any) -> Any:
    """What an action returns, or {"refused": its words}."""
    try:
        return action(*arguments)
    except LatencyError as error:
        return {"refused": " ".join(str(error).split())}


def precision_of(name: str) -> Literal["fp32", "fp16"]:
    return "fp32" if name.startswith("simulated") else "fp16"


def probe(name: str) -> dict[str, Any]:
    """Whether a backend runs a small block here."""
    backend = backends.get(name, precision=precision_of(name))
    block = next(iter(spaces.get("repvgg-mini").blocks()))
    found = {"device": msgspec.to_builtins(backend.device), "runtime": msgspec.to_builtins(backend.runtime)}
    if name == "torch-cuda":
        return found  # needs a program, which its profile lowers
    with backend.compile(lower((block,), backend.precision)) as compiled:
        return found | {"block": block.key, "median_us": measure(compiled, protocol_of("fast")).median_us}


def probe_rtx_target(capability: str) -> dict[str, Any]:
    """Whether an engine that TensorRT-RTX builds for this GPU, "" for its own choice, loads and runs on the one at hand."""
    spec = EngineSpec(compute_capabilities=(capability,) if capability else ())
    engine = build_engine(lower((next(iter(spaces.get("repvgg-mini").blocks())),), "fp16"), "tensorrt-rtx", spec)
    with TensorRT("tensorrt-rtx", spec=spec).load(engine) as compiled:
        return {"median_us": measure(compiled, protocol_of("fast")).median_us}


def profile(name: str, space: str, coverage: str, out: Path, limit_s: float) -> dict[str, Any]:
    """Run `lathe profile`, for so long at most: what is measured until then is kept."""
    start = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "lathe",
        "profile",
        space,
        "--backend",
        name,
        "--coverage",
        coverage,
        "--networks",
        "30",
    ]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        stderr = process.communicate(timeout=limit_s)[1]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        stderr = process.communicate()[1]
    found: dict[str, Any] = {"table": out.name, "code": process.returncode, "wall_s": time.perf_counter() - start}
    if process.returncode not in (0, 1):
        return found | {"refused": stderr.strip().splitlines()[-1] if stderr.strip() else ""}
    shown = subprocess.run(
        [sys.executable, "-m", "lathe", "table", "show", str(out), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    table = json.loads(shown.stdout) if shown.returncode == 0 else {"refused": shown.stderr.strip()}
    return found | {key: table[key] for key in ("rows", "predictor", "refused") if key in table}


def networks_by_protocol(name: str) -> dict[str, Any]:
    """Median latency of whole networks by each protocol, in one run."""
    backend = backends.get(name, precision=precision_of(name))
    found: dict[str, Any] = {}
    for network in NETWORKS:

        def by_protocol(network: str = network) -> dict[str, Any]:
            with backend.compile(lower(spaces.get(network).network(), backend.precision)) as compiled:
                measured = {
                    protocol: measure(compiled, protocol_of(protocol), backend.clock, backend.monitor)
                    for protocol in PROTOCOLS
                }
            return {
                key: {
                    "median_us": row.median_us,
                    "low_us": row.low_us,
                    "high_us": row.high_us,
                    "status": row.status,
                    "error": row.error,
                    "clocks": row.clocks,
                }
                for key, row in measured.items()
            }

        found[network] = attempt(by_protocol)
    return found


def ship(target: str, network: str, work: Path) -> dict[str, Any]:
    """Export a named network for a target and verify it; the steps of its validation."""
    import torch

    from search.blocks import serial

    model, out = work / f"{network}.onnx", work / f"{network}.{target}"
    if not out.exists():
        space = spaces.get(network)
        torch.manual_seed(0)
        model.write_bytes(to_onnx(serial(space.network()), torch.zeros(1, *space.input_shape)))
        done = subprocess.run(
            [sys.executable, "-m", "lathe", "export", str(model), "--target", target, "--out", str(out), "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            return {"refused": done.stderr.strip().splitlines()[-1]}
    done = subprocess.run(
        [sys.executable, "-m", "lathe", "verify", str(out), "--json"], capture_output=True, text=True, check=False
    )
    manifest = json.loads((out / "manifest.json").read_text())
    return {
        "verify": done.returncode,
        "steps": {step["name"]: [step["verdict"], step.get("reason", "")] for step in manifest["validation"]},
        "measured_us": (manifest["shipped"]["measured"] or {}).get("median_us"),
    }


def page(found: dict[str, Any]) -> str:
    """The record for people."""
    lines = [f"# {found['device']}", "", "| backend | runs here |", "|---|---|"]
    for name, it in found["backends"].items():
        lines.append(f"| {name} | {it.get('refused') or it['runtime']['name'] + ' ' + it['runtime']['version']} |")
    for target, it in found["rtx_targets"].items():
        lines.append(
            f"| tensorrt-rtx, built for {target or 'its own choice'} | {it.get('refused') or str(it['median_us']) + ' us a block'} |"
        )
    lines += ["", "| table | rows | networks: mean error, Kendall's tau | wall |", "|---|---|---|---|"]
    for name, it in found["tables"].items():
        predictor = it.get("predictor") or {}
        quality = (
            f"{predictor['mean_absolute_error']:.2%}, {predictor['kendall_tau']:.3f}"
            if predictor.get("networks", 0) > 1
            else ""
        )
        lines.append(f"| {name} | {it.get('refused') or it.get('rows')} | {quality} | {it['wall_s']:.0f} s |")
    lines += [
        "",
        f"| network, backend | {' | '.join(f'{name}, us' for name in PROTOCOLS)} |",
        f"|---|{'---|' * len(PROTOCOLS)}",
    ]
    for name, networks in found["networks"].items():
        for network, it in networks.items():
            cells = (
                [it["refused"]]
                if "refused" in it
                else [f"{it[p]['median_us']:.1f} ({it[p]['low_us']:.1f}-{it[p]['high_us']:.1f})" for p in PROTOCOLS]
            )
            lines.append(f"| {network}, {name} | {' | '.join(cells)} |")
    lines += ["", "| bundle | verify | steps |", "|---|---|---|"]
    for name, it in found["bundles"].items():
        steps = "; ".join(
            f"{step} {verdict}{f' ({why})' if why else ''}" for step, (verdict, why) in it.get("steps", {}).items()
        )
        lines.append(f"| {name} | {it.get('verify', '')} | {it.get('refused') or steps} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="the same on a machine without a GPU: simulated backend, ONNX Runtime bundles",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="for the tables, in all")
    parser.add_argument("--spaces", default=",".join(name for name, _ in PROFILES), help="to profile, in this order")
    arguments = parser.parse_args()
    out, dry = arguments.out, arguments.dry_run
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * arguments.minutes

    found: dict[str, Any] = {
        "backends": {name: attempt(probe, name) for name in (DRY_BACKENDS if dry else GPU_BACKENDS)}
    }
    capabilities = () if dry else ("", "8.0", "8.9", "current")
    found["rtx_targets"] = {capability: attempt(probe_rtx_target, capability) for capability in capabilities}
    running = [name for name, it in found["backends"].items() if "refused" not in it]
    device = found["backends"][running[0]]["device"]["name"] if running else "no GPU"
    found["device"] = device
    machine = slug(device)

    def save() -> None:
        (out / f"gpu.{machine}.json").write_text(json.dumps(found, indent=2) + "\n")
        (out / f"gpu.{machine}.md").write_text(page(found))

    found |= {"networks": {}, "bundles": {}, "tables": {}}
    for name in running:
        if name != "torch-cuda":
            found["networks"][name] = networks_by_protocol(name)
            save()
    for target in ("onnxruntime",) if dry else ("tensorrt", "tensorrt-rtx"):
        for network in NETWORKS[-1:] if dry else NETWORKS:
            found["bundles"][f"{network}, {target}"] = attempt(ship, target, network, out)
            save()
    for space in arguments.spaces.split(","):
        for name in running:
            table = out / "profiles" / machine / f"{space}.{precision_of(name)}.{name.split(':')[0]}.latency.jsonl"
            found["tables"][f"{space}, {name}"] = profile(
                name, space, dict(PROFILES)[space], table, max(1.0, end - time.monotonic())
            )
            save()
    print(page(found))


if __name__ == "__main__":
    main()
