"""A block that is measured again and again.

Between two measurements of it that agree, the device was what it was at the start.
"""

from collections.abc import Iterable, Sequence

import msgspec

from latency.errors import LatencyError
from latency.rows import Row


class Safeguards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done so that a table can be believed.

    Attributes:
        sentinel_every: after so many rows the sentinel is measured again; 0 for never.
        sentinel_every_s: or after so long. A drift that comes and goes within it is not seen.
        drift_limit: so much may it differ from its reference, relative. Beyond that, and beyond the noise of both, the
            device drifted.
        patience_s: for so long is a drifted sentinel measured, and nothing else, until the device is back; if it is
            not, that is how it is now, and later sentinels are compared with that.
        retries: so many times is a row measured again because the device drifted around it.
        monitor: whether the device's monitor is read, and disturbed windows are thrown away.
    """

    sentinel_every: int = 50
    sentinel_every_s: float = 10.0
    drift_limit: float = 0.03
    patience_s: float = 30.0
    retries: int = 4
    monitor: bool = True

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            LatencyError: one is negative, or the limit is not above 0.
        """
        for name in ("sentinel_every", "sentinel_every_s", "patience_s", "retries"):
            if getattr(self, name) < 0:
                raise LatencyError(f"{name} {getattr(self, name)}: 0 or more are allowed")
        if not 0 < self.drift_limit < float("inf"):
            raise LatencyError(f"drift_limit {self.drift_limit}: a number above 0 is allowed, such as 0.03")


OFF = Safeguards(sentinel_every=0, retries=0, monitor=False)


def drift(row: Row, reference: Row, limit: float) -> float:
    """How much slower a sentinel is than its reference, relative, negative for faster.

    0 within the limit or the noise of both.
    """
    if not row.measured:
        return 0.0
    change = row.median_us / reference.median_us - 1
    apart = row.low_us > reference.high_us or row.high_us < reference.low_us
    return change if abs(change) > limit and apart else 0.0


def reference(history: Iterable[Row], block: str) -> Row | None:
    """The row that sentinels of a block are compared with.

    The first, or the one that a lasting change made the new first.
    """
    found = None
    for row in history:
        if row.kind == "sentinel" and row.blocks == (block,) and row.status == "ok" and (found is None or row.error):
            found = row
    return found


def unfinished(history: Iterable[Row]) -> str:
    """Why nobody knows whether the last rows of a table can be believed.

    "" where it ends with a good sentinel, or never had one.

    Args:
        history: all rows of a table in their order; transferred ones do not count.
    """
    rows = [row for row in history if row.status != "transferred"]
    last = next((index for index in reversed(range(len(rows))) if rows[index].kind == "sentinel"), None)
    if last is None:
        return ""
    if behind := len(rows) - 1 - last:
        return f"{behind} {'row was' if behind == 1 else 'rows were'} measured after the last sentinel"
    return "" if _is_good(rows[last]) else f"the last sentinel is not good: {rows[last].error or rows[last].status}"


def _is_good(row: Row) -> bool:
    """Whether a sentinel says that the device is as it was."""
    return row.status == "ok" and not row.error


def doubtful(history: Sequence[Row]) -> tuple[set[str], list[str]]:
    """Which rows of a table were measured while the device drifted.

    A stretch of rows between two sentinels can be believed where both are good: `ok`, and the later one no new
    reference.

    Args:
        history: all rows of a table in their order.

    Returns:
        Keys whose latest row is in a stretch with a bad end, and those of the rows after the last sentinel, of which
        nobody knows yet.
    """
    doubtful, stretch, good = set[str](), list[str](), True
    for row in history:
        if row.status == "transferred":
            continue
        if row.kind != "sentinel":
            stretch.append(row.key)
            continue
        (doubtful.difference_update if good and _is_good(row) else doubtful.update)(stretch)
        stretch, good = [], row.status == "ok"
    return (doubtful - set(stretch)) if good else (doubtful | set(stretch)), stretch
