import itertools
import random

import pytest

from search import SearchError, layer_fit
from search.budget import Budget
from search.cost import LatencyModel
from search.spaces.layered import SKIP
from search.widths import TablePrices

from .conftest import make_layers, make_table

SPACE = make_layers()


@pytest.fixture(scope="module")
def table():
    draw = random.Random(0)
    return make_table(SPACE, [SPACE.random(draw) for _ in range(8)])


def fitted(table, choice, us):
    found = layer_fit.fit(SPACE, choice, [TablePrices(table)], Budget(us=us))
    assert LatencyModel(SPACE, table).price(found).most <= us
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0])
def test_every_network_is_made_to_fit_every_budget_and_keeps_its_kinds_of_block(table, seed, share):
    model, choice = LatencyModel(SPACE, table), SPACE.random(random.Random(seed))
    low, high = (model.price(end).most for end in (SPACE.smallest(), SPACE.largest()))
    us = low + share * (high - low)
    found = fitted(table, choice, us)
    for name, option in found.options.items():
        if option == SKIP:
            assert choice.options[name] == SKIP or share < 0.3
        elif choice.options[name] != SKIP:
            assert option.endswith("_se") == choice.options[name].endswith("_se")


def test_widths_shrink_in_proportion_before_kernels_and_kernels_before_layers(table):
    largest, model = SPACE.largest(), LatencyModel(SPACE, table)
    found = fitted(table, largest, 0.9 * model.price(largest).most)
    assert found.options == largest.options
    assert sum(found.widths.values()) < sum(largest.widths.values())
    narrowest = model.price(fitted(table, largest, 0.45 * model.price(largest).most))
    assert narrowest.most <= 0.45 * model.price(largest).most


def test_unused_budget_widens_the_network(table):
    largest = SPACE.largest()
    small = largest.widths | dict.fromkeys(largest.widths, 8)
    found = fitted(
        table,
        type(largest)(options=largest.options, widths=small),
        LatencyModel(SPACE, table).price(largest).most * 1.01,
    )
    assert found == largest


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_fit_is_the_best_of_all_networks(table, share):
    """Of every combination of hidden widths and kernels, by the values that the program maximises."""
    choice, model = SPACE.largest(), LatencyModel(SPACE, table)
    us = share * model.price(choice).most
    items = layer_fit._items(SPACE, choice, [TablePrices(table)], Budget(us=us))
    layers = [list(group) for _, group in itertools.groupby(items, key=lambda item: item.layer)]
    best = max(
        sum(item.value for item in each)
        for each in itertools.product(*layers)
        if sum(item.costs[0] for item in each) <= us
    )
    found = fitted(table, choice, us)
    picked = [
        next(
            item
            for item in layer
            if (item.option, item.hidden) == (found.options.get(name, name), found.widths.get(name, 0))
        )
        for layer, name in zip(layers, (layer.name for layer in SPACE.layers), strict=True)
    ]
    assert sum(item.value for item in picked) == pytest.approx(best, abs=1e-3)


def test_a_budget_below_every_network_is_refused(table):
    with pytest.raises(
        SearchError, match=r"no network of layers near the one found is within 0\.001 ms: ask for a larger budget"
    ):
        fitted(table, SPACE.largest(), 1.0)
