"""Wiring: each function is one command's work, made of the packages' own. Nothing here prints."""

import dataclasses
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from latency import Latency, LatencyTable, Workload, anchored, backends, check, diff, files, listing, merge, outputs
from latency import profile as measure_all
from latency import protocol as protocols
from latency.anchored import Anchored
from latency.backends import Backend
from latency.backends.tensorrt import TensorRT
from latency.check import Finding
from latency.coverage import Covered, profile_adaptively
from latency.device import require_cores
from latency.diff import Diff
from latency.errors import CoverageError, DeviceUnavailable, FingerprintMismatch, LatencyError, MissingExtra, require
from latency.listing import Family
from latency.profile import Event as ProfileEvent
from latency.protocol import Protocol
from latency.sentinel import Safeguards
from latency.shard import shard
from latency.units import interval, microseconds, ms_from_us, us_from_ms
from lathe import evidence, fleet
from lathe.flags import Milliseconds, image_shape, require_range
from lathe.fleet import Sharded

if TYPE_CHECKING:
    from deploy.bundle import Bundle as ShippedBundle
    from deploy.page import Row
    from deploy.verify import Verification
    from latency.backends.tensorrt import EngineSpec
    from latency.block import BlockSpec
    from lathe.cli import Bundle, Export, Paper, Profile, Report, TableCheck, TableDiff, TableShow
    from lathe.cli import Space as SpaceCommand
    from lathe.flags import Sizes
    from lathe.searches import Search
    from lathe.sweeps import Sweep, SweepBest
    from search.architecture import OtherDevice
    from search.budget import Budget
    from search.finished import FinishedRun
    from search.papers.latencies import Beside
    from search.record import Event as SearchEvent
    from search.space import Space
    from search.sweep import Outcome
    from search.task import Task

DEFAULT_NETWORKS = 48


