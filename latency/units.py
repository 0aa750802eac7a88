"""Units: the one place of factors of 1000. Latencies are kept and computed in microseconds; people read and write milliseconds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

_KILO = 1000

Number = TypeVar("Number")  # a float, an array or a tensor: the arithmetic is the same


@dataclass(frozen=True)
class Unit:
    """What latencies are shown in, so that those beside one another share it."""

    name: str
    size_us: int
    digits: int
    """behind the point"""

    def of(self, us: Number) -> Number:
        """Microseconds in this unit."""
        return us / self.size_us  # pyright: ignore

    def number(self, us: float | int) -> str:
        """A latency without the unit's name."""
        return f"{self.of(us):,.{self.digits}f}"

    def words(self, us: float | int) -> str:
        """A latency as people read it."""
        return f"{self.number(us)} {self.name}"

    def interval(self, latency: "HasInterval") -> str:
        """A latency with its interval."""
        return f"{self.words(latency.us)} ({self.number(latency.low_us)} to {self.number(latency.high_us)})"


MICROSECONDS, MILLISECONDS = Unit("µs", 1, 1), Unit("ms", _KILO, 3)


def unit_for(us: Iterable[float | int]) -> Unit:
    """The unit for several latencies: milliseconds where all reach 1 ms, so that none loses its digits."""
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
    return unit_for([us]).words(us)


def milliseconds(us: float | int) -> str:
    """A latency in milliseconds, to four digits, as budgets are given."""
    return f"{ms_from_us(us):.4g} ms"


def interval(latency: HasInterval, unit: Unit | None = None) -> str:
    """A latency with its interval, and what is to be said of it.

    Args:
        latency: what to show.
        unit: to show it in; None for its own.
    """
    unit = unit or unit_for([latency.us])
    return ", ".join([unit.interval(latency), *latency.remarks(unit)])
