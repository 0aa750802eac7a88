"""Units: the one place of factors of 1000. Latencies are kept and computed in microseconds; people read and write milliseconds."""

from typing import Protocol, TypeVar, runtime_checkable

_KILO = 1000

Number = TypeVar("Number")  # a float, an array or a tensor: the arithmetic is the same


@runtime_checkable
class HasInterval(Protocol):
    """A latency with its interval, in microseconds."""

    @property
    def us(self) -> float:
        """The latency."""
        ...

    @property
    def low_us(self) -> float:
        """Lower end of its interval."""
        ...

    @property
    def high_us(self) -> float:
        """Upper end of its interval."""
        ...

    @property
    def remarks(self) -> list[str]:
        """What a person should know of it."""
        ...


def us_from_ms(ms: Number) -> Number:
    """Microseconds from milliseconds."""
    return ms * _KILO  # pyright: ignore


def ms_from_us(us: Number) -> Number:
    """Milliseconds from microseconds."""
    return us / _KILO  # pyright: ignore


def s_from_ms(ms: float | int) -> float:
    """Seconds from milliseconds."""
    return ms / _KILO


def us_from_ns(ns: float | int) -> float:
    """Microseconds from nanoseconds."""
    return ns / _KILO


def ns_from_us(us: float | int) -> int:
    """Whole nanoseconds from microseconds."""
    return round(us * _KILO)


def kilo(count: Number) -> Number:
    """Thousands from ones: of elements, or watts from milliwatts."""
    return count / _KILO  # pyright: ignore


def microseconds(us: float | int) -> str:
    """A latency in microseconds, or in milliseconds from 1 ms on."""
    return f"{ms_from_us(us):.3f} ms" if us >= _KILO else f"{us:.1f} µs"


def milliseconds(us: float | int) -> str:
    """A latency in milliseconds, to four digits, as budgets are given."""
    return f"{ms_from_us(us):.4g} ms"


def interval(latency: HasInterval) -> str:
    """A latency with its interval, and what is to be said of it."""
    found = f"{microseconds(latency.us)} ({microseconds(latency.low_us)} to {microseconds(latency.high_us)})"
    return ", ".join([found, *latency.remarks])
