"""The sample loop: warm up until the latency is stationary, sample until the median's interval is narrow, judge."""

import math
import statistics
import time
import typing
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from latency.monitor import Monitor, Reading
from latency.protocol import Protocol
from latency.units import Unit
from latency.values import SampleUs, TimeUs

_WINDOW_MS = 50.0  # longest sampling window; a shorter disturbance goes unnoticed
_PATIENCE = 3  # discarded windows may take this many times the protocol's maximum time
# Confidence of the test for a shift and of the interval of a median between modes; both are repeated at every look.
_SURE = 0.999
_Z = 3.29  # two-sided normal quantile of _SURE
_CHANCE = 0.01  # maximum probability of so empty a valley if there is only one mode
_LEAST_SHARE = 0.15  # minimum share of a mode in the samples; outliers and regular spikes are rarer
_STATED = 0.99  # confidence at which a percentile is stated


@typing.runtime_checkable
class Timed(typing.Protocol):
    """Something with a measurable latency."""

    def run(self, count: int) -> Sequence[float]:
        """Run `count` inferences back to back; return the latency of each in microseconds."""
        ...


@typing.runtime_checkable
class Launched(Timed, typing.Protocol):
    """Something on a GPU whose inferences can be launched in several ways."""

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched, see `Protocol`; return the deviation from that and its reason, or ""."""
        ...


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Samples of a latency and their statistics.

    Attributes:
        samples_us: the samples in the order in which they were taken, rounded to a nanosecond, the clock's resolution.
        median_us: their median.
        low_us: lower end of the median's interval.
        high_us: upper end. If the latency moved or has two modes, the interval spans the medians of both parts.
        p90_us: the 90th percentile; None if there are too few samples to state it (`percentile`).
        p99_us: the 99th percentile; likewise.
        status: `unstable` if the interval is wider than the protocol allows, the latency did not become stationary, the
            samples have two modes, or the device was disturbed throughout.
        reason: why it is unstable; "" if it is not.
        error: deviation of the measurement from the protocol; "" for none.
        clocks: readings of the monitor between windows: the median of each value, and `discarded_windows`.
    """

    samples_us: tuple[SampleUs, ...]
    median_us: TimeUs
    low_us: TimeUs
    high_us: TimeUs
    p90_us: SampleUs | None = None
    p99_us: SampleUs | None = None
    status: Literal["ok", "unstable"]
    reason: str = ""
    error: str = ""
    clocks: dict[str, float] = {}

    @property
    def us(self) -> float:
        """The median."""
        return self.median_us

    def remarks(self, unit: Unit) -> list[str]:
        """Remarks for the user: the stated percentiles, and why it is unstable."""
        tails = [
            f"{name} {unit.words(value)}"
            for name, value in (("p90", self.p90_us), ("p99", self.p99_us))
            if value is not None
        ]
        return [*tails, ": ".join(filter(None, (self.status, self.reason)))] if self.status != "ok" else tails


def measure(
    timed: Timed, protocol: Protocol, clock: Callable[[], int] = time.perf_counter_ns, monitor: Monitor | None = None
) -> Measurement:
    """Measure a latency by a protocol.

    Inferences run in windows. The monitor is read between windows, never inside, as reading takes time from the device;
    a window with a disturbed reading at either end is discarded and counted.

    After the fixed warm-up the device is watched for the protocol's `settle_runs` or `settle_ms`, and while the latency
    still moves, up to `max_time_ms`. Samples are taken from the stationary end of the watched runs (`stationary_from`),
    spread evenly over it. A flat transient that outlasts the watch cannot be distinguished from the latency itself.

    Args:
        timed: what to measure.
        protocol: warm-up, stop rule and limits.
        clock: monotonic nanoseconds; decides when to stop, never the value of a sample.
        monitor: watches the device; None for none.
    """
    error = (
        timed.launch(cuda_graph=protocol.cuda_graph, spin_wait=protocol.spin_wait)
        if isinstance(timed, Launched)
        else ""
    )
    end = clock() + round(protocol.warmup_ms * 1e6)
    timed.run(1)
    while clock() < end:
        timed.run(1)

    windows = _Windows(timed, clock, monitor)
    measurement, next_look = None, 0.0  # the device idles during a look, so there are few
    while measurement is None and windows.discarded_ms < _PATIENCE * protocol.max_time_ms:
        if windows.run(_window_length(windows, protocol)) and (
            len(windows.runs_us) >= next_look or windows.elapsed_ms >= protocol.max_time_ms
        ):
            measurement, next_look = _measurement_of(windows, protocol), 1.25 * len(windows.runs_us)
    if measurement is None:
        measurement = summarize(_spread(windows.runs_us or windows.last_us, protocol.max_samples), protocol)
        words = f"the device was disturbed throughout: {', '.join(windows.disturbed)}"
        measurement = msgspec.structs.replace(measurement, status="unstable", reason=words)
    return msgspec.structs.replace(measurement, error=error, clocks=windows.clocks())


