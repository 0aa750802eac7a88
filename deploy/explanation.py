"""Where half precision breaks a network."""

from typing import Annotated

import msgspec

from deploy.validate import LIMITS
from latency.values import Count

LIMIT = LIMITS["fp16"]
"""Limit on the difference of a tensor relative to its largest value, the same as for outputs."""


class Suspect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tensor of the FP16 graph and its error."""

    tensor: str
    op: str
    layer: str
    """module or node that computes it, or the previous one with weights; "" if there is none"""
    error: Annotated[float, msgspec.Meta(ge=0)] | None
    """largest difference from FP32, relative to the largest value of the tensor; None if a value overflows or becomes
    NaN"""

    def __str__(self) -> str:
        where = f"{self.tensor} ({self.op}{f', layer {self.layer}' if self.layer else ''})"
        return (
            f"{where}: {'overflows or becomes NaN' if self.error is None else f'off by {self.error:.1e} of its scale'}"
        )


class GraphErrors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Errors of the tensors of one FP16 graph."""

    first: Suspect | None
    """the first tensor beyond the limit in topological order; None if all are within it"""
    worst: Suspect | None
    """the tensor with the largest error; None if there are no floating-point tensors to compare"""
    beyond: Count
    """number of tensors beyond the limit"""
    tensors: Count
    """number of tensors compared"""

    def __str__(self) -> str:
        if self.first:
            return f"{self.first}, limit {LIMIT:.0e}; {self.beyond} of {self.tensors} tensors are beyond it"
        if self.worst:
            return f"all {self.tensors} tensors are within {LIMIT:.0e}; the largest difference is at {self.worst}"
        return "there are no floating-point tensors to compare"


class Explanation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where half precision breaks a network, and whether the FP32 islands prevent it."""

    samples: Count
    everywhere: GraphErrors
    """errors of the graph with every node in FP16 that has an FP16 form"""
    certified: GraphErrors
    """errors of the graph with sensitive nodes in FP32, which ships as FP16"""

    @property
    def lines(self) -> tuple[str, str]:
        """The explanation in words."""
        return f"FP16 everywhere: {self.everywhere}", f"FP16 with FP32 islands: {self.certified}"
