import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency import BlockSpec
from search import SearchError, ops, widths
from search.budget import Budget, Price
from search.spaces import AffineWidth, Site
from search.spaces.traced import Traced
from search.widths import TablePrices, fit, importance, macs_price, network_price, proportional


class Stairs:
    """A made-up price: 2, and for each width a stair of `tread` channels; with an interval of 5 %."""

    def __init__(self, tread=16, slopes=(1.0, 1.0)):
        self.tread, self.slopes = tread, slopes

    def __call__(self, index: int, spec: BlockSpec) -> Price:
        treads = [math.ceil(width / self.tread) for _, width in spec.widths]
        cost = 2 + self.slopes[index % len(self.slopes)] * math.prod(treads)
        return Price(cost, 1.05 * cost)


def make_space(widths_of_groups, spans):
    """A space of convolutions, each with these spans of input and output channels; the structure is all that matters here."""
    full = list(widths_of_groups)
    places = tuple(
        Site(spec=ops.layer("conv", (span_in.at(full), 8, 8), span_out.at(full)), spans=(span_in, span_out))
        for span_in, span_out in spans
    )
    members = tuple((f"g{index}", width) for index, width in enumerate(widths_of_groups))
    return Traced(name="made-up", input_shape=(3, 8, 8), classes=2, members=members, places=places, make=lambda: None)


def group(*indices, fixed=0):
    return AffineWidth(fixed=fixed, terms=tuple((index, 1) for index in indices))


def chain(*full):
    groups = [group(index) for index in range(len(full))]
    return make_space(full, list(itertools.pairwise([group(fixed=3), *groups, group(fixed=10)])))


def choices_of(space):
    return [space.width_choices(index) for index in range(len(space.groups))]


def brute_force(space, choices, values, prices, budget):
    """The highest value of any network within the budget."""
    best = -math.inf
    for picks in itertools.product(*(range(len(options)) for options in choices)):
        network = tuple(options[pick] for options, pick in zip(choices, picks, strict=True))
        if network_price(space.sites(), prices, network).most <= budget:
            best = max(best, math.fsum(value[pick] for value, pick in zip(values, picks, strict=True)))
    return best


@given(
    seed=st.integers(0, 10**6),
    tread=st.sampled_from([8, 16, 24]),
    slopes=st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
    share=st.floats(0.05, 0.95),
)
@settings(max_examples=15, deadline=None)
def test_the_fit_is_the_best_of_all_networks_within_the_budget(seed, tread, slopes, share):
    space, prices, draw = chain(32, 24, 40, 32), Stairs(tread, slopes), random.Random(seed)
    choices = choices_of(space)
    low, high = (
        network_price(space.sites(), [prices], ends).most for ends in (space.smallest_widths(), space.full_widths())
    )
    budget = low + share * (high - low)
    scores = [[draw.expovariate(1) for _ in range(width)] for _, width in space.groups]
    for values in (
        importance(scores, choices),
        proportional(
            [draw.randint(1, width) for _, width in space.groups],
            choices,
            lambda w: network_price(space.sites(), [prices], w),
            Budget(us=budget),
        ),
        [[draw.uniform(-1, 1) for _ in options] for options in choices],
    ):
        found = fit(space, choices, values, [prices], Budget(us=budget))
        assert found.price.most <= budget
        assert found.price == network_price(space.sites(), [prices], found.widths)
        best = brute_force(space, choices, values, [prices], budget)
        assert found.value == pytest.approx(best, abs=1e-9 + 2e-4 * abs(best))


def test_a_concatenation_of_three_groups_is_fitted_by_interpolation_within_the_budget(monkeypatch):
    """The price of the layer behind it depends on the sum of three widths: more combinations than are tabulated."""
    monkeypatch.setattr(widths, "_TABULATED", 30)
    spans = [
        (group(fixed=3), group(0)),
        (group(0), group(1)),
        (group(1), group(2)),
        (group(0, 1, 2, fixed=3), group(fixed=16)),
    ]
    space, prices, draw = make_space((32, 32, 32), spans), Stairs(16), random.Random(3)
    choices = choices_of(space)
    used = []
    for _ in range(6):
        values = importance([[draw.expovariate(1) for _ in range(width)] for _, width in space.groups], choices)
        low, high = (
            network_price(space.sites(), [prices], ends).most for ends in (space.smallest_widths(), space.full_widths())
        )
        budget = low + draw.uniform(0.1, 0.9) * (high - low)
        found = fit(space, choices, values, [prices], Budget(us=budget))
        best = brute_force(space, choices, values, [prices], budget)
        assert found.price.most <= budget
        assert found.value >= 0.9 * best
        used.append(found.value / best)
    assert sum(used) / len(used) > 0.97


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_best_of_all_networks_within_the_budgets_of_several_devices(seed, monkeypatch):
    """Also where a block is interpolated; each device binds somewhere."""
    draw, spans = (
        random.Random(seed),
        [(group(fixed=3), group(0)), (group(0), group(1)), (group(0, 1, fixed=3), group(fixed=16))],
    )
    if seed == 3:
        monkeypatch.setattr(widths, "_TABULATED", 10)
    space, devices = make_space((40, 32), spans), [Stairs(16, (3.0, 1.0, 1.0)), Stairs(8, (0.5, 0.5, 1.0))]
    choices = choices_of(space)
    budget = (
        sum(network_price(space.sites(), devices, ends).most for ends in (space.smallest_widths(), space.full_widths()))
        / 2
    )
    values = importance([[draw.expovariate(1) for _ in range(width)] for _, width in space.groups], choices)
    found = fit(space, choices, values, devices, Budget(us=budget))
    assert found.price == network_price(space.sites(), devices, found.widths)
    assert found.price.most <= budget
    best = brute_force(space, choices, values, devices, budget)
    assert found.value == pytest.approx(best, rel=0.1 if seed == 3 else 2e-4)
    least = 0.9 * found.price.most
    assert (
        fit(
            space, choices, [[-v for v in value] for value in values], devices, Budget(us=budget), least=least
        ).price.most
        >= least
    )


