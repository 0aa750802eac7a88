import itertools

import pytest
import torch

from latency import CoverageError
from search.cost import ExpectedLatency, ExpectedMacs


def scalars(widths):
    return [torch.tensor(float(width), requires_grad=True) for width in widths]


def test_on_the_grid_it_is_the_tables_prediction(tiny, table):
    cost = ExpectedLatency(tiny, table)
    for widths in itertools.product(*(tiny.width_choices(index) for index in range(3))):
        assert cost(scalars(widths)).item() == pytest.approx(table.predict(tiny.network(widths)).us, rel=1e-6)


def test_between_grid_points_it_is_bilinear(tiny, table):
    cost = ExpectedLatency(tiny, table)
    # Channels of b and c half-way across a step in both directions: the mean of the four corners.
    corners = [table.predict(tiny.network((16, b, c))).us for b, c in itertools.product((16, 24), (16, 24))]
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
    own, next_one, head = tiny.network((16, 32, 32))[1:]

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
    assert macs.item() == tiny.macs(tiny.network((16, 32, 24)))
    # b: 9 * 4*4 pixels * 16 inputs as an output; 9 * 4*4 pixels * 24 outputs as an input.
    assert widths[1].grad.item() == 9 * 16 * 16 + 9 * 16 * 24


def test_a_table_that_lacks_a_block_is_refused(tiny, table):
    from dataclasses import replace

    with pytest.raises(CoverageError, match="head"):
        ExpectedLatency(replace(tiny, classes=7), table)
