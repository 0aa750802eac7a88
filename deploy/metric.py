"""The metric that a network is judged by: its name, its unit, whether more of it is better, and its values with their intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct

from deploy.samples import Samples, Tensors
from latency.values import Single

_Z = 1.959964  # standard errors of a 95 % interval


class Figure(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value of the metric on some samples, with its interval of 95 %."""

    value: Single
    low: Single
    high: Single

    @classmethod
    def about(cls, value: float, error: float) -> "Figure":
        """A value with a standard error."""
        return cls(value=value, low=value - _Z * error, high=value + _Z * error)


class Metric(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What tables and plots call a figure of merit, and how they show it."""

    name: Annotated[str, Meta(min_length=1)]
    """such as accuracy, mIoU or PSNR"""
    higher_is_better: bool = True
    unit: str = ""
    """`%`: values are shares, shown times 100; otherwise what stands behind the number, such as dB"""

    def words(self, value: float) -> str:
        """A value as people read it."""
        return f"{value:.2%}" if self.unit == "%" else f"{value:.4g}{f' {self.unit}' * bool(self.unit)}"

    def figure(self, found: Figure) -> str:
        """A value with its interval, as people read it."""
        return f"{self.words(found.value)} ({self.words(found.low)} to {self.words(found.high)})"

    @property
    def axis(self) -> str:
        """Title of a plot's axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def on_axis(self, value: float) -> float:
        """A value in the unit of that axis."""
        return 100 * value if self.unit == "%" else value

    def gain(self, value: float) -> float:
        """A number that is higher where the value is better."""
        return value if self.higher_is_better else -value


ACCURACY = Metric(name="accuracy", unit="%")
"""Share of the samples that are classified right."""


@dataclass(frozen=True)
class Quality:
    """How good a network is on the samples that it is validated on.

    Attributes:
        metric: what is taken.
        of: its value, of the outputs for these samples; None where they are nothing that it can be taken of.
    """

    metric: Metric
    of: Callable[[Tensors, Samples], Figure | None]
