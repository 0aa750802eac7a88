import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import SearchError
from search.budget import BudgetController, Price, fit_widths, free_channels, ranked_widths, require_reachable, round_freely, round_up

CHOICES = [(8, 16, 24, 32)] * 3


def stairs(widths):
    """10 us and 1 us a tread of 16 for every layer, with an interval of 5 %."""
    us = 10.0 + sum(-(-width // 16) for width in widths)
    return Price(us, us * 1.05)


def test_weight_grows_above_the_target_and_falls_below():
    controller = BudgetController(target=100.0, weight=1.0, rate=0.1)
    controller.update(150.0)
    above = controller.weight
    controller.update(50.0)
    assert above == pytest.approx(1.0513, rel=1e-3)
    assert controller.weight == pytest.approx(1)


def test_a_cost_that_answers_to_the_weight_is_brought_to_the_target():
    controller = BudgetController(target=100.0, weight=1e-3, rate=0.1)
    cost = 200.0
    for _ in range(2000):
        controller.update(cost)
        cost += 0.05 * (200 / (1 + controller.weight) - cost)  # lags behind, as training does
    assert cost == pytest.approx(100, rel=0.01)


def test_weight_stays_finite_whatever_happens():
    controller = BudgetController(target=1.0, weight=1.0, rate=10.0)
    for cost in [1e12] * 1000 + [0.0] * 5000:
        controller.update(cost)
        assert 0 < controller.weight < 1e7


def test_an_impossible_budget_names_the_smallest_price():
    smallest = Price(12_000.0, 12_345.6)
    require_reachable("tiny", smallest, 12_345.6, unit="us")
    message = r"^a budget of 0.001 ms cannot be met: the smallest network of tiny takes 12 ms by the table, at most 12.35 ms; ask for"
    with pytest.raises(SearchError, match=message + r" --budget-ms 12.346 or more$"):
        require_reachable("tiny", smallest, 1.0, unit="us")
    with pytest.raises(
        SearchError, match=r"^a budget of 1,000 MACs cannot be met: the smallest network of tiny has 12,346; ask for a larger"
    ):
        require_reachable("tiny", smallest, 1000.0, unit="macs")


def test_rounding_never_loses_a_kept_channel():
    assert round_up((1, 8, 9), CHOICES) == (8, 8, 16)


def test_free_channels_come_back():
    """17 kept channels cost what 32 do."""
    assert fit_widths((17, 1, 8), [[1.0] * 32] * 3, CHOICES, stairs, 14.8) == (32, 16, 16)


def test_what_is_worth_least_goes_first():
    scores = [[1.0] * 32, [0.1] * 32, [1.0] * 32]
    assert fit_widths((32, 32, 32), scores, CHOICES, stairs, 15 * 1.05) == (32, 16, 32)


def test_what_fits_comes_back_best_score_first():
    scores = [[0.2] * 32, [0.9] * 32, [0.5] * 32]
    assert fit_widths((8, 8, 8), scores, CHOICES, stairs, 14 * 1.05) == (16, 32, 16)


@given(
    kept=st.tuples(*[st.integers(1, 32)] * 3),
    seed=st.lists(st.floats(-2, 2), min_size=96, max_size=96),
    costs=st.lists(st.floats(0.1, 5), min_size=12, max_size=12),
    share=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_any_table_is_met_and_used_up(kept, seed, costs, share):
    """Also where latency is not monotone in width: never over budget, and no single wider layer would fit as well."""
    scores = [sorted(seed[32 * layer : 32 * layer + 32], reverse=True) for layer in range(3)]

    def price(widths):
        us = 1 + sum(costs[4 * layer + CHOICES[layer].index(width)] for layer, width in enumerate(widths))
        return Price(us, us * 1.02)

    smallest, largest = (price(tuple(options[end] for options in CHOICES)).most for end in (0, -1))
    budget = max(smallest, smallest + share * (largest - smallest))
    widths = fit_widths(kept, scores, CHOICES, price, budget)
    assert price(widths).most <= budget
    for layer, width in itertools.product(range(3), CHOICES[0]):
        if width > widths[layer]:
            assert price((*widths[:layer], width, *widths[layer + 1 :])).most > budget


def test_a_budget_above_the_full_network_prunes_nothing(tiny):
    choices = [tiny.width_choices(index) for index in range(3)]
    assert fit_widths((8, 8, 8), [[1.0] * 32] * 3, choices, lambda widths: Price(sum(widths), sum(widths)), 1e9) == tiny.full_widths()


def test_one_threshold_for_all_layers_keeps_what_scores_best_within_the_budget():
    scores = [[0.9] * 16 + [0.1] * 16, [0.8] * 32, [0.5] * 8 + [0.2] * 24]
    assert ranked_widths(scores, CHOICES, stairs, 14 * 1.05) == (16, 32, 8)
    assert ranked_widths(scores, CHOICES, stairs, 1e9) == (32, 32, 32)
    assert ranked_widths(scores, CHOICES, stairs, 1.0) == (16, 0, 0)  # nothing fits: the highest threshold


def test_what_one_layer_gives_up_can_be_worth_more_in_another():
    """One tread is left over. A layer of two treads that are worth little makes room for one of three."""
    treads = {0: (1, 3, 3, 3), 1: (1, 1, 1, 5), 2: (0, 0, 0, 0)}

    def price(widths):
        cost = 10.0 + sum(treads[layer][width // 8 - 1] for layer, width in enumerate(widths))
        return Price(cost, cost)

    scores = [[0.4] * 32, [0.3] * 24 + [1.3] * 8, [0.0] * 32]
    # Widening the first layer has the better mean score, and leaves too little for the last step of the second, which is worth more.
    assert fit_widths((8, 8, 8), scores, CHOICES, price, 16.0) == (8, 32, 32)


@given(kept=st.tuples(*[st.integers(1, 32)] * 3), costs=st.lists(st.integers(0, 3), min_size=12, max_size=12), spread=st.floats(0, 0.5))
@settings(max_examples=100, deadline=None)
def test_free_rounding_is_never_slower_and_never_narrower(kept, costs, spread):
    def price(widths):
        cost = 1.0 + sum(costs[4 * layer + CHOICES[layer].index(width)] for layer, width in enumerate(widths))
        return Price(cost, cost * (1 + spread * (sum(widths) % 3)))

    pruned, free = round_up(kept, CHOICES), round_freely(kept, CHOICES, price)
    assert all(wide >= narrow >= count for wide, narrow, count in zip(free, pruned, kept, strict=True))
    assert price(free).cost <= price(pruned).cost
    assert price(free).most <= price(pruned).most
    for layer, width in itertools.product(range(3), CHOICES[0]):
        if width > free[layer]:
            wider = price((*free[:layer], width, *free[layer + 1 :]))
            assert wider.cost > price(free).cost or wider.most > price(free).most
    for layer, count in enumerate(free_channels(free, CHOICES, price)):
        dropped = price((*free[:layer], free[layer] - count, *free[layer + 1 :]))
        assert dropped.cost >= price(free).cost


def test_free_channels_are_those_of_a_tread():
    assert round_freely((17, 1, 8), CHOICES, stairs) == (32, 16, 16)
    assert free_channels((32, 16, 8), CHOICES, stairs) == (8, 8, 0)
