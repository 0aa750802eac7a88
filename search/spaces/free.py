"""Spaces of residual networks in which layers that are added up have widths of their own, as in the code of TAS's authors.

Where a sum joins two widths, the shortcut is a 1x1 convolution with a norm; where they are equal, it is none. Such a convolution is
measured, counted, trained and shipped like any other.
"""

import dataclasses

from search import ops
from search.errors import SearchError
from search.spaces.fixed import Fixed
from search.spaces.traced import Traced, traced

FREE_WIDTHS = "/free-widths"
"""Behind the name of a single residual network: the space of its widths, each layer's free, such as resnet20/free-widths."""


def free_widths(network: Fixed, *, granularity: int = 8, points: int = 6) -> Traced:
    """The space of the widths and depths of a residual network, each layer's width free.

    Args:
        network: at full width.
        granularity: channels between two widths that can ship.
        points: widths that a layer is measured at on each of its axes, at most.

    Raises:
        SearchError: it has no residual block that adds its input as it is.
    """
    import torch

    shortcuts = [f"{index}.shortcut" for index, spec in enumerate(network.sequence) if dict(spec.attrs).get("shortcut") == "identity"]
    if not shortcuts:
        raise SearchError(f"{network.name} has no residual block that could join two widths: choose {network.name}/widths")
    joined, example = dataclasses.replace(network, sequence=tuple(map(ops.joined, network.sequence))), torch.zeros(1, *network.input_shape)
    found = traced(
        joined.module,
        example,
        name=network.name + FREE_WIDTHS,
        granularity=granularity,
        points=points,
        stages=network.stages(),
        shortcuts=shortcuts,
    )
    return dataclasses.replace(found, make=network.module)