@dataclass(frozen=True, kw_only=True)
class SpaceFacts:
    """What `lathe space` says; parameters and MACs are of the unpruned network, as trained and as deployed."""

    name: str
    size: int
    blocks: int
    params: int
    macs: int
    deployed_params: int
    deployed_macs: int


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """What `lathe space --arch` says of one network; MACs count a multiply-accumulate as one."""

    name: str
    arch: str
    depends_on_input: bool
    nominal_params: int
    """as NAS-Bench-201 counts them: of every edge, used or not"""
    nominal_macs: int
    params: int
    """of the edges that are used, as trained"""
    macs: int
    deployed_params: int
    deployed_macs: int
    latency: Latency | None
    """as a table predicts it"""


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What `lathe bundle` says."""

    bundle: str
    space: str
    precision: str
    blocks: int
    networks: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What `lathe table check` says."""

    findings: Sequence[Finding]
    again: str
    """command that goes on with the table"""
    new: str
    """command that measures a new one"""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What `lathe table diff` says."""

    tables: Sequence[LatencyTable]
    diffs: Sequence[Diff]
    """of every table but the first with the first"""


def space_of(name: str, sizes: "Sizes", classes: int | None = None) -> "Space":
    """A space by name, with the sizes that a command gives; a network that is traced needs the extra `train`."""
    from search import spaces

    if spaces.is_traced(name):
        require("torch", "train")

    given = {"resolution": sizes.resolution, "channels": sizes.channels, "cells_per_stage": sizes.cells}
    return spaces.get(name, classes=classes, **given, input_shape=sizes.input_shape)


def list_spaces(command: "SpaceCommand") -> tuple[str, ...]:
    """The name of every space.

    Raises:
        LatencyError: one space is named, too.
    """
    if command.space is not None:
        raise LatencyError(f"--list names every space: leave out {command.space!r}, or --list")
    from search import spaces

    return spaces.names()


def named_space(command: "SpaceCommand") -> "Space":
    """The space that a command is about.

    Raises:
        LatencyError: none is named.
        SearchError: it is unknown.
    """
    if command.space is None:
        raise LatencyError("name a space, such as `lathe space repvgg-mini`, or list all by `lathe space --list`")
    return space_of(command.space, command, command.classes)


def describe_space(command: "SpaceCommand") -> SpaceFacts:
    """Size of a space and of its unpruned network.

    Raises:
        LatencyError: there is a table, but no one network to predict.
    """
    if command.table is not None:
        raise LatencyError(f"--table {command.table} predicts one network: name a cell by --arch, or leave the table out")
    space = named_space(command)
    return SpaceFacts(
        name=space.name,
        size=space.size(),
        blocks=len(space.blocks()),
        params=space.parameters(deployed=False),
        macs=space.macs(deployed=False),
        deployed_params=space.parameters(),
        deployed_macs=space.macs(),
    )


def describe_cell(command: "SpaceCommand", text: str, warn: Callable[[str], None]) -> CellFacts:
    """What one network of a space of cells is, by its architecture string.

    Raises:
        SearchError: the space is not one of cells, or the string is not one of its architectures.
        LatencyError: the table is damaged, or does not cover the network.
    """
    space = named_space(command)
    from search.errors import SearchError
    from search.spaces import Cells
    from search.spaces.cells import names

    if not isinstance(space, Cells):
        raise SearchError(f"{space.name} has no architecture strings: leave --arch out, or choose {' or '.join(names())}")
    choice = space.parse(text)
    blocks, nominal = space.network(choice), space.nominal(choice)
    return CellFacts(
        name=space.name,
        arch=space.text(choice),
        depends_on_input=space.connected(choice),
        nominal_params=nominal.params,
        nominal_macs=nominal.macs,
        params=space.parameters(blocks, deployed=False),
        macs=space.macs(blocks, deployed=False),
        deployed_params=space.parameters(blocks),
        deployed_macs=space.macs(blocks),
        latency=None if command.table is None else _predicted(load_table(command.table, warn), space, blocks, command),
    )


def profile(command: "Profile") -> Iterator[ProfileEvent | Covered | Anchored | Sharded]:
    """Measure a space or a block bundle into a table, or go on measuring it."""
    timing = protocols.get(command.protocol)
    backends.require_known(command.backend)
    if command.engine == "local":
        require_cores(command.threads)
    anchored.require_flags(command.like or (), command.anchors, command.shard)
    fleet.require_flags(command)
    if command.like and command.coverage != "full":
        raise LatencyError(f"--coverage {command.coverage} interpolates, and --like transfers what is not measured: leave one of them out")
    outputs.require_file(command.out, outputs.TABLE, flag="--out", parents=True)
    if command.save_timing_cache is not None:
        outputs.require_file(command.save_timing_cache, outputs.NEW, flag="--save-timing-cache", force=command.force)
    if command.engine == "ray":
        return fleet.profile(command)
    if command.space.endswith(".zip"):
        return _profile_bundle(command, timing)
    require("torch", "train")
    space = space_of(command.space, command, command.classes)
    runner = _runner(command)
    from deploy.lowering import LOWERING_VERSION

    program = runner.name == "torch-cuda"
    works = _workloads(space, command.networks, command.seed, runner.precision, program=program, batch=command.batch or 1)
    works = shard(works, command.shard)
    return _measure(command, works, runner, timing, LOWERING_VERSION, space.name)


def _profile_bundle(command: "Profile", timing: Protocol) -> Iterator[ProfileEvent | Covered | Anchored]:
    from latency import blocks_zip

    for name in ("batch", "networks", "seed", "classes", "resolution", "channels", "cells"):
        if (found := getattr(command, name)) is not None:
            raise LatencyError(f"--{name} {found} comes too late for a bundle: give it to `lathe bundle`")
    bundle = blocks_zip.read(command.space)
    runner = _runner(command, bundle.index.precision)
    works = shard(bundle.workloads, command.shard)
    return _measure(command, works, runner, timing, bundle.index.lowering, bundle.index.space, bundle.sha256)


def _runner(command: "Profile", precision: Literal["fp32", "fp16"] | None = None) -> Backend:
    if (cache := command.timing_cache) is not None and not cache.is_file():
        raise LatencyError(f"--timing-cache {cache} does not exist: leave it out, and keep one for the next table by --save-timing-cache")
    return backends.get(command.backend, threads=command.threads, precision=precision, timing_cache=command.timing_cache)


def _measure(
    command: "Profile",
    works: Sequence[Workload],
    runner: Backend,
    timing: Protocol,
    lowering: str,
    space: str,
    bundle_sha256: str = "",
) -> Iterator[ProfileEvent | Covered | Anchored]:
    known = runner.timing_cache if isinstance(runner, TensorRT) and runner.name == "tensorrt" else None
    if command.save_timing_cache is not None and known is None:
        raise LatencyError(f"--save-timing-cache {command.save_timing_cache}: backend {runner.name!r} has none: leave it out")
    old = anchored.old_tables(command.like or (), lowering=lowering)
    measure = partial(
        measure_all,
        backend=runner,
        out=command.out,
        protocol=timing,
        lowering=lowering,
        space=space,
        safeguards=Safeguards(drift_limit=command.drift_limit),
        bundle_sha256=bundle_sha256,
        like=anchored.named(old),
    )
    if old:
        yield from anchored.profile_like(works, old, command.out, measure, anchors=command.anchors or anchored.DEFAULT_ANCHORS)
    elif command.coverage == "full":
        yield from measure(works)
    else:
        yield from profile_adaptively(works, command.out, measure, error=command.coverage_error)
    if known and command.save_timing_cache is not None:
        known.save(command.save_timing_cache)


def bundle(command: "Bundle") -> "tuple[list[Workload], Callable[[Iterable[Workload]], BundleFacts]]":
    """What a block bundle of a space holds, and what writes it."""
    outputs.require_file(command.out, outputs.BLOCKS, flag="--out", force=command.force)
    require("torch", "train")
    space = space_of(command.space, command, command.classes)
    from deploy.lowering import LOWERING_VERSION
    from latency import blocks_zip

    def write(works: "Iterable[Workload]") -> BundleFacts:
        index = blocks_zip.write(
            command.out, works, lowering=LOWERING_VERSION, space=space.name, precision=command.precision, force=command.force
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


def load_table(path: Path, warn: Callable[[str], None]) -> LatencyTable:
    """A table from disk; what a person should know about the file is told to `warn`."""
    return _warned(LatencyTable.load(path), warn)


def _warned(table: LatencyTable, warn: Callable[[str], None]) -> LatencyTable:
    for warning in table.warnings:
        warn(warning)
    return table


def show_table(command: "TableShow", warn: Callable[[str], None]) -> LatencyTable:
    """A table from disk, drawn into a file where that is asked for."""
    if command.plot is None:
        return load_table(command.table, warn)
    from latency.plot import plot, require_picture

    require_picture(command.plot, force=command.force)
    table = load_table(command.table, warn)
    plot(table, command.plot, force=command.force)
    return table


def list_rows(command: "TableShow", warn: Callable[[str], None]) -> list[Family]:
    """Rows of a table by family.

    Raises:
        LatencyError: no family is of the name that is given, or flags do not go together.
    """
    given = [f"--{name}" for name in ("csv", "markdown", "json", "plot") if getattr(command, name)]
    if len(given) > 1 or given[:1] in (["--json"], ["--plot"]):
        raise LatencyError(f"{' and '.join(given)} with rows: give one of --csv and --markdown; without --rows, --json has every row, too")
    return listing.families(load_table(command.table, warn), command.family or "")


def check_table(command: "TableCheck", warn: Callable[[str], None]) -> Checked:
    """What is wrong or doubtful in a table, with what it lacks of its space where that is known."""
    table = LatencyTable.load(command.table)  # a torn line is among the findings
    name, header = command.space or table.header.space, table.header
    source = f"{shlex.quote(name or 'SPACE')}{command.words_with_classes()}"
    new = header.command(source, "NEW.latency.jsonl")
    return Checked(
        findings=check.check(table, _expected(command, name, warn)),
        again=new if table.old else header.command(source, table.path),
        new=new,
    )


def _expected(command: "TableCheck", name: str, warn: Callable[[str], None]) -> list[str]:
    """Keys of the blocks that a table should cover; none, with a warning, where the space that it names cannot be read here."""
    from search.errors import SearchError

    if not name:
        return []
    try:
        return [spec.key for spec in space_of(name, command, command.classes).blocks()]
    except (MissingExtra, SearchError) as error:
        if command.space is not None:
            raise
        warn(f"what {command.table} lacks of its space {name} is not known: {error}")
        return []


def diff_tables(command: "TableDiff", warn: Callable[[str], None]) -> Compared:
    """Tables compared with the first, drawn into a file where that is asked for.

    Raises:
        LatencyError: there is one table, or two have no block in common.
    """
    reference, *paths = command.tables
    if not paths:
        raise LatencyError(f"{reference} is one table: give two or more, of which each is compared with the first")
    if command.plot is not None:
        from latency.plot import require_picture

        require_picture(command.plot, force=command.force)
    first, *others = tables = [load_table(path, warn) for path in (reference, *paths)]
    compared = Compared(tables=tables, diffs=[diff.diff(first, other) for other in others])
    if command.plot is not None:
        from latency.plot import plot_diffs

        plot_diffs(tables, compared.diffs, command.plot, force=command.force)
    return compared


def merge_tables(paths: tuple[Path, ...], out: Path, warn: Callable[[str], None]) -> LatencyTable:
    """Tables of equal devices joined."""
    return _warned(merge.merge(paths, out), warn)


def search(command: "Search", warn: Callable[[str], None]) -> "Iterator[SearchEvent]":
    """Search a space, or go on with a search."""
    outputs.require_directory(command.out)
    require("torch", "train")
    from search import board, methods, record, session
    from search.budget import Budget, Limit
    from search.method import Problem
    from search.methods.settings import recipe

    if (command.out / record.RUN).exists():
        record.read_run(command.out)  # a damaged run is refused before data are loaded
    if command.tensorboard:
        board.require_tensorboard()
    table = command.table and load_table(command.table, warn)
    if table:
        _require_table(table, command)
    others = _other_tables(command, table, warn)
    space = space_of(command.space, command)
    task = _task(command, space.input_shape)
    if task.labels:
        space = space_of(command.space, command, len(task.labels))
    methods.require_space(command.settings, space)
    for each in (table, *(other for other, _ in others)):
        if each:
            _predicted(each, space, space.network(), command)
    if command.budget_ms is None and command.budget_fraction is None and not command.settings.needs_budget:
        budget = _no_budget(space, table)
    else:
        budget = _latency_budget(command, space, table) if table else _macs_budget(command, space)
    given = {name: getattr(command.settings, name) for name in command.given}
    settings = recipe(type(command.settings), len(task.train), command.recipe, **given)
    also = tuple(Limit(other, Budget(us=us)) for other, us in others)
    method = methods.method(settings, Problem(space=space, task=task, table=table, budget=budget, also=also))
    events = session.run(method, command.out, baseline=command.baseline)
    return board.with_tensorboard(events, command.out) if command.tensorboard else events


def _other_tables(command: "Search", table: LatencyTable | None, warn: Callable[[str], None]) -> list[tuple[LatencyTable, float]]:
    """The tables of further devices, each with its budget in microseconds."""
    known, others = {table.sha256 if table else ""}, []
    for word in command.also:
        path, _, number = word.rpartition(":")
        try:
            ms = float(number)
        except ValueError:
            path, ms = "", 0.0
        if not path:
            raise LatencyError(f"--also {word!r} is not TABLE:MILLISECONDS: give it as --also other.latency.jsonl:1.2")
        if table is None:
            raise LatencyError(f"--also {word} is of a further device: give --table, the first one's, and its budget too")
        require_range(f"--also {path}", ms, Milliseconds)
        other = load_table(Path(path), warn)
        other.require(batch=table.header.batch)
        if other.sha256 in known:
            raise LatencyError(f"--also {word}: that table is given twice: give each device once")
        known.add(other.sha256)
        others.append((other, us_from_ms(ms)))
    return others


def _task(command: "Search", input_shape: tuple[int, int, int]) -> "Task":
    """What a search trains its networks for."""
    from search import data, own_task

    if command.task is not None:
        if command.data != "digits":
            raise LatencyError(f"--task {command.task} brings its own samples: leave out --data {command.data}")
        return own_task.load(command.task)
    channels, height, width = input_shape
    if channels != 3 or height != width:
        shape = f"{channels}x{height}x{width}"
        raise LatencyError(f"--data {command.data} shows square images of three channels, and the network is for {shape}: give a --task")
    return data.load(command.data, height)


def sweep(command: "Sweep") -> "Iterator[Outcome]":
    """Search at several budgets, seeds and settings, or go on with that; then measure each network; yields each row as it is known."""
    from deploy import engine
    from lathe import cli
    from search import sweep as sweeps
    from search.cluster import Cluster

    outputs.require_directory(command.out)
    values: dict[str, list[str]] = {}
    for word in command.set:
        name, given, listed = word.partition("=")
        if not given or not name or not all(found := listed.split(",")):
            raise LatencyError(f"--set {word!r} is not NAME=VALUE[,VALUE]: give it as --set beta=0.1,0.3")
        name = name.replace("-", "_")
        if name in values:
            raise LatencyError(f"--set {name} is given twice: give all its values at once, separated by commas")
        values[name] = found
    budgets = [(f"{ms:g} ms", ("--budget-ms", str(ms))) for ms in command.budget_ms or ()]
    budgets += [(f"{share:g}x", ("--budget-fraction", str(share))) for share in command.budget_fraction or ()]
    plan = sweeps.plan(command.method, tuple(command.common()), budgets or [("no budget", ())], command.seeds, values)
    for member in plan.members:
        cli.parse(["search", *member.words, "--out", str(command.out / sweeps.RUNS / member.name)])
    measured_with = load_table(command.table, lambda _: None).header.runtime.name.partition(":")[0] if command.table else "onnxruntime"
    target = engine.target_of(command.target or measured_with)
    fleet.require_engine(command)
    if command.engine == "ray":
        with Cluster(command.address) as cluster:
            needs = {"CPU": 1.0} | ({"GPU": command.gpus_per_run} if command.gpus_per_run else {})
            cluster.require(needs)
            sweeps.begin(plan, command.out)
            yield from sweeps.run_on(cluster, plan, command.out, needs)
    else:
        sweeps.begin(plan, command.out)
        yield from sweeps.run(plan, command.out, command.jobs)
    if not command.no_measure:
        yield from sweeps.measure(plan, command.out, target)
    sweeps.write_results(command.out, sweeps.outcomes(command.out))


def sweep_best(command: "SweepBest") -> "Outcome":
    """The run of a sweep that is to be exported for a budget."""
    from search import sweep as sweeps

    return sweeps.best(command.sweep, us_from_ms(command.budget_ms))


def _require_table(table: LatencyTable, command: "Search") -> None:
    """Refuse a table of another backend, precision or machine than was asked for."""
    header = table.header
    if command.backend is not None and command.backend != header.runtime.name:
        backends.require_known(command.backend)
        raise FingerprintMismatch(
            f"table {command.table}", "runtime.name", header.runtime.name, command.backend, "give a table of that backend"
        )
    if command.this_device:
        header.require_origin("", what=f"table {command.table}", mend="give one that was measured on this device, or omit --this-device")
    device = backends.get(header.runtime.name, threads=max(header.device.threads, 1)).device if command.this_device else None
    table.require(device=device, precision=command.precision)


def _predicted(table: LatencyTable, space: "Space", blocks: "Sequence[BlockSpec]", sizes: "Sizes") -> Latency:
    """Latency of one network of a space.

    Raises:
        CoverageError: the table is of another space, or lacks a block; has the whole command that measures it.
    """
    try:
        return table.predict(blocks)
    except CoverageError as error:
        own, header = table.header.space == space.name, table.header
        reason = error.reason if own else f"{table.path} is of the space {header.space or '-'}, not of {space.name}"
        again = header.command(space_words(space, sizes), table.path if own else "NEW.latency.jsonl")
        raise CoverageError(reason, f"measure it with `{again}`") from error


def space_words(space: "Space", sizes: "Sizes") -> str:
    """A space as the command line names it, with its sizes; a network of one's own has a number of classes of its own."""
    from search.spaces import own

    classes = "" if own.is_own(space.name) else f" --classes {space.classes}"
    return f"{shlex.quote(space.name)}{classes}{sizes.words()}"


