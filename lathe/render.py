"""Output of the commands: results on stdout, as text or JSON; progress and warnings on stderr."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from latency import distribution
from latency.anchored import Anchored
from latency.coverage import Covered
from latency.profile import DriftChecked, Measured, Resumed, Retrying, TornLineDropped
from latency.profile import Event as ProfileEvent
from latency.units import interval, microseconds
from lathe import predicting, profiling, spaces, tabular
from lathe.fleet import Sharded
from lathe.tabular import Grid, Heading, coloured

if TYPE_CHECKING:
    from deploy.bundle import Bundle, NetworkSummary
    from deploy.page import ComparisonRow
    from deploy.verify import Verification
    from latency import Latency, LatencyTable, Workload
    from search.papers.latencies import ComparedLatency, Published
    from search.papers.row import PaperRow
    from search.record import Event as SearchEvent
    from search.space import Choice
    from search.sweep import Outcome

T = TypeVar("T")


class _Console(Console):
    """A console that leaves closed pipes to the entry point; rich's own exits with 1, like a failed verdict."""

    def on_broken_pipe(self) -> None:
        """Raise the error again; rich calls this while it is handled."""
        raise BrokenPipeError


OUT = _Console(soft_wrap=True, highlight=False)
LOG = _Console(stderr=True, highlight=False)


def space(facts: spaces.SpaceFacts, *, as_json: bool) -> None:
    """Print the size of a space."""
    if as_json:
        print_json(dataclasses.asdict(facts))
        return
    rows = [
        ("networks", f"{facts.size:.4e}".replace("e+", "e") if facts.size >= 10**6 else str(facts.size)),
        ("distinct blocks", f"{facts.blocks:,}"),
        ("parameters, as trained", f"{facts.params:,}"),
        ("MACs, as trained", f"{facts.macs:,}"),
        ("parameters, deployed", f"{facts.deployed_params:,}"),
        ("MACs, deployed", f"{facts.deployed_macs:,}"),
    ]
    OUT.print(tabular.facts(facts.name, rows))


def version() -> int:
    """Print the version of the distribution."""
    OUT.print(f"lathe {distribution.version()}")
    return 0


def names(spaces: Sequence[str], *, as_json: bool) -> None:
    """Print names, one per line."""
    if as_json:
        print_json(spaces)
    else:
        OUT.print("\n".join(spaces))


def cell(facts: predicting.CellFacts, *, as_json: bool) -> None:
    """Print the description of one network of a cell space."""
    if as_json:
        print_json(msgspec.to_builtins(facts))
        return
    rows = [
        ("cell", facts.arch),
        (
            "output depends on input",
            "yes" if facts.depends_on_input else "no: it is a constant, and only the classifier runs",
        ),
        ("parameters, nominal", f"{facts.nominal_params:,} (every edge, used or not, as NAS-Bench-201 counts)"),
        ("MACs, nominal", f"{facts.nominal_macs:,}"),
        ("parameters, as trained", f"{facts.params:,}"),
        ("MACs, as trained", f"{facts.macs:,}"),
        ("parameters, deployed", f"{facts.deployed_params:,}"),
        ("MACs, deployed", f"{facts.deployed_macs:,}"),
        *([("predicted latency", interval(facts.latency))] if facts.latency else []),
    ]
    OUT.print(tabular.facts(facts.name, rows))


def block_bundle(
    works: "Sequence[Workload]", write: "Callable[[Iterable[Workload]], profiling.BundleFacts]", *, as_json: bool
) -> None:
    """Show the progress of writing a block bundle, then its contents."""
    with _progress("blocks") as (bar, task):
        facts = write(bar.track(works, task_id=task))
    if as_json:
        print_json(dataclasses.asdict(facts))
        return
    rows = [
        ("space", f"{facts.space}, {facts.precision}"),
        ("holds", f"{facts.blocks} blocks, {facts.networks} networks"),
        ("size", f"{facts.bytes / 2**20:.1f} MiB"),
        ("sha256", facts.sha256[:16]),
    ]
    OUT.print(tabular.facts(facts.bundle, rows))


