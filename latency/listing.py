"""Readable listing of a table's rows: by family and widths, with names for whole networks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latency.block import BlockSpec
from latency.errors import LatencyError
from latency.rows import Row
from latency.table import LatencyTable

NETWORKS, OVERHEAD = "whole networks", "empty network"
"""Families of rows that are not blocks."""

COLUMNS = ("kind", "family", "median_us", "low_us", "high_us", "p90_us", "p99_us", "status", "key")
"""Columns of `flat` other than the widths."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Rows of one family.

    Attributes:
        name: name of the family, see `family_of`.
        title: readable name.
        widths: names of its blocks' widths.
        rows: rows with the values of these widths, ascending; networks in the order of the table.
    """

    name: str
    title: str
    widths: tuple[str, ...] = ()
    rows: tuple[tuple[tuple[int, ...], Row], ...]


def family_of(row: Row) -> str:
    """Return the family of a row; for a block, `BlockSpec.family`."""
    return {"network": NETWORKS, "overhead": OVERHEAD}.get(row.kind, row.key.partition("[")[0])


def titled(key: str) -> tuple[str, str]:
    """Return the readable family and channels of a block; the key of another row unchanged."""
    try:
        spec = BlockSpec.parse(key)
    except LatencyError:
        return key, ""
    return spec.title, spec.channels


def names(table: LatencyTable) -> dict[str, str]:
    """Return names of all rows that are not blocks, by key: networks are numbered in the order of the table."""
    networks = [row for row in table.rows if row.kind == "network"]
    counted = {row.key: f"network {number} ({len(row.blocks)} blocks)" for number, row in enumerate(networks, 1)}
    return {**{row.key: OVERHEAD for row in table.rows if row.kind == "overhead"}, **counted}


def families(table: LatencyTable, wanted: str = "") -> list[Family]:
    """Return the rows of a table by family, without sentinels.

    Args:
        table: the table.
        wanted: part of a family's name or title, in any case; "" for all.

    Raises:
        LatencyError: no family matches.
    """
    rows: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.kind != "sentinel":
            rows.setdefault(family_of(row), []).append(row)
    all_families = [_family(name, members) for name, members in rows.items()]
    chosen = [family for family in all_families if wanted.lower() in f"{family.name}\n{family.title}".lower()]
    if not chosen:
        known = ", ".join(repr(family.title) for family in all_families)
        raise LatencyError(f"--family {wanted!r} is in no name of a family of {table.path}: choose of {known}")
    return chosen


def _family(name: str, rows: Sequence[Row]) -> Family:
    if rows[0].kind != "block":
        return Family(name=name, title=name, rows=tuple(((), row) for row in rows))
    specs = [BlockSpec.parse(row.key) for row in rows]
    points = [tuple(width for _, width in spec.widths) for spec in specs]
    return Family(
        name=name,
        title=specs[0].title,
        widths=tuple(width for width, _ in specs[0].widths),
        rows=tuple(sorted(zip(points, rows, strict=True), key=lambda pair: pair[0])),
    )


def flat(families: Sequence[Family]) -> Iterator[list[str | int | float]]:
    """Yield the lines of one sheet: a header, then every row.

    Widths that a family lacks and values not measured are empty.
    """
    widths = list(dict.fromkeys(width for family in families for width in family.widths))
    yield [*COLUMNS[:2], *widths, *COLUMNS[2:]]
    for family in families:
        for point, row in family.rows:
            values = dict(zip(family.widths, point, strict=True))
            times = [row.median_us, row.low_us, row.high_us] if row.known else ["", "", ""]
            tails = ["" if tail is None else tail for tail in (row.p90_us, row.p99_us)]
            yield [
                row.kind,
                family.name,
                *(values.get(width, "") for width in widths),
                *times,
                *tails,
                row.status,
                row.key,
            ]