def _latency_budget(command: "Search", space: "Space", table: LatencyTable) -> "Budget":
    """The budget in microseconds; a fraction is one of the unpruned network, as measured where the table has it."""
    from search.budget import Budget

    if (command.budget_ms is None) == (command.budget_fraction is None):
        raise LatencyError(
            "a search needs one budget: give --budget-ms 0.5 (milliseconds) or --budget-fraction 0.6 (of the unpruned network)"
        )
    if command.budget_ms is not None:
        return Budget(us=us_from_ms(command.budget_ms))
    assert command.budget_fraction is not None
    unpruned = space.network()
    return Budget(us=command.budget_fraction * (table.measured_network(unpruned) or table.predict(unpruned)).us)


def _no_budget(space: "Space", table: LatencyTable | None) -> "Budget":
    """One that every network of a space is within."""
    from search.budget import Budget

    return Budget(us=table.predict(space.network()).high_us) if table else Budget(macs=space.macs())


def _macs_budget(command: "Search", space: "Space") -> "Budget":
    """The budget in multiply-accumulates, where there is no table."""
    from search.budget import Budget

    if command.budget_ms is not None or command.budget_fraction is None:
        raise LatencyError(
            "without --table nothing is known of latency, and MACs are the cost: give --budget-fraction 0.5 (of the network's MACs)"
        )
    return Budget(macs=command.budget_fraction * space.macs())