class _Windows:
    """Runs something window by window and keeps the latencies of undisturbed windows.

    Attributes:
        runs_us: latency of every run in undisturbed windows.
        elapsed_ms: duration of those windows.
        last_us: runs of the latest window, disturbed or not.
        discarded_ms: duration of the disturbed windows.
        disturbed: disturbances of the latest window.
    """

    def __init__(self, timed: Timed, clock: Callable[[], int], monitor: Monitor | None) -> None:
        self._timed, self._clock, self._monitor = timed, clock, monitor
        self._readings: list[Reading] = [monitor.read()] if monitor else []
        self.runs_us: list[float] = []
        self.last_us: Sequence[float] = ()
        self.elapsed_ms, self.discarded_ms, self._discarded = 0.0, 0.0, 0
        self.disturbed: tuple[str, ...] = ()

    def run(self, count: int) -> bool:
        """Run one window; return whether it was undisturbed, and so kept."""
        start = self._clock()
        self.last_us = self._timed.run(count)
        window_ms = (self._clock() - start) / 1e6
        if self._monitor:
            self._readings.append(self._monitor.read())
            before, after = self._readings[-2:]
            self.disturbed = tuple(dict.fromkeys(before.disturbed + after.disturbed))
            if self.disturbed:
                self._discarded, self.discarded_ms = self._discarded + 1, self.discarded_ms + window_ms
                return False
        self.runs_us.extend(self.last_us)
        self.elapsed_ms += window_ms
        return True

    def clocks(self) -> dict[str, float]:
        """Return the readings, see `Measurement.clocks`."""
        names = dict.fromkeys(name for reading in self._readings for name in reading.clocks)
        medians = {
            name: statistics.median(reading.clocks[name] for reading in self._readings if name in reading.clocks)
            for name in names
        }
        return medians | ({"discarded_windows": float(self._discarded)} if self._discarded else {})


