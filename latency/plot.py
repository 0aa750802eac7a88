"""Plots of a latency table: latency over width, heat maps, predicted against measured networks. Needs matplotlib.

Markers carry the same information as colours: a filled dot is measured, a hollow one interpolated, a square transferred
from another device, a diamond held out to judge the predictions, a cross unstable. Colours come from a palette, so that
a page can be rendered for light and dark at once.
"""

import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from latency.block import BlockSpec
from latency.coverage import held_out
from latency.diff import Diff
from latency.errors import CoverageError, LatencyError, import_extra
from latency.files import atomic_write
from latency.outputs import GENERATOR, PICTURE, require_file
from latency.rows import Latency, Row
from latency.table import LatencyTable
from latency.units import Unit, unit_for

WIDTH_IN = 10.0
"""Width of every picture in inches."""
_SMALL = 8
"""Smallest font size in points."""

Family = dict[BlockSpec, Row]

Figure: TypeAlias = Any
"""A figure or subfigure of matplotlib, which is optional and leaves most keyword arguments untyped; so are the next."""
Axes: TypeAlias = Any
Mesh: TypeAlias = Any


class Palette(NamedTuple):
    """Colours in matplotlib's notation."""

    ink: str
    paper: str
    first: str
    second: str


PRINT = Palette("#1b1f24", "#ffffff", "#0a5fb4", "#8a4b00")


@dataclass(frozen=True)
class Picture:
    """A plot to draw into a matplotlib figure that is `WIDTH_IN` wide."""

    title: str
    caption: str
    height_in: float
    paint: Callable[[Figure], None]


def require_picture(out: Path, *, force: bool = False) -> None:
    """Require that `plot` can write a file; see `latency.outputs.require_file`.

    Raises:
        LatencyError: the file cannot be written, or its suffix is neither .png nor .svg.
    """
    if out.suffix not in _METADATA:
        raise LatencyError(f"--plot writes NAME.png or NAME.svg, found {out}")
    require_file(out, PICTURE, flag="--plot", force=force)


_METADATA = {".png": {"Software": GENERATOR}, ".svg": {"Title": GENERATOR}}
"""Metadata by which a picture is recognized as one of ours, for each suffix."""


def plot(table: LatencyTable, out: Path, *, force: bool = False) -> None:
    """Draw a table into a file.

    Args:
        table: table to draw.
        out: NAME.png or NAME.svg; a picture that this function drew earlier is replaced.
        force: whether any file is replaced.

    Raises:
        MissingExtra: matplotlib is not installed.
        LatencyError: the suffix is unknown, the file cannot be written, or there is nothing to draw.
    """
    require_picture(out, force=force)
    import_extra("matplotlib", "report")
    drawn = pictures(
        table, PRINT, unit_for([row.median_us for row in table.rows if row.kind == "network" and row.measured])
    )
    if not drawn:
        raise LatencyError(
            f"{table.path}: there is nothing to draw: measure with `lathe profile SPACE --out {table.path}`"
        )
    _save(_titled(table), drawn, out)


def plot_diffs(tables: Sequence[LatencyTable], diffs: Sequence[Diff], out: Path, *, force: bool = False) -> None:
    """Draw a comparison of tables with the first one into a file.

    Args:
        tables: the reference, then the tables compared with it.
        diffs: comparison of each of the latter.
        out: NAME.png or NAME.svg; see `plot`.
        force: whether any file is replaced.

    Raises:
        MissingExtra: matplotlib is not installed.
        LatencyError: the suffix is unknown, or the file cannot be written.
    """
    require_picture(out, force=force)
    import_extra("matplotlib", "report")
    drawn: list[Picture] = []
    for table, diff in zip(tables[1:], diffs, strict=True):
        caption = (
            "Latency over that in the first table: small dots are rows, large ones the mean of a family with its "
            "interval of 95 %."
        )
        height = 1.0 + 0.3 * (len(diff.families) + 1)
        drawn.append(Picture(_titled(table), caption, height, lambda figure, diff=diff: _ratios(figure, diff, PRINT)))
    _save(f"compared with {_titled(tables[0])}", drawn, out)


def _titled(table: LatencyTable) -> str:
    header = table.header
    title = f"{header.device.name}, {header.runtime.name} {header.runtime.version}, {header.precision}, {header.space}"
    return "\n".join(filter(None, (title, header.origin)))


