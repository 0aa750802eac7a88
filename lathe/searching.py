"""Searches and sweeps: load the task, tables and budget of a command and run it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latency import LatencyTable, backends, outputs
from latency.errors import FingerprintMismatch, LatencyError, import_extra
from latency.units import us_from_ms
from lathe import fleet
from lathe.flags import Milliseconds, require_range
from lathe.spaces import space_of
from lathe.tables import load_table, predicted

if TYPE_CHECKING:
    from lathe.searches import SearchCommand
    from lathe.sweeps import SweepBest, SweepCommand
    from search.budget import Budget
    from search.record import Event as SearchEvent
    from search.space import Space
    from search.sweep import Outcome
    from search.task import Task


def search(command: "SearchCommand", warn: Callable[[str], None]) -> "Iterator[SearchEvent]":
    """Search a space, or resume a search."""
    outputs.require_directory(command.out)
    import_extra("torch", "train")
    from search import board, methods, record, session
    from search.budget import Budget, Limit
    from search.method import Problem
    from search.methods.settings import recipe

    if (command.out / record.RUN).exists():
        record.read_run(command.out)  # reject a damaged run before data are loaded
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
            predicted(each, space, space.network(), command)
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


def _other_tables(
    command: "SearchCommand", table: LatencyTable | None, warn: Callable[[str], None]
) -> list[tuple[LatencyTable, float]]:
    """Load the tables of other devices, each with its budget in microseconds."""
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
            raise LatencyError(
                f"--also {word} is of a further device: give --table, the first one's, and its budget too"
            )
        require_range(f"--also {path}", ms, Milliseconds)
        other = load_table(Path(path), warn)
        other.require(batch=table.header.batch)
        if other.sha256 in known:
            raise LatencyError(f"--also {word}: that table is given twice: give each device once")
        known.add(other.sha256)
        others.append((other, us_from_ms(ms)))
    return others


def _task(command: "SearchCommand", input_shape: tuple[int, int, int]) -> "Task":
    """Load the task that a search trains its networks for."""
    from search import data, own_task

    if command.task is not None:
        if command.data != "digits":
            raise LatencyError(f"--task {command.task} brings its own samples: leave out --data {command.data}")
        return own_task.load(command.task)
    channels, height, width = input_shape
    if channels != 3 or height != width:
        shape = f"{channels}x{height}x{width}"
        raise LatencyError(
            f"--data {command.data} shows square images of three channels, and the network is for {shape}: give a "
            "--task"
        )
    return data.load(command.data, height)


def sweep(command: "SweepCommand") -> "Iterator[Outcome]":
    """Search at several budgets, seeds and settings, or resume.

    Then measure each network; yield each row when it is known.
    """
    from deploy import engine
    from search import sweep as sweeps
    from search.cluster import Cluster

    outputs.require_directory(command.out)
    values: dict[str, list[str]] = {}
    for word in command.set:
        name, given, listed = word.partition("=")
        if not given or not name or not all(choices := listed.split(",")):
            raise LatencyError(f"--set {word!r} is not NAME=VALUE[,VALUE]: give it as --set beta=0.1,0.3")
        name = name.replace("-", "_")
        if name in values:
            raise LatencyError(f"--set {name} is given twice: give all its values at once, separated by commas")
        values[name] = choices
    budgets = [(f"{ms:g} ms", ("--budget-ms", str(ms))) for ms in command.budget_ms or ()]
    budgets += [(f"{share:g}x", ("--budget-fraction", str(share))) for share in command.budget_fraction or ()]
    plan = sweeps.plan(command.method, tuple(command.common()), budgets or [("no budget", ())], command.seeds, values)
    for member in plan.members:
        command.require_member([*member.words, "--out", str(command.out / sweeps.RUNS / member.name)])
    measured_with = (
        load_table(command.table, lambda _: None).header.runtime.name.partition(":")[0]
        if command.table
        else "onnxruntime"
    )
    target = engine.target_of(command.target or measured_with)
    fleet.require_engine(command)
    if command.engine == "ray":
        with Cluster(command.address) as cluster:
            needs = {"CPU": 1.0} | ({"GPU": command.gpus_per_run} if command.gpus_per_run else {})
            cluster.require_resources(needs)
            sweeps.begin(plan, command.out)
            yield from sweeps.run_on(cluster, plan, command.out, needs)
    else:
        sweeps.begin(plan, command.out)
        yield from sweeps.run(plan, command.out, command.jobs)
    if not command.no_measure:
        yield from sweeps.measure(plan, command.out, target)
    sweeps.write_results(command.out, sweeps.outcomes(command.out))


def sweep_best(command: "SweepBest") -> "Outcome":
    """Return the run of a sweep to export for a budget."""
    from search import sweep as sweeps

    return sweeps.best(command.sweep, us_from_ms(command.budget_ms))


def _require_table(table: LatencyTable, command: "SearchCommand") -> None:
    """Require a table of the requested backend, precision and machine."""
    header = table.header
    if command.backend is not None and command.backend != header.runtime.name:
        backends.require_known(command.backend)
        raise FingerprintMismatch(
            f"table {command.table}",
            "runtime.name",
            header.runtime.name,
            command.backend,
            "give a table of that backend",
        )
    if command.this_device:
        header.require_origin(
            "", what=f"table {command.table}", fix="give one that was measured on this device, or omit --this-device"
        )
    device = (
        backends.get(header.runtime.name, threads=max(header.device.threads, 1)).device if command.this_device else None
    )
    table.require(device=device, precision=command.precision)


def _latency_budget(command: "SearchCommand", space: "Space", table: LatencyTable) -> "Budget":
    """Return the budget in microseconds.

    A fraction is of the unpruned network's latency, as measured if the table has it.
    """
    from search.budget import Budget

    if (command.budget_ms is None) == (command.budget_fraction is None):
        raise LatencyError(
            "a search needs one budget: give --budget-ms 0.5 (milliseconds) or --budget-fraction 0.6 (of the unpruned "
            "network)"
        )
    if command.budget_ms is not None:
        return Budget(us=us_from_ms(command.budget_ms))
    assert command.budget_fraction is not None
    unpruned = space.network()
    return Budget(us=command.budget_fraction * (table.measured_network(unpruned) or table.predict(unpruned)).us)


def _no_budget(space: "Space", table: LatencyTable | None) -> "Budget":
    """Return a budget that every network of a space meets."""
    from search.budget import Budget

    return Budget(us=table.predict(space.network()).high_us) if table else Budget(macs=space.macs())


def _macs_budget(command: "SearchCommand", space: "Space") -> "Budget":
    """Return the budget in multiply-accumulates, for searches without a table."""
    from search.budget import Budget

    if command.budget_ms is not None or command.budget_fraction is None:
        raise LatencyError(
            "without --table nothing is known of latency, and MACs are the cost: give --budget-fraction 0.5 (of the "
            "network's MACs)"
        )
    return Budget(macs=command.budget_fraction * space.macs())
