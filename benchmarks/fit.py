"""Is the exact fit of widths better than a greedy loop on the same objective, and how much of the budget does it use?

    python benchmarks/fit.py

200 random instances on four tables: one that was measured, and three of simulated devices with other stairs. For half of them the search
learned widths (objective `proportional`), for the other half channels have scores (`importance`); budgets are 20 to 90 % of the
way from the smallest network to the full one. Prints a table and writes it to benchmarks/fit.md. About ten minutes on one core; needs no quiet machine but for the times.
"""

import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from outcome import verdicts

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from deploy.lowering import LOWERING_VERSION  # noqa: E402
from greedy import fit_values  # noqa: E402
from latency import LatencyTable, profile, protocol  # noqa: E402
from latency.backends.simulated import Simulated, SimulatedSettings  # noqa: E402
from search import spaces  # noqa: E402
from search.budget import Budget, Price, round_up  # noqa: E402
from search.spaces import Prunable  # noqa: E402
from search.widths import TablePrices, fit, importance, network_price, proportional  # noqa: E402
from search.workloads import workloads  # noqa: E402

MEASURED = HERE.parent / "profiles" / "amd-epyc-zen4-1thread" / "repvgg-mini.fp32.latency.jsonl"
SIMULATED = {
    "resnet20/widths": SimulatedSettings(step=16, launch_us=0.5, macs_per_us=5_000),
    "resnet-18/widths": SimulatedSettings(step=64),
    "mobilenetv2-1.0/widths": SimulatedSettings(step=32),
}
INSTANCES = 50
SEED = 0


class Outcome(NamedTuple):
    """One instance, fitted twice."""

    objective: str
    value: float
    greedy: float
    used: float
    greedy_used: float
    gap: float
    variables: int
    seconds: float


def simulated(space: Prunable, settings: SimulatedSettings, work: Path) -> LatencyTable:
    """The table of a simulated device, whose stairs are `settings.step` channels wide."""
    out = work / f"{space.name.replace('/', '-')}.latency.jsonl"
    for _ in profile(
        workloads(space, networks=12),
        Simulated(settings),
        out,
        protocol=protocol.get("fast"),
        lowering=LOWERING_VERSION,
        space=space.name,
    ):
        pass
    return LatencyTable.load(out)


def instances(space: Prunable, table: LatencyTable) -> list[Outcome]:
    """Random widths and scores, fitted by the program and by the loop."""
    draw, sites, prices = random.Random(SEED), space.sites(), [TablePrices(table)]
    choices = [space.width_choices(index) for index in range(len(space.groups))]

    def price(widths: tuple[int, ...]) -> Price:
        return network_price(sites, prices, widths)

    found = []
    for index in range(INSTANCES):
        least, most = price(space.smallest_widths()).most, price(space.full_widths()).most
        budget = least + draw.uniform(0.2, 0.9) * (most - least)
        learned = [
            max(options[0], round(draw.uniform(0.2, 1.0) * full))
            for (_, full), options in zip(space.groups, choices, strict=True)
        ]
        if objective := index % 2:
            scores = [[draw.expovariate(1) for _ in range(full)] for _, full in space.groups]
            values = importance(scores, choices)
        else:
            values = proportional(learned, choices, price, Budget(us=budget))
        best = fit(space, choices, values, prices, Budget(us=budget))
        by_width = [dict(zip(options, value, strict=True)) for options, value in zip(choices, values, strict=True)]
        greedy = fit_values(round_up(learned, choices), by_width, choices, price, budget)
        greedy_value = sum(value[width] for value, width in zip(by_width, greedy, strict=True))
        found.append(
            Outcome(
                "importance" if objective else "proportional",
                best.value,
                greedy_value,
                best.price.most / budget,
                price(greedy).most / budget,
                best.gap,
                best.variables,
                best.seconds,
            )
        )
        print(
            space.name,
            index,
            *(f"{value:.5g}" if isinstance(value, float) else value for value in found[-1]),
            flush=True,
        )
    return found


def row(name: str, found: list[Outcome]) -> str:
    """A line of the table."""
    better = sum(outcome.value > outcome.greedy + 1e-9 * abs(outcome.greedy) for outcome in found)
    used, greedy_used = (
        statistics.median(values) for values in zip(*((o.used, o.greedy_used) for o in found), strict=True)
    )
    return (
        f"| {name} | {found[0].objective} | {len(found)} | {better} | {used:.2%} | {min(o.used for o in found):.2%} | {greedy_used:.2%} |"
        f" {max(o.gap for o in found):.1e} | {max(o.variables for o in found):,} |"
        f" {statistics.median(o.seconds for o in found):.1f} ({max(o.seconds for o in found):.1f}) |"
    )


def main() -> None:
    """Fit, and write what came out."""
    tables: list[tuple[str, Prunable, LatencyTable]] = []
    with tempfile.TemporaryDirectory() as work:
        tables.append(("repvgg-mini, measured (AMD EPYC)", spaces.get("repvgg-mini"), LatencyTable.load(MEASURED)))
        for name, settings in SIMULATED.items():
            space = spaces.get(name)
            tables.append(
                (f"{name}, simulated, stairs of {settings.step}", space, simulated(space, settings, Path(work)))
            )
        results = {name: instances(space, table) for name, space, table in tables}
    every = [outcome for found in results.values() for outcome in found]
    worse = [outcome for outcome in every if outcome.value < outcome.greedy - 2e-4 * abs(outcome.greedy)]
    median = statistics.median(outcome.used for outcome in every)
    lines = [
        "Widths fitted to a budget: the mixed-integer program beside the greedy loop on the same objective.",
        "",
        "| table | objective | instances | program better | used, median | used, least | used by the loop | gap, most | variables | seconds, median (most) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for objective in ("proportional", "importance"):
            lines.append(row(name, [outcome for outcome in found if outcome.objective == objective]))
    lines += [
        "",
        *verdicts(
            [
                (
                    "instances in which the program is worse than the loop",
                    f"{len(worse)} of {len(every)}",
                    "0",
                    not worse,
                ),
                (
                    "instances over budget",
                    f"{sum(outcome.used > 1 for outcome in every)}",
                    "0",
                    all(outcome.used <= 1 for outcome in every),
                ),
                ("used share of the budget, median", f"{median:.2%}", "at least 99 %", median >= 0.99),
            ]
        ),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    (HERE / "fit.md").write_text(text)


if __name__ == "__main__":
    main()
