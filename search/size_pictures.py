"""Pictures of a search for sizes: distributions of widths and depths over time, their certainty, and their cost."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from deploy.page import FIRST, LIMIT, SECOND, Chart
from latency import plot
from latency.units import Unit
from search.layered_pictures import height, small_plots
from search.record import EpochDone
from search.space import Choice

_PLOTS = 48
"""Maximum number of parts whose distributions are drawn separately."""

Shares = dict[int, list[float]]
"""Probability of each size after every epoch."""


def over_time(history: Sequence[EpochDone], unit: Unit) -> Iterator[Chart]:
    """Yield pictures of the distributions over the epochs, if the method records them.

    Args:
        history: history of the run, whose figures may include `p.PART.SIZE`, `gap`, `expected` and `most_probable`.
        unit: unit of its latencies.
    """
    searched = [epoch for epoch in history if epoch.phase == "search" and "gap" in epoch.figures]
    if not searched:
        return
    parts, choice = _distributions(searched), history[-1].choice
    caption = (
        "Top: expected cost of the distributions, and cost of the network with the most probable sizes. Bottom: gap "
        "between the probabilities of the two most probable sizes, averaged over all layers and stages; at 1 the "
        "search has decided."
    )
    yield Chart("Cost and decision", caption, 4.2, partial(_plot_decision, searched=searched, unit=unit))
    caption = "Expected size of each layer (channels) and stage (blocks) after every epoch, with the final size."
    yield Chart("Sizes over time", caption, 0.9 + 0.3 * len(parts), partial(_plot_sizes, parts=parts, choice=choice))
    if len(parts) <= _PLOTS:
        caption = "Probability of each size after every epoch. The dot marks the final size."
        yield Chart(
            "Distributions over time", caption, height(len(parts)), partial(_plot_shares, parts=parts, choice=choice)
        )


def _distributions(searched: Sequence[EpochDone]) -> dict[str, Shares]:
    distributions: dict[str, Shares] = {}
    for epoch in searched:
        for name, value in epoch.figures.items():
            kind, _, rest = name.partition(".")
            part, _, size = rest.rpartition(".")
            if kind == "p" and part:
                distributions.setdefault(part, {}).setdefault(int(size), []).append(value)
    return distributions


def _size_in(choice: Choice, part: str) -> int | None:
    return choice.widths.get(part, choice.depths.get(part))


def _plot_decision(figure: plot.Figure, searched: Sequence[EpochDone], unit: Unit) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(searched) + 1)
    timed = searched[0].latency_us is not None
    for name, colour, style in (("expected", SECOND, ":"), ("most_probable", FIRST, "-")):
        costs = [unit.of(epoch.figures[name]) if timed else epoch.figures[name] / 1e6 for epoch in searched]
        upper.plot(epochs, costs, color=colour, linestyle=style, label=name.replace("_", " "))
    upper.set_ylabel(f"cost, {unit.name}" if timed else "million MACs")
    upper.set_ylim(bottom=0)
    upper.legend(frameon=False)
    lower.plot(epochs, [epoch.figures["gap"] for epoch in searched], color=FIRST)
    lower.set_ylim(0, 1)
    lower.set_ylabel("gap")
    lower.set_xlabel("epoch of the search")
    lower.xaxis.get_major_locator().set_params(integer=True)


def _plot_sizes(figure: plot.Figure, parts: Mapping[str, Shares], choice: Choice) -> None:
    axes, count = figure.add_subplot(), len(next(iter(next(iter(parts.values())).values())))
    means = [
        [sum(size * values[x] for size, values in shares.items()) / max(shares) for x in range(count)]
        for shares in parts.values()
    ]
    plot.legend(figure, plot.heat_map(axes, means, most=1), axes, "share of the largest")
    for y, (part, shares) in enumerate(parts.items()):
        size = _size_in(choice, part)
        text = "left out" if size is None else f"{size} of {max(shares)}"
        axes.annotate(
            text, (count + 0.5, y), xytext=(6, 0), textcoords="offset points", va="center", annotation_clip=False
        )
    axes.invert_yaxis()
    axes.set_yticks(range(len(parts)), list(parts))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch of the search")


def _plot_shares(figure: plot.Figure, parts: Mapping[str, Shares], choice: Choice) -> None:
    for part, axes in small_plots(figure, list(parts)):
        sizes = sorted(parts[part])
        plot.heat_map(axes, rows := [parts[part][size] for size in sizes], most=1)
        count, chosen = len(rows[0]), _size_in(choice, part)
        if chosen in sizes:
            axes.plot(count, sizes.index(chosen), color=LIMIT, marker="o", markersize=4)
        axes.set_yticks(range(len(sizes)), [str(size) for size in sizes])
    plot.legend(figure, figure.axes[0].collections[0], figure.axes, "probability")
