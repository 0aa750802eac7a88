"""GPUNet (Wang et al. 2022), the networks that PRUNET is compared with, from NVIDIA's published configurations.

The names are those of NVIDIA's model hub. Its code calls `gpunet-p0` and `gpunet-p1` PRUNETs, although no network of
the paper's space has their channels; these two, `gpunet-d1` and `gpunet-d2` were trained with distillation.
"""

from typing import NamedTuple

from latency.block import BlockSpec
from search import ops
from search.ops import Shape
from search.spaces.checks import check_input
from search.spaces.fixed import Fixed


class GPUNetStage(NamedTuple):
    """Consecutive blocks; the first has the stride and changes the number of channels."""

    op: str
    channels: int
    stride: int
    act: str
    layers: tuple[tuple[int, int | float], ...]
    """kernel and expansion of each block; convolutions ignore the expansion"""
    se: bool = False


class GPUNetConfig(NamedTuple):
    """A named network."""

    resolution: int
    stem: int
    """output channels of the first convolution"""
    stem_act: str
    stages: tuple[GPUNetStage, ...]
    tail: tuple[int, ...] = (1280,)
    """channels before the classifier: output channels of a convolution and, if given, of a linear layer after
    pooling"""


NETWORKS = {
    "gpunet-0": GPUNetConfig(
        320,
        32,
        "swish",
        (
            GPUNetStage("conv", 32, 1, "relu", ((3, 1),) * 2),
            GPUNetStage("fused_irb", 32, 2, "relu", ((3, 5),) * 2),
            GPUNetStage("fused_irb", 64, 2, "relu", ((3, 5),) * 3),
            GPUNetStage("irb", 256, 2, "swish", ((3, 5),) * 3),
            GPUNetStage("irb", 704, 2, "relu", ((3, 5),) * 2, se=True),
        ),
    ),
    # The baseline of the PRUNET space, and one of its networks.
    "gpunet-1": GPUNetConfig(
        288,
        24,
        "swish",
        (
            GPUNetStage("conv", 24, 1, "relu", ((3, 1),)),
            GPUNetStage("fused_irb", 64, 2, "swish", ((3, 4),) * 2),
            GPUNetStage("fused_irb", 96, 2, "swish", ((3, 4),) * 2),
            GPUNetStage("irb", 160, 2, "swish", ((3, 2),), se=True),
            GPUNetStage("irb", 288, 1, "relu", ((3, 5),) * 4),
            GPUNetStage("irb", 448, 2, "relu", ((3, 4),) * 4, se=True),
        ),
    ),
    "gpunet-2": GPUNetConfig(
        384,
        32,
        "swish",
        (
            GPUNetStage("conv", 32, 1, "relu", ((3, 1),) * 3),
            GPUNetStage("fused_irb", 32, 2, "swish", ((5, 6),), se=True),
            GPUNetStage("fused_irb", 112, 2, "swish", ((3, 3),) * 3),
            GPUNetStage("irb", 144, 2, "swish", ((3, 6),) * 6),
            GPUNetStage("irb", 160, 1, "relu", ((5, 3),) * 4),
            GPUNetStage("irb", 224, 2, "swish", ((3, 3),) * 8, se=True),
            GPUNetStage("irb", 832, 1, "relu", ((5, 2),) * 7),
        ),
    ),
    "gpunet-p0": GPUNetConfig(
        224,
        32,
        "relu",
        (
            GPUNetStage("conv", 32, 1, "relu", ((3, 1),) * 2),
            GPUNetStage("conv", 64, 2, "relu", ((3, 1),)),
            GPUNetStage("irb", 96, 2, "relu", ((3, 8), (3, 7.67), (3, 7.67))),
            GPUNetStage("irb", 256, 2, "relu", ((3, 7.67), (5, 4.25), (3, 4.75))),
            GPUNetStage("irb", 704, 2, "relu", ((3, 8), (5, 3.82), (3, 3.36), (3, 2.55))),
            GPUNetStage("irb", 704, 2, "relu", ((3, 5.73),)),
        ),
        tail=(1984,),
    ),
    "gpunet-p1": GPUNetConfig(
        224,
        32,
        "relu",
        (
            GPUNetStage("conv", 32, 1, "relu", ((3, 1),) * 2),
            GPUNetStage("conv", 64, 2, "relu", ((5, 1),)),
            GPUNetStage("irb", 64, 1, "relu", ((3, 8),) * 2),
            GPUNetStage("irb", 96, 2, "relu", ((5, 8),) * 2),
            GPUNetStage("irb", 256, 2, "relu", ((5, 8), (5, 7.5), (3, 7.88))),
            GPUNetStage("irb", 704, 2, "relu", ((5, 7.88), (5, 8), (3, 7.41), (5, 8))),
            GPUNetStage("irb", 704, 2, "relu", ((5, 7.95),)),
        ),
        tail=(1984,),
    ),
    "gpunet-d1": GPUNetConfig(
        456,
        33,
        "relu",
        (
            GPUNetStage("irb", 33, 1, "relu", ((3, 1),)),
            GPUNetStage("irb", 44, 2, "relu", ((3, 3), (5, 4), (3, 3))),
            GPUNetStage("irb", 67, 2, "relu", ((5, 4), (5, 4), (3, 6), (5, 3))),
            GPUNetStage("irb", 134, 2, "relu", ((7, 6), (5, 6), (3, 3), (5, 4))),
            GPUNetStage("irb", 190, 1, "relu", ((3, 6), (5, 6), (7, 6), (3, 4))),
            GPUNetStage("irb", 268, 2, "relu", ((3, 6), (3, 6), (5, 6), (3, 3), (3, 3), (3, 3))),
        ),
        tail=(1152, 1984),
    ),
    "gpunet-d2": GPUNetConfig(
        528,
        48,
        "relu",
        (
            GPUNetStage("conv", 48, 1, "relu", ((3, 1),) * 2),
            GPUNetStage("irb", 48, 1, "relu", ((3, 1),)),
            GPUNetStage("irb", 64, 2, "relu", ((3, 3), (5, 4), (3, 3))),
            GPUNetStage("irb", 96, 2, "relu", ((5, 4), (5, 4), (3, 6), (5, 3))),
            GPUNetStage("irb", 192, 2, "relu", ((7, 6), (5, 6), (3, 3), (5, 4), (5, 4))),
            GPUNetStage("irb", 272, 1, "relu", ((3, 6), (5, 6), (7, 6), (5, 6), (3, 4))),
            GPUNetStage("irb", 384, 2, "relu", ((3, 6), (3, 6), (5, 6), (3, 3), (3, 3), (3, 3), (3, 3))),
        ),
        tail=(1152, 1984),
    ),
}


