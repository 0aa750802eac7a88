"""Residual networks (He et al. 2016) for ImageNet and for images of 32x32.

A bottleneck has its stride in the 3x3 convolution, like the public implementations and unlike the paper; ResNet-50 then
has the commonly cited 4.1 GMACs. Shortcuts between unequal shapes are always 1x1 convolutions; for CIFAR the paper pads
with zeros, but TAS (Dong and Yang 2019), whose pruning ratios these networks reproduce, does not.
"""

from search import ops
from search.spaces.checks import check_input
from search.spaces.fixed import Fixed

_IMAGENET = {
    "resnet-18": (2, 2, 2, 2),
    "resnet-34": (3, 4, 6, 3),
    "resnet-50": (3, 4, 6, 3),
    "resnet-101": (3, 4, 23, 3),
}
_CIFAR = {f"resnet{depth}": depth for depth in (20, 32, 56, 110, 164)}


def names() -> tuple[str, ...]:
    """Return the names of the networks: resnet-18 to resnet-101 for ImageNet, resnet20 to resnet164 for CIFAR."""
    return (*_IMAGENET, *_CIFAR)


def named(name: str, *, classes: int | None = None, resolution: int | None = None) -> Fixed:
    """Return one of `names()`, by default for 1000 classes and 224x224 pixels, or for 10 classes and 32x32 pixels.

    Raises:
        SearchError: fewer than two classes, or an image too small for the strides.
    """
    imagenet = name in _IMAGENET
    classes, resolution = classes or (1000 if imagenet else 10), resolution or (224 if imagenet else 32)
    check_input(name, classes=classes, resolution=resolution, halvings=5 if imagenet else 2)
    image = (3, resolution, resolution)
    if imagenet:
        bottleneck, stages = name in ("resnet-50", "resnet-101"), _IMAGENET[name]
        network = [ops.stem(image, 64)]
    else:
        bottleneck, depth = _CIFAR[name] == 164, _CIFAR[name] - 2
        stages = (depth // (9 if bottleneck else 6),) * 3
        network = [ops.conv(image, 16)]
    for stage, blocks in enumerate(stages):
        hidden = network[0].width("c_out") << stage
        for index in range(blocks):
            shape, stride = ops.output_shape(network[-1]), 2 if stage and not index else 1
            network.append(
                ops.residual(
                    shape, hidden * (4 if bottleneck else 1), hidden=hidden, stride=stride, bottleneck=bottleneck
                )
            )
    network.append(ops.head(ops.output_shape(network[-1]), classes))
    return Fixed(name=name, input_shape=image, classes=classes, sequence=tuple(network))
