import itertools

import pytest
import torch

from search import widths

from ..conftest import make_method


@pytest.fixture
def trained(tiny):
    torch.manual_seed(0)
    return tiny.module()


@pytest.mark.parametrize("score", ["taylor", "magnitude", "slimming"])
def test_no_widths_within_the_budget_have_more_importance(tiny, table, stripes, budget_us, trained, score):
    """All 64 networks are tried."""
    method = make_method("table", tiny, table, stripes, budget_us, score=score)
    scores = method.scores(trained)
    fitted = method.fitted(method._by_space(scores, torch.ones), tiny.full_widths())
    values = widths.importance([found.tolist() for found in scores], method.choices)

    def worth(network):
        return sum(
            value[options.index(width)] for value, options, width in zip(values, method.choices, network, strict=True)
        )

    best = max(
        worth(network) for network in itertools.product(*method.choices) if method.price(network).most <= budget_us
    )
    assert method.price(fitted).most <= budget_us
    assert worth(fitted) == pytest.approx(best)


def test_taylor_is_the_same_each_time(tiny, table, stripes, budget_us, trained):
    one, other = (make_method("table", tiny, table, stripes, budget_us).scores(trained) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    few = make_method("table", tiny, table, stripes, budget_us, score_images=16).scores(trained)
    assert not torch.equal(one[0], few[0])
