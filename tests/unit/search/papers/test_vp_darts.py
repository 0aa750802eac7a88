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
    assert Counter(row.verdict for row in rows) == {"SAME": 18, "EXPLAINED": 24, "NOT RECOMPUTED": 24}
    same = {row.row.partition(",")[0] for row in rows if row.verdict == "SAME"}
    assert same == {"DARTS (1st)", "DARTS (2nd)", "DrNAS", "beta-DARTS", "VP-DARTS (Adjustable K)", "Optimal"}


def test_what_our_searches_reach_is_what_the_benchmark_measured():
    report = Path(__file__).parents[4] / "benchmarks" / "nasbench201.md"
    if not report.exists():
        pytest.skip(f"{report} is not here: benchmarks are not part of a source distribution")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in report.read_text().splitlines()
        if line.startswith("| ")
    ]
    found = {
        line[0]: tuple(float(line[place]) for place in (2, 4, 5))
        for line in lines
        if line[0] in vp_darts.SEARCHED and line[1] == "5"
    }
    assert found == vp_darts.SEARCHED


def test_the_cells_are_of_the_space():
    space = spaces.get("nasbench201")
    assert all(space.connected(space.parse(cell)) for cell in (vp_darts.SKIPS, vp_darts.BEST))


def test_the_records_are_the_benchmarks():
    if not BENCHMARK.exists():
        pytest.skip(f"{BENCHMARK} is not here")
    with gzip.open(BENCHMARK, "rt") as file:
        found = {
            row["arch"]: tuple(float(row[f"{name}_test"]) for name in ("cifar10", "cifar100", "imagenet16"))
            for row in csv.DictReader(file)
        }
    best = tuple(max(column) for column in zip(*found.values(), strict=True))
    assert {**found, vp_darts.OPTIMAL: best}.items() >= vp_darts.RECORDED.items()
    printed = [
        cell
        for cell, accuracies in found.items()
        if [f"{accuracy:.2f}" for accuracy in accuracies] == ["94.36", "73.51", "46.34"]
    ]
    assert printed == [vp_darts.BEST]