def profile(events: Iterator[ProfileEvent | Covered | Anchored | Sharded], *, out: Path) -> None:
    """Show the progress of profiling."""
    events = _begun(events)
    with _progress("blocks") as (bar, task):
        for event in events:
            match event:
                case TornLineDropped(line=line):
                    warn(f"{out}, line {line}: the last line is torn and was dropped; its block is measured again")
                case Resumed(done=done, total=total):
                    LOG.print(f"{done} of {total} are measured already; going on")
                    bar.update(task, completed=done, total=total)
                case Measured(row=row, done=done, total=total):
                    bar.update(task, completed=done, total=total, description=row.kind)
                    if not row.measured:
                        warn(f"{row.key}: {row.status}: {row.error}")
                case Retrying(rows=rows):
                    bar.update(task, description=f"retrying {rows} unstable")
                case Sharded(shard=shard, done=done, total=total):
                    bar.update(task, completed=done, total=total, description=f"shard {shard}")
                case Covered() as covered:
                    LOG.print(_covered(covered))
                case Anchored(measured=measured, transferred=transferred, proof=proof):
                    LOG.print(f"{measured} blocks measured, {transferred} transferred, {proof.words}")
                case DriftChecked(drift=drift, requeued=requeued):
                    if drift:
                        warn(f"the device drifted by {drift:+.1%}: {requeued} rows are measured again")


def _covered(now: Covered) -> str:
    proof = now.proof
    judged = (
        f"{proof.mean_error:.2%} at {proof.held_out} held-out ones (largest {proof.largest_error:.1%})"
        if proof.held_out
        else "with none held out to prove it"
    )
    words = (
        f"{now.measured} of {now.blocks} blocks measured; interpolation is off by {now.expected_error:.2%} as "
        f"expected, {judged}"
    )
    if not now.done:
        return words
    return (
        f"{words}: done"
        if now.enough
        else f"{words}: more than was asked for, but no more are measured; --coverage full measures all"
    )


def warn(text: str) -> None:
    """Print a warning to stderr."""
    LOG.print(f"[yellow]warning:[/] {escape(text)}")


def print_json(value: object) -> None:
    """Print one JSON document to stdout; numbers that JSON cannot represent become null."""
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _begun(events: Iterator[T]) -> Iterator[T]:
    """Return the same events after fetching the first, so that errors are raised before a progress bar is drawn."""
    return itertools.chain(list(itertools.islice(events, 1)), events)


@contextlib.contextmanager
def _progress(unit: str) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on stderr that stays when done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=LOG) as bar:
        yield bar, bar.add_task(unit, total=None)


def search(events: "Iterator[SearchEvent]", *, out: Path, as_json: bool) -> int:
    """Show the progress of a search, then its result; return the exit code."""
    from deploy.metric import ACCURACY
    from search.record import Chosen, EpochDone, Finished, Started

    end: Finished | None = None
    metric = ACCURACY
    events = _begun(events)
    times, figures = (TimeElapsedColumn(), TimeRemainingColumn()), TextColumn("{task.fields[now]}")
    columns = (TextColumn("{task.description}"), BarColumn(16), *times, figures)
    with Progress(*columns, console=LOG) as bar:
        task = bar.add_task("search", total=None, now="")
        for event in events:
            match event:
                case Started(epochs=epochs, history=history, metric=metric):
                    if history:
                        LOG.print(f"{len(history)} epochs are done already; going on")
                    bar.update(task, total=sum(epochs.values()), completed=len(history))
                case EpochDone() as done:
                    price = (
                        f"{done.macs / 1e6:,.2f} M MACs" if done.latency_us is None else microseconds(done.latency_us)
                    )
                    now = f"{metric.words(done.score)}, {price}"
                    bar.update(task, advance=1, description=f"{done.phase} {done.epoch}/{done.epochs}", now=now)
                case Chosen(choice=choice, latency=latency):
                    price = f", predicted {interval(latency)}" if latency else ""
                    LOG.print(f"chosen: {_choice(choice)}{price}")
                case Finished():
                    end = event
    assert end is not None, "the last event of a search says how it ended"
    finished, others = end.result, end.architecture.also
    if as_json:
        print_json({"run": str(out), "result": finished} | ({"also": others} if others else {}))
        return 0
    view = Grid("", "unpruned", "shipped", title=str(out))
    for name, show_of in ((finished.metric.name, lambda network: finished.metric.words(network.score)), *_RESULT):
        view.add(name, show_of(finished.unpruned) if finished.unpruned else "-", show_of(finished.shipped))
    view.add("free channels", "", str(sum(finished.free_channels.values())))
    if finished.budget_us is None:
        view.add("budget", "", f"{finished.budget_macs:,.0f} MACs: no table was given, and nothing is known of latency")
    else:
        view.add("budget", "", f"{microseconds(finished.budget_us)} (by the prediction; export measures)")
    for device in others:
        unpruned = interval(device.largest) if finished.unpruned else "-"
        view.add(f"predicted on {device.name}", unpruned, interval(device.predicted))
        view.add(f"budget on {device.name}", "", microseconds(device.budget_us))
    OUT.print(view)
    return 0


