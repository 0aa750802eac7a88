"""Exact fit over widths: find the most valuable widths within a budget.

A mixed-integer program over the latency table.

A binary variable x[g, k] states that group g ships with its k-th width. The predicted cost of a network is linear in
the costs of its blocks, and a block's cost depends on the widths of one or two groups, so it is linear in the products
of their variables, which are linearised exactly (y = x * x' by its marginals; Shen et al. 2022, HALP; Sun et al. 2025,
MDP). The program maximises the sum of a value for each width of each group: `proportional` for widths that a search
learned, `importance` for channels with scores. `search.milp` solves it.
"""

import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from scipy import sparse  # pyright: ignore[reportMissingTypeStubs]
from scipy.optimize import LinearConstraint  # pyright: ignore[reportMissingTypeStubs]

from latency import BlockSpec, LatencyTable
from search import ops
from search.budget import Budget, Limit, Price, Pricing, device_factors, worst
from search.errors import SearchError
from search.milp import TIME_LIMIT_S, minimise
from search.spaces import AffineWidth, Prunable, Site, Widths

_UNSCALED = Price(1.0, 1.0)
_TABULATED = (
    33 * 33
)  # most combinations of a block's group widths to tabulate; beyond, cost is interpolated between widths of its spans
_KNOTS = 9  # interpolation points of such a span
_ROUNDS = 12  # most solutions with a corrected budget, if spans are interpolated
_UNUSED = 0.005  # share of the budget that interpolation may leave unused
_TOLERANCE = 1e-6  # constraint violation that HiGHS allows
_EXCESS = 0.1  # total value of all channels beyond the proportions, as a share of the loss by halving one width


BlockPrices = Callable[[int, BlockSpec], Price]
"""Returns a block's share in the price of a network, including boundaries, by its index from 0; shares add up to the
network's price."""


class TablePrices:
    """Block prices in microseconds by a table, which add up to `LatencyTable.predict`.

    Args:
        table: covers every requested block.
        factor: scales all prices.
    """

    def __init__(self, table: LatencyTable, factor: Price = _UNSCALED) -> None:
        self._table, self._factor = table, factor
        self._known: dict[tuple[bool, str], Price] = {}

    def __call__(self, index: int, spec: BlockSpec) -> Price:
        """Return the block's price in microseconds; `most` includes its share of the prediction's interval.

        Raises:
            CoverageError: the block is not covered.
        """
        key = (index > 0, spec.key)
        if key not in self._known:
            share = self._table.share(spec, first=index == 0)
            self._known[key] = Price(share.us * self._factor.cost, share.high_us * self._factor.most)
        return self._known[key]


def macs_price(_index: int, spec: BlockSpec) -> Price:
    """Return the multiply-accumulates of a deployed block at any index."""
    macs = ops.counts(spec).macs
    return Price(macs, macs)


def block_prices(limits: Sequence[Limit]) -> list[BlockPrices]:
    """Return the block prices on each device, scaled to the budget of the first.

    Multiply-accumulates if there are no devices.
    """
    if not limits:
        return [macs_price]
    return [TablePrices(limit.table, factor) for limit, factor in zip(limits, device_factors(limits), strict=True)]


class Fit(Struct, frozen=True, kw_only=True):
    """The best widths within a budget."""

    widths: Widths
    price: Price
    """the network's price by `network_price`; `most` is within the budget"""
    value: float
    """the maximised value"""
    gap: float
    """relative gap between the value and its upper bound; that of the interpolated program if spans are interpolated"""
    variables: int
    """number of variables of the program"""
    seconds: float


def network_price(sites: Sequence[Site], prices: Sequence[BlockPrices], widths: Widths) -> Price:
    """Return the price of the network with these group widths, on the worst device."""
    return worst(_network_prices(sites, prices, widths))


