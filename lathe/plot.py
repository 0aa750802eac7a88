"""A latency table as a picture: latency over width a family, heat maps, and predicted against measured networks. Needs matplotlib."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from latency import BlockSpec, CoverageError, LatencyTable, Row
from latency.coverage import held_out
from latency.errors import LatencyError, require

_COLUMNS = 3
_MEASURED, _BETWEEN, _HELD_OUT = "#1f5fa8", "#8fb4dc", "#d1601f"


def plot(table: LatencyTable, out: Path) -> None:
    """Draw a table.

    A family over one width is a line with intervals; one over two widths a heat map, in which what was interpolated carries a dot. Then
    networks, predicted against measured.

    Args:
        table: what to draw.
        out: NAME.png or NAME.svg; replaced where it is there.

    Raises:
        MissingExtra: matplotlib is not installed.
        LatencyError: another kind of file, or nothing to draw.
    """
    if out.suffix not in (".png", ".svg"):
        raise LatencyError(f"--plot writes NAME.png or NAME.svg, found {out}")
    require("matplotlib", "report")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families: dict[str, dict[BlockSpec, Row]] = {}
    for row in table.rows:
        if row.kind == "block" and row.measured:
            spec = BlockSpec.parse(row.key)
            families.setdefault(spec.family, {})[spec] = row
    networks = [(row, found) for row in table.rows if row.kind == "network" and row.measured and (found := _predicted(table, row))]
    count = len(families) + bool(networks)
    if not count:
        raise LatencyError(f"{table.path}: there is nothing to draw: measure with `lathe profile SPACE --out {table.path}`")
    columns = min(_COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(5.2 * columns, 4.0 * lines + 0.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    header = table.header
    figure.suptitle(
        f"{header.device.name}, {header.runtime.name} {header.runtime.version}, {header.precision}, {header.space}", fontsize=12
    )
    for ax, (family, rows) in zip(axes, families.items(), strict=False):
        _family(figure, ax, table, family, rows)
    if networks:
        _networks(axes[len(families)], networks, table)
    for ax in axes[count:]:
        ax.set_visible(False)
    figure.savefig(out)


def _family(figure: Any, ax: Any, table: LatencyTable, family: str, rows: dict[BlockSpec, Row]) -> None:
    ax.set_title(f"{family}\n{len(rows)} measured", fontsize=9)
    names = [name for name, _ in next(iter(rows)).widths]
    values = {name: sorted({spec.width(name) for spec in rows}) for name in names}
    wide = [name for name in names if len(values[name]) > 1]
    if len(wide) == 2:
        _heat_map(figure, ax, table, rows, {name: values[name] for name in wide})
    else:
        for name in wide or names[-1:]:
            _line(ax, table, rows, name, labelled=len(wide) > 1)
        ax.set_xlabel(" and ".join(wide or names[-1:]))
        ax.set_ylabel("latency (µs)")
        ax.set_ylim(0, 1.1 * ax.dataLim.y1)
        ax.grid(alpha=0.25)
        ax.legend(fontsize=8, loc="lower right")


def _line(ax: Any, table: LatencyTable, rows: dict[BlockSpec, Row], name: str, *, labelled: bool) -> None:
    """Latency over one width; the others are the widest ones where there are several."""
    widest = max(rows, key=lambda spec: tuple(width for _, width in spec.widths))
    line = {spec.width(name): (spec, row) for spec, row in rows.items() if spec.with_widths(**{name: widest.width(name)}) == widest}
    held, at = held_out(list(rows)), sorted(line)
    grid = sorted({*at, *_between(at)})
    found = []
    for width in grid:
        try:
            found.append((width, table.lookup(widest.with_widths(**{name: width}))))
        except CoverageError:
            continue
    of = f" over {name}" * labelled
    if between := [(width, latency) for width, latency in found if latency.source == "interpolated"]:
        ax.fill_between(
            [width for width, _ in found],
            [latency.low_us for _, latency in found],
            [latency.high_us for _, latency in found],
            color=_BETWEEN,
            alpha=0.35,
            linewidth=0,
        )
        ax.plot(
            *zip(*((w, latency.us) for w, latency in between), strict=True), "o", mfc="white", mec=_BETWEEN, ms=4, label=f"interpolated{of}"
        )
    for label, color, chosen in (
        ("measured", _MEASURED, [w for w in at if line[w][0].key not in held]),
        ("measured, held out", _HELD_OUT, [w for w in at if line[w][0].key in held]),
    ):
        if chosen:
            us = np.array([line[w][1].median_us for w in chosen])
            reach = np.abs(np.array([[line[w][1].low_us for w in chosen], [line[w][1].high_us for w in chosen]]) - us)
            ax.errorbar(chosen, us, reach, fmt="o", color=color, ms=4, capsize=2, label=f"{label}{of}")


def _between(widths: list[int]) -> list[int]:
    """The widths that a grid of the finest distance seen would have too."""
    if len(widths) < 2:
        return []
    step = min(b - a for a, b in itertools.pairwise(widths))
    return list(range(widths[0], widths[-1], step))


def _heat_map(figure: Any, ax: Any, table: LatencyTable, rows: dict[BlockSpec, Row], axes: dict[str, list[int]]) -> None:
    (down, across), (vertical, horizontal) = axes, (sorted({*widths, *_between(widths)}) for widths in axes.values())
    any_spec = next(iter(rows))
    values, dots = np.full((len(vertical), len(horizontal)), np.nan), []
    for i, height in enumerate(vertical):
        for j, width in enumerate(horizontal):
            try:
                found = table.lookup(any_spec.with_widths(**{down: height, across: width}))
            except CoverageError:
                continue
            values[i, j] = found.us
            if found.source == "interpolated":
                dots.append((j, i))
    image = ax.imshow(values, origin="lower", aspect="auto", cmap="viridis")
    figure.colorbar(image, ax=ax, label="latency (µs)")
    if dots:
        ax.plot(*zip(*dots, strict=True), "o", color="white", ms=2.5, alpha=0.8)
        ax.set_title(f"{ax.get_title()}, {len(dots)} interpolated (dots)", fontsize=9)
    for labels, ticks, limits, name in (
        (ax.set_xticks, horizontal, ax.set_xlabel, across),
        (ax.set_yticks, vertical, ax.set_ylabel, down),
    ):
        every = math.ceil(len(ticks) / 8)
        labels(range(0, len(ticks), every), [str(width) for width in ticks[::every]])
        limits(name)


def _predicted(table: LatencyTable, row: Row) -> Any:
    try:
        return table.predict([BlockSpec.parse(key) for key in row.blocks])
    except CoverageError:
        return None


def _networks(ax: Any, networks: list[tuple[Row, Any]], table: LatencyTable) -> None:
    measured = np.array([row.median_us for row, _ in networks]) / 1000
    us = np.array([found.us for _, found in networks]) / 1000
    reach = np.abs(np.array([[found.low_us for _, found in networks], [found.high_us for _, found in networks]]) / 1000 - us)
    ends = [min(measured.min(), us.min()), max(measured.max(), us.max())]
    ax.plot(ends, ends, color="0.6", linewidth=1, label="exact")
    ax.errorbar(measured, us, reach, fmt="o", color=_MEASURED, ms=4, capsize=2, label="network, 95 % interval")
    error = table.predictor.mean_absolute_error
    ax.set_title(f"{len(networks)} networks: {error:.2%} off on average (cross-validated)", fontsize=9)
    ax.set_xlabel("measured (ms)")
    ax.set_ylabel("predicted (ms)")
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8, loc="lower right")
