"""A whole PRUNET space on this machine's CPU: how fast its table is made, how well it predicts, how few of its rows would do.

    python benchmarks/prunet.py --table profiles/<device>/prunet.fp32.latency.jsonl
    python benchmarks/prunet.py --space prunet-mini --table profiles/<device>/prunet-mini.fp32.latency.jsonl

Measures the table where there is none (twenty minutes for `prunet`); a table that is there is taken, with `--wall-s` for how long it took. Then beside
a scripted profile: every block exported by torch.onnx and timed in a process of its own. Needs a machine that is otherwise idle. Prints a
table and writes it, with every number behind it, to benchmarks/<space>.<machine>.json. About ten minutes more.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from outcome import slug, verdicts

from deploy.lowering import LOWERING_VERSION
from latency import LatencyTable, profile, protocol
from latency.backends.onnxruntime import OnnxRuntime
from latency.backends.replay import Replay
from latency.coverage import Covered, profile_adaptively
from latency.measure import measure
from latency.predict import kendall_tau
from latency.profile import Event, Workload
from search import spaces
from search.workloads import lower, workloads

HERE = Path(__file__).parent
SCRIPTED_BLOCKS = 24
UNSEEN_NETWORKS = 30
FITTED_NETWORKS = 48

# What a person would script instead: trtexec's defaults (200 ms of warm-up, then 3 s and at least 10 runs) around ONNX Runtime.
SCRIPT = """
import statistics, sys, time
import numpy as np, onnxruntime, torch
from latency import BlockSpec
from search import blocks

spec = BlockSpec.parse(sys.argv[1])
x = torch.randn(1, spec.width("c_in"), int(spec.attr("h")), int(spec.attr("w")))
torch.onnx.export(blocks.deployed(spec).eval(), (x,), sys.argv[2], dynamo=True, external_data=False, input_names=["x"], verbose=False)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
feed = {"x": x.numpy()}
end = time.perf_counter() + 0.2
while time.perf_counter() < end:
    session.run(None, feed)
samples, begin = [], time.perf_counter()
while len(samples) < 10 or time.perf_counter() - begin < 3:
    start = time.perf_counter()
    session.run(None, feed)
    samples.append(time.perf_counter() - start)
print("median_us", statistics.median(samples) * 1e6)
"""


def make_table(name: str, path: Path) -> float:
    """Measure the space; the wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "lathe", "profile", name, "--out", str(path)], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def beside_a_script(name: str, work: Path) -> dict:
    """The same blocks by a process a block and by one profile, in turns, so that both see the same machine."""
    chosen = random.Random(0).sample(spaces.get(name).blocks(), SCRIPTED_BLOCKS)
    backend, found, scripted_s, ours_s = OnnxRuntime(threads=1), [], 0.0, 0.0
    for number, part in enumerate(chosen[i : i + 6] for i in range(0, len(chosen), 6)):
        medians = []
        for spec in part:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", SCRIPT, spec.key, str(work / "block.onnx")],
                check=True,
                capture_output=True,
                text=True,
            )
            scripted_s += time.perf_counter() - start
            medians.append(float(done.stdout.split("median_us")[1]))
        out = work / f"{number}.latency.jsonl"
        start = time.perf_counter()
        works = [Workload.block(spec, lambda spec=spec: lower((spec,))) for spec in part]
        for _ in profile(works, backend, out, protocol=protocol.DEFAULT, lowering=LOWERING_VERSION, space=name):
            pass
        ours_s += time.perf_counter() - start
        rows = {row.key: row.median_us for row in LatencyTable.load(out).rows}
        found += [
            {"key": spec.key, "scripted_us": median, "ours_us": rows[spec.key]}
            for spec, median in zip(part, medians, strict=True)
        ]
    return {"blocks": found, "scripted_s": scripted_s, "ours_s": ours_s}


def unseen(name: str, table: LatencyTable) -> list[dict]:
    """Predicted against measured latency of random networks that are not in the table."""
    space, draw, backend, found = (
        spaces.get(name),
        random.Random(20_000),
        OnnxRuntime(threads=table.header.device.threads),
        [],
    )
    while len(found) < UNSEEN_NETWORKS:
        network = space.network(space.random(draw))
        if table.measured_network(network):
            continue
        with backend.compile(lower(network)) as compiled:
            measured = measure(compiled, protocol.DEFAULT)
        predicted = table.predict(network)
        found.append(
            {
                "layers": len(network),
                "measured_us": measured.median_us,
                "predicted_us": predicted.us,
                "low_us": predicted.low_us,
                "high_us": predicted.high_us,
            }
        )
    return found