def names() -> tuple[str, ...]:
    """Return the names of the networks."""
    return tuple(NETWORKS)


def named(name: str, *, classes: int = 1000, resolution: int | None = None) -> Fixed:
    """Return one of `names()`.

    Args:
        name: name of the network.
        classes: number of classes.
        resolution: height and width of the input in pixels; the published one by default.

    Raises:
        SearchError: fewer than two classes, or an image too small for the strides.
    """
    facts = NETWORKS[name]
    resolution = facts.resolution if resolution is None else resolution
    check_input(
        name, classes=classes, resolution=resolution, halvings=1 + sum(stage.stride == 2 for stage in facts.stages)
    )
    network = [ops.conv((3, resolution, resolution), facts.stem, stride=2, act=facts.stem_act)]
    for stage in facts.stages:
        for index, (kernel, expansion) in enumerate(stage.layers):
            shape, stride = ops.output_shape(network[-1]), stage.stride if index == 0 else 1
            network.append(_block(stage, shape, stride, kernel, expansion))
    last = ops.output_shape(network[-1])
    if len(facts.tail) == 1:
        network.append(ops.tail(last, classes, hidden=facts.tail[0]))
    else:
        network.append(ops.conv(last, facts.tail[0], kernel=1))
        network.append(ops.mlp_head(ops.output_shape(network[-1]), classes, hidden=facts.tail[1]))
    return Fixed(name=name, input_shape=(3, resolution, resolution), classes=classes, sequence=tuple(network))


def _block(stage: GPUNetStage, shape: Shape, stride: int, kernel: int, expansion: int | float) -> BlockSpec:
    if stage.op == "conv":
        return ops.conv(shape, stage.channels, kernel=kernel, stride=stride, act=stage.act)
    hidden, fused = _hidden(shape[0], expansion), stage.op == "fused_irb"
    return ops.inverted_residual(
        shape, stage.channels, hidden=hidden, kernel=kernel, stride=stride, act=stage.act, se=stage.se, fused=fused
    )


def _hidden(c_in: int, expansion: int | float) -> int:
    """Return the product, rounded to a multiple of 8 if the expansion is published as a rounded fraction."""
    return expansion * c_in if isinstance(expansion, int) else 8 * round(expansion * c_in / 8)