def _save(title: str, drawn: Sequence[Picture], out: Path) -> None:
    heights = [picture.height_in + 0.6 for picture in drawn]
    figure = _new_figure(sum(heights) + 0.5)
    figure.suptitle(title, fontsize=12)
    for part, picture in zip(
        figure.subfigures(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0], drawn, strict=True
    ):
        part.suptitle(picture.title, fontsize=11)
        picture.paint(part)
    with atomic_write(out) as partial:
        figure.savefig(partial, format=out.suffix[1:], metadata=_METADATA[out.suffix])


def _new_figure(height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=130, layout="constrained", facecolor=PRINT.paper)
    FigureCanvasAgg(figure)
    return figure


def _ratios(figure: Figure, diff: Diff, palette: Palette) -> None:
    """Draw the ratios of rows on one line per family, with the mean of each."""
    ax = figure.add_subplot()
    lines = [*diff.families, diff.overall]
    ax.axvspan(1 - diff.tolerance, 1 + diff.tolerance, color=palette.ink, alpha=0.1, linewidth=0)
    ax.axvline(1, color=palette.ink, linewidth=0.8)
    for place, change in enumerate(lines):
        ratios = [row.ratio for row in diff.rows if row.family == change.family]
        ax.plot(ratios, [place] * len(ratios), "o", color=palette.second, ms=2.5, alpha=0.5)
        ax.plot([change.low, change.high], [place, place], color=palette.first, linewidth=1.5)
        ax.plot(change.ratio, place, "o", color=palette.first, ms=5)
    ax.set_yticks(range(len(lines)), [diff.titles.get(change.family, "all") for change in lines], fontsize=_SMALL)
    ax.set_ylim(len(lines) - 0.5, -0.5)
    ax.grid(alpha=0.2, axis="x")
    ax.set_xlabel("latency over the first table's")


def pictures(table: LatencyTable, palette: Palette, unit: Unit) -> list[Picture]:
    """Return the pictures of a table: predicted against measured networks, blocks over widths, blocks of one width.

    Args:
        table: table to draw.
        palette: colours.
        unit: unit of the latencies of networks; those of blocks are in microseconds.
    """
    families: dict[str, Family] = {}
    for row in table.rows:
        if row.kind == "block" and row.known:
            spec = BlockSpec.parse(row.key)
            families.setdefault(spec.family, {})[spec] = row
    wide = {name: rows for name, rows in families.items() if len(rows) > 1}
    single = {name: rows for name, rows in families.items() if len(rows) == 1}
    networks = [
        (row, latency)
        for row in table.rows
        if row.kind == "network" and row.measured and (latency := _predicted(table, row))
    ]
    drawn: list[Picture] = []
    if networks:
        error = table.predictor.mean_absolute_error
        off = "too few to judge the error by" if math.isnan(error) else f"{error:.2%} off on average (cross-validated)"
        caption = (
            f"{len(networks)} networks, measured whole and predicted from their blocks, with intervals of 95 %: {off}."
        )
        drawn.append(
            Picture(
                "Predicted against measured", caption, 4.2, lambda figure: _networks(figure, networks, palette, unit)
            )
        )
    if wide:
        columns = min(4, len(wide)) if len(wide) > 4 else min(2, len(wide))
        lines = math.ceil(len(wide) / columns)
        caption = (
            "A panel a family of blocks, in microseconds. Full dot: measured, with its interval; hollow dot and "
            "hatched band: interpolated with its interval; square: transferred from another device; diamond: measured, "
            "but held out to judge these; cross: unstable. Over two widths the colour of a cell is its latency."
        )
        height = lines * (2.3 if columns == 4 else 3.4)
        drawn.append(
            Picture(
                "Latency over width", caption, height, lambda figure: _families(figure, table, wide, columns, palette)
            )
        )
    if single:
        caption = "Families of one block, with its interval; square: transferred from another device."
        height = 0.7 + 0.28 * len(single)
        drawn.append(Picture("Blocks of one width", caption, height, lambda figure: _singles(figure, single, palette)))
    return drawn


