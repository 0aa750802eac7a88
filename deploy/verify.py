"""Verify a bundle: every hash, and all outputs and latencies that this machine can check."""

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from deploy import bundle, engine, graph, handout, precision
from deploy.bundle import Bundle, ChangedManifest, Manifest
from deploy.engine import Running
from deploy.errors import BundleError, DeployError
from deploy.samples import Samples, Tensors
from deploy.shapes import ENDS, shapes_at
from deploy.start import running_bundle
from deploy.validate import RunnableForm, Verdict, judge_latency, validate_forms
from latency import LatencyError, Measurement, Protocol, RunFailed, distribution
from latency.device import first_difference
from latency.measure import median_interval, summarize
from latency.units import interval, microseconds, ms_from_us, s_from_ms

MAX_TIMING_MS = 600_000
"""Maximum duration of a protocol, since a manifest may ask for an unintended one."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One check."""

    name: str
    """a file of the bundle, or the subject of the check"""
    verdict: Verdict | Literal["unsure"]
    detail: str = ""
    """numbers, or the reason"""


class Verification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Result of `verify`."""

    directory: str
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """The failed checks, without those that were not run or are unsure."""
        return [check for check in self.checks if check.verdict == "failed"]


def verify(directory: str | Path, *, on_step: Callable[[str], None] = lambda _: None) -> Verification:
    """Hash every file again, run the network on the stored samples, and time it if the device is that of the manifest.

    Args:
        directory: the bundle.
        on_step: called with the name of each step as it begins, and with the progress of the measurement.

    Raises:
        BundleError: the directory is not a bundle, or its manifest cannot be read.
    """
    try:
        shipped = bundle.load(directory)
    except ChangedManifest as error:
        # Its content is unreliable, so nothing else is compared with it.
        return Verification(
            directory=str(directory), checks=(Check(name=bundle.MANIFEST, verdict="failed", detail=error.how),)
        )
    problems = bundle.check_files(shipped)
    on_step("files")
    checks = [Check(name=bundle.MANIFEST, verdict="passed"), *_files(shipped.manifest, problems)]
    checks += [*_written(shipped, problems), *_half(shipped, problems), *_recorded(shipped.manifest)]
    ends = ("", *ENDS) if shipped.manifest.spans else ("",)
    references = {end: _reference(shipped, problems, end) for end in ends}
    usual, _ = references[""]
    with _start(shipped, usual and usual[0].call(0)) as started:
        on_step("outputs")
        for end, (kept, why) in references.items():
            checks += why if kept is None else _outputs(shipped, problems, started, end, *kept)
        on_step("measure")
        checks.append(_latency(shipped.manifest, started, on_step))
    return Verification(directory=str(directory), checks=tuple(checks))


def _files(manifest: Manifest, problems: Mapping[str, str]) -> Iterator[Check]:
    for name in sorted({*manifest.files, *problems}):
        yield Check(name=name, verdict="failed" if name in problems else "passed", detail=problems.get(name, ""))
    broken = [link.name for link in manifest.chain if link.file and manifest.files.get(link.file) != link.sha256]
    yield Check(
        name="chain of hashes",
        verdict="failed" if broken else "passed",
        detail=f"broken at {broken[0]}" if broken else "",
    )


def _written(shipped: Bundle, problems: Mapping[str, str]) -> Iterator[Check]:
    """Check that the script and README match what this version of Lathe writes, not only their hashes."""
    manifest = shipped.manifest
    names = [name for name in handout.NAMES if name in manifest.files and name not in problems]
    there, here = manifest.versions.get("lathe", "that is not recorded"), distribution.version()
    if there != here:
        yield Check(
            name="handout", verdict="not run", detail=f"written by Lathe {there}, this is {here}: compared by hash only"
        )
        return
    wanted = handout.files(manifest, set(manifest.files) - set(handout.NAMES))
    wrong = [name for name in names if shipped.read(name) != wanted[name]]
    missing = [name for name in handout.NAMES if name not in manifest.files]
    detail = (
        f"{', '.join(wrong + missing)}: not what Lathe {here} writes"
        if wrong or missing
        else f"as Lathe {here} writes them"
    )
    yield Check(name="handout", verdict="failed" if wrong or missing else "passed", detail=detail)


@contextlib.contextmanager
def _start(shipped: Bundle, timed_on: Mapping[str, np.ndarray] | None) -> Iterator[Running | str]:
    """Start the shipped network; yield why if it cannot run."""
    with contextlib.ExitStack() as stack:
        try:
            started = stack.enter_context(running_bundle(shipped, timed_on))
        except BundleError as error:
            started = str(error)
        yield started


def _reference(
    shipped: Bundle, problems: Mapping[str, str], end: str
) -> tuple[tuple[Samples, Tensors] | None, list[Check]]:
    """Return the kept samples with their outputs, or checks that say why there are none."""
    if bundle.REFERENCE in problems:
        return None, [
            Check(name="outputs", verdict="not run", detail=f"{bundle.REFERENCE} {problems[bundle.REFERENCE]}")
        ]
    try:
        return bundle.read_reference(shipped, end), []
    except (DeployError, LatencyError) as error:
        return None, [Check(name="outputs", verdict="failed", detail=str(error))]


def _outputs(
    shipped: Bundle, problems: Mapping[str, str], started: Running | str, end: str, samples: Samples, reference: Tensors
) -> Iterator[Check]:
    def run(file: str, runner: Callable[[bytes], Callable[[Tensors], Tensors]]) -> Callable[[Tensors], Tensors] | str:
        return f"{file} {problems[file]}" if file in problems else runner(shipped.read(file))

    full, half, built = (
        ("int8",) * 3
        if shipped.manifest.int8_nodes
        else ("fp32", shipped.manifest.precision, shipped.manifest.precision)
    )
    rungs = [RunnableForm("reference", full, lambda _: reference)]
    if bundle.ONNX in shipped.manifest.files:
        runner = partial(engine.int8_runner, target=shipped.manifest.target) if full == "int8" else engine.onnx_runner
        rungs.append(RunnableForm("onnx", full, run(bundle.ONNX, runner), engine.SATURATES if full == "int8" else ""))
    if file := shipped.manifest.half:
        rungs.append(RunnableForm(f"onnx-{shipped.manifest.precision}", half, run(file, engine.half_runner)))
    if bundle.ENGINE in shipped.manifest.files:
        rungs.append(RunnableForm("engine", built, started if isinstance(started, str) else started.outputs))
    try:
        steps = validate_forms([rung.at(end) if end else rung for rung in rungs], samples)[0][1:]
    except (DeployError, LatencyError) as error:
        yield Check(name="outputs", verdict="failed", detail=str(error))
        return
    for step in steps:
        numbers = f"differs by {step.worst.relative:.1e} of the scale, limit {step.limit:.0e}" if step.worst else ""
        detail = step.reason or "; ".join(filter(None, (numbers, step.note)))
        yield Check(name=f"outputs of {step.name}", verdict=step.verdict, detail=detail)


def _half(shipped: Bundle, problems: Mapping[str, str]) -> Iterator[Check]:
    """Check that the half-precision network follows from the float32 one and the certificate."""
    if shipped.manifest.certificate is None:
        return
    file = shipped.manifest.half
    if broken := [name for name in (bundle.ONNX, file) if name in problems]:
        yield Check(name="certificate", verdict="not run", detail=f"{broken[0]} {problems[broken[0]]}")
        return
    installed = {"lathe": distribution.version(), "onnx": importlib.metadata.version("onnx")}
    differing = [name for name, version in installed.items() if shipped.manifest.versions.get(name) != version]
    try:
        full = shipped.read(bundle.ONNX)
        half = precision.reproduce(
            graph.freeze(full, shapes_at(shipped.manifest.spans, "opt")),
            shipped.manifest.certificate,
            shipped.manifest.io,
        )
        same = graph.thaw(half, full) == shipped.read(file)
    except DeployError as error:
        yield Check(name="certificate", verdict="failed", detail=str(error))
        return
    if same:
        yield Check(
            name="certificate",
            verdict="passed",
            detail=f"{bundle.ONNX} in {shipped.manifest.precision} by it is {file}",
        )
    elif differing:
        there = shipped.manifest.versions.get(differing[0], "that is not recorded")
        detail = f"{file} was written with {differing[0]} {there}, here is {installed[differing[0]]}"
        yield Check(name="certificate", verdict="not run", detail=detail)
    else:
        yield Check(
            name="certificate",
            verdict="failed",
            detail=f"{bundle.ONNX} in {shipped.manifest.precision} by it is not {file}",
        )


def _recorded(manifest: Manifest) -> Iterator[Check]:
    """Check that the manifest's verdicts follow from its numbers, and list what cannot be checked."""
    wrong, doubtful = [], []
    for step in manifest.validation:
        near = all(agreement.within(step.limit) for agreement in (*step.previous.values(), *step.first.values()))
        if step.first and (step.verdict == "passed") != near:
            wrong.append(f"{step.name} {step.precision} is {step.verdict}")
    networks = {"shipped": manifest.shipped, "unpruned": manifest.unpruned}
    for name, network in networks.items():
        if network is None or network.measured is None:
            continue
        now = summarize(network.measured.samples_us, manifest.protocol)
        if not _follows(network.measured, now, manifest.protocol):
            wrong.append(f"the latency of the {name} network is not that of its samples")
        elif network.measured.status == "ok" and now.reason:
            doubtful.append(
                f"the latency of the {name} network is recorded as ok, but {now.reason}; export again to measure it "
                "again"
            )
    measured = manifest.shipped.measured
    budget = "not run" if measured is None else judge_latency(measured.low_us, measured.high_us, manifest.budget_us)
    if budget != manifest.budget_verdict:
        wrong.append(f"the budget is {manifest.budget_verdict}, by its numbers {budget}")
    detail = "; ".join(wrong or doubtful) or "every verdict and latency follows from its numbers"
    yield Check(
        name="recorded verdicts", verdict="failed" if wrong else "unsure" if doubtful else "passed", detail=detail
    )
    forms = [link.name for link in manifest.chain if not link.file]
    if forms:
        detail = f"{', '.join(forms)}: their weights are not in the bundle; only what was made from them is"
        yield Check(name="earlier forms", verdict="not run", detail=detail)
    if manifest.metric and manifest.shipped.score:
        scored = manifest.metric.figure(manifest.shipped.score)
        detail = f"{scored} of {manifest.samples} samples when exported; they are not in the bundle"
        yield Check(name=manifest.metric.name, verdict="not run", detail=detail)


