"""What networks cost: of one network as a number, and in a search as a differentiable expectation. One model for all methods.

A method describes what it trains as terms: what a block at open widths adds to the cost, or a mixture of candidate blocks. The term of a
part that may be absent is multiplied with the probability that it runs. `expected` of the terms is the expected cost. Where shares are
one-hot and widths whole, it is what `price` says.
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
from search.budget import Limit, Price, Unit, factors, worst
from search.space import Choice, Space
from search.spaces import Cells, Site, with_sites
from search.spaces.cells import KINDS, STAGES

Scalar = Float[Tensor, ""]
Term = Float[Tensor, "*devices"]
"""What a part of a network adds to its cost: a number, or one for each of several devices."""
Shares = Float[Tensor, " candidates"]

_TABULATED = 33 * 33  # widths of a block's groups in all combinations; for more, the expected cost is that of the expected widths

Candidate = BlockSpec | None
"""A block, or None for nothing: a layer that is skipped, an edge without operation."""


@runtime_checkable
class CostModel(Protocol):
    """Cost of the networks of a space, in the unit of a budget."""

    unit: Unit

    def price(self, choice: Choice) -> Price:
        """What one network costs, with the upper end of its interval."""
        ...

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Term:
        """What a block at open widths adds to the cost.

        Args:
            site: where it runs.
            widths: channels of every group that the site's spans name, by index; gradients reach them through input and output widths.
        """
        ...

    def term(self, block: Candidate) -> float | tuple[float, ...]:
        """What one block adds to the cost; on each device where there are several."""
        ...

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Term:
        """What a mixture of blocks adds to the cost.

        Args:
            candidates: in the order of the shares.
            shares: probability of each; or how often it runs in the mean.
        """
        ...

    def expected(self, terms: Sequence[Term]) -> Scalar:
        """Cost of the whole network, in the unit of the model."""
        ...


class LatencyModel:
    """Latency in microseconds by a table: its predictor over the sum of the blocks, each multilinear between its neighbours on the grid.

    Latency over width is a staircase on real devices, flat nearly everywhere. So the gradient is not the slope of the stair that a width
    stands on but the mean slope over a window: `max(2 * granularity, full width / 4)` channels below it and as many above, cut off at the
    ends of the grid. At the full width, where only the lower half is left, that still spans a stair of two grid steps. A width below the
    narrowest that can ship costs what that one costs.

    Args:
        space: whose networks are asked about.
        table: covers its blocks.

    Raises:
        CoverageError: it does not cover the largest or the smallest network; later, a block that is asked for.
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
        """What `table.predict` says of a network; each block is looked up once.

        Raises:
            SearchError: the choice is not of the space.
            CoverageError: a block is not covered.
        """
        blocks = self._space.network(choice)
        return self._table.combine([self._lookup(block) for block in blocks], blocks)

    def price(self, choice: Choice) -> Price:
        """Microseconds."""
        latency = self.of(choice)
        return Price(latency.us, latency.high_us)

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Scalar:
        """A block at open widths: see `CostModel`; arithmetic is in the dtype of the widths."""
        curve = self._curve(site)
        channels = _channels(site, widths)
        at = [float(width.detach()) for width in channels]
        block = site.at([round(float(width.detach())) for width in widths]) if curve.between(at) else None
        us = self._lookup(block).us if block else None
        cost = curve.cost(channels, at, us)
        kelements = channels[0] * kilo(site.spec.input_elements / site.spec.width("c_in"))
        return self._table.predictor.added_us(site.spec.op, cost, kelements)

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Scalar:
        """A mixture of blocks: see `CostModel`."""
        return _mixed([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Scalar]) -> Scalar:
        """Microseconds."""
        return torch.as_tensor(sum(terms, self._table.predictor.network_us))

    def term(self, block: Candidate) -> float:
        """Microseconds that a block adds: see `CostModel`."""
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
    """Latency on several devices, each within a budget of its own: what counts is the device furthest over its budget.

    Costs are in microseconds of the first device: those of another one are scaled so that its target is that of the first, see
    `search.budget.factors`. Terms have an entry for each device.

    Args:
        space: whose networks are asked about.
        limits: of the devices.

    Raises:
        CoverageError: a table does not cover the space, see `LatencyModel`.
    """

    unit: Unit = "us"

    def __init__(self, space: Space, limits: Sequence[Limit]) -> None:
        self._models = [LatencyModel(space, limit.table) for limit in limits]
        self._factors = factors(limits)

    def price(self, choice: Choice) -> Price:
        """Microseconds of the first device; `most` is within its budget where the network is within every budget."""
        prices = [model.price(choice) for model in self._models]
        return worst(Price(*map(math.prod, zip(price, factor, strict=True))) for price, factor in zip(prices, self._factors, strict=True))

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Float[Tensor, " devices"]:
        """A block at open widths: see `CostModel`."""
        return torch.stack([model.at_widths(site, widths) for model in self._models])

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Float[Tensor, " devices"]:
        """A mixture of blocks: see `CostModel`."""
        return _mixed([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Float[Tensor, " devices"]]) -> Scalar:
        """Microseconds of the first device; the gradient is that on the device furthest over its budget."""
        each = [model.expected([term[index] for term in terms]) for index, model in enumerate(self._models)]
        return torch.stack([cost * factor.cost for cost, factor in zip(each, self._factors, strict=True)]).max()

    def term(self, block: Candidate) -> tuple[float, ...]:
        """Microseconds that a block adds on each device: see `CostModel`."""
        return tuple(model.term(block) for model in self._models)


