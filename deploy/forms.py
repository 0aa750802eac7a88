"""The forms of a network on its way to ONNX: each follows from the one before, and each is proved against it."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import nn

from deploy import bundle, cleaning, engine, evidence, graph, lowering
from deploy.adapter import Adapter, adapt, require_deterministic
from deploy.bundle import LayerWidth, Link, sha256
from deploy.certificate import Certificate
from deploy.cleaning import Cleaned
from deploy.errors import DeployError
from deploy.explain import explain
from deploy.explanation import Explanation
from deploy.metric import Figure, Quality
from deploy.narrow import NARROW
from deploy.options import Plan
from deploy.precision import certified
from deploy.samples import Samples, Tensors, TensorSpec, inputs_of, outputs_of
from deploy.shapes import POINTS, Span, shapes_at
from deploy.validate import CannotRun, RunnableForm, Step, validate_forms
from reparam import ChannelMask, Counts, count, fuse, fuse_exactly, squeeze


@dataclass(frozen=True, kw_only=True)
class LoweredNetwork:
    """A network as ONNX.

    Attributes:
        onnx: the FP32 model.
        onnx_half: the model in a narrow precision; empty if FP32 ships.
        counts: parameters and multiply-accumulates.
        certificate: what stays in FP32 in the narrow model, and why.
        spans: spans of inputs with several shapes.
    """

    onnx: bytes
    onnx_half: bytes
    counts: Counts
    certificate: Certificate | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)

    @property
    def shipped(self) -> bytes:
        """The model that ships, or that the engine is built from."""
        return self.onnx_half or self.onnx

    def score(self, samples: Samples, quality: Quality | None, threads: int) -> Figure | None:
        """Return the quality of the outputs in ONNX Runtime; None if nothing measures it or the model does not run."""
        if quality is None:
            return None
        runner = engine.half_runner if self.onnx_half else engine.onnx_runner
        try:
            return quality.of(runner(self.shipped, threads)(samples.inputs), samples)
        except CannotRun:
            return None


@dataclass(frozen=True, kw_only=True)
class Forms(LoweredNetwork):
    """A network as ONNX, and how it was made.

    Attributes:
        rungs: the forms to validate, in order.
        chain: hashes of the forms.
        layers: widths of the convolutions before and after squeezing.
        proofs: comparisons of the rewrites in float64.
        facts: facts for the manifest's provenance.
    """

    rungs: tuple[RunnableForm, ...]
    chain: tuple[Link, ...]
    layers: tuple[LayerWidth, ...] = ()
    proofs: tuple[Step, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def usual(self, model: bytes) -> bytes:
        """Return a form of the network with the usual input shapes."""
        return graph.freeze(model, shapes_at(self.spans, "opt"))

    def output_spans(self) -> dict[str, Span]:
        """Return the spans of outputs with several shapes."""
        if not self.spans:
            return {}
        ends = [
            outputs_of(graph.parse_model(graph.freeze(self.onnx, shapes_at(self.spans, point)))) for point in POINTS
        ]
        spans = {low.name: Span(low.shape, usual.shape, high.shape) for low, usual, high in zip(*ends, strict=True)}
        return {name: span for name, span in spans.items() if not span.fixed}

    def explanation(self, samples: Samples, threads: int) -> Explanation:
        """Return the first tensor that FP16 breaks, whether FP16 ships or not."""
        full = self.usual(self.onnx)
        if self.certificate and self.certificate.precision == "fp16":
            half = self.usual(self.onnx_half)
        else:
            half, _ = certified(full, samples.first(evidence.CERTIFIED_SAMPLES), threads=threads)
        return explain(full, half, samples.first(evidence.PROOF_SAMPLES), threads)


@dataclass(frozen=True)
class Source:
    """The network to export.

    Attributes:
        inputs: its inputs.
        network: a module with its example, or a cleaned ONNX model.
    """

    inputs: Sequence[TensorSpec]
    network: Adapter | Cleaned

    @property
    def examples(self) -> Mapping[str, Any] | None:
        """Valid inputs by name, of a module."""
        return self.network.examples if isinstance(self.network, Adapter) else None

    def forms(self, plan: Plan, samples: Samples, architecture: bytes | None) -> Forms:
        """Fuse, squeeze and lower the network.

        Args:
            plan: what is built.
            samples: samples for the proofs, and for the ranges of a narrow precision.
            architecture: record of the module's architecture, which starts the chain of hashes.
        """
        if isinstance(self.network, Cleaned):
            return _of_onnx(self.network, plan, samples)
        return _of_module(self.network, plan, samples, architecture)

    def baseline(self, model: nn.Module, example_input: object, plan: Plan, samples: Samples) -> LoweredNetwork:
        """Fuse and lower the unpruned network.

        Raises:
            DeployError: it has other inputs.
        """
        adapter = _adapted(model, example_input)
        if adapter.inputs != self.inputs:
            raise DeployError(
                f"baseline takes {', '.join(map(str, adapter.inputs))}, the network "
                f"{', '.join(map(str, self.inputs))}: they must be alike"
            )
        fused = fuse(copy.deepcopy(model).cpu().float().eval(), adapter.call.args, **adapter.call.kwargs)
        return _lowered(adapter.of(fused), plan, samples)


def source_of(model: nn.Module | bytes, example_input: object, plan: Plan) -> Source:
    """Read a network to export.

    Args:
        model: a module, or a serialised ONNX model.
        example_input: a valid input of a module.
        plan: what is built.

    Raises:
        DeployError: the network cannot be shipped.
    """
    if isinstance(model, bytes):
        cleaned = cleaning.clean(model, plan.form.shapes, float_biases=plan.target != "onnxruntime")
        parsed = graph.parse_model(cleaned.usual)
        lowering.require_deterministic(parsed)
        return Source(inputs_of(parsed), cleaned)
    if plan.form.shapes:
        raise DeployError("shapes are of an ONNX model: a module has the shape of example_input")
    adapter = _adapted(model, example_input)
    return Source(adapter.inputs, adapter)


def _adapted(model: nn.Module, example_input: object) -> Adapter:
    if example_input is None:
        raise DeployError("a module does not say the shape of its input: give example_input")
    adapter = adapt(model, example_input)
    require_deterministic(adapter)
    return adapter


def _of_module(adapter: Adapter, plan: Plan, samples: Samples, architecture: bytes | None) -> Forms:
    # Rewritten in float64 and rounded once, like `fuse` and `squeeze` do with a float32 network, but with half the
    # work.
    fused, report = fuse_exactly(adapter.network, adapter.call.args, **adapter.call.kwargs)
    exact = {"trained": copy.deepcopy(adapter.network).double(), "fused": fused, "squeezed": _squeezed(fused, adapter)}
    single = {name: copy.deepcopy(network).float() for name, network in exact.items()}
    lowered = _lowered(adapter.of(single["squeezed"]), plan, samples)
    proofs, _ = validate_forms(
        [RunnableForm(name, "fp64", adapter.of(network, torch.float64).run) for name, network in exact.items()],
        samples.first(evidence.PROOF_SAMPLES),
    )
    rungs = [RunnableForm(name, "fp32", adapter.of(network).run) for name, network in single.items()]
    rungs.append(RunnableForm("onnx", "fp32", engine.onnx_runner(lowered.onnx, plan.threads)))
    chain = []
    if architecture is not None:
        chain.append(Link(name="architecture", sha256=sha256(architecture), made_from="", file="architecture.json"))
    for name, network in single.items():
        chain.append(Link(name=name, sha256=_weights_sha256(network), made_from=chain[-1].name if chain else ""))
    chain.append(Link(name="onnx", sha256=sha256(lowered.onnx), made_from="squeezed", file=bundle.ONNX))
    return _with_narrow(
        lowered,
        rungs,
        chain,
        plan.threads,
        layers=_layers(single["fused"], single["squeezed"]),
        proofs=tuple(proofs),
        facts={"fuse": report.summary},
    )


def _of_onnx(source: Cleaned, plan: Plan, samples: Samples) -> Forms:
    counts, threads = lowering.count_onnx(graph.parse_model(source.usual)), plan.threads
    lowered = _narrowed(source.usual, counts, plan, samples)
    half = lowered.onnx_half and graph.thaw(lowered.onnx_half, source.onnx)
    lowered = dataclasses.replace(lowered, onnx=source.onnx, onnx_half=half, spans=source.spans)
    int8 = any(graph.quantized(graph.decode_model(source.onnx).graph))
    arithmetic = "int8" if int8 else "fp32"
    run = engine.int8_runner(source.onnx, plan.target, threads) if int8 else engine.onnx_runner(source.onnx, threads)
    rungs = [
        RunnableForm("original", arithmetic, _original_runner(source.original, threads, plain=int8)),
        RunnableForm("onnx", arithmetic, run, engine.SATURATES if int8 else ""),
    ]
    chain = [
        Link(name="original", sha256=sha256(source.original), made_from=""),
        Link(name="onnx", sha256=sha256(source.onnx), made_from="original", file=bundle.ONNX),
    ]
    return _with_narrow(lowered, rungs, chain, threads, facts=source.facts)


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


def _with_narrow(
    lowered: LoweredNetwork, rungs: list[RunnableForm], chain: list[Link], threads: int, **more: Any
) -> Forms:
    """Return all forms of a network, with a last one if it is lowered to a narrow precision."""
    if lowered.onnx_half:
        assert lowered.certificate
        narrow = lowered.certificate.precision
        arithmetic = "int8" if rungs[-1].precision == "int8" else narrow
        rungs.append(RunnableForm(f"onnx-{narrow}", arithmetic, engine.half_runner(lowered.onnx_half, threads)))
        chain.append(
            Link(name=f"onnx-{narrow}", sha256=sha256(lowered.onnx_half), made_from="onnx", file=bundle.HALF[narrow])
        )
    fields = {field.name: getattr(lowered, field.name) for field in dataclasses.fields(lowered)}
    return Forms(**fields, rungs=tuple(rungs), chain=tuple(chain), **more)


def _lowered(adapter: Adapter, plan: Plan, samples: Samples) -> LoweredNetwork:
    model = lowering.onnx_of(adapter)
    lowering.require_deterministic(graph.parse_model(model))
    return _narrowed(model, count(adapter, adapter.call.tensors), plan, samples)


def _narrowed(model: bytes, counts: Counts, plan: Plan, samples: Samples) -> LoweredNetwork:
    if plan.precision == "fp32":
        return LoweredNetwork(onnx=model, onnx_half=b"", counts=counts)
    half, certificate = certified(
        model,
        samples.first(evidence.CERTIFIED_SAMPLES),
        narrow=NARROW[plan.precision],
        io=plan.form.io,
        threads=plan.threads,
    )
    return LoweredNetwork(onnx=model, onnx_half=half, counts=counts, certificate=certificate)


def _weights_sha256(module: nn.Module) -> str:
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()}
    return sha256(safetensors.torch.save(tensors))


def _layers(fused: nn.Module, squeezed: nn.Module) -> tuple[LayerWidth, ...]:
    return tuple(
        LayerWidth(name=name.removesuffix(".conv"), kept=module.out_channels, of=before.out_channels)
        for name, module in squeezed.named_modules()
        if isinstance(module, nn.Conv2d) and isinstance(before := fused.get_submodule(name), nn.Conv2d)
    )
