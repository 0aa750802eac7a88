"""Pictures of a search over a layered space.

The network in the style of PRUNET's Figure 3, and how blocks and widths developed over the epochs.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from deploy.page import FIRST, INK, LIMIT, SECOND, Chart
from latency import BlockSpec, plot
from search.record import EpochDone
from search.space import Choice
from search.spaces import Layered
from search.spaces.layered import SKIP

Points = list[tuple[int, float]]
"""Epoch of the search, and value."""

_STRENGTH = {1: 0.1, 3: 0.2, 5: 0.5, 7: 0.8}
"""Opacity of a block's fill for each kernel."""
_STYLES = ("-", "--", ":", "-.", (0, (1, 4)))


def network(space: Layered, choice: Choice) -> Chart:
    """Return a picture of one network of a space."""
    caption = (
        "One bar per layer, as long as its expansion; the frame marks the largest one. Darker bars have larger "
        "kernels, thick borders mark squeeze-and-excite. Convolutions have no expansion."
    )
    return Chart("Network", caption, 1.2 + 0.32 * len(space.layers), partial(_plot_network, space=space, choice=choice))


def over_time(space: Layered, history: Sequence[EpochDone]) -> Iterator[Chart]:
    """Yield pictures of the probabilities of blocks and of the masks over the epochs, if the method records them.

    Args:
        space: the searched space.
        history: history of the run, whose figures may include `p.LAYER.OPTION`, `small.LAYER.OPTION`,
            `large.LAYER.OPTION` and `threshold`.
    """
    searched = [epoch for epoch in history if epoch.phase == "search"]
    chances = _figures(searched, "p")
    if chances:
        caption = (
            "Probability of each block at the end of every epoch. All blocks of a layer start equally probable, as do "
            "the last block and its skip; blocks below the threshold are removed."
        )
        threshold = [(epoch.epoch, epoch.figures["threshold"]) for epoch in searched if "threshold" in epoch.figures]
        paint = partial(_plot_chances, space=space, chances=chances, threshold=threshold)
        yield Chart("Blocks over time", caption, height(len(chances)), paint)
    small, large = _figures(searched, "small"), _figures(searched, "large")
    if small:
        caption = (
            "Hidden channels of both candidates of the chosen block, or of the last block of a skipped layer. The dot "
            "is the width that ships, which is fitted if a budget binds."
        )
        yield Chart(
            "Masks over time",
            caption,
            height(len(small)),
            partial(_plot_masks, small=small, large=large, choice=history[-1].choice),
        )


def _figures(searched: Sequence[EpochDone], kind: str) -> dict[str, dict[str, Points]]:
    """Return the figures named `kind.LAYER.OPTION` over the epochs, by layer and option."""
    figures: dict[str, dict[str, Points]] = {}
    for epoch in searched:
        for name, value in epoch.figures.items():
            prefix, _, rest = name.partition(".")
            layer, _, option = rest.partition(".")
            if prefix == kind and option:
                figures.setdefault(layer, {}).setdefault(option, []).append((epoch.epoch, value))
    return figures


