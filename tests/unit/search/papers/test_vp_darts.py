import csv
import gzip
from collections import Counter
from pathlib import Path

import pytest

from search import spaces
from search.papers import vp_darts

BENCHMARK = Path(__file__).parents[5] / "shared" / "data" / "nasbench201.csv.gz"


def test_the_rows_of_cells_that_are_known_are_the_same():
    rows = vp_darts.rows()
    assert Counter(row.verdict for row in rows) == {"SAME": 18, "NOT RECOMPUTED": 45}
    same = {row.row.partition(",")[0] for row in rows if row.verdict == "SAME"}
    assert same == {"DARTS (1st)", "DARTS (2nd)", "DrNAS", "beta-DARTS", "VP-DARTS (Adjustable K)", "Optimal"}


def test_the_cells_are_of_the_space():
    space = spaces.get("nasbench201")
    assert all(space.connected(space.parse(cell)) for cell in (vp_darts.SKIPS, vp_darts.BEST))


def test_the_records_are_the_benchmarks():
    if not BENCHMARK.exists():
        pytest.skip(f"{BENCHMARK} is not here")
    with gzip.open(BENCHMARK, "rt") as file:
        found = {
            row["arch"]: tuple(float(row[f"{name}_test"]) for name in ("cifar10", "cifar100", "imagenet16")) for row in csv.DictReader(file)
        }
    best = tuple(max(column) for column in zip(*found.values(), strict=True))
    assert {**found, vp_darts.OPTIMAL: best}.items() >= vp_darts.RECORDED.items()
    printed = [cell for cell, accuracies in found.items() if [f"{accuracy:.2f}" for accuracy in accuracies] == ["94.36", "73.51", "46.34"]]
    assert printed == [vp_darts.BEST]
