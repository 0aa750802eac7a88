"""Prunodes: one block at two hidden widths that converge to the best one (PRUNET, Section 3.2.1).

`Rule` is Algorithm 1 as a pure function of its state. Its weight is the logit of the large candidate against the small
one: above 0 the large one is preferred, and both masks grow.

Read literally (`paper=True`), the algorithm misses two kinds of optimum. If the small mask reaches 0, the weight is
kept; it keeps falling while the masks cannot shrink, and ends up too far below 0 to recover when they should grow
again. Also, the masks move by the same step whether they are one granule or half the range apart. By default,
therefore, the weight is reset at 0, too, its contribution to the update is scaled by the distance between the masks,
and its Adam uses `BETAS`.
"""

import math
from typing import Annotated

from msgspec import Meta, Struct

BETAS = (0.9, 0.9)
"""Betas of Adam for the weight. The gradient falls with the square of the distance between the masks; with Adam's
default mean square over 1,000 steps it would soon be too small to move masks of many granules."""


class PrunodeMasks(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """State of Algorithm 1 except the weight, which is a parameter of the network."""

    s: Annotated[float, Meta(ge=0, le=1)]
    """share of channels in the small mask, before rounding"""
    l: float  # noqa: E741 (the paper's symbol)
    """share of channels in the large mask, before rounding and clipping; may exceed 1"""
    update: float = 0.0
    """last change of both shares"""
    small: int
    """channels of the small candidate"""
    large: int
    """channels of the large candidate; equal to `small` if the block has a single width"""


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Algorithm 1: the update of a Prunode's masks.

    Halves are rounded up, so that a mask does not depend on the parity of its number of granules.
    """

    max_channels: int
    """channels of the widest block, a multiple of the granularity"""
    granularity: int
    """channels between two widths"""
    paper: bool = False
    """follow the algorithm as printed: keep the weight when the small mask reaches 0, and do not scale the update"""
    c: float = 0.8
    max_distance: float = 0.6
    momentum: float = 0.4

    def __post_init__(self) -> None:
        assert self.granularity > 0, self
        assert self.max_channels > 0, self
        assert self.max_channels % self.granularity == 0, self

    def start(self) -> PrunodeMasks:
        """Return the initial masks: all channels in the large one, half in the small one."""
        return self._masks(0.5, 1.0, 0.0)

    def step(self, masks: PrunodeMasks, weight: float, progress: float) -> tuple[PrunodeMasks, float]:
        """Return the masks and the weight, 0 if reset, after a step of the architecture weights.

        Args:
            masks: the masks before the step.
            weight: logit of the large candidate against the small one.
            progress: progress of the search, from 0 to 1.
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

    def moves(self, masks: PrunodeMasks) -> bool:
        """Return whether the candidates are still more than one width apart."""
        return (masks.l - masks.s) * self.max_channels > self.granularity

    def _masks(self, s: float, large_share: float, update: float) -> PrunodeMasks:
        most, granule = self.max_channels, self.granularity
        if most == granule:  # a single width: the bounds of the small mask would cross
            return PrunodeMasks(s=s, l=large_share, update=update, small=most, large=most)
        small = min(max(self._rounded(s), granule), most - granule)
        large = min(max(self._rounded(large_share), small + granule), most)
        return PrunodeMasks(s=s, l=large_share, update=update, small=small, large=large)

    def _rounded(self, share: float) -> int:
        return math.floor(share * self.max_channels / self.granularity + 0.5) * self.granularity
