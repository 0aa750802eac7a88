import math

import msgspec
import pytest

from search import SearchError
from search.budget import Budget, BudgetController, Price, free_channels, ranked_widths, require_reachable, round_up

CHOICES = [(8, 16, 24, 32)] * 3


def stairs(widths):
    """10 us and 1 us a tread of 16 for every layer, with an interval of 5 %."""
    us = 10.0 + sum(-(-width // 16) for width in widths)
    return Price(us, us * 1.05)


def test_a_budget_has_its_unit():
    us, macs = Budget(us=423.4), Budget(macs=3_000_000)
    assert (us.unit, us.amount, str(us)) == ("us", 423.4, "0.4234 ms")
    assert (macs.unit, macs.amount, str(macs)) == ("macs", 3_000_000, "3,000,000 MACs")
    assert [msgspec.json.encode(budget) for budget in (us, macs)] == [b'{"us":423.4}', b'{"macs":3000000}']
    assert msgspec.json.decode(b'{"us":423.4}', type=Budget) == us == Budget.of(423.4, "us")
    assert (us.holds(Price(400.0, 423.4)), us.holds(Price(400.0, 423.5))) == (True, False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"^a budget has one unit, Budget\(us=...\) or Budget\(macs=...\), found us=None and macs=None$"),
        ({"us": 1.0, "macs": 1.0}, r"found us=1.0 and macs=1.0$"),
        ({"us": 0.0}, r"^a budget must be a number above 0, found 0 us$"),
        ({"macs": -5.0}, r"^a budget must be a number above 0, found -5 macs$"),
        ({"us": float("nan")}, r"found nan us$"),
        ({"us": float("inf")}, r"found inf us$"),
    ],
)
def test_what_is_no_budget_is_refused(fields, message):
    with pytest.raises(SearchError, match=message):
        Budget(**fields)


def test_weight_grows_above_the_target_and_falls_below():
    controller = BudgetController(target=Budget(us=100.0), weight=1.0, rate=0.1)
    controller.update(150.0)
    above = controller.weight
    controller.update(50.0)
    assert above == pytest.approx(1.0513, rel=1e-3)
    assert controller.weight == pytest.approx(1)


def test_a_cost_is_held_against_what_it_should_be_by_now():
    controller = BudgetController(target=Budget(us=100.0), weight=1.0, rate=0.1)
    controller.update(150.0, 300.0)
    assert controller.weight == pytest.approx(math.exp(-0.05))


def test_a_cost_that_answers_to_the_weight_is_brought_to_the_target():
    controller = BudgetController(target=Budget(us=100.0), weight=1e-3, rate=0.1)
    cost = 200.0
    for _ in range(2000):
        controller.update(cost)
        cost += 0.05 * (200 / (1 + controller.weight) - cost)  # lags behind, as training does
    assert cost == pytest.approx(100, rel=0.01)


def test_weight_stays_finite_whatever_happens():
    controller = BudgetController(target=Budget(us=1.0), weight=1.0, rate=10.0)
    for cost in [1e12] * 1000 + [0.0] * 5000:
        controller.update(cost)
        assert 0 < controller.weight < 1e7


def test_an_impossible_budget_names_the_smallest_price():
    smallest = Price(12_000.0, 12_345.6)
    require_reachable("tiny", smallest, Budget(us=12_345.6))
    message = r"^a budget of 0.001 ms cannot be met: the smallest network of tiny takes 12 ms by the table, at most 12.35 ms; ask for"
    with pytest.raises(SearchError, match=message + r" --budget-ms 12.346 or more$"):
        require_reachable("tiny", smallest, Budget(us=1.0))
    with pytest.raises(
        SearchError, match=r"takes 12 ms by b\.jsonl, at most 12.35 ms; ask for --also b\.jsonl:12.346 or more$"
    ):
        require_reachable("tiny", smallest, Budget(us=1.0), also="b.jsonl")
    with pytest.raises(
        SearchError,
        match=r"^a budget of 1,000 MACs cannot be met: the smallest network of tiny has 12,346 MACs; ask for a larger",
    ):
        require_reachable("tiny", smallest, Budget(macs=1000.0))


def test_rounding_never_loses_a_kept_channel():
    assert round_up((1, 8, 9), CHOICES) == (8, 8, 16)


def test_one_threshold_for_all_layers_keeps_what_scores_best_within_the_budget():
    scores = [[0.9] * 16 + [0.1] * 16, [0.8] * 32, [0.5] * 8 + [0.2] * 24]
    assert ranked_widths(scores, CHOICES, stairs, Budget(us=14 * 1.05)) == (16, 32, 8)
    assert ranked_widths(scores, CHOICES, stairs, Budget(us=1e9)) == (32, 32, 32)
    assert ranked_widths(scores, CHOICES, stairs, Budget(us=1.0)) == (16, 0, 0)  # nothing fits: the highest threshold


def test_free_channels_are_those_of_a_tread():
    assert free_channels((32, 16, 8), CHOICES, stairs) == (8, 8, 0)
