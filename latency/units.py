"""Units: the only place with factors of 1000.

Latencies are stored and computed in microseconds; users read and write milliseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

_KILO = 1000

Number = TypeVar("Number")  # a float, an array or a tensor: the arithmetic is the same


@dataclass(frozen=True)
class Unit:
    """Unit in which latencies are shown, shared by latencies that are shown together."""

    name: str
    size_us: int
    digits: int
    """digits after the decimal point"""

    def of(self, us: Number) -> Number:
        """Convert microseconds to this unit."""
        return us / self.size_us  # pyright: ignore

    def number(self, us: float | int) -> str:
        """Format a latency without the unit's name."""
        return f"{self.of(us):,.{self.digits}f}"

    def words(self, us: float | int) -> str:
        """Format a latency with its unit."""
        return f"{self.number(us)} {self.name}"

    def interval(self, latency: "HasInterval") -> str:
        """Format a latency with its interval."""
        return f"{self.words(latency.us)} ({self.number(latency.low_us)} to {self.number(latency.high_us)})"


MICROSECONDS, MILLISECONDS = Unit("µs", 1, 1), Unit("ms", _KILO, 3)


def unit_for(us: Iterable[float | int]) -> Unit:
    """Return the unit for several latencies: milliseconds if all are at least 1 ms, so that none loses digits."""
    return MILLISECONDS if min(us, default=0) >= _KILO else MICROSECONDS


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

    def remarks(self, unit: Unit) -> list[str]:
        """Remarks for the user."""
        ...


def us_from_ms(ms: Number) -> Number:
    """Convert milliseconds to microseconds."""
    return ms * _KILO  # pyright: ignore


def ms_from_us(us: Number) -> Number:
    """Convert microseconds to milliseconds."""
    return us / _KILO  # pyright: ignore


def s_from_ms(ms: float | int) -> float:
    """Convert milliseconds to seconds."""
    return ms / _KILO


def us_from_ns(ns: float | int) -> float:
    """Convert nanoseconds to microseconds."""
    return ns / _KILO


def ns_from_us(us: float | int) -> int:
    """Convert microseconds to whole nanoseconds."""
    return round(us * _KILO)


def kilo(count: Number) -> Number:
    """Convert to thousands: elements to thousands of elements, or milliwatts to watts."""
    return count / _KILO  # pyright: ignore


def microseconds(us: float | int) -> str:
    """Format a latency in microseconds, or in milliseconds from 1 ms."""
    return unit_for([us]).words(us)


def milliseconds(us: float | int) -> str:
    """Format a latency in milliseconds with four digits, as budgets are given."""
    return f"{ms_from_us(us):.4g} ms"


def interval(latency: HasInterval, unit: Unit | None = None) -> str:
    """Format a latency with its interval and remarks.

    Args:
        latency: the latency to show.
        unit: unit to show it in; None for its own.
    """
    unit = unit or unit_for([latency.us])
    return ", ".join([unit.interval(latency), *latency.remarks(unit)])