def _network_prices(sites: Sequence[Site], prices: Sequence[BlockPrices], widths: Widths) -> list[Price]:
    """Return the price of the network with these group widths on each device."""
    blocks = [(index, block) for index, site in enumerate(sites) if (block := site.at(widths))]
    shares = [[price_of(index, block) for index, block in blocks] for price_of in prices]
    return [
        Price(math.fsum(price.cost for price in device), math.fsum(price.most for price in device)) for device in shares
    ]


def importance(scores: Sequence[Sequence[float]], choices: Sequence[Widths]) -> list[list[float]]:
    """Return the value of each width: the sum of its highest scores.

    It is concave in the width, so the best channels count most.

    Args:
        scores: scores of each group's channels, in any order; negative ones count as 0.
        choices: widths of each group that can ship.
    """
    sums = [
        list(itertools.accumulate(sorted((max(score, 0.0) for score in group), reverse=True), initial=0.0))
        for group in scores
    ]
    return [[group[width] for width in options] for group, options in zip(sums, choices, strict=True)]


def proportional(
    learned: Sequence[int | float], choices: Sequence[Widths], price: Pricing, budget: Budget
) -> list[list[float]]:
    """Return the value of each width.

    Closeness to the proportions of learned widths, stretched to the budget by a common factor s.

    s is the largest factor at which the nearest widths that can ship are within the budget. With r = width / (s *
    learned), the value is 1 - 1 / r below the share (r < 1), and a small part of that above it. So deficits are reduced
    first, starting with the largest, and the rest of the budget goes where r is smallest. Cheap channels cannot replace
    learned ones.

    Args:
        learned: width of each group at the end of the search; above 0.
        choices: widths of each group that can ship, ascending.
        price: returns the price of the network with such widths.
        budget: limit for the upper end of the price's interval.
    """
    stretch = _stretch(learned, choices, price, budget)
    excess = _EXCESS / len(learned)

    def value(width: int, share: float) -> float:
        gain = 1 - share / width
        return gain if gain < 0 else excess * gain

    return [
        [value(width, stretch * count) for width in options] for count, options in zip(learned, choices, strict=True)
    ]


def _stretch(learned: Sequence[int | float], choices: Sequence[Widths], price: Pricing, budget: Budget) -> float:
    """Return the largest common factor whose nearest widths (in ratio) are within the budget, by bisection."""
    halfway = [[math.sqrt(a * b) for a, b in itertools.pairwise(options)] for options in choices]

    def nearest(factor: float) -> Widths:
        return tuple(
            options[bisect_left(middles, factor * count)]
            for count, options, middles in zip(learned, choices, halfway, strict=True)
        )

    factors = sorted({middle / count for count, middles in zip(learned, halfway, strict=True) for middle in middles})
    over = bisect_left(factors, True, key=lambda factor: not budget.holds(price(nearest(factor * (1 + 1e-9)))))
    if over < len(factors):
        return factors[over]
    return max(options[-1] / count for count, options in zip(learned, choices, strict=True))


def fit(
    space: Prunable,
    choices: Sequence[Widths],
    values: Sequence[Sequence[float]],
    prices: Sequence[BlockPrices],
    budget: Budget,
    *,
    least: float = 0.0,
    time_limit_s: float = TIME_LIMIT_S,
) -> Fit:
    """Return the widths of the highest total value whose whole price interval is within a budget on every device.

    Args:
        space: the space of widths.
        choices: widths of each group that can ship, ascending.
        values: value of each of these widths.
        prices: prices of blocks on each device, scaled to one budget, see `block_prices`.
        budget: in the unit of the prices.
        least: lower limit for the upper end of the price's interval on at least one device.
        time_limit_s: limit on the solving time.

    Raises:
        SearchError: no widths are within the budget, or none were found in time.
    """
    started = time.perf_counter()
    program = _Program(space, choices, values, prices)
    deadline = started + time_limit_s
    best: _FittedWidths | None = None
    aims = np.full(len(prices), float(budget.amount))
    for _ in range(_ROUNDS):
        solution = program.solve(
            aims / program.scale, least=least / program.scale, time_limit_s=max(1.0, deadline - time.perf_counter())
        )
        if solution is None:
            break
        shares = (
            np.array([price.most for price in _network_prices(program.sites, prices, solution.widths)]) / budget.amount
        )
        used = shares.max()
        if used <= 1 and (best is None or solution.value > best.value):
            best = solution
        if time.perf_counter() > deadline or (used <= 1 and (used >= 1 - _UNUSED or not program.interpolates)):
            break
        # Correct the budget for the errors of interpolation and the solver's tolerance.
        lower = aims * (2 - shares) - 2 * _TOLERANCE * program.scale
        aims = np.where(shares > 1, lower, aims) if used > 1 else aims * (1.5 - used / 2)
    if best is None:
        raise SearchError(
            f"no widths of {space.name} within {budgets_in_words(budget, prices)} were found in {time_limit_s:g} s: "
            "ask for a larger budget"
        )
    return Fit(
        widths=best.widths,
        price=network_price(program.sites, prices, best.widths),
        value=best.value,
        gap=best.gap,
        variables=program.variables,
        seconds=time.perf_counter() - started,
    )


