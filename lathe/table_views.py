"""What is printed of latency tables, and of predictions by them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.markup import escape
from rich.table import Column, Table

from latency.block import BlockSpec
from latency.units import interval, microseconds
from lathe.render import OUT, fact_table, print_json

if TYPE_CHECKING:
    from latency.estimate import Estimate, Part
    from lathe.predicting import Prediction


def prediction(found: "Prediction", *, as_json: bool) -> int:
    """Print what tables predict of a network; returns the exit code: 1 where one does not cover it, and what it lacks is not written."""
    code = int(found.missing is None and any(estimate.uncovered for estimate in found.estimates))
    if as_json:
        print_json(_prediction_json(found))
        return code
    for letter, estimate, remarks in zip(_letters(len(found.estimates)), found.estimates, found.remarks, strict=True):
        OUT.print(fact_table(letter + estimate.table, _estimate_rows(estimate, remarks)))
    OUT.print(_parts(found.estimates[0]) if len(found.estimates) == 1 else _parts_by_table(found.estimates))
    if found.others:
        OUT.print(escape(f"no row is about {found.others}: their share is unknown"))
    for estimate, command in zip(found.estimates, found.commands, strict=True):
        if command:
            lacks = f"what {estimate.table} lacks ({_counted(len(estimate.uncovered), 'block')})"
            OUT.print(escape(f"{found.missing} holds {lacks}: measure it with" if found.missing else f"to measure {lacks}:"))
            OUT.print(escape(command))
    return code


def _prediction_json(found: "Prediction") -> dict[str, object]:
    tables = [
        {**msgspec.to_builtins(estimate), "uncovered": estimate.uncovered, "remarks": remarks, "command": command}
        for estimate, remarks, command in zip(found.estimates, found.remarks, found.commands, strict=True)
    ]
    return {"network": found.network, "others": found.others, "tables": tables, "missing": found.missing and str(found.missing)}


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _letters(count: int) -> list[str]:
    """What columns of several tables are named by."""
    return [""] if count == 1 else [f"{chr(ord('A') + index % 26)}{index // 26 or ''}: " for index in range(count)]


def _estimate_rows(estimate: "Estimate", remarks: Sequence[str]) -> list[tuple[str, str]]:
    device, covered = estimate.device, sum(part.alone is not None for part in estimate.parts)
    latency = interval(msgspec.structs.replace(estimate.latency, origin="")) if estimate.latency else "-"
    if estimate.uncovered:
        latency += f", of the {covered} blocks that are covered" * bool(covered)
    return [
        ("device", f"{device.name}, {estimate.runtime.name} {estimate.runtime.version}, {estimate.precision}"),
        ("latency", latency),
        *([("measured", interval(estimate.measured))] if estimate.measured else []),
        ("blocks", f"{covered} of {len(estimate.parts)} are covered"),
        *(("remark", remark) for remark in remarks),
    ]


def _parts(estimate: "Estimate") -> Table:
    """A block a line: what it takes by itself, what it adds to the network, and how that is known."""
    named = any(part.layer for part in estimate.parts)
    titles = ("channels", "alone", "adds", "share", "")
    view = Table(Column("layer" if named else "", overflow="fold"), Column("block", overflow="fold"), *titles)
    for column in view.columns[3:6]:
        column.justify = "right"
    total = estimate.latency.us if estimate.latency else 0.0
    for number, part in enumerate(estimate.parts, 1):
        spec = BlockSpec.parse(part.key)
        head = (escape(part.layer) if named else str(number), escape(spec.title), spec.channels)
        if part.alone is None or part.adds is None:
            view.add_row(*head, "-", "-", "-", "not covered")
            continue
        source = "" if part.alone.source == "measured" else part.alone.source
        view.add_row(*head, microseconds(part.alone.us), microseconds(part.adds.us), f"{part.adds.us / total:.1%}", source)
    if estimate.latency:
        view.add_row("", "beside its blocks", "", "", microseconds(estimate.network_us), f"{estimate.network_us / total:.1%}", "")
    return view


def _parts_by_table(estimates: "Sequence[Estimate]") -> Table:
    """A block a line: what it adds to the network by each table."""
    first = estimates[0]
    named = any(part.layer for part in first.parts)
    view = Table(Column("layer" if named else "", overflow="fold"), Column("block", overflow="fold"), "channels")
    for letter in _letters(len(estimates)):
        view.add_column(letter.strip(" :"), justify="right")
    for number, parts in enumerate(zip(*(estimate.parts for estimate in estimates), strict=True), 1):
        spec = BlockSpec.parse(parts[0].key)
        head = (escape(parts[0].layer) if named else str(number), escape(spec.title), spec.channels)
        view.add_row(*head, *map(_added, parts))
    view.add_row("", "beside its blocks", "", *(microseconds(estimate.network_us) for estimate in estimates))
    return view


def _added(part: "Part") -> str:
    if part.alone is None or part.adds is None:
        return "-"
    return microseconds(part.adds.us) + ("" if part.alone.source == "measured" else f" {part.alone.source[0]}.")
