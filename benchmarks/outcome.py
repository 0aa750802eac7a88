"""What the reports of benchmarks share. Not a script."""

import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from deploy.engine import measure_in_turns
from latency import Measurement, protocol
from latency.measure import Timed


def slug(device: str) -> str:
    """A device's name as a part of file names."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def t_95(freedom: float) -> float:
    """The two-sided 95 % quantile of Student's t."""
    return float(stats.t.ppf(0.975, freedom))


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95 % interval (Student's t); infinite for one value."""
    if len(values) < 2:
        return statistics.mean(values), math.inf
    return statistics.mean(values), t_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def fastest_in_turns(networks: Mapping[str, Timed], turns: int = 5) -> dict[str, Measurement]:
    """Measure networks in turns, several times over; the fastest measurement of each counts.

    The speed of a core that shares its machine jumps for seconds at a time, by more than an interval says.
    """
    measured = [measure_in_turns(networks, protocol.FAST) for _ in range(turns)]
    return {name: min((turn[name] for turn in measured), key=lambda one: one.median_us) for name in networks}


def verdicts(rows: Iterable[tuple[str, str, str, bool]]) -> list[str]:
    """Lines of a table: what, the figure reached, what was asked, and whether it holds."""
    lines = [
        f"| {what} | {reached} | {asked} | {'holds' if holds else 'MISSED'} |" for what, reached, asked, holds in rows
    ]
    return ["| what | reached | asked | |", "|---|---|---|---|", *lines]


def make_once(work: Path, name: str, make: Callable[[], Any]) -> Any:
    """What is made once, and kept in a directory as JSON for the next run."""
    path = work / f"{name}.json"
    if not path.exists():
        begun = time.perf_counter()
        path.write_text(json.dumps(make()))
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return json.loads(path.read_text())
