"""Cost models of networks for all methods: the price of one network, and a differentiable expectation during a search.

A method describes its network as terms, each the cost added by a block at open widths or by a mixture of candidate
blocks. The term of an optional part is multiplied by the probability that it runs. `expected` of the terms is the
expected cost, which equals `price` if shares are one-hot and widths are integers.
"""

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latency import BlockSpec, Latency, LatencyTable, Surface
from latency.units import kilo
from search import ops
from search.budget import Limit, Price, Unit, device_factors, worst
from search.space import Choice, Space
from search.spaces import Cells, Site, with_sites
from search.spaces.cells import KINDS, STAGES

Scalar = Float[Tensor, ""]
Term = Float[Tensor, "*devices"]
"""Cost added by a part of a network: a scalar, or one entry per device."""
Shares = Float[Tensor, " candidates"]

_TABULATED = (
    33 * 33
)  # most combinations of a block's group widths to tabulate; beyond, the expected cost is that of the expected widths

Candidate = BlockSpec | None
"""A block, or None for a skipped layer or an edge without an operation."""


@runtime_checkable
class CostModel(Protocol):
    """Cost of the networks of a space, in the unit of a budget."""

    unit: Unit

    def price(self, choice: Choice) -> Price:
        """Return the cost of one network, with the upper end of its interval."""
        ...

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Term:
        """Return the cost added by a block at open widths.

        Args:
            site: the block's place in the network.
            widths: channels of every group, by index; gradients flow through both input and output widths.
        """
        ...

    def term(self, block: Candidate) -> float | tuple[float, ...]:
        """Return the cost added by one block, per device if there are several."""
        ...

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Term:
        """Return the cost added by a mixture of blocks.

        Args:
            candidates: in the order of the shares.
            shares: probability of each, or the mean number of times that it runs.
        """
        ...

    def expected(self, terms: Sequence[Term]) -> Scalar:
        """Return the cost of the whole network, in the unit of the model."""
        ...


class LatencyModel:
    """Latency in microseconds by a table.

    Its predictor over the sum of the blocks, each interpolated multilinearly on the grid.

    On real devices latency over width is a staircase, flat nearly everywhere. The gradient is therefore not the local
    slope but the mean slope over a window of `max(2 * granularity, full width / 4)` channels on each side, clipped to
    the grid. At the full width, where only the lower half remains, the window still spans a step of two grid points. A
    width below the narrowest that can ship costs as much as that one.

    Args:
        space: the search space.
        table: covers the space's blocks.

    Raises:
        CoverageError: the table does not cover the largest or the smallest network, or later a requested block.
    """

    unit: Unit = "us"

    def __init__(self, space: Space, table: LatencyTable) -> None:
        self._space, self._table = space, table
        self._known: dict[BlockSpec, Latency] = {}
        self._terms: dict[Candidate, float] = {}
        self._curves: dict[Site, _Curve] = {}
        for choice in (space.largest(), space.smallest()):
            self.of(choice)

    def of(self, choice: Choice) -> Latency:
        """Return the prediction of `table.predict` for a network; each block is looked up only once.

        Raises:
            SearchError: the choice does not belong to the space.
            CoverageError: a block is not covered.
        """
        blocks = self._space.network(choice)
        return self._table.combine([self._lookup(block) for block in blocks], blocks)

    def price(self, choice: Choice) -> Price:
        """Return the price in microseconds."""
        latency = self.of(choice)
        return Price(latency.us, latency.high_us)

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Scalar:
        """Return the term of a block at open widths, computed in the dtype of the widths; see `CostModel`."""
        curve = self._curve(site)
        channels = _channels(site, widths)
        at = [float(width.detach()) for width in channels]
        block = site.at([round(float(width.detach())) for width in widths]) if curve.between(at) else None
        us = self._lookup(block).us if block else None
        cost = curve.cost(channels, at, us)
        kelements = channels[0] * kilo(site.spec.input_elements / site.spec.width("c_in"))
        return self._table.predictor.added_us(site.spec.op, cost, kelements)

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Scalar:
        """Return the term of a mixture of blocks; see `CostModel`."""
        return _weighted_sum([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Scalar]) -> Scalar:
        """Return the cost of the network in microseconds."""
        return torch.as_tensor(sum(terms, self._table.predictor.network_us))

    def term(self, block: Candidate) -> float:
        """Return the microseconds added by a block; see `CostModel`."""
        if block is None:
            return 0.0
        if block not in self._terms:
            self._terms[block] = self._table.predictor.added_us(block.op, self._lookup(block).us, block.input_kelements)
        return self._terms[block]

    def _lookup(self, block: BlockSpec) -> Latency:
        if block not in self._known:
            self._known[block] = self._table.lookup(block)
        return self._known[block]

    def _curve(self, site: Site) -> "_Curve":
        if site not in self._curves:
            space = with_sites(self._space)
            axes = dict(zip((name for name, _ in site.spec.widths), space.axes(site), strict=True))
            surface = self._table.surface(site.spec.family, axes=axes)
            windows = [max(2.0 * space.granularity, axis[-1] / 4) for axis in axes.values()]
            self._curves[site] = _Curve(surface, tuple(windows), tuple(len(span.terms) > 1 for span in site.spans))
        return self._curves[site]