def test_channels_that_cost_nothing_are_taken():
    """17 to 32 channels cost the same here."""
    space = chain(32, 32)
    choices = choices_of(space)
    price = network_price(space.sites(), [Stairs()], (32, 16)).most
    found = fit(space, choices, importance([[1.0] * 32, [0.1] * 32], choices), [Stairs()], Budget(us=price))
    assert found.widths == (32, 16)


def test_dominated_widths_of_a_stair_are_no_variables():
    space = chain(64)
    choices = choices_of(space)
    found = fit(space, choices, importance([[1.0] * 64], choices), [Stairs(32)], Budget(us=1e6))
    assert found.variables == 2


def test_importance_counts_the_best_channels_first_and_no_negative_ones():
    assert importance([[0.5, -1.0, 2.0, 1.0]], [(1, 2, 4)]) == [[2.0, 3.0, 3.5]]


def test_learned_proportions_are_stretched_to_the_budget():
    """Cheap channels do not make up for learned ones: the last layer's cost a tenth, and it stays at its share."""
    space, prices = chain(256, 256, 256), Stairs(8, (10.0, 10.0, 10.0, 1.0))
    choices = choices_of(space)

    def price(network):
        return network_price(space.sites(), [prices], network)

    budget = price((128, 64, 192)).most
    found = fit(
        space, choices, proportional((32, 16, 48), choices, price, Budget(us=budget)), [prices], Budget(us=budget)
    )
    assert found.widths == (128, 64, 192)


def test_what_is_left_of_the_budget_goes_where_the_ratio_is_least():
    space, prices = chain(64, 64), Stairs(8, (1.0, 0.0, 1.0))
    choices = choices_of(space)

    def price(network):
        return network_price(space.sites(), [prices], network)

    budget = price((24, 24)).most
    values = proportional((20, 26), choices, price, Budget(us=budget))
    below = [value[options.index(16)] for value, options in zip(values, choices, strict=True)]
    above = [value[options.index(48)] for value, options in zip(values, choices, strict=True)]
    assert below[0] > below[1], "the same width is a larger deficit of the group that learned more"
    assert all(value < 0.05 for value in above)
    assert above[0] > above[1]
    assert fit(space, choices, values, [prices], Budget(us=budget)).price.most <= budget


def test_a_price_of_blocks_adds_up_to_the_prediction(tiny, table):
    prices, draw = TablePrices(table), random.Random(0)
    for _ in range(20):
        choice = tiny.random(draw)
        predicted, price = (
            table.predict(tiny.network(choice)),
            network_price(tiny.sites(), [prices], tiny.widths(choice)),
        )
        assert price.cost == pytest.approx(predicted.us, rel=1e-12)
        assert price.most == pytest.approx(predicted.high_us, rel=1e-12)


def test_macs_add_up_to_those_of_the_space(tiny):
    assert network_price(tiny.sites(), [macs_price], tiny.full_widths()).cost == tiny.macs()


def test_a_least_price_keeps_cheaper_widths_out(tiny):
    """Where the most valuable widths are the narrowest; between the two no widths may be left."""
    choices = [tiny.width_choices(index) for index in range(3)]
    values = [[-float(width) for width in options] for options in choices]
    budget = Budget(macs=0.6 * tiny.macs())
    assert widths.fit(tiny, choices, values, [widths.macs_price], budget).widths == (8, 8, 8)
    found = widths.fit(tiny, choices, values, [widths.macs_price], budget, least=0.5 * tiny.macs())
    assert 0.5 * tiny.macs() <= found.price.most <= budget.amount
    with pytest.raises(SearchError, match="no widths of tiny within"):
        widths.fit(tiny, choices, values, [widths.macs_price], budget, least=0.599999 * tiny.macs())


def test_a_budget_below_every_network_is_refused(tiny, table):
    choices = choices_of(tiny)
    values = [[0.0] * len(options) for options in choices]
    with pytest.raises(
        SearchError, match=r"^no widths of tiny within .* ms were found in 120 s: ask for a larger budget$"
    ):
        fit(tiny, choices, values, [TablePrices(table)], Budget(us=1.0))
