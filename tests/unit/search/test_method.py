import pytest

from search import SearchError
from search.budget import Budget, Limit
from search.cost import DevicesModel, LatencyModel, MacsModel
from search.method import Problem

from .conftest import make_table


def make(tiny, stripes, table, budget, **changed):
    return Problem(space=tiny, task=stripes, table=table, budget=budget, **changed)


@pytest.mark.parametrize(("with_table", "budget"), [(True, Budget(macs=1e6)), (False, Budget(us=100.0))])
def test_a_budget_is_in_the_unit_of_the_cost(tiny, stripes, table, with_table, budget):
    with pytest.raises(SearchError, match="cannot be held against what is known"):
        make(tiny, stripes, table if with_table else None, budget)


def test_further_devices_need_a_first_one(tiny, stripes, table):
    with pytest.raises(SearchError, match="need a table of the first one"):
        make(tiny, stripes, None, Budget(macs=1e6), also=(Limit(table, Budget(us=100.0)),))


def test_the_cost_model_is_that_of_the_devices(tiny, stripes, table):
    budget, other = Budget(us=100.0), Limit(make_table(tiny, name="other"), Budget(us=50.0))
    assert isinstance(make(tiny, stripes, None, Budget(macs=1e6)).model(), MacsModel)
    assert isinstance(make(tiny, stripes, table, budget).model(), LatencyModel)
    both = make(tiny, stripes, table, budget, also=(other,))
    assert isinstance(both.model(), DevicesModel)
    assert len(both.latencies(tiny.largest())) == len(both.limits) == 2


def test_the_target_leaves_room_for_the_interval(tiny, stripes):
    problem = make(tiny, stripes, make_table(tiny, spread=0.1), Budget(us=100.0))
    assert problem.target * (1 + problem.table.predictor.half_width) == pytest.approx(100.0)
    assert make(tiny, stripes, None, Budget(macs=1e6)).target == 1e6


def test_a_budget_below_the_smallest_network_is_refused(tiny, stripes, table):
    problem = make(tiny, stripes, table, Budget(us=0.5))
    with pytest.raises(SearchError, match="a budget of .* cannot be met: the smallest network of tiny takes"):
        problem.require_reachable(tiny.smallest())
