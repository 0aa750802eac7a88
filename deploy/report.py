"""Page of a bundle: its verdicts, numbers and pictures, from its manifest alone."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy import bundle
from deploy.bundle import LayerWidth, Manifest, NetworkSummary
from deploy.metric import ACCURACY, Metric
from deploy.page import FIRST, INK, LIMIT, Bar, Chart, ComparisonRow, Gauge, Page, Section, TableCell, look_of
from deploy.validate import Step, compare_latency, format_share
from latency import Measurement
from latency.units import HasInterval, Unit, interval, unit_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HASH = re.compile(r"[0-9a-f]{16,}")


def page(directory: Path, *, about: Sequence[Section | Chart] = (), more: Sequence[Section | Chart] = ()) -> Page:
    """Return the page of a bundle.

    Args:
        directory: the bundle.
        about: content before its pictures, such as its architecture.
        more: content after its pictures, such as the search that chose it.

    Raises:
        DeployError: the directory is not a bundle, or one of its files is damaged.
    """
    manifest = bundle.load(directory).manifest
    unit = unit_of(manifest)
    samples = "samples" if manifest.samples_from == "given" else f"samples, {bundle.RANDOM}"
    inputs = ", ".join(
        f"{name} of {' × '.join(map(str, shape))}"
        + (f" (it takes {manifest.spans[name]})" if name in manifest.spans else "")
        for name, shape in manifest.inputs.items()
    )
    verdict, sentence = headline(manifest, unit)
    return Page(
        title=directory.name,
        kind="shipped network",
        subtitle=(
            f"Shipped for {manifest.target} in {manifest.arithmetic}, made {manifest.created[:16].replace('T', ' ')} "
            "UTC."
        ),
        headline=sentence,
        look=look_of(verdict),
        gauge=_gauge(manifest, unit),
        rows=tuple(main_table(manifest, unit)),
        note=f"Measured on {manifest.samples:,} {samples}; latency of one call, with {inputs}; intervals of 95 %.",
        body=(*about, *pictures(manifest, unit), *more, validation(manifest), provenance(manifest), chain(manifest)),
    )


def unit_of(manifest: Manifest) -> Unit:
    """Return the common unit of all latencies on a bundle's page."""
    known = [(network.measured, network.predicted) for network in (manifest.shipped, manifest.unpruned) if network]
    budget = [] if manifest.budget_us is None else [manifest.budget_us]
    return unit_for([*budget, *(latency.us for pair in known for latency in pair if latency)])


def main_table(manifest: Manifest, unit: Unit) -> Iterator[ComparisonRow]:
    """Yield the rows that compare the unpruned and the shipped network, as far as known."""

    def row(name: str, show: Callable[[NetworkSummary], str], verdict: str = "") -> Iterator[ComparisonRow]:
        unpruned, shipped = manifest.unpruned and show(manifest.unpruned), show(manifest.shipped)
        if unpruned or shipped:
            yield ComparisonRow(name, unpruned or "", shipped, verdict)

    metric = manifest.metric or ACCURACY
    yield from row(metric.name, lambda network: metric.figure(network.score) if network.score else "")
    yield from row("parameters", lambda network: f"{network.params:,}")
    yield from row("MACs", lambda network: f"{network.macs:,}")
    yield from row("predicted latency", lambda network: interval(network.predicted, unit) if network.predicted else "")
    measured = "" if manifest.shipped.measured else "not run"
    yield from row(
        "measured latency",
        lambda network: interval(network.measured, unit) if network.measured else "not run",
        measured,
    )
    if manifest.unpruned and manifest.unpruned.measured and manifest.shipped.measured:
        ratio = compare_latency(manifest.shipped.measured, manifest.unpruned.measured)
        yield ComparisonRow(
            "against unpruned",
            "",
            f"{ratio.word}: {ratio.ratio:.3f} of its latency ({ratio.low:.3f} to {ratio.high:.3f})",
        )
    budget = "" if manifest.budget_us is None else f"{unit.words(manifest.budget_us)}: "
    yield ComparisonRow("budget", "", f"{budget}{manifest.budget_verdict}", manifest.budget_verdict)
    last = next((step for step in reversed(manifest.validation) if step.worst), None)
    if last and last.worst:
        text = f"{last.worst.relative:.1e} of its scale ({last.name}, limit {last.limit:.0e}): {last.verdict}"
        yield ComparisonRow("output difference", "", text, last.verdict)


