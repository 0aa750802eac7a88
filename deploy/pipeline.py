"""Turn a network into a directory that ships: fuse, squeeze, lower, build, validate every step, and time."""

import datetime
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from deploy import bundle, engine, graph, handout, lowering
from deploy.builds import Candidate, choose_fastest
from deploy.bundle import Bundle, EngineBuilds, Link, Manifest, NetworkSummary, Target, sha256
from deploy.certificate import Certificate
from deploy.errors import DeployError
from deploy.evidence import (
    NO_EVIDENCE,
    PROOF_SAMPLES,
    REFERENCE_SAMPLES,
    Data,
    Evidence,
    at_ends,
    data_of,
    kept_reference,
    require_classes,
    rounded_to,
    sample_warnings,
)
from deploy.explanation import Explanation
from deploy.forms import Forms, LoweredNetwork, Source, source_of
from deploy.inspection import Inspection, inspect
from deploy.metric import Figure
from deploy.options import BUILD, FORM, Build, Form, Plan, plan_export
from deploy.samples import Tensors, TensorSpec, inputs_of, outputs_of
from deploy.shapes import shapes_at
from deploy.validate import RunnableForm, Step, judge_latency, validate_forms
from latency import Device, Latency, Measurement, Protocol, RunFailed, distribution
from latency.backends.engines import EngineSpec, TimingCache
from latency.protocol import DEFAULT
from reparam import Counts

OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a bundle keeps besides what its export computes.

    Attributes:
        classes: names of the outputs.
        preprocessing: preprocessing from an image file to the input, for users of the bundle.
        provenance: hashes and facts for the manifest.
        attachments: files to keep, by name; architecture.json starts the chain of hashes, and the report shows it and
            history.jsonl.
        predicted: latency of the network predicted by a table.
        predicted_baseline: predicted latency of the unpruned network.
    """

    classes: Sequence[str] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    attachments: Mapping[str, bytes] = field(default_factory=dict)
    predicted: Latency | None = None
    predicted_baseline: Latency | None = None

    def __post_init__(self) -> None:
        for name in self.attachments:
            if name in _TAKEN or Path(name).name != name or name.startswith("."):
                raise DeployError(f"attachment {name!r}: a plain file name, none of {', '.join(sorted(_TAKEN))}")


_TAKEN = frozenset(
    {
        bundle.MANIFEST,
        bundle.ONNX,
        *bundle.HALF.values(),
        bundle.ENGINE,
        bundle.REFERENCE,
        bundle.TIMING_CACHE,
        *handout.NAMES,
    }
)
_NO_RECORD = Record()


def export(
    model: nn.Module | bytes,
    example_input: object = None,
    *,
    target: str,
    out: str | Path,
    form: Form = FORM,
    build: Build = BUILD,
    evidence: Evidence = NO_EVIDENCE,
    record: Record = _NO_RECORD,
    budget_ms: float | None = None,
    protocol: Protocol = DEFAULT,
    threads: int = 1,
    on_step: OnStep = lambda _: None,
) -> Bundle:
    """Write the bundle of a network.

    It is written atomically at the end, even if verdicts fail: check `Manifest.failures`.

    Args:
        model: a module in its trained form, with branches and masks, or a serialised ONNX model.
        example_input: a valid input of the shapes and types that ship: a tensor, a tuple of arguments or a mapping of
            keyword arguments, with tensors in tuples, lists, mappings and dataclasses; not needed for an ONNX model,
            which declares its inputs.
        target: runtime to ship for: onnxruntime, tensorrt or tensorrt-rtx.
        out: output directory: absent, empty, or an older bundle, which is replaced.
        form: precision, shapes and other options of the form that ships.
        build: options of the engine's build.
        evidence: samples, labels and other things that the network is judged by.
        record: names, facts and files that the bundle keeps.
        budget_ms: latency budget of one batch.
        protocol: timing protocol.
        threads: number of threads of ONNX Runtime.
        on_step: called with the name of each step as it begins, and with the builder's progress.

    Raises:
        DeployError: an argument is invalid, the network cannot be lowered, or `out` holds something else.
        ReparamError: the network cannot be fused or squeezed.
        LatencyError: the engine cannot be built.
    """
    out = Path(out)
    bundle.refuse_occupied(out)
    planned = plan_export(target, form=form, build=build, threads=threads, protocol=protocol, budget_ms=budget_ms)
    source = source_of(model, example_input, planned)
    data = data_of(evidence, source.inputs, source.examples, form.io)
    run = _ExportJob(plan=planned, source=source, data=data, record=record, on_step=on_step)
    networks = run.networks(evidence.baseline, example_input)
    engines = run.engines(networks)
    verdicts = run.judge(networks, engines)
    manifest = run.manifest(networks, engines, verdicts)
    files = run.files(networks, engines, verdicts)
    on_step("write")
    return bundle.write_bundle(out, manifest, files | handout.files(manifest, set(files)))


@dataclass(frozen=True, kw_only=True)
class _Networks:
    """The network and the unpruned one, lowered."""

    shipped: Forms
    unpruned: LoweredNetwork | None
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    int8_nodes: int
    explanation: Explanation | None


@dataclass(frozen=True, kw_only=True)
class _Engines:
    """Engines of both networks, empty if the target has none, and how the shipped one was built."""

    shipped: bytes
    unpruned: bytes
    cache: TimingCache | None
    builds: EngineBuilds


@dataclass(frozen=True)
class _Timing:
    """Latencies in turns, or why they are not known."""

    device: Device | None
    measured: Mapping[str, Measurement]
    reason: str = ""

    def of(self, name: str, counts: Counts, score: Figure | None, predicted: Latency | None) -> NetworkSummary:
        return NetworkSummary(
            params=counts.params,
            macs=counts.macs,
            score=score,
            predicted=predicted,
            measured=self.measured.get(name),
            not_measured=self.reason,
        )


@dataclass(frozen=True, kw_only=True)
class _Verdicts:
    """What validation and timing tell."""

    steps: Sequence[Step]
    references: Mapping[str, tuple[Tensors, Tensors]]
    inspection: Inspection | None
    timing: _Timing


@dataclass(frozen=True, kw_only=True)
class _ExportJob:
    """One export: its inputs, and its stages in their order."""

    plan: Plan
    source: Source
    data: Data
    record: Record
    on_step: OnStep

    def networks(self, baseline: nn.Module | None, example_input: object) -> _Networks:
        """Fuse, squeeze and lower the network, and lower the unpruned one."""
        plan, data = self.plan, self.data
        self.on_step("fuse, squeeze and lower")
        forms = self.source.forms(plan, data.samples, self.record.attachments.get("architecture.json"))
        shipped = graph.parse_model(forms.usual(forms.shipped))
        require_classes(data.labels, self.record.classes, self.source.inputs, outputs_of(shipped))
        unpruned = None
        if baseline is not None:
            unpruned = self.source.baseline(baseline, example_input, plan, data.samples)
        explanation = None
        if plan.form.explain:
            self.on_step("explain FP16")
            explanation = forms.explanation(data.samples, plan.threads)
        return _Networks(
            shipped=forms,
            unpruned=unpruned,
            inputs=inputs_of(shipped),
            outputs=outputs_of(shipped),
            int8_nodes=len(graph.quantized(shipped.graph)[1]),
            explanation=explanation,
        )

    def engines(self, networks: _Networks) -> _Engines:
        """Build the engines; of several builds of the shipped network, keep the fastest."""
        plan, forms = self.plan, networks.shipped
        self.on_step(f"build for {plan.target}")
        candidates = [self._built(forms, number) for number in range(1, plan.build.count + 1)]
        chosen, builds = choose_fastest(candidates, functools.partial(self._start, forms), plan.protocol)
        unpruned = b""
        if networks.unpruned:
            say = self._saying("build the unpruned network")
            unpruned = engine.build(networks.unpruned.shipped, plan.target, plan.spec, chosen.cache, say)
        return _Engines(shipped=chosen.engine, unpruned=unpruned, cache=chosen.cache, builds=builds)

    def judge(self, networks: _Networks, engines: _Engines) -> _Verdicts:
        """Validate every form of the network against the one before, and time it in turns with the unpruned one."""
        forms, samples, io = networks.shipped, self.data.samples, self.plan.form.io
        with ExitStack() as stack:
            running = {"shipped": stack.enter_context(self._start(forms, engines.shipped))}
            if networks.unpruned:
                running["unpruned"] = stack.enter_context(self._start(networks.unpruned, engines.unpruned))
            self.on_step("validate")
            rungs = list(forms.rungs)
            if engines.shipped:
                started = running["shipped"]
                arithmetic = "int8" if networks.int8_nodes else self.plan.precision
                rungs.append(
                    RunnableForm("engine", arithmetic, started if isinstance(started, str) else started.outputs)
                )
            steps, outputs = validate_forms(rungs, samples, self.data.quality)
            references = {"": kept_reference(samples.first(REFERENCE_SAMPLES), outputs)}
            for end, there in at_ends(samples.first(PROOF_SAMPLES), self.source.inputs, forms.spans):
                more, outputs = validate_forms([rung.at(end) for rung in rungs], rounded_to(there, io))
                steps += more
                references[end] = kept_reference(there.first(1), outputs)
            inspection = _inspection(running["shipped"], forms.certificate) if engines.shipped else None
            self.on_step("measure")
            timing = _time(running, self.plan.protocol, self.on_step)
        return _Verdicts(steps=steps, references=references, inspection=inspection, timing=timing)

    def files(self, networks: _Networks, engines: _Engines, verdicts: _Verdicts) -> dict[str, bytes]:
        """Return the files of the bundle but those that explain it."""
        forms = networks.shipped
        files = {bundle.ONNX: forms.onnx, bundle.REFERENCE: bundle.reference_file(verdicts.references)}
        files |= self.record.attachments
        if forms.onnx_half:
            files[bundle.HALF[self.plan.precision]] = forms.onnx_half
        if engines.shipped:
            files[bundle.ENGINE] = engines.shipped
        if engines.cache and engines.cache.data:
            files[bundle.TIMING_CACHE] = engines.cache.data
        return files

    def manifest(self, networks: _Networks, engines: _Engines, verdicts: _Verdicts) -> Manifest:
        """Return the manifest, without the hashes of files."""
        plan, data, record, forms, timing = self.plan, self.data, self.record, networks.shipped, verdicts.timing
        score = next((step.score for step in reversed(verdicts.steps) if step.score is not None), None)
        shipped = timing.of("shipped", forms.counts, score, record.predicted)
        baseline, measured = None, shipped.measured
        if unpruned := networks.unpruned:
            score = unpruned.score(data.samples, data.quality, plan.threads)
            baseline = timing.of("unpruned", unpruned.counts, score, record.predicted_baseline)
        verdict = "not run" if measured is None else judge_latency(measured.low_us, measured.high_us, plan.budget_us)
        return Manifest(
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            target=plan.target,
            precision=plan.precision,
            io=plan.form.io,
            int8_nodes=networks.int8_nodes,
            inputs={value.name: value.shape for value in self.source.inputs},
            outputs={value.name: value.shape for value in networks.outputs},
            spans=dict(forms.spans),
            output_spans=forms.output_spans(),
            dtypes={value.name: value.dtype for value in (*networks.inputs, *networks.outputs)},
            samples=data.samples.count,
            samples_from="random" if data.drawn else "given",
            metric=data.quality and data.quality.metric,
            classes=tuple(record.classes),
            preprocessing=dict(record.preprocessing),
            shipped=shipped,
            unpruned=baseline,
            budget_us=plan.budget_us,
            budget_verdict=verdict,
            layers=forms.layers,
            validation=(*forms.proofs, *verdicts.steps),
            device=timing.device,
            runtime=plan.runtime,
            protocol=plan.protocol,
            build=msgspec.to_builtins(plan.spec) if engines.shipped else {},
            builds=engines.builds if plan.build.count > 1 else None,
            compute_capabilities=_capabilities(plan.target, plan.spec, timing.device) if engines.shipped else (),
            certificate=forms.certificate,
            explanation=networks.explanation,
            inspection=verdicts.inspection,
            lowering=lowering.LOWERING_VERSION,
            versions=_versions(),
            provenance={**record.provenance, **forms.facts, **sample_warnings(data.samples, record.preprocessing)},
            chain=_chain(forms, engines),
            files={},
        )

    def _built(self, forms: Forms, number: int) -> Candidate:
        """Run one of several builds, each with the same initial timing cache."""
        plan, count = self.plan, self.plan.build.count
        words = f"build for {plan.target}" if count == 1 else f"build {number} of {count} for {plan.target}"
        cache = engine.timing_cache_of(plan.target, plan.build.timing_cache)
        built = engine.build(forms.shipped, plan.target, plan.spec, cache, self._saying(words), forms.spans)
        return Candidate(built, cache)

    def _start(self, lowered: LoweredNetwork, built: bytes) -> AbstractContextManager[engine.Running | str]:
        """Start an engine of a network, or the network itself if its target has no engines."""
        return engine.running(
            self.plan.target,
            lowered.shipped,
            built,
            threads=self.plan.threads,
            spec=self.plan.spec,
            timed_on=self.data.samples.call(0),
            usual=shapes_at(lowered.spans, "opt"),
        )

    def _saying(self, what: str) -> OnStep:
        return lambda now: self.on_step(f"{what}: {now}")


def _chain(forms: Forms, engines: _Engines) -> tuple[Link, ...]:
    """Return the hashes of all forms up to the engine."""
    if not engines.shipped:
        return forms.chain
    last = forms.chain[-1].name
    return (*forms.chain, Link(name="engine", sha256=sha256(engines.shipped), made_from=last, file=bundle.ENGINE))


def _inspection(started: engine.Running | str, certificate: Certificate | None) -> Inspection | None:
    """Return the layers that run in FP32 in the engine of a narrow network; known only for a loaded engine."""
    if certificate is None:
        return None
    if isinstance(started, str) or started.information is None:
        return Inspection(layers=0, full=(), reason=str(started))
    return inspect(started.information(), certificate)


def _time(running: Mapping[str, engine.Running | str], protocol: Protocol, on_step: OnStep) -> _Timing:
    for started in running.values():
        if isinstance(started, str):
            return _Timing(None, {}, started)
    ready = {name: started for name, started in running.items() if not isinstance(started, str)}
    device = ready["shipped"].device
    try:
        return _Timing(
            device, engine.measure_in_turns({name: started.timed for name, started in ready.items()}, protocol, on_step)
        )
    except RunFailed as error:
        return _Timing(device, {}, str(error))


def _capabilities(target: Target, spec: EngineSpec, device: Device | None) -> tuple[str, ...]:
    """Return the compute capabilities that an engine is for; empty if the builder chose them."""
    here = () if device is None else (device.compute_capability,)
    if target == "tensorrt":
        return () if spec.hardware_compatible else here
    return tuple(
        dict.fromkeys(
            name for known in spec.compute_capabilities for name in (here if known == "current" else (known,))
        )
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "lathe": distribution.version(), **versions}
