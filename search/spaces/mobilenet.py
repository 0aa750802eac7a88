"""MobileNetV2 (Sandler et al. 2018, Table 2) and MnasNet-B1 (Tan et al. 2019).

Inverted residuals at several width multipliers.

The number in a name is the multiplier. MnasNet-B1 is the variant without squeeze-and-excite.
"""

from typing import NamedTuple

from search import ops
from search.spaces.checks import check_input
from search.spaces.fixed import Fixed


class MobileNetStage(NamedTuple):
    """Consecutive blocks of the same expansion and width; the first has the stride."""

    expansion: int
    channels: int
    layers: int
    stride: int
    kernel: int = 3


_MOBILENETV2 = (
    MobileNetStage(1, 16, 1, 1),
    MobileNetStage(6, 24, 2, 2),
    MobileNetStage(6, 32, 3, 2),
    MobileNetStage(6, 64, 4, 2),
    MobileNetStage(6, 96, 3, 1),
    MobileNetStage(6, 160, 3, 2),
    MobileNetStage(6, 320, 1, 1),
)
_MNASNET = (
    MobileNetStage(1, 16, 1, 1),
    MobileNetStage(3, 24, 3, 2),
    MobileNetStage(3, 40, 3, 2, 5),
    MobileNetStage(6, 80, 3, 2, 5),
    MobileNetStage(6, 96, 2, 1),
    MobileNetStage(6, 192, 4, 2, 5),
    MobileNetStage(6, 320, 1, 1),
)


def names() -> tuple[str, ...]:
    """Return the names of the networks."""
    return ("mobilenetv2-0.75", "mobilenetv2-1.0", "mobilenetv2-1.4", "mnasnet-0.75", "mnasnet-1.0")


def named(name: str, *, classes: int = 1000, resolution: int = 224) -> Fixed:
    """Return one of `names()`.

    Raises:
        SearchError: fewer than two classes, or an image too small for five halvings.
    """
    check_input(name, classes=classes, resolution=resolution, halvings=5)
    family, multiplier = name.split("-")
    stages, act = (_MOBILENETV2, "relu6") if family == "mobilenetv2" else (_MNASNET, "relu")
    network = [ops.conv((3, resolution, resolution), _scaled(32, float(multiplier)), stride=2, act=act)]
    for stage in stages:
        for index in range(stage.layers):
            shape, stride = ops.output_shape(network[-1]), stage.stride if index == 0 else 1
            width = _scaled(stage.channels, float(multiplier))
            if stage.expansion == 1:
                network.append(ops.separable(shape, width, kernel=stage.kernel, stride=stride, act=act))
            else:
                hidden = stage.expansion * shape[0]
                network.append(
                    ops.inverted_residual(shape, width, hidden=hidden, kernel=stage.kernel, stride=stride, act=act)
                )
    last = max(1280, _scaled(1280, float(multiplier))) if family == "mobilenetv2" else 1280
    network.append(ops.tail(ops.output_shape(network[-1]), classes, hidden=last, act=act))
    return Fixed(name=name, input_shape=(3, resolution, resolution), classes=classes, sequence=tuple(network))


def _scaled(channels: int, multiplier: float) -> int:
    """Round the product to the nearest multiple of 8 that is at least 90 % of it.

    The rule of both papers' public code.
    """
    nearest = max(8, int(channels * multiplier + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels * multiplier else nearest
