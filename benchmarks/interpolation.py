"""Does interpolation between measured blocks know how wrong it is? Hold out real TensorRT latencies, predict them from the others.

    python benchmarks/interpolation.py

Reads ../shared/data/latency_trt_v100_conv.csv.gz: convolutions at FP16 and batch 1 with TensorRT on a V100, over input and output channels
(depth-wise ones over their channels). A family has one resolution, kernel, stride and fusion. Prints a table and writes it to
benchmarks/interpolation.md. Five minutes on one core; nothing is timed.
"""

import collections
import csv
import gzip
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from outcome import verdicts

from latency.interpolate import Interpolation

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "shared" / "data" / "latency_trt_v100_conv.csv.gz"
SEED = 0
Family = tuple[np.ndarray, np.ndarray]
"""Widths [blocks, axes] and their microseconds [blocks]."""


class Outcome(NamedTuple):
    """One family, some of its blocks predicted from the others."""

    claimed: float
    true: float
    inside: float
    half_width: float
    linear: float
    """error of a multilinear fit to the same blocks"""


def families(kind: str) -> list[Family]:
    """All families of a kind of convolution with enough blocks to hold some out."""
    found: dict[tuple[str, ...], dict[tuple[int, ...], float]] = collections.defaultdict(dict)
    with gzip.open(DATA, "rt") as file:
        for row in csv.DictReader(file):
            if row["conv"] == kind and row["batch"] == "1" and row["fp16_us"] and row["c_in"] != "3":
                widths = (int(row["c_out"]),) if kind == "depthwise" else (int(row["c_in"]), int(row["c_out"]))
                found[tuple(row[name] for name in ("h", "kernel", "stride", "sum_fused"))][widths] = float(
                    row["fp16_us"]
                )
    least = 15 if kind == "depthwise" else 60
    return [
        (np.array(list(blocks), dtype=float), np.array(list(blocks.values())))
        for _, blocks in sorted(found.items())
        if len(blocks) >= least
    ]


def predicted(family: Family, knots: np.ndarray, others: np.ndarray) -> Outcome:
    """Predict some blocks of a family from some others, by their indices."""
    widths, us = family
    fit = Interpolation(widths[knots], us[knots])
    found, half = fit.predict(widths[others])
    errors = np.abs(found / us[others] - 1)
    terms = np.c_[np.ones(len(widths)), widths, widths.prod(axis=1)]
    plain = terms @ np.linalg.lstsq(terms[knots] / us[knots, None], np.ones(len(knots)), rcond=None)[0]
    return Outcome(
        fit.error,
        errors.mean(),
        (errors <= half).mean(),
        float(np.median(half)),
        np.abs(plain[others] / us[others] - 1).mean(),
    )


def at_random(family: Family, share: float, draw: np.random.RandomState) -> Outcome:
    """Measure the ends of each axis and a random share of the blocks."""
    widths, _ = family
    ends = [index for axis in widths.T for index in (axis.argmin(), axis.argmax())]
    rest = [index for index in draw.permutation(len(widths)) if index not in ends]
    knots = np.unique([*ends, *rest[: max(0, round(share * len(widths)) - len(set(ends)))]])
    return predicted(family, knots, np.setdiff1d(np.arange(len(widths)), knots))


def of_one_kind(family: Family) -> Outcome | None:
    """Measure channels that 64 does not divide, and the most; predict the multiples of 64."""
    channels = family[0][:, -1]
    multiple = channels % 64 == 0
    knots, others = (
        np.flatnonzero(~multiple | (channels == channels.max())),
        np.flatnonzero(multiple & (channels < channels.max())),
    )
    return predicted(family, knots, others) if len(knots) >= 6 and len(others) else None


def main() -> None:
    """Predict, and write what came out."""
    if not DATA.exists():
        sys.exit(f"{DATA} is absent: nothing to predict")
    draw = np.random.RandomState(SEED)
    regular, depthwise = families("regular"), families("depthwise")
    results = {
        "regular, 25 % measured": [at_random(family, 0.25, draw) for family in regular],
        "regular, 50 % measured": [at_random(family, 0.5, draw) for family in regular],
        "depth-wise, 50 % measured": [at_random(family, 0.5, draw) for family in depthwise],
        "depth-wise, multiples of 64 from others": [found for family in depthwise if (found := of_one_kind(family))],
    }
    lines = [
        "Convolutions with TensorRT on a V100 (FP16, batch 1), predicted from others of their family; means over families.",
        "",
        "| blocks | families | error claimed | true | within the 95 % interval | half of the interval, median | true error of a multilinear fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        claimed, true, inside, half, linear = np.nanmean(np.array(found), axis=0)
        lines.append(
            f"| {name} | {len(found)} | {claimed:.1%} | {true:.1%} | {inside:.1%} | {half:.0%} | {linear:.1%} |"
        )
    claimed, true, inside, *_ = np.nanmean(
        np.array([outcome for found in list(results.values())[:3] for outcome in found]), axis=0
    )
    kinds = np.nanmean([outcome.inside for outcome in results["depth-wise, multiples of 64 from others"]])
    lines += [
        "",
        *verdicts(
            [
                (
                    "claimed error over true error, blocks at random",
                    f"{claimed / true:.2f}",
                    "0.8 to 1.25",
                    0.8 <= claimed / true <= 1.25,
                ),
                ("within the 95 % interval, blocks at random", f"{inside:.1%}", "at least 93 %", inside >= 0.93),
                (
                    "within the 95 % interval, multiples of 64 from others",
                    f"{kinds:.1%}",
                    "at least 80 %",
                    kinds >= 0.8,
                ),
            ]
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (HERE / "interpolation.md").write_text(text)


if __name__ == "__main__":
    main()