def _follows(measured: Measurement, now: Measurement, protocol: Protocol) -> bool:
    """Return whether a measurement follows from its samples, which this version summarises as `now`.

    Earlier versions record no percentiles and no reason, and judge by other rules whether samples are stationary and
    unimodal. If they are, the interval is that of the median; otherwise it covers at least that.
    """
    low_us, high_us = (round(end, 3) for end in median_interval(measured.samples_us, protocol.confidence))
    if measured.status == "ok":
        judged = not measured.reason and (measured.low_us, measured.high_us) == (low_us, high_us)
    else:
        least_us, most_us = min(measured.samples_us), max(measured.samples_us)
        spans = least_us <= measured.low_us <= low_us and high_us <= measured.high_us <= most_us
        judged = spans and bool(measured.reason or now.reason)
    names = ("low_us", "high_us", "status", "reason")
    same = msgspec.structs.replace(measured, **{name: getattr(now, name) for name in names})
    return judged and same in (now, msgspec.structs.replace(now, p90_us=None, p99_us=None))


def _latency(manifest: Manifest, started: Running | str, on_step: Callable[[str], None]) -> Check:
    if isinstance(started, str):
        return Check(name="latency", verdict="not run", detail=started)
    recorded = manifest.shipped.measured
    if manifest.device is None or recorded is None:
        return Check(
            name="latency",
            verdict="not run",
            detail="none was measured when the bundle was made; export again on its target",
        )
    for there, here in ((manifest.device, started.device), (manifest.runtime, started.runtime)):
        if difference := first_difference(there, here):
            field, was, now = difference
            what = f"measured on another {type(there).__name__.lower()}"
            return Check(name="latency", verdict="not run", detail=f"{what}: {field} {was!r}, here {now!r}")
    asked_ms = _asked_ms(manifest.protocol, recorded.median_us)
    if asked_ms > MAX_TIMING_MS:
        detail = (
            f"its protocol {manifest.protocol.name!r} takes {s_from_ms(asked_ms):.0f} s, at most "
            f"{s_from_ms(MAX_TIMING_MS):.0f} are spent"
        )
        return Check(name="latency", verdict="not run", detail=detail)
    try:
        now = engine.measure_in_turns({"shipped": started.timed}, manifest.protocol, on_step)["shipped"]
    except RunFailed as error:
        return Check(name="latency", verdict="failed", detail=str(error))
    verdict = judge_latency(now.low_us, now.high_us, manifest.budget_us)
    numbers = f"{interval(now)}, {microseconds(recorded.median_us)} when exported"
    if manifest.budget_us is None:
        return Check(name="latency", verdict="passed", detail=f"{numbers}; there is no budget")
    detail = f"{numbers}; budget {microseconds(manifest.budget_us)}: {verdict}"
    match verdict:
        case "met":
            return Check(name="latency", verdict="passed", detail=detail)
        case "missed":
            return Check(name="latency", verdict="failed", detail=detail)
        case _:
            return Check(name="latency", verdict="unsure", detail=detail)


def _asked_ms(protocol: Protocol, median_us: float) -> float:
    """Return the longest duration of `measure_in_turns` with a protocol."""
    sampling_ms = max(protocol.max_time_ms, protocol.min_samples * ms_from_us(median_us))
    return engine.MAX_ROUNDS * (protocol.warmup_ms + sampling_ms / engine.MIN_ROUNDS) + sampling_ms
