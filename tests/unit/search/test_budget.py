import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import Latency
from search import SearchError
from search.budget import BudgetController, fit_widths, ranked_widths, require_reachable, round_up

CHOICES = [(8, 16, 24, 32)] * 3


def stairs(widths):
    """10 us and 1 us a tread of 16 for every layer, with an interval of 5 %."""
    us = 10.0 + sum(-(-width // 16) for width in widths)
    return Latency(us=us, low_us=us * 0.95, high_us=us * 1.05, source="predicted")


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


def test_an_impossible_budget_names_the_smallest_latency(tiny, table):
    smallest = table.predict(tiny.network(tiny.smallest_widths()))
    require_reachable(tiny, table, tiny.smallest_widths(), smallest.high_us)
    with pytest.raises(
        SearchError, match=rf"0.001 ms cannot be met: the smallest network of tiny takes {smallest.us / 1000:.4g} ms.*--budget-ms"
    ):
        require_reachable(tiny, table, tiny.smallest_widths(), 1.0)


def test_the_advised_budget_is_enough(tiny, table):
    with pytest.raises(SearchError) as caught:
        require_reachable(tiny, table, tiny.smallest_widths(), 1.0)
    advised_ms = float(str(caught.value).split("--budget-ms ")[1].split()[0])
    require_reachable(tiny, table, tiny.smallest_widths(), advised_ms * 1000)


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

    def predict(widths):
        us = 1 + sum(costs[4 * layer + CHOICES[layer].index(width)] for layer, width in enumerate(widths))
        return Latency(us=us, low_us=us, high_us=us * 1.02, source="predicted")

    smallest, largest = (predict(tuple(options[end] for options in CHOICES)).high_us for end in (0, -1))
    budget = max(smallest, smallest + share * (largest - smallest))
    widths = fit_widths(kept, scores, CHOICES, predict, budget)
    assert predict(widths).high_us <= budget
    for layer, width in itertools.product(range(3), CHOICES[0]):
        if width > widths[layer]:
            assert predict((*widths[:layer], width, *widths[layer + 1 :])).high_us > budget


def test_a_budget_above_the_full_network_prunes_nothing(tiny, table):
    choices = [tiny.width_choices(index) for index in range(3)]
    assert fit_widths((8, 8, 8), [[1.0] * 32] * 3, choices, lambda widths: table.predict(tiny.network(widths)), 1e9) == tiny.full_widths()


def test_one_threshold_for_all_layers_keeps_what_scores_best_within_the_budget():
    scores = [[0.9] * 16 + [0.1] * 16, [0.8] * 32, [0.5] * 8 + [0.2] * 24]
    assert ranked_widths(scores, CHOICES, stairs, 14 * 1.05) == (16, 32, 8)
    assert ranked_widths(scores, CHOICES, stairs, 1e9) == (32, 32, 32)
    assert ranked_widths(scores, CHOICES, stairs, 1.0) == (16, 0, 0)  # nothing fits: the highest threshold
