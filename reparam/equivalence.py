"""How far two modules differ."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import ReparamError

FLOAT64_LIMIT = 1e-10
"""Largest relative difference in float64 that counts as the same function: rounding of deep networks stays orders below."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest difference between two outputs, against the size of the reference output."""

    max_abs: float
    """largest absolute difference of any element"""
    scale: float
    """largest absolute value of the reference output"""

    @property
    def relative(self) -> float:
        """`max_abs / scale`; where the reference is zero everywhere, 0 for no difference and infinity for any."""
        if self.scale == 0:
            return math.inf if self.max_abs else 0.0
        return self.max_abs / self.scale

    def within(self, limit: float) -> bool:
        """Whether the relative difference is at most `limit`; never for a NaN."""
        return self.relative <= limit


@torch.no_grad()
def compare(reference: nn.Module, other: nn.Module, x: Tensor | tuple[Tensor, ...], dtype: torch.dtype = torch.float64) -> Difference:
    """Run both in evaluation mode on the same input, on copies that are converted to `dtype`: neither argument is changed.

    Args:
        reference: the module whose output sets the scale.
        other: the module that should do the same.
        x: their input, or a tuple of their inputs.
        dtype: floating type that both compute in.

    Raises:
        ReparamError: the outputs differ in number or shape.
    """
    inputs = tuple(value.to(dtype) if value.is_floating_point() else value for value in (x if isinstance(x, tuple) else (x,)))
    expected, found = (list(_tensors(copy.deepcopy(module).to(dtype).eval()(*inputs))) for module in (reference, other))
    shapes = [[tuple(value.shape) for value in values] for values in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ReparamError(f"the outputs have shapes {shapes[1]}, the reference has {shapes[0]}")
    return Difference(
        max_abs=_largest(a - b for a, b in zip(expected, found, strict=True)),
        scale=_largest(expected),
    )


def require(difference: Difference, limit: float, what: str) -> None:
    """Raise unless the difference is within the limit.

    Raises:
        ReparamError: naming `what` and both numbers.
    """
    if not difference.within(limit):
        raise ReparamError(f"{what}: the output differs by {difference.relative:.2e} of its scale, more than {limit:.0e}")


def _largest(values: Any) -> float:
    # max() of Python floats loses a NaN, torch keeps it.
    peaks = [value.abs().max() for value in values if value.numel()]
    return float(torch.stack(peaks).max()) if peaks else 0.0


def _tensors(output: Any) -> Iterator[Tensor]:
    match output:
        case Tensor():
            yield output
        case dict():
            for value in output.values():
                yield from _tensors(value)
        case tuple() | list():
            for value in output:
                yield from _tensors(value)
        case _:
            raise ReparamError(f"outputs must be tensors in tuples, lists or dicts, found {type(output).__name__}")
