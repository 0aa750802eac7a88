"""How well do the measured tables of NAS-Bench-201 predict whole cells, and other people's devices?

    python benchmarks/nasbench201_latency.py --devices latency_nasbench201.csv.gz

First the whole cells that the tables of `profiles/` hold: the error of predictions of cells that the fit has not seen (cross-validated, as
the product states it) and of those that it has (plain). Then the rank correlation of the predictions by the `nasbench201` table with the
latencies that were recorded on 27 devices (HELP and HW-NAS-Bench), over the 15,284 cells whose output depends on their input. Writes
benchmarks/nasbench201_latency.md; half a minute. Measures nothing.
"""

import argparse
import csv
import gzip
import statistics
from pathlib import Path

from outcome import verdicts
from scipy.stats import kendalltau, spearmanr

from latency import BlockSpec, LatencyTable
from search import spaces
from search.cost import LatencyModel
from search.spaces import Cells

HERE = Path(__file__).parent
TABLES = HERE.parent / "profiles" / "amd-epyc-zen4-1thread"
NAMES = ("nasbench201", "nasbench201-small")
LIMIT = 0.02
"""Mean relative error of cells that the fit has not seen."""


def errors(table: LatencyTable) -> list[float]:
    """Relative error of each measured network, signed, by the coefficients that were fitted to all of them."""
    rows = [row for row in table.rows if row.kind == "network" and row.status == "ok"]
    return [table.predict([BlockSpec.parse(key) for key in row.blocks]).us / row.median_us - 1 for row in rows]


def predicted(table: LatencyTable) -> dict[str, float]:
    """Microseconds of every cell whose output depends on its input, by its architecture string."""
    space = spaces.get("nasbench201")
    assert isinstance(space, Cells)
    model = LatencyModel(space, table)
    return {space.text(choice): model.price(choice).cost for choice in space.choices() if space.connected(choice)}


def correlations(path: Path, ours: dict[str, float]) -> list[tuple[str, float, float]]:
    """Device, Spearman's rho and Kendall's tau-b of our predictions with what it recorded."""
    with gzip.open(path, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["arch"] in ours]
    assert len(rows) == len(ours), f"{len(rows)} of {len(ours)} cells are in {path}"
    us = [ours[row["arch"]] for row in rows]
    found = []
    for column in (name for name in rows[0] if name.endswith("_ms")):
        theirs = [float(row[column]) for row in rows]
        found.append(
            (
                column.removesuffix("_ms"),
                float(spearmanr(us, theirs).statistic),
                float(kendalltau(us, theirs).statistic),
            )
        )
    return sorted(found, key=lambda row: -row[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=Path, required=True, help="recorded latencies: columns arch and DEVICE_ms")
    arguments = parser.parse_args()
    tables = {name: LatencyTable.load(TABLES / f"{name}.fp32.latency.jsonl") for name in NAMES}
    lines = ["# Predicted latency of NAS-Bench-201 cells", "", "## Whole cells, measured and predicted", ""]
    lines += [
        "| table | cells | mean error, unseen | 95 % within, unseen | Kendall tau, unseen | mean error, fitted | median, fitted |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    rows = []
    for name, table in tables.items():
        fit, plain = table.predictor, [abs(error) for error in errors(table)]
        cells = (f"{len(plain)}", f"{fit.mean_absolute_error:.2%}", f"{fit.half_width:.1%}", f"{fit.kendall_tau:.3f}")
        lines.append(
            f"| {name} | {' | '.join(cells)} | {statistics.fmean(plain):.2%} | {statistics.median(plain):.2%} |"
        )
        reached = fit.mean_absolute_error
        rows.append((f"{name}: mean error of unseen cells", f"{reached:.2%}", f"at most {LIMIT:.0%}", reached <= LIMIT))
    ranks = correlations(arguments.devices, predicted(tables["nasbench201"]))
    lines += [
        "",
        "## Rank correlation with recorded latencies, 15,284 cells",
        "",
        "| device, batch | Spearman | Kendall |",
        "|---|---|---|",
    ]
    lines += [f"| {device} | {rho:.3f} | {tau:.3f} |" for device, rho, tau in ranks]
    lines += [
        f"| median of {len(ranks)} | {statistics.median(r[1] for r in ranks):.3f} | {statistics.median(r[2] for r in ranks):.3f} |"
    ]
    lines += ["", *verdicts(rows)]
    print("\n".join(lines))
    (HERE / "nasbench201_latency.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
