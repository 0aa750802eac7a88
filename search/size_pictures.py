"""Pictures of a search for sizes: the distributions of all widths and depths over time, how decided they are, and what they cost."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from deploy.page import FIRST, INK, LIMIT, SECOND, Picture
from search.layered_pictures import height, small_plots
from search.record import EpochDone
from search.space import Choice

_PLOTS = 48
"""Parts whose distributions are drawn one by one, at most."""

Shares = dict[int, list[float]]
"""Of each size its probability after every epoch."""


def over_time(history: Sequence[EpochDone]) -> Iterator[Picture]:
    """What the method says of its distributions after every epoch, if it does.

    Args:
        history: of the run, with `p.PART.SIZE`, `gap`, `expected` and `most_probable` among its figures.
    """
    searched = [epoch for epoch in history if epoch.phase == "search" and "gap" in epoch.figures]
    if not searched:
        return
    parts, found = _distributions(searched), history[-1].choice
    caption = (
        "Above: the cost that the distributions expect, and that of the network of the most probable sizes. Below: the gap between "
        "the two most probable sizes, mean over all layers and stages; 1 is decided."
    )
    yield Picture("Cost and decision", caption, 4.2, partial(_decision, searched=searched))
    caption = "Expected size of each layer, in channels, and of each stage, in blocks, after every epoch: full strength is the largest."
    yield Picture("Sizes over time", caption, 0.9 + 0.3 * len(parts), partial(_sizes, parts=parts, found=found))
    if len(parts) <= _PLOTS:
        caption = "Probability of each size after every epoch: darker is more probable. The dot is what was found."
        yield Picture("Distributions over time", caption, height(len(parts)), partial(_shares, parts=parts, found=found))


def _distributions(searched: Sequence[EpochDone]) -> dict[str, Shares]:
    found: dict[str, Shares] = {}
    for epoch in searched:
        for name, value in epoch.figures.items():
            kind, _, rest = name.partition(".")
            part, _, size = rest.rpartition(".")
            if kind == "p" and part:
                found.setdefault(part, {}).setdefault(int(size), []).append(value)
    return found


def _found(found: Choice, part: str) -> int | None:
    return found.widths.get(part, found.depths.get(part))


def _decision(figure: Any, searched: Sequence[EpochDone]) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(searched) + 1)
    unit = 1 if searched[0].latency_us is not None else 1e6
    for name, colour, style in (("expected", SECOND, ":"), ("most_probable", FIRST, "-")):
        costs = [epoch.figures[name] / unit for epoch in searched]
        top.plot(epochs, costs, color=colour, linestyle=style, label=name.replace("_", " "))
    top.set_ylabel("cost, µs" if unit == 1 else "million MACs")
    top.set_ylim(bottom=0)
    top.legend(frameon=False)
    bottom.plot(epochs, [epoch.figures["gap"] for epoch in searched], color=FIRST)
    bottom.set_ylim(0, 1)
    bottom.set_ylabel("gap")
    bottom.set_xlabel("epoch of the search")
    bottom.xaxis.get_major_locator().set_params(integer=True)


def _sizes(figure: Any, parts: Mapping[str, Shares], found: Choice) -> None:
    axes, count = figure.add_subplot(), len(next(iter(next(iter(parts.values())).values())))
    cells = []
    for y, (part, shares) in enumerate(parts.items()):
        means = [sum(size * values[x] for size, values in shares.items()) / max(shares) for x in range(count)]
        cells += [(x, y, mean) for x, mean in enumerate(means)]
        size = _found(found, part)
        text = "left out" if size is None else f"{size} of {max(shares)}"
        axes.annotate(text, (count + 0.5, y), xytext=(6, 0), textcoords="offset points", va="center", annotation_clip=False)
    _paint(axes, [(x + 0.5, y - 0.5, 1.0, strength) for x, y, strength in cells])
    axes.set_xlim(0.5, count + 0.5)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch of the search")


def _shares(figure: Any, parts: Mapping[str, Shares], found: Choice) -> None:
    for part, axes in small_plots(figure, list(parts)):
        sizes = sorted(parts[part])
        rows = [(y, parts[part][size]) for y, size in enumerate(sizes)]
        _paint(axes, [(x + 0.5, y - 0.5, 1.0, share) for y, values in rows for x, share in enumerate(values)])
        count, chosen = len(rows[0][1]), _found(found, part)
        if chosen in sizes:
            axes.plot(count, sizes.index(chosen), color=LIMIT, marker="o", markersize=4)
        axes.set_xlim(0.5, count + 0.5)
        axes.set_ylim(-0.5, len(sizes) - 0.5)
        axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])


def _paint(axes: Any, cells: Sequence[tuple[float, float, float, float]]) -> None:
    """Squares at places, filled with so much of the ink."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    squares = [Rectangle((x, y), width, 1) for x, y, width, _ in cells]
    colours = [to_rgba(INK, 0.85 * min(1.0, max(0.0, strength))) for *_, strength in cells]
    axes.add_collection(PatchCollection(squares, facecolors=colours, linewidths=0))
