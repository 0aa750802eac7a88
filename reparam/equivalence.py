"""How far two modules differ."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reparam.errors import ReparamError
from reparam.structure import leaves, map_tensors

FLOAT64_LIMIT = 1e-10
"""Largest relative difference in float64 that counts as the same function: rounding of deep networks stays orders below."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Largest difference between two outputs, against the size of the reference output."""

    max_abs: float
    """largest absolute difference of any element"""
    scale: float
    """largest absolute value of the reference output"""
    not_finite: int = 0
    """number of values that are NaN or infinite in one output and not alike in the other, or of outputs without a finite value"""

    @property
    def relative(self) -> float:
        """`max_abs / scale`; where the reference is zero everywhere, 0 for no difference and infinity for any, and for a NaN in one."""
        if self.not_finite:
            return math.inf
        if self.scale == 0:
            return math.inf if self.max_abs else 0.0
        return self.max_abs / self.scale

    def within(self, limit: float) -> bool:
        """Whether the relative difference is at most `limit`; never where a value is NaN or infinite in one output alone."""
        return not self.not_finite and self.relative <= limit


@torch.no_grad()
def compare(
    reference: nn.Module,
    other: nn.Module,
    x: Tensor | tuple[Any, ...],
    dtype: torch.dtype = torch.float64,
    *,
    keywords: Mapping[str, Any] | None = None,
) -> Difference:
    """Run both in evaluation mode on the same input, on copies that compute in `dtype`: neither argument is changed.

    Values that are NaN, or the same infinity, in both outputs count as equal; those of integers and booleans as numbers.

    Args:
        reference: the module whose output sets the scale.
        other: the module that should do the same.
        x: their input, or a tuple of their arguments: tensors, or anything that holds some.
        dtype: floating type that both compute in, whatever types their code names.
        keywords: their keyword arguments.

    Raises:
        ReparamError: the outputs differ in number or shape, or hold something else than tensors.
    """
    inputs, named = map_tensors(
        (x if isinstance(x, tuple) else (x,), dict(keywords or {})),
        lambda value: value.to(dtype) if value.is_floating_point() else value,
    )
    with arithmetic(dtype):
        outputs = [list(tensors_of(_converted(module, dtype)(*inputs, **named))) for module in (reference, other)]
    return between(*outputs)


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in evaluation mode with all that is floating in one type, in one step."""
    tensors = (*module.parameters(), *module.buffers())
    made: dict[int, Any] = {id(tensor): tensor.detach().to(dtype, copy=True) for tensor in tensors if tensor.is_floating_point()}
    made |= {id(weight): nn.Parameter(made[id(weight)], requires_grad=False) for weight in module.parameters() if id(weight) in made}
    return copy.deepcopy(module, made).eval()


def between(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Difference:
    """The difference between the tensors of two outputs, taken as one.

    Raises:
        ReparamError: they differ in number or shape.
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


def require(difference: Difference, limit: float, what: str) -> None:
    """Raise unless the difference is within the limit.

    Raises:
        ReparamError: naming `what` and both numbers.
    """
    if difference.not_finite:
        raise ReparamError(f"{what}: {difference.not_finite} output values are NaN or infinite in one of the two, or in all places")
    if not difference.within(limit):
        raise ReparamError(f"{what}: the output differs by {difference.relative:.2e} of its scale, more than {limit:.0e}")


@contextmanager
def arithmetic(dtype: torch.dtype) -> Iterator[None]:
    """Everything in a floating type, also where a network's code names another, as `x.float()` does."""
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
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _CONVERSIONS:
            return args[0].to(self.dtype)
        return func(*map(self._type, args), **{name: self._type(value) for name, value in (kwargs or {}).items()})

    def _type(self, value: Any) -> Any:
        return self.dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


_CONVERSIONS = frozenset({Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.double})


def _aligned(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor, int]:
    """Both in float64 with zeros where they are not finite and alike, and how many values are not finite otherwise."""
    a, b = reference.double(), other.double()
    alike = (a.isnan() & b.isnan()) | (a.isinf() & (a == b))
    odd = ~alike & ~(a.isfinite() & b.isfinite())
    count = int(odd.sum()) or (a.numel() if a.numel() and bool(alike.all()) else 0)
    finite = ~(alike | odd)
    return a.where(finite, 0.0), b.where(finite, 0.0), count


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors of what a network returns, in order.

    Raises:
        ReparamError: there is something else in it.
    """
    for path, value in leaves(output):
        if not isinstance(value, Tensor):
            of = f" at {'.'.join(path)}" if path else ""
            raise ReparamError(f"outputs must be tensors in tuples, lists or dicts, found {type(value).__name__}{of}")
        yield value
