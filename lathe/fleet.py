"""`lathe profile --engine ray`.

Measure the shards of a table as tasks of a Ray cluster, one per device, and merge them.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latency import merge, outputs
from latency.errors import LatencyError

if TYPE_CHECKING:
    from lathe.cli import ProfileCommand
    from lathe.sweeps import SweepCommand

OWN = ("space", "out", "shard", "engine", "address", "shards", "resources", "json")
"""Flags of `lathe profile` that are not passed on to its shards."""


@dataclass(frozen=True)
class Sharded:
    """Event: a shard has ended, as number `done` of `total`."""

    shard: str
    done: int
    total: int


def require_flags(command: "ProfileCommand") -> None:
    """Require the flags to be compatible.

    Raises:
        LatencyError: they are not; names one to leave out.
    """
    if command.engine == "local":
        for name in ("address", "shards", "resources"):
            if value := getattr(command, name):
                given = " ".join(value) if isinstance(value, tuple) else value
                raise LatencyError(f"--{name} {given} is of a Ray cluster: give --engine ray too")
        return
    if command.shard != "1/1":
        raise LatencyError(
            f"--shard {command.shard} is of one device: --engine ray measures all shards, give their number by --shards"
        )
    if command.save_timing_cache is not None:
        raise LatencyError(
            f"--save-timing-cache {command.save_timing_cache}: each part of --engine ray has one of its own: leave it "
            "out"
        )
    if command.like:
        raise LatencyError("--like measures too few blocks for --engine ray: leave one of them out")


def require_engine(command: "SweepCommand") -> None:
    """Require the flags of `lathe sweep` to be compatible."""
    if command.engine == "ray" and command.jobs != 1:
        raise LatencyError(
            f"--jobs {command.jobs} is of --engine local: Ray runs as many searches at once as the cluster has room for"
        )
    if command.engine == "local" and (given := command.address or command.gpus_per_run):
        raise LatencyError(
            f"--{'address' if command.address else 'gpus-per-run'} {given} is of a Ray cluster: give --engine ray too"
        )


def profile(command: "ProfileCommand") -> Iterator[Sharded]:
    """Measure the remaining shards, each as a task, then merge all into the table.

    Raises:
        LatencyError: a shard failed, and the same command resumes it; or the table already exists.
        SearchError: there is no such cluster, or no node has the requested resources.
    """
    from search.cluster import Cluster, last_words, run_lathe

    resources = _resources(command)
    outputs.require_file(command.out, outputs.NEW, flag="--out", parents=True)
    count, where = command.shards or 1, folder(command.out.absolute())
    parts = {
        shard: where / f"{shard}.latency.jsonl" for shard in (f"{index}-of-{count}" for index in range(1, count + 1))
    }
    with Cluster(command.address) as cluster:
        cluster.require_resources(resources)
        where.mkdir(parents=True, exist_ok=True)
        tasks = {}
        for shard, part in parts.items():
            words = [
                "profile",
                command.space,
                *_flags(command),
                "--shard",
                shard.replace("-of-", "/"),
                "--out",
                str(part),
            ]
            tasks[shard] = cluster.submit(f"shard {shard}", run_lathe, words, _log(part), Path.cwd(), needs=resources)
        failed = []
        for done, (shard, code, why) in enumerate(cluster.ended(tasks), 1):
            if code:
                failed.append(f"shard {shard} failed ({why or last_words(_log(parts[shard]), code)})")
            yield Sharded(shard, done, count)
    if failed:
        raise LatencyError(f"{failed[0]}: the same command goes on with what is left")
    merge.merge(list(parts.values()), command.out)


def folder(out: Path) -> Path:
    """Return the directory of a table's shards and their logs."""
    return out.with_name(f"{out.name}.shards")


def _log(part: Path) -> Path:
    return part.with_suffix(".log")


def _resources(command: "ProfileCommand") -> dict[str, float]:
    """Return the resources that a shard needs, by Ray's names."""
    on_cpu = command.backend.partition(":")[0] in ("replay", "simulated") or command.backend in (
        "onnxruntime",
        "onnxruntime:cpu",
    )
    amounts = {"CPU": float(command.threads), "GPU": 0.0 if on_cpu else 1.0}
    for word in command.resources:
        name, _, number = word.partition("=")
        try:
            amount = float(number or 1)
        except ValueError:
            amount = 0.0
        if not name or not 0 < amount < 1e9:
            raise LatencyError(
                f"--resources {word!r} is not NAME or NAME=AMOUNT: give it as `ray start --resources` names it"
            )
        amounts[name] = amount
    return {name: amount for name, amount in amounts.items() if amount}


def _flags(command: "ProfileCommand") -> Iterator[str]:
    """Yield the flags that every shard gets, as on the command line."""
    for field in dataclasses.fields(command):
        value = getattr(command, field.name)
        if field.name not in OWN and value != field.default:
            yield f"--{field.name.replace('_', '-')}"
            if value is not True:
                yield from map(str, value) if isinstance(value, tuple) else (str(value),)
