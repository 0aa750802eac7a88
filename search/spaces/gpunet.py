"""GPUNet (Wang et al. 2022), the networks that PRUNET is compared with: facts of NVIDIA's published configurations."""

from typing import NamedTuple

from search import ops
from search.spaces.checks import check_input
from search.spaces.fixed import Fixed


class Stage(NamedTuple):
    """Equal blocks one behind the other; the first one has the stride and changes the channels."""

    op: str
    layers: int
    channels: int
    stride: int
    expansion: int
    kernel: int
    act: str
    se: bool = False


def gpunet_0(*, classes: int = 1000, resolution: int = 320) -> Fixed:
    """GPUNet-0."""
    stages = (
        Stage("conv", 2, 32, 1, 1, 3, "relu"),
        Stage("fused_irb", 2, 32, 2, 5, 3, "relu"),
        Stage("fused_irb", 3, 64, 2, 5, 3, "relu"),
        Stage("irb", 3, 256, 2, 5, 3, "swish"),
        Stage("irb", 2, 704, 2, 5, 3, "relu", se=True),
    )
    return _build("gpunet-0", 32, stages, classes, resolution)


def gpunet_1(*, classes: int = 1000, resolution: int = 288) -> Fixed:
    """GPUNet-1, the baseline of the PRUNET space and one of its networks."""
    stages = (
        Stage("conv", 1, 24, 1, 1, 3, "relu"),
        Stage("fused_irb", 2, 64, 2, 4, 3, "swish"),
        Stage("fused_irb", 2, 96, 2, 4, 3, "swish"),
        Stage("irb", 1, 160, 2, 2, 3, "swish", se=True),
        Stage("irb", 4, 288, 1, 5, 3, "relu"),
        Stage("irb", 4, 448, 2, 4, 3, "relu", se=True),
    )
    return _build("gpunet-1", 24, stages, classes, resolution)


def gpunet_2(*, classes: int = 1000, resolution: int = 384) -> Fixed:
    """GPUNet-2."""
    stages = (
        Stage("conv", 3, 32, 1, 1, 3, "relu"),
        Stage("fused_irb", 1, 32, 2, 6, 5, "swish", se=True),
        Stage("fused_irb", 3, 112, 2, 3, 3, "swish"),
        Stage("irb", 6, 144, 2, 6, 3, "swish"),
        Stage("irb", 4, 160, 1, 3, 5, "relu"),
        Stage("irb", 8, 224, 2, 3, 3, "swish", se=True),
        Stage("irb", 7, 832, 1, 2, 5, "relu"),
    )
    return _build("gpunet-2", 32, stages, classes, resolution)


def _build(name: str, stem: int, stages: tuple[Stage, ...], classes: int, resolution: int) -> Fixed:
    check_input(name, classes=classes, resolution=resolution, halvings=1 + sum(stage.stride == 2 for stage in stages))
    network = [ops.conv((3, resolution, resolution), stem, stride=2, act="swish")]
    for stage in stages:
        for index in range(stage.layers):
            shape, stride = ops.output_shape(network[-1]), stage.stride if index == 0 else 1
            if stage.op == "conv":
                network.append(ops.conv(shape, stage.channels, kernel=stage.kernel, stride=stride, act=stage.act))
            else:
                network.append(
                    ops.inverted_residual(
                        shape,
                        stage.channels,
                        hidden=stage.expansion * shape[0],
                        kernel=stage.kernel,
                        stride=stride,
                        act=stage.act,
                        se=stage.se,
                        fused=stage.op == "fused_irb",
                    )
                )
    network.append(ops.tail(ops.output_shape(network[-1]), classes, hidden=1280))
    return Fixed(name=name, input_shape=(3, resolution, resolution), classes=classes, sequence=tuple(network))
