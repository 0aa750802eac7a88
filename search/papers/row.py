"""One published number beside ours."""

from dataclasses import dataclass
from typing import Literal

_UNITS = {"M": 10**6, "G": 10**9, "%": 1, "ms": 1, "": 1}

Accuracy = Literal["test accuracy, CIFAR-10", "test accuracy, CIFAR-100", "test accuracy, ImageNet16-120"]
Size = Literal["deployed params", "trained params", "deployed MACs", "MACs pruned", "networks", "inverted residuals"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A number of a paper, and what is computed here."""

    table: str
    """where it is printed"""
    row: str
    """what it is of"""
    quantity: Size | Accuracy | Literal["search loss", "latency"]
    paper: str
    """as printed, in `unit`"""
    unit: Literal["M", "G", "%", "ms", ""]
    """millions, thousands of millions, percent, milliseconds, or none"""
    ours: int | float | None = None
    """None where it cannot be recomputed"""
    note: str = ""
    """why it cannot be recomputed, or why it must differ; where there is neither, it should be equal"""

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in `unit`."""
        return None if self.ours is None else self.ours / _UNITS[self.unit] - float(self.paper)

    @property
    def verdict(self) -> Literal["SAME", "DIFFERS", "EXPLAINED", "NOT RECOMPUTED"]:
        """SAME is less than one unit of the last printed digit away, as papers cut digits off as often as they round.

        EXPLAINED is a difference with a note, DIFFERS one without: a mistake.
        """
        if self.difference is None:
            return "NOT RECOMPUTED"
        mantissa, _, power = self.paper.partition("e")
        last_digit = int(power or 0) - len(mantissa.partition(".")[2])
        if abs(self.difference) < 10.0**last_digit:
            return "SAME"
        return "EXPLAINED" if self.note else "DIFFERS"
