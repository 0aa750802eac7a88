"""Read, check, compare and merge latency tables."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latency import Latency, LatencyTable, check, diff, listing, merge
from latency.check import Finding
from latency.diff import Diff
from latency.errors import CoverageError, LatencyError, MissingExtra
from latency.listing import Family
from lathe.spaces import space_of, space_words

if TYPE_CHECKING:
    from latency.block import BlockSpec
    from lathe.cli import PaperCommand, TableCheck, TableDiff, TableShow
    from lathe.flags import SizeFlags
    from search.papers.latencies import ComparedLatency
    from search.space import Space


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Result of `lathe table check`."""

    findings: Sequence[Finding]
    again: str
    """command that resumes the table"""
    new: str
    """command that measures a new table"""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Result of `lathe table diff`."""

    tables: Sequence[LatencyTable]
    diffs: Sequence[Diff]
    """of each other table with the first"""


def load_table(path: Path, warn: Callable[[str], None]) -> LatencyTable:
    """Load a table; pass its warnings to `warn`."""
    return _warned(LatencyTable.load(path), warn)


def _warned(table: LatencyTable, warn: Callable[[str], None]) -> LatencyTable:
    for warning in table.warnings:
        warn(warning)
    return table


def show_table(command: "TableShow", warn: Callable[[str], None]) -> LatencyTable:
    """Load a table, and plot it if requested."""
    if command.plot is None:
        return load_table(command.table, warn)
    from latency.plot import plot, require_picture

    require_picture(command.plot, force=command.force)
    table = load_table(command.table, warn)
    plot(table, command.plot, force=command.force)
    return table


def list_rows(command: "TableShow", warn: Callable[[str], None]) -> list[Family]:
    """Return the rows of a table by family.

    Raises:
        LatencyError: no family has the given name, or flags conflict.
    """
    given = [f"--{name}" for name in ("csv", "markdown", "json", "plot") if getattr(command, name)]
    if len(given) > 1 or given[:1] in (["--json"], ["--plot"]):
        raise LatencyError(
            f"{' and '.join(given)} with rows: give one of --csv and --markdown; without --rows, --json has every row, "
            "too"
        )
    return listing.families(load_table(command.table, warn), command.family or "")


def check_table(command: "TableCheck", warn: Callable[[str], None]) -> Checked:
    """Check a table for problems and doubts, and for missing blocks of its space if that is known."""
    table = LatencyTable.load(command.table)  # a torn line is one of the findings
    name, header = command.space or table.header.space, table.header
    source = f"{shlex.quote(name or 'SPACE')}{command.words_with_classes()}"
    new = header.command(source, "NEW.latency.jsonl")
    return Checked(
        findings=check.check(table, _expected(command, name, warn)),
        again=new if table.old else header.command(source, table.path),
        new=new,
    )


def _expected(command: "TableCheck", name: str, warn: Callable[[str], None]) -> list[str]:
    """Return keys of the blocks that a table should cover.

    None, with a warning, if the space in its header cannot be read here.
    """
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
    """Compare tables with the first, and plot the comparison if requested.

    Raises:
        LatencyError: there is only one table, or two have no block in common.
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
    """Merge tables of identical devices."""
    return _warned(merge.merge(paths, out), warn)


def predicted(table: LatencyTable, space: "Space", blocks: "Sequence[BlockSpec]", sizes: "SizeFlags") -> Latency:
    """Return the predicted latency of one network of a space.

    Raises:
        CoverageError: the table is of another space, or lacks a block; contains the full command that measures it.
    """
    try:
        return table.predict(blocks)
    except CoverageError as error:
        same_space, header = table.header.space == space.name, table.header
        reason = (
            error.reason if same_space else f"{table.path} is of the space {header.space or '-'}, not of {space.name}"
        )
        command = header.command(space_words(space, sizes), table.path if same_space else "NEW.latency.jsonl")
        raise CoverageError(reason, f"measure it with `{command}`") from error


def published_latencies(
    command: "PaperCommand", warn: Callable[[str], None]
) -> "tuple[list[ComparedLatency], list[LatencyTable]]":
    """Return published latencies next to those of tables, and the tables.

    Raises:
        LatencyError: a table cannot be read, or is not of batch 1, as the published ones are.
    """
    from search.papers import latencies

    tables = [load_table(path, warn) for path in command.table]
    for table in tables:
        table.require(batch=1)
    return latencies.comparisons(tables), tables