def headline(manifest: Manifest, unit: Unit) -> tuple[str, str]:
    """Return the page's verdict, as a word and as a sentence."""
    if failures := manifest.failures_in(unit):
        return "failed", "Failed: " + "; ".join(failures) + "."
    not_run = [step.name for step in manifest.validation if step.verdict == "not run"]
    ending = f" Not run: {', '.join(not_run)}." if not_run else ""
    match manifest.budget_verdict:
        case "met":
            verdict, sentence = "met", "Every verdict holds, and the budget is met."
        case "unsure":
            verdict = "unsure"
            sentence = (
                "Every output agrees; whether the budget is met is unsure: it lies inside of the latency's interval."
            )
        case "no budget":
            verdict, sentence = "passed", "Every output agrees; there is no budget."
        case _:
            verdict = "not run"
            sentence = f"All compared outputs agree; the latency was not measured: {manifest.shipped.not_measured}."
    return "not run" if not_run else verdict, sentence + ending


def _gauge(manifest: Manifest, unit: Unit) -> Gauge | None:
    """Return the latencies of both networks and the budget.

    Measured ones if the shipped network was measured, else predicted ones.
    """
    how = "measured" if manifest.shipped.measured else "predicted"
    unpruned: HasInterval | None = getattr(manifest.unpruned, how, None)
    verdict = manifest.budget_verdict if how == "measured" else ""
    return gauge(f"Latency, {how}", unpruned, getattr(manifest.shipped, how), manifest.budget_us, unit, verdict)


def gauge(
    title: str,
    unpruned: HasInterval | None,
    shipped: HasInterval | None,
    budget_us: float | None,
    unit: Unit,
    verdict: str = "",
) -> Gauge | None:
    """Return latencies as bars, with the budget as a mark across them.

    Args:
        title: title of the gauge.
        unpruned: latency of the unpruned network; None if unknown.
        shipped: latency of the shipped network; None if unknown.
        budget_us: None if there is no budget.
        unit: unit of the page.
        verdict: verdict on the budget.

    Returns:
        The gauge; None if the shipped network's latency is unknown.
    """
    if shipped is None:
        return None

    def bar(name: str, latency: HasInterval, look: str) -> Bar:
        return Bar(name, latency.us, unit.words(latency.us), look, low=latency.low_us, high=latency.high_us)

    first = [] if unpruned is None else [bar("unpruned", unpruned, "bar")]
    between = [] if budget_us is None else [Bar("budget", budget_us, unit.words(budget_us), "limit")]
    return Gauge(
        title, (*first, *between, bar("shipped", shipped, f"bar chosen {look_of(verdict)}".strip())), limit=budget_us
    )


def pictures(manifest: Manifest, unit: Unit) -> Iterator[Chart]:
    """Yield pictures of the bundle's widths and its measured latencies."""
    if manifest.layers:
        yield kept_channels(manifest.layers)
    pair = (("shipped", manifest.shipped), ("unpruned", manifest.unpruned))
    measured = [(name, network.measured) for name, network in pair if network and network.measured]
    if measured:
        caption = (
            "Samples, taken in turns in one run. Line: median; band: its interval; the last bin holds all that is "
            "slower."
        )
        paint = partial(_latencies, networks=measured, budget_us=manifest.budget_us, unit=unit)
        yield Chart("Latency", caption, 1 + 1.8 * len(measured), paint)


def kept_channels(layers: Sequence[LayerWidth]) -> Chart:
    """Return a picture of a network's widths and those of the unpruned one."""
    caption = "Output channels that each layer ships with; the outline is its unpruned width."
    return Chart("Kept channels", caption, 0.8 + 0.3 * len(layers), partial(_widths, layers=layers))


def validation(manifest: Manifest) -> Section:
    """Return the section that compares each form of the network with the previous one and with the first."""
    metric = manifest.metric or ACCURACY
    return Section(
        title="Validation",
        note=(
            "Each form of the network against the form before and against the first. Differences are the largest of "
            "any output value; "
            "relative ones are shares of the largest value of the reference, and the limit holds for both of them. "
            "Cosine: the smallest of "
            "any sample. Same top-1: with Wilson's interval of 95 %. KL: mean divergence of the logits from the first "
            "form's, "
            "in nats."
        ),
        columns=(
            *("form", "arithmetic", "verdict", "relative to previous", "to first", "limit", "absolute"),
            *("cosine", "same top-1", "KL", metric.name),
        ),
        lines=[line for step in manifest.validation for line in _step(step, metric)],
        after=" ".join(f"{line}." for line in _precision(manifest)),
        dense=True,
    )


def _precision(manifest: Manifest) -> Iterator[str]:
    """Yield the facts about half precision, in sentences."""
    if manifest.certificate:
        yield f"{manifest.certificate.precision.upper()}: {manifest.certificate.summary}"
    if manifest.inspection:
        yield str(manifest.inspection)
    if manifest.explanation:
        yield from manifest.explanation.lines


