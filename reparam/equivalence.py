"""Compare the outputs of two modules."""

import copy
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reparam.errors import ReparamError
from reparam.structure import Arguments, Example, arguments_of, leaves, map_tensors

FLOAT64_LIMIT = 1e-10
"""Largest relative difference in float64 that counts as equal; rounding in deep networks stays orders of magnitude
below."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest difference between two outputs, and the scale of the reference output."""

    max_abs: float
    """largest absolute difference of any element"""
    scale: float
    """largest absolute value of the reference output"""
    not_finite: int = 0
    """number of NaN or infinite values that the other output does not match, or of all values if no output value is
    finite"""

    @property
    def relative(self) -> float:
        """`max_abs / scale`; infinite if `not_finite`.

        If the reference is zero everywhere, 0 for no difference and infinite otherwise.
        """
        if self.not_finite:
            return math.inf
        if self.scale == 0:
            return math.inf if self.max_abs else 0.0
        return self.max_abs / self.scale

    def within(self, limit: float) -> bool:
        """Return whether the relative difference is at most `limit`; never if a NaN or infinite value has no match."""
        return not self.not_finite and self.relative <= limit


@torch.no_grad()
def compare(
    reference: nn.Module,
    other: nn.Module,
    x: Example,
    dtype: torch.dtype = torch.float64,
    *,
    keywords: Mapping[str, Any] | None = None,
) -> Difference:
    """Compare the outputs of two modules on the same input, in evaluation mode.

    Both run as copies that compute in `dtype`; the arguments stay unchanged. Two NaNs count as equal, as do two
    infinities of one sign. Integers and booleans are compared as numbers.

    Args:
        reference: the module whose output sets the scale.
        other: the module to compare with it.
        x: their input, or a tuple of their arguments: tensors or structures of tensors.
        dtype: floating type that both compute in, even if their code names another.
        keywords: their keyword arguments.

    Raises:
        ReparamError: the outputs differ in number or shape, or contain values other than tensors.
    """
    inputs, named = map_tensors(
        (arguments_of(x), dict(keywords or {})),
        lambda value: value.to(dtype) if value.is_floating_point() else value,
    )
    with arithmetic(dtype):
        outputs = [list(tensors_of(_converted(module, dtype)(*inputs, **named))) for module in (reference, other)]
    return difference_of(*outputs)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in evaluation mode with all floating-point tensors in one type; each tensor is copied only once."""
    tensors = (*module.parameters(), *module.buffers())
    memo = {id(tensor): tensor.detach().to(dtype, copy=True) for tensor in tensors if tensor.is_floating_point()}
    memo |= {
        id(weight): nn.Parameter(memo[id(weight)], requires_grad=False)
        for weight in module.parameters()
        if id(weight) in memo
    }
    return copy.deepcopy(module, memo).eval()


def difference_of(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """Return the largest difference over all tensors of two outputs.

    Raises:
        ReparamError: the outputs differ in number or shape.
    """
    shapes = [[tuple(value.shape) for value in values] for values in (reference, other)]
    if shapes[0] != shapes[1]:
        raise ReparamError(f"the outputs have shapes {shapes[1]}, the reference has {shapes[0]}")
    pairs = [_aligned(a, b) for a, b in zip(reference, other, strict=True)]
    return Difference(
        max_abs=max((float((a - b).abs().max()) for a, b, _ in pairs if a.numel()), default=0.0),
        scale=max((float(a.abs().max()) for a, _, _ in pairs if a.numel()), default=0.0),
        not_finite=sum(odd for _, _, odd in pairs),
    )


def require_within(difference: Difference, limit: float, what: str) -> None:
    """Raise unless the difference is within the limit.

    Raises:
        ReparamError: the difference is above the limit; the message names `what` and both numbers.
    """
    if difference.not_finite:
        raise ReparamError(
            f"{what}: {difference.not_finite} output values are NaN or infinite in one of the two, or in all places"
        )
    if not difference.within(limit):
        raise ReparamError(
            f"{what}: the output differs by {difference.relative:.2e} of its scale, more than {limit:.0e}"
        )


@contextmanager
def arithmetic(dtype: torch.dtype) -> Generator[None]:
    """Compute in one floating type, even if a network's code names another, as `x.float()` does."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Arithmetic(dtype):
            yield
    finally:
        torch.set_default_dtype(before)


class _Arithmetic(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Arguments = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _CONVERSIONS:
            return args[0].to(self.dtype)
        return func(*map(self._type, args), **{name: self._type(value) for name, value in (kwargs or {}).items()})

    def _type(self, value: object) -> object:
        return self.dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


_CONVERSIONS = frozenset({Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double})


def _aligned(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return both tensors in float64 with non-finite values set to zero, and the number of those to report.

    Reported are the non-finite values without a match, or all values if every one matches but none is finite.
    """
    a, b = reference.double(), other.double()
    matching = (a.isnan() & b.isnan()) | (a.isinf() & (a == b))
    mismatched = ~matching & ~(a.isfinite() & b.isfinite())
    count = int(mismatched.sum()) or (a.numel() if a.numel() and bool(matching.all()) else 0)
    finite = ~(matching | mismatched)
    return a.where(finite, 0.0), b.where(finite, 0.0), count


def tensors_of(output: object) -> Iterator[Tensor]:
    """Yield the tensors of a network's output, in order.

    Raises:
        ReparamError: the output contains another kind of value.
    """
    for path, value in leaves(output):
        if not isinstance(value, Tensor):
            where = f" at {'.'.join(path)}" if path else ""
            raise ReparamError(
                f"outputs must be tensors in tuples, lists or dicts, found {type(value).__name__}{where}"
            )
        yield value
