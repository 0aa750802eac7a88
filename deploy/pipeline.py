"""Turn a network into a directory that ships: fuse, squeeze, lower, build, validate every step, and time."""

import copy
import dataclasses
import datetime
import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.torch
import torch
from torch import nn

from deploy import bundle, cleaning, engine, graph, handout, lowering
from deploy.adapter import Adapter, adapt, require_deterministic
from deploy.builds import Candidate, choose
from deploy.bundle import Bundle, Layer, Link, Manifest, Network, Target, sha256
from deploy.certificate import Certificate
from deploy.cleaning import Cleaned
from deploy.errors import DeployError
from deploy.explain import explain
from deploy.explanation import Explanation
from deploy.form import BUILD, FORM, Build, Form
from deploy.inspection import Inspection, inspect
from deploy.metric import Figure, Quality
from deploy.narrow import NARROW
from deploy.precision import certified
from deploy.samples import Samples, Tensors, TensorSpec, inputs_of, outputs_of, random_samples, resized, samples_of
from deploy.shapes import ENDS, POINTS, Shapes, Span, at
from deploy.validate import CannotRun, Labels, Rung, Step, accuracy, climb, judge_latency
from latency import Device, Latency, Measurement, Protocol, RunFailed, distribution
from latency.backends.tensorrt import EngineSpec
from latency.protocol import DEFAULT
from latency.units import ms_from_us, us_from_ms
from latency.values import MAX_US
from reparam import ChannelMask, Counts, count, fuse, fuse_exactly, squeeze
from reparam.structure import map_tensors

CERTIFIED_SAMPLES = 128
"""Maximum number of samples for activation ranges."""
PROOF_SAMPLES = 32
"""Maximum number of samples on which rewrites are proved in float64 and FP16 is explained."""
REFERENCE_SAMPLES = 8
"""Number of samples kept in the bundle for `verify` with the trained network's outputs; at least one call."""


