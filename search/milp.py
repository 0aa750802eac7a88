"""The solver of mixed-integer programs behind the exact fits: `scipy.optimize.milp` (HiGHS), with types."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint  # pyright: ignore[reportMissingTypeStubs]
from scipy.optimize import milp as _milp  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

TIME_LIMIT_S = 120.0
"""Limit on the solving time; fifty groups of 32 widths take a few seconds. Widths are reproducible unless the limit is
reached."""
GAP = 1e-4
"""Relative gap to the bound at which a solution counts as optimal."""


class Solution(NamedTuple):
    """The solution of a program."""

    x: np.ndarray
    """value of each variable"""
    gap: float
    """relative gap between the objective and its bound"""


def minimise(
    objective: np.ndarray,
    constraints: Sequence[LinearConstraint],
    *,
    integral: np.ndarray,
    time_limit_s: float = TIME_LIMIT_S,
) -> Solution | None:
    """Minimise a linear objective over variables from 0 to 1; None if no solution exists, or none was found in time.

    Args:
        objective: factor of each variable.
        constraints: linear constraints on the variables.
        integral: 1 for variables that are 0 or 1, 0 for continuous ones.
        time_limit_s: limit on the solving time.
    """
    result: Any = _milp(
        objective,
        integrality=integral,
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"time_limit": time_limit_s, "mip_rel_gap": GAP},
    )
    return None if result.x is None else Solution(result.x, float(result.mip_gap or 0.0))
