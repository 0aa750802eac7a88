"""Pages about searches: a run, a bundle that was shipped from it, or a sweep."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy import bundle, page
from deploy import report as shipped
from deploy.bundle import LayerWidth
from deploy.errors import BundleError
from deploy.metric import Metric
from deploy.page import FIRST, INK, LIMIT, PAPER, SECOND, Bar, Chart, ComparisonRow, Gauge, Page, Section, TableCell
from latency import LatencyTable, plot
from latency.units import Unit, interval, unit_for
from search import layered_pictures, record, size_pictures, spaces, sweep, sweep_page
from search.architecture import Architecture, load_architecture
from search.errors import SearchError
from search.finished import require_same_space
from search.record import EpochDone, NetworkResult, Result, Run, Usage
from search.space import Choice
from search.spaces import Layered


def render(
    directory: str | Path, out: str | Path, table: LatencyTable | None = None, *, force: bool = False
) -> tuple[ComparisonRow, ...]:
    """Write the page of a run, a bundle or a sweep, and for a sweep those of its finished runs; return its main table.

    Args:
        directory: directory of a run, finished or not, of a bundle, or of a sweep.
        out: path of the page; a page written by this function before is replaced.
        table: latency table of the search, which is then shown as well.
        force: replace any existing file.

    Raises:
        SearchError: a file of the run is damaged, or the search used another table.
        DeployError: the directory is none of these, a file of the bundle is damaged, or the page cannot be written.
        LatencyError: `out` exists and is not a page.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    directory = Path(directory)
    page.require_page(out, force=force)
    if os.path.lexists(directory / sweep.SWEEP):
        rows = sweep.outcomes(directory)
        rendered = sweep_page.page_of(directory, rows, Path(out))
        for row in rows:
            if row.status == "finished":
                run = directory / sweep.RUNS / row.name
                page.write_page(page_of(run, table), f"{run}.html", force=force)
        sweep.write_results(directory, rows)
    else:
        rendered = page_of(directory, table)
    page.write_page(rendered, out, force=force)
    return rendered.rows


def page_of(directory: Path, table: LatencyTable | None = None) -> Page:
    """Return the page of a run or of a bundle.

    Raises:
        SearchError: a file of the run is damaged, or the search used another table.
        DeployError: the directory is neither of them, or a file of the bundle is damaged.
    """
    is_bundle, is_run = (os.path.lexists(directory / name) for name in (bundle.MANIFEST, record.RUN))
    if not is_bundle and not is_run:
        if parts := sorted(directory.glob(f"*/{bundle.MANIFEST}")):
            raise BundleError(f"{directory} holds bundles: give one of them, such as {parts[0].parent}")
        names = f"a bundle ({bundle.MANIFEST}), a search ({record.RUN}) nor a sweep ({sweep.SWEEP})"
        raise BundleError(f"{directory} is neither {names}: give the directory of one of these")
    search = _read_run_files(directory, table) if is_run else None
    if not is_bundle:
        assert search is not None
        return _page_of_run(directory, search, table)
    unit = shipped.unit_of(bundle.load(directory).manifest)
    if search is None:
        return shipped.page(directory, more=_table_pictures(table, unit))
    about = [_architecture_section(search)] if search.architecture else []
    more = [*_pictures(search, unit), *_table_pictures(table, unit), _provenance(search, table, unit)]
    return shipped.page(directory, about=about, more=more)


@dataclass(frozen=True, kw_only=True)
class _RunFiles:
    """Content of a run's files, as far as they exist."""

    run: Run
    result: Result | None
    architecture: Architecture | None
    history: tuple[EpochDone, ...]
    usage: tuple[Usage, ...]

    @property
    def layers(self) -> list[LayerWidth]:
        """Channel groups with their widths, in order; empty if not only widths were searched."""
        if self.architecture is None or isinstance(self.architecture.origin(), Layered):
            return []
        widths, full = self.architecture.choice.widths, self.architecture.origin().largest().widths
        names = [name for name in record.group_names(self.run) if name in widths] or list(widths)
        return [LayerWidth(name=name, kept=widths[name], of=full[name]) for name in names]


def _read_run_files(directory: Path, table: LatencyTable | None) -> _RunFiles:
    run = record.read_run(directory)
    if table and table.sha256 not in (run.table_sha256, *(other.table_sha256 for other in run.also)):
        raise SearchError(
            f"{table.path} is not the table of this search: its sha256 is {table.sha256[:16]}, the search used "
            f"{run.table_sha256[:16] or 'none'}: give that table, or none"
        )
    result = record.read_result(directory, run) if os.path.lexists(directory / record.RESULT) else None
    architecture = (
        load_architecture(directory / record.ARCHITECTURE) if os.path.lexists(directory / record.ARCHITECTURE) else None
    )
    history = record.read_history(directory, run)
    if architecture:
        require_same_space(directory, architecture, result, history)
    return _RunFiles(
        run=run, result=result, architecture=architecture, history=history, usage=record.read_usage(directory)
    )


