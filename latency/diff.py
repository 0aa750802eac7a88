"""Compare two tables of the same blocks: which is faster, and by how much."""

import math
import statistics
from typing import Any, Literal

import msgspec
import numpy as np

from latency.device import differences
from latency.errors import LatencyError
from latency.listing import family_of, titled
from latency.rows import Row
from latency.table import LatencyTable

Verdict = Literal["SAME", "FASTER", "SLOWER", "UNSURE"]

_RESAMPLES = 1000
# Header fields that do not say how a table was measured; `origin` covers the last.
_NOT_HOW = ("created", "bundle_sha256", "recording")


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Change from the first table to the second.

    Attributes:
        key: key of the row; "" for a family, and for all rows together.
        family: family of the row (`latency.listing.family_of`); "" for all rows together.
        verdict: `FASTER` or `SLOWER`: the second table is, by more than the tolerance. `SAME`: the change is within it.
            `UNSURE`: the interval allows no verdict.
        ratio: latency in the second table to that in the first.
        low: lower end of the ratio's 95 % interval.
        high: upper end.
    """

    key: str = ""
    family: str = ""
    verdict: Verdict
    ratio: float
    low: float
    high: float


class RowDifference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A header field that differs, dotted if nested, such as `device.threads`, with its value in both tables."""

    field: str
    first: Any
    second: Any


class Diff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Comparison of two tables.

    Attributes:
        differences: differences in how the tables were made: device, runtime, protocol, precision, threads and so on.
        tolerance: largest relative change of a row, or of a family's mean, that counts as none.
        overall_tolerance: the same for the mean of all rows.
        overall: geometric mean of the rows' ratios.
        families: geometric mean of each family (`latency.listing.family_of`), in the first table's order.
        rows: change of each key that both tables measured, in the first table's order.
        only_a: keys that only the first table measured.
        only_b: keys that only the second table measured.
    """

    differences: tuple[RowDifference, ...]
    tolerance: float
    overall_tolerance: float
    overall: Change
    families: tuple[Change, ...]
    rows: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def titles(self) -> dict[str, str]:
        """Title of each family."""
        return {change.family: titled(change.key)[0] if "[" in change.key else change.family for change in self.rows}

    @property
    def same(self) -> bool:
        """Whether both tables measured the same keys, and all rows and their mean are SAME."""
        return (
            not self.only_a
            and not self.only_b
            and {change.verdict for change in (self.overall, *self.rows)} == {"SAME"}
        )


def diff(
    a: LatencyTable, b: LatencyTable, *, tolerance: float = 0.03, overall_tolerance: float = 0.01, seed: int = 0
) -> Diff:
    """Compare two tables block by block and overall. They may be of different devices.

    Intervals are percentile bootstrap intervals at 95 % (Efron 1979). Both tables' rows are resampled in the same way,
    by their samples and around their medians. Rows with identical samples are one measurement and have no interval:
    they are SAME. Overall, the rows are resampled too: another choice of blocks would have another mean.

    Args:
        a: the first table.
        b: the second table.
        tolerance: largest relative change of a row, or of a family's mean, that counts as none: the same block may
            differ as much when compiled again.
        overall_tolerance: largest relative change of the mean that counts as none.
        seed: seed of the resampling.

    Raises:
        LatencyError: no key was measured in both.
    """
    rows_a, rows_b = (
        {row.key: row for row in table.rows if row.measured and row.kind != "sentinel"} for table in (a, b)
    )
    keys = [key for key in rows_a if key in rows_b]
    if not keys:
        raise LatencyError(f"tables {a.path} and {b.path} measured no block in common: give two tables of one space")
    rng = np.random.default_rng(seed)
    logs = np.array([_log_ratios(rows_a[key], rows_b[key], rng) for key in keys])
    middles = [math.log(rows_b[key].median_us / rows_a[key].median_us) for key in keys]
    overall = _means(logs, rng)
    members: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        members.setdefault(family_of(rows_a[key]), []).append(index)
    origins = [table.origin or "measured" for table in (a, b)]
    origin = (RowDifference(field="origin", first=origins[0], second=origins[1]),) if origins[0] != origins[1] else ()
    return Diff(
        differences=tuple(
            RowDifference(field=field, first=first, second=second)
            for field, first, second in differences(a.header, b.header, ignored=_NOT_HOW)
        )
        + origin,
        tolerance=tolerance,
        overall_tolerance=overall_tolerance,
        overall=_change(overall, statistics.fmean(middles), overall_tolerance),
        families=tuple(
            _change(
                _means(logs[indices], rng),
                statistics.fmean(middles[index] for index in indices),
                tolerance,
                family=family,
            )
            for family, indices in members.items()
        ),
        rows=tuple(
            _change(line, middle, tolerance, key=key, family=family_of(rows_a[key]))
            for key, middle, line in zip(keys, middles, logs, strict=True)
        ),
        only_a=tuple(key for key in rows_a if key not in rows_b),
        only_b=tuple(key for key in rows_b if key not in rows_a),
    )


def _means(logs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return means of resampled rows: each resample of their samples has its own choice of rows."""
    chosen = rng.integers(len(logs), size=(_RESAMPLES, len(logs)))
    return logs[chosen, np.arange(_RESAMPLES)[:, None]].mean(axis=1)


def _log_ratios(a: Row, b: Row, rng: np.random.Generator) -> np.ndarray:
    """Return logarithms of the ratios of both rows' resampled medians."""
    return np.zeros(_RESAMPLES) if a.samples_us == b.samples_us else _log_medians(b, rng) - _log_medians(a, rng)


def _log_medians(row: Row, rng: np.random.Generator) -> np.ndarray:
    """Return logarithms of the medians of resamples of a row's samples.

    A resample's median is an order statistic whose rank is the median of n uniform draws, and so is beta distributed.
    """
    ordered = np.sort(np.asarray(row.samples_us))
    n, half = len(ordered), (len(ordered) + 1) / 2
    return np.log(ordered[np.minimum((rng.beta(half, half, _RESAMPLES) * n).astype(int), n - 1)])


def _change(logs: np.ndarray, middle: float, tolerance: float, *, key: str = "", family: str = "") -> Change:
    low, high = (float(value) for value in np.exp(np.quantile(logs, [0.025, 0.975])))
    verdict: Verdict = "UNSURE"
    if high < 1 - tolerance:
        verdict = "FASTER"
    elif low > 1 + tolerance:
        verdict = "SLOWER"
    elif low >= 1 - tolerance and high <= 1 + tolerance:
        verdict = "SAME"
    return Change(key=key, family=family, verdict=verdict, ratio=math.exp(middle), low=low, high=high)
