"""Which layers lose their channels together, and where to mask them: `channel_groups`, `insert_masks`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Layers whose output channels are pruned together: added to or multiplied with one another, or tied by a depth-wise convolution."""

    name: str
    """qualified name of its first producer"""
    channels: int
    """entries of its one mask"""
    producers: tuple[str, ...]
    """qualified names of the layers (convolutions, transposed convolutions, linear layers, trained-form blocks) that make the channels"""
    sites: tuple[str, ...]
    """nodes of the graph behind which the mask stands; none for a group that cannot be pruned"""
    consumers: tuple[str, ...]
    """qualified names of the layers that read the channels"""
    why: str = ""
    """why it cannot be pruned, in one line; empty where it can"""


def channel_groups(model: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> tuple[ChannelGroup, ...]:
    """The groups of a network without masks, in its trained or its fused form, in the order of their first producers."""
    raise NotImplementedError


def insert_masks(
    model: nn.Module,
    example_input: Tensor | tuple[Tensor, ...],
    groups: Sequence[ChannelGroup],
    make_mask: Callable[[ChannelGroup], nn.Module],
) -> nn.Module:
    """A copy of the network with one mask for each group, at all of its sites, as the submodule `masks.<name with _ for .>`."""
    raise NotImplementedError
