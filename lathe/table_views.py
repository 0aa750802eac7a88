"""Printed views of latency tables and of predictions from them."""

import csv
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from rich.markup import escape

from latency import LatencyTable, Row, anchored, listing
from latency.block import BlockSpec
from latency.check import Finding, fix
from latency.diff import Change, Diff
from latency.units import interval, microseconds
from lathe import tabular
from lathe.render import OUT, print_json
from lathe.tabular import Grid, Heading, coloured

if TYPE_CHECKING:
    from latency.estimate import BlockEstimate, Estimate
    from latency.listing import Family
    from lathe.predicting import Prediction
    from lathe.tables import Checked, Compared

STATUSES = ("ok", "unstable", "transferred", "build_failed", "run_failed")
"""Statuses of rows, as in `latency.Row`."""


def table(loaded: LatencyTable, path: Path, *, as_json: bool) -> None:
    """Print the contents of a latency table and how well it predicts."""
    header, predictor = loaded.header, loaded.predictor
    counts = {status: sum(row.status == status for row in loaded.rows) for status in STATUSES}
    kinds = {
        kind: sum(row.kind == kind for row in loaded.rows) for kind in ("block", "network", "overhead", "sentinel")
    }
    if as_json:
        measured = [
            {
                name: getattr(row, name)
                for name in ("kind", "key", "status", "reason", "median_us", "low_us", "high_us", "p90_us", "p99_us")
            }
            for row in loaded.rows
        ]
        facts = {
            "path": str(path),
            "sha256": loaded.sha256,
            "origin": header.origin,
            "header": header,
            "rows": kinds,
            "status": counts,
        }
        judged = {"proof": anchored.prove(loaded)} if header.like else {}
        print_json({**facts, **judged, "predictor": predictor, "measured": measured})
        return
    device = header.device
    rows = [
        (
            "device",
            f"{device.name}, {_threads(device.threads)}"
            if device.kind == "cpu"
            else f"{device.name}, driver {device.driver}",
        ),
        ("runtime", f"{header.runtime.name} {header.runtime.version}, {header.precision}, batch {header.batch}"),
        *([("not measured", header.origin)] if header.origin else []),
        *([("unproved", loaded.unproved)] if loaded.unproved else []),
        ("protocol", header.protocol.name),
        ("space", header.space or "-"),
        *([("transferred", f"{loaded.transferred}, {anchored.prove(loaded).words}")] if loaded.transferred else []),
        ("rows", ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)),
        ("status", ", ".join(f"{count} {status}" for status, count in counts.items() if count)),
        ("p90", _tail(loaded.rows, "p90_us")),
        ("p99", _tail(loaded.rows, "p99_us")),
        ("sha256", loaded.sha256[:16]),
    ]
    if predictor.networks:
        rows.append(
            (
                "whole networks",
                f"predicted to {predictor.mean_absolute_error:.2%} on average, 95 % within {predictor.half_width:.2%}, "
                f"{predictor.within_5:.0%} within 5 % and {predictor.within_10:.0%} within 10 %, "
                f"bias {predictor.bias:+.2%}, Kendall tau {predictor.kendall_tau:.3f} (cross-validated over "
                f"{predictor.networks})",
            )
        )
    OUT.print(tabular.facts(str(path), rows))
    OUT.print(_blocks(loaded))


def _blocks(loaded: LatencyTable) -> Grid:
    """Return one line per family: its number of blocks and their range of latencies."""
    families: dict[str, list[Row]] = {}
    for row in loaded.rows:
        if row.kind == "block":
            families.setdefault(listing.family_of(row), []).append(row)
    numbers = (Heading(name, right=True) for name in ("blocks", "fastest", "slowest", "interval ±"))
    view = Grid("family", *numbers, title="blocks")
    for rows in families.values():
        family, _ = listing.titled(rows[0].key)
        known = [row for row in rows if row.known]
        if not known:
            view.add(family, f"0 of {len(rows)}", "-", "-", "-")
            continue
        medians = [row.median_us for row in known]
        widest = max((row.high_us - row.low_us) / 2 / row.median_us for row in known)
        some = str(len(rows)) if len(known) == len(rows) else f"{len(known)} of {len(rows)}"
        if transferred := sum(not row.measured for row in known):
            some += f", {transferred} transferred"
        view.add(family, some, microseconds(min(medians)), microseconds(max(medians)), f"{widest:.1%}")
    return view