def _window_length(windows: _Windows, protocol: Protocol) -> int:
    """Return the number of runs of the next window. Windows grow, so that a long watch is not split into many."""
    taken, elapsed_ms = len(windows.runs_us), windows.elapsed_ms
    count = max(
        protocol.min_samples - taken, min(taken // 2, int(taken * _WINDOW_MS / elapsed_ms) if elapsed_ms else taken), 1
    )
    return min(count, protocol.settle_runs - taken) if taken < protocol.settle_runs else count


def _measurement_of(windows: _Windows, protocol: Protocol) -> Measurement | None:
    """Return the measurement from the runs so far; None if more are needed."""
    taken = len(windows.runs_us)
    if (
        taken < protocol.settle_runs and windows.elapsed_ms < protocol.settle_ms
    ) or windows.elapsed_ms < protocol.min_time_ms:
        return None
    start, settled = stationary_from(windows.runs_us, protocol.half_width) if protocol.settle_runs else (0, True)
    kept = windows.runs_us[start:]
    if len(kept) < protocol.min_samples or windows.elapsed_ms * len(kept) / taken < protocol.min_time_ms:
        return None
    measurement = summarize(_spread(kept, protocol.max_samples), protocol)
    late = windows.elapsed_ms >= protocol.max_time_ms
    if not settled:
        reason = measurement.reason or f"the latency did not become stationary in {windows.elapsed_ms:.0f} ms"
        return msgspec.structs.replace(measurement, status="unstable", reason=reason) if late else None
    return measurement if measurement.status == "ok" or late or len(kept) >= protocol.max_samples else None


def _spread(values: Sequence[float], most: int) -> Sequence[float]:
    """Thin values to at most `most`, in order: one from each stretch, at a random position.

    Evenly spaced values could contain too many or none of the regular spikes.
    """
    if len(values) <= most:
        return values
    places = np.arange(most) + np.random.RandomState(0).random_sample(most)
    indices: list[int] = (places * len(values) / most).astype(int).tolist()
    return [values[index] for index in indices]


def stationary_from(runs_us: Sequence[float], tolerance: float) -> tuple[int, bool]:
    """Find the stationary end of a series of latencies.

    The whole series, its last three quarters and its last half are tried in this order: a fixed share of the watched
    runs is cut off as the initial transient of a simulation is (Welch 1983, "The statistical analysis of simulation
    results"), so that the rest must be stationary for at least as long as the part that was cut. The first eighth of
    the one that did not move (`_moved`) is dropped too: less than half of it may still be the transient's end. A
    latency need not become stationary at all (Barrett et al. 2017, "Virtual machine warmup blows hot and cold").

    Args:
        runs_us: latencies in the order in which they were measured.
        tolerance: relative shift of the median that is ignored.

    Returns:
        Index of the first stationary run, and whether there is one; if not, the index for the last half.
    """
    runs, n = np.asarray(runs_us, dtype=float), len(runs_us)
    for start in (0, n // 4, n // 2):
        if _moved(runs[start:], tolerance) is None:
            return start + (n - start) // 8, True
    return n // 2, False


def _moved(runs: np.ndarray, tolerance: float) -> tuple[float, float] | None:
    """Return whether an end of a series, its first or last eighth or half, differs from the whole.

    A sign test against the median of the whole (Mood 1950, "Introduction to the theory of statistics", chapter 16):
    significantly more than half of a part's values are on one side of the median, by more than the tolerance. It
    assumes no distribution of the noise, and an outlier counts as one value. The medians of both halves must not differ
    by twice the tolerance either, which decides if there are few values.

    Returns:
        The medians of the first and the last part if they differ; else None.
    """
    n, median = len(runs), float(np.median(runs))
    high, low = runs > median * (1 + tolerance), runs < median * (1 - tolerance)
    for size in (n // 8, n // 2):
        ends = slice(0, size), slice(n - size, n)
        if not size:
            continue
        before, after = (float(np.median(runs[end])) for end in ends)
        most = max(int(beyond[end].sum()) for beyond in (high, low) for end in ends)
        if most > size / 2 + _Z * math.sqrt(size) / 2 or (
            size == n // 2 and abs(after - before) > 2 * tolerance * median
        ):
            return before, after
    return None


def summarize(samples: Sequence[float], protocol: Protocol) -> Measurement:
    """Return the measurement of samples in microseconds, judged by a protocol's limits."""
    samples_us = tuple(round(float(sample), 3) for sample in samples)
    median_us = statistics.median(samples_us)
    low_us, high_us = median_interval(samples_us, protocol.confidence)
    reason = ""
    if ends := _moved(np.asarray(samples_us), protocol.half_width):
        reason = f"the latency moved while sampling, from {ends[0]:.2f} us to {ends[1]:.2f} us"
        low_us, high_us = min(low_us, *ends), max(high_us, *ends)
    elif modes := _two_modes(samples_us, 2 * protocol.half_width):
        reason = (
            f"the samples have two modes: {modes.lower:.1f} us ({modes.share:.0%} of the samples) and "
            f"{modes.upper:.1f} us"
        )
        low_us, high_us = min(low_us, modes.lower), max(high_us, modes.upper)
    elif (reach := max(median_us - low_us, high_us - median_us)) > protocol.half_width * median_us:
        reason = f"the median is uncertain by {reach / median_us:.2%}, the protocol allows {protocol.half_width:.2%}"
    return Measurement(
        samples_us=samples_us,
        median_us=round(median_us, 3),
        low_us=round(low_us, 3),
        high_us=round(high_us, 3),
        p90_us=percentile(samples_us, 0.90),
        p99_us=percentile(samples_us, 0.99),
        status="unstable" if reason else "ok",
        reason=reason,
    )


class _Modes(NamedTuple):
    """Two modes of samples: the medians of both, in the samples' unit, and the lower one's share of the samples."""

    lower: float
    upper: float
    share: float


def _two_modes(samples: Sequence[float], tolerance: float) -> _Modes | None:
    """Find two modes of samples; None for one mode, or for modes closer than the tolerance, relative to the median.

    There are two modes if both sides of some split have at least `_LEAST_SHARE` of the samples, and the valley around
    the split, the middle half between the medians of both sides, has none or few. A density with one mode has no
    valley: normal, uniform and exponential densities have at least half of the smaller side's samples there, and a
    spike with a flat tail, the worst case, has a quarter. So a valley is one where the number of samples has a
    probability below `_CHANCE` if a quarter is expected; or where there are none and the split is within the 99.9 %
    interval of the median, as it is then a matter of chance which side the median is on. Skewed jitter has no valley,
    and outliers have too small a share. Detecting a mode of 30 % beside the median takes about a hundred samples.
    """
    ordered, n = np.sort(np.asarray(samples)), len(samples)
    least = math.ceil(_LEAST_SHARE * n)
    splits = np.arange(max(1, least), n - max(1, least) + 1)
    if not len(splits):
        return None
    lower, upper = ordered[(splits - 1) // 2], ordered[(splits + n - 1) // 2]
    first = np.searchsorted(ordered, lower + (upper - lower) / 4, side="right")
    last = np.searchsorted(ordered, upper - (upper - lower) / 4, side="left")
    sides, between = np.minimum(first, n - last), last - first
    apart = (
        (upper - lower > tolerance * float(np.median(ordered)))
        & (sides >= least)
        & (first <= splits)
        & (splits <= last)
    )
    best = int(np.where(apart, sides / 4 - between, -math.inf).argmax())
    rank = _lower_rank(n, _SURE)
    if not apart[best]:
        return None
    chance = _poisson_at_most(int(between[best]), float(sides[best]) / 4)
    if chance >= _CHANCE and (between[best] or not rank <= splits[best] <= n - rank):
        return None
    return _Modes(float(lower[best]), float(upper[best]), int(splits[best]) / n)


def _poisson_at_most(count: int, expected: float) -> float:
    """Return the probability of at most `count` events, given the expected number."""
    terms = [k * math.log(expected) - math.lgamma(k + 1) for k in range(min(count, int(expected)) + 1)]
    return math.fsum(math.exp(term - expected) for term in terms)


def percentile(samples: Sequence[float], share: float) -> float | None:
    """Return the smallest sample that at least `share` of the samples do not exceed; None if there are too few samples.

    Args:
        samples: values in any order and unit.
        share: such as 0.99.
    """
    if len(samples) < samples_to_state(share):
        return None
    return sorted(samples)[math.ceil(round(share * len(samples), 9)) - 1]


@cache
def samples_to_state(share: float) -> int:
    """Return the number of samples needed to state a percentile at 99 % confidence: 64 for the 90th, 662 for the 99th.

    The rule of MLPerf's LoadGen (mlcommons/inference, loadgen/early_stopping.cc) with one sample over the percentile:
    the smallest n for which at most one of n samples exceeds it with a probability of at most 1 %, if each does with
    probability 1 - share.
    """
    n = 2
    while share**n + n * (1 - share) * share ** (n - 1) > 1 - _STATED:
        n += 1
    return n


def median_interval(samples: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the median, in the limit of infinitely many resamples.

    A resample's median is at most the k-th smallest sample if at least half of its draws are, and the number of those
    draws is binomial (Efron 1979, "Bootstrap methods: another look at the jackknife", section 3). So the ends of the
    interval are two order statistics whose ranks depend only on the number of samples: deterministic, no random
    numbers. For an even number of samples the lower middle value gives the lower end and the upper middle value the
    upper end, which is never narrower than the exact interval.

    Args:
        samples: at least one value.
        confidence: such as 0.95.

    Returns:
        Lower and upper end, in the samples' unit.
    """
    ordered = sorted(samples)
    rank = _lower_rank(len(ordered), confidence)
    return ordered[rank], ordered[len(ordered) - 1 - rank]


@cache
def _lower_rank(n: int, confidence: float) -> int:
    """Return the index of the interval's lower end among n sorted samples; the upper end mirrors it."""
    middle = (n + 1) // 2
    draws = np.arange(middle, n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_ways = log_factorial[n] - log_factorial[draws] - log_factorial[n - draws]

    def at_most(below: int) -> float:
        """Return the probability that a resample's median is at most the `below`-th smallest sample."""
        p = below / n
        return float(np.exp(log_ways + draws * math.log(p) + (n - draws) * math.log1p(-p)).sum())

    return bisect_left(range(1, n), (1 - confidence) / 2, key=at_most)