class DevicesModel:
    """Latency on several devices, each with its own budget; the device furthest over its budget counts.

    Costs are in microseconds of the first device. Those of other devices are scaled so that their targets equal the
    first one's, see `search.budget.device_factors`. Terms have one entry per device.

    Args:
        space: the search space.
        limits: tables and budgets of the devices.

    Raises:
        CoverageError: a table does not cover the space, see `LatencyModel`.
    """

    unit: Unit = "us"

    def __init__(self, space: Space, limits: Sequence[Limit]) -> None:
        self._models = [LatencyModel(space, limit.table) for limit in limits]
        self._factors = device_factors(limits)

    def price(self, choice: Choice) -> Price:
        """Return the price in microseconds of the first device.

        `most` is within its budget if the network is within every budget.
        """
        prices = [model.price(choice) for model in self._models]
        return worst(
            Price(price.cost * factor.cost, price.most * factor.most)
            for price, factor in zip(prices, self._factors, strict=True)
        )

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Float[Tensor, " devices"]:
        """Return the term of a block at open widths; see `CostModel`."""
        return torch.stack([model.at_widths(site, widths) for model in self._models])

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Float[Tensor, " devices"]:
        """Return the term of a mixture of blocks; see `CostModel`."""
        return _weighted_sum([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Float[Tensor, " devices"]]) -> Scalar:
        """Return the cost in microseconds of the first device.

        The gradient is that of the device furthest over its budget.
        """
        costs = [model.expected([term[index] for term in terms]) for index, model in enumerate(self._models)]
        return torch.stack([cost * factor.cost for cost, factor in zip(costs, self._factors, strict=True)]).max()

    def term(self, block: Candidate) -> tuple[float, ...]:
        """Return the microseconds added by a block on each device; see `CostModel`."""
        return tuple(model.term(block) for model in self._models)


class MacsModel:
    """Multiply-accumulates of all layers of the deployed network (Li et al. 2022, Eq. 5).

    Gradients flow through input widths, too.

    Args:
        space: the search space.
    """

    unit: Unit = "macs"

    def __init__(self, space: Space) -> None:
        self._space = space
        self._terms: dict[Candidate, float] = {}

    def of(self, choice: Choice) -> int:
        """Return the multiply-accumulates of a network.

        Raises:
            SearchError: the choice does not belong to the space.
        """
        return self._space.macs(self._space.network(choice))

    def price(self, choice: Choice) -> Price:
        """Return the multiply-accumulates as an exact price."""
        macs = self.of(choice)
        return Price(macs, macs)

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Scalar:
        """Return the term of a block at open widths; see `CostModel`."""
        return _macs(site, _channels(site, widths))

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Scalar:
        """Return the term of a mixture of blocks; see `CostModel`."""
        return _weighted_sum([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Scalar]) -> Scalar:
        """Return the multiply-accumulates of one inference."""
        return torch.as_tensor(sum(terms, 0.0))

    def term(self, block: Candidate) -> float:
        """Return the multiply-accumulates of a block; see `CostModel`."""
        if block not in self._terms:
            self._terms[block] = float(ops.counts(block).macs) if block else 0.0
        return self._terms[block]


def cost_model(space: Space, limits: Sequence[Limit]) -> CostModel:
    """Return a latency model for the tables of one or several devices.

    Without tables, a model of multiply-accumulates.
    """
    if not limits:
        return MacsModel(space)
    return LatencyModel(space, limits[0].table) if len(limits) == 1 else DevicesModel(space, limits)


