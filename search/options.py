"""The exact fit over options: of the cells within a budget the one whose operations score highest.

The score of a cell is the sum of one score an edge, and its price is that of the whole network, by any `CostModel`. An operation that does
not lie on a way from input to output costs nothing, so under a budget it scores as none does: it would be kept for its score alone. All
cells are enumerated from the highest score down, and the first one within the budget is the optimum: of the 15,625 cells of NAS-Bench-201
that takes seconds at most. `search.widths` is the same for widths, where networks are too many to enumerate.
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
"""Most networks of a space that is enumerated."""

Scores = Mapping[str, Mapping[str, float]]
"""Of each edge, by its name in a `Choice`, the score of each option."""


class OptionFit(Struct, frozen=True, kw_only=True):
    """The best cell within a budget."""

    choice: Choice
    price: Price
    """of the network; `most` is within the budget"""
    value: float
    """sum of the scores of its options; under a budget unused edges score as none"""


def fit(space: Cells, scores: Scores, price: Callable[[Choice], Price], budget: Budget | None) -> OptionFit:
    """The cell of the highest total score whose price, with its whole interval, is within a budget.

    A cell whose output does not depend on its input is never the result. Of cells that score the same the cheapest is taken; of those that
    cost the same the first in the order of `choices`. Without a budget every edge has its best option, wherever that connects the ends.

    Args:
        space: whose cells are compared; it has at most `LIMIT`.
        scores: a finite number for each option of each edge, higher is better.
        price: of a network, as `CostModel.price`; asked once a cell, of as many cells as it takes.
        budget: in the unit of the price; None takes any price.

    Raises:
        SearchError: a score is missing or not finite, the space is too large, or every connected cell is over the budget; the message
            names the cheapest one's price.
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
        found, choice = min(priced, key=lambda pair: pair[0].most)
        if budget is None or budget.holds(found):
            return OptionFit(choice=choice, price=found, value=total)
        cheapest = min(cheapest, found, key=lambda each: each.most)
    assert budget is not None  # every space of cells has a connected one
    require_reachable(f"{space.name} whose output depends on its input", cheapest, budget)
    raise AssertionError("a price changed between two calls")


@lru_cache(maxsize=4)
def _connected(space: Cells) -> dict[Choice, frozenset[str]]:
    """The cells of a space that connect their ends, with the edges that are used; a search asks after every epoch."""
    used = ((choice, space.used(choice)) for choice in space.choices())
    return {choice: frozenset(edge(*ends) for ends in edges) for choice, edges in used if edges}


def _require_scores(space: Cells, scores: Scores) -> None:
    for name in space.largest().options:
        for option in OPTIONS:
            score = scores.get(name, {}).get(option)
            if score is None or not math.isfinite(score):
                raise SearchError(f"{space.name}: option {option} of edge {name} needs a finite score, found {score}")