def _tail(rows: Sequence[Row], name: Literal["p90_us", "p99_us"]) -> str:
    """Describe how far a percentile is above the median in the rows that record it."""
    above = [percentile / row.median_us - 1 for row in rows if (percentile := getattr(row, name)) is not None]
    if not above:
        return "not stated: no row has enough samples"
    return (
        f"{statistics.median(above):+.1%} from the median in the middle row, {max(above):+.1%} at most ({len(above)} "
        "rows)"
    )


def rows(families: "Sequence[Family]", form: Literal["text", "csv", "markdown"]) -> None:
    """Print the rows of a table by family, in widths and microseconds."""
    if form == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(listing.flat(families))
        return
    for family in families:
        head, *lines = _listed(family)
        if form == "markdown":
            rule = [*["---:"] * (len(head) - 1), "---"]
            OUT.print(
                "\n".join(
                    ["", f"### {family.title}", "", *(f"| {' | '.join(line)} |" for line in (head, rule, *lines))]
                ),
                markup=False,
            )
            continue
        view = Grid(*(Heading(name, right=True) for name in head[:-1]), head[-1], title=family.title)
        for line in lines:
            view.add(*line)
        OUT.print(view)


def _listed(family: "Family") -> list[list[str]]:
    """Return a header, then one line per row; rows other than blocks are numbered."""
    blocks = family.rows[0][1].kind == "block"
    lines = [[*(family.widths if blocks else ["number", "blocks"]), "µs", "interval ±", "status"]]
    for number, (widths, row) in enumerate(family.rows, 1):
        place = widths if blocks else (number, len(row.blocks))
        times = (
            [f"{row.median_us:.2f}", f"{(row.high_us - row.low_us) / 2 / row.median_us:.1%}"]
            if row.known
            else ["-", "-"]
        )
        lines.append([*map(str, place), *times, "" if row.status == "ok" else row.status])
    return lines


def findings(checked: "Checked", *, as_json: bool) -> int:
    """Print what is wrong or doubtful in a table, and what to do; return the exit code."""
    found_problems = checked.findings
    fixes = {finding.problem: fix(finding.problem, checked.again, checked.new) for finding in found_problems}
    holes = sum(finding.problem in ("failed", "missing") for finding in found_problems)
    if as_json:
        print_json({"findings": found_problems, "holes": holes, "fixes": fixes})
        return 1 if holes else 0
    for problem, group in itertools.groupby(found_problems, key=lambda finding: finding.problem):
        members = list(group)
        OUT.print(f"[bold]{problem}[/] ({len(members)})")
        for line in _finding_lines(members):
            OUT.print(f"  {escape(line)}")
        OUT.print(f"  to do: {escape(fixes[problem])}")
    OUT.print(f"{_counted(holes, 'hole')}, {_counted(len(found_problems) - holes, 'doubt')}")
    return 1 if holes else 0


