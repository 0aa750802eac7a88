"""Meeting a latency budget: the controller that steers the search to it, and the fit that makes sure of it."""

import itertools
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


def fit_widths(
    kept: Sequence[int],
    scores: Sequence[Sequence[float]],
    choices: Sequence[Widths],
    price: Pricing,
    budget: float,
    *,
    exchange: bool = True,
) -> Widths:
    """The widths to ship: near to what the search kept, the whole interval of the price within the budget, and no wider ones that are.

    1. Every width is rounded to one that can ship; see `round_freely`.
    2. While the network is over budget, the narrowing that loses the least score for what it saves is made; down a whole stair where a
       single step saves nothing.
    3. While any layer can be widened within the budget, the widening with the best mean score is made.
    4. While narrowing one layer by a stair lets another one be widened by more score, or by as much and more channels, that is done, the
       best such exchange first; then 3 again.

    Args:
        kept: channels that the search kept, for every layer.
        scores: for every layer the scores of all its channels, descending; a negative one counts as 0.
        choices: for every layer the widths that can ship, ascending.
        price: of a network of such widths; some network of these choices must be within the budget.
        budget: what the upper end of the interval may reach.
        exchange: whether to make step 4.
    """
    sums = [list(itertools.accumulate((max(score, 0.0) for score in layer), initial=0.0)) for layer in scores]
    widths = _narrowed(round_freely(kept, choices, price), sums, choices, price, budget)
    while True:
        widths = _widened(widths, sums, choices, price, budget)
        exchanged = _exchanged(widths, sums, choices, price, budget) if exchange else None
        if exchanged is None:
            return widths
        widths = exchanged


def _narrowed(widths: Widths, sums: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: float) -> Widths:
    while (now := price(widths)).most > budget:
        steps = []
        for index, width in _steps(widths, choices, wider=False):
            saved = now.cost - price(_replaced(widths, index, width)).cost
            lost = sums[index][widths[index]] - sums[index][width]
            steps.append((lost / saved if saved > 0 else math.inf, -saved, index, width))
        _, _, index, width = min(steps)
        widths = _replaced(widths, index, width)
    return widths


def _widened(widths: Widths, sums: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: float) -> Widths:
    while True:
        steps = []
        for index, width in _steps(widths, choices, wider=True):
            found = price(_replaced(widths, index, width))
            if found.most <= budget:
                gain = (sums[index][width] - sums[index][widths[index]]) / (width - widths[index])
                steps.append((-gain, found.cost, index, width))
        if not steps:
            return widths
        _, _, index, width = min(steps)
        widths = _replaced(widths, index, width)


def _exchanged(widths: Widths, sums: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: float) -> Widths | None:
    def worth(widths: Widths) -> tuple[float, int]:
        return math.fsum(layer[width] for layer, width in zip(sums, widths, strict=True)), sum(widths)

    best, best_worth, now = None, worth(widths), price(widths).cost
    for narrowed, options in enumerate(choices):
        stair = next((w for w in reversed(options) if w < widths[narrowed] and price(_replaced(widths, narrowed, w)).cost < now), None)
        if stair is None:
            continue
        freed = _replaced(widths, narrowed, stair)
        for index, width in _steps(freed, choices, wider=True):
            found = _replaced(freed, index, width)
            if index != narrowed and worth(found) > best_worth and price(found).most <= budget:
                best, best_worth = found, worth(found)
    return best


def round_freely(kept: Sequence[int], choices: Sequence[Widths], price: Pricing) -> Widths:
    """Table-aware rounding: of each layer the widest width at which the network costs no more than at the narrowest one that holds `kept`.

    No more, that is neither by the estimate nor by the upper end of its interval. Layer by layer, until nothing is free any more.
    """
    widths = round_up(kept, choices)
    while True:
        now = price(widths)
        for index, width in sorted(_steps(widths, choices, wider=True), key=lambda step: widths[step[0]] - step[1]):
            found = price(_replaced(widths, index, width))
            if found.cost <= now.cost and found.most <= now.most:
                widths = _replaced(widths, index, width)
                break
        else:
            return widths


def free_channels(widths: Widths, choices: Sequence[Widths], price: Pricing) -> Widths:
    """For each layer how many of its channels are free: as many as it could lose, all other layers as they are, and save nothing."""
    now = price(widths)
    return tuple(
        width - min(w for w in options if w == width or (w < width and price(_replaced(widths, index, w)).cost >= now.cost))
        for index, (width, options) in enumerate(zip(widths, choices, strict=True))
    )


def ranked_widths(scores: Sequence[Sequence[float]], choices: Sequence[Widths], price: Pricing, budget: float) -> Widths:
    """Channels of every layer that score at least the lowest threshold, common to all layers, whose network is within the budget.

    Found by bisection; where the price is not monotone in the threshold, by `fit_widths` later.

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
