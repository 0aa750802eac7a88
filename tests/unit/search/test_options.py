import math
import random
from functools import cache

import pytest

from search import SearchError, options, spaces
from search.budget import Budget, Price
from search.cost import MacsModel
from search.spaces.cells import CONV1, CONV3, NONE, OPTIONS, POOL, SKIP, edge

SPACE = spaces.get("nasbench201-small")
EDGES = tuple(SPACE.largest().options)
US = {NONE: 0.0, SKIP: 0.0, CONV1: 11.0, CONV3: 30.0, POOL: 17.0}


@cache
def used(choice):
    return frozenset(edge(*ends) for ends in SPACE.used(choice))


@cache
def price(choice):
    """Blocks are not all there is to a network: what runs together costs a little more, and the interval is wider for some."""
    count, cost = len(used(choice)), sum(US[choice.options[name]] for name in used(choice))
    cost = 10 + cost + 0.3 * count**2
    return Price(cost, cost * (1.02 + 0.01 * len({choice.options[name] for name in used(choice)})))


@cache
def priced():
    return [(choice, price(choice).most) for choice in SPACE.choices() if used(choice)]


def drawn(seed, *, digits=12):
    draw = random.Random(seed)
    return {edge: {option: round(draw.gauss(0, 1), digits) for option in OPTIONS} for edge in EDGES}


def value(choice, scores):
    return math.fsum(scores[name][option if name in used(choice) else NONE] for name, option in choice.options.items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("us", [12.0, 60.0, 1000.0])
def test_the_fit_is_the_best_of_all_cells(seed, us):
    scores = drawn(seed, digits=12 if seed else 0)  # whole numbers tie
    found = options.fit(SPACE, scores, price, Budget(us=us))
    within = [choice for choice, most in priced() if most <= us]
    assert found.value == max(value(choice, scores) for choice in within)
    tied = [choice for choice in within if value(choice, scores) == found.value]
    assert found.price.most == min(price(choice).most for choice in tied)
    assert found.choice == next(choice for choice in tied if price(choice).most == found.price.most)
    assert found.price == price(found.choice)


def test_an_operation_that_nothing_reaches_is_worth_nothing():
    scores = {name: {option: float(option == CONV3) for option in OPTIONS} for name in EDGES}
    scores["2-3"][CONV3] = 100.0  # of use only with a second operation before it
    found = options.fit(SPACE, scores, price, Budget(us=60.0))
    assert found.choice.options == dict.fromkeys(EDGES, NONE) | {"0-2": SKIP, "2-3": CONV3}
    assert found.value == 100
    free = options.fit(
        SPACE, scores | {"0-2": scores["0-2"] | {NONE: 2.0}, "1-2": scores["1-2"] | {NONE: 2.0}}, price, None
    )
    assert free.choice.options == dict.fromkeys(EDGES, CONV3) | {"0-2": NONE, "1-2": NONE}  # each edge its best


def test_a_cell_without_a_way_is_never_the_result():
    scores = {edge: {option: float(option == NONE) for option in OPTIONS} for edge in EDGES}
    found = options.fit(SPACE, scores, price, None)
    assert (
        found.choice == SPACE.smallest()
    )  # one edge must carry something, and of the four options that tie a skip is the cheapest


def test_the_budget_holds_for_the_upper_end():
    scores = {edge: {option: float(US[option]) for option in OPTIONS} for edge in EDGES}
    largest = price(SPACE.largest())
    assert options.fit(SPACE, scores, price, Budget(us=largest.most)).choice == SPACE.largest()
    assert options.fit(SPACE, scores, price, Budget(us=largest.cost)).price.most <= largest.cost


def test_a_model_prices_the_cells():
    model = MacsModel(SPACE)
    budget = Budget(macs=model.of(SPACE.largest()) // 2)
    found = options.fit(SPACE, drawn(5), model.price, budget)
    assert SPACE.macs(SPACE.network(found.choice)) == found.price.most <= budget.amount


def test_a_budget_below_the_cheapest_connected_cell_names_its_latency():
    message = (
        r"^a budget of 0\.01 ms cannot be met: the smallest network of nasbench201-small whose output depends on its input takes 0\.0103 ms by"
        r" the table, at most 0\.01061 ms; ask for --budget-ms 0\.011 or more$"
    )
    with pytest.raises(SearchError, match=message):
        options.fit(SPACE, drawn(0), price, Budget(us=10.0))
    assert options.fit(SPACE, drawn(0), price, Budget(us=11.0)).price.most <= 11


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_scores_that_are_none_are_refused(bad):
    scores = drawn(0)
    scores["1-2"][POOL] = bad
    with pytest.raises(
        SearchError, match=rf"^nasbench201-small: option {POOL} of edge 1-2 needs a finite score, found {bad}$"
    ):
        options.fit(SPACE, scores, price, None)
