"""Exact fit over layers: find the best network within a budget near a given one, as a multiple-choice knapsack.

Every layer keeps its kind of block and may get another hidden width or kernel. The price of a network is the sum of its
blocks' shares, so the program is small; `search.milp` solves it. `search.widths` does the same for
channel groups, which several blocks may depend on, and values widths in the same way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint  # pyright: ignore[reportMissingTypeStubs]

from latency import BlockSpec
from search import widths as fitting
from search.budget import Budget, Price, worst
from search.errors import SearchError
from search.milp import minimise
from search.space import Choice
from search.spaces.layered import SKIP, Layered, MultiBlock, StochasticLayer
from search.widths import BlockPrices

OTHER_KERNEL = -0.25
"""Value of changing the kernel: equal to that of a width a fifth below its share."""
SKIPPED = -10.0
"""Value of skipping a layer that the given network keeps; any other change is preferred."""


class _Item(NamedTuple):
    """One option for a layer."""

    layer: int
    option: str
    hidden: int
    costs: tuple[float, ...]
    """cost on each device"""
    value: float


def fit(space: Layered, start: Choice, prices: Sequence[BlockPrices], budget: Budget) -> Choice:
    """Return the network nearest to `start`, stretched to a budget.

    Its whole price interval is within the budget on every device.

    Hidden widths are valued by `widths.proportional`: they shrink or grow in the proportions of `start`. Layers that
    `start` skips stay skipped; others are skipped only if nothing else is within the budget.

    Args:
        space: the space of layers.
        start: one of its networks.
        prices: prices of blocks on each device, see `widths.block_prices`.
        budget: in the unit of the prices.

    Raises:
        SearchError: no such network is within the budget.
    """
    items = _items(space, start, prices, budget)
    costs = np.array([item.costs for item in items]).T
    selections = np.array(
        [[float(item.layer == index) for item in items] for index in sorted({item.layer for item in items})]
    )
    solution = minimise(
        -np.array([item.value for item in items]),
        [LinearConstraint(selections, 1, 1), LinearConstraint(costs / budget.amount, ub=1 - 1e-6)],
        integral=np.ones(len(items)),
    )
    if solution is None:
        raise SearchError(
            f"no network of {space.name} near the one found is within {fitting.budgets_in_words(budget, prices)}: "
            "ask for a larger budget"
        )
    selected = [item for item, share in zip(items, solution.x.tolist(), strict=True) if share > 0.5]
    by_layer = {item.layer: item for item in selected}
    options = {
        layer.name: by_layer[index].option if index in by_layer else SKIP
        for index, layer in enumerate(space.layers)
        if layer.open
    }
    return Choice(
        options=options, widths={space.layers[item.layer].name: item.hidden for item in selected if item.hidden}
    )


def _items(space: Layered, start: Choice, prices: Sequence[BlockPrices], budget: Budget) -> list[_Item]:
    """Return all options of the layers that `start` keeps."""
    chosen = space.chosen(start)
    kept = [(index, layer, _option(layer, start)) for index, layer in enumerate(space.layers) if layer.name in chosen]
    sized = [(layer.name, option) for _, layer, option in kept if option.hidden]

    def price(hidden: tuple[int, ...]) -> Price:
        at = dict(zip((name for name, _ in sized), hidden, strict=True))
        blocks = [
            (index, option.spec.with_widths(hidden=at[layer.name]) if option.hidden else option.spec)
            for index, layer, option in kept
        ]
        shares = [[price_of(index, block) for index, block in blocks] for price_of in prices]
        return worst(
            Price(sum(block.cost for block in device), sum(block.most for block in device)) for device in shares
        )

    learned, choices = [start.widths[name] for name, _ in sized], [option.hidden for _, option in sized]
    valued = fitting.proportional(learned, choices, price, budget) if sized else []
    values = {
        name: dict(zip(option.hidden, row, strict=True)) for (name, option), row in zip(sized, valued, strict=True)
    }
    items: list[_Item] = []
    for index, layer, option in kept:
        for other in _variants(layer, option):
            for spec, hidden in zip(other.blocks(), other.hidden or (0,), strict=True):
                value = values[layer.name].get(hidden, SKIPPED) if hidden else 0.0
                costs = tuple(price_of(index, spec).most for price_of in prices)
                items.append(_Item(index, other.name, hidden, costs, value + OTHER_KERNEL * (other is not option)))
        if layer.skippable:
            items.append(_Item(index, SKIP, 0, (0.0,) * len(prices), SKIPPED))
    return items


def _option(layer: StochasticLayer, choice: Choice) -> MultiBlock:
    name = choice.options.get(layer.name, layer.options[0].name)
    return next(option for option in layer.options if option.name == name)


def _variants(layer: StochasticLayer, option: MultiBlock) -> list[MultiBlock]:
    """Return the option and those that differ from it only in the kernel."""
    return [other for other in layer.options if _without_kernel(other.spec) == _without_kernel(option.spec)]


def _without_kernel(spec: BlockSpec) -> tuple[object, ...]:
    attrs = {name: value for name, value in spec.attrs if name != "kernel"}
    return spec.op, attrs, {name: width for name, width in spec.widths if name != "hidden"}