_OPTIONS = {
    "builds": ("tensorrt", "tensorrt-rtx"),
    "workspace_mib": ("tensorrt", "tensorrt-rtx"),
    "optimization_level": ("tensorrt", "tensorrt-rtx"),
    "timing_cache": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "compute_capability": ("tensorrt-rtx",),
}
"""Flags of an engine's build, with the targets that have them."""


def by_target(command: "Export") -> "list[Export]":
    """One command for each target; of several each writes to its name in --out, with the options of builds that it has.

    Raises:
        DeployError: a target is unknown or given twice, or --out has something else.
    """
    if len(command.target) == 1:
        return [command]
    from deploy import engine
    from deploy.errors import DeployError

    targets = [engine.target_of(name) for name in command.target]
    if len(set(targets)) < len(targets):
        raise DeployError(f"--target {' '.join(targets)} names one twice: give each once")
    outputs.require_directory(command.out)
    others = sorted(path.name for path in command.out.iterdir() if path.name not in engine.TARGETS) if command.out.is_dir() else []
    if others:
        raise DeployError(f"{command.out} holds {others[0]}, which is not a bundle of a target; give another --out")
    unfit = [{name for name, fit in _OPTIONS.items() if target not in fit and any(one in fit for one in targets)} for target in targets]
    given = {field.name: field.default for field in dataclasses.fields(command)}
    return [
        dataclasses.replace(command, target=(target,), out=command.out / target, **{name: given[name] for name in names})
        for target, names in zip(targets, unfit, strict=True)
    ]