def _page_of_run(directory: Path, search: _RunFiles, table: LatencyTable | None) -> Page:
    result, epochs, unit = search.result, len(search.history), _unit(search)
    about = [_architecture_section(search)] if search.architecture else []
    kept = [shipped.kept_channels(search.layers)] if search.layers else []
    return Page(
        title=directory.name,
        kind="search",
        subtitle=f"Search by {search.run.method} on {search.run.data}.",
        headline="The search is finished." if result else f"The search is not finished: {epochs} epochs so far.",
        look=page.look_of("passed" if result else "not run"),
        gauge=_gauge(result, unit) if result else None,
        rows=tuple(_main_table(result, search.architecture, unit)) if result else (),
        note=(
            "Metric on held-out data; parameters and MACs in deployed form; latency predicted from the table, with its "
            "95 % interval."
        ),
        body=(
            *about,
            *kept,
            *_pictures(search, unit),
            *_table_pictures(table, unit),
            _provenance(search, table, unit, versions=True),
        ),
    )


def _unit(search: _RunFiles) -> Unit:
    """Return the unit of all network latencies on the page of a run."""
    result, run = search.result, search.run
    networks = [network for network in (result.shipped, result.unpruned) if network] if result else []
    predicted = [epoch.latency_us for epoch in search.history] + [
        network.predicted and network.predicted.us for network in networks
    ]
    budgets = [run.budget_us, *(other.budget_us for other in run.also)]
    return unit_for([us for us in (*predicted, *budgets) if us])


def _gauge(result: Result, unit: Unit) -> Gauge | None:
    """Return a gauge of predicted latencies, or of MACs without a table."""
    unpruned, budget = result.unpruned, result.budget_macs
    if result.shipped.predicted or budget is None:
        return shipped.gauge(
            "Latency, predicted", unpruned and unpruned.predicted, result.shipped.predicted, result.budget_us, unit
        )
    first = [Bar("unpruned", unpruned.macs, f"{unpruned.macs:,}", "bar")] if unpruned else []
    last = Bar("shipped", result.shipped.macs, f"{result.shipped.macs:,}", "bar chosen")
    return Gauge("Multiply-accumulates", (*first, Bar("budget", budget, f"{budget:,.0f}", "limit"), last), limit=budget)


def _main_table(result: Result, architecture: Architecture | None, unit: Unit) -> Iterator[ComparisonRow]:
    def row(name: str, show: Callable[[NetworkResult], str]) -> ComparisonRow:
        return ComparisonRow(name, show(result.unpruned) if result.unpruned else "", show(result.shipped))

    yield row(result.metric.name, lambda network: result.metric.words(network.score))
    yield row("parameters", lambda network: f"{network.parameters:,}")
    yield row("MACs", lambda network: f"{network.macs:,}")
    if result.shipped.predicted:
        yield row("predicted latency", lambda network: interval(network.predicted, unit) if network.predicted else "")
    yield ComparisonRow("free channels", "", str(sum(result.free_channels.values())))
    if result.budget_us is not None:
        yield ComparisonRow("budget", "", f"{unit.words(result.budget_us)} (by the prediction; export measures)")
    elif result.budget_macs is not None:
        yield ComparisonRow(
            "budget", "", f"{result.budget_macs:,.0f} MACs: no table was given, and nothing is known of latency"
        )
    for device in architecture.also if architecture else ():
        unpruned = interval(device.largest, unit) if result.unpruned else ""
        yield ComparisonRow(
            f"on {device.name}",
            unpruned,
            f"{interval(device.predicted, unit)}; the budget is {unit.words(device.budget_us)}",
        )


def _architecture_section(search: _RunFiles) -> Section:
    """Return a section with the choice for each part."""
    architecture = search.architecture
    assert architecture is not None
    space, chosen = architecture.origin(), architecture.choice
    parts, full = _values_by_part(chosen), _values_by_part(space.largest())
    order = dict.fromkeys([*(layer.name for layer in search.layers), *parts])
    return Section(
        title="Architecture",
        note=(
            f"{space.name}; input {' × '.join(map(str, space.input_shape))}; {space.classes} "
            f"{'classes' if architecture.labels else 'outputs'}."
        ),
        columns=("part", "chosen", "largest"),
        lines=[(part, parts[part], full[part]) for part in order],
    )


def _values_by_part(choice: Choice) -> dict[str, str]:
    """Return the chosen option, width or depth of each part."""
    pairs = [
        (part, str(value)) for kind in (choice.options, choice.widths, choice.depths) for part, value in kind.items()
    ]
    values: dict[str, str] = {}
    for part, value in pairs:
        values[part] = f"{values[part]}, {value}" if part in values else value
    return values


