"""Can a table be believed, and is it quick to use? Disturbed devices with a known truth, twenty kills, and ten thousand rows.

    python benchmarks/tables.py

Prints a table and writes it to benchmarks/tables.md. A few minutes on two cores; needs no quiet machine but for the last two figures.
"""

import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec
from outcome import verdicts

from deploy.lowering import LOWERING_VERSION
from latency import BlockSpec, LatencyTable, Row, TableWriter, profile, protocol, sentinel
from latency.backends.simulated import Simulated, SimulatedSettings
from latency.measure import summarize
from search import spaces
from search.workloads import workloads

HERE = Path(__file__).parent
SEEDS = (0, 1, 2, 3, 4)
DISTURBED = {"drift": 0.10, "spikes": 0.02, "throttle": 0.5, "others": 0.4}
CAREFUL = sentinel.Safeguards(drift_limit=0.005)
KILLS = 20


def worst_error(seed: int, safeguards: sentinel.Safeguards, work: Path) -> float:
    """Largest relative error of any block's row against the truth, on a device with every disturbance."""
    device = Simulated(SimulatedSettings(seed=seed, **DISTURBED))
    wanted = [item for item in workloads(spaces.get("repvgg-mini"), networks=0) if item.kind == "block"]
    out = work / f"{seed}-{safeguards.sentinel_every}.latency.jsonl"
    for _ in profile(
        wanted,
        device,
        out,
        protocol=protocol.get("fast"),
        lowering=LOWERING_VERSION,
        space="repvgg-mini",
        safeguards=safeguards,
    ):
        pass
    rows = {row.key: row for row in LatencyTable.load(out).rows}
    return max(abs(rows[item.key].median_us / device.truth_us(item.onnx()) - 1) for item in wanted)


def kills(work: Path) -> dict[str, int]:
    """Profile on this CPU and kill it at random moments; what the table then holds."""
    out, draw, killed = work / "killed.latency.jsonl", random.Random(0), 0
    command = [
        sys.executable,
        "-m",
        "lathe",
        "profile",
        "repvgg-mini",
        "--protocol",
        "fast",
        "--networks",
        "4",
        "--out",
        str(out),
    ]
    while killed < KILLS:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(1.5, 3.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        break
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = LatencyTable.load(out)
    wanted = {item.key for item in workloads(spaces.get("repvgg-mini"), networks=4)} | {"overhead"}
    history = [row for row in table.history if row.kind != "sentinel"]
    return {
        "kills": killed,
        "missing": len(wanted - {row.key for row in table.rows}),
        "foreign": len({row.key for row in history} - wanted),
        "measured twice": sum(
            count - 1 for count in Counter(row.key for row in history if row.status == "ok").values()
        ),
        "torn": len(table.warnings),
    }


def big_table(work: Path) -> tuple[float, float]:
    """Seconds to load 10,000 rows of 100 samples, and to predict a network of 20 blocks from them; medians of 10."""
    path, draw = work / "big.latency.jsonl", random.Random(0)
    small = LatencyTable.load(work / "killed.latency.jsonl")
    with TableWriter(path, small.header) as writer:
        rows = []
        for c_in in range(1, 101):
            for c_out in range(1, 101):
                samples = tuple(round(draw.uniform(10, 11), 3) for _ in range(100))
                found = summarize(samples, small.header.protocol)
                spec = BlockSpec.of("conv", attrs={"h": 8, "w": 8, "kernel": 3}, widths={"c_in": c_in, "c_out": c_out})
                rows.append(Row(kind="block", key=spec.key, **msgspec.structs.asdict(found)))
        writer.append(*rows)

    def seconds(action: object) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    load_s = seconds(lambda: LatencyTable.load(path))
    table = LatencyTable.load(path)
    blocks = [BlockSpec.parse(row.key) for row in table.rows[:20]]
    table.predict(blocks)  # fits the predictor, once a table
    return load_s, seconds(lambda: table.predict(blocks))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        guarded = [worst_error(seed, CAREFUL, work) for seed in SEEDS]
        unguarded = [worst_error(seed, sentinel.OFF, work) for seed in SEEDS]
        found = kills(work)
        load_s, predict_s = big_table(work)
    rows = [
        (
            "worst row against the truth, safeguards on (drift_limit 0.005), 5 seeds",
            ", ".join(f"{e:.2%}" for e in guarded),
            "<= 1 %",
            max(guarded) <= 0.01,
        ),
        ("the same, safeguards off", ", ".join(f"{e:.0%}" for e in unguarded), "for comparison", True),
        (
            f"after {found['kills']} SIGKILLs at random moments",
            msgspec.json.encode(found).decode(),
            "nothing but kills",
            sum(found.values()) == found["kills"] == KILLS,
        ),
        ("10,000 rows of 100 samples load in", f"{load_s:.3f} s", "< 0.3 s", load_s < 0.3),
        ("a network of 20 blocks is predicted in", f"{1000 * predict_s:.3f} ms", "< 1 ms", predict_s < 1e-3),
    ]
    lines = [f"Disturbances: {DISTURBED}, simulated.", "", *verdicts(rows)]
    print("\n".join(lines))
    (HERE / "tables.md").write_text("\n".join(lines) + "\n")
    sys.exit(not all(row[3] for row in rows))


if __name__ == "__main__":
    main()
