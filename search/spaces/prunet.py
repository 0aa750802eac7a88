"""PRUNET: kernel, squeeze-and-excite, hidden width and depth are open, around GPUNet-1.

Source: "Tiered Pruning for Efficient Differentiable Inference-Aware Neural Architecture Search", 2022, Table 1 and Section 4.1.1.
In stages 2 to 6 each layer chooses among four multi-blocks (kernel 3 or 5, with squeeze-and-excite or without), each at every hidden
width that is a multiple of 32 up to 8 times its input; in stage 1 among the kernels 3 and 5. A layer whose input and output shape are
equal can be skipped. The paper gives the number of layers of a stage in four ways that contradict each other: `prunet` is GPUNet-1 with
one layer more in every stage, as its Section 4.1.1 says; the others are those of its formula for the size, its Table 1 and its Table 5.
"""

import itertools
from typing import NamedTuple

from search import ops
from search.ops import Shape
from search.spaces.checks import check_input
from search.spaces.layered import Layered, MultiBlock, StochasticLayer

GRANULARITY = 32
MAX_EXPANSION = 8


class Stage(NamedTuple):
    """A row of Table 1: layers with the same choices. The first one has the stride and changes the channels."""

    op: str
    layers: int
    stride: int
    act: str
    channels: int


def prunet(*, classes: int = 1000, resolution: int = 288) -> Layered:
    """The default: one layer more in every stage than GPUNet-1 has."""
    return _imagenet("prunet", (2, 3, 3, 2, 5, 5), classes, resolution)


def formula(*, classes: int = 1000, resolution: int = 288) -> Layered:
    """The counts of the formula for the size, 3^2*24*65*64*97^2*96*161*160*289^4*288*449^4 = 1.7e39 (Section 3.1)."""
    return _imagenet("prunet-formula", (2, 2, 3, 2, 5, 5), classes, resolution)


def table1(*, classes: int = 1000, resolution: int = 288) -> Layered:
    """The counts of Table 1."""
    return _imagenet("prunet-table1", (2, 3, 3, 2, 5, 6), classes, resolution)


def table5(*, classes: int = 1000, resolution: int = 288) -> Layered:
    """The counts of Table 5, with the choices of Table 1: it searches activations at a fixed expansion instead."""
    return _imagenet("prunet-table5", (2, 2, 3, 2, 5, 6), classes, resolution)


def cifar(*, classes: int = 10, resolution: int = 32) -> Layered:
    """For images of 32x32: a small sibling with the same choices.

    The stem and stage 2 have stride 1 instead of 2, as usual for such images, so the last stage sees 4x4 pixels; all stages are about a
    quarter as wide and less deep, so that a supernet of it trains on one machine.
    """
    stages = (
        Stage("conv", 2, 1, "relu", 16),
        Stage("fused_irb", 2, 1, "swish", 24),
        Stage("fused_irb", 2, 2, "swish", 32),
        Stage("irb", 2, 2, "swish", 48),
        Stage("irb", 3, 1, "relu", 72),
        Stage("irb", 3, 2, "relu", 112),
    )
    return _build("prunet-cifar", stages, stem_stride=1, tail=320, classes=classes, resolution=resolution)


def _imagenet(name: str, layers: tuple[int, ...], classes: int, resolution: int) -> Layered:
    rows = (
        ("conv", 1, "relu", 24),
        ("fused_irb", 2, "swish", 64),
        ("fused_irb", 2, "swish", 96),
        ("irb", 2, "swish", 160),
        ("irb", 1, "relu", 288),
        ("irb", 2, "relu", 448),
    )
    stages = tuple(Stage(op, count, stride, act, channels) for (op, stride, act, channels), count in zip(rows, layers, strict=True))
    return _build(name, stages, stem_stride=2, tail=1280, classes=classes, resolution=resolution)


def _build(name: str, stages: tuple[Stage, ...], *, stem_stride: int, tail: int, classes: int, resolution: int) -> Layered:
    halvings = sum(stride == 2 for stride in (stem_stride, *(stage.stride for stage in stages)))
    check_input(name, classes=classes, resolution=resolution, halvings=halvings)
    stem = ops.conv((3, resolution, resolution), stages[0].channels, stride=stem_stride, act="swish")
    layers = [StochasticLayer(name="stem", options=(MultiBlock(name="stem", spec=stem),))]
    shape = ops.output_shape(stem)
    for number, stage in enumerate(stages, 1):
        for index in range(stage.layers):
            options = _options(stage, shape, stage.stride if index == 0 else 1)
            after = ops.output_shape(options[0].spec)
            layers.append(StochasticLayer(name=f"stage{number}_{index}", options=options, skippable=after == shape))
            shape = after
    layers.append(StochasticLayer(name="tail", options=(MultiBlock(name="tail", spec=ops.tail(shape, classes, hidden=tail)),)))
    return Layered(name=name, input_shape=(3, resolution, resolution), classes=classes, layers=tuple(layers))


def _options(stage: Stage, shape: Shape, stride: int) -> tuple[MultiBlock, ...]:
    """What one layer chooses among."""
    if stage.op == "conv":
        return tuple(
            MultiBlock(name=f"conv_k{kernel}", spec=ops.conv(shape, stage.channels, kernel=kernel, stride=stride, act=stage.act))
            for kernel in (3, 5)
        )
    widest = MAX_EXPANSION * shape[0]
    found = []
    for kernel, se in itertools.product((3, 5), (False, True)):
        spec = ops.inverted_residual(
            shape, stage.channels, hidden=widest, kernel=kernel, stride=stride, act=stage.act, se=se, fused=stage.op == "fused_irb"
        )
        name = f"{stage.op}_k{kernel}{'_se' if se else ''}"
        found.append(MultiBlock(name=name, spec=spec, hidden=tuple(range(GRANULARITY, widest + 1, GRANULARITY))))
    return tuple(found)