def _families(figure: Figure, table: LatencyTable, families: dict[str, Family], columns: int, palette: Palette) -> None:
    axes = figure.subplots(math.ceil(len(families) / columns), columns, squeeze=False).ravel()
    held = held_out([spec for rows in families.values() for spec in rows])
    for ax, (family, rows) in zip(axes, families.items(), strict=False):
        names = [name for name, _ in next(iter(rows)).widths]
        values = {name: sorted({spec.width(name) for spec in rows}) for name in names}
        wide = {name: widths for name, widths in values.items() if len(widths) > 1}
        fixed = ",".join(f"{name}={widths[0]}" for name, widths in values.items() if name not in wide)
        title = f"{family}[{fixed}]" if fixed else family
        ax.set_title("\n".join(textwrap.wrap(title.replace(",", ", "), 34 if columns == 4 else 80)), fontsize=_SMALL)
        ax.tick_params(labelsize=_SMALL)
        if len(wide) == 2:
            _over_two_widths(figure, ax, table, rows, held, wide, palette)
            continue
        for name in wide:
            _over_one_width(ax, table, rows, held, name, palette)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel(" or ".join(wide), fontsize=_SMALL, labelpad=1)
        ax.set_ylim(0, 1.08 * ax.dataLim.y1)
        ax.grid(alpha=0.2)
    for ax in axes[len(families) :]:
        ax.set_visible(False)


def _over_one_width(ax: Axes, table: LatencyTable, rows: Family, held: set[str], name: str, palette: Palette) -> None:
    """Draw latency over one width, with any other widths at their largest."""
    widest = max(rows, key=lambda spec: tuple(width for _, width in spec.widths))
    line = {
        spec.width(name): row for spec, row in rows.items() if spec.with_widths(**{name: widest.width(name)}) == widest
    }
    latencies = {
        width: latency
        for width in _uniform_grid(sorted(line))
        if (latency := _lookup(table, widest.with_widths(**{name: width})))
    }
    size = 2.0 if len(latencies) > 40 else 3.5
    predicted = {
        source: [width for width, latency in latencies.items() if latency.source == source] for source in _HOLLOW
    }
    held = held if any(predicted.values()) else set()
    if any(predicted.values()):
        lows, highs = zip(*((latency.low_us, latency.high_us) for latency in latencies.values()), strict=True)
        ax.fill_between(
            list(latencies),
            lows,
            highs,
            facecolor="none",
            edgecolor=palette.second,
            alpha=0.5,
            hatch="////",
            linewidth=0,
        )
        for source, widths in predicted.items():
            marker = _HOLLOW[source]
            ax.plot(
                widths,
                [latencies[width].us for width in widths],
                marker,
                mfc=palette.paper,
                mec=palette.second,
                mew=0.7,
                ms=size,
            )
    line = {width: row for width, row in line.items() if row.measured}
    _intervals(ax, list(line), [row.low_us for row in line.values()], [row.high_us for row in line.values()], palette)
    for marker, colour, shown in (
        ("o", palette.first, [width for width, row in line.items() if row.status == "ok" and row.key not in held]),
        ("D", palette.first, [width for width, row in line.items() if row.status == "ok" and row.key in held]),
        ("x", palette.ink, [width for width, row in line.items() if row.status != "ok"]),
    ):
        ax.plot(shown, [line[width].median_us for width in shown], marker, color=colour, ms=size + (marker != "o"))


_HOLLOW = {"interpolated": "o", "transferred": "s"}
"""Marker of latencies that were not measured, by their source."""


def _intervals(
    ax: Axes, x: Sequence[int] | Sequence[float], low: Sequence[float], high: Sequence[float], palette: Palette
) -> None:
    """Draw vertical bars as one line with gaps: tables have thousands, and each would be an element of the picture."""
    gaps = [math.nan] * len(x)
    ax.plot(np.ravel([x, x, gaps], "F"), np.ravel([low, high, gaps], "F"), color=palette.ink, linewidth=0.8, alpha=0.7)


def _uniform_grid(widths: list[int]) -> list[int]:
    """Return the widths of a uniform grid with the smallest measured spacing, and the measured widths."""
    step = min((b - a for a, b in itertools.pairwise(widths)), default=1)
    return sorted({*widths, *range(widths[0], widths[-1], step)})


