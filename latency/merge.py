"""Merge tables that were measured in parts on equal devices."""

import os
from collections.abc import Sequence

import msgspec

from latency.device import require_equal
from latency.errors import LatencyError
from latency.files import atomic_write
from latency.outputs import NEW, require_file
from latency.rows import Row
from latency.sentinel import unfinished
from latency.table import LatencyTable
from latency.tablefile import TableWriter


def merge(paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> LatencyTable:
    """Write one table with the rows of several, part after part, with history and sentinels. The write is atomic.

    Each part must end with a good sentinel, because later rows may be those of a drifted device. So does the result.

    Of several rows of one key, `ok` supersedes any other status and a measured row supersedes a transferred one;
    otherwise the row of the later part wins.

    Args:
        paths: the parts.
        out: path of a file that does not exist yet.

    Returns:
        The table, with the warnings of its parts.

    Raises:
        TableError: a part cannot be read.
        FingerprintMismatch: a part has another fingerprint than the first, or only one of both is replayed or
            simulated; names the field.
        LatencyError: there are no parts, the file exists, or a part does not end with a good sentinel; names the part
            and the command that completes it.
    """
    if not paths:
        raise LatencyError("nothing to merge: name the tables")
    require_file(out, NEW, flag="--out", parents=True)
    tables = [LatencyTable.load(path) for path in paths]
    _require_alike(tables)
    rows = _merged([table.history for table in tables], [table.rows for table in tables])
    created = min(table.header.created for table in tables)
    header = msgspec.structs.replace(tables[0].header, created=created)
    with atomic_write(out) as part, TableWriter(part, header) as writer:
        writer.append(*rows)
    merged = LatencyTable.load(out)
    merged.warnings = tuple(warning for table in tables for warning in table.warnings)
    return merged


def _require_alike(tables: Sequence[LatencyTable]) -> None:
    """Require that tables are of one fingerprint and origin, and that each is finished."""
    first = tables[0].header
    for table in tables[1:]:
        table.header.require_origin(
            first.origin,
            what=f"table {table.path}",
            fix="merge tables that were measured with their like only, and replayed ones with replays of the same "
            "recording",
        )
        require_equal(
            table.header.made_like(first),
            first,
            what=f"table {table.path}",
            fix=f"merge tables of one fingerprint, as {tables[0].path} has it",
        )
    for table in tables:
        if why := unfinished(table.history):
            command = table.header.measuring(table.path)
            raise LatencyError(
                f"{table.path} is not finished: {why}; go on with it: `{command}`, with its other flags, such as "
                "--shard"
            )


def _merged(histories: Sequence[Sequence[Row]], parts: Sequence[Sequence[Row]]) -> list[Row]:
    """Return all rows of the histories, then those of the parts that supersede the last one of their key."""
    rows = [row for history in histories for row in history]
    best: dict[str, Row] = {}
    for row in (row for part in parts for row in part):
        if row.key not in best or _rank(row) >= _rank(best[row.key]):
            best[row.key] = row
    latest = {row.key: row for row in rows}
    rows += [best[key] for key, row in latest.items() if row is not best[key]]
    if sentinels := [index for index, row in enumerate(rows) if row.kind == "sentinel"]:
        rows.append(rows.pop(sentinels[-1]))
    return rows


def _rank(row: Row) -> int:
    """Return the rank of a row among those of its key; the highest one is used."""
    return {"ok": 2, "transferred": 0}.get(row.status, 1)
