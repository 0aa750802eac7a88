import numpy as np
import pytest
from scipy.optimize import LinearConstraint

from search import milp


def solve(capacity, *, integral):
    """The most valuable items of weights 3, 2 and 2 and values 4, 3 and 2 within a capacity."""
    weights = LinearConstraint(np.array([[3.0, 2.0, 2.0]]), ub=capacity)
    return milp.minimise(-np.array([4.0, 3.0, 2.0]), [weights], integral=np.full(3, integral))


def test_items_are_taken_whole_or_in_part():
    assert solve(4.0, integral=1).x.round().tolist() == [0, 1, 1]
    assert solve(4.0, integral=0).x.tolist() == pytest.approx([2 / 3, 1, 0])
    assert solve(4.0, integral=1).gap <= milp.GAP


def test_a_program_without_solution_has_none():
    assert solve(-1.0, integral=1) is None