def export(command: "Export", on_step: Callable[[str], None]) -> "ShippedBundle":
    """Ship a run, or an ONNX file."""
    timing = protocols.get(command.protocol)
    outputs.require_directory(command.out)
    require_cores(command.threads or 1)
    from deploy import bundle as shipped
    from deploy import cleaning, engine, onnxfile, shapes, triton
    from deploy.errors import DeployError
    from deploy.form import Build, Form

    (named,) = command.target
    target, spec = engine.target_of(named), _engine_spec(command)
    engine.require_options(target, spec, command.timing_cache, command.builds)
    engine.runtime_of(target)
    shipped.refuse_occupied(command.out)
    if command.layout == "triton":
        triton.require(target, _repository(command))
    fixed = shapes.parse_spans(command.shape)
    require("torch", "train")
    from search.spaces import own

    ship = partial(
        _shipped,
        command,
        target=target,
        form=Form(precision=command.precision, io=command.io, shapes=fixed, explain=command.explain),
        build=Build(spec=spec, count=command.builds, timing_cache=command.timing_cache),
        out=command.out,
        protocol=timing,
        on_step=on_step,
    )
    if own.is_own(str(command.source)):
        return _export_own(command, ship)
    if given := next((flag for flag in ("weights", "input") if getattr(command, flag) is not None), None):
        raise DeployError(f"--{given} is of a network of one's own, FILE.py:FUNCTION: leave it out for {command.source}")
    if not os.path.lexists(command.source):
        raise DeployError(f"{command.source} does not exist: give the directory of a finished search, MODEL.onnx or FILE.py:FUNCTION")
    if not command.source.is_dir():
        if command.batch is not None:
            raise DeployError(f"--batch {command.batch}: the batch of MODEL.onnx is in its shapes: give --shape, if they are dynamic")
        model = onnxfile.read(command.source)
        found = evidence.of(command, partial(cleaning.input_shape, model, fixed))
        return ship(
            model,
            budget_ms=command.budget_ms,
            threads=1 if command.threads is None else command.threads,
            provenance={"onnx": command.source.name, **found.facts},
            **found.arguments,
        )
    if (command.source / shipped.MANIFEST).is_file():
        source, model = command.source, command.source / shipped.ONNX
        raise DeployError(f"{source} is a shipped bundle: `lathe verify {source}` checks it; to ship it anew export {model}")
    for flag in ("samples", "labels", "metric"):
        if (value := getattr(command, flag)) not in (None, ()):
            raise DeployError(f"--{flag} {value[0] if flag == 'samples' else value}: a run is validated on its own data: leave it out")
    if command.shape:
        raise DeployError(f"--shape {command.shape[0]}: a run has the input shape of its architecture: leave it out")
    return _export_run(command, ship)


