"""Latencies for people to read. They are kept and computed in microseconds; the factor to milliseconds is here."""

from latency.measure import Measurement
from latency.table import Latency


def microseconds(us: float) -> str:
    """A latency in microseconds, or in milliseconds from 1 ms on."""
    return f"{us / 1000:.3f} ms" if us >= 1000 else f"{us:.1f} µs"


def interval(latency: Latency | Measurement) -> str:
    """A latency with its interval; of a measured one the percentiles that were stated, and why it is unstable."""
    us = latency.us if isinstance(latency, Latency) else latency.median_us
    parts = [f"{microseconds(us)} ({microseconds(latency.low_us)} to {microseconds(latency.high_us)})"]
    if isinstance(latency, Latency):
        parts += [latency.origin] if latency.origin else []
    else:
        parts += [
            f"{name} {microseconds(value)}" for name, value in (("p90", latency.p90_us), ("p99", latency.p99_us)) if value is not None
        ]
        parts += [": ".join(filter(None, (latency.status, latency.reason)))] if latency.status != "ok" else []
    return ", ".join(parts)
