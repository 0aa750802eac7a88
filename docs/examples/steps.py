"""What the examples have in common: measure the layers, search by two methods within one budget, ship both networks, check them."""

import argparse
import json
from pathlib import Path
from typing import Any

from deploy.bundle import Network, load
from lathe import cli


def options(parser: argparse.ArgumentParser | None = None) -> argparse.Namespace:
    """The command line of an example, with what it has of its own."""
    parser = parser or argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out"), help="directory of all that is made")
    parser.add_argument("--table", type=Path, help="a table of the network's layers, instead of measuring them")
    parser.add_argument("--small", action="store_true", help="an epoch of a few samples, and one network shipped: seconds, not minutes")
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
    for method, more in {"pas": (), "uniform": ("--baseline", given.out / "pas")}.items():
        run, bundle = given.out / method, given.out / f"{method}-bundle"
        lathe("search", method, *common, *settings, *more, "--out", run)
        if given.small and found:
            break
        lathe("export", run, "--protocol", "fast", "--out", bundle)
        lathe("verify", bundle)
        found[method] = load(bundle).manifest
    unpruned = found["pas"].unpruned
    assert unpruned
    show(given, found["pas"].metric, {"unpruned": unpruned, **{name: manifest.shipped for name, manifest in found.items()}})


def show(given: argparse.Namespace, metric: Any, networks: dict[str, Network]) -> None:
    """The metric and the latency of some networks, as a table and in `OUT/result.json`."""
    kept: dict[str, dict[str, float]] = {}
    lines = [f"| network | {metric.axis} | latency, us |", "|---|---|---|"]
    for name, network in networks.items():
        score, measured = network.score, network.measured
        assert score
        assert measured
        us = f"{measured.median_us:.1f} ({measured.low_us:.1f} to {measured.high_us:.1f})"
        lines.append(f"| {name} | {metric.figure(score)} | {us} |")
        kept[name] = {metric.name: score.value, "us": measured.median_us}
    (given.out / "result.json").write_text(json.dumps(kept, indent=2) + "\n")
    print("\n".join(lines))