def export(
    model: nn.Module | bytes,
    example_input: Any = None,
    *,
    target: str,
    out: str | Path,
    form: Form = FORM,
    build: Build = BUILD,
    samples: Any = None,
    labels: Any = None,
    quality: Quality | None = None,
    baseline: nn.Module | None = None,
    budget_ms: float | None = None,
    protocol: Protocol = DEFAULT,
    threads: int = 1,
    predicted: Latency | None = None,
    predicted_baseline: Latency | None = None,
    classes: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    provenance: Mapping[str, str] | None = None,
    attachments: Mapping[str, bytes] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
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
        samples: real, preprocessed inputs: samples joined along the first dimension, or whole inputs, [calls, *shape];
            by name if there are several. By default, seeded random samples, with the example's values for inputs that
            are not floating-point.
        labels: class index of each sample.
        quality: measure of the outputs' quality for networks that do not classify; instead of labels.
        baseline: the unpruned network, timed in turns with the shipped one.
        budget_ms: latency budget of one batch.
        protocol: timing protocol.
        threads: number of threads of ONNX Runtime.
        predicted: latency of the network predicted by a table.
        predicted_baseline: predicted latency of the unpruned network.
        classes: names of the outputs.
        preprocessing: preprocessing from an image file to the input; kept for users of the bundle.
        provenance: hashes and facts to keep in the manifest.
        attachments: files to keep in the bundle, by name; architecture.json starts the chain of hashes, and the report
            shows it and history.jsonl.
        on_step: called with the name of each step as it begins, and with the builder's progress.

    Raises:
        DeployError: an argument is invalid, the network cannot be lowered, or `out` holds something else.
        ReparamError: the network cannot be fused or squeezed.
        LatencyError: the engine cannot be built.
    """
    out = Path(out)
    bundle.refuse_occupied(out)
    target = engine.target_of(target)
    precision, form = engine.complete(form, target)
    if budget_ms is not None and not 0 < budget_ms <= ms_from_us(MAX_US):
        raise DeployError(
            f"budget_ms must be above 0 and at most {ms_from_us(MAX_US):g} milliseconds, found {budget_ms}"
        )
    if threads < 1:
        raise DeployError(f"threads must be at least 1, found {threads}")
    budget_us = None if budget_ms is None else us_from_ms(budget_ms)
    engine.require_options(target, build.spec, build.timing_cache, build.count)
    runtime = engine.runtime_of(target)
    spec = build.spec or EngineSpec()
    attachments = _attachments(attachments or {})
    source = _source(model, form.shapes, target)
    if isinstance(source, Cleaned):
        parsed = graph.parse(source.usual)
        lowering.require_deterministic(parsed)
        adapter, inputs = None, inputs_of(parsed)
    else:
        adapter = _adapter(source, example_input)
        inputs = adapter.inputs
    data, truth = _samples(samples, labels, inputs, adapter)
    data = _as_taken(data, form)
    if truth is not None:
        quality = accuracy(truth)

    on_step("fuse, squeeze and lower")
    if isinstance(source, Cleaned):
        network = _from_onnx(source, form, target, threads, data)
    else:
        assert adapter
        network = _from_module(adapter, form, threads, data, attachments.get("architecture.json"))
    shipped = graph.parse(network.usual(network.shipped))
    int8_nodes = len(graph.quantized(shipped.graph)[1])
    _require_fit(truth, classes, inputs, outputs_of(shipped))
    unpruned = None if baseline is None else _lower(_baseline(baseline, example_input, inputs), form, threads, data)
    if form.explain:
        on_step("explain FP16")
    explanation = _explanation(network, data, threads) if form.explain else None

    on_step(f"build for {target}")
    start = functools.partial(engine.running, target, threads=threads, spec=spec, timed_on=data.call(0))
    begin = functools.partial(start, network.shipped, usual=at(network.spans, "opt"))
    candidates = [_built(network, target, build, number, on_step) for number in range(1, build.count + 1)]
    chosen, several = choose(candidates, begin, protocol)
    built, cache = chosen.engine, chosen.cache
    say = functools.partial(_say, on_step, "build the unpruned network")
    built_unpruned = engine.build(unpruned.shipped, target, spec, cache, say) if unpruned else b""

    with ExitStack() as stack:
        running = {"shipped": stack.enter_context(begin(built))}
        if unpruned:
            running["unpruned"] = stack.enter_context(start(unpruned.shipped, built_unpruned))
        on_step("validate")
        rungs = list(network.rungs)
        if built:
            at_work = running["shipped"]
            rungs.append(
                Rung(
                    "engine",
                    "int8" if int8_nodes else precision,
                    at_work if isinstance(at_work, str) else at_work.outputs,
                )
            )
        steps, outputs = climb(rungs, data, quality)
        references = {"": _reference(data.first(REFERENCE_SAMPLES), outputs)}
        for end, there in _ends(data.first(PROOF_SAMPLES), inputs, network.spans):
            more, outputs = climb([rung.at(end) for rung in rungs], _as_taken(there, form))
            steps += more
            references[end] = _reference(there.first(1), outputs)
        inspection = _inspection(running["shipped"], network.certificate) if built else None
        on_step("measure")
        timing = _time(running, protocol, on_step)

    files = {
        bundle.ONNX: network.onnx,
        bundle.REFERENCE: bundle.reference(references),
        **attachments,
    }
    chain = list(network.chain)
    if network.onnx_half:
        files[bundle.HALF[precision]] = network.onnx_half
    if built:
        files[bundle.ENGINE] = built
        chain.append(Link(name="engine", sha256=sha256(built), made_from=chain[-1].name, file=bundle.ENGINE))
    if cache and cache.data:
        files[bundle.TIMING_CACHE] = cache.data
    facts = timing.of("shipped", network.counts, _last_score(steps), predicted)
    measured = facts.measured
    manifest = Manifest(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        target=target,
        precision=precision,
        io=form.io,
        int8_nodes=int8_nodes,
        inputs={value.name: value.shape for value in inputs},
        outputs={value.name: value.shape for value in outputs_of(shipped)},
        spans=dict(network.spans),
        output_spans=_output_spans(network),
        dtypes={value.name: value.dtype for value in (*inputs_of(shipped), *outputs_of(shipped))},
        samples=data.count,
        samples_from="random" if samples is None else "given",
        metric=quality and quality.metric,
        classes=tuple(classes),
        preprocessing=dict(preprocessing or {}),
        shipped=facts,
        unpruned=timing.of(
            "unpruned", unpruned.counts, _onnx_score(unpruned, data, quality, threads), predicted_baseline
        )
        if unpruned
        else None,
        budget_us=budget_us,
        budget_verdict="not run" if measured is None else judge_latency(measured.low_us, measured.high_us, budget_us),
        layers=network.layers,
        validation=(*network.proofs, *steps),
        device=timing.device,
        runtime=runtime,
        protocol=protocol,
        build=msgspec.to_builtins(spec) if built else {},
        builds=several if build.count > 1 else None,
        compute_capabilities=_capabilities(target, spec, timing.device) if built else (),
        certificate=network.certificate,
        explanation=explanation,
        inspection=inspection,
        lowering=lowering.LOWERING_VERSION,
        versions=_versions(),
        provenance={**(provenance or {}), **network.facts, **_doubts(data, preprocessing or {})},
        chain=tuple(chain),
        files={},
    )
    on_step("write")
    return bundle.write(out, manifest, files | handout.files(manifest, set(files)))


@dataclass(frozen=True, kw_only=True)
class _Lowered:
    """A network as ONNX."""

    onnx: bytes
    onnx_half: bytes  # empty if float32 ships
    counts: Counts
    certificate: Certificate | None = None

    @property
    def shipped(self) -> bytes:
        return self.onnx_half or self.onnx


@dataclass(frozen=True, kw_only=True)
class _Network(_Lowered):
    """A network as ONNX, and how it was made."""

    spans: Mapping[str, Span] = field(default_factory=dict)
    """spans of inputs with several shapes"""
    rungs: tuple[Rung, ...]
    chain: tuple[Link, ...]
    layers: tuple[Layer, ...] = ()
    proofs: tuple[Step, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """facts for the manifest's provenance"""

    def usual(self, model: bytes) -> bytes:
        """Return a form of the network with the usual input shapes."""
        return graph.freeze(model, at(self.spans, "opt"))


@dataclass(frozen=True)
class _Timing:
    device: Device | None
    measured: Mapping[str, Measurement]
    reason: str = ""

    def of(self, name: str, counts: Counts, score: Figure | None, predicted: Latency | None) -> Network:
        return Network(
            params=counts.params,
            macs=counts.macs,
            score=score,
            predicted=predicted,
            measured=self.measured.get(name),
            not_measured=self.reason,
        )


def _adapter(model: nn.Module, example_input: Any) -> Adapter:
    if example_input is None:
        raise DeployError("a module does not say the shape of its input: give example_input")
    adapter = adapt(model, example_input)
    require_deterministic(adapter)
    return adapter


def _output_spans(network: _Network) -> dict[str, Span]:
    if not network.spans:
        return {}
    ends = [outputs_of(graph.parse(graph.freeze(network.onnx, at(network.spans, point)))) for point in POINTS]
    spans = {low.name: Span(low.shape, usual.shape, high.shape) for low, usual, high in zip(*ends, strict=True)}
    return {name: span for name, span in spans.items() if not span.fixed}


def _from_module(adapter: Adapter, form: Form, threads: int, samples: Samples, architecture: bytes | None) -> _Network:
    # Rewritten in float64 and rounded once, like `fuse` and `squeeze` do with a float32 network, but with half the
    # work.
    fused, report = fuse_exactly(adapter.network, adapter.call.args, **adapter.call.kwargs)
    exact = {"trained": copy.deepcopy(adapter.network).double(), "fused": fused, "squeezed": _squeezed(fused, adapter)}
    forms = {name: copy.deepcopy(network).float() for name, network in exact.items()}
    lowered = _lower(adapter.of(forms["squeezed"]), form, threads, samples)
    proven = samples.first(PROOF_SAMPLES)
    proofs, _ = climb(
        [Rung(name, "fp64", adapter.of(network, torch.float64).run) for name, network in exact.items()], proven
    )
    rungs = [Rung(name, "fp32", adapter.of(network).run) for name, network in forms.items()]
    rungs.append(Rung("onnx", "fp32", engine.onnx_runner(lowered.onnx, threads)))
    chain = (
        []
        if architecture is None
        else [Link(name="architecture", sha256=sha256(architecture), made_from="", file="architecture.json")]
    )
    for name, network in forms.items():
        chain.append(Link(name=name, sha256=_hash(network), made_from=chain[-1].name if chain else ""))
    chain.append(Link(name="onnx", sha256=sha256(lowered.onnx), made_from="squeezed", file=bundle.ONNX))
    return _network(
        lowered,
        rungs,
        chain,
        threads,
        layers=_layers(forms["fused"], forms["squeezed"]),
        proofs=tuple(proofs),
        facts={"fuse": report.summary},
    )


def _source(model: nn.Module | bytes, shapes: Shapes, target: Target) -> nn.Module | Cleaned:
    """Return the source of the export: a module unchanged, or a cleaned ONNX model."""
    if isinstance(model, bytes):
        return cleaning.clean(model, shapes, float_biases=target != "onnxruntime")
    if shapes:
        raise DeployError("shapes are of an ONNX model: a module has the shape of example_input")
    return model


def _from_onnx(source: Cleaned, form: Form, target: Target, threads: int, samples: Samples) -> _Network:
    counts = lowering.count(graph.parse(source.usual))
    lowered = _halve(source.usual, counts, form, threads, samples)
    half = lowered.onnx_half and graph.thaw(lowered.onnx_half, source.onnx)
    lowered = dataclasses.replace(lowered, onnx=source.onnx, onnx_half=half)
    int8 = any(graph.quantized(graph.decode(source.onnx).graph))
    arithmetic = "int8" if int8 else "fp32"
    run = engine.int8_runner(source.onnx, target, threads) if int8 else engine.onnx_runner(source.onnx, threads)
    rungs = [
        Rung("original", arithmetic, _original_runner(source.original, threads, plain=int8)),
        Rung("onnx", arithmetic, run, engine.SATURATES if int8 else ""),
    ]
    chain = [
        Link(name="original", sha256=sha256(source.original), made_from=""),
        Link(name="onnx", sha256=sha256(source.onnx), made_from="original", file=bundle.ONNX),
    ]
    return _network(lowered, rungs, chain, threads, spans=source.spans, facts=source.facts)


def _original_runner(model: bytes, threads: int, *, plain: bool) -> Callable[[Tensors], Tensors]:
    """Return a runner of the original file in ONNX Runtime, which may reject it; its outputs are then unknown."""
    run = engine.onnx_runner(model, threads, plain=plain)

    def original(inputs: Tensors) -> Tensors:
        try:
            return run(inputs)
        except DeployError as error:
            raise CannotRun(f"the file as it came does not run: {error}") from error

    return original


def _squeezed(fused: nn.Module, adapter: Adapter) -> nn.Module:
    """Return a network without its masked channels; unchanged if there are none, for any arguments."""
    if not any(isinstance(module, ChannelMask) for module in fused.modules()):
        return fused
    if adapter.call.kwargs:
        raise DeployError(
            f"a network with masked channels takes keyword arguments, {', '.join(adapter.call.kwargs)}: make them "
            "positional"
        )
    return squeeze(fused, adapter.call.filled(adapter.call.tensors)[0])


def _network(lowered: _Lowered, rungs: list[Rung], chain: list[Link], threads: int, **more: Any) -> _Network:
    """Return a lowered network with its last form, in a narrow precision, if there is one."""
    if lowered.onnx_half:
        assert lowered.certificate
        narrow = lowered.certificate.precision
        arithmetic = "int8" if rungs[-1].precision == "int8" else narrow
        rungs.append(Rung(f"onnx-{narrow}", arithmetic, engine.half_runner(lowered.onnx_half, threads)))
        chain.append(
            Link(name=f"onnx-{narrow}", sha256=sha256(lowered.onnx_half), made_from="onnx", file=bundle.HALF[narrow])
        )
    fields = {field.name: getattr(lowered, field.name) for field in dataclasses.fields(lowered)}
    return _Network(**fields, rungs=tuple(rungs), chain=tuple(chain), **more)


def _lower(adapter: Adapter, form: Form, threads: int, samples: Samples) -> _Lowered:
    model = lowering.onnx_of(adapter)
    lowering.require_deterministic(graph.parse(model))
    return _halve(model, count(adapter, adapter.call.tensors), form, threads, samples)


def _baseline(model: nn.Module, example_input: Any, inputs: Sequence[TensorSpec]) -> Adapter:
    adapter = _adapter(model, example_input)
    if adapter.inputs != inputs:
        raise DeployError(
            f"baseline takes {', '.join(map(str, adapter.inputs))}, the network {', '.join(map(str, inputs))}: they "
            "must be alike"
        )
    return adapter.of(fuse(_in_float32(model), adapter.call.args, **adapter.call.kwargs))


def _halve(model: bytes, counts: Counts, form: Form, threads: int, samples: Samples) -> _Lowered:
    assert form.precision
    if form.precision == "fp32":
        return _Lowered(onnx=model, onnx_half=b"", counts=counts)
    half, certificate = certified(
        model, samples.first(CERTIFIED_SAMPLES), narrow=NARROW[form.precision], io=form.io, threads=threads
    )
    return _Lowered(onnx=model, onnx_half=half, counts=counts, certificate=certificate)


def _explanation(network: _Network, samples: Samples, threads: int) -> Explanation:
    whole = network.usual(network.onnx)
    if network.certificate and network.certificate.precision == "fp16":
        half = network.usual(network.onnx_half)
    else:
        half, _ = certified(whole, samples.first(CERTIFIED_SAMPLES), threads=threads)
    return explain(whole, half, samples.first(PROOF_SAMPLES), threads)


def _built(network: _Network, target: Target, build: Build, number: int, on_step: Callable[[str], None]) -> Candidate:
    """Run one of several builds, each with the same initial timing cache."""
    words = f"build for {target}" if build.count == 1 else f"build {number} of {build.count} for {target}"
    cache, say = engine.timing_cache_of(target, build.timing_cache), functools.partial(_say, on_step, words)
    return Candidate(
        engine.build(network.shipped, target, build.spec or EngineSpec(), cache, say, network.spans), cache
    )


def _ends(samples: Samples, inputs: Sequence[TensorSpec], spans: Mapping[str, Span]) -> Iterator[tuple[str, Samples]]:
    """Yield samples for the smallest and the largest shapes of dynamic inputs, with the name of each end."""
    for end in ENDS if spans else ():
        shapes = at(spans, end)
        yield end, resized(samples, [dataclasses.replace(one, shape=shapes.get(one.name, one.shape)) for one in inputs])


def _as_taken(samples: Samples, form: Form) -> Samples:
    """Return samples with the values that the inputs of the shipped form hold."""
    return samples.rounded(np.float16) if form.io == "fp16" else samples


def _inspection(at_work: engine.Running | str, certificate: Certificate | None) -> Inspection | None:
    """Return the layers that run in FP32 in the engine of a narrow network; known only for a loaded engine."""
    if certificate is None:
        return None
    if isinstance(at_work, str) or at_work.information is None:
        return Inspection(layers=0, full=(), reason=str(at_work))
    return inspect(at_work.information(), certificate)


def _say(on_step: Callable[[str], None], what: str, now: str) -> None:
    on_step(f"{what}: {now}")


def _reference(samples: Samples, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Tensors, Tensors]:
    """Return inputs with the outputs of the first form that ran, which ran on more samples."""
    return samples.inputs, {name: output[: samples.calls] for name, output in next(iter(outputs.values())).items()}


def _time(running: Mapping[str, engine.Running | str], protocol: Protocol, on_step: Callable[[str], None]) -> _Timing:
    for at_work in running.values():
        if isinstance(at_work, str):
            return _Timing(None, {}, at_work)
    ready = {name: at_work for name, at_work in running.items() if not isinstance(at_work, str)}
    device = ready["shipped"].device
    try:
        return _Timing(
            device, engine.measure_in_turns({name: at_work.timed for name, at_work in ready.items()}, protocol, on_step)
        )
    except RunFailed as error:
        return _Timing(device, {}, str(error))


def _in_float32(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().float().eval()


def _hash(module: nn.Module) -> str:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    return sha256(safetensors.torch.save(tensors))


def _layers(fused: nn.Module, squeezed: nn.Module) -> tuple[Layer, ...]:
    return tuple(
        Layer(name=name.removesuffix(".conv"), kept=module.out_channels, of=before.out_channels)
        for name, module in squeezed.named_modules()
        if isinstance(module, nn.Conv2d) and isinstance(before := fused.get_submodule(name), nn.Conv2d)
    )


def _last_score(steps: Sequence[Step]) -> Figure | None:
    return next((step.score for step in reversed(steps) if step.score is not None), None)


def _onnx_score(network: _Lowered, samples: Samples, quality: Quality | None, threads: int) -> Figure | None:
    if quality is None:
        return None
    run = (
        engine.half_runner(network.onnx_half, threads)
        if network.onnx_half
        else engine.onnx_runner(network.onnx, threads)
    )
    try:
        return quality.of(run(samples.inputs), samples)
    except CannotRun:
        return None


def _samples(
    given: Any, labels: Any, inputs: Sequence[TensorSpec], adapter: Adapter | None
) -> tuple[Samples, Labels | None]:
    if not inputs:
        raise DeployError("the network has no inputs: what it gives is a constant")
    if given is None:
        if labels is not None:
            raise DeployError("labels need the samples that they are of: give both")
        return random_samples(inputs, adapter.examples if adapter else None), None
    data = samples_of(map_tensors(given, lambda tensor: tensor.detach().cpu().numpy()), inputs)
    if labels is None:
        return data, None
    truth = np.asarray(labels)
    if truth.shape != (data.count,) or not np.issubdtype(truth.dtype, np.integer):
        raise DeployError(
            f"labels must be one class index a sample, {data.count} in all; found shape {list(truth.shape)} of "
            f"{truth.dtype}"
        )
    return data, truth


def _require_fit(
    labels: Labels | None, classes: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Require labels and class names that fit the network's outputs."""
    if labels is None and not classes:
        return
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[:1] != inputs[0].shape[:1]:
        found = ", ".join(str(list(value.shape)) for value in outputs)
        raise DeployError(
            f"labels and names of classes need one output of shape [batch, classes], found {found}: leave them out"
        )
    width = outputs[0].shape[1]
    if labels is not None and not 0 <= labels.min() <= labels.max() < width:
        raise DeployError(
            f"labels go from {labels.min()} to {labels.max()}, the network's {width} classes from 0 to {width - 1}"
        )
    if classes and len(classes) != width:
        raise DeployError(f"{len(classes)} names of classes for {width} outputs: give {width}")


def _capabilities(target: str, spec: EngineSpec, device: Device | None) -> tuple[str, ...]:
    """Return the compute capabilities that an engine is for; empty if the builder chose them."""
    here = () if device is None else (device.compute_capability,)
    if target == "tensorrt":
        return () if spec.hardware_compatible else here
    return tuple(
        dict.fromkeys(
            name for known in spec.compute_capabilities for name in (here if known == "current" else (known,))
        )
    )


def _doubts(samples: Samples, preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """Return a warning about an implausible range of the samples, which the network may never have seen in training."""
    seen = next((values for values in samples.inputs.values() if values.dtype.kind == "f"), None)
    if seen is None:
        return {}
    low, high = float(seen.min()), float(seen.max())
    found = f"samples are from {low:.4g} to {high:.4g}"
    mean, std = (np.asarray(preprocessing.get(name, ()), np.float64) for name in ("mean", "std"))
    if mean.size and mean.shape == std.shape and (std > 0).all():
        first, last = float((-mean / std).min()), float(((1 - mean) / std).max())
        if low < first - _SLACK or high > last + _SLACK:
            return {
                "samples": f"{found}, and the preprocessing gives {first:.4g} to {last:.4g}: are they preprocessed?"
            }
    elif low >= 0 and high > _PIXELS and (seen == np.round(seen)).all():
        return {"samples": f"{found}, whole numbers all, as pixels of an image file are: are they preprocessed?"}
    return {}


_SLACK = 0.01
_PIXELS = 16.0
"""Upper bound on the values of common normalisations."""


def _attachments(attachments: Mapping[str, bytes]) -> dict[str, bytes]:
    taken = {
        bundle.MANIFEST,
        bundle.ONNX,
        *bundle.HALF.values(),
        bundle.ENGINE,
        bundle.REFERENCE,
        bundle.TIMING_CACHE,
        *handout.NAMES,
    }
    for name in attachments:
        if name in taken or Path(name).name != name or name.startswith("."):
            raise DeployError(f"attachment {name!r}: a plain file name, none of {', '.join(sorted(taken))}")
    return dict(attachments)


def _versions() -> dict[str, str]:
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), "lathe": distribution.version(), **versions}
