"""What a network costs, as a differentiable function of its widths."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latency import Latency, LatencyTable, Surface
from search import ops
from search.spaces import Prunable, Widths

Scalar = Float[Tensor, ""]


class Cost(Protocol):
    """Cost of a network of one space."""

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Cost at a width for every group.

        A group's channels are the output of some blocks and the input of others: gradients reach it through all of them.
        """
        ...


class ExpectedLatency:
    """Latency in microseconds by a table: its predictor over the sum of the blocks, each multilinear between its neighbours on the grid.

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

    def __init__(self, space: Prunable, table: LatencyTable) -> None:
        self._sites, self._predictor = space.sites(), table.predictor
        self._surfaces, self._half_windows = [], []
        for site in self._sites:
            axes = {name: space.span_choices(span) for (name, _), span in zip(site.spec.widths, site.spans, strict=True)}
            self._surfaces.append(table.surface(site.spec.family, axes=axes))
            self._half_windows.append([max(2.0 * space.granularity, axis[-1] / 4) for axis in axes.values()])

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Microseconds."""
        blocks_us, crossing = torch.zeros(()), torch.zeros(())
        for index, (site, surface, windows) in enumerate(zip(self._sites, self._surfaces, self._half_windows, strict=True)):
            channels = [torch.as_tensor(span.at(widths), dtype=torch.float32) for span in site.spans]
            blocks_us = blocks_us + _block_us(surface, channels, windows)
            if index > 0:
                crossing = crossing + channels[0] * (site.spec.input_elements / site.spec.width("c_in") / 1000)
        return self._predictor.apply(blocks_us, len(self._sites) - 1.0, crossing)


class NetworkLatency:
    """`table.predict` of a space's networks, many times over: each block is looked up once."""

    def __init__(self, space: Prunable, table: LatencyTable) -> None:
        self._sites, self._table = space.sites(), table
        self._pixels = [site.spec.input_elements // site.spec.width("c_in") for site in self._sites]
        self._found: dict[tuple[int, ...], Latency] = {}

    def __call__(self, widths: Widths) -> Latency:
        """Latency of the network of these widths."""
        found, crossing = [], 0
        for index, (site, pixels) in enumerate(zip(self._sites, self._pixels, strict=True)):
            channels = [round(span.at(widths)) for span in site.spans]
            key = (index, *channels)
            if key not in self._found:
                self._found[key] = self._table.lookup(site.at(widths))
            found.append(self._found[key])
            crossing += channels[0] * pixels if index else 0
        return self._table.combine(found, len(self._sites) - 1.0, crossing / 1000)


class ExpectedMacs:
    """Multiply-accumulates of the deployed network (Li et al. 2022, Eq. 5): all of its layers, with gradients through input widths too."""

    def __init__(self, space: Prunable) -> None:
        self._sites = space.sites()
        self._each = [ops.counts(site.spec).macs / math.prod(width for _, width in site.spec.widths) for site in self._sites]

    def count(self, widths: Widths) -> int:
        """Multiply-accumulates at whole widths."""
        each = zip(self._sites, self._each, strict=True)
        return sum(round(macs * math.prod(round(span.at(widths)) for span in site.spans)) for site, macs in each)

    def __call__(self, widths: Sequence[Scalar]) -> Scalar:
        """Multiply-accumulates of one inference."""
        total = torch.zeros(())
        for site, macs in zip(self._sites, self._each, strict=True):
            total = total + macs * math.prod(span.at(widths) for span in site.spans)
        return total


def _block_us(surface: Surface, channels: Sequence[Scalar], half_windows: Sequence[float]) -> Scalar:
    axes, at = list(surface.axes.values()), [float(width.detach()) for width in channels]
    total = torch.zeros(())
    for index, (axis, width, half_window) in enumerate(zip(axes, channels, half_windows, strict=True)):
        profile = np.moveaxis(surface.values_us, index, -1)
        for other, place in enumerate(at):
            if other != index:
                profile = _slice(profile, axes[other], place)
        if index == 0:
            total = total + float(np.interp(at[0], axis, profile))
        # Adds exactly 0 to the value, and the slope to the gradient.
        total = total + _mean_slope(axis, profile, at[index], half_window) * (width - width.detach())
    return total


def _slice(values: np.ndarray, axis: np.ndarray, at: float) -> np.ndarray:
    """Values over the other axes at a place on the first, linear between grid points and constant outside."""
    above = int(np.clip(np.searchsorted(axis, at), 1, len(axis) - 1)) if len(axis) > 1 else 0
    below = max(above - 1, 0)
    share = float(np.interp(at, axis[[below, above]], [0.0, 1.0])) if above else 0.0
    return values[below] * (1 - share) + values[above] * share


def _mean_slope(axis: np.ndarray, values: np.ndarray, at: float, half_window: float) -> float:
    low, high = np.clip([at - half_window, at + half_window], axis[0], axis[-1])
    if high <= low:
        return 0.0
    return float((np.interp(high, axis, values) - np.interp(low, axis, values)) / (high - low))
