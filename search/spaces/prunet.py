"""PRUNET: spaces around GPUNet-1 with open kernels, squeeze-and-excite, hidden widths and depths.

Source: "Tiered Pruning for Efficient Differentiable Inference-Aware Neural Architecture Search", 2022, Table 1 and
Section 4.1.1. In stages 2 to 6, each layer chooses among four multi-blocks (kernel 3 or 5, with or without
squeeze-and-excite), each at every hidden width that is a multiple of 32 and at most 8 times its input width; in stage
1, between kernels 3 and 5. Layers of equal input and output shapes can be skipped. The paper gives four contradictory
numbers of layers per stage: `prunet` is GPUNet-1 with one more layer in every stage, as in Section 4.1.1; the others
follow the formula for the size, Table 1 and Table 5.

`prunet-imagewoof` is the space of Appendix B.1, Table 5: kernel and activation are searched, at expansion 8 without
squeeze-and-excite. `prunet-cifar` and `prunet-mini` are smaller variants of `prunet` for small images.
"""

from typing import NamedTuple

from search import ops
from search.ops import Shape
from search.spaces.checks import check_input
from search.spaces.layered import Layered, MultiBlock, StochasticLayer

MAX_EXPANSION = 8


class PrunetStage(NamedTuple):
    """A row of Table 1: layers with the same choices. The first has the stride and changes the number of channels."""

    op: str
    layers: int
    stride: int
    channels: int
    relu: tuple[int, ...] = ()
    """kernels to choose from with ReLU"""
    swish: tuple[int, ...] = ()
    """kernels to choose from with Swish"""


class Preset(NamedTuple):
    """A named space."""

    stages: tuple[PrunetStage, ...]
    classes: int = 1000
    resolution: int = 288
    stem_stride: int = 2
    tail: int = 1280
    """channels before the classifier"""
    granularity: int | None = 32
    """channels between two hidden widths; None: only the largest width"""
    se: tuple[bool, ...] = (False, True)
    """choices of squeeze-and-excite for inverted residuals"""


_BOTH = (3, 5)
_ALL = (3, 5, 7)


def _table1(*layers: int) -> Preset:
    """Return Table 1 with the given numbers of layers."""
    rows = (
        PrunetStage("conv", 1, 1, 24, relu=_BOTH),
        PrunetStage("fused_irb", 1, 2, 64, swish=_BOTH),
        PrunetStage("fused_irb", 1, 2, 96, swish=_BOTH),
        PrunetStage("irb", 1, 2, 160, swish=_BOTH),
        PrunetStage("irb", 1, 1, 288, relu=_BOTH),
        PrunetStage("irb", 1, 2, 448, relu=_BOTH),
    )
    return Preset(tuple(stage._replace(layers=count) for stage, count in zip(rows, layers, strict=True)))