def _repository(command: "Export") -> Path:
    return command.out.with_name(f"{command.out.name}.triton")


def _shipped(command: "Export", *arguments: Any, **options: Any) -> "ShippedBundle":
    """A bundle, with the model repository beside it that the command asks for."""
    import deploy
    from deploy import triton

    made = deploy.export(*arguments, **options)
    if command.layout == "triton":
        triton.write(made, _repository(command))
    return made


def _export_own(command: "Export", ship: "Callable[..., ShippedBundle]") -> "ShippedBundle":
    from deploy.errors import DeployError
    from search.network import load_weights
    from search.spaces import own

    if command.shape:
        raise DeployError(f"--shape {command.shape[0]}: is of MODEL.onnx; give --input 3x224x224")
    name = str(command.source)
    example = own.example_input(name, image_shape(command.input))
    example = example.expand(command.batch or 1, *example.shape[1:]).clone()
    network, provenance = own.maker(name)(), {"module": name}
    if command.weights is not None:
        load_weights(network, command.weights, {}, mend="write it as safetensors.torch.save_file(model.state_dict(), PATH)")
        provenance["weights_sha256"] = files.sha256(command.weights)
    found = evidence.of(command, lambda: example.shape)
    return ship(
        network,
        example,
        budget_ms=command.budget_ms,
        threads=1 if command.threads is None else command.threads,
        provenance={**provenance, **found.facts},
        **found.arguments,
    )