def _step(step: Step, metric: Metric) -> Iterator[list[str | TableCell]]:
    verdict = TableCell(step.verdict, look_of(step.verdict))
    score = metric.figure(step.score) if step.score else ""
    for output, first in step.first.items():
        name = f"{step.name}: {output}" if len(step.first) > 1 else step.name
        differences = [
            _short(step.previous[output].relative),
            _short(first.relative),
            _short(step.limit),
            _short(first.max_abs),
        ]
        top1, kl = format_share(first.top1) if first.top1 else "", "" if first.kl is None else _short(first.kl)
        yield [name, step.precision, verdict, *differences, f"{first.cosine:.6f}", top1, kl, score]
    if not step.first:
        yield [
            step.name,
            step.precision,
            verdict,
            "",
            "",
            _short(step.limit) if step.verdict != "reference" else "",
            *[""] * 4,
            score,
        ]
    if step.reason:
        yield [TableCell(f"{step.name}, {step.verdict}: {step.reason}", "reason", whole=True)]


def _short(value: float) -> str:
    return f"{value:.1e}"


def provenance(manifest: Manifest) -> Section:
    """Return the section on where, from what and how a bundle was made."""
    device = manifest.device
    if device is None:
        where = TableCell(f"not run: {manifest.shipped.not_measured}", look_of("not run"))
    elif device.kind == "cpu":
        where = f"{device.name}, {device.os}, {device.threads} of {device.cores} threads"
    else:
        where = f"{device.name}, {device.os}, driver {device.driver}, compute capability {device.compute_capability}"
    return Section(
        title="Provenance",
        lines=[
            ("device", where),
            ("runtime", f"{manifest.runtime.name} {manifest.runtime.version}"),
            ("protocol", manifest.protocol.name),
            *([("builds", str(manifest.builds))] if manifest.builds else []),
            *((f"build: {name}", str(value)) for name, value in manifest.build.items()),
            *((f"version: {name}", value) for name, value in manifest.versions.items()),
            *(
                (name, TableCell(value, "hash") if _HASH.fullmatch(value) else value)
                for name, value in manifest.provenance.items()
            ),
        ],
    )


def chain(manifest: Manifest) -> Section:
    """Return the section with the hash of every form."""
    return Section(
        note="From the architecture to what runs: every form names what it was made from.",
        columns=("form", "made from", "file", "sha256"),
        lines=[(link.name, link.made_from, link.file, TableCell(link.sha256, "hash")) for link in manifest.chain],
    )


def _widths(figure: "Figure", layers: Sequence[LayerWidth]) -> None:
    axes = figure.add_subplot()
    places, widths = range(len(layers)), [layer.of for layer in layers]
    axes.barh(places, [layer.kept for layer in layers], height=0.7, color=FIRST)
    axes.barh(places, widths, height=0.7, fill=False, edgecolor=INK, linewidth=0.8)
    for place, layer in zip(places, layers, strict=True):
        axes.annotate(
            f"{layer.kept} of {layer.of}", (layer.of, place), xytext=(6, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(places, [layer.name for layer in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(widths))
    axes.set_xlabel("channels")


def _latencies(
    figure: "Figure", networks: Sequence[tuple[str, Measurement]], budget_us: float | None, unit: Unit
) -> None:
    column = figure.subplots(len(networks), 1, squeeze=False)[:, 0]
    for axes, (name, measured) in zip(column, networks, strict=True):
        ordered = sorted(measured.samples_us)
        low, upper = ordered[0], ordered[3 * len(ordered) // 4]
        high = max(min(ordered[-1 - len(ordered) // 50], upper + 4 * (upper - low)), low * 1.001, measured.high_us)
        shares = [1 / len(ordered)] * len(ordered)
        axes.hist(
            [unit.of(min(sample, high)) for sample in ordered],
            40,
            range=(unit.of(low), unit.of(high)),
            weights=shares,
            color=FIRST,
        )
        axes.axvline(unit.of(measured.median_us), color=INK, linewidth=1)
        axes.axvspan(unit.of(measured.low_us), unit.of(measured.high_us), color=INK, alpha=0.2, linewidth=0)
        if name == "shipped" and budget_us is not None and low < budget_us < 1.5 * high:
            budget = unit.of(budget_us)
            axes.axvline(budget, color=LIMIT, linestyle="--")
            axes.annotate("budget ", (budget, 1), xycoords=("data", "axes fraction"), va="top", ha="right", color=LIMIT)
        axes.set_title(f"{name}: {unit.interval(measured)}", loc="left", fontsize=10)
        axes.set_ylabel("share of samples")
    column[-1].set_xlabel(f"latency of one batch, {unit.name}")
