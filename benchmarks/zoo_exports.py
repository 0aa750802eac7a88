"""Every network of the zoo through `deploy.export`, to ONNX Runtime and to a TensorRT-RTX FP16 engine, with every verdict.

    python benchmarks/zoo_exports.py [NETWORK ...]

Each network is exported in its training form with four normal samples. What this machine cannot run says so in its own words. Writes
benchmarks/zoo_exports.md and .json, in which what it was not asked for keeps its rows. About a minute for each on two cores.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from subjects import Network, networks

from deploy import Evidence, export, verify
from latency import Device
from latency.protocol import get

HERE = Path(__file__).parent
SAMPLES = 4
TARGETS = ("onnxruntime", "tensorrt-rtx")


def ship(network: Network, target: str, folder: Path) -> dict[str, object]:
    start = time.perf_counter()
    samples = network.samples(SAMPLES)
    bundle = export(
        network.module(),
        network.example(),
        target=target,
        out=folder / "bundle",
        protocol=get("fast"),
        evidence=Evidence(samples=samples),
    )
    seconds = time.perf_counter() - start
    steps = [
        {
            "step": f"{step.name}, {step.precision}",
            "verdict": step.verdict,
            "largest": step.worst and step.worst.relative,
            "limit": step.limit,
            "reason": step.reason,
        }
        for step in bundle.manifest.validation
    ]
    checks = {check.name: check.verdict for check in verify(folder / "bundle").checks}
    return {
        "steps": steps,
        "failures": [str(failure) for failure in bundle.manifest.failures],
        "verify": checks,
        "seconds": round(seconds, 1),
    }


def table(kept: dict[str, dict]) -> list[str]:
    lines = [
        "| network, target | steps: largest difference from the first, of its scale (limit) | verify | s |",
        "|---|---|---|---|",
    ]
    for name, row in kept.items():
        cells = []
        for step in row["steps"]:
            far = "" if step["largest"] is None else f" {step['largest']:.1e} ({step['limit']:.0e})"
            why = f" - {step['reason']}" if step["reason"] else ""
            cells.append(f"{step['step']}: {step['verdict']}{far}{why}")
        verdicts = list(row["verify"].values())
        counted = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
        lines.append(f"| {name} | {'<br>'.join(cells)} | {counted} | {row['seconds']} |")
    return lines


def main() -> None:
    out = HERE / "zoo_exports.json"
    kept = json.loads(out.read_text())["exports"] if out.exists() else {}
    for network in networks(sys.argv[1:]):
        for target in TARGETS:
            with tempfile.TemporaryDirectory() as folder:
                row = kept[f"{network.name}, {target}"] = ship(network, target, Path(folder))
            print(network.name, target, row["failures"] or "every verdict holds", file=sys.stderr, flush=True)
            about = {"cpu": Device.cpu(1).name}
            out.write_text(json.dumps({"facts": about, "exports": kept}, indent=1) + "\n")
            title = f"`python benchmarks/zoo_exports.py` on {about['cpu']}."
            (HERE / "zoo_exports.md").write_text("\n".join([title, "", *table(kept)]) + "\n")
    sys.exit(any(row["failures"] for row in kept.values()))


if __name__ == "__main__":
    main()