def _provenance(search: _RunFiles, table: LatencyTable | None, unit: Unit, *, versions: bool = False) -> Section:
    """Return a section with the input of a search."""
    run = search.run
    without = (
        "none"
        if not run.table_sha256
        else f"{run.table_sha256}{'' if table else ' (for its pictures: lathe report --table FILE)'}"
    )
    lines: list[tuple[str, str | TableCell]] = [
        ("method", run.method),
        ("data", TableCell(f"{run.data} {run.data_sha256}", "hash")),
        ("latency table", TableCell(without, "hash") if run.table_sha256 else without),
    ]
    for other in run.also:
        lines.append(
            ("further budget", TableCell(f"{unit.words(other.budget_us)}, table {other.table_sha256}", "hash"))
        )
    if table:
        header = table.header
        of = (
            f"{header.device.name}, {header.runtime.name} {header.runtime.version}, {header.precision}, "
            f"{header.space or 'no space'}"
        )
        lines.append(("table shown", f"{of}; {len(table.rows)} rows; protocol {header.protocol.name}"))
        lines += [("transferred", table.transferred)] if table.transferred else []
    lines += run.versions.items() if versions else []
    return Section(title="Provenance" if versions else "Search", lines=lines)


def _pictures(search: _RunFiles, unit: Unit) -> Iterator[Chart]:
    space = spaces.from_record(search.run.space)
    if search.history and isinstance(space, Layered):
        yield layered_pictures.network(space, search.history[-1].choice)
    if search.history:
        metric = search.run.metric
        caption = (
            f"{metric.name} on held-out data and predicted latency after every epoch. Dotted lines separate the phases."
        )
        paint = partial(
            _plot_training, history=search.history, metric=metric, budget_us=search.run.budget_us, unit=unit
        )
        yield Chart("Training", caption, 4.2, paint)
    if search.usage:
        caption = "Mean time of a training step and memory that its forward pass saves for the backward pass, by epoch."
        yield Chart("Time and memory", caption, 4.2, partial(_plot_usage, usage=search.usage))
    yield from _operation_pictures(search)
    if isinstance(space, Layered):
        yield from layered_pictures.over_time(space, search.history)
    else:
        yield from size_pictures.over_time(search.history, unit)
    searched = [epoch for epoch in search.history if epoch.phase == "search"]
    layers = search.layers
    if not searched or any(epoch.choice.widths.keys() != {layer.name for layer in layers} for epoch in searched):
        return
    caption = "Share of each layer's channels that is kept after every epoch of the search, with their final number."
    yield Chart(
        "Channels over time",
        caption,
        0.9 + 0.3 * len(layers),
        partial(_plot_kept_shares, searched=searched, layers=layers),
    )
    returned = [[round(epoch.figures.get(f"returned.{layer.name}", 0)) for layer in layers] for epoch in searched]
    if any(map(any, returned)):
        caption = (
            "Channels of each layer that returned in an epoch after their removal, with their number over the whole "
            "search."
        )
        names = [layer.name for layer in layers]
        yield Chart(
            "Channels that returned",
            caption,
            0.9 + 0.3 * len(layers),
            partial(_plot_returned, returned=returned, names=names),
        )


_FIGURES = {
    "alpha": ("Alphas", "Weight of each operation of an edge in the supernet after every epoch."),
    "worth": (
        "Importance of the operations",
        "Increase of the supernet's validation loss or error without each operation of an edge. The paper does not "
        "consider latency: expected microseconds in the loss and a cell within the budget are an extension.",
    ),
}
"""Title and caption of the figures that a method records for each operation, by the prefix of their names."""


