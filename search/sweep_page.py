"""The page of a sweep: the Pareto front of its runs, and a table with a line per run."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from deploy.metric import ACCURACY, Metric
from deploy.page import FIRST, INK, SECOND, Chart, Page, Section, TableCell, look_of
from latency import plot
from latency.units import Unit, interval, unit_for
from search import sweep
from search.sweep import Outcome

_LABELLED = 12
"""Maximum number of runs on the front that the picture labels."""


def page_of(directory: Path, rows: Sequence[Outcome], out: Path) -> Page:
    """Return the page of a sweep.

    Args:
        directory: directory of the sweep.
        rows: its outcomes.
        out: path of the page, which its links to the pages of runs are relative to.

    Raises:
        SearchError: the directory is not a sweep.
    """
    finished = [row for row in rows if row.score is not None]
    unit = unit_for([row.latency_us for row in finished if row.latency_us])
    front = sorted((row for row in rows if row.front), key=lambda row: row.latency_us or 0.0)
    measured = sum(row.measured_us is not None for row in finished)
    drawn = [row for row in finished if row.latency_us is not None]
    pictures = [_front_picture(drawn, front, unit)] if drawn else []
    return Page(
        title=directory.name,
        kind="sweep",
        subtitle=f"Sweep of {len(rows)} searches by {sweep.read(directory).method}.",
        headline=(
            f"{len(finished)} of {len(rows)} searches finished; networks measured: {measured}; on the Pareto front: "
            f"{len(front)}."
        ),
        look=look_of(
            "passed"
            if len(finished) == len(rows)
            else "failed"
            if any(row.status == "failed" for row in rows)
            else "not run"
        ),
        body=(*pictures, _runs_section(rows, directory, out, unit)),
    )


def _runs_section(rows: Sequence[Outcome], directory: Path, out: Path, unit: Unit) -> Section:
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    losses = any(row.search_loss is not None for row in rows)
    metric, devices = metric_of(rows), sweep.further_devices(rows)
    elsewhere = [f"predicted on {device.name}, budget {unit.words(device.budget_us)}" for device in devices]
    last = ("search loss", "status") if losses else ("status",)
    columns = ("run", "budget", *names, "seed", metric.name, "latency", "predicted", *elsewhere, *last)
    return Section(
        title="Runs",
        note=(f"{metric.name} on the held-out samples, with two standard errors; measured latency with its interval."),
        columns=columns,
        lines=[
            _run_line(row, names, len(devices), losses, directory, out, unit)
            for row in sorted(rows, key=lambda row: (not row.front, row.latency_us or 0.0))
        ],
        after="Among runs that differ only in lambda, only the one with the lowest search loss can be on the front."
        if losses
        else "",
        dense=True,
    )


def _run_line(
    row: Outcome, names: Sequence[str], devices: int, losses: bool, directory: Path, out: Path, unit: Unit
) -> list[str | TableCell]:
    page = directory / sweep.RUNS / f"{row.name}.html"
    link = quote(os.path.relpath(page, out.parent)) if row.status == "finished" else ""
    return [
        TableCell(row.name, link=link),
        row.budget,
        *(row.settings.get(name, "") for name in names),
        str(row.seed),
        _score_text(row),
        _latency_text(row, unit),
        *(
            interval(prediction, unit) if prediction else ""
            for prediction in (row.predicted, *sweep.predictions_elsewhere(row, devices))
        ),
        *(("" if row.search_loss is None else f"{row.search_loss:.3f}",) if losses else ()),
        TableCell(row.why or row.status, look_of("failed"))
        if row.status == "failed"
        else "on the front"
        if row.front
        else row.why or "",
    ]


def metric_of(rows: Iterable[Outcome]) -> Metric:
    """Return the metric of a sweep's runs."""
    return next((row.metric for row in rows if row.metric), ACCURACY)


def _score_text(row: Outcome) -> str:
    if row.metric is None or row.score is None:
        return ""
    return row.metric.words(row.score) + (
        f" ± {row.metric.words(2 * row.score_error)}" if row.score_error is not None else ""
    )


def _latency_text(row: Outcome, unit: Unit) -> str:
    if row.measured_us is None or row.low_us is None or row.high_us is None:
        return ""
    return f"{unit.words(row.measured_us)} ({unit.number(row.low_us)} to {unit.number(row.high_us)})"


def _front_picture(rows: Sequence[Outcome], front: Sequence[Outcome], unit: Unit) -> Chart:
    measured = all(row.measured_us is not None for row in rows)
    metric = metric_of(rows).name
    what = "measured latency" if measured else "latency: measured for marks with horizontal bars, otherwise predicted"
    return Chart(
        "Pareto front",
        f"{metric} over {what}. Bars: two standard errors of the {metric}, interval of the latency. The line connects "
        "the front.",
        3.6,
        partial(_plot_front, rows=rows, front=front, unit=unit),
    )


def _plot_front(figure: plot.Figure, rows: Sequence[Outcome], front: Sequence[Outcome], unit: Unit) -> None:
    axes, metric = figure.subplots(), metric_of(rows)
    for row in rows:
        us, score, error = (
            row.latency_us,
            metric.on_axis(row.score or 0.0),
            metric.on_axis(2 * (row.score_error or 0.0)),
        )
        assert us is not None
        ends = [[unit.of(us - (row.low_us or us))], [unit.of((row.high_us or us) - us)]]
        style: dict[str, Any] = (
            {"color": FIRST, "marker": "o"} if row.front else {"color": SECOND, "marker": "x", "alpha": 0.7}
        )
        axes.errorbar(unit.of(us), score, xerr=ends, yerr=error, capsize=2, linewidth=1, **style)
    line = [(unit.of(row.latency_us or 0.0), metric.on_axis(row.score or 0.0)) for row in front]
    axes.plot([us for us, _ in line], [score for _, score in line], color=FIRST, linewidth=1)
    for row, point in list(zip(front, line, strict=True))[:_LABELLED]:
        axes.annotate(row.name, point, xytext=(4, 4), textcoords="offset points", size=7, color=INK)
    axes.set_xlabel(f"latency, {unit.name}")
    axes.set_ylabel(metric.axis)
