"""What is known of a network in half precision: ranges of its activations and weights, and the nodes that stay FP32."""

from typing import Annotated, Literal

import msgspec

from latency.values import Count, Share

Size = Annotated[float, msgspec.Meta(ge=0)]
"""An absolute value."""

LARGEST = 65504.0
"""Largest number of half precision."""
SMALLEST_NORMAL = 2.0**-14
"""Below it, about 6.1e-5, half precision has fewer bits the smaller a number is."""
VANISHING = 2.0**-25
"""What is no larger is rounded to zero."""


class TensorRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen of an activation in FP32."""

    name: str
    node: str
    """that writes it; "" for an input"""
    op: str
    max_abs: Size
    """largest finite |x|, against 65504"""
    subnormal: Share
    """share of the values with 0 < |x| < 6.1e-5"""
    vanishing: Share
    """share of the values that are not zero and would be rounded to it"""
    sum_abs: Size = 0.0
    """of a reduction, the largest |sum| that it divides or takes the root of"""


class WeightRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What half precision does to a weight."""

    name: str
    max_abs: Size
    min_abs: Size
    """smallest |w| that is not zero; 0 where all are"""
    subnormal: Count
    """how many with 0 < |w| < 6.1e-5"""
    vanishing: Count
    """how many that are not zero would be rounded to it"""
    overflowing: Count
    """how many finite ones would be infinite"""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node that stays FP32."""

    node: str
    op: str
    reason: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a graph may be run in half precision, or in bfloat16."""

    precision: Literal["fp16", "bf16"] = "fp16"

    samples: Count
    """that the ranges were seen on; 0 where none were, and only weights and operators were looked at"""
    largest: Size = LARGEST
    headroom: Size
    nodes: Count
    """of the graph in its narrow precision, casts included"""
    casts: Count
    """between FP32 and FP16, those at inputs and outputs included"""
    islands: Count
    kept: tuple[Kept, ...]
    tensors: tuple[TensorRange, ...]
    weights: tuple[WeightRange, ...]

    @property
    def summary(self) -> str:
        """The certificate in a line."""
        kept = f"every node is {self.precision.upper()}"
        if self.kept:
            nodes, islands = (f"{count} {noun}{'s' * (count != 1)}" for count, noun in ((len(self.kept), "node"), (self.islands, "island")))
            kept = f"{nodes} in {islands} {'stays' if len(self.kept) == 1 else 'stay'} FP32"
        seen = "no activations were looked at"
        if self.tensors:
            worst = max(self.tensors, key=lambda seen: seen.max_abs)
            seen = f"largest |x| {worst.max_abs:.4g} at {worst.name} of {self.samples} samples"
        return f"{kept}, {self.casts} casts; {seen}"
