"""What a network costs, as a differentiable function of its widths."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latency import LatencyTable, Surface
from search.space import Chain, macs_per_pair

Scalar = Float[Tensor, ""]


class Cost(Protocol):
    """Cost of a network of one space."""

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Cost at an output width for every layer.

        A width is the output of one block and the input of the next: gradients reach it through both.
        """
        ...


class ExpectedLatency:
    """Latency in microseconds by a table: its predictor over the sum of the blocks, each bilinear between its neighbours on the grid.

    Latency over width is a staircase on real devices, flat nearly everywhere. So the gradient is not the slope of the stair that a width
    stands on but the mean slope over a window: `max(2 * granularity, full width / 4)` channels below it and as many above, cut off at the
    ends of the grid. At the full width, where only the lower half is left, that still spans a stair of two grid steps. A width below the
    narrowest that can ship costs what that one costs.

    Args:
        space: the space whose networks are asked about.
        table: covers its blocks.

    Raises:
        CoverageError: it does not.
    """

    def __init__(self, space: Chain, table: LatencyTable) -> None:
        choices = space.channel_choices()
        self._space, self._predictor = space, table.predictor
        self._sites = space.network(space.full_widths())
        self._half_windows = [max(2.0 * space.granularity, axis[-1] / 4) for axis in choices]
        self._surfaces = [
            table.surface(site.family, axes={"c_in": c_in, "c_out": c_out})
            for site, c_in, c_out in zip(self._sites, choices, choices[1:], strict=False)
        ]

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Microseconds."""
        channels = _channels(self._space, widths)
        blocks_us, crossing = torch.zeros(()), torch.zeros(())
        for index, (site, surface) in enumerate(zip(self._sites, self._surfaces, strict=True)):
            c_in, c_out = channels[index : index + 2]
            blocks_us = blocks_us + _block_us(surface, c_in, c_out, *self._half_windows[index : index + 2])
            if index > 0:
                crossing = crossing + c_in * (site.input_elements / site.width("c_in") / 1000)
        return self._predictor.apply(blocks_us, len(self._sites) - 1.0, crossing)


class ExpectedMacs:
    """Multiply-accumulates of the deployed network (Li et al. 2022, Eq. 5), with the head, and with gradients through input widths too."""

    def __init__(self, space: Chain) -> None:
        self._space = space
        self._per_pair = [macs_per_pair(site) for site in space.network(space.full_widths())]

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Multiply-accumulates of one inference."""
        channels = _channels(self._space, widths)
        pairs = zip(self._per_pair, channels, channels[1:], strict=False)
        return sum((macs * c_in * c_out for macs, c_in, c_out in pairs), torch.zeros(()))


def _channels(space: Chain, widths: Sequence[Scalar]) -> list[Scalar]:
    return [torch.tensor(float(space.input_shape[0])), *widths, torch.tensor(float(space.classes))]


def _block_us(surface: Surface, c_in: Scalar, c_out: Scalar, half_window_in: float, half_window_out: float) -> Scalar:
    inputs, outputs = surface.axes["c_in"], surface.axes["c_out"]
    at_in, at_out = float(c_in.detach()), float(c_out.detach())
    over_out = _slice(surface.values_us, inputs, at_in)
    over_in = _slice(surface.values_us.T, outputs, at_out)
    us = float(np.interp(at_out, outputs, over_out))
    slope_in = _mean_slope(inputs, over_in, at_in, half_window_in)
    slope_out = _mean_slope(outputs, over_out, at_out, half_window_out)
    # Adds exactly 0 to the value, and the slopes to the gradient.
    return us + slope_in * (c_in - c_in.detach()) + slope_out * (c_out - c_out.detach())


def _slice(values: np.ndarray, axis: np.ndarray, at: float) -> np.ndarray:
    """Values over the second axis at a place on the first, linear between grid points and constant outside."""
    above = int(np.clip(np.searchsorted(axis, at), 1, len(axis) - 1)) if len(axis) > 1 else 0
    below = max(above - 1, 0)
    share = float(np.interp(at, axis[[below, above]], [0.0, 1.0])) if above else 0.0
    return values[below] * (1 - share) + values[above] * share


def _mean_slope(axis: np.ndarray, values: np.ndarray, at: float, half_window: float) -> float:
    low, high = np.clip([at - half_window, at + half_window], axis[0], axis[-1])
    if high <= low:
        return 0.0
    return float((np.interp(high, axis, values) - np.interp(low, axis, values)) / (high - low))
