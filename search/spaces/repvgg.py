"""Plain chains of RepVGG blocks (Ding et al. 2021): trained with three branches a block, shipped as one 3x3 convolution each."""

from search.errors import SearchError
from search.space import Layer, Space

SMALLEST_RESOLUTION = 8
"""Below it the three strides leave no pixel."""


def mini(*, classes: int = 10, resolution: int = 32) -> Space:
    """Seven layers for small images: the space of the demonstration.

    Raises:
        SearchError: fewer than two classes, or an image too small for three strides.
    """
    if classes < 2:
        raise SearchError(f"a classifier needs at least 2 classes, found {classes}")
    if resolution < SMALLEST_RESOLUTION:
        raise SearchError(
            f"repvgg-mini halves its input three times: the resolution must be at least {SMALLEST_RESOLUTION}, found {resolution}"
        )
    shape = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]
    return Space(
        name="repvgg-mini",
        input_shape=(3, resolution, resolution),
        classes=classes,
        layers=tuple(Layer(name=f"block{index}", width=width, stride=stride) for index, (width, stride) in enumerate(shape)),
    )
