"""Metrics of a network's quality: name, unit, whether higher is better, and values with their intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from deploy.samples import Samples, Tensors
from latency.values import Single

Z_95 = 1.959964
"""half of a 95 % interval, in standard errors"""


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value of the metric on some samples, with its 95 % interval."""

    value: Single
    low: Single
    high: Single

    @classmethod
    def about(cls, value: float, error: float) -> "Figure":
        """Return the figure of a value with the given standard error."""
        return cls(value=value, low=value - Z_95 * error, high=value + Z_95 * error)


class Metric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name and format of a figure of merit in tables and plots."""

    name: Annotated[str, Meta(min_length=1)]
    """name, such as accuracy, mIoU or PSNR"""
    higher_is_better: bool = True
    unit: str = ""
    """`%` for shares, shown times 100; otherwise the suffix of the number, such as dB"""

    def words(self, value: float) -> str:
        """Format a value with its unit."""
        return f"{value:.2%}" if self.unit == "%" else f"{value:.4g}{f' {self.unit}' * bool(self.unit)}"

    def figure(self, figure: Figure) -> str:
        """Format a value with its interval."""
        return f"{self.words(figure.value)} ({self.words(figure.low)} to {self.words(figure.high)})"

    @property
    def axis(self) -> str:
        """Title of a plot's axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def on_axis(self, value: float) -> float:
        """Return a value in the unit of a plot's axis."""
        return 100 * value if self.unit == "%" else value

    def gain(self, value: float) -> float:
        """Return a number that is higher for better values."""
        return value if self.higher_is_better else -value


ACCURACY = Metric(name="accuracy", unit="%")
"""Share of correctly classified samples."""


@dataclass(frozen=True)
class Quality:
    """Measure of a network's quality on its validation samples.

    Attributes:
        metric: the metric.
        of: returns the value of the metric for outputs on the samples; None if it is not defined for them.
    """

    metric: Metric
    of: Callable[[Tensors, Samples], Figure | None]
