"""Latency of one family of blocks over its widths, interpolated on the grid that was measured."""

import itertools
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from latency.errors import CoverageError
from latency.rows import Latency


class Surface:
    """Latency of one family of blocks over its widths, on a complete rectilinear grid.

    Attributes:
        family: family of the blocks.
        axes: grid values of each width by name, ascending, in the order of `BlockSpec.widths`.
        values_us: medians; one dimension per axis.
        low_us: lower ends of their intervals.
        high_us: upper ends.
    """

    def __init__(
        self,
        family: str,
        axes: Mapping[str, NDArray[np.float64]],
        values_us: NDArray[np.float64],
        low_us: NDArray[np.float64],
        high_us: NDArray[np.float64],
    ) -> None:
        self.family, self.axes = family, dict(axes)
        self.values_us, self.low_us, self.high_us = values_us, low_us, high_us

    def interpolate(self, widths: Mapping[str, int | float]) -> Latency:
        """Interpolate along each axis, linearly or in steps, with an interval that covers staircases.

        In steps a width costs as much as the next one up on the grid; an axis has steps if that predicts left-out grid
        values at least as well as a straight line.

        Between two measured widths latency may step anywhere, so the interval spans all corners of the cell with their
        own intervals. Where latency is not monotone that is too narrow: it also spans the largest relative error that
        predicting a corner from its two neighbours along an axis makes (leave one out).

        Args:
            widths: a value for each axis, inside the grid.

        Raises:
            CoverageError: an axis is missing or unknown, or a value is out of its range.
        """
        if set(widths) != set(self.axes):
            raise CoverageError(
                f"{self.family} is measured over the widths {', '.join(self.axes)}, asked for {', '.join(widths)}"
            )
        position: list[
            tuple[int, float]
        ] = []  # for each axis the grid index below and the fraction of the way to the next
        for name, axis in self.axes.items():
            width = widths[name]
            if not axis[0] <= width <= axis[-1]:
                raise CoverageError(f"{self.family}: {name}={width} is outside of the measured {axis[0]}..{axis[-1]}")
            i = int(np.searchsorted(axis, width, side="right")) - 1
            position.append((i, float((width - axis[i]) / (axis[i + 1] - axis[i])) if width > axis[i] else 0.0))
        shares = [float(t > 0) if step else t for (_, t), step in zip(position, self.steps, strict=True)]

        corners = list(itertools.product(*([i, i + 1] if t else [i] for i, t in position)))
        us = sum(
            math.prod((t if index > i else 1 - t) for index, (i, _), t in zip(corner, position, shares, strict=True))
            * float(self.values_us[corner])
            for corner in corners
        )
        between = [axis for axis, (_, t) in enumerate(position) if t]
        error_us = us * max((self._leave_one_out(corner, axis) for corner in corners for axis in between), default=0.0)
        low_us = min(us - error_us, *(float(self.low_us[corner]) for corner in corners))
        high_us = max(us + error_us, *(float(self.high_us[corner]) for corner in corners))
        return Latency(us=us, low_us=low_us, high_us=high_us, source="interpolated")

    @cached_property
    def steps(self) -> tuple[bool, ...]:
        """For each axis, whether latency rises in steps: the next larger value predicts as well as a line does.

        A step halfway between grid values costs both predictions the same, so a tie counts as steps.
        """
        steps: list[bool] = []
        for axis, widths in enumerate(self.axes.values()):
            lines = np.moveaxis(self.values_us, axis, 0)
            if len(widths) < 4:
                steps.append(False)
                continue
            share = ((widths[1:-1] - widths[:-2]) / (widths[2:] - widths[:-2])).reshape(-1, *[1] * (lines.ndim - 1))
            linear = np.abs((lines[:-2] * (1 - share) + lines[2:] * share) / lines[1:-1] - 1).mean()
            steps.append(bool(np.abs(lines[2:] / lines[1:-1] - 1).mean() <= 1.05 * linear))
        return tuple(steps)

    def _leave_one_out(self, node: tuple[int, ...], axis: int) -> float:
        """Return the relative error of predicting a grid value from its two neighbours along an axis; 0 at the ends."""
        widths = list(self.axes.values())[axis]
        line, i = self.values_us[(*node[:axis], slice(None), *node[axis + 1 :])], node[axis]
        if i in (0, len(widths) - 1):
            return 0.0
        predicted_us = float(np.interp(float(widths[i]), widths[[i - 1, i + 1]], line[[i - 1, i + 1]]))
        return abs(predicted_us / float(line[i]) - 1)