class MacsModel:
    """Multiply-accumulates of the deployed network (Li et al. 2022, Eq. 5): all of its layers, with gradients through input widths too.

    Args:
        space: whose networks are asked about.
    """

    unit: Unit = "macs"

    def __init__(self, space: Space) -> None:
        self._space = space
        self._terms: dict[Candidate, float] = {}

    def of(self, choice: Choice) -> int:
        """Multiply-accumulates of a network.

        Raises:
            SearchError: the choice is not of the space.
        """
        return self._space.macs(self._space.network(choice))

    def price(self, choice: Choice) -> Price:
        """Multiply-accumulates, which are exact."""
        macs = self.of(choice)
        return Price(macs, macs)

    def at_widths(self, site: Site, widths: Sequence[Scalar]) -> Scalar:
        """A block at open widths: see `CostModel`."""
        channels = _channels(site, widths)
        return _macs(site, channels)

    def over(self, candidates: Sequence[Candidate], shares: Shares) -> Scalar:
        """A mixture of blocks: see `CostModel`."""
        return _mixed([self.term(block) for block in candidates], shares)

    def expected(self, terms: Sequence[Scalar]) -> Scalar:
        """Multiply-accumulates of one inference."""
        return torch.as_tensor(sum(terms, 0.0))

    def term(self, block: Candidate) -> float:
        """Multiply-accumulates of a block: see `CostModel`."""
        if block not in self._terms:
            self._terms[block] = float(ops.counts(block).macs) if block else 0.0
        return self._terms[block]


def cost_model(space: Space, limits: Sequence[Limit]) -> CostModel:
    """Latency by the tables of one or several devices; multiply-accumulates without any."""
    if not limits:
        return MacsModel(space)
    return LatencyModel(space, limits[0].table) if len(limits) == 1 else DevicesModel(space, limits)


def network_terms(model: CostModel, sites: Sequence[Site], widths: Sequence[Scalar]) -> list[Term]:
    """Every site of a network at open widths, in order."""
    return [model.at_widths(site, widths) for site in sites]


