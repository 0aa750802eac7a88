"""Plain chains of RepVGG blocks (Ding et al. 2021): trained with three branches a block, shipped as one 3x3 convolution each."""

from search.space import Chain, Layer, check_input


def mini(*, classes: int = 10, resolution: int = 32) -> Chain:
    """Seven layers for small images: the space of the demonstration.

    Raises:
        SearchError: fewer than two classes, or an image too small for three strides.
    """
    check_input("repvgg-mini", classes=classes, resolution=resolution, halvings=3)
    shape = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]
    return Chain(
        name="repvgg-mini",
        input_shape=(3, resolution, resolution),
        classes=classes,
        layers=tuple(Layer(name=f"block{index}", width=width, stride=stride) for index, (width, stride) in enumerate(shape)),
    )
