"""Meeting a latency budget: the controller that steers the search to it, and the fit that makes sure of it."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from latency.units import milliseconds, ms_from_us
from search.errors import SearchError
from search.spaces import Widths


class Price(NamedTuple):
    """What a network costs, in the unit of its budget: microseconds, or multiply-accumulates."""

    cost: float
    most: float
    """upper end of its interval: what the budget is held against"""


Pricing = Callable[[Widths], Price]
"""Price of the network of these widths."""

_RANGE = 1e6
"""The weight of the penalty stays within this factor of where it started."""


class BudgetController:
    """Adapts the weight of a penalty until the cost meets its target: dual ascent on the relative error.

    At each step the weight is multiplied by exp(rate * relative error): it grows while the network is too expensive and falls while it is
    too cheap. The start may be off by orders of magnitude, and the sign never changes.

    Attributes:
        target: the cost to meet, in the unit of the cost.
        weight: of the penalty, beta in Li et al. 2022, Eq. 4.
    """

    def __init__(self, *, target: float, weight: float, rate: float) -> None:
        self.target, self.weight = target, weight
        self._rate, self._least, self._most = rate, weight / _RANGE, weight * _RANGE

    def update(self, cost: float) -> None:
        """Take the cost of one step into account."""
        error = max(-1.0, min(1.0, cost / self.target - 1))
        self.weight = max(self._least, min(self._most, self.weight * math.exp(self._rate * error)))


def require_reachable(name: str, smallest: Price, budget: float, *, unit: Literal["us", "macs"]) -> None:
    """Refuse a budget that no network of a space can meet.

    Args:
        name: of the space.
        smallest: price of its narrowest network.
        budget: microseconds or multiply-accumulates.
        unit: which.

    Raises:
        SearchError: the narrowest network is above the budget; names its price.
    """
    if smallest.most <= budget:
        return
    if unit == "macs":
        raise SearchError(
            f"a budget of {budget:,.0f} MACs cannot be met: the smallest network of {name} has {smallest.most:,.0f};"
            " ask for a larger --budget-fraction"
        )
    raise SearchError(
        f"a budget of {milliseconds(budget)} cannot be met: the smallest network of {name} takes {milliseconds(smallest.cost)}"
        f" by the table, at most {milliseconds(smallest.most)}; ask for --budget-ms {ms_from_us(math.ceil(smallest.most)):g} or more"
    )


def free_channels(widths: Widths, choices: Sequence[Widths], price: Pricing) -> Widths:
    """For each layer how many of its channels are free: as many as it could lose, all other layers as they are, and save nothing."""
    now = price(widths)
    return tuple(
        width - min(w for w in options if w == width or (w < width and price(_replaced(widths, index, w)).cost >= now.cost))
        for index, (width, options) in enumerate(zip(widths, choices, strict=True))
    )


def ranked_widths(scores: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: float) -> Widths:
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
    found = bisect_left(thresholds, True, key=lambda threshold: price(round_up(kept(threshold), choices)).most <= budget)
    return kept(thresholds[min(found, len(thresholds) - 1)])


def round_up(kept: Sequence[int], choices: Sequence[Widths]) -> Widths:
    """The narrowest widths that can ship and hold these channels."""
    return tuple(next(width for width in options if width >= count) for count, options in zip(kept, choices, strict=True))


def _steps(widths: Widths, choices: Sequence[Widths], *, wider: bool) -> list[tuple[int, int]]:
    """Every layer with every width on one side of its own."""
    return [
        (index, option)
        for index, options in enumerate(choices)
        for option in options
        if option != widths[index] and (option > widths[index]) == wider
    ]


def _replaced(widths: Widths, index: int, width: int) -> Widths:
    return (*widths[:index], width, *widths[index + 1 :])
