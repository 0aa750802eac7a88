import itertools

import pytest
import torch
from torch import nn

from latency import CoverageError
from search.cost import ExpectedLatency, ExpectedMacs, NetworkLatency
from search.spaces import of_module

from .conftest import make_table


def scalars(widths):
    return [torch.tensor(float(width), requires_grad=True) for width in widths]


def test_on_the_grid_it_is_the_tables_prediction(tiny, table):
    cost = ExpectedLatency(tiny, table)
    for widths in itertools.product(*(tiny.width_choices(index) for index in range(3))):
        assert cost(scalars(widths)).item() == pytest.approx(table.predict(tiny.network(tiny.choice(widths))).us, rel=1e-6)


def test_between_grid_points_it_is_bilinear(tiny, table):
    cost = ExpectedLatency(tiny, table)
    # Channels of b and c half-way across a step in both directions: the mean of the four corners.
    corners = [table.predict(tiny.network(tiny.choice((16, b, c)))).us for b, c in itertools.product((16, 24), (16, 24))]
    assert cost(scalars((16, 20, 20))).item() == pytest.approx(sum(corners) / 4, rel=1e-6)


def test_below_the_grid_it_is_constant(tiny, table):
    cost = ExpectedLatency(tiny, table)
    narrow, narrowest = cost(scalars((8, 8, 8))).item(), cost(scalars((3, 8, 8))).item()
    assert narrow - narrowest == pytest.approx(5 * 64 / 1000 * -table.predictor.boundary_us_per_kelement, abs=1e-4)


def test_the_gradient_is_not_flat_on_a_staircase(tiny, table):
    """At (16, 32, 32) every width stands on the far end of a tread of 16, where the true slope is 0 to one side."""
    widths = scalars((16, 32, 32))
    ExpectedLatency(tiny, table)(widths).backward()
    assert all(width.grad > 0.05 for width in widths[1:])


def test_the_gradient_goes_through_output_and_input_widths(tiny, table):
    """Layer b: its own block, and that of c which reads its channels."""
    widths = scalars((16, 32, 32))
    ExpectedLatency(tiny, table)(widths).backward()
    scale = table.predictor.scale
    own, next_one, head = tiny.network(tiny.choice((16, 32, 32)))[1:]

    def mean_slope(spec, name):
        narrow = spec.with_widths(**{name: 16})
        return (table.lookup(spec).us - table.lookup(narrow).us) / 16

    crossing = table.predictor.boundary_us_per_kelement * 16 / 1000  # 4x4 pixels a channel
    assert widths[1].grad.item() == pytest.approx(scale * (mean_slope(own, "c_out") + mean_slope(next_one, "c_in")) - crossing, rel=1e-4)
    assert widths[2].grad.item() == pytest.approx(scale * (mean_slope(next_one, "c_out") + mean_slope(head, "c_in")) - crossing, rel=1e-4)


def test_macs_are_counted_with_both_gradients(tiny):
    widths = scalars((16, 32, 24))
    macs = ExpectedMacs(tiny)(widths)
    macs.backward()
    assert macs.item() == tiny.macs(tiny.network(tiny.choice((16, 32, 24))))
    # b: 9 * 4*4 pixels * 16 inputs as an output; 9 * 4*4 pixels * 24 outputs as an input.
    assert widths[1].grad.item() == 9 * 16 * 16 + 9 * 16 * 24


def test_a_table_that_lacks_a_block_is_refused(tiny, table):
    from dataclasses import replace

    with pytest.raises(CoverageError, match="head"):
        ExpectedLatency(replace(tiny, classes=7), table)


class Joined(nn.Module):
    """Two convolutions side by side, a depth-wise one over both, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.mix = nn.Sequential(nn.Conv2d(64, 48, 1), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.ReLU())
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 2))

    def forward(self, x):
        return self.classifier(self.mix(torch.cat([self.a(x), self.b(x)], 1)))


@pytest.fixture(scope="module")
def joined():
    return of_module(Joined(), torch.zeros(1, 3, 8, 8), name="joined")


def test_a_concatenation_has_the_sum_of_its_widths(joined):
    widths = scalars((16, 24, 32))
    macs = ExpectedMacs(joined)(widths)
    macs.backward()
    assert macs.item() == joined.macs(joined.network(joined.choice((16, 24, 32))))
    # a: 27 weights a channel as an output, 32 as an input of the 1x1 convolution; b alike; 8x8 pixels.
    assert [width.grad.item() for width in widths[:2]] == [64 * (27 + 32)] * 2
    # its own 40 inputs, 9 weights of the depth-wise convolution, which grow with it and not with its square, 2 outputs of the classifier.
    assert widths[2].grad.item() == 64 * (40 + 9) + 2


def test_latency_of_any_network_is_the_tables_prediction_with_a_slope_everywhere(joined):
    table = make_table(joined)
    cost = ExpectedLatency(joined, table)
    assert cost(scalars((32, 32, 48))).item() == pytest.approx(table.predict(joined.network()).us, rel=1e-5)
    widths = scalars((16, 24, 32))
    us = cost(widths)
    us.backward()
    assert us.item() == pytest.approx(
        table.predict(joined.network(joined.choice((16, 24, 32)))).us, rel=0.02
    )  # 40 inputs lie between two grid points
    assert all(width.grad > 0 for width in widths)


def test_whole_widths_cost_what_table_and_space_say(joined, tiny, table):
    for space, known in ((joined, make_table(joined)), (tiny, table)):
        latency, macs = NetworkLatency(space, known), ExpectedMacs(space)
        for widths in (space.full_widths(), space.smallest_widths(), tuple(width - 8 for width in space.full_widths())):
            assert latency(widths) == known.predict(space.network(space.choice(widths))) == latency(widths)
            assert macs.count(widths) == space.macs(space.network(space.choice(widths)))