def budgets_in_words(budget: Budget, prices: Sequence[BlockPrices]) -> str:
    """Describe the budgets that a network must meet."""
    return f"{budget}{' and the budgets of the other devices' * (len(prices) > 1)}"


class _FittedWidths(NamedTuple):
    widths: Widths
    value: float
    gap: float


class _Axis(NamedTuple):
    """An axis of a block's price: a group with its widths, or a span of several groups with its knots."""

    owner: int | AffineWidth
    points: Widths


class _Program:
    """The mixed-integer program of one space, for any budget.

    Columns: x for each group and width; a weight for each knot and a binary for each interval of each interpolated
    span; and products of columns for each combination of axes that a block's price depends on.
    """

    def __init__(
        self,
        space: Prunable,
        choices: Sequence[Widths],
        values: Sequence[Sequence[float]],
        prices: Sequence[BlockPrices],
    ) -> None:
        self.sites = space.sites()
        self._values = values
        grids, self.fixed = _grids(space, self.sites, choices, prices)
        self.interpolates = any(isinstance(axis.owner, AffineWidth) for axes in grids for axis in axes)
        kept = _undominated(choices, values, grids)
        self._kept = kept
        self._choices = [tuple(options[k] for k in chosen) for options, chosen in zip(choices, kept, strict=True)]
        self.scale = max(
            1e-12, math.fsum(float(np.abs(grid).max()) for grid in grids.values()) + float(np.abs(self.fixed).max())
        )
        self._costs: list[np.ndarray] = []  # cost of each column on each device
        self._integral: list[bool] = []
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._x = [self._columns(len(options), integral=True) for options in self._choices]
        for columns in self._x:
            self._constrain(dict.fromkeys(columns, 1.0), 1.0, 1.0)
        axes: dict[_Axis, list[int]] = {}
        for grid_axes, grid in grids.items():
            for axis in grid_axes:
                if axis not in axes:
                    axes[axis] = (
                        self._x[axis.owner]
                        if isinstance(axis.owner, int)
                        else self._interpolated(axis.owner, axis.points)
                    )
            self._price([axes[axis] for axis in grid_axes], self._narrowed(grid_axes, grid))

    @property
    def variables(self) -> int:
        """Number of columns of the program."""
        return len(self._costs)

    def solve(self, budgets: np.ndarray, *, least: float = 0.0, time_limit_s: float) -> _FittedWidths | None:
        """Return the best widths; None if there are none, or none were found in time.

        Args:
            budgets: budget on each device, in units of `scale`.
            least: lower limit for the cost on at least one device.
            time_limit_s: time limit per program; if `least` is given, one program is solved per device.
        """
        no_floor = np.full(len(budgets), -math.inf)
        floors = [no_floor]
        if least:
            floors = [np.where(np.arange(len(budgets)) == device, least, no_floor) for device in range(len(budgets))]
        solutions = [solution for floor in floors if (solution := self._solved(floor, budgets, time_limit_s))]
        return max(solutions, key=lambda solution: solution.value, default=None)

    def _solved(self, floor: np.ndarray, budgets: np.ndarray, time_limit_s: float) -> _FittedWidths | None:
        objective = np.zeros(self.variables)
        for columns, values, kept in zip(self._x, self._values, self._kept, strict=True):
            objective[columns] = [-values[k] for k in kept]
        low, high = ((ends - self.fixed / self.scale) for ends in (floor, budgets))
        within_budgets = LinearConstraint(np.array(self._costs).T, low, high)  # pyright: ignore[reportArgumentType] (arrays are documented)
        solution = minimise(
            objective,
            [self._structure(), within_budgets],
            integral=np.array(self._integral, dtype=int),
            time_limit_s=time_limit_s,
        )
        if solution is None:
            return None
        picks = [int(np.argmax(solution.x[columns])) for columns in self._x]
        value = math.fsum(
            values[kept[pick]] for values, kept, pick in zip(self._values, self._kept, picks, strict=True)
        )
        widths = tuple(options[pick] for options, pick in zip(self._choices, picks, strict=True))
        return _FittedWidths(widths, value, solution.gap)

    def _columns(self, count: int, *, integral: bool) -> list[int]:
        start = self.variables
        self._costs += [np.zeros_like(self.fixed)] * count
        self._integral += [integral] * count
        return list(range(start, start + count))

    def _constrain(self, terms: Mapping[int, float], low: float, high: float) -> None:
        self._rows.append((dict(terms), low, high))

    def _structure(self) -> LinearConstraint:
        entries = [
            (row, column, factor) for row, (terms, _, _) in enumerate(self._rows) for column, factor in terms.items()
        ]
        rows, columns, factors = zip(*entries, strict=True)
        matrix = sparse.csr_matrix((factors, (rows, columns)), shape=(len(self._rows), self.variables))
        low, high = (np.array([row[side] for row in self._rows]) for side in (1, 2))
        return LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType] (arrays are documented)

    def _narrowed(self, axes: Sequence[_Axis], grid: np.ndarray) -> np.ndarray:
        """Remove the dominated widths from a grid."""
        for index, axis in enumerate(axes):
            if isinstance(axis.owner, int):
                grid = np.take(grid, self._kept[axis.owner], axis=index + 1)
        return grid

    def _interpolated(self, span: AffineWidth, knots: Widths) -> list[int]:
        """Add weights of a span's knots, with the span as their weighted mean.

        Only two neighbours may be above 0.
        """
        weights = self._columns(len(knots), integral=False)
        intervals = self._columns(max(1, len(knots) - 1), integral=True)
        self._constrain(dict.fromkeys(weights, 1.0), 1.0, 1.0)
        self._constrain(dict.fromkeys(intervals, 1.0), 1.0, 1.0)
        for index, weight in enumerate(weights):
            adjacent = {intervals[k]: -1.0 for k in (index - 1, index) if 0 <= k < len(intervals)}
            self._constrain({weight: 1.0, **adjacent}, -math.inf, 0.0)
        mean: dict[int, float] = {weight: knot / knots[-1] for weight, knot in zip(weights, knots, strict=True)}
        for group, times in span.terms:
            for column, width in zip(self._x[group], self._choices[group], strict=True):
                mean[column] = mean.get(column, 0.0) - times * width / knots[-1]
        self._constrain(mean, span.fixed / knots[-1], span.fixed / knots[-1])
        return weights

    def _price(self, axes: Sequence[Sequence[int]], grid: np.ndarray) -> None:
        """Add the cost of blocks over these axes, with columns for products if there are several."""
        scaled = grid / self.scale
        if len(axes) == 1:
            for column, cost in zip(axes[0], scaled.T, strict=True):
                self._costs[column] = self._costs[column] + cost
            return
        products = np.array(self._columns(scaled[0].size, integral=False)).reshape(scaled.shape[1:])
        for column, cost in zip(products.ravel().tolist(), scaled.reshape(len(scaled), -1).T, strict=True):
            self._costs[column] = cost
        for index, columns in enumerate(axes):
            for place, column in enumerate(columns):
                marginal = np.take(products, place, axis=index).ravel().tolist()
                self._constrain({**dict.fromkeys(marginal, 1.0), column: -1.0}, 0.0, 0.0)


