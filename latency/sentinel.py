"""The sentinel: a block that is measured repeatedly. If two measurements agree, the device has not drifted between."""

from collections.abc import Iterable, Sequence

import msgspec

from latency.errors import LatencyError
from latency.rows import Row


class Safeguards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measures that make a table trustworthy.

    Attributes:
        sentinel_every: number of rows after which the sentinel is measured; 0 for never.
        sentinel_every_s: seconds after which it is measured at the latest. Drift that comes and goes in between is
            missed.
        drift_limit: relative difference from its reference above which, and beyond the noise of both, the device counts
            as drifted.
        patience_s: seconds for which only a drifted sentinel is measured until the device recovers; if it does not, its
            latency becomes the new reference.
        retries: how often a row is measured again because the device drifted around it.
        monitor: whether the device's monitor is read and disturbed windows are discarded.
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
            LatencyError: a value is negative, or the drift limit is not a finite number above 0.
        """
        for name in ("sentinel_every", "sentinel_every_s", "patience_s", "retries"):
            if getattr(self, name) < 0:
                raise LatencyError(f"{name} {getattr(self, name)}: 0 or more are allowed")
        if not 0 < self.drift_limit < float("inf"):
            raise LatencyError(f"drift_limit {self.drift_limit}: a number above 0 is allowed, such as 0.03")


OFF = Safeguards(sentinel_every=0, retries=0, monitor=False)


def drift(row: Row, reference: Row, limit: float) -> float:
    """Return how much slower a sentinel is than its reference, relatively; 0 within the limit or the noise of both."""
    if not row.measured:
        return 0.0
    change = row.median_us / reference.median_us - 1
    apart = row.low_us > reference.high_us or row.high_us < reference.low_us
    return change if abs(change) > limit and apart else 0.0


def reference(history: Iterable[Row], block: str) -> Row | None:
    """Return the row that a block's sentinels are compared with: the first, or that after the last lasting change."""
    latest = None
    for row in history:
        if row.kind == "sentinel" and row.blocks == (block,) and row.status == "ok" and (latest is None or row.error):
            latest = row
    return latest


def unfinished(history: Iterable[Row]) -> str:
    """Return why the last rows of a table may have drifted; "" if it ends with a good sentinel, or never had one.

    Args:
        history: all rows of a table in order; transferred ones are ignored.
    """
    rows = [row for row in history if row.status != "transferred"]
    last = next((index for index in reversed(range(len(rows))) if rows[index].kind == "sentinel"), None)
    if last is None:
        return ""
    if behind := len(rows) - 1 - last:
        return f"{behind} {'row was' if behind == 1 else 'rows were'} measured after the last sentinel"
    return "" if _is_good(rows[last]) else f"the last sentinel is not good: {rows[last].error or rows[last].status}"


def _is_good(row: Row) -> bool:
    """Return whether a sentinel shows no drift."""
    return row.status == "ok" and not row.error


def doubtful(history: Sequence[Row]) -> tuple[set[str], list[str]]:
    """Find the rows of a table that were measured while the device drifted.

    The rows between two sentinels are trusted if both are good: `ok`, and the later one is not a new reference.

    Args:
        history: all rows of a table in order.

    Returns:
        Keys whose latest row is between sentinels of which one is bad, and keys of the rows after the last sentinel,
        which are not confirmed yet.
    """
    doubtful, stretch, good = set[str](), list[str](), True
    for row in history:
        if row.status == "transferred":
            continue
        if row.kind != "sentinel":
            stretch.append(row.key)
            continue
        if good and _is_good(row):
            doubtful.difference_update(stretch)
        else:
            doubtful.update(stretch)
        stretch, good = [], row.status == "ok"
    return (doubtful - set(stretch)) if good else (doubtful | set(stretch)), stretch
