"""One self-contained HTML page about a bundle, or about the directory of a search, made from its files alone."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from deploy import bundle
from deploy.bundle import Layer, Manifest, Network
from deploy.errors import BundleError, DeployError
from deploy.policy import paint_returned
from deploy.validate import compare_latency, share
from latency import Latency, LatencyTable, Measurement, decoding, plot
from latency.errors import require
from latency.files import raised_as, write_whole
from latency.outputs import GENERATOR, PAGE, require_file
from latency.units import interval, microseconds
from latency.values import Count, Share, TimeUs

T = TypeVar("T")

RUN, RESULT, HISTORY, ARCHITECTURE = "run.json", "result.json", "history.jsonl", "architecture.json"


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of a line of history.jsonl."""

    phase: str
    epoch: Count
    loss: float
    accuracy: Share
    latency_us: TimeUs | None
    macs: Count = 0
    choice: dict[str, dict[str, int | str]]
    figures: dict[str, float] = {}

    def widths(self, layers: Sequence[Layer]) -> list[int]:
        """Channels kept of each layer."""
        return [int(self.choice["widths"][layer.name]) for layer in layers]

    def returned(self, layers: Sequence[Layer]) -> list[int]:
        """Channels of each layer that came back."""
        return [int(self.figures.get(f"returned.{layer.name}", 0)) for layer in layers]


class HistoryHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of history.jsonl."""

    schema: Literal["history/2"]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of a network in result.json."""

    accuracy: Share
    parameters: Count
    macs: Count
    predicted: Latency | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of result.json."""

    schema: Literal["result/2"]
    unpruned: Outcome
    shipped: Outcome
    free_channels: dict[str, int] = {}
    budget_macs: float | None = None


class ChosenLayer(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of a layer in architecture.json."""

    name: str
    width: int
    of: int
    op: str = ""
    kernel: int | None = None
    stride: int | None = None
    act: str | None = None


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of architecture.json."""

    layers: tuple[ChosenLayer, ...] = ()
    space: str = ""
    input_shape: tuple[int, ...] = ()
    classes: int = 0


class Architecture2(msgspec.Struct, frozen=True, kw_only=True):
    """The same of its version 2."""

    space: dict[str, Any]
    choice: dict[str, dict[str, Any]]

    def shown(self) -> Architecture:
        """As the page shows it: of a space of widths its groups."""
        layers = [(layer["name"], layer["width"]) for layer in self.space.get("layers", ()) if "width" in layer]
        full, widths = dict(layers or self.space.get("members", ())), self.choice["widths"]
        found = [ChosenLayer(name=name, width=widths[name], of=of, op="group") for name, of in full.items() if name in widths]
        shape, classes = tuple(self.space["input_shape"]), self.space["classes"]
        return Architecture(layers=tuple(found), space=self.space["name"], input_shape=shape, classes=classes)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the page shows of run.json."""

    schema: Literal["run/2"]
    method: str
    data: str
    data_sha256: str
    table_sha256: str
    budget_us: TimeUs | None
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Source:
    """All that a directory says. A bundle has a manifest; of a search, what is there so far."""

    directory: Path
    table: LatencyTable | None
    manifest: Manifest | None
    run: Run | None
    result: Result | None
    architecture: Architecture | None
    history: tuple[Epoch, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Kept widths, in order."""
        if self.manifest:
            return self.manifest.layers
        layers = self.architecture.layers if self.architecture else ()
        return tuple(Layer(name=layer.name, kept=layer.width, of=layer.of) for layer in layers)

    @property
    def budget_us(self) -> float | None:
        """Latency that the network may take."""
        if self.manifest:
            return self.manifest.budget_us
        return self.run.budget_us if self.run else None


@dataclass(frozen=True)
class Row:
    """A line of the main table."""

    name: str
    unpruned: str
    shipped: str


def require_page(out: str | Path, *, force: bool = False) -> None:
    """Check that `render` can write a page, before anything is read; see `latency.outputs.require_file`.

    Raises:
        LatencyError: it cannot.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require("jinja2", "report")
    require("matplotlib", "report")
    require_file(out, PAGE, flag="--out", force=force)


def render(directory: str | Path, out: str | Path, table: LatencyTable | None = None, *, force: bool = False) -> list[Row]:
    """Write the page of a bundle or of a search's directory; returns its main table.

    Args:
        directory: the bundle, or the search's directory.
        out: the page; one that this function wrote before is replaced.
        table: the latency table that the search used, to be shown too.
        force: whether any file is replaced.

    Raises:
        DeployError: the directory is neither, one of its files is damaged (it is named), or the table is another one.
        LatencyError: the page cannot be written, or a file that is no report is in its place.
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    require_page(out, force=force)
    jinja2 = require("jinja2", "report")
    source, out = read(Path(directory), table), Path(out)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"short": "{:.1e}".format, "share": share}
    template = environment.from_string(resources.files("deploy").joinpath("report.html.j2").read_text("utf-8"))
    rows = main_table(source)
    page = template.render(
        source=source, generator=GENERATOR, manifest=source.manifest, rows=rows, headline=headline(source), pictures=list(_pictures(source))
    )
    try:
        write_whole(out, page.encode())
    except OSError as error:
        raise DeployError(f"{out} cannot be written: {error.strerror}") from error
    return rows


def read(directory: Path, table: LatencyTable | None = None) -> Source:
    """Read a bundle, or the directory of a search; the table is the one that its numbers are from.

    Raises:
        DeployError: it is neither, one of its files is damaged, or the table is another one.
    """
    manifest = bundle.load(directory).manifest if os.path.lexists(directory / bundle.MANIFEST) else None
    run = _json(directory / RUN, Run)
    if manifest is None and run is None:
        raise BundleError(f"{directory} is neither a bundle ({bundle.MANIFEST}) nor a search ({RUN}); give one of those directories")
    if table and run and table.sha256 != run.table_sha256:
        raise DeployError(
            f"{table.path} is not the table of this search: its sha256 is {table.sha256[:16]}, the search used {run.table_sha256[:16]}: "
            "give that one, or none"
        )
    return Source(
        directory=directory,
        table=table,
        manifest=manifest,
        run=run,
        result=_json(directory / RESULT, Result),
        architecture=_architecture(directory / ARCHITECTURE),
        history=_history(directory / HISTORY),
    )


def main_table(source: Source) -> list[Row]:
    """The unpruned and the shipped network side by side; a dash where nothing is known."""
    if source.manifest:
        return _bundle_table(source.manifest)
    if not source.result:
        return []
    pair = (source.result.unpruned, source.result.shipped)
    macs = source.result.budget_macs
    budget = "-" if source.budget_us is None else f"{microseconds(source.budget_us)} (by the prediction; export measures)"
    if macs is not None:
        budget = f"{macs:,.0f} MACs: no table was given, and nothing is known of latency"
    return [
        Row("accuracy", *(percent(network.accuracy) for network in pair)),
        Row("parameters", *(f"{network.parameters:,}" for network in pair)),
        Row("MACs", *(f"{network.macs:,}" for network in pair)),
        Row("predicted latency", *("-" if network.predicted is None else interval(network.predicted) for network in pair)),
        Row("free channels", "-", str(sum(source.result.free_channels.values()))),
        Row("budget", "-", budget),
    ]


def _bundle_table(manifest: Manifest) -> list[Row]:
    def row(name: str, show: Callable[[Network], str]) -> Row:
        return Row(name, "-" if manifest.unpruned is None else show(manifest.unpruned), show(manifest.shipped))

    rows = [
        row("accuracy", lambda network: share(network.accuracy) if network.accuracy else "-"),
        row("parameters", lambda network: f"{network.params:,}"),
        row("MACs", lambda network: f"{network.macs:,}"),
        row("predicted latency", lambda network: "-" if network.predicted is None else interval(network.predicted)),
        row("measured latency", lambda network: "not run" if network.measured is None else interval(network.measured)),
    ]
    if manifest.unpruned and manifest.unpruned.measured and manifest.shipped.measured:
        ratio = compare_latency(manifest.shipped.measured, manifest.unpruned.measured)
        rows.append(Row("against unpruned", "-", f"{ratio.word}: {ratio.ratio:.3f} of its latency ({ratio.low:.3f} to {ratio.high:.3f})"))
    budget = "" if manifest.budget_us is None else f"{microseconds(manifest.budget_us)}: "
    rows.append(Row("budget", "-", f"{budget}{manifest.budget_verdict}"))
    last = next((step for step in reversed(manifest.validation) if step.worst), None)
    if last and last.worst:
        text = f"{last.worst.relative:.1e} of its scale ({last.name}, limit {last.limit:.0e}): {last.verdict}"
        rows.append(Row("output difference", "-", text))
    return rows


def headline(source: Source) -> str:
    """The page's verdict in a sentence."""
    if source.manifest is None:
        return "The search is finished." if source.result else f"The search is not finished: {len(source.history)} epochs so far."
    failures = source.manifest.failures
    if failures:
        return "Does not hold: " + "; ".join(failures) + "."
    not_run = [step.name for step in source.manifest.validation if step.verdict == "not run"]
    ending = f" Not run: {', '.join(not_run)}." if not_run else ""
    match source.manifest.budget_verdict:
        case "met":
            return "Every verdict holds, and the budget is met." + ending
        case "unsure":
            return "Every output agrees; whether the budget is met is unsure: it lies inside of the latency's interval." + ending
        case "no budget":
            return "Every output agrees; there is no budget." + ending
        case _:
            return f"Every output that was compared agrees; the latency was not measured: {source.manifest.shipped.not_measured}." + ending


def percent(share: float) -> str:
    """A share for people."""
    return f"{share:.2%}"


def _json(path: Path, kind: type[T]) -> T | None:
    if not os.path.lexists(path):
        return None
    with raised_as(DeployError, "restore the file, or make the directory again"):
        return decoding.read_json(path, kind)


def _architecture(path: Path) -> Architecture | None:
    fields = _json(path, dict)
    if fields is None:
        return None
    with raised_as(DeployError, "restore the file, or make the directory again"):
        if fields.get("schema") == "architecture/2":
            return decoding.read_json(path, Architecture2).shown()
        return decoding.read_json(path, Architecture)


def _history(path: Path) -> tuple[Epoch, ...]:
    if not os.path.lexists(path):
        return ()
    with raised_as(DeployError, "restore the file, or make the directory again"):
        header, *lines = decoding.read_bytes(path, limit=decoding.MAX_JSON_BYTES).splitlines() or [b""]
        decoding.decode_json(header, HistoryHeader, f"{path}, line 1,")
        return tuple(decoding.decode_json(line, Epoch, f"{path}, line {number},") for number, line in enumerate(lines, 2))


# Pictures. Colours are placeholders that become CSS variables, so that one picture serves light and dark; line styles, hatches and
# strength tell the same as colours do.

_INK, _FIRST, _SECOND, _LIMIT, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_CSS = {_INK: "currentColor", _FIRST: "var(--first)", _SECOND: "var(--second)", _LIMIT: "var(--limit)", _PAPER: "var(--paper)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lathe",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page."""

    title: str
    caption: str
    svg: Any
    """markup that needs no escaping"""


def _pictures(source: Source) -> Iterator[Picture]:
    if source.layers:
        caption = "Output channels that each layer ships with; the outline is its unpruned width."
        yield _picture("Kept channels", caption, 0.8 + 0.3 * len(source.layers), lambda figure: _widths(figure, source.layers))
    pair = {} if source.manifest is None else {"shipped": source.manifest.shipped, "unpruned": source.manifest.unpruned}
    measured = [(name, network.measured) for name, network in pair.items() if network and network.measured]
    if measured:
        caption = "Samples, taken in turns in one run. Line: median; band: its interval; the last bin holds all that is slower."
        yield _picture("Latency", caption, 1 + 1.8 * len(measured), lambda figure: _latencies(figure, measured, source.budget_us))
    if source.history:
        caption = "After every epoch: accuracy on held-out data, and the latency that the table predicts. Dotted lines part the phases."
        yield _picture("Training", caption, 4.2, lambda figure: _training(figure, source.history, source.budget_us))
    searched = [epoch for epoch in source.history if epoch.phase == "search"]
    if searched and searched[0].choice["widths"].keys() == {layer.name for layer in source.layers}:
        caption = "Share of each layer's channels that was kept after every epoch of the search: full strength is all of them."
        height = 0.9 + 0.3 * len(source.layers)
        yield _picture("Channels over time", caption, height, lambda figure: _policy(figure, searched, source.layers))
        if any(any(epoch.returned(source.layers)) for epoch in searched):
            caption = "Channels of each layer that were gone after the epoch before and came back, with their number over the whole search."
            back, names = [epoch.returned(source.layers) for epoch in searched], [layer.name for layer in source.layers]
            yield _picture("Channels that came back", caption, height, lambda figure: paint_returned(figure, back, names, colour=_FIRST))
    for drawn in plot.pictures(source.table, plot.Palette(_INK, _PAPER, _FIRST, _SECOND)) if source.table else ():
        yield _picture(drawn.title, drawn.caption, drawn.height_in, drawn.paint)


def _picture(title: str, caption: str, height: float, paint: Callable[[Any], None]) -> Picture:
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(plot.WIDTH_IN, height), layout="constrained")
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, css in _CSS.items():
        svg = svg.replace(colour, css)
    name = title.lower().replace(" ", "-")  # ids are unique in a picture; make them so in the page
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Picture(title, caption, Markup(svg))


def _widths(figure: Any, layers: Sequence[Layer]) -> None:
    axes = figure.add_subplot()
    places, widths = range(len(layers)), [layer.of for layer in layers]
    axes.barh(places, [layer.kept for layer in layers], height=0.7, color=_FIRST)
    axes.barh(places, widths, height=0.7, fill=False, edgecolor=_INK, linewidth=0.8)
    for place, layer in zip(places, layers, strict=True):
        axes.annotate(f"{layer.kept} of {layer.of}", (layer.of, place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [layer.name for layer in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(widths))
    axes.set_xlabel("channels")


def _latencies(figure: Any, networks: Sequence[tuple[str, Measurement]], budget_us: float | None) -> None:
    column = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, (name, measured) in zip(column, networks, strict=True):
        ordered = sorted(measured.samples_us)
        low, upper = ordered[0], ordered[3 * len(ordered) // 4]
        high = max(min(ordered[-1 - len(ordered) // 50], upper + 4 * (upper - low)), low * 1.001, measured.high_us)
        shares = [1 / len(ordered)] * len(ordered)
        axes.hist([min(sample, high) for sample in ordered], 40, range=(low, high), weights=shares, color=_FIRST)
        axes.axvline(measured.median_us, color=_INK, linewidth=1)
        axes.axvspan(measured.low_us, measured.high_us, color=_INK, alpha=0.2, linewidth=0)
        if name == "shipped" and budget_us is not None and low < budget_us < 1.5 * high:
            axes.axvline(budget_us, color=_LIMIT, linestyle="--")
            axes.annotate("budget ", (budget_us, 1), xycoords=("data", "axes fraction"), va="top", ha="right", color=_LIMIT)
        axes.set_title(f"{name}: {interval(measured)}", loc="left", fontsize=10)
        axes.set_ylabel("share of samples")
    column[-1].set_xlabel("latency of one batch, µs")


def _training(figure: Any, history: Sequence[Epoch], budget_us: float | None) -> None:
    top, bottom = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(history) + 1)
    top.plot(epochs, [100 * epoch.accuracy for epoch in history], color=_FIRST)
    top.set_ylabel("accuracy, %")
    latencies = [epoch.latency_us for epoch in history if epoch.latency_us is not None]
    bottom.plot(epochs, latencies or [epoch.macs / 1e6 for epoch in history], color=_SECOND)
    bottom.set_ylabel("predicted, µs" if latencies else "million MACs")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("epoch")
    if budget_us is not None:
        bottom.axhline(budget_us, color=_LIMIT, linestyle="--")
        bottom.annotate("budget", (1, budget_us), xytext=(0, -3), textcoords="offset points", va="top", color=_LIMIT)
    for index, epoch in enumerate(history):
        if index == 0 or epoch.phase != history[index - 1].phase:
            top.annotate(epoch.phase, (index + 0.5, 1), xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points")
            for axes in (top, bottom) if index else ():
                axes.axvline(index + 0.5, color=_INK, linestyle=":", linewidth=1)


def _policy(figure: Any, searched: Sequence[Epoch], layers: Sequence[Layer]) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    axes = figure.add_subplot()
    widths = [epoch.widths(layers) for epoch in searched]
    cells = [(x, y) for x in range(len(searched)) for y in range(len(layers))]
    colours = [to_rgba(_INK, 0.85 * min(1.0, widths[x][y] / layers[y].of)) for x, y in cells]
    axes.add_collection(PatchCollection([Rectangle((x + 0.5, y - 0.5), 1, 1) for x, y in cells], facecolors=colours, linewidths=0))
    for y, layer in enumerate(layers):
        text = f"{widths[-1][y]} of {layer.of}"
        axes.annotate(text, (len(searched) + 0.5, y), xytext=(6, 0), textcoords="offset points", va="center", annotation_clip=False)
    axes.set_xlim(0.5, len(searched) + 0.5)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), [layer.name for layer in layers])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch of the search")
