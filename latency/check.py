"""Find errors and doubtful rows in a table."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec

from latency import anchored, coverage
from latency.block import BlockSpec
from latency.errors import LatencyError
from latency.rows import Row
from latency.sentinel import doubtful
from latency.table import LatencyTable

Problem = Literal[
    "failed",
    "missing",
    "unstable",
    "not as asked",
    "drift",
    "non-monotone",
    "no sentinel",
    "torn",
    "interpolated",
    "transferred",
    "not measured",
    "unproved",
]


class Finding(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A reason not to trust a table without further thought.

    Attributes:
        problem: kind of finding; with `failed` and `missing` a latency is absent, with the others it is doubtful.
        key: key of the row; "" if the finding concerns the whole table.
        words: description of the finding, in one line.
    """

    problem: Problem
    key: str = ""
    words: str


_FIXES: dict[Problem, str] = {
    "failed": "{again} tries them again",
    "missing": "{again} measures them",
    "torn": "{again} measures the lost row again",
    "not measured": "before you rely on it, measure the device itself: {new}",
    "unproved": "{again} tries the whole networks again",
    "unstable": "close other programs, on a GPU lock its clocks; {again} measures them again",
    "drift": "{again} measures them again",
    "no sentinel": "measure a new table: {new}",
    "not as asked": "nothing, if a network that ships runs in the same way",
    "non-monotone": (
        "measure a second table and compare both by `lathe table diff`: where they agree, the runtime's kernels are "
        "like that"
    ),
    "interpolated": "{again} measures them, without --coverage",
    "transferred": "{new} measures all of them, without --like",
}
"""The fix for each problem, in the order of findings."""


def fix(problem: Problem, again: str, new: str) -> str:
    """Return the fix for a problem.

    Args:
        problem: problem of a finding.
        again: command that resumes the table.
        new: command that measures a new one.
    """
    return _FIXES[problem].format(again=f"`{again}`", new=f"`{new}`")


def check(table: LatencyTable, expected: Iterable[str] = (), *, tolerance: float = 0.03) -> list[Finding]:
    """Check a table.

    Args:
        table: the table.
        expected: keys that it should cover, such as all blocks of its space.
        tolerance: relative amount by which a wider block may be faster: the same block may differ as much when compiled
            again.

    Returns:
        Errors, then doubtful rows, sorted by kind of problem, then by family and width.
    """
    rows = {row.key: row for row in table.rows if row.kind != "sentinel"}
    findings = [Finding(problem="torn", words=warning) for warning in table.warnings]
    if table.header.origin:
        findings.append(Finding(problem="not measured", words=table.header.origin))
    if table.unproved:
        findings.append(Finding(problem="unproved", words=table.unproved))
    findings += [
        Finding(problem="failed", key=row.key, words=f"{row.status}: {row.error}")
        for row in rows.values()
        if not row.known
    ]
    absent = [key for key in dict.fromkeys(expected) if key not in rows]
    between = [key for key in absent if _is_covered(table, key)]
    findings += [
        Finding(problem="missing", key=key, words="not in the table") for key in absent if key not in set(between)
    ]
    for row in rows.values():
        if row.status == "unstable":
            reach = max(row.high_us - row.median_us, row.median_us - row.low_us) / row.median_us
            words = row.reason or f"the median is uncertain by {reach:.1%}"
            findings.append(Finding(problem="unstable", key=row.key, words=words))
        if row.measured and row.error:
            findings.append(Finding(problem="not as asked", key=row.key, words=row.error))
    if between:
        words = f"{len(between)} blocks are interpolated between measured ones, {coverage.prove(table).words}"
        findings.append(Finding(problem="interpolated", words=words))
    if table.transferred:
        findings.append(Finding(problem="transferred", words=f"{table.transferred}, {anchored.prove(table).words}"))
    findings += [*_drift(table.history), *_falls(rows.values(), tolerance)]
    return sorted(findings, key=lambda finding: (list(_FIXES).index(finding.problem), _place(finding.key)))


def _place(key: str) -> tuple[str, tuple[int, ...], str]:
    try:
        spec = BlockSpec.parse(key)
    except LatencyError:
        return "", (), key
    return spec.family, tuple(width for _, width in spec.widths), key


def _is_covered(table: LatencyTable, key: str) -> bool:
    try:
        return table.lookup(BlockSpec.parse(key)).source == "interpolated"
    except LatencyError:
        return False


def _drift(history: Sequence[Row]) -> Iterator[Finding]:
    sentinels = [row for row in history if row.kind == "sentinel"]
    if not any(row.measured for row in sentinels):
        yield Finding(
            problem="no sentinel",
            words="no sentinel was measured between the rows: drift of the device would not have been seen",
        )
        return
    for row in sentinels:
        if row.status == "ok" and row.error:
            yield Finding(problem="drift", words=row.error)
    doubted, unwatched = doubtful(history)
    for key in sorted(doubted):
        yield Finding(
            problem="drift", key=key, words="it was measured while the device drifted: profiling again measures it"
        )
    if unwatched:
        yield Finding(
            problem="drift",
            words=f"no sentinel was measured after the last {len(unwatched)} rows: profiling again does it",
        )


def _falls(rows: Iterable[Row], tolerance: float) -> Iterator[Finding]:
    """Yield blocks that are faster than a block that is narrower in one width and otherwise the same."""
    lines: dict[tuple[str, str, tuple[tuple[str, int], ...]], list[tuple[int, Row]]] = {}
    for row in rows:
        if row.kind == "block" and row.measured:
            spec = BlockSpec.parse(row.key)
            for name, width in spec.widths:
                others = tuple(pair for pair in spec.widths if pair[0] != name)
                lines.setdefault((spec.family, name, others), []).append((width, row))
    for (_, name, _), line in lines.items():
        line.sort(key=lambda point: point[0])
        for (narrow, before), (_, row) in itertools.pairwise(line):
            faster = 1 - row.median_us / before.median_us
            if faster > tolerance and row.high_us < before.low_us:
                yield Finding(
                    problem="non-monotone",
                    key=row.key,
                    words=f"{faster:.1%} faster than {name}={narrow}, which is narrower",
                )
