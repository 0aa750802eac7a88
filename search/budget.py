"""Meeting a latency budget: the controller that steers the search to it, and the fit that makes sure of it."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from latency import Latency, LatencyTable
from search.errors import SearchError
from search.space import Chain, Widths

Predict = Callable[[Widths], Latency]

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


def require_reachable(space: Chain, table: LatencyTable, smallest: Widths, budget_us: float) -> None:
    """Refuse a budget that no network of a space can meet.

    Raises:
        SearchError: the narrowest network is predicted above the budget; names its latency.
    """
    latency = table.predict(space.network(smallest))
    if latency.high_us > budget_us:
        raise SearchError(
            f"a budget of {budget_us / 1000:.4g} ms cannot be met: the smallest network of {space.name} takes {latency.us / 1000:.4g} ms"
            f" by the table, at most {latency.high_us / 1000:.4g} ms; ask for --budget-ms {math.ceil(latency.high_us) / 1000:g} or more"
        )


def fit_widths(
    kept: Sequence[int], scores: Sequence[Sequence[float]], choices: Sequence[Widths], predict: Predict, budget_us: float
) -> Widths:
    """The widths to ship: near to what the search kept, the whole interval of the prediction within the budget, and no wider ones that are.

    1. Every width is rounded up to one that can ship.
    2. While the network is over budget, the narrowing that loses the least score a microsecond is made; down a whole stair where a single
       step saves nothing.
    3. While any layer can be widened within the budget, the widening with the best mean score is made: channels that are free come back.

    Args:
        kept: channels that the search kept, for every layer.
        scores: for every layer the scores of all its channels, descending; a negative one counts as 0.
        choices: for every layer the widths that can ship, ascending.
        predict: latency of a network of such widths; some network of these choices must be within the budget.
        budget_us: what the upper end of the interval may reach.
    """

    def worth(index: int, low: int, high: int) -> float:
        return math.fsum(max(score, 0.0) for score in scores[index][low:high])

    widths = round_up(kept, choices)
    while (now := predict(widths)).high_us > budget_us:
        steps = []
        for index, width in _steps(widths, choices, wider=False):
            saved_us = now.us - predict(_replaced(widths, index, width)).us
            lost = worth(index, width, widths[index])
            steps.append((lost / saved_us if saved_us > 0 else math.inf, -saved_us, index, width))
        _, _, index, width = min(steps)
        widths = _replaced(widths, index, width)
    while True:
        steps = []
        for index, width in _steps(widths, choices, wider=True):
            latency = predict(_replaced(widths, index, width))
            if latency.high_us <= budget_us:
                steps.append((-worth(index, widths[index], width) / (width - widths[index]), latency.us, index, width))
        if not steps:
            return widths
        _, _, index, width = min(steps)
        widths = _replaced(widths, index, width)


def ranked_widths(scores: Sequence[Sequence[float]], choices: Sequence[Widths], predict: Predict, budget_us: float) -> Widths:
    """Channels of every layer that score at least the lowest threshold, common to all layers, whose network is within the budget.

    Found by bisection; where latency is not monotone in the threshold, by `fit_widths` later.

    Args:
        scores: for every layer the scores of all its channels, in any order.
        choices: for every layer the widths that can ship, ascending.
        predict: latency of a network of such widths.
        budget_us: what the upper end of the interval may reach.
    """

    def kept(threshold: float) -> Widths:
        return tuple(sum(score >= threshold for score in layer) for layer in scores)

    thresholds = sorted({score for layer in scores for score in layer})
    found = bisect_left(thresholds, True, key=lambda threshold: predict(round_up(kept(threshold), choices)).high_us <= budget_us)
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
