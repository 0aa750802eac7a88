"""What a caller may choose about the form in which a network ships, and about the build of its engine."""

from dataclasses import dataclass, field
from pathlib import Path

from deploy.graph import Precision
from deploy.shapes import Shapes
from latency.backends.tensorrt import EngineSpec


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form in which a network ships.

    Attributes:
        precision: of its arithmetic; None for the target's own: fp32 on ONNX Runtime, fp16 on TensorRT.
        io: of its floating-point inputs and outputs; fp16 needs half precision in between.
        shapes: of an ONNX model's dynamic inputs, by name: one shape, which is fixed, or a `Span`, within which it stays dynamic.
        explain: find the first tensor that FP16 breaks, whether FP16 ships or not.
    """

    precision: Precision | None = None
    io: Precision = "fp32"
    shapes: Shapes = field(default_factory=dict)
    explain: bool = False


@dataclass(frozen=True, kw_only=True)
class Build:
    """How an engine is built.

    Attributes:
        spec: None for the defaults.
        count: how often; the fastest engine ships.
        timing_cache: file that the builder of TensorRT begins with, such as that of an earlier bundle; what it is then is in the bundle.
    """

    spec: EngineSpec | None = None
    count: int = 1
    timing_cache: str | Path | None = None


FORM, BUILD = Form(), Build()
"""What is chosen where nothing is."""