def adaptively(name: str, path: Path, work: Path) -> dict:
    """What adaptive coverage would have measured of this table, and how far its interpolation is from the rows that it left out."""
    table, out = LatencyTable.load(path), work / "adaptive.latency.jsonl"
    backend = Replay(path)
    wanted = workloads(spaces.get(name), networks=FITTED_NETWORKS)
    replayed = [Workload(kind=work.kind, key=work.key, blocks=work.blocks, onnx=lower_nothing) for work in wanted]

    def go(some: Sequence[Workload]) -> Iterator[Event]:
        return profile(some, backend, out, protocol=table.header.protocol, lowering=LOWERING_VERSION, space=name)

    rounds = [event for event in profile_adaptively(replayed, out, go) if isinstance(event, Covered)]
    sparse = LatencyTable.load(out)
    measured = {row.key for row in sparse.rows if row.kind == "block" and row.measured}
    errors = {spec.key: sparse.lookup(spec).us / table.lookup(spec).us - 1 for spec in spaces.get(name).blocks()}
    left_out = [abs(error) for key, error in errors.items() if key not in measured]
    return {
        "measured": len(measured),
        "blocks": len(errors),
        "mean_error": statistics.mean(map(abs, errors.values())),
        "mean_error_left_out": statistics.mean(left_out),
        "largest_error": max(left_out),
        "claimed_error": rounds[-1].expected_error,
    }


@cache
def lower_nothing() -> bytes:
    """A replayed device looks at the key alone."""
    return lower((spaces.get("repvgg-mini").network()[0],))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="prunet", help="prunet or one of its siblings")
    parser.add_argument("--table", type=Path, required=True, help="the table, measured first where it is not there")
    parser.add_argument("--wall-s", type=float, help="how long it took to measure a table that is there")
    arguments = parser.parse_args()
    name, path, wall_s = arguments.space, arguments.table, arguments.wall_s
    if not path.exists():
        wall_s = make_table(name, path)
    elif wall_s is None:
        parser.error(f"{path} exists: say with --wall-s how long it took, or remove it")
    table = LatencyTable.load(path)
    sampled_s = sum(sum(row.samples_us) for row in table.history) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        script = beside_a_script(name, Path(folder))
        networks = unseen(name, table)
        sparse = adaptively(name, path, Path(folder))

    measured, predicted = (
        np.array([network[field] for network in networks]) for field in ("measured_us", "predicted_us")
    )
    errors = predicted / measured - 1
    tau = kendall_tau(predicted, measured)
    inside = statistics.mean(network["low_us"] <= network["measured_us"] <= network["high_us"] for network in networks)
    ratios = np.array([block["ours_us"] / block["scripted_us"] for block in script["blocks"]])
    faster = script["scripted_s"] / script["ours_s"]
    blocks_count = sum(row.kind == "block" for row in table.rows)
    outside = 1 - sampled_s / wall_s
    rows = [
        (
            f"profile of {len(table.rows)} rows, {blocks_count} blocks, in {wall_s / 60:.1f} min: time outside of the timed samples",
            f"{outside:.1%}",
            "<= 25 %",
            outside <= 0.25,
        ),
        (
            f"blocks a minute against the script, {SCRIPTED_BLOCKS} blocks in turns ({60 * SCRIPTED_BLOCKS / script['ours_s']:.0f}"
            f" and {60 * SCRIPTED_BLOCKS / script['scripted_s']:.1f})",
            f"{faster:.1f} times",
            ">= 5",
            faster >= 5,
        ),
        (
            "their medians, ours / the script's: median (smallest to largest)",
            f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
            "agree: within 3 %",
            abs(np.median(ratios) - 1) <= 0.03,
        ),
        (
            f"prediction, mean absolute error over {UNSEEN_NETWORKS} unseen networks (bias {errors.mean():+.2%}, {inside:.0%} inside of the interval)",
            f"{np.abs(errors).mean():.2%} (largest {np.abs(errors).max():.2%})",
            "<= 2 %",
            np.abs(errors).mean() <= 0.02,
        ),
        ("their order, Kendall's tau", f"{tau:.3f}", ">= 0.97", tau >= 0.97),
        (
            "adaptive: share of the blocks that is measured",
            f"{sparse['measured'] / sparse['blocks']:.1%}",
            "<= 33.4 %",
            3 * sparse["measured"] <= sparse["blocks"] + 3,
        ),
        (
            f"adaptive: mean error against the full table, all blocks ({sparse['mean_error_left_out']:.2%} over those left out,"
            f" {sparse['claimed_error']:.2%} claimed)",
            f"{sparse['mean_error']:.2%}",
            "<= 2 %",
            sparse["mean_error"] <= 0.02,
        ),
    ]
    header, (_, height, width) = table.header, spaces.get(name).input_shape
    device = f"{header.device.name}, {header.device.threads} thread, {header.runtime.name} {header.runtime.version}"
    about = f"{device}, {name} at {height}x{width}, {header.precision}"
    lines = [about, "", *verdicts(rows)]
    lines += ["", "| block | the script's median, us | ours, us | ratio |", "|---|---|---|---|"]
    lines += [
        f"| `{b['key']}` | {b['scripted_us']:.1f} | {b['ours_us']:.1f} | {b['ours_us'] / b['scripted_us']:.3f} |"
        for b in script["blocks"]
    ]
    print("\n".join(lines))
    machine = slug(header.device.name)
    (HERE / f"{name}.{machine}.md").write_text("\n".join(lines) + "\n")
    record = {
        "device": about,
        "wall_s": wall_s,
        "sampled_s": sampled_s,
        "scripted": script,
        "unseen": networks,
        "adaptive": sparse,
    }
    (HERE / f"{name}.{machine}.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(not all(row[3] for row in rows))


if __name__ == "__main__":
    main()
