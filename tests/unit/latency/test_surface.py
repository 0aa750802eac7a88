import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency import (
    CoverageError,
    Surface,
)


def surface_of(function, inputs, outputs):
    values = np.array([[function(a, b) for b in outputs] for a in inputs], dtype=float)
    return Surface("f", {"c_in": np.array(inputs), "c_out": np.array(outputs)}, values, values * 0.99, values * 1.01)


GRID = list(range(8, 129, 8))


@given(st.floats(8, 128), st.floats(8, 128))
def test_a_plane_is_interpolated_exactly(c_in, c_out):
    found = surface_of(lambda a, b: 5 + 0.3 * a + 0.7 * b, GRID, GRID).interpolate({"c_in": c_in, "c_out": c_out})
    assert found.us == pytest.approx(5 + 0.3 * c_in + 0.7 * c_out)
    assert found.low_us <= found.us <= found.high_us


@given(st.integers(8, 128), st.integers(8, 128), st.sampled_from([8, 12, 16, 32]), st.sampled_from([8, 16]))
def test_the_interval_holds_the_truth_of_a_staircase(c_in, c_out, step, granularity):
    def truth(a, b):
        return 2 + math.ceil(a / step) * math.ceil(b / step)

    grid = list(range(granularity, 129, granularity))
    found = surface_of(truth, [8, *grid[1:]], [8, *grid[1:]]).interpolate({"c_in": c_in, "c_out": c_out})
    assert found.low_us <= truth(c_in, c_out) <= found.high_us


def test_where_leave_one_out_is_bad_the_interval_is_wide():
    def bumpy(a, b):
        return 100.0 + (20.0 if a == 64 else 0.0) + 0 * b

    at = {
        name: surface_of(f, GRID, GRID).interpolate({"c_in": 60, "c_out": 64})
        for name, f in (("bumpy", bumpy), ("flat", lambda a, b: 100.0))
    }
    assert at["flat"].high_us - at["flat"].low_us == pytest.approx(2.0)
    assert at["bumpy"].low_us < 100
    assert at["bumpy"].high_us > 130


def test_on_the_grid_nothing_is_added():
    found = surface_of(lambda a, b: a * b, GRID, GRID).interpolate({"c_in": 64, "c_out": 8})
    assert (found.us, found.low_us, found.high_us) == pytest.approx((512, 512 * 0.99, 512 * 1.01))


def test_other_widths_than_the_grid_has_are_refused():
    with pytest.raises(CoverageError, match="is measured over the widths c_in, c_out, asked for c_in, hidden"):
        surface_of(lambda a, b: a, GRID, GRID).interpolate({"c_in": 8, "hidden": 8})


@pytest.mark.parametrize("step", [16, 32])
def test_steps_are_not_smoothed_away(step):
    surface = surface_of(lambda a, b: 10.0 + math.ceil(a / step) + 0.1 * b, GRID, GRID)
    assert surface.steps == (True, False)
    assert surface.interpolate({"c_in": step + 4, "c_out": 60}).us == pytest.approx(10 + 2 + 6)
