"""Budgets with their units, and the controller that steers a search towards one."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from latency import LatencyTable
from latency.units import milliseconds, ms_from_us
from search.errors import SearchError
from search.spaces import Widths

Unit = Literal["us", "macs"]
"""Microseconds, or multiply-accumulates."""


class Price(NamedTuple):
    """Cost of a network, in the unit of its budget."""

    cost: float
    most: float
    """upper end of its interval, which is compared with the budget"""


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The most that a network may cost: `Budget(us=420.0)` or `Budget(macs=3e6)`.

    Raises:
        SearchError: both units or none are given, or the amount is not positive and finite.
    """

    us: float | int | None = None
    """microseconds"""
    macs: float | int | None = None
    """multiply-accumulates"""

    def __post_init__(self) -> None:
        if (self.us is None) == (self.macs is None):
            raise SearchError(
                f"a budget has one unit, Budget(us=...) or Budget(macs=...), found us={self.us} and macs={self.macs}"
            )
        if not 0 < self.amount < math.inf:
            raise SearchError(f"a budget must be a number above 0, found {self.amount:g} {self.unit}")

    @classmethod
    def of(cls, amount: float | int, unit: Unit) -> "Budget":
        """Return a budget in the given unit."""
        return cls(us=amount) if unit == "us" else cls(macs=amount)

    @property
    def unit(self) -> Unit:
        """The unit of the budget."""
        return "macs" if self.us is None else "us"

    @property
    def amount(self) -> float | int:
        """The amount in its unit."""
        amount = self.macs if self.us is None else self.us
        assert amount is not None
        return amount

    def holds(self, price: Price) -> bool:
        """Return whether a price is within the budget, including its whole interval."""
        return price.most <= self.amount

    def words(self, amount: float | int) -> str:
        """Format an amount with its unit."""
        return milliseconds(amount) if self.unit == "us" else f"{amount:,.0f} MACs"

    def __str__(self) -> str:
        return self.words(self.amount)


class Limit(NamedTuple):
    """Latency budget on one device."""

    table: LatencyTable
    """the device's table"""
    budget: Budget
    """in microseconds"""

    @property
    def target(self) -> float:
        """The latency whose interval ends at the budget."""
        return self.budget.amount / (1 + self.table.predictor.half_width)


_ROUNDING = 1 + 1e-12


def device_factors(limits: Sequence[Limit]) -> list[Price]:
    """Return the factors that scale each device's prices.

    With them its target and budget become those of the first device.

    Upper ends on the other devices are rounded up, so that rounding never lets a network over a budget pass.
    """
    first, *others = limits
    scaled = [
        Price(first.target / other.target, _ROUNDING * first.budget.amount / other.budget.amount) for other in others
    ]
    return [Price(1.0, 1.0), *scaled]


def worst(prices: Iterable[Price]) -> Price:
    """Return the worst price over all devices, relative to their budgets.

    Prices must be scaled to one budget, see `device_factors`.
    """
    costs, upper_ends = zip(*prices, strict=True)
    return Price(max(costs), max(upper_ends))


Pricing = Callable[[Widths], Price]
"""Returns the price of the network with the given widths."""

_RANGE = 1e6
"""The weight of the penalty stays within this factor of its start."""


class BudgetController:
    """Adapts the weight of a penalty until the cost meets its target, by dual ascent on the relative error.

    Each step multiplies the weight by exp(rate * relative error): it grows while the network is too expensive and
    shrinks while it is too cheap. The start may be off by orders of magnitude, and the sign never changes.

    Attributes:
        target: the cost to meet.
        weight: weight of the penalty, beta in Li et al. 2022, Eq. 4.
    """

    def __init__(self, *, target: Budget, weight: float, rate: float) -> None:
        self.target, self.weight = target, weight
        self._rate, self._least, self._most = rate, weight / _RANGE, weight * _RANGE

    def update(self, cost: float, aim: float | None = None) -> None:
        """Update the weight with the cost of one step.

        It is compared with `aim` or, by default, the target, all in one unit.
        """
        error = max(-1.0, min(1.0, cost / (aim or self.target.amount) - 1))
        self.weight = max(self._least, min(self._most, self.weight * math.exp(self._rate * error)))


def require_reachable(name: str, smallest: Price, budget: Budget, *, also: str = "") -> None:
    """Require a budget that the smallest network of a space can meet.

    Args:
        name: name of the space.
        smallest: price of its smallest network.
        budget: in the same unit.
        also: path of the table, if the budget is for a further device.

    Raises:
        SearchError: the smallest network exceeds the budget; the message names its price.
    """
    if budget.holds(smallest):
        return
    begin = f"a budget of {budget} cannot be met: the smallest network of {name}"
    if budget.unit == "macs":
        raise SearchError(f"{begin} has {budget.words(smallest.most)}; ask for a larger --budget-fraction")
    flag = f"--also {also}:" if also else "--budget-ms "
    raise SearchError(
        f"{begin} takes {budget.words(smallest.cost)} by {also or 'the table'}, at most {budget.words(smallest.most)};"
        f" ask for {flag}{ms_from_us(math.ceil(smallest.most)):g} or more"
    )


def free_channels(widths: Widths, choices: Sequence[Widths], price: Pricing) -> Widths:
    """Return the number of free channels of each layer.

    Those that can be removed, from this layer alone, without lowering the cost.
    """
    now = price(widths)
    return tuple(
        width
        - min(w for w in options if w == width or (w < width and price(_replaced(widths, index, w)).cost >= now.cost))
        for index, (width, options) in enumerate(zip(widths, choices, strict=True))
    )


def ranked_widths(
    scores: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: Budget
) -> Widths:
    """Return the width of each layer under the lowest common score threshold whose network is within the budget.

    Uses bisection; if the price is not monotone in the threshold, the result may exceed the budget.

    Args:
        scores: scores of all channels of each layer, in any order.
        choices: widths that can ship for each layer, ascending.
        price: returns the price of a network with such widths.
        budget: largest upper end of the price's interval.
    """

    def kept(threshold: float) -> Widths:
        return tuple(sum(score >= threshold for score in layer) for layer in scores)

    thresholds = sorted({score for layer in scores for score in layer})
    lowest = bisect_left(
        thresholds, True, key=lambda threshold: budget.holds(price(round_up(kept(threshold), choices)))
    )
    return kept(thresholds[min(lowest, len(thresholds) - 1)])


def round_up(kept: Sequence[int], choices: Sequence[Widths]) -> Widths:
    """Round channel counts up to the next widths that can ship."""
    return tuple(
        next(width for width in options if width >= count) for count, options in zip(kept, choices, strict=True)
    )


def _replaced(widths: Widths, index: int, width: int) -> Widths:
    return (*widths[:index], width, *widths[index + 1 :])
