"""Common steps of the examples.

Measure the layers, search by two methods within one budget, ship and verify both networks.
"""

import argparse
import json
from pathlib import Path

from deploy.bundle import Manifest, load
from deploy.validate import compare_latency
from lathe import cli


def options(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """Parse the command line of an example, including the arguments that `parser` already has."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory of all that is made")
    parser.add_argument("--table", type=Path, help="a table of the network's layers, instead of measuring them")
    parser.add_argument(
        "--small", action="store_true", help="an epoch of a few samples, and one search: seconds, not minutes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.6, help="share of the unpruned network's latency")
    return parser.parse_args()


def lathe(*words: object) -> None:
    """Show a Lathe command and run it in this process."""
    said = list(map(str, words))
    print("$ lathe", *said, flush=True)
    code = cli.parse(said).run()
    print(f"exit code {code}", flush=True)


def profile(given: argparse.Namespace, network: str, shape: str) -> Path:
    """Return the table of the network's layers, measured on this machine unless one is given."""
    if given.table:
        return given.table
    table = given.out / "layers.latency.jsonl"
    lathe(
        "profile",
        network,
        "--input",
        shape,
        "--protocol",
        "fast",
        "--coverage",
        "adaptive",
        "--networks",
        12,
        "--out",
        table,
    )
    return table


def search(given: argparse.Namespace, network: str, shape: str, *task: str, epochs: tuple[int, int, int]) -> None:
    """Run Pruning-as-Search, then uniform pruning of the same unpruned network; ship and verify both results.

    Args:
        given: arguments of the command line.
        network: `FILE.py:FUNCTION`.
        shape: shape of its input.
        task: the training task, as flags of `lathe search`.
        epochs: epochs of the unpruned network, the search, and the network that it finds.
    """
    table = profile(given, network, shape)
    pretrain, searched, finetune = (1, 1, 1) if given.small else epochs
    settings = ["--pretrain-epochs", pretrain, "--search-epochs", searched, "--finetune-epochs", finetune]
    common = [
        "--module",
        network,
        "--input",
        shape,
        "--table",
        table,
        *task,
        "--budget-fraction",
        given.budget,
        "--seed",
        given.seed,
    ]
    found = {}
    methods = {"pas": ()} if given.small else {"pas": (), "uniform": ("--baseline", given.out / "pas")}
    for method, more in methods.items():
        run, bundle = given.out / method, given.out / f"{method}-bundle"
        lathe("search", method, *common, *settings, *more, "--out", run)
        lathe("export", run, "--protocol", "fast", "--out", bundle)
        lathe("verify", bundle)
        found[method] = load(bundle).manifest
    show(given, found)


def show(given: argparse.Namespace, shipped: dict[str, Manifest]) -> None:
    """Print metric and latency of networks and of the unpruned one, measured in turns with each.

    Also write `OUT/result.json`.
    """
    first = next(iter(shipped.values()))
    assert first.metric
    rows = {
        **({"unpruned": (first.unpruned, None)} if first.unpruned else {}),
        **{name: (of.shipped, of.unpruned) for name, of in shipped.items()},
    }
    kept: dict[str, dict[str, float]] = {}
    print(f"| network | {first.metric.axis} | latency, us | of the unpruned, in turns |\n|---|---|---|---|")
    for name, (network, unpruned) in rows.items():
        score, measured = network.score, network.measured
        assert score
        assert measured
        against = compare_latency(measured, unpruned.measured) if unpruned and unpruned.measured else None
        ratio = f"{against.ratio:.2f} ({against.low:.2f} to {against.high:.2f})" if against else ""
        print(f"| {name} | {first.metric.figure(score)} | {measured.median_us:.1f} | {ratio} |")
        kept[name] = {first.metric.name: score.value, "us": measured.median_us}
    (given.out / "result.json").write_text(json.dumps(kept, indent=2) + "\n")
