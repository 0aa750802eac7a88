"""What the examples have in common: measure the layers, search by two methods within one budget, ship both networks, check them."""

import argparse
import json
from pathlib import Path

from deploy.bundle import Manifest, load
from deploy.validate import compare_latency
from lathe import cli


def options(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line of an example, with what it has of its own."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory of all that is made")
    parser.add_argument("--table", type=Path, help="a table of the network's layers, instead of measuring them")
    parser.add_argument("--small", action="store_true", help="an epoch of a few samples, and one search: seconds, not minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.6, help="share of the unpruned network's latency")
    return parser.parse_args()


def lathe(*words: object) -> None:
    """Run a command of Lathe in this process, and show it."""
    said = list(map(str, words))
    print("$ lathe", *said, flush=True)
    code = cli.parse(said).run()
    print(f"exit code {code}", flush=True)


def profile(given: argparse.Namespace, network: str, shape: str) -> Path:
    """The table of the network's layers on this machine."""
    if given.table:
        return given.table
    table = given.out / "layers.latency.jsonl"
    lathe("profile", network, "--input", shape, "--protocol", "fast", "--coverage", "adaptive", "--networks", 12, "--out", table)
    return table


def search(given: argparse.Namespace, network: str, shape: str, *task: str, epochs: tuple[int, int, int]) -> None:
    """Pruning-as-Search, then the same share of every layer's channels from the same unpruned network; both shipped and checked.

    Args:
        given: of the command line.
        network: `FILE.py:FUNCTION`.
        shape: of its input.
        task: what it is trained for, as flags of `lathe search`.
        epochs: of the unpruned network, of the search, and of what it finds.
    """
    table = profile(given, network, shape)
    pretrain, searched, finetune = (1, 1, 1) if given.small else epochs
    settings = ["--pretrain-epochs", pretrain, "--search-epochs", searched, "--finetune-epochs", finetune]
    common = ["--module", network, "--input", shape, "--table", table, *task, "--budget-fraction", given.budget, "--seed", given.seed]
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
    """The metric and the latency of networks, beside the unpruned one that was measured in turns with each; also in `OUT/result.json`."""
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