def height(plots: int) -> float:
    """Return the height of a picture of the given number of small plots, in inches."""
    return 1.6 + 1.7 * -(-plots // 3)


def small_plots(figure: plot.Figure, names: Sequence[str], **options: Any) -> Iterator[tuple[str, plot.Axes]]:
    """Yield a small plot for each name, three in a row."""
    grid = figure.subplots(-(-len(names) // 3), 3, sharex=True, squeeze=False, **options).flat
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for place, (axes, name) in enumerate(zip(grid, names, strict=False)):
        axes.set_title(name, fontsize="medium")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if place + 3 >= len(names):  # no plot below
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("epoch of the search")
        yield name, axes


def _plot_network(figure: plot.Figure, space: Layered, choice: Choice) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    chosen, axes = space.chosen(choice), figure.add_subplot()
    most = max(_expansion(block) for layer in space.layers for block in layer.blocks())
    for y, layer in enumerate(space.layers):
        block = chosen.get(layer.name)
        if block is None:
            axes.annotate("skipped", (0, y), xytext=(4, 0), textcoords="offset points", va="center", fontstyle="italic")
            continue
        widest = max(map(_expansion, layer.blocks()))
        axes.barh(y, widest, height=0.72, facecolor="none", edgecolor=INK, linewidth=0.4, linestyle=":")
        fill = to_rgba(INK, _STRENGTH.get(_kernel(block), 0.2))
        thick = 2.6 if dict(block.attrs).get("se") else 0.6
        axes.barh(y, _expansion(block), height=0.72, facecolor=fill, edgecolor=FIRST, linewidth=thick)
        axes.annotate(
            _label(block), (most, y), xytext=(8, 0), textcoords="offset points", va="center", annotation_clip=False
        )
    axes.set_yticks(range(len(space.layers)), [layer.name for layer in space.layers])
    axes.set_ylim(len(space.layers) - 0.4, -0.6)
    axes.set_xlim(0, most)
    axes.set_xlabel("expansion")
    kernels = sorted({_kernel(block) for block in chosen.values() if block.op != "tail"})
    handles = [
        Patch(facecolor=to_rgba(INK, _STRENGTH.get(kernel, 0.2)), edgecolor=FIRST, label=f"kernel {kernel}")
        for kernel in kernels
    ]
    handles.append(Patch(facecolor="none", edgecolor=FIRST, linewidth=2.6, label="squeeze-and-excite"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _kernel(block: BlockSpec) -> int:
    return int(dict(block.attrs).get("kernel", 1))


def _expansion(block: BlockSpec) -> float:
    """Return the expansion of an inverted residual; 1 for other blocks."""
    return block.width("hidden") / block.width("c_in") if "residual" in dict(block.attrs) else 1.0


def _label(block: BlockSpec) -> str:
    widths = dict(block.widths)
    hidden = f" → {widths['hidden']}" if "hidden" in widths else ""
    stride = " / 2" if dict(block.attrs).get("stride") == 2 else ""
    return f"{block.op.replace('_', ' ')}, {widths['c_in']}{hidden} → {widths.get('c_out', widths['c_in'])}{stride}"


def _plot_chances(
    figure: plot.Figure, space: Layered, chances: Mapping[str, Mapping[str, Points]], threshold: Points
) -> None:
    kinds = {
        layer.name: {option.name: _kind(option.name, option.spec.op) for option in layer.options}
        for layer in space.layers
    }
    shown_kinds = list(
        dict.fromkeys(kinds[layer].get(option, SKIP) for layer, lines in chances.items() for option in lines)
    )
    shown_kinds.sort(key=lambda kind: (kind == SKIP, kind))
    looks = {
        kind: ((FIRST, SECOND)[place // len(_STYLES)], _STYLES[place % len(_STYLES)])
        for place, kind in enumerate(shown_kinds)
    }
    looks[SKIP] = (SECOND, "-")
    for layer, axes in small_plots(figure, list(chances), sharey=True):
        for option, points in chances[layer].items():
            kind = kinds[layer].get(option, SKIP)
            colour, style = looks[kind]
            start = (points[0][0] - 1, 1 / (2 if kind == SKIP else len(kinds[layer])))
            axes.plot(*zip(start, *points, strict=True), color=colour, linestyle=style, label=kind)
        if threshold:
            axes.plot(*zip(*threshold, strict=True), color=LIMIT, linestyle="--", linewidth=0.8, label="threshold")
        axes.set_ylim(0, 1)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    shown = [name for name in (*shown_kinds, "threshold") if name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside lower center", ncols=6)


def _kind(option: str, op: str) -> str:
    """Return an option's name without the kind of block, which is common to all options of a layer."""
    return option.removeprefix(f"{op}_").replace("_", " ")


def _plot_masks(
    figure: plot.Figure,
    small: Mapping[str, Mapping[str, Points]],
    large: Mapping[str, Mapping[str, Points]],
    choice: Choice,
) -> None:
    for layer, axes in small_plots(figure, list(small)):
        chosen = choice.options.get(layer, "")
        option = chosen if chosen in small[layer] else max(small[layer], key=lambda name: small[layer][name][-1][0])
        epochs, least = zip(*small[layer][option], strict=True)
        most = [value for _, value in large[layer][option]]
        axes.fill_between(epochs, least, most, color=FIRST, alpha=0.25, linewidth=0)
        axes.plot(epochs, least, color=FIRST, linewidth=1)
        axes.plot(epochs, most, color=FIRST, linewidth=1)
        if layer in choice.widths and chosen == option:
            axes.plot(epochs[-1], choice.widths[layer], color=LIMIT, marker="o", markersize=4, clip_on=False)
        axes.set_ylim(bottom=0)
