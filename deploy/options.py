"""Options of an export: the form in which a network ships, the build of its engine, and both completed for a target."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from deploy import engine
from deploy.bundle import Target
from deploy.errors import DeployError
from deploy.graph import Precision
from deploy.shapes import Shapes
from latency import Protocol, Runtime
from latency.backends.engines import EngineSpec
from latency.protocol import DEFAULT
from latency.units import ms_from_us, us_from_ms
from latency.values import MAX_US


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form in which a network ships.

    Attributes:
        precision: precision of its arithmetic; None for the target's default: fp32 on ONNX Runtime, fp16 on TensorRT.
        io: precision of its floating-point inputs and outputs; fp16 requires half precision in between.
        shapes: shapes of an ONNX model's dynamic inputs, by name: a fixed shape, or a `Span` within which it stays
            dynamic.
        explain: find the first tensor that breaks in FP16, whether FP16 ships or not.
    """

    precision: Precision | None = None
    io: Precision = "fp32"
    shapes: Shapes = field(default_factory=dict)
    explain: bool = False


@dataclass(frozen=True, kw_only=True)
class Build:
    """How an engine is built.

    Attributes:
        spec: build options; None for the defaults.
        count: number of builds; the fastest engine ships.
        timing_cache: initial timing cache of TensorRT's builder, such as that of an earlier bundle; the resulting cache
            is in the bundle.
    """

    spec: EngineSpec | None = None
    count: int = 1
    timing_cache: str | Path | None = None


FORM, BUILD = Form(), Build()
"""Defaults."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is built, for which target, and how it is timed.

    Attributes:
        target: runtime to ship for.
        runtime: the runtime as installed.
        precision: precision of the shipped arithmetic.
        form: the form that ships, with this precision.
        build: options of the engine's build.
        threads: number of threads of ONNX Runtime.
        protocol: timing protocol.
        budget_us: latency budget of one batch.
    """

    target: Target
    runtime: Runtime
    precision: Precision
    form: Form
    build: Build
    threads: int
    protocol: Protocol
    budget_us: float | None

    @property
    def spec(self) -> EngineSpec:
        """Options of the engine's build, the defaults if none are given."""
        return self.build.spec or EngineSpec()


def plan_export(
    target: str,
    *,
    form: Form = FORM,
    build: Build = BUILD,
    threads: int = 1,
    protocol: Protocol = DEFAULT,
    budget_ms: float | None = None,
) -> Plan:
    """Complete the options of an export for a target.

    Raises:
        DeployError: an option is invalid, or the target does not support it.
        MissingExtra: the target's runtime is not installed.
    """
    known = engine.target_of(target)
    precision = _precision(form, known)
    if budget_ms is not None and not 0 < budget_ms <= ms_from_us(MAX_US):
        raise DeployError(
            f"budget_ms must be above 0 and at most {ms_from_us(MAX_US):g} milliseconds, found {budget_ms}"
        )
    if threads < 1:
        raise DeployError(f"threads must be at least 1, found {threads}")
    engine.require_options(known, build.spec, build.timing_cache, build.count)
    return Plan(
        target=known,
        runtime=engine.runtime_of(known),
        precision=precision,
        form=dataclasses.replace(form, precision=precision),
        build=build,
        threads=threads,
        protocol=protocol,
        budget_us=None if budget_ms is None else us_from_ms(budget_ms),
    )


def _precision(form: Form, target: Target) -> Precision:
    precision = form.precision or engine.TARGETS[target]
    if target == "onnxruntime" and precision != "fp32":
        raise DeployError(
            f"target 'onnxruntime' ships precision 'fp32', not {precision!r}: leave it out, or choose tensorrt-rtx"
        )
    if form.io not in ("fp32", precision) or form.io == "bf16":
        raise DeployError(
            f"io {form.io!r} needs half precision in between, {target!r} ships {precision!r} here: leave it out, or "
            "choose fp16"
        )
    return precision