def _export_run(command: "Export", ship: "Callable[..., ShippedBundle]") -> "ShippedBundle":
    import torch

    from deploy.errors import DeployError
    from search import data, finished, own_task, record
    from search.spaces import own

    run = command.source
    found = finished.load(run)
    architecture, model, unpruned = found.architecture, found.network(), found.unpruned()
    if architecture.predicted and command.batch not in (None, architecture.batch):
        raise DeployError(
            f"--batch {command.batch}: the run's budget and prediction are of batch {architecture.batch}, that of its table: leave it out, "
            f"or search with a table of `lathe profile SPACE --batch {command.batch}`"
        )
    if own.is_own(architecture.data):
        task = own_task.load(architecture.data, found.run.data_sha256)
    else:
        task = data.load(architecture.data, architecture.input_shape[1])
    inputs, targets = task.held_out_batch(torch.arange(len(task.held_out)))
    devices = _devices(found)
    home = next((device for device in devices if _is_here(device, command.target[0], _threads(device, command))), None)
    threads = _threads(home or (devices[0] if devices else None), command)
    budget_ms = ms_from_us(home.budget_us) if home and command.budget_ms is None else command.budget_ms
    provenance = {
        f"not run on {device.name}": f"predicted {interval(device.predicted)} by the table {device.table_sha256[:16]}, "
        f"the budget is {microseconds(device.budget_us)}"
        for device in (devices if len(devices) > 1 else ())
        if device is not home
    }
    if budget_ms is None and not devices:
        provenance["no budget"] = "the search had no latency table, and counted MACs: give --budget-ms to judge"
    elif budget_ms is None:
        where = " and ".join(device.name for device in devices)
        provenance["no budget"] = (
            f"the run's budget and prediction are of {where}, not of {command.target[0]} here: give --budget-ms to judge"
        )
    told = [record.ARCHITECTURE, record.RUN, record.HISTORY, *([record.USAGE] if (run / record.USAGE).exists() else [])]
    return ship(
        model,
        torch.zeros(command.batch or architecture.batch, *architecture.input_shape),
        samples=inputs,
        labels=targets if task.labels else None,
        quality=None if task.labels else task.quality(model, inputs, targets),
        baseline=unpruned,
        budget_ms=budget_ms,
        threads=threads,
        predicted=home and home.predicted,
        predicted_baseline=home and found.result.unpruned and home.largest,
        classes=architecture.labels,
        preprocessing=msgspec.to_builtins(architecture.preprocessing or {}),
        provenance={
            **provenance,
            "method": architecture.method,
            "space": architecture.name,
            "seed": str(architecture.seed),
            "weights": files.sha256(run / record.WEIGHTS),
        },
        attachments={name: files.read_bytes(run / name) for name in told},
    )


