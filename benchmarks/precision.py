"""FP16 graphs side by side: ours, onnxconverter-common's and ModelOpt AutoCast's, of the same FP32 ONNX.

    python benchmarks/precision.py [--peers DIR] [NETWORK ...]

Counts nodes and casts, and runs each graph on the CPU operator by operator with every result rounded to its type, as a GPU does, against
the FP32 graph on other samples than the ranges were seen on. The peers need a place of their own, as they want other versions:

    pip install --no-deps --target DIR onnxconverter-common==1.16.0 nvidia-modelopt==0.47.0 onnxslim==0.1.98 polygraphy==0.53.6 \
        pulp==3.3.2 cppimport==26.4.17 tqdm lief

Writes benchmarks/precision.md and benchmarks/precision.json; what it was not asked for keeps its rows. Minutes per network on one core.
"""

import contextlib
import importlib
import importlib.metadata
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from subjects import Network, networks

from deploy import engine, graph
from deploy.errors import DeployError
from deploy.precision import certified, convert
from deploy.samples import inputs_of, samples_of
from latency import Device

HERE = Path(__file__).parent
SEEN, TRIED = 4, 2


def ours(model: bytes, samples: np.ndarray) -> bytes:
    return certified(model, samples)[0]


def ours_blind(model: bytes, samples: np.ndarray) -> bytes:
    return convert(graph.parse_model(model))[0].SerializeToString()


def converter_common(model: bytes, samples: np.ndarray) -> bytes:
    convert_float_to_float16 = importlib.import_module("onnxconverter_common.float16").convert_float_to_float16
    return convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True).SerializeToString()


def converter_common_auto(model: bytes, samples: np.ndarray) -> bytes:
    """Its search by outputs: nodes go back to FP32 until the output is near enough."""
    convert_search = importlib.import_module("onnxconverter_common.auto_mixed_precision").auto_convert_mixed_precision
    name = onnx.load_from_string(model).graph.input[0].name
    return convert_search(
        onnx.load_from_string(model), {name: samples[:1]}, rtol=1e-2, atol=1e-2, keep_io_types=True
    ).SerializeToString()


def autocast(model: bytes, samples: np.ndarray) -> bytes:
    convert_to_mixed_precision = importlib.import_module("modelopt.onnx.autocast").convert_to_mixed_precision
    with tempfile.TemporaryDirectory() as directory:
        path, calibration = Path(directory) / "model.onnx", Path(directory) / "samples.npz"
        path.write_bytes(model)
        np.savez(calibration, **{onnx.load_from_string(model).graph.input[0].name: samples[:1]})
        converted = convert_to_mixed_precision(
            onnx_path=str(path),
            low_precision_type="fp16",
            keep_io_types=True,
            calibration_data=str(calibration),
            providers=["cpu"],
        )
    return converted.SerializeToString()


WAYS: dict[str, Callable[[bytes, np.ndarray], bytes]] = {
    "ours": ours,
    "ours, no samples": ours_blind,
    "onnxconverter-common": converter_common,
    "onnxconverter-common, search": converter_common_auto,
    "ModelOpt AutoCast": autocast,
}
PACKAGES = {"onnxconverter-common": "onnxconverter-common", "ModelOpt AutoCast": "nvidia-modelopt"}


def measure(way: str, model: bytes, seen: np.ndarray, tried: np.ndarray, wanted: np.ndarray) -> dict[str, object]:
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # one of them prints what it tries
            half = WAYS[way](model, seen)
    except ModuleNotFoundError as error:
        return {"not run": f"{error.name} is not installed"}
    except (
        ValueError,
        RuntimeError,
        AssertionError,
        KeyError,
        TypeError,
        onnx.checker.ValidationError,
        DeployError,
    ) as error:
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
    seconds = time.perf_counter() - start
    made = onnx.load_from_string(half)
    row: dict[str, object] = {
        "nodes": len(made.graph.node),
        "casts": sum(node.op_type == "Cast" for node in made.graph.node),
        "MiB": round(len(half) / 2**20, 1),
        "s": round(seconds, 1),
    }
    try:
        checked = graph.check_model(made)
        (found,) = engine.half_runner(checked.SerializeToString())(
            samples_of(tried, inputs_of(checked)).inputs
        ).values()
    except DeployError as error:
        return row | {"error": str(error)[:200]}
    if not np.isfinite(found).all():
        return row | {"error": "inf or nan"}
    return row | {"error": float(np.abs(found.astype(np.float64) - wanted).max() / np.abs(wanted).max())}


def compare(network: Network) -> dict[str, dict[str, object]]:
    model = network.onnx()
    samples = network.samples(SEEN + TRIED)
    tried = samples[SEEN:]
    (wanted,) = engine.onnx_runner(model)(samples_of(tried, inputs_of(graph.parse_model(model))).inputs).values()
    nodes = len(onnx.load_from_string(model).graph.node)
    rows: dict[str, dict[str, object]] = {
        "FP32": {"nodes": nodes, "casts": 0, "MiB": round(len(model) / 2**20, 1), "error": 0.0}
    }
    for way in WAYS:
        rows[way] = measure(way, model, samples[:SEEN], tried, wanted)
        print(f"{network.name:22} {way:30} {rows[way]}", file=sys.stderr, flush=True)
    return rows


def table(found: dict[str, dict[str, dict[str, object]]], facts: dict[str, str]) -> str:
    lines = [
        "# FP16 graphs side by side",
        "",
        f"`python benchmarks/precision.py` on {facts['cpu']}: {', '.join(f'{name} {version}' for name, version in facts.items() if name != 'cpu')}.",
        f"Ranges on {SEEN} normal samples; error: largest absolute difference to the FP32 graph on {TRIED} others over the largest FP32",
        "output, computed operator by operator with results rounded to their types. FP32 inputs and outputs. Weights are random.",
        "",
        "| network | by | nodes | casts | MiB | largest error | s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for network, rows in found.items():
        for way, row in rows.items():
            error = row.get("error", row.get("not run") or row.get("failed"))
            said = f"{error:.1e}" if isinstance(error, float) else str(error)
            lines.append(
                f"| {network} | {way} | {row.get('nodes', '')} | {row.get('casts', '')} | {row.get('MiB', '')} | {said} | {row.get('s', '')} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--peers"]:
        sys.path.append(arguments[1])  # after what is installed: theirs must not replace ours
        arguments = arguments[2:]
    logging.disable(logging.CRITICAL)
    out = HERE / "precision.json"
    kept = json.loads(out.read_text())["networks"] if out.exists() else {}
    facts = {"cpu": Device.cpu(1).name}
    for package in ("onnx", "onnxruntime", "onnxconverter-common", "nvidia-modelopt"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    for network in networks(arguments):
        kept[network.name] = compare(network)
        out.write_text(json.dumps({"facts": facts, "networks": kept}, indent=1) + "\n")
        (HERE / "precision.md").write_text(table(kept, facts))
    print((HERE / "precision.md").read_text())


if __name__ == "__main__":
    main()