def sweep(rows: "Iterator[Outcome]", *, out: Path, as_json: bool) -> int:
    """Show the progress of a sweep, then its table; return the exit code: 1 if a search failed."""
    from search.sweep import outcomes, read
    from search.sweep_page import metric_of

    rows, last = _begun(rows), dict[str, str]()
    with _progress("sweep") as (bar, task):
        bar.update(task, total=len(read(out).members))
        for row in rows:
            shown = _scored(row) if row.score is not None else row.status
            took = f", measured {microseconds(row.measured_us)}" if row.measured_us is not None else ""
            why = f": {row.why}" if row.why else ""
            if last.get(row.name) != (line := f"{row.name}: {shown}{took}{why}"):
                bar.console.print(escape(line))
            last[row.name] = line
            bar.update(task, completed=len(last))
    runs = outcomes(out)
    code = int(any(row.status != "finished" for row in runs))
    if as_json:
        print_json({"sweep": str(out), "runs": runs})
        return code
    names = list(dict.fromkeys(name for row in runs for name in row.settings))
    view = Grid("budget", *names, "seed", metric_of(runs).name, "latency", "predicted", "")
    for row in runs:
        predicted, measured = (
            microseconds(us) if us else "-" for us in (row.predicted and row.predicted.us, row.measured_us)
        )
        said = "on the front" if row.front else "" if row.status == "finished" else row.status
        view.add(
            row.budget,
            *(row.settings.get(name, "") for name in names),
            str(row.seed),
            _scored(row),
            measured,
            predicted,
            said,
        )
    OUT.print(view)
    OUT.print(
        f"the page: lathe report {escape(str(out))}; the run for a budget: lathe sweep best {escape(str(out))} "
        "--budget-ms MS"
    )
    return code


def best(row: "Outcome", directory: Path, *, as_json: bool) -> None:
    """Name the run of a sweep to export."""
    from search.sweep import RUNS

    run = directory / RUNS / row.name
    if as_json:
        print_json({"run": str(run), "outcome": row})
        return
    latency = row.measured_us or (row.predicted.us if row.predicted else 0.0)
    how = "measured" if row.measured_us is not None else "predicted"
    OUT.print(f"{escape(str(run))}: {_scored(row)}, {how} {microseconds(latency)}")
    OUT.print(f"ship it: lathe export {escape(str(run))} --out bundle")


def _scored(row: "Outcome") -> str:
    return "-" if row.metric is None or row.score is None else row.metric.words(row.score)


def _choice(choice: "Choice") -> str:
    """Return a network in one line: the space's names of its parts, and the choice for each."""
    parts = [
        f"{name}={value}" for part in (choice.widths, choice.options, choice.depths) for name, value in part.items()
    ]
    return escape(" ".join(parts))


_RESULT: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("parameters", lambda network: f"{network.parameters:,}"),
    ("MACs", lambda network: f"{network.macs:,}"),
    ("predicted latency", lambda network: interval(network.predicted) if network.predicted else "-"),
)


def bundles(makes: "Sequence[Callable[[Callable[[str], None]], Bundle]]", *, as_json: bool) -> int:
    """Show the progress of exports, each followed by its verdicts; return the exit code.

    JSON is one document, a list if several.
    """
    if not as_json:
        return max(bundle(_made(make)) for make in makes)
    made_bundles = [_made(make) for make in makes]
    facts = [
        {"bundle": str(made.directory), "manifest": made.manifest, "failures": made.manifest.failures}
        for made in made_bundles
    ]
    print_json(facts if len(facts) > 1 else facts[0])
    return int(any(made.manifest.failures for made in made_bundles))


