"""Budgets, with their units, and the controller that steers a search to one."""

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
    """What a network costs, in the unit of its budget."""

    cost: float
    most: float
    """upper end of its interval: what the budget is held against"""


class Budget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a network may cost: `Budget(us=420.0)` or `Budget(macs=3e6)`.

    Raises:
        SearchError: it has no unit or two, or is not a positive number.
    """

    us: float | int | None = None
    """microseconds"""
    macs: float | int | None = None
    """multiply-accumulates"""

    def __post_init__(self) -> None:
        if (self.us is None) == (self.macs is None):
            raise SearchError(f"a budget has one unit, Budget(us=...) or Budget(macs=...), found us={self.us} and macs={self.macs}")
        if not 0 < self.amount < math.inf:
            raise SearchError(f"a budget must be a number above 0, found {self.amount:g} {self.unit}")

    @classmethod
    def of(cls, amount: float | int, unit: Unit) -> "Budget":
        """A budget in one of the units."""
        return cls(us=amount) if unit == "us" else cls(macs=amount)

    @property
    def unit(self) -> Unit:
        """Which it is in."""
        return "macs" if self.us is None else "us"

    @property
    def amount(self) -> float | int:
        """The number."""
        found = self.macs if self.us is None else self.us
        assert found is not None
        return found

    def holds(self, price: Price) -> bool:
        """Whether a price is within it, with its whole interval."""
        return price.most <= self.amount

    def words(self, amount: float | int) -> str:
        """An amount in its unit, as people read it."""
        return milliseconds(amount) if self.unit == "us" else f"{amount:,.0f} MACs"

    def __str__(self) -> str:
        return self.words(self.amount)


class Limit(NamedTuple):
    """What networks may take on one device."""

    table: LatencyTable
    """of the device"""
    budget: Budget
    """in microseconds"""

    @property
    def target(self) -> float:
        """The latency at which the upper end of its interval is the budget."""
        return self.budget.amount / (1 + self.table.predictor.half_width)


_ROUNDING = 1 + 1e-12


def factors(limits: Sequence[Limit]) -> list[Price]:
    """What a price on each device is multiplied by, so that the target and the budget of every device become those of the first.

    Upper ends on the other devices are rounded up, so that rounding never puts a network over a budget.
    """
    first, *others = limits
    each = [Price(first.target / other.target, _ROUNDING * first.budget.amount / other.budget.amount) for other in others]
    return [Price(1.0, 1.0), *each]


def worst(prices: Iterable[Price]) -> Price:
    """The price on the device where a network is furthest over its budget, or nearest to it; all in one unit, see `factors`."""
    costs, upper_ends = zip(*prices, strict=True)
    return Price(max(costs), max(upper_ends))


Pricing = Callable[[Widths], Price]
"""Price of the network of these widths."""

_RANGE = 1e6
"""The weight of the penalty stays within this factor of where it started."""


class BudgetController:
    """Adapts the weight of a penalty until the cost meets its target: dual ascent on the relative error.

    At each step the weight is multiplied by exp(rate * relative error): it grows while the network is too expensive and falls while it is
    too cheap. The start may be off by orders of magnitude, and the sign never changes.

    Attributes:
        target: the cost to meet.
        weight: of the penalty, beta in Li et al. 2022, Eq. 4.
    """

    def __init__(self, *, target: Budget, weight: float, rate: float) -> None:
        self.target, self.weight = target, weight
        self._rate, self._least, self._most = rate, weight / _RANGE, weight * _RANGE

    def update(self, cost: float, aim: float | None = None) -> None:
        """Take the cost of one step into account, beside the target or what it should be by now, all in one unit."""
        error = max(-1.0, min(1.0, cost / (aim or self.target.amount) - 1))
        self.weight = max(self._least, min(self._most, self.weight * math.exp(self._rate * error)))


def require_reachable(name: str, smallest: Price, budget: Budget, *, also: str = "") -> None:
    """Refuse a budget that no network of a space can meet.

    Args:
        name: of the space.
        smallest: price of its narrowest network.
        budget: in the same unit.
        also: path of the table of a further device, where the budget is of that.

    Raises:
        SearchError: the narrowest network is above the budget; names its price.
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
    """For each layer how many of its channels are free: as many as it could lose, all other layers as they are, and save nothing."""
    now = price(widths)
    return tuple(
        width - min(w for w in options if w == width or (w < width and price(_replaced(widths, index, w)).cost >= now.cost))
        for index, (width, options) in enumerate(zip(widths, choices, strict=True))
    )


def ranked_widths(scores: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: Budget) -> Widths:
    """Channels of every layer that score at least the lowest threshold, common to all layers, whose network is within the budget.

    Found by bisection; where the price is not monotone in the threshold, it may be over the budget.

    Args:
        scores: for every layer the scores of all its channels, in any order.
        choices: for every layer the widths that can ship, ascending.
        price: of a network of such widths.
        budget: what the upper end of the interval may reach.
    """

    def kept(threshold: float) -> Widths:
        return tuple(sum(score >= threshold for score in layer) for layer in scores)

    thresholds = sorted({score for layer in scores for score in layer})
    found = bisect_left(thresholds, True, key=lambda threshold: budget.holds(price(round_up(kept(threshold), choices))))
    return kept(thresholds[min(found, len(thresholds) - 1)])


def round_up(kept: Sequence[int], choices: Sequence[Widths]) -> Widths:
    """The narrowest widths that can ship and hold these channels."""
    return tuple(next(width for width in options if width >= count) for count, options in zip(kept, choices, strict=True))


def _replaced(widths: Widths, index: int, width: int) -> Widths:
    return (*widths[:index], width, *widths[index + 1 :])
