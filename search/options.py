"""Exact fit over options: find the highest-scoring cell within a budget.

The score of a cell is the sum of its edges' scores, and its price is that of the whole network by any `CostModel`. An
operation that is not on a path from input to output costs nothing, so under a budget it gets the score of `none`;
otherwise it would be kept for free. All cells are enumerated in order of descending score, and the first one within the
budget is the optimum. For the 15,625 cells of NAS-Bench-201 that takes seconds at most. `search.widths` does the same
for widths, where there are too many networks to enumerate.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from msgspec import Struct

from search.budget import Budget, Price, require_reachable
from search.errors import SearchError
from search.space import Choice
from search.spaces.cells import NONE, OPTIONS, Cells, edge

LIMIT = 10**6
"""Largest number of networks to enumerate."""

Scores = Mapping[str, Mapping[str, float]]
"""Score of each option of each edge, by the edge's name in a `Choice`."""


class OptionFit(Struct, frozen=True, kw_only=True):
    """The best cell within a budget."""

    choice: Choice
    price: Price
    """price of the network; `most` is within the budget"""
    value: float
    """sum of its options' scores; under a budget, unused edges count as `none`"""


def fit(space: Cells, scores: Scores, price: Callable[[Choice], Price], budget: Budget | None) -> OptionFit:
    """Return the cell with the highest total score whose whole price interval is within a budget.

    A cell whose output does not depend on its input is never returned. Among cells of equal score the cheapest wins,
    among those of equal price the first in the order of `choices`. Without a budget every edge takes its best option,
    if that connects the ends.

    Args:
        space: the space of cells, with at most `LIMIT` networks.
        scores: a finite score for each option of each edge; higher is better.
        price: returns the price of a network, as `CostModel.price`; called once per cell until one fits.
        budget: in the unit of the price; None allows any price.

    Raises:
        SearchError: a score is missing or not finite, the space is too large, or every connected cell is over the
            budget; the message names the cheapest one's price.
    """
    if space.size() > LIMIT:
        raise SearchError(f"{space.name} has {space.size():.3g} networks, and at most {LIMIT:,} are enumerated")
    _require_scores(space, scores)

    connected = _connected(space)

    def value(choice: Choice) -> float:
        used = connected[choice] if budget else choice.options
        return math.fsum(scores[name][option if name in used else NONE] for name, option in choice.options.items())

    ranked = sorted(connected, key=value, reverse=True)
    cheapest = Price(math.inf, math.inf)
    for total, group in itertools.groupby(ranked, key=value):
        priced = [(price(choice), choice) for choice in group]
        lowest, choice = min(priced, key=lambda pair: pair[0].most)
        if budget is None or budget.holds(lowest):
            return OptionFit(choice=choice, price=lowest, value=total)
        cheapest = min(cheapest, lowest, key=lambda one: one.most)
    assert budget is not None  # every space of cells has a connected one
    require_reachable(f"{space.name} whose output depends on its input", cheapest, budget)
    raise AssertionError("a price changed between two calls")


@lru_cache(maxsize=4)
def _connected(space: Cells) -> dict[Choice, frozenset[str]]:
    """Return the cells that connect their ends, with their used edges.

    Cached because a search calls this after every epoch.
    """
    used = ((choice, space.used(choice)) for choice in space.choices())
    return {choice: frozenset(edge(*ends) for ends in edges) for choice, edges in used if edges}


def _require_scores(space: Cells, scores: Scores) -> None:
    for name in space.largest().options:
        for option in OPTIONS:
            score = scores.get(name, {}).get(option)
            if score is None or not math.isfinite(score):
                raise SearchError(f"{space.name}: option {option} of edge {name} needs a finite score, found {score}")
