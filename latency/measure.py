"""The sample loop: warm up, sample until the median's interval is narrow, judge."""

import math
import statistics
import time
import typing
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import msgspec
import numpy as np

from latency.monitor import Monitor
from latency.protocol import Protocol

_WINDOW_MS = 200.0  # so long may a window last: a disturbance that comes and goes inside of one is not seen
_PATIENCE = 10  # so many times the protocol's ceiling of time may go into windows that are thrown away


@typing.runtime_checkable
class Timed(typing.Protocol):
    """Something whose latency can be measured."""

    def run(self, count: int) -> Sequence[float]:
        """Run `count` inferences back to back; the latency of each in microseconds."""
        ...


@typing.runtime_checkable
class Launched(Timed, typing.Protocol):
    """Something on a GPU, to which the host can hand an inference in more than one way."""

    def launch(self, *, cuda_graph: bool, spin_wait: bool) -> str:
        """Choose how later runs are launched; as `Protocol` has it. Returns why that cannot be had and what is done instead, or ""."""
        ...


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Samples of a latency and what they say.

    Attributes:
        samples_us: the samples in the order in which they were taken, to a nanosecond, which is what the clock resolves.
        median_us: their median.
        low_us: lower end of the median's interval.
        high_us: upper end. Where the median drifted while sampling, the interval spans the medians of both halves.
        status: `unstable` where the interval is wider than the protocol allows, the median drifted, or the device was disturbed throughout.
        error: in what it was not measured as the protocol asks; "" where it was.
        clocks: what the monitor read between windows: the median of each value, and `discarded_windows`.
    """

    samples_us: tuple[float, ...]
    median_us: float
    low_us: float
    high_us: float
    status: Literal["ok", "unstable"]
    error: str = ""
    clocks: dict[str, float] = {}


def measure(
    timed: Timed, protocol: Protocol, clock: Callable[[], int] = time.perf_counter_ns, monitor: Monitor | None = None
) -> Measurement:
    """Measure a latency by a protocol.

    Samples are taken in windows. The monitor is read between them, never inside, as reading it takes time from the device; a window with a
    disturbed reading at either end is thrown away and counted.

    Args:
        timed: what to run.
        protocol: warm-up, stop rule and limits.
        clock: monotonic nanoseconds; decides how long to go on, never what a sample is.
        monitor: watches the device; None for nobody.
    """
    error = timed.launch(cuda_graph=protocol.cuda_graph, spin_wait=protocol.spin_wait) if isinstance(timed, Launched) else ""
    end = clock() + round(protocol.warmup_ms * 1e6)
    timed.run(1)
    while clock() < end:
        timed.run(1)

    samples: list[float] = []  # every `stride`-th of those `taken`
    stride, taken, sampled_ms = 1, 0, 0.0
    discarded, discarded_ms, gave_up = 0, 0.0, False
    readings = [monitor.read()] if monitor else []
    while not gave_up:
        # Windows grow with what is there: few looks at the interval, and a long run is not cut into many short ones.
        count = max(protocol.min_samples - taken, min(taken // 2, int(taken * _WINDOW_MS / sampled_ms) if sampled_ms else taken), 1)
        start = clock()
        window = timed.run(min(count, protocol.max_samples * stride - taken))
        window_ms = (clock() - start) / 1e6
        if monitor:
            readings.append(monitor.read())
            if disturbed := readings[-2].disturbed + readings[-1].disturbed:
                discarded, discarded_ms = discarded + 1, discarded_ms + window_ms
                gave_up = discarded_ms >= _PATIENCE * protocol.max_time_ms
                if gave_up:
                    words = f"the device was disturbed throughout: {', '.join(dict.fromkeys(disturbed))}"
                    error = f"{error}; {words}" if error else words
                    samples = samples or list(window)
                continue
        samples.extend(window[::stride])
        taken, sampled_ms = taken + len(window), sampled_ms + window_ms
        if sampled_ms >= protocol.min_time_ms:
            full = taken >= protocol.max_samples or sampled_ms >= protocol.max_time_ms
            if full or summarize(samples, protocol).status == "ok":
                break
        if taken >= protocol.max_samples * stride:
            samples, stride = samples[::2], stride * 2

    found = summarize(samples, protocol)
    names = dict.fromkeys(name for reading in readings for name in reading.clocks)
    clocks = {name: statistics.median(reading.clocks[name] for reading in readings if name in reading.clocks) for name in names}
    return msgspec.structs.replace(
        found,
        status="unstable" if gave_up else found.status,
        error=error,
        clocks=clocks | ({"discarded_windows": float(discarded)} if discarded else {}),
    )


def summarize(samples: Sequence[float], protocol: Protocol) -> Measurement:
    """What samples in microseconds say by a protocol's limits."""
    samples_us = tuple(round(float(sample), 3) for sample in samples)
    median_us = statistics.median(samples_us)
    low_us, high_us = median_interval(samples_us, protocol.confidence)
    half = len(samples_us) // 2
    halves = (statistics.median(samples_us[:half]), statistics.median(samples_us[-half:])) if half else (median_us, median_us)
    # By chance alone the medians of two halves differ about twice as much as the median of all varies, hence the factor.
    drifted = abs(halves[1] - halves[0]) > 2 * protocol.half_width * median_us
    if drifted:
        low_us, high_us = min(low_us, *halves), max(high_us, *halves)
    settled = not drifted and max(median_us - low_us, high_us - median_us) <= protocol.half_width * median_us
    return Measurement(
        samples_us=samples_us,
        median_us=round(median_us, 3),
        low_us=round(low_us, 3),
        high_us=round(high_us, 3),
        status="ok" if settled else "unstable",
    )


def median_interval(samples: Sequence[float], confidence: float) -> tuple[float, float]:
    """The percentile bootstrap interval of the median, in the limit of infinitely many resamples.

    A resample's median is at most the k-th smallest sample when at least half of its draws are, and the number of those draws is binomial
    (Efron 1979, "Bootstrap methods: another look at the jackknife", section 3). So the interval's ends are two order statistics whose ranks
    depend on the number of samples alone: deterministic, no random numbers. For an even number the lower middle value gives the lower
    end and the upper middle one the upper end, which is never narrower than the exact interval.

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
    """Index of the interval's lower end among n sorted samples; the upper end mirrors it."""
    middle = (n + 1) // 2
    draws = np.arange(middle, n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_ways = log_factorial[n] - log_factorial[draws] - log_factorial[n - draws]

    def at_most(below: int) -> float:
        """How probable it is that a resample's median is at most the `below`-th smallest sample."""
        p = below / n
        return float(np.exp(log_ways + draws * math.log(p) + (n - draws) * math.log1p(-p)).sum())

    return bisect_left(range(1, n), (1 - confidence) / 2, key=at_most)