def _grids(
    space: Prunable, sites: Sequence[Site], choices: Sequence[Widths], prices: Sequence[BlockPrices]
) -> tuple[dict[tuple[_Axis, ...], np.ndarray], np.ndarray]:
    """Return the upper ends of the blocks' prices over their axes, and the sum of fixed prices.

    Blocks with the same axes are summed.

    The first axis of each array is devices.
    """
    grids: dict[tuple[_Axis, ...], np.ndarray] = {}
    fixed = np.zeros(len(prices))
    for index, site in enumerate(sites):
        axes = _axes(space, site, choices)
        specs = _specs(site, axes, len(choices))
        most = np.array(
            [[price_of(index, spec).most if site.of(spec) else 0.0 for spec in specs] for price_of in prices]
        )
        if not axes:
            fixed += most[:, 0]
            continue
        grid = most.reshape([len(prices), *(len(axis.points) for axis in axes)])
        grids[axes] = grids[axes] + grid if axes in grids else grid
    return grids, fixed


def _axes(space: Prunable, site: Site, choices: Sequence[Widths]) -> tuple[_Axis, ...]:
    groups = sorted({group for span in site.spans for group, _ in span.terms})
    if math.prod(len(choices[group]) for group in groups) <= _TABULATED:
        return tuple(_Axis(group, tuple(choices[group])) for group in groups)
    spans = dict.fromkeys(span for span in site.spans if span.terms)
    return tuple(
        _Axis(span.terms[0][0], tuple(choices[span.terms[0][0]]))
        if len(span.terms) == 1
        else _Axis(span, _knots(space.span_choices(span)))
        for span in spans
    )


