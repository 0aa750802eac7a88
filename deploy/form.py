"""Options for the form in which a network ships, and for the build of its engine."""

from dataclasses import dataclass, field
from pathlib import Path

from deploy.graph import Precision
from deploy.shapes import Shapes
from latency.backends.tensorrt import EngineSpec


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
