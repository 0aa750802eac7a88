"""Does the first pass keep its promises on this machine? Profiles `repvgg-mini`, predicts networks it has not seen, searches and ships thrice.

    python benchmarks/first_pass.py --work /tmp/first-pass

Prints a table and writes it, with every number behind it, to benchmarks/first_pass.<machine>.json. About a quarter of an hour on two cores.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from outcome import slug, verdicts

from latency import LatencyTable, protocol
from latency.backends.onnxruntime import OnnxRuntime
from latency.measure import measure
from search import spaces
from search.workloads import lower

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
NETWORKS = 20


def lathe(*arguments: object) -> dict:
    """What `lathe ARGUMENTS --json` prints; a failed verdict is a result here."""
    done = subprocess.run(
        [sys.executable, "-m", "lathe", *map(str, arguments), "--json"], stdout=subprocess.PIPE, check=False, text=True
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    return json.loads(done.stdout)


def import_seconds() -> list[float]:
    code = "import time; t = time.perf_counter(); import latency; print(time.perf_counter() - t); import sys; assert 'torch' not in sys.modules"
    return [
        float(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)
        for _ in range(10)
    ]


def prediction_errors(table: LatencyTable) -> list[dict]:
    """Predicted against measured latency of random networks that are not in the table."""
    space, draw, backend = (
        spaces.get("repvgg-mini"),
        random.Random(20_000),
        OnnxRuntime(threads=table.header.device.threads),
    )
    found = []
    while len(found) < NETWORKS:
        widths = tuple(draw.choice(space.width_choices(index)) for index in range(len(space.layers)))
        blocks = space.network(space.choice(widths))
        if table.measured_network(blocks):
            continue
        with backend.compile(lower(blocks)) as compiled:
            measured = measure(compiled, protocol.DEFAULT)
        predicted = table.predict(blocks)
        found.append(
            {
                "widths": widths,
                "measured_us": measured.median_us,
                "predicted_us": predicted.us,
                "error": predicted.us / measured.median_us - 1,
            }
        )
    return found


def ship(table: Path, seed: int, work: Path) -> dict:
    run, out = work / f"run-{seed}", work / f"bundle-{seed}"
    start = time.perf_counter()
    result = lathe(
        "search",
        "pas",
        "--space",
        "repvgg-mini",
        "--table",
        table,
        "--data",
        "digits",
        "--budget-fraction",
        0.6,
        "--seed",
        seed,
        "--out",
        run,
    )
    seconds = time.perf_counter() - start
    manifest = lathe("export", run, "--target", "onnxruntime", "--out", out)["manifest"]
    steps = {
        (step["name"], step["precision"]): max(one["relative"] for one in step["first"].values())
        for step in manifest["validation"]
        if step["first"]
    }
    shipped, unpruned = manifest["shipped"], manifest["unpruned"]
    return {
        "seed": seed,
        "search_s": seconds,
        "widths": result["result"]["shipped"]["widths"],
        "accuracy": {
            name: network["score"]["value"] for name, network in (("unpruned", unpruned), ("shipped", shipped))
        },
        "params": {"unpruned": unpruned["params"], "shipped": shipped["params"]},
        "macs": {"unpruned": unpruned["macs"], "shipped": shipped["macs"]},
        "predicted_us": shipped["predicted"]["us"],
        "measured_us": {
            name: network["measured"]["median_us"] for name, network in (("unpruned", unpruned), ("shipped", shipped))
        },
        "measured_high_us": shipped["measured"]["high_us"],
        "budget_us": manifest["budget_us"],
        "budget_verdict": manifest["budget_verdict"],
        "squeezed_float64": steps["squeezed", "fp64"],
        "squeezed_float32": steps["squeezed", "fp32"],
        "onnxruntime_float32": steps["onnx", "fp32"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory for table, runs and bundles")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    path = work / "cpu.latency.jsonl"
    imports = import_seconds()
    start = time.perf_counter()
    lathe("profile", "repvgg-mini", "--out", path)
    profile_s = time.perf_counter() - start
    table = LatencyTable.load(path)
    networks = prediction_errors(table)
    runs = [ship(path, seed, work) for seed in SEEDS]

    errors = np.abs([network["error"] for network in networks])
    drop = 100 * statistics.mean(run["accuracy"]["unpruned"] - run["accuracy"]["shipped"] for run in runs)
    rows = [
        (
            "`import latency`, median of 10, no torch",
            f"{statistics.median(imports):.3f} s",
            "< 0.3 s",
            statistics.median(imports) < 0.3,
        ),
        (
            f"prediction, mean absolute error over {NETWORKS} unseen networks",
            f"{errors.mean():.2%} (largest {errors.max():.2%})",
            "<= 3 %",
            errors.mean() <= 0.03,
        ),
        (
            "shipped latency, upper end of its interval / budget, worst of 3 seeds",
            f"{max(run['measured_high_us'] / run['budget_us'] for run in runs):.3f}",
            "<= 1",
            all(run["measured_high_us"] <= run["budget_us"] for run in runs),
        ),
        (
            "shipped / unpruned latency, measured in turns, each seed",
            ", ".join(f"{run['measured_us']['shipped'] / run['measured_us']['unpruned']:.3f}" for run in runs),
            "<= 0.6",
            all(run["measured_us"]["shipped"] <= 0.6 * run["measured_us"]["unpruned"] for run in runs),
        ),
        ("accuracy lost, mean of 3 seeds", f"{drop:.2f} points", "<= 1 point", drop <= 1),
        *(
            (
                f"{name.replace('_', ', ')}, largest difference / output scale",
                f"{max(run[name] for run in runs):.1e}",
                f"<= {limit:.0e}",
                max(run[name] for run in runs) <= limit,
            )
            for name, limit in (("squeezed_float64", 1e-10), ("squeezed_float32", 1e-5), ("onnxruntime_float32", 1e-5))
        ),
    ]
    lines = verdicts(rows)
    lines += [
        "",
        "| seed | widths | accuracy | parameters | MACs | latency, us | budget, us | search |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        pairs = [
            f"{run[key]['unpruned']:{form}} -> {run[key]['shipped']:{form}}"
            for key, form in (("accuracy", ".4f"), ("params", ","), ("macs", ","), ("measured_us", ".1f"))
        ]
        lines.append(
            f"| {run['seed']} | {' '.join(map(str, run['widths']))} | {' | '.join(pairs)} | {run['budget_us']:.1f}, {run['budget_verdict']} | {run['search_s']:.0f} s |"
        )
    header = table.header
    about = f"{header.device.name}, {header.device.threads} thread, {header.runtime.name} {header.runtime.version}; profile of {len(table.rows)} rows in {profile_s:.0f} s"
    print("\n".join([about, "", *lines]))
    machine = slug(header.device.name)
    (HERE / f"first_pass.{machine}.md").write_text("\n".join([about, "", *lines]) + "\n")
    record = {"device": about, "import_s": imports, "profile_s": profile_s, "networks": networks, "runs": runs}
    (HERE / f"first_pass.{machine}.json").write_text(json.dumps(record, indent=2) + "\n")
    sys.exit(not all(row[3] for row in rows))


if __name__ == "__main__":
    main()