def network_terms(model: CostModel, sites: Sequence[Site], widths: Sequence[Scalar]) -> list[Term]:
    """Return the terms of all sites of a network at open widths, in order."""
    return [model.at_widths(site, widths) for site in sites]


class DrawnWidths:
    """Expected cost of a network whose groups draw their widths independently, differentiable in their distributions.

    The cost of a block that depends on two groups is bilinear in their distributions: it is tabulated at each pair of
    widths, and the expectation is exact. The same holds for blocks of more groups, such as one that reads a
    concatenation, up to a limit on combinations; beyond it, the cost at the expected widths is used.

    Args:
        model: cost model of the space.
        sites: the blocks, in order.
        choices: widths that each group draws from.
        parts: the optional part that each site belongs to; None for sites that always run.
    """

    def __init__(
        self,
        model: CostModel,
        sites: Sequence[Site],
        choices: Sequence[Sequence[int]],
        parts: Sequence[Hashable] | None = None,
    ) -> None:
        self._model, self._choices = model, [torch.tensor(options, dtype=torch.float64) for options in choices]
        self._grids: dict[tuple[tuple[int, ...], Hashable], Tensor] = {}
        self._open: list[tuple[Site, Hashable]] = []
        for site, part in zip(sites, parts or [None] * len(sites), strict=True):
            groups = tuple(sorted({group for span in site.spans for group, _ in span.terms}))
            if math.prod(len(choices[group]) for group in groups) > _TABULATED:
                self._open.append((site, part))
                continue
            grid = self._grid(site, groups, choices)
            self._grids[groups, part] = self._grids[groups, part] + grid if (groups, part) in self._grids else grid

    def _grid(self, site: Site, groups: Sequence[int], choices: Sequence[Sequence[int]]) -> Tensor:
        """Return the cost of a site at all widths of its groups; the first axis is devices, if there are several."""
        at, costs = [0] * len(choices), list[float | tuple[float, ...]]()
        for widths in itertools.product(*(choices[group] for group in groups)):
            for group, width in zip(groups, widths, strict=True):
                at[group] = width
            costs.append(self._model.term(site.at(at)))
        grid = torch.tensor(costs, dtype=torch.float64).movedim(0, -1)
        return grid.reshape(*grid.shape[:-1], *(len(choices[group]) for group in groups))

    def expected(
        self, shares: Sequence[Float[Tensor, " _"]], present: Mapping[Hashable, Scalar] | None = None
    ) -> Scalar:
        """Return the expected cost of the network, in the unit of the model.

        Args:
            shares: probability of each width of each group.
            present: probability that each optional part runs.
        """
        exact = [share.double().cpu() for share in shares]
        terms: list[Term] = []
        for (groups, part), grid in self._grids.items():
            value = grid
            for group in reversed(groups):  # the last axis belongs to the last group
                value = value @ exact[group]
            terms.append(_times_presence(value, part, present))
        if self._open:
            means = [share @ options for share, options in zip(exact, self._choices, strict=True)]
            terms += [_times_presence(self._model.at_widths(site, means), part, present) for site, part in self._open]
        return self._model.expected(terms)


def _times_presence(cost: Term, part: Hashable, present: Mapping[Hashable, Scalar] | None) -> Term:
    return cost if part is None or present is None else cost * present[part].double().cpu()


def cell_terms(model: CostModel, space: Cells, shares: Float[Tensor, "edges options"]) -> list[Term]:
    """Return the terms of a network whose cell draws each edge independently, given that the cell connects its ends.

    The expected cost is exact because all cells are enumerated: what runs in a cell is not a sum over its edges
    (`Cells.runs`).

    Args:
        model: cost model of the space.
        space: the space of cells.
        shares: probability of each option of each edge, in order; differentiable, and summing to 1 over each edge.
    """
    sure, runs, terms = torch.ones(1).to(shares), space.cells * _expected_runs(space, shares), list[Term]()
    for stage in range(STAGES):
        terms.append(model.over([space.reduction(stage) if stage else space.stem], sure))
        terms.append(model.over(list(space.kinds(stage).values()), runs))
    return [*terms, model.over([space.head], sure)]