def _engine_spec(command: "Export") -> "EngineSpec | None":
    """How an engine is built, as the command line says; None where it says nothing."""
    from latency.backends.tensorrt import EngineSpec

    default = EngineSpec()
    spec = EngineSpec(
        workspace_mib=command.workspace_mib or 0,
        optimization_level=default.optimization_level if command.optimization_level is None else command.optimization_level,
        version_compatible=command.version_compatible,
        hardware_compatible=command.hardware_compatible,
        compute_capabilities=command.compute_capability or (),
    )
    return None if spec == default else spec


def _devices(found: "FinishedRun") -> "list[OtherDevice]":
    """Every device that a run has a budget and a prediction for, that of its --table first."""
    from search.architecture import OtherDevice

    architecture, unpruned = found.architecture, found.result.unpruned
    device, runtime, budget_us, predicted = architecture.device, architecture.runtime, architecture.budget_us, architecture.predicted
    if device is None or runtime is None or budget_us is None or predicted is None:
        return []
    largest = (unpruned and unpruned.predicted) or predicted
    table = architecture.table_sha256
    first = OtherDevice(device=device, runtime=runtime, table_sha256=table, budget_us=budget_us, predicted=predicted, largest=largest)
    return [first, *architecture.also]


def _threads(device: "OtherDevice | None", command: "Export") -> int:
    """Of the CPU runtime: those that are asked for, or else those of a device's table."""
    return command.threads or max(1, device.device.threads if device else 1)


def _is_here(known: "OtherDevice", target: str, threads: int) -> bool:
    """Whether what a target runs on here is a device of a run."""
    if known.runtime.name != target:
        return False
    try:
        here = backends.get(target, threads=threads)
    except DeviceUnavailable:
        return True  # nothing is measured here, so nothing is compared with it
    return (here.device, here.runtime) == (known.device, known.runtime)


def verify(directory: Path) -> "list[Callable[[Callable[[str], None]], Verification]]":
    """What checks a bundle again, or those of several targets in a directory, each called with what is told of its steps."""
    import deploy
    from deploy import engine
    from deploy.bundle import MANIFEST

    each = [directory / target for target in engine.TARGETS if (directory / target / MANIFEST).is_file()]
    return [
        lambda on_step, one=one: deploy.verify(one, on_step=on_step)
        for one in (each if each and not (directory / MANIFEST).exists() else [directory])
    ]


def published_latencies(command: "Paper", warn: Callable[[str], None]) -> "tuple[list[Beside], list[LatencyTable]]":
    """Latencies as papers print them beside those of tables, and the tables."""
    from search.papers import latencies

    tables = [load_table(path, warn) for path in command.table]
    return latencies.beside(tables), tables


def report(command: "Report", warn: Callable[[str], None]) -> "tuple[Path, tuple[Row, ...]]":
    """Write the page of a run or a bundle; returns where it is, and its main table."""
    from deploy.page import require_page
    from search.report import render

    page = command.out or Path(f"{command.source.resolve()}.html")
    require_page(page, force=command.force)
    return page, render(command.source, page, command.table and load_table(command.table, warn), force=command.force)