def _made(make: "Callable[[Callable[[str], None]], T]") -> "T":
    """Return the result of `make`, showing its steps.

    A step that reports its progress, as "measure 2/5", has its remaining time beside it.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(16),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=LOG, transient=True, disable=not LOG.is_terminal) as bar:
        task = bar.add_task("begin", total=None)

        def show(step: str) -> None:
            name, done, total = _place(step)
            if bar.tasks[0].description != name:
                bar.reset(task, total=None, description=name)
            bar.update(task, completed=done, total=total)

        return make(show)


def _place(step: str) -> tuple[str, int, int | None]:
    """Return the name of a step, its progress, and its total if it reports one."""
    name, _, place = step.rpartition(" ")
    done, _, total = place.partition("/")
    return (name, int(done), int(total)) if done.isdecimal() and total.isdecimal() else (step, 0, None)


def bundle(made: "Bundle") -> int:
    """Print the verdicts of an export; return the exit code."""
    from deploy.bundle import RANDOM
    from deploy.metric import ACCURACY
    from deploy.validate import format_share

    manifest = made.manifest
    metric = manifest.metric or ACCURACY
    headings = ("step", "type", "against first", "limit", "same top-1", metric.name, "verdict")
    view = Grid(*headings, title=str(made.directory))
    for step in manifest.validation:
        worst = step.worst
        view.add(
            step.name,
            step.precision,
            f"{worst.relative:.1e}" if worst else "-",
            f"{step.limit:.0e}",
            format_share(worst.top1) if worst and worst.top1 else "-",
            metric.figure(step.score) if step.score else "-",
            step.verdict,
        )
    OUT.print(view)
    remarks = [
        (step.name, f"not run: {step.reason}" if step.verdict == "not run" else step.note)
        for step in manifest.validation
    ]
    for remark in dict.fromkeys(said for _, said in remarks if said):
        OUT.print(escape(f"{', '.join(dict.fromkeys(name for name, said in remarks if said == remark))}: {remark}"))
    for failure in manifest.failures:
        OUT.print(f"{coloured('does not hold:', 'failed')} {escape(failure)}")
    for note, label in (("fuse", "fuse: "), ("no budget", ""), ("samples", "")):
        if note in manifest.provenance:
            OUT.print(escape(f"{label}{manifest.provenance[note]}"))
    for name, value in manifest.provenance.items():
        if name.startswith("not run on "):
            OUT.print(escape(f"{name}: {value}"))
    if manifest.certificate:
        OUT.print(escape(f"{manifest.certificate.precision.upper()}: {manifest.certificate.summary}"))
    if manifest.inspection and not manifest.inspection.reason:
        OUT.print(escape(str(manifest.inspection)))
    for line in manifest.explanation.lines if manifest.explanation else ():
        OUT.print(escape(line))
    if manifest.builds:
        OUT.print(escape(str(manifest.builds)))
    if manifest.samples_from == "random":
        OUT.print(f"samples: {RANDOM}: give --samples to validate on what the network is for")
    OUT.print(escape(f"latency: {_latency(manifest.shipped)}"))
    verdict = manifest.budget_verdict
    budget = verdict if verdict == "no budget" else coloured(f"budget {verdict}", verdict)
    OUT.print(f"{budget}; written to {escape(str(made.directory))}; see `lathe report {escape(str(made.directory))}`")
    return 1 if manifest.failures else 0


def _latency(network: "NetworkSummary") -> str:
    measured = f"not measured ({network.not_measured})" if network.measured is None else interval(network.measured)
    return f"{measured}; predicted {interval(network.predicted)}" if network.predicted else measured


def verifications(checks: "Sequence[Callable[[Callable[[str], None]], Verification]]", *, as_json: bool) -> int:
    """Show the progress of verifications, then their results; return the exit code.

    JSON is one document, a list if several.
    """
    results = [_made(check) for check in checks]
    if as_json:
        facts = [{"verification": one, "failures": len(one.failures)} for one in results]
        print_json(facts if len(facts) > 1 else facts[0])
        return int(any(one.failures for one in results))
    for one in results:
        view = Grid("check", "verdict", "detail", title=one.directory)
        for check in one.checks:
            view.add(check.name, check.verdict, check.detail)
        OUT.print(view)
    return int(any(one.failures for one in results))


def report(page: Path, rows: "Sequence[ComparisonRow]", *, as_json: bool) -> None:
    """Print the main table of a page, and the page's path."""
    if as_json:
        print_json({"report": str(page), "table": [dataclasses.asdict(row) for row in rows]})
        return
    if rows:
        compares = any(row.unpruned for row in rows)
        view = Grid("", "unpruned", "shipped") if compares else Grid("", "shipped", show_header=False)
        for row in rows:
            view.add(row.name, *((row.unpruned,) if compares else ()), row.shipped, verdict=row.verdict)
        OUT.print(view)
    OUT.print(f"report: {escape(str(page))}")