class DrawnWidths:
    """The network whose groups each draw a width, independently: its expected cost, differentiable in their distributions.

    A block that depends on the widths of two groups is bilinear in their distributions: its cost at each pair of widths is tabulated, and
    the expectation is exact. So it is for a block of more groups, such as one that reads a concatenation, up to a number of combinations;
    beyond that it is the cost at the expected widths.

    Args:
        model: of the space.
        sites: the blocks, in order.
        choices: for each group the widths that it draws from.
        parts: what each site belongs to, of what may be absent; None: it always runs.
    """

    def __init__(
        self, model: CostModel, sites: Sequence[Site], choices: Sequence[Sequence[int]], parts: Sequence[Hashable] | None = None
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
        """What a site costs at all widths of its groups; the first axis is that of the devices, where there are several."""
        at, costs = [0] * len(choices), []
        for widths in itertools.product(*(choices[group] for group in groups)):
            for group, width in zip(groups, widths, strict=True):
                at[group] = width
            costs.append(self._model.term(site.at(at)))
        found = torch.tensor(costs, dtype=torch.float64).movedim(0, -1)
        return found.reshape(*found.shape[:-1], *(len(choices[group]) for group in groups))

    def expected(self, shares: Sequence[Float[Tensor, " _"]], present: Mapping[Hashable, Scalar] | None = None) -> Scalar:
        """Expected cost of the network, in the unit of the model.

        Args:
            shares: for each group the probability of each of its widths.
            present: of each part that may be absent the probability that it runs.
        """
        exact = [share.double().cpu() for share in shares]
        terms = []
        for (groups, part), grid in self._grids.items():
            value = grid
            for group in reversed(groups):  # the last axis is that of the last group
                value = value @ exact[group]
            terms.append(_times(value, part, present))
        if self._open:
            means = [share @ options for share, options in zip(exact, self._choices, strict=True)]
            terms += [_times(self._model.at_widths(site, means), part, present) for site, part in self._open]
        return self._model.expected(terms)


def _times(cost: Term, part: Hashable, present: Mapping[Hashable, Scalar] | None) -> Term:
    return cost if part is None or present is None else cost * present[part].double().cpu()


def cell_terms(model: CostModel, space: Cells, shares: Float[Tensor, "edges options"]) -> list[Term]:
    """The network whose cell has each edge drawn independently by its shares, given that the cell connects its ends.

    Its expected cost is exact, as all cells are enumerated: what runs in a cell is no sum over its edges (`Cells.runs`).

    Args:
        model: of the space.
        space: of cells.
        shares: of the options of each edge, in order; each edge's sum is 1. Gradients reach them.
    """
    sure, runs, terms = torch.ones(1).to(shares), space.cells * _expected_runs(space, shares), list[Term]()
    for stage in range(STAGES):
        terms.append(model.over([space.reduction(stage) if stage else space.stem], sure))
        terms.append(model.over(list(space.kinds(stage).values()), runs))
    return [*terms, model.over([space.head], sure)]


def _expected_runs(space: Cells, shares: Tensor) -> Tensor:
    """How often each of `KINDS` runs in a cell."""
    probability = torch.ones(1, device=shares.device, dtype=shares.dtype)
    for row in shares:  # in the order of `choices`: the last edge changes fastest
        probability = (probability[:, None] * row).flatten()
    counts, connected = (table.to(shares) for table in _runs(space))
    return (probability * connected) @ counts / (probability @ connected).clamp(min=1e-9)


@lru_cache(maxsize=4)
def _runs(space: Cells) -> tuple[Tensor, Tensor]:
    """Of every cell, in the order of `choices`, how often each of `KINDS` runs, and whether it connects its ends."""
    cells = [space.runs(choice) for choice in space.choices()]
    connected = [space.connected(choice) for choice in space.choices()]
    return torch.tensor([[cell.count(kind) for kind in KINDS] for cell in cells]), torch.tensor(connected)


def _mixed(each: Sequence[float | tuple[float, ...]], shares: Shares) -> Term:
    return torch.tensor(each, dtype=shares.dtype, device=shares.device).movedim(0, -1) @ shares


def _channels(site: Site, widths: Sequence[Scalar]) -> list[Tensor]:
    dtype = next((width.dtype for width in widths if isinstance(width, Tensor)), torch.get_default_dtype())
    return [torch.as_tensor(span.at(widths), dtype=dtype) for span in site.spans]


def _macs(site: Site, channels: Sequence[Tensor]) -> Tensor:
    """Those of a single layer are a product of its widths; those of a larger block are linear in the one width that is open."""
    if site.spec.op in ops.SINGLE:
        each = ops.counts(site.spec).macs / math.prod(width for _, width in site.spec.widths)
        return each * math.prod(channels)  # pyright: ignore
    ((index, name),) = [(index, name) for index, (name, _) in enumerate(site.spec.widths) if site.spans[index].terms]
    one, two = (ops.counts(site.spec.with_widths(**{name: width})).macs for width in (1, 2))
    return one + (two - one) * (channels[index] - 1)


class _Curve(NamedTuple):
    """Latency of a block over its widths."""

    surface: Surface
    half_windows: tuple[float, ...]
    """of each width, in channels"""
    sums: tuple[bool, ...]
    """of each width whether it is the sum of several groups', so that its axis has only some of its values"""

    def between(self, at: Sequence[float]) -> bool:
        """Whether these are widths of a network that can ship, and not on the grid."""
        found = False
        for axis, width, several in zip(self.surface.axes.values(), at, self.sums, strict=True):
            if width in axis:
                continue
            if not several or not width.is_integer() or not axis[0] < width < axis[-1]:
                return False
            found = True
        return found

    def cost(self, channels: Sequence[Tensor], at: Sequence[float], us: float | None) -> Tensor:
        """Microseconds at these widths, by the grid where `us` does not say, with the mean slopes as gradients."""
        axes, total = list(self.surface.axes.values()), torch.zeros((), dtype=channels[0].dtype)
        for index, (axis, width, half_window) in enumerate(zip(axes, channels, self.half_windows, strict=True)):
            profile = np.moveaxis(self.surface.values_us, index, -1)
            for other, place in enumerate(at):
                if other != index:
                    profile = _slice(profile, axes[other], place)
            if index == 0:
                total = total + (float(np.interp(at[0], axis, profile)) if us is None else us)
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