def _expected_runs(space: Cells, shares: Tensor) -> Tensor:
    """Return the expected number of runs of each of `KINDS` in a cell."""
    probability = torch.ones(1, device=shares.device, dtype=shares.dtype)
    for row in shares:  # in the order of `choices`: the last edge changes fastest
        probability = (probability[:, None] * row).flatten()
    counts, connected = (table.to(shares) for table in _run_counts(space))
    return (probability * connected) @ counts / (probability @ connected).clamp(min=1e-9)


@lru_cache(maxsize=4)
def _run_counts(space: Cells) -> tuple[Tensor, Tensor]:
    """Return, for every cell, how many edges run each of `KINDS` and whether it connects its ends.

    In the order of `choices`.
    """
    cells = [space.runs(choice) for choice in space.choices()]
    connected = [space.connected(choice) for choice in space.choices()]
    return torch.tensor([[cell.count(kind) for kind in KINDS] for cell in cells]), torch.tensor(connected)


def _weighted_sum(costs: Sequence[float | tuple[float, ...]], shares: Shares) -> Term:
    return torch.tensor(costs, dtype=shares.dtype, device=shares.device).movedim(0, -1) @ shares


def _channels(site: Site, widths: Sequence[Scalar]) -> list[Tensor]:
    return [torch.as_tensor(span.at(widths), dtype=widths[0].dtype) for span in site.spans]


def _macs(site: Site, channels: Sequence[Tensor]) -> Tensor:
    """Return the MACs of a block.

    For a single layer a product of its widths, for a larger block linear in its only open width.
    """
    if site.spec.op in ops.SINGLE:
        per_product = ops.counts(site.spec).macs / math.prod(width for _, width in site.spec.widths)
        return per_product * math.prod(channels)  # pyright: ignore
    ((index, name),) = [(index, name) for index, (name, _) in enumerate(site.spec.widths) if site.spans[index].terms]
    one, two = (ops.counts(site.spec.with_widths(**{name: width})).macs for width in (1, 2))
    return one + (two - one) * (channels[index] - 1)


class _Curve(NamedTuple):
    """Latency of a block over its widths."""

    surface: Surface
    half_windows: tuple[float, ...]
    """half window of each width, in channels"""
    sums: tuple[bool, ...]
    """whether each width is a sum over several groups, so that its axis holds only some of its values"""

    def between(self, at: Sequence[float]) -> bool:
        """Return whether a network that can ship may have these widths, and at least one of them is off the grid."""
        off_grid = False
        for axis, width, is_sum in zip(self.surface.axes.values(), at, self.sums, strict=True):
            if width in axis:
                continue
            if not is_sum or not width.is_integer() or not axis[0] < width < axis[-1]:
                return False
            off_grid = True
        return off_grid

    def cost(self, channels: Sequence[Tensor], at: Sequence[float], us: float | None) -> Tensor:
        """Return `us`, or by default the grid's microseconds at these widths, with the mean slopes as gradients."""
        axes, total = list(self.surface.axes.values()), torch.zeros((), dtype=channels[0].dtype)
        for index, (axis, width, half_window) in enumerate(zip(axes, channels, self.half_windows, strict=True)):
            profile = np.moveaxis(self.surface.values_us, index, -1)
            for other, place in enumerate(at):
                if other != index:
                    profile = _slice(profile, axes[other], place)
            if index == 0:
                total = total + (float(np.interp(at[0], axis, profile)) if us is None else us)
            # Adds exactly 0 to the value and the slope to the gradient.
            total = total + _mean_slope(axis, profile, at[index], half_window) * (width - width.detach())
        return total


def _slice(values: np.ndarray, axis: np.ndarray, at: float) -> np.ndarray:
    """Interpolate along the first axis: linear between grid points, constant outside."""
    above = int(np.clip(np.searchsorted(axis, at), 1, len(axis) - 1)) if len(axis) > 1 else 0
    below = max(above - 1, 0)
    share = float(np.interp(at, axis[[below, above]], [0.0, 1.0])) if above else 0.0
    return values[below] * (1 - share) + values[above] * share


def _mean_slope(axis: np.ndarray, values: np.ndarray, at: float, half_window: float) -> float:
    """Return the mean slope over a window around `at`, clipped to the axis."""
    low, high = max(at - half_window, float(axis[0])), min(at + half_window, float(axis[-1]))
    if high <= low:
        return 0.0
    return float((np.interp(high, axis, values) - np.interp(low, axis, values)) / (high - low))