PRESETS = {
    # One more layer in every stage than GPUNet-1, Section 4.1.1.
    "prunet": _table1(2, 3, 3, 2, 5, 5),
    # The formula for the size, 3^2*24*65*64*97^2*96*161*160*289^4*288*449^4 = 1.7e39, Section 3.1.
    "prunet-formula": _table1(2, 2, 3, 2, 5, 5),
    "prunet-table1": _table1(2, 3, 3, 2, 5, 6),
    # The layers of Table 5 with the choices of Table 1.
    "prunet-table5": _table1(2, 2, 3, 2, 5, 6),
    "prunet-imagewoof": Preset(
        (
            PrunetStage("conv", 2, 1, 24, relu=_ALL),
            PrunetStage("fused_irb", 2, 2, 64, relu=_BOTH, swish=_ALL),
            PrunetStage("fused_irb", 3, 2, 96, relu=_BOTH, swish=_ALL),
            PrunetStage("irb", 2, 2, 160, relu=_BOTH, swish=_ALL),
            PrunetStage("irb", 5, 1, 288, relu=_ALL, swish=_BOTH),
            PrunetStage("irb", 6, 2, 448, relu=_ALL, swish=_BOTH),
        ),
        classes=10,
        resolution=224,
        stem_stride=1,
        granularity=None,
        se=(False,),
    ),
    # The stem and stage 2 have stride 1 instead of 2, as usual for images of 32x32, so the last stage sees 4x4 pixels;
    # all stages are less deep and about a quarter as wide, so that a supernet trains on one machine.
    "prunet-cifar": Preset(
        (
            PrunetStage("conv", 2, 1, 16, relu=_BOTH),
            PrunetStage("fused_irb", 2, 1, 24, swish=_BOTH),
            PrunetStage("fused_irb", 2, 2, 32, swish=_BOTH),
            PrunetStage("irb", 2, 2, 48, swish=_BOTH),
            PrunetStage("irb", 3, 1, 72, relu=_BOTH),
            PrunetStage("irb", 3, 2, 112, relu=_BOTH),
        ),
        classes=10,
        resolution=32,
        stem_stride=1,
        tail=320,
    ),
    # One stage per kind of block: a supernet trains in minutes on a CPU.
    "prunet-mini": Preset(
        (
            PrunetStage("conv", 1, 1, 16, relu=_BOTH),
            PrunetStage("fused_irb", 3, 2, 24, swish=_BOTH),
            PrunetStage("irb", 3, 2, 48, relu=_BOTH),
        ),
        classes=10,
        resolution=16,
        stem_stride=1,
        tail=160,
        granularity=8,
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of the spaces."""
    return tuple(PRESETS)


def named(name: str, *, classes: int | None = None, resolution: int | None = None) -> Layered:
    """Return one of `names()`.

    Args:
        name: name of the space.
        classes: number of classes; the preset's by default.
        resolution: height and width of the input in pixels; the preset's by default.

    Raises:
        SearchError: fewer than two classes, or an image too small for the strides.
    """
    preset = PRESETS[name]
    classes = preset.classes if classes is None else classes
    resolution = preset.resolution if resolution is None else resolution
    halvings = sum(stride == 2 for stride in (preset.stem_stride, *(stage.stride for stage in preset.stages)))
    check_input(name, classes=classes, resolution=resolution, halvings=halvings)
    stem = ops.conv((3, resolution, resolution), preset.stages[0].channels, stride=preset.stem_stride, act="swish")
    layers = [StochasticLayer(name="stem", options=(MultiBlock(name="stem", spec=stem),))]
    shape = ops.output_shape(stem)
    for number, stage in enumerate(preset.stages, 1):
        for index in range(stage.layers):
            options = _options(preset, stage, shape, stage.stride if index == 0 else 1)
            after = ops.output_shape(options[0].spec)
            layers.append(StochasticLayer(name=f"stage{number}_{index}", options=options, skippable=after == shape))
            shape = after
    tail = ops.tail(shape, classes, hidden=preset.tail)
    layers.append(StochasticLayer(name="tail", options=(MultiBlock(name="tail", spec=tail),)))
    return Layered(name=name, input_shape=(3, resolution, resolution), classes=classes, layers=tuple(layers))


def _options(preset: Preset, stage: PrunetStage, shape: Shape, stride: int) -> tuple[MultiBlock, ...]:
    """Return the options of one layer, small kernels first. Names include the activation if it is open."""
    kinds = sorted(
        (kernel, act) for act, kernels in (("relu", stage.relu), ("swish", stage.swish)) for kernel in kernels
    )
    prefix = f"{stage.op}_{{act}}" if stage.relu and stage.swish else stage.op
    options: list[MultiBlock] = []
    for kernel, act in kinds:
        name = f"{prefix.format(act=act)}_k{kernel}"
        if stage.op == "conv":
            spec = ops.conv(shape, stage.channels, kernel=kernel, stride=stride, act=act)
            options.append(MultiBlock(name=name, spec=spec))
            continue
        widest = MAX_EXPANSION * shape[0]
        hidden = () if preset.granularity is None else tuple(range(preset.granularity, widest + 1, preset.granularity))
        for se in preset.se:
            spec = ops.inverted_residual(
                shape,
                stage.channels,
                hidden=widest,
                kernel=kernel,
                stride=stride,
                act=act,
                se=se,
                fused=stage.op == "fused_irb",
            )
            options.append(MultiBlock(name=f"{name}_se" if se else name, spec=spec, hidden=hidden))
    return tuple(options)
