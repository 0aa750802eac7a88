"""Facts about a network in half precision: ranges of its activations and weights, and the nodes that stay in FP32."""

from typing import Annotated, Literal

import msgspec

from latency.values import Count, Share

Size = Annotated[float, msgspec.Meta(ge=0)]
"""An absolute value."""

LARGEST = 65504.0
"""Largest number of half precision."""
SMALLEST_NORMAL = 2.0**-14
"""Smallest normal number of half precision, about 6.1e-5, below which precision decreases."""
VANISHING = 2.0**-25
"""Largest number that half precision rounds to zero."""


class TensorRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Range of an activation in FP32."""

    name: str
    node: str
    """name of the node that writes it; "" for an input"""
    op: str
    max_abs: Size
    """largest finite |x|, compared with 65504"""
    subnormal: Share
    """share of the values with 0 < |x| < 6.1e-5"""
    vanishing: Share
    """share of nonzero values that would be rounded to zero"""
    sum_abs: Size = 0.0
    """for a reduction, the largest |sum| that it divides or takes the root of"""


class WeightRange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Range of a weight, and its loss in half precision."""

    name: str
    max_abs: Size
    min_abs: Size
    """smallest nonzero |w|; 0 if all are zero"""
    subnormal: Count
    """number of entries with 0 < |w| < 6.1e-5"""
    vanishing: Count
    """number of nonzero entries that would be rounded to zero"""
    overflowing: Count
    """number of finite entries that would become infinite"""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node that stays in FP32."""

    node: str
    op: str
    reason: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a graph may be run in half precision, or in bfloat16."""

    precision: Literal["fp16", "bf16"] = "fp16"

    samples: Count
    """number of samples from which ranges were taken; 0 if only weights and operators were inspected"""
    largest: Size = LARGEST
    headroom: Size
    nodes: Count
    """number of nodes of the graph in its narrow precision, including casts"""
    casts: Count
    """number of casts between FP32 and the narrow precision, including those at inputs and outputs"""
    islands: Count
    kept: tuple[Kept, ...]
    tensors: tuple[TensorRange, ...]
    weights: tuple[WeightRange, ...]

    @property
    def summary(self) -> str:
        """The certificate in one line."""
        kept = f"every node is {self.precision.upper()}"
        if self.kept:
            nodes, islands = (
                f"{count} {noun}{'s' * (count != 1)}"
                for count, noun in ((len(self.kept), "node"), (self.islands, "island"))
            )
            kept = f"{nodes} in {islands} {'stays' if len(self.kept) == 1 else 'stay'} FP32"
        seen = "no activations were looked at"
        if self.tensors:
            worst = max(self.tensors, key=lambda seen: seen.max_abs)
            seen = f"largest |x| {worst.max_abs:.4g} at {worst.name} of {self.samples} samples"
        return f"{kept}, {self.casts} casts; {seen}"
