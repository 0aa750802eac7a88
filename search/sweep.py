"""Many searches with one method, in one directory: a run per combination of budget, seed and values of settings.

Each run is a separate process, `lathe search`, so failures are isolated and interrupted runs resume. The first run of
each seed trains the first phase, the unpruned network or the warm-up of a supernet; the others start from it. Networks
are measured one at a time after all searches, so that no training disturbs a measurement.
"""

import csv
import io
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from deploy import bundle
from deploy.metric import Metric
from latency import Latency
from latency.files import write_atomically
from latency.process import BAD_INPUT
from latency.values import SampleUs, Single
from search import record
from search.architecture import OtherDevice, load_architecture
from search.cluster import Cluster, last_words, run_lathe
from search.errors import SearchError
from search.files import read_json, to_json
from search.methods.settings import Settings
from search.processes import command_of, ended_together, environment
from search.record import Spread

SWEEP, RUNS, BUNDLES, LOGS = "sweep.json", "runs", "bundles", "logs"
JSON, CSV = "results.json", "results.csv"
# sweep/1: the runs, each with the arguments of its search.
SCHEMA = "sweep/1"
_POLL_S = 0.1


class Member(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of a sweep."""

    name: Annotated[str, Meta(pattern=r"^(?!\.)[^/\\]+$")]
    """name of its directory"""
    seed: int
    budget: str
    """budget in words, such as `0.5 ms` or `60 %`"""
    settings: dict[str, str]
    """settings with several values in the sweep"""
    words: tuple[str, ...]
    """arguments of `lathe search`, without the output directory and the baseline"""
    leader: str
    """the member whose first phase it starts from; itself if it trains its own"""


class Sweep(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The definition of a sweep: `sweep.json`."""

    schema: Literal["sweep/1"] = SCHEMA
    method: str
    members: tuple[Member, ...]


Status = Literal["finished", "failed", "unfinished"]


class Outcome(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of one run: a row of the results."""

    name: str
    seed: int
    budget: str
    settings: dict[str, str]
    status: Status
    why: str = ""
    """why the run failed, or why its network could not be measured"""
    metric: Metric | None = None
    """metric of the score"""
    score: Single | None = None
    """score on the held-out samples"""
    score_error: Spread | None = None
    """standard error of the score"""
    predicted: Latency | None = None
    also: tuple[OtherDevice, ...] = ()
    """predictions for further devices"""
    measured_us: SampleUs | None = None
    low_us: SampleUs | None = None
    """lower end of the measured latency's interval"""
    high_us: SampleUs | None = None
    macs: int | None = None
    search_loss: float | None = None
    """loss in the last epoch of the search, if the method records it, as PRUNET does"""
    preferred: bool = True
    """False: another run that differs only in lambda has a lower search loss (PRUNET, Appendix A.2)"""
    front: bool = False
    """whether the run is on the Pareto front: no other preferred run is as fast and scores better"""

    @property
    def gain(self) -> float | None:
        """The score as a number that is higher for better scores."""
        return None if self.metric is None or self.score is None else self.metric.gain(self.score)

    @property
    def latency_us(self) -> float | None:
        """The measured latency, or the predicted one if there is none."""
        return self.measured_us or (self.predicted and self.predicted.us)

    @property
    def at_most_us(self) -> float | None:
        """Upper end of the interval of `latency_us`."""
        return self.high_us or (self.predicted and self.predicted.high_us)


def plan(
    settings: type[Settings],
    common: Sequence[str],
    budgets: Sequence[tuple[str, Sequence[str]]],
    seeds: int,
    values: Mapping[str, Sequence[str]],
) -> Sweep:
    """Return the sweep over all combinations of budget, values and seed.

    Args:
        settings: settings of the method.
        common: arguments of `lathe search` common to all runs.
        budgets: name and arguments of each budget.
        seeds: number of seeds, starting at 0.
        values: values of each setting to try; a single value applies to all runs.

    Raises:
        SearchError: the method has no such setting, or a value or budget is given twice.
    """
    for name, options in values.items():
        if name not in settings.__struct_fields__ or name == "seed":
            allowed = ", ".join(field for field in settings.__struct_fields__ if field != "seed")
            raise SearchError(
                f"--set {name}: {settings.name} has no such setting; it has "
                f"{allowed}{'; for seeds give --seeds' * (name == 'seed')}"
            )
        if len(set(options)) < len(options):
            raise SearchError(f"--set {name} has a value twice: {', '.join(options)}")
    if len({label for label, _ in budgets}) < len(budgets):
        raise SearchError(f"a budget is given twice: {', '.join(label for label, _ in budgets)}")
    varied = [name for name, options in values.items() if len(options) > 1]
    separate = [name for name in varied if name not in settings.after_first_phase()]
    members: list[Member] = []
    leaders: dict[tuple[object, ...], str] = {}
    for seed, (label, budget), each in itertools.product(range(seeds), budgets, itertools.product(*values.values())):
        chosen = dict(zip(values, each, strict=True))
        own = {name: chosen[name] for name in varied}
        name = (
            "_".join([label.replace(" ", ""), *(f"{key}={value}" for key, value in own.items()), f"seed={seed}"])
            .replace("/", "-")
            .replace("\\", "-")
        )
        given = itertools.chain.from_iterable((f"--{key.replace('_', '-')}", value) for key, value in chosen.items())
        leader = leaders.setdefault((seed, *(chosen[name] for name in separate)), name)
        words = (settings.name, *common, *budget, "--seed", str(seed), *given)
        members.append(Member(name=name, seed=seed, budget=label, settings=own, words=words, leader=leader))
    return Sweep(method=settings.name, members=tuple(members))


def begin(sweep: Sweep, out: Path) -> None:
    """Begin a sweep in a directory, or resume it.

    Raises:
        SearchError: the directory holds another sweep, or something else.
    """
    if (out / SWEEP).exists():
        if read(out) != sweep:
            raise SearchError(f"{out} holds another sweep; give the same command as before, or choose another --out")
        return
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise SearchError(f"{out} exists and is not a sweep: choose another --out")
    for part in (RUNS, BUNDLES, LOGS):
        (out / part).mkdir(parents=True, exist_ok=True)
    write_atomically(out / SWEEP, to_json(sweep))


def read(directory: Path) -> Sweep:
    """Read the sweep of a directory.

    Raises:
        SearchError: the directory has no sweep, or it is damaged.
    """
    if not os.path.lexists(directory / SWEEP):
        raise SearchError(f"{directory} is not a sweep: it has no {SWEEP}; give the --out of `lathe sweep`")
    return read_json(directory / SWEEP, Sweep)


def run(sweep: Sweep, out: Path, jobs: int) -> Iterator[Outcome]:
    """Run every unfinished search in order, and yield the outcome of each as it ends.

    Args:
        sweep: the sweep in `out`, see `begin`.
        out: directory of the sweep.
        jobs: number of concurrent searches, which share the CPU cores.

    Raises:
        SearchError: the first search rejects its arguments, as all others would.
    """
    waiting = [member for member in sweep.members if not _finished(out, member)]
    yield from (_outcome(out, member) for member in sweep.members if member not in waiting)
    alone = len(waiting) == len(sweep.members)  # the first search shows whether the arguments are valid
    failed: dict[str, str] = {}
    with ended_together() as processes:
        active: list[tuple[Member, subprocess.Popen[bytes]]] = []
        while waiting or active:
            for member in waiting[:]:
                leads = member.leader == member.name
                if len(active) >= (1 if alone else jobs) or not (leads or _ready(out, member, failed)):
                    continue
                waiting.remove(member)
                active.append((member, _start_search(out, member, jobs)))
                processes.append(active[-1][1])
            for member, process in [pair for pair in active if pair[1].poll() is not None]:
                active.remove((member, process))
                if process.returncode:
                    failed[member.name] = _last_line(out, member, process.returncode)
                    if alone and process.returncode == BAD_INPUT:
                        _forget(out)
                        raise SearchError(failed[member.name])
                alone = False
                yield _outcome(out, member, failed.get(member.name, ""))
            time.sleep(_POLL_S)


def run_on(cluster: Cluster, sweep: Sweep, out: Path, needs: Mapping[str, float]) -> Iterator[Outcome]:
    """Like `run`, with each run a task on a Ray cluster.

    Ray places them, and a run whose node is lost resumes elsewhere.

    A run that needs another run's first phase starts after that run ends.

    Args:
        cluster: a cluster whose nodes have `out` and the files that searches read at the same paths.
        sweep: the sweep in `out`, see `begin`.
        out: directory of the sweep.
        needs: resources of its node that each run uses, see `Cluster.require`.

    Raises:
        SearchError: every search rejects its arguments.
    """
    waiting = [member for member in sweep.members if not _finished(out, member)]
    yield from (_outcome(out, member) for member in sweep.members if member not in waiting)
    tasks: dict[str, Any] = {}
    for member in sorted(waiting, key=lambda member: member.leader != member.name):
        arguments = (out.resolve(), Path.cwd(), member)
        tasks[member.name] = cluster.submit(
            member.name, _search_on_node, *arguments, needs=needs, after=tasks.get(member.leader)
        )
    members, refused = {member.name: member for member in waiting}, list[str]()
    for name, code, why in cluster.ended(tasks):
        why = why or (_last_line(out, members[name], code) if code else "")
        refused += [why] if code == BAD_INPUT else []
        if len(refused) == len(sweep.members):
            _forget(out)
            raise SearchError(refused[0])
        yield _outcome(out, members[name], why)


def _search_on_node(out: Path, directory: Path, member: Member) -> int:
    """Run one member of a sweep, as a task on a node of a cluster."""
    return run_lathe(_arguments(out, member), _log(out, member), directory)


def _forget(out: Path) -> None:
    """Remove a sweep if none of its searches has begun, so that the corrected command can replace it."""
    if not any((out / RUNS).iterdir()):
        shutil.rmtree(out)


def _ready(out: Path, member: Member, failed: Mapping[str, str]) -> bool:
    """Return whether a member can start: its leader's first phase exists, or never will."""
    directory = out / RUNS / member.leader
    return member.leader in failed or (directory / record.BASELINE).exists() or (directory / record.RESULT).exists()


def _start_search(out: Path, member: Member, jobs: int) -> subprocess.Popen[bytes]:
    return _start_lathe(_arguments(out, member), _log(out, member), threads=max(1, (os.cpu_count() or 1) // jobs))


def _arguments(out: Path, member: Member) -> list[str]:
    """Return the command line of a run, which starts from its leader's first phase if that exists."""
    words = ["search", *member.words, "--out", str(out / RUNS / member.name)]
    if member.leader != member.name and (out / RUNS / member.leader / record.BASELINE).exists():
        words += ["--baseline", str(out / RUNS / member.leader)]
    return words


def _start_lathe(words: Sequence[str], log: Path, *, threads: int | None = None) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command_of(words),
            env=environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _log(out: Path, member: Member) -> Path:
    return out / LOGS / f"{member.name}.log"


def _last_line(out: Path, member: Member, code: int) -> str:
    return last_words(_log(out, member), code)


def measure(sweep: Sweep, out: Path, target: str) -> Iterator[Outcome]:
    """Export and measure the network of every finished search on this machine.

    One at a time; yields the outcome of each.

    Args:
        sweep: the sweep in `out`.
        out: directory of the sweep.
        target: target of `lathe export`.
    """
    for member in sweep.members:
        if not _finished(out, member):
            continue
        why = ""
        if not _exported(out, member):
            words = [
                "export",
                str(out / RUNS / member.name),
                "--target",
                target,
                "--out",
                str(out / BUNDLES / member.name),
            ]
            with ended_together() as processes:
                processes.append(_start_lathe(words, _log(out, member)))
                code = processes[0].wait()
            if code not in (0, 1):  # 1: a verdict fails, but the bundle is written
                why = _last_line(out, member, code)
        yield _outcome(out, member, why)


def _finished(out: Path, member: Member) -> bool:
    return (out / RUNS / member.name / record.RESULT).exists()


def _exported(out: Path, member: Member) -> bool:
    return (out / BUNDLES / member.name / bundle.MANIFEST).exists()


def _outcome(out: Path, member: Member, why: str = "") -> Outcome:
    directory = out / RUNS / member.name
    if not _finished(out, member):
        return _outcome_of(member, "failed" if why else "unfinished", why)
    described = record.read_run(directory)
    result = record.read_result(directory, described)
    shipped = result.shipped
    losses = [
        epoch.figures["search_loss"]
        for epoch in record.read_history(directory, described)
        if "search_loss" in epoch.figures
    ]
    outcome = msgspec.structs.replace(
        _outcome_of(member, "finished", why),
        metric=result.metric,
        score=shipped.score,
        score_error=shipped.score_error,
        predicted=shipped.predicted,
        also=load_architecture(directory / record.ARCHITECTURE).also if described.also else (),
        macs=shipped.macs,
        search_loss=losses[-1] if losses else None,
    )
    if not _exported(out, member):
        return outcome
    network = bundle.load(out / BUNDLES / member.name).manifest.shipped
    if network.measured is None:
        return msgspec.structs.replace(outcome, why=network.not_measured)
    measured = network.measured
    return msgspec.structs.replace(
        outcome, measured_us=measured.median_us, low_us=measured.low_us, high_us=measured.high_us
    )


def _outcome_of(member: Member, status: Status, why: str) -> Outcome:
    return Outcome(
        name=member.name,
        seed=member.seed,
        budget=member.budget,
        settings=member.settings,
        status=status,
        why=why,
    )


def outcomes(directory: Path) -> list[Outcome]:
    """Return the outcome of every run of a sweep, with the preferred runs and the Pareto front marked.

    Raises:
        SearchError: the directory is not a sweep, or a file of a run is damaged.
        DeployError: a bundle is damaged.
    """
    return _with_verdicts([_outcome(directory, member) for member in read(directory).members])


def _with_verdicts(outcomes: Sequence[Outcome]) -> list[Outcome]:
    least: dict[tuple[object, ...], float] = {}
    for row in outcomes:
        if row.search_loss is not None:
            least[_all_but_lambda(row)] = min(row.search_loss, least.get(_all_but_lambda(row), row.search_loss))
    rows = [
        msgspec.structs.replace(row, preferred=row.search_loss == least.get(_all_but_lambda(row), row.search_loss))
        for row in outcomes
    ]
    return [msgspec.structs.replace(row, front=_on_front(row, rows)) for row in rows]


def _all_but_lambda(row: Outcome) -> tuple[object, ...]:
    return row.seed, row.budget, tuple(item for item in row.settings.items() if item[0] != "lam")


def _on_front(row: Outcome, rows: Sequence[Outcome]) -> bool:
    """Return whether no run of equal or lower latency scores better.

    Measured latencies are not compared with predicted ones.
    """
    if row.latency_us is None or row.gain is None or not row.preferred:
        return False
    for other in rows:
        alike = other.preferred and (other.measured_us is None) == (row.measured_us is None)
        if alike and other.gain is not None and other.latency_us is not None:
            better = (other.gain, -other.latency_us) != (row.gain, -row.latency_us)
            if better and other.gain >= row.gain and other.latency_us <= row.latency_us:
                return False
    return True


def best(directory: Path, budget_us: float) -> Outcome:
    """Return the best preferred run whose latency, at the upper end of its interval, is within a budget.

    Raises:
        SearchError: no run is within the budget; names the fastest.
    """
    candidates = [
        row for row in outcomes(directory) if row.preferred and row.gain is not None and row.at_most_us is not None
    ]
    within = [row for row in candidates if row.at_most_us is not None and row.at_most_us <= budget_us]
    if within:
        return max(within, key=lambda row: (row.gain or 0.0, -(row.at_most_us or 0.0)))
    if not candidates:
        raise SearchError(f"no run of {directory} has a latency: give the sweep a --table")
    fastest = min(candidates, key=lambda row: row.at_most_us or 0.0)
    raise SearchError(
        f"no run of {directory} is within {budget_us / 1000:g} ms: the fastest, {fastest.name}, takes up to "
        f"{(fastest.at_most_us or 0.0) / 1000:.3g} ms; sweep lower budgets"
    )


def further_devices(rows: Sequence[Outcome]) -> tuple[OtherDevice, ...]:
    """Return the further devices of a sweep, read from its first finished run; empty before that."""
    return next((row.also for row in rows if row.also), ())


def predictions_elsewhere(row: Outcome, devices: int) -> list[Latency | None]:
    """Return the prediction of a run for each further device of its sweep; None if the run is unfinished."""
    return [device.predicted for device in row.also] or [None] * devices


def write_results(directory: Path, rows: Sequence[Outcome]) -> None:
    """Write the table of runs as JSON and as CSV."""
    write_atomically(directory / JSON, msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    plain = [field for field in Outcome.__struct_fields__ if field not in ("settings", "predicted", "also")]
    devices = further_devices(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, "predicted_us", *(f"predicted_us on {device.name}" for device in devices), *names])
    for row in rows:
        values = [
            "" if (value := getattr(row, field)) is None else value.name if isinstance(value, Metric) else value
            for field in plain
        ]
        predicted = [
            prediction.us if prediction else ""
            for prediction in (row.predicted, *predictions_elsewhere(row, len(devices)))
        ]
        writer.writerow([*values, *predicted, *(row.settings.get(name, "") for name in names)])
    write_atomically(directory / CSV, text.getvalue().encode())
