"""Latencies for people to read. They are kept and computed in microseconds; the factor to milliseconds is here."""

from latency.measure import Measurement
from latency.table import Latency


def microseconds(us: float) -> str:
    """A latency in microseconds, or in milliseconds from 1 ms on."""
    return f"{us / 1000:.3f} ms" if us >= 1000 else f"{us:.1f} µs"


def interval(latency: Latency | Measurement) -> str:
    """A latency with its interval."""
    us = latency.us if isinstance(latency, Latency) else latency.median_us
    return f"{microseconds(us)} ({microseconds(latency.low_us)} to {microseconds(latency.high_us)})"
