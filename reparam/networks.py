"""The two network families of PaS (Li et al. 2022, Section 5.1, Figure 2 d and e), at any widths.

The paper does not publish its widths.

An identity spans only one convolution, so every layer has its own width and ships without a shortcut. Every layer is a
block with a `mask` for pruning.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from reparam.blocks import Block, LightBlock, PlainBlock
from reparam.errors import ReparamError


def plain_network(widths: Sequence[int], strides: Sequence[int], *, classes: int, c_in: int = 3) -> nn.Sequential:
    """Build a network of 3x3 convolutions, global average pooling and a linear layer.

    Args:
        widths: output channels of each layer.
        strides: stride of each layer.
        classes: outputs of the linear layer.
        c_in: channels of the image.

    Raises:
        ReparamError: there is no layer, or the numbers of widths and strides differ.
    """
    return _sequential(PlainBlock, widths, strides, classes, c_in)


def light_network(widths: Sequence[int], strides: Sequence[int], *, classes: int, c_in: int = 3) -> nn.Sequential:
    """Build a `plain_network` with a `LightBlock` for every layer but the first.

    An image has too few channels for a depth-wise layer.
    """
    return _sequential(LightBlock, widths, strides, classes, c_in)


def _sequential(
    block: type[PlainBlock | LightBlock], widths: Sequence[int], strides: Sequence[int], classes: int, c_in: int
) -> nn.Sequential:
    if not widths or len(widths) != len(strides):
        raise ReparamError(
            f"a network needs at least one layer and one stride per width: found {len(widths)} widths, {len(strides)} "
            "strides"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (before, width, stride) in enumerate(zip([c_in, *widths], widths, strides, strict=False)):
        layer: Block = (block if index else PlainBlock)(before, width, stride=stride)
        layers[f"layer{index}"] = layer
    layers["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))
    return nn.Sequential(layers)
