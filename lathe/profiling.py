"""Measure a space or a block bundle, on this machine or on a fleet; write block bundles."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from latency import Workload, anchored, backends, files, outputs
from latency import profile as measure_all
from latency import protocol as protocols
from latency.anchored import Anchored
from latency.backends import Backend
from latency.backends.tensorrt import TensorRT
from latency.coverage import Covered, profile_adaptively
from latency.device import require_cores
from latency.errors import LatencyError, import_extra
from latency.profile import Event as ProfileEvent
from latency.protocol import Protocol
from latency.sentinel import Safeguards
from latency.shard import shard
from lathe import fleet
from lathe.fleet import Sharded
from lathe.spaces import space_of

if TYPE_CHECKING:
    from lathe.cli import BundleCommand, ProfileCommand
    from search.space import Space


DEFAULT_NETWORKS = 48


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """Result of `lathe bundle`."""

    bundle: str
    space: str
    precision: str
    blocks: int
    networks: int
    bytes: int
    sha256: str


def profile(command: "ProfileCommand") -> Iterator[ProfileEvent | Covered | Anchored | Sharded]:
    """Measure a space or a block bundle into a table, or resume a measurement."""
    timing = protocols.get(command.protocol)
    backends.require_known(command.backend)
    if command.engine == "local":
        require_cores(command.threads)
    anchored.require_flags(command.like or (), command.anchors, command.shard)
    fleet.require_flags(command)
    if command.like and command.coverage != "full":
        raise LatencyError(
            f"--coverage {command.coverage} interpolates, and --like transfers what is not measured: leave one of them "
            "out"
        )
    outputs.require_file(command.out, outputs.TABLE, flag="--out", parents=True)
    if command.save_timing_cache is not None:
        outputs.require_file(command.save_timing_cache, outputs.NEW, flag="--save-timing-cache", force=command.force)
    if command.engine == "ray":
        return fleet.profile(command)
    if command.space.endswith(".zip"):
        return _profile_bundle(command, timing)
    import_extra("torch", "train")
    space = space_of(command.space, command, command.classes)
    runner = _runner(command)
    from deploy.lowering import LOWERING_VERSION

    program = runner.name == "torch-cuda"
    works = _workloads(
        space, command.networks, command.seed, runner.precision, program=program, batch=command.batch or 1
    )
    works = shard(works, command.shard)
    return _measure(command, works, runner, timing, LOWERING_VERSION, space.name)


def _profile_bundle(command: "ProfileCommand", timing: Protocol) -> Iterator[ProfileEvent | Covered | Anchored]:
    from latency import blocks_zip

    for name in ("batch", "networks", "seed", "classes", "resolution", "channels", "cells"):
        if (value := getattr(command, name)) is not None:
            raise LatencyError(f"--{name} {value} comes too late for a bundle: give it to `lathe bundle`")
    bundle = blocks_zip.read(command.space)
    runner = _runner(command, bundle.index.precision)
    works = shard(bundle.workloads, command.shard)
    return _measure(command, works, runner, timing, bundle.index.lowering, bundle.index.space, bundle.sha256)


def _runner(command: "ProfileCommand", precision: Literal["fp32", "fp16"] | None = None) -> Backend:
    if (cache := command.timing_cache) is not None and not cache.is_file():
        raise LatencyError(
            f"--timing-cache {cache} does not exist: leave it out, and keep one for the next table by "
            "--save-timing-cache"
        )
    return backends.get(
        command.backend, threads=command.threads, precision=precision, timing_cache=command.timing_cache
    )


def _measure(
    command: "ProfileCommand",
    works: Sequence[Workload],
    runner: Backend,
    timing: Protocol,
    lowering: str,
    space: str,
    bundle_sha256: str = "",
) -> Iterator[ProfileEvent | Covered | Anchored]:
    cache = runner.timing_cache if isinstance(runner, TensorRT) and runner.name == "tensorrt" else None
    if command.save_timing_cache is not None and cache is None:
        raise LatencyError(
            f"--save-timing-cache {command.save_timing_cache}: backend {runner.name!r} has none: leave it out"
        )
    old = anchored.load_old_tables(command.like or (), lowering=lowering)
    measure = partial(
        measure_all,
        backend=runner,
        out=command.out,
        protocol=timing,
        lowering=lowering,
        space=space,
        safeguards=Safeguards(drift_limit=command.drift_limit),
        bundle_sha256=bundle_sha256,
        like=anchored.describe_tables(old),
    )
    if old:
        yield from anchored.profile_like(
            works, old, command.out, measure, anchors=command.anchors or anchored.DEFAULT_ANCHORS
        )
    elif command.coverage == "full":
        yield from measure(works)
    else:
        yield from profile_adaptively(works, command.out, measure, error=command.coverage_error)
    if cache and command.save_timing_cache is not None:
        cache.save(command.save_timing_cache)


def bundle(command: "BundleCommand") -> "tuple[list[Workload], Callable[[Iterable[Workload]], BundleFacts]]":
    """Return the workloads of a space's block bundle, and the function that writes them."""
    outputs.require_file(command.out, outputs.BLOCKS, flag="--out", force=command.force)
    import_extra("torch", "train")
    space = space_of(command.space, command, command.classes)
    from deploy.lowering import LOWERING_VERSION
    from latency import blocks_zip

    def write(works: "Iterable[Workload]") -> BundleFacts:
        index = blocks_zip.write(
            command.out,
            works,
            lowering=LOWERING_VERSION,
            space=space.name,
            precision=command.precision,
            force=command.force,
        )
        kinds = Counter(entry.kind for entry in index.entries)
        return BundleFacts(
            bundle=str(command.out),
            space=space.name,
            precision=index.precision,
            blocks=kinds["block"],
            networks=kinds["network"],
            bytes=command.out.stat().st_size,
            sha256=files.sha256(command.out),
        )

    return _workloads(space, command.networks, command.seed, command.precision, batch=command.batch), write


def _workloads(
    space: "Space",
    networks: int | None,
    seed: int | None,
    precision: Literal["fp32", "fp16"],
    *,
    program: bool = False,
    batch: int = 1,
) -> list[Workload]:
    from search.workloads import workloads

    count = DEFAULT_NETWORKS if networks is None else networks
    return workloads(space, networks=count, seed=seed or 0, precision=precision, program=program, batch=batch)