def _finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Return one line for identical findings on blocks of one family."""
    lines = []
    for (title, words), group in itertools.groupby(
        findings, key=lambda finding: (listing.titled(finding.key)[0], finding.words)
    ):
        channels = ", ".join(filter(None, (listing.titled(finding.key)[1] for finding in group)))
        lines.append(": ".join(filter(None, (f"{title} [{channels}]" if channels else title, words))))
    return lines


def diff(compared: "Compared", *, as_json: bool) -> int:
    """Print how tables compare with the first; return the exit code: 1 if anything is not the same."""
    code = int(not all(comparison.same for comparison in compared.diffs))
    if as_json:
        print_json({"tables": [table.path for table in compared.tables], "diffs": compared.diffs})
        return code
    letters = [letter.strip(" :") for letter in _letters(len(compared.tables))]
    OUT.print(_compared(compared, letters))
    names = listing.names(compared.tables[0])
    for letter, comparison in zip(letters[1:], compared.diffs, strict=True):
        _print_diff(comparison, letter, names)
    tolerances = compared.diffs[0]
    OUT.print(
        f"SAME is within {tolerances.tolerance:.0%} for a row or a family, and within "
        f"{tolerances.overall_tolerance:.0%} for all"
    )
    return code


def _compared(compared: "Compared", letters: Sequence[str]) -> Grid:
    """Return a description of each table, and the header fields that differ."""
    headers = [table.header for table in compared.tables]
    view = Grid("", *letters)
    for name, values in (
        ("table", [table.path for table in compared.tables]),
        ("device", [header.device.name for header in headers]),
        ("runtime", [f"{header.runtime.name} {header.runtime.version}" for header in headers]),
        ("precision", [header.precision for header in headers]),
        ("protocol", [header.protocol.name for header in headers]),
        ("space", [header.space or "-" for header in headers]),
        ("measured on", [header.created for header in headers]),
    ):
        view.add(name, *values)
    differing: dict[str, list[Any]] = {}
    for place, comparison in enumerate(compared.diffs, 1):
        for difference in comparison.differences:
            values = differing.setdefault(difference.field, [difference.first] * len(headers))
            values[place] = difference.second
    for field, values in differing.items():
        view.add(f"{field} differs", *map(_value, values))
    return view


def _print_diff(compared: Diff, letter: str, names: dict[str, str]) -> None:
    """Print how one table compares with the first: by family, then each row that is not the same."""
    same = {change.key for change in compared.rows if change.verdict == "SAME"}
    view = Grid("family", "verdict", "ratio", "interval", title=f"{letter} against A")
    for change in compared.families:
        view.add(compared.titles[change.family], *_change(change))
    OUT.print(view)
    rest = [change for change in compared.rows if change.key not in same]
    if rest:
        view = Grid("row", "channels", "verdict", "ratio", "interval", title="not the same")
        for change in sorted(rest, key=lambda change: change.ratio):
            title, channels = listing.titled(change.key)
            view.add(names.get(change.key, title), channels, *_change(change))
        OUT.print(view)
    OUT.print(
        f"{len(same)} of {len(compared.rows)} rows are SAME; only in A: {len(compared.only_a)}, only in {letter}: "
        f"{len(compared.only_b)}"
    )
    overall = compared.overall
    verdict = coloured(overall.verdict, overall.verdict)
    OUT.print(f"overall: {verdict}, {overall.ratio:.3f} of A's latency ({overall.low:.3f} to {overall.high:.3f})")


def _change(change: Change) -> tuple[str, str, str]:
    return change.verdict, f"{change.ratio:.3f}", f"{change.low:.3f} to {change.high:.3f}"


def _value(value: object) -> str:
    """Return a header field in one line."""
    return str(value) if isinstance(value, str | int | float) else msgspec.json.encode(value).decode()


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count != 1)}"


def prediction(result: "Prediction", *, as_json: bool) -> int:
    """Print a network's predictions.

    Return the exit code: 1 if a table does not cover it and the missing blocks are not written.
    """
    code = int(result.missing is None and any(estimate.uncovered for estimate in result.estimates))
    if as_json:
        print_json(_prediction_json(result))
        return code
    for letter, estimate, remarks in zip(
        _letters(len(result.estimates)), result.estimates, result.remarks, strict=True
    ):
        OUT.print(tabular.facts(letter + estimate.table, _estimate_rows(estimate, remarks)))
    OUT.print(_parts(result.estimates[0]) if len(result.estimates) == 1 else _parts_by_table(result.estimates))
    if result.others:
        OUT.print(escape(f"no row is about {result.others}: their share is unknown"))
    for estimate, command in zip(result.estimates, result.commands, strict=True):
        if command:
            lacks = f"what {estimate.table} lacks ({_counted(len(estimate.uncovered), 'block')})"
            OUT.print(
                escape(f"{result.missing} holds {lacks}: measure it with" if result.missing else f"to measure {lacks}:")
            )
            OUT.print(escape(command))
    return code


def _prediction_json(result: "Prediction") -> dict[str, object]:
    tables = [
        {**msgspec.to_builtins(estimate), "uncovered": estimate.uncovered, "remarks": remarks, "command": command}
        for estimate, remarks, command in zip(result.estimates, result.remarks, result.commands, strict=True)
    ]
    return {
        "network": result.network,
        "others": result.others,
        "tables": tables,
        "missing": result.missing and str(result.missing),
    }


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _letters(count: int) -> list[str]:
    """Return the letters that identify several tables."""
    return [""] if count == 1 else [f"{chr(ord('A') + index % 26)}{index // 26 or ''}: " for index in range(count)]


def _estimate_rows(estimate: "Estimate", remarks: Sequence[str]) -> list[tuple[str, str]]:
    device, covered = estimate.device, sum(part.alone is not None for part in estimate.parts)
    latency = interval(msgspec.structs.replace(estimate.latency, origin="")) if estimate.latency else "-"
    if estimate.uncovered:
        latency += ", of the blocks that are covered" * bool(covered)
    return [
        ("device", f"{device.name}, {estimate.runtime.name} {estimate.runtime.version}, {estimate.precision}"),
        ("latency", latency),
        *([("measured", interval(estimate.measured))] if estimate.measured else []),
        ("blocks", f"{covered} of {len(estimate.parts)} are covered"),
        *(("remark", remark) for remark in remarks),
    ]


def _parts(estimate: "Estimate") -> Grid:
    """Return one line per block: its latency alone, what it adds to the network, and the source of the numbers."""
    named = any(part.layer for part in estimate.parts)
    numbers = (Heading(name, right=True) for name in ("alone", "adds", "share"))
    view = Grid("layer" if named else "", "block", "channels", *numbers, "")

    def share(us: float) -> str:  # of a whole: a part of a network has no share of it
        return f"{us / estimate.latency.us:.1%}" if estimate.latency and not estimate.uncovered else "-"

    for number, part in enumerate(estimate.parts, 1):
        spec = BlockSpec.parse(part.key)
        head = (part.layer if named else str(number), spec.title, spec.channels)
        if part.alone is None or part.adds is None:
            view.add(*head, "-", "-", "-", "not covered")
            continue
        source = "" if part.alone.source == "measured" else part.alone.source
        view.add(*head, microseconds(part.alone.us), microseconds(part.adds.us), share(part.adds.us), source)
    if estimate.latency:
        adds = microseconds(estimate.network_us)
        view.add("", "beside its blocks", "", "", adds, share(estimate.network_us), "")
    return view


def _parts_by_table(estimates: "Sequence[Estimate]") -> Grid:
    """Return one line per block: what it adds to the network by each table."""
    first = estimates[0]
    named = any(part.layer for part in first.parts)
    letters = (Heading(letter.strip(" :"), right=True) for letter in _letters(len(estimates)))
    view = Grid("layer" if named else "", "block", "channels", *letters)
    for number, parts in enumerate(zip(*(estimate.parts for estimate in estimates), strict=True), 1):
        spec = BlockSpec.parse(parts[0].key)
        head = (parts[0].layer if named else str(number), spec.title, spec.channels)
        view.add(*head, *map(_added, parts))
    view.add("", "beside its blocks", "", *(microseconds(estimate.network_us) for estimate in estimates))
    return view


def _added(part: "BlockEstimate") -> str:
    if part.alone is None or part.adds is None:
        return "-"
    return microseconds(part.adds.us) + ("" if part.alone.source == "measured" else f" {part.alone.source[0]}.")
