"""Spaces of residual networks in which the widths of layers that are added may differ, as in the code of TAS's authors.

If a sum joins two different widths, its shortcut is a 1x1 convolution with a norm; if they are equal, it is the
identity. Such a convolution is measured, counted, trained and shipped like any other.
"""

import dataclasses

from search import ops
from search.errors import SearchError
from search.spaces.fixed import Fixed
from search.spaces.traced import Traced, traced

FREE_WIDTHS = "/free-widths"
"""Suffix of a residual network's name that denotes its space with each layer's width free, such as
resnet20/free-widths."""


def free_widths(network: Fixed, *, granularity: int = 8, points: int = 6) -> Traced:
    """Return the space of widths and depths of a residual network in which each layer's width is free.

    Args:
        network: the network at full width.
        granularity: channels between two widths that can ship.
        points: maximum number of measured widths along each axis of a layer.

    Raises:
        SearchError: the network has no residual block with an identity shortcut.
    """
    import torch

    shortcuts = [
        f"{index}.shortcut"
        for index, spec in enumerate(network.sequence)
        if dict(spec.attrs).get("shortcut") == "identity"
    ]
    if not shortcuts:
        raise SearchError(
            f"{network.name} has no residual block that could join two widths: choose {network.name}/widths"
        )
    joined, example = (
        dataclasses.replace(network, sequence=tuple(map(ops.joined, network.sequence))),
        torch.zeros(1, *network.input_shape),
    )
    space = traced(
        joined.module,
        example,
        name=network.name + FREE_WIDTHS,
        granularity=granularity,
        points=points,
        stages=network.stages(),
        shortcuts=shortcuts,
    )
    return dataclasses.replace(space, make=network.module)
