"""The greedy fit of widths to a budget that the mixed-integer program replaced: a reference for tests and benchmarks."""

import itertools
import math
from collections.abc import Mapping, Sequence

from search.budget import Pricing, round_up
from search.spaces import Widths


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
    return fit_values(kept, [dict(enumerate(layer)) for layer in sums], choices, price, budget, exchange=exchange)


def fit_values(
    kept: Sequence[int],
    sums: Sequence[Mapping[int, float]],
    choices: Sequence[Widths],
    price: Pricing,
    budget: float,
    *,
    exchange: bool = True,
) -> Widths:
    """The same for any value of each width of each layer."""
    widths = _narrowed(round_freely(kept, choices, price), sums, choices, price, budget)
    while True:
        widths = _widened(widths, sums, choices, price, budget)
        exchanged = _exchanged(widths, sums, choices, price, budget) if exchange else None
        if exchanged is None:
            return widths
        widths = exchanged


def _narrowed(
    widths: Widths, sums: Sequence[Mapping[int, float]], choices: Sequence[Widths], price: Pricing, budget: float
) -> Widths:
    while (now := price(widths)).most > budget:
        steps = []
        for index, width in _steps(widths, choices, wider=False):
            saved = now.cost - price(_replaced(widths, index, width)).cost
            lost = sums[index][widths[index]] - sums[index][width]
            steps.append((lost / saved if saved > 0 else math.inf, -saved, index, width))
        _, _, index, width = min(steps)
        widths = _replaced(widths, index, width)
    return widths


def _widened(
    widths: Widths, sums: Sequence[Mapping[int, float]], choices: Sequence[Widths], price: Pricing, budget: float
) -> Widths:
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


def _exchanged(
    widths: Widths, sums: Sequence[Mapping[int, float]], choices: Sequence[Widths], price: Pricing, budget: float
) -> Widths | None:
    def worth(widths: Widths) -> tuple[float, int]:
        return math.fsum(values[width] for values, width in zip(sums, widths, strict=True)), sum(widths)

    best, best_worth, now = None, worth(widths), price(widths).cost
    for narrowed, options in enumerate(choices):
        stair = next(
            (w for w in reversed(options) if w < widths[narrowed] and price(_replaced(widths, narrowed, w)).cost < now),
            None,
        )
        if stair is None:
            continue
        freed = _replaced(widths, narrowed, stair)
        for index, width in _steps(freed, choices, wider=True):
            found = _replaced(freed, index, width)
            if index != narrowed and worth(found) > best_worth and price(found).most <= budget:
                best, best_worth = found, worth(found)
    return best


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
