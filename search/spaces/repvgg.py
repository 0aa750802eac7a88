"""RepVGG (Ding et al. 2021): blocks train with three branches and ship as one 3x3 convolution each.

The named networks are those of the paper's Table 2: five stages that each start with stride 2, the first with a single
layer; widths 64a, 64a, 128a, 256a, 512b, the first at most 64. In the variants g2 and g4, every second layer from the
network's third on has groups.
"""

from typing import NamedTuple

from latency.block import BlockSpec
from search import ops
from search.spaces.chain import Chain, Layer
from search.spaces.checks import check_input
from search.spaces.fixed import Fixed


class RepVGGVariant(NamedTuple):
    """A row of Table 2: number of layers of stages 2 to 5, and the width multipliers a and b."""

    layers: tuple[int, int, int, int]
    a: float
    b: float


_A, _B = (2, 4, 14, 1), (4, 6, 16, 1)
NETWORKS = {
    "a0": RepVGGVariant(_A, 0.75, 2.5),
    "a1": RepVGGVariant(_A, 1.0, 2.5),
    "a2": RepVGGVariant(_A, 1.5, 2.75),
    "b0": RepVGGVariant(_B, 1.0, 2.5),
    "b1": RepVGGVariant(_B, 2.0, 4.0),
    "b2": RepVGGVariant(_B, 2.5, 5.0),
    "b3": RepVGGVariant(_B, 3.0, 5.0),
}


def names() -> tuple[str, ...]:
    """Return the names of the networks: repvgg-a0 to repvgg-b3; b1 to b3 also with groups, such as repvgg-b1-g4."""
    grouped = [f"repvgg-{name}-g{groups}" for name in ("b1", "b2", "b3") for groups in (2, 4)]
    return tuple(sorted([*(f"repvgg-{name}" for name in NETWORKS), *grouped]))


def named(name: str, *, classes: int = 1000, resolution: int = 224) -> Fixed:
    """Return one of `names()`.

    Raises:
        SearchError: fewer than two classes, or an image too small for five halvings.
    """
    check_input(name, classes=classes, resolution=resolution, halvings=5)
    _, size, *rest = name.split("-")
    groups, (layers, a, b) = int(rest[0][1:]) if rest else 1, NETWORKS[size]
    widths = [min(64, int(64 * a)), int(64 * a), int(128 * a), int(256 * a), int(512 * b)]
    network, shape = list[BlockSpec](), (3, resolution, resolution)
    for width, count in zip(widths, (1, *layers), strict=True):
        for index in range(count):
            grouped = groups if network and len(network) % 2 == 0 else 1
            network.append(ops.conv(shape, width, stride=1 if index else 2, groups=grouped))
            shape = ops.output_shape(network[-1])
    network.append(ops.head(shape, classes))
    return Fixed(
        name=name,
        input_shape=(3, resolution, resolution),
        classes=classes,
        sequence=tuple(network),
        trained_as="repvgg",
    )


def mini(*, classes: int = 10, resolution: int = 32) -> Chain:
    """Return the demonstration space: seven layers for small images.

    Raises:
        SearchError: fewer than two classes, or an image too small for three halvings.
    """
    check_input("repvgg-mini", classes=classes, resolution=resolution, halvings=3)
    shape = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]
    return Chain(
        name="repvgg-mini",
        input_shape=(3, resolution, resolution),
        classes=classes,
        layers=tuple(
            Layer(name=f"block{index}", width=width, stride=stride) for index, (width, stride) in enumerate(shape)
        ),
    )