def paper(rows: "Sequence[PaperRow]", *, as_json: bool) -> int:
    """Print a paper's numbers next to ours; return the exit code: 1 if one that should be equal is not."""
    verdicts = [row.verdict for row in rows]
    if as_json:
        print_json([{**dataclasses.asdict(row), "difference": row.difference, "verdict": row.verdict} for row in rows])
    else:
        for where in dict.fromkeys(row.table for row in rows if row.ours is not None):
            view = Grid("", "", "paper", "ours", "off by", "verdict", title=where)
            for row in rows:
                if row.table == where and row.difference is not None:
                    large = row.ours is not None and row.ours >= 1e15
                    ours, off = (
                        (f"{row.ours:.3e}", f"{row.difference:+.1e}")
                        if large
                        else (f"{row.ours:,}", f"{row.difference:+.4f}")
                    )
                    view.add(row.row, row.quantity, f"{row.paper} {row.unit}", ours, off, row.verdict)
            OUT.print(view)
        for note in dict.fromkeys(row.note for row in rows if row.note):
            OUT.print(
                f"{', '.join(dict.fromkeys(escape(row.row) for row in rows if row.note == note))}: {escape(note)}"
            )
        OUT.print(
            f"{verdicts.count('SAME')} of {len(rows)} are SAME, {verdicts.count('NOT RECOMPUTED')} are NOT RECOMPUTED"
        )
    return int("DIFFERS" in verdicts)


def latencies(rows: "Sequence[ComparedLatency]", tables: "Sequence[LatencyTable]", *, as_json: bool) -> None:
    """Print published latencies next to those of tables."""
    if as_json:
        print_json([{**dataclasses.asdict(row.published), "ours": _ours_json(row, tables)} for row in rows])
        return
    for source in dict.fromkeys(row.published.source for row in rows):
        members = [row for row in rows if row.published.source == source]
        letters = [chr(ord("A") + index) for index in range(len(tables))]
        view = Grid("", *(Heading(name, right=True) for name in ("published", *letters)), title=source)
        for row in members:
            published = row.published
            view.add(
                published.network,
                f"{published.value} {published.unit}",
                *(_beside(published, ours) for ours in row.ours),
            )
        OUT.print(view)
        about = members[0].published
        OUT.print(f"{about.unit}: {about.protocol}; device: {about.device}")
    for letter, table in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", tables, strict=False):
        header = table.header
        what = (
            f"{header.device.name}, {header.runtime.name} {header.runtime.version}, {header.precision}, protocol "
            f"{header.protocol.name}"
        )
        OUT.print(escape(f"{letter}: {table.path}: {what}"))
    if not any(ours for row in rows for ours in row.ours):
        command = "lathe profile gpunet-1 --backend tensorrt --out gpunet-1.latency.jsonl"
        OUT.print(
            f"no table has one of them: measure one by such as `{command}`, and give --table gpunet-1.latency.jsonl"
        )


def _beside(published: "Published", ours: "Latency | None") -> str:
    if ours is None:
        return "-"
    ratio = published.ratio(ours)
    times = "" if ratio is None else f", {ratio:.2f}x"
    return f"{microseconds(ours.us)}{'' if ours.source == 'measured' else ' predicted'}{times}"


def _ours_json(row: "ComparedLatency", tables: "Sequence[LatencyTable]") -> list[dict[str, Any]]:
    return [
        {"table": table.path, "latency": ours, "ratio": ours and row.published.ratio(ours)}
        for table, ours in zip(tables, row.ours, strict=True)
    ]
