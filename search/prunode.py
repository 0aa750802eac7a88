"""Prunodes: one block at two hidden widths, which close in on the best one (PRUNET, Section 3.2.1).

`Rule` is Algorithm 1 as a pure function of its state. Its weight is the logit of the large candidate against the small one: above 0 the
large one is preferred, and both masks grow.

Read literally (`paper=True`), the algorithm loses two kinds of optimum. Where the small mask reaches 0 the weight is kept; it goes on
falling while the masks cannot, and by the time they should grow again it is too far below 0 to come back. And the masks move by the same
step when they are a granule apart as when they are half the range apart. So by default the weight is reset at the corner too, and what
it adds to the update is scaled by the distance between the masks, and its Adam has `BETAS`.
"""

import math
from typing import Annotated

from msgspec import Meta, Struct

BETAS = (0.9, 0.9)
"""Of Adam for the weight. Its gradient falls with the square of the distance between the masks; beside a mean square over 1,000 steps, as
Adam has by default, it would soon be too small to move masks of many granules."""


class Masks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """State of Algorithm 1 but for the weight, which is a parameter of the network."""

    s: Annotated[float, Meta(ge=0, le=1)]
    """share of the channels in the small mask, before it is rounded"""
    l: float  # noqa: E741 (the paper's symbol)
    """the same of the large mask; may be above 1, where the mask is cut off"""
    update: float = 0.0
    """last change of both shares"""
    small: int
    """channels of the small candidate"""
    large: int
    """channels of the large candidate; equal to `small` where the block has a single width"""


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Algorithm 1: how the masks of a Prunode move.

    Halves are rounded up, so that a mask never depends on the parity of its number of granules.
    """

    max_channels: int
    """channels of the widest block, a multiple of the granularity"""
    granularity: int
    """channels between two widths"""
    paper: bool = False
    """the algorithm as printed: the weight is kept where the small mask reaches 0, and the update is not scaled"""
    c: float = 0.8
    max_distance: float = 0.6
    momentum: float = 0.4

    def __post_init__(self) -> None:
        assert self.granularity > 0, self
        assert self.max_channels > 0, self
        assert self.max_channels % self.granularity == 0, self

    def start(self) -> Masks:
        """The large mask has all channels, the small one half of them."""
        return self._masks(0.5, 1.0, 0.0)

    def step(self, masks: Masks, weight: float, progress: float) -> tuple[Masks, float]:
        """After a step of the architecture weights: the new masks, and the weight, which is 0 where it was reset.

        Args:
            masks: before the step.
            weight: of the large candidate against the small one.
            progress: of the search, from 0 to 1.
        """
        if not self.moves(masks):
            return masks, weight
        distance = self.max_distance * (1 - progress) ** 2
        update = masks.update * self.momentum + weight * (1.0 if self.paper else distance / self.max_distance)
        s = masks.s + update
        if s > 0:
            s, weight = min(s, 1 - self.c * distance), 0.0
        else:
            s, weight = 0.0, weight if self.paper else 0.0
        return self._masks(s, s + distance, update), weight

    def moves(self, masks: Masks) -> bool:
        """Whether the candidates are still more than one width apart."""
        return (masks.l - masks.s) * self.max_channels > self.granularity

    def _masks(self, s: float, large_share: float, update: float) -> Masks:
        most, granule = self.max_channels, self.granularity
        if most == granule:  # a single width: the bounds of the small mask would cross
            return Masks(s=s, l=large_share, update=update, small=most, large=most)
        small = min(max(self._rounded(s), granule), most - granule)
        large = min(max(self._rounded(large_share), small + granule), most)
        return Masks(s=s, l=large_share, update=update, small=small, large=large)

    def _rounded(self, share: float) -> int:
        return math.floor(share * self.max_channels / self.granularity + 0.5) * self.granularity
