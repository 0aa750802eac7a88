"""A published number compared with ours."""

from dataclasses import dataclass
from typing import Literal

_UNITS = {"M": 10**6, "G": 10**9, "%": 1, "ms": 1, "": 1}

Accuracy = Literal["test accuracy, CIFAR-10", "test accuracy, CIFAR-100", "test accuracy, ImageNet16-120"]
Size = Literal["deployed params", "trained params", "deployed MACs", "MACs pruned", "networks", "inverted residuals"]


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A number from a paper, and our own."""

    table: str
    """the table in which it is printed"""
    row: str
    """the network or search it describes"""
    quantity: Size | Accuracy | Literal["search loss", "latency"]
    paper: str
    """as printed, in `unit`"""
    unit: Literal["M", "G", "%", "ms", ""]
    """millions, billions (10^9), percent, milliseconds, or none"""
    ours: int | float | None = None
    """None if it cannot be recomputed"""
    note: str = ""
    """why it cannot be recomputed or must differ; if empty, the numbers should be equal"""

    @property
    def difference(self) -> float | None:
        """Our number minus the paper's, in `unit`."""
        return None if self.ours is None else self.ours / _UNITS[self.unit] - float(self.paper)

    @property
    def verdict(self) -> Literal["SAME", "DIFFERS", "EXPLAINED", "NOT RECOMPUTED"]:
        """SAME means a difference below one unit in the last printed digit.

        Papers truncate as often as they round.

        EXPLAINED is a difference with a note; DIFFERS is one without, which is a mistake.
        """
        if self.difference is None:
            return "NOT RECOMPUTED"
        mantissa, _, power = self.paper.partition("e")
        last_digit = int(power or 0) - len(mantissa.partition(".")[2])
        if abs(self.difference) < 10.0**last_digit:
            return "SAME"
        return "EXPLAINED" if self.note else "DIFFERS"
