"""Every network of the zoo to a TensorRT-RTX FP16 engine, with no GPU.

    python benchmarks/zoo_engines.py [NETWORK ...]

Lowers, certifies on four normal samples and builds; writes benchmarks/zoo_engines.md and benchmarks/zoo_engines.json, in which what it was
not asked for keeps its rows. Needs the extra tensorrt-rtx. About a minute per network on one core.
"""

import json
import sys
import time
from pathlib import Path

import onnx
from subjects import Network, networks

from deploy import engine, graph
from deploy.precision import certified
from latency import BuildFailed, Device
from latency.backends.engines import EngineSpec

HERE = Path(__file__).parent
SAMPLES = 4


def build(network: Network) -> dict[str, object]:
    start = time.perf_counter()
    model = network.onnx()
    lowered = time.perf_counter()
    half, certificate = certified(model, network.samples(SAMPLES))
    halved = time.perf_counter()
    graph.parse_model(half)
    row: dict[str, object] = {
        "FP32 nodes": len(onnx.load_from_string(model).graph.node),
        "casts": certificate.casts,
        "islands": certificate.islands,
        "largest activation": max(seen.max_abs for seen in certificate.tensors),
    }
    try:
        built = engine.build(half, "tensorrt-rtx", EngineSpec())
    except BuildFailed as error:
        return row | {"engine": str(error)}
    seconds = {"lower_s": lowered - start, "certify_s": halved - lowered, "build_s": time.perf_counter() - halved}
    return (
        row | {"engine": f"{len(built) / 2**20:.1f} MiB"} | {name: round(value, 1) for name, value in seconds.items()}
    )


def main() -> None:
    out = HERE / "zoo_engines.json"
    kept = json.loads(out.read_text())["networks"] if out.exists() else {}
    runtime = engine.runtime_of("tensorrt-rtx")
    facts = {"cpu": Device.cpu(1).name, runtime.name: runtime.version}
    for network in networks(sys.argv[1:]):
        kept[network.name] = build(network)
        print(network.name, kept[network.name], file=sys.stderr, flush=True)
        out.write_text(json.dumps({"facts": facts, "networks": kept}, indent=1) + "\n")
        columns = list(dict.fromkeys(name for row in kept.values() for name in row))
        cells = [
            [name, *(f"{v:.4g}" if isinstance(v := row.get(c, ""), float) else str(v) for c in columns)]
            for name, row in kept.items()
        ]
        lines = [["network", *columns], ["---"] * (len(columns) + 1), *cells]
        title = f"# FP16 engines with no GPU\n\n`python benchmarks/zoo_engines.py` on {facts['cpu']}, {runtime.name} {runtime.version}.\n\n"
        (HERE / "zoo_engines.md").write_text(title + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    print((HERE / "zoo_engines.md").read_text())


if __name__ == "__main__":
    main()