def _knots(widths: Widths) -> Widths:
    places: list[int] = np.linspace(0, len(widths) - 1, min(_KNOTS, len(widths))).round().astype(int).tolist()
    return tuple(widths[place] for place in places)


def _specs(site: Site, axes: Sequence[_Axis], groups: int) -> list[BlockSpec]:
    """Return the block of a site at each point of the product of its axes, the last axis fastest."""
    specs: list[BlockSpec] = []
    for point in itertools.product(*(axis.points for axis in axes)):
        at = [0] * groups
        spans: dict[AffineWidth, int] = {}
        for axis, width in zip(axes, point, strict=True):
            if isinstance(axis.owner, int):
                at[axis.owner] = width
            else:
                spans[axis.owner] = width
        widths = {
            name: spans[span] if span in spans else round(span.at(at))
            for (name, _), span in zip(site.spec.widths, site.spans, strict=True)
        }
        specs.append(site.spec.with_widths(**widths))
    return specs


def _undominated(
    choices: Sequence[Widths], values: Sequence[Sequence[float]], grids: Mapping[tuple[_Axis, ...], np.ndarray]
) -> list[list[int]]:
    """Return the indices of each group's useful widths.

    A width is useless if a wider one is worth as much and costs no more anywhere.
    """
    kept: list[list[int]] = []
    for group, options in enumerate(choices):
        used = [
            np.moveaxis(grid, place + 1, 0)
            for axes, grid in grids.items()
            for place, axis in enumerate(axes)
            if axis.owner == group
        ]
        spans = any(
            isinstance(axis.owner, AffineWidth) and group in dict(axis.owner.terms) for axes in grids for axis in axes
        )
        costs = (
            np.concatenate([grid.reshape(len(options), -1) for grid in used], axis=1)
            if used
            else np.zeros((len(options), 1))
        )

        def dominated(k: int, group: int = group, costs: np.ndarray = costs) -> bool:
            return any(
                values[group][other] >= values[group][k] and bool((costs[other] <= costs[k]).all())
                for other in range(k + 1, len(costs))
            )

        kept.append([k for k in range(len(options)) if spans or not dominated(k)])
    return kept