def _over_two_widths(
    figure: Figure,
    ax: Axes,
    table: LatencyTable,
    rows: Family,
    held: set[str],
    axes: dict[str, list[int]],
    palette: Palette,
) -> None:
    (down, across), (vertical, horizontal) = axes, (_uniform_grid(widths) for widths in axes.values())
    any_spec = next(iter(rows))
    values, marks = (
        np.full((len(vertical), len(horizontal)), np.nan),
        {"o": list[tuple[int, int]](), "s": [], "D": [], "x": []},
    )
    for (i, height), (j, width) in itertools.product(enumerate(vertical), enumerate(horizontal)):
        spec = any_spec.with_widths(**{down: height, across: width})
        if not (latency := _lookup(table, spec)):
            continue
        values[i, j] = latency.us
        if latency.source in _HOLLOW:
            marks[_HOLLOW[latency.source]].append((j, i))
        elif rows[spec].status != "ok":
            marks["x"].append((j, i))
        elif spec.key in held:
            marks["D"].append((j, i))
    legend(figure, heat_map(ax, values), ax, "µs")
    if not marks["o"] and not marks["s"]:
        marks["D"].clear()  # no predictions, so no held-out blocks to judge them
    for marker, places in marks.items():
        x, y = ([place[axis] + first for place in places] for axis, first in ((0, 1), (1, 0)))
        ax.plot(x, y, marker, mfc=palette.paper, mec=palette.second, mew=0.8, ms=3)
    for ticks, first, labels, limits, name in (
        (ax.set_xticks, 1, horizontal, ax.set_xlabel, across),
        (ax.set_yticks, 0, vertical, ax.set_ylabel, down),
    ):
        every = math.ceil(len(labels) / 6)
        ticks(range(first, first + len(labels), every), [str(width) for width in labels[::every]])
        limits(name, fontsize=_SMALL, labelpad=1)


def heat_map(ax: Axes, values: ArrayLike, *, most: float | None = None) -> Mesh:
    """Draw cells in a perceptually uniform colour map that colour-blind readers can read.

    Args:
        ax: matplotlib axes; cell [y, x] is centred on the point (x + 1, y), so that epochs count from 1.
        values: [rows, columns], non-negative; NaN is left out.
        most: value at the upper end of the colour map; None for the largest value.

    Returns:
        The mesh, for `legend`.
    """
    import matplotlib

    cells = np.ma.masked_invalid(np.asarray(values, float))
    rows, columns = cells.shape
    colours = matplotlib.colormaps["viridis"].resampled(24)  # few enough that the legend stays vector graphics
    return ax.pcolormesh(
        np.arange(columns + 1) + 0.5, np.arange(rows + 1) - 0.5, cells, cmap=colours, vmin=0, vmax=most
    )


def legend(figure: Figure, mesh: Mesh, axes: Axes | Sequence[Axes], label: str) -> None:
    """Draw the colour bar of a heat map next to its axes."""
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label(label, fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)
    bar.outline.set_visible(False)


def _singles(figure: Figure, families: dict[str, Family], palette: Palette) -> None:
    ax = figure.add_subplot()
    rows = [row for family in families.values() for row in family.values()]
    for place, row in enumerate(rows):
        ax.plot([row.low_us, row.high_us], [place, place], color=palette.ink, linewidth=1, alpha=0.7)
        marker = {"ok": "o", "transferred": _HOLLOW["transferred"]}.get(row.status, "x")
        ax.plot(row.median_us, place, marker, color=palette.first, mfc=None if row.measured else palette.paper, ms=4)
    ax.set_yticks(range(len(rows)), [row.key for row in rows], fontsize=_SMALL)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.grid(alpha=0.2, axis="x")
    ax.set_xlabel("latency, µs")


def _networks(figure: Figure, networks: Sequence[tuple[Row, Latency]], palette: Palette, unit: Unit) -> None:
    ax = figure.add_subplot()
    measured = unit.of(np.array([row.median_us for row, _ in networks]))
    us, low, high = (
        unit.of(np.array([getattr(latency, end) for _, latency in networks])) for end in ("us", "low_us", "high_us")
    )
    ends = [min(measured.min(), low.min()), max(measured.max(), high.max())]
    ax.plot(ends, ends, color=palette.ink, linewidth=1, linestyle="--")
    ax.annotate(" equal", (ends[1], ends[1]), ha="right", va="bottom", fontsize=_SMALL)
    _intervals(ax, list(measured), list(low), list(high), palette)
    ax.plot(measured, us, "o", color=palette.first, ms=3.5)
    ax.set_xlabel(f"measured, {unit.name}")
    ax.set_ylabel(f"predicted, {unit.name}")
    ax.grid(alpha=0.2)


def _lookup(table: LatencyTable, spec: BlockSpec) -> Latency | None:
    try:
        return table.lookup(spec)
    except CoverageError:
        return None


def _predicted(table: LatencyTable, row: Row) -> Latency | None:
    try:
        return table.predict([BlockSpec.parse(key) for key in row.blocks])
    except CoverageError:
        return None
