"""The exact fit over options: of the cells within a budget the one whose operations score highest.

The score of a cell is the sum of one score an edge, and its price is that of the whole network, by any `CostModel`. All cells are
enumerated from the highest score down, and the first one within the budget is the optimum: of the 15,625 cells of NAS-Bench-201
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
from search.spaces.cells import OPTIONS, Cells

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
    """sum of the scores of its options, unused edges included"""


def fit(space: Cells, scores: Scores, price: Callable[[Choice], Price], budget: Budget | None) -> OptionFit:
    """The cell of the highest total score whose price, with its whole interval, is within a budget.

    A cell whose output does not depend on its input is never the result. Of cells that score the same the cheapest is taken; of those that
    cost the same the first in the order of `choices`.

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

    def value(choice: Choice) -> float:
        return math.fsum(scores[edge][option] for edge, option in choice.options.items())

    ranked = sorted(_connected(space), key=value, reverse=True)
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
def _connected(space: Cells) -> tuple[Choice, ...]:
    """The cells of a space that connect their ends; a search asks after every epoch."""
    return tuple(filter(space.connected, space.choices()))


def _require_scores(space: Cells, scores: Scores) -> None:
    for edge in space.largest().options:
        for option in OPTIONS:
            score = scores.get(edge, {}).get(option)
            if score is None or not math.isfinite(score):
                raise SearchError(f"{space.name}: option {option} of edge {edge} needs a finite score, found {score}")
