"""Wiring: each function is one command's work, made of the packages' own. Nothing here prints."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latency import LatencyTable, Workload, backends, check, diff, merge
from latency import profile as measure_all
from latency import protocol as protocols
from latency.check import Finding
from latency.coverage import Covered, profile_adaptively
from latency.diff import Diff
from latency.errors import FingerprintMismatch, LatencyError, require
from latency.profile import Event as ProfileEvent
from latency.protocol import Protocol

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.report import Row
    from deploy.verify import Verification
    from lathe.cli import Export, Search
    from search.record import Event as SearchEvent
    from search.space import Space

METHODS = ("pas",)


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


def space_of(name: str, *, classes: int | None = None, resolution: int | None = None) -> "Space":
    """A space by name; needs the extra `train`."""
    require("torch", "train")
    from search import spaces

    return spaces.get(name, classes=classes, resolution=resolution)


def describe_space(name: str, *, classes: int | None = None, resolution: int | None = None) -> SpaceFacts:
    """Size of a space and of its unpruned network."""
    space = space_of(name, classes=classes, resolution=resolution)
    return SpaceFacts(
        name=space.name,
        size=space.size(),
        blocks=len(space.blocks()),
        params=space.parameters(deployed=False),
        macs=space.macs(deployed=False),
        deployed_params=space.parameters(),
        deployed_macs=space.macs(),
    )


def profile_space(
    name: str,
    *,
    out: Path,
    backend: str,
    protocol: str,
    threads: int,
    coverage: Literal["full", "adaptive"],
    coverage_error: float,
    networks: int,
    seed: int,
    classes: int | None,
    resolution: int | None,
) -> Iterator[ProfileEvent | Covered]:
    """Measure a space into a table, or go on measuring it."""
    timing = protocols.get(protocol)
    space = space_of(name, classes=classes, resolution=resolution)
    runner = backends.get(backend, threads=threads)
    from deploy.lowering import LOWERING_VERSION
    from search.workloads import workloads

    if networks < 0:
        raise LatencyError(f"--networks must be 0 or more, found {networks}")

    def measure(some: Sequence[Workload]) -> Iterator[ProfileEvent]:
        return measure_all(some, runner, out, protocol=timing, lowering=LOWERING_VERSION, space=space.name)

    everything = workloads(space, networks=networks, seed=seed, precision=runner.precision)
    return profile_adaptively(everything, out, measure, error=coverage_error) if coverage == "adaptive" else measure(everything)


def load_table(path: Path) -> LatencyTable:
    """A table from disk."""
    return LatencyTable.load(path)


def plot_table(table: LatencyTable, out: Path) -> None:
    """Draw a table into a file."""
    from lathe.plot import plot

    plot(table, out)


def check_table(path: Path, space_name: str | None) -> list[Finding]:
    """What is wrong or doubtful in a table, with what it lacks of its space where that is known."""
    table = load_table(path)
    name = space_name or table.header.space
    return check.check(table, [spec.key for spec in space_of(name).blocks()] if name else ())


def diff_tables(first: Path, second: Path) -> Diff:
    """Two tables compared."""
    return diff.diff(load_table(first), load_table(second))


def merge_tables(paths: tuple[Path, ...], out: Path) -> LatencyTable:
    """Tables of equal devices joined."""
    return merge.merge(paths, out)


def search(command: "Search") -> "Iterator[SearchEvent]":
    """Search a space, or go on with a search."""
    require("torch", "train")
    from search import data as datasets
    from search import spaces
    from search.errors import SearchError
    from search.methods import pas

    if command.method not in METHODS:
        raise SearchError(f"unknown method {command.method!r}: known are {', '.join(METHODS)}; try `lathe search {METHODS[0]} --help`")
    table = load_table(command.table)
    _require_table(table, command)
    data = datasets.load(command.data, spaces.get(command.space).input_shape[1])
    space = spaces.get(command.space, classes=len(data.labels))
    given = {name: getattr(command, name) for name in ("pretrain_epochs", "search_epochs", "finetune_epochs")}
    config = pas.recipe(
        data,
        cost=command.cost,
        regulariser=command.regulariser,
        min_channels=command.min_channels,
        seed=command.seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    return pas.run(config, space, table, data, _budget_us(command, space, table), command.out)


def _require_table(table: LatencyTable, command: "Search") -> None:
    """Refuse a table of another backend, precision or machine than was asked for."""
    header = table.header
    if command.backend is not None and command.backend != header.runtime.name:
        backends.require_known(command.backend)
        raise FingerprintMismatch(
            f"table {command.table}", "runtime.name", header.runtime.name, command.backend, "give a table of that backend"
        )
    device = backends.get(header.runtime.name, threads=max(header.device.threads, 1)).device if command.this_device else None
    table.require(device=device, precision=command.precision)


def _budget_us(command: "Search", space: "Space", table: LatencyTable) -> float:
    """The budget in microseconds; a fraction is one of the unpruned network, as measured where the table has it."""
    if (command.budget_ms is None) == (command.budget_fraction is None):
        raise LatencyError(
            "a search needs one budget: give --budget-ms 0.5 (milliseconds) or --budget-fraction 0.6 (of the unpruned network)"
        )
    if command.budget_ms is not None:
        budget_us = command.budget_ms * 1000
    else:
        assert command.budget_fraction is not None
        unpruned = space.network(space.full_widths())
        measured = table.measured_network(unpruned)
        budget_us = command.budget_fraction * (measured or table.predict(unpruned)).us
    if not 0 < budget_us < float("inf"):
        raise LatencyError(f"a budget must be above 0, found {budget_us / 1000:.4g} ms")
    return budget_us


def export(command: "Export", on_step: Callable[[str], None]) -> "Bundle":
    """Ship a run, or an ONNX file."""
    require("torch", "train")
    import deploy
    from deploy.errors import DeployError

    timing = protocols.get(command.protocol)
    if command.source.is_file():
        return deploy.export(
            command.source.read_bytes(),
            target=command.target,
            out=command.out,
            budget_ms=command.budget_ms,
            protocol=timing,
            threads=command.threads or 1,
            provenance={"onnx": command.source.name},
            on_step=on_step,
        )
    if not command.source.is_dir():
        raise DeployError(f"{command.source} does not exist: give the directory of a finished search, or MODEL.onnx")
    return _export_run(command, timing, on_step)


def _export_run(command: "Export", timing: Protocol, on_step: Callable[[str], None]) -> "Bundle":
    import deploy
    from search import data as datasets
    from search import record
    from search.architecture import load_architecture
    from search.files import read_json
    from search.network import load_weights

    run = command.source
    result = read_json(run / record.RESULT, record.Result)
    architecture = load_architecture(run / record.ARCHITECTURE)
    model, unpruned = architecture.build(), architecture.unpruned()
    load_weights(model, run / record.WEIGHTS, {"architecture_sha256": architecture.sha256})
    load_weights(unpruned, run / record.BASELINE, {})
    data = datasets.load(architecture.data, architecture.input_shape[1])
    held_out = data.held_out
    return deploy.export(
        model,
        _zeros(architecture.input_shape),
        target=command.target,
        out=command.out,
        samples=data.normalise(held_out.images),
        labels=held_out.labels,
        baseline=unpruned,
        budget_ms=architecture.budget_us / 1000 if command.budget_ms is None else command.budget_ms,
        protocol=timing,
        threads=command.threads or 1,
        predicted=architecture.predicted,
        predicted_baseline=result.unpruned.predicted,
        classes=architecture.labels,
        preprocessing=_builtins(architecture.preprocessing),
        provenance={
            "method": architecture.method,
            "space": architecture.space,
            "seed": str(architecture.seed),
            "weights": hashlib.sha256((run / record.WEIGHTS).read_bytes()).hexdigest(),
        },
        attachments={name: (run / name).read_bytes() for name in (record.ARCHITECTURE, record.RUN, record.HISTORY)},
        on_step=on_step,
    )


def verify(directory: Path) -> "Verification":
    """Check a bundle again."""
    require("torch", "train")
    import deploy

    return deploy.verify(directory)


def report(source: Path, out: Path | None) -> "tuple[Path, list[Row]]":
    """Write the page of a run or a bundle; returns where it is, and its main table."""
    require("torch", "train")
    from deploy.report import render

    page = out or source.with_name(source.name + ".html")
    return page, render(source, page)


def _zeros(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.zeros(1, *shape)


def _builtins(value: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(value)