def _operation_pictures(search: _RunFiles) -> Iterator[Chart]:
    """Yield pictures of the figures of each operation over the epochs."""
    for kind, (title, caption) in _FIGURES.items():
        points: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for number, epoch in enumerate(search.history, 1):
            for name, value in epoch.figures.items():
                prefix, _, rest = name.partition(".")
                if prefix == kind and rest:
                    place, _, option = rest.partition(".")
                    points.setdefault(place, {}).setdefault(option, []).append((number, value))
        if points:
            yield Chart(title, caption, 1.6 + 1.7 * -(-len(points) // 3), partial(_plot_operations, series=points))


def _plot_operations(figure: plot.Figure, series: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]) -> None:
    """Draw a small plot per edge, three in a row, with a line per option."""
    styles = dict(
        zip(
            sorted({option for lines in series.values() for option in lines}),
            ("-", "--", ":", "-.", (0, (1, 4))),
            strict=False,
        )
    )
    every = figure.subplots(-(-len(series) // 3), 3, sharex=True, sharey=True, squeeze=False).flat
    for axes, (place, lines) in zip(every, series.items(), strict=False):
        for option, points in lines.items():
            epochs, values = zip(*points, strict=True)
            marker = "." if len(points) == 1 else ""
            axes.plot(
                epochs,
                values,
                color=FIRST,
                linestyle=styles.get(option, "-"),
                marker=marker,
                linewidth=1.2,
                label=option,
            )
        axes.set_title(place, fontsize="medium")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)


def _table_pictures(table: LatencyTable | None, unit: Unit) -> list[Chart]:
    pictures = plot.pictures(table, plot.Palette(INK, PAPER, FIRST, SECOND), unit) if table else ()
    return [Chart(picture.title, picture.caption, picture.height_in, picture.paint) for picture in pictures]


def _plot_training(
    figure: plot.Figure, history: Sequence[EpochDone], metric: Metric, budget_us: float | None, unit: Unit
) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(history) + 1)
    upper.plot(epochs, [metric.on_axis(epoch.score) for epoch in history], color=FIRST)
    upper.set_ylabel(metric.axis)
    latencies = [unit.of(epoch.latency_us) for epoch in history if epoch.latency_us is not None]
    lower.plot(epochs, latencies or [epoch.macs / 1e6 for epoch in history], color=SECOND)
    lower.set_ylabel(f"predicted, {unit.name}" if latencies else "million MACs")
    lower.set_xlabel("epoch")
    if budget_us is not None:
        lower.axhline(unit.of(budget_us), color=LIMIT, linestyle="--")
        lower.annotate(
            "budget", (1, unit.of(budget_us)), xytext=(0, -3), textcoords="offset points", va="top", color=LIMIT
        )
    lower.set_ylim(bottom=0)
    _mark_phases(upper, lower, [epoch.phase for epoch in history])


def _plot_usage(figure: plot.Figure, usage: Sequence[Usage]) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(usage) + 1)
    upper.plot(epochs, [1e3 * epoch.seconds / max(1, epoch.steps) for epoch in usage], color=FIRST)
    upper.set_ylabel("ms per step")
    lower.plot(epochs, [epoch.saved_bytes / 2**20 for epoch in usage], color=SECOND)
    lower.set_ylabel("MiB saved")
    lower.set_xlabel("epoch")
    for axes in (upper, lower):
        axes.set_ylim(bottom=0)
    _mark_phases(upper, lower, [epoch.phase for epoch in usage])


def _mark_phases(upper: plot.Axes, lower: plot.Axes, phases: Sequence[str]) -> None:
    """Name the phases above the upper plot, and separate them by dotted lines in both."""
    lower.xaxis.get_major_locator().set_params(integer=True)
    for index, phase in enumerate(phases):
        if index == 0 or phase != phases[index - 1]:
            upper.annotate(
                phase, (index + 0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points"
            )
            for axes in (upper, lower) if index else ():
                axes.axvline(index + 0.5, color=INK, linestyle=":", linewidth=1)


def _plot_kept_shares(figure: plot.Figure, searched: Sequence[EpochDone], layers: Sequence[LayerWidth]) -> None:
    axes = figure.add_subplot()
    widths = [[epoch.choice.widths[layer.name] for epoch in searched] for layer in layers]
    shares = [[min(1.0, width / layer.of) for width in row] for layer, row in zip(layers, widths, strict=True)]
    plot.legend(figure, plot.heat_map(axes, shares, most=1), axes, "share of channels kept")
    for y, layer in enumerate(layers):
        text = f"{widths[y][-1]} of {layer.of}"
        axes.annotate(
            text,
            (len(searched) + 0.5, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axes.invert_yaxis()
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch of the search")


def _plot_returned(figure: plot.Figure, returned: Sequence[Sequence[int]], names: Sequence[str]) -> None:
    """Draw a line per channel group, with a bar for the number of channels that returned in each epoch."""
    most = max(1, *(count for epoch in returned for count in epoch))
    axes = figure.add_subplot()
    epochs = range(1, len(returned) + 1)
    floors = [len(names) - 1 - place for place in range(len(names))]
    for place, floor in enumerate(floors):
        counts = [epoch[place] for epoch in returned]
        axes.bar(epochs, [0.9 * count / most for count in counts], bottom=floor, width=0.8, color=FIRST)
        axes.axhline(floor, color=FIRST, linewidth=0.3)
        axes.annotate(
            str(sum(counts)),
            (len(returned) + 0.5, floor),
            xytext=(6, 0),
            textcoords="offset points",
            annotation_clip=False,
        )
    axes.set_yticks(floors, list(names))
    axes.set_xlim(0.5, len(returned) + 0.5)
    axes.set_ylim(-0.1, len(names))
    axes.set_xlabel("epoch of the search")
